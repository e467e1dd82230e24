"""Answers: what they carry, what fresh means, and what falls through to the database."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.errors import OnlineError
from feature_pipeline.online import keys, read
from feature_pipeline.online.client import serving_client
from feature_pipeline.online.publish import publish, publish_hashes
from feature_pipeline.schemas import STATE_VECTOR_FIELDS
from feature_pipeline_tests.online.support import DAY, NOW, rows

LATEST = NOW - timedelta(hours=1)


def test_a_state_vector_carries_what_it_is(publisher, reader):
    frame = rows(vix=None, revision=42)
    publish(publisher, frame, "1d")
    answer = read.read_state_vector(reader, "AAPL", "1d", NOW, DAY)
    assert (answer.source, answer.as_of, answer.revision) == ("online", LATEST, 42)
    assert (answer.age, answer.fresh, answer.missing) == (timedelta(hours=1), True, ("vix",))
    want = frame.select(pl.col(STATE_VECTOR_FIELDS).cast(pl.Float64)).to_numpy()[0]
    np.testing.assert_array_equal(answer.values, want)
    assert answer.values.dtype == np.float64
    many = read.read_state_vectors(reader, ["AAPL", "NONE"], "1d", NOW, DAY)
    assert many["NONE"] is None
    np.testing.assert_array_equal(many["AAPL"].values, answer.values)
    assert [getattr(many["AAPL"], f) for f in ("key", "as_of", "age", "missing")] == [
        getattr(answer, f) for f in ("key", "as_of", "age", "missing")
    ]


def test_what_is_absent_is_none(reader):
    assert read.read_state_vector(reader, "NONE", "1d", NOW, DAY) is None
    assert read.read_state_vectors(reader, [], "1d", NOW, DAY) == {}
    assert read.read_features(reader, "NONE", "1d", NOW, DAY) is None
    assert read.read_features(reader, "NONE", "1d", NOW, DAY, ["rsi"]) is None
    assert read.read_regime(reader, "NONE", "1d", NOW, DAY) is None
    assert read.read_sentiment(reader, "NONE", "news", NOW, DAY) is None
    assert read.read_macro(reader, "NONE", NOW, DAY) is None


AGES = st.timedeltas(min_value=timedelta(days=-400), max_value=timedelta(days=400))


@given(AGES, AGES)
def test_a_value_past_its_limit_is_never_fresh(age, limit):
    fresh = read.is_fresh(age, limit)
    if age > limit:
        assert not fresh
    if age < timedelta(seconds=-5):
        assert not fresh, "at that moment it could not have been known"
    if timedelta(0) <= age <= limit:
        assert fresh


def test_every_kind_of_answer_is_judged_by_the_callers_limit(publisher, reader):
    publish(publisher, rows(), "1d")
    shared = rows().select("available_at", "revision", value=1.0)
    publish_hashes(publisher, shared.with_columns(series_id=pl.lit("DFF")), "macro")
    publish_hashes(
        publisher,
        shared.with_columns(symbol=pl.lit("AAPL"), source=pl.lit("news")),
        "sentiment",
    )

    def ask(now, limit):
        return [
            read.read_state_vector(reader, "AAPL", "1d", now, limit),
            read.read_state_vectors(reader, ["AAPL"], "1d", now, limit)["AAPL"],
            read.read_features(reader, "AAPL", "1d", now, limit),
            read.read_regime(reader, "AAPL", "1d", now, limit),
            read.read_macro(reader, "DFF", now, limit),
            read.read_sentiment(reader, "AAPL", "news", now, limit),
        ]

    hour, tick = timedelta(hours=1), timedelta(microseconds=1)
    assert all(a.fresh and a.age == hour and a.as_of == LATEST for a in ask(NOW, hour))
    assert not any(a.fresh for a in ask(NOW, hour - tick))
    assert not any(a.fresh for a in ask(LATEST - timedelta(seconds=6), DAY))


def test_features_by_name(publisher, reader):
    frame = rows(vix=None, label="a b", sma_50=0.1 + 0.2)
    publish(publisher, frame, "1d")
    everything = read.read_features(reader, "AAPL", "1d", NOW, DAY)
    columns = set(frame.columns) - {"symbol", "available_at", "revision"}
    assert set(everything.fields) == columns
    assert everything.missing == ("vix",)
    assert everything.fields["vix"] is None
    assert everything.fields["sma_50"] == 0.1 + 0.2
    assert everything.fields["label"] == "a b"
    some = read.read_features(reader, "AAPL", "1d", NOW, DAY, ["rsi", "vix", "sma_50"])
    assert some.fields == {"rsi": frame["rsi"][0], "vix": None, "sma_50": 0.1 + 0.2}
    assert some.missing == ("vix",)
    rest = read.read_features(reader, "AAPL", "1d", NOW, DAY, ["rsi"])
    assert rest.missing == ()
    only_missing = read.read_features(reader, "AAPL", "1d", NOW, DAY, ["vix"])
    assert only_missing.fields == {"vix": None}
    assert read.read_regime(reader, "AAPL", "1d", NOW, DAY).fields["label"] == "trend"


def test_a_value_that_is_not_ours_is_one_line(publisher, reader):
    publisher.set("sv:1d:AAPL", b"\x07 something else")
    publisher.hset("features:1d:AAPL", "rsi", "1")
    publisher.rpush("features:1d:IBM", "1")
    with pytest.raises(OnlineError, match="sv:1d:AAPL holds format 7"):
        read.read_state_vector(reader, "AAPL", "1d", NOW, DAY)
    with pytest.raises(OnlineError, match="features:1d:AAPL holds no as_of_us"):
        read.read_features(reader, "AAPL", "1d", NOW, DAY)
    with pytest.raises(OnlineError, match="refused a command: WRONGTYPE"):
        read.read_features(reader, "IBM", "1d", NOW, DAY)


# -- falling through ------------------------------------------------------------------------------


class Database:
    """Stands for the reader of the newest rows; remembers what it was asked for."""

    def __init__(self, frame):
        self.frame, self.asked = frame, []

    def __call__(self, symbols):
        self.asked.append(symbols)
        return self.frame.filter(pl.col("symbol").is_in(symbols))


def test_only_what_is_absent_or_stale_falls_through_and_is_written_back(publisher, reader):
    publish(publisher, rows(["A", "B"], seed=1), "1d")
    publish(publisher, rows(["OLD"], at=LATEST - 9 * DAY, seed=1), "1d")
    database = Database(rows(["A", "OLD", "C"], seed=2, revision=5, rsi=None))
    asked = ["A", "B", "OLD", "C", "NONE"]
    answers = read.fall_through(reader, asked, "1d", NOW, DAY, database)
    assert database.asked == [["OLD", "C", "NONE"]]
    sources = {symbol: a and a.source for symbol, a in answers.items()}
    assert sources == {
        "A": "online",
        "B": "online",
        "OLD": "database",
        "C": "database",
        "NONE": None,
    }
    assert answers["C"].fresh
    assert answers["C"].missing == ("rsi",)
    again = read.fall_through(reader, asked[:-1], "1d", NOW, DAY, database)
    assert len(database.asked) == 1
    for symbol in ("OLD", "C"):
        assert again[symbol].source == "online"
        np.testing.assert_array_equal(again[symbol].values, answers[symbol].values)
        assert (again[symbol].as_of, again[symbol].revision) == (LATEST, 5)


def test_a_stale_value_stays_stale_when_the_database_has_nothing_newer(publisher, reader):
    publish(publisher, rows(at=LATEST - 9 * DAY, revision=5, seed=1), "1d")
    database = Database(rows(at=LATEST - 9 * DAY, revision=4, seed=2))
    answer = read.fall_through(reader, ["AAPL"], "1d", NOW, DAY, database)["AAPL"]
    assert (answer.source, answer.revision, answer.fresh) == ("online", 5, False)


def test_a_slow_write_back_does_not_undo_what_was_published_meanwhile(publisher, reader):
    def load(symbols):
        loaded = rows(symbols, at=LATEST - DAY, seed=1)
        publish(publisher, rows(symbols, seed=2), "1d")
        return loaded

    read.fall_through(reader, ["AAPL"], "1d", NOW, 10 * DAY, load)
    blob = publisher.get("sv:1d:AAPL")
    assert keys.unpack(blob).as_of == LATEST


def test_without_redis_everything_comes_from_the_database(own_redis, caplog):
    client = serving_client(own_redis.url)
    database = Database(rows(["A", "B"]))
    answers = read.fall_through(client, ["A", "B"], "1d", NOW, DAY, database)
    assert {a.source for a in answers.values()} == {"database"}
    assert all(a.fresh and a.as_of == LATEST for a in answers.values())
    assert "cannot be reached" in caplog.text
