"""A share, a currency pair and a coin: real sources on local servers, each on its own calendar."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

from feature_pipeline.sources.crypto import CryptoSource
from feature_pipeline.sources.dukascopy import DukascopySource
from feature_pipeline.sources.http import Limits
from feature_pipeline.sources.yahoo import YahooSource
from feature_pipeline.universe import Universe
from feature_pipeline_tests.providers.crypto import ExchangeFeed, coin_days
from feature_pipeline_tests.providers.dukascopy import Dukascopy, fx_days
from feature_pipeline_tests.providers.server import ProviderServer
from feature_pipeline_tests.providers.yahoo import Bar, Ticker, Yahoo

LISTED = date(2022, 9, 1)
NOW = datetime(2024, 7, 15, 12, tzinfo=UTC)
UNTIL = NOW.date()
# Two weekends, the half day before Independence Day, and that day.
START, END = date(2024, 6, 27), date(2024, 7, 9)
HALF_DAY, HOLIDAY = date(2024, 7, 3), date(2024, 7, 4)
WITHOUT_VOLUME = date(2024, 6, 30)
QUICK = Limits(requests=1000, seconds=1.0, attempts=1, wait_s=5.0, deadline_s=10.0)

URL_VARIABLE = "TEST_PROVIDERS_URL"
"""Tells a process of its own where the server is."""

YAML = """
benchmark: SHARE
instruments:
  - id: SHARE
    asset_class: equity
    calendar: XNYS
    sector: technology
    source: {{bars: yfinance, actions: yfinance}}
    symbols: [{{symbol: SHARE, from: 2000-01-03}}]
    membership: [{{from: {listed}}}]
  - id: EURUSD
    asset_class: fx
    calendar: 24/5
    sector: fx
    source: {{bars: dukascopy}}
    tickers: {{dukascopy: EUR/USD}}
    symbols: [{{symbol: EURUSD, from: 2000-01-03}}]
    membership: [{{from: {listed}}}]
  - id: BTC-USD
    asset_class: crypto
    calendar: 24/7
    sector: crypto
    source: {{bars: {exchange}}}
    tickers: {{kraken: BTC/USD, coinbase: BTC/USD}}
    symbols: [{{symbol: BTC-USD, from: 2010-07-17}}]
    membership: [{{from: {listed}}}]
"""


def universe_yaml(listed: date = LISTED, exchange: str = "kraken") -> str:
    return YAML.format(listed=listed, exchange=exchange)


class Markets:
    """What the three providers have to say, and the sources that ask them.

    Args:
        server: answers for all of them.
        listed: the first day that there is.
        until: the first day that there is not.
        exchange: who has the coin.
    """

    def __init__(
        self,
        server: ProviderServer,
        listed: date = LISTED,
        until: date = UNTIL,
        exchange: str = "kraken",
    ) -> None:
        self.server = server
        self.universe = Universe.parse(universe_yaml(listed, exchange))
        self._days = listed, until
        self.yahoo, self.fx, self.coins = Yahoo({}), Dukascopy(), ExchangeFeed(exchange)
        self.fill()
        server.routes.update(self.yahoo.routes())
        self.fx_url = self.fx.serve(server)
        self.coins.serve(server)

    def fill(self) -> None:
        """Have every provider know every bar."""
        days = self.universe.sessions(*self._days, ["SHARE"])["time"].dt.date()
        self.yahoo.tickers["SHARE"] = Ticker({day: share(day) for day in days})
        self.fx.rows["EUR/USD", "1DAY"] = fx_days(*self._days)
        self.coins.rows["BTC", 86_400] = coin_days(*self._days, [WITHOUT_VOLUME])

    def sources(self, now: datetime = NOW) -> Mapping[str, Any]:
        """By name, as `resources.sources` has them."""
        known = (
            YahooSource(QUICK, self.server.url, lambda: now),
            DukascopySource(QUICK, self.fx_url, lambda: now),
            CryptoSource(self.coins.name, QUICK, self.server.url, lambda: now),
        )
        return {source.name: source for source in known}


def share(day: date, factor: float = 1.0) -> Bar:
    """A price that wanders, in cents."""
    closed, opened = (factor * _price(d) for d in (day, day - timedelta(days=1)))
    high, low = max(opened, closed) + 1.25, min(opened, closed) - 1.25
    return opened, high, low, closed, 1e6 + 1000.0 * (day.toordinal() % 11)


def _price(day: date) -> float:
    n = day.toordinal()
    return round(150 + 12 * math.sin(n / 19) + 4 * math.sin(n / 2.3), 2)
