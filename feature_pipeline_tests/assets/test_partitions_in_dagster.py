"""What a run tells Dagster of the partitions it wrote."""

from __future__ import annotations

import dagster as dg

from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.partitions import days
from feature_pipeline_tests.assets.world import END, LISTED, START


def test_every_partition_carries_its_row_count(new_graph, world):
    with new_graph(world, materializations_of=tuple(TABLES)) as graph:
        result = graph.run()
        for asset, table in TABLES.items():
            events = graph.instance.fetch_materializations(dg.AssetKey(asset), limit=2000).records
            counts = {
                event.partition_key: event.asset_materialization.metadata[
                    "dagster/partition_row_count"
                ].value
                for event in events
            }
            assert len(events) == len(counts), f"{asset}: a partition was reported twice"
            where = " AND ".join(f"{n} = '{v}'" for n, v in table.constants.items()) or "true"
            stored = graph.query(
                f"SELECT ({table.day_column} AT TIME ZONE 'UTC')::date::text AS day, count(*) AS n"
                f" FROM {table.table} WHERE {where} GROUP BY 1"
            )
            assert {day: n for day, n in counts.items() if n} == dict(stored.iter_rows())
            assert {str(day) for day in days(START, END)} <= set(counts)
            if asset in ("ohlcv_1d", "corporate_actions"):
                assert min(counts) == str(LISTED)  # the history that consumers read came along
        assert {
            e.asset_key.to_python_identifier() for e in result.get_asset_materialization_events()
        } == set(TABLES)
