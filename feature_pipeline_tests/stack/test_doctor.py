"""What `doctor` says of providers, of who is connected, and of what is not kept up."""

from __future__ import annotations

from itertools import takewhile
from urllib.parse import urlsplit

import psycopg
import pytest
from typer.testing import CliRunner

from feature_pipeline.cli import app
from feature_pipeline.resources import CREDENTIALS, macro_source, with_credentials
from feature_pipeline.settings import PREFIX, Settings
from feature_pipeline.sources import Off
from feature_pipeline.stack.doctor import Finding, findings
from feature_pipeline.storage import migrations
from feature_pipeline_tests.databases import created
from feature_pipeline_tests.roles import logins

CANARY = "canary-3f2a"
UNIVERSE = """
benchmark: A
instruments:
  - id: A
    asset_class: equity
    calendar: XNYS
    sector: tech
    cik: 320193
    source: {bars: sample, news: [sample, nobody], insiders: edgar}
    symbols: [{symbol: A, from: 2000-01-03}]
    membership: [{from: 2000-01-03}]
  - id: B
    asset_class: equity
    calendar: XNYS
    sector: tech
    source: {bars: feeds}
    symbols: [{symbol: B, from: 2000-01-03}]
    membership: [{from: 2000-01-03}]
"""


def sources(monkeypatch, **variables: str) -> dict[str, Finding]:
    for name, value in variables.items():
        monkeypatch.setenv(PREFIX + name.upper(), value)
    found = takewhile(lambda finding: finding.what not in ("postgres", "redis"), findings())
    return {f.what.removeprefix("source "): f for f in found if f.what.startswith("source ")}


def test_the_sample_is_on(monkeypatch):
    found = sources(monkeypatch)
    assert list(found) == ["sample"]
    assert found["sample"].right
    assert "macro" in found["sample"].found
    assert found["sample"].fix == ""


def test_who_is_off_is_no_error_and_says_what_to_set(monkeypatch, tmp_path):
    path = tmp_path / "universe.yaml"
    path.write_text(UNIVERSE)
    found = sources(monkeypatch, universe=str(path), macro_source="fred")
    assert list(found) == ["edgar", "feeds", "fred", "nobody", "sample"]
    assert found["fred"].right
    assert found["fred"].found == "off: no macro from it"
    assert found["fred"].fix == "set FEATURE_PIPELINE_FRED_API_KEY to switch it on"
    assert found["edgar"].right
    assert found["edgar"].found == "off: no insiders from it"
    assert "FEATURE_PIPELINE_EDGAR_CONTACT" in found["edgar"].fix
    # A name that nothing answers to is an error, and so is one that is asked for the wrong thing.
    assert not found["nobody"].right
    assert "sample" in found["nobody"].fix
    assert not found["feeds"].right
    assert found["feeds"].found == "universe.yaml names it for bars, which it does not have"


def test_with_its_credential_it_is_on_and_the_credential_is_not_shown(monkeypatch):
    found = sources(monkeypatch, macro_source="fred", fred_api_key=CANARY)
    assert found["fred"] == Finding(True, "source fred", "on: macro")
    assert CANARY not in repr(macro_source(Settings()))


@pytest.mark.parametrize("name", CREDENTIALS)
def test_every_credential_is_a_secret_setting_and_all_are_needed(name):
    for setting in CREDENTIALS[name]:
        assert setting in Settings.model_fields
    held = {setting: f"{CANARY}-{n}" for n, setting in enumerate(CREDENTIALS[name])}
    assert with_credentials(name, Settings(**held), lambda *given: given) == tuple(held.values())
    for setting in CREDENTIALS[name]:
        others = {k: v for k, v in held.items() if k != setting}
        off = with_credentials(name, Settings(**others), lambda *given: given)
        assert off == Off(name, f"{name} is off: set {PREFIX}{setting.upper()} to switch it on")
    assert CANARY not in repr(Settings(**held))


def test_it_says_as_whom_it_is_connected(monkeypatch, migrated_database_url, redis_url, make_home):
    """`migrate` goes to the owner of the tables, everything else to who may write, or read."""
    with logins(migrated_database_url) as users:
        for name in ("reader", "owner"):
            monkeypatch.setenv(f"{PREFIX}{name.upper()}_DATABASE_URL", users[name])
        monkeypatch.setenv(f"{PREFIX}DATABASE_URL", users["writer"])
        dagster = migrated_database_url.replace("postgresql://", "postgresql+psycopg2://")
        monkeypatch.setenv(f"{PREFIX}DAGSTER_DATABASE_URL", dagster)
        monkeypatch.setenv(f"{PREFIX}REDIS_URL", redis_url)
        monkeypatch.setenv(f"{PREFIX}HOME", str(make_home()))
        found = {f.what: f for f in findings()}
        for what, role in (("postgres", "writer"), ("postgres reader", "reader")):
            user = urlsplit(users[role]).username
            assert found[what].right
            assert found[what].found.endswith(f"as {user} ({role})")
        assert "(owner)" in found["postgres owner"].found
        assert all(f.right for what, f in found.items() if "postgres" in what or what == "tables")
        assert CliRunner().invoke(app, ["migrate"]).exit_code == 0
        # One that may do more than it is for is said; one that does not answer is wrong.
        monkeypatch.setenv(f"{PREFIX}READER_DATABASE_URL", users["writer"])
        monkeypatch.setenv(f"{PREFIX}OWNER_DATABASE_URL", users["owner"].replace("@", "x@"))
        found = {f.what: f for f in findings()}
        assert "feature_pipeline_reader alone" in found["postgres reader"].fix
        assert not found["postgres owner"].right
        assert "FEATURE_PIPELINE_OWNER_DATABASE_URL" in found["postgres owner"].fix
        assert CliRunner().invoke(app, ["migrate"]).exit_code == 1
        monkeypatch.delenv(f"{PREFIX}OWNER_DATABASE_URL")
        refused = CliRunner().invoke(app, ["migrate"])
        assert refused.exit_code == 1
        assert "permission denied" in refused.stderr


def kept(monkeypatch, url: str, what: str) -> Finding:
    """The one finding about a database of that name."""
    monkeypatch.setenv(f"{PREFIX}DATABASE_URL", url)
    monkeypatch.setenv(f"{PREFIX}REDIS_URL", "redis://127.0.0.1:1")
    (found,) = (f for f in findings() if f.what == what)
    return found


def test_logs_that_nobody_keeps_in_order(monkeypatch, migrated_database_url, make_home):
    url = migrated_database_url
    monkeypatch.setenv(f"{PREFIX}HOME", str(make_home()))
    assert kept(monkeypatch, url, "policies").right
    with psycopg.connect(url, autocommit=True) as link:
        link.execute(
            "INSERT INTO audit.system_events (timestamp, event_type, component, message)"
            " VALUES ('infinity', 'start', 'agent', 'up')"
        )
        assert kept(monkeypatch, url, "logs").right, "no upkeep would change it"
        link.execute("UPDATE audit.system_events SET timestamp = '2020-03-01Z'")
        (name,) = link.execute(
            "SELECT to_char(now() AT TIME ZONE 'UTC' + INTERVAL '1 month', '_YYYY_MM')"
        ).fetchone()
        link.execute(f"DROP TABLE audit.decisions{name}")
    found = kept(monkeypatch, url, "logs")
    assert not found.right
    assert found.found == (
        "1 rows without a partition of their month; audit.decisions has none for the next month"
    )
    assert found.fix.startswith("feature-pipeline upkeep")
    assert CliRunner().invoke(app, ["upkeep"]).exit_code == 0
    assert kept(monkeypatch, url, "logs").right


@pytest.mark.timescaledb
def test_policies_that_are_not_applied(monkeypatch, timescaledb_url, make_home):
    """TimescaleDB that came after the last `migrate`; a policy that was changed since."""
    monkeypatch.setenv(f"{PREFIX}HOME", str(make_home()))
    with created(timescaledb_url) as url:
        with monkeypatch.context() as before:
            before.setattr(migrations, "_apply_timescaledb", lambda _: None)
            migrations.migrate(url)
        found = kept(monkeypatch, url, "policies")
        assert (found.right, found.fix) == (False, "feature-pipeline migrate")
        assert "tables are plain" in found.found
        with psycopg.connect(url, autocommit=True) as link:
            link.execute("CREATE EXTENSION timescaledb")
            link.execute("SELECT _timescaledb_functions.stop_background_workers()")
            assert "ohlcv_1d" in kept(monkeypatch, url, "policies").found
            migrations.migrate(url)
            assert kept(monkeypatch, url, "policies").right
            for changed in (
                "chunk_interval = '9 days'",
                "compress_after = NULL",
                "compress_after = '9 days'",
                "order_by = 'available_at DESC'",
                "segment_by = NULL",
                "retention = '9 years'",
                "retention = NULL",
            ):
                link.execute(f"UPDATE storage_policies SET {changed} WHERE relation = 'documents'")
                found = kept(monkeypatch, url, "policies")
                assert (found.right, found.found) == (False, "not applied to documents"), changed
                migrations.migrate(url)
                with logins(url) as users:
                    assert kept(monkeypatch, users["reader"], "policies").right, changed
