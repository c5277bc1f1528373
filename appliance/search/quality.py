"""How good a ranking is, by what people judged relevant: the measures of trec_eval."""

import math
from collections.abc import Iterable, Mapping, Sequence


def ndcg(ranking: Sequence[str], judged: Mapping[str, int], *, k: int) -> float:
    """Normalised discounted cumulative gain of the first `k`, with linear gain.

    Sum of gain / log2(rank + 1) over the ranking, divided by that of the best ranking there could be (Järvelin and
    Kekäläinen 2002; trec_eval's `ndcg_cut`).

    Args:
        ranking: documents, the best first, none twice.
        judged: gain of each document that was judged; others, and those judged 0 or less, have none.
        k: how many of the ranking count.

    Returns:
        0 to 1; 0 if nothing is relevant.
    """
    ideal = _discounted(sorted((gain for gain in judged.values() if gain > 0), reverse=True)[:k])
    return _discounted(max(judged.get(document, 0), 0) for document in ranking[:k]) / ideal if ideal else 0.0


def recall(ranking: Sequence[str], judged: Mapping[str, int], *, k: int) -> float:
    """Share of the relevant documents that are among the first `k`; 0 if nothing is relevant."""
    relevant = {document for document, gain in judged.items() if gain > 0}
    return len(relevant.intersection(ranking[:k])) / len(relevant) if relevant else 0.0


def _discounted(gains: Iterable[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))
