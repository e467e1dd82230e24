"""Rejected rows: what there is, and what happens when a person accepts one.

A release overrules one judgement on one content: the row is written through the write contract, and
an answer that holds the same content again is not rejected for the same reason again. Judging rows
is `validate.py`'s, writing them `writer.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
from psycopg import sql
from psycopg.errors import IntegrityError

from feature_pipeline.errors import QuarantineError, SchemaError
from feature_pipeline.schemas import UTC_TIME, TableSchema
from feature_pipeline.storage import validate
from feature_pipeline.storage.changes import Batch, Writing
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.hashing import row_hashes

if TYPE_CHECKING:
    from feature_pipeline.storage.store import Store

_COLUMNS = "id, asset, source, day, symbol, reason, run_id, recorded_at, released_at"


@dataclass(frozen=True)
class Rejected:
    """One row of quarantine; `payload` is the rejected row by column, times in ISO 8601."""

    id: int
    asset: str
    source: str
    day: date | None
    symbol: str | None
    reason: str
    payload: dict[str, Any]
    run_id: str
    recorded_at: datetime
    released_at: datetime | None
    released_because: str | None


@dataclass(frozen=True)
class Release:
    """What came of releasing a row.

    Args:
        id: its number.
        asset, symbol, day: which partition it went to.
        outcome: `written`, `held already` (the table has the same content) or `released before`.
        revision: the ledger's, of the partition, afterwards; it rises where something was written,
            and the days that depend on it are stale.
    """

    id: int
    asset: str
    symbol: str | None
    day: date
    outcome: str
    revision: int


def listed(
    database: Database,
    *,
    asset: str | None = None,
    symbol: str | None = None,
    since: date | None = None,
    released: bool = False,
) -> pl.DataFrame:
    """Rejected rows, the newest first, without their payload.

    Args:
        database: a migrated one.
        asset, symbol: only theirs.
        since: only what was rejected first on that UTC day or later.
        released: those that a person accepted as well.

    Returns:
        id, asset, source, day, symbol, reason, run_id, recorded_at, released_at.
    """
    return database.read_frame(
        f"SELECT {_COLUMNS} FROM quarantine"
        " WHERE (%(asset)s::text IS NULL OR asset = %(asset)s)"
        " AND (%(symbol)s::text IS NULL OR symbol = %(symbol)s)"
        " AND (%(since)s::date IS NULL OR recorded_at >= %(since)s::date::timestamp AT TIME ZONE"
        " 'UTC') AND (%(released)s OR released_at IS NULL) ORDER BY id DESC",
        {"asset": asset, "symbol": symbol, "since": since, "released": released},
    )


def shown(database: Database, number: int) -> Rejected:
    """One rejected row, whole.

    Raises:
        QuarantineError: there is none of that number.
    """
    found = database.read_frame(
        f"SELECT {_COLUMNS}, released_because, payload::text FROM quarantine WHERE id = %s",
        [number],
    )
    if found.is_empty():
        raise QuarantineError(
            f"there is no row {number} in quarantine; `feature-pipeline quarantine list --all` "
            "lists them"
        )
    row = found.row(0, named=True)
    return Rejected(**row | {"payload": json.loads(row["payload"])})


def releases(
    database: Database, table: TableSchema, source: str, rejected: pl.DataFrame
) -> pl.Series:
    """When a person released each of these rows from the reason it was rejected for; else null.

    The same content is the same row, wherever the provenance differs: a document may be seen at
    another moment when it is collected again.

    Args:
        database: a migrated one.
        table: of the rows.
        source: who said them.
        rejected: `reason` and `payload` (JSON), as `validate` yields them.
    """
    nobody = validate.nobody_released(rejected)
    with database.connection() as connection:
        some = connection.execute(
            "SELECT FROM quarantine WHERE asset = %s AND source = %s AND released_at IS NOT NULL"
            " LIMIT 1",
            [table.asset, source],
        ).fetchone()
        if some is None:
            return nobody
        provenance = [column.name for column in table.columns if column.provenance]
        found = connection.execute(
            "SELECT u.place - 1, max(q.released_at)"
            " FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS u (reason, payload, place)"
            " JOIN quarantine q ON q.asset = %s AND q.source = %s AND q.released_at IS NOT NULL"
            " AND q.reason = u.reason"
            " AND q.payload - %s::text[] = u.payload::jsonb - %s::text[]"
            " GROUP BY u.place",
            [
                rejected["reason"].to_list(),
                rejected["payload"].to_list(),
                table.asset,
                source,
                provenance,
                provenance,
            ],
        ).fetchall()
    places = pl.DataFrame(found, schema={"place": pl.Int64, "at": UTC_TIME}, orient="row")
    return (
        pl.DataFrame({"place": pl.int_range(rejected.height, eager=True)})
        .join(places, on="place", how="left", maintain_order="left")["at"]
        .alias(nobody.name)
    )


# -- releasing ------------------------------------------------------------------------------------


def release(store: Store, numbers: Sequence[int], because: str) -> list[Release]:
    """Accept rejected rows: each is written as if its source's answer had been right.

    All are looked at before the first is written. A row overrules the one reason that it was
    rejected for; every other rule still holds. Doing it again is harmless.

    Args:
        store: where to.
        numbers: theirs, in quarantine.
        because: why, in a person's words.

    Raises:
        QuarantineError: a number is unknown, or its row cannot be accepted; nothing was written of
            it or of those after it.
        DatabaseError: the database refused or did not answer.
    """
    if not because.strip():
        raise QuarantineError('say why the row is right: --because "..."')
    # Tokens before anything is looked at: what is written meanwhile fences us.
    wanted = [(store.ledger.next_token(), shown(store.database, n)) for n in dict.fromkeys(numbers)]
    accepted = [(token, row, _acceptable(store, row)) for token, row in wanted]
    return [_write(store, token, row, frame, because) for token, row, frame in accepted]


def _acceptable(store: Store, row: Rejected) -> pl.DataFrame:
    """The row as a frame of its table, of which nothing but the overruled reason is wrong.

    Raises:
        QuarantineError: it cannot be written, another rule is violated, or something newer is held.
    """
    what = f"row {row.id} in quarantine ({row.asset}, {row.symbol or 'no symbol'}, {row.day})"
    table = store.tables.get(row.asset)
    if table is None:
        raise QuarantineError(f"{what}: there is no asset {row.asset} any more")
    if table.derived:
        raise QuarantineError(
            f"{what} was computed, and would be computed again: correct what it follows from, or "
            "its computation"
        )
    try:
        frame = _frame(table, row)
    except (pl.exceptions.PolarsError, SchemaError) as error:
        raise QuarantineError(
            f"{what} cannot be written: {str(error).splitlines()[0]}; correct it at {row.source} "
            "and materialise the day again"
        ) from error
    lacking = [
        c.name
        for c in table.columns
        if not c.nullable and (frame[c.name].null_count() or _without_elements(frame[c.name]))
    ]
    if lacking or row.day is None:
        raise QuarantineError(
            f"{what} cannot be written: {', '.join(lacking) or 'its day'} is missing; correct it "
            f"at {row.source} and materialise the day again"
        )
    altered = any(row.reason == validate.holds_nul(c) for c in table.columns)
    if altered or row.reason == validate.OUTDATED:
        raise QuarantineError(
            f"{what} cannot be accepted: {row.reason}; what is held instead is what {row.source} "
            "said last" + (", and text cannot hold that character" if altered else "")
        )
    _check(store, table, row, frame, what)
    _must_not_be_newer(store, table, row, frame, what)
    return frame


def _frame(table: TableSchema, row: Rejected) -> pl.DataFrame:
    """The rejected row with its table's columns."""
    held = pl.Struct({c.name: c.dtype for c in table.columns if c.name in row.payload})
    text = json.dumps(row.payload)
    return table.conform(pl.Series([text]).str.json_decode(held).struct.unnest())


def _without_elements(column: pl.Series) -> bool:
    return isinstance(column.dtype, pl.List) and not column.list.len().item()


def _check(store: Store, table: TableSchema, row: Rejected, frame: pl.DataFrame, what: str) -> None:
    """Refuse what is wrong for another reason than the one that is overruled."""
    assert row.day is not None
    now = store.clock()

    def overruled(rejected: pl.DataFrame) -> pl.Series:
        return rejected.select(
            pl.when(pl.col("reason") == row.reason).then(pl.lit(now, dtype=UTC_TIME))
        ).to_series()

    checked = validate.check(
        table,
        frame,
        now=now,
        window=(row.day, row.day + timedelta(days=1)),
        symbols=store.universe.symbols,
        releases=overruled,
    )
    if checked.unfinished:
        raise QuarantineError(f"{what} is not available yet: {frame['available_at'].item()}")
    if checked.quarantined.height:
        reason = checked.quarantined["reason"].item()
        also = "also: " if reason != row.reason else ""
        raise QuarantineError(
            f"{what} cannot be accepted, {also}{reason}. A release overrules one judgement, and no "
            f"fact; correct it at {row.source} and materialise the day again"
        )


def _must_not_be_newer(
    store: Store, table: TableSchema, row: Rejected, frame: pl.DataFrame, what: str
) -> None:
    """Refuse a row whose day was not collected, or in whose place something else was written since.

    A ledger entry made for one row would pose as its whole day.
    """
    if _ledger_of(store, row).is_empty():
        raise QuarantineError(
            f"{what}: nobody has collected {row.asset} of {row.day} from {row.source}; materialise "
            "that day first"
        )
    identity = table.identity or table.key
    held = store.database.read_frame(
        sql.SQL("SELECT {}, recorded_at FROM {} WHERE {} ORDER BY recorded_at DESC LIMIT 1")
        .format(
            sql.SQL(", ").join(map(sql.Identifier, table.names)),
            sql.Identifier(table.table),
            sql.SQL(" AND ").join(
                sql.SQL("{} = {}").format(sql.Identifier(n), sql.Literal(frame[n].item()))
                for n in identity
            ),
        )
        .as_string(None)
    )
    if held.is_empty() or held["recorded_at"].item() < row.recorded_at:
        return
    if row_hashes(held, table.hashed)[0] != row_hashes(frame, table.hashed)[0]:
        raise QuarantineError(
            f"{what} was rejected at {row.recorded_at:%Y-%m-%d %H:%M} UTC, and another row was "
            "written in its place since: that one stays"
        )


def _ledger_of(store: Store, row: Rejected) -> pl.DataFrame:
    assert row.day is not None
    ledger = store.ledger.rows(row.asset, row.day, row.day + timedelta(days=1))
    return ledger.filter(source=row.source)


def _write(store: Store, token: int, row: Rejected, frame: pl.DataFrame, because: str) -> Release:
    assert row.day is not None
    if row.released_at is not None:
        return _release(store, row, "released before")
    table, symbol = store.tables[row.asset], row.symbol
    batch = Batch(
        source=row.source,
        rows=frame,
        days=pl.Series([row.day], dtype=pl.Date),
        # Of what is replaced by day, the exception says that this very row is missing.
        asked=(symbol,) if symbol and table.mode == "replace" else (),
        quarantined=pl.DataFrame(),
        released={row.id: because.strip()},
    )
    # For whom the day was collected, and by which code, stays what it was.
    code_version = _ledger_of(store, row)["code_version"].item()
    writing = Writing(token, f"quarantine-release-{row.id}", code_version)
    try:
        days = store.writer.write(table, writing, [batch])
    except IntegrityError as error:
        raise QuarantineError(
            f"row {row.id} in quarantine: the table {table.table} itself refuses it "
            f"({error.diag.constraint_name or error.diag.message_primary}); correct it at "
            f"{row.source} and materialise the day again"
        ) from error
    if days["fenced"].sum():
        raise QuarantineError(
            f"row {row.id} in quarantine: a run has written {row.asset} of {row.day} meanwhile; "
            "look at what it wrote, and release the row again if it still is right"
        )
    return _release(store, row, "written" if days["written"].sum() else "held already")


def _release(store: Store, row: Rejected, outcome: str) -> Release:
    assert row.day is not None
    return Release(
        id=row.id,
        asset=row.asset,
        symbol=row.symbol,
        day=row.day,
        outcome=outcome,
        revision=int(_ledger_of(store, row)["revision"].max() or 0),  # type: ignore[arg-type]
    )
