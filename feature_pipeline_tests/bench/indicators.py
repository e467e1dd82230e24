"""Indicators against a TA-Lib loop over symbols."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import date
from itertools import pairwise

import numpy as np
import polars as pl
import talib

from feature_pipeline.features.adjustment import KEYS
from feature_pipeline.features.declarations import INDICATORS
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

    def ours() -> Callable[[], object]:
        return lambda: compute_indicators(bars, actions)

    def peer() -> Callable[[], object]:
        return lambda: _loop(bars)

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


def _loop(bars: pl.DataFrame) -> pl.DataFrame:
    """TA-Lib symbol by symbol, as well as it can be written: from a frame to a frame.

    Slices are views, results go straight into one array per column; no gap and no split is
    looked after.
    """
    frame = bars.sort("symbol", "time")
    high, low, close = (frame[name].to_numpy() for name in ("high", "low", "close"))
    starts = np.flatnonzero(np.append(True, np.diff(frame["symbol"].rle_id().to_numpy()) != 0))
    out = {feature.column: np.empty(frame.height) for feature in INDICATORS}
    for start, end in pairwise([*starts, frame.height]):
        part = slice(start, end)
        h, lo, c = high[part], low[part], close[part]
        for bars_back in (20, 50, 200):
            out[f"sma_{bars_back}"][part] = talib.SMA(c, bars_back)
        for bars_back in (12, 26):
            out[f"ema_{bars_back}"][part] = talib.EMA(c, bars_back)
        out["rsi_14"][part] = talib.RSI(c, 14)
        for name, values in zip(("line", "signal", "hist"), talib.MACD(c, 12, 26, 9), strict=True):
            out[f"macd_{name}"][part] = values
        out["atr_14"][part] = talib.ATR(h, lo, c, 14)
        bands = talib.BBANDS(c, 20, 2, 2)
        for name, values in zip(("upper", "middle", "lower"), bands, strict=True):
            out[f"bb_{name}"][part] = values
        out["adx_14"][part] = talib.ADX(h, lo, c, 14)
    return frame.select(KEYS).with_columns(pl.Series(n, v).fill_nan(None) for n, v in out.items())


if __name__ == "__main__":
    for row in run():
        print("RESULT " + json.dumps(row.as_dict()))  # noqa: T201
