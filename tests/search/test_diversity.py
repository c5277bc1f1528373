"""Matches that do not all say the same."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from appliance.search.diversity import capped, grouped, mmr

X, Y, Z = np.eye(3, dtype=np.float32)


def test_a_copy_of_the_first_comes_behind_what_is_different() -> None:
    scores, vectors = [1.0, 0.99, 0.5, 0.0], [X, X, Y, Z]

    assert mmr(scores, vectors, diversity=0.0) == [0, 1, 2, 3]
    assert mmr(scores, vectors, diversity=0.6) == [0, 2, 3, 1]
    assert mmr(scores, vectors, diversity=1.0) == [0, 2, 3, 1]


def test_what_has_no_vector_is_like_nothing_else() -> None:
    assert mmr([1.0, 0.9, 0.8], [X, None, X], diversity=0.5) == [0, 1, 2]
    assert mmr([1.0, 0.9, 0.8], [X, X, np.ones(1, np.float32)], diversity=0.9) == [0, 2, 1]
    assert mmr([], [], diversity=0.5) == []


@given(
    st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 2**31)), max_size=12),
    st.floats(0, 1),
)
def test_the_new_order_is_what_the_formula_says(drawn: list[tuple[float, int]], diversity: float) -> None:
    scores = sorted((score for score, _ in drawn), reverse=True)
    rows = [np.random.default_rng(seed).normal(size=4) for _, seed in drawn]
    vectors = [np.asarray(row / np.linalg.norm(row), np.float32) for row in rows]

    order = mmr(scores, vectors, diversity=diversity)

    assert sorted(order) == list(range(len(drawn)))
    if not drawn:
        return
    low, high = min(scores), max(scores)
    relevance = [(score - low) / (high - low) if high > low else 1.0 for score in scores]
    assert order[0] == 0
    for place in range(1, len(order)):
        worth = {
            n: (1 - diversity) * relevance[n]
            - diversity * max(float(vectors[n].astype(float) @ vectors[m].astype(float)) for m in order[:place])
            for n in order[place:]
        }
        assert worth[order[place]] >= max(worth.values()) - 1e-6


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20))
def test_without_diversity_the_order_is_that_of_the_scores(scores: list[float]) -> None:
    ordered = sorted(scores, reverse=True)

    assert mmr(ordered, [X] * len(ordered), diversity=0.0) == list(range(len(ordered)))


def test_groups_and_their_caps_keep_the_order() -> None:
    items = ["a1", "b1", "a2", "a3", "c1", "b2"]

    assert capped(items, lambda each: each[0], most=1) == ["a1", "b1", "c1"]
    assert capped(items, lambda each: each[0], most=2) == ["a1", "b1", "a2", "c1", "b2"]
    assert grouped(items, lambda each: each[0]) == [["a1", "a2", "a3"], ["b1", "b2"], ["c1"]]
