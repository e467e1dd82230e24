"""What Dagster recorded of a run, in words: one line per thing that happened.

Materialisations of a range are one line per asset, not one per day. Reads Dagster's storage; the
output of the processes themselves is in `logs.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg
from dagster import DagsterEventType, EventLogEntry

from feature_pipeline.errors import StackError

_RECENT = 1000
_LEVELS = {dg.AssetCheckSeverity.WARN: "warning", dg.AssetCheckSeverity.ERROR: "error"}
_DULL = {
    DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
    DagsterEventType.HANDLED_OUTPUT,
    DagsterEventType.LOADED_INPUT,
    DagsterEventType.STEP_INPUT,
    DagsterEventType.STEP_OUTPUT,
    DagsterEventType.RESOURCE_INIT_STARTED,
    DagsterEventType.RESOURCE_INIT_SUCCESS,
    DagsterEventType.LOGS_CAPTURED,
    DagsterEventType.ENGINE_EVENT,
}


@dataclass(frozen=True)
class RunEvent:
    """One line: when, which step (or none), how bad (`info`, `warning`, `error`), and what."""

    at: datetime
    step: str | None
    level: str
    text: str


@dataclass(frozen=True)
class RunStory:
    """A run: its id, status, and what happened."""

    run_id: str
    job: str
    status: str
    events: list[RunEvent]


def story(instance: dg.DagsterInstance, run_id: str) -> RunStory:
    """What happened in a run.

    Args:
        instance: where it was recorded.
        run_id: its id, or at least six characters from its beginning, as the UI shows them.

    Raises:
        StackError: there is no such run, or several.
    """
    run = instance.get_run_by_id(run_id)
    if run is None:
        recent = [record.dagster_run for record in instance.get_run_records(limit=_RECENT)]
        found = [candidate for candidate in recent if candidate.run_id.startswith(run_id)]
        if len(found) != 1:
            which = "no run" if not found else f"{len(found)} runs"
            known = ", ".join(r.run_id[:8] for r in found or recent[:5]) or "none at all"
            raise StackError(f"{which} of id {run_id}...; the latest: {known}")
        run = found[0]
    events = list(_told(instance.all_logs(run.run_id)))
    return RunStory(run.run_id, run.job_name, run.status.value.lower(), events)


def _told(entries: Iterable[EventLogEntry]) -> Iterator[RunEvent]:
    made: list[EventLogEntry] = []
    for entry in entries:
        event = entry.dagster_event
        kind = event.event_type if event else None
        if kind == DagsterEventType.ASSET_MATERIALIZATION:
            if made and _asset(made[0]) != _asset(entry):
                yield _materialised(made)
                made = []
            made.append(entry)
            continue
        if kind in _DULL:
            continue
        if made:
            yield _materialised(made)
            made = []
        yield _event(entry)
    if made:
        yield _materialised(made)


def _event(entry: EventLogEntry) -> RunEvent:
    event = entry.dagster_event
    text = (event.message if event else None) or entry.user_message
    number = int(entry.level)
    level = "info" if number < logging.WARNING else "warning" if number < logging.ERROR else "error"
    if event is not None and event.event_type == DagsterEventType.ASSET_CHECK_EVALUATION:
        check = event.asset_check_evaluation_data
        level = level if check.passed else _LEVELS[check.severity]
    if event is not None and (event.is_step_failure or event.is_failure):
        level = "error"
        text = ": ".join([text or "", *_causes(event)])
    return RunEvent(_at(entry), entry.step_key, level, " ".join((text or "").split()))


def _causes(event: dg.DagsterEvent) -> Iterator[str]:
    data = event.event_specific_data
    error = getattr(data, "error", None)
    while error is not None:
        if error.cause is None:  # the outer ones only say that something went wrong
            yield error.message.strip()
        error = error.cause


def _materialised(made: list[EventLogEntry]) -> RunEvent:
    keys = sorted({_partition(entry) for entry in made} - {None})  # type: ignore[type-var]
    which = ""
    if len(keys) == 1:
        which = f" of {keys[0]}"
    elif keys:
        which = f": {len(keys)} partitions, {keys[0]} to {keys[-1]}"
    return RunEvent(
        _at(made[-1]), made[-1].step_key, "info", f"materialised {_asset(made[0])}{which}"
    )


def _asset(entry: EventLogEntry) -> str:
    event = entry.dagster_event
    return event.asset_key.to_user_string() if event and event.asset_key else ""


def _partition(entry: EventLogEntry) -> str | None:
    return entry.dagster_event.partition if entry.dagster_event else None


def _at(entry: EventLogEntry) -> datetime:
    return datetime.fromtimestamp(entry.timestamp, UTC)
