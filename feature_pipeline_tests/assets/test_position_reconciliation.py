"""Positions, their fills and what brokers hold: compared by day, written, and told."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import polars as pl
import psycopg
import pytest

from feature_pipeline.assets.position_reconciliation import positions_agree
from feature_pipeline.automation.reconciling import reconcile_closed_days
from feature_pipeline.definitions import JOB, build_defs, defs
from feature_pipeline.schemas import POSITION_RECONCILIATION
from feature_pipeline.settings import Settings
from feature_pipeline_tests.assets.support import _QUIET
from feature_pipeline_tests.storage.test_migrations import declared, relation

MONDAY, TUESDAY, WEDNESDAY = date(2024, 6, 3), date(2024, 6, 4), date(2024, 6, 5)
ORDER = "00000000-0000-0000-0000-000000000001"

# Symbol, broker, what was traded, and when.
FILLS = [
    ("AAPL", "ibkr", 60, "2024-06-03 14:00Z"),
    ("AAPL", "ibkr", 40, "2024-06-03 15:00Z"),
    ("MSFT", "ibkr", 50, "2024-06-03 15:00Z"),
    ("MSFT", "ibkr", -50, "2024-06-04 15:00Z"),
    ("NVDA", "ibkr", 5, "2024-06-03 22:00Z"),  # after the day's last snapshot
    ("BTC/USD", "kraken", -20, "2024-06-03 15:00Z"),
    # Exactly nothing, which it is not in floating point.
    ("ETH/USD", "kraken", "0.1", "2024-06-03 15:00Z"),
    ("ETH/USD", "kraken", "0.2", "2024-06-03 15:00Z"),
    ("ETH/USD", "kraken", "-0.3", "2024-06-03 16:00Z"),
]
POSITIONS = [("AAPL", 98), ("MSFT", 0), ("NVDA", 5), ("BTC/USD", -20), ("ETH/USD", 0)]
SNAPSHOTS = [
    ("2024-06-03 14:30Z", "ibkr", "AAPL", 7),  # not the newest one of the day
    ("2024-06-03 20:00Z", "ibkr", "AAPL", 100),
    ("2024-06-03 20:00Z", "ibkr", "MSFT", 50),
    ("2024-06-04 20:00Z", "ibkr", "AAPL", 100),
    ("2024-06-04 20:00Z", "ibkr", "NVDA", 5),
    ("2024-06-04 20:00Z", "kraken", "BTC/USD", "-20.2"),  # 0.99 % more
]


class Desk:
    """A database with the trading side's rows, and the asset on it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.instance = dg.DagsterInstance.ephemeral()
        self.settings = Settings(database_url=url)

    def execute(self, statement: str, rows: list[Any]) -> None:
        with psycopg.connect(self.url) as link, link.cursor() as cursor:
            cursor.executemany(statement, rows)

    def trade(self, fills: list[Any], positions: list[Any], snapshots: list[Any]) -> None:
        self.execute(
            "INSERT INTO trading.orders (id, symbol, side, order_type, quantity, broker)"
            " VALUES (%s, 'AAPL', 'buy', 'market', 1, 'ibkr')",
            [(ORDER,)],
        )
        self.execute(
            "INSERT INTO trading.trades"
            " (order_id, symbol, broker, side, quantity, price, executed_at)"
            f" SELECT '{ORDER}', %s, %s, CASE WHEN q > 0 THEN 'buy' ELSE 'sell' END, abs(q), 1, %s"
            " FROM (SELECT %s::numeric AS q) AS t",
            [(symbol, broker, at, quantity) for symbol, broker, quantity, at in fills],
        )
        self.execute(
            "INSERT INTO trading.positions (symbol, quantity, avg_entry_price, opened_at)"
            " VALUES (%s, %s, 1, '2024-06-03 15:00Z')",
            positions,
        )
        self.execute("INSERT INTO trading.broker_positions VALUES (%s, %s, %s, %s)", snapshots)

    def run(self, day: date, last: date | None = None) -> dg.ExecuteInProcessResult:
        job = build_defs(self.settings).resolve_job_def("reconcile_positions")
        window = {
            "dagster/asset_partition_range_start": day.isoformat(),
            "dagster/asset_partition_range_end": (last or day).isoformat(),
        }
        return job.execute_in_process(instance=self.instance, tags=window, run_config=_QUIET)

    def rows(self, columns: str = "*") -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as link:
            query = f"SELECT {columns} FROM position_reconciliation ORDER BY time, symbol"
            return link.execute(query).fetchall()

    def ledger(self) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as link:
            return link.execute(
                "SELECT day, rows, revision FROM partition_ledger"
                " WHERE asset = 'position_reconciliation' ORDER BY day"
            ).fetchall()


@pytest.fixture
def desk(new_database) -> Iterator[Desk]:
    with new_database() as url:
        yield Desk(url)


def checked(result: dg.ExecuteInProcessResult) -> tuple[bool, dg.AssetCheckSeverity, str]:
    [evaluation] = result.get_asset_check_evaluations()
    assert evaluation.check_name == "positions_agree"
    return evaluation.passed, evaluation.severity, evaluation.description


def told(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    [made, *_] = result.asset_materializations_for_node("position_reconciliation")
    return {key: value.value for key, value in made.metadata.items()}


def test_what_is_apart_is_written_and_told(desk: Desk) -> None:
    # Where nobody trades, its days are empty and all is well.
    result = desk.run(MONDAY)
    assert checked(result)[0]
    assert told(result)["dagster/partition_row_count"] == 0
    assert "Nothing is held" in told(result)["comparison"]

    desk.trade(FILLS, POSITIONS, SNAPSHOTS)

    result = desk.run(MONDAY)
    passed, severity, says = checked(result)
    assert (passed, severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert says == (
        "1 position apart: AAPL on 2024-06-03: 98, its fills come to 100, brokers hold 100; "
        "1 position not compared with kraken: there is no snapshot of that day"
    )
    columns = "symbol, position, traded, held, traded_difference, held_difference, unseen"
    assert desk.rows(columns) == [
        ("AAPL", 98, 100, 100, 0.02, 0.02, []),
        ("BTC/USD", -20, -20, None, 0, None, ["kraken"]),
        ("MSFT", 50, 50, 50, 0, 0, []),  # what was sold since is taken back
        ("NVDA", 5, 5, 5, 0, 0, []),  # the snapshot, and the fill after it
    ]
    said = told(result)
    assert (said["compared"], said["apart"], said["unseen"]) == (4, 1, 1)
    assert "2024-06-03 | AAPL | 98 | 100 | 100 | **2.00%**" in said["comparison"]

    # The same again writes nothing; a day before anything was held is empty.
    before = desk.ledger(), desk.rows("computed_at")
    desk.run(MONDAY)
    assert (desk.ledger(), desk.rows("computed_at")) == before
    assert checked(desk.run(MONDAY - timedelta(days=1)))[0]

    # A position put right, three days at once; of the last one no broker has said anything.
    desk.execute("UPDATE trading.positions SET quantity = %s WHERE symbol = 'AAPL'", [(101,)])
    passed, severity, says = checked(desk.run(MONDAY, WEDNESDAY))
    assert (passed, severity) == (False, dg.AssetCheckSeverity.WARN)
    assert says.startswith("4 positions not compared with ibkr, kraken")
    found = {(day.date(), symbol): held for day, symbol, held in desk.rows("time, symbol, held")}
    assert found[TUESDAY, "BTC/USD"] == -20.2
    assert (TUESDAY, "MSFT") not in found
    assert found[WEDNESDAY, "NVDA"] is None
    assert [rows for _, rows, _ in desk.ledger()] == [0, 4, 3, 3]


def test_the_table_is_what_its_schema_says(migrated_database_url: str) -> None:
    found = relation(migrated_database_url, POSITION_RECONCILIATION.table)
    assert sorted(found) == sorted(declared(POSITION_RECONCILIATION))


def test_it_stands_beside_the_graph() -> None:
    graph = defs.resolve_asset_graph()
    node = graph.get(dg.AssetKey("position_reconciliation"))
    assert not node.child_keys
    assert {key.to_python_identifier() for key in node.parent_keys} == {
        "trades", "positions", "broker_positions",
    }  # fmt: skip
    assert not any(graph.get(key).is_materializable for key in node.parent_keys)
    assert all(graph.get(key).group_name == "trading" for key in (*node.parent_keys, node.key))
    assert "position_reconciliation" not in {n.name for n in defs.resolve_job_def(JOB).nodes}
    assert len(node.description) > 40
    columns = node.metadata["dagster/column_schema"].columns
    assert [c.name for c in columns] == list(POSITION_RECONCILIATION.names)


def test_a_split_parts_nothing(desk: Desk) -> None:
    """Each side in shares of its day, whatever name the trading side has for an instrument."""
    desk.execute(
        "INSERT INTO corporate_actions"
        " SELECT %s, %s, %s, 'assumed', 'split', %s, 'test', now(), ''",
        [
            ("AAPL", TUESDAY, TUESDAY, 4.0),
            ("FB", TUESDAY, TUESDAY, 1 / 3),
            ("AAPL", date(2099, 1, 5), date(2099, 1, 5), 7.0),
            ("NVDA", date(2021, 7, 20), date(2021, 7, 20), 4.0),
        ],
    )
    desk.trade(
        fills=[
            ("AAPL", "ibkr", 90, "2024-06-03 14:00Z"),
            ("AAPL", "ibkr", 10, "2024-06-04 03:59Z"),  # the day before, in New York
            ("AAPL", "ibkr", 40, "2024-06-04 12:00Z"),
            ("META", "ibkr", 99, "2024-06-03 14:00Z"),
            ("META", "ibkr", -33, "2024-06-05 14:00Z"),
            ("NVDA", "ibkr", 5, "2024-06-03 14:00Z"),
            ("XYZ", "ibkr", 5, "2024-06-03 14:00Z"),
        ],
        positions=[("AAPL", 440), ("META", 0), ("NVDA", 5), ("XYZ", 5)],
        snapshots=[
            ("2024-06-03 20:00Z", "ibkr", "AAPL", 90),
            ("2024-06-03 20:00Z", "ibkr", "META", 99),
            ("2024-06-03 20:00Z", "ibkr", "NVDA", 5),
            ("2024-06-03 20:00Z", "ibkr", "XYZ", 5),
            ("2024-06-04 01:00Z", "ibkr", "AAPL", 90),
            ("2024-06-04 01:00Z", "ibkr", "META", 99),
            ("2024-06-04 01:00Z", "ibkr", "NVDA", 5),
            ("2024-06-04 01:00Z", "ibkr", "XYZ", 5),
            ("2024-06-05 20:00Z", "ibkr", "AAPL", 440),
            ("2024-06-05 20:00Z", "ibkr", "NVDA", 5),
            ("2024-06-05 20:00Z", "ibkr", "XYZ", 5),
        ],
    )
    result = desk.run(MONDAY, WEDNESDAY)
    found = {
        (time.date(), symbol): sides
        for time, symbol, *sides in desk.rows("time, symbol, position, traded, held")
    }
    assert found == {
        (MONDAY, "AAPL"): [90] * 3,
        (MONDAY, "META"): [99] * 3,
        (TUESDAY, "AAPL"): [440] * 3,
        (TUESDAY, "META"): [33] * 3,
        (WEDNESDAY, "AAPL"): [440] * 3,
        **dict.fromkeys(itertools.product((MONDAY, TUESDAY, WEDNESDAY), ("NVDA", "XYZ")), [5] * 3),
    }
    assert checked(result)[0]


def test_the_check_says_where_the_rest_is(desk: Desk) -> None:
    names = [f"X{number:03}" for number in range(101)]
    desk.trade([(name, "ibkr", 1, "2024-06-03 15:00Z") for name in names], [], [])
    desk.run(MONDAY)
    with psycopg.connect(desk.url) as link:
        verdict = positions_agree(pl.read_database("SELECT * FROM position_reconciliation", link))
    assert verdict.says.endswith("the first 100 are shown here, all are in position_reconciliation")


def test_the_schedule_asks_for_the_days_that_no_run_has_completed() -> None:
    def asked(instance: dg.DagsterInstance | None) -> tuple[str, str]:
        moment = datetime(2024, 6, 4, 0, 15, tzinfo=UTC)
        with dg.build_schedule_context(
            instance=instance, scheduled_execution_time=moment
        ) as context:
            tags = reconcile_closed_days(context).tags
        return tuple(tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end"))

    assert reconcile_closed_days.default_status == dg.DefaultScheduleStatus.STOPPED
    assert asked(None) == ("2024-06-03", "2024-06-03")

    @dg.op
    def nothing() -> None: ...

    @dg.job(name="reconcile_positions")
    def ran() -> None:
        nothing()

    with dg.instance_for_test() as instance:
        assert asked(instance) == ("2024-06-03", "2024-06-03")
        for last, first in (
            ("2023-06-05", "2024-05-03"),
            ("2024-05-30", "2024-05-31"),
            ("2024-06-03", "2024-06-03"),
        ):
            tags = {
                "dagster/schedule_name": "reconcile_positions",
                "dagster/asset_partition_range_end": last,
            }
            ran.execute_in_process(instance=instance, tags=tags)
            assert asked(instance) == (first, "2024-06-03")
