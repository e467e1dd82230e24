"""Dagster's storage, as `dagster.yaml` has it: a check is planned once per run."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import yaml
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)

from feature_pipeline.stack.event_log import EventLog

ROOT = Path(__file__).parents[2]
DAYS = dg.DailyPartitionsDefinition("2019-01-01")


@dg.asset(partitions_def=DAYS)
def numbers() -> None:
    """Some."""


@dg.multi_asset_check(
    specs=[dg.AssetCheckSpec("good", asset="numbers"), dg.AssetCheckSpec("bad", asset="numbers")]
)
def checked():
    yield dg.AssetCheckResult(passed=True, check_name="good", asset_key="numbers")
    yield dg.AssetCheckResult(passed=False, check_name="bad", asset_key="numbers")


@pytest.fixture
def instance(database_url, tmp_path, monkeypatch):
    url = database_url.replace("postgresql://", "postgresql+psycopg2://")
    monkeypatch.setenv("FEATURE_PIPELINE_DAGSTER_DATABASE_URL", url)
    storage = yaml.safe_load((ROOT / "dagster.yaml").read_text())["storage"]
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"storage": storage}))
    with dg.DagsterInstance.from_config(str(tmp_path)) as made:
        yield made


def test_a_check_has_one_row_per_run(instance, database_url):
    assert isinstance(instance.event_log_storage, EventLog)
    defs = dg.Definitions(assets=[numbers], asset_checks=[checked], executor=dg.in_process_executor)
    start, end = date(2019, 1, 1), date(2019, 3, 1)
    result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        tags={
            ASSET_PARTITION_RANGE_START_TAG: start.isoformat(),
            ASSET_PARTITION_RANGE_END_TAG: (end - timedelta(days=1)).isoformat(),
        },
    )
    assert result.success
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "SELECT check_name, partition, execution_status, run_id FROM asset_check_executions"
            " ORDER BY check_name"
        ).fetchall()
    assert rows == [
        ("bad", None, "FAILED", result.run_id),
        ("good", None, "SUCCEEDED", result.run_id),
    ]
    # The partitions themselves are all there.
    assert len(instance.get_materialized_partitions(numbers.key)) == (end - start).days


def test_other_processes_get_the_same_storage(instance):
    """Run workers and daemons are handed a reference."""
    with dg.DagsterInstance.from_ref(instance.get_ref()) as other:
        assert isinstance(other.event_log_storage, EventLog)
