"""The session grid of a run and its price adjustment for splits and dividends.

What every computation on bars starts from: rows in order, rows that cannot be used marked, and
the factors that turn prices as traded into a split-adjusted or a total-return series. Nothing
here knows a feature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

KEYS = ("symbol", "time", "available_at", "availability_basis")

NO_GAP = np.iinfo(np.int64).max

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def in_order(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame sorted by (symbol, time); as it is where it already is, which is the usual case."""
    symbol, time = pl.col("symbol"), pl.col("time")
    rises = (symbol > symbol.shift()) | ((symbol == symbol.shift()) & (time >= time.shift()))
    if frame.height < 2 or frame.select(rises.slice(1).all()).item() is True:
        return frame
    return frame.sort("symbol", "time")


def session_grid(
    bars: pl.DataFrame, actions: pl.DataFrame, prices: Sequence[str] = ("close",)
) -> pl.DataFrame:
    """The bars in (symbol, time) order with their adjustment factors.

    A row cannot be used when it is a gap row (`available_at` is null), when one of `prices` is not
    a finite positive number, or when the corporate actions of its day were not collected: whether a
    split lies before it is then unknown.

    Args:
        bars: KEYS and `prices`, gap rows included.
        actions: symbol, time (ex-date), available_at, kind (split, dividend), value. A row without
            kind is a day that was not collected, for its symbol or, without symbol, for all.
        prices: the price columns that the caller computes on.

    Returns:
        The columns of `bars` and
        group: number of the symbol, 0, 1, ...
        usable: whether the row's prices can be used.
        run: rows in a row that end here and can be used here, within the frame; 0 where not usable.
        since_gap: rows since the last one that cannot be used here: an unusable one, or one that
            became available after this one (`last_late`); 0 on an unusable row, NO_GAP without any.
        split_factor: price as traded / price on the basis of the symbol's last bar.
        dividend_factor: total-return price / split-adjusted price; NaN before a dividend not
            smaller than the close before it, which cannot be right.
    """
    rows = in_order(bars)
    finite = pl.all_horizontal(
        pl.col("available_at").is_not_null(),
        *(pl.col(p).is_finite().fill_null(value=False) & (pl.col(p) > 0) for p in prices),
    )
    rows = rows.with_columns(group=pl.col("symbol").rle_id(), usable=finite.fill_null(value=False))
    unknown = actions.filter(pl.col("kind").is_null()).select("symbol", "time")
    if unknown.height:
        rows = rows.with_columns(usable=pl.col("usable") & ~_on_days(rows, unknown))
    run, since_gap = _distances(
        rows["group"].to_numpy(), rows["usable"].to_numpy(), last_late(rows)
    )
    rows = rows.with_columns(run=pl.Series(run), since_gap=pl.Series(since_gap))
    known = actions.filter(pl.col("kind").is_not_null())
    split, dividend = _factors(rows, known)
    return rows.with_columns(
        split_factor=pl.Series(split, dtype=pl.Float64),
        dividend_factor=pl.Series(dividend, dtype=pl.Float64),
    )


def _on_days(rows: pl.DataFrame, days: pl.DataFrame) -> pl.Series:
    """Whether each row's day is among `days`, of its symbol or of all."""
    day = pl.col("time").dt.truncate("1d")
    everyone = days.filter(pl.col("symbol").is_null()).select(day)["time"].unique()
    one = days.filter(pl.col("symbol").is_not_null()).select("symbol", day.alias("day")).unique()
    hit = rows.select("symbol", day.alias("day")).join(
        one.with_columns(hit=True), on=["symbol", "day"], how="left", maintain_order="left"
    )
    return hit.select(
        pl.col("hit").fill_null(value=False) | pl.col("day").is_in(everyone.implode())
    ).to_series()


def last_late(rows: pl.DataFrame) -> Integers | None:
    """Per row, the index of the last earlier row of its symbol that became available after it.

    A bar that arrived late was unknown at the moment of the bars that did not wait for it; for them
    it is a gap.

    Args:
        rows: group and available_at, in (symbol, time) order.

    Returns:
        Indices into the rows, -1 where there is none; None where no row of the frame is late.
    """
    moment, group = pl.col("available_at").to_physical(), pl.col("group")
    # A gap row is not late, and its own value is nobody's.
    moment = moment.fill_null(strategy="forward").over("group").fill_null(np.iinfo(np.int64).min)
    if rows["available_at"].null_count() == 0:
        moment = pl.col("available_at").to_physical()
    falls = (moment < moment.shift()) & (group == group.shift())
    if not rows.select(falls.any()).item():
        return None
    frame = rows.select(
        "group", moment=moment, least=moment.shift(-1).cum_min(reverse=True).over("group")
    )
    when = frame["moment"].to_numpy()
    least = frame["least"].to_numpy()  # of the rows that follow; NaN where none does
    late = np.flatnonzero(least < when)
    result = np.full(len(when), -1, dtype=np.int64)
    ahead = 1
    while len(late):
        behind = late[when[late + ahead] < when[late]]
        result[behind + ahead] = np.maximum(result[behind + ahead], behind)
        late = late[least[late + ahead] < when[late]]
        ahead += 1
    return result


def _distances(
    group: npt.NDArray[np.uint32], usable: npt.NDArray[np.bool_], late: Integers | None
) -> tuple[Integers, Integers]:
    """`run` and `since_gap` of `session_grid`."""
    index = np.arange(len(group), dtype=np.int64)
    first = np.ones(len(group), dtype=bool)
    first[1:] = group[1:] != group[:-1]
    start = np.maximum.accumulate(np.where(first, index, 0)) if len(group) else index
    if usable.all() and late is None:
        return index - start + 1, np.full(len(group), NO_GAP)
    last = np.maximum.accumulate(np.where(usable, -1, index))
    if late is not None:
        last = np.maximum(last, late)
    since_gap = np.where(last >= start, index - last, NO_GAP)
    return np.minimum(since_gap, index - start + 1), since_gap


def _factors(rows: pl.DataFrame, actions: pl.DataFrame) -> tuple[Floats, Floats]:
    """Per row, the product of the split ratios, and of the dividend factors, that follow it.

    An action applies from the first usable bar on or after its ex-date; the bars before that one
    are adjusted. One without such a bar changes nothing. Dividends of one bar add up; they are cash
    per share as it is on the ex-date, after a split of that day.
    """
    ones = np.ones(rows.height), np.ones(rows.height)
    if actions.is_empty():
        return ones
    usable = rows.with_row_index("row").filter("usable").select("symbol", "time", "row", "close")
    usable = usable.with_columns(previous=pl.col("close").shift().over("symbol"))
    events = (
        actions.sort("time", "symbol")
        .join_asof(usable, on="time", by="symbol", strategy="forward", check_sortedness=False)
        .filter(pl.col("previous").is_not_null())
        .group_by("row")
        .agg(
            split=pl.col("value").filter(pl.col("kind") == "split").sort().product(),
            paid=pl.col("value").filter(pl.col("kind") == "dividend").sort().sum(),
            previous=pl.col("previous").first(),
        )
        .sort("row")
    )
    if events.is_empty():
        return ones
    kept = 1.0 - events["paid"] * events["split"] / events["previous"]
    row, group = events["row"].to_numpy().astype(np.int64), rows["group"].to_numpy()
    return (
        _following_product(row, events["split"].to_numpy(), group),
        _following_product(row, np.where(kept > 0, kept, np.nan), group),
    )


def _following_product(row: Integers, factor: Floats, group: npt.NDArray[np.uint32]) -> Floats:
    """Per row of the grid, the product of the factors at later rows of its group.

    Multiplied from the last event back, so that it does not depend on what precedes the event.
    """
    symbol = group[row]
    frame = pl.DataFrame({"symbol": symbol, "factor": factor})
    product = (
        frame.select(pl.col("factor").cum_prod(reverse=True).over("symbol")).to_series().to_numpy()
    )
    begin = np.searchsorted(group, symbol)
    begin[1:] = np.where(symbol[1:] == symbol[:-1], row[:-1], begin[1:])
    length = row - begin
    target = np.repeat(begin - (np.cumsum(length) - length), length) + np.arange(length.sum())
    result = np.ones(len(group))
    result[target] = np.repeat(product, length)
    return result
