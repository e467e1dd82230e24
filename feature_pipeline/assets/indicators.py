"""Technical indicators."""

import dagster as dg
import polars as pl

from feature_pipeline.assets.declare import table_asset
from feature_pipeline.features.indicators import compute_indicators


def indicators(timeframe: str) -> dg.AssetsDefinition:
    """The asset of a timeframe."""

    @dg.asset(**table_asset(f"indicators_{timeframe}", group="signals"))
    def asset(ohlcv: pl.DataFrame, corporate_actions: pl.DataFrame) -> pl.DataFrame:
        """Moving averages, RSI, MACD, ATR, Bollinger bands and ADX on the split-adjusted series.

        TA-Lib's values. Price-unit columns are on the price basis of their own day, so that a split
        that was known in time changes no stored value. Null while a warm-up is not over or a bar in
        a column's window is missing.
        """
        return compute_indicators(ohlcv, corporate_actions)

    return asset
