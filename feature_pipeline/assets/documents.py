"""News and Reddit: two assets, one table, told apart by channel."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import dagster as dg

from feature_pipeline import partitions
from feature_pipeline.assets.declare import fetch, table_asset
from feature_pipeline.assets.pools import Place, places
from feature_pipeline.errors import SourceError
from feature_pipeline.schemas import Fetched
from feature_pipeline.sources import Channel, SaysWhatIsGone
from feature_pipeline.storage import erasure
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.storage.store import Store, WritePlan
from feature_pipeline.universe import Instrument, Universe


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
    return _collect("news", places(context), storage.plan(context), universe, sources)


@dg.asset(**table_asset("reddit", group="inputs"))
def reddit(
    context: dg.AssetExecutionContext,
    storage: dg.ResourceParam[StorageIOManager],
    universe: dg.ResourceParam[Universe],
    sources: dg.ResourceParam[Mapping[str, Any]],
) -> dict[str, Fetched]:
    """Reddit posts and comments about the instruments; authors are not stored.

    Written like `news`, into the same table `documents`. What was deleted at Reddit since, of the
    run's days and the week before them, loses its text here; its score stays.
    """
    # Before the plan: what is erased fences whoever collected it before, and not us.
    _erase_deleted(context, storage.store, sources)
    return _collect("reddit", places(context), storage.plan(context), universe, sources)


LOOKED_BACK = timedelta(days=7)
"""So long before a run's days documents are looked up at their source."""


def _erase_deleted(
    context: dg.AssetExecutionContext, store: Store, sources: Mapping[str, Any]
) -> None:
    """Erase what sources say was deleted. One that does not answer is asked by the next run: no
    reason not to collect."""
    start, end = partitions.window(context.partition_time_window)
    for name, source in sources.items():
        if not isinstance(source, SaysWhatIsGone):
            continue
        try:
            held = erasure.held(store, "reddit", name, start - LOOKED_BACK, end)
            with places(context)(name):
                gone = source.gone(held.to_list()) if held.len() else frozenset()
        except SourceError as error:
            context.log.warning("what was deleted could not be looked up: %s", error)
            continue
        erased = erasure.erase(store, "reddit", name, gone)
        if erased:
            context.log.info(
                "%s: of %d documents looked up, %d were deleted there; their text is gone here too",
                name, held.len(), erased,
            )  # fmt: skip


def _collect(
    channel: Channel,
    place: Place,
    plan: WritePlan,
    universe: Universe,
    sources: Mapping[str, Any],
) -> dict[str, Fetched]:
    def ask(source: Any, instruments: Sequence[Instrument]) -> Fetched:
        return source.documents(channel, instruments, *plan.window)

    return fetch(place, plan, universe, sources, channel, ask)
