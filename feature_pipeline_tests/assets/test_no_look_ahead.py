"""What happens after a moment changes nothing that was there at it, over the whole graph."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from feature_pipeline.schemas import CORPORATE_ACTIONS, MACRO_INDICATORS
from feature_pipeline_tests.assets.support import DERIVED, Graph, assert_equal, before
from feature_pipeline_tests.assets.world import (
    START,
    World,
    make_documents,
    midnight,
)

TABLES = (*DERIVED, "sentiment_scores")
MICROSECOND = timedelta(microseconds=1)

# The moment at which a bar of the window appears is where a leak would show first.
CLOSES = [midnight(START) + timedelta(days=d, hours=20, minutes=15) for d in (1, 2, 5, 6, 7, 8)]
MOMENTS = st.one_of(
    st.integers(0, 9 * 86_400).map(
        lambda seconds: midnight(date(2019, 6, 6)) + timedelta(seconds=seconds, microseconds=1)
    ),
    st.builds(
        lambda t, by: t + by,
        st.sampled_from(CLOSES),
        st.sampled_from([-MICROSECOND, 0 * MICROSECOND]),
    ),
)


def truncated(world: World, moment: datetime) -> World:
    """Nothing happens after the moment."""
    return world.but(
        **{
            name: before(getattr(world, name), moment)
            for name in ("bars", "actions", "documents", "macro")
        }
    )


def perturbed(world: World, moment: datetime, seed: int) -> World:
    """Everything that happens after the moment happens otherwise, and more besides."""
    rng = np.random.default_rng(seed)
    after = pl.col("available_at") > moment
    late = world.bars.filter(after)
    factor = pl.Series(np.exp(rng.normal(0, 0.2, late.height)))
    bars = late.with_columns(
        *(pl.col(p) * factor for p in ("open", "high", "low", "close")),
        volume=(pl.col("volume") * 7).round(),
    )
    # Each symbol splits, and pays, at its next session.
    ex = late.sort("time").group_by("symbol", maintain_order=True).first()
    actions = [
        CORPORATE_ACTIONS.conform(
            ex.select(
                "symbol",
                "time",
                available_at=pl.max_horizontal(
                    pl.col("time") + timedelta(hours=13, minutes=30), pl.lit(moment + MICROSECOND)
                ),
                availability_basis=pl.lit("assumed"),
                kind=pl.lit(kind),
                value=pl.lit(value),
                source=pl.lit("made"),
            )
        )
        for kind, value in (("split", 5.0), ("dividend", 2.0))
    ]
    spread = [moment + MICROSECOND + timedelta(hours=n) for n in range(0, 60, 2)]
    documents = [
        make_documents(
            symbol, spread, [1.0] * len(spread), ["news", "reddit"] * (len(spread) // 2), "late"
        )
        for symbol in world.bars["symbol"].unique()
    ]
    # What was known is revised, and what comes is another number.
    revised = (
        world.macro.filter(~after)
        .with_columns(
            value=pl.col("value") + 11,
            available_at=pl.lit(moment + timedelta(hours=1)).cast(pl.Datetime("us", "UTC")),
        )
        .unique(MACRO_INDICATORS.key)
    )
    other = world.macro.filter(after).with_columns(value=pl.col("value") * -3)
    return World(
        bars=pl.concat([before(world.bars, moment), bars]),
        actions=pl.concat([before(world.actions, moment), *actions]),
        documents=pl.concat(
            [
                before(world.documents, moment),
                world.documents.filter(after).with_columns(title=pl.lit("score -1.0")),
                *documents,
            ]
        ),
        macro=pl.concat([before(world.macro, moment), other, revised]).unique(MACRO_INDICATORS.key),
    )


# A failing example takes seconds: it is shown as it is, not made smaller.
QUICK = {
    "derandomize": True,
    "phases": [Phase.explicit, Phase.generate],
    "suppress_health_check": [HealthCheck.too_slow],
}


def everything(graph: Graph) -> dict[str, pl.DataFrame]:
    """All rows, those of the history before the window included."""
    return graph.tables(TABLES, start=None, end=None)


def assert_unchanged(
    left: dict[str, pl.DataFrame], right: dict[str, pl.DataFrame], moment: datetime
) -> None:
    for asset in TABLES:
        known, again = before(left[asset], moment), before(right[asset], moment)
        assert known.height
        assert_equal(known, again, asset)


@settings(max_examples=5, **QUICK)
@given(moment=MOMENTS, seed=st.integers(0, 1000))
def test_the_future_changes_nothing_that_was_known(new_graph, world, ran, moment, seed):
    with new_graph(perturbed(world, moment, seed)) as graph:
        graph.run()
        assert_unchanged(everything(ran), everything(graph), moment)


@settings(max_examples=2, **QUICK)
@given(moment=MOMENTS)
def test_the_end_of_the_world_changes_nothing_that_was_known(new_graph, world, ran, moment):
    with new_graph(truncated(world, moment)) as graph:
        graph.run()
        assert_unchanged(everything(ran), everything(graph), moment)


# -- the tests above, tested ----------------------------------------------------------------------


def _documents_too_early(*frames):
    *others, scores, macro = frames
    return (*others, scores.with_columns(pl.col("available_at") - timedelta(hours=6)), macro)


def _macro_by_its_date(*frames):
    *others, macro = frames
    return (*others, macro.with_columns(available_at="time"))


def _the_next_close(bars, *others):
    following = pl.col("close").shift(-1).over("symbol", order_by="time")
    return (bars.with_columns(close=pl.coalesce(following, "close")), *others)


@pytest.fixture(scope="module")
def futures(new_graph, new_ran, world):
    """Two graphs that differ in what comes after a moment, and the moment."""
    moment = CLOSES[3]
    with new_ran() as left, new_graph(perturbed(world, moment, 1)) as right:
        right.run()
        assert_unchanged(everything(left), everything(right), moment)
        yield left, right, moment


@pytest.mark.parametrize("leak", [_documents_too_early, _macro_by_its_date, _the_next_close])
def test_a_leak_would_be_noticed(futures, monkeypatch, leak):
    from feature_pipeline.assets import state_vectors

    *graphs, moment = futures
    honest = state_vectors.compute_state_vectors

    def leaking(*asked):
        *frames, timeframe = asked
        return honest(*leak(*frames), timeframe)

    monkeypatch.setattr(state_vectors, "compute_state_vectors", leaking)
    for graph in graphs:
        graph.run(assets=["state_vectors_1d"], versions={"state_vectors_1d": leak.__name__})
    with pytest.raises(AssertionError, match="state_vectors_1d"):
        assert_unchanged(*map(everything, graphs), moment)
