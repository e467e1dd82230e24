"""Ticks of intraday bars: while a market trades, until its last bar is there, and not otherwise."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    SCHEDULE_NAME_TAG,
    SCHEDULED_EXECUTION_TIME_TAG,
)
from dagster._core.test_utils import create_run_for_test

from feature_pipeline.automation.intraday import cron, intraday_schedules
from feature_pipeline.automation.schedules import CALENDAR_TAG, SESSION_TAG, TIMEFRAME_TAG
from feature_pipeline.definitions import assets_of, build_defs, job_name
from feature_pipeline.settings import Settings
from feature_pipeline.storage.io_manager import SYMBOLS_TAG
from feature_pipeline.timeframes import TIMEFRAMES
from feature_pipeline.universe import Universe
from feature_pipeline_tests.automation.test_schedules import asked, evaluate

YAML = """
benchmark: NY
timeframes: [1d, 1h, 5m, 1m]
instruments:
  - {id: NY, asset_class: equity, calendar: XNYS, sector: x, source: {bars: sample},
     symbols: [{symbol: NY, from: 2000-01-03}], membership: [{from: 2020-01-02}]}
  - {id: SYDNEY, asset_class: equity, calendar: XASX, sector: x, source: {bars: sample},
     symbols: [{symbol: SYDNEY, from: 2000-01-03}], membership: [{from: 2020-01-02}]}
"""
TUESDAY = date(2024, 1, 16)


@pytest.fixture(scope="module")
def universe() -> Universe:
    return Universe.parse(YAML)


@pytest.fixture(scope="module")
def defs(universe) -> dg.Definitions:
    return build_defs(Settings(), universe=universe)


@pytest.fixture(scope="module")
def schedules(defs) -> dict[str, dg.ScheduleDefinition]:
    return {schedule.name: schedule for schedule in defs.schedules or ()}


def at(hour: int, minute: int, day: date = TUESDAY) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)


def test_there_is_one_per_calendar_and_timeframe_and_only_for_those_chosen(schedules, universe):
    names = {f"bars_{c}_{t}" for c in ("xnys", "xasx") for t in ("1m", "5m", "1h")}
    assert names < set(schedules)
    assert {"bars_xnys", "bars_xasx"} < set(schedules)
    assert schedules["bars_xnys_5m"].job_name == "features_5m"
    assert all(schedules[name].default_status.value == "STOPPED" for name in names)
    daily = Universe(universe.instruments, universe.benchmark)
    assert intraday_schedules(daily, {}, {}) == []


def test_a_job_has_the_assets_of_its_timeframe_alone(defs):
    for timeframe in TIMEFRAMES:
        job = defs.resolve_job_def(job_name(timeframe))
        own = {key.to_python_identifier() for key in job.asset_layer.selected_asset_keys}
        bars = {name for name in own if name.endswith(f"_{timeframe}")}
        assert len(bars) == 5
        assert (own == bars) == (timeframe != "1d")
    assert len(assets_of("1h")) == 5


def test_ticks_come_when_a_bar_can_be_had():
    delay = timedelta(minutes=16)
    assert cron("XNYS", TIMEFRAMES["1m"], delay) == "0-59/5 * * * *"
    assert cron("XNYS", TIMEFRAMES["5m"], delay) == "2-59/5 * * * *", "after the minutes"
    assert cron("XNYS", TIMEFRAMES["1h"], delay) == "46 * * * *", "10:30 in New York, and that late"
    assert cron("24/7", TIMEFRAMES["1h"], delay) == "16 * * * *"


@pytest.mark.parametrize(
    ("moment", "due"),
    [
        (at(14, 45), False),  # the first minute ends at 14:31, and can be had 16 minutes later
        (at(14, 50), True),
        (at(18, 0), True),
        (at(21, 20), True),  # the last one, twice
        (at(21, 25), True),
        (at(21, 30), False),
        (at(15, 0, date(2024, 1, 15)), False),  # a holiday
        (at(15, 0, date(2024, 1, 14)), False),  # a Sunday
    ],
)
def test_bars_are_asked_for_while_a_market_trades(schedules, universe, moment, due):
    found = evaluate(schedules["bars_xnys_1m"], moment, universe)
    if not due:
        assert isinstance(found, str)
        assert "XNYS is closed, and its last bars have been asked for; it opens at 2024" in found
        return
    assert asked(found) == (TUESDAY, TUESDAY)
    assert found.tags[CALENDAR_TAG] == "XNYS"
    assert found.tags[TIMEFRAME_TAG] == "1m"
    assert found.tags[SYMBOLS_TAG] == "NY", "the others trade at another time"


def test_a_session_on_two_days_is_asked_for_on_both(schedules, universe):
    monday = TUESDAY - timedelta(days=1)
    before = evaluate(schedules["bars_xasx_5m"], at(23, 42, monday), universe)
    assert asked(before) == (monday, monday)
    after = evaluate(schedules["bars_xasx_5m"], at(2, 2), universe)
    assert asked(after) == (monday, TUESDAY)
    assert before.tags[SESSION_TAG] == after.tags[SESSION_TAG] == TUESDAY.isoformat()


def test_what_no_run_completed_comes_along_and_runs_follow_each_other(schedules, universe):
    schedule = schedules["bars_xnys_1m"]
    own = {SCHEDULE_NAME_TAG: schedule.name}
    with dg.instance_for_test() as instance:
        create_run_for_test(
            instance,
            tags={**own, ASSET_PARTITION_RANGE_END_TAG: "2024-01-12"},
            status=dg.DagsterRunStatus.SUCCESS,
        )
        found = evaluate(schedule, at(15, 0), universe, instance)
        assert asked(found) == (date(2024, 1, 12), TUESDAY)
        create_run_for_test(
            instance,
            tags={**own, ASSET_PARTITION_RANGE_END_TAG: TUESDAY.isoformat()},
            status=dg.DagsterRunStatus.SUCCESS,
        )
        assert asked(evaluate(schedule, at(15, 5), universe, instance)) == (TUESDAY, TUESDAY)
        long_ago = evaluate(schedule, at(15, 0, date(2024, 3, 5)), universe, instance)
        assert asked(long_ago) == (date(2024, 2, 29), date(2024, 3, 5)), "as much as a run takes"
        create_run_for_test(instance, tags=own, status=dg.DagsterRunStatus.STARTED)
        assert "is started still" in evaluate(schedule, at(15, 10), universe, instance)


@pytest.mark.parametrize(
    ("before", "moment", "due"),
    [
        (at(21, 10), at(21, 45), True),  # the last run that succeeded lacked the last minutes
        (at(21, 10), at(23, 10), True),
        (at(21, 10), at(23, 20), False),
        (at(21, 20), at(21, 45), False),  # it had them: the last one ends at 21:00
    ],
)
def test_the_last_bars_are_asked_for_until_a_run_has_them(schedules, universe, before, moment, due):
    schedule = schedules["bars_xnys_1m"]
    tags = {
        SCHEDULE_NAME_TAG: schedule.name,
        SCHEDULED_EXECUTION_TIME_TAG: before.isoformat(),
        ASSET_PARTITION_RANGE_END_TAG: TUESDAY.isoformat(),
    }
    with dg.instance_for_test() as instance:
        create_run_for_test(instance, tags=tags, status=dg.DagsterRunStatus.SUCCESS)
        create_run_for_test(instance, tags=tags, status=dg.DagsterRunStatus.FAILURE)
        found = evaluate(schedule, moment, universe, instance)
    if due:
        assert asked(found) == (TUESDAY, TUESDAY)
    else:
        assert "is closed" in found


def test_the_evening_of_a_session_that_nobody_completed_comes_along(schedules, universe):
    """Sydney opens at 23:00 UTC: after its first half hour all runs failed, to the close."""
    schedule, monday = schedules["bars_xasx_5m"], TUESDAY - timedelta(days=1)
    with dg.instance_for_test() as instance:
        last = evaluate(schedule, at(23, 42, monday), universe, instance)
        create_run_for_test(
            instance,
            tags={**last.tags, SCHEDULE_NAME_TAG: schedule.name},
            status=dg.DagsterRunStatus.SUCCESS,
        )
        found = evaluate(schedule, at(23, 42), universe, instance)
    assert asked(found) == (monday, TUESDAY)
