"""`sensor`: Dagster's decorator, with the docstring as the description that the UI shows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import dagster as dg


def sensor(**options: Any) -> Callable[[Callable[..., Any]], dg.SensorDefinition]:
    """`dg.sensor`, running from the start; Dagster reads docstrings of assets, not of sensors."""

    def declare(evaluate: Callable[..., Any]) -> dg.SensorDefinition:
        return dg.sensor(
            description=inspect.getdoc(evaluate),
            default_status=dg.DefaultSensorStatus.RUNNING,
            **options,
        )(evaluate)

    return declare
