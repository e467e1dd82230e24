"""The whole stack in one `with`: the servers' addresses, Dagster, the environment for children."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import TracebackType
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import SecretStr

from feature_pipeline.errors import DatabaseError, StackError
from feature_pipeline.settings import PREFIX, Settings, redact
from feature_pipeline.stack import processes
from feature_pipeline.stack.dagster import (
    RUN_CREATOR_FLAGS,
    RUN_WORKER_FLAGS,
    DagsterProcesses,
    dagster_home,
)
from feature_pipeline.stack.postgres import EmbeddedPostgres, delete_root_side
from feature_pipeline.stack.redis import EmbeddedRedis
from feature_pipeline.stack.server import NotReadyError

DAGSTER_SCHEMA = "dagster"


class Stack:
    """PostgreSQL and Redis: the embedded ones, or those that the settings name.

    `with Stack(settings) as stack:` starts the embedded servers, or attaches to those that run on
    the same home, and on leaving stops what it started itself.

    Args:
        settings: which servers, and where the embedded ones live.

    Raises:
        StackError: a server cannot be started.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.home = settings.home
        self.postgres = None if settings.database_url else EmbeddedPostgres(settings.home)
        self.redis = None if settings.redis_url else EmbeddedRedis(settings.home)
        self.dagster: DagsterProcesses | None = None

    def __enter__(self) -> Stack:
        try:
            for server in (self.postgres, self.redis):
                if server:
                    server.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def attach(self) -> Stack:
        """Attach to the embedded servers that run on this home; start none.

        Raises:
            StackError: one of them does not run.
        """
        for server in (self.postgres, self.redis):
            if server:
                server.attach()
        return self

    def ensure(self) -> None:
        """Start again what has gone, on the same ports, with the same passwords.

        Raises:
            StackError: it cannot be started.
        """
        for part in (self.postgres, self.redis, self.dagster):
            if part:
                part.ensure()

    def stop(self) -> None:
        """Stop what this object started, last started first."""
        with processes.undisturbed():
            for part in (self.dagster, self.redis, self.postgres):
                if part:
                    part.stop()

    def start_dagster(self) -> str:
        """Start Dagster's processes, or attach to running ones; the address of the UI.

        Raises:
            StackError: one of them cannot be started.
            DatabaseError: its storage cannot be prepared.
        """
        self.prepare_dagster()
        self.dagster = DagsterProcesses(self.home, self.environment(), self.settings.ui_port)
        self.dagster.start()
        return self.dagster.ui_url

    def prepare_dagster(self) -> None:
        """Make the schema that the address of Dagster's storage names, if it is not there.

        Raises:
            DatabaseError: the database cannot be reached, or refuses.
        """
        import psycopg
        from psycopg import sql

        url = urlsplit(self.dagster_database_url)._replace(scheme="postgresql").geturl()
        named = f"{PREFIX}{'DAGSTER_' if self.settings.dagster_database_url else ''}DATABASE_URL"
        try:
            with psycopg.connect(url, connect_timeout=10, autocommit=True) as link:
                there, path = link.execute(
                    "SELECT current_schema(), current_setting('search_path')"
                ).fetchone() or ("", "")
                if there is None:
                    schema = sql.Identifier(path.split(",")[0].strip())
                    link.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(schema))
        except psycopg.OperationalError:
            raise DatabaseError(
                f"{named}: Dagster's database {redact(url)} cannot be reached or refuses the "
                "password; see: feature-pipeline doctor"
            ) from None
        except psycopg.Error as error:
            raise DatabaseError(
                f"the schema for Dagster's own tables cannot be made in {redact(url)} "
                f"({error.diag.message_primary}); create it, or name another database in "
                "FEATURE_PIPELINE_DAGSTER_DATABASE_URL"
            ) from None

    def resolved_settings(self) -> Settings:
        """The settings with the addresses of the servers that run."""
        found = {"database_url": self.database_url, "redis_url": self.redis_url}
        return self.settings.model_copy(
            update={name: SecretStr(url) for name, url in found.items()}
        )

    # -- addresses

    @property
    def database_url(self) -> str:
        """`postgresql://` address of the pipeline's database."""
        if self.settings.database_url:
            return self.settings.database_url.get_secret_value()
        assert self.postgres is not None
        return self.postgres.url

    @property
    def owner_database_url(self) -> str:
        """The same database, as the owner of its tables, if one is named."""
        named = self.settings.owner_database_url
        return named.get_secret_value() if named else self.database_url

    @property
    def redis_url(self) -> str:
        """`redis://` address."""
        if self.settings.redis_url:
            return self.settings.redis_url.get_secret_value()
        assert self.redis is not None
        return self.redis.url

    @property
    def dagster_database_url(self) -> str:
        """`postgresql+psycopg2://` address of Dagster's own storage.

        The scheme matters: plain `postgresql://` means psycopg 3 to SQLAlchemy 2.1, with which
        dagster-postgres cannot send its notifications.
        """
        if self.settings.dagster_database_url:
            return self.settings.dagster_database_url.get_secret_value()
        url = self.postgres.database("dagster") if self.postgres else self.database_url
        parts = urlsplit(url)
        query = parts.query
        if not self.postgres:
            path = f"options={quote(f'-csearch_path={DAGSTER_SCHEMA}', safe='')}"
            query = f"{query}&{path}" if query else path
        return urlunsplit(("postgresql+psycopg2", parts.netloc, parts.path, query, ""))

    def addresses(self) -> list[tuple[str, str]]:
        """Names and addresses of what this stack uses, without passwords."""
        return [
            ("PostgreSQL", redact(self.database_url)),
            ("Redis", redact(self.redis_url)),
            *([("Dagster UI", self.ui_url)] if self.ui_url else []),
        ]

    @property
    def ui_url(self) -> str | None:
        """Where the UI of this home listens, if it is up, whoever started it."""
        dagster = self.dagster or DagsterProcesses(self.home, {})
        if not dagster.running:
            return None
        try:
            dagster.attach()
        except NotReadyError:
            return None
        return dagster.ui_url

    def environment(self) -> dict[str, str]:
        """Our environment, plus what makes a child process use this stack.

        Raises:
            StackError: DAGSTER_HOME cannot be made.
        """
        instance = dagster_home(processes.private_directory(self.home))
        environment = dict(os.environ)
        # Without compiled bytecode every start of Dagster costs 2.5 times as much.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        programs = str(Path(sys.executable).parent)
        search = environment.get("PATH", os.defpath)
        if programs not in search.split(os.pathsep):
            environment["PATH"] = os.pathsep.join((programs, search))
        return environment | {
            "FEATURE_PIPELINE_HOME": str(self.home),
            "FEATURE_PIPELINE_DATABASE_URL": self.database_url,
            "FEATURE_PIPELINE_REDIS_URL": self.redis_url,
            "FEATURE_PIPELINE_DAGSTER_DATABASE_URL": self.dagster_database_url,
            "DAGSTER_HOME": str(instance),
            **RUN_WORKER_FLAGS,
            **RUN_CREATOR_FLAGS,
        }

    # -- the end of a home

    def owners(self) -> set[int]:
        """The processes that run parts of this home's stack."""
        parts = (
            EmbeddedPostgres(self.home),
            EmbeddedRedis(self.home),
            DagsterProcesses(self.home, {}),
        )
        return {part.owner for part in parts if part.owner}

    def delete(self) -> list[Path]:
        """Delete what the embedded stack keeps; what else lies in home stays and is returned.

        Raises:
            StackError: it still runs.
        """
        if owners := self.owners():
            raise StackError(f"process {min(owners)} still runs the stack of {self.home}")
        for name in ("postgres", "redis", "dagster"):
            for kind in ("json", "lock"):
                (self.home / f"{name}.{kind}").unlink(missing_ok=True)
            shutil.rmtree(self.home / name, ignore_errors=True)
        for name in ("supervisor.json", "supervisor.lock"):
            (self.home / name).unlink(missing_ok=True)
        shutil.rmtree(self.home / "log", ignore_errors=True)
        if os.geteuid() == 0:
            delete_root_side(self.home)
        left = sorted(self.home.iterdir()) if self.home.is_dir() else []
        if not left and self.home.is_dir():
            self.home.rmdir()
        return left
