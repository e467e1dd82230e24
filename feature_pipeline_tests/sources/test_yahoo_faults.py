"""Yahoo when it goes wrong: a fault costs what it hit, says so in a line, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from feature_pipeline.errors import SourceError
from feature_pipeline.sources.yahoo import GIVE_UP_AFTER
from feature_pipeline_tests.providers.server import (
    Answer,
    bad_gzip,
    broken,
    dripping,
    html,
    hung_up,
    silent,
    too_many,
    truncated,
)
from feature_pipeline_tests.providers.yahoo import Ticker, for_ticker, refused
from feature_pipeline_tests.sources.yahoo_support import (
    JANUARY,
    NOW,
    QUICK,
    World,
    as_frame,
    sessions,
    traded,
    values,
)

CHART = "/v8/finance/chart/"

FAULTS = {
    "429": (too_many("0"), "answered 429"),
    "500": (broken(), "answered 500"),
    "html": (html(), "cannot be unpacked"),
    "truncated": (truncated(), "cannot be unpacked"),
    "hung up": (hung_up(), "broke off"),
    "bad gzip": (bad_gzip(), "cannot be unpacked"),
    "silent": (silent(), "did not answer in time"),
    "dripping": (dripping(), "did not answer in time"),
}


def three(server: Any, **more: Any) -> World:
    return World(
        server,
        {name: Ticker(traded(seed=n)) for n, name in enumerate(("AAA", "BBB", "CCC"))},
        **more,
    )


# -- on the way -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_costs_nothing(provider_server, fault):
    world = three(provider_server)
    provider_server.fail(FAULTS[fault][0], below=CHART)
    fetched = world.bars()
    assert fetched.failed == {}
    for name, ticker in world.yahoo.tickers.items():
        assert values(fetched, name).equals(as_frame(ticker.bars))
    assert len(world.asked()) == 4


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_costs_its_ticker(provider_server, fault):
    answer, said = FAULTS[fault]
    world = three(provider_server)
    provider_server.routes.update(for_ticker("BBB", lambda _: answer))
    fetched = world.bars()
    assert list(fetched.failed) == ["BBB"]
    line = fetched.failed["BBB"]
    assert said in line
    assert line.startswith("yfinance: ")
    assert "the next run asks again" in line
    assert not {"\n", "?", "&"} & set(line)
    assert world.asked().count("BBB") == QUICK.attempts
    assert sorted(fetched.frame["symbol"].unique()) == ["AAA", "CCC"]
    assert fetched.answered == {"AAA", "CCC"}


def test_it_waits_as_long_as_it_is_told_to(provider_server):
    world = three(provider_server)
    world.bars()
    provider_server.fail(too_many("1"), below=CHART)
    before = time.monotonic()
    assert world.bars().failed == {}
    assert time.monotonic() - before >= 1.0


def test_told_to_wait_past_its_deadline_it_leaves_yahoo_alone(provider_server):
    world = three(provider_server)
    provider_server.routes.update(for_ticker("BBB", lambda _: too_many("3600")))
    before = time.monotonic()
    fetched = world.bars()
    assert time.monotonic() - before < 3
    assert "wants to be left alone for 3600 s" in fetched.failed["BBB"]
    assert world.asked().count("BBB") == 1


def test_an_answer_without_end_is_not_read(provider_server):
    world = three(provider_server, limits=replace(QUICK, max_bytes=100_000))
    provider_server.routes.update(for_ticker("BBB", lambda _: Answer(200, b"[" * 1_000_000)))
    fetched = world.bars()
    assert "more than 100000 bytes" in fetched.failed["BBB"]
    assert fetched.answered == {"AAA", "CCC"}


def test_yahoo_that_is_away_is_an_error_and_is_not_asked_500_times(provider_server):
    world = World(provider_server, {f"T{n:03}": Ticker(traded()) for n in range(60)})
    provider_server.routes[CHART] = lambda _: broken()
    with pytest.raises(SourceError, match="answered 500, 3 times"):
        world.bars()
    assert len(set(world.asked())) <= GIVE_UP_AFTER + 4


def test_yahoo_that_goes_away_costs_those_that_it_has_not_answered(provider_server):
    names = [f"T{n:03}" for n in range(60)]
    world = World(provider_server, {name: Ticker(traded()) for name in names})
    for name in names[20:]:
        provider_server.routes.update(for_ticker(name, lambda _: broken()))
    fetched = world.bars()
    assert fetched.answered >= set(names[:20])
    assert sorted(fetched.failed) == names[20:]
    assert "not asked, for 8 others got no answer" in fetched.failed[names[-1]]


# -- cookie and crumb -----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["429", "500", "html", "silent", "hung up"])
def test_without_cookie_and_crumb_bars_come_all_the_same(provider_server, fault):
    world = three(provider_server)
    for path in ("/", "/v1/test/getcrumb", "/consent"):
        provider_server.routes[path] = lambda _: FAULTS[fault][0]
    before = time.monotonic()
    fetched = world.bars()
    assert fetched.failed == {}
    assert values(fetched, "CCC").equals(as_frame(world.yahoo.tickers["CCC"].bars))
    world.bars()
    assert time.monotonic() - before < 5  # not a wait for every ticker
    aside = [p for p in provider_server.paths() if not p.startswith(CHART)]
    assert len(aside) <= 4


def test_a_crumb_that_has_gone_stale_is_renewed(provider_server):
    world = three(provider_server)
    world.bars()
    provider_server.fail(refused(401, "Unauthorized", "Invalid Crumb"), below=CHART)
    fetched = world.bars()
    assert fetched.failed == {}
    assert provider_server.paths().count("/v1/test/getcrumb") == 2


# -- what it says about one ticker ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refused(404, "Not Found", "No data found, symbol may be delisted"),
         "status 404 (No data found, symbol may be delisted); correct its ticker"),
        (refused(422, "Unprocessable Entity", "bad\r\nrange \x00" + "x" * 500), "(bad range xxx"),
        (refused(403, "Forbidden", ""), "status 403 (no reason given)"),
        (Answer(404, b"<html>"), "status 404 and no chart"),
        (Answer(200, "[1, 2]"), "status 200 and no chart"),
        (Answer(200, {"chart": {"result": [7], "error": None}}), "holds no result"),
        (Answer(200, {"chart": {"result": [{}], "error": None}}), "another shape (KeyError)"),
        (Answer(200, {"chart": {"result": [{"meta": {"exchangeTimezoneName": "Mars/Olympus"},
         "indicators": {"quote": [{}]}}], "error": None}}), "another shape"),
        (Answer(200, {"chart": {"result": [{"meta": {"exchangeTimezoneName": "UTC"},
         "timestamp": [1, 2], "indicators": {"quote": [{"open": [1.0]}]}}], "error": None}}),
         "another shape (ShapeError)"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_costs_its_ticker(provider_server, answer, said):
    world = three(provider_server)
    provider_server.routes.update(for_ticker("BBB", lambda _: answer))
    fetched = world.bars()
    assert said in fetched.failed["BBB"]
    assert len(fetched.failed["BBB"]) < 300
    assert fetched.failed["BBB"].isprintable()
    assert fetched.answered == {"AAA", "CCC"}
    assert world.asked().count("BBB") == 1  # another attempt would hear the same
    assert not {p for p in provider_server.paths() if "consent" in p}  # cookies are left alone


@pytest.mark.parametrize("split", [(4.0, 0.0), (0.0, 1.0), (-2.0, 1.0), (float("nan"), 1.0)])
def test_a_split_that_is_none_costs_its_ticker(provider_server, split):
    ticker = Ticker(traded(), {date(2020, 3, 3): split}, adjusted=False)
    world = World(provider_server, {"AAA": Ticker(traded()), "BBB": ticker})
    for fetched in (world.bars(), world.actions()):
        assert "on 2020-03-03, which is none" in fetched.failed["BBB"]
        assert fetched.answered == {"AAA"}


# -- rows that are wrong --------------------------------------------------------------------------


def on(bars: dict, day: date, **changed: Any) -> dict:
    names = ("open", "high", "low", "close", "volume")
    bar = dict(zip(names, bars[day], strict=True)) | changed
    return {**bars, day: tuple(bar.values())}


DAY = date(2020, 1, 15)
INF, NAN = float("inf"), float("nan")

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"close": NAN}, "a price is missing or not finite"),
    "null": ({"high": None}, "a price is missing or not finite"),
    "inf": ({"high": INF}, "a price is missing or not finite"),
    "negative": ({"low": -1.0}, "a price is not positive"),
    "zero": ({"low": 0.0}, "a price is not positive"),
    "high below low": ({"high": 1.0, "open": 1.0, "close": 1.0}, "high is below low"),
    "close outside": ({"close": 9999.0}, "open or close lies outside [low, high]"),
    "no volume": ({"volume": None}, "volume is missing or not finite"),
    "infinite volume": ({"volume": INF}, "volume is missing or not finite"),
    "negative volume": ({"volume": -5.0}, "volume is negative"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_row_is_quarantined_and_the_rest_is_written(
    provider_server, migrated_database_url, fault
):
    changed, reason = WRONG[fault]
    good = traded()
    world = World(provider_server, {"AAA": Ticker(on(good, DAY, **changed)), "BBB": Ticker(good)})
    store = world.store(migrated_database_url)
    report = world.write(store)
    assert (report.quarantined, report.written) == (1, 2 * 21 - 1)
    assert report.reasons.rows() == [("AAA", DAY, reason)]
    assert report.exceptions.select("symbol", "day", "status").rows() == [
        ("AAA", DAY, "quarantined")
    ]
    held = store.read("ohlcv_1d", symbols=["AAA"])["time"].dt.date().to_list()
    assert held == [d for d in sessions(*JANUARY) if d != DAY]


def _raw(moment: datetime | float, *more: float) -> list[float]:
    seconds = moment.timestamp() if isinstance(moment, datetime) else moment
    return [seconds, *(more or (10.0, 12.0, 9.0, 11.0, 500.0))]


LAST = _raw(datetime(2020, 1, 31, 14, 30, tzinfo=UTC))
ODD: dict[str, tuple[list[float], str | None]] = {
    "of the future": (_raw(NOW + timedelta(days=400)), "it lies in the future"),
    "of no moment": (_raw(1e15), "time is missing"),
    "of another zone": (
        _raw(datetime(2020, 1, 15, 4, 15, tzinfo=UTC)),  # 23:15 in New York, long after the close
        "a daily bar's time is not 00:00 UTC",
    ),
}


@pytest.mark.parametrize("fault", ODD)
def test_a_row_of_a_wrong_moment_is_quarantined(provider_server, migrated_database_url, fault):
    row, reason = ODD[fault]
    # Not the last of its answer: that may be the last trade.
    world = World(provider_server, {"AAA": Ticker(traded(end=date(2020, 1, 31)), more=[row, LAST])})
    store = world.store(migrated_database_url)
    report = world.write(store)
    assert report.reasons["reason"].to_list() == [reason]
    assert (report.written, report.quarantined) == (21, 1)
    assert store.read("ohlcv_1d")["time"].dt.date().to_list() == sessions(*JANUARY)


def test_an_answer_in_the_zone_of_another_exchange_is_quarantined(
    provider_server, migrated_database_url
):
    bars = traded(end=date(2020, 2, 1))
    new_york = {day: Ticker().moment(day) for day in bars}
    ticker = Ticker(bars, zone="Pacific/Auckland", moments=new_york)  # the day after, there
    world = World(provider_server, {"AAA": ticker})
    report = world.write(world.store(migrated_database_url))
    assert report.reasons["reason"].unique().to_list() == ["a daily bar's time is not 00:00 UTC"]
    assert (report.quarantined, report.written) == (21, 0)
    assert report.exceptions.height == 21


def test_an_answer_that_is_stamped_with_dates_alone_keeps_its_days(provider_server):
    bars = traded()
    at = {day: datetime(day.year, day.month, day.day, tzinfo=UTC) for day in bars}
    fetched = World(provider_server, {"AAA": Ticker(bars, moments=at)}).bars()
    assert values(fetched).equals(as_frame(bars))
    expected = World(provider_server, {"AAA": Ticker(bars)}).bars().frame
    assert fetched.frame.equals(expected)  # the close of its own session, too


def test_rows_that_repeat_count_once_and_those_that_contradict_not_at_all(
    provider_server, migrated_database_url
):
    bars = traded()
    world = World(provider_server, {"AAA": Ticker(bars)})
    ticker = world.yahoo.tickers["AAA"]
    same, other = date(2020, 1, 8), date(2020, 1, 9)
    world.yahoo.tickers["AAA"] = replace(
        ticker,
        more=[
            _raw(ticker.moment(same), *bars[same]),
            _raw(ticker.moment(other)),
            _raw(datetime(2020, 5, 29, 13, 30, tzinfo=UTC)),
        ],
    )
    store = world.store(migrated_database_url)
    report = world.write(store)
    assert (report.duplicate, report.quarantined, report.written) == (1, 2, 20)
    assert report.reasons["reason"].unique().to_list() == [
        "rows with the same key contradict each other"
    ]
    held = store.read("ohlcv_1d")["time"].dt.date().to_list()
    assert held == [d for d in sessions(*JANUARY) if d != other]


@pytest.mark.parametrize("volume", [None, 0.0])
def test_a_row_without_any_price_is_no_row(provider_server, migrated_database_url, volume):
    padding = {"open": None, "high": NAN, "low": None, "close": None, "volume": volume}
    world = World(provider_server, {"AAA": Ticker(on(traded(), DAY, **padding))})
    report = world.write(world.store(migrated_database_url))
    assert (report.quarantined, report.written) == (0, 20)
    assert report.exceptions.select("day", "status").rows() == [(DAY, "no_answer")]


def test_rows_of_no_session(provider_server, migrated_database_url):
    """A holiday's stub without volume is nothing; what traded on it contradicts the calendar."""
    holiday, saturday = date(2020, 1, 20), date(2020, 1, 18)
    bars = {
        **traded(),
        holiday: (10.0, 10.0, 10.0, 10.0, 0.0),
        saturday: (10.0, 12.0, 9.0, 11.0, 700.0),
    }
    world = World(provider_server, {"AAA": Ticker(bars)})
    report = world.write(world.store(migrated_database_url))
    assert report.reasons.rows() == [("AAA", saturday, "a daily bar's time is not 00:00 UTC")]
    assert (report.written, report.quarantined, report.exceptions.height) == (21, 1, 0)


def test_a_dividend_in_other_money_is_quarantined(provider_server, migrated_database_url):
    world = World(provider_server, {"AAA": Ticker(traded(), dividends={DAY: 0.5})})
    chart = world.yahoo.chart

    def in_dong(request: Any) -> Answer:
        answer = chart(request)
        for event in answer.body["chart"]["result"][0]["events"]["dividends"].values():
            event["currency"] = "VND"
        return answer

    provider_server.routes.update(for_ticker("AAA", in_dong))
    report = world.write(world.store(migrated_database_url), asset="corporate_actions")
    assert report.reasons["reason"].to_list() == ["value is missing or not positive"]


# -- what is not there ----------------------------------------------------------------------------


def nothing(_: Any) -> Answer:
    return refused(400, "Bad Request", "Data doesn't exist for startDate = 1, endDate = 2")


def no_result(_: Any) -> Answer:
    return Answer(200, {"chart": {"result": None, "error": None}})


def no_rows(_: Any) -> Answer:
    meta = {"exchangeTimezoneName": "America/New_York", "currency": "USD"}
    result = {"meta": meta, "indicators": {"quote": [{}], "adjclose": [{}]}}
    return Answer(200, {"chart": {"result": [result], "error": None}})


@pytest.mark.parametrize("empty", [nothing, no_result, no_rows])
def test_an_empty_answer_on_a_session_deletes_nothing(
    provider_server, migrated_database_url, empty: Callable[[Any], Answer]
):
    world = three(provider_server)
    store = world.store(migrated_database_url)
    days = (date(2020, 1, 15), date(2020, 1, 17))
    world.write(store, days)
    before = store.read("ohlcv_1d")
    provider_server.routes.update(for_ticker("BBB", empty))
    report = world.write(store, days)
    assert report.exceptions.select("symbol", "day", "status", "reason").rows() == [
        ("BBB", day, "no_answer", "yfinance has no bar for this session")
        for day in (date(2020, 1, 15), date(2020, 1, 16))
    ]
    assert (report.written, report.unchanged) == (0, 4)
    assert store.read("ohlcv_1d").equals(before)


@pytest.mark.parametrize("empty", [nothing, no_result, no_rows])
def test_an_empty_answer_on_a_holiday_is_no_rows(
    provider_server, migrated_database_url, empty: Callable[[Any], Answer]
):
    world = three(provider_server)
    provider_server.routes[CHART] = empty
    store = world.store(migrated_database_url)
    report = world.write(store, (date(2020, 1, 18), date(2020, 1, 21)))  # a weekend and King's day
    assert report.exceptions.is_empty()
    assert report.days.select("day", "rows").rows() == [
        (date(2020, 1, day), 0) for day in (18, 19, 20)
    ]


def test_a_failed_ticker_keeps_its_rows(provider_server, migrated_database_url):
    world = three(provider_server)
    store = world.store(migrated_database_url)
    world.write(store)
    before = store.read("ohlcv_1d")
    provider_server.routes.update(for_ticker("BBB", lambda _: broken()))
    report = world.write(store)
    assert report.exceptions["status"].unique().to_list() == ["failed"]
    assert report.exceptions["symbol"].unique().to_list() == ["BBB"]
    assert store.read("ohlcv_1d").equals(before)


def test_a_ticker_that_is_delisted_in_between(provider_server, migrated_database_url):
    end = date(2020, 1, 20)
    gone = Ticker(traded(end=end))
    world = World(
        provider_server,
        {"AAA": gone, "BBB": gone},
        {
            "AAA": {"membership": [{"from": JANUARY[0], "to": end}]},  # universe.yaml knows
            "BBB": {},
        },
    )
    store = world.store(migrated_database_url)
    report = world.write(store)
    assert store.read("ohlcv_1d", symbols=["AAA"]).height == 12
    assert store.read("ohlcv_1d", symbols=["BBB"]).height == 12
    assert report.exceptions.select("symbol", "day", "status").rows() == [
        ("BBB", day, "no_answer") for day in sessions(end, JANUARY[1])
    ]
