"""What a macro series was known to be: releases, revisions, age, and days not collected."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from feature_pipeline.features.state_vector import latest_macro
from feature_pipeline.schemas import UTC_TIME

DAY = timedelta(days=1)
START = datetime(2024, 5, 1, tzinfo=UTC)


def macro(*rows: tuple[str | None, float, float, float | None]) -> pl.DataFrame:
    """(series, observation day, release day, value), days after START."""
    return pl.DataFrame(
        [(s, START + o * DAY, START + r * DAY, v) for s, o, r, v in rows],
        schema={
            "series_id": pl.String,
            "time": UTC_TIME,
            "available_at": UTC_TIME,
            "value": pl.Float64,
        },
        orient="row",
    )


def known(frame: pl.DataFrame, *days: float) -> list[float | None]:
    at = pl.Series([START + d * DAY for d in days], dtype=UTC_TIME)
    return latest_macro(at, frame, "VIXCLS").to_list()


def test_a_value_is_known_from_its_release_on():
    frame = macro(("VIXCLS", 0, 1.5, 17.0), ("VIXCLS", 1, 2.5, 18.0), ("DFF", 1, 1.6, 5.0))
    assert known(frame, 1.49, 1.5, 2.49, 2.5, 3) == [None, 17, 17, 18, 18]


def test_a_revision_of_the_newest_observation_wins_from_its_release_on():
    frame = macro(("VIXCLS", 0, 1, 17.0), ("VIXCLS", 0, 3, 17.5))
    assert known(frame, 2.9, 3) == [17, 17.5]


def test_a_revision_of_an_older_observation_changes_nothing():
    frame = macro(("VIXCLS", 0, 1, 17.0), ("VIXCLS", 1, 2, 18.0), ("VIXCLS", 0, 3, 99.0))
    assert known(frame, 2, 3, 4) == [18, 18, 18]


def test_of_observations_released_together_the_newest_counts():
    """The Fed funds rate of Saturday to Monday becomes known on Tuesday morning."""
    frame = macro(("VIXCLS", 2, 4, 3.0), ("VIXCLS", 0, 4, 1.0), ("VIXCLS", 1, 4, 2.0))
    assert known(frame, 4) == [3]


def test_a_value_ages_out_ten_days_after_its_release():
    frame = macro(("VIXCLS", 0, 1, 17.0))
    assert known(frame, 10.99, 11) == [17, None]


def test_a_late_revision_of_an_old_observation_does_not_revive_the_series():
    frame = macro(("VIXCLS", 0, 1, 17.0), ("VIXCLS", 1, 2, 18.0), ("VIXCLS", 0, 20, 99.0))
    assert known(frame, 21) == [None]
    # Not even when the newer observation was left behind by the lookback.
    assert known(frame.filter(pl.col("available_at") > START + 10 * DAY), 21) == [None]


@pytest.mark.parametrize(
    ("day", "expected"), [(0, 17.0), (1, None), (2, None), (3, None), (4, 17.0)]
)
def test_a_day_not_collected_since_the_observation_may_hide_a_newer_one(day, expected):
    frame = pl.concat([macro(("VIXCLS", 0, 1.5, 17.0)), macro((None, day, day, None))])
    assert known(frame, 3.8) == [expected]


def test_no_moment_has_no_value_and_order_is_kept():
    frame = macro(("VIXCLS", 0, 1, 17.0), ("VIXCLS", 4, 5, 18.0))
    at = pl.Series([START + 6 * DAY, None, START + 2 * DAY], dtype=UTC_TIME)
    assert latest_macro(at, frame, "VIXCLS").to_list() == [18, None, 17]
    assert latest_macro(at, frame.clear(), "VIXCLS").to_list() == [None] * 3
