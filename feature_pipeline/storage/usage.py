"""What the tables hold and how much room they take, with and without TimescaleDB.

Looks only. Row counts of data come from the ledger, which the write contract keeps exact; sizes
from the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

import polars as pl
import psycopg
from psycopg import sql

from feature_pipeline.schemas import POSITION_RECONCILIATION, TableSchema
from feature_pipeline.storage.database import Database

SIZES = ("heap", "indexes", "toast", "total")
"""Bytes of a relation: its rows (with free-space and visibility maps), indexes, large values."""

_SCHEMAS = ("trading", "config", "audit")
"""Of ours, those beside the one of the features."""


def partitions(database: Database) -> pl.DataFrame:
    """Per asset with a written day: `asset`, `rows`, `days`, `first`, `last`, `exceptions` (symbols
    and days without a row), `quarantined` (rejected rows that nobody released)."""
    return database.read_frame(
        """
        SELECT asset, l.rows, l.days, l.first, l.last,
            coalesce(e.count, 0) AS exceptions, coalesce(q.count, 0) AS quarantined
        FROM (
            SELECT asset, sum(rows)::bigint AS rows, count(DISTINCT day) AS days,
                min(day) AS first, max(day) AS last
            FROM partition_ledger GROUP BY asset
        ) l
        LEFT JOIN (SELECT asset, count(*) FROM partition_exceptions GROUP BY asset) e USING (asset)
        LEFT JOIN (SELECT asset, count(*) FROM quarantine WHERE released_at IS NULL GROUP BY asset)
            q USING (asset)
        ORDER BY asset
        """
    )


def relations(
    database: Database, tables: Mapping[str, TableSchema], only: str | None = None
) -> pl.DataFrame:
    """Every table in our schemas and the room it takes, partitions and chunks included.

    Args:
        database: a migrated one.
        tables: asset -> schema, all of the graph.
        only: the one kind to look at.

    Returns:
        `table`, `kind` (data, history, bookkeeping; summary: where it is more than a view; of other
        schemas their name), `rows` (counted; of data tables the ledger's; null of summaries, and
        where they may not be read), SIZES in bytes, `chunks` and `compressed` chunks (null where it
        is no hypertable).
    """
    tables = {**tables, POSITION_RECONCILIATION.asset: POSITION_RECONCILIATION}
    known = {
        **{table.table: "data" for table in tables.values()},
        **{f"{table.table}_history": "history" for table in tables.values() if table.history},
    }
    with database.connection() as connection:
        found = {
            name: (known.get(name) or (schema if schema in _SCHEMAS else "bookkeeping"), readable)
            for name, schema, readable in connection.execute(_TABLES, [list(_SCHEMAS)])
        }
        hypertables, summaries = _hypertables(connection)
        found |= dict.fromkeys(summaries, ("summary", False))
        order = dict.fromkeys((*known, *found))
        rows = [
            {
                "table": name,
                "kind": kind,
                "rows": _rows(connection, name, kind, tables) if readable else None,
                **_sizes(connection, name, hypertable=name in hypertables),
                **hypertables.get(name, {"chunks": None, "compressed": None}),
            }
            for name in order
            if name in found
            for kind, readable in [found[name]]
            if only in (None, kind)
        ]
    numbers = ("rows", *SIZES, "chunks", "compressed")
    return pl.DataFrame(
        rows, schema={"table": pl.String, "kind": pl.String, **dict.fromkeys(numbers, pl.Int64)}
    )


_TABLES = """
    SELECT c.oid::regclass::text, n.nspname, has_table_privilege(c.oid, 'SELECT')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE (n.nspname = current_schema OR n.nspname = ANY(%s))
        AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    ORDER BY n.nspname = current_schema DESC, n.nspname, c.relname
"""


def schema_size(url: str) -> int | None:
    """Bytes of all relations in the schema that a URL leads to: Dagster's storage, for one.

    None where it cannot be asked.
    """
    plain = urlsplit(url)._replace(scheme="postgresql").geturl()
    try:
        with psycopg.connect(plain, connect_timeout=10, autocommit=True) as connection:
            row = connection.execute(
                "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class"
                " WHERE relkind IN ('r', 'm') AND relnamespace = current_schema()::regnamespace"
            ).fetchone()
    except psycopg.Error:
        return None
    return int(row[0]) if row else None


def _rows(
    connection: psycopg.Connection, name: str, kind: str, tables: Mapping[str, TableSchema]
) -> int:
    if kind == "data":
        assets = [table.asset for table in tables.values() if table.table == name]
        row = connection.execute(
            "SELECT coalesce(sum(rows), 0)::bigint FROM partition_ledger WHERE asset = ANY(%s)",
            [assets],
        ).fetchone()
    else:
        row = connection.execute(
            sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(*name.split(".")))
        ).fetchone()
    assert row is not None
    return int(row[0])


def _sizes(connection: psycopg.Connection, name: str, *, hypertable: bool) -> dict[str, int]:
    if hypertable:
        row = connection.execute(
            "SELECT coalesce(sum(table_bytes), 0)::bigint, coalesce(sum(index_bytes), 0)::bigint,"
            " coalesce(sum(toast_bytes), 0)::bigint, coalesce(sum(total_bytes), 0)::bigint"
            " FROM hypertable_detailed_size(%s::regclass)",
            [name],
        ).fetchone()
    else:
        row = connection.execute(
            "SELECT sum(pg_table_size(c.oid) - t.size)::bigint,"
            " sum(pg_indexes_size(c.oid))::bigint, sum(t.size)::bigint,"
            " sum(pg_total_relation_size(c.oid))::bigint"
            " FROM pg_class c CROSS JOIN LATERAL (SELECT coalesce(CASE WHEN c.reltoastrelid <> 0"
            " THEN pg_total_relation_size(c.reltoastrelid) END, 0) AS size) t"
            " WHERE c.oid = %(name)s::regclass"
            " OR c.oid IN (SELECT relid FROM pg_partition_tree(%(name)s::regclass))",
            {"name": name},
        ).fetchone()
    assert row is not None
    return dict(zip(SIZES, map(int, row), strict=True))


def _hypertables(
    connection: psycopg.Connection,
) -> tuple[dict[str, dict[str, int | None]], list[str]]:
    """`chunks` and `compressed` chunks by table, continuous aggregates included; and the names of
    those. Empty without TimescaleDB."""
    there = connection.execute("SELECT FROM pg_extension WHERE extname = 'timescaledb'").fetchone()
    if there is None:
        return {}, []
    found = connection.execute(
        "SELECT format('%%I.%%I', coalesce(a.view_schema, t.schema_name),"
        " coalesce(a.view_name, h.hypertable_name))::regclass::text, count(c.chunk_name),"
        " count(*) FILTER (WHERE c.is_compressed), a.view_name IS NOT NULL"
        " FROM _timescaledb_catalog.hypertable AS t"
        " CROSS JOIN LATERAL (SELECT t.schema_name, t.table_name) AS h (schema, hypertable_name)"
        " LEFT JOIN timescaledb_information.continuous_aggregates AS a"
        " ON (a.materialization_hypertable_schema, a.materialization_hypertable_name)"
        " = (t.schema_name, t.table_name)"
        " LEFT JOIN timescaledb_information.chunks AS c"
        " ON (c.hypertable_schema, c.hypertable_name) = (t.schema_name, t.table_name)"
        " WHERE coalesce(a.view_schema, t.schema_name) = current_schema"
        " OR t.schema_name = ANY(%s) GROUP BY 1, 4 ORDER BY 1",
        [list(_SCHEMAS)],
    ).fetchall()
    counts = {name: {"chunks": chunks, "compressed": done} for name, chunks, done, _ in found}
    return counts, [name for name, *_, summary in found if summary]
