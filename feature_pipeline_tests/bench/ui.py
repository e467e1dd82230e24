"""What Dagster costs around the graph: loading, starting, ticking, asking, backfilling, publishing.

Everything goes through the real processes and the GraphQL that the web UI sends. The market is the
sample: ten years of it are recorded.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis
import tenacity

from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.online import keys
from feature_pipeline.settings import Settings
from feature_pipeline.stack import Stack, processes
from feature_pipeline.storage.migrations import migrate
from feature_pipeline_tests.bench import Row
from feature_pipeline_tests.graphql import GraphQL

FIRST = (date(2003, 1, 1), date(2008, 1, 1))
SECOND = (date(2008, 1, 1), date(2013, 1, 1))
PUBLISHED_DAYS = [date(2013, 1, day) for day in (2, 3, 4, 7, 8, 9, 10, 11)]
_WITHIN_S = 600
_IMPORT = "import feature_pipeline.definitions"
_TICKS = """
import statistics, time
from datetime import UTC, datetime
import dagster as dg
from feature_pipeline.definitions import defs
repository = defs.get_repository_def()
times = []
for turn in range(3):
    for schedule in repository.schedule_defs:
        at = datetime(2012, 6, 14, 20, 20, tzinfo=UTC)
        resources = defs.resources or {}
        needed = {k: resources[k] for k in schedule.required_resource_keys}
        with dg.build_schedule_context(
            scheduled_execution_time=at, repository_def=repository, resources=needed,
            instance=dg.DagsterInstance.get(),
        ) as context:
            started = time.perf_counter()
            schedule.evaluate_tick(context)
            times.append(time.perf_counter() - started)
print("RESULT", statistics.median(times[len(times) // 3:]) * 1e3)
"""


def run() -> Iterator[Row]:
    """All of it, on stacks of its own."""
    with tempfile.TemporaryDirectory(prefix="feature_pipeline.bench.") as home:
        settings = Settings(home=Path(home).resolve(), database_url=None, redis_url=None)
        with Stack(settings) as stack:
            migrate(stack.database_url)
            stack.prepare_dagster()
            yield _definitions(stack)
            yield _ticks(stack)
            yield _dagster_dev(stack)
            stack.start_dagster()
            yield from _through_the_ui(stack)
        stack.delete()
    yield _first_picture()


def _definitions(stack: Stack) -> Row:
    """CPU seconds of a fresh process that imports the definitions, against its libraries alone."""
    libraries = "import dagster, polars, pandas, psycopg, redis, exchange_calendars"
    ours, theirs = [], []
    for _ in range(3):
        theirs.append(_cpu(stack, libraries))
        ours.append(_cpu(stack, _IMPORT))
    value, floor = statistics.median(ours), statistics.median(theirs)
    what = "definitions: loaded in a fresh process; floor: its libraries imported"
    return Row(what, value, "CPU s", floor, floor / value)


def _cpu(stack: Stack, code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], env=stack.environment(), check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _ticks(stack: Stack) -> Row:
    done = subprocess.run(
        [sys.executable, "-c", _TICKS],
        env=stack.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the ticks failed:\n{done.stderr[-3000:]}")
    value = float(done.stdout.rsplit("RESULT", 1)[1])
    return Row("schedules: one tick, median over all of them", value, "ms")


def _dagster_dev(stack: Stack) -> Row:
    """CPU seconds of all processes until the UI has the graph; floor: a graph of one asset."""
    workspace = Path("workspace.yaml").resolve()
    tiny = ["-m", "feature_pipeline_tests.stack.tiny_definitions"]
    value, floor = _dev_cpu(stack, ["-w", str(workspace)]), _dev_cpu(stack, tiny)
    what = "dagster dev: until the UI has the graph; floor: a graph of one asset"
    return Row(what, value, "CPU s", floor, floor / value)


def _dev_cpu(stack: Stack, arguments: list[str]) -> float:
    port = processes.free_port()
    program = Path(sys.executable).with_name("dagster")
    command = [str(program), "dev", "-h", processes.LOOPBACK, "-p", str(port), *arguments]
    child = subprocess.Popen(
        command,
        env=stack.environment() | {"PYTHONPATH": str(Path.cwd())},
        cwd=stack.environment()["DAGSTER_HOME"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    process = psutil.Process(child.pid)
    try:
        GraphQL(f"http://{processes.LOOPBACK}:{port}").wait_for_the_graph(_WITHIN_S)
        family = [process, *process.children(recursive=True)]
        return sum(sum(member.cpu_times()[:4]) for member in family if member.is_running())
    finally:
        family = process.children(recursive=True)
        child.terminate()
        child.wait(60)
        for member in psutil.wait_procs(family, timeout=20)[1]:
            member.kill()


def _through_the_ui(stack: Stack) -> Iterator[Row]:
    assert stack.ui_url
    ui = GraphQL(stack.ui_url)
    with psycopg.connect(stack.database_url, autocommit=True) as database:
        started = time.perf_counter()
        backfill = ui.launch_backfill(list(TABLES), *FIRST)
        _until(lambda: _complete(database, FIRST))
        ready = time.perf_counter() - started
        yield Row("backfill: five years, whole graph, from the UI, until data is ready", ready, "s")
        ui.wait_for_backfill(backfill, _WITHIN_S)
        ui.wait_for_backfill(ui.launch_backfill(list(TABLES), *SECOND), _WITHIN_S)
        asked = []
        for _ in range(5):
            started = time.perf_counter()
            ui.partition_statuses(list(TABLES))
            asked.append(time.perf_counter() - started)
        what = f"UI: partitions of ten years x {len(TABLES)} assets"
        yield Row(what, statistics.median(asked) * 1e3, "ms")
        yield _publish_delay(stack, ui)


def _complete(database: psycopg.Connection, days: tuple[date, date]) -> bool:
    row = database.execute(
        "SELECT count(DISTINCT (asset, day)) FROM partition_ledger WHERE day >= %s AND day < %s",
        days,
    ).fetchone()
    return row is not None and row[0] >= len(TABLES) * (days[1] - days[0]).days


def _publish_delay(stack: Stack, ui: GraphQL) -> Row:
    """From the event of the newest partition to the key that serving reads."""
    delays = []
    key = keys.vector_key("1d", "AAPL")
    with redis.Redis.from_url(stack.redis_url) as client:
        for day in PUBLISHED_DAYS:
            before = client.get(key)
            ui.launch_run(list(TABLES), day, day + timedelta(days=1))
            published = _until(lambda old=before: client.get(key) != old and time.time(), 0.02)
            event = ui.newest_materialization("state_vectors_1d")
            delays.append(published - event["timestamp"])
    value = statistics.median(delays)
    what = "publish: from the materialisation to Redis, sensor of the real daemon; limit: 3 s"
    return Row(what, value, "s", 3.0, 3.0 / value, 1.0)


def _first_picture() -> Row:
    """From the start of `make demo`'s program, packages installed, to a plot that the UI serves."""
    with tempfile.TemporaryDirectory(prefix="feature_pipeline.bench.") as name:
        home = Path(name).resolve()
        settings = Settings(home=home, database_url=None, redis_url=None)
        environment = os.environ | {"FEATURE_PIPELINE_HOME": str(home)}
        started = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-m", "feature_pipeline.cli", "demo"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            address: Any = _until(lambda: Stack(settings).ui_url)
            ui = GraphQL(address)
            ui.wait_for_the_graph(_WITHIN_S)
            _until(lambda: "data:image/" in str(ui.newest_materialization("indicators_1d")))
            value = time.perf_counter() - started
        finally:
            child.terminate()
            child.wait(60)
        Stack(settings).delete()
    what = "demo: from nothing to the first picture in the UI; limit: 90 s"
    return Row(what, value, "s", 90.0, 90.0 / value, 1.0)


def _until(look: Any, every: float = 0.1) -> Any:
    found = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda result: not result),
        wait=tenacity.wait_fixed(every),
        stop=tenacity.stop_after_delay(_WITHIN_S),
        retry_error_callback=lambda _: None,
    )(look)
    if not found:
        raise RuntimeError(f"nothing within {_WITHIN_S} s, at {datetime.now(UTC)}")
    return found
