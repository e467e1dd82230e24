"""The sample's macro series: lags, revisions, and the same values everywhere."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_pipeline.schemas import MACRO_INDICATORS
from feature_pipeline.sources.sample import SampleSource

SERIES = ("VIXCLS", "DFF", "T10Y2Y")


@pytest.fixture(scope="module")
def released() -> pl.DataFrame:
    return SampleSource().macro(SERIES, date(2000, 1, 1), date(2020, 2, 1)).frame


def of(frame: pl.DataFrame, series: str, day: date) -> list[tuple[datetime, float]]:
    at = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return frame.filter(series_id=series, time=at).select("available_at", "value").rows()


def test_rows_satisfy_their_schema(released):
    assert tuple(released.columns) == MACRO_INDICATORS.names
    assert released.select(MACRO_INDICATORS.key).is_unique().all()
    for rule in MACRO_INDICATORS.rules:
        assert released.filter(rule.violated).is_empty(), rule.reason
    assert released["source"].unique().to_list() == ["sample"]
    assert released["availability_basis"].unique().to_list() == ["assumed"]
    assert released["frequency"].unique().to_list() == ["D"]
    assert released.null_count().sum_horizontal().item() == 0


def test_which_days_are_observed(released):
    first = released.unique(["series_id", "time"])
    days = {s: set(first.filter(series_id=s)["time"].dt.date()) for s in SERIES}
    assert len(days["DFF"]) == (date(2020, 1, 1) - date(2000, 1, 1)).days
    assert days["VIXCLS"] == days["T10Y2Y"]
    assert len(days["VIXCLS"]) == 5031  # the sessions of twenty years
    assert date(2010, 7, 5) not in days["VIXCLS"]


def test_levels_are_plausible(released):
    span = released.group_by("series_id").agg(
        pl.col("value").min().alias("low"), pl.col("value").max().alias("high")
    )
    found = {series: (low, high) for series, low, high in span.iter_rows()}
    assert found["VIXCLS"][0] > 8
    assert 50 < found["VIXCLS"][1] < 90
    assert 0 < found["DFF"][0] < 0.2
    assert 6 < found["DFF"][1] < 7
    assert -1 < found["T10Y2Y"][0] < 0
    assert 2 < found["T10Y2Y"][1] < 3.2


@pytest.mark.parametrize(
    ("series", "observed", "known"),
    [
        ("VIXCLS", date(2010, 7, 1), datetime(2010, 7, 2, 14, 15, tzinfo=UTC)),
        ("VIXCLS", date(2010, 7, 2), datetime(2010, 7, 6, 14, 15, tzinfo=UTC)),  # over the holiday
        ("T10Y2Y", date(2010, 7, 2), datetime(2010, 7, 6, 21, 15, tzinfo=UTC)),
        ("DFF", date(2010, 6, 11), datetime(2010, 6, 14, 21, 15, tzinfo=UTC)),
        ("DFF", date(2010, 6, 12), datetime(2010, 6, 15, 21, 15, tzinfo=UTC)),  # Saturday,
        ("DFF", date(2010, 6, 13), datetime(2010, 6, 15, 21, 15, tzinfo=UTC)),  # Sunday and
        ("DFF", date(2010, 6, 14), datetime(2010, 6, 15, 21, 15, tzinfo=UTC)),  # Monday
    ],
)
def test_release_lags(released, series, observed, known):
    assert of(released, series, observed)[0][0] == known


def test_a_weekend_repeats_the_rate_of_friday(released):
    friday, saturday, sunday = (
        of(released, "DFF", date(2010, 6, 11) + timedelta(days=n))[0][1] for n in range(3)
    )
    assert friday == saturday == sunday


def test_some_observations_are_revised_later_and_differ(released):
    vintages = (
        released.sort("available_at")
        .group_by("series_id", "time", maintain_order=True)
        .agg("value", "available_at")
    )
    revised = vintages.filter(pl.col("value").list.len() > 1)
    per_series = dict(revised.group_by("series_id").len().iter_rows())
    assert set(per_series) == set(SERIES)
    assert all(40 < count < 200 for count in per_series.values())
    assert (revised["value"].list.len() == 2).all()
    assert (revised["value"].list.first() != revised["value"].list.last()).all()
    # Two sessions later: a revision never comes with the release.
    lag = revised["available_at"].list.last() - revised["available_at"].list.first()
    assert lag.min() >= timedelta(days=2)


def test_values_are_the_same_on_every_machine(released):
    """Pinned: a change of these is a change of the sample, and of every stored state vector."""
    day = date(2008, 10, 15)
    assert {s: [v for _, v in of(released, s, day)] for s in SERIES} == PINNED
    assert round(released["value"].sum(), 2) == TOTAL


PINNED = {"VIXCLS": [50.63], "DFF": [1.1], "T10Y2Y": [1.58]}
TOTAL = 122762.19


@given(
    cut=st.dates(date(2001, 1, 1), date(2019, 1, 1)),
    left=st.integers(0, 300),
    right=st.integers(0, 300),
)
@settings(max_examples=25)
def test_values_do_not_depend_on_the_range_asked(released, cut, left, right):
    start, end = cut - timedelta(days=left), cut + timedelta(days=right)
    ask = SampleSource().macro
    halves = pl.concat([ask(SERIES, start, cut).frame, ask(SERIES, cut, end).frame])
    key = list(MACRO_INDICATORS.key)
    expected = released.filter(
        pl.col("available_at").dt.date().is_between(start, end, closed="left")
    )
    assert halves.sort(key).equals(expected.sort(key))


def test_an_unknown_series_fails_alone():
    fetched = SampleSource().macro(["GDP", "DFF", "DFF"], date(2010, 1, 1), date(2010, 2, 1))
    assert set(fetched.failed) == {"GDP"}
    assert "the sample has no series GDP, only VIXCLS, DFF, T10Y2Y" in fetched.failed["GDP"]
    assert fetched.frame["series_id"].unique().to_list() == ["DFF"]
    assert fetched.frame.select(MACRO_INDICATORS.key).is_unique().all()
    nothing = SampleSource().macro([], date(2010, 1, 1), date(2010, 2, 1)).frame
    assert nothing.equals(MACRO_INDICATORS.empty())
