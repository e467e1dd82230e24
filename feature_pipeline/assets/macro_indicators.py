"""Macro series with their vintages."""

import dagster as dg

from feature_pipeline.assets.declare import not_asked, table_asset
from feature_pipeline.assets.pools import places
from feature_pipeline.schemas import Fetched
from feature_pipeline.sources import MacroSource, Off
from feature_pipeline.storage.io_manager import StorageIOManager


@dg.asset(**table_asset("macro_indicators", group="inputs"))
def macro_indicators(
    context: dg.AssetExecutionContext,
    storage: dg.ResourceParam[StorageIOManager],
    macro_source: dg.ResourceParam[MacroSource | Off],
) -> dict[str, Fetched]:
    """VIX, interest rates, prices and unemployment, each value from the moment of its release.

    A revision is a new row beside the old one: what was known at a moment is the newest release
    available then.
    """
    plan = storage.plan(context)
    if plan.days.is_empty():
        return {}
    if isinstance(macro_source, Off):
        return {macro_source.name: not_asked(plan.table, macro_source)}
    with places(context)(macro_source.name):
        return {macro_source.name: macro_source.macro(macro_source.series, *plan.window)}
