"""Asking over the network: pace, retries, deadlines, sizes, and what an error may say."""

from __future__ import annotations

import gzip
import json
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import requests

from feature_pipeline.errors import SourceError
from feature_pipeline.sources.http import AGAIN, Limits, Politeness, PoliteSession, _retry_after
from feature_pipeline_tests.providers import server as faults
from feature_pipeline_tests.providers.server import Answer, ProviderServer

SECRET = "s3cret-key"
QUICK = Limits(requests=1000, seconds=1, attempts=3, wait_s=0.3, deadline_s=5, max_bytes=100_000)
GOOD = {"a": [1, 2, 3]}


@pytest.fixture
def slept() -> list[float]:
    """How long was waited between attempts: nobody waits really."""
    return []


@pytest.fixture
def session(slept) -> Iterator[PoliteSession]:
    with PoliteSession(Politeness("maker", QUICK, sleep=slept.append)) as made:
        yield made


@pytest.fixture
def server(provider_server) -> ProviderServer:
    provider_server.routes["/good"] = lambda _: Answer(200, GOOD)
    return provider_server


def ask(session: PoliteSession, server: ProviderServer, path: str = "/good") -> object:
    return session.json(server.url + path, {"api_key": SECRET})


def fails(session: PoliteSession, url: str, says: str) -> str:
    """The one line of a question that has no answer; it holds no secret."""
    with pytest.raises(SourceError) as caught:
        session.json(url, {"api_key": SECRET})
    said = str(caught.value)
    assert says in said
    assert said.startswith("maker: ")
    assert "\n" not in said
    assert SECRET not in said
    # Nor does what Dagster would print along with it.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return said


@contextmanager
def speaking(*answers: bytes, each_s: float = 0.0) -> Iterator[tuple[str, list[bytes]]]:
    """A server that sends exactly these bytes, one answer per connection, and hangs up."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                try:
                    link, _ = listener.accept()
                except OSError:
                    return
                with link:
                    asked.append(link.recv(65536))
                    pieces = [answer[i : i + 1] for i in range(len(answer))] if each_s else [answer]
                    try:
                        for piece in pieces:
                            link.sendall(piece)
                            if each_s:
                                time.sleep(each_s)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/raw", asked
    thread.join(5)


def http(body: bytes, *headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *headers, "Connection: close", "", ""]).encode() + body


# -- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        faults.broken(),
        faults.hung_up(),
        faults.bad_gzip(),
        faults.silent(2.0),
        faults.dripping(each_s=0.05),
        faults.too_many("0"),
    ],
    ids=["500", "hung up", "bad gzip", "silent", "dripping", "429"],
)
def test_what_may_pass_is_asked_again(session, server, fault):
    server.fail(fault)
    assert ask(session, server) == GOOD
    assert server.paths() == ["/good"] * 2


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (faults.broken(), "/good answered 500, 3 times"),
        (faults.hung_up(), "/good broke off, or sent what cannot be unpacked, 3 times"),
        (faults.bad_gzip(), "/good broke off, or sent what cannot be unpacked, 3 times"),
        (faults.silent(2.0), "/good did not answer in time, 3 times"),
        (faults.dripping(each_s=0.05), "/good did not answer in time, 3 times"),
        (faults.too_many("0"), "/good answered 429, 3 times"),
    ],
    ids=["500", "hung up", "bad gzip", "silent", "dripping", "429"],
)
def test_what_does_not_pass_is_one_line(session, server, fault, says):
    server.fail(fault, times=3)
    fails(session, f"{server.url}/good", says)
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (faults.html(), "/good answered something that is no JSON"),
        (faults.truncated(), "/good answered something that is no JSON"),
        (Answer(200, b"[" * 90_000), "/good answered something that is no JSON"),
        (Answer(200, b'{"a": "\xff\xfe"}'), "/good answered something that is no JSON"),
        (Answer(401, b"who are you"), "/good answered 401"),
        (Answer(404), "/good answered 404"),
    ],
    ids=["html", "truncated", "nested", "not UTF-8", "401", "404"],
)
def test_what_will_not_pass_is_not_asked_again(session, server, fault, says):
    server.fail(fault)
    fails(session, f"{server.url}/good", says)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", sorted(AGAIN))
def test_these_answers_are_worth_another_attempt(session, server, status):
    server.fail(Answer(status))
    assert ask(session, server) == GOOD


def test_nobody_there(session):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    fails(session, f"http://127.0.0.1:{port}/x", "127.0.0.1/x could not be reached, 3 times")


@pytest.mark.parametrize("url", ["http://[::1/x", "nothing", "gopher://h/x", "http:///x"])
def test_an_address_that_is_none_is_asked_once(session, slept, url):
    fails(session, url, "could not be asked")
    assert slept == []


def test_numbers_that_json_does_not_have_are_the_readers_to_judge(session, server):
    """A NaN costs the row that it is in, not the answer."""
    server.routes["/odd"] = lambda _: Answer(200, b'[NaN, Infinity, -Infinity, 1e999, "\\ud800"]')
    values = session.json(f"{server.url}/odd")
    assert math.isnan(values[0])
    assert values[1:4] == [math.inf, -math.inf, math.inf]
    assert values[4] == "\ud800"


# -- bodies ---------------------------------------------------------------------------------------


def test_a_body_is_whole_however_it_comes(session):
    body = json.dumps(GOOD).encode()
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:3], body[3:])) + b"0\r\n\r\n"
    two = gzip.compress(body[:5]) + gzip.compress(body[5:]) + b"\0" * 8
    big = json.dumps(["x" * 90_000]).encode()
    with speaking(
        http(body),
        http(chunked, "Transfer-Encoding: chunked"),
        http(gzip.compress(body), "Content-Encoding: gzip"),
        http(two, "Content-Encoding: gzip", f"Content-Length: {len(two)}"),
        http(gzip.compress(big), "Content-Encoding: GZIP"),
        http(body, "Content-Encoding: identity"),
    ) as (url, asked):
        answers = [session.json(url) for _ in range(6)]
    assert answers == [GOOD] * 4 + [["x" * 90_000], GOOD]
    assert all(b"Accept-Encoding: gzip\r\n" in request for request in asked)


@pytest.mark.parametrize("length", [True, False], ids=["says its length", "does not"])
def test_gzip_that_is_cut_is_noticed(session, length):
    """All that was promised arrived, and it is not all there is."""
    cut = gzip.compress(json.dumps(list(range(5000))).encode())[:-20]
    head = ["Content-Encoding: gzip", *([f"Content-Length: {len(cut)}"] if length else [])]
    whole = http(gzip.compress(b'{"a": 1}'), "Content-Encoding: gzip")
    with speaking(http(cut, *head), whole) as (url, asked):
        assert session.json(url) == {"a": 1}
    assert len(asked) == 2


def test_chunks_that_end_early_are_noticed(session):
    with speaking(http(b"a\r\n0123456789\r\n", "Transfer-Encoding: chunked"), http(b'"whole"')) as (
        url,
        _,
    ):
        assert session.json(url) == "whole"


def test_nothing_may_be_packed(session, server):
    server.routes["/none"] = lambda _: Answer(200, b"", {"Content-Encoding": "gzip"})
    assert session.get(f"{server.url}/none").content == b""
    assert session.head(f"{server.url}/good").status_code == 200


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip bomb"])
def test_a_body_has_a_largest_size_unpacked(session, server, packed):
    """A thousand times its size on the wire: it is not unpacked to its end either."""
    bomb = gzip.compress(b"\0" * (64 << 20)) if packed else b"\0" * 200_000
    head = {"Content-Encoding": "gzip"} if packed else {}
    server.routes["/huge"] = lambda _: Answer(200, bomb, head)
    spent = time.process_time()
    fails(session, f"{server.url}/huge", "/huge answered with more than 100000 bytes")
    assert time.process_time() - spent < 0.5
    assert len(server.asked) == 1
    server.routes["/fits"] = lambda _: Answer(200, b" " * 99_998 + b"[]")
    assert session.json(f"{server.url}/fits") == []


def test_a_client_library_gets_the_whole_body(session, server):
    """With its own wishes for time and streaming: they are ours to decide."""
    response = session.get(f"{server.url}/good", stream=True, timeout=None)
    assert b"".join(response.iter_content(4)) == json.dumps(GOOD).encode()
    assert response.json() == GOOD


# -- time -----------------------------------------------------------------------------------------


def test_waits_grow_and_none_is_like_another(session, server, slept):
    server.fail(faults.broken(), times=2)
    ask(session, server)
    server.fail(faults.broken(), times=2)
    ask(session, server)
    first, second, third, fourth = slept
    assert 0.5 <= first <= 1.0 <= second <= 1.5
    assert len({first, third}) == len({second, fourth}) == 2


@pytest.mark.parametrize("how", ["seconds", "date"])
def test_it_waits_as_long_as_it_is_told(session, server, slept, how):
    until = datetime.now(UTC) + timedelta(seconds=4)
    server.fail(faults.too_many("3" if how == "seconds" else format_datetime(until, usegmt=True)))
    ask(session, server)
    assert 2.5 <= slept[0] <= 4.3


@pytest.mark.parametrize("value", ["-5", "soon", "nan", "inf", "", "1e999", "Mon, 99 Jan 99999"])
def test_a_wait_that_is_none_counts_for_nothing(value):
    assert _retry_after(value) in (None, 0.0)


def test_a_wait_past_the_deadline_is_not_waited_for(session, server, slept):
    server.fail(faults.too_many("3600"))
    said = fails(session, f"{server.url}/good", "wants to be left alone for 3600 s")
    assert said.endswith("the next run asks again")
    # Nor is it asked anything else meanwhile, by whatever thread.
    fails(session, f"{server.url}/other", "wants to be left alone for 3600 s")
    assert (slept, server.paths()) == ([], ["/good"])


def test_what_one_thread_is_told_holds_for_all(server):
    politeness = Politeness("maker", QUICK)
    server.fail(faults.too_many("0.6"))
    with PoliteSession(politeness) as first, PoliteSession(politeness) as second:
        one = threading.Thread(target=ask, args=(first, server))
        one.start()
        until = time.monotonic() + 5
        while not politeness._pause.left() and time.monotonic() < until:
            time.sleep(0.005)
        began = time.monotonic()
        ask(second, server)
        assert time.monotonic() - began > 0.4
        one.join(5)
    assert server.paths() == ["/good"] * 3


@pytest.mark.parametrize(
    "fault", [faults.silent(9.0), faults.dripping(each_s=0.02), faults.broken()]
)
def test_a_question_has_a_deadline(server, fault):
    limits = Limits(1000, 1, attempts=50, wait_s=0.4, deadline_s=1.0)
    server.fail(fault, times=50)
    began = time.monotonic()
    with PoliteSession(Politeness("maker", limits)) as session:
        fails(session, f"{server.url}/good", "did not answer within 1 s")
    assert 0.9 < time.monotonic() - began < 1.6


def test_a_provider_is_not_asked_faster_than_it_stands(server):
    """However many ask: one pace for all threads and sessions."""
    when: list[float] = []
    lock = threading.Lock()

    def noted(_: object) -> Answer:
        with lock:
            when.append(time.monotonic())
        return Answer(200, GOOD)

    server.routes["/good"] = noted
    politeness = Politeness("maker", Limits(requests=5, seconds=0.5, deadline_s=20))

    def one(_: int) -> object:
        with PoliteSession(politeness) as session:
            return ask(session, server)

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(one, range(20))) == [GOOD] * 20
    when.sort()
    # Six never lie within the time of five; what passes between asking and hearing is allowed for.
    assert min(late - early for early, late in zip(when, when[5:], strict=False)) > 0.4
    assert when[-1] - when[0] < 5


def test_waiting_for_ones_turn_counts(server):
    politeness = Politeness("maker", Limits(requests=1, seconds=60, deadline_s=0.4))
    with PoliteSession(politeness) as session:
        assert ask(session, server) == GOOD
        fails(session, f"{server.url}/good", "did not answer within 0.4 s")
    assert len(server.asked) == 1


# -- being sent elsewhere -------------------------------------------------------------------------


def sends_to(target: str, status: int = 302, **more: object) -> Callable[[object], Answer]:
    return lambda _: Answer(status, b"see there", {"Location": target}, **more)


def test_it_is_followed_on_the_same_host(session, server):
    server.routes["/old"] = sends_to("/older?api_key=" + SECRET, 301)
    server.routes["/older"] = sends_to(f"{server.url}/good")
    assert ask(session, server, "/old") == GOOD
    assert server.paths() == ["/old", "/older", "/good"]
    # What was asked is asked once: where to go from there is the answer's to say.
    assert [dict(request.query) for request in server.asked[1:]] == [{"api_key": SECRET}, {}]


def test_it_is_not_followed_to_another(session, server):
    with ProviderServer({"/": lambda _: Answer(200, GOOD)}) as other:
        server.routes["/old"] = sends_to(f"{other.url}/stolen?api_key={SECRET}")
        session.headers["X-Api-Key"] = SECRET
        fails(session, f"{server.url}/old", "/old sends us to '127.0.0.1/stolen', which is not")
        assert other.asked == []
        with PoliteSession(session.politeness, hosts=["127.0.0.1"]) as trusting:
            assert trusting.json(f"{server.url}/old") == GOOD
    assert len(server.asked) == 2


@pytest.mark.parametrize("target", ["file:///etc/passwd", "gopher://h/", "//evil.example/x", ""])
def test_wherever_that_is(session, server, target):
    server.routes["/old"] = sends_to(target)
    fails(session, f"{server.url}/old", "/old sends us")


def test_in_circles(session, server):
    server.routes["/old"] = sends_to("/old")
    fails(session, f"{server.url}/old", "/old sends us on and on")
    assert len(server.asked) == 6


def test_what_comes_along_is_read_within_limits(session, server):
    """`requests` would read the body of a redirect to its end, however long that takes."""
    server.fail(Answer(302, b"x" * 10_000, {"Location": "/good"}, drip_s=0.05))
    assert ask(session, server) == GOOD
    assert server.paths() == ["/good"] * 2
    server.fail(Answer(302, b"x" * 200_000, {"Location": "/good"}))
    fails(session, f"{server.url}/good", "more than 100000 bytes")


def test_whoever_wants_to_see_it_sees_it(session, server):
    """Client libraries look at redirects themselves; what is posted is never sent on."""
    server.routes["/old"] = sends_to("http://evil.example/x")
    assert session.get(f"{server.url}/old", allow_redirects=False).status_code == 302
    assert session.post(f"{server.url}/old", data={"key": SECRET}).status_code == 302


# -- what is said ---------------------------------------------------------------------------------


def test_nothing_of_a_question_is_logged(session, server, caplog):
    with caplog.at_level(logging.DEBUG):
        server.fail(faults.broken(), faults.hung_up())
        ask(session, server)
        fails(session, "http://127.0.0.1:9/x", "could not be reached")
    assert SECRET not in caplog.text


def test_an_error_names_neither_query_nor_user(session):
    said = fails(session, f"http://user:{SECRET}@127.0.0.1:9/x?token={SECRET}", "could not be")
    assert "user" not in said


def test_a_client_of_another_kind_is_asked_as_politely(slept):
    """Failures and answers are those of whatever library it is."""

    class TheirError(Exception):
        pass

    class Said:
        status_code = 200
        headers: dict[str, str] = {}  # noqa: RUF012

    told: list[float] = []

    def send(seconds: float) -> Said:
        told.append(seconds)
        if len(told) < 3:
            raise TheirError(f"https://h/x?key={SECRET}")
        return Said()

    politeness = Politeness("maker", QUICK, sleep=slept.append)
    assert politeness.ask(send, "https://h/x", (TheirError,)).status_code == 200
    assert all(0 < seconds <= QUICK.wait_s for seconds in told)
    told.clear()
    with pytest.raises(SourceError, match=r"^maker: h/x could not be asked .TheirError., 2 t"):
        Politeness("maker", Limits(10, 1, attempts=2, deadline_s=5), sleep=slept.append).ask(
            send, f"https://h/x?key={SECRET}", (TheirError,)
        )
    with pytest.raises(requests.HTTPError):
        politeness.ask(_raises(requests.HTTPError("x")), "https://h/x", (TheirError,))


def _raises(error: Exception) -> Callable[[float], requests.Response]:
    def send(_: float) -> requests.Response:
        raise error

    return send
