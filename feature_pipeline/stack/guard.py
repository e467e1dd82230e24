"""Runs one command and ends its whole process group when told to, or when our parent is gone.

Dagster's code server starts run workers of its own, which would outlive it. Standard library only
and run by path, so that a guard is small and starts at once:

    python guard.py COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from types import FrameType

GRACE_S = 10.0
_PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> int:
    """Run the command; its exit code."""
    libc = ctypes.CDLL(None)
    told = False

    def end(_signum: int, _frame: FrameType | None) -> None:
        nonlocal told
        told = True

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, end)
    child = subprocess.Popen(
        command,
        process_group=0,
        # The last resort, should the guard itself be killed.
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0),
    )
    deadline = None
    while child.poll() is None:
        if told and deadline is None:
            _signal_group(child.pid, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(0.05)
    _signal_group(child.pid, signal.SIGKILL)
    return child.wait()


def _signal_group(leader: int, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signum)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
