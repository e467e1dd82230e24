"""Yahoo Finance through yfinance: daily and intraday bars, splits and dividends, without a key.

Here is which tickers are asked for what, and that one which fails costs itself alone. How Yahoo is
asked is `client.py`'s, what a chart says `chart.py`'s, what it means for an instrument `rows.py`'s.

Every question reaches to now, whatever its range: Yahoo adjusts prices for the splits since, and an
answer has prices and splits of one moment. What was traded at a window years ago is thus one
request, and two answers are never mixed.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import polars as pl

from feature_pipeline.errors import SourceError
from feature_pipeline.schemas import CORPORATE_ACTIONS, Fetched, TableSchema, ohlcv
from feature_pipeline.sources import Kind
from feature_pipeline.sources.http import Limits, Politeness
from feature_pipeline.sources.yahoo import chart as charts
from feature_pipeline.sources.yahoo.chart import Chart, ShapeError
from feature_pipeline.sources.yahoo.errors import RefusedError
from feature_pipeline.sources.yahoo.rows import (
    basis,
    daily,
    events,
    intraday,
    listed,
    while_listed,
    within,
)
from feature_pipeline.universe import Instrument, midnight

if TYPE_CHECKING:
    from feature_pipeline.sources.yahoo.client import ChartClient

NAME = "yfinance"
PUBLICATION_DELAY = timedelta(minutes=15)
"""Yahoo shows most exchanges 15 minutes late."""

LIMITS = Limits(requests=2, seconds=1.0, attempts=4)
"""Yahoo publishes no limit; at two a second 500 tickers take four minutes."""

SPANS = {"1m": timedelta(days=8), "5m": timedelta(days=60), "1h": timedelta(days=730)}
"""How far back intraday bars reach."""

LENGTHS = {"1m": timedelta(minutes=1), "5m": timedelta(minutes=5), "1h": timedelta(hours=1)}

WORKERS = 4
GIVE_UP_AFTER = 8
"""Tickers in a row without any answer, after which the rest is not asked for."""

_TICKER = re.compile(r"[A-Za-z0-9.^=&_-]{1,32}")

log = logging.getLogger(__name__)

_BEFORE = timedelta(days=7)
"""A daily question begins so long before its window: days begin elsewhere before they do in UTC,
and a split on the first of them is judged by the bar before it."""

_AFTER = timedelta(days=1)
"""And ends so long after now: a split of today is stamped with an open that is to come."""


class YahooSource:
    """`BarSource` that asks Yahoo Finance.

    Args:
        limits: its rate and our patience.
        base_url: asked instead of Yahoo's hosts, for tests.
        clock: now, UTC.
    """

    name = NAME
    publication_delay: timedelta = PUBLICATION_DELAY

    def __init__(
        self,
        limits: Limits = LIMITS,
        base_url: str | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.limits = limits
        self._politeness = Politeness(self.name, limits)
        self._base_url = base_url
        self._clock = clock
        self._made: ChartClient | None = None
        self._making = threading.Lock()

    def calls(self, kind: Kind, instruments: Sequence[Instrument], start: date, end: date) -> int:
        """One request per instrument that was listed in `[start, end)`."""
        asked = [i for i in instruments if listed(i, start, end, self._clock())]
        return len(asked) if kind in ("bars", "actions") else 0

    def bars(
        self, instruments: Sequence[Instrument], start: date, end: date, timeframe: str = "1d"
    ) -> Fetched:
        """Bars as traded; `1m` reach back 8 days, `5m` 60 and `1h` 730.

        A daily bar is known at its session's close, an intraday one at its end, each plus
        `publication_delay`, whenever we ask. Rows that are wrong come as they are, for quarantine:
        of another hour than their session's, with their moment as `time`.

        Raises:
            SourceError: no such timeframe, or it does not reach back so far; or no ticker was
                answered at all.
        """
        table = ohlcv(timeframe)
        self._check_reach(timeframe, start)

        def ask(instrument: Instrument) -> pl.DataFrame:
            found, now = self._chart(instrument, start, timeframe)
            if timeframe == "1d":
                rows = daily(found, instrument, now)
            else:
                rows = intraday(found, instrument, LENGTHS[timeframe], now)
            known = pl.col("available_at") + self.publication_delay
            return table.conform(
                within(rows, instrument, start, end, now).select(
                    pl.lit(instrument.id).alias("symbol"),
                    "time",
                    known.alias("available_at"),
                    basis(known, now),
                    *charts.PRICES,
                    "volume",
                    pl.lit(self.name).alias("source"),
                )
            )

        return self._each(table, instruments, start, end, ask)

    def actions(self, instruments: Sequence[Instrument], start: date, end: date) -> Fetched:
        """Splits and dividends as they were paid, known at the open of their ex-date's session.

        Raises:
            SourceError: no ticker was answered at all.
        """
        table = CORPORATE_ACTIONS

        def ask(instrument: Instrument) -> pl.DataFrame:
            found, now = self._chart(instrument, start, "1d")
            known = pl.col("available_at")
            return table.conform(
                events(found, instrument, now)
                .filter(
                    known.is_null()
                    | pl.all_horizontal(
                        known.dt.date().is_between(start, end, closed="left"),
                        *while_listed(instrument, pl.col("time").dt.date()),
                    )
                )
                .select(
                    pl.lit(instrument.id).alias("symbol"),
                    "time",
                    "available_at",
                    basis(known, now),
                    "kind",
                    "value",
                    pl.lit(self.name).alias("source"),
                )
            )

        return self._each(table, instruments, start, end, ask)

    # -- asking -------------------------------------------------------------------------------

    def _check_reach(self, timeframe: str, start: date) -> None:
        if timeframe == "1d":
            return
        if timeframe not in SPANS:
            raise SourceError(
                f"{self.name}: it has no bars of {timeframe}; there is 1d, {', '.join(SPANS)}"
            )
        first = self._clock() - SPANS[timeframe]
        if midnight(start) < first:
            raise SourceError(
                f"{self.name}: {timeframe} bars reach back {SPANS[timeframe].days} days; ask from "
                f"{first.date() + timedelta(days=1)} on, or another source"
            )

    def _chart(self, instrument: Instrument, start: date, timeframe: str) -> tuple[Chart, datetime]:
        """A ticker's chart from a little before `start` to now, and when that is."""
        ticker = instrument.ticker(self.name)
        if not _TICKER.fullmatch(ticker):
            raise RefusedError(
                f"{self.name}: {ticker!r} is no ticker of Yahoo's; correct it in universe.yaml"
            )
        begin = midnight(max(start, instrument.first_day))
        now = self._clock()
        until = now
        if timeframe == "1d":
            begin -= _BEFORE
            until += _AFTER
        found = self._client.chart(ticker, begin, until, timeframe)
        return (charts.NOTHING if found is None else charts.parse(found)), now

    @property
    def _client(self) -> ChartClient:
        with self._making:
            if self._made is None:
                from feature_pipeline.sources.yahoo.client import ChartClient

                self._made = ChartClient(self._politeness, self._base_url)
            return self._made

    def _each(
        self,
        table: TableSchema,
        instruments: Sequence[Instrument],
        start: date,
        end: date,
        ask: Callable[[Instrument], pl.DataFrame],
    ) -> Fetched:
        """Ask for each instrument listed in [start, end); one that fails costs itself.

        Raises:
            SourceError: there was no answer about any of them.
        """
        patience = _Patience(GIVE_UP_AFTER)
        those = [i for i in instruments if listed(i, start, end, self._clock())]
        with ThreadPoolExecutor(WORKERS, f"feature-pipeline-{self.name}") as pool:
            answers = list(pool.map(lambda i: self._one(i, ask, patience), those))
        frames = [answer for answer in answers if isinstance(answer, pl.DataFrame)]
        failed = {
            i.id: answer
            for i, answer in zip(those, answers, strict=True)
            if isinstance(answer, str)
        }
        if those and not patience.answered:
            raise SourceError(next(iter(failed.values())))
        return Fetched(
            pl.concat([table.empty(), *frames]), failed, tuple(i.id for i in instruments)
        )

    def _one(
        self,
        instrument: Instrument,
        ask: Callable[[Instrument], pl.DataFrame],
        patience: _Patience,
    ) -> pl.DataFrame | str:
        """An instrument's rows, or why there are none."""
        if patience.lost:
            return patience.lost
        try:
            rows = ask(instrument)
        except RefusedError as error:
            patience.heard()
            return str(error)
        except ShapeError as error:
            patience.heard()
            ticker = instrument.ticker(self.name)
            return f"{self.name}: the chart of {ticker} cannot be used: {error}"
        except SourceError as error:
            patience.unheard(str(error))
            return str(error)
        except Exception as error:  # whatever one answer does to the libraries, others go on
            patience.heard()
            log.warning("%s: %s", self.name, instrument.id, exc_info=error)
            return f"{self.name}: the answer about {instrument.id} cannot be used ({_short(error)})"
        patience.heard()
        return rows


class _Patience:
    """Ends when nobody answers: the rest of the tickers would only wait for the same."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._silent = 0
        self._lock = threading.Lock()
        self.answered = False
        self.lost = ""

    def heard(self) -> None:
        with self._lock:
            self.answered, self._silent = True, 0

    def unheard(self, why: str) -> None:
        with self._lock:
            self._silent += 1
            if self._silent >= self._most:
                self.lost = f"not asked, for {self._silent} others got no answer: {why}"


def _short(error: Exception) -> str:
    return type(error).__name__
