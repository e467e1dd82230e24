"""How far a backfill is and how long it will still take: a bar on a terminal, lines elsewhere.

Shown here, counted elsewhere: partitions done come from the ledger, what there is to do and the
first guess at the time from the estimate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

_LINE_S = 5.0
_SMOOTHED_S = 6.0
_TRUST_S = 8.0
"""How many seconds of its own the first guess counts for, against what is seen."""


@dataclass
class Pace:
    """How long the rest takes: the guess, corrected by how it goes.

    Partitions cost very different times - a day of bars, a day of scored documents - so that their
    number alone says little. Each asset's weigh what the guess says they take; what is learned on
    the way is how much faster or slower than guessed this backfill runs.

    Args:
        expected: asset -> its partitions and the seconds they are guessed to take, in the order in
            which they are done.
        start_s: guessed seconds before the first partition.
    """

    expected: Mapping[str, tuple[int, float]]
    start_s: float = 0.0
    _end: float | None = field(default=None, init=False)
    _looked: float = field(default=0.0, init=False)
    _moved: float = field(default=0.0, init=False)
    _behind: float = field(default=0.0, init=False)

    def left(self, elapsed: float, done: Mapping[str, int]) -> float:
        """Seconds that the rest takes, after `elapsed` of them and with so many partitions done.

        Call it with growing `elapsed` and never less done. The answer moves smoothly, whatever
        jumps: partitions are done by the month, not one after the other.
        """
        ahead = {
            asset: seconds * (1 - min(done.get(asset, 0) / count, 1.0))
            for asset, (count, seconds) in self.expected.items()
            if count
        }
        waiting = self.start_s if not any(done.values()) else 0.0
        whole = self.start_s + sum(seconds for _, seconds in self.expected.values())
        behind = whole - waiting - sum(ahead.values())
        if behind > self._behind + 1e-9:
            self._behind, self._moved = behind, elapsed
        pace = (self._moved + _TRUST_S) / (behind + _TRUST_S) if behind else 1.0
        # What is under way has begun: it is not as much work as when it was begun.
        current = waiting + next((left for left in ahead.values() if left > 0), 0.0)
        begun = min((elapsed - self._moved) / pace, 0.9 * current)
        end = elapsed + pace * max(waiting + sum(ahead.values()) - begun, 0.0)
        if self._end is None:
            self._end = end
        weight = 1 - math.exp(-(elapsed - self._looked) / _SMOOTHED_S)
        self._end += weight * (end - self._end)
        self._looked = elapsed
        return max(self._end - elapsed, 0.0)


def duration(seconds: float) -> str:
    """Seconds as people say them: 8 s, 3:05 min, 2:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


@contextmanager
def shown(console: Console, pace: Pace) -> Iterator[Callable[[Mapping[str, int]], None]]:
    """Yields what to tell the partitions done by asset; draws a bar, or prints a line now and then.

    Whoever leaves the block without an exception has done all there was to do.
    """
    total = sum(count for count, _ in pace.expected.values())
    started = time.monotonic()

    def count(done: Mapping[str, int]) -> int:
        return sum(min(done.get(asset, 0), count) for asset, (count, _) in pace.expected.items())

    def rest(done: Mapping[str, int], left: float) -> str:
        # Checks and Dagster's own records come after the last partition.
        return "finishing" if count(done) == total else f"about {duration(left)} left"

    if not console.is_terminal:
        last = started

        def line(done: Mapping[str, int]) -> None:
            nonlocal last
            now = time.monotonic()
            left = pace.left(now - started, done)
            if now - last >= _LINE_S:
                last = now
                console.print(
                    f"{count(done)}/{total} partitions, {duration(now - started)} elapsed, "
                    + rest(done, left),
                    soft_wrap=True,
                )

        yield line
        console.print(
            f"{total}/{total} partitions in {duration(time.monotonic() - started)}", soft_wrap=True
        )
        return
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("partitions, {task.fields[time]}"),
        console=console,
    ) as bar:
        task = bar.add_task("", total=total, time="starting")

        def draw(done: Mapping[str, int]) -> None:
            elapsed = time.monotonic() - started
            left = pace.left(elapsed, done)
            bar.update(
                task,
                completed=count(done),
                time=f"{duration(elapsed)} elapsed, {rest(done, left)}",
            )

        yield draw
        bar.update(task, completed=total, time=f"{duration(time.monotonic() - started)}")
