"""Whether Redis says what the database says: versions and values, key by key.

Reads only. What should be there comes from the caller, as the rows that `publish` takes; which
difference is a fault is the caller's to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import redis
from redis.exceptions import RedisError, ResponseError

from feature_pipeline.errors import OnlineError
from feature_pipeline.online import keys
from feature_pipeline.online.client import online_error
from feature_pipeline.schemas import STATE_VECTOR_FIELDS

MISSING, OLDER, NEWER, UNLIKE = "missing", "older", "newer", "unlike"
"""What can be wrong with a key: it is not there; it holds an older or a newer version than the
database; it holds other values under the same version, or nothing that can be read."""

DIFFERENCES = pl.Schema({"symbol": pl.String, "key": pl.String, "is": pl.String, "says": pl.String})


def differences(client: redis.Redis, rows: pl.DataFrame, timeframe: str) -> pl.DataFrame:
    """Where the packed vectors and the feature hashes differ from the rows.

    Args:
        client: any client of that Redis.
        rows: one row per symbol, as `publish` takes them.
        timeframe: `1d`, ...

    Returns:
        `symbol`, `key`, `is` (`missing`, `older`, `newer`, `unlike`) and `says`, in words; no row
        where Redis says exactly what the database says.

    Raises:
        OnlineError: Redis does not answer or refuses.
    """
    rows = rows.drop_nulls(["symbol", "available_at", "revision"]).with_columns(
        as_of_us=pl.col("available_at").dt.epoch("us")
    )
    if rows.is_empty():
        return pl.DataFrame(schema=DIFFERENCES)
    symbols = rows["symbol"].to_list()
    vectors = [keys.vector_key(timeframe, symbol) for symbol in symbols]
    hashes = [keys.features_key(timeframe, symbol) for symbol in symbols]
    try:
        with client.pipeline(transaction=False) as pipeline:
            pipeline.mget(vectors)
            for key in hashes:
                pipeline.hgetall(key)
            blobs, *held = pipeline.execute(raise_on_error=False)
        for answer in (blobs, *held):
            if isinstance(answer, RedisError) and not isinstance(answer, ResponseError):
                raise answer
        if isinstance(blobs, ResponseError):
            raise blobs
    except RedisError as error:
        raise online_error(client, error) from error
    return pl.concat([_vectors(rows, vectors, blobs), _hashes(rows, hashes, held)])


def _vectors(rows: pl.DataFrame, names: Sequence[str], blobs: Sequence[Any]) -> pl.DataFrame:
    """The packed vectors: equal ones are equal bytes."""
    matrix = rows.select(pl.col(STATE_VECTOR_FIELDS).cast(pl.Float64).fill_null(float("nan")))
    packed = keys.pack(matrix.to_numpy(), rows["as_of_us"].to_numpy(), rows["revision"].to_numpy())
    wrong = []
    for i, (blob, wanted) in enumerate(zip(blobs, packed, strict=True)):
        if blob == wanted:
            continue
        symbol, name = rows["symbol"][i], names[i]
        if blob is None:
            wrong.append((symbol, name, MISSING, f"{name} is not there"))
            continue
        try:
            here, there = keys.unpack(wanted), keys.unpack(blob, name)
        except OnlineError as error:
            wrong.append((symbol, name, UNLIKE, str(error)))
            continue
        kind, said = _versions(name, here, there)
        if kind == UNLIKE:
            fields = [
                f"{field} is {b:g}, in the database {a:g}"
                for field, a, b in zip(STATE_VECTOR_FIELDS, here.values, there.values, strict=True)
                if a != b and not (a != a and b != b)
            ]
            said = f"{name}: {', '.join(fields[:3]) or 'its list of missing fields differs'}"
        wrong.append((symbol, name, kind, said))
    return pl.DataFrame(wrong, schema=DIFFERENCES, orient="row")


def _versions(name: str, here: keys.StateVector, there: keys.StateVector) -> tuple[str, str]:
    ours, theirs = (here.as_of_us, here.revision), (there.as_of_us, there.revision)
    if theirs == ours:
        return UNLIKE, ""
    kind = OLDER if theirs < ours else NEWER
    return kind, (
        f"{name} is of {there.as_of:%Y-%m-%d %H:%M} UTC, revision {there.revision}; the database "
        f"has {here.as_of:%Y-%m-%d %H:%M} UTC, revision {here.revision}"
    )


def _hashes(rows: pl.DataFrame, names: Sequence[str], held: Sequence[Any]) -> pl.DataFrame:
    """The features by name, where the hash is of the row's version; the vector tells of others."""
    numbers = [
        name
        for name, dtype in rows.schema.items()
        if dtype.is_numeric() and name not in ("as_of_us", "revision")
    ]
    found = pl.DataFrame(
        [
            [None] * (len(numbers) + 2)
            if not isinstance(answer, dict)
            else [_text(answer.get(name.encode())) for name in ("as_of_us", "revision", *numbers)]
            for answer in held
        ],
        schema=dict.fromkeys(["_as_of_us", "_revision", *(f"_{n}" for n in numbers)], pl.String),
        orient="row",
    ).with_columns(
        pl.col("_as_of_us", "_revision").cast(pl.Int64, strict=False),
        pl.col(*(f"_{n}" for n in numbers)).cast(pl.Float64, strict=False),
    )
    both = rows.hstack(found).with_columns(key=pl.Series(names, dtype=pl.String))
    same = (pl.col("_as_of_us") == pl.col("as_of_us")) & (pl.col("_revision") == pl.col("revision"))
    unlike = pl.concat_list(
        pl.when(pl.col(f"_{name}").ne_missing(pl.col(name).cast(pl.Float64).fill_nan(None))).then(
            pl.lit(name)
        )
        for name in numbers
    ).list.drop_nulls()
    return (
        both.with_columns(unlike=unlike)
        .select(
            "symbol",
            "key",
            pl.when(pl.col("_as_of_us").is_null())
            .then(pl.lit(MISSING))
            .when(same.fill_null(value=False) & (pl.col("unlike").list.len() > 0))
            .then(pl.lit(UNLIKE))
            .alias("is"),
            pl.when(pl.col("_as_of_us").is_null())
            .then(pl.format("{} is not there", "key"))
            .otherwise(
                pl.format(
                    "{}: {} differ from the database", "key", pl.col("unlike").list.join(", ")
                )
            )
            .alias("says"),
        )
        .drop_nulls("is")
    )


def _text(value: bytes | None) -> str | None:
    return value.decode() if value else None
