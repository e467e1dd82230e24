"""Redis lost, half filled, or holding something wrong: everything is published again."""

from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest

from feature_pipeline.errors import OnlineError
from feature_pipeline.online import keys
from feature_pipeline.online.client import publishing_client
from feature_pipeline.online.publish import publish
from feature_pipeline.online.read import read_macro, read_sentiment, read_state_vector
from feature_pipeline.online.rebuild import Snapshot, clear, rebuild_needed, republish_all
from feature_pipeline_tests.online.support import DAY, NOW, rows

LATEST = NOW - timedelta(hours=1)
SYMBOLS = [f"S{i}" for i in range(120)]


def _snapshot(**kwargs):
    version = rows(**kwargs).select("available_at", "revision", value=2.5)
    return Snapshot(
        vectors={"1d": rows(SYMBOLS, **kwargs)},
        macro=version.with_columns(series_id=pl.lit("DFF")),
        sentiment=version.with_columns(symbol=pl.lit("S1"), source=pl.lit("news")),
    )


def test_a_server_restarted_empty_is_rebuilt(own_redis):
    own_redis.start()
    client = publishing_client(own_redis.url)
    assert rebuild_needed(client)
    report = republish_all(client, _snapshot)
    assert (report.written, report.complete) == (122, True)
    assert not rebuild_needed(client)
    assert publish(client, rows(["S1"], at=LATEST + timedelta(seconds=1)), "1d").complete

    own_redis.stop()
    own_redis.start()
    assert rebuild_needed(client)
    # The next ordinary publication arrives before anyone looked: the loss must not seem mended.
    assert not publish(client, rows(["S1"], at=LATEST + timedelta(seconds=1)), "1d").complete
    assert rebuild_needed(client)
    assert republish_all(client, _snapshot).written == 121  # S1 is newer already
    assert not rebuild_needed(client)
    assert client.exists(*(keys.vector_key("1d", s) for s in SYMBOLS)) == len(SYMBOLS)
    assert read_macro(client, "DFF", NOW, DAY).fields == {"value": 2.5}
    assert read_sentiment(client, "S1", "news", NOW, DAY).fields == {"value": 2.5}


def test_the_sentinel_does_not_expire(publisher):
    republish_all(publisher, _snapshot)
    publish(publisher, rows(), "1d")
    assert publisher.ttl(keys.SENTINEL) == -1


def test_a_rebuild_that_dies_half_way_is_still_needed(publisher):
    republish_all(publisher, _snapshot)

    class KilledError(Exception):
        pass

    def load():
        raise KilledError

    with pytest.raises(KilledError):
        republish_all(publisher, load, force=True)
    assert rebuild_needed(publisher)
    assert republish_all(publisher, _snapshot).written == 122


def test_a_redis_lost_during_the_rebuild_is_filled_again(publisher):
    calls = []

    class Flushing(dict):
        def items(self):
            yield "1d", rows(SYMBOLS[:60])
            if len(calls) == 1:
                publisher.flushall()
            yield "1d", rows(SYMBOLS[60:])

    def load():
        calls.append(1)
        return Snapshot(vectors=Flushing())

    assert republish_all(publisher, load).complete
    assert len(calls) == 2
    assert publisher.exists(*(keys.vector_key("1d", s) for s in SYMBOLS)) == len(SYMBOLS)
    assert not rebuild_needed(publisher)


def test_of_two_rebuilds_the_later_one_has_the_last_word(publisher):
    inner = []

    def load():
        inner.append(republish_all(publisher, _snapshot, force=True))
        return _snapshot()

    outer = republish_all(publisher, load)
    assert inner[0].complete
    assert outer.complete
    assert outer.refreshed == 122
    assert not rebuild_needed(publisher)


def test_an_unfinished_later_rebuild_keeps_redis_incomplete(publisher):
    def load():
        publisher.set(keys.SENTINEL, "rebuilding:another")
        return _snapshot()

    assert not republish_all(publisher, load).complete
    assert rebuild_needed(publisher)


def test_a_redis_that_keeps_losing_its_data_is_one_line(publisher):
    def load():
        publisher.flushall()
        return _snapshot()

    with pytest.raises(OnlineError, match="lost its data"):
        republish_all(publisher, load)
    assert rebuild_needed(publisher)


def test_force_replaces_what_would_win_by_its_version(publisher):
    republish_all(publisher, _snapshot)
    publish(publisher, rows(["S1"], revision=999, seed=9), "1d")
    assert republish_all(publisher, _snapshot).older == 1
    report = republish_all(publisher, _snapshot, force=True)
    assert (report.written, report.older) == (122, 0)
    assert read_state_vector(publisher, "S1", "1d", NOW, DAY).revision == 1


def test_force_keeps_what_was_published_while_it_ran(publisher):
    newer = rows(["S1"], at=LATEST + timedelta(seconds=1), revision=2)

    def load():
        snapshot = _snapshot()
        publish(publisher, newer, "1d")
        return snapshot

    assert republish_all(publisher, load, force=True).older == 1
    assert read_state_vector(publisher, "S1", "1d", NOW, DAY).revision == 2


def test_clearing_removes_our_keys_and_nothing_else(publisher):
    republish_all(publisher, _snapshot)
    foreign = ["svelte", "features", "regimes:1d", "other:sv:1d:AAPL", "celery"]
    publisher.mset(dict.fromkeys(foreign, "kept"))
    assert clear(publisher) == 3 * len(SYMBOLS) + 2
    assert sorted(publisher.keys()) == sorted([*map(str.encode, foreign), keys.SENTINEL.encode()])
