"""The state vector."""

import dagster as dg
import polars as pl

from feature_pipeline.assets.declare import table_asset
from feature_pipeline.features.state_vector import compute_state_vectors


@dg.asset(**table_asset("state_vectors_1d", group="vectors"))
def state_vectors_1d(
    ohlcv_1d: pl.DataFrame,
    corporate_actions: pl.DataFrame,
    indicators_1d: pl.DataFrame,
    features_1d: pl.DataFrame,
    regime_predictions_1d: pl.DataFrame,
    sentiment_scores: pl.DataFrame,
    macro_indicators: pl.DataFrame,
) -> pl.DataFrame:
    """The 14 numbers an agent sees, each on a fixed scale, one vector per symbol and bar.

    Windows trail and nothing is fitted. What is missing is null and named in `missing`; zero means
    zero.
    """
    return compute_state_vectors(
        ohlcv_1d,
        corporate_actions,
        indicators_1d,
        features_1d,
        regime_predictions_1d,
        sentiment_scores,
        macro_indicators,
    )
