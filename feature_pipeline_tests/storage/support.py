"""A small world to write: a universe, a store with a clock of its own, frames, and the audit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta

import polars as pl
import yaml

from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.schemas import Column, Fetched, Input, TableSchema, documents, ohlcv
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.hashing import day_hashes
from feature_pipeline.storage.store import DERIVED, Store, WritePlan, WriteReport
from feature_pipeline.universe import Universe, calendar_sessions

NOW = datetime(2020, 6, 1, 12, tzinfo=UTC)
JANUARY = (date(2020, 1, 1), date(2020, 2, 1))
"""Sessions on the 2nd, 3rd, 6th-10th, 13th-17th, 21st-24th, 27th-31st (XNYS)."""

SOURCE_TABLES = {name: TABLES[name] for name, table in TABLES.items() if not table.derived}


def universe(
    *symbols: str, sources: Mapping[str, str] | None = None, start: date = date(2020, 1, 1)
) -> Universe:
    """Instruments of the New York calendar, members from `start` on."""
    entries = [
        {
            "id": symbol,
            "asset_class": "equity",
            "calendar": "XNYS",
            "sector": "made",
            "source": {
                kind: (sources or {}).get(symbol, "made")
                for kind in ("bars", "actions", "news", "reddit")
            },
            "symbols": [{"symbol": symbol, "from": start}],
            "membership": [{"from": start}],
        }
        for symbol in symbols
    ]
    return Universe.parse(yaml.safe_dump({"benchmark": symbols[0], "instruments": entries}))


def derived(name: str, *inputs: Input, table: str = "features_1d") -> TableSchema:
    """A derived table with one number per bar, under the SQL name of a real one."""
    base = TABLES[table]
    shared = [base.column(n) for n in ("symbol", "time", "available_at", "availability_basis")]
    value = Column(base.names[4], pl.Float64, "a number", nullable=True)
    return replace(base, asset=name, table=table, columns=(*shared, value), inputs=inputs)


# Bars -> mean of three bars -> its double, and a table that reads events.
MEANS = derived("means", Input("ohlcv_1d", ("close",), lookback_bars=2), table="indicators_1d")
DOUBLES = derived("doubles", Input("means", ("sma_20",), lookback_bars=1))
TOY = {**SOURCE_TABLES, "means": MEANS, "doubles": DOUBLES}


def compress(database: Database) -> None:
    """Every chunk of every table that is ever compressed."""
    with database.connection() as connection:
        connection.execute(
            "SELECT compress_chunk(chunk, if_not_compressed => true)"
            " FROM timescaledb_information.hypertable_columnstore_settings s,"
            " LATERAL show_chunks(s.hypertable) chunk WHERE s.segmentby IS NOT NULL"
        )


@dataclass
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Desk:
    """A store with what a test does to it over and over."""

    store: Store
    clock: Clock
    compressed: bool = False
    runs: int = 0
    reports: list[WriteReport] = field(default_factory=list)

    def write(
        self,
        asset: str,
        answer: pl.DataFrame | Mapping[str, Fetched],
        days: tuple[date, date] = JANUARY,
        **options: object,
    ) -> WriteReport:
        with self.planned(asset, days, **options) as plan:
            report = self.store.write(plan, answer)
        self.reports.append(report)
        assert_conserved(report)
        self.settle()
        return report

    def settle(self) -> None:
        """Compress what is written by now, where that is wanted: the next write finds nothing
        else."""
        if self.compressed:
            compress(self.store.database)

    @contextlib.contextmanager
    def planned(
        self, asset: str, days: tuple[date, date] = JANUARY, **options: object
    ) -> Iterator[WritePlan]:
        self.runs += 1
        version = f"1 {self.store.tables[asset].written_by}".strip()
        plan = self.store.plan(
            asset, *days, **{"run_id": f"run {self.runs}", "code_version": version, **options}
        )  # type: ignore[arg-type]
        try:
            yield plan
        finally:
            plan.intent.close()

    def query(self, statement: str) -> pl.DataFrame:
        return self.store.database.read_frame(statement)

    def one(self, statement: str) -> object:
        return self.query(statement).item()

    def ledger(self, asset: str) -> pl.DataFrame:
        return self.query(
            f"SELECT source, day, rows, revision, token, run_id FROM partition_ledger"
            f" WHERE asset = '{asset}' ORDER BY source, day"
        )

    def exceptions(self, asset: str) -> list[tuple[object, ...]]:
        return self.query(
            "SELECT source, day, symbol, status FROM partition_exceptions"
            f" WHERE asset = '{asset}' ORDER BY source, day, symbol"
        ).rows()

    def place(self, table: str) -> pl.DataFrame:
        """Where each row lies and who wrote it: changes with any UPDATE, DELETE or INSERT. What is
        compressed lies nowhere: what the rows say, and when they were recorded, has to do."""
        place = "ctid::text, xmin::text" if not self.compressed else "'' AS ctid, '' AS xmin"
        return self.query(f"SELECT {place}, t::text AS row FROM {table} t ORDER BY 1, 3")


def assert_conserved(report: WriteReport) -> None:
    counts = report.counts()
    assert counts.pop("input") == sum(counts.values())
    assert min(counts.values()) >= 0


def audit(database: Database, tables: Mapping[str, TableSchema] = TABLES) -> None:
    """The ledger says what the tables hold: rows and hash of every asset, source and day."""
    for asset, table in tables.items():
        where = " AND ".join(f"{k} = '{v}'" for k, v in table.constants.items()) or "true"
        rows = database.read_frame(
            f"SELECT {', '.join(table.names)} FROM {table.table} WHERE {where}"
        )
        groups = rows.partition_by("source", as_dict=True) if not table.derived else {}
        groups = {str(source): group for (source,), group in groups.items()}
        if table.derived:
            groups = {DERIVED: rows}
        held = {
            (source, day): (count, content)
            for source, group in groups.items()
            for day, count, content in day_hashes(group, table.day_column, table.hashed).iter_rows()
        }
        ledger = {
            (source, day): (count, content)
            for source, day, count, content in database.read_frame(
                "SELECT source, day, rows, content_hash FROM partition_ledger"
                f" WHERE asset = '{asset}'"
            ).iter_rows()
        }
        assert {k: v for k, v in ledger.items() if v != (0, 0)} == held, asset


def sessions(days: tuple[date, date] = JANUARY) -> pl.DataFrame:
    """`time`, `close` of the New York sessions of those days."""
    day = pl.col("time").dt.date()
    return calendar_sessions("XNYS").filter(day >= days[0], day < days[1]).select("time", "close")


def bars(
    symbols: Sequence[str],
    days: tuple[date, date] = JANUARY,
    *,
    source: str = "made",
    add: float = 0.0,
) -> pl.DataFrame:
    """Bars of every session; prices follow from symbol, day and `add`."""
    price = (
        pl.col("time").dt.epoch("d").cast(pl.Float64) / 100 + pl.col("symbol").str.len_chars() + add
    )
    return (
        pl.DataFrame({"symbol": symbols}, schema={"symbol": pl.String})
        .join(sessions(days), how="cross")
        .select(
            "symbol",
            "time",
            available_at=pl.col("close") + timedelta(minutes=15),
            availability_basis=pl.lit("assumed"),
            open=price,
            high=price + 1,
            low=price - 1,
            close=price + 0.5,
            volume=pl.lit(1000.0),
            source=pl.lit(source),
        )
    )


def fetched(frame: pl.DataFrame, *asked: str, **failed: str) -> dict[str, Fetched]:
    source = frame["source"][0] if frame.height else "made"
    return {source: Fetched(frame, failed, asked)}


def nothing(*asked: str, table: TableSchema | None = None, **failed: str) -> dict[str, Fetched]:
    return {"made": Fetched((table or ohlcv("1d")).empty(), failed, asked)}


def articles(
    *entries: tuple[str, datetime, str],
    symbols: Sequence[str] = ("A",),
    seen: datetime | None = None,
    source: str = "made",
) -> pl.DataFrame:
    """News: (document id, published, title), available when published or first seen."""
    return pl.DataFrame(
        [
            {
                "document_id": name,
                "time": published,
                "available_at": seen or published,
                "availability_basis": "observed" if seen else "assumed",
                "source": source,
                "symbols": list(symbols),
                "title": title,
                "text": None,
                "url": None,
            }
            for name, published, title in entries
        ],
        schema={c.name: c.dtype for c in documents("news").columns if c.name != "channel"},
    )


def means(frame: pl.DataFrame) -> pl.DataFrame:
    """What `means` computes: the mean of three bars, null where one of them is missing."""
    rows = frame.sort("symbol", "time")
    total = sum((pl.col("close").shift(n) for n in (1, 2)), start=pl.col("close"))
    return (
        rows.with_columns(sma_20=(total / 3).over("symbol"))
        .filter(pl.col("available_at").is_not_null())
        .select("symbol", "time", "available_at", "availability_basis", "sma_20")
    )


def doubles(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(pl.col("available_at").is_not_null()).select(
        "symbol",
        "time",
        "available_at",
        "availability_basis",
        (pl.col("sma_20") * 2).alias(DOUBLES.names[4]),
    )


def run_means(desk: Desk, days: tuple[date, date] = JANUARY, **options: object) -> WriteReport:
    return _run(desk, "means", means, days, **options)


def run_doubles(desk: Desk, days: tuple[date, date] = JANUARY, **options: object) -> WriteReport:
    return _run(desk, "doubles", doubles, days, **options)


def _run(desk: Desk, asset: str, compute, days, **options) -> WriteReport:  # type: ignore[no-untyped-def]
    with desk.planned(asset, days, **options) as plan:
        frame = desk.store.load(plan, plan.table.inputs[0])
        report = desk.store.write(plan, compute(frame))
    assert_conserved(report)
    desk.settle()
    return report
