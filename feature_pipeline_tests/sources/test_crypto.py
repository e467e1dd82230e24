"""Crypto bars: ccxt itself against local servers that speak like the exchanges."""

from __future__ import annotations

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
from feature_pipeline.sources.crypto import EXCHANGES, CryptoSource
from feature_pipeline.sources.http import USER_AGENT, Limits
from feature_pipeline.storage.validate import Checked, check
from feature_pipeline.universe import Instrument
from feature_pipeline_tests.providers.crypto import ExchangeFeed, coin_bars, coin_days, coin_price
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

START, END = date(2024, 3, 4), date(2024, 3, 18)
NOW = datetime(2024, 6, 3, 12, tzinfo=UTC)
LIMITS = Limits(requests=1000, seconds=1.0, attempts=2, wait_s=0.4, deadline_s=3.0)
DAY = 86_400


def instrument(coin: str = "BTC", **more) -> Instrument:
    return Instrument.model_validate(
        {
            "id": f"{coin}-USD",
            "asset_class": "crypto",
            "calendar": "24/7",
            "sector": "crypto",
            "source": {"bars": "kraken"},
            "symbols": [{"symbol": f"{coin}-USD", "from": date(2013, 1, 1)}],
            "tickers": {"binance": f"{coin}/USDT"},
            "membership": [{"from": date(2013, 1, 1)}],
            **more,
        }
    )


BTC, ETH = instrument("BTC"), instrument("ETH")
BOTH = [BTC, ETH]


@pytest.fixture(params=EXCHANGES)
def feed(request) -> ExchangeFeed:
    rows = coin_days(date(2023, 1, 1), date(2024, 6, 4))
    return ExchangeFeed(request.param, {("BTC", DAY): rows, ("ETH", DAY): rows})


@pytest.fixture
def make(feed, provider_server) -> Callable[..., CryptoSource]:
    def make(limits: Limits = LIMITS, now: datetime = NOW) -> CryptoSource:
        return CryptoSource(feed.name, limits, feed.serve(provider_server), lambda: now)

    return make


@pytest.fixture
def kraken(provider_server) -> tuple[ExchangeFeed, CryptoSource]:
    """One exchange, where they do not differ."""
    rows = coin_days(date(2023, 1, 1), date(2024, 6, 4))
    feed = ExchangeFeed("kraken", {("BTC", DAY): rows, ("ETH", DAY): rows})
    return feed, CryptoSource("kraken", LIMITS, feed.serve(provider_server), lambda: NOW)


def sorted_out(rows: pl.DataFrame, window: tuple[date, date] = (START, END)) -> Checked:
    """As they are written."""
    return check(ohlcv("1d"), rows, now=NOW, window=window, symbols=["BTC-USD", "ETH-USD"])


def days(frame: pl.DataFrame, symbol: str = "BTC-USD") -> list[date]:
    return frame.filter(symbol=symbol)["time"].dt.date().to_list()


# -- what they answer -----------------------------------------------------------------------------


def test_every_day_is_a_bar_weekends_too(make, feed, provider_server):
    source = make()
    assert isinstance(source, BarSource)
    assert isinstance(source, Metered)
    assert source.name == feed.name
    found = source.bars(BOTH, START, END)
    assert found.failed == {}
    assert found.asked == ("BTC-USD", "ETH-USD")
    assert days(found.frame) == [START + timedelta(days=n) for n in range(14)]
    saturday = found.frame.row(5, named=True)
    assert saturday["close"] == coin_price(date(2024, 3, 9))
    assert saturday["available_at"] == datetime(2024, 3, 10, 0, 1, tzinfo=UTC)
    assert saturday["availability_basis"] == "assumed"
    assert saturday["spread"] is None
    assert sorted_out(found.frame).good.height == 28
    assert source.actions(BOTH, START, END).asked == ("BTC-USD", "ETH-USD")
    assert source.actions(BOTH, START, END).frame.is_empty()

    # Exactly as often as it said, as ourselves, markets asked for once.
    assert len(provider_server.asked) == source.calls("bars", BOTH, START, END)
    assert {r.headers["user-agent"] for r in provider_server.asked} == {USER_AGENT}
    before = len(provider_server.asked)
    source.bars([BTC], START, END)
    assert len(provider_server.asked) == before + 1


def test_long_ranges_come_in_pages_and_each_bar_once(make, feed, provider_server):
    if feed.name == "kraken":
        pytest.skip("it has one page")
    feed.rows["BTC", DAY] = coin_days(date(2015, 1, 1), date(2024, 6, 4))
    source, (start, end) = make(), (date(2015, 1, 1), date(2024, 6, 1))
    found = source.bars([BTC], start, end)
    assert found.failed == {}
    assert days(found.frame) == [start + timedelta(days=n) for n in range((end - start).days)]
    assert len(provider_server.asked) == source.calls("bars", [BTC], start, end)


def test_bars_before_the_listing_are_not_made_up(make, feed):
    source = make(now=datetime(2023, 2, 1, tzinfo=UTC))
    found = source.bars([BTC], date(2022, 12, 20), date(2023, 1, 11))
    assert found.failed == {}
    assert days(found.frame) == [date(2023, 1, d) for d in range(1, 11)]


def test_an_unfinished_bar_is_known_later(make):
    found = make().bars([BTC], date(2024, 6, 1), date(2024, 6, 4))
    checked = sorted_out(found.frame, (date(2024, 6, 1), date(2024, 6, 4)))
    assert checked.unfinished == 1
    assert days(checked.good) == [date(2024, 6, 1), date(2024, 6, 2)]
    assert checked.good["availability_basis"].to_list() == ["assumed", "observed"]


@pytest.mark.parametrize(("timeframe", "seconds"), [("1m", 60), ("5m", 300), ("1h", 3600)])
def test_intraday_bars_are_known_at_their_end(make, feed, timeframe, seconds):
    step, first = timedelta(seconds=seconds), datetime(2024, 6, 2, tzinfo=UTC)
    feed.rows["BTC", seconds] = coin_bars(first, (NOW - first) // step, step)
    now = NOW
    if feed.name == "kraken":  # it keeps 720
        feed.rows["BTC", seconds] = feed.rows["BTC", seconds][-720:]
    found = make(now=now).bars([BTC], first.date(), date(2024, 6, 4), timeframe)
    assert found.failed == {}
    assert found.frame.columns == list(ohlcv(timeframe).names)
    assert found.frame.height == len(feed.rows["BTC", seconds])
    assert (found.frame["available_at"] - found.frame["time"]).unique().to_list() == [
        step + timedelta(minutes=1)
    ]
    window = (first.date(), date(2024, 6, 4))
    stored = found.frame.with_columns(session=pl.col("time").dt.date())  # the store's to say
    checked = check(ohlcv(timeframe), stored, now=NOW, window=window, symbols=["BTC-USD"])
    assert checked.quarantined.is_empty()
    assert checked.good.height + checked.unfinished == found.frame.height
    assert checked.unfinished == 1
    assert 0.0 in checked.good["volume"].to_list(), "nobody traded, and that is a bar"
    with pytest.raises(SourceError, match=r"no bars of '2h'; it has 1m, 5m, 1h, 1d"):
        make().bars([BTC], START, END, "2h")


def test_what_kraken_no_longer_has_is_said_and_not_asked_for(kraken, provider_server):
    _, source = kraken
    found = source.bars(BOTH, date(2020, 1, 1), date(2021, 1, 1))
    assert found.failed["BTC-USD"] == (
        "kraken has the last 720 bars of 1d alone: none of BTC/USD before 2021-01-01; take another "
        "source for BTC-USD, or give it a later `history_from`"
    )
    assert provider_server.asked == []
    assert source.calls("bars", BOTH, date(2020, 1, 1), date(2021, 1, 1)) == 0
    # Of a range that it has in part there is that part.
    some = source.bars([BTC], date(2022, 1, 1), date(2023, 1, 3))
    assert some.failed == {}
    assert days(some.frame) == [date(2023, 1, 1), date(2023, 1, 2)]


def test_a_market_that_began_later_says_so(provider_server):
    feed = ExchangeFeed("binance", {("BTC", DAY): coin_days(date(2023, 1, 1), date(2024, 6, 4))})
    source = CryptoSource("binance", LIMITS, feed.serve(provider_server), lambda: NOW)
    found = source.bars([BTC], date(2017, 1, 1), date(2018, 1, 1))
    assert found.failed == {"BTC-USD": "binance has no 1d bars of BTC/USDT before 2023-01-01"}


# -- one symbol costs itself ----------------------------------------------------------------------

FAULTS: dict[str, tuple[Callable[[], Answer], str]] = {
    "500": (broken, "answered 500"),
    "429": (lambda: too_many("0"), "answered 429"),
    "404": (lambda: Answer(404, b"no"), "was refused"),
    "html": (html, "answered something that is no JSON"),
    "truncated": (truncated, "answered something that is no JSON"),
    "hung up": (hung_up, "broke off"),
    "gzip": (bad_gzip, "the next run asks again"),
    "silent": (lambda: silent(1.0), "did not answer in time"),
    "dripping": (dripping, "did not answer in time"),
    "nothing": (lambda: Answer(200, b""), "answered something that is no JSON"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_the_symbol_it_meets(make, feed, provider_server, fault):
    answer, said = FAULTS[fault]
    source = make(replace(LIMITS, attempts=1))
    provider_server.fail(answer(), below=feed.bars_path)
    found = source.bars(BOTH, START, END)
    assert list(found.failed) == ["BTC-USD"]
    line = found.failed["BTC-USD"]
    assert said in line
    assert "\n" not in line
    assert "?" not in line, "no query"
    assert days(found.frame, "ETH-USD") == [START + timedelta(days=n) for n in range(14)]
    assert set(found.frame["symbol"]) == {"ETH-USD"}


@pytest.mark.parametrize(
    "body",
    [
        {"error": ["EGeneral:Internal error"]},
        {"error": ["EAPI:Rate limit exceeded"]},
        {"error": ["EQuery:Unknown asset pair"]},
        {"error": [], "result": {"XXBTZUSD": [[1709510400, "a", "b", "c", "d", "e", "f", 1]]}},
        {"error": [], "result": {"XXBTZUSD": ["x"]}},
        {"error": [], "result": {"XXBTZUSD": [[10**30, "1", "1", "1", "1", "1", "1", 1]]}},
    ],
)
def test_what_is_no_list_of_bars_is_none(kraken, provider_server, body):
    _, source = kraken
    provider_server.fail(Answer(200, body), below="/0/public/OHLC")
    found = source.bars(BOTH, START, END)
    bad = sorted_out(found.frame)
    assert "BTC-USD" not in bad.good["symbol"].to_list()
    assert days(bad.good, "ETH-USD") == [START + timedelta(days=n) for n in range(14)]
    assert all("\n" not in line for line in found.failed.values())
    assert set(found.failed) | set(bad.quarantined["symbol"]) <= {"BTC-USD"}


def test_an_empty_answer_is_no_row_and_no_failure(kraken, provider_server):
    """Whether there should have been one is judged by the calendar, where bars are written."""
    _, source = kraken
    provider_server.fail(
        Answer(200, {"error": [], "result": {"XXBTZUSD": []}}), below="/0/public/O"
    )
    found = source.bars(BOTH, START, END)
    assert found.failed == {}
    assert set(found.frame["symbol"]) == {"ETH-USD"}


def test_markets_that_cannot_be_had_are_asked_for_again(kraken, provider_server):
    _, source = kraken
    provider_server.fail(html(), below="/0/public/AssetPairs")
    found = source.bars(BOTH, START, END)
    assert list(found.failed) == ["BTC-USD"]
    assert found.frame.height == 14


def test_a_moment_of_trouble_costs_nothing(kraken, provider_server):
    _, source = kraken
    provider_server.fail(too_many("0"), below="/0/public/OHLC")
    found = source.bars([BTC], START, END)
    assert found.failed == {}
    assert found.frame.height == 14


def test_an_exchange_that_is_gone_is_not_asked_for_everybody(kraken, provider_server):
    _, source = kraken
    provider_server.fail(broken(), times=100)
    coins = [instrument(f"COIN{n}") for n in range(6)]
    found = source.bars(coins, START, END)
    assert len(found.failed) == 6
    assert found.failed["COIN5-USD"].startswith("not asked for: kraken: ")
    assert len(provider_server.asked) == 3 * LIMITS.attempts


def test_an_unknown_market_is_named(make, provider_server):
    source = make()
    found = source.bars([instrument("NOPE"), BTC], START, END)
    assert list(found.failed) == ["NOPE-USD"]
    assert " has no market NOPE/USD" in found.failed["NOPE-USD"]
    assert found.frame.height == 14


@pytest.mark.parametrize(
    "ticker", ["'; DROP TABLE x", "../BTC/USD", "BTC/USD\r\nX: 1", "*", "ВTC/USD", "BTC/USD?x=1"]
)
def test_a_name_that_is_none_is_not_asked_for(kraken, provider_server, ticker):
    _, source = kraken
    odd = BTC.model_copy(update={"tickers": {"kraken": ticker}})
    found = source.bars([odd, ETH], START, END)
    assert "cannot be a market" in found.failed["BTC-USD"]
    assert "\n" not in found.failed["BTC-USD"]
    assert len(provider_server.asked) == 2
    assert found.frame.height == 14


# -- wrong rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["nan", 1.2, 1.0, 1.1, 5.0], "a price is missing or not finite"),
        (["inf", 1.2, 1.0, 1.1, 5.0], "a price is missing or not finite"),
        ([1.1, 1.2, 1.0, None, 5.0], "a price is missing or not finite"),
        ([-1.1, 1.2, -1.2, 1.1, 5.0], "a price is not positive"),
        ([1.1, 1.0, 1.2, 1.1, 5.0], "high is below low"),
        ([1.1, 1.2, 1.0, 1.3, 5.0], "open or close lies outside [low, high]"),
        ([1.1, 1.2, 1.0, 1.1, -5.0], "volume is negative"),
    ],
)
def test_a_wrong_row_comes_as_it_is_and_is_rejected_alone(make, feed, row, reason):
    rows = feed.rows["BTC", DAY] = list(feed.rows["BTC", DAY])
    place = (date(2024, 3, 9) - date(2023, 1, 1)).days
    rows[place] = [rows[place][0], *row]
    found = make().bars(BOTH, START, END)
    assert found.failed == {}
    checked = sorted_out(found.frame)
    assert checked.good.height == 27
    assert checked.quarantined.select("symbol", "day", "reason").rows() == [
        ("BTC-USD", date(2024, 3, 9), reason)
    ]


def test_days_in_another_time_zone_are_refused(make, feed):
    feed.rows["BTC", DAY] = [[r[0] + 5 * 3_600_000, *r[1:]] for r in feed.rows["BTC", DAY]]
    found = make().bars(BOTH, START, END)
    assert "a 1d bar begins at 2024-03-04 05:00:00 UTC" in found.failed["BTC-USD"]
    assert set(found.frame["symbol"]) == {"ETH-USD"}


def test_a_row_from_the_future_is_told_of_and_no_page_is_lost(kraken):
    feed, source = kraken
    rows = feed.rows["BTC", DAY] = list(feed.rows["BTC", DAY])
    later = int(datetime(2025, 1, 1, tzinfo=UTC).timestamp() * 1000)
    rows.append([later, 1.1, 1.2, 1.0, 1.1, 5.0])
    found = source.bars([BTC], date(2024, 5, 20), date(2024, 6, 4))
    checked = sorted_out(found.frame, (date(2024, 5, 20), date(2024, 6, 4)))
    assert checked.good.height == 14
    assert checked.quarantined["reason"].to_list() == ["it lies in the future"]


def test_rows_that_repeat_are_left_to_be_settled(kraken):
    feed, source = kraken
    rows = feed.rows["BTC", DAY] = list(feed.rows["BTC", DAY])
    place = (date(2024, 3, 9) - date(2023, 1, 1)).days
    rows.insert(place, rows[place])
    checked = sorted_out(source.bars([BTC], START, END).frame)
    assert (checked.good.height, checked.duplicate) == (14, 1)


def test_an_exchange_that_repeats_itself_is_left(make, feed, provider_server):
    feed.stuck = True
    source = make()
    source.bars([BTC], date(2023, 2, 1), date(2024, 6, 1))
    said = source.calls("bars", [BTC], date(2023, 2, 1), date(2024, 6, 1))
    assert len(provider_server.asked) <= said


def test_a_coin_that_is_delisted_ends(kraken):
    feed, source = kraken
    feed.rows["BTC", DAY] = coin_days(date(2023, 1, 1), date(2024, 3, 10))
    assert days(source.bars([BTC], START, END).frame)[-1] == date(2024, 3, 9)
    gone = instrument(membership=[{"from": date(2020, 1, 1), "to": date(2024, 3, 6)}])
    assert days(source.bars([gone], START, END).frame) == [date(2024, 3, 4), date(2024, 3, 5)]


def test_making_one_imports_no_client():
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from feature_pipeline.sources.crypto import EXCHANGES, CryptoSource\n"
            "[CryptoSource(name) for name in EXCHANGES]\n"
            "print([n for n in ('ccxt', 'pandas') if n in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "[]"
