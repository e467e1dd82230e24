"""`export`: a training set on disk."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feature_pipeline.cli import complete
from feature_pipeline.cli.common import (
    AsKnownAt,
    AsOf,
    Json,
    Timeframe,
    console,
    days,
    moment,
    opened,
    print_json,
    symbols_in,
    tables_of,
)
from feature_pipeline.timeframes import DAILY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from feature_pipeline.serving.export import Report

_EXPECTED_S = 0.003


def export(
    directory: Annotated[
        Path, typer.Argument(help="New, empty, or of an export before.", show_default=False)
    ],
    features: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names as `get` takes them, or whole tables; default: indicators, features, "
            "regime and state vector of the timeframe.",
            autocompletion=complete.features,
            metavar="FEATURE",
            show_default=False,
        ),
    ] = None,
    symbols: Annotated[
        str, typer.Option(help="Only these, separated by commas.", autocompletion=complete.symbols)
    ] = "",
    start: Annotated[str, typer.Option(help="The first UTC day, YYYY-MM-DD.")] = "",
    end: Annotated[str, typer.Option(help="The last UTC day, included.")] = "",
    as_of: AsOf = "",
    as_known_at: AsKnownAt = "",
    timeframe: Timeframe = DAILY,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove files that are not asked for any more.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file that is there, and mend altered ones.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write features as Parquet: symbol=AAPL/month=2024-01/features.parquet, and a catalogue.

    Run it again to bring the directory up to date: files whose days have not changed are left
    alone. The column available_at says from when on a row could have been used.

    \b
    Examples:
      feature-pipeline export train
      feature-pipeline export train --symbols AAPL,MSFT --start 2012-01-01 --end 2012-12-31
      feature-pipeline export lab rsi_14 sma_20 ohlcv_1d.close regime --as-of 2012-06-14T15:00-04:00
      feature-pipeline export vectors state_vectors_1d --json
      feature-pipeline export hours --timeframe 1h --start 2026-01-01
    """
    from feature_pipeline.resources import code_versions, scorer
    from feature_pipeline.serving import export as room
    from feature_pipeline.serving.dataset import Dataset
    from feature_pipeline.serving.export_plan import Question
    from feature_pipeline.serving.lookup import Moment

    wanted = symbols_in(symbols)
    tables = tables_of(timeframe)
    places = room.places_of(features or room.usual(timeframe), tables, timeframe)
    asked = (moment(as_of, "--as-of"), moment(as_known_at, "--as-known-at"))
    at = Moment.of(*(a.at if a else None for a in asked))
    span = days(start, end)
    with Dataset(directory) as dataset, opened(reading=True) as (current, held):
        ids = {held.universe.resolve(name).id: None for name in wanted or held.universe.symbols}
        work = room.Export(
            dataset,
            held,
            Question(tuple(places), tuple(ids), span, at),
            scorer(current),
            code_versions(held.universe, current),
        )
        todo = work.plan(prune=prune, verify=verify)
        with _shown(todo.stale.height, quiet=as_json) as progress:
            report = work.run(todo, progress)
    if as_json:
        print_json({"directory": str(directory), "as_of": at.as_of} | asdict(report))
    else:
        _print(directory, report)


@contextmanager
def _shown(total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Yields what to tell the number of files done."""
    from feature_pipeline.cli.progress import Pace, shown

    if quiet or not total:
        yield lambda _: None
        return
    with shown(console(), Pace({"files": (total, total * _EXPECTED_S)})) as told:
        yield lambda done: told({"files": done})


def _print(directory: Path, report: Report) -> None:
    from feature_pipeline.cli.progress import duration
    from feature_pipeline.cli.terminal import size

    out = console()
    said = {
        "written": f"{report.written:,} ({report.rows:,} rows, {size(report.bytes)})",
        "unchanged": f"{report.unchanged:,}",
        "kept, their days dropped from the database": f"{report.kept:,}" * bool(report.kept),
        "removed": f"{report.removed:,}" * bool(report.removed),
        "found damaged": f"{report.damaged:,}" * bool(report.damaged),
    }
    files = "; ".join(f"{what} {count}" for what, count in said.items() if count)
    pace = f", {report.rows / report.seconds:,.0f} rows/s" if report.rows else ""
    out.print(f"files {files}, in {duration(report.seconds)}{pace}", soft_wrap=True)
    out.print(
        f"{directory} holds {report.total_rows:,} rows in {report.total_files:,} files",
        soft_wrap=True,
        markup=False,
    )
    for asset, count in report.stale_days.items():
        out.print(
            f"[yellow]{count:,} day(s) of {asset} were computed by other code: "
            "feature-pipeline features diff[/]",
            soft_wrap=True,
        )
