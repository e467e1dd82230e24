"""What the embedded PostgreSQL and Redis have in common: start or attach, stop, port, password.

One server per home and kind. Whoever holds its lock file owns it and stops it; everybody else
attaches to it. The port and the password are kept in a file that only the owner of home can read.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import tenacity

from feature_pipeline.errors import StackError
from feature_pipeline.stack import processes


class NotReadyError(Exception):
    """The server does not answer yet."""


class EmbeddedServer(ABC):
    """A server process on 127.0.0.1 that ends with its owner.

    Args:
        home: directory of the embedded stack; made if it is not there.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]
    start_s: ClassVar[float] = 60.0
    grace_s: ClassVar[float] = 30.0
    says_when_ready: ClassVar[str]  # in its log

    def __init__(self, home: Path) -> None:
        self.home = home
        self.log = home / "log" / f"{self.name}.log"
        self.port = 0
        self.password = ""
        self._password_is_new = False
        self._state = home / f"{self.name}.json"
        self._lock = processes.Lock(home / f"{self.name}.lock")
        self._child: subprocess.Popen[str] | None = None

    # -- what each server says about itself

    @property
    @abstractmethod
    def url(self) -> str:
        """Where it answers, password included."""

    @property
    @abstractmethod
    def directory(self) -> Path:
        """Where it keeps its data; its processes' current directory."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make what must be there before it starts; repair what a killed owner left behind."""

    @abstractmethod
    def _launch(self) -> subprocess.Popen[str]:
        """Start it on `port`."""

    @abstractmethod
    def check(self) -> None:
        """Connect to it.

        Raises:
            NotReadyError: it does not answer yet.
            StackError: it never will (the password is wrong).
        """

    def _settle(self) -> None:  # noqa: B027 - most servers need nothing here
        """Do what needs the running server, before others may use it."""

    # -- life

    @property
    def owned(self) -> bool:
        """Whether this object started it, and will stop it."""
        return self._child is not None

    @property
    def pid(self) -> int | None:
        """Its process id, if we own it."""
        return self._child.pid if self._child else None

    @property
    def running(self) -> bool:
        """Whether somebody owns it now, be it this object or another process."""
        return self.owned or self._lock.is_held_by_other

    @property
    def owner(self) -> int | None:
        """Process id of whoever runs it now."""
        if self.owned:
            return os.getpid()
        if not self.running:
            return None
        pid = processes.read_private(self._state).get("owner")
        return pid if isinstance(pid, int) else None

    def start(self) -> None:
        """Start it, or attach to the one that runs on this home, and wait until it answers.

        Raises:
            StackError: it cannot be started, or does not answer in time.
        """
        processes.private_directory(self.home)
        processes.private_directory(self.log.parent)
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(NotReadyError),
            wait=tenacity.wait_fixed(0.05),
            stop=tenacity.stop_after_delay(self.start_s + self.grace_s),
            retry_error_callback=self._give_up,
        ):
            with attempt:
                if self._lock.acquire():
                    self._start_owned()
                else:
                    self._attach()

    def ensure(self) -> None:
        """Start it again if it, or the owner we attached to, has gone; same port, same password.

        Raises:
            StackError: it cannot be started.
        """
        if self._child is not None and self._child.poll() is not None:
            self.stop()
        if not self.running:
            self.start()

    def attach(self) -> None:
        """Attach to a running one.

        Raises:
            StackError: none runs on this home.
        """
        if not self.running:
            raise StackError(
                f"no embedded {self.name} runs on {self.home}; start it: feature-pipeline up"
            )
        self.start()

    def stop(self) -> None:
        """Stop it if we own it; an attached one is left to its owner."""
        if self._child is not None:
            with processes.undisturbed():
                processes.stop(self._child, self.stop_signal, self.grace_s)
                self._child = None
                self._note(ready=False)
        self._lock.release()

    def _attach(self) -> None:
        state = processes.read_private(self._state)
        if not state.get("ready"):
            raise NotReadyError(
                f"the {self.name} of {self.home} is being started by another process"
            )
        self.port, self.password = int(state["port"]), str(state["password"])
        self.check()

    def _start_owned(self) -> None:
        try:
            state = processes.read_private(self._state)
            self.port = int(state.get("port") or 0)
            self.password = str(state.get("password") or secrets.token_hex(24))
            self._password_is_new = not state.get("password")
            self._note(ready=False)
            self._prepare()
            self._password_is_new = False
            self._start_on_a_free_port()
            self._settle()
            self._note(ready=True)
        except BaseException:
            self.stop()
            raise

    def _start_on_a_free_port(self, attempts: int = 5) -> None:
        for attempt in range(attempts):
            # Between the look at the port and the server's own bind somebody may take it.
            if not self.port or not processes.is_free(self.port):
                self.port = processes.free_port()
            self._note(ready=False)
            said_before = self.log.stat().st_size if self.log.exists() else 0
            self._child = self._launch()
            try:
                self._wait_until_ready(said_before)
            except StackError:
                processes.stop(self._child, signal.SIGKILL, self.grace_s)
                taken = not processes.is_free(self.port)
                if not taken or attempt == attempts - 1:
                    raise
            else:
                return

    def _wait_until_ready(self, said_before: int) -> None:
        assert self._child is not None
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(NotReadyError),
            wait=tenacity.wait_fixed(0.02),
            stop=tenacity.stop_after_delay(self.start_s),
            retry_error_callback=self._give_up,
        ):
            with attempt:
                if self._child.poll() is not None:
                    raise StackError(
                        f"the embedded {self.name} ended with exit code {self._child.returncode}: "
                        f"{processes.tail(self.log, said_before)} (log: {self.log})"
                    )
                # Its own word first: whoever else may have the port must not be told the password.
                if self.says_when_ready not in processes.tail(self.log, said_before, 100_000):
                    raise NotReadyError("it does not say that it is ready")
                self.check()

    def _give_up(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        raise StackError(
            f"the embedded {self.name} did not answer in time: {error}; last words in {self.log}: "
            f"{processes.tail(self.log)}"
        )

    def _note(self, *, ready: bool) -> None:
        processes.write_private(
            self._state,
            {
                "port": self.port,
                # Not before the data knows it: a start that is killed must begin again.
                "password": None if self._password_is_new else self.password,
                "ready": ready,
                "owner": os.getpid(),
                "pid": self.pid,
            },
        )
