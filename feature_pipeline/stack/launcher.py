"""Dagster's Celery run launcher, with corrections to how it ends runs and notices dead workers.

Named in the instance configuration of a deployment with workers (docs/how-to/scale-out.md), and so
loaded by every process of Dagster there; nothing of the pipeline is imported here. A run is one
task of Celery: its steps share one process of one worker, as everywhere else.

dagster-celery 0.29 asks Celery's result backend alone whether a run still goes on. A worker that is
gone, with its machine or its container, never takes back that it has started a run, and the run
would count as running until `max_runtime_seconds`. Here the worker is asked itself. And it is told
to Dagster that a run is being cancelled: what was cancelled would otherwise have failed, and be
tried again.
"""

from __future__ import annotations

from typing import Any

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

_ATTEMPTS = 3


class Launcher(CeleryRunLauncher):
    """Starts runs as tasks of Celery; configured as Dagster's own.

    Args:
        worker_timeout_seconds: a worker that has not answered for so long is dead.
    """

    def __init__(self, worker_timeout_seconds: float = 30.0, **options: Any) -> None:
        super().__init__(**options)
        self.worker_timeout_seconds = worker_timeout_seconds

    @classmethod
    def config_type(cls) -> Any:
        """As `dagster.yaml` has it."""
        timeout = dg.Field(
            float,
            is_required=False,
            default_value=30.0,
            description="A worker that has not answered for so long is dead.",
        )
        theirs: Any = super().config_type()
        return {**theirs, "worker_timeout_seconds": timeout}

    def terminate(self, run_id: str) -> bool:
        """Cancel a run: its worker interrupts it; one that waits for a worker is never started."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        return super().terminate(run_id)

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether the worker of a run that has started still executes it."""
        found = super().check_run_worker_health(run)
        if found.status != WorkerStatus.RUNNING:
            return found
        task = run.tags[DAGSTER_CELERY_TASK_ID_TAG]
        started = self.celery.AsyncResult(task).info
        worker = started.get("hostname") if isinstance(started, dict) else None
        if worker is None:  # it has ended since
            return super().check_run_worker_health(run)
        answer = self._ask(worker, task)
        if answer is None:
            silent = f"{worker} has not answered for {self.worker_timeout_seconds:g} s"
            return CheckRunHealthResult(WorkerStatus.FAILED, silent)
        if task in answer:
            return found
        # Either it has ended since, or another worker of that name was started.
        found = super().check_run_worker_health(run)
        if found.status != WorkerStatus.RUNNING:
            return found
        return CheckRunHealthResult(WorkerStatus.FAILED, f"{worker} was started again")

    def _ask(self, worker: str, task: str) -> dict[str, Any] | None:
        """What a worker knows of a task; None where it does not answer.

        Repeated: a question that finds the worker reconnecting to the broker is lost.
        """
        for _ in range(_ATTEMPTS):
            inspect = self.celery.control.inspect(
                [worker], timeout=self.worker_timeout_seconds / _ATTEMPTS
            )
            answers = inspect.query_task(task) or {}
            if worker in answers:
                return dict(answers[worker])
        return None
