"""How tables are cut, compressed and kept: what `storage_policies` says, and what has become of it.

Looks only. What the policies are stands in `sql/0015_storage_policies.sql` and the migrations after
it; `sql/timescaledb.sql` carries them out. Plain PostgreSQL drops and compresses nothing: the
policies say what would apply.
"""

from __future__ import annotations

from datetime import date

import polars as pl

from feature_pipeline.storage.database import Database

_PLANNED = """
SELECT relation AS "table",
    null::bigint AS chunks, null::float8 AS compressed, null::float8 AS saved,
    chunk_interval::text, compress_after::text, retention::text, null::timestamptz AS next_run
FROM storage_policies WHERE to_regclass(relation) IS NOT NULL ORDER BY relation
"""

_APPLIED = """
SELECT p.relation AS "table", n.chunks, n.compressed / nullif(n.chunks, 0)::float8 AS compressed,
    1 - s.after_compression_total_bytes / s.before_compression_total_bytes::float8 AS saved,
    d.time_interval::text AS chunk_interval, c.config ->> 'compress_after' AS compress_after,
    CASE WHEN r.job_id IS NOT NULL THEN p.retention::text END AS retention,
    nullif(least(c.next_start, r.next_start), '-infinity') AS next_run
FROM storage_policies p
JOIN timescaledb_information.dimensions d
    ON format('%I.%I', d.hypertable_schema, d.hypertable_name)::regclass = to_regclass(p.relation)
CROSS JOIN LATERAL (
    SELECT count(*) AS chunks, count(*) FILTER (WHERE is_compressed) AS compressed
    FROM timescaledb_information.chunks
    WHERE (hypertable_schema, hypertable_name) = (d.hypertable_schema, d.hypertable_name)
) n
LEFT JOIN LATERAL hypertable_columnstore_stats(to_regclass(p.relation)) s ON true
LEFT JOIN timescaledb_information.jobs c
    ON c.proc_name = 'policy_compression'
    AND (c.hypertable_schema, c.hypertable_name) = (d.hypertable_schema, d.hypertable_name)
LEFT JOIN timescaledb_information.jobs r
    ON r.proc_name = 'policy_retention'
    AND (r.hypertable_schema, r.hypertable_name) = (d.hypertable_schema, d.hypertable_name)
ORDER BY p.relation
"""


# What `sql/timescaledb.sql` would change.
_UNAPPLIED = """
WITH jobs AS (
    SELECT format('%I.%I', hypertable_schema, hypertable_name)::regclass AS hypertable,
        (config ->> 'compress_after')::interval AS compress_after,
        (config ->> 'drop_created_before')::interval AS drop_created_before
    FROM timescaledb_information.jobs
    WHERE proc_name IN ('policy_compression', 'policy_retention')
)
SELECT p.relation AS "table"
FROM storage_policies p
LEFT JOIN timescaledb_information.dimensions d
    ON format('%I.%I', d.hypertable_schema, d.hypertable_name)::regclass = to_regclass(p.relation)
LEFT JOIN timescaledb_information.hypertable_columnstore_settings s
    ON s.hypertable = to_regclass(p.relation)
CROSS JOIN LATERAL (
    SELECT max(j.compress_after) AS compress_after, max(j.drop_created_before) AS dropped
    FROM jobs j WHERE j.hypertable = to_regclass(p.relation)
) j
CROSS JOIN LATERAL (
    SELECT max(c.range_end - c.range_start) AS length FROM timescaledb_information.chunks c
    WHERE (c.hypertable_schema, c.hypertable_name) = (d.hypertable_schema, d.hypertable_name)
) longest
WHERE to_regclass(p.relation) IS NOT NULL AND (
    d.time_interval IS DISTINCT FROM p.chunk_interval
    OR j.compress_after IS DISTINCT FROM p.compress_after
    OR j.dropped IS DISTINCT FROM p.retention + greatest(p.chunk_interval, longest.length)
    OR (p.compress_after IS NOT NULL AND (
        translate(s.segmentby, '" ', '')
            IS DISTINCT FROM replace(coalesce(p.segment_by, ''), ' ', '')
        OR translate(s.orderby, '" ', '') IS DISTINCT FROM replace(p.order_by, ' ', '')
    ))
)
ORDER BY p.relation
"""

SWITCH_OFF = (
    "SELECT alter_job(job_id, scheduled => false) FROM timescaledb_information.jobs"
    " WHERE proc_name = 'policy_retention'"
)
SWITCH_ON = (
    "SELECT alter_job(job_id, scheduled => true) FROM timescaledb_information.jobs"
    " WHERE proc_name = 'policy_retention'"
)
"""For the owner of the tables."""


def policies(database: Database) -> pl.DataFrame:
    """How each table is stored that is there and has a policy.

    On TimescaleDB what its jobs do; on plain PostgreSQL what would apply.

    Returns:
        `table`; `chunks`, the share of them that is `compressed`, and what of these was `saved` (0
        to 1; null on plain PostgreSQL, or where nothing is compressed); `chunk_interval`,
        `compress_after` and `retention` in PostgreSQL's words, null: never, for ever; `next_run` of
        its jobs, UTC.
    """
    return database.read_frame(_APPLIED if timescaledb(database) else _PLANNED)


def timescaledb(database: Database) -> bool:
    """Whether the extension is at work."""
    query = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') AS there"
    return bool(database.read_frame(query).item())


def waits(database: Database) -> bool:
    """Whether the server runs with TimescaleDB and this database does not have it yet."""
    loaded = "current_setting('timescaledb.disable_load', true) IS NOT NULL AS loaded"
    return not timescaledb(database) and bool(database.read_frame(f"SELECT {loaded}").item())


def unapplied(database: Database) -> list[str]:
    """Tables that are not stored as their policy says until the next `migrate`; on plain
    PostgreSQL none."""
    return database.read_frame(_UNAPPLIED)["table"].to_list() if timescaledb(database) else []


def kept_from(database: Database, relation: str, today: date) -> date | None:
    """The first UTC day of a table that is kept for as long as its policy says; None: every day, as
    on plain PostgreSQL.

    What is older than that should not be asked for: retention counts from when a chunk was made,
    so it would be stored, and then dropped though nobody meant to have it.
    """
    found = _limit(database, relation, today)
    return found[0] if found else None


def refusal(database: Database, relation: str, start: date, today: date) -> str | None:
    """Why the days from `start` on are not to be backfilled into a table, in one line; None: they
    may."""
    found = _limit(database, relation, today)
    if found is None or start >= found[0]:
        return None
    first, kept = found
    return (
        f"{relation} is kept for {kept}, and {start} is older: start on or after {first}, or keep "
        "the table longer (docs/how-to/timescaledb.md)"
    )


def _limit(database: Database, relation: str, today: date) -> tuple[date, str] | None:
    """The first day that is kept, and for how long it is, in PostgreSQL's words."""
    if not timescaledb(database):
        return None
    found = database.read_frame(
        "SELECT (%s::date - retention)::date AS day, retention::text AS kept FROM storage_policies"
        " WHERE relation = %s AND retention IS NOT NULL",
        [today, relation],
    )
    return found.row(0) if found.height else None
