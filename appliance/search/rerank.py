"""A second look at what was found: each passage read together with the question."""

from collections.abc import Sequence

from appliance.embedding.reranker import Reranker
from appliance.store.base import Chunk


async def reranked(q: str, chunks: Sequence[Chunk], reranker: Reranker) -> list[tuple[int, float]]:
    """Places of the chunks with their relevance, 0 to 1, the most relevant first; of equals, the one that stood first.

    Of a chunk that is longer than the model takes, the end does not count.

    Raises:
        Overloaded: too many requests wait for the engine.
        EngineError: the model cannot be had, or gave no usable score.
    """
    scores = await reranker.scores(q, [passage(chunk) for chunk in chunks])
    return [(place, float(scores.relevance[place])) for place in scores.ranking()]


def passage(chunk: Chunk) -> str:
    """What a reranker reads of a chunk: the document's title on a line of its own, and the text.

    The title is left out where the text begins with it.
    """
    title = chunk.title.strip()
    opening = chunk.text.lstrip("#* \n\t").casefold()
    return chunk.text if not title or opening.startswith(title.casefold()) else f"{title}\n{chunk.text}"
