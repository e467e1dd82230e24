"""Pictures of what happens rather than trades: documents, their scores, macro releases, actions.

Days are UTC days of `available_at`, when a thing could first be used, unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from feature_pipeline.pictures.grids import image, paint
from feature_pipeline.pictures.prices import ratio
from feature_pipeline.pictures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    SERIES,
    SMALL,
    WIDTH,
    Floats,
    Integers,
    Picture,
    Sheet,
    Swatch,
    counted,
    date_axis,
    day_number,
    day_numbers,
    draw_line,
    names_of,
    numbers,
    one_line,
    short,
    value_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_SERIES = 6
_SCREEN = 640
"""Pixels of all series together: with its title it fits a screen."""
MOST_DOCUMENT_ROWS = 12
MOST_ACTION_ROWS = 24
_BINS = 40
_LEFT = 104


# -- documents ------------------------------------------------------------------------------------


def documents(
    found: pl.DataFrame, first: date, last: date, what: str, things: str = "documents"
) -> Picture | None:
    """Documents, or other events, per day, and per day and symbol.

    Args:
        found: available_at, symbols (list); a row per document.
        first, last: days that are shown, both included.
        what: what they are, for the title.
        things: what they are called in a sentence.

    Returns:
        None where there is no document in these days.
    """
    begin, end = day_number(first), day_number(last)
    days = np.arange(begin, end + 1)
    placed = found.select("symbols", at=pl.Series(day_numbers(found["available_at"])) - begin)
    placed = placed.filter(pl.col("at").is_between(0, end - begin))
    rows, counts = _by_symbol(placed, len(days))
    if not rows:
        return None
    sheet = Sheet(height=160 + 20 * len(rows))
    sheet.title(f"{what} per day, {first} to {last}: {placed.height} about {names_of(rows)}")
    axes = sheet.panel(_LEFT, 40, WIDTH - _LEFT - 16, 72)
    total = np.bincount(placed["at"].to_numpy(), minlength=len(days)).astype(np.float64)
    value_axis(axes, total, np.zeros(1), whole=True)
    axes.vlines(days, 0, total, color=BLUE, linewidth=_bar_width(len(days), WIDTH - _LEFT - 16))
    axes.set_xlim(begin - 0.5, end + 0.5)
    axes.set_xticks([])
    cells = np.zeros((*counts.shape, 4), np.uint8)
    paint(cells, ORANGE, counts / counts.max(), least=0.25)
    axes = sheet.panel(_LEFT, 124, WIDTH - _LEFT - 16, 20 * len(rows))
    image(axes, cells, sheet.labels(rows, _LEFT - 12), days)
    return sheet.finish(
        f"Above, {things} a day; below, by symbol: the more, the stronger. A blank day is quiet, "
        "or its collection failed: the exceptions say which."
    )


def _by_symbol(placed: pl.DataFrame, days: int) -> tuple[list[str], Floats]:
    """Rows, those with most documents first and the others as one, and counts (rows x days)."""
    each = placed.explode("symbols").drop_nulls().group_by("symbols", "at").len()
    order = (
        each.group_by("symbols")
        .agg(pl.col("len").sum())
        .sort("len", "symbols", descending=[True, False])["symbols"]
        .to_list()
    )
    named, others = order[:MOST_DOCUMENT_ROWS], len(order) - MOST_DOCUMENT_ROWS
    rows = [*named, *([f"{others} others"] if others > 0 else [])]
    counts = np.zeros((len(rows), days))
    row = each["symbols"].replace_strict(
        {name: i for i, name in enumerate(named)}, default=len(named), return_dtype=pl.Int64
    )
    np.add.at(counts, (row.to_numpy(), each["at"].to_numpy()), each["len"].to_numpy())
    return rows, counts


def _bar_width(columns: int, pixels: float) -> float:
    """Points, so that neighbours do not touch where there is room for that."""
    return min(max(0.6 * 72 / 100 * pixels / columns, 0.8), 12)


# -- sentiment ------------------------------------------------------------------------------------


def sentiment(scores: pl.DataFrame) -> Picture | None:
    """How scores are spread, and how they went by channel.

    Args:
        scores: available_at, channel, sentiment in [-1, 1].

    Returns:
        None where there is no score.
    """
    known = scores.filter(pl.col("sentiment").is_finite())
    if known.is_empty():
        return None
    values = numbers(known["sentiment"])
    sheet = Sheet(height=290)
    sheet.title(
        f"Sentiment, {_span(known['available_at'])}: {counted(known.height, 'score')}, "
        f"mean {values.mean():+.2f}"
    )
    sheet.write(52, 44, "how many, by score", bold=True)
    _histogram(sheet.panel(52, 56, 250, 196), values)
    sheet.write(356, 44, "mean of the day, and of seven days", bold=True)
    channels = sorted(known["channel"].unique())[: len(SERIES)]
    colours = dict(zip(channels, SERIES, strict=False))
    sheet.key([("line", colour, name) for name, colour in colours.items()], x=620, y=44)
    axes = sheet.panel(356, 56, WIDTH - 372, 196)
    value_axis(axes, np.array([-1.0, 1.0]))
    axes.axhline(0, color=INK, linewidth=0.8)
    x = day_numbers(known["available_at"])
    for name, colour in colours.items():
        _timeline(axes, x, known.with_columns(day=x).filter(pl.col("channel") == name), colour)
    date_axis(axes, int(x.min()), int(x.max()))
    return sheet.finish(
        "A model that works uses the whole scale; all in the middle means that it understood "
        "nothing. A gap in a line is a week without a document."
    )


def _histogram(axes: Axes, values: Floats) -> None:
    counts, edges = np.histogram(np.clip(values, -1, 1), bins=_BINS, range=(-1, 1))
    value_axis(axes, counts.astype(np.float64), np.zeros(1), whole=True)
    low, high = edges[:-1], edges[1:]
    for where, colour in ((high < -0.04, BLUE), (low > 0.04, ORANGE)):
        axes.bar(low[where], counts[where], 0.045, align="edge", color=colour)
    neutral = (high >= -0.04) & (low <= 0.04)
    axes.bar(low[neutral], counts[neutral], 0.045, align="edge", color=INK)
    axes.set_xlim(-1.04, 1.04)
    axes.set_xticks([-0.8, 0, 0.8], ["-1 negative", "0", "positive +1"])


def _timeline(axes: Axes, x: Integers, own: pl.DataFrame, colour: str) -> None:
    """A dot per day, and a line through the mean of the seven days up to it."""
    days = np.arange(x.min(), x.max() + 1)
    daily = pl.DataFrame({"day": days}).join(
        own.group_by("day").agg(total=pl.col("sentiment").sum(), count=pl.len()),
        on="day",
        how="left",
        maintain_order="left",
    )
    dots = numbers(daily["total"] / daily["count"])
    axes.plot(days, dots, color=colour, ls="", marker="o", ms=2.2, mew=0, alpha=0.45)
    week = daily.select(pl.col("total", "count").rolling_sum(7, min_samples=1))
    draw_line(axes, days, numbers(week["total"] / week["count"]), colour, width=1.4)


# -- macro ----------------------------------------------------------------------------------------


def macro(rows: pl.DataFrame) -> Picture | None:
    """Each series by the date of its observations, with the moments of its releases.

    Args:
        rows: series_id, time, available_at, value, name, units; a revised observation has a row
            per release.

    Returns:
        None where there is no observation.
    """
    if rows.is_empty():
        return None
    series = sorted(rows["series_id"].unique())
    shown = series[:MOST_SERIES]
    sheet = Sheet(height=66 + min(122, _SCREEN // len(shown)) * len(shown))
    sheet.title(f"Macro series, {_span(rows['time'])}: {names_of(series)}")
    sheet.key(
        [
            ("line", BLUE, "newest value, by the date it is about"),
            ("tick", INK, "released on that day"),
            ("ring", ORANGE, "what was said before a revision"),
        ]
    )
    begin, end = day_numbers(rows["time"]).min(), day_numbers(rows["available_at"]).max()
    parts = [rows.filter(pl.col("series_id") == s).sort("time", "available_at") for s in shown]
    names = [one_line(name, 24) for name in shown]
    panels = sheet.panels(names, [_about(own) for own in parts], top=54, across=1)
    for own, axes in zip(parts, panels, strict=True):
        _series(axes, own)
        date_axis(axes, int(begin), int(end), most=13)
    more = f" {len(series) - len(shown)} more series are not shown." * (len(series) > len(shown))
    return sheet.finish(
        "A value may be used from its release on, not from its date. A stretch without release "
        f"marks is stale, whatever the line says.{more}"
    )


def _series(axes: Axes, own: pl.DataFrame) -> None:
    """One series, its rows sorted by date and release."""
    is_newest = pl.col("time") != pl.col("time").shift(-1)
    newest = own.filter(is_newest.fill_null(value=True))
    replaced = own.filter(~is_newest.fill_null(value=True))
    value, before = numbers(newest["value"]), numbers(replaced["value"])
    value_axis(axes, value, before, floor=0.14)
    draw_line(axes, day_numbers(newest["time"]), value, BLUE)
    ring = {"ls": "", "marker": "o", "ms": 3.5, "mfc": "none", "mec": ORANGE, "mew": 0.9}
    axes.plot(day_numbers(replaced["time"]), before, **ring)  # type: ignore[arg-type]
    released = np.unique(day_numbers(own["available_at"]))
    place = axes.get_xaxis_transform()
    axes.vlines(released, 0, 0.07, color=INK, alpha=0.8, linewidth=0.7, transform=place)


def _about(own: pl.DataFrame) -> str:
    """`13.14 Index, CBOE Volatility Index: VIX`."""
    value, name, units = own.select("value", "name", "units").row(-1)
    return f"{short(value, 4)} {units or ''}, {name or ''}"


# -- corporate actions ----------------------------------------------------------------------------


def actions(rows: pl.DataFrame, first: date, last: date) -> Picture | None:
    """Splits and dividends by symbol and ex-date.

    Args:
        rows: symbol, time (ex-date), kind (split, dividend), value.
        first, last: days that are shown, both included.

    Returns:
        None where there is none.
    """
    if rows.is_empty():
        return None
    symbols, left_out = _with_actions(rows)
    height = max(22 * len(symbols), 44)
    sheet = Sheet(height=88 + height)
    sheet.title(f"Splits and dividends by ex-date, {first} to {last}: {names_of(symbols, 6)}")
    key: Sequence[tuple[Swatch, str, str]] = (
        ("dot", GREEN, "dividend, in proportion to the symbol's largest"),
        ("tick", ORANGE, "split, new for old"),
    )
    sheet.key(key)
    axes = sheet.panel(_LEFT, 54, WIDTH - _LEFT - 26, height)
    shown = rows.filter(pl.col("symbol").is_in(symbols)).with_columns(
        row=pl.col("symbol").replace_strict(
            {s: i for i, s in enumerate(symbols)}, return_dtype=pl.Int64
        )
    )
    paid = shown.filter(pl.col("kind") == "dividend").with_columns(
        share=pl.col("value") / pl.col("value").max().over("symbol")
    )
    size = 8 + 28 * numbers(paid["share"])
    axes.scatter(day_numbers(paid["time"]), paid["row"], s=size, color=GREEN, linewidths=0)
    begin, end = day_number(first), day_number(last)
    _splits(axes, shown.filter(pl.col("kind") == "split"), (begin + end) / 2)
    axes.set_ylim(len(symbols) - 0.5, -0.5)
    labels = sheet.labels(symbols, _LEFT - 12)
    axes.set_yticks(range(len(symbols)), labels, parse_math=False)
    axes.grid(axis="y", color=INK, alpha=0.22, linewidth=0.6)
    date_axis(axes, begin, end, most=9)
    more = f" {left_out} more symbols are not shown." if left_out else ""
    return sheet.finish(
        "Dividends come at a steady pace; one that is missing, or a jump of the price without a "
        f"split here, is worth a look.{more}"
    )


def _with_actions(rows: pl.DataFrame) -> tuple[list[str], int]:
    """The symbols that get a row, those with splits first, and how many do not."""
    ranked = (
        rows.group_by("symbol")
        .agg(splits=(pl.col("kind") == "split").sum(), newest=pl.col("time").max())
        .sort("splits", "newest", "symbol", descending=[True, True, False])["symbol"]
    )
    return sorted(ranked.head(MOST_ACTION_ROWS)), max(ranked.len() - MOST_ACTION_ROWS, 0)


def _splits(axes: Axes, splits: pl.DataFrame, middle: float) -> None:
    x, y = day_numbers(splits["time"]), splits["row"].to_numpy()
    axes.vlines(x, y - 0.42, y + 0.42, color=ORANGE, linewidth=2)
    for at, height, value in zip(x.tolist(), y.tolist(), splits["value"], strict=True):
        near = at < middle  # the label is written to the side where there is room
        axes.annotate(
            ratio(value),
            (at, height),
            xytext=(4 if near else -4, 0),
            textcoords="offset points",
            ha="left" if near else "right",
            va="center",
            fontsize=SMALL,
            fontweight="bold",
            color=ORANGE,
            parse_math=False,
        )


def _span(times: pl.Series) -> str:
    days = times.dt.date()
    first, last = days.min(), days.max()
    return f"{first!s} to {last!s}"
