"""Yahoo Finance, as yfinance knows it: charts with splits and dividends, cookie, crumb.

Made from what was traded: like Yahoo, it divides every price before a split by the split's ratio,
multiplies every volume, rounds to six decimals and answers in 32-bit floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from urllib.parse import unquote
from zoneinfo import ZoneInfo

import numpy as np

from feature_pipeline_tests.providers.server import Answer, Handler, Request

Bar = tuple[float | None, float | None, float | None, float | None, float | None]
"""Open, high, low, close, volume: as traded."""

CRUMB = "cRuMb/123"
PRICES = ("open", "high", "low", "close")


@dataclass
class Ticker:
    """What happened to one ticker.

    Args:
        bars: day -> bar, as traded.
        splits: ex-date -> new shares, old shares.
        dividends: ex-date -> cash per share, as paid.
        minutes: beginning of an intraday bar (UTC) -> bar, as traded; whatever interval is asked.
        zone: of the exchange.
        opens: local time that a daily bar is stamped with.
        kind, currency: as `meta` has them.
        adjusted: whether prices are adjusted for the splits; Yahoo may take days.
        more: raw rows (seconds, open, high, low, close, volume) appended to every answer as they
            are.
        moments: day -> moment that its daily bar is stamped with, instead of its open.
    """

    bars: Mapping[date, Bar] = field(default_factory=dict)
    splits: Mapping[date, tuple[float, float]] = field(default_factory=dict)
    dividends: Mapping[date, float] = field(default_factory=dict)
    minutes: Mapping[datetime, Bar] = field(default_factory=dict)
    zone: str = "America/New_York"
    opens: time = time(9, 30)
    kind: str = "EQUITY"
    currency: str = "USD"
    adjusted: bool = True
    more: Sequence[Sequence[Any]] = ()
    moments: Mapping[date, datetime] = field(default_factory=dict)

    def moment(self, day: date) -> datetime:
        """When the daily bar of a day is stamped."""
        if day in self.moments:
            return self.moments[day]
        return datetime.combine(day, self.opens, ZoneInfo(self.zone)).astimezone(UTC)

    def ratio(self, day: date) -> float:
        """The product of the splits after a day."""
        product = 1.0
        for ex, (new, old) in self.splits.items():
            if ex > day and self.adjusted:
                product *= new / old
        return product


class Yahoo:
    """Routes for a `ProviderServer`; `tickers` are what it knows."""

    def __init__(self, tickers: Mapping[str, Ticker]) -> None:
        self.tickers = dict(tickers)

    def routes(self) -> dict[str, Handler]:
        """Charts, crumb, and the host that sets the cookie."""
        return {
            "/v8/finance/chart/": self.chart,
            "/v1/test/getcrumb": lambda _: Answer(200, CRUMB),
            "/": lambda _: Answer(404, b"", {"Set-Cookie": "A3=cookie; Path=/"}),
        }

    def chart(self, request: Request) -> Answer:
        """The chart of a ticker, or why there is none."""
        name = unquote(request.path.rsplit("/", 1)[1])
        ticker = self.tickers.get(name)
        if ticker is None:
            return refused(404, "Not Found", "No data found, symbol may be delisted")
        first, last = (int(request.query[k]) for k in ("period1", "period2"))
        interval = request.query["interval"]
        rows = _rows(ticker, interval, first, last)
        events = _events(ticker, first, last)
        if not rows and not events and not ticker.more:
            said = f"Data doesn't exist for startDate = {first}, endDate = {last}"
            return refused(400, "Bad Request", said)
        rows += [list(row) for row in ticker.more]
        result: dict[str, Any] = {"meta": _meta(name, ticker, interval), "indicators": _quote(rows)}
        if rows:
            result["timestamp"] = [row[0] for row in rows]
        if events:
            result["events"] = events
        return Answer(200, {"chart": {"result": [result], "error": None}})

    def asked(self, requests: Sequence[Request]) -> list[str]:
        """The tickers of these requests whose charts were asked for, in order."""
        charts = [r for r in requests if r.path.startswith("/v8/finance/chart/")]
        return [unquote(r.path.rsplit("/", 1)[1]) for r in charts]


def refused(status: int, code: str, description: str) -> Answer:
    """Yahoo's way of saying no."""
    error = {"code": code, "description": description}
    return Answer(status, {"chart": {"result": None, "error": error}})


def for_ticker(ticker: str, handler: Callable[[Request], Answer]) -> dict[str, Handler]:
    """A route that answers about one ticker alone, for faults that should hit no other."""
    return {f"/v8/finance/chart/{ticker}": handler}


def _rows(ticker: Ticker, interval: str, first: int, last: int) -> list[list[Any]]:
    zone = ZoneInfo(ticker.zone)
    if interval.endswith("d"):
        found = [(ticker.moment(day), day, bar) for day, bar in ticker.bars.items()]
    else:
        found = [(m, m.astimezone(zone).date(), bar) for m, bar in ticker.minutes.items()]
    rows = []
    for moment, day, bar in found:
        seconds = int(moment.timestamp())
        if first <= seconds < last:
            ratio = ticker.ratio(day)
            prices = [_as_yahoo(price, ratio) for price in bar[:4]]
            volume = bar[4] if bar[4] is None or not np.isfinite(bar[4]) else round(bar[4] * ratio)
            rows.append([seconds, *prices, volume])
    return rows


def _as_yahoo(price: float | None, ratio: float) -> float | None:
    """A 32-bit float, rounded to six decimals before where it was adjusted."""
    if price is None:
        return None
    adjusted = price / ratio
    if ratio != 1.0 and np.isfinite(adjusted):
        adjusted = round(adjusted, 6)
    return float(np.float32(adjusted))


def _quote(rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    if not rows:
        return {"quote": [{}], "adjclose": [{}]}
    columns = dict(zip((*PRICES, "volume"), zip(*(r[1:] for r in rows), strict=True), strict=True))
    return {"quote": [columns], "adjclose": [{"adjclose": columns["close"]}]}


def _events(ticker: Ticker, first: int, last: int) -> dict[str, Any]:
    def inside(days: Mapping[date, Any]) -> dict[int, tuple[date, Any]]:
        found = {int(ticker.moment(day).timestamp()): (day, what) for day, what in days.items()}
        return {seconds: what for seconds, what in found.items() if first <= seconds < last}

    events: dict[str, Any] = {}
    if splits := inside(ticker.splits):
        events["splits"] = {
            str(s): {"date": s, "numerator": n, "denominator": d, "splitRatio": f"{n:g}:{d:g}"}
            for s, (_, (n, d)) in splits.items()
        }
    if dividends := inside(ticker.dividends):
        events["dividends"] = {
            str(s): {"date": s, "amount": _as_yahoo(amount, ticker.ratio(day))}
            for s, (day, amount) in dividends.items()
        }
    return events


def _meta(name: str, ticker: Ticker, interval: str) -> dict[str, Any]:
    zone = ZoneInfo(ticker.zone)
    today = datetime.now(zone)
    offset = int((today.utcoffset() or timedelta()).total_seconds())
    short = today.tzname()
    opens = datetime.combine(today.date(), ticker.opens, zone)
    period = {
        "timezone": short,
        "start": int(opens.timestamp()),
        "end": int((opens + timedelta(hours=6, minutes=30)).timestamp()),
        "gmtoffset": offset,
    }
    return {
        "currency": ticker.currency,
        "symbol": name,
        "exchangeName": "NMS",
        "instrumentType": ticker.kind,
        "gmtoffset": offset,
        "timezone": short,
        "exchangeTimezoneName": ticker.zone,
        "priceHint": 2,
        "currentTradingPeriod": {"pre": period, "regular": period, "post": period},
        "dataGranularity": interval,
        "range": "",
        "validRanges": ["1d", "5d", "1mo", "1y", "max"],
    }
