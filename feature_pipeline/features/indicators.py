"""Technical indicators: the catalogue's declarations evaluated on the split-adjusted series.

TA-Lib's values through polars-talib. What an indicator is stands in the catalogue; this module
evaluates, brings prices back to the basis of their own day, and nulls what a gap has spoilt.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from feature_pipeline.features.adjustment import NO_GAP, keys, real_rows, session_grid
from feature_pipeline.features.declarations import INDICATORS, Feature

_PRICES = ("high", "low", "close")


def compute_indicators(bars: pl.DataFrame, actions: pl.DataFrame) -> pl.DataFrame:
    """All indicators of the catalogue.

    Args:
        bars: KEYS, high, low, close as traded; gap rows included, and of intraday bars `session`
            and those filled.
        actions: symbol, time (ex-date), available_at, kind, value.

    Returns:
        KEYS (and session) and one column per indicator, sorted by (symbol, time), a row for each
        bar that is neither a gap nor filled. Null in the warm-up, on a bar whose prices are
        missing, and where one lies within the indicator's lookback, or one that arrived only later:
        TA-Lib would go on with wrong numbers. Values are TA-Lib's otherwise.
    """
    grid = session_grid(bars, actions, _PRICES)
    whole = bool((grid["since_gap"] == NO_GAP).all())
    series = grid if whole else grid.filter("usable")
    values = _evaluate(series)
    key, real = keys(grid), real_rows(grid)
    if whole:
        return grid.select(key).hstack(values).filter(real)
    spoilt = series.select(
        "symbol",
        "time",
        *(
            pl.when(series["since_gap"] > feature.lookback_bars)
            .then(values[feature.column])
            .alias(feature.column)
            for feature in INDICATORS
        ),
    )
    return (
        grid.filter(real)
        .select(key)
        .join(spoilt, on=["symbol", "time"], how="left", maintain_order="left")
    )


def _evaluate(series: pl.DataFrame) -> pl.DataFrame:
    """The indicator columns on a frame of usable bars, on the basis of each bar's own day."""
    factor = series["split_factor"]
    split = bool((factor != 1).any())
    prices = series.select("group", *(pl.col(p) / factor if split else p for p in _PRICES))
    # One pass over the groups; what several columns share (MACD, bands) is computed once.
    studies: dict[Callable[[], pl.Expr], str] = {}
    for feature in INDICATORS:
        studies.setdefault(feature.expression, feature.column)
    frame = prices.select(
        [
            expression().over("group", mapping_strategy="explode").alias(name)
            for expression, name in studies.items()
        ]
    )

    def column(feature: Feature) -> pl.Expr:
        value = pl.col(studies[feature.expression])
        if feature.part:
            value = value.struct.field(feature.part)
        if split and feature.basis == "own day":
            value = value * factor
        return value.fill_nan(None).alias(feature.column)

    return frame.select([column(feature) for feature in INDICATORS])
