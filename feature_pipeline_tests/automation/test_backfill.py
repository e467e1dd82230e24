"""Backfills in worker processes: cut, followed, failed, killed - on Dagster's real storage."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from itertools import pairwise

import dagster as dg
import polars as pl
import psutil
import psycopg
import pytest
from dagster._core.storage.tags import MAX_RETRIES_TAG

from feature_pipeline.automation.backfill import (
    BackfillError,
    Report,
    _tags,
    chunks,
    runs_for,
)
from feature_pipeline.automation.estimate import Estimate, Work
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.partitions import days
from feature_pipeline.stack.dead_runs import PROCESS_TAG, fail_dead_runs
from feature_pipeline_tests.assets.support import assert_same_tables
from feature_pipeline_tests.automation.places import END, START, Place
from feature_pipeline_tests.stack.helpers import CLI, until

FAILURE, SUCCESS = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS
CANCELED = dg.DagsterRunStatus.CANCELED


@pytest.fixture(scope="module")
def whole(new_place) -> Place:
    """After one run of the whole range."""
    place = new_place()
    place.run(START, END)
    return place


def workers(pid: int | None = None) -> list[psutil.Process]:
    """The processes that run a process's chunks."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if any("spawn_main" in part for part in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


# -- cutting --------------------------------------------------------------------------------------


def test_chunks_cover_the_range_once_oldest_first():
    for step in (0, 1, 3, 8, 100):
        plan = chunks(START, END, days_per_run=step)
        covered = [day for chunk in plan for day in days(chunk.start, chunk.end)]
        assert covered == days(START, END)
        assert all(chunk.assets == tuple(TABLES) for chunk in plan)
        assert len({chunk.run_id for chunk in plan}) == len(plan) == -(-8 // (step or 8))
        assert sum(chunk.partitions for chunk in plan) == 8 * len(TABLES)


def test_an_unknown_asset_is_named_with_those_that_exist():
    with pytest.raises(BackfillError, match=r"no asset 'ohlcv_2d'; there are ohlcv_1d, ") as error:
        chunks(START, END, assets=["ohlcv_1d", "ohlcv_2d"])
    assert "\n" not in str(error.value)


def test_runs_do_the_work_and_leave_out_who_has_none():
    history, last = date(2012, 1, 3), END - timedelta(days=2)
    work = {
        "ohlcv_1d": Work("ohlcv_1d", pl.Series([history])),
        "news": Work("news", pl.Series([], dtype=pl.Date)),
        "features_1d": Work("features_1d", pl.Series([START, last])),
    }
    spans = ((START, START + timedelta(days=1)), (last, END))
    found = Estimate(START, END, spans, work, "built-in", 0)
    first, second = runs_for(found, symbols=["AAPL"])
    assert (first.start, first.end, first.turn) == (*spans[0], 0)
    assert first.assets == ("ohlcv_1d", "features_1d"), "history comes with the first run"
    assert (second.start, second.end, second.turn) == (*spans[1], 1)
    assert second.assets == ("features_1d",)
    assert all(chunk.only_missing and chunk.symbols == ("AAPL",) for chunk in (first, second))
    whole = Estimate(START, END, ((START, END),), work, "built-in", 0)
    again = runs_for(whole, refetch=True, days_per_run=4)
    assert [(chunk.only_missing, chunk.assets) for chunk in again] == [(False, tuple(work))] * 2


def test_dagster_is_told_not_to_run_a_chunk_again():
    """Nobody could: the run was never launched by a code location."""
    assert _tags(chunks(START, END)[0])[MAX_RETRIES_TAG] == "0"


# -- running --------------------------------------------------------------------------------------


def test_parallel_processes_equal_one_run(new_place, whole, monkeypatch):
    place, told = new_place(), []
    plan = chunks(START, END, days_per_run=4, only_missing=True)
    said = place.outlook()
    report = place.backfill(plan, told.append)
    assert_same_tables(place.tables(), whole.tables())
    # Never less than before, and in the end all that was said.
    for before, after in pairwise(told):
        assert all(after[asset] >= done for asset, done in before.items())
    assert told[-1] == {name: one.days.len() for name, one in said.work.items()}
    assert report.partitions == said.partitions
    assert [run["status"] for run in report.runs] == ["SUCCESS", "SUCCESS"]
    held = place.query("SELECT sum(rows)::bigint AS rows FROM partition_ledger")["rows"][0]
    assert report.rows["written"] >= held  # what both runs need as history may come twice
    assert report.rows["quarantined"] == 0

    # Real runs on the real instance, with their days, and the checks of their assets.
    runs = {run.run_id: run for run in place.runs(monkeypatch)}
    assert set(runs) == {chunk.run_id for chunk in plan}
    assert {run.status for run in runs.values()} == {SUCCESS}
    assert all(
        runs[c.run_id].tags["dagster/asset_partition_range_start"] == c.start.isoformat()
        for c in plan
    )
    with dg.DagsterInstance.get() as instance:
        looked_at = {
            record.asset_check_evaluation_data.asset_key.to_python_identifier()
            for chunk in plan
            for event in instance.all_logs(
                chunk.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
            )
            if (record := event.dagster_event)
        }
    assert looked_at >= {"ohlcv_1d", "features_1d", "state_vectors_1d"}

    # There is nothing left to do.
    assert runs_for(place.outlook()) == []
    assert place.backfill([]) == Report()


def test_a_fault_that_a_check_finds_is_told_in_its_words(new_place):
    place, assets = new_place(), ["macro_indicators"]
    place.backfill(chunks(START, END, assets=assets))
    with psycopg.connect(place.url) as connection:
        connection.execute(
            "UPDATE macro_indicators SET time = available_at + interval '1 hour'"
            " WHERE series_id = 'VIXCLS' AND available_at >= '2012-03-05'"
        )
    said = (
        r"macro_indicators_checks, 2012-03-01 to 2012-03-08: no_future: .*VIXCLS.*before its time"
    )
    with pytest.raises(BackfillError, match=said):
        place.backfill(chunks(START, END, assets=assets))


def test_a_failed_run_is_one_line_that_names_step_days_and_reason(new_place):
    place = new_place()
    with pytest.raises(BackfillError) as failed:
        place.backfill(chunks(START, END, assets=["features_1d"]))
    line = str(failed.value)
    assert "\n" not in line
    assert line.startswith("features_1d, 2012-03-01 to 2012-03-08: features_1d from ")
    assert "2012-01-03" in line
    assert "materialise" in line
    assert failed.value.report is not None
    assert [run["status"] for run in failed.value.report.runs] == ["FAILURE"]
    assert workers() == []


# -- killed ---------------------------------------------------------------------------------------


def test_a_killed_worker_is_one_line_and_its_run_is_closed(new_place, monkeypatch):
    place, killed = new_place(), []

    def kill_one(done) -> None:
        if done and not killed:
            killed.append(workers()[0])
            killed[0].kill()

    plan = chunks(START, END, assets=["macro_indicators", "sentiment_scores"])
    with pytest.raises(BackfillError, match="run the same backfill again") as failed:
        place.backfill(plan, kill_one)
    assert "\n" not in str(failed.value)
    assert killed
    assert workers() == []
    assert place.runs(monkeypatch)[0].status == dg.DagsterRunStatus.STARTED
    with dg.DagsterInstance.get() as instance:
        fail_dead_runs(instance)  # as the next backfill does
        assert [run.status for run in instance.get_runs()] == [FAILURE]
        run = instance.get_runs()[0]
        gone = instance.get_run_by_id(run.run_id).tags[PROCESS_TAG].partition("@")[0]
        assert gone == str(killed[0].pid)


@contextmanager
def command(place: Place, after: str) -> Iterator[subprocess.Popen]:
    """The backfill of the days by the command line, from the moment on when an asset is written."""
    last = END - timedelta(days=1)
    words = ["backfill", "--start", START.isoformat(), "--end", last.isoformat()]
    with subprocess.Popen(
        [*CLI, *words],
        env=place.environment | {"NO_COLOR": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            until(
                lambda: process.poll() is not None or written(place, after),
                f"{after} was not written", 120,
            )  # fmt: skip
            yield process
        finally:
            process.kill()


@contextmanager
def held_up(place: Place, table: str) -> Iterator[None]:
    """Nobody writes that table meanwhile: a run comes as far, and is not over before it is hit."""
    with psycopg.connect(place.url) as link:
        link.execute(f"LOCK TABLE {table} IN SHARE MODE")
        yield


def written(place: Place, asset: str) -> bool:
    """Whether anything of the asset is."""
    with psycopg.connect(place.url) as link:
        found = link.execute("SELECT FROM partition_ledger WHERE asset = %s LIMIT 1", [asset])
        return found.fetchone() is not None


def ledger(place: Place) -> pl.DataFrame:
    return place.query("SELECT asset, source, day, token FROM partition_ledger")


def settled(place: Place) -> None:
    """Wait until the server has noticed that nobody is there any more."""
    until(
        lambda: place.query(
            "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
            " AND application_name NOT LIKE '%dagster%'"
        )["n"][0] <= 1,
        "sessions are left",
    )  # fmt: skip


def free(instance: dg.DagsterInstance) -> bool:
    """Whether nobody holds a slot of a pool or waits for one."""
    storage = instance.event_log_storage
    infos = [storage.get_concurrency_info(key) for key in storage.get_concurrency_keys()]
    return all(not info.claimed_slots and not info.pending_steps for info in infos)


def stop(process: subprocess.Popen, blow: signal.Signals, code: int) -> None:
    """Tell the command to stop; it says how to go on and leaves nothing behind."""
    alive = workers(process.pid)
    process.send_signal(blow)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert err.strip() == (
        "cancelled: what is written stays, and the same command goes on from there"
    )
    assert not any(worker.is_running() for worker in alive)


def test_told_to_stop_it_cancels_its_run(new_place, monkeypatch):
    place = new_place()
    with command(place, after="ohlcv_1d") as process:
        stop(process, signal.SIGTERM, 143)
    (run,) = place.runs(monkeypatch)
    assert run.status == CANCELED
    with dg.DagsterInstance.get() as instance:
        assert free(instance)


def test_cancelled_then_killed_the_same_command_writes_the_rest(new_place, whole, monkeypatch):
    place = new_place()
    with held_up(place, "indicators_1d"), command(place, after="ohlcv_1d") as process:
        stop(process, signal.SIGINT, 130)
    cancelled, left = ledger(place), place.outlook()
    assert cancelled.height > 0
    assert left.partitions > 0

    with held_up(place, "features_1d"), command(place, after="indicators_1d") as process:
        alive = workers(process.pid)
        assert len(alive) == 1
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        _, orphans = psutil.wait_procs(alive, timeout=30)
        assert orphans == [], "no worker outlives its parent"
    settled(place)
    killed, rest = ledger(place), place.outlook()
    assert 0 < rest.partitions < left.partitions
    earlier = set(place.query("SELECT run_id FROM partition_ledger")["run_id"])

    with command(place, after="state_vectors_1d") as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert f"{rest.partitions}/{rest.partitions} partitions" in out
    assert_same_tables(place.tables(), whole.tables())
    # What was written stays as it was written, by its token; what was not there came later.
    end = ledger(place)
    for before in (cancelled, killed):
        assert before.join(end, on=before.columns, how="anti").is_empty()
    assert end.height - killed.height == rest.partitions
    reports = place.query(
        "SELECT run_id, sum(written)::bigint AS written, sum(unchanged)::bigint AS same"
        " FROM write_reports GROUP BY run_id"
    )
    assert reports.filter(~pl.col("run_id").is_in(earlier))["same"].to_list() == [0]
    held = place.query("SELECT sum(rows)::bigint AS rows FROM partition_ledger")["rows"][0]
    # A report follows its write: one that was killed in between has told nobody.
    assert reports["written"].sum() <= held, "something was written twice"
    # No run is left that counts as running.
    states = sorted(run.status.value for run in place.runs(monkeypatch))
    assert states == ["CANCELED", "FAILURE", "SUCCESS"]
