"""All pictures: bounded, whole, the same again, empty where there is nothing; names are text."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from feature_pipeline.pictures import events, grids, prices
from feature_pipeline.pictures.style import MOST_BYTES, WIDTH
from feature_pipeline.schemas import STATE_VECTOR_FIELDS
from feature_pipeline_tests.pictures import support
from feature_pipeline_tests.pictures.support import FIRST, everything, pixels

HEIGHTS = {
    "price": 480, "indicators": 480, "regimes": 480, "returns": 480, "coverage": 158,
    "nulls": 158, "state_vectors": 392, "documents": 220, "sentiment": 290, "macro": 432,
    "actions": 154,
}  # fmt: skip


@pytest.fixture(scope="module")
def few():
    return everything(["AAA", "BBB", "CCC"], 200)


@pytest.fixture(scope="module")
def many():
    return everything([f"S{n:03}" for n in range(500)], 430)


@pytest.mark.parametrize("name", HEIGHTS)
def test_a_picture_is_a_png_of_its_size_with_something_in_it(few, name):
    found = pixels(few[name])
    assert found.shape == (HEIGHTS[name], WIDTH, 4)
    drawn = found[..., 3] > 100
    assert 0.005 < drawn.mean() < 0.9
    assert len(np.unique(found.reshape(-1, 4), axis=0)) > 8
    # Nothing is cut off at the right or at the bottom.
    assert found[:, -2:, 3].max() == 0
    assert found[-2:, :, 3].max() == 0


@pytest.mark.parametrize("name", HEIGHTS)
def test_bytes_are_bounded_with_500_symbols(many, name):
    picture = many[name]
    assert picture is not None
    assert len(picture.png) <= MOST_BYTES
    assert pixels(picture).shape[0] <= 720  # fits a screen
    assert len(picture.caption) < 300


def test_the_same_frames_are_the_same_bytes(few):
    assert everything(["AAA", "BBB", "CCC"], 200) == few


def test_titles_say_whom_and_when(few):
    assert few["price"].title == (
        "Close as traded and volume, 2019-01-01 to 2019-07-19: AAA, BBB, CCC"
    )
    assert "A series" not in few["macro"].title
    assert few["coverage"].title.startswith("What ohlcv_1d holds, 2019-01-01 to 2019-07-19: 3 symb")
    assert "90." in few["coverage"].title or "89." in few["coverage"].title


def test_long_lists_of_names_are_cut(many):
    assert "and 8 more" not in many["price"].title
    assert many["macro"].caption.endswith("2 more series are not shown.")
    assert many["actions"].caption.endswith("476 more symbols are not shown.")
    assert "500 symbols" in many["coverage"].title


LONG_AGO = date(2001, 1, 1)
NOBODY = support.sessions(["AAA"]).clear()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: prices.price(support.bars(NOBODY), support.actions("AAA"), NOBODY, ["AAA"]),
        lambda: prices.price(support.bars(NOBODY), support.actions("AAA"), NOBODY, []),
        lambda: prices.returns(support.wide(NOBODY, ["returns_1d"]), NOBODY, ["AAA"]),
        lambda: prices.regimes(
            support.bars(NOBODY), support.regime_labels(NOBODY), NOBODY, ["AAA"]
        ),
        lambda: grids.completeness(NOBODY, NOBODY, (), "ohlcv_1d"),
        lambda: grids.state_vectors(
            support.wide(NOBODY, STATE_VECTOR_FIELDS),
            support.wide(NOBODY, STATE_VECTOR_FIELDS),
            STATE_VECTOR_FIELDS,
        ),
        lambda: events.documents(support.documents(["AAA"]).clear(), FIRST, FIRST, "News"),
        lambda: events.documents(support.documents(["AAA"]), LONG_AGO, LONG_AGO, "News"),
        lambda: events.sentiment(support.documents(["AAA"]).clear()),
        lambda: events.macro(support.macro(["DFF"]).clear()),
        lambda: events.actions(support.actions("AAA"), FIRST, FIRST),
    ],
)
def test_nothing_is_no_picture(draw):
    assert draw() is None


@pytest.mark.parametrize(
    "symbol", ["$A$", "BRK.B", "日経", "x" * 200, "a\nb", "![x](http://evil)", "^_$\\"]
)
def test_any_name_can_be_drawn(symbol, recwarn):
    found = everything([symbol], 40)
    assert all(picture is not None for picture in found.values())
    assert all("\n" not in p.title and "\n" not in p.caption for p in found.values() if p)
    assert not recwarn.list


@pytest.mark.parametrize("days", [1, 2, 9])
def test_a_single_day_works(days):
    for name, picture in everything(["AAA"], days).items():
        assert pixels(picture)[..., 3].max() > 200, name


@pytest.mark.parametrize("level", [1e-300, 1e-9, 1e12, 1e300])
def test_any_scale_works(level, recwarn):
    expected = support.sessions(["AAA"])
    picture = prices.price(
        support.bars(expected, level=level), support.actions("AAA"), expected, ["AAA"]
    )
    assert pixels(picture).shape == (300, WIDTH, 4)
    assert not recwarn.list


def test_a_line_of_nulls_is_drawn_as_nothing():
    expected = support.sessions(["AAA"])
    empty = expected.with_columns(
        **dict.fromkeys(
            ("sma_50", "sma_200", "bb_upper", "bb_lower", "rsi_14"), pl.lit(None, pl.Float64)
        )
    )
    held = support.bars(expected)
    picture = prices.indicators(held, empty, support.actions("AAA"), expected, ["AAA"])
    assert pixels(picture)[60:, :, 3].max() > 200  # the close is there


def test_documents_outside_of_the_days_are_not_counted():
    found = support.documents(["AAA"], days=20, per_day=3)
    late = FIRST + timedelta(days=10)
    picture = events.documents(found, late, FIRST + timedelta(days=19), "News")
    inside = found.filter(pl.col("available_at") >= datetime(2019, 1, 11, tzinfo=UTC)).height
    assert picture is not None
    assert f": {inside} about AAA" in picture.title
