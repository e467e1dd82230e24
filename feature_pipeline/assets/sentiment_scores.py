"""Scores of documents."""

import dagster as dg
import polars as pl

from feature_pipeline.assets.declare import table_asset
from feature_pipeline.sources import Scorer


@dg.asset(**table_asset("sentiment_scores", group="signals"))
def sentiment_scores(
    news: pl.DataFrame, reddit: pl.DataFrame, scorer: dg.ResourceParam[Scorer]
) -> pl.DataFrame:
    """Sentiment of each document for each symbol it speaks of: P(positive) - P(negative).

    Every row names the model and its revision; a changed model adds scores beside the old ones.
    A score is available when its document is.
    """
    documents = pl.concat([news, reddit], how="diagonal").filter(
        pl.col("document_id").is_not_null()  # a day that was not collected has no document
    )
    texts = documents.select(pl.concat_str("title", "text", separator=". ", ignore_nulls=True))
    return (
        documents.hstack(scorer.score(texts.to_series().to_list()))
        .drop("title", "text")
        .with_columns(model=pl.lit(scorer.model), model_revision=pl.lit(scorer.revision))
        .explode("symbols")
        .rename({"symbols": "symbol"})
    )
