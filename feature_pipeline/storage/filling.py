"""Intraday rows on their grid: a row for every bar of a session, whether there was a trade or not.

Providers send no bar for a minute without a trade. What is computed on bars counts the grid's, so
that a window is as long at noon as at the open, and no value depends on where the loaded range
begins. Pure: frames in, a frame out; nothing that is made here is written.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl

from feature_pipeline.schemas import FILLED

_KEY = ["symbol", "time"]
_OF = ["symbol", "session"]
_PRICES = ("open", "high", "low", "close")
_NO_DAYS = pl.Series("day", [], dtype=pl.Date)


def on_the_grid(
    rows: pl.DataFrame,
    grid: pl.DataFrame,
    *,
    bars: bool,
    now: datetime,
    delay: timedelta,
    dropped: pl.Series = _NO_DAYS,
) -> pl.DataFrame:
    """The rows, with those that lack between them.

    A bar without a trade has the last close as its prices and no volume, and what derives from bars
    repeats its last row. Before the first trade of a session there is nothing to repeat: the open
    of that bar stands in, and the row that derives from it, known when it was. So no filled row is
    known before it could be, and no session depends on the one before it.

    A session without any row is a gap once it is over: its rows have symbol, time and session
    alone. One that has just begun is not there yet. Of a session that is kept in part, what lies on
    a dropped day is a gap too, and with it what would stand before its first trade.

    Args:
        rows: of an intraday table: symbol, time, available_at, availability_basis, session and
            others; of bars `open` and `close` among them.
        grid: what `Universe.bars` has of the same range.
        bars: whether they are bars, and do not derive from them.
        now: UTC; what is not over by then is not filled.
        delay: how long after its end a bar may rightly be missing, unless a later one is there.
        dropped: UTC days of which rows are not kept any more.

    Returns:
        The columns of `rows` and FILLED, sorted by symbol and time.
    """
    newest = rows.group_by(_OF).agg(newest=pl.col("time").max())
    # Whoever has traded since has no bar of it, however soon that is known.
    passed = (pl.col("time") < pl.col("newest")).fill_null(value=False)
    due = grid.join(newest, on=_OF, how="left").filter(passed | (pl.col("end") + delay <= now))
    found = rows.join(grid.select(*_KEY, "end"), on=_KEY, how="left", maintain_order="left")
    missing = due.select(*_KEY, "session", "end").join(rows, on=_KEY, how="anti")
    if missing.is_empty():
        return rows.sort(_KEY).with_columns(pl.lit(value=False).alias(FILLED))
    every = pl.concat(
        [
            found.with_columns(real=pl.lit(value=True)),
            missing.with_columns(real=pl.lit(value=False)),
        ],
        how="diagonal",
    )
    # The last bar tells whether a session is over.
    last = grid.group_by(_OF).agg(last=pl.col("end").max())
    every = (
        every.join(last, on=_OF, how="left")
        .sort(_KEY)
        .with_columns(
            traded=pl.col("real").any().over(_OF),
            dropped=pl.col("time").dt.date().is_in(dropped.implode()) & ~pl.col("real"),
        )
        .filter(pl.col("traded") | (pl.col("last") + delay <= now))
    )
    return _filled(every, rows.columns, bars=bars)


def _filled(every: pl.DataFrame, columns: list[str], *, bars: bool) -> pl.DataFrame:
    """The rows of a grid, those that are not `real` made from those that are."""
    row = pl.when("real").then("row")
    every = (
        every.with_row_index("row")
        .with_columns(at=row.forward_fill().over(_OF))
        .with_columns(
            first=pl.col("traded") & pl.col("at").is_null(),
            at=pl.col("at").backward_fill().over(_OF),
        )
    )
    repeated = every.select(pl.all().gather(every["at"]))
    unknown = pl.col("dropped") | (pl.col("first") & pl.col("dropped").any().over(_OF))
    made = every.select(pl.col("traded") & ~pl.col("real") & ~unknown).to_series()
    first = every["first"]
    known = (
        pl.when(first)
        .then(repeated["available_at"])
        .otherwise(every["end"] + (repeated["available_at"] - repeated["end"]))
    )
    values: dict[str, pl.Series | pl.Expr] = {
        name: repeated[name] for name in columns if name not in (*_KEY, "session")
    }
    values["available_at"] = known
    if bars:
        price = pl.when(first).then(repeated["open"]).otherwise(repeated["close"])
        values |= {name: price for name in _PRICES if name in columns}
        values |= {"volume": pl.lit(0.0)} if "volume" in columns else {}
    return every.select(
        *(
            pl.when(made).then(values[name]).otherwise(pl.col(name)).alias(name)
            if name in values
            else pl.col(name)
            for name in columns
        ),
        made.alias(FILLED),
    )
