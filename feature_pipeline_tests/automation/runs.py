"""Executes the runs of a backfill on a made graph, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

import dagster as dg

from feature_pipeline.automation.backfill import Chunk, _tags, runs_for
from feature_pipeline.automation.estimate import Estimate, estimate
from feature_pipeline.definitions import JOB, build_defs
from feature_pipeline.resources import code_versions
from feature_pipeline.settings import Settings
from feature_pipeline_tests.assets.support import _QUIET, Graph
from feature_pipeline_tests.assets.world import END, START, MadeSource


@dataclass
class Asked(MadeSource):
    """Remembers whom it was asked for: (what, symbol, first day, day after the last one)."""

    whom: list[tuple[str, str, date, date]] = field(default_factory=list)

    def bars(self, instruments, start, end, timeframe="1d"):
        self.whom += [("bars", i.id, start, end) for i in instruments]
        return super().bars(instruments, start, end)

    def actions(self, instruments, start, end):
        self.whom += [("actions", i.id, start, end) for i in instruments]
        return super().actions(instruments, start, end)

    def documents(self, channel, instruments, start, end):
        self.whom += [(channel, i.id, start, end) for i in instruments]
        return super().documents(channel, instruments, start, end)

    def macro(self, series_ids, start, end):
        self.whom += [("macro", s, start, end) for s in series_ids]
        return super().macro(series_ids, start, end)


def outlook(
    graph: Graph,
    start: date = START,
    end: date = END,
    assets: Sequence[str] = (),
    symbols: Sequence[str] = (),
    *,
    refetch: bool = False,
) -> Estimate:
    """What a backfill of the graph would do."""
    return estimate(
        graph.store,
        code_versions(graph.universe),
        {graph.source.name: graph.source},
        graph.source,
        start,
        end,
        assets=assets,
        symbols=symbols,
        refetch=refetch,
    )


def execute(graph: Graph, chunk: Chunk) -> None:
    """One run of a backfill."""
    build_defs(Settings(), **graph.resources).resolve_job_def(JOB).execute_in_process(
        instance=graph.instance,
        run_id=chunk.run_id,
        tags=_tags(chunk),
        run_config=_QUIET,
        asset_selection=[dg.AssetKey(asset) for asset in chunk.assets],
    )


def backfill(graph: Graph, *args, **options) -> tuple[Estimate, list[Chunk]]:
    """A backfill as the command does it; arguments as `outlook`."""
    found = outlook(graph, *args, **options)
    plan = runs_for(
        found,
        symbols=options.get("symbols", ()),
        refetch=options.get("refetch", False),
    )
    for chunk in plan:
        execute(graph, chunk)
    return found, plan
