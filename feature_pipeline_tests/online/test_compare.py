"""What differs between Redis and the rows that were published is found and named."""

from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest

from feature_pipeline.assets.judgements import online_equals_offline
from feature_pipeline.errors import OnlineError
from feature_pipeline.online.client import publishing_client
from feature_pipeline.online.compare import differences
from feature_pipeline.online.publish import publish
from feature_pipeline_tests.online.support import rows

SYMBOLS = ("AAA", "BBB", "CCC")


@pytest.fixture
def client(redis_url):
    with publishing_client(redis_url) as made:
        yield made


@pytest.fixture
def published(client) -> pl.DataFrame:
    frame = rows(SYMBOLS)
    publish(client, frame, "1d")
    return frame


def found(client, frame) -> dict[str, str]:
    answer = differences(client, frame, "1d")
    return dict(answer.select("key", "is").iter_rows())


def test_what_was_published_does_not_differ(client, published):
    assert differences(client, published, "1d").is_empty()
    verdict = online_equals_offline(differences(client, published, "1d"), published.height)
    assert verdict.passed
    assert "3 symbols" in verdict.says


def test_missing_values_are_the_same_as_missing_values(client):
    frame = rows(SYMBOLS).with_columns(
        rsi=pl.when(pl.col("symbol") != "AAA").then("rsi"), macd=pl.lit(float("nan"))
    )
    publish(client, frame, "1d")
    assert found(client, frame) == {}


def test_keys_that_are_gone(client, published):
    client.delete("sv:1d:AAA", "features:1d:BBB")
    assert found(client, published) == {"sv:1d:AAA": "missing", "features:1d:BBB": "missing"}


def test_older_and_newer_versions(client, published):
    newer = published.with_columns(pl.col("available_at") + timedelta(days=-1))
    assert set(found(client, newer).values()) == {"newer"}
    later = published.with_columns(pl.col("revision") + 1)
    answer = differences(client, later, "1d")
    assert set(answer["is"]) == {"older"}
    assert "the database has" in answer["says"][0]


def test_other_values_of_the_same_version(client, published):
    changed = published.with_columns(
        rsi=pl.when(pl.col("symbol") == "BBB").then(0.125).otherwise("rsi")
    )
    answer = differences(client, changed, "1d")
    assert dict(answer.select("key", "is").iter_rows()) == {
        "sv:1d:BBB": "unlike",
        "features:1d:BBB": "unlike",
    }
    assert "rsi is" in answer["says"][0]
    assert "in the database 0.125" in answer["says"][0]
    assert "rsi" in answer["says"][1]


def test_what_is_not_ours(client, published):
    client.set("sv:1d:AAA", b"something else")
    client.delete("features:1d:BBB")
    client.set("features:1d:BBB", b"no hash")
    assert found(client, published) == {"sv:1d:AAA": "unlike", "features:1d:BBB": "missing"}


def test_what_waits_to_be_published_is_no_fault(client, published):
    later = published.with_columns(
        pl.when(pl.col("symbol") == "AAA").then(pl.col("revision") + 1).otherwise("revision")
    )
    late = differences(client, later, "1d")
    assert online_equals_offline(late, 3, waiting=True).passed
    verdict = online_equals_offline(late, 3)
    assert not verdict.passed
    assert "1 symbol: sv:1d:AAA is of" in verdict.says
    # Other values are a fault at any time.
    client.hset("features:1d:CCC", "rsi", "0.5")
    verdict = online_equals_offline(differences(client, later, "1d"), 3, waiting=True)
    assert not verdict.passed
    assert "features:1d:CCC" in verdict.says
    assert "AAA" not in verdict.says


def test_a_server_that_is_not_there():
    with publishing_client("redis://127.0.0.1:1/0") as nowhere, pytest.raises(OnlineError):
        differences(nowhere, rows(SYMBOLS), "1d")
