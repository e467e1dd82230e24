"""What the command line draws: tables of vectors and features, ages, a progress bar.

Rich renderables only: nothing is read and nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
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
