"""The command line: `feature-pipeline COMMAND`.

Every command is a page: read the settings, call the room that does the work, print. No logic that
another program could want lives here. Heavy imports happen inside the commands, so that `--help`
and a wrong argument answer at once.
"""

from __future__ import annotations

import sys
from datetime import date, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_pipeline.errors import FeaturePipelineError, OnlineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from feature_pipeline.settings import Settings
    from feature_pipeline.stack import Stack


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


def console() -> Console:
    """Where tables and messages go."""
    from rich.console import Console

    return Console(highlight=False)


def settings() -> Settings:
    """What the environment says."""
    from feature_pipeline.settings import Settings

    return Settings()


@app.command()
def demo(
    ui: Annotated[bool, typer.Option(help="Stay, with the Dagster UI, until Ctrl-C.")] = True,
) -> None:
    """Everything from nothing: servers, a backfill of the sample, vectors read back from Redis."""
    from feature_pipeline import terminal
    from feature_pipeline.demo import DAYS, pending, published
    from feature_pipeline.resources import prepare_database
    from feature_pipeline.stack import Stack, foreground

    out = console()
    with foreground.until_told(), Stack(settings()) as stack:
        for name, address in stack.addresses():
            out.print(f"{name:<11} {address}", soft_wrap=True)
        prepare_database(stack.database_url)
        stack.prepare_dagster()
        current = stack.resolved_settings()
        if pending(current):
            _backfill(stack, *DAYS)
        else:
            out.print("every partition is up to date")
        answers = published(current)
        if ui or answers is None:
            with out.status("starting Dagster"):
                stack.start_dagster()
        with out.status("waiting for the sensor to publish"):
            answers = answers or published(current, wait=True)
        out.print()
        out.print("[bold]The newest state vector of each symbol, read back from Redis[/]")
        out.print(terminal.vectors(answers or {}))
        if not ui:
            return
        out.print()
        out.print(
            f"Dagster UI  [bold]{stack.ui_url}[/]  (this machine only: it asks for no password)"
        )
        out.print("Ctrl-C stops it; a second run reuses what is there.")
        foreground.stay()


@app.command()
def backfill(
    start: Annotated[str, typer.Option(help="First UTC day, YYYY-MM-DD.")],
    end: Annotated[str, typer.Option(help="Last UTC day, included.")],
    assets: Annotated[str, typer.Option(help="Comma-separated; default: all.")] = "",
    symbols: Annotated[str, typer.Option(help="Comma-separated; default: all.")] = "",
) -> None:
    """Materialise a range of days through Dagster, the history it needs included.

    Re-running repairs: what is right is left alone.
    """
    from feature_pipeline.partitions import parse_range
    from feature_pipeline.stack import Stack, foreground

    first, beyond = parse_range(start, end)
    with foreground.until_told(), Stack(settings()) as stack:
        stack.prepare_dagster()
        _backfill(stack, first, beyond, _names(assets), _names(symbols))


def _backfill(
    stack: Stack,
    start: date,
    end: date,
    assets: tuple[str, ...] = (),
    symbols: tuple[str, ...] = (),
) -> None:
    from feature_pipeline import terminal
    from feature_pipeline.automation.backfill import backfill as run_chunks
    from feature_pipeline.automation.backfill import chunks
    from feature_pipeline.resources import load_universe

    current = stack.resolved_settings()
    universe = load_universe(current)
    plan = chunks(
        start,
        end,
        assets=assets,
        symbols=[universe.resolve(symbol).id for symbol in symbols],
        days_per_run=current.max_partitions_per_run,
    )
    what = f"backfill of {start} to {end - timedelta(days=1)}, {len(plan)} run(s)"
    log = current.home / "log" / "backfill.log"
    with terminal.progress(console(), what, sum(chunk.partitions for chunk in plan)) as done:
        run_chunks(current, plan, stack.environment(), done, log)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@app.command()
def show(symbol: Annotated[str, typer.Argument(help="An id or a symbol of the universe.")]) -> None:
    """The newest state vector and features of a symbol, from Redis."""
    from feature_pipeline import terminal
    from feature_pipeline.demo import newest
    from feature_pipeline.resources import load_universe
    from feature_pipeline.stack import Stack, foreground

    current = settings()
    name = load_universe(current).resolve(symbol).id
    out = console()
    with foreground.until_told(), Stack(current) as stack:
        vector, features = newest(stack.resolved_settings(), name)
        if vector is None:
            raise OnlineError(
                f"there is no state vector of {name} yet; backfill a range with "
                "`feature-pipeline backfill --start ... --end ...`"
            )
        out.print(terminal.vectors({name: vector}))
        out.print(f"source {vector.source}, revision {vector.revision}")
        if features is not None:
            out.print()
            out.print(terminal.features(features))


online = typer.Typer(help="What Redis holds.", no_args_is_help=True)
app.add_typer(online, name="online")


@online.command()
def rebuild(
    force: Annotated[
        bool, typer.Option("--force", help="Remove our keys first: replaces a wrong newer value.")
    ] = False,
) -> None:
    """Publish the newest row of everything from the database to Redis."""
    from feature_pipeline.automation.publishing import snapshot
    from feature_pipeline.online.rebuild import republish_all
    from feature_pipeline.resources import redis_client, store
    from feature_pipeline.stack import Stack, foreground

    with foreground.until_told(), Stack(settings()) as stack:
        current = stack.resolved_settings()
        held = store(current)
        with held.database, redis_client(current) as client:
            report = republish_all(client, lambda: snapshot(held), force=force)
    out = console()
    out.print(
        f"written {report.written}, refreshed {report.refreshed}, older {report.older}, "
        f"refused {len(report.refused)}"
    )
    for name, reason in report.refused.items():
        out.print(f"refused {name}: {reason}", soft_wrap=True)


@app.command()
def up(
    ui: Annotated[bool, typer.Option(help="Dagster's UI, daemon and code server as well.")] = True,
) -> None:
    """Start the stack in the background: PostgreSQL, Redis and Dagster, migrated and ready."""
    from feature_pipeline.stack import Stack, supervisor

    current = settings()
    out = console()
    pid = supervisor.pid_of(current.home)
    if pid is None:
        with out.status("starting"):
            supervisor.launch(current, ui=ui)
    else:
        out.print(f"already up (supervisor {pid})")
    stack = Stack(current).attach()
    for name, address in stack.addresses():
        out.print(f"{name:<11} {address}", soft_wrap=True)
    if stack.ui_url:
        out.print("The UI asks for no password: it listens on this machine only.")
    elif ui:
        out.print("The stack was started without the UI: feature-pipeline down, then up")
    out.print("Stop it: feature-pipeline down")


@app.command()
def down(
    delete: Annotated[bool, typer.Option("--delete", help="Delete its data as well.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Stop the stack of this home, whoever started it."""
    from feature_pipeline.stack import Stack, supervisor

    current = settings()
    out = console()
    stack = Stack(current)
    if delete and not yes:
        typer.confirm(f"Delete every row and key under {current.home}?", abort=True)
    stopped = supervisor.bring_down(stack)
    out.print(f"stopped (process {', '.join(map(str, stopped))})" if stopped else "nothing was up")
    if delete:
        left = stack.delete()
        out.print(f"deleted the data of {current.home}", soft_wrap=True)
        for path in left:
            out.print(f"left alone, not ours: {path}", soft_wrap=True)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(context: typer.Context) -> None:
    """Run a command inside the stack's environment: feature-pipeline run -- COMMAND ..."""
    if not context.args:
        raise typer.BadParameter("give a command: feature-pipeline run -- COMMAND ...")
    from feature_pipeline.stack import Stack, foreground

    with foreground.until_told(), Stack(settings()) as stack:
        stack.prepare_dagster()
        code = foreground.run(context.args, stack.environment())
    raise typer.Exit(code)


@app.command()
def migrate() -> None:
    """Bring the database's tables up to date."""
    from feature_pipeline.resources import prepare_database
    from feature_pipeline.stack import Stack, foreground

    with foreground.until_told(), Stack(settings()) as stack:
        prepare_database(stack.database_url)
        stack.prepare_dagster()
    console().print("the database is up to date")


@app.command()
def doctor() -> None:
    """Check settings, servers and tables: what is right, what is missing, how to fix it."""
    from feature_pipeline.stack import doctor as checks

    findings = list(_shown(checks.findings()))
    if not all(finding.right for finding in findings):
        raise typer.Exit(1)


def _shown(findings: Iterator[Any]) -> Iterator[Any]:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", box=None, pad_edge=False)
    for heading in ("what", "found", "how to fix it"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = "[green]right[/]" if finding.right else "[red]wrong[/]"
        table.add_row(mark, *map(escape, (finding.what, finding.found, finding.fix)))
        yield finding
    console().print(table)


if __name__ == "__main__":
    sys.exit(app())
