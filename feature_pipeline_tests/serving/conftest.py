"""Graphs on databases of their own, as the tests of the assets have them."""

from __future__ import annotations

from feature_pipeline_tests.assets.conftest import (  # noqa: F401
    new_database,
    new_graph,
    new_ran,
    ran,
    universe,
    world,
)
