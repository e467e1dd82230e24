"""What Redis holds of ours, and how much memory it uses. Looks only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import redis
from redis.exceptions import RedisError

from feature_pipeline.online import keys
from feature_pipeline.online.client import online_error


@dataclass(frozen=True)
class Usage:
    """The state of one Redis.

    Args:
        keys: how many keys of ours, by what comes before their first colon.
        others: keys of other programs.
        memory, peak: bytes in use, and the most that ever were.
        limit: bytes it may use; 0 - no limit of its own.
        complete: whether everything was published since it was last empty.
        version: of the server.
        uptime: of the server.
    """

    keys: dict[str, int]
    others: int
    memory: int
    peak: int
    limit: int
    complete: bool
    version: str
    uptime: timedelta


def usage(client: redis.Redis) -> Usage:
    """Count our keys and ask the server for the rest.

    Raises:
        OnlineError: Redis does not answer or refuses.
    """
    try:
        information: Any = client.info()
        mark: Any = client.get(keys.SENTINEL)
        found: set[bytes] = set()
        for pattern in keys.OWN_PATTERNS:  # SCAN may name a key twice
            found.update(client.scan_iter(match=pattern, count=1000))
        total: Any = client.dbsize()
    except RedisError as error:
        raise online_error(client, error) from error
    counts: dict[str, int] = {pattern.partition(":")[0]: 0 for pattern in keys.OWN_PATTERNS}
    for name in found:
        counts[name.decode().partition(":")[0]] += 1
    return Usage(
        keys=counts,
        others=max(0, total - len(found) - (mark is not None)),
        memory=information["used_memory"],
        peak=information["used_memory_peak"],
        limit=information.get("maxmemory", 0),
        complete=mark is not None and mark.startswith(b"complete"),
        version=information["redis_version"],
        uptime=timedelta(seconds=information["uptime_in_seconds"]),
    )
