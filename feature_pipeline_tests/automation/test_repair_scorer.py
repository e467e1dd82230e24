"""A sentiment model that is not there costs sentiment, and nothing else for long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from feature_pipeline.automation.memory import LONG_PAUSE
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.resources import code_versions
from feature_pipeline.settings import Settings
from feature_pipeline.sources.finbert import FINBERT
from feature_pipeline_tests.assets.support import failure
from feature_pipeline_tests.automation.test_repair import (  # noqa: F401
    Keeper,
    client,
    selected,
)
from feature_pipeline_tests.sources.models import write_model

NOW = datetime(2019, 7, 1, 12, tzinfo=UTC)


@pytest.fixture
def keeper(copied_graph, world, client, tmp_path):  # noqa: F811
    """Of a graph that vader has scored, after a change to FinBERT, whose model is not there."""
    settings = Settings(scorer="finbert", models=tmp_path)
    remembered = (*TABLES, "online_state_vectors")
    with copied_graph(world, settings=settings, materializations_of=remembered) as graph:
        versions = code_versions(graph.universe, settings)
        yield Keeper(graph, client, settings, versions, clock=NOW)


def missing(keeper) -> set[bool]:
    rows = keeper.graph.table("state_vectors_1d")
    return set(rows["missing"].list.contains("sentiment"))


def test_vectors_go_on_without_sentiment_and_get_it_when_the_model_comes(keeper, tmp_path):
    assert missing(keeper) == {False}, "the vectors of before are there"
    tried: list[set[str]] = []
    while missing(keeper) != {True}:
        (request,) = keeper.tick().run_requests
        tried.append(selected(request))
        done = keeper.execute(request)
        if "sentiment_scores" in tried[-1]:
            assert failure(done)[0] == "sentiment_scores"
            assert "feature-pipeline model fetch" in failure(done)[1]
        else:
            assert done.success
        keeper.clock += timedelta(minutes=3)
        assert len(tried) < 4, tried
    assert {"features_1d", "state_vectors_1d"} <= tried[-1], "computed around the scores"

    write_model(FINBERT.within(tmp_path))
    keeper.clock += LONG_PAUSE
    keeper.mend()
    assert missing(keeper) == {False}
