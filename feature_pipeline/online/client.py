"""Connections to Redis and what to say when one fails.

Two kinds of client, because they want opposite things: a reader wants to know within 50 ms that
Redis is not there and ask the database instead; the publisher wants its write to arrive. What is
sent over them belongs in `publish` and `read`.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004 - the name is redis-py's
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004 - the name is redis-py's
)
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from feature_pipeline.errors import OnlineError

SERVING_TIMEOUT_S = 0.05
"""Deadline of one socket operation of a serving client."""

PUBLISHING_TIMEOUT_S = 5.0
PUBLISHING_CONNECT_TIMEOUT_S = 2.0
PUBLISHING_RETRIES = 2


def serving_client(url: str) -> redis.Redis:
    """A client for reads: 50 ms per socket operation, no retry.

    redis-py's own defaults block a read for a minute on a server that does not answer.

    Raises:
        OnlineError: the URL is malformed.
    """
    return _client(url, SERVING_TIMEOUT_S, SERVING_TIMEOUT_S, Retry(NoBackoff(), 0))


def publishing_client(url: str) -> redis.Redis:
    """A client for writes: longer deadlines and two retries.

    A retried command whose answer was lost runs twice; the publishing script may do so, since
    the second time it finds its own version there.

    Raises:
        OnlineError: the URL is malformed.
    """
    retry = Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), PUBLISHING_RETRIES)
    return _client(url, PUBLISHING_TIMEOUT_S, PUBLISHING_CONNECT_TIMEOUT_S, retry)


def _client(url: str, timeout_s: float, connect_timeout_s: float, retry: Retry) -> redis.Redis:
    _check(url)
    try:
        client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=connect_timeout_s,
            retry=retry,
            decode_responses=False,
            # Each of these costs a round trip per connection, and none is of use here.
            protocol=2,
            driver_info=None,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
    except (ValueError, TypeError):
        # Not chained: the original message may quote a part of the password.
        raise _malformed() from None
    client.connection_pool.connection_kwargs["decode_responses"] = False  # a URL may ask for it
    return client


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise _malformed() from None
    if parts.scheme not in ("redis", "rediss", "unix") or port == 0:
        raise _malformed()
    if parts.scheme != "unix" and not host:
        raise _malformed()
    # `redis://user:12/3@host` parses as host `user`, port 12: the tail would leak into errors.
    if parts.scheme != "unix" and "@" in parts.path + parts.query + parts.fragment:
        raise _malformed()


def _malformed() -> OnlineError:
    return OnlineError(
        "the Redis URL is malformed: write redis://[user:password@]host:port/db, with special "
        "characters of the password percent-encoded"
    )


def address(client: redis.Redis) -> str:
    """Where the client connects, as host:port (or a socket's path), never with the password."""
    where = client.connection_pool.connection_kwargs
    if "path" in where:
        return str(where["path"])
    return f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"


def online_error(client: redis.Redis, error: RedisError) -> OnlineError:
    """The same trouble in one line, naming the server and what to do about it."""
    at = f"Redis at {address(client)}"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    denied = isinstance(error, ResponseError) and text.startswith(
        ("NOAUTH", "WRONGPASS", "ERR AUTH")
    )
    if isinstance(error, (AuthenticationError, AuthorizationError)) or denied:
        return OnlineError(f"{at} refuses the credentials: check user and password in its URL")
    if isinstance(error, BusyLoadingError):
        return OnlineError(f"{at} is still loading its data: try again in a moment")
    if isinstance(error, TimeoutError):
        seconds = client.connection_pool.connection_kwargs.get("socket_timeout") or 0
        return OnlineError(
            f"{at} did not answer within {seconds * 1000:g} ms: check that it is up and not "
            "overloaded"
        )
    if isinstance(error, ReadOnlyError) or "-READONLY" in text:
        return OnlineError(f"{at} is a read-only replica: point the URL to the primary")
    if isinstance(error, ConnectionError):
        return OnlineError(f"{at} cannot be reached: check that it is up and its URL right")
    if isinstance(error, OutOfMemoryError) or "-OOM" in text:  # the latter out of a script
        return OnlineError(f"{at} is out of memory: raise its maxmemory")
    return OnlineError(f"{at} refused a command: {text[:200]}")
