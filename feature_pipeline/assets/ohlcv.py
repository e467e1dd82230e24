"""Bars as traded."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from feature_pipeline import partitions
from feature_pipeline.assets.declare import fetch, table_asset
from feature_pipeline.assets.pools import places
from feature_pipeline.schemas import Fetched
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.timeframes import DAILY, TIMEFRAMES
from feature_pipeline.universe import Instrument, Universe

_DAILY = """Daily open, high, low, close and volume of every instrument, exactly as traded.

A provider's back-adjustment is undone; splits and dividends live in `corporate_actions`.
A bar is available at its session's close plus the source's publication delay. A restated bar
replaces the old one, which moves to `ohlcv_1d_history`.
"""

_INTRADAY = """Open, high, low, close and volume of every {timeframe} bar, exactly as traded.

A bar begins at its session's open, or so many bars after it, and is available at its end plus the
source's publication delay; one that is not over is dropped. A provider has no bar of a minute
without a trade, and no row is made of one. A restated bar replaces the old one, which moves to
`ohlcv_{timeframe}_history`.
"""


def ohlcv(timeframe: str) -> dg.AssetsDefinition:
    """The asset of a timeframe."""
    said = _DAILY if timeframe == DAILY else _INTRADAY.format(timeframe=timeframe)

    @dg.asset(**table_asset(f"ohlcv_{timeframe}", group="inputs"), description=said)
    def asset(
        context: dg.AssetExecutionContext,
        storage: dg.ResourceParam[StorageIOManager],
        universe: dg.ResourceParam[Universe],
        sources: dg.ResourceParam[Mapping[str, Any]],
    ) -> dict[str, Fetched]:
        first, _ = partitions.window(context.partition_time_window)
        refused = TIMEFRAMES[timeframe].refused(first, storage.store.clock().date())
        if refused:
            raise dg.Failure(refused, allow_retries=False)
        plan = storage.plan(context)

        def ask(source: Any, instruments: Sequence[Instrument]) -> Fetched:
            return source.bars(instruments, *plan.window, timeframe)

        return fetch(places(context), plan, universe, sources, "bars", ask)

    return asset
