"""What a process does that is killed in the middle of a write. Started by `test_crash`."""

from __future__ import annotations

import os
import signal
from datetime import date

import polars as pl

from feature_pipeline.storage.database import Database
from feature_pipeline.storage.store import Store
from feature_pipeline_tests.storage.support import (
    TOY,
    Clock,
    Desk,
    articles,
    bars,
    fetched,
    means,
    universe,
)

SPAN = (date(2020, 1, 1), date(2020, 3, 1))
"""Two months: two transactions."""


def desk_on(url: str, months_at_once: int = 1) -> Desk:
    """A desk of one instrument; it writes month after month, so that a step tells where it is."""
    clock = Clock()
    desk = Desk(Store(Database(url, 20), universe("A"), TOY, clock=clock), clock)
    desk.store.writer.months_at_once = months_at_once
    return desk


def write(desk: Desk, asset: str, version: int) -> None:
    """One run of an asset; every row of another version differs."""
    if asset == "ohlcv_1d":
        desk.write(asset, fetched(bars(["A"], SPAN, add=version), "A"), SPAN)
    elif asset == "news":
        frame = pl.concat(
            [
                articles((f"d{i}", moment, f"version {version}"))
                for i, moment in enumerate(bars(["A"], SPAN)["available_at"])
            ]
        )
        desk.write(asset, fetched(frame, "A"), SPAN)
    else:
        with desk.planned(asset, SPAN, code_version=str(version)) as plan:
            frame = means(desk.store.load(plan, plan.table.inputs[0]))
            desk.store.write(plan, frame.with_columns(sma_20=pl.lit(float(version))))


def die_at(url: str, asset: str, step: str, occurrence: int, months_at_once: int = 1) -> None:
    """Write version 2, and be killed as that step begins for the nth time."""
    desk, count = desk_on(url, months_at_once), 0

    def trace(name: str) -> None:
        nonlocal count
        count += name == step
        if count == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)

    desk.store.writer.trace = trace
    write(desk, asset, 2)


def pause_at(url: str, asset: str, step: str, reached: object) -> None:
    """Write version 2, and stop for good at a step; the caller has told us when to die."""
    desk = desk_on(url)

    def trace(name: str) -> None:
        if name == step:
            reached.set()  # type: ignore[attr-defined]
            signal.pause()

    desk.store.writer.trace = trace
    write(desk, asset, 2)


def write_in_turns(url: str, number: int) -> None:
    """Unequal, overlapping runs of everything, one version per process."""
    desk = desk_on(url)
    desk.runs = 100 * number
    for turn in range(2):
        for asset in ("ohlcv_1d", "news", "means"):
            write(desk, asset, 1 + (number + turn) % 3)
    desk.store.database.close()
