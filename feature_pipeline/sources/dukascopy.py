"""FX bars of Dukascopy Bank, through `dukascopy_python` and free of charge.

The package's own code asks and reads; what it would do besides is taken out of its hands, in a
private copy of the module (nobody else who imports it is changed):

- `requests.get` without a time-out becomes a request of our session, at our pace;
- it repeats what fails, once a second; here a question is repeated below it, or not at all;
- it writes to the root logger, which would set up logging for the whole process;
- it poses as a browser. We say who we are, and leave the page that the data belongs to, `Referer`.

Bars are those of the bid side, `spread` is ask - bid at their close. Asking for the ask side too
doubles the requests, so that it is left out where bars are many (`1m`, `5m`).

**Sessions.** A bar is a UTC day, as are the sessions of the calendar `24/5`, which close at
midnight. The market opens on Sunday, 17:00 New York, two or three hours before Monday's session:
Dukascopy files these hours, some 4 % of a day's volume, under Sunday. Such a stub is no bar, and
neither are the flat rows without volume of a weekend; left in, both would bend every range and
average. Christmas and New Year are sessions of `24/5`: a flat bar without volume is what was traded
then.

Volume is in Dukascopy's own units of what it saw: it may be zero, and says nothing of a market that
has no centre.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import polars as pl

from feature_pipeline.errors import SourceError
from feature_pipeline.schemas import CORPORATE_ACTIONS, UTC_TIME, Fetched
from feature_pipeline.sources import Kind
from feature_pipeline.sources.http import Limits, Politeness, PoliteSession
from feature_pipeline.sources.on_calendar import (
    NO_BARS,
    RefusedError,
    bars,
    each,
    known_timeframe,
    listed,
)
from feature_pipeline.universe import Instrument, midnight

NAME = "dukascopy"
URL = "https://freeserv.dukascopy.com/2.0/index.php"

PUBLICATION_DELAY = timedelta(minutes=5)
"""Bars are there a moment after they end; daily ones come a little later."""

LIMITS = Limits(requests=1, seconds=1.0, attempts=4)
"""Dukascopy publishes no limit; one a second is what a person at its chart does."""

PAGE = 30_000
"""Rows that it gives at most in one answer."""

_INTERVALS = {"1m": "1MIN", "5m": "5MIN", "1h": "1HOUR", "1d": "1DAY"}
_WITH_SPREAD = ("1h", "1d")
_PRICES = ("open", "high", "low", "close")
_INSTRUMENT = re.compile(r"[A-Za-z0-9._&-]{2,24}(/[A-Za-z]{3})?")
_PAIR = re.compile(r"[A-Z]{6}")


class DukascopySource:
    """`BarSource` that asks Dukascopy for `1m`, `5m`, `1h` and `1d` bars.

    An instrument is asked for as `EUR/USD`; six letters are a pair.

    Args:
        limits: its rate and our patience.
        url: asked instead of Dukascopy, for tests.
        clock: now, UTC.
    """

    name = NAME
    publication_delay: timedelta = PUBLICATION_DELAY

    def __init__(
        self,
        limits: Limits = LIMITS,
        url: str = URL,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.limits = limits
        self._session = PoliteSession(Politeness(self.name, limits))
        self._url = url
        self._clock = clock

    def calls(self, kind: Kind, instruments: Sequence[Instrument], start: date, end: date) -> int:
        """Daily bars of a whole life fit into one answer, one for each side; one more for each
        says that nothing has come since, where the range is not over."""
        if kind != "bars":
            return 0
        more = end > self._clock().date()
        spans = [listed(i, start, end) for i in instruments]
        return sum(
            2 * (_pages(*span, timedelta(days=1)) + more) for span in spans if span[0] < span[1]
        )

    def bars(
        self, instruments: Sequence[Instrument], start: date, end: date, timeframe: str = "1d"
    ) -> Fetched:
        """Bid bars of the sessions in `[start, end)`; each is known at its end, a daily one at its
        session's close, plus `publication_delay`.

        Raises:
            SourceError: there are no bars of this timeframe.
        """
        length = known_timeframe(self.name, timeframe)
        now = self._clock()

        def ask(instrument: Instrument) -> pl.DataFrame:
            first, last = listed(instrument, start, end)
            if first == last:
                return NO_BARS
            ticker = _ticker(instrument)
            rows = self._rows(instrument, ticker, "BID", first, last, timeframe, length)
            if timeframe in _WITH_SPREAD:
                asked = self._rows(instrument, ticker, "ASK", first, last, timeframe, length)
                rows = _with_spread(rows, asked)
            if timeframe != "1d":
                rows = rows.filter(~_after_the_week())
            return bars(rows, instrument, first, last, timeframe, self.publication_delay, now)

        return each(self.name, timeframe, instruments, ask)

    def actions(self, instruments: Sequence[Instrument], start: date, end: date) -> Fetched:
        """None: a currency is not split and pays no dividend."""
        del start, end
        return Fetched(CORPORATE_ACTIONS.empty(), {}, tuple(i.id for i in instruments))

    def _rows(
        self,
        instrument: Instrument,
        ticker: str,
        side: str,
        start: date,
        end: date,
        timeframe: str,
        length: timedelta,
    ) -> pl.DataFrame:
        """`moment`, prices and `volume` of one side, as they come."""
        pages = _pages(start, end, length)
        # One row more than there can be ends the walk: it lies beyond.
        limit = min(PAGE, (end - start) // length + 2)
        client = _client(self._session, self._url, pages + 2)
        try:
            frame = client.fetch(
                ticker,
                _INTERVALS[timeframe],
                getattr(client, f"OFFER_SIDE_{side}"),
                midnight(start),
                midnight(end) - timedelta(milliseconds=1),
                max_retries=-1,
                limit=limit,
            )
            return pl.from_pandas(frame.reset_index()).select(
                pl.col("timestamp").cast(UTC_TIME).alias("moment"),
                pl.col(*_PRICES, "volume").cast(pl.Float64),
            )
        except (SourceError, RefusedError):
            raise
        # Whatever the package trips over in an answer of another shape.
        except Exception as error:
            raise RefusedError(
                f"{self.name}: what it answered about {instrument.id} ({ticker}) is no list of "
                f"bars ({type(error).__name__}); the next run asks again"
            ) from None


def _ticker(instrument: Instrument) -> str:
    """What Dukascopy calls it.

    Raises:
        RefusedError: it cannot be the name of one of its instruments.
    """
    name = instrument.ticker(NAME)
    if not _INSTRUMENT.fullmatch(name):
        raise RefusedError(
            f"{instrument.id}: {name!r} cannot be an instrument of Dukascopy's; write "
            f"`tickers: {{{NAME}: EUR/USD}}` in universe.yaml"
        )
    return f"{name[:3]}/{name[3:]}" if _PAIR.fullmatch(name) else name


def _with_spread(bid: pl.DataFrame, ask: pl.DataFrame) -> pl.DataFrame:
    """`spread`, ask - bid at the close; null where either is unknown, or where it is none."""
    closes = ask.select("moment", asked="close").unique("moment", keep="last", maintain_order=True)
    spread = pl.col("asked") - pl.col("close")
    return (
        bid.join(closes, on="moment", how="left", maintain_order="left")
        .with_columns(spread=pl.when(spread.is_finite() & (spread >= 0)).then(spread))
        .drop("asked")
    )


def _after_the_week() -> pl.Expr:
    """A flat row without volume from Friday, 17:00 New York on: Dukascopy fills the weekend, whose
    first hours lie in Friday's session, with the last price."""
    local = pl.col("moment").dt.convert_time_zone("America/New_York")
    closed = (local.dt.weekday() >= 5) & ((local.dt.weekday() > 5) | (local.dt.hour() >= 17))
    flat = (pl.col("high") == pl.col("low")) & (pl.col("volume") == 0)
    return (closed & flat).fill_null(value=False)


def _pages(start: date, end: date, length: timedelta) -> int:
    """Answers that it takes for the bars of `[start, end)`."""
    return max(-(-((end - start) // length) // PAGE), 1)


# -- the package ----------------------------------------------------------------------------------


def _client(session: PoliteSession, url: str, requests: int) -> ModuleType:
    """A copy of `dukascopy_python` that asks through our session, so many times at most."""
    spec = importlib.util.find_spec("dukascopy_python")
    if spec is None or spec.loader is None:
        raise SourceError("dukascopy needs the package dukascopy-python; install it from the lock")
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    quiet = SimpleNamespace(
        getLogger=logging.getLogger,
        info=lambda *_: None,
        INFO=logging.WARNING,
        DEBUG=logging.DEBUG,
    )
    replaced = {"requests": _Transport(session, url, requests), "logging": quiet}
    client.__dict__.update(replaced)
    return client


class _Transport:
    """What the package takes for `requests`."""

    def __init__(self, session: PoliteSession, url: str, requests: int) -> None:
        self._session, self._url, self._left = session, url, requests

    def get(self, _url: str, headers: Mapping[str, str], params: Mapping[str, str]) -> Any:
        """Its one request: of the headers, only where the data belongs."""
        if not self._left:
            raise RefusedError(
                f"{NAME}: it goes on answering {params['instrument']} with rows that were there "
                "already; the next run asks again"
            )
        self._left -= 1
        response = self._session.get(
            self._url, params=params, headers={"Referer": headers["Referer"]}
        )
        if response.status_code != 200:
            raise RefusedError(
                f"{NAME}: {params['instrument']} was answered {response.status_code}"
            )
        return response
