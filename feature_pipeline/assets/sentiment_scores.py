"""Scores of documents."""

import dagster as dg
import polars as pl

from feature_pipeline.assets.declare import table_asset
from feature_pipeline.features.sentiment import score_documents
from feature_pipeline.sources import Scorer


@dg.asset(**table_asset("sentiment_scores", group="signals"))
def sentiment_scores(
    news: pl.DataFrame, reddit: pl.DataFrame, scorer: dg.ResourceParam[Scorer]
) -> pl.DataFrame:
    """Sentiment of each document for each symbol it speaks of: P(positive) - P(negative).

    Every row names the model and its revision; a changed model adds scores beside the old ones.
    A score is available when its document is.
    """
    documents = pl.concat([news, reddit], how="diagonal")
    return score_documents(documents, scorer.score, scorer.model, scorer.revision)
