"""The signs of vectors: one bit each, so made that they tell as much whatever engine the vectors are from.

An engine's own numbers do not always lend themselves to it. Feature hashing leaves most of them at zero, whose sign
says nothing; models whose vectors all lie in one direction have the same sign in most places. So vectors are taken from
their collection's mean, and turned: each sign is that of a sum of all numbers, some of them negated. A random rotation
keeps angles and makes signs tell them (Gao and Long 2024, https://arxiv.org/abs/2405.12497); this one takes a
microsecond for a hundred numbers, and needs no matrix.
"""

from functools import lru_cache
from hashlib import shake_256
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from appliance.store.base import Matrix, Vector

Octets: TypeAlias = npt.NDArray[np.uint8]
"""(n, bytes): a bit for each sign, the first one lowest."""

_FEWEST: Final = 384
"""Signs of a short vector: fewer tell too little of it. A vector of 64 numbers can well have six times as many."""

_WORD: Final = 64
"""Signs come in whole words."""


def sign_count(dimensions: int) -> int:
    """How many signs a vector of so many numbers has."""
    return max(-(-dimensions // _WORD) * _WORD, _FEWEST)


def turned(rows: Matrix, centre: Vector) -> Matrix:
    """The rows (n, dimensions) as seen from the centre, in other coordinates; float32 (n, signs).

    Distances stay in proportion. The coordinates are those of a discrete Hartley transform after some numbers were
    negated; shorter rows go on with zeros.
    """
    negated = (rows - centre) * _flips(rows.shape[1])
    spectrum = np.fft.fft(negated, n=sign_count(rows.shape[1]), axis=1)
    result: Matrix = (spectrum.real - spectrum.imag).astype(np.float32, copy=False)
    return result


def sign_bits(rows: Matrix) -> Octets:
    """The signs of turned rows."""
    return np.packbits(rows > 0, axis=1, bitorder="little")


@lru_cache(maxsize=16)
def _flips(dimensions: int) -> Vector:
    """1 or -1 for each number, the same for ever: what is on disk was made with them."""
    drawn = np.frombuffer(shake_256(b"signs").digest(-(-dimensions // 8)), np.uint8)
    bits = np.unpackbits(drawn, count=dimensions)
    flips: Vector = 1 - 2 * bits.astype(np.float32)
    flips.setflags(write=False)
    return flips
