"""Looks at processes from outside: who lives, who listens, what they show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import redis

from feature_pipeline.stack import Stack, processes
from feature_pipeline.stack.dagster import RUN_WORKER_FLAGS

CLI = [sys.executable, "-m", "feature_pipeline.cli"]


def until(condition: Callable[[], object], what: str, seconds: float = 40.0) -> None:
    """Wait until it holds; most of the time without looking, however long a look takes."""
    end = time.monotonic() + seconds
    while True:
        started = time.monotonic()
        try:
            assert condition(), what
            return
        except AssertionError:
            if time.monotonic() > end:
                raise
        time.sleep(max(0.05, 4 * (time.monotonic() - started)))


def environment(home: Path, **more: str) -> dict[str, str]:
    """An environment that knows that home and nothing of another stack."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FEATURE_PIPELINE_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept | {"FEATURE_PIPELINE_HOME": str(home)} | more


def servers(home: Path) -> list[int]:
    """Process ids of the servers that the state files of a home name."""
    states = [processes.read_private(home / f"{name}.json") for name in ("postgres", "redis")]
    return [state["pid"] for state in states if state.get("pid") and state.get("ready")]


def everything_of(home: Path) -> list[psutil.Process]:
    """Every process that has to do with a home: by its command line, directory or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            shown = " ".join(process.cmdline()) + process.cwd()
            if str(home) in shown or process.environ().get("FEATURE_PIPELINE_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


def gone(pids: list[int]) -> bool:
    """Whether none of them lives."""
    return not any(psutil.pid_exists(pid) and _lives(pid) for pid in pids)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def packages() -> dict[str, str]:
    """What lets another interpreter import what this one does."""
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@contextmanager
def owner(
    home: Path, python: str = sys.executable, **options: object
) -> Iterator[subprocess.Popen[str]]:
    """`feature-pipeline run -- sleep 1000`, once its servers are up."""
    process = subprocess.Popen(
        [python, *CLI[1:], "run", "--", "sleep", "1000"],
        env=environment(home) | (packages() if python != sys.executable else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    try:
        until(
            lambda: len(servers(home)) == 2 or process.poll() is not None,
            f"the servers of {home} did not come up",
        )
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        yield process
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()


def hurry(stack: Stack) -> None:
    """Put a daemon in the place of Dagster's own that looks every second, not every thirty, and
    has neither schedules nor sensors."""
    dagster = stack.dagster
    assert dagster is not None
    processes.stop(dagster._children["daemon"], signal.SIGTERM, 20)
    module, port = "feature_pipeline_tests.stack.brisk_daemon", str(dagster._code_port)
    kept = {k: v for k, v in stack.environment().items() if k not in RUN_WORKER_FLAGS}
    dagster._children["daemon"] = processes.spawn(
        [sys.executable, "-m", module, port],
        log=dagster.log("daemon"),
        cwd=stack.home / "dagster",
        env=kept | packages(),
        death_signal=signal.SIGTERM,
    )


def answers(database_url: str, redis_url: str) -> bool:
    """Whether both servers do."""
    with psycopg.connect(database_url, connect_timeout=5) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()
    return True
