"""The logs of a home: which there are, their last lines, and what comes next.

Files only; what Dagster recorded of a run is in `run_events.py`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from feature_pipeline.errors import StackError

_BLOCK = 1 << 16
_RUN_ID = re.compile(r"[0-9a-f]{6}[0-9a-f-]{0,30}")
_POLL_S = 0.2


@dataclass(frozen=True)
class Log:
    """One log file: `name` is what people call it, `size` in bytes, `written` last, UTC."""

    name: str
    path: Path
    size: int
    written: datetime


def logs(home: Path) -> list[Log]:
    """The logs of a home, by name."""
    found = []
    for path in sorted((home / "log").glob("*.log")):
        state = path.stat()
        written = datetime.fromtimestamp(state.st_mtime, UTC)
        found.append(Log(path.stem, path, state.st_size, written))
    return found


def find(home: Path, name: str) -> Log:
    """The log of that name.

    Raises:
        StackError: there is none; names those that are there.
    """
    found = {log.name: log for log in logs(home)}
    if name.removesuffix(".log") in found:
        return found[name.removesuffix(".log")]
    there = f"there are {', '.join(found)}" if found else "nothing has been started there yet"
    raise StackError(f"{home / 'log'} has no log {name!r}; {there}")


def looks_like_a_run(text: str) -> bool:
    """Whether it may be a run's id, or the beginning of one."""
    return _RUN_ID.fullmatch(text) is not None


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file, read from its end.

    Raises:
        StackError: it cannot be read.
    """
    return _tail(path, lines)


def _tail(path: Path, lines: int, end: int | None = None) -> list[str]:
    """The last lines before byte `end`; None - of the file."""
    try:
        with path.open("rb") as file:
            place, held = file.seek(0, os.SEEK_END) if end is None else end, b""
            while place and held.count(b"\n") <= lines:
                step = min(_BLOCK, place)
                place = file.seek(place - step)
                held = file.read(step) + held
    except OSError as error:
        raise StackError(f"{path} cannot be read: {error.strerror}") from error
    # A cut-off first line is one too many and goes here.
    whole = held.removesuffix(b"\n").split(b"\n") if held else []
    return [line.decode(errors="replace") for line in whole[-lines:]] if lines > 0 else []


def follow(path: Path, lines: int) -> Iterator[str]:
    """The last lines of a file, and then each as it is written, for as long as one asks.

    A file that was emptied, or replaced by a new one, is read from its start.

    Raises:
        StackError: it cannot be read.
    """
    try:
        file = path.open("rb")
        yield from _tail(path, lines, file.seek(0, os.SEEK_END))
        # An unfinished last line was shown as it was: what completes it comes as it is.
        rest = b""
        while True:
            found = file.read(_BLOCK)
            rest += found
            *whole, rest = rest.split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
            if found:
                continue
            time.sleep(_POLL_S)
            state = path.stat() if path.exists() else None
            if state and (
                state.st_ino != os.fstat(file.fileno()).st_ino or state.st_size < file.tell()
            ):
                file.close()
                file, rest = path.open("rb"), b""
    except OSError as error:
        raise StackError(f"{path} cannot be read: {error.strerror}") from error
