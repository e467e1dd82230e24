"""The process behind `feature-pipeline up`: holds the stack up until it is told to stop.

It starts what is missing again: a server that ended, or one whose owner (a `feature-pipeline run`
in some terminal) went away. Run detached, with a pipe on which it says once that all is up:

    python -m feature_pipeline.stack.supervisor READY_FD [--no-ui]
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from feature_pipeline.errors import FeaturePipelineError, StackError
from feature_pipeline.settings import Settings
from feature_pipeline.stack import Stack, processes

LOOK_EVERY_S = 1.0
STOP_S = 90.0
READY = "ready"


def lock_of(home: Path) -> processes.Lock:
    """The lock that a home's supervisor holds."""
    return processes.Lock(home / "supervisor.lock")


def pid_of(home: Path) -> int | None:
    """Process id of the supervisor of a home, if it has one."""
    if not lock_of(home).is_held_by_other:
        return None
    pid = processes.read_private(home / "supervisor.json").get("pid")
    return pid if isinstance(pid, int) else None


def launch(settings: Settings, *, ui: bool) -> None:
    """Start a supervisor in the background and wait until it says that all is up.

    Raises:
        StackError: it could not bring the stack up; what went wrong, in its words.
    """
    processes.private_directory(settings.home)
    log = processes.private_directory(settings.home / "log") / "supervisor.log"
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "feature_pipeline.stack.supervisor", str(writer)]
    with log.open("ab") as output, os.fdopen(reader) as answer:
        subprocess.Popen(
            command + ([] if ui else ["--no-ui"]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            start_new_session=True,
            env=os.environ | {"FEATURE_PIPELINE_HOME": str(settings.home)},
        )
        os.close(writer)
        said = answer.read().strip()
    if said != READY:
        raise StackError(said or f"the supervisor ended without a word; see {log}")


def bring_down(stack: Stack) -> list[int]:
    """End every process that runs a part of this home's stack, and wait until all is gone.

    Returns:
        Their process ids.

    Raises:
        StackError: one of them does not end.
    """

    def owners() -> set[int]:
        supervisor = pid_of(stack.home)
        return (stack.owners() | ({supervisor} if supervisor else set())) - {os.getpid()}

    told: set[int] = set()
    deadline = time.monotonic() + STOP_S
    while found := owners():
        for pid in found - told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        told |= found
        if time.monotonic() > deadline:
            raise StackError(f"process(es) {', '.join(map(str, sorted(found)))} do not end")
        time.sleep(0.05)
    return sorted(told)


def supervise(settings: Settings, ready_fd: int, *, ui: bool) -> None:
    """Bring the stack up, say so, and keep it up until SIGTERM.

    Raises:
        StackError: another supervisor runs on this home, or a part cannot be started.
    """
    lock = lock_of(settings.home)
    if not lock.acquire():
        raise StackError(f"another supervisor runs on {settings.home}")
    state = settings.home / "supervisor.json"
    processes.write_private(state, {"pid": os.getpid()})
    with Stack(settings) as stack:
        if stack.postgres:
            # Ours to migrate; a database that somebody named is migrated when somebody says so.
            from feature_pipeline.resources import prepare_database

            prepare_database(stack.database_url)
        if ui:
            stack.start_dagster()
        os.write(ready_fd, READY.encode())
        os.close(ready_fd)
        while True:
            time.sleep(LOOK_EVERY_S)
            try:
                stack.ensure()
            except FeaturePipelineError as error:
                print(error, flush=True)  # noqa: T201 - to its own log; it tries again


def main(arguments: list[str]) -> int:
    """Run `supervise`; an error goes to whoever waits on the pipe."""
    ready_fd = int(arguments[0])
    os.set_inheritable(ready_fd, False)
    with processes.signals_end_us():
        try:
            supervise(Settings(), ready_fd, ui="--no-ui" not in arguments)
        except FeaturePipelineError as error:
            os.write(ready_fd, str(error).encode())
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
