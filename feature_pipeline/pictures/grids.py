"""Pictures that are maps: what is there per symbol and day, and the state vector's fields.

Rows are few and named; beyond that they are put together, so that 500 symbols are as readable, and
the picture as small, as seven.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from feature_pipeline.pictures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SMALL,
    WIDTH,
    Floats,
    Integers,
    Picture,
    Sheet,
    Swatch,
    counted,
    date_ticks,
    day_numbers,
    day_of,
    numbers,
    one_line,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 30
MOST_COLUMNS = 300
MOST_NEWEST = 24
"""Symbols of the newest cross-section of state vectors."""

Cells: TypeAlias = npt.NDArray[np.uint8]

_LABELS = 104
"""Pixels for the names of rows."""


# -- what is there --------------------------------------------------------------------------------


def completeness(
    rows: pl.DataFrame, sessions: pl.DataFrame, columns: Sequence[str], what: str
) -> Picture | None:
    """Per symbol and session: the row is complete, lacks columns, or is missing.

    Args:
        rows: symbol, time and the columns.
        sessions: symbol, time of the rows that there should be.
        columns: whose nulls count.
        what: the table's name, for the title.

    Returns:
        None where no row is expected.
    """
    found = Counted.of(rows, sessions, columns)
    if found is None:
        return None
    named, merged = found.by_row()
    x, binned = merged.by_day()
    height = max(15 if len(named) > 8 else 22, 15) * len(named)
    sheet = Sheet(height=62 + height + 30)
    first, last = day_of(found.days[0]), day_of(found.days[-1])
    sheet.title(f"What {what} holds, {first} to {last}: {found.summary()}")
    key: list[tuple[Swatch, str, str]] = [
        ("area", GREEN, "complete"),
        ("area", PURPLE, "lacks columns: the more, the stronger"),
        ("area", ORANGE, "no row for the session"),
    ]
    sheet.key(key if columns else [key[0], key[2]])
    axes = sheet.panel(_LABELS, 58, WIDTH - _LABELS - 16, height)
    image(axes, binned.colours(), sheet.labels(named, _LABELS - 12), x)
    return sheet.finish(
        "One row per symbol, one column per session; blank: closed, or not listed."
        + (" The symbols that lack most come first." if len(named) == MOST_ROWS else "")
    )


@dataclass(frozen=True)
class Counted:
    """Symbols x days: rows expected, rows missing, and the share of nulls in those that are there.

    `lacking` adds up shares, so that cells can be put together by adding.
    """

    symbols: tuple[str, ...]
    days: Integers
    expected: Floats
    missing: Floats
    lacking: Floats

    @classmethod
    def of(
        cls, rows: pl.DataFrame, sessions: pl.DataFrame, columns: Sequence[str]
    ) -> Counted | None:
        """Counted from rows and the sessions that should have one; None without sessions."""
        null = pl.mean_horizontal(pl.col(c).is_null() for c in columns) if columns else pl.lit(0.0)
        found = sessions.select("symbol", "time").join(
            rows.select("symbol", "time", null=null), on=["symbol", "time"], how="left"
        )
        if found.is_empty():
            return None
        symbols = tuple(found["symbol"].unique().sort())
        dates = day_numbers(found["time"])
        days, at = np.unique(dates, return_inverse=True)
        where = (
            found["symbol"].replace_strict(list(symbols), range(len(symbols))).to_numpy(),
            at.ravel(),
        )
        absent = found["null"].is_null().to_numpy()

        def summed(value: npt.NDArray) -> Floats:
            grid = np.zeros((len(symbols), len(days)))
            np.add.at(grid, where, value)
            return grid

        return cls(
            symbols,
            days,
            expected=summed(np.ones(len(absent))),
            missing=summed(absent),
            lacking=summed(found["null"].fill_null(0.0).to_numpy()),
        )

    def by_row(self) -> tuple[list[str], Counted]:
        """The names of at most MOST_ROWS rows: those lacking most, and the others as one."""
        if len(self.symbols) <= MOST_ROWS:
            return list(self.symbols), self
        amiss = self.missing.sum(1) + self.lacking.sum(1)
        order = np.lexsort((np.arange(len(amiss)), -amiss))
        own, others = order[: MOST_ROWS - 1], order[MOST_ROWS - 1 :]
        names = [*(self.symbols[i] for i in own), f"{len(others)} others"]

        def rows(grid: Floats) -> Floats:
            return np.vstack([grid[own], grid[others].sum(0)])

        return names, Counted(
            tuple(names), self.days, rows(self.expected), rows(self.missing), rows(self.lacking)
        )

    def by_day(self) -> tuple[Integers, Counted]:
        """At most MOST_COLUMNS columns, and the first day of each."""
        step = -(-len(self.days) // MOST_COLUMNS)
        begins = np.arange(0, len(self.days), step)
        grids = (
            np.add.reduceat(grid, begins, axis=1)
            for grid in (self.expected, self.missing, self.lacking)
        )
        days = self.days[begins]
        return days, Counted(self.symbols, days, *grids)

    def colours(self) -> Cells:
        """RGBA of each cell."""
        expected = np.maximum(self.expected, 1)
        missing, lacking = self.missing / expected, self.lacking / expected
        cells = np.zeros((*self.expected.shape, 4), np.uint8)
        cells[self.expected > 0] = _rgba(GREEN, 0.32)
        paint(cells, PURPLE, lacking, least=0.4)
        paint(cells, ORANGE, missing, least=0.5)
        return cells

    def summary(self) -> str:
        """`7 symbols, 99.8 % of the rows, 0.3 % nulls`."""
        expected = self.expected.sum()
        held = expected - self.missing.sum()
        nulls = 100 * self.lacking.sum() / max(held, 1)
        many = counted(len(self.symbols), "symbol")
        return f"{many}, {_percent(100 * held / expected)} of the rows" + (
            f", {_percent(nulls)} nulls" if self.lacking.any() else ""
        )


def _percent(share: float) -> str:
    """Never rounds what is not quite all to 100 %, nor what is not quite none to 0 %."""
    if share in (0, 100):
        return f"{share:.0f} %"
    return f"{min(max(share, 0.1), 99.9):.1f} %"


# -- the state vector -----------------------------------------------------------------------------


def state_vectors(
    history: pl.DataFrame, newest: pl.DataFrame, fields: Sequence[str]
) -> Picture | None:
    """The state vector of one symbol over time, and the newest one of each symbol.

    Args:
        history: time and the fields, of one symbol, sorted by time; `symbol` is its name.
        newest: symbol, time and the fields, one row per symbol.
        fields: in the vector's order; values in [-1, 1], null where missing.

    Returns:
        None where there is no vector.
    """
    if history.is_empty() and newest.is_empty():
        return None
    shown = newest.head(MOST_NEWEST)
    height, top = 18 * len(fields), 84
    sheet = Sheet(height=top + height + 56)
    days = day_numbers(newest["time"])
    sheet.title(
        f"State vectors of {counted(newest.height, 'symbol')}, newest of "
        f"{day_of(days.max()) if len(days) else day_of(day_numbers(history['time'])[-1])}"
    )
    sheet.key(
        [
            ("area", ORANGE, "to +1"),
            ("area", BLUE, "to -1, no colour is 0"),
            ("area", INK, "missing"),
        ]
    )
    right = min(max(15 * shown.height, 96), 330)
    left = WIDTH - _LABELS - right - 36
    if not history.is_empty():
        x = day_numbers(history["time"])
        whose = f"{one_line(history['symbol'][0], 24)}, its last {counted(len(x), 'session')}"
        sheet.write(_LABELS, top - 14, whose, bold=True, most=left)
        axes = sheet.panel(_LABELS, top, left, height)
        image(axes, _signed(history, fields), fields, x)
    if not shown.is_empty():
        of = f"{shown.height} of {newest.height}" if newest.height > shown.height else "each"
        sheet.write(_LABELS + left + 20, top - 14, f"newest, {of}", bold=True, most=right)
        axes = sheet.panel(_LABELS + left + 20, top, right, height)
        image(axes, _signed(shown, fields), [], None)
        names = sheet.labels(shown["symbol"].to_list(), 44)
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    return sheet.finish(
        "Rows are fields, in the vector's order. Grey is missing, never zero; a field at full "
        "colour for long is saturated."
    )


def _signed(frame: pl.DataFrame, fields: Sequence[str]) -> Cells:
    """RGBA, fields x rows: orange above zero, blue below, as strong as far; grey is missing."""
    values = np.array([numbers(frame[name]) for name in fields])
    cells = np.zeros((*values.shape, 4), np.uint8)
    for colour, sign in ((ORANGE, 1), (BLUE, -1)):
        paint(cells, colour, np.nan_to_num(np.clip(sign * values, 0, 1)), least=0.0)
    cells[np.isnan(values)] = _rgba(INK, 0.8)
    return cells


# -- cells ----------------------------------------------------------------------------------------


def paint(cells: Cells, colour: str, strength: Floats, *, least: float) -> None:
    """Colour the cells whose strength is above zero, opaque at one."""
    where = strength > 0
    cells[where] = _rgba(colour, 1.0)
    # In 16 steps: what nobody can tell apart costs bytes.
    steps = np.ceil(np.clip(strength[where], 0, 1) * 16) / 16
    cells[where, 3] = (255 * (least + (1 - least) * steps)).astype(np.uint8)


def _rgba(colour: str, alpha: float) -> tuple[int, int, int, int]:
    return (*bytes.fromhex(colour[1:]), round(255 * alpha))


def image(axes: Axes, cells: Cells, labels: Sequence[str], days: Integers | None) -> None:
    """A map with its rows' labels, and days along x where it has them."""
    axes.imshow(cells, aspect="auto", interpolation="none")
    for edge in range(1, cells.shape[0]):
        axes.axhline(edge - 0.5, color=INK, linewidth=0.4, alpha=0.35)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_xticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
    if days is not None and len(days):
        at, labels = date_ticks(int(days[0]), int(days[-1]), 9)
        places = np.minimum(np.searchsorted(days, at), len(days) - 1)
        # Two dates may fall on one session: the later one would be printed over the earlier.
        chosen = {int(p): label for p, label in zip(places[::-1], labels[::-1], strict=True)}
        axes.set_xticks(list(chosen), list(chosen.values()), fontsize=SMALL)
