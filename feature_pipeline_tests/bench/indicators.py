"""Indicators against a TA-Lib loop over symbols."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import date

import numpy as np
import polars as pl
import talib

from feature_pipeline.features.indicators import compute_indicators
from feature_pipeline.schemas import CORPORATE_ACTIONS
from feature_pipeline_tests.bench import Row, in_turns
from feature_pipeline_tests.bench.market import SyntheticSource, universe

START, END = date(2008, 1, 1), date(2013, 1, 1)
SYMBOLS = 500
TURNS = 5


def run() -> Iterator[Row]:
    """500 symbols x 1260 bars x 14 columns, gaps and splits looked after on our side only."""
    instruments = universe(SYMBOLS - 1, START)
    bars = SyntheticSource().bars(instruments.instruments, START, END).frame
    actions = CORPORATE_ACTIONS.empty()
    by_symbol = [
        {n: part[n].to_numpy().astype(float) for n in ("high", "low", "close")}
        for part in bars.sort("symbol", "time").partition_by("symbol")
    ]

    def ours() -> Callable[[], object]:
        return lambda: compute_indicators(bars, actions)

    def peer() -> Callable[[], object]:
        return lambda: [_talib(**columns) for columns in by_symbol]

    mine, floor = in_turns(TURNS, ours, peer)
    yield Row(
        f"indicators: {SYMBOLS} symbols x 5 years with {pl.thread_pool_size()} threads, "
        "against a TA-Lib loop",
        bars.height / mine,
        "bars/s",
        bars.height / floor,
        floor / mine,
        0.5 if pl.thread_pool_size() == 1 else 1.0,
    )


def _talib(high: np.ndarray, low: np.ndarray, close: np.ndarray) -> list[object]:
    return [
        talib.SMA(close, 20),
        talib.SMA(close, 50),
        talib.SMA(close, 200),
        talib.EMA(close, 12),
        talib.EMA(close, 26),
        talib.RSI(close, 14),
        talib.MACD(close, 12, 26, 9),
        talib.ATR(high, low, close, 14),
        talib.BBANDS(close, 20, 2, 2),
        talib.ADX(high, low, close, 14),
    ]


if __name__ == "__main__":
    for row in run():
        print("RESULT " + json.dumps(row.as_dict()))  # noqa: T201
