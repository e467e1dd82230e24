"""Features of returns, risk, volume, cross-section, sentiment and insiders.

Prepares the columns that the catalogue's FEATURES read (adjusted series, the benchmark's returns,
sectors, windows of documents and of insiders' transactions), evaluates the declarations and nulls
what a gap has spoilt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta

import polars as pl

from feature_pipeline.features.adjustment import keys, real_rows, session_grid
from feature_pipeline.features.declarations import (
    FEATURES,
    INDICATORS_ASSET,
    INSIDER_DAYS,
    NEWS_HOURS,
    SOCIAL_DAYS,
    Feature,
    at,
)
from feature_pipeline.features.insiders import net_buying
from feature_pipeline.features.sentiment import decayed_sentiment, document_count, event_moments
from feature_pipeline.schemas import UTC_TIME
from feature_pipeline.timeframes import DAILY


def compute_features(
    bars: pl.DataFrame,
    actions: pl.DataFrame,
    indicators: pl.DataFrame,
    sentiment_scores: pl.DataFrame,
    insider_transactions: pl.DataFrame,
    members: pl.DataFrame,
    benchmark: str,
    companies: Collection[str],
    timeframe: str = DAILY,
) -> pl.DataFrame:
    """All features of the catalogue.

    Args:
        bars: KEYS, close, volume as traded; gap rows included, and of intraday bars `session` and
            those filled.
        actions: symbol, time (ex-date), available_at, kind, value.
        indicators: symbol, time, and what the features read of them.
        sentiment_scores: of one model: document_id, symbol, available_at, channel, sentiment,
            confidence; days not collected as rows without document_id.
        insider_transactions: see `net_buying`; days not collected as rows without accession.
        members: symbol, sector, from, to (UTC, to exclusive, null = open).
        benchmark: the symbol that market beta is measured against.
        companies: the symbols whose insiders are collected.
        timeframe: of the bars.

    Returns:
        KEYS (and session) and one column per feature, by its name in that timeframe, sorted by
        (symbol, time), a row for each bar that is neither a gap nor filled. A feature is null where
        its lookback is not wholly loaded or contains a gap.
    """
    grid = session_grid(bars, actions)
    total = (pl.col("close") / pl.col("split_factor") * pl.col("dividend_factor")).fill_nan(None)
    grid = grid.with_columns(
        total_close=pl.when("usable").then(total),
        split_volume=pl.col("volume") * pl.col("split_factor"),
    ).with_columns(
        log_return=pl.when(pl.col("group") == pl.col("group").shift()).then(
            (pl.col("total_close") / pl.col("total_close").shift()).log()
        )
    )
    grid = _with_benchmark(grid, benchmark)
    grid = _with_sector(grid, members)
    # Indicators have the same names in every timeframe.
    read = {name for feature in FEATURES for name in feature.inputs.get(INDICATORS_ASSET, ())}
    grid = grid.join(
        indicators.select("symbol", "time", *sorted(read)),
        on=["symbol", "time"],
        how="left",
        maintain_order="left",
    )
    moments = event_moments(grid)
    grid = grid.with_columns(
        news_24h=decayed_sentiment(moments, sentiment_scores, timedelta(hours=NEWS_HOURS), "news"),
        reddit_7d=document_count(
            moments, sentiment_scores, timedelta(days=SOCIAL_DAYS), "reddit"
        ).cast(pl.Float64),
        insiders_90d=net_buying(
            moments, insider_transactions, timedelta(days=INSIDER_DAYS), companies
        ),
    )
    return evaluate(grid, at(FEATURES, timeframe))


def evaluate(grid: pl.DataFrame, features: Iterable[Feature]) -> pl.DataFrame:
    """The declared columns on a prepared session grid, without its gap rows and those filled.

    A feature of bars is null unless all bars of its lookback are there and usable; no value is NaN
    or infinite.
    """
    features = tuple(features)

    def guarded(feature: Feature) -> pl.Expr:
        value = pl.col(feature.known_as)
        known = value.is_finite()
        if feature.reads_bars or feature.lookback_bars:
            known &= pl.col("run") > feature.lookback_bars
        return pl.when(known).then(value).alias(feature.known_as)

    first = [feature for feature in features if not feature.needs]
    then = [feature for feature in features if feature.needs]
    for stage in (first, then):
        # In two steps: in one, an expression would be evaluated for its guard and for its value.
        grid = grid.with_columns(f.expression().alias(f.known_as) for f in stage)
        grid = grid.with_columns(guarded(f) for f in stage)
    columns = [pl.col(feature.known_as).alias(feature.column) for feature in features]
    return grid.filter(real_rows(grid)).select(*keys(grid), *columns)


def _with_benchmark(grid: pl.DataFrame, benchmark: str) -> pl.DataFrame:
    """`benchmark_log_return`, and `benchmark_available_at`: null where it has no session.

    A gap of the benchmark is a session that never becomes known.
    """
    never = pl.lit(datetime.max.replace(tzinfo=UTC), dtype=UTC_TIME)
    market = grid.filter(pl.col("symbol") == benchmark).select(
        "time",
        benchmark_log_return=pl.col("log_return"),
        benchmark_available_at=pl.max_horizontal(
            pl.col("available_at").fill_null(never), pl.col("available_at").shift()
        ),
    )
    return grid.join(market, on="time", how="left", maintain_order="left")


def _with_sector(grid: pl.DataFrame, members: pl.DataFrame) -> pl.DataFrame:
    """`sector`, as of the day, and `member`, whether the symbol belongs to the universe then."""
    terms = members.select("symbol", "sector", pl.col("from").alias("since"), "to").sort(
        "since", "symbol"
    )
    placed = (
        grid.select("symbol", "time")
        .with_row_index("row")
        .sort("time")
        .join_asof(
            terms,
            left_on="time",
            right_on="since",
            by="symbol",
            strategy="backward",
            check_sortedness=False,
        )
        .sort("row")
    )
    inside = pl.col("since").is_not_null() & (
        pl.col("to").is_null() | (pl.col("time") < pl.col("to"))
    )
    return grid.hstack(placed.select("sector", member=inside))
