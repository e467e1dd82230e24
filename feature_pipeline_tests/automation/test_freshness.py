"""What is behind is noticed when nothing runs; a universe that has ended is left alone."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest

from feature_pipeline.automation import publishing
from feature_pipeline.automation.freshness import AGAIN, EVERY, policies, watch_freshness
from feature_pipeline.definitions import build_defs, defs
from feature_pipeline.errors import OnlineError
from feature_pipeline.features.catalogue import ALL_TABLES, TABLES
from feature_pipeline.online.client import publishing_client
from feature_pipeline.online.rebuild import publish_snapshot
from feature_pipeline.settings import Settings
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.universe import Universe

NOW = datetime(2019, 6, 15, 6, tzinfo=UTC)


@pytest.fixture(scope="module")
def graph(new_ran):
    with new_ran() as made:
        yield made


@pytest.fixture
def client(redis_url):
    with publishing_client(redis_url) as made:
        yield made


@pytest.fixture(autouse=True)
def _clock(graph):
    graph.store.clock = lambda: NOW


def tick(graph, client, cursor: str | None = None):
    context = dg.build_sensor_context(
        instance=graph.instance,
        cursor=cursor,
        resources={"storage": StorageIOManager(graph.store), "redis": client},
    )
    return watch_freshness.evaluate_tick(context)


def told(done) -> dict[str, dg.AssetCheckEvaluation]:
    return {event.asset_key.to_python_identifier(): event for event in done.asset_events}


# -- the sensor -----------------------------------------------------------------------------------


def test_it_tells_everything_once_and_then_what_changes(graph, client):
    publish_snapshot(client, publishing.snapshot(graph.store))
    graph.store.clock = lambda: datetime(2019, 6, 17, 6, tzinfo=UTC)
    done = tick(graph, client)
    assert set(told(done)) == {*TABLES, "online_state_vectors"}
    assert all(event.passed for event in done.asset_events)
    again = tick(graph, client, done.cursor)
    assert again.asset_events == []
    assert f"all {len(TABLES) + 1} checks pass" in again.skip_message

    # Monday evening: a session has passed, and news are too old.
    graph.store.clock = lambda: datetime(2019, 6, 17, 21, tzinfo=UTC)
    late = told(tick(graph, client, done.cursor))
    assert {"ohlcv_1d", "state_vectors_1d", "news", "corporate_actions"} <= set(late)
    assert not {"online_state_vectors", "sentiment_scores"} & set(late)
    assert not any(event.passed for event in late.values())
    said = late["ohlcv_1d"]
    assert said.severity == dg.AssetCheckSeverity.WARN
    assert "4 symbols behind: AAA by 1 session" in said.description


def test_what_does_not_change_is_told_daily(graph, client):
    publish_snapshot(client, publishing.snapshot(graph.store))
    cursor = tick(graph, client).cursor
    graph.store.clock = lambda: NOW + AGAIN - timedelta(minutes=1)
    assert tick(graph, client, cursor).asset_events == []
    graph.store.clock = lambda: NOW + AGAIN
    assert len(tick(graph, client, cursor).asset_events) == len(TABLES) + 1


def test_redis_that_holds_something_else_is_told(graph, client):
    publish_snapshot(client, publishing.snapshot(graph.store))
    cursor = tick(graph, client).cursor
    client.hset("features:1d:AAA", "returns_1d", "12.5")
    client.delete("sv:1d:BBB")
    graph.store.clock = lambda: datetime.now(UTC) + timedelta(hours=1)
    said = told(tick(graph, client, cursor))["online_state_vectors"]
    assert not said.passed
    assert said.severity == dg.AssetCheckSeverity.ERROR
    assert "features:1d:AAA: returns_1d" in said.metadata["shown"].value
    assert "sv:1d:BBB is not there" in said.metadata["shown"].value


def test_a_store_that_is_not_there_is_one_line(graph):
    with publishing_client("redis://127.0.0.1:1/0") as nowhere, pytest.raises(dg.Failure) as error:
        tick(graph, nowhere)
    assert isinstance(error.value.__cause__, OnlineError)
    assert "\n" not in str(error.value.__cause__)


def test_its_events_are_stored_as_evaluations(graph, client):
    for event in tick(graph, client).asset_events:
        graph.instance.report_runless_asset_event(event)
    key = dg.AssetCheckKey(dg.AssetKey("ohlcv_1d"), "freshness")
    [summary] = graph.instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    assert summary.status.value == "SUCCEEDED"


def test_the_definitions_hold_it_running():
    sensor = defs.resolve_sensor_def("watch_freshness")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == EVERY.total_seconds()


# -- policies -------------------------------------------------------------------------------------

_YAML = """
benchmark: A
instruments:
  - {{id: A, asset_class: equity, calendar: {calendar}, sector: s, source: {{bars: made}},
      symbols: [{{symbol: A, from: 2000-01-03}}], membership: [{{from: 2010-01-04{to}}}]}}
"""


def universe(calendar: str = "XNYS", to: str = "") -> Universe:
    return Universe.parse(_YAML.format(calendar=calendar, to=to))


def window(policy) -> timedelta:
    return policy.fail_window.to_timedelta()


def test_a_universe_that_has_ended_has_no_policy():
    ended = universe(to=", to: 2013-03-02")
    assert policies(ended, date(2026, 1, 5)) == {}
    assert set(policies(ended, date(2013, 1, 5))) == {*ALL_TABLES, "online_state_vectors"}
    # The sample's: nothing of the demonstration shows red.
    nodes = defs.resolve_asset_graph().asset_nodes
    assert not any(node.freshness_policy for node in nodes)


@pytest.mark.parametrize(
    ("calendar", "least", "most"),
    [
        ("XNYS", timedelta(days=4), timedelta(days=5)),
        ("24/7", timedelta(days=1), timedelta(days=2)),
        ("XSHG", timedelta(days=7), timedelta(days=18)),
    ],
)
def test_a_policy_outlasts_the_longest_closure(calendar, least, most):
    found = policies(universe(calendar), date(2026, 1, 5))
    assert least < window(found["ohlcv_1d"]) < most
    assert window(found["news"]) < timedelta(days=1)


def test_the_definitions_of_a_live_universe_carry_them(tmp_path):
    path = tmp_path / "universe.yaml"
    path.write_text(_YAML.format(calendar="XNYS", to="").replace("bars: made", "bars: sample"))
    graph = build_defs(Settings(universe=path)).resolve_asset_graph()
    for asset in (*TABLES, "online_state_vectors"):
        assert graph.get(dg.AssetKey(asset)).freshness_policy is not None
