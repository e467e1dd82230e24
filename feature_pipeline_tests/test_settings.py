"""Settings: what the environment may say, and that nothing it says leaks."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.errors import SettingsError
from feature_pipeline.settings import Settings, redact
from feature_pipeline.timeframes import shortest_run

SECRET = "hunter2tail"


def test_defaults_need_no_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    assert settings.home == tmp_path / ".feature_pipeline"
    assert settings.database_url is None
    assert settings.redis_url is None
    assert settings.max_partitions_per_run == {"1m": 5, "5m": 20, "1h": 90, "1d": 0}


def test_the_environment_is_read(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATURE_PIPELINE_HOME", str(tmp_path))
    monkeypatch.setenv("FEATURE_PIPELINE_UI_PORT", "3001")
    monkeypatch.setenv("FEATURE_PIPELINE_MAX_PARTITIONS_PER_RUN", "30")
    monkeypatch.setenv("FEATURE_PIPELINE_REDIS_URL", "")
    settings = Settings()
    assert (settings.home, settings.ui_port) == (tmp_path, 3001)
    assert set(settings.max_partitions_per_run.values()) == {30}
    assert settings.redis_url is None, "an empty variable is an unset one"


def test_days_per_run_by_timeframe(monkeypatch):
    monkeypatch.setenv("FEATURE_PIPELINE_MAX_PARTITIONS_PER_RUN", "1d=365, 1m=1,1h=0")
    found = Settings().max_partitions_per_run
    assert found == {"1m": 1, "5m": 20, "1h": 0, "1d": 365}
    assert shortest_run(["ohlcv_1m", "features_1d"], found) == 1
    assert shortest_run(["ohlcv_1d", "news"], found) == 365
    assert shortest_run(["news"], found) == 365
    assert shortest_run(["ohlcv_1h"], found) == 0


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("UI_PORT", "http"),
        ("UI_PORT", "70000"),
        ("MAX_PARTITIONS_PER_RUN", "-1"),
        ("MAX_PARTITIONS_PER_RUN", "1d=30,2h=4"),
        ("MAX_PARTITIONS_PER_RUN", "1d=30,4"),
        ("MAX_PARTITIONS_PER_RUN", "1d="),
        ("DATABASE_TIMEOUT_S", "0"),
        ("HOLE_WAIT_S", "-3"),
        ("UNIVERSE", "/nowhere/universe.yaml"),
        ("DATABASE_URL", "mysql://u:p@host/db"),
        ("DATABASE_URL", "postgresql://host"),
        ("DATABASE_URL", "postgresql://u:p@host:port/db"),
        ("READER_DATABASE_URL", "postgresql://u:p@host/db"),  # beside no other
        ("OWNER_DATABASE_URL", "mysql://u:p@host/db"),
        ("DAGSTER_DATABASE_URL", "postgresql://u:p@host/db"),
        ("REDIS_URL", "host:6379"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_variable(monkeypatch, variable, value):
    monkeypatch.setenv(f"FEATURE_PIPELINE_{variable}", value)
    with pytest.raises(SettingsError) as caught:
        Settings()
    message = str(caught.value)
    assert message.startswith(f"FEATURE_PIPELINE_{variable}: ")
    assert "\n" not in message


@pytest.mark.parametrize("character", list("@/#?:"))
@pytest.mark.parametrize("position", ["user:{}", "{}"])
def test_an_unescaped_character_is_refused_without_showing_the_password(
    monkeypatch, character, position
):
    password = f"abc{character}{SECRET}"
    monkeypatch.setenv(
        "FEATURE_PIPELINE_DATABASE_URL", f"postgresql://{position.format(password)}@host:5432/db"
    )
    if position == "{}" and character == ":":
        assert SECRET not in repr(Settings())  # a user and a password: nothing wrong with it
        return
    with pytest.raises(SettingsError) as caught:
        Settings()
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "percent-encoded" in str(caught.value) or "names no host" in str(caught.value)


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=8))
def test_an_encoded_password_is_accepted_and_never_shown(password):
    secret = f"{password}{SECRET}"
    url = f"postgresql://user:{quote(secret, safe='')}@host:5432/db?sslmode=require"
    settings = Settings(database_url=url)
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == url
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()}"
    assert redact(url) == "postgresql://user@host:5432/db"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@a:5432,b:5433/db",
        "postgresql://u:p@[::1]:5432/db",
        "postgresql:///db?host=/var/run/postgresql",
        "postgres://u@host/db",
    ],
)
def test_every_form_of_address_is_accepted(url):
    assert Settings(database_url=url).database_url is not None


def test_an_error_about_one_variable_does_not_show_another(monkeypatch):
    monkeypatch.setenv("FEATURE_PIPELINE_REDIS_URL", f"redis://:{SECRET}@host:1/0")
    monkeypatch.setenv("FEATURE_PIPELINE_UI_PORT", "x")
    with pytest.raises(SettingsError) as caught:
        Settings()
    assert SECRET not in str(caught.value)


def test_a_credential_is_what_can_be_sent():
    """As files and shells hand them over: with a line's end; set to nothing is not set."""
    held = Settings(
        fred_api_key="abc\n", edgar_contact=" Jane Doe jane@example.com ", gnews_key="\n"
    )
    assert held.fred_api_key.get_secret_value() == "abc"
    assert held.edgar_contact.get_secret_value() == "Jane Doe jane@example.com"
    assert held.gnews_key is None
    for wrong in ("Jane\u2019s jane@example.com", "Jane\r\nX-Y: z"):
        with pytest.raises(SettingsError) as caught:
            Settings(edgar_contact=wrong)
        assert str(caught.value) == (
            "FEATURE_PIPELINE_EDGAR_CONTACT: it holds a character that cannot be sent; write it in "
            "plain ASCII"
        )


def test_a_relative_home_is_that_of_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Settings(home=Path("x")).home == tmp_path / "x"
