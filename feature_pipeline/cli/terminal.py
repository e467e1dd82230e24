"""What the command line draws: tables, sparklines, ages, sizes, a progress bar.

Rich renderables only: nothing is read and nothing is computed here.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from feature_pipeline.schemas import STATE_VECTOR_FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from feature_pipeline.online.read import HashAnswer, VectorAnswer
    from feature_pipeline.serving.overview import Overview

_ABSENT = "[dim]missing[/]"


def age(span: timedelta) -> str:
    """An age as people say it: 40 s, 12 min, 5 h, 3 d."""
    seconds = span.total_seconds()
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if abs(seconds) >= size:
            return f"{seconds / size:,.0f} {unit}".replace(",", " ")
    return f"{seconds:.0f} s"


def vectors(answers: Mapping[str, VectorAnswer | None]) -> Table:
    """State vectors side by side: one row per field, one column per symbol."""
    table = Table("", *answers, box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(table.columns):
        column.no_wrap = True
        column.justify = "right" if i else "left"
    for i, name in enumerate(STATE_VECTOR_FIELDS):
        table.add_row(
            name,
            *(
                "" if a is None else _ABSENT if name in a.missing else f"{a.values[i]:.4f}"
                for a in answers.values()
            ),
        )
    moments = {(f"{a.as_of:%Y-%m-%d %H:%M} UTC", age(a.age)) for a in answers.values() if a}
    if len(moments) == 1 and all(answers.values()):
        as_of, old = moments.pop()
        table.caption, table.caption_justify = f"as of {as_of}, {old} ago", "left"
        return table
    for label, form in (("as of", "%Y-%m-%d"), ("", "%H:%M UTC")):
        table.add_row(label, *(a.as_of.strftime(form) if a else "" for a in answers.values()))
    table.add_row("age", *(age(a.age) if a else "[red]not there[/]" for a in answers.values()))
    return table


def features(answer: HashAnswer) -> Table:
    """One symbol's features and fields by name."""
    table = Table("feature", "value", box=None, pad_edge=False, header_style="bold")
    table.columns[1].justify = "right"
    for name, value in sorted(answer.fields.items()):
        shown = _ABSENT if value is None else f"{value:.6g}" if isinstance(value, float) else value
        table.add_row(name, shown)
    return table


_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None]) -> str:
    """A curve of one character per value, from the lowest to the highest; a gap is a space.

    Of a flat curve every value is in the middle.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return " " * len(values)
    low, span = min(known), max(known) - min(known)
    top = len(_BLOCKS) - 1

    def block(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return " "
        return _BLOCKS[round((value - low) / span * top) if span else top // 2]

    return "".join(map(block, values))


def overview(found: Overview) -> list[Table | str]:
    """One symbol: its state vector, then its features, each with its value and its curve."""
    vector, answer, history = found.vector, found.features, found.history
    assert vector is not None
    curves: dict[str, Sequence[float | None]] = {}
    title = ""
    if history is not None and history.height:
        curves = {name: history[name].to_list() for name in history.columns if name != "time"}
        first, last = history["time"][0], history["time"][-1]
        title = f"{history.height} sessions, {first:%Y-%m-%d} to {last:%Y-%m-%d}"
    values: dict[str, object] = dict(zip(STATE_VECTOR_FIELDS, vector.values.tolist(), strict=True))
    values |= dict.fromkeys(vector.missing)
    others: dict[str, object] = {}
    if answer is not None:
        others = {n: v for n, v in sorted(answer.fields.items()) if n not in values}
    else:
        others = {n: c[-1] for n, c in curves.items() if n not in values}
    table = _curves(found.symbol, values, curves, title)
    fresh = "" if vector.fresh else ", stale"
    said = (
        f"as of {vector.as_of:%Y-%m-%d %H:%M} UTC, {age(vector.age)} ago{fresh}; "
        f"source {vector.source}, revision {vector.revision}\n"
    )
    return [table, said, *([_curves("feature", others, curves, "")] if others else [])]


def _curves(
    heading: str,
    values: Mapping[str, object],
    curves: Mapping[str, Sequence[float | None]],
    title: str,
) -> Table:
    table = Table(heading, "value", title, box=None, pad_edge=False, header_style="bold")
    table.columns[1].justify = "right"
    for column in table.columns:
        column.no_wrap = True
    table.columns[2].overflow = "crop"
    # Where all of them have no room, the newest sessions have.
    taken = max(map(len, (heading, *values))) + 2 + max(len(cell(v)) for v in values.values()) + 2
    room = max(shutil.get_terminal_size().columns - taken, 10)
    for name, value in values.items():
        table.add_row(escape(name), cell(value), sparkline(list(curves.get(name, ()))[-room:]))
    return table


def grid(rows: Sequence[Mapping[str, object]]) -> Table:
    """Rows of a frame: the first one's names above, numbers to the right."""
    names = list(rows[0]) if rows else []
    table = Table(*map(escape, names), box=None, pad_edge=False, header_style="bold")
    for column, name in zip(table.columns, names, strict=True):
        column.overflow = "fold"
        if all(isinstance(row[name], (int, float, type(None))) for row in rows):
            column.justify = "right"
    for row in rows:
        table.add_row(*(cell(row[name]) for name in names))
    return table


def cell(value: object) -> str:
    """A value as a cell of a table: six digits, dates without 00:00, what is absent marked."""
    if value is None:
        return _ABSENT
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else _ABSENT
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}" if value.time() != time() else f"{value:%Y-%m-%d}"
    if isinstance(value, (list, tuple)):
        return escape(", ".join(map(str, value))) or "-"
    return escape(str(value))


def size(count: float | None) -> str:
    """Bytes as people say them: 12 kB, 3.4 MB."""
    if count is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


@contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that counts partitions; yields what to tell the number done."""
    console.print(what)
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("partitions,"),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)
        bar.update(task, completed=total)
