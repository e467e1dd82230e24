"""`python -m feature_pipeline.cli`."""

import sys

from feature_pipeline.cli import app

sys.exit(app())
