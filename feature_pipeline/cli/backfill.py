"""`backfill`: materialise a range of days through Dagster, from outside the UI."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_pipeline.cli.common import Json, console, names, print_json, settings, symbols_in
from feature_pipeline.timeframes import DAILY, TIMEFRAMES, shortest_run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from feature_pipeline.automation.backfill import Report
    from feature_pipeline.automation.estimate import Estimate, Work
    from feature_pipeline.settings import Settings
    from feature_pipeline.stack import Stack


def _asset_names(incomplete: str) -> list[str]:
    """Completes the last name of a comma-separated list."""
    from feature_pipeline.features.catalogue import ALL_TABLES

    return _completed(incomplete, ALL_TABLES)


def _symbol_names(incomplete: str) -> list[str]:
    from feature_pipeline.resources import load_universe

    return _completed(incomplete, load_universe(settings()).symbols)


def _completed(incomplete: str, known: Any) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in known if name.startswith(last)]


def backfill(
    start: Annotated[
        str,
        typer.Option(
            help="First UTC day, YYYY-MM-DD; default: the symbols' own first day, of intraday bars "
            "the first one that is kept."
        ),
    ] = "",
    end: Annotated[
        str,
        typer.Option(help="Last UTC day, included; default: the last one with a finished session."),
    ] = "",
    assets: Annotated[
        str,
        typer.Option(
            help="Comma-separated; default: all of the timeframe.", autocompletion=_asset_names
        ),
    ] = "",
    timeframe: Annotated[
        str,
        typer.Option(
            help="1d, 1h, 5m or 1m: its bars, what derives from them and what that reads.",
            autocompletion=lambda: [*TIMEFRAMES],
        ),
    ] = DAILY,
    symbols: Annotated[
        str,
        typer.Option(
            help="Comma-separated; providers are asked for these alone. Default: all.",
            autocompletion=_symbol_names,
        ),
    ] = "",
    refetch: Annotated[
        bool,
        typer.Option(
            "--refetch", help="Ask providers for what is there, too: corrections come along."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what it would do and cost. Starts and writes nothing."),
    ] = False,
    json: Json = False,
) -> None:
    """Materialise a range of days through Dagster, the history it needs included.

    Only what is missing or stale is written. After Ctrl-C or a crash the same command goes on; a
    symbol that was added to universe.yaml is fetched alone.

    \b
    Examples:
      feature-pipeline backfill --dry-run
      feature-pipeline backfill --start 2012-01-01 --end 2012-12-31
      feature-pipeline backfill --symbols MSFT --start 2012-01-01
      feature-pipeline backfill --start 2012-06-01 --assets features_1d
      feature-pipeline backfill --start 2013-02-01 --refetch --json
      feature-pipeline backfill --timeframe 1h --start 2026-01-05
    """
    from feature_pipeline.stack import foreground

    current, chosen = settings(), symbols_in(symbols)
    with foreground.until_told(), _servers(current, dry_run=dry_run) as stack:
        found = outlook(
            stack.resolved_settings(),
            start,
            end,
            assets=names(assets),
            symbols=chosen,
            refetch=refetch,
            timeframe=timeframe,
        )
        if dry_run:
            if json:
                print_json(_as_data(found))
            else:
                _print(found, console())
            return
        stack.prepare_dagster()
        out = _errors() if json else console()
        report = _run(stack, found, out, symbols=chosen, refetch=refetch, json=json)
    if json:
        print_json(asdict(report))


@contextmanager
def _servers(current: Settings, *, dry_run: bool) -> Iterator[Stack]:
    """The stack; for a dry run only one that is there already."""
    from feature_pipeline.errors import StackError
    from feature_pipeline.stack import Stack

    stack = Stack(current)
    if dry_run and stack.postgres and not (stack.postgres.directory / "PG_VERSION").exists():
        raise StackError(
            f"there is no database in {current.home} yet, and a dry run makes none; make it with "
            "`feature-pipeline migrate`, or name yours in FEATURE_PIPELINE_DATABASE_URL"
        )
    with stack:
        yield stack


def backfill_on(
    stack: Stack,
    start: date,
    end: date,
    assets: tuple[str, ...] = (),
    symbols: tuple[str, ...] = (),
) -> Report:
    """Backfill the days [start, end) on a running stack, with a progress bar."""
    last = end - timedelta(days=1)
    found = outlook(
        stack.resolved_settings(),
        start.isoformat(),
        last.isoformat(),
        assets=assets,
        symbols=symbols,
    )
    return _run(stack, found, console(), symbols=symbols)


def outlook(
    current: Settings,
    start: str,
    end: str,
    *,
    assets: tuple[str, ...] = (),
    symbols: tuple[str, ...] = (),
    refetch: bool = False,
    timeframe: str = DAILY,
) -> Estimate:
    """What a backfill would do; see `automation.estimate`. An empty start or end is the default.

    Raises:
        PartitionError: start or end is no day of the grid, or in the wrong order.
        BackfillError: an asset or a timeframe is unknown.
        EstimateError: intraday bars of then would be dropped again.
        UniverseError: a symbol is unknown.
        MissingPartitionError: something that is computed reads what nobody has written.
        DatabaseError: the database cannot be read.
    """
    from feature_pipeline.automation.backfill import assets_of, known_assets
    from feature_pipeline.automation.estimate import default_range, estimate
    from feature_pipeline.partitions import parse_range
    from feature_pipeline.resources import code_versions, default_resources, store

    held = store(current)
    chosen = known_assets(assets) or assets_of(timeframe, held.universe)
    resources = default_resources(current)
    ids = [held.universe.resolve(symbol).id for symbol in symbols]
    with held.database:
        if not (start and end):
            first, beyond = default_range(held, ids, chosen)
            start = start or first.isoformat()
            end = end or max(start, (beyond - timedelta(days=1)).isoformat())
        return estimate(
            held,
            code_versions(held.universe),
            resources["sources"],
            resources["macro_source"],
            *parse_range(start, end),
            assets=chosen,
            symbols=ids,
            refetch=refetch,
            days_per_run=shortest_run(chosen, current.max_partitions_per_run),
        )


def _run(
    stack: Stack,
    found: Estimate,
    out: Console,
    *,
    symbols: tuple[str, ...] = (),
    refetch: bool = False,
    json: bool = False,
) -> Report:
    """Do the work of an estimate, with progress; say how to go on where it is told to stop."""
    from feature_pipeline.automation.backfill import BackfillError, Report, runs_for
    from feature_pipeline.automation.backfill import backfill as run_chunks
    from feature_pipeline.automation.estimate import RUN_S, START_S
    from feature_pipeline.cli.progress import Pace, duration, shown
    from feature_pipeline.resources import load_universe

    current = stack.resolved_settings()
    universe = load_universe(current)
    plan = runs_for(
        found,
        symbols=[universe.resolve(symbol).id for symbol in symbols],
        refetch=refetch,
    )
    if not plan:
        out.print(f"{_range(found)}: every partition is up to date")
        return Report()
    out.print(
        f"backfill of {_range(found)}: {found.partitions} partitions in {len(plan)} run(s), about "
        f"{duration(found.seconds)}",
        soft_wrap=True,
    )
    log = current.home / "log" / "backfill.log"
    pace = Pace(
        {name: (one.days.len(), one.seconds) for name, one in found.work.items()}, START_S + RUN_S
    )
    try:
        with shown(out, pace) as told:
            report = run_chunks(current, plan, stack.environment(), told, log)
    except (KeyboardInterrupt, SystemExit) as stop:
        _errors().print(
            "cancelled: what is written stays, and the same command goes on from there",
            soft_wrap=True,
        )
        code = stop.code if isinstance(stop, SystemExit) else 128 + signal.SIGINT
        raise typer.Exit(code if isinstance(code, int) else 1) from None
    except BackfillError as error:
        if json and error.report:
            print_json({**asdict(error.report), "error": str(error)})
        raise
    rows = report.rows
    out.print(
        f"rows written {rows['written']}, unchanged {rows['unchanged']}, quarantined "
        f"{rows['quarantined']}",
        soft_wrap=True,
    )
    return report


# -- what a dry run prints ------------------------------------------------------------------------


def _errors() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _range(found: Estimate) -> str:
    return f"{found.start} to {found.end - timedelta(days=1)}"


def _print(found: Estimate, out: Console) -> None:
    from feature_pipeline.cli.progress import duration

    out.print(f"backfill of {_range(found)}, not started", soft_wrap=True)
    out.print(_table(found))
    rough = [one.asset for one in found.work.values() if _is_rough(one)]
    if rough:
        out.print(f"~ estimated rows: {', '.join(rough)}", soft_wrap=True)
    if not found.partitions:
        out.print("every partition is up to date: there is nothing to do")
        return
    known = (
        f"measured in {found.runs} run(s) on this database"
        if found.seconds_from == "measured"
        else "by built-in rates: no run has been measured yet"
    )
    out.print(f"time   about {duration(found.seconds)}, {known}", soft_wrap=True)
    asking = sum(one.asking_s for one in found.work.values())
    if asking:
        out.print(
            f"       {duration(asking)} of it asking providers, at their pace, in {found.turns} "
            "run(s), each of which keeps what it was answered",
            soft_wrap=True,
        )


def _is_rough(one: Work) -> bool:
    """Whether the number of its rows is an estimate."""
    return one.rows > 0 and one.rows_from != "sessions"


def _table(found: Estimate) -> Table:
    """One row per asset; narrow enough for eighty columns."""
    from rich.table import Table

    work = list(found.work.values())
    counts = {
        "asked": [one.asked for one in work],
        "right": [one.asked - one.pending for one in work],
        "write": [one.pending for one in work],
        "history": [one.history for one in work],
        "rows": [one.rows for one in work],
        "calls": [one.calls for one in work],
    }
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    table.add_column("asset", "together", overflow="fold")
    for name, numbers in counts.items():
        table.add_column(name, str(sum(numbers)), justify="right", overflow="fold")
    table.add_column("size", _size(sum(one.bytes for one in work)), justify="right")
    for number, one in enumerate(work):
        cells = {name: str(numbers[number]) for name, numbers in counts.items()}
        cells["rows"] = f"{'~' * _is_rough(one)}{one.rows}"
        table.add_row(one.asset, *cells.values(), _size(one.bytes))
    return table


def _size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _as_data(found: Estimate) -> dict[str, Any]:
    """The estimate as JSON has it."""
    return {
        "start": found.start,
        "end": found.end - timedelta(days=1),
        "partitions": found.partitions,
        "seconds": round(found.seconds, 1),
        "seconds_from": found.seconds_from,
        "runs_measured": found.runs,
        "assets": {
            name: {
                "asked": one.asked,
                "up_to_date": one.asked - one.pending,
                "to_write": one.pending,
                "history": one.history,
                "first": one.days[0] if one.days.len() else None,
                "last": one.days[-1] if one.days.len() else None,
                "symbols": one.symbols,
                "rows": one.rows,
                "rows_from": one.rows_from,
                "calls": one.calls,
                "asking_seconds": round(one.asking_s, 2),
                "bytes": one.bytes,
                "bytes_from": one.bytes_from,
                "seconds": round(one.seconds, 2),
            }
            for name, one in found.work.items()
        },
    }
