"""One provider is asked by so many steps at once as its pool has places; others do not wait."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import dagster as dg
import pytest

from feature_pipeline.assets.pools import places
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline_tests.assets.support import remember_only
from feature_pipeline_tests.assets.world import MadeSource

DAY = date(2019, 6, 5), date(2019, 6, 6)
SOURCES = [asset for asset, table in TABLES.items() if not table.derived]


@pytest.fixture
def instance(tmp_path):
    with dg.DagsterInstance.local_temp(str(tmp_path)) as made:  # in memory there are no pools
        yield made


def held(instance: dg.DagsterInstance) -> dict[str, int]:
    storage = instance.event_log_storage
    infos = (storage.get_concurrency_info(key) for key in storage.get_concurrency_keys())
    return {info.concurrency_key: info.active_slot_count for info in infos}


def waiting(instance: dg.DagsterInstance, pool: str) -> int:
    return instance.event_log_storage.get_concurrency_info(pool).pending_step_count


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_every_source_is_asked_from_a_place_in_its_own_pool(new_graph, world, instance):
    seen = {}

    class Watched(MadeSource):
        def _within(self, what, *more):
            seen[what] = held(instance)
            return super()._within(what, *more)

    pools = {"made": 1, "other": 1}
    for pool, limit in pools.items():
        instance.event_log_storage.set_concurrency_slots(pool, limit)
    remember_only(instance, ())
    with new_graph(world) as graph:
        graph.instance, graph.source = instance, Watched(world)
        graph.run(*DAY, assets=SOURCES)
    asked = {"made": 1, "other": 0}
    assert seen == dict.fromkeys(("bars", "actions", "news", "reddit", "macro"), asked)
    assert held(instance) == dict.fromkeys(pools, 0)


def job_of(ask: Callable[[str], None], provider: str) -> dg.JobDefinition:
    """One step that asks one provider."""

    @dg.asset(name=f"of_{provider}")
    def asks(context: dg.AssetExecutionContext) -> None:
        with places(context)(provider):
            ask(provider)

    return dg.Definitions(
        assets=[asks], executor=dg.in_process_executor
    ).resolve_implicit_global_asset_job_def()


def test_who_finds_no_place_waits_and_keeps_nobody_else(instance):
    instance.event_log_storage.set_concurrency_slots("slow", 1)
    instance.event_log_storage.set_concurrency_slots("quick", 1)
    begun, go, asked = threading.Event(), threading.Event(), []

    def ask(provider: str) -> None:
        asked.append(provider)
        if provider == "slow":
            begun.set()
            assert go.wait(30)

    def run(provider: str) -> bool:
        return job_of(ask, provider).execute_in_process(instance=instance).success

    with ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(run, "slow")
            assert begun.wait(30)
            second = pool.submit(run, "slow")
            until(lambda: waiting(instance, "slow") == 1)
            assert run("quick")
            assert asked == ["slow", "quick"]
        finally:
            go.set()
        assert first.result(), second.result()
    assert asked == ["slow", "quick", "slow"]
    assert held(instance) == {"slow": 0, "quick": 0}


def test_a_question_that_fails_gives_its_place_back(instance):
    instance.event_log_storage.set_concurrency_slots("slow", 1)

    def ask(provider: str) -> None:
        raise RuntimeError(provider)

    job = job_of(ask, "slow")
    assert not job.execute_in_process(instance=instance, raise_on_error=False).success
    assert held(instance) == {"slow": 0}


def test_who_gives_up_waits_no_longer(instance, monkeypatch):
    storage = instance.event_log_storage
    storage.set_concurrency_slots("slow", 1)
    assert storage.claim_concurrency_slot("slow", "another run", "step").is_claimed

    def cancelled(_: float) -> None:
        assert waiting(instance, "slow") == 1
        raise KeyboardInterrupt

    monkeypatch.setattr("feature_pipeline.assets.pools.time.sleep", cancelled)
    job = job_of(lambda _: None, "slow")
    assert not job.execute_in_process(instance=instance, raise_on_error=False).success
    assert waiting(instance, "slow") == 0
