"""Backfills from outside the UI: Dagster runs over ranges of partitions, in this machine's
processes, with their progress read from the ledger.

The runs are those of the real graph on the real instance: they show in the UI, with their events
and materialisations. What there is to do is `estimate.py`'s; here it is cut into runs (a long range
by the same setting as backfills from the UI), executed, followed, and cancelled when told to stop.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_pipeline.automation.estimate import Estimate
from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.features.catalogue import ALL_TABLES, TABLES
from feature_pipeline.partitions import days
from feature_pipeline.settings import Settings
from feature_pipeline.stack import processes

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess
    from multiprocessing.synchronize import Event

    from dagster import DagsterInstance

    from feature_pipeline.storage.database import Database
    from feature_pipeline.storage.ledger import Ledger
    from feature_pipeline.universe import Universe

PARALLEL_RUNS = 2

ROWS = ("input", "written", "unchanged", "duplicate", "unfinished", "quarantined", "fenced")

_POLL_S = 0.3
_GRACE_S = 20.0
_AGAIN_S = 5.0
_cancelled: Event | None = None
"""In a worker: set when the runs are to be cancelled."""


class BackfillError(FeaturePipelineError):
    """A run of a backfill failed; what other runs wrote stays. `report` says what that is."""

    report: Report | None = None


@dataclass(frozen=True)
class Chunk:
    """One run: the days [start, end) of some assets.

    Args:
        run_id: Dagster's.
        start, end: the days.
        assets: which ones.
        symbols: ids that sources are asked for; empty - everybody.
        only_missing: sources are asked for nothing that is there.
        turn: chunks of a later turn wait for those of the earlier ones.
    """

    run_id: str
    start: date
    end: date
    assets: tuple[str, ...]
    symbols: tuple[str, ...]
    only_missing: bool = False
    turn: int = 0

    @property
    def partitions(self) -> int:
        """Days times assets."""
        return (self.end - self.start).days * len(self.assets)


@dataclass(frozen=True)
class Report:
    """What a backfill did: its runs with their states, partitions and rows, and how long it took.

    `rows` has the counts of `ROWS` over all tables.
    """

    runs: tuple[Mapping[str, Any], ...] = ()
    partitions: int = 0
    rows: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(ROWS, 0))
    seconds: float = 0.0


Progress = Callable[[Mapping[str, int]], None]
"""Told asset -> partitions done so far, every now and then."""


# -- cutting --------------------------------------------------------------------------------------


def chunks(
    start: date,
    end: date,
    *,
    assets: Sequence[str] = (),
    symbols: Sequence[str] = (),
    days_per_run: int = 0,
    only_missing: bool = False,
) -> list[Chunk]:
    """The runs that cover the days [start, end), oldest first.

    Raises:
        BackfillError: an asset is unknown.
    """
    from dagster._core.utils import make_new_run_id

    step = days_per_run or (end - start).days
    return [
        Chunk(
            make_new_run_id(),
            first,
            min(first + timedelta(days=step), end),
            known_assets(assets) or tuple(TABLES),
            tuple(symbols),
            only_missing,
        )
        for first in days(start, end)[::step]
    ]


def known_assets(names: Iterable[str]) -> tuple[str, ...]:
    """The names, every one of an asset that can be backfilled, in the graph's order.

    Raises:
        BackfillError: one is unknown.
    """
    wanted = set(names)
    unknown = sorted(wanted - set(ALL_TABLES))
    if unknown:
        raise BackfillError(f"there is no asset {unknown[0]!r}; there are {', '.join(TABLES)}")
    return tuple(asset for asset in ALL_TABLES if asset in wanted)


def assets_of(timeframe: str, universe: Universe) -> tuple[str, ...]:
    """What a backfill of a timeframe writes: its bars and what derives from them, and the events
    that those read.

    Raises:
        BackfillError: the universe has no such timeframe.
    """
    if timeframe not in universe.timeframes:
        raise BackfillError(
            f"there are no bars of {timeframe!r}, only of {', '.join(universe.timeframes)}; add it "
            "to `timeframes` in universe.yaml"
        )
    return tuple(name for name, t in ALL_TABLES.items() if t.timeframe in (None, timeframe))


def runs_for(
    estimate: Estimate,
    *,
    symbols: Sequence[str] = (),
    days_per_run: int = 0,
    refetch: bool = False,
) -> list[Chunk]:
    """The runs that do the work of an estimate, and nothing that is done already.

    One turn per span of the estimate; within it runs of so many days, or as many as the estimate
    says. Where providers are asked over the network, every run is a turn.
    """
    days_per_run = days_per_run or estimate.days_per_run
    plan: list[Chunk] = []
    for turn, (first, end) in enumerate(estimate.spans):
        # History of before the first day asked for comes with the first run.
        since = first if turn else date.min
        assets = tuple(
            one.asset
            for one in estimate.work.values()
            # What will follow from corrections is known when they are there.
            if refetch or one.days.is_between(since, end, closed="left").any()
        )
        plan += (
            replace(chunk, turn=turn)
            for chunk in chunks(
                first,
                end,
                assets=assets,
                symbols=symbols,
                days_per_run=days_per_run,
                only_missing=not refetch,
            )
        )
    if estimate.asks:
        plan = [replace(chunk, turn=turn) for turn, chunk in enumerate(plan)]
    return plan


# -- running --------------------------------------------------------------------------------------


def backfill(
    settings: Settings,
    plan: Sequence[Chunk],
    environment: Mapping[str, str],
    progress: Progress = lambda _: None,
    log: Path | None = None,
) -> Report:
    """Run the chunks, a few at a time, oldest first.

    Told to stop (`KeyboardInterrupt`, `SystemExit`) it cancels its runs, as the UI would, and
    passes that on; the same backfill again goes on from there.

    Args:
        settings: where the stores are.
        plan: see `runs_for`, or `chunks`.
        environment: of the processes that run them (`Stack.environment`).
        progress: see `Progress`; never told less than before.
        log: where the runs' console output goes; by default to ours.

    Raises:
        BackfillError: a run failed; names the step and why.
        DatabaseError: the ledger cannot be read.
    """
    from feature_pipeline.resources import store

    if not plan:
        return Report()
    held, started, states = store(settings), time.monotonic(), dict[str, str]()
    with held.database:
        follow = _Follower(held.ledger, plan, progress)
        try:
            for _, turn in groupby(plan, lambda chunk: chunk.turn):
                _in_parallel(list(turn), environment, log, states, follow)
        except BackfillError as error:
            error.report = _report(held.database, plan, states, time.monotonic() - started)
            raise
        return _report(held.database, plan, states, time.monotonic() - started)


def _in_parallel(
    turn: Sequence[Chunk],
    environment: Mapping[str, str],
    log: Path | None,
    states: dict[str, str],
    follow: _Follower,
) -> None:
    # Fresh processes: Dagster and Polars keep threads, which a fork would not survive.
    context = multiprocessing.get_context("spawn")
    cancel = context.Event()
    with ProcessPoolExecutor(
        min(PARALLEL_RUNS, len(turn)),
        mp_context=context,
        initializer=_become_worker,
        initargs=(dict(environment), os.getpid(), log, cancel),
    ) as pool:
        runs = {pool.submit(_run, chunk): chunk for chunk in turn}
        try:
            _wait(runs, states, follow)
        except BaseException as error:
            with processes.undisturbed():
                if not isinstance(error, Exception):  # told to stop: not only to start no more
                    processes.heard()
                    workers = list((pool._processes or {}).values())
                    _cancel(runs, workers, cancel, environment, log)
                pool.shutdown(wait=True, cancel_futures=True)
            for future, chunk in runs.items():
                if future.done() and not future.cancelled() and future.exception() is None:
                    states[chunk.run_id] = future.result().status
            raise


def _wait(
    runs: Mapping[Future[_Outcome], Chunk], states: dict[str, str], follow: _Follower
) -> None:
    """Wait for the runs, tell how far they are, and stop at the first that failed."""
    running = set(runs)
    while running:
        done, running = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        for future in done:
            try:
                outcome = future.result()
            except BrokenProcessPool:
                raise BackfillError(
                    "a process of the backfill was killed, out of memory perhaps; run the same "
                    "backfill again: what is written stays, and what is missing is written"
                ) from None
            states[runs[future].run_id] = outcome.status
            if outcome.failure:
                raise BackfillError(outcome.failure)
        follow.look()


class _Follower:
    """Tells how far the runs are, by the ledger, and never less than before."""

    def __init__(self, ledger: Ledger, plan: Sequence[Chunk], progress: Progress) -> None:
        self._ledger = ledger
        self._run_ids = [chunk.run_id for chunk in plan]
        self._progress = progress
        self._furthest: dict[str, int] = {}

    def look(self) -> None:
        for asset, done in self._ledger.progress(self._run_ids).items():
            self._furthest[asset] = max(self._furthest.get(asset, 0), done)
        self._progress(dict(self._furthest))


def _report(
    database: Database, plan: Sequence[Chunk], states: Mapping[str, str], seconds: float
) -> Report:
    ids = [chunk.run_id for chunk in plan]
    with database.connection() as connection:
        sums = connection.execute(
            "SELECT "
            + ", ".join(f"coalesce(sum({name}), 0)::bigint" for name in ROWS)
            + " FROM write_reports WHERE run_id = ANY(%s)",
            [ids],
        ).fetchone()
        partitions = connection.execute(
            "SELECT count(DISTINCT (asset, day)) FROM partition_ledger WHERE run_id = ANY(%s)",
            [ids],
        ).fetchone()
    assert sums is not None
    assert partitions is not None
    return Report(
        tuple(
            {
                "run_id": chunk.run_id,
                "status": states.get(chunk.run_id, "NOT_STARTED"),
                "start": chunk.start,
                "end": chunk.end - timedelta(days=1),
                "assets": list(chunk.assets),
            }
            for chunk in plan
        ),
        int(partitions[0]),
        dict(zip(ROWS, map(int, sums), strict=True)),
        seconds,
    )


def _cancel(
    runs: Iterable[Future[_Outcome]],
    workers: Sequence[BaseProcess],
    cancel: Event,
    environment: Mapping[str, str],
    log: Path | None,
) -> None:
    """Have the runs cancelled as the UI does it; kill what does not listen, and say so to Dagster.

    A worker that was killed leaves its run behind: one more process settles it.
    """
    cancel.set()
    wait([future for future in runs if not future.cancel()], timeout=_GRACE_S)
    deaf = [worker for worker in workers if worker.is_alive()]
    if any(future.running() for future in runs):
        for worker in deaf:
            worker.kill()
            worker.join()
        context = multiprocessing.get_context("spawn")
        settle = context.Process(target=_settle, args=(dict(environment), os.getpid(), log))
        settle.start()
        settle.join(_GRACE_S)
        settle.kill()


# -- in a worker ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Outcome:
    """Dagster's status of a run, and why it failed, in one line."""

    status: str
    failure: str | None = None


def _become_worker(
    environment: dict[str, str], parent: int, log: Path | None, cancel: Event | None
) -> None:
    """Take on the stack's environment, and end with the command that started us."""
    global _cancelled
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
    os.environ.update(environment)
    os.setpgrp()  # Ctrl-C is the parent's to handle, and Dagster would not leave it ignored
    # What a killed run has written is whole.
    processes.die_with_parent(signal.SIGKILL, parent)
    # Dagster takes SIGTERM as the wish to cancel while it executes; before and after, it is late.
    signal.signal(signal.SIGTERM, lambda *_: None)
    _cancelled = cancel


def _settle(environment: dict[str, str], parent: int, log: Path | None) -> None:
    """Close the runs of processes that are gone."""
    _become_worker(environment, parent, log, None)
    import dagster as dg

    from feature_pipeline.stack.dead_runs import fail_dead_runs

    with dg.DagsterInstance.get() as instance:
        fail_dead_runs(instance)


def _run(chunk: Chunk) -> _Outcome:
    """Run one chunk."""
    import dagster as dg

    from feature_pipeline.automation.alerts import why
    from feature_pipeline.definitions import build_defs, whole_job
    from feature_pipeline.resources import load_universe
    from feature_pipeline.stack.dead_runs import fail_dead_runs

    if _cancelled is not None and _cancelled.is_set():
        return _Outcome("NOT_STARTED")
    with dg.DagsterInstance.get() as instance:
        fail_dead_runs(instance)
        ended = threading.Event()
        watch = threading.Thread(
            target=_watch, args=(instance, chunk.run_id, ended), name="cancel", daemon=True
        )
        watch.start()
        try:
            result = (
                build_defs()
                .resolve_job_def(whole_job(load_universe(Settings())))
                .execute_in_process(
                    instance=instance,
                    run_id=chunk.run_id,
                    tags=_tags(chunk),
                    # The checks of these assets run with them.
                    asset_selection=[dg.AssetKey(asset) for asset in chunk.assets],
                    raise_on_error=False,
                )
            )
        finally:
            ended.set()
            watch.join()
        run = instance.get_run_by_id(chunk.run_id)
    status = run.status if run else dg.DagsterRunStatus.FAILURE
    if result.success or status == dg.DagsterRunStatus.CANCELED:
        return _Outcome(status.value)
    for event in result.all_events:
        if event.is_step_failure:
            return _Outcome(
                status.value,
                f"{event.step_key}, {chunk.start} to {chunk.end - timedelta(days=1)}: "
                + (_faults(result, event.step_key) or why(event.step_failure_data.error)),
            )
    return _Outcome(status.value, f"the run {chunk.run_id} failed; see its log")


def _tags(chunk: Chunk) -> dict[str, str]:
    from dagster._core.storage.tags import (
        ASSET_PARTITION_RANGE_END_TAG,
        ASSET_PARTITION_RANGE_START_TAG,
        MAX_RETRIES_TAG,
    )

    from feature_pipeline.stack.dead_runs import process_tag
    from feature_pipeline.storage.io_manager import ONLY_MISSING_TAG, SYMBOLS_TAG

    tags = {
        ASSET_PARTITION_RANGE_START_TAG: chunk.start.isoformat(),
        ASSET_PARTITION_RANGE_END_TAG: (chunk.end - timedelta(days=1)).isoformat(),
        # It belongs to this command: Dagster has nowhere to launch it again, and must not say so.
        MAX_RETRIES_TAG: "0",
        **process_tag(),
    }
    if chunk.symbols:
        tags[SYMBOLS_TAG] = ",".join(chunk.symbols)
    if chunk.only_missing:
        tags[ONLY_MISSING_TAG] = "true"
    return tags


def _watch(instance: DagsterInstance, run_id: str, ended: threading.Event) -> None:
    """Cancel the run when the command is told to stop: first Dagster has to know that it is wanted,
    or else it takes the interruption for a failure."""
    while not ended.wait(_POLL_S):
        if _cancelled is None or not _cancelled.is_set():
            continue
        run = instance.get_run_by_id(run_id)
        if run is None:
            continue
        if not run.is_finished:
            instance.report_run_canceling(run, "The backfill was told to stop.")
        while not ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            ended.wait(_AGAIN_S)


def _faults(result: Any, step: str | None) -> str:
    """What the blocking checks of a step found; nothing where they are not why it failed."""
    return "; ".join(
        f"{event.event_specific_data.check_name}: {event.event_specific_data.description}"
        for event in result.all_events
        if event.step_key == step
        and event.event_type_value == "ASSET_CHECK_EVALUATION"
        and event.event_specific_data.blocking
        and not event.event_specific_data.passed
        and event.event_specific_data.severity.value == "ERROR"
    )
