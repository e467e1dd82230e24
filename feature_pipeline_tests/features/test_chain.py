"""What holds for the whole pure chain, whatever the features are.

No look-ahead, incremental equals full, neither symbol nor row order matters, and a split that was
known changes nothing.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from feature_pipeline.features.catalogue import INDICATORS, TABLES
from feature_pipeline.features.indicators import compute_indicators
from feature_pipeline.features.price_features import compute_features
from feature_pipeline.features.regime import predict_regime
from feature_pipeline.features.state_vector import compute_state_vectors
from feature_pipeline_tests.features.compare import assert_same
from feature_pipeline_tests.features.market import (
    BENCHMARK,
    Market,
    chain,
    companies,
    gap,
    gaps_into,
    make_market,
)

SLOW = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def late(market: Market, rng: np.random.Generator, count: int = 6) -> Market:
    """The market with some bars that arrived up to four days after their session."""
    bars = market.bars.with_row_index("row")
    chosen = rng.choice(bars.height, count, replace=False)
    delay = pl.duration(hours=pl.Series(rng.integers(20, 96, bars.height)))
    hit = pl.col("row").is_in(chosen)
    arrived = pl.when(hit).then(pl.col("available_at") + delay).otherwise("available_at")
    return market.with_frames(bars=bars.with_columns(available_at=arrived).drop("row"))


def known_by(market: Market, moment, rng: np.random.Generator, *, perturb: bool) -> Market:
    """The market as it stood at the moment, or with everything after it made up anew."""
    future = pl.col("available_at") > moment
    if perturb:
        bars = market.bars
        noise = pl.Series(np.exp(rng.normal(0, 0.5, bars.height)))
        bars = bars.with_columns(
            pl.when(future).then(pl.col(c) * noise).otherwise(c).alias(c)
            for c in ("open", "high", "low", "close", "volume")
        )
        events = {
            "actions": market.actions.with_columns(
                value=pl.when(future).then(pl.col("value") * 1.7).otherwise("value")
            ),
            "scores": market.scores.with_columns(
                sentiment=pl.when(future).then(-pl.col("sentiment") / 2).otherwise("sentiment")
            ),
            "macro": market.macro.with_columns(
                value=pl.when(future).then(pl.col("value") + 9).otherwise("value")
            ),
            "insiders": market.insiders.with_columns(
                value=pl.when(future).then(pl.col("value") * 3).otherwise("value")
            ),
        }
        return market.with_frames(bars=bars, **events)
    # A bar that is due and has not arrived is a gap; one of a session to come is not there.
    due = market.bars.filter(~future | (pl.col("time") < moment - timedelta(days=1)))
    unseen = pl.when(~future)
    bars = due.with_columns(
        unseen.then(pl.col(c)).alias(c) for c in due.columns if c not in ("symbol", "time")
    )
    return market.with_frames(
        bars=bars,
        actions=market.actions.filter(~future),
        scores=market.scores.filter(~future),
        macro=market.macro.filter(~future),
        insiders=market.insiders.filter(~future),
    )


@SLOW
@given(
    at=st.floats(0.75, 1.0),
    seed=st.integers(0, 2**16),
    perturb=st.booleans(),
    some_late=st.booleans(),
)
def test_nothing_before_a_moment_depends_on_anything_after_it(at, seed, perturb, some_late):
    rng = np.random.default_rng(seed)
    market = make_market(days=660, symbols=2, seed=seed % 5)
    if some_late:
        market = late(market, rng)
    first, last = market.bars["available_at"].min(), market.bars["available_at"].max()
    moment = first + (last - first) * at
    earlier = pl.col("available_at") <= moment
    then = chain(known_by(market, moment, rng, perturb=perturb))
    for name, full in chain(market):
        assert_same(getattr(then, name).filter(earlier), full.filter(earlier))


def test_a_late_bar_is_a_gap_to_those_that_did_not_wait_for_it(market):
    symbol = "S01"
    times = market.bars.filter(pl.col("symbol") == symbol)["time"].sort()
    hit = (pl.col("symbol") == symbol) & (pl.col("time") == times[600])
    bars = market.bars.with_columns(
        available_at=pl.when(hit)
        .then(pl.col("available_at") + pl.duration(days=5))
        .otherwise("available_at")
    )
    arrived = chain(market.with_frames(bars=bars))
    gone = chain(market.with_frames(bars=gap(market.bars, symbol, [times[600]])))
    before = (pl.col("symbol") == symbol) & pl.col("time").is_in([times[601], times[602]])
    for name, frame in arrived:
        assert_same(frame.filter(before), getattr(gone, name).filter(before))
    # Once it has arrived, nothing is missing any more.
    after = (pl.col("symbol") == symbol) & (pl.col("time") == times[640])
    full = chain(market)
    assert_same(arrived.features.filter(after), full.features.filter(after))
    assert_same(arrived.indicators.filter(after), full.indicators.filter(after))


def tail(frame: pl.DataFrame, since, bars: int) -> pl.DataFrame:
    """The rows from `since` on and, per symbol, `bars` before it."""
    before = pl.col("time") < since
    return frame.filter(~before | (before.cum_sum(reverse=True).over("symbol") <= bars))


def lookback(asset: str, read: str) -> tuple[int, timedelta]:
    found = next(i for i in TABLES[asset].inputs if i.asset == read)
    return found.lookback_bars, timedelta(days=found.lookback_days)


@pytest.mark.parametrize("position", [530, 600, 655, 699])
def test_a_window_with_its_declared_lookback_equals_the_full_history(market, tables, position):
    """Each table read from its inputs as far back as the catalogue says, and no further."""
    calendar = market.bars["time"].unique().sort()
    since = calendar[position]
    new = pl.col("time") >= since

    def bars_of(asset):
        return tail(market.bars, since, lookback(asset, "ohlcv_1d")[0])

    def actions_of(asset):
        reach = calendar[max(0, position - lookback(asset, "corporate_actions")[0])]
        return market.actions.filter(pl.col("time") >= reach)

    def events_of(asset, read, frame):
        return frame.filter(pl.col("available_at") >= since - lookback(asset, read)[1])

    def derived_of(asset, read, frame):
        return tail(frame, since, lookback(asset, read)[0])

    indicators = compute_indicators(bars_of("indicators_1d"), actions_of("indicators_1d"))
    assert_same(indicators.filter(new), tables.indicators.filter(new))
    features = compute_features(
        bars_of("features_1d"),
        actions_of("features_1d"),
        derived_of("features_1d", "indicators_1d", tables.indicators),
        events_of("features_1d", "sentiment_scores", market.scores),
        events_of("features_1d", "insider_transactions", market.insiders),
        market.members,
        BENCHMARK,
        companies(market),
    )
    assert_same(features.filter(new), tables.features.filter(new))
    regime = predict_regime(derived_of("regime_predictions_1d", "indicators_1d", tables.indicators))
    assert_frame_equal(regime.filter(new), tables.regime.filter(new), check_exact=True)
    states = compute_state_vectors(
        bars_of("state_vectors_1d"),
        actions_of("state_vectors_1d"),
        derived_of("state_vectors_1d", "indicators_1d", tables.indicators),
        derived_of("state_vectors_1d", "features_1d", tables.features),
        derived_of("state_vectors_1d", "regime_predictions_1d", tables.regime),
        events_of("state_vectors_1d", "sentiment_scores", market.scores),
        events_of("state_vectors_1d", "macro_indicators", market.macro),
    )
    assert_same(states.filter(new), tables.states.filter(new))


@pytest.mark.parametrize("feature", INDICATORS, ids=lambda f: f.name)
def test_the_lookback_of_each_indicator_is_enough_for_that_indicator(market, tables, feature):
    """Not only the longest of them, which decides what is read."""
    calendar = market.bars["time"].unique().sort()
    for position in range(390, 700, 31):
        since = calendar[position]
        part = tail(market.bars, since, feature.lookback_bars).filter(pl.col("time") <= since)
        at = pl.col("time") == since
        got = compute_indicators(part, market.actions).filter(at)
        close = part.filter(at)["close"].to_numpy()
        scale = close if feature.unit == "price" else 100.0
        full = tables.indicators.filter(at)[feature.column].to_numpy()
        assert (np.abs(got[feature.column].to_numpy() - full) <= 1e-9 * scale).all()


def test_windows_do_not_reach_into_the_symbol_above(market, tables):
    """On frames that begin in the middle, no null of a warm-up keeps the symbols apart."""
    since = market.bars["time"].unique().sort()[450]
    late = {
        name: frame.filter(pl.col("time") >= since)
        for name, frame in (*tables, ("bars", market.bars))
    }
    got = compute_state_vectors(
        late["bars"],
        market.actions,
        late["indicators"],
        late["features"],
        late["regime"],
        market.scores,
        market.macro,
    )
    for name in ("close", "atr", "bb_width"):
        for _, part in got.group_by("symbol"):
            assert part[name].is_null().to_list() == [True] * 99 + [False] * (part.height - 99)


def longest_way(asset):
    """The bars of `asset` that its consumers, and theirs, read before a day they compute."""
    return max(
        (
            reader.lookback_bars + longest_way(table.asset)
            for table in TABLES.values()
            for reader in table.inputs
            if reader.asset == asset
        ),
        default=0,
    )


def test_the_extension_of_bars_is_enough_for_the_whole_chain():
    """Bars from the extension on give, inside the window, what all bars give."""
    market = make_market(days=1010, symbols=2, seed=3)
    bars = longest_way("ohlcv_1d")
    calendar = market.bars["time"].unique().sort()
    since = calendar[-60]
    reach = calendar[len(calendar) - 60 - bars]
    part = market.with_frames(
        bars=market.bars.filter(pl.col("time") >= reach),
        actions=market.actions.filter(pl.col("time") >= reach),
    )
    window = pl.col("time") >= since
    full = chain(market)
    for name, frame in chain(part):
        assert_same(frame.filter(window), getattr(full, name).filter(window))


@SLOW
@given(seed=st.integers(0, 2**16))
def test_row_order_does_not_matter(market, tables, seed):
    shuffled = {
        name: frame.sample(fraction=1, shuffle=True, seed=seed)
        for name, frame in vars(market).items()
    }
    for name, frame in chain(Market(**shuffled)):
        assert_frame_equal(frame, getattr(tables, name), check_exact=True)


def test_other_symbols_do_not_matter(market, tables):
    """Apart from the sector's mean, a symbol's values need the benchmark and nothing else."""
    alone = pl.col("symbol").is_in([BENCHMARK, "S02"])
    got = chain(
        market.with_frames(bars=market.bars.filter(alone), actions=market.actions.filter(alone))
    )
    for name, frame in got:
        expected = getattr(tables, name).filter(alone)
        assert_frame_equal(
            frame.drop("sector_momentum", strict=False),
            expected.drop("sector_momentum", strict=False),
            check_exact=True,
        )


def test_a_split_known_in_time_changes_no_stored_value(market, tables):
    """The same company, unsplit until the last 50 sessions: a split there leaves the past alone."""
    calendar = market.bars["time"].unique().sort()
    at = calendar[-50]
    hit = (pl.col("symbol") == "S01") & (pl.col("time") >= at)
    bars = market.bars.with_columns(
        *(
            pl.when(hit).then(pl.col(c) / 7).otherwise(c).alias(c)
            for c in ("open", "high", "low", "close")
        ),
        volume=pl.when(hit).then(pl.col("volume") * 7).otherwise("volume"),
    )
    later = (pl.col("symbol") == "S01") & (pl.col("time") >= at) & (pl.col("kind") == "dividend")
    actions = market.actions.with_columns(
        value=pl.when(later).then(pl.col("value") / 7).otherwise("value")
    )
    split = actions.head(1).with_columns(
        symbol=pl.lit("S01"),
        time=pl.lit(at),
        available_at=pl.lit(at) + timedelta(hours=14),
        kind=pl.lit("split"),
        value=pl.lit(7.0),
    )
    got = chain(market.with_frames(bars=bars, actions=pl.concat([actions, split])))
    prices = [c.name for c in TABLES["indicators_1d"].columns if c.unit == "price"]
    same_basis = tables.indicators.with_columns(
        pl.when(hit).then(pl.col(c) / 7).otherwise(c).alias(c) for c in prices
    )
    assert_same(got.indicators, same_basis)
    for name in ("features", "regime", "states"):
        assert_same(getattr(got, name), getattr(tables, name))


def test_no_rows_in_are_no_rows_out(market, tables):
    nothing = market.with_frames(
        bars=market.bars.clear(),
        actions=market.actions.clear(),
        scores=market.scores.clear(),
        macro=market.macro.clear(),
    )
    for name, frame in chain(nothing):
        assert frame.height == 0
        assert frame.schema == getattr(tables, name).schema


def test_bars_alone_leave_the_rest_missing_or_zero(market, tables):
    bare = market.with_frames(
        actions=market.actions.clear(), scores=market.scores.clear(), macro=market.macro.clear()
    )
    states = chain(bare).states
    assert set(states["sentiment"]) == {0.0}
    assert set(states["document_count"]) == {0}
    assert states["vix"].null_count() == states.height
    assert states["missing"].list.contains("vix").all()


def test_gap_rows_are_never_emitted(market):
    times = market.bars["time"].unique().sort()
    broken = market.with_frames(bars=gap(market.bars, "S01", [times[100], times[600]]))
    for _, frame in chain(broken):
        assert frame["available_at"].null_count() == 0
        assert frame.height == market.bars.height - 2
        assert frame.select("symbol", "time").equals(
            gaps_into(frame, broken.bars)
            .drop_nulls("available_at")
            .sort("symbol", "time")
            .select("symbol", "time")
        )
