"""Kills: of the writer, of the server, of the connection. A day is all old or all new, always."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date

import polars as pl
import psycopg
import pytest
import tenacity

from feature_pipeline.errors import DatabaseError
from feature_pipeline.stack.postgres import EmbeddedPostgres
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.migrations import migrate
from feature_pipeline.storage.store import Store
from feature_pipeline.storage.writer import STEPS
from feature_pipeline_tests.storage.crash_worker import SPAN, desk_on, die_at, pause_at, write
from feature_pipeline_tests.storage.support import (
    TOY,
    Clock,
    Desk,
    audit,
    universe,
)

ASSETS = ("ohlcv_1d", "means", "news")
FEBRUARY = date(2020, 2, 1)
WHAT = {"ohlcv_1d": "open", "means": "sma_20", "news": "title"}

# Imports once, and forks: a fresh interpreter for each kill would take most of the time.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["feature_pipeline_tests.storage.crash_worker"])


@pytest.fixture(scope="module")
def durable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server that keeps what it has committed."""
    from feature_pipeline_tests.conftest import _remove

    home = tmp_path_factory.mktemp("durable")
    server = EmbeddedPostgres(home, options={"fsync": "on", "synchronous_commit": "on"})
    server.start()
    with psycopg.connect(server.database("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE pattern")
    migrate(server.database("pattern"))
    yield server
    server.stop()
    _remove(home)


_numbers = iter(range(1000))


@pytest.fixture
def url(durable: EmbeddedPostgres) -> str:
    """A database with the first version of everything."""
    name = f"crash_{next(_numbers)}"
    with psycopg.connect(durable.database("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE pattern")
    return durable.database(name)


@pytest.fixture
def crashing(url: str) -> Iterator[Desk]:
    desk = desk_on(url)
    for asset in ASSETS:
        write(desk, asset, 1)
    yield desk
    desk.store.database.close()


def contents(desk: Desk, asset: str) -> dict[date, object]:
    frame = desk.store.read(asset)
    day = pl.col(TOY[asset].day_column).dt.date().alias("day")
    return dict(frame.select(day, WHAT[asset]).iter_rows())


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda held: not held),
        wait=tenacity.wait_fixed(0.02),
        stop=tenacity.stop_after_delay(seconds),
    )(condition)


def assert_mixed_nowhere(desk: Desk, asset: str, old: dict, *, january_is_new: bool) -> None:
    """January is all new or all old, February all old; the ledger and the table agree."""
    now = contents(desk, asset)
    assert now.keys() == old.keys()
    changed = {day for day in now if now[day] != old[day]}
    assert changed == ({day for day in old if day < FEBRUARY} if january_is_new else set())
    audit(desk.store.database, TOY)


def assert_months_whole(desk: Desk, asset: str, old: dict) -> set[bool]:
    """January and February are each all old or all new; which of the two they are."""
    now = contents(desk, asset)
    assert now.keys() == old.keys()
    states = []
    for month in ({d for d in old if d < FEBRUARY}, {d for d in old if d >= FEBRUARY}):
        (state,) = {now[day] != old[day] for day in month}
        states.append(state)
    audit(desk.store.database, TOY)
    return set(states)


def assert_repaired(desk: Desk, asset: str, old: dict) -> None:
    """A plain re-run makes everything new, and the one after it has nothing to do."""
    write(desk, asset, 2)
    now = contents(desk, asset)
    assert all(now[day] != old[day] for day in old)
    assert now.keys() == old.keys()
    audit(desk.store.database, TOY)
    placed = desk.place(TOY[asset].table)
    write(desk, asset, 2)
    assert desk.place(TOY[asset].table).equals(placed)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("asset", ASSETS)
def test_a_killed_writer_leaves_old_or_new(crashing: Desk, url: str, asset: str, step: str) -> None:
    old = contents(crashing, asset)
    worker = _context.Process(target=die_at, args=(url, asset, step, 2))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    days = pl.date_range(*SPAN, closed="left", eager=True)
    until(lambda: crashing.store.ledger.in_progress(asset, days).is_empty())
    assert_mixed_nowhere(crashing, asset, old, january_is_new=True)
    assert_repaired(crashing, asset, old)


@pytest.mark.parametrize("step", ["copy", "commit"])
@pytest.mark.parametrize("asset", ["ohlcv_1d", "means"])
def test_months_written_side_by_side_are_old_or_new_each(
    crashing: Desk, url: str, asset: str, step: str
) -> None:
    old = contents(crashing, asset)
    worker = _context.Process(target=die_at, args=(url, asset, step, 2, 3))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    days = pl.date_range(*SPAN, closed="left", eager=True)
    until(lambda: crashing.store.ledger.in_progress(asset, days).is_empty())
    assert_months_whole(crashing, asset, old)
    assert_repaired(crashing, asset, old)


@pytest.mark.parametrize("asset", ASSETS)
def test_a_reader_sees_the_old_day_until_the_new_one_is_there(
    crashing: Desk, url: str, asset: str
) -> None:
    old = contents(crashing, asset)
    reached = _context.Event()
    worker = _context.Process(target=pause_at, args=(url, asset, "commit", reached))
    worker.start()
    try:
        assert reached.wait(60)
        assert contents(crashing, asset) == old
        days = pl.date_range(*SPAN, closed="left", eager=True)
        assert crashing.store.ledger.in_progress(asset, days).equals(days.alias("day"))
    finally:
        worker.kill()
        worker.join(20)
    assert contents(crashing, asset) == old


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGKILL], ids=["immediate", "kill"])
def test_a_server_that_dies_keeps_what_it_committed(
    durable: EmbeddedPostgres, crashing: Desk, url: str, how: signal.Signals
) -> None:
    old = contents(crashing, "ohlcv_1d")
    steps = iter(range(1000))

    def die_in_february(step: str) -> None:
        if step == "ledger" and next(steps) == 1:
            assert durable.pid is not None
            os.kill(durable.pid, how)
            until(lambda: durable._child is None or durable._child.poll() is not None)

    crashing.store.writer.trace = die_in_february
    with pytest.raises(DatabaseError):
        write(crashing, "ohlcv_1d", 2)
    crashing.store.writer.trace = lambda step: None
    durable.stop()
    durable.start()
    again = desk_on(durable.database(url.rpartition("/")[2]))  # the port may be another one
    assert_mixed_nowhere(again, "ohlcv_1d", old, january_is_new=True)
    assert_repaired(again, "ohlcv_1d", old)
    again.store.database.close()


# -- the answer that does not come ----------------------------------------------------------------


class Proxy:
    """Passes bytes between clients and a server, until told to keep the answer to a COMMIT."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.swallow: Callable[[], bool] = lambda: False
        """Asked when a COMMIT passes: whether its answer, and the connection, are lost."""
        self.forward = True
        """Whether the COMMIT itself still reaches the server."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            lost = threading.Event()
            threading.Thread(target=self._up, args=(client, server, lost), daemon=True).start()
            threading.Thread(target=self._down, args=(server, client, lost), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        while data := _received(client):
            if b"COMMIT" in data and self.swallow():
                lost.set()
                if not self.forward:
                    break
            server.sendall(data)
        _hang_up(server)

    def _down(self, server: socket.socket, client: socket.socket, lost: threading.Event) -> None:
        while data := _received(server):
            if lost.is_set():
                break
            client.sendall(data)
        _hang_up(client)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""


@contextlib.contextmanager
def through_a_proxy(url: str) -> Iterator[tuple[Proxy, Desk]]:
    address = Database(url)._address
    proxy = Proxy(address.hosts[0][0], int(address.hosts[0][1]))
    moved = url.replace(f":{address.hosts[0][1]}/", f":{proxy.port}/")
    assert moved != url
    # The driver would encrypt otherwise, and the proxy could not see a COMMIT.
    store = Store(Database(moved + "?sslmode=disable", 5), universe("A"), TOY, clock=Clock())
    store.writer.months_at_once = 1
    try:
        yield proxy, Desk(store, Clock(), runs=10)
    finally:
        store.database.close()
        proxy.close()


@pytest.mark.parametrize("asset", ASSETS)
def test_a_lost_answer_to_commit_is_settled_by_the_ledger(
    crashing: Desk, url: str, asset: str
) -> None:
    old = contents(crashing, asset)
    with through_a_proxy(url) as (proxy, desk):
        heard: list[str] = []

        def trace(step: str) -> None:
            heard.append(step)
            if step == "commit":
                losses = iter([True])
                proxy.swallow = lambda: next(losses, False)

        desk.store.writer.trace = trace
        write(desk, asset, 2)
    assert heard == list(STEPS) * 2  # nothing was written again
    now = contents(crashing, asset)
    assert all(now[day] != old[day] for day in old)
    audit(crashing.store.database, TOY)


def test_a_commit_that_never_arrived_is_an_error_and_nothing_is_written(
    crashing: Desk, url: str
) -> None:
    old = contents(crashing, "ohlcv_1d")
    with through_a_proxy(url) as (proxy, desk):
        proxy.forward = False

        def trace(step: str) -> None:
            if step == "commit":
                losses = iter([True])
                proxy.swallow = lambda: next(losses, False)

        desk.store.writer.trace = trace
        with pytest.raises(DatabaseError):
            write(desk, "ohlcv_1d", 2)
    assert_mixed_nowhere(crashing, "ohlcv_1d", old, january_is_new=False)
    assert_repaired(crashing, "ohlcv_1d", old)


@pytest.mark.parametrize("step", ["token", "copy", "commit"])
def test_a_frozen_backend_ends_within_the_deadline(crashing: Desk, url: str, step: str) -> None:
    old = contents(crashing, "ohlcv_1d")
    store = Store(Database(url, 1), universe("A"), TOY, clock=Clock())
    store.writer.months_at_once = 1
    desk, frozen = Desk(store, Clock(), runs=10), []

    def freeze(name: str) -> None:
        if name == step and not frozen:
            pid = crashing.one(
                "SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction'"
                " AND datname = current_database()"
            )
            frozen.append(pid)
            os.kill(pid, signal.SIGSTOP)  # type: ignore[arg-type]

    store.writer.trace = freeze
    started = time.monotonic()
    try:
        with pytest.raises(DatabaseError):
            write(desk, "ohlcv_1d", 2)
        assert time.monotonic() - started < 15
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        store.database.close()
    until(
        lambda: (
            crashing.one(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                f" AND pid = {frozen[0]}"
            )
            == 0
        )
    )
    assert False in assert_months_whole(crashing, "ohlcv_1d", old) or step == "commit"
    assert_repaired(crashing, "ohlcv_1d", old)
