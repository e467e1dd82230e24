"""The values for Dagster's Helm chart say what dagster.yaml and docker-compose.yml say."""

from __future__ import annotations

from pathlib import Path

import yaml

from feature_pipeline.settings import Settings
from feature_pipeline.stack.dagster import MODULE, RUN_CREATOR_FLAGS, RUN_WORKER_FLAGS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "examples" / "helm-values.yaml").read_text()
VALUES = yaml.safe_load(TEXT)
(CODE,) = VALUES["dagster-user-deployments"]["deployments"]
(JOB,) = VALUES["extraManifests"]
(MIGRATE,) = JOB["spec"]["template"]["spec"]["containers"]


def _variables(listed: list[dict[str, str]]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in listed}


def test_runs_and_their_creators_have_their_flags():
    variables = _variables(CODE["env"])
    assert CODE["includeConfigInLaunchedRuns"]["enabled"]
    assert RUN_WORKER_FLAGS.items() <= variables.items()
    for part in ("dagsterWebserver", "dagsterDaemon"):
        assert _variables(VALUES[part]["env"]) == RUN_CREATOR_FLAGS
    assert MODULE in CODE["dagsterApiGrpcArgs"]


def test_every_variable_is_a_setting_and_no_secret_stands_in_the_file():
    known = {f"FEATURE_PIPELINE_{name.upper()}" for name in Settings.model_fields}
    ours = _variables(CODE["env"] + MIGRATE["env"])
    assert {name for name in ours if name.startswith("FEATURE_PIPELINE_")} <= known
    assert "://" not in TEXT.replace("https://dagster-io.github.io", "").replace(
        "postgresql://", ""
    )
    assert not VALUES["generatePostgresqlPasswordSecret"]
    assert "password" not in str(VALUES["postgresql"]).lower()


def test_the_instance_is_ours():
    ours = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    monitoring, retries = VALUES["dagsterDaemon"]["runMonitoring"], ours["run_monitoring"]
    assert (monitoring["maxRuntimeSeconds"], monitoring["freeSlotsAfterRunEndSeconds"]) == (
        retries["max_runtime_seconds"],
        retries["free_slots_after_run_end_seconds"],
    )
    assert VALUES["dagsterDaemon"]["runRetries"]["maxRetries"] == ours["run_retries"]["max_retries"]
    pools, expected = VALUES["concurrency"]["pools"], ours["concurrency"]["pools"]
    assert (pools["defaultLimit"], pools["granularity"]) == (
        expected["default_limit"],
        expected["granularity"],
    )
    assert VALUES["postgresql"]["postgresqlScheme"] == "postgresql+psycopg2"


def test_the_tables_are_migrated_with_the_same_image_before_anything_runs():
    image = CODE["image"]
    assert MIGRATE["image"] == f"{image['repository']}:{image['tag']}"
    assert MIGRATE["command"] == ["feature-pipeline", "migrate"]
    hooks = JOB["metadata"]["annotations"]["helm.sh/hook"]
    assert set(hooks.split(",")) == {"pre-install", "pre-upgrade"}
