"""Deadlines, retries, and the one line that a failing connection says."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import redis
from redis.exceptions import ResponseError

from feature_pipeline.errors import OnlineError
from feature_pipeline.online import client as clients
from feature_pipeline.online.publish import publish
from feature_pipeline.online.read import read_state_vector
from feature_pipeline.online.rebuild import rebuild_needed
from feature_pipeline_tests.online.support import DAY, NOW, rows

PATIENT = "?socket_timeout=5&socket_connect_timeout=5"
"""Where the deadline is not the point: the machine may be busy."""


@pytest.fixture
def black_hole() -> Iterator[tuple[str, socket.socket]]:
    """A server that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0", listener


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _one_line(error: pytest.ExceptionInfo[OnlineError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_read_from_a_black_hole_ends_at_its_deadline(black_hole):
    url, _ = black_hole
    client = clients.serving_client(url)
    start = time.monotonic()
    with pytest.raises(OnlineError, match="did not answer within 50 ms") as error:
        read_state_vector(client, "AAPL", "1d", NOW, DAY)
    # One deadline and no retry; room for a busy machine.
    assert 0.04 < time.monotonic() - start < 2
    assert urlsplit(url).netloc in _one_line(error)


def test_a_password_does_not_make_a_black_hole_slower(black_hole):
    url, _ = black_hole
    client = clients.serving_client(url.replace("redis://", "redis://:hunter2@"))
    start = time.monotonic()
    with pytest.raises(OnlineError) as error:
        rebuild_needed(client)
    assert time.monotonic() - start < 2
    assert "hunter2" not in _one_line(error)


def test_publishing_into_a_black_hole_is_retried_a_bounded_number_of_times(black_hole, monkeypatch):
    url, listener = black_hole
    monkeypatch.setattr(clients, "PUBLISHING_TIMEOUT_S", 0.1)
    client = clients.publishing_client(url)
    start = time.monotonic()
    with pytest.raises(OnlineError, match="did not answer within 100 ms"):
        publish(client, rows(), "1d")
    assert time.monotonic() - start < 5
    listener.setblocking(False)
    tries = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            break
        tries += 1
    assert tries == 1 + clients.PUBLISHING_RETRIES


@pytest.mark.parametrize("make", [clients.serving_client, clients.publishing_client])
def test_an_unreachable_server_is_one_line(closed_port, make):
    client = make(f"redis://:hunter2@127.0.0.1:{closed_port}/0" + PATIENT)
    start = time.monotonic()
    with pytest.raises(OnlineError, match=f"127.0.0.1:{closed_port} cannot be reached") as error:
        rebuild_needed(client)
    assert "hunter2" not in _one_line(error)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("make", [clients.serving_client, clients.publishing_client])
@pytest.mark.parametrize("user", ["hunter2", "someone:hunter2"])
def test_a_wrong_password_is_one_line_without_it(own_redis, make, user):
    own_redis.start(password="right")
    netloc = f"{user}@" if ":" in user else f":{user}@"
    client = make(own_redis.url.replace("redis://", f"redis://{netloc}") + PATIENT)
    with pytest.raises(OnlineError, match="refuses the credentials") as error:
        publish(client, rows(), "1d")
    text = _one_line(error)
    assert f"127.0.0.1:{own_redis.port}" in text
    assert "hunter2" not in text


def test_a_password_that_is_missing_is_the_same_trouble(own_redis):
    own_redis.start(password="right")
    with pytest.raises(OnlineError, match="refuses the credentials"):
        rebuild_needed(clients.serving_client(own_redis.url + PATIENT))


def test_a_password_with_special_characters_works_percent_encoded(own_redis):
    own_redis.start(password="p@s/s:1#")
    url = own_redis.url.replace("redis://", "redis://:p%40s%2Fs%3A1%23@")
    assert rebuild_needed(clients.serving_client(url + PATIENT))


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://localhost:6379",
        "redis://",
        "redis://localhost:port",
        "redis://localhost:0",
        "redis://:hunter2/3@localhost:6379",
        "redis://user:12/hunter2@localhost:6379",
        "redis://user:12#hunter2@localhost:6379",
        "redis://localhost:6379?socket_timeout=hunter2",
        "redis://[hunter2",
    ],
)
def test_a_malformed_url_is_one_line_without_the_password(url):
    with pytest.raises(OnlineError, match="the Redis URL is malformed") as error:
        clients.serving_client(url)
    assert "hunter2" not in _one_line(error)
    assert error.value.__cause__ is None
    assert error.value.__context__ is None or error.value.__suppress_context__


def test_values_stay_bytes_whatever_the_url_asks_for(redis_url):
    client = clients.serving_client(redis_url + PATIENT + "&decode_responses=true")
    client.set("k", b"\xff")
    assert client.get("k") == b"\xff"


def test_other_refusals_name_the_server(redis_url):
    client = clients.serving_client(redis_url)
    error = clients.online_error(client, ResponseError("NOPERM no\nsecond line"))
    assert str(error) == f"Redis at {clients.address(client)} refused a command: NOPERM no"


def test_a_server_that_came_back_is_read_again(own_redis):
    own_redis.start()
    client = clients.serving_client(own_redis.url + PATIENT)
    assert rebuild_needed(client)
    own_redis.stop()
    with pytest.raises(OnlineError):
        rebuild_needed(client)
    own_redis.start()
    assert rebuild_needed(client)


def test_no_memory_left_is_one_line(own_redis):
    own_redis.start()
    with redis.Redis.from_url(own_redis.url) as admin:
        admin.config_set("maxmemory", 1)
    with pytest.raises(OnlineError, match="out of memory"):
        publish(clients.publishing_client(own_redis.url), rows(), "1d")
