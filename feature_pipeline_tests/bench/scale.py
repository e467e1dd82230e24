"""Large tables: millions of bars come in, and fifty million answer as quickly as one.

Rows come in as the writer brings them: month by month, each ordered by symbol and time. On
TimescaleDB what is older than a year is compressed before anything is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import count

import connectorx
import numpy as np
import polars as pl
import psycopg

from feature_pipeline.features.catalogue import ALL_TABLES, TABLES
from feature_pipeline.resources import load_universe
from feature_pipeline.schemas import Fetched
from feature_pipeline.settings import Settings
from feature_pipeline.sources.sample import SampleSource
from feature_pipeline.storage.database import Database, copy_in
from feature_pipeline.storage.migrations import migrate
from feature_pipeline.storage.reader import select
from feature_pipeline.storage.store import Store
from feature_pipeline_tests.bench import Row, in_turns
from feature_pipeline_tests.bench.market import SyntheticSource, universe
from feature_pipeline_tests.bench.storage import address, audited, planned, write_bars

BARS = "ohlcv_1d"
START = date(2008, 1, 1)
MILLION = (800, date(2013, 1, 1))
TEN_MILLION = (4000, date(2018, 1, 1))

FIRST = date(1993, 1, 1)
SMALL, LARGE = (500, 2000), (10_000, 5000)
"""Symbols and days of a table of one and of fifty million rows."""

REPLACED = date(2010, 6, 16)
"""A session in the midst of the million."""

MINUTES = "ohlcv_1m"
WEEK = (date(2017, 12, 11), date(2017, 12, 16))
MINUTE_SYMBOLS = 100

REPEATED = 100

LIMIT_MS = 50
QUESTIONS = 300


def run(server_url: str) -> Iterator[Row]:
    """Everything, in databases of their own."""
    with new_database(server_url, "bench_ingest") as url, Database(url, 600) as database:
        yield from _ingest(database, "1 M", *MILLION, turns=3)
        yield _read(database)
        yield _replace(database)
        yield from _ingest(database, "10 M", *TEN_MILLION, turns=1)
    with new_database(server_url, "bench_minutes") as url, Database(url, 600) as database:
        yield _minutes(database)
    slowest: dict[str, dict[tuple[int, int], float]] = {}
    for size in (SMALL, LARGE):
        with new_database(server_url, "bench_large") as url, Database(url, 600) as database:
            _fill(database, *size)
            _compress(database)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"VACUUM (ANALYZE, FREEZE) {BARS}")
            for name, ask in _questions(database, *size).items():
                slowest.setdefault(name, {})[size] = p99 = _p99(ask)
                what = f"large: {name}, {size[0] * size[1] // 1_000_000} M rows, p99"
                yield Row(what, p99, "ms", LIMIT_MS, LIMIT_MS / p99, 1.0)
    for name, found in slowest.items():
        grown = found[LARGE] / found[SMALL]
        yield Row(f"large: {name}, 50 M rows against 1 M", grown, "times")


def compression(server_url: str) -> Iterator[Row]:
    """What compression saves of real bars, a hundred names each, as one backfill writes them."""
    with new_database(server_url, "bench_real") as url, Database(url, 600) as database:
        instruments = load_universe(Settings(universe=None)).instruments
        real = SampleSource().bars(instruments, date(2000, 1, 1), date(2018, 1, 1)).frame
        names = pl.DataFrame({"copy": [f"_{n:03}" for n in range(REPEATED)]})
        bars = (
            real.join(names, how="cross")
            .with_columns(symbol=pl.col("symbol") + pl.col("copy"))
            .drop("copy")
            .sort("time", "symbol")
        )
        with database.connection() as connection:
            _copy(connection, bars, recorded_at=pl.lit(datetime.now(UTC)))
        size = "SELECT hypertable_size(%s)::float8 AS bytes"
        before = database.read_frame(size, [BARS])["bytes"][0]
        _compress(database)
        after = database.read_frame(size, [BARS])["bytes"][0]
        yield Row(
            "compression: real bars, what it saves", after / 2**20, "MiB", before / 2**20,
            1 - after / before, 0.75,
        )  # fmt: skip


def _ingest(database: Database, what: str, symbols: int, end: date, turns: int) -> Iterator[Row]:
    store, answer = _market(database, symbols, end)
    mine, floor = write_bars(store, answer, (START, end), turns)
    rows = answer.frame.height
    name = f"ingest: {what} bars through the store"
    yield Row(
        f"{name}, against one raw COPY", rows / mine, "rows/s", rows / floor, floor / mine, 0.8
    )
    yield Row(
        f"{name}, against 100 000 a second", rows / mine, "rows/s", 1e5, rows / mine / 1e5, 1.0
    )


def _market(database: Database, symbols: int, end: date) -> tuple[Store, Fetched]:
    instruments = universe(symbols - 1, START)
    answer = SyntheticSource().bars(instruments.instruments, START, end)
    return Store(database, instruments, TABLES), answer


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


def _replace(database: Database) -> Row:
    """A day in the midst of the million, every bar of it restated: what was is kept, and known."""
    store, answer = _market(database, *MILLION)
    days = (REPLACED, REPLACED + timedelta(days=1))
    old = answer.frame.filter(pl.col("time").dt.date() == REPLACED)
    number = count(1)

    def restated() -> pl.DataFrame:
        _compress(database)
        return old.with_columns(volume=pl.col("volume") + next(number))

    def ours() -> Callable[[], object]:
        new = restated()

        def write() -> None:
            with planned(store, BARS, days) as plan:
                report = store.write(plan, {"synthetic": Fetched(new, asked=answer.asked)})
            if report.written != new.height:
                raise RuntimeError(f"the bench wrote {report.counts()}")

        return write

    def raw() -> Callable[[], object]:
        new = restated()

        def write() -> None:
            with database.connection() as connection:
                connection.execute(  # elsewhere it is a name
                    "SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0"
                )
                connection.execute(
                    f"DELETE FROM {BARS} WHERE time >= %s AND time < %s", [*map(_midnight, days)]
                )
                _copy(connection, new)

        return write

    mine, floor = in_turns(3, ours, raw)
    what = "replace: a day of 800 symbols in a year, against DELETE and COPY"
    return Row(what, mine * 1000, "ms", floor * 1000, floor / mine)


def _minutes(database: Database) -> Row:
    """One of a week's days of minute bars into Polars, against connectorx."""
    instruments = universe(MINUTE_SYMBOLS - 1, WEEK[0], "1m")
    store = Store(database, instruments, ALL_TABLES)
    answer = SyntheticSource().bars(instruments.instruments, *WEEK, "1m")
    with planned(store, MINUTES, WEEK) as plan:
        store.write(plan, {"synthetic": answer})
    table = ALL_TABLES[MINUTES]
    day = WEEK[0] + timedelta(days=2)
    query = select(table, table.names, start=day, end=day + timedelta(days=1))

    def ours() -> Callable[[], object]:
        return lambda: database.read_frame(query)

    def peer() -> Callable[[], object]:
        return lambda: connectorx.read_sql(address(database), query, return_type="polars")

    mine, theirs = in_turns(9, ours, peer)
    rows = database.read_frame(query).height
    what = "read: a day of minutes of 100 symbols into Polars, against connectorx"
    return Row(what, rows / mine, "rows/s", rows / theirs, theirs / mine, 1 / 1.3)


def _copy(connection: psycopg.Connection, bars: pl.DataFrame, **more: pl.Expr) -> None:
    types = {c.name: c.sql_type for c in TABLES[BARS].columns}
    rows = audited(bars).with_columns(**more)
    copy_in(connection, BARS, rows.columns, rows, types)


def _compress(database: Database) -> None:
    """Compress what is older than a year today; nothing on plain PostgreSQL."""
    with database.connection() as connection:
        if connection.execute("SELECT to_regproc('compress_chunk')").fetchone() == (None,):
            return
        connection.execute(
            "SELECT compress_chunk(c) FROM show_chunks(%s, older_than => interval '1 year') c",
            [BARS],
        )


def _fill(database: Database, symbols: int, days: int) -> None:
    """Bars of all symbols on every day, put there month by month by the server itself."""
    end = FIRST + timedelta(days=days)
    month = FIRST
    with database.connection() as connection:
        connection.execute("SET LOCAL synchronous_commit = off")
        while month < end:
            after = min((month + timedelta(days=32)).replace(day=1), end)
            connection.execute(
                f"""
                INSERT INTO {BARS}
                SELECT 'S' || lpad(s::text, 5, '0'), d, d + interval '21 hours', 'assumed',
                    100 + s %% 7, 101 + s %% 7, 99 + s %% 7, 100 + sin(s), 1000000 + s, NULL,
                    'synthetic', now(), 'bench'
                FROM generate_series(0, %s - 1) s,
                    generate_series(%s::timestamptz, %s::timestamptz - interval '1 day', '1 day') d
                ORDER BY 1, 2
                """,
                [symbols, _midnight(month), _midnight(after)],
            )
            month = after


def _questions(
    database: Database, symbols: int, days: int
) -> dict[str, Callable[[], pl.DataFrame]]:
    table = TABLES[BARS]
    random = np.random.default_rng(1)

    def name(number: int) -> str:
        return f"S{number:05d}"

    def latest() -> pl.DataFrame:
        rows = select(table, table.names, symbols=[name(random.integers(symbols))])
        return database.read_frame(f"{rows} ORDER BY time DESC LIMIT 500")

    def day() -> pl.DataFrame:
        first = FIRST + timedelta(days=int(random.integers(days)))
        some = random.choice(symbols, 500, replace=False)
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
