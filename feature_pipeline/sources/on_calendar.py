"""From a provider's rows of prices to bars on an instrument's calendar, symbol by symbol.

What providers of markets without an exchange's closing bell have in common: which of their rows is
a bar of a session, when it could be had, and what becomes of an instrument that fails. How a
provider is asked, and what its answers look like, is its own module's.

A bar is what its provider says began at `time` and lasted one timeframe. For the calendars `24/5`
and `24/7` of exchange_calendars a session is a UTC day, and a daily bar is that day's: what was
traded on a day without a session (FX opens on Sunday, 17:00 New York) belongs to no bar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta

import polars as pl

from feature_pipeline.errors import SourceError
from feature_pipeline.schemas import Fetched, ohlcv
from feature_pipeline.universe import Instrument, expected_sessions, midnight

LENGTHS: Mapping[str, timedelta] = {
    "1m": timedelta(minutes=1),
    "5m": timedelta(minutes=5),
    "1h": timedelta(hours=1),
    "1d": timedelta(days=1),
}

OBSERVED_WITHIN = timedelta(days=1)
"""A row that is collected so soon after it could be had was observed."""

GIVE_UP_AFTER = 3
"""Instruments in a row whose provider did not answer, after which the rest is not asked for."""

NO_BARS = ohlcv("1d").empty().drop("source", "spread")

Ask = Callable[[Instrument], pl.DataFrame]


class RefusedError(Exception):
    """What the provider answered about one instrument is of no use; the text says why, in one
    line. Of the provider it says nothing."""


def each(source: str, timeframe: str, instruments: Sequence[Instrument], ask: Ask) -> Fetched:
    """Ask for one instrument after the other; one that fails is named, and the others are not
    touched by it.

    A provider that answers nobody fails its own instruments, not the run: others have theirs.
    """
    frames, failed = [], dict[str, str]()
    silent, why = 0, ""
    for instrument in instruments:
        if silent == GIVE_UP_AFTER:
            failed[instrument.id] = f"not asked for: {why}"
            continue
        try:
            frames.append(ask(instrument).with_columns(source=pl.lit(source)))
            silent = 0
        except RefusedError as error:
            failed[instrument.id], silent = str(error), 0
        except SourceError as error:
            failed[instrument.id] = why = str(error)
            silent += 1
    table = ohlcv(timeframe)
    rows = [table.conform(frame) for frame in frames]
    return Fetched(pl.concat([table.empty(), *rows]), failed, tuple(i.id for i in instruments))


def known_timeframe(source: str, timeframe: str) -> timedelta:
    """How long a bar is.

    Raises:
        SourceError: there are no such bars.
    """
    if timeframe not in LENGTHS:
        raise SourceError(f"{source} has no bars of {timeframe!r}; it has {', '.join(LENGTHS)}")
    return LENGTHS[timeframe]


def listed(instrument: Instrument, start: date, end: date) -> tuple[date, date]:
    """The part of `[start, end)` in which its bars are collected; empty where none are."""
    first = max(start, instrument.first_day)
    last = end if instrument.end_day is None else min(end, instrument.end_day)
    return first, max(first, last)


def bars(
    rows: pl.DataFrame,
    instrument: Instrument,
    start: date,
    end: date,
    timeframe: str,
    delay: timedelta,
    now: datetime,
) -> pl.DataFrame:
    """The rows that are bars of the instrument's sessions in `[start, end)`.

    Args:
        rows: `moment` (UTC, when it began), `open`, `high`, `low`, `close`, `volume`, and what
            else goes along.
        instrument: whose they are.
        start, end: the days asked for; a page may hold more.
        timeframe: how long they are.
        delay: the source's `publication_delay`.
        now: UTC.

    Returns:
        The columns of `ohlcv` but `source`. Rows of a later moment than now are left for quarantine
        to tell of; an unfinished bar is one that is not yet available.

    Raises:
        RefusedError: a row begins between two bars of this timeframe: the provider's day, or its
            zone, is another one.
    """
    moment, length = pl.col("moment"), LENGTHS[timeframe]
    inside = moment.is_between(midnight(start), midnight(end), closed="left")
    future = moment > now
    rows = rows.filter((inside | future).fill_null(value=True)).sort("moment", maintain_order=True)
    off = rows.filter(
        ~future & (moment.dt.epoch("us") % (length // timedelta(microseconds=1)) != 0)
    )
    if off.height:
        raise RefusedError(
            f"{instrument.id}: a {timeframe} bar begins at {off['moment'][0]:%Y-%m-%d %H:%M:%S} "
            "UTC, which is between two bars; it may be in another time zone, and none was taken"
        )
    days = timedelta(days=1)
    sessions = expected_sessions([instrument], start - days, end + days).select(
        session="time", opens="open", closes="close"
    )
    if timeframe == "1d":
        found = rows.join(sessions, left_on="moment", right_on="session", how="left")
        ends = pl.max_horizontal("closes", moment + length)
    else:
        found = rows.join_asof(sessions, left_on="moment", right_on="opens", coalesce=False)
        found = found.with_columns(closes=pl.when(moment < pl.col("closes")).then("closes"))
        # The last bar of a session may be shorter.
        ends = pl.min_horizontal(moment + length, "closes")
    traded = found.filter(pl.col("closes").is_not_null() | future | moment.is_null())
    available = ends + delay
    seen = pl.lit(now) - available < OBSERVED_WITHIN
    return traded.select(
        pl.lit(instrument.id).alias("symbol"),
        moment.alias("time"),
        available.alias("available_at"),
        pl.when(seen)
        .then(pl.lit("observed"))
        .otherwise(pl.lit("assumed"))
        .alias("availability_basis"),
        *(c for c in rows.columns if c != "moment"),
    )
