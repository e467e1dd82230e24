"""What is drawn is where it belongs: gaps, regimes, splits, missing rows and fields."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from feature_pipeline.pictures import events, grids, prices
from feature_pipeline.pictures.prices import REGIME_COLOURS, ratio
from feature_pipeline.pictures.style import BLUE, GREEN, INK, ORANGE, PURPLE, WIDTH, day_numbers
from feature_pipeline_tests.pictures import support
from feature_pipeline_tests.pictures.support import FIRST, column_of, of_colour, pixels

EXPECTED = support.sessions(["AAA"])
BARS = support.bars(EXPECTED)
LAST = EXPECTED["time"].max().date()
PANEL = slice(78, 270)
"""Rows of the only panel of a picture with one symbol."""


def at(day: date) -> int:
    return column_of(day, FIRST, LAST)


def test_a_session_without_a_bar_is_a_gap_in_the_line():
    missing = date(2019, 3, 6)  # a Wednesday
    gone = BARS.filter(pl.col("time").dt.date() != missing)

    def line(bars: pl.DataFrame) -> np.ndarray:
        found = pixels(prices.price(bars, support.actions("AAA"), EXPECTED, ["AAA"]))
        return (of_colour(found, INK, least=120))[PANEL].any(axis=0)

    whole, broken = line(BARS), line(gone)
    assert whole[at(FIRST) + 2 : at(LAST) - 2].all()  # weekends are no gaps
    gap = slice(at(missing) - 3, at(missing) + 4)
    assert whole[gap].all()
    assert not broken[gap].any()
    elsewhere = np.ones(WIDTH, bool)
    elsewhere[at(missing - timedelta(days=1)) - 2 : at(missing + timedelta(days=1)) + 3] = False
    assert (whole == broken)[elsewhere].all()


def test_a_bar_between_two_gaps_is_a_dot():
    alone = date(2019, 3, 6)
    around = [alone - timedelta(days=1), alone + timedelta(days=1)]
    bars = BARS.filter(~pl.col("time").dt.date().is_in(around))
    found = pixels(prices.price(bars, support.actions("AAA"), EXPECTED, ["AAA"]))
    assert of_colour(found, INK, least=120)[PANEL, at(alone) - 1 : at(alone) + 2].any()


@pytest.mark.parametrize("regime", REGIME_COLOURS)
def test_a_regime_is_shaded_where_it_is(regime):
    begin, end = date(2019, 2, 4), date(2019, 3, 8)
    other = next(name for name in REGIME_COLOURS if name != regime)
    inside = pl.col("time").dt.date().is_between(begin, end)
    labels = EXPECTED.with_columns(
        regime=pl.when(inside)
        .then(pl.lit(regime))
        .when(pl.col("time").dt.date() < date(2019, 4, 1))
        .then(pl.lit(other))
    )
    found = pixels(prices.regimes(BARS, labels, EXPECTED, ["AAA"]))[PANEL]

    def shaded(name: str, day: date) -> bool:
        column = found[:, at(day)]
        shade = of_colour(column, REGIME_COLOURS[name]) & (column[:, 3] < 110)
        return bool(shade.mean() > 0.8)

    for day in (begin, begin + timedelta(days=12), date(2019, 3, 7)):
        assert shaded(regime, day)
        assert not shaded(other, day)
    for day in (FIRST, date(2019, 1, 31), date(2019, 3, 12)):
        assert shaded(other, day)
        assert not shaded(regime, day)
    assert not any(shaded(name, date(2019, 4, 15)) for name in REGIME_COLOURS)  # no label there


def test_runs_of_a_regime_reach_to_the_next_session():
    days = day_numbers(EXPECTED["time"])[:6]  # Tuesday to Friday, Monday, Tuesday
    labels = pl.Series(["trend", "trend", None, "trend", "range", "trend"])
    spans = prices.regime_spans(days, labels, "trend")
    start = float(days[0])
    assert spans == [(start, 2.0), (start + 3, 3.0), (start + 7, 1.0)]
    assert prices.regime_spans(days[:0], labels[:0], "trend") == []


def test_a_split_and_a_dividend_are_marked_on_their_day():
    split, paid = date(2019, 2, 13), date(2019, 4, 3)
    outside = date(2018, 6, 1)
    known = support.actions(
        "AAA", (split, "split", 2.0), (paid, "dividend", 0.3), (outside, "split", 3.0)
    )
    found = pixels(prices.price(BARS, known, EXPECTED, ["AAA"]))[PANEL]
    orange, green = (of_colour(found, c, least=120) for c in (ORANGE, GREEN))
    assert (
        orange[:, at(split) - 1 : at(split) + 2].any(axis=1).mean() > 0.5
    )  # top to bottom, dashed
    assert green[:, at(paid) - 1 : at(paid) + 2].any()
    assert green.any(axis=0).sum() <= 4
    assert not orange[:, : at(split) - 4].any()
    other = support.actions("BBB", (split, "split", 2.0))
    assert not of_colour(
        pixels(prices.price(BARS, other, EXPECTED, ["AAA"]))[PANEL], ORANGE, least=120
    ).any()


def test_ratios_are_written_as_people_write_them():
    assert [ratio(v) for v in (2.0, 1.5, 0.1, 7.0, 1 / 3, 1.0370370370)] == [
        "2:1", "3:2", "1:10", "7:1", "1:3", "1.04",
    ]  # fmt: skip


def test_returns_beyond_the_band_stand_out():
    day = date(2019, 3, 6)
    rows = EXPECTED.with_columns(
        returns_1d=pl.when(pl.col("time").dt.date() == day).then(-0.09).otherwise(0.005),
        volatility_20d=pl.lit(0.16),
    )
    found = pixels(prices.returns(rows, EXPECTED, ["AAA"]))[PANEL]
    orange = of_colour(found, ORANGE, least=120).any(axis=0)
    assert orange[at(day) - 1 : at(day) + 2].any()
    assert orange.sum() <= 4


# -- maps -----------------------------------------------------------------------------------------

SYMBOLS = ["AAA", "BBB", "CCC"]
GRID = support.sessions(SYMBOLS, 60)


def cells(picture, rows: int, columns: int) -> np.ndarray:
    """The middle pixel of each cell of a map of completeness."""
    found = pixels(picture)
    y = 58 + (np.arange(rows) + 0.5) * 22
    x = 104 + (np.arange(columns) + 0.5) * (WIDTH - 120) / columns
    return found[np.ix_(y.astype(int), x.astype(int))]


def test_a_missing_row_is_a_cell_of_its_own_colour():
    days = GRID["time"].unique().sort()
    missing = (pl.col("symbol") == "BBB") & (pl.col("time") == days[7])
    rows = GRID.filter(~missing)
    unlisted = (pl.col("symbol") == "CCC") & (pl.col("time") < days[20])
    expected = GRID.filter(~unlisted)
    found = cells(grids.completeness(rows, expected, (), "t"), 3, days.len())
    orange = of_colour(found, ORANGE)
    assert orange.sum() == 1
    assert orange[1, 7]
    blank = found[..., 3] == 0
    assert blank[2, :20].all()
    assert blank.sum() == 20
    assert of_colour(found, GREEN).sum() == 3 * days.len() - 21


def test_missing_columns_are_stronger_the_more_there_are():
    days = GRID["time"].unique().sort()
    own = pl.col("symbol") == "AAA"
    rows = GRID.with_columns(
        a=pl.when(~(own & (pl.col("time") == days[3]))).then(1.0),
        b=pl.when(~(own & pl.col("time").is_in([days[3], days[9]]))).then(1.0),
    )
    found = cells(grids.completeness(rows, GRID, ("a", "b"), "t"), 3, days.len())
    purple = of_colour(found, PURPLE)
    assert purple.sum() == 2
    assert found[0, 3, 3] > found[0, 9, 3] > 100


def test_of_many_symbols_those_that_lack_most_are_named():
    symbols = [f"S{n:03}" for n in range(500)]
    expected = support.sessions(symbols, 60)
    bad = {"S100": 5, "S400": 9, "S250": 2}
    days = expected["time"].unique().sort()
    gone = pl.any_horizontal(
        (pl.col("symbol") == s) & pl.col("time").is_in(days.head(n).implode())
        for s, n in bad.items()
    )
    counted = grids.Counted.of(expected.filter(~gone), expected, ())
    assert counted is not None
    names, merged = counted.by_row()
    assert names[:3] == ["S400", "S100", "S250"]
    assert len(names) == grids.MOST_ROWS
    assert names[-1] == "471 others"
    assert merged.expected.sum() == expected.height
    assert merged.missing.sum() == 16
    assert "99.9 % of the rows" in counted.summary()


def test_many_days_are_put_together_and_none_is_lost():
    expected = support.sessions(["AAA"], 3000)
    counted = grids.Counted.of(expected.slice(0, 1500), expected, ())
    assert counted is not None
    days, merged = counted.by_day()
    assert len(days) <= grids.MOST_COLUMNS
    assert merged.expected.sum() == expected.height
    assert merged.missing.sum() == expected.height - 1500
    assert counted.summary().startswith("1 symbol, 70.0 %")


def test_a_missing_field_is_grey_and_zero_is_nothing():
    fields = ["a", "b", "c", "d"]
    times = GRID.filter(pl.col("symbol") == "AAA")
    history = times.with_columns(
        a=pl.lit(1.0), b=pl.lit(-1.0), c=pl.lit(0.0), d=pl.lit(None, pl.Float64)
    )
    found = pixels(grids.state_vectors(history, history.tail(1), fields))
    band = [found[84 + 18 * i + 9, 200] for i in range(4)]
    assert of_colour(np.array(band), ORANGE).tolist() == [True, False, False, False]
    assert of_colour(np.array(band), BLUE).tolist() == [False, True, False, False]
    assert band[2][3] == 0
    assert of_colour(np.array(band), INK).tolist() == [False, False, False, True]


# -- events ---------------------------------------------------------------------------------------


def test_scores_are_on_their_side_of_the_histogram():
    scores = support.documents(["AAA"], 30)

    def sides(values: pl.DataFrame) -> tuple[bool, bool]:
        found = pixels(events.sentiment(values))[56:252, 52:302]
        blue, orange = (of_colour(found, c, least=120).any(axis=0) for c in (BLUE, ORANGE))
        assert not blue[130:].any()
        assert not orange[:120].any()
        return bool(blue.any()), bool(orange.any())

    assert sides(scores) == (True, True)
    assert sides(scores.with_columns(sentiment=pl.col("sentiment").abs() + 0.1)) == (False, True)
    assert sides(scores.with_columns(sentiment=-pl.col("sentiment").abs() - 0.1)) == (True, False)


def test_releases_and_revisions_are_marked():
    rows = support.macro(["DFF"])

    def marks(frame: pl.DataFrame) -> tuple[int, int]:
        found = pixels(events.macro(frame))[60:]
        rug = of_colour(found[-40:-28], INK, least=60).any(axis=0)
        return int(np.diff(rug[52:].astype(int)).clip(0).sum()), int(
            of_colour(found, ORANGE, least=120).sum()
        )

    released, rings = marks(rows)
    assert released > 20
    assert rings > 50
    first_only = rows.sort("time", "available_at").unique("time", keep="first")
    assert marks(first_only)[1] == 0
    fewer = first_only.filter(pl.col("time").dt.month() == 1)
    assert marks(fewer)[0] < released


def test_actions_are_in_the_row_of_their_symbol():
    known = pl.concat(
        [
            support.actions("AAA", (date(2019, 2, 13), "split", 2.0)),
            support.actions("BBB", (date(2019, 3, 13), "dividend", 0.5)),
        ]
    )
    found = pixels(events.actions(known, FIRST, LAST))
    rows = found[54:76], found[76:98]
    assert [of_colour(r, ORANGE, least=120).any() for r in rows] == [True, False]
    assert [of_colour(r, GREEN, least=120).any() for r in rows] == [False, True]
