"""The statements of the write contract: the ledger, history, exceptions and quarantine.

One function per statement, on the connection of the caller's transaction. In which order they come,
and what they are given, is the writer's (`writer.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import psycopg
from psycopg import sql

from feature_pipeline.schemas import UTC_TIME, TableSchema
from feature_pipeline.storage import changes
from feature_pipeline.storage.changes import Batch, Writing
from feature_pipeline.storage.database import copy_in
from feature_pipeline.storage.reader import midnight

_REVISION_LOCK = 0x46505245
"""Held from taking a revision to the commit: revisions become visible in their own order, so that
the newest one seen is a bound for all that were ever taken before it."""


def one(connection: psycopg.Connection, query: str, values: Sequence[object] = ()) -> Any:
    """The single value that a query answers."""
    row = connection.execute(query, values).fetchone()
    assert row is not None
    return row[0]


def ledger_of(connection: psycopg.Connection, table: TableSchema, days: pl.Series) -> pl.DataFrame:
    """The ledger's rows of those days, all sources."""
    rows = connection.execute(
        "SELECT source, day, rows, content_hash, token, code_version FROM partition_ledger"
        " WHERE asset = %s AND day = ANY(%s)",
        [table.asset, days.to_list()],
    ).fetchall()
    return pl.DataFrame(rows, schema=changes.LEDGER, orient="row")


def of_these_days(table: TableSchema, days: pl.Series) -> sql.Composable:
    """WHERE the partition is one of these, as ranges of the partitioning column: those prune
    chunks, a list does not."""
    number = pl.col("day").cast(pl.Int32)
    spans = (
        days.sort()
        .to_frame("day")
        .group_by(number - pl.int_range(pl.len(), dtype=pl.Int32), maintain_order=True)
        .agg(pl.col("day").min().alias("first"), pl.col("day").max().alias("last"))
        .select("first", "last")
    )
    column = sql.Identifier("t", table.day_column)
    ranges = sql.SQL(" OR ").join(
        sql.SQL("{0} >= {1} AND {0} < {2}").format(
            column, midnight(first), midnight(last + timedelta(days=1))
        )
        for first, last in spans.iter_rows()
    )
    constants = [
        sql.SQL("t.{} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in table.constants.items()
    ]
    return sql.SQL("WHERE {}").format(
        sql.SQL(" AND ").join([*constants, sql.SQL("({})").format(ranges)])
    )


def of_these_things(table: TableSchema, rows: pl.DataFrame) -> sql.Composable:
    """JOIN what shares its identity with one of the rows."""
    identity = table.identity or table.key
    return sql.SQL("JOIN {} USING ({})").format(
        things(table, rows, identity), sql.SQL(", ").join(map(sql.Identifier, identity))
    )


def things(table: TableSchema, rows: pl.DataFrame, names: Sequence[str]) -> sql.Composable:
    """A relation `i`: what the rows say under these names, each once."""
    return sql.SQL("(SELECT DISTINCT * FROM unnest({}) AS i ({})) i").format(
        sql.SQL(", ").join(array(rows[name], table.column(name).sql_type) for name in names),
        sql.SQL(", ").join(map(sql.Identifier, names)),
    )


def array(values: pl.Series, sql_type: str) -> sql.Composable:
    """An array literal, put together by Polars: there may be a hundred thousand values."""
    if values.dtype == UTC_TIME:
        values = values.dt.strftime("%Y-%m-%d %H:%M:%S%.6f+00")
    text = values.cast(pl.String).str.replace_all(r'(["\\])', r"\$1")
    elements = ('"' + text + '"').str.join(",").item()
    return sql.SQL("{}::{}[]").format(sql.Literal("{" + elements + "}"), sql.SQL(sql_type))


def remove(
    connection: psycopg.Connection, table: TableSchema, gone: pl.DataFrame, now: datetime
) -> None:
    """Rows that are replaced leave; a source's stay in its history, with the moment they left."""
    types = {name: table.column(name).sql_type for name in table.key}
    connection.execute(
        sql.SQL("CREATE TEMPORARY TABLE gone ({}) ON COMMIT DROP").format(
            sql.SQL(", ").join(
                sql.SQL("{} {}").format(sql.Identifier(n), sql.SQL(t)) for n, t in types.items()
            )
        )
    )
    copy_in(connection, "gone", gone.columns, gone, types)
    connection.execute("ANALYZE gone")
    moment = table.day_column if table.day_column in table.key else "time"
    delete = sql.SQL(
        "DELETE FROM {0} t USING gone g WHERE {1} AND t.{2} BETWEEN {3} AND {4}"
    ).format(
        sql.Identifier(table.table),
        sql.SQL(" AND ").join(
            sql.SQL("t.{0} = g.{0}").format(sql.Identifier(n)) for n in table.key
        ),
        sql.Identifier(moment),
        sql.Literal(gone[moment].min()),
        sql.Literal(gone[moment].max()),
    )
    if not table.history:
        connection.execute(delete)
        return
    connection.execute(
        sql.SQL(
            "WITH d AS ({} RETURNING t.*) INSERT INTO {} ({columns}, superseded_at)"
            " SELECT {columns}, {} FROM d"
        ).format(
            delete,
            sql.Identifier(f"{table.table}_history"),
            sql.Literal(now),
            columns=sql.SQL(", ").join(map(sql.Identifier, (*table.names, *table.audit))),
        )
    )


def erase(connection: psycopg.Connection, table: TableSchema, rows: pl.DataFrame) -> None:
    """Take out of history and quarantine what was deleted at its source: of all that has the
    identity of one of the rows, the columns that `table.erased` names.

    A rejected row keeps its hash: the same content, said again, is that row, and is not kept anew.
    """
    if rows.is_empty():
        return
    identity = table.identity or table.key
    deleted = things(table, rows, identity)
    same = (sql.SQL("t.{0} = i.{0}").format(sql.Identifier(name)) for name in identity)
    said = [
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in table.erased.items()
    ]
    connection.execute(
        sql.SQL("UPDATE {} t SET {} FROM {} WHERE {}").format(
            sql.Identifier(f"{table.table}_history"),
            sql.SQL(", ").join(said),
            deleted,
            sql.SQL(" AND ").join(same),
        )
    )
    rejected = (
        sql.SQL("t.payload->>{} = i.{}::text").format(sql.Literal(name), sql.Identifier(name))
        for name in identity
    )
    connection.execute(
        sql.SQL(
            "UPDATE quarantine t SET payload = t.payload || {}::jsonb FROM {}"
            " WHERE t.asset = {} AND {}"
        ).format(
            sql.Literal(erased_payload(table)),
            deleted,
            sql.Literal(table.asset),
            sql.SQL(" AND ").join(rejected),
        )
    )


def erased_payload(table: TableSchema) -> str:
    """What the payload of a rejected row holds once it is erased, as JSON."""
    return json.dumps(dict(table.erased))


_WRITTEN = """
INSERT INTO partition_ledger AS l (asset, source, day, status, rows, content_hash,
    revision, upstream_revision, code_version, token, run_id, updated_at)
SELECT %(asset)s, source, day, 'written', rows, content_hash,
    revision, upstream_revision, %(code_version)s, %(token)s, %(run_id)s, now()
FROM unnest(%(source)s::text[], %(day)s::date[], %(rows)s::bigint[],
    %(content_hash)s::bigint[], %(revision)s::bigint[], %(upstream_revision)s::bigint[])
    AS u (source, day, rows, content_hash, revision, upstream_revision)
ON CONFLICT (asset, source, day) DO UPDATE SET
    rows = EXCLUDED.rows,
    content_hash = EXCLUDED.content_hash,
    revision = greatest(l.revision, EXCLUDED.revision),
    upstream_revision = EXCLUDED.upstream_revision,
    code_version = EXCLUDED.code_version,
    token = greatest(l.token, EXCLUDED.token),
    run_id = EXCLUDED.run_id,
    updated_at = EXCLUDED.updated_at
"""

# Its rows alone are other ones: what is said of the writing stays.
_TOUCHED = """
UPDATE partition_ledger l SET
    rows = u.rows,
    content_hash = u.content_hash,
    revision = greatest(l.revision, u.revision),
    token = greatest(l.token, %(token)s),
    run_id = %(run_id)s
FROM unnest(%(source)s::text[], %(day)s::date[], %(rows)s::bigint[],
    %(content_hash)s::bigint[], %(revision)s::bigint[])
    AS u (source, day, rows, content_hash, revision)
WHERE l.asset = %(asset)s AND l.source = u.source AND l.day = u.day
"""


def write_ledger(
    connection: psycopg.Connection, table: TableSchema, writing: Writing, entries: pl.DataFrame
) -> None:
    """Enter what each day holds now; a new revision where it `changed`, and only there.

    Of a day that was not written as a `whole`, but for some of its rows, what the ledger says of
    the writing stays: by which code, from which inputs, for whom and when it was collected.
    """
    if entries.is_empty():
        return
    revision = 0
    if entries["changed"].any():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_REVISION_LOCK])
        revision = one(connection, "SELECT nextval('content_revision')")
    upstream = writing.upstream
    if upstream is None:
        upstream = entries.select("day", upstream_revision=pl.lit(0, pl.Int64)).unique()
    entries = entries.with_columns(
        revision=pl.when("changed").then(pl.lit(revision, pl.Int64)).otherwise(0)
    ).join(upstream, on="day", how="left")
    columns = (*changes.CONTENT, "revision", "upstream_revision")
    for statement, some in (
        (_WRITTEN, entries.filter("whole")),
        (_TOUCHED, entries.filter(~pl.col("whole"))),
    ):
        if some.height:
            connection.execute(
                statement,
                {
                    "asset": table.asset,
                    "code_version": writing.code_version,
                    "token": writing.token,
                    "run_id": writing.run_id,
                    **{name: some[name].to_list() for name in columns},
                },
            )


def write_exceptions(
    connection: psycopg.Connection, table: TableSchema, writing: Writing, batch: Batch
) -> pl.Series:
    """Renew the exceptions of the days and symbols asked for: what is mended disappears.

    Returns:
        The days on which others than before are missing.
    """
    condition = "asset = %s AND day = ANY(%s)"
    values: list[object] = [table.asset, batch.days.to_list()]
    there = f"SELECT EXISTS (SELECT FROM partition_exceptions WHERE {condition})"
    if batch.exceptions.is_empty() and not one(connection, there, values):
        return batch.days.clear()
    if batch.asked is not None:  # whoever was asked for them before, and is no longer
        condition += (
            " AND symbol = ANY(%s)"
            " AND (source, symbol) NOT IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
        )
        sources, symbols = zip(*batch.others, strict=True) if batch.others else ((), ())
        values += [list(batch.asked), list(sources), list(symbols)]
    who = ["source", "day", "symbol"]
    deleted = connection.execute(
        f"DELETE FROM partition_exceptions WHERE {condition} RETURNING source, day, symbol", values
    ).fetchall()
    now = batch.exceptions
    if now.height:
        connection.execute(
            "INSERT INTO partition_exceptions (asset, source, day, symbol, status, reason, run_id)"
            " SELECT %s, source, day, symbol, status, reason, %s"
            " FROM unnest(%s::text[], %s::date[], %s::text[], %s::text[], %s::text[])"
            " AS u (source, day, symbol, status, reason)",
            [table.asset, writing.run_id, *(now[n].to_list() for n in changes.EXCEPTIONS)],
        )
    before = pl.DataFrame(deleted, schema={n: changes.EXCEPTIONS[n] for n in who}, orient="row")
    mended, added = before.join(now, on=who, how="anti"), now.join(before, on=who, how="anti")
    return pl.concat([mended["day"], added["day"]]).unique()


def write_quarantine(
    connection: psycopg.Connection,
    table: TableSchema,
    writing: Writing,
    batch: Batch,
    now: datetime,
) -> None:
    """Keep rejected rows; one that was rejected before for the same reason is the same row."""
    if not batch.quarantined.height:
        return
    connection.execute(
        "INSERT INTO quarantine"
        " (asset, source, day, symbol, reason, payload, payload_hash, run_id, recorded_at)"
        " SELECT %s, %s, day, symbol, reason, payload::jsonb,"
        " sha256(convert_to(payload, 'UTF8')), %s, %s"
        " FROM unnest(%s::date[], %s::text[], %s::text[], %s::text[])"
        " AS u (day, symbol, reason, payload)"
        " ON CONFLICT DO NOTHING",
        [
            table.asset,
            batch.source,
            writing.run_id,
            now,
            *(batch.quarantined[n].to_list() for n in ("day", "symbol", "reason", "payload")),
        ],
    )


def write_releases(connection: psycopg.Connection, batch: Batch, now: datetime) -> None:
    """Note down that a person accepted rejected rows; the first word on one stays."""
    for number, because in batch.released.items():
        connection.execute(
            "UPDATE quarantine SET released_at = %s, released_because = %s"
            " WHERE id = %s AND released_at IS NULL",
            [now, because, number],
        )
