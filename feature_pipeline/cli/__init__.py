"""The command line: `feature-pipeline COMMAND`.

Every command is a page: read the settings, call the room that does the work, print. No logic that
another program could want lives here. Heavy imports happen inside the commands, so that `--help`
and a wrong argument answer at once. The list of commands is here, the pages are beside it.
"""

from __future__ import annotations

from typing import Any

import typer

from feature_pipeline.cli import (
    backfill,
    backup,
    data,
    explain,
    export,
    features,
    model,
    quarantine,
    stack,
)
from feature_pipeline.errors import FeaturePipelineError


class _Commands(typer.core.TyperGroup):
    """Prints the errors that a user can mend as one line; every other one keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FeaturePipelineError as error:
            typer.echo(f"feature-pipeline: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    name="feature-pipeline",
    cls=_Commands,
    help="Trading features that are correct at every past moment.",
    epilog=(
        "Exit codes: 0 done; 1 an error that you can mend, said in one line on stderr, or `doctor` "
        "found trouble; 2 wrong usage; 130 interrupted. `run` ends with its command's."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

START, LOOK, REPAIR, SERVERS = "Start here", "Look", "Fill and repair", "Servers"
_ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True}

app.command(rich_help_panel=START)(stack.demo)
app.command(rich_help_panel=START)(stack.doctor)
app.command(rich_help_panel=LOOK)(data.show)
app.command(rich_help_panel=LOOK)(data.get)
app.command(rich_help_panel=LOOK)(explain.explain)
app.command(rich_help_panel=LOOK)(export.export)
app.add_typer(features.features, name="features", rich_help_panel=LOOK)
app.command(rich_help_panel=LOOK)(stack.storage)
app.command(rich_help_panel=LOOK)(stack.logs)
app.command(rich_help_panel=REPAIR)(backfill.backfill)
app.add_typer(quarantine.quarantine, name="quarantine", rich_help_panel=REPAIR)
app.add_typer(data.online, name="online", rich_help_panel=REPAIR)
app.add_typer(model.model, name="model", rich_help_panel=REPAIR)
app.command(rich_help_panel=REPAIR)(stack.migrate)
app.command(rich_help_panel=REPAIR)(backup.backup)
app.command(rich_help_panel=REPAIR)(backup.restore)
app.command(rich_help_panel=REPAIR)(stack.upkeep)
app.command(rich_help_panel=SERVERS)(stack.up)
app.command(rich_help_panel=SERVERS)(stack.down)
app.command(rich_help_panel=SERVERS, context_settings=_ANYTHING)(stack.run)
