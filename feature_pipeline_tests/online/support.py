"""Rows to publish, and a moment at which they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from feature_pipeline.schemas import STATE_VECTOR_FIELDS, UTC_TIME

# The server compares with its own clock, so the rows cannot live in a fixed year alone.
NOW = datetime.now(UTC).replace(microsecond=123_457)
DAY = timedelta(days=1)


def rows(
    symbols: Sequence[str] = ("AAPL",),
    at: datetime = NOW - timedelta(hours=1),
    revision: int = 1,
    seed: int = 0,
    **columns: Any,
) -> pl.DataFrame:
    """Random rows of one version; `columns` replaces or adds some (a value or one per symbol)."""
    rng = np.random.default_rng(seed)
    n = len(symbols)
    frame = pl.DataFrame(
        {
            "symbol": list(symbols),
            **{name: rng.normal(size=n) for name in STATE_VECTOR_FIELDS},
            "sma_50": rng.normal(size=n),
            "social_volume_7d": rng.integers(0, 100, size=n),
            "regime": ["trend"] * n,
            "regime_confidence": rng.random(n),
        }
    ).with_columns(
        available_at=pl.lit(at, dtype=UTC_TIME), revision=pl.lit(revision, dtype=pl.Int64)
    )
    return frame.with_columns(
        pl.Series(name, value if isinstance(value, list) else [value] * n, strict=False)
        for name, value in columns.items()
    )
