"""Vectors compared, against references that do it number by number."""

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from appliance import similarity
from appliance.errors import InvalidInput
from appliance.similarity import DISTANCES, Metric, compared, duplicates, kmeans, normalized, top_k

METRICS: tuple[Metric, ...] = ("cosine", "dot", "euclidean", "manhattan")

Vectors = npt.NDArray[np.float64]


def naive(a: list[float], b: list[float], metric: Metric) -> float:
    match metric:
        case "dot":
            return math.fsum(x * y for x, y in zip(a, b, strict=True))
        case "cosine":
            return math.fsum((x / math.hypot(*a)) * (y / math.hypot(*b)) for x, y in zip(a, b, strict=True))
        case "euclidean":
            return math.dist(a, b)
        case "manhattan":
            return math.fsum(abs(x - y) for x, y in zip(a, b, strict=True))


def batches(most: int = 7) -> st.SearchStrategy[tuple[Vectors, Vectors]]:
    """Two batches of one width, of float32 numbers; no vector is all zeros."""
    numbers = st.floats(-1e3, 1e3, width=32)

    def of_width(width: int) -> st.SearchStrategy[tuple[Vectors, Vectors]]:
        def batch(rows: int) -> st.SearchStrategy[Vectors]:
            return arrays.arrays(np.float32, (rows, width), elements=numbers).map(_with_direction)

        sizes = st.integers(1, most)
        return st.tuples(sizes.flatmap(batch), sizes.flatmap(batch))

    return st.integers(1, 9).flatmap(of_width)


def _with_direction(rows: Vectors) -> Vectors:
    rows[~rows.any(axis=1), 0] = 1.0
    return rows


@given(batches(), st.sampled_from(METRICS))
def test_every_pair_is_what_the_definition_says(pair: tuple[Vectors, Vectors], metric: Metric) -> None:
    a, b = pair

    found = compared(a, b, metric)

    expected = [[naive(x, y, metric) for y in b.tolist()] for x in a.tolist()]
    assert found.dtype == np.float64
    assert found.shape == (len(a), len(b))
    size = np.abs(a).max() * np.abs(b).max() if metric == "dot" else np.abs(a).max() + np.abs(b).max()
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-12 * max(1.0, float(size)))
    one: Callable[[Any, Any], float] = getattr(similarity, metric)
    assert one(a[0], b[0]) == pytest.approx(found[0, 0], rel=1e-12, abs=1e-9)


@given(batches(), st.sampled_from(METRICS), st.integers(1, 9))
def test_the_top_k_are_the_first_of_a_stable_sort(pair: tuple[Vectors, Vectors], metric: Metric, k: int) -> None:
    queries, vectors = pair
    vectors = np.concatenate([vectors, vectors])  # so that there are equals

    indexes, scores = top_k(queries, vectors, k, metric)

    everything = compared(queries, vectors, metric)
    sign = 1 if metric in DISTANCES else -1
    for row, places, values in zip(everything, indexes, scores, strict=True):
        expected = sorted(range(len(vectors)), key=lambda place: (sign * row[place], place))[:k]
        assert places.tolist() == expected
        assert values.tolist() == row[expected].tolist()


def test_results_do_not_depend_on_how_they_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(size=(23, 7)), random.normal(size=(31, 7))
    whole = [compared(a, b, metric) for metric in METRICS]
    best, groups, clusters = top_k(a, b, 5), duplicates(b, 0.7), kmeans(b, 4)

    for block in (1, 8, 100):
        monkeypatch.setattr(similarity, "_BLOCK", block)

        for metric, expected in zip(METRICS, whole, strict=True):
            assert np.allclose(compared(a, b, metric), expected)
        assert (top_k(a, b, 5)[0] == best[0]).all()
        assert duplicates(b, 0.7) == groups
        assert (kmeans(b, 4).labels == clusters.labels).all()


@pytest.mark.parametrize("metric", METRICS)
def test_memory_beyond_the_result_is_bounded(metric: Metric) -> None:
    random = np.random.default_rng(2)
    a, b = random.normal(size=(300, 256)), random.normal(size=(400, 256))
    compared(a[:1], b[:1], metric)  # what is imported late

    tracemalloc.start()
    compared(a, b, metric)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 8 * 300 * 400 + 3 * (8 << 20) + 4 * (a.nbytes + b.nbytes)


def test_what_is_nearly_alike_keeps_its_distance() -> None:
    one = np.full((1, 64), 1000.0)
    other = one.copy()
    other[0, 0] += 1e-6

    assert compared(one, other, "euclidean")[0, 0] == pytest.approx(1e-6, rel=1e-3)
    assert compared(one, one, "euclidean")[0, 0] == 0
    assert compared(one, one, "cosine")[0, 0] <= 1.0


def test_lengths_that_have_no_square_are_normalised_all_the_same() -> None:
    rows = normalized([[3e200, 4e200], [3e-200, 4e-200]])

    assert np.allclose(rows, [[0.6, 0.8], [0.6, 0.8]])


@given(batches(12), st.integers(1, 5), st.integers(0, 3))
@settings(deadline=None)
def test_clusters_are_local_optima_without_an_empty_one(pair: tuple[Vectors, Vectors], k: int, seed: int) -> None:
    points = np.concatenate(pair)
    k = min(k, len(points))

    found = kmeans(points, k, seed=seed)

    assert sorted(set(found.labels.tolist())) == list(range(k))
    assert found.centres.shape == (k, points.shape[1])
    squares = compared(points, found.centres, "euclidean") ** 2
    own = squares[np.arange(len(points)), found.labels]
    assert found.inertia == pytest.approx(own.sum(), rel=1e-6, abs=1e-6)
    for label in range(k):
        assert np.allclose(found.centres[label], points[found.labels == label].mean(axis=0), atol=1e-3)
    again = kmeans(points, k, seed=seed)
    assert (again.labels == found.labels).all()
    assert again.inertia == found.inertia


def test_clusters_that_lie_apart_are_found_whatever_the_seed() -> None:
    random = np.random.default_rng(3)
    truth = np.repeat(np.arange(4), 25)
    points = random.normal(scale=0.05, size=(100, 8)) + np.eye(8)[truth] * 3

    for seed in range(5):
        labels = kmeans(points, 4, seed=seed).labels
        assert len(set(zip(truth.tolist(), labels.tolist(), strict=True))) == 4


def test_copies_fill_as_many_clusters_as_are_asked_for() -> None:
    found = kmeans(np.ones((5, 3)), 4)

    assert np.bincount(found.labels, minlength=4).min() == 1
    assert found.inertia == 0


def test_a_limit_of_rounds_is_kept() -> None:
    points = np.random.default_rng(4).normal(size=(200, 4))

    assert kmeans(points, 8, iterations=1).iterations == 1
    assert 1 < kmeans(points, 8).iterations < 100


def naive_groups(vectors: Vectors, threshold: float) -> list[list[int]]:
    left = set(range(len(vectors)))
    groups = []
    rows = vectors.tolist()
    while left:
        group, reach = set(), {min(left)}
        while reach:
            group |= reach
            near = {j for i in reach for j in left if naive(rows[i], rows[j], "cosine") >= threshold - 1e-9}
            reach = near - group
        left -= group
        groups.append(sorted(group))
    return [group for group in groups if len(group) > 1]


@given(batches(10), st.floats(-0.9, 0.99))
def test_groups_of_duplicates_are_linked_by_pairs(pair: tuple[Vectors, Vectors], threshold: float) -> None:
    vectors = np.concatenate(pair)

    found = duplicates(vectors, threshold)

    cosines = compared(vectors, vectors)
    if np.abs(cosines - threshold).min() > 1e-7:  # else rounding decides
        assert found == naive_groups(vectors, threshold)
    assert all(len(group) > 1 for group in found)
    assert found == sorted(found)


def test_copies_are_duplicates_at_a_threshold_of_one() -> None:
    random = np.random.default_rng(5)
    rows = random.normal(size=(50, 33))

    assert duplicates(np.concatenate([rows, rows * 3]), 1.0) == [[place, place + 50] for place in range(50)]
    assert duplicates(rows, 1.0) == []


WRONG: dict[str, tuple[Any, str]] = {
    "one vector": ([1.0, 2.0], "a list of vectors"),
    "no vector": (np.empty((0, 4)), "a list of vectors"),
    "no number": (np.empty((4, 0)), "a list of vectors"),
    "three axes": (np.ones((2, 2, 2)), "a list of vectors"),
    "NaN": ([[1.0, math.nan]], "NaN or infinite"),
    "infinity": ([[1.0, math.inf]], "NaN or infinite"),
    "unequal widths": ([[1.0, 2.0], [1.0]], "one width"),
    "texts": ([["1", "2"]], "numbers"),
    "booleans": ([[True, False]], "numbers"),
    "complex numbers": ([[1j, 2]], "numbers"),
    "nothing": (None, "numbers"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_are_no_vectors_is_refused_everywhere(wrong: str) -> None:
    vectors, words = WRONG[wrong]
    calls: list[Callable[[], object]] = [
        lambda: compared(vectors, [[1.0, 2.0]]),
        lambda: compared([[1.0, 2.0]], vectors),
        lambda: top_k(vectors, [[1.0, 2.0]], 1),
        lambda: kmeans(vectors, 1),
        lambda: duplicates(vectors, 0.5),
        lambda: normalized(vectors),
    ]

    for call in calls:
        with pytest.raises(InvalidInput, match=words):
            call()


def test_other_arguments_out_of_range_are_refused_by_name() -> None:
    rows = np.eye(3)
    calls: dict[str, Callable[[], object]] = {
        "b": lambda: compared(rows, np.ones((2, 4))),
        "metric": lambda: compared(rows, rows, "chebyshev"),  # type: ignore[arg-type]  # that is the point
        "top_k": lambda: top_k(rows, rows, 0),
        "clusters": lambda: kmeans(rows, 4),
        "iterations": lambda: kmeans(rows, 2, iterations=0),
        "seed": lambda: kmeans(rows, 2, seed=-1),
        "threshold": lambda: duplicates(rows, 1.5),
    }

    for param, call in calls.items():
        with pytest.raises(InvalidInput) as error:
            call()
        assert error.value.param == param


@pytest.mark.parametrize("vectors", [[[0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
def test_a_vector_of_zeros_has_no_cosine_but_a_distance(vectors: list[list[float]]) -> None:
    with pytest.raises(InvalidInput, match="zeros has no direction"):
        compared(vectors, [[1.0, 2.0]])
    with pytest.raises(InvalidInput, match="zeros has no direction"):
        duplicates(vectors, 0.5)
    assert compared(vectors, [[3.0, 4.0]], "euclidean")[-1, 0] == 5
    assert compared(vectors, [[3.0, 4.0]], "dot")[-1, 0] == 0


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_numbers_whose_result_would_be_infinite_are_refused(metric: Metric) -> None:
    with pytest.raises(InvalidInput, match="too large"):
        compared([[1e200, 1e200]], [[-1e200, 1e200]], metric)


def test_clusters_of_huge_numbers_are_found_or_refused() -> None:
    assert kmeans([[1e150], [-1e150], [1.0001e150]], 2).labels.tolist() in ([0, 1, 0], [1, 0, 1])
    with pytest.raises(InvalidInput, match="too large"):
        kmeans([[1e200], [-1e200], [3e200]], 2)
