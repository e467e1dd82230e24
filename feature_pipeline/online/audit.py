"""Which of the keys that should be in Redis are not, or hold something older than the database.

Reads versions alone, one round trip per some hundred keys. What should be there comes from the
caller, as the same snapshot that is published; publishing it is the cure (`rebuild`).
"""

from __future__ import annotations

import struct
from typing import Any

import polars as pl
import redis
from redis.exceptions import RedisError, ResponseError

from feature_pipeline.online import keys
from feature_pipeline.online.client import online_error
from feature_pipeline.online.publish import REGIME_LABEL
from feature_pipeline.online.rebuild import Snapshot

_HEAD = struct.Struct("<Bqq")
_PER_ROUND_TRIP = 1000


def outdated(client: redis.Redis, snapshot: Snapshot) -> list[str]:
    """The keys that are missing, unreadable, or older than the snapshot's rows, sorted.

    A key that holds something newer is none of them: an older version never overwrites it.

    Raises:
        OnlineError: Redis does not answer or refuses.
    """
    expected = _expected(snapshot)
    held: list[tuple[int, int] | None] = []
    try:
        for part in expected.iter_slices(_PER_ROUND_TRIP):
            with client.pipeline(transaction=False) as pipeline:
                for key, packed in zip(part["key"], part["packed"], strict=True):
                    if packed:
                        pipeline.getrange(key, 0, _HEAD.size - 1)
                    else:
                        pipeline.hmget(key, "as_of_us", "revision")
                held += [_version(answer) for answer in pipeline.execute(raise_on_error=False)]
    except RedisError as error:
        raise online_error(client, error) from error
    wanted = zip(expected["key"], expected["as_of_us"], expected["revision"], held, strict=True)
    return [key for key, *version, there in wanted if there is None or there < tuple(version)]


def _expected(snapshot: Snapshot) -> pl.DataFrame:
    """`key`, `as_of_us`, `revision` and whether it is `packed`, of every key, sorted."""
    parts = []
    for timeframe, rows in snapshot.vectors.items():
        names = [keys.vector_prefix(timeframe), keys.features_prefix(timeframe)]
        if REGIME_LABEL in rows.columns:
            names.append(keys.regime_prefix(timeframe))
        parts += [_versions(rows, pl.lit(n) + pl.col("symbol"), n == names[0]) for n in names]
    if snapshot.macro is not None:
        parts.append(_versions(snapshot.macro, pl.lit(keys.MACRO_PREFIX) + pl.col("series_id")))
    if snapshot.sentiment is not None:
        name = pl.format(keys.SENTIMENT, "symbol", "source")
        parts.append(_versions(snapshot.sentiment, name))
    none = {"key": pl.String, "as_of_us": pl.Int64, "revision": pl.Int64, "packed": pl.Boolean}
    # What has no version is not published, and not missed.
    return pl.concat([pl.DataFrame(schema=none), *parts]).drop_nulls().sort("key")


def _versions(rows: pl.DataFrame, key: pl.Expr, packed: bool = False) -> pl.DataFrame:
    return rows.select(
        key=key,
        as_of_us=pl.col("available_at").dt.epoch("us"),
        revision=pl.col("revision").cast(pl.Int64),
        packed=pl.lit(packed),
    )


def _version(answer: Any) -> tuple[int, int] | None:
    """`(as_of_us, revision)` of what a key holds, None where it is not ours to read."""
    if isinstance(answer, ResponseError):  # of another type: whoever publishes replaces it
        return None
    if isinstance(answer, Exception):
        raise answer
    if isinstance(answer, bytes):
        if len(answer) < _HEAD.size or answer[0] != keys.FORMAT:
            return None
        return _HEAD.unpack(answer)[1:]
    try:
        return int(answer[0] or b""), int(answer[1] or b"")
    except ValueError:
        return None
