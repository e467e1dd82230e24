"""What every command shares: the settings, the store, where output goes, moments, `--json`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_pipeline.timeframes import TIMEFRAMES

if TYPE_CHECKING:
    from rich.console import Console

    from feature_pipeline.schemas import TableSchema
    from feature_pipeline.settings import Settings
    from feature_pipeline.storage.store import Store

Timeframe = Annotated[
    str,
    typer.Option(
        help="Of which bars: 1d, 1h, 5m or 1m, as far as universe.yaml has them.",
        autocompletion=lambda: [*TIMEFRAMES],
    ),
]

AsOf = Annotated[
    str, typer.Option("--as-of", help="Only what was available by then; default: now.")
]

AsKnownAt = Annotated[
    str,
    typer.Option(
        "--as-known-at",
        help="As this database held it then, corrections since undone; derived values are "
        "computed again, from inputs as they were held, by the code as it is.",
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]


def console() -> Console:
    """Where tables and messages go."""
    from rich.console import Console

    return Console(highlight=False)


def settings() -> Settings:
    """What the environment says."""
    from feature_pipeline.settings import Settings

    return Settings()


def tables_of(timeframe: str) -> dict[str, TableSchema]:
    """The tables of this deployment.

    Raises:
        UniverseError: it has no such timeframe.
    """
    from feature_pipeline.errors import UniverseError
    from feature_pipeline.features.catalogue import ALL_TABLES
    from feature_pipeline.resources import load_universe

    there = load_universe(settings()).timeframes
    if timeframe not in there:
        raise UniverseError(
            f"there are no bars of {timeframe!r}, only of {', '.join(there)}; add it to "
            "`timeframes` in universe.yaml"
        )
    return {name: t for name, t in ALL_TABLES.items() if t.timeframe in (None, *there)}


@contextmanager
def opened(*, reading: bool = False) -> Iterator[tuple[Settings, Store]]:
    """The settings with the addresses of the servers that run, and the store on their database;
    `reading` - as who may only read.

    Embedded servers that do not run yet are started, and stopped again at the end.
    """
    from feature_pipeline.resources import store
    from feature_pipeline.stack import Stack, foreground

    with foreground.until_told(), Stack(settings()) as stack:
        current = stack.resolved_settings()
        held = store(current, reading=reading)
        with held.database:
            yield current, held


@dataclass(frozen=True)
class Asked:
    """A moment that a person wrote, in UTC, and whether with a time zone."""

    at: datetime
    zoned: bool


def moment(text: str, option: str) -> Asked | None:
    """The moment that an option holds; None where it was not given.

    Raises:
        FeatureError: it is no moment.
    """
    from feature_pipeline.serving.lookup import parse_moment

    return Asked(*parse_moment(text, option)) if text else None


def days(start: str, end: str) -> tuple[date, date]:
    """[start, end) of what a person wrote; an end that was left out is today.

    Raises:
        SettingsError: one of them is no day, or the end is before the start.
    """
    from feature_pipeline.partitions import parse_range
    from feature_pipeline.schemas import GRID_START

    today = datetime.now(UTC).date()
    return parse_range(start or GRID_START.isoformat(), end or today.isoformat())


def names(text: str) -> tuple[str, ...]:
    """The words of a comma-separated option."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def symbols_in(text: str) -> tuple[str, ...]:
    """The symbols of a comma-separated option; what can be none starts no server.

    Raises:
        UniverseError: one of them can be no symbol.
    """
    from feature_pipeline.symbols import checked_symbol

    return tuple(map(checked_symbol, names(text)))


def print_json(value: Any) -> None:
    """Print as JSON on one line: times in ISO 8601 with their zone, spans in s, NaN as null."""
    import json

    sys.stdout.write(json.dumps(_plain(value), allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value
