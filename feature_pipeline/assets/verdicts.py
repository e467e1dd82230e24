"""What a check says, and the words that its sentences are made of.

What is judged, and by what measure, is the business of the modules that use them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import polars as pl

from feature_pipeline.storage.audit import Audit
from feature_pipeline.storage.store import Store


@dataclass(frozen=True)
class Verdict:
    """What a judgement comes to.

    Args:
        passed: whether all is well.
        says: what is wrong and where, or that all is well; a sentence or two.
        error: whether a fault is one (or else a warning).
        shown: rows that show it; not more than `SHOWN`.
        numbers: what was counted.
    """

    passed: bool
    says: str
    error: bool = True
    shown: pl.DataFrame = field(default_factory=pl.DataFrame)
    numbers: Mapping[str, int | float] = field(default_factory=dict)


def audit(store: Store, asset: str, start: date, end: date) -> Audit:
    """Questions about the days [start, end) of an asset of the store."""
    return Audit(store.database, store.tables[asset], start, end, store.clock())


def none_wrong(
    asked: Audit,
    found: pl.DataFrame,
    fault: str,
    told: Callable[[Mapping[str, Any]], str],
    well: str,
    thing: str = "row",
) -> Verdict:
    """The verdict on rows that should not be there; `told` says one of them."""
    where = days_of(asked)
    if found.is_empty():
        return Verdict(True, f"{well}, {where}", numbers={"wrong": 0})
    total = int(found["total"][0])
    said = [told(row) for row in found.head(3).iter_rows(named=True)]
    return Verdict(
        False,
        f"{many(total, thing)} {fault}: {first_of(said, total)}",
        shown=found.drop("total"),
        numbers={"wrong": total},
    )


def days_of(asked: Audit) -> str:
    """`on 2020-01-02`, `from 2020-01-02 to 2020-01-31`."""
    last = asked.end - timedelta(days=1)
    return f"on {last}" if asked.start == last else f"from {asked.start} to {last}"


def many(count: int, thing: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def first_of(said: Sequence[str], total: int | None = None) -> str:
    """The first three, and how many more there are."""
    more = (len(said) if total is None else total) - min(len(said), 3)
    return ", ".join(said[:3]) + (f" and {more} more" if more > 0 else "")
