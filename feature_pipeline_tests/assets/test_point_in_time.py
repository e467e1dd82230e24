"""What a vector could know of revisions, splits, restatements and documents; what they undo."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from feature_pipeline.partitions import days
from feature_pipeline.schemas import CORPORATE_ACTIONS
from feature_pipeline_tests.assets.support import DERIVED, assert_equal, assert_same_tables
from feature_pipeline_tests.assets.world import (
    END,
    LISTED,
    SPLIT_DAY,
    START,
    make_documents,
    make_macro,
    midnight,
)

PRICES = (
    *("sma_20", "sma_50", "sma_200", "ema_12", "ema_26", "macd_line", "macd_signal", "macd_hist"),
    *("atr_14", "bb_upper", "bb_middle", "bb_lower"),
)


def sessions(universe, start: date = LISTED, end: date = END) -> list[date]:
    return universe.sessions(start, end, ["MKT"])["time"].dt.date().to_list()


# -- macro ----------------------------------------------------------------------------------------


def test_a_revision_is_seen_only_from_its_release_on(new_graph, world):
    """VIX of 3 June: 24, released on the 4th; 45 from the 12th, 15:00; 59 from the 13th, 21:00."""
    observed, moment = [midnight(date(2019, 6, 3))], midnight(date(2019, 6, 12))
    vintages = [
        make_macro("VIXCLS", observed, [24.0], timedelta(days=1, hours=13)),
        make_macro("VIXCLS", observed, [45.0], timedelta(days=9, hours=15)),
        make_macro("VIXCLS", observed, [59.0], timedelta(days=10, hours=21)),
    ]
    others = world.macro.filter(pl.col("series_id") != "VIXCLS")
    with new_graph(world.but(macro=pl.concat([others, *vintages]))) as graph:
        graph.run()
        vix = graph.table("state_vectors_1d").select("time", vix=pl.col("vix") * 70 + 10)
        expected = {5: 24, 6: 24, 7: 24, 10: 24, 11: 24, 12: 45, 13: 45, 14: 59}
        for time, value in vix.unique().iter_rows():
            assert value == pytest.approx(expected[time.day])
        assert vix["time"].n_unique() == len(expected)

        def known(at):
            held = graph.store.read("macro_indicators", as_of=at)
            held = held.filter(series_id="VIXCLS").sort("available_at")
            return held["value"].to_list()

        assert known(moment + timedelta(hours=14)) == [24.0]
        assert known(moment + timedelta(hours=15)) == [24.0, 45.0]
        assert graph.store.newest_macro(moment)["value"].to_list().count(24.0) == 1


def test_a_revision_reported_later_makes_stale_what_could_have_known_it(new_graph, world):
    revision = (
        world.macro.filter(series_id="DFF")
        .tail(1)
        .with_columns(
            available_at=pl.lit(midnight(date(2019, 6, 12)) + timedelta(hours=9)).cast(
                pl.Datetime("us", "UTC")
            ),
            time=pl.lit(midnight(date(2019, 6, 10))).cast(pl.Datetime("us", "UTC")),
            value=pl.lit(9.0),
        )
    )
    world_now = world.but(
        macro=pl.concat([world.macro, revision]).unique(["series_id", "time", "available_at"])
    )
    with new_graph(world) as graph, new_graph(world_now) as truth:
        graph.run()
        graph.source.world = world_now
        graph.run(date(2019, 6, 12), date(2019, 6, 13), ["macro_indicators"])
        assert graph.pending("state_vectors_1d") == days(date(2019, 6, 12), END)
        assert all(graph.pending(asset) == [] for asset in DERIVED[:-1])
        graph.run()
        truth.run()
        assert_same_tables(graph.tables(), truth.tables())


# -- splits ---------------------------------------------------------------------------------------


def split_known(world, universe):
    """The same world in which AAA splits two for one on SPLIT_DAY."""
    ex = midnight(SPLIT_DAY)
    after = (pl.col("symbol") == "AAA") & (pl.col("time") >= ex)
    bars = world.bars.with_columns(
        *(
            pl.when(after).then(pl.col(p) / 2).otherwise(p).alias(p)
            for p in ("open", "high", "low", "close")
        ),
        pl.when(after).then(pl.col("volume") * 2).otherwise("volume").alias("volume"),
    )
    opened = universe.sessions(SPLIT_DAY, END, ["AAA"])["open"][0]
    action = CORPORATE_ACTIONS.conform(
        pl.DataFrame(
            {
                "symbol": ["AAA"],
                "time": [ex],
                "available_at": [opened],
                "availability_basis": ["assumed"],
                "kind": ["split"],
                "value": [2.0],
                "source": ["made"],
            }
        )
    )
    return world.but(bars=bars, actions=pl.concat([world.actions, action]))


@pytest.fixture(scope="module")
def split(new_graph, world, universe):
    """The graph that knew of the split in time."""
    assert not world.actions.filter(
        pl.col("symbol") == "AAA", pl.col("time") >= midnight(SPLIT_DAY)
    ).height
    with new_graph(split_known(world, universe)) as graph:
        graph.run()
        yield graph


def test_a_split_known_in_time_changes_no_stored_feature(ran, split):
    for asset in ("features_1d", "regime_predictions_1d", "state_vectors_1d"):
        assert_equal(ran.table(asset), split.table(asset), asset)
    after = (pl.col("symbol") == "AAA") & (pl.col("time") >= midnight(SPLIT_DAY))
    own_day = ran.table("indicators_1d").with_columns(
        pl.when(after).then(pl.col(p) / 2).otherwise(p).alias(p) for p in PRICES
    )
    assert_equal(own_day, split.table("indicators_1d"), "indicators_1d")


def test_a_split_reported_late_recomputes_from_its_ex_date(new_graph, split, world, universe):
    in_time = split.source.world
    with new_graph(in_time.but(actions=world.actions)) as graph:
        graph.run()
        features = graph.table("features_1d")
        with pytest.raises(AssertionError):  # without the split, a crash by half
            assert_equal(features, split.table("features_1d"))
        assert features.filter(symbol="AAA")["returns_1d"].min() < -0.4

        graph.source.world = in_time
        graph.run(SPLIT_DAY, SPLIT_DAY + timedelta(days=1), ["corporate_actions"])
        late = days(SPLIT_DAY, END)
        for asset in DERIVED[:2]:
            assert graph.pending(asset) == late
        # Nothing that comes before the ex-date was made stale, however far back it was written.
        assert graph.pending("indicators_1d", LISTED + timedelta(days=200), END) == late

        graph.run()
        assert_same_tables(graph.tables(), split.tables())
        for asset in DERIVED:
            written = graph.query(
                f"SELECT DISTINCT run_id, (time AT TIME ZONE 'UTC')::date >= '{SPLIT_DAY}' AS late"
                f" FROM {asset}"
            )
            assert written.height == 2, asset  # the first run's days and the last one's


# -- restated bars --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asset", "lookback"), [("features_1d", 60), ("state_vectors_1d", 99), ("indicators_1d", 400)]
)
def test_a_restated_bar_makes_exactly_the_dependent_days_stale(
    new_graph, world, universe, asset, lookback
):
    """A bar `lookback` sessions before the window's fourth: its first four depend on it."""
    calendar = sessions(universe)
    fourth = calendar.index(sessions(universe, START)[3])
    day = calendar[fourth - lookback]
    restated = (pl.col("symbol") == "AAA") & (pl.col("time") == midnight(day))
    with new_graph(world) as graph:
        graph.run()
        before = graph.table("ohlcv_1d", day, day + timedelta(days=1))
        graph.source.world = world.but(
            bars=world.bars.with_columns(
                pl.when(restated).then(pl.col("high") * 1.5).otherwise("high").alias("high")
            )
        )
        result = graph.run(day, day + timedelta(days=1), ["ohlcv_1d"])
        assert result.success
        expected = [
            d for d in days(START, END) if len([s for s in calendar if day <= s < d]) <= lookback
        ]
        assert 4 <= len(expected) < len(days(START, END))
        assert graph.pending(asset) == expected

        # The truth of now, and what was held before it was restated.
        now = graph.table("ohlcv_1d", day, day + timedelta(days=1))
        assert now.filter(restated)["high"][0] == before.filter(restated)["high"][0] * 1.5
        moment = graph.query(
            "SELECT superseded_at - interval '1 microsecond' AS t FROM ohlcv_1d_history"
        )
        assert moment.height == 1
        held = graph.store.read(
            "ohlcv_1d", start=day, end=day + timedelta(days=1), as_known_at=moment["t"][0]
        )
        assert held.equals(before)


def test_a_restated_bar_recomputes_to_what_a_fresh_graph_would_say(new_graph, world, universe):
    day = sessions(universe, START)[2]
    restated = (pl.col("symbol") == "BBB") & (pl.col("time") == midnight(day))
    changed = world.but(
        bars=world.bars.with_columns(
            pl.when(restated).then(pl.col(p) * 1.02).otherwise(p).alias(p)
            for p in ("open", "high", "low", "close")
        )
    )
    with new_graph(world) as graph, new_graph(changed) as truth:
        graph.run()
        graph.source.world = changed
        graph.run(day, day + timedelta(days=1), ["ohlcv_1d"])
        assert graph.pending("indicators_1d") == days(day, END)
        graph.run()
        truth.run()
        assert_same_tables(graph.tables(), truth.tables())


# -- documents ------------------------------------------------------------------------------------


def test_documents_count_from_the_moment_they_can_be_seen(new_graph, world):
    """Of the last 24 hours up to the bar's own moment, weighted by confidence and age."""
    closed = midnight(date(2019, 6, 12)) + timedelta(hours=20, minutes=15)
    hour, tick = timedelta(hours=1), timedelta(microseconds=1)
    moments = [
        closed - 24 * hour,
        closed - 24 * hour + tick,
        closed - 6 * hour,
        closed,
        closed + tick,
    ]
    scores = [0.9, 0.8, -0.4, 0.2, -1.0]
    documents = make_documents("AAA", moments, scores, ["news"] * len(moments))
    with new_graph(world.but(documents=documents)) as graph:
        graph.run()
        rows = graph.table("state_vectors_1d").filter(symbol="AAA")
        row = rows.filter(pl.col("time") == midnight(date(2019, 6, 12))).row(0, named=True)
        weights = np.array([0.9, 0.7, 0.6]) * np.array([2.0**-4, 0.5, 1.0])
        expected = (weights * [0.8, -0.4, 0.2]).sum() / weights.sum()
        assert row["sentiment"] == pytest.approx(expected, abs=1e-7)
        assert row["document_count"] == 3
        counts = dict(zip(rows["time"].dt.day(), rows["document_count"], strict=True))
        assert counts == {5: 0, 6: 0, 7: 0, 10: 0, 11: 1, 12: 3, 13: 1, 14: 0}
        assert rows.filter(document_count=0)["sentiment"].to_list() == [0.0] * 5
        news = graph.table("features_1d").filter(symbol="AAA").sort("time")["news_sentiment_24h"]
        assert news.to_list() == rows["sentiment"].to_list()
