"""The packed format: round trips, one byte layout for all times, and what it refuses."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.errors import OnlineError
from feature_pipeline.online import keys
from feature_pipeline.schemas import STATE_VECTOR_FIELDS

FLOATS = st.floats(allow_nan=True, allow_infinity=True, width=64)
VECTORS = st.lists(FLOATS, min_size=14, max_size=14)
# The years 1 to 9999, and every revision that Lua can compare exactly.
MOMENTS = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)
REVISIONS = st.integers(-(2**53), 2**53)


@given(st.lists(st.tuples(VECTORS, MOMENTS, REVISIONS), max_size=8))
def test_what_was_packed_is_unpacked(rows):
    values = np.array([row[0] for row in rows], dtype=float).reshape(-1, 14)
    blobs = keys.pack(values, [row[1] for row in rows], [row[2] for row in rows])
    names = [f"key {i}" for i in range(len(rows))]
    for unpacked in (
        [keys.unpack(blob) for blob in blobs],
        keys.unpack_many(blobs, names),
    ):
        assert len(unpacked) == len(rows)
        for (numbers, as_of_us, revision), vector in zip(rows, unpacked, strict=True):
            np.testing.assert_array_equal(vector.values, np.array(numbers))
            # Signs of zeros and infinities too; only a NaN's payload is free.
            np.testing.assert_array_equal(np.signbit(vector.values), np.signbit(_one_nan(numbers)))
            assert (vector.as_of_us, vector.revision) == (as_of_us, revision)
            assert vector.missing == tuple(
                name
                for name, number in zip(STATE_VECTOR_FIELDS, numbers, strict=True)
                if np.isnan(number)
            )
            assert (vector.as_of - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() == (
                pytest.approx(as_of_us / 1e6)
            )


def _one_nan(numbers):
    return np.where(np.isnan(numbers), np.nan, numbers)


def test_the_layout_is_the_documented_one():
    numbers = [i / 8 for i in range(14)]
    numbers[6] = float("nan")
    (blob,) = keys.pack([numbers], [1_718_395_200_000_000], [42])
    by_hand = struct.pack("<BqqH14d", 1, 1_718_395_200_000_000, 42, 1 << 6, *numbers)
    assert blob == by_hand
    assert len(blob) == keys.PACKED.itemsize == 131
    assert keys.unpack(blob).as_of == datetime(2024, 6, 14, 20, tzinfo=UTC)


def test_equal_vectors_are_equal_bytes_whatever_the_nan():
    other_nan = np.frombuffer(struct.pack("<Q", 0xFFF8_0000_0000_0123), "<f8")[0]
    assert keys.pack([[other_nan] * 14], [1], [1]) == keys.pack([[np.nan] * 14], [1], [1])


def test_an_unknown_format_is_refused_by_name():
    (blob,) = keys.pack([np.zeros(14)], [1], [1])
    later = bytes([2]) + blob[1:]
    with pytest.raises(OnlineError, match=r"sv:1d:AAPL holds format 2 .* reads format 1") as error:
        keys.unpack(later, "sv:1d:AAPL")
    assert "\n" not in str(error.value)
    with pytest.raises(OnlineError, match="sv:1d:IBM holds format 2"):
        keys.unpack_many([blob, later], ["sv:1d:AAPL", "sv:1d:IBM"])


@pytest.mark.parametrize("cut", [0, 1, 17, 130])
def test_a_truncated_value_is_refused(cut):
    (blob,) = keys.pack([np.zeros(14)], [1], [1])
    with pytest.raises(OnlineError, match="the value holds"):
        keys.unpack(blob[:cut])
    with pytest.raises(OnlineError, match="k holds"):
        keys.unpack_many([blob + b"\0"], ["k"])


def test_key_names():
    assert keys.vector_key("1d", "AAPL") == "sv:1d:AAPL"
    assert keys.features_key("1d", "AAPL") == "features:1d:AAPL"
    assert keys.regime_key("1d", "AAPL") == "regime:1d:AAPL"
    assert keys.sentiment_key("AAPL", "news") == "sentiment:AAPL:news"
    assert keys.macro_key("VIXCLS") == "macro:VIXCLS"
