"""Values by name at any past moment: what was available by then, or what was known then.

Names are resolved by `names.py`; what is derived and asked for as it was known is computed by
`recompute.py`. How answers are shown is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING

import polars as pl

from feature_pipeline.errors import FeatureError
from feature_pipeline.schemas import UTC_TIME
from feature_pipeline.serving.names import Named
from feature_pipeline.serving.recompute import as_known_at
from feature_pipeline.storage.store import Store

if TYPE_CHECKING:
    from feature_pipeline.sources import Scorer

_TIMES = ("time", "available_at", "availability_basis")


@dataclass(frozen=True)
class Moment:
    """What an answer may rest on.

    Args:
        as_of: only what was available by then.
        known_at: as this database held it then, corrections since undone; None - as it is held now.
    """

    as_of: datetime
    known_at: datetime | None = None

    @classmethod
    def of(
        cls, as_of: datetime | None, known_at: datetime | None = None, now: datetime | None = None
    ) -> Moment:
        """The moment that a question means: now, unless it says another one."""
        return cls(as_of or known_at or now or datetime.now(UTC), known_at)


@dataclass(frozen=True)
class Value:
    """One value, and of when it is.

    `time`, `available_at` and `availability_basis` are None where no row was available by then.
    """

    name: str
    asset: str
    column: str
    value: float | str | int | list[str] | None
    time: datetime | None
    available_at: datetime | None
    availability_basis: str | None


def parse_moment(text: str, name: str = "moment") -> tuple[datetime, bool]:
    """A moment as people write it, in UTC, and whether they named a time zone.

    ISO 8601: `2012-06-14`, `2012-06-14 19:00`, `2012-06-14T15:00-04:00`, `...Z`; without a zone it
    is UTC, a bare date its start.

    Raises:
        FeatureError: it is no such moment; `name` says which one it was.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
        zoned = moment.tzinfo is not None
        return (moment.astimezone(UTC) if zoned else moment.replace(tzinfo=UTC)), zoned
    except (ValueError, OverflowError):
        raise FeatureError(
            f"{name} {text!r} is no moment; write ISO 8601: 2012-06-14, 2012-06-14T19:00Z or "
            "2012-06-14T15:00-04:00 (without a zone it is UTC)"
        ) from None


def newest(
    store: Store, symbol: str, places: Sequence[Named], moment: Moment, scorer: Scorer
) -> list[Value]:
    """Each value of a symbol, of the newest row of its table that was available.

    Args:
        store: where from.
        symbol: an id or a symbol.
        places: which values.
        moment: what they may rest on.
        scorer: the active sentiment model, for derived values as they were known.

    Raises:
        UniverseError: the symbol is unknown.
        DatabaseError: the database does not answer.
    """
    instrument = store.universe.resolve(symbol).id
    found: dict[Named, Value] = {}
    for asset, columns in _by_asset(places):
        rows = _newest_row(store, asset, columns, instrument, moment, scorer)
        row = rows.row(0, named=True) if rows.height else {}
        for place in (p for p in places if p.asset == asset):
            found[place] = Value(
                name=place.name,
                asset=asset,
                column=place.column,
                value=row.get(place.column),
                time=row.get("time"),
                available_at=row.get("available_at"),
                availability_basis=row.get("availability_basis"),
            )
    return [found[place] for place in places]


def series(
    store: Store,
    symbol: str,
    places: Sequence[Named],
    days: tuple[date, date],
    moment: Moment,
    scorer: Scorer,
) -> pl.DataFrame:
    """Values of a symbol over days, each row available by the moment.

    Args:
        store, symbol, places, moment, scorer: as `newest`.
        days: [start, end).

    Returns:
        time, available_at (of the latest of the tables read), one column per name, sorted by time;
        null where a table has no row.

    Raises:
        UniverseError: the symbol is unknown.
        FeatureError: two places have the same name.
        DatabaseError: the database does not answer.
    """
    instrument = store.universe.resolve(symbol).id
    beside = side_by_side(store, [instrument], places, days, moment.known_at, scorer)
    return available(beside, places, moment.as_of).drop("symbol")


def side_by_side(
    store: Store,
    symbols: Sequence[str],
    places: Sequence[Named],
    days: tuple[date, date],
    known_at: datetime | None,
    scorer: Scorer,
) -> pl.DataFrame:
    """Values of symbols over days, whenever they became available: see `available`.

    Args:
        store, places, scorer: as `newest`.
        symbols: instrument ids.
        days: [start, end).
        known_at: as this database held them then; None - as it holds them now.

    Returns:
        symbol, time, `available_at/TABLE` of each table read, one column per name; null where a
        table has no row.

    Raises:
        FeatureError: two places have the same name.
        DatabaseError: the database does not answer.
    """
    if len({place.name for place in places}) < len(places):
        raise FeatureError("a feature is named twice; name it once")
    key = pl.DataFrame(schema={"symbol": pl.String, "time": UTC_TIME})
    result = key
    for asset, columns in _by_asset(places):
        rows = _rows(store, asset, columns, symbols, days, known_at, scorer)
        wanted = [pl.col(p.column).alias(p.name) for p in places if p.asset == asset]
        moment = pl.col("available_at").alias(moment_of(asset))
        own = rows.select("symbol", "time", moment, *wanted)
        result = result.join(own, on=key.columns, how="full", coalesce=True)
    return result


def available(frame: pl.DataFrame, places: Sequence[Named], as_of: datetime) -> pl.DataFrame:
    """What of values side by side was available by a moment.

    Returns:
        symbol, time, available_at (of the latest of the tables read), one column per name, sorted
        by symbol and time; null where a table had no row by then.
    """
    seen = {p.asset: pl.col(moment_of(p.asset)) <= as_of for p in places}
    latest = pl.max_horizontal(pl.when(yes).then(moment_of(a)) for a, yes in seen.items())
    return (
        frame.select(
            "symbol",
            "time",
            latest.alias("available_at"),
            *(pl.when(seen[p.asset]).then(p.name).alias(p.name) for p in places),
        )
        .filter(pl.col("available_at").is_not_null())
        .sort("symbol", "time")
    )


def moment_of(asset: str) -> str:
    """The column of `side_by_side` with when the rows of a table became available."""
    return f"available_at/{asset}"


def _by_asset(places: Sequence[Named]) -> list[tuple[str, list[str]]]:
    ordered = sorted(places, key=lambda place: place.asset)
    return [
        (asset, list(dict.fromkeys(p.column for p in group)))
        for asset, group in groupby(ordered, key=lambda place: place.asset)
    ]


def _newest_row(
    store: Store,
    asset: str,
    columns: Sequence[str],
    symbol: str,
    moment: Moment,
    scorer: Scorer,
) -> pl.DataFrame:
    if moment.known_at is None or not store.tables[asset].derived:
        return store.newest_row(
            asset,
            [*_TIMES, *columns],
            symbol,
            as_of=moment.as_of,
            as_known_at=moment.known_at,
        )
    bars = f"ohlcv_{store.tables[asset].timeframe}"
    bar = store.newest_row(bars, ["time"], symbol, as_of=moment.as_of, as_known_at=moment.known_at)
    if bar.is_empty():
        return bar
    day = bar["time"].dt.date().item()
    days = (day, day + timedelta(days=1))
    rows = as_known_at(store, asset, columns, [symbol], days, moment.known_at, scorer)
    return rows.filter(time=bar["time"].item())


def _rows(
    store: Store,
    asset: str,
    columns: Sequence[str],
    symbols: Sequence[str],
    days: tuple[date, date],
    known_at: datetime | None,
    scorer: Scorer,
) -> pl.DataFrame:
    if known_at is None or not store.tables[asset].derived:
        return store.read(
            asset,
            [*_TIMES, *columns],
            start=days[0],
            end=days[1],
            symbols=symbols,
            as_known_at=known_at,
        )
    return as_known_at(store, asset, columns, symbols, days, known_at, scorer)
