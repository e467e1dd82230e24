"""What every command shares: the settings, where output goes, lists in one word, `--json`."""

from __future__ import annotations

import math
import sys
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from feature_pipeline.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]


def console() -> Console:
    """Where tables and messages go."""
    from rich.console import Console

    return Console(highlight=False)


def settings() -> Settings:
    """What the environment says."""
    from feature_pipeline.settings import Settings

    return Settings()


def names(text: str) -> tuple[str, ...]:
    """The words of a comma-separated option."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def print_json(value: Any) -> None:
    """Print as JSON on one line: times in ISO 8601 with their zone, NaN as null."""
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
    return value
