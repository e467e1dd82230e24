"""Databases that outlive a test, and graphs on them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from feature_pipeline_tests.assets.support import Graph
from feature_pipeline_tests.assets.world import MadeSource, World, make_universe, make_world


@pytest.fixture(scope="session")
def new_database(postgres_server, _migrated_template) -> Callable:
    """Makes migrated databases: `with new_database() as url`."""

    @contextmanager
    def database() -> Iterator[str]:
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(postgres_server.database("postgres"), autocommit=True) as link:
            link.execute(
                f'CREATE DATABASE "{name}" TEMPLATE "{_migrated_template}" STRATEGY file_copy'
            )
            yield postgres_server.database(name)
            link.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    return database


@pytest.fixture(scope="session")
def new_graph(new_database) -> Callable:
    """Makes graphs on databases of their own: `with new_graph(world) as graph`."""

    @contextmanager
    def graph(world: World, universe=None, **more) -> Iterator[Graph]:
        with new_database() as url:
            made = Graph(url, universe or make_universe(), MadeSource(world), **more)
            yield made
            made.close()

    return graph


@pytest.fixture(scope="session")
def universe():
    return make_universe()


@pytest.fixture(scope="session")
def world(universe) -> World:
    return make_world(universe)


@pytest.fixture(scope="session")
def ran(new_graph, world) -> Iterator[Graph]:
    """The graph after one run of the whole window; not to be changed."""
    with new_graph(world) as graph:
        graph.first = graph.run()
        yield graph
