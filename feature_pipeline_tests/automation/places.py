"""Stores of their own with a short universe of recorded prices, for backfills in processes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import dagster as dg
import polars as pl
import pytest

from feature_pipeline.automation.backfill import Chunk, Progress, Report, backfill
from feature_pipeline.automation.estimate import Estimate
from feature_pipeline.cli.backfill import outlook
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.resources import store
from feature_pipeline.settings import Settings
from feature_pipeline.stack import Stack

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
    def environment(self) -> dict[str, str]:
        return Stack(self.settings).environment() | {
            "FEATURE_PIPELINE_UNIVERSE": str(self.settings.universe)
        }

    def backfill(self, plan: list[Chunk], progress: Progress = lambda _: None) -> Report:
        return backfill(
            self.settings, plan, self.environment, progress, self.settings.home / "runs.log"
        )

    def outlook(self) -> Estimate:
        return outlook(self.settings, START.isoformat(), (END - timedelta(days=1)).isoformat())

    def query(self, statement: str) -> pl.DataFrame:
        held = store(self.settings)
        with held.database:
            return held.database.read_frame(statement)

    def tables(self, start: date = START, end: date = END) -> dict[str, pl.DataFrame]:
        held = store(self.settings)
        with held.database:
            return {asset: held.read(asset, start=start, end=end) for asset in TABLES}

    def runs(self, monkeypatch) -> list[dg.DagsterRun]:
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        with dg.DagsterInstance.get() as instance:
            return list(instance.get_runs())


@pytest.fixture(scope="module")
def new_place(new_database, tmp_path_factory, redis_server):
    made = []

    def place() -> Place:
        opened = new_database()
        url = opened.__enter__()
        made.append(opened)
        home = tmp_path_factory.mktemp("home")
        (home / "universe.yaml").write_text(UNIVERSE)
        settings = Settings(
            database_url=url, redis_url=redis_server.url, home=home, universe=home / "universe.yaml"
        )
        Stack(settings).prepare_dagster()
        return Place(settings)

    yield place
    for opened in made:
        opened.__exit__(None, None, None)
