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
from feature_pipeline.errors import SourceError
from feature_pipeline.features.coarser import coarser
from feature_pipeline.schemas import Fetched
from feature_pipeline.storage import retention
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.storage.store import Store, WritePlan
from feature_pipeline.timeframes import DAILY, MADE_OF
from feature_pipeline.universe import Instrument, Universe

MINUTES = "ohlcv_1m"

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
    of_minutes = MADE_OF.get(timeframe) in timeframes
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
    first, end = plan.window
    # A bar that is under way at midnight has minutes of the next day.
    minutes = store.read(MINUTES, start=first, end=end + timedelta(days=1), symbols=plan.symbols)
    minutes = minutes.join(_asked_now(store.universe), on=["symbol", "source"], how="semi")
    grid = store.universe.bars(timeframe, first, end, plan.symbols)
    bars = coarser(minutes, grid)
    of = ["symbol", "session"]
    newest = minutes.group_by(of).agg(newest=pl.col("time").max() + timedelta(minutes=1))
    closes = grid.group_by(of).agg(closes=pl.col("end").max())
    over = pl.col("closes") + store.publication_delay + ANSWERED_WITHIN
    asked = store.ledger.written_at(MINUTES, first, end)
    # Others were asked for then; whoever has an exception was, and did not answer.
    unanswered = store.ledger.exceptions(MINUTES, first, end).select(
        "symbol", "day", answered=pl.lit(value=False)
    )
    bars = bars.with_columns(day=pl.col("time").dt.date())
    return (
        bars.join(newest, on=of, how="left")
        .join(closes, on=of, how="left")
        .join(asked, on="day", how="left")
        .join(unanswered.unique(), on=["symbol", "day"], how="left")
        .filter(
            (pl.col("end") <= pl.col("newest"))
            | ((pl.col("written_at") >= over) & pl.col("answered").fill_null(value=True))
        )
        .select(minutes.columns)
    )


def _asked_now(universe: Universe) -> pl.DataFrame:
    """`symbol`, `source` of whose bars are asked for: rows of a batch are its provider's."""
    named = {i.id: i.source.bars for i in universe.instruments}
    return pl.DataFrame({"symbol": list(named), "source": list(named.values())})


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
    try:
        answer = source.bars(
            [i for i in instruments if i.id in lacking["symbol"]],
            days[0],
            days[-1] + timedelta(days=1),
            timeframe,
        )
    except SourceError as error:
        if own.is_empty():
            raise
        # What is made of minutes does not wait for whoever cannot tell of the others.
        failed = dict.fromkeys(lacking["symbol"].unique().sort(), str(error))
        answer = Fetched(own.clear(), failed)
    day = pl.col("time").dt.date()
    others = answer.frame.with_columns(day=day).join(held, on=["symbol", "day"], how="anti")
    frame = pl.concat([own, others.drop("day")], how="diagonal_relaxed")
    return replace(answer, frame=frame, asked=asked)
