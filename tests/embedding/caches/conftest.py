"""What tests of the caches share: vectors, entries and keys."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from appliance.embedding.caches.entry import Entry

DIMENSIONS = 8


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Compute:
    """Gives each place an entry that tells its key, and remembers what it was asked."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self.asked: list[str] = []

    async def __call__(self, places: Sequence[int]) -> list[Entry]:
        self.asked += [self.keys[place] for place in places]
        return [made(self.keys[place]) for place in places]


def made(key: str, dimensions: int = DIMENSIONS) -> Entry:
    """The entry of a key: always the same."""
    random = np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))
    vector = random.standard_normal(dimensions).astype(np.float32)
    return Entry(vector / np.linalg.norm(vector), len(key), len(key) % 2 == 0)


def same(one: Entry, other: Entry) -> bool:
    return np.array_equal(one.vector, other.vector) and one[1:] == other[1:]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def entry() -> Callable[..., Entry]:
    return made


@pytest.fixture
def equal() -> Callable[[Entry, Entry], bool]:
    return same


@pytest.fixture
def compute() -> type[Compute]:
    return Compute
