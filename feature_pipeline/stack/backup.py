"""Backup and restore: PostgreSQL's own pg_dump and pg_restore, found, and called as they must be.

Here lives which of them fits a server, what TimescaleDB wants before and after, and what is
refused. What is in a database is nothing to this module: all of it is dumped, but for what Dagster
keeps in a schema of its own. That belongs to who runs Dagster, whose tables the owner of ours need
not even be able to read; and it is there, empty or not, before anybody restores.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import sql

from feature_pipeline.errors import StackError
from feature_pipeline.stack.postgres import wheel_binaries
from feature_pipeline.stack.stack import DAGSTER_SCHEMA
from feature_pipeline.storage import retention
from feature_pipeline.storage.database import Database, for_programs, redact
from feature_pipeline.storage.migrations import ROLES

_THERE = f"""
    SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
        AND n.nspname NOT IN ('information_schema', '{DAGSTER_SCHEMA}')
        AND n.nspname NOT LIKE 'pg\\_%'
        AND NOT EXISTS (
            SELECT FROM pg_depend d
            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
        )
"""
"""How many tables, views and sequences there are, those of extensions and of Dagster apart."""

_DAGSTERS = re.compile(rf"\d+; \d+ \d+ [A-Z ]+ (- (SCHEMA )?)?{DAGSTER_SCHEMA}( |$)")
"""Of pg_restore's list, the lines about Dagster's schema and about what is in it."""


def backup(url: str, file: Path) -> int:
    """Dump a database, in one consistent state, while it is read and written.

    The file is written beside and renamed: a killed backup leaves none.

    Args:
        url: of the database, as who owns the tables.
        file: which there is not yet; readable by nobody else.

    Returns:
        Its bytes.

    Raises:
        StackError: the file is there, there is no fitting pg_dump, or it fails.
        DatabaseError: the database cannot be reached.
    """
    if file.exists():
        raise StackError(f"{file} exists; name another file, or move it away")
    tool = _tool("pg_dump", _major(url))
    draft = file.with_name(f"{file.name}.new")
    ours = f"--exclude-schema={DAGSTER_SCHEMA}"
    try:
        _call([tool, "--format=custom", ours, *_PLAIN, f"--file={draft}"], url)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    return file.stat().st_size


def restore(url: str, file: Path) -> bool:
    """Fill an empty database from a backup, and bring it to the schema of this code.

    On plain PostgreSQL it is one transaction: a killed restore leaves the database empty. With
    TimescaleDB it cannot be: make the database anew. There retention is switched off: it counts
    from when chunks were made, which the backup has, and would drop old ones within a minute.

    Args:
        url: of a database without tables, but for Dagster's; as who is to own them, with
            TimescaleDB as a superuser.
        file: of `backup`, or of pg_dump in its custom format; Dagster's schema in it is left out.

    Returns:
        Whether retention was switched off; `retention.SWITCH_ON` switches it on.

    Raises:
        StackError: there are tables, there is no such file, no fitting pg_restore, or it fails;
            TimescaleDB is not there, or refuses; owners of its jobs are not there.
        DatabaseError: the database cannot be reached.
    """
    from feature_pipeline.resources import prepare_database

    if not file.is_file():
        raise StackError(f"there is no file {file}; name one that `feature-pipeline backup` wrote")
    tool = _tool("pg_restore", _major(url))
    contents = _call([tool, "--list", file])
    timescaledb = re.search(r"\bEXTENSION - timescaledb\b", contents) is not None
    with Database(url) as database:
        with database.connection() as connection:
            found = connection.execute(_THERE).fetchone()
        if found and found[0]:
            raise StackError(
                f"{redact(url)} is not empty: it has {found[0]} tables, views and sequences; name "
                "a new database (of the embedded server: feature-pipeline down --delete, then "
                "restore before up)"
            )
        if timescaledb:
            _make_roles(database, _job_owners(tool, file))
            _prepare(database)
        whole = () if timescaledb else ("--single-transaction",)
        with tempfile.NamedTemporaryFile("w") as wanted:
            ours = (line for line in contents.splitlines(True) if not _DAGSTERS.match(line))
            wanted.writelines(ours)
            wanted.flush()
            chosen = f"--use-list={wanted.name}"
            _call([tool, *_PLAIN, "--exit-on-error", *whole, chosen, file], url)
        if timescaledb:
            _ask(database, retention.SWITCH_OFF)
            _ask(database, "SELECT timescaledb_post_restore()")
    prepare_database(url)
    address, password = for_programs(url)
    with psycopg.connect(address, password=password, autocommit=True) as connection:
        connection.execute("ANALYZE")
    return timescaledb


_PLAIN = ("--no-owner", "--no-privileges", "--no-password")
"""Whose the tables are, and who may read them, is what `migrate` settles on each server."""


_JOBS = re.compile(r"(?ms)^COPY _timescaledb_catalog\.bgw_job \((.*?)\) FROM stdin;\n(.*?)^\\\.$")
"""Of what pg_restore writes, the columns of TimescaleDB's table of jobs, and its rows."""


def _job_owners(tool: Path, file: Path) -> set[str]:
    """Roles that the backup names, quoted as PostgreSQL does: its jobs are rows with an owner."""
    only = ("--data-only", "--schema=_timescaledb_catalog", "--table=bgw_job", "--file=-")
    found = _JOBS.search(_call([tool, *only, file]))
    if not found:
        return set()
    place = found[1].split(", ").index("owner")
    return {row.split("\t")[place] for row in found[2].splitlines()}


def _make_roles(database: Database, needed: Iterable[str], ours: Sequence[str] = ROLES) -> None:
    """Those of ours that are not there, as `sql/roles.sql` makes them on TimescaleDB.

    Raises:
        StackError: others are not there, or the user may make none; nothing is written.
    """
    with database.connection() as connection:
        missing = connection.execute(
            "SELECT n, rolsuper OR rolcreaterole FROM pg_roles, unnest(%s::text[]) n"
            " WHERE rolname = current_user AND to_regrole(n) IS NULL ORDER BY n",
            [list(needed)],
        ).fetchall()
    wanting = [name for name, may in missing if not may or name not in ours]
    if wanting:
        raise StackError(
            f"{database.address}: jobs in the backup belong to {', '.join(wanting)}, not known to "
            f"this server; make them first: CREATE ROLE {wanting[0]} LOGIN"
        )
    for name, _ in missing:
        login = "LOGIN" if name in ours[:2] else "NOLOGIN"
        with suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
            _ask(database, sql.SQL(f"CREATE ROLE {{}} {login}").format(sql.Identifier(name)))


def _prepare(database: Database) -> None:
    try:
        _ask(database, "CREATE EXTENSION IF NOT EXISTS timescaledb")
    except psycopg.Error as error:
        raise StackError(
            "the backup is of a database with TimescaleDB, and this server has none: "
            f"{str(error).splitlines()[0]}; restore it where TimescaleDB of the same version is"
        ) from None
    try:
        _ask(database, "SELECT timescaledb_pre_restore()")
    except psycopg.errors.InsufficientPrivilege as error:
        raise StackError(
            f"{database.address}: only a superuser can restore TimescaleDB "
            f"({error.diag.message_primary}); name one in FEATURE_PIPELINE_OWNER_DATABASE_URL"
        ) from None


def _ask(database: Database, statement: LiteralString | sql.Composed) -> None:
    """On a connection of its own: TimescaleDB takes note of it when one begins."""
    connection = database.dedicated()
    try:
        connection.execute(statement)
    finally:
        connection.close()


def _major(url: str) -> int:
    with Database(url) as database, database.connection() as connection:
        return connection.info.server_version // 10_000


def _tool(name: str, major: int) -> Path:
    """The program of the server's own version, or else of a newer one.

    Of the same one if there is: what a newer one writes an older server may not take.

    Raises:
        StackError: there is none.
    """
    places = [shutil.which(name), f"/usr/lib/postgresql/{major}/bin/{name}"]
    found: dict[int, Path] = {}
    for path in (*(Path(place) for place in places if place), wheel_binaries() / name):
        version = _version(path)
        if version >= major:
            found.setdefault(version, path)
    if not found:
        raise StackError(
            f"there is no {name} for PostgreSQL {major}; install its client programs "
            f"(on Debian: postgresql-client-{major})"
        )
    return found[min(found)]


def _version(path: Path) -> int:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    number = re.search(r"\d+", said.stdout)
    return int(number[0]) if number else 0


def _call(command: Sequence[str | Path], url: str | None = None) -> str:
    """What a program says on its standard output.

    Raises:
        StackError: it fails; in its own words.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    words = [str(word) for word in command]
    if url:
        address, password = for_programs(url)
        words.append(f"--dbname={address}")
        environment["PGPASSWORD"] = password  # an argument could be read by everybody
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, check=False, umask=0o077
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if ": hint: " not in line] or ["no word"]
        first = next((line for line in lines if "error: " in line), lines[-1])
        raise StackError(f"{Path(words[0]).name} failed: {first.partition('error: ')[2] or first}")
    return done.stdout
