"""Providers without their credentials: runs succeed, nothing is a false zero, and it is said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta

import dagster as dg
import polars as pl
import pytest

from feature_pipeline.assets import completeness, recency
from feature_pipeline.assets.verdicts import audit
from feature_pipeline.partitions import days
from feature_pipeline.resources import code_versions
from feature_pipeline.serving.explain import explain
from feature_pipeline.serving.lookup import Moment
from feature_pipeline.serving.names import resolve
from feature_pipeline.sources import Off, calls_of
from feature_pipeline.storage.io_manager import FLAGGED_TAG
from feature_pipeline.storage.upkeep import Upkeep
from feature_pipeline.universe import Universe
from feature_pipeline_tests.assets.support import Graph, assert_same_tables, metadata_of
from feature_pipeline_tests.assets.world import (
    END,
    INSTRUMENTS,
    START,
    MadeSource,
    _universe_yaml,
    midnight,
)

WHY = {
    "reddit": "reddit is off: set FEATURE_PIPELINE_REDDIT_CLIENT_ID to switch it on",
    "fred": "fred is off: set FEATURE_PIPELINE_FRED_API_KEY to switch it on",
    "newsapi": "newsapi is off: set FEATURE_PIPELINE_NEWSAPI_KEY to switch it on",
}
MACRO = ("vix", "fed_funds", "yield_curve")
DAYS = days(START, END)
_DAY = timedelta(days=1)


def named(text: str) -> Universe:
    """The usual universe, its providers as `text` says: `reddit: reddit`."""
    entries = _universe_yaml(INSTRUMENTS, "MKT")
    kind = text.partition(":")[0]
    return Universe.parse(entries.replace(f"{kind}: made", text))


class NamedSource(MadeSource):
    """The made source under another name, which its rows say."""

    def _within(self, *asked):
        return super()._within(*asked).with_columns(source=pl.lit(self.name))


@contextmanager
def graph_of(url: str, universe: Universe, world, *off: str, **on) -> Iterator[Graph]:
    """The graph, some of whose providers are off and others on under names of their own."""
    made = MadeSource(world)
    others = {name: NamedSource(world, name=name) for name in on}
    providers = {"made": made, **others, **{name: Off(name, WHY[name]) for name in off}}
    macro = providers.get("fred", made)
    graph = Graph(url, universe, made, {"sources": providers, "macro_source": macro})
    yield graph
    graph.close()


def flagged(graph: Graph, result) -> str | None:
    run = graph.instance.get_run_by_id(result.run_id)
    return run.tags.get(FLAGGED_TAG)


def exceptions(graph: Graph, asset: str) -> list[tuple]:
    frame = graph.store.ledger.exceptions(asset, date(2000, 1, 1), date(2030, 1, 1))
    return frame.select("symbol", "source", "status", "reason").unique().sort("symbol").rows()


def verdicts(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str], dg.AssetCheckEvaluation]:
    return {
        (e.asset_key.to_python_identifier(), e.check_name): e
        for e in result.get_asset_check_evaluations()
    }


@pytest.fixture(scope="module")
def dark(new_database, world):
    """Reddit and FRED are off; the rest is on."""
    with (
        new_database() as url,
        graph_of(url, named("reddit: reddit"), world, "reddit", "fred") as graph,
    ):
        graph.result = graph.run()
        yield graph


def test_a_run_succeeds_and_is_not_flagged(dark):
    assert dark.result.success
    assert flagged(dark, dark.result) is None
    assert dark.table("reddit").height == dark.table("macro_indicators").height == 0
    for asset, name in (("reddit", "reddit"), ("macro_indicators", "fred")):
        assert exceptions(dark, asset) == [("*", name, "no_answer", WHY[name])]
        written = dark.store.ledger.rows(asset, START, END)
        assert (written["day"].to_list(), written["rows"].sum()) == (DAYS, 0)
        # A row for each day, however many instruments there are.
        assert dark.store.ledger.exceptions(asset, START, END).height == len(DAYS)
        assert metadata_of(dark.result, asset)["off"].value == WHY[name]


def test_what_follows_is_missing_and_no_zero(dark, ran):
    rows = dark.table("state_vectors_1d")
    assert rows.height == ran.table("state_vectors_1d").height
    for field in ("sentiment", *MACRO):
        assert rows[field].null_count() == rows.height
    assert all({"sentiment", *MACRO} <= set(missing) for missing in rows["missing"])
    features = dark.table("features_1d")
    assert features["news_sentiment_24h"].equals(ran.table("features_1d")["news_sentiment_24h"])
    lost = ["sentiment", *MACRO, "missing", "document_count"]
    assert rows.drop(lost).equals(ran.table("state_vectors_1d").drop(lost))


def test_explain_says_what_to_set(dark):
    versions = code_versions(dark.universe)
    moment = Moment(as_of=midnight(END))
    for name, off in (("state_vectors_1d.vix", "fred"), ("state_vectors_1d.sentiment", "reddit")):
        place = resolve(name)
        found = explain(dark.store, "AAA", place, moment, dark.scorer, versions)
        assert found.value is None
        assert any(reason.endswith(f"was not collected: {WHY[off]}") for reason in found.missing)


def test_no_check_fails_for_that(dark, ran):
    here, there = verdicts(dark.result), verdicts(ran.first)
    assert {key for key, e in here.items() if not e.passed} <= {
        key for key, e in there.items() if not e.passed
    }
    said = here["reddit", "collected"].description
    assert f"of {len(DAYS)} days, nobody was asked: {WHY['reddit']}" in said
    assert here["reddit", "freshness"].description == WHY["reddit"]
    assert here["macro_indicators", "freshness"].description == WHY["fred"]
    # Where they are on, both are judged by what they have: it is years old.
    assert not there["macro_indicators", "freshness"].passed
    assert completeness.nan_share(
        dark.store, audit(dark.store, "state_vectors_1d", START, END)
    ).passed
    assert recency.freshness(dark.store, "news").passed is False


def test_again_is_the_same(dark):
    before = dark.query(
        "SELECT asset, day, source, revision FROM partition_ledger ORDER BY 1, 2, 3"
    )
    result = dark.run()
    assert result.success
    assert flagged(dark, result) is None
    after = dark.query("SELECT asset, day, source, revision FROM partition_ledger ORDER BY 1, 2, 3")
    assert after.equals(before)
    assert dark.pending("state_vectors_1d") == []


def test_nothing_is_asked_for_again_while_they_are_off(dark):
    for asset in ("reddit", "macro_indicators"):
        assert dark.store.planner.missing(asset, START, END).is_empty()
        assert dark.pending(asset) == []
    scope = dark.store.planner.scope("reddit", START, END, only_missing=True)
    assert scope.days.is_empty()
    assert calls_of(Off("reddit", "why"), "reddit", dark.universe.instruments, START, END) == 0
    upkeep = Upkeep(dark.store, code_versions(dark.universe))
    assert upkeep.holes("reddit").is_empty()


def test_when_the_credential_arrives_the_days_are_collected(new_database, new_graph, world):
    """By a backfill of what is missing; and then all is as if it had been there all the time."""
    universe = named("reddit: reddit")
    with new_database() as url:
        with graph_of(url, universe, world, "reddit", "fred") as graph:
            graph.run()
        with graph_of(url, universe, world, reddit=True, fred=True) as graph:
            for asset in ("reddit", "macro_indicators"):
                missing = graph.store.planner.missing(asset, START, END)
                assert missing.rows() == [(day, None) for day in DAYS]
            graph.run(only_missing=True)
            for asset in ("reddit", "macro_indicators"):
                assert exceptions(graph, asset) == []
                assert graph.store.planner.missing(asset, START, END).is_empty()
            lit = graph.tables()
    with new_database() as url, graph_of(url, universe, world, reddit=True, fred=True) as graph:
        graph.run()
        assert_same_tables(lit, graph.tables())


def test_a_run_for_one_symbol_asks_for_everybody_then(new_database, world):
    universe = named("reddit: reddit")
    with new_database() as url:
        with graph_of(url, universe, world, "reddit") as graph:
            graph.run(assets=["reddit"])
            graph.run(assets=["reddit"], symbols=["AAA"])
            assert exceptions(graph, "reddit") == [("*", "reddit", "no_answer", WHY["reddit"])]
        with graph_of(url, universe, world, reddit=True) as graph:
            graph.run(assets=["reddit"], symbols=["AAA"])
            assert exceptions(graph, "reddit") == []
            assert {s for row in graph.table("reddit")["symbols"] for s in row} == set(
                universe.symbols
            )


# -- beside one that is on ------------------------------------------------------------------------


def test_beside_another_it_is_left_out(new_database, ran, world):
    universe = named("news: [made, newsapi]")
    with new_database() as url:
        with graph_of(url, universe, world, "newsapi") as graph:
            result = graph.run()
            assert flagged(graph, result) == flagged(ran, ran.first)
            assert metadata_of(result, "news")["off"].value == WHY["newsapi"]
            assert exceptions(graph, "news") == []
            assert graph.store.planner.missing("news", START, END).is_empty()
            assert graph.pending("news") == []
            assert verdicts(result)["news", "collected"].passed
            assert_same_tables(graph.tables(), ran.tables())
        # With its key it is asked, for the days in which it was left out as well.
        with graph_of(url, universe, world, newsapi=True) as graph:
            missing = graph.store.planner.missing("news", START, END)
            assert set(missing["day"]) == set(DAYS)


def test_only_those_whom_nobody_else_covers_are_lost(new_database, ran, world):
    """And those of whom one of several failed: each one's trouble is its own, and half a day's news
    is no day's. Another instrument loses nothing by either."""

    class Failing(MadeSource):
        def documents(self, channel, instruments, start, end):
            found = super().documents(channel, instruments, start, end)
            return replace(found, frame=found.frame.clear(), failed={"BBB": "it is down"})

    text = _universe_yaml(INSTRUMENTS, "MKT").replace("reddit: made", "reddit: reddit", 1)
    universe = Universe.parse(text.replace("news: made", "news: [made, also]"))
    made, also = MadeSource(world), Failing(world, name="also")
    providers = {"made": made, "also": also, "reddit": Off("reddit", WHY["reddit"])}
    with new_database() as url:
        graph = Graph(url, universe, made, {"sources": providers})
        result = graph.run()
        assert flagged(graph, result) == "news,sentiment_scores"
        assert exceptions(graph, "reddit") == [("AAA", "reddit", "no_answer", WHY["reddit"])]
        assert exceptions(graph, "news") == [("BBB", "also", "failed", "it is down")]
        missing = graph.store.planner.missing("news", START, END)
        assert set(missing.select("symbol", "day").rows()) == {("BBB", day) for day in DAYS}
        vectors = [g.table("state_vectors_1d") for g in (graph, ran)]
        news = [g.table("features_1d") for g in (graph, ran)]
        graph.close()
    unknown = pl.col("symbol").is_in(["AAA", "BBB"])
    lost = vectors[0].filter(unknown)["sentiment"]
    assert lost.len()
    assert lost.null_count() == lost.len()
    here, there = (frame.filter(~unknown)["sentiment"] for frame in vectors)
    assert here.equals(there)
    field = "news_sentiment_24h"
    assert news[0].filter(symbol="BBB")[field].null_count() == news[0].filter(symbol="BBB").height
    here, there = (frame.filter(pl.col("symbol") != "BBB")[field] for frame in news)
    assert here.equals(there)
