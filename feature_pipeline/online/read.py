"""Answers from Redis: state vectors, features by name, regime, sentiment, macro values.

Every answer carries where it comes from, its `as_of`, its age and whether it is fresh by the
caller's limit. An absent key is None. Nothing is computed here; what falls through to the
database is loaded by the caller's function and written back by `publish`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import redis
from redis.exceptions import RedisError

from feature_pipeline.errors import OnlineError
from feature_pipeline.online import keys
from feature_pipeline.online.client import online_error
from feature_pipeline.online.publish import DEFAULT_TTL, FUTURE_TOLERANCE, publish
from feature_pipeline.schemas import STATE_VECTOR_FIELDS

_log = logging.getLogger(__name__)

_VERSION = ("as_of_us", "revision", "missing")
_AHEAD = -FUTURE_TOLERANCE


@dataclass(slots=True)
class Answer:
    """What every answer carries.

    Args:
        key: the Redis key.
        as_of: when the value became available, UTC.
        revision: the ledger's sequence.
        age: how long ago that was.
        fresh: whether the age is within the caller's limit.
        source: `online`, or `database` where it fell through.
        missing: names of the fields that have no value.
    """

    key: str
    as_of: datetime
    revision: int
    age: timedelta
    fresh: bool
    source: Literal["online", "database"]
    missing: tuple[str, ...]


@dataclass(slots=True)
class VectorAnswer(Answer):
    """A state vector: 14 float64 in the order of `STATE_VECTOR_FIELDS`, NaN where missing."""

    values: npt.NDArray[np.float64]


@dataclass(slots=True)
class HashAnswer(Answer):
    """Fields by name: numbers as float, text as str, None where missing."""

    fields: dict[str, float | str | None]


def is_fresh(age: timedelta, max_age: timedelta) -> bool:
    """Whether a value of that age is within the limit.

    A value that lies ahead of the asker's clock by more than the tolerance between two clocks is
    not fresh either: at that moment it could not have been known.
    """
    return _AHEAD <= age <= max_age


def read_state_vector(
    client: redis.Redis, symbol: str, timeframe: str, now: datetime, max_age: timedelta
) -> VectorAnswer | None:
    """The newest state vector of a symbol, or None.

    Args:
        client: a `serving_client`.
        symbol: instrument id.
        timeframe: `1d`, ...
        now: the moment of asking, with a time zone; ages count from it.
        max_age: past this age the answer is not fresh.

    Raises:
        OnlineError: Redis does not answer or refuses, or the key holds an unknown format.
    """
    key = keys.vector_key(timeframe, symbol)
    try:
        data: Any = client.get(key)
    except RedisError as error:
        raise online_error(client, error) from error
    if data is None:
        return None
    vector = keys.unpack(data, key)
    as_of, age, fresh = _judge(vector.as_of_us, now, max_age)
    return VectorAnswer(
        key, as_of, vector.revision, age, fresh, "online", vector.missing, vector.values
    )


def read_state_vectors(
    client: redis.Redis,
    symbols: Sequence[str],
    timeframe: str,
    now: datetime,
    max_age: timedelta,
) -> dict[str, VectorAnswer | None]:
    """The newest state vector of each symbol, in one round trip; None where absent.

    Arguments and errors are those of `read_state_vector`.
    """
    if not symbols:
        return {}
    names = [keys.vector_key(timeframe, symbol) for symbol in symbols]
    try:
        blobs: Any = client.mget(names)
    except RedisError as error:
        raise online_error(client, error) from error
    present = [i for i, blob in enumerate(blobs) if blob is not None]
    vectors = keys.unpack_many([blobs[i] for i in present], [names[i] for i in present])
    answers: dict[str, VectorAnswer | None] = dict.fromkeys(symbols)
    # Symbols of one exchange share their moment: judge each moment once.
    judged = {us: _judge(us, now, max_age) for us in {vector.as_of_us for vector in vectors}}
    for i, vector in zip(present, vectors, strict=True):
        as_of, age, fresh = judged[vector.as_of_us]
        answers[symbols[i]] = VectorAnswer(
            names[i],
            as_of,
            vector.revision,
            age,
            fresh,
            "online",
            vector.missing,
            vector.values,
        )
    return answers


def _judge(as_of_us: int, now: datetime, max_age: timedelta) -> tuple[datetime, timedelta, bool]:
    as_of = keys.as_datetime(as_of_us)
    age = now - as_of
    return as_of, age, is_fresh(age, max_age)


def read_features(
    client: redis.Redis,
    symbol: str,
    timeframe: str,
    now: datetime,
    max_age: timedelta,
    fields: Sequence[str] | None = None,
) -> HashAnswer | None:
    """The newest features and state fields of a symbol by name, or None.

    Args:
        client: a `serving_client`.
        symbol: instrument id.
        timeframe: `1d`, ...
        now: the moment of asking, with a time zone; ages count from it.
        max_age: past this age the answer is not fresh.
        fields: only these; all of them by default.

    Raises:
        OnlineError: Redis does not answer or refuses, or the key is not one of ours.
    """
    return read_hash(client, keys.features_key(timeframe, symbol), now, max_age, fields)


def read_regime(
    client: redis.Redis, symbol: str, timeframe: str, now: datetime, max_age: timedelta
) -> HashAnswer | None:
    """The newest regime of a symbol: `label` and `confidence`, or None."""
    return read_hash(client, keys.regime_key(timeframe, symbol), now, max_age)


def read_sentiment(
    client: redis.Redis, symbol: str, source: str, now: datetime, max_age: timedelta
) -> HashAnswer | None:
    """The newest sentiment of a symbol from one source, or None."""
    return read_hash(client, keys.sentiment_key(symbol, source), now, max_age)


def read_macro(
    client: redis.Redis, series_id: str, now: datetime, max_age: timedelta
) -> HashAnswer | None:
    """The newest `value` of a macro series, or None."""
    return read_hash(client, keys.macro_key(series_id), now, max_age)


def read_hash(
    client: redis.Redis,
    key: str,
    now: datetime,
    max_age: timedelta,
    fields: Sequence[str] | None = None,
) -> HashAnswer | None:
    """The hash under one of our keys, or None.

    Raises:
        OnlineError: Redis does not answer or refuses, or the key is not one of ours.
    """
    held: dict[str, bytes | None]
    try:
        if fields is None:
            found: Any = client.hgetall(key)
            held = {name.decode(): value for name, value in found.items()}
        else:
            names = (*_VERSION, *fields)
            found = client.hmget(key, names)
            held = dict(zip(names, found, strict=True))
    except RedisError as error:
        raise online_error(client, error) from error
    as_of_us, revision, missing = (held.pop(name, None) for name in _VERSION)
    if as_of_us is None and not any(value is not None for value in held.values()):
        return None
    try:
        as_of, age, fresh = _judge(int(as_of_us or b""), now, max_age)
        known_revision = int(revision or b"")
    except (ValueError, OverflowError):
        raise OnlineError(
            f"{key} holds no as_of_us and revision: another program wrote it; run "
            "`online rebuild --force`"
        ) from None
    absent = tuple(missing.decode().split(",")) if missing else ()
    values = {name: _value(value) for name, value in held.items()}
    if fields is None:
        values |= dict.fromkeys(absent)
    else:
        absent = tuple(name for name in absent if name in values)
    return HashAnswer(
        key=key,
        as_of=as_of,
        revision=known_revision,
        age=age,
        fresh=fresh,
        source="online",
        missing=absent,
        fields=values,
    )


def _value(text: bytes | None) -> float | str | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text.decode()


def fall_through(
    client: redis.Redis,
    symbols: Sequence[str],
    timeframe: str,
    now: datetime,
    max_age: timedelta,
    load: Callable[[list[str]], pl.DataFrame],
    ttl: timedelta = DEFAULT_TTL,
) -> dict[str, VectorAnswer | None]:
    """State vectors from Redis, from the database where Redis has none that is fresh.

    What comes from the database is written back through the publishing script, so that a slow
    reader cannot overwrite what a writer published meanwhile. The newer of the two is the answer:
    a stale value stays stale if the database has nothing newer. A Redis that does not answer costs
    one deadline, is logged, and everything comes from the database.

    Args:
        client: a `serving_client`.
        symbols: instrument ids.
        timeframe: `1d`, ...
        now: the moment of asking, with a time zone; ages count from it.
        max_age: past this age an answer is not fresh.
        load: the newest row of each of the symbols it is given, in the form `publish` takes.
        ttl: of what is written back.

    Raises:
        SchemaError: the loaded rows cannot be published.
        Whatever `load` raises.
    """
    reachable = True
    try:
        answers = read_state_vectors(client, symbols, timeframe, now, max_age)
    except OnlineError as error:
        _log.warning("reading from the database: %s", error)
        answers, reachable = dict.fromkeys(symbols), False
    wanted = [symbol for symbol, answer in answers.items() if answer is None or not answer.fresh]
    if not wanted:
        return answers
    rows = load(wanted)
    if reachable and not rows.is_empty():
        try:
            publish(client, rows, timeframe, ttl)
        except OnlineError as error:
            _log.warning("nothing written back: %s", error)
    for symbol, loaded in _database_answers(rows, timeframe, now, max_age).items():
        held = answers.get(symbol)
        if held is None or (held.as_of, held.revision) < (loaded.as_of, loaded.revision):
            answers[symbol] = loaded
    return answers


def _database_answers(
    rows: pl.DataFrame, timeframe: str, now: datetime, max_age: timedelta
) -> dict[str, VectorAnswer]:
    rows = rows.drop_nulls(["symbol", "available_at", "revision"])
    values = rows.select(
        pl.col(STATE_VECTOR_FIELDS).cast(pl.Float64).fill_null(float("nan"))
    ).to_numpy()
    answers = {}
    for symbol, as_of, revision, vector in zip(
        rows["symbol"],
        rows["available_at"].dt.convert_time_zone("UTC"),
        rows["revision"],
        values,
        strict=True,
    ):
        age = now - as_of
        answers[symbol] = VectorAnswer(
            key=keys.vector_key(timeframe, symbol),
            as_of=as_of,
            revision=revision,
            age=age,
            fresh=is_fresh(age, max_age),
            source="database",
            missing=tuple(
                n for n, gone in zip(STATE_VECTOR_FIELDS, np.isnan(vector), strict=True) if gone
            ),
            values=vector,
        )
    return answers
