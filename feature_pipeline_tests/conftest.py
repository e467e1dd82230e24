"""Real servers for every test: PostgreSQL and Redis in a temporary home, one pair per process."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import redis

from feature_pipeline.stack.postgres import EmbeddedPostgres, root_side
from feature_pipeline.stack.redis import EmbeddedRedis
from feature_pipeline_tests import TIMESCALEDB_VARIABLE
from feature_pipeline_tests.assets.graphs import (  # noqa: F401
    new_database,
    new_graph,
    new_ran,
    new_timescaledb_database,
    on,
    ran,
    universe,
    world,
)
from feature_pipeline_tests.databases import Databases, created
from feature_pipeline_tests.providers.server import ProviderServer

# How long an example takes is the machine's business.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# What the developer's shell says about a real deployment must not reach a test.
for _name in [name for name in os.environ if name.startswith("FEATURE_PIPELINE_")]:
    if not _name.startswith("FEATURE_PIPELINE_TEST_"):
        del os.environ[_name]

# A shell that starts us in the background has us ignore Ctrl-C, `nohup` the end of the terminal,
# and what we start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def make_home() -> Iterator[Callable[[], Path]]:
    """Makes homes for embedded stacks; they are gone after the test."""
    made: list[Path] = []

    def make() -> Path:
        home = Path(tempfile.mkdtemp(prefix="feature_pipeline.")).resolve()
        made.append(home)
        return home

    yield make
    for home in made:
        _remove(home)


def _remove(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    shutil.rmtree(root_side(home), ignore_errors=True)


@pytest.fixture(scope="session")
def _server_home() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="feature_pipeline.")).resolve()
    yield home
    _remove(home)


@pytest.fixture(scope="session")
def postgres_server(_server_home: Path) -> Iterator[EmbeddedPostgres]:
    """The embedded PostgreSQL, started once; durability is off, so do not test crashes on it."""
    server = EmbeddedPostgres(
        _server_home,
        options={"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"},
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_url(postgres_server: EmbeddedPostgres) -> str:
    """Address of the server's maintenance database; make your own databases through it."""
    return postgres_server.database("postgres")


@pytest.fixture
def database_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """An empty database, for this test alone."""
    with created(postgres_server.database("postgres")) as url:
        yield url


@pytest.fixture(scope="session")
def databases(postgres_server: EmbeddedPostgres) -> Iterator[Databases]:
    """Migrated databases that tests take in turn."""
    found = Databases(postgres_server, "migrated_template")
    yield found
    found.close()


@pytest.fixture
def migrated_database_url(databases: Databases) -> Iterator[str]:
    """A database with every table and no row, for this test alone."""
    with databases.one() as url:
        yield url


@pytest.fixture(scope="session")
def redis_server(_server_home: Path) -> Iterator[EmbeddedRedis]:
    """The embedded Redis, started once."""
    server = EmbeddedRedis(_server_home)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """An empty Redis, for this test alone."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def provider_server() -> Iterator[ProviderServer]:
    """A provider of the outside world, on the loopback; tests give it routes and faults."""
    with ProviderServer() as server:
        yield server


@pytest.fixture
def timescaledb_url() -> str:
    """A PostgreSQL with TimescaleDB that the environment names; skips where there is none."""
    url = os.environ.get(TIMESCALEDB_VARIABLE)
    if not url:
        pytest.skip(f"{TIMESCALEDB_VARIABLE} is not set: no TimescaleDB to test against")
    return url


LONGEST = (
    "automation/test_ui_backfill",
    "test_demo",
    "browser/test_ui",
    "stack/test_celery",
    "test_compose",
    "automation/test_bootstrap",
    "automation/test_backfill",
    "stack/test_dagster",
)
"""Minutes each, most of it spent waiting for processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest begin first: at the end, all but one worker would wait for them."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `timescaledb` are skipped, with the reason, where there is none."""
    if item.get_closest_marker("timescaledb") and not os.environ.get(TIMESCALEDB_VARIABLE):
        pytest.skip(f"{TIMESCALEDB_VARIABLE} is not set: no TimescaleDB to test against")
