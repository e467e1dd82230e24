"""What Redis holds: key names, channels, and the packed format of a state vector.

Names and bytes only: nothing here connects to a server. Whoever reads our keys without this code
finds in `PACKED` everything needed to unpack them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from feature_pipeline.errors import OnlineError
from feature_pipeline.schemas import STATE_VECTOR_FIELDS, TIMEFRAMES
from feature_pipeline.symbols import checked_symbol

SENTINEL = "feature_pipeline:online"
"""Says whether everything was published; absent once Redis was lost (see `rebuild`)."""

CHANNEL_STATE_VECTORS = "state_vectors"
"""Hint: the message is the `sv:` key that changed."""
CHANNEL_REGIME = "regime"
"""Hint: the message is the `regime:` key whose label changed."""
CHANNEL_ALERTS = "alerts"
"""What a person should know: a JSON object (`automation/alerts.py`), or the bare name of the key
for which a value from the future was refused."""

OWN_PATTERNS = (
    *(f"{kind}:{timeframe}:*" for kind in ("sv", "features", "regime") for timeframe in TIMEFRAMES),
    "sentiment:*:news",
    "sentiment:*:reddit",
    "macro:*",
)
"""Every key that the pipeline writes, the sentinel apart."""


def vector_key(timeframe: str, symbol: str) -> str:
    """The packed state vector of a symbol.

    Raises:
        UniverseError: it can be no symbol; so say all of these.
    """
    return vector_prefix(timeframe) + _part(symbol)


def features_key(timeframe: str, symbol: str) -> str:
    """The hash of every feature and state field of a symbol, by name."""
    return features_prefix(timeframe) + _part(symbol)


def regime_key(timeframe: str, symbol: str) -> str:
    """The hash of a symbol's regime label and confidence."""
    return regime_prefix(timeframe) + _part(symbol)


def sentiment_key(symbol: str, source: str) -> str:
    """The hash of a symbol's newest sentiment from one source."""
    return SENTIMENT.format(_part(symbol), source)


def macro_key(series_id: str) -> str:
    """The hash of a macro series' newest value."""
    return MACRO_PREFIX + _part(series_id)


# For expressions over many symbols, which are checked as a column.

SENTIMENT = "sentiment:{}:{}"
MACRO_PREFIX = "macro:"


def vector_prefix(timeframe: str) -> str:
    """What the keys of state vectors begin with; the symbol follows."""
    return f"sv:{timeframe}:"


def features_prefix(timeframe: str) -> str:
    """What the keys of features begin with."""
    return f"features:{timeframe}:"


def regime_prefix(timeframe: str) -> str:
    """What the keys of regimes begin with."""
    return f"regime:{timeframe}:"


# Readers ask for the same symbols all day; what is wrong is not remembered.
_part = lru_cache(maxsize=1 << 14)(checked_symbol)


# -- the packed state vector ----------------------------------------------------------------------

FORMAT = 1
"""First byte of a packed vector. Another layout or order of fields takes the next number."""

WIDTH = len(STATE_VECTOR_FIELDS)

PACKED = np.dtype(
    [
        ("format", "u1"),
        ("as_of_us", "<i8"),  # microseconds since 1970-01-01 UTC
        ("revision", "<i8"),  # the ledger's sequence
        ("missing", "<u2"),  # bit i set: field i is missing, its value NaN
        ("values", "<f8", (WIDTH,)),  # in the order of STATE_VECTOR_FIELDS
    ]
)
"""One packed vector, without padding: 131 bytes."""

_HEADER = struct.Struct("<BqqH")
_BITS = (1 << np.arange(WIDTH)).astype("<u2")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class StateVector:
    """An unpacked state vector.

    Args:
        values: 14 float64 in the order of `STATE_VECTOR_FIELDS`, NaN where missing.
        as_of_us: when it became available, microseconds since 1970-01-01 UTC.
        revision: the ledger's sequence.
        missing_mask: bit i is set where field i is missing.
    """

    values: npt.NDArray[np.float64]
    as_of_us: int
    revision: int
    missing_mask: int = 0

    @property
    def as_of(self) -> datetime:
        """When it became available, UTC."""
        return as_datetime(self.as_of_us)

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of the fields that are missing."""
        return missing_names(self.missing_mask)


def as_datetime(as_of_us: int) -> datetime:
    """Microseconds since 1970-01-01 as a UTC datetime, exactly."""
    return _EPOCH + timedelta(microseconds=as_of_us)


def missing_names(mask: int) -> tuple[str, ...]:
    """The fields whose bit is set."""
    if not mask:
        return ()
    return tuple(name for i, name in enumerate(STATE_VECTOR_FIELDS) if mask >> i & 1)


def pack(values: npt.ArrayLike, as_of_us: npt.ArrayLike, revision: npt.ArrayLike) -> list[bytes]:
    """Pack many state vectors at once.

    Args:
        values: (n, 14) float64 in the order of `STATE_VECTOR_FIELDS`; NaN is missing.
        as_of_us: (n,) integer microseconds since 1970-01-01 UTC.
        revision: (n,) integers.

    Returns:
        n packed vectors of 131 bytes.
    """
    matrix = np.asarray(values, dtype=np.float64).reshape(-1, WIDTH)
    absent = np.isnan(matrix)
    packed = np.empty(len(matrix), dtype=PACKED)
    packed["format"] = FORMAT
    packed["as_of_us"] = as_of_us
    packed["revision"] = revision
    packed["missing"] = (absent * _BITS).sum(axis=1, dtype=np.uint16)
    # One NaN for all: equal vectors are equal bytes, whatever payload a NaN came with.
    packed["values"] = np.where(absent, np.nan, matrix)
    data, size = packed.tobytes(), PACKED.itemsize
    return [data[at : at + size] for at in range(0, len(data), size)]


def unpack(data: bytes, key: str = "the value") -> StateVector:
    """Unpack one state vector; its values are read-only.

    Raises:
        OnlineError: the bytes are not in the format that this version reads; `key` names them.
    """
    if len(data) != PACKED.itemsize or data[0] != FORMAT:
        raise _not_ours(data, key)
    _, as_of_us, revision, mask = _HEADER.unpack_from(data)
    # The header's 19 bytes leave the numbers unaligned; slicing the bytes first realigns them.
    return StateVector(np.frombuffer(data[_HEADER.size :], "<f8"), as_of_us, revision, mask)


def unpack_many(blobs: Sequence[bytes], keys: Sequence[str]) -> list[StateVector]:
    """Unpack vectors in one go; their values are rows of one (n, 14) float64 matrix.

    Raises:
        OnlineError: a blob is not in the format that this version reads; its key is named.
    """
    size = PACKED.itemsize
    for blob, key in zip(blobs, keys, strict=True):
        if len(blob) != size or blob[0] != FORMAT:
            raise _not_ours(blob, key)
    packed = np.frombuffer(b"".join(blobs), dtype=PACKED)
    return list(
        map(
            StateVector,
            np.ascontiguousarray(packed["values"]),
            packed["as_of_us"].tolist(),
            packed["revision"].tolist(),
            packed["missing"].tolist(),
        )
    )


def _not_ours(data: bytes, key: str) -> OnlineError:
    found = f"format {data[0]}" if data else "nothing"
    return OnlineError(
        f"{key} holds {found} in {len(data)} bytes, this version reads format {FORMAT} in "
        f"{PACKED.itemsize}: use the version that wrote it, or run `online rebuild --force`"
    )
