"""Large tables: millions of bars come in, and fifty million answer as quickly as one.

Rows come in as the writer brings them: month by month, each ordered by symbol and time. Alone:
`python -m feature_pipeline_tests.bench.scale ADDRESS`, on a database of its own, which may be
TimescaleDB's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import psycopg

from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.migrations import migrate
from feature_pipeline.storage.reader import select
from feature_pipeline.storage.store import Store
from feature_pipeline_tests.bench import Row, in_turns
from feature_pipeline_tests.bench.market import SyntheticSource, universe
from feature_pipeline_tests.bench.storage import write_bars

BARS = "ohlcv_1d"
START = date(2008, 1, 1)
MILLION = (800, date(2013, 1, 1))
TEN_MILLION = (4000, date(2018, 1, 1))

FIRST = date(1993, 1, 1)
DAYS = 5000
SMALL, LARGE = 200, 10_000
"""Symbols of a table of one and of fifty million rows."""

LIMIT_MS = 50
QUESTIONS = 300


def run(server_url: str) -> Iterator[Row]:
    """Everything, in databases of their own."""
    with new_database(server_url, "bench_ingest") as url, Database(url, 600) as database:
        yield from _ingest(database, "1 M", *MILLION, turns=3)
        yield _read(database)
        yield from _ingest(database, "10 M", *TEN_MILLION, turns=1)
    slowest: dict[str, dict[int, float]] = {}
    for symbols in (SMALL, LARGE):
        with new_database(server_url, "bench_large") as url, Database(url, 600) as database:
            _fill(database, symbols)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"VACUUM (ANALYZE, FREEZE) {BARS}")
            for name, ask in _questions(database, symbols).items():
                slowest.setdefault(name, {})[symbols] = p99 = _p99(ask)
                what = f"large: {name}, {symbols * DAYS // 1_000_000} M rows, p99"
                yield Row(what, p99, "ms", LIMIT_MS, LIMIT_MS / p99, 1.0)
    for name, found in slowest.items():
        grown = found[LARGE] / found[SMALL]
        yield Row(f"large: {name}, 50 M rows against 1 M", grown, "times")


def _ingest(database: Database, what: str, symbols: int, end: date, turns: int) -> Iterator[Row]:
    instruments = universe(symbols - 1, START)
    store = Store(database, instruments, TABLES)
    answer = SyntheticSource().bars(instruments.instruments, START, end)
    mine, floor = write_bars(store, answer, (START, end), turns)
    rows = answer.frame.height
    name = f"ingest: {what} bars through the store"
    yield Row(
        f"{name}, against one raw COPY", rows / mine, "rows/s", rows / floor, floor / mine, 0.8
    )
    yield Row(
        f"{name}, against 100 000 a second", rows / mine, "rows/s", 1e5, rows / mine / 1e5, 1.0
    )


def _read(database: Database) -> Row:
    """A million rows into Polars, against `fetchall` and a frame made of it."""
    table = TABLES[BARS]
    query = f"{select(table, table.names)} LIMIT 1000000"

    def ours() -> Callable[[], object]:
        return lambda: database.read_frame(query)

    def peer() -> Callable[[], object]:
        def fetch() -> pl.DataFrame:
            with database.connection() as connection:
                rows = connection.execute(query).fetchall()
            return pl.DataFrame(rows, schema=list(table.names), orient="row")

        return fetch

    mine, theirs = in_turns(1, ours, peer)
    what = "read: 1 M bars into Polars, against fetchall"
    return Row(what, 1e6 / mine, "rows/s", 1e6 / theirs, theirs / mine, 3.0)


def _fill(database: Database, symbols: int) -> None:
    """Bars of all symbols on every day, put there month by month by the server itself."""
    end = FIRST + timedelta(days=DAYS)
    month = FIRST
    with database.connection() as connection:
        connection.execute("SET LOCAL synchronous_commit = off")
        while month < end:
            after = min((month + timedelta(days=32)).replace(day=1), end)
            connection.execute(
                f"""
                INSERT INTO {BARS}
                SELECT 'S' || lpad(s::text, 5, '0'), d, d + interval '21 hours', 'assumed',
                    100 + s % 7, 101 + s % 7, 99 + s % 7, 100 + sin(s), 1000000 + s, NULL,
                    'synthetic', now(), 'bench'
                FROM generate_series(0, %s - 1) s,
                    generate_series(%s::timestamptz, %s::timestamptz - interval '1 day', '1 day') d
                ORDER BY 1, 2
                """,
                [symbols, _midnight(month), _midnight(after)],
            )
            month = after


def _questions(database: Database, symbols: int) -> dict[str, Callable[[], pl.DataFrame]]:
    table = TABLES[BARS]
    random = np.random.default_rng(1)

    def name(number: int) -> str:
        return f"S{number:05d}"

    def latest() -> pl.DataFrame:
        rows = select(table, table.names, symbols=[name(random.integers(symbols))])
        return database.read_frame(f"{rows} ORDER BY time DESC LIMIT 500")

    def day() -> pl.DataFrame:
        first = FIRST + timedelta(days=int(random.integers(DAYS)))
        some = random.choice(symbols, min(500, symbols), replace=False)
        rows = select(
            table,
            table.names,
            start=first,
            end=first + timedelta(days=1),
            symbols=[name(n) for n in some],
        )
        return database.read_frame(rows)

    return {"latest 500 bars of a symbol": latest, "a day of 500 symbols": day}


def _p99(ask: Callable[[], pl.DataFrame]) -> float:
    """Milliseconds within which 99 of a hundred answers come."""
    taken = []
    for turn in range(QUESTIONS + 20):
        started = time.perf_counter()
        if ask().is_empty():
            raise RuntimeError("the bench asked for rows that are not there")
        if turn >= 20:
            taken.append(time.perf_counter() - started)
    return float(np.quantile(taken, 0.99)) * 1000


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


@contextmanager
def new_database(server_url: str, name: str) -> Iterator[str]:
    """The address of a migrated database of that name; gone afterwards."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        connection.execute(f'CREATE DATABASE "{name}"')
    url = f"{server_url.rpartition('/')[0]}/{name}"
    migrate(url)
    try:
        yield url
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


if __name__ == "__main__":
    for found in run(sys.argv[1]):
        print(json.dumps(asdict(found)))  # noqa: T201
