"""Positions compared with their fills and with what brokers hold, beside the graph.

What is compared, and how it is written, is `storage/positions.py`'s; here is what Dagster is told:
the asset, the tables that it reads, and its check. Nothing depends on it, and no job of the graph
runs it: that is `automation/reconciling.py`'s.
"""

from datetime import timedelta

import dagster as dg
import polars as pl

from feature_pipeline.assets.checks import description, result
from feature_pipeline.assets.declare import STORAGE, tags
from feature_pipeline.assets.pools import DATABASE
from feature_pipeline.assets.verdicts import Verdict, first_of, many
from feature_pipeline.partitions import DAILY, window
from feature_pipeline.schemas import POSITION_RECONCILIATION as TABLE
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.storage.positions import reconcile

LIMIT = 0.01
"""How far two sides may lie apart, as a share of the larger one."""

CODE_VERSION = "2"

_OWNERS = ["team:trading"]
_TOLD = 100
"""Rows that the check shows, and the asset; the table has all."""


def _trading(key: str, what: str) -> dg.AssetSpec:
    """A table that the trading side writes: seen in the lineage, made by no run."""
    return dg.AssetSpec(
        key=key,
        group_name="trading",
        owners=_OWNERS,
        kinds={"postgres"},
        tags={"layer": "source", "write_mode": "by-others"},
        description=what,
        metadata={"dagster/table_name": f"trading.{key}"},
    )


TRADING_TABLES = (
    _trading("trades", "Fills of orders, as the trading side notes them down in `trading.trades`."),
    _trading("positions", "What the trading side holds by its own account: `trading.positions`."),
    _trading(
        "broker_positions",
        "What brokers say that they hold, snapshot by snapshot: `trading.broker_positions`.",
    ),
)


def positions_agree(rows: pl.DataFrame) -> Verdict:
    """No position is more than 1 % apart from the sum of its fills, or from what brokers hold.

    A broker that a symbol was traded with and that has no snapshot of the day is a warning: nobody
    knows what it holds.

    Args:
        rows: of `position_reconciliation`.
    """
    apart = pl.max_horizontal("traded_difference", "held_difference") > LIMIT
    wrong = rows.filter(apart).sort("time", "symbol")
    unseen = rows.filter(pl.col("held").is_null() & ~apart)
    numbers = {"compared": rows.height, "apart": wrong.height, "unseen": unseen.height}
    said = []
    if wrong.height:
        told = [_told(row) for row in wrong.head(_TOLD).iter_rows(named=True)]
        said.append(f"{many(wrong.height, 'position')} apart: {first_of(told, wrong.height)}")
    if unseen.height:
        brokers = sorted(set(unseen["unseen"].explode().drop_nulls())) or ["any broker"]
        said.append(
            f"{many(unseen.height, 'position')} not compared with {', '.join(brokers)}: "
            "there is no snapshot of that day"
        )
    if wrong.height + unseen.height > _TOLD:
        said.append(f"the first {_TOLD} are shown here, all are in {TABLE.table}")
    names = ("time", "symbol", "position", "traded", "held")
    shown = pl.concat([wrong, unseen]).head(_TOLD).select(pl.col("time").dt.date(), *names[1:])
    return Verdict(
        not said,
        "; ".join(said) or f"{many(rows.height, 'position')} compared, none apart",
        error=wrong.height > 0,
        shown=shown,
        numbers=numbers,
    )


def _told(row: dict[str, object]) -> str:
    held = "" if row["held"] is None else f", brokers hold {row['held']:.8g}"
    return (
        f"{row['symbol']} on {row['time']:%Y-%m-%d}: {row['position']:.8g}, its fills come to "
        f"{row['traded']:.8g}{held}"
    )


def _column_schema() -> dg.TableSchema:
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=c.name,
                type=c.sql_type,
                description=f"{c.description} [{c.unit}]" if c.unit else c.description,
                constraints=dg.TableColumnConstraints(nullable=c.nullable),
            )
            for c in TABLE.columns
        ]
    )


@dg.asset(
    name=TABLE.asset,
    group_name="trading",
    owners=_OWNERS,
    kinds={"polars", "postgres"},
    tags=tags(TABLE),
    code_version=CODE_VERSION,
    io_manager_key=STORAGE,
    partitions_def=DAILY,
    deps=[table.key for table in TRADING_TABLES],
    metadata={"dagster/table_name": TABLE.table, "dagster/column_schema": _column_schema()},
    pool=DATABASE,
    retry_policy=dg.RetryPolicy(max_retries=2, delay=1, backoff=dg.Backoff.EXPONENTIAL),
    check_specs=[
        dg.AssetCheckSpec(
            positions_agree.__name__, asset=TABLE.asset, description=description(positions_agree)
        )
    ],
)
def position_reconciliation(
    context: dg.AssetExecutionContext, storage: dg.ResourceParam[StorageIOManager]
) -> dg.MaterializeResult:
    """Each position against the sum of its fills and against what the brokers hold, at the end of
    the day: the newest snapshot of that day, with the fills after it.

    What the trading side has not touched by then is not there; a day without any has no rows.
    """
    start, end = window(context.partition_time_window)
    rows = reconcile(
        storage.store, start, end, run_id=context.run.run_id, code_version=CODE_VERSION
    )
    verdict = positions_agree(rows)
    one_day = end - start == timedelta(days=1)
    return dg.MaterializeResult(
        metadata={
            **verdict.numbers,
            "comparison": dg.MetadataValue.md(_table(rows)),
            **({"dagster/partition_row_count": rows.height} if one_day else {}),
        },
        check_results=[result(positions_agree.__name__, TABLE.asset, verdict)],
    )


def _table(rows: pl.DataFrame) -> str:
    """The newest days' comparisons, those that are furthest apart first."""
    if rows.is_empty():
        return "Nothing is held, and nothing was traded."
    newest = rows.sort(
        "time",
        pl.max_horizontal("traded_difference", "held_difference"),
        "symbol",
        descending=[True, True, False],
    ).head(_TOLD)
    lines = [
        "day | symbol | position | fills | brokers | apart",
        "--- | --- | --- | --- | --- | ---",
    ]
    lines += [_line(row) for row in newest.iter_rows(named=True)]
    if rows.height > _TOLD:
        lines.append(f"\n{rows.height - _TOLD} more are in {TABLE.table}")
    return "\n".join(lines)


def _line(row: dict[str, object]) -> str:
    held = "not known" if row["held"] is None else f"{row['held']:.8g}"
    apart = max(float(row[f"{side}_difference"] or 0) for side in ("traded", "held"))  # type: ignore[arg-type]
    symbol = str(row["symbol"]).replace("|", "\\|")
    return (
        f"{row['time']:%Y-%m-%d} | {symbol} | {row['position']:.8g} | {row['traded']:.8g} | "
        f"{held} | {'**' if apart > LIMIT else ''}{apart:.2%}{'**' if apart > LIMIT else ''}"
    )
