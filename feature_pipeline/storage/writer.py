"""The write contract: one function writes every table, and a partition is all old or all new.

One transaction per calendar month: lock -> drop the days that a newer writer has written ->
keep replaced source rows in history -> delete -> binary COPY -> ledger -> commit. Deciding what
is to be written, and judging what a source answered, is the store's (`store.py`).
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime

import polars as pl
import psycopg
from psycopg import sql

from feature_pipeline.errors import DatabaseError
from feature_pipeline.schemas import TableSchema
from feature_pipeline.storage.database import Database, copy_in
from feature_pipeline.storage.hashing import day_hashes, row_hashes

log = logging.getLogger(__name__)

_REVISION_LOCK = 0x46505245
"""Held from taking a revision to the commit: revisions become visible in their own order, so that
the newest one seen is a bound for all that were ever taken before it."""

_STEPS = ("lock", "token", "history", "delete", "copy", "ledger", "commit")

_DAY = pl.Schema({"source": pl.String, "day": pl.Date, "rows": pl.Int64, "content_hash": pl.Int64})


@dataclass(frozen=True)
class Batch:
    """Good rows of one source, and what they replace.

    Args:
        source: the ledger's source.
        rows: rows of the table, of distinct keys, all within `days`.
        days: every day written, with or without rows, sorted.
        answered: symbols whose rows are replaced; None - every row of the day is.
        expected: `symbol`, `day` of sessions that should have a row: one without keeps its old.
        asked: symbols whose exceptions are renewed.
        exceptions: `day`, `symbol`, `status`, `reason`.
        quarantined: `symbol`, `day`, `reason`, `payload`.
    """

    source: str
    rows: pl.DataFrame
    days: pl.Series
    answered: frozenset[str] | None = None
    expected: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(schema={"symbol": pl.String, "day": pl.Date})
    )
    asked: tuple[str, ...] = ()
    exceptions: pl.DataFrame = field(default_factory=pl.DataFrame)
    quarantined: pl.DataFrame = field(default_factory=pl.DataFrame)


@dataclass(frozen=True)
class Writing:
    """Who writes: identifies every row of the ledger that this write touches."""

    token: int
    run_id: str
    code_version: str
    upstream: pl.DataFrame | None = None
    """`day` and `upstream_revision` of a derived table."""


@dataclass(frozen=True)
class _Change:
    """What one month's transaction does to the table, worked out before it does anything."""

    insert: pl.DataFrame
    gone: pl.DataFrame
    """Keys of the rows that leave; for derived tables empty, `wiped` days say it all."""
    wiped: pl.Series
    ledger: pl.DataFrame
    """source, day, rows, content_hash, changed, unchanged (rows found as they were), written."""


@dataclass
class Writer:
    """Writes batches into one database. `trace` is told each step as it begins."""

    database: Database
    trace: Callable[[str], None] = log.debug

    def write(self, table: TableSchema, writing: Writing, batch: Batch) -> pl.DataFrame:
        """Write a batch, month by month; months that are done stay done whatever comes after.

        Returns:
            One row per day written: `day`, `rows` in the partition now, `written`, `unchanged`
            and `fenced` rows of this batch.

        Raises:
            DatabaseError: the database refused, or did not answer in time; the day it was at is
                as it was before.
        """
        month = pl.col("day").dt.truncate("1mo")
        rows = batch.rows.with_columns(day=pl.col(table.day_column).dt.date())
        by_month = rows.with_columns(month=month).partition_by(
            "month", as_dict=True, include_key=False
        )
        months = batch.days.to_frame("day").with_columns(month=month)
        reports: list[pl.DataFrame] = []
        # A rejected row may be about any day, or none: those of other days go with the first month.
        strays = _of_days(batch.quarantined, batch.days, inverse=True)
        for (first,), days in months.partition_by(
            "month", as_dict=True, maintain_order=True
        ).items():
            part = replace(
                batch,
                rows=by_month.get((first,), rows.clear()),
                days=days["day"],
                expected=_of_days(batch.expected, days["day"]),
                exceptions=_of_days(batch.exceptions, days["day"]),
                quarantined=_of_days(batch.quarantined, days["day"]),
            )
            if strays.height and not reports:
                part = replace(part, quarantined=pl.concat([part.quarantined, strays]))
            reports.append(self._month(table, writing, part, first))
        return pl.concat(reports)

    def _month(
        self, table: TableSchema, writing: Writing, batch: Batch, first: date
    ) -> pl.DataFrame:
        """One transaction, and the settlement of a COMMIT whose answer was lost."""
        lock = [zlib.crc32(table.table.encode()) & 0x7FFFFFFF]
        # An accumulating table is searched by identity, not by day: its writers exclude each other.
        lock.append(0 if table.mode == "accumulate" else first.year * 12 + first.month)
        report: pl.DataFrame | None = None
        try:
            with self.database.connection() as connection:
                report = self._transaction(connection, table, writing, batch, lock)
                self.trace("commit")
        except DatabaseError:
            if report is None or not self._committed(table, writing, report, batch.source, lock):
                raise
            log.warning("%s: the answer to COMMIT was lost; the ledger has it", table.asset)
        assert report is not None
        return report.drop("changed")

    def _transaction(
        self,
        connection: psycopg.Connection,
        table: TableSchema,
        writing: Writing,
        batch: Batch,
        lock: Sequence[int],
    ) -> pl.DataFrame:
        self.trace("lock")
        connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", lock)
        ledger = _ledger(connection, table, batch.days)
        self.trace("token")
        fenced = ledger.filter(pl.col("source") == batch.source, pl.col("token") > writing.token)[
            "day"
        ]
        lost = batch.rows.filter(pl.col("day").is_in(fenced.implode()))
        if table.mode == "replace" and fenced.len():
            batch = _without(batch, fenced)
            log.warning(
                "%s: a newer run has written %d day(s) from %s on; this run leaves them",
                table.asset, fenced.len(), fenced.min(),
            )  # fmt: skip
        if table.mode == "accumulate":
            change = self._accumulate(connection, table, batch, ledger)
        elif table.derived:
            change = _replace_days(table, batch, ledger)
        else:
            change = self._replace_rows(table, batch, ledger)
        now = self._apply(connection, table, writing, change)
        self.trace("ledger")
        _write_ledger(connection, table, writing, change.ledger)
        _write_exceptions(connection, table, writing, batch)
        _write_quarantine(connection, table, writing, batch, now)
        own = change.ledger.filter(pl.col("source") == batch.source).drop("source", "content_hash")
        if table.mode == "replace" and fenced.len():
            own = pl.concat(
                [own, _fenced_report(ledger, fenced, lost, batch.source)], how="diagonal"
            )
        return own.with_columns(
            pl.col("written", "unchanged").fill_null(0),
            (pl.col("fenced") if "fenced" in own.columns else pl.lit(0, pl.Int64))
            .fill_null(0)
            .alias("fenced"),
        ).select("day", "rows", "written", "unchanged", "fenced", "changed")

    def _replace_rows(self, table: TableSchema, batch: Batch, ledger: pl.DataFrame) -> _Change:
        """A source's table: only rows that differ are touched, so that the others keep the moment
        they were recorded at."""
        new = _hashes(table, batch.rows, batch.days, batch.source)
        held = ledger.filter(pl.col("rows") > 0)["day"].unique()
        same = _same_days(new, ledger)
        doubtful = batch.days.filter(
            batch.days.is_in(held.implode()) & ~batch.days.is_in(same.implode())
        )
        fresh = batch.rows.filter(~pl.col("day").is_in(held.implode()))
        if doubtful.is_empty():
            return _Change(
                insert=fresh,
                gone=pl.DataFrame(),
                wiped=batch.days.clear(),
                ledger=_entries(new, ledger, fresh, batch.rows),
            )
        # Nobody else writes these days while we hold the lock, so another connection sees the same.
        stored = self.database.read_frame(_select(table, doubtful)).with_columns(
            day=pl.col(table.day_column).dt.date()
        )
        stored = stored.filter(pl.col("day").is_in(doubtful.implode()))
        incoming = batch.rows.filter(pl.col("day").is_in(doubtful.implode()))
        key = list(table.key)
        stored = stored.with_columns(content=pl.Series(row_hashes(stored, table.hashed)))
        incoming = incoming.with_columns(content=pl.Series(row_hashes(incoming, table.hashed)))
        differing = incoming.join(stored, on=[*key, "content"], how="anti")
        answered = list(batch.answered or ())
        vanished = (
            stored.filter(pl.col("source") == batch.source, pl.col("symbol").is_in(answered))
            .join(incoming, on=key, how="anti")
            .join(batch.expected, on=["symbol", "day"], how="anti")
        )
        gone = pl.concat([stored.join(differing, on=key, how="semi"), vanished])
        insert = pl.concat([fresh, differing.drop("content")])

        left = pl.concat([stored.join(gone, on=key, how="anti"), differing]).drop("content")
        entries = [
            _entries(
                pl.concat(
                    [
                        new.filter(~pl.col("day").is_in(doubtful.implode())),
                        _hashes(
                            table,
                            left.filter(pl.col("source") == batch.source),
                            doubtful,
                            batch.source,
                        ),
                    ]
                ),
                ledger,
                insert,
                batch.rows,
            )
        ]
        # A symbol that changed its provider leaves rows of the old one behind, on the same key.
        for (other,), lost in (
            gone.filter(pl.col("source") != batch.source)
            .partition_by("source", as_dict=True)
            .items()
        ):
            days = lost["day"].unique().sort()
            remaining = left.filter(pl.col("source") == other, pl.col("day").is_in(days.implode()))
            entries.append(
                _entries(
                    _hashes(table, remaining, days, str(other)), ledger, lost.clear(), lost.clear()
                )
            )
        return _Change(insert, gone.select(key), batch.days.clear(), pl.concat(entries))

    def _accumulate(
        self,
        connection: psycopg.Connection,
        table: TableSchema,
        batch: Batch,
        ledger: pl.DataFrame,
    ) -> _Change:
        """Insert what is new; what is known and differs is corrected; nothing is deleted."""
        identity = list(table.identity or table.key)
        stored = self._known(connection, table, batch.rows.select(identity))
        stored = stored.with_columns(
            day=pl.col(table.day_column).dt.date(),
            content=pl.Series(row_hashes(stored, table.hashed)),
        )
        incoming = batch.rows.with_columns(content=pl.Series(row_hashes(batch.rows, table.hashed)))
        insert = incoming.join(stored, on=[*identity, "content"], how="anti").drop("content")
        gone = stored.join(insert, on=identity, how="semi").drop("content")

        elsewhere = gone.filter(~pl.col("day").is_in(batch.days.implode()))["day"].unique().sort()
        if elsewhere.len():
            ledger = pl.concat([ledger, _ledger(connection, table, elsewhere)])
        added = _hashes(table, insert, batch.days, batch.source)
        removed = [
            _hashes(table, lost, lost["day"].unique().sort(), str(source)).with_columns(
                -pl.col("rows"), pl.lit(0, pl.Int64).alias("content_hash") - pl.col("content_hash")
            )
            for (source,), lost in gone.with_columns(
                source=pl.col("source") if not table.derived else pl.lit(batch.source)
            )
            .partition_by("source", as_dict=True)
            .items()
        ]
        held = ledger.select(*_DAY)
        # Hashes are sums modulo 2^64: what is added and what leaves settles the new one.
        total = (
            pl.concat([added, *removed, held])
            .join(pl.concat([added, *removed]), on=["source", "day"], how="semi")
            .group_by("source", "day")
            .agg(pl.col("rows").sum(), pl.col("content_hash").sum())
        )
        return _Change(
            insert=insert,
            gone=gone.select(list(table.key)),
            wiped=batch.days.clear(),
            ledger=_entries(total, ledger, insert, batch.rows),
        )

    def _known(
        self, connection: psycopg.Connection, table: TableSchema, identities: pl.DataFrame
    ) -> pl.DataFrame:
        """The stored rows that some row of `identities` names."""
        schema = {c.name: c.dtype for c in table.columns}
        if identities.is_empty():
            return pl.DataFrame(schema=schema)
        _fill_temporary(connection, table, "incoming", identities)
        rows = connection.execute(
            sql.SQL("SELECT {} FROM {} t JOIN incoming i USING ({})").format(
                sql.SQL(", ").join(
                    sql.Identifier(n) if n in identities.columns else sql.Identifier("t", n)
                    for n in table.names
                ),
                sql.Identifier(table.table),
                sql.SQL(", ").join(map(sql.Identifier, identities.columns)),
            )
        ).fetchall()
        return pl.DataFrame(rows, schema=schema, orient="row")

    def _apply(
        self,
        connection: psycopg.Connection,
        table: TableSchema,
        writing: Writing,
        change: _Change,
    ) -> datetime:
        """Do it: history, delete, copy."""
        row = connection.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        now: datetime = row[0]
        self.trace("history")
        if change.gone.height:
            _move_to_history(connection, table, change.gone, now)
        self.trace("delete")
        if change.wiped.len():
            connection.execute(
                sql.SQL("DELETE FROM {} WHERE {}").format(
                    sql.Identifier(table.table), _days_are(table, change.wiped)
                )
            )
        self.trace("copy")
        if change.insert.height:
            moment, run = table.audit
            frame = change.insert.select(
                *table.names,
                pl.lit(now).dt.convert_time_zone("UTC").dt.cast_time_unit("us").alias(moment),
                pl.lit(writing.run_id).alias(run),
            )
            types = {c.name: c.sql_type for c in table.columns}
            copy_in(connection, table.table, frame.columns, frame, types)
        return now

    def _committed(
        self,
        table: TableSchema,
        writing: Writing,
        report: pl.DataFrame,
        source: str,
        lock: Sequence[int],
    ) -> bool:
        """Whether a transaction whose COMMIT went unanswered took place: the ledger knows.

        Waits for the lock first, which the lost transaction holds until it has ended.
        """
        days = report.filter(pl.col("fenced") == 0)["day"]
        with self.database.connection() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", lock)
            ledger = _ledger(connection, table, days)
        ours = ledger.filter(pl.col("source") == source, pl.col("token") >= writing.token)
        return days.is_in(ours["day"].implode()).all()


def _of_days(frame: pl.DataFrame, days: pl.Series, *, inverse: bool = False) -> pl.DataFrame:
    if frame.is_empty():
        return frame
    within = pl.col("day").is_in(days.implode()).fill_null(value=False)
    return frame.filter(~within if inverse else within)


def _without(batch: Batch, fenced: pl.Series) -> Batch:
    kept = batch.days.filter(~batch.days.is_in(fenced.implode()))
    return replace(
        batch,
        rows=_of_days(batch.rows, kept),
        days=kept,
        expected=_of_days(batch.expected, kept),
        exceptions=_of_days(batch.exceptions, kept),
    )


def _ledger(connection: psycopg.Connection, table: TableSchema, days: pl.Series) -> pl.DataFrame:
    """The ledger's rows of those days, all sources."""
    rows = connection.execute(
        "SELECT source, day, rows, content_hash, token FROM partition_ledger"
        " WHERE asset = %s AND day = ANY(%s)",
        [table.asset, days.to_list()],
    ).fetchall()
    return pl.DataFrame(rows, schema={**_DAY, "token": pl.Int64}, orient="row")


def _hashes(table: TableSchema, rows: pl.DataFrame, days: pl.Series, source: str) -> pl.DataFrame:
    """`source`, `day`, `rows`, `content_hash` of every day, those without rows included."""
    return (
        days.to_frame("day")
        .join(day_hashes(rows, table.day_column, table.hashed), on="day", how="left")
        .select(
            pl.lit(source).alias("source"),
            "day",
            pl.col("rows").fill_null(0).cast(pl.Int64),
            pl.col("content_hash").fill_null(0),
        )
    )


def _same_days(new: pl.DataFrame, ledger: pl.DataFrame) -> pl.Series:
    return new.join(ledger, on=["source", "day", "rows", "content_hash"], how="semi")["day"]


def _entries(
    new: pl.DataFrame, ledger: pl.DataFrame, written: pl.DataFrame, incoming: pl.DataFrame
) -> pl.DataFrame:
    """Ledger entries, with what this batch contributed to each day."""
    same = new.join(ledger, on=list(_DAY), how="semi").select("source", "day")
    counts = (
        incoming.group_by("day")
        .len("incoming")
        .join(written.group_by("day").len("written"), on="day", how="left")
        .select(
            "day",
            written=pl.col("written").fill_null(0).cast(pl.Int64),
            unchanged=pl.col("incoming").cast(pl.Int64) - pl.col("written").fill_null(0),
        )
    )
    return (
        new.join(same.with_columns(changed=pl.lit(value=False)), on=["source", "day"], how="left")
        .join(counts, on="day", how="left")
        .with_columns(
            pl.col("changed").fill_null(value=True),
            pl.col("written", "unchanged").fill_null(0).cast(pl.Int64),
        )
        .select(*_DAY, "changed", "written", "unchanged")
    )


def _replace_days(table: TableSchema, batch: Batch, ledger: pl.DataFrame) -> _Change:
    """A derived table: a day that differs is replaced whole."""
    new = _hashes(table, batch.rows, batch.days, batch.source)
    same = _same_days(new, ledger)
    held = ledger.filter(pl.col("rows") > 0)["day"]
    insert = batch.rows.filter(~pl.col("day").is_in(same.implode()))
    return _Change(
        insert=insert,
        gone=pl.DataFrame(),
        wiped=batch.days.filter(
            batch.days.is_in(held.implode()) & ~batch.days.is_in(same.implode())
        ),
        ledger=_entries(new, ledger, insert, batch.rows),
    )


def _fenced_report(
    ledger: pl.DataFrame, fenced: pl.Series, lost: pl.DataFrame, source: str
) -> pl.DataFrame:
    return (
        ledger.filter(pl.col("source") == source, pl.col("day").is_in(fenced.implode()))
        .join(lost.group_by("day").len("fenced"), on="day", how="left")
        .select(
            "day",
            "rows",
            pl.col("fenced").fill_null(0).cast(pl.Int64),
            changed=pl.lit(value=False),
        )
    )


def _days_are(table: TableSchema, days: pl.Series) -> sql.Composable:
    """A condition on the partition's column, as ranges: they prune chunks, a list does not."""
    ordinal = (
        days.sort()
        .to_frame("day")
        .with_columns(run=pl.col("day").cast(pl.Int32) - pl.int_range(pl.len(), dtype=pl.Int32))
    )
    runs = ordinal.group_by("run", maintain_order=True).agg(
        pl.col("day").min().alias("first"), pl.col("day").max().alias("last")
    )
    column = sql.Identifier(table.day_column)
    spans = [
        sql.SQL("({} >= {} AND {} < {}::date + 1)").format(
            column, sql.Literal(first), column, sql.Literal(last)
        )
        for first, last in runs.select("first", "last").iter_rows()
    ]
    where = sql.SQL("({})").format(sql.SQL(" OR ").join(spans))
    for name, value in table.constants.items():
        where = sql.SQL("{} AND {} = {}").format(where, sql.Identifier(name), sql.Literal(value))
    return where


def _select(table: TableSchema, days: pl.Series) -> str:
    return (
        sql.SQL("SELECT {} FROM {} WHERE {}")
        .format(
            sql.SQL(", ").join(map(sql.Identifier, table.names)),
            sql.Identifier(table.table),
            _days_are(table, days),
        )
        .as_string(None)
    )


def _fill_temporary(
    connection: psycopg.Connection,
    table: TableSchema,
    name: str,
    frame: pl.DataFrame,
) -> None:
    """A temporary table of some of the table's columns, gone with the transaction."""
    types = {n: table.column(n).sql_type for n in frame.columns}
    connection.execute(
        sql.SQL("CREATE TEMPORARY TABLE {} ({}) ON COMMIT DROP").format(
            sql.Identifier(name),
            sql.SQL(", ").join(
                sql.SQL("{} {}").format(sql.Identifier(n), sql.SQL(t)) for n, t in types.items()
            ),
        )
    )
    copy_in(connection, name, frame.columns, frame, types)
    connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(name)))


def _move_to_history(
    connection: psycopg.Connection,
    table: TableSchema,
    gone: pl.DataFrame,
    now: datetime,
) -> None:
    """Rows that are replaced leave the table and stay, with the moment they were superseded."""
    _fill_temporary(connection, table, "gone", gone)
    columns = sql.SQL(", ").join(map(sql.Identifier, (*table.names, *table.audit)))
    same = sql.SQL(" AND ").join(
        sql.SQL("t.{0} = g.{0}").format(sql.Identifier(n)) for n in table.key
    )
    moment = table.day_column if table.day_column in table.key else "time"
    span = sql.SQL("t.{0} BETWEEN {1} AND {2}").format(
        sql.Identifier(moment), sql.Literal(gone[moment].min()), sql.Literal(gone[moment].max())
    )
    deleted = sql.SQL("DELETE FROM {} t USING gone g WHERE {} AND {} RETURNING t.*").format(
        sql.Identifier(table.table), same, span
    )
    if table.history:
        connection.execute(
            sql.SQL(
                "WITH deleted AS ({}) INSERT INTO {} ({}, superseded_at) SELECT {}, {} FROM deleted"
            ).format(
                deleted,
                sql.Identifier(f"{table.table}_history"),
                columns,
                columns,
                sql.Literal(now),
            )
        )
    else:
        connection.execute(sql.SQL("WITH d AS ({}) SELECT count(*) FROM d").format(deleted))


def _write_ledger(
    connection: psycopg.Connection, table: TableSchema, writing: Writing, entries: pl.DataFrame
) -> None:
    if entries.is_empty():
        return
    if entries["changed"].any():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_REVISION_LOCK])
        row = connection.execute("SELECT nextval('content_revision')").fetchone()
        assert row is not None
        revision = int(row[0])
    else:
        revision = 0
    entries = entries.with_columns(
        revision=pl.when("changed").then(pl.lit(revision, pl.Int64)).otherwise(0)
    )
    if writing.upstream is None:
        entries = entries.with_columns(upstream_revision=pl.lit(0, pl.Int64))
    else:
        entries = entries.join(writing.upstream, on="day", how="left")
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
            **{name: entries[name].to_list() for name in (*_DAY, "revision", "upstream_revision")},
        },
    )


def _write_exceptions(
    connection: psycopg.Connection, table: TableSchema, writing: Writing, batch: Batch
) -> None:
    """Renew the exceptions of the days and symbols asked for: what is mended disappears."""
    if not batch.asked:
        return
    connection.execute(
        "DELETE FROM partition_exceptions"
        " WHERE asset = %s AND source = %s AND day = ANY(%s) AND symbol = ANY(%s)",
        [table.asset, batch.source, batch.days.to_list(), list(batch.asked)],
    )
    if batch.exceptions.height:
        connection.execute(
            "INSERT INTO partition_exceptions (asset, source, day, symbol, status, reason, run_id)"
            " SELECT %s, %s, day, symbol, status, reason, %s"
            " FROM unnest(%s::date[], %s::text[], %s::text[], %s::text[])"
            " AS u (day, symbol, status, reason)",
            [
                table.asset,
                batch.source,
                writing.run_id,
                *(batch.exceptions[n].to_list() for n in ("day", "symbol", "status", "reason")),
            ],
        )


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
        " SELECT %s, %s, day, symbol, reason, payload::jsonb, sha256(payload::bytea), %s, %s"
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
