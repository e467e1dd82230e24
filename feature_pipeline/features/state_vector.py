"""The state vector: 14 scaled numbers per bar, and what each bar could know of the macro world.

Prepares the columns that the catalogue's STATE_FIELDS read and evaluates them. A missing input
stays missing and is named; filling is the reader's choice.
"""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from feature_pipeline.features.adjustment import real_rows, session_grid
from feature_pipeline.features.declarations import (
    MACRO_DAYS,
    MACRO_SERIES,
    NEWS_HOURS,
    STATE_FIELDS,
    at,
    intraday_column,
)
from feature_pipeline.features.price_features import evaluate
from feature_pipeline.features.sentiment import decayed_sentiment, document_count, event_moments
from feature_pipeline.timeframes import DAILY

MACRO_MAX_AGE = timedelta(days=10)
"""A macro value released longer ago is missing."""

_MACRO_OLDEST = timedelta(days=MACRO_DAYS)
_DAY = timedelta(days=1)


def compute_state_vectors(
    bars: pl.DataFrame,
    actions: pl.DataFrame,
    indicators: pl.DataFrame,
    features: pl.DataFrame,
    regime: pl.DataFrame,
    sentiment_scores: pl.DataFrame,
    macro: pl.DataFrame,
    timeframe: str = DAILY,
) -> pl.DataFrame:
    """The state vector of each bar.

    Args:
        bars: KEYS, close as traded; gap rows included, and of intraday bars `session` and those
            filled.
        actions: symbol, time (ex-date), available_at, kind, value.
        indicators: symbol, time, atr_14, macd_hist, rsi_14, bb_upper, bb_middle, bb_lower.
        features: symbol, time, returns_1d, volume_ratio_20d, or what they are in the timeframe.
        regime: symbol, time, regime.
        sentiment_scores: of one model: document_id, symbol, available_at, channel, sentiment,
            confidence; days not collected as rows without document_id.
        macro: series_id, time, available_at, value; days not collected as rows without series_id.
        timeframe: of the bars.

    Returns:
        KEYS (and session), the fields in STATE_VECTOR_FIELDS order, document_count and missing (the
        names of the null fields, in that order), sorted by (symbol, time), a row for each bar that
        is neither a gap nor filled.
    """
    grid = session_grid(bars, actions)
    if timeframe != DAILY:  # expressions know them by their daily names
        read = ("returns_1d", "volume_ratio_20d")
        features = features.rename({intraday_column(name): name for name in read})
    grid = grid.with_columns(
        pl.when("usable").then("close").alias("close"),
        split_close=pl.when("usable").then(pl.col("close") / pl.col("split_factor")),
    )
    for frame, columns in (
        (indicators, ("atr_14", "macd_hist", "rsi_14", "bb_upper", "bb_middle", "bb_lower")),
        (features, ("returns_1d", "volume_ratio_20d")),
        (regime, ("regime",)),
    ):
        grid = grid.join(
            frame.select("symbol", "time", *columns),
            on=["symbol", "time"],
            how="left",
            maintain_order="left",
        )
    day, moments = timedelta(hours=NEWS_HOURS), event_moments(grid)
    grid = grid.with_columns(
        sentiment_24h=decayed_sentiment(moments, sentiment_scores, day),
        document_count=document_count(moments, sentiment_scores, day),
        **{name: latest_macro(moments["available_at"], macro, name) for name in MACRO_SERIES},
    )
    vectors = evaluate(grid, at(STATE_FIELDS, timeframe))
    count = grid.filter(real_rows(grid))["document_count"]
    return vectors.with_columns(count, missing=_missing(vectors))


def _missing(vectors: pl.DataFrame) -> pl.Series:
    """The names of each row's null fields, in the order of the fields.

    Few combinations occur, so each is written out once.
    """
    combination = pl.sum_horizontal(
        pl.col(field.column).is_null().cast(pl.Int64) * (1 << bit)
        for bit, field in enumerate(STATE_FIELDS)
    )
    rows = vectors.select(combination=combination)
    known = rows["combination"].unique()
    names = pl.DataFrame(
        {
            "combination": known,
            "missing": [
                [field.name for bit, field in enumerate(STATE_FIELDS) if value >> bit & 1]
                for value in known
            ],
        },
        schema={"combination": pl.Int64, "missing": pl.List(pl.String)},
    )
    return rows.join(names, on="combination", how="left", maintain_order="left")["missing"]


def latest_macro(moments: pl.Series, macro: pl.DataFrame, series: str) -> pl.Series:
    """The value of a series as it was known at each moment.

    The newest observation among the rows available by then, in its newest vintage: a revision of
    an older observation changes nothing. Null where its release is older than MACRO_MAX_AGE or the
    observation older than the lookback, and where a day since the observation was not collected,
    for a newer one may have been released on it.

    Args:
        moments: UTC datetimes, null allowed.
        macro: series_id, time, available_at, value; days not collected as rows without series_id.
        series: the series' id.

    Returns:
        A Float64 per moment, in order.
    """
    rows = macro.filter(pl.col("series_id") == series).select("available_at", "time", "value")
    # Of rows released together the newest observation counts; then only those rows stay at whose
    # release no newer observation was known.
    current = (
        rows.sort("available_at", "time")
        .filter(pl.col("time") == pl.col("time").cum_max())
        .group_by("available_at", maintain_order=True)
        .last()
    )
    unknown = (
        macro.filter(pl.col("series_id").is_null())
        .select(gap=pl.col("available_at").dt.truncate("1d"))
        .unique()
        .sort("gap")
    )
    known = (
        pl.DataFrame({"moment": moments})
        .with_row_index("row")
        .sort("moment")
        .join_asof(current, left_on="moment", right_on="available_at", coalesce=False)
        .join_asof(unknown, left_on="moment", right_on="gap", coalesce=False)
        .sort("row")
    )
    fresh = (
        pl.col("moment").is_not_null()
        & (pl.col("available_at") > pl.col("moment") - MACRO_MAX_AGE)
        & (pl.col("time") > pl.col("moment") - _MACRO_OLDEST)
        & (pl.col("gap").is_null() | (pl.col("gap") <= pl.col("time")))
    )
    return known.select(pl.when(fresh).then("value")).to_series().alias(series)
