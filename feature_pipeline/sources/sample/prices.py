"""Recorded prices: five equities of bokeh_sampledata (BSD), two indices of arch (NCSA).

Both packages are read as files, without importing them: their modules load far more than the rows.
What they record, and what has to be undone so that bars are *as traded*:

- The equities' open, high, low, close and volume are as traded, `Adj Close` is adjusted for splits
  and dividends. One slip: on the day of a split the volume is divided by the ratio a second time
  (MSFT 2003-02-18 says 28 707 750, the only one of 12 154 volumes that is no multiple of 100; twice
  that, 57 415 500, was traded, as other records agree). It is multiplied back.
- The indices' volume is the exchange's. It is 0 on two days for the Nasdaq (2015-05-12 and
  2018-01-09): not recorded, and stored as it is.
- Every row is a session of XNYS and no session is missing. Were one not a session, it would be
  dropped, because bars are looked up by expected session.

Corporate actions are recovered from the recorded adjustment f = adj close / close. From one session
to the next it changes by s for a split of s new shares per old one, and by 1 + D / close for a
dividend D, where `close` is the ex-date's: the recording defines total return as (close + D) /
previous close, as CRSP does. It is precise to 1e-13, so that a step within 1e-9 of a usual ratio is
a split, and any other one gives a dividend that is a whole number of cents to 1e-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from feature_pipeline.errors import SourceError
from feature_pipeline.universe import Instrument, expected_sessions

SOURCE = "sample"
PUBLICATION_DELAY = timedelta(minutes=15)
"""After the close: what an end-of-day feed takes."""

_INDICES = {"^GSPC": "sp500", "^IXIC": "nasdaq"}
_SPLITS = (1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)
_RATIOS = tuple(ratio for split in _SPLITS for ratio in (split, 1 / split))
_NOISE = 1e-9


def bars(instruments: Sequence[Instrument], start: date, end: date) -> pl.DataFrame:
    """The recorded bars of the sessions in `[start, end)`, in the columns of `ohlcv_1d`."""
    return (
        expected_sessions(_recorded_ones(instruments), start, end)
        .join(_names(instruments), on="symbol", maintain_order="left")
        .join(as_traded(), on=["recording", "time"], maintain_order="left")
        .select(
            "symbol",
            "time",
            (pl.col("close") + PUBLICATION_DELAY).alias("available_at"),
            pl.lit("assumed").alias("availability_basis"),
            pl.col("first").alias("open"),
            "high",
            "low",
            pl.col("last").alias("close"),
            "volume",
            pl.lit(SOURCE).alias("source"),
        )
    )


def actions(instruments: Sequence[Instrument], start: date, end: date) -> pl.DataFrame:
    """Splits and dividends that became known in `[start, end)`: at the open of their ex-date."""
    # Some exchanges open on the evening before their session's date.
    day = timedelta(days=1)
    return (
        expected_sessions(_recorded_ones(instruments), start - day, end + day)
        .join(_names(instruments), on="symbol", maintain_order="left")
        .join(_all_actions(), on=["recording", "time"], maintain_order="left")
        .filter(pl.col("open").dt.date().is_between(start, end, closed="left"))
        .select(
            "symbol",
            "time",
            pl.col("open").alias("available_at"),
            pl.lit("assumed").alias("availability_basis"),
            "kind",
            "value",
            pl.lit(SOURCE).alias("source"),
        )
    )


def unrecorded(instruments: Sequence[Instrument]) -> dict[str, str]:
    """The instruments without a recording, and what to do about each."""
    known = ", ".join(sorted(_recordings()))
    return {
        i.id: f"the sample has no prices of {i.id}, only of {known}; give it another source"
        for i in instruments
        if _recording(i) is None
    }


def total_returns(instruments: Sequence[Instrument]) -> pl.DataFrame:
    """`symbol` (id), `time`, `available_at`, `change`: each session's recorded total return."""
    return (
        expected_sessions(_recorded_ones(instruments), date.min, date.max)
        .join(_names(instruments), on="symbol", maintain_order="left")
        .join(recorded(), on=["recording", "time"], maintain_order="left")
        .select(
            "symbol",
            "time",
            (pl.col("close") + PUBLICATION_DELAY).alias("available_at"),
            (pl.col("adjusted") / pl.col("adjusted").shift(1).over("symbol") - 1).alias("change"),
        )
    )


@cache
def recorded() -> pl.DataFrame:
    """The recordings, as they are.

    Returns:
        `recording` (the symbol), `time` (session date, 00:00 UTC), `first`, `high`, `low`, `last`,
        `adjusted` (prices), `volume`; sorted by recording and time. Read once per process.

    Raises:
        SourceError: a data package is missing or of another shape.
    """
    # Not called open and close: in a join with sessions, those are times.
    columns = {
        "Open": "first",
        "High": "high",
        "Low": "low",
        "Close": "last",
        "Adj Close": "adjusted",
        "Volume": "volume",
    }
    try:
        equities = pl.read_csv(
            _package("bokeh_sampledata") / "_data" / "stocks.csv.gz", schema_overrides=_NUMBERS
        ).rename({"Ticker": "recording"})
        frames = [equities.with_columns(pl.col("Date").str.to_date("%Y-%m-%d"))]
        for symbol, name in _INDICES.items():
            index = pl.read_csv(
                _package("arch") / "data" / name / f"{name}.csv.gz", schema_overrides=_NUMBERS
            )
            frames.append(
                index.with_columns(
                    pl.col("Date").str.to_date("%m/%d/%Y"), pl.lit(symbol).alias("recording")
                )
            )
        return (
            pl.concat(frames, how="diagonal")
            .select(
                "recording",
                pl.col("Date").cast(pl.Datetime("us")).dt.replace_time_zone("UTC").alias("time"),
                *(pl.col(theirs).alias(ours) for theirs, ours in columns.items()),
            )
            .sort("recording", "time")
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise SourceError(
            f"the sample's recordings cannot be read ({str(error).splitlines()[0]}); reinstall "
            "bokeh_sampledata and arch from the lock"
        ) from error


_NUMBERS = dict.fromkeys(("Open", "High", "Low", "Close", "Adj Close", "Volume"), pl.Float64)


@cache
def as_traded() -> pl.DataFrame:
    """`recorded`, with the volume of split days put right."""
    splits = _all_actions().filter(kind="split").select("recording", "time", "value")
    return (
        recorded()
        .join(splits, on=["recording", "time"], how="left", maintain_order="left")
        .with_columns(pl.col("volume") * pl.col("value").fill_null(1.0))
        .drop("value")
    )


@cache
def _all_actions() -> pl.DataFrame:
    """`recording`, `time`, `kind`, `value` of every split and dividend in the recordings."""
    factor = pl.col("adjusted") / pl.col("last")
    steps = (
        recorded()
        .with_columns((factor / factor.shift(1).over("recording")).alias("step"))
        .filter((pl.col("step") - 1).abs() > _NOISE)
    )
    split = pl.coalesce(
        pl.when((pl.col("step") / ratio - 1).abs() < _NOISE).then(ratio) for ratio in _RATIOS
    )
    dividend = (pl.col("last") * (pl.col("step") - 1)).round(2)
    return steps.select(
        "recording",
        "time",
        pl.when(split.is_null()).then(pl.lit("dividend")).otherwise(pl.lit("split")).alias("kind"),
        pl.coalesce(split, dividend).alias("value"),
    )


@cache
def _recordings() -> frozenset[str]:
    return frozenset(recorded()["recording"].unique())


def _recording(instrument: Instrument) -> str | None:
    """The recording under one of the instrument's symbols."""
    held = (s.symbol for s in instrument.symbols)
    return next((symbol for symbol in held if symbol in _recordings()), None)


def _recorded_ones(instruments: Sequence[Instrument]) -> list[Instrument]:
    return [i for i in instruments if _recording(i) is not None]


def _names(instruments: Sequence[Instrument]) -> pl.DataFrame:
    return pl.DataFrame(
        [(i.id, _recording(i)) for i in instruments],
        schema={"symbol": pl.String, "recording": pl.String},
        orient="row",
    )


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(f"the sample needs the package {name}; install it from the lock")
    return Path(next(iter(spec.submodule_search_locations)))
