"""The timeframes of bars: how long one is, and every constant that differs from one to the other.

What a deployment has of them is the universe's to say (`timeframes` in universe.yaml), which bars a
session is made of too. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

DAILY = "1d"
"""The timeframe that every deployment has: splits, documents and macro series come with its job."""

SESSIONS_PER_YEAR = 252
SESSION_OF_A_YEAR = timedelta(hours=6, minutes=30)
"""A session of the US, which bars per year are counted by; its calendar is not asked."""


@dataclass(frozen=True)
class Timeframe:
    """One timeframe.

    Args:
        name: as assets, tables and keys end.
        step: how long a bar is; of daily bars the grid's, whatever a session lasts.
        log_return_limit: what a log return of one bar is clipped to in the state vector.
        days_per_run: days that one run of a backfill takes at most, unless a setting says
            otherwise; 0 - all of them.
        every: how often they are asked for while the market is open; None - after its close.
    """

    name: str
    step: timedelta
    log_return_limit: float
    days_per_run: int
    every: timedelta | None = None

    @property
    def intraday(self) -> bool:
        """Whether a session has several bars."""
        return self.name != DAILY

    @property
    def bars_per_year(self) -> float:
        """What variances are multiplied by to be a year's: 252 sessions of six and a half hours."""
        per_session = SESSION_OF_A_YEAR / self.step if self.intraday else 1
        return SESSIONS_PER_YEAR * per_session


# A return grows with the square root of time: 5 % of a day is 2 % of an hour, 0.6 % of five minutes
# and 0.25 % of one, and a little more, because short returns have the fatter tails.
TIMEFRAMES: Mapping[str, Timeframe] = {
    timeframe.name: timeframe
    for timeframe in (
        Timeframe(
            "1m",
            timedelta(minutes=1),
            log_return_limit=0.003,
            days_per_run=5,
            every=timedelta(minutes=5),
        ),
        Timeframe(
            "5m",
            timedelta(minutes=5),
            log_return_limit=0.007,
            days_per_run=20,
            every=timedelta(minutes=5),
        ),
        Timeframe(
            "1h",
            timedelta(hours=1),
            log_return_limit=0.02,
            days_per_run=90,
            every=timedelta(hours=1),
        ),
        Timeframe(DAILY, timedelta(days=1), log_return_limit=0.05, days_per_run=0),
    )
}
"""By name, the shortest first: what is made of finer bars comes after them."""


MADE_OF: Mapping[str, str] = {"5m": "1m", "1h": "1m"}
"""Timeframe -> the finer one whose bars its own are made of, where a deployment has both."""


def of(asset: str) -> str | None:
    """The timeframe that an asset's name ends with; None where it has none."""
    suffix = asset.rpartition("_")[2]
    return suffix if suffix in TIMEFRAMES else None


def shortest_run(assets: Iterable[str], days_per_run: Mapping[str, int]) -> int:
    """The fewest days that one run of some assets takes; 0 - all of them in one.

    Args:
        assets: which; those without a timeframe come with daily bars.
        days_per_run: timeframe -> its days, as the settings say.
    """
    return min(filter(None, (days_per_run[of(asset) or DAILY] for asset in assets)), default=0)


def stem(asset: str) -> str:
    """An asset's name without its timeframe: `features` of `features_1h`."""
    timeframe = of(asset)
    return asset if timeframe is None else asset.removesuffix(f"_{timeframe}")


def at(asset: str, timeframe: str) -> str:
    """The same asset of another timeframe; one that has none is its own."""
    return asset if of(asset) is None else f"{stem(asset)}_{timeframe}"
