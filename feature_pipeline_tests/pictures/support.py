"""Frames to draw, and pictures taken apart again."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image

from feature_pipeline.features.declarations import FEATURES, INDICATORS
from feature_pipeline.pictures import events, grids, prices
from feature_pipeline.pictures.style import WIDTH, Picture
from feature_pipeline.schemas import STATE_VECTOR_FIELDS

FIRST = date(2019, 1, 1)

Pixels = npt.NDArray[np.uint8]


def sessions(symbols: Sequence[str], days: int = 120, first: date = FIRST) -> pl.DataFrame:
    """Every weekday is a session."""
    times = [first + timedelta(days=n) for n in range(days)]
    times = [datetime(t.year, t.month, t.day, tzinfo=UTC) for t in times if t.weekday() < 5]
    return pl.DataFrame({"symbol": list(symbols)}).join(
        pl.DataFrame({"time": times}, schema={"time": pl.Datetime("us", "UTC")}), how="cross"
    )


def bars(expected: pl.DataFrame, seed: int = 1, level: float = 100.0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, 0.01, expected.height)
    return expected.with_columns(
        close=pl.Series(steps), volume=pl.Series(rng.lognormal(13, 0.5, expected.height))
    ).with_columns(close=pl.col("close").cum_sum().over("symbol").exp() * level)


def wide(expected: pl.DataFrame, columns: Sequence[str], seed: int = 2) -> pl.DataFrame:
    """Numbers in [-1, 1] around, with holes."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(-1, 1, (expected.height, len(columns)))
    values[rng.uniform(size=values.shape) < 0.05] = np.nan
    frame = pl.DataFrame(values, schema=list(columns), orient="row").fill_nan(None)
    return expected.hstack(frame)


def regime_labels(expected: pl.DataFrame, seed: int = 3) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    labels = rng.choice(["trend", "range", "transition"], expected.height)
    return expected.with_columns(regime=pl.Series(labels))


def actions(symbol: str, *found: tuple[date, str, float]) -> pl.DataFrame:
    return pl.DataFrame(
        [(symbol, datetime(d.year, d.month, d.day, tzinfo=UTC), k, v) for d, k, v in found],
        schema={
            "symbol": pl.String,
            "time": pl.Datetime("us", "UTC"),
            "kind": pl.String,
            "value": pl.Float64,
        },
        orient="row",
    )


def documents(symbols: Sequence[str], days: int = 120, per_day: int = 5) -> pl.DataFrame:
    rng = np.random.default_rng(4)
    count = days * per_day
    start = datetime(FIRST.year, FIRST.month, FIRST.day, tzinfo=UTC)
    minutes = rng.integers(0, days * 1440, count)
    return pl.DataFrame(
        {
            "available_at": pl.Series(
                [start + timedelta(minutes=int(m)) for m in minutes], dtype=pl.Datetime("us", "UTC")
            ),
            "symbols": [list(s) for s in rng.choice(list(symbols), (count, 2))],
            "channel": rng.choice(["news", "reddit"], count).tolist(),
            "sentiment": rng.uniform(-1, 1, count),
        }
    )


def macro(series: Sequence[str], days: int = 120) -> pl.DataFrame:
    """Daily values, each released the next day; every tenth is revised three days on."""
    dates = sessions(series, days).rename({"symbol": "series_id"})
    first = dates.with_columns(
        available_at=pl.col("time") + timedelta(days=1, hours=13),
        value=pl.Series(np.random.default_rng(5).normal(20, 3, dates.height)),
        name=pl.lit("A series"),
        units=pl.lit("Percent"),
    )
    later = first.gather_every(10).with_columns(
        value=pl.col("value") + 0.5, available_at=pl.col("available_at") + timedelta(days=3)
    )
    return pl.concat([first, later])


def everything(symbols: Sequence[str], days: int) -> dict[str, Picture | None]:
    """Every picture there is, of these symbols and days."""
    expected = sessions(symbols, days)
    last = FIRST + timedelta(days=days - 1)
    some = list(symbols[:4])
    split = actions(symbols[0], (FIRST + timedelta(days=days // 2), "split", 2.0))
    indicators = wide(expected, [f.column for f in INDICATORS])
    vectors = wide(expected, STATE_VECTOR_FIELDS)
    held = bars(expected)
    many = pl.concat([split.with_columns(symbol=pl.lit(s)) for s in symbols])
    own = vectors.filter(pl.col("symbol") == symbols[0])
    newest = vectors.group_by("symbol", maintain_order=True).last()
    found = documents(symbols, days)
    features = wide(expected, [f.column for f in FEATURES])
    gaps = expected.sample(fraction=0.9, seed=1)
    return {
        "price": prices.price(held, split, expected, some),
        "indicators": prices.indicators(held, indicators, split, expected, some),
        "regimes": prices.regimes(held, regime_labels(expected), expected, some),
        "returns": prices.returns(features, expected, some),
        "coverage": grids.completeness(gaps, expected, (), "ohlcv_1d"),
        "nulls": grids.completeness(
            indicators, expected, [f.column for f in INDICATORS], "indicators_1d"
        ),
        "state_vectors": grids.state_vectors(own, newest, STATE_VECTOR_FIELDS),
        "documents": events.documents(found, FIRST, last, "News articles"),
        "sentiment": events.sentiment(found),
        "macro": events.macro(macro(list(symbols[:8]), days)),
        "actions": events.actions(many, FIRST, last),
    }


def pixels(picture: Picture | None) -> Pixels:
    """RGBA."""
    assert picture is not None
    image = Image.open(io.BytesIO(picture.png))
    assert image.format == "PNG"
    return np.array(image.convert("RGBA"))


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def of_colour(
    found: Pixels, colour: str, apart: int = 40, least: int = 30
) -> npt.NDArray[np.bool_]:
    """Where pixels have a colour and are not transparent."""
    distance = np.abs(found[..., :3].astype(int) - np.array(rgb(colour))).sum(-1)
    return (distance <= apart) & (found[..., 3] >= least)


def column_of(day: date, first: date, last: date, left: int = 52, right: int = 16) -> int:
    """Where a day lies in a picture with a single panel, in pixels."""
    span = (last - first).days
    margin = max(span * 0.01, 0.6)
    share = ((day - first).days + margin) / (span + 2 * margin)
    return round(left + share * (WIDTH - left - right))
