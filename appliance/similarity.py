"""How near vectors are to each other: measures, the nearest of many, clusters, and near duplicates.

Vectors come as (d,) or (n, d) arrays of real numbers, whatever their dtype; they are compared in float64, so that
float32 neither overflows nor loses what is nearly alike. Everything is blocking; the memory it takes besides copies of
its arguments and its result is bounded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from appliance.errors import InvalidInput

Metric: TypeAlias = Literal["cosine", "dot", "euclidean", "manhattan"]
"""Cosine and dot product tell how near two vectors are, the two distances how far apart."""

DISTANCES: frozenset[Metric] = frozenset({"euclidean", "manhattan"})
"""Metrics of which less is nearer."""

Reals: TypeAlias = npt.NDArray[np.float64]
Indexes: TypeAlias = npt.NDArray[np.int64]

_BLOCK = 1 << 20
"""Numbers held at a time besides arguments and result: 8 MiB."""


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Groups that k-means found.

    Attributes:
        labels: the cluster of each vector, int64 (n,), 0 to k - 1; no cluster is without one.
        centres: mean of each cluster, float64 (k, d).
        inertia: sum of the squared distances of the vectors to their centres.
        iterations: rounds it took.
    """

    labels: Indexes
    centres: Reals
    inertia: float
    iterations: int


def cosine(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Cosine of the angle between two vectors, -1 to 1.

    Args:
        a: (d,).
        b: (d,).

    Raises:
        InvalidInput: a vector of zeros, which has no direction; or as for `compared`.
    """
    return _of_two(a, b, "cosine")


def dot(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Dot product of two vectors, (d,) and (d,). Errors as for `compared`."""
    return _of_two(a, b, "dot")


def euclidean(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Length of the difference of two vectors, (d,) and (d,). Errors as for `compared`."""
    return _of_two(a, b, "euclidean")


def manhattan(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Sum of the absolute differences of two vectors, (d,) and (d,). Errors as for `compared`."""
    return _of_two(a, b, "manhattan")


def compared(a: npt.ArrayLike, b: npt.ArrayLike, metric: Metric = "cosine") -> Reals:
    """Every vector of one batch against every vector of another.

    Args:
        a: (n, d).
        b: (m, d).
        metric: how.

    Returns:
        float64 (n, m): place (i, j) is of `a[i]` and `b[j]`.

    Raises:
        InvalidInput: no vectors of one width and of finite numbers; for cosine, a vector of zeros; numbers so large
            that the result would be infinite; or no such metric.
    """
    left, right = _pair(a, b, metric)
    result = np.empty((len(left), len(right)))
    for rows, scores in _blocks(left, right, metric):
        result[rows] = scores
    return result


def top_k(queries: npt.ArrayLike, vectors: npt.ArrayLike, k: int, metric: Metric = "cosine") -> tuple[Indexes, Reals]:
    """The nearest vectors to each query, the best first, of equals the one that comes first.

    Args:
        queries: (n, d).
        vectors: (m, d).
        k: how many, 1 or more; at most m come.
        metric: largest first for cosine and dot product, smallest first for distances.

    Returns:
        Places in `vectors`, int64 (n, min(k, m)), and their scores, float64 of the same shape.

    Raises:
        InvalidInput: a `k` below 1; or as for `compared`.
    """
    if k < 1:
        raise InvalidInput(f"top_k: 1 or more, not {k}", param="top_k")
    left, right = _pair(queries, vectors, metric)
    width = min(k, len(right))
    indexes = np.empty((len(left), width), np.int64)
    scores = np.empty((len(left), width))
    for rows, block in _blocks(left, right, metric):
        order = np.argsort(block if metric in DISTANCES else -block, axis=1, kind="stable")[:, :width]
        indexes[rows] = order
        scores[rows] = np.take_along_axis(block, order, axis=1)
    return indexes, scores


def kmeans(vectors: npt.ArrayLike, k: int, *, iterations: int = 100, seed: int = 0) -> Clusters:
    """Group vectors around k means (Lloyd 1982), begun as k-means++ does (Arthur and Vassilvitskii 2007).

    A cluster that loses its last vector is given the one that is farthest from its own centre. On one machine, the same
    arguments give the same clusters.

    Args:
        vectors: (n, d).
        k: clusters, 1 to n.
        iterations: rounds at most, 1 or more; it ends before when nothing moves any more.
        seed: of the random choice of first centres, 0 or more.

    Raises:
        InvalidInput: `k`, `iterations` or `seed` out of range; or as for `compared`.
    """
    points = checked(vectors, "vectors")
    if not 1 <= k <= len(points):
        raise InvalidInput(f"clusters: 1 to the number of vectors, which is {len(points)}, not {k}", param="clusters")
    if iterations < 1:
        raise InvalidInput(f"iterations: 1 or more, not {iterations}", param="iterations")
    if seed < 0:
        raise InvalidInput(f"seed: 0 or more, not {seed}", param="seed")
    scale = float(np.abs(points).max()) or 1.0  # squares of what is left are finite
    points = points / scale
    centres = points[_first_centres(points, k, np.random.default_rng(seed))]
    labels = np.full(len(points), -1)
    rounds, settled = 0, False
    while rounds < iterations and not settled:
        rounds += 1
        nearest, squares = _assigned(points, centres)
        _fill_empty(nearest, squares, k)
        settled = bool((nearest == labels).all())
        labels = nearest
        centres = _means(points, labels, k)
    inertia = float(((points - centres[labels]) ** 2).sum()) * scale * scale
    if not np.isfinite(inertia):
        raise _too_large()
    return Clusters(labels, centres * scale, inertia, rounds)


def duplicates(vectors: npt.ArrayLike, threshold: float) -> list[list[int]]:
    """Groups of vectors that are nearly alike: each has a cosine of `threshold` or more with another of its group.

    Args:
        vectors: (n, d).
        threshold: -1 to 1.

    Returns:
        Places in `vectors`, ascending, of every group of two or more; the group of the first vector first.

    Raises:
        InvalidInput: a threshold out of range; or as for `compared` by cosine.
    """
    if not -1 <= threshold <= 1:
        raise InvalidInput(f"threshold: -1 to 1, not {threshold:g}", param="threshold")
    rows = normalized(vectors)
    least = threshold - 1e-9  # rounding keeps no vector from being its own double
    labels = np.arange(len(rows))
    for _, block in _blocks(rows, rows, "dot"):
        for cosines in block:
            joined = np.unique(labels[cosines >= least])
            if len(joined) > 1:
                labels[np.isin(labels, joined)] = joined[0]
    order = np.argsort(labels, kind="stable")
    borders = np.flatnonzero(np.diff(labels[order])) + 1
    return [group.tolist() for group in np.split(order, borders) if len(group) > 1]


def normalized(vectors: npt.ArrayLike) -> Reals:
    """Each vector scaled to length 1, float64 (n, d).

    Args:
        vectors: (n, d).

    Raises:
        InvalidInput: a vector of zeros, which has no direction; or as for `compared`.
    """
    return _directions(checked(vectors, "vectors"), "vectors")


def checked(vectors: npt.ArrayLike, name: str) -> Reals:
    """The vectors as float64 (n, d).

    Args:
        vectors: (n, d), one or more of one or more finite numbers.
        name: what they are called in an error.

    Raises:
        InvalidInput: they are something else; `param` is `name`.
    """
    try:
        given: npt.NDArray[Any] = np.asarray(vectors)
    except (ValueError, TypeError, OverflowError):  # rows of unequal length, first of all
        raise InvalidInput(f"{name}: the vectors are not of one width", param=name) from None
    if given.dtype.kind not in "fiu":
        raise InvalidInput(f"{name}: vectors of numbers are needed", param=name)
    if given.ndim != 2 or not given.size:  # noqa: PLR2004  # rows and columns
        raise InvalidInput(f"{name}: a list of vectors is needed, none of them empty", param=name)
    rows: Reals = given.astype(np.float64)
    if not np.isfinite(rows).all():
        raise InvalidInput(f"{name}: a number is NaN or infinite", param=name)
    return rows


def _of_two(a: npt.ArrayLike, b: npt.ArrayLike, metric: Metric) -> float:
    first, second = ([vector] for vector in (a, b))
    return float(compared(np.asarray(first), np.asarray(second), metric)[0, 0])


def _pair(a: npt.ArrayLike, b: npt.ArrayLike, metric: Metric) -> tuple[Reals, Reals]:
    """Both batches, checked; of length 1 where their cosine is wanted."""
    if metric not in get_args(Metric):
        raise InvalidInput(f"metric: one of {', '.join(get_args(Metric))} is needed", param="metric")
    left, right = checked(a, "a"), checked(b, "b")
    if left.shape[1] != right.shape[1]:
        raise InvalidInput(
            f"b: its vectors have {right.shape[1]} dimensions, those of a have {left.shape[1]}", param="b"
        )
    if metric == "cosine":
        return _directions(left, "a"), _directions(right, "b")
    return left, right


def _directions(rows: Reals, name: str) -> Reals:
    largest = np.abs(rows).max(axis=1, keepdims=True)
    if not largest.all():
        raise InvalidInput(f"{name}: a vector of zeros has no direction, so no cosine", param=name)
    rows = rows / largest  # so that no square overflows, or vanishes
    result: Reals = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return result


def _blocks(left: Reals, right: Reals, metric: Metric) -> Iterator[tuple[slice, Reals]]:
    """Rows of `left` with their scores, (rows, len(right)), so many at a time as memory allows."""
    size = max(1, _BLOCK // len(right))
    for start in range(0, len(left), size):
        rows = slice(start, min(start + size, len(left)))
        with np.errstate(over="ignore", invalid="ignore"):
            scores = _scores(left[rows], right, metric)
        if not np.isfinite(scores).all():
            raise _too_large()
        yield rows, scores


def _scores(left: Reals, right: Reals, metric: Metric) -> Reals:
    match metric:
        case "cosine":
            cosines: Reals = np.clip(left @ right.T, -1.0, 1.0)
            return cosines
        case "dot":
            products: Reals = left @ right.T
            return products
        case _:
            return _distances(left, right, metric)


def _distances(left: Reals, right: Reals, metric: Metric) -> Reals:
    """By differences: the shorter way by dot products loses most digits of what lies near together."""
    result = np.empty((len(left), len(right)))
    width = left.shape[1]
    columns = max(1, min(len(right), _BLOCK // width))
    rows = max(1, _BLOCK // (width * columns))
    for top in range(0, len(left), rows):
        for first in range(0, len(right), columns):
            differences = left[top : top + rows, None] - right[None, first : first + columns]
            place = (slice(top, top + rows), slice(first, first + columns))
            if metric == "manhattan":
                result[place] = np.abs(differences).sum(axis=2)
            else:
                result[place] = np.sqrt(np.einsum("ijk,ijk->ij", differences, differences))
    return result


def _too_large() -> InvalidInput:
    return InvalidInput("the numbers are too large to be compared by this metric")


def _first_centres(points: Reals, k: int, random: np.random.Generator) -> Indexes:
    """Places of k different points, each chosen by the square of its distance to those before."""
    chosen = [int(random.integers(len(points)))]
    squares = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < k:
        squares[chosen] = 0.0
        total = squares.sum()
        if total > 0:
            place = int(random.choice(len(points), p=squares / total))
        else:  # the others are copies of those chosen
            place = int(np.delete(np.arange(len(points)), chosen)[0])
        chosen.append(place)
        squares = np.minimum(squares, ((points - points[place]) ** 2).sum(axis=1))
    return np.array(chosen)


def _assigned(points: Reals, centres: Reals) -> tuple[Indexes, Reals]:
    """The nearest centre of each point, the first of equals, and the square of its distance."""
    nearest = np.empty(len(points), np.int64)
    half = (centres**2).sum(axis=1) / 2
    size = max(1, _BLOCK // len(centres))
    for start in range(0, len(points), size):
        part = points[start : start + size]
        nearest[start : start + size] = np.argmin(half - part @ centres.T, axis=1)
    return nearest, ((points - centres[nearest]) ** 2).sum(axis=1)


def _fill_empty(labels: Indexes, squares: Reals, k: int) -> None:
    """Give each empty cluster, in place, the farthest point of a cluster that keeps another."""
    sizes = np.bincount(labels, minlength=k)
    for cluster in np.flatnonzero(sizes == 0):
        place = int(np.argmax(np.where(sizes[labels] > 1, squares, -1.0)))
        sizes[labels[place]] -= 1
        sizes[cluster] = 1
        labels[place] = cluster
        squares[place] = 0.0


def _means(points: Reals, labels: Indexes, k: int) -> Reals:
    sums = np.stack([np.bincount(labels, weights=column, minlength=k) for column in points.T], axis=1)
    means: Reals = sums / np.bincount(labels, minlength=k)[:, None]  # no cluster is empty
    return means
