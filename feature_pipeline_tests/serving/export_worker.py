"""What a process does that is killed in the middle of an export. Started by `test_export`."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.serving.dataset import Dataset
from feature_pipeline.serving.export import Export
from feature_pipeline.serving.export_plan import Question
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.store import Store
from feature_pipeline_tests.assets.world import MadeScorer, make_universe


def die_at(url: str, root: Path, asked: Question, versions: dict, step: str, nth: int) -> None:
    """Export, and be killed as that step begins for the nth time."""
    count = 0

    def trace(name: str) -> None:
        nonlocal count
        count += name == step
        if count == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    store = Store(Database(url, 20), make_universe(), TABLES)
    with Dataset(root, trace) as dataset:
        work = Export(dataset, store, asked, MadeScorer(), versions)
        work.run(work.plan(prune=True))
