"""The command line: up, down, run, migrate, doctor; errors in one line; nothing heavy at start."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import psycopg
import pytest

from feature_pipeline.settings import Settings
from feature_pipeline.stack import Stack, processes
from feature_pipeline_tests.cli.conftest import invoke
from feature_pipeline_tests.stack.helpers import (
    CLI,
    environment,
    everything_of,
    owner,
    servers,
    until,
)


def _run(home, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *words],
        env=environment(home, **{"COLUMNS": "200", "NO_COLOR": "1"} | variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def _look(home, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The same in this process: no server is started, or stopped."""
    plain = {"COLUMNS": "200", "NO_COLOR": "1", "FEATURE_PIPELINE_HOME": str(home)}
    return invoke(*words, **plain | variables)


def _error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("feature-pipeline: ")
    return line


def test_help_is_quick(make_home):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = _run(make_home(), "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    for command in ("up", "down", "run", "migrate", "doctor"):
        assert f" {command} " in done.stdout
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 0.5, f"{spent:.2f} s of CPU"


def test_help_imports_nothing_heavy():
    heavy = {"dagster", "polars", "pandas", "psycopg", "redis", "pydantic", "rich.table"}
    script = f"import sys, feature_pipeline.cli; sys.exit(repr({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip() == "set()"


def test_up_doctor_down(make_home):
    home = make_home()
    up = _run(home, "up")
    assert up.returncode == 0, up.stderr
    assert "PostgreSQL" in up.stdout
    assert "Redis" in up.stdout
    assert "Dagster UI  http://127.0.0.1:" in up.stdout
    states = {name: processes.read_private(home / f"{name}.json") for name in ("postgres", "redis")}
    again = _run(home, "up")
    assert "already up" in again.stdout
    doctor = _run(home, "doctor")
    assert doctor.returncode == 0, doctor.stdout
    assert "wrong" not in doctor.stdout
    assert "every migration is applied" in doctor.stdout
    for done in (up, again, doctor):
        for state in states.values():
            assert state["password"] not in done.stdout + done.stderr
    used = _run(home, "run", "--", "sh", "-c", "echo $FEATURE_PIPELINE_DATABASE_URL")
    assert f":{states['postgres']['port']}/feature_pipeline" in used.stdout, "it reuses the servers"
    down = _run(home, "down")
    assert down.returncode == 0
    assert "stopped" in down.stdout
    until(lambda: everything_of(home) == [], f"left behind: {everything_of(home)}")
    assert "nothing was up" in _run(home, "down").stdout
    assert (home / "postgres.json").exists(), "its data stays"
    deleted = _run(home, "down", "--delete", "--yes")
    assert deleted.returncode == 0
    assert not home.exists()


def test_the_supervisor_starts_again_what_died(make_home):
    home = make_home()
    assert _run(home, "up", "--no-ui").returncode == 0
    try:
        before = servers(home)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        until(
            lambda: len(servers(home)) == 2 and not set(servers(home)) & set(before),
            "the servers did not come back",
        )
        with Stack(Settings(home=home)).attach() as stack, psycopg.connect(stack.database_url) as c:
            assert c.execute("SELECT 1").fetchone() == (1,)
    finally:
        assert _run(home, "down").returncode == 0


def test_down_ends_a_stack_that_a_terminal_holds(make_home):
    home = make_home()
    with owner(home) as process:
        assert str(process.pid) in _run(home, "down").stdout
    until(lambda: everything_of(home) == [], f"left behind: {everything_of(home)}")


def test_delete_asks(make_home):
    home = make_home()
    with Stack(Settings(home=home)):
        pass
    done = subprocess.run(
        [*CLI, "down", "--delete"],
        env=environment(home),
        input="n\n",
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Delete every row" in done.stdout
    assert (home / "postgres.json").exists()


def test_migrate_twice(make_home, database_url, redis_url):
    given = {
        "FEATURE_PIPELINE_DATABASE_URL": database_url,
        "FEATURE_PIPELINE_REDIS_URL": redis_url,
    }
    home = make_home()
    for _ in range(2):
        done = _look(home, "migrate", **given)
        assert done.returncode == 0, done.stderr
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM partition_ledger").fetchone() == (0,)


def test_run_without_a_command(make_home):
    done = _look(make_home(), "run")
    assert done.returncode == 2
    assert "run -- COMMAND" in done.stderr.replace("\n", " ")


def test_run_of_what_is_not_there(make_home):
    assert "no-such-program" in _error(_run(make_home(), "run", "--", "no-such-program"))


def test_a_bad_setting_is_one_line(make_home):
    line = _error(_look(make_home(), "run", "--", "true", FEATURE_PIPELINE_UI_PORT="many"))
    assert "FEATURE_PIPELINE_UI_PORT" in line


def test_an_unescaped_password_is_one_line_without_it(make_home):
    url = "postgresql://user:abc@tail@localhost/db"
    line = _error(_look(make_home(), "migrate", FEATURE_PIPELINE_DATABASE_URL=url))
    assert "FEATURE_PIPELINE_DATABASE_URL" in line
    assert "tail" not in line


def test_an_unwritable_home_is_one_line(make_home):
    line = _error(_look(make_home(), "migrate", FEATURE_PIPELINE_HOME="/proc/feature_pipeline"))
    assert "FEATURE_PIPELINE_HOME" in line


# -- doctor


def _wrong(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 1, done.stdout
    assert done.stderr == ""
    return {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("wrong")}


def test_doctor_on_an_empty_home_says_what_to_do(make_home):
    home = make_home()
    wrong = _wrong(_look(home, "doctor"))
    assert set(wrong) == {"postgres", "redis"}
    assert all("feature-pipeline up" in line for line in wrong.values())
    assert list(home.iterdir()) == [], "it looks only"


def test_doctor_on_missing_tables(make_home, database_url, redis_url):
    wrong = _wrong(
        _look(
            make_home(),
            "doctor",
            FEATURE_PIPELINE_DATABASE_URL=database_url,
            FEATURE_PIPELINE_REDIS_URL=redis_url,
        )
    )
    assert set(wrong) == {"tables"}
    assert "feature-pipeline migrate" in wrong["tables"]


def test_doctor_on_wrong_passwords(make_home, postgres_server, redis_server):
    done = _look(
        make_home(),
        "doctor",
        FEATURE_PIPELINE_DATABASE_URL=postgres_server.url.replace(
            postgres_server.password, "notThePassword"
        ),
        FEATURE_PIPELINE_REDIS_URL=redis_server.url.replace(
            redis_server.password, "notThePassword"
        ),
    )
    wrong = _wrong(done)
    assert set(wrong) == {"postgres", "redis"}
    assert "wrong user or password" in wrong["postgres"]
    assert "wrong password" in wrong["redis"]
    assert "notThePassword" not in done.stdout


def test_doctor_on_unreachable_servers(make_home):
    closed = processes.free_port()
    wrong = _wrong(
        _look(
            make_home(),
            "doctor",
            FEATURE_PIPELINE_DATABASE_URL=f"postgresql://u:hidden@127.0.0.1:{closed}/db",
            FEATURE_PIPELINE_REDIS_URL=f"redis://:hidden@127.0.0.1:{closed}/0",
        )
    )
    assert set(wrong) == {"postgres", "redis"}
    assert all("cannot be reached (refused)" in line for line in wrong.values())
    assert "hidden" not in str(wrong)


def test_doctor_on_a_missing_database(make_home, postgres_server, redis_url):
    wrong = _wrong(
        _look(
            make_home(),
            "doctor",
            FEATURE_PIPELINE_DATABASE_URL=postgres_server.database("no_such_database"),
            FEATURE_PIPELINE_REDIS_URL=redis_url,
        )
    )
    assert "no such database or role" in wrong["postgres"]


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("DATABSE_URL", "FEATURE_PIPELINE_DATABASE_URL"),
        ("HOLE_WAITS", "FEATURE_PIPELINE_HOLE_WAIT_S"),
    ],
)
def test_doctor_on_a_misspelt_variable(make_home, variable, hint):
    wrong = _wrong(_look(make_home(), "doctor", **{f"FEATURE_PIPELINE_{variable}": "x"}))
    assert hint in wrong["environment"]


def test_doctor_on_a_malformed_universe(make_home, tmp_path):
    path = tmp_path / "universe.yaml"
    path.write_text("instruments: 3\n")
    wrong = _wrong(_look(make_home(), "doctor", FEATURE_PIPELINE_UNIVERSE=str(path)))
    assert "universe" in wrong


def test_doctor_on_a_bad_setting(make_home):
    wrong = _wrong(_look(make_home(), "doctor", FEATURE_PIPELINE_REDIS_URL="localhost"))
    assert "FEATURE_PIPELINE_REDIS_URL" in wrong["settings"]
