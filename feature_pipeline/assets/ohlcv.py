"""Bars as traded: a provider's, or, of five minutes and an hour, made of its minutes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import dagster as dg
import polars as pl

from feature_pipeline import partitions
from feature_pipeline.assets.declare import fetch, table_asset
from feature_pipeline.assets.pools import places
from feature_pipeline.features.coarser import coarser
from feature_pipeline.schemas import Fetched
from feature_pipeline.storage import retention
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.storage.store import Store, WritePlan
from feature_pipeline.timeframes import DAILY
from feature_pipeline.universe import Instrument, Universe

MINUTES = "ohlcv_1m"
MADE_OF_MINUTES = ("5m", "1h")

ANSWERED_WITHIN = timedelta(minutes=5)
"""Minutes that were written so long after a close were asked for after it."""

_DAILY = """Daily open, high, low, close and volume of every instrument, exactly as traded.

A provider's back-adjustment is undone; splits and dividends live in `corporate_actions`.
A bar is available at its session's close plus the source's publication delay. A restated bar
replaces the old one, which moves to `ohlcv_1d_history`.
"""

_INTRADAY = """Open, high, low, close and volume of every {timeframe} bar, exactly as traded.

Bars follow each other from the session's open on, and anew after a break. One is available at its
end plus the source's publication delay; what is not over is dropped. A provider has no bar of a
minute without a trade, and no row is made of one. A restated bar replaces the old one, which moves
to `ohlcv_{timeframe}_history`.
"""

_OF_MINUTES = """
Where `ohlcv_1m` has a session's minutes the bars are made of those; else the provider is asked.
"""


def ohlcv(timeframe: str, timeframes: Sequence[str] = (DAILY,)) -> dg.AssetsDefinition:
    """The asset of a timeframe, in a deployment of `timeframes`."""
    of_minutes = timeframe in MADE_OF_MINUTES and "1m" in timeframes
    said = _DAILY if timeframe == DAILY else _INTRADAY.format(timeframe=timeframe)
    declared = table_asset(f"ohlcv_{timeframe}", group="inputs")
    if of_minutes:
        said += _OF_MINUTES
        declared["deps"] = [*declared["deps"], MINUTES]

    @dg.asset(**declared, description=said)
    def asset(
        context: dg.AssetExecutionContext,
        storage: dg.ResourceParam[StorageIOManager],
        universe: dg.ResourceParam[Universe],
        sources: dg.ResourceParam[Mapping[str, Any]],
    ) -> dict[str, Fetched]:
        first, _ = partitions.window(context.partition_time_window)
        today = storage.store.clock().date()
        refused = retention.refusal(storage.store.database, f"ohlcv_{timeframe}", first, today)
        if refused:
            raise dg.Failure(refused, allow_retries=False)
        plan = storage.plan(context)
        made = _of_minutes(storage.store, plan, timeframe) if of_minutes else None

        def ask(source: Any, instruments: Sequence[Instrument]) -> Fetched:
            if made is None:
                return source.bars(instruments, *plan.window, timeframe)
            return _with_minutes(storage.store, plan, source, instruments, made, timeframe)

        return fetch(places(context), plan, universe, sources, "bars", ask)

    return asset


def _of_minutes(store: Store, plan: WritePlan, timeframe: str) -> pl.DataFrame:
    """The plan's bars that minutes of ours say all of: those after which the symbol has traded
    again in the session, and those of sessions that were asked for when they were over."""
    minutes = store.read(MINUTES, start=plan.window[0], end=plan.window[1])
    grid = store.universe.bars(timeframe, *plan.window)
    bars = coarser(minutes, grid)
    of = ["symbol", "session"]
    newest = minutes.group_by(of).agg(newest=pl.col("time").max() + timedelta(minutes=1))
    closes = grid.group_by(of).agg(closes=pl.col("end").max())
    asked = store.ledger.written_at(MINUTES, *plan.window)
    over = pl.col("closes") + store.publication_delay + ANSWERED_WITHIN
    return (
        bars.join(newest, on=of, how="left")
        .join(closes, on=of, how="left")
        .join(asked, left_on=pl.col("time").dt.date(), right_on="day", how="left")
        .filter((pl.col("end") <= pl.col("newest")) | (pl.col("written_at") >= over))
        .select(minutes.columns)
    )


def _with_minutes(
    store: Store,
    plan: WritePlan,
    source: Any,
    instruments: Sequence[Instrument],
    made: pl.DataFrame,
    timeframe: str,
) -> Fetched:
    """The bars that were made of minutes, and the provider's of the days that have none."""
    asked = tuple(i.id for i in instruments)
    own = made.filter(pl.col("symbol").is_in(asked))
    held = own.select("symbol", day=pl.col("time").dt.date()).unique()
    begun = store.universe.session_days(*plan.window, asked)
    begun = begun.filter(pl.col("since") <= store.clock()).select("symbol", "day").unique()
    lacking = begun.join(held, on=["symbol", "day"], how="anti")
    if lacking.is_empty():
        return Fetched(own, {}, asked)
    days = lacking["day"].sort()
    answer = source.bars(
        [i for i in instruments if i.id in lacking["symbol"]],
        days[0],
        days[-1] + timedelta(days=1),
        timeframe,
    )
    day = pl.col("time").dt.date()
    others = answer.frame.with_columns(day=day).join(held, on=["symbol", "day"], how="anti")
    own = own.filter(~pl.col("symbol").is_in(list(answer.failed)))
    frame = pl.concat([own, others.drop("day")], how="diagonal_relaxed")
    return replace(answer, frame=frame, asked=asked)
