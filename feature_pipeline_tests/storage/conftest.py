"""A desk: a store on a fresh database with the toy tables and a clock that stands still."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from feature_pipeline.storage.database import Database
from feature_pipeline.storage.migrations import migrate
from feature_pipeline.storage.store import Store
from feature_pipeline_tests.storage.support import TOY, Clock, Desk, audit, universe


@pytest.fixture(params=["postgresql", pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated database without rows: the contract holds on both servers."""
    url = {"postgresql": "migrated_database_url", "timescaledb": "migrated_timescaledb_url"}
    with Database(request.getfixturevalue(url[request.param]), 20) as opened:
        yield opened


@pytest.fixture
def migrated_timescaledb_url(timescaledb_url: str) -> Iterator[str]:
    """The same on TimescaleDB, where the tables are hypertables."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(timescaledb_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        url = urlunsplit(urlsplit(timescaledb_url)._replace(path=f"/{name}"))
        migrate(url)
        yield url
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def desk(database: Database) -> Iterator[Desk]:
    """Whatever a test does, in the end the ledger says what the tables hold."""
    clock = Clock()
    store = Store(
        database, universe("A", "BB", "CCC"), TOY, wait=timedelta(seconds=20), clock=clock
    )
    yield Desk(store, clock)
    audit(database, store.tables)
