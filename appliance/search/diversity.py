"""Matches that do not all say the same."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from appliance.store.base import Vector

T = TypeVar("T")


def mmr(scores: Sequence[float], vectors: Sequence[Vector | None], *, diversity: float) -> list[int]:
    """Maximal marginal relevance: each next match is the best by (1 - diversity) · score - diversity · its cosine
    with the most similar of those chosen before.

    Carbonell and Goldstein 1998, https://doi.org/10.1145/290941.291025. Scores are scaled to 0…1 first, lowest to
    highest, for cosines, BM25 and fused scores lie on scales of their own. The order of the first n does not depend on
    how many are asked for.

    Args:
        scores: of the matches.
        vectors: of the matches, of length 1; those of another length than the first has, and None, are like nothing
            else.
        diversity: 0 keeps the order of the scores, 1 looks at differences only, but for the first.

    Returns:
        Places of all matches in their new order; of equals, the one that stood first.
    """
    if not scores:
        return []
    relevance = np.asarray(scores, np.float64)
    spread = float(np.ptp(relevance))
    relevance = (relevance - relevance.min()) / spread if spread > 0 else np.ones_like(relevance)
    alike = _cosines(vectors)
    nearest = np.full(len(scores), -np.inf)
    left = np.ones(len(scores), bool)
    order: list[int] = []
    while len(order) < len(scores):
        worth = relevance if not order else (1 - diversity) * relevance - diversity * nearest
        place = int(np.argmax(np.where(left, worth, -np.inf)))
        order.append(place)
        left[place] = False
        nearest = np.maximum(nearest, alike[place])
    return order


def capped(items: Iterable[T], group: Callable[[T], Hashable], *, most: int) -> list[T]:
    """The items in their order, at most so many of each group."""
    counts: dict[Hashable, int] = {}
    kept = []
    for item in items:
        name = group(item)
        counts[name] = counts.get(name, 0) + 1
        if counts[name] <= most:
            kept.append(item)
    return kept


def grouped(items: Iterable[T], group: Callable[[T], Hashable]) -> list[list[T]]:
    """The items by group, both in the order of their first."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(group(item), []).append(item)
    return list(groups.values())


def _cosines(vectors: Sequence[Vector | None]) -> npt.NDArray[np.float64]:
    """(n, n); 0 where one of the two is missing or of another length."""
    result = np.zeros((len(vectors), len(vectors)))
    lengths = {len(each) for each in vectors if each is not None}
    for length in lengths:
        places = [place for place, each in enumerate(vectors) if each is not None and len(each) == length]
        rows = np.stack([np.asarray(vectors[place], np.float64) for place in places])
        result[np.ix_(places, places)] = rows @ rows.T
    return result
