"""The store as its users see it: the newest rows, what a load sees, several processes at once."""

from __future__ import annotations

import multiprocessing
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from feature_pipeline.errors import UniverseError
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.schemas import Fetched, Input
from feature_pipeline.storage.store import Store
from feature_pipeline_tests.storage.crash_worker import write, write_in_turns
from feature_pipeline_tests.storage.support import (
    JANUARY,
    NOW,
    TOY,
    Clock,
    Desk,
    audit,
    bars,
    derived,
    fetched,
    sessions,
    universe,
)

LATER = NOW + timedelta(days=1)
EVERYTHING = (
    "ohlcv_1d", "ohlcv_1d_history", "partition_ledger", "partition_exceptions", "quarantine",
)  # fmt: skip

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["feature_pipeline_tests.storage.crash_worker"])


@pytest.fixture
def real(desk: Desk) -> Desk:
    """A desk with the real tables, none of them waiting for inputs."""
    desk.store.tables = TABLES
    return desk


def enter(desk: Desk, asset: str, frame: pl.DataFrame) -> None:
    """Write rows of a derived table without computing them."""
    table = desk.store.tables[asset]
    bare = {
        **desk.store.tables,
        asset: derived(asset, Input("macro_indicators", ("value",), on_missing="gap")),
    }
    kept, desk.store.tables = desk.store.tables, bare
    desk.store.__dict__.pop("_planner", None)
    with desk.planned(asset) as plan:
        plan.table = table
        desk.store.write(plan, frame)
    desk.store.tables = kept
    desk.store.__dict__.pop("_planner", None)


def rows(asset: str, symbols: list[str], **values: object) -> pl.DataFrame:
    frame = bars(symbols).select("symbol", "time", "available_at", "availability_basis")
    types = {c.name: c.dtype for c in TABLES[asset].columns}
    return frame.with_columns(pl.lit(v, dtype=types[n]).alias(n) for n, v in values.items())


def test_the_newest_vector_comes_with_its_features_and_its_revision(real: Desk) -> None:
    enter(real, "features_1d", rows("features_1d", ["A", "BB"], returns_1d=0.5))
    enter(real, "regime_predictions_1d", rows(
        "regime_predictions_1d", ["A"], regime="trend", model_version="1",
    ))  # fmt: skip
    enter(real, "state_vectors_1d", rows("state_vectors_1d", ["A", "BB"], rsi=0.25, missing=[]))
    moment = datetime(2020, 1, 16, 21, tzinfo=UTC)  # a quarter of an hour before its bar
    found = real.store.newest("1d", moment)
    assert found["symbol"].to_list() == ["A", "BB"]
    assert set(found["time"]) == {datetime(2020, 1, 15, tzinfo=UTC)}
    assert found["returns_1d"].to_list() == [0.5, 0.5]
    assert found["regime"].to_list() == ["trend", None]
    assert set(found["revision"]) == {
        real.one(
            "SELECT max(revision) FROM partition_ledger WHERE asset LIKE '%_1d'"
            " AND day = '2020-01-15'"
        )
    }
    assert set(real.store.newest("1d")["time"]) == {datetime(2020, 1, 31, tzinfo=UTC)}


def macro(*vintages: tuple[int, int, float]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "series_id": ["VIXCLS"] * len(vintages),
            "time": [datetime(2020, 1, day, tzinfo=UTC) for day, _, _ in vintages],
            "available_at": [datetime(2020, 1, day, 13, tzinfo=UTC) for _, day, _ in vintages],
            "availability_basis": ["observed"] * len(vintages),
            "value": [value for _, _, value in vintages],
            "name": ["VIX"] * len(vintages),
            "units": ["Index"] * len(vintages),
            "frequency": ["D"] * len(vintages),
            "source": ["made"] * len(vintages),
        },
        schema_overrides={n: pl.Datetime("us", "UTC") for n in ("time", "available_at")},
    )


def test_a_revised_value_counts_from_its_release(real: Desk) -> None:
    frame = macro((6, 7, 14.0), (7, 8, 15.0), (7, 20, 16.0))
    assert real.write("macro_indicators", fetched(frame, "VIXCLS")).written == 3
    assert real.write("macro_indicators", fetched(frame, "VIXCLS")).unchanged == 3

    def value(day: int, hour: int) -> list[float]:
        moment = datetime(2020, 1, day, hour, tzinfo=UTC)
        return real.store.newest_macro(moment)["value"].to_list()

    assert [value(7, 12), value(7, 13), value(8, 13), value(20, 12), value(20, 13)] == [
        [], [14.0], [15.0], [15.0], [16.0],
    ]  # fmt: skip


def test_the_newest_score_is_the_active_models(real: Desk) -> None:
    active = next(
        n.where for n in TABLES["state_vectors_1d"].inputs if n.asset == "sentiment_scores"
    )
    moments = [datetime(2020, 1, day, 10, tzinfo=UTC) for day in (7, 8, 9)]
    frame = pl.DataFrame(
        {
            "document_id": ["x", "y", "z"],
            "time": moments,
            "available_at": moments,
            "availability_basis": ["observed"] * 3,
            "symbol": ["A"] * 3,
            "channel": ["news"] * 3,
            "source": ["made"] * 3,
            "sentiment": [0.1, 0.2, 0.3],
            "label": ["positive"] * 3,
            "confidence": [0.9] * 3,
            "model": [active["model"]] * 2 + ["another"],
            "model_revision": [active["model_revision"]] * 3,
        },
        schema_overrides={n: pl.Datetime("us", "UTC") for n in ("time", "available_at")},
    )
    with real.planned("sentiment_scores") as plan:
        real.store.write(plan, frame)
    found = real.store.newest_sentiment()
    assert found.select("symbol", "source", "sentiment").rows() == [("A", "news", 0.2)]


def test_what_is_collected_while_it_is_read_counts_as_missing(desk: Desk) -> None:
    """Never as nothing: a day that comes between two looks is not taken for an empty one."""
    desk.store.tables = {
        **TOY,
        "reader": derived("reader", Input("corporate_actions", ("kind",), on_missing="gap")),
    }
    read_frame = desk.store.database.read_frame

    def collect_first(query: str, *more: object) -> pl.DataFrame:
        if 'FROM "corporate_actions"' in query:
            desk.store.database.read_frame = read_frame  # type: ignore[method-assign]
            empty = {"made": Fetched(TOY["corporate_actions"].empty(), {}, ("A",))}
            frame = read_frame(query)
            desk.write("corporate_actions", empty)
            return frame
        return read_frame(query, *more)  # type: ignore[arg-type]

    with desk.planned("reader") as plan:
        desk.store.database.read_frame = collect_first  # type: ignore[method-assign]
        loaded = desk.store.load(plan, plan.table.inputs[0])
        assert loaded.height == sessions().height
        desk.store.write(plan, plan.table.empty())
    # And it is looked at again.
    assert desk.store.pending("reader", *JANUARY, "1").len() > 0


def test_unknown_symbols_are_named(desk: Desk) -> None:
    with (
        pytest.raises(UniverseError, match="'X' is not in the universe; it has A, BB, CCC"),
        desk.planned("ohlcv_1d", symbols=["X"]),
    ):
        pass


def test_a_day_in_the_middle_of_a_month_leaves_the_rest(desk: Desk) -> None:
    desk.write("ohlcv_1d", fetched(bars(["A", "BB", "CCC"]), "A", "BB", "CCC"))
    placed = desk.place("ohlcv_1d")
    day = (date(2020, 1, 15), date(2020, 1, 16))
    report = desk.write("ohlcv_1d", fetched(bars(["A", "BB", "CCC"], day, add=1), "A"), day)
    assert report.days.select("day", "rows", "written").rows() == [(day[0], 3, 3)]
    kept = desk.place("ohlcv_1d").join(placed, on=["ctid", "xmin", "row"], how="semi")
    assert kept.height == placed.height - 3


def test_processes_that_overlap_end_consistent(desk: Desk, migrated_database_url: str) -> None:
    alone = Desk(Store(desk.store.database, universe("A"), TOY, clock=Clock()), Clock(), runs=1000)
    for asset in ("ohlcv_1d", "news"):
        write(alone, asset, 1)
    workers = [
        _context.Process(target=write_in_turns, args=(migrated_database_url, n)) for n in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    audit(desk.store.database, TOY)
    assert alone.store.read("ohlcv_1d").height == 40
    assert desk.one("SELECT count(*) FROM documents") == 40
    assert desk.one("SELECT count(*) FROM write_intents") == 0
    # What follows from the last version can be computed, and is then not stale.
    write(alone, "means", 9)
    span = (date(2020, 1, 1), date(2020, 3, 1))
    assert alone.store.pending("means", *span, "9").is_empty()
    assert timedelta(0) < alone.store.wait


def odd_bars(days: tuple[date, date]) -> pl.DataFrame:
    """Bars of some months, and whatever may be wrong with a row, all over them."""
    good = bars(["A", "BB"], days)
    number = pl.int_range(pl.len())
    moment = pl.col("time")
    return pl.concat(
        [
            good.filter(number % 17 != 3),  # some are missing
            good.filter(number % 29 == 5),  # told twice
            good.filter(number % 23 == 7).with_columns(high=pl.col("low") - 1),
            good.filter(number % 31 == 11).with_columns(close=pl.col("open")),  # contradicts
            good.head(1).with_columns(time=pl.lit(None, dtype=good.schema["time"])),
            good.head(2).with_columns(moment.dt.offset_by("-1y")),
            good.tail(2).with_columns(moment.dt.offset_by("1y")),
            good.tail(1).with_columns(symbol=pl.lit("BB"), available_at=pl.lit(LATER)),
        ]
    )


@pytest.mark.parametrize("rows_at_once", [40, 80])
def test_an_answer_in_parts_is_written_as_in_one(desk: Desk, monkeypatch, rows_at_once) -> None:
    days = (date(2019, 10, 15), date(2020, 2, 1))
    answer = {"made": Fetched(odd_bars(days), {"CCC": "it is away"}, ("A", "BB"))}
    parts = []
    check = Store._check
    monkeypatch.setattr(Store, "_check", lambda *a: parts.append(a[2]) or check(*a))

    def told() -> list[object]:
        report = desk.write("ohlcv_1d", answer, days)
        return [
            report.counts(),
            sorted(report.exceptions.rows(), key=str),
            sorted(report.reasons.rows(), key=str),
            report.days.sort("day").rows(),
            desk.exceptions("ohlcv_1d"),
            *(
                sorted(desk.query(f"SELECT {columns} FROM {table}").rows(), key=str)
                for table, columns in (
                    ("ohlcv_1d", "symbol, time, close, volume"),
                    ("partition_ledger", "asset, source, day, rows, content_hash"),
                    ("quarantine", "symbol, day, reason, payload"),
                )
            ),
        ]

    whole = told()
    assert len(parts) == 1
    assert whole[0]["quarantined"] > 5
    assert whole[0]["duplicate"] > 2
    assert whole[0]["unfinished"] == 1
    with desk.store.database.connection() as link:
        link.execute(f"TRUNCATE {', '.join(EVERYTHING)}")
    parts.clear()
    monkeypatch.setattr("feature_pipeline.storage.store._PART_ROWS", rows_at_once)
    assert told() == whole
    assert len(parts) in (2, 4)
    assert sum(part.frame.height for part in parts) == answer["made"].frame.height
