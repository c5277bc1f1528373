"""Passages with what stands around them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.search.passages import around, joined, merged
from appliance.search.retriever import Found
from appliance.store.base import Chunk
from appliance.store.memory import MemoryStore

TEXT = "".join(f"{n:02} " for n in range(40))


def chunk(ordinal: int, start: int, end: int) -> Chunk:
    return Chunk(ordinal, TEXT[start:end], start, end, 3)


@pytest.fixture
def store() -> MemoryStore:
    """A document of ten chunks of fifteen characters, each of which shares three with the next."""
    store = MemoryStore()
    store.create("c", 2)
    chunks = [chunk(n, n * 12, n * 12 + 15) for n in range(9)]
    store.put("c", "d", chunks, np.repeat(np.eye(1, 2, dtype=np.float32), 9, axis=0))
    return store


def found(store: MemoryStore, *ordinals: int) -> list[Found]:
    chunks = store.chunks("c", "d")
    return [Found("d", chunks[n], 1.0 - n / 100, collection="c") for n in ordinals]


def test_neighbours_are_joined_without_what_they_share(store: MemoryStore) -> None:
    middle, first, last = around(store, found(store, 4, 0, 8), neighbours=1)

    assert (middle.text, middle.first, middle.last) == (TEXT[36:75], 3, 5)
    assert (first.text, first.first, first.last) == (TEXT[0:27], 0, 1)
    assert (last.text, last.first, last.last) == (TEXT[84:111], 7, 8)


def test_a_match_that_was_changed_meanwhile_stands_alone(store: MemoryStore) -> None:
    old = found(store, 4)
    store.put("c", "d", [chunk(n, n * 3, n * 3 + 3) for n in range(9)], np.repeat(np.eye(1, 2, dtype=np.float32), 9, 0))

    assert [each.text for each in around(store, old, neighbours=1)] == [TEXT[48:63]]


def test_passages_that_touch_are_one_where_the_best_of_them_stood(store: MemoryStore) -> None:
    passages = merged(store, found(store, 4, 8, 6, 1), neighbours=0)
    joined_up = merged(store, found(store, 4, 8, 6), neighbours=1)

    assert [(each.first, each.last) for each in passages] == [(4, 4), (8, 8), (6, 6), (1, 1)]
    assert [(each.first, each.last, each.found.chunk.ordinal) for each in joined_up] == [(3, 8, 4)]
    assert [(each.first, each.last) for each in merged(store, found(store, 4, 5), neighbours=0)] == [(4, 5)]


def test_a_gap_between_two_chunks_is_white_space() -> None:
    assert joined([chunk(0, 0, 2), chunk(1, 3, 5)]) == "00\n01"
    assert joined([chunk(0, 0, 3), chunk(1, 3, 5)]) == "00 01"
    assert joined([]) == ""


@given(st.lists(st.tuples(st.integers(0, 119), st.integers(1, 30)), max_size=12))
def test_chunks_of_any_overlap_give_the_text_back(drawn: list[tuple[int, int]]) -> None:
    chunks: list[Chunk] = []
    end = 0
    for start, length in sorted(drawn):
        begin = min(start, end)  # no gaps
        if begin + length > end:
            chunks.append(chunk(len(chunks), begin, min(begin + length, len(TEXT))))
            end = chunks[-1].end

    assert joined(chunks) == (TEXT[chunks[0].start : end] if chunks else "")
