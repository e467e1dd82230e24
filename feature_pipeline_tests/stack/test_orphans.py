"""Nobody's end leaves a server behind: not the owner's, not its parent's, however it comes."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from feature_pipeline.settings import Settings
from feature_pipeline.stack import Stack, guard
from feature_pipeline_tests.stack.helpers import (
    CLI,
    answers,
    environment,
    everything_of,
    gone,
    owner,
    packages,
    servers,
    until,
)


def _rest_in_peace(home: Path) -> None:
    until(lambda: everything_of(home) == [], f"left behind: {everything_of(home)}")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_owner_ends(make_home, signum):
    home = make_home()
    with owner(home) as process:
        pids = servers(home)
        assert len(pids) == 2
        assert not gone(pids)
        process.send_signal(signum)
    until(lambda: gone(pids), f"{pids} outlived their owner")
    _rest_in_peace(home)
    with Stack(Settings(home=home)) as stack:  # and it starts again
        assert answers(stack.database_url, stack.redis_url)


def test_the_parent_of_the_owner_is_killed(make_home):
    """`make` killed in the middle of `make demo`."""
    home = make_home()
    script = f"import subprocess; subprocess.call({[*CLI, 'run', '--', 'sleep', '1000']!r})"
    with subprocess.Popen([sys.executable, "-c", script], env=environment(home)) as parent:
        until(lambda: len(servers(home)) == 2, "the servers did not come up")
        parent.kill()
    _rest_in_peace(home)


def test_a_second_signal_does_not_cut_the_clean_up_short(make_home):
    home = make_home()
    with owner(home) as process:
        for _ in range(20):
            process.send_signal(signal.SIGINT)
    _rest_in_peace(home)


SWALLOWS = """
import os, signal
from feature_pipeline.stack import processes

class Dropped:
    def __del__(self):
        os.kill(os.getpid(), {signum})

with processes.signals_end_us():
    Dropped()  # what is raised in a destructor goes nowhere
    print("it went nowhere", flush=True)
    while True:
        signal.pause()
"""


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, -2)]
)
def test_a_signal_whose_exception_python_drops_is_not_lost(signum, code):
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWS.format(signum=int(signum))],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "it went nowhere" in done.stdout
    assert done.returncode == code, done.stderr


def test_killed_while_starting(make_home):
    """Whatever it was doing: initdb, the first start, the second server."""
    home = make_home()
    base = Stack(Settings(home=home)).postgres.directory.parent
    moments = (
        lambda: (home / "postgres.lock").exists(),
        # initdb at work; or already done, where this machine was too busy to look in time.
        lambda: any((*base.glob("postgres.draft.*/data/PG_VERSION"), *base.glob("postgres"))),
        lambda: (base / "postgres" / "postmaster.pid").exists(),
        lambda: (home / "redis.lock").exists(),
    )
    for moment in moments:
        with subprocess.Popen(
            [*CLI, "run", "--", "sleep", "1000"],
            env=environment(home),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            until(moment, "the moment did not come")
            process.kill()
        _rest_in_peace(home)
    with Stack(Settings(home=home)) as stack:
        assert answers(stack.database_url, stack.redis_url)


def test_the_exit_code_is_the_commands(make_home):
    home = make_home()
    command = [*CLI, "run", "--", "sh", "-c", 'test -n "$FEATURE_PIPELINE_REDIS_URL" && exit 7']
    assert subprocess.run(command, env=environment(home), check=False).returncode == 7
    _rest_in_peace(home)


def test_the_guard_ends_the_whole_group(tmp_path):
    """A grandchild that ignores everything but SIGKILL, its parent gone already."""
    script = "trap '' TERM INT; sleep 1000 & echo $! > pid; exec sleep 1000"
    process = subprocess.Popen(
        [sys.executable, guard.__file__, "sh", "-c", script], cwd=tmp_path, text=True
    )
    pid_file = tmp_path / "pid"
    until(lambda: pid_file.exists() and pid_file.read_text().strip(), "it did not start")
    grandchild = int(pid_file.read_text())
    child = psutil.Process(process.pid).children()[0]
    child.kill()
    process.wait(30)
    until(lambda: gone([grandchild]), "the grandchild lives on")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_not_as_root():
    """As `nobody`, everything lies under home and nothing needs to be copied."""
    user = pwd.getpwnam("nobody")
    who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    python = _python_for(who)
    home = Path(tempfile.mkdtemp(prefix="feature_pipeline.")).resolve()
    os.chown(home, user.pw_uid, user.pw_gid)
    try:
        with owner(home, python=python, cwd=home, **who) as process:
            pids = servers(home)
            assert {psutil.Process(pid).uids().real for pid in pids} == {user.pw_uid}
            assert (home / "postgres" / "PG_VERSION").is_file()
            process.kill()
            until(lambda: gone(pids), f"{pids} outlived their owner")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _python_for(who: dict[str, object]) -> str:
    """An interpreter of our version that this user can run with our packages."""
    check = f"import sys, redis, psycopg; assert sys.version_info[:2] == {sys.version_info[:2]}"
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            command = [python, "-c", check]
            subprocess.run(command, check=True, capture_output=True, env=packages(), **who)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("no Python of our version that another user can run with our packages")
