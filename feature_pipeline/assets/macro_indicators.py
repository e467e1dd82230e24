"""Macro series with their vintages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from feature_pipeline.assets.declare import table_asset
from feature_pipeline.schemas import Fetched
from feature_pipeline.storage.io_manager import StorageIOManager

SERIES = ("VIXCLS", "DFF", "T10Y2Y")
"""FRED's identifiers: VIX close, effective federal funds rate, 10-year minus 2-year yield."""


@dg.asset(**table_asset("macro_indicators", group="raw", kinds={"polars"}))
def macro_indicators(
    context: dg.AssetExecutionContext,
    storage: dg.ResourceParam[StorageIOManager],
    macro_source: dg.ResourceParam[Any],
) -> Fetched:
    """VIX, federal funds rate and yield curve, each value from the moment of its release.

    A revision is a new row beside the old one: what was known at a moment is the newest release
    available then.
    """
    plan = storage.plan(context)
    answer: Fetched = macro_source.macro(SERIES, *plan.window)
    return answer
