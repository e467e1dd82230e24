"""Document windows: their edges, their weights, versions, and days not collected."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_pipeline.features.sentiment import decayed_sentiment, document_count, event_moments
from feature_pipeline.schemas import UTC_TIME

NOW = datetime(2024, 5, 6, 20, tzinfo=UTC)
DAY, HOUR, TICK = timedelta(days=1), timedelta(hours=1), timedelta(microseconds=1)


def moments(*at: datetime | None, symbol: str = "A") -> pl.DataFrame:
    return pl.DataFrame(
        {"symbol": [symbol] * len(at), "available_at": list(at)},
        schema={"symbol": pl.String, "available_at": UTC_TIME},
    )


def scores(*rows: tuple) -> pl.DataFrame:
    """(document, age before NOW, sentiment, confidence[, channel, symbol])."""
    return pl.DataFrame(
        [
            {
                "document_id": row[0],
                "available_at": NOW - row[1],
                "sentiment": row[2],
                "confidence": row[3],
                "channel": row[4] if len(row) > 4 else "news",
                "symbol": row[5] if len(row) > 5 else "A",
            }
            for row in rows
        ],
        schema={
            "document_id": pl.String,
            "available_at": UTC_TIME,
            "sentiment": pl.Float64,
            "confidence": pl.Float64,
            "channel": pl.String,
            "symbol": pl.String,
        },
    )


def gap(day: datetime, channel: str | None = None, symbol: str | None = None) -> pl.DataFrame:
    return scores((None, NOW - day, None, None, channel, symbol))


def test_the_weight_halves_in_six_hours_and_grows_with_confidence():
    documents = scores(("a", 0 * HOUR, 1.0, 0.5), ("b", 6 * HOUR, -1.0, 1.0))
    assert decayed_sentiment(moments(NOW), documents, DAY).to_list() == [0.0]
    documents = scores(("a", 0 * HOUR, 1.0, 1.0), ("b", 12 * HOUR, 0.0, 1.0))
    assert decayed_sentiment(moments(NOW), documents, DAY).item() == pytest.approx(1 / 1.25)


@pytest.mark.parametrize(("age", "inside"), [(-TICK, 0), (0 * HOUR, 1), (DAY - TICK, 1), (DAY, 0)])
def test_the_window_holds_its_end_and_not_its_start(age, inside):
    documents = scores(("a", age, 0.5, 1.0))
    assert document_count(moments(NOW), documents, DAY).to_list() == [inside]
    assert decayed_sentiment(moments(NOW), documents, DAY).to_list() == [0.5 * inside]


def test_no_document_is_zero_and_no_moment_is_missing():
    assert decayed_sentiment(moments(NOW, None), scores(), DAY).to_list() == [0.0, None]
    assert document_count(moments(NOW, None), scores(), DAY).to_list() == [0, None]


def test_only_documents_of_the_symbol_and_the_channel_count():
    documents = scores(
        ("a", HOUR, 0.5, 1.0, "reddit"), ("b", HOUR, 0.5, 1.0, "news", "B"), ("c", HOUR, 0.5, 1.0)
    )
    assert document_count(moments(NOW), documents, DAY).item() == 2
    assert document_count(moments(NOW), documents, DAY, "news").item() == 1
    assert document_count(moments(NOW), documents, DAY, "reddit").item() == 1


def test_of_a_document_collected_again_the_latest_version_known_then_counts():
    documents = scores(("a", 5 * HOUR, 1.0, 1.0), ("a", HOUR, -1.0, 1.0))
    at = moments(NOW - 2 * HOUR, NOW - HOUR, NOW)
    assert decayed_sentiment(at, documents, DAY).to_list() == [1.0, -1.0, -1.0]
    assert document_count(at, documents, DAY).to_list() == [1, 1, 1]


@pytest.mark.parametrize(
    ("day", "missing"),
    [
        (NOW.replace(hour=0), True),
        (NOW.replace(hour=0) - DAY, True),
        (NOW.replace(hour=0) - 2 * DAY, False),
        (NOW.replace(hour=0) + DAY, False),
    ],
)
def test_a_window_that_touches_a_day_not_collected_is_missing(day, missing):
    documents = pl.concat([scores(("a", HOUR, 0.5, 1.0)), gap(day)])
    assert (decayed_sentiment(moments(NOW), documents, DAY).item() is None) == missing
    assert (document_count(moments(NOW), documents, DAY).item() is None) == missing


def test_a_window_from_midnight_to_midnight_touches_one_day():
    midnight = NOW.replace(hour=0)
    assert document_count(moments(midnight), gap(midnight - 2 * DAY), DAY).item() == 0
    assert document_count(moments(midnight), gap(midnight - DAY), DAY).item() is None


def test_a_gap_of_one_symbol_is_missing_for_it_alone():
    today = NOW.replace(hour=0)
    both = pl.concat([moments(NOW), moments(NOW, symbol="B")])
    documents = pl.concat([scores(("b", HOUR, 0.5, 1.0, "news", "B")), gap(today, "news", "A")])
    assert decayed_sentiment(both, documents, DAY, "news").to_list() == [None, 0.5]
    assert document_count(both, documents, DAY, "reddit").to_list() == [0, 0]
    assert document_count(both, gap(today), DAY).to_list() == [None, None]


def test_a_gap_of_one_channel_is_missing_there_and_in_the_total():
    documents = gap(NOW.replace(hour=0), "reddit")
    at = moments(NOW)
    assert document_count(at, documents, DAY, "news").item() == 0
    assert document_count(at, documents, DAY, "reddit").item() is None
    assert document_count(at, documents, DAY).item() is None


@settings(max_examples=60)
@given(st.data())
def test_any_documents_and_moments_agree_with_counting_one_by_one(data):
    hour = st.integers(0, 240)
    documents = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from("abcdef"),
                hour,
                st.floats(-1, 1),
                st.floats(0.125, 1),
                st.sampled_from(["news", "reddit"]),
                st.sampled_from("AB"),
            ),
            max_size=25,
            unique_by=lambda d: (d[0], d[1], d[5]),
        )
    )
    asked = data.draw(st.lists(st.tuples(st.sampled_from("AB"), hour), max_size=12))
    frame = scores(*((d[0], d[1] * HOUR, *d[2:]) for d in documents))
    at = pl.concat([moments(), *(moments(NOW - h * HOUR, symbol=s) for s, h in asked)])
    means, counts = decayed_sentiment(at, frame, DAY), document_count(at, frame, DAY)
    for row, (symbol, now) in enumerate(asked):
        latest = {}
        for d in sorted(documents, key=lambda d: -d[1]):
            if d[5] == symbol and d[1] >= now:
                latest[d[0]] = d
        inside = [d for d in latest.values() if d[1] - now < 24]
        weight = [d[3] * 0.5 ** ((d[1] - now) / 6) for d in inside]
        expected = np.average([d[2] for d in inside], weights=weight) if inside else 0.0
        assert counts[row] == len(inside)
        assert means[row] == pytest.approx(expected, abs=1e-12)


def test_a_hundred_thousand_documents_on_five_hundred_symbols_take_seconds():
    """Every document meets the few bars of its window, never all bars of its symbol."""
    rng = np.random.default_rng(0)
    names = [f"S{i:03d}" for i in range(500)]
    start = datetime(2019, 1, 1, 21, tzinfo=UTC)
    days = pl.datetime_range(start, start + 1259 * DAY, "1d", time_unit="us", eager=True)
    at = pl.DataFrame({"symbol": names}).join(pl.DataFrame({"available_at": days}), how="cross")
    count = 100_000
    offsets = pl.Series(rng.integers(0, 1259 * 86_400_000_000, count)).cast(pl.Duration("us"))
    documents = pl.DataFrame(
        {
            "document_id": [f"d{i}" for i in range(count)],
            "available_at": offsets + start,
            "sentiment": rng.uniform(-1, 1, count),
            "confidence": rng.uniform(0, 1, count),
            "channel": ["news"] * count,
            "symbol": rng.choice(names, count),
        }
    )
    mean = decayed_sentiment(at, documents, DAY)
    total = document_count(at, documents, 7 * DAY)
    assert (mean != 0).sum() == pytest.approx(count, rel=0.2)
    assert total.sum() == pytest.approx(7 * count, rel=0.01)


def test_a_bar_hears_nothing_of_the_day_after_its_own():
    """A market that never closes publishes its bar after midnight, from what its own day held."""
    midnight = datetime(2024, 3, 6, tzinfo=UTC)
    published = pl.Series([midnight + timedelta(minutes=15), None], dtype=UTC_TIME)
    bars = pl.DataFrame(
        {"symbol": ["A", "A"], "time": [midnight - DAY, midnight], "available_at": published}
    )
    until = event_moments(bars)
    assert until["available_at"].to_list() == [midnight - timedelta(microseconds=1), None]
    late = scores(
        ("after", NOW - midnight - timedelta(minutes=5), 1.0, 1.0),
        ("before", NOW - midnight + timedelta(seconds=1), -1.0, 1.0),
    )
    assert decayed_sentiment(until, late, DAY).to_list() == [pytest.approx(-1.0), None]
    inside = bars.with_columns(available_at=pl.col("time") + timedelta(hours=20))
    assert event_moments(inside)["available_at"].equals(inside["available_at"])
