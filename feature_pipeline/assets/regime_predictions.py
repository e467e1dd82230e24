"""Market regime."""

import dagster as dg
import polars as pl

from feature_pipeline.assets.declare import table_asset
from feature_pipeline.features.regime import predict_regime


@dg.asset(**table_asset("regime_predictions_1d", group="signals"))
def regime_predictions_1d(indicators_1d: pl.DataFrame) -> pl.DataFrame:
    """Trend, range or transition: a rule on ADX and Bollinger width with hysteresis.

    Its memory is bounded, so that a label does not depend on how much history was computed at once.
    """
    return predict_regime(indicators_1d)
