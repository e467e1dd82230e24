"""When positions are compared with their fills and what brokers hold: once a day, by cron."""

from __future__ import annotations

from datetime import UTC, timedelta

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, SCHEDULE_NAME_TAG

from feature_pipeline.assets.position_reconciliation import position_reconciliation
from feature_pipeline.automation.schedules import MAX_CATCH_UP, Runs, request

_NAME = "reconcile_positions"

reconcile_positions = dg.define_asset_job(
    _NAME,
    selection=dg.AssetSelection.assets(position_reconciliation),
    description="Positions against their fills and what brokers hold.",
    executor_def=dg.in_process_executor,
    tags={"feature_pipeline/subject": "trading"},
)


@dg.schedule(
    name=_NAME,
    job=reconcile_positions,
    cron_schedule="15 0 * * *",
    execution_timezone="UTC",
    description=(
        "Compares the positions of the day that is over, and of those before it since the last "
        f"run that succeeded ({MAX_CATCH_UP.days} at most), with their fills and what brokers "
        "hold, at 00:15 UTC. Off until you switch it on; it asks nobody but the database."
    ),
    tags={"feature_pipeline/subject": "trading"},
)
def reconcile_closed_days(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """The UTC days before the tick that no run of this schedule has completed."""
    last = context.scheduled_execution_time.astimezone(UTC).date() - timedelta(days=1)
    done = Runs(context, {SCHEDULE_NAME_TAG: _NAME}).completed(ASSET_PARTITION_RANGE_END_TAG)
    first = max(done + timedelta(days=1), last - MAX_CATCH_UP) if done else last
    return request(f"{_NAME} {last}", min(first, last), last, {})
