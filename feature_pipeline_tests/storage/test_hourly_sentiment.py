"""The hourly summary: what it counts, when, and once."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_pipeline.features.catalogue import SENTIMENT_SCORES, TABLES
from feature_pipeline.features.sentiment import document_count
from feature_pipeline.storage.changes import Batch, Writing
from feature_pipeline.storage.writer import Writer
from feature_pipeline_tests.storage.support import Desk, articles, fetched, nothing

NINE = datetime(2020, 1, 7, 9, tzinfo=UTC)
HOUR, MINUTE, TICK = timedelta(hours=1), timedelta(minutes=1), timedelta(microseconds=1)


def score(
    document: str,
    at: datetime,
    sentiment: float,
    *,
    symbol: str = "A",
    channel: str = "news",
    source: str = "made",
    model: str = "m",
    revision: str = "1",
) -> dict[str, Any]:
    return {
        "document_id": document,
        "time": NINE,
        "available_at": at,
        "availability_basis": "observed",
        "symbol": symbol,
        "channel": channel,
        "source": source,
        "sentiment": sentiment,
        "label": "neutral",
        "confidence": 0.5,
        "model": model,
        "model_revision": revision,
    }


@pytest.fixture
def link(database):
    link = database.dedicated()
    yield link
    link.close()


@pytest.fixture
def write(database) -> Callable[..., None]:
    """Writes scores by the contract, all at once."""
    tokens = count(1)

    def insert(*rows: dict[str, Any]) -> None:
        if rows:
            frame = SENTIMENT_SCORES.conform(pl.DataFrame(rows))
            days = frame["available_at"].dt.date().unique().sort()
            writing = Writing(next(tokens), "run", "1")
            Writer(database).write(SENTIMENT_SCORES, writing, [Batch("derived", frame, days)])

    return insert


def summary(link, where: str = "true") -> list[tuple[Any, ...]]:
    return link.execute(
        "SELECT time, symbol, channel, source, model_revision, mean, volatility, document_count"
        f" FROM hourly_sentiment_summary WHERE {where} ORDER BY 1, 2, 3, 4, 5"
    ).fetchall()


def test_mean_volatility_and_count_of_each_hour(link, write):
    write(
        score("a", NINE, 0.5),
        score("b", NINE + HOUR - TICK, -0.5),
        score("c", NINE + 30 * MINUTE, 0.3),
        score("d", NINE + HOUR, 1.0),
    )
    values = [0.5, -0.5, 0.3]
    (*_, mean, volatility, count), later = summary(link)
    assert (mean, volatility) == (
        pytest.approx(statistics.mean(values)),
        pytest.approx(statistics.stdev(values)),
    )
    assert count == 3
    # Of one document alone nobody can say how far apart they are: missing, not zero.
    assert later == (NINE + HOUR, "A", "news", "made", "1", 1.0, None, 1)


def test_each_symbol_channel_source_and_model_is_for_itself(link, write):
    write(
        score("a", NINE, 0.1),
        score("a", NINE, 0.2, symbol="B"),
        score("b", NINE, 0.3, channel="reddit"),
        score("c", NINE, 0.4, source="other"),
        score("a", NINE, 0.5, revision="2"),
    )
    assert [row[5:] for row in summary(link)] == [
        (value, None, 1) for value in (0.1, 0.5, 0.4, 0.3, 0.2)
    ]


def test_hours_are_those_of_utc_wherever_one_asks(link, write):
    write(score("a", NINE + 15 * MINUTE, 0.1), score("b", NINE + 45 * MINUTE, 0.2))
    for zone in ("UTC", "Asia/Kolkata", "America/New_York", "Australia/Lord_Howe"):
        link.execute(f"SET TIME ZONE '{zone}'")
        ((hour, *_, count),) = summary(link)
        assert (hour, count) == (NINE, 2)


def test_an_hour_is_available_when_it_is_over(link, write):
    """What comes later changes nothing that could be seen."""
    write(score("a", NINE, 0.5), score("b", NINE + 30 * MINUTE, 0.7))
    asked = "available_at <= '{}'"
    moments = [NINE + HOUR - TICK, NINE + HOUR, NINE + 2 * HOUR]
    seen = [summary(link, asked.format(at)) for at in moments]
    assert [len(rows) for rows in seen] == [0, 1, 1]
    write(score("c", NINE + 2 * HOUR + TICK, -1.0), score("a", NINE + 3 * HOUR, -1.0))
    assert [summary(link, asked.format(at)) for at in moments] == seen


def test_a_document_counts_once_as_it_first_appeared(link, write):
    write(
        score("a", NINE, 0.5),
        score("a", NINE + 10 * MINUTE, -0.5),
        score("a", NINE + 5 * HOUR, -1.0),
        score("a", NINE + 5 * HOUR, 0.3, symbol="B"),
    )
    assert [(row[0], row[1], row[5], row[7]) for row in summary(link)] == [
        (NINE, "A", 0.5, 1),
        (NINE + 5 * HOUR, "B", 0.3, 1),
    ]


def test_what_appeared_first_may_be_written_last(link, write):
    write(score("a", NINE + 5 * HOUR, -1.0), score("b", NINE + 5 * HOUR, 0.0))
    write(score("a", NINE + 3 * HOUR, 0.5))
    write(score("a", NINE + 4 * HOUR, 0.1), score("a", NINE, 0.9, model="other"))
    assert [(row[0], row[5], row[7]) for row in summary(link, "model = 'm'")] == [
        (NINE + 3 * HOUR, 0.5, 1),
        (NINE + 5 * HOUR, 0.0, 1),
    ]
    write(score("a", NINE + 3 * HOUR, 0.7))  # corrected: still the first
    assert summary(link, "model = 'm'")[0][5:] == (0.7, None, 1)


@pytest.mark.parametrize("database", ["timescaledb"], indirect=True)
@pytest.mark.timescaledb
def test_a_stored_summary_hears_of_an_earlier_appearance(link, write):
    """The day that loses its document is not written anew: its revision is the old one."""
    asked = (
        "SELECT date_trunc('hour', available_at, 'UTC'), avg(sentiment), count(*)"
        " FROM sentiment_scores WHERE NOT repeated GROUP BY 1 ORDER BY 1"
    )
    revisions = "SELECT day, revision FROM partition_ledger WHERE day >= '2020-01-15' ORDER BY 1"

    def summed() -> list[tuple[Any, ...]]:
        link.execute("CALL maintain_storage()")
        assert link.execute("SELECT count(*) FROM summaries_due").fetchone() == (0,)
        return [(row[0], row[5], row[7]) for row in summary(link)]

    later = NINE + timedelta(days=9)
    write(score("a", later, -1.0), score("b", later, 0.0), score("a", later + 50 * HOUR, 0.2))
    assert summed() == [(later, -0.5, 2)]
    known = link.execute(revisions).fetchall()
    write(score("a", NINE, 0.5))
    assert summed() == [(NINE, 0.5, 1), (later, 0.0, 1)] == link.execute(asked).fetchall()
    assert link.execute(revisions).fetchall() == known


def test_what_is_collected_again_is_not_counted_again(desk: Desk):
    """Through the write contract: an edited article is a new version, and no new article."""
    desk.store = replace(desk.store, tables=TABLES)
    desk.write("reddit", nothing("A", table=TABLES["reddit"]))

    def collect(title: str, seen: datetime) -> None:
        frame = articles(("x", NINE, title), seen=seen)
        desk.write("news", fetched(frame, "A"))
        documents = desk.query("SELECT * FROM documents").select(
            "document_id", "time", "available_at", "availability_basis", "channel", "source",
            symbol=pl.col("symbols").list.first(),
            sentiment=pl.lit(len(title) / 10), label=pl.lit("neutral"), confidence=pl.lit(1.0),
            model=pl.lit("m"), model_revision=pl.lit("1"),
        )  # fmt: skip
        with desk.planned("sentiment_scores", code_version=title) as plan:
            desk.store.write(plan, documents)

    collect("first", NINE + 5 * MINUTE)
    collect("edited", NINE + 3 * HOUR)
    assert desk.one("SELECT count(*) FROM sentiment_scores") == 2
    rows = desk.query("SELECT time, document_count FROM hourly_sentiment_summary").rows()
    assert rows == [(NINE, 1)]


_ROWS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.integers(0, 360),
        st.floats(-1, 1).map(lambda v: round(v, 3)),
        st.sampled_from(["A", "B"]),
    ),
    max_size=20,
    unique_by=lambda row: (row[0], row[1], row[3]),
)


@given(_ROWS)
@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_it_agrees_with_counting_one_by_one(link, write, rows):
    link.execute("TRUNCATE sentiment_scores, partition_ledger")
    for some in (rows[::2], rows[1::2]):
        write(*(score(d, NINE + m * MINUTE, v, symbol=s) for d, m, v, s in some))
    first: dict[tuple[str, str], tuple[int, float]] = {}
    for document, minute, value, symbol in sorted(rows, key=lambda row: row[1]):
        first.setdefault((document, symbol), (minute, value))
    hours: dict[tuple[datetime, str], list[float]] = {}
    for (_, symbol), (minute, value) in first.items():
        hours.setdefault((NINE + minute // 60 * HOUR, symbol), []).append(value)
    found = {(row[0], row[1]): row[5:] for row in summary(link)}
    assert found.keys() == hours.keys()
    for place, values in hours.items():
        mean, volatility, count = found[place]
        assert mean == pytest.approx(statistics.mean(values), abs=1e-12)
        assert count == len(values)
        if count > 1:
            assert volatility == pytest.approx(statistics.stdev(values), abs=1e-12)
    # And, over all hours, with what features count: each document once.
    moments = pl.DataFrame({"symbol": ["A", "B"], "available_at": [NINE + 6 * HOUR + MINUTE] * 2})
    frame = pl.DataFrame(
        [(d, s, NINE + m * MINUTE, "news") for d, m, _, s in rows],
        schema={
            "document_id": pl.String,
            "symbol": pl.String,
            "available_at": pl.Datetime("us", "UTC"),
            "channel": pl.String,
        },
        orient="row",
    )
    counted = document_count(
        moments.cast({"available_at": pl.Datetime("us", "UTC")}), frame, timedelta(days=1)
    )
    assert counted.to_list() == [
        sum(len(values) for (_, s), values in hours.items() if s == symbol) for symbol in "AB"
    ]
