"""Yahoo: what was traded comes out of what Yahoo makes of it, at the moment it could be known."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from feature_pipeline.errors import SourceError
from feature_pipeline.schemas import ohlcv
from feature_pipeline.sources import calls_of
from feature_pipeline_tests.providers.yahoo import Ticker
from feature_pipeline_tests.sources.yahoo_support import (
    JANUARY,
    NOW,
    World,
    as_frame,
    minutes_of,
    traded,
    values,
)

SPLITS = {
    date(2020, 1, 14): (2.0, 1.0),
    date(2020, 3, 10): (3.0, 1.0),
    date(2020, 5, 18): (1.0, 10.0),
}
SINCE_2018 = date(2018, 1, 2)


# -- as traded ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "days",
    [
        (SINCE_2018, NOW.date()),
        JANUARY,
        (date(2018, 2, 1), date(2018, 3, 1)),  # years before the first split
        (date(2020, 1, 14), date(2020, 1, 15)),  # the ex-date alone
        (date(2020, 5, 19), date(2020, 6, 1)),  # after the last
    ],
)
def test_several_splits_are_undone_exactly(provider_server, days):
    bars = traded(SINCE_2018)
    world = World(provider_server, {"AAA": Ticker(bars, SPLITS)}, start=SINCE_2018)
    fetched = world.bars(days)
    assert fetched.failed == {}
    assert values(fetched).equals(as_frame(bars, days))  # to the last bit, prices and volume
    assert world.asked() == ["AAA"]


def test_the_server_does_adjust(provider_server):
    bars = traded()
    world = World(provider_server, {"AAA": Ticker(bars, SPLITS)})
    row = world.yahoo.chart(
        type("R", (), {"path": "/AAA", "query": {"period1": 0, "period2": 2e9, "interval": "1d"}})
    ).body["chart"]["result"][0]["indicators"]["quote"][0]
    first = next(iter(bars.values()))
    assert row["close"][0] == pytest.approx(first[3] / 0.6)
    assert row["volume"][0] == first[4] * 0.6


def test_what_comes_out_does_not_change_with_a_later_split(provider_server):
    bars = {day: (*bar[:4], bar[4] + 7) for day, bar in traded().items()}
    world = World(provider_server, {"AAA": Ticker(bars)})
    before = world.bars().frame
    for ratio in ((3.0, 1.0), (7.0, 1.0), (3.0, 2.0), (1.0, 8.0)):
        world.yahoo.tickers["AAA"] = Ticker(bars, {date(2020, 5, 4): ratio})
        after = world.bars().frame
        assert after.drop("volume").equals(before.drop("volume"))
        # What Yahoo rounds away of a volume is gone: half a share, times a reverse split.
        apart = (after["volume"] - before["volume"]).abs().max()
        assert apart == 0 or (ratio == (1.0, 8.0) and apart <= 4)


def test_prices_are_changed_by_no_more_than_their_noise(provider_server):
    bars = dict.fromkeys(traded(), (0.1 / 3, 0.1, 1.23456e-08, 512345.03, 0.0))
    frame = World(provider_server, {"AAA": Ticker(bars)}).bars().frame
    for name, price in zip(
        ("open", "high", "low", "close"), next(iter(bars.values())), strict=False
    ):
        assert frame[name].n_unique() == 1
        assert frame[name][0] == pytest.approx(price, rel=2**-22)
    assert frame["high"][0] == 0.1


def test_a_split_to_come_is_not_undone(provider_server):
    bars = traded()
    ticker = Ticker(bars, {date(2020, 6, 2): (4.0, 1.0)}, adjusted=False)
    world = World(provider_server, {"AAA": ticker}, now=datetime(2020, 6, 1, 20, 30, tzinfo=UTC))
    assert values(world.bars()).equals(as_frame(bars))


def test_a_split_of_this_morning_waits_for_its_first_trade(provider_server):
    bars = traded()
    world = World(provider_server, {"AAA": Ticker(bars), "BBB": Ticker(bars, {NOW.date(): (4, 1)})})
    fetched = world.bars()
    assert "of the split of 4 on 2020-06-01 no bar tells yet" in fetched.failed["BBB"]
    assert fetched.answered == {"AAA"}
    last = bars[max(bars)][3]
    opened = {**bars, NOW.date(): (last / 4, last / 3.9, last / 4.1, last / 4, 600.0)}
    for adjusted in (True, False):
        world.yahoo.tickers["BBB"] = Ticker(opened, {NOW.date(): (4, 1)}, adjusted=adjusted)
        world.now = datetime(2020, 6, 1, 14, tzinfo=UTC)
        assert values(world.bars(), "BBB").equals(as_frame(bars))


@pytest.mark.parametrize("adjusted", [False, True])
@pytest.mark.parametrize("ratio", [(4.0, 1.0), (1.0, 10.0)])
def test_a_split_that_is_reported_before_prices_are_adjusted(provider_server, adjusted, ratio):
    ex, split = date(2020, 5, 28), ratio[0] / ratio[1]
    bars = {
        day: bar if day < ex else (*(p / split for p in bar[:4]), bar[4] * split)
        for day, bar in traded().items()
    }
    ticker = Ticker(bars, {ex: ratio}, adjusted=adjusted)
    days = (date(2020, 5, 1), NOW.date())
    fetched = World(provider_server, {"AAA": ticker}).bars(days)
    for name in ("close", "volume"):
        ours, theirs = values(fetched)[name], as_frame(bars, days)[name]
        assert ((ours - theirs).abs() <= theirs * 1e-6).all()


def test_splits_and_dividends_are_as_they_were_paid(provider_server):
    dividends = {
        date(2018, 2, 9): 0.63,
        date(2020, 1, 10): 0.77,
        date(2020, 1, 14): 0.41,  # with the split, on its basis
        date(2020, 5, 8): 0.205,
    }
    ticker = Ticker(traded(SINCE_2018), SPLITS, dividends)
    world = World(provider_server, {"AAA": ticker}, start=SINCE_2018)
    fetched = world.actions((SINCE_2018, NOW.date()))
    held = fetched.frame.select(pl.col("time").dt.date(), "kind", "value").rows()
    assert sorted(held) == sorted(
        [(day, "split", new / old) for day, (new, old) in SPLITS.items()]
        + [(day, "dividend", amount) for day, amount in dividends.items()]
    )
    known = fetched.frame.filter(pl.col("kind") == "split").sort("time")["available_at"].to_list()
    assert known[:2] == [
        datetime(2020, 1, 14, 14, 30, tzinfo=UTC),  # the opens of the sessions
        datetime(2020, 3, 10, 13, 30, tzinfo=UTC),
    ]
    inside = world.actions(JANUARY).frame
    assert inside["time"].dt.date().unique().sort().to_list() == [
        date(2020, 1, 10),
        date(2020, 1, 14),
    ]


def test_a_dividend_on_a_day_without_a_bar_keeps_its_day(provider_server):
    bars = traded()
    del bars[date(2020, 1, 14)]
    ticker = Ticker(bars, {date(2020, 1, 14): (2.0, 1.0)}, {date(2020, 1, 14): 0.5})
    world = World(provider_server, {"AAA": ticker})
    assert world.actions().frame["time"].dt.date().unique().to_list() == [date(2020, 1, 14)]
    assert values(world.bars()).equals(as_frame(bars))


# -- when it was known ----------------------------------------------------------------------------


def test_bars_are_known_at_their_sessions_close_and_the_delay(provider_server):
    days = (date(2019, 11, 27), date(2020, 3, 11))
    world = World(provider_server, {"AAA": Ticker(traded(*days))}, start=days[0])
    known = dict(world.bars(days).frame.select(pl.col("time").dt.date(), "available_at").rows())
    assert known[date(2019, 11, 27)] == datetime(2019, 11, 27, 21, 15, tzinfo=UTC)
    assert known[date(2019, 11, 29)] == datetime(2019, 11, 29, 18, 15, tzinfo=UTC)  # half a day
    assert known[date(2020, 3, 6)] == datetime(2020, 3, 6, 21, 15, tzinfo=UTC)
    assert known[date(2020, 3, 9)] == datetime(2020, 3, 9, 20, 15, tzinfo=UTC)  # summer time


def test_when_we_ask_changes_what_it_rests_on_and_nothing_else(provider_server):
    bars = traded(end=date(2020, 2, 1))
    world = World(provider_server, {"AAA": Ticker(bars)})
    world.now = datetime(2020, 1, 31, 21, 20, tzinfo=UTC)
    live = world.bars().frame
    world.now = NOW
    later = world.bars().frame
    assert live.drop("availability_basis").equals(later.drop("availability_basis"))
    assert live.sort("time")["availability_basis"].to_list()[-2:] == ["assumed", "observed"]
    assert later["availability_basis"].unique().to_list() == ["assumed"]
    assert ohlcv("1d").column("availability_basis").provenance


def test_todays_bar_is_unfinished_until_it_can_be_had(provider_server, migrated_database_url):
    bars = traded(end=date(2020, 1, 9))
    ticker = Ticker(bars)
    world = World(provider_server, {"AAA": ticker})
    days = (date(2020, 1, 7), date(2020, 1, 10))
    store = world.store(migrated_database_url)
    # While it trades: the bar so far, stamped with the last trade.
    world.now = datetime(2020, 1, 8, 18, 3, 27, tzinfo=UTC)
    world.yahoo.tickers["AAA"] = replace(
        ticker, moments={date(2020, 1, 8): world.now - timedelta(seconds=1)}
    )
    report = world.write(store, days)
    assert (report.written, report.unfinished) == (1, 1)
    world.now = datetime(2020, 1, 8, 21, 20, tzinfo=UTC)
    report = world.write(store, days)
    assert (report.written, report.unchanged, report.unfinished) == (1, 1, 0)
    assert store.read("ohlcv_1d")["close"].to_list() == [
        bars[d][3] for d in (date(2020, 1, 7), date(2020, 1, 8))
    ]


def test_a_last_day_that_comes_twice_counts_as_the_later_one(provider_server):
    bars = traded(end=date(2020, 1, 9))
    at = datetime(2020, 1, 8, 21, 0, 1, tzinfo=UTC)
    ticker = Ticker(bars, more=[[int(at.timestamp()), 10.0, 12.0, 9.0, 11.0, 500]])
    world = World(provider_server, {"AAA": ticker}, now=at + timedelta(minutes=20))
    frame = world.bars().frame
    assert frame.filter(pl.col("time").dt.date() == date(2020, 1, 8))["close"].to_list() == [11.0]
    assert frame.height == len(bars)


# -- intraday -------------------------------------------------------------------------------------


def intraday(day: date, length: timedelta, beyond: int = 0) -> dict[datetime, tuple]:
    return {
        moment: (100.0 + n % 8, 102.5 + n % 8, 99.5 + n % 8, 101.25 + n % 8, 600.0 + 2 * n)
        for n, moment in enumerate(minutes_of(day, length, beyond=beyond))
    }


@pytest.mark.parametrize(
    ("timeframe", "length", "rows"),
    [
        ("1m", timedelta(minutes=1), 390),
        ("5m", timedelta(minutes=5), 78),
        ("1h", timedelta(hours=1), 7),
    ],
)
def test_intraday_bars_are_known_at_their_end(provider_server, timeframe, length, rows):
    day = date(2020, 5, 29)
    minutes = intraday(day, length, beyond=2)
    split = {datetime(2020, 6, 1, 13, 30, tzinfo=UTC): (50.0, 51.0, 49.0, 50.0, 1200.0)}
    ticker = Ticker(minutes={**minutes, **split}, splits={date(2020, 6, 1): (2.0, 1.0)})
    world = World(provider_server, {"AAA": ticker}, now=datetime(2020, 6, 1, 21, tzinfo=UTC))
    frame = world.bars((day, date(2020, 6, 1)), timeframe).frame
    assert frame.height == rows  # nothing of after hours
    inside = list(minutes.items())[:rows]
    assert frame["time"].to_list() == [moment for moment, _ in inside]
    assert values_of(frame) == [bar for _, bar in inside]
    close = datetime(2020, 5, 29, 20, tzinfo=UTC)
    assert frame["available_at"].to_list() == [
        min(moment + length, close) + timedelta(minutes=15) for moment, _ in inside
    ]
    assert provider_server.asked[-1].query["interval"] == timeframe


def values_of(frame: pl.DataFrame) -> list[tuple]:
    return frame.select("open", "high", "low", "close", "volume").rows()


def test_intraday_on_half_a_day_and_the_last_trade(provider_server):
    day = date(2019, 11, 29)
    minutes = intraday(day, timedelta(minutes=5), beyond=3)
    last = datetime(2019, 11, 29, 16, 3, 27, tzinfo=UTC)
    ticker = Ticker(
        minutes={m: bar for m, bar in minutes.items() if m < last},
        more=[[int(last.timestamp()), 1.0, 1.0, 1.0, 1.0, 0]],
    )
    world = World(provider_server, {"AAA": ticker}, now=last + timedelta(seconds=1), start=day)
    frame = world.bars((day, date(2019, 11, 30)), "5m").frame
    assert frame["time"].to_list() == [m for m in minutes if m < last]
    world.yahoo.tickers["AAA"] = Ticker(minutes=minutes)
    world.now = datetime(2019, 11, 29, 20, tzinfo=UTC)
    assert world.bars((day, date(2019, 11, 30)), "5m").frame.height == 42  # to 13:00


def test_what_intraday_bars_do_not_reach_is_refused(provider_server):
    world = World(provider_server, {"AAA": Ticker()})
    for timeframe, days in (("1m", 8), ("5m", 60), ("1h", 730)):
        start = NOW.date() - timedelta(days=days)
        with pytest.raises(SourceError, match=f"{timeframe} bars reach back {days} days; ask from"):
            world.bars((start, NOW.date()), timeframe)
    assert world.asked() == []
    # What a schedule asks for again is within the shortest span.
    world.bars((NOW.date() - timedelta(days=7), NOW.date()), "1m")
    with pytest.raises(SourceError, match="no bars of 2w; there is 1d, 1m, 5m, 1h"):
        world.bars(JANUARY, "2w")


# -- other markets --------------------------------------------------------------------------------


def test_markets_around_the_clock_keep_their_days(provider_server):
    summer = {date(2020, 5, day): (1.1, 1.12, 1.09, 1.1049, 0.0) for day in (25, 26, 27, 28, 29)}
    london = Ticker(
        {**summer, date(2020, 5, 30): (1.1, 1.1, 1.1, 1.1, 0.0)},  # Saturday's stub
        zone="Europe/London",
        opens=datetime.min.time(),  # 23:00 UTC of the day before
        kind="CURRENCY",
    )
    coins = Ticker(
        {
            date(2020, 5, day): (9000.5, 9100.25, 8900.0, 9050.75, 31_000_000_123.0)
            for day in (30, 31)
        },
        zone="UTC",
        opens=datetime.min.time(),
        kind="CRYPTOCURRENCY",
    )
    common = {"sector": "made"}
    world = World(
        provider_server,
        {"EURUSD=X": london, "BTC-USD": coins},
        {
            "EURUSD": {
                "asset_class": "fx", "calendar": "24/5", "tickers": {"yfinance": "EURUSD=X"},
                **common,
            },
            "BTC": {
                "asset_class": "crypto", "calendar": "24/7", "tickers": {"yfinance": "BTC-USD"},
                **common,
            },
        },
    )  # fmt: skip
    frame = world.bars((date(2020, 5, 25), date(2020, 6, 1))).frame
    fx = frame.filter(symbol="EURUSD")
    assert fx["time"].dt.date().to_list() == list(summer)
    assert fx["close"].unique().to_list() == [1.1049]
    assert fx["available_at"][0] == datetime(2020, 5, 26, 0, 15, tzinfo=UTC)
    assert frame.filter(symbol="BTC")["volume"].to_list() == [31_000_000_123.0] * 2
    assert sorted(world.asked()) == ["BTC-USD", "EURUSD=X"]


def test_only_a_market_without_volume_may_have_none(provider_server):
    bars = {day: (*bar[:4], None) for day, bar in traded().items()}
    world = World(
        provider_server,
        {"^VIX": Ticker(bars, kind="INDEX"), "AAA": Ticker(bars)},
        {"AAA": {}, "VIX": {"asset_class": "index", "tickers": {"yfinance": "^VIX"}}},
    )
    frame = world.bars().frame
    assert frame.filter(symbol="VIX")["volume"].unique().to_list() == [0.0]
    assert frame.filter(symbol="AAA")["volume"].unique().to_list() == [None]


# -- whom it asks ---------------------------------------------------------------------------------


def test_a_renamed_instrument_is_asked_by_its_newest_name(provider_server):
    bars = traded()
    names = [
        {"symbol": "FB", "from": date(2012, 5, 18), "to": date(2022, 6, 9)},
        {"symbol": "META", "from": date(2022, 6, 9)},
    ]
    world = World(provider_server, {"META": Ticker(bars)}, {"FB": {"symbols": names}})
    fetched = world.bars()
    assert world.asked() == ["META"]
    assert values(fetched, "FB").equals(as_frame(bars))
    assert fetched.asked == ("FB",)


def test_nobody_is_asked_for_what_was_not_listed(provider_server):
    bars = traded()
    member = {"membership": [{"from": date(2020, 1, 10), "to": date(2020, 1, 20)}]}
    world = World(
        provider_server,
        {name: Ticker(bars) for name in ("AAA", "BBB", "CCC")},
        {
            "AAA": member,
            "BBB": {"membership": [{"from": date(2020, 3, 1)}]},
            "CCC": {"membership": [{"from": date(2019, 1, 2), "to": date(2020, 1, 1)}]},
        },
        start=date(2019, 1, 2),
    )
    fetched = world.bars()
    assert world.asked() == ["AAA"]
    assert values(fetched).equals(as_frame(bars, (date(2020, 1, 10), date(2020, 1, 20))))
    assert (fetched.failed, fetched.asked) == ({}, ("AAA", "BBB", "CCC"))
    assert world.source.calls("bars", world.instruments, *JANUARY) == 1
    assert calls_of(world.source, "actions", world.instruments, date(2019, 1, 1), NOW.date()) == 3
    assert world.source.calls("news", world.instruments, *JANUARY) == 0
    assert world.bars((date(2020, 7, 1), date(2020, 7, 2))).frame.is_empty()  # not begun
    assert world.asked() == ["AAA"]


@pytest.mark.parametrize("ticker", ["EUR/USD", "NYSE:AAA"])
def test_a_ticker_that_is_none_reaches_nobody(provider_server, ticker):
    world = World(
        provider_server,
        {"AAA": Ticker(traded())},
        {"AAA": {}, "BAD": {"tickers": {"yfinance": ticker}}},
    )
    fetched = world.bars()
    assert list(fetched.failed) == ["BAD"]
    assert "no ticker of Yahoo's; correct it in universe.yaml" in fetched.failed["BAD"]
    assert world.asked() == ["AAA"]


def test_many_tickers_at_once_get_their_own_answers(provider_server):
    tickers = {f"T{n:02}": Ticker(traded(seed=n), SPLITS if n % 2 else {}) for n in range(40)}
    world = World(provider_server, tickers)
    for _ in range(2):
        fetched = world.bars()
        assert fetched.failed == {}
        for name, ticker in tickers.items():
            assert values(fetched, name).equals(as_frame(ticker.bars))
    assert len(world.asked()) == 80
    # Cookie and crumb are shared.
    assert len(provider_server.asked) == 82
    assert all(r.query["crumb"] == "cRuMb/123" for r in provider_server.asked[2:])


def test_two_sources_share_nothing(provider_server, provider_server_too):
    here = World(provider_server, {"AAA": Ticker(traded(seed=1))})
    there = World(provider_server_too, {"AAA": Ticker(traded(seed=2))})
    first, second = here.bars(), there.bars()
    assert not values(first).equals(values(second))
    assert values(here.bars()).equals(values(first))  # asked again, not remembered
    assert (here.asked(), there.asked()) == (["AAA"] * 2, ["AAA"])


@pytest.fixture
def provider_server_too():
    from feature_pipeline_tests.providers.server import ProviderServer

    with ProviderServer() as server:
        yield server


def test_it_is_registered_and_cheap():
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from feature_pipeline.resources import load_universe, sources\n"
            "from feature_pipeline.settings import Settings\n"
            "made = sources(Settings(), load_universe(Settings()))['yfinance']\n"
            "from feature_pipeline.sources import BarSource\n"
            "print(isinstance(made, BarSource), {'yfinance', 'curl_cffi'} & set(sys.modules))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "True set()"
