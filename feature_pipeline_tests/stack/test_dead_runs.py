"""Runs that nothing executes any more: which ones are failed, and what they let go of."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import dagster as dg
import pytest
from dagster._core.storage.tags import GRPC_INFO_TAG

from feature_pipeline.stack.dead_runs import PROCESS_TAG, fail_dead_runs, process_tag

STARTED, FAILURE = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def run(instance, tags: dict[str, str]) -> str:
    job = dg.GraphDefinition(name="job").to_job()
    return instance.create_run_for_job(job, tags=tags, status=STARTED).run_id


def process_that_has_ended() -> str:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    return f"{ended.pid}@{socket.gethostname()}"


def test_a_run_ends_with_its_process(instance):
    dead = run(instance, {PROCESS_TAG: process_that_has_ended()})
    alive = run(instance, process_tag())
    elsewhere = run(instance, {PROCESS_TAG: "1@another-machine"})
    served = run(instance, {GRPC_INFO_TAG: "{}"})
    assert fail_dead_runs(instance) == [dead]
    assert instance.get_run_by_id(dead).status == FAILURE
    assert all(instance.get_run_by_id(i).status == STARTED for i in (alive, elsewhere, served))


def test_a_process_that_nobody_has_buried_is_dead(instance):
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    dead = run(instance, {PROCESS_TAG: f"{child.pid}@{socket.gethostname()}"})
    assert fail_dead_runs(instance) == [dead]
    child.wait()


def test_runs_of_a_code_server_end_where_there_is_none(instance):
    served = run(instance, {GRPC_INFO_TAG: "{}"})
    alive = run(instance, process_tag())
    assert fail_dead_runs(instance, no_code_server=True) == [served]
    assert instance.get_run_by_id(alive).status == STARTED


def test_the_dead_let_go_of_their_places_and_the_living_do_not(tmp_path):
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:  # in memory there are no pools
        storage = instance.event_log_storage
        storage.set_concurrency_slots("yfinance", 2)
        dead = run(instance, {PROCESS_TAG: process_that_has_ended()})
        alive = run(instance, process_tag())
        for run_id in (dead, alive):
            assert storage.claim_concurrency_slot("yfinance", run_id, "ohlcv_1d").is_claimed
        fail_dead_runs(instance)
        assert storage.get_concurrency_run_ids() == {alive}
        assert len(storage.get_concurrency_info("yfinance").claimed_slots) == 1
