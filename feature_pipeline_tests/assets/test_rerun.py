"""Running again does nothing; what changed is recomputed, and what depends on it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from datetime import timedelta

import dagster as dg
import polars as pl
import pytest

from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.partitions import days
from feature_pipeline_tests.assets.support import DERIVED, Graph, assert_same_tables, metadata_of
from feature_pipeline_tests.assets.world import (
    END,
    INSTRUMENTS,
    LISTED,
    START,
    MadeSource,
    make_universe,
)

COMPUTE = {
    "indicators_1d": ("indicators", "compute_indicators"),
    "features_1d": ("features", "compute_features"),
    "regime_predictions_1d": ("regime_predictions", "predict_regime"),
    "state_vectors_1d": ("state_vectors", "compute_state_vectors"),
}


@pytest.fixture
def computed(monkeypatch) -> dict[str, int]:
    """Counts, by asset, the rows that its compute function is given."""
    rows = dict.fromkeys(COMPUTE, 0)

    def counting(asset: str, compute: Callable) -> Callable:
        def count(first: pl.DataFrame, *others):
            rows[asset] += first.height
            return compute(first, *others)

        return count

    for asset, (module, function) in COMPUTE.items():
        home = importlib.import_module(f"feature_pipeline.assets.{module}")
        monkeypatch.setattr(home, function, counting(asset, getattr(home, function)))
    return rows


def state(graph: Graph) -> dict[str, pl.DataFrame]:
    """All that the database holds, to the last byte of every table, the audit columns included."""
    relations = {table.table: table for table in TABLES.values()}
    held = {
        name: graph.query(
            f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)), count(*) FROM {name} t"
        )
        for name in (
            *relations,
            *(f"{n}_history" for n, t in relations.items() if t.history),
            "quarantine",
        )
    }
    columns = "asset, source, day, rows, content_hash, revision"
    ledger = f"SELECT {columns} FROM partition_ledger ORDER BY 1, 2, 3"
    return held | {"ledger": graph.query(ledger)}


def test_a_second_run_computes_nothing_and_writes_nothing(new_ran, computed):
    with new_ran() as graph:
        held, scored = state(graph), graph.scorer.texts
        result = graph.run()
        assert computed == dict.fromkeys(COMPUTE, 0)
        assert graph.scorer.texts == scored
        for name, frame in state(graph).items():
            assert frame.equals(held[name]), name
        for asset in TABLES:
            metadata = metadata_of(result, asset)
            assert metadata.get("rows_written", dg.IntMetadataValue(0)).value == 0


def test_one_symbol_fetched_again_leaves_the_others_alone(new_ran):
    with new_ran() as graph:
        held = state(graph)
        graph.run(symbols=["AAA"])
        for name, frame in state(graph).items():
            assert frame.equals(held[name]), name


def test_an_added_symbol_is_computed_as_if_it_had_always_been_there(
    new_graph, world, ran, computed
):
    without = [entry for entry in INSTRUMENTS if entry[0] != "BBB"]
    with new_graph(world, make_universe(without)) as graph:
        graph.run()
        assert all(computed.values())
        assert "BBB" not in graph.table("state_vectors_1d")["symbol"]
        grown = Graph(graph.url, make_universe(), MadeSource(world))
        try:
            # Sectors and members are part of what features compute.
            assert grown.pending("features_1d") == days(START, END)
            grown.run(LISTED, END, symbols=["BBB"])
            assert_same_tables(grown.tables(), ran.tables())
        finally:
            grown.close()


def test_a_changed_feature_recomputes_what_depends_on_it(new_ran, computed, monkeypatch):
    from feature_pipeline.assets import features

    honest = features.compute_features

    def doubled(*inputs):
        return honest(*inputs).with_columns(pl.col("volume_ratio_20d") * 2)

    with new_ran() as graph:
        before = graph.tables(DERIVED)
        monkeypatch.setattr(features, "compute_features", doubled)
        graph.run(versions={"features_1d": "next"})
        assert {asset for asset, rows in computed.items() if rows} == {
            "features_1d",
            "state_vectors_1d",
        }
        after = graph.tables(DERIVED)
        assert after["indicators_1d"].equals(before["indicators_1d"])
        ratio = after["features_1d"]["volume_ratio_20d"]
        assert ratio.equals(before["features_1d"]["volume_ratio_20d"] * 2)
        moved = (
            after["state_vectors_1d"]["volume_ratio"] - before["state_vectors_1d"]["volume_ratio"]
        )
        assert moved.round(9).unique().to_list() == [round(1 / 3, 9)]  # log2(2) / 3


def test_a_new_version_with_the_same_values_goes_no_further(new_ran, computed):
    with new_ran() as graph:
        graph.run(versions={"features_1d": "next"})
        assert {asset for asset, rows in computed.items() if rows} == {"features_1d"}
        day = START + timedelta(days=1)
        versions = graph.query(
            "SELECT DISTINCT code_version FROM partition_ledger"
            f" WHERE asset = 'features_1d' AND day = '{day}'"
        )
        assert versions["code_version"].to_list() == ["next"]
