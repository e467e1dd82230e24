"""The process that reads feeds, seen from here: bytes in, entries out, whatever the bytes are.

A feed that takes too long or too much ends that process, not ours, and costs itself alone: the next
one is given a new process.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from feature_pipeline.errors import SourceError

CPU_SECONDS = 5.0
"""Of one feed; an ordinary one takes a hundredth of a second."""

MEMORY = 1 << 30
"""Bytes of address space of the process."""

_FROZEN_S = 120.0
"""After so long without an answer it is not busy but frozen."""


class Reader:
    """Reads feeds; a context manager, since it holds a process.

    Args:
        cpu_seconds: of one feed.
    """

    def __init__(self, cpu_seconds: float = CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def read(self, data: bytes) -> list[dict[str, Any]]:
        """The entries of a feed.

        Returns:
            `url`, `title`, `text`, `key`, `at` (seconds since 1970), any of them None, and `slack`
            (by how many seconds it may have been later).

        Raises:
            SourceError: it is none, or costs too much to read; without the feed's name.
        """
        with self._lock:
            answer = self._ask(data)
        if answer is None:
            raise SourceError(
                f"takes more than {self._cpu_seconds:g} s, or too much memory, to read"
            )
        if "error" in answer:
            raise SourceError(answer["error"])
        entries: list[dict[str, Any]] = answer["entries"]
        return entries

    def _ask(self, data: bytes) -> dict[str, Any] | None:
        """What the process answers; None where it ended over it."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(_FROZEN_S, process.kill)
        watch.start()
        try:
            process.stdin.write(len(data).to_bytes(8, "big") + data)
            process.stdin.flush()
            size = process.stdout.read(8)
            text = process.stdout.read(int.from_bytes(size, "big"))
            answer: dict[str, Any] = json.loads(text)
        except (OSError, ValueError):
            self._end()
            return None
        finally:
            watch.cancel()
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            script = str(Path(__file__).with_name("reader.py"))
            # Isolated: no module beside the script, and nothing of the environment, is imported.
            self._process = subprocess.Popen(
                [sys.executable, "-I", script, str(self._cpu_seconds), str(MEMORY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what could not be written any more
                    pipe.close()
        process.wait()
