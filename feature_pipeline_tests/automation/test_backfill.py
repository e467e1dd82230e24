"""Backfills in worker processes: cut, followed, failed, killed - on Dagster's real storage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import dagster as dg
import psutil
import pytest

from feature_pipeline.automation.backfill import BackfillError, Chunk, backfill, chunks
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.partitions import days
from feature_pipeline.resources import store
from feature_pipeline.settings import Settings
from feature_pipeline.stack import Stack
from feature_pipeline_tests.assets.support import assert_same_tables

FAILURE, SUCCESS = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS
START, END = date(2012, 3, 1), date(2012, 3, 9)

# Recorded prices of three instruments, with a history short enough to be quick.
UNIVERSE = """
benchmark: GSPC
instruments:
""" + "".join(
    f"""
  - id: {name}
    asset_class: equity
    calendar: XNYS
    sector: {sector}
    source: {{bars: sample, actions: sample, news: sample, reddit: sample}}
    symbols: [{{symbol: {symbol}, from: 1990-01-02}}]
    membership: [{{from: 2012-01-03, to: 2013-03-02}}]
"""
    for name, symbol, sector in (
        ("AAPL", "AAPL", "tech"), ("IBM", "IBM", "tech"), ("GSPC", "^GSPC", "index")
    )
)  # fmt: skip


@dataclass
class Place:
    """Stores of its own, and Dagster's beside the tables."""

    settings: Settings

    @property
    def environment(self) -> dict[str, str]:
        return Stack(self.settings).environment() | {
            "FEATURE_PIPELINE_UNIVERSE": str(self.settings.universe)
        }

    def backfill(self, plan: list[Chunk], progress: Callable[[int], None] = lambda _: None) -> None:
        backfill(self.settings, plan, self.environment, progress, self.settings.home / "runs.log")

    def tables(self) -> dict:
        held = store(self.settings)
        with held.database:
            return {asset: held.read(asset, start=START, end=END) for asset in TABLES}

    def runs(self, monkeypatch) -> list[dg.DagsterRun]:
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        with dg.DagsterInstance.get() as instance:
            return list(instance.get_runs())


@pytest.fixture(scope="module")
def new_place(new_database, tmp_path_factory, redis_server):
    made = []

    def place() -> Place:
        opened = new_database()
        url = opened.__enter__()
        made.append(opened)
        home = tmp_path_factory.mktemp("home")
        (home / "universe.yaml").write_text(UNIVERSE)
        settings = Settings(
            database_url=url, redis_url=redis_server.url, home=home, universe=home / "universe.yaml"
        )
        Stack(settings).prepare_dagster()
        return Place(settings)

    yield place
    for opened in made:
        opened.__exit__(None, None, None)


@pytest.fixture(scope="module")
def whole(new_place) -> Place:
    """After one run of the whole range."""
    place = new_place()
    place.backfill(chunks(START, END))
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


# -- running --------------------------------------------------------------------------------------


def test_parallel_processes_equal_one_run(new_place, whole, monkeypatch):
    place, plan, told = new_place(), chunks(START, END, days_per_run=4), []
    total = sum(chunk.partitions for chunk in plan)
    place.backfill(plan, told.append)
    assert_same_tables(place.tables(), whole.tables())
    assert told == sorted(told)
    assert told[-1] == total

    # Real runs on the real instance, with their days.
    runs = {run.run_id: run for run in place.runs(monkeypatch)}
    assert set(runs) == {chunk.run_id for chunk in plan}
    assert {run.status for run in runs.values()} == {dg.DagsterRunStatus.SUCCESS}
    assert all(
        runs[c.run_id].tags["dagster/asset_partition_range_start"] == c.start.isoformat()
        for c in plan
    )


def test_the_progress_of_a_run_that_finds_all_right_reaches_the_total(whole):
    told: list[int] = []
    plan = chunks(START, END, assets=["macro_indicators", "indicators_1d", "features_1d"])
    whole.backfill(plan, told.append)
    assert told[-1] == 3 * 8


def test_a_failed_run_is_one_line_that_names_step_days_and_reason(new_place):
    place = new_place()
    with pytest.raises(BackfillError) as failed:
        place.backfill(chunks(START, END, assets=["features_1d"]))
    line = str(failed.value)
    assert "\n" not in line
    assert line.startswith("features_1d, 2012-03-01 to 2012-03-08: features_1d from ")
    assert "2012-01-03" in line
    assert "materialise" in line
    assert workers() == []


# -- killed ---------------------------------------------------------------------------------------


def test_a_killed_worker_is_one_line_and_a_plain_re_run_ends_equal(new_place, whole, monkeypatch):
    place, killed = new_place(), []

    def kill_one(done: int) -> None:
        if done and not killed:
            killed.append(workers()[0])
            killed[0].kill()

    with pytest.raises(BackfillError, match="run the same backfill again") as failed:
        place.backfill(chunks(START, END, days_per_run=4), kill_one)
    assert "\n" not in str(failed.value)
    assert killed
    assert workers() == []
    place.backfill(chunks(START, END, days_per_run=4))
    assert_same_tables(place.tables(), whole.tables())
    # No run is left that counts as running.
    runs = [run.status for run in place.runs(monkeypatch)]
    assert len(runs) == 4
    assert all(status in (FAILURE, SUCCESS) for status in runs)
    assert runs.count(SUCCESS) >= 2


PARENT = """
import sys
from datetime import date
from feature_pipeline.automation.backfill import backfill, chunks
from feature_pipeline.settings import Settings
from feature_pipeline.stack import Stack

if __name__ == "__main__":
    settings = Settings()
    plan = chunks(date(2012, 1, 3), date(2013, 1, 3), days_per_run=40)
    say = lambda done: print(done, flush=True)
    backfill(settings, plan, Stack(settings).environment(), say, settings.home / "runs.log")
"""


@pytest.fixture
def parent(new_place, tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A process in the midst of a backfill."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    place = new_place()
    environment = place.environment | {
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    }
    with subprocess.Popen(
        [sys.executable, script],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.strip().isdigit() and int(line) > 0:
                break
        else:
            raise AssertionError("".join(said))
        yield process
        process.kill()


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(parent, blow):
    alive = workers(parent.pid)
    assert len(alive) == 2
    parent.send_signal(blow)
    parent.wait(30)
    _, left = psutil.wait_procs(alive, timeout=30)
    assert left == []
