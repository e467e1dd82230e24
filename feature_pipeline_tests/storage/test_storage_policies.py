"""Chunks, compression, retention and summaries: what `storage_policies` says is what is done."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import count
from time import sleep
from typing import Any

import polars as pl
import psycopg
import pytest
from psycopg import errors

from feature_pipeline.errors import MissingPartitionError
from feature_pipeline.schemas import ohlcv
from feature_pipeline.stack import doctor
from feature_pipeline.storage import migrations, retention
from feature_pipeline.storage.changes import Batch, Writing
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.upkeep import Upkeep
from feature_pipeline.storage.writer import Writer
from feature_pipeline_tests.storage.support import (
    TOY,
    Desk,
    bars,
    fetched,
    run_doubles,
    run_means,
)

MINUTES = ohlcv("1m")
MONDAY = date(2024, 1, 8)
MONDAY_2020 = date(2020, 1, 6)
TODAY = date(2026, 8, 31)


@dataclass
class Shop:
    """A database with minute bars, and what a test does to it."""

    database: Database
    link: psycopg.Connection
    timescaledb: bool
    url: str
    tokens: Iterator[int] = field(default_factory=lambda: count(1))

    def write(self, day: date, *symbols: str, add: float = 0.0, days: int = 1) -> None:
        """Two hours of minutes on each day, through the contract."""
        rows = minutes(symbols, day, days, add)
        Writer(self.database).write(
            MINUTES,
            Writing(next(self.tokens), "run", "1"),
            [
                Batch(
                    "made",
                    rows,
                    rows["time"].dt.date().unique().sort(),
                    answered=frozenset(symbols),
                )
            ],
        )

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self.link.execute(query, values).fetchall()

    def one(self, query: str, *values: object) -> Any:
        [(value,)] = self.rows(query, *values)
        return value

    def maintain(self) -> None:
        if self.timescaledb:
            self.link.execute("CALL maintain_storage()")

    def age(self, table: str, by: str) -> None:
        """As if the chunks that are there had been made that long ago."""
        self.link.execute(
            "UPDATE _timescaledb_catalog.chunk SET creation_time = creation_time - %s::interval"
            " WHERE hypertable_id = (SELECT id FROM _timescaledb_catalog.hypertable"
            " WHERE table_name = %s)",
            [by, table],
        )

    def run_jobs(self, kind: str, table: str) -> None:
        for (job,) in self.rows(
            "SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = %s"
            " AND hypertable_name = %s",
            kind,
            table,
        ):
            self.link.execute(f"CALL run_job({job})")


@pytest.fixture
def shop(database: Database, request: pytest.FixtureRequest) -> Iterator[Shop]:
    there = retention.timescaledb(database)
    url = request.getfixturevalue("migrated_timescaledb_url" if there else "migrated_database_url")
    link = database.dedicated()
    link.execute("CREATE TABLE IF NOT EXISTS ohlcv_1m (LIKE ohlcv_1d INCLUDING ALL)")
    link.execute("CREATE TABLE IF NOT EXISTS ohlcv_1m_history (LIKE ohlcv_1d_history)")
    migrations.migrate(url)
    yield Shop(database, link, there, url)
    link.close()


def minutes(symbols: tuple[str, ...], day: date, days: int, add: float) -> pl.DataFrame:
    start = datetime(day.year, day.month, day.day, 14, 30, tzinfo=UTC)
    times = [start + timedelta(days=d, minutes=m) for d in range(days) for m in range(120)]
    price = (pl.col("time").dt.epoch("s") // 60 % 97).cast(pl.Float64) + add
    return (
        pl.DataFrame({"symbol": symbols})
        .join(pl.DataFrame({"time": times}), how="cross")
        .with_columns(pl.col("time").dt.cast_time_unit("us"))
        .with_columns(
            session=pl.col("time").dt.date(),
            available_at=pl.col("time") + timedelta(minutes=1),
            availability_basis=pl.lit("observed"),
            open=price,
            high=price + 2,
            low=price - 2,
            close=price + 1,
            volume=pl.lit(10.0),
            spread=pl.lit(None, pl.Float64),
            source=pl.lit("made"),
            day=pl.col("time").dt.date(),
        )
        .select(*MINUTES.names, "day")
    )


# -- policies -------------------------------------------------------------------------------------


def test_policies_are_those_that_were_promised(database: Database) -> None:
    found = {
        name: (chunk.days, str(compress), str(kept))
        for name, chunk, compress, kept in database.dedicated().execute(
            "SELECT relation, chunk_interval, compress_after::text, retention::text"
            " FROM storage_policies"
        )
    }
    assert found["ohlcv_1m"] == (7, "30 days", "6 mons")
    assert found["ohlcv_5m"] == (30, "3 mons", "2 years")
    assert found["ohlcv_1h"] == (180, "6 mons", "5 years")
    for name in ("ohlcv", "indicators", "features", "state_vectors"):
        assert found[f"{name}_1d"] == (1200, "1 year", "None")
    for name in ("documents", "sentiment_scores"):
        assert found[name] == (30, "60 days", "1 year")
    assert found["macro_indicators"] == (365, "180 days", "5 years")
    assert found["regime_predictions_1d"] == (90, "90 days", "2 years")
    # What `storage` shows is what is done: of the tables that are there.
    shown = retention.policies(database)
    query = "SELECT relation FROM storage_policies WHERE to_regclass(relation) IS NOT NULL"
    there = set(database.read_frame(query)["relation"])
    assert set(shown["table"]) == there
    for row in shown.iter_rows(named=True):
        assert (
            int(row["chunk_interval"].split()[0]),
            str(row["compress_after"]),
            str(row["retention"]),
        ) == found[row["table"]]


def test_what_is_older_than_it_would_be_kept_is_refused(database: Database) -> None:
    assert retention.kept_from(database, "ohlcv_1d", TODAY) is None
    assert retention.refusal(database, "ohlcv_1d", date(2000, 1, 1), TODAY) is None
    assert retention.refusal(database, "ohlcv_1m", date(2026, 2, 28), TODAY) is None
    said = retention.refusal(database, "ohlcv_1m", date(2026, 2, 27), TODAY)
    if not retention.timescaledb(database):  # nothing is ever dropped there
        assert retention.kept_from(database, "ohlcv_1m", TODAY) is said is None
        return
    assert retention.kept_from(database, "ohlcv_1m", TODAY) == date(2026, 2, 28)
    assert said is not None
    assert "6 mons" in said
    assert "on or after 2026-02-28" in said


JOBS = (
    "SELECT proc_name, coalesce(config ->> 'compress_after', config ->> 'drop_created_before')"
    " FROM timescaledb_information.jobs WHERE hypertable_name = %s ORDER BY 1"
)


@pytest.mark.parametrize("database", ["timescaledb"], indirect=True)
@pytest.mark.timescaledb
def test_policies_follow_the_table(shop: Shop, migrated_timescaledb_url: str) -> None:
    # A chunk's last row may come a chunk's length after its first one.
    compress, drop = ("policy_compression", "30 days"), ("policy_retention", "6 mons 7 days")
    assert shop.rows(JOBS, "ohlcv_1m") == [compress, drop]
    jobs = shop.rows("SELECT job_id FROM timescaledb_information.jobs ORDER BY 1")
    migrations.migrate(migrated_timescaledb_url)
    assert shop.rows("SELECT job_id FROM timescaledb_information.jobs ORDER BY 1") == jobs
    for change, expected in (
        (
            "retention = '1 year', compress_after = '14 days'",
            [("policy_compression", "14 days"), ("policy_retention", "1 year 7 days")],
        ),
        (
            "retention = NULL, chunk_interval = '1 day', order_by = 'time, available_at'",
            [("policy_compression", "14 days")],
        ),
        ("retention = '3 months', compress_after = NULL", [("policy_retention", "3 mons 1 day")]),
    ):
        shop.link.execute(f"UPDATE storage_policies SET {change} WHERE relation = 'ohlcv_1m'")
        migrations.migrate(migrated_timescaledb_url)
        assert shop.rows(JOBS, "ohlcv_1m") == expected
    assert shop.one(
        "SELECT time_interval FROM timescaledb_information.dimensions"
        " WHERE hypertable_name = 'ohlcv_1m'"
    ) == timedelta(days=1)
    assert shop.rows(
        "SELECT segmentby, replace(orderby, '\"', '')"
        " FROM timescaledb_information.hypertable_columnstore_settings"
        " WHERE hypertable = 'ohlcv_1m'::regclass"
    ) == [("symbol", "time,available_at")]
    # A chunk that is longer than new ones are is kept as long as its own last row asks for.
    for length in ("7 days", "1 day"):
        shop.link.execute(
            "UPDATE storage_policies SET chunk_interval = %s WHERE relation = 'ohlcv_1m'", [length]
        )
        migrations.migrate(migrated_timescaledb_url)
        shop.write(MONDAY, "A")
    assert shop.rows(JOBS, "ohlcv_1m") == [("policy_retention", "3 mons 7 days")]


@pytest.mark.parametrize("database", ["timescaledb"], indirect=True)
@pytest.mark.timescaledb
def test_a_day_rewritten_inside_a_compressed_chunk_is_compressed_again(shop: Shop) -> None:
    whole, partly = 1, 9  # bits of the catalogue: compressed, and partly so
    states = (
        "SELECT array_agg(DISTINCT c.status) FROM _timescaledb_catalog.chunk c JOIN"
        " _timescaledb_catalog.hypertable h ON h.id = c.hypertable_id"
        " WHERE h.table_name = 'ohlcv_1m'"
    )
    shop.write(MONDAY, "A", "B", days=12)
    shop.run_jobs("policy_compression", "ohlcv_1m")
    assert shop.one(states) == [whole]
    day = MONDAY + timedelta(days=1)
    shop.write(day, "A", add=5.0)
    assert shop.one(states) == [whole, partly]
    before, after = minutes(("A", "B"), MONDAY, 12, 0.0), minutes(("A",), day, 1, 5.0)
    assert rollups(shop) == expected(before.join(after, on=["symbol", "time"], how="anti"), after)
    assert shop.one("SELECT count(*) FROM ohlcv_1m_history") == 120
    shop.run_jobs("policy_compression", "ohlcv_1m")
    assert shop.one(states) == [whole]
    row = retention.policies(shop.database).row(
        by_predicate=pl.col("table") == "ohlcv_1m", named=True
    )
    assert (row["chunks"], row["compressed"]) == (3, 1.0)
    assert 0 < row["saved"] < 1


@pytest.mark.parametrize("database", ["timescaledb"], indirect=True)
@pytest.mark.timescaledb
def test_the_doctor_notices_jobs_that_fail(shop: Shop) -> None:
    assert doctor.jobs(shop.link).right
    job = shop.one(
        "SELECT job_id FROM timescaledb_information.jobs"
        " WHERE proc_name = 'policy_retention' AND hypertable_name = 'documents'"
    )
    shop.link.execute(
        "INSERT INTO _timescaledb_internal.bgw_job_stat VALUES (%s, now(), now(), now(),"
        " '-infinity', false, 1, '1s', '1s', 0, 1, 0, 1, 0)",
        [job],
    )
    found = doctor.jobs(shop.link)
    assert not found.right
    assert "1 of" in found.found


# -- retention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["timescaledb"], indirect=True)
@pytest.mark.timescaledb
def test_retention_counts_from_when_a_chunk_was_made(shop: Shop) -> None:
    shop.write(MONDAY, "A", "B", days=10)
    shop.maintain()
    shop.run_jobs("policy_retention", "ohlcv_1m")
    assert shop.one("SELECT count(*) FROM ohlcv_1m") == 2 * 10 * 120  # of years ago, and fresh
    shop.age("ohlcv_1m", "6 months 6 days")
    shop.run_jobs("policy_retention", "ohlcv_1m")
    assert shop.one("SELECT count(*) FROM ohlcv_1m") == 2 * 10 * 120
    shop.age("ohlcv_1m", "2 days")
    shop.write(MONDAY + timedelta(days=20), "A")
    shop.run_jobs("policy_retention", "ohlcv_1m")
    assert shop.one("SELECT count(*) FROM ohlcv_1m") == 120
    # The ledger says what is there, and what is not there any more.
    shop.maintain()
    ledger = "SELECT day, rows FROM partition_ledger WHERE asset = 'ohlcv_1m'"
    assert shop.rows(ledger) == [(MONDAY + timedelta(days=20), 120)]
    assert shop.rows("SELECT count(*), min(day), sum(rows)::int FROM dropped_days") == [
        (10, MONDAY, 2400)
    ]
    shop.write(MONDAY, "A", "B")  # and may be written again
    assert shop.one("SELECT count(*) FROM ohlcv_1m") == 120 + 240


def test_what_was_dropped_is_no_hole(desk: Desk) -> None:
    everybody = ["A", "BB", "CCC"]
    desk.write("ohlcv_1d", fetched(bars(everybody), *everybody))
    run_means(desk)
    asked = dict.fromkeys(TOY, "1")
    days = desk.query("SELECT DISTINCT day FROM partition_ledger WHERE asset = 'means' ORDER BY 1")
    with desk.store.database.connection() as connection:
        for table, column in (
            ("partition_ledger", "day"),
            ("ohlcv_1d", "time"),
            ("indicators_1d", "time"),
        ):
            connection.execute(
                f"DELETE FROM {table} WHERE {column} BETWEEN '2020-01-06Z' AND '2020-01-08Z'"
            )

    def amiss() -> tuple[list[date], list[date]]:
        known = dict.fromkeys(TOY, days["day"])
        upkeep = Upkeep(desk.store, asked, known)
        return upkeep.holes("ohlcv_1d").to_list(), upkeep.due("means").to_list()

    lost = [date(2020, 1, n) for n in (6, 7, 8)]
    holes, due = amiss()
    assert holes == lost
    assert set(lost) <= set(due)
    with desk.store.database.connection() as connection:
        connection.execute(
            "INSERT INTO dropped_days SELECT a, d, 3 FROM unnest('{ohlcv_1d,means}'::text[]) a,"
            " unnest(%s::date[]) d",
            [lost],
        )
    holes, due = amiss()
    assert holes == []
    assert not set(lost) & set(due)


def lose(desk: Desk, *dropped: tuple[str, str]) -> None:
    """As retention does, then `maintain_storage`: three days of an asset in its table."""
    with desk.store.database.connection() as connection:
        for asset, table in dropped:
            for name, column in (("partition_ledger", "day"), (table, "time")):
                whose = f" AND asset = '{asset}'" if column == "day" else ""
                connection.execute(
                    f"DELETE FROM {name} WHERE {column} BETWEEN '2020-01-06Z' AND '2020-01-08Z'"
                    + whose
                )
            connection.execute(
                "INSERT INTO dropped_days SELECT %s, d, 3"
                " FROM generate_series('2020-01-06'::date, '2020-01-08', '1 day') d",
                [asset],
            )


def test_right_behind_what_was_dropped_values_are_missing(desk: Desk) -> None:
    everybody = ["A", "BB", "CCC"]
    desk.write("ohlcv_1d", fetched(bars(everybody), *everybody))
    run_means(desk)
    lose(desk, ("ohlcv_1d", "ohlcv_1d"), ("means", "indicators_1d"))
    newer = {**dict.fromkeys(TOY, "1"), "means": "2"}
    upkeep = Upkeep(desk.store, newer)
    due = {"means": upkeep.due("means")}
    assert date(2020, 1, 9) in due["means"]
    assert upkeep.blocked(due, {}, {})["means"].is_empty()
    assert upkeep.unreachable("means", date(2020, 1, 9), due) is None
    for options in ({"mending": True}, {}):  # the second finds nothing left to do
        run_means(desk, code_version="2", **options)
        values = desk.query("SELECT time::date, sma_20 FROM indicators_1d WHERE symbol = 'A'")
        known = dict(values.rows())
        assert date(2020, 1, 8) not in known
        assert [known[date(2020, 1, n)] is None for n in (9, 10, 13)] == [True, True, False]
        assert Upkeep(desk.store, newer).due("means").is_empty()
        assert desk.store.ledger.dropped_days("means", MONDAY_2020, date(2020, 1, 9)).len() == 3


def test_what_can_be_computed_again_is_not_missing_for_good(desk: Desk) -> None:
    everybody = ["A", "BB", "CCC"]
    desk.write("ohlcv_1d", fetched(bars(everybody), *everybody))
    run_means(desk)
    run_doubles(desk)
    lose(desk, ("means", "indicators_1d"))
    versions = {**dict.fromkeys(TOY, "1"), "doubles": "2"}
    upkeep = Upkeep(desk.store, versions)
    due = {"doubles": upkeep.due("doubles")}
    assert upkeep.unreachable("doubles", date(2020, 1, 9), due) == (
        "means from 2020-01-08 to 2020-01-08, which was dropped"
    )
    with pytest.raises(MissingPartitionError, match="means of 2020-01-08, which"):
        run_doubles(desk, (date(2020, 1, 9), date(2020, 2, 1)), code_version="2")
    run_means(desk)  # its bars are there
    run_doubles(desk, code_version="2")
    assert Upkeep(desk.store, versions).due("doubles").is_empty()


# -- summaries ------------------------------------------------------------------------------------

ROLLUPS = {"ohlcv_5m_rollup": 300, "ohlcv_1h_rollup": 3600, "ohlcv_1d_rollup": 86400}


def rollups(shop: Shop) -> dict[str, list[tuple[Any, ...]]]:
    return {
        name: shop.rows(
            "SELECT symbol, time, available_at, open, high, low, close, volume"
            f" FROM {name} ORDER BY symbol, time"
        )
        for name in ROLLUPS
    }


def expected(*parts: pl.DataFrame) -> dict[str, list[tuple[Any, ...]]]:
    """The rollups of those minutes, bucket by bucket: known once they are over, and late by as much
    as their last minute."""
    frame = pl.concat(parts).sort("symbol", "time")
    late = (pl.col("available_at") - pl.col("time") - timedelta(minutes=1)).last()
    return {
        name: frame.group_by(
            "symbol", pl.col("time").dt.truncate(f"{seconds}s"), maintain_order=True
        )
        .agg(
            pl.max_horizontal(
                pl.col("available_at").max(),
                pl.col("time").first().dt.truncate(f"{seconds}s")
                + timedelta(seconds=seconds)
                + late,
            ).alias("available_at"),
            pl.col("open").first(),
            pl.col("high").max(),
            pl.col("low").min(),
            pl.col("close").last(),
            pl.col("volume").sum(),
        )
        .rows()
        for name, seconds in ROLLUPS.items()
    }


def test_rollups_are_what_the_minutes_say(shop: Shop) -> None:
    shop.link.execute("SET TIME ZONE 'Asia/Kolkata'")
    old, new = minutes(("A", "B"), MONDAY, 3, 0.0), minutes(("A",), MONDAY + timedelta(1), 1, 5.0)
    shop.write(MONDAY, "A", "B", days=3)
    assert rollups(shop) == expected(old)
    shop.maintain()
    assert rollups(shop) == expected(old)
    shop.write(MONDAY + timedelta(1), "A", add=5.0)  # a correction
    shop.maintain()
    kept = old.join(new, on=["symbol", "time"], how="anti")
    assert rollups(shop) == expected(kept, new)
    today = datetime.now(UTC).date()  # nobody waits for a refresh
    for symbols in (("A",), ("A", "B")):
        shop.write(today, *symbols)
        assert rollups(shop) == expected(kept, new, minutes(symbols, today, 1, 0.0))
        shop.maintain()


def test_a_bar_is_known_when_no_minute_of_it_can_come_any_more(shop: Shop) -> None:
    # The last trade of its bucket is in 10:02, and minutes are published 15 minutes late.
    shop.link.execute(
        "INSERT INTO ohlcv_1m (symbol, time, available_at, availability_basis, session, open,"
        " high, low, close, volume, source, recorded_at, run_id)"
        " SELECT 'A', t, t + INTERVAL '16 minutes', 'assumed', t::date, 1, 1, 1, 1, 1, 'made',"
        " t, 'r' FROM generate_series("
        " '2024-03-10 10:01Z'::timestamptz, '2024-03-10 10:02Z', '1 minute') t"
    )
    for zone in ("UTC", "America/New_York"):  # where that day has 23 hours
        shop.link.execute(f"SET TIME ZONE '{zone}'")
        assert [
            shop.one(f"SELECT available_at FROM {name}").astimezone(UTC) for name in ROLLUPS
        ] == [
            datetime(2024, 3, 10, 10, 20, tzinfo=UTC),
            datetime(2024, 3, 10, 11, 15, tzinfo=UTC),
            datetime(2024, 3, 11, 0, 15, tzinfo=UTC),
        ]


def too_early(shop: Shop) -> None:
    """The rollups as they first were: available with the last minute that traded."""
    kind = "MATERIALIZED VIEW" if shop.timescaledb else "VIEW"
    bucket, first, last = (
        ("time_bucket('{}', b.time)", "first(b.open, b.time)", "last(b.close, b.time)")
        if shop.timescaledb
        else (
            "date_bin('{}', b.time, '2000-01-01 00:00:00+00')",
            "(array_agg(b.open ORDER BY b.time))[1]",
            "(array_agg(b.close ORDER BY b.time DESC))[1]",
        )
    )
    options = (
        "WITH (timescaledb.continuous, timescaledb.materialized_only = false)"
        if shop.timescaledb
        else ""
    )
    for name in reversed(ROLLUPS):
        shop.link.execute(f"DROP {kind} {name}")
    for name, base, length in zip(
        ROLLUPS, ("ohlcv_1m", *ROLLUPS), ("5 minutes", "1 hour", "1 day"), strict=False
    ):
        start = bucket.format(length)
        shop.link.execute(
            f"CREATE {kind} {name} {options} AS SELECT b.symbol, {start} AS time,"
            f" max(b.available_at) AS available_at, {first} AS open, max(b.high) AS high,"
            f" min(b.low) AS low, {last} AS close, sum(b.volume) AS volume"
            f" FROM {base} AS b GROUP BY b.symbol, {start}"
            + (" WITH NO DATA" if shop.timescaledb else "")
        )


def test_rollups_that_were_available_too_early_are_made_anew(shop: Shop) -> None:
    too_early(shop)
    old, new = minutes(("A", "B"), MONDAY, 3, 0.0), minutes(("A",), MONDAY + timedelta(21), 1, 0.0)
    shop.write(MONDAY, "A", "B", days=3)
    shop.write(MONDAY + timedelta(21), "A")
    shop.maintain()
    assert rollups(shop) != expected(old, new)
    if shop.timescaledb:  # what is known of dropped minutes stays
        shop.link.execute("SELECT drop_chunks('ohlcv_1m', older_than => DATE '2024-01-22')")
    migrations.migrate(shop.url)
    shop.maintain()
    assert rollups(shop) == expected(old, new)
    identities = f"SELECT '{{{','.join(ROLLUPS)}}}'::regclass[]::oid[]"
    before = shop.one(identities)
    migrations.migrate(shop.url)
    assert shop.one(identities) == before
    assert rollups(shop) == expected(old, new)


@pytest.mark.parametrize("database", ["timescaledb"], indirect=True)
@pytest.mark.timescaledb
def test_the_day_that_was_today_is_looked_at_when_it_is_over(shop: Shop) -> None:
    before = "SELECT count(*) FROM {} WHERE time < '2024-01-09Z'"
    stored = [
        before.format(view)
        for (view,) in shop.rows(
            "SELECT format('%%I.%%I', materialization_hypertable_schema,"
            " materialization_hypertable_name) FROM timescaledb_information.continuous_aggregates"
            " WHERE view_name = ANY (%s) ORDER BY view_name",
            list(ROLLUPS),
        )
    ]
    shop.write(MONDAY, "A")
    # As it was seen on the Monday itself, after its last minute; then nothing ran for years.
    shop.link.execute(
        "INSERT INTO summary_progress SELECT 'ohlcv_1m', max(revision), max(day)"
        " FROM partition_ledger"
    )
    shop.maintain()
    assert [shop.one(query) for query in stored] == [1, 3, 24]
    progress = "SELECT day FROM summary_progress WHERE relation = 'ohlcv_1m'"
    assert shop.one(progress) == datetime.now(UTC).date()


@pytest.mark.parametrize("database", ["timescaledb"], indirect=True)
@pytest.mark.timescaledb
def test_a_call_that_failed_in_an_open_session_is_no_silence(shop: Shop) -> None:
    shop.write(MONDAY, "A")
    other = shop.database.dedicated()
    other.execute("SET lock_timeout = '200ms'")
    with shop.link.transaction():
        shop.link.execute("LOCK TABLE summary_progress IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(errors.LockNotAvailable):
            other.execute("CALL maintain_storage()")
    with pytest.raises(errors.RaiseException, match=f"session {other.info.backend_pid} "):
        shop.maintain()
    other.execute("CALL maintain_storage()")  # its own lock is no obstacle
    shop.maintain()
    other.close()


@pytest.mark.parametrize("database", ["timescaledb"], indirect=True)
@pytest.mark.timescaledb
def test_a_refresh_never_erases_what_is_dropped(shop: Shop) -> None:
    old = minutes(("A", "B"), MONDAY, 12, 0.0)
    shop.write(MONDAY, "A", "B", days=12)
    shop.maintain()
    shop.age("ohlcv_1m", "1 year")
    shop.run_jobs("policy_retention", "ohlcv_1m")
    assert shop.one("SELECT count(*) FROM ohlcv_1m") == 0
    # A backfill on both sides of it.
    before, after = MONDAY - timedelta(days=14), MONDAY + timedelta(days=21)
    shop.write(before, "A")
    shop.write(after, "A")
    shop.maintain()
    around = minutes(("A",), before, 1, 0.0), minutes(("A",), after, 1, 0.0)
    assert rollups(shop) == expected(old, *around)
    # A newcomer's bars of a dropped day: the others' are not known any more, only their summary is.
    shop.write(MONDAY, "C")
    shop.maintain()
    assert rollups(shop) == expected(old, *around)
    # All of them again, and corrected: that is more than nothing.
    shop.write(MONDAY, "A", "B", add=1.0)
    shop.maintain()
    again = minutes(("A", "B"), MONDAY, 1, 1.0), minutes(("C",), MONDAY, 1, 0.0)
    rest = old.filter(pl.col("day") > MONDAY)
    assert rollups(shop) == expected(rest, *around, *again)
    # The policies' own windows lie within what is kept.
    for name in ROLLUPS:
        shop.run_jobs("policy_refresh_continuous_aggregate", name)
    assert rollups(shop) == expected(rest, *around, *again)


@pytest.mark.parametrize("database", ["timescaledb"], indirect=True)
@pytest.mark.timescaledb
def test_a_chunk_that_is_dropped_during_a_refresh_stays_summarised(shop: Shop) -> None:
    shop.write(MONDAY, "A", days=8)  # two chunks
    shop.maintain()
    shop.write(MONDAY, "A", add=1.0, days=8)
    chunks = shop.rows(
        "SELECT format('%%I.%%I', chunk_schema, chunk_name) FROM timescaledb_information.chunks"
        " WHERE hypertable_name = %s ORDER BY range_start",
        "ohlcv_1m",
    )
    (first,), (second,) = chunks
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
    other = shop.database.dedicated()
    with ThreadPoolExecutor(1) as pool:
        with shop.link.transaction():  # holds the refresh of the first chunk up
            shop.link.execute(f"LOCK TABLE {first} IN ACCESS EXCLUSIVE MODE")
            refreshed = pool.submit(other.execute, "CALL maintain_storage()")
            while not (shop.one(waiting, first) or refreshed.done()):
                sleep(0.01)
            with shop.database.connection() as dropping:
                dropping.execute(f"DROP TABLE {second}")
        refreshed.result()
    old, new = (minutes(("A",), MONDAY, 8, add) for add in (0.0, 1.0))
    went = pl.col("day") >= date(2024, 1, 11)
    for _ in range(2):
        assert rollups(shop) == expected(new.filter(~went), old.filter(went))
        other.execute("CALL maintain_storage()")
    assert shop.one(
        "SELECT p.revision = (SELECT max(revision) FROM partition_ledger WHERE asset = p.relation)"
        " FROM summary_progress AS p WHERE relation = 'ohlcv_1m'"
    )
    other.close()


@pytest.mark.parametrize("database", ["timescaledb"], indirect=True)
@pytest.mark.timescaledb
def test_sentiment_outlives_its_scores(shop: Shop) -> None:
    shop.link.execute(
        "INSERT INTO sentiment_scores (document_id, time, available_at, availability_basis, symbol,"
        " channel, source, sentiment, label, confidence, model, model_revision, computed_at,"
        " run_id)"
        " SELECT 'd' || t, t, t, 'observed', 'A', 'news', 'made', 0.5, 'neutral', 0.5, 'm', '1', t,"
        " 'r' FROM generate_series('2024-01-08Z'::timestamptz, '2024-01-12 03:00Z', '1 hour') t"
    )
    shop.link.execute(
        "INSERT INTO partition_ledger SELECT 'sentiment_scores', 'derived', available_at::date,"
        " 'written', count(*), 1, nextval('content_revision'), 0, '1', 1, 'r'"
        " FROM sentiment_scores GROUP BY available_at::date"
    )
    shop.maintain()
    before = shop.rows("SELECT * FROM hourly_sentiment_summary ORDER BY 1")
    assert len(before) == 100
    shop.age("sentiment_scores", "2 years")
    shop.run_jobs("policy_retention", "sentiment_scores")
    shop.maintain()
    assert shop.one("SELECT count(*) FROM sentiment_scores") == 0
    assert shop.rows("SELECT * FROM hourly_sentiment_summary ORDER BY 1") == before
    assert shop.one("SELECT count(*) FROM partition_ledger") == 0


def test_trading_days_are_summed_up(shop: Shop) -> None:
    if shop.one("SELECT to_regclass('trading.trades')") is None:
        pytest.skip("there are no trades here")
    order = shop.one(
        "INSERT INTO trading.orders (symbol, side, order_type, quantity, status, broker)"
        " VALUES ('A', 'buy', 'market', 9, 'pending', 'ibkr') RETURNING id"
    )
    for hour, symbol, pnl in (
        (1, "A", 10), (2, "A", -4), (3, "A", None), (23, "A", 0), (24, "A", 5), (5, "B", None),
    ):  # fmt: skip
        shop.link.execute(
            "INSERT INTO trading.trades (order_id, symbol, side, quantity, price, realized_pnl,"
            " executed_at, broker) VALUES (%s, %s, 'sell', 1, 1, %s,"
            " '2024-01-08Z'::timestamptz + %s * interval '1 hour', 'ibkr')",
            [order, symbol, pnl, hour],
        )
    query = (
        "SELECT time, symbol, trades, winning, losing, total_pnl::float, mean_pnl::float,"
        " min_pnl::float, max_pnl::float FROM daily_trading_summary ORDER BY time, symbol"
    )
    monday = datetime(2024, 1, 8, tzinfo=UTC)
    days = [
        (monday, "A", 4, 1, 1, 6.0, 2.0, -4.0, 10.0),
        (monday, "B", 1, 0, 0, None, None, None, None),
        (monday + timedelta(days=1), "A", 1, 1, 0, 5.0, 5.0, 5.0, 5.0),
    ]
    assert shop.rows(query) == days
    if shop.timescaledb:
        shop.run_jobs("policy_refresh_continuous_aggregate", "daily_trading_summary")
        shop.link.execute("UPDATE trading.trades SET realized_pnl = 7 WHERE symbol = 'B'")
        shop.run_jobs("policy_refresh_continuous_aggregate", "daily_trading_summary")
        assert shop.rows(query) == [days[0], (monday, "B", 1, 1, 0, 7.0, 7.0, 7.0, 7.0), days[2]]
