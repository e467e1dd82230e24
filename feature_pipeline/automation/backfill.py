"""Backfills from outside the UI: Dagster runs over a range of partitions, in this machine's
processes, with their progress read from the ledger.

The runs are those of the real graph on the real instance: they show in the UI, with their events
and materialisations. Cutting a range into runs follows the same setting as backfills from the UI.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.partitions import days
from feature_pipeline.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from dagster import DagsterInstance

    from feature_pipeline.storage.ledger import Ledger

PARALLEL_RUNS = 2

PROCESS_TAG = "feature_pipeline/process"
"""Run tag: the process that executes it, as pid@host."""

_POLL_S = 0.3
_GRACE_S = 10.0


class BackfillError(FeaturePipelineError):
    """A run of a backfill failed; what other runs wrote stays."""


@dataclass(frozen=True)
class Chunk:
    """One run: the days [start, end) of some assets."""

    run_id: str
    start: date
    end: date
    assets: tuple[str, ...]
    symbols: tuple[str, ...]

    @property
    def partitions(self) -> int:
        """Days times assets."""
        return (self.end - self.start).days * len(self.assets)


def chunks(
    start: date,
    end: date,
    *,
    assets: Sequence[str] = (),
    symbols: Sequence[str] = (),
    days_per_run: int = 0,
) -> list[Chunk]:
    """The runs that cover the days [start, end), oldest first.

    Raises:
        BackfillError: an asset is unknown.
    """
    from dagster._core.utils import make_new_run_id

    unknown = [asset for asset in assets if asset not in TABLES]
    if unknown:
        raise BackfillError(f"there is no asset {unknown[0]!r}; there are {', '.join(TABLES)}")
    step = days_per_run or (end - start).days
    return [
        Chunk(
            make_new_run_id(),
            first,
            min(first + timedelta(days=step), end),
            tuple(assets) or tuple(TABLES),
            tuple(symbols),
        )
        for first in days(start, end)[::step]
    ]


def backfill(
    settings: Settings,
    plan: Sequence[Chunk],
    environment: Mapping[str, str],
    progress: Callable[[int], None],
    log: Path | None = None,
) -> None:
    """Run the chunks, a few at a time, oldest first.

    Args:
        settings: where the stores are.
        plan: see `chunks`.
        environment: of the processes that run them (`Stack.environment`).
        progress: told the number of partitions done so far, every now and then; in the end all.
        log: where the runs' console output goes; by default to ours.

    Raises:
        BackfillError: a run failed; names the step and why.
        DatabaseError: the ledger cannot be read.
    """
    from feature_pipeline.resources import store

    held = store(settings)
    # Fresh processes: Dagster and Polars keep threads, which a fork would not survive.
    with (
        held.database,
        ProcessPoolExecutor(
            min(PARALLEL_RUNS, len(plan)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_become_worker,
            initargs=(dict(environment), os.getpid(), log),
        ) as pool,
    ):
        runs = {pool.submit(_run, chunk): chunk for chunk in plan}
        try:
            _follow(runs, held.ledger, progress)
        except BaseException as error:
            if not isinstance(error, Exception):  # told to stop: do not wait for what still runs
                _end(list((pool._processes or {}).values()))
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _follow(
    runs: Mapping[Future[str | None], Chunk], ledger: Ledger, progress: Callable[[int], None]
) -> None:
    """Wait for the runs, tell how far they are, and stop at the first that failed."""
    finished, furthest, running = 0, 0, set(runs)
    while running:
        done, running = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        for future in done:
            try:
                failure = future.result()
            except BrokenProcessPool:
                raise BackfillError(
                    "a process of the backfill was killed, out of memory perhaps; run the same "
                    "backfill again: what is written stays, and what is missing is written"
                ) from None
            if failure:
                raise BackfillError(failure)
            finished += runs[future].partitions
        # A run writes history that consumers need as well, and does not touch what is right.
        under_way = (
            min(chunk.partitions, ledger.written_by(chunk.run_id))
            for chunk in (runs[future] for future in running if future.running())
        )
        # Of days that two runs need as history, the ledger names whoever came last.
        furthest = max(furthest, finished + sum(under_way))
        progress(furthest)


def _end(workers: Sequence[BaseProcess]) -> None:
    """Have the runs cancelled, as Dagster does it on SIGTERM; kill what does not listen."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + _GRACE_S
    for worker in workers:
        worker.join(max(deadline - time.monotonic(), 0))
        worker.kill()


def _become_worker(environment: dict[str, str], parent: int, log: Path | None) -> None:
    """Take on the stack's environment, and end with the command that started us."""
    from feature_pipeline.stack.processes import die_with_parent

    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
    os.environ.update(environment)
    os.setpgrp()  # Ctrl-C is the parent's to handle, and Dagster would not leave it ignored
    # SIGTERM would end a run and leave the process; what a killed run has written is whole.
    die_with_parent(signal.SIGKILL, parent)


def _run(chunk: Chunk) -> str | None:
    """Run one chunk; why it failed, in one line, or None."""
    import dagster as dg
    from dagster._core.storage.tags import (
        ASSET_PARTITION_RANGE_END_TAG,
        ASSET_PARTITION_RANGE_START_TAG,
    )

    from feature_pipeline.definitions import JOB, build_defs
    from feature_pipeline.storage.io_manager import SYMBOLS_TAG

    tags = {
        ASSET_PARTITION_RANGE_START_TAG: chunk.start.isoformat(),
        ASSET_PARTITION_RANGE_END_TAG: (chunk.end - timedelta(days=1)).isoformat(),
    }
    tags[PROCESS_TAG] = f"{os.getpid()}@{socket.gethostname()}"
    if chunk.symbols:
        tags[SYMBOLS_TAG] = ",".join(chunk.symbols)
    with dg.DagsterInstance.get() as instance:
        _fail_dead_runs(instance)
        result = (
            build_defs()
            .resolve_job_def(JOB)
            .execute_in_process(
                instance=instance,
                run_id=chunk.run_id,
                tags=tags,
                asset_selection=[dg.AssetKey(asset) for asset in chunk.assets],
                raise_on_error=False,
            )
        )
    for event in result.all_events:
        if event.is_step_failure:
            return f"{event.step_key}, {chunk.start} to {chunk.end - timedelta(days=1)}: " + _why(
                event.step_failure_data.error
            )
    return None if result.success else f"the run {chunk.run_id} failed; see its log"


def _fail_dead_runs(instance: DagsterInstance) -> None:
    """Fail the runs of backfills that were killed: as long as they count as running, they hold
    places in the queue."""
    import dagster as dg

    under_way = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    for run in instance.get_runs(dg.RunsFilter(statuses=under_way)):
        pid, _, host = run.tags.get(PROCESS_TAG, "").partition("@")
        if host == socket.gethostname() and not Path(f"/proc/{pid}").exists():
            instance.report_run_failed(run, "The process that executed this run was killed.")


def _why(error: object) -> str:
    """The innermost cause: Dagster wraps what a step raised in its own errors."""
    while getattr(error, "cause", None) is not None:
        error = error.cause  # type: ignore[attr-defined]
    message = str(getattr(error, "message", error))
    # An error of ours is written for people; of any other the name says something.
    return " ".join(re.sub(r"^feature_pipeline\.[\w.]+: ", "", message).split())
