"""A canary in every credential: nothing that is said, written or kept holds it.

Each is two words with characters between them that have to be escaped: whoever cuts an address at
the wrong place shows one of the words.
"""

from __future__ import annotations

import base64
import itertools
import logging
import secrets
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import UnionType
from typing import Any, get_args
from urllib.parse import quote, urlsplit

import dagster as dg
import psycopg
import pytest
import yaml
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)
from dagster_shared.serdes import serialize_value
from pydantic import SecretStr
from typer.testing import CliRunner

from feature_pipeline.automation.alerts import Herald, failed_run
from feature_pipeline.cli import app
from feature_pipeline.definitions import JOB, build_defs
from feature_pipeline.errors import FeaturePipelineError, SettingsError
from feature_pipeline.features.catalogue import TABLES
from feature_pipeline.online import keys
from feature_pipeline.online.client import publishing_client
from feature_pipeline.resources import CREDENTIALS, macro_source, off, sources
from feature_pipeline.schemas import Fetched
from feature_pipeline.settings import PREFIX, Settings
from feature_pipeline.sources import (
    BarSource,
    DocumentSource,
    InsiderSource,
    MacroSource,
)
from feature_pipeline.stack import foreground
from feature_pipeline.universe import Universe
from feature_pipeline_tests.providers.everywhere import Everywhere, everywhere
from feature_pipeline_tests.providers.server import (
    Answer,
    ProviderServer,
    broken,
    html,
    hung_up,
    too_many,
)

# Those who are asked live alone are asked, too.
TODAY = datetime.now(UTC).date()
PRICES = ("ohlcv_1d", "corporate_actions")
DAYS = (TODAY - timedelta(days=3), TODAY + timedelta(days=1))


def is_secret(annotation: object) -> bool:
    return annotation is SecretStr or (
        isinstance(annotation, UnionType) and SecretStr in get_args(annotation)
    )


SECRETS = [name for name, field in Settings.model_fields.items() if is_secret(field.annotation)]


class Canary:
    """A secret for each credential, and the eye that sees any part of one."""

    def __init__(self) -> None:
        self.words = {
            name: tuple(f"canary{secrets.token_hex(6)}" for _ in "ab") for name in SECRETS
        }
        self.secret = {name: f"{one}@/{other}" for name, (one, other) in self.words.items()}

    def found(self, text: str) -> list[str]:
        """The credentials of which the text holds a part, as it is or in base64."""
        return [
            name
            for name, words in self.words.items()
            if any(word in text for word in words)
            or any(piece in text for piece in _in_base64(self.secret[name]))
            or any(piece in text for word in words for piece in _in_base64(word))
        ]

    def assert_absent(self, text: str, where: str) -> None:
        for name in self.found(text):
            place = min(text.find(w) % (len(text) + 1) for w in self.words[name])
            pytest.fail(f"{name} in {where}: ...{text[max(place - 200, 0) : place + 120]}")


def _in_base64(text: str) -> Iterator[str]:
    """What stays the same wherever in a longer text it stands."""
    for before in range(3):
        packed = base64.b64encode(b"x" * before + text.encode()).decode().rstrip("=")
        yield packed[4:-2]


@pytest.fixture
def canary() -> Canary:
    return Canary()


def settings_with(canary: Canary, universe: Path | None = None, **given: str) -> Settings:
    """Every credential set; `given` are the addresses, into which the secret of each is put."""
    values = {name: SecretStr(canary.secret[name]) for name in SECRETS}
    # Words that a header can hold, and what EDGAR wants to know.
    one, other = canary.words["edgar_contact"]
    values["edgar_contact"] = SecretStr(f"{one} {other}@example.com")
    canary.secret["edgar_contact"] = values["edgar_contact"].get_secret_value()
    for name, address in given.items():
        values[name] = SecretStr(address.format(quote(canary.secret[name], safe="")))
    return Settings(**values, macro_source="fred", universe=universe)


DATABASES = (
    "database_url",
    "reader_database_url",
    "owner_database_url",
    "dagster_database_url",
)
NOWHERE = {
    "database_url": "postgresql://canary:{}@127.0.0.1:9/feature_pipeline",
    "reader_database_url": "postgresql://canary:{}@127.0.0.1:9/feature_pipeline",
    "owner_database_url": "postgresql://canary:{}@127.0.0.1:9/feature_pipeline",
    "dagster_database_url": "postgresql+psycopg2://canary:{}@127.0.0.1:9/dagster",
    "redis_url": "redis://canary:{}@127.0.0.1:9/0",
    "alert_webhook": "http://127.0.0.1:9/hook/{}",
}


# -- the eye --------------------------------------------------------------------------------------


def test_no_credential_is_a_plain_text():
    """A new one is found by its type; this finds one that has the wrong type."""
    names = ("key", "secret", "password", "token", "contact", "webhook", "credential", "client_id")
    assert set(SECRETS) >= {n for n in Settings.model_fields if any(word in n for word in names)}
    assert {name for needed in CREDENTIALS.values() for name in needed} <= set(SECRETS)
    assert len(SECRETS) >= 10


def test_the_eye_sees_every_form(canary):
    for name, secret in canary.secret.items():
        for form in (
            secret,
            quote(secret, safe=""),
            secret.partition("@")[2],
            secret.partition("@")[0],
            base64.b64encode(secret.encode()).decode(),
            base64.b64encode(f"user:{secret}".encode()).decode(),
            base64.urlsafe_b64encode(f"id:{secret}:more".encode()).decode(),
            repr(secret.encode()),
        ):
            assert canary.found(f"...{form}...") == [name], form
    assert canary.found("canary") == []


def test_settings_show_none(canary):
    held = settings_with(canary, **NOWHERE)
    for text in (repr(held), str(held), repr(held.model_dump()), held.model_dump_json()):
        canary.assert_absent(text, "the settings")


@pytest.mark.parametrize("name", [n for n in SECRETS if n.endswith(("_url", "webhook"))])
def test_an_address_that_is_none_is_not_quoted(canary, name):
    secret = canary.secret[name]
    for shape in ("{}", "nothing://u:{}@h/d", "postgresql://u:{}@h:x/d", "redis://u:{}", "h:{}"):
        text = shape.format(secret)
        with pytest.raises(SettingsError) as caught:
            Settings(**{name: text})
        canary.assert_absent(_all_of(caught.value), "the error")


def _all_of(error: BaseException) -> str:
    """All that a log could say of an error: causes, notes and the code around it."""
    seen = [str(error), repr(error), *traceback.format_exception(error)]
    return "\n".join(seen)


# -- providers that fail --------------------------------------------------------------------------


def answers(*given: Answer) -> Callable[[], Answer]:
    turn = itertools.cycle(given)
    return lambda: next(turn)


FAULTS: dict[str, Callable[[], Answer] | None] = {
    "401": answers(Answer(401, b'{"error_message": "Bad Request. The key is not right."}')),
    "403": answers(Answer(403, b"<h1>Forbidden</h1>")),
    "500": answers(broken()),
    "429": answers(too_many("0"), too_many("3600")),
    "html": answers(html()),
    "hung up": answers(hung_up()),
    "empty": answers(Answer(200, b"{}")),
    "sent elsewhere": answers(Answer(302, b"", {"Location": "https://elsewhere.example/?a=b"})),
    "gone": None,
}


@pytest.fixture
def world(tmp_path, monkeypatch) -> Iterator[Everywhere]:
    """Nobody reaches the real one, and nobody waits between attempts."""
    monkeypatch.setattr("feature_pipeline.sources.http._wait", lambda _: None)
    monkeypatch.setattr("feature_pipeline.sources.http.Limiter.try_acquire", lambda *_, **__: True)
    directory = tmp_path / "world"
    directory.mkdir()
    with everywhere(directory, monkeypatch) as made:
        yield made


def universe_of(found: Mapping[str, Any]) -> str:
    """An instrument for each provider of bars; the others are asked about all of them."""

    def providers(kind: type) -> list[str]:
        return sorted(name for name, source in found.items() if isinstance(source, kind))

    documents = [name for name in providers(DocumentSource) if name != "sample"]
    news = [name for name in documents if name != "reddit"]
    entries = [
        {
            "id": f"S{number}",
            "name": "Made Incorporated",
            "asset_class": "equity",
            "calendar": "XNYS",
            "sector": "made",
            "source": {
                "bars": bars,
                "actions": bars,
                **({"news": news} if news else {}),
                **({"reddit": "reddit"} if "reddit" in documents else {}),
                **({"insiders": "edgar"} if "edgar" in found else {}),
            },
            "cik": 320193,
            "symbols": [{"symbol": f"S{number}", "from": date(2000, 1, 3)}],
            "tickers": {"dukascopy": "EUR/USD", "binance": "BTC/USDT"},
            "membership": [{"from": TODAY - timedelta(days=20)}],
        }
        for number, bars in enumerate(n for n in providers(BarSource) if n != "sample")
    ]
    return yaml.safe_dump(
        {
            "benchmark": "S0",
            "instruments": entries,
            "subreddits": ["stocks"],
            "feeds": ["https://feeds.example.com/rss"],
        }
    )


def providers_of(settings: Settings, universe: Universe) -> dict[str, Any]:
    """All that may be asked, by name; the sample asks nobody."""
    found = {**sources(settings, universe), "macro": macro_source(settings)}
    return {name: source for name, source in found.items() if name != "sample"}


@pytest.fixture
def all_settings(canary, tmp_path, world) -> Settings:
    """With a universe that names every provider there is."""
    found = providers_of(settings_with(canary, **NOWHERE), Universe.load())
    path = tmp_path / "universe.yaml"
    path.write_text(universe_of(found), encoding="utf-8")
    return settings_with(canary, path, **NOWHERE)


def questions(source: Any, universe: Universe) -> Iterator[Callable[[], Fetched]]:
    """Everything that a provider can be asked."""
    about = universe.instruments[:1]
    if isinstance(source, BarSource):
        yield lambda: source.bars(about, *DAYS)
        yield lambda: source.actions(about, *DAYS)
    if isinstance(source, DocumentSource):
        yield lambda: source.documents(
            "news" if source.name != "reddit" else "reddit", about, *DAYS
        )
    if isinstance(source, InsiderSource):
        yield lambda: source.insiders(about, *DAYS)
    if isinstance(source, MacroSource):
        yield lambda: source.macro(tuple(source.series)[:2], *DAYS)


def reaching_by_python(source: Any, url: str) -> Any:
    """Yahoo's client asks the DNS by itself, past the world: it is told where to ask."""
    return type(source)(base_url=url) if source.name == "yahoo" else source


@pytest.mark.parametrize("fault", FAULTS)
def test_no_provider_says_it_when_it_fails(canary, all_settings, world, caplog, fault):
    universe = Universe.load(all_settings.universe)
    assert off(all_settings) == {}, "every provider has its credentials"
    world.gone = FAULTS[fault] is None
    world.answer = FAULTS[fault] or Answer
    heard = []
    with (
        caplog.at_level(logging.DEBUG),
        ProviderServer({"/": lambda _: world.answer()}) as server,
    ):
        url = "http://127.0.0.1:9" if world.gone else server.url
        for name, source in providers_of(all_settings, universe).items():
            canary.assert_absent(f"{source!r} {source}", f"the representation of {name}")
            for ask in questions(reaching_by_python(source, url), universe):
                try:
                    answer = ask()
                except FeaturePipelineError as error:
                    heard.append((name, _all_of(error)))
                else:
                    heard.append((name, f"{answer!r} {answer.frame.write_json()}"))
    for name, said in heard:
        canary.assert_absent(said, f"what {name} says")
    canary.assert_absent(caplog.text, "the log")
    for record in caplog.records:
        canary.assert_absent(repr(record.__dict__), "a log record")
    asked = {name for name, _ in heard}
    assert asked == set(providers_of(all_settings, universe))


def test_they_were_asked_with_their_secrets(canary, all_settings, world):
    """Else the test above would prove nothing."""
    universe = Universe.load(all_settings.universe)
    world.answer = answers(Answer(200, b"{}"))
    for name, source in providers_of(all_settings, universe).items():
        if name != "yahoo":
            for ask in questions(source, universe):
                with suppress(FeaturePipelineError):
                    ask()
    seen = " ".join(said for _, said in world.asked)
    for provider, names in CREDENTIALS.items():
        if provider in sources(all_settings, universe) or provider == "fred":
            assert set(names) & set(canary.found(seen)), provider


# -- the graph ------------------------------------------------------------------------------------


@pytest.fixture
def links(canary, postgres_server, migrated_database_url, redis_server) -> Iterator[dict[str, str]]:
    """The addresses of servers that know the canaries as passwords."""
    user = f"canary_{secrets.token_hex(4)}"
    database = urlsplit(migrated_database_url)
    redis = urlsplit(redis_server.url)
    roles = {name: f"{user}_{name}" for name in DATABASES}
    sql = psycopg.sql
    with (
        psycopg.connect(migrated_database_url, autocommit=True) as link,
        publishing_client(redis_server.url) as client,
    ):
        for name, role in roles.items():
            link.execute(
                sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}").format(
                    sql.Identifier(role), sql.Literal(canary.secret[name])
                )
            )
        client.acl_setuser(
            user,
            enabled=True,
            passwords=[f"+{canary.secret['redis_url']}"],
            keys=["*"],
            channels=["*"],
            commands=["+@all"],
        )
        at = f"127.0.0.1:{database.port}{database.path}"
        yield {
            **NOWHERE,
            **{
                name: f"{urlsplit(NOWHERE[name]).scheme}://{role}:{{}}@{at}"
                for name, role in roles.items()
            },
            "redis_url": f"redis://{user}:{{}}@127.0.0.1:{redis.port}/0",
        }
        client.acl_deluser(user)
        for role in roles.values():
            link.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [role]
            )
            for statement in ("DROP OWNED BY {} CASCADE", "DROP ROLE {}"):
                link.execute(sql.SQL(statement).format(sql.Identifier(role)))


def all_that_is_kept(instance: dg.DagsterInstance) -> Iterator[tuple[str, str]]:
    """Runs with their tags, and every event with its metadata, as it is stored."""
    for run in instance.get_runs():
        yield "a run", f"{serialize_value(run)} {run!r}"
        for record in instance.all_logs(run.run_id):
            yield "an event", f"{serialize_value(record)} {record!r}"


@pytest.mark.parametrize("fault", ["401", "no database"])
def test_no_run_keeps_it_when_providers_fail(
    canary, all_settings, links, world, tmp_path, capfd, caplog, fault
):
    held = settings_with(
        canary, all_settings.universe, **(NOWHERE if fault == "no database" else links)
    )
    world.answer = FAULTS["401"] or Answer
    found = sources(held, Universe.load(held.universe))
    with ProviderServer({"/": lambda _: world.answer()}) as server:
        found = {name: reaching_by_python(s, server.url) for name, s in found.items()}
        defs = build_defs(held, sources=found)
        canary.assert_absent(f"{defs!r} {defs.resources}", "the definitions")
        # Prices come from providers that know nobody.
        wanted = [n for n, t in TABLES.items() if not t.derived and n not in PRICES]
        with (
            caplog.at_level(logging.DEBUG),
            dg.DagsterInstance.ephemeral() as instance,
        ):
            result = defs.resolve_job_def(JOB).execute_in_process(
                instance=instance,
                tags={
                    ASSET_PARTITION_RANGE_START_TAG: DAYS[0].isoformat(),
                    ASSET_PARTITION_RANGE_END_TAG: (DAYS[1] - timedelta(days=1)).isoformat(),
                },
                asset_selection=[dg.AssetKey(name) for name in wanted],
                raise_on_error=False,
            )
            kept = list(all_that_is_kept(instance))
            run = instance.get_run_by_id(result.run_id)
    assert run is not None
    failures = [e for e in result.all_events if e.is_step_failure]
    assert failures, "providers that fail altogether fail their assets"
    assert len(kept) > 50
    for where, text in kept:
        canary.assert_absent(text, where)
    captured = capfd.readouterr()
    canary.assert_absent(captured.out + captured.err, "what is printed")
    canary.assert_absent(caplog.text, "the log")
    if fault == "401":
        _tell(canary, held, run, failures)


def _tell(
    canary: Canary, settings: Settings, run: dg.DagsterRun, failures: Sequence[dg.DagsterEvent]
) -> None:
    """Alerts of the failed run, at the webhook and in the channel."""
    with ProviderServer({"/": lambda _: Answer(200)}) as hook:
        secret = quote(canary.secret["alert_webhook"], safe="")
        told = settings.model_copy(update={"alert_webhook": SecretStr(f"{hook.url}/hook/{secret}")})
        assert settings.redis_url is not None
        with publishing_client(settings.redis_url.get_secret_value()) as client:
            channel = client.pubsub(ignore_subscribe_messages=True)
            channel.subscribe(keys.CHANNEL_ALERTS)
            channel.get_message(timeout=5)
            alert = failed_run(run, failures[0], failures)
            careless = alert.__class__(
                **{
                    **alert.__dict__,
                    "error": " ".join(
                        value.get_secret_value()
                        for value in (getattr(told, name) for name in SECRETS)
                        if value is not None
                    ),
                }
            )
            Herald(told).send(client, alert, careless)
            heard = [channel.get_message(timeout=5) for _ in range(2)]
            channel.close()
        assert len(hook.asked) == 2
        for request in hook.asked:
            canary.assert_absent(request.body.decode(), "an alert at the webhook")
        for message in heard:
            canary.assert_absent(repr(message), "an alert in the channel")


# -- commands -------------------------------------------------------------------------------------

COMMANDS = [
    ("doctor",),
    ("doctor", "--json"),
    ("migrate",),
    ("show", "S0"),
    ("get", "S0", "rsi_14", "--as-of", "2024-03-05"),
    ("explain", "S0", "ohlcv_1d.close"),
    ("storage",),
    ("quarantine", "list"),
    ("features", "diff"),
    ("online", "rebuild"),
    ("backfill", "--dry-run", "--start", "2024-03-04", "--end", "2024-03-05"),
    ("upkeep", "--dry-run"),
    ("logs",),
]


@pytest.mark.parametrize("servers", ["right", "wrong password", "gone"])
def test_no_command_says_it(
    canary, all_settings, links, world, tmp_path, monkeypatch, caplog, servers
):
    given = {"right": links, "gone": NOWHERE}.get(servers, links)
    if servers == "wrong password":
        for name in (*DATABASES, "redis_url"):
            one, other = canary.words[name]
            canary.secret[name] = f"{other}@/{one}"
    held = settings_with(canary, all_settings.universe, **given)
    home = tmp_path / "home"
    monkeypatch.setattr(foreground, "until_told", nullcontext)
    monkeypatch.setenv("COLUMNS", "300")
    variables = {
        f"{PREFIX}{name.upper()}": value.get_secret_value()
        for name, value in ((n, getattr(held, n)) for n in SECRETS)
        if value is not None
    } | {
        f"{PREFIX}HOME": str(home),
        f"{PREFIX}UNIVERSE": str(held.universe),
        f"{PREFIX}MACRO_SOURCE": "fred",
    }
    codes = {}
    with caplog.at_level(logging.DEBUG):
        for words in COMMANDS:
            done = CliRunner().invoke(app, words, env=variables, prog_name="feature-pipeline")
            said = done.output + done.stderr
            if done.exception is not None:
                said += _all_of(done.exception)
            canary.assert_absent(said, " ".join(words))
            assert done.exception is None or isinstance(done.exception, SystemExit), words
            codes[words] = done.exit_code
    canary.assert_absent(caplog.text, "the log")
    for path in home.rglob("*"):
        canary.assert_absent(str(path), "the name of a file")
        if path.is_file():
            canary.assert_absent(path.read_bytes().decode(errors="replace"), str(path))
    for name in ("migrate", "storage", "quarantine"):
        code = next(code for words, code in codes.items() if words[0] == name)
        assert (code == 0) == (servers == "right"), name
