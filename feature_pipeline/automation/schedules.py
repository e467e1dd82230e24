"""Cron: what is asked of the providers when, and the ticks on which nothing is.

Bars after each exchange's close, documents every quarter of an hour, macro series after their
publication hours, insiders after EDGAR's, Redis before each open. Which session a tick is for is
computed in `sessions`; here it becomes a run, or a reason in words. A tick is judged by the time it
was scheduled for, never by now: one that is evaluated late asks for what it would have asked for in
time.

**Holes.** Dagster evaluates only the newest of the ticks that a stopped daemon missed. A run
therefore asks for the `refetch_days` before its own day once more (equal content writes nothing,
and of what is derived only stale days are computed); where the last run of its kind that succeeded
is longer ago than that, for everything since (documents excepted: few feeds reach back further),
but at most `MAX_CATCH_UP`: one asset that always fails would have every run ask for more than the
one before. A longer outage leaves a hole, which a backfill fills, or `repair` where it may. A
session whose own tick was missed is asked for at the next one, be it on a closed day. Without any
earlier run there is no hole: history is a backfill's business.

All schedules are off until somebody switches them on. Without them one thing alone asks a provider
by itself: the sensor `repair`, which is on, for holes inside the range that has been written. A gap
of more than 31 days is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    MAX_RUNTIME_SECONDS_TAG,
    SCHEDULE_NAME_TAG,
    SCHEDULED_EXECUTION_TIME_TAG,
)

from feature_pipeline.automation.sessions import Session, Timetable, nobody
from feature_pipeline.automation.warm_up import warm_up
from feature_pipeline.schemas import GRID_START
from feature_pipeline.settings import Settings
from feature_pipeline.sources import BarSource
from feature_pipeline.storage.io_manager import SYMBOLS_TAG
from feature_pipeline.storage.store import Store
from feature_pipeline.universe import Universe

CALENDAR_TAG = "feature_pipeline/calendar"
"""Run tag: the exchange calendar that a run was scheduled for."""

SESSION_TAG = "feature_pipeline/session"
"""Run tag: the date of the session that a run was scheduled for."""

TIMEFRAME_TAG = "feature_pipeline/timeframe"
"""Run tag: the timeframe of the bars that a run was scheduled for."""

DOCUMENTS = "news_and_reddit"
"""Name of the documents' schedule and job."""

MACRO = "macro"
"""Name of the macro series' schedule and job."""

MARGIN = timedelta(minutes=1)
"""Waited after the publication delay, so that a bar is there when it is asked for."""

LEAD = timedelta(minutes=30)
"""How long before an open Redis is filled."""

REOPENED = timedelta(hours=1)
"""How long after a UTC midnight the day before is still asked for: feeds show documents late."""

MAX_CATCH_UP = timedelta(days=31)
"""How far before its own day a run reaches for what no run has completed; `refetch_days` may say
more."""

MACRO_ZONE = "America/New_York"
MACRO_CRONS = ("0 10 * * 1-5", "0 18 * * 1-5")
"""After FRED has them. VIXCLS of a session comes on the next morning, before 9 in Chicago. DFF
comes with the H.15 release at 16:15 New York time, T10Y2Y with the interest rate spreads at about
17:00. Nothing is released at weekends; on a federal holiday a run finds nothing new."""

INSIDERS = "insiders"
"""Name of the insiders' schedule and job."""

INSIDERS_ZONE = "America/New_York"
INSIDERS_CRON = "30 22 * * 1-5"
"""After EDGAR has closed: forms of insiders are taken from 6:00 to 22:00 on business days, most of
them after the market's close."""

MAX_SYMBOLS_TAG = 2000
"""Characters. PostgreSQL indexes the values of run tags, and takes some 2700 bytes of each."""

_FINISHED = (
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
)
# A run that is merely recorded (NOT_STARTED) was never submitted: it would block for ever.
UNDER_WAY = [
    status
    for status in dg.DagsterRunStatus
    if status not in (*_FINISHED, dg.DagsterRunStatus.NOT_STARTED)
]


@dataclass(frozen=True)
class Automation:
    """What happens by cron, for the definitions."""

    jobs: Sequence[Any]
    schedules: Sequence[dg.ScheduleDefinition]


def build_automation(
    settings: Settings,
    universe: Universe,
    sources: object,
    bars_job: Any,
    today: date | None = None,
) -> Automation:
    """The schedules of a universe, and the jobs that they start beside the bars' own.

    Args:
        settings: says how many days are asked for again.
        universe: whose calendars there are; who is listed is looked up again at every tick.
        sources: provider -> source, for their publication delays.
        bars_job: what a session starts: every table of the daily graph.
        today: whose trading hours the crons follow; the UTC day unless given.

    Raises:
        UniverseError: a calendar cannot be built.
    """
    today = today or datetime.now(UTC).date()
    calendars = sorted({i.calendar for i in universe.instruments})
    after = {c: publication_delay(universe, c, sources) + MARGIN for c in calendars}
    bars = [
        bars_schedule(Timetable.after_close(calendar, delay, today), bars_job, settings)
        for calendar, delay in after.items()
    ]
    opens = [warm_up_schedule(Timetable.before_open(c, LEAD, today)) for c in calendars]
    documents, macro, insiders = documents_job(), macro_job(), insiders_job()
    return Automation(
        jobs=(documents, macro, insiders, warm_up),
        schedules=(
            *bars,
            documents_schedule(documents, settings),
            macro_schedule(macro, settings),
            insiders_schedule(insiders, settings),
            *opens,
        ),
    )


def publication_delay(universe: Universe, calendar: str, sources: object) -> timedelta:
    """How long after a close the bars of a calendar's instruments can be had from every provider.

    At least as long as the store waits before it calls a bar missing.
    """
    named = {i.source.bars for i in universe.instruments if i.calendar == calendar}
    known = sources if isinstance(sources, Mapping) else {}
    # One that has no bars, by a slip in universe.yaml, fails its runs and not all definitions.
    asked = [s for name in named if isinstance(s := known.get(name), BarSource)]
    return max([Store.publication_delay, *(source.publication_delay for source in asked)])


def schedule_name(what: str, calendar: str, timeframe: str = "1d") -> str:
    """`bars` of `24/5` is `bars_24_5`; timeframes other than daily are named at the end."""
    slug = re.sub(r"\W+", "_", calendar).lower()
    return f"{what}_{slug}" + ("" if timeframe == "1d" else f"_{timeframe}")


# -- bars -----------------------------------------------------------------------------------------


def bars_schedule(
    timetable: Timetable, job: Any, settings: Settings, timeframe: str = "1d"
) -> dg.ScheduleDefinition:
    """Bars of one calendar, and all that follows from them, once per session after its close.

    A run covers [session - `refetch_days`, session], or since the last session that was completed
    (`MAX_CATCH_UP` at most), so that bars restated since are found. It asks for the calendar's own
    instruments where there are several calendars.
    """
    calendar = timetable.calendar
    name = schedule_name("bars", calendar, timeframe)

    @dg.schedule(
        name=name,
        job=job,
        cron_schedule=timetable.crons,
        execution_timezone=timetable.zone.key,
        required_resource_keys={"universe"},
        description=(
            f"Bars of {calendar} and all that is computed from them, after each close: ticks at "
            f"{_times(timetable)} ({timetable.zone.key}), {_minutes(timetable.offset)} after the "
            "hours at which sessions end. A tick that no session has ended for says why and starts "
            f"nothing. A run asks for the session and for {settings.refetch_days} days before it, "
            "so that restated bars are found. Off until you switch it on: it asks the providers."
        ),
        tags={"feature_pipeline/subject": "bars", TIMEFRAME_TAG: timeframe},
        metadata={"calendar": calendar, "timeframe": timeframe},
    )
    def bars(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        universe: Universe = context.resources.universe
        moment = context.scheduled_execution_time
        runs = Runs(context, {CALENDAR_TAG: calendar, TIMEFRAME_TAG: timeframe})
        tick = timetable.tick(moment)
        session = tick.session or _missed(runs, timetable.newest(moment))
        day = session.day if session else tick.day
        if not universe.listed(calendar, day, day):
            return dg.SkipReason(nobody(universe, calendar, day))
        if session is None:
            return dg.SkipReason(tick.reason)
        first = _first_day(day, settings.refetch_days, runs.completed(SESSION_TAG))
        tags = {CALENDAR_TAG: calendar, TIMEFRAME_TAG: timeframe, SESSION_TAG: day.isoformat()}
        if len({i.calendar for i in universe.instruments}) > 1:
            tags |= only(universe.listed(calendar, first, day))
        return request(f"{name} {day}", first, day, tags)

    return bars


def _missed(runs: Runs, newest: Session | None) -> Session | None:
    """The newest session, if the schedule was at work before it and nobody asked for it: the
    daemon was down at its tick."""
    if newest is None:
        return None
    last = runs.newest()
    if last is None or last.tags.get(SESSION_TAG, "") >= newest.day.isoformat():
        return None
    return None if runs.newest({SESSION_TAG: newest.day.isoformat()}) else newest


def only(symbols: Sequence[str]) -> dict[str, str]:
    """The tag that has sources asked for these symbols alone; everybody where they are too many
    for a tag, which costs requests and changes nothing else."""
    value = ",".join(symbols)
    return {SYMBOLS_TAG: value} if len(value) <= MAX_SYMBOLS_TAG else {}


# -- documents ------------------------------------------------------------------------------------


def documents_job() -> Any:
    """News, posts and their scores."""
    return dg.define_asset_job(
        DOCUMENTS,
        selection=dg.AssetSelection.assets("news", "reddit", "sentiment_scores"),
        description="News articles, Reddit posts and the sentiment of both.",
        executor_def=dg.in_process_executor,
        # The next run waits for the end of this one: a provider that hangs must not stop them all.
        tags={"feature_pipeline/subject": "documents", MAX_RUNTIME_SECONDS_TAG: "3600"},
    )


def documents_schedule(job: Any, settings: Settings) -> dg.ScheduleDefinition:
    """Documents and their scores, every 15 minutes, one run at a time.

    A run covers the days from `documents_from` to its own: shortly after midnight the day before,
    too, and after an outage what it left out.
    """

    @dg.schedule(
        name=DOCUMENTS,
        job=job,
        cron_schedule="*/15 * * * *",
        execution_timezone="UTC",
        required_resource_keys={"universe"},
        description=(
            "News, Reddit and their sentiment of today (UTC), every 15 minutes; within an hour "
            "after midnight of yesterday, too, and after an outage of the days since the last run "
            "that succeeded. Skips while the run before is queued or under way. Off until you "
            "switch it on: it asks the providers."
        ),
        tags={"feature_pipeline/subject": "documents"},
    )
    def documents(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        universe: Universe = context.resources.universe
        moment = context.scheduled_execution_time.astimezone(UTC)
        today = moment.date()
        if not _has_documents(universe, today):
            return dg.SkipReason(
                f"No instrument with a source of news or posts is listed on {today}: extend a "
                "membership in universe.yaml, or name a source."
            )
        runs = Runs(context, {SCHEDULE_NAME_TAG: DOCUMENTS})
        busy = runs.newest(statuses=UNDER_WAY)
        if busy is not None:
            return dg.SkipReason(
                f"The run before, {busy.run_id}, is {busy.status.value.lower()} still: the tick "
                "after its end asks for what is new since."
            )
        done = scheduled(runs.newest(statuses=[dg.DagsterRunStatus.SUCCESS]))
        first = documents_from(moment, done, settings.refetch_days)
        return request(f"{DOCUMENTS} {moment:%Y-%m-%dT%H:%MZ}", first, today, {})

    return documents


def documents_from(moment: datetime, done: datetime | None, refetch_days: int) -> date:
    """The first UTC day that a run of `moment` asks documents of.

    That of `REOPENED` before the last run that succeeded (`done`): a document that a feed shows up
    to so much later is in some run, whichever runs fail. At most `refetch_days` back, and with
    any setting as far as around midnight.
    """
    since = min(done or moment, moment) - REOPENED
    return max(since.date(), moment.date() - timedelta(days=max(refetch_days, 1)))


def _has_documents(universe: Universe, day: date) -> bool:
    return any(
        (i.source.news or i.source.reddit)
        and i.first_day <= day
        and (i.end_day is None or day < i.end_day)
        for i in universe.instruments
    )


def scheduled(run: dg.DagsterRun | None) -> datetime | None:
    """The time that a run was scheduled for, UTC."""
    told = run.tags.get(SCHEDULED_EXECUTION_TIME_TAG) if run else None
    return datetime.fromisoformat(told).astimezone(UTC) if told else None


# -- macro ----------------------------------------------------------------------------------------


def macro_job() -> Any:
    """Macro series."""
    return dg.define_asset_job(
        MACRO,
        selection=dg.AssetSelection.assets("macro_indicators"),
        description="VIX, interest rates, prices and unemployment, with their revisions.",
        executor_def=dg.in_process_executor,
        tags={"feature_pipeline/subject": "macro"},
    )


def macro_schedule(job: Any, settings: Settings) -> dg.ScheduleDefinition:
    """Macro series after FRED's publication hours (`MACRO_CRONS`), with `refetch_days` before."""

    @dg.schedule(
        name=MACRO,
        job=job,
        cron_schedule=list(MACRO_CRONS),
        execution_timezone=MACRO_ZONE,
        description=(
            "Macro series after FRED has them, Monday to Friday: at 10:00 (the VIX of the day "
            "before, prices and jobs) and 18:00 (the rates of H.15), New York time; with "
            f"the {settings.refetch_days} days before, so that late releases and revisions are "
            "found. Off until you switch it on: it asks the provider."
        ),
        tags={"feature_pipeline/subject": "macro"},
    )
    def macro(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        return _since_the_last(context, MACRO, settings)

    return macro


# -- insiders -------------------------------------------------------------------------------------


def insiders_job() -> Any:
    """Transactions of insiders."""
    return dg.define_asset_job(
        INSIDERS,
        selection=dg.AssetSelection.assets("insider_transactions"),
        description="What insiders of the companies bought and sold, as they filed it.",
        executor_def=dg.in_process_executor,
        tags={"feature_pipeline/subject": "insiders"},
    )


def insiders_schedule(job: Any, settings: Settings) -> dg.ScheduleDefinition:
    """Filings of the day after EDGAR has closed (`INSIDERS_CRON`), with `refetch_days` before."""

    @dg.schedule(
        name=INSIDERS,
        job=job,
        cron_schedule=INSIDERS_CRON,
        execution_timezone=INSIDERS_ZONE,
        required_resource_keys={"universe"},
        description=(
            "What insiders have filed, Monday to Friday at 22:30 New York time, when EDGAR has "
            f"closed; with the {settings.refetch_days} days before. Skips where no instrument has "
            "a source of insiders. Off until you switch it on: it asks the provider."
        ),
        tags={"feature_pipeline/subject": "insiders"},
    )
    def insiders(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        universe: Universe = context.resources.universe
        if not universe.providers("insiders"):
            return dg.SkipReason(
                "No instrument has a source of insiders: name one in universe.yaml, as "
                "`source: {insiders: edgar}` with the company's `cik`."
            )
        return _since_the_last(context, INSIDERS, settings)

    return insiders


# -- Redis ----------------------------------------------------------------------------------------


def warm_up_schedule(timetable: Timetable) -> dg.ScheduleDefinition:
    """Everything to Redis, `LEAD` before a calendar's sessions open."""
    calendar = timetable.calendar
    name = schedule_name("warm_up", calendar)

    @dg.schedule(
        name=name,
        job=warm_up,
        cron_schedule=timetable.crons,
        execution_timezone=timetable.zone.key,
        required_resource_keys={"universe"},
        description=(
            f"Publishes the newest of everything to Redis before {calendar} opens: ticks at "
            f"{_times(timetable)} ({timetable.zone.key}), {_minutes(-timetable.offset)} before the "
            "hours at which sessions begin. Skips, with the reason, where none does. Off until you "
            "switch it on; it asks no provider."
        ),
        tags={"feature_pipeline/subject": "online"},
        metadata={"calendar": calendar},
    )
    def republish(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        universe: Universe = context.resources.universe
        tick = timetable.tick(context.scheduled_execution_time)
        if not universe.listed(calendar, tick.day, tick.day):
            return dg.SkipReason(nobody(universe, calendar, tick.day))
        if tick.session is None:
            return dg.SkipReason(tick.reason)
        tags = {CALENDAR_TAG: calendar, SESSION_TAG: tick.day.isoformat()}
        return dg.RunRequest(run_key=f"{name} {tick.day}", tags=tags)

    return republish


# -- what they share ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runs:
    """The runs that carry some tags. None where a tick has no instance to ask (a dry evaluation).

    Retries and re-executions carry the tags of their first run and count like it.
    """

    context: dg.ScheduleEvaluationContext
    tags: Mapping[str, str]

    def newest(
        self,
        tags: Mapping[str, str] | None = None,
        statuses: Sequence[dg.DagsterRunStatus] = (),
    ) -> dg.DagsterRun | None:
        """The run recorded last."""
        if self.context.instance_ref is None:
            return None
        wanted = dg.RunsFilter(tags={**self.tags, **(tags or {})}, statuses=list(statuses))
        return next(iter(self.context.instance.get_runs(wanted, limit=1)), None)

    def completed(self, tag: str) -> date | None:
        """The day in a tag of the last run that succeeded."""
        run = self.newest(statuses=[dg.DagsterRunStatus.SUCCESS])
        told = run.tags.get(tag) if run else None
        return date.fromisoformat(told) if told else None


def _first_day(day: date, refetch_days: int, completed: date | None) -> date:
    """The first day to ask for."""
    first = day - timedelta(days=refetch_days)
    since = max(completed or first, day - MAX_CATCH_UP)
    return max(min(first, since), GRID_START)


def _since_the_last(
    context: dg.ScheduleEvaluationContext, schedule: str, settings: Settings
) -> dg.RunRequest:
    """The days up to the tick's own, with `refetch_days` before, or since a run that succeeded."""
    moment = context.scheduled_execution_time.astimezone(UTC)
    runs = Runs(context, {SCHEDULE_NAME_TAG: schedule})
    done = runs.completed(ASSET_PARTITION_RANGE_END_TAG)
    first = _first_day(moment.date(), settings.refetch_days, done)
    return request(f"{schedule} {moment:%Y-%m-%dT%H:%MZ}", first, moment.date(), {})


def request(run_key: str, first: date, last: date, tags: Mapping[str, str]) -> dg.RunRequest:
    """One run of the days [first, last]."""
    days = {
        ASSET_PARTITION_RANGE_START_TAG: first.isoformat(),
        ASSET_PARTITION_RANGE_END_TAG: last.isoformat(),
    }
    return dg.RunRequest(run_key=run_key, tags={**days, **tags})


def _times(timetable: Timetable) -> str:
    return " and ".join(f"{at:%H:%M}" for at in timetable.times)


def _minutes(offset: timedelta) -> str:
    return f"{offset // timedelta(minutes=1)} minutes"
