"""The compare-and-set: whatever arrives in whatever order, the newest stays, under every key."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_pipeline.errors import OnlineError, SchemaError
from feature_pipeline.online import keys
from feature_pipeline.online import publish as publishing
from feature_pipeline.online.client import publishing_client
from feature_pipeline.online.publish import PublishReport, publish, publish_hashes
from feature_pipeline.schemas import STATE_VECTOR_FIELDS
from feature_pipeline_tests.online.support import DAY, NOW, rows

LATEST = NOW - timedelta(hours=1)


def _held(client, symbol="AAPL"):
    """Everything under a symbol's three keys."""
    return {
        "sv": client.get(keys.vector_key("1d", symbol)),
        "features": client.hgetall(keys.features_key("1d", symbol)),
        "regime": client.hgetall(keys.regime_key("1d", symbol)),
    }


def _versions(client, symbol="AAPL"):
    held = _held(client, symbol)
    vector = keys.unpack(held["sv"])
    return {
        (vector.as_of_us, vector.revision),
        *((int(held[k][b"as_of_us"]), int(held[k][b"revision"])) for k in ("features", "regime")),
    }


def _us(moment):
    return (moment - keys.as_datetime(0)) // timedelta(microseconds=1)


# -- what is written ------------------------------------------------------------------------------


def test_all_keys_of_a_symbol_are_set(publisher):
    frame = rows(["AAPL", "IBM"])
    assert publish(publisher, frame, "1d") == PublishReport(written=2, complete=False)
    assert sorted(publisher.keys()) == sorted(
        f"{kind}:1d:{symbol}".encode()
        for kind in ("sv", "features", "regime")
        for symbol in ("AAPL", "IBM")
    )
    assert _versions(publisher, "IBM") == {(_us(LATEST), 1)}
    regime = publisher.hgetall("regime:1d:IBM")
    assert regime[b"label"] == b"trend"
    assert float(regime[b"confidence"]) == frame["regime_confidence"][1]


AWKWARD = st.floats(width=64) | st.sampled_from([0.1 + 0.2, 5e-324, 1e22, -0.0, 2**53 + 0.0])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.none() | AWKWARD, min_size=14, max_size=14),
    st.none() | AWKWARD,
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.text(),
)
def test_the_hash_by_name_equals_the_packed_vector(publisher, numbers, ratio, count, text):
    publisher.flushdb()
    state = {name: [n] for name, n in zip(STATE_VECTOR_FIELDS, numbers, strict=True)}
    frame = rows().with_columns(
        *(pl.Series(name, value, dtype=pl.Float64) for name, value in state.items()),
        ratio=pl.Series([ratio], dtype=pl.Float64),
        count=pl.Series([count], dtype=pl.Int64),
        text=pl.Series([text], dtype=pl.String),
    )
    assert publish(publisher, frame, "1d").written == 1
    held = _held(publisher)
    vector, named = keys.unpack(held["sv"]), held["features"]
    in_hash = np.array([float(named.get(n.encode(), b"nan")) for n in STATE_VECTOR_FIELDS])
    assert in_hash.tobytes() == np.where(np.isnan(in_hash), np.nan, vector.values).tobytes()
    want = np.array([np.nan if n is None else n for n in numbers])
    np.testing.assert_array_equal(vector.values, want)
    gone = set(named.get(b"missing", b"").decode().split(",")) - {""}
    assert {n for n in gone if n in STATE_VECTOR_FIELDS} == set(vector.missing)
    assert not gone & {name.decode() for name in named}
    if ratio is not None and not np.isnan(ratio):
        assert float(named[b"ratio"]) == ratio
    else:
        assert "ratio" in gone
    assert int(named[b"count"]) == count if count is not None else "count" in gone
    if text:
        # The separator of the wire format is the one character that does not survive.
        assert named[b"text"].decode() == text.replace("\x1f", " ")
    else:
        assert "text" in gone


def test_columns_that_are_no_features_stay_out(publisher):
    frame = rows(run_id="r", computed_at=NOW, time=NOW, availability_basis="assumed")
    frame = frame.with_columns(missing=pl.lit(["rsi"]), flag=pl.lit(True))
    publish(publisher, frame, "1d")
    fields = set(publisher.hgetall("features:1d:AAPL"))
    state = {name.encode() for name in STATE_VECTOR_FIELDS}
    assert fields == state | {
        b"as_of_us",
        b"revision",
        b"sma_50",
        b"social_volume_7d",
        b"regime",
        b"regime_confidence",
        b"flag",
    }
    assert publisher.hget("features:1d:AAPL", "flag") == b"1"


def test_a_frame_without_regime_sets_two_keys(publisher):
    publish(publisher, rows().drop("regime", "regime_confidence"), "1d")
    assert sorted(publisher.keys()) == [b"features:1d:AAPL", b"sv:1d:AAPL"]


def test_a_very_wide_frame(publisher):
    wide = {f"f{i}": float(i) for i in range(5000)}
    publish(publisher, rows(**wide), "1d")
    held = publisher.hgetall("features:1d:AAPL")
    assert all(float(held[name.encode()]) == value for name, value in wide.items())


def test_more_symbols_than_fit_one_call_or_pipeline(publisher, monkeypatch):
    monkeypatch.setattr(publishing, "ITEMS_PER_CALL", 7)
    monkeypatch.setattr(publishing, "CALLS_PER_PIPELINE", 3)
    symbols = [f"S{i}" for i in range(100)]
    frame = rows(symbols)
    assert publish(publisher, frame, "1d").written == 100
    blobs = publisher.mget([keys.vector_key("1d", s) for s in symbols])
    matrix = np.array([v.values for v in keys.unpack_many(blobs, symbols)])
    np.testing.assert_array_equal(matrix, frame.select(STATE_VECTOR_FIELDS).to_numpy())


# -- who wins -------------------------------------------------------------------------------------


def test_a_backfill_of_old_days_changes_nothing(publisher):
    publish(publisher, rows(seed=1), "1d", ttl=timedelta(hours=1))
    before = _held(publisher)
    for days in range(1, 30):
        # Revisions come from a sequence: what a backfill writes has higher ones.
        old = rows(at=LATEST - days * DAY, revision=100 + days, seed=days + 1)
        assert publish(publisher, old, "1d").older == 1
    assert _held(publisher) == before
    assert all(publisher.ttl(key) <= 3600 for key in publisher.scan_iter())


def test_the_same_again_only_refreshes_the_ttl(publisher):
    publish(publisher, rows(seed=1), "1d", ttl=timedelta(minutes=1))
    before = _held(publisher)
    # The same version with other content cannot be: if it were, nothing may be touched.
    report = publish(publisher, rows(seed=2), "1d", ttl=timedelta(hours=1))
    assert report == PublishReport(refreshed=1, complete=False)
    assert _held(publisher) == before
    assert all(3590 < publisher.ttl(key) <= 3600 for key in publisher.scan_iter())


def test_every_key_lives_for_three_weeks_by_default(publisher):
    publish(publisher, rows(), "1d")
    publish_hashes(publisher, _macro(), "macro")
    assert all(abs(publisher.ttl(k) - 21 * 86400) < 60 for k in publisher.scan_iter())


def test_a_correction_of_the_same_moment_wins(publisher):
    publish(publisher, rows(seed=1, revision=7), "1d")
    assert publish(publisher, rows(seed=2, revision=8), "1d").written == 1
    after = _held(publisher)
    assert _versions(publisher) == {(_us(LATEST), 8)}
    assert publish(publisher, rows(seed=1, revision=7), "1d").older == 1
    assert _held(publisher) == after


def test_one_microsecond_and_one_revision_are_told_apart(publisher):
    # Next to the largest integers that a double holds exactly.
    revision = 2**53 - 1
    publish(publisher, rows(revision=revision), "1d")
    assert publish(publisher, rows(revision=revision - 1), "1d").older == 1
    assert publish(publisher, rows(revision=revision + 1), "1d").written == 1
    assert publish(publisher, rows(at=LATEST + timedelta(microseconds=1)), "1d").written == 1
    assert publish(publisher, rows(revision=revision), "1d").older == 1


def test_no_stale_field_stays(publisher):
    publish(publisher, rows(retired=1.0, vix=0.5), "1d")
    newer = rows(at=LATEST + timedelta(seconds=1), vix=None, regime_confidence=None)
    publish(publisher, newer, "1d")
    held = publisher.hgetall("features:1d:AAPL")
    assert b"retired" not in held
    assert b"vix" not in held
    assert held[b"missing"] == b"vix,regime_confidence"
    assert publisher.hgetall("regime:1d:AAPL")[b"missing"] == b"confidence"
    publish(publisher, rows(at=LATEST + timedelta(seconds=2)), "1d")
    assert b"missing" not in publisher.hgetall("features:1d:AAPL")


@pytest.mark.parametrize("lost", ["sv:1d:AAPL", "features:1d:AAPL", "regime:1d:AAPL"])
def test_a_lost_key_comes_back_with_its_siblings_version_or_not_at_all(publisher, lost):
    publish(publisher, rows(seed=1), "1d")
    before = _held(publisher)
    publisher.delete(lost)
    assert publish(publisher, rows(at=LATEST - DAY, seed=2), "1d").older == 1
    assert not publisher.exists(lost)
    assert publish(publisher, rows(seed=1), "1d").written == 1
    assert _held(publisher) == before


def test_a_key_that_another_program_wrote_is_replaced(publisher):
    publisher.rpush("sv:1d:AAPL", "a list")
    publisher.set("features:1d:AAPL", "a string")
    publisher.hset("regime:1d:AAPL", "as_of_us", "soon")
    assert publish(publisher, rows(), "1d").written == 1
    assert _versions(publisher) == {(_us(LATEST), 1)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12).flatmap(
        lambda versions: st.tuples(st.just(versions), st.permutations(versions))
    )
)
def test_the_order_of_arrival_does_not_matter(publisher, both):
    versions, shuffled = both
    outcomes = []
    for order in (versions, shuffled):
        publisher.flushdb()
        for hours, revision in order:
            frame = rows(
                at=LATEST - timedelta(hours=hours),
                revision=revision,
                seed=10 * hours + revision,
            )
            publish(publisher, frame, "1d")
        outcomes.append(_held(publisher))
        hours, revision = min(versions, key=lambda v: (v[0], -v[1]))
        assert _versions(publisher) == {(_us(LATEST - timedelta(hours=hours)), revision)}
    assert outcomes[0] == outcomes[1]


SYMBOLS = [f"S{i}" for i in range(12)]
PARTITIONS = [(day, revision) for day in range(20) for revision in (1, 2)]


def _partition(latest, day, revision):
    # Each version has content of its own, the same wherever it is computed.
    return rows(SYMBOLS, at=latest - day * DAY, revision=revision, seed=100 * day + revision)


def _write_shuffled(url, latest, seed):
    order = PARTITIONS.copy()
    random.Random(seed).shuffle(order)
    with publishing_client(url) as client:
        for day, revision in order:
            frame = _partition(latest, day, revision).sample(fraction=1, shuffle=True, seed=seed)
            publish(client, frame, "1d")


def _expect_newest(publisher):
    ends = {symbol: _held(publisher, symbol) for symbol in SYMBOLS}
    publisher.flushdb()
    publish(publisher, _partition(LATEST, 0, 2), "1d")
    assert ends == {symbol: _held(publisher, symbol) for symbol in SYMBOLS}


def test_eight_threads_with_shuffled_partitions_end_on_the_newest(publisher, redis_url):
    threads = [
        threading.Thread(target=_write_shuffled, args=(redis_url, LATEST, i)) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _expect_newest(publisher)


def test_eight_processes_with_shuffled_partitions_end_on_the_newest(publisher, redis_url):
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_write_shuffled, args=(redis_url, LATEST, i)) for i in range(8)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    _expect_newest(publisher)


def test_a_reader_never_sees_the_keys_of_two_versions(publisher, redis_url):
    publish(publisher, rows(revision=0), "1d")
    done = threading.Event()

    def write():
        with publishing_client(redis_url) as client:
            for revision in range(1, 150):
                publish(client, rows(revision=revision, seed=revision), "1d")
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        with publisher.pipeline(transaction=True) as pipeline:
            pipeline.get("sv:1d:AAPL").hgetall("features:1d:AAPL").hgetall("regime:1d:AAPL")
            blob, features, regime = pipeline.execute()
        revision = keys.unpack(blob).revision
        assert int(features[b"revision"]) == int(regime[b"revision"]) == revision
        seen.add(revision)
    writer.join()
    assert len(seen) > 1


# -- what is refused ------------------------------------------------------------------------------


def _server_now(client):
    seconds, microseconds = client.time()
    return keys.as_datetime(seconds * 1_000_000 + microseconds)


def test_a_value_from_the_future_is_refused(publisher):
    publish(publisher, rows(["AAPL", "IBM"]), "1d")
    before = _held(publisher)
    poisoned = pl.concat(
        [
            rows(["AAPL"], at=_server_now(publisher) + timedelta(seconds=60), revision=9),
            rows(["IBM"], at=LATEST + timedelta(seconds=1)),
        ]
    )
    report = publish(publisher, poisoned, "1d")
    assert report.written == 1
    assert list(report.refused) == ["AAPL"]
    assert "beyond the Redis clock" in report.refused["AAPL"]
    assert _held(publisher) == before
    # The true value that comes next is not shut out.
    assert publish(publisher, rows(at=LATEST + timedelta(seconds=1)), "1d").written == 1


def test_clocks_may_differ_by_five_seconds(publisher):
    now = _server_now(publisher)
    assert publish(publisher, rows(at=now + timedelta(seconds=4)), "1d").written == 1
    late = publish(publisher, rows(at=_server_now(publisher) + timedelta(seconds=15)), "1d")
    assert late.total == len(late.refused) == 1


def test_the_far_future_is_refused_too(publisher):
    # Beyond 2^53 microseconds doubles are no longer exact; it is the future all the same.
    far = keys.as_datetime(253_402_300_799_999_999)
    assert list(publish(publisher, rows(at=far), "1d").refused) == ["AAPL"]


def test_rows_without_name_or_version_are_named_and_the_rest_is_written(publisher):
    frame = rows(["A", "B", "C", "D", ""]).with_columns(
        symbol=pl.when(pl.col("symbol") == "D").then(None).otherwise("symbol"),
        available_at=pl.when(pl.col("symbol") != "B").then("available_at"),
        revision=pl.when(pl.col("symbol") != "C").then("revision"),
    )
    frame = pl.concat([frame, rows(["E"], revision=2**53 + 1)])
    report = publish(publisher, frame, "1d")
    assert report.written == 1
    assert report.refused["B"] == "available_at is missing"
    assert report.refused["C"] == "revision is missing"
    assert report.refused["E"] == "revision is beyond 2^53"
    assert report.refused["(no name)"] == "it has no name"
    assert publisher.get("sv:1d:A") is not None


def test_no_rows_are_no_trouble(publisher):
    assert publish(publisher, rows([]), "1d") == PublishReport()
    assert publisher.dbsize() == 0


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (rows().drop("rsi", "revision"), r"rows to publish lack column\(s\) revision, rsi"),
        (rows().with_columns(as_of_us=1), "as_of_us, which is reserved"),
        (rows().with_columns(odd=pl.lit(NOW)), "column odd is Datetime"),
        (rows().with_columns(pl.col("revision").cast(pl.Float64)), "it must be an integer"),
        (
            rows().with_columns(pl.col("available_at").dt.replace_time_zone(None)),
            "it must be a time with zone",
        ),
        (rows().with_columns(rsi=pl.lit("high")), "rsi is String; a state field is a number"),
    ],
)
def test_a_frame_that_cannot_be_published_is_one_line(publisher, frame, message):
    with pytest.raises(SchemaError, match=message) as error:
        publish(publisher, frame, "1d")
    assert "\n" not in str(error.value)
    assert publisher.dbsize() == 0


def test_a_time_to_live_below_a_second_is_refused(publisher):
    with pytest.raises(OnlineError, match="at least one second"):
        publish(publisher, rows(), "1d", ttl=timedelta(milliseconds=10))


# -- the server forgets the script ----------------------------------------------------------------


def test_a_forgotten_script_is_loaded_again(publisher):
    publish(publisher, rows(), "1d")
    publisher.script_flush()
    newer = rows(["AAPL", *SYMBOLS], at=LATEST + timedelta(seconds=1))
    assert publish(publisher, newer, "1d").written == 13
    assert _versions(publisher) == {(_us(LATEST + timedelta(seconds=1)), 1)}


def test_a_call_does_not_block_the_server_for_long(publisher):
    publisher.config_set("slowlog-log-slower-than", 100)  # the commands inside are faster
    publisher.config_set("slowlog-max-len", 10_000)
    publisher.slowlog_reset()
    frame = rows([f"S{i}" for i in range(500)], **{f"f{i}": i / 7 for i in range(30)})
    publish(publisher, frame, "1d")
    calls = [e for e in publisher.slowlog_get(10_000) if e["command"].startswith(b"EVALSHA")]
    publisher.config_set("slowlog-log-slower-than", 10_000)
    times = sorted(e["duration"] for e in calls)
    assert len(times) == 500 // publishing.ITEMS_PER_CALL
    # Microseconds; 2 ms typical, the limit leaves room for a busy machine.
    assert times[len(times) // 2] < 20_000


# -- hints ----------------------------------------------------------------------------------------


def _messages(pubsub, n):
    found = []
    deadline = time.monotonic() + 10
    while len(found) < n and time.monotonic() < deadline:
        message = pubsub.get_message(timeout=1)
        if message and message["type"] == "message":
            found.append((message["channel"].decode(), message["data"].decode()))
    return found


def test_hints_name_what_changed_and_the_key_is_already_there(publisher, reader):
    pubsub = reader.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe("state_vectors", "regime", "alerts", "end")

    def published(**kwargs):
        publish(publisher, rows(["AAPL", "IBM"], **kwargs), "1d")
        publisher.publish("end", "")
        found = []
        while True:
            (message,) = _messages(pubsub, 1)
            if message[0] == "end":
                return found
            found.append(message)

    vectors = [("state_vectors", "sv:1d:AAPL"), ("state_vectors", "sv:1d:IBM")]
    regimes = [("regime", "regime:1d:AAPL"), ("regime", "regime:1d:IBM")]
    at = [LATEST + timedelta(seconds=i) for i in range(5)]
    assert sorted(published(at=at[0])) == sorted(vectors + regimes)
    assert published(at=at[0]) == []  # the same again
    assert published(at=at[0] - DAY) == []  # older
    assert published(at=at[1]) == vectors  # newer, the label as it was
    assert published(at=at[2], regime_confidence=0.1) == vectors
    changed = published(at=at[3], regime=["trend", "range"])
    assert sorted(changed) == sorted([*vectors, ("regime", "regime:1d:IBM")])
    gone = published(at=at[4], regime=[None, "range"])
    assert sorted(gone) == sorted([*vectors, ("regime", "regime:1d:AAPL")])
    future = published(at=_server_now(publisher) + timedelta(hours=1))
    assert future == [("alerts", "sv:1d:AAPL"), ("alerts", "sv:1d:IBM")]


# -- macro and sentiment --------------------------------------------------------------------------


def _macro(value=0.25, at=LATEST, revision=1):
    return rows(["VIXCLS"], at=at, revision=revision).select(
        pl.col("symbol").alias("series_id"), "available_at", "revision", value=pl.lit(value)
    )


def test_macro_and_sentiment_go_by_the_same_rules(publisher):
    assert publish_hashes(publisher, _macro(17.5), "macro").written == 1
    assert publish_hashes(publisher, _macro(18.5, at=LATEST - DAY, revision=5), "macro").older == 1
    assert publish_hashes(publisher, _macro(17.5), "macro").refreshed == 1
    assert publisher.hgetall("macro:VIXCLS") == {
        b"as_of_us": str(_us(LATEST)).encode(),
        b"revision": b"1",
        b"value": b"17.5",
    }
    sentiment = rows(["AAPL", "AAPL"]).select(
        "symbol", "available_at", "revision", source=pl.Series(["news", "reddit"]), score=0.5
    )
    assert publish_hashes(publisher, sentiment, "sentiment").written == 2
    assert publisher.hget("sentiment:AAPL:reddit", "score") == b"0.5"
    future = _macro(at=_server_now(publisher) + DAY)
    assert list(publish_hashes(publisher, future, "macro").refused) == ["macro:VIXCLS"]
    with pytest.raises(SchemaError, match=r"macro rows to publish lack column\(s\) value"):
        publish_hashes(publisher, _macro().drop("value"), "macro")
    with pytest.raises(SchemaError, match=r"sentiment rows to publish lack column\(s\) source"):
        publish_hashes(publisher, sentiment.drop("source"), "sentiment")
