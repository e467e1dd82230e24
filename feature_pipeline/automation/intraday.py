"""Cron of intraday bars: today's partition again and again while the market is open.

One schedule per calendar and timeframe. A tick is judged by the time it was scheduled for, like
those of `schedules`: it asks for the bars that have ended by then, and the last ones of a session
come after its close. Documents, splits and macro series are other schedules'.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import polars as pl
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, SCHEDULE_NAME_TAG

from feature_pipeline.automation.schedules import (
    CALENDAR_TAG,
    MARGIN,
    SESSION_TAG,
    TIMEFRAME_TAG,
    UNDER_WAY,
    Runs,
    only,
    publication_delay,
    request,
    schedule_name,
    scheduled,
)
from feature_pipeline.automation.sessions import Session, nobody
from feature_pipeline.schemas import GRID_START
from feature_pipeline.timeframes import DAILY, TIMEFRAMES, Timeframe
from feature_pipeline.universe import Universe, calendar_sessions

AFTER_MINUTES = timedelta(minutes=2)
"""So much later than minutes those bars are asked for that may be made of them."""

TICKS_AFTER_CLOSE = 2
"""Ticks that follow a session's last bar: what was late for the first is there at the second."""

LATEST = timedelta(hours=2)
"""So long after a session's last bar it is asked for where no run since then has succeeded: the run
before may have taken long, or failed."""


def intraday_schedules(
    universe: Universe, sources: object, jobs: Mapping[str, Any]
) -> list[dg.ScheduleDefinition]:
    """The schedules of a universe's intraday timeframes.

    Args:
        universe: whose calendars and timeframes there are.
        sources: provider -> source, for their publication delays.
        jobs: timeframe -> what a tick starts.
    """
    return [
        intraday_schedule(
            calendar,
            TIMEFRAMES[timeframe],
            publication_delay(universe, calendar, sources) + MARGIN,
            jobs[timeframe],
        )
        for timeframe in universe.timeframes
        if timeframe != DAILY
        for calendar in sorted({i.calendar for i in universe.instruments})
    ]


def intraday_schedule(
    calendar: str, timeframe: Timeframe, delay: timedelta, job: Any
) -> dg.ScheduleDefinition:
    """Bars of one calendar and timeframe, and all that follows from them, while it trades.

    A run covers the days of the session, and those since the last day that a run has completed; one
    run at a time.
    """
    name = schedule_name("bars", calendar, timeframe.name)
    every = timeframe.every or timeframe.step

    @dg.schedule(
        name=name,
        job=job,
        cron_schedule=cron(calendar, timeframe, delay),
        execution_timezone="UTC",
        required_resource_keys={"universe"},
        description=(
            f"{timeframe.name} bars of {calendar} and all that is computed from them, every "
            f"{every // timedelta(minutes=1)} minutes while it trades and until the last bar can "
            f"be had, {delay // timedelta(minutes=1)} minutes after its end. Else a tick says "
            "why not and starts nothing; so it does while the run before is under way. Off until "
            "you switch it on: it asks the providers."
        ),
        tags={"feature_pipeline/subject": "bars", TIMEFRAME_TAG: timeframe.name},
        metadata={"calendar": calendar, "timeframe": timeframe.name},
    )
    def bars(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        universe: Universe = context.resources.universe
        moment = context.scheduled_execution_time.astimezone(UTC)
        runs = Runs(context, {SCHEDULE_NAME_TAG: name})
        done = scheduled(runs.newest(statuses=[dg.DagsterRunStatus.SUCCESS]))
        had = None if done is None else done - delay
        found = due(calendar, moment - delay, every * TICKS_AFTER_CLOSE, had)
        if isinstance(found, str):
            return dg.SkipReason(found)
        if not universe.listed(calendar, found.day, found.day):
            return dg.SkipReason(nobody(universe, calendar, found.day))
        busy = runs.newest(statuses=UNDER_WAY)
        if busy is not None:
            return dg.SkipReason(
                f"The run before, {busy.run_id}, is {busy.status.value.lower()} still: the tick "
                "after its end asks for what is new since."
            )
        last = min(moment, found.close).date()
        first = _first_day(found, runs.completed(ASSET_PARTITION_RANGE_END_TAG), timeframe)
        tags = {
            CALENDAR_TAG: calendar,
            TIMEFRAME_TAG: timeframe.name,
            SESSION_TAG: found.day.isoformat(),
        }
        if len({i.calendar for i in universe.instruments}) > 1:
            tags |= only(universe.listed(calendar, first, last))
        return request(f"{name} {moment:%Y-%m-%dT%H:%MZ}", first, last, tags)

    return bars


def cron(calendar: str, timeframe: Timeframe, delay: timedelta) -> str:
    """When to tick: every few minutes, or once for each hour, when its bar can be had.

    Hours begin with the sessions of a calendar, at half past nine in New York.
    """
    minutes = (timeframe.every or timeframe.step) // timedelta(minutes=1)
    if minutes < 60:
        first = AFTER_MINUTES // timedelta(minutes=1) if timeframe.name != "1m" else 0
        return f"{first % minutes}-59/{minutes} * * * *"
    opened: datetime = calendar_sessions(calendar)["open"][-1]
    return f"{(opened + delay).minute} * * * *"


def due(
    calendar: str, ended: datetime, after: timedelta, had: datetime | None = None
) -> Session | str:
    """The session of which bars have ended by `ended` and are asked for; or why there is none.

    Args:
        calendar: its name.
        ended: bars that ended by then can be had.
        after: so long after a session's last bar it is asked for.
        had: bars that ended by then have been had; None - nobody knows.
    """
    sessions = calendar_sessions(calendar)
    at = int(sessions["open"].search_sorted(ended, side="left")) - 1
    if at >= 0 and had is not None and had < sessions["close"][at]:
        after = max(after, LATEST)
    if at < 0 or ended >= sessions["close"][at] + after:
        later = sessions.filter(pl.col("open") > ended)["open"]
        opens = f"; it opens at {later[0]:%Y-%m-%d %H:%M} UTC" if later.len() else ""
        return f"{calendar} is closed, and its last bars have been asked for{opens}."
    day, opened, closed = sessions.select(pl.col("time").dt.date(), "open", "close").row(at)
    return Session(day, opened, closed)


def _first_day(session: Session, completed: date | None, timeframe: Timeframe) -> date:
    """The first day to ask for: the session's, or the one completed last, as long as one run can
    take it. Days, not sessions: one may begin on the evening before."""
    opened = session.open.date()
    since = min(completed or opened, opened)
    return max(since, opened - timedelta(days=timeframe.days_per_run), GRID_START)
