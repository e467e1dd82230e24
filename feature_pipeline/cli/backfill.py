"""`backfill`: materialise a range of days through Dagster, from outside the UI."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from feature_pipeline.cli.common import console, names, settings

if TYPE_CHECKING:
    from feature_pipeline.stack import Stack


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
        backfill_on(stack, first, beyond, names(assets), names(symbols))


def backfill_on(
    stack: Stack,
    start: date,
    end: date,
    assets: tuple[str, ...] = (),
    symbols: tuple[str, ...] = (),
) -> None:
    """Backfill the days [start, end) on a running stack, with a progress bar."""
    from feature_pipeline.automation.backfill import backfill as run_chunks
    from feature_pipeline.automation.backfill import chunks
    from feature_pipeline.cli import terminal
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
