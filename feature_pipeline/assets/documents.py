"""News and Reddit: two assets, one table, told apart by channel."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from feature_pipeline.assets.declare import fetch, table_asset
from feature_pipeline.schemas import Fetched
from feature_pipeline.sources import Channel
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.storage.store import WritePlan
from feature_pipeline.universe import Universe


@dg.asset(**table_asset("news", group="inputs"))
def news(
    context: dg.AssetExecutionContext,
    storage: dg.ResourceParam[StorageIOManager],
    universe: dg.ResourceParam[Universe],
    sources: dg.ResourceParam[Mapping[str, Any]],
) -> dict[str, Fetched]:
    """News articles about the instruments, by the day on which the provider could show them.

    Documents accumulate: a feed that answers empty deletes nothing. One that is collected live
    becomes available at the later of its publication and the moment it was first seen.
    """
    return _collect("news", storage.plan(context), universe, sources)


@dg.asset(**table_asset("reddit", group="inputs"))
def reddit(
    context: dg.AssetExecutionContext,
    storage: dg.ResourceParam[StorageIOManager],
    universe: dg.ResourceParam[Universe],
    sources: dg.ResourceParam[Mapping[str, Any]],
) -> dict[str, Fetched]:
    """Reddit posts and comments about the instruments; authors are not stored.

    Written like `news`, into the same table `documents`.
    """
    return _collect("reddit", storage.plan(context), universe, sources)


def _collect(
    channel: Channel, plan: WritePlan, universe: Universe, sources: Mapping[str, Any]
) -> dict[str, Fetched]:
    return fetch(
        plan, universe, sources, channel, lambda s, which: s.documents(channel, which, *plan.window)
    )
