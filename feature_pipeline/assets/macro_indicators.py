"""Macro series with their vintages."""

import dagster as dg

from feature_pipeline.assets.declare import table_asset
from feature_pipeline.schemas import Fetched
from feature_pipeline.sources import MacroSource
from feature_pipeline.storage.io_manager import StorageIOManager


@dg.asset(**table_asset("macro_indicators", group="inputs"))
def macro_indicators(
    context: dg.AssetExecutionContext,
    storage: dg.ResourceParam[StorageIOManager],
    macro_source: dg.ResourceParam[MacroSource],
) -> dict[str, Fetched]:
    """VIX, federal funds rate and yield curve, each value from the moment of its release.

    A revision is a new row beside the old one: what was known at a moment is the newest release
    available then.
    """
    plan = storage.plan(context)
    if plan.days.is_empty():
        return {}
    return {macro_source.name: macro_source.macro(macro_source.series, *plan.window)}
