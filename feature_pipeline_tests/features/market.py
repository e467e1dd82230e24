"""A synthetic market, made by NumPy from a seed: bars with splits and dividends, documents, macro.

Prices as traded follow from a walk on the economic series: a split divides them, a dividend takes
its cash off, volume jumps with a split. What the features should be is not in here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from feature_pipeline.features.indicators import compute_indicators
from feature_pipeline.features.price_features import compute_features
from feature_pipeline.features.regime import predict_regime
from feature_pipeline.features.state_vector import compute_state_vectors
from feature_pipeline.schemas import UTC_TIME

BENCHMARK = "MKT"
UNWATCHED = "S01"
"""Nobody collects what its insiders do, nor that of the benchmark's."""

START = datetime(2010, 1, 4, tzinfo=UTC)


@dataclass(frozen=True)
class Market:
    """The frames that the pure functions take."""

    bars: pl.DataFrame
    actions: pl.DataFrame
    scores: pl.DataFrame
    macro: pl.DataFrame
    members: pl.DataFrame
    insiders: pl.DataFrame

    def with_frames(self, **frames: pl.DataFrame) -> Market:
        return replace(self, **frames)


@dataclass(frozen=True)
class Tables:
    """What follows from a market."""

    indicators: pl.DataFrame
    features: pl.DataFrame
    regime: pl.DataFrame
    states: pl.DataFrame

    def __iter__(self):
        return iter(vars(self).items())


def chain(market: Market) -> Tables:
    """The whole pure chain."""
    indicators = compute_indicators(market.bars, market.actions)
    features = compute_features(
        market.bars,
        market.actions,
        indicators,
        market.scores,
        market.insiders,
        market.members,
        BENCHMARK,
        companies(market),
    )
    regime = predict_regime(gaps_into(indicators, market.bars))
    states = compute_state_vectors(
        market.bars,
        market.actions,
        gaps_into(indicators, market.bars),
        features,
        regime,
        market.scores,
        market.macro,
    )
    return Tables(indicators, features, regime, states)


def companies(market: Market) -> list[str]:
    """The symbols whose insiders are collected."""
    return sorted({*market.members["symbol"]} - {BENCHMARK, UNWATCHED})


def gaps_into(frame: pl.DataFrame, bars: pl.DataFrame) -> pl.DataFrame:
    """The frame with a gap row for each bar it lacks, as the store would hand it out."""
    return bars.select("symbol", "time").join(
        frame, on=["symbol", "time"], how="left", maintain_order="left"
    )


def sessions(days: int) -> pl.Series:
    """The first `days` weekdays from START, 00:00 UTC."""
    every = pl.datetime_range(
        START, START + timedelta(days=days * 2), "1d", time_unit="us", eager=True
    )
    return every.filter(every.dt.weekday() <= 5).head(days)


def closing(time: pl.Expr) -> pl.Expr:
    """21:00 UTC and a quarter of an hour; every 40th day at 18:00, an early close."""
    early = time.dt.ordinal_day() % 40 == 0
    return time + pl.when(early).then(pl.duration(hours=18)).otherwise(
        pl.duration(hours=21, minutes=15)
    )


def make_market(days: int = 700, symbols: int = 4, seed: int = 0) -> Market:
    """A market of `symbols` instruments and the benchmark; later symbols list a little later."""
    rng = np.random.default_rng(seed)
    names = [BENCHMARK, *(f"S{i:02d}" for i in range(symbols))]
    calendar = sessions(days)
    shocks = rng.normal(0.0003, 0.009, days)
    bars, actions = [], []
    for number, name in enumerate(names):
        listed = 0 if number < 2 else min(3 * number, days // 4)
        bar, action = _instrument(rng, name, calendar[listed:], shocks[listed:], number)
        bars.append(bar)
        actions.append(action)
    frame = pl.concat(bars).select("symbol", "time", pl.exclude("symbol", "time"))
    return Market(
        bars=frame,
        actions=pl.concat(actions),
        scores=_scores(rng, names, calendar),
        macro=_macro(rng, calendar),
        members=pl.DataFrame(
            {
                "symbol": names,
                "sector": [None, *("tech" if i % 2 else "energy" for i in range(symbols))],
                "from": [START - timedelta(days=3650)] * len(names),
                # The last one leaves the universe half way.
                "to": [None] * (len(names) - 1) + [calendar[days // 2]],
            },
            schema_overrides={"sector": pl.String, "from": UTC_TIME, "to": UTC_TIME},
        ),
        insiders=make_insiders(names[1:], calendar, seed),
    )


def _instrument(
    rng: np.random.Generator, name: str, times: pl.Series, shocks: np.ndarray, number: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    days = len(times)
    returns = (0.5 + 0.3 * number) * shocks + rng.normal(0, 0.012 * (number > 0), days)
    splits, dividends = np.ones(days), np.zeros(days)
    if number:
        for at in rng.choice(np.arange(5, days), size=min(2, days - 5), replace=False):
            splits[at] = rng.choice([2.0, 3.0, 1.5, 0.1])
        paying = np.arange(40 + number, days, 63)
        dividends[paying] = rng.uniform(0.1, 0.8, len(paying))
    close = np.empty(days)
    price = 50.0 + 20 * number
    for day in range(days):
        price = max(price - dividends[day] * splits[day], 1.0) / splits[day]
        price *= np.exp(returns[day])
        close[day] = price
    spread = np.abs(rng.normal(0, 0.008, (2, days)))
    opened = close * np.exp(rng.normal(0, 0.003, days))
    frame = pl.DataFrame(
        {
            "time": times,
            "open": opened,
            "high": np.maximum(close, opened) * (1 + spread[0]),
            "low": np.minimum(close, opened) * (1 - spread[1]),
            "close": close,
            "volume": rng.lognormal(13, 0.6, days) * np.cumprod(splits),
        }
    ).with_columns(
        symbol=pl.lit(name),
        available_at=closing(pl.col("time")),
        availability_basis=pl.lit("assumed"),
    )
    events = pl.concat(
        pl.DataFrame(
            {"time": times.filter(pl.Series(mask)), "value": values[mask]},
            schema={"time": UTC_TIME, "value": pl.Float64},
        ).with_columns(
            symbol=pl.lit(name),
            kind=pl.lit(kind),
            available_at=pl.col("time") + pl.duration(hours=14, minutes=30),
            availability_basis=pl.lit("assumed"),
        )
        for kind, values, mask in (
            ("split", splits, splits != 1),
            ("dividend", dividends, dividends > 0),
        )
    )
    return frame, events


def _scores(rng: np.random.Generator, names: list[str], calendar: pl.Series) -> pl.DataFrame:
    """About two documents per symbol and day, some collected a second time later."""
    count = 2 * len(names) * len(calendar)
    span = int((calendar[-1] - START).total_seconds() * 1e6) + 86_400_000_000
    at = pl.Series(rng.integers(0, span, count)).cast(pl.Duration("us")) + START
    channel = rng.choice(["news", "reddit"], count)
    frame = pl.DataFrame(
        {
            "document_id": [f"d{i:07d}" for i in range(count)],
            "symbol": rng.choice(names[:-1], count),
            "channel": channel,
            "source": channel,
            "available_at": at.cast(UTC_TIME),
            "sentiment": rng.uniform(-1, 1, count),
            "confidence": rng.uniform(0, 1, count),
        }
    ).with_columns(time=pl.col("available_at"), availability_basis=pl.lit("assumed"))
    again = frame.gather_every(17).with_columns(
        available_at=pl.col("available_at") + pl.duration(hours=5), sentiment=-pl.col("sentiment")
    )
    return pl.concat([frame, again])


def _macro(rng: np.random.Generator, calendar: pl.Series) -> pl.DataFrame:
    """Three daily series, released the next morning, each 13th observation revised nine days on."""
    levels = {"VIXCLS": (20, 8), "DFF": (3, 2), "T10Y2Y": (0.5, 1.5)}
    first = pl.concat(
        pl.DataFrame({"time": calendar}).with_columns(
            series_id=pl.lit(series),
            value=pl.Series(rng.normal(level, scale, len(calendar))),
            available_at=pl.col("time") + pl.duration(days=1, hours=13),
        )
        for series, (level, scale) in levels.items()
    )
    revised = first.gather_every(13).with_columns(
        value=pl.col("value") + 1, available_at=pl.col("available_at") + pl.duration(days=9)
    )
    return pl.concat([first, revised]).with_columns(availability_basis=pl.lit("assumed"))


def make_insiders(names: list[str], calendar: pl.Series, seed: int) -> pl.DataFrame:
    """About a transaction in six days per symbol, filed up to four days later, each ninth amended.

    From a generator of its own: what else is in the market does not depend on it.
    """
    rng = np.random.default_rng([seed, 4])
    count = len(names) * len(calendar) // 6
    made = pl.Series(rng.integers(0, (calendar[-1] - START).days, count)).cast(pl.Int64)
    delay = pl.Series(rng.integers(10 * 3600, 4 * 86_400, count)).cast(pl.Int64)
    frame = pl.DataFrame(
        {
            "accession": [f"0000000001-10-{n:06}" for n in range(count)],
            "line": np.ones(count, dtype=np.int64),
            "symbol": rng.choice(names, count),
            "owner": rng.integers(1, 4, count),
            "form": ["4"] * count,
            "security": rng.choice(["Common Stock", "Class B"], count),
            "derivative": rng.random(count) < 0.1,
            "code": rng.choice(["P", "S", "M"], count, p=[0.4, 0.4, 0.2]),
            "value": np.where(rng.random(count) < 0.1, np.nan, rng.uniform(1e3, 1e6, count)),
            "shares_after": np.arange(count, dtype=np.float64),
        }
    ).with_columns(
        pl.col("value").fill_nan(None).round(2),
        time=pl.lit(START, dtype=UTC_TIME) + pl.duration(days=made),
        available_at=pl.lit(START, dtype=UTC_TIME) + pl.duration(days=made, seconds=delay),
        availability_basis=pl.lit("assumed"),
    )
    amended = frame.gather_every(9).with_columns(
        accession=pl.col("accession") + "A",
        form=pl.lit("4/A"),
        value=(pl.col("value") * 1.5).round(2),
        available_at=pl.col("available_at") + pl.duration(days=20),
    )
    return pl.concat([frame, amended])


def gap(bars: pl.DataFrame, symbol: str, times: list[datetime]) -> pl.DataFrame:
    """The bars with those rows of the symbol turned into gap rows."""
    hit = (pl.col("symbol") == symbol) & pl.col("time").is_in(times)
    return bars.with_columns(
        pl.when(~hit).then(pl.col(c)).alias(c) for c in bars.columns if c not in ("symbol", "time")
    )


def uncollected(frame: pl.DataFrame, day: datetime, **known: str) -> pl.DataFrame:
    """The event frame with that UTC day taken out and marked as not collected."""
    row = pl.DataFrame({"time": [day], "available_at": [day], **{k: [v] for k, v in known.items()}})
    row = row.with_columns(pl.col("time", "available_at").cast(UTC_TIME))
    kept = frame.filter(
        ~pl.col("available_at").is_between(day, day + timedelta(days=1), closed="left")
    )
    return pl.concat([kept, row], how="diagonal")


def by_hand(closes: list[float], volume: float = 1e6) -> Market:
    """One instrument, the benchmark as well, with these closes on consecutive weekdays.

    No split, no dividend, no document: what its features are can be said with pencil and paper.
    """
    times = sessions(len(closes))
    close = pl.Series(closes, dtype=pl.Float64)
    bars = pl.DataFrame({"time": times, "open": close, "close": close}).with_columns(
        symbol=pl.lit(BENCHMARK),
        available_at=closing(pl.col("time")),
        availability_basis=pl.lit("assumed"),
        high=pl.col("close") + 1,
        low=pl.col("close") - 1,
        volume=pl.lit(volume),
    )
    empty = make_market(days=30, symbols=1)
    return Market(
        bars=bars.select("symbol", "time", pl.exclude("symbol", "time")),
        actions=empty.actions.clear(),
        scores=empty.scores.clear(),
        macro=empty.macro.clear(),
        members=empty.members.head(1),
        insiders=empty.insiders.clear(),
    )
