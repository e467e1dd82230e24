"""Whether a row says again, of the same thing, what was said before: an edited article is scored
once more, and is no second article.

Kept in the column `repeated` of what declares `TableSchema.repeats`, because summaries cannot ask
it: a continuous aggregate sees one row at a time. It is no part of a row's content: it follows from
the other rows. Under the writer's lock; what is written at all is the writer's (`writer.py`).
"""

from __future__ import annotations

from datetime import timedelta

import polars as pl
import psycopg
from psycopg import sql

from feature_pipeline.schemas import TableSchema
from feature_pipeline.storage import statements
from feature_pipeline.storage.database import Database

_REDATED = timedelta(days=7)
"""By how much an edit may say that its thing is younger. Nothing is available before its time, so
that older chunks need not be searched."""


def settled(
    database: Database, connection: psycopg.Connection, table: TableSchema, rows: pl.DataFrame
) -> pl.DataFrame:
    """The rows that come, with `repeated`; stored ones that came first until now are marked.

    Args:
        database: where stored rows are read, as they were before the transaction.
        connection: the transaction's.
        table: one with `repeats`.
        rows: they are not stored yet.
    """
    names = list(table.repeats)
    stored = _stored(database, table, rows)
    every = pl.concat(part.select(*names, "available_at") for part in (stored, rows))
    first = every.group_by(names).agg(first=pl.col("available_at").min())
    late = pl.col("available_at") > pl.col("first")
    overtaken = stored.filter(~pl.col("repeated")).join(first, on=names).filter(late)
    if overtaken.height:
        _mark(connection, table, overtaken)
    return rows.join(first, on=names, how="left").select(*rows.columns, repeated=late)


def _stored(database: Database, table: TableSchema, rows: pl.DataFrame) -> pl.DataFrame:
    """Key and `repeated` of the stored rows about the same things."""
    since = rows["time"].min() - _REDATED  # type: ignore[operator]
    query = sql.SQL(
        "SELECT {}, t.repeated FROM {} t JOIN {} USING ({}) WHERE t.available_at >= {}"
    ).format(
        sql.SQL(", ").join(sql.Identifier("t", name) for name in table.key),
        sql.Identifier(table.table),
        statements.things(table, rows.select(table.repeats).unique(), table.repeats),
        sql.SQL(", ").join(map(sql.Identifier, table.repeats)),
        sql.Literal(since),
    )
    return database.read_frame(query.as_string(None))


def _mark(connection: psycopg.Connection, table: TableSchema, keys: pl.DataFrame) -> None:
    """Their days keep their revision, so a summary that is stored is told (see
    `sql/0017_summaries_stay_right.sql`); where it is a view, nobody has to be."""
    connection.execute(
        sql.SQL(
            "WITH marked AS ("
            " UPDATE {} t SET repeated = true FROM {} WHERE {}"
            " AND t.available_at BETWEEN {} AND {}"
            " RETURNING (t.available_at AT TIME ZONE 'UTC')::date AS day"
            ") INSERT INTO summaries_due (asset, day) SELECT DISTINCT {}, day FROM marked"
            " WHERE EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')"
        ).format(
            sql.Identifier(table.table),
            statements.things(table, keys, table.key),
            sql.SQL(" AND ").join(
                sql.SQL("t.{0} = i.{0}").format(sql.Identifier(name)) for name in table.key
            ),
            sql.Literal(keys["available_at"].min()),
            sql.Literal(keys["available_at"].max()),
            sql.Literal(table.asset),
        )
    )
