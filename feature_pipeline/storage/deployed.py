"""What a database was last filled with: its registered features, its columns, its code versions.

Questions only. The registry's rows are written by `registry.py`, the ledger's by the writer.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from feature_pipeline.storage.database import Database


def registered(database: Database) -> pl.DataFrame:
    """The registry's active rows, as the last `migrate` left them, of every timeframe.

    Columns: name, version, description, unit, category, source_table, computation, dependencies,
    lookback_bars.

    Raises:
        DatabaseError: the database cannot be reached, or is not migrated.
    """
    return database.read_frame(
        "SELECT name, version, description, tags[1] AS unit, category, source_table, computation,"
        " dependencies, lookback_bars FROM feature_definitions WHERE is_active"
        " ORDER BY source_table, name, version"
    )


def columns(database: Database, tables: Iterable[str]) -> dict[str, list[str]]:
    """Table -> its columns in the database, in order; a table that is not there has none."""
    found: dict[str, list[str]] = {table: [] for table in tables}
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE table_schema = current_schema AND table_name = ANY(%s)"
            " ORDER BY table_name, ordinal_position",
            [list(found)],
        ).fetchall()
    for table, column in rows:
        found[table].append(column)
    return found


def code_versions(database: Database) -> pl.DataFrame:
    """How much each code version has written, and still stands for.

    Columns: asset, code_version, days, rows, first_day, last_day.
    """
    return database.read_frame(
        "SELECT asset, code_version, count(DISTINCT day) AS days, sum(rows)::bigint AS rows,"
        " min(day) AS first_day, max(day) AS last_day FROM partition_ledger"
        " GROUP BY asset, code_version ORDER BY asset, first_day"
    )
