"""Why something is not there: sessions without a row, and values that are null.

Every reason names a table, a day and what is on record about it. Reads the store; what a null means
for the reader is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from itertools import islice

import polars as pl

from feature_pipeline.features.declarations import (
    ACTIONS,
    BARS,
    INSIDERS,
    MACRO,
    MACRO_SERIES,
    SCORES,
)
from feature_pipeline.features.state_vector import MACRO_MAX_AGE
from feature_pipeline.schemas import FILED_AS_DATA_SINCE, Input, TableSchema
from feature_pipeline.serving.names import Named, every_name, inputs_of, series_of
from feature_pipeline.storage.planning import EVERYBODY, on_grid
from feature_pipeline.storage.store import Store
from feature_pipeline.timeframes import DAILY, at

_SHOWN = 3
_DAY = timedelta(days=1)
_DEPTH = 4
"""Tables that a null is followed through, from a state vector back to bars."""


def why_no_row(
    store: Store, asset: str, symbol: str, after: datetime | None, until: datetime
) -> list[str]:
    """Why the sessions after a row, and finished by a moment, have none.

    Args:
        store: where to look.
        asset: whose rows.
        symbol: instrument id.
        after: `time` of the newest row there is; None - there is no row at all, and the latest
            sessions by then are looked at.
        until: the moment.
    """
    instrument = store.universe.resolve(symbol)
    first = instrument.first_day if after is None else after.date() + _DAY
    if until.date() < first:
        if after is None:
            return [f"{symbol} is collected from {first} on"]
        return []
    sessions = store.universe.sessions(first, until.date() + _DAY, [symbol])
    finished = sessions.filter(pl.col("close") + store.publication_delay <= until)["time"].dt.date()
    if finished.is_empty():
        return [] if after else [f"{symbol} had no session between {first} and {until:%Y-%m-%d}"]
    reasons = _absent(store, asset, symbol, finished.sort(descending=True).to_list())
    return [f"later, {reason}" if after else reason for reason in reasons]


def why_missing(
    store: Store,
    place: Named,
    symbol: str,
    time: datetime,
    available_at: datetime,
    depth: int = _DEPTH,
) -> list[str]:
    """Why a value of a row that is there is null.

    Args:
        store: where to look.
        place: which value.
        symbol: instrument id.
        time, available_at: of its row.
        depth: how many tables to follow a null through.
    """
    table = store.tables[place.asset]
    if not table.derived:
        return [f"{place.path}: {table.column(place.column).description}; the source said nothing"]
    reasons: dict[str, None] = {}
    for needed in inputs_of(place, table):
        reasons |= dict.fromkeys(_of_input(store, place, needed, symbol, time, available_at, depth))
    if not reasons:
        how = place.feature.computation if place.feature else "its rule"
        reasons[f"all that {place.path} reads is there, and {how} yields no number for it"] = None
    return list(reasons)


def _of_input(
    store: Store,
    place: Named,
    needed: Input,
    symbol: str,
    time: datetime,
    available_at: datetime,
    depth: int,
) -> Iterator[str]:
    table = store.tables[needed.asset]
    universe = place.feature is not None and place.feature.universe
    whose = [symbol, *([store.universe.benchmark] if universe else [])]
    frame = store.inputs(needed, time.date(), time.date() + _DAY, symbols=whose)
    if on_grid(table):
        for who in dict.fromkeys(whose):
            own = frame.filter(pl.col("symbol") == who).sort("time")
            yield from _of_bars(store, place, needed, own, who, time, available_at)
        own = frame.filter(pl.col("symbol") == symbol).sort("time")
        yield from _of_values(store, place, needed, own, symbol, available_at, depth)
    elif needed.asset == ACTIONS:
        unknown = frame.filter(
            pl.col("kind").is_null(), pl.col("symbol").is_null() | pl.col("symbol").is_in(whose)
        )
        yield from _not_collected(store, table, unknown["time"].dt.date(), whose)
    elif needed.asset == SCORES:
        unknown = frame.filter(pl.col("document_id").is_null())
        yield from _of_events(store, table, unknown, symbol, available_at, needed.lookback_days)
    elif needed.asset == INSIDERS:
        yield from _of_insiders(store, table, frame, symbol, available_at, needed.lookback_days)
    elif needed.asset == MACRO:
        yield from _of_macro(store, place, table, frame, available_at)


def _of_bars(
    store: Store,
    place: Named,
    needed: Input,
    own: pl.DataFrame,
    symbol: str,
    time: datetime,
    available_at: datetime,
) -> Iterator[str]:
    """Too few sessions, sessions without a row, rows that came too late."""
    want = needed.lookback_bars + 1
    have = own.tail(want)
    if have.height < want:
        first = store.universe.resolve(symbol).first_day
        yield (
            f"warm-up: {place.path} reads {want} sessions of {needed.asset}, and {symbol} has "
            f"{have.height} up to {time:%Y-%m-%d} (it is collected from {first} on)"
        )
    gaps = have.filter(pl.col("available_at").is_null())["time"].dt.date()
    yield from _absent(store, needed.asset, symbol, gaps.sort(descending=True).to_list())
    late = have.filter(pl.col("available_at") > available_at)
    for day, moment in late.select(pl.col("time").dt.date(), "available_at").head(_SHOWN).rows():
        yield (
            f"{needed.asset} of {day} ({symbol}) became available only at "
            f"{moment:%Y-%m-%d %H:%M} UTC, after this row"
        )


def _of_values(
    store: Store,
    place: Named,
    needed: Input,
    own: pl.DataFrame,
    symbol: str,
    available_at: datetime,
    depth: int,
) -> Iterator[str]:
    """Nulls in what was read, followed to where they come from; a market without volume."""
    table = store.tables[needed.asset]
    columns = place.feature.inputs.get(needed.asset, ()) if place.feature else needed.columns
    have = own.tail(needed.lookback_bars + 1).filter(pl.col("available_at").is_not_null())
    for name in (n for n in columns if n in own.columns):
        empty = have.filter(pl.col(name).is_null())
        if empty.height and table.derived and depth:
            time, known = empty.select("time", "available_at").row(-1)
            yield f"{needed.asset}.{name} of {time:%Y-%m-%d} is null, because:"
            source = next(p for p in every_name(store.tables) if p.path == f"{table.asset}.{name}")
            yield from why_missing(store, source, symbol, time, known, depth - 1)
    if "volume" in columns and have.height and not have["volume"].sum():
        yield f"{symbol} has no volume in the {have.height} sessions up to {available_at:%Y-%m-%d}"


def _of_insiders(
    store: Store,
    table: TableSchema,
    frame: pl.DataFrame,
    symbol: str,
    available_at: datetime,
    days: int,
) -> Iterator[str]:
    if symbol not in store.universe.providers("insiders"):
        yield f"universe.yaml names no source of insiders for {symbol}"
        return
    if available_at - timedelta(days=days) < FILED_AS_DATA_SINCE:
        yield f"insiders file their transactions as data since {FILED_AS_DATA_SINCE:%Y-%m-%d} only"
    unknown = frame.filter(pl.col("accession").is_null())
    yield from _of_events(store, table, unknown, symbol, available_at, days)


def _of_events(
    store: Store,
    table: TableSchema,
    unknown: pl.DataFrame,
    symbol: str,
    available_at: datetime,
    days: int,
) -> Iterator[str]:
    """Days of the window that were not collected."""
    unknown = unknown.filter(
        pl.col("symbol").is_null() | (pl.col("symbol") == symbol),
        pl.col("available_at") + _DAY > available_at - timedelta(days=days),
        pl.col("available_at") <= available_at,
    )
    yield from _not_collected(store, table, unknown["available_at"].dt.date(), [symbol])


def _of_macro(
    store: Store, place: Named, table: TableSchema, frame: pl.DataFrame, available_at: datetime
) -> Iterator[str]:
    known = frame.filter(pl.col("available_at") <= available_at)
    unknown = known.filter(pl.col("series_id").is_null())
    for series in series_of(place.feature) or MACRO_SERIES:
        rows = known.filter(pl.col("series_id") == series).sort("time", "available_at")
        if rows.is_empty():
            yield f"no {series} was released in the days before {available_at:%Y-%m-%d}"
            days = unknown["available_at"].dt.date()
            yield from _not_collected(store, table, days, [series])
            continue
        observed, released = rows.select("time", "available_at").row(-1)
        if released <= available_at - MACRO_MAX_AGE:
            yield (
                f"the newest {series} was released at {released:%Y-%m-%d %H:%M} UTC, more than "
                f"{MACRO_MAX_AGE.days} days before"
            )
        since = unknown.filter(pl.col("available_at") > observed)["available_at"].dt.date()
        yield from _not_collected(store, table, since, [series])


def _absent(store: Store, asset: str, symbol: str, days: Sequence[date]) -> list[str]:
    """Why sessions have no row in a table: the exception on record, or that nobody wrote them."""
    if not days:
        return []
    # A derived row follows its bar: where that is missing, its exception says why.
    bars = at(BARS, store.tables[asset].timeframe or DAILY)
    sources = [asset] if not store.tables[asset].derived else [asset, bars]
    span = (min(days), max(days) + _DAY)
    said: dict[date, str] = {}
    for name in sources:
        known = store.ledger.exceptions(name, *span).filter(pl.col("symbol") == symbol)
        for day, reason in known.select("day", "reason").iter_rows():
            said.setdefault(day, f"{name} of {day} ({symbol}): {reason}")
    written = set(store.ledger.revisions(asset, *span)["day"].to_list())
    told = (
        said.get(
            day,
            f"{asset} of {day} ({symbol}) has no row, and nothing on record says why"
            if day in written
            else f"{asset} of {day} is not written; materialise it",
        )
        for day in days
    )
    shown = list(islice(told, _SHOWN))
    if len(days) > len(shown):
        shown.append(f"{len(days) - len(shown)} more sessions down to {min(days)}")
    return shown


def _not_collected(
    store: Store, table: TableSchema, days: pl.Series, whose: Sequence[str]
) -> Iterator[str]:
    """Days of events that were not collected, for everybody or for some of `whose`."""
    days = days.unique().sort(descending=True)
    if days.is_empty():
        return
    span = (days[-1], days[0] + _DAY)
    known = store.ledger.exceptions(table.asset, *span).filter(
        pl.col("symbol").is_in([EVERYBODY, *whose])
    )
    for day in days.head(_SHOWN):
        reasons = known.filter(pl.col("day") == day)["reason"].unique().sort().to_list()
        yield f"{table.asset} of {day} was not collected" + (
            f": {'; '.join(reasons)}" if reasons else "; materialise it"
        )
    if days.len() > _SHOWN:
        yield f"nor was {table.asset} of {days.len() - _SHOWN} more days down to {days[-1]}"
