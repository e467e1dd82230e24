"""What the lineage shows and no run writes: the universe before it, the online store behind it."""

from collections.abc import Sequence

import dagster as dg

from feature_pipeline.assets.declare import OWNERS
from feature_pipeline.timeframes import DAILY


def online_state_vectors(timeframes: Sequence[str] = (DAILY,)) -> dg.AssetSpec:
    """Redis, behind the vectors of some timeframes."""
    return dg.AssetSpec(
        key="online_state_vectors",
        deps=[f"state_vectors_{timeframe}" for timeframe in timeframes],
        group_name="vectors",
        owners=OWNERS["vectors"],
        kinds={"redis"},
        tags={"layer": "online", "write_mode": "compare-and-set"},
        description=(
            "The newest state vector of each symbol in Redis, with its features, regime, sentiment "
            "and macro values by name. Published by the sensor `publish_online` from the database, "
            "within seconds of a materialisation; older never overwrites newer."
        ),
        metadata={
            "keys": dg.MetadataValue.md(
                "`sv:{timeframe}:{symbol}`, `features:{timeframe}:{symbol}`, "
                "`regime:{timeframe}:{symbol}`, `sentiment:{symbol}:{source}`, `macro:{series_id}`"
            ),
        },
    )


instruments = dg.AssetSpec(
    key="instruments",
    group_name="inputs",
    owners=OWNERS["inputs"],
    kinds={"yaml"},
    tags={"layer": "source", "write_mode": "by-hand"},
    description=(
        "The universe: instruments with their symbols, calendars, sectors, providers and "
        "membership, each with from and to dates. Edited by hand in `universe.yaml`."
    ),
)
