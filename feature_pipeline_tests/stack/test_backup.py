"""Backup and restore, word by word as docs/how-to/backup.md has it: equal reads, and Redis anew."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import polars as pl
import psycopg
import pytest
import redis

from feature_pipeline.errors import StackError
from feature_pipeline.online.keys import SENTINEL
from feature_pipeline.serving.lookup import Moment, series
from feature_pipeline.serving.names import by_bar, every_name
from feature_pipeline.stack import backup as room
from feature_pipeline.stack import doctor
from feature_pipeline.storage import retention
from feature_pipeline.storage.database import Database
from feature_pipeline.storage.migrations import ROLES, migrate
from feature_pipeline.storage.usage import partitions
from feature_pipeline_tests import TIMESCALEDB_VARIABLE
from feature_pipeline_tests.assets.support import Graph
from feature_pipeline_tests.assets.world import END, START, midnight
from feature_pipeline_tests.cli.conftest import Shell, invoke, new_shell  # noqa: F401
from feature_pipeline_tests.databases import created
from feature_pipeline_tests.roles import as_user
from feature_pipeline_tests.storage.test_roles import BAR, refused

PAGES = Path(__file__).parents[2] / "docs/how-to"


def blocks(language: str, page: str = "backup") -> list[list[str]]:
    """The lines of the page's blocks of commands."""
    text = (PAGES / f"{page}.md").read_text()
    found = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    return [block.strip().splitlines() for block in found]


def reads(graph: Graph) -> dict[str, pl.DataFrame]:
    """Everything that can be read, now and at past moments, and what bookkeeping says."""
    found = {asset: graph.store.read(asset) for asset in graph.store.tables}
    places = [p for p in every_name() if p.asset in by_bar()][:12]
    for as_of in (midnight(START), midnight(END)):
        found[str(as_of)] = series(
            graph.store, "AAA", places, (START, END), Moment(as_of), graph.scorer
        )
    moment = graph.query("SELECT max(superseded_at) AS t FROM ohlcv_1d_history")["t"][0]
    found["known"] = graph.store.read("ohlcv_1d", as_known_at=moment or datetime.now(UTC))
    for table in ("partition_ledger", "partition_exceptions", "quarantine", "ohlcv_1d_history"):
        found[table] = graph.query(f"SELECT * FROM {table} t ORDER BY t::text")
    return found


def keys(url: str) -> dict[bytes, object]:
    """What Redis holds, less the sentinel, which each rebuild names anew."""
    with redis.Redis.from_url(url) as client:
        return {
            key: client.hgetall(key) if client.type(key) == b"hash" else client.get(key)
            for key in client.scan_iter()
            if key != SENTINEL.encode()
        }


def on(graph: Graph, url: str) -> Graph:
    return replace(graph, url=url)


@pytest.fixture(scope="module")
def restated(new_ran, world) -> Iterator[Graph]:
    """A graph with a correction in its history."""
    with new_ran() as graph:
        bar = (pl.col("symbol") == "AAA") & (pl.col("time") == midnight(END).replace(day=12))
        graph.source.world = world.but(
            bars=world.bars.with_columns(volume=pl.when(bar).then(1.0).otherwise("volume"))
        )
        graph.run(assets=["ohlcv_1d"])
        yield graph


def test_as_the_page_says(restated, new_shell, postgres_url, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (dump,), commands, _ = blocks("sh")
    assert commands == [
        "feature-pipeline restore features.dump", "feature-pipeline online rebuild --force",
    ]  # fmt: skip
    shell: Shell = new_shell(restated)
    shell.says("online", "rebuild", "--force")
    redis_url = shell.variables["FEATURE_PIPELINE_REDIS_URL"]
    held, served = reads(restated), keys(redis_url)
    assert len(served) > 10
    assert "features.dump: " in shell.says(*shlex.split(dump)[1:])
    assert (tmp_path / "features.dump").stat().st_mode & 0o777 == 0o600
    assert "features.dump exists" in shell.error(*shlex.split(dump)[1:])
    assert "not empty" in shell.error(*shlex.split(commands[0])[1:])

    with created(postgres_url) as url:
        again = on(restated, url)
        new: Shell = new_shell(again)
        # What was published after the backup is newer, and wrong.
        with redis.Redis.from_url(redis_url) as client:
            for key in client.scan_iter("features:*"):
                client.hset(key, mapping={"revision": 10**12, "rsi_14": "50"})
        assert keys(redis_url) != served
        said = new.says(*shlex.split(commands[0])[1:])
        rows = partitions(restated.store.database)["rows"].sum()
        assert f"{rows:,} rows" in said
        new.says(*shlex.split(commands[1])[1:])
        found = reads(again)
        assert found.keys() == held.keys()
        for name, frame in held.items():
            assert found[name].equals(frame), name
        assert keys(redis_url) == served
        # The restored database is one to work on: nothing is to be done, and a run can be.
        assert again.pending("indicators_1d") == restated.pending("indicators_1d")
        token = "SELECT last_value FROM fencing_token"
        assert again.query(token).item() >= restated.query(token).item()
        again.close()


def test_by_hand(restated, postgres_url, tmp_path):
    """The page's blocks of programs, in a shell, in their order; not those for TimescaleDB."""
    dump, plain, *_ = blocks("bash")
    with created(postgres_url) as url:
        _by_hand([*dump, *plain], restated.url, url, tmp_path)
        again = on(restated, url)
        held, found = reads(restated), reads(again)
        assert all(found[name].equals(frame) for name, frame in held.items())
        again.close()


def _by_hand(lines: list[str], source: str, target: str, folder: Path) -> None:
    assert sum("feature-pipeline migrate" in line for line in lines) == 1
    _run([line for line in lines if "feature-pipeline" not in line], folder, source, target)
    migrate(target)


def _run(lines: list[str], folder: Path, source: str, target: str) -> None:
    wheel = room.wheel_binaries()
    major = room._major(source)
    programs = wheel if room._version(wheel / "pg_dump") == major else room._tool("pg_dump", major)
    variables = {
        **os.environ, "DATABASE": source, "DAGSTER": source, "EMPTY": target,
        "PATH": f"{programs if programs.is_dir() else programs.parent}:{os.environ['PATH']}",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-euc", "\n".join(lines)],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.timescaledb
def test_with_timescaledb(timescaledb_url, restated, tmp_path):
    """The command, and the page's programs: hypertables, policies and compressed chunks as well."""
    dump, _, hand, _ = blocks("bash")
    with created(timescaledb_url) as source, created(timescaledb_url) as first:
        migrate(source)
        graph = on(restated, source)
        graph.run()
        with graph.store.database.connection() as connection:
            connection.execute("SELECT compress_chunk(c) FROM show_chunks('ohlcv_1d') c LIMIT 2")
        held = reads(graph)
        assert held["ohlcv_1d"].height > 1000
        room.backup(source, tmp_path / "features.dump")
        with pytest.raises(StackError, match="is not empty"):
            room.restore(source, tmp_path / "features.dump")
        tool = room._tool("pg_restore", room._major(source))
        assert room._job_owners(tool, tmp_path / "features.dump") == set(ROLES[:2])
        assert room.restore(first, tmp_path / "features.dump")
        with created(timescaledb_url) as second:
            (tmp_path / "features.dump").unlink()
            _by_hand([*dump, *hand], source, second, tmp_path)
            for url in (first, second):
                again = on(graph, url)
                found = reads(again)
                for name, frame in held.items():
                    assert found[name].equals(frame), name
                for what in (_CHUNKS, _JOBS):
                    assert again.query(what).equals(graph.query(what)), what
                assert _retention(url) == {False}
                with psycopg.connect(url, autocommit=True) as link:
                    link.execute(
                        "UPDATE storage_policies SET retention = '3 years'"
                        " WHERE relation = 'sentiment_scores'"
                    )
                    link.execute("SELECT remove_retention_policy('documents')")
                    migrate(url)
                    assert _retention(url) == {False}
                    said = doctor.jobs(link)
                    assert "retention of" in said.found
                    (statement,) = (b[0] for b in blocks("sql"))
                    assert statement.rstrip(";") == retention.SWITCH_ON
                    link.execute(statement)
                    assert _retention(url) == {True}
                # And it can be written: not in TimescaleDB's restoring mode any more.
                again.run(assets=["ohlcv_1d"])
                again.close()
        graph.close()


def _retention(url: str) -> set[bool]:
    with psycopg.connect(url) as link:
        jobs = link.execute(
            "SELECT scheduled FROM timescaledb_information.jobs"
            " WHERE proc_name = 'policy_retention'"
        )
        return {scheduled for (scheduled,) in jobs}


_CHUNKS = (
    "SELECT hypertable_name, range_start, is_compressed FROM timescaledb_information.chunks"
    " ORDER BY 1, 2"
)
_JOBS = "SELECT proc_name, hypertable_name, config::text FROM timescaledb_information.jobs ORDER BY 1, 2, 3"  # noqa: E501


# -- with the users that docs/how-to/roles.md makes ------------------------------------------------


@contextmanager
def users(server: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A database made as the page says, migrated; and the address of each user."""
    tag = secrets.token_hex(6)
    first, second, *_ = [
        re.sub(r"\bpipeline_", f"user_{tag}_", "\n".join(block)).replace("'...'", f"'{tag}'")
        for block in blocks("sql", "roles")
    ]
    url = urlunsplit(urlsplit(server)._replace(path=f"/test_{tag}"))
    found = {
        name: as_user(url, f"user_{tag}_{name}", tag) for name in ("migrate", "run", "read", "duty")
    }
    with created(server) as other:
        migrate(other)  # makes the four roles, which stay
    first = first.replace("DATABASE feature_pipeline", f"DATABASE test_{tag}")
    with psycopg.connect(server, autocommit=True) as link:
        try:
            for statement in first.split(";"):
                link.execute(statement)
            # As `migrate` does where it makes the roles.
            link.execute(f"GRANT feature_pipeline_owner TO user_{tag}_migrate")
            migrate(found["migrate"])
            with psycopg.connect(url, autocommit=True) as own:
                own.execute(second)
            yield url, found
        finally:
            link.execute(f"DROP DATABASE IF EXISTS test_{tag} WITH (FORCE)")
            for address in found.values():
                link.execute(f"DROP ROLE IF EXISTS {urlsplit(address).username}")


@pytest.mark.parametrize(
    "server", ["postgres_url", pytest.param("timescaledb_url", marks=pytest.mark.timescaledb)]
)
def test_as_the_roles_page_says(server, request, tmp_path, monkeypatch):
    """The owner of the tables can; Dagster's tables stay with who runs Dagster, as they are."""
    server = request.getfixturevalue(server)
    monkeypatch.setenv("FEATURE_PIPELINE_HOME", str(tmp_path))
    monkeypatch.setenv("FEATURE_PIPELINE_REDIS_URL", "redis://127.0.0.1:1")
    with users(server) as (url, who):
        run = psycopg.connect(who["run"], autocommit=True)
        run.execute("CREATE TABLE dagster.runs (id serial PRIMARY KEY)")
        run.execute("INSERT INTO dagster.runs VALUES (7)")
        run.execute(BAR)
        run.close()
        monkeypatch.setenv("FEATURE_PIPELINE_DATABASE_URL", who["run"])
        monkeypatch.setenv("FEATURE_PIPELINE_OWNER_DATABASE_URL", who["migrate"])
        definer = ["SELECT audit.make_partitions()", "SELECT audit.detach_partition('x')"]
        if server == os.environ.get(TIMESCALEDB_VARIABLE):
            definer.append("SELECT config.set_job(1, false)")
        ours, all_of_it = tmp_path / "ours.dump", tmp_path / "all.dump"
        assert invoke("backup", str(ours)).returncode == 0
        room._call([room._tool("pg_dump", room._major(url)), "-Fc", f"--file={all_of_it}"], url)
        for file in (ours, all_of_it):
            with created(server) as bare:
                target = {name: _moved(address, bare) for name, address in who.items()}
                with psycopg.connect(bare, autocommit=True) as link:
                    migrates, runs = (urlsplit(who[n]).username for n in ("migrate", "run"))
                    link.execute(f"ALTER DATABASE {urlsplit(bare).path[1:]} OWNER TO {migrates}")
                    link.execute(f"CREATE SCHEMA dagster AUTHORIZATION {runs}")
                with psycopg.connect(target["run"]) as run:  # Dagster was started already
                    run.execute("CREATE TABLE dagster.runs (id serial PRIMARY KEY)")
                    run.execute("INSERT INTO dagster.runs VALUES (8)")
                monkeypatch.setenv("FEATURE_PIPELINE_DATABASE_URL", target["run"])
                monkeypatch.setenv("FEATURE_PIPELINE_OWNER_DATABASE_URL", target["migrate"])
                done = invoke("restore", str(file))
                if server == os.environ.get(TIMESCALEDB_VARIABLE):
                    assert "only a superuser can restore TimescaleDB" in done.stderr
                    monkeypatch.setenv("FEATURE_PIPELINE_OWNER_DATABASE_URL", bare)
                    done = invoke("restore", str(file))
                assert done.returncode == 0, done.stderr
                with psycopg.connect(target["run"]) as run:
                    assert run.execute("SELECT id FROM dagster.runs").fetchall() == [(8,)]
                    assert run.execute("SELECT symbol FROM ohlcv_1d").fetchall() == [("A",)]
                    run.execute("DELETE FROM ohlcv_1d")
                assert refused(target["read"], "DELETE FROM ohlcv_1d")
                for statement in definer:
                    assert refused(target["read"], statement), statement
                assert not refused(target["migrate"], "ALTER TABLE ohlcv_1d ADD mine int")


def test_what_dagster_keeps(postgres_url, tmp_path):
    *_, lines = blocks("bash")
    with users(postgres_url) as (_, who), created(postgres_url) as bare:
        target = _moved(who["run"], bare)
        with psycopg.connect(bare) as link:
            link.execute(f"CREATE SCHEMA dagster AUTHORIZATION {urlsplit(target).username}")
        with psycopg.connect(who["run"]) as run:
            run.execute("CREATE TABLE dagster.runs AS SELECT 7 AS id")
        _run(lines, tmp_path, who["run"], target)
        with psycopg.connect(target) as run:
            assert run.execute("DELETE FROM dagster.runs RETURNING id").fetchall() == [(7,)]


def _moved(address: str, to: str) -> str:
    return urlunsplit(urlsplit(address)._replace(path=urlsplit(to).path))


# -- what is refused, what is cleaned up ----------------------------------------------------------


def test_a_backup_that_fails_leaves_no_file(migrated_database_url, tmp_path, monkeypatch):
    file = tmp_path / "features.dump"
    monkeypatch.setattr(room, "_PLAIN", (*room._PLAIN, "--no-such-option"))
    with pytest.raises(StackError, match=r"pg_dump failed: .*no-such-option"):
        room.backup(migrated_database_url, file)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_backup_leaves_the_database_empty(database_url, tmp_path):
    file = tmp_path / "features.dump"
    with pytest.raises(StackError, match="there is no file"):
        room.restore(database_url, file)
    file.write_text("SELECT 1;")
    with pytest.raises(StackError, match="pg_restore failed"):
        room.restore(database_url, file)
    with psycopg.connect(database_url) as connection:
        assert connection.execute(room._THERE).fetchone() == (0,)


def test_a_broken_backup_leaves_the_database_empty(migrated_database_url, database_url, tmp_path):
    file = tmp_path / "features.dump"
    room.backup(migrated_database_url, file)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(StackError, match="pg_restore failed"):
        room.restore(database_url, file)
    with psycopg.connect(database_url) as connection:
        assert connection.execute(room._THERE).fetchone() == (0,)


def test_owners_of_jobs_are_made_or_named_before_anything_is_written(database_url):
    ours = [f"test_{secrets.token_hex(6)}" for _ in range(3)]
    weak = f"test_{secrets.token_hex(6)}"
    made = "SELECT rolname, rolcanlogin FROM pg_roles WHERE rolname = ANY(%s)"
    with psycopg.connect(database_url, autocommit=True) as link:
        try:
            link.execute(f"CREATE ROLE {weak} LOGIN PASSWORD 'weak'")
            with (
                Database(as_user(database_url, weak, "weak")) as database,
                pytest.raises(StackError, match=f"belong to {ours[0]}, .*CREATE ROLE {ours[0]}"),
            ):
                room._make_roles(database, {ours[0]}, ours)
            with Database(database_url) as database:
                with pytest.raises(StackError, match='belong to "no-such", '):
                    room._make_roles(database, {ours[0], '"no-such"'}, ours)
                assert link.execute(made, [ours]).fetchall() == []
                for _ in range(2):
                    room._make_roles(database, {ours[0], ours[2]}, ours)
            found = link.execute(made, [ours]).fetchall()
            assert dict(found) == {ours[0]: True, ours[2]: False}
        finally:
            for role in (weak, *ours):
                link.execute(f"DROP ROLE IF EXISTS {role}")


def test_the_program_of_the_servers_own_version_is_preferred(tmp_path, monkeypatch):
    for number in (15, 18):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "pg_dump").write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {number}.2'\n")
        (folder / "pg_dump").chmod(0o755)
    monkeypatch.setattr(room, "wheel_binaries", lambda: tmp_path / "18")
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / "15" / name))
    assert room._tool("pg_dump", 15).parent.name == "15"
    assert room._tool("pg_dump", 18).parent.name == "18"
    assert room._tool("pg_dump", 17).parent.name == "18"
    with pytest.raises(StackError, match="postgresql-client-99"):
        room._tool("pg_dump", 99)


def test_the_password_is_no_argument(migrated_database_url, tmp_path, monkeypatch):
    seen = []
    original = subprocess.run
    monkeypatch.setattr(
        room.subprocess, "run", lambda words, **k: seen.append(words) or original(words, **k)
    )
    room.backup(migrated_database_url, tmp_path / "features.dump")
    password = urlsplit(migrated_database_url).password
    assert password
    assert len(seen) >= 2
    assert password not in str(seen)
