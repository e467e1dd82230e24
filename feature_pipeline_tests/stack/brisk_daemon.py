"""Dagster's daemon for one code server, without schedules and sensors, that looks every second.

It is run, never imported: `python -m feature_pipeline_tests.stack.brisk_daemon PORT`.
"""

from __future__ import annotations

import os
import sys

os.environ["DAGSTER_EVENT_LOG_CONSUMER_DAEMON_INTERVAL_SECONDS"] = "1"

import dagster as dg
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._daemon import controller

controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 1

DAEMONS = ("BACKFILL", "QUEUED_RUN_COORDINATOR", "MONITORING", "EVENT_LOG_CONSUMER")


def _daemons(instance: dg.DagsterInstance) -> list:
    return [controller.create_daemon_of_type(kind, instance) for kind in DAEMONS]


if __name__ == "__main__":
    server = GrpcServerTarget("127.0.0.1", int(sys.argv[1]), None, "feature_pipeline")
    with (
        dg.DagsterInstance.get() as current,
        controller.daemon_controller_from_instance(
            current, server, gen_daemons=_daemons, log_format="rich"
        ) as running,
    ):
        running.check_daemon_loop()
