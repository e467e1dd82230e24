"""One bad symbol costs that symbol; a hole is named; nothing is computed on either."""

from __future__ import annotations

from datetime import date, timedelta

import polars as pl
import pytest

from feature_pipeline.features.catalogue import FEATURES, INDICATORS
from feature_pipeline.schemas import STATE_VECTOR_FIELDS
from feature_pipeline.storage.io_manager import FLAGGED_TAG
from feature_pipeline_tests.assets.support import (
    DERIVED,
    assert_equal,
    assert_same_tables,
    failure,
    metadata_of,
)
from feature_pipeline_tests.assets.world import END, START, midnight


def flags(graph, result) -> str | None:
    return graph.instance.get_run_by_id(result.run_id).tags.get(FLAGGED_TAG)


def test_a_good_run_is_not_flagged(ran):
    assert flags(ran, ran.first) is None
    assert ran.query("SELECT * FROM partition_exceptions").is_empty()
    assert ran.query("SELECT * FROM quarantine").is_empty()


# -- a symbol that does not answer ----------------------------------------------------------------


def test_one_silent_symbol_costs_that_symbol(new_graph, world, ran):
    """BBB fails from the second half of the window on."""
    half = date(2019, 6, 11)
    with new_graph(world) as graph:
        graph.run(START, half)
        graph.source.world = world.but(silent={"BBB": "the provider says 503"})
        result = graph.run(half, END)
        assert result.success
        assert flags(graph, result) == "ohlcv_1d"
        assert "503" in metadata_of(result, "ohlcv_1d")["exceptions"].value

        exceptions = graph.query("SELECT day, symbol, status, reason FROM partition_exceptions")
        sessions = graph.universe.sessions(half, END, ["BBB"])["time"].dt.date()
        assert exceptions["day"].sort().to_list() == sessions.to_list()
        assert exceptions.drop("day").unique().rows() == [
            ("BBB", "failed", "the provider says 503")
        ]

        late = pl.col("time") >= midnight(half)
        bad = (pl.col("symbol") == "BBB") & late
        for asset in ("ohlcv_1d", *DERIVED):
            mine, truth = graph.table(asset), ran.table(asset)
            assert mine.filter(bad).is_empty()
            truth = truth.filter(~bad)
            if asset == "features_1d":
                # AAA shares its sector with BBB: the mean is that of the members that are known.
                mates = mine.filter(late & (pl.col("symbol") == "AAA"))
                assert mates.height == 4
                assert mates["sector_momentum"].equals(mates["returns_20d"])
                mine, truth = (f.drop("sector_momentum") for f in (mine, truth))
            assert_equal(mine, truth, asset)

        # Once it answers, a plain re-run mends it.
        graph.source.world = world
        result = graph.run(half, END)
        assert flags(graph, result) is None
        assert graph.query("SELECT * FROM partition_exceptions").is_empty()
        assert_same_tables(graph.tables(), ran.tables())


def test_a_symbol_that_fails_keeps_its_rows(new_graph, world, ran):
    with new_graph(world) as graph:
        graph.run()
        graph.source.world = world.but(silent={"AAA": "timed out"})
        result = graph.run()
        assert result.success
        assert flags(graph, result) == "ohlcv_1d"
        assert_same_tables(graph.tables(), ran.tables())


# -- a bad bar ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoilt(new_graph, world):
    """AAA's close of 7 June, the window's third session, is NaN."""
    bad = (pl.col("symbol") == "AAA") & (pl.col("time") == midnight(date(2019, 6, 7)))
    bars = world.bars.with_columns(
        pl.when(bad).then(float("nan")).otherwise("close").alias("close")
    )
    with new_graph(world.but(bars=bars)) as graph:
        graph.result = graph.run()
        yield graph


def test_a_nan_is_quarantined_with_its_reason(spoilt):
    assert flags(spoilt, spoilt.result) == "ohlcv_1d"
    held = spoilt.query(
        "SELECT asset, day, symbol, reason, payload->>'open' AS open FROM quarantine"
    )
    assert held.drop("open").rows() == [
        ("ohlcv_1d", date(2019, 6, 7), "AAA", "a price is missing or not finite")
    ]
    assert float(held["open"][0]) > 0
    exceptions = spoilt.query("SELECT symbol, day, status FROM partition_exceptions")
    assert exceptions.rows() == [("AAA", date(2019, 6, 7), "quarantined")]
    metadata = metadata_of(spoilt.result, "ohlcv_1d")
    parts = ("written", "unchanged", "duplicate", "unfinished", "quarantined", "fenced")
    assert metadata["rows_quarantined"].value == 1
    assert metadata["rows_input"].value == sum(metadata[f"rows_{p}"].value for p in parts)


def test_after_a_bad_bar_columns_are_null_as_long_as_they_look_back(spoilt, ran):
    for asset, features in (("indicators_1d", INDICATORS), ("features_1d", FEATURES)):
        mine = spoilt.table(asset).filter(symbol="AAA")
        truth = ran.table(asset).filter(symbol="AAA")
        assert mine["time"].dt.day().to_list() == [5, 6, 10, 11, 12, 13, 14]
        assert_equal(mine.head(2), truth.head(2), asset)
        for feature in features:
            bars = "ohlcv_1d" in feature.inputs or feature.lookback_bars
            for ago, value in enumerate(mine[feature.column].tail(5), start=1):
                spoils = bars and ago <= feature.lookback_bars
                if feature.name == "sector_momentum":
                    continue  # BBB's is left
                if feature.name in ("sma_ratio_50", "bb_position"):
                    spoils = True  # they read indicators that the bar has spoilt
                if feature.name == "insider_net_buying_90d":
                    spoils = True  # nobody collects insiders of this world
                assert (value is None) == bool(spoils), (feature.name, ago)
    # It is nobody else's trouble.
    for asset in DERIVED:
        left, right = (
            graph.table(asset).filter(pl.col("symbol") != "AAA") for graph in (spoilt, ran)
        )
        if asset == "features_1d":
            left, right = (f.drop("sector_momentum") for f in (left, right))
        assert_equal(left, right, asset)


def test_the_state_vector_names_what_is_missing(spoilt):
    rows = spoilt.table("state_vectors_1d")
    named = rows.select(
        "missing",
        null=pl.concat_list(
            pl.when(pl.col(f).is_null()).then(pl.lit(f)) for f in STATE_VECTOR_FIELDS
        ).list.drop_nulls(),
    )
    assert named["missing"].to_list() == named["null"].to_list()
    after = rows.filter(pl.col("symbol") == "AAA", pl.col("time") > midnight(date(2019, 6, 7)))
    price = {"close", "atr", "macd", "rsi", "bb_width", "volume_ratio"}
    for missing in after["missing"]:
        assert price <= set(missing)
        assert not {"sentiment", "vix", "fed_funds", "yield_curve"} & set(missing)
    assert [("log_return" in m) for m in after["missing"]] == [True, False, False, False, False]


# -- a hole ---------------------------------------------------------------------------------------


def test_a_day_that_nobody_has_written_is_named(new_graph, world):
    hole = date(2019, 6, 6)
    with new_graph(world) as graph:
        graph.run()
        with graph.store.database.connection() as connection:
            connection.execute("DELETE FROM ohlcv_1d WHERE time = %s", [midnight(hole)])
            connection.execute(
                "DELETE FROM partition_ledger WHERE asset = 'ohlcv_1d' AND day = %s", [hole]
            )
        held = graph.tables(DERIVED)
        result = graph.run(date(2019, 6, 13), END, ["features_1d"], check=False)
        assert not result.success
        step, reason = failure(result)
        assert step == "features_1d"
        assert f"ohlcv_1d of {hole}" in reason
        assert_same_tables(graph.tables(DERIVED), held)

        # The whole graph heals itself: bars are fetched from the hole on.
        graph.run(date(2019, 6, 13), END)
        assert graph.table("ohlcv_1d", hole, hole + timedelta(days=1)).height == 4
