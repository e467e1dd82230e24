"""Bars as traded."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from feature_pipeline.assets.declare import fetch, table_asset
from feature_pipeline.schemas import Fetched
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.universe import Universe


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
    return fetch(plan, universe, sources, "bars", lambda s, which: s.bars(which, *plan.window))
