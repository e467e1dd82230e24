"""However a range is cut into runs, the tables are the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta

import pytest

from feature_pipeline.automation.backfill import chunks
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.partitions import days
from feature_pipeline_tests.assets.support import assert_same_tables
from feature_pipeline_tests.assets.world import END, START
from feature_pipeline_tests.storage.support import compress


@pytest.fixture(scope="module")
def backfilled(ran):
    return ran.tables()


def test_day_by_day_equals_one_backfill(new_graph, on, world, backfilled):
    with new_graph(world, on=on) as graph:
        for day in days(START, END):
            graph.run(day, day + timedelta(days=1))
        assert_same_tables(graph.tables(), backfilled)


@pytest.mark.timescaledb
def test_day_by_day_into_compressed_chunks(new_graph, new_timescaledb_database, world, backfilled):
    with new_graph(world, on=new_timescaledb_database) as graph:
        for day in days(START, END):
            graph.run(day, day + timedelta(days=1))
            compress(graph.store.database)
        assert_same_tables(graph.tables(), backfilled)


def test_newest_day_first_equals_one_backfill(new_graph, world, backfilled):
    with new_graph(world) as graph:
        graph.run(date(2019, 6, 13), END)
        graph.run(START, date(2019, 6, 13))
        assert_same_tables(graph.tables(), backfilled)


def test_parallel_chunks_equal_one_backfill(new_graph, on, world, backfilled):
    plan = chunks(START, END, days_per_run=4)
    assert [c.start for c in plan] == days(START, END)[::4]
    with new_graph(world, on=on) as graph, ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda chunk: graph.run_beside(chunk.start, chunk.end), plan))
        assert_same_tables(graph.tables(), backfilled)


def test_overlapping_runs_at_once_equal_one_backfill(new_graph, world, backfilled):
    middle = START + (END - START) / 2
    spans = [(START, END), (START, middle), (middle - timedelta(days=2), END)]
    with new_graph(world) as graph, ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda span: graph.run_beside(*span), spans))
        assert_same_tables(graph.tables(), backfilled)
        # What a race left to be done, a plain run does.
        graph.run()
        assert_same_tables(graph.tables(), backfilled)
        assert [graph.pending(asset) for asset in TABLES] == [[]] * len(TABLES)
