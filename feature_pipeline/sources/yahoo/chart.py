"""What a chart of Yahoo's says, and what was traded: parsing, and undoing its back-adjustment.

Pure: a decoded answer in, frames out. No network, no clock. Sessions, listings and the moment at
which a bar could be had are the source's (`__init__.py`).

Yahoo divides every price before a split by the split's ratio and multiplies every volume, for all
splits that have happened since, whatever range was asked for; `Close` is adjusted for splits, not
for dividends (`Adj Close` is, and is not read). So what was traded on a day is

    price  = Yahoo's price  * product of the ratios of all splits after that day
    volume = Yahoo's volume / the same product

and a dividend is a price. The ex-date itself trades on the new basis: its split does not count.

Prices come as 32-bit floats, older ones rounded to six decimals after they were adjusted. Of the
decimals within that noise the shortest is taken: it is what was traded wherever exchanges quote
decimals, and it stays the same when a later split makes Yahoo round anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from math import log
from typing import Any

import polars as pl

from feature_pipeline.schemas import UTC_TIME

PRICES = ("open", "high", "low", "close")

_FLOAT32 = 2.0**-23
"""Twice the rounding of a 32-bit float, relative: Yahoo's own arithmetic adds some."""

_SIX_DECIMALS = 1e-6
"""What an adjusted price is rounded to at the worst; the error is half of it."""

_COARSEST = 1e-5
"""No price is changed by more than this, relatively."""

_DECIMALS = 10

SETTLING = timedelta(days=10)
"""After a split Yahoo may take so long to adjust the prices before it."""

_TELLING = 1.5
"""From this ratio on a step tells whether it was adjusted for."""

_LAST_SECOND = 250_000_000_000
"""In the year 9892: what lies beyond is no moment."""


class ShapeError(ValueError):
    """The answer is not what a chart looks like; the text says what is wrong with it."""


@dataclass(frozen=True)
class Chart:
    """A chart as Yahoo has it.

    `bars`: `moment` (UTC, null where it is none), `day` (in the exchange's zone), prices, `volume`,
    in the order of the answer; rows without any price are left out. `splits`: `day`, `value` (new
    shares per old one), sorted. `dividends`: `day`, `value`, sorted. `zone`: the exchange's.
    """

    bars: pl.DataFrame
    splits: pl.DataFrame
    dividends: pl.DataFrame
    zone: str


def parse(result: Mapping[str, Any]) -> Chart:
    """Read one `chart.result`.

    Raises:
        ShapeError: it has another shape, or a split that is none.
    """
    try:
        meta = result["meta"]
        zone = str(meta["exchangeTimezoneName"])
        events = result.get("events") or {}
        bars = _bars(result, zone)
        splits = _events(events.get("splits"), zone, ("numerator", "denominator"))
        dividends = _events(events.get("dividends"), zone, ("amount",))
        dividends = _in_currency(dividends, str(meta.get("currency") or ""))
    except ShapeError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, pl.exceptions.PolarsError) as error:
        raise ShapeError(f"it has another shape ({type(error).__name__})") from error
    ratio = pl.col("numerator") / pl.col("denominator")
    splits = splits.select("day", value=ratio).unique().sort("day")
    wrong = splits.filter(
        pl.col("day").is_null()
        | ~(pl.col("value").is_finite() & (pl.col("value") > 0)).fill_null(value=False)
    )
    if wrong.height:
        day, value = wrong.row(0)
        raise ShapeError(f"it reports a split of {value} on {day}, which is none")
    return Chart(bars, splits, dividends.select("day", value="amount").sort("day"), zone)


def _bars(result: Mapping[str, Any], zone: str) -> pl.DataFrame:
    seconds = result.get("timestamp") or []
    quotes = result["indicators"]["quote"][0] or {}
    columns = {
        name: _numbers(quotes.get(name) or [None] * len(seconds)) for name in (*PRICES, "volume")
    }
    frame = pl.DataFrame({"seconds": _numbers(seconds), **columns})
    moment = _moment(pl.col("seconds"))
    priced = pl.any_horizontal(pl.col(*PRICES).is_not_nan() & pl.col(*PRICES).is_not_null())
    return frame.filter(priced).select(
        moment.alias("moment"), _day(moment, zone).alias("day"), *PRICES, "volume"
    )


def _numbers(values: Sequence[Any]) -> pl.Series:
    """Numbers as they are; what is none is null."""
    return pl.Series(
        [float(v) if isinstance(v, int | float) else None for v in values], dtype=pl.Float64
    )


def _moment(seconds: pl.Expr) -> pl.Expr:
    inside = seconds.is_finite() & (seconds.abs() < _LAST_SECOND)
    return (pl.when(inside).then(seconds) * 1e6).cast(pl.Int64).cast(UTC_TIME)


def _day(moment: pl.Expr, zone: str) -> pl.Expr:
    """The date at the exchange.

    Where Yahoo has midnight wrong by the hour of a daylight-saving change, 22:00 or 23:00 means the
    day after (yfinance does the same).
    """
    local = moment.dt.convert_time_zone(zone)
    slip = (local.dt.minute() == 0) & (local.dt.second() == 0) & (local.dt.hour() >= 22)
    return pl.when(slip).then(local.dt.date() + timedelta(days=1)).otherwise(local.dt.date())


def _events(
    found: Mapping[str, Mapping[str, Any]] | None, zone: str, names: Sequence[str]
) -> pl.DataFrame:
    """`day`, and a column per name; `currency` where an event is in one of its own."""
    rows = list((found or {}).values())
    moment = _moment(pl.col("date"))
    return pl.DataFrame(
        {
            **{name: _numbers([row.get(name) for row in rows]) for name in ("date", *names)},
            "currency": pl.Series([row.get("currency") or None for row in rows], dtype=pl.String),
        }
    ).select(_day(moment, zone).alias("day"), *names, "currency")


def _in_currency(dividends: pl.DataFrame, currency: str) -> pl.DataFrame:
    """A dividend in another currency than the price has no amount that could be used."""
    foreign = (pl.col("currency") != currency).fill_null(value=False)
    return dividends.with_columns(amount=pl.when(foreign).then(float("nan")).otherwise("amount"))


NOTHING = parse({"meta": {"exchangeTimezoneName": "UTC"}, "indicators": {"quote": [{}]}})
"""What Yahoo has of a time of which it has nothing."""


# -- as traded ------------------------------------------------------------------------------------


def as_traded(chart: Chart, today: date) -> pl.DataFrame:
    """The bars with Yahoo's split adjustment undone.

    Args:
        chart: up to now, so that it has all splits since its first bar.
        today: at the exchange.
    """
    factor = _factor(chart.bars["day"], applied(chart, today))
    volume = pl.col("volume") / pl.col("factor")
    return (
        chart.bars.with_columns(factor.alias("factor"))
        .with_columns(
            *(_shortest(pl.col(name) * pl.col("factor"), pl.col("factor")) for name in PRICES),
            # Whole shares were traded; a volume that was never adjusted is left as it came.
            pl.when(pl.col("factor") != 1.0)
            .then(volume.round(0))
            .otherwise(pl.col("volume"))
            .alias("volume"),
        )
        .drop("factor")
    )


def dividends_as_paid(chart: Chart, today: date) -> pl.DataFrame:
    """`day`, `value` of the dividends, per share as it was then."""
    factor = _factor(chart.dividends["day"], applied(chart, today))
    return (
        chart.dividends.with_columns(factor.alias("factor"))
        .with_columns(_shortest(pl.col("value") * pl.col("factor"), pl.col("factor")))
        .drop("factor")
    )


def applied(chart: Chart, today: date) -> pl.DataFrame:
    """The splits that the prices before them are adjusted for.

    Those to come are not; and for a day or two after a split Yahoo may report it and leave prices
    as they were traded: undoing what was not done would store prices that nobody paid. Of a split
    of the last `SETTLING` days that is judged by which of the two makes the smaller step over the
    ex-date; a ratio near 1, where the step says nothing, counts as done.

    Raises:
        ShapeError: nothing was traded since such a split, so that nobody can tell.
    """
    done = chart.splits.filter(pl.col("day") <= today)
    recent = done.filter(
        pl.col("day") >= today - SETTLING, ~pl.col("value").is_between(1 / _TELLING, _TELLING)
    )
    if recent.is_empty():
        return done
    priced = pl.min_horizontal("open", "close") > 0
    bars = chart.bars.filter(pl.col("day").is_not_null(), priced).sort("moment")
    waiting = []
    for day, ratio in recent.iter_rows():  # one, once in years
        before = bars.filter(pl.col("day") < day)["close"].tail(1)
        after = bars.filter(pl.col("day") >= day)["open"].head(1)
        if before.is_empty():
            continue
        if after.is_empty():
            raise ShapeError(
                f"of the split of {ratio:g} on {day} no bar tells yet whether prices are adjusted "
                "for it; the next run asks again"
            )
        step = after[0] / before[0]
        if abs(log(step * ratio)) < abs(log(step)):
            waiting.append(day)
    return done.filter(~pl.col("day").is_in(waiting))


def _factor(days: pl.Series, done: pl.DataFrame) -> pl.Series:
    """For each day the product of the ratios of all splits after it."""
    after = done["value"].reverse().cum_prod().reverse()
    products = pl.concat([after, pl.Series(after.name, [1.0])])
    place = done["day"].search_sorted(days.fill_null(date.max), side="right")
    return products.gather(place)


def _shortest(value: pl.Expr, factor: pl.Expr) -> pl.Expr:
    """The value, or the shortest decimal that Yahoo's rounding does not tell from it."""
    size = value.abs()
    rounded = pl.when(factor != 1.0).then(factor * _SIX_DECIMALS / 2).otherwise(0.0)
    noise = size * _FLOAT32 + pl.min_horizontal(rounded, size * _COARSEST)
    candidates = [value.round(decimals) for decimals in range(_DECIMALS + 1)]
    return pl.coalesce(
        *(pl.when((short - value).abs() <= noise).then(short) for short in candidates), value
    )
