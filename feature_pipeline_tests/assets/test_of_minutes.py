"""Bars of five minutes where there are minutes, where there are none, and where some may follow."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from feature_pipeline.errors import SourceError
from feature_pipeline.resources import code_versions
from feature_pipeline.storage.upkeep import Upkeep
from feature_pipeline_tests.assets.world import make_universe, within_sessions

DAY = date(2019, 6, 12)
AFTER = DAY + timedelta(days=1)
SINCE = date(2019, 6, 11)
"""Minutes begin here; the history that consumers read begins earlier."""

ASSETS = ("ohlcv_1m", "ohlcv_5m")
PRICES = ("symbol", "time", "open", "high", "low", "close", "volume")


@pytest.fixture(scope="module")
def trading():
    return make_universe(timeframes=("1d", "5m", "1m"))


@pytest.fixture(scope="module")
def minutes(trading, world):
    """Everybody has bars of five minutes; all but one have minutes, from yesterday on."""
    fives = within_sessions(trading, world, ["5m"], date(2019, 5, 1), AFTER).intraday
    ones = within_sessions(trading, world, ["1m"], SINCE, AFTER).intraday["1m"]
    return world.but(intraday={**fives, "1m": ones.filter(pl.col("symbol") != "BBB")})


@pytest.fixture
def graph(new_graph, trading, minutes):
    with new_graph(minutes, trading) as made:
        made.store.clock = lambda: datetime(2019, 6, 20, tzinfo=UTC)
        yield made


def made_of(minutes, symbol: str) -> pl.DataFrame:
    """By hand: minutes of five, from the open on, which is at a full five minutes."""
    own = minutes.intraday["1m"].filter(pl.col("symbol") == symbol, pl.col("time").dt.date() == DAY)
    return (
        own.sort("time")
        .group_by("symbol", pl.col("time").dt.truncate("5m"), maintain_order=True)
        .agg(
            pl.col("open").first(),
            pl.col("high").max(),
            pl.col("low").min(),
            pl.col("close").last(),
            pl.col("volume").sum(),
        )
        .select(PRICES)
    )


def test_they_are_made_of_minutes_and_else_the_providers(graph, minutes):
    graph.run(DAY, AFTER, ASSETS)
    rows = graph.table("ohlcv_5m", DAY, AFTER).select(PRICES)
    for symbol in ("AAA", "MKT", "YOUNG"):
        assert rows.filter(symbol=symbol).equals(made_of(minutes, symbol)), symbol
    fives = minutes.intraday["5m"]
    provided = fives.filter(pl.col("symbol") == "BBB", pl.col("time").dt.date() == DAY)
    assert rows.filter(symbol="BBB").equals(provided.select(PRICES))
    before = fives.filter(pl.col("time").dt.date() == SINCE - timedelta(days=1))
    held = graph.table("ohlcv_5m", SINCE - timedelta(days=1), SINCE).select(PRICES)
    assert held.equals(before.select(PRICES).sort("symbol", "time")), "history without minutes"
    assert graph.store.ledger.exceptions("ohlcv_5m", DAY, AFTER).is_empty()

    # Once more: nobody is asked for who has all minutes.
    graph.source.asked.clear()
    graph.run(DAY, AFTER, ["ohlcv_5m"])
    assert [what for what, *_ in graph.source.asked] == ["bars"]
    assert graph.table("ohlcv_5m", DAY, AFTER).select(PRICES).equals(rows)


def test_a_bar_waits_until_all_of_its_minutes_were_asked_for(graph, minutes):
    """In the middle of a session: minutes up to 16:03 make no bar of 16:00 to 16:05."""
    moment = datetime(2019, 6, 12, 16, 3, tzinfo=UTC)
    seen = minutes.intraday["1m"].filter(
        pl.col("time") < moment, pl.col("time").dt.date() == DAY, pl.col("symbol") == "AAA"
    )
    graph.source.world = minutes.but(intraday={"1m": seen, "5m": seen.clear()})
    graph.run(DAY, AFTER, ["ohlcv_1m"])
    # The ledger says that minutes were written long after the close: of a session that is over.
    graph.query("UPDATE partition_ledger SET updated_at = '2019-06-12 16:18Z' RETURNING day")
    graph.run(DAY, AFTER, ["ohlcv_5m"])
    bars = graph.table("ohlcv_5m", DAY, AFTER).filter(symbol="AAA")
    newest = seen["time"].max() + timedelta(minutes=1)
    assert bars["time"].max() + timedelta(minutes=5) <= newest
    assert bars.select(PRICES).equals(made_of(minutes, "AAA").head(bars.height))


def test_a_bar_waits_for_those_who_did_not_answer_after_the_close(graph, minutes):
    """Minutes until 16:03, then a run after the close that has those of the others alone."""
    moment = datetime(2019, 6, 12, 16, 3, tzinfo=UTC)
    part = minutes.intraday["1m"].filter(pl.col("time") < moment)
    graph.source.world = minutes.but(intraday={**minutes.intraday, "1m": part})
    graph.run(DAY, AFTER, ["ohlcv_1m"])
    graph.source.world = minutes.but(silent={"AAA": "it broke"})
    graph.run(DAY, AFTER, ["ohlcv_1m"], check=False)
    graph.source.world = minutes
    graph.run(DAY, AFTER, ["ohlcv_5m"])
    newest = part.filter(symbol="AAA")["time"].max() + timedelta(minutes=1)
    bars = graph.table("ohlcv_5m", DAY, AFTER)
    assert bars.filter(symbol="AAA")["time"].max() + timedelta(minutes=5) <= newest
    assert bars.filter(symbol="MKT").select(PRICES).equals(made_of(minutes, "MKT"))


def test_who_has_minutes_does_not_wait_for_whom_nobody_can_tell_of(graph, minutes):
    graph.run(DAY, AFTER, ["ohlcv_1m"])
    bars = graph.source.bars

    def broken(instruments, start, end, timeframe="1d"):
        if timeframe == "5m":
            raise SourceError("made is out of order")
        return bars(instruments, start, end, timeframe)

    graph.source.bars = broken
    graph.run(DAY, AFTER, ["ohlcv_5m"], check=False)
    held = graph.table("ohlcv_5m", DAY, AFTER)
    assert held.filter(symbol="AAA").select(PRICES).equals(made_of(minutes, "AAA"))
    lost = graph.store.ledger.exceptions("ohlcv_5m", DAY, AFTER)
    assert lost.select("symbol", "status", "reason").rows() == [
        ("BBB", "failed", "made is out of order")
    ]


def test_an_answer_takes_nothing_back_of_what_it_does_not_reach(graph, minutes):
    """A provider of the last minutes alone has no longer those of this morning."""
    graph.run(DAY, AFTER, ["ohlcv_1m"])
    whole = graph.table("ohlcv_1m", DAY, AFTER)
    noon = datetime(2019, 6, 12, 17, tzinfo=UTC)
    last = datetime(2019, 6, 12, 19, tzinfo=UTC)
    wrong = noon + timedelta(minutes=10)
    assert wrong in whole.filter(symbol="AAA")["time"]
    late = minutes.intraday["1m"].filter(
        pl.col("time").is_between(noon, last), pl.col("time") != wrong
    )
    graph.source.world = minutes.but(intraday={**minutes.intraday, "1m": late})
    graph.run(DAY, AFTER, ["ohlcv_1m"])
    assert graph.table("ohlcv_1m", DAY, AFTER).equals(whole.filter(pl.col("time") != wrong))
    held = graph.store.ledger.rows("ohlcv_1m", DAY, AFTER)
    assert held["rows"].sum() == graph.table("ohlcv_1m", DAY, AFTER).height


def test_minutes_of_another_provider_are_not_passed_off_as_the_one_that_is_asked(graph, minutes):
    graph.run(DAY, AFTER, ["ohlcv_1m"])
    graph.query("UPDATE ohlcv_1m SET source = 'former' WHERE symbol = 'AAA' RETURNING symbol")
    graph.run(DAY, AFTER, ["ohlcv_5m"])
    bars = graph.table("ohlcv_5m", DAY, AFTER).filter(symbol="AAA")
    assert bars["source"].unique().to_list() == ["made"]
    fives = minutes.intraday["5m"].filter(pl.col("time").dt.date() == DAY, symbol="AAA")
    assert bars.select(PRICES).equals(fives.select(PRICES))


def test_bars_are_behind_minutes_that_were_restated(graph, minutes):
    graph.run(DAY, AFTER, ASSETS)
    days = [SINCE, DAY]
    assert not set(days) & set(graph.pending("ohlcv_5m", SINCE, AFTER))
    ones = minutes.intraday["1m"]
    first = ones.filter(pl.col("symbol") == "AAA", pl.col("time").dt.date() == DAY)["time"].min()
    restated = ones.with_columns(
        high=pl.when(symbol="AAA", time=first).then(pl.col("high") * 2).otherwise("high")
    )
    graph.source.world = changed = minutes.but(intraday={**minutes.intraday, "1m": restated})
    graph.run(DAY, AFTER, ["ohlcv_1m"])
    assert graph.pending("ohlcv_5m", SINCE, AFTER) == [DAY]
    versions = code_versions(graph.universe, graph.settings)
    assert DAY in Upkeep(graph.store, versions).holes("ohlcv_5m").to_list()
    graph.run(DAY, AFTER, ["ohlcv_5m"], only_missing=True)
    bars = graph.table("ohlcv_5m", DAY, AFTER).filter(symbol="AAA")
    assert bars.select(PRICES).equals(made_of(changed, "AAA"))
    assert graph.pending("ohlcv_5m", SINCE, AFTER) == []
    assert DAY not in Upkeep(graph.store, versions).holes("ohlcv_5m").to_list()
