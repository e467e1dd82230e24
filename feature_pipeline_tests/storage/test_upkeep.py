"""Days cut into runs, whatever the days."""

from __future__ import annotations

from datetime import date, timedelta

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.automation.evaluations import held_days, hold
from feature_pipeline.storage.upkeep import stretches
from feature_pipeline_tests.automation.test_alerts import evaluation

FIRST = date(2019, 12, 20)
DAYS = st.sets(st.integers(0, 60), min_size=0, max_size=30).map(
    lambda found: pl.Series([FIRST + timedelta(n) for n in sorted(found)], dtype=pl.Date)
)


@given(DAYS, st.integers(1, 6), st.integers(0, 9))
def test_stretches_cover_the_days_once_and_no_long_gap(days, apart, max_days):
    found = stretches(days, apart, max_days)
    covered = [first + timedelta(n) for first, end in found for n in range((end - first).days)]
    assert len(covered) == len(set(covered))
    assert set(days) <= set(covered)
    assert covered == sorted(covered)
    if max_days:
        assert all((end - first).days <= max_days for first, end in found)
    else:
        assert {first for first, _ in found} <= set(days)
        assert {end - timedelta(1) for _, end in found} <= set(days)
    # A day that nobody asked for lies between two that are less than `apart` from each other.
    for day in set(covered) - set(days):
        before = max(d for d in days if d < day)
        after = min(d for d in days if d > day)
        assert (after - before).days < apart


SPANS = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(
    lambda ends: tuple((FIRST + timedelta(n)).isoformat() for n in sorted(ends))
)


@given(st.lists(st.tuples(st.booleans(), SPANS), max_size=12))
def test_what_is_held_back_is_what_failed_and_did_not_pass_since(said):
    import dagster as dg

    held, expected = {}, set()
    for passed, span in said:
        check = evaluation(passed, dg.AssetCheckSeverity.ERROR, blocking=True)
        held = hold(held, check, span)
        days = set(pl.date_range(*map(date.fromisoformat, span), eager=True))
        expected = expected - days if passed else expected | days
    assert set(held_days(held).get("ohlcv_1d", [])) == expected
    # Without days it judged the newest ones alone: nothing is released by it.
    assert hold(held, evaluation(True, dg.AssetCheckSeverity.ERROR), None) == held
