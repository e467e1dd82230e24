"""What a missing bar, day or value costs: null within the column's own lookback, nothing outside.

Never a wrong number.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from feature_pipeline.features.catalogue import FEATURES, INDICATORS
from feature_pipeline_tests.features.compare import assert_values
from feature_pipeline_tests.features.market import BENCHMARK, chain, gap, make_market, uncollected

SYMBOL, AT = "S00", 250


@pytest.fixture(scope="module")
def calendar(market):
    return market.bars["time"].unique().sort()


@pytest.fixture(scope="module")
def broken(market, calendar):
    """The chain with one bar of one symbol gone."""
    return chain(market.with_frames(bars=gap(market.bars, SYMBOL, [calendar[AT]])))


def column(frame: pl.DataFrame, name: str, calendar: pl.Series, symbol: str = SYMBOL) -> pl.Series:
    """The symbol's values by session, null where it has no row."""
    rows = frame.filter(pl.col("symbol") == symbol).select("time", name)
    return calendar.to_frame("time").join(rows, on="time", how="left", maintain_order="left")[name]


@pytest.mark.parametrize("feature", INDICATORS, ids=lambda f: f.name)
def test_an_indicator_is_missing_exactly_while_the_gap_is_in_its_lookback(
    tables, broken, calendar, feature
):
    whole = column(tables.indicators, feature.column, calendar)
    got = column(broken.indicators, feature.column, calendar)
    end = AT + feature.lookback_bars + 1
    assert got[AT:end].null_count() == end - AT
    assert_values(got[:AT], whole[:AT].to_numpy())
    # TA-Lib without the bar is another series; it agrees once the gap is forgotten.
    assert got[end:].null_count() == 0
    close = column(tables.indicators, "sma_200", calendar).max()
    scale = close if feature.unit == "price" else whole.max()
    assert np.abs((got[end:] - whole[end:]).to_numpy()).max() <= 1e-9 * scale


@pytest.mark.parametrize("feature", [f for f in FEATURES if f.lookback_bars], ids=lambda f: f.name)
def test_a_feature_is_missing_exactly_while_the_gap_is_in_its_lookback(
    tables, broken, calendar, feature
):
    whole = column(tables.features, feature.column, calendar)
    got = column(broken.features, feature.column, calendar)
    end = AT + feature.lookback_bars + 1
    assert got[AT:end].null_count() == end - AT
    if feature.name != "sector_momentum":  # the others' mean lacks this one meanwhile
        assert_values(got[:AT], whole[:AT].to_numpy())
    assert_values(got[end:], whole[end:].to_numpy())


def test_documents_and_macro_are_there_although_the_bar_before_is_not(tables, broken, calendar):
    after = slice(AT + 1, AT + 20)
    for name in ("sentiment", "vix", "fed_funds", "yield_curve"):
        got = column(broken.states, name, calendar)[after]
        assert_values(got, column(tables.states, name, calendar)[after].to_numpy())
    assert column(broken.states, "close", calendar)[AT : AT + 100].null_count() == 100


def test_the_others_are_untouched_but_for_their_sector(tables, broken, market):
    others = pl.col("symbol") != SYMBOL
    for name, frame in broken:
        whole = getattr(tables, name).filter(others)
        got = frame.filter(others).drop("sector_momentum", strict=False)
        assert got.equals(whole.drop("sector_momentum", strict=False), null_equal=True)
    peer = pl.col("symbol") == "S02"
    assert broken.features.filter(peer)["sector_momentum"].null_count() == 20


def test_a_gap_of_the_benchmark_makes_every_beta_missing(market, calendar):
    got = chain(market.with_frames(bars=gap(market.bars, BENCHMARK, [calendar[AT]])))
    beta = column(got.features, "market_beta_60d", calendar, "S02")
    # On the day itself the benchmark may just be later; from the next day on it is missing.
    assert beta[AT] is not None
    assert beta[AT + 1 : AT + 61].null_count() == 60
    assert beta[AT + 61] is not None


def test_sessions_that_the_benchmark_does_not_have_are_left_out_of_beta(market, calendar):
    holidays = [calendar[i] for i in (300, 310, 320)]
    closed = (pl.col("symbol") == BENCHMARK) & pl.col("time").is_in(holidays)
    got = chain(market.with_frames(bars=market.bars.filter(~closed)))
    own = column(got.features, "returns_1d", calendar).log1p()
    its = column(got.features, "returns_1d", calendar, BENCHMARK).log1p()
    pair = pl.DataFrame({"y": own, "x": its})[271:331].drop_nulls()
    assert pair.height == 57
    expected = np.cov(pair["y"], pair["x"])[0, 1] / pair["x"].var()
    beta = column(got.features, "market_beta_60d", calendar)[330]
    assert beta == pytest.approx(expected, rel=1e-9)


def test_a_benchmark_that_closes_later_is_not_looked_at_today(market, calendar):
    """The benchmark's bar of the day arrives hours after the symbol's: today's pair is unknown."""
    later = market.bars.with_columns(
        available_at=pl.when(pl.col("symbol") == BENCHMARK)
        .then(pl.col("available_at") + pl.duration(hours=6))
        .otherwise("available_at")
    )
    got = chain(market.with_frames(bars=later)).features
    last = pl.col("time") == calendar[-1]
    moved = later.with_columns(
        close=pl.when((pl.col("symbol") == BENCHMARK) & last)
        .then(pl.col("close") * 2)
        .otherwise("close")
    )
    again = chain(market.with_frames(bars=moved)).features
    mine = pl.col("symbol") == SYMBOL
    assert got.filter(mine).equals(again.filter(mine), null_equal=True)
    assert column(got, "market_beta_60d", calendar)[-1] is not None
    own = column(got, "returns_1d", calendar).log1p()[-60:-1]
    its = column(got, "returns_1d", calendar, BENCHMARK).log1p()[-60:-1]
    expected = np.cov(own, its)[0, 1] / its.var()
    assert column(got, "market_beta_60d", calendar)[-1] == pytest.approx(expected, rel=1e-9)


def test_a_peer_that_closes_later_is_not_in_the_sector_mean(market, calendar):
    later = market.bars.with_columns(
        available_at=pl.when(pl.col("symbol") == "S02")
        .then(pl.col("available_at") + pl.duration(hours=6))
        .otherwise("available_at")
    )
    got = chain(market.with_frames(bars=later)).features
    own, mean = (column(got, name, calendar) for name in ("returns_20d", "sector_momentum"))
    assert_values(mean[60:], own[60:].to_numpy())
    peer = column(got, "returns_20d", calendar, "S02")
    both = column(got, "sector_momentum", calendar, "S02")
    assert_values(both[60:], ((own + peer) / 2)[60:].to_numpy())


def test_a_nan_in_the_middle_is_a_gap_with_a_row(market, calendar):
    hit = (pl.col("symbol") == SYMBOL) & (pl.col("time") == calendar[AT])
    bars = market.bars.with_columns(close=pl.when(hit).then(float("nan")).otherwise("close"))
    got = chain(market.with_frames(bars=bars))
    row = got.indicators.filter(hit)
    assert row.height == 1
    assert row.select(f.column for f in INDICATORS).null_count().sum_horizontal().item() == 14
    for _, frame in got:
        assert (
            not frame.select(pl.selectors.float().is_nan().any())
            .select(pl.any_horizontal(pl.all()))
            .item()
        )
    after = column(got.indicators, "rsi_14", calendar)
    assert after[AT : AT + 295].null_count() == 295
    assert after[AT + 295] is not None


def test_no_volume_is_no_volume_ratio(market, calendar):
    hit = (pl.col("symbol") == SYMBOL) & pl.col("time").is_between(calendar[300], calendar[330])
    bars = market.bars.with_columns(volume=pl.when(hit).then(0.0).otherwise("volume"))
    got = chain(market.with_frames(bars=bars))
    ratio = column(got.features, "volume_ratio_20d", calendar)
    assert ratio[300:331].null_count() == 31
    # The first day with volume again: one twentieth of the sum is its own.
    assert ratio[331] == pytest.approx(20.0)
    state = got.states.filter((pl.col("symbol") == SYMBOL) & (pl.col("time") == calendar[310]))
    assert "volume_ratio" in state["missing"].item().to_list()


def test_a_missing_volume_costs_the_volume_ratio_only(market, calendar):
    hit = (pl.col("symbol") == SYMBOL) & (pl.col("time") == calendar[300])
    bars = market.bars.with_columns(volume=pl.when(~hit).then("volume"))
    got = chain(market.with_frames(bars=bars))
    assert column(got.features, "volume_ratio_20d", calendar)[300:320].null_count() == 20
    assert column(got.features, "volume_ratio_20d", calendar)[320] is not None
    assert column(got.features, "returns_20d", calendar)[300] is not None


def test_flat_prices_have_no_band_position_and_a_position_of_one_half():
    """Flat after a lively year: what TA-Lib's running sums leave behind is no band."""
    market = make_market(days=400, symbols=1, seed=1)
    since = market.bars["time"].unique().sort()[150]
    hit = (pl.col("symbol") == "S00") & (pl.col("time") >= since)
    flat = market.bars.with_columns(
        pl.when(hit).then(4170.3).otherwise(c).alias(c) for c in ("open", "high", "low", "close")
    )
    got = chain(market.with_frames(bars=flat, actions=market.actions.clear()))
    features = got.features.filter(pl.col("symbol") == "S00")
    states = got.states.filter(pl.col("symbol") == "S00")
    assert features["bb_position"][:169].null_count() == 19
    assert features["bb_position"][169:].null_count() == 400 - 169
    assert set(features["volatility_20d"][170:]) == {0.0}
    assert set(states["close"][249:]) == {0.5}
    assert set(states["bb_width"][268:]) == {0.5}


def test_a_day_of_news_not_collected_is_missing_not_zero(market, calendar):
    day = calendar[AT]
    got = chain(market.with_frames(scores=uncollected(market.scores, day)))
    news = column(got.features, "news_sentiment_24h", calendar)
    social = column(got.features, "social_volume_7d", calendar)
    hit = calendar.is_between(day, day + timedelta(days=1))
    assert news.is_null().to_list() == hit.to_list()
    week = calendar.is_between(day, day + timedelta(days=7))
    assert social.is_null().to_list() == week.to_list()
    states = got.states.filter(pl.col("symbol") == SYMBOL)
    assert states["sentiment"].is_null().to_list() == hit.to_list()
    assert states["document_count"].is_null().to_list() == hit.to_list()


def test_a_channel_not_collected_leaves_the_other_alone(market, calendar):
    day = calendar[AT]
    reddit = pl.col("channel") == "reddit"
    scores = pl.concat(
        [
            market.scores.filter(~reddit),
            uncollected(market.scores.filter(reddit), day, channel="reddit"),
        ],
        how="diagonal",
    )
    got = chain(market.with_frames(scores=scores))
    assert column(got.features, "news_sentiment_24h", calendar).null_count() == 0
    assert column(got.features, "social_volume_7d", calendar)[AT] is None
    assert column(got.states, "sentiment", calendar)[AT] is None


def test_actions_not_collected_make_the_prices_of_the_day_a_gap(market, calendar):
    day = calendar[AT]
    got = chain(market.with_frames(actions=uncollected(market.actions, day)))
    for symbol in (SYMBOL, "S03"):
        assert column(got.features, "returns_5d", calendar, symbol)[AT : AT + 6].null_count() == 6
        assert column(got.features, "returns_5d", calendar, symbol)[AT + 6] is not None
    row = got.states.filter((pl.col("symbol") == SYMBOL) & (pl.col("time") == day))
    assert row["vix"].item() is not None
    assert row["close"].item() is None
