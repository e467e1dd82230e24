"""Writing and reading through the store, against raw COPY and against connectorx."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from typing import cast

import connectorx
import polars as pl
import psycopg

from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.schemas import Fetched
from feature_pipeline.storage.database import Database, copy_in
from feature_pipeline.storage.ledger import Intent
from feature_pipeline.storage.reader import select
from feature_pipeline.storage.store import Store, WritePlan
from feature_pipeline.storage.writer import Writing
from feature_pipeline_tests.bench import Row, in_turns
from feature_pipeline_tests.bench.market import SyntheticSource, universe

START, END = date(2008, 1, 1), date(2013, 1, 1)
SYMBOLS = 500
TURNS = 3


def run(database_url: str) -> Iterator[Row]:
    """500 symbols x 5 years of daily bars: about 630 000 rows."""
    with Database(database_url, 300) as database:
        instruments = universe(SYMBOLS - 1, START)
        store = Store(database, instruments, TABLES)
        answer = SyntheticSource().bars(instruments.instruments, START, END)
        yield _write(store, answer)
        yield _read(store, answer)


def _write(store: Store, answer: Fetched) -> Row:
    mine, floor = write_bars(store, answer, (START, END), TURNS)
    rows = answer.frame.height
    return Row(
        "write: bars through the store, against one raw binary COPY",
        rows / mine,
        "rows/s",
        rows / floor,
        floor / mine,
        0.7,
    )


def write_bars(
    store: Store, answer: Fetched, days: tuple[date, date], turns: int
) -> tuple[float, float]:
    """Seconds to write bars of days [start, end) through the store, and of one raw COPY of them."""
    types = {c.name: c.sql_type for c in TABLES["ohlcv_1d"].columns}
    rows = audited(answer.frame)

    def empty() -> None:
        with store.database.connection() as connection:
            connection.execute("TRUNCATE ohlcv_1d, partition_ledger")

    def ours() -> Callable[[], object]:
        empty()

        def write() -> None:
            with planned(store, "ohlcv_1d", days) as plan:
                report = store.write(plan, {"synthetic": answer})
            if report.written != answer.frame.height:
                raise RuntimeError(f"the bench wrote {report.counts()}")

        return write

    def raw() -> Callable[[], object]:
        empty()

        def write() -> None:
            with store.database.connection() as connection:
                copy_in(connection, "ohlcv_1d", rows.columns, rows, types)

        return write

    mine, floor = in_turns(turns, ours, raw)
    # The last one may have been the raw one, of which the ledger knows nothing.
    ours()()
    return mine, floor


def _read(store: Store, answer: Fetched) -> Row:
    table = TABLES["ohlcv_1d"]
    needed = next(n for n in TABLES["indicators_1d"].inputs if n.asset == "ohlcv_1d")
    names = ["symbol", "time", "available_at", "availability_basis", *needed.columns]
    query = select(table, list(dict.fromkeys(names)), start=START, end=END)

    def ours() -> Callable[[], object]:
        days = pl.date_range(START, END, closed="left", eager=True)
        # Planned by hand: only loading is measured, and nothing is announced.
        plan = WritePlan(
            TABLES["indicators_1d"], Writing(0, "", ""), days, None, cast("Intent", None)
        )
        return lambda: store.load(plan, needed)

    def peer() -> Callable[[], object]:
        return lambda: connectorx.read_sql(address(store.database), query, return_type="polars")

    mine, floor = in_turns(TURNS, ours, peer)
    rows = answer.frame.height
    return Row(
        "read: bars back into Polars with their gaps, against connectorx",
        rows / mine,
        "rows/s",
        rows / floor,
        floor / mine,
        0.8,
    )


def address(database: Database) -> str:
    """Of a database, as connectorx takes it."""
    info = psycopg.conninfo.conninfo_to_dict(database._conninfo)
    who = ":".join(str(info[part]) for part in ("user", "password") if part in info)
    return f"postgresql://{who}@{info['host']}:{info['port']}/{info['dbname']}"


def audited(bars: pl.DataFrame) -> pl.DataFrame:
    """Bars with what a writer notes down of each row."""
    return bars.with_columns(recorded_at=pl.col("available_at"), run_id=pl.lit("bench"))


@contextmanager
def planned(store: Store, asset: str, days: tuple[date, date]) -> Iterator[WritePlan]:
    """What a run does before it writes; nothing stays announced."""
    plan = store.plan(asset, *days, run_id="bench", code_version="bench")
    try:
        yield plan
    finally:
        plan.intent.close()
