"""The front door: everything Dagster sees, assembled on one page.

`build_defs` with overrides serves production and tests; `defs` is what the code server loads.
Nothing is connected to here: the stores open when the first run needs them.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from feature_pipeline.assets.corporate_actions import corporate_actions
from feature_pipeline.assets.documents import news, reddit
from feature_pipeline.assets.features import features_1d
from feature_pipeline.assets.indicators import indicators_1d
from feature_pipeline.assets.macro_indicators import macro_indicators
from feature_pipeline.assets.ohlcv import ohlcv_1d
from feature_pipeline.assets.online import instruments, online_state_vectors
from feature_pipeline.assets.regime_predictions import regime_predictions_1d
from feature_pipeline.assets.sentiment_scores import sentiment_scores
from feature_pipeline.assets.state_vectors import state_vectors_1d
from feature_pipeline.automation.publishing import publish_online
from feature_pipeline.resources import code_versions, default_resources, load_universe
from feature_pipeline.settings import Settings

ASSETS = (
    ohlcv_1d,
    corporate_actions,
    news,
    reddit,
    macro_indicators,
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
    versions = code_versions(resources.get("universe") or load_universe(settings))
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
    return dg.Definitions(
        assets=[
            *(
                asset.with_attributes(backfill_policy=policy).map_asset_specs(
                    lambda spec: spec.replace_attributes(
                        code_version=versions[spec.key.to_python_identifier()]
                    )
                )
                for asset in ASSETS
            ),
            instruments,
            online_state_vectors,
        ],
        jobs=[job],
        sensors=[publish_online],
        resources={**default_resources(settings), **resources},
        executor=dg.in_process_executor,
    )


defs = build_defs()
