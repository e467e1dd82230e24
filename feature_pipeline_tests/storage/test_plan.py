"""What a run is about to write: staleness, history, waiting, and refusing to compute on a hole."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.errors import MissingPartitionError
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.schemas import Fetched, Input
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.store import Store
from feature_pipeline.universe import Universe, calendar_sessions
from feature_pipeline_tests.storage.support import (
    JANUARY,
    TOY,
    Clock,
    Desk,
    bars,
    derived,
    doubles,
    fetched,
    means,
    nothing,
    run_doubles,
    run_means,
    sessions,
    universe,
)

WEEK = (date(2020, 1, 13), date(2020, 1, 18))


def days_of(days: tuple[date, date] = JANUARY) -> list[date]:
    return sessions(days)["time"].dt.date().to_list()


@pytest.fixture
def filled(desk: Desk) -> Desk:
    """January of everything, computed."""
    desk.write("ohlcv_1d", fetched(bars(["A", "BB", "CCC"]), "A", "BB", "CCC"))
    run_means(desk)
    run_doubles(desk)
    return desk


def stale(desk: Desk, asset: str, code_version: str = "1") -> list[date]:
    return desk.store.pending(asset, *JANUARY, code_version).to_list()


def restate(desk: Desk, day: date, symbol: str = "A") -> None:
    hit = (pl.col("symbol") == symbol) & (pl.col("time").dt.date() == day)
    frame = bars(["A", "BB", "CCC"]).with_columns(
        close=pl.col("close") + pl.when(hit).then(0.25).otherwise(0)
    )
    desk.write("ohlcv_1d", fetched(frame, "A", "BB", "CCC"))


# -- staleness ------------------------------------------------------------------------------------


def test_what_is_not_stale_is_not_computed(filled: Desk) -> None:
    ledger = filled.ledger("means")
    with filled.planned("means") as plan:
        assert plan.days.is_empty()
        loaded = filled.store.load(plan, plan.table.inputs[0])
        assert loaded.is_empty()
        assert "close" in loaded.columns
        assert filled.store.write(plan, means(loaded)).input == 0
    assert filled.ledger("means").equals(ledger)


def test_a_correction_makes_the_days_stale_that_read_it(filled: Desk) -> None:
    restate(filled, date(2020, 1, 15))
    assert stale(filled, "means") == [date(2020, 1, d) for d in (15, 16, 17)]
    assert stale(filled, "doubles") == []
    report = run_means(filled)
    assert (report.written, report.unchanged) == (9, 0)
    assert stale(filled, "means") == []
    # The days in between that are no sessions read them, too.
    assert stale(filled, "doubles") == [date(2020, 1, d) for d in (15, 16, 17, 18, 19, 20, 21)]
    run_doubles(filled)
    assert stale(filled, "doubles") == []


def test_what_was_read_again_and_is_the_same_is_not_written(filled: Desk) -> None:
    """A correction that is taken back: computed again, found to be right, nothing goes on."""
    restate(filled, date(2020, 1, 15))
    filled.write("ohlcv_1d", fetched(bars(["A", "BB", "CCC"]), "A", "BB", "CCC"))
    placed, ledger = filled.place("indicators_1d"), filled.ledger("means")
    report = run_means(filled)
    assert (report.written, report.unchanged) == (0, 9)
    assert filled.place("indicators_1d").equals(placed)
    assert filled.ledger("means")["revision"].equals(ledger["revision"])
    assert stale(filled, "doubles") == []


def test_other_code_makes_everything_stale(filled: Desk) -> None:
    assert len(stale(filled, "means", "2")) == 31
    report = run_means(filled, WEEK, code_version="2")
    assert report.unchanged == 15
    left = stale(filled, "means", "2")
    assert not set(left) & set(days_of(WEEK))
    assert len(left) == 26


@given(day=st.sampled_from(days_of()), lookback=st.integers(0, 4))
def test_the_lookback_counts_sessions(day: date, lookback: int) -> None:
    """A day is read from `lookback` sessions before it on."""
    known = calendar_sessions("XNYS")["time"].dt.date()
    before = known.filter(known < day)
    reach = universe("A").lookback_starts(pl.Series([day]), lookback)
    assert reach.to_list() == [before[-lookback] if lookback else day]


_MIXED = """
benchmark: A
instruments:
""" + "".join(
    f"""
  - {{id: {name}, asset_class: equity, calendar: {calendar}, sector: x, source: {{bars: s}},
     symbols: [{{symbol: {name}, from: 2000-01-03}}], membership: [{{from: 2000-01-03}}]}}
"""
    for name, calendar in (("A", "XNYS"), ("B", "XTKS"), ("C", "24/7"))
)


@given(
    days=st.lists(st.dates(date(1989, 1, 1), date(2027, 12, 31)), max_size=20),
    bars=st.integers(0, 3000),
)
def test_lookbacks_of_many_days_are_those_of_each(days: list[date], bars: int) -> None:
    world = Universe.parse(_MIXED)
    expected = []
    for day in days:
        starts = [day]
        for calendar in ("XNYS", "XTKS", "24/7"):
            times = calendar_sessions(calendar)["time"].dt.date()
            before = times.filter(times < day)
            if bars and before.len():
                starts.append(before[max(before.len() - bars, 0)])
        expected.append(min(starts))
    found = world.lookback_starts(pl.Series(days, dtype=pl.Date), bars)
    assert found.to_list() == expected
    assert [world.lookback_start(day, bars) for day in days[:2]] == expected[:2]


# -- history --------------------------------------------------------------------------------------


def test_a_cold_run_reaches_back_to_what_others_read(desk: Desk) -> None:
    with desk.planned("ohlcv_1d", WEEK) as plan:
        assert plan.days.to_list() == [
            d.date()
            for d in pl.date_range(date(2020, 1, 8), WEEK[1], closed="left", eager=True).cast(
                pl.Datetime
            )
        ]
        desk.store.write(plan, fetched(bars(["A", "BB", "CCC"], plan.window), "A", "BB", "CCC"))
    with desk.planned("ohlcv_1d", WEEK) as plan:
        assert plan.window == WEEK
    with desk.planned("means", WEEK) as plan:
        assert plan.days[0] == date(2020, 1, 10)


def test_what_is_planned_suffices_for_those_who_read_it() -> None:
    """With calendars of unequal lengths, sums of lookbacks are not the lookback of sums."""
    tables = {
        **TOY,
        "means": derived("means", Input("ohlcv_1d", ("close",), 37, 5), table="indicators_1d"),
        "doubles": derived("doubles", Input("means", ("sma_20",), 61, 3)),
    }
    store = Store(
        Database("postgresql://nobody@nowhere/none"), Universe.parse(_MIXED), tables, clock=Clock()
    )
    planner = store._planner
    for day in pl.date_range(date(2019, 1, 1), date(2019, 12, 31), eager=True):
        first = planner.first_needed("ohlcv_1d", day)
        of_doubles = planner.reach(tables["doubles"].inputs[0], pl.Series([day]))
        of_means = planner.reach(tables["means"].inputs[0], of_doubles)
        assert first <= of_means[0] <= day


def test_what_another_run_is_writing_is_not_fetched_again(desk: Desk) -> None:
    before = (date(2020, 1, 8), date(2020, 1, 13))
    with desk.planned("ohlcv_1d", before), desk.planned("ohlcv_1d", WEEK) as plan:
        assert plan.window == WEEK
    with desk.planned("ohlcv_1d", WEEK) as plan:  # it has gone without writing
        assert plan.window[0] == date(2020, 1, 8)


def test_for_single_symbols(desk: Desk) -> None:
    with desk.planned("ohlcv_1d", WEEK, symbols=["BB"]) as plan:
        assert plan.symbols == ("BB",)
        desk.store.write(plan, fetched(bars(["BB"], plan.window), "BB"))
    with desk.planned("ohlcv_1d", WEEK, symbols=["BB"]) as plan:
        assert plan.window == WEEK
    with desk.planned("ohlcv_1d", WEEK) as plan:  # the others have no history yet
        assert plan.window[0] == date(2020, 1, 8)
    # A day of events counts as collected for everybody: the first time everybody is asked.
    with desk.planned("news", WEEK, symbols=["BB"]) as plan:
        assert plan.symbols is None
        desk.store.write(plan, {"made": Fetched(TOY["news"].empty(), {}, ("A", "BB", "CCC"))})
    with desk.planned("news", WEEK, symbols=["BB"]) as plan:
        assert plan.symbols == ("BB",)


# -- holes ----------------------------------------------------------------------------------------


def test_events_are_collected_again_for_who_joined_since(desk: Desk) -> None:
    """Rows of events cannot tell whom they were collected for: a split would go unnoticed."""
    actions = TOY["corporate_actions"]
    desk.write("corporate_actions", nothing("A", "BB", "CCC", table=actions))
    assert desk.store.pending("corporate_actions", *JANUARY, "1").is_empty()
    desk.write("corporate_actions", nothing("A", table=actions), symbols=["A"])
    assert desk.store.pending("corporate_actions", *JANUARY, "1").is_empty()
    joined = Store(desk.store.database, universe("A", "BB", "CCC", "D"), TOY, clock=desk.clock)
    assert joined.pending("corporate_actions", *JANUARY, "1").len() == 21  # its sessions
    assert joined.planner.scope("corporate_actions", *JANUARY).symbols is None
    # Who joined is asked along, whoever else is: afterwards the day was collected for everybody.
    plan = joined.plan(
        "corporate_actions", *JANUARY, run_id="late", code_version="1", symbols=["A"]
    )
    assert plan.symbols == ("A", "D")
    joined.write(plan, nothing("A", "D", table=actions))
    plan.intent.close()
    assert joined.pending("corporate_actions", *JANUARY, "1").is_empty()


def test_a_ledger_from_before_groups_were_noted_is_not_collected_again(desk: Desk) -> None:
    desk.write("news", nothing("A", "BB", "CCC", table=TOY["news"]))
    with desk.store.database.connection() as connection:
        connection.execute("DELETE FROM collected_for")
    assert desk.store.pending("news", *JANUARY, "1").is_empty()


# -- only what is missing -------------------------------------------------------------------------


def missing(desk: Desk, asset: str, days: tuple[date, date] = JANUARY, **options: object):
    """The scope of a run that asks for nothing that is there."""
    return desk.store.planner.scope(asset, *days, only_missing=True, **options)


def test_only_what_is_missing_is_asked_for(desk: Desk) -> None:
    whole = missing(desk, "ohlcv_1d", WEEK)
    assert (whole.symbols, whole.days[0], whole.days[-1]) == (
        None, date(2020, 1, 8), date(2020, 1, 17),
    )  # fmt: skip
    desk.write("ohlcv_1d", fetched(bars(["A", "BB", "CCC"], WEEK), "A", "BB", "CCC"), WEEK)
    nothing_left = missing(desk, "ohlcv_1d", WEEK)
    assert nothing_left.days.is_empty()
    assert nothing_left.symbols == ()
    before_and_after = missing(desk, "ohlcv_1d")
    assert (before_and_after.days[0], before_and_after.days[-1]) == (
        JANUARY[0], date(2020, 1, 31),
    )  # fmt: skip
    joined = Desk(
        Store(desk.store.database, universe("A", "BB", "CCC", "D"), TOY, clock=desk.clock),
        desk.clock,
    )
    for asset in ("ohlcv_1d", "corporate_actions"):
        if asset == "corporate_actions":
            desk.write(asset, nothing("A", "BB", "CCC", table=TOY[asset]), WEEK)
        alone = missing(joined, asset, WEEK)
        assert alone.symbols == ("D",)
        with joined.planned(asset, WEEK, only_missing=True) as plan:
            assert plan.symbols == ("D",)
            answer = (
                fetched(bars(["D"], plan.window), "D")
                if asset == "ohlcv_1d"
                else nothing("D", table=TOY[asset])
            )
            joined.store.write(plan, answer)
        assert missing(joined, asset, WEEK).days.is_empty()


def test_what_failed_is_asked_for_again_and_what_is_not_there_is_not(desk: Desk) -> None:
    """A provider that did not answer may do so now; a bar it does not have it will not have."""
    frame = bars(["A", "BB"]).filter(pl.col("time") != datetime(2020, 1, 9, tzinfo=UTC))
    desk.write("ohlcv_1d", fetched(frame, "A", "BB", "CCC", CCC="refused"))
    again = missing(desk, "ohlcv_1d")
    assert again.symbols == ("CCC",)
    desk.write("ohlcv_1d", fetched(bars(["CCC"]), "CCC"), symbols=["CCC"], only_missing=True)
    assert missing(desk, "ohlcv_1d").days.is_empty()
    assert {status for *_, status in desk.exceptions("ohlcv_1d")} == {"no_answer"}
    # Failures of others do not reach back beyond what is asked for.
    news = TOY["news"]
    desk.write("news", nothing("A", "BB", "CCC", table=news, BB="refused"))
    assert missing(desk, "news", WEEK).symbols == ("BB",)
    assert missing(desk, "news", WEEK).days.to_list() == days_of(WEEK)


def test_events_of_a_day_that_was_not_over_are_asked_for_again(desk: Desk) -> None:
    news = TOY["news"]
    desk.write("news", nothing("A", "BB", "CCC", table=news))
    assert missing(desk, "news").days.is_empty()
    with desk.store.database.connection() as connection:
        connection.execute(
            "UPDATE partition_ledger SET updated_at = '2020-01-15 15:00Z' WHERE day = '2020-01-15'"
        )
    for symbols in (None, ["A"]):
        scope = missing(desk, "news", symbols=symbols)
        assert scope.days.to_list() == [date(2020, 1, 15)]
        assert scope.symbols is None, "everybody's"
    desk.write("news", nothing("A", "BB", "CCC", table=news), only_missing=True)
    assert missing(desk, "news").days.is_empty()


def test_a_provider_that_was_not_reached_is_asked_alone(desk: Desk) -> None:
    """Each provider's answer is a transaction of its own: a killed run may have written one."""
    both = universe("A", "BB", sources={"BB": "other"})
    split = Desk(Store(desk.store.database, both, TOY, clock=desk.clock), desk.clock)
    split.write("news", nothing("A", table=TOY["news"]))
    assert missing(split, "news").symbols == ("BB",)
    split.write("news", {"other": Fetched(TOY["news"].empty(), {}, ("BB",))}, only_missing=True)
    assert missing(split, "news").days.is_empty()


def test_macro_series_do_not_depend_on_who_is_in_the_universe(desk: Desk) -> None:
    desk.write("macro_indicators", nothing("VIXCLS", table=TOY["macro_indicators"]))
    joined = Store(desk.store.database, universe("A", "D"), TOY, clock=desk.clock)
    assert joined.pending("macro_indicators", *JANUARY, "1").is_empty()


# -- holes ----------------------------------------------------------------------------------------


def test_nothing_is_computed_on_a_hole(desk: Desk) -> None:
    desk.write("ohlcv_1d", fetched(bars(["A", "BB", "CCC"]), "A", "BB", "CCC"))
    with desk.store.database.connection() as connection:
        connection.execute("DELETE FROM partition_ledger WHERE asset = 'ohlcv_1d' AND day = %s", [
            date(2020, 1, 14)
        ])  # fmt: skip
        connection.execute("DELETE FROM ohlcv_1d WHERE time = '2020-01-14Z'")
    with pytest.raises(MissingPartitionError) as caught, desk.planned("means", WEEK):
        pass
    assert str(caught.value) == (
        "means from 2020-01-10 on reads ohlcv_1d of 2020-01-14, which nobody has written; "
        "materialise ohlcv_1d from 2020-01-14 to 2020-01-14 first"
    )
    assert "\n" not in str(caught.value)
    assert desk.one("SELECT count(*) FROM write_intents WHERE asset = 'means'") == 0


def test_it_waits_for_a_day_that_is_being_written(desk: Desk) -> None:
    answer = fetched(bars(["A", "BB", "CCC"]), "A", "BB", "CCC")
    asked = threading.Event()
    in_progress = desk.store.ledger.in_progress

    def look(asset: str, days: pl.Series) -> pl.Series:
        found = in_progress(asset, days)
        if asset == "ohlcv_1d" and found.len():
            asked.set()
        return found

    desk.store.ledger.in_progress = look  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool, desk.planned("ohlcv_1d") as plan:
        waiting = pool.submit(run_means, desk)
        assert asked.wait(20)
        assert not waiting.done()
        desk.store.write(plan, answer)
        assert waiting.result(30).written == 63


def test_it_gives_up_with_the_name_of_the_day(desk: Desk) -> None:
    desk.store.wait = timedelta(milliseconds=300)
    started = time.monotonic()
    with desk.planned("ohlcv_1d"):
        with pytest.raises(MissingPartitionError, match="ohlcv_1d of 2020-01-02 and 20 more days"):
            run_means(desk)
        with pytest.raises(MissingPartitionError, match="another run has not finished"):
            run_means(desk)
    assert time.monotonic() - started < 15


def test_an_unfinished_session_is_no_hole(filled: Desk) -> None:
    filled.clock.now = datetime(2020, 1, 31, 18, tzinfo=UTC)
    today = (date(2020, 1, 31), date(2020, 2, 1))
    with filled.planned("means", today, code_version="2") as plan:
        frame = filled.store.load(plan, plan.table.inputs[0])
    assert filled.store.pending("means", *today, "1").is_empty()
    assert frame.filter(pl.col("available_at").is_null()).is_empty()


# -- gaps -----------------------------------------------------------------------------------------


def test_a_session_without_a_row_is_a_gap(desk: Desk) -> None:
    frame = bars(["A", "BB", "CCC"])
    hole = (pl.col("symbol") == "BB") & (pl.col("time").dt.date() == date(2020, 1, 15))
    desk.write("ohlcv_1d", fetched(frame.filter(~hole), "A", "BB", "CCC"))
    with desk.planned("means", WEEK) as plan:
        loaded = desk.store.load(plan, plan.table.inputs[0])
        assert loaded.columns == ["symbol", "time", "available_at", "availability_basis", "close"]
        gaps = loaded.filter(pl.col("available_at").is_null())
        assert gaps.rows() == [("BB", datetime(2020, 1, 15, tzinfo=UTC), None, None, None)]
        desk.store.write(plan, means(loaded))
    held = desk.store.read("means", symbols=["BB"])
    assert date(2020, 1, 15) not in held["time"].dt.date().to_list()
    # Reading a computed table, too.
    with desk.planned("doubles", WEEK) as plan:
        loaded = doubles(desk.store.load(plan, plan.table.inputs[0]))
    assert loaded.filter(symbol="BB")[DERIVED_NAME].null_count() == 2


DERIVED_NAME = TOY["doubles"].names[4]


def events(desk: Desk, days: tuple[date, date], asset: str = "news", **failed: str) -> None:
    answer = {"made": Fetched(desk.store.tables[asset].empty(), failed, ("A", "BB", "CCC"))}
    with desk.planned(asset, days) as plan:
        desk.store.write(plan, answer)


@pytest.fixture
def reading(desk: Desk) -> Desk:
    """A desk with the real chain from documents over scores to a reader of scores and actions."""
    reader = derived(
        "reader",
        Input("sentiment_scores", ("document_id", "channel"), lookback_days=2, on_missing="gap"),
        Input("corporate_actions", ("kind", "value"), lookback_bars=2, on_missing="gap"),
        Input("macro_indicators", ("series_id", "value"), lookback_days=2, on_missing="gap"),
    )
    desk.store.tables = {
        **TOY,
        "sentiment_scores": TABLES["sentiment_scores"],
        "reader": reader,
    }
    return desk


def load(desk: Desk, asset: str, days: tuple[date, date] = WEEK) -> pl.DataFrame:
    with desk.planned("reader", days) as plan:
        needed = next(n for n in plan.table.inputs if n.asset == asset)
        return desk.store.load(plan, needed)


def score(desk: Desk, days: tuple[date, date] = WEEK) -> None:
    with desk.planned("sentiment_scores", days) as plan:
        desk.store.write(plan, plan.table.empty())


def day(number: int) -> datetime:
    return datetime(2020, 1, number, tzinfo=UTC)


def test_a_day_that_was_not_collected_is_a_gap(reading: Desk) -> None:
    macro = load(reading, "macro_indicators")
    assert macro["series_id"].null_count() == macro.height == 7
    events(reading, (date(2020, 1, 11), date(2020, 1, 15)), "macro_indicators")
    macro = load(reading, "macro_indicators")
    assert macro.select("time", "available_at").sort("time").rows() == [
        (day(n), day(n)) for n in (15, 16, 17)
    ]
    actions = load(reading, "corporate_actions")
    assert sorted(actions["time"].dt.day()) == [9, 10, 13, 14, 15, 16, 17]
    assert actions["symbol"].null_count() == 7


def test_today_is_a_gap_until_it_is_collected(reading: Desk) -> None:
    reading.clock.now = datetime(2020, 1, 17, 23, tzinfo=UTC)
    events(reading, (date(2020, 1, 11), date(2020, 1, 17)), "macro_indicators")
    assert load(reading, "macro_indicators")["time"].to_list() == [day(17)]


def test_who_could_not_be_collected_is_a_gap_of_his_own(reading: Desk) -> None:
    events(reading, (date(2020, 1, 9), WEEK[1]), "corporate_actions")
    events(reading, (date(2020, 1, 15), date(2020, 1, 16)), "corporate_actions", BB="refused")
    actions = load(reading, "corporate_actions")
    assert actions.select("symbol", "time", "available_at", "kind").rows() == [
        ("BB", day(15), day(15), None)
    ]
    events(reading, (date(2020, 1, 11), WEEK[1]), "macro_indicators", VIXCLS="refused")
    macro = load(reading, "macro_indicators")
    assert set(macro["series_id"]) == {"VIXCLS"}
    assert macro.height == 7


def test_scores_inherit_what_their_documents_lack(reading: Desk) -> None:
    span = (date(2020, 1, 11), WEEK[1])
    events(reading, span, "news")
    events(reading, (span[0], date(2020, 1, 17)), "reddit")
    events(reading, (date(2020, 1, 14), date(2020, 1, 15)), "news", A="no route")
    score(reading, span)
    found = load(reading, "sentiment_scores").select("symbol", "available_at", "channel")
    assert sorted(found.rows(), key=str) == sorted(
        [("A", day(14), "news"), (None, day(17), "reddit")], key=str
    )
    with reading.planned("reader", WEEK) as plan:
        reading.store.write(plan, plan.table.empty())
    assert reading.store.pending("reader", *WEEK, "1").is_empty()
    # Mended: no row more or less anywhere, and yet what was missing is known.
    events(reading, (date(2020, 1, 14), date(2020, 1, 15)), "news")
    events(reading, (date(2020, 1, 17), WEEK[1]), "reddit")
    score(reading, span)
    assert load(reading, "sentiment_scores").is_empty()
    assert reading.store.pending("reader", *WEEK, "1").to_list() == [
        date(2020, 1, d) for d in (14, 15, 16, 17)
    ]
