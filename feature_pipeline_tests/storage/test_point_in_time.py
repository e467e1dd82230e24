"""Reads at past moments: as available then, as held then, and how they are found."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

import polars as pl
import psycopg
import pytest

from feature_pipeline.errors import SchemaError, UniverseError
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.storage import reader
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.store import Store
from feature_pipeline_tests.storage.support import (
    JANUARY,
    Clock,
    Desk,
    bars,
    fetched,
    nothing,
    universe,
)

DAY = date(2020, 1, 15)
CLOSE = datetime(2020, 1, 15, 21, tzinfo=UTC)


def restated(frame: pl.DataFrame, add: float = 0.25) -> pl.DataFrame:
    hit = pl.col("time").dt.date() == DAY
    return frame.with_columns(close=pl.col("close") + pl.when(hit).then(add).otherwise(0))


def held_now(desk: Desk) -> datetime:
    return desk.one("SELECT clock_timestamp()")  # type: ignore[return-value]


def test_a_bar_is_invisible_before_its_session_has_closed(desk: Desk) -> None:
    desk.write("ohlcv_1d", fetched(bars(["A"]), "A"))

    def days(moment: datetime) -> list[date]:
        return desk.store.read("ohlcv_1d", as_of=moment)["time"].dt.date().to_list()

    assert DAY not in days(datetime(2020, 1, 15, 20, tzinfo=UTC))  # 15:00 in New York
    assert DAY not in days(CLOSE + timedelta(minutes=15) - timedelta(microseconds=1))
    assert DAY in days(CLOSE + timedelta(minutes=15))


def test_a_restated_bar_and_what_was_held_before(desk: Desk) -> None:
    frame = bars(["A", "BB"])
    desk.write("ohlcv_1d", fetched(frame, "A", "BB"))
    before = held_now(desk)
    desk.write("ohlcv_1d", fetched(restated(frame), "A", "BB"))
    between = held_now(desk)
    desk.write("ohlcv_1d", fetched(restated(frame, 0.5), "A", "BB"))

    def read(**when: datetime) -> pl.DataFrame:
        return desk.store.read("ohlcv_1d", **when)  # type: ignore[arg-type]

    def as_stored(frame: pl.DataFrame) -> pl.DataFrame:
        columns = list(TABLES["ohlcv_1d"].names)
        return (
            frame.with_columns(spread=pl.lit(None, pl.Float64))
            .select(columns)
            .sort("symbol", "time")
        )

    assert read(as_known_at=before).equals(as_stored(frame))
    assert read(as_known_at=between).equals(as_stored(restated(frame)))
    assert read().equals(as_stored(restated(frame, 0.5)))
    assert read(as_of=CLOSE + timedelta(days=1)).equals(
        as_stored(restated(frame, 0.5)).filter(pl.col("available_at") <= CLOSE + timedelta(days=1))
    )
    both = read(as_known_at=before, as_of=CLOSE + timedelta(days=1))
    assert both.equals(as_stored(frame).filter(pl.col("available_at") <= CLOSE + timedelta(days=1)))
    assert read(as_known_at=before - timedelta(days=1)).is_empty()


def test_intervals_abut_and_others_keep_the_moment_they_were_recorded(desk: Desk) -> None:
    frame = bars(["A", "BB"])
    desk.write("ohlcv_1d", fetched(frame, "A", "BB"))
    first = desk.query("SELECT symbol, time, recorded_at FROM ohlcv_1d ORDER BY 1, 2")
    desk.write("ohlcv_1d", fetched(restated(frame.filter(symbol="A")), "A"))
    desk.write("ohlcv_1d", fetched(restated(frame.filter(symbol="A"), 0.5), "A"))
    again = desk.query("SELECT symbol, time, recorded_at FROM ohlcv_1d ORDER BY 1, 2")
    kept = again.join(first, on=["symbol", "time", "recorded_at"], how="semi")
    assert kept.height == first.height - 1
    spans = desk.query(
        "SELECT recorded_at, superseded_at FROM ohlcv_1d_history UNION ALL"
        f" SELECT recorded_at, NULL FROM ohlcv_1d WHERE symbol = 'A' AND time = '{DAY} 00:00Z'"
        " ORDER BY 1"
    )
    assert spans["superseded_at"].to_list()[:-1] == spans["recorded_at"].to_list()[1:]
    assert spans.height == 3
    # At the moment itself the new one is held, and the old one no longer.
    for moment in spans["recorded_at"]:
        held = desk.store.read("ohlcv_1d", as_known_at=moment, symbols=["A"])
        assert held.height == held["time"].n_unique() == 21


def test_what_a_source_takes_back_was_held(desk: Desk) -> None:
    frame = bars(["A"])
    holiday = frame.head(1).with_columns(pl.col("time", "available_at") + timedelta(days=2))
    desk.write("ohlcv_1d", fetched(pl.concat([frame, holiday]), "A"))
    before = held_now(desk)
    desk.write("ohlcv_1d", fetched(frame, "A"))
    assert desk.store.read("ohlcv_1d").height == 21
    assert desk.store.read("ohlcv_1d", as_known_at=before).height == 22


def test_ranges_symbols_and_columns(desk: Desk) -> None:
    desk.write("ohlcv_1d", fetched(bars(["A", "BB"]), "A", "BB"))
    frame = desk.store.read(
        "ohlcv_1d", ["close"], start=DAY, end=DAY + timedelta(days=2), symbols=["BB"]
    )
    assert frame.columns == ["symbol", "time", "close"]
    assert frame.rows() == [
        ("BB", datetime(2020, 1, d, tzinfo=UTC), close)
        for d, close in zip((15, 16), frame["close"], strict=True)
    ]
    with pytest.raises(UniverseError, match="'X' is not in the universe"):
        desk.store.read("ohlcv_1d", symbols=["X"])
    with pytest.raises(SchemaError, match="no column 'x'"):
        desk.store.read("ohlcv_1d", ["x"])
    with pytest.raises(SchemaError, match="keeps no history"):
        desk.store.read("means", as_known_at=CLOSE)


def test_an_empty_answer_reads_empty(desk: Desk) -> None:
    with desk.planned("ohlcv_1d") as plan:
        desk.store.write(plan, nothing("A"))
    assert desk.store.read("ohlcv_1d").schema["time"] == pl.Datetime("us", "UTC")


# -- how they are found ---------------------------------------------------------------------------

SYMBOLS, SESSIONS = 200, 1000
_BASE = "'S' || s, d, d + interval '21 hours', 'assumed'"
_GRID = (
    "FROM generate_series('2016-01-01Z'::timestamptz, '2018-09-26Z', '1 day') d,"
    f" generate_series(1, {SYMBOLS}) s"
)


@pytest.fixture
def big(database: Database) -> Store:
    """200 000 rows and more in the tables that are read most."""
    statements = [
        f"INSERT INTO ohlcv_1d SELECT {_BASE}, 1, 1, 1, 1, 1, null, 'x', d, 'r' {_GRID}",
        *(
            f"INSERT INTO {table} (symbol, time, available_at, availability_basis, computed_at,"
            f" run_id{more}) SELECT {_BASE}, d, 'r'{value} {_GRID}"
            for table, more, value in (
                ("state_vectors_1d", ", missing", ", '{}'"),
                ("features_1d", "", ""),
                ("regime_predictions_1d", ", model_version", ", '1'"),
            )
        ),
        "INSERT INTO macro_indicators SELECT 'M' || s, d, d + interval '1 day', 'assumed', 1, 'n',"
        f" 'u', 'D', 'x', d, 'r' {_GRID}",
        "INSERT INTO sentiment_scores SELECT 'D' || s || d, d, d, 'assumed', 'S' || s, 'news', 'x',"
        f" 0, 'neutral', 1, 'm', '1', d, 'r' {_GRID}",
        "INSERT INTO partition_ledger SELECT a, 'derived', d, 'written', 1, 1, 1, 1, '1', 1, 'r'"
        " FROM unnest(ARRAY['state_vectors_1d', 'features_1d', 'regime_predictions_1d',"
        " 'macro_indicators', 'sentiment_scores']) a,"
        " generate_series('2016-01-01'::date, '2018-09-26', '1 day') d",
    ]
    with database.connection() as connection:
        for statement in statements:
            connection.execute(statement)
    with psycopg.connect(database._conninfo, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")
    return Store(database, universe(*(f"S{n}" for n in range(1, SYMBOLS + 1))), TABLES)


def test_no_query_walks_through_a_table(big: Store) -> None:
    """A day by BRIN, the newest by the primary key: never all rows, never a sort of them."""
    moment = datetime(2018, 9, 1, tzinfo=UTC)
    state = TABLES["state_vectors_1d"]
    queries = {
        "day": reader.select(
            TABLES["ohlcv_1d"], ["symbol", "close"], start=DAY.replace(2017), end=date(2017, 1, 16)
        ),
        "symbol": reader.select(TABLES["ohlcv_1d"], ["close"], symbols=["S7"]),
        "newest": reader.newest(
            [state, TABLES["features_1d"], TABLES["regime_predictions_1d"]],
            big.universe.symbols,
            moment,
        ),
        "macro": reader.newest_macro(TABLES["macro_indicators"], moment),
        "sentiment": reader.newest_sentiment(
            TABLES["sentiment_scores"],
            big.universe.symbols,
            {"model": "m", "model_revision": "1"},
            moment,
        ),
    }
    for name, query in queries.items():
        with big.database.connection() as connection:
            plan = "\n".join(
                row[0] for row in connection.execute(f"EXPLAIN (ANALYZE, COSTS OFF) {query}")
            )
        scanned = re.findall(r"Seq Scan on (?:public\.)?(\w+)", plan)
        assert not {"ohlcv_1d", "state_vectors_1d", "macro_indicators", "sentiment_scores"} & set(
            scanned
        ), f"{name}\n{plan}"
        # Rows that one node handled, over all its rounds.
        most = max(
            float(rows) * int(loops)
            for rows, loops in re.findall(r"rows=([\d.]+) loops=(\d+)", plan)
        )
        assert most <= 20_000, f"{name}: {most}\n{plan}"
    # And they are the newest.
    moment += timedelta(hours=12)
    frame = big.newest("1d", moment)
    assert frame.height == SYMBOLS
    assert set(frame["time"]) == {datetime(2018, 8, 31, tzinfo=UTC)}
    macro = big.newest_macro(moment)
    assert macro.height == SYMBOLS
    assert set(macro["available_at"]) == {datetime(2018, 9, 1, tzinfo=UTC)}


def test_clock_is_the_default_moment(desk: Desk) -> None:
    assert Clock()() == desk.store.clock()
    assert desk.store.newest_macro().is_empty()
    assert JANUARY[0] < desk.clock.now.date()
