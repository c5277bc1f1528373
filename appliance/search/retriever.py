"""Finds passages for a question: by meaning, by words, or by both; and has the best of them reranked."""

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

import numpy as np

from appliance.embedding.embedder import Embedder
from appliance.embedding.engine import Image
from appliance.embedding.reranker import Reranker
from appliance.errors import InvalidInput
from appliance.search.cursor import Cursor
from appliance.search.diversity import capped, grouped, mmr
from appliance.search.fusion import RANK_CONSTANT, Fusion, by_rank, by_score, combined
from appliance.search.literal import literalness
from appliance.search.rerank import reranked
from appliance.store.base import Chunk, Match, Vector, VectorStore, Where, WordIndex

Mode: TypeAlias = Literal["hybrid", "vector", "keyword"]

Key: TypeAlias = tuple[str, str, int]
"""Names a passage: collection, document, ordinal."""

Known: TypeAlias = dict[tuple[str, int], Vector]
"""The question's vectors by model and dimensions."""

MAX_QUESTION: Final = 32_768
"""Characters of a question: many times what any model reads of it."""

MAX_LIMIT: Final = 1000
"""Matches of one search at most, those that are passed over included."""

MAX_PLACES: Final = 16
"""Collections of one search at most."""


@dataclass(frozen=True, slots=True)
class Place:
    """A collection to look in.

    Attributes:
        collection: its name.
        space: what its vectors can be compared with.
        dimensions: of its vectors.
        embedder: of its space; needed unless one searches by words.
        stored_as: its name in the store, where that is another one.
    """

    collection: str
    space: str
    dimensions: int
    embedder: Embedder | None = None
    stored_as: str = ""

    @property
    def index(self) -> str:
        """Its name in the store."""
        return self.stored_as or self.collection


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is looked for, and how.

    Attributes:
        q: a person's words; phrases in quotes and beginnings are looked up as `words.terms` says.
        places: where to look; 1 to 16. Those of one space share one ranking; rankings of several spaces are merged by
            rank.
        limit: matches wanted, or documents if `by_document`; with `offset` and what `after` has seen, at most 1000.
        offset: matches to pass over.
        after: goes on behind what it has seen; not with an offset.
        mode: by both, by meaning, or by words.
        min_score: leaves out what scores less, on the mode's own scale, or the reranker's (see `Found.score`).
        where: what a passage's metadata must hold; looked at before the best are chosen.
        reranker: puts the best in a new order, before they are cut to the limit.
        image: taken for the meaning instead of the words; alone, `q` is empty and `mode` is "vector".
        fusion, vector_weight, keyword_weight: instead of the retriever's own.
        per_document: passages of one document, at most; None for no limit.
        by_document: a match is a document with its best passages.
        diversity: 0 to 1; how much a match must differ from those before it.
        exact: compares with every vector, in large collections too.
    """

    q: str
    places: Sequence[Place]
    limit: int = 10
    offset: int = 0
    after: Cursor | None = None
    mode: Mode = "hybrid"
    min_score: float | None = None
    where: Where = ()
    reranker: Reranker | None = None
    image: Image | None = None
    fusion: Fusion | None = None
    vector_weight: float | None = None
    keyword_weight: float | None = None
    per_document: int | None = None
    by_document: bool = False
    diversity: float = 0.0
    exact: bool = False

    @property
    def wanted(self) -> int:
        """Matches to have before some are passed over."""
        return self.limit + (self.offset if self.after is None else len(self.after.seen))


@dataclass(frozen=True, slots=True)
class Found:
    """A passage that was found.

    Attributes:
        score: what matches are ordered by. hybrid: fused, 1.0 is the best that can be; vector: cosine similarity;
            keyword: BM25, which has no upper end and means something within one search only. Merged over several
            spaces, it is 1.0 for the first of each, and less by rank. Reranked, it is `rerank_score`.
        vector_score: cosine similarity; None if not among the nearest that were looked at.
        vector_rank: place among the nearest, from 1.
        keyword_score: BM25; None if not among the best by words that were looked at.
        keyword_rank: place among the best by words, from 1.
        vector_scaled, keyword_scaled: 0 to 1, what fusion took from each; None where there was nothing to fuse.
        fused_score: the score of fusion; None where there was nothing to fuse.
        cap: what is taken off it, 0 or less, so that what was looked at later does not come before what was looked at
            first; None where there was nothing to fuse.
        space_rank: place among the matches of its space, where several are merged.
        rerank_score: how relevant the reranker holds the passage, 0 to 1; None if it was not asked.
        rank: place before reranking and diversity, from 1.
        stored_as: as of `Place`.
    """

    document: str
    chunk: Chunk
    score: float
    vector_score: float | None = None
    vector_rank: int | None = None
    keyword_score: float | None = None
    keyword_rank: int | None = None
    rerank_score: float | None = None
    collection: str = ""
    vector_scaled: float | None = None
    keyword_scaled: float | None = None
    fused_score: float | None = None
    cap: float | None = None
    space_rank: int | None = None
    rank: int = 0
    stored_as: str = ""

    @property
    def key(self) -> Key:
        """Names the passage."""
        return self.collection, self.document, self.chunk.ordinal

    @property
    def index(self) -> str:
        """Its collection's name in the store."""
        return self.stored_as or self.collection


@dataclass(frozen=True, slots=True)
class Weights:
    """What the legs of a hybrid search count for.

    Attributes:
        fusion: by ranks or by scores.
        vector, keyword: the weights, the latter with what a literal question adds.
        literal: 0 to 1, how literal the question is.
    """

    fusion: Fusion
    vector: float
    keyword: float
    literal: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found.

    Attributes:
        groups: the matches, the best first; each a passage, or the best passages of a document.
        after: goes on behind them; None where nothing more can follow.
        weights: how a hybrid search was fused; None for other modes.
    """

    groups: list[list[Found]] = field(default_factory=list)
    after: Cursor | None = None
    weights: Weights | None = None

    @property
    def found(self) -> list[Found]:
        """The best passage of each match."""
        return [group[0] for group in self.groups]


@dataclass(frozen=True, slots=True)
class _Leg:
    """Matches of one collection by meaning and by words; and whether there may be more of them."""

    place: Place
    nearest: Sequence[Match] = ()
    by_words: Sequence[Match] = ()


class Retriever:
    """Searches one pair of stores.

    Args:
        vectors: searched by meaning.
        words: searched by words; of the same chunks.
        depth: matches taken from each of the two before they are fused; more if more are asked for.
        fusion: by ranks, or by scores.
        vector_weight: what a match by meaning counts for.
        keyword_weight: what a match by words counts for.
        literal_boost: what that is multiplied by for a question that names a thing (see `literal`); for one that does
            so in part, less.
        k: rank constant of the fusion by ranks.
        rerank_depth: best matches that a reranker is given; more if more are asked for.
    """

    def __init__(
        self,
        *,
        vectors: VectorStore,
        words: WordIndex,
        depth: int = 100,
        fusion: Fusion = "rrf",
        vector_weight: float = 1.0,
        keyword_weight: float = 1.0,
        literal_boost: float = 1.0,
        k: int = RANK_CONSTANT,
        rerank_depth: int = 50,
    ) -> None:
        self._vectors = vectors
        self._words = words
        self._depth = depth
        self._fusion: Fusion = fusion
        self._vector_weight = vector_weight
        self._keyword_weight = keyword_weight
        self._literal_boost = literal_boost
        self._k = k
        self._rerank_depth = rerank_depth

    async def search(self, query: Query, *, known: Mapping[tuple[str, int], Vector] | None = None) -> Answer:
        """The best passages, the best first.

        What comes first does not depend on how many are asked for, as long as no reranker is asked and no diversity
        wanted: pages by `offset` fit together while the documents stay as they are.

        Args:
            query: what is looked for.
            known: the question's vectors, as far as `embed` gave them before.

        Raises:
            InvalidInput: an empty question or one that is too long, a limit, weight or least score that is none, an
                image that is none or that a model does not take.
            CollectionNotFound: there is no such collection.
            Overloaded: too many requests wait for the engine.
            EngineError: the question could not be embedded, or the passages not reranked. No search goes on without.
        """
        check(query)
        weights = self._weights(query)
        vectors: Known = dict(known or {})
        depth = self._first_depth(query)
        while True:
            legs = await self._legs(query, vectors, depth)
            ranking = self._ranking(query, legs, weights)
            if query.per_document is not None:
                ranking = capped(ranking, _document, most=query.per_document)
            enough = len({_document(each) for each in ranking} if query.by_document else ranking) > query.wanted
            exhausted = all(max(len(leg.nearest), len(leg.by_words)) < depth for leg in legs)
            if enough or exhausted or depth >= MAX_LIMIT:
                break
            depth *= 2
        ranking = [replace(each, rank=place) for place, each in enumerate(ranking, start=1)]
        cut = False
        if query.reranker is not None:
            pool = max(self._rerank_depth, _passages_of(query, ranking))
            cut = pool < len(ranking)
            ranking = await self._reranked(query, ranking[:pool], query.reranker)
        if query.min_score is not None:
            least = query.min_score
            ranking = [each for each in ranking if each.score >= least]
        if query.diversity:
            pool = max(self._depth, _passages_of(query, ranking))
            ranking = [*await self._varied(ranking[:pool], query.diversity), *ranking[pool:]]
        return _page(query, ranking, weights if query.mode == "hybrid" else None, cut=cut)

    async def embed(self, queries: Iterable[Query]) -> list[Known]:
        """The vectors of many questions, each model asked once; for `search` to take.

        Raises:
            As `search`.
        """
        asked = list(queries)
        result: list[Known] = [{} for _ in asked]
        tasks: dict[tuple[str, int], tuple[Embedder, list[int]]] = {}
        for number, query in enumerate(asked):
            check(query)
            for place in query.places if query.mode != "keyword" else ():
                embedder = _embedder(place, query)
                _, numbers = tasks.setdefault((embedder.spec.name, place.dimensions), (embedder, []))
                numbers.append(number)
        for (model, dimensions), (embedder, numbers) in tasks.items():
            unique = list(dict.fromkeys(numbers))
            inputs = [asked[number].image or asked[number].q for number in unique]
            embeddings = await embedder.embed(inputs, kind="query", dimensions=dimensions)
            for number, vector in zip(unique, embeddings.vectors, strict=True):
                result[number][model, dimensions] = vector
        return result

    async def similar(
        self,
        place: Place,
        document: str,
        *,
        limit: int = 10,
        per_document: int = 1,
        min_score: float | None = None,
        where: Where = (),
    ) -> Answer:
        """Documents whose passages are nearest to the mean of a document's own, the most similar first.

        Args:
            place: the document's collection; needs no embedder.
            document: it is never among the answers; one without passages is like none.
            limit: documents, at most 1000.
            per_document: passages that are given of each.
            min_score: least cosine similarity.
            where: what a passage's metadata must hold.

        Raises:
            CollectionNotFound: there is no such collection.
        """
        chunks = await asyncio.to_thread(self._vectors.chunks, place.index, document)
        rows = await self._vectors_of([(place.index, document, chunk.ordinal) for chunk in chunks])
        if not rows:
            return Answer()
        mean = np.mean(np.stack(list(rows.values())), axis=0, dtype=np.float64)
        length = float(np.linalg.norm(mean))
        centre = next(iter(rows.values())) if length < 1e-6 else np.asarray(mean / length, np.float32)  # noqa: PLR2004
        depth = min(len(chunks) + 4 * limit, MAX_LIMIT)
        while True:
            nearest = await asyncio.to_thread(self._nearest_in, place, centre, depth, where)
            others = [each for each in nearest if each.document != document]
            found = [
                replace(_of_vectors(rank, each, place), rank=rank)
                for rank, each in enumerate(others, start=1)
                if min_score is None or each.score >= min_score
            ]
            groups = grouped(found, _document)
            if len(groups) >= limit or len(nearest) < depth or depth >= MAX_LIMIT:
                return Answer([group[:per_document] for group in groups[:limit]])
            depth = min(2 * depth, MAX_LIMIT)

    def _weights(self, query: Query) -> Weights:
        vector = self._vector_weight if query.vector_weight is None else query.vector_weight
        keyword = self._keyword_weight if query.keyword_weight is None else query.keyword_weight
        if vector == keyword == 0:
            raise InvalidInput("vector_weight and keyword_weight cannot both be 0", param="vector_weight")
        literal = literalness(query.q)
        keyword *= 1 + literal * (self._literal_boost - 1)
        return Weights(query.fusion or self._fusion, vector, keyword, literal)

    def _first_depth(self, query: Query) -> int:
        wanted = query.wanted + 1  # whether one follows
        if query.reranker is not None:
            wanted = max(wanted, self._rerank_depth)
        if query.diversity:
            wanted = max(wanted, self._depth)
        if query.mode != "hybrid":
            return wanted
        depth = self._depth  # each step of the fusion whole: half of one would have another order
        while depth < wanted:
            depth *= 2
        return depth

    async def _legs(self, query: Query, vectors: Known, depth: int) -> list[_Leg]:
        """What each place has, to this depth."""

        async def nearest() -> list[list[Match]]:
            if query.mode == "keyword":
                return [[] for _ in query.places]
            missing = [
                each for each in query.places if (_embedder(each, query).spec.name, each.dimensions) not in vectors
            ]
            if missing:
                vectors.update((await self.embed([replace(query, places=missing)]))[0])
            return await asyncio.gather(
                *(
                    asyncio.to_thread(
                        self._nearest_in,
                        each,
                        vectors[_embedder(each, query).spec.name, each.dimensions],
                        depth,
                        query.where,
                        exact=query.exact,
                    )
                    for each in query.places
                )
            )

        async def by_words() -> list[list[Match]]:
            if query.mode == "vector":
                return [[] for _ in query.places]
            match = self._words.matching
            return await asyncio.gather(
                *(
                    asyncio.to_thread(match, each.index, query.q, limit=depth, where=query.where)
                    for each in query.places
                )
            )

        near, worded = await asyncio.gather(nearest(), by_words())
        return [_Leg(*each) for each in zip(query.places, near, worded, strict=True)]

    def _nearest_in(
        self, place: Place, vector: Vector, limit: int, where: Where, *, exact: bool = False
    ) -> list[Match]:
        return self._vectors.nearest(place.index, vector, limit=limit, where=where, exact=exact)

    def _ranking(self, query: Query, legs: Sequence[_Leg], weights: Weights) -> list[Found]:
        """One ranking of all places: of each space by score, over spaces by rank."""
        spaces: dict[str, list[_Leg]] = {}
        for leg in legs:
            spaces.setdefault("" if query.mode == "keyword" else leg.place.space, []).append(leg)
        rankings = []
        for alike in spaces.values():
            near = _merged([(leg.place, match) for leg in alike for match in leg.nearest])
            worded = _merged([(leg.place, match) for leg in alike for match in leg.by_words])
            of_vectors = [_of_vectors(rank, match, place) for rank, (place, match) in enumerate(near, start=1)]
            of_words = [_of_words(rank, match, place) for rank, (place, match) in enumerate(worded, start=1)]
            match query.mode:
                case "vector":
                    rankings.append(of_vectors)
                case "keyword":
                    rankings.append(of_words)
                case _:
                    rankings.append(self._fused(of_vectors, of_words, weights))
        if len(rankings) == 1:
            return rankings[0]
        ranked = [
            replace(each, score=(self._k + 1) / (self._k + rank), space_rank=rank)
            for ranking in rankings
            for rank, each in enumerate(ranking, start=1)
        ]
        return sorted(ranked, key=lambda each: -each.score)

    def _fused(self, near: Sequence[Found], worded: Sequence[Found], weights: Weights) -> list[Found]:
        """Both legs in one: what the first `depth` of each give, then what twice as many add, and so on.

        So the first do not change their order when more are looked at.
        """
        done: dict[Key, Found] = {}
        depth, lowest = self._depth, 1.0
        while True:
            for each in self._fused_to(near[:depth], worded[:depth], weights):
                if each.key not in done:
                    done[each.key] = replace(each, score=min(each.score, lowest), cap=min(lowest - each.score, 0.0))
            if depth >= max(len(near), len(worded)):
                return list(done.values())
            lowest = min((each.score for each in done.values()), default=1.0)
            depth *= 2

    def _fused_to(self, near: Sequence[Found], worded: Sequence[Found], weights: Weights) -> list[Found]:
        found = {each.key: each for each in near}
        for each in worded:
            also = found.get(each.key, each)
            found[each.key] = replace(also, keyword_score=each.keyword_score, keyword_rank=each.keyword_rank)
        if weights.fusion == "rrf":
            scaled = [by_rank([each.key for each in leg], k=self._k) for leg in (near, worded)]
        else:
            among = max(len(near), len(worded))
            scaled = [by_score({each.key: each.score for each in leg}, among=among) for leg in (near, worded)]
        fused = combined(list(zip(scaled, (weights.vector, weights.keyword), strict=True)))
        return [
            replace(
                found[key],
                score=score,
                fused_score=score,
                vector_scaled=scaled[0].get(key),
                keyword_scaled=scaled[1].get(key),
            )
            for key, score in fused
        ]

    async def _reranked(self, query: Query, best: Sequence[Found], reranker: Reranker) -> list[Found]:
        order = await reranked(query.q, [each.chunk for each in best], reranker)
        return [replace(best[place], score=score, rerank_score=score) for place, score in order]

    async def _varied(self, ranking: Sequence[Found], diversity: float) -> list[Found]:
        keys = [(each.index, each.document, each.chunk.ordinal) for each in ranking]
        vectors = await self._vectors_of(keys)
        scores = [each.score for each in ranking]
        order = await asyncio.to_thread(mmr, scores, [vectors.get(key) for key in keys], diversity=diversity)
        return [ranking[place] for place in order]

    async def _vectors_of(self, keys: Sequence[Key]) -> dict[Key, Vector]:
        """By the collections' names in the store."""
        collections: dict[str, list[tuple[str, int]]] = {}
        for collection, document, ordinal in keys:
            collections.setdefault(collection, []).append((document, ordinal))
        found: dict[Key, Vector] = {}
        for collection, wanted in collections.items():
            vectors = await asyncio.to_thread(self._vectors.vectors, collection, wanted)
            found |= {(collection, *key): vector for key, vector in vectors.items()}
        return found


def check(query: Query) -> None:
    """Raise InvalidInput for a query that cannot be answered, whatever there is."""
    if not query.q.strip() and (query.image is None or query.mode != "vector"):
        raise InvalidInput("q is empty", param="q")
    if len(query.q) > MAX_QUESTION:
        raise InvalidInput(f"q has {len(query.q):,} characters; {MAX_QUESTION:,} are the most", param="q")
    if not 1 <= query.limit <= MAX_LIMIT:
        raise InvalidInput(f"the limit is 1 to {MAX_LIMIT}", param="limit")
    if query.offset and query.after is not None:
        raise InvalidInput("give offset or after, not both", param="offset")
    if query.offset < 0 or query.offset + query.limit > MAX_LIMIT:
        raise InvalidInput(f"offset and k are at most {MAX_LIMIT} together", param="offset")
    if query.min_score is not None and not math.isfinite(query.min_score):
        raise InvalidInput("min_score is a finite number", param="min_score")
    if not 0 <= query.diversity <= 1:
        raise InvalidInput("diversity is 0 to 1", param="diversity")
    if query.per_document is not None and query.per_document < 1:
        raise InvalidInput("per_document is 1 or more", param="per_document")
    if not 1 <= len(query.places) <= MAX_PLACES:
        raise InvalidInput(f"1 to {MAX_PLACES} collections can be searched at once", param="collection")


def _passages_of(query: Query, ranking: Sequence[Found]) -> int:
    """How many of the ranking hold the matches that are wanted."""
    if not query.by_document:
        return query.wanted
    documents: set[tuple[str, str]] = set()
    for place, each in enumerate(ranking):
        documents.add(_document(each))
        if len(documents) > query.wanted:
            return place
    return len(ranking)


def _page(query: Query, ranking: Sequence[Found], weights: Weights | None, *, cut: bool) -> Answer:
    """The part of the ranking that was asked for. Where the ranking was `cut`, more may follow than it has."""
    groups = grouped(ranking, _document) if query.by_document else [[each] for each in ranking]
    after = query.after
    if after is not None:
        groups = [group for group in groups if not after.has(_named(query, group))]
    start = query.offset if after is None else 0
    page = groups[start : start + query.limit]
    following: Cursor | None = None
    if after is not None and (len(groups) > len(page) or (cut and len(page) == query.limit)):
        following = after.followed(_named(query, group) for group in page)
        if len(following.seen) >= MAX_LIMIT:
            following = None
    return Answer(page, following, weights)


def _named(query: Query, group: Sequence[Found]) -> tuple[str, ...] | Key:
    return _document(group[0]) if query.by_document else group[0].key


def _document(found: Found) -> tuple[str, str]:
    return found.collection, found.document


def _embedder(place: Place, query: Query) -> Embedder:
    if place.embedder is None:
        raise TypeError(f"a {query.mode} search needs an embedder")
    return place.embedder


def _merged(matches: list[tuple[Place, Match]]) -> list[tuple[Place, Match]]:
    """By score; of equals as the store has them, and the earlier place first."""
    return sorted(matches, key=lambda each: -each[1].score)


def _of_vectors(rank: int, match: Match, place: Place) -> Found:
    return Found(
        match.document,
        match.chunk,
        match.score,
        vector_score=match.score,
        vector_rank=rank,
        collection=place.collection,
        stored_as=place.stored_as,
    )


def _of_words(rank: int, match: Match, place: Place) -> Found:
    return Found(
        match.document,
        match.chunk,
        match.score,
        keyword_score=match.score,
        keyword_rank=rank,
        collection=place.collection,
        stored_as=place.stored_as,
    )
