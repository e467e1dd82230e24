"""How far behind the tables are: by the sessions that have ended, by age, by what was collected.

Dagster's own freshness looks at materialisations, and a backfill of an old day makes an asset
fresh. Here the newest `available_at` counts. Verdicts like those of `judgements.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta

import polars as pl

from feature_pipeline.assets.verdicts import Verdict, audit, first_of, many
from feature_pipeline.features.declarations import MACRO_SERIES, SCORES
from feature_pipeline.storage.audit import SHOWN, Audit
from feature_pipeline.storage.planning import on_grid
from feature_pipeline.storage.store import Store
from feature_pipeline.universe import calendar_bars, calendar_sessions, midnight

AGE_LIMITS = {
    "news": timedelta(days=3),
    "reddit": timedelta(days=3),
    "macro_indicators": timedelta(days=7),
}
"""How old the newest document, or the newest release of a series, may be."""

LESS_OFTEN = {"W": timedelta(days=14), "M": timedelta(days=45), "Q": timedelta(days=120)}
"""The same of series that are not daily, by their frequency."""

INTRADAY_SLACK = timedelta(minutes=30)
"""How long after it can be had a bar may be missing, while the market is open: schedules ask every
few minutes, and nobody need have traded in the last one."""

_NO_MEMBERS = "the universe has no members today"


def freshness(store: Store, asset: str) -> Verdict:
    """Nothing is behind: the newest `available_at`, whatever was materialised last.

    On the session grid each member is measured by the sessions of its own calendar that have ended,
    and of a session that is open somebody's bar must be there within half an hour; news, posts and
    macro series by their age, scores by the documents, actions by the days collected. Who has left
    is measured to the end of his membership. A universe without members today has nothing that
    could be fresh, nor has a table whose providers are all off: it passes, and that is told.
    """
    today = store.clock().date()
    asked = audit(store, asset, today, today)
    ended = not any(i.end_day is None or i.end_day > today for i in store.universe.instruments)
    if on_grid(asked.table):
        return _sessions_behind(store, asked, ended=ended)
    if asset == SCORES:
        return _scores_behind(store, asked)
    if why := store.planner.why_off(asset):
        return Verdict(True, why, error=False)
    if ended:
        newest = asked.newest()
        said = f"; the newest is of {newest:%Y-%m-%d %H:%M} UTC" if newest else ""
        return Verdict(True, f"{_NO_MEMBERS}{said}", error=False)
    if asset in AGE_LIMITS:
        return _too_old(store, asked, AGE_LIMITS[asset])
    until, last = asked.collected_until(), _last_session(store)
    if until is None or (last is not None and until < last):
        return Verdict(
            False,
            f"{asset} was collected until {until or 'never'}; the last session was {last}",
            error=False,
        )
    return Verdict(True, f"collected until {until}", error=False)


def _sessions_behind(store: Store, asked: Audit, *, ended: bool) -> Verdict:
    """Instruments without their newest session's row."""
    now, delay = asked.now, store.publication_delay
    newest = asked.newest_by_symbol(store.universe.symbols)
    held = dict(newest.select("symbol", "time").iter_rows())
    rows: list[tuple[str, str, date | None, date, int]] = []
    complete: list[date] = []
    current = 0
    due: dict[str, tuple[pl.Series, pl.Series]] = {}
    for instrument in store.universe.instruments:
        calendar = instrument.calendar
        if calendar not in due:
            sessions = calendar_sessions(calendar)
            ended_ones = sessions.filter(pl.col("close") + delay <= now)
            begins = ended_ones["open" if asked.table.intraday else "time"]
            due[calendar] = ended_ones["time"], begins
        times, begins = due[calendar]
        begin, end = instrument.first_day, instrument.end_day
        low = times.search_sorted(midnight(begin), side="left")
        high = times.len() if end is None else times.search_sorted(midnight(end), side="left")
        if high <= low:
            continue  # it has not begun
        last = held.get(instrument.id)
        at = low if last is None else begins.search_sorted(last, side="right")
        if at < high:
            day = None if last is None else last.date()
            rows.append((instrument.id, calendar, day, times[high - 1].date(), high - at))
        elif end is not None and high < times.len():
            complete.append(times[high - 1].date())
        else:
            current += 1
    if asked.table.intraday and not ended and (late := _open_behind(store, asked, held)):
        return Verdict(False, late, error=False, numbers={"behind": len(held)})
    if rows:
        shown = pl.DataFrame(
            rows, schema=["symbol", "calendar", "newest", "last_session", "behind"], orient="row"
        ).sort("behind", "symbol", descending=[True, False])
        said = [
            f"{symbol} by {many(behind, 'session')} (newest {newest or 'none'}, last session "
            f"{last} of {calendar})"
            for symbol, calendar, newest, last, behind in shown.head(3).iter_rows()
        ]
        behind = f"{many(len(rows), 'symbol')} behind: {first_of(said, len(rows))}"
        return Verdict(
            ended,
            f"{_NO_MEMBERS}; to the end of its memberships {behind}" if ended else behind,
            error=False,
            shown=shown.head(SHOWN),
            numbers={"behind": len(rows), "sessions": int(shown["behind"].max())},  # type: ignore[arg-type]
        )
    parts = [_NO_MEMBERS] if ended else []
    if current:
        parts.append(f"{many(current, 'symbol')} up to the last session")
    if complete:
        parts.append(
            f"{many(len(complete), 'symbol')} complete to the end of membership, {max(complete)}"
        )
    return Verdict(
        True,
        "; ".join(parts) or "no session has ended yet",
        error=False,
        numbers={"current": current, "complete": len(complete)},
    )


def _open_behind(store: Store, asked: Audit, held: Mapping[str, datetime]) -> str:
    """The calendars that are open and of whose members nobody has the bar that is due; in words."""
    said = []
    over = asked.now - store.publication_delay - INTRADAY_SLACK
    for calendar in sorted({i.calendar for i in store.universe.instruments}):
        sessions = calendar_sessions(calendar)
        at = int(sessions["open"].search_sorted(over, side="left")) - 1
        if at < 0 or over >= sessions["close"][at]:
            continue  # closed: its sessions have been counted
        first, until = sessions["open"][at].date(), over.date() + timedelta(days=1)
        bars = calendar_bars(calendar, str(asked.table.timeframe), first, until)
        due = bars.filter(pl.col("end") <= over)["time"].max()
        day = sessions["time"][at].date()
        members = store.universe.listed(calendar, day, day)
        newest = max((held[name] for name in members if name in held), default=None)
        if isinstance(due, datetime) and members and (newest is None or newest < due):
            since = f"the newest is of {newest:%Y-%m-%d %H:%M}" if newest else "there is none"
            said.append(f"{calendar} is open, the bar of {due:%H:%M} UTC is due, {since}")
    return "; ".join(said)


def _too_old(store: Store, asked: Audit, limit: timedelta) -> Verdict:
    """Documents of a channel, or releases of a series, of which none is newer than the limit."""
    limits: dict[str, timedelta] = {}
    if asked.table.asset == "macro_indicators":
        held = store.newest_macro(asked.now).select("series_id", "frequency").rows()
        limits = {series: LESS_OFTEN.get(frequency or "", limit) for series, frequency in held}
        wanted = list(dict.fromkeys([*MACRO_SERIES, *limits]))
        found = dict(asked.newest_by_series(wanted).select("symbol", "available_at").rows())
    else:
        found = {asked.table.asset: asked.newest()}
    old = {
        name: newest
        for name, newest in found.items()
        if newest is None or newest < asked.now - limits.get(name, limit)
    }
    limit = min((limits.get(name, limit) for name in old), default=limit)
    if not old:
        newest = max(value for value in found.values() if value is not None)
        return Verdict(True, f"the newest is of {newest:%Y-%m-%d %H:%M} UTC", error=False)
    said = [
        f"{name} is of {newest:%Y-%m-%d %H:%M} UTC, {many((asked.now - newest).days, 'day')} ago"
        if newest
        else f"there is nothing of {name}"
        for name, newest in old.items()
    ]
    return Verdict(
        False,
        f"nothing newer than {limit.days} days: {first_of(said)}",
        error=False,
        numbers={"behind": len(old)},
    )


def _scores_behind(store: Store, asked: Audit) -> Verdict:
    """Documents newer than the newest score."""
    scored = asked.newest()
    channels = [n.asset for n in asked.table.inputs]
    newest = {name: audit(store, name, asked.start, asked.end).newest() for name in channels}
    behind = {
        name: moment
        for name, moment in newest.items()
        if moment is not None and (scored is None or moment > scored)
    }
    if not behind:
        return Verdict(True, "the newest document has its score", error=False)
    said = ", ".join(f"{name} of {moment:%Y-%m-%d %H:%M} UTC" for name, moment in behind.items())
    until = f"{scored:%Y-%m-%d %H:%M} UTC" if scored else "never"
    return Verdict(False, f"scored until {until}; there are newer documents: {said}", error=False)


def _last_session(store: Store) -> date | None:
    """The newest day of which a session has ended."""
    found = []
    for calendar in {i.calendar for i in store.universe.instruments}:
        sessions = calendar_sessions(calendar)
        ended = sessions["time"].filter(
            sessions["close"] + store.publication_delay <= store.clock()
        )
        found.append(ended[-1].date())
    return max(found, default=None)
