"""Runs on Celery workers: spread over them, finished by the rest when one dies, cancelled there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
import polars as pl
import psycopg
import pytest
import yaml
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionStatus,
    PartitionBackfill,
)
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget

from feature_pipeline.automation.backfill import _tags, chunks
from feature_pipeline.definitions import JOB, build_defs
from feature_pipeline.partitions import days
from feature_pipeline.stack import processes
from feature_pipeline_tests.assets.support import _QUIET, assert_same_tables
from feature_pipeline_tests.automation.places import END, START, Place, new_place  # noqa: F401
from feature_pipeline_tests.automation.test_backfill import free
from feature_pipeline_tests.stack.helpers import until

pytest.importorskip("dagster_celery", reason="dagster-celery is not installed: extra `celery`")

from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "dagster-celery.yaml"
# Sources, and what reads far back of what other runs write.
ASSETS = ("ohlcv_1d", "corporate_actions", "indicators_1d", "regime_predictions_1d")
DAYS_PER_RUN = 3
LATER = END + timedelta(days=DAYS_PER_RUN)
SUCCESS, FAILURE = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE
CANCELED = dg.DagsterRunStatus.CANCELED

_HALF_DONE = """
SELECT run_id FROM dagster.runs JOIN partition_ledger USING (run_id)
WHERE runs.status = 'STARTED' AND run_id IN (
    SELECT run_id FROM dagster.run_tags WHERE key = 'dagster/backfill' AND value = %s
) GROUP BY run_id HAVING NOT bool_or(asset = %s) LIMIT 1
"""


@dg.job
def _nothing() -> None: ...


class Deployment:
    """Code server, daemon and two workers of one process each, on a place's stores."""

    workers = ("one@loopback", "two@loopback")

    def __init__(self, place: Place, broker: str, home: Path) -> None:
        self.place, self.home = place, home
        self.port = processes.free_port()
        self.children: dict[str, subprocess.Popen[str]] = {}
        instance = yaml.safe_load(EXAMPLE.read_text())
        # In a test nobody wants to wait for half a minute.
        instance["run_launcher"]["config"]["worker_timeout_seconds"] = 6
        instance["run_monitoring"] |= {
            "poll_interval_seconds": 1,
            "free_slots_after_run_end_seconds": 1,
        }
        instance["run_coordinator"]["config"] = {"dequeue_interval_seconds": 1}
        instance["concurrency"]["runs"]["max_concurrent_runs"] = 2
        (home / "dagster.yaml").write_text(yaml.safe_dump(instance))
        self.environment = place.environment | {
            "DAGSTER_HOME": str(home),
            "CELERY_BROKER_URL": broker,
            "FEATURE_PIPELINE_MAX_PARTITIONS_PER_RUN": str(DAYS_PER_RUN),
        }

    def start(self) -> None:
        server = (
            f"dagster api grpc --module-name feature_pipeline.definitions --host 127.0.0.1 "
            f"--port {self.port} --location-name feature_pipeline"
        )
        self._start("code-server", *server.split())
        for name in self.workers:
            worker = f"celery -A feature_pipeline.stack.worker worker -n {name} --concurrency 1"
            self._start(name, *worker.split(), "--without-mingle", "--without-gossip")
        module = "feature_pipeline_tests.stack.brisk_daemon"
        self._start("daemon", "python", "-m", module, str(self.port))

    def _start(self, name: str, program: str, *arguments: str) -> None:
        self.children[name] = processes.spawn(
            [str(Path(sys.executable).with_name(program)), *arguments],
            log=self.home / f"{name}.log",
            cwd=ROOT,
            env=self.environment,
            death_signal=signal.SIGKILL,
        )

    def kill(self, name: str) -> None:
        """The whole worker at once, as when its machine or its container goes."""
        child = self.children.pop(name)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()

    def stop(self) -> None:
        for name in list(self.children):
            self.kill(name)


def ranges(run: dg.DagsterRun) -> tuple[str, str]:
    """First and last day of a run."""
    return run.tags[ASSET_PARTITION_RANGE_START_TAG], run.tags[ASSET_PARTITION_RANGE_END_TAG]


class Watch:
    """What the instance of a deployment knows."""

    def __init__(self, instance: dg.DagsterInstance, deployment: Deployment) -> None:
        self.instance, self.deployment = instance, deployment
        self.link = psycopg.connect(
            deployment.place.settings.database_url.get_secret_value(), autocommit=True
        )

    def backfill(self, start: date, end: date) -> str:
        """Of the assets, as the UI starts it; its id."""
        target = GrpcServerTarget("127.0.0.1", self.deployment.port, None, "feature_pipeline")
        made = f"{start}"
        with WorkspaceProcessContext(self.instance, target) as workspace:
            self.instance.add_backfill(
                PartitionBackfill.from_asset_partitions(
                    made,
                    workspace.create_request_context().asset_graph,
                    [day.isoformat() for day in days(start, end)],
                    [dg.AssetKey(asset) for asset in ASSETS],
                    time.time(),
                    {},
                    self.instance,
                    False,
                    None,
                    None,
                    None,
                )
            )
        return made

    def runs(self, backfill: str) -> list[dg.DagsterRun]:
        return list(self.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill})))

    def ended(self, backfill: str) -> bool:
        """Whether the daemon is done with it."""
        statement = "SELECT status FROM dagster.bulk_actions WHERE key = %s"
        (status,) = self.link.execute(statement, [backfill]).fetchone()
        return BulkActionStatus(status) in BULK_ACTION_TERMINAL_STATUSES

    def half_done(self, backfill: str) -> str | None:
        """The id of a run that has written something, but not everything."""
        found = self.link.execute(_HALF_DONE, [backfill, ASSETS[-1]]).fetchone()
        return found and found[0]

    def until_half_done(self, backfill: str) -> dg.DagsterRun:
        """Wait for such a run."""
        found: list[str | None] = []
        until(lambda: found.append(self.half_done(backfill)) or found[-1], "no run starts", 120)
        return self.instance.get_run_by_id(found[-1])

    def story(self, run: dg.DagsterRun) -> str:
        """What Dagster says of a run."""
        return "\n".join(entry.message for entry in self.instance.all_logs(run.run_id))

    def worker(self, run: dg.DagsterRun) -> str:
        """The worker that took a run."""
        task = run.tags[DAGSTER_CELERY_TASK_ID_TAG]
        return self.instance.run_launcher.celery.AsyncResult(task).info["hostname"]


@pytest.fixture
def deployment(new_place, redis_server, tmp_path) -> Iterator[Deployment]:  # noqa: F811
    broker = redis_server.url.rpartition("/")[0] + "/5"
    made = Deployment(new_place(), broker, tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def undisturbed(deployment, new_place, monkeypatch) -> Place:  # noqa: F811
    """Another place after one run of the whole range."""
    place = new_place()
    (chunk,) = chunks(START, END, assets=ASSETS)
    with dg.DagsterInstance.ephemeral() as instance:
        job = build_defs(place.settings).resolve_job_def(JOB)
        assert job.execute_in_process(
            instance=instance,
            run_id=chunk.run_id,
            tags=_tags(chunk),
            run_config=_QUIET,
            asset_selection=[dg.AssetKey(asset) for asset in ASSETS],
        ).success
    return place


@pytest.fixture
def watch(deployment, undisturbed, monkeypatch) -> Iterator[Watch]:
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    until(lambda: not processes.is_free(deployment.port), "no code server listens", 90)
    with dg.DagsterInstance.get() as instance:
        made = Watch(instance, deployment)
        yield made
        made.link.close()


def of(place: Place) -> dict[str, pl.DataFrame]:
    """What the assets wrote."""
    return {asset: rows for asset, rows in place.tables().items() if asset in ASSETS}


def test_a_backfill_survives_one_of_two_workers_and_a_run_is_cancelled(
    deployment, undisturbed, watch
):
    instance = watch.instance
    backfill = watch.backfill(START, END)
    killed = watch.until_half_done(backfill)
    dead = watch.worker(killed)
    (alive,) = set(deployment.workers) - {dead}
    deployment.kill(dead)
    until(lambda: watch.ended(backfill), "the backfill goes on", 240)

    assert instance.get_backfill(backfill).status == BulkActionStatus.COMPLETED_SUCCESS
    assert_same_tables(of(deployment.place), of(undisturbed))
    runs = watch.runs(backfill)
    assert {run.run_id for run in runs if run.status != SUCCESS} == {killed.run_id}
    assert instance.get_run_by_id(killed.run_id).status == FAILURE
    (again,) = (run for run in runs if run.parent_run_id == killed.run_id)
    assert ranges(again) == ranges(killed)
    assert len({ranges(run) for run in runs}) == 3
    assert f"{dead} has not answered for 6 s" in watch.story(killed)
    until(lambda: free(instance), "the killed run holds a place in a pool")

    # A worker of the same name that was started since knows nothing of the run.
    launcher = instance.run_launcher
    task = again.tags[DAGSTER_CELERY_TASK_ID_TAG]
    assert launcher.check_run_worker_health(again).status == WorkerStatus.SUCCESS
    launcher.celery.AsyncResult(task).forget()
    launcher.celery.backend.store_result(task, {"hostname": alive, "pid": 1}, "STARTED")
    found = launcher.check_run_worker_health(again)
    assert (found.status, found.msg) == (WorkerStatus.FAILED, f"{alive} was started again")

    # Cancelled, it is not tried again.
    backfill = watch.backfill(END, LATER)
    run = watch.until_half_done(backfill)
    assert launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
    assert instance.run_coordinator.cancel_run(run.run_id)
    until(lambda: instance.get_run_by_id(run.run_id).status == CANCELED, "it goes on", 90)
    until(lambda: watch.ended(backfill), "the backfill goes on")
    assert [run.status for run in watch.runs(backfill)] == [CANCELED]


_WATCHED = """
import threading, time
from feature_pipeline.stack import worker

worker._LOOK_S = 0.1
threading.Thread(
    target=worker._interrupt_when_over, args=("{run_id}", threading.Event()), daemon=True
).start()
print("watching", flush=True)
time.sleep(120)
"""


def test_a_run_can_be_cancelled_after_the_database_was_away(
    new_place,  # noqa: F811
    redis_server,
    tmp_path,
    monkeypatch,
):
    deployment = Deployment(new_place(), redis_server.url, tmp_path)
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    url = urlsplit(deployment.place.url)
    admin = psycopg.connect(url._replace(path="/postgres").geturl(), autocommit=True)
    database, log = url.path[1:], tmp_path / "worker.log"
    with dg.DagsterInstance.get() as instance:
        run = instance.create_run_for_job(_nothing)
        deployment._start("worker", "python", "-c", _WATCHED.format(run_id=run.run_id))
        worker = deployment.children["worker"]
        try:
            until(lambda: "watching" in log.read_text(), "it does not start")
            time.sleep(1)
            admin.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
            gone = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            admin.execute(gone, [database])
            until(lambda: "will ask again" in log.read_text(), log.read_text())
            admin.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true')
            assert worker.poll() is None
            instance.report_run_canceled(run)
            until(lambda: worker.poll() is not None, "it goes on")
            assert worker.returncode == -signal.SIGTERM
        finally:
            admin.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true')
            worker.kill()
            worker.wait()
            admin.close()


def test_the_example_is_our_instance_with_another_launcher():
    ours, example = (yaml.safe_load(path.read_text()) for path in (ROOT / "dagster.yaml", EXAMPLE))
    assert example.pop("run_launcher") != ours.pop("run_launcher")
    assert example["concurrency"]["runs"].pop("max_concurrent_runs") > 2
    assert ours["concurrency"]["runs"].pop("max_concurrent_runs") == 2
    assert example["run_monitoring"].pop("poll_interval_seconds") == 30
    assert example == ours
