"""A Yahoo on the loopback, a source that asks it, and a store that takes what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import yaml

from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.schemas import Fetched
from feature_pipeline.sources.http import Limits
from feature_pipeline.sources.yahoo import YahooSource
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.store import Store, WriteReport
from feature_pipeline.universe import Universe, calendar_sessions
from feature_pipeline_tests.providers.server import ProviderServer
from feature_pipeline_tests.providers.yahoo import Bar, Ticker, Yahoo

NOW = datetime(2020, 6, 1, 12, tzinfo=UTC)
TODAY = NOW.date()
JANUARY = (date(2020, 1, 1), date(2020, 2, 1))
QUICK = Limits(requests=1000, seconds=1.0, attempts=3, wait_s=0.4, deadline_s=5.0)


def sessions(start: date, end: date, calendar: str = "XNYS") -> list[date]:
    """The session dates in [start, end)."""
    days = calendar_sessions(calendar)["time"].dt.date()
    return days.filter(days.is_between(start, end, closed="left")).to_list()


def traded(
    start: date = JANUARY[0], end: date = TODAY, seed: int = 1, price: float = 300.0
) -> dict[date, Bar]:
    """Bars as traded, to the cent and in round lots, of every session of New York."""
    days = sessions(start, end)
    rng = np.random.default_rng(seed)
    close = price * np.exp(np.cumsum(rng.normal(0, 0.02, len(days))))
    edges = np.sort(close[:, None] * (1 + rng.normal(0, 0.01, (len(days), 4))), axis=1).round(2)
    volume = rng.integers(1_000, 1_000_000, len(days)) * 600.0
    return {
        day: (edge[1], edge[3], edge[0], edge[2], lots)
        for day, edge, lots in zip(days, edges.tolist(), volume.tolist(), strict=True)
    }


def universe(tickers: Mapping[str, Mapping[str, Any]] | list[str], start: date) -> Universe:
    """Instruments of New York from `start` on; id -> fields that differ."""
    given = tickers if isinstance(tickers, Mapping) else {name: {} for name in tickers}
    entries = [
        {
            "id": name,
            "asset_class": "equity",
            "calendar": "XNYS",
            "sector": "made",
            "source": {"bars": "yfinance", "actions": "yfinance"},
            "symbols": [{"symbol": name, "from": start}],
            "membership": [{"from": start}],
            **more,
        }
        for name, more in given.items()
    ]
    return Universe.parse(yaml.safe_dump({"benchmark": entries[0]["id"], "instruments": entries}))


class World:
    """Everything together.

    Args:
        server: answers for Yahoo.
        tickers: what it knows.
        instruments: id -> fields of universe.yaml that differ from the usual.
    """

    def __init__(
        self,
        server: ProviderServer,
        tickers: Mapping[str, Ticker],
        instruments: Mapping[str, Mapping[str, Any]] | None = None,
        now: datetime = NOW,
        limits: Limits = QUICK,
        start: date = JANUARY[0],
    ) -> None:
        self.server = server
        self.yahoo = Yahoo(tickers)
        server.routes.update(self.yahoo.routes())
        self.now = now
        self.universe = universe(instruments or list(tickers), start)
        self.source = YahooSource(limits, server.url, lambda: self.now)
        self._runs = 0

    @property
    def instruments(self) -> tuple[Any, ...]:
        return self.universe.instruments

    def bars(self, days: tuple[date, date] = JANUARY, timeframe: str = "1d") -> Fetched:
        return self.source.bars(self.instruments, *days, timeframe)

    def actions(self, days: tuple[date, date] = JANUARY) -> Fetched:
        return self.source.actions(self.instruments, *days)

    def asked(self) -> list[str]:
        return self.yahoo.asked(self.server.asked)

    def store(self, url: str) -> Store:
        return Store(Database(url, 60), self.universe, TABLES, clock=lambda: self.now)

    def write(
        self, store: Store, days: tuple[date, date] = JANUARY, asset: str = "ohlcv_1d"
    ) -> WriteReport:
        """Collect and write; every row is accounted for."""
        self._runs += 1
        plan = store.plan(asset, *days, run_id=f"run {self._runs}", code_version="1", mending=True)
        assert plan.window == days
        answer = self.bars(days) if asset == "ohlcv_1d" else self.actions(days)
        try:
            report = store.write(plan, {"yfinance": answer})
        finally:
            plan.intent.close()
        counts = report.counts()
        assert counts.pop("input") == answer.frame.height == sum(counts.values())
        return report


def as_frame(bars: Mapping[date, Bar], days: tuple[date, date] = JANUARY) -> pl.DataFrame:
    """Bars of [start, end) as the source should have them."""
    inside = {day: bar for day, bar in bars.items() if days[0] <= day < days[1]}
    return pl.DataFrame(
        [(datetime(d.year, d.month, d.day, tzinfo=UTC), *bar) for d, bar in inside.items()],
        schema={
            "time": pl.Datetime("us", "UTC"),
            **dict.fromkeys(("open", "high", "low", "close", "volume"), pl.Float64),
        },
        orient="row",
    )


def values(fetched: Fetched, symbol: str | None = None) -> pl.DataFrame:
    """The numbers of an answer."""
    frame = fetched.frame
    if symbol is not None:
        frame = frame.filter(symbol=symbol)
    return frame.select("time", "open", "high", "low", "close", "volume")


def minutes_of(
    day: date, length: timedelta, calendar: str = "XNYS", beyond: int = 0
) -> list[datetime]:
    """Beginnings of the intraday bars of a session, and of some after it."""
    row = calendar_sessions(calendar).filter(pl.col("time").dt.date() == day).row(0, named=True)
    count = -(-(row["close"] - row["open"]) // length) + beyond
    return [row["open"] + number * length for number in range(count)]
