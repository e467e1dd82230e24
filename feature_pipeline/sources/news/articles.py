"""From what a provider says of an article to a row of `documents`, the same for every provider.

Text is made plain, addresses canonical; whom an article speaks of is `matching`'s to say, besides
those whom the question itself named. No I/O.

**When an article was available.** A provider shows it `delay` after its publication. What is seen
within a day of that was seen then: `observed`, from the later of publication and now. What is
collected later is history: `assumed`, `LAG` after the provider showed it.

An article that cannot be placed (no title, no date, a date to come) goes to quarantine, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import polars as pl

from feature_pipeline.schemas import UTC_TIME, documents
from feature_pipeline.sources import document_ids
from feature_pipeline.sources.matching import Matcher
from feature_pipeline.sources.text import canonical_url, plain
from feature_pipeline.universe import Instrument

LIVE = timedelta(hours=24)
LAG = timedelta(minutes=15)
"""After a provider showed it, what is collected as history counts as available."""

LONGEST_TITLE = 500
LONGEST_TEXT = 20_000

_SCHEMA = pl.Schema(
    [
        *((name, pl.String) for name in ("key", "url", "title", "text")),
        ("time", UTC_TIME),
        ("named", pl.List(pl.String)),
    ]
)


@dataclass(frozen=True)
class Article:
    """What a provider says of one.

    Args:
        url, title, text: as they came; text or HTML, whatever it holds.
        time: its publication, with a zone; None where that cannot be told.
        named: the instruments of whom the question was, where that says whom it is about.
        key: the provider's name for it, for one without a usable address.
    """

    url: Any
    title: Any
    text: Any
    time: datetime | None
    named: Sequence[str] = field(default=())
    key: Any = None


def moment(value: Any) -> datetime | None:
    """A moment as the search APIs write it (`2026-11-27T08:00:00Z`); None for anything else."""
    try:
        at = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return None if at.tzinfo is None else at.astimezone(UTC)


def as_documents(
    provider: str,
    articles: Iterable[Article],
    instruments: Sequence[Instrument],
    window: tuple[date, date],
    now: datetime,
    delay: timedelta = timedelta(0),
) -> pl.DataFrame:
    """Rows of `documents`, one per address, of what became available on the days of `window`.

    Args:
        provider: its name.
        articles: what it says; of several with one address the first says it, for all whom one of
            them named.
        instruments: who may be spoken of; an article that speaks of none of them is left out.
        window: the days [start, end).
        now: UTC.
        delay: after publication, when the provider shows an article.
    """
    said = pl.DataFrame([_clean(a) for a in articles], schema=_SCHEMA, orient="row")
    rows = (
        said.group_by("key", maintain_order=True)
        .agg(
            pl.col("url", "title", "text", "time").drop_nulls().first(),
            pl.col("named").explode().drop_nulls().unique(),
        )
        .with_columns(_availability(now, delay))
    )
    rows = rows.filter(_within(window, now))
    rows = rows.with_columns(Matcher(instruments).match(rows))
    return documents("news").conform(
        rows.with_columns(
            document_ids(provider, rows["key"]),
            source=pl.lit(provider),
            symbols=pl.col("symbols").list.set_union("named").list.sort(),
        )
        .filter(pl.col("symbols").list.len() > 0)
        .drop("key", "named")
    )


def _clean(article: Article) -> tuple[Any, ...]:
    """Text by text: each is somebody else's."""

    def words(value: Any, most: int) -> str | None:
        return plain(value, most=most) if isinstance(value, str) else None

    title = words(article.title, LONGEST_TITLE)
    url = canonical_url(article.url) if isinstance(article.url, str) else None
    key = url or words(article.key, LONGEST_TITLE) or title or ""
    return (key, url, title, words(article.text, LONGEST_TEXT), article.time, list(article.named))


def _availability(now: datetime, delay: timedelta) -> list[pl.Expr]:
    at = pl.lit(now, dtype=UTC_TIME)
    shown = pl.col("time") + delay
    # What cannot be placed is rejected, and said alike by every run: it is rejected once.
    live = (pl.col("time") <= at) & (shown > at - LIVE) & pl.col("title").is_not_null()
    return [
        pl.when(live)
        .then(at)
        .when(pl.col("time") > at)
        .then("time")
        .otherwise(shown + LAG)
        .alias("available_at"),
        pl.when(live).then(pl.lit("observed")).otherwise(pl.lit("assumed"))
        .alias("availability_basis"),
    ]  # fmt: skip


def _within(window: tuple[date, date], now: datetime) -> pl.Expr:
    """What became available in the window; what cannot be placed belongs to today's."""
    start, end = (pl.lit(datetime.combine(day, time(), UTC), dtype=UTC_TIME) for day in window)
    inside = pl.col("available_at").is_between(start, end, closed="left")
    if not window[0] <= now.date() < window[1]:
        return inside & (pl.col("time") <= pl.lit(now, dtype=UTC_TIME))
    return inside | pl.col("time").is_null() | (pl.col("time") > pl.lit(now, dtype=UTC_TIME))


def out_of_reach(provider: str, start: date, now: datetime, history: timedelta) -> str | None:
    """Why not all of the days from `start` on can be collected; None where they can.

    Nobody may take what a provider no longer has for silence.
    """
    first = (now - history).date()
    if start >= first:
        return None
    return f"{provider} has nothing from before {first}; what was published then is not known"
