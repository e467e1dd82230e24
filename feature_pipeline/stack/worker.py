"""The Celery application of the workers: `celery -A feature_pipeline.stack.worker worker`.

Broker, queue and options are those of the run launcher in the instance configuration, so that they
are written down once. Nothing of the pipeline is imported here: Celery forks its processes from
this one, and Polars' threads would not survive that.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

import dagster as dg
from celery.signals import task_postrun, task_prerun
from dagster._serdes import unpack_value
from dagster_celery.tasks import create_execute_job_task, create_resume_job_task

from feature_pipeline.errors import StackError
from feature_pipeline.stack.launcher import Launcher

_log = logging.getLogger(__name__)
_LOOK_S = 2.0
_OVER = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE)

with dg.DagsterInstance.get() as _instance:
    if not isinstance(_instance.run_launcher, Launcher):
        raise StackError(
            "the run_launcher of DAGSTER_HOME/dagster.yaml is not feature_pipeline.stack.launcher; "
            "see docs/how-to/scale-out.md"
        )
    app = _instance.run_launcher.celery

create_execute_job_task(app)
create_resume_job_task(app)

_ended: dict[str, threading.Event] = {}


@task_prerun.connect
def _watch_run(task_id: str, kwargs: dict[str, Any], **_: Any) -> None:
    """Interrupt the run when it is cancelled, or when Dagster has given it up."""
    (packed,) = kwargs.values()
    told: Any = unpack_value(packed)
    _ended[task_id] = ended = threading.Event()
    threading.Thread(
        target=_interrupt_when_over, args=(told.run_id, ended), name="cancel", daemon=True
    ).start()


@task_postrun.connect
def _leave_run(task_id: str, **_: Any) -> None:
    if ended := _ended.pop(task_id, None):
        ended.set()


def _interrupt_when_over(run_id: str, ended: threading.Event) -> None:
    """Interrupt this process as long as it goes on with a run that is over for Dagster: whatever
    keeps Dagster from being asked, the run must not outlive it."""
    while not ended.is_set():
        try:
            _watch_until(run_id, ended)
        except Exception as error:
            line = str(error).partition("\n")[0]
            _log.warning("run %s: cannot ask whether it is over, will ask again: %s", run_id, line)
            ended.wait(_LOOK_S)


def _watch_until(run_id: str, ended: threading.Event) -> None:
    """Once is not enough: a step with a retry policy takes an interruption for a failure, and is
    tried again. Not at first sight: a run that has just failed by itself is about to end."""
    with dg.DagsterInstance.get() as instance:
        seen = False
        while not ended.wait(_LOOK_S):
            run = instance.get_run_by_id(run_id)
            over = run is None or run.status in _OVER
            if over and seen:
                os.kill(os.getpid(), signal.SIGTERM)
            seen = over
