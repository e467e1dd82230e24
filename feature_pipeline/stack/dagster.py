"""Dagster's processes: code server, webserver and daemon, on loopback, and the folder they share.

The web UI has no authentication and executes mutations over GET: whoever reaches the port is its
administrator. It is bound to 127.0.0.1 and nothing here makes that a choice.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import tenacity
import yaml

from feature_pipeline.errors import StackError
from feature_pipeline.stack import guard, processes
from feature_pipeline.stack.server import NotReadyError

LOCATION = "feature_pipeline"
MODULE = "feature_pipeline.definitions"

# One event write per batch, not per event: read where runs execute.
RUN_WORKER_FLAGS = {"DAGSTER_EVENT_BATCH_SIZE": "1000"}
# One planned event per asset and range, not per partition: read where runs are created.
RUN_CREATOR_FLAGS = {"DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": "1"}


def dagster_home(home: Path) -> Path:
    """DAGSTER_HOME of a home, with the instance configuration in it.

    Raises:
        StackError: `dagster.yaml` is not beside the package.
    """
    original = Path(__file__).parents[2] / "dagster.yaml"
    if not original.is_file():
        raise StackError(f"there is no {original}; run from a checkout (pip install -e .)")
    directory = processes.private_directory(home / "dagster")
    copy = directory / "dagster.yaml"
    if not copy.exists() or copy.read_bytes() != original.read_bytes():
        draft = copy.with_suffix(f".{os.getpid()}")
        shutil.copyfile(original, draft)
        draft.replace(copy)
    return directory


class DagsterProcesses:
    """Code server, webserver and daemon of one home; started once, attached to by others.

    Args:
        home: directory of the embedded stack.
        environment: what the children get.
        ui_port: the UI's port; None keeps the last one, or takes a free one.
        module: where the definitions are.
    """

    start_s = 120.0

    def __init__(
        self,
        home: Path,
        environment: Mapping[str, str],
        ui_port: int | None = None,
        module: str = MODULE,
    ) -> None:
        self.home = home
        self.module = module
        self.ui_port = ui_port or 0
        self._asked_for = ui_port
        self._environment = dict(environment)
        self._code_port = 0
        self._state = home / "dagster.json"
        self._lock = processes.Lock(home / "dagster.lock")
        self._children: dict[str, subprocess.Popen[str]] = {}

    @property
    def ui_url(self) -> str:
        """Where the UI listens."""
        return f"http://{processes.LOOPBACK}:{self.ui_port}"

    @property
    def owned(self) -> bool:
        """Whether this object started them, and will stop them."""
        return bool(self._children)

    @property
    def running(self) -> bool:
        """Whether somebody owns them now."""
        return self.owned or self._lock.is_held_by_other

    @property
    def owner(self) -> int | None:
        """Process id of whoever runs them now."""
        if self.owned:
            return os.getpid()
        if not self.running:
            return None
        pid = processes.read_private(self._state).get("owner")
        return pid if isinstance(pid, int) else None

    def log(self, name: str) -> Path:
        """The log of one of them."""
        return self.home / "log" / f"dagster-{name}.log"

    def start(self) -> None:
        """Start the three, or attach to running ones, and wait until the UI serves the graph.

        Raises:
            StackError: one of them cannot be started, or the UI does not answer in time.
        """
        processes.private_directory(self.home / "log")
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(NotReadyError),
            wait=tenacity.wait_fixed(0.2),
            stop=tenacity.stop_after_delay(self.start_s),
            retry_error_callback=self._give_up,
        ):
            with attempt:
                if self._lock.acquire():
                    try:
                        self._start_owned()
                    except BaseException:
                        self.stop()
                        raise
                else:
                    self.attach()

    def attach(self) -> None:
        """Take the address of those that run.

        Raises:
            NotReadyError: they are being started.
        """
        state = processes.read_private(self._state)
        if not state.get("ready"):
            raise NotReadyError("another process is starting Dagster")
        self.ui_port = int(state["ui_port"])

    def ensure(self) -> None:
        """Start again what has ended.

        Raises:
            StackError: it cannot be started.
        """
        if any(child.poll() is not None for child in self._children.values()):
            self.stop()
        if not self.running:
            self.start()

    def stop(self) -> None:
        """Stop them if we own them: daemon first, so that it starts nothing more."""
        with processes.undisturbed():
            for name in reversed(list(self._children)):
                processes.stop(self._children.pop(name), signal.SIGTERM, guard.GRACE_S + 5)
        if self._lock.is_ours:
            self._note(ready=False)
            self._lock.release()

    # -- starting

    def _start_owned(self) -> None:
        state = processes.read_private(self._state)
        if self._asked_for:
            if not processes.is_free(self._asked_for):
                raise StackError(
                    f"port {self._asked_for} is taken; set FEATURE_PIPELINE_UI_PORT to a free one"
                )
        else:
            self.ui_port = int(state.get("ui_port") or 0)
            if not self.ui_port or not processes.is_free(self.ui_port):
                self.ui_port = processes.free_port()
        self._code_port = processes.free_port()
        self._note(ready=False)
        self._write_workspace()
        self._fail_dead_runs()
        own = processes.LOOPBACK
        commands = {
            "code-server": f"dagster api grpc --module-name {self.module} --host {own} "
            f"--port {self._code_port} --location-name {LOCATION}",
            "webserver": f"dagster-webserver --host {own} --port {self.ui_port} -w workspace.yaml",
            "daemon": "dagster-daemon run -w workspace.yaml",
        }
        for name, command in commands.items():
            program, *arguments = command.split()
            flags = RUN_WORKER_FLAGS if name == "code-server" else RUN_CREATOR_FLAGS
            self._children[name] = processes.spawn(
                [
                    sys.executable,
                    guard.__file__,
                    str(Path(sys.executable).with_name(program)),
                    *arguments,
                ],
                log=self.log(name),
                cwd=self.home / "dagster",
                env=_without_flags(self._environment) | flags,
                death_signal=signal.SIGTERM,
            )
            if name == "code-server":
                # The others would try for a while, complain in their logs, and try again later.
                self._wait(self._code_server_listens)
        self._wait(self._ui_serves_the_graph)
        self._note(ready=True)

    def _fail_dead_runs(self) -> None:
        log = self.log("dead-runs")
        child = processes.spawn(
            [sys.executable, "-m", "feature_pipeline.stack.dead_runs"],
            log=log,
            cwd=self.home / "dagster",
            env=self._environment,
            death_signal=signal.SIGKILL,
        )
        if child.wait(self.start_s) != 0:
            raise StackError(
                f"Dagster's storage cannot be opened: {processes.tail(log)} (log: {log})"
            )

    def _write_workspace(self) -> None:
        path = dagster_home(self.home) / "workspace.yaml"
        server = {"host": processes.LOOPBACK, "port": self._code_port, "location_name": LOCATION}
        path.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))

    def _wait(self, check: object) -> None:
        assert callable(check)
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(NotReadyError),
            wait=tenacity.wait_fixed(0.1),
            stop=tenacity.stop_after_delay(self.start_s),
            retry_error_callback=self._give_up,
        ):
            with attempt:
                for name, child in self._children.items():
                    if child.poll() is not None:
                        raise StackError(
                            f"Dagster's {name} ended with exit code {child.returncode}: "
                            f"{processes.tail(self.log(name))} (log: {self.log(name)})"
                        )
                check()

    def _code_server_listens(self) -> None:
        try:
            socket.create_connection((processes.LOOPBACK, self._code_port), timeout=1).close()
        except OSError:
            raise NotReadyError("the code server does not listen yet") from None

    def _ui_serves_the_graph(self) -> None:
        connection = http.client.HTTPConnection(processes.LOOPBACK, self.ui_port, timeout=10)
        try:
            connection.request("GET", "/server_info")
            if connection.getresponse().status != 200:
                raise NotReadyError("the UI does not answer yet")
        except (OSError, http.client.HTTPException):
            raise NotReadyError("the UI does not answer yet") from None
        finally:
            connection.close()

    def _give_up(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        raise StackError(
            f"Dagster did not come up in {self.start_s:.0f} s: {error}; see the logs in "
            f"{self.home / 'log'}"
        )

    def _note(self, *, ready: bool) -> None:
        processes.write_private(
            self._state, {"ui_port": self.ui_port, "ready": ready, "owner": os.getpid()}
        )


def _without_flags(environment: Mapping[str, str]) -> dict[str, str]:
    flags = RUN_WORKER_FLAGS | RUN_CREATOR_FLAGS
    return {name: value for name, value in environment.items() if name not in flags}
