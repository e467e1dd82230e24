"""How much of the grid of intraday bars is there, in words.

A session has many bars, and a minute without a trade rightly has none. So a session is judged as a
whole, and what a UTC day holds of it by itself. Verdicts like those of `completeness.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from feature_pipeline.assets.verdicts import Verdict, first_of, many
from feature_pipeline.storage.audit import SHOWN, Audit
from feature_pipeline.storage.store import Store
from feature_pipeline.universe import calendar_bars

THIN = 0.5
"""Share of a session's bars below which there are too few to trust."""

_PLACE = ["symbol", "session", "day"]


def bars_per_session(
    store: Store, asked: Audit, known: pl.DataFrame, symbols: Sequence[str] | None
) -> Verdict:
    """A bar at least for every session that has ended, half of its bars or more, and none outside.

    Args:
        store: whose universe and clock.
        asked: about an intraday table.
        known: `symbol`, `day`, `reason` of what is known to be missing.
        symbols: whose rows; those of others were not asked for in this run.
    """
    expected = _expected(store, asked, symbols)
    held = asked.held_per_session()
    if symbols is not None:
        held = held.filter(pl.col("symbol").is_in(list(symbols)))
    both = expected.join(held, on=_PLACE, how="left").with_columns(pl.col("rows").fill_null(0))
    missing = both.filter((pl.col("rows") == 0) & (pl.col("due") == pl.col("bars")))
    missing = missing.join(known, on=["symbol", "day"], how="left")
    unknown = missing.filter(pl.col("reason").is_null())
    thin = both.filter((pl.col("rows") > 0) & (pl.col("rows") < THIN * pl.col("due")))
    outside = held.filter(pl.col("symbol").is_in(list(store.universe.symbols)))
    outside = outside.join(expected, on=_PLACE, how="anti")
    parts = [
        f"no bar of {_named(rows)} ({why})"
        for rows, why in (
            (unknown, "and nothing says why"),
            (missing.filter(pl.col("reason").is_not_null()), "the reason is known"),
        )
        if rows.height
    ]
    if thin.height:
        parts.append(f"less than half of the bars of {_named(thin)}")
    if outside.height:
        parts.append(f"bars of what is no session of the calendar: {_named(outside)}")
    numbers = {
        "rows": int(held["rows"].sum()),
        "expected": int(expected["due"].sum()),
        "sessions": expected.height,
        "unaccounted": unknown.height,
        "thin": thin.height,
    }
    if not parts:
        said = f"bars of each of {many(expected.height, 'session')}"
        return Verdict(True, said, numbers=numbers)
    shown = pl.concat([missing, thin], how="diagonal").select(
        *_PLACE, "rows", expected="due", reason="reason"
    )
    return Verdict(
        False,
        "; ".join(parts),
        error=unknown.height > 0,
        shown=shown.sort("rows", *_PLACE).head(SHOWN),
        numbers=numbers,
    )


def _expected(store: Store, asked: Audit, symbols: Sequence[str] | None) -> pl.DataFrame:
    """Symbol, session, day; its `bars` on the grid, and how many are `due`. Counted by calendar:
    every instrument of one has the same grid."""
    wanted = store.universe.symbols if symbols is None else symbols
    over = pl.col("end") + store.publication_delay <= asked.now
    frames = [
        pl.DataFrame(
            schema=dict.fromkeys(_PLACE[:1], pl.String)
            | dict.fromkeys(_PLACE[1:], pl.Date)
            | {"bars": pl.Int64, "due": pl.Int64}
        )
    ]
    for calendar in sorted({i.calendar for i in store.universe.instruments}):
        grid = calendar_bars(calendar, str(asked.table.timeframe), asked.start, asked.end)
        counted = grid.group_by("session", day=pl.col("time").dt.date()).agg(
            bars=pl.len().cast(pl.Int64), due=over.sum().cast(pl.Int64)
        )
        frames += [
            counted.filter(
                pl.col("due") > 0,
                pl.col("session") >= i.first_day,
                pl.lit(i.end_day is None) | (pl.col("session") < (i.end_day or i.first_day)),
            ).select(pl.lit(i.id).alias("symbol"), *_PLACE[1:], "bars", "due")
            for i in store.universe.instruments
            if i.calendar == calendar and i.id in wanted
        ]
    return pl.concat(frames)


def _named(rows: pl.DataFrame) -> str:
    said = [
        f"{symbol} on {session}"
        for symbol, session in rows.sort(_PLACE).select(_PLACE[:2]).head(3).iter_rows()
    ]
    return first_of(said, rows.height)
