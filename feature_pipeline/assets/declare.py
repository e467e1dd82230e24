"""From a table's schema to what Dagster is told of its asset, and from a plan to the providers.

Shared by the modules beside it; nothing here knows a particular table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import dagster as dg

from feature_pipeline.errors import SourceError
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.partitions import DAILY
from feature_pipeline.schemas import Fetched, Input, TableSchema
from feature_pipeline.storage.store import WritePlan
from feature_pipeline.universe import Instrument, Universe

STORAGE = "storage"
"""Resource key of the IO manager; assets that fetch ask it for their plan."""

Group = Literal["raw", "signals", "vectors", "online"]


def table_asset(asset: str, *, group: Group) -> dict[str, Any]:
    """Keyword arguments for `dg.asset`: name, partitions, inputs, columns, code version."""
    table = TABLES[asset]
    return {
        "name": asset,
        "group_name": group,
        "kinds": {"polars", "timescaledb"},
        "io_manager_key": STORAGE,
        "partitions_def": DAILY,
        "deps": [] if table.derived or not _about_instruments(table) else ["instruments"],
        "ins": {needed.asset: _in(needed) for needed in table.inputs},
        "metadata": {
            "dagster/table_name": table.table,
            "dagster/column_schema": column_schema(table),
            "write_mode": table.mode,
        },
        "retry_policy": dg.RetryPolicy(
            max_retries=2, delay=1, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
        ),
    }


def _about_instruments(table: TableSchema) -> bool:
    return not {"symbol", "symbols"}.isdisjoint(table.names)


def _in(needed: Input) -> dg.AssetIn:
    """An identity dependency; how much further back it reads is shown with it."""
    return dg.AssetIn(
        key=needed.asset,
        metadata={
            "columns": list(needed.columns),
            "lookback_bars": needed.lookback_bars,
            "lookback_days": needed.lookback_days,
        },
    )


def column_schema(table: TableSchema) -> dg.TableSchema:
    """The columns with types, units and what they mean."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=c.name,
                type=c.sql_type,
                description=f"{c.description} [{c.unit}]" if c.unit else c.description,
                constraints=dg.TableColumnConstraints(nullable=c.nullable),
            )
            for c in table.columns
        ]
    )


def fetch(
    plan: WritePlan,
    universe: Universe,
    sources: Mapping[str, Any],
    kind: Literal["bars", "actions", "news", "reddit"],
    ask: Callable[[Any, Sequence[Instrument]], Fetched],
) -> dict[str, Fetched]:
    """Ask each provider for the instruments that `universe.yaml` maps to it.

    Raises:
        SourceError: the universe names a provider that is not configured.
    """
    chosen: dict[str, list[Instrument]] = {}
    for instrument in universe.instruments:
        name = getattr(instrument.source, kind)
        if name is not None and (plan.symbols is None or instrument.id in plan.symbols):
            chosen.setdefault(name, []).append(instrument)
    unknown = sorted(set(chosen) - set(sources))
    if unknown:
        raise SourceError(
            f"universe.yaml maps {chosen[unknown[0]][0].id} to source {unknown[0]!r} for {kind}; "
            f"there is {', '.join(sorted(sources))}"
        )
    return {name: ask(sources[name], instruments) for name, instruments in sorted(chosen.items())}
