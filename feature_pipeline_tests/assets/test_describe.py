"""What the graph shows of itself: every table a picture, bounded, of the right days."""

from __future__ import annotations

import base64
import io
import re
from datetime import timedelta
from typing import Any

import dagster as dg
import polars as pl
import pytest
from PIL import Image

from feature_pipeline.assets import describe
from feature_pipeline.assets.describe import Describer
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.pictures.style import MOST_BYTES, WIDTH
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline_tests.assets.world import END, START

IMAGE = re.compile(r"!\[(.*?)\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)")
LAST = END - timedelta(days=1)
TWO = ("ohlcv_1d", "indicators_1d", "features_1d", "regime_predictions_1d", "state_vectors_1d")
"""Tables on the session grid: what they say, and what is there."""
NONE = ("insider_transactions",)
"""Tables without rows in the made world."""


@pytest.fixture(scope="module")
def told(ran) -> dict[str, dict[str, Any]]:
    say = Describer(ran.store)
    return {asset: {key: value.value for key, value in say(asset, END).items()} for asset in TABLES}


@pytest.mark.parametrize("asset", TABLES)
def test_every_table_has_pictures_of_bounded_size(told, asset):
    images = IMAGE.findall(told[asset]["picture"])
    assert len(images) == (0 if asset in NONE else 2 if asset in TWO else 1)
    for title, data in images:
        png = base64.b64decode(data, validate=True)
        assert len(png) <= MOST_BYTES
        assert Image.open(io.BytesIO(png)).width == WIDTH
        assert str(LAST.year) in title
    assert 0 < len(told[asset]["glance"]) < 1000


def test_titles_say_what_is_seen(told):
    prices, coverage = (
        title.replace("\\", "") for title, _ in IMAGE.findall(told["ohlcv_1d"]["picture"])
    )
    # The benchmark first, then by name.
    assert prices.endswith("to 2019-06-14: MKT, AAA, BBB, YOUNG")
    assert "4 symbols, 100 % of the rows" in coverage
    assert told["ohlcv_1d"]["glance"].startswith("MKT close ")


def test_column_lineage_comes_along_where_there_is_any(told):
    for asset in TABLES:
        assert ("dagster/column_lineage" in told[asset]) == TABLES[asset].derived


def test_nothing_after_the_range_is_seen(ran):
    earlier = START + timedelta(days=2)
    found = Describer(ran.store)("ohlcv_1d", earlier)["picture"].value
    title, _ = IMAGE.findall(found)[0]
    assert str(earlier - timedelta(days=1)).replace("-", "\\-") in title


def test_an_empty_table_says_so(ran):
    long_ago = START.replace(year=2003)
    for asset in TABLES:
        found = Describer(ran.store)(asset, long_ago)
        assert not IMAGE.search(found["picture"].value)
        assert found["picture"].value.replace("\\", "").startswith("There is nothing to show: ")
        assert len(found["glance"].value if "glance" in found else "") < 1000


def test_large_days_are_read_no_further_back_than_rows_allow(ran, monkeypatch):
    reads: list[pl.DataFrame] = []
    read = ran.store.read
    monkeypatch.setattr(ran.store, "read", lambda *a, **k: reads.append(read(*a, **k)) or reads[-1])
    for most in (20_000, 30, 1):
        monkeypatch.setattr(describe, "MOST_ROWS", most)
        reads.clear()
        found = Describer(ran.store)("ohlcv_1d", END)
        assert len(IMAGE.findall(found["picture"].value)) == 2
        # A day is never cut: one day of four symbols is the least.
        assert reads[0].height <= max(most, 4)
        assert reads[0]["time"].dt.date().max() == LAST


def test_an_asset_that_is_no_table_is_not_described(ran):
    assert Describer(ran.store)("something_else", END) == {}


def test_a_run_of_the_graph_shows_each_table_once(new_graph, world):
    assets = ("news", "sentiment_scores", "state_vectors_1d")
    with new_graph(world, materializations_of=assets) as graph:
        graph.overrides = {"storage": StorageIOManager(graph.store, Describer(graph.store))}
        assert graph.run().success
        for asset in assets:
            records = graph.instance.fetch_materializations(dg.AssetKey(asset), limit=5000).records
            shown = {
                r.partition_key: r.asset_materialization.metadata
                for r in records
                if "picture" in r.asset_materialization.metadata
            }
            assert list(shown) == [LAST.isoformat()], asset
            assert records[0].partition_key == LAST.isoformat()
        before = _picture(graph, "state_vectors_1d")
        assert graph.run(assets=["state_vectors_1d"]).success
        assert _picture(graph, "state_vectors_1d") == before


def _picture(graph, asset: str) -> str:
    (record,) = graph.instance.fetch_materializations(dg.AssetKey(asset), limit=1).records
    return record.asset_materialization.metadata["picture"].value
