"""Migrated databases for tests: emptied for the next test instead of made anew, which takes the
server longer than most tests take."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from feature_pipeline.stack.postgres import EmbeddedPostgres
from feature_pipeline.storage.migrations import migrate

# A database is a copy of the template, row numbers of its catalogues included: whatever a test has
# defined or dropped shows in their counts and newest transactions. TRUNCATE touches pg_class alone.
_CATALOGUES = (
    "pg_attrdef", "pg_attribute", "pg_constraint", "pg_default_acl", "pg_description", "pg_enum",
    "pg_extension", "pg_event_trigger", "pg_index", "pg_inherits", "pg_largeobject_metadata",
    "pg_policy", "pg_proc", "pg_publication", "pg_rewrite", "pg_sequence",
    "pg_trigger", "pg_type",
)  # fmt: skip
_DEFINED = " UNION ALL ".join(
    f"SELECT '{name}', count(*)::text, max(xmin::text::bigint)::text FROM {name}"
    for name in _CATALOGUES
)
# A session's first temporary table makes a schema that stays.
_SCHEMAS = (
    "SELECT nspname, nspowner::text, nspacl::text FROM pg_namespace WHERE nspname !~ '_temp_'"
    " ORDER BY nspname"
)
_RELATIONS = (
    "SELECT oid::text, relname,"
    " concat_ws(' ', relkind, relowner, relacl, reloptions, relispartition)"
    " FROM pg_class WHERE oid >= 16384 AND relkind <> 't' ORDER BY oid"
)
_OF_THE_DATABASE = (
    "SELECT concat_ws(' ', datdba, datacl, datconnlimit, datallowconn),"
    " (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = d.oid)::text,"
    " (SELECT count(*) FROM pg_statistic WHERE starelid >= 16384)::text"
    " FROM pg_database AS d WHERE datname = current_database()"
)
_TABLES = (
    "SELECT oid::regclass::text, pg_relation_size(oid) > 0 FROM pg_class"
    " WHERE oid >= 16384 AND relkind = 'r' AND relnamespace::regnamespace::text"
    " NOT IN ('pg_catalog', 'information_schema', 'pg_toast') ORDER BY 1"
)
_SEQUENCES = (
    "SELECT format('%I.%I', schemaname, sequencename), start_value, last_value FROM pg_sequences"
)


@contextmanager
def created(server: str, template: str = "template1") -> Iterator[str]:
    """The address of a database of its own on a server, a copy of another one; gone afterwards."""
    name = _name()
    with psycopg.connect(server, autocommit=True) as link:
        link.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
        try:
            yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
        finally:
            link.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


class Databases:
    """Migrated databases of one server, without a row, each for one at a time."""

    def __init__(self, server: EmbeddedPostgres, template: str) -> None:
        self._server, self._template = server, template
        self._admin = psycopg.connect(server.database("postgres"), autocommit=True)
        self._admin.execute(f'CREATE DATABASE "{template}"')
        migrate(server.database(template))
        self._free = [self._copy()]
        with self._connected(self._free[0]) as link:
            self._wanted = _state(link)
            self._filled = {name: _content(link, name) for name in _with_rows(link)}

    def close(self) -> None:
        """The databases go with the server."""
        self._admin.close()

    @contextmanager
    def one(self) -> Iterator[str]:
        """The address of one, under a name that nobody had before."""
        if self._free:
            name = _name()
            self._admin.execute(f'ALTER DATABASE "{self._free.pop()}" RENAME TO "{name}"')
        else:
            name = self._copy()
        yield self._server.database(name)
        if self._emptied(name):
            self._free.append(name)
        else:
            self._admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _copy(self) -> str:
        name = _name()
        self._admin.execute(
            f'CREATE DATABASE "{name}" TEMPLATE "{self._template}" STRATEGY file_copy'
        )
        return name

    def _emptied(self, name: str) -> bool:
        """Whether it is as it was made; false where a test has changed more than rows."""
        try:
            with self._connected(name) as link:
                link.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                if _state(link) != self._wanted:
                    return False
                if any(_content(link, table) != held for table, held in self._filled.items()):
                    return False
                written = [table for table in _with_rows(link) if table not in self._filled]
                if written:
                    link.execute(f"TRUNCATE {', '.join(written)} CASCADE")
                for sequence, start, last in link.execute(_SEQUENCES).fetchall():
                    if last is not None:
                        link.execute("SELECT setval(%s, %s, false)", [sequence, start])
                link.execute("SELECT pg_stat_reset()")
                return True
        except psycopg.Error:
            return False

    @contextmanager
    def _connected(self, name: str) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self._server.database(name), autocommit=True) as link:
            yield link


def _name() -> str:
    return f"test_{secrets.token_hex(6)}"


def _state(link: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    questions = (_DEFINED, _SCHEMAS, _RELATIONS, _OF_THE_DATABASE)
    return [row for question in questions for row in link.execute(question).fetchall()]


def _with_rows(link: psycopg.Connection[Any]) -> list[str]:
    return [name for name, written in link.execute(_TABLES).fetchall() if written]


def _content(link: psycopg.Connection[Any], table: str) -> tuple[Any, ...] | None:
    return link.execute(
        f"SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} AS t"
    ).fetchone()
