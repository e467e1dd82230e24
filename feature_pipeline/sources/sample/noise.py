"""Noise that is the same everywhere: integer hashing, no random generator, no libm.

Whole numbers of 64 bits wrap the same way on every machine and in every NumPy, so that what is made
of them is the same too. `mix` is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable
pseudorandom number generators, OOPSLA 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

UInts = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def seed(*names: str) -> int:
    """A 64-bit number that stands for these names."""
    return int.from_bytes(hashlib.sha256("\0".join(names).encode()).digest()[:8], "little")


def mix(keys: UInts) -> UInts:
    """A well-mixed hash of each key."""
    with np.errstate(over="ignore"):
        h = keys + _GAMMA
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def below(limit: int, *keys: UInts | int) -> Ints:
    """Uniform whole numbers in `[0, limit)`, one per key; keys broadcast against each other."""
    h = np.zeros(1, dtype=np.uint64)
    for key in keys:
        h = mix(h ^ np.asarray(key, dtype=np.uint64))
    return (h % np.uint64(limit)).astype(np.int64)
