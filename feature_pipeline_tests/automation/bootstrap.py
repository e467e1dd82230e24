"""The command line with its providers on a local server, which the environment names.

The processes that run a backfill are fresh ones that import the command's main module: what is put
here at its top holds in them, too. It is run, never imported by a test.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from feature_pipeline import resources
from feature_pipeline.automation import estimate
from feature_pipeline.settings import Settings
from feature_pipeline.sources.crypto import CryptoSource
from feature_pipeline.sources.dukascopy import DukascopySource
from feature_pipeline.sources.yahoo import YahooSource
from feature_pipeline.universe import Universe
from feature_pipeline_tests.assets.markets import QUICK, URL_VARIABLE
from feature_pipeline_tests.providers.dukascopy import PATH


def sources(settings: Settings, universe: Universe) -> Mapping[str, Any]:
    """As `resources.sources`, elsewhere."""
    url = os.environ[URL_VARIABLE]
    known = (
        YahooSource(QUICK, url),
        DukascopySource(QUICK, url + PATH),
        CryptoSource("coinbase", QUICK, url),
    )
    return {source.name: source for source in known}


resources.sources = sources
# At their pace these would answer decades at once: runs as short as they get.
estimate.ASKING_S = estimate._LITTLE_MORE = 0.0

if __name__ == "__main__":
    from feature_pipeline.cli import app

    app()
