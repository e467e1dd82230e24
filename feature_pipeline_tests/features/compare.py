"""How two frames of features are held against each other."""

from __future__ import annotations

import numpy as np
import polars as pl
from polars.testing import assert_frame_equal

from feature_pipeline.features.adjustment import KEYS

TOLERANCE = 1e-9


def scale(name: str, values: np.ndarray, close: float) -> float:
    """The column's own scale; for MACD, whose values pass through zero, the close."""
    if name.startswith("macd_"):
        return close
    known = np.abs(values[np.isfinite(values)])
    return max(float(known.max()) if len(known) else 1.0, 1e-12)


def assert_values(got: pl.Series, expected: np.ndarray, close: float = 1.0) -> None:
    """The same values are missing, and the others agree to 1e-9 of the column's scale."""
    assert not got.is_nan().any(), f"{got.name} holds NaN"
    mine, theirs = got.to_numpy().astype(float), np.asarray(expected, dtype=float)
    missing = np.isnan(mine) != np.isnan(theirs)
    assert not missing.any(), f"{got.name}: missing differs at rows {np.flatnonzero(missing)[:5]}"
    off = np.nanmax(np.abs(mine - theirs), initial=0.0) / scale(got.name, theirs, close)
    assert off <= TOLERANCE, f"{got.name} is off by {off:.2e} of its scale"


def assert_same(got: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Two tables of one kind: keys and text equal, numbers to 1e-9 of the column's scale."""
    numbers = [n for n, t in expected.schema.items() if t == pl.Float64]
    # JSON of rounded inputs can differ in its last digit where a number sits on the edge.
    others = [n for n in expected.columns if n not in (*numbers, "inputs")]
    assert_frame_equal(got.select(others), expected.select(others))
    for name in numbers:
        assert_values(got[name], expected[name].to_numpy(), close=1.0 if name == "macd" else 10.0)


def trimmed(frame: pl.DataFrame, since) -> pl.DataFrame:
    return frame.filter(pl.col("time") >= since)


__all__ = ["KEYS", "TOLERANCE", "assert_same", "assert_values", "scale", "trimmed"]
