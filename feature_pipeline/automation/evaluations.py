"""Evaluations of asset checks as they come in, each seen once; and the days that they hold back.

A blocking check that fails keeps its own run from computing what follows. What is kept here is that
nobody else computes it either, until the check passes for these days.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import dagster as dg
import polars as pl
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

LOOK_BACK = 1000
"""Event ids are handed out before their events commit: one may turn up below others that were seen
already. Those this far below the newest are looked at again."""

AT_ONCE = 200
"""Evaluations that one look returns at most."""

MAX_SPANS = 50
"""Held spans that are remembered per check, the newest ones."""

_KIND = dg.DagsterEventType.ASSET_CHECK_EVALUATION
_DAY = timedelta(days=1)

Span = tuple[str, str]
"""First and last day, YYYY-MM-DD."""


@dataclass(frozen=True)
class Seen:
    """Where somebody is in the stream of evaluations: the newest id, and those just below it."""

    newest: int = 0
    ids: tuple[int, ...] = ()


def unseen(instance: dg.DagsterInstance, seen: Seen | None) -> tuple[list[dg.EventLogRecord], Seen]:
    """The evaluations that were not seen before, oldest first; without `seen` the newest ones."""
    storage = instance.event_log_storage

    def of(**bounds: int) -> dg.EventRecordsFilter:
        return dg.EventRecordsFilter(event_type=_KIND, **bounds)  # type: ignore[arg-type]

    if seen is None:
        found = list(storage.get_event_records(of(), limit=AT_ONCE))
        seen = Seen()
    else:
        late = of(after_cursor=seen.newest - LOOK_BACK, before_cursor=seen.newest)
        found = [
            *storage.get_event_records(late),
            *storage.get_event_records(of(after_cursor=seen.newest), limit=AT_ONCE, ascending=True),
        ]
    new = sorted((r for r in found if r.storage_id not in seen.ids), key=lambda r: r.storage_id)
    ids = sorted({*seen.ids, *(record.storage_id for record in found)})
    newest = max([seen.newest, *ids])
    return new, Seen(newest, tuple(i for i in ids if i > newest - LOOK_BACK))


def evaluation(record: dg.EventLogRecord) -> dg.AssetCheckEvaluation | None:
    """What a record says of a check."""
    event = record.event_log_entry.dagster_event
    said = event.event_specific_data if event else None
    return said if isinstance(said, dg.AssetCheckEvaluation) else None


def span_of(run: dg.DagsterRun) -> Span | None:
    """The days of a run, or None where it has none."""
    first = run.tags.get(ASSET_PARTITION_RANGE_START_TAG, run.tags.get(PARTITION_NAME_TAG))
    last = run.tags.get(ASSET_PARTITION_RANGE_END_TAG, first)
    return (first, last) if first and last else None


# -- what is held back ----------------------------------------------------------------------------


def hold(
    held: Mapping[str, Sequence[Span]], check: dg.AssetCheckEvaluation, span: Span | None
) -> dict[str, list[Span]]:
    """The spans that blocking checks hold back, after one more evaluation.

    Args:
        held: `asset check` -> spans.
        check: the evaluation.
        span: the days of its run. Without one it judged the newest days alone, which it does not
            name: nothing is held, and nothing released.
    """
    name = f"{check.asset_key.to_user_string()} {check.check_name}"
    spans: list[Span] = [(first, last) for first, last in held.get(name, ())]
    if check.blocking and not check.passed and check.severity == dg.AssetCheckSeverity.ERROR:
        spans = [*([] if span is None else [span]), *(known for known in spans if known != span)]
    elif check.passed and span is not None:
        spans = list(_without(spans, *span))
    others = {key: list(value) for key, value in held.items() if key != name}
    return others | ({name: spans[:MAX_SPANS]} if spans else {})


def held_days(held: Mapping[str, Iterable[Span]]) -> dict[str, pl.Series]:
    """Asset -> the sorted days that one of its checks holds back."""
    found: dict[str, list[pl.Series]] = {}
    for name, spans in held.items():
        found.setdefault(name.rpartition(" ")[0], []).append(days_within(spans))
    return {asset: pl.concat(parts).unique().sort() for asset, parts in found.items()}


def days_within(spans: Iterable[Span]) -> pl.Series:
    """The days of all spans, each once, sorted."""
    ends = [(date.fromisoformat(first), date.fromisoformat(last)) for first, last in spans]
    parts = [pl.date_range(first, last, eager=True).alias("day") for first, last in ends]
    return pl.concat([pl.Series("day", [], dtype=pl.Date), *parts]).unique().sort()


def _without(spans: Iterable[Span], first: str, last: str) -> Iterable[Span]:
    """The spans, less the days from `first` to `last`."""
    for start, end in spans:
        if end < first or start > last:
            yield start, end
            continue
        if start < first:
            yield start, (date.fromisoformat(first) - _DAY).isoformat()
        if end > last:
            yield (date.fromisoformat(last) + _DAY).isoformat(), end
