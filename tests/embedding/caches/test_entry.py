"""Entries as bytes, and patterns of keys."""

import re
import struct
from collections.abc import Callable
from fnmatch import fnmatchcase
from time import perf_counter
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.database import choose_driver
from appliance.embedding.caches.entry import (
    Entry,
    Kept,
    as_redis,
    as_sqlite,
    checked_pattern,
    matcher,
    packed,
    packed_size,
    unpacked,
)
from appliance.errors import InvalidInput

KEY = "card@0:document:8::00"


def forged(numbers: bytes, *, key: str = KEY, version: int = 1, truncated: int = 0, count: int = 8) -> bytes:
    """A value whose checksum is right, whatever it says."""
    head = struct.pack("<BBHId", version, truncated, count, 3, 1.0)
    return head + struct.pack("<I", crc32(numbers, crc32(head, crc32(key.encode())))) + numbers


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def test_what_was_packed_is_unpacked_bit_by_bit(entry: Callable[..., Entry], equal: Callable[..., bool]) -> None:
    kept = Kept(entry(KEY, 384), 1234.5)

    value = packed(KEY, kept)
    again = unpacked(KEY, value, dimensions=384)

    assert len(value) == packed_size(384) == 20 + 4 * 384
    assert again is not None
    assert equal(again.entry, kept.entry)
    assert again.made == 1234.5
    assert again.entry.vector.dtype == np.float32


def test_one_changed_bit_anywhere_is_found(entry: Callable[..., Entry]) -> None:
    value = packed(KEY, Kept(entry(KEY), 1.0))

    for bit in range(8 * len(value)):
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8
        assert unpacked(KEY, bytes(changed), dimensions=8) is None


def test_an_entry_is_of_no_other_key_and_of_no_other_dimensions(entry: Callable[..., Entry]) -> None:
    value = packed(KEY, Kept(entry(KEY), 1.0))

    assert unpacked(KEY + "1", value, dimensions=8) is None
    assert unpacked(KEY, value, dimensions=4) is None
    assert unpacked(KEY, value + b"\0", dimensions=8) is None
    assert unpacked(KEY, value[:-1], dimensions=8) is None
    assert unpacked(KEY, b"", dimensions=8) is None


@pytest.mark.parametrize(
    "value",
    [
        forged(floats(*[0] * 8)),
        forged(floats(float("nan"), *[0] * 7)),
        forged(floats(float("inf"), *[0] * 7)),
        forged(floats(*[3e38] * 8)),
        forged(floats(2, *[0] * 7)),
        forged(floats(0.99, *[0] * 7)),
        forged(floats(1, *[0] * 7), version=2),
        forged(floats(1, *[0] * 7), truncated=2),
        forged(floats(1, *[0] * 7), count=4),
    ],
    ids=["zero", "nan", "inf", "huge", "long", "short", "version", "flag", "count"],
)
def test_a_value_that_is_no_entry_is_ignored_even_with_a_right_checksum(value: bytes) -> None:
    assert unpacked(KEY, value, dimensions=8) is None
    assert unpacked(KEY, forged(floats(1, *[0] * 7)), dimensions=8) is not None


@given(st.binary(max_size=80))
def test_any_bytes_are_read_without_an_error(value: bytes) -> None:
    assert unpacked(KEY, value, dimensions=8) is None


ALPHABET = "ab:@!.-[]^\\*?"


@given(st.text(ALPHABET, min_size=1, max_size=8), st.text("ab:@!.-[]^\\", max_size=8))
def test_a_pattern_means_the_same_in_memory_and_in_sqlite(pattern: str, key: str) -> None:
    try:
        checked = checked_pattern(pattern)
    except InvalidInput:
        return
    expected = fnmatchcase(key, pattern.replace("[", "[[]"))

    assert bool(matcher(checked).fullmatch(key)) is expected
    (found,) = SQLITE.execute("SELECT ? GLOB ?", (key, as_sqlite(checked))).fetchone()
    assert bool(found) is expected


SQLITE: Any = choose_driver().connect(":memory:")


def test_redis_gets_no_class_of_characters() -> None:
    assert re.sub(r"\\.", "", as_redis("a[b-c]*:^\\?")) == "abc*:?"


def test_many_stars_are_refused_and_few_are_quick() -> None:
    with pytest.raises(InvalidInput, match="4 stars"):
        checked_pattern("*a" * 5)
    assert checked_pattern("***a***") == "*a*"
    match = matcher("*a*a*a*b").fullmatch
    began = perf_counter()

    assert not any(match("a" * 200) for _ in range(1000))
    assert perf_counter() - began < 2


@pytest.mark.parametrize("pattern", ["", "x" * 201, "a\n", "\0"])
def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="200 printable"):
        checked_pattern(pattern)
