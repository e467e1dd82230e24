"""When the ticks of an exchange calendar are, and which session each of them is for.

Arithmetic on the sessions that `universe` builds, in the exchange's own time zone: no Dagster, no
database, no clock. What is done at a tick is the schedules' business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

import polars as pl

from feature_pipeline.universe import Universe, calendar_sessions, midnight

Edge = Literal["open", "close"]

_RECENT = timedelta(days=366)
"""How far back hours count that are not kept any more: early closes come once a year."""

_AROUND = timedelta(days=40)
_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True)
class Session:
    """A session: its date, which is its partition, and its hours in UTC."""

    day: date
    open: datetime
    close: datetime


@dataclass(frozen=True)
class Tick:
    """What a tick is for.

    Args:
        day: the exchange's day that it is about.
        session: the session that is due; None - there is none, and `reason` says why.
        reason: in words; empty where a session is due.
    """

    day: date
    session: Session | None
    reason: str = ""


@dataclass(frozen=True)
class Timetable:
    """The ticks that follow the closes of a calendar, or come before its opens.

    There is a tick on every day at every time of day at which a session of the last year, or of
    those to come, is due: the regular time and those of half days. A session belongs to one tick.

    Args:
        calendar: name of an exchange calendar.
        zone: the exchange's time zone; days and times of day are in it.
        edge: what the ticks follow (`close`) or come before (`open`).
        offset: from the edge to the tick; negative before an open.
        times: times of day of the ticks, sorted.
    """

    calendar: str
    zone: ZoneInfo
    edge: Edge
    offset: timedelta
    times: tuple[time, ...]

    @classmethod
    def after_close(cls, calendar: str, delay: timedelta, today: date) -> Timetable:
        """The first full minute when `delay` after a close is over.

        Raises:
            UniverseError: the calendar cannot be built.
        """
        return cls._of(calendar, "close", -(-delay // timedelta(minutes=1)), today)

    @classmethod
    def before_open(cls, calendar: str, lead: timedelta, today: date) -> Timetable:
        """The full minute that leaves at least `lead` before an open.

        Raises:
            UniverseError: the calendar cannot be built.
        """
        return cls._of(calendar, "open", (-lead) // timedelta(minutes=1), today)

    @classmethod
    def _of(cls, calendar: str, edge: Edge, minutes: int, today: date) -> Timetable:
        zone, hours = trading_hours(calendar, edge, today)
        offset = timedelta(minutes=minutes)
        times = {(datetime.combine(today, hour) + offset).time() for hour in hours}
        return cls(calendar, zone, edge, offset, tuple(sorted(times)))

    @property
    def crons(self) -> list[str]:
        """One cron expression per time of day, every day of the week, in `zone`."""
        return [f"{at.minute} {at.hour} * * *" for at in self.times]

    def tick(self, moment: datetime) -> Tick:
        """What the tick of `moment` is for; nothing that `moment` could not know counts."""
        sessions = self._around(moment)
        day = self._day(moment - self.offset)
        for session in sessions:
            if self._is_for(moment, self._due(session)):
                return Tick(session.day, session)
        own = next((s for s in sessions if self._day(getattr(s, self.edge)) == day), None)
        return Tick(day, None, self._other(own, moment) if own else self._closed(day, sessions))

    def newest(self, moment: datetime) -> Session | None:
        """The last session that was due by `moment`."""
        due = [s for s in self._around(moment) if self._due(s) <= moment]
        return due[-1] if due else None

    def local(self, moment: datetime) -> str:
        """Its time of day at the exchange, as people write it."""
        return f"{moment.astimezone(self.zone):%H:%M}"

    # -- which tick ---------------------------------------------------------------------------

    def _due(self, session: Session) -> datetime:
        return _due(session, self.edge, self.offset)

    def _is_for(self, moment: datetime, due: datetime) -> bool:
        """Whether a session's tick is this one: the first that is late enough for what follows a
        close, the last that is early enough for what precedes an open. Hours that no tick was made
        for find one, too."""
        if self.edge == "close":
            return self._neighbour(moment, -1) < due <= moment
        return moment <= due < self._neighbour(moment, 1)

    def _neighbour(self, moment: datetime, step: Literal[-1, 1]) -> datetime:
        """The tick before or after `moment`."""
        today = moment.astimezone(self.zone).date()
        ticks = [
            datetime.combine(today + timedelta(days=days), at, self.zone).astimezone(UTC)
            for days in (-1, 0, 1)
            for at in self.times
        ]
        if step < 0:
            return max(tick for tick in ticks if tick < moment)
        return min(tick for tick in ticks if tick > moment)

    def _day(self, edge: datetime) -> date:
        """The exchange's day of an open or a close; a close at midnight ends the day before."""
        if self.edge == "close":
            edge -= _INSTANT
        return edge.astimezone(self.zone).date()

    def _around(self, moment: datetime) -> Sequence[Session]:
        known = calendar_sessions(self.calendar)
        low, high = (
            int(known["time"].search_sorted(at.astimezone(UTC), side="left"))
            for at in (moment - _AROUND, moment + _AROUND)
        )
        return _sessions(known[low:high])

    # -- in words -----------------------------------------------------------------------------

    def _other(self, session: Session, moment: datetime) -> str:
        """Why this tick is not the one of a session of its day."""
        on, tick = _named(session.day), self.local(self._due(session))
        if self.edge == "open":
            at = self.local(session.open)
            return f"{self.calendar} opens at {at} on {on}: the tick for that is {tick}'s."
        at = self.local(session.close)
        if self._due(session) > moment:
            return (
                f"{self.calendar} trades until {at} ({self.zone.key}) on {on}: its bars are asked "
                f"for at {tick}."
            )
        return (
            f"{self.calendar} closed at {at} ({self.zone.key}) already on {on}: the tick of {tick} "
            "was the one for its bars."
        )

    def _closed(self, day: date, sessions: Sequence[Session]) -> str:
        """Why there is no session on a day."""
        week = {self._day(getattr(session, self.edge)).weekday() for session in sessions}
        if not week:
            return self._unknown(day)
        why = "holiday" if day.weekday() in week else "weekend"
        verb = "has no session" if self.edge == "close" else "does not open"
        later = [s for s in sessions if self._day(getattr(s, self.edge)) > day]
        said = f"{self.calendar} {verb} on {_named(day)} ({why})"
        if later:
            return f"{said}; its next session is {_named(later[0].day)}."
        return f"{said}. {self._unknown(day)}"

    def _unknown(self, day: date) -> str:
        last = calendar_sessions(self.calendar)["time"][-1].date()
        if last > day:
            return f"{self.calendar} has no session within {_AROUND.days} days of {_named(day)}."
        return (
            f"The installed exchange_calendars knows no session of {self.calendar} after {last}: "
            "install a newer release of it."
        )


def trading_hours(calendar: str, edge: Edge, today: date) -> tuple[ZoneInfo, set[time]]:
    """The exchange's time zone, and the times of day at which its sessions open or close: those of
    the last year and of the years to come, half days included.

    Raises:
        UniverseError: the calendar cannot be built, and does not declare its hours.
    """
    try:
        return _declared_hours(calendar, edge, today)
    except Exception:  # another release of the package declares them elsewhere, or this one nowhere
        return _kept_hours(calendar, edge, today)


def _declared_hours(calendar: str, edge: Edge, today: date) -> tuple[ZoneInfo, set[time]]:
    """From what the calendar's class declares. Building the calendar takes 0.1 s, all of which the
    definitions would wait for when they load; this takes some milliseconds.

    Raises:
        LookupError: the class does not declare all of them.
    """
    import pandas as pd
    from exchange_calendars import ExchangeCalendar, resolve_alias
    from exchange_calendars.calendar_utils import global_calendar_dispatcher

    made_by = global_calendar_dispatcher._calendar_factories[resolve_alias(calendar)]
    if made_by.apply_special_offsets is not ExchangeCalendar.apply_special_offsets:
        raise LookupError(f"{calendar} shifts the hours of some sessions when it is built")
    declared: Any = object.__new__(made_by)
    first, last = pd.Timestamp(today - _RECENT), pd.Timestamp(today + 2 * _RECENT)
    usual = list(getattr(declared, f"{edge}_times"))
    until = [since for since, _ in usual[1:]] + [None]
    hours = {
        at
        for (_, at), end in zip(usual, until, strict=True)
        if end is None or end > first  # not given up before
    }
    for at, when in getattr(declared, f"special_{edge}s"):
        if isinstance(when, int) or len(when.holidays(first, last)):  # a day of the week, or dates
            hours.add(at)
    for at, days in getattr(declared, f"special_{edge}s_adhoc"):
        if any(first <= pd.Timestamp(day) <= last for day in days):
            hours.add(at)
    return declared.tz, hours


def _kept_hours(calendar: str, edge: Edge, today: date) -> tuple[ZoneInfo, set[time]]:
    """From the sessions themselves."""
    import exchange_calendars

    try:
        built = exchange_calendars.get_calendar(
            calendar, start=str(today - _RECENT), end=str(today + _RECENT)
        )
    except (ValueError, NotImplementedError):  # it knows its holidays for fewer years
        calendar_sessions(calendar)  # says so if it knows none
        built = exchange_calendars.get_calendar(calendar)
    edges = getattr(built, f"{edge}s")
    # Of a calendar that its package has not extended: the hours that were kept last.
    first = min(edges.index[-1].date(), today) - _RECENT
    zone: ZoneInfo = built.tz
    return zone, set(edges[edges.index.date >= first].dt.tz_convert(zone).dt.time)


def nobody(universe: Universe, calendar: str, day: date) -> str:
    """Why no instrument of a calendar is listed on a day, in words."""
    said = f"No instrument of {calendar} is listed on {_named(day)}"
    own = [i for i in universe.instruments if i.calendar == calendar]
    if not own:
        return f"{said}: universe.yaml has none with that calendar any more."
    first = min((i.first_day for i in own if i.first_day > day), default=None)
    if first is not None:
        return f"{said}: the next one is from {first}."
    last = max(i.end_day for i in own if i.end_day is not None) - timedelta(days=1)
    return f"{said}: the last one was on {last}. Extend a membership in universe.yaml."


def _due(session: Session, edge: Edge, offset: timedelta) -> datetime:
    due: datetime = getattr(session, edge) + offset
    # East of Greenwich a half day can end before its own partition has begun.
    return max(due, midnight(session.day)) if edge == "close" else due


def _sessions(frame: pl.DataFrame) -> list[Session]:
    rows = frame.select(pl.col("time").dt.date(), "open", "close").iter_rows()
    return [Session(day, opened, closed) for day, opened, closed in rows]


def _named(day: date) -> str:
    return f"{day:%A} {day}"
