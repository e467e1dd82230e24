"""Stored values per column and version: values must not change without a new version.

When a test here fails, either a change was not meant to alter values, and is wrong, or it was, and
then the declaration's version has to go up. With the new version, write the values anew:

    python -m feature_pipeline_tests.features.test_golden
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from feature_pipeline.features.catalogue import FEATURES, INDICATORS, STATE_FIELDS, code_version
from feature_pipeline.features.declarations import REGIME_MODEL_VERSION
from feature_pipeline_tests.features.market import chain, make_market

PATH = Path(__file__).with_name("golden.json")

HELD = {"indicators": INDICATORS, "features": FEATURES, "states": STATE_FIELDS}


def sample() -> dict[str, list[float | None] | list[str | None]]:
    """A few values of each column, by table, feature and version, to nine significant digits."""
    tables = dict(iter(chain(make_market(days=640, symbols=2, seed=42))))
    rows = {}
    for name, features in HELD.items():
        picked = tables[name].filter(pl.col("symbol") == "S00")[-80::16]
        for feature in features:
            values = picked[feature.column].round_sig_figs(9).to_list()
            rows[f"{name}.{feature.tag}"] = values
    regime = tables["regime"].filter(pl.col("symbol") == "S00")[-80::16]
    rows[f"regime@{REGIME_MODEL_VERSION}"] = regime["regime"].to_list()
    rows[f"confidence@{REGIME_MODEL_VERSION}"] = regime["confidence"].round_sig_figs(9).to_list()
    return rows


@pytest.fixture(scope="module")
def stored() -> dict:
    return json.loads(PATH.read_text())


@pytest.fixture(scope="module")
def current() -> dict:
    return sample()


def test_every_declared_version_has_its_stored_values(stored, current):
    assert sorted(stored) == sorted(current), "write the values of the new version, see above"


def test_no_value_changed_without_a_new_version(stored, current):
    def same(one, other) -> bool:
        if isinstance(one, float) and isinstance(other, float):
            return one == pytest.approx(other, rel=1e-8, abs=1e-12)
        return one == other

    changed = [
        key
        for key, values in current.items()
        if not all(map(same, values, stored.get(key, values)))
    ]
    assert not changed, f"{', '.join(changed)}: values changed; raise the version or mend the code"


def test_the_stored_values_say_something(stored):
    for key, values in stored.items():
        assert any(value is not None for value in values), key
    assert code_version("features_1d")


if __name__ == "__main__":
    lines = (f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(sample().items()))
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
