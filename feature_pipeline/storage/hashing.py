"""Content hashes of rows and days: the same for the same content, whatever carries it.

NumPy integer arithmetic on bit patterns and bytes, and nothing of a library's own hash, so that
a hash stored today is found again by every later version. Independent of row order, column order,
chunks and slices. Not cryptographic: it tells a correction from a repetition, not a forgery.
What the hashes are used for is the writer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import polars as pl
import pyarrow as pa

_U64 = np.uint64
_GOLDEN = _U64(0x9E3779B97F4A7C15)
_MIX_1 = _U64(0xBF58476D1CE4E5B9)
_MIX_2 = _U64(0x94D049BB133111EB)
_NULL = _U64(0x6E756C6C6E756C6C)

_BLOCK_ROWS = 8_192
"""Rows per block: a block's few arrays stay in the cache, which is most of the speed."""
_BLOCK_BYTES = 1 << 18
"""Text bytes per block; each takes about 24 bytes of scratch."""


def row_hashes(frame: pl.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """One uint64 per row: a hash of the values of `columns`.

    The order of `columns` does not matter, their names do. NaN is null, -0.0 is 0.0, and a null
    differs from every value. Integers of all widths are alike, as are floats, and times of all
    units finer than a microsecond are cut to it.

    Args:
        frame: any row order, chunks or slices.
        columns: of type float, integer, Boolean, Date, Datetime, String, or List(String).

    Raises:
        TypeError: a column of another type.
    """
    parts = [(_salt(name), *_bits(frame[name])) for name in columns]
    hashes = np.zeros(frame.height, dtype=_U64)
    scratch = np.empty(_BLOCK_ROWS, dtype=_U64)
    shifted = np.empty(_BLOCK_ROWS, dtype=_U64)
    for start in range(0, frame.height, _BLOCK_ROWS):
        block = slice(start, min(start + _BLOCK_ROWS, frame.height))
        total = hashes[block]
        work, temporary = scratch[: len(total)], shifted[: len(total)]
        for salt, bits, missing in parts:
            np.copyto(work, bits[block])
            if missing is not None:
                np.copyto(work, _NULL, where=missing[block])
            work ^= salt
            total += _avalanche(work, temporary)
        # Without this the sum over a day's rows would be one over its cells, and exchanging two
        # rows' values in a column would go unseen.
        _avalanche(total, temporary)
    return hashes


def day_hashes(frame: pl.DataFrame, day_column: str, columns: Sequence[str]) -> pl.DataFrame:
    """The content of each UTC day: how many rows, and their hashes' sum.

    The sum wraps at 2^64 and is stored as a signed integer. It is additive: the hash of two
    disjoint sets of rows is `combine` of theirs.

    Args:
        frame: rows with a non-null `day_column` (Datetime in UTC, or Date).
        day_column: whose day it is.
        columns: what the rows' hashes cover.

    Returns:
        `day` (Date), `rows` (Int64), `content_hash` (Int64), one row per day, sorted by day.
    """
    days = frame[day_column].cast(pl.Date).to_physical().to_numpy()
    hashes = row_hashes(frame, columns)
    if days.size and (days[1:] < days[:-1]).any():
        order = np.argsort(days, kind="stable")
        days, hashes = days[order], hashes[order]
    starts = np.flatnonzero(np.diff(days, prepend=days[:1] - 1)) if days.size else np.zeros(0, int)
    sums = np.add.reduceat(hashes, starts) if days.size else hashes
    return pl.DataFrame(
        {
            "day": pl.Series(days[starts], dtype=pl.Int32).cast(pl.Date),
            "rows": np.diff(starts, append=len(days)).astype(np.int64),
            "content_hash": sums.view(np.int64),
        }
    )


def combine(*hashes: int) -> int:
    """The content hash of disjoint sets of rows together; `combine(a, -b)` takes b out of a."""
    return (sum(hashes) + (1 << 63)) % (1 << 64) - (1 << 63)


def _avalanche(values: np.ndarray, temporary: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Stafford's mix 13), in place: every bit in moves every bit out."""
    values += _GOLDEN
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        np.right_shift(values, _U64(shift), out=temporary)
        values ^= temporary
        values *= factor
    np.right_shift(values, _U64(31), out=temporary)
    values ^= temporary
    return values


def _mixed(values: np.ndarray) -> np.ndarray:
    return _avalanche(values, np.empty_like(values))


def _salt(name: str) -> np.uint64:
    return _U64(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"))


def _bits(column: pl.Series) -> tuple[np.ndarray, np.ndarray | None]:
    """64 bits per value, and where there is none (None: nowhere)."""
    dtype = column.dtype
    if dtype.is_float():
        # Adding zero makes -0.0 zero; a null comes out of `to_numpy` as NaN.
        values = column.cast(pl.Float64).to_numpy() + 0.0
        nan = np.isnan(values)
        return values.view(_U64), nan if nan.any() else None
    if isinstance(dtype, pl.Datetime):
        column = column.dt.cast_time_unit("us")
    missing = column.is_null().to_numpy() if column.null_count() else None
    if dtype == pl.String:
        return _string_hashes(_arrow(column)), missing
    if dtype == pl.List(pl.String):
        return _list_hashes(_arrow(column)), missing
    if dtype.is_integer() or dtype.is_temporal() or dtype == pl.Boolean:
        physical = column.to_physical()
        physical = physical.fill_null(False if dtype == pl.Boolean else 0)
        if dtype != pl.UInt64:
            physical = physical.cast(pl.Int64)
        return physical.to_numpy().view(_U64), missing
    raise TypeError(f"column {column.name!r} of type {dtype} cannot be hashed")


def _arrow(column: pl.Series) -> pa.Array:
    array = column.to_arrow(compat_level=pl.CompatLevel.oldest())
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _string_hashes(array: pa.Array) -> np.ndarray:
    """A hash per string; 0 for a null. Each distinct string is hashed once."""
    encoded = array.dictionary_encode()
    distinct = _distinct_hashes(encoded.dictionary)
    codes = encoded.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False)
    return np.append(distinct, _U64(0))[codes]


def _distinct_hashes(array: pa.Array) -> np.ndarray:
    """Sum of byte x position, both drawn at random, plus the length; then mixed."""
    if not len(array):
        return np.zeros(0, dtype=_U64)
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)
    offsets = offsets[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    text = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)
    lengths = np.diff(offsets)
    byte_weights = _mixed(np.arange(256, dtype=_U64) ^ _MIX_1)
    place_weights = _mixed(np.arange(int(lengths.max()), dtype=_U64) ^ _MIX_2) | _U64(1)
    sums = np.zeros(len(array), dtype=_U64)
    first = 0
    while first < len(array):
        # As many whole strings as fit a block, one at least.
        limit = int(np.searchsorted(offsets, offsets[first] + _BLOCK_BYTES, side="right")) - 1
        last = min(max(limit, first + 1), len(array))
        low, high = int(offsets[first]), int(offsets[last])
        starts = offsets[first:last] - low
        places = np.arange(high - low) - np.repeat(starts, lengths[first:last])
        # Differences of a running sum, for empty strings have no place in `reduceat`; wrapping
        # does not hurt them.
        running = np.zeros(high - low + 1, dtype=_U64)
        np.cumsum(byte_weights[text[low:high]] * place_weights[places], out=running[1:])
        sums[first:last] = running[offsets[first + 1 : last + 1] - low] - running[starts]
        first = last
    return _mixed(sums + lengths.astype(_U64) * _GOLDEN)


def _list_hashes(array: pa.Array) -> np.ndarray:
    """A hash per list, in which the order counts; something for a null."""
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    elements = _string_hashes(array.flatten())
    places = (np.arange(len(elements)) - np.repeat(starts, lengths)).astype(_U64)
    running = np.zeros(len(elements) + 1, dtype=_U64)
    np.cumsum(_mixed(elements + _mixed(places)), out=running[1:])
    # The constant tells an empty list from an empty string.
    return _mixed(running[ends] - running[starts] + lengths.astype(_U64) * _GOLDEN + _MIX_1)
