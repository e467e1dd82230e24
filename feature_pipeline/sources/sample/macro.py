"""Made macro series: VIXCLS, DFF and T10Y2Y for 2000 to 2019, with release lags and revisions.

The levels follow the shape of those years (2001, 2008, the years near zero); the values are ours
and no record of anything. They are whole hundredths until the last step, so every machine makes the
same ones.

Observations: VIXCLS and T10Y2Y on XNYS sessions, DFF on every calendar day (a weekend repeats the
day before it). They are released on the session after the first session on or after that day, so
that Saturday to Monday of DFF become known together, on Tuesday: VIXCLS at 14:15 UTC (FRED posts it
in the morning), DFF and T10Y2Y at 21:15 UTC (H.15 comes in the afternoon). About one observation in
sixty is revised two sessions after its release: a second row of the same `time`, with a later
`available_at`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache

import numpy as np
import polars as pl

from feature_pipeline.schemas import MACRO_INDICATORS, UTC_TIME
from feature_pipeline.sources.sample.noise import Ints, below, seed
from feature_pipeline.sources.sample.prices import SOURCE
from feature_pipeline.universe import calendar_sessions

FIRST, LAST = date(2000, 1, 1), date(2019, 12, 31)
_ONE_IN = 60
_REVISED_AFTER = 2


@dataclass(frozen=True)
class Series:
    """How one series is made.

    Args:
        levels: (month, hundredths): straight lines between the first days of these months.
        swing: noise around the level, in hundredths.
        swing_share: noise around the level, in thousandths of it.
        released: time of day, UTC.
        daily: every calendar day rather than every session.
    """

    series_id: str
    name: str
    units: str
    levels: tuple[tuple[str, int], ...]
    swing: int
    swing_share: int
    released: timedelta
    daily: bool = False


SERIES = {
    series.series_id: series
    for series in (
        Series(
            "VIXCLS",
            "CBOE Volatility Index: VIX",
            "Index",
            (
                ("2000-01", 2300),
                ("2000-08", 1850),
                ("2001-04", 2900),
                ("2001-07", 2100),
                ("2001-10", 3600),
                ("2002-03", 2000),
                ("2002-08", 3700),
                ("2003-03", 3100),
                ("2004-01", 1650),
                ("2005-01", 1280),
                ("2006-12", 1150),
                ("2007-08", 2400),
                ("2008-03", 2600),
                ("2008-06", 1950),
                ("2008-09", 2500),
                ("2008-11", 6200),
                ("2009-03", 4400),
                ("2010-01", 2000),
                ("2010-06", 3100),
                ("2011-02", 1700),
                ("2011-07", 1800),
                ("2011-09", 3900),
                ("2012-03", 1650),
                ("2013-01", 1400),
                ("2014-07", 1150),
                ("2015-08", 1500),
                ("2015-09", 2600),
                ("2016-08", 1250),
                ("2017-11", 1050),
                ("2018-02", 2100),
                ("2018-08", 1250),
                ("2018-12", 2500),
                ("2019-12", 1350),
            ),
            swing=0,
            swing_share=220,
            released=timedelta(hours=14, minutes=15),
        ),
        Series(
            "DFF",
            "Federal Funds Effective Rate",
            "Percent",
            (
                ("2000-01", 545),
                ("2000-06", 650),
                ("2000-12", 648),
                ("2001-12", 180),
                ("2002-10", 175),
                ("2003-07", 101),
                ("2004-06", 101),
                ("2006-07", 525),
                ("2007-08", 525),
                ("2008-05", 200),
                ("2008-09", 195),
                ("2008-12", 18),
                ("2015-11", 13),
                ("2016-01", 35),
                ("2016-12", 48),
                ("2017-12", 130),
                ("2018-12", 228),
                ("2019-07", 239),
                ("2019-11", 156),
            ),
            swing=6,
            swing_share=0,
            released=timedelta(hours=21, minutes=15),
            daily=True,
        ),
        Series(
            "T10Y2Y",
            "10-Year Treasury Constant Maturity Minus 2-Year Treasury Constant Maturity",
            "Percent",
            (
                ("2000-01", 20),
                ("2000-08", -45),
                ("2001-03", 60),
                ("2002-01", 190),
                ("2003-08", 255),
                ("2004-06", 190),
                ("2005-12", 8),
                ("2006-11", -12),
                ("2007-05", 5),
                ("2008-03", 200),
                ("2008-12", 150),
                ("2010-02", 280),
                ("2011-02", 270),
                ("2012-07", 125),
                ("2014-01", 255),
                ("2016-07", 88),
                ("2016-12", 130),
                ("2018-12", 15),
                ("2019-08", 0),
                ("2019-12", 30),
            ),
            swing=14,
            swing_share=0,
            released=timedelta(hours=21, minutes=15),
        ),
    )
}


def released(series_ids: Sequence[str], start: date, end: date) -> pl.DataFrame:
    """What was released in `[start, end)`, in the columns of `macro_indicators`."""
    frames = [_made(s) for s in dict.fromkeys(series_ids) if s in SERIES]
    if not frames:
        return MACRO_INDICATORS.empty()
    return pl.concat(frames).filter(
        pl.col("available_at").dt.date().is_between(start, end, closed="left")
    )


def unknown(series_ids: Sequence[str]) -> dict[str, str]:
    """The series the sample does not have, and what to do about each."""
    return {
        s: f"the sample has no series {s}, only {', '.join(SERIES)}; ask another source for it"
        for s in series_ids
        if s not in SERIES
    }


@cache
def _made(series_id: str) -> pl.DataFrame:
    """Every release of a series, sorted by `available_at` and `time`."""
    series = SERIES[series_id]
    sessions = calendar_sessions("XNYS")["time"].cast(pl.Date).to_physical().to_numpy()
    first, last = (_day_number(d) for d in (FIRST, LAST))
    # A week more on each side: the first of January repeats a session of December.
    business = sessions[(sessions >= first - 7) & (sessions <= last)].astype(np.int64)
    on_business = _hundredths(series, business)
    days = np.arange(first, last + 1) if series.daily else business[business >= first]
    values = on_business[np.searchsorted(business, days, side="right") - 1]
    release = np.searchsorted(sessions, days, side="left") + 1

    revised, change = _revisions(series, days)
    time = np.concatenate([days, days[revised]])
    value = np.concatenate([values, values[revised] + change[revised]])
    known = sessions[np.concatenate([release, release[revised] + _REVISED_AFTER])]
    return (
        pl.DataFrame({"time": time, "known": known, "hundredths": value})
        .select(
            pl.lit(series_id).alias("series_id"),
            _midnight("time").alias("time"),
            (_midnight("known") + series.released).alias("available_at"),
            pl.lit("assumed").alias("availability_basis"),
            (pl.col("hundredths") / 100).alias("value"),
            pl.lit(series.name).alias("name"),
            pl.lit(series.units).alias("units"),
            pl.lit("D").alias("frequency"),
            pl.lit(SOURCE).alias("source"),
        )
        .sort("available_at", "time")
    )


def _hundredths(series: Series, days: Ints) -> Ints:
    """Level plus noise, in whole hundredths; integer arithmetic throughout."""
    months = np.array([_day_number(date.fromisoformat(f"{m}-01")) for m, _ in series.levels])
    levels = np.array([level for _, level in series.levels], dtype=np.int64)
    left = np.clip(np.searchsorted(months, days, side="right") - 1, 0, len(months) - 2)
    span, passed = months[left + 1] - months[left], days - months[left]
    rise = levels[left + 1] - levels[left]
    level = levels[left] + rise * np.clip(passed, 0, span) // span
    # Noise in thousandths: five days' whole numbers summed, so that neighbours resemble each other.
    window = np.arange(5)
    drawn = below(401, (days[:, None] - window).astype(np.uint64), seed(series.series_id, "noise"))
    noise = (drawn - 200).sum(axis=1)
    return np.asarray(level + (series.swing + level * series.swing_share // 1000) * noise // 1000)


def _revisions(series: Series, days: Ints) -> tuple[np.ndarray, Ints]:
    key = days.astype(np.uint64)
    revised = below(_ONE_IN, key, seed(series.series_id, "revised")) == 0
    size = 1 + below(3, key, seed(series.series_id, "size"))
    return revised, np.where(below(2, key, seed(series.series_id, "sign")) == 0, size, -size)


def _day_number(day: date) -> int:
    return (day - date(1970, 1, 1)).days


def _midnight(column: str) -> pl.Expr:
    return pl.lit(datetime(1970, 1, 1, tzinfo=UTC), dtype=UTC_TIME) + pl.duration(
        days=pl.col(column)
    )
