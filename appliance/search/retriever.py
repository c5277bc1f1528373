"""Finds passages for a question: by meaning, by words, or by both; and has the best of them reranked."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from appliance.embedding.embedder import Embedder
from appliance.embedding.engine import Image
from appliance.embedding.reranker import Reranker
from appliance.errors import InvalidInput
from appliance.search.fusion import RANK_CONSTANT, rrf
from appliance.search.rerank import reranked
from appliance.store.base import Chunk, Match, VectorStore, Where, WordIndex

Mode: TypeAlias = Literal["hybrid", "vector", "keyword"]

MAX_LIMIT: Final = 1000
"""Matches of one search at most."""


@dataclass(frozen=True, slots=True)
class Found:
    """A passage that was found.

    Attributes:
        score: what matches are ordered by. hybrid: fused from both ranks, 1.0 is first in both; vector: cosine
            similarity; keyword: BM25, which has no upper end and means something within one search only. Reranked, it
            is `rerank_score`.
        vector_score: cosine similarity; None if not among the nearest that were looked at.
        vector_rank: place among the nearest, from 1.
        keyword_score: BM25; None if not among the best by words that were looked at.
        keyword_rank: place among the best by words, from 1.
        rerank_score: how relevant the reranker holds the passage, 0 to 1; None if it was not asked.
    """

    document: str
    chunk: Chunk
    score: float
    vector_score: float | None = None
    vector_rank: int | None = None
    keyword_score: float | None = None
    keyword_rank: int | None = None
    rerank_score: float | None = None


class Retriever:
    """Searches one pair of stores.

    Args:
        vectors: searched by meaning.
        words: searched by words; of the same chunks.
        depth: matches taken from each of the two before they are fused; more if more are asked for.
        vector_weight: what a rank by meaning counts for.
        keyword_weight: what a rank by words counts for.
        k: rank constant of the fusion.
        rerank_depth: best matches that a reranker is given; more if more are asked for.
    """

    def __init__(
        self,
        *,
        vectors: VectorStore,
        words: WordIndex,
        depth: int = 100,
        vector_weight: float = 1.0,
        keyword_weight: float = 1.0,
        k: int = RANK_CONSTANT,
        rerank_depth: int = 50,
    ) -> None:
        self._vectors = vectors
        self._words = words
        self._depth = depth
        self._vector_weight = vector_weight
        self._keyword_weight = keyword_weight
        self._k = k
        self._rerank_depth = rerank_depth

    async def search(
        self,
        q: str,
        *,
        embedder: Embedder | None,
        collection: str,
        dimensions: int,
        limit: int = 10,
        mode: Mode = "hybrid",
        min_score: float | None = None,
        where: Where = (),
        reranker: Reranker | None = None,
        image: Image | None = None,
    ) -> list[Found]:
        """The best passages, the best first.

        Args:
            q: a person's words; nothing in it is an operator.
            embedder: of the collection's space; needed unless `mode` is "keyword".
            collection: where to look.
            dimensions: of the collection's vectors.
            limit: 1 to 1000.
            mode: by both, by meaning, or by words.
            min_score: leaves out what scores less, on the mode's own scale, or the reranker's (see `Found.score`).
            where: what a passage's metadata must hold; looked at before the best are chosen.
            reranker: puts the best in a new order, before they are cut to the limit.
            image: taken for the meaning instead of the words; alone, `q` is empty and `mode` is "vector".

        Raises:
            InvalidInput: an empty question, a limit or least score that is none, an image that is none or that the
                model does not take.
            CollectionNotFound: there is no such collection.
            Overloaded: too many requests wait for the engine.
            EngineError: the question could not be embedded, or the passages not reranked. No search goes on without.
        """
        if not q.strip() and (image is None or mode != "vector"):
            raise InvalidInput("q is empty", param="q")
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidInput(f"the limit is 1 to {MAX_LIMIT}", param="limit")
        if min_score is not None and not math.isfinite(min_score):
            raise InvalidInput("min_score is a finite number", param="min_score")
        asked = q if image is None else image
        wanted = limit if reranker is None else max(limit, self._rerank_depth)
        if mode == "keyword":
            by_words = await self._by_words(q, collection, limit=wanted, where=where)
            found = [_of_words(rank, match) for rank, match in enumerate(by_words, start=1)]
        elif embedder is None:
            raise TypeError(f"a {mode} search needs an embedder")
        elif mode == "vector":
            nearest = await self._nearest(asked, embedder, collection, dimensions=dimensions, limit=wanted, where=where)
            found = [_of_vectors(rank, match) for rank, match in enumerate(nearest, start=1)]
        else:
            depth = max(wanted, self._depth)
            nearest, by_words = await asyncio.gather(
                self._nearest(asked, embedder, collection, dimensions=dimensions, limit=depth, where=where),
                self._by_words(q, collection, limit=depth, where=where),
            )
            found = self._fused(nearest, by_words)
        if reranker is not None:
            best = found[:wanted]
            order = await reranked(q, [each.chunk for each in best], reranker)
            found = [replace(best[place], score=score, rerank_score=score) for place, score in order]
        return [each for each in found[:limit] if min_score is None or each.score >= min_score]

    async def _nearest(
        self, asked: str | Image, embedder: Embedder, collection: str, *, dimensions: int, limit: int, where: Where
    ) -> list[Match]:
        embeddings = await embedder.embed([asked], kind="query", dimensions=dimensions)
        vector = embeddings.vectors[0]
        return await asyncio.to_thread(self._vectors.nearest, collection, vector, limit=limit, where=where)

    async def _by_words(self, q: str, collection: str, *, limit: int, where: Where) -> list[Match]:
        return await asyncio.to_thread(self._words.matching, collection, q, limit=limit, where=where)

    def _fused(self, nearest: Sequence[Match], by_words: Sequence[Match]) -> list[Found]:
        found = {match.key: _of_vectors(rank, match) for rank, match in enumerate(nearest, start=1)}
        for rank, match in enumerate(by_words, start=1):
            worded = _of_words(rank, match)
            near = found.get(match.key, worded)
            found[match.key] = replace(near, keyword_score=worded.keyword_score, keyword_rank=rank)
        legs = [(nearest, self._vector_weight), (by_words, self._keyword_weight)]
        fused = rrf([([match.key for match in leg], weight) for leg, weight in legs], k=self._k)
        return [replace(found[key], score=score) for key, score in fused]


def _of_vectors(rank: int, match: Match) -> Found:
    return Found(match.document, match.chunk, match.score, vector_score=match.score, vector_rank=rank)


def _of_words(rank: int, match: Match) -> Found:
    return Found(match.document, match.chunk, match.score, keyword_score=match.score, keyword_rank=rank)
