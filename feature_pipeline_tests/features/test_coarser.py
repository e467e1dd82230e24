"""Bars of five minutes out of minutes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from feature_pipeline.features.coarser import coarser
from feature_pipeline.schemas import UTC_TIME, ohlcv

OPEN = datetime(2024, 1, 16, 14, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def minutes(rows: dict[int, tuple[float, float, float, float, float]], late: int = -1):
    frame = pl.DataFrame(
        [(OPEN + n * MINUTE, *prices) for n, prices in rows.items()],
        schema={"time": UTC_TIME, **dict.fromkeys(_PRICES, pl.Float64)},
        orient="row",
    )
    lag = pl.when(pl.col("time") == OPEN + late * MINUTE).then(30).otherwise(2)
    return ohlcv("1m").conform(
        frame.with_columns(
            symbol=pl.lit("A"),
            available_at=pl.col("time") + MINUTE + pl.duration(minutes=lag),
            availability_basis=pl.lit("observed"),
            session=pl.col("time").dt.date(),
            source=pl.lit("made"),
        )
    )


_PRICES = ("open", "high", "low", "close", "volume")


@pytest.fixture
def grid():
    times = pl.datetime_range(OPEN, OPEN + 14 * MINUTE, "5m", time_unit="us", eager=True)
    return pl.DataFrame({"time": times}).select(
        pl.lit("A").alias("symbol"),
        "time",
        end=pl.col("time") + 5 * MINUTE,
        session=pl.col("time").dt.date(),
    )


def test_a_bar_is_what_its_minutes_are(grid):
    found = coarser(
        minutes(
            {0: (1, 4, 1, 2, 10), 2: (2, 9, 2, 3, 20), 4: (3, 3, 0.5, 1, 30), 5: (7, 8, 6, 7, 5)}
        ),
        grid,
    )
    first, second = found.iter_rows(named=True)
    assert [first[n] for n in ("time", "end", *_PRICES)] == [
        *(OPEN, OPEN + 5 * MINUTE),
        *(1, 9, 0.5, 1, 60),
    ]
    assert first["available_at"] == OPEN + 7 * MINUTE
    assert (second["time"], second["volume"]) == (OPEN + 5 * MINUTE, 5)
    # Its minute was known at once; that no other trade would follow only when it had ended.
    assert second["available_at"] == OPEN + 12 * MINUTE


def test_a_bar_is_known_when_the_last_of_its_minutes_is(grid):
    found = coarser(minutes({0: (1, 1, 1, 1, 1), 1: (1, 1, 1, 1, 1), 3: (1, 1, 1, 1, 1)}, 1), grid)
    assert found["available_at"].item() == OPEN + 32 * MINUTE


def test_what_is_traded_outside_of_the_grid_is_in_no_bar(grid):
    found = coarser(minutes({-1: (9, 9, 9, 9, 9), 16: (9, 9, 9, 9, 9)}), grid)
    assert found.is_empty()
    assert found.columns == [*ohlcv("1m").names, "end"]
