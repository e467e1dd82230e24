"""Child processes that cannot outlive their owner, free ports, private files.

The mechanics that PostgreSQL, Redis and Dagster share; nothing here knows what is being run.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feature_pipeline.errors import StackError

LOOPBACK = "127.0.0.1"

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent(signum: signal.Signals, parent: int | None = None) -> None:
    """Have the kernel send this process `signum` when the thread that started it ends.

    Changing the user id clears it, so it comes after that. `parent` is the expected parent: if it
    is gone already, the process ends at once.
    """
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def spawn(
    command: Sequence[str | os.PathLike[str]],
    *,
    log: Path,
    cwd: Path,
    env: Mapping[str, str],
    death_signal: signal.Signals,
    user: tuple[int, int] | None = None,
    stdin: str | None = None,
) -> subprocess.Popen[str]:
    """Start a child in a session of its own that ends with us, its output appended to `log`.

    A session of its own, so that Ctrl-C reaches only the owner, which then stops its children in
    order. Call it from a thread that lives as long as the child should.

    Args:
        command: argv; never put a secret here, everybody can read it.
        user: (uid, gid) to change to.
        stdin: text that it reads on its standard input.

    Raises:
        StackError: it cannot be executed.
    """
    parent = os.getpid()
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=dict(env),
                start_new_session=True,
                text=True,
                user=user[0] if user else None,
                group=user[1] if user else None,
                extra_groups=[] if user else None,
                # Runs after the change of user, which would clear it.
                preexec_fn=lambda: die_with_parent(death_signal, parent),
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise StackError(f"cannot run {command[0]}: {error}") from error
    if stdin is not None and child.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # it ended already; its log says why
            child.stdin.write(stdin)
            child.stdin.close()
    return child


def stop(child: subprocess.Popen[Any], signum: signal.Signals, grace_s: float) -> None:
    """Send `signum`, wait, and kill what is still there after `grace_s`."""
    if child.poll() is not None:
        return
    child.send_signal(signum)
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def living_in(directory: Path, program: str) -> list[int]:
    """The processes of that program whose current directory is `directory`: a server, its workers.

    Somebody's shell that stands there is another program.
    """
    found = []
    for entry in Path("/proc").iterdir() if sys.platform == "linux" else ():
        if entry.name.isdigit():
            try:
                if (entry / "comm").read_text().strip() == program and (entry / "cwd").samefile(
                    directory
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def clear_out(directory: Path, program: str, signum: signal.Signals, grace_s: float) -> None:
    """Stop what a killed owner may have left running in `directory`, and wait until it is gone.

    Raises:
        StackError: it does not end.
    """
    for signal_now, patience in ((signum, grace_s), (signal.SIGKILL, 5.0)):
        for pid in living_in(directory, program):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal_now)
        deadline = time.monotonic() + patience
        while living_in(directory, program):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            return
    raise StackError(
        f"process(es) {living_in(directory, program)} still use {directory}; end them and try again"
    )


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server could listen on that port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def tail(log: Path, since: int = 0, length: int = 300) -> str:
    """The last words of a log, written after byte `since`, on one line."""
    try:
        text = log.read_bytes()[since:].decode(errors="replace")
    except OSError:
        return "(no log)"
    line = " | ".join(part.strip() for part in text.splitlines() if part.strip())
    return line[-length:] or "(nothing in its log)"


def private_directory(path: Path) -> Path:
    """The directory, made for us alone if it is not there; an existing one keeps its mode.

    Raises:
        StackError: it cannot be made or written to.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(
            f"cannot create {path}: {error.strerror}; set FEATURE_PIPELINE_HOME to a directory "
            "that can be written to"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise StackError(
            f"cannot write to {path}; set FEATURE_PIPELINE_HOME to a directory that can be"
        )
    return path


def read_private(path: Path) -> dict[str, Any]:
    """What `write_private` wrote; nothing if it is missing or unreadable."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_private(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file that only we can read, all at once."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(dict(content), file)
    draft.replace(path)


class Lock:
    """A lock on a file, held until released or until the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take it if nobody holds it; whether we have it now."""
        if self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def is_ours(self) -> bool:
        """Whether we have it."""
        return self._descriptor is not None

    @property
    def is_held_by_other(self) -> bool:
        """Whether another holder has it."""
        if self.is_ours or not self.path.exists():
            return False
        if self.acquire():
            self.release()
            return False
        return True


@contextmanager
def signals_end_us() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into `SystemExit`, so that `with` blocks stop what they started.

    Python drops an exception that is raised while it runs a destructor or a callback of `fork`;
    a signal that comes just then would be lost. So the exception (SIGINT's `KeyboardInterrupt`,
    too) is raised again every second until the block is left or `heard` is called.
    """
    told: int = signal.SIGTERM

    def leave(signum: int, _frame: object) -> None:
        nonlocal told
        if signum != signal.SIGALRM:
            told = signum
        signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
        if told == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + told)

    # What is ignored stays ignored: SIGHUP under nohup, SIGINT in the background of a script.
    meant = [s for s in _ENDINGS if signal.getsignal(s) != signal.SIG_IGN]
    previous = {signum: signal.signal(signum, leave) for signum in (*meant, signal.SIGALRM)}
    try:
        yield
    finally:
        heard()
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def heard() -> None:
    """Say that the exception of `signals_end_us` arrived: it is not raised again."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    handler = signal.getsignal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # drops the one that may be waiting
    signal.signal(signal.SIGALRM, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put the ending signals off: a second Ctrl-C must not cut the clean-up short."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_ENDINGS, signal.SIGALRM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
