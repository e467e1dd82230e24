"""FRED: macro series of the St. Louis Fed, and from ALFRED their releases, by the client `fredapi`.

What a series said at a moment, and from which moment on, is settled here; how FRED is asked is
`http.py`'s, which `fredapi` is put on top of (alone it has neither timeouts nor retries, and shows
the key in its errors).

| series | what | known from | calendar |
|---|---|---|---|
| VIXCLS | VIX, close | 10:00 of the next business day | Federal Reserve, XNYS |
| DFF | federal funds rate, of every calendar day | 17:00, as below | Federal Reserve |
| T10Y2Y | 10-year minus 2-year Treasury | 17:00, as below | Federal Reserve |
| DGS10 | 10-year Treasury | 17:00, as below | Federal Reserve |
| CPIAUCSL | consumer prices | 08:30 of the day of its release | - |
| UNRATE | unemployment rate | 08:30 of the day of its release | - |

All hours are New York's, daylight saving included. **Rates** come with H.15 on the business day
after the first business day on or after their date: of Saturday, Sunday and Monday together on
Tuesday. The hours are those by which FRED has had them, and on the late side. A value that we can
see before its hour waits for it. Of **releases** FRED has the date (`realtime_start`); the hour
is that of the Bureau of Labor Statistics. A revision is a row of its own, from its release on.

So every moment is `assumed`: none is taken from when we happened to ask. Daily series come as they
are held today: their thousands of vintages are more than ALFRED gives out, and a later correction
replaces the row (what was held before is in its history).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from feature_pipeline.errors import SourceError
from feature_pipeline.schemas import GRID_START, MACRO_INDICATORS, Fetched
from feature_pipeline.sources import Kind
from feature_pipeline.sources.http import Limits, Politeness, PoliteSession
from feature_pipeline.universe import Instrument, calendar_sessions

if TYPE_CHECKING:
    import pandas as pd
    import requests
    from fredapi import Fred

ROOT_URL = "https://api.stlouisfed.org/fred"

LIMITS = Limits(requests=1, seconds=0.6, max_bytes=16 << 20)
"""FRED refuses more than 2 requests a second and more than 120 a minute."""

NEW_YORK = ZoneInfo("America/New_York")
CENTRAL = ZoneInfo("America/Chicago")
"""Where FRED's today is."""

WINDOW = timedelta(days=5 * 365)
"""Of releases that are asked for at once: ALFRED refuses more than 2000 vintages, and no series has
more than one a day."""

GIVE_UP = 2
"""After so many series in a row without an answer the others are not asked for."""

_DAY = timedelta(days=1)
_LONGEST_LAG = timedelta(days=14)
_DEEPEST = 3
_LONGEST_MESSAGE = 200
_ANSWERS = ("seriess", "observations", "vintage_dates")


@dataclass(frozen=True)
class Series:
    """From when on a value of a series is known.

    Args:
        hour: of the day on which it is, New York time.
        releases: the days are ALFRED's, revisions included; else a lag gives them.
        overnight: known on the first business day after its date; else on the one after the first
            business day on or after its date.
        exchange: business days are sessions of XNYS as well.
    """

    hour: time
    releases: bool = False
    overnight: bool = False
    exchange: bool = False


SERIES: Mapping[str, Series] = {
    "VIXCLS": Series(time(10), overnight=True, exchange=True),
    "DFF": Series(time(17)),
    "T10Y2Y": Series(time(17)),
    "DGS10": Series(time(17)),
    "CPIAUCSL": Series(time(8, 30), releases=True),
    "UNRATE": Series(time(8, 30), releases=True),
}


class FredSource:
    """Macro series from FRED, releases from ALFRED.

    Args:
        key: of the FRED API.
        catalogue: the series that are collected, and from when on they are known.
        root_url: address of the API.
        limits: see `LIMITS`.
        clock: UTC now.
    """

    name = "fred"

    def __init__(
        self,
        key: str,
        *,
        catalogue: Mapping[str, Series] = SERIES,
        root_url: str = ROOT_URL,
        limits: Limits = LIMITS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.series: Sequence[str] = tuple(catalogue)
        self._catalogue = catalogue
        self._key = key
        self._root_url = root_url.rstrip("/")
        self.limits = limits
        self._clock = clock
        self._held: Fred | None = None

    def calls(
        self,
        kind: Kind,  # noqa: ARG002 - there is one
        instruments: Sequence[Instrument],  # noqa: ARG002
        start: date,
        end: date,
    ) -> int:
        """One for what each series is called, and one for its values or for each `WINDOW` of its
        releases."""
        windows = len(list(_windows(start, end)))
        return sum(1 + (windows if s.releases else 1) for s in self._catalogue.values())

    def macro(self, series_ids: Sequence[str], start: date, end: date) -> Fetched:
        """What became known in [start, end), up to now; a series that could not be had has failed.

        Raises:
            SourceError: none of them could be had.
        """
        frames, failed = [MACRO_INDICATORS.empty()], {}
        silent = 0
        for series_id in dict.fromkeys(series_ids):
            if series_id not in self._catalogue:
                failed[series_id] = (
                    f"fred: nobody knows when {series_id} is published; ask for one of "
                    f"{', '.join(self._catalogue)}"
                )
            elif silent >= GIVE_UP:
                failed[series_id] = (
                    f"fred: {series_id} was not asked for, after {silent} series without an "
                    "answer; the next run asks again"
                )
            else:
                try:
                    frames.append(self._series(series_id, start, end))
                    silent = 0
                except SourceError as error:
                    failed[series_id] = str(error)
                    silent += not isinstance(error, _RefusedError)
        if failed and len(failed) == len(set(series_ids)):
            raise SourceError(next(iter(failed.values())))
        return Fetched(pl.concat(frames), failed, tuple(series_ids))

    def _series(self, series_id: str, start: date, end: date) -> pl.DataFrame:
        """One series, in the columns of the table."""
        series = self._catalogue[series_id]
        known = self._releases if series.releases else self._daily
        frame = known(series_id, start, end)
        about = self._asked("get_series_info", series_id)
        told = {"name": "title", "units": "units", "frequency": "frequency_short"}
        return (
            MACRO_INDICATORS.conform(
                frame.with_columns(
                    pl.lit(series_id).alias("series_id"),
                    _moment("known", series.hour).alias("available_at"),
                    pl.lit("assumed").alias("availability_basis"),
                    *(pl.lit(str(about.get(said) or "")).alias(own) for own, said in told.items()),
                    pl.lit(self.name).alias("source"),
                ).drop("known")
            )
            .filter(pl.col("available_at").dt.date().is_between(start, end, closed="left"))
            .filter(pl.col("available_at") <= self._clock())
            .sort("available_at", "time")
        )

    def _daily(self, series_id: str, start: date, end: date) -> pl.DataFrame:
        """`time`, `value` and the day on which it is `known`, by the series' lag."""
        found = self._asked(
            "get_series",
            series_id,
            observation_start=(start - _LONGEST_LAG).isoformat(),
            observation_end=(end - _DAY).isoformat(),
        ).dropna()
        frame = _observations(found.index, found)
        days = frame["time"].dt.date().cast(pl.Int32).cast(pl.Int64).to_numpy()
        series = self._catalogue[series_id]
        business = business_days(exchange=series.exchange)
        if series.overnight:
            at = np.searchsorted(business, days, side="right")
        else:
            at = np.searchsorted(business, days, side="left") + 1
        inside = at < len(business)  # beyond the calendar's end nothing is known
        known = pl.Series(business[np.where(inside, at, 0)], dtype=pl.Int32).cast(pl.Date)
        return frame.with_columns(known=known).filter(pl.Series(inside, dtype=pl.Boolean))

    def _releases(self, series_id: str, start: date, end: date) -> pl.DataFrame:
        """`time`, `value` and the day of each release in [start, end), on which it is `known`.

        ALFRED says of every value that holds in the time asked for since when it does, but not
        since before that time began. So it is asked for from a day earlier, and what holds since
        that day is left out: it is older, or of the day before.
        """
        today = self._clock().astimezone(CENTRAL).date()
        frames = [_observations([], []).with_columns(known=pl.lit(None, pl.Date))]
        for first, beyond in _windows(start, min(end, today + _DAY)):
            period = ((first - _DAY).isoformat(), (beyond - _DAY).isoformat())
            found = self._asked("get_series_all_releases", series_id, *period)
            if found.empty:
                continue
            found = found.dropna(subset=["value"])
            frame = _observations(found["date"], found["value"]).with_columns(
                known=_days(found["realtime_start"])
            )
            frames.append(frame.filter(pl.col("known") >= first))
        return pl.concat(frames)

    def _asked(self, method: str, series_id: str, *more: str, **named: str) -> Any:
        """What a method of `fredapi` answers; what it makes of nonsense is an error of ours."""
        try:
            return getattr(self._fred, method)(series_id, *more, **named)
        except (ValueError, TypeError) as error:
            raise SourceError(
                f"fred: {series_id} has something that is no observation ({type(error).__name__}); "
                "the next run asks again"
            ) from None

    @property
    def _fred(self) -> Fred:
        """The client; made when it is first needed, for it brings pandas along."""
        if self._held is None:
            session = PoliteSession(Politeness(self.name, self.limits))
            self._held = _client(self._key, self._root_url, session)
        return self._held


class _RefusedError(SourceError):
    """FRED answered, and said no."""


def _client(key: str, root_url: str, session: PoliteSession) -> Fred:
    """`fredapi`, asking through our session."""
    import fredapi

    class Client(fredapi.Fred):
        """Its one private method that asks the network is ours."""

        def __init__(self) -> None:
            # Not the parent's: where it sees a proxy, it installs an opener for the process.
            self.api_key = key
            self.root_url = root_url

        def _Fred__fetch_data(self, url: str) -> ET.Element:  # noqa: N802 - as Python mangles it
            address, _, query = url.partition("?")
            endpoint = address.removeprefix(root_url)
            return _root(session.get(f"{address}?{query}", params={"api_key": key}), endpoint, key)

    return Client()


def _root(response: requests.Response, endpoint: str, key: str) -> ET.Element:
    """What FRED answered, as XML.

    Raises:
        SourceError: it is none of FRED's answers.
        _RefusedError: it is an error of FRED's; says which.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import DefusedXMLParser

    parser = DefusedXMLParser(target=_Shallow(), forbid_dtd=True)
    status = response.status_code
    try:
        parser.feed(response.content)
        root = parser.close()
    except (ET.ParseError, DefusedXmlException):
        root = None
    if root is not None and root.tag == "error":
        message = " ".join(str(root.get("message")).replace(key, "***").split())
        raise _RefusedError(f"fred: {endpoint} answered {status}: {message[:_LONGEST_MESSAGE]}")
    if root is None or root.tag not in _ANSWERS or status != 200:
        raise SourceError(
            f"fred: {endpoint} answered {status} with something that is no XML of FRED's; the next "
            "run asks again"
        )
    return root


class _Shallow(ET.TreeBuilder):
    """Builds what is as flat as FRED's answers are: deep nesting costs more than its bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def start(self, tag: Any, attrs: Any) -> ET.Element:
        """See `TreeBuilder.start`."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ET.ParseError("it is nested too deeply")
        return super().start(tag, attrs)

    def end(self, tag: Any) -> ET.Element:
        """See `TreeBuilder.end`."""
        self._depth -= 1
        return super().end(tag)


@cache
def business_days(*, exchange: bool) -> np.ndarray:
    """Day numbers of the days on which the Federal Reserve publishes; those of them that are
    sessions of XNYS. From before the grid to the end of next year.

    A holiday on a Saturday is taken to be kept on Friday, which it is not everywhere: later, if
    anything.
    """
    import pandas as pd
    from pandas.tseries.holiday import USFederalHolidayCalendar

    sessions = calendar_sessions("XNYS")["time"].dt.date()
    first, last = GRID_START - timedelta(days=60), sessions[-1]
    holidays = USFederalHolidayCalendar().holidays(pd.Timestamp(first), pd.Timestamp(last))
    days = pl.date_range(first, last, eager=True)
    open_ = (days.dt.weekday() <= 5) & ~days.is_in([day.date() for day in holidays])
    if exchange:
        open_ &= days.is_in(sessions.implode())
    return days.filter(open_).cast(pl.Int32).cast(pl.Int64).to_numpy()


def _windows(start: date, end: date) -> Iterator[tuple[date, date]]:
    """[start, end) in pieces of at most `WINDOW`."""
    while start < end:
        yield start, min(start + WINDOW, end)
        start += WINDOW


def _observations(
    dates: Sequence[Any] | pd.Series | pd.Index, values: Sequence[float] | pd.Series
) -> pl.DataFrame:
    """`time` (00:00 UTC) and `value`."""
    return pl.DataFrame(
        {
            "time": _days(dates).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
            "value": pl.Series(np.asarray(values, dtype=np.float64)),
        }
    )


def _days(dates: Sequence[Any] | pd.Series | pd.Index) -> pl.Series:
    import pandas as pd

    return pl.Series(pd.DatetimeIndex(dates).as_unit("us").to_numpy()).cast(pl.Date)


def _moment(day: str, hour: time) -> pl.Expr:
    """The hour of a day in New York, UTC."""
    return (
        pl.col(day).dt.combine(hour).dt.replace_time_zone(str(NEW_YORK)).dt.convert_time_zone("UTC")
    )
