"""What a chart means for one instrument: the session of each bar, and from when it was known.

Pure: a chart in, rows out; the calendar decides what a session is, the listing which days count.
The delay with which Yahoo publishes is the source's (`__init__.py`).
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl

from feature_pipeline.schemas import UTC_TIME
from feature_pipeline.sources.yahoo import chart as charts
from feature_pipeline.sources.yahoo.chart import Chart
from feature_pipeline.universe import Instrument, calendar_sessions

OBSERVED_WITHIN = timedelta(days=1)
"""A row that is collected so soon after it could be had was observed."""

_EARLY, _LATE = timedelta(hours=6), timedelta(hours=2)
"""How far outside of its session the moment of a daily bar may lie; a live one has the last
trade's."""

_VOLUMELESS = ("fx", "index")


def daily(found: Chart, instrument: Instrument, now: datetime) -> pl.DataFrame:
    """Bars by session date; `available_at` is still the session's close.

    A bar that does not lie where its session does keeps its moment as `time`: stamped in a wrong
    zone, it may be any day's, and no daily bar has that time. What Yahoo has of a day without a
    session and without volume is left out.
    """
    rows = _without_live_twin(charts.as_traded(found, _today(found, now)))
    sessions = _sessions(instrument, rows["day"])
    moment = pl.col("moment")
    inside = moment.is_between(pl.col("begins") - _EARLY, pl.col("ends") + _LATE)
    local = rows.with_columns(time=_start_of(pl.col("day"))).join(
        sessions, on="time", how="left", maintain_order="left"
    )
    placed = local.select(
        pl.exclude("begins", "ends", "time"),
        pl.col("ends").is_null().alias("closed"),
        time=pl.when(inside).then("time").otherwise(moment),
    ).join(sessions, on="time", how="left", maintain_order="left")
    stub = pl.col("closed") & pl.col("ends").is_null() & (pl.col("volume").fill_null(0.0) == 0)
    return (
        _with_volume(placed, instrument)
        .filter(~stub | moment.is_null())
        .with_columns(available_at=pl.coalesce("ends", pl.col("time") + timedelta(days=1)))
    )


def intraday(
    found: Chart, instrument: Instrument, length: timedelta, now: datetime
) -> pl.DataFrame:
    """Bars by their beginning; `available_at` is still their end, at the close at the latest.

    Only of regular sessions: what was traded before and after them was not asked for.
    """
    rows = charts.as_traded(found, _today(found, now)).with_columns(time=pl.col("moment"))
    sessions = _sessions(instrument, rows["day"]).select("begins", "ends").sort("begins")
    known = rows.filter(pl.col("time").is_not_null()).sort("time", maintain_order=True)
    known = known.join_asof(sessions, left_on="time", right_on="begins", strategy="backward")
    inside = (pl.col("time") < pl.col("ends")).fill_null(value=False) | (pl.col("time") > now)
    unknown = rows.filter(pl.col("time").is_null()).with_columns(
        pl.lit(None, dtype=UTC_TIME).alias(name) for name in ("begins", "ends")
    )
    rows = pl.concat([known.filter(inside), unknown])
    # The last one may be no bar but the last trade, under its own moment.
    live = (pl.int_range(pl.len()) == pl.len() - 1) & (
        (pl.col("time") - pl.col("begins")).dt.total_seconds() % length.total_seconds() != 0
    ).fill_null(value=False)
    return _with_volume(rows.filter(~live), instrument).with_columns(
        available_at=pl.min_horizontal(pl.col("time") + length, "ends")
    )


def events(found: Chart, instrument: Instrument, now: datetime) -> pl.DataFrame:
    """Splits and dividends by ex-date, known from the open of its session."""
    kinds = {
        "split": found.splits,
        "dividend": charts.dividends_as_paid(found, _today(found, now)),
    }
    rows = pl.concat(
        frame.select("day", pl.lit(kind).alias("kind"), "value", time=_start_of(pl.col("day")))
        for kind, frame in kinds.items()
    )
    sessions = _sessions(instrument, rows["day"])
    return rows.join(sessions, on="time", how="left", maintain_order="left").with_columns(
        available_at=pl.coalesce("begins", "time")
    )


def _today(found: Chart, now: datetime) -> date:
    """The date at the exchange."""
    return now.astimezone(ZoneInfo(found.zone)).date()


def _without_live_twin(rows: pl.DataFrame) -> pl.DataFrame:
    """Without the bar of the last day that a later one repeats: while a market trades, and for a
    while after, Yahoo has its last day twice, the second time up to the last trade."""
    last = rows.tail(2)
    if last.height == 2 and last["day"].n_unique() == 1 and last["moment"].n_unique() == 2:
        return pl.concat([rows.head(-2), last.tail(1)])
    return rows


def _with_volume(rows: pl.DataFrame, instrument: Instrument) -> pl.DataFrame:
    """A market without volume has none; elsewhere one that is missing stays missing."""
    if instrument.asset_class in _VOLUMELESS:
        return rows.with_columns(pl.col("volume").fill_null(0.0))
    return rows


def _sessions(instrument: Instrument, days: pl.Series) -> pl.DataFrame:
    """The sessions around these days: `time` (date, 00:00 UTC), `begins`, `ends` (UTC)."""
    sessions = calendar_sessions(instrument.calendar).rename({"open": "begins", "close": "ends"})
    known = days.drop_nulls().sort()
    if known.is_empty():
        return sessions.clear()
    day = timedelta(days=1)
    return sessions.filter(pl.col("time").dt.date().is_between(known[0] - day, known[-1] + day))


def within(
    rows: pl.DataFrame, instrument: Instrument, start: date, end: date, now: datetime
) -> pl.DataFrame:
    """Rows of the days asked for, while it was listed; and those that are of no time yet."""
    day = pl.col("time").dt.date()
    asked = pl.all_horizontal(
        day.is_between(start, end, closed="left"), *while_listed(instrument, day)
    )
    return rows.filter(asked | pl.col("time").is_null() | (pl.col("time") > now))


def while_listed(instrument: Instrument, day: pl.Expr) -> list[pl.Expr]:
    """Conditions on `day`: it has bars to collect."""
    bounds = [day >= instrument.first_day]
    return bounds if instrument.end_day is None else [*bounds, day < instrument.end_day]


def listed(instrument: Instrument, start: date, end: date, now: datetime) -> bool:
    """Whether it had any day in [start, end) so far."""
    first = max(start, instrument.first_day)
    last = min(end, instrument.end_day or end)
    return first < last and first <= now.date()


def basis(known: pl.Expr, now: datetime) -> pl.Expr:
    """Observed where we are there when it can be had; by what was documented otherwise.

    It says how we came to know; when a row was available does not depend on it.
    """
    live = known.is_between(now - OBSERVED_WITHIN, now)
    return (pl.when(live).then(pl.lit("observed")).otherwise(pl.lit("assumed"))).alias(
        "availability_basis"
    )


def _start_of(day: pl.Expr) -> pl.Expr:
    return day.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
