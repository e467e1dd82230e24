"""Environment variables -> typed settings.

Everything that a deployment may change is a field here, read from `FEATURE_PIPELINE_<FIELD>`. What
a quant may change (the universe, the features) is data or code, not a setting. No I/O and no clock;
nothing is opened or connected to. Secrets never appear in a repr or in an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from feature_pipeline.errors import SettingsError
from feature_pipeline.timeframes import TIMEFRAMES

PREFIX = "FEATURE_PIPELINE_"

_SCHEMES = {
    "database_url": ("postgresql", "postgres"),
    "reader_database_url": ("postgresql", "postgres"),
    "owner_database_url": ("postgresql", "postgres"),
    "dagster_database_url": ("postgresql+psycopg2",),
    "redis_url": ("redis", "rediss", "unix"),
    "alert_webhook": ("https", "http"),
}


class Settings(BaseSettings):
    """What the environment says; `Settings()` reads it, arguments override it.

    Raises:
        SettingsError: a variable holds something that cannot be used; the message names it and
            never shows what it holds.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    database_url: SecretStr | None = Field(
        default=None, description="PostgreSQL to use instead of the embedded one"
    )
    reader_database_url: SecretStr | None = Field(
        default=None,
        description="the same database, as who may only read: for what serves values; default: "
        "that address",
    )
    owner_database_url: SecretStr | None = Field(
        default=None,
        description="the same database, as the owner of its tables: for `migrate`, `upkeep`, "
        "`backup` and `restore`; default: that address",
    )
    redis_url: SecretStr | None = Field(
        default=None, description="Redis to use instead of the embedded one"
    )
    dagster_database_url: SecretStr | None = Field(
        default=None,
        description="Dagster's own storage, postgresql+psycopg2://; default: beside our tables",
    )
    home: Path = Field(
        default=Path(".feature_pipeline"), description="state, logs and data of the embedded stack"
    )
    universe: Path | None = Field(default=None, description="universe.yaml to use instead of ours")
    ui_port: int | None = Field(
        default=None, ge=1, le=65535, description="port of the Dagster UI; default: a free one"
    )
    max_partitions_per_run: Annotated[Mapping[str, int], NoDecode] = Field(
        default={},
        validate_default=True,
        description="days per run of a backfill, of all bars (`30`) or by timeframe "
        "(`1d=365,1m=1`); 0: the whole range in one run; default: "
        + ",".join(f"{t.name}={t.days_per_run}" for t in TIMEFRAMES.values()),
    )
    database_timeout_s: float = Field(
        default=300.0, gt=0, description="deadline of one database statement, kept by the client"
    )
    hole_wait_s: float = Field(
        default=900.0, ge=0, description="how long a read waits for a day that is being written"
    )
    refetch_days: int = Field(
        default=7, ge=0, description="days before today that a schedule asks for again"
    )
    source_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^@?#\s]+$",
        description="where this source tree is shown in the web, for links from assets to code: "
        "https://github.com/OWNER/REPOSITORY/blob/main",
    )
    alert_webhook: SecretStr | None = Field(
        default=None, description="https:// address that failures are sent to, as JSON"
    )
    macro_source: Literal["sample", "fred"] = Field(
        default="sample", description="who is asked for macro series"
    )
    fred_api_key: SecretStr | None = Field(
        default=None, description="key of the FRED API, free of charge; without it fred is off"
    )
    reddit_client_id: SecretStr | None = Field(
        default=None, description="id of a Reddit app of type script; without it reddit is off"
    )
    reddit_client_secret: SecretStr | None = Field(
        default=None, description="secret of that app; without it reddit is off"
    )
    gnews_key: SecretStr | None = Field(
        default=None, description="key of the GNews API (gnews.io); without it gnews is off"
    )
    newsapi_key: SecretStr | None = Field(
        default=None, description="key of NewsAPI (newsapi.org); without it newsapi is off"
    )
    gnews_delay_h: float = Field(
        default=12.0, ge=0, description="hours by which the plan of that key is late; paid: 0"
    )
    newsapi_delay_h: float = Field(
        default=24.0, ge=0, description="hours by which the plan of that key is late; paid: 0"
    )
    edgar_contact: SecretStr | None = Field(
        default=None,
        description="who asks, as the SEC wants to know it of every client: "
        "`Company name name@example.com`; without it edgar is off",
    )
    scorer: Literal["vader", "finbert", "finbert-int8"] = Field(
        default="vader", description="sentiment model whose scores the features read"
    )
    models: Path | None = Field(
        default=None, description="where models are kept; default: `models` in home"
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_one_line(error)) from None

    @field_validator(*_SCHEMES)
    @classmethod
    def _usable_url(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None and info.field_name is not None:
            _check_url(value.get_secret_value(), _SCHEMES[info.field_name])
        return value

    @field_validator("reader_database_url", "owner_database_url")
    @classmethod
    def _beside_another(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None and info.data.get("database_url", value) is None:
            raise ValueError(f"set {PREFIX}DATABASE_URL as well: it is for some commands only")
        return value

    @field_validator(
        "fred_api_key",
        "reddit_client_id",
        "reddit_client_secret",
        "gnews_key",
        "newsapi_key",
        "edgar_contact",
    )
    @classmethod
    def _sendable(cls, value: SecretStr | None) -> SecretStr | None:
        """Without the space and line breaks around it; client libraries raise what they like at
        anything else that a header cannot carry."""
        text = "" if value is None else value.get_secret_value().strip()
        if not (text.isascii() and text.isprintable()):
            raise ValueError("it holds a character that cannot be sent; write it in plain ASCII")
        return SecretStr(text) if text else None

    @field_validator("home", "models")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("max_partitions_per_run", mode="before")
    @classmethod
    def _of_each_timeframe(cls, value: int | str | Mapping[str, int]) -> Mapping[str, int]:
        usual = {name: timeframe.days_per_run for name, timeframe in TIMEFRAMES.items()}
        if isinstance(value, Mapping):
            return {**usual, **value}
        parts = [part.partition("=") for part in str(value).replace(" ", "").split(",")]
        if parts[0][1] == "" and len(parts) == 1:
            parts = [(name, "=", parts[0][0]) for name in usual]
        found = {name: days for name, _, days in parts}
        if not found.keys() <= usual.keys() or not all(map(str.isdecimal, found.values())):
            raise ValueError(
                "write days (30), or days by timeframe (1d=365,1m=1); timeframes are "
                + ", ".join(usual)
            )
        return usual | {name: int(days) for name, days in found.items()}

    @field_validator("universe")
    @classmethod
    def _existing_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"there is no file {value}")
        return value


def _check_url(url: str, schemes: tuple[str, ...]) -> None:
    """Refuse what a client library would misread: it would show the password's tail in its errors.

    Raises:
        ValueError: without any part of the URL that could hold a secret.
    """
    unescaped = ValueError(
        "the user name or password holds a character that must be percent-encoded "
        "(@ as %40, / as %2F, : as %3A, # as %23, ? as %3F)"
    )
    scheme, colon, _ = url.partition("://")
    if not colon or scheme not in schemes:
        raise ValueError(f"it must start with {' or '.join(s + '://' for s in schemes)}")
    parts = urlsplit(url)
    userinfo, _, hosts = parts.netloc.rpartition("@")
    secret = "@" in userinfo or userinfo.count(":") > 1 or "@" in parts.path + parts.fragment
    if secret or parts.fragment or (not userinfo and "@" in parts.query):
        raise unescaped
    try:
        parse_qsl(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        raise unescaped from None
    if scheme == "unix":
        return
    if not hosts and "host=" not in parts.query:
        raise ValueError("it names no host")
    for host in hosts.split(","):
        port = host.rpartition("]")[2].partition(":")[2]  # [::1]:5432 has colons of its own
        if port and not (port.isdecimal() and 0 < int(port) < 65536):
            raise unescaped if not userinfo else ValueError("its port is not a number up to 65535")
    if scheme.startswith("postgres") and not parts.path.strip("/"):
        raise ValueError("it names no database (postgresql://user:password@host:port/database)")


def redact(url: str) -> str:
    """The address as it may be shown: scheme, user, hosts and database, never a secret.

    What comes after `?` may hold one and is left out as well.
    """
    parts = urlsplit(url)
    userinfo, _, hosts = parts.netloc.rpartition("@")
    user = userinfo.partition(":")[0]
    return f"{parts.scheme}://{user + '@' if user else ''}{hosts}{parts.path}"


def _one_line(error: ValidationError) -> str:
    lines = []
    for detail in error.errors(include_input=False, include_url=False, include_context=False):
        name = PREFIX + "_".join(str(part) for part in detail["loc"]).upper()
        lines.append(f"{name}: {detail['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)
