"""What a cache remembers of one input, how it looks as bytes, and which keys a pattern means."""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from zlib import crc32

import numpy as np

from appliance.embedding.engine import Vector
from appliance.errors import InvalidInput

_VERSION = 1
_HEAD = struct.Struct("<BBHIdI")
"""Version, truncated, dimensions, tokens, seconds since 1970, and the CRC-32 of the key and all the rest."""

_CHECKED = _HEAD.size - 4
"""Bytes before the checksum."""

_SLACK = 1e-3
"""How far from 1 the length of a vector may be; float32 is off by a thousandth of that."""

_MAX_STARS = 4
_MAX_PATTERN = 200


class Entry(NamedTuple):
    """What is remembered of one input: its vector as it was answered, and what it cost."""

    vector: Vector
    tokens: int
    truncated: bool


class Kept(NamedTuple):
    """An entry and when it was computed, in seconds since 1970."""

    entry: Entry
    made: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a layer holds and what was asked of it since the start.

    Attributes:
        name: `memory`, `disk` or `redis`.
        up: whether it is used at present.
        entries: held now; None where counting them is not ours to do.
        bytes: what they take, roughly; None as above.
        hits: keys that were found in it.
        misses: keys that were asked of it and not found.
        evictions: entries dropped for want of room.
        errors: calls that failed, and values that could not be used.
    """

    name: str
    up: bool
    entries: int | None
    bytes: int | None
    hits: int
    misses: int
    evictions: int
    errors: int


class Layer(Protocol):
    """A slower place behind the memory. Its methods do not fail: what goes wrong is counted, logged, and a miss."""

    name: str

    async def get(self, keys: Sequence[str], *, dimensions: int) -> dict[str, Kept]:
        """What is known of `keys`, checked: vectors of length 1 and of so many dimensions, none too old."""

    async def put(self, kept: Mapping[str, Kept]) -> None:
        """Remember entries; safe to give up halfway."""

    async def remove(self, pattern: str | None) -> int:
        """Forget the keys that match, or all; how many there were."""

    async def figures(self) -> Figures:
        """How it does."""

    async def close(self) -> None:
        """Let go of it. Safe to call twice."""


def packed(key: str, kept: Kept) -> bytes:
    """An entry as bytes: 20, and 4 for each dimension."""
    (vector, tokens, truncated), made = kept
    numbers = vector.astype("<f4", copy=False).tobytes()
    head = _HEAD.pack(_VERSION, truncated, len(vector), tokens, made, 0)[:_CHECKED]
    return b"".join((head, _sum(key, head, numbers).to_bytes(4, "little"), numbers))


def packed_size(dimensions: int) -> int:
    """Bytes of an entry of so many dimensions."""
    return _HEAD.size + 4 * dimensions


def unpacked(key: str, value: bytes, *, dimensions: int) -> Kept | None:
    """What `packed` made of an entry of this key; None for anything else, whoever wrote it."""
    if len(value) != packed_size(dimensions):
        return None
    version, truncated, count, tokens, made, checksum = _HEAD.unpack_from(value)
    if version != _VERSION or truncated > 1 or count != dimensions:
        return None
    view = memoryview(value)
    if checksum != _sum(key, view[:_CHECKED], view[_HEAD.size :]):
        return None
    vector: Vector = np.frombuffer(value, "<f4", offset=_HEAD.size).astype(np.float32, copy=False)
    with np.errstate(all="ignore"):
        square = float(np.dot(vector, vector))
    if not abs(square - 1) < 2 * _SLACK or not 0 <= made < float("inf"):  # NaN is in no range
        return None
    return Kept(Entry(vector, tokens, bool(truncated)), made)


def _sum(key: str, head: bytes | memoryview, numbers: bytes | memoryview) -> int:
    return crc32(numbers, crc32(head, crc32(key.encode())))


def checked_pattern(pattern: str) -> str:
    """A pattern of keys: `*` stands for any characters, `?` for one, all others for themselves.

    Returns:
        The pattern, each run of stars as one.

    Raises:
        InvalidInput: empty, longer than 200 characters, with more than 4 stars or with control characters.
    """
    if not pattern or len(pattern) > _MAX_PATTERN or not pattern.isprintable():
        raise InvalidInput(f"a pattern has 1 to {_MAX_PATTERN} printable characters", param="pattern")
    pattern = re.sub(r"\*+", "*", pattern)
    if pattern.count("*") > _MAX_STARS:
        raise InvalidInput(f"a pattern may have {_MAX_STARS} stars, this one has more", param="pattern")
    return pattern


def matcher(pattern: str) -> re.Pattern[str]:
    """A checked pattern as a regular expression to `fullmatch`, which takes no more than linear time for each star."""
    first, *others = (re.escape(part).replace(r"\?", ".") for part in pattern.split("*"))
    if not others:
        return re.compile(first, re.DOTALL)
    *middle, last = others
    # the first place where a part fits is as good as any: atomic groups never try another one
    return re.compile(first + "".join(f"(?>.*?{part})" for part in middle) + f".*{last}", re.DOTALL)


def as_sqlite(pattern: str) -> str:
    """A checked pattern for SQLite's GLOB."""
    return pattern.replace("[", "[[]")


def as_redis(pattern: str) -> str:
    """A checked pattern for Redis's MATCH."""
    return re.sub(r"([\[\]\\^-])", r"\\\1", pattern)
