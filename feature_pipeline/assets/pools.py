"""Dagster's pools, one per provider: so many steps ask one of them at once, whoever started them.

A step may ask several providers (bars of shares here, of currencies there), and an asset names one
pool for all of its step. So a place is taken here, around the question to one provider: who waits
for Reddit keeps nobody from the feeds. Nobody holds two places: no two steps wait for each other.
How many places there are is the instance's to say (`dagster.yaml`); how fast one process asks is
the provider's own (`sources.http.Politeness`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import dagster as dg
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext

DATABASE = "database"
"""The pool of the steps that ask nobody but the database."""

Place = Callable[[str], AbstractContextManager[None]]
"""Provider -> a place in its pool, for as long as one asks it."""

_LOOK_S = 0.5


def places(context: dg.AssetExecutionContext) -> Place:
    """Places for the questions of one step, as the executors take them for whole steps."""

    @contextmanager
    def place(provider: str) -> Iterator[None]:
        step = f"{context.op_execution_context.get_step_execution_context().step.key}@{provider}"
        # It gives up what it waits for when left, by a cancelled run for example.
        with InstanceConcurrencyContext(context.instance, context.run) as pools:
            if not pools.claim(provider, step):
                context.log.info("waiting for a place in the pool %r", provider)
                while not pools.claim(provider, step):
                    time.sleep(_LOOK_S)
            try:
                yield
            finally:
                pools.free_step(step)

    return place
