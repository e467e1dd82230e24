"""The graphs and databases of the assets' tests, for what happens around them."""

from feature_pipeline_tests.assets.conftest import (  # noqa: F401
    new_database,
    new_graph,
    new_ran,
    ran,
    universe,
    world,
)
from feature_pipeline_tests.automation.places import new_place  # noqa: F401
