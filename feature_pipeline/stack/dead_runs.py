"""Marks runs as failed that nothing executes any more, and frees what they held.

Nobody else would notice before `max_runtime_seconds`, and until then they would hold their places
in the queue and in the pools. There are two kinds: a run that says which process of this machine
executes it is dead with that process; a run that a code server launched is dead once that code
server is gone. The latter is known before Dagster's processes come up, when this is run in their
environment; it also makes Dagster's tables, so that webserver and daemon do not race to make them:

    python -m feature_pipeline.stack.dead_runs
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path

import dagster as dg
from dagster._core.storage.tags import GRPC_INFO_TAG

PROCESS_TAG = "feature_pipeline/process"
"""Run tag: the process that executes it, as pid@host."""

UNDER_WAY = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def process_tag() -> dict[str, str]:
    """The tag of a run that this process executes."""
    return {PROCESS_TAG: f"{os.getpid()}@{socket.gethostname()}"}


def fail_dead_runs(
    instance: dg.DagsterInstance,
    runs: Iterable[dg.DagsterRun] | None = None,
    *,
    no_code_server: bool = False,
) -> list[str]:
    """Fail the runs under way whose process has gone.

    Args:
        instance: whose runs.
        runs: those to look at; all that are under way unless given.
        no_code_server: no code server is up, and so no run that one launched.

    Returns:
        The ids of the failed runs.
    """
    if runs is None:
        runs = instance.get_runs(dg.RunsFilter(statuses=UNDER_WAY))
    failed = []
    for run in runs:
        if run.status not in UNDER_WAY:
            continue
        gone = _process_has_gone(run.tags.get(PROCESS_TAG, ""))
        if gone and run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, "The process that executed this run is gone.")
        elif gone:
            instance.report_run_failed(run, "The process that executed this run was killed.")
        elif no_code_server and GRPC_INFO_TAG in run.tags:
            instance.report_run_failed(run, "The code server that executed this run was killed.")
        else:
            continue
        failed.append(run.run_id)
    _free_places(instance)
    return failed


def _free_places(instance: dg.DagsterInstance) -> None:
    """Free the pools of runs that have ended: without a daemon nobody else does."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    for run_id in storage.get_concurrency_run_ids():
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            storage.free_concurrency_slots_for_run(run_id)


def _process_has_gone(process: str) -> bool:
    pid, _, host = process.partition("@")
    if host != socket.gethostname():
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"  # dead, and its parent has not asked yet


if __name__ == "__main__":
    with dg.DagsterInstance.get() as current:
        fail_dead_runs(current, no_code_server=True)
