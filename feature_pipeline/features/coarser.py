"""Bars of five minutes and of an hour, made of minutes.

Pure: minutes and the grid in, bars out. Which minutes there are, and who is asked where there are
none, is the asset's (`assets/ohlcv.py`).
"""

from __future__ import annotations

import polars as pl


def coarser(minutes: pl.DataFrame, grid: pl.DataFrame) -> pl.DataFrame:
    """One bar of each that has a trade: first open, highest high, lowest low, last close, volume.

    It is known when the last of its minutes is, and not before it ends: the minutes after its last
    trade had to pass, too. Its spread is the mean of theirs.

    Args:
        minutes: the columns of `ohlcv_1m`.
        grid: symbol, time, end, session of the bars to make (`Universe.bars`).

    Returns:
        The columns of `minutes` and `end` (UTC), sorted by symbol and time.
    """
    placed = minutes.sort("time").join_asof(
        grid.sort("time").select("symbol", "end", start="time"),
        left_on="time",
        right_on="start",
        by="symbol",
        check_sortedness=False,
    )
    minute, known = pl.duration(minutes=1), pl.col("available_at")
    lag = (known - pl.col("time") - minute).last()
    return (
        placed.filter(pl.col("time") < pl.col("end"))
        .group_by("symbol", "start", "end", maintain_order=True)
        .agg(
            available_at=pl.max_horizontal(known.max(), pl.col("end").first() + lag),
            availability_basis=pl.col("availability_basis").min(),
            session=pl.col("session").first(),
            open=pl.col("open").first(),
            high=pl.col("high").max(),
            low=pl.col("low").min(),
            close=pl.col("close").last(),
            volume=pl.col("volume").sum(),
            spread=pl.col("spread").mean(),
            source=pl.col("source").last(),
        )
        .rename({"start": "time"})
        .select(*minutes.columns, "end")
        .sort("symbol", "time")
    )
