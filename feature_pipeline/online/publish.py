"""The one way to write to Redis: frames in, one Lua script for all of them.

Whatever the order in which writers arrive - live, backfill, correction, a retry - the script
(`publish.lua`) leaves the newest version of each item under all of its keys. Which rows are the
newest in the database, and when to publish, is decided by the caller; what to do when Redis was
lost, in `rebuild`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.resources import files
from itertools import chain
from typing import Any, Literal

import polars as pl
import redis
from redis.exceptions import NoScriptError, RedisError

from feature_pipeline.errors import OnlineError, SchemaError
from feature_pipeline.online import keys
from feature_pipeline.online.client import online_error
from feature_pipeline.schemas import STATE_VECTOR_FIELDS
from feature_pipeline.symbols import SYMBOL_PATTERN

DEFAULT_TTL = timedelta(days=21)
"""Outlasts the longest market closure, so that no key expires over a holiday: since 2000 the
longest gap between two closes was 17 days (Shanghai's New Year), 12 in Taipei, 11 in Tokyo, 7 in
New York. It only cleans up what is no longer published; freshness is the reader's to judge."""

FUTURE_TOLERANCE = timedelta(seconds=5)
"""How far beyond the *server's* clock an `as_of` may lie; further would poison the key."""

REGIME_LABEL, REGIME_CONFIDENCE = "regime", "regime_confidence"
"""The columns that also go to `regime:{timeframe}:{symbol}`, as `label` and `confidence`."""

ITEMS_PER_CALL = 50
"""Items that one call of the script handles. The server does nothing else meanwhile: a call takes
about 2 ms, well inside a reader's 50."""
CALLS_PER_PIPELINE = 40

_LUA = files(__package__).joinpath("publish.lua").read_bytes()
_SHA = hashlib.sha1(_LUA, usedforsecurity=False).hexdigest()

_SEPARATOR = "\x1f"
_VERSION = ("available_at", "revision")
_RESERVED = ("as_of_us",)
_BOOKKEEPING = ("time", "availability_basis", "recorded_at", "computed_at", "run_id", "missing")
_EXACT = 2**53  # integers beyond it collide in Lua's doubles


@dataclass(frozen=True)
class PublishReport:
    """What became of the rows of one publication.

    Args:
        written: items of which at least one key was set.
        refreshed: items that were there in the same version; only their TTL was renewed.
        older: items of which something newer is there; nothing was touched.
        refused: items that could not be published, and why.
        complete: whether Redis holds everything; False means that it was lost and that
            `rebuild.republish_all` is due.
    """

    written: int = 0
    refreshed: int = 0
    older: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    complete: bool = True

    @property
    def total(self) -> int:
        """How many rows there were."""
        return self.written + self.refreshed + self.older + len(self.refused)

    def __add__(self, other: PublishReport) -> PublishReport:
        return PublishReport(
            self.written + other.written,
            self.refreshed + other.refreshed,
            self.older + other.older,
            self.refused | other.refused,
            self.complete and other.complete,
        )


@dataclass(frozen=True)
class _Slot:
    """One key per item: its names, its payloads, and the hint that goes with a change."""

    key: pl.Expr
    payload: pl.Expr | pl.Series
    names: tuple[str, ...] = ()  # empty: a plain string
    channel: str = ""
    watched: str = ""  # the hint goes out only when this field's value changes


def publish(
    client: redis.Redis, rows: pl.DataFrame, timeframe: str, ttl: timedelta = DEFAULT_TTL
) -> PublishReport:
    """Publish the newest row of each symbol: state vector, features by name, regime.

    Args:
        client: a `publishing_client`, or a serving one for a write-back.
        rows: one row per symbol: `symbol`, `available_at` (UTC), `revision`, the 14 state fields,
            any number of feature columns (numbers, booleans, text), and optionally `regime` and
            `regime_confidence`. Null and NaN are missing. `time`, `availability_basis`, `missing`
            and audit columns are ignored.
        timeframe: `1d`, ...
        ttl: how long the keys live without being published again.

    Raises:
        SchemaError: a column is missing or of a type that cannot be published.
        OnlineError: Redis does not answer or refuses.
    """
    what = "rows to publish"
    _require(what, rows, ("symbol", *_VERSION, *STATE_VECTOR_FIELDS))
    for name in STATE_VECTOR_FIELDS:
        if not (rows.schema[name].is_numeric() or rows.schema[name] == pl.Null):
            raise SchemaError(f"{what}: {name} is {rows.schema[name]}; a state field is a number")
    rows, report = _publishable(rows, pl.col("symbol"))
    if rows.is_empty():
        return report
    rows = _numbers(what, rows, ("symbol", *_VERSION, *_BOOKKEEPING))
    return report + _send(client, rows, pl.col("symbol"), _symbol_slots(rows, timeframe), ttl)


def publish_hashes(
    client: redis.Redis,
    rows: pl.DataFrame,
    kind: Literal["macro", "sentiment"],
    ttl: timedelta = DEFAULT_TTL,
) -> PublishReport:
    """Publish the newest macro value per series, or sentiment per symbol and source.

    Args:
        client: a `publishing_client`.
        rows: one row per item: `series_id` (macro) or `symbol` and `source` (sentiment),
            `available_at` (UTC), `revision`, and the fields of the hash, `value` among them for
            macro. Null and NaN are missing.
        kind: which of the two.
        ttl: how long the keys live without being published again.

    Returns:
        The report; `refused` is by key.

    Raises:
        SchemaError: a column is missing or of a type that cannot be published.
        OnlineError: Redis does not answer or refuses.
    """
    what = f"{kind} rows to publish"
    key_columns: tuple[str, ...] = ("symbol", "source")
    also: tuple[str, ...] = ()
    if kind == "macro":
        key_columns, also = ("series_id",), ("value",)
        key = keys.MACRO_PREFIX + pl.col("series_id")
    else:
        key = pl.format(keys.SENTIMENT, "symbol", "source")
    _require(what, rows, (*key_columns, *_VERSION, *also))
    rows, report = _publishable(rows, key, about=key_columns[0])
    if rows.is_empty():
        return report
    rows = _numbers(what, rows, (*key_columns, *_VERSION, *_BOOKKEEPING))
    fields = {name: name for name in _fields(rows, *key_columns)}
    return report + _send(client, rows, key, [_hash(key, fields)], ttl)


# -- frames to payloads ---------------------------------------------------------------------------


def _require(what: str, rows: pl.DataFrame, columns: Sequence[str]) -> None:
    absent = [name for name in columns if name not in rows.columns]
    if absent:
        raise SchemaError(f"{what} lack column(s) {', '.join(absent)}")
    reserved = [name for name in _RESERVED if name in rows.columns]
    if reserved:
        raise SchemaError(f"{what} have a column {reserved[0]}, which is reserved: rename it")
    available_at, revision = rows.schema["available_at"], rows.schema["revision"]
    if not isinstance(available_at, pl.Datetime) or available_at.time_zone is None:
        raise SchemaError(f"{what}: available_at is {available_at}, it must be a time with zone")
    if not revision.is_integer():
        raise SchemaError(f"{what}: revision is {revision}, it must be an integer")


def _publishable(
    rows: pl.DataFrame, name: pl.Expr, about: str = "symbol"
) -> tuple[pl.DataFrame, PublishReport]:
    """The rows that have a key and a version, with `as_of_us`; the others with their reason."""
    rows = rows.with_columns(
        as_of_us=pl.col("available_at").dt.epoch("us"), revision=pl.col("revision").cast(pl.Int64)
    )
    reason = (
        pl.when(name.is_null() | (name == ""))
        .then(pl.lit("it has no name"))
        .when(~pl.col(about).cast(pl.String).str.contains(f"^({SYMBOL_PATTERN})$"))
        .then(pl.lit("its name can be no symbol"))
        .when(pl.col("available_at").is_null())
        .then(pl.lit("available_at is missing"))
        .when(pl.col("revision").is_null())
        .then(pl.lit("revision is missing"))
        .when(pl.col("revision").is_between(-_EXACT, _EXACT).not_())
        .then(pl.lit("revision is beyond 2^53"))
    )
    judged = rows.select(name=name.fill_null("(no name)"), reason=reason)
    bad = judged.filter(pl.col("reason").is_not_null())
    if bad.is_empty():
        return rows, PublishReport()
    refused = dict(zip(bad["name"].to_list(), bad["reason"].to_list(), strict=True))
    return rows.filter(judged["reason"].is_null()), PublishReport(refused=refused)


def _numbers(what: str, rows: pl.DataFrame, apart: Sequence[str]) -> pl.DataFrame:
    """The rows with booleans as 0 and 1 and with NaN and empty text as null.

    Raises:
        SchemaError: a column is neither a number nor a boolean nor text.
    """
    clean: list[pl.Expr] = []
    for name, dtype in rows.schema.items():
        if name in apart:
            continue
        if dtype.is_float():
            clean.append(pl.col(name).cast(pl.Float64).fill_nan(None))
        elif dtype == pl.Boolean:
            clean.append(pl.col(name).cast(pl.Int8))
        elif dtype in (pl.String, pl.Categorical, pl.Enum):
            text = pl.col(name).cast(pl.String).str.replace_all(_SEPARATOR, " ", literal=True)
            clean.append(pl.when(text != "").then(text).alias(name))
        elif not dtype.is_integer() and dtype != pl.Null:
            raise SchemaError(
                f"{what}: column {name} is {dtype}; publish numbers, booleans and text"
            )
    return rows.with_columns(clean)


def _symbol_slots(rows: pl.DataFrame, timeframe: str) -> list[_Slot]:
    """A symbol's keys: the packed vector, the features by name, the regime where there is one."""
    matrix = rows.select(pl.col(STATE_VECTOR_FIELDS).cast(pl.Float64).fill_null(float("nan")))
    packed = keys.pack(matrix.to_numpy(), rows["as_of_us"].to_numpy(), rows["revision"].to_numpy())
    names = _fields(rows, "symbol")
    symbol = pl.col("symbol")
    slots = [
        _Slot(
            keys.vector_prefix(timeframe) + symbol,
            pl.Series("sv", packed, dtype=pl.Binary),
            channel=keys.CHANNEL_STATE_VECTORS,
        ),
        _hash(keys.features_prefix(timeframe) + symbol, {name: name for name in names}),
    ]
    if REGIME_LABEL in names:
        columns = {REGIME_LABEL: "label", REGIME_CONFIDENCE: "confidence"}
        slots.append(
            _hash(
                keys.regime_prefix(timeframe) + symbol,
                {column: name for column, name in columns.items() if column in names},
                channel=keys.CHANNEL_REGIME,
                watched="label",
            )
        )
    return slots


def _fields(rows: pl.DataFrame, *key_columns: str) -> list[str]:
    """The columns that go into a hash by name."""
    apart = {*key_columns, "as_of_us", *_VERSION, *_BOOKKEEPING}
    return [name for name in rows.columns if name not in apart]


def _hash(key: pl.Expr, fields: dict[str, str], channel: str = "", watched: str = "") -> _Slot:
    """A hash with the columns as fields (column -> field name), and the absent ones' names.

    A Float64 is written with the fewest digits that read back as the same number.
    """
    missing = pl.concat_str(
        [pl.when(pl.col(c).is_null()).then(pl.lit(name)) for c, name in fields.items()],
        separator=",",
        ignore_nulls=True,
    )
    values = [pl.col(column).cast(pl.String).fill_null("") for column in fields]
    payload = pl.concat_str([*values, missing], separator=_SEPARATOR) + _SEPARATOR
    return _Slot(key, payload.cast(pl.Binary), (*fields.values(), "missing"), channel, watched)


# -- payloads to Redis ----------------------------------------------------------------------------


def _send(
    client: redis.Redis, rows: pl.DataFrame, name: pl.Expr, slots: list[_Slot], ttl: timedelta
) -> PublishReport:
    """Run the script over all rows, `ITEMS_PER_CALL` at a time, and add up its answers."""
    seconds = int(ttl.total_seconds())
    if seconds < 1:
        raise OnlineError(f"the time to live is {ttl}: give at least one second")
    tolerance_us = FUTURE_TOLERANCE // timedelta(microseconds=1)
    head: list[Any] = [seconds, tolerance_us, keys.CHANNEL_ALERTS, len(slots)]
    for slot in slots:
        names = "".join(f"{n}{_SEPARATOR}" for n in slot.names)
        head += [slot.channel, slot.watched, names]
    columns = rows.select(
        name=name,
        as_of=pl.col("as_of_us").cast(pl.String),
        revision=pl.col("revision").cast(pl.String),
        **{f"key_{i}": slot.key for i, slot in enumerate(slots)},
        **{f"payload_{i}": slot.payload for i, slot in enumerate(slots)},
    )
    item_keys = list(zip(*(columns[f"key_{i}"] for i in range(len(slots))), strict=True))
    payloads = (columns[f"payload_{i}"] for i in range(len(slots)))
    items = list(zip(columns["as_of"], columns["revision"], *payloads, strict=True))
    calls = [
        (
            [keys.SENTINEL, *chain.from_iterable(item_keys[at : at + ITEMS_PER_CALL])],
            [*head, *chain.from_iterable(items[at : at + ITEMS_PER_CALL])],
        )
        for at in range(0, len(items), ITEMS_PER_CALL)
    ]
    answers = [
        answer
        for at in range(0, len(calls), CALLS_PER_PIPELINE)
        for answer in _evaluate(client, calls[at : at + CALLS_PER_PIPELINE])
    ]
    statuses = b"".join(answer[1:] for answer in answers)
    refused = columns.select("name", status=pl.Series(list(statuses), dtype=pl.UInt8)).filter(
        pl.col("status") == ord("f")
    )
    reason = f"its available_at is more than {FUTURE_TOLERANCE.seconds} s beyond the Redis clock"
    return PublishReport(
        written=statuses.count(b"w"),
        refreshed=statuses.count(b"r"),
        older=statuses.count(b"o"),
        refused=dict.fromkeys(refused["name"].to_list(), reason),
        complete=all(answer[:1] == b"1" for answer in answers),
    )


def _evaluate(client: redis.Redis, calls: list[tuple[list[Any], list[Any]]]) -> list[bytes]:
    """The script's answers, all calls in one round trip.

    No MULTI: each call is atomic by itself and items are independent. A server that was
    restarted, or told SCRIPT FLUSH, has forgotten the script: it is loaded and the calls repeated.

    Raises:
        OnlineError: Redis does not answer or refuses.
    """
    try:
        for attempt in range(3):
            with client.pipeline(transaction=False) as pipeline:
                for item_keys, arguments in calls:
                    pipeline.evalsha(_SHA, len(item_keys), *item_keys, *arguments)
                answers = pipeline.execute(raise_on_error=False)
            errors = [answer for answer in answers if isinstance(answer, Exception)]
            if not errors:
                return answers
            if attempt == 2 or not isinstance(errors[0], NoScriptError):
                raise errors[0]
            client.script_load(_LUA.decode())
        raise AssertionError("unreachable")
    except RedisError as error:
        raise online_error(client, error) from error
