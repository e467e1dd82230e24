"""What has changed between two states of the catalogue: which features, and what follows from that.

Compares the registry's rows of one state with those of the code at hand. Pure: where the other
state comes from (a database, an older commit) is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from feature_pipeline.features.catalogue import touched
from feature_pipeline.timeframes import DAILY, of

Kind = Literal["new", "changed", "removed", "reworded"]

_VALUES = ("version", "computation", "dependencies", "lookback_bars")
_WORDS = ("description", "unit", "category")


@dataclass(frozen=True)
class Change:
    """One feature that is not what it was.

    Args:
        feature: its name.
        asset: whose column it is.
        column: the column's name, here, or there where it is gone.
        kind: `changed` - its values may be others; `reworded` - they are not.
        what: each difference in words.
        stale: the assets that have to be computed again because of it.
    """

    feature: str
    asset: str
    column: str
    kind: Kind
    what: tuple[str, ...]
    stale: tuple[str, ...]


def compare(before: pl.DataFrame, now: pl.DataFrame) -> list[Change]:
    """The changes that lead from one state of the catalogue to the code at hand.

    Args:
        before, now: registry rows: `name`, `version`, `description`, `unit`, `category`,
            `source_table`, `computation`, `dependencies`, `lookback_bars`. `now` is the
            catalogue's, which knows what depends on what.

    Returns:
        In the order of the tables, what is gone last.
    """
    old, new = _by_version(before), _by_version(now)
    changes: list[Change] = []
    for key, row in new.items():
        changes += _compared(old.pop(key) if key in old else _replaced(old, new, row), row)
    for row in old.values():
        asset = row["source_table"]
        changes.append(Change(row["name"], asset, _column(row), "removed", (), (asset,)))
    return changes


_Rows = dict[tuple[str, str, int], dict[str, Any]]


def _by_version(frame: pl.DataFrame) -> _Rows:
    return {(r["source_table"], r["name"], r["version"]): r for r in frame.to_dicts()}


def _replaced(old: _Rows, new: _Rows, row: dict[str, Any]) -> dict[str, Any] | None:
    """The older version that a row stands for, where that one is gone."""
    same = (row["source_table"], row["name"])
    gone = [key for key in old if key[:2] == same and key not in new]
    return old.pop(max(gone)) if gone else None


def _column(row: dict[str, Any]) -> str:
    return row["name"] if row["version"] == 1 else f"{row['name']}__v{row['version']}"


def _compared(was: dict[str, Any] | None, row: dict[str, Any]) -> Iterator[Change]:
    column, asset = _column(row), row["source_table"]
    stale = touched(column, of(asset) or DAILY)
    if was is None:
        yield Change(row["name"], asset, column, "new", (), stale)
        return
    what = [*_differences(was, row, _VALUES)]
    if _column(was) != column:
        what.append(f"column {_column(was)} -> {column}")
    if what:
        yield Change(row["name"], asset, column, "changed", tuple(what), stale)
    elif words := tuple(_differences(was, row, _WORDS)):
        yield Change(row["name"], asset, column, "reworded", words, ())


def _differences(was: dict[str, Any], row: dict[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        old, new = (sorted(r[name]) if name == "dependencies" else r[name] for r in (was, row))
        if old == new:
            continue
        if name == "dependencies":
            gone, come = set(old) - set(new), set(new) - set(old)
            words = [*(f"no longer {ref}" for ref in sorted(gone)), *(f"{r}" for r in sorted(come))]
            yield f"reads {', '.join(words)}"
        else:
            yield f"{name.replace('_', ' ')} {old} -> {new}"
