"""Commands that hold the stack up while they run, in somebody's terminal or under `make`."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from feature_pipeline.errors import StackError
from feature_pipeline.stack import processes

GRACE_S = 20.0


@contextmanager
def until_told() -> Iterator[None]:
    """Leave the block, and so stop what it started, on SIGTERM, on SIGHUP, or with our parent.

    A killed `make` or terminal must not leave servers behind. Under `nohup` our parent may go.
    """
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        processes.die_with_parent(signal.SIGTERM)
    with processes.signals_end_us():
        yield


def stay() -> None:
    """Wait for Ctrl-C, or for what `until_told` listens to."""
    with suppress(KeyboardInterrupt):
        while True:
            signal.pause()
    processes.heard()


def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command in our terminal until it ends; its exit code, as a shell would say it.

    Ctrl-C reaches the command itself; we wait for it, and end it if it stays.

    Raises:
        StackError: it cannot be executed.
    """
    parent = os.getpid()
    try:
        child = subprocess.Popen(
            command,
            env=dict(environment),
            preexec_fn=lambda: processes.die_with_parent(signal.SIGTERM, parent),
        )
    except OSError as error:
        raise StackError(f"cannot run {command[0]}: {error.strerror}") from None
    try:
        code = child.wait()
    except KeyboardInterrupt:
        with processes.undisturbed():
            processes.heard()
            try:  # the terminal has sent it to the command, too, unless we alone were meant
                child.wait(2.0)
            except subprocess.TimeoutExpired:
                processes.stop(child, signal.SIGINT, GRACE_S)
        return 128 + signal.SIGINT
    except SystemExit:
        with processes.undisturbed():
            processes.heard()
            processes.stop(child, signal.SIGTERM, GRACE_S)
        raise
    return code if code >= 0 else 128 - code
