"""A local HTTP server whose answers, and whose faults, a test decides."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from feature_pipeline.sources.http import Limits

QUICK = Limits(
    requests=1000, seconds=0.1, attempts=2, wait_s=5.0, deadline_s=20.0, max_bytes=4 << 20
)
"""Of a provider that is here. Nobody waits for it, but where the machine is busy."""

IMPATIENT = replace(QUICK, wait_s=0.3, deadline_s=4.0)
"""Of one that is silent, or slow."""


@dataclass(frozen=True)
class Request:
    """What was asked."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def form(self) -> dict[str, str]:
        """The fields of a posted form."""
        return {k: v[-1] for k, v in parse_qs(self.body.decode(), keep_blank_values=True).items()}


@dataclass(frozen=True)
class Answer:
    """What is answered.

    Args:
        status: HTTP status.
        body: sent as it is; a `dict` or `list` as JSON.
        headers: more of them.
        cut: send so many bytes of the body and hang up, having promised all of it.
        pause_s: before the answer begins.
        drip_s: pause after each byte of the body.
    """

    status: int = 200
    body: bytes | str | dict[str, Any] | list[Any] = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    pause_s: float = 0.0
    drip_s: float = 0.0

    @property
    def data(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()


def too_many(retry_after: str = "1") -> Answer:
    """429, with the moment from which it may be asked again."""
    return Answer(429, b"Too Many Requests", {"Retry-After": retry_after})


def broken() -> Answer:
    """500."""
    return Answer(500, b"Internal Server Error")


def html() -> Answer:
    """A page, with status 200: a login wall, a maintenance notice."""
    return Answer(200, b"<!doctype html><title>Sorry</title>", {"Content-Type": "text/html"})


def truncated(body: str = '{"chart": {"result": [{"meta"') -> Answer:
    """JSON that ends in the middle, all of it sent."""
    return Answer(200, body, {"Content-Type": "application/json"})


def hung_up() -> Answer:
    """Fewer bytes than promised."""
    return Answer(200, b'{"a": 1}' * 10, {"Content-Type": "application/json"}, cut=7)


def bad_gzip() -> Answer:
    """Says gzip and is broken in the middle."""
    packed = bytearray(gzip.compress(b'{"a": 1}' * 100))
    packed[len(packed) // 2 :] = b"\xff" * (len(packed) - len(packed) // 2)
    return Answer(
        200, bytes(packed), {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    )


def silent(seconds: float = 30.0) -> Answer:
    """Nothing, for so long."""
    return Answer(200, b"{}", pause_s=seconds)


def dripping(body: bytes = b"x" * 10_000, each_s: float = 0.05) -> Answer:
    """A body that comes byte by byte."""
    return Answer(200, body, drip_s=each_s)


Handler = Callable[[Request], Answer]


class ProviderServer:
    """Serves `routes` (path prefix -> handler, the longest that fits wins) on the loopback.

    `faults` are answered first, in order, whatever is asked (those with a prefix: only below it);
    `asked` is what was asked, in order.
    """

    def __init__(self, routes: Mapping[str, Handler] | None = None) -> None:
        self.routes: dict[str, Handler] = dict(routes or {})
        self.asked: list[Request] = []
        self._faults: deque[tuple[str, Answer]] = deque()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        """http://127.0.0.1:port"""
        return f"http://127.0.0.1:{self._server.server_port}"

    def fail(self, *answers: Answer, below: str = "/", times: int = 1) -> None:
        """Answer these first, each `times`, to whatever is asked below a path."""
        with self._lock:
            for answer in answers:
                self._faults.extend([(below, answer)] * times)

    def paths(self) -> list[str]:
        """The paths that were asked for."""
        return [request.path for request in self.asked]

    def __enter__(self) -> ProviderServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _answer(self, request: Request) -> Answer:
        with self._lock:
            self.asked.append(request)
            for number, (below, answer) in enumerate(self._faults):
                if request.path.startswith(below):
                    del self._faults[number]
                    return answer
        for prefix in sorted(self.routes, key=len, reverse=True):
            if request.path.startswith(prefix):
                return self.routes[prefix](request)
        return Answer(404, b"Not Found")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class _Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                parts = urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                request = Request(
                    self.command,
                    parts.path,
                    {k: v[-1] for k, v in parse_qs(parts.query, keep_blank_values=True).items()},
                    {k.lower(): v for k, v in self.headers.items()},
                    self.rfile.read(length) if length else b"",
                )
                self._send(server._answer(request))

            do_GET = do_POST = do_HEAD = _serve  # noqa: N815

            def _send(self, answer: Answer) -> None:
                if answer.pause_s and server._ended.wait(answer.pause_s):
                    return
                data = answer.data
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                if self.close_connection:  # asked for: who is not told so, may use it once more
                    self.send_header("Connection", "close")
                self.end_headers()
                if self.command == "HEAD":
                    return
                try:
                    self._body(answer, data)
                except OSError:  # whoever asked has gone
                    self.close_connection = True

            def _body(self, answer: Answer, data: bytes) -> None:
                if answer.drip_s:
                    for place in range(len(data)):
                        self.wfile.write(data[place : place + 1])
                        self.wfile.flush()
                        if server._ended.wait(answer.drip_s):
                            return
                elif answer.cut is not None:
                    self.wfile.write(data[: answer.cut])
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                else:
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        return _Handler
