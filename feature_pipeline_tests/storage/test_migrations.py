"""The schema: equal to what `schemas` says, however often and however rudely it is applied."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import psycopg
import pytest
import sqlparse

from feature_pipeline.errors import DatabaseError
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.schemas import Column, TableSchema
from feature_pipeline.storage import migrations
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.migrations import migrate, pending
from feature_pipeline.timeframes import DAILY, TIMEFRAMES
from feature_pipeline_tests.databases import created
from feature_pipeline_tests.stack.helpers import until

NAMES = sorted(path.stem for path in migrations.SQL.glob("[0-9]*_*.sql"))

# One process per exchange with the server, and each dies in it: the statement is sent, its answer
# not awaited. What one left is where the next one starts; once a migration is through, they begin
# with the first exchange again. Forks, and files that are parsed before them, since starting Python
# and parsing SQL takes longer than all the rest. After each death it prints the migrations that
# are still waiting.
DIE = """
import gc, os, signal, sys
import psycopg
from feature_pipeline.storage import database, migrations

url, wait, left = sys.argv[1], database._Connection.wait, 0

def dying(self, gen, *args, **kwargs):
    global left
    left -= 1
    if left == 0:
        next(gen, None)
        os.kill(os.getpid(), signal.SIGKILL)
    return wait(self, gen, *args, **kwargs)

database._Connection.wait = dying
parsed = migrations._migrations()
for migration in parsed:
    migration.load()
migrations._migrations = lambda: parsed
names = [migration.id for migration in parsed]
watching = psycopg.connect(url, autocommit=True)
gc.freeze()
exchange, waiting = 1, names
while True:
    child = os.fork()
    if child == 0:
        left = exchange
        migrations.migrate(url)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != -signal.SIGKILL:
        sys.exit(status)
    there = watching.execute("SELECT to_regclass('_yoyo_migration')").fetchone() != (None,)
    applied = set(watching.execute("SELECT migration_id FROM _yoyo_migration") if there else ())
    still = [name for name in names if (name,) not in applied]
    exchange = exchange + 1 if still == waiting else 1
    waiting = still
    print(*waiting, flush=True)
"""


def contents(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Everything that a migration makes, in a form that can be compared."""
    ours = "('public', 'trading', 'config', 'audit')"
    here = f"relnamespace::regnamespace::text IN {ours}"
    questions = {
        "columns": "SELECT c.oid::regclass::text, c.relkind, a.attname,"
        " format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,"
        " pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum) FROM pg_class c"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        " LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum"
        f" WHERE c.relkind IN ('r', 'p', 'v') AND c.{here} ORDER BY 1, a.attnum",
        "partitions": "SELECT oid::regclass::text, pg_get_expr(relpartbound, oid) FROM pg_class"
        f" WHERE relispartition AND {here} ORDER BY 1",
        "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)"
        f" FROM pg_constraint WHERE connamespace::regnamespace::text IN {ours} ORDER BY 1, 2",
        "indexes": f"SELECT indexdef FROM pg_indexes WHERE schemaname IN {ours} ORDER BY 1",
        "views": "SELECT schemaname, viewname, definition FROM pg_views"
        f" WHERE schemaname IN {ours} ORDER BY 1, 2",
        "routines": "SELECT oid::regprocedure::text, pg_get_functiondef(oid) FROM pg_proc"
        f" WHERE pronamespace::regnamespace::text IN {ours} AND prokind <> 'a' ORDER BY 1",
        "triggers": "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal"
        " ORDER BY 1",
        "sequences": "SELECT schemaname, sequencename, data_type::text, cache_size, last_value"
        " FROM pg_sequences ORDER BY 1, 2",
        "privileges": f"SELECT oid::regclass::text, relacl::text FROM pg_class WHERE {here}"
        " ORDER BY 1",
        "policies": "SELECT * FROM storage_policies ORDER BY 1",
        "applied": "SELECT migration_id FROM _yoyo_migration ORDER BY 1",
    }
    with psycopg.connect(url) as connection:
        return {what: connection.execute(sql).fetchall() for what, sql in questions.items()}


def relation(url: str, name: str) -> list[tuple[object, ...]]:
    """Name, type and nullability of a relation's columns, in order."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT attname, format_type(atttypid, atttypmod), NOT attnotnull FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [name],
        ).fetchall()


def declared(table: TableSchema) -> list[tuple[object, ...]]:
    moment, run = table.audit
    return [
        *((c.name, c.sql_type, c.nullable) for c in table.columns),
        (moment, "timestamp with time zone", False),
        (run, "text", False),
        *([("repeated", "boolean", False)] if table.repeats else []),
    ]


def left_to_apply(url: str) -> list[str]:
    with Database(url) as database:
        return pending(database)


def test_applies_everything_once(database_url: str) -> None:
    assert left_to_apply(database_url) == NAMES
    assert migrate(database_url) == NAMES
    first = contents(database_url)
    assert left_to_apply(database_url) == []
    assert migrate(database_url) == []
    assert contents(database_url) == first


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_tables_are_what_the_schemas_say(migrated_database_url: str, table: TableSchema) -> None:
    url = migrated_database_url
    # A column that was added later stands behind the audit columns.
    assert sorted(relation(url, table.table)) == sorted(declared(table))
    with psycopg.connect(url) as connection:
        key = connection.execute(
            "SELECT array_agg(attname ORDER BY position) FROM pg_constraint"
            " CROSS JOIN unnest(conkey) WITH ORDINALITY AS k (number, position)"
            " JOIN pg_attribute ON attrelid = conrelid AND attnum = number"
            " WHERE conrelid = %s::regclass AND contype = 'p'",
            [table.table],
        ).fetchone()
        exists = connection.execute("SELECT to_regclass(%s)", [f"{table.table}_history"]).fetchone()
    assert key == (list(table.key),)
    assert (exists != (None,)) == table.history
    if table.history:
        assert relation(url, f"{table.table}_history") == [
            *declared(table),
            ("superseded_at", "timestamp with time zone", False),
        ]


@pytest.mark.parametrize(
    "name", ["ohlcv", "indicators", "features", "regime_predictions", "state_vectors"]
)
def test_views_over_all_timeframes(migrated_database_url: str, name: str) -> None:
    view = [(column, kind) for column, kind, _ in relation(migrated_database_url, name)]
    wide = [(column, kind) for column, kind, _ in relation(migrated_database_url, f"{name}_1d")]
    assert view == [("timeframe", "text"), *wide]


def row_of(table: TableSchema, **values: object) -> dict[str, object]:
    """A row that the table takes."""
    plain = {
        "text": "x",
        "double precision": 0.5,
        "bigint": 1,
        "boolean": True,
        "timestamp with time zone": "2020-01-02 00:00+00",
        "text[]": ["x"],
        "jsonb": "{}",
    }
    allowed = {"availability_basis": "assumed", "channel": "news", "kind": "split"}
    allowed |= {"label": "neutral", "regime": "trend", "acquired_disposed": "A", **table.constants}
    columns = (*table.columns, *(Column(n, table.columns[0].dtype, "") for n in table.audit))
    types = {c.name: plain[c.sql_type] for c in columns}
    types[table.audit[0]] = plain["timestamp with time zone"]
    return {**types, **{k: v for k, v in allowed.items() if k in types}, **values}


def insert(connection: psycopg.Connection, table: TableSchema, **values: object) -> None:
    row = row_of(table, **values)
    connection.execute(
        f"INSERT INTO {table.table} ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})",
        list(row.values()),
    )


@pytest.mark.parametrize(
    ("asset", "column"),
    [
        *((asset, "availability_basis") for asset in TABLES),
        ("news", "channel"),
        ("sentiment_scores", "channel"),
        ("sentiment_scores", "label"),
        ("corporate_actions", "kind"),
        ("insider_transactions", "acquired_disposed"),
        ("regime_predictions_1d", "regime"),
    ],
)
def test_enumerations_are_closed(migrated_database_url: str, asset: str, column: str) -> None:
    with psycopg.connect(migrated_database_url, autocommit=True) as connection:
        insert(connection, TABLES[asset])
        connection.execute(f"DELETE FROM {TABLES[asset].table}")
        with pytest.raises(psycopg.errors.CheckViolation):
            insert(connection, TABLES[asset], **{column: "perhaps"})


def test_long_view_has_one_row_per_value(migrated_database_url: str) -> None:
    with psycopg.connect(migrated_database_url) as connection:
        connection.execute("ALTER TABLE features_1d ADD rsi_7__v2 double precision")
        connection.execute(
            "INSERT INTO features_1d (symbol, time, available_at, availability_basis, returns_1d,"
            " volatility_20d, rsi_7__v2, computed_at, run_id) VALUES ('1', '2020-01-02Z',"
            " '2020-01-02 21:00Z', 'assumed', 0.1, null, -1e-300, '2020-01-03Z', '7')"
        )
        connection.execute(
            "INSERT INTO indicators_1d (symbol, time, available_at, availability_basis, sma_20,"
            " computed_at, run_id) VALUES ('1', '2020-01-02Z', '2020-01-02 21:00Z', 'assumed',"
            " 0.30000000000000004, '2020-01-03Z', '7')"
        )
        others = [timeframe for timeframe in TIMEFRAMES if timeframe != DAILY]
        for timeframe in others:
            for table, name in (("features", "returns_1"), ("indicators", "sma_20")):
                connection.execute(
                    f"INSERT INTO {table}_{timeframe} (symbol, time, available_at,"
                    f" availability_basis, session, {name}, computed_at, run_id) VALUES ('2',"
                    " '2020-01-02 20:59Z', '2020-01-02 21:00Z', 'assumed', '2020-01-02', 0.5,"
                    " '2020-01-03Z', '7')"
                )
        rows = connection.execute(
            "SELECT ticker, feature_name, value, version, as_of_timestamp::text,"
            " calculated_at::date, timeframe FROM feature_values ORDER BY ticker, feature_name"
        ).fetchall()
        columns = connection.execute("SELECT * FROM feature_values LIMIT 0").description
    moment = ("2020-01-02 21:00:00+00", date(2020, 1, 3))
    assert rows[:3] == [
        ("1", "returns_1d", 0.1, 1, *moment, DAILY),
        ("1", "rsi_7", -1e-300, 2, *moment, DAILY),
        ("1", "sma_20", 0.30000000000000004, 1, *moment, DAILY),
    ]
    assert sorted(rows[3:]) == sorted(
        ("2", name, 0.5, 1, *moment, timeframe)
        for timeframe in others
        for name in ("returns_1", "sma_20")
    )
    assert columns[-1].name == "timeframe"


BARS = (
    "INSERT INTO ohlcv_1d SELECT 's' || s, d, d, 'assumed', 1, 1, 1, 1, 1, null, 'x', d, 'r'"
    " FROM generate_series('2002-08-01Z'::timestamptz, '2003-01-31Z', '1 day') d,"
    " generate_series(1, 1000) s"
)
ONE_DAY = "SELECT * FROM ohlcv_1d WHERE time >= '2002-10-01Z' AND time < '2002-10-02Z'"
NEWEST = (
    "SELECT b.* FROM unnest('{s1,s2}'::text[]) s (symbol) CROSS JOIN LATERAL (SELECT * FROM"
    " ohlcv_1d WHERE symbol = s.symbol AND available_at <= '2002-12-01Z'"
    " ORDER BY time DESC LIMIT 1) b"
)


def plan(connection: psycopg.Connection, query: str) -> str:
    connection.execute("ANALYZE ohlcv_1d")
    return "\n".join(line for (line,) in connection.execute(f"EXPLAIN {query}"))


def test_plans_on_plain_postgresql(migrated_database_url: str) -> None:
    with psycopg.connect(migrated_database_url) as connection:
        connection.execute(BARS)
        connection.execute("SELECT brin_summarize_new_values('ohlcv_1d_time')")
        assert "Bitmap Index Scan on ohlcv_1d_time" in plan(connection, ONE_DAY)
        newest = plan(connection, NEWEST)
        assert "Index Scan Backward using ohlcv_1d_pkey" in newest
        assert "Sort" not in newest


def test_two_at_once_share_the_work(database_url: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(migrate, [database_url] * 3))
    assert sorted(done) == [[], [], NAMES]
    assert left_to_apply(database_url) == []


def test_a_migration_that_does_not_end_is_named(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "_LOCK_WAIT", "50ms")
    with psycopg.connect(database_url) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [migrations._LOCK])
        with pytest.raises(DatabaseError, match="another process has been migrating for 50ms"):
            migrate(database_url)
    assert migrate(database_url) == NAMES


def statements() -> int:
    """How many statements the migrations have."""
    return sum(
        len(sqlparse.split((migrations.SQL / f"{name}.sql").read_text("utf-8"))) for name in NAMES
    )


def test_killed_in_each_statement_and_run_again_is_as_if_never_killed(
    database_url: str, migrated_database_url: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DIE, database_url],
        capture_output=True,
        text=True,
        check=False,
        cwd=migrations.SQL.parent,
    )
    assert done.returncode == 0, done.stderr
    left = [line.split() for line in done.stdout.splitlines()]
    assert all(waiting == NAMES[len(NAMES) - len(waiting) :] for waiting in left)
    assert len(left) > statements()
    assert left_to_apply(database_url) == []
    assert contents(database_url) == contents(migrated_database_url)


def plain_row(connection: psycopg.Connection, table: str, number: int) -> None:
    """One row into a table, by the types of its columns and what its constraints ask for."""
    by_type = {
        "text": f"x{number}",
        "character varying": f"x{number}",
        "double precision": number / 100,
        "numeric": number,
        "bigint": number,
        "integer": number,
        "boolean": number % 2 == 0,
        "timestamp with time zone": f"2020-01-{number:02} 01:00+00",
        "date": f"2020-01-{number:02}",
        "ARRAY": [f"x{number}"],
        "jsonb": "{}",
        "bytea": bytes([number]) * 32,
        "uuid": f"{number:032}",
    }
    allowed = {
        "availability_basis": "assumed",
        "channel": "news",
        "kind": "split",
        "order_type": "limit",
        "label": "neutral",
        "regime": "trend",
        "acquired_disposed": "A",
        "side": "buy",
        "broker": "ibkr",
        "severity": "info",
        "regime_filter": ["trend"],
    }
    statuses = {"partition_ledger": "written", "partition_exceptions": "failed"}
    columns = connection.execute(
        "SELECT column_name, data_type FROM information_schema.columns"
        " WHERE table_schema || '.' || table_name = %s AND is_generated = 'NEVER'"
        " AND is_identity = 'NO' AND (is_nullable = 'NO' OR column_default IS NULL)",
        [table],
    ).fetchall()
    row = {name: allowed.get(name, by_type[kind]) for name, kind in columns}
    if "status" in row:
        row["status"] = statuses.get(table.removeprefix("public."), "filled")
    connection.execute(
        f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})"
        " ON CONFLICT DO NOTHING",
        list(row.values()),
    )


def data_tables(connection: psycopg.Connection) -> list[str]:
    """Tables that hold rows, of whatever schema, but yoyo's own and those that migrations fill."""
    return [
        name
        for (name,) in connection.execute(
            "SELECT relnamespace::regnamespace || '.' || relname FROM pg_class"
            " WHERE relkind IN ('r', 'p') AND NOT relispartition"
            " AND relnamespace::regnamespace::text IN ('public', 'trading', 'config', 'audit')"
            " AND relname NOT LIKE '%yoyo%' AND relname <> 'storage_policies' ORDER BY 1"
        )
    ]


def rows_by_table(connection: psycopg.Connection) -> dict[str, list[dict[str, object]]]:
    return {
        name: [row for (row,) in connection.execute(f"SELECT to_jsonb(t) FROM {name} AS t")]
        for name in data_tables(connection)
    }


def assert_holds(
    now: dict[str, list[dict[str, object]]], before: dict[str, list[dict[str, object]]]
) -> None:
    """Each earlier row is there, as it was; it may have got more columns."""
    for table, rows in before.items():
        for row in rows:
            assert any(row == {name: held.get(name) for name in row} for held in now[table]), row


def test_rows_of_every_earlier_version_arrive_at_the_newest(
    database_url: str, migrated_database_url: str
) -> None:
    # A row into each table at each version: those of the first pass through all later migrations,
    # those of the second through all but one, ...
    before: dict[str, list[dict[str, object]]] = {}
    with migrations._session(database_url) as connection:
        backend = migrations._Backend(connection)
        for number, migration in enumerate(backend.to_apply(migrations._migrations()), start=1):
            backend.apply_one(migration)
            assert_holds(rows_by_table(connection), before)
            for table in data_tables(connection):
                plain_row(connection, table, number)
            before = rows_by_table(connection)
            assert all(before.values())
    assert len(before["public.ohlcv_1d"]) == len(NAMES)
    assert migrate(database_url) == []
    with psycopg.connect(database_url) as connection:
        assert rows_by_table(connection) == before
    head, fresh = contents(database_url), contents(migrated_database_url)
    del head["sequences"], fresh["sequences"]
    assert head == fresh


def test_a_migration_takes_as_long_as_it_takes(database_url: str) -> None:
    limits = "SELECT current_setting('statement_timeout'), current_setting('lock_timeout')"
    with migrations._session(database_url) as connection:
        assert connection.execute(limits).fetchone() == ("0", "2min")
        assert connection.deadline_s is None


def test_trades_are_kept_for_ever(database_url: str) -> None:
    """Their summary begins anew from the first of them at each refresh."""
    keep = "UPDATE storage_policies SET retention = '{}' WHERE relation = 'trading.trades'"
    with migrations._session(database_url) as connection:
        backend = migrations._Backend(connection)
        for migration in backend.to_apply(migrations._migrations()):
            if migration.id < "0017":
                backend.apply_one(migration)
        connection.execute(keep.format("4 years"))
    migrate(database_url)
    with psycopg.connect(database_url) as connection:
        query = "SELECT retention FROM storage_policies WHERE relation = 'trading.trades'"
        assert connection.execute(query).fetchone() == (None,)
        with pytest.raises(psycopg.errors.CheckViolation, match="storage_policies_trades"):
            connection.execute(keep.format("4 years"))


def test_a_deadlock_with_a_background_job_is_tried_again(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(database_url)
    (tmp_path / "crossing.sql").write_text(
        "LOCK TABLE ohlcv_1d IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(0.3);"
        "LOCK TABLE documents IN ACCESS EXCLUSIVE MODE"
    )
    monkeypatch.setattr(migrations, "SQL", tmp_path)
    # Whoever waits longer than that looks for a deadlock, and is its victim: we are.
    with (
        psycopg.connect(database_url) as job,
        psycopg.connect(database_url, options="-c deadlock_timeout=50ms") as ours,
        ThreadPoolExecutor(1) as pool,
    ):
        job.execute("SET deadlock_timeout = '1min'; LOCK TABLE documents")
        applied = pool.submit(migrations._apply, ours, "crossing.sql")
        until(lambda: _locked(database_url, "ohlcv_1d"), "the lock was never taken")
        job.execute("LOCK TABLE ohlcv_1d")
        job.rollback()
        applied.result(30)


def _locked(url: str, table: str) -> bool:
    with psycopg.connect(url) as link:
        return bool(
            link.execute(
                "SELECT count(*) FROM pg_locks WHERE relation = %s::regclass AND granted"
                " AND mode = 'AccessExclusiveLock'",
                [table],
            ).fetchone()[0]
        )


def test_errors_name_the_database_and_not_the_password(database_url: str) -> None:
    wrong = database_url.replace("@", "hunter2@")
    for function in (migrate, left_to_apply):
        with pytest.raises(DatabaseError) as raised:
            function(wrong)
        line = str(raised.value)
        assert "password authentication failed" in line
        assert "hunter2" not in line
        assert "\n" not in line


def test_a_missing_sql_directory_is_named(
    database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    monkeypatch.setattr(migrations, "SQL", tmp_path)
    with pytest.raises(DatabaseError, match=str(tmp_path)):
        migrate(database_url)


def test_plain_postgresql_says_so_in_one_line(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, migrations.__name__):
        migrate(database_url)
    about = [r.getMessage() for r in caplog.records if "TimescaleDB" in r.getMessage()]
    assert len(about) == 1
    assert "plain tables" in about[0]


@pytest.mark.parametrize("version", ["2.9.3", "2.28.2", "1.7.5", "2.28"])
def test_old_timescaledb_is_known(version: str) -> None:
    assert migrations.too_old(version)


@pytest.mark.parametrize("version", ["2.28.3", "2.29.0", "2.100.0-dev", "3.0.0"])
def test_new_timescaledb_is_taken(version: str) -> None:
    assert not migrations.too_old(version)


@pytest.fixture
def timescaledb_database(timescaledb_url: str) -> Iterator[str]:
    """An empty database on the TimescaleDB server."""
    with created(timescaledb_url) as url:
        yield url


def hypertables(url: str) -> dict[str, str]:
    with psycopg.connect(url) as connection:
        return dict(
            connection.execute(
                "SELECT hypertable_name, column_name FROM timescaledb_information.dimensions"
                " WHERE hypertable_schema <> '_timescaledb_internal'"
            ).fetchall()
        )


def wanted(url: str) -> dict[str, str]:
    with psycopg.connect(url) as connection:
        return dict(
            connection.execute(
                "SELECT split_part(relation, '.', -1), time_column FROM storage_policies"
                " WHERE to_regclass(relation) IS NOT NULL"
            ).fetchall()
        )


@pytest.mark.timescaledb
def test_hypertables_without_time_index(timescaledb_database: str) -> None:
    assert migrate(timescaledb_database) == NAMES
    assert migrate(timescaledb_database) == []
    made = hypertables(timescaledb_database)
    assert made == wanted(timescaledb_database)
    assert (made["ohlcv_1d"], made["documents"]) == ("time", "available_at")
    with psycopg.connect(timescaledb_database) as connection:
        indexes = connection.execute(
            "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'"
        ).fetchall()
    bars = [name for name, column in made.items() if column == "time"]
    assert sorted(name for name, _ in indexes if name in bars) == sorted(bars)  # the keys alone


@pytest.mark.timescaledb
def test_plans_on_timescaledb(timescaledb_database: str) -> None:
    migrate(timescaledb_database)
    with psycopg.connect(timescaledb_database) as connection:
        connection.execute(BARS)
        chunks = connection.execute("SELECT count(*) FROM show_chunks('ohlcv_1d')").fetchone()
        assert chunks == (2,)
        one_day = plan(connection, ONE_DAY)
        assert one_day.count("_chunk") == one_day.count(" on _hyper") == 1
        assert "Index Scan Backward" in plan(connection, NEWEST)


def migrate_plainly(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where TimescaleDB is not there yet."""
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "_apply_timescaledb", lambda _: None)
        migrate(url)


@pytest.mark.timescaledb
def test_timescaledb_that_came_later_takes_the_rows_along(
    timescaledb_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate_plainly(timescaledb_database, monkeypatch)
    with psycopg.connect(timescaledb_database) as connection:
        for year in (2000, 2010, 2020):
            insert(connection, TABLES["ohlcv_1d"], time=f"{year}-06-01Z")
        insert(connection, TABLES["news"])
    assert migrate(timescaledb_database) == []
    assert hypertables(timescaledb_database) == wanted(timescaledb_database)
    with psycopg.connect(timescaledb_database) as connection:
        assert connection.execute("SELECT count(*) FROM ohlcv").fetchone() == (3,)
        assert connection.execute("SELECT count(*) FROM documents").fetchone() == (1,)
        chunks = connection.execute("SELECT count(*) FROM show_chunks('ohlcv_1d')").fetchone()
    assert chunks == (3,)


@pytest.mark.timescaledb
def test_an_earlier_version_on_timescaledb_arrives_at_the_newest(
    timescaledb_database: str,
) -> None:
    # Before there were policies, eight tables were hypertables, their chunks a year long.
    earlier = NAMES[: NAMES.index("0013_timeframes")]
    bars = ("ohlcv", "indicators", "features", "regime_predictions", "state_vectors")
    events = ("documents", "sentiment_scores", "macro_indicators")
    columns = {f"{name}_1d": "time" for name in bars} | dict.fromkeys(events, "available_at")
    with migrations._session(timescaledb_database) as connection:
        backend = migrations._Backend(connection)
        for migration in backend.to_apply(migrations._migrations()):
            if migration.id in earlier:
                backend.apply_one(migration)
        connection.execute("CREATE EXTENSION timescaledb")
        for table, column in columns.items():
            connection.execute(
                "SELECT create_hypertable(%s, by_range(%s, interval '365 days'),"
                " create_default_indexes => false)",
                [table, column],
            )
        for number in (1, 2, 3):
            for table in data_tables(connection):
                plain_row(connection, table, number)
        before = rows_by_table(connection)
    assert migrate(timescaledb_database) == NAMES[len(earlier) :]
    assert hypertables(timescaledb_database) == wanted(timescaledb_database)
    with psycopg.connect(timescaledb_database) as connection:
        assert_holds(rows_by_table(connection), before)


@pytest.mark.timescaledb
def test_a_table_that_cannot_be_moved_costs_no_other(
    timescaledb_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate_plainly(timescaledb_database, monkeypatch)
    with psycopg.connect(timescaledb_database) as other:
        other.execute("SELECT count(*) FROM trading.trades")
        with monkeypatch.context() as patched:
            patched.setattr(migrations, "_LOCK_WAIT", "200ms")
            with pytest.raises(DatabaseError, match="lock timeout"):
                migrate(timescaledb_database)
    others = wanted(timescaledb_database)
    del others["trades"]
    assert hypertables(timescaledb_database) == others
    migrate(timescaledb_database)
    assert hypertables(timescaledb_database) == wanted(timescaledb_database)


@pytest.mark.timescaledb
def test_an_extension_that_is_too_old_is_refused(
    timescaledb_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(timescaledb_database) as connection:
        connection.execute("CREATE EXTENSION timescaledb")
    monkeypatch.setattr(migrations, "MINIMUM_TIMESCALEDB", (99, 0, 0))
    with pytest.raises(DatabaseError, match=r"99\.0\.0.*ALTER EXTENSION"):
        migrate(timescaledb_database)


@pytest.mark.timescaledb
def test_a_package_that_is_too_old_is_left_alone(
    timescaledb_database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(migrations, "MINIMUM_TIMESCALEDB", (99, 0, 0))
    assert migrate(timescaledb_database) == NAMES
    assert "older than 99.0.0: plain tables" in caplog.text
    with psycopg.connect(timescaledb_database) as connection:
        query = "SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'"
        assert connection.execute(query).fetchone() == (0,)
