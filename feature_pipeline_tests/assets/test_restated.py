"""Bars that a provider restates: the correction is taken, the old row kept, and a check says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date

import dagster as dg
import polars as pl
import pytest

from feature_pipeline.assets.checks import Asked, checks_of
from feature_pipeline.assets.verdicts import Verdict
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.storage.store import Store
from feature_pipeline_tests.assets.world import midnight
from feature_pipeline_tests.providers.yahoo import Ticker
from feature_pipeline_tests.sources.yahoo_support import World, traded

OVERLAP = (date(2020, 5, 11), date(2020, 6, 1))
EX = date(2020, 5, 20)
BEFORE = "7 bars from 2020-05-11 to 2020-05-19"


class Desk:
    """A Yahoo, a store, and the check."""

    def __init__(self, world: World, store: Store) -> None:
        self.world = world
        self.store = store

    def collect(self, asset: str = "ohlcv_1d") -> str:
        """Collect the overlap once more; the run's name."""
        self.world.write(self.store, OVERLAP, asset)
        return f"run {self.world._runs}"

    def judge(self, run: str | None = None, days: tuple[date, date] | None = OVERLAP) -> Verdict:
        asked = Asked(self.store, "ohlcv_1d", days, run)
        return next(c for c in checks_of("ohlcv_1d") if c.name == "restated").ask(asked)


@pytest.fixture
def desk(provider_server, migrated_database_url) -> Iterator[Desk]:
    names = ("AAA", "BBB")
    world = World(provider_server, {n: Ticker(traded(seed=i)) for i, n in enumerate(names)})
    store = world.store(migrated_database_url)
    yield Desk(world, store)
    store.database.close()


def before_the_split(ticker: Ticker, ratio: float = 4.0) -> Ticker:
    """What was traded, where the bars from `EX` on are on the new basis."""
    bars = {
        day: bar if day < EX else (*(p / ratio for p in bar[:4]), bar[4] * ratio)
        for day, bar in ticker.bars.items()
    }
    return replace(ticker, bars=bars)


def secretly(ticker: Ticker, ratio: float = 4.0) -> Ticker:
    """What Yahoo says once it has adjusted for a split and not reported it."""
    bars = {
        day: (*(p / ratio for p in bar[:4]), bar[4] * ratio) if day < EX else bar
        for day, bar in ticker.bars.items()
    }
    return replace(ticker, bars=bars)


def test_bars_that_stay_pass(desk):
    first = desk.collect()
    assert desk.judge(first).passed
    again = desk.collect()
    said = desk.judge(again)
    assert said.passed
    assert said.says == "no bar was restated by this run, from 2020-05-11 to 2020-05-31"
    assert desk.judge().says.startswith("no bar was restated within 30 days")
    assert desk.judge(days=None).passed


def test_a_split_that_is_reported_in_time_restates_nothing(desk):
    ticker = before_the_split(desk.world.yahoo.tickers["AAA"])
    desk.world.yahoo.tickers["AAA"] = ticker
    desk.collect()
    desk.world.yahoo.tickers["AAA"] = replace(ticker, splits={EX: (4.0, 1.0)})
    assert desk.judge(desk.collect()).passed


def test_a_split_that_nobody_reported_is_flagged_and_kept(desk):
    ticker = before_the_split(desk.world.yahoo.tickers["AAA"])
    desk.world.yahoo.tickers["AAA"] = ticker
    desk.collect()
    held = desk.store.read("ohlcv_1d", symbols=["AAA"])
    desk.world.yahoo.tickers["AAA"] = secretly(ticker)
    run = desk.collect()
    said = desk.judge(run)
    assert (said.passed, said.error) == (False, False)
    assert said.says.startswith("7 bars of 1 symbol restated, from 2020-05-11 to 2020-05-31: AAA ")
    old = held.filter(pl.col("time") == midnight(date(2020, 5, 19)))["close"][0]
    close = f"the last close from {old:g} to {old / 4:g}"
    assert f"AAA {BEFORE}, {close} (x 0.25 on each: " in said.says
    assert "like a split of 4 for 1 that corporate_actions does not have" in said.says
    assert "The old rows are in ohlcv_1d_history" in said.says
    assert said.numbers == {"restated": 7, "symbols": 1}
    # No silent rewrite: what was held before is held still.
    kept = desk.store.database.read_frame(
        "SELECT time, close FROM ohlcv_1d_history WHERE symbol = 'AAA' ORDER BY time"
    )
    assert kept.equals(held.filter(pl.col("time") < midnight(EX)).select("time", "close"))
    # A run that changes nothing has nothing to say; without a run it is still news.
    assert desk.judge(desk.collect()).passed
    assert desk.judge().says == said.says
    assert desk.judge(days=None).says.split(":")[1] == said.says.split(":")[1]


def test_the_split_is_named_once_it_is_known(desk):
    ticker = before_the_split(desk.world.yahoo.tickers["AAA"])
    desk.world.yahoo.tickers["AAA"] = ticker
    desk.collect()
    held = desk.store.read("ohlcv_1d")
    desk.world.yahoo.tickers["AAA"] = secretly(ticker)
    desk.collect()
    desk.world.yahoo.tickers["AAA"] = replace(ticker, splits={EX: (4.0, 1.0)})
    desk.collect("corporate_actions")
    said = desk.judge(desk.collect())
    assert "x 4 on each: corporate_actions has a split of 4 on 2020-05-20, recorded" in said.says
    assert desk.store.read("ohlcv_1d").equals(held)  # as traded again


def test_a_reverse_split(desk):
    ticker = before_the_split(desk.world.yahoo.tickers["BBB"], 0.1)
    desk.world.yahoo.tickers["BBB"] = ticker
    desk.collect()
    desk.world.yahoo.tickers["BBB"] = secretly(ticker, 0.1)
    assert "like a split of 1 for 10 that corporate_actions" in desk.judge(desk.collect()).says


@pytest.mark.parametrize(
    ("change", "said", "not_said"),
    [
        (lambda b: (b[0], b[1] + 9, b[2], b[3] + 5, b[4]), "the last close from", "split"),
        (lambda b: (*b[:4], b[4] + 600), "closes are the same, what differs is another", "split"),
        (lambda b: (*(p * 1.01 for p in b[:4]), b[4]), "the last close from", "split"),
    ],
)
def test_a_correction_is_no_split(desk, change, said, not_said):
    day = date(2020, 5, 14)
    desk.collect()
    ticker = desk.world.yahoo.tickers["AAA"]
    desk.world.yahoo.tickers["AAA"] = replace(
        ticker, bars={**ticker.bars, day: change(ticker.bars[day])}
    )
    verdict = desk.judge(desk.collect())
    assert verdict.says.startswith("1 bar of 1 symbol restated")
    assert "AAA 1 bar on 2020-05-14, the last close from" in verdict.says
    assert said in verdict.says
    assert not_said not in verdict.says


def test_corrections_of_different_size_are_no_split(desk):
    desk.collect()
    for ratio in (0.5, 0.25):
        ticker = desk.world.yahoo.tickers["AAA"]
        day = date(2020, 5, 14 if ratio == 0.5 else 15)
        bar = ticker.bars[day]
        desk.world.yahoo.tickers["AAA"] = replace(
            ticker, bars={**ticker.bars, day: (*(p * ratio for p in bar[:4]), bar[4])}
        )
    said = desk.judge(desk.collect()).says
    assert "AAA 2 bars from 2020-05-14 to 2020-05-15" in said
    assert "split" not in said


def test_what_was_restated_long_ago_is_no_news(desk):
    desk.collect()
    desk.world.yahoo.tickers["AAA"] = secretly(desk.world.yahoo.tickers["AAA"])
    desk.collect()
    for table in ("ohlcv_1d", "ohlcv_1d_history"):
        moment = "recorded_at" if table == "ohlcv_1d" else "superseded_at"
        with desk.store.database.connection() as connection:
            connection.execute(f"UPDATE {table} SET {moment} = '2020-04-30'")
    assert desk.judge().passed


def test_another_provider_is_named(desk):
    desk.collect()
    desk.world.yahoo.tickers["AAA"] = secretly(desk.world.yahoo.tickers["AAA"])
    run = desk.collect()
    with desk.store.database.connection() as connection:
        connection.execute("UPDATE ohlcv_1d_history SET source = 'sample'")
    said = desk.judge(run).says
    assert "yfinance in the place of sample" in said
    assert "split" not in said


def test_every_table_of_bars_has_it_and_no_other():
    having = {a for a in TABLES if "restated" in {c.name for c in checks_of(a)}}
    assert having == {a for a in TABLES if a.startswith("ohlcv_")}
    check = next(c for c in checks_of("ohlcv_1d") if c.name == "restated")
    assert not check.blocking
    assert "reports late" in check.description


def test_a_restatement_is_a_warning_that_holds_back_nothing(new_graph, world):
    assets = ["ohlcv_1d", "corporate_actions", "indicators_1d"]
    with new_graph(world) as graph:
        graph.run(assets=assets)
        day = midnight(date(2019, 6, 12))
        bars = world.bars.with_columns(
            pl.when(pl.col("time") == day).then(pl.col(n) * 1.5).otherwise(n).alias(n)
            for n in ("open", "high", "low", "close")
        )
        graph.source.world = world.but(bars=bars)
        result = graph.run(assets=assets)
        assert result.success
        said = {
            (e.asset_key.to_user_string(), e.check_name): e
            for e in result.get_asset_check_evaluations()
        }["ohlcv_1d", "restated"]
        assert (said.passed, said.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert "4 bars of 4 symbols restated" in said.description
        assert "x 1.5: like a split of 1 for 1.5" in said.description
        assert "and 1 more" in said.description
        assert "AAA" in said.metadata["shown"].value
        assert "indicators_1d" in {
            e.step_key for e in result.all_events if e.event_type_value == "STEP_SUCCESS"
        }
