"""What to do when Redis was lost, or holds something that must go: publish everything again.

The sentinel key says `complete` only after a whole republication, so that the first ordinary
publication after a loss does not make the loss look mended. What is published comes from the
caller; how, is in `publish`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

import polars as pl
import redis
from redis.exceptions import RedisError

from feature_pipeline.errors import OnlineError
from feature_pipeline.online import keys
from feature_pipeline.online.client import address, online_error
from feature_pipeline.online.publish import DEFAULT_TTL, PublishReport, publish, publish_hashes

# The mark is set to complete only where it still is our own: a retry after a lost answer finds
# what it wrote, and answers the same.
_FINISH = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) end
return redis.call('GET', KEYS[1])
"""
_ATTEMPTS = 3


@dataclass(frozen=True)
class Snapshot:
    """The newest row of everything, as `publish` and `publish_hashes` take them.

    Args:
        vectors: by timeframe.
        macro: one row per series, if any.
        sentiment: one row per symbol and source, if any.
    """

    vectors: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    macro: pl.DataFrame | None = None
    sentiment: pl.DataFrame | None = None


def publish_snapshot(
    client: redis.Redis, snapshot: Snapshot, ttl: timedelta = DEFAULT_TTL
) -> PublishReport:
    """Publish the newest row of everything; what is newer in Redis stays.

    Raises:
        SchemaError: the rows cannot be published.
        OnlineError: Redis does not answer or refuses.
    """
    report = PublishReport()
    for timeframe, rows in snapshot.vectors.items():
        report += publish(client, rows, timeframe, ttl)
    if snapshot.macro is not None:
        report += publish_hashes(client, snapshot.macro, "macro", ttl)
    if snapshot.sentiment is not None:
        report += publish_hashes(client, snapshot.sentiment, "sentiment", ttl)
    return report


def rebuild_needed(client: redis.Redis) -> bool:
    """Whether Redis was lost, never filled, or left half-filled by a rebuild that was killed.

    Raises:
        OnlineError: Redis does not answer or refuses.
    """
    try:
        mark = client.get(keys.SENTINEL)
    except RedisError as error:
        raise online_error(client, error) from error
    return not _is_complete(mark)


def _is_complete(mark: object) -> bool:
    return isinstance(mark, bytes) and mark.startswith(b"complete")


def republish_all(
    client: redis.Redis,
    load: Callable[[], Snapshot],
    *,
    ttl: timedelta = DEFAULT_TTL,
    force: bool = False,
) -> PublishReport:
    """Publish everything, then mark Redis as complete.

    Args:
        client: a `publishing_client`.
        load: reads the newest rows from the database. It is called after the keys are cleared: a
            row that another writer publishes meanwhile is then in the snapshot or survives it.
        ttl: how long the keys live without being published again.
        force: remove all of the pipeline's keys first, so that a value that would win by its
            version (a wrong one from the future, say) is replaced as well.

    Raises:
        SchemaError: the rows cannot be published.
        OnlineError: Redis does not answer, refuses, or loses its data again and again.
    """
    for _ in range(_ATTEMPTS):
        token = uuid.uuid4().hex
        ours, done = f"rebuilding:{token}", f"complete:{token}"
        try:
            client.set(keys.SENTINEL, ours)
            if force:
                clear(client)
            report = publish_snapshot(client, load(), ttl)
            mark = client.eval(_FINISH, 1, keys.SENTINEL, ours, done)
        except RedisError as error:
            raise online_error(client, error) from error
        if mark is not None:
            # Another rebuild's mark is younger than ours: it saw whatever loss there was, and what
            # it says of Redis holds.
            return replace(report, complete=_is_complete(mark))
        # No mark: Redis was lost meanwhile, and the first rows with it.
    raise OnlineError(
        f"Redis at {address(client)} lost its data {_ATTEMPTS} times during the rebuild: check "
        "that it stays up and that nothing flushes it"
    )


def clear(client: redis.Redis) -> int:
    """Remove the pipeline's own keys (`keys.OWN_PATTERNS`) and nothing else; their number.

    Raises:
        OnlineError: Redis does not answer or refuses.
    """
    removed = 0
    try:
        for pattern in keys.OWN_PATTERNS:
            cursor = 0
            while True:
                cursor, found = client.scan(cursor, match=pattern, count=1000)
                if found:
                    removed += client.unlink(*found)
                if cursor == 0:
                    break
    except RedisError as error:
        raise online_error(client, error) from error
    return removed
