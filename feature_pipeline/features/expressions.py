"""Small named expressions that the catalogue's declarations are composed of.

Each is a function of columns that `indicators`, `price_features`, `regime` and `state_vector`
prepare, in (symbol, time) order. None knows where a symbol begins: the caller nulls every value
whose window is not wholly inside one symbol and free of gaps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import polars as pl
import polars_talib as talib

from feature_pipeline.timeframes import SESSIONS_PER_YEAR

FLAT = 1e-9
"""Relative width under which a price window counts as flat: rounding, not movement."""

Floats = npt.NDArray[np.float64]

# -- windows --------------------------------------------------------------------------------------
#
# Sums over a window are taken afresh for each row, never carried along: a value then depends on its
# window alone, bit for bit, wherever the loaded range begins.

_BLOCK = 1 << 16


def _windows(reduce: Callable[..., Floats], bars: int, *columns: Floats) -> Floats:
    """`reduce` over the trailing windows of equally long columns; NaN where the window is short."""
    rows = len(columns[0])
    out = np.full(rows, np.nan)
    views = [np.lib.stride_tricks.sliding_window_view(c, bars) for c in columns if rows >= bars]
    with np.errstate(invalid="ignore", divide="ignore"):
        for begin in range(0, rows - bars + 1, _BLOCK):
            block = [view[begin : begin + _BLOCK] for view in views]
            out[begin + bars - 1 : begin + bars - 1 + len(block[0])] = reduce(*block)
    return out


def _floats(series: pl.Series) -> Floats:
    """A column as NumPy values, null as NaN."""
    return series.cast(pl.Float64).fill_null(np.nan).to_numpy()


def rolling_mean(column: pl.Expr, bars: int) -> pl.Expr:
    """Mean of the trailing `bars` values; NaN where one of them is missing."""
    return column.map_batches(
        lambda s: pl.Series(_windows(lambda x: x.mean(axis=1), bars, _floats(s))),
        return_dtype=pl.Float64,
    )


def rolling_std(column: pl.Expr, bars: int) -> pl.Expr:
    """Standard deviation (ddof 1) of the trailing `bars` values; NaN where one is missing."""
    return column.map_batches(
        lambda s: pl.Series(_windows(lambda x: x.std(axis=1, ddof=1), bars, _floats(s))),
        return_dtype=pl.Float64,
    )


def rolling_percentile(column: pl.Expr, bars: int) -> pl.Expr:
    """Rank of the current value among the trailing `bars`, ties in the middle, over `bars`.

    In (0, 1]; NaN where one of the values is missing.
    """

    def rank(window: Floats) -> Floats:
        current = window[:, -1:]
        below = (window < current).sum(axis=1)
        equal = (window == current).sum(axis=1)
        known = ~np.isnan(window).any(axis=1)
        return np.where(known, (below + (equal + 1) / 2) / bars, np.nan)

    return column.map_batches(
        lambda s: pl.Series(_windows(rank, bars, _floats(s))), return_dtype=pl.Float64
    )


def rolling_beta(
    y: pl.Expr, x: pl.Expr, known: pl.Expr, moment: pl.Expr, bars: int, least: int
) -> pl.Expr:
    """Covariance of y and x over the variance of x, over the trailing `bars` rows.

    `known` is when x was; rows where it is null have no x and are left out, as is the current row
    where x is not known at its `moment`. NaN where y or any other x is missing or not known by
    then, where fewer than `least` rows remain, and where x does not vary.
    """

    def beta(y: Floats, x: Floats, known: Floats, moment: Floats) -> Floats:
        by_then = known <= moment[:, -1:]
        paired = ~np.isnan(known)
        paired[:, -1] &= by_then[:, -1]
        x = np.where(paired, np.where(by_then, x, np.nan), 0.0)
        rows = paired.sum(axis=1)
        x_mean = (x * paired).sum(axis=1) / rows
        y_mean = (y * paired).sum(axis=1) / rows
        dx = (x - x_mean[:, None]) * paired
        dy = (y - y_mean[:, None]) * paired
        variance = (dx * dx).sum(axis=1)
        enough = (rows >= least) & (variance > 0)
        return np.where(enough, (dx * dy).sum(axis=1) / variance, np.nan)

    def batch(series: pl.Series) -> pl.Series:
        return pl.Series(_windows(beta, bars, *map(_floats, series.struct.unnest())))

    # Microseconds of these centuries are exact in a double.
    columns = pl.struct(y=y, x=x, known=known.to_physical(), moment=moment.to_physical())
    return columns.map_batches(batch, return_dtype=pl.Float64)


def min_max(column: pl.Expr, bars: int, flat: pl.Expr) -> pl.Expr:
    """Position of the current value between the least and greatest of the trailing `bars`.

    0.5 in a window no wider than `flat`; null where one of the values is missing.
    """
    low, high = column.rolling_min(bars), column.rolling_max(bars)
    return pl.when(high - low <= flat).then(0.5).otherwise((column - low) / (high - low)).clip(0, 1)


# -- indicators, on split-adjusted prices of one symbol -------------------------------------------

_HIGH, _LOW, _CLOSE = pl.col("high"), pl.col("low"), pl.col("close")


def sma(bars: int) -> pl.Expr:
    """Simple moving average of the close."""
    return talib.sma(_CLOSE, bars)


def ema(bars: int) -> pl.Expr:
    """Exponential moving average of the close, seeded with the SMA of its first `bars`."""
    return talib.ema(_CLOSE, bars)


def rsi() -> pl.Expr:
    """Relative strength index of the close (Wilder 1978), 14 bars."""
    return talib.rsi(_CLOSE, 14)


def macd() -> pl.Expr:
    """Moving average convergence/divergence (Appel), 12, 26 and 9 bars: line, signal, histogram."""
    return talib.macd(_CLOSE)


def atr() -> pl.Expr:
    """Average true range (Wilder 1978), 14 bars."""
    return talib.atr(_HIGH, _LOW, _CLOSE, 14)


def bollinger() -> pl.Expr:
    """Bollinger bands: SMA(20) and two standard deviations (ddof 0) to either side."""
    return talib.bbands(_CLOSE, 20)


def adx() -> pl.Expr:
    """Average directional index (Wilder 1978), 14 bars."""
    return talib.adx(_HIGH, _LOW, _CLOSE, 14)


# -- features -------------------------------------------------------------------------------------

_TOTAL = pl.col("total_close")
_LOG_RETURN = pl.col("log_return")


def prepared(column: str) -> pl.Expr:
    """A column that the table's module prepares under that name."""
    return pl.col(column)


def total_return(bars: int, until: int = 0) -> pl.Expr:
    """Simple total return from `bars` bars ago to `until` bars ago."""
    return _TOTAL.shift(until) / _TOTAL.shift(bars) - 1


def volatility(bars: int, per_year: float = SESSIONS_PER_YEAR) -> pl.Expr:
    """Annualised standard deviation of the log total returns of `bars` bars, so many a year."""
    return rolling_std(_LOG_RETURN, bars) * np.sqrt(per_year)


def volume_ratio(bars: int) -> pl.Expr:
    """Volume over its mean of the trailing `bars`; null where there was none traded."""
    volume = pl.col("split_volume")
    return pl.when(volume > 0).then(volume / rolling_mean(volume, bars))


def sma_ratio() -> pl.Expr:
    """Close over SMA(50), both as traded."""
    return pl.col("close") / pl.col("sma_50")


def bb_position() -> pl.Expr:
    """Where the close lies between the Bollinger bands: 0 on the lower, 1 on the upper."""
    width = pl.col("bb_upper") - pl.col("bb_lower")
    return pl.when(width > _BAND_FLAT * pl.col("close")).then(
        (pl.col("close") - pl.col("bb_lower")) / width
    )


# TA-Lib's variance is a difference of running sums: in a flat window its square root is noise of
# the order of 1e-8 of the price.
_BAND_FLAT = 1e-6


def sector_momentum() -> pl.Expr:
    """Mean of the 20-bar returns of the sector's members of that day, as far as known by then."""
    returns = pl.when(pl.col("member")).then(pl.col("returns_20d"))
    mean = known_mean(returns, ("sector", "time"), pl.col("available_at"))
    return pl.when(pl.col("sector").is_not_null()).then(mean)


def known_mean(value: pl.Expr, group: tuple[str, ...], moment: pl.Expr) -> pl.Expr:
    """Per row, the mean of the group's values that were known at the row's `moment`."""

    def batch(series: pl.Series) -> pl.Series:
        value, known = pl.col("value"), [*group, "moment"]
        ordered = series.struct.unnest().with_row_index("row").sort(*known, "row", nulls_last=True)
        sums = ordered.with_columns(
            total=value.fill_null(0.0).cum_sum().over(group),
            count=value.is_not_null().cast(pl.Float64).cum_sum().over(group),
        )
        # What became known at the same moment is known together.
        means = sums.with_columns(pl.col("total", "count").last().over(known)).sort("row")
        return means.select(
            pl.when(pl.col("count") > 0).then(pl.col("total") / pl.col("count"))
        ).to_series()

    columns = pl.struct(*group, value=value, moment=moment)
    return columns.map_batches(batch, return_dtype=pl.Float64)


def market_beta(bars: int, least: int) -> pl.Expr:
    """Beta of the daily log total returns to the benchmark's, as far as known by then."""
    return rolling_beta(
        _LOG_RETURN,
        pl.col("benchmark_log_return"),
        pl.col("benchmark_available_at"),
        pl.col("available_at"),
        bars,
        least,
    )


# -- state vector ---------------------------------------------------------------------------------


def bb_width() -> pl.Expr:
    """Width of the Bollinger bands over their middle."""
    return (pl.col("bb_upper") - pl.col("bb_lower")) / pl.col("bb_middle")


def position_of_close(bars: int) -> pl.Expr:
    """Min-max position of the split-adjusted close."""
    close = pl.col("split_close")
    return min_max(close, bars, FLAT * close.rolling_max(bars))


def position_of_atr(bars: int) -> pl.Expr:
    """Min-max position of ATR(14) / close."""
    ratio = pl.col("atr_14") / pl.col("close")
    return min_max(ratio, bars, pl.lit(FLAT))


def position_of_bb_width(bars: int) -> pl.Expr:
    """Min-max position of the Bollinger band width."""
    return min_max(bb_width(), bars, pl.lit(_BAND_FLAT))


def clipped(column: pl.Expr, limit: float) -> pl.Expr:
    """The column clipped to ±limit and divided by it."""
    return column.clip(-limit, limit) / limit


def clipped_log_return(limit: float) -> pl.Expr:
    """Daily log total return, clipped to ±limit, in units of it."""
    return clipped(pl.col("returns_1d").log1p(), limit)


def macd_in_atr() -> pl.Expr:
    """MACD histogram over ATR(14), clipped to ±1."""
    return pl.when(pl.col("atr_14") > 0).then(clipped(pl.col("macd_hist") / pl.col("atr_14"), 1.0))


def rsi_share() -> pl.Expr:
    """RSI(14) / 100."""
    return pl.col("rsi_14") / 100


def regime_is(label: str) -> pl.Expr:
    """1 where the regime is that one, 0 where it is another."""
    return (pl.col("regime") == label).cast(pl.Float64)


def scaled(column: str, shift: float, scale: float, low: float) -> pl.Expr:
    """(column - shift) / scale, clipped to [low, 1]."""
    return ((pl.col(column) - shift) / scale).clip(low, 1.0)


def log2_volume_ratio(limit: float) -> pl.Expr:
    """log2 of the volume ratio, clipped to ±limit, in units of it."""
    return clipped(pl.col("volume_ratio_20d").log(2), limit)
