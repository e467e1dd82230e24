"""The front door: everything Dagster sees, assembled on one page.

`build_defs` with overrides serves production and tests; `defs` is what the code server loads.
Nothing is connected to here: the stores open when the first run needs them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import dagster as dg

from feature_pipeline.assets import position_reconciliation as trading
from feature_pipeline.assets.checks import TABLE_CHECKS
from feature_pipeline.assets.corporate_actions import corporate_actions
from feature_pipeline.assets.declare import asked_of
from feature_pipeline.assets.documents import news, reddit
from feature_pipeline.assets.features import features_1d
from feature_pipeline.assets.indicators import indicators_1d
from feature_pipeline.assets.insider_transactions import insider_transactions
from feature_pipeline.assets.lineage import spec_with_code, with_code
from feature_pipeline.assets.macro_indicators import macro_indicators
from feature_pipeline.assets.ohlcv import ohlcv_1d
from feature_pipeline.assets.online import instruments, online_state_vectors
from feature_pipeline.assets.position_reconciliation import (
    TRADING_TABLES,
    position_reconciliation,
    reconcile_positions,
    reconcile_yesterday,
)
from feature_pipeline.assets.regime_predictions import regime_predictions_1d
from feature_pipeline.assets.sentiment_scores import sentiment_scores
from feature_pipeline.assets.state_vectors import state_vectors_1d
from feature_pipeline.automation import publishing
from feature_pipeline.automation.alerts import alert_sensors
from feature_pipeline.automation.freshness import policies, watch_freshness
from feature_pipeline.automation.publishing import online_equals_offline, publish_online
from feature_pipeline.automation.repair import repair_sensor
from feature_pipeline.automation.schedules import build_automation
from feature_pipeline.resources import code_versions, default_resources, load_universe
from feature_pipeline.settings import Settings
from feature_pipeline.universe import DEFAULT as UNIVERSE_YAML

ASSETS = (
    ohlcv_1d,
    corporate_actions,
    news,
    reddit,
    macro_indicators,
    insider_transactions,
    sentiment_scores,
    indicators_1d,
    features_1d,
    regime_predictions_1d,
    state_vectors_1d,
)

JOB = "features_daily"


def build_defs(settings: Settings | None = None, **resources: Any) -> dg.Definitions:
    """The graph on the stores that the settings name; `resources` replace single ones."""
    settings = settings or Settings()
    universe = resources.get("universe") or load_universe(settings)
    versions = code_versions(universe, settings)
    fresh = policies(universe, datetime.now(UTC).date())
    days_per_run = settings.max_partitions_per_run
    policy = (
        dg.BackfillPolicy.multi_run(days_per_run)
        if days_per_run
        else dg.BackfillPolicy.single_run()
    )
    job = dg.define_asset_job(
        JOB,
        selection=dg.AssetSelection.assets(*ASSETS),
        description="Every table of the daily graph, from bars to state vectors.",
        executor_def=dg.in_process_executor,
    )
    used = {**default_resources(settings), **resources}
    cron = build_automation(settings, universe, used["sources"], job)

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
                .with_attributes(backfill_policy=policy)
                .map_asset_specs(deployed)
                for asset in ASSETS
            ),
            spec_with_code(instruments, settings.universe or UNIVERSE_YAML, settings.source_url),
            spec_with_code(
                online_state_vectors, publishing.__file__, settings.source_url
            ).replace_attributes(freshness_policy=fresh.get(publishing.ONLINE)),
            with_code(position_reconciliation, settings.source_url).with_attributes(
                backfill_policy=policy
            ),
            *(
                spec_with_code(table, trading.__file__, settings.source_url)
                for table in TRADING_TABLES
            ),
        ],
        asset_checks=[*TABLE_CHECKS, online_equals_offline],
        jobs=[job, *cron.jobs, reconcile_positions],
        schedules=[*cron.schedules, reconcile_yesterday],
        sensors=[
            publish_online,
            watch_freshness,
            repair_sensor(JOB, versions, settings),
            *alert_sensors(settings),
        ],
        resources=used,
        executor=dg.in_process_executor,
    )


defs = build_defs()
