"""The sentiment model is a setting: what follows from it, with tiny models and the real code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.settings import Settings
from feature_pipeline.sources.finbert import FINBERT, FinbertScorer
from feature_pipeline_tests.assets.support import Graph, assert_same_tables, failure
from feature_pipeline_tests.assets.world import END, START, MadeSource
from feature_pipeline_tests.sources.models import write_model

AROUND = ("features_1d", "regime_predictions_1d", "state_vectors_1d")
FOLLOW = {asset for asset, table in TABLES.items() if asset == "sentiment_scores" or any(
    needed.asset in ("sentiment_scores", "features_1d") for needed in table.inputs
)}  # fmt: skip
"""What depends on scores."""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("models")
    write_model(FINBERT.within(where))
    return where


def settings(models: Path, scorer: str) -> Settings:
    return Settings(scorer=scorer, models=models)


@pytest.fixture(scope="module")
def on(new_database, universe, world) -> Iterator[Callable[..., Graph]]:
    """Makes graphs of several scorers on databases that they share by name."""
    with ExitStack() as opened:
        urls: dict[str, str] = {}

        def graph(database: str, chosen: Settings) -> Graph:
            if database not in urls:
                urls[database] = opened.enter_context(new_database())
            made = Graph(urls[database], universe, MadeSource(world), settings=chosen)
            opened.callback(made.close)
            return made

        yield graph


def vectors(graph: Graph, start: date = START) -> pl.DataFrame:
    return graph.table("state_vectors_1d", start)


def assert_sentiment_missing(graph: Graph) -> None:
    rows = vectors(graph)
    assert rows.height
    assert rows["sentiment"].null_count() == rows["document_count"].null_count() == rows.height
    assert rows["missing"].list.contains("sentiment").all()


def assert_sentiment_there(graph: Graph, start: date = START) -> None:
    rows = vectors(graph, start)
    assert rows.height
    assert rows["sentiment"].null_count() == 0
    assert not rows["missing"].list.contains("sentiment").any()


@pytest.fixture(scope="module")
def alone(on, models, tmp_path_factory) -> dict[str, pl.DataFrame]:
    """What follows from FinBERT where no other model ever scored; on the way there, how it is
    without its model."""
    nowhere = tmp_path_factory.mktemp("nowhere")
    graph = on("alone", settings(nowhere, "finbert"))
    result = graph.run(check=False)
    assert failure(result) == (
        "sentiment_scores",
        f"the sentiment model ProsusAI/finbert is not in {nowhere}; fetch it with "
        "`feature-pipeline model fetch`",
    )
    kinds = [e.event_type_value for e in result.all_events if e.step_key == "sentiment_scores"]
    assert "STEP_UP_FOR_RETRY" not in kinds, "trying again changes nothing"
    assert vectors(graph).is_empty(), "in that run Dagster skips what follows"
    # A run of what follows alone, as the repair sensor asks for it: computed around the gap.
    graph.run(assets=AROUND)
    assert_sentiment_missing(graph)
    assert vectors(graph)["rsi"].null_count() < vectors(graph).height, "the rest is there"
    # The model comes: what depends on it is stale, and mended by a plain run.
    found = on("alone", settings(models, "finbert"))
    found.run()
    assert_sentiment_there(found)
    assert not any(found.pending(asset) for asset in TABLES)
    return found.tables(("features_1d", "state_vectors_1d"))


def test_without_its_model_the_asset_fails_with_one_line_and_vectors_lack_sentiment(alone):
    assert alone["state_vectors_1d"].height


def test_known_texts_need_no_model(alone, on, tmp_path):
    graph = on("alone", settings(tmp_path, "finbert"))
    with graph.store.database.connection() as connection:
        connection.execute("DELETE FROM sentiment_scores")
        connection.execute("DELETE FROM partition_ledger WHERE asset = 'sentiment_scores'")
    assert graph.run(assets=["sentiment_scores"]).success
    assert graph.pending("sentiment_scores") == []
    assert graph.table("sentiment_scores").height


def test_another_model_makes_stale_what_depends_on_scores(alone, on, models, monkeypatch):
    read: list[str] = []
    real = FinbertScorer._probabilities
    monkeypatch.setattr(
        FinbertScorer, "_probabilities", lambda self, t: (read.extend(t), real(self, t))[1]
    )
    before = on("changed", Settings())
    before.run()
    lexicon = vectors(before)["sentiment"]
    after = on("changed", settings(models, "finbert"))
    assert {asset for asset in TABLES if after.pending(asset)} == FOLLOW
    # Days that another model has scored are not known to this one: neither its values nor 0.
    after.run(assets=AROUND)
    assert_sentiment_missing(after)
    # A run of one day brings along what its windows reach back to, by the new model.
    last = date(2019, 6, 14)
    after.run(last, END)
    assert_sentiment_there(after, last)
    assert read, "the day has documents"
    # A plain run scores the rest, and computes again what was computed around the gap: also days
    # without a document, of which no row has changed.
    after.run()
    assert_sentiment_there(after)
    assert not any(after.pending(asset) for asset in TABLES)
    assert not vectors(after)["sentiment"].equals(lexicon)
    assert_same_tables(after.tables(tuple(alone)), alone)
    # Every text was scored once, and the old model's scores stay beside the new ones.
    assert len(read) == len(set(read))
    scores = after.query("SELECT model, count(*) AS n FROM sentiment_scores GROUP BY 1")
    assert set(scores["model"]) == {FINBERT.model, "vader"}
    assert scores["n"].n_unique() == 1
    count = len(read)
    after.run()
    assert len(read) == count
