"""How we ask over the network: at a provider's pace, again where that helps, and never for ever.

One `Politeness` per provider holds its rate limit, its retries and its deadlines; the sessions here
put it under every request, those that a client library makes of its own included. What is asked,
and what an answer means, is the providers' modules'.

An error names the provider, the host and path, and what was answered - never a query string or a
header, for keys travel in both. For the same reason nobody is followed to another host.
"""

from __future__ import annotations

import json
import logging
import math
import random
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import urljoin, urlsplit

import requests
import tenacity
from pyrate_limiter import Duration, Limiter, Rate

from feature_pipeline.errors import SourceError

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers after which the same question may get a better one."""

USER_AGENT = "feature-pipeline/0.1"

_CHUNK = 1 << 16
_LONGEST_BACKOFF_S = 60.0
_GZIP = b"\x1f\x8b"
_HOPELESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidHeader,
)
"""What the question itself is to blame for."""

# At DEBUG it writes down what is asked, query and all.
logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)


@dataclass(frozen=True)
class Limits:
    """What a provider stands, and what we do.

    Args:
        requests: at most so many ...
        seconds: ... in so many seconds.
        attempts: how often one question is put.
        wait_s: how long the server may be silent.
        deadline_s: how long one question may take, its retries and waits included.
        max_bytes: of one answer, unpacked.
    """

    requests: int
    seconds: float = 60.0
    attempts: int = 5
    wait_s: float = 20.0
    deadline_s: float = 180.0
    max_bytes: int = 32 << 20

    @property
    def seconds_per_call(self) -> float:
        """From one request to the next, where many are made."""
        return self.seconds / self.requests


def _wait(seconds: float) -> None:
    time.sleep(seconds)


class Answer(Protocol):
    """What the client libraries' responses have in common."""

    status_code: int

    @property
    def headers(self) -> Any:
        """Header -> value, in any case."""
        ...


A = TypeVar("A", bound=Answer)


class _AgainError(Exception):
    """The question is worth repeating."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


class _Pause:
    """Until when a provider wants to be left alone: told one thread, kept by all."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until = 0.0
        self._lock = threading.Lock()

    def lengthen(self, seconds: float) -> None:
        with self._lock:
            self._until = max(self._until, self._clock() + seconds)

    def left(self) -> float:
        return max(self._until - self._clock(), 0.0)


class Politeness:
    """The manners towards one provider; shared by all threads that ask it.

    Args:
        provider: its name, for errors.
        limits: its limits.
        sleep: waits so many seconds.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        provider: str,
        limits: Limits,
        *,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.provider = provider
        self.limits = limits
        self._sleep = sleep or _wait
        self._clock = clock
        self._made: Limiter | None = None
        self._making = threading.Lock()
        self._pause = _Pause(clock)

    @property
    def _limiter(self) -> Limiter:
        """Made with the first question: it starts a thread, and most processes ask nobody."""
        with self._making:
            if self._made is None:
                rate = Rate(self.limits.requests, round(self.limits.seconds * Duration.SECOND))
                self._made = Limiter(rate)
            return self._made

    def ask(
        self,
        send: Callable[[float], A],
        url: str,
        failures: tuple[type[BaseException], ...] = (requests.RequestException, OSError),
    ) -> A:
        """The provider's answer to one question.

        Args:
            send: puts the question; told the seconds that are left for it.
            url: where to, for errors.
            failures: what `send` raises where there was no answer: worth another attempt.

        Returns:
            An answer of any status that is not in `AGAIN`.

        Raises:
            SourceError: there was none, or none but those, within attempts and deadline.
        """
        where = _place(url)
        started = self._clock()

        def left() -> float:
            return self.limits.deadline_s - (self._clock() - started)

        def attempt() -> A:
            if (pause := self._pause.left()) > 0:
                if pause > left():
                    raise SourceError(self._alone(where, pause))
                self._sleep(pause)
            if left() <= 0:
                raise SourceError(self._late(where))
            if not self._limiter.try_acquire(self.provider, timeout=max(left(), 0.001)):
                raise SourceError(self._late(where))
            try:
                answer = send(min(self.limits.wait_s, max(left(), 0.001)))
            except _HOPELESS as error:
                raise SourceError(f"{self.provider}: {where} {_kind(error)}") from None
            except failures as error:
                raise _AgainError(_kind(error)) from error
            if answer.status_code in AGAIN:
                after = _retry_after(answer.headers.get("Retry-After"))
                if after is not None:
                    self._pause.lengthen(after)
                    if after > left():
                        raise SourceError(self._alone(where, after))
                raise _AgainError(f"answered {answer.status_code}", after)
            return answer

        backoff = tenacity.wait_exponential_jitter(
            multiplier=0.5, max=_LONGEST_BACKOFF_S, jitter=0.5
        )

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            after = error.after_s if isinstance(error, _AgainError) else None
            # Not before the moment that it names, and not all of us at that very moment.
            jitter = random.uniform(0, 0.25)  # noqa: S311 - no secret
            return min(backoff(state) if after is None else after + jitter, max(left(), 0.0))

        try:
            return tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(_AgainError),
                stop=tenacity.stop_after_attempt(self.limits.attempts),
                wait=wait,
                sleep=self._sleep,
                reraise=True,
            )(attempt)
        except _AgainError as error:
            raise SourceError(
                f"{self.provider}: {where} {error}, {self.limits.attempts} times; the next run "
                "asks again"
            ) from None

    def _alone(self, where: str, seconds: float) -> str:
        return (
            f"{self.provider}: {where} wants to be left alone for {seconds:.0f} s; the next run "
            "asks again"
        )

    def _late(self, where: str) -> str:
        return (
            f"{self.provider}: {where} did not answer within {self.limits.deadline_s:g} s; the "
            "next run asks again"
        )


class PoliteSession(requests.Session):
    """A session of `requests` that minds its manners, whoever uses it.

    Answers are read here, up to `max_bytes` and within the deadline, however slowly they come: a
    client that is handed one has it whole. A GET that is sent on is followed on its own host.

    Args:
        politeness: the manners.
        hosts: others that a question may be sent on to, headers and all.
    """

    def __init__(self, politeness: Politeness, hosts: Collection[str] = ()) -> None:
        super().__init__()
        self.politeness = politeness
        self.hosts = frozenset(hosts)
        self.max_redirects = 5
        self.headers["User-Agent"] = USER_AGENT
        self.headers["Accept-Encoding"] = "gzip"

    def request(self, method: str | bytes, url: str | bytes, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        """As `requests.Session.request`.

        Raises:
            SourceError: see `Politeness.ask`; or the answer is too large, or sends us elsewhere.
        """
        kwargs.pop("timeout", None)
        kwargs.pop("stream", None)
        follow = kwargs.pop("allow_redirects", None) is not False
        address = url.decode() if isinstance(url, bytes) else url
        limits = self.politeness.limits
        deadline = time.monotonic() + limits.deadline_s

        def send(seconds: float) -> requests.Response:
            until = min(time.monotonic() + seconds + limits.wait_s, deadline)
            asked, options = address, kwargs
            history: list[requests.Response] = []
            while True:
                response = super(PoliteSession, self).request(
                    method, asked, timeout=seconds, stream=True, allow_redirects=False, **options
                )
                with response:
                    _read(response, self.politeness, until)
                response.history = history
                if not (follow and response.is_redirect and str(method).upper() == "GET"):
                    return response
                asked = self._sent_on(response, len(history))
                history = [*history, response]
                options = {name: value for name, value in kwargs.items() if name != "params"}

        return self.politeness.ask(send, address)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: `requests` would read the body that comes along without a limit."""

    def _sent_on(self, response: requests.Response, hops: int) -> str:
        """Where an answer sends us.

        Raises:
            SourceError: that is another host, or in circles.
        """
        target = urljoin(response.url, super().get_redirect_target(response) or "")
        here = f"{self.politeness.provider}: {_place(response.url)}"
        if hops >= self.max_redirects:
            raise SourceError(f"{here} sends us on and on; see whether its address is still right")
        elsewhere = self.should_strip_auth(response.url, target)
        if elsewhere and urlsplit(target).hostname not in self.hosts:
            raise SourceError(
                f"{here} sends us to {_place(target)[:80]!r}, which is not asked; see whether its "
                "address is still right"
            )
        return target

    def json(self, url: str, params: Mapping[str, str | int] | None = None) -> Any:
        """What a GET answers, as JSON.

        Raises:
            SourceError: no answer, one of another status than 200, or no JSON.
        """
        response = self.get(url, params=params)
        provider, where = self.politeness.provider, _place(url)
        if response.status_code != 200:
            raise SourceError(f"{provider}: {where} answered {response.status_code}")
        try:
            # From its bytes, strictly: `requests` would guess at an encoding, and read anything.
            return json.loads(response.content)
        except (ValueError, RecursionError):  # the latter: nested a thousandfold
            raise SourceError(f"{provider}: {where} answered something that is no JSON") from None


def _read(response: requests.Response, politeness: Politeness, until: float) -> None:
    """Read a body as it comes, for no longer and no more than is allowed."""
    parts, size = [], 0
    most = politeness.limits.max_bytes
    try:
        for chunk in _unpacked(response):
            size += len(chunk)
            if size > most:
                raise SourceError(
                    f"{politeness.provider}: {_place(response.url)} answered with more than "
                    f"{most} bytes; it was not read to its end"
                )
            if time.monotonic() > until:
                raise requests.Timeout("the answer came too slowly")
            parts.append(chunk)
    except (SourceError, requests.RequestException):
        raise
    except Exception as error:  # urllib3's own, zlib's: cut short, badly packed
        if "Timeout" in type(error).__name__:
            raise requests.Timeout(type(error).__name__) from error
        raise requests.exceptions.ChunkedEncodingError(type(error).__name__) from error
    response._content = b"".join(parts)
    response._content_consumed = True  # type: ignore[attr-defined]


def _unpacked(response: requests.Response) -> Iterator[bytes]:
    """A body piece by piece. Of gzip we see its end, which urllib3 does not: a body that was cut
    and says nothing of its length would pass for whole."""
    raw = response.raw
    if response.headers.get("Content-Encoding", "").strip().lower() not in ("gzip", "x-gzip"):
        while chunk := raw.read1(_CHUNK, decode_content=True):
            yield chunk
        return
    member, begun = zlib.decompressobj(wbits=31), False
    while packed := raw.read1(_CHUNK, decode_content=False):
        while True:
            if member.eof:  # another member may follow; anything else is padding
                if not packed.startswith(_GZIP):
                    break
                member = zlib.decompressobj(wbits=31)
            begun = True
            yield (chunk := member.decompress(packed, _CHUNK))
            packed = member.unused_data if member.eof else member.unconsumed_tail
            if not packed and len(chunk) < _CHUNK:
                break
    if begun and not member.eof:
        raise EOFError


def _place(url: str) -> str:
    """Host and path of an address: what may be shown of it."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname or ''}{parts.path}"
    except ValueError:
        return "an address that is none"


def _kind(error: BaseException) -> str:
    """The kind of a failure: its text quotes addresses, and those hold keys."""
    if isinstance(error, requests.Timeout | TimeoutError):
        return "did not answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "broke off, or sent what cannot be unpacked"
    if isinstance(error, requests.ConnectionError | ConnectionError):
        return "could not be reached"
    return f"could not be asked ({type(error).__name__})"


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a header that says seconds or a date."""
    if not value:
        return None
    try:
        seconds = float(value)
        return max(seconds, 0.0) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None
