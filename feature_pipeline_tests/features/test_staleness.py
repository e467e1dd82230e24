"""What turns stale when a declaration changes: what is computed from it, and nothing else.

The oracle knows no declared input: it spoils one feature's expression, computes the whole chain
again and looks which columns moved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_pipeline.errors import FeatureError
from feature_pipeline.features import indicators, price_features, state_vector
from feature_pipeline.features.catalogue import (
    DECLARED,
    TABLES,
    Feature,
    code_version,
    column_inputs,
    dependents,
    find,
    over_universe,
    touched,
)
from feature_pipeline.features.dependencies import Declared, fingerprint
from feature_pipeline.features.prepared import PREPARED, reading
from feature_pipeline_tests.features.market import Tables, chain, make_market

# Where each table's module looks its declarations up.
COMPUTED_FROM = {
    "indicators_1d": (indicators, "INDICATORS"),
    "features_1d": (price_features, "FEATURES"),
    "state_vectors_1d": (state_vector, "STATE_FIELDS"),
}
FRAMES = {
    "indicators": "indicators_1d",
    "features": "features_1d",
    "regime": "regime_predictions_1d",
    "states": "state_vectors_1d",
}
ALL = [(asset, feature) for asset, features in DECLARED.items() for feature in features]
EACH = pytest.mark.parametrize(("asset", "feature"), ALL, ids=[f.name for _, f in ALL])


def with_feature(asset: str, changed: Feature) -> Declared:
    """The declarations with the one of that name replaced."""
    return {
        of: tuple(changed if (of, f.name) == (asset, changed.name) else f for f in features)
        for of, features in DECLARED.items()
    }


def spoilt(feature: Feature, spoil: Callable[[pl.Expr], pl.Expr]) -> Feature:
    """The feature with another expression. Never shared: it stands for this column alone."""

    def expression() -> pl.Expr:
        value = feature.expression()
        return spoil(value.struct.field(feature.part) if feature.part else value)

    return replace(feature, expression=expression, part="")


SPOILING = {
    "gone": lambda value: pl.when(pl.lit(value=False)).then(value),
    "other": lambda value: value * 1.37 + 0.01,
}


@pytest.fixture(scope="module")
def small():
    return make_market(days=560, symbols=2, seed=11)


@pytest.fixture(scope="module")
def right(small) -> Tables:
    return chain(small)


def moved(before: Tables, after: Tables) -> set[tuple[str, str]]:
    return {
        (FRAMES[name], column)
        for name, frame in before
        for column in frame.columns
        if not frame[column].equals(getattr(after, name)[column], null_equal=True)
    }


@EACH
def test_dependents_are_the_columns_that_move(asset, feature, small, right, monkeypatch):
    found: set[tuple[str, str]] = set()
    module, name = COMPUTED_FROM[asset]
    for spoil in SPOILING.values():
        changed = with_feature(asset, spoilt(feature, spoil))[asset]
        with monkeypatch.context() as patch:
            patch.setattr(module, name, changed)
            found |= moved(right, chain(small))
    assert (asset, feature.column) in found, "the oracle has to notice the change itself"
    assert found - {(asset, feature.column)} == set(dependents(feature.name))
    assert {of for of, _ in found} == set(touched(feature.name))


def changes(feature: Feature) -> dict[str, Feature]:
    """Every way in which a declaration may say that its values are others."""
    asset, columns = next(iter(feature.inputs.items()))
    return {
        "version": replace(feature, version=feature.version + 1),
        "expression": replace(feature, expression=lambda: pl.lit(1.0)),
        "bars": replace(feature, lookback_bars=feature.lookback_bars + 1),
        "days": replace(feature, lookback_days=feature.lookback_days + 1),
        "inputs": replace(feature, inputs={**feature.inputs, asset: (*columns, "source")}),
        "part": replace(feature, part="other"),
        "basis": replace(feature, basis="none" if feature.basis == "own day" else "own day"),
    }


BEFORE = {asset: code_version(asset) for asset in TABLES}


def stale(declared: Declared) -> set[str]:
    return {a for a in TABLES if code_version(a, declared=declared) != BEFORE[a]}


@EACH
def test_code_versions_change_for_exactly_those(asset, feature):
    for what, changed in changes(feature).items():
        assert stale(with_feature(asset, changed)) == set(touched(feature.name)), what


@EACH
def test_a_sentence_a_unit_a_category_are_no_change(asset, feature):
    changed = replace(feature, description="Other.", unit="other", category="other")
    assert stale(with_feature(asset, changed)) == set()


@settings(max_examples=60)
@given(st.lists(st.sampled_from(ALL), min_size=1, max_size=4, unique_by=lambda of: of[1].name))
def test_several_changes_are_the_sum_of_them(chosen):
    declared = DECLARED
    for asset, feature in chosen:
        changed = replace(feature, lookback_days=feature.lookback_days + 3)
        declared = {**declared, asset: _replaced(declared[asset], changed)}
    assert stale(declared) == {of for _, feature in chosen for of in touched(feature.name)}


def _replaced(features: tuple[Feature, ...], changed: Feature) -> tuple[Feature, ...]:
    return tuple(changed if feature.name == changed.name else feature for feature in features)


@settings(max_examples=20)
@given(st.data())
def test_the_order_of_declarations_is_no_change(data):
    shuffled = {
        asset: tuple(data.draw(st.permutations(features))) for asset, features in DECLARED.items()
    }
    assert stale(shuffled) == set()


@pytest.mark.parametrize("asset", DECLARED)
def test_a_new_feature_is_nobodys_business_until_it_is_read(asset):
    new = replace(DECLARED[asset][0], name="quite_new")
    assert stale({**DECLARED, asset: (*DECLARED[asset], new)}) == {asset}


def test_what_nobody_reads_touches_its_own_asset():
    assert dependents("sma_200") == ()
    assert touched("sma_200") == ("indicators_1d",)


def test_what_is_read_touches_its_readers_and_theirs():
    assert touched("atr_14") == ("indicators_1d", "state_vectors_1d")
    assert touched("sma_50") == ("indicators_1d", "features_1d")
    assert touched("adx_14") == ("indicators_1d", "regime_predictions_1d", "state_vectors_1d")
    assert [str(ref) for ref in dependents("returns_20d")] == ["features_1d.sector_momentum"]
    assert [str(ref) for ref in dependents("rsi")] == ["state_vectors_1d.missing"]


def test_the_universe_is_in_what_aggregates_over_it_alone():
    assert [asset for asset in TABLES if over_universe(asset)] == ["features_1d"]


def test_whoever_reads_an_aggregate_follows_the_universe(monkeypatch):
    from feature_pipeline.features import catalogue

    field = find("log_return")[1]
    reading = replace(field, inputs={"features_1d": ("sector_momentum",)})
    monkeypatch.setattr(catalogue, "DECLARED", with_feature("state_vectors_1d", reading))
    catalogue._graph.cache_clear()
    try:
        assert over_universe("state_vectors_1d")
    finally:
        catalogue._graph.cache_clear()


def test_every_column_of_a_derived_table_follows_from_something():
    """But the constants that name a model."""
    for asset, table in TABLES.items():
        silent = {name for name, refs in column_inputs(asset).items() if not refs}
        if not table.derived:
            assert silent == set(table.names)
        else:
            assert silent <= {"model", "model_revision", "model_version"}


def test_what_a_column_follows_from_is_read_by_its_table():
    """The columns of the lineage are those that the plan loads, and the other way round."""
    for asset, table in TABLES.items():
        read = {(needed.asset, column) for needed in table.inputs for column in needed.columns}
        shared = {"symbol", "time", "available_at", "availability_basis"}
        followed = {ref for refs in column_inputs(asset).values() for ref in refs}
        assert {ref for ref in followed if ref.column not in shared} <= read
        assert {ref for ref in read if ref[1] not in shared} <= followed


@pytest.mark.parametrize(
    ("asset", "feature"),
    [(asset, feature) for asset, feature in ALL if asset in PREPARED],
    ids=lambda of: getattr(of, "name", of),
)
def test_what_is_declared_is_what_the_expression_reads(asset, feature):
    read = reading(asset, feature.expression())
    declared = {of: set(columns) for of, columns in feature.inputs.items()}
    assert {of: set(columns) for of, columns in read.inputs.items()} == declared
    assert read.needs == feature.needs
    assert read.universe == feature.universe


def test_a_feature_is_found_by_name_and_by_column(monkeypatch):
    from feature_pipeline.features import catalogue

    assert find("rsi_14") == ("indicators_1d", next(f for _, f in ALL if f.name == "rsi_14"))
    old = find("rsi_14")[1]
    new = replace(old, version=2)
    both = {**DECLARED, "indicators_1d": (*DECLARED["indicators_1d"], new)}
    monkeypatch.setattr(catalogue, "DECLARED", both)
    assert find("rsi_14")[1] is new
    assert find("rsi_14__v2")[1] is new


def test_a_misspelt_feature_is_one_line_with_a_guess():
    with pytest.raises(FeatureError, match="did you mean sma_50") as error:
        find("smaa_50")
    assert "\n" not in str(error.value)


def test_fingerprints_tell_declarations_apart():
    marks = [f"{asset} {fingerprint(feature)}" for asset, feature in ALL]
    assert len(set(marks)) == len(marks)
