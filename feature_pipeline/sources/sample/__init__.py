"""The sample: a provider of everything, offline, behind the same interface as the live ones.

Its prices are real and recorded (`prices`). Its macro series (`macro`), news and posts (`texts`)
are made by us: whoever asks, on whatever machine and for whatever range, gets the same rows. Every
row says `source = "sample"` and `availability_basis = "assumed"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

from feature_pipeline.errors import SourceError
from feature_pipeline.schemas import CORPORATE_ACTIONS, MACRO_INDICATORS, documents, ohlcv
from feature_pipeline.sources import Channel, Fetched, Kind
from feature_pipeline.sources.sample import macro as made_macro
from feature_pipeline.sources.sample import prices, texts
from feature_pipeline.universe import Instrument


class SampleSource:
    """`BarSource`, `DocumentSource` and `MacroSource` in one; needs no network and no key."""

    name = prices.SOURCE
    publication_delay: timedelta = prices.PUBLICATION_DELAY
    series = tuple(made_macro.SERIES)

    def calls(
        self,
        kind: Kind,  # noqa: ARG002
        instruments: Sequence[Instrument],  # noqa: ARG002
        start: date,  # noqa: ARG002
        end: date,  # noqa: ARG002
    ) -> int:
        """None: it has no network."""
        return 0

    def bars(
        self, instruments: Sequence[Instrument], start: date, end: date, timeframe: str = "1d"
    ) -> Fetched:
        """Recorded bars, as traded; see `prices`. An instrument without a recording fails.

        Raises:
            SourceError: of another timeframe than `1d` there is no recording.
        """
        if timeframe != "1d":
            raise SourceError(f"{self.name}: it has daily bars only, none of {timeframe}")
        return Fetched(
            ohlcv("1d").conform(prices.bars(instruments, start, end)),
            prices.unrecorded(instruments),
            tuple(i.id for i in instruments),
        )

    def actions(self, instruments: Sequence[Instrument], start: date, end: date) -> Fetched:
        """Recovered splits and dividends; see `prices`. An instrument without a recording fails."""
        return Fetched(
            CORPORATE_ACTIONS.conform(prices.actions(instruments, start, end)),
            prices.unrecorded(instruments),
            tuple(i.id for i in instruments),
        )

    def documents(
        self, channel: Channel, instruments: Sequence[Instrument], start: date, end: date
    ) -> Fetched:
        """Made news or posts; see `texts`."""
        return Fetched(
            documents(channel).conform(texts.published(channel, instruments, start, end)),
            {},
            tuple(i.id for i in instruments),
        )

    def macro(self, series_ids: Sequence[str], start: date, end: date) -> Fetched:
        """Made VIXCLS, DFF and T10Y2Y with revisions; see `macro`. Another series fails."""
        return Fetched(
            MACRO_INDICATORS.conform(made_macro.released(series_ids, start, end)),
            made_macro.unknown(series_ids),
            tuple(series_ids),
        )


__all__ = ["SampleSource"]
