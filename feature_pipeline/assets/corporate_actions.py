"""Splits and dividends."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from feature_pipeline.assets.declare import fetch, table_asset
from feature_pipeline.assets.pools import places
from feature_pipeline.schemas import Fetched
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.universe import Instrument, Universe


@dg.asset(**table_asset("corporate_actions", group="inputs"))
def corporate_actions(
    context: dg.AssetExecutionContext,
    storage: dg.ResourceParam[StorageIOManager],
    universe: dg.ResourceParam[Universe],
    sources: dg.ResourceParam[Mapping[str, Any]],
) -> dict[str, Fetched]:
    """Splits and dividends by ex-date, known from the open of the ex-date's session.

    Indicators are computed on the split-adjusted series, returns on total return. An action that is
    reported late makes every day from its ex-date on stale, and nothing before it.
    """
    plan = storage.plan(context)

    def ask(source: Any, instruments: Sequence[Instrument]) -> Fetched:
        return source.actions(instruments, *plan.window)

    return fetch(places(context), plan, universe, sources, "actions", ask)
