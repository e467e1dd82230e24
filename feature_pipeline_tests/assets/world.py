"""A synthetic outside world: what its providers would say, and the sources that say it.

Everything is made from seeds that name what they make, so that two worlds which differ in one thing
agree in all others. The graph on top of it is in `support`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl

from feature_pipeline.features.declarations import MACRO_SERIES
from feature_pipeline.schemas import (
    CORPORATE_ACTIONS,
    MACRO_INDICATORS,
    UTC_TIME,
    Fetched,
    TableSchema,
    documents,
    ohlcv,
)
from feature_pipeline.universe import Instrument, Universe

# A window of eight sessions over two weeks, with a weekend inside and a split in its middle.
START, END = date(2019, 6, 5), date(2019, 6, 15)
SPLIT_DAY = date(2019, 6, 11)
LISTED = date(2017, 1, 3)
SPLITTING = -0.5
DELAY = timedelta(minutes=15)

_YAML = """
benchmark: {benchmark}
timeframes: [{timeframes}]
instruments:
"""
_ENTRY = """
  - id: {id}
    asset_class: equity
    calendar: XNYS
    sector: {sector}
    source: {{bars: made, actions: made, news: made, reddit: made}}
    symbols: [{{symbol: {id}, from: 2000-01-03}}]
    membership: [{{from: {listed}}}]
"""

# YOUNG has a warm-up that ends inside the window for some columns and never for others.
INSTRUMENTS = (
    ("AAA", "tech", LISTED),
    ("BBB", "tech", LISTED),
    ("MKT", "index", LISTED),
    ("YOUNG", "energy", date(2019, 3, 11)),
)


def make_universe(
    instruments: Sequence[tuple[str, str, date]] = INSTRUMENTS,
    benchmark: str = "MKT",
    timeframes: Sequence[str] = ("1d",),
) -> Universe:
    """A small universe of (id, sector, first day)."""
    return Universe.parse(_universe_yaml(instruments, benchmark, timeframes))


def write_universe(path: Path) -> Path:
    """The same universe as a file, for commands."""
    path.write_text(_universe_yaml(INSTRUMENTS, "MKT"), encoding="utf-8")
    return path


def _universe_yaml(
    instruments: Sequence[tuple[str, str, date]],
    benchmark: str,
    timeframes: Sequence[str] = ("1d",),
) -> str:
    entries = (_ENTRY.format(id=i, sector=s, listed=day) for i, s, day in instruments)
    head = _YAML.format(benchmark=benchmark, timeframes=", ".join(timeframes))
    return head + "".join(entries)


@dataclass(frozen=True, repr=False)
class World:
    """All that ever happens, in the columns of the source tables.

    `silent` symbols do not answer a request for bars; `documents` has both channels; `intraday` is
    timeframe -> bars.
    """

    bars: pl.DataFrame
    actions: pl.DataFrame
    documents: pl.DataFrame
    macro: pl.DataFrame
    silent: Mapping[str, str] = field(default_factory=dict)
    intraday: Mapping[str, pl.DataFrame] = field(default_factory=dict)

    def but(self, **frames) -> World:
        return replace(self, **frames)


def make_world(
    universe: Universe, end: date = END, seeds: Mapping[str, str] | None = None
) -> World:
    """A world for the universe's instruments up to `end`.

    Args:
        universe: whose sessions there are.
        end: the first day without anything.
        seeds: id -> the name that its random numbers follow from, itself unless given.
    """
    seeds = seeds or {}
    sessions = universe.sessions(LISTED, end)
    calendar = sessions["time"].unique().sort()
    shocks = np.random.default_rng(1).normal(0.0003, 0.009, len(calendar))
    bars, actions = [], []
    for symbol in universe.symbols:
        rng = _random("bars", seeds.get(symbol, symbol))
        own = sessions.filter(pl.col("symbol") == symbol)
        bar, action = _instrument(rng, own, shocks[-own.height :], symbol == universe.benchmark)
        bars.append(bar)
        actions.append(action)
    return World(
        bars=ohlcv("1d").conform(pl.concat(bars)),
        actions=CORPORATE_ACTIONS.conform(pl.concat(actions)),
        documents=pl.concat(
            [_documents(symbol, seeds.get(symbol, symbol), end) for symbol in universe.symbols]
        ),
        macro=_macro(calendar.filter(calendar >= midnight(START) - timedelta(days=60))),
    )


def within_sessions(
    universe: Universe, world: World, timeframes: Sequence[str], start: date, end: date = END
) -> World:
    """The world with bars within its daily ones: from each open to the close of that day, with
    noise, and not one where nobody traded: every ninth bar, and the first ones of every fifth
    session."""
    daily = world.bars.select("symbol", "open", "close", session=pl.col("time").dt.date())
    made = {}
    for timeframe in timeframes:
        grid = universe.bars(timeframe, start, end).join(
            daily, on=["symbol", "session"], how="left", maintain_order="left"
        )
        of = ["symbol", "session"]
        rng = np.random.default_rng(len(timeframe))
        noise = np.exp(0.002 * rng.normal(size=grid.height))
        place = pl.int_range(pl.len()).over(of)
        share = (place + 1) / pl.len().over(of)
        path = pl.col("open") * (pl.col("close") / pl.col("open")) ** share
        frame = grid.with_columns(
            place=place,
            last=pl.when(share < 1).then(path * noise).otherwise("close"),
        ).with_columns(
            first=pl.when(pl.col("place") == 0).then("open").otherwise(pl.col("last").shift())
        )
        quiet = pl.int_range(pl.len()) % 9 == 4
        late = (pl.col("session").dt.ordinal_day() % 5 == 2) & (pl.col("place") < 2)
        made[timeframe] = frame.filter(~(quiet | late)).select(
            "symbol",
            "time",
            available_at=pl.col("end") + DELAY,
            availability_basis=pl.lit("assumed"),
            open="first",
            high=pl.max_horizontal("first", "last") * 1.001,
            low=pl.min_horizontal("first", "last") * 0.999,
            close="last",
            volume=1000.0 + 100 * (pl.col("time").dt.minute() % 7),
            spread=pl.lit(None, pl.Float64),
            source=pl.lit("made"),
        )
    return world.but(intraday=made)


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _random(*names: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32("/".join(names).encode()))


def _instrument(
    rng: np.random.Generator, sessions: pl.DataFrame, shocks: np.ndarray, benchmark: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Bars as traded, splits and dividends; each random draw belongs to one session."""
    days = sessions.height
    # One row of draws per session, the last one last: a shorter history has the same end.
    draws = rng.normal(size=(1200, 6))[-days:]
    returns = shocks + 0.012 * draws[:, 0] * (not benchmark)
    dates = sessions["time"].dt.date()
    splits = np.where((dates == SPLIT_DAY) & (draws[-1, 5] > SPLITTING) & (not benchmark), 2.0, 1.0)
    splits = np.where((dates == date(2017, 11, 6)) & (not benchmark), 3.0, splits)
    paid = np.where((np.arange(days)[::-1] % 63 == 7) & (not benchmark), 0.3, 0.0)
    level = 80 * np.exp(np.cumsum(returns))
    close = level / np.cumprod(splits)
    opened = close * np.exp(0.003 * draws[:, 1])
    frame = sessions.select(
        "symbol",
        "time",
        available_at=pl.col("close") + DELAY,
        availability_basis=pl.lit("assumed"),
        open=opened,
        high=np.maximum(close, opened) * (1 + np.abs(0.006 * draws[:, 2])),
        low=np.minimum(close, opened) * (1 - np.abs(0.006 * draws[:, 3])),
        last=close,
        volume=np.round(np.exp(13 + 0.5 * draws[:, 4]) * np.cumprod(splits)),
        source=pl.lit("made"),
    ).rename({"last": "close"})
    events = [
        sessions.filter(pl.Series(where)).select(
            "symbol",
            "time",
            available_at="open",
            availability_basis=pl.lit("assumed"),
            kind=pl.lit(kind),
            value=pl.Series(values[where], dtype=pl.Float64),
            source=pl.lit("made"),
        )
        for kind, values, where in (
            ("split", splits, splits != 1),
            ("dividend", paid, paid > 0),
        )
    ]
    return frame, pl.concat(events)


def _documents(symbol: str, seed: str, end: date) -> pl.DataFrame:
    """Some three documents a day and symbol from two weeks before the window, of both channels."""
    first = START - timedelta(days=14)
    count = 3 * (end - first).days
    rng = _random("documents", seed)
    at = pl.Series(np.sort(rng.integers(0, (end - first).days * 86_400, count)))
    published = at.cast(pl.Int64) * 1_000_000
    return make_documents(
        symbol,
        [midnight(first) + timedelta(microseconds=us) for us in published],
        scores=rng.uniform(-1, 1, count).round(4).tolist(),
        channels=rng.choice(["news", "reddit"], count).tolist(),
        name=seed,
    )


def make_documents(
    symbol: str,
    moments: Sequence[datetime],
    scores: Sequence[float],
    channels: Sequence[str],
    name: str = "",
) -> pl.DataFrame:
    """Documents about a symbol that can be seen five minutes after they were published."""
    frame = pl.DataFrame(
        {"available_at": moments, "score": scores, "channel": channels},
        schema={"available_at": UTC_TIME, "score": pl.Float64, "channel": pl.String},
    )
    table = documents("news")
    return (
        frame.with_row_index()
        .select(
            document_id=pl.format(
                "{}-{}-{}", pl.lit(name or symbol), "index", pl.col("available_at").dt.epoch("us")
            ),
            time=pl.col("available_at") - timedelta(minutes=5),
            available_at="available_at",
            availability_basis=pl.lit("assumed"),
            channel="channel",
            source=pl.lit("made"),
            symbols=pl.concat_list(pl.lit(symbol)),
            title=pl.format("score {}", "score"),
            text=pl.lit(None, pl.String),
            url=pl.lit(None, pl.String),
        )
        .select(table.names)
    )


def _macro(calendar: pl.Series) -> pl.DataFrame:
    """Three series, released the next morning; every fifth observation is revised three days on."""
    frames = []
    for series, (level, scale) in {"VIXCLS": (20, 8), "DFF": (3, 2), "T10Y2Y": (0.5, 1.5)}.items():
        values = _random("macro", series).normal(level, scale / 4, len(calendar)).round(2)
        first = make_macro(series, calendar.to_list(), values.tolist())
        revised = first.gather_every(5).with_columns(
            value=pl.col("value") + 0.5, available_at=pl.col("available_at") + timedelta(days=3)
        )
        frames += [first, revised]
    return pl.concat(frames)


def make_macro(
    series: str,
    times: Sequence[datetime],
    values: Sequence[float],
    released: timedelta = timedelta(days=1, hours=13),
) -> pl.DataFrame:
    """Observations, each released so long after its date."""
    frame = pl.DataFrame(
        {"time": times, "value": values}, schema={"time": UTC_TIME, "value": pl.Float64}
    )
    return MACRO_INDICATORS.conform(
        frame.with_columns(
            series_id=pl.lit(series),
            available_at=pl.col("time") + released,
            availability_basis=pl.lit("assumed"),
            name=pl.lit(series),
            units=pl.lit("percent"),
            frequency=pl.lit("D"),
            source=pl.lit("made"),
        )
    )


# -- the sources ----------------------------------------------------------------------------------


@dataclass
class MadeSource:
    """Answers from a world, as a provider would. `reverse` turns the rows' order around."""

    world: World
    reverse: bool = False
    name: str = "made"
    series: Sequence[str] = MACRO_SERIES
    publication_delay: timedelta = DELAY
    asked: list[tuple[str, date, date]] = field(default_factory=list)

    def bars(
        self, instruments: Sequence[Instrument], start: date, end: date, timeframe: str = "1d"
    ) -> Fetched:
        asked = [i.id for i in instruments]
        failed = {s: why for s, why in self.world.silent.items() if s in asked}
        bars = self.world.bars if timeframe == "1d" else self.world.intraday[timeframe]
        frame = self._within("bars", bars, ohlcv(timeframe), start, end)
        frame = frame.filter(pl.col("symbol").is_in(asked), ~pl.col("symbol").is_in(list(failed)))
        return Fetched(frame, failed, tuple(asked))

    def actions(self, instruments: Sequence[Instrument], start: date, end: date) -> Fetched:
        asked = [i.id for i in instruments]
        frame = self._within("actions", self.world.actions, CORPORATE_ACTIONS, start, end)
        return Fetched(frame.filter(pl.col("symbol").is_in(asked)), {}, tuple(asked))

    def documents(
        self, channel: str, instruments: Sequence[Instrument], start: date, end: date
    ) -> Fetched:
        asked = [i.id for i in instruments]
        frame = self._within(channel, self.world.documents, documents("news"), start, end)
        frame = frame.filter(
            pl.col("channel") == channel,
            pl.col("symbols").list.eval(pl.element().is_in(asked)).list.any(),
        )
        return Fetched(frame, {}, tuple(asked))

    def macro(self, series_ids: Sequence[str], start: date, end: date) -> Fetched:
        frame = self._within("macro", self.world.macro, MACRO_INDICATORS, start, end)
        return Fetched(frame.filter(pl.col("series_id").is_in(series_ids)), {}, tuple(series_ids))

    def _within(
        self, what: str, frame: pl.DataFrame, table: TableSchema, start: date, end: date
    ) -> pl.DataFrame:
        self.asked.append((what, start, end))
        day = pl.col(table.day_column)
        frame = frame.filter(day >= midnight(start), day < midnight(end))
        return frame.reverse() if self.reverse else frame


class MadeScorer:
    """Reads a document's score from its title: `score 0.25`. Claims to be the active model."""

    model = "vader"
    revision = version("vaderSentiment")

    def __init__(self) -> None:
        self.texts = 0

    def score(self, texts: Sequence[str]) -> pl.DataFrame:
        self.texts += len(texts)
        score = pl.col("text").str.extract(r"score (-?[\d.]+(?:e-?\d+)?)").cast(pl.Float64)
        return pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)}).select(
            sentiment=score,
            label=pl.when(score > 0).then(pl.lit("positive")).otherwise(pl.lit("negative")),
            confidence=0.5 + score.abs() / 2,
        )
