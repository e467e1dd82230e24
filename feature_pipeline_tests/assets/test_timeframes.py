"""Intraday bars through the whole graph: in one run, day by day, cut off, with a session lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from feature_pipeline.assets import recency
from feature_pipeline.assets.checks import checks_of
from feature_pipeline.assets.completeness import row_count
from feature_pipeline.assets.judgements import no_future
from feature_pipeline.assets.verdicts import audit
from feature_pipeline.automation.estimate import EstimateError, default_range, estimate
from feature_pipeline.automation.publishing import snapshot
from feature_pipeline.features.catalogue import ALL_TABLES
from feature_pipeline.partitions import days
from feature_pipeline.resources import code_versions
from feature_pipeline.storage import retention
from feature_pipeline.storage.store import Store
from feature_pipeline_tests.assets.support import assert_same_tables, before, failure
from feature_pipeline_tests.assets.world import (
    SPLIT_DAY,
    make_universe,
    within_sessions,
)

TIMEFRAMES = ("1d", "1h", "5m")
# The day before a split, the split's, and the day after.
START, END = date(2019, 6, 10), date(2019, 6, 13)
LOST = ("BBB", date(2019, 6, 10))
INTRADAY = tuple(name for name, t in ALL_TABLES.items() if t.timeframe in ("1h", "5m"))
BARS = tuple(name for name in INTRADAY if name.startswith("ohlcv"))
DERIVED = tuple(name for name in INTRADAY if name not in BARS)
EVENTS = ("corporate_actions", "news", "reddit", "sentiment_scores", "macro_indicators")
ASSETS = (*INTRADAY, *EVENTS, "insider_transactions")


NOW = datetime(2019, 6, 20, tzinfo=UTC)
"""Bars of an hour and less are not collected for ever."""


@pytest.fixture(scope="module")
def then(new_graph, trading):
    """Makes graphs that live shortly after the world's end."""

    @contextmanager
    def made(world, **more):
        with new_graph(world, trading, **more) as graph:
            graph.store.clock = lambda: NOW
            yield graph

    return made


@pytest.fixture(scope="module")
def trading():
    return make_universe(timeframes=TIMEFRAMES)


@pytest.fixture(scope="module")
def minutes(trading, world):
    """Bars of an hour and of five minutes; one session of one symbol was lost."""
    made = {}
    for timeframe, since in (("1h", date(2018, 9, 1)), ("5m", date(2019, 5, 1))):
        frame = within_sessions(trading, world, [timeframe], since).intraday[timeframe]
        lost = (pl.col("symbol") == LOST[0]) & (pl.col("time").dt.date() == LOST[1])
        made[timeframe] = frame.filter(~lost)
    return world.but(intraday=made)


@pytest.fixture(scope="module")
def ran(then, minutes):
    with then(minutes) as graph:
        graph.run(START, END, ASSETS)
        yield graph


def test_what_the_provider_has_is_there_and_nothing_else(ran, minutes):
    for timeframe in ("1h", "5m"):
        wanted = minutes.intraday[timeframe].filter(
            pl.col("time").dt.date().is_between(START, END, closed="left")
        )
        bars = ran.table(f"ohlcv_{timeframe}", START, END)
        assert bars.select("symbol", "time", "close").equals(
            wanted.select("symbol", "time", "close").sort("symbol", "time")
        )
        assert (bars["session"] == bars["time"].dt.date()).all()
        for asset in DERIVED:
            if asset.endswith(timeframe):
                key = ["symbol", "time", "available_at", "session"]
                assert ran.table(asset, START, END).select(key).equals(bars.select(key)), asset
    assert ran.query("SELECT count(*) AS n FROM ohlcv_1d")["n"].item() == 0, "another job's"


def test_windows_count_bars_and_a_split_is_none_of_them(ran, trading, minutes):
    """By hand: the closes on the grid, each minute without a trade at the price before it, or
    before a session's first trade at its open."""
    bars = minutes.intraday["1h"].filter(symbol="YOUNG").to_dicts()
    traded = {row["time"]: row for row in bars}
    grid = trading.bars("1h", date(2019, 6, 3), END, ["YOUNG"])
    closes: dict[datetime, float] = {}
    price = 0.0
    for time, session in grid.select("time", "session").rows():
        first = next(row for row in bars if row["time"].date() == session)
        if time in traded:
            price = traded[time]["close"]
        elif time < first["time"]:
            price = first["open"]
        closes[time] = price / (2.0 if session < SPLIT_DAY else 1.0)
    assert not grid.filter(~pl.col("time").is_in(list(traded))).is_empty()
    moments = list(closes)
    features = ran.table("features_1h", START, END).filter(symbol="YOUNG")
    for row in features.iter_rows(named=True):
        at = moments.index(row["time"])
        for bars_back in (1, 5, 20):
            expected = closes[moments[at]] / closes[moments[at - bars_back]] - 1
            assert row[f"returns_{bars_back}"] == pytest.approx(expected), (row["time"], bars_back)
    returns = features["returns_1"].to_numpy()
    vectors = ran.table("state_vectors_1h", START, END).filter(symbol="YOUNG")
    expected = np.clip(np.log1p(returns), -0.02, 0.02) / 0.02
    assert np.allclose(vectors["log_return"].to_numpy(), expected)


def test_a_lost_session_is_a_gap_and_says_so(ran):
    for asset in BARS:
        exceptions = ran.store.ledger.exceptions(asset, START, END)
        assert exceptions.select("symbol", "day", "status").rows() == [(*LOST, "no_answer")]
    features = ran.table("features_1h", START, END)
    after = features.filter(symbol="BBB")
    assert after["session"].min() > LOST[1]
    assert after["returns_1"].is_not_null().any()
    assert after.filter(pl.col("session") == SPLIT_DAY)["returns_20"].null_count() > 0
    assert features.filter(symbol="AAA")["returns_20"].null_count() == 0


def test_day_by_day_is_the_same(then, on, minutes, ran):
    with then(minutes, on=on) as other:
        for day in days(SPLIT_DAY, END):  # the lost session comes along as history
            other.run(day, day + timedelta(days=1), ASSETS)
        assert_same_tables(
            other.tables(INTRADAY, SPLIT_DAY, END), ran.tables(INTRADAY, SPLIT_DAY, END)
        )
        for asset in DERIVED:
            assert other.pending(asset, SPLIT_DAY, END) == []


def test_parallel_chunks_are_the_same(then, on, minutes, ran):
    def run(day):
        other.run_beside(day, day + timedelta(days=1), ASSETS)

    with then(minutes, on=on) as other, ThreadPoolExecutor(2) as pool:
        list(pool.map(run, days(START, END)))
        assert_same_tables(other.tables(INTRADAY, START, END), ran.tables(INTRADAY, START, END))


def test_nothing_is_known_before_it_could_be(then, minutes, ran):
    """In the middle of a session: what was written by then is what is written with the rest."""
    moment = datetime(2019, 6, 12, 16, 7, tzinfo=UTC)
    cut = minutes.but(
        intraday={name: before(bars, moment) for name, bars in minutes.intraday.items()},
        actions=before(minutes.actions, moment),
        documents=before(minutes.documents, moment),
        macro=before(minutes.macro, moment),
    )
    with then(cut) as other:
        other.run(START, END, ASSETS)
        left, right = (
            {asset: before(g.table(asset, START, END), moment) for asset in INTRADAY}
            for g in (other, ran)
        )
        assert_same_tables(left, right)
        assert all(rows["time"].dt.date().max() == date(2019, 6, 12) for rows in left.values())


def test_bars_that_would_be_dropped_again_are_refused(ran, monkeypatch):
    old = date(2017, 6, 1)
    assert retention.refusal(ran.store.database, "ohlcv_5m", old, NOW.date()) is None
    monkeypatch.setattr(retention, "timescaledb", lambda _: True)  # as if they were
    says = r"ohlcv_5m is kept for 2 years.*start on or after 2017-06-20"
    with pytest.raises(EstimateError, match=says):
        estimate(ran.store, {}, {}, None, old, END, assets=BARS)
    # Without a start they begin with the first ones that are kept, also after midnight.
    start, end = default_range(ran.store, assets=("ohlcv_5m", "ohlcv_1h", "features_1h"))
    assert (start, end) == (date(2017, 6, 21), NOW.date())
    assert default_range(ran.store, assets=("ohlcv_1d",))[0] < date(2017, 6, 20)
    result = ran.run(old, old + timedelta(days=1), ["ohlcv_5m"], check=False)
    step, why = failure(result)
    assert step == "ohlcv_5m"
    assert "start on or after 2017-06-20" in why
    sources = {"made": ran.source}
    versions = code_versions(ran.universe)
    found = estimate(ran.store, versions, sources, ran.source, START, END, assets=BARS)
    assert found.partitions == 0
    found = estimate(
        ran.store, versions, sources, ran.source, START, END, assets=BARS, refetch=True
    )
    assert found.work["ohlcv_5m"].rows == 4 * 78 * 3


def test_behind_bars_that_were_dropped_values_are_missing(then, minutes):
    """A change of code computes the first days that are kept, and makes nothing up."""
    names = [name for name in INTRADAY if name.endswith("_5m")]
    computed = [name for name in names if name in DERIVED]
    with then(minutes) as other:
        other.run(START, END, [*names, *EVENTS, "insider_transactions"])
        before_it = other.table("features_5m", SPLIT_DAY, END)
        with other.store.database.connection() as link:
            for name in names:
                link.execute(
                    "INSERT INTO dropped_days SELECT asset, day, sum(rows) FROM partition_ledger"
                    " WHERE asset = %s AND day < %s GROUP BY asset, day",
                    [name, SPLIT_DAY],
                )
                link.execute(f"DELETE FROM {name} WHERE time < %s", [SPLIT_DAY])
            link.execute("DELETE FROM partition_ledger WHERE asset = ANY(%s) AND day < %s", [
                names, SPLIT_DAY
            ])  # fmt: skip
        versions = dict.fromkeys(computed, "next")
        other.run(SPLIT_DAY, END, computed, versions=versions)
        for name in computed:
            assert other.store.pending(name, START, END, "next").is_empty(), name
        after = other.table("features_5m", SPLIT_DAY, END)
        assert after["time"].equals(before_it["time"])
        looks_back = pl.col("time") < datetime(2019, 6, 11, 15, 10, tzinfo=UTC)  # 20 bars
        known = after.select(looks_back.alias("early"), known=pl.col("returns_20").is_not_null())
        assert (known["known"] != known["early"]).all()
        vectors = other.table("state_vectors_5m", SPLIT_DAY, END).filter(looks_back)
        assert vectors["close"].null_count() == vectors.height > 0
        assert all("close" in missing for missing in vectors["missing"].to_list())


def test_checks_count_by_the_grid(ran):
    lost = row_count(ran.store, audit(ran.store, "ohlcv_5m", START, END))
    assert not lost.passed
    assert not lost.error
    assert f"no bar of {LOST[0]} on {LOST[1]} (the reason is known)" in lost.says
    well = row_count(ran.store, audit(ran.store, "ohlcv_5m", SPLIT_DAY, END))
    assert well.passed
    assert well.numbers["expected"] == 4 * 2 * 78
    for asset in INTRADAY:
        assert no_future(ran.store, audit(ran.store, asset, START, END)).passed
        names = [check.name for check in checks_of(asset)]
        assert "row_count" in names
        assert ("in_range" in names) == asset.startswith("state")


def test_the_newest_of_every_timeframe_is_published(ran):
    vectors = snapshot(ran.store).vectors
    assert list(vectors) == ["5m", "1h", "1d"]
    assert vectors["5m"].height == 4
    assert "session" not in vectors["5m"].columns
    newest = ran.table("state_vectors_5m", START, END).group_by("symbol").agg(pl.col("time").max())
    assert vectors["5m"].select("symbol", "time").equals(newest.sort("symbol"))


def test_while_the_market_is_open_somebody_s_bar_must_be_recent(ran):
    def said(asset, moment):
        desk = replace(ran.store, clock=lambda: moment)
        return recency.freshness(desk, asset)

    # The last session that was written is of the 12th, and the market opens at 13:30 UTC. A bar can
    # be had 15 minutes after its end, and is late half an hour later.
    opening = datetime(2019, 6, 13, 13, 30, tzinfo=UTC)
    for asset in ("ohlcv_5m", "state_vectors_5m"):
        early = said(asset, opening + timedelta(minutes=45))
        assert "is due" not in early.says
        late = said(asset, opening + timedelta(minutes=60))
        assert not late.passed
        assert not late.error
        assert "XNYS is open, the bar of 13:40 UTC is due" in late.says
        assert "2019-06-12 19:55" in late.says
    assert "is due" not in said("ohlcv_1d", opening + timedelta(hours=3)).says
    # Half an hour after a bar that somebody has, nothing is late; nor is it at night.
    open_then = datetime(2019, 6, 12, 16, 0, tzinfo=UTC)
    assert "is due" not in said("ohlcv_5m", open_then).says
    assert "is due" not in said("ohlcv_5m", datetime(2019, 6, 13, 3, tzinfo=UTC)).says


def test_bars_that_are_not_over_and_bars_off_the_grid_are_not_written(ran):
    """In the middle of a session, and with a bar that begins between two others."""
    now = datetime(2019, 6, 12, 16, 7, tzinfo=UTC)
    desk = Store(ran.store.database, ran.universe, ran.store.tables, clock=lambda: now)
    bars = ran.table("ohlcv_5m", date(2019, 6, 12), END).drop("session")
    odd = bars.head(1).with_columns(pl.col("time") + timedelta(minutes=2))
    plan = desk.plan("ohlcv_5m", date(2019, 6, 12), END, run_id="r", code_version="v")
    try:
        checked = desk._check(plan, ran.source.bars(ran.universe.instruments, *plan.window, "5m"))
        late = bars.filter(pl.col("available_at") > now).height
        future = bars.filter(pl.col("time") > now).height
        assert checked.unfinished == late - future > 0
        assert checked.good["available_at"].max() <= now
        one = desk._check(plan, type(ran.source.bars([], *plan.window, "5m"))(odd))
        assert "begins then" in one.quarantined["reason"].item()
    finally:
        plan.intent.close()
