"""What Dagster is told of the graph: complete, quiet, nothing deprecated."""

from __future__ import annotations

import os
import subprocess
import sys

import dagster as dg
import pytest

from feature_pipeline.automation.publishing import watched
from feature_pipeline.definitions import ASSETS, JOB, build_defs, defs
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.partitions import DAILY
from feature_pipeline.resources import code_versions, load_universe
from feature_pipeline.settings import Settings
from feature_pipeline.timeframes import stem
from feature_pipeline.universe import DEFAULT as UNIVERSE_YAML
from feature_pipeline_tests.assets.world import make_universe

GRAPH = defs.resolve_asset_graph()
OURS = sorted(TABLES)
BY_INSTRUMENT = ("ohlcv_1d", "corporate_actions", "news", "reddit", "insider_transactions")
"""What is collected for the instruments of universe.yaml."""


def node(asset: str):
    return GRAPH.get(dg.AssetKey(asset))


LOADING = """
import dagster as dg
from feature_pipeline.definitions import defs
dg.Definitions.validate_loadable(defs)
"""


def test_loading_warns_of_nothing():
    """Nothing deprecated, nothing in preview, no connection: in a process without any of ours."""
    ours = [k for k in os.environ if k.startswith(("FEATURE_PIPELINE_", "DAGSTER_"))]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADING],
        env={k: v for k, v in os.environ.items() if k not in ours},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_graph_is_the_catalogue():
    assert {asset.key.to_python_identifier() for asset in ASSETS} == set(TABLES)
    for asset, table in TABLES.items():
        parents = {key.to_python_identifier() for key in node(asset).parent_keys}
        collected = {"instruments"} if asset in BY_INSTRUMENT else set()
        assert parents == {needed.asset for needed in table.inputs} | collected
    assert node("online_state_vectors").parent_keys == {dg.AssetKey("state_vectors_1d")}
    assert not node("online_state_vectors").is_materializable
    assert not node("instruments").is_materializable
    assert all(dg.AssetKey(asset) in GRAPH.get_all_asset_keys() for asset in watched(["1d"]))


@pytest.mark.parametrize("asset", OURS)
def test_every_table_says_what_it_is(asset):
    table, spec = TABLES[asset], node(asset)
    assert len(spec.description) > 40
    assert spec.group_name in ("inputs", "signals", "vectors")
    assert {"polars", "postgres"} == spec.kinds
    assert spec.metadata["dagster/table_name"] == table.table
    columns = spec.metadata["dagster/column_schema"].columns
    assert [c.name for c in columns] == list(table.names)
    for column, declared in zip(columns, table.columns, strict=True):
        assert column.type == declared.sql_type
        assert column.description
        assert declared.unit == "" or f"[{declared.unit}]" in column.description
        assert column.constraints.nullable == declared.nullable
    numbers = [c for c in table.columns if c.sql_type == "double precision" and c.name != "value"]
    assert all(c.unit for c in numbers)


@pytest.mark.parametrize("asset", ["instruments", "online_state_vectors"])
def test_what_is_no_table_says_what_it_is_too(asset):
    assert len(node(asset).description) > 40
    assert node(asset).group_name in ("inputs", "vectors")
    assert node(asset).kinds


def test_code_versions_are_those_of_the_features_and_the_universe():
    versions = code_versions(load_universe(Settings()))
    assert {asset: node(asset).code_version for asset in TABLES} == versions
    assert len(set(versions.values())) == len(versions)
    other = code_versions(make_universe())
    assert {asset for asset in TABLES if versions[asset] != other[asset]} == {"features_1d"}


def test_one_daily_grid_with_identity_dependencies():
    for asset in TABLES:
        assert node(asset).partitions_def == DAILY
        for parent in node(asset).parent_keys - {dg.AssetKey("instruments")}:
            mapping = GRAPH.get_partition_mapping(dg.AssetKey(asset), parent)
            assert isinstance(mapping, dg.TimeWindowPartitionMapping)
            assert (mapping.start_offset, mapping.end_offset) == (0, 0)
    # Today is one of them: intraday schedules materialise it again and again.
    assert DAILY.get_last_partition_key() >= DAILY.get_first_partition_key() == "2000-01-01"


@pytest.mark.parametrize(
    ("days", "policy"),
    [(0, dg.BackfillPolicy.single_run()), (30, dg.BackfillPolicy.multi_run(30))],
)
def test_backfills_are_cut_as_the_setting_says(days, policy):
    graph = build_defs(Settings(max_partitions_per_run=days)).resolve_asset_graph()
    # Assets share a run only with the same policy.
    assert {graph.get(dg.AssetKey(asset)).backfill_policy for asset in TABLES} == {policy}


def test_each_timeframe_has_runs_of_its_own_length(tmp_path):
    hours = tmp_path / "universe.yaml"
    hours.write_text("timeframes: [1d, 1h]\n" + UNIVERSE_YAML.read_text(encoding="utf-8"))
    settings = Settings(max_partitions_per_run="1d=365", universe=hours)
    graph = build_defs(settings).resolve_asset_graph()
    runs = {a: graph.get(dg.AssetKey(a)).backfill_policy for a in ("features_1d", "features_1h")}
    assert runs == {
        "features_1d": dg.BackfillPolicy.multi_run(365),
        "features_1h": dg.BackfillPolicy.multi_run(90),
    }


def test_who_is_asked_and_who_is_off_is_shown():
    graph = build_defs(Settings(macro_source="fred")).resolve_asset_graph()
    shown = {a: graph.get(dg.AssetKey(a)).metadata.get("sources") for a in TABLES}
    assert {a for a, said in shown.items() if said} == {
        a for a, table in TABLES.items() if not table.derived
    }
    off = "fred | off | fred is off: set FEATURE_PIPELINE_FRED_API_KEY to switch it on"
    assert off in shown["macro_indicators"].md_str
    assert "sample | on | asked for 7 instruments" in shown["news"].md_str
    assert "names no provider" in shown["insider_transactions"].md_str
    tags = {a: graph.get(dg.AssetKey(a)).tags for a in TABLES}
    assert [a for a in TABLES if "off/fred" in tags[a]] == ["macro_indicators"]
    on = build_defs(Settings(macro_source="fred", fred_api_key="canary-77")).resolve_asset_graph()
    said = on.get(dg.AssetKey("macro_indicators")).metadata["sources"].md_str
    assert "fred | on | asked for VIXCLS, DFF" in said
    assert "canary-77" not in said


def test_nothing_falls_back_on_pickles():
    for asset in ASSETS:
        assert asset.get_io_manager_key_for_asset_key(asset.key) == "storage"
        assert "io_manager" not in asset.required_resource_keys
    assert "io_manager" not in defs.resources


def test_steps_take_a_place_in_the_pool_of_the_database_unless_they_ask_providers():
    pools = {asset.key.to_python_identifier(): asset.op.pool for asset in ASSETS}
    assert pools == {a: "database" if TABLES[a].derived else None for a in pools}


def test_runs_are_in_process_with_retries():
    job = defs.resolve_job_def(JOB)
    assert job.executor_def == dg.in_process_executor
    assert {n.name for n in job.nodes} == {*TABLES, *(f"{asset}_checks" for asset in TABLES)}
    for asset in ASSETS:
        assert asset.op.retry_policy.max_retries == 2


def test_inputs_show_how_far_back_they_read():
    for asset in ASSETS:
        table = TABLES[asset.key.to_python_identifier()]
        for needed in table.inputs:
            shown = asset.op.input_def_named(stem(needed.asset)).metadata
            assert shown["lookback_bars"] == needed.lookback_bars
            assert shown["lookback_days"] == needed.lookback_days
            assert list(shown["columns"]) == list(needed.columns)


def test_a_universe_that_cannot_be_read_is_one_line(tmp_path):
    from feature_pipeline.errors import UniverseError

    broken = tmp_path / "universe.yaml"
    broken.write_text("instruments: [")
    with pytest.raises(UniverseError) as error:
        build_defs(Settings(universe=broken))
    assert "\n" not in str(error.value)
