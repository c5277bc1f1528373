"""One ranking out of several."""

from collections.abc import Hashable, Sequence
from typing import Final, TypeVar

Key = TypeVar("Key", bound=Hashable)

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
    counted = [(ranking, weight) for ranking, weight in legs if weight > 0]
    best = sum(weight for _, weight in counted) / (k + 1)
    scores: dict[Key, float] = {}
    for ranking, weight in counted:
        for rank, key in enumerate(dict.fromkeys(ranking), start=1):
            scores[key] = scores.get(key, 0.0) + weight / (k + rank) / best
    return sorted(scores.items(), key=lambda item: -item[1])
