"""Dagster's processes: they serve the graph on loopback, are reused, and leave nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import psutil
import psycopg
import pytest
import yaml

from feature_pipeline.errors import StackError
from feature_pipeline.settings import Settings
from feature_pipeline.stack import Stack
from feature_pipeline.stack.dagster import DagsterProcesses
from feature_pipeline_tests.stack.helpers import environment, everything_of, gone, until

ROOT = Path(__file__).parents[2]
TINY = "feature_pipeline_tests.stack.tiny_definitions"

OWNER = f"""
import sys, time
from pathlib import Path
from feature_pipeline.settings import Settings
from feature_pipeline.stack import Stack
from feature_pipeline.stack.dagster import DagsterProcesses
with Stack(Settings()) as stack:
    stack.dagster = DagsterProcesses(stack.home, stack.environment(), module="{TINY}")
    stack.dagster.start()
    print(stack.dagster.ui_url, flush=True)
    time.sleep(1000)
"""


def _ask(ui_url: str, query: str) -> dict:
    request = urllib.request.Request(
        f"{ui_url}/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"]


def _start_tiny(stack: Stack, **options: object) -> DagsterProcesses:
    environment = stack.environment() | {"PYTHONPATH": str(ROOT)}
    stack.dagster = DagsterProcesses(stack.home, environment, module=TINY, **options)
    stack.dagster.start()
    return stack.dagster


def test_serves_the_graph_on_loopback_and_leaves_nothing(make_home):
    home = make_home()
    with Stack(Settings(home=home)) as stack:
        dagster = _start_tiny(stack)
        data = _ask(
            dagster.ui_url,
            "{workspaceOrError {... on Workspace {locationEntries {name loadStatus}}}"
            " instance {daemonHealth {allDaemonStatuses {daemonType}}}}",
        )
        entries = data["workspaceOrError"]["locationEntries"]
        assert entries == [{"name": "feature_pipeline", "loadStatus": "LOADED"}]
        for process in everything_of(home):
            for listening in process.net_connections():
                if listening.status == psutil.CONN_LISTEN:
                    assert listening.laddr.ip.removeprefix("::ffff:") == "127.0.0.1", process
        flags = {
            name: psutil.Process(child.pid).environ() for name, child in dagster._children.items()
        }
        batch, subset = (
            "DAGSTER_EVENT_BATCH_SIZE",
            "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS",
        )
        assert {name: (batch in e, subset in e) for name, e in flags.items()} == {
            "code-server": (True, False),
            "webserver": (False, True),
            "daemon": (False, True),
        }
        assert not any("PYTHONDONTWRITEBYTECODE" in e for e in flags.values())
        with Stack(Settings(home=home)) as other:  # attaches, and leaves it running
            again = _start_tiny(other)
            assert again.ui_url == dagster.ui_url == other.ui_url
            assert not again.owned
        assert _ask(dagster.ui_url, "{version}")["version"]
        secrets = (stack.postgres.password, stack.redis.password)
        for log in (home / "log").iterdir():
            assert not any(secret in log.read_text() for secret in secrets)
    assert everything_of(home) == []


def test_a_killed_owner_takes_its_run_workers_along_and_the_run_is_failed(make_home):
    home = make_home()
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        env=environment(home, PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        text=True,
        cwd=home,
    ) as process:
        ui_url = process.stdout.readline().strip()
        launched = _ask(
            ui_url,
            "mutation {launchRun(executionParams: {selector: {repositoryLocationName: "
            '"feature_pipeline", repositoryName: "__repository__", jobName: "slow"}, '
            'runConfigData: "{}"}) {__typename ... on LaunchRunSuccess {run {runId}}}}',
        )["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        run_id = launched["run"]["runId"]
        status = f'{{runOrError(runId: "{run_id}") {{... on Run {{status}}}}}}'
        until(
            lambda: _ask(ui_url, status)["runOrError"]["status"] == "STARTED",
            "the run did not start",
        )
        workers = [p.pid for p in everything_of(home) if p.pid != process.pid]
        process.kill()
    until(lambda: gone(workers), f"left behind: {everything_of(home)}")
    with Stack(Settings(home=home)) as stack:
        _start_tiny(stack)
        with psycopg.connect(stack.postgres.database("dagster")) as connection:
            query = "SELECT status FROM runs WHERE run_id = %s"
            assert connection.execute(query, [run_id]).fetchone() == ("FAILURE",)


def test_a_taken_ui_port_is_an_error_that_names_the_setting(make_home, free_listener):
    with Stack(Settings(home=make_home())) as stack:
        with pytest.raises(StackError, match="FEATURE_PIPELINE_UI_PORT"):
            _start_tiny(stack, ui_port=free_listener)
        assert not stack.dagster.running


def test_definitions_that_cannot_be_loaded_are_one_line(make_home):
    with Stack(Settings(home=make_home())) as stack:
        dagster = DagsterProcesses(stack.home, stack.environment(), module="no_such_module")
        with pytest.raises(StackError, match="code-server ended") as caught:
            dagster.start()
        assert "\n" not in str(caught.value)
        assert not dagster.running


def test_storage_shares_a_given_database_in_a_schema_of_its_own(make_home, database_url, redis_url):
    settings = Settings(home=make_home(), database_url=database_url, redis_url=redis_url)
    with Stack(settings) as stack:
        stack.prepare_dagster()
        _use_instance(stack.environment())
        with psycopg.connect(database_url) as connection:
            tables = connection.execute(
                "SELECT schemaname FROM pg_tables WHERE tablename = 'event_logs'"
            )
            assert tables.fetchall() == [("dagster",)]


def test_the_instance_loads_without_a_warning(make_home):
    with Stack(Settings(home=make_home())) as stack:
        said = _use_instance(stack.environment())
        assert "Warning" not in said, said
        assert json.loads(said.splitlines()[-1]) == {
            "storage": "postgresql+psycopg2",
            "coordinator": "QueuedRunCoordinator",
            "launcher": "DefaultRunLauncher",
            "max_concurrent_runs": 2,
            "run_monitoring": True,
            "free_slots": 60,
            "retries": [True, 2, False],
            "pools": ["op", 2],
            "telemetry": False,
        }


def _use_instance(environment: dict[str, str]) -> str:
    script = """
import json, sys, warnings
warnings.simplefilter("error")
import dagster as dg
with dg.DagsterInstance.get() as i:
    i.get_runs()
    i.create_run_for_job(dg.GraphDefinition(name="empty").to_job())
    pools = i.event_log_storage.get_pool_config()
    print(json.dumps({
        "storage": i.event_log_storage.postgres_url.split(":")[0],
        "coordinator": type(i.run_coordinator).__name__,
        "launcher": type(i.run_launcher).__name__,
        "max_concurrent_runs": i.get_concurrency_config().run_queue_config.max_concurrent_runs,
        "run_monitoring": i.run_monitoring_enabled,
        "free_slots": i.run_monitoring_settings["free_slots_after_run_end_seconds"],
        "retries": [i.run_retries_enabled, i.run_retries_max_retries,
                    i.run_retries_retry_on_asset_or_op_failure],
        "pools": [pools.pool_granularity.value, pools.default_pool_limit],
        "telemetry": i.telemetry_enabled,
    }))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_workspace_names_our_definitions():
    (entry,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    assert entry["python_module"] == {
        "module_name": "feature_pipeline.definitions",
        "attribute": "defs",
        "location_name": "feature_pipeline",
    }


@pytest.fixture
def free_listener():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]
