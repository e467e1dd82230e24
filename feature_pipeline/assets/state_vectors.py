"""The state vector."""

import dagster as dg
import polars as pl

from feature_pipeline.assets.declare import table_asset
from feature_pipeline.features.state_vector import compute_state_vectors


def state_vectors(timeframe: str) -> dg.AssetsDefinition:
    """The asset of a timeframe."""

    @dg.asset(**table_asset(f"state_vectors_{timeframe}", group="vectors"))
    def asset(
        ohlcv: pl.DataFrame,
        corporate_actions: pl.DataFrame,
        indicators: pl.DataFrame,
        features: pl.DataFrame,
        regime_predictions: pl.DataFrame,
        sentiment_scores: pl.DataFrame,
        macro_indicators: pl.DataFrame,
    ) -> pl.DataFrame:
        """The 14 numbers an agent sees, each on a fixed scale, one vector per symbol and bar.

        Windows trail and nothing is fitted. What is missing is null and named in `missing`; zero
        means zero.
        """
        return compute_state_vectors(
            ohlcv,
            corporate_actions,
            indicators,
            features,
            regime_predictions,
            sentiment_scores,
            macro_indicators,
            timeframe,
        )

    return asset
