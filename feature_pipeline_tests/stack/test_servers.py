"""The embedded servers: start, stop, reuse, repair, and secrets that stay secret."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from feature_pipeline.errors import StackError
from feature_pipeline.settings import Settings
from feature_pipeline.stack import Stack, processes
from feature_pipeline.stack.postgres import EmbeddedPostgres
from feature_pipeline.stack.redis import EmbeddedRedis
from feature_pipeline_tests.stack.helpers import answers, everything_of, until


def test_starts_answers_stops_and_keeps_its_data(make_home):
    home = make_home()
    with Stack(Settings(home=home)) as stack:
        first = (stack.database_url, stack.redis_url)
        assert answers(*first)
        with psycopg.connect(stack.database_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
        with redis.Redis.from_url(stack.redis_url) as client:
            client.set("kept", "42")
    assert everything_of(home) == []
    with Stack(Settings(home=home)) as stack:
        assert (stack.database_url, stack.redis_url) == first, "ports and passwords are kept"
        with psycopg.connect(stack.database_url) as connection:
            assert connection.execute("SELECT value FROM kept").fetchone() == (42,)
        with redis.Redis.from_url(stack.redis_url) as client:
            assert client.get("kept") == b"42"


def test_it_is_what_was_asked_for(make_home):
    with Stack(Settings(home=make_home())) as stack:
        with psycopg.connect(stack.database_url) as connection:
            names = ["listen_addresses", "unix_socket_directories", "TimeZone", "server_encoding"]
            found = [connection.execute(f"SHOW {name}").fetchone()[0] for name in names]
            assert found == ["127.0.0.1", "", "UTC", "UTF8"]
            methods = connection.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules")
            assert methods.fetchall() == [("scram-sha-256",)]
            databases = connection.execute("SELECT datname FROM pg_database").fetchall()
            assert {("feature_pipeline",), ("dagster",)} <= set(databases)
        with redis.Redis.from_url(stack.redis_url) as client:
            wanted = {
                "maxmemory": str(512 * 1024**2),
                "maxmemory-policy": "allkeys-lru",
                "appendonly": "yes",
                "bind": "127.0.0.1",
            }
            assert wanted == {name: client.config_get(name)[name] for name in wanted}
        for process in everything_of(stack.home):
            for listening in process.net_connections():
                if listening.status == psutil.CONN_LISTEN:
                    assert listening.laddr.ip == "127.0.0.1"


def test_a_second_start_reuses_the_running_servers(make_home):
    settings = Settings(home=make_home())
    with Stack(settings) as first:
        with Stack(settings) as second:
            assert (second.database_url, second.redis_url) == (first.database_url, first.redis_url)
            assert not second.postgres.owned
            assert not second.redis.owned
        assert answers(first.database_url, first.redis_url), "an attached one leaves them alone"


def test_two_homes_side_by_side(make_home):
    with Stack(Settings(home=make_home())) as one, Stack(Settings(home=make_home())) as two:
        ports = {one.postgres.port, one.redis.port, two.postgres.port, two.redis.port}
        assert len(ports) == 4
        assert one.postgres.password != two.postgres.password
        assert answers(one.database_url, one.redis_url)
        assert answers(two.database_url, two.redis_url)
        assert one.postgres.directory != two.postgres.directory


def test_a_taken_port_is_chosen_anew(make_home):
    settings = Settings(home=make_home())
    with Stack(settings) as stack:
        before = (stack.postgres.port, stack.redis.port)
        password = stack.postgres.password
    with socket.socket() as one, socket.socket() as two:
        for taken, port in zip((one, two), before, strict=True):
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", port))
            taken.listen()
        with Stack(settings) as stack:
            assert stack.postgres.port not in before
            assert stack.redis.port not in before
            assert stack.postgres.password == password
            assert answers(stack.database_url, stack.redis_url)


def test_a_port_taken_between_the_look_and_the_start(make_home, monkeypatch):
    """The look says free, the server finds it taken, another one is chosen."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answers_given = iter([port])
        really_free = processes.free_port
        monkeypatch.setattr(processes, "free_port", lambda: next(answers_given, really_free()))
        server = EmbeddedRedis(make_home())
        server.start()
        try:
            assert server.port != port
            server.check()
        finally:
            server.stop()


def test_a_half_finished_initdb_is_done_again(make_home):
    home = make_home()
    server = EmbeddedPostgres(home)
    server.start()
    base = server.directory.parent
    server.stop()
    # What an initdb killed in the middle leaves: a draft, and no data directory.
    server.directory.rename(base / "postgres.draft.killed")
    (base / "postgres.draft.killed" / "PG_VERSION").unlink()
    again = EmbeddedPostgres(home)
    again.start()
    try:
        again.check()
        assert not list(base.glob("postgres.draft.*"))
    finally:
        again.stop()


def test_a_foreign_directory_is_not_touched(make_home):
    home = make_home()
    server = EmbeddedPostgres(home)
    server.start()
    server.stop()
    (server.directory / "PG_VERSION").unlink()
    with pytest.raises(StackError, match="not a PostgreSQL data directory"):
        EmbeddedPostgres(home).start()
    assert (server.directory / "global").is_dir()


def test_a_stale_pid_file_that_names_a_stranger(make_home):
    """After a reboot the number in postmaster.pid may belong to anybody."""
    home = make_home()
    server = EmbeddedPostgres(home)
    server.start()
    pid_file = server.directory / "postmaster.pid"
    words = pid_file.read_text().splitlines()
    server.stop()
    with subprocess.Popen(["sleep", "1000"], user=_owner_of(server.directory)) as stranger:
        words[0] = str(stranger.pid)
        pid_file.write_text("\n".join(words) + "\n")
        os.chown(pid_file, _owner_of(server.directory), -1)
        again = EmbeddedPostgres(home)
        again.start()
        try:
            again.check()
            assert stranger.poll() is None
        finally:
            again.stop()
            stranger.kill()


def _owner_of(directory: Path) -> int:
    return directory.stat().st_uid


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedRedis])
def test_a_server_that_dies_comes_back_at_the_same_address(make_home, kind):
    server = kind(make_home())
    server.start()
    try:
        url, pid = server.url, server.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: server._child.poll() is not None, "it did not die")
        server.ensure()
        assert server.url == url
        assert server.pid != pid
        server.check()
    finally:
        server.stop()


def test_an_attached_stack_takes_over_when_the_owner_leaves(make_home):
    settings = Settings(home=make_home())
    owner, other = Stack(settings).__enter__(), Stack(settings).__enter__()
    try:
        address = other.database_url
        owner.stop()
        other.ensure()
        assert other.postgres.owned
        assert other.database_url == address
        assert answers(other.database_url, other.redis_url)
    finally:
        other.stop()
        owner.stop()


def test_a_server_that_cannot_start_says_why_in_one_line(make_home):
    server = EmbeddedPostgres(make_home(), options={"shared_buffers": "nonsense"})
    with pytest.raises(StackError) as caught:
        server.start()
    message = str(caught.value)
    assert "shared_buffers" in message
    assert "\n" not in message
    assert not server.running


def test_secrets_are_private_files_and_nowhere_else(make_home):
    settings = Settings(home=make_home())
    with Stack(settings) as stack:
        secrets = (stack.postgres.password, stack.redis.password)
        assert all(len(secret) >= 32 for secret in secrets)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(stack.database_url.replace(secrets[0], "wrong"))
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=stack.redis.port).ping()
        for process in everything_of(stack.home):
            shown = Path(f"/proc/{process.pid}/cmdline").read_text()
            assert not any(secret in shown for secret in secrets)
        for path in stack.home.rglob("*"):
            if path.is_file() and path.suffix == ".json":
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
            elif path.is_file() and path.stat().st_size < 1_000_000:
                assert not any(secret in path.read_text(errors="replace") for secret in secrets)
        shown = f"{stack.addresses()} {settings!r}"
        assert not any(secret in shown for secret in secrets)


def test_a_wrong_password_in_the_state_file_is_one_line(make_home):
    home = make_home()
    with Stack(Settings(home=home)):
        pass
    state = processes.read_private(home / "postgres.json")
    processes.write_private(home / "postgres.json", state | {"password": "somethingelse"})
    with pytest.raises(StackError, match="refuses the password") as caught:
        EmbeddedPostgres(home).start()
    assert "somethingelse" not in str(caught.value)
    until(lambda: everything_of(home) == [], "the server was left behind")


def test_a_lost_state_file_gives_the_data_back_to_its_owner(make_home):
    """`git clean` takes home; as root the data lies elsewhere."""
    home = make_home()
    with Stack(Settings(home=home)) as stack, psycopg.connect(stack.database_url) as connection:
        before = stack.postgres.password
        connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
    (home / "postgres.json").unlink()
    with Stack(Settings(home=home)) as stack:
        assert stack.postgres.password != before
        with psycopg.connect(stack.database_url) as connection:
            assert connection.execute("SELECT value FROM kept").fetchone() == (42,)
        assert stack.postgres.password not in (home / "log" / "postgres.log").read_text()


def test_modes_of_what_is_not_ours_stay(make_home):
    home = make_home()
    home.chmod(0o751)
    with Stack(Settings(home=home)):
        assert stat.S_IMODE(home.stat().st_mode) == 0o751


def test_given_servers_are_used_and_none_is_started(make_home, database_url, redis_url):
    home = make_home()
    with Stack(Settings(home=home, database_url=database_url, redis_url=redis_url)) as stack:
        assert (stack.database_url, stack.redis_url) == (database_url, redis_url)
        assert list(home.iterdir()) == []
        assert stack.dagster_database_url.startswith("postgresql+psycopg2://")
        assert stack.dagster_database_url.endswith("?options=-csearch_path%3Ddagster")


def test_the_environment_of_children(make_home, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    with Stack(Settings(home=make_home())) as stack:
        environment = stack.environment()
        assert "PYTHONDONTWRITEBYTECODE" not in environment
        assert environment["FEATURE_PIPELINE_DATABASE_URL"] == stack.database_url
        assert environment["FEATURE_PIPELINE_REDIS_URL"] == stack.redis_url
        assert environment["FEATURE_PIPELINE_DAGSTER_DATABASE_URL"].startswith(
            "postgresql+psycopg2://"
        )
        assert (Path(environment["DAGSTER_HOME"]) / "dagster.yaml").is_file()


def test_delete_removes_what_is_ours_and_names_what_is_not(make_home):
    home = make_home()
    stack = Stack(Settings(home=home))
    with stack:
        data = stack.postgres.directory
        with pytest.raises(StackError, match="still runs"):
            Stack(Settings(home=home)).delete()
    (home / "mine.txt").write_text("kept")
    assert stack.delete() == [home / "mine.txt"]
    assert not data.exists()
    (home / "mine.txt").unlink()
    assert stack.delete() == []
    assert not home.exists()
