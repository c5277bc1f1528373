"""One ranking out of several."""

import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import repeat
from typing import Final, Literal, TypeAlias, TypeVar

Key = TypeVar("Key", bound=Hashable)

Fusion: TypeAlias = Literal["rrf", "dbsf"]
"""By ranks, or by scores."""

RANK_CONSTANT: Final = 60
"""k of reciprocal rank fusion, from the paper that proposed it: the larger, the less the first ranks stand out."""


def rrf(legs: Sequence[tuple[Sequence[Key], float]], *, k: int = RANK_CONSTANT) -> list[tuple[Key, float]]:
    """Weighted reciprocal rank fusion: score = sum of weight / (k + rank) over the legs that have the key.

    Cormack, Clarke, Buettcher 2009, https://doi.org/10.1145/1571941.1572114; the scores are divided by the highest that
    any key could have, so that first in every leg is 1.0.

    Args:
        legs: rankings, the best first, each with its weight >= 0. A key counts at its first place in a leg; a leg of
            weight 0 is not looked at.
        k: rank constant, > 0.

    Returns:
        Keys with scores in 0…1, the best first. Equal scores: by rank, then the earlier leg first.
    """
    return combined([(by_rank(ranking, k=k), weight) for ranking, weight in legs])


def dbsf(legs: Sequence[tuple[Mapping[Key, float], float]]) -> list[tuple[Key, float]]:
    """Distribution-based score fusion: the weighted mean of each leg's scores as `by_score` scales them.

    What a leg does not have counts 0 there, as the least does.

    Args:
        legs: scores by key, each with its weight >= 0, in the order of their ranking.

    Returns:
        As `rrf`.
    """
    among = max((len(scores) for scores, _ in legs), default=0)
    return combined([(by_score(scores, among=among), weight) for scores, weight in legs])


def by_rank(ranking: Sequence[Key], *, k: int = RANK_CONSTANT) -> dict[Key, float]:
    """(k + 1) / (k + rank): 1.0 for the first, towards 0 for later ones."""
    return {key: (k + 1) / (k + rank) for rank, key in enumerate(dict.fromkeys(ranking), start=1)}


def by_score(scores: Mapping[Key, float], *, among: int) -> dict[Key, float]:
    """How far each score stands out: its distance from the least, in standard deviations.

    What scales differ in, cosine from BM25, is gone then; that one match is far ahead of the others is not, however far
    that is. 1, the most, is what one match has that stands out from others that are all alike. Where all scores are
    alike, or there is one only, each is 1.

    Args:
        scores: of the best matches.
        among: how many were asked for, or are there if fewer. Where a leg has less, it has found all that there is, and
            the rest is taken to score 0.
    """
    if not scores:
        return {}
    values = [*scores.values(), *repeat(0.0, among - len(scores))]
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    if spread <= 1e-9 * abs(mean):  # all alike, but for rounding
        return dict.fromkeys(scores, 1.0)
    least = min(values)
    most = spread * len(values) / math.sqrt(len(values) - 1)
    return {key: min((score - least) / most, 1.0) for key, score in scores.items()}


def combined(legs: Sequence[tuple[Mapping[Key, float], float]]) -> list[tuple[Key, float]]:
    """The weighted mean of what each leg gives a key, 0 where it gives none; the best first, as `rrf`."""
    counted = [(values, weight) for values, weight in legs if weight > 0]
    total = math.fsum(weight for _, weight in counted)
    scores: dict[Key, float] = {}
    for values, weight in counted:
        for key, value in values.items():
            scores[key] = scores.get(key, 0.0) + weight * value / total
    return sorted(scores.items(), key=lambda item: -item[1])
