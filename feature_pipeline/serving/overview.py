"""One symbol at a glance: what Redis serves of it now, and its last sessions from the database.

Both stores may be away: what the other one has is the answer then, with a note that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import polars as pl
import redis

from feature_pipeline.errors import DatabaseError, OnlineError
from feature_pipeline.online.read import (
    HashAnswer,
    VectorAnswer,
    fall_through,
    read_features,
    read_state_vector,
)
from feature_pipeline.storage.store import Store

SESSIONS = 60


@dataclass(frozen=True)
class Overview:
    """What there is to see of a symbol.

    Args:
        symbol: instrument id.
        vector: the newest state vector, from Redis, or from the database where Redis has none.
        features: every feature and field by name, from Redis.
        history: `time` and one column per feature and field, a row per session of the last ones up
            to the newest row, null where there is no value; None where the database is away.
        notes: what could not be asked.
    """

    symbol: str
    vector: VectorAnswer | None
    features: HashAnswer | None
    history: pl.DataFrame | None
    notes: list[str] = field(default_factory=list)


def overview(
    store: Store,
    client: redis.Redis,
    symbol: str,
    timeframe: str,
    now: datetime,
    max_age: timedelta,
    load: Callable[[list[str]], pl.DataFrame],
    sessions: int = SESSIONS,
) -> Overview:
    """What both stores have of a symbol.

    Args:
        store, client: the two of them.
        symbol: an id or a symbol.
        timeframe: `1d`, ...
        now: the moment of asking, with a time zone.
        max_age: past this age the vector is not fresh.
        load: the newest row of symbols in the database, in the form that `publish` takes.
        sessions: how many of history.

    Raises:
        UniverseError: the symbol is unknown.
        OnlineError: neither store answers.
    """
    instrument = store.universe.resolve(symbol).id
    notes: list[str] = []
    vector: VectorAnswer | None = None
    features: HashAnswer | None = None
    history: pl.DataFrame | None = None
    try:
        vector = fall_through(client, [instrument], timeframe, now, max_age, load)[instrument]
        history = last_sessions(store, instrument, timeframe, sessions)
    except DatabaseError as error:
        notes.append(f"no history: {error}")
        vector = read_state_vector(client, instrument, timeframe, now, max_age)
    try:
        features = read_features(client, instrument, timeframe, now, max_age)
    except OnlineError as error:
        if vector is None:
            raise
        notes.append(f"from the database alone: {error}")
    return Overview(instrument, vector, features, history, notes)


def last_sessions(store: Store, symbol: str, timeframe: str, sessions: int) -> pl.DataFrame:
    """The features and state fields of a symbol's last bars, up to its newest state vector.

    Returns:
        `time` and their columns, a row per bar of the grid, null where there is no value; no row
        where there is no state vector.
    """
    vectors, features = f"state_vectors_{timeframe}", f"features_{timeframe}"
    newest = store.newest_row(vectors, ["time"], symbol)
    wanted = {asset: _numbers(store, asset) for asset in (vectors, features)}
    empty = pl.DataFrame(schema={"time": store.tables[vectors].column("time").dtype})
    if newest.is_empty():
        return empty.with_columns(
            pl.lit(None, pl.Float64).alias(n) for names in wanted.values() for n in names
        )
    day = newest["time"].dt.date().item()
    end = day + timedelta(days=1)
    start = store.universe.lookback_start(day, sessions - 1, timeframe)
    grid = store.universe.bars(timeframe, start, end, [symbol])
    frame = grid.filter(pl.col("time") <= newest["time"].item()).select("time").tail(sessions)
    for asset, names in wanted.items():
        rows = store.read(asset, ["time", *names], start=start, end=end, symbols=[symbol])
        frame = frame.join(rows.select("time", *names), on="time", how="left")
    return frame.sort("time")


def _numbers(store: Store, asset: str) -> Sequence[str]:
    return [c.name for c in store.tables[asset].columns if c.dtype == pl.Float64]
