"""Between Dagster and the store: toy assets on an ephemeral instance."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pytest
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)

from feature_pipeline.errors import MissingPartitionError, SchemaError
from feature_pipeline.partitions import DAILY
from feature_pipeline.schemas import Fetched
from feature_pipeline.storage.io_manager import FLAGGED_TAG, SYMBOLS_TAG, StorageIOManager
from feature_pipeline_tests.storage.support import (
    JANUARY,
    TOY,
    Desk,
    bars,
    doubles,
    fetched,
    means,
)

WEEK = (date(2020, 1, 13), date(2020, 1, 18))


@dataclass
class Bench:
    """Toy assets `ohlcv_1d` -> `means` (Polars) -> `doubles` (pandas), and what they saw."""

    desk: Desk
    answer: Callable[[Any], dict[str, Fetched]]
    compute: Callable[[pl.DataFrame], Any] = means
    seen: dict[str, Any] = field(default_factory=dict)
    tries: int = 0

    def __post_init__(self) -> None:
        self.instance = dg.DagsterInstance.ephemeral()
        self.storage = StorageIOManager(self.desk.store)
        bench = self
        shared = {
            "io_manager_key": "storage",
            "partitions_def": DAILY,
            "code_version": "1",
            "backfill_policy": dg.BackfillPolicy.single_run(),
            "retry_policy": dg.RetryPolicy(max_retries=2),
        }

        @dg.asset(name="ohlcv_1d", **shared)
        def ohlcv_1d(
            context: dg.AssetExecutionContext, storage: dg.ResourceParam[StorageIOManager]
        ) -> dict[str, Fetched]:
            bench.tries += 1
            return bench.answer(storage.plan(context))

        @dg.asset(name="means", **shared)
        def means_asset(ohlcv_1d: pl.DataFrame) -> pl.DataFrame:
            bench.seen["means"] = ohlcv_1d
            bench.tries += 1
            return bench.compute(ohlcv_1d)

        @dg.asset(name="doubles", **shared)
        def doubles_asset(means: pd.DataFrame) -> pd.DataFrame:
            bench.seen["doubles"] = means
            return doubles(pl.from_pandas(means)).to_pandas()

        self.assets = {"ohlcv_1d": ohlcv_1d, "means": means_asset, "doubles": doubles_asset}

    def run(
        self,
        *names: str,
        days: tuple[date, date] = WEEK,
        check: bool = True,
        **tags: str,
    ) -> dg.ExecuteInProcessResult:
        job = dg.Definitions(
            assets=[*self.assets.values()],
            jobs=[dg.define_asset_job("job", selection=list(names or self.assets))],
            resources={"storage": self.storage},
            executor=dg.in_process_executor,
        ).resolve_job_def("job")
        return job.execute_in_process(
            instance=self.instance,
            raise_on_error=check,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            tags={
                ASSET_PARTITION_RANGE_START_TAG: days[0].isoformat(),
                ASSET_PARTITION_RANGE_END_TAG: (days[1] - timedelta(days=1)).isoformat(),
                **tags,
            },
        )

    def materializations(self, asset: str) -> dict[str, dict[str, Any]]:
        records = self.instance.fetch_materializations(dg.AssetKey(asset), limit=200).records
        return {
            str(r.partition_key): {k: v.value for k, v in r.asset_materialization.metadata.items()}
            for r in reversed(records)
            if r.asset_materialization
        }


def everything(plan: Any) -> dict[str, Fetched]:
    return fetched(bars(["A", "BB", "CCC"], plan.window), "A", "BB", "CCC")


@pytest.fixture
def bench(desk: Desk, caplog: pytest.LogCaptureFixture) -> Iterator[Bench]:
    caplog.set_level(logging.CRITICAL)
    made = Bench(desk, everything)
    yield made
    made.storage.close()
    made.instance.dispose()


def failure(result: dg.ExecuteInProcessResult) -> Any:
    (event,) = [e for e in result.all_events if e.is_step_failure]
    return event.step_failure_data.error


def test_frames_arrive_as_annotated_with_what_is_declared(bench: Bench) -> None:
    assert bench.run().success
    frame, table = bench.seen["means"], bench.seen["doubles"]
    assert isinstance(frame, pl.DataFrame)
    assert isinstance(table, pd.DataFrame)
    keys = ["symbol", "time", "available_at", "availability_basis"]
    assert frame.columns == [*keys, "close"]
    assert list(table.columns) == [*keys, "sma_20"]
    assert str(table["time"].dt.tz) == "UTC"
    held = bench.desk.store.read("doubles", start=WEEK[0], end=WEEK[1])
    assert held.height == 15
    assert held[TOY["doubles"].names[4]].null_count() == 0
    # Nobody is announced any more.
    assert bench.desk.one("SELECT count(*) FROM write_intents") == 0


def test_each_partition_gets_its_own_row_count(bench: Bench) -> None:
    bench.run(days=(date(2020, 1, 17), date(2020, 1, 20)))
    bars_of = bench.materializations("ohlcv_1d")
    assert bars_of["2020-01-17"]["dagster/partition_row_count"] == 3
    assert bars_of["2020-01-18"]["dagster/partition_row_count"] == 0
    # History that others read is there, and says so: three sessions before the 17th.
    assert {"2020-01-14", "2020-01-15", "2020-01-16"} <= set(bars_of)
    assert bars_of["2020-01-14"]["dagster/partition_row_count"] == 3
    assert bars_of["2020-01-17"]["rows_written"] == 12
    assert bars_of["2020-01-17"]["rows_input"] == 12
    again = bench.run(days=(date(2020, 1, 17), date(2020, 1, 20)))
    assert again.success
    means_of = bench.materializations("means")
    assert means_of["2020-01-17"]["days"] == "0"
    assert means_of["2020-01-17"]["dagster/partition_row_count"] == 3  # not computed, still there


def test_what_is_amiss_flags_the_run_and_is_named(bench: Bench) -> None:
    def spoilt(plan: Any) -> dict[str, Fetched]:
        frame = bars(["A", "BB"], plan.window)
        bad = (pl.col("symbol") == "A") & (pl.col("time").dt.day() == 15)
        frame = frame.with_columns(close=pl.when(bad).then(-1.0).otherwise("close"))
        return {"made": Fetched(frame, {"CCC": "no route"}, ("A", "BB", "CCC"))}

    bench.answer = spoilt
    result = bench.run("ohlcv_1d")
    run = bench.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.tags[FLAGGED_TAG] == "ohlcv_1d"
    metadata = bench.materializations("ohlcv_1d")["2020-01-15"]
    assert metadata["rows_quarantined"] == 1
    assert "CCC | failed | no route" in metadata["exceptions"]
    assert "A | quarantined | a price is not positive" in metadata["exceptions"]
    assert "A | a price is not positive | 1" in metadata["quarantined"]
    bench.answer = everything
    mended = bench.instance.get_run_by_id(bench.run("ohlcv_1d").run_id)
    assert mended is not None
    assert FLAGGED_TAG not in mended.tags


def test_the_symbols_tag(bench: Bench) -> None:
    plans = []

    def some(plan: Any) -> dict[str, Fetched]:
        plans.append(plan)
        return fetched(bars(list(plan.symbols), plan.window), *plan.symbols)

    bench.answer = some
    bench.run("ohlcv_1d", **{SYMBOLS_TAG: "BB,A"})
    assert [plan.symbols for plan in plans] == [("BB", "A")]


def test_a_hole_fails_at_once_and_in_one_line(bench: Bench) -> None:
    result = bench.run("means", check=False)
    error = failure(result)
    assert bench.tries == 0
    assert error.cause.cls_name == MissingPartitionError.__name__
    assert "means from 2020-01-02 on reads ohlcv_1d of 2020-01-02" in error.cause.message or (
        "reads ohlcv_1d of" in error.cause.message
    )
    assert len(error.cause.message.strip().splitlines()) == 1
    retries = [e for e in result.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"]
    assert not retries


def test_a_missing_column_fails_at_once_and_in_one_line(bench: Bench) -> None:
    bench.compute = lambda frame: means(frame).drop("time")
    result = bench.run(check=False)
    error = failure(result)
    assert error.cause.cls_name == SchemaError.__name__
    assert "means: the frame lacks column(s) time" in error.cause.message
    assert len(error.cause.message.strip().splitlines()) == 1
    assert bench.tries == 2  # bars once, means once
    assert bench.desk.one("SELECT count(*) FROM indicators_1d") == 0


def test_what_may_mend_itself_is_tried_again_with_a_plan_of_its_own(bench: Bench) -> None:
    tokens = []

    def flaky(plan: Any) -> dict[str, Fetched]:
        tokens.append(plan.writing.token)
        if len(tokens) < 3:
            raise ConnectionError("reset by peer")
        return everything(plan)

    bench.answer = flaky
    assert bench.run("ohlcv_1d").success
    assert len(set(tokens)) == 3
    assert bench.desk.one("SELECT count(*) FROM write_intents") == 0


def test_a_step_that_fails_leaves_nothing_announced(bench: Bench) -> None:
    def broken(plan: Any) -> dict[str, Fetched]:
        raise ValueError("no")

    bench.answer = broken
    assert not bench.run("ohlcv_1d", check=False).success
    bench.storage.close()
    days = pl.date_range(*JANUARY, eager=True)
    assert bench.desk.store.ledger.in_progress("ohlcv_1d", days).is_empty()


def test_metadata_is_json(bench: Bench) -> None:
    bench.run("ohlcv_1d")
    for metadata in bench.materializations("ohlcv_1d").values():
        json.dumps(metadata)
