"""The repair sensor: what is broken is found and mended, what is right is left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import polars as pl
import pytest
from dagster._core.events import DagsterEvent
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)

from feature_pipeline.automation.publishing import publish_online
from feature_pipeline.automation.repair import LONG_PAUSE, MAX_ATTEMPTS, repair_sensor
from feature_pipeline.definitions import JOB, build_defs
from feature_pipeline.errors import SourceError
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.online import keys
from feature_pipeline.online.client import publishing_client
from feature_pipeline.resources import code_versions, prepare_database
from feature_pipeline.settings import Settings
from feature_pipeline.stack import Stack
from feature_pipeline.stack.dead_runs import process_tag
from feature_pipeline.storage.io_manager import REPAIR_TAG, StorageIOManager
from feature_pipeline_tests.assets.support import Graph, _with_versions, assert_same_tables
from feature_pipeline_tests.assets.world import (
    END,
    START,
    MadeSource,
    make_documents,
    make_world,
    midnight,
)

DERIVED = tuple(asset for asset, table in TABLES.items() if table.derived)
SOURCES = tuple(asset for asset, table in TABLES.items() if not table.derived)
WEDNESDAY = date(2019, 6, 12)


@dataclass
class Keeper:
    """The sensor on one graph: ticks, and the runs that they ask for."""

    graph: Graph
    client: object
    settings: Settings = field(default_factory=Settings)
    versions: Mapping[str, str] | None = None
    cursor: str | None = None
    clock: datetime | None = None

    def tick(self) -> dg.SensorResult:
        """One evaluation, as the daemon does it; the cursor is kept."""
        if self.clock is not None:
            self.graph.store.clock = lambda: self.clock
        versions = self.versions or code_versions(self.graph.universe)
        context = dg.build_sensor_context(
            instance=self.graph.instance,
            cursor=self.cursor,
            resources={"storage": StorageIOManager(self.graph.store), "redis": self.client},
        )
        done = repair_sensor(JOB, versions, self.settings).evaluate_tick(context)
        self.cursor = done.cursor
        return done

    def publish(self) -> None:
        """What the other sensor does."""
        context = dg.build_sensor_context(
            instance=self.graph.instance,
            resources={"storage": StorageIOManager(self.graph.store), "redis": self.client},
        )
        publish_online.evaluate_tick(context)

    def execute(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """What the daemon makes of a request."""
        resources = self.graph.resources
        defs = _with_versions(build_defs(self.settings, **resources), self.versions or {})
        try:
            return defs.resolve_job_def(JOB).execute_in_process(
                instance=self.graph.instance,
                tags=request.tags,
                asset_selection=request.asset_selection,
                raise_on_error=False,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
        finally:
            resources["storage"].close()

    def mend(self, ticks: int = 12) -> list[dg.RunRequest]:
        """Tick and execute until nothing is asked for; what was asked for."""
        asked = []
        for _ in range(ticks):
            requests = self.tick().run_requests
            if not requests:
                return asked
            for request in requests:
                assert self.execute(request).success
            asked += requests
        raise AssertionError(f"it does not come to rest: {[r.tags for r in asked]}")

    def assert_quiet(self) -> None:
        done = self.tick()
        assert done.run_requests == []
        assert done.asset_events == []
        assert done.skip_message == "ledger, materialisations and Redis agree"

    def events(self, asset: str) -> int:
        return len(self.graph.instance.fetch_materializations(dg.AssetKey(asset), 9999).records)


def days_of(request: dg.RunRequest) -> tuple[str, str]:
    return (
        request.tags[ASSET_PARTITION_RANGE_START_TAG],
        request.tags[ASSET_PARTITION_RANGE_END_TAG],
    )


def selected(request: dg.RunRequest) -> set[str]:
    return {key.to_python_identifier() for key in request.asset_selection}


def tables(graph: Graph) -> dict[str, pl.DataFrame]:
    """All rows, those of the history before the window included."""
    return graph.tables(start=None, end=None)


@pytest.fixture
def client(redis_url):
    with publishing_client(redis_url) as made:
        yield made


@pytest.fixture
def new_keeper(new_graph, copied_graph, world, client):
    """Makes graphs that are whole and published: `with new_keeper() as keeper`."""
    opened = []

    def make(days: tuple[date, date] | None = None) -> Keeper:
        remembered = (*TABLES, "online_state_vectors")
        context = (new_graph if days else copied_graph)(world, materializations_of=remembered)
        graph = context.__enter__()
        opened.append(context)
        if days:
            graph.run(*days)
        keeper = Keeper(graph, client)
        keeper.publish()
        return keeper

    yield make
    for context in opened:
        context.__exit__(None, None, None)


def corrected(world, day: date, symbol: str = "AAA"):
    """The same world, in which one bar was another."""
    that = (pl.col("time") == midnight(day)) & (pl.col("symbol") == symbol)
    last = pl.col("close") * 1.01
    return world.but(
        bars=world.bars.with_columns(
            close=pl.when(that).then(last).otherwise("close"),
            high=pl.when(that).then(pl.max_horizontal("high", last)).otherwise("high"),
        )
    )


def lose(graph: Graph, day: date, assets=("ohlcv_1d",)) -> None:
    """A day of some tables is gone, rows and ledger."""
    with graph.store.database.connection() as connection:
        for asset in assets:
            table = TABLES[asset]
            of = f" AND channel = '{table.constants['channel']}'" if table.constants else ""
            connection.execute(
                f"DELETE FROM {table.table} WHERE {table.day_column} >= '{day} 00:00+00'"
                f" AND {table.day_column} < '{day + timedelta(days=1)} 00:00+00'{of}"
            )
            connection.execute(
                "DELETE FROM partition_ledger WHERE asset = %s AND day = %s", [asset, day]
            )


# -- nothing to do --------------------------------------------------------------------------------


def test_a_quiet_tick_starts_nothing_and_forgets_nothing(new_keeper, world):
    keeper = new_keeper()
    before = {asset: keeper.events(asset) for asset in TABLES}
    keeper.assert_quiet()
    keeper.assert_quiet()
    assert {asset: keeper.events(asset) for asset in TABLES} == before
    known = json.loads(keeper.cursor)
    assert (known["tried"], known["held"]) == ({}, {})


def test_an_empty_database_is_nothing_to_repair(new_graph, world, client):
    with new_graph(world) as graph:
        keeper = Keeper(graph, client)
        keeper.publish()
        keeper.assert_quiet()


def test_years_that_nobody_asked_for_are_no_hole(new_keeper, world):
    """Documents of one day in the far future of the rest: what lies between is not wanted."""
    keeper = new_keeper()
    later = date(2020, 3, 2)
    keeper.graph.run(later, later + timedelta(days=1), ["news", "reddit", "macro_indicators"])
    requests = keeper.mend()
    assert not [r for r in requests if selected(r) & set(SOURCES)]


# -- the tables -----------------------------------------------------------------------------------


def test_a_corrected_bar_is_followed_through_in_one_run(new_keeper, new_graph, world):
    keeper, changed = new_keeper(), corrected(world, date(2019, 6, 11))
    keeper.graph.source.world = changed
    keeper.graph.run(date(2019, 6, 11), date(2019, 6, 12), ["ohlcv_1d"])
    assert keeper.graph.pending("features_1d")

    [request] = keeper.mend()
    assert days_of(request)[0] == "2019-06-11"
    assert selected(request) == set(DERIVED) - {"sentiment_scores"}
    assert "indicators_1d: 4 days" in request.tags[REPAIR_TAG]
    with new_graph(changed) as graph:
        graph.run()
        assert_same_tables(tables(keeper.graph), tables(graph))
    assert not any(keeper.graph.pending(asset) for asset in TABLES)
    keeper.publish()
    keeper.assert_quiet()


def test_what_lies_before_the_window_is_mended_where_it_is_kept(new_keeper, new_graph, world):
    """A bar of the history that only indicators and features reach back to."""
    day = date(2019, 2, 12)
    keeper, changed = new_keeper(), corrected(world, day)
    held = {asset: keeper.graph.store.ledger.rows(asset, day, END)["day"][0] for asset in DERIVED}
    assert held["state_vectors_1d"] > day
    keeper.graph.source.world = changed
    keeper.graph.run(day, day + timedelta(days=1), ["ohlcv_1d"])
    requests = keeper.mend()
    assert days_of(requests[0])[0] >= "2019-02-12"
    # No history came along: what was never wanted is not there now.
    now = {asset: keeper.graph.store.ledger.rows(asset, day, END)["day"][0] for asset in DERIVED}
    assert now == held
    with new_graph(changed) as graph:
        graph.run()
        assert_same_tables(tables(keeper.graph), tables(graph))


@pytest.mark.parametrize("asset", ["ohlcv_1d", "news", "macro_indicators", "features_1d"])
def test_a_lost_day_is_brought_back(new_keeper, ran, world, asset):
    keeper = new_keeper()
    lose(keeper.graph, WEDNESDAY, [asset])
    first, *others = keeper.mend()
    assert days_of(first)[0] == "2019-06-12"
    if asset in SOURCES:
        # The source alone, and for that day alone; what follows from it, if it follows, next.
        assert (selected(first), days_of(first)[1]) == ({asset}, "2019-06-12")
    assert all(not selected(r) & set(SOURCES) for r in others)
    assert_same_tables(tables(keeper.graph), tables(ran))
    assert not any(keeper.graph.pending(asset) for asset in TABLES)
    keeper.publish()
    keeper.assert_quiet()


def test_a_day_lost_everywhere_is_brought_back(new_keeper, ran, world):
    keeper = new_keeper()
    lose(keeper.graph, WEDNESDAY, TABLES)
    keeper.mend()
    assert_same_tables(tables(keeper.graph), tables(ran))
    assert not any(keeper.graph.pending(asset) for asset in TABLES)


def test_a_hole_that_was_never_written_is_filled(new_keeper, ran, world):
    keeper = new_keeper((WEDNESDAY, END))
    keeper.graph.run(START, date(2019, 6, 10))
    assert date(2019, 6, 10) in keeper.graph.pending("state_vectors_1d")
    keeper.mend()
    assert_same_tables(keeper.graph.tables(), ran.tables())
    assert not any(keeper.graph.pending(asset) for asset in TABLES)


def test_what_a_restored_backup_lacks_is_brought_back(new_keeper, ran, world):
    """The newest days are gone from the database, and Dagster remembers them."""
    keeper = new_keeper()
    for day in (date(2019, 6, 13), date(2019, 6, 14)):
        lose(keeper.graph, day, TABLES)
    keeper.mend()
    assert_same_tables(tables(keeper.graph), tables(ran))


def test_a_changed_feature_is_recomputed_and_what_follows(new_keeper, world):
    keeper = new_keeper()
    versions = code_versions(keeper.graph.universe) | {"indicators_1d": "another"}
    keeper.versions = versions
    history, window = keeper.mend()
    # The run stays within what each asset is meant to have: first the history that only indicators
    # have, then all.
    assert selected(history) == {"indicators_1d"}
    assert selected(window) == set(DERIVED) - {"sentiment_scores"}
    store = keeper.graph.store
    assert store.pending("indicators_1d", START, END, "another").is_empty()
    assert tables(keeper.graph).keys() == TABLES.keys()
    keeper.publish()
    keeper.assert_quiet()


def test_days_of_other_code_are_left_alone_where_this_code_was_never_migrated(new_keeper, world):
    keeper = new_keeper()
    prepare_database(keeper.graph.url)
    keeper.assert_quiet()
    with keeper.graph.store.database.connection() as connection:
        connection.execute(
            "UPDATE feature_definitions SET computation = 'other' WHERE name = (SELECT min(name)"
            " FROM feature_definitions)"
        )
    keeper.versions = code_versions(keeper.graph.universe) | {"indicators_1d": "another"}
    done = keeper.tick()
    assert done.run_requests == []
    assert done.skip_message == (
        "this code's catalogue was never migrated here: run feature-pipeline migrate"
    )
    # What is missing is mended by whoever sees it.
    lose(keeper.graph, WEDNESDAY, ["state_vectors_1d"])
    [request] = keeper.tick().run_requests
    assert selected(request) == {"state_vectors_1d"}

    prepare_database(keeper.graph.url)
    keeper.cursor = None
    done = keeper.tick()
    assert "never migrated" not in str(done.skip_message)
    assert any("indicators_1d" in selected(request) for request in done.run_requests)


def test_days_per_run_cut_the_work(new_keeper, world):
    keeper = new_keeper()
    keeper.settings = Settings(max_partitions_per_run=3)
    keeper.graph.source.world = corrected(world, date(2019, 6, 7))
    keeper.graph.run(date(2019, 6, 7), date(2019, 6, 8), ["ohlcv_1d"])
    asked = [days_of(request) for request in keeper.mend()]
    assert asked[0] == ("2019-06-07", "2019-06-09")
    assert all(
        (date.fromisoformat(last) - date.fromisoformat(first)).days < 3 for first, last in asked
    )
    assert not any(keeper.graph.pending(asset) for asset in TABLES)


# -- days that are still being collected --------------------------------------------------------


def more_news(keeper: Keeper, day: date, name: str) -> None:
    """Another article of that day comes in."""
    world = keeper.graph.source.world
    article = make_documents("AAA", [midnight(day) + timedelta(hours=18)], [0.9], ["news"], name)
    keeper.graph.source.world = world.but(documents=pl.concat([world.documents, article]))
    keeper.graph.run(day, day + timedelta(days=1), ["news"])


def test_what_is_stale_today_is_brought_up_to_date_once_an_hour(new_keeper, world):
    keeper, today = new_keeper(), date(2019, 6, 14)
    keeper.clock = datetime(2019, 6, 14, 22, tzinfo=UTC)
    keeper.assert_quiet()
    runs = []
    for n in range(8):  # two hours, an article every quarter of an hour
        more_news(keeper, today, f"n{n}")
        requests = keeper.tick().run_requests
        assert all(keeper.execute(request).success for request in requests)
        runs += [(keeper.clock, days_of(request)) for request in requests]
        keeper.clock += timedelta(minutes=15)
    assert [day for _, day in runs] == [("2019-06-14", "2019-06-14")] * 2
    assert runs[1][0] - runs[0][0] == timedelta(hours=1)


def test_what_is_missing_today_is_not_made_to_wait(new_keeper, world):
    keeper, today = new_keeper(), date(2019, 6, 14)
    keeper.clock = datetime(2019, 6, 14, 22, tzinfo=UTC)
    more_news(keeper, today, "n")
    assert keeper.mend()
    lose(keeper.graph, today, ["state_vectors_1d"])
    assert keeper.mend()
    assert keeper.graph.pending("state_vectors_1d") == []


def test_sources_of_today_and_yesterday_are_left_to_the_schedules(new_keeper, world):
    keeper = new_keeper()
    lose(keeper.graph, date(2019, 6, 13), ["news", "ohlcv_1d"])
    keeper.clock = datetime(2019, 6, 14, 22, tzinfo=UTC)
    assert keeper.tick().run_requests == []
    keeper.clock += timedelta(days=1)
    [request] = keeper.tick().run_requests
    assert selected(request) == {"news", "ohlcv_1d"}


# -- events ---------------------------------------------------------------------------------------


def test_what_was_written_without_a_word_is_reported(new_graph, world, client):
    """Dagster has no event of the graph's tables; the ledger has all of their days."""
    with new_graph(world, materializations_of=()) as graph:
        graph.run(assets=["news", "reddit", "macro_indicators"])
        graph.instance.event_log_storage.store_event = type(
            graph.instance.event_log_storage
        ).store_event.__get__(graph.instance.event_log_storage)
        keeper = Keeper(graph, client)
        keeper.publish()
        done = keeper.tick()
        assert done.skip_message.startswith("reported as materialised what the ledger has: news: ")
        ledger = graph.store.ledger.rows("news", date(2019, 1, 1), END)
        [newest] = graph.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey("news"), asset_partitions=["2019-06-12"]), 1
        ).records
        rows = ledger.filter(day=WEDNESDAY)["rows"].sum()
        told = newest.asset_materialization.metadata["dagster/partition_row_count"].value
        assert told == rows > 0
        assert len(graph.instance.get_materialized_partitions(dg.AssetKey("news"))) == len(ledger)
        keeper.assert_quiet()


# -- Redis ----------------------------------------------------------------------------------------


def dump(client) -> dict[bytes, bytes]:
    return {key: client.dump(key) for key in client.scan_iter() if key != keys.SENTINEL.encode()}


@pytest.mark.parametrize(
    "key",
    [
        keys.vector_key("1d", "AAA"),
        keys.features_key("1d", "BBB"),
        keys.regime_key("1d", "MKT"),
        keys.sentiment_key("AAA", "news"),
        keys.macro_key("DFF"),
    ],
)
def test_one_deleted_key_is_published_again(new_keeper, world, client, key):
    keeper = new_keeper()
    held = dump(client)
    client.delete(key)
    done = keeper.tick()
    assert done.skip_message == f"published 1 key(s) missing or older than the database: {key}"
    [event] = done.asset_events
    assert event.asset_key == dg.AssetKey("online_state_vectors")
    assert dump(client) == held
    keeper.assert_quiet()


def test_an_older_and_a_broken_value_are_replaced_and_a_newer_one_stays(new_keeper, world, client):
    keeper = new_keeper()
    held = dump(client)
    client.hset(keys.features_key("1d", "AAA"), "revision", "1")
    client.set(keys.vector_key("1d", "BBB"), b"what is this")
    done = keeper.tick()
    assert "published 2 key(s)" in done.skip_message
    assert dump(client) == held
    client.hset(keys.features_key("1d", "AAA"), "revision", str(2**40))
    keeper.assert_quiet()


def test_a_redis_that_evicts_is_told_once(new_keeper, world, client):
    keeper, heard = new_keeper(), listen(client)
    keeper.clock = datetime(2026, 1, 5, 12, tzinfo=UTC)
    lost = [keys.vector_key("1d", "AAA"), keys.features_key("1d", "BBB"), keys.macro_key("DFF")]
    published = 0
    for n in range(20):
        client.delete(lost[n % len(lost)])
        published += len(keeper.tick().asset_events)
        keeper.clock += timedelta(minutes=1)
    assert published == MAX_ATTEMPTS
    [alert] = [a for a in heard() if a.get("kind") == "repair"]
    assert "Redis does not keep what is published" in alert["text"]


def test_a_lost_redis_is_left_to_the_publisher(new_keeper, world, client):
    keeper = new_keeper()
    held = dump(client)
    client.flushall()
    done = keeper.tick()
    assert "publish_online fills it" in done.skip_message
    assert dump(client) == {}
    keeper.publish()
    assert dump(client) == held
    keeper.assert_quiet()


def test_without_redis_the_tables_are_mended_all_the_same(new_keeper, world):
    keeper = new_keeper()
    lose(keeper.graph, WEDNESDAY, ["features_1d"])
    with publishing_client("redis://127.0.0.1:1/0") as nobody:
        keeper.client = nobody
        assert len(keeper.tick().run_requests) == 1


# -- what others are at ---------------------------------------------------------------------------


def unfinished(graph: Graph, **tags: str) -> dg.DagsterRun:
    return graph.instance.create_run_for_job(
        dg.GraphDefinition(name="other").to_job(),
        tags={
            ASSET_PARTITION_RANGE_START_TAG: "2019-06-12",
            ASSET_PARTITION_RANGE_END_TAG: "2019-06-13",
        }
        | tags,
        status=dg.DagsterRunStatus.STARTED,
    )


@pytest.mark.parametrize("tags", [{}, {REPAIR_TAG: "x", ASSET_PARTITION_RANGE_END_TAG: "2019"}])
def test_it_waits_for_a_run_of_the_same_days(new_keeper, world, tags):
    keeper = new_keeper()
    lose(keeper.graph, WEDNESDAY)
    other = unfinished(keeper.graph, **tags)
    done = keeper.tick()
    assert done.run_requests == []
    assert "ohlcv_1d: 1 day missing, 2019-06-12" in done.skip_message
    assert other.run_id in done.skip_message
    keeper.graph.instance.report_run_failed(other)
    [request] = keeper.tick().run_requests
    assert selected(request) == {"ohlcv_1d"}


def test_it_does_not_wait_for_a_run_of_other_days(new_keeper, world):
    keeper = new_keeper()
    lose(keeper.graph, date(2019, 6, 6))
    unfinished(keeper.graph)
    assert len(keeper.tick().run_requests) == 1


def test_it_waits_for_a_writer_that_dagster_does_not_know(new_keeper, world):
    keeper = new_keeper()
    lose(keeper.graph, WEDNESDAY)
    intent = keeper.graph.store.ledger.announce("ohlcv_1d", START, END, 999_999, "elsewhere")
    assert "waiting for somebody who is writing ohlcv_1d" in keeper.tick().skip_message
    intent.close()
    assert len(keeper.tick().run_requests) == 1


# -- what it cannot mend --------------------------------------------------------------------------


def listen(client) -> Callable[[], list[dict]]:
    """What comes on the channel, since the last look."""
    channel = client.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(keys.CHANNEL_ALERTS)
    channel.get_message(timeout=5)

    def heard() -> list[dict]:
        found = []
        while message := channel.get_message(timeout=0.2):
            found.append(json.loads(message["data"]))
        return found

    return heard


class Broken(MadeSource):
    """It has no bars at all today."""

    def bars(self, *_):
        raise SourceError("the provider is closed")


def test_what_does_not_mend_is_told_once_and_tried_again_much_later(new_keeper, ran, world, client):
    keeper, heard = new_keeper(), listen(client)
    honest = keeper.graph.source
    keeper.graph.source = Broken(world)
    keeper.clock = datetime(2026, 1, 5, 12, tzinfo=UTC)
    lose(keeper.graph, WEDNESDAY)
    attempts = 0
    for _ in range(30):  # half an hour of ticks
        for request in keeper.tick().run_requests:
            assert selected(request) == {"ohlcv_1d"}
            assert not keeper.execute(request).success
            attempts += 1
        keeper.clock += timedelta(minutes=1)
    assert attempts == MAX_ATTEMPTS
    [alert] = heard()
    assert alert["kind"] == "repair"
    assert alert["assets"] == ["ohlcv_1d"]
    assert alert["partitions"] == "2019-06-12..2019-06-12"
    assert "ohlcv_1d: 1 day, 2019-06-12 cannot be mended: 3 attempts" in alert["text"]
    assert "cannot be mended" in keeper.tick().skip_message

    # Nothing computes on the hole meanwhile; one more attempt after a long time, without a word.
    keeper.clock += LONG_PAUSE
    [again] = keeper.tick().run_requests
    assert not keeper.execute(again).success
    assert keeper.tick().run_requests == []
    assert heard() == []
    assert len(keeper.cursor) < 1000

    keeper.graph.source = honest
    keeper.clock += LONG_PAUSE
    keeper.mend()
    assert_same_tables(tables(keeper.graph), tables(ran))
    keeper.publish()
    keeper.assert_quiet()


def test_nobody_is_told_while_the_last_attempt_is_under_way(new_keeper, world, client):
    keeper, heard = new_keeper(), listen(client)
    keeper.graph.source = Broken(world)
    keeper.clock = datetime(2026, 1, 5, 12, tzinfo=UTC)
    lose(keeper.graph, WEDNESDAY)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        [request] = keeper.tick().run_requests
        if attempt < MAX_ATTEMPTS:
            assert not keeper.execute(request).success
        keeper.clock += timedelta(hours=1)
    last = unfinished(keeper.graph, **request.tags)
    assert "cannot be mended" not in keeper.tick().skip_message
    assert heard() == []
    keeper.graph.instance.report_run_failed(last)
    assert "cannot be mended" in keeper.tick().skip_message
    assert len(heard()) == 1


def test_days_that_need_what_nobody_has_are_told_once(new_keeper, world, client):
    """The first bars are gone from ledger and memory: indicators of later days cannot follow."""
    keeper, heard = new_keeper(), listen(client)
    graph, day = keeper.graph, "2019-06-11"
    with graph.store.database.connection() as connection:
        connection.execute(
            "DELETE FROM partition_ledger WHERE asset = 'ohlcv_1d' AND day < '2019-03-01'"
        )
        connection.execute("DELETE FROM ohlcv_1d WHERE time < '2019-03-01 00:00+00'")
    graph.instance.wipe_assets([dg.AssetKey("ohlcv_1d")])
    graph.source.world = corrected(world, date(2019, 6, 11))
    tags = {ASSET_PARTITION_RANGE_START_TAG: day, ASSET_PARTITION_RANGE_END_TAG: day}
    tags[REPAIR_TAG] = "by hand"
    keeper.execute(dg.RunRequest(asset_selection=[dg.AssetKey("ohlcv_1d")], tags=tags))
    done = [keeper.tick() for _ in range(3)][-1]
    assert done.run_requests == []
    assert "indicators_1d: 4 days stale or missing, 2019-06-11 to 2019-06-14" in done.skip_message
    alerts = {asset: alert["text"] for alert in heard() for asset in alert["assets"]}
    assert "regime_predictions_1d" not in alerts  # it waits for indicators, and they are told of
    assert "ohlcv_1d from 2017-11-" in alerts["indicators_1d"]
    assert "to 2019-02-28, which nobody has asked for" in alerts["indicators_1d"]
    keeper.tick()
    assert heard() == []

    # Asked for by hand, they are followed through.
    keeper.graph.run(date(2017, 1, 3), date(2019, 3, 1), ["ohlcv_1d"])
    keeper.mend()
    assert not any(graph.pending(asset) for asset in TABLES)
    keeper.publish()
    keeper.assert_quiet()


# -- what checks hold back ------------------------------------------------------------------------


def evaluated(graph: Graph, passed: bool, first: str, last: str, asset: str = "ohlcv_1d") -> None:
    """A run over these days had a blocking check that passed, or did not."""
    run = graph.instance.create_run_for_job(
        dg.GraphDefinition(name="other").to_job(),
        tags={ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last},
        status=dg.DagsterRunStatus.FAILURE,
    )
    said = dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(asset),
        check_name="no_future",
        passed=passed,
        metadata={},
        severity=dg.AssetCheckSeverity.ERROR,
        blocking=True,
    )
    event = DagsterEvent(
        event_type_value=dg.DagsterEventType.ASSET_CHECK_EVALUATION.value,
        event_specific_data=said,
        job_name="other",
    )
    graph.instance.report_dagster_event(event, run_id=run.run_id)


def test_nothing_is_computed_from_days_that_a_blocking_check_holds_back(
    new_keeper, new_graph, world
):
    keeper, changed = new_keeper(), corrected(world, date(2019, 6, 6))
    keeper.graph.source.world = changed
    keeper.graph.run(date(2019, 6, 6), date(2019, 6, 7), ["ohlcv_1d"])
    before = {asset: keeper.graph.pending(asset) for asset in DERIVED}
    assert before["indicators_1d"]
    evaluated(keeper.graph, False, "2019-06-05", "2019-06-06")
    done = keeper.tick()
    assert done.run_requests == []
    words = "2019-06-05 to 2019-06-06 of ohlcv_1d is held back by its check no_future"
    assert words in done.skip_message
    evaluated(keeper.graph, True, "2019-06-05", "2019-06-05")  # of another day
    assert "2019-06-06 of ohlcv_1d is held back" in keeper.tick().skip_message
    assert {asset: keeper.graph.pending(asset) for asset in DERIVED} == before

    evaluated(keeper.graph, True, "2019-06-01", "2019-06-10")
    keeper.mend()
    with new_graph(changed) as graph:
        graph.run()
        assert_same_tables(tables(keeper.graph), tables(graph))


def test_a_check_that_nobody_repeats_is_repeated_and_its_days_released(new_keeper, world, client):
    keeper, heard = new_keeper(), listen(client)
    keeper.clock = datetime(2026, 1, 5, 12, tzinfo=UTC)
    lose(keeper.graph, date(2019, 6, 13), ["features_1d"])
    evaluated(keeper.graph, False, "2019-06-10", "2019-06-12")
    evaluated(keeper.graph, True, "2019-06-11", "2019-06-13")  # the next day's run
    assert keeper.tick().run_requests == []
    keeper.clock += timedelta(minutes=3)
    [request] = keeper.tick().run_requests
    assert request.asset_selection == []
    assert request.asset_check_keys == [dg.AssetCheckKey(dg.AssetKey("ohlcv_1d"), "no_future")]
    assert days_of(request) == ("2019-06-10", "2019-06-10")
    resources = keeper.graph.resources
    job = build_defs(keeper.settings, **resources).resolve_job_def(JOB)
    some = job.get_subset(asset_selection=set(), asset_check_selection={*request.asset_check_keys})
    done = some.execute_in_process(instance=keeper.graph.instance, tags=request.tags)
    resources["storage"].close()
    [said] = done.get_asset_check_evaluations()
    assert (said.passed, said.blocking) == (True, True)
    keeper.mend()
    assert json.loads(keeper.cursor)["held"] == {}
    assert keeper.graph.pending("features_1d") == []
    assert heard() == []


def test_what_stays_held_back_is_told_once(new_keeper, world, client):
    keeper, heard = new_keeper(), listen(client)
    keeper.clock = datetime(2026, 1, 5, 12, tzinfo=UTC)
    evaluated(keeper.graph, False, "2019-06-10", "2019-06-10")
    asked = []
    for _ in range(30):
        for request in keeper.tick().run_requests:
            evaluated(keeper.graph, False, *days_of(request))
            asked.append(days_of(request))
        keeper.clock += timedelta(minutes=1)
    assert asked == [("2019-06-10", "2019-06-10")] * 2
    [alert] = heard()
    assert "ohlcv_1d: 1 day, 2019-06-10 stays held back by the check no_future" in alert["text"]


def test_days_before_those_that_are_held_back_are_mended(new_keeper, world):
    keeper = new_keeper()
    lose(keeper.graph, date(2019, 6, 6), ["features_1d"])
    lose(keeper.graph, date(2019, 6, 13), ["features_1d"])
    evaluated(keeper.graph, False, "2019-06-11", "2019-06-11")
    [request] = keeper.mend()
    assert selected(request) == {"features_1d", "state_vectors_1d"}
    assert days_of(request) == ("2019-06-06", "2019-06-06")
    assert keeper.graph.pending("features_1d") == [date(2019, 6, 13)]


# -- killed ---------------------------------------------------------------------------------------


def die_within(environment: dict[str, str], url: str, asset: str) -> None:
    """In a process of its own: a run of the last days, killed while it copies rows of an asset."""
    from feature_pipeline_tests.assets.world import make_universe

    os.environ.update(environment)
    universe = make_universe()
    graph = Graph(url, universe, MadeSource(make_world(universe)))
    writer, write = graph.store.writer, graph.store.writer.write

    def kill(step: str) -> None:
        if step == "copy":
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(table, *rest):
        if table.asset == asset:
            writer.trace = kill
        return write(table, *rest)

    writer.write = watched
    with dg.DagsterInstance.get() as instance:
        build_defs(Settings(), **graph.resources).resolve_job_def(JOB).execute_in_process(
            instance=instance,
            tags={
                ASSET_PARTITION_RANGE_START_TAG: "2019-06-11",
                ASSET_PARTITION_RANGE_END_TAG: "2019-06-14",
            }
            | process_tag(),
        )


@pytest.mark.parametrize("asset", ["features_1d"])
def test_a_killed_run_is_found_and_what_it_left_is_mended(
    new_graph, ran, world, client, redis_url, tmp_path, monkeypatch, asset
):
    with new_graph(world) as graph:
        settings = Settings(database_url=graph.url, redis_url=redis_url, home=tmp_path)
        stack = Stack(settings)
        stack.prepare_dagster()
        for name, value in stack.environment().items():
            monkeypatch.setenv(name, value)
        with dg.DagsterInstance.get() as instance:
            monkeypatch.setattr(graph, "instance", instance)
            graph.run(START, date(2019, 6, 11))
            child = multiprocessing.get_context("spawn").Process(
                target=die_within, args=(stack.environment(), graph.url, asset)
            )
            child.start()
            child.join(120)
            assert child.exitcode == -signal.SIGKILL
            [left] = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))

            keeper = Keeper(graph, client)
            keeper.publish()
            asked = keeper.mend()
            assert instance.get_run_by_id(left.run_id).status == dg.DagsterRunStatus.FAILURE
            assert "features_1d" in selected(asked[0])
            assert_same_tables(tables(graph), tables(ran))
            assert not any(graph.pending(a) for a in TABLES)
            # Dagster says the same as the ledger of every table.
            for a in TABLES:
                written = graph.store.ledger.rows(a, date(2015, 1, 1), END)["day"].unique()
                known = instance.get_materialized_partitions(dg.AssetKey(a))
                assert known == {day.isoformat() for day in written}
            keeper.publish()
            keeper.assert_quiet()
