"""Features: returns, volatility, momentum, position, sector and market, sentiment, insiders."""

import dagster as dg
import polars as pl

from feature_pipeline.assets.declare import table_asset
from feature_pipeline.features.price_features import compute_features
from feature_pipeline.universe import Universe


def features(timeframe: str) -> dg.AssetsDefinition:
    """The asset of a timeframe."""

    @dg.asset(**table_asset(f"features_{timeframe}", group="signals"))
    def asset(
        ohlcv: pl.DataFrame,
        corporate_actions: pl.DataFrame,
        indicators: pl.DataFrame,
        sentiment_scores: pl.DataFrame,
        insider_transactions: pl.DataFrame,
        universe: dg.ResourceParam[Universe],
    ) -> pl.DataFrame:
        """The features of the catalogue, one column each, from what was available at each bar.

        Returns, volatility, momentum and beta on total return; aggregates over the members of that
        day; sentiment from documents, and what insiders did from filings, available by the bar's
        own moment.
        """
        return compute_features(
            ohlcv,
            corporate_actions,
            indicators,
            sentiment_scores,
            insider_transactions,
            universe.members(),
            universe.benchmark,
            tuple(universe.providers("insiders")),
            timeframe,
        )

    return asset
