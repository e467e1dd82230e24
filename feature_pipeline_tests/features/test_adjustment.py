"""Splits, dividends, gaps and days without corporate actions, on series small enough to read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from feature_pipeline.features.adjustment import NO_GAP, in_order, last_late, session_grid
from feature_pipeline.schemas import UTC_TIME

DAY = [datetime(2024, 3, day, tzinfo=UTC) for day in range(1, 11)]


def bars(closes: list[float | None], symbol: str = "A", late: dict[int, int] | None = None):
    """Daily bars; None is a gap row; `late` gives days of delay by position."""
    delays = late or {}
    return pl.DataFrame(
        {
            "symbol": [symbol] * len(closes),
            "time": DAY[: len(closes)],
            "close": closes,
            "available_at": [
                None if c is None else DAY[i] + timedelta(hours=21, days=delays.get(i, 0))
                for i, c in enumerate(closes)
            ],
        },
        schema={
            "symbol": pl.String,
            "time": UTC_TIME,
            "close": pl.Float64,
            "available_at": UTC_TIME,
        },
    ).with_columns(availability_basis=pl.lit("assumed"))


def actions(*rows: tuple) -> pl.DataFrame:
    """(day index, kind, value[, symbol])."""
    return pl.DataFrame(
        [
            {
                "symbol": row[3] if len(row) > 3 else "A",
                "time": DAY[row[0]],
                "available_at": DAY[row[0]] + timedelta(hours=14),
                "kind": row[1],
                "value": row[2],
            }
            for row in rows
        ],
        schema={
            "symbol": pl.String,
            "time": UTC_TIME,
            "available_at": UTC_TIME,
            "kind": pl.String,
            "value": pl.Float64,
        },
    )


def factors(frame: pl.DataFrame, events: pl.DataFrame) -> tuple[list[float], list[float]]:
    grid = session_grid(frame, events)
    return grid["split_factor"].to_list(), grid["dividend_factor"].to_list()


def test_a_split_adjusts_the_bars_before_its_ex_date():
    split, dividend = factors(bars([10, 10, 5, 5]), actions((2, "split", 2.0)))
    assert split == [2, 2, 1, 1]
    assert dividend == [1, 1, 1, 1]


def test_splits_multiply_and_dividends_take_their_share_of_the_close_before():
    events = actions((1, "split", 2.0), (3, "split", 3.0), (2, "dividend", 1.0))
    split, dividend = factors(bars([20, 10, 9, 3]), events)
    assert split == [6, 3, 3, 1]
    assert dividend == pytest.approx([0.9, 0.9, 1, 1])


def test_a_dividend_on_the_day_of_a_split_is_paid_on_new_shares():
    events = actions((1, "split", 2.0), (1, "dividend", 0.5))
    _, dividend = factors(bars([20, 9.5]), events)
    assert dividend == pytest.approx([1 - 0.5 / 10, 1])


def test_an_action_without_a_bar_applies_at_the_next_one():
    split, dividend = factors(
        bars([20, None, None, 9]), actions((1, "split", 2.0), (2, "dividend", 1.0))
    )
    assert split == [2, 2, 2, 1]
    assert dividend == pytest.approx([1 - 1 / 10] * 3 + [1])


@pytest.mark.parametrize("day", [0, 4, 9])
def test_an_action_outside_the_loaded_bars_changes_nothing(day):
    events = actions((day, "split", 4.0), (day, "dividend", 1.0))
    assert factors(bars([10, 11, 12, 13]), events) == ([1] * 4, [1] * 4)


def test_actions_touch_their_own_symbol_only():
    frame = pl.concat([bars([10, 10], "B"), bars([10, 10], "A"), bars([7, 7], "C")])
    split, _ = factors(frame, actions((1, "split", 2.0, "B"), (1, "split", 5.0, "unknown")))
    assert split == [1, 1, 2, 1, 1, 1]


def test_a_dividend_as_large_as_the_price_changes_nothing_before_it():
    _, dividend = factors(bars([10, 10, 10]), actions((1, "dividend", 10.0)))
    assert dividend == [1, 1, 1]


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), 0.0, -1.0])
def test_a_bad_price_is_a_gap_to_what_follows(bad):
    frame = bars([1.0, 1.0, 1.0, 1.0]).with_columns(close=pl.Series([1.0, bad, 1.0, 1.0]))
    grid = session_grid(frame, actions())
    assert grid["usable"].to_list() == [True, False, True, True]
    assert grid["run"].to_list() == [1, 0, 1, 2]
    assert grid["since_gap"].to_list() == [NO_GAP, 0, 1, 2]


def test_a_day_without_collected_actions_is_a_gap_for_its_symbol_or_all():
    frame = pl.concat([bars([1.0] * 4, "A"), bars([1.0] * 4, "B")])
    one = actions((1, None, None, "B"))
    assert session_grid(frame, one)["run"].to_list() == [1, 2, 3, 4, 1, 0, 1, 2]
    everyone = actions((2, None, None, None))
    assert session_grid(frame, everyone)["run"].to_list() == [1, 2, 0, 1] * 2


def test_a_bar_that_arrived_late_is_a_gap_to_those_before_it_arrived():
    frame = pl.concat([bars([1.0] * 6, "A", late={1: 2}), bars([1.0] * 2, "B")])
    grid = session_grid(frame, actions())
    # Day 1 arrives with day 3: only day 2 went without it.
    assert grid["run"].to_list() == [1, 2, 1, 4, 5, 6, 1, 2]
    assert grid["since_gap"].to_list()[2] == 1


def test_of_several_late_bars_the_nearest_counts():
    frame = in_order(bars([1.0] * 6, late={0: 4, 1: 2}))
    assert last_late(frame).tolist() == [-1, 0, 1, 0, -1, -1]


def test_no_late_bar_is_none():
    assert last_late(in_order(pl.concat([bars([1.0, None, 1.0], "A"), bars([1.0], "B")]))) is None


def test_rows_are_put_in_order_whatever_order_they_come_in():
    frame = pl.concat([bars([1.0, 2.0], "B"), bars([3.0, 4.0], "A")])
    assert in_order(frame)["close"].to_list() == [3, 4, 1, 2]
    assert in_order(frame)["group"].to_list() == [0, 0, 1, 1]
    # One symbol in two places.
    assert in_order(frame[[0, 2, 1]])["symbol"].to_list() == ["A", "B", "B"]


def test_no_rows_are_no_rows():
    assert session_grid(bars([]), actions()).height == 0
    assert session_grid(bars([]), actions((1, "split", 2.0))).height == 0
