"""What the tables hold and the room they take, on both servers."""

from __future__ import annotations

from datetime import date

import psycopg

from feature_pipeline.storage.database import Database
from feature_pipeline.storage.usage import partitions, relations, schema_size
from feature_pipeline_tests.roles import logins
from feature_pipeline_tests.storage.support import Desk, bars, fetched, run_means

DAYS = (date(2019, 4, 1), date(2020, 2, 1))


def test_rows_days_and_rejections_by_asset(desk: Desk) -> None:
    frame = bars(["A", "BB"]).with_columns(symbol="symbol")
    desk.write("ohlcv_1d", fetched(frame.head(30), "A", "BB"), symbols=["A", "BB"])
    found = {row["asset"]: row for row in partitions(desk.store.database).to_dicts()}
    row = found.pop("ohlcv_1d")
    assert row["rows"] == 30
    assert (row["days"], row["first"]) == (31, date(2020, 1, 1))
    assert row["exceptions"] == desk.one("SELECT count(*) FROM partition_exceptions") > 0
    assert row["quarantined"] == 0
    assert found == {}


def test_sizes_add_up_whatever_the_server(desk: Desk) -> None:
    everybody = ["A", "BB", "CCC"]
    desk.write("ohlcv_1d", fetched(bars(everybody, DAYS), *everybody), DAYS)
    run_means(desk)
    database, tables = desk.store.database, desk.store.tables
    found = {row["table"]: row for row in relations(database, tables).to_dicts()}
    assert found["ohlcv_1d"]["rows"] == desk.one("SELECT count(*) FROM ohlcv_1d")
    assert found["partition_ledger"]["rows"] == desk.one("SELECT count(*) FROM partition_ledger")
    for row in found.values():
        assert row["heap"] + row["indexes"] + row["toast"] == row["total"], row
    assert found["ohlcv_1d"]["heap"] > 0
    assert found["ohlcv_1d"]["indexes"] > 0
    hypertables = desk.one("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'")
    # A chunk ends on 14 April 2019.
    assert found["ohlcv_1d"]["chunks"] == (2 if hypertables else None)
    compressed = 2 if desk.compressed else 0
    assert found["ohlcv_1d"]["compressed"] == (compressed if hypertables else None)
    summaries = {name for name, row in found.items() if row["kind"] == "summary"}
    assert ("hourly_sentiment_summary" in summaries) == bool(hypertables)
    assert found["quarantine"]["chunks"] is None


EVERYTHING = """
    SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND n.nspname IN ('public', 'trading', 'config', 'audit',
        CASE WHEN EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
        THEN '_timescaledb_internal' END)
        AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND deptype = 'e')
"""


def test_every_table_of_ours_is_there(desk: Desk) -> None:
    desk.write("ohlcv_1d", fetched(bars(["A"], DAYS), "A"), DAYS)
    with desk.store.database.connection() as connection:
        connection.execute(
            "INSERT INTO audit.system_events (timestamp, event_type, component, message)"
            " VALUES ('2020-03-01Z', 'start', 'agent', repeat('up', 10000)), (now(), 'a', 'b', 'c')"
        )
        connection.execute("SELECT audit.make_partitions()")
    frame = relations(desk.store.database, desk.store.tables)
    found = {row["table"]: row for row in frame.to_dicts()}
    kinds = {name: row["kind"] for name, row in found.items()}
    assert kinds.items() >= {
        "trading.trades": "trading", "config.risk_limits": "config", "audit.decisions": "audit",
        "position_reconciliation": "data", "dropped_days": "bookkeeping",
        "collected_for": "bookkeeping", "write_reports": "bookkeeping",
    }.items()  # fmt: skip
    # The partitions of a log are part of it; a month that was taken out of it is not.
    assert not any(name.startswith("audit.system_events_") for name in found)
    events = found["audit.system_events"]
    assert events["rows"] == 2
    assert events["heap"] > 0
    with desk.store.database.connection() as connection:
        connection.execute("SELECT audit.detach_partition('system_events_2020_03')")
    again = relations(desk.store.database, desk.store.tables, "audit")
    assert again.filter(table="audit.system_events_2020_03")["rows"].item() == 1
    assert set(again["kind"]) == {"audit"}
    assert frame["total"].sum() == desk.one(EVERYTHING)


def test_what_may_not_be_read_is_not_counted(migrated_database_url: str) -> None:
    with psycopg.connect(migrated_database_url) as link:
        link.execute("CREATE TABLE mine (n int)")
        link.execute("REVOKE ALL ON mine FROM feature_pipeline_reader")
    with logins(migrated_database_url) as users, Database(users["reader"]) as reader:
        found = {row["table"]: row for row in relations(reader, {}).to_dicts()}
    assert found["mine"]["rows"] is None
    assert found["trading.trades"]["rows"] == 0


def test_the_size_of_a_schema(migrated_database_url: str) -> None:
    plain = schema_size(migrated_database_url)
    assert plain is not None
    assert plain > 100_000
    assert schema_size(migrated_database_url.replace("postgresql", "postgresql+psycopg2")) == plain
    assert schema_size(migrated_database_url + "?options=-csearch_path%3Dnowhere") in (0, None)
    assert schema_size("postgresql://u:hidden@127.0.0.1:1/db") is None
