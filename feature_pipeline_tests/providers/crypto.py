"""Four crypto exchanges as they answer the public: their markets, and bars from one set of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from feature_pipeline_tests.providers.server import Answer, ProviderServer, Request

Row = Sequence[Any]
"""Milliseconds, open, high, low, close, volume."""

_COINS = ("BTC", "ETH", "XRP")


@dataclass
class ExchangeFeed:
    """Serves `rows[(coin, seconds)]` of BTC, ETH and XRP against the dollar.

    Args:
        name: kraken, coinbase, binance or bitstamp.
        rows: what there is, oldest first.
        stuck: answers its newest page, whatever is asked.
    """

    name: str
    rows: dict[tuple[str, int], list[Row]] = field(default_factory=dict)
    stuck: bool = False

    def serve(self, server: ProviderServer) -> str:
        """Have the server answer; the address to ask."""
        server.routes.update(_ROUTES[self.name](self))
        return server.url

    @property
    def bars_path(self) -> str:
        """Below which bars are asked for."""
        return {
            "kraken": "/0/public/OHLC",
            "coinbase": "/api/v3/brokerage/market/products/",
            "binance": "/api/v3/klines",
            "bitstamp": "/api/v2/ohlc/",
        }[self.name]

    def page(self, coin: str, seconds: int, since: float, until: float, most: int) -> list[Row]:
        """The first rows of [since, until], in seconds; of none of another coin."""
        rows = self.rows.get((coin, seconds), [])
        if self.stuck:
            return list(rows[-most:])
        found = [r for r in rows if since * 1000 <= r[0] <= until * 1000]
        return found[:most]


def _coin(market: str) -> str:
    name = market.upper().replace("XBT", "BTC")
    return next(coin for coin in _COINS if coin in name)


def _kraken(exchange: ExchangeFeed) -> Mapping[str, Callable[[Request], Answer]]:
    names = {"BTC": "XXBT", "ETH": "XETH", "XRP": "XXRP"}
    pairs = {
        f"{theirs}ZUSD": {
            "altname": f"{theirs[1:]}USD",
            "wsname": f"{theirs[1:]}/USD",
            "base": theirs,
            "quote": "ZUSD",
            "pair_decimals": 1,
            "lot_decimals": 8,
            "status": "online",
        }
        for theirs in names.values()
    }

    def bars(request: Request) -> Answer:
        pair, minutes = request.query["pair"], int(request.query["interval"])
        # The last 720, whatever was asked for: `since` only leaves out.
        held = exchange.rows.get((_coin(pair), minutes * 60), [])[-720:]
        since = 0.0 if exchange.stuck else float(request.query.get("since", 0))
        rows = [
            [r[0] // 1000, *(_text(p) for p in r[1:5]), "0.0", _text(r[5]), 1]
            for r in held
            if r[0] / 1000 > since
        ]
        return Answer(200, {"error": [], "result": {pair: rows, "last": 0}})

    return {
        "/0/public/AssetPairs": lambda _: Answer(200, {"error": [], "result": pairs}),
        exchange.bars_path: bars,
    }


def _coinbase(exchange: ExchangeFeed) -> Mapping[str, Callable[[Request], Answer]]:
    products = [
        {
            "product_id": f"{coin}-USD",
            "base_currency_id": coin,
            "quote_currency_id": "USD",
            "product_type": "SPOT",
            "base_increment": "0.00000001",
            "quote_increment": "0.01",
            "status": "online",
            "trading_disabled": False,
            "alias_to": [],
        }
        for coin in _COINS
    ]
    lengths = {"ONE_MINUTE": 60, "FIVE_MINUTE": 300, "ONE_HOUR": 3600, "ONE_DAY": 86_400}

    def markets(request: Request) -> Answer:
        spot = request.query.get("product_type", "SPOT") == "SPOT"
        return Answer(200, {"products": products if spot else [], "num_products": len(products)})

    def bars(request: Request) -> Answer:
        coin = _coin(request.path.split("/")[-2])
        start, end = int(request.query["start"]), int(request.query["end"])
        seconds = lengths[request.query["granularity"]]
        names = ("open", "high", "low", "close", "volume")
        rows = exchange.page(coin, seconds, start, end, 350)
        found = [
            {
                "start": str(r[0] // 1000),
                **{name: _text(value) for name, value in zip(names, r[1:], strict=True)},
            }
            for r in reversed(rows)
        ]
        return Answer(200, {"candles": found})

    return {"/api/v3/brokerage/market/products": markets, exchange.bars_path: bars}


def _binance(exchange: ExchangeFeed) -> Mapping[str, Callable[[Request], Answer]]:
    symbols = [
        {
            "symbol": f"{coin}USDT",
            "status": "TRADING",
            "baseAsset": coin,
            "quoteAsset": "USDT",
            "baseAssetPrecision": 8,
            "quotePrecision": 8,
            "quoteAssetPrecision": 8,
            "isSpotTradingAllowed": True,
            "permissions": ["SPOT"],
            "filters": [],
        }
        for coin in _COINS
    ]
    lengths = {"1m": 60, "5m": 300, "1h": 3600, "1d": 86_400}

    def bars(request: Request) -> Answer:
        coin, seconds = _coin(request.query["symbol"]), lengths[request.query["interval"]]
        since = int(request.query["startTime"]) / 1000
        rows = exchange.page(coin, seconds, since, math.inf, int(request.query["limit"]))
        return Answer(
            200,
            [
                [
                    *(r[0], *map(_text, r[1:5]), _text(r[5])),
                    *(r[0] + seconds * 1000 - 1, "0", 1, "0", "0", "0"),
                ]
                for r in rows
            ],
        )

    return {
        "/api/v3/exchangeInfo": lambda _: Answer(200, {"timezone": "UTC", "symbols": symbols}),
        exchange.bars_path: bars,
    }


def _bitstamp(exchange: ExchangeFeed) -> Mapping[str, Callable[[Request], Answer]]:
    markets = [
        {
            "name": f"{coin}/USD",
            "market_symbol": f"{coin.lower()}usd",
            "base_currency": coin,
            "base_decimals": 8,
            "counter_currency": "USD",
            "counter_decimals": 2,
            "minimum_order_value": "10",
            "trading": "Enabled",
            "market_type": "SPOT",
        }
        for coin in _COINS
    ]

    def bars(request: Request) -> Answer:
        pair, seconds = request.path.strip("/").split("/")[-1], int(request.query["step"])
        start, end = int(request.query["start"]), int(request.query["end"])
        most = int(request.query["limit"])
        names = ("open", "high", "low", "close", "volume")
        found = [
            {
                "timestamp": str(r[0] // 1000),
                **{name: _text(value) for name, value in zip(names, r[1:], strict=True)},
            }
            for r in exchange.page(_coin(pair), seconds, start, end, most)
        ]
        return Answer(200, {"data": {"pair": pair, "ohlc": found}})

    return {"/api/v2/markets": lambda _: Answer(200, list(markets)), exchange.bars_path: bars}


_ROUTES = {
    "kraken": _kraken,
    "coinbase": _coinbase,
    "binance": _binance,
    "bitstamp": _bitstamp,
}


def _text(value: Any) -> Any:
    """Exchanges send numbers as text."""
    return None if value is None else str(value)


def coin_price(day: date) -> float:
    """A price that wanders, and is the same whoever asks."""
    n = day.toordinal()
    return round(40_000 + 5000 * math.sin(n / 13) + 800 * math.sin(n / 2), 2)


def coin_days(start: date, end: date, without_volume: Sequence[date] = ()) -> list[Row]:
    """Daily bars, weekends included."""
    rows = []
    for n in range((end - start).days):
        day = start + timedelta(days=n)
        opened, closed = coin_price(day - timedelta(days=1)), coin_price(day)
        volume = 0.0 if day in without_volume else 1000.0 + n % 7
        high, low = max(opened, closed) + 300, min(opened, closed) - 300
        moment = datetime(day.year, day.month, day.day, tzinfo=UTC)
        rows.append([int(moment.timestamp() * 1000), opened, high, low, closed, volume])
    return rows


def coin_bars(start: datetime, count: int, step: timedelta) -> list[Row]:
    """Bars of a minute or more, one after the other."""
    first, each = int(start.timestamp() * 1000), int(step.total_seconds() * 1000)
    return [
        [first + n * each, 100.0 + n % 5, 106.0 + n % 5, 99.0, 101.0 + n % 5, 0.5 * (n % 3)]
        for n in range(count)
    ]
