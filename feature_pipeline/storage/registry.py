"""The feature registry in the database: what the catalogue says, for readers that speak SQL.

The catalogue is the truth; these rows follow it. A feature that is no longer declared stays, not
active, so that what an old model was trained on can still be looked up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from feature_pipeline.storage.database import Database


def sync(
    database: Database, definitions: pl.DataFrame, sets: Mapping[str, tuple[str, Sequence[str]]]
) -> None:
    """Make `feature_definitions` and `feature_sets` say what the catalogue says.

    Args:
        database: a migrated one.
        definitions: one row per table, feature and version: `name`, `version`, `description`,
            `unit`, `category`, `source_table`, `computation`, `dependencies`, `lookback_bars`.
        sets: name -> (description, its features in order), all of version 1.

    Raises:
        DatabaseError: the database cannot be reached, or is not migrated.
    """
    with database.connection() as connection:
        connection.execute("UPDATE feature_definitions SET is_active = false")
        with connection.cursor() as cursor:
            cursor.executemany(
                """
                INSERT INTO feature_definitions (name, version, description, data_type, category,
                    source_table, computation, dependencies, lookback_bars, tags)
                VALUES (%(name)s, %(version)s, %(description)s, 'double precision', %(category)s,
                    %(source_table)s, %(computation)s, %(dependencies)s, %(lookback_bars)s,
                    ARRAY[%(unit)s])
                ON CONFLICT (name, version, source_table) DO UPDATE SET
                    description = EXCLUDED.description, category = EXCLUDED.category,
                    computation = EXCLUDED.computation,
                    dependencies = EXCLUDED.dependencies,
                    lookback_bars = EXCLUDED.lookback_bars, tags = EXCLUDED.tags, is_active = true
                """,
                definitions.to_dicts(),
            )
            cursor.executemany(
                "INSERT INTO feature_sets (name, version, features, description)"
                " VALUES (%s, 1, %s, %s) ON CONFLICT (name, version) DO UPDATE SET"
                " features = EXCLUDED.features, description = EXCLUDED.description",
                [(name, list(features), text) for name, (text, features) in sets.items()],
            )
