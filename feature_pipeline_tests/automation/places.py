"""Stores of their own with a short universe of recorded prices, for backfills in processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, timedelta
from urllib.parse import urlsplit

import dagster as dg
import polars as pl
import pytest

from feature_pipeline.automation.backfill import (
    Chunk,
    Progress,
    Report,
    _tags,
    backfill,
    chunks,
)
from feature_pipeline.automation.estimate import Estimate
from feature_pipeline.cli.backfill import outlook
from feature_pipeline.definitions import JOB, build_defs
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.resources import store
from feature_pipeline.settings import Settings
from feature_pipeline.stack import Stack
from feature_pipeline.storage.database import Database
from feature_pipeline_tests.assets.support import _QUIET, remember_only

START, END = date(2012, 3, 1), date(2012, 3, 9)

# Recorded prices of three instruments, with a history short enough to be quick.
UNIVERSE = """
benchmark: GSPC
instruments:
""" + "".join(
    f"""
  - id: {name}
    asset_class: equity
    calendar: XNYS
    sector: {sector}
    source: {{bars: sample, actions: sample, news: sample, reddit: sample}}
    symbols: [{{symbol: {symbol}, from: 1990-01-02}}]
    membership: [{{from: 2012-01-03, to: 2013-03-02}}]
"""
    for name, symbol, sector in (
        ("AAPL", "AAPL", "tech"), ("IBM", "IBM", "tech"), ("GSPC", "^GSPC", "index")
    )
)  # fmt: skip


@dataclass
class Place:
    """Stores of its own, and Dagster's beside the tables."""

    settings: Settings

    @property
    def url(self) -> str:
        return Stack(self.settings).database_url

    @property
    def environment(self) -> dict[str, str]:
        return Stack(self.settings).environment() | {
            "FEATURE_PIPELINE_UNIVERSE": str(self.settings.universe)
        }

    def backfill(self, plan: list[Chunk], progress: Progress = lambda _: None) -> Report:
        return backfill(
            self.settings, plan, self.environment, progress, self.settings.home / "runs.log"
        )

    def run(self, start: date, end: date) -> None:
        """One run of all assets in this process; it leaves no trace in Dagster's storage."""
        (chunk,) = chunks(start, end)
        with dg.DagsterInstance.ephemeral() as instance:
            remember_only(instance, ())
            build_defs(self.settings).resolve_job_def(JOB).execute_in_process(
                instance=instance, run_id=chunk.run_id, tags=_tags(chunk), run_config=_QUIET
            )

    def outlook(self) -> Estimate:
        return outlook(self.settings, START.isoformat(), (END - timedelta(days=1)).isoformat())

    def query(self, statement: str) -> pl.DataFrame:
        with Database(self.url, 60) as database:
            return database.read_frame(statement)

    def tables(self, start: date = START, end: date = END) -> dict[str, pl.DataFrame]:
        held = store(self.settings)
        with held.database:
            return {asset: held.read(asset, start=start, end=end) for asset in TABLES}

    def runs(self, monkeypatch) -> list[dg.DagsterRun]:
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        with dg.DagsterInstance.get() as instance:
            return list(instance.get_runs())


@pytest.fixture(scope="session")
def new_place(new_database, tmp_path_factory, redis_server) -> Iterator[Callable[..., Place]]:
    """Makes places without a row, of a universe. Dagster's storage is there: the first process to
    open it would take seconds to make it."""
    opened = ExitStack()

    def place(universe: str = UNIVERSE, *like: str) -> Place:
        url = opened.enter_context(new_database(*like))
        home = tmp_path_factory.mktemp("home")
        file = home / "universe.yaml"
        file.write_text(universe)
        settings = Settings(database_url=url, redis_url=redis_server.url, home=home, universe=file)
        return Place(settings)

    with opened:
        stack = Stack(place().settings)
        stack.prepare_dagster()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in stack.environment().items():
                patch.setenv(name, value)
            dg.DagsterInstance.get().dispose()
        template = urlsplit(stack.database_url).path[1:]
        yield lambda universe=UNIVERSE: place(universe, template)
