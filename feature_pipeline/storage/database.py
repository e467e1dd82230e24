"""Connections to PostgreSQL, and frames in and out of it.

Here lives how to reach the database, how long to wait for it, and how its errors read to a user;
Arrow goes in by binary COPY and comes out by ADBC, without a Python object per row. Which rows go
where is decided elsewhere: no statement about a table of ours is in this module.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar
from urllib.parse import parse_qsl, unquote

import adbc_driver_manager
import adbc_driver_postgresql.dbapi as adbc
import polars as pl
import psycopg
import pyarrow as pa
from pgpq import ArrowToPostgresBinaryEncoder
from pgpq.encoders import LargeStringEncoderBuilder
from pgpq.schema import Jsonb
from psycopg import conninfo, errors, sql
from psycopg_pool import ConnectionPool, PoolTimeout

from feature_pipeline.errors import DatabaseError

Parameters = Sequence[object] | Mapping[str, object]
T = TypeVar("T")

_CONNECT_TIMEOUT_S = 10
_POOL_SIZE = 8
_COPY_ROWS = 16_384

_URL = re.compile(
    r"(?:postgres|postgresql)(?:\+\w+)?://"
    r"(?:(?P<userinfo>.*)@)?"  # greedy: an unescaped @ belongs to the password
    r"(?P<hosts>[^@/?#]*)"
    r"(?:/(?P<database>[^?#]*))?"
    r"(?:\?(?P<query>[^#]*))?",
    re.DOTALL,
)
_PLACEHOLDER = re.compile(r"%(?:\((?P<name>\w+)\))?(?P<kind>.)", re.DOTALL)


@dataclass(frozen=True)
class _Address:
    """A database URL, taken apart; its text never holds the password."""

    user: str
    password: str
    hosts: tuple[tuple[str, str], ...]
    database: str
    options: Mapping[str, str]

    @classmethod
    def parse(cls, url: str) -> Self:
        match = _URL.fullmatch(url.strip())
        if match is None:
            scheme = re.match(r"[A-Za-z][A-Za-z0-9+]*(?=:)", url.strip())
            raise DatabaseError(
                "the database URL"
                + (f" (scheme {scheme[0]})" if scheme else "")
                + " cannot be read; write postgresql://user:password@host:port/database"
            )
        user, _, password = (match["userinfo"] or "").partition(":")
        hosts = []
        for part in match["hosts"].split(","):
            bracketed = re.fullmatch(r"\[(.*)\](?::(.*))?", part)
            host, port = bracketed.groups("") if bracketed else (*part.split(":", 1), "")[:2]
            if port and not port.isdigit():
                raise DatabaseError(
                    "the database URL has a port that is no number; percent-encode special "
                    "characters in its password"
                )
            hosts.append((unquote(host), port))
        try:
            options = dict(
                parse_qsl(match["query"] or "", keep_blank_values=True, strict_parsing=True)
            )
        except ValueError:
            raise DatabaseError(
                "what follows ? in the database URL cannot be read; write ?name=value&name=value"
            ) from None
        return cls(
            user=unquote(user),
            password=unquote(password),
            hosts=tuple(hosts),
            database=unquote(match["database"] or ""),
            options=options,
        )

    def __str__(self) -> str:
        hosts = ",".join(
            (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
            for host, port in self.hosts
        )
        user = f"{self.user}@" if self.user else ""
        return f"postgresql://{user}{hosts}/{self.database}"

    def conninfo(self, name: str, statement_timeout_ms: int) -> str:
        """The libpq connection string; it holds the password."""
        given: dict[str, str] = {
            "user": self.user,
            "password": self.password,
            "dbname": self.database,
            "host": ",".join(host for host, _ in self.hosts),
            "port": ",".join(port for _, port in self.hosts).strip(","),
        }
        own_options = f"-c statement_timeout={statement_timeout_ms} -c timezone=UTC"
        parameters = {
            "connect_timeout": str(_CONNECT_TIMEOUT_S),
            "application_name": name,
            # A peer that vanished is noticed in about 15 s, not after two hours.
            "keepalives_idle": "5",
            "keepalives_interval": "3",
            "keepalives_count": "3",
            **{k: v for k, v in given.items() if v},
            **self.options,
            "options": f"{self.options.get('options', '')} {own_options}".strip(),
        }
        try:
            return conninfo.make_conninfo(**parameters)
        except psycopg.ProgrammingError as error:
            raise DatabaseError(
                f"{self}: {str(error).strip()}; see the parameters after ? in the database URL"
            ) from None


def redact(url: str) -> str:
    """The URL as it may be shown: `postgresql://user@host:port/database`, never the password.

    Parameters after `?` are left out as well: they may hold secrets. A URL that cannot be read
    is not shown at all.
    """
    try:
        return str(_Address.parse(url))
    except DatabaseError:
        return "postgresql://(unreadable)"


def for_programs(url: str) -> tuple[str, str]:
    """How libpq's programs are told where to go: a connection string without the password, for what
    everybody can read, and the password.

    Raises:
        DatabaseError: the URL cannot be read.
    """
    said = conninfo.conninfo_to_dict(_Address.parse(url).conninfo("feature_pipeline_backup", 0))
    password = str(said.pop("password", None) or "")
    return conninfo.make_conninfo("", **said), password


class _Connection(psycopg.Connection[Any]):
    """A connection that gives up on a server that does not answer.

    `statement_timeout` is the server's promise; a frozen server cannot keep it. Every single wait
    for the server (a statement, a block of COPY, a COMMIT) has `deadline_s`.
    """

    deadline_s: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        limit = self.deadline_s if timeout is None else timeout
        started = time.monotonic()
        try:
            return super().wait(gen, interval, limit)
        except psycopg.OperationalError as error:
            if limit is not None and time.monotonic() - started >= limit:
                # What the server still does is unknown: this connection is of no more use.
                self.pgconn.finish()
                raise _Unanswered(f"did not answer in {limit:g} s") from error
            raise


class _Unanswered(psycopg.OperationalError):
    """The client stopped waiting."""


class Database:
    """A PostgreSQL database: pooled connections for transactions, Arrow for frames.

    Nothing is opened before the first use. May be shared by threads; a forked child needs its
    own.

    Args:
        url: `postgresql://user:password@host:port/database`. Percent-encode special characters;
            an unescaped `@` in the password is understood.
        timeout_s: how long a single statement may take and how long to wait for the server.
        name: `application_name`, as `pg_stat_activity` shows it.
    """

    def __init__(
        self, url: str, timeout_s: float = 60.0, *, name: str = "feature_pipeline"
    ) -> None:
        self._address = _Address.parse(url)
        self._timeout_s = timeout_s
        # The server's own limit comes first: its error names the statement, and it cleans up.
        self._deadline_s = timeout_s * 1.1 + 0.5
        self._conninfo = self._address.conninfo(name, max(1, round(timeout_s * 1000)))
        self._lock = threading.Lock()
        self._pool: ConnectionPool[_Connection] | None = None
        self._readers: list[adbc.Connection] = []

    def __repr__(self) -> str:
        return f"Database({str(self._address)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give all connections back to the server; the next use opens new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
            readers, self._readers = self._readers, []
        if pool is not None:
            pool.close()
        for reader in readers:
            with suppress(Exception):
                reader.close()

    @property
    def address(self) -> str:
        """Where it is, without the password."""
        return str(self._address)

    # -- transactions -----------------------------------------------------------------------------

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """A pooled connection in a transaction: committed at the end, rolled back on an error.

        Raises:
            DatabaseError: it cannot be reached, does not answer within the deadline, lacks the
                tables, or refuses; psycopg's own error is the cause. Errors that tell of a bug
                (a unique violation, say) come as psycopg raises them.
        """
        with self.explained():
            pool = self._open()
            try:
                held = pool.getconn(timeout=_CONNECT_TIMEOUT_S)
            except PoolTimeout:
                self._connect().close()  # says why, if it still does not work
                raise DatabaseError(
                    f"{self._address}: all {_POOL_SIZE} connections were busy for "
                    f"{_CONNECT_TIMEOUT_S} s; run fewer things at once"
                ) from None
            try:
                with held:
                    yield held
            finally:
                pool.putconn(held)

    def dedicated(self, *, patient: bool = False) -> psycopg.Connection[Any]:
        """A connection of its own, in autocommit mode, that the caller closes.

        For what must live as long as its process and no longer: session-level locks.

        Args:
            patient: a statement may take as long as it takes; a server that vanished is noticed
                all the same.

        Raises:
            DatabaseError: see `connection`.
        """
        with self.explained():
            connection = self._connect()
            connection.autocommit = True
            if patient:
                connection.execute("SET statement_timeout = 0")
                connection.deadline_s = None
            return connection

    def _open(self) -> ConnectionPool[_Connection]:
        with self._lock:
            if self._pool is None:
                # The pool reports a wrong password as a time-out; the first attempt is ours.
                self._connect().close()
                self._pool = ConnectionPool(
                    self._conninfo,
                    connection_class=_Connection,
                    configure=self._configure,
                    check=ConnectionPool.check_connection,
                    min_size=0,
                    max_size=_POOL_SIZE,
                    max_idle=60.0,
                    name="feature_pipeline",
                    open=True,
                )
            return self._pool

    def _connect(self) -> _Connection:
        connection = _Connection.connect(self._conninfo)
        self._configure(connection)
        return connection

    def _configure(self, connection: _Connection) -> None:
        connection.deadline_s = self._deadline_s

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turns psycopg's errors that a user can mend into DatabaseError, as `connection` does."""
        try:
            yield
        except psycopg.Error as error:
            explained = self._explain(error)
            if explained is None:
                raise
            raise explained from error

    def _explain(self, error: psycopg.Error) -> DatabaseError | None:
        """The one line that a user can act on; None where the code is at fault."""
        where = str(self._address)
        if isinstance(error, errors.QueryCanceled | _Unanswered):
            return DatabaseError(f"{where} did not answer in {self._timeout_s:g} s")
        if isinstance(error, errors.UndefinedTable):
            return DatabaseError(f"{where}: {self._line(error)}; run `feature-pipeline migrate`")
        if isinstance(error, errors.DiskFull):
            return DatabaseError(f"{where}: the disk is full ({self._line(error)})")
        if isinstance(error, psycopg.OperationalError | errors.InsufficientPrivilege):
            line = self._line(error)
            hint = "" if error.sqlstate else _hint(line)
            return DatabaseError(f"{where}: {line}{hint}")
        return None

    def _line(self, error: BaseException) -> str:
        """What the server or the client library said, in one line and without the password."""
        text = str(error).strip()
        said = re.search(r"(?:FATAL|ERROR):\s*(.*)", text)
        line = said[1] if said else (text.splitlines() or [type(error).__name__])[0]
        line = re.sub(r"^connection (?:failed|is bad): ", "", line)
        if self._address.password:
            line = line.replace(self._address.password, "***")
        return line.strip().rstrip(".")

    # -- frames -----------------------------------------------------------------------------------

    def read_frame(self, query: str, params: Parameters | None = None) -> pl.DataFrame:
        """The answer as a Polars frame; `timestamptz` becomes `Datetime("us", "UTC")`.

        Args, Raises: see `read_arrow`.
        """
        return pl.DataFrame(self.read_arrow(query, params))

    def read_arrow(self, query: str, params: Parameters | None = None) -> pa.Table:
        """The answer as an Arrow table, read in a transaction of its own.

        Args:
            query: one SELECT; with `params`, `%s` or `%(name)s` where a value goes and `%%` for
                a per cent sign, as psycopg has it.
            params: values. They are quoted into the statement, since the driver's fast path has
                no bound parameters.

        Raises:
            DatabaseError: see `connection`.
        """
        statement = query if params is None else _interpolate(query, params)
        with self._lock:
            reader = self._readers.pop() if self._readers else None
        if reader is not None:
            try:
                return self._read(reader, statement)
            except _LostConnectionError:
                pass  # it went stale in the meantime; reading again is harmless
        try:
            return self._read(None, statement)
        except _LostConnectionError as error:
            raise self._unreachable(error.__cause__ or error) from error.__cause__

    def _read(self, reader: adbc.Connection | None, statement: str) -> pa.Table:
        def work() -> tuple[adbc.Connection, pa.Table]:
            connection = reader or adbc.connect(self._conninfo, autocommit=True)
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return connection, _plain(cursor.fetch_arrow_table())

        try:
            # Connecting has its own, libpq's, time-out on top.
            limit = self._deadline_s + (0 if reader else _CONNECT_TIMEOUT_S)
            connection, table = _within(limit, work, discard=lambda late: late[0].close())
        except TimeoutError:
            raise DatabaseError(
                f"{self._address} did not answer in {self._timeout_s:g} s"
            ) from None
        except adbc_driver_manager.Error as error:
            if reader is not None:
                with suppress(Exception):
                    reader.close()
            raise self._adbc_error(error) from error
        with self._lock:
            self._readers.append(connection)
        return table

    def _adbc_error(self, error: adbc_driver_manager.Error) -> Exception:
        """psycopg's exception for the same SQLSTATE, so that both ways fail alike."""
        state = (error.sqlstate or "").strip("\0 ")
        if not state or state.startswith(("08", "57P")):
            return _LostConnectionError(str(error))
        try:
            kind = errors.lookup(state)
        except KeyError:
            kind = psycopg.DatabaseError
        twin = kind(str(error))
        return self._explain(twin) or twin

    def _unreachable(self, error: BaseException) -> DatabaseError:
        """Why a reader cannot connect: psycopg says it better."""
        try:
            self._connect().close()
        except psycopg.Error as reason:
            explained = self._explain(reason)
            if explained is not None:
                return explained
        return DatabaseError(f"{self._address}: {self._line(error)}")


def _hint(line: str) -> str:
    """What to do about a connection that could not be made, or broke."""
    if "authentication failed" in line or "no password supplied" in line:
        return "; check user and password in the database URL"
    if line.startswith("database ") and "does not exist" in line:
        return "; create it, or check the database URL"
    return "; is it running, and is the database URL right?"


class _LostConnectionError(Exception):
    """A reader's connection is gone, or could not be made."""


def _plain(table: pa.Table) -> pa.Table:
    """The table with extension types (jsonb, numeric) as what they are stored as, text."""
    for i, field in enumerate(table.schema):
        if isinstance(field.type, pa.BaseExtensionType):
            stored = pa.chunked_array(
                [chunk.storage for chunk in table.column(i).chunks], field.type.storage_type
            )
            table = table.set_column(i, field.name, stored)
    return table


def _within(limit_s: float, work: Callable[[], T], discard: Callable[[T], object]) -> T:
    """The result of `work`, done in a thread of its own and left alone after `limit_s`.

    The thread is a daemon: one that is stuck in a read from a frozen server keeps nobody from
    leaving. What it comes back with too late is handed to `discard`.

    Raises:
        TimeoutError: it took longer.
    """
    result: list[T] = []
    failure: list[BaseException] = []
    late = threading.Event()

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # handed to the caller, whatever it is
            failure.append(error)
        if late.is_set():
            with suppress(Exception):
                discard(result.pop())

    thread = threading.Thread(target=run, daemon=True, name="feature-pipeline-read")
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        late.set()
        raise TimeoutError
    if failure:
        raise failure[0]
    return result[0]


def _interpolate(query: str, params: Parameters) -> str:
    """The query with its placeholders replaced by quoted literals."""
    named: Mapping[str, object] = params if isinstance(params, Mapping) else {}
    waiting = [] if isinstance(params, Mapping) else list(reversed(params))
    missing = 0

    def literal(match: re.Match[str]) -> str:
        nonlocal missing
        name, kind = match["name"], match["kind"]
        if name is None and kind == "%":
            return "%"
        if kind != "s":
            raise ValueError(f"placeholder {match[0]!r}: only %s, %(name)s and %% are known")
        if name is None and not waiting:
            missing += 1
            return ""
        text = sql.Literal(named[name] if name else waiting.pop()).as_string()
        # A cast binds tighter than a minus.
        return f"({text})" if text.lstrip().startswith("-") else text

    statement = _PLACEHOLDER.sub(literal, query)
    if missing or waiting:
        wrong = f"{missing} too few" if missing else f"{len(waiting)} too many"
        raise ValueError(f"{wrong} parameters for {query!r}")
    return statement


def copy_in(
    connection: psycopg.Connection[Any],
    relation: str,
    columns: Sequence[str],
    frame: pl.DataFrame,
    types: Mapping[str, str] | None = None,
) -> int:
    """Append a frame to a table by binary COPY, in the connection's own transaction.

    Args:
        connection: where to; committing is the caller's.
        relation: table, unqualified.
        columns: which columns of the frame, and of the table.
        frame: Float64, Int64, String, Boolean, Date, Datetime("us", any or no zone: UTC) and
            lists of them. Their Arrow type decides what goes over the wire, so it must be the
            column's own (Int32 does not fit bigint).
        types: SQL types by column, where the frame cannot tell: `jsonb` takes String columns.

    Returns:
        The number of rows that the server took in.

    Raises:
        psycopg.Error: as the server has it: a violated constraint, a lost connection.
    """
    # `oldest` means offsets and bytes, which pgpq encodes in place; string views cost it more.
    table = frame.select(columns).to_arrow(compat_level=pl.CompatLevel.oldest())
    encoders = {
        field.name: LargeStringEncoderBuilder.new_with_output(field, Jsonb())
        if (types or {}).get(field.name) == "jsonb"
        else ArrowToPostgresBinaryEncoder.infer_encoder(field)
        for field in table.schema
    }
    encoder = ArrowToPostgresBinaryEncoder.new_with_encoders(table.schema, encoders)
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(relation), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor() as cursor:
        with cursor.copy(statement) as copy:
            copy.write(encoder.write_header())
            for batch in table.to_batches(max_chunksize=_COPY_ROWS):
                copy.write(encoder.write_batch(batch))
            copy.write(encoder.finish())
        return cursor.rowcount
