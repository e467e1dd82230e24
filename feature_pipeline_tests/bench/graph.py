"""A whole-graph backfill through Dagster, split into what it is spent on.

Runs in a process of its own, so that its peak memory is its own: `python -m ...bench.graph`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import dagster as dg

from feature_pipeline.assets.describe import Describer
from feature_pipeline.definitions import EVENTS, JOB, build_defs, job_name
from feature_pipeline.features.catalogue import build_tables
from feature_pipeline.resources import scorer
from feature_pipeline.settings import Settings
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.io_manager import StorageIOManager
from feature_pipeline.storage.store import Store
from feature_pipeline.timeframes import DAILY
from feature_pipeline_tests.bench.market import SyntheticSource, universe


class Timed:
    """Adds up the seconds spent inside some methods of an object."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, target: object, *names: str) -> None:
        """Replace methods of `target` by timed ones."""
        for name in names:
            setattr(target, name, self.timed(getattr(target, name)))

    def timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A function that does the same and is timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def main(
    database_url: str, symbols: int, start: date, end: date, timeframe: str
) -> dict[str, float]:
    """Seconds by what they are spent on, rows written, and peak memory in MiB."""
    instruments = universe(symbols - 1, start - timedelta(days=5 * 365), timeframe)
    model = scorer(Settings())
    tables = build_tables(model.model, model.revision, instruments.timeframes)
    store = Store(Database(database_url, 300), instruments, tables)
    database, source, pictures = Timed(), Timed(), Timed()
    database.wrap(store, "plan", "load", "write")
    provider = SyntheticSource()
    source.wrap(provider, "bars", "actions", "documents", "macro")
    defs = build_defs(
        Settings(),
        storage=dg.IOManagerDefinition.hardcoded_io_manager(
            StorageIOManager(store, pictures.timed(Describer(store)))
        ),
        universe=instruments,
        sources={provider.name: provider},
        macro_source=provider,
    )
    tags = {
        "dagster/asset_partition_range_start": start.isoformat(),
        "dagster/asset_partition_range_end": (end - timedelta(days=1)).isoformat(),
    }
    with dg.DagsterInstance.get() as instance:
        if timeframe != DAILY:  # what happens and has no timeframe is the daily job's
            defs.resolve_job_def(JOB).execute_in_process(
                instance=instance,
                tags=tags,
                asset_selection=[key for asset in EVENTS for key in asset.keys],
            )
            for timed in (database, source, pictures):
                timed.seconds = 0.0
        job = defs.resolve_job_def(job_name(timeframe))
        started = time.perf_counter()
        result = job.execute_in_process(instance=instance, tags=tags)
        total = time.perf_counter() - started
    computed = [
        name
        for key in job.asset_layer.selected_asset_keys
        if tables[name := key.to_python_identifier()].derived
    ]
    compute = sum(_body_seconds(result, asset) for asset in computed)
    checks = _check_seconds(result)
    spent = source.seconds + compute + database.seconds + checks + pictures.seconds
    rows = store.database.read_frame("SELECT sum(rows)::bigint AS rows FROM partition_ledger")
    return {
        "total": total,
        "source": source.seconds,
        "compute": compute,
        "database": database.seconds,
        "checks": checks,
        "pictures": pictures.seconds,
        "orchestration": total - spent,
        "rows": float(rows["rows"][0]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _body_seconds(result: dg.ExecuteInProcessResult, asset: str) -> float:
    """From the last input loaded to the output returned: the asset's own computation."""
    times: dict[str, list[float]] = {}
    for record in _records(result):
        if record.step_key == asset and record.dagster_event:
            times.setdefault(record.dagster_event.event_type_value, []).append(record.timestamp)
    return times["STEP_OUTPUT"][0] - max(times["LOADED_INPUT"])


def _check_seconds(result: dg.ExecuteInProcessResult) -> float:
    """Of the steps that check, from their start to their end."""
    times: dict[str, list[float]] = {}
    for record in _records(result):
        if (record.step_key or "").endswith("_checks"):
            times.setdefault(str(record.step_key), []).append(record.timestamp)
    return sum(max(moments) - min(moments) for moments in times.values())


def _records(result: dg.ExecuteInProcessResult) -> Any:
    with dg.DagsterInstance.get() as instance:
        return instance.all_logs(
            result.run_id,
            of_type={
                dg.DagsterEventType.STEP_START,
                dg.DagsterEventType.LOADED_INPUT,
                dg.DagsterEventType.STEP_OUTPUT,
                dg.DagsterEventType.STEP_SUCCESS,
            },
        )


if __name__ == "__main__":
    url, count, first, last, bars = sys.argv[1:]
    spent = main(url, int(count), date.fromisoformat(first), date.fromisoformat(last), bars)
    print("RESULT " + json.dumps(spent))  # noqa: T201
