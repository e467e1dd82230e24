"""docker-compose.yml: valid, without secrets, and each service's command does what it should."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import psycopg
import pytest
import yaml

from feature_pipeline.settings import Settings
from feature_pipeline.stack import processes
from feature_pipeline_tests.stack.helpers import until

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
DAGSTER = ("code-server", "webserver", "daemon")
SECRET = "s3cretOfTheTest"
PASSWORDS = [f"FEATURE_PIPELINE_{of}_PASSWORD" for of in ("POSTGRES", "WRITER", "READER", "REDIS")]


def _interpolated(text: str, values: dict[str, str]) -> str:
    """What compose makes of ${NAME:?words} and ${NAME:-default}."""

    def value(match: re.Match[str]) -> str:
        name, operator, words = match.groups()
        if name in values:
            return values[name]
        assert operator == ":-", f"{name} is required"
        return words

    return re.sub(r"\$\{(\w+)(:[?-])([^}]*)\}", value, text)


def test_valid_by_the_official_schema():
    # The package carries the schema of the Compose specification, so that no test needs a network.
    package = Path(importlib.util.find_spec("check_jsonschema").origin).parent
    schema = json.loads((package / "builtin_schemas/vendor/compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    validator(schema).validate(COMPOSE)
    broken = COMPOSE | {"services": {"redis": {"imagee": "redis"}}}
    with pytest.raises(jsonschema.ValidationError):
        validator(schema).validate(broken)


def test_the_services():
    assert set(SERVICES) == {"timescaledb", "redis", "migrate", *DAGSTER}
    image, tag = SERVICES["timescaledb"]["image"].split(":")
    assert image == "timescale/timescaledb"
    version, postgres = re.fullmatch(r"([\d.]+)-pg(\d+)", tag).groups()
    assert tuple(map(int, version.split("."))) >= (2, 28, 3)
    assert int(postgres) >= 15
    configuration = COMPOSE["configs"]["redis"]["content"].splitlines()
    assert {"maxmemory 512mb", "maxmemory-policy allkeys-lru", "appendonly yes"} <= set(
        configuration
    )
    for name, service in SERVICES.items():
        assert name == "migrate" or "healthcheck" in service, f"{name} has no health check"
        assert (
            "@" in service.get("image", "")
            or not service["image"].endswith((":latest", "timescaledb", "redis"))
            or service["build"] == "."
        ), f"{name} has no fixed image"
    for name in DAGSTER:
        assert SERVICES[name]["depends_on"], f"{name} starts before what it needs"


def test_no_password_stands_in_the_file():
    text = (ROOT / "docker-compose.yml").read_text()
    for name in PASSWORDS:
        uses = re.findall(rf"\$\{{{name}([^}}]*)\}}", text)
        assert uses
        assert all(use.startswith(":?") for use in uses), "required, without a default"
    for name, service in SERVICES.items():
        command = " ".join(service.get("command", []))
        assert "PASSWORD" not in command, f"{name} shows a password in its arguments"


def test_every_port_is_published_on_loopback_only():
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"


def test_every_variable_is_one_that_somebody_reads():
    known = {f"FEATURE_PIPELINE_{field.upper()}" for field in Settings.model_fields}
    for name in ("migrate", *DAGSTER):
        ours = [v for v in SERVICES[name]["environment"] if v.startswith("FEATURE_PIPELINE_")]
        assert set(ours) <= known
        values = {v: _interpolated(SERVICES[name]["environment"][v], _passwords()) for v in ours}
        Settings(**{k.removeprefix("FEATURE_PIPELINE_").lower(): v for k, v in values.items()})
    flags = {
        name: {v for v in SERVICES[name]["environment"] if v.startswith("DAGSTER_")}
        for name in DAGSTER
    }
    creator = {"DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS"}
    assert flags == {
        "code-server": {"DAGSTER_EVENT_BATCH_SIZE"},
        "webserver": creator,
        "daemon": creator,
    }


def test_the_image_runs_as_nobody_special_from_the_locked_packages():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert any(line.startswith("USER feature_pipeline") for line in lines)
    assert any("--require-hashes -r requirements.lock" in line for line in lines)
    assert all(
        line.startswith("FROM python:3.11-slim") for line in lines if line.startswith("FROM")
    )
    copied = " ".join(line for line in lines if line.startswith("COPY"))
    for needed in ("feature_pipeline", "sql", "dagster.yaml", "workspace.yaml", "pyproject.toml"):
        assert needed in copied
    assert not re.search(r"(?m)^(ENV|ARG).*PASSWORD", "\n".join(lines))


def _passwords(**values: str) -> dict[str, str]:
    return dict.fromkeys(PASSWORDS, SECRET) | values


class _Native:
    """Runs the services' commands here, on our servers and free ports."""

    def __init__(self, database_url: str, redis_url: str, directory: Path) -> None:
        self.directory = directory
        self.database_url, self.redis_url = database_url, redis_url
        self.children: list[subprocess.Popen[str]] = []
        dagster_home = directory / "dagster"
        dagster_home.mkdir()
        shutil.copyfile(ROOT / "dagster.yaml", dagster_home / "dagster.yaml")
        self.ports = {"4000": str(processes.free_port()), "3000": str(processes.free_port())}
        workspace = COMPOSE["configs"]["workspace"]["content"]
        (dagster_home / "workspace.yaml").write_text(
            self.here(workspace.replace("host: code-server", "host: 127.0.0.1"))
        )

    def here(self, text: str) -> str:
        """Ports, addresses and paths of the containers -> ours."""
        for container, ours in self.ports.items():
            text = re.sub(rf"\b{container}\b", ours, text)
        text = text.replace("/opt/dagster", str(self.directory / "dagster"))
        return text.replace("0.0.0.0", "127.0.0.1")

    def environment(self, name: str) -> dict[str, str]:
        """The service's environment, its servers replaced by ours."""
        database, redis = urlsplit(self.database_url), urlsplit(self.redis_url)
        our_database = database.netloc.split("@")[1] + database.path
        passwords = _passwords(
            FEATURE_PIPELINE_POSTGRES_PASSWORD=database.password,
            FEATURE_PIPELINE_REDIS_PASSWORD=redis.password,
        )
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        service = {
            variable: _interpolated(value, passwords)
            .replace("timescaledb:5432/feature_pipeline", our_database)
            .replace("redis:6379", redis.netloc.split("@")[1])
            for variable, value in SERVICES[name]["environment"].items()
        }
        programs = str(Path(sys.executable).parent)
        return (
            kept
            | service
            | {
                "DAGSTER_HOME": str(self.directory / "dagster"),
                "PATH": f"{programs}:{kept['PATH']}",
            }
        )

    def start(self, name: str) -> subprocess.Popen[str]:
        """The service's command."""
        command = [self.here(word) for word in SERVICES[name]["command"]]
        with (self.directory / f"{name}.log").open("w") as log:
            child = subprocess.Popen(
                command, env=self.environment(name), cwd=self.directory, stdout=log, stderr=log
            )
        self.children.append(child)
        return child

    def healthy(self, name: str) -> bool:
        """What the service's health check says."""
        kind, *check = SERVICES[name]["healthcheck"]["test"]
        assert kind == "CMD"
        done = subprocess.run(
            [self.here(word) for word in check],
            env=self.environment(name),
            cwd=self.directory,
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    def stop(self) -> None:
        """All of them, as compose does."""
        for child in reversed(self.children):
            child.terminate()
        for child in self.children:
            child.wait(60)


@pytest.fixture
def logins(database_url):
    """What the image does once: the users that the services connect as."""
    content = _interpolated(COMPOSE["configs"]["logins"]["content"], _passwords())
    with psycopg.connect(database_url, autocommit=True) as connection:
        for statement in content.strip().rstrip(";").split(";"):
            # Roles are the server's, and other tests have made those without a login.
            with contextlib.suppress(psycopg.errors.DuplicateObject):
                connection.execute(statement)
        yield
        for user in ("feature_pipeline_run", "feature_pipeline_read"):
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [user]
            )
            connection.execute(f"DROP OWNED BY {user} CASCADE")
            connection.execute(f"DROP ROLE {user}")


@pytest.fixture
def native(database_url, redis_url, tmp_path, logins):
    services = _Native(database_url, redis_url, tmp_path)
    yield services
    services.stop()


def test_each_command_starts_and_is_healthy(native, database_url):
    migrate = native.start("migrate")
    assert migrate.wait(120) == 0, (native.directory / "migrate.log").read_text()
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM partition_ledger").fetchone() == (0,)
    environment = native.environment("code-server")
    for name, may in (("DATABASE_URL", True), ("READER_DATABASE_URL", False)):
        with psycopg.connect(environment[f"FEATURE_PIPELINE_{name}"]) as connection:
            assert connection.execute(
                "SELECT has_table_privilege('ohlcv_1d', 'SELECT'),"
                " has_table_privilege('ohlcv_1d', 'INSERT'),"
                " has_schema_privilege('public', 'CREATE')"
            ).fetchone() == (True, may, False)
    for name in DAGSTER:
        child = native.start(name)
        until(
            lambda name=name, child=child: child.poll() is not None or native.healthy(name),
            f"{name} does not become healthy",
            seconds=90,
        )
        assert child.poll() is None, (native.directory / f"{name}.log").read_text()
    ui = f"http://127.0.0.1:{native.ports['3000']}"
    query = "{repositoriesOrError{...on RepositoryConnection{nodes{location{name}}}}}"
    request = urllib.request.Request(
        f"{ui}/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        nodes = json.load(answer)["data"]["repositoriesOrError"]["nodes"]
    assert nodes == [{"location": {"name": "feature_pipeline"}}]


def _documented() -> list[list[str]]:
    """What the pages have compose run in a service: its name, and the words after it."""
    found = []
    for page in sorted((ROOT / "docs/how-to").glob("*.md")):
        for line in re.findall(r"^docker compose run .*", page.read_text(), flags=re.MULTILINE):
            words = shlex.split(line)
            found.append(words[words.index("feature-pipeline") - 1 :])
    return found


def test_what_the_pages_run_in_a_service_does_what_it_should(native, tmp_path):
    assert native.start("migrate").wait(120) == 0
    done = []
    for service, *words in _documented():
        if words[1] in ("upkeep", "backup"):  # the others want an empty database, or rows
            folder = tmp_path / words[-1].split("/")[1]
            folder.mkdir()
            here = [*words[:-1], words[-1].replace(f"/{folder.name}", str(folder))]
            said = subprocess.run(
                here, env=native.environment(service), cwd=tmp_path, capture_output=True, text=True
            )
            assert said.returncode == 0, said.stderr
        assert service == "migrate", "the one that has the owner's address"
        done.append(words[1])
    assert sorted(done) == ["backup", "online", "restore", "upkeep"]


def test_the_redis_configuration_is_one_that_redis_takes(tmp_path):
    from feature_pipeline.stack.redis import _binary

    port = processes.free_port()
    content = _interpolated(COMPOSE["configs"]["redis"]["content"], _passwords())
    content = content.replace("0.0.0.0", "127.0.0.1") + f"port {port}\n"
    child = subprocess.Popen(
        [_binary(), "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        child.stdin.write(content)
        child.stdin.close()
        import redis

        client = redis.Redis(port=port, password=SECRET)

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

        until(answers, "it does not answer")
        assert client.config_get("maxmemory")["maxmemory"] == str(512 * 1024**2)
    finally:
        child.terminate()
        child.wait(30)
        child.stdout.close()
