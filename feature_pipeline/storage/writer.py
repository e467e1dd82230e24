"""The write contract: one function writes every table, and a partition is all old or all new.

One transaction per calendar month: lock -> drop what a newer writer has written -> keep replaced
source rows in history -> delete -> binary COPY -> ledger -> commit. What is to change is worked out
in `changes.py`; deciding what is written at all, and judging what a source answered, is the store's
(`store.py`).
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import psycopg
from psycopg import sql

from feature_pipeline.errors import DatabaseError
from feature_pipeline.schemas import UTC_TIME, TableSchema
from feature_pipeline.storage import changes
from feature_pipeline.storage.changes import Batch, Change, of_days
from feature_pipeline.storage.database import Database, copy_in
from feature_pipeline.storage.reader import midnight

__all__ = ["STEPS", "Batch", "Writer", "Writing"]

log = logging.getLogger(__name__)

STEPS = ("lock", "token", "history", "delete", "copy", "ledger", "commit")
"""What `Writer.trace` is told, in this order, in every month's transaction."""

_REVISION_LOCK = 0x46505245
"""Held from taking a revision to the commit: revisions become visible in their own order, so that
the newest one seen is a bound for all that were ever taken before it."""


@dataclass(frozen=True)
class Writing:
    """Who writes: identifies every row of the ledger that this write touches."""

    token: int
    run_id: str
    code_version: str
    upstream: pl.DataFrame | None = None
    """`day` and `upstream_revision` of a derived table."""


@dataclass
class Writer:
    """Writes batches into one database. `trace` is told each step as it begins."""

    database: Database
    trace: Callable[[str], None] = log.debug

    def write(self, table: TableSchema, writing: Writing, batch: Batch) -> pl.DataFrame:
        """Write a batch, month by month; months that are done stay done whatever comes after.

        Returns:
            One row per day written: `day`, `rows` of the source in the partition now, `written`,
            `unchanged` and `fenced` rows of this batch.

        Raises:
            DatabaseError: the database refused, or did not answer in time; the month it was at is
                as it was before.
        """
        rows = batch.rows.with_columns(day=pl.col(table.day_column).dt.date())
        parts = [_by_month(frame) for frame in (rows, batch.expected, batch.exceptions)]
        quarantined, reports = batch.quarantined, []
        for month, days in sorted(_by_month(batch.days.to_frame("day")).items()):
            of_month, expected, exceptions = (
                part.get(month, frame.clear())
                for part, frame in zip(parts, (rows, batch.expected, batch.exceptions), strict=True)
            )
            part = replace(
                batch,
                rows=of_month,
                days=days["day"],
                expected=expected,
                exceptions=exceptions,
                quarantined=quarantined,
            )
            reports.append(self._month(table, writing, part, month))
            # A rejected row may be about any day, or none: all go with the first month.
            quarantined = quarantined.clear()
        return pl.concat(reports)

    def _month(
        self, table: TableSchema, writing: Writing, batch: Batch, month: int
    ) -> pl.DataFrame:
        """One transaction, and the settlement of a COMMIT whose answer was lost."""
        # What accumulates is searched by identity, not by day: its writers exclude each other.
        lock = (
            zlib.crc32(table.table.encode()) & 0x7FFFFFFF,
            0 if table.mode == "accumulate" else month,
        )
        report: pl.DataFrame | None = None
        try:
            with self.database.connection() as connection:
                report = self._transaction(connection, table, writing, batch, lock)
                self.trace("commit")
        except DatabaseError:
            if report is None or not self._committed(table, writing, batch.source, report, lock):
                raise
            log.warning("%s: the answer to COMMIT was lost; the ledger has it", table.asset)
        assert report is not None
        return report.drop("entered")

    def _transaction(
        self,
        connection: psycopg.Connection,
        table: TableSchema,
        writing: Writing,
        batch: Batch,
        lock: Sequence[int],
    ) -> pl.DataFrame:
        """Everything between BEGIN and COMMIT; returns `_outcome`."""
        # A writer whose machine vanished must not keep others out until TCP notices, in hours.
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = '5min'")
        self.trace("lock")
        connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", lock)
        ledger = _ledger(connection, table, batch.days)
        self.trace("token")
        allowed = batch
        if table.mode == "replace":
            allowed = _without_newer(table, writing, batch, ledger)
        change, ledger = self._change(connection, table, writing, allowed, ledger)
        now = self._apply(connection, table, writing, change)
        self.trace("ledger")
        renewed = _write_exceptions(connection, table, writing, allowed)
        _write_ledger(connection, table, writing, _entries(table, change, ledger, renewed))
        _write_quarantine(connection, table, writing, batch, now)
        return _outcome(batch, allowed, change, ledger)

    def _change(
        self,
        connection: psycopg.Connection,
        table: TableSchema,
        writing: Writing,
        batch: Batch,
        ledger: pl.DataFrame,
    ) -> tuple[Change, pl.DataFrame]:
        """What is to be done, and the ledger of all the days that it concerns.

        Stored rows come as Arrow, by another connection. It sees what this one would: nobody else
        may write them while we hold the lock, and we have not begun.
        """
        if table.derived and table.mode == "replace":
            return changes.replace_days(table, batch, ledger), ledger
        days = changes.doubtful(table, batch, ledger)
        if table.mode == "replace":
            stored = of_days(self._stored(table, _of_these_days(table, days), days), days)
            return changes.replace_rows(table, batch, ledger, stored, writing.token), ledger
        stored = self._stored(table, _of_these_things(table, of_days(batch.rows, days)), days)
        elsewhere = changes.without(stored["day"].unique().sort(), batch.days)
        if elsewhere.len():
            ledger = pl.concat([ledger, _ledger(connection, table, elsewhere)])
        return changes.accumulate(table, batch, ledger, stored, writing.token), ledger

    def _stored(self, table: TableSchema, which: sql.Composable, days: pl.Series) -> pl.DataFrame:
        """Rows of the table with their `day`; none where no day is in doubt."""
        if days.is_empty():
            rows = table.empty()
        else:
            query = sql.SQL("SELECT {} FROM {} t {}").format(
                sql.SQL(", ").join(sql.Identifier("t", n) for n in table.names),
                sql.Identifier(table.table),
                which,
            )
            rows = self.database.read_frame(query.as_string(None))
        return rows.with_columns(day=pl.col(table.day_column).dt.date())

    def _apply(
        self,
        connection: psycopg.Connection,
        table: TableSchema,
        writing: Writing,
        change: Change,
    ) -> datetime:
        """Do it: history, delete, copy; returns the moment at which old rows gave way to new."""
        now = _one(connection, "SELECT clock_timestamp()").astimezone(UTC)
        self.trace("history")
        if change.gone.height:
            _remove(connection, table, change.gone, now)
        self.trace("delete")
        if change.wiped.len():
            connection.execute(
                sql.SQL("DELETE FROM {} t {}").format(
                    sql.Identifier(table.table), _of_these_days(table, change.wiped)
                )
            )
        self.trace("copy")
        if change.insert.height:
            moment, run = table.audit
            frame = change.insert.select(
                *table.names,
                pl.lit(now, dtype=UTC_TIME).alias(moment),
                pl.lit(writing.run_id).alias(run),
            )
            types = {c.name: c.sql_type for c in table.columns}
            copy_in(connection, table.table, frame.columns, frame, types)
        return now

    def _committed(
        self,
        table: TableSchema,
        writing: Writing,
        source: str,
        outcome: pl.DataFrame,
        lock: Sequence[int],
    ) -> bool:
        """Whether a transaction whose COMMIT went unanswered took place: the ledger knows.

        Waits for the lock first, which the lost transaction holds until it has ended.
        """
        days = outcome.filter("entered")["day"]
        with self.database.connection() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", lock)
            ledger = _ledger(connection, table, days)
        ours = ledger.filter(pl.col("source") == source, pl.col("token") >= writing.token)
        return days.len() > 0 and days.is_in(ours["day"].implode()).all()


def _by_month(frame: pl.DataFrame) -> dict[int, pl.DataFrame]:
    """The rows by month of their `day`, months counted from year 0."""
    month = pl.col("day").dt.year() * 12 + pl.col("day").dt.month() - 1
    groups = frame.with_columns(month=month).partition_by("month", as_dict=True, include_key=False)
    return {int(key): part for (key,), part in groups.items()}


def _without_newer(
    table: TableSchema, writing: Writing, batch: Batch, ledger: pl.DataFrame
) -> Batch:
    """The batch without the days that a newer token has written."""
    ours = pl.col("source") == batch.source
    fenced = ledger.filter(ours, pl.col("token") > writing.token)["day"]
    if fenced.is_empty():
        return batch
    log.warning(
        "%s: a newer run has written %d day(s) from %s on; this run leaves them",
        table.asset, fenced.len(), fenced.min(),
    )  # fmt: skip
    return batch.of(changes.without(batch.days, fenced))


def _outcome(batch: Batch, allowed: Batch, change: Change, ledger: pl.DataFrame) -> pl.DataFrame:
    """What became of the batch: `day`, `rows`, `written`, `unchanged`, `fenced`; `entered` where
    the ledger was written."""

    def count(rows: pl.DataFrame, name: str) -> pl.DataFrame:
        return rows.group_by("day").agg(pl.len().cast(pl.Int64).alias(name))

    ours = pl.col("source") == batch.source
    content = list(changes.CONTENT)
    held = (
        pl.concat([entries.select(content) for entries in (change.entries, ledger)])
        .filter(ours)
        .unique("day", keep="first", maintain_order=True)
    )
    left = changes.without(batch.days, allowed.days)
    fenced = pl.concat([of_days(batch.rows, left), change.fenced])
    return (
        batch.days.to_frame("day")
        .join(held.select("day", "rows"), on="day", how="left")
        .join(count(batch.rows, "input"), on="day", how="left")
        .join(count(change.insert, "written"), on="day", how="left")
        .join(count(fenced, "fenced"), on="day", how="left")
        .with_columns(pl.exclude("day").fill_null(0))
        .select(
            "day",
            "rows",
            "written",
            unchanged=pl.col("input") - pl.col("written") - pl.col("fenced"),
            fenced="fenced",
            entered=pl.col("day").is_in(allowed.days.implode()),
        )
    )


# -- statements -----------------------------------------------------------------------------------


def _one(connection: psycopg.Connection, query: str) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def _ledger(connection: psycopg.Connection, table: TableSchema, days: pl.Series) -> pl.DataFrame:
    """The ledger's rows of those days, all sources."""
    rows = connection.execute(
        "SELECT source, day, rows, content_hash, token FROM partition_ledger"
        " WHERE asset = %s AND day = ANY(%s)",
        [table.asset, days.to_list()],
    ).fetchall()
    return pl.DataFrame(rows, schema=changes.LEDGER, orient="row")


def _of_these_days(table: TableSchema, days: pl.Series) -> sql.Composable:
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


def _of_these_things(table: TableSchema, rows: pl.DataFrame) -> sql.Composable:
    """JOIN what shares its identity with one of the rows."""
    identity = table.identity or table.key
    names = sql.SQL(", ").join(map(sql.Identifier, identity))
    return sql.SQL("JOIN (SELECT DISTINCT * FROM unnest({}) AS i ({})) i USING ({})").format(
        sql.SQL(", ").join(_array(rows[name], table.column(name).sql_type) for name in identity),
        names,
        names,
    )


def _array(values: pl.Series, sql_type: str) -> sql.Composable:
    """An array literal, put together by Polars: there may be a hundred thousand values."""
    if values.dtype == UTC_TIME:
        values = values.dt.strftime("%Y-%m-%d %H:%M:%S%.6f+00")
    text = values.str.replace_all(r'(["\\])', r"\$1")
    elements = ('"' + text + '"').str.join(",").item()
    return sql.SQL("{}::{}[]").format(sql.Literal("{" + elements + "}"), sql.SQL(sql_type))


def _remove(
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


def _entries(
    table: TableSchema, change: Change, ledger: pl.DataFrame, renewed: pl.Series
) -> pl.DataFrame:
    """The ledger's new entries, `changed` where a day says something else than before.

    Of what accumulates, who could not be collected is part of what a day says: without it, nobody
    could tell "there is none" from "not known".
    """
    content = list(changes.CONTENT)
    same = ledger.select(content).with_columns(changed=pl.lit(value=False))
    changed = pl.col("changed").fill_null(value=True)
    if table.mode == "accumulate":
        changed |= pl.col("day").is_in(renewed.implode())
    return change.entries.join(same, on=content, how="left").with_columns(changed=changed)


def _write_ledger(
    connection: psycopg.Connection, table: TableSchema, writing: Writing, entries: pl.DataFrame
) -> None:
    if entries.is_empty():
        return
    revision = 0
    if entries["changed"].any():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_REVISION_LOCK])
        revision = _one(connection, "SELECT nextval('content_revision')")
    upstream = writing.upstream
    if upstream is None:
        upstream = entries.select("day", upstream_revision=pl.lit(0, pl.Int64)).unique()
    entries = entries.with_columns(
        revision=pl.when("changed").then(pl.lit(revision, pl.Int64)).otherwise(0)
    ).join(upstream, on="day", how="left")
    columns = (*changes.CONTENT, "revision", "upstream_revision")
    connection.execute(
        """
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
        """,
        {
            "asset": table.asset,
            "code_version": writing.code_version,
            "token": writing.token,
            "run_id": writing.run_id,
            **{name: entries[name].to_list() for name in columns},
        },
    )


def _write_exceptions(
    connection: psycopg.Connection, table: TableSchema, writing: Writing, batch: Batch
) -> pl.Series:
    """Renew the exceptions of the days and symbols asked for: what is mended disappears.

    Returns:
        The days on which others than before are missing.
    """
    condition = "asset = %s AND day = ANY(%s)"
    values: list[object] = [table.asset, batch.days.to_list()]
    if batch.asked is not None:
        condition += " AND source = %s AND symbol = ANY(%s)"
        values += [batch.source, list(batch.asked)]
    who = ["source", "day", "symbol"]
    deleted = connection.execute(
        f"DELETE FROM partition_exceptions WHERE {condition} RETURNING source, day, symbol", values
    ).fetchall()
    before = pl.DataFrame(deleted, schema={n: changes.EXCEPTIONS[n] for n in who}, orient="row")
    now = batch.exceptions
    if now.height:
        connection.execute(
            "INSERT INTO partition_exceptions (asset, source, day, symbol, status, reason, run_id)"
            " SELECT %s, source, day, symbol, status, reason, %s"
            " FROM unnest(%s::text[], %s::date[], %s::text[], %s::text[], %s::text[])"
            " AS u (source, day, symbol, status, reason)",
            [table.asset, writing.run_id, *(now[n].to_list() for n in changes.EXCEPTIONS)],
        )
    mended, added = before.join(now, on=who, how="anti"), now.join(before, on=who, how="anti")
    return pl.concat([mended["day"], added["day"]]).unique()


def _write_quarantine(
    connection: psycopg.Connection,
    table: TableSchema,
    writing: Writing,
    batch: Batch,
    now: datetime,
) -> None:
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
