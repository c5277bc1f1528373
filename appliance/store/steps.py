"""Looking further step by step, so that the first matches are the same however many are asked for."""

from collections.abc import Mapping, Sequence
from heapq import nlargest
from math import inf
from typing import Final

_FIRST: Final = 25
"""Matches that are looked for at first; then for twice as many, and so on."""


def steps(limit: int) -> list[int]:
    """How many matches a search by signs looks for at each step, until they are as many as the limit."""
    return [_FIRST << n for n in range((-(-limit // _FIRST) - 1).bit_length() + 1)]


def joined(found: Sequence[Mapping[int, float]], sizes: Sequence[int], limit: int) -> dict[int, float]:
    """What the steps found, scores by id, without what was found too late: what a step adds has to rank behind all that
    the steps before would give.

    Otherwise it would push a match on to the next page, which has been given on this one. Where that leaves too few,
    all are kept.

    Args:
        found: of each step.
        sizes: how many matches each of them looked for.
        limit: how many are wanted in the end.
    """
    kept: dict[int, float] = {}
    least = inf
    for scores, size in zip(found, sizes, strict=True):
        first = {id_: score for id_, score in kept.items() if score >= least}
        kept = first | {id_: score for id_, score in scores.items() if score < least and id_ not in first}
        if len(kept) >= size:
            least = nlargest(size, kept.values())[-1]
    return kept if len(kept) >= limit else {**found[-1], **kept}
