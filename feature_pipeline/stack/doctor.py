"""What is right, what is wrong and how to mend it: settings, servers, tables, Dagster.

Looks only; starts and changes nothing, and shows no secret.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit

from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.settings import PREFIX, Settings, redact
from feature_pipeline.stack import Stack
from feature_pipeline.stack.server import EmbeddedServer
from feature_pipeline.universe import SourceKind

if TYPE_CHECKING:
    import psycopg

    from feature_pipeline.sources import Kind
    from feature_pipeline.storage.database import Database

PACKAGES = ("dagster", "dagster-postgres", "polars", "psycopg", "redis")
OLDEST_POSTGRES = 15
OLDEST_TIMESCALEDB = (2, 28, 3)
_REDIS_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Finding:
    """One row of the table; `fix` is empty where nothing is to be done."""

    right: bool
    what: str
    found: str
    fix: str = ""


def findings() -> Iterator[Finding]:
    """Check one thing after the other; what rests on something that is wrong is not checked."""
    yield _versions()
    yield _variables()
    try:
        settings = Settings()
    except FeaturePipelineError as error:
        yield Finding(False, "settings", str(error), "correct or unset the variable")
        return
    home = "" if settings.database_url and settings.redis_url else f"home {settings.home}"
    yield Finding(True, "settings", home or "external servers")
    yield _universe(settings)
    yield from _sources(settings)
    yield _scorer(settings)
    stack = Stack(settings)
    database = yield from _database(stack)
    yield from _redis(stack)
    if database:
        yield _dagster_storage(stack)
    yield _ui(stack)


def _versions() -> Finding:
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            return Finding(False, "versions", f"{name} is not installed", "make install")
    return Finding(True, "versions", ", ".join(found))


def _variables() -> Finding:
    """A misspelt variable is silently no variable."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    unknown = [
        name
        for name in os.environ
        if name.startswith(PREFIX) and name not in known and not name.startswith(f"{PREFIX}TEST_")
    ]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, 1)
        meant = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"
        return Finding(False, "environment", f"nothing reads {', '.join(unknown)}", meant)
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        slow = "PYTHONDONTWRITEBYTECODE is set: every start takes 2.5 times as long"
        return Finding(True, "environment", slow, "unset it")
    return Finding(True, "environment", "no unknown variable")


def _universe(settings: Settings) -> Finding:
    from feature_pipeline.universe import Universe

    try:
        universe = Universe.load(settings.universe) if settings.universe else Universe.load()
    except FeaturePipelineError as error:
        return Finding(False, "universe", str(error), "correct the file")
    return Finding(True, "universe", f"{len(universe.instruments)} instruments")


def _sources(settings: Settings) -> Iterator[Finding]:
    """Every provider that the universe or the settings name: on, or off and what to set."""
    from feature_pipeline.resources import load_universe, macro_source, sources
    from feature_pipeline.sources import Off, answers

    try:
        universe = load_universe(settings)
    except FeaturePipelineError:
        return  # said already
    known, macro = sources(settings, universe), macro_source(settings)
    used: dict[str, list[Kind]] = {}
    for kind in get_args(SourceKind):
        for name in sorted({p for named in universe.providers(kind).values() for p in named}):
            used.setdefault(name, []).append(kind)
    used.setdefault(macro.name, []).append("macro")
    for name, kinds in sorted(used.items()):
        source = macro if name == macro.name else known.get(name)
        what = f"source {name}"
        if source is None:
            there = f"there is {', '.join(sorted(known))}"
            yield Finding(False, what, "universe.yaml names it, nothing here has that name", there)
        elif isinstance(source, Off):
            _, _, fix = source.why.partition(": ")
            yield Finding(True, what, f"off: no {', '.join(kinds)} from it", fix)
        elif lacking := [kind for kind in kinds if not answers(source, kind)]:
            named = f"universe.yaml names it for {', '.join(lacking)}, which it does not have"
            yield Finding(False, what, named, "name another one there")
        else:
            yield Finding(True, what, f"on: {', '.join(kinds)}")


def _scorer(settings: Settings) -> Finding:
    """Which sentiment model scores, and whether it could."""
    from feature_pipeline.resources import scorer
    from feature_pipeline.sources.finbert import FinbertScorer

    active = scorer(settings)
    named = f"{settings.scorer}: {active.model} {active.revision}"
    if not isinstance(active, FinbertScorer):
        return Finding(True, "sentiment", named)
    if importlib.util.find_spec("torch") is None:
        return Finding(
            False, "sentiment", f"{named}: torch is missing", "pip install torch==2.13.0"
        )
    if not active.present:
        return Finding(
            False, "sentiment", f"{named} is not in {active.models}", "feature-pipeline model fetch"
        )
    return Finding(True, "sentiment", f"{named} in {active.models}")


def _runs(server: EmbeddedServer) -> Finding | None:
    """What keeps the embedded server from being asked, if anything does."""
    if not server.running:
        return Finding(
            False, server.name, "the embedded server is not running", "feature-pipeline up"
        )
    try:
        server.start()  # somebody runs it: this attaches
    except FeaturePipelineError as error:
        return Finding(False, server.name, str(error), "feature-pipeline down, then up")
    return None


def _database(stack: Stack) -> Generator[Finding, None, bool]:
    """Yields what it finds; returns whether the database can be asked further."""
    import psycopg

    if stack.postgres and (trouble := _runs(stack.postgres)):
        yield trouble
        return False
    where = redact(stack.database_url)
    try:
        connection = psycopg.connect(stack.database_url, connect_timeout=5, autocommit=True)
    except psycopg.Error as error:
        yield Finding(False, "postgres", f"{where}: {_cause(error)}", _database_fix(error))
        return False
    with connection:
        major = connection.info.server_version // 10000
        extension = connection.execute(
            "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'"
        ).fetchone()
        version = f"PostgreSQL {major}" + (f", TimescaleDB {extension[0]}" if extension else "")
        too_old = extension and _numbers(extension[0]) < OLDEST_TIMESCALEDB
        fix = ""
        if major < OLDEST_POSTGRES:
            fix = f"use PostgreSQL {OLDEST_POSTGRES} or later"
        elif too_old:
            fix = "update TimescaleDB to 2.28.3 or later: earlier ones can delete wrong rows"
        yield Finding(not fix, "postgres", f"{where}: {version}, {_as_whom(connection)}", fix)
        yield from _tables(stack, connection)
        if extension:
            yield jobs(connection)
    yield from _others(stack)
    return True


def _as_whom(connection: psycopg.Connection[Any]) -> str:
    """Who is connected, and the mightiest of our roles that it has."""
    from feature_pipeline.storage.migrations import ROLES

    user, superuser, held = connection.execute(
        "SELECT current_user, rolsuper,"
        " ARRAY(SELECT r FROM unnest(%s::text[]) WITH ORDINALITY AS u (r, n) JOIN pg_roles p"
        " ON p.rolname = r WHERE pg_has_role(p.oid, 'USAGE') ORDER BY n)"
        " FROM pg_roles WHERE rolname = current_user",
        [list(ROLES)],
    ).fetchone() or ("nobody", False, [])
    role = "superuser" if superuser else held[0] if held else "none of our roles"
    return f"as {user} ({role.removeprefix('feature_pipeline_')})"


def _others(stack: Stack) -> Iterator[Finding]:
    """The addresses of who reads and who owns, where they are named."""
    import psycopg

    for name in ("reader", "owner"):
        address = getattr(stack.settings, f"{name}_database_url")
        if address is None:
            continue
        url, what = address.get_secret_value(), f"postgres {name}"
        try:
            with psycopg.connect(url, connect_timeout=5, autocommit=True) as connection:
                said, fix = _as_whom(connection), ""
        except psycopg.Error as error:
            fix = _database_fix(error).replace("DATABASE_URL", f"{name.upper()}_DATABASE_URL")
            yield Finding(False, what, f"{redact(url)}: {_cause(error)}", fix)
            continue
        if name == "reader" and "(reader)" not in said:
            fix = "name a user that has feature_pipeline_reader alone"
        yield Finding(True, what, f"{redact(url)}: {said}", fix)


def jobs(connection: psycopg.Connection[Any]) -> Finding:
    """Whether compression, retention and summaries are kept up in the background."""
    every, failed, off, why = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE s.last_run_status = 'Failed'),"
        " count(*) FILTER (WHERE proc_name = 'policy_retention' AND NOT scheduled),"
        " (SELECT err_message FROM timescaledb_information.job_errors WHERE job_id >= 1000"
        " ORDER BY start_time DESC LIMIT 1)"
        " FROM timescaledb_information.jobs j"
        " LEFT JOIN timescaledb_information.job_stats s USING (job_id)"
        " WHERE job_id >= 1000"  # below are those of the extension itself
    ).fetchone() or (0, 0, 0, None)
    rests = f"; retention of {off} tables is off (docs/how-to/backup.md)" if off else ""
    if not failed:
        return Finding(True, "jobs", f"{every} of TimescaleDB's, none of which failed last{rests}")
    said = f"{failed} of {every} of TimescaleDB's failed last{rests}" + (f": {why}" if why else "")
    return Finding(
        False, "jobs", said, "see timescaledb_information.job_errors; nothing is compressed, "
        "dropped or summarised meanwhile (docs/how-to/timescaledb.md)",
    )  # fmt: skip


def _tables(stack: Stack, connection: object) -> Iterator[Finding]:
    import psycopg

    from feature_pipeline.storage.database import Database
    from feature_pipeline.storage.migrations import pending

    assert isinstance(connection, psycopg.Connection)
    try:
        with Database(stack.database_url) as database:
            missing = pending(database)
            kept = () if missing else (_policies(database), _logs(database))
    except FeaturePipelineError as error:
        yield Finding(False, "tables", str(error), "feature-pipeline migrate")
        return
    if missing:
        yield Finding(
            False, "tables", f"not applied: {', '.join(missing)}", "feature-pipeline migrate"
        )
        return
    yield Finding(True, "tables", "every migration is applied")
    assets, days, newest = connection.execute(
        "SELECT count(DISTINCT asset), count(DISTINCT day), max(day) FROM partition_ledger"
    ).fetchone() or (0, 0, None)
    if days:
        yield Finding(True, "ledger", f"{assets} assets, {days} days, up to {newest}")
    else:
        yield Finding(True, "ledger", "no day is written yet", "feature-pipeline demo, or backfill")
    yield from kept


def _policies(database: Database) -> Finding:
    """Whether the tables are stored as storage_policies says."""
    from feature_pipeline.storage import retention

    fix = "feature-pipeline migrate"
    if retention.waits(database):
        return Finding(False, "policies", "TimescaleDB is here, and the tables are plain", fix)
    if left := retention.unapplied(database):
        return Finding(False, "policies", f"not applied to {', '.join(left)}", fix)
    how = "applied" if retention.timescaledb(database) else "plain PostgreSQL keeps everything"
    return Finding(True, "policies", how)


def _logs(database: Database) -> Finding:
    """Whether somebody keeps the trading side's logs in order."""
    from feature_pipeline.storage.audit_log import behind

    waiting, lacking = behind(database)
    said = [f"{waiting} rows without a partition of their month"] if waiting else []
    said += [f"{log} has none for the next month" for log in lacking]
    fix = "feature-pipeline upkeep, once a month (docs/how-to/trading-tables.md)"
    if said:
        return Finding(False, "logs", "; ".join(said), fix)
    return Finding(True, "logs", "a partition for every row, and for the next month")


def _redis(stack: Stack) -> Iterator[Finding]:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    if stack.redis and (trouble := _runs(stack.redis)):
        yield trouble
        return
    where = redact(stack.redis_url)
    timeout = _REDIS_TIMEOUT_S
    client = redis.Redis.from_url(
        stack.redis_url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),  # the default would be silent for a minute
    )
    try:
        information = client.info()
        keys = client.dbsize()
    except redis.AuthenticationError:
        yield Finding(
            False,
            "redis",
            f"{where}: wrong password or user",
            "correct the password in FEATURE_PIPELINE_REDIS_URL",
        )
    except (redis.RedisError, OSError) as error:
        yield Finding(
            False,
            "redis",
            f"{where}: cannot be reached ({_words(error)})",
            "start it, or correct the address in FEATURE_PIPELINE_REDIS_URL",
        )
    else:
        assert isinstance(information, dict)
        yield Finding(True, "redis", f"{where}: Redis {information['redis_version']}, {keys} keys")
    finally:
        client.close()


def _dagster_storage(stack: Stack) -> Finding:
    import psycopg

    parts = urlsplit(stack.dagster_database_url)
    url = parts._replace(scheme="postgresql").geturl()
    try:
        with psycopg.connect(url, connect_timeout=5, autocommit=True) as connection:
            row = connection.execute("SELECT to_regclass('runs') IS NOT NULL").fetchone()
    except psycopg.Error as error:
        return Finding(
            False,
            "dagster storage",
            f"{redact(url)}: {_cause(error)}",
            _database_fix(error).replace("DATABASE_URL", "DAGSTER_DATABASE_URL"),
        )
    made = "in use" if row and row[0] else "empty: Dagster makes its tables when it starts"
    return Finding(True, "dagster storage", f"{redact(url)}: {made}")


def _ui(stack: Stack) -> Finding:
    if stack.ui_url is None:
        return Finding(True, "dagster ui", "not running", "feature-pipeline up")
    return Finding(True, "dagster ui", f"{stack.ui_url} (no password: this machine only)")


def _cause(error: Exception) -> str:
    text = str(error)
    if "password authentication failed" in text or "no password supplied" in text:
        return "wrong user or password"
    if "does not exist" in text:
        return "no such database or role"
    if "pg_hba.conf" in text:
        return "the server refuses connections from here"
    return f"cannot be reached ({_words(error)})"


def _database_fix(error: Exception) -> str:
    cause = _cause(error)
    if cause == "wrong user or password":
        return "correct user and password in FEATURE_PIPELINE_DATABASE_URL"
    if cause == "no such database or role":
        return "create it, or correct FEATURE_PIPELINE_DATABASE_URL"
    if cause.startswith("cannot"):
        return "start it, or correct the address in FEATURE_PIPELINE_DATABASE_URL"
    return "allow this machine in the server's pg_hba.conf"


def _words(error: Exception) -> str:
    """The kind of failure: drivers quote addresses, and from an address a password."""
    text = str(error).lower()
    for words in ("refused", "timed out", "timeout expired", "could not translate host name"):
        if words in text:
            return words
    if "name or service not known" in text or "name resolution" in text:
        return "unknown host"
    return type(error).__name__


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("-")[0].split(".") if part.isdigit())
