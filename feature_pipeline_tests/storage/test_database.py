"""Frames in and out, deadlines, and what errors say - against a real server."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime, timedelta

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from feature_pipeline.errors import DatabaseError
from feature_pipeline.storage import database as module
from feature_pipeline.storage.database import Database, copy_in, redact

SCHEMA = {
    "f": pl.Float64(),
    "i": pl.Int64(),
    "s": pl.String(),
    "b": pl.Boolean(),
    "d": pl.Date(),
    "t": pl.Datetime("us", "UTC"),
    "l": pl.List(pl.String()),
    "j": pl.String(),
}
TABLE = (
    "CREATE TABLE kinds (f double precision, i bigint, s text, b boolean, d date,"
    " t timestamptz, l text[], j jsonb, n bigint GENERATED ALWAYS AS IDENTITY)"
)
TYPES = {"j": "jsonb"}
READ = f"SELECT {', '.join(SCHEMA)} FROM kinds ORDER BY n"

USES: dict[str, Callable[[Database], object]] = {
    "frame": lambda database: database.read_frame("SELECT 1 AS one"),
    "transaction": lambda database: database.connection().__enter__(),
    "dedicated": lambda database: database.dedicated().close(),
}


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with Database(database_url) as opened:
        with opened.connection() as connection:
            connection.execute(TABLE)
        yield opened


def write(database: Database, frame: pl.DataFrame) -> int:
    with database.connection() as connection:
        return copy_in(connection, "kinds", frame.columns, frame, TYPES)


_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
_moment = st.integers(-(10**15), 10**16).map(
    lambda us: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
)
_row = st.tuples(
    st.none() | st.floats(),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | _text,
    st.none() | st.booleans(),
    st.none() | st.dates(date(1900, 1, 1), date(2200, 1, 1)),
    st.none() | _moment,
    st.none() | st.lists(st.none() | _text, max_size=3),
    st.none() | st.sampled_from(["{}", '{"a": [1, null, "é"]}', "[]", '"x"', "1.50"]),
)


@given(rows=st.lists(_row, max_size=8), cut=st.integers(0, 8), batch=st.integers(1, 3))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_goes_in_comes_out(
    database: Database, rows: list[tuple[object, ...]], cut: int, batch: int
) -> None:
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    chunked = pl.concat([frame.head(cut), frame.slice(cut)], rechunk=False)
    with pytest.MonkeyPatch.context() as patched, database.connection() as connection:
        patched.setattr(module, "_COPY_ROWS", batch)
        connection.execute("TRUNCATE kinds")
        assert copy_in(connection, "kinds", frame.columns, chunked, TYPES) == len(rows)
    assert_frame_equal(database.read_frame(READ), frame, check_exact=True)


def test_columns_may_come_in_any_order(database: Database) -> None:
    frame = pl.DataFrame({"s": ["a"], "unused": [1], "f": [0.5]})
    with database.connection() as connection:
        copy_in(connection, "kinds", ["s", "f"], frame)
    assert database.read_frame("SELECT f, s FROM kinds").rows() == [(0.5, "a")]


def test_empty_answers_have_types(database: Database) -> None:
    assert write(database, pl.DataFrame(schema=SCHEMA)) == 0
    assert database.read_frame(READ).schema == pl.Schema(SCHEMA)
    numbers = database.read_frame("SELECT 1.50::numeric AS n, null::jsonb AS j")
    assert numbers.rows() == [("1.50", None)]


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    frame = pl.DataFrame({"i": [1, 2]})

    def write_then(last: Callable[[psycopg.Connection], object]) -> None:
        with database.connection() as connection:
            copy_in(connection, "kinds", ["i"], frame)
            last(connection)

    with pytest.raises(ZeroDivisionError):
        write_then(lambda _: 1 / 0)
    nul = pl.DataFrame({"s": ["a\0b"]})
    with pytest.raises(psycopg.DataError):
        write_then(lambda connection: copy_in(connection, "kinds", ["s"], nul))
    assert database.read_frame("SELECT count(*) AS n FROM kinds").item() == 0


def test_violations_are_not_dressed_up(database: Database) -> None:
    with database.connection() as connection:
        connection.execute("CREATE UNIQUE INDEX ON kinds (i)")
    with pytest.raises(psycopg.errors.UniqueViolation), database.connection() as connection:
        copy_in(connection, "kinds", ["i"], pl.DataFrame({"i": [1, 1]}))
    with pytest.raises(psycopg.errors.SyntaxError):
        database.read_frame("SELEC")
    with pytest.raises(psycopg.errors.DivisionByZero):
        database.read_frame("SELECT 1 / 0")


@given(
    text=st.none() | _text,
    texts=st.lists(_text, max_size=4),
    number=st.integers(-(2**63), 2**63 - 1),
    real=st.floats(),
    moment=_moment,
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parameters_arrive_as_they_are(
    database: Database,
    text: str | None,
    texts: list[str],
    number: int,
    real: float,
    moment: datetime,
) -> None:
    day = moment.date()
    frame = database.read_frame(
        "SELECT %s::text AS s, %s::text[] AS l, %s::bigint AS i, %s::double precision AS f,"
        " %s AS t, %s AS d, '%%s' AS p",
        [text, texts, number, real, moment, day],
    )
    expected = pl.DataFrame(
        [(text, texts, number, real, moment, day, "%s")],
        schema={**{k: SCHEMA[k] for k in ("s", "l", "i", "f", "t", "d")}, "p": pl.String()},
        orient="row",
    )
    assert_frame_equal(frame, expected, check_exact=True)
    again = database.read_frame("SELECT %(x)s::text AS x, %(x)s::text AS y", {"x": text})
    assert again.rows() == [(text, text)]


def test_placeholders_that_do_not_fit_are_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="%d"):
        database.read_frame("SELECT %d", [1])
    with pytest.raises(ValueError, match="1 too few"):
        database.read_frame("SELECT %s, %s", [1])
    with pytest.raises(ValueError, match="1 too many"):
        database.read_frame("SELECT %s", [1, 2])
    assert database.read_frame("SELECT 'like %s%' AS x").item() == "like %s%"


def test_times_are_utc_whatever_the_server_thinks(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.connection() as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE \"{name}\" SET timezone = 'Asia/Tokyo'")
    database.close()
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        query = "SELECT '2020-06-01 00:00'::timestamptz AS t"
        moment = datetime(2020, 6, 1, tzinfo=UTC)
        assert database.read_frame(query).rows() == [(moment,)]
        with database.connection() as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        assert row[0].utcoffset() == timedelta(0)
        assert row[0] == moment
    finally:
        monkeypatch.undo()
        time.tzset()


def test_threads_share_it(database: Database) -> None:
    def work(n: int) -> int:
        with database.connection() as connection:
            copy_in(connection, "kinds", ["i"], pl.DataFrame({"i": [n]}))
        return int(database.read_frame("SELECT %s AS n", [n]).item())

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(work, range(60))) == list(range(60))
    assert database.read_frame("SELECT count(*) AS n FROM kinds").item() == 60


def test_the_pool_has_an_end(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POOL_SIZE", 1)
    monkeypatch.setattr(module, "_CONNECT_TIMEOUT_S", 0.2)
    database = Database(f"{database_url}?connect_timeout=5")
    with (
        database,
        database.connection(),
        pytest.raises(DatabaseError, match="all 1 connections were busy"),
        database.connection(),
    ):
        pass


# -- lost and frozen servers ----------------------------------------------------------------------


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A backend that is there and does not move."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def unanswered_within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    with pytest.raises(DatabaseError, match=r"did not answer in 1 s$"):
        yield
    assert time.monotonic() - started < seconds


def test_a_frozen_backend_does_not_hold_a_transaction(database_url: str) -> None:
    with Database(database_url, timeout_s=1) as database:
        with (
            unanswered_within(5),
            database.connection() as connection,
            frozen(connection.info.backend_pid),
        ):
            connection.execute("SELECT 1")
        with database.connection() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_frozen_backend_does_not_hold_a_commit(database: Database, database_url: str) -> None:
    # Left in this order: the connection commits while its backend is frozen.
    with (
        Database(database_url, timeout_s=1) as impatient,
        ExitStack() as later,
        unanswered_within(5),
        impatient.connection() as connection,
    ):
        connection.execute("INSERT INTO kinds (i) VALUES (1)")
        later.enter_context(frozen(connection.info.backend_pid))


def test_a_frozen_backend_does_not_hold_a_read(database_url: str) -> None:
    with Database(database_url, timeout_s=1) as database:
        pid = database.read_frame("SELECT pg_backend_pid() AS pid").item()
        with frozen(pid), unanswered_within(5):
            database.read_frame("SELECT 1")
        assert database.read_frame("SELECT pg_backend_pid() AS pid").item() != pid


def test_slow_statements_are_stopped(database_url: str) -> None:
    with Database(database_url, timeout_s=1) as database:
        with unanswered_within(5):
            database.read_frame("SELECT pg_sleep(30)")
        with unanswered_within(5), database.connection() as connection:
            connection.execute("SELECT pg_sleep(30)")
        assert database.read_frame("SELECT 1 AS one").item() == 1


def test_connections_that_died_in_the_pool_are_replaced(database: Database) -> None:
    for use in USES.values():
        use(database)
    with psycopg.connect(module._Address.parse(_url(database)).conninfo("test", 0)) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    for _ in range(5):
        assert database.read_frame("SELECT 1 AS one").item() == 1
        with database.connection() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def _url(database: Database) -> str:
    parts = psycopg.conninfo.conninfo_to_dict(database._conninfo)
    return "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**parts)


def test_a_connection_lost_on_the_way_is_an_error_of_one_line(database: Database) -> None:
    def lose() -> None:
        with database.connection() as connection:
            other = database.dedicated()
            other.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
            other.close()
            connection.execute("SELECT 1")

    with pytest.raises(DatabaseError) as raised:
        lose()
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value.__cause__, psycopg.OperationalError)


def test_dedicated_connections_hold_locks_until_closed(database: Database) -> None:
    ours, theirs = database.dedicated(), database.dedicated()
    question = "SELECT pg_try_advisory_lock(1)"
    assert ours.execute(question).fetchone() == (True,)
    assert theirs.execute(question).fetchone() == (False,)
    ours.close()
    assert theirs.execute("SELECT pg_advisory_lock(1)").fetchone() is not None
    theirs.close()


# -- what errors say ------------------------------------------------------------------------------


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: {**p, "password": "hunter2"}, "password authentication failed"),
        (lambda p: {**p, "password": "hunter2@hunter2"}, "password authentication failed"),
        (lambda p: {**p, "password": "/hunter2?#:"}, "password authentication failed"),
        (lambda p: {**p, "user": "nobody_here"}, "authentication failed"),
        (lambda p: {**p, "dbname": "not_there"}, 'database "not_there" does not exist; create it'),
        (lambda p: {**p, "port": "1"}, "refused; is it running"),
        (lambda p: {**p, "host": "no.such.host.invalid"}, "no.such.host.invalid"),
    ],
)
def test_a_connection_that_cannot_be_made(
    database_url: str,
    use: Callable[[Database], object],
    change: Callable[[dict[str, object]], dict[str, object]],
    says: str,
) -> None:
    parts = change(psycopg.conninfo.conninfo_to_dict(database_url))
    url = "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**parts)
    with pytest.raises(DatabaseError) as raised:
        use(Database(url))
    line = str(raised.value)
    assert says in line
    assert "postgresql://{user}@{host}:{port}/{dbname}".format(**parts) in line
    assert str(parts["password"]) not in line
    assert "hunter2" not in line
    assert "\n" not in line


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_host_that_says_nothing(use: Callable[[Database], object]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"postgresql://user:hunter2@127.0.0.1:{port}/db?connect_timeout=2"
        started = time.monotonic()
        with pytest.raises(DatabaseError, match=f"127.0.0.1:{port}/db.*timeout"):
            use(Database(url))
        assert time.monotonic() - started < 8


def test_a_database_without_tables_says_what_to_do(database_url: str) -> None:
    query = "SELECT * FROM ohlcv"
    says = r'"ohlcv" does not exist; run `feature-pipeline migrate`$'
    with Database(database_url) as database:
        with pytest.raises(DatabaseError, match=says):
            database.read_frame(query)
        with pytest.raises(DatabaseError, match=says), database.connection() as connection:
            connection.execute(query)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "cannot be read"),
        ("hunter2", "cannot be read"),
        ("mysql://user:hunter2@host/db", "scheme mysql"),
        ("postgresql://user:hunter2@host:port/db", "port"),
        ("postgresql://user:hunter2@host/db?hunter2", "cannot be read"),
        ("postgresql://user:hunter2@host/db?colour=hunter2", '"colour"'),
    ],
)
def test_a_url_that_cannot_be_read(url: str, says: str) -> None:
    with pytest.raises(DatabaseError) as raised:
        Database(url)
    assert says in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:hunter2@h:5432/d", "postgresql://u@h:5432/d"),
        ("postgres://u:hunter2@h/d?password=hunter2", "postgresql://u@h/d"),
        ("postgresql+psycopg://u:hun@ter2@h/d", "postgresql://u@h/d"),
        ("postgresql://u:p/hunter2?#@h:1/d", "postgresql://u@h:1/d"),
        ("postgresql://h/d", "postgresql://h/d"),
        ("postgresql://u:hunter2@[::1]:5432/d", "postgresql://u@[::1]:5432/d"),
        ("postgresql://u:hunter2@a:1,b:2/d", "postgresql://u@a:1,b:2/d"),
        ("hunter2", "postgresql://(unreadable)"),
    ],
)
def test_redacted_urls(url: str, shown: str) -> None:
    assert redact(url) == shown
    if "unreadable" not in shown:
        assert repr(Database(url)) == f"Database({shown!r})"
        assert Database(url).address == shown
