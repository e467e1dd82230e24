"""Which column follows from which, and what of that goes into an asset's code version.

The graph of columns that the declarations span, and walks on it. Pure bookkeeping over names: no
frame is touched. What the declarations are stands in `declarations`, their tables in `catalogue`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from feature_pipeline.features.declarations import Feature
from feature_pipeline.schemas import TableSchema


class ColumnRef(NamedTuple):
    """A column of an asset's table."""

    asset: str
    column: str

    def __str__(self) -> str:
        return f"{self.asset}.{self.column}"


Declared: TypeAlias = Mapping[str, tuple[Feature, ...]]
"""Asset -> the features that are its columns."""

Reads: TypeAlias = Mapping[str, tuple[str, ...]]
"""Asset -> the columns read of it."""

ColumnGraph: TypeAlias = Mapping[ColumnRef, tuple[ColumnRef, ...]]
"""Column -> the columns that it is computed from, without steps in between; empty for sources."""


def column_graph(
    tables: Mapping[str, TableSchema],
    declared: Declared,
    others: Mapping[str, Mapping[str, Reads]],
) -> dict[ColumnRef, tuple[ColumnRef, ...]]:
    """The graph of all columns of the tables.

    Args:
        tables: asset -> schema.
        declared: the features; what they read is what they declare.
        others: asset -> column -> what it reads, for columns of derived tables that are no feature.
    """
    reads: dict[ColumnRef, Reads] = {
        ColumnRef(asset, column): read
        for asset, columns in others.items()
        for column, read in columns.items()
    }
    for asset, features in declared.items():
        for feature in features:
            own = {asset: feature.needs} if feature.needs else {}
            reads[ColumnRef(asset, feature.column)] = {**feature.inputs, **own}
    known = (ColumnRef(table.asset, name) for table in tables.values() for name in table.names)
    return {
        ref: tuple(
            ColumnRef(asset, column)
            for asset, columns in reads.get(ref, {}).items()
            for column in columns
        )
        for ref in dict.fromkeys((*known, *reads))
    }


def reached(graph: ColumnGraph, start: Iterable[ColumnRef]) -> set[ColumnRef]:
    """The columns that these are computed from, with any number of steps, and these themselves."""
    found: set[ColumnRef] = set()
    waiting = list(start)
    while waiting:
        ref = waiting.pop()
        if ref not in found:
            found.add(ref)
            waiting.extend(graph.get(ref, ()))
    return found


def following(graph: ColumnGraph, start: Iterable[ColumnRef]) -> tuple[ColumnRef, ...]:
    """The columns that are computed from these, with any number of steps, without these themselves.

    In the graph's order.
    """
    backward: dict[ColumnRef, list[ColumnRef]] = {}
    for ref, read in graph.items():
        for source in read:
            backward.setdefault(source, []).append(ref)
    origin = set(start)
    found = reached({ref: tuple(refs) for ref, refs in backward.items()}, origin)
    return tuple(ref for ref in graph if ref in found and ref not in origin)


def across_tables(graph: ColumnGraph, ref: ColumnRef) -> tuple[ColumnRef, ...]:
    """The columns of *other* tables that a column is computed from.

    What it reads of its own table is replaced by what that follows from.
    """

    def walk(at: ColumnRef) -> Iterator[ColumnRef]:
        for source in graph[at]:
            if source.asset == ref.asset:
                yield from walk(source)
            else:
                yield source

    return tuple(dict.fromkeys(walk(ref)))


def fingerprint(feature: Feature) -> str:
    """What of a declaration decides its values, on one line.

    Its sentence, unit and category do not. The expression counts by name and arguments: what
    happens inside it is seen by the golden values alone, which ask for a new version.
    """
    read = (
        f"{asset}({','.join(sorted(names))})" for asset, names in sorted(feature.inputs.items())
    )
    return " ".join(
        (
            feature.tag,
            feature.computation,
            feature.part or "-",
            feature.basis.replace(" ", "-"),
            f"{feature.lookback_bars}b{feature.lookback_days}d",
            *read,
            *sorted(feature.needs),
        )
    )


def version_of(
    asset: str,
    graph: ColumnGraph,
    declared: Declared,
    versions: Callable[[str], Iterable[str]],
) -> str:
    """Sixteen hex digits that change exactly when something changes that an asset follows from.

    Args:
        asset: whose columns.
        graph: what they follow from.
        declared: the features.
        versions: asset -> what else stands for its values: the version of a model, for one.
    """
    by_column = {
        ColumnRef(asset, feature.column): fingerprint(feature)
        for asset, features in declared.items()
        for feature in features
    }
    lines: set[str] = set()
    for ref in reached(graph, (ref for ref in graph if ref.asset == asset)):
        if ref in by_column:
            lines.add(f"{ref.asset} {by_column[ref]}")
        else:
            lines.update(versions(ref.asset))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
