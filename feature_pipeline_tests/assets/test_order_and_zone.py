"""Results do not depend on the order of symbols, nor on the time zones around them."""

from __future__ import annotations

import os
import subprocess
import sys

import polars as pl

from feature_pipeline.features.catalogue import TABLES
from feature_pipeline_tests.assets.support import assert_same_tables
from feature_pipeline_tests.assets.world import INSTRUMENTS, MadeSource, make_universe, make_world


def test_the_order_of_symbols_does_not_matter(new_graph, ran):
    """The same instruments under names that sort the other way, answered the other way around."""
    names = {"AAA": "ZZZ", "BBB": "YYY", "MKT": "CCC", "YOUNG": "AGED"}
    universe = make_universe(
        [(names[i], sector, day) for i, sector, day in reversed(INSTRUMENTS)], names["MKT"]
    )
    renamed = make_world(universe, seeds={new: old for old, new in names.items()})
    back = {new: old for old, new in names.items()}
    with new_graph(renamed, universe) as graph:
        graph.source.reverse = True
        graph.run()
        tables = {
            asset: frame.with_columns(
                pl.col(n).replace(back)
                if n == "symbol"
                else pl.col(n).list.eval(pl.element().replace(back))
                for n in ("symbol", "symbols")
                if n in frame.columns
            ).sort(TABLES[asset].key)
            for asset, frame in graph.tables().items()
        }
    assert_same_tables(tables, ran.tables())


def test_time_zones_do_not_matter(new_graph, new_database, world, universe, ran):
    with new_database() as east, new_database() as west:
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "feature_pipeline_tests.assets.support", url],
                env=os.environ | {"TZ": zone, "PGTZ": zone},
                stderr=subprocess.PIPE,
                text=True,
            )
            for url, zone in ((east, "Asia/Tokyo"), (west, "America/New_York"))
        ]
        for process, url in zip(running, (east, west), strict=True):
            _, error = process.communicate(timeout=120)
            assert process.returncode == 0, error[-2000:]
            from feature_pipeline_tests.assets.support import Graph

            graph = Graph(url, universe, MadeSource(world))
            tables = graph.tables(start=None, end=None)
            ledger = graph.query("SELECT asset, day, rows FROM partition_ledger ORDER BY 1, 2")
            graph.close()
            assert_same_tables(tables, ran.tables(start=None, end=None))
            assert ledger.equals(
                ran.query("SELECT asset, day, rows FROM partition_ledger ORDER BY 1, 2")
            )
