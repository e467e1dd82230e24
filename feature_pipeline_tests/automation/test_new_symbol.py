"""A symbol that joins the universe is backfilled alone: providers are asked for it and for nobody
else, the others' rows stay as they are, and in the end all is as if it had been there from the
start."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import date, timedelta

import polars as pl
import pytest

from feature_pipeline.automation.estimate import default_range
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline_tests.assets.support import DERIVED, Graph, assert_equal, assert_same_tables
from feature_pipeline_tests.assets.world import END, INSTRUMENTS, START, make_universe, make_world
from feature_pipeline_tests.automation.runs import Asked, backfill, outlook

NEW = "CCC"
JOINED = date(2018, 11, 1)
EVENTS = ("corporate_actions", "news", "reddit")


@pytest.fixture(scope="module")
def joined_universe():
    return make_universe((*INSTRUMENTS, (NEW, "tech", JOINED)))


@pytest.fixture(scope="module")
def joined_world(joined_universe):
    return make_world(joined_universe)


@pytest.fixture(scope="module")
def undisturbed(new_graph, joined_universe, joined_world):
    """The tables when it was there from the start."""
    with new_graph(joined_world, joined_universe) as graph:
        graph.run()
        yield graph.tables()


@contextmanager
def joins(new_graph, joined_universe, joined_world):
    """The graph before, and the same one after universe.yaml was edited."""
    with new_graph(joined_world, make_universe()) as before:
        before.run()
        after = Graph(before.url, joined_universe, Asked(joined_world))
        yield before, after
        after.close()


def placed(graph: Graph, table: str) -> pl.DataFrame:
    """Where each row of the others lies, when it was recorded and by which run."""
    mine = "symbols = ARRAY['CCC']" if table == "documents" else f"symbol = '{NEW}'"
    return graph.query(
        f"SELECT ctid::text, xmin::text, t::text AS row FROM {table} t WHERE NOT ({mine})"
        " ORDER BY 1"
    )


SOURCES = ("ohlcv_1d", "corporate_actions", "documents")


@pytest.mark.parametrize("named", [False, True])
def test_it_is_fetched_alone(new_graph, joined_universe, joined_world, undisturbed, named):
    with joins(new_graph, joined_universe, joined_world) as (_, graph):
        held = {table: placed(graph, table) for table in SOURCES}
        macro = graph.query("SELECT ctid::text, m::text AS row FROM macro_indicators m ORDER BY 1")
        kept = graph.store.read("indicators_1d", start=START, end=END)
        found, plan = backfill(graph, symbols=[NEW] if named else [])

        # Asked for alone, as far back as others' consumers read; macro series not at all.
        assert {who for _, who, *_ in graph.source.whom} == {NEW}
        assert {what for what, *_ in graph.source.whom} == {"bars", "actions", "news", "reddit"}
        assert min(start for what, _, start, _ in graph.source.whom if what == "bars") == JOINED
        assert {found.work[asset].symbols for asset in ("ohlcv_1d", *EVENTS)} == {(NEW,)}
        assert found.work["macro_indicators"].days.is_empty()
        assert all(found.work[asset].calls == 1 for asset in ("ohlcv_1d", *EVENTS))
        assert len(plan) == 1

        # The others' rows were not touched: same place, same transaction, same moment.
        for table, before in held.items():
            assert placed(graph, table).equals(before), table
        assert graph.query(
            "SELECT ctid::text, m::text AS row FROM macro_indicators m ORDER BY 1"
        ).equals(macro)

        # Computed days are written anew, and of the others nothing changes that does not follow
        # from the new one: indicators are everybody's own.
        mine = pl.col("symbol") == NEW
        indicators = graph.store.read("indicators_1d", start=START, end=END)
        assert_equal(indicators.filter(~mine), kept, "indicators_1d")
        assert indicators.filter(mine).height == 8
        assert_same_tables(graph.tables(), undisturbed)
        assert all(graph.pending(asset) == [] for asset in TABLES)

        # Once more: nobody is asked, nothing is written.
        graph.source.whom.clear()
        again, plan = backfill(graph, symbols=[NEW] if named else [])
        assert (again.partitions, plan, graph.source.whom) == (0, [], [])


def test_without_a_range_it_is_its_own_membership(new_graph, joined_universe, joined_world):
    with joins(new_graph, joined_universe, joined_world) as (_, graph):
        start, end = default_range(graph.store, [NEW])
        assert start == JOINED
        assert end > END
        found = outlook(graph, start, END, symbols=[NEW])
        bars = found.work["ohlcv_1d"]
        assert bars.symbols == (NEW,)
        # Its sessions are as many rows; days of before it joined are not asked for.
        assert bars.rows == graph.universe.sessions(JOINED, END, [NEW]).height
        assert bars.days[0] == JOINED
        assert bars.history == 0


def test_who_joins_while_days_are_missing_is_fetched_alone_where_others_are_right(
    new_graph, joined_universe, joined_world
):
    """The others lack the last days, it lacks them all: two runs, and nobody is asked twice."""
    half = START + timedelta(days=6)
    with new_graph(joined_world, make_universe()) as before:
        before.run(JOINED, half, ["ohlcv_1d"])
        graph = Graph(before.url, joined_universe, Asked(joined_world))
        try:
            found, plan = backfill(graph, JOINED, END, ["ohlcv_1d"])
            assert [(chunk.start, chunk.turn) for chunk in plan] == [(JOINED, 0), (half, 1)]
            asked = {(who, start) for what, who, start, _ in graph.source.whom if what == "bars"}
            assert {start for who, start in asked if who == "AAA"} == {half}
            assert {start for who, start in asked if who == NEW} == {JOINED, half}
            assert found.work["ohlcv_1d"].days.len() == (END - JOINED).days
            assert outlook(graph, JOINED, END, ["ohlcv_1d"]).partitions == 0
        finally:
            graph.close()


def test_features_of_the_others_follow_from_who_joined(undisturbed, ran):
    """What the rewritten days are for: a sector's mean has one member more."""
    others = ran.table("features_1d")
    now = undisturbed["features_1d"].filter(pl.col("symbol") != NEW)
    assert now.select("symbol", "time").equals(others.select("symbol", "time"))
    assert not now.filter(symbol="AAA").equals(others.filter(symbol="AAA"))
    assert set(DERIVED) <= set(TABLES)
