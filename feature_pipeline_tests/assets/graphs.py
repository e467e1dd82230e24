"""Databases that outlive a test, and graphs on them: fixtures of the root `conftest.py`, so that
all who look at the graph that ran look at one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest

from feature_pipeline.storage.migrations import migrate
from feature_pipeline_tests import TIMESCALEDB_VARIABLE
from feature_pipeline_tests.assets.support import Graph
from feature_pipeline_tests.assets.world import MadeSource, World, make_universe, make_world
from feature_pipeline_tests.databases import created


@pytest.fixture(scope="session")
def new_database(postgres_server, databases) -> Callable:
    """Makes migrated databases: `with new_database() as url`; or copies of one that nobody uses."""

    @contextmanager
    def database(template: str | None = None) -> Iterator[str]:
        if template is None:
            with databases.one() as url:
                yield url
            return
        with created(postgres_server.database("postgres"), template) as url:
            yield url

    return database


@pytest.fixture(scope="session")
def new_timescaledb_database() -> Callable:
    """The same on TimescaleDB, whose jobs run when a test says so."""

    @contextmanager
    def database() -> Iterator[str]:
        with created(os.environ[TIMESCALEDB_VARIABLE]) as url:
            with psycopg.connect(url, autocommit=True) as ours:
                ours.execute("CREATE EXTENSION timescaledb")
                ours.execute("SELECT _timescaledb_functions.stop_background_workers()")
            migrate(url)
            yield url

    return database


@pytest.fixture(params=["postgresql", pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
def on(request) -> Callable:
    """What makes databases on either server."""
    name = "new_database" if request.param == "postgresql" else "new_timescaledb_database"
    return request.getfixturevalue(name)


@pytest.fixture(scope="session")
def new_graph(new_database) -> Callable:
    """Makes graphs on databases of their own: `with new_graph(world) as graph`."""

    @contextmanager
    def graph(world: World, universe=None, on=new_database, **more) -> Iterator[Graph]:
        with on() as url:
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


@pytest.fixture(scope="session")
def new_ran(new_database, world, ran) -> Callable:
    """Makes graphs that were run as `ran` was and may be changed: `with new_ran() as graph`. Their
    database is a copy, which takes a tenth of the time of a run; their event log is empty."""

    @contextmanager
    def graph() -> Iterator[Graph]:
        ran.store.database.close()  # it opens again with its next use
        with new_database(urlsplit(ran.url).path[1:]) as url:
            made = Graph(url, make_universe(), MadeSource(world))
            yield made
            made.close()

    return graph
