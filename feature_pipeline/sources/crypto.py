"""Bars of crypto exchanges, through `ccxt` and free of charge: Kraken, Coinbase, Binance, Bitstamp.

ccxt's exchange class asks and reads; its session is ours, so that its requests keep our pace and
our deadlines, and its own throttle is off. An answer that is no JSON is refused below it: ccxt
would take an empty list of bars from a page in HTML. Importing ccxt imports every exchange there,
half a second of CPU and 75 MB (a single class brings the others along): hence with the first
question.

Exchanges never close: instruments are on the calendar `24/7`, whose sessions are UTC days. Volume
is in units of the base currency, of this exchange alone; it may be zero.

How far back one goes differs. Kraken has the last 720 bars of any timeframe and no others: where a
range ends before them the symbol fails, saying so, and where it begins before them there is what is
left. The others page back to the day on which they listed a market.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import polars as pl
import requests

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

PUBLICATION_DELAY = timedelta(minutes=1)
"""A bar is complete when the next one begins; exchanges agree on it within seconds."""


@dataclass(frozen=True)
class Exchange:
    """What one exchange stands.

    Args:
        limits: well below its own limit of requests without a key.
        page: bars in one answer.
        markets: requests for the list of its markets, which are made once.
        reach: bars that it keeps; None - all.
    """

    limits: Limits
    page: int
    markets: int = 1
    reach: int | None = None


EXCHANGES: Mapping[str, Exchange] = {
    "kraken": Exchange(Limits(requests=1, seconds=1.0), 720, reach=720),
    "coinbase": Exchange(Limits(requests=5, seconds=1.0), 300, markets=2),
    "binance": Exchange(Limits(requests=5, seconds=1.0), 1000),
    "bitstamp": Exchange(Limits(requests=5, seconds=1.0), 1000),
}

_MARKET = re.compile(r"[A-Z0-9]{1,20}/[A-Z0-9]{1,20}")
_DAY = timedelta(days=1)


class CryptoSource:
    """`BarSource` that asks an exchange for `1m`, `5m`, `1h` and `1d` bars.

    A market is asked for as `BTC/USD`, its name in ccxt; `BTC-USD` means the same.

    Args:
        exchange: its id in ccxt, one of `EXCHANGES`; the source's name.
        limits: its rate and our patience, instead of what is known of it.
        base_url: asked instead of the exchange, for tests.
        clock: now, UTC.
    """

    publication_delay: timedelta = PUBLICATION_DELAY

    def __init__(
        self,
        exchange: str,
        limits: Limits | None = None,
        base_url: str | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.name = exchange
        self._exchange = EXCHANGES[exchange]
        self.limits = limits or self._exchange.limits
        self._politeness = Politeness(exchange, self.limits)
        self._base_url = base_url
        self._clock = clock
        self._made: Any = None
        self._making = threading.Lock()

    def calls(self, kind: Kind, instruments: Sequence[Instrument], start: date, end: date) -> int:
        """The markets, and the pages of daily bars of each instrument."""
        if kind != "bars":
            return 0
        pages = 0
        for instrument in instruments:
            first, last = listed(instrument, start, end)
            if first < last and self._reaches(last, _DAY):
                pages += (
                    1 if self._exchange.reach else -(-(last - first).days // self._exchange.page)
                )
        return pages + self._exchange.markets if pages else 0

    def bars(
        self, instruments: Sequence[Instrument], start: date, end: date, timeframe: str = "1d"
    ) -> Fetched:
        """Bars of the sessions in `[start, end)`; each is known at its end plus
        `publication_delay`.

        Raises:
            SourceError: there are no bars of this timeframe.
        """
        length = known_timeframe(self.name, timeframe)
        now = self._clock()

        def ask(instrument: Instrument) -> pl.DataFrame:
            first, last = listed(instrument, start, end)
            if first == last:
                return NO_BARS
            market = _market(self.name, instrument)
            if not self._reaches(last, length):
                raise RefusedError(
                    f"{self.name} has the last {self._exchange.reach} bars of {timeframe} alone: "
                    f"none of {market} before {last}; take another source for {instrument.id}, or "
                    "give it a later `history_from`"
                )
            rows = self._pages(market, first, last, timeframe, length)
            return bars(rows, instrument, first, last, timeframe, self.publication_delay, now)

        return each(self.name, timeframe, instruments, ask)

    def actions(self, instruments: Sequence[Instrument], start: date, end: date) -> Fetched:
        """None: what trades here is not split and pays no dividend."""
        del start, end
        return Fetched(CORPORATE_ACTIONS.empty(), {}, tuple(i.id for i in instruments))

    def _reaches(self, end: date, length: timedelta) -> bool:
        """Whether the exchange still has bars from before `end`."""
        reach = self._exchange.reach
        return reach is None or midnight(end) > self._clock() - reach * length

    def _pages(
        self, market: str, start: date, end: date, timeframe: str, length: timedelta
    ) -> pl.DataFrame:
        """`moment`, prices and `volume` of the bars from `start` to `end`, page by page.

        Every page moves on by its own length at least, whatever it holds: an exchange that repeats
        itself is asked no more often than one that does not.
        """
        step, now = length // timedelta(milliseconds=1), _milliseconds(self._clock())
        cursor, until = _milliseconds(midnight(start)), _milliseconds(midnight(end))
        rows: list[Sequence[Any]] = []
        while cursor < until and cursor <= now:
            limit = min(self._exchange.page, (until - cursor) // step + 1)
            page = self._ask(market, timeframe, cursor, limit)
            past = [row[0] for row in page if isinstance(row[0], int) and row[0] <= now]
            if past and not rows and min(past) >= until:
                first = datetime.fromtimestamp(min(past) / 1000, UTC)
                raise RefusedError(
                    f"{self.name} has no {timeframe} bars of {market} before {first:%Y-%m-%d}"
                )
            rows += page
            cursor = max([cursor + limit * step, *(moment + step for moment in past)])
        return _frame(self.name, market, rows)

    def _ask(self, market: str, timeframe: str, since: int, limit: int) -> list[Sequence[Any]]:
        """One page, oldest first.

        Raises:
            SourceError: the exchange does not answer.
            RefusedError: it answers something else.
        """
        from ccxt.base.errors import BadSymbol, BaseError

        try:
            page = self._client().fetch_ohlcv(market, timeframe, since, limit)
        except (SourceError, RefusedError):
            raise
        except BadSymbol:
            raise RefusedError(
                f"{self.name} has no market {market}; correct `tickers` in universe.yaml"
            ) from None
        except BaseError as error:  # its text quotes the address
            raise RefusedError(
                f"{self.name}: {market} was refused ({type(error).__name__}); the next run asks "
                "again"
            ) from None
        # Whatever ccxt trips over in an answer of another shape.
        except Exception as error:
            raise _no_bars(self.name, market, error) from None
        return [row for row in page if len(row) >= 6]

    def _client(self) -> Any:
        """ccxt's class of the exchange, with the markets that it lists today."""
        with self._making:
            if self._made is None:
                import ccxt

                client = getattr(ccxt, self.name)(
                    {
                        "session": _Session(self._politeness),
                        "enableRateLimit": False,
                        # Of binance, neither futures nor options.
                        **({"options": _SPOT} if self.name == "binance" else {}),
                    }
                )
                # Names and networks of coins: a request that bars do not need.
                client.has["fetchCurrencies"] = False
                if self._base_url is not None:
                    client.urls["api"] = {
                        name: self._base_url + urlsplit(url).path
                        for name, url in client.urls["api"].items()
                    }
                client.load_markets()
                self._made = client
            return self._made


_SPOT = {"defaultType": "spot", "fetchMarkets": {"types": ["spot"]}}


class _Session(PoliteSession):
    """Our session, as ccxt uses it: an answer is JSON, or it is refused."""

    def request(self, method: str | bytes, url: str | bytes, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        # ccxt poses as a browser or as itself, depending on the exchange.
        kwargs["headers"] = {
            name: value
            for name, value in (kwargs.get("headers") or {}).items()
            if name.lower() != "user-agent"
        }
        response = super().request(method, url, **kwargs)
        if response.status_code == 200:
            try:
                response.json()
            except ValueError:
                raise RefusedError(
                    f"{self.politeness.provider} answered something that is no JSON; the next run "
                    "asks again"
                ) from None
        return response


def _market(exchange: str, instrument: Instrument) -> str:
    """What ccxt calls the instrument.

    Raises:
        RefusedError: it cannot be the name of a market.
    """
    name = instrument.ticker(exchange)
    market = name.replace("-", "/", 1) if "/" not in name else name
    if not _MARKET.fullmatch(market):
        raise RefusedError(
            f"{instrument.id}: {name!r} cannot be a market; write "
            f"`tickers: {{{exchange}: BTC/USD}}` in universe.yaml"
        )
    return market


def _frame(exchange: str, market: str, rows: Sequence[Sequence[Any]]) -> pl.DataFrame:
    names = ("open", "high", "low", "close", "volume")
    try:
        return pl.DataFrame(
            [row[:6] for row in rows],
            schema={"moment": pl.Int64, **dict.fromkeys(names, pl.Float64)},
            orient="row",
        ).with_columns((pl.col("moment") * 1000).cast(UTC_TIME))
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        raise _no_bars(exchange, market, error) from None


def _no_bars(exchange: str, market: str, error: Exception) -> RefusedError:
    return RefusedError(
        f"{exchange}: what it answered about {market} is no list of bars "
        f"({type(error).__name__}); the next run asks again"
    )


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
