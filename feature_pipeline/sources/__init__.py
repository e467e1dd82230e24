"""The outside world: what a provider of bars, actions, documents, macro series or scores must do.

One module per provider beside this one; they return frames and know neither Dagster nor the
database. Whether a silent symbol should have had rows is judged where frames are written.

Ranges are half-open UTC days, `[start, end)`, of the table's partition column: `time` for bars,
`available_at` for everything else. Frames have the data columns of their `TableSchema`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import polars as pl

from feature_pipeline.schemas import Fetched
from feature_pipeline.universe import Instrument

if TYPE_CHECKING:
    from feature_pipeline.sources.http import Limits

Channel = Literal["news", "reddit"]


@runtime_checkable
class BarSource(Protocol):
    """A provider of bars and corporate actions."""

    name: str
    publication_delay: timedelta
    """How long after a session's close its bar can be had."""

    def bars(
        self, instruments: Sequence[Instrument], start: date, end: date, timeframe: str = "1d"
    ) -> Fetched:
        """Bars as traded (`schemas.ohlcv`), no row for a session that has none.

        Args:
            instruments: of whom.
            start, end: days [start, end) of the bars' `time`.
            timeframe: `1d`, or one of the intraday ones that the provider has: `1m`, `5m`, `1h`.

        Raises:
            SourceError: the provider cannot answer at all, or has no such timeframe.
        """
        ...

    def actions(self, instruments: Sequence[Instrument], start: date, end: date) -> Fetched:
        """Splits and dividends (`schemas.CORPORATE_ACTIONS`).

        Raises:
            SourceError: the provider cannot answer at all.
        """
        ...


@runtime_checkable
class DocumentSource(Protocol):
    """A provider of news articles or Reddit posts."""

    name: str

    def documents(
        self, channel: Channel, instruments: Sequence[Instrument], start: date, end: date
    ) -> Fetched:
        """Documents about these instruments (`schemas.documents`).

        Raises:
            SourceError: the provider cannot answer at all.
        """
        ...


@runtime_checkable
class SaysWhatIsGone(Protocol):
    """A provider of documents that knows which of them were deleted since."""

    name: str

    def gone(self, urls: Sequence[str]) -> frozenset[str]:
        """Which of these addresses, as `documents` has them, hold nothing any more.

        Raises:
            SourceError: the provider did not answer; nothing is known of any.
        """
        ...


@runtime_checkable
class MacroSource(Protocol):
    """A provider of macro series with their vintages."""

    name: str
    series: Sequence[str]
    """The series that are collected, by their ids."""

    def macro(self, series_ids: Sequence[str], start: date, end: date) -> Fetched:
        """What was released in `[start, end)` (`schemas.MACRO_INDICATORS`), revisions included.

        Raises:
            SourceError: the provider cannot answer at all.
        """
        ...


@runtime_checkable
class InsiderSource(Protocol):
    """A provider of what insiders of companies bought and sold."""

    name: str

    def insiders(self, instruments: Sequence[Instrument], start: date, end: date) -> Fetched:
        """Transactions filed in `[start, end)` (`schemas.INSIDER_TRANSACTIONS`).

        Raises:
            SourceError: the provider cannot answer at all.
        """
        ...


@dataclass(frozen=True)
class Off:
    """A provider that is not asked: what it needs to be asked is not there.

    Args:
        name: the provider.
        why: what is missing and what to do, in one line; never what a secret holds.
    """

    name: str
    why: str


Kind = Literal["bars", "actions", "news", "reddit", "macro", "insiders"]


_ASKED: Mapping[Kind, type] = {
    "bars": BarSource,
    "actions": BarSource,
    "news": DocumentSource,
    "reddit": DocumentSource,
    "macro": MacroSource,
    "insiders": InsiderSource,
}


def answers(source: object, kind: Kind) -> bool:
    """Whether a provider can be asked for such a thing at all."""
    return isinstance(source, _ASKED[kind])


@runtime_checkable
class Metered(Protocol):
    """A provider that can say what a question costs before it is asked. Optional: of one that
    cannot, a backfill's estimate assumes one request per instrument."""

    def calls(self, kind: Kind, instruments: Sequence[Instrument], start: date, end: date) -> int:
        """How many requests over the network it takes to answer for `[start, end)`; of `macro`, for
        all the series that are collected (`instruments` is empty)."""
        ...


@runtime_checkable
class Paced(Protocol):
    """A provider that is asked over the network at a pace of ours. Optional: of one that says none,
    an estimate counts no time for asking."""

    limits: Limits
    """Its pace, and our patience."""


def seconds_per_call(source: object) -> float:
    """What a request takes at the provider's pace; nothing where it has none."""
    return source.limits.seconds_per_call if isinstance(source, Paced) else 0.0


def calls_of(
    source: object, kind: Kind, instruments: Sequence[Instrument], start: date, end: date
) -> int:
    """What a provider says a question costs, or one request per instrument (macro: one); nothing
    where it is off."""
    if isinstance(source, Off):
        return 0
    if isinstance(source, Metered):
        return source.calls(kind, instruments, start, end)
    return max(len(instruments), 1)


@runtime_checkable
class Scorer(Protocol):
    """A sentiment model. `model` and `revision` together say what a score means."""

    @property
    def model(self) -> str:
        """Its name."""
        ...

    @property
    def revision(self) -> str:
        """Which release of it."""
        ...

    def score(self, texts: Sequence[str]) -> pl.DataFrame:
        """One row per text, in order.

        Returns:
            `sentiment` (P(positive) - P(negative), in [-1, 1]), `label` (positive, negative or
            neutral) and `confidence` (the label's probability).
        """
        ...


def document_ids(provider: str, urls: pl.Series) -> pl.Series:
    """The key of each document: SHA-256 of `provider|url`, in hex.

    Text by text, because neither Polars nor Arrow has SHA-256; about a microsecond each.
    """
    digests = [hashlib.sha256(f"{provider}|{url}".encode()).hexdigest() for url in urls]
    return pl.Series("document_id", digests, dtype=pl.String)
