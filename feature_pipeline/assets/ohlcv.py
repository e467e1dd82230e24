"""Bars as traded."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from feature_pipeline.assets.declare import fetch, table_asset
from feature_pipeline.assets.pools import places
from feature_pipeline.schemas import Fetched
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.universe import Instrument, Universe


@dg.asset(**table_asset("ohlcv_1d", group="inputs"))
def ohlcv_1d(
    context: dg.AssetExecutionContext,
    storage: dg.ResourceParam[StorageIOManager],
    universe: dg.ResourceParam[Universe],
    sources: dg.ResourceParam[Mapping[str, Any]],
) -> dict[str, Fetched]:
    """Daily open, high, low, close and volume of every instrument, exactly as traded.

    A provider's back-adjustment is undone; splits and dividends live in `corporate_actions`.
    A bar is available at its session's close plus the source's publication delay. A restated bar
    replaces the old one, which moves to `ohlcv_1d_history`.
    """
    plan = storage.plan(context)

    def ask(source: Any, instruments: Sequence[Instrument]) -> Fetched:
        return source.bars(instruments, *plan.window)

    return fetch(places(context), plan, universe, sources, "bars", ask)
