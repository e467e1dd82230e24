"""The one look of all pictures: colours, type, panels, date axes, and PNGs of bounded size.

Backgrounds are transparent and every colour is in the middle of the scale, so that a picture reads
the same on the light and the dark page. No picture is composed here.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 900
"""Pixels across, of every picture."""

MOST_BYTES = 60_000
"""No PNG is larger. Most are a sixth of it."""

# Between 3:1 and 5:1 against white and against the dark page, and apart for every kind of colour
# vision: after Okabe and Ito, darkened or lightened to the middle.
INK = "#767b82"
BLUE = "#2f7fc4"
ORANGE = "#d9640b"
GREEN = "#17956c"
PURPLE = "#a665b8"
GOLD = "#a88207"
SERIES = (BLUE, ORANGE, GREEN, PURPLE)
"""In this order, for things that have none of their own."""

FONT = "DejaVu Sans"
TITLE, TEXT, SMALL = 10.0, 8.0, 7.0
_HAIRLINE = 0.6
_DPI = 100
_COLOURS = (96, 48)
_LARGEST = 1e150
"""Axes compute with squares of what they show."""

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Swatch: TypeAlias = Literal["line", "area", "dot", "ring", "tick"]


@dataclass(frozen=True)
class Picture:
    """A finished picture.

    Args:
        png: at most MOST_BYTES bytes, WIDTH pixels across, transparent.
        title: what is seen, as it is written in the picture.
        caption: one line on what to look for.
    """

    png: bytes
    title: str
    caption: str


class Sheet:
    """A picture in the making: title, key and panels, placed in pixels from the top left."""

    def __init__(self, height: int) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.height = height
        self._figure = Figure(figsize=(WIDTH / _DPI, height / _DPI), dpi=_DPI)
        self._figure.patch.set_alpha(0)
        self._canvas = FigureCanvasAgg(self._figure)
        self._title = ""

    def title(self, text: str) -> None:
        """What is seen, on the first line; too long a line ends in an ellipsis."""
        self._title = self._fit(text, WIDTH - 24, TITLE, bold=True)
        self.write(12, 18, self._title, size=TITLE, bold=True)

    def key(self, entries: Iterable[tuple[Swatch, str, str]], x: float = 12, y: float = 38) -> None:
        """(swatch, colour, meaning) side by side; those that no longer fit are left out."""
        from matplotlib.lines import Line2D

        for kind, colour, meaning in entries:
            text = one_line(meaning)
            end = x + 20 + self._measure(text, TEXT)
            if end > WIDTH - 8:
                return
            look = {
                "line": {"ls": "-", "lw": 1.6},
                "area": {"ls": "-", "lw": 8.0, "solid_capstyle": "butt"},
                "dot": {"ls": "", "marker": "o", "ms": 4.5, "mew": 0},
                "ring": {"ls": "", "marker": "o", "ms": 4.5, "mfc": "none"},
                "tick": {"ls": "", "marker": "|", "ms": 8.0, "mew": 1.0},
            }[kind]
            along = [x + 7] if look["ls"] == "" else [x, x + 14]
            self._figure.add_artist(
                Line2D(
                    [px / WIDTH for px in along],
                    [1 - y / self.height] * len(along),
                    color=colour,
                    transform=self._figure.transFigure,
                    **look,  # type: ignore[arg-type]  # matplotlib's keywords, by kind
                )
            )
            self.write(x + 20, y, text)
            x = end + 18

    def write(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = TEXT,
        bold: bool = False,
        align: Literal["left", "center", "right"] = "left",
        most: float = math.inf,
    ) -> None:
        """A line of text whose middle is at y, cut to `most` pixels. No markup is read in it."""
        self._figure.text(
            x / WIDTH,
            1 - y / self.height,
            self._fit(text, most, size, bold=bold),
            fontfamily=FONT,
            fontsize=size,
            fontweight="bold" if bold else "normal",
            color=INK,
            ha=align,
            va="center_baseline",
            parse_math=False,
        )

    def labels(self, names: Sequence[str], most: float) -> list[str]:
        """Names as labels of an axis, each cut to `most` pixels."""
        return [self._fit(name, most, SMALL) for name in names]

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at that place in pixels, without a frame, with faint horizontal lines."""
        axes = self._figure.add_axes(
            (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height)
        )
        axes.patch.set_alpha(0)
        for name, spine in axes.spines.items():
            spine.set_visible(name == "bottom")
            spine.set_color(INK)
            spine.set_linewidth(_HAIRLINE)
        axes.tick_params(length=0, pad=3, labelcolor=INK, labelsize=SMALL, labelfontfamily=FONT)
        axes.set_axisbelow(True)
        return axes

    def panels(
        self,
        names: Sequence[str],
        notes: Sequence[str] = (),
        *,
        top: float = 56,
        across: int = 2,
        left: float = 52,
    ) -> list[Axes]:
        """One panel per name, in rows of `across`; above it its name and what is noted about it."""
        across = min(across, len(names))
        down = -(-len(names) // across)
        width, height = WIDTH / across, (self.height - top) / down
        made = []
        for i, name in enumerate(names):
            x, y = i % across * width, top + i // across * height
            room = width - left - 20
            self.write(x + left, y + 9, name, bold=True, most=room)
            begin = self._measure(self._fit(name, room, TEXT, bold=True), TEXT, bold=True) + 10
            if i < len(notes) and begin < room:
                self.write(x + left + begin, y + 9, notes[i], most=room - begin)
            made.append(self.panel(x + left, y + 20, width - left - 16, height - 46))
        return made

    def finish(self, caption: str) -> Picture:
        """Draw it; see `encode`."""
        with warnings.catch_warnings():
            # A name in a script that the font does not have is drawn as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            self._canvas.draw()
        pixels = np.asarray(self._canvas.buffer_rgba())
        return Picture(encode(pixels), self._title, one_line(caption))

    def _fit(self, text: str, most: float, size: float, *, bold: bool = False) -> str:
        text = one_line(text)
        if not text or self._measure(text, size, bold=bold) <= most:
            return text
        fits, too_long = 0, len(text)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            short_enough = self._measure(text[:middle] + "…", size, bold=bold) <= most
            fits, too_long = (middle, too_long) if short_enough else (fits, middle)
        return text[:fits].rstrip() + "…" if fits else ""

    def _measure(self, text: str, size: float, *, bold: bool = False) -> float:
        """Pixels across."""
        from matplotlib.font_manager import FontProperties

        font = FontProperties(family=FONT, size=size, weight="bold" if bold else "normal")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            width, _, _ = self._canvas.get_renderer().get_text_width_height_descent(
                text, font, ismath=False
            )
        return float(width)


def encode(pixels: npt.NDArray[np.uint8], most: int = MOST_BYTES) -> bytes:
    """RGBA pixels as a PNG of at most `most` bytes: fewer colours, then fewer pixels, until it is.

    The same pixels are the same bytes.
    """
    from PIL import Image

    image = Image.fromarray(pixels)
    while True:
        for colours in _COLOURS:
            small = image.quantize(
                colours, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
            )
            out = io.BytesIO()
            small.save(out, "PNG", optimize=True)
            if out.tell() <= most:
                return out.getvalue()
        image = image.resize((max(image.width // 2, 1), max(image.height // 2, 1)))


# -- text -----------------------------------------------------------------------------------------


def one_line(text: str, most: int = 300) -> str:
    """Text from data as it may stand in a picture: one line, printable, of bounded length."""
    clean = "".join(c if c.isprintable() else " " for c in text[: most + 1])
    clean = " ".join(clean.split())
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def short(number: float, digits: int = 3) -> str:
    """A number in a few characters: 1.52K, 12.3M, 0.0012, 1e+30."""
    if not math.isfinite(number):
        return "-"
    size = abs(number)
    if size and not 1e-4 <= size < 1e15:
        return f"{number:.{digits - 1}g}"
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "K")):
        if size >= unit:
            return f"{number / (1e3 if name == 'K' else unit):.{digits}g}{name}"
    return f"{number:.{max(digits, len(str(int(size))))}g}"


def counted(number: int, what: str) -> str:
    """`1 session`, `2 sessions`."""
    return f"{number} {what}{'s' * (number != 1)}"


def names_of(symbols: Sequence[str], most: int = 4) -> str:
    """A few names, and how many more."""
    more = f" and {len(symbols) - most} more" if len(symbols) > most else ""
    return ", ".join(one_line(s, 24) for s in symbols[:most]) + more


# -- axes -----------------------------------------------------------------------------------------


def numbers(values: pl.Series) -> Floats:
    """As floats; what is missing or not finite is NaN and drawn as a gap."""
    found = values.cast(pl.Float64).fill_null(math.nan).to_numpy().astype(np.float64)
    found[~np.isfinite(found)] = np.nan
    return np.clip(found, -_LARGEST, _LARGEST)


def day_numbers(times: pl.Series) -> Integers:
    """Days since 1970 of datetimes or dates: the x of every date axis."""
    return times.cast(pl.Date).cast(pl.Int32).cast(pl.Int64).to_numpy()


def day_number(day: date) -> int:
    """The x of a day."""
    return (day - date(1970, 1, 1)).days


def day_of(number: float) -> date:
    """The day of an x."""
    return date(1970, 1, 1) + timedelta(days=int(number))


def date_axis(axes: Axes, first: int, last: int, most: int = 7) -> None:
    """Days since 1970 along x, with at most `most` labels on round dates."""
    margin = max((last - first) * 0.01, 0.6)
    axes.set_xlim(first - margin, last + margin)
    at, labels = date_ticks(first, last, most)
    axes.set_xticks(at, labels)


def date_ticks(first: int, last: int, most: int = 7) -> tuple[list[int], list[str]]:
    """Where days [first, last] are labelled and how: on days, Mondays, or firsts of months.

    The first label and the first of every year carry the year.
    """
    start, end = day_of(first), day_of(last)
    for step in (1, 2, 7, 14):
        begin = first if step < 7 else first + (4 - first) % 7  # 1970-01-05 was a Monday
        found = range(begin, last + 1, step)
        if 0 < len(found) <= most:
            return list(found), _labelled([day_of(n) for n in found], "%d %b")
    for step in (1, 2, 3, 6, 12, 24, 60, 120, 240, 600, 1200):
        months = range(start.year * 12, end.year * 12 + 12)
        firsts = [date(m // 12, m % 12 + 1, 1) for m in months if m % step == 0]
        firsts = [day for day in firsts if start <= day <= end]
        if 0 < len(firsts) <= most:
            at = [day_number(day) for day in firsts]
            return at, _labelled(firsts, "%b" if step < 12 else "%Y")
    return [first], _labelled([start], "%d %b")


def _labelled(days: Sequence[date], pattern: str) -> list[str]:
    texts = []
    for i, day in enumerate(days):
        new_year = i == 0 or days[i - 1].year != day.year
        year = " %Y" if new_year and "%Y" not in pattern else ""
        texts.append(day.strftime(pattern + year).lstrip("0"))
    return texts


def value_axis(
    axes: Axes,
    *values: Floats,
    floor: float = 0.0,
    head: float = 0.0,
    suffix: str = "",
    whole: bool = False,
) -> None:
    """Labels for the values that are shown, on round numbers.

    Args:
        axes: where.
        values: everything that is drawn, NaN allowed.
        floor, head: shares of the panel's height kept free below and above them.
        suffix: written behind every label, a unit.
        whole: they are counts.
    """
    from matplotlib.ticker import MaxNLocator

    known = np.concatenate([v[np.isfinite(v)] for v in values]) if values else np.array([])
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if high - low <= abs(high) * 1e-12:
        pad = abs(high) * 0.05 or 1.0
        low, high = low - pad, high + pad
    room = (high - low) * 0.06
    per_share = (high - low + 2 * room) / (1 - floor - head)
    axes.set_ylim(low - room - floor * per_share, high + room + head * per_share)
    proposed = MaxNLocator(4, integer=whole).tick_values(low, high)
    at = [t for t in proposed if low - room <= t <= high + room]
    axes.set_yticks(at, tick_labels(at, suffix))
    axes.grid(axis="y", color=INK, alpha=0.22, linewidth=_HAIRLINE)


def tick_labels(at: Sequence[float], suffix: str = "") -> list[str]:
    """Evenly spaced numbers in as few digits as are true, in one unit: 0.5, 1.5K, 2e+30."""
    if not at:
        return []
    largest = max(abs(t) for t in at)
    unit, name = next(
        (u for u in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "K")) if largest >= u[0]), (1.0, "")
    )
    unit = 1e3 if name == "K" else unit
    step = min((abs(b - a) for a, b in pairwise(at)), default=largest) or 1.0
    for digits in range(12):
        if largest and not 1e-4 <= largest < 1e15:
            name, labels = "", [f"{t:.{digits}e}" for t in at]
            drawn = [float(label) for label in labels]
        else:
            labels = [f"{t / unit:.{digits}f}" for t in at]
            drawn = [float(label) * unit for label in labels]
        if all(abs(d - t) <= step / 20 for d, t in zip(drawn, at, strict=True)):
            break
    return [f"{label}{name if float(label) else ''}{suffix}" for label in labels]


def draw_line(axes: Axes, x: Integers, y: Floats, colour: str, width: float = 1.2) -> None:
    """A line that breaks where y is NaN; a point without neighbours is a dot."""
    axes.plot(x, y, color=colour, linewidth=width, solid_joinstyle="round")
    known = np.isfinite(y)
    before = np.append(False, known[:-1])
    after = np.append(known[1:], False)
    alone = known & ~before & ~after
    if alone.any():
        axes.plot(x[alone], y[alone], color=colour, linestyle="", marker="o", ms=3, mew=0)
