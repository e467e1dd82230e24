"""Positions against their fills and what brokers hold, as they stood at the end of a UTC day.

The trading side's tables (`sql/0014_trading_schema.sql`) are only read; what the comparison finds
is written by the contract that writes every table. What counts as apart is not decided here.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import polars as pl

from feature_pipeline.schemas import POSITION_RECONCILIATION
from feature_pipeline.storage.store import DERIVED, Store
from feature_pipeline.storage.writer import Batch, Writing
from feature_pipeline.universe import calendar_zone

# In numeric to the last step: what was bought and sold again is exactly nothing. Quantities are
# counted in shares as they were before all splits, and told in those of the day.
_COMPARED = """
WITH days AS (
    SELECT day, day + INTERVAL '1 day' AS until
    FROM generate_series(%(start)s::timestamptz, %(last)s::timestamptz, '1 day') AS day
), split AS (
    SELECT symbol, since, until, shares::text::numeric AS shares
    FROM unnest(
        %(symbols)s::text[], %(since)s::timestamptz[], %(until)s::timestamptz[],
        %(shares)s::float8[]
    ) AS s (symbol, since, until, shares)
), fills AS (
    SELECT t.symbol, t.broker, t.executed_at,
        CASE t.side WHEN 'buy' THEN t.quantity ELSE -t.quantity END / coalesce(s.shares, 1)
            AS quantity
    FROM trading.trades AS t LEFT JOIN split AS s
        ON s.symbol = t.symbol AND t.executed_at >= s.since AND t.executed_at < s.until
    WHERE t.executed_at <= %(now)s
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
        p.quantity / coalesce(s.shares, 1) AS position, 0 AS traded, 0 AS held
    FROM days AS d CROSS JOIN trading.positions AS p LEFT JOIN split AS s
        ON s.symbol = p.symbol AND s.since <= %(now)s AND s.until > %(now)s
    UNION ALL
    SELECT day, symbol, quantity IS NOT NULL, -coalesce(later, 0), coalesce(quantity, 0), 0
    FROM traded
    UNION ALL
    SELECT n.day, b.symbol, true, 0, 0, b.quantity / coalesce(s.shares, 1)
    FROM snapshots AS n JOIN trading.broker_positions AS b USING (broker, taken_at)
        LEFT JOIN split AS s
        ON s.symbol = b.symbol AND b.taken_at >= s.since AND b.taken_at < s.until
    UNION ALL
    SELECT n.day, f.symbol, true, 0, 0, f.quantity
    FROM snapshots AS n JOIN fills AS f ON f.broker = n.broker
        AND f.executed_at > n.taken_at AND f.executed_at < n.until
), compared AS (
    SELECT day, symbol, sum(position) AS position, sum(traded) AS traded, sum(held) AS held
    FROM sides GROUP BY day, symbol HAVING bool_or(known)
), of_the_day AS (
    SELECT c.day, c.symbol, round(c.position * f.shares, 8) AS position,
        round(c.traded * f.shares, 8) AS traded, round(c.held * f.shares, 8) AS held
    FROM compared AS c JOIN days AS d USING (day)
        LEFT JOIN split AS s ON s.symbol = c.symbol
            AND s.since <= least(d.until, %(now)s) AND s.until > least(d.until, %(now)s)
        CROSS JOIN LATERAL (SELECT coalesce(s.shares, 1) AS shares) AS f
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
    FROM of_the_day AS c LEFT JOIN seen AS s USING (day) LEFT JOIN unseen AS u USING (day, symbol)
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


def compare(store: Store, start: date, end: date, now: datetime) -> pl.DataFrame:
    """Rows of `position_reconciliation` for the days [start, end), without writing them.

    Each side as it stood at the day's end, or now, in shares of then: the position as the table has
    it, less the fills since; the sum of the fills; the newest snapshot of the day of each broker,
    with the fills after it. What a broker holds is not known where one that a symbol was traded
    with has no snapshot.

    Raises:
        DatabaseError: the database cannot be reached, is not migrated, or refuses.
    """
    last = end - timedelta(days=1)
    asked = {"start": start, "last": last, "now": now, **_splits(store)}
    return POSITION_RECONCILIATION.conform(store.database.read_frame(_COMPARED, asked))


def _splits(store: Store) -> dict[str, list[Any]]:
    """Per name of an instrument and split: how many shares one of before all splits has become,
    from the midnight of the ex-date at its exchange to the next split."""
    found = store.database.read_frame(
        "SELECT symbol, time, value FROM corporate_actions WHERE kind = 'split'"
        " ORDER BY symbol, time"
    )
    of = {instrument.id: instrument for instrument in store.universe.instruments}
    found = found.filter(pl.col("symbol").is_in(of.keys())).with_columns(
        shares=pl.col("value").cum_prod().over("symbol")
    )
    columns: dict[str, list[Any]] = {n: [] for n in ("symbols", "since", "until", "shares")}
    for (name,), splits in found.partition_by("symbol", as_dict=True).items():
        instrument = of[name]
        names = {name, *(listing.symbol for listing in instrument.symbols)}
        zone = calendar_zone(instrument.calendar)
        since = [datetime.combine(at, time(), zone) for at in splits["time"].dt.date()]
        for symbol in sorted(n for n in names if store.universe.resolve(n) is instrument):
            columns["symbols"] += [symbol] * len(since)
            columns["since"] += since
            columns["until"] += [*since[1:], datetime.max.replace(tzinfo=UTC)]
            columns["shares"] += splits["shares"].to_list()
    return columns


def reconcile(
    store: Store, start: date, end: date, *, run_id: str, code_version: str
) -> pl.DataFrame:
    """Compare the days [start, end) and write what was found; the rows.

    A day that says what it said before is not written again.

    Raises:
        DatabaseError: see `compare`.
    """
    writing = Writing(store.ledger.next_token(), run_id, code_version)
    rows = compare(store, start, end, store.clock())
    days = pl.date_range(start, end, closed="left", eager=True).alias("day")
    store.writer.write(POSITION_RECONCILIATION, writing, [Batch(DERIVED, rows, days, asked=None)])
    return rows
