"""A large synthetic market behind the sources' interface: any number of symbols, vectorised."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

import numpy as np
import polars as pl

from feature_pipeline.features.declarations import MACRO_SERIES
from feature_pipeline.schemas import CORPORATE_ACTIONS, MACRO_INDICATORS, Fetched, documents, ohlcv
from feature_pipeline.sources.sample import SampleSource
from feature_pipeline.timeframes import DAILY
from feature_pipeline.universe import Instrument, Universe, calendar_bars, expected_sessions

CALENDAR = "XNYS"


def universe(symbols: int, start: date, timeframe: str = DAILY) -> Universe:
    """`symbols` equities of ten sectors and a benchmark, all on XNYS since `start`."""
    timeframes = ", ".join(dict.fromkeys([DAILY, timeframe]))
    head = f"benchmark: MKT\ntimeframes: [{timeframes}]\ninstruments:\n"
    head += _instrument("MKT", "index", "market", start)
    return Universe.parse(
        head
        + "".join(
            _instrument(f"S{i:04d}", "equity", f"sector{i % 10}", start) for i in range(symbols)
        )
    )


def _instrument(name: str, asset_class: str, sector: str, start: date) -> str:
    return f"""
  - id: {name}
    asset_class: {asset_class}
    calendar: {CALENDAR}
    sector: {sector}
    source: {{bars: synthetic, actions: synthetic, news: synthetic, reddit: synthetic}}
    symbols: [{{symbol: {name}, from: {start}}}]
    membership: [{{from: {start}}}]
"""


class SyntheticSource:
    """Waves for prices, no actions and no documents; macro series from the sample."""

    name = "synthetic"
    series = MACRO_SERIES
    publication_delay = timedelta(minutes=15)

    def bars(
        self,
        instruments: Sequence[Instrument],
        start: date,
        end: date,
        timeframe: str = DAILY,
    ) -> Fetched:
        """The same bars for any range: prices are a function of symbol and moment."""
        who = pl.DataFrame({"symbol": [i.id for i in instruments]})
        frame = (
            expected_sessions(instruments, start, end).rename({"close": "end"})
            if timeframe == DAILY
            else who.join(calendar_bars(CALENDAR, timeframe, start, end), how="cross")
        )
        day = (frame["time"].dt.epoch("s") / 86_400).to_numpy()
        phase = frame["symbol"].rle_id().to_numpy() * 0.7
        noise = 0.01 * np.sin(day * 12.9898 + phase * 78.233)
        close = 100 * np.exp(
            0.3 * np.sin(day / 97 + phase) + 0.1 * np.sin(day / 11 + phase) + noise
        )
        frame = frame.with_columns(
            available_at=pl.col("end") + self.publication_delay,
            availability_basis=pl.lit("assumed"),
            open=close * 0.999,
            high=close * 1.01,
            low=close * 0.99,
            close=close,
            volume=pl.Series(1e6 + 1e5 * np.sin(day / 5 + phase)).round(),
            source=pl.lit(self.name),
        )
        table = ohlcv(timeframe)
        return Fetched(
            table.conform(frame.select(n for n in table.names if n != "spread")),
            asked=tuple(who["symbol"]),
        )

    def actions(self, instruments: Sequence[Instrument], start: date, end: date) -> Fetched:
        """None."""
        return Fetched(CORPORATE_ACTIONS.empty(), asked=tuple(i.id for i in instruments))

    def documents(
        self,
        channel: str,
        instruments: Sequence[Instrument],
        start: date,
        end: date,
    ) -> Fetched:
        """None."""
        table = documents("news" if channel == "news" else "reddit")
        return Fetched(table.empty(), asked=tuple(i.id for i in instruments))

    def macro(self, series_ids: Sequence[str], start: date, end: date) -> Fetched:
        """The sample's."""
        frame = SampleSource().macro(series_ids, start, end).frame
        frame = frame.with_columns(source=pl.lit(self.name))
        return Fetched(MACRO_INDICATORS.conform(frame), asked=tuple(series_ids))
