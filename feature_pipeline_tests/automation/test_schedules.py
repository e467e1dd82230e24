"""Schedules: the days and times they fire on, what they ask for, and why they do not fire.

What is expected is computed from `exchange_calendars` itself, not from the code under test.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import dagster as dg
import exchange_calendars
import polars as pl
import pytest
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    RUN_KEY_TAG,
    SCHEDULED_EXECUTION_TIME_TAG,
)
from dagster._core.test_utils import (
    create_run_for_test,
    create_test_daemon_workspace_context,
    freeze_time,
    instance_for_test,
)
from dagster._core.workspace.load_target import ModuleTarget
from dagster._scheduler.scheduler import launch_scheduled_runs
from dagster._utils.schedules import schedule_execution_time_iterator
from exchange_calendars import ExchangeCalendar
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_pipeline.automation import sessions
from feature_pipeline.automation.schedules import (
    CALENDAR_TAG,
    MAX_CATCH_UP,
    MAX_SYMBOLS_TAG,
    REOPENED,
    SESSION_TAG,
    TIMEFRAME_TAG,
    Automation,
    build_automation,
    documents_from,
    publication_delay,
    schedule_name,
)
from feature_pipeline.automation.sessions import Timetable, trading_hours
from feature_pipeline.definitions import JOB, build_defs, defs
from feature_pipeline.errors import UniverseError
from feature_pipeline.online.client import publishing_client
from feature_pipeline.online.rebuild import rebuild_needed
from feature_pipeline.settings import PREFIX, Settings
from feature_pipeline.sources import Off
from feature_pipeline.sources.news.feeds import FeedSource
from feature_pipeline.sources.sample import SampleSource
from feature_pipeline.stack.dagster import RUN_CREATOR_FLAGS
from feature_pipeline.storage.io_manager import SYMBOLS_TAG
from feature_pipeline.universe import Universe
from feature_pipeline_tests.assets.support import _QUIET, assert_same_tables, failure
from feature_pipeline_tests.assets.world import midnight

AFTER = timedelta(minutes=16)
BEFORE = timedelta(minutes=30)
OPEN_END = "[{from: 2000-01-03}]"


class NewYorkFX(ExchangeCalendar):
    """Currencies as banks count them: a day ends at 17:00 in New York, and the next one begins."""

    name = "FX_NY"
    tz = ZoneInfo("America/New_York")
    open_times = ((None, time(17)),)
    close_times = ((None, time(17)),)
    open_offset = -1


exchange_calendars.register_calendar_type("FX_NY", NewYorkFX, force=True)


_ENTRY = """
  - id: {id}
    asset_class: equity
    calendar: {calendar}
    sector: any
    source: {{bars: made, actions: made, news: made, reddit: made}}
    symbols: [{{symbol: {id}, from: 2000-01-03}}]
    membership: {membership}
"""


def universe_text(*instruments: tuple[str, ...]) -> str:
    """A universe of (id, calendar[, membership])."""
    entries = (
        _ENTRY.format(id=name, calendar=calendar, membership=rest[0] if rest else OPEN_END)
        for name, calendar, *rest in instruments
    )
    return f"benchmark: {instruments[0][0]}\ninstruments:\n" + "".join(entries)


def make_universe(*instruments: tuple[str, ...]) -> Universe:
    return Universe.parse(universe_text(*instruments))


def automation(
    universe: Universe, today: date, sources: object = None, **values: object
) -> Automation:
    job = defs.resolve_job_def(JOB)
    return build_automation(Settings(**values), universe, sources or {}, job, today)


def schedule_of(made: Automation, name: str) -> dg.ScheduleDefinition:
    [schedule] = [s for s in made.schedules if s.name == name]
    return schedule


def cron_ticks(
    schedule: dg.ScheduleDefinition, first: datetime, end: datetime
) -> Iterator[datetime]:
    """The times at which the daemon evaluates it, in [first, end)."""
    for moment in schedule_execution_time_iterator(
        first.timestamp(), schedule.cron_schedule, schedule.execution_timezone
    ):
        if moment >= end:
            return
        yield moment


def evaluate(
    schedule: dg.ScheduleDefinition,
    moment: datetime,
    universe: Universe,
    instance: dg.DagsterInstance | None = None,
) -> dg.RunRequest | str:
    """What a tick asks for, or why it does not."""
    with dg.build_schedule_context(instance, moment) as context:
        # Given as resources=..., it would come with an instance of its own: 0.2 s for each tick.
        context._resources = SimpleNamespace(universe=universe)
        done = schedule.evaluate_tick(context)
    if done.run_requests:
        [request] = done.run_requests
        assert done.skip_message is None
        return request
    assert done.skip_message
    assert "\n" not in done.skip_message
    return done.skip_message


def asked(request: dg.RunRequest | str) -> tuple[date, date]:
    """The days that a request is for, both included."""
    assert isinstance(request, dg.RunRequest), request
    first, last = (
        request.tags[tag]
        for tag in (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)
    )
    return date.fromisoformat(first), date.fromisoformat(last)


def record(
    instance: dg.DagsterInstance,
    request: dg.RunRequest,
    moment: datetime,
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.SUCCESS,
) -> dg.DagsterRun:
    """The run that the daemon makes of a request, with the tags that it adds."""
    tags = {**request.tags, SCHEDULED_EXECUTION_TIME_TAG: moment.astimezone(UTC).isoformat()}
    place = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("place"), "repository")
    return create_run_for_test(
        instance,
        job_name="any",
        tags=tags,
        status=status,
        remote_job_origin=RemoteJobOrigin(place, "any"),
    )


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp() as made:
        yield made


@pytest.fixture
def runs(instance) -> dg.DagsterInstance:
    """An instance without runs."""
    instance.wipe()
    return instance


# -- a year of ticks ------------------------------------------------------------------------------

# Half days, a day of mourning (XNYS 2025-01-09), both changes of the clocks of each continent, a
# changed close (XTKS 2024-11-05), a close that follows the clocks (XSGO), a close before its own
# UTC day has begun (XNZE half days), sessions that open on the evening before (CMES, FX_NY).
YEARS = [
    ("XNYS", 2024),
    ("XNYS", 2025),
    ("XLON", 2024),
    ("24/5", 2024),
    ("24/7", 2024),
    ("FX_NY", 2025),
    ("CMES", 2025),
    ("XTKS", 2024),
    ("XHKG", 2024),
    ("XSGO", 2024),
    ("XNZE", 2024),
]


def reference(calendar: str, year: int):
    """The year's sessions with those around it, as the package has them."""
    return exchange_calendars.get_calendar(
        calendar, start=f"{year - 1}-12-01", end=f"{year + 1}-01-31"
    )


@pytest.mark.parametrize(("calendar", "year"), YEARS)
def test_bars_of_a_year(calendar, year):
    """Each session is asked for once, the publication delay and a minute after its close; every
    other tick says the truth about its day."""
    universe = make_universe(("A", calendar))
    schedule = schedule_of(automation(universe, date(year, 1, 1)), schedule_name("bars", calendar))
    truth, first, end = reference(calendar, year), at(f"{year}-01-01"), at(f"{year + 1}-01-01")
    closes = {s.date(): c.to_pydatetime() for s, c in truth.closes.items()}
    expected = [(day, close + AFTER) for day, close in closes.items()]
    fired, skipped = [], []
    for moment in cron_ticks(schedule, first, end):
        said = evaluate(schedule, moment, universe)
        if isinstance(said, str):
            skipped.append((moment, said))
            continue
        day = date.fromisoformat(said.tags[SESSION_TAG])
        assert said.tags[CALENDAR_TAG] == calendar
        assert asked(said) == (day - timedelta(days=7), day)
        # Its partition has begun, and nothing of the run lies ahead of it.
        assert midnight(day) <= moment.astimezone(UTC)
        fired.append((day, moment.astimezone(UTC)))
    assert fired == [(day, due) for day, due in expected if first <= due < end]
    assert len({day for day, _ in fired}) == len(fired) >= 240
    zone, days = ZoneInfo(str(truth.tz)), sorted(closes)
    for moment, said in skipped:
        local = (moment - AFTER - timedelta(microseconds=1)).astimezone(zone).date()
        if local not in closes:
            following = next(day for day in days if day > local)
            assert f"{calendar} has no session on {local:%A} {local}" in said
            assert ("(weekend)" in said) == (local.weekday() >= 5)
            assert ("(holiday)" in said) == (local.weekday() < 5)
            assert said.endswith(f"next session is {following:%A} {following}.")
        else:
            close, due = closes[local].astimezone(zone), closes[local] + AFTER
            verb = "trades until" if moment < due else "closed at"
            assert f"{calendar} {verb} {close:%H:%M} ({zone.key}) " in said
            assert f" on {local:%A} {local}: " in said
            assert f"{due.astimezone(zone):%H:%M}" in said


@pytest.mark.parametrize(("calendar", "year"), YEARS)
def test_warm_up_of_a_year(calendar, year):
    """Half an hour before each open, and at no other time."""
    universe = make_universe(("A", calendar))
    made = automation(universe, date(year, 1, 1))
    schedule = schedule_of(made, schedule_name("warm_up", calendar))
    first, end = at(f"{year}-01-01"), at(f"{year + 1}-01-01")
    expected = [
        (session.date(), opened.to_pydatetime() - BEFORE)
        for session, opened in reference(calendar, year).opens.items()
    ]
    fired = []
    for moment in cron_ticks(schedule, first, end):
        said = evaluate(schedule, moment, universe)
        if isinstance(said, dg.RunRequest):
            fired.append((date.fromisoformat(said.tags[SESSION_TAG]), moment.astimezone(UTC)))
        else:
            assert said.startswith(f"{calendar} ")
            assert "does not open on" in said or "opens at" in said
    assert fired == [(day, due) for day, due in expected if first <= due < end]


def test_a_late_open_has_its_own_tick():
    """Seoul opened at 10:00 instead of 9:00 on the first session of 2025."""
    universe = make_universe(("A", "XKRX"))
    schedule = schedule_of(automation(universe, date(2025, 1, 1)), "warm_up_xkrx")
    assert sorted(schedule.cron_schedule) == ["30 8 * * *", "30 9 * * *"]
    early = evaluate(schedule, at("2025-01-01T23:30"), universe)
    assert early == "XKRX opens at 10:00 on Thursday 2025-01-02: the tick for that is 09:30's."
    assert isinstance(evaluate(schedule, at("2025-01-02T00:30"), universe), dg.RunRequest)
    usual = at("2025-01-02T23:30")
    assert isinstance(evaluate(schedule, usual, universe), dg.RunRequest)
    assert "opens at 09:00" in evaluate(schedule, usual + timedelta(hours=1), universe)


def test_what_the_ticks_of_a_half_day_say():
    universe = make_universe(("A", "XNYS"))
    schedule = schedule_of(automation(universe, date(2025, 1, 1)), "bars_xnys")
    assert schedule.cron_schedule == ["16 13 * * *", "16 16 * * *"]
    assert schedule.execution_timezone == "America/New_York"
    assert evaluate(schedule, at("2025-07-02T17:16"), universe) == (
        "XNYS trades until 16:00 (America/New_York) on Wednesday 2025-07-02: its bars are asked "
        "for at 16:16."
    )
    request = evaluate(schedule, at("2025-07-03T17:16"), universe)
    assert request.run_key == "bars_xnys 2025-07-03"
    assert evaluate(schedule, at("2025-07-03T20:16"), universe) == (
        "XNYS closed at 13:00 (America/New_York) already on Thursday 2025-07-03: the tick of 13:16 "
        "was the one for its bars."
    )
    for hour in (17, 20):
        assert evaluate(schedule, at(f"2025-07-04T{hour}:16"), universe) == (
            "XNYS has no session on Friday 2025-07-04 (holiday); its next session is Monday "
            "2025-07-07."
        )


def test_a_close_that_no_tick_was_made_for_belongs_to_the_next_one():
    """An exchange closes at an hour that the crons do not have: nothing is lost, it is later."""
    ticks = Timetable("XNYS", ZoneInfo("America/New_York"), "close", AFTER, (time(16, 16),))
    assert ticks.tick(at("2025-07-03T20:16")).session.day == date(2025, 7, 3)
    ticks = Timetable("XNYS", ZoneInfo("America/New_York"), "open", -BEFORE, (time(8),))
    assert ticks.tick(at("2025-07-03T12:00")).session.day == date(2025, 7, 3)


def test_a_session_that_ends_before_its_own_utc_day_waits_for_it():
    """Auckland's Christmas Eve ends at 23:45 UTC of the 23rd: its partition is not there yet."""
    ticks = Timetable.after_close("XNZE", timedelta(minutes=5), date(2024, 12, 1))
    assert ticks.times == (time(12, 50), time(16, 50))
    assert "asked for at 13:00" in ticks.tick(at("2024-12-23T23:50")).reason
    assert ticks.newest(at("2024-12-23T23:50")).day == date(2024, 12, 23)
    assert ticks.tick(at("2024-12-24T03:50")).session.day == date(2024, 12, 24)


# -- trading hours --------------------------------------------------------------------------------


@pytest.mark.parametrize("calendar", ["XKRX", *sorted({calendar for calendar, _ in YEARS})])
@pytest.mark.parametrize("edge", ["open", "close"])
def test_hours_are_those_of_the_sessions(calendar, edge):
    zone, hours = trading_hours(calendar, edge, date(2025, 6, 1))
    truth = exchange_calendars.get_calendar(calendar, start="2024-06-03", end="2026-10-30")
    assert zone.key == str(truth.tz)
    assert hours >= set(getattr(truth, f"{edge}s").dt.tz_convert(truth.tz).dt.time)
    assert len(hours) <= 4


def test_hours_are_found_where_the_package_declares_them_differently(monkeypatch):
    expected = trading_hours("XLON", "close", date(2025, 1, 1))

    def moved(*_):
        raise AttributeError("no such thing any more")

    monkeypatch.setattr(sessions, "_declared_hours", moved)
    assert trading_hours("XLON", "close", date(2025, 1, 1)) == expected
    assert expected[1] == {time(12, 30), time(16, 30)}


def test_a_calendar_that_cannot_be_built_fails_its_own_ticks_in_one_line():
    universe = make_universe(("A", "ASEX"), ("B", "XNYS"))
    made = automation(universe, date(2025, 1, 1))
    moment = at("2025-07-03T17:16")
    with pytest.raises(dg.DagsterError) as caught:
        evaluate(schedule_of(made, "bars_asex"), moment, universe)
    cause = caught.value.__cause__
    assert isinstance(cause, UniverseError)
    assert str(cause).startswith("calendar: 'ASEX' cannot be built")
    assert "\n" not in str(cause)
    assert isinstance(evaluate(schedule_of(made, "bars_xnys"), moment, universe), dg.RunRequest)


def test_a_calendar_that_knows_no_more_sessions_says_so():
    calendar = "XSES"  # recorded year by year
    last = sessions.calendar_sessions(calendar)["time"][-1].date()
    universe = make_universe(("A", calendar))
    schedule = schedule_of(automation(universe, last + timedelta(days=500)), "bars_xses")
    said = evaluate(schedule, midnight(last + timedelta(days=100, hours=9)), universe)
    assert f"knows no session of XSES after {last}: install a newer release" in said


# -- who is listed --------------------------------------------------------------------------------


def test_the_sample_is_over_and_every_tick_says_so():
    universe = Universe.load()
    made = automation(universe, date(2026, 11, 20))
    for name in ("bars_xnys", "warm_up_xnys"):
        schedule = schedule_of(made, name)
        for moment in cron_ticks(schedule, at("2026-11-16"), at("2026-11-30")):
            said = evaluate(schedule, moment, universe)
            assert said.startswith("No instrument of XNYS is listed on ")
            assert "the last one was on 2018-12-31. Extend a membership in universe.yaml." in said
    said = evaluate(schedule_of(made, "news_and_reddit"), at("2026-11-20T10:00"), universe)
    assert "No instrument with a source of news or posts is listed on 2026-11-20" in said
    assert isinstance(
        evaluate(schedule_of(made, "macro"), at("2026-11-20T15:00"), universe), dg.RunRequest
    )


@pytest.mark.parametrize(
    ("membership", "says"),
    [
        ("[{from: 2026-01-05}]", "listed on Thursday 2025-07-03: the next one is from 2026-01-05."),
        ("[{from: 2020-01-06, to: 2025-07-03}]", "the last one was on 2025-07-02."),
        (None, "universe.yaml has none with that calendar any more."),
    ],
)
def test_a_calendar_without_members_says_why(membership, says):
    """Who is listed is looked up at the tick: universe.yaml may have changed since the start."""
    schedule = schedule_of(automation(make_universe(("A", "XNYS")), date(2025, 1, 1)), "bars_xnys")
    now = make_universe(("A", "XNYS", membership) if membership else ("A", "XLON"))
    assert says in evaluate(schedule, at("2025-07-03T17:16"), now)


def test_the_last_session_of_the_last_member_is_asked_for():
    universe = make_universe(("A", "XNYS", "[{from: 2020-01-06, to: 2025-07-04}]"))
    schedule = schedule_of(automation(universe, date(2025, 1, 1)), "bars_xnys")
    assert isinstance(evaluate(schedule, at("2025-07-03T17:16"), universe), dg.RunRequest)


def test_a_run_asks_for_the_instruments_of_its_calendar():
    universe = make_universe(
        ("NY", "XNYS"),
        ("GONE", "XNYS", "[{from: 2020-01-06, to: 2025-06-30}]"),
        ("LONG_GONE", "XNYS", "[{from: 2020-01-06, to: 2025-06-26}]"),
        ("SOON", "XNYS", "[{from: 2025-07-04}]"),
        ("COIN", "24/7"),
        ("LON", "XLON"),
    )
    made = automation(universe, date(2025, 1, 1))
    assert [s.name for s in made.schedules] == [
        *("bars_24_7", "bars_xlon", "bars_xnys", "news_and_reddit", "macro"),
        "insiders",
        *("warm_up_24_7", "warm_up_xlon", "warm_up_xnys"),
    ]
    request = evaluate(schedule_of(made, "bars_xnys"), at("2025-07-03T17:16"), universe)
    # Whoever was listed on a day that is asked for: restated bars of those who left are found.
    assert request.tags[SYMBOLS_TAG] == "GONE,NY"
    assert request.tags[TIMEFRAME_TAG] == "1d"
    coin = evaluate(schedule_of(made, "bars_24_7"), at("2025-07-04T00:16"), universe)
    assert coin.tags[SYMBOLS_TAG] == "COIN"
    assert asked(coin) == (date(2025, 6, 26), date(2025, 7, 3))
    alone = make_universe(("A", "XNYS"), ("B", "XNYS"))
    request = evaluate(schedule_of(made, "bars_xnys"), at("2025-07-03T17:16"), alone)
    assert SYMBOLS_TAG not in request.tags


def test_more_symbols_than_fit_a_tag_are_not_named():
    many = [(f"SYMBOL{n:04}", "XNYS") for n in range(MAX_SYMBOLS_TAG // 11 + 1)]
    universe = make_universe(*many, ("LON", "XLON"))
    made = automation(universe, date(2025, 1, 1))
    request = evaluate(schedule_of(made, "bars_xnys"), at("2025-07-03T17:16"), universe)
    assert SYMBOLS_TAG not in request.tags
    request = evaluate(schedule_of(made, "bars_xlon"), at("2025-07-03T15:46"), universe)
    assert request.tags[SYMBOLS_TAG] == "LON"


@pytest.mark.parametrize("source", [Off("made", "made is off"), FeedSource()])
def test_a_provider_of_bars_that_has_none_does_not_keep_the_definitions_from_loading(source):
    """Its runs fail, and `doctor` says what universe.yaml has wrong."""
    universe = make_universe(("A", "XNYS"))
    assert publication_delay(universe, "XNYS", {"made": source}) == timedelta(minutes=15)


@pytest.mark.parametrize(
    ("delay", "cron"),
    [
        (timedelta(0), "16 16 * * *"),  # the store counts a bar as missing after 15 minutes
        (timedelta(minutes=20), "21 16 * * *"),
        (timedelta(minutes=20, seconds=1), "22 16 * * *"),
        (timedelta(hours=9), "1 1 * * *"),  # past midnight: the session of the day before
    ],
)
def test_ticks_wait_for_the_publication_delay(delay, cron):
    class Slow(SampleSource):
        publication_delay = delay

    universe, sources = make_universe(("A", "XNYS")), {"made": Slow()}
    assert publication_delay(universe, "XNYS", sources) >= delay
    schedule = schedule_of(automation(universe, date(2025, 1, 1), sources), "bars_xnys")
    assert cron in schedule.cron_schedule
    first, end = at("2025-03-03T21:00"), at("2025-03-14T20:00")  # the clocks change in between
    fired = [
        (date.fromisoformat(said.tags[SESSION_TAG]), moment)
        for moment in cron_ticks(schedule, first, end)
        if not isinstance(said := evaluate(schedule, moment, universe), str)
    ]
    closes = reference("XNYS", 2025).closes[str(first.date()) : "2025-03-13"]
    assert [day for day, _ in fired] == [session.date() for session in closes.index]
    waited = max(delay, timedelta(minutes=15)) + timedelta(minutes=1)
    for (_, moment), close in zip(fired, closes, strict=True):
        assert timedelta(0) <= moment - (close + waited) < timedelta(minutes=1)


# -- holes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def new_york():
    universe = make_universe(("A", "XNYS"))
    return universe, schedule_of(automation(universe, date(2025, 1, 1)), "bars_xnys")


def simulate(schedule, universe, instance, first, end, *, down=(), status=None):
    """Ticks as the daemon evaluates them: of those it missed, the newest, once it is back."""
    late, fired = None, []
    for moment in cron_ticks(schedule, first, end):
        if any(begin <= moment < until for begin, until in down):
            late = moment
            continue
        for each in (late, moment) if late else (moment,):
            said = evaluate(schedule, each, universe, instance)
            if isinstance(said, dg.RunRequest):
                record(instance, said, each, (status or {}).get(said.tags[SESSION_TAG], SUCCESS))
                fired.append((said.tags[SESSION_TAG], each, asked(said)[0].isoformat()))
        late = None
    return fired


SUCCESS, FAILURE = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE


def test_a_daemon_that_runs_asks_for_each_session_once(new_york, runs):
    universe, schedule = new_york
    fired = simulate(schedule, universe, runs, at("2025-06-30"), at("2025-07-12"))
    truth = exchange_calendars.get_calendar("XNYS").sessions_in_range("2025-06-30", "2025-07-11")
    assert [session for session, *_ in fired] == [str(s.date()) for s in truth]


def test_a_missed_tick_is_made_good_at_the_next_one(new_york, runs):
    """Down from Friday noon to Saturday night: Dagster evaluates one tick, a Saturday's."""
    universe, schedule = new_york
    fired = simulate(
        *(schedule, universe, runs, at("2025-06-09"), at("2025-06-18")),
        down=[(at("2025-06-13T12:00"), at("2025-06-15T00:00"))],
    )
    assert [(session, f"{when:%a}") for session, when, _ in fired] == [
        *(("2025-06-09", "Mon"), ("2025-06-10", "Tue"), ("2025-06-11", "Wed")),
        *(("2025-06-12", "Thu"), ("2025-06-13", "Sat"), ("2025-06-16", "Mon")),
        ("2025-06-17", "Tue"),
    ]


def test_a_missed_early_tick_is_made_good_by_the_regular_one(new_york, runs):
    universe, schedule = new_york
    fired = simulate(
        *(schedule, universe, runs, at("2025-07-01"), at("2025-07-08")),
        down=[(at("2025-07-03T12:00"), at("2025-07-03T19:00"))],
    )
    assert [session for session, *_ in fired] == [
        *("2025-07-01", "2025-07-02", "2025-07-03", "2025-07-07"),
    ]
    assert fired[2][1] == at("2025-07-03T17:16")  # the newest missed tick is its own


def test_a_missed_half_day_is_made_good_although_its_tick_was_overtaken(new_york, runs):
    universe, schedule = new_york
    fired = simulate(
        *(schedule, universe, runs, at("2025-07-01"), at("2025-07-08")),
        down=[(at("2025-07-03T12:00"), at("2025-07-03T21:00"))],
    )
    assert fired[2][:2] == ("2025-07-03", at("2025-07-03T20:16"))
    assert len(fired) == 4


def test_a_long_outage_is_filled_from_the_last_session_that_was_completed(new_york, runs):
    universe, schedule = new_york
    fired = simulate(
        *(schedule, universe, runs, at("2025-02-03"), at("2025-04-03")),
        down=[(at("2025-02-06T12:00"), at("2025-03-25T12:00"))],
        status={"2025-03-24": FAILURE},
    )
    assert fired[3][0] == "2025-03-24"  # the newest missed one
    assert fired[3][2] == "2025-02-21"  # MAX_CATCH_UP before it
    assert fired[4][::2] == ("2025-03-25", "2025-02-22")  # the run before it failed
    assert fired[5][::2] == ("2025-03-26", "2025-03-19")
    assert [session for session, *_ in fired][5:] == [
        *("2025-03-26", "2025-03-27", "2025-03-28", "2025-03-31", "2025-04-01", "2025-04-02"),
    ]


def test_what_fails_for_ever_does_not_ask_for_ever_more(new_york, runs):
    universe, schedule = new_york
    failing = {str(date(2025, 2, 4) + timedelta(days=n)): FAILURE for n in range(90)}
    fired = simulate(schedule, universe, runs, at("2025-02-03"), at("2025-05-03"), status=failing)
    assert (fired[0][0], fired[15][2]) == ("2025-02-03", "2025-02-03")
    lengths = [date.fromisoformat(s) - date.fromisoformat(first) for s, _, first in fired]
    assert max(lengths) == MAX_CATCH_UP
    assert lengths[-1] == MAX_CATCH_UP


def test_without_a_run_before_there_is_no_hole(new_york, runs):
    """Switched on at a weekend, it starts nothing; history is a backfill's business."""
    universe, schedule = new_york
    assert "(weekend)" in evaluate(schedule, at("2025-06-14T20:16"), universe, runs)
    assert "(holiday)" in evaluate(schedule, at("2025-07-04T20:16"), universe, runs)
    request = evaluate(schedule, at("2025-06-16T20:16"), universe, runs)
    assert asked(request) == (date(2025, 6, 9), date(2025, 6, 16))


def test_what_is_asked_for_and_fails_is_not_asked_for_again(new_york, runs):
    """Retries and repairs are not the schedule's; neither is a re-execution of an older run."""
    universe, schedule = new_york
    requests = {}
    for day in (12, 13):
        moment = at(f"2025-06-{day}T20:16")
        requests[day] = evaluate(schedule, moment, universe, runs)
        record(runs, requests[day], moment, FAILURE)
    assert "(weekend)" in evaluate(schedule, at("2025-06-14T20:16"), universe, runs)
    record(runs, requests[12], at("2025-06-12T20:16"))  # again, by hand
    assert "(weekend)" in evaluate(schedule, at("2025-06-15T20:16"), universe, runs)


def test_days_asked_for_again_are_a_setting():
    universe = make_universe(("A", "XNYS"))
    for days in (0, 30):
        schedule = schedule_of(
            automation(universe, date(2025, 1, 1), refetch_days=days), "bars_xnys"
        )
        request = evaluate(schedule, at("2025-07-02T20:16"), universe)
        assert asked(request) == (date(2025, 7, 2) - timedelta(days=days), date(2025, 7, 2))
        assert f"for {days} days before it" in schedule.description


# -- documents ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def documents():
    universe = make_universe(("A", "XNYS"))
    return universe, schedule_of(automation(universe, date(2025, 1, 1)), "news_and_reddit")


def test_documents_of_today_and_shortly_after_midnight_of_yesterday(documents):
    universe, schedule = documents
    ticks = list(cron_ticks(schedule, at("2025-06-13"), at("2025-06-15")))
    assert len(ticks) == 2 * 96
    for moment in ticks:
        first, last = asked(evaluate(schedule, moment, universe))
        assert last == moment.date()
        yesterday = moment.hour == 0
        assert first == last - timedelta(days=yesterday)


def test_documents_run_one_at_a_time(documents, runs):
    universe, schedule = documents
    free = {
        *(dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED),
        dg.DagsterRunStatus.NOT_STARTED,  # recorded, and never submitted
    }
    for number, status in enumerate(dg.DagsterRunStatus):
        runs.wipe()
        moment = at("2025-06-13T10:00") + timedelta(minutes=15 * number)
        run = record(runs, evaluate(schedule, moment, universe, runs), moment, status)
        said = evaluate(schedule, moment + timedelta(minutes=15), universe, runs)
        if status in free:
            assert isinstance(said, dg.RunRequest)
        else:
            assert f"The run before, {run.run_id}, is {status.value.lower()} still" in said
    # Somebody else's runs do not count.
    runs.wipe()
    create_run_for_test(runs, job_name="news_and_reddit", status=dg.DagsterRunStatus.STARTED)
    assert isinstance(evaluate(schedule, at("2025-06-13T10:00"), universe, runs), dg.RunRequest)


def test_documents_of_an_outage_are_asked_for(documents, runs):
    universe, schedule = documents
    moment = at("2025-06-10T00:15")
    record(runs, evaluate(schedule, moment, universe, runs), moment)
    failed = at("2025-06-10T12:00")
    record(runs, evaluate(schedule, failed, universe, runs), failed, FAILURE)
    request = evaluate(schedule, at("2025-06-12T09:00"), universe, runs)
    assert asked(request) == (date(2025, 6, 9), date(2025, 6, 12))
    request = evaluate(schedule, at("2025-07-12T09:00"), universe, runs)
    assert asked(request) == (date(2025, 7, 5), date(2025, 7, 12))


@settings(max_examples=500)
@given(
    succeed=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    available=st.integers(22 * 60, 26 * 60),
    shown=st.integers(0, int(REOPENED.total_seconds() // 60)),
    refetch=st.integers(1, 9),
)
def test_no_document_falls_between_two_runs(succeed, available, shown, refetch):
    """Whichever runs around a midnight fail: a document that its feed shows within `REOPENED` of
    the moment from which it counts is in the days of the first run that succeeds after that."""
    start = at("2025-06-10")
    counts = start + timedelta(minutes=available)
    seen = counts + timedelta(minutes=shown)
    done, moment = start, start + timedelta(hours=22)
    for skipped in [*succeed, 20]:
        moment += timedelta(minutes=15 * (skipped + 1))
        first = documents_from(moment, done, refetch)
        if moment >= seen:
            assert first <= counts.date() <= moment.date()
            return
        done = moment


@pytest.mark.parametrize("days", [0, 3])
def test_documents_are_asked_for_no_further_back_than_the_setting(days):
    moment = at("2025-06-20T12:00")
    reach = timedelta(days=max(days, 1))
    assert documents_from(moment, at("2025-06-01"), days) == moment.date() - reach


# -- insiders -------------------------------------------------------------------------------------


def test_insiders_are_asked_for_once_edgar_has_closed():
    """On the evening of each working day; in UTC that is the next one, and filings of the evening
    lie on both."""
    plain = make_universe(("A", "XNYS"))
    schedule = schedule_of(automation(plain, date(2025, 1, 1)), "insiders")
    ticks = list(cron_ticks(schedule, at("2025-01-01T05:00"), at("2026-01-01T05:00")))
    assert len(ticks) == 261
    assert {(m.time(), str(m.tzinfo)) for m in ticks} == {(time(22, 30), "America/New_York")}
    [told] = {evaluate(schedule, moment, plain) for moment in ticks[:3]}
    assert "No instrument has a source of insiders" in told
    known = plain.instruments[0]
    source = known.source.model_copy(update={"insiders": "edgar"})
    watched = Universe([known.model_copy(update={"source": source, "cik": 1})], "A")
    for moment in ticks:
        day = moment.date() + timedelta(days=1)
        assert asked(evaluate(schedule, moment, watched)) == (day - timedelta(days=7), day)


# -- macro ----------------------------------------------------------------------------------------


def test_macro_of_a_year():
    """Twice a working day, at the same hours in New York all the year round."""
    universe = make_universe(("A", "XNYS"))
    schedule = schedule_of(automation(universe, date(2025, 1, 1)), "macro")
    ticks = list(cron_ticks(schedule, at("2025-01-01T05:00"), at("2026-01-01T05:00")))
    assert len(ticks) == 2 * 261
    for moment in ticks:
        assert moment.weekday() < 5
        assert moment.time() in (time(10), time(18))
        assert str(moment.tzinfo) == "America/New_York"
        day = moment.date()
        assert asked(evaluate(schedule, moment, universe)) == (day - timedelta(days=7), day)


def test_macro_of_an_outage_is_asked_for(runs):
    universe = make_universe(("A", "XNYS"))
    schedule = schedule_of(automation(universe, date(2025, 1, 1)), "macro")
    moment = at("2025-03-03T15:00")
    record(runs, evaluate(schedule, moment, universe, runs), moment)
    request = evaluate(schedule, at("2025-04-03T14:00"), universe, runs)
    assert asked(request) == (date(2025, 3, 3), date(2025, 4, 3))


# -- what Dagster is told -------------------------------------------------------------------------


def test_the_definitions_hold_them_switched_off_and_described():
    schedules = {s.name: s for s in defs.schedules}
    of_the_graph = {"bars_xnys", "news_and_reddit", "macro", "insiders", "warm_up_xnys"}
    assert set(schedules) == of_the_graph | {"reconcile_positions"}
    for schedule in schedules.values():
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
        assert "Off until you switch it on" in schedule.description
        assert schedule.tags["feature_pipeline/subject"]
    assert schedules["bars_xnys"].job_name == JOB
    assert schedules["warm_up_xnys"].job_name == "warm_up"


@pytest.mark.parametrize(
    ("name", "assets"),
    [
        ("news_and_reddit", {"news", "reddit", "sentiment_scores"}),
        ("macro", {"macro_indicators"}),
        ("insiders", {"insider_transactions"}),
    ],
)
def test_jobs_hold_their_assets_alone(name, assets):
    job = defs.resolve_job_def(name)
    assert job.asset_layer.executable_asset_keys == {dg.AssetKey(a) for a in assets}
    assert len(job.description) > 20
    assert job.executor_def == dg.in_process_executor


def test_names_say_the_timeframe_unless_it_is_daily():
    assert schedule_name("bars", "24/5") == "bars_24_5"
    assert schedule_name("bars", "us_futures") == "bars_us_futures"
    assert schedule_name("bars", "XNYS", "5m") == "bars_xnys_5m"


# -- the runs -------------------------------------------------------------------------------------


def execute(graph, request: dg.RunRequest, job: str = JOB) -> dg.ExecuteInProcessResult:
    """The requested run, as its worker executes it."""
    made = build_defs(Settings(), **graph.resources)
    return made.resolve_job_def(job).execute_in_process(
        instance=graph.instance, tags=dict(request.tags), run_config=_QUIET
    )


def test_the_requested_run_writes_its_days_and_finds_a_restated_bar(new_graph, world, ran):
    with new_graph(world) as graph:
        schedule = schedule_of(automation(graph.universe, date(2019, 1, 1)), "bars_xnys")
        thursday, friday = (
            evaluate(schedule, at(f"2019-06-{day}T20:16"), graph.universe) for day in (13, 14)
        )
        assert asked(thursday) == (date(2019, 6, 6), date(2019, 6, 13))
        assert execute(graph, thursday).success
        assert graph.table("state_vectors_1d")["time"].dt.date().max() == date(2019, 6, 13)
        # What was published for Tuesday is restated on Friday.
        restated = (pl.col("time") == midnight(date(2019, 6, 11))) & (pl.col("symbol") == "AAA")
        graph.source.world = world.but(
            bars=world.bars.with_columns(
                pl.when(restated).then(pl.col("volume") * 2).otherwise("volume").alias("volume")
            )
        )
        assert execute(graph, friday).success
        assert graph.query("SELECT time FROM ohlcv_1d_history").height == 1
        corrected = graph.tables()
        # The same as one run of a world in which it always was like that.
        graph_of_truth = new_graph(graph.source.world)
        with graph_of_truth as truth:
            truth.run(date(2019, 6, 6))
            assert_same_tables(corrected, truth.tables())


def test_documents_and_macro_run(new_graph, world):
    with new_graph(world) as graph:
        made = automation(graph.universe, date(2019, 1, 1))
        request = evaluate(
            schedule_of(made, "news_and_reddit"), at("2019-06-14T00:15"), graph.universe
        )
        assert asked(request) == (date(2019, 6, 13), date(2019, 6, 14))
        checked = execute(graph, request, "news_and_reddit").get_asset_check_evaluations()
        assert {key.to_python_identifier() for key in (c.asset_key for c in checked)} == {
            *("news", "reddit", "sentiment_scores")
        }
        days = graph.table("sentiment_scores", None, None)["available_at"].dt.date()
        assert {date(2019, 6, 13), date(2019, 6, 14)} <= set(days)
        assert days.max() == date(2019, 6, 14)
        request = evaluate(schedule_of(made, "macro"), at("2019-06-14T14:00"), graph.universe)
        checked = execute(graph, request, "macro").get_asset_check_evaluations()
        assert {c.asset_key for c in checked} == {dg.AssetKey("macro_indicators")}
        released = set(graph.table("macro_indicators", None, None)["available_at"].dt.date())
        assert {date(2019, 6, 7), date(2019, 6, 14)} <= released
        assert max(released) == date(2019, 6, 14)


def test_the_warm_up_fills_redis_and_says_with_what(ran, redis_url, monkeypatch):
    with publishing_client(redis_url) as client:
        monkeypatch.setattr(ran, "overrides", {"redis": client})
        assert rebuild_needed(client)
        request = dg.RunRequest()
        done = execute(ran, request, "warm_up")
        assert done.success
        assert not rebuild_needed(client)
        [event] = [e for e in done.all_events if e.is_successful_output]
        told = {k: v.value for k, v in event.event_specific_data.metadata.items()}
        assert (told["vectors_1d"], told["macro"], told["sentiment"]) == (4, 3, 8)
        assert (told["written"], told["refreshed"], told["complete"]) == (15, 0, True)
        again = execute(ran, request, "warm_up")
        [event] = [e for e in again.all_events if e.is_successful_output]
        assert event.event_specific_data.metadata["refreshed"].value == 15


def test_a_warm_up_without_redis_fails_in_one_line(ran, monkeypatch):
    with publishing_client("redis://127.0.0.1:1/0") as client:
        monkeypatch.setattr(ran, "overrides", {"redis": client})
        made = build_defs(Settings(), **ran.resources)
        job = made.resolve_job_def("warm_up")
        done = job.execute_in_process(
            instance=ran.instance, run_config=_QUIET, raise_on_error=False
        )
    said = failure(done)[1]
    assert "127.0.0.1:1" in said
    assert "\n" not in said
    assert sum(event.is_step_restarted for event in done.all_events) == 2


# -- in the daemon's hands ------------------------------------------------------------------------


def test_the_daemon_makes_runs_of_what_it_asks(tmp_path, monkeypatch):
    """The real definitions, loaded by a code server and ticked by Dagster's own scheduler: switched
    on on a Wednesday, down from noon of Thursday, a half day, to the night to Sunday."""
    (tmp_path / "universe.yaml").write_text(universe_text(("A", "XNYS"), ("L", "XLON")))
    given = {"UNIVERSE": str(tmp_path / "universe.yaml"), "REFETCH_DAYS": "1"}
    for name, value in {**{PREFIX + k: v for k, v in given.items()}, **RUN_CREATOR_FLAGS}.items():
        monkeypatch.setenv(name, value)
    overrides = {
        "run_coordinator": {"module": "dagster", "class": "QueuedRunCoordinator"},
        # What was planned is in the runs; writing it down takes most of the time.
        "event_log_storage": {
            "module": "dagster._core.storage.event_log",
            "class": "InMemoryEventLogStorage",
        },
    }
    module = ModuleTarget("feature_pipeline.definitions", "defs", None, "place")
    with (
        instance_for_test(overrides=overrides) as instance,
        create_test_daemon_workspace_context(module, instance) as workspace,
    ):
        place = workspace.create_request_context().get_code_location("place")
        [repository] = place.get_repositories().values()
        [schedule] = [s for s in repository.get_schedules() if s.name == "bars_xnys"]
        with freeze_time(at("2025-07-02T10:00")):
            instance.start_schedule(schedule)
        said = []
        for now in ("2025-07-02T21:00", "2025-07-06T01:00", "2025-07-06T21:00"):
            with freeze_time(at(now)):
                log = logging.getLogger(__name__)
                assert not any(launch_scheduled_runs(workspace, log, at(now), {}))
            [tick] = instance.get_ticks(
                schedule.get_remote_origin_id(), schedule.selector_id, limit=1
            )
            said.append(tick.skip_reason or tick.run_keys)
        assert said == [
            ["bars_xnys 2025-07-02"],
            ["bars_xnys 2025-07-03"],  # the last one that nobody asked for, at Saturday's tick
            "XNYS has no session on Sunday 2025-07-06 (weekend); its next session is Monday "
            "2025-07-07.",
        ]
        runs = {run.tags[RUN_KEY_TAG]: run for run in instance.get_runs()}
        assert all(run.status == dg.DagsterRunStatus.QUEUED for run in runs.values())
        newest = runs["bars_xnys 2025-07-03"]
        assert newest.job_name == JOB
        assert newest.tags[SYMBOLS_TAG] == "A"
        assert newest.tags[ASSET_PARTITION_RANGE_START_TAG] == "2025-07-02"
        assert newest.tags[ASSET_PARTITION_RANGE_END_TAG] == "2025-07-03"
