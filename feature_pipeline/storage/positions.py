"""Positions against their fills and what brokers hold, as they stood at the end of a UTC day.

The trading side's tables (`sql/0014_trading_schema.sql`) are only read; what the comparison finds
is written by the contract that writes every table. What counts as apart is not decided here.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta

import polars as pl

from feature_pipeline.schemas import POSITION_RECONCILIATION
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.store import DERIVED, Store
from feature_pipeline.storage.writer import Batch, Writing

# In numeric to the last step: what was bought and sold again is exactly nothing.
_COMPARED = """
WITH days AS (
    SELECT day, day + INTERVAL '1 day' AS until
    FROM generate_series(%(start)s::timestamptz, %(last)s::timestamptz, '1 day') AS day
), fills AS (
    SELECT symbol, broker, executed_at,
        CASE side WHEN 'buy' THEN quantity ELSE -quantity END AS quantity
    FROM trading.trades WHERE executed_at <= %(now)s
), daily AS (
    SELECT symbol, broker, date_trunc('day', executed_at, 'UTC') AS day, sum(quantity) AS quantity
    FROM fills GROUP BY 1, 2, 3
), traded AS (
    SELECT d.day, f.symbol, f.broker,
        sum(f.quantity) FILTER (WHERE f.day <= d.day) AS quantity,
        sum(f.quantity) FILTER (WHERE f.day > d.day) AS later
    FROM days AS d CROSS JOIN daily AS f GROUP BY 1, 2, 3
), snapshots AS (
    SELECT d.day, d.until, s.broker, max(s.taken_at) AS taken_at
    FROM days AS d JOIN trading.broker_positions AS s
        ON s.taken_at >= d.day AND s.taken_at < d.until AND s.taken_at <= %(now)s
    GROUP BY 1, 2, 3
), sides AS (
    SELECT d.day, p.symbol, p.opened_at < d.until AS known,
        p.quantity AS position, 0 AS traded, 0 AS held
    FROM days AS d CROSS JOIN trading.positions AS p
    UNION ALL
    SELECT day, symbol, quantity IS NOT NULL, -coalesce(later, 0), coalesce(quantity, 0), 0
    FROM traded
    UNION ALL
    SELECT n.day, b.symbol, true, 0, 0, b.quantity
    FROM snapshots AS n JOIN trading.broker_positions AS b USING (broker, taken_at)
    UNION ALL
    SELECT n.day, f.symbol, true, 0, 0, f.quantity
    FROM snapshots AS n JOIN fills AS f ON f.broker = n.broker
        AND f.executed_at > n.taken_at AND f.executed_at < n.until
), compared AS (
    SELECT day, symbol, sum(position) AS position, sum(traded) AS traded, sum(held) AS held
    FROM sides GROUP BY day, symbol HAVING bool_or(known)
), seen AS (
    SELECT day, array_agg(broker ORDER BY broker) AS brokers FROM snapshots GROUP BY day
), unseen AS (
    SELECT t.day, t.symbol, array_agg(t.broker ORDER BY t.broker) AS brokers
    FROM traded AS t LEFT JOIN snapshots AS n USING (day, broker)
    WHERE t.quantity <> 0 AND n.broker IS NULL GROUP BY t.day, t.symbol
), told AS (
    SELECT c.day, c.symbol, c.position, c.traded,
        CASE WHEN u.brokers IS NULL AND s.brokers IS NOT NULL THEN c.held END AS held,
        coalesce(s.brokers, '{}') AS brokers, coalesce(u.brokers, '{}') AS unseen
    FROM compared AS c LEFT JOIN seen AS s USING (day) LEFT JOIN unseen AS u USING (day, symbol)
)
SELECT symbol::text AS symbol, day AS time,
    least(day + INTERVAL '1 day', %(now)s) AS available_at, 'observed' AS availability_basis,
    position::float8 AS position, traded::float8 AS traded, held::float8 AS held,
    coalesce(abs(position - traded) / nullif(greatest(abs(position), abs(traded)), 0), 0)::float8
        AS traded_difference,
    CASE WHEN held IS NOT NULL THEN coalesce(
        abs(position - held) / nullif(greatest(abs(position), abs(held)), 0), 0)::float8
    END AS held_difference,
    brokers, unseen
FROM told
WHERE position <> 0 OR traded <> 0 OR coalesce(held, 0) <> 0
ORDER BY day, symbol
"""


def compare(database: Database, start: date, end: date, now: datetime) -> pl.DataFrame:
    """Rows of `position_reconciliation` for the days [start, end), without writing them.

    Each side as it stood at the day's end, or now: the position as the table has it, less the fills
    since; the sum of the fills; the newest snapshot of the day of each broker, with the fills after
    it. What a broker holds is not known where one that a symbol was traded with has no snapshot.

    Raises:
        DatabaseError: the database cannot be reached, is not migrated, or refuses.
    """
    last = end - timedelta(days=1)
    frame = database.read_frame(_COMPARED, {"start": start, "last": last, "now": now})
    return POSITION_RECONCILIATION.conform(frame)


def reconcile(
    store: Store, start: date, end: date, *, run_id: str, code_version: str
) -> pl.DataFrame:
    """Compare the days [start, end) and write what was found; the rows.

    A day that says what it said before is not written again.

    Raises:
        DatabaseError: see `compare`.
    """
    writing = Writing(store.ledger.next_token(), run_id, code_version)
    rows = compare(store.database, start, end, store.clock())
    days = pl.date_range(start, end, closed="left", eager=True).alias("day")
    store.writer.write(POSITION_RECONCILIATION, writing, Batch(DERIVED, rows, days, asked=None))
    return rows
