"""Every indicator, feature and state field against an implementation of its definition."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from feature_pipeline.features.catalogue import FEATURES, INDICATORS, STATE_FIELDS
from feature_pipeline.features.indicators import compute_indicators
from feature_pipeline.schemas import STATE_VECTOR_FIELDS
from feature_pipeline_tests.features import reference
from feature_pipeline_tests.features.compare import assert_values
from feature_pipeline_tests.features.market import BENCHMARK


@pytest.fixture(scope="module")
def expected_features(market) -> pd.DataFrame:
    return reference.features(market, BENCHMARK)


@pytest.fixture(scope="module")
def expected_states(market, tables, expected_features) -> pd.DataFrame:
    return reference.states(market, tables.indicators, expected_features)


def test_indicators_are_bit_for_bit_those_of_ta_lib_where_nothing_was_split(market):
    bars = market.bars.with_columns(pl.col("open", "high", "low", "close"))
    got = compute_indicators(bars, market.actions.clear())
    for (name,), part in got.group_by("symbol"):
        raw = bars.filter(pl.col("symbol") == name).sort("time")
        expected = reference.indicators(*(raw[c].to_numpy() for c in ("high", "low", "close")))
        for feature in INDICATORS:
            values = part[feature.column].fill_null(np.nan).to_numpy()
            np.testing.assert_array_equal(values, expected[feature.name], err_msg=feature.name)


@pytest.mark.parametrize("symbol", ["S00", "S01", "S03"])
def test_indicators_are_what_the_history_on_that_days_basis_gives(market, tables, symbol):
    """The last value of TA-Lib on the history as it looked on the day, at each of many days."""
    bars = reference.per_symbol(market.bars)[symbol]
    actions = market.actions.filter(pl.col("symbol") == symbol).to_pandas()
    got = tables.indicators.filter(pl.col("symbol") == symbol)
    columns = {feature.name: np.full(len(bars), np.nan) for feature in INDICATORS}
    rows = np.arange(0, len(bars), 7)
    for row in rows:
        past = bars.iloc[: row + 1]
        basis = reference.split_basis(past, actions)
        values = reference.indicators(
            *((past[c] / basis).to_numpy() for c in ("high", "low", "close"))
        )
        for name, column in values.items():
            columns[name][row] = column[-1]
    for name, column in columns.items():
        assert_values(got[name].gather(rows), column[rows], close=bars.close.max())


@pytest.mark.parametrize("name", [feature.name for feature in FEATURES])
def test_each_feature_equals_its_definition(tables, expected_features, name):
    assert_values(tables.features[name], expected_features[name].to_numpy())
    assert tables.features[name].count() > 500


@pytest.mark.parametrize("name", [*STATE_VECTOR_FIELDS, "document_count"])
def test_each_state_field_equals_its_definition(tables, expected_states, name):
    got = tables.states[name].cast(pl.Float64)
    assert_values(got, expected_states[name].to_numpy())
    assert got.count() > 500
    assert got.n_unique() > 1


def test_missing_names_the_null_fields_in_order(tables):
    for row in tables.states.sample(200, seed=1).rows(named=True):
        assert row["missing"] == [name for name in STATE_VECTOR_FIELDS if row[name] is None]


def test_state_fields_stay_in_their_scale(tables):
    for field in STATE_FIELDS:
        low = -1.0 if field.unit.startswith("-1") else 0.0
        assert tables.states[field.column].drop_nulls().is_between(low, 1.0).all()


def test_the_regimes_all_occur_and_say_what_they_rest_on(tables):
    known = tables.regime.filter(pl.col("regime").is_not_null())
    assert set(known["regime"]) == {"trend", "range", "transition"}
    inputs = known["inputs"].str.json_decode(
        pl.Struct({"adx": pl.Float64, "percentile": pl.Float64})
    )
    assert inputs.struct.field("adx").is_between(0, 100).all()
    assert inputs.struct.field("percentile").is_between(0, 1).all()
    assert known["confidence"].is_between(0, 1).all()
    assert known["confidence"].n_unique() > 100
