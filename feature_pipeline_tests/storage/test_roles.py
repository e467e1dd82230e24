"""Who may do what, tried as each of the roles, on both servers."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
import psycopg
import pytest
from psycopg import errors

from feature_pipeline.errors import DatabaseError
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.resources import store
from feature_pipeline.settings import Settings
from feature_pipeline.stack.postgres import EmbeddedPostgres
from feature_pipeline.storage import audit_log, migrations, usage
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.migrations import ROLES, migrate
from feature_pipeline_tests.assets.support import DERIVED, Graph, assert_equal
from feature_pipeline_tests.assets.world import (
    START,
    MadeSource,
    make_universe,
    make_world,
    midnight,
)
from feature_pipeline_tests.roles import as_user, logins
from feature_pipeline_tests.storage.test_migrations import NAMES

FRIDAY = START + timedelta(days=2)
BAR = (
    "INSERT INTO ohlcv_1d VALUES"
    " ('A', '2020-01-02Z', '2020-01-02Z', 'assumed', 1, 1, 1, 1, 1, NULL, 'x', now(), 'r')"
)
EVENT = (
    "INSERT INTO audit.system_events (timestamp, event_type, component, message)"
    " VALUES ('2020-03-01Z', 'start', 'agent', 'up')"
)
CHUNKS = "SELECT drop_chunks('ohlcv_1d', older_than => INTERVAL '1 day')"
REFRESH = "CALL refresh_continuous_aggregate('daily_trading_summary', NULL, NULL)"

READS = (
    "SELECT * FROM ohlcv_1d, state_vectors, feature_values, partition_ledger, feature_sets",
    "SELECT * FROM trading.trades, config.risk_limits, audit.decisions, daily_trading_summary",
    "SELECT migration_id FROM _yoyo_migration",
)
WRITES = (
    BAR,
    "UPDATE ohlcv_1d SET close = 2",
    "DELETE FROM ohlcv_1d",
    "SELECT nextval('fencing_token'), nextval('content_revision')",
    "INSERT INTO trading.positions (symbol, quantity, avg_entry_price) VALUES ('A', 1, 1)",
    "INSERT INTO config.risk_limits (key, value) VALUES ('drawdown', 0.1)",
    EVENT,
    "SELECT audit.make_partitions()",
)
SESSION = (
    "CREATE TEMPORARY TABLE gone (symbol text) ON COMMIT DROP",
    "SELECT pg_advisory_xact_lock(1, 2)",
)
MIGRATES = (
    "CREATE TABLE mine (n int)",
    "CREATE TABLE trading.mine (n int)",
    "ALTER TABLE ohlcv_1d ADD mine int",
    "TRUNCATE ohlcv_1d",
    "DROP TABLE ohlcv_1d CASCADE",
    "UPDATE audit.system_events SET message = 'no'",
    "DELETE FROM audit.decisions",
    "DELETE FROM feature_definitions",
    "DELETE FROM _yoyo_migration",
)
KEEPS_UP = ("SELECT audit.detach_partition('system_events_2020_03')",)


def refused(url: str, statement: str) -> bool:
    """Whether it is refused for want of a right; it leaves no trace."""
    with psycopg.connect(url) as connection:
        try:
            connection.execute(statement)
        except errors.InsufficientPrivilege:
            return True
        finally:
            connection.rollback()
    return False


def test_each_role_may_what_it_is_for_and_nothing_else(database: Database) -> None:
    url = database_url(database)
    with psycopg.connect(url, autocommit=True) as link:
        link.execute(EVENT)
        link.execute("SELECT audit.make_partitions()")
        hypertables = link.execute("SELECT FROM pg_extension WHERE extname = 'timescaledb'")
        timescaledb = hypertables.fetchone() is not None
        # Connecting and temporary tables are granted, not left to what everybody may.
        name = urlsplit(url).path[1:]
        link.execute(f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC')
    assert migrate(url) == []
    with logins(url) as users:
        may = {
            "reader": (*READS, *SESSION),
            "writer": (*READS, *SESSION, *WRITES),
            "maintainer": (*READS, *SESSION, *KEEPS_UP, "SELECT audit.make_partitions()"),
            "owner": (*READS, *SESSION, *WRITES, *MIGRATES, *KEEPS_UP),
        }
        everything = {*READS, *SESSION, *WRITES, *MIGRATES, *KEEPS_UP}
        if timescaledb:
            may["owner"] += (CHUNKS,)
            everything.add(CHUNKS)
        for role, allowed in may.items():
            found = {statement for statement in everything if not refused(users[role], statement)}
            assert found == set(allowed), role
        if timescaledb:
            _policies(users)
        _later_tables(users)
        # Another one of the owners migrates; who only writes does not.
        assert migrate(users["owner"]) == []


def _policies(users: dict[str, str]) -> None:
    """Refreshing and jobs are the maintainer's: of themselves they are the owner's alone."""
    for role in ("reader", "writer"):
        with psycopg.connect(users[role], autocommit=True) as link:
            with pytest.raises(errors.InsufficientPrivilege):
                link.execute(REFRESH)
            with pytest.raises(errors.InsufficientPrivilege):
                link.execute("SELECT config.set_job(1, false)")
            with pytest.raises(errors.InsufficientPrivilege):
                link.execute("SELECT remove_retention_policy('documents')")
    jobs = "SELECT job_id, proc_name, owner::text, scheduled FROM timescaledb_information.jobs"
    ours = " WHERE proc_schema = 'public' OR hypertable_name IS NOT NULL"
    with psycopg.connect(users["maintainer"], autocommit=True) as link:
        link.execute(REFRESH)
        found = link.execute(jobs + ours).fetchall()
        assert {owner for _, _, owner, _ in found} <= set(ROLES[:2]), "nobody mightier runs them"
        job = next(number for number, name, _, _ in found if name == "policy_compression")
        link.execute("SELECT config.set_job(%s, scheduled => false)", [job])
        assert link.execute(f"{jobs} WHERE job_id = {job}").fetchone()[3] is False
    with psycopg.connect(users["owner"], autocommit=True) as link:
        link.execute("CALL maintain_storage()")


def _later_tables(users: dict[str, str]) -> None:
    """What is made later is covered without anybody granting anything."""
    with psycopg.connect(users["owner"]) as link:
        link.execute("SET ROLE feature_pipeline_owner")
        link.execute("CREATE TABLE later (id bigserial, n int)")
        link.execute("CREATE TABLE audit.later (n int)")
    write = "INSERT INTO later (n) VALUES (1)"
    assert not refused(users["writer"], write)
    assert not refused(users["writer"], "INSERT INTO audit.later VALUES (1)")
    assert refused(users["writer"], "DELETE FROM audit.later")
    assert not refused(users["reader"], "SELECT * FROM later, audit.later")
    assert refused(users["reader"], write)
    _vacuum(users)


def _vacuum(users: dict[str, str]) -> None:
    """Tables of before, and later ones, from the version on that knows the privilege."""
    with psycopg.connect(users["maintainer"], autocommit=True) as link:
        if link.info.server_version < 170000:
            return
        said: list[str] = []
        link.add_notice_handler(lambda notice: said.append(notice.message_primary))
        link.execute("VACUUM ANALYZE ohlcv_1d, later, audit.later")
        assert said == []
        # Granted again by the next `migrate` where it is all that a table lacks.
        with psycopg.connect(users["owner"]) as owner:
            owner.execute("REVOKE MAINTAIN ON later FROM feature_pipeline_maintainer")
        link.execute("ANALYZE later")
        assert said == ['permission denied to analyze "later", skipping it']
        assert migrate(users["owner"]) == []
        link.execute("ANALYZE later")
        assert len(said) == 1


def database_url(database: Database) -> str:
    """The address, password and all."""
    info = psycopg.conninfo.conninfo_to_dict(database._conninfo)
    user, host, port = info["user"], info["host"], info["port"]
    return f"postgresql://{user}:{info.get('password', '')}@{host}:{port}/{info['dbname']}"


def test_the_graph_runs_as_the_writer_and_is_read_as_the_reader(database: Database) -> None:
    """Every asset, a restated bar and all that follows from it; on compressed chunks as well."""
    universe = make_universe()
    world = make_world(universe)
    url = database_url(database)
    with logins(url) as users:
        graph, days = Graph(users["writer"], universe, MadeSource(world)), (START, FRIDAY)
        graph.run(*days)
        _compress(url)
        close = pl.when(pl.col("time") == midnight(START)).then(pl.col("high"))
        restated = world.bars.with_columns(close=close.otherwise(pl.col("close")))
        graph.source.world = world.but(bars=restated)
        graph.run(*days, assets=("ohlcv_1d", "indicators_1d"))
        assert graph.query("SELECT count(*) AS n FROM ohlcv_1d_history").item() > 0
        sizes = usage.relations(graph.store.database, graph.store.tables)
        assert sizes.filter(table="ohlcv_1d")["total"].item() > 0
        settings = Settings(database_url=users["writer"], reader_database_url=users["reader"])
        reader, written = store(settings, reading=True), graph.tables(TABLES, *days)
        assert urlsplit(users["reader"]).username in reader.database.address
        assert all(written[asset].height for asset in DERIVED)
        for asset, frame in written.items():
            assert_equal(reader.read(asset, start=START, end=FRIDAY), frame, asset)
        with pytest.raises(DatabaseError, match="permission denied"):
            reader.ledger.next_token()
        reader.database.close()
        graph.close()


def _compress(url: str) -> None:
    """Every chunk, where there are some."""
    with psycopg.connect(url, autocommit=True) as link:
        if link.execute("SELECT FROM pg_extension WHERE extname = 'timescaledb'").fetchone():
            for table in ("ohlcv_1d", "indicators_1d", "features_1d", "state_vectors_1d"):
                link.execute(
                    "SELECT compress_chunk(c, true) FROM show_chunks(%s::regclass) c", [table]
                )


def test_the_maintainer_keeps_the_logs_in_order(migrated_database_url: str, tmp_path: Path) -> None:
    with psycopg.connect(migrated_database_url) as link:
        link.execute(EVENT)
    with logins(migrated_database_url) as users:
        with Database(users["maintainer"]) as maintainer:
            done = audit_log.upkeep(maintainer, tmp_path)
        assert [(month.partition, month.rows) for month in done.archived] == [
            ("system_events_2020_03", 1)
        ]
        # What it made belongs to the owner, who can drop it.
        assert not refused(users["owner"], "DROP TABLE audit.system_events_2020_03")
        assert refused(users["maintainer"], "DROP TABLE audit.system_events_2020_03")


@pytest.fixture
def fresh_server(make_home) -> Iterator[EmbeddedPostgres]:
    """A server that has no role of ours yet: roles are those of a server, not of a database."""
    server = EmbeddedPostgres(make_home(), options={"fsync": "off"})
    server.start()
    yield server
    server.stop()


def test_who_may_not_make_roles_migrates_all_the_same(
    fresh_server: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the roles; with those that somebody made; and who may make them makes them."""
    admin = fresh_server.database("postgres")
    with psycopg.connect(admin, autocommit=True) as link:
        urls = {}
        for user, right in (("plain", ""), ("second", ""), ("maker", "CREATEROLE")):
            password = secrets.token_hex(8)
            link.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{password}' {right}")
            link.execute(f"CREATE DATABASE {user} OWNER {user}")
            urls[user] = as_user(fresh_server.database(user), user, password)
        with caplog.at_level(logging.INFO, migrations.__name__):
            assert migrate(urls["plain"]) == NAMES
            assert migrate(urls["plain"]) == []
        [first, second] = [m for m in caplog.messages if "roles" in m]
        assert first == second
        assert first.startswith("plain may not create roles: no privileges were granted")
        there = "SELECT count(*) FROM pg_roles WHERE rolname = ANY(%s)"
        assert link.execute(there, [list(ROLES)]).fetchone() == (0,)

        assert migrate(urls["maker"]) == NAMES
        assert link.execute(there, [list(ROLES)]).fetchone() == (4,)
        # By now they are there for everybody: whoever owns tables grants, and keeps them.
        assert migrate(urls["plain"]) == []
        assert migrate(urls["second"]) == NAMES
        owners = {}
        for user, url in urls.items():
            with logins(fresh_server.database(user)) as users:
                assert not refused(users["reader"], READS[0])
                assert refused(users["reader"], BAR)
                assert not refused(users["writer"], BAR)
                assert refused(users["writer"], "CREATE TABLE mine (n int)")
                assert not refused(url, "ALTER TABLE ohlcv_1d ADD mine int")
            with psycopg.connect(url) as own:
                owners[user] = own.execute(
                    "SELECT tableowner FROM pg_tables WHERE tablename = 'ohlcv_1d'"
                ).fetchone()[0]
        assert owners == {"plain": "plain", "second": "second", "maker": ROLES[0]}


@pytest.mark.timescaledb
@pytest.mark.usefixtures("migrated_timescaledb_url")  # makes the four roles, which stay
@pytest.mark.parametrize("granted", [False, True])
def test_who_is_no_superuser_migrates_timescaledb(timescaledb_url: str, granted: bool) -> None:
    """A new owner is asked for a right that only a superuser grants."""
    name = f"test_{secrets.token_hex(6)}"
    url = urlsplit(timescaledb_url)._replace(path=f"/{name}").geturl()
    with psycopg.connect(timescaledb_url, autocommit=True) as link:
        link.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}' IN ROLE {ROLES[0]}")
        link.execute(f"CREATE DATABASE {name} OWNER {name}")
        try:
            with psycopg.connect(url, autocommit=True) as own:
                own.execute("CREATE EXTENSION timescaledb")
                own.execute("SELECT _timescaledb_functions.stop_background_workers()")
                if granted:
                    own.execute(f"GRANT CREATE ON SCHEMA _timescaledb_internal TO {ROLES[1]}")
            assert migrate(as_user(url, name, name)) == NAMES
            assert migrate(as_user(url, name, name)) == []
            with psycopg.connect(url) as own:
                owners = own.execute(
                    "SELECT (SELECT tableowner FROM pg_tables WHERE tablename = 'ohlcv_1d'),"
                    " (SELECT viewowner FROM pg_views WHERE viewname = 'daily_trading_summary')"
                ).fetchone()
            assert owners == (ROLES[:2] if granted else (name, name))
            with logins(url) as users:
                assert not refused(users["writer"], BAR)
                assert refused(users["reader"], BAR)
        finally:
            link.execute(f"DROP DATABASE {name} WITH (FORCE)")
            link.execute(f"DROP ROLE {name}")
