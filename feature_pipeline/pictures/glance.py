"""What fits into a table cell: a sparkline as a few hundred characters of SVG.

The Dagster UI shows markdown of fewer than a thousand characters where it stands, and longer ones
behind a link: a glance is always shorter, a `Picture` never is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from feature_pipeline.pictures.style import BLUE, INK, ORANGE, Floats

MOST_CHARACTERS = 999
MOST_POINTS = 60
_W, _H = 240, 36


def line(values: Floats, colour: str = BLUE) -> str:
    """A line of the last values, as SVG; NaN is a gap, a value without neighbours a dot."""
    shown = values[-MOST_POINTS:]
    known = np.isfinite(shown)
    if not known.any():
        return ""
    low, high = shown[known].min(), shown[known].max()
    share = (np.nan_to_num(shown, nan=low) - low) / ((high - low) or 1.0)
    y = np.round((_H - 4) * (1 - share) + 2).astype(int).tolist()
    x = np.round(np.linspace(2, _W - 2, len(shown))).astype(int).tolist()
    path, drawn = "", False
    for i in np.flatnonzero(known).tolist():
        path += f"L{x[i]},{y[i]}" if drawn else f"M{x[i]},{y[i]}h0"
        drawn = i + 1 < len(known) and bool(known[i + 1])
    return _svg(
        f"<path d='{path}' fill='none' stroke='{colour}' stroke-width='2' stroke-linecap='round'/>"
    )


def columns(values: Floats, low: float | None = None, high: float | None = None) -> str:
    """Columns of the last values, as SVG: orange above zero, blue below; NaN is a grey stub."""
    shown = values[-MOST_POINTS:]
    known = shown[np.isfinite(shown)]
    if not known.size:
        return ""
    low = min(0.0, float(known.min())) if low is None else low
    high = max(0.0, float(known.max())) if high is None else high
    scale = (_H - 2) / (high - low or 1.0)
    zero = round(1 + high * scale)
    step = _W / len(shown)
    paths = {ORANGE: "", BLUE: "", INK: ""}
    for i, value in enumerate(shown.tolist()):
        x = round(step * (i + 0.5))
        if not np.isfinite(value):
            paths[INK] += f"M{x},{zero - 3}v6"
        elif up := round(value * scale):
            paths[ORANGE if up > 0 else BLUE] += f"M{x},{zero}v{-up}"
    width = max(round(step * 0.7), 1)
    return _svg(
        "".join(
            f"<path d='{path}' stroke='{colour}' stroke-width='{width}'/>"
            for colour, path in paths.items()
            if path
        )
    )


def blocks(labels: Sequence[str | None], colours: Mapping[str, str]) -> str:
    """A band of the last labels, as SVG; no label is no colour."""
    shown = labels[-MOST_POINTS:]
    if not any(label in colours for label in shown):
        return ""
    parts, begin = [], 0
    step = _W / len(shown)
    for i in range(1, len(shown) + 1):
        if i < len(shown) and shown[i] == shown[begin]:
            continue
        colour = colours.get(shown[begin] or "")
        if colour:
            x, end = round(step * begin), round(step * i)
            parts.append(f"<path d='M{x},12h{end - x}' stroke='{colour}' stroke-width='16'/>")
        begin = i
    return _svg("".join(parts))


def _svg(body: str) -> str:
    return f"<svg xmlns='http://www.w3.org/2000/svg' width='{_W}' height='{_H}'>{body}</svg>"
