"""The layer in memory."""

import gc
import hashlib
import tracemalloc
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.embedding.caches.entry import Entry
from appliance.embedding.caches.memory import Memory

ENTRY = Entry(np.array([1.0, 0.0], np.float32), 1, truncated=False)


def test_what_was_used_least_recently_goes_first(entry: Callable[..., Entry]) -> None:
    memory = Memory(2, ttl=10)
    memory.put("a", entry("a"))
    memory.put("b", entry("b"))

    memory.get(["a"])
    memory.put("c", entry("c"))

    assert [each is not None for each in memory.get(["a", "b", "c"])] == [True, False, True]
    assert memory.figures().evictions == 1


def test_an_entry_is_forgotten_after_its_time_however_often_it_is_used(clock: Any, entry: Callable[..., Entry]) -> None:
    memory = Memory(10, ttl=10, clock=clock)
    memory.put("a", entry("a"))

    clock.now += 9.9
    assert memory.get(["a"]) != [None]
    clock.now += 0.1
    assert memory.get(["a"]) == [None]

    assert len(memory) == 0
    assert memory.figures().evictions == 0


def test_an_entry_that_is_old_already_stays_for_the_rest_of_its_time(clock: Any, entry: Callable[..., Entry]) -> None:
    memory = Memory(10, ttl=10, clock=clock)
    memory.put("a", entry("a"), age=8)
    memory.put("b", entry("b"), age=10)
    memory.put("c", entry("c"), age=-100)

    clock.now += 1.9
    assert [each is not None for each in memory.get(["a", "b"])] == [True, False]
    clock.now += 0.1
    assert memory.get(["a"]) == [None]
    clock.now += 8
    assert memory.get(["c"]) == [None]


def test_what_is_over_makes_room_before_what_is_not(clock: Any, entry: Callable[..., Entry]) -> None:
    memory = Memory(3, ttl=10, clock=clock)
    memory.put("a", entry("a"))
    memory.put("b", entry("b"))
    clock.now += 10

    memory.put("c", entry("c"))

    assert len(memory) == 1


def test_without_room_nothing_is_held(entry: Callable[..., Entry]) -> None:
    memory = Memory(0, ttl=10)

    memory.put("a", entry("a"))

    assert memory.get(["a", "a"]) == [None, None]
    assert memory.figures().bytes == 0


def test_what_matches_is_forgotten_and_counted(entry: Callable[..., Entry]) -> None:
    memory = Memory(10, ttl=10)
    for key in ("one@0:query:8::00", "one@0:document:8::00", "two@0:query:8::00"):
        memory.put(key, entry(key))

    assert memory.remove("one*") == 2
    assert memory.remove("*:document:*") == 0
    assert memory.remove(None) == 1
    assert memory.figures().bytes == 0


def test_ten_thousand_entries_of_384_numbers_take_less_than_40_megabytes() -> None:
    rows = np.ones((64, 384), np.float32)
    memory = Memory(10_000, ttl=3600)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()

    for number in range(10_500):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        key = f"all-minilm-l6-v2@0123456789abcdef:document:384::{digest}"
        memory.put(key, Entry(rows[number % 64].copy(), 1000 + number, truncated=False))

    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    told = memory.figures().bytes
    assert len(memory) == 10_000
    assert told is not None
    assert after - before < 40e6
    assert 0.8 < told / (after - before) < 1.25


def test_time_does_not_grow_with_what_is_held() -> None:
    def took(entries: int) -> float:
        memory = Memory(entries, ttl=3600)
        for number in range(entries):
            memory.put(str(number), ENTRY)
        best = float("inf")
        for turn in range(5):
            began = perf_counter()
            for number in range(2000):
                memory.put(f"{turn} {number}", ENTRY)
                memory.get([str(number)])
            best = min(best, perf_counter() - began)
        return best

    assert took(100_000) < 20 * took(2000)  # were it linear, 50 times


class LikeADict(RuleBasedStateMachine):
    """Memory against a dict in the order of use, with the end of each entry's time."""

    keys = st.sampled_from("abcdefgh")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.memory = Memory(4, ttl=10, clock=lambda: self.now)
        self.model: dict[str, tuple[Entry, float]] = {}

    @rule(key=keys, age=st.sampled_from([0.0, 3.0, 10.0]))
    def put(self, key: str, age: float) -> None:
        entry = ENTRY._replace(tokens=int(self.now))
        self.memory.put(key, entry, age=age)
        self.model.pop(key, None)
        if age < 10:
            self.model[key] = (entry, self.now + 10 - age)
            while len(self.model) > 4 or next(iter(self.model.values()))[1] <= self.now:
                del self.model[next(iter(self.model))]

    @rule(wanted=st.lists(keys, max_size=6))
    def get(self, wanted: list[str]) -> None:
        expected: list[Entry | None] = []
        for key in wanted:
            entry, end = self.model.pop(key, (None, 0.0))
            if entry is not None and end > self.now:
                self.model[key] = (entry, end)
                expected.append(entry)
            else:
                expected.append(None)

        assert all(one is other for one, other in zip(self.memory.get(wanted), expected, strict=True))

    @rule(seconds=st.sampled_from([1.0, 4.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.model)
    @rule(key=keys)
    def remove(self, key: str) -> None:
        assert self.memory.remove(key) == (self.model.pop(key, None) is not None)

    @invariant()
    def holds_as_much(self) -> None:
        assert len(self.memory) == len(self.model) <= 4


TestLikeADict = LikeADict.TestCase
