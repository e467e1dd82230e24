"""The job that fills Redis before a market opens. When it runs is in `schedules`."""

import dagster as dg
import redis

from feature_pipeline.automation.publishing import snapshot
from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.online.rebuild import Snapshot, republish_all
from feature_pipeline.storage.io_manager import StorageIOManager


@dg.op(
    required_resource_keys={"storage", "redis"},
    out=dg.Out(dg.Nothing, io_manager_key="storage"),
    retry_policy=dg.RetryPolicy(max_retries=2, delay=1, backoff=dg.Backoff.EXPONENTIAL),
)
def republish_newest(context: dg.OpExecutionContext) -> None:
    """Publish the newest row of everything to Redis, and mark Redis as complete.

    What is published comes from the database; newer values in Redis stay. The output's metadata
    says how many keys were written, refreshed, older than what Redis held, and refused.
    """
    storage: StorageIOManager = context.resources.storage
    client: redis.Redis = context.resources.redis
    newest = Snapshot()

    def load() -> Snapshot:
        nonlocal newest
        newest = snapshot(storage.store)
        return newest

    try:
        report = republish_all(client, load)
    except FeaturePipelineError as error:
        raise dg.Failure(str(error)) from error
    context.add_output_metadata(
        {
            **{f"vectors_{timeframe}": rows.height for timeframe, rows in newest.vectors.items()},
            "macro": 0 if newest.macro is None else newest.macro.height,
            "sentiment": 0 if newest.sentiment is None else newest.sentiment.height,
            "written": report.written,
            "refreshed": report.refreshed,
            "older": report.older,
            "refused": dg.MetadataValue.json(report.refused),
            "complete": report.complete,
        }
    )


@dg.job(
    name="warm_up",
    executor_def=dg.in_process_executor,
    description=(
        "Publishes the newest state vectors, features, regimes, sentiment and macro values to "
        "Redis, so that it is complete when a market opens. It writes no table and asks no "
        "provider; older never overwrites newer."
    ),
    tags={"feature_pipeline/subject": "online"},
)
def warm_up() -> None:
    """One op: see `republish_newest`."""
    republish_newest()
