"""Benchmarks: what we cost against a floor or a peer, measured in turns within one run.

These machines are shared and noisy: ratios count, single times do not. No test asserts a time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measurement.

    `ratio` is how fast we are next to the floor: 1.0 - as fast, 0.5 - half as fast. `goal` is what
    it should at least be; None - told, not asked.
    """

    name: str
    value: float
    unit: str
    floor: float | None = None
    ratio: float | None = None
    goal: float | None = None

    @property
    def met(self) -> bool:
        """Whether the goal is reached; true where there is none."""
        return self.goal is None or (self.ratio is not None and self.ratio >= self.goal)

    def as_dict(self) -> dict[str, Any]:
        """As `bench.json` has it."""
        return asdict(self)


def in_turns(turns: int, *actions: Callable[[], Callable[[], object]]) -> list[float]:
    """Median seconds of each action, taken in turns after one warm-up, the order alternating.

    Each is a function that prepares, untimed, and returns what is timed.
    """
    times: list[list[float]] = [[] for _ in actions]
    for turn in range(turns + 1):
        order = list(range(len(actions)))
        for i in order if turn % 2 else reversed(order):
            timed = actions[i]()
            started = time.perf_counter()
            timed()
            times[i].append(time.perf_counter() - started)
    return [statistics.median(t[1:]) for t in times]
