"""The command line: `feature-pipeline COMMAND`.

Every command is a page: read the settings, call the room that does the work, print. No logic that
another program could want lives here. Heavy imports happen inside the commands, so that `--help`
and a wrong argument answer at once. The list of commands is here, the pages are beside it.
"""

from __future__ import annotations

from typing import Any

import typer

from feature_pipeline.cli import backfill, data, stack
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
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command()(stack.demo)
app.command()(backfill.backfill)
app.command()(data.show)
app.add_typer(data.online, name="online")
app.command()(stack.up)
app.command()(stack.down)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(stack.run)
app.command()(stack.migrate)
app.command()(stack.doctor)
