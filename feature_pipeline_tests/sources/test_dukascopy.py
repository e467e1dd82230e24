"""FX bars: `dukascopy_python` itself against a local server that speaks the chart feed."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from feature_pipeline.errors import SourceError
from feature_pipeline.schemas import ohlcv
from feature_pipeline.sources import BarSource, Metered
from feature_pipeline.sources.dukascopy import DukascopySource
from feature_pipeline.sources.http import USER_AGENT, Limits
from feature_pipeline.storage.validate import Checked, check
from feature_pipeline.universe import Instrument
from feature_pipeline_tests.providers.dukascopy import (
    PATH,
    Dukascopy,
    fx_days,
    fx_minutes,
    fx_price,
    milliseconds,
)
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

START, END = date(2024, 3, 4), date(2024, 3, 18)  # two weeks from a Monday on; DST starts within
NOW = datetime(2024, 6, 3, 12, tzinfo=UTC)
LIMITS = Limits(requests=1000, seconds=1.0, attempts=2, wait_s=0.4, deadline_s=3.0)


def instrument(name: str = "EURUSD", **more) -> Instrument:
    return Instrument.model_validate(
        {
            "id": name,
            "asset_class": "fx",
            "calendar": "24/5",
            "sector": "fx",
            "source": {"bars": "dukascopy"},
            "symbols": [{"symbol": name, "from": date(2000, 1, 3)}],
            "membership": [{"from": date(2000, 1, 3)}],
            **more,
        }
    )


EURUSD = instrument()


@pytest.fixture
def feed() -> Dukascopy:
    rows = fx_days(date(2024, 1, 1), date(2024, 6, 1))
    return Dukascopy({(name, "1DAY"): rows for name in ("EUR/USD", "GBP/USD", "USD/JPY")})


@pytest.fixture
def source(feed, provider_server) -> DukascopySource:
    return DukascopySource(LIMITS, feed.serve(provider_server), lambda: NOW)


def sorted_out(rows: pl.DataFrame, now: datetime = NOW, timeframe: str = "1d") -> Checked:
    """As they are written."""
    return check(ohlcv(timeframe), rows, now=now, window=(START, END), symbols=["EURUSD", "GBPUSD"])


def test_it_is_a_source_of_bars_that_says_what_it_costs(source):
    assert isinstance(source, BarSource)
    assert isinstance(source, Metered)


def test_daily_bars_are_those_of_the_sessions_and_nothing_else(source, provider_server):
    found = source.bars([EURUSD], START, END)
    assert found.failed == {}
    assert found.asked == ("EURUSD",)
    days = found.frame["time"].dt.date().to_list()
    assert days == [START + timedelta(days=n) for n in range(14) if n % 7 < 5]
    monday = found.frame.row(5, named=True)
    assert monday["open"] == fx_price(date(2024, 3, 10)), "what Sunday traded is not in Monday"
    assert monday["close"] == fx_price(date(2024, 3, 11))
    assert monday["available_at"] == datetime(2024, 3, 12, 0, 5, tzinfo=UTC)
    assert set(found.frame["availability_basis"]) == {"assumed"}
    assert found.frame["spread"].to_list() == pytest.approx([0.0002] * 10)
    checked = sorted_out(found.frame)
    assert checked.good.height == 10
    assert source.actions([EURUSD], START, END).frame.is_empty()
    assert source.actions([EURUSD], START, END).asked == ("EURUSD",)

    # Asked politely, and as ourselves; exactly as often as it said.
    assert [r.query["offer_side"] for r in provider_server.asked] == ["B", "A"]
    assert len(provider_server.asked) == source.calls("bars", [EURUSD], START, END)
    request = provider_server.asked[0]
    assert request.headers["user-agent"] == USER_AGENT
    assert "dukascopy.com" in request.headers["referer"]
    assert request.headers["host"].startswith("127.0.0.1")
    assert int(request.query["limit"]) == 16


def test_ten_years_are_one_answer_a_side_and_more_come_in_pages(source, feed, provider_server):
    rows = feed.rows["EUR/USD", "1DAY"] = fx_days(date(2014, 1, 1), date(2024, 6, 1))
    start, end = date(2014, 1, 1), date(2024, 6, 1)
    whole = source.bars([EURUSD], start, end).frame
    weekdays = [r for r in rows if datetime.fromtimestamp(r[0] / 1000, UTC).weekday() < 5]
    assert whole["close"].to_list() == [r[4] for r in weekdays]
    assert len(provider_server.asked) == 4  # the second of each says that this was all
    feed.most = 1000
    assert source.bars([EURUSD], start, end).failed == {
        "EURUSD": "dukascopy: it goes on answering EUR/USD with rows that were there already; "
        "the next run asks again"
    }


def test_an_unfinished_bar_is_known_later(feed, provider_server):
    now = datetime(2024, 3, 6, 13, tzinfo=UTC)
    feed.rows["EUR/USD", "1DAY"] = fx_days(date(2024, 1, 1), date(2024, 3, 7))
    source = DukascopySource(LIMITS, feed.serve(provider_server), lambda: now)
    found = source.bars([EURUSD], START, date(2024, 3, 7))
    assert len(provider_server.asked) == source.calls("bars", [EURUSD], START, date(2024, 3, 7))
    checked = sorted_out(found.frame, now)
    assert checked.unfinished == 1
    assert checked.good["time"].dt.date().to_list() == [date(2024, 3, 4), date(2024, 3, 5)]
    assert checked.good["availability_basis"].to_list() == ["assumed", "observed"]


def test_intraday_bars_lie_in_sessions_and_not_in_the_filled_weekend(source, feed):
    friday, tuesday = datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 3, 5, tzinfo=UTC)
    feed.rows["EUR/USD", "1MIN"] = fx_minutes(friday, tuesday)
    found = source.bars([EURUSD], friday.date(), tuesday.date(), "1m")
    assert found.failed == {}
    frame = found.frame
    assert frame.columns == list(ohlcv("1m").names)
    assert frame["spread"].null_count() == frame.height
    hours = frame.group_by(pl.col("time").dt.date().alias("day")).len().sort("day").rows()
    assert hours == [(date(2024, 3, 1), 22 * 60), (date(2024, 3, 4), 24 * 60)]
    last = frame.row(22 * 60 - 1, named=True)
    assert last["time"] == datetime(2024, 3, 1, 21, 59, tzinfo=UTC)
    assert last["available_at"] == datetime(2024, 3, 1, 22, 5, tzinfo=UTC)
    window = (friday.date(), tuesday.date())
    stored = frame.with_columns(session=pl.col("time").dt.date())  # the store's to say
    checked = check(ohlcv("1m"), stored, now=NOW, window=window, symbols=["EURUSD"])
    assert checked.good.height == frame.height
    feed.rows["EUR/USD", "1HOUR"] = fx_minutes(friday, tuesday, timedelta(hours=1))
    hourly = source.bars([EURUSD], friday.date(), tuesday.date(), "1h").frame
    assert hourly.height == 22 + 24
    assert hourly["spread"].null_count() == 0
    with pytest.raises(SourceError, match=r"no bars of '3m'; it has 1m, 5m, 1h, 1d"):
        source.bars([EURUSD], START, END, "3m")


def test_a_minute_without_a_trade_is_a_bar_without_volume(source, feed):
    at = datetime(2024, 3, 5, tzinfo=UTC)
    feed.rows["EUR/USD", "1MIN"] = [[milliseconds(at), *[1.1] * 4, 0.0]]
    frame = source.bars([EURUSD], at.date(), END, "1m").frame
    assert frame["volume"].to_list() == [0.0]


def test_flat_days_of_holidays_are_sessions_of_this_calendar(source, feed):
    feed.rows["EUR/USD", "1DAY"] = [[milliseconds(date(2024, 3, 5)), *[1.1] * 4, 0.0]]
    frame = source.bars([EURUSD], START, END).frame
    assert frame["volume"].to_list() == [0.0]
    assert sorted_out(frame).good.height == 1


# -- one symbol costs itself ----------------------------------------------------------------------


FAULTS: dict[str, tuple[Callable[[], Answer], str]] = {
    "500": (broken, "answered 500"),
    "429": (lambda: too_many("0"), "answered 429"),
    "404": (lambda: Answer(404, b"no"), "was answered 404"),
    "html": (html, "is no list of bars (JSONDecodeError)"),
    "truncated": (lambda: truncated("_callbacks____abcdefghi([[1, 2"), "no list of bars"),
    "hung up": (hung_up, "broke off"),
    "gzip": (bad_gzip, "the next run asks again"),
    "silent": (lambda: silent(1.0), "did not answer in time"),
    "dripping": (dripping, "did not answer in time"),
    "nothing": (lambda: Answer(200, b""), "no list of bars"),
    "null": (lambda: Answer(200, "null"), "no list of bars"),
    "an object": (lambda: Answer(200, {"error": "x"}), "no list of bars"),
    "texts": (lambda: Answer(200, [["2024", 1, 1, 1, 1, 1]]), "no list of bars"),
    "words": (lambda: Answer(200, [[milliseconds(START), "a", 1, 1, 1, 1]]), "no list of bars"),
    "beyond time": (lambda: Answer(200, [[-(10**18), 1, 1, 1, 1, 1]]), "no list of bars"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_the_symbol_it_meets(feed, provider_server, fault):
    answer, said = FAULTS[fault]
    once = replace(LIMITS, attempts=1)
    source = DukascopySource(once, feed.serve(provider_server), lambda: NOW)
    provider_server.fail(answer())
    found = source.bars([EURUSD, instrument("GBPUSD")], START, END)
    assert list(found.failed) == ["EURUSD"]
    line = found.failed["EURUSD"]
    assert said in line
    assert "\n" not in line
    assert "last_update" not in line
    assert set(found.frame["symbol"]) == {"GBPUSD"}
    assert found.frame.height == 10
    assert found.asked == ("EURUSD", "GBPUSD")


def test_who_wants_to_be_left_alone_is(source, provider_server):
    provider_server.fail(too_many("60"))
    found = source.bars([EURUSD, instrument("GBPUSD")], START, END)
    assert list(found.failed) == ["EURUSD", "GBPUSD"]
    assert "60 s" in found.failed["EURUSD"]
    assert len(provider_server.asked) == 1


def test_a_moment_of_trouble_costs_nothing(source, provider_server):
    provider_server.fail(too_many("0"))
    found = source.bars([EURUSD], START, END)
    assert found.failed == {}
    assert found.frame.height == 10
    assert len(provider_server.asked) == 3


def test_the_other_side_failing_fails_the_symbol(source, provider_server, feed):
    """Without it every spread would be null, and a restatement the day after."""
    feed.rows["GBP/USD", "1DAY"] = fx_days(START, END)

    def only_bids(request):
        return broken() if request.query["offer_side"] == "A" else feed.answer(request)

    provider_server.routes[PATH] = only_bids
    found = source.bars([EURUSD], START, END)
    assert found.frame.is_empty()
    assert "500" in found.failed["EURUSD"]


def test_a_provider_that_answers_nobody_is_not_asked_for_everybody(source, provider_server):
    del provider_server.routes[PATH]
    provider_server.fail(broken(), times=1000)
    names = ["EURUSD", "GBPUSD", "USDJPY", "USDCHF", "AUDUSD"]
    found = source.bars([instrument(n) for n in names], START, END)
    assert found.frame.is_empty()
    assert list(found.failed) == names
    assert found.failed["AUDUSD"].startswith("not asked for: dukascopy: 127.0.0.1")
    assert len(provider_server.asked) == 3 * LIMITS.attempts


@pytest.mark.parametrize(
    "ticker",
    [
        "'; DROP TABLE ohlcv_1d; --",
        "../EUR/USD",
        "EUR/USD\r\nX-Evil: 1",
        "*",
        "ЕUR/USD",
        "EUR/USD&a=b",
    ],
)
def test_a_name_that_is_none_is_not_asked_for(source, provider_server, ticker):
    odd = EURUSD.model_copy(update={"tickers": {"dukascopy": ticker}})
    found = source.bars([odd, instrument("GBPUSD")], START, END)
    assert "cannot be an instrument of Dukascopy's" in found.failed["EURUSD"]
    assert "\n" not in found.failed["EURUSD"]
    assert {r.query["instrument"] for r in provider_server.asked} == {"GBP/USD"}
    assert found.frame.height == 10


def test_it_is_asked_by_the_name_that_it_knows(source, provider_server):
    metal = instrument("GOLD", tickers={"dukascopy": "XAU/USD"})
    assert source.bars([metal], START, END).failed == {}
    assert provider_server.asked[0].query["instrument"] == "XAU/USD"


# -- wrong rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([float("nan"), 1.2, 1.0, 1.1, 5.0], "a price is missing or not finite"),
        ([float("inf"), 1.2, 1.0, 1.1, 5.0], "a price is missing or not finite"),
        ([1.1, 1.2, 1.0, None, 5.0], "a price is missing or not finite"),
        ([-1.1, 1.2, -1.2, 1.1, 5.0], "a price is not positive"),
        ([1.1, 1.0, 1.2, 1.1, 5.0], "high is below low"),
        ([1.1, 1.2, 1.0, 1.3, 5.0], "open or close lies outside [low, high]"),
        ([1.1, 1.2, 1.0, 1.1, -5.0], "volume is negative"),
        ([1.1, 1.2, 1.0, 1.1, None], "volume is missing or not finite"),
    ],
)
def test_a_wrong_row_comes_as_it_is_and_is_rejected_alone(source, feed, row, reason):
    rows = feed.rows["EUR/USD", "1DAY"] = fx_days(date(2024, 1, 1), date(2024, 6, 1))
    place = next(n for n, r in enumerate(rows) if r[0] == milliseconds(date(2024, 3, 6)))
    rows[place] = [rows[place][0], *row]
    found = source.bars([EURUSD], START, END)
    assert found.failed == {}
    checked = sorted_out(found.frame)
    assert checked.good.height == 9
    assert checked.quarantined["reason"].to_list() == [reason]
    assert checked.quarantined["day"].to_list() == [date(2024, 3, 6)]


def test_days_in_another_time_zone_are_refused(source, feed):
    """Their bars would be other ones, and 17:00 New York is not what the calendar says."""
    rows = feed.rows["EUR/USD", "1DAY"]
    feed.rows["EUR/USD", "1DAY"] = [[r[0] - 2 * 3_600_000, *r[1:]] for r in rows]
    found = source.bars([EURUSD], START, END)
    assert "begins at 2024-03-04 22:00:00 UTC, which is between two bars" in found.failed["EURUSD"]
    assert found.frame.is_empty()


def test_a_row_from_the_future_ends_what_is_believed(source, feed):
    """The package stops at it; the sessions after it are missed by whoever writes."""
    rows = feed.rows["EUR/USD", "1DAY"] = fx_days(date(2024, 1, 1), date(2024, 6, 1))
    place = next(n for n, r in enumerate(rows) if r[0] == milliseconds(date(2024, 3, 8)))
    rows.insert(place, [milliseconds(date(2099, 1, 1)), 1.1, 1.1, 1.1, 1.1, 1.0])
    found = source.bars([EURUSD], START, END)
    assert found.frame["time"].dt.date().to_list() == [date(2024, 3, d) for d in (4, 5, 6, 7)]


def test_rows_that_repeat_are_left_to_be_settled(source, feed):
    rows = feed.rows["EUR/USD", "1DAY"] = fx_days(date(2024, 1, 1), date(2024, 6, 1))
    place = next(n for n, r in enumerate(rows) if r[0] == milliseconds(date(2024, 3, 6)))
    rows.insert(place, rows[place])
    checked = sorted_out(source.bars([EURUSD], START, END).frame)
    assert (checked.good.height, checked.duplicate) == (10, 1)
    rows[place] = [rows[place][0], 1.1, 1.5, 1.0, 1.4, 7.0]
    checked = sorted_out(source.bars([EURUSD], START, END).frame)
    assert checked.good.height == 9
    assert set(checked.quarantined["reason"]) == {"rows with the same key contradict each other"}


def test_a_market_that_ended_has_no_rows_after_it(source, feed):
    feed.rows["EUR/USD", "1DAY"] = fx_days(date(2024, 1, 1), date(2024, 3, 7))
    found = source.bars([EURUSD], START, END)
    assert found.failed == {}, "whether they should be there is the writer's to judge"
    assert found.frame.height == 3
    delisted = instrument(membership=[{"from": date(2020, 1, 1), "to": date(2024, 3, 6)}])
    assert source.bars([delisted], START, END).frame.height == 2
    assert source.calls("bars", [delisted], date(2024, 4, 1), END) == 0


# -- a guest in the process -----------------------------------------------------------------------


def test_nobody_else_is_changed(source, caplog):
    import requests

    before = requests.get
    level, handlers = logging.getLogger().level, list(logging.getLogger().handlers)
    with caplog.at_level(logging.DEBUG):
        source.bars([EURUSD], START, END)
    assert requests.get is before
    assert not [r for r in caplog.records if "Date" in r.getMessage()]
    assert list(logging.getLogger().handlers) == handlers
    assert logging.getLogger().level == level
    import dukascopy_python

    assert dukascopy_python.requests is requests


def test_making_it_imports_no_client():
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from feature_pipeline.sources.dukascopy import DukascopySource\n"
            "DukascopySource()\n"
            "print([n for n in ('dukascopy_python', 'pandas') if n in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "[]"
