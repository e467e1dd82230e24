"""A post that is deleted at Reddit, through Dagster: its text goes, its score stays."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from feature_pipeline.sources.lexicon import LexiconScorer
from feature_pipeline.universe import Universe
from feature_pipeline_tests.assets.support import Graph
from feature_pipeline_tests.assets.world import MadeSource, make_universe, make_world
from feature_pipeline_tests.providers import reddit as made
from feature_pipeline_tests.providers.reddit import Comment, Post, Reddit
from feature_pipeline_tests.providers.server import ProviderServer, broken, truncated

NOW = datetime(2019, 6, 14, 15, tzinfo=UTC)
DAYS = (date(2019, 6, 10), date(2019, 6, 15))
SECRET = "words that were taken back"
ASSETS = ("news", "reddit", "sentiment_scores")


@pytest.fixture
def world() -> Reddit:
    def post(name: str, days: int, text: str, **more: object) -> Post:
        return Post(name, NOW - timedelta(days=days), f"$AAA {text}", text, **more)  # type: ignore[arg-type]

    comment = Comment("c1", NOW - timedelta(hours=1), f"$BBB {SECRET}")
    return Reddit(
        [
            post("p1", 3, SECRET),
            post("p2", 3, "good"),
            post("p3", 0, "bad", comments=[comment]),
        ]
    )


@pytest.fixture
def graph(
    migrated_database_url: str, provider_server: ProviderServer, world: Reddit
) -> Iterator[Graph]:
    provider_server.routes.update(world.routes())
    plain = make_universe()
    universe = Universe(
        (
            i.model_copy(update={"source": i.source.model_copy(update={"reddit": "reddit"})})
            for i in plain.instruments
        ),
        plain.benchmark,
    )
    other = MadeSource(make_world(plain))
    source = made.source(provider_server, lambda: NOW)
    graph = Graph(
        migrated_database_url,
        universe,
        other,
        overrides={"sources": {"made": other, "reddit": source}, "scorer": LexiconScorer()},
    )
    yield graph
    graph.close()


def documents(graph: Graph) -> dict[str, str]:
    return dict(
        graph.query("SELECT url, title FROM documents WHERE source = 'reddit' ORDER BY 1").rows()
    )


def scores(graph: Graph) -> pl.DataFrame:
    return graph.query(
        "SELECT s.document_id, s.symbol, s.sentiment, s.available_at, s.computed_at"
        " FROM sentiment_scores s WHERE channel = 'reddit' ORDER BY 1, 2"
    )


def everything(graph: Graph) -> str:
    names = graph.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").to_series()
    texts = (
        graph.query(f"SELECT coalesce(string_agg(t::text, ' '), '') FROM {n} t").item()
        for n in names
    )
    return " ".join(map(str, texts))


def passed(graph: Graph) -> bool:
    result = graph.run(*DAYS, ASSETS)
    said = result.get_asset_check_evaluations()
    failed = [e for e in said if not e.passed and e.check_name != "freshness"]
    assert failed == []
    return result.success


def test_its_text_goes_and_its_score_stays(graph: Graph, world: Reddit) -> None:
    assert passed(graph)
    first, scored = documents(graph), scores(graph)
    assert len(first) == scored.height == 4
    assert SECRET in everything(graph)

    world.posts[0].title = "[deleted by user]"
    world.posts[0].text = "[removed]"
    world.posts[2].comments[0].body = "[deleted]"
    assert passed(graph)
    now = documents(graph)
    assert sorted(now.values()) == ["$AAA bad", "$AAA good", "[deleted]", "[deleted]"]
    assert SECRET not in everything(graph)
    assert scores(graph).equals(scored), "also when they were computed"
    assert graph.pending("sentiment_scores", *DAYS) == []
    for event in graph.instance.all_logs(graph.instance.get_runs()[-1].run_id):
        assert SECRET not in str(event)
        assert made.AUTHOR not in str(event)

    world.posts[0].title, world.posts[0].text = f"$AAA {SECRET}", SECRET
    assert passed(graph)
    assert documents(graph) == now, "an answer from before the deletion brings nothing back"
    assert scores(graph).equals(scored)


def test_what_vanished_counts_as_deleted(graph: Graph, world: Reddit) -> None:
    assert passed(graph)
    del world.posts[0]
    assert passed(graph)
    assert documents(graph)["https://www.reddit.com/comments/p1/"] == "[deleted]"


@pytest.mark.parametrize("fault", [broken(), truncated(), made.listing([])])
def test_no_answer_erases_nothing_and_costs_nothing(
    graph: Graph, world: Reddit, provider_server: ProviderServer, fault: object
) -> None:
    assert passed(graph)
    before = documents(graph)
    world.posts.append(Post("p4", NOW - timedelta(hours=2), "$AAA news"))
    provider_server.fail(fault, below="/api/info", times=5)  # type: ignore[arg-type]
    assert passed(graph)
    after = documents(graph)
    assert {url: title for url, title in after.items() if url in before} == before
    assert len(after) == len(before) + 1, "and what is new was collected"


def test_a_post_that_is_older_than_a_week_is_looked_up_when_its_day_is_run(
    graph: Graph, world: Reddit, provider_server: ProviderServer
) -> None:
    assert passed(graph)
    asked = [r for r in provider_server.asked if r.path.startswith("/api/info")]
    assert asked == [], "nothing was held yet"
    graph.run(date(2019, 6, 30), date(2019, 7, 1), ("reddit",))
    assert [r for r in provider_server.asked if r.path.startswith("/api/info")] == []
    graph.run(date(2019, 6, 14), date(2019, 6, 15), ("reddit",))
    [lookup] = [r for r in provider_server.asked if r.path.startswith("/api/info")]
    assert sorted(lookup.query["id"].split(",")) == ["t1_c1", "t3_p1", "t3_p2", "t3_p3"]
