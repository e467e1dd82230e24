"""What was deleted at its source is deleted here: its text, in every place that holds it.

The row stays where it is, with what the table's schema says of an erased one (`TableSchema.erased`)
in the place of what it said; so do its older versions in history and what was rejected of it. What
was derived from the text while it was public stays as well: a score is a fact about that day. All
of a document goes in one transaction of the write contract, with the ledger; the writer does not
let the text come back (`changes.accumulate`).

Whether something was deleted is the source's to say (`RedditSource.gone`), and when it is asked is
the asset's.
"""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import polars as pl
from psycopg import sql

from feature_pipeline.schemas import TableSchema, is_erased
from feature_pipeline.storage import statements
from feature_pipeline.storage.changes import Batch, Writing
from feature_pipeline.storage.reader import midnight

if TYPE_CHECKING:
    from feature_pipeline.storage.store import Store

MOST = 10_000
"""Addresses that are looked up at a time: the newest."""


def held(store: Store, asset: str, source: str, start: date, end: date) -> pl.Series:
    """The addresses of what is held of the days [start, end) and was not erased yet, rejected rows
    included; at most `MOST`, the newest first."""
    table = store.tables[asset]
    rows = store.database.read_frame(
        sql.SQL(
            "SELECT url FROM ("
            " SELECT t.url, (t.{day} AT TIME ZONE 'UTC')::date AS day FROM {table} t"
            " WHERE t.source = {source} AND {own} AND t.{day} >= {start} AND t.{day} < {end}"
            " AND NOT ({erased})"
            " UNION ALL SELECT q.payload->>'url', q.day FROM quarantine q WHERE q.asset = {asset}"
            " AND q.source = {source} AND q.day >= {first} AND q.day < {last}"
            " AND NOT q.payload @> {said}::jsonb"
            ") u WHERE url IS NOT NULL GROUP BY url ORDER BY max(day) DESC, url LIMIT {most}"
        )
        .format(
            day=sql.Identifier(table.day_column),
            table=sql.Identifier(table.table),
            source=sql.Literal(source),
            own=_own(table),
            start=midnight(start),
            end=midnight(end),
            erased=_erased(table),
            asset=sql.Literal(asset),
            first=sql.Literal(start),
            last=sql.Literal(end),
            said=sql.Literal(statements.erased_payload(table)),
            most=sql.Literal(MOST),
        )
        .as_string(None)
    )
    return rows["url"]


def erase(store: Store, asset: str, source: str, urls: frozenset[str]) -> int:
    """Erase what has one of these addresses.

    Args:
        store: where it is.
        asset, source: whose documents.
        urls: addresses that were deleted at the source.

    Returns:
        How many documents lost their text, those in quarantine alone included.

    Raises:
        DatabaseError: the database refused or did not answer; each calendar month is erased, with
            its history and what was rejected of it, or as it was.
    """
    if not urls:
        return 0
    table, token = store.tables[asset], store.ledger.next_token()
    rows = _rows(store, table, source, urls)
    erased = 0
    if rows.height:
        batch = Batch(
            source=source,
            rows=rows.with_columns(
                pl.lit(value, dtype=pl.String).alias(name) for name, value in table.erased.items()
            ),
            days=rows[table.day_column].dt.date().unique().sort(),
            erases=True,
        )
        writing = Writing(token, f"erasure-{token}", code_version="")
        erased = int(store.writer.write(table, writing, [batch])["written"].sum())
    return erased + _rejected(store, table, source, urls)


def _rows(store: Store, table: TableSchema, source: str, urls: frozenset[str]) -> pl.DataFrame:
    query = (
        sql.SQL("SELECT {} FROM {} t WHERE t.source = {} AND {} AND t.url = ANY({})")
        .format(
            sql.SQL(", ").join(sql.Identifier("t", name) for name in table.names),
            sql.Identifier(table.table),
            sql.Literal(source),
            _own(table),
            sql.Literal(sorted(urls)),
        )
        .as_string(None)
    )
    return store.database.read_frame(query).filter(~is_erased(table.erased))


def _rejected(store: Store, table: TableSchema, source: str, urls: frozenset[str]) -> int:
    """Erase what is in quarantine alone; how many documents that were."""
    [identity] = table.identity
    with store.database.connection() as connection:
        found = connection.execute(
            "SELECT DISTINCT payload->>%s FROM quarantine WHERE asset = %s AND source = %s"
            " AND payload->>'url' = ANY(%s) AND NOT payload @> %s::jsonb",
            [identity, table.asset, source, sorted(urls), statements.erased_payload(table)],
        ).fetchall()
        things = pl.DataFrame({identity: [name for (name,) in found if name]})
        statements.erase(connection, table, things.cast(pl.String))
    return things.height


def _own(table: TableSchema) -> sql.Composable:
    conditions = [
        sql.SQL("t.{} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in table.constants.items()
    ]
    return sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("true")


def _erased(table: TableSchema) -> sql.Composable:
    return sql.SQL(" AND ").join(
        sql.SQL("t.{} IS NOT DISTINCT FROM {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in table.erased.items()
    )
