"""Dagster's storage in PostgreSQL, with corrections to how it plans checks and first meets a pool.

Named in `dagster.yaml`, and so loaded by every process of Dagster; nothing of the pipeline is
imported here. A check without partitions has one result per run. Dagster 1.13 plans it once per
partition of the run all the same: a backfill of five years with sixty checks starts with a hundred
thousand rows (20 s), which no evaluation ever turns into a result.
"""

from __future__ import annotations

from typing import Any

from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.schema import ConcurrencyLimitsTable
from dagster._record import copy
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage
from dagster_postgres.utils import pg_url_from_config
from sqlalchemy.dialects.postgresql import insert


class EventLog(PostgresEventLogStorage):
    """The event log; a check is planned once per run, and two runs may meet a pool at once."""

    def initialize_concurrency_limit_to_default(self, concurrency_key: str) -> bool:
        """Give a pool the default limit.

        Dagster 1.13 inserts and, where somebody was first, updates in the same transaction, which
        PostgreSQL has aborted by then: of two runs that start together on a new storage one fails.
        """
        default = self._instance.global_op_concurrency_default_limit if self.has_instance else None
        if default is None or not self.has_default_pool_limit_col:
            return super().initialize_concurrency_limit_to_default(concurrency_key)
        self._reconcile_concurrency_limits_from_slots()
        limits = ConcurrencyLimitsTable
        statement = insert(limits).values(
            concurrency_key=concurrency_key, limit=default, using_default_limit=True
        )
        with self.index_transaction() as connection:
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[limits.c.concurrency_key],
                    set_={"limit": default},
                    where=limits.c.using_default_limit.is_(True),
                )
            )
            self._allocate_concurrency_slots(connection, concurrency_key, default)
        return True

    def _store_asset_check_evaluation_planned(
        self, event: EventLogEntry, event_id: int | None
    ) -> None:
        said = event.dagster_event
        assert said is not None
        once: Any = copy(said.event_specific_data, partitions_subset=None)
        event = event._replace(dagster_event=said._replace(event_specific_data=once))
        super()._store_asset_check_evaluation_planned(event, event_id)


class Storage(DagsterPostgresStorage):
    """Runs, events and schedules in one PostgreSQL database; configured as Dagster's own."""

    def __init__(self, postgres_url: str, **options: Any) -> None:
        super().__init__(postgres_url, **options)
        self._event_log_storage = EventLog(postgres_url, self.should_autocreate_tables)

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Any) -> Storage:
        """As `dagster.yaml` has it."""
        return cls(
            pg_url_from_config(config_value),
            inst_data=inst_data,
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
        )
