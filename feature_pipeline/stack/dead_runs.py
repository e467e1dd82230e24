"""Marks runs as failed whose worker went down with its code server.

Nobody else would notice before `max_runtime_seconds`, and until then they would hold their places
in the queue. Run once before Dagster's processes come up, in their environment; it also makes
Dagster's tables, so that webserver and daemon do not race to make them:

    python -m feature_pipeline.stack.dead_runs
"""

from __future__ import annotations

import dagster as dg
from dagster._core.storage.tags import GRPC_INFO_TAG

UNDER_WAY = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def fail_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Fail the runs that a code server had launched, none of which is there any more.

    A run executed in another process (`dagster job execute`, our own backfill) bears no mark of a
    code server and is left alone.

    Returns:
        The ids of the failed runs.
    """
    dead = [
        run
        for run in instance.get_runs(dg.RunsFilter(statuses=UNDER_WAY))
        if GRPC_INFO_TAG in run.tags
    ]
    for run in dead:
        instance.report_run_failed(run, "The code server that executed this run was killed.")
    return [run.run_id for run in dead]


if __name__ == "__main__":
    with dg.DagsterInstance.get() as current:
        fail_dead_runs(current)
