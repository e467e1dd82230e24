"""The front door: everything Dagster sees, assembled on one page.

`build_defs` with overrides serves production and tests; `defs` is what the code server loads.
Nothing is connected to here: the stores open when the first run needs them.
"""

from __future__ import annotations

# Whoever loads this is a process of the graph. Its collector would walk through all that is being
# imported again and again, which is a fifth of the time it takes, and later in each run.
import gc

gc.set_threshold(20_000, 20, 20)

import warnings
from datetime import UTC, datetime
from functools import cache
from typing import Any

import dagster as dg

from feature_pipeline.assets import position_reconciliation as trading
from feature_pipeline.assets.checks import table_checks
from feature_pipeline.assets.corporate_actions import corporate_actions
from feature_pipeline.assets.declare import asked_of
from feature_pipeline.assets.documents import news, reddit
from feature_pipeline.assets.features import features
from feature_pipeline.assets.indicators import indicators
from feature_pipeline.assets.insider_transactions import insider_transactions
from feature_pipeline.assets.lineage import spec_with_code, with_code
from feature_pipeline.assets.macro_indicators import macro_indicators
from feature_pipeline.assets.ohlcv import ohlcv
from feature_pipeline.assets.online import instruments, online_state_vectors
from feature_pipeline.assets.position_reconciliation import (
    TRADING_TABLES,
    position_reconciliation,
)
from feature_pipeline.assets.regime_predictions import regime_predictions
from feature_pipeline.assets.sentiment_scores import sentiment_scores
from feature_pipeline.assets.state_vectors import state_vectors
from feature_pipeline.automation import publishing
from feature_pipeline.automation.alerts import alert_sensors
from feature_pipeline.automation.freshness import policies, watch_freshness
from feature_pipeline.automation.intraday import intraday_schedules
from feature_pipeline.automation.publishing import online_equals_offline, publish_online
from feature_pipeline.automation.reconciling import reconcile_closed_days, reconcile_positions
from feature_pipeline.automation.repair import repair_sensor
from feature_pipeline.automation.schedules import build_automation
from feature_pipeline.resources import code_versions, default_resources, load_universe
from feature_pipeline.settings import Settings
from feature_pipeline.timeframes import DAILY
from feature_pipeline.universe import DEFAULT as UNIVERSE_YAML
from feature_pipeline.universe import Universe

EVENTS = (
    corporate_actions,
    news,
    reddit,
    macro_indicators,
    insider_transactions,
    sentiment_scores,
)
"""What happens and has no timeframe: the daily job's."""

FROM_BARS = (indicators, features, regime_predictions, state_vectors)
"""What there is of each timeframe, beside its bars."""


@cache
def assets_of(
    timeframe: str, timeframes: tuple[str, ...] = (DAILY,)
) -> tuple[dg.AssetsDefinition, ...]:
    """The assets of one timeframe's job, in a deployment of `timeframes`."""
    derived = (make(timeframe) for make in FROM_BARS)
    events = EVENTS if timeframe == DAILY else ()
    return (ohlcv(timeframe, timeframes), *events, *derived)


ASSETS = assets_of(DAILY)
"""The assets of a deployment with daily bars alone."""

JOB = "features_daily"

WHOLE = "features_of_all_timeframes"
"""The job of repairs and backfills where there is more than the daily one."""

# It is never backfilled as a job: each asset's own policy counts.
warnings.filterwarnings("ignore", f"Asset job {WHOLE} materializes", UserWarning)


def job_name(timeframe: str) -> str:
    """The job of a timeframe's assets."""
    return JOB if timeframe == DAILY else f"features_{timeframe}"


def whole_job(universe: Universe) -> str:
    """The job that has every asset."""
    return JOB if len(universe.timeframes) == 1 else WHOLE


def build_defs(settings: Settings | None = None, **resources: Any) -> dg.Definitions:
    """The graph on the stores that the settings name; `resources` replace single ones."""
    settings = settings or Settings()
    universe = resources.get("universe") or load_universe(settings)
    versions = code_versions(universe, settings)
    fresh = policies(universe, datetime.now(UTC).date())
    jobs = {timeframe: _job(timeframe, universe.timeframes) for timeframe in universe.timeframes}
    used = {**default_resources(settings), **resources}
    cron = build_automation(settings, universe, used["sources"], jobs[DAILY])

    def deployed(spec: dg.AssetSpec) -> dg.AssetSpec:
        """An asset as this deployment has it: its code, its limits, its providers."""
        asset = spec.key.to_python_identifier()
        said, tags = asked_of(asset, universe, used["sources"], used["macro_source"])
        return spec.replace_attributes(
            code_version=versions[asset],
            freshness_policy=fresh.get(asset),
            metadata={**spec.metadata, **said},
            tags={**spec.tags, **tags},
        )

    return dg.Definitions(
        assets=[
            *(
                with_code(asset, settings.source_url)
                .with_attributes(backfill_policy=backfill_policy(timeframe, settings))
                .map_asset_specs(deployed)
                for timeframe in universe.timeframes
                for asset in assets_of(timeframe, universe.timeframes)
            ),
            spec_with_code(instruments, settings.universe or UNIVERSE_YAML, settings.source_url),
            spec_with_code(
                online_state_vectors(universe.timeframes), publishing.__file__, settings.source_url
            ).replace_attributes(freshness_policy=fresh.get(publishing.ONLINE)),
            with_code(position_reconciliation, settings.source_url).with_attributes(
                backfill_policy=backfill_policy(DAILY, settings)
            ),
            *(
                spec_with_code(table, trading.__file__, settings.source_url)
                for table in TRADING_TABLES
            ),
        ],
        asset_checks=[*table_checks(versions), online_equals_offline],
        jobs=[*jobs.values(), *_whole(universe), *cron.jobs, reconcile_positions],
        schedules=[
            *cron.schedules,
            *intraday_schedules(universe, used["sources"], jobs),
            reconcile_closed_days,
        ],
        sensors=[
            publish_online,
            watch_freshness,
            repair_sensor(whole_job(universe), versions, settings),
            *alert_sensors(settings),
        ],
        resources=used,
        executor=dg.in_process_executor,
    )


def _job(timeframe: str, timeframes: tuple[str, ...]) -> Any:
    daily = timeframe == DAILY
    return dg.define_asset_job(
        job_name(timeframe),
        selection=dg.AssetSelection.assets(*assets_of(timeframe, timeframes)),
        description="Every table of the daily graph, from bars to state vectors."
        if daily
        else f"The tables of {timeframe} bars, from bars to state vectors; documents, splits and "
        "macro series are the daily job's.",
        executor_def=dg.in_process_executor,
    )


def _whole(universe: Universe) -> list[Any]:
    if whole_job(universe) != WHOLE:
        return []
    every = [
        asset
        for timeframe in universe.timeframes
        for asset in assets_of(timeframe, universe.timeframes)
    ]
    return [
        dg.define_asset_job(
            WHOLE,
            selection=dg.AssetSelection.assets(*every),
            description="Every table of every timeframe: what repairs and backfills run.",
            executor_def=dg.in_process_executor,
        )
    ]


def backfill_policy(timeframe: str, settings: Settings) -> dg.BackfillPolicy:
    """How many days one run of a backfill takes."""
    days = settings.max_partitions_per_run[timeframe]
    return dg.BackfillPolicy.multi_run(days) if days else dg.BackfillPolicy.single_run()


defs = build_defs()

gc.freeze()
