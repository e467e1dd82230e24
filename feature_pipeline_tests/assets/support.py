"""The whole graph on a made world: run it through Dagster, read its tables, compare them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import cached_property
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)

from feature_pipeline.definitions import build_defs, whole_job
from feature_pipeline.features.catalogue import TABLES, build_tables
from feature_pipeline.resources import code_versions, scorer
from feature_pipeline.settings import Settings
from feature_pipeline.sources import Off
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.io_manager import ONLY_MISSING_TAG, SYMBOLS_TAG, StorageIOManager
from feature_pipeline.storage.store import Store
from feature_pipeline.universe import Universe
from feature_pipeline_tests.assets.world import END, START, MadeScorer, MadeSource

DERIVED = ("indicators_1d", "features_1d", "regime_predictions_1d", "state_vectors_1d")
TOLERANCE = 1e-9
_MATERIALIZATIONS = (
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
)
_CHECK_PLANNED = dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED

# Dagster's console logger writes a line per partition and event.
_QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}


@dataclass
class Graph:
    """The graph on one database; the world may change between runs.

    Dagster's event log keeps the materialisations of `materializations_of` alone.
    """

    url: str
    universe: Universe
    source: MadeSource
    overrides: Mapping[str, Any] | None = None
    materializations_of: tuple[str, ...] = ()
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        self.instance = dg.DagsterInstance.ephemeral()
        remember_only(self.instance, self.materializations_of)
        self.scorer = MadeScorer() if self.settings.scorer == "vader" else scorer(self.settings)

    @cached_property
    def store(self) -> Store:
        providers = (*self._providers["sources"].values(), self._macro)
        active = scorer(self.settings)
        return Store(
            Database(self.url, 60),
            self.universe,
            build_tables(active.model, active.revision, self.universe.timeframes),
            wait=timedelta(seconds=30),
            off={p.name: p.why for p in providers if isinstance(p, Off)},
            macro_provider=self._macro.name,
        )

    @property
    def _macro(self) -> Any:
        return self._providers["macro_source"]

    @property
    def _providers(self) -> dict[str, Any]:
        made = {"sources": {self.source.name: self.source}, "macro_source": self.source}
        return {name: (self.overrides or {}).get(name, source) for name, source in made.items()}

    @property
    def resources(self) -> dict[str, Any]:
        return {
            "storage": StorageIOManager(self.store),
            "universe": self.universe,
            **self._providers,
            "scorer": self.scorer,
            **(self.overrides or {}),
        }

    def run_beside(self, start: date, end: date, assets: Sequence[str] = ()) -> None:
        """A run with connections and an instance of its own, as another process would have."""
        other = Graph(self.url, self.universe, MadeSource(self.source.world))
        other.store.clock = self.store.clock
        try:
            other.run(start, end, assets)
        finally:
            other.close()

    def run(
        self,
        start: date = START,
        end: date = END,
        assets: Sequence[str] = (),
        symbols: Sequence[str] = (),
        *,
        check: bool = True,
        versions: Mapping[str, str] | None = None,
        only_missing: bool = False,
    ) -> dg.ExecuteInProcessResult:
        """One run of the days [start, end); `versions` replaces code versions of assets."""
        tags = {
            ASSET_PARTITION_RANGE_START_TAG: start.isoformat(),
            ASSET_PARTITION_RANGE_END_TAG: (end - timedelta(days=1)).isoformat(),
        }
        if only_missing:
            tags[ONLY_MISSING_TAG] = "true"
        if symbols:
            tags[SYMBOLS_TAG] = ",".join(symbols)
        defs = _with_versions(build_defs(self.settings, **self.resources), versions or {})
        return defs.resolve_job_def(whole_job(self.universe)).execute_in_process(
            instance=self.instance,
            tags=tags,
            run_config=_QUIET,
            asset_selection=[dg.AssetKey(a) for a in assets] or None,
            raise_on_error=check,
        )

    def table(self, asset: str, start: date | None = START, end: date | None = END) -> pl.DataFrame:
        """An asset's rows of those days, sorted by key, audit columns left out."""
        return self.store.read(asset, start=start, end=end)

    def tables(
        self,
        assets: Iterable[str] = TABLES,
        start: date | None = START,
        end: date | None = END,
    ) -> dict[str, pl.DataFrame]:
        return {asset: self.table(asset, start, end) for asset in assets}

    def query(self, statement: str) -> pl.DataFrame:
        return self.store.database.read_frame(statement)

    def pending(self, asset: str, start: date = START, end: date = END) -> list[date]:
        """The days that a run would write; of a source's table, those that nobody has written."""
        version = code_versions(self.universe, self.settings)[asset]
        return self.store.pending(asset, start, end, version).to_list()

    def close(self) -> None:
        self.store.database.close()
        self.instance.dispose()


def _with_versions(defs: dg.Definitions, versions: Mapping[str, str]) -> dg.Definitions:
    def changed(spec: dg.AssetSpec) -> dg.AssetSpec:
        name = spec.key.to_python_identifier()
        return spec.replace_attributes(code_version=versions.get(name, spec.code_version))

    assets = [
        made.map_asset_specs(changed) if isinstance(made, dg.AssetsDefinition) else made
        for made in defs.assets or ()
    ]
    return dg.Definitions(
        assets=assets,
        asset_checks=defs.asset_checks,
        jobs=defs.jobs,
        resources=defs.resources,
        executor=defs.executor,
    )


def remember_only(instance: dg.DagsterInstance, assets: Sequence[str]) -> None:
    """Keep materialisations of these assets in the event log.

    Storing the thousands of events that a test does not ask for is two thirds of a run's time, and
    Dagster's own storage plans each check once per partition: as much again (`stack.event_log`).
    """
    storage = instance.event_log_storage
    store = storage.store_event

    def store_wanted(event: Any) -> None:
        said = event.dagster_event
        if said is not None and said.event_type == _CHECK_PLANNED:
            return
        if (
            said is None
            or said.event_type not in _MATERIALIZATIONS
            or said.asset_key.to_python_identifier() in assets
        ):
            store(event)

    storage.store_event = store_wanted  # type: ignore[method-assign]


def before(frame: pl.DataFrame, moment: datetime) -> pl.DataFrame:
    return frame.filter(pl.col("available_at") <= moment)


def assert_equal(left: pl.DataFrame, right: pl.DataFrame, what: str = "") -> None:
    """The same rows, keys, texts and nulls; numbers to 1e-9 of their column's scale."""
    assert left.columns == right.columns, what
    numbers = [name for name, dtype in left.schema.items() if dtype == pl.Float64]
    exact = [name for name in left.columns if name not in (*numbers, "inputs")]
    assert left.select(exact).equals(right.select(exact)), f"{what}: keys, texts or counts differ"
    for name in numbers:
        a, b = (f[name].fill_null(np.nan).to_numpy() for f in (left, right))
        assert (np.isnan(a) == np.isnan(b)).all(), f"{what}.{name}: null in one only"
        scale = max(np.nanmax(np.abs(a), initial=0.0), 1e-12)
        apart = np.nanmax(np.abs(a - b), initial=0.0)
        assert apart <= TOLERANCE * scale, (
            f"{what}.{name}: apart by {apart / scale:.3g} of its scale"
        )


def assert_same_tables(left: Mapping[str, pl.DataFrame], right: Mapping[str, pl.DataFrame]) -> None:
    assert left.keys() == right.keys()
    for asset in left:
        assert_equal(left[asset], right[asset], asset)


def metadata_of(result: dg.ExecuteInProcessResult, asset: str) -> Mapping[str, Any]:
    """What the run says of an asset: metadata of one of its materialisations."""
    return result.asset_materializations_for_node(asset)[-1].metadata


def failure(result: dg.ExecuteInProcessResult) -> tuple[str, str]:
    """The step that failed and the message of what it raised."""
    from feature_pipeline.automation.alerts import why

    event = next(e for e in result.all_events if e.is_step_failure)
    return event.step_key, why(event.step_failure_data.error)


if __name__ == "__main__":
    # The whole graph in a process of its own, whose environment may be another one.
    import sys

    from feature_pipeline_tests.assets.world import make_universe, make_world

    _universe = make_universe()
    _graph = Graph(sys.argv[1], _universe, MadeSource(make_world(_universe)))
    _graph.run()
    _graph.close()
