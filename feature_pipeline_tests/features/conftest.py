"""Markets that several modules read; none of them changes one."""

from __future__ import annotations

import pytest

from feature_pipeline_tests.features.market import Market, Tables, chain, make_market


@pytest.fixture(scope="session")
def market() -> Market:
    return make_market()


@pytest.fixture(scope="session")
def tables(market: Market) -> Tables:
    return chain(market)
