"""What insiders of companies bought and sold, as they filed it."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from feature_pipeline.assets.declare import fetch, table_asset
from feature_pipeline.assets.pools import places
from feature_pipeline.schemas import INSIDER_TRANSACTIONS, Fetched
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.universe import Instrument, Universe

NOBODY = "nobody"
"""The ledger's source of days that no provider is asked about: nothing is missing from them."""


@dg.asset(**table_asset("insider_transactions", group="inputs"))
def insider_transactions(
    context: dg.AssetExecutionContext,
    storage: dg.ResourceParam[StorageIOManager],
    universe: dg.ResourceParam[Universe],
    sources: dg.ResourceParam[Mapping[str, Any]],
) -> dict[str, Fetched]:
    """Transactions of officers, directors and large owners (SEC Form 4), from the filing on.

    Asked for the instruments that name a source of `insiders`; an amendment is a filing of its own,
    beside the one that it corrects. Without any such instrument its days are noted as complete,
    with no rows.
    """
    if not universe.providers("insiders"):
        return {NOBODY: Fetched(INSIDER_TRANSACTIONS.empty())}
    plan = storage.plan(context)

    def ask(source: Any, instruments: Sequence[Instrument]) -> Fetched:
        return source.insiders(instruments, *plan.window)

    return fetch(places(context), plan, universe, sources, "insiders", ask)
