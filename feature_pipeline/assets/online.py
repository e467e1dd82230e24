"""The online store, as the lineage shows it: written by a sensor, not by a run."""

import dagster as dg

online_state_vectors = dg.AssetSpec(
    key="online_state_vectors",
    deps=["state_vectors_1d"],
    group_name="online",
    kinds={"redis"},
    description=(
        "The newest state vector of each symbol in Redis, with its features, regime, sentiment and "
        "macro values by name. Published by the sensor `publish_online` from the database, within "
        "seconds of a materialisation; older never overwrites newer."
    ),
    metadata={"keys": "sv:{timeframe}:{symbol}, features:{timeframe}:{symbol}"},
)

instruments = dg.AssetSpec(
    key="instruments",
    group_name="raw",
    kinds={"yaml"},
    description=(
        "The universe: instruments with their symbols, calendars, sectors, providers and "
        "membership, each with from and to dates. Edited by hand in `universe.yaml`."
    ),
)
