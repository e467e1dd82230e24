"""The ledger: what is written, from which inputs, by whom - and who is writing right now.

Here live the queries on `partition_ledger` and the intents of running writers. Writing rows of
data, and with them the ledger's own, is the writer's (`writer.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import polars as pl
import psycopg
from psycopg import sql

from feature_pipeline.storage.database import Database

_INTENT_LOCK = 0x46504950
"""First half of the advisory-lock keys that live intents hold; the second is their token."""

_LIVE = f"""EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 2
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND classid = {_INTENT_LOCK} AND objid = (w.token & 2147483647)
)"""


@dataclass
class Intent:
    """A writer's announcement: which days of an asset it is about to write.

    It holds a session-level advisory lock on a connection of its own, so that it ends with its
    process, however that ends.
    """

    token: int
    _connection: psycopg.Connection

    def close(self) -> None:
        """Withdraw the announcement; doing it twice is harmless."""
        if self._connection.closed:
            return
        try:
            self._connection.execute("DELETE FROM write_intents WHERE token = %s", [self.token])
        except psycopg.Error:
            pass  # the lock goes with the connection; the next announcement sweeps the row away
        finally:
            self._connection.close()


class Ledger:
    """Questions to the ledger of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def next_token(self) -> int:
        """A fencing token: later callers get larger ones. Take it before inputs are read."""
        with self._database.connection() as connection:
            row = connection.execute("SELECT nextval('fencing_token')").fetchone()
        assert row is not None
        return int(row[0])

    def rows(self, asset: str, start: date, end: date) -> pl.DataFrame:
        """The ledger's rows of an asset for the days in [start, end)."""
        return self._database.read_frame(
            "SELECT source, day, rows, content_hash, revision, upstream_revision, code_version,"
            f" token FROM partition_ledger WHERE asset = {_text(asset)}"
            f" AND day >= '{start}' AND day < '{end}' ORDER BY day, source"
        )

    def revisions(self, asset: str, start: date, end: date) -> pl.DataFrame:
        """`day` and its newest `revision` over all sources, sorted by day."""
        return self._database.read_frame(
            "SELECT day, max(revision) AS revision FROM partition_ledger"
            f" WHERE asset = {_text(asset)} AND day >= '{start}' AND day < '{end}'"
            " GROUP BY day ORDER BY day"
        )

    def dropped_days(self, asset: str, start: date, end: date) -> pl.Series:
        """The days in [start, end) that retention dropped, and that nobody has written since."""
        return self._database.read_frame(
            f"SELECT day FROM dropped_days d WHERE asset = {_text(asset)}"
            f" AND day >= '{start}' AND day < '{end}' AND NOT EXISTS (SELECT FROM partition_ledger"
            " l WHERE l.asset = d.asset AND l.day = d.day) ORDER BY day"
        )["day"]

    def exceptions(self, asset: str, start: date, end: date) -> pl.DataFrame:
        """`source`, `day`, `symbol`, `status`, `reason` of what is known to be missing in
        [start, end)."""
        return self._database.read_frame(
            "SELECT source, day, symbol, status, reason FROM partition_exceptions"
            f" WHERE asset = {_text(asset)} AND day >= '{start}' AND day < '{end}'"
            " ORDER BY day, symbol, source"
        )

    def written_by(self, run_id: str) -> int:
        """How many partitions this run has written, or found to be right, so far."""
        with self._database.connection() as connection:
            row = connection.execute(
                "SELECT count(DISTINCT (asset, day)) FROM partition_ledger WHERE run_id = %s",
                [run_id],
            ).fetchone()
        assert row is not None
        return int(row[0])

    def progress(self, run_ids: Sequence[str]) -> dict[str, int]:
        """Asset -> how many of its partitions these runs have written, or found to be right."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT asset, count(DISTINCT day) FROM partition_ledger"
                " WHERE run_id = ANY(%s) GROUP BY asset",
                [list(run_ids)],
            ).fetchall()
        return {str(asset): int(count) for asset, count in rows}

    def written_before_their_end(self, asset: str, start: date, end: date) -> pl.Series:
        """The days in [start, end) that were last written before they were over."""
        return self._database.read_frame(
            f"SELECT DISTINCT day FROM partition_ledger WHERE asset = {_text(asset)}"
            f" AND day >= '{start}' AND day < '{end}'"
            " AND updated_at < (day + 1)::timestamp AT TIME ZONE 'UTC' ORDER BY day"
        )["day"]

    def written_at(self, asset: str, start: date, end: date) -> pl.DataFrame:
        """`day` and when it was last written, or found to be right, in [start, end)."""
        return self._database.read_frame(
            f"SELECT day, max(updated_at) AS written_at FROM partition_ledger"
            f" WHERE asset = {_text(asset)} AND day >= '{start}' AND day < '{end}' GROUP BY day"
        )

    def remember_group(self, group: str, symbols: Sequence[str]) -> None:
        """Note whom a group of instruments consists of; the ledger names it by its digest."""
        with self._database.connection() as connection:
            connection.execute(
                "INSERT INTO collected_for (digest, symbols) VALUES (%s, %s)"
                " ON CONFLICT DO NOTHING",
                [group, list(symbols)],
            )

    def groups(self) -> dict[str, list[str]]:
        """Every group of instruments that days of events were collected for."""
        with self._database.connection() as connection:
            return dict(connection.execute("SELECT digest, symbols FROM collected_for").fetchall())

    def announce(self, asset: str, start: date, end: date, token: int, run_id: str) -> Intent:
        """Tell other runs that the days [start, end) of `asset` are being written."""
        connection = self._database.dedicated()
        try:
            with self._database.explained():
                # The lock of a machine that vanished goes in a minute, not when TCP notices.
                connection.execute(
                    "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10;"
                    " SET tcp_keepalives_count = 3"
                )
                connection.execute(
                    "SELECT pg_advisory_lock(%s, %s)", [_INTENT_LOCK, token & 0x7FFFFFFF]
                )
                connection.execute(f"DELETE FROM write_intents w WHERE NOT {_LIVE}")
                connection.execute(
                    "INSERT INTO write_intents (token, asset, first_day, last_day, run_id)"
                    " VALUES (%s, %s, %s, %s::date - 1, %s)",
                    [token, asset, start, end, run_id],
                )
        except BaseException:
            connection.close()
            raise
        return Intent(token, connection)

    def in_progress(self, asset: str, days: pl.Series) -> pl.Series:
        """Those of `days` that a live writer of `asset` has announced."""
        with self._database.connection() as connection:
            spans = connection.execute(
                f"SELECT first_day, last_day FROM write_intents w WHERE asset = %s AND {_LIVE}",
                [asset],
            ).fetchall()
        covered = pl.any_horizontal(
            pl.lit(value=False), *(pl.col("day").is_between(first, last) for first, last in spans)
        )
        return days.to_frame("day").filter(covered)["day"]


def newest_within(
    starts: np.ndarray, ends: np.ndarray, days: np.ndarray, revisions: np.ndarray
) -> np.ndarray:
    """The largest revision in each inclusive range of days; 0 where there is none.

    Args:
        starts, ends: int64 day numbers, one pair per answer.
        days, revisions: the ledger, sorted by day.

    A sparse table: O(n log n) to build, O(1) per range, no loop over days.
    """
    low = np.searchsorted(days, starts, side="left")
    high = np.searchsorted(days, ends, side="right")
    answer = np.zeros(len(starts), dtype=np.int64)
    width = high - low
    table, span = revisions.astype(np.int64), 1
    while width.size and span <= width.max(initial=0):
        here = (width >= span) & (width < 2 * span)
        answer[here] = np.maximum(table[low[here]], table[high[here] - span])
        table = np.maximum(table[:-span], table[span:]) if len(table) > span else table[:0]
        span *= 2
    return answer


def _text(value: str) -> str:
    return sql.quote(value)
