"""What the tables hold and the room they take, on both servers."""

from __future__ import annotations

from datetime import date

from feature_pipeline.storage.usage import partitions, relations, schema_size
from feature_pipeline_tests.storage.support import Desk, bars, fetched, run_means

DAYS = (date(2019, 12, 2), date(2020, 2, 1))


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
    # The bars of two years lie in two chunks.
    assert found["ohlcv_1d"]["chunks"] == (2 if hypertables else None)
    compressed = 2 if desk.compressed else 0
    assert found["ohlcv_1d"]["compressed"] == (compressed if hypertables else None)
    summaries = {name for name, row in found.items() if row["kind"] == "summary"}
    assert ("hourly_sentiment_summary" in summaries) == bool(hypertables)
    assert found["quarantine"]["chunks"] is None


def test_the_size_of_a_schema(migrated_database_url: str) -> None:
    plain = schema_size(migrated_database_url)
    assert plain is not None
    assert plain > 100_000
    assert schema_size(migrated_database_url.replace("postgresql", "postgresql+psycopg2")) == plain
    assert schema_size(migrated_database_url + "?options=-csearch_path%3Dnowhere") in (0, None)
    assert schema_size("postgresql://u:hidden@127.0.0.1:1/db") is None
