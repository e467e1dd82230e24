"""What Tab completes: symbols, features, assets, ids in quarantine, names of logs.

A shell waits for every answer: nothing heavy is imported, no server is asked. Symbols and
timeframes are read from universe.yaml, tables and their columns from the migrations. Whatever goes
wrong completes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
_SQL = _PACKAGE.parent / "sql"
_HIDDEN = {"symbol", "time", "available_at", "availability_basis", "computed_at"}
_HIDDEN |= {"recorded_at", "run_id"}
_BESIDE = {"position_reconciliation"}
"""Tables that no command of the graph's fills."""
_BY_BAR = re.compile(r"PRIMARY KEY \(symbol, time\)")
_TABLE = re.compile(r"CREATE TABLE (\w+) \((.*?)\n\);", re.DOTALL)
_BARS_OF = re.compile(r"_(1m|5m|1h|1d)(_history)?$")
_COLUMN = re.compile(r"^    ([a-z]\w*)\s", re.MULTILINE)
_ALTER = re.compile(r"ALTER TABLE (\w+)(.*?);", re.DOTALL)
_ADDED = re.compile(r"ADD COLUMN(?: IF NOT EXISTS)? (\w+)")
_DROPPED = re.compile(r"DROP COLUMN(?: IF EXISTS)? (\w+)")


def _quiet(found: Callable[[str], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completes nothing where it cannot: an error has no place in a half-typed line."""

    def complete(incomplete: str) -> list[str]:
        try:
            words = dict.fromkeys(found(incomplete))
            return [word for word in words if word.startswith(incomplete)]
        except Exception:  # whatever it is, the command itself will say it better
            return []

    complete.__doc__ = found.__doc__
    return complete


@_quiet
def symbols(_: str) -> Iterator[str]:
    """The ids of universe.yaml, and the symbols that they have had."""
    entries = _universe()["instruments"]
    names = [e["id"] for e in entries]
    names += [listing["symbol"] for e in entries for listing in e["symbols"]]
    yield from dict.fromkeys(map(str, names))


@_quiet
def features(incomplete: str) -> Iterator[str]:
    """The names of values by bar; with their table where one was typed."""
    for table, names in columns().items():
        yield from (f"{table}.{name}" if "." in incomplete else name for name in names)


@_quiet
def assets(_: str) -> Iterator[str]:
    """The assets that write tables."""
    for table in _tables():
        yield from ("news", "reddit") if table == "documents" else (table,)


@_quiet
def logs(_: str) -> Iterator[str]:
    """The logs of this home."""
    home = Path(os.environ.get("FEATURE_PIPELINE_HOME") or ".feature_pipeline")
    yield from sorted(path.stem for path in (home / "log").glob("*.log"))


def columns() -> dict[str, list[str]]:
    """Table with one row per symbol and bar -> the columns that hold values, as migrated."""
    return {
        table: [name for name in names if name not in _HIDDEN]
        for table, (names, by_bar) in _tables().items()
        if by_bar
    }


def _universe() -> dict[str, Any]:
    import yaml

    path = os.environ.get("FEATURE_PIPELINE_UNIVERSE") or _PACKAGE / "universe.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(Path(path).read_text(encoding="utf-8"), loader)  # noqa: S506


def _timeframes() -> list[str]:
    """Those of universe.yaml; daily bars where it cannot be read."""
    try:
        return [*_universe().get("timeframes", ()), "1d"]
    except Exception:  # columns are completed nevertheless
        return ["1d"]


def _tables() -> dict[str, tuple[list[str], bool]]:
    """Tables of data: their columns, and whether they have a row per bar."""
    found: dict[str, tuple[list[str], bool]] = {}
    there = _timeframes()
    for path in sorted(_SQL.glob("[0-9]*.sql")):
        text = path.read_text(encoding="utf-8")
        for table, body in _TABLE.findall(text):
            names = _COLUMN.findall(body)
            length = _BARS_OF.search(table)
            shown = table not in _BESIDE and (length is None or length[1] in there)
            if "available_at" in names and shown:
                found[table] = names, bool(_BY_BAR.search(body))
        for table, changes in _ALTER.findall(text):
            if table in found:
                names, by_bar = found[table]
                gone = _DROPPED.findall(changes)
                kept = [name for name in names if name not in gone]
                found[table] = [*kept, *_ADDED.findall(changes)], by_bar
    return found
