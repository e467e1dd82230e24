"""Pictures of bars and what derives from them: prices, indicators, regimes, returns.

One small panel per symbol. Every frame carries `symbol` and `time`; `sessions` (symbol, time) says
when there should have been a bar, so that one that is missing is a gap in the line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from feature_pipeline.pictures.style import (
    BLUE,
    GOLD,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SMALL,
    Floats,
    Integers,
    Picture,
    Sheet,
    Swatch,
    date_axis,
    day_numbers,
    day_of,
    draw_line,
    names_of,
    numbers,
    one_line,
    short,
    value_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REGIME_COLOURS = {"trend": BLUE, "range": GOLD, "transition": INK}
_STRIP = 0.2
"""Share of a panel's height for what stands below the price: volume, RSI."""
_HEAD = 0.12
"""And for what is marked above it: splits, dividends."""


def price(
    bars: pl.DataFrame, actions: pl.DataFrame, sessions: pl.DataFrame, symbols: Sequence[str]
) -> Picture | None:
    """Closes as traded with volume, splits and dividends.

    Args:
        bars: symbol, time, close, volume.
        actions: symbol, time (ex-date), kind (split, dividend), value.
        sessions: symbol, time of the bars that there should be.
        symbols: which panels, in this order; those without a bar are left out.

    Returns:
        None where there is no bar.
    """
    panels = _panels(bars, sessions, symbols)
    if not panels:
        return None
    sheet = _sheet(
        f"Close as traded and volume, {_scope(panels)}",
        [
            ("line", INK, "close"),
            ("area", BLUE, "volume, to its own scale"),
            ("tick", ORANGE, "split"),
            ("tick", GREEN, "dividend"),
        ],
        panels,
    )
    for panel, axes in sheet.each():
        close, volume, own = panel["close"], panel["volume"], _within(panel, actions)
        value_axis(axes, close, floor=_STRIP, head=_HEAD if own.height else 0.0)
        most = np.nanmax(volume, initial=0.0)
        if most > 0:
            _columns(axes, panel.x, np.nan_to_num(volume) / most * _STRIP, BLUE)
        draw_line(axes, panel.x, close, INK)
        _mark_actions(axes, panel, own)
    return sheet.finish(
        "A gap is a session without a bar. A jump of the price belongs to a split mark, or it is "
        "an error of the source."
    )


def indicators(
    bars: pl.DataFrame,
    computed: pl.DataFrame,
    actions: pl.DataFrame,
    sessions: pl.DataFrame,
    symbols: Sequence[str],
) -> Picture | None:
    """Closes with moving averages, Bollinger bands and RSI.

    Args:
        bars: symbol, time, close.
        computed: symbol, time, sma_50, sma_200, bb_upper, bb_lower, rsi_14.
        actions, sessions, symbols: see `price`.

    Returns:
        None where there is no indicator.
    """
    panels = _panels(computed.join(bars, on=["symbol", "time"], how="left"), sessions, symbols)
    if not panels:
        return None
    sheet = _sheet(
        f"Close and indicators, {_scope(panels)}",
        [
            ("line", INK, "close"),
            ("area", BLUE, "Bollinger bands"),
            ("line", ORANGE, "SMA 50"),
            ("line", PURPLE, "SMA 200"),
            ("line", GREEN, "RSI 14, its lines at 30 and 70"),
            ("tick", ORANGE, "split"),
        ],
        panels,
    )
    for panel, axes in sheet.each():
        shown = {name: panel[name] for name in ("close", "sma_50", "sma_200")}
        upper, lower, rsi = panel["bb_upper"], panel["bb_lower"], panel["rsi_14"]
        splits = _within(panel, actions.filter(pl.col("kind") == "split"))
        head = _HEAD if splits.height else 0.0
        value_axis(axes, *shown.values(), upper, lower, floor=_STRIP, head=head)
        axes.fill_between(panel.x, lower, upper, color=BLUE, alpha=0.2, linewidth=0)
        for name, colour in (("sma_200", PURPLE), ("sma_50", ORANGE), ("close", INK)):
            draw_line(axes, panel.x, shown[name], colour)
        _strip(axes, panel.x, rsi / 100, GREEN, at=(0.3, 0.7))
        _mark_actions(axes, panel, splits)
    return sheet.finish(
        "Averages begin when their window is full. A line that stops inside the range has a "
        "missing bar in its window."
    )


def regimes(
    bars: pl.DataFrame, labels: pl.DataFrame, sessions: pl.DataFrame, symbols: Sequence[str]
) -> Picture | None:
    """Closes on the shade of their regime.

    Args:
        bars: symbol, time, close.
        labels: symbol, time, regime (trend, range, transition or null).
        sessions, symbols: see `price`.

    Returns:
        None where there is no label.
    """
    panels = _panels(labels.join(bars, on=["symbol", "time"], how="left"), sessions, symbols)
    if not panels:
        return None
    sheet = _sheet(
        f"Close by market regime, {_scope(panels)}",
        [("line", INK, "close"), *(("area", c, name) for name, c in REGIME_COLOURS.items())],
        panels,
        [_shares(panel) for panel in panels],
    )
    for panel, axes in sheet.each():
        close = panel["close"]
        value_axis(axes, close)
        for name, colour in REGIME_COLOURS.items():
            spans = regime_spans(panel.x, panel.rows["regime"], name)
            axes.broken_barh(
                spans,
                (0, 1),
                transform=axes.get_xaxis_transform(),
                facecolors=colour,
                alpha=0.26,
                linewidth=0,
            )
        draw_line(axes, panel.x, close, INK)
    return sheet.finish(
        "No shade: too little history, or a bar is missing. Labels hold for weeks; a picket fence "
        "means that the rule sits on its threshold."
    )


def returns(
    computed: pl.DataFrame, sessions: pl.DataFrame, symbols: Sequence[str]
) -> Picture | None:
    """Daily total returns within twice their own volatility.

    Args:
        computed: symbol, time, returns_1d (fraction), volatility_20d (per square root of a year).
        sessions, symbols: see `price`.

    Returns:
        None where there is no return.
    """
    panels = _panels(computed, sessions, symbols)
    if not panels:
        return None
    sheet = _sheet(
        f"Daily total return and volatility, {_scope(panels)}",
        [
            ("tick", BLUE, "return of the day"),
            ("tick", ORANGE, "beyond the band"),
            ("area", INK, "two standard deviations, from the volatility of 20 sessions"),
        ],
        panels,
    )
    for panel, axes in sheet.each():
        daily = 100 * panel["returns_1d"]
        band = 200 * panel["volatility_20d"] / np.sqrt(252)
        value_axis(axes, daily, band, -band, suffix=" %")
        axes.fill_between(panel.x, -band, band, color=INK, alpha=0.2, linewidth=0)
        beyond = np.abs(daily) > np.nan_to_num(band, nan=np.inf)
        for which, colour in ((~beyond, BLUE), (beyond, ORANGE)):
            axes.vlines(panel.x[which], 0, daily[which], color=colour, linewidth=1.0)
    return sheet.finish(
        "One day in twenty lies beyond the band. One far beyond it is news, or a split that nobody "
        "reported."
    )


# -- panels ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Panel:
    """One symbol: a row per expected session or bar, in order; `x` are their days."""

    symbol: str
    x: Integers
    rows: pl.DataFrame

    def __getitem__(self, column: str) -> Floats:
        return numbers(self.rows[column])


def _panels(frame: pl.DataFrame, sessions: pl.DataFrame, symbols: Sequence[str]) -> list[_Panel]:
    """The symbols that have rows, each from its first row to its last."""
    made = []
    for symbol in symbols:
        rows = frame.filter(pl.col("symbol") == symbol)
        if rows.is_empty():
            continue
        expected = sessions.filter(
            pl.col("symbol") == symbol,
            pl.col("time").is_between(rows["time"].min(), rows["time"].max()),
        )
        times = pl.concat([expected["time"], rows["time"]]).unique().sort().to_frame("time")
        rows = times.join(rows, on="time", how="left", maintain_order="left")
        made.append(_Panel(symbol, day_numbers(rows["time"]), rows))
    return made


class _Panelled:
    """A sheet with a panel per symbol, all on one range of days."""

    def __init__(self, sheet: Sheet, panels: Sequence[_Panel], notes: Sequence[str]) -> None:
        self.sheet = sheet
        names = [one_line(panel.symbol, 24) for panel in panels]
        self._pairs = list(zip(panels, sheet.panels(names, notes), strict=True))
        self._range = int(min(p.x[0] for p in panels)), int(max(p.x[-1] for p in panels))

    def each(self) -> Iterator[tuple[_Panel, Axes]]:
        for panel, axes in self._pairs:
            yield panel, axes
            date_axis(axes, *self._range, 7 if len(self._pairs) > 1 else 13)

    def finish(self, caption: str) -> Picture:
        return self.sheet.finish(caption)


def _sheet(
    title: str,
    key: Sequence[tuple[Swatch, str, str]],
    panels: Sequence[_Panel],
    notes: Sequence[str] = (),
) -> _Panelled:
    sheet = Sheet(height=300 if len(panels) <= 2 else 480)
    sheet.title(title)
    sheet.key(key)
    return _Panelled(sheet, panels, notes)


def _scope(panels: Sequence[_Panel]) -> str:
    first, last = min(p.x[0] for p in panels), max(p.x[-1] for p in panels)
    return f"{day_of(first)} to {day_of(last)}: {names_of([p.symbol for p in panels])}"


# -- marks ----------------------------------------------------------------------------------------


def _columns(axes: Axes, x: Integers, height: Floats, colour: str) -> None:
    """Columns from the bottom of the panel, in shares of its height."""
    axes.vlines(
        x, 0, height, color=colour, alpha=0.55, linewidth=1.0, transform=axes.get_xaxis_transform()
    )


def _strip(axes: Axes, x: Integers, share: Floats, colour: str, at: Sequence[float]) -> None:
    """A line within the strip at the panel's bottom; `share` and `at` are of the strip's height."""
    from matplotlib.lines import Line2D

    place = axes.get_xaxis_transform()
    for level in at:
        axes.add_line(
            Line2D(
                [0, 1], [level * _STRIP] * 2, color=INK, lw=0.5, ls=":", transform=axes.transAxes
            )
        )
    axes.add_line(Line2D(x, share * _STRIP, color=colour, lw=1.0, transform=place))


def _within(panel: _Panel, actions: pl.DataFrame) -> pl.DataFrame:
    """The symbol's actions of the days that its panel shows, with `x`."""
    own = actions.filter(pl.col("symbol") == panel.symbol)
    own = own.with_columns(x=pl.Series(day_numbers(own["time"])))
    return own.filter(pl.col("x").is_between(panel.x[0], panel.x[-1]))


def _mark_actions(axes: Axes, panel: _Panel, actions: pl.DataFrame) -> None:
    """A line per split with its ratio, a tick per dividend, in the panel's head."""
    place = axes.get_xaxis_transform()
    middle = (panel.x[0] + panel.x[-1]) / 2
    splits = actions.filter(pl.col("kind") == "split")
    for x, value in zip(splits["x"].to_list(), splits["value"], strict=True):
        axes.axvline(x, color=ORANGE, linewidth=1.2, linestyle="--")
        axes.annotate(
            ratio(value),
            (x, 1.0),
            xycoords=place,
            xytext=(3 if x < middle else -3, -1),
            textcoords="offset points",
            ha="left" if x < middle else "right",
            va="top",
            color=ORANGE,
            fontsize=SMALL,
            fontweight="bold",
            parse_math=False,
        )
    paid = actions.filter(pl.col("kind") == "dividend")["x"]
    axes.vlines(paid, 1 - 0.6 * _HEAD, 1, color=GREEN, linewidth=1.4, transform=place)


def ratio(value: float) -> str:
    """A split's ratio as people write it: 2:1, 3:2, 1:10."""
    for old in range(1, 21):
        new = value * old
        if abs(new - round(new)) < 1e-6 * max(new, 1) and round(new) >= 1:
            return f"{round(new):d}:{old}"
    return short(value)


def regime_spans(x: Integers, regime: pl.Series, name: str) -> list[tuple[float, float]]:
    """(begin, length) of the runs of a label, each reaching to the next session."""
    if len(x) == 0:
        return []
    ends = np.append(x[1:], x[-1] + 1)
    runs = regime.rle_id().to_numpy()
    begins = np.flatnonzero(np.append(True, runs[1:] != runs[:-1]))
    bounds = [*begins.tolist(), len(x)]
    return [
        (float(x[a]), float(ends[b - 1] - x[a])) for a, b in pairwise(bounds) if regime[a] == name
    ]


def _shares(panel: _Panel) -> str:
    known = panel.rows["regime"].drop_nulls().to_list()
    return ", ".join(
        f"{name} {100 * known.count(name) / len(known):.0f} %"
        for name in REGIME_COLOURS
        if name in known
    )
