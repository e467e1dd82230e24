"""What a run shows of its table: on one partition, never at the price of the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.storage.tags import SCHEDULE_NAME_TAG

from feature_pipeline.storage import io_manager
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline_tests.storage.support import Desk
from feature_pipeline_tests.storage.test_io_manager import Bench, everything

DAYS = (date(2020, 1, 13), date(2020, 1, 18))


class Told:
    """Describes by counting how often it was asked."""

    keys = ("picture", "glance")

    def __init__(self, say: Callable[[str, date], dict[str, Any]] | None = None) -> None:
        self.asked: list[tuple[str, date]] = []
        self._say = say

    def __call__(self, asset: str, end: date) -> dict[str, Any]:
        self.asked.append((asset, end))
        if self._say is not None:
            return self._say(asset, end)
        return {"picture": dg.MetadataValue.md(f"{asset} no. {len(self.asked)}")}


def bench_of(desk: Desk, told: Told) -> Bench:
    made = Bench(desk, everything)
    made.storage = StorageIOManager(desk.store, told)
    return made


def pictures(bench: Bench, asset: str) -> dict[str, str]:
    return {
        key: said["picture"]
        for key, said in bench.materializations(asset).items()
        if "picture" in said
    }


def test_the_last_partition_of_a_range_shows_it_and_no_other(desk: Desk) -> None:
    told = Told()
    bench = bench_of(desk, told)
    assert bench.run("ohlcv_1d", "means", days=DAYS).success
    assert told.asked == [("ohlcv_1d", DAYS[1]), ("means", DAYS[1])]
    for asset in ("ohlcv_1d", "means"):
        # More partitions than asked for: history that others read was written along.
        assert len(bench.materializations(asset)) >= 5
        assert list(pictures(bench, asset)) == ["2020-01-17"]
        # Shown with the asset: the UI takes the newest materialisation.
        (newest,) = bench.instance.fetch_materializations(dg.AssetKey(asset), limit=1).records
        assert newest.partition_key == "2020-01-17"
    row_counts = bench.materializations("ohlcv_1d")["2020-01-17"]
    assert row_counts["dagster/partition_row_count"] == 3


def test_a_partition_without_rows_shows_it_too(desk: Desk) -> None:
    bench = bench_of(desk, Told())
    bench.run("ohlcv_1d", days=(date(2020, 1, 17), date(2020, 1, 20)))  # ends on a Sunday
    assert list(pictures(bench, "ohlcv_1d")) == ["2020-01-19"]


def test_what_was_not_computed_shows_what_hung_there(desk: Desk) -> None:
    told = Told()
    bench = bench_of(desk, told)
    bench.run("ohlcv_1d", "means", days=DAYS)
    hung = pictures(bench, "means")
    asked = len(told.asked)
    bench.run("means", days=DAYS)
    assert len(told.asked) == asked
    assert pictures(bench, "means") == hung
    # Another last partition has none to show.
    bench.run("means", days=(DAYS[0], date(2020, 1, 17)))
    assert told.asked[asked:] == [("means", date(2020, 1, 17))]


def test_scheduled_runs_that_write_nothing_do_not_store_it_each_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    bench = bench_of(desk, told)

    def stored(asset: str) -> int:
        records = bench.instance.fetch_materializations(dg.AssetKey(asset), limit=200).records
        return sum(
            "picture" in r.asset_materialization.metadata
            for r in records
            if r.asset_materialization
        )

    bench.run("ohlcv_1d", "means", days=DAYS)
    tags = {SCHEDULE_NAME_TAG: "often"}
    for _ in range(3):  # the days are asked for again, and the same comes
        bench.run("ohlcv_1d", "means", days=DAYS, **tags)
    assert [stored("ohlcv_1d"), stored("means")] == [1, 2]
    assert len(told.asked) == 2
    monkeypatch.setattr(io_manager, "PICTURES_EVERY", timedelta(0))
    bench.run("ohlcv_1d", "means", days=DAYS, **tags)
    assert [stored("ohlcv_1d"), stored("means")] == [2, 3]
    assert told.asked[2:] == [("ohlcv_1d", DAYS[1])]


def test_a_picture_that_cannot_be_drawn_fails_nothing(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(asset: str, end: date) -> dict[str, Any]:
        raise ZeroDivisionError("no ink")

    bench = bench_of(desk, Told(broken))
    with caplog.at_level(logging.WARNING):
        result = bench.run("ohlcv_1d", days=DAYS)
    assert result.success
    assert pictures(bench, "ohlcv_1d") == {}
    assert desk.one("SELECT count(*) FROM ohlcv_1d") > 0
    logs = bench.instance.all_logs(result.run_id)
    (said,) = [e.user_message for e in logs if "could not be drawn" in e.user_message]
    assert "the pictures of ohlcv_1d up to 2020-01-17" in said
    assert "ZeroDivisionError: no ink" in said


def test_a_run_that_is_stopped_while_it_draws_stops(desk: Desk) -> None:
    def stopped(asset: str, end: date) -> dict[str, Any]:
        raise DagsterExecutionInterruptedError

    bench = bench_of(desk, Told(stopped))
    assert not bench.run("ohlcv_1d", days=DAYS, check=False).success


def test_nobody_who_describes_is_fine(desk: Desk) -> None:
    bench = Bench(desk, everything)
    assert bench.run("ohlcv_1d", days=DAYS).success
    assert pictures(bench, "ohlcv_1d") == {}
