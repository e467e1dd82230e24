"""The write contract: one function writes every table, and a partition is all old or all new.

One transaction per calendar month: lock -> drop what a newer writer has written, and what is told
already (`twins.py`) -> keep replaced source rows in history -> delete -> binary COPY -> ledger ->
commit. What is to change is worked out in `changes.py`, the statements are in `statements.py`;
deciding what is written at all, and judging what a source answered, is the store's (`store.py`).
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import polars as pl
import psycopg
from psycopg import sql

from feature_pipeline.errors import DatabaseError
from feature_pipeline.schemas import UTC_TIME, TableSchema
from feature_pipeline.storage import changes, repeats, statements, twins
from feature_pipeline.storage.changes import Batch, Change, Writing, of_days
from feature_pipeline.storage.database import Database, copy_in

__all__ = ["STEPS", "Batch", "Writer", "Writing"]

log = logging.getLogger(__name__)

STEPS = ("lock", "token", "history", "delete", "copy", "ledger", "commit")
"""What `Writer.trace` is told, in this order, in every month's transaction."""


@dataclass(frozen=True)
class _Done:
    """What one transaction did, by `day`."""

    entered: pl.Series
    """The days whose ledger it wrote."""
    rows: pl.DataFrame
    """`day`, `rows` of the batch's source in the partition now."""
    written: pl.DataFrame
    """`day` and `count` of the batch's rows written; the same of those that were there already,
    and of those fenced."""
    unchanged: pl.DataFrame
    fenced: pl.DataFrame
    duplicate: pl.DataFrame
    """The same of those that tell again what another row tells."""


@dataclass
class Writer:
    """Writes batches into one database.

    Args:
        database: where to.
        trace: told each step as it begins.
        months_at_once: transactions side by side: while the server takes one month in, the next
            one is worked out.
    """

    database: Database
    trace: Callable[[str], None] = log.debug
    months_at_once: int = 4

    def write(self, table: TableSchema, writing: Writing, batches: Iterable[Batch]) -> pl.DataFrame:
        """Write batches, a few months at a time; what is done stays, whatever becomes of others.

        Args:
            table: which one.
            writing: who writes.
            batches: of one source, each of other months; while the next one is being made, those
                before it are written.

        Returns:
            One row per day written: `day`, `rows` of the source in the partition now, `written`,
            `unchanged`, `fenced` and `duplicate` rows of the batches.

        Raises:
            DatabaseError: the database refused, or did not answer in time; the months it was at
                are as they were before.
        """
        # What accumulates has one lock: side by side its months would only wait for each other.
        at_once = 1 if table.mode == "accumulate" else self.months_at_once
        with ThreadPoolExecutor(at_once, "feature-pipeline-write") as pool:
            try:
                months = [
                    pool.submit(self._month, table, writing, part)
                    for batch in batches
                    for part in _by_month(table, batch)
                ]
                return _report([month.result() for month in months])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _month(self, table: TableSchema, writing: Writing, batch: Batch) -> _Done:
        """One transaction, and the settlement of a COMMIT whose answer was lost."""
        if table.twins is None:  # else what is written is known only under the lock
            batch = batch.prepared(table)
        first = batch.days[0]
        # What accumulates is searched by identity, not by day: its writers exclude each other.
        month = 0 if table.mode == "accumulate" else first.year * 12 + first.month
        lock = (zlib.crc32(table.table.encode()) & 0x7FFFFFFF, month)
        done: _Done | None = None
        try:
            with self.database.connection() as connection:
                done = self._transaction(connection, table, writing, batch, lock)
                self.trace("commit")
        except DatabaseError:
            if done is None or not self._committed(table, writing, batch.source, done, lock):
                raise
            log.warning("%s: the answer to COMMIT was lost; the ledger has it", table.asset)
        assert done is not None
        return done

    def _transaction(
        self,
        connection: psycopg.Connection,
        table: TableSchema,
        writing: Writing,
        batch: Batch,
        lock: Sequence[int],
    ) -> _Done:
        """Everything between BEGIN and COMMIT; returns what it did."""
        # A writer whose machine vanished must not keep others out until TCP notices, in hours.
        connection.execute(
            "SET LOCAL idle_in_transaction_session_timeout = '5min';"
            # Else TimescaleDB refuses to rewrite large compressed days; elsewhere it is a name.
            " SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0"
        )
        self.trace("lock")
        connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", lock)
        ledger = statements.ledger_of(connection, table, batch.days)
        self.trace("token")
        batch, repeated = self._without_twins(table, batch)
        allowed = batch
        if table.mode == "replace":
            allowed = _without_newer(table, writing, batch, ledger)
        change, ledger = self._change(connection, table, writing, allowed, ledger)
        now = self._apply(connection, table, writing, change)
        if allowed.erases:
            statements.erase(connection, table, allowed.rows)
        self.trace("ledger")
        renewed = statements.write_exceptions(connection, table, writing, allowed)
        statements.write_ledger(
            connection, table, writing, _entries(table, allowed, change, ledger, renewed)
        )
        statements.write_quarantine(connection, table, writing, batch, now)
        done = _done(batch, allowed, change, ledger, repeated)
        if done.fenced.is_empty():
            statements.write_releases(connection, batch, now)
        return done

    def _without_twins(self, table: TableSchema, batch: Batch) -> tuple[Batch, pl.DataFrame]:
        """The batch without the rows that are told already, prepared; and those rows. A row that a
        person released is written whatever else is told."""
        repeated = batch.rows.clear()
        if table.twins is None:
            return batch, repeated
        if batch.rows.height and not batch.released and not batch.erases:
            held = twins.stored(self.database, table, batch.rows)
            told = twins.sort_out(table, batch.rows, held)
            batch, repeated = replace(batch, rows=told.rows), told.repeated
        return batch.prepared(table), repeated

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
            return changes.replace_days(batch, ledger), ledger
        days = changes.doubtful(table, batch, ledger)
        if table.mode == "replace":
            stored = of_days(self._stored(table, statements.of_these_days(table, days), days), days)
            return changes.replace_rows(table, batch, ledger, days, stored, writing.token), ledger
        stored = self._stored(
            table, statements.of_these_things(table, of_days(batch.rows, days)), days
        )
        elsewhere = changes.without(stored["day"].unique().sort(), batch.days)
        if elsewhere.len():
            ledger = pl.concat([ledger, statements.ledger_of(connection, table, elsewhere)])
        return changes.accumulate(table, batch, ledger, days, stored, writing.token), ledger

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
        now = statements.one(connection, "SELECT clock_timestamp()").astimezone(UTC)
        self.trace("history")
        if change.gone.height:
            statements.remove(connection, table, change.gone, now)
        self.trace("delete")
        if change.wiped.len():
            connection.execute(
                sql.SQL("DELETE FROM {} t {}").format(
                    sql.Identifier(table.table), statements.of_these_days(table, change.wiped)
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
            if table.repeats:
                frame = repeats.settled(self.database, connection, table, frame)
            types = {c.name: c.sql_type for c in table.columns}
            taken = copy_in(connection, table.table, frame.columns, frame, types)
            if taken != frame.height:
                raise DatabaseError(
                    f"{table.table}: the server took in {taken} of {frame.height} rows; remove the "
                    "trigger or rule that drops rows from it, and run again"
                )
        return now

    def _committed(
        self,
        table: TableSchema,
        writing: Writing,
        source: str,
        done: _Done,
        lock: Sequence[int],
    ) -> bool:
        """Whether a transaction whose COMMIT went unanswered took place: the ledger knows.

        Waits for the lock first, which the lost transaction holds until it has ended.
        """
        days = done.entered
        with self.database.connection() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", lock)
            ledger = statements.ledger_of(connection, table, days)
        # A newer writer of whole days would have fenced us; one that only adds says nothing of us.
        token = pl.col("token")
        theirs = token == writing.token if table.mode == "accumulate" else token >= writing.token
        ours = ledger.filter(pl.col("source") == source, theirs)
        return days.len() > 0 and days.is_in(ours["day"].implode()).all()


def _by_month(table: TableSchema, batch: Batch) -> list[Batch]:
    """A batch per calendar month; the rows with their `day`."""
    month = pl.col("day").dt.truncate("1mo").alias("month")

    def split(frame: pl.DataFrame) -> dict[tuple[object, ...], pl.DataFrame]:
        return frame.with_columns(month).partition_by("month", as_dict=True, include_key=False)

    batch = replace(batch, rows=batch.rows.with_columns(day=pl.col(table.day_column).dt.date()))
    rows, silent, exceptions = map(split, (batch.rows, batch.silent, batch.exceptions))
    parts = [
        replace(
            batch,
            days=days["day"],
            rows=rows.get(key, batch.rows.clear()),
            silent=silent.get(key, batch.silent.clear()),
            exceptions=exceptions.get(key, batch.exceptions.clear()),
            quarantined=batch.quarantined.clear(),
        )
        for key, days in sorted(
            split(batch.days.to_frame("day")).items(), key=lambda item: item[1]["day"][0]
        )
    ]
    # A rejected row may be about any day, or none: all go with the first month.
    return [replace(parts[0], quarantined=batch.quarantined), *parts[1:]]


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


def _done(
    batch: Batch, allowed: Batch, change: Change, ledger: pl.DataFrame, repeated: pl.DataFrame
) -> _Done:
    ours = pl.col("source") == batch.source
    rows = change.entries.filter(ours).select("day", "rows")
    fenced = change.fenced.select("day")
    left = changes.without(batch.days, allowed.days)
    if left.len():
        rows = pl.concat([rows, of_days(ledger.filter(ours).select("day", "rows"), left)])
        fenced = pl.concat([fenced, of_days(batch.rows.select("day"), left)])
    written, unchanged = _per_day(change.insert), _per_day(change.known)
    return _Done(allowed.days, rows, written, unchanged, _per_day(fenced), _per_day(repeated))


def _per_day(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.group_by("day").agg(pl.len().cast(pl.Int64).alias("count"))


def _report(done: Sequence[_Done]) -> pl.DataFrame:
    """`day`, `rows`, `written`, `unchanged`, `fenced`, `duplicate`: one row per day written."""

    def together(name: str) -> pl.DataFrame:
        return pl.concat(getattr(part, name) for part in done).rename({"count": name})

    return (
        pl.concat(part.rows for part in done)
        .join(together("written"), on="day", how="left")
        .join(together("unchanged"), on="day", how="left")
        .join(together("fenced"), on="day", how="left")
        .join(together("duplicate"), on="day", how="left")
        .with_columns(pl.exclude("day").fill_null(0))
        .sort("day")
    )


def _entries(
    table: TableSchema, batch: Batch, change: Change, ledger: pl.DataFrame, renewed: pl.Series
) -> pl.DataFrame:
    """The ledger's new entries, `changed` where a day says something else than before, `whole`
    where it was written as such: not for a row that left it, or was erased.

    Of what accumulates, who could not be collected is part of what a day says: without it, nobody
    could tell "there is none" from "not known". So is who wrote it, where several models may.
    """
    content = list(changes.CONTENT)
    same = ledger.select(content).with_columns(changed=pl.lit(value=False))
    changed = pl.col("changed").fill_null(value=True)
    if table.mode == "accumulate":
        changed |= pl.col("day").is_in(renewed.implode())
    if table.written_by:
        ours = ledger.filter(pl.col("code_version").str.ends_with(table.written_by))
        changed |= ~pl.col("day").is_in(ours["day"].implode())
    days = batch.days.clear() if batch.erases else batch.days
    whole = (pl.col("source") == batch.source) & pl.col("day").is_in(days.implode())
    return change.entries.join(same, on=content, how="left").with_columns(
        changed=changed, whole=whole
    )
