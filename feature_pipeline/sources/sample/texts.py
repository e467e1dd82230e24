"""Made news and posts: sentences from templates, whose tone follows the price.

How many there are, when and how they sound is hashed from (channel, instrument, day, number), so
that a document is the same whatever range it is asked for in. They come on every calendar day while
the instrument is in the universe: news a few times a week, posts on most days. The tone is that of
the last return *known at publication* plus noise, so that even made text does not look ahead.

A document becomes available a little after publication, as a collector would see it: news after 5
minutes, posts after 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import polars as pl

from feature_pipeline.schemas import UTC_TIME
from feature_pipeline.sources import Channel, document_ids
from feature_pipeline.sources.sample.noise import below, seed
from feature_pipeline.sources.sample.prices import SOURCE, total_returns
from feature_pipeline.universe import Instrument

_TONES = ("awful", "poor", "flat", "good", "great")
_BOUNDS = (-1.1, -0.35, 0.35, 1.1)
_FULL_TONE = 0.025
"""A return of 2.5 % sets the tone as much as the noise can: 1."""


@dataclass(frozen=True)
class _Kind:
    """How often a channel speaks: per cent of days with more than 0, 1, ... documents."""

    weekdays: tuple[int, ...]
    weekends: tuple[int, ...]
    lag: timedelta
    templates: dict[str, tuple[tuple[str, str], ...]]


# Titles and texts by tone: {name} is the company, {ticker} its symbol that day.
_NEWS = _Kind(
    weekdays=(52, 12),
    weekends=(16,),
    lag=timedelta(minutes=5),
    templates={
        "awful": (
            ("{name} plunges as fears mount", "Investors panic over a disastrous outlook."),
            ("{name} suffers worst loss in months", "Analysts call the results a disaster."),
            ("{name} under threat of a lawsuit", "The shares crashed on allegations of fraud."),
        ),
        "poor": (
            ("{name} slips on weak demand", "Analysts worry about falling margins."),
            ("Analyst cuts {name}, citing risk", "The note warns of disappointing sales ahead."),
            ("{name} misses expectations", "Results were poor and the outlook uncertain."),
        ),
        "flat": (
            ("{name} holds its annual meeting", "Shareholders voted on the agenda as published."),
            ("{name} to report results next week", "The call is scheduled for the afternoon."),
            ("{name} trades in a narrow range", "Volume was in line with its average."),
        ),
        "good": (
            ("{name} gains on solid orders", "Analysts are confident about the quarter."),
            ("Analyst lifts {name}, citing growth", "The note sees better margins ahead."),
            ("{name} beats expectations", "Results were good and the outlook improved."),
        ),
        "great": (
            ("{name} soars on record profits", "Investors cheer an excellent outlook."),
            ("{name} wins a landmark contract", "Analysts call the deal a great success."),
            ("{name} delights with strong growth", "The best quarter ever, with superb margins."),
        ),
    },
)

_REDDIT = _Kind(
    weekdays=(84, 48, 20, 6),
    weekends=(58, 22, 6),
    lag=timedelta(minutes=2),
    templates={
        "awful": (
            (
                "${ticker} is a total disaster",
                "Down again and I hate it. Sold everything, terrible.",
            ),
            ("I lost so much on ${ticker}!!", "Worst trade of my life. This stock is garbage."),
        ),
        "poor": (
            ("Worried about ${ticker}", "Bad numbers, weak chart. Not sure that I want to hold."),
            ("${ticker} disappointing again", "Moved the wrong way. Anyone else annoyed?"),
        ),
        "flat": (
            ("${ticker} before the report", "What does everyone expect? Calls or puts?"),
            ("Question about ${ticker} options", "Which expiry do people look at these days?"),
        ),
        "good": (
            ("${ticker} looks good here", "Nice move, happy to hold more."),
            ("Adding to ${ticker}", "Solid company, improving numbers, I like it."),
        ),
        "great": (
            ("${ticker} to the moon!!", "Up again, best stock ever, love it!"),
            ("${ticker} is amazing", "Great results, huge gains, I am so happy."),
        ),
    },
)

_KINDS: dict[str, _Kind] = {"news": _NEWS, "reddit": _REDDIT}


def published(
    channel: Channel, instruments: Sequence[Instrument], start: date, end: date
) -> pl.DataFrame:
    """The documents that became available in `[start, end)`, in the columns of `documents`."""
    kind = _KINDS[channel]
    # One published just before midnight becomes available after it.
    slots = _slots(channel, instruments, start - timedelta(days=1), end).filter(
        (pl.col("time") + kind.lag).dt.date().is_between(start, end, closed="left")
    )
    written = (
        slots.pipe(_with_tone, instruments)
        .pipe(_with_ticker, instruments)
        .join(_templates(kind), on=["tone", "variant"], how="left")
        .sort("time", "symbol", "number")
    )
    url = pl.format(
        "sample://{}/{}/{}/{}", pl.lit(channel), "symbol", pl.col("time").dt.date(), "number"
    )
    return (
        written.with_columns(_filled_in("title"), _filled_in("text"), url.alias("url"))
        .with_columns(pl.col("url").map_batches(_ids, return_dtype=pl.String).alias("document_id"))
        .select(
            "document_id",
            "time",
            (pl.col("time") + kind.lag).alias("available_at"),
            pl.lit("assumed").alias("availability_basis"),
            pl.lit(channel).alias("channel"),
            pl.lit(SOURCE).alias("source"),
            pl.concat_list("symbol").alias("symbols"),
            "title",
            "text",
            "url",
        )
    )


def _ids(urls: pl.Series) -> pl.Series:
    return document_ids(SOURCE, urls)


def _slots(
    channel: Channel, instruments: Sequence[Instrument], start: date, end: date
) -> pl.DataFrame:
    """What is published in `[start, end)`: `symbol`, `number`, `time`, `variant`, `noise`."""
    epoch = date(1970, 1, 1)
    kind = _KINDS[channel]
    most = max(len(kind.weekdays), len(kind.weekends))
    days = np.arange((start - epoch).days, max((end - epoch).days, (start - epoch).days))
    # Axes: instrument, day, number of the document on that day.
    who = np.array([seed(channel, i.id) for i in instruments], dtype=np.uint64)[:, None, None]
    when = days.astype(np.uint64)[None, :, None]
    number = np.arange(most, dtype=np.uint64)[None, None, :]

    # The share of days with more than n documents falls with n: against one draw, that counts them.
    shares = np.zeros((2, most), dtype=np.int64)
    shares[0, : len(kind.weekdays)] = kind.weekdays
    shares[1, : len(kind.weekends)] = kind.weekends
    weekend = ((days + 3) % 7 >= 5).astype(np.int64)  # 1970-01-01 was a Thursday
    there = below(100, who, when, seed("count")) < shares[weekend][None, :, :]
    first = np.array([(i.first_day - epoch).days for i in instruments])[:, None, None]
    last = np.array([_end_number(i, epoch) for i in instruments])[:, None, None]
    inside = (days[None, :, None] >= first) & (days[None, :, None] < last)

    at = np.nonzero(there & inside)
    who, when, number = who[at[0], 0, 0], when[0, at[1], 0], number[0, 0, at[2]]
    second = below(86_400, who, when, number, seed("second"))
    micros = (days[at[1]] * 86_400 + second) * 1_000_000
    return pl.DataFrame(
        {
            "symbol": pl.Series([i.id for i in instruments], dtype=pl.String).gather(at[0]),
            "number": number.astype(np.int64),
            "time": pl.Series(micros).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
            "variant": below(_VARIANTS, who, when, number, seed("variant")),
            # In thousandths: [-1, 1].
            "noise": below(2001, who, when, number, seed("noise")) - 1000,
        }
    )


def _end_number(instrument: Instrument, epoch: date) -> int:
    end = instrument.end_day or date.max
    return (end - epoch).days


def _with_tone(slots: pl.DataFrame, instruments: Sequence[Instrument]) -> pl.DataFrame:
    """Adds `change`, the last return known at publication (0 where none is), and `tone`."""
    returns = total_returns(instruments).select("symbol", "available_at", "change")
    lean = pl.col("change") / _FULL_TONE + pl.col("noise") / 1000
    return (
        slots.sort("time")
        .join_asof(
            returns.sort("available_at"),
            left_on="time",
            right_on="available_at",
            by="symbol",
            strategy="backward",
            check_sortedness=False,
        )
        .with_columns(pl.col("change").fill_null(0.0))
        .with_columns(
            lean.bin_intervals(_BOUNDS, labels=_TONES, right_closed=True)
            .cast(pl.String)
            .alias("tone")
        )
    )


def _with_ticker(slots: pl.DataFrame, instruments: Sequence[Instrument]) -> pl.DataFrame:
    """Adds `name` and `ticker`, the instrument's symbol at publication, without an index's ^."""
    rows = [
        # Before its first symbol an instrument is called by that one.
        (i.id, i.name or i.id, s.symbol.lstrip("^"), s.start if n else date(1, 1, 1))
        for i in instruments
        for n, s in enumerate(i.symbols)
    ]
    listings = pl.DataFrame(
        rows,
        schema={"symbol": pl.String, "name": pl.String, "ticker": pl.String, "from": pl.Date},
        orient="row",
    ).with_columns(pl.col("from").cast(pl.Datetime("us")).dt.replace_time_zone("UTC"))
    return slots.join_asof(
        listings.cast({"from": UTC_TIME}).sort("from"),
        left_on="time",
        right_on="from",
        by="symbol",
        strategy="backward",
        check_sortedness=False,
    )


def _templates(kind: _Kind) -> pl.DataFrame:
    rows = [
        (tone, variant, *texts[variant % len(texts)])
        for tone, texts in kind.templates.items()
        for variant in range(_VARIANTS)
    ]
    schema = {"tone": pl.String, "variant": pl.Int64, "title": pl.String, "text": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


_VARIANTS = 6
"""A multiple of every number of templates, so that each is as likely."""


def _filled_in(column: str) -> pl.Expr:
    return (
        pl.col(column)
        .str.replace("{name}", pl.col("name"), literal=True)
        .str.replace("{ticker}", pl.col("ticker"), literal=True)
    )
