"""The sensor: what it notices, what it publishes, and what it does when Redis is not there."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import polars as pl
import pytest
from dagster._core.test_utils import create_run_for_test

from feature_pipeline.automation import publishing
from feature_pipeline.automation.publishing import REMEMBERED, publish_online, watched
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.online import keys
from feature_pipeline.online.client import publishing_client, serving_client
from feature_pipeline.online.read import (
    read_features,
    read_macro,
    read_regime,
    read_sentiment,
    read_state_vector,
)
from feature_pipeline.schemas import STATE_VECTOR_FIELDS
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline_tests.assets.world import END, START, midnight
from feature_pipeline_tests.online.conftest import own_redis  # noqa: F401

ONLINE = dg.AssetKey("online_state_vectors")
AGES = timedelta(days=36500)
VECTORS = "state_vectors_1d"
WATCHED = watched(["1d"])


@pytest.fixture(scope="module")
def graph(new_graph, world):
    with new_graph(world, materializations_of=(*WATCHED, "online_state_vectors")) as made:
        made.run()
        yield made


@pytest.fixture
def client(redis_url):
    with publishing_client(redis_url) as made:
        yield made


@pytest.fixture
def reader(redis_url):
    with serving_client(redis_url + "?socket_timeout=5&socket_connect_timeout=5") as made:
        yield made


def tick(graph, client, cursor: str | None = None):
    """One evaluation of the sensor, as the daemon does it."""
    context = dg.build_sensor_context(
        instance=graph.instance,
        cursor=cursor,
        resources={"storage": StorageIOManager(graph.store), "redis": client},
    )
    return publish_online.evaluate_tick(context)


def told(done) -> dict:
    """What the tick reported of the external asset."""
    [event] = [e for e in done.asset_events if isinstance(e, dg.AssetMaterialization)]
    assert event.asset_key == ONLINE
    return {name: value.value for name, value in event.metadata.items()}


def report(graph, asset: str = VECTORS, day: date = START) -> None:
    """A materialisation as a run reports it, without a run."""
    graph.instance.report_runless_asset_event(
        dg.AssetMaterialization(asset, partition=day.isoformat())
    )


def dump(client) -> dict[bytes, bytes]:
    """All values, to the byte."""
    return {key: client.dump(key) for key in client.scan_iter() if key != keys.SENTINEL.encode()}


# -- noticing -------------------------------------------------------------------------------------


def test_what_was_materialised_is_published_once(graph, client):
    first = tick(graph, client)
    metadata = told(first)
    assert metadata["symbols"] == 4
    # Four symbols, three series, news and posts of each symbol.
    assert metadata["written"] == 4 + 3 + 8
    assert (
        metadata["newest_as_of"]
        == (midnight(date(2019, 6, 14)) + timedelta(hours=20, minutes=15)).timestamp()
    )

    again = tick(graph, client, first.cursor)
    assert again.asset_events == []
    assert "nothing was materialised" in again.skip_message
    assert again.cursor in (None, first.cursor)


@pytest.mark.parametrize("asset", WATCHED)
def test_each_watched_asset_wakes_it(graph, client, asset):
    cursor = tick(graph, client).cursor
    report(graph, asset)
    done = tick(graph, client, cursor)
    assert told(done)["refreshed"] == 15
    assert tick(graph, client, done.cursor).asset_events == []


def test_several_events_of_one_tick_are_all_noticed(graph, client):
    cursor = tick(graph, client).cursor
    for _ in range(3):
        report(graph)
    report(graph, "macro_indicators")
    done = tick(graph, client, cursor)
    assert told(done)["refreshed"] == 15
    assert tick(graph, client, done.cursor).asset_events == []


def test_a_tick_waits_for_the_news_of_a_run_in_progress(graph, client, monkeypatch):
    cursor = tick(graph, client).cursor
    looks = []
    fetch = graph.instance.fetch_materializations

    def looked(asset, *args, **kwargs):
        looks.append(asset.to_user_string())
        if looks.count(VECTORS) == 3 and looks[-1] == VECTORS:
            report(graph)
        return fetch(asset, *args, **kwargs)

    monkeypatch.setattr(graph.instance, "fetch_materializations", looked)
    assert tick(graph, client, cursor).asset_events == []
    assert looks.count(VECTORS) == 1, "nothing is in progress: nothing is waited for"

    looks.clear()
    run = create_run_for_test(graph.instance, status=dg.DagsterRunStatus.STARTED)
    done = tick(graph, client, cursor)
    assert looks.count(VECTORS) == 3
    assert told(done)["refreshed"] == 15

    # One that brings nothing is left to the next tick.
    monkeypatch.setattr(publishing, "LINGER_S", 0.1)
    assert tick(graph, client, done.cursor).asset_events == []
    graph.instance.delete_run(run.run_id)


@pytest.mark.parametrize("before", [0, 2, REMEMBERED + 10])
def test_an_event_that_commits_late_is_noticed(new_graph, world, client, monkeypatch, before):
    """Its id is below that of the last event seen, or of all of them."""
    with new_graph(world, materializations_of=WATCHED) as graph:
        for _ in range(before):
            report(graph)
        report(graph)
        fetch = graph.instance.fetch_materializations
        [late] = fetch(dg.AssetKey(VECTORS), limit=1).records
        report(graph)

        def not_committed(*args, **kwargs):
            found = fetch(*args, **kwargs)
            kept = [r for r in found.records if r.storage_id != late.storage_id]
            return type(found)(kept, found.cursor, found.has_more)

        with monkeypatch.context() as patched:
            patched.setattr(graph.instance, "fetch_materializations", not_committed)
            cursor = tick(graph, client).cursor
            assert tick(graph, client, cursor).asset_events == []
        done = tick(graph, client, cursor)
        assert len(done.asset_events) == 1
        assert tick(graph, client, done.cursor).asset_events == []


def test_an_empty_database_is_nothing_to_publish(new_graph, world, client):
    with new_graph(world) as graph:
        done = tick(graph, client)
        assert told(done)["symbols"] == 0
        assert tick(graph, client, done.cursor).asset_events == []
        assert dump(client) == {}


# -- publishing -----------------------------------------------------------------------------------


def test_what_is_published_is_the_database_field_by_field(graph, client, reader):
    tick(graph, client)
    now = datetime.now(UTC)
    newest = midnight(date(2019, 6, 14))
    rows = {
        asset: {
            r["symbol"]: r for r in graph.table(asset).filter(time=newest).iter_rows(named=True)
        }
        for asset in (VECTORS, "features_1d", "regime_predictions_1d")
    }
    revision = graph.query(
        f"SELECT max(revision) AS r FROM partition_ledger WHERE day = '{newest.date()}'"
        f" AND asset IN ('{VECTORS}', 'features_1d', 'regime_predictions_1d')"
    )["r"][0]
    assert set(rows[VECTORS]) == set(graph.universe.symbols)
    for symbol, vector in rows[VECTORS].items():
        packed = read_state_vector(reader, symbol, "1d", now, AGES)
        assert (packed.as_of, packed.revision) == (vector["available_at"], revision)
        values = [None if v != v else v for v in packed.values]
        assert values == [vector[f] for f in STATE_VECTOR_FIELDS]
        assert list(packed.missing) == vector["missing"]

        hashed = read_features(reader, symbol, "1d", now, AGES)
        assert (hashed.as_of, hashed.revision) == (vector["available_at"], revision)
        named = ("symbol", "time", "available_at", "availability_basis", "missing")
        expected = {n: v for n, v in vector.items() if n not in named}
        expected |= {n: v for n, v in rows["features_1d"][symbol].items() if n not in named}
        regime = rows["regime_predictions_1d"][symbol]
        expected |= {"regime": regime["regime"], "regime_confidence": regime["confidence"]}
        assert hashed.fields == expected
        assert {f.column for f in _features()} <= set(expected)

        held = read_regime(reader, symbol, "1d", now, AGES)
        assert held.fields == {"label": regime["regime"], "confidence": regime["confidence"]}

    for series, row in _last(
        graph.table("macro_indicators", None, None), "series_id", "time"
    ).items():
        held = read_macro(reader, series, now, AGES)
        assert (held.fields["value"], held.as_of) == (row["value"], row["available_at"])
        assert held.fields["name"] == row["name"]
    scores = graph.table("sentiment_scores", None, None)
    for channel in ("news", "reddit"):
        for symbol, row in _last(scores.filter(channel=channel), "symbol", "available_at").items():
            held = read_sentiment(reader, symbol, channel, now, AGES)
            assert held.as_of == row["available_at"]
            same = ("sentiment", "label", "confidence", "model", "model_revision")
            assert {n: str(held.fields[n]) for n in same} == {n: str(row[n]) for n in same}


def _features():
    from feature_pipeline.features.catalogue import FEATURES

    return FEATURES


def _last(frame: pl.DataFrame, key: str, by: str) -> dict:
    newest = frame.sort(by, "available_at").group_by(key).last()
    return {row[key]: row for row in newest.iter_rows(named=True)}


def test_a_new_day_replaces_and_an_old_day_changes_nothing(new_graph, world, client, reader):
    half = date(2019, 6, 11)
    with new_graph(world, materializations_of=WATCHED) as graph:
        graph.run(half, date(2019, 6, 13))
        cursor = tick(graph, client).cursor
        held = dump(client)
        assert held

        graph.run(START, half)  # an old-day backfill
        done = tick(graph, client, cursor)
        assert told(done)["written"] == 0
        assert dump(client) == held

        graph.run(date(2019, 6, 13), END)
        done = tick(graph, client, done.cursor)
        assert told(done)["written"] == 4 + 3 + 8
        now = datetime.now(UTC)
        newest = read_state_vector(reader, "AAA", "1d", now, AGES)
        assert newest.as_of.date() == date(2019, 6, 14)


def test_a_correction_of_the_newest_moment_wins(new_graph, world, client, reader):
    newest = (pl.col("time") == midnight(date(2019, 6, 14))) & (pl.col("symbol") == "AAA")
    with new_graph(world, materializations_of=WATCHED) as graph:
        graph.run()
        cursor = tick(graph, client).cursor
        now = datetime.now(UTC)
        before = read_features(reader, "AAA", "1d", now, AGES)
        graph.source.world = world.but(
            bars=world.bars.with_columns(
                pl.when(newest).then(pl.col("volume") * 2).otherwise("volume").alias("volume")
            )
        )
        graph.run(date(2019, 6, 14), END)
        done = tick(graph, client, cursor)
        assert (
            told(done)["written"] == 4
        )  # its features changed, and the revision of the day's rows
        after = read_features(reader, "AAA", "1d", now, AGES)
        assert after.as_of == before.as_of
        assert after.revision > before.revision
        assert after.fields["volume_ratio_20d"] > before.fields["volume_ratio_20d"]


# -- Redis lost -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lose", ["flushall", "sentinel"])
def test_a_lost_redis_is_rebuilt_without_any_event(graph, client, lose):
    cursor = tick(graph, client).cursor
    held = dump(client)
    if lose == "flushall":
        client.flushall()
    else:
        client.delete(keys.SENTINEL)
    done = tick(graph, client, cursor)
    assert told(done)["rebuilt"] is True
    assert dump(client) == held
    assert tick(graph, client, done.cursor).asset_events == []


def test_a_redis_lost_while_it_publishes_is_rebuilt_in_the_same_tick(graph, client, monkeypatch):
    from feature_pipeline.automation import publishing

    cursor = tick(graph, client).cursor
    held = dump(client)
    report(graph)
    honest = publishing.publish_snapshot

    def publish_after_a_loss(*args):
        client.flushall()
        return honest(*args)

    monkeypatch.setattr(publishing, "publish_snapshot", publish_after_a_loss)
    done = tick(graph, client, cursor)
    assert told(done)["rebuilt"] is True
    assert dump(client) == held
    monkeypatch.undo()
    assert tick(graph, client, done.cursor).asset_events == []


def test_redis_down_fails_the_tick_and_the_next_one_publishes(graph, own_redis):  # noqa: F811
    with publishing_client(own_redis.url) as client:
        with pytest.raises(dg.Failure) as failed:
            tick(graph, client)
        line = str(failed.value)
        assert "\n" not in line
        assert f"Redis at 127.0.0.1:{own_redis.port}" in line
        # A tick that raised stores no cursor: the next one starts from the same.
        own_redis.start()
        done = tick(graph, client)
        assert told(done)["written"] == 15

        own_redis.stop()
        report(graph)
        with pytest.raises(dg.Failure, match="cannot be reached"):
            tick(graph, client, done.cursor)
        own_redis.start()
        again = tick(graph, client, done.cursor)
        assert told(again)["written"] == 15  # it came back empty


def test_database_down_fails_the_tick_in_one_line(new_graph, world, client):
    from feature_pipeline.storage.database import Database
    from feature_pipeline.storage.store import Store

    with new_graph(world) as graph:
        report(graph)
        store = Store(Database("postgresql://nobody@127.0.0.1:1/none", 5), graph.universe, TABLES)
        context = dg.build_sensor_context(
            instance=graph.instance, resources={"storage": StorageIOManager(store), "redis": client}
        )
        with pytest.raises(dg.Failure) as failed:
            publish_online.evaluate_tick(context)
        assert "\n" not in str(failed.value)
        assert "127.0.0.1:1" in str(failed.value)


# -- in the daemon's hands ------------------------------------------------------------------------


def test_the_materialisation_of_the_external_asset_is_stored(graph, client):
    """The daemon reports what the tick returns; the lineage then shows it."""
    for event in tick(graph, client).asset_events:
        graph.instance.report_runless_asset_event(event)
    [record] = graph.instance.fetch_materializations(ONLINE, limit=1).records
    assert record.asset_materialization.metadata["symbols"].value == 4


def test_the_definitions_hold_the_sensor_running():
    from feature_pipeline.definitions import defs

    sensor = defs.resolve_sensor_def("publish_online")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == 1
    assert sensor.required_resource_keys == {"storage", "redis"}
