"""A share, a currency pair and a coin in one graph: each on its own calendar, none waiting for
another's holidays; and what an answer without rows means on each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from feature_pipeline.universe import Universe
from feature_pipeline_tests.assets.markets import (
    END,
    HALF_DAY,
    HOLIDAY,
    NOW,
    START,
    WITHOUT_VOLUME,
    Markets,
    share,
)
from feature_pipeline_tests.assets.support import DERIVED, Graph, assert_equal, before, failure
from feature_pipeline_tests.assets.world import MadeSource, make_universe, make_world, midnight
from feature_pipeline_tests.providers.server import ProviderServer

TABLES = ("ohlcv_1d", *DERIVED)


@pytest.fixture(scope="module")
def macro() -> MadeSource:
    return MadeSource(make_world(make_universe()))


@pytest.fixture(scope="module")
def new_markets(new_database, macro) -> Callable:
    """`with new_markets() as (markets, graph)`."""

    @contextmanager
    def made() -> Iterator[tuple[Markets, Graph]]:
        with ProviderServer() as server, new_database() as url:
            markets = Markets(server)
            graph = Graph(url, markets.universe, macro, overrides={"sources": markets.sources()})
            yield markets, graph
            graph.close()

    return made


@pytest.fixture(scope="module")
def ran(new_markets) -> Iterator[tuple[Markets, Graph]]:
    """After one run of the window; not to be changed."""
    with new_markets() as (markets, graph):
        graph.run(START, END)
        yield markets, graph


def days(frame: pl.DataFrame, symbol: str) -> list[date]:
    return frame.filter(symbol=symbol)["time"].dt.date().to_list()


def window(*without: date, weekends: bool = True) -> list[date]:
    every = [START + timedelta(days=n) for n in range((END - START).days)]
    return [d for d in every if d not in without and (weekends or d.weekday() < 5)]


def exceptions(graph: Graph, start: date = START, end: date = END) -> list[tuple]:
    found = graph.store.ledger.exceptions("ohlcv_1d", start, end)
    return found.select("day", "symbol", "status", "reason").sort("day", "symbol").rows()


# -- every symbol on its own calendar -------------------------------------------------------------


@pytest.mark.parametrize("asset", TABLES)
def test_each_has_a_row_for_every_session_of_its_calendar(ran, asset):
    frame = ran[1].table(asset, START, END)
    assert days(frame, "SHARE") == window(HOLIDAY, weekends=False)
    assert days(frame, "EURUSD") == window(weekends=False)
    assert days(frame, "BTC-USD") == window()
    # The same sessions as the universe expects, which takes them from exchange_calendars.
    expected = ran[0].universe.sessions(START, END)
    assert (
        frame.select("symbol", "time")
        .sort("symbol", "time")
        .equals(expected.select("symbol", "time").sort("symbol", "time"))
    )


def test_nobody_is_missing_and_nothing_is_left_to_do(ran):
    _, graph = ran
    assert exceptions(graph) == []
    for asset in DERIVED:
        assert graph.pending(asset, START, END) == []


def test_a_row_is_known_when_its_own_market_closed(ran):
    _, graph = ran
    closes = {
        ("SHARE", HALF_DAY - timedelta(days=1)): "2024-07-02 20:15",
        ("SHARE", HALF_DAY): "2024-07-03 17:15",
        ("EURUSD", HOLIDAY): "2024-07-05 00:05",
        ("BTC-USD", HOLIDAY): "2024-07-05 00:01",
        ("BTC-USD", date(2024, 7, 6)): "2024-07-07 00:01",
    }
    for asset in TABLES:
        frame = graph.table(asset, START, END)
        for (symbol, day), at in closes.items():
            row = frame.filter(symbol=symbol, time=midnight(day))
            moment = datetime.strptime(at, "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
            assert row["available_at"].to_list() == [moment], (asset, symbol, day)


def test_state_vectors_are_whole_and_without_volume_there_is_no_ratio(ran):
    vectors = ran[1].table("state_vectors_1d", START, END)
    without = vectors.filter(symbol="BTC-USD", time=midnight(WITHOUT_VOLUME)).row(0, named=True)
    assert without["volume_ratio"] is None
    assert "volume_ratio" in without["missing"]
    others = vectors.filter(pl.col("time") != midnight(WITHOUT_VOLUME))
    for field in ("close", "log_return", "atr", "macd", "rsi", "bb_width", "volume_ratio"):
        assert others[field].null_count() == 0, field
    assert vectors["regime_trend"].null_count() == 0
    assert set(vectors["symbol"]) == {"SHARE", "EURUSD", "BTC-USD"}


def test_a_weekend_of_the_coin_follows_from_its_friday_and_not_from_the_shares(ran):
    """Its Saturday's return is over Friday; the share's Monday's over its own Friday."""
    _, graph = ran
    features = graph.table("features_1d", START, END)
    bars = graph.table("ohlcv_1d", START, END)

    def over(symbol: str, day: date, previous: date) -> float:
        closes = [bars.filter(symbol=symbol, time=midnight(d))["close"][0] for d in (day, previous)]
        return closes[0] / closes[1] - 1

    for symbol, day, previous in (
        ("BTC-USD", date(2024, 6, 29), date(2024, 6, 28)),
        ("EURUSD", date(2024, 7, 1), date(2024, 6, 28)),
        ("SHARE", date(2024, 7, 5), HALF_DAY),
    ):
        row = features.filter(symbol=symbol, time=midnight(day))
        assert row["returns_1d"].to_list() == pytest.approx([over(symbol, day, previous)])


def test_aggregates_are_over_what_was_known(ran, new_markets):
    """The share's prices from 5 July on are others: what was known before it closed is not."""
    known = datetime(2024, 7, 5, 20, 15, tzinfo=UTC)
    with new_markets() as (markets, graph):
        ticker = markets.yahoo.tickers["SHARE"]
        moved = {d: share(d, 1.2) for d in ticker.bars if d > HOLIDAY}
        ticker.bars = {**ticker.bars, **moved}
        graph.run(START, END)
        changed = False
        for asset in DERIVED:
            one, other = (
                g.table(asset, START, END).filter(pl.col("available_at") < known)
                for g in (ran[1], graph)
            )
            assert one.height
            assert_equal(one, other, asset)
        later = [
            before(g.table("features_1d", START, END), NOW).filter(pl.col("symbol") == "BTC-USD")
            for g in (ran[1], graph)
        ]
        changed = not later[0].equals(later[1])
        assert changed, "the coin's beta follows the benchmark, once that is known"


# -- an answer without rows -----------------------------------------------------------------------


def test_an_empty_answer_on_sessions_is_an_error_of_that_symbol_that_deletes_nothing(new_markets):
    with new_markets() as (markets, graph):
        graph.run(START, END, assets=["ohlcv_1d"])
        whole = graph.table("ohlcv_1d", START, END)
        markets.coins.rows.clear()
        markets.yahoo.tickers["SHARE"].bars = {}
        result = graph.run(START, END, assets=["ohlcv_1d"], check=False)
        assert result.success or failure(result)[0] == "ohlcv_1d_checks"
        assert graph.table("ohlcv_1d", START, END).equals(whole)
        found = exceptions(graph)
        assert {(day, symbol) for day, symbol, *_ in found} == {
            *((day, "BTC-USD") for day in window()),
            *((day, "SHARE") for day in window(HOLIDAY, weekends=False)),
        }
        assert all("\n" not in reason for *_, reason in found)
        # As soon as they answer again nothing is amiss.
        markets.fill()
        graph.run(START, END, assets=["ohlcv_1d"])
        assert exceptions(graph) == []
        assert graph.table("ohlcv_1d", START, END).equals(whole)


def test_an_empty_answer_on_a_holiday_is_no_rows(new_markets):
    with new_markets() as (_, graph):
        graph.run(HOLIDAY, HOLIDAY + timedelta(days=1), assets=["ohlcv_1d"])
        frame = graph.table("ohlcv_1d", HOLIDAY, HOLIDAY + timedelta(days=1))
        assert frame["symbol"].sort().to_list() == ["BTC-USD", "EURUSD"]
        assert exceptions(graph, HOLIDAY, HOLIDAY + timedelta(days=1)) == []
        saturday = date(2024, 7, 6)
        graph.run(saturday, saturday + timedelta(days=1), assets=["ohlcv_1d"])
        frame = graph.table("ohlcv_1d", saturday, saturday + timedelta(days=1))
        assert frame["symbol"].to_list() == ["BTC-USD"]
        assert exceptions(graph, saturday, saturday + timedelta(days=1)) == []


# -- who decides ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("day", "opens", "closes"),
    [
        (date(2024, 3, 8), "14:30", "21:00"),
        (date(2024, 3, 11), "13:30", "20:00"),  # daylight saving began on the 10th
        (date(2024, 11, 1), "13:30", "20:00"),
        (date(2024, 11, 4), "14:30", "21:00"),
        (date(2024, 7, 3), "13:30", "17:00"),
        (date(2024, 11, 29), "14:30", "18:00"),
        (date(2024, 12, 24), "14:30", "18:00"),
    ],
)
def test_half_days_and_daylight_saving_are_the_calendars(ran, day, opens, closes):
    universe: Universe = ran[0].universe
    row = universe.sessions(day, day + timedelta(days=1), ["SHARE"]).row(0, named=True)
    assert (f"{row['open']:%H:%M}", f"{row['close']:%H:%M}") == (opens, closes)
    for symbol in ("EURUSD", "BTC-USD"):
        row = universe.sessions(day, day + timedelta(days=1), [symbol]).row(0, named=True)
        assert row["open"] == midnight(day)
        assert row["close"] == midnight(day + timedelta(days=1))
