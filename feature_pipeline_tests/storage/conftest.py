"""A desk: a store on a fresh database with the toy tables and a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from feature_pipeline.storage.database import Database
from feature_pipeline.storage.store import Store
from feature_pipeline_tests.storage.support import TOY, Clock, Desk, audit, universe


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The contract holds on both servers; what a desk is asked also where everything is compressed
    (see `Desk.settle`)."""
    chosen = {mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")}
    if "database" in metafunc.fixturenames and "database" not in chosen:
        names = ["timescaledb"] + ["compressed"] * ("desk" in metafunc.fixturenames)
        marked = [pytest.param(name, marks=pytest.mark.timescaledb) for name in names]
        metafunc.parametrize("database", ["postgresql", *marked], indirect=True)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated database without rows."""
    plain = request.param == "postgresql"
    url = "migrated_database_url" if plain else "migrated_timescaledb_url"
    with Database(request.getfixturevalue(url), 20) as opened:
        yield opened


@pytest.fixture
def migrated_timescaledb_url(new_timescaledb_database: Callable) -> Iterator[str]:
    """The same on TimescaleDB, where the tables are hypertables."""
    with new_timescaledb_database() as url:
        yield url


@pytest.fixture
def desk(database: Database, request: pytest.FixtureRequest) -> Iterator[Desk]:
    """Whatever a test does, in the end the ledger says what the tables hold."""
    clock = Clock()
    store = Store(
        database, universe("A", "BB", "CCC"), TOY, wait=timedelta(seconds=20), clock=clock
    )
    compressed = request.node.callspec.params["database"] == "compressed"
    yield Desk(store, clock, compressed)
    audit(database, store.tables)
