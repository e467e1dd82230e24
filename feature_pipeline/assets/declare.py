"""From a table's schema to what Dagster is told of its asset, and from a plan to the providers.

Shared by the modules beside it; nothing here knows a particular table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import dagster as dg

from feature_pipeline.assets.lineage import column_lineage, described
from feature_pipeline.assets.pools import DATABASE, Place
from feature_pipeline.errors import SourceError
from feature_pipeline.features.catalogue import (
    ALL_DECLARED,
    ALL_TABLES,
    Feature,
    column_inputs,
)
from feature_pipeline.partitions import DAILY
from feature_pipeline.schemas import Fetched, Input, TableSchema
from feature_pipeline.sources import Off
from feature_pipeline.storage.planning import kind_of
from feature_pipeline.storage.store import WritePlan
from feature_pipeline.timeframes import stem
from feature_pipeline.universe import Instrument, SourceKind, Universe

STORAGE = "storage"
"""Resource key of the IO manager; assets that fetch ask it for their plan."""

Group = Literal["inputs", "signals", "vectors"]
"""The groups in the order in which data flows through them. It is alphabetical as well: the UI's
lists sort by it. Its graph draws groups from left to right as long as no two feed each other."""

OWNERS: Mapping[Group, Sequence[str]] = {
    "inputs": ["team:data"],
    "signals": ["team:research"],
    "vectors": ["team:research"],
}


def table_asset(asset: str, *, group: Group) -> dict[str, Any]:
    """Keyword arguments for `dg.asset`: name, group, partitions, inputs, columns, lineage.

    The body's arguments are named after the inputs, without their timeframe.
    """
    table = ALL_TABLES[asset]
    return {
        "name": asset,
        "group_name": group,
        "owners": OWNERS[group],
        "kinds": {"polars", "postgres"},
        "tags": tags(table),
        "io_manager_key": STORAGE,
        "partitions_def": DAILY,
        "deps": [] if table.derived or not _about_instruments(table) else ["instruments"],
        "ins": {stem(needed.asset): _in(needed) for needed in table.inputs},
        "metadata": {
            "dagster/table_name": table.table,
            "dagster/column_schema": column_schema(table),
            "dagster/column_lineage": column_lineage(asset),
        },
        # What asks providers takes its places in their pools, one by one.
        **({"pool": DATABASE} if table.derived else {}),
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


def tags(table: TableSchema) -> dict[str, str]:
    """What to filter by in the UI: layer, write mode, and timeframe where the table has one."""
    return {
        "layer": "derived" if table.derived else "source",
        "write_mode": table.mode,
        **({"timeframe": table.timeframe} if table.timeframe else {}),
    }


def column_schema(table: TableSchema) -> dg.TableSchema:
    """The columns: type, unit, meaning, what they follow from; and the rules of the table."""
    declared = {feature.column: feature for feature in ALL_DECLARED.get(table.asset, ())}
    follows = column_inputs(table.asset)
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=c.name,
                type=c.sql_type,
                description=described(c, follows[c.name]),
                constraints=dg.TableColumnConstraints(
                    nullable=c.nullable,
                    other=["primary key"] if c.name in table.key else [],
                ),
                tags=_column_tags(declared[c.name]) if c.name in declared else {},
            )
            for c in table.columns
        ],
        constraints=dg.TableConstraints(other=[f"never: {rule.reason}" for rule in table.rules]),
    )


def _column_tags(feature: Feature) -> dict[str, str]:
    """Its category, how far back it looks, and its version where that is not the first."""
    version = {"version": str(feature.version)} if feature.version > 1 else {}
    lookback = {"lookback": feature.lookback} if feature.lookback else {}
    return {"category": feature.category, **lookback, **version}


def fetch(
    place: Place,
    plan: WritePlan,
    universe: Universe,
    sources: Mapping[str, Any],
    kind: SourceKind,
    ask: Callable[[Any, Sequence[Instrument]], Fetched],
) -> dict[str, Fetched]:
    """Ask each provider for the instruments that `universe.yaml` maps to it, in its own pool.

    One that is off is not asked. Of an instrument for whom nobody else can be, nothing is known
    then: that is what its answer says, about everybody where it is so of every instrument. Nor does
    one that cannot answer keep the others from being written.

    Raises:
        SourceError: none of them can answer, or the universe names one that is not configured.
    """
    chosen: dict[str, list[Instrument]] = {}
    for instrument in universe.instruments:
        if plan.symbols is None or instrument.id in plan.symbols:
            for name in instrument.source.of(kind):
                chosen.setdefault(name, []).append(instrument)
    unknown = sorted(set(chosen) - set(sources))
    if unknown:
        raise SourceError(
            f"universe.yaml maps {chosen[unknown[0]][0].id} to source {unknown[0]!r} for {kind}; "
            f"there is {', '.join(sorted(sources))}"
        )
    off = {name for name, source in sources.items() if isinstance(source, Off)}
    unheard = {i for i, providers in universe.providers(kind).items() if off.issuperset(providers)}
    everybody = unheard == universe.providers(kind).keys()
    answers, errors = {}, []
    for name in _by_trust(chosen, kind):
        instruments = chosen[name]
        if name not in off:
            try:
                with place(name):
                    answers[name] = ask(sources[name], instruments)
            except SourceError as error:
                errors.append(error)
                answers[name] = _unanswered(plan.table, instruments, str(error))
        elif lost := tuple(i.id for i in instruments if i.id in unheard):
            answers[name] = not_asked(plan.table, sources[name], lost, everybody=everybody)
    if errors and len(errors) == len(answers):
        raise errors[0]
    return answers


def _by_trust(chosen: Mapping[str, Sequence[Instrument]], kind: SourceKind) -> list[str]:
    """Providers in the order in which instruments name them: who is named first tells it first."""
    place = {
        name: min(i.source.of(kind).index(name) for i in instruments)
        for name, instruments in chosen.items()
    }
    return sorted(chosen, key=lambda name: (place[name], name))


def _unanswered(table: TableSchema, instruments: Sequence[Instrument], why: str) -> Fetched:
    """The answer of a provider that cannot answer at all, beside others that can."""
    asked = tuple(i.id for i in instruments)
    return Fetched(table.empty(), dict.fromkeys(asked, why), asked)


def asked_of(
    asset: str, universe: Universe, sources: Mapping[str, Any], macro_source: Any
) -> tuple[dict[str, dg.MarkdownMetadataValue], dict[str, str]]:
    """Metadata and tags of a source's table: who is asked, who is off, and what to do about it."""
    table = ALL_TABLES[asset]
    if table.derived:
        return {}, {}
    named: dict[str, int] = {}
    if table.about_instruments:
        for providers in universe.providers(kind_of(asset)).values():
            for name in providers:
                named[name] = named.get(name, 0) + 1
        said = {name: f"asked for {count} instruments" for name, count in named.items()}
        found = sources
    else:
        said = {macro_source.name: f"asked for {', '.join(getattr(macro_source, 'series', ()))}"}
        found = {macro_source.name: macro_source}
    off = {name: s.why for name in sorted(said) if isinstance(s := found.get(name), Off)}
    lines = ["provider | state | what", "--- | --- | ---"]
    for name, words in sorted(said.items()):
        state = "off" if name in off else "on" if name in found else "unknown"
        lines.append(f"{name} | {state} | {off.get(name, words)}")
    if not said:
        lines = ["Nobody is asked: universe.yaml names no provider of it."]
    # Metadata stands at a page's end; a tag stands at its top, and can be searched for.
    tags = {f"off/{name}": "" for name in off}
    return {"sources": dg.MetadataValue.md("\n".join(lines))}, tags


def not_asked(
    table: TableSchema, provider: Off, symbols: tuple[str, ...] = (), *, everybody: bool = True
) -> Fetched:
    """The answer of a provider that is off, about some symbols, or about everybody.

    A bar belongs to a session, and a session without one has an exception of its own.
    """
    if table.mode == "replace":
        return Fetched(table.empty(), dict.fromkeys(symbols, provider.why), symbols)
    return Fetched(table.empty(), asked=() if everybody else symbols, off=provider.why)
