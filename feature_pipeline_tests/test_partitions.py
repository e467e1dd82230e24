"""The daily grid, and days as Dagster and people write them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.partitions import DAILY, GRID_START, days, parse_day, parse_range, window


def test_the_grid_runs_from_2000_through_today_in_utc():
    now = datetime(2026, 11, 20, 0, 5, tzinfo=UTC)
    keys = DAILY.get_partition_keys(current_time=now)
    assert keys[0] == "2000-01-01"
    assert keys[-1] == "2026-11-20"
    assert str(DAILY.timezone) == "UTC"
    # Weekends too: posts and releases happen on them.
    assert len(keys) == (date(2026, 11, 20) - GRID_START).days + 1


def test_a_partition_is_one_utc_day():
    assert window(DAILY.time_window_for_partition_key("2010-03-14")) == (
        date(2010, 3, 14),
        date(2010, 3, 15),
    )


def test_a_window_given_in_another_zone_is_read_in_utc():
    tokyo = timezone(timedelta(hours=9))
    given_window = dg.TimeWindow(
        datetime(2010, 1, 2, 9, tzinfo=tokyo), datetime(2010, 1, 4, 9, tzinfo=tokyo)
    )
    assert window(given_window) == (date(2010, 1, 2), date(2010, 1, 4))


@given(start=st.dates(date(2000, 1, 1), date(2026, 1, 1)), count=st.integers(-3, 500))
def test_days_are_half_open_and_match_the_grid(start, count):
    found = days(start, start + timedelta(days=count))
    assert len(found) == max(count, 0)
    if found:
        assert DAILY.has_partition_key(found[0].isoformat())
        assert found[-1] == start + timedelta(days=count - 1)


def test_a_range_as_people_write_it_includes_both_days():
    assert parse_range("2010-01-04", "2010-01-08") == (date(2010, 1, 4), date(2010, 1, 9))
    assert parse_range("2010-01-04", "2010-01-04") == (date(2010, 1, 4), date(2010, 1, 5))


@pytest.mark.parametrize(
    ("start", "end", "says"),
    [
        ("2010-02-01", "2010-01-01", "start 2010-02-01 is after end 2010-01-01; swap them"),
        (
            "1999-12-31",
            "2010-01-01",
            "start 1999-12-31 is outside of the grid; use a day",
        ),
        ("2010-01-01", "2999-01-01", "end 2999-01-01 is outside of the grid"),
        ("2010-02-30", "2010-03-01", "start '2010-02-30' is no date; write YYYY-MM-DD"),
        ("yesterday", "2010-03-01", "start 'yesterday' is no date"),
        ("2010-01-01", "20100301", "end '20100301' is no date"),
        ("", "2010-03-01", "start '' is no date"),
        ("2010-01-01T00:00", "2010-03-01", "is no date"),
        ("٢٠١٠-٠١-٠١", "2010-03-01", "is no date"),
    ],
)
def test_a_bad_range_is_refused_in_one_line(start, end, says):
    with pytest.raises(FeaturePipelineError) as caught:
        parse_range(start, end)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_today_is_on_the_grid():
    today = datetime.now(UTC).date()
    assert parse_day(today.isoformat()) == today
