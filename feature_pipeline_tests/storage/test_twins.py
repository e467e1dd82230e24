"""A story that is told twice is stored once, and nobody misses it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from feature_pipeline.schemas import Fetched
from feature_pipeline.storage.twins import SHORTEST_KEY, title_key
from feature_pipeline_tests.storage.support import Desk, articles, audit

WINDOW = (date(2020, 1, 1), date(2020, 3, 1))
AT = datetime(2020, 1, 7, 10, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
PROFIT = "A raises its profit forecast for the year"


def story(
    provider: str,
    page: str,
    title: str = PROFIT,
    *,
    at: datetime = AT,
    symbols: tuple[str, ...] = ("A",),
    seen: datetime | None = None,
) -> pl.DataFrame:
    """One article; its address is of the page, its id of provider and page."""
    frame = articles((f"{provider} {page}", at, title), symbols=symbols, seen=seen, source=provider)
    return frame.with_columns(url=pl.lit(f"https://example.com/{page}"))


def answers(*stories: pl.DataFrame) -> dict[str, Fetched]:
    """What each provider answered, in order of trust: that of the arguments."""
    found: dict[str, list[pl.DataFrame]] = {}
    for one in stories:
        found.setdefault(one["source"][0], []).append(one)
    return {name: Fetched(pl.concat(of), {}, ("A", "BB", "CCC")) for name, of in found.items()}


def held(desk: Desk) -> list[tuple[str, str]]:
    rows = desk.query("SELECT document_id, array_to_string(symbols, ' ') FROM documents ORDER BY 1")
    return rows.rows()


def write(desk: Desk, *stories: pl.DataFrame) -> tuple[int, int, int]:
    """written, unchanged, duplicate."""
    report = desk.write("news", answers(*stories), WINDOW)
    audit(desk.store.database, desk.store.tables)
    return report.written, report.unchanged, report.duplicate


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (story("feeds", "x"), story("gnews", "x", "Another title altogether, by an editor")),
        (story("feeds", "x"), story("gnews", "y", at=AT + DAY)),
        (story("feeds", "x"), story("gnews", "y", PROFIT.upper() + "! - Reuters", at=AT - DAY)),
        (story("feeds", "x"), story("feeds", "y")),
        # Of any day: an address has one story.
        (story("feeds", "x"), story("gnews", "x", at=AT + 30 * DAY)),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_a_story_is_stored_once(
    desk: Desk, first: pl.DataFrame, second: pl.DataFrame, together: bool
) -> None:
    if together:
        assert write(desk, first, second) == (1, 0, 1)
    else:
        assert write(desk, first) == (1, 0, 0)
        assert write(desk, second) == (0, 0, 1)
    assert held(desk) == [(first["document_id"][0], "A")]
    placed, ledger = desk.place("documents"), desk.ledger("news")["revision"].max()
    assert write(desk, first, second) == (0, 1, 1)
    assert desk.place("documents").equals(placed)
    assert desk.ledger("news")["revision"].max() == ledger
    assert desk.one("SELECT count(*) FROM documents_history") == 0


@pytest.mark.parametrize(
    "other",
    [
        story("gnews", "y", at=AT + DAY + timedelta(seconds=1)),
        story("gnews", "y", PROFIT, symbols=("BB",)),
        story("gnews", "y", "A raises its dividend forecast for the year"),
        articles(("gnews y", AT, PROFIT), source="gnews"),
    ],
)
def test_what_only_resembles_it_is_another_story(desk: Desk, other: pl.DataFrame) -> None:
    assert write(desk, story("feeds", "x"), other) == (2, 0, 0)
    assert write(desk, story("feeds", "x"), other) == (0, 2, 0)


def test_short_titles_tell_nothing(desk: Desk) -> None:
    pair = story("feeds", "x", "Market wrap"), story("gnews", "y", "Market wrap")
    assert write(desk, *pair) == (2, 0, 0)


def test_whoever_was_stored_first_stays_whatever_is_trusted_more(desk: Desk) -> None:
    assert write(desk, story("gnews", "y")) == (1, 0, 0)
    both = story("feeds", "x"), story("gnews", "y")
    assert write(desk, *both) == (0, 1, 1)
    assert held(desk) == [("gnews y", "A")]


def test_a_twin_is_news_for_those_of_whom_the_first_does_not_speak(desk: Desk) -> None:
    both = story("feeds", "x"), story("gnews", "y", symbols=("A", "BB"))
    assert write(desk, *both) == (2, 0, 0)
    assert held(desk) == [("feeds x", "A"), ("gnews y", "BB")]
    placed = desk.place("documents")
    assert write(desk, *both) == (0, 2, 0)
    assert write(desk, *reversed(both)) == (0, 2, 0)
    assert desk.place("documents").equals(placed)


def test_an_edited_article_stays_as_it_was_first_read(desk: Desk) -> None:
    write(desk, story("feeds", "x"))
    edited = story("feeds", "x", "A lowers its profit forecast for the year", at=AT)
    assert write(desk, edited) == (0, 1, 0)
    assert desk.one("SELECT title FROM documents") == PROFIT


def test_an_article_may_come_to_speak_of_more_and_never_of_fewer(desk: Desk) -> None:
    write(desk, story("feeds", "x", symbols=("A", "BB")))
    seen = AT + 2 * HOUR
    assert write(desk, story("feeds", "x", symbols=("CCC",), seen=seen)) == (1, 0, 0)
    assert held(desk) == [("feeds x", "A BB CCC")]
    # Not before it was known to.
    assert desk.one("SELECT available_at FROM documents") == seen
    assert write(desk, story("feeds", "x", symbols=("A",))) == (0, 1, 0)
    assert held(desk) == [("feeds x", "A BB CCC")]


def test_a_headline_of_every_day_is_stored_every_other_day(desk: Desk) -> None:
    """Greedy in order of time, whatever the order of the answer."""
    daily = [story("feeds", f"{n}", at=AT + n * DAY) for n in range(6)]
    assert write(desk, *reversed(daily)) == (3, 0, 3)
    assert [name for name, _ in held(desk)] == ["feeds 0", "feeds 2", "feeds 4"]


def test_one_query_asks_for_all_twins(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    read = desk.store.database.read_frame

    def counted(query: str) -> pl.DataFrame:
        asked.append(query)
        return read(query)

    monkeypatch.setattr(desk.store.database, "read_frame", counted)
    many = [story("feeds", f"p{n}", f"Title number {n} of a hundred") for n in range(100)]
    write_many = answers(pl.concat(many))
    desk.write("news", write_many, (date(2020, 1, 1), date(2020, 2, 1)))
    assert len([query for query in asked if "UNION" in query]) == 1
    assert len([query for query in asked if 'FROM "documents"' in query]) == 2


def test_of_two_writers_at_once_one_is_first(desk: Desk) -> None:
    stories = [story(f"p{n}", f"page {n}".replace(" ", "-")) for n in range(6)]

    def run(one: pl.DataFrame) -> tuple[int, int]:
        report = desk.write("news", answers(one), WINDOW)
        return report.written, report.duplicate

    with ThreadPoolExecutor(len(stories)) as pool:
        outcomes = list(pool.map(run, stories))
    assert sorted(outcomes) == [(0, 1)] * 5 + [(1, 0)]
    assert len(held(desk)) == 1


def test_posts_have_no_twins(desk: Desk) -> None:
    report = desk.write("reddit", answers(story("reddit", "x"), story("reddit", "y")), WINDOW)
    assert (report.written, report.duplicate) == (2, 0)


def keys(*titles: str) -> list[str | None]:
    return pl.DataFrame({"title": titles}).select(title_key(pl.col("title"))).to_series().to_list()


def test_ways_of_writing_a_title_have_one_key() -> None:
    same = keys(
        "Apple\u2019s shares JUMP after results",
        "Apple's shares jump after results!",
        "Apple's shares jump after results - Reuters",
        "Apple's shares jump after results | The Wall Street Journal",
        "\uff21pple's shares jump after results",
    )
    assert len(set(same)) == 1
    assert same[0] == "apple s shares jump after results"


def test_a_title_that_says_little_has_no_key() -> None:
    assert keys("Markets wrap", "Markets wrap - Reuters daily", "\U0001f680" * 30) == [
        None,
        "markets wrap reuters daily",
        None,
    ]
    assert len("markets wrap reuters") >= SHORTEST_KEY
