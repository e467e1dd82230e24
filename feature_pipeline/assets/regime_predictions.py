"""Market regime."""

import dagster as dg
import polars as pl

from feature_pipeline.assets.declare import table_asset
from feature_pipeline.features.regime import predict_regime


def regime_predictions(timeframe: str) -> dg.AssetsDefinition:
    """The asset of a timeframe."""

    @dg.asset(**table_asset(f"regime_predictions_{timeframe}", group="signals"))
    def asset(indicators: pl.DataFrame) -> pl.DataFrame:
        """Trend, range or transition: a rule on ADX and Bollinger width with hysteresis.

        Its memory is bounded, so that a label does not depend on how much history was computed at
        once.
        """
        return predict_regime(indicators)

    return asset
