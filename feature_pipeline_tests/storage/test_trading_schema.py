"""The trading side's tables: what they take and what they refuse; the logs' partitions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from psycopg import errors
from typer.testing import CliRunner

from feature_pipeline.cli import app
from feature_pipeline.storage import audit_log, migrations
from feature_pipeline.storage.database import Database
from feature_pipeline_tests.storage.test_migrations import relation

ORDER = {"symbol": "AAPL", "side": "buy", "order_type": "market", "quantity": 10, "broker": "ibkr"}
TRADE = {"symbol": "AAPL", "side": "buy", "quantity": 10, "price": 5, "broker": "ibkr"}
EVENT = {"event_type": "start", "component": "agent", "message": "up"}


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection[Any]]:
    with database.dedicated() as opened:
        yield opened


def insert(connection: psycopg.Connection[Any], table: str, **row: object) -> Any:
    """The row as it is then, by column."""
    with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        names = ", ".join(f'"{name}"' for name in row)
        values = ", ".join(["%s"] * len(row))
        cursor.execute(
            f"INSERT INTO {table} ({names}) VALUES ({values}) RETURNING *", list(row.values())
        )
        return cursor.fetchone()


def test_every_column_that_readers_are_promised_is_there(migrated_database_url: str) -> None:
    promised = {
        "trading.orders": "id symbol side order_type quantity price status broker broker_order_id"
        " strategy_id created_at updated_at filled_at filled_qty avg_fill_price commission",
        "trading.trades": "id order_id symbol side quantity price commission realized_pnl"
        " executed_at broker",
        "trading.positions": "symbol quantity avg_entry_price current_price unrealized_pnl"
        " realized_pnl opened_at updated_at",
        "trading.broker_positions": "taken_at broker symbol quantity",
        "config.strategies": "id name enabled params allowed_symbols regime_filter max_positions"
        " created_at updated_at",
        "config.risk_limits": "key value description updated_at updated_by",
        "audit.decisions": "id timestamp decision_type symbol signals risk_check final_action"
        " reasoning order_id",
        "audit.system_events": "id timestamp event_type severity component message metadata",
        "feature_definitions": "name version description data_type category source_table"
        " computation dependencies lookback_bars tags is_active created_at",
        "feature_sets": "name version features description created_at",
    }
    for table, columns in promised.items():
        assert [name for name, _, _ in relation(migrated_database_url, table)] == columns.split()
    kinds = {name: kind for name, kind, _ in relation(migrated_database_url, "trading.orders")}
    assert kinds["quantity"] == kinds["price"] == "numeric(18,8)"
    assert kinds["symbol"] == "character varying(20)"
    with psycopg.connect(migrated_database_url) as connection:
        indexed = connection.execute(
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'trading' AND tablename = 'orders'"
        ).fetchall()
    for columns in ("(symbol, created_at)", "(status)", "(strategy_id, created_at)"):
        assert any(definition.endswith(columns) for (definition,) in indexed), columns


STRATEGY = {"id": "s", "name": "s"}
NAN = Decimal("NaN")
POSITION = {"symbol": "AAPL", "quantity": 1, "avg_entry_price": 1}
WRONG = [
    ("trading.orders", ORDER, {"side": "hold"}),
    ("trading.orders", ORDER, {"order_type": "iceberg"}),
    ("trading.orders", ORDER, {"status": "lost"}),
    ("trading.orders", ORDER, {"broker": "alpaca"}),
    ("trading.orders", ORDER, {"quantity": 0}),
    ("trading.orders", ORDER, {"quantity": NAN}),
    ("trading.orders", ORDER, {"avg_fill_price": NAN}),
    ("trading.orders", ORDER, {"commission": NAN}),
    ("trading.orders", ORDER, {"price": 5}),  # of a market order
    ("trading.orders", ORDER, {"order_type": "limit"}),  # without a price
    ("trading.orders", ORDER, {"filled_qty": 11}),
    ("trading.orders", ORDER, {"status": "filled"}),  # when, at what price?
    ("trading.positions", POSITION, {"quantity": NAN}),
    ("trading.positions", POSITION, {"avg_entry_price": NAN}),
    ("trading.positions", POSITION, {"current_price": NAN}),
    ("trading.positions", POSITION, {"unrealized_pnl": NAN}),
    ("trading.positions", POSITION, {"realized_pnl": NAN}),
    ("config.strategies", STRATEGY, {"params": "[]"}),
    ("config.strategies", STRATEGY, {"regime_filter": ["bull"]}),
    ("audit.system_events", EVENT, {"severity": "fatal"}),
]


def test_what_makes_no_sense_is_refused(migrated_database_url: str) -> None:
    with psycopg.connect(migrated_database_url) as connection:
        for table, row, wrong in WRONG:
            with pytest.raises(errors.CheckViolation), connection.transaction():
                insert(connection, table, **{**row, **wrong})
            with connection.transaction() as done:
                insert(connection, table, **row)
                raise psycopg.Rollback(done)


def test_orders_and_their_fills(connection: psycopg.Connection[Any]) -> None:
    """On both servers: fills are a hypertable whose rows refer to orders."""
    order = insert(connection, "trading.orders", **ORDER)
    assert (order["status"], order["filled_qty"]) == ("pending", 0)
    monday = datetime(2024, 6, 3, 15, tzinfo=UTC)
    for hours, pnl in ((0, None), (1, 5), (2, -2), (30, 4)):
        at = monday + timedelta(hours=hours)
        insert(
            connection, "trading.trades",
            **TRADE, order_id=order["id"], executed_at=at, realized_pnl=pnl,
        )  # fmt: skip
    for name in ("quantity", "price", "commission", "realized_pnl"):
        wrong = {**TRADE, "order_id": order["id"], "executed_at": monday, name: NAN}
        with pytest.raises(errors.CheckViolation):
            insert(connection, "trading.trades", **wrong)
    nobody = "00000000-0000-0000-0000-000000000000"
    with pytest.raises(errors.ForeignKeyViolation):
        insert(connection, "trading.trades", **TRADE, order_id=nobody, executed_at=monday)
    with pytest.raises(errors.ForeignKeyViolation):
        connection.execute("DELETE FROM trading.orders")
    # By UTC day: what is still open counts among the trades alone.
    summary = connection.execute(
        "SELECT time, symbol, trades, winning, losing, total_pnl, mean_pnl, min_pnl, max_pnl"
        " FROM daily_trading_summary ORDER BY time"
    ).fetchall()
    assert summary == [
        (datetime(2024, 6, 3, tzinfo=UTC), "AAPL", 3, 1, 1, 3, Decimal("1.5"), -2, 5),
        (datetime(2024, 6, 4, tzinfo=UTC), "AAPL", 1, 1, 0, 4, 4, 4, 4),
    ]
    # An update that says nothing of when was made now; one that does is believed.
    old = "UPDATE trading.orders SET updated_at = '2020-01-01Z' RETURNING updated_at"
    assert connection.execute(old).fetchone() == (datetime(2020, 1, 1, tzinfo=UTC),)
    now = (
        "UPDATE trading.orders SET status = 'sent' RETURNING updated_at > now() - '1 min'::interval"
    )
    assert connection.execute(now).fetchone() == (True,)


def test_what_is_no_trade_is_entered_as_the_page_says(connection: psycopg.Connection[Any]) -> None:
    page = Path(__file__).parents[2] / "docs/how-to/trading-tables.md"
    [entry] = re.findall(r"```sql\n(-- 250 .*?)```", page.read_text("utf-8"), re.DOTALL)
    connection.execute(entry)
    fills = connection.execute("SELECT symbol, side, quantity, price FROM trading.trades")
    assert fills.fetchall() == [("KO", "buy", 250, 0)]


def test_nan_that_is_there_is_named_by_the_migration(
    connection: psycopg.Connection[Any],
) -> None:
    statements = (migrations.SQL / "0018_repairs.sql").read_text("utf-8")
    checks = connection.execute(
        "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE conname ~"
        " '^(orders|trades|positions)_(.*price|commission|.*pnl)$' AND conname !~"
        " '^(orders_price|trades_price|trades_realized_pnl)$'"
        " AND connamespace = 'trading'::regnamespace"
    ).fetchall()
    assert len(checks) == 7
    for table, check in checks:
        connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {check}")
    insert(connection, "trading.positions", **POSITION | {"unrealized_pnl": NAN})
    with pytest.raises(
        errors.RaiseException, match=r"trading.positions.unrealized_pnl is NaN in 1"
    ):
        connection.execute(statements)
    connection.execute("UPDATE trading.positions SET unrealized_pnl = NULL")
    connection.execute(statements)


def partitions(connection: psycopg.Connection[Any]) -> list[str]:
    rows = connection.execute(
        "SELECT inhrelid::regclass::text FROM pg_inherits"
        " WHERE inhparent IN ('audit.decisions'::regclass, 'audit.system_events'::regclass)"
        " ORDER BY 1"
    )
    return [name for (name,) in rows]


def test_the_logs_have_a_partition_for_every_row(database: Database, tmp_path: Path) -> None:
    """Made ahead, made for what came unexpectedly; exported and taken out after a year."""
    with database.dedicated() as connection:
        made = len(partitions(connection))
        assert made == 2 * (13 + 1)
        for when in ("2020-02-29 23:00Z", "2020-03-01Z", "2020-03-31 23:59Z", "2100-01-01Z"):
            insert(
                connection, "audit.system_events",
                **EVENT, timestamp=when, metadata='{"n": [1, null]}',
            )  # fmt: skip
        insert(connection, "audit.system_events", **EVENT)
        insert(
            connection, "audit.decisions", timestamp="2020-03-05Z", decision_type="entry",
            final_action="buy", reasoning="it said \x1f so", signals='{"rsi": 0.3}',
        )  # fmt: skip
        dry = audit_log.upkeep(database, tmp_path, dry_run=True)
        assert not list(tmp_path.iterdir())
        assert len(partitions(connection)) == made
        done = audit_log.upkeep(database, tmp_path)
        assert len(done.made) == 2 + 1 + 1  # 2020-02 and -03 and 2100-01, 2020-03
        assert dry.archived == ()  # what waits in the default partition is no partition yet
        assert [(a.partition, a.rows) for a in done.archived] == [
            ("decisions_2020_03", 1),
            ("system_events_2020_02", 1),
            ("system_events_2020_03", 2),
        ]
        assert len(partitions(connection)) == made + 1
        left = connection.execute("SELECT count(*) FROM audit.system_events").fetchone()
        assert left == (2,)
        # The tables stay, by their names, until somebody drops them.
        rest = connection.execute("SELECT count(*) FROM audit.system_events_2020_03").fetchone()
        assert rest == (2,)
        assert audit_log.upkeep(database, tmp_path) == audit_log.Upkeep((), ())
        month = datetime.now(UTC).strftime("%Y_%m")
        with pytest.raises(errors.RaiseException, match="not older than a year"):
            connection.execute("SELECT audit.detach_partition(%s)", [f"decisions_{month}"])
        for name in ("decisions", "orders_2020_01", "decisions_2019_01", 'x"; DROP TABLE y'):
            with pytest.raises(errors.RaiseException, match="no partition"):
                connection.execute("SELECT audit.detach_partition(%s)", [name])
    files = pl.read_parquet(tmp_path / "system_events", hive_partitioning=True)
    assert files["month"].to_list() == ["2020-02", "2020-03", "2020-03"]
    assert files["timestamp"].to_list() == [
        datetime(2020, 2, 29, 23, tzinfo=UTC),
        datetime(2020, 3, 1, tzinfo=UTC),
        datetime(2020, 3, 31, 23, 59, tzinfo=UTC),
    ]
    assert files["metadata"].to_list() == ['{"n": [1, null]}'] * 3
    decision = pl.read_parquet(tmp_path / "decisions/month=2020-03/decisions.parquet")
    assert decision["reasoning"].to_list() == ["it said \x1f so"]


def test_nothing_is_taken_out_that_was_not_exported(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.dedicated() as connection:
        insert(connection, "audit.system_events", **EVENT, timestamp="2020-03-01Z")
        connection.execute("SELECT audit.make_partitions()")
        write = audit_log._write

        def late(rows: pl.DataFrame, path: Path) -> None:
            write(rows, path)
            insert(connection, "audit.system_events", **EVENT, timestamp="2020-03-02Z")

        monkeypatch.setattr(audit_log, "_write", late)
        with pytest.raises(audit_log.ArchiveError, match=r"system_events_2020_03 .* again"):
            audit_log.upkeep(database, tmp_path)
        assert "audit.system_events_2020_03" in partitions(connection)
        # A directory that cannot be written to: one line, and everything is where it was.
        monkeypatch.undo()
        file = tmp_path / "file"
        file.touch()
        with pytest.raises(audit_log.ArchiveError, match="file"):
            audit_log.upkeep(database, file)
        assert "audit.system_events_2020_03" in partitions(connection)
        assert [a.rows for a in audit_log.upkeep(database, tmp_path).archived] == [2]


def test_rows_that_come_late_are_archived_beside_what_is_there(
    database: Database, tmp_path: Path
) -> None:
    with database.dedicated() as connection:

        def upkeep_after(message: str) -> list[audit_log.Archived]:
            late = {**EVENT, "message": message, "timestamp": "2020-03-02Z"}
            insert(connection, "audit.system_events", **late)
            return list(audit_log.upkeep(database, tmp_path).archived)

        folder = tmp_path / "system_events/month=2020-03"
        assert [a.rows for a in upkeep_after("first")] == [1]
        # Into the table that is still there, which is archived whole.
        assert [(a.rows, a.path.name) for a in upkeep_after("second")] == [
            (2, "system_events.parquet")
        ]
        assert "audit.system_events_2020_03" not in partitions(connection)
        # Where it was dropped the file is all there is of the month.
        connection.execute("DROP TABLE audit.system_events_2020_03")
        beside = [(1, "system_events-2.parquet")]
        assert [(a.rows, a.path.name) for a in upkeep_after("third")] == beside
        # Killed before it was detached, and run again: the same file.
        connection.execute(
            "ALTER TABLE audit.system_events ATTACH PARTITION audit.system_events_2020_03"
            " FOR VALUES FROM ('2020-03-01Z') TO ('2020-04-01Z')"
        )
        again = audit_log.upkeep(database, tmp_path, dry_run=True).archived
        assert [(a.rows, a.path.name) for a in again] == beside
        again = audit_log.upkeep(database, tmp_path).archived
        assert [(a.rows, a.path.name) for a in again] == beside
        left = connection.execute("SELECT count(*) FROM audit.system_events").fetchone()
        assert left == (0,)
    files = pl.read_parquet(folder)
    assert sorted(files["message"]) == ["first", "second", "third"]
    assert files["id"].n_unique() == 3


def test_the_command_says_what_it_did(
    migrated_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PIPELINE_DATABASE_URL", migrated_database_url)
    monkeypatch.setenv("FEATURE_PIPELINE_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("FEATURE_PIPELINE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    with psycopg.connect(migrated_database_url) as connection:
        insert(connection, "audit.system_events", **EVENT, timestamp="2020-03-01Z")

    def said(*words: str) -> str:
        done = CliRunner().invoke(app, ["upkeep", *words])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "audit.system_events_2020_03: would be made" in said("--dry-run")
    assert list(tmp_path.iterdir()) == []
    done = json.loads(said("--json"))
    path = tmp_path / "archive/system_events/month=2020-03/system_events.parquet"
    assert done["made"] == ["audit.system_events_2020_03"]
    assert done["archived"] == [
        {"partition": "system_events_2020_03", "rows": 1, "path": str(path)}
    ]
    assert path.is_file()
    assert "nothing to do" in said()
