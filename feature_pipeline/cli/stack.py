"""Commands about the servers: `demo`, `up`, `down`, `run`, `migrate`, `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_pipeline.cli.common import console, settings

if TYPE_CHECKING:
    from collections.abc import Iterator


def demo(
    ui: Annotated[bool, typer.Option(help="Stay, with the Dagster UI, until Ctrl-C.")] = True,
) -> None:
    """Everything from nothing: servers, a backfill of the sample, vectors read back from Redis."""
    from feature_pipeline.cli import terminal
    from feature_pipeline.cli.backfill import backfill_on
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
            backfill_on(stack, *DAYS)
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


def run(context: typer.Context) -> None:
    """Run a command inside the stack's environment: feature-pipeline run -- COMMAND ..."""
    if not context.args:
        raise typer.BadParameter("give a command: feature-pipeline run -- COMMAND ...")
    from feature_pipeline.stack import Stack, foreground

    with foreground.until_told(), Stack(settings()) as stack:
        stack.prepare_dagster()
        code = foreground.run(context.args, stack.environment())
    raise typer.Exit(code)


def migrate() -> None:
    """Bring the database's tables up to date."""
    from feature_pipeline.resources import prepare_database
    from feature_pipeline.stack import Stack, foreground

    with foreground.until_told(), Stack(settings()) as stack:
        prepare_database(stack.database_url)
        stack.prepare_dagster()
    console().print("the database is up to date")


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
