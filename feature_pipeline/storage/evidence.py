"""What is recorded about rows: who wrote them, when, in which revision, and what they replaced.

Bounded looks for people and audits. Statements and frames only; what they mean for a value is told
by `serving/explain.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime

import polars as pl
from psycopg import sql

from feature_pipeline.schemas import TableSchema
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.reader import midnight


def rows(
    database: Database,
    table: TableSchema,
    columns: Sequence[str],
    days: tuple[date, date],
    *,
    where: Mapping[str, Sequence[str]],
    available_by: datetime,
    limit: int,
) -> pl.DataFrame:
    """The newest rows of a table in [start, end), each with what is recorded about it.

    Args:
        database: where it is.
        table: which one.
        columns: data columns; the key, `available_at`, `availability_basis` and, where there is
            one, `source` come along.
        days: [start, end) of the partition.
        where: column -> the values it may have.
        available_by: only what was available then.
        limit: so many rows.

    Returns:
        Those columns; `recorded_at` (of derived rows: computed at), `run_id`, and the `revision` of
        the row's partition in the ledger, the newest of its sources.
    """
    moment = table.audit[0]
    day = sql.Identifier("t", table.day_column)
    return database.read_frame(
        sql.SQL(
            "SELECT {columns}, t.{moment} AS recorded_at, t.run_id, (SELECT max(l.revision)"
            " FROM partition_ledger l WHERE l.asset = {asset}"
            " AND l.day = ({day} AT TIME ZONE 'UTC')::date) AS revision"
            " FROM {table} t WHERE {conditions} ORDER BY t.available_at DESC, t.time DESC"
            " LIMIT {limit}"
        )
        .format(
            columns=_names(table, columns),
            moment=sql.Identifier(moment),
            asset=sql.Literal(table.asset),
            day=day,
            table=sql.Identifier(table.table),
            conditions=_conditions(table, days, where, available_by),
            limit=sql.Literal(limit),
        )
        .as_string(None)
    )


def replaced(
    database: Database,
    table: TableSchema,
    columns: Sequence[str],
    days: tuple[date, date],
    *,
    where: Mapping[str, Sequence[str]],
    limit: int,
) -> tuple[pl.DataFrame, int]:
    """The versions of rows in [start, end) that later ones replaced, the latest first.

    Returns:
        At most `limit` of them, with `recorded_at`, `superseded_at` and `run_id`; and how many
        there are. None of a table without history.
    """
    if not table.history:
        return pl.DataFrame(), 0
    conditions = _conditions(table, days, where, None)
    history = sql.Identifier(f"{table.table}_history")
    found = database.read_frame(
        sql.SQL(
            "SELECT {}, t.recorded_at, t.superseded_at, t.run_id, count(*) OVER () AS versions"
            " FROM {} t WHERE {} ORDER BY t.superseded_at DESC, t.time DESC LIMIT {}"
        )
        .format(_names(table, columns), history, conditions, sql.Literal(limit))
        .as_string(None)
    )
    return found.drop("versions"), int(found["versions"][0]) if found.height else 0


def ledger_entries(database: Database, asset: str, day: date) -> pl.DataFrame:
    """The ledger's entries of one partition, a row per source: source, rows, revision,
    upstream_revision, code_version, token, run_id, updated_at."""
    return database.read_frame(
        "SELECT source, rows, revision, upstream_revision, code_version, token, run_id, updated_at"
        " FROM partition_ledger WHERE asset = %s AND day = %s ORDER BY source",
        [asset, day],
    )


def _names(table: TableSchema, columns: Sequence[str]) -> sql.Composable:
    always = (*table.key, "time", "available_at", "availability_basis", "source")
    names = dict.fromkeys(n for n in (*always, *columns) if n in table.names)
    return sql.SQL(", ").join(sql.Identifier("t", n) for n in names)


def _conditions(
    table: TableSchema,
    days: tuple[date, date],
    where: Mapping[str, Sequence[str]],
    available_by: datetime | None,
) -> sql.Composable:
    day = sql.Identifier("t", table.day_column)
    conditions = [
        sql.SQL("{} >= {}").format(day, midnight(days[0])),
        sql.SQL("{} < {}").format(day, midnight(days[1])),
    ]
    for name, values in {**{k: [v] for k, v in table.constants.items()}, **where}.items():
        column = sql.Identifier("t", name)
        # A document speaks of several symbols.
        form = "{} && {}" if isinstance(table.column(name).dtype, pl.List) else "{} = ANY({})"
        conditions.append(sql.SQL(form).format(column, sql.Literal(list(values))))
    if available_by is not None:
        conditions.append(sql.SQL("t.available_at <= {}").format(sql.Literal(available_by)))
    return sql.SQL(" AND ").join(conditions)
