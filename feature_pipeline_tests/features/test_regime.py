"""The regime rule: against a replay bar by bar, its memory, and what it says about the unknown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.features.regime import predict_regime
from feature_pipeline.schemas import UTC_TIME
from feature_pipeline_tests.features.reference import regimes

START = datetime(2020, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def indicators(adx: np.ndarray, width: np.ndarray, symbol: str = "A") -> pl.DataFrame:
    """Bands of the given width around 100; NaN becomes null."""
    time = pl.datetime_range(
        START, START + (len(adx) - 1) * DAY, "1d", time_unit="us", eager=True
    ).cast(UTC_TIME)
    return pl.DataFrame(
        {
            "symbol": [symbol] * len(adx),
            "time": time,
            "available_at": time.dt.offset_by("21h"),
            "availability_basis": ["assumed"] * len(adx),
            "adx_14": adx,
            "bb_upper": 100 + 50 * width,
            "bb_middle": np.full(len(adx), 100.0),
            "bb_lower": 100 - 50 * width,
        }
    ).with_columns(pl.selectors.float().fill_nan(None))


def walk(seed: int, bars: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """ADX that wanders through all thresholds, and widths in steps, so that ties occur."""
    rng = np.random.default_rng(seed)
    adx = 22.5 + 7 * np.sin(np.cumsum(rng.normal(0, 0.2, bars))) + rng.normal(0, 0.7, bars)
    width = np.round(0.1 + 0.05 * np.abs(np.cumsum(rng.normal(0, 0.1, bars))), 3)
    return adx, width


def ramp(levels: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    """ADX levels after a warm-up of 251 bars, on a flat width: its percentile is one half."""
    adx = np.concatenate([np.full(251, 22.5), *(np.full(n, level) for level, n in levels)])
    return adx, np.full(len(adx), 0.1)


def labels(frame: pl.DataFrame) -> list[str | None]:
    return predict_regime(frame)["regime"].to_list()


@settings(max_examples=25)
@given(seed=st.integers(0, 2**16), holes=st.lists(st.integers(0, 899), max_size=4))
def test_the_rule_equals_its_replay_whatever_bars_are_unknown(seed, holes):
    adx, width = walk(seed)
    adx[holes] = np.nan
    got = labels(indicators(adx, width))
    assert got == regimes(adx, width)
    assert any(got)


def test_hysteresis_keeps_a_label_between_the_thresholds():
    adx, width = ramp([(26, 1), (22.1, 3), (21.9, 1), (24.9, 2), (19, 1), (22.9, 3), (23.1, 1)])
    got = labels(indicators(adx, width))[251:]
    expected = ["trend"] * 4 + ["transition"] * 3 + ["range"] * 4 + ["transition"]
    assert got == expected


def test_a_narrow_band_is_no_trend_and_a_wide_one_no_range():
    rising = np.linspace(0.1, 0.2, 400)
    assert set(labels(indicators(np.full(400, 30.0), rising[::-1].copy()))[251:]) == {None}
    trend = labels(indicators(np.full(400, 30.0), rising))
    assert trend[:251] == [None] * 251
    assert set(trend[251:]) == {"trend"}
    assert set(labels(indicators(np.full(400, 10.0), rising[::-1].copy()))[251:]) == {"range"}


def test_a_crossing_is_forgotten_after_252_bars():
    adx, width = ramp([(21, 1), (24, 1), (26, 1), (23.0, 300)])
    got = labels(indicators(adx, width))[253:]
    assert got[:252] == ["trend"] * 252
    assert set(got[252:]) == {"transition"}


def test_unknown_bars_leave_the_label_open_until_it_is_certain():
    adx, width = ramp([(26, 5), (24, 40), (21.5, 1), (22.5, 5), (23.5, 5)])
    adx[251 + 10] = np.nan
    got = labels(indicators(adx, width))[251:]
    assert got[5:10] == ["trend"] * 5
    # Unknown bar: it may have crossed into a range, or ended the trend, or done nothing.
    assert got[10:45] == [None] * 35
    # A range would have ended at 24, a trend at 21.5: whatever it was, it is transition now.
    assert got[45:] == ["transition"] * 11


def test_its_lookback_bounds_its_memory_exactly():
    adx, width = walk(5, 1200)
    frame = indicators(adx, width)
    full = predict_regime(frame)
    lookback = TABLES["regime_predictions_1d"].inputs[0].lookback_bars
    assert lookback == 502
    for row in (900, 1000, 1199):
        part = predict_regime(frame[row - lookback : row + 1])
        assert part.tail(1).equals(full[row : row + 1])


@pytest.mark.parametrize(
    ("adx", "expected"), [(22.0 + 9, 0.5), (40.0, 1.0), (60.0, 1.0), (25.0, 1 / 6)]
)
def test_confidence_of_a_trend_is_its_distance_from_the_end(adx, expected):
    got = predict_regime(indicators(*ramp([(adx, 1)])))
    assert got["confidence"][-1] == pytest.approx(expected)


def test_confidence_of_a_range_and_of_a_transition():
    assert predict_regime(indicators(*ramp([(16.5, 1)])))["confidence"][-1] == pytest.approx(0.5)
    adx, width = ramp([(26, 1), (21, 1), (22.5, 1)])
    got = predict_regime(indicators(adx, width))
    assert got["regime"][-1] == "transition"
    assert got["confidence"][-1] == pytest.approx(0.5)


def test_inputs_are_json_and_rows_say_their_version():
    got = predict_regime(indicators(*ramp([(26.123456789, 1)])))
    assert got["inputs"][-1] == '{"adx":26.123457,"percentile":0.501984}'
    assert got["inputs"][0] is None
    assert set(got["model_version"]) == {"rule-1"}


def test_a_bar_that_arrived_late_is_unknown_to_those_before():
    adx, width = ramp([(26, 1), (24, 3), (19, 1), (21, 3), (19, 2)])
    crossing = 255  # the range begins here
    frame = indicators(adx, width).with_columns(
        available_at=pl.when(pl.int_range(pl.len()) == crossing)
        .then(pl.col("available_at") + pl.duration(days=2))
        .otherwise("available_at")
    )
    # The bar after it had no percentile; what it was stays open until the next crossing.
    assert labels(frame)[crossing - 1 :] == ["trend", "range", None, None, None, "range", "range"]


def test_symbols_do_not_leak_into_each_other():
    one, two = walk(1), walk(2)
    both = pl.concat([indicators(*two, symbol="B"), indicators(*one, symbol="A")])
    got = predict_regime(both)
    assert got["regime"].to_list() == regimes(*one) + regimes(*two)
