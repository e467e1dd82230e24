"""The graphs and databases of the assets' tests, for what happens around them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from feature_pipeline.features.catalogue import TABLES
from feature_pipeline_tests.assets.support import Graph
from feature_pipeline_tests.assets.world import MadeSource
from feature_pipeline_tests.automation.places import new_place  # noqa: F401


@pytest.fixture(scope="session")
def copied_graph(new_database, universe, world) -> Iterator[Callable]:
    """Makes graphs as they are after one run of the whole window, events and all, without running
    it each time."""
    with new_database() as url:
        first = Graph(url, universe, MadeSource(world), materializations_of=tuple(TABLES))
        first.run()
        first.store.database.close()
        said = memory(first)

        @contextmanager
        def copied(world, **more) -> Iterator[Graph]:
            with new_database(urlsplit(url).path[1:]) as copy:
                graph = Graph(copy, universe, MadeSource(world), **more)
                said.backup(memory(graph))
                yield graph
                graph.close()

        yield copied
        first.instance.dispose()


def memory(graph: Graph) -> sqlite3.Connection:
    """The database of an ephemeral instance's events."""
    return graph.instance.event_log_storage._held_conn.connection.driver_connection
