"""Publishing to Redis: what the newest rows are, the sensor that notices there are some, and the
check that Redis then says what the database says."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic, sleep

import dagster as dg
import polars as pl
import redis

from feature_pipeline.assets import judgements
from feature_pipeline.assets.checks import description, metadata, result, severity
from feature_pipeline.assets.verdicts import Verdict
from feature_pipeline.automation.sensors import sensor
from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.online.compare import DIFFERENCES, NEWER, differences
from feature_pipeline.online.publish import PublishReport
from feature_pipeline.online.rebuild import (
    Snapshot,
    publish_snapshot,
    rebuild_needed,
    republish_all,
)
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.storage.store import Store

BESIDE_VECTORS = ("macro_indicators", "sentiment_scores")

ONLINE = "online_state_vectors"
CHECK = judgements.online_equals_offline.__name__

PUBLISHED_WITHIN = timedelta(minutes=2)
"""How long what was written may lie in the database without being published."""

LINGER_S = 4.0
"""How long a tick waits for the news of a run in progress. Dagster's daemon begins one every 5 s;
what is materialised is to be published at once."""

_LOOK_S = 0.5

_IN_PROGRESS = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])

REMEMBERED = 50
"""Event ids kept in the cursor, per asset. Ids are handed out before their events commit, so one
may turn up below others that were seen already. One that turns up even further down has nothing to
tell: its rows were there before it got its id, and so before the last publication."""


def watched(timeframes: Sequence[str]) -> tuple[str, ...]:
    """The assets whose materialisation is a reason to publish."""
    return (*(f"state_vectors_{timeframe}" for timeframe in timeframes), *BESIDE_VECTORS)


def snapshot(store: Store) -> Snapshot:
    """The newest row of everything that Redis holds, from the database."""
    vectors = {
        timeframe: store.newest(timeframe)
        .drop("inputs", "model_version", "session", strict=False)
        .rename({"confidence": "regime_confidence"})
        for timeframe in store.universe.timeframes
    }
    return Snapshot(vectors=vectors, macro=store.newest_macro(), sentiment=store.newest_sentiment())


@sensor(
    name="publish_online",
    minimum_interval_seconds=1,
    required_resource_keys={"storage", "redis"},
)
def publish_online(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Publish the newest state vectors to Redis when something was materialised, or Redis was lost.

    What is published is the newest row per symbol in the database, whatever the events say: a
    backfill of old days changes nothing online, and doing it twice is harmless.
    """
    storage: StorageIOManager = context.resources.storage
    client: redis.Redis = context.resources.redis
    newest = Snapshot()

    def load() -> Snapshot:
        nonlocal newest
        newest = snapshot(storage.store)
        return newest

    try:
        lost = rebuild_needed(client)
        # The events first: what they tell of is then in the snapshot.
        cursor, news = _news(context, storage.store.universe.timeframes, linger=not lost)
        if not news and not lost:
            return dg.SkipReason("nothing was materialised since the last publication")
        report = PublishReport(complete=False) if lost else publish_snapshot(client, load())
        rebuilt = not report.complete
        if rebuilt:
            report = republish_all(client, load)
    except FeaturePipelineError as error:
        # Tried again at the next tick: the cursor stays where it was.
        raise dg.Failure(str(error), allow_retries=False) from error
    return dg.SensorResult(
        cursor=cursor,
        asset_events=[
            _materialization(newest, report, rebuilt=rebuilt),
            *_evaluation(client, newest),
        ],
    )


@dg.asset_check(
    asset=ONLINE,
    name=CHECK,
    description=description(judgements.online_equals_offline),
    required_resource_keys={"storage", "redis"},
)
def online_equals_offline(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """The check, executed by hand; after each publication the sensor evaluates it itself."""
    storage: StorageIOManager = context.resources.storage
    return result(CHECK, ONLINE, compared(context.resources.redis, storage.store))


def compared(client: redis.Redis, store: Store) -> Verdict:
    """Whether Redis says what the database says now.

    Raises:
        OnlineError, DatabaseError: a store does not answer.
    """
    for last in (False, True):
        newest = snapshot(store)
        found = _differences(client, newest)
        # Published between the two looks: look again.
        if last or NEWER not in found["is"]:
            break
    return judgements.online_equals_offline(
        found, _symbols(newest), waiting=bool(found.height) and _just_written(store)
    )


def _differences(client: redis.Redis, newest: Snapshot) -> pl.DataFrame:
    return pl.concat(
        [
            pl.DataFrame(schema=DIFFERENCES),
            *(differences(client, rows, timeframe) for timeframe, rows in newest.vectors.items()),
        ]
    )


def _symbols(newest: Snapshot) -> int:
    return sum(rows.height for rows in newest.vectors.values())


def _just_written(store: Store) -> bool:
    """Whether something that is published was written so recently that it may not be yet."""
    written = store.database.read_frame(
        "SELECT max(updated_at) AS at FROM partition_ledger WHERE asset = ANY(%s)",
        [[table.asset for table in store.tables.values() if table.timeframe]],
    )["at"][0]
    return written is not None and store.clock() - written < PUBLISHED_WITHIN


def _evaluation(client: redis.Redis, newest: Snapshot) -> list[dg.AssetCheckEvaluation]:
    """What the check says of what was just published; nothing where that was nothing, or where
    Redis went away meanwhile."""
    if not _symbols(newest):
        return []
    try:
        found = _differences(client, newest)
    except FeaturePipelineError:
        return []
    # Another publication may have come in between; what it published is newer.
    found = found.filter(pl.col("is") != NEWER)
    verdict = judgements.online_equals_offline(found, _symbols(newest))
    return [
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(ONLINE),
            check_name=CHECK,
            passed=verdict.passed,
            severity=severity(verdict),
            description=verdict.says,
            metadata=metadata(verdict),
        )
    ]


def _news(
    context: dg.SensorEvaluationContext, timeframes: Sequence[str], *, linger: bool
) -> tuple[str, bool]:
    """The cursor after this tick, and whether any event is there that it did not know.

    Args:
        context: the tick's.
        timeframes: the universe's.
        linger: wait for an event that a run in progress may yet bring.
    """
    seen: dict[str, list[int]] = json.loads(context.cursor) if context.cursor else {}
    # Before the events: a run that ends meanwhile has left its own.
    waits = linger and context.instance.get_runs_count(_IN_PROGRESS) > 0
    until = monotonic() + (LINGER_S if waits else 0)
    while True:
        now = {
            asset: [
                record.storage_id
                for record in context.instance.fetch_materializations(
                    dg.AssetKey(asset), limit=REMEMBERED
                ).records
            ]
            for asset in watched(timeframes)
        }
        new = any(_unknown(ids, seen.get(asset, [])) for asset, ids in now.items())
        if new or monotonic() >= until:
            return json.dumps(now), new
        sleep(_LOOK_S)


def _unknown(ids: list[int], seen: list[int]) -> bool:
    """Whether one of the newest ids was not among the newest ids before.

    Where ids were left out of the cursor, an older one than it holds may just have been cut.
    """
    oldest = min(seen) if len(seen) >= REMEMBERED else 0
    return any(i > oldest and i not in seen for i in ids)


def _materialization(
    newest: Snapshot, report: PublishReport, *, rebuilt: bool
) -> dg.AssetMaterialization:
    rows = pl.concat([frame.select("symbol", "available_at") for frame in newest.vectors.values()])
    as_of = rows["available_at"].max()
    told: dict[str, dg.MetadataValue] = {
        "symbols": dg.MetadataValue.int(rows["symbol"].n_unique()),
        "written": dg.MetadataValue.int(report.written),
        "refreshed": dg.MetadataValue.int(report.refreshed),
        "older": dg.MetadataValue.int(report.older),
        "refused": dg.MetadataValue.json(report.refused),
        "rebuilt": dg.MetadataValue.bool(rebuilt),
    }
    if isinstance(as_of, datetime):
        told["newest_as_of"] = dg.MetadataValue.timestamp(as_of.astimezone(UTC))
    return dg.AssetMaterialization(ONLINE, metadata=told)
