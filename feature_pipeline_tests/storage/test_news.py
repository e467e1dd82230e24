"""From a feed to the table: what is untrusted is stored clean or rejected, once, and twins once."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta

import polars as pl
import pytest

from feature_pipeline.assets.declare import fetch
from feature_pipeline.errors import SourceError
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.sources import Off
from feature_pipeline.sources.news.feeds import FeedSource
from feature_pipeline.sources.news.gnews import GNewsSource
from feature_pipeline.sources.news.newsapi import NewsApiSource
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.store import Store, WriteReport
from feature_pipeline_tests.providers.news import KEY, Press, Story, feed, rss
from feature_pipeline_tests.providers.server import QUICK, ProviderServer, broken
from feature_pipeline_tests.sources.documents_support import NOW, UNIVERSE, WEEK, ago
from feature_pipeline_tests.storage.support import Clock, Desk, assert_conserved, audit

PROFIT = "Apple raises its profit forecast for the year"


class Desks:
    """A store, the three providers before it, and what they are asked."""

    def __init__(self, database: Database, server: ProviderServer) -> None:
        self.clock = Clock(NOW)
        store = Store(database, UNIVERSE, TABLES, clock=self.clock)
        self.desk = Desk(store, self.clock)
        self.server, self.press = server, Press()
        self.feed: str | bytes = rss([])
        server.routes.update(self.press.routes())
        server.routes["/feed"] = lambda _: feed(self.feed)
        large = replace(QUICK, max_bytes=32 << 20)
        keyed = {"url": server.url, "limits": large, "clock": self.clock}
        self.sources = {
            "feeds": FeedSource([server.url + "/feed"], limits=QUICK, clock=self.clock),
            "gnews": GNewsSource(KEY, **keyed),  # type: ignore[arg-type]
            "newsapi": NewsApiSource(KEY, **keyed),  # type: ignore[arg-type]
        }

    def collect(self) -> WriteReport:
        with self.desk.planned("news", WEEK) as plan:
            answers = fetch(
                nullcontext,
                plan,
                UNIVERSE,
                self.sources,
                "news",
                lambda source, which: source.documents("news", which, *plan.window),
            )
            report = self.desk.store.write(plan, answers)
        assert_conserved(report)
        audit(self.desk.store.database, TABLES)
        return report

    def held(self) -> pl.DataFrame:
        return self.desk.query("SELECT * FROM documents ORDER BY source, time, title")


@pytest.fixture
def news(migrated_database_url: str, provider_server: ProviderServer) -> Iterator[Desks]:
    with Database(migrated_database_url, 20) as database:
        yield Desks(database, provider_server)


def test_a_story_of_three_providers_is_the_most_trusted_ones(news: Desks) -> None:
    at = ago(hours=30)
    news.press.stories = [Story("x?utm_source=api", PROFIT, at), Story("y", "Apple, others", at)]
    news.feed = rss([Story("x", PROFIT + " - Reuters", at)])
    report = news.collect()
    assert (report.input, report.written, report.duplicate) == (5, 2, 3)
    rows = news.held().select("source", "title").rows()
    assert rows == [("feeds", PROFIT + " - Reuters"), ("gnews", "Apple, others")]
    placed = news.desk.place("documents")
    again = news.collect()
    assert (again.written, again.unchanged, again.duplicate) == (0, 2, 3)
    assert news.desk.place("documents").equals(placed)


def test_a_live_article_keeps_the_moment_it_was_first_seen(news: Desks) -> None:
    news.feed = rss([Story("x", PROFIT, ago(hours=1))])
    news.collect()
    for hours in (1, 8, 40):
        news.clock.now = NOW + timedelta(hours=hours)
        news.feed = rss([Story("x", PROFIT + ", edited", ago(hours=1))])
        with news.desk.planned("news", (WEEK[0], WEEK[1] + timedelta(days=3))) as plan:
            answer = news.sources["feeds"].documents("news", UNIVERSE.instruments, *plan.window)
            assert news.desk.store.write(plan, {"feeds": answer}).written == 0
    row = news.held().row(0, named=True)
    assert (row["title"], row["available_at"], row["availability_basis"]) == (
        PROFIT,
        NOW,
        "observed",
    )


def test_what_cannot_be_placed_is_rejected_once_however_often_it_comes(news: Desks) -> None:
    news.feed = rss(
        [
            Story("undated", "Apple, some day", None),
            Story("untitled", "<b></b>", ago(hours=1), text="Apple is spoken of"),
            Story("early", "Apple, next year", NOW + timedelta(days=300)),
            Story("good", "Apple, today", ago(hours=1)),
        ]
    )
    for minutes in (0, 15, 30):
        news.clock.now = NOW + timedelta(minutes=minutes)
        report = news.collect()
        assert report.quarantined == 3
    assert news.held()["title"].to_list() == ["Apple, today"]
    reasons = news.desk.query("SELECT reason, source FROM quarantine ORDER BY id")
    assert sorted(reasons["reason"].to_list()) == [
        "it lies in the future",
        "time is missing",
        "title is missing",
    ]
    assert set(reasons["source"].to_list()) == {"feeds"}


def test_a_megabyte_of_anything_is_stored_clean(news: Desks) -> None:
    texts = [
        "\x00" * 100 + "Apple 🚀 <b>שלום</b> \u202e" * 50_000,
        "<div>" * 200_000 + "Apple",
        "Apple " + "a\u0315\u0300" * 300_000,
        "&amp;" * 200_000,
    ]
    stories = [Story(str(n), f"Apple number {n}", ago(hours=30), t) for n, t in enumerate(texts)]
    news.press.stories = [*stories, Story("s", "Apple \ud83d\ude80 \ud800\x00 <i>x", ago(hours=30))]
    tracemalloc.start()
    report = news.collect()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000_000
    assert (report.quarantined, report.written) == (0, 5)
    held = news.held()
    assert "Apple \U0001f680 \ufffd x" in held["title"].to_list()
    assert held["text"].str.len_chars().max() <= 20_000  # type: ignore[operator]
    assert not held["text"].fill_null("").str.contains("[\x00<\u202e]").any()


def test_a_provider_that_is_down_keeps_no_other_from_being_written(news: Desks) -> None:
    at = ago(hours=30)
    news.press.stories = [Story("x", PROFIT, at)]
    news.server.routes["/feed"] = lambda _: broken()
    assert news.collect().written == 1
    assert [(s, who) for s, _, who, _ in news.desk.exceptions("news") if s == "feeds"][:2] == [
        ("feeds", "AAPL"),
        ("feeds", "MSFT"),
    ]
    # All of them: the run fails, and is tried again.
    news.server.routes.clear()
    news.server.routes["/"] = lambda _: broken()
    with pytest.raises(SourceError, match="feeds"):
        news.collect()


def test_a_provider_that_is_off_is_not_asked(news: Desks) -> None:
    news.press.stories = [Story("x", PROFIT, ago(hours=30))]
    news.sources["gnews"] = Off("gnews", "gnews is off: set its key")  # type: ignore[assignment]
    assert news.collect().written == 1
    assert news.held()["source"].to_list() == ["newsapi"]


def test_order_is_that_of_the_universe(news: Desks) -> None:
    asked: list[str] = []

    def ask(source: FeedSource, which: object) -> object:
        asked.append(source.name)
        return source.documents("news", which, *WEEK)  # type: ignore[arg-type]

    order = ("newsapi", "feeds", "gnews")
    swapped = [
        i.model_copy(update={"source": i.source.model_copy(update={"news": order})})
        for i in UNIVERSE.instruments
    ]
    universe = type(UNIVERSE)(swapped, "AAPL")
    with news.desk.planned("news", WEEK) as plan:
        fetch(nullcontext, plan, universe, news.sources, "news", ask)  # type: ignore[arg-type]
    assert tuple(asked) == order
