"""Bring a database to the schema of `sql/`.

The numbered files are applied once each, in order, by yoyo-migrations. After them, every time:
`sql/summaries.sql`, then `sql/hypertables.sql` and `sql/timescaledb.sql`, where the extension is
there, and `sql/roles.sql`, where roles are or may be made, and so also after these came later. What
a table is stands in the SQL and in `schemas`; a test holds the two together.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import tenacity
from psycopg import errors
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.migrations import Migration, MigrationList, read_migrations

from feature_pipeline.errors import DatabaseError
from feature_pipeline.storage.database import Database

log = logging.getLogger(__name__)

SQL = Path(__file__).parents[2] / "sql"

ROLES = tuple(f"feature_pipeline_{name}" for name in ("owner", "maintainer", "writer", "reader"))
"""Group roles that `sql/roles.sql` grants privileges to, the mightiest first."""

MINIMUM_TIMESCALEDB = (2, 28, 3)
"""Earlier releases had DELETEs on compressed chunks remove wrong rows."""

_LOCK = 0x46505F4D_49475241
"""Key of the advisory lock that a migrating session holds."""

_LOCK_WAIT = "120s"
"""How long to wait for it, and for readers of a table that is altered."""


class _Backend(PostgresqlPsycopgBackend):
    """yoyo's PostgreSQL backend, made safe to kill.

    yoyo applies a migration on a second connection and notes it down afterwards, in another
    transaction; a process killed in between would find its tables there and not know them. And its
    lock is a row, which a killed process leaves behind. Here a migration and its note are one
    transaction, and the lock is the session's.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._ours = connection
        super().__init__(dburi=None, migration_table="_yoyo_migration")

    def connect(self, dburi: object) -> psycopg.Connection[Any]:  # noqa: ARG002
        return self._ours

    def list_tables(self, **_: object) -> list[str]:
        rows = self._ours.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = current_schema"
        )
        return [name for (name,) in rows]

    @contextmanager
    def lock(self, timeout: float = 0) -> Iterator[None]:  # noqa: ARG002
        """Nothing: `_session` holds the advisory lock as long as this backend lives."""
        yield

    def apply_one(self, migration: Migration, force: bool = False, mark: bool = True) -> None:
        self.ensure_internal_schema_updated()
        with self.transaction():
            migration.process_steps(self, "apply", force=force)
            if mark:
                self.mark_one(migration)

    def get_log_data(
        self, migration: Migration | None = None, operation: str = "apply"
    ) -> dict[str, Any]:
        # yoyo asks the password database and the DNS, which a container may not have.
        return {
            "id": str(uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": self._ours.info.user,
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }


def migrate(database_url: str) -> list[str]:
    """Apply what is missing, and the TimescaleDB parts where the extension is.

    Safe to interrupt, to repeat, and to run twice at the same time: each migration is one
    transaction, and the second process waits for the first.

    Returns:
        Names of the migrations that were applied, in order.

    Raises:
        DatabaseError: the database cannot be reached or refuses; the TimescaleDB in it
            is too old.
    """
    with _session(database_url) as connection:
        backend = _Backend(connection)
        waiting = backend.to_apply(_migrations())
        names = [migration.id for migration in waiting]
        for migration in waiting:
            log.info("applying %s", migration.id)
            backend.apply_one(migration)
        _apply(connection, "summaries.sql")
        _apply_timescaledb(connection)
        _apply_roles(connection)
        return names


def pending(database: Database) -> list[str]:
    """Names of the migrations that `migrate` would apply. Changes nothing.

    Raises:
        DatabaseError: the database cannot be reached.
    """
    connection = database.dedicated()
    try:
        rows = connection.execute("SELECT migration_id FROM _yoyo_migration").fetchall()
    except errors.UndefinedTable:
        rows = []
    finally:
        connection.close()
    applied = {name for (name,) in rows}
    return [migration.id for migration in _migrations() if migration.id not in applied]


def _migrations() -> MigrationList:
    found = read_migrations(str(SQL))
    if not found:
        raise DatabaseError(f"no migrations in {SQL}; run from a checkout of the repository")
    return found.filter(lambda migration: re.match(r"\d{4}_", migration.id))


@contextmanager
def _session(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection that alone may migrate, for as long as it is open."""
    with Database(database_url, name="feature_pipeline migrate") as database:
        connection = database.dedicated(patient=True)  # rewriting a large table takes hours
        try:
            with database.explained():
                connection.execute("SELECT set_config('lock_timeout', %s, false)", [_LOCK_WAIT])
                try:
                    connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
                except errors.LockNotAvailable:
                    raise DatabaseError(
                        f"{database.address}: another process has been migrating for {_LOCK_WAIT}; "
                        "wait for it or end it, and migrate again"
                    ) from None
                yield connection
        finally:
            connection.close()


def too_old(version: str) -> bool:
    """Whether it is a TimescaleDB older than `MINIMUM_TIMESCALEDB`."""
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3]) < MINIMUM_TIMESCALEDB


def _apply_timescaledb(connection: psycopg.Connection[Any]) -> None:
    """Hypertables, their policies and summaries, where the extension is; idempotent."""
    row = connection.execute(
        "SELECT installed_version, default_version FROM pg_available_extensions"
        " WHERE name = 'timescaledb'"
    ).fetchone()
    if row is None:
        log.info("TimescaleDB is not available: plain tables")
        return
    installed, available = row
    wanted = ".".join(map(str, MINIMUM_TIMESCALEDB))
    if installed and too_old(installed):
        raise DatabaseError(
            f"TimescaleDB {installed} is too old: releases before {wanted} had DELETEs on "
            "compressed chunks remove wrong rows; upgrade it (ALTER EXTENSION timescaledb UPDATE)"
        )
    preloaded = connection.execute(
        "SELECT setting ~ 'timescaledb' FROM pg_settings WHERE name = 'shared_preload_libraries'"
    ).fetchone()
    if not installed and preloaded == (False,):
        log.warning(
            "TimescaleDB %s is there but not in shared_preload_libraries: plain tables", available
        )
        return
    if not installed and too_old(available):
        log.warning(
            "TimescaleDB %s is there but older than %s: plain tables; install a newer package and "
            "migrate again",
            available,
            wanted,
        )
        return
    connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
    # Not in a transaction: it commits after each table.
    connection.execute((SQL / "hypertables.sql").read_text(encoding="utf-8"))
    _apply(connection, "timescaledb.sql")


@tenacity.retry(
    # With TimescaleDB's background jobs, which read and refresh what is being granted or altered.
    retry=tenacity.retry_if_exception_type(errors.DeadlockDetected),
    stop=tenacity.stop_after_attempt(5),
    wait=tenacity.wait_random(0, 1),
    reraise=True,
)
def _apply(connection: psycopg.Connection[Any], name: str) -> None:
    with connection.transaction():
        connection.execute((SQL / name).read_text(encoding="utf-8"))


def _apply_roles(connection: psycopg.Connection[Any]) -> None:
    """Grant the roles their privileges, where they are or can be made; idempotent."""
    row = connection.execute(
        "SELECT rolsuper OR rolcreaterole,"
        " (SELECT count(*) FROM pg_roles WHERE rolname = ANY(%s))"
        " FROM pg_roles WHERE rolname = current_user",
        [list(ROLES)],
    ).fetchone()
    assert row is not None
    may_create, there = row
    if there < len(ROLES) and not may_create:
        log.info(
            "%s may not create roles: no privileges were granted; see docs/how-to/roles.md",
            connection.info.user,
        )
        return
    _apply(connection, "roles.sql")
