"""`make bench`: run every benchmark on servers of its own, print a table, write bench.json.

`make bench ARGS="storage graph"` runs those alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import date
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.table import Table

from feature_pipeline.settings import Settings
from feature_pipeline.stack.stack import Stack
from feature_pipeline.storage.migrations import migrate
from feature_pipeline.timeframes import DAILY
from feature_pipeline_tests import TIMESCALEDB_VARIABLE
from feature_pipeline_tests.bench import Row, publish, scale, storage, ui

OUT = Path("bench.json")


def main() -> int:
    """Run them, or those named; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    names = ",".join(PARTS)
    parser.add_argument(
        "parts", nargs="*", choices=[[], *PARTS], metavar=names, help="all of them if none"
    )
    wanted = parser.parse_args().parts or list(PARTS)
    console = Console()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="feature_pipeline.bench.") as home:
        with Stack(Settings(home=Path(home), database_url=None, redis_url=None)) as stack:
            migrate(stack.database_url)
            for row in chain.from_iterable(PARTS[part](stack) for part in wanted):
                rows.append(row)
                ratio = "" if row.ratio is None else f", {row.ratio:.2f} of {row.goal or 1}"
                console.print(f"  {row.name}: {row.value:,.4g} {row.unit}{ratio}", highlight=False)
        stack.delete()
    console.print(_table(rows))
    OUT.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n")
    console.print(f"wrote {OUT}")
    missed = [row for row in rows if not row.met]
    for row in missed:
        console.print(f"[red]goal missed[/] {row.name}: {row.ratio:.2f} of {row.goal}")
    return 1 if missed else 0


def _finbert(_: Stack) -> Iterator[Row]:
    yield from _results("feature_pipeline_tests.bench.finbert")


def _indicators(_: Stack) -> Iterator[Row]:
    yield from _results("feature_pipeline_tests.bench.indicators", POLARS_MAX_THREADS="1")
    yield from _results("feature_pipeline_tests.bench.indicators")


def _results(module: str, **variables: str) -> Iterator[Row]:
    """In a process of its own: Polars settles its number of threads when it is imported, and torch
    keeps its memory."""
    output = _run([module], {**os.environ, **variables})
    for line in output.splitlines():
        if line.startswith("RESULT "):
            yield Row(**json.loads(line.removeprefix("RESULT ")))


def _graph(stack: Stack) -> Iterator[Row]:
    spent = _backfill(stack, 100, 5)
    yield Row("graph: 100 symbols x 5 years, whole graph", spent["total"], "s")
    for part in ("source", "compute", "database", "checks", "pictures", "orchestration"):
        share = spent[part] / spent["total"]
        yield Row(f"graph: of that, {part}", spent[part], "s", spent["total"], share)
    rest = spent["total"] - spent["orchestration"]
    yield Row(
        "graph: everything else against orchestration (over 1: under half)",
        spent["orchestration"],
        "s",
        rest,
        rest / spent["orchestration"],
        1.0,
    )
    yield Row("graph: rows written", spent["rows"], "rows")
    yield Row("graph: peak memory", spent["peak_mib"], "MiB")


def _slopes(stack: Stack) -> Iterator[Row]:
    """What twice as many symbols, or twice as many days, cost; what much costs, and minutes."""
    once = _backfill(stack, 100, 5)["total"]
    for what, symbols, years in (("symbols", 200, 5), ("days", 100, 10)):
        twice = _backfill(stack, symbols, years)["total"]
        yield Row(
            f"slope: twice the {what}, against twice the time", twice, "s", 2 * once,
            2 * once / twice, 0.9,
        )  # fmt: skip
    large = _backfill(stack, 500, 10)
    yield Row("slope: 500 symbols x 10 years, whole graph", large["total"], "s")
    most = large["peak_mib"]
    yield Row("slope: its peak memory, against 4 GiB", most, "MiB", 4096, 4096 / most, 1.0)
    minutes = _backfill(stack, 200, 0, "1m")
    took = minutes["total"]
    yield Row("slope: a day of minutes of 200 symbols, against 60 s", took, "s", 60, 60 / took, 1.0)
    yield Row("slope: its rows", minutes["rows"], "rows")


def _timescaledb(_: Stack) -> Iterator[Row]:
    """The same on TimescaleDB, and what compression saves, where the environment names a server."""
    url = os.environ.get(TIMESCALEDB_VARIABLE)
    if not url:
        Console().print(f"  timescaledb: {TIMESCALEDB_VARIABLE} is not set, nothing to measure on")
        return
    for row in chain(scale.compression(url), scale.run(url)):
        yield replace(row, name=f"TimescaleDB: {row.name}")


def _backfill(stack: Stack, symbols: int, years: int, timeframe: str = DAILY) -> dict[str, float]:
    """A backfill up to the end of 2017 in a database and a process of its own: see `graph.main`.

    Args:
        years: how much of it; 0 - one session.
    """
    end = date(2018, 1, 1) if years else date(2017, 12, 30)
    start = end.replace(year=end.year - years) if years else date(2017, 12, 29)
    stack.prepare_dagster()
    with scale.new_database(stack.database_url, "bench_graph") as url:
        environment = stack.environment() | {"FEATURE_PIPELINE_DATABASE_URL": url}
        words = [str(symbols), start.isoformat(), end.isoformat(), timeframe]
        output = _run(["feature_pipeline_tests.bench.graph", url, *words], environment)
    line = next(x for x in output.splitlines() if x.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


PARTS: Mapping[str, Callable[[Stack], Iterator[Row]]] = {
    "finbert": _finbert,
    "indicators": _indicators,
    "storage": lambda stack: storage.run(stack.database_url),
    "graph": _graph,
    "publish": lambda stack: (Row(**found) for found in publish.run(stack.redis_url)),
    "ui": lambda _: ui.run(),
    "slopes": _slopes,
    "scale": lambda stack: scale.run(stack.database_url),
    "timescaledb": _timescaledb,
}
"""The benchmarks by name, in the order in which they run."""


def _run(arguments: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def _table(rows: list[Row]) -> Table:
    table = Table(box=None)
    for column in ("what", "value", "unit", "floor or peer", "ratio", "goal"):
        table.add_column(column, justify="left" if column in ("what", "unit") else "right")
    for row in rows:
        table.add_row(
            row.name,
            _number(row.value),
            row.unit,
            "" if row.floor is None else _number(row.floor),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.goal is None else f"{row.goal:.2f}",
            style=None if row.met else "red",
        )
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
