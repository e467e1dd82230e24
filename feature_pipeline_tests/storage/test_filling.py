"""Bars without a trade: what stands in for them, and from when on that is known."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import polars as pl

from feature_pipeline.schemas import FILLED, UTC_TIME
from feature_pipeline.storage.filling import on_the_grid

MINUTE = timedelta(minutes=1)
DELAY = timedelta(minutes=3)
NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAYS = (date(2024, 1, 16), date(2024, 1, 17))


def opening(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 14, 30, tzinfo=UTC)


GRID = pl.concat(
    pl.DataFrame(
        {"symbol": "A", "time": [opening(day) + n * MINUTE for n in range(5)], "session": day},
        schema_overrides={"time": UTC_TIME},
    ).with_columns(end=pl.col("time") + MINUTE)
    for day in DAYS
)


def rows(*minutes: int, day: date = DAYS[0]) -> pl.DataFrame:
    """Bars that opened at 10 x n and closed at 10 x n + 1."""
    return pl.DataFrame(
        {
            "symbol": "A",
            "time": [opening(day) + n * MINUTE for n in minutes],
            "open": [10.0 * n for n in minutes],
            "close": [10.0 * n + 1 for n in minutes],
            "volume": [100.0] * len(minutes),
            "session": [day] * len(minutes),
        },
        schema_overrides={"time": UTC_TIME, "session": pl.Date},
    ).with_columns(
        available_at=pl.col("time") + MINUTE + DELAY, availability_basis=pl.lit("assumed")
    )


def filled(
    frame: pl.DataFrame,
    now: datetime = NOW,
    *,
    bars: bool = True,
    grid: pl.DataFrame = GRID,
    **more,
) -> pl.DataFrame:
    found = on_the_grid(frame, grid, bars=bars, now=now, delay=DELAY, **more)
    assert found.columns == [*frame.columns, FILLED]
    return found


def test_the_last_close_stands_in_and_before_the_first_trade_its_open():
    found = filled(rows(1, 3)).filter(session=DAYS[0])
    assert found["close"].to_list() == [10.0, 11.0, 11.0, 31.0, 31.0]
    assert found["open"].to_list() == [10.0, 10.0, 11.0, 30.0, 31.0]
    assert found["volume"].to_list() == [0.0, 100.0, 0.0, 100.0, 0.0]
    assert found[FILLED].to_list() == [True, False, True, False, True]


def test_what_stands_in_is_known_when_it_could_be():
    known = filled(rows(1, 3)).filter(session=DAYS[0])["available_at"] - opening(DAYS[0])
    assert [m // MINUTE for m in known] == [5, 5, 6, 7, 8], "the first with the first trade"


def test_what_derives_from_bars_repeats_its_last_row():
    found = filled(rows(1, 3), bars=False).filter(session=DAYS[0])
    assert found["close"].to_list() == [11.0, 11.0, 11.0, 31.0, 31.0]
    assert found["volume"].to_list() == [100.0] * 5


def test_a_session_without_a_bar_is_a_gap_and_one_that_has_just_begun_is_not_there():
    found = filled(rows(1))
    gap = found.filter(session=DAYS[1])
    assert gap.height == 5
    assert gap["available_at"].null_count() == gap["close"].null_count() == 5
    assert not gap[FILLED].any()
    begun = filled(rows(1), opening(DAYS[1]) + 4 * MINUTE)
    assert begun["session"].unique().to_list() == [DAYS[0]]


def test_nothing_is_made_of_what_is_not_over():
    found = filled(rows(0), opening(DAYS[0]) + 5 * MINUTE)
    assert found.height == 2, "two minutes are over, and the delay"


def test_a_bar_between_two_others_is_made_as_soon_as_the_later_one_is_there():
    """Some providers are quicker than the delay that all are granted: what is computed at once is
    what is computed from all of the session."""
    at_once = filled(rows(0, 2), opening(DAYS[0]) + 3 * MINUTE)
    assert at_once["time"].to_list() == [opening(DAYS[0]) + n * MINUTE for n in range(3)]
    later = filled(rows(0, 2)).filter(session=DAYS[0])
    assert at_once.equals(later.head(3))
    assert filled(rows(2), opening(DAYS[0]) + 3 * MINUTE)[FILLED].to_list() == [True, True, False]


def test_a_session_does_not_depend_on_the_one_before_it():
    both = pl.concat([rows(0, 2), rows(1, 4, day=DAYS[1])])
    alone = filled(rows(1, 4, day=DAYS[1])).filter(session=DAYS[1])
    assert filled(both).filter(session=DAYS[1]).equals(alone)


def test_where_nothing_lacks_nothing_changes():
    whole = pl.concat([rows(*range(5)), rows(*range(5), day=DAYS[1])])
    assert filled(whole).drop(FILLED).equals(whole)


def test_of_a_session_that_was_dropped_in_part_nothing_is_made_up():
    """A session over midnight UTC, of whose first day the chunk is gone."""
    midnight = datetime(2024, 1, 17, tzinfo=UTC)
    night = pl.DataFrame(
        {"symbol": "A", "time": [midnight + n * MINUTE for n in range(-2, 4)], "session": DAYS[1]},
        schema_overrides={"time": UTC_TIME},
    ).with_columns(end=pl.col("time") + MINUTE)
    kept = rows(1, 3).with_columns(
        time=pl.col("time") - opening(DAYS[0]) + midnight, session=pl.lit(DAYS[1])
    )
    dropped = pl.Series([DAYS[0]])
    for bars in (True, False):
        found = filled(kept, bars=bars, grid=night, dropped=dropped)
        assert found["time"].to_list() == night["time"].to_list()
        gaps = found.filter(pl.col("available_at").is_null())
        assert gaps["time"].to_list() == night["time"][:3].to_list()
        assert gaps["close"].null_count() == gaps.height
        assert not gaps[FILLED].any()
        assert found["close"][3:].to_list() == [11.0, 11.0, 31.0]
    assert filled(kept, grid=night)["close"].null_count() == 0
