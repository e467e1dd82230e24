"""What tests of providers of documents share: two companies, a moment, and the days around it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from feature_pipeline.schemas import Fetched
from feature_pipeline.universe import Universe

NOW = datetime(2026, 3, 10, 15, 0, tzinfo=UTC)
TODAY = (date(2026, 3, 10), date(2026, 3, 11))
WEEK = (date(2026, 3, 4), date(2026, 3, 11))
UNIVERSE = Universe.parse(
    "benchmark: AAPL\ninstruments:\n"
    + "".join(
        f"""
  - id: {symbol}
    name: {name}
    asset_class: equity
    calendar: XNYS
    sector: s
    source: {{bars: sample, news: [feeds, gnews, newsapi], reddit: reddit}}
    symbols: [{{symbol: {symbol}, from: 2000-01-03}}]
    membership: [{{from: 2000-01-03}}]
"""
        for symbol, name in (("AAPL", "Apple"), ("MSFT", "Microsoft"))
    )
)
INSTRUMENTS = UNIVERSE.instruments


def ago(**span: float) -> datetime:
    return NOW - timedelta(**span)


def titles(answer: Fetched) -> list[str]:
    return sorted(answer.frame["title"].to_list())
