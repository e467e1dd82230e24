"""The queries that read data tables: by range, as of a moment, as known at a moment, the newest.

Statements only: text in, text out. Values are quoted by psycopg, names come from the schemas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime

from psycopg import sql

from feature_pipeline.errors import SchemaError
from feature_pipeline.schemas import TableSchema


def select(
    table: TableSchema,
    columns: Sequence[str],
    *,
    start: date | None = None,
    end: date | None = None,
    symbols: Sequence[str] | None = None,
    where: Mapping[str, str] | None = None,
    as_of: datetime | None = None,
    as_known_at: datetime | None = None,
) -> str:
    """Rows of a table; the arguments are those of `Store.read`.

    Raises:
        SchemaError: a column is unknown, or `as_known_at` is asked of a table without history.
    """
    for name in columns:
        table.column(name)
    day = sql.Identifier(table.day_column)
    conditions: list[sql.Composable] = [
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in {**table.constants, **(where or {})}.items()
    ]
    if start is not None:
        conditions.append(sql.SQL("{} >= {}").format(day, midnight(start)))
    if end is not None:
        conditions.append(sql.SQL("{} < {}").format(day, midnight(end)))
    if symbols is not None:
        conditions.append(sql.SQL("symbol = ANY({})").format(sql.Literal(list(symbols))))
    if as_of is not None:
        conditions.append(sql.SQL("available_at <= {}").format(sql.Literal(as_of)))
    names = sql.SQL(", ").join(map(sql.Identifier, columns))

    def query(relation: str, *more: sql.Composable) -> sql.Composed:
        every = [*conditions, *more]
        return sql.SQL("SELECT {} FROM {}{}").format(
            names,
            sql.Identifier(relation),
            sql.SQL(" WHERE {}").format(sql.SQL(" AND ").join(every)) if every else sql.SQL(""),
        )

    if as_known_at is None:
        return query(table.table).as_string(None)
    if not table.history:
        raise SchemaError(
            f"{table.asset} follows from its inputs and keeps no history; "
            f"read it with as_of, or a source table with as_known_at"
        )
    held = sql.SQL("recorded_at <= {}").format(sql.Literal(as_known_at))
    until = sql.SQL("superseded_at > {}").format(sql.Literal(as_known_at))
    return (
        sql.SQL("{} UNION ALL {}")
        .format(query(table.table, held), query(f"{table.table}_history", held, until))
        .as_string(None)
    )


def days_held(table: TableSchema, symbols: Sequence[str], start: date, end: date) -> str:
    """`symbol`, `day` of the days in [start, end) on which a symbol has rows: one probe of the key
    for each, however many rows there are."""
    return (
        sql.SQL(
            "SELECT s.symbol, d.day::date AS day FROM unnest({symbols}::text[]) AS s (symbol)"
            " CROSS JOIN generate_series({start}::timestamp, {end}::timestamp - interval '1 day',"
            " interval '1 day') AS d (day) WHERE EXISTS (SELECT FROM {table} t"
            " WHERE t.symbol = s.symbol AND t.time >= d.day AT TIME ZONE 'UTC'"
            " AND t.time < (d.day + interval '1 day') AT TIME ZONE 'UTC')"
        )
        .format(
            symbols=sql.Literal(list(symbols)),
            start=sql.Literal(start.isoformat()),
            end=sql.Literal(end.isoformat()),
            table=sql.Identifier(table.table),
        )
        .as_string(None)
    )


def newest_row(
    table: TableSchema,
    columns: Sequence[str],
    symbol: str,
    *,
    as_of: datetime | None = None,
    as_known_at: datetime | None = None,
) -> str:
    """The newest row of one symbol; the arguments are those of `Store.read`.

    Raises:
        SchemaError: see `select`.
    """
    names = columns if "time" in columns else [*columns, "time"]
    rows = select(table, names, symbols=[symbol], as_of=as_of, as_known_at=as_known_at)
    return f"SELECT * FROM ({rows}) t ORDER BY time DESC LIMIT 1"


def extent(table: TableSchema, symbols: Sequence[str]) -> str:
    """`symbol`, `first` and `last` time of a table's rows; two index probes per symbol."""
    return (
        sql.SQL(
            "SELECT s.symbol, f.time AS first, l.time AS last FROM unnest({}::text[]) AS s (symbol)"
            " CROSS JOIN LATERAL (SELECT time FROM {table} WHERE symbol = s.symbol"
            " ORDER BY time LIMIT 1) f"
            " CROSS JOIN LATERAL (SELECT time FROM {table} WHERE symbol = s.symbol"
            " ORDER BY time DESC LIMIT 1) l"
        )
        .format(sql.Literal(list(symbols)), table=sql.Identifier(table.table))
        .as_string(None)
    )


def newest(tables: Sequence[TableSchema], symbols: Sequence[str], as_of: datetime) -> str:
    """Each symbol's newest row of the first table available by `as_of`, the others joined to it.

    LATERAL ... LIMIT 1 costs one index probe per symbol and table, whatever their size; a plain
    join may read every chunk of a table.
    """
    first, *others = tables
    shared = ("symbol", "time", "available_at", "availability_basis")
    columns = [sql.SQL("t.{}").format(sql.Identifier(n)) for n in first.names]
    joins: list[sql.Composable] = []
    for i, table in enumerate(others):
        alias = sql.Identifier(f"t{i}")
        columns += [
            sql.SQL("{}.{}").format(alias, sql.Identifier(n))
            for n in table.names
            if n not in shared and n not in first.names
        ]
        joins.append(
            sql.SQL(
                "LEFT JOIN LATERAL (SELECT * FROM {} WHERE symbol = t.symbol AND time = t.time"
                " LIMIT 1) {} ON true"
            ).format(sql.Identifier(table.table), alias)
        )
    return (
        sql.SQL(
            """
            SELECT {columns}, l.revision
            FROM unnest({symbols}::text[]) AS s (symbol)
            CROSS JOIN LATERAL (
                SELECT * FROM {table} WHERE symbol = s.symbol AND available_at <= {as_of}
                ORDER BY time DESC LIMIT 1
            ) t
            {joins}
            CROSS JOIN LATERAL (
                SELECT max(revision) AS revision FROM partition_ledger
                WHERE asset = ANY({assets}) AND day = (t.time AT TIME ZONE 'UTC')::date
            ) l
            ORDER BY t.symbol
            """
        )
        .format(
            columns=sql.SQL(", ").join(columns),
            symbols=sql.Literal(list(symbols)),
            table=sql.Identifier(first.table),
            as_of=sql.Literal(as_of),
            joins=sql.SQL(" ").join(joins),
            assets=sql.Literal([table.asset for table in tables]),
        )
        .as_string(None)
    )


def newest_macro(table: TableSchema, as_of: datetime) -> str:
    """The newest observation of each series, in its newest release available by `as_of`."""
    return (
        sql.SQL(
            """
            WITH RECURSIVE series (id) AS (  -- a loose index scan: one probe per series
                (SELECT series_id FROM {table} ORDER BY series_id LIMIT 1)
                UNION ALL
                SELECT (SELECT series_id FROM {table} WHERE series_id > series.id
                        ORDER BY series_id LIMIT 1)
                FROM series WHERE series.id IS NOT NULL
            )
            SELECT t.series_id, t.time, t.available_at, t.value, t.name, t.units, t.frequency,
                l.revision
            FROM series CROSS JOIN LATERAL (
                SELECT * FROM {table} WHERE series_id = series.id AND available_at <= {as_of}
                ORDER BY time DESC, available_at DESC LIMIT 1
            ) t CROSS JOIN LATERAL ({revision}) l
            ORDER BY t.series_id
            """
        )
        .format(
            table=sql.Identifier(table.table),
            as_of=sql.Literal(as_of),
            revision=_revision_of(table, "t"),
        )
        .as_string(None)
    )


def newest_sentiment(
    table: TableSchema, symbols: Sequence[str], where: Mapping[str, str], as_of: datetime
) -> str:
    """The newest score of each symbol and channel available by `as_of`."""
    return (
        sql.SQL(
            """
            SELECT t.symbol, t.channel AS source, t.time, t.available_at, t.sentiment, t.label,
                t.confidence, t.model, t.model_revision, l.revision
            FROM unnest({symbols}::text[]) AS s (symbol)
            CROSS JOIN (VALUES ('news'), ('reddit')) AS c (channel)
            CROSS JOIN LATERAL (
                SELECT * FROM {table}
                WHERE symbol = s.symbol AND channel = c.channel AND available_at <= {as_of}
                    AND {where}
                ORDER BY available_at DESC, document_id LIMIT 1
            ) t CROSS JOIN LATERAL ({revision}) l
            ORDER BY t.symbol, t.channel
            """
        )
        .format(
            symbols=sql.Literal(list(symbols)),
            table=sql.Identifier(table.table),
            as_of=sql.Literal(as_of),
            where=sql.SQL(" AND ").join(
                sql.SQL("{} = {}").format(sql.Identifier(n), sql.Literal(v))
                for n, v in where.items()
            ),
            revision=_revision_of(table, "t"),
        )
        .as_string(None)
    )


def _revision_of(table: TableSchema, alias: str) -> sql.Composable:
    """The newest revision of the partition that a row lies in."""
    return sql.SQL(
        "SELECT max(revision) AS revision FROM partition_ledger"
        " WHERE asset = {} AND day = ({}.{} AT TIME ZONE 'UTC')::date"
    ).format(sql.Literal(table.asset), sql.Identifier(alias), sql.Identifier(table.day_column))


def midnight(day: date) -> sql.Composable:
    """The start of a UTC day, as a constant: what a bare date means depends on the session's time
    zone, and is known too late for leaving out chunks when the statement is planned."""
    return sql.SQL("{}::timestamptz").format(sql.Literal(f"{day.isoformat()} 00:00:00+00"))
