"""Upkeep of the trading side's logs: a partition per month ahead, and old months to Parquet.

`audit.decisions` and `audit.system_events` are written by others; here they are only kept in order.
What makes and detaches partitions are the database's own functions (`sql/0014_trading_schema.sql`),
so that neither needs the right to make or drop tables. (`audit.py` asks whether tables are right,
and has nothing to do with these.)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import polars as pl
import psycopg
from psycopg import sql

from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.storage.database import Database

COLUMNS = {
    "decisions": "id::text, timestamp, decision_type, symbol::text, signals, risk_check,"
    " final_action, reasoning, order_id::text",
    "system_events": "id, timestamp, event_type, severity, component, message, metadata",
}
"""Log -> its columns as a file has them: ids and JSON as text."""

_OVER = """
SELECT p.relname, c.relname FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
JOIN pg_namespace n ON n.oid = p.relnamespace
WHERE n.nspname = 'audit' AND p.relname = ANY(%s) AND c.relname ~ '_\\d{4}_\\d{2}$'
    AND to_date(right(c.relname, 7), 'YYYY_MM')
        <= date_trunc('month', now() AT TIME ZONE 'UTC') - INTERVAL '13 months'
ORDER BY 1, 2
"""


class ArchiveError(FeaturePipelineError):
    """A month of a log could not be archived; it is where it was."""


@dataclass(frozen=True)
class Archived:
    """A month that was taken out of its log: the table that it is now, and the file."""

    partition: str
    rows: int
    path: Path


@dataclass(frozen=True)
class Upkeep:
    """What was done: partitions made, months archived."""

    made: tuple[str, ...]
    archived: tuple[Archived, ...]


def upkeep(database: Database, directory: Path, *, dry_run: bool = False) -> Upkeep:
    """Make the partitions of the next twelve months, and archive the months older than a year.

    A month is exported to `directory/<log>/month=YYYY-MM/<log>.parquet`, and then detached: its
    table stays, outside of the log, until somebody drops it. Killed at any point and run again, it
    does the rest. Rows that came late are exported with their month's table, if it is still there,
    else to a file beside the month's.

    Args:
        database: as the maintainer or the owner of the tables.
        directory: where to; made if it is not there.
        dry_run: say what would be done, and do nothing.

    Raises:
        ArchiveError: a file cannot be written, or rows came into an old month meanwhile.
        DatabaseError: the database cannot be reached, is not migrated, or refuses.
    """
    with database.connection() as connection:
        made = connection.execute("SELECT * FROM audit.make_partitions()").fetchall()
        if dry_run:
            connection.rollback()
        old = connection.execute(_OVER, [list(COLUMNS)]).fetchall()
    archived = []
    for log, partition in old:
        rows = _read(database, log, partition)
        try:
            path = _path(directory / log / f"month={partition[-7:].replace('_', '-')}", log, rows)
            if not dry_run:
                _write(rows, path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ArchiveError(
                f"audit.{partition} cannot be exported to {directory}: {str(error).splitlines()[0]}"
            ) from error
        if not dry_run:
            _detach(database, partition, rows.height)
        archived.append(Archived(partition, rows.height, path))
    return Upkeep(tuple(name for (name,) in made), tuple(archived))


def behind(database: Database) -> tuple[int, list[str]]:
    """What waits for `upkeep`: how many rows have no partition of their own month, and which logs
    have none for the next one."""
    month = "to_char(now() AT TIME ZONE 'UTC' + INTERVAL '1 month', '_YYYY_MM')"
    logs = database.read_frame(
        " UNION ALL ".join(
            f"SELECT 'audit.{log}' AS log, to_regclass('audit.{log}' || {month}) IS NULL AS lacks,"
            # Those at infinity belong to no month, and stay.
            f" (SELECT count(*) FROM audit.{log}_default WHERE isfinite(timestamp)) AS waiting"
            for log in COLUMNS
        )
    )
    return int(logs["waiting"].sum()), logs.filter("lacks")["log"].to_list()


def _read(database: Database, log: str, partition: str) -> pl.DataFrame:
    query = sql.SQL("SELECT {} FROM {} ORDER BY timestamp, id").format(
        sql.SQL(COLUMNS[log]),
        sql.Identifier("audit", partition),
    )
    return database.read_frame(query.as_string(None))


def _path(folder: Path, log: str, rows: pl.DataFrame) -> Path:
    """The month's first file that is not there, or that has no row which is not among these: of a
    month whose table was dropped since, the file is all there is."""
    beside = (folder / f"{log}-{number}.parquet" for number in count(2))
    return next(path for path in chain([folder / f"{log}.parquet"], beside) if _within(path, rows))


def _within(path: Path, rows: pl.DataFrame) -> bool:
    """Whether all that a file holds is among the rows."""
    key = ["id", "timestamp"]
    return (
        not path.exists() or pl.read_parquet(path, columns=key).join(rows, key, "anti").is_empty()
    )


def _write(rows: pl.DataFrame, path: Path) -> None:
    """Write a month to its file, whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.write_parquet(unfinished, compression="zstd")
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    held = pl.scan_parquet(unfinished).select(pl.len()).collect().item()
    if held != rows.height:
        raise ArchiveError(f"{path} holds {held} of {rows.height} rows; is the disk full?")
    unfinished.replace(path)


def _detach(database: Database, partition: str, exported: int) -> None:
    with database.connection() as connection:
        connection.execute("SET LOCAL lock_timeout = '10s'")
        try:
            row = connection.execute("SELECT audit.detach_partition(%s)", [partition]).fetchone()
        except psycopg.errors.LockNotAvailable:
            raise ArchiveError(
                f"audit.{partition} is being read or written; run upkeep again"
            ) from None
        if row != (exported,):  # an error rolls back
            raise ArchiveError(
                f"audit.{partition} has got rows since it was exported; run upkeep again"
            )
