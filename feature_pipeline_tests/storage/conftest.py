"""A desk: a store on a fresh database with the toy tables and a clock that stands still."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from feature_pipeline.storage.database import Database
from feature_pipeline.storage.store import Store
from feature_pipeline_tests.storage.support import TOY, Clock, Desk, audit, universe


@pytest.fixture
def database(migrated_database_url: str) -> Iterator[Database]:
    with Database(migrated_database_url, 20) as opened:
        yield opened


@pytest.fixture
def desk(database: Database) -> Iterator[Desk]:
    """Whatever a test does, in the end the ledger says what the tables hold."""
    clock = Clock()
    store = Store(
        database, universe("A", "BB", "CCC"), TOY, wait=timedelta(seconds=20), clock=clock
    )
    yield Desk(store, clock)
    audit(database, store.tables)
