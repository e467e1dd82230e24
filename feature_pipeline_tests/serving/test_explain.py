"""Why a number is what it is: the evidence is complete, and the proof fails on a wrong number."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta

import polars as pl
import pytest

from feature_pipeline.errors import FeatureError
from feature_pipeline.resources import code_versions
from feature_pipeline.serving.explain import Explanation, explain
from feature_pipeline.serving.lookup import Moment
from feature_pipeline.serving.names import every_name, resolve
from feature_pipeline_tests.assets.support import Graph
from feature_pipeline_tests.assets.world import END, LISTED, SPLIT_DAY, START, midnight

DERIVED = [p for p in every_name() if p.asset != "ohlcv_1d"]
LATE = timedelta(hours=23)


def ask(graph: Graph, symbol: str, name: str, day: date | datetime = END) -> Explanation:
    """The explanation as of the end of a day, or of a moment."""
    moment = day if isinstance(day, datetime) else midnight(day) + LATE
    versions = code_versions(graph.universe)
    place = resolve(name)
    return explain(graph.store, symbol, place, Moment(moment), graph.scorer, versions)


@pytest.mark.parametrize("place", DERIVED, ids=lambda p: p.path)
def test_every_number_follows_from_the_rows_that_are_shown(ran, place):
    for symbol, day in (("AAA", 14), ("BBB", 11), ("YOUNG", 12)):
        found = ask(ran, symbol, place.path, date(2019, 6, day))
        assert found.row["time"] == midnight(date(2019, 6, day))
        assert found.recomputed.same, (symbol, found.value, found.recomputed)
        assert found.stale == []
        assert (found.value is None) == bool(found.missing)
        assert found.row["run_id"] == ran.first.run_id
        assert found.ledger[0]["run_id"] == ran.first.run_id
        for needed in found.inputs:
            assert all(row["available_at"] <= found.row["available_at"] for row in needed.newest)
            assert all(row["revision"] > 0 for row in needed.newest)
            assert needed.rows >= len(needed.newest)
        if found.value is None:
            assert "is there, and" not in "".join(found.missing), found.missing


def test_the_evidence_is_exactly_what_was_read(ran):
    found = ask(ran, "AAA", "returns_5d")
    bars, actions = found.inputs
    sessions = ran.universe.sessions(LISTED, END, ["AAA"])["time"].tail(6)
    assert (bars.asset, bars.columns, bars.rows, bars.symbols) == ("ohlcv_1d", ("close",), 6, 1)
    assert (bars.first, bars.last) == (sessions[0], sessions[-1])
    assert [row["time"] for row in bars.newest] == sessions.tail(5).reverse().to_list()
    held = ran.query("SELECT close FROM ohlcv_1d WHERE symbol = 'AAA' ORDER BY time DESC LIMIT 5")
    assert [row["close"] for row in bars.newest] == held["close"].to_list()
    assert actions.asset == "corporate_actions"
    assert found.declaration["computation"] == "total_return(5)"
    assert found.declaration["lookback_bars"] == 5


def test_a_split_in_the_window_is_shown(ran, world):
    splits = world.actions.filter(pl.col("kind") == "split", pl.col("time") == midnight(SPLIT_DAY))
    symbol = splits["symbol"][0]
    found = ask(ran, symbol, "returns_5d", SPLIT_DAY)
    split = next(a for a in found.adjustments if a["kind"] == "split")
    assert (split["value"], split["ex_date"]) == (2.0, midnight(SPLIT_DAY))
    assert abs(found.value) < 0.2
    before = ask(ran, symbol, "returns_1d", SPLIT_DAY - timedelta(days=1))
    assert [a for a in before.adjustments if a["kind"] == "split"] == []


def test_aggregates_over_the_universe_name_how_many(ran):
    bars = ask(ran, "AAA", "market_beta_60d").inputs[0]
    assert bars.symbols == 4
    assert 3 * 61 < bars.rows <= 4 * 61
    assert {row["symbol"] for row in bars.newest} == {"AAA"}


def test_macro_evidence_is_of_the_series_alone(ran):
    found = ask(ran, "AAA", "vix")
    bars, macro = found.inputs
    assert (bars.columns, bars.rows) == ((), 1), "its own bar: the moment"
    assert {row["series_id"] for row in macro.newest} == {"VIXCLS"}
    assert found.value == pytest.approx((macro.newest[0]["value"] - 10) / 70)


def test_a_bar_of_a_source_names_source_and_earlier_versions(restated):
    graph, _ = restated
    found = ask(graph, "AAA", "ohlcv_1d.close", date(2019, 6, 10))
    assert found.row["source"] == "made"
    assert "recorded_at" in found.row
    assert found.inputs == []
    assert found.recomputed is None
    (before,) = found.replaced
    assert before["close"] == pytest.approx(found.value / 1.04)
    assert before["recorded_at"] < before["superseded_at"] == found.row["recorded_at"]


# -- stale ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def restated(new_graph, world) -> Iterator[tuple[Graph, date]]:
    """A graph whose bar of AAA of the 10th was restated, and nothing computed since."""
    day = date(2019, 6, 10)
    bar = (pl.col("symbol") == "AAA") & (pl.col("time") == midnight(day))
    bars = world.bars.with_columns(
        pl.when(bar).then(pl.col(p) * 1.04).otherwise(p).alias(p)
        for p in ("open", "high", "low", "close")
    )
    with new_graph(world) as graph:
        graph.run()
        graph.source.world = world.but(bars=bars)
        graph.run(day, day + timedelta(days=1), ["ohlcv_1d"])
        yield graph, day


def test_what_changed_since_is_named(restated):
    graph, day = restated
    found = ask(graph, "AAA", "returns_1d", date(2019, 6, 11))
    (reason,) = found.stale
    assert reason.startswith(f"ohlcv_1d of {day} changed since: revision ")
    assert not found.recomputed.same, "it follows from the bar as it was"
    bars = found.inputs[0]
    assert bars.replaced_count == 1
    assert bars.replaced[0]["close"] == pytest.approx(bars.newest[1]["close"] / 1.04)
    assert ask(graph, "AAA", "returns_1d", date(2019, 6, 7)).stale == []


def test_other_code_is_named(ran):
    place, versions = resolve("rsi_14"), code_versions(ran.universe) | {"indicators_1d": "new"}
    moment = Moment(midnight(END))
    found = explain(ran.store, "AAA", place, moment, ran.scorer, versions)
    assert found.stale == [
        f"it was computed by code version {found.ledger[0]['code_version']}; new is current"
    ]


def test_a_number_that_does_not_follow_is_called_different(new_graph, world):
    with new_graph(world) as graph:
        graph.run()
        with graph.store.database.connection() as connection:
            connection.execute("UPDATE features_1d SET returns_1d = returns_1d + 1e-7")
        found = ask(graph, "AAA", "returns_1d")
        assert not found.recomputed.same
        assert found.recomputed.value == pytest.approx(found.value - 1e-7)
        assert ask(graph, "AAA", "returns_5d").recomputed.same


# -- missing --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoilt(new_graph, world) -> Iterator[Graph]:
    """AAA's close of 7 June is NaN, BBB does not answer, macro and news of some days are away."""
    bad = (pl.col("symbol") == "AAA") & (pl.col("time") == midnight(date(2019, 6, 7)))
    bars = world.bars.with_columns(
        pl.when(bad).then(float("nan")).otherwise("close").alias("close")
    )
    macro = world.macro.filter(
        (pl.col("series_id") != "DFF") | (pl.col("time") < midnight(date(2019, 5, 28)))
    )
    gone = world.but(bars=bars, macro=macro, silent={"BBB": "timed out after 3 tries"})
    with new_graph(gone) as graph:
        graph.run()
        with graph.store.database.connection() as connection:  # a day that nobody collected
            connection.execute(
                "DELETE FROM partition_ledger WHERE asset = 'reddit' AND day = %s",
                [date(2019, 6, 9)],
            )
            connection.execute(
                "DELETE FROM partition_ledger WHERE asset = 'sentiment_scores' AND day = %s",
                [date(2019, 6, 9)],
            )
            connection.execute("UPDATE features_1d SET social_volume_7d = NULL")
        yield graph


BAD = "ohlcv_1d of 2019-06-07 (AAA): a price is missing or not finite"


def test_a_gap_names_the_rejected_bar(spoilt):
    found = ask(spoilt, "AAA", "returns_5d", date(2019, 6, 11))
    assert found.value is None
    assert found.recomputed.same
    assert found.missing == [BAD]


def test_a_null_is_followed_to_where_it_comes_from(spoilt):
    found = ask(spoilt, "AAA", "rsi", date(2019, 6, 11))
    assert found.missing == ["indicators_1d.rsi_14 of 2019-06-11 is null, because:", BAD]
    found = ask(spoilt, "AAA", "macd", date(2019, 6, 11))
    assert found.missing.count(BAD) == 1


def test_a_session_without_a_row_is_named(spoilt):
    found = ask(spoilt, "AAA", "returns_1d", date(2019, 6, 7))
    assert found.row["time"] == midnight(date(2019, 6, 6))
    assert found.missing == [f"later, {BAD}"]


def test_a_symbol_without_any_row_says_why(spoilt):
    found = ask(spoilt, "BBB", "returns_1d", date(2019, 6, 7))
    assert found.row is None
    assert found.missing[0] == "ohlcv_1d of 2019-06-07 (BBB): timed out after 3 tries"
    assert "more sessions down to" in found.missing[-1]


def test_an_old_macro_value_is_named(spoilt):
    found = ask(spoilt, "MKT", "fed_funds", date(2019, 6, 12))
    assert found.value is None
    (reason,) = found.missing
    assert reason.startswith("the newest DFF was released at 2019-05-")


def test_a_day_of_events_that_nobody_collected_is_named(spoilt):
    found = ask(spoilt, "MKT", "social_volume_7d", date(2019, 6, 12))
    assert found.missing == ["sentiment_scores of 2019-06-09 was not collected; materialise it"]


def test_a_warm_up_is_named(ran):
    found = ask(ran, "YOUNG", "sma_200")
    (reason,) = found.missing
    assert reason.startswith("warm-up: indicators_1d.sma_200 reads 200 sessions of ohlcv_1d, and")
    assert "collected from 2019-03-11 on" in reason


def test_before_the_first_bar(ran):
    found = ask(ran, "YOUNG", "rsi_14", date(2018, 1, 2))
    assert (found.row, found.missing) == (None, ["YOUNG is collected from 2019-03-11 on"])
    found = ask(ran, "AAA", "features_1d.returns_1d", START - timedelta(days=3))
    assert found.row is None
    assert "is not written; materialise it" in found.missing[0]


def test_as_it_was_known_is_refused(ran):
    with pytest.raises(FeatureError, match="--as-of"):
        explain(
            ran.store,
            "AAA",
            resolve("rsi_14"),
            Moment(midnight(END), midnight(END)),
            ran.scorer,
            code_versions(ran.universe),
        )
