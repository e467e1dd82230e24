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

from feature_pipeline.schemas import FILLED

KEYS = ("symbol", "time", "available_at", "availability_basis")

NO_GAP = np.iinfo(np.int64).max

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def keys(frame: pl.DataFrame) -> list[str]:
    """KEYS and, of intraday bars, their session."""
    return [*KEYS, *(name for name in ("session",) if name in frame.columns)]


def real_rows(frame: pl.DataFrame) -> pl.Series:
    """Which rows are bars that the provider has: neither gap rows nor filled ones."""
    real = pl.col("available_at").is_not_null()
    return frame.select(real & ~pl.col(FILLED) if FILLED in frame.columns else real).to_series()


def in_order(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame in (symbol, time) order, with `group`, the number of the symbol in that order.

    Frames from the store come in order: looking is much cheaper than sorting.
    """
    grouped = frame.with_columns(group=pl.col("symbol").rle_id())
    begins = first_rows(grouped["group"])
    time = grouped["time"].to_physical().to_numpy()
    later = time[1:] >= time[:-1]
    later[begins[1:] - 1] = True
    symbols = grouped["symbol"].gather(begins)
    if later.all() and (symbols.slice(1) > symbols.head(-1)).all():
        return grouped
    return frame.sort("symbol", "time").with_columns(group=pl.col("symbol").rle_id())


def first_rows(group: pl.Series) -> Integers:
    """The index of each group's first row, of a column of group numbers in order."""
    number = group.to_numpy()
    return np.flatnonzero(np.append(True, number[1:] != number[:-1])[: len(number)])


def session_grid(
    bars: pl.DataFrame, actions: pl.DataFrame, prices: Sequence[str] = ("close",)
) -> pl.DataFrame:
    """The bars in (symbol, time) order with their adjustment factors.

    A row cannot be used when it is a gap row (`available_at` is null), when one of `prices` is not
    a finite positive number, or when the corporate actions of its day were not collected: whether a
    split lies before it is then unknown.

    Args:
        bars: KEYS and `prices` (close among them), gap rows included.
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
        dividend_factor: total-return price / split-adjusted price. A dividend not smaller than the
            close before it cannot be right and is left out: what was computed before it stays.
    """
    rows = in_order(bars)
    rows = rows.with_columns(usable=_usable(rows, prices))
    unknown = actions.filter(pl.col("kind").is_null())
    if unknown.height:
        rows = rows.with_columns(usable=pl.col("usable") & ~_on_days(rows, unknown))
    run, since_gap = _distances(rows, last_late(rows))
    split, dividend = _factors(rows, actions.filter(pl.col("kind").is_not_null()))
    return rows.with_columns(
        run=pl.Series(run),
        since_gap=pl.Series(since_gap),
        split_factor=split,
        dividend_factor=dividend,
    )


def _usable(rows: pl.DataFrame, prices: Sequence[str]) -> pl.Expr:
    """Whether all prices of the row are finite and positive, and the row is no gap."""
    price = pl.col(*prices)
    if rows["available_at"].null_count() == 0:
        # The usual case needs no mask: two reductions per column tell.
        whole = pl.all_horizontal(price.is_finite().all(ignore_nulls=False), price.min() > 0)
        if rows.select(whole).item():
            return pl.lit(value=True)
    good = pl.all_horizontal(price.is_finite(), price > 0, pl.col("available_at").is_not_null())
    return good.fill_null(value=False)


def _session(rows: pl.DataFrame) -> pl.Expr:
    """The date of each row's session, 00:00 UTC: an ex-date is one of those."""
    if "session" in rows.columns:
        return pl.col("session").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return pl.col("time")


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
    if rows["available_at"].null_count():
        # A gap row is not late, and no value is computed at it.
        earliest = np.iinfo(np.int64).min
        moment = moment.fill_null(strategy="forward").over("group").fill_null(earliest)
    falls = (moment < moment.shift()) & (group == group.shift())
    if not rows.select(falls.any()).item():
        return None
    frame = rows.select(moment=moment, least=moment.shift(-1).cum_min(reverse=True).over("group"))
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


def _distances(rows: pl.DataFrame, late: Integers | None) -> tuple[Integers, Integers]:
    """`run` and `since_gap` of `session_grid`."""
    index = np.arange(rows.height, dtype=np.int64)
    begins = first_rows(rows["group"])
    start = np.repeat(begins, np.diff(begins, append=rows.height))
    if rows["usable"].all() and late is None:
        return index - start + 1, np.full(rows.height, NO_GAP)
    last = np.maximum.accumulate(np.where(rows["usable"].to_numpy(), -1, index))
    if late is not None:
        last = np.maximum(last, late)
    since_gap = np.where(last >= start, index - last, NO_GAP)
    return np.minimum(since_gap, index - start + 1), since_gap


def _factors(rows: pl.DataFrame, actions: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Per row, the product of the split ratios, and of the dividend factors, that follow it.

    An action applies from the first usable bar of a session on or after its ex-date; the bars
    before that one are adjusted. One without such a bar changes nothing. Dividends of one bar add
    up; they are cash per share as it is on the ex-date, after a split of that day.
    """
    events = _effective(rows, actions) if actions.height else actions
    if events.is_empty():
        one = pl.repeat(1.0, rows.height, dtype=pl.Float64, eager=True)
        return one, one
    kept = (1.0 - events["paid"] * events["split"] / events["previous"]).to_numpy()
    row, begins = events["row"].to_numpy(), first_rows(rows["group"])
    return (
        _following_product(row, events["split"].to_numpy(), begins, rows.height),
        _following_product(row, np.where(kept > 0, kept, 1.0), begins, rows.height),
    )


def _effective(rows: pl.DataFrame, actions: pl.DataFrame) -> pl.DataFrame:
    """The rows at which actions take effect: row, split, paid and the previous usable close."""
    usable = rows if rows["usable"].all() else rows.with_row_index("row").filter("usable")
    begins = first_rows(usable["group"])
    segments = pl.DataFrame(
        {
            "symbol": usable["symbol"].gather(begins),
            "begin": begins,
            "end": np.append(begins, usable.height)[1:],
        },
        schema_overrides={"begin": pl.Int64, "end": pl.Int64},
    )
    events = actions.join(segments, on="symbol").sort("symbol", "time", "kind")
    begin, end = (events[c].to_numpy() for c in ("begin", "end"))
    session = usable.select(_session(usable)).to_series()
    time, wanted = (column.to_physical().to_numpy() for column in (session, events["time"]))
    at = _first_at_or_after(time, wanted, begin, end)
    # At a symbol's first bar there is nothing before it to adjust.
    within = (at > begin) & (at < end)
    events, at = events.filter(within), at[within]
    row = usable["row"].gather(at).cast(pl.Int64) if "row" in usable.columns else pl.Series(at)
    return (
        events.with_columns(row=row, previous=usable["close"].gather(at - 1))
        .group_by("row")
        .agg(
            split=pl.col("value").filter(pl.col("kind") == "split").product(),
            paid=pl.col("value").filter(pl.col("kind") == "dividend").sum(),
            previous=pl.col("previous").first(),
        )
        .sort("row")
    )


def _first_at_or_after(
    times: Integers, wanted: Integers, begin: Integers, end: Integers
) -> Integers:
    """Per wanted time, the first index in [begin, end) whose time is not before it, else end.

    A binary search in all segments at once; `times` rises within each.
    """
    low, high = begin.copy(), end.copy()
    while (searching := low < high).any():
        middle = (low + high) // 2
        before = searching & (times[np.minimum(middle, len(times) - 1)] < wanted)
        low = np.where(before, middle + 1, low)
        high = np.where(searching & ~before, middle, high)
    return low


def _following_product(row: Integers, factor: Floats, begins: Integers, rows: int) -> pl.Series:
    """Per row of the grid, the product of the factors at later rows of its symbol.

    Multiplied from the last event back, so that it does not depend on what precedes the event.
    """
    symbol = np.searchsorted(begins, row, side="right")
    frame = pl.DataFrame({"symbol": symbol, "factor": factor})
    product = frame.select(pl.col("factor").cum_prod(reverse=True).over("symbol")).to_series()
    begin = begins[symbol - 1]
    begin[1:] = np.where(symbol[1:] == symbol[:-1], row[:-1], begin[1:])
    length = row - begin
    target = np.repeat(begin - (np.cumsum(length) - length), length) + np.arange(length.sum())
    result = np.ones(rows)
    result[target] = np.repeat(product.to_numpy(), length)
    return pl.Series(result)
