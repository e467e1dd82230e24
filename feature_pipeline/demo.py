"""The demonstration: which days of the sample it fills, and how it knows that they are online."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import polars as pl
import tenacity

from feature_pipeline.automation.publishing import snapshot
from feature_pipeline.errors import StackError
from feature_pipeline.online.client import serving_client
from feature_pipeline.online.read import (
    HashAnswer,
    VectorAnswer,
    fall_through,
    read_features,
    read_state_vectors,
)
from feature_pipeline.resources import code_versions, store
from feature_pipeline.settings import Settings

DAYS = (date(2012, 1, 1), date(2013, 3, 2))
"""[start, end): fourteen months of the sample, up to where the recorded equities end."""

TIMEFRAME = "1d"
FRESH = timedelta(days=4)
"""A daily vector is fresh over a long weekend."""

_PUBLISHED_WITHIN_S = 120


def pending(settings: Settings) -> bool:
    """Whether a backfill of the demonstration's days has anything to do."""
    held = store(settings)
    versions = code_versions(held.universe)
    with held.database:
        return any(held.pending(asset, *DAYS, version).len() for asset, version in versions.items())


def published(settings: Settings, *, wait: bool = False) -> dict[str, VectorAnswer | None] | None:
    """The newest state vectors as Redis has them, once it has the database's; None before.

    Args:
        settings: where the stores are.
        wait: for the sensor to publish them.

    Raises:
        StackError: they did not turn up in time.
        OnlineError, DatabaseError: a store does not answer.
    """
    assert settings.redis_url is not None
    held = store(settings)
    with held.database, serving_client(settings.redis_url.get_secret_value()) as client:
        rows = held.newest(TIMEFRAME)
        wanted = dict(zip(rows["symbol"], rows["revision"], strict=True))

        def look() -> dict[str, VectorAnswer | None] | None:
            now = datetime.now(UTC)
            answers = read_state_vectors(client, list(wanted), TIMEFRAME, now, FRESH)
            there = all(a is not None and a.revision >= wanted[s] for s, a in answers.items())
            return answers if there and wanted else None

        if not wait:
            return look()
        answers: dict[str, VectorAnswer | None] | None = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda found: found is None),
            wait=tenacity.wait_fixed(0.2),
            stop=tenacity.stop_after_delay(_PUBLISHED_WITHIN_S),
            retry_error_callback=lambda _: None,
        )(look)
        if answers is None:
            raise StackError(
                f"the sensor has published nothing within {_PUBLISHED_WITHIN_S} s; see "
                f"{settings.home / 'log' / 'dagster-daemon.log'}"
            )
        return answers


def newest(settings: Settings, symbol: str) -> tuple[VectorAnswer | None, HashAnswer | None]:
    """A symbol's newest state vector and features; from the database where Redis has none.

    Raises:
        OnlineError, DatabaseError: a store does not answer.
    """
    assert settings.redis_url is not None
    held, now = store(settings), datetime.now(UTC)
    with held.database, serving_client(settings.redis_url.get_secret_value()) as client:
        vector = fall_through(
            client,
            [symbol],
            TIMEFRAME,
            now,
            FRESH,
            lambda names: snapshot(held).vectors[TIMEFRAME].filter(pl.col("symbol").is_in(names)),
        )[symbol]
        return vector, read_features(client, symbol, TIMEFRAME, now, FRESH)
