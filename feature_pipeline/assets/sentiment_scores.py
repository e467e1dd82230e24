"""Scores of documents."""

import dagster as dg
import polars as pl

from feature_pipeline.assets.declare import table_asset
from feature_pipeline.errors import ModelError
from feature_pipeline.features.sentiment import score_documents
from feature_pipeline.sources import Scorer
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.storage.scored import ScoredTexts


@dg.asset(**table_asset("sentiment_scores", group="signals"))
def sentiment_scores(
    news: pl.DataFrame,
    reddit: pl.DataFrame,
    storage: dg.ResourceParam[StorageIOManager],
    scorer: dg.ResourceParam[Scorer],
) -> pl.DataFrame:
    """Sentiment of each document for each symbol it speaks of: P(positive) - P(negative).

    Every row names the model and its revision; a changed model adds scores beside the old ones.
    A score is available when its document is. Each text is scored once per model and revision.
    """
    documents = pl.concat([news, reddit], how="diagonal")
    scored = ScoredTexts(storage.store.database, scorer)
    try:
        return score_documents(documents, scored.score, scored.model, scored.revision)
    except ModelError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
