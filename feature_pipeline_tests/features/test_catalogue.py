"""What follows from the declarations: columns, inputs, lookbacks, versions, the registry."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import polars as pl
import pytest

from feature_pipeline.features import expressions as ex
from feature_pipeline.features.catalogue import (
    FEATURES,
    INDICATORS,
    STATE_FIELDS,
    TABLES,
    Feature,
    build_tables,
    code_version,
    definitions,
    find,
    touched,
)
from feature_pipeline.features.dependencies import ColumnRef, fingerprint, version_of
from feature_pipeline.schemas import STATE_VECTOR_FIELDS, Input
from feature_pipeline.timeframes import TIMEFRAMES

DERIVED = [asset for asset, table in TABLES.items() if table.derived]


def read(asset: str, of: str) -> Input:
    return next(i for i in TABLES[asset].inputs if i.asset == of)


def test_the_tables_are_those_of_the_graph_sources_first():
    assert list(TABLES) == [
        "ohlcv_1d",
        "corporate_actions",
        "news",
        "reddit",
        "macro_indicators",
        "insider_transactions",
        "sentiment_scores",
        "indicators_1d",
        "features_1d",
        "regime_predictions_1d",
        "state_vectors_1d",
    ]


def test_the_features_are_those_promised():
    """And in that order; what is added comes after them."""
    promised = [
        "sma_20",
        "sma_50",
        "sma_200",
        "ema_12",
        "ema_26",
        "rsi_14",
        "macd_line",
        "macd_signal",
        "macd_hist",
        "atr_14",
        "bb_upper",
        "bb_middle",
        "bb_lower",
        "adx_14",
    ]
    assert [f.column for f in INDICATORS][: len(promised)] == promised
    promised = [
        "returns_1d",
        "returns_5d",
        "returns_20d",
        "returns_60d",
        "volatility_20d",
        "volatility_60d",
        "momentum_20d",
        "momentum_60d",
        "volume_ratio_20d",
        "sma_ratio_50",
        "bb_position",
        "sector_momentum",
        "market_beta_60d",
        "news_sentiment_24h",
        "social_volume_7d",
        "insider_net_buying_90d",
    ]
    assert [f.column for f in FEATURES][: len(promised)] == promised
    assert tuple(f.name for f in STATE_FIELDS) == STATE_VECTOR_FIELDS


def test_a_new_version_is_a_column_of_its_own():
    assert replace(FEATURES[0], version=2).column == "returns_1d__v2"


@pytest.mark.parametrize("asset", DERIVED)
def test_every_input_exists_with_its_columns(asset):
    for reader in TABLES[asset].inputs:
        assert set(reader.columns) <= set(TABLES[reader.asset].names)
        assert set(reader.where) <= set(TABLES[reader.asset].names)


def test_lookbacks_follow_from_the_features():
    assert read("indicators_1d", "ohlcv_1d").lookback_bars == 400
    assert read("features_1d", "ohlcv_1d").lookback_bars == 60
    assert read("features_1d", "indicators_1d").lookback_bars == 0
    assert read("features_1d", "sentiment_scores").lookback_days == 7
    assert read("features_1d", "insider_transactions").lookback_days == 90
    assert read("regime_predictions_1d", "indicators_1d").lookback_bars == 502
    assert read("state_vectors_1d", "indicators_1d").lookback_bars == 99
    assert read("state_vectors_1d", "sentiment_scores").lookback_days == 1


def test_what_may_be_missing_is_a_gap_and_bars_are_not():
    for table in TABLES.values():
        for reader in table.inputs:
            bars = reader.asset.endswith("_1d")
            assert reader.on_missing == ("fail" if bars else "gap")


def test_the_active_model_is_in_the_inputs_and_code_versions_of_its_readers():
    other = build_tables("finbert", "abc123")
    scores = next(i for i in other["features_1d"].inputs if i.asset == "sentiment_scores")
    assert scores.where == {"model": "finbert", "model_revision": "abc123"}
    changed = {a for a in TABLES if code_version(a) != code_version(a, other)}
    assert changed == {"sentiment_scores", "features_1d", "state_vectors_1d"}
    again = build_tables("finbert", "abc124")
    assert code_version("features_1d", other) != code_version("features_1d", again)


def test_code_versions_are_stable():
    """They go into the ledger: another way to compute them makes every stored day stale."""
    of = ColumnRef("indicators_1d", "mean")
    feature = Feature(
        name="mean",
        description="A mean.",
        unit="price",
        category="trend",
        inputs={"ohlcv_1d": ("close",), "corporate_actions": ("value", "kind")},
        expression=partial(ex.sma, 20),
        lookback_bars=19,
        basis="own day",
    )
    assert fingerprint(feature) == (
        "mean@1 sma(20) - own-day 19b0d corporate_actions(kind,value) ohlcv_1d(close)"
    )
    graph = {of: (ColumnRef("ohlcv_1d", "close"),)}
    version = version_of(of.asset, graph, {of.asset: (feature,)}, lambda asset: (f"{asset}@1",))
    assert version == "2a717b63153c6e52"


def test_every_frame_fits_its_table(tables):
    for name, frame in tables:
        asset = {"regime": "regime_predictions_1d", "states": "state_vectors_1d"}.get(
            name, f"{name}_1d"
        )
        schema = TABLES[asset]
        assert tuple(frame.columns) == schema.names
        assert frame.schema == pl.Schema({c.name: c.dtype for c in schema.columns})
        for column in schema.columns:
            assert column.nullable or frame[column.name].null_count() == 0


def test_scores_outside_their_range_are_refused():
    rows = pl.DataFrame(
        {
            "sentiment": [0.5, -1.5, None, float("nan"), 0.0, 0.0],
            "confidence": [1.0, 1.0, 1.0, 1.0, 1.1, 1.0],
            "label": ["positive"] * 5 + ["good"],
        }
    )
    rules = TABLES["sentiment_scores"].rules
    bad = rows.select(pl.any_horizontal(rule.violated for rule in rules)).to_series()
    assert bad.to_list() == [False, True, True, True, True, True]


def test_a_name_is_the_timeframe_s_that_is_asked_for():
    assert find("rsi_14")[0] == "indicators_1d"
    assert find("rsi_14", "1h")[0] == "indicators_1h"
    assert touched("adx_14", "5m") == (
        "indicators_5m",
        "regime_predictions_5m",
        "state_vectors_5m",
    )
    # A name that the timeframe has not is another's.
    assert find("returns_1d", "1h")[0] == "features_1d"


def test_the_registry_has_a_row_per_feature_and_a_sentence_for_each():
    rows = definitions()
    features = len(INDICATORS) + len(FEATURES) + len(STATE_FIELDS)
    assert rows.height == features * len(TIMEFRAMES)
    assert rows.select("source_table", "name", "version").is_unique().all()
    assert definitions(["1d"]).height == features
    assert rows.select("source_table", "column").is_unique().all()
    assert rows["description"].str.ends_with(".").all()
    assert (rows["unit"] != "").all()
    row = rows.row(by_predicate=pl.col("name") == "momentum_60d", named=True)
    assert row["computation"] == "total_return(60, until=5)"
    assert row["lookback_bars"] == 60
    assert "ohlcv_1d.close" in row["dependencies"]
