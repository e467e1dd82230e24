"""Scores of documents, and their aggregates over the time before each bar's moment.

How documents become rows of scores, and scores one number per (symbol, moment). How a text gets its
score is the scorer's business, not this module's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import polars as pl

from feature_pipeline.schemas import ERASED, UTC_TIME, is_erased

HALF_LIFE = timedelta(hours=6)

_DAY = timedelta(days=1)


def score_documents(
    documents: pl.DataFrame,
    score: Callable[[Sequence[str]], pl.DataFrame],
    model: str,
    revision: str,
) -> pl.DataFrame:
    """A score per document and symbol that it speaks of, available when the document is.

    Args:
        documents: document_id, symbols, title, text and what goes along; a row without document_id
            is a day that was not collected, and yields none. Nor does one that was deleted at its
            source (`schemas.ERASED`): the score that it got before is there, and stays.
        score: the sentiment, label and confidence of texts, in their order.
        model, revision: whose score it is.

    Returns:
        The columns of `documents` with symbol, sentiment, label, confidence, model and
        model_revision instead of symbols, title and text.
    """
    documents = documents.filter(pl.col("document_id").is_not_null(), ~is_erased(ERASED))
    texts = documents.select(pl.concat_str("title", "text", separator=". ", ignore_nulls=True))
    return (
        documents.hstack(score(texts.to_series().to_list()))
        .drop("title", "text")
        .with_columns(model=pl.lit(model), model_revision=pl.lit(revision))
        .explode("symbols")
        .rename({"symbols": "symbol"})
    )


def event_moments(bars: pl.DataFrame) -> pl.DataFrame:
    """`symbol` and, as `available_at`, the moment up to which events count for each bar.

    The bar's own `available_at`, but not beyond its UTC day: what a market that closes at midnight
    hears after it, while its bar is being published, is in the next day's partition, and a run of
    the day alone would not read it.
    """
    end = pl.col("time").dt.truncate("1d") + pl.duration(days=1) - pl.duration(microseconds=1)
    until = pl.when(pl.col("available_at").is_not_null()).then(
        pl.min_horizontal("available_at", end)
    )
    return bars.select("symbol", available_at=until)


def decayed_sentiment(
    moments: pl.DataFrame, scores: pl.DataFrame, window: timedelta, channel: str | None = None
) -> pl.Series:
    """Mean score of the documents of the window before each moment.

    Weights are confidence x 2^(-age / HALF_LIFE), age counted from the document's `available_at`.

    Args:
        moments: symbol, available_at; a row without `available_at` has no window.
        scores: document_id, symbol, available_at, channel, sentiment, confidence. A row without
            document_id is a UTC day (of that channel, or of all) that was not collected.
        window: the documents with `available_at` in (T - window, T] count. Of a document that was
            collected again since, the latest version counts.
        channel: `news`, `reddit` or, None, all.

    Returns:
        A value per moment, in its row order: in [-1, 1]; 0 where collected without a document; null
        where the window touches a day that was not collected.
    """
    moments = moments.select("symbol", "available_at")
    pairs = (
        spans(moments, _documents(scores, channel, window))
        .with_columns(slot=pl.int_ranges("first", pl.col("last") + 1))
        .explode("slot")
        .sort("slot", "available_at", "document_id")
    )
    moment = _ordered(moments)["available_at"].gather(pairs["slot"])
    age = (moment - pairs["available_at"]).dt.total_microseconds() / 1e6
    weight = (pairs["confidence"] * 2.0 ** (-age / HALF_LIFE.total_seconds())).to_numpy()
    slot, rows = pairs["slot"].to_numpy(), moments.height
    total = np.bincount(slot, weight, minlength=rows)
    scored = np.bincount(slot, weight * pairs["sentiment"].to_numpy(), minlength=rows)
    # Rounding must not carry a mean of equal scores past them.
    mean = np.clip(np.divide(scored, total, out=np.zeros(rows), where=total > 0), -1, 1)
    return by_moment(moments, mean, gap_days(scores, channel), window).alias("sentiment")


def document_count(
    moments: pl.DataFrame, scores: pl.DataFrame, window: timedelta, channel: str | None = None
) -> pl.Series:
    """Number of documents of the window before each moment; arguments as `decayed_sentiment`.

    Returns:
        An Int64 per moment, in its row order; null where the window touches a day that was not
        collected.
    """
    moments = moments.select("symbol", "available_at")
    count = running_sum(spans(moments, _documents(scores, channel, window)), moments.height)
    return by_moment(moments, count, gap_days(scores, channel), window).alias("document_count")


def _documents(scores: pl.DataFrame, channel: str | None, window: timedelta) -> pl.DataFrame:
    """The scores of documents of the channel, each `until` it leaves the window or a later version
    replaces it."""
    wanted = pl.lit(value=True) if channel is None else pl.col("channel") == channel
    replaced = pl.col("available_at").shift(-1).over("symbol", "document_id")
    return (
        scores.filter(pl.col("document_id").is_not_null() & wanted)
        .sort("symbol", "document_id", "available_at")
        .with_columns(until=pl.min_horizontal(pl.col("available_at") + window, replaced))
    )


def _ordered(moments: pl.DataFrame) -> pl.DataFrame:
    """The moments in (symbol, available_at) order; a moment's place there is its slot."""
    return moments.with_row_index("row").sort("symbol", "available_at", "row", nulls_last=True)


def spans(moments: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """The events that count for some moment, with their `first` and `last` slot: a moment's place
    in (symbol, available_at) order.

    Args:
        moments: symbol, available_at; one without `available_at` counts nothing.
        events: symbol, `available_at` and `until`: each counts at T in [available_at, until).
    """
    slots = (
        _ordered(moments)
        .with_row_index("slot")
        .select("symbol", pl.col("available_at").alias("moment"), pl.col("slot").cast(pl.Int64))
        .filter(pl.col("moment").is_not_null())
        .sort("moment", maintain_order=True)
    )
    return (
        events.with_columns(pl.col("until") - timedelta(microseconds=1))
        .sort("available_at")
        .join_asof(
            slots.rename({"slot": "first"}),
            left_on="available_at",
            right_on="moment",
            by="symbol",
            strategy="forward",
            check_sortedness=False,
        )
        .sort("until")
        .join_asof(
            slots.rename({"slot": "last"}),
            left_on="until",
            right_on="moment",
            by="symbol",
            strategy="backward",
            check_sortedness=False,
        )
        .filter(pl.col("first") <= pl.col("last"))
    )


def running_sum(
    events: pl.DataFrame, slots: int, amounts: npt.NDArray[np.int64] | int = 1
) -> npt.NDArray[np.int64]:
    """The sum of the amounts of the events that count, by slot. In whole numbers, and so exact: it
    does not depend on where the loaded range begins.

    Args:
        events: see `spans`.
        slots: how many moments there are.
        amounts: of each event.
    """
    change = np.zeros(slots + 1, dtype=np.int64)
    np.add.at(change, events["first"].to_numpy(), amounts)
    np.add.at(change, events["last"].to_numpy() + 1, -amounts)
    return np.cumsum(change)[:-1]


def by_moment(
    moments: pl.DataFrame,
    by_slot: npt.NDArray[np.float64] | npt.NDArray[np.int64],
    gaps: pl.DataFrame,
    window: timedelta,
) -> pl.Series:
    """Values by slot, in the moments' own order, null where a day in the window is a gap."""
    place = np.empty(moments.height, dtype=np.int64)
    place[_ordered(moments)["row"].to_numpy()] = np.arange(moments.height)
    touched = touches_gap(moments, gaps, window)
    return (
        pl.DataFrame({"value": by_slot[place], "touched": touched})
        .select(pl.when(~pl.col("touched")).then(pl.col("value")))
        .to_series()
    )


def gap_days(scores: pl.DataFrame, channel: str | None) -> pl.DataFrame:
    """The UTC days that were not collected, for the channel or, None, for any.

    Returns:
        `symbol` and `day`, 00:00 UTC; a null symbol stands for everybody.
    """
    unknown = scores.filter(pl.col("document_id").is_null())
    if channel is not None:
        unknown = unknown.filter(pl.col("channel").is_null() | (pl.col("channel") == channel))
    return unknown.select(
        "symbol", day=pl.col("available_at").cast(UTC_TIME).dt.truncate("1d")
    ).unique()


def touches_gap(moments: pl.DataFrame, gaps: pl.DataFrame, window: timedelta) -> pl.Series:
    """Whether (T - window, T] overlaps a day of everybody's, or of the moment's own symbol.

    Args:
        moments: `symbol`, `available_at` (T); a null T has no window and counts as touching.
        gaps: see `gap_days`.
    """
    rows = moments.select("symbol", pl.col("available_at").cast(UTC_TIME)).with_row_index("row")
    moment = pl.col("available_at")
    touched = moment.is_null()
    days = gaps.sort("day")
    for name, by in (("all", None), ("own", "symbol")):
        known = days.filter(
            pl.col("symbol").is_null() if by is None else ~pl.col("symbol").is_null()
        )
        rows = rows.sort("available_at").join_asof(
            known.select(*([by] if by else []), pl.col("day").alias(name)),
            left_on="available_at",
            right_on=name,
            by=by,
            strategy="backward",
            check_sortedness=False,
        )
        touched |= (pl.col(name) + _DAY > moment - window).fill_null(value=False)
    return rows.sort("row").select(touched).to_series()
