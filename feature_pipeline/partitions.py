"""The one daily grid of the graph, and how days are read from Dagster and from people.

A partition is a UTC day, today included: weekends too, because posts and releases happen on them.
What a day contains is the universe's and the tables' business, not this module's.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

import dagster as dg

from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.schemas import GRID_START

DAILY = dg.DailyPartitionsDefinition(start_date=GRID_START.isoformat(), end_offset=1)
"""Every asset's partitions: UTC days from `GRID_START` to today."""


class PartitionError(FeaturePipelineError):
    """A date or a range of dates cannot be used."""


def window(time_window: dg.TimeWindow) -> tuple[date, date]:
    """Dagster's `partition_time_window` as UTC days, `[start, end)`."""
    return (
        time_window.start.astimezone(UTC).date(),
        time_window.end.astimezone(UTC).date(),
    )


def days(start: date, end: date) -> list[date]:
    """The UTC days of `[start, end)`."""
    return [start + timedelta(days=n) for n in range((end - start).days)]


def parse_day(text: str, name: str = "date") -> date:
    """A day of the grid as a person writes it: YYYY-MM-DD.

    Raises:
        PartitionError: it is no such date, or outside of the grid; `name` says which one it was.
    """
    try:
        # fromisoformat alone would take 20000103 and 2000-W01-1 too.
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
            raise ValueError(text)
        day = date.fromisoformat(text)
    except ValueError as error:
        raise PartitionError(f"{name} {text!r} is no date; write YYYY-MM-DD") from error
    today = datetime.now(UTC).date()
    if not GRID_START <= day <= today:
        raise PartitionError(
            f"{name} {day} is outside of the grid; use a day from {GRID_START} to today, "
            f"{today} in UTC"
        )
    return day


def parse_range(start: str, end: str) -> tuple[date, date]:
    """First and last day as a person writes them, both included, as `[start, end)`.

    Raises:
        PartitionError: one of them is no day of the grid, or start is after end.
    """
    first, last = parse_day(start, "start"), parse_day(end, "end")
    if first > last:
        raise PartitionError(f"start {first} is after end {last}; swap them")
    return first, last + timedelta(days=1)
