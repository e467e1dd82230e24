"""What the repair sensor remembers between its ticks: what was tried, and what checks hold back.

It lives in the sensor's cursor, as JSON of bounded size. What is amiss, and what is done about it,
is `repair.py`'s.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import dagster as dg
import polars as pl

from feature_pipeline.automation.evaluations import (
    Seen,
    Span,
    evaluation,
    held_days,
    hold,
    span_of,
    unseen,
)

MAX_ATTEMPTS = 3
PAUSE = timedelta(minutes=2)
"""After the first attempt; four times as long after each further one."""
LONG_PAUSE = timedelta(hours=6)
"""After the last attempt: then one more, as often as it takes."""


@dataclass
class Attempts:
    """What was done about one thing that is not right: how often, when last, and who knows."""

    fingerprint: str
    count: int = 0
    at: float = 0.0
    told: bool = False

    def ready(self, now: datetime) -> bool:
        """Whether the pause after the last one is over."""
        if self.count == 0:
            return True
        pause = PAUSE * 4 ** (self.count - 1) if self.count < MAX_ATTEMPTS else LONG_PAUSE
        return now.timestamp() >= self.at + pause.total_seconds()

    def made(self, now: datetime) -> None:
        """Count one."""
        self.count = min(self.count + 1, MAX_ATTEMPTS)
        self.at = now.timestamp()

    @property
    def exhausted(self) -> bool:
        """Whether a person should know."""
        return self.count >= MAX_ATTEMPTS


@dataclass
class Memory:
    """The sensor's memory, in its cursor.

    Args:
        tried: one entry per asset and year that is not right.
        held: `asset check` -> spans that a failed check holds back.
        seen: the evaluations of checks up to here.
    """

    tried: dict[str, Attempts] = field(default_factory=dict)
    held: dict[str, list[Span]] = field(default_factory=dict)
    seen: Seen | None = None
    _current: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, cursor: str | None) -> Memory:
        """From a cursor; empty where there is none, or one that another release has left."""
        try:
            known = json.loads(cursor or "")
            newest, ids = known["seen"]
            tried = {name: Attempts(*entry) for name, entry in known["tried"].items()}
            return cls(tried, known["held"], Seen(newest, tuple(ids)))
        except (ValueError, KeyError, TypeError):
            return cls()

    def write(self) -> str:
        """Without what is right by now."""
        seen = self.seen or Seen()
        tried = {
            name: [a.fingerprint, a.count, a.at, a.told]
            for name, a in sorted(self.tried.items())
            if name in self._current
        }
        return json.dumps({"tried": tried, "held": self.held, "seen": [seen.newest, seen.ids]})

    def of(self, name: str, fingerprint: str) -> Attempts:
        """What was done about a thing; nothing yet where it is another than before."""
        self._current.add(name)
        known = self.tried.get(name)
        if known is None or known.fingerprint != fingerprint:
            known = self.tried[name] = Attempts(fingerprint)
        return known

    def keep(self, name: str) -> None:
        """Do not forget what was not looked at."""
        self._current.add(name)

    def look_at_checks(self, instance: dg.DagsterInstance) -> dict[str, pl.Series]:
        """Asset -> the days that failed checks hold back, the newest evaluations included."""
        records, self.seen = unseen(instance, self.seen)
        said = [(r.event_log_entry.run_id, evaluation(r)) for r in records]
        blocking = [(run_id, check) for run_id, check in said if check and check.blocking]
        ids = sorted({run_id for run_id, _ in blocking})
        runs = instance.get_runs(dg.RunsFilter(run_ids=ids)) if ids else ()
        spans = {run.run_id: span_of(run) for run in runs}
        for run_id, check in blocking:
            self.held = hold(self.held, check, spans.get(run_id))
        return held_days(self.held)
