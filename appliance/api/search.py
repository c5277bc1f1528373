"""Search: from a question to passages, with what is needed to cite them."""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field, JsonValue, WithJsonSchema

from appliance.api import images
from appliance.api.deps import (
    Appliance,
    ApplianceDep,
    JsonObject,
    StrictBody,
    json_body,
    known_query,
    request_body,
)
from appliance.api.documents import DEFAULT_COLLECTION, empty_until_made
from appliance.api.where import FILTER, held, read, written
from appliance.catalog.records import Collection
from appliance.embedding.embedder import Embedder
from appliance.embedding.engine import Image
from appliance.embedding.reranker import Reranker
from appliance.embedding.spec import ModelSpec
from appliance.errors import CollectionNotFound, InvalidInput, ModelMismatch
from appliance.search import context as contexts
from appliance.search import retriever
from appliance.search.cursor import Cursor
from appliance.search.fusion import Fusion
from appliance.search.highlights import Marker, snippet
from appliance.search.passages import around, merged
from appliance.search.retriever import MAX_LIMIT, MAX_PLACES, MAX_QUESTION, Answer, Found, Known, Mode, Place, Weights
from appliance.store.base import Condition

router = APIRouter(tags=["search"], dependencies=[Depends(known_query)])

Format = Literal["matches", "context", "text"]

MAX_SEARCHES = 100
"""Of one batch."""

MAX_NEIGHBOURS = 10
"""Chunks that are given on either side of a match."""

MAX_TOKENS = 100_000
"""Of one context."""

_TOKENS = 2000
_PASSAGES = 3
"""Of a document, where matches are grouped and no number is said."""

_AT_ONCE = 4
"""Searches of a batch that run beside each other: the store's threads are for others, too."""

Q = (
    f"a person's words, {MAX_QUESTION:,} characters at most. Words in double quotes are looked up as a phrase, and "
    "`walr*` is every word that begins so; nothing else is an operator"
)
K = "matches; with `group=document`, documents"
OFFSET = f"matches to pass over; with `k` at most {MAX_LIMIT}"
AFTER = "`next` of the answer before: what follows, nothing twice, while documents come and go"
COLLECTION = f"one, or up to {MAX_PLACES}, parted by commas"
MIN_SCORE = "leaves out what scores less: cosine, BM25, or 0 to 1 for hybrid and reranked"
MODEL = "embeds the question; refused with 409 if of another space"
RERANK = "have a reranker put the best matches in order; the score is then its relevance, 0 to 1"
RERANKER = "name of the reranker; asks for reranking unless `rerank` is false"
FUSION = "how a hybrid search makes one ranking of two: by ranks, or by scores; the setting if left out"
VECTOR_WEIGHT = "what meaning counts for in a hybrid search; the setting if left out"
KEYWORD_WEIGHT = "what words count for in a hybrid search; the setting if left out"
GROUP = "`document`: a match is a document, with its best passages"
PER_DOCUMENT = f"passages of one document at most; no limit if left out, {_PASSAGES} where matches are grouped"
EXACT = "compare the question with every vector, in collections of more than 50,000 chunks too: slower, and complete"
DIVERSITY = "how much a match must differ from those before it, 0 to 1 (maximal marginal relevance)"
CONTEXT = "so many passages before and after each match, joined to one text"
HIGHLIGHT = "tell where in `text` the words of the question stand"
SNIPPET = "give the part of `text` with most of these words, in so many characters"
EXPLAIN = "tell the parts of each score"
FORMAT = "`context`: numbered passages for a language model, with citations; `text`: the same as plain text"
TOKENS = f"of a context, at most, as the collection's model counts; {_TOKENS} if left out"


class SearchBody(StrictBody):
    """A search that does not fit into a URL, or that asks with an image."""

    q: str | None = Field(default=None, description=f"{Q}. Needed unless there is an image")
    image: Annotated[str, WithJsonSchema(images.SCHEMA)] | None = Field(
        default=None,
        description="finds what is like this image, in a collection whose model takes images; beside `q`, the words of "
        "`q` are looked for as well",
    )
    k: int = Field(default=10, ge=1, le=MAX_LIMIT, description=K)
    offset: int = Field(default=0, ge=0, lt=MAX_LIMIT, description=OFFSET)
    after: str | None = Field(default=None, description=AFTER)
    collection: str | list[str] = Field(default=DEFAULT_COLLECTION, description=COLLECTION)
    mode: Mode | None = Field(
        default=None, description="hybrid, if left out; vector, if there is an image and no `q`", examples=["hybrid"]
    )
    min_score: float | None = Field(default=None, allow_inf_nan=False, description=MIN_SCORE)
    where: JsonObject = Field(
        default_factory=dict,
        description='metadata a match must have: {"lang": "en", "year": {">=": 2020}, "tag": {"in": ["a", "b"]}}',
    )
    filter: str | None = Field(default=None, description=FILTER)
    model: str | None = Field(default=None, description=MODEL)
    rerank: bool | None = Field(default=None, description=RERANK)
    reranker: str | None = Field(default=None, description=RERANKER)
    fusion: Fusion | None = Field(default=None, description=FUSION)
    vector_weight: float | None = Field(default=None, ge=0, le=1000, description=VECTOR_WEIGHT)
    keyword_weight: float | None = Field(default=None, ge=0, le=1000, description=KEYWORD_WEIGHT)
    group: Literal["document"] | None = Field(default=None, description=GROUP)
    per_document: int | None = Field(default=None, ge=1, le=MAX_LIMIT, description=PER_DOCUMENT)
    diversity: float = Field(default=0.0, ge=0, le=1, description=DIVERSITY)
    exact: bool = Field(default=False, description=EXACT)
    context: int = Field(default=0, ge=0, le=MAX_NEIGHBOURS, description=CONTEXT)
    highlight: bool = Field(default=False, description=HIGHLIGHT)
    snippet: int | None = Field(default=None, ge=20, le=2000, description=SNIPPET)
    explain: bool = Field(default=False, description=EXPLAIN)
    format: Format = Field(default="matches", description=FORMAT)
    tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS, description=TOKENS)


class BatchBody(StrictBody):
    """Many searches at once."""

    searches: list[SearchBody] = Field(min_length=1, max_length=MAX_SEARCHES)


class AroundInfo(BaseModel):
    """A match with the passages around it as one text: the document's from `start` to `end`, in characters."""

    text: str
    start: int
    end: int
    first: int = Field(description="ordinal of the first passage in it")
    last: int = Field(description="ordinal of the last one")


class SnippetInfo(BaseModel):
    """A part of a match's text, from `start` to `end`; `highlights` are ranges in `text` of the snippet."""

    text: str
    start: int
    end: int
    highlights: list[tuple[int, int]]


class LegInfo(BaseModel):
    """What one of the two ways to find a passage adds to its score."""

    rank: int
    score: float = Field(description="cosine similarity, or BM25")
    scaled: float | None = Field(description="0 to 1, as fusion takes it; None where nothing is fused")
    weight: float | None
    share: float | None = Field(description="what this adds to the fused score")


class ExplanationInfo(BaseModel):
    """How a match came to its score and its place."""

    rank: int = Field(description="place before reranking and diversity")
    vector: LegInfo | None
    keyword: LegInfo | None
    fused_score: float | None = Field(description="sum of the shares; None where nothing is fused")
    cap: float | None = Field(
        description="0 or less, taken off the sum: what is looked at later, to go on after the first, stays behind them"
    )
    space_rank: int | None = Field(description="place among the matches of its space, where spaces are merged by rank")
    rerank_score: float | None


class FusionInfo(BaseModel):
    """How a hybrid search made one ranking of two."""

    fusion: Fusion
    vector_weight: float
    keyword_weight: float = Field(description="with what a literal question adds")
    literal: float = Field(description="share of the question's words that name a thing: quoted, codes, identifiers")


class MatchInfo(BaseModel):
    """A passage that was found. `text` is the document's text from `start` to `end`, in characters."""

    collection: str
    document: str
    title: str
    ordinal: int
    text: str
    start: int
    end: int
    metadata: dict[str, JsonValue]
    score: float
    vector_score: float | None = Field(description="cosine similarity; None if found by words alone")
    vector_rank: int | None
    keyword_score: float | None = Field(description="BM25; None if found by meaning alone")
    keyword_rank: int | None
    rerank_score: float | None = Field(description="relevance, 0 to 1; None if it was not asked for")
    passages: list["MatchInfo"] = Field(default=[], description="with `group`: other passages of the document")
    context: AroundInfo | None = Field(default=None, description="with `context`")
    highlights: list[tuple[int, int]] = Field(default=[], description="with `highlight`: character ranges in `text`")
    snippet: SnippetInfo | None = Field(default=None, description="with `snippet`")
    explanation: ExplanationInfo | None = Field(default=None, description="with `explain`")


class SearchAnswer(BaseModel):
    """Matches, the best first."""

    collection: str
    mode: Mode
    model: str | None = Field(description="the model that embedded the question; None for keyword search")
    reranker: str | None = Field(description="the model that reranked; None if it was not asked for")
    seconds: float
    matches: list[MatchInfo]
    next: str | None = Field(description="give it as `after` for what follows; None if nothing does")
    fusion: FusionInfo | None = Field(default=None, description="with `explain`, of a hybrid search")


class CitationInfo(BaseModel):
    """Where a numbered passage comes from: the document's text from `start` to `end`, in characters."""

    number: int
    collection: str
    document: str
    title: str
    source: str = Field(description="the metadata's `source`, `url` or `path`, or else the document's id")
    page: int | str | None = Field(description="the metadata's `page`")
    start: int
    end: int
    score: float
    cut: bool = Field(description="whether the passage's end was left out")


class ContextAnswer(BaseModel):
    """Numbered passages for a language model."""

    collection: str
    mode: Mode
    model: str | None
    reranker: str | None
    seconds: float
    context: str
    tokens: int = Field(description="of `context`, as `counted_by` counts")
    counted_by: str
    citations: list[CitationInfo]


class BatchAnswer(BaseModel):
    """The answers, in the order of the searches."""

    seconds: float
    results: list[SearchAnswer | ContextAnswer]


_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/search", response_model=SearchAnswer | ContextAnswer, response_model_exclude_unset=True, responses=_TEXT)
async def search(  # noqa: PLR0917  # FastAPI passes them by name
    appliance: ApplianceDep,
    q: Annotated[str, Query(description=Q)],
    k: Annotated[int, Query(ge=1, le=MAX_LIMIT, description=K)] = 10,
    offset: Annotated[int, Query(ge=0, lt=MAX_LIMIT, description=OFFSET)] = 0,
    after: Annotated[str | None, Query(description=AFTER)] = None,
    collection: Annotated[list[str] | None, Query(description=f"{COLLECTION} or repeated")] = None,
    mode: Mode = "hybrid",
    min_score: Annotated[float | None, Query(allow_inf_nan=False, description=MIN_SCORE)] = None,
    where: Annotated[
        list[str] | None, Query(description="`key=value`, also != < <= > >=; repeated, all must hold")
    ] = None,
    filter: Annotated[str | None, Query(description=FILTER)] = None,  # noqa: A002  # the word of the interface
    model: Annotated[str | None, Query(description=MODEL)] = None,
    rerank: Annotated[bool | None, Query(description=RERANK)] = None,
    reranker: Annotated[str | None, Query(description=RERANKER)] = None,
    fusion: Annotated[Fusion | None, Query(description=FUSION)] = None,
    vector_weight: Annotated[float | None, Query(ge=0, le=1000, description=VECTOR_WEIGHT)] = None,
    keyword_weight: Annotated[float | None, Query(ge=0, le=1000, description=KEYWORD_WEIGHT)] = None,
    group: Annotated[Literal["document"] | None, Query(description=GROUP)] = None,
    per_document: Annotated[int | None, Query(ge=1, le=MAX_LIMIT, description=PER_DOCUMENT)] = None,
    diversity: Annotated[float, Query(ge=0, le=1, description=DIVERSITY)] = 0.0,
    exact: Annotated[bool, Query(description=EXACT)] = False,  # noqa: FBT002  # passed by name
    context: Annotated[int, Query(ge=0, le=MAX_NEIGHBOURS, description=CONTEXT)] = 0,
    highlight: Annotated[bool, Query(description=HIGHLIGHT)] = False,  # noqa: FBT002  # passed by name
    snippet: Annotated[int | None, Query(ge=20, le=2000, description=SNIPPET)] = None,
    explain: Annotated[bool, Query(description=EXPLAIN)] = False,  # noqa: FBT002  # same
    format: Annotated[Format, Query(description=FORMAT)] = "matches",  # noqa: A002  # same as filter
    tokens: Annotated[int | None, Query(ge=1, le=MAX_TOKENS, description=TOKENS)] = None,
) -> Any:
    """Find passages by meaning, by words, or by both."""
    body = SearchBody.model_construct(
        q=q,
        k=k,
        offset=offset,
        after=after,
        collection=collection or DEFAULT_COLLECTION,
        mode=mode,
        min_score=min_score,
        filter=filter,
        model=model,
        rerank=rerank,
        reranker=reranker,
        fusion=fusion,
        vector_weight=vector_weight,
        keyword_weight=keyword_weight,
        group=group,
        per_document=per_document,
        diversity=diversity,
        exact=exact,
        context=context,
        highlight=highlight,
        snippet=snippet,
        explain=explain,
        format=format,
        tokens=tokens,
    )
    asked = await _asked(appliance, body, [read(each) for each in where or ()])
    return await _answered(appliance, asked)


@router.post(
    "/search",
    openapi_extra=request_body(SearchBody),
    response_model=SearchAnswer | ContextAnswer,
    response_model_exclude_unset=True,
    responses=_TEXT,
)
async def search_with_body(appliance: ApplianceDep, body: Annotated[SearchBody, Depends(json_body(SearchBody))]) -> Any:
    """The same, with the question in a JSON body, which may hold an image."""
    return await _answered(appliance, await _asked(appliance, body))


@router.post(
    "/search/batch",
    openapi_extra=request_body(BatchBody),
    response_model_exclude_unset=True,
)
async def search_many(
    appliance: ApplianceDep, body: Annotated[BatchBody, Depends(json_body(BatchBody))]
) -> BatchAnswer:
    """Up to 100 searches; the questions are embedded together. If one is wrong, none is answered."""
    start = perf_counter()
    asked: list[_Asked] = []
    for number, each in enumerate(body.searches):
        with _named(number):
            if each.format == "text":
                raise InvalidInput("format: in a batch it is matches or context", param="format")
            asked.append(await _asked(appliance, each))
    known = await appliance.retriever.embed([each.query for each in asked if each.made])
    vectors = iter(known)
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int, each: _Asked, vectors: Known) -> SearchAnswer | ContextAnswer:
        async with room:
            with _named(number):
                answer = await _answered(appliance, each, known=vectors)
                assert not isinstance(answer, Response)  # noqa: S101 - for mypy: no format is text
                return answer

    tasks = (one(number, each, next(vectors) if each.made else {}) for number, each in enumerate(asked))
    results = await asyncio.gather(*tasks)
    return BatchAnswer(seconds=round(perf_counter() - start, 6), results=results)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A search whose parts are known to be there.

    Attributes:
        body: what was asked.
        query: the same for the retriever.
        collection: names, as they are answered.
        made: whether there is anything to look in: the default collection is made with its first document.
        spec: card of the first collection's model; tokens are counted with it.
    """

    body: SearchBody
    query: retriever.Query
    collection: str
    made: bool
    spec: ModelSpec
    embedder: Embedder | None
    reranker: Reranker | None
    start: float


async def _asked(appliance: Appliance, body: SearchBody, where: list[Condition] | None = None) -> _Asked:
    start = perf_counter()
    mode = _mode(body)
    if body.tokens is not None and body.format == "matches":
        raise InvalidInput("tokens: it belongs to format=context or format=text", param="tokens")
    if body.after is not None and body.offset:
        raise InvalidInput("give offset or after, not both", param="offset")
    if body.offset + body.k > MAX_LIMIT:
        raise InvalidInput(f"offset and k are at most {MAX_LIMIT} together", param="offset")
    expressions = held(where or written(body.where), body.filter)
    image = None
    if body.image is not None:
        image = await asyncio.to_thread(images.decoded, body.image, param="image")
    names = _names(body.collection)
    places: list[Place] = []
    specs: list[ModelSpec] = []
    made: list[bool] = []
    for name in names:
        spec, there = await _space(appliance, name, asked=body.model, alone=len(names) == 1)
        if image is not None and not spec.takes_images:
            raise InvalidInput(
                f"the vectors of the collection {name} are of {spec.name}, which embeds texts, not images",
                param="image",
            )
        embedder = None if mode == "keyword" else await appliance.registry.get(spec.name)
        dimensions, stored_as = (spec.dimensions, "") if there is None else (there.dimensions, there.stored_as)
        places.append(Place(name, spec.space, dimensions, embedder, stored_as))
        specs.append(spec)
        made.append(there is not None)
    wanted = body.reranker is not None if body.rerank is None else body.rerank
    reranker = await appliance.registry.reranker(body.reranker or None) if wanted else None
    query = retriever.Query(
        q=body.q or "",
        places=[place for place, there in zip(places, made, strict=True) if there] or places[:1],
        limit=body.k,
        offset=body.offset,
        mode=mode,
        min_score=body.min_score,
        where=expressions,
        reranker=reranker,
        image=image,
        fusion=body.fusion,
        vector_weight=body.vector_weight,
        keyword_weight=body.keyword_weight,
        per_document=body.per_document or (_PASSAGES if body.group else None),
        by_document=body.group is not None,
        diversity=body.diversity,
        exact=body.exact,
    )
    if not body.offset:
        begun = Cursor.begun(_identity(query, names))
        query = replace(query, after=begun if body.after is None else begun.read(body.after))
    retriever.check(query)
    return _Asked(body, query, ",".join(names), any(made), specs[0], places[0].embedder, reranker, start)


def _identity(query: retriever.Query, names: Sequence[str]) -> list[object]:
    """All that decides about a search's matches, but for how many are wanted."""
    image = None if query.image is None else hashlib.sha256(query.image.data).hexdigest()
    reranker = query.reranker and query.reranker.spec.name
    weights = query.fusion, query.vector_weight, query.keyword_weight
    order = query.per_document, query.by_document, query.diversity, query.exact
    return [query.q, image, names, query.mode, query.min_score, query.where, reranker, weights, order]


def _names(given: str | list[str]) -> list[str]:
    parts = [given] if isinstance(given, str) else given
    names = list(dict.fromkeys(name.strip() for part in parts for name in part.split(",")))
    if not 1 <= len(names) <= MAX_PLACES:
        raise InvalidInput(f"1 to {MAX_PLACES} collections can be searched at once", param="collection")
    return names


def _mode(body: SearchBody) -> Mode:
    """How to search. What is given is looked for, or refused: none of it is left out unsaid."""
    if body.image is None:
        if body.q is None:
            raise InvalidInput("q: it is missing", param="q")
        return body.mode or "hybrid"
    mode: Mode = "vector" if body.q is None else "hybrid"
    if body.mode not in {None, mode}:
        other = "with an image and q, mode is hybrid" if body.q is not None else "with an image alone, mode is vector"
        raise InvalidInput(f"mode: {other}", param="mode")
    if body.q is None and (body.rerank or (body.reranker is not None and body.rerank is None)):
        raise InvalidInput("a reranker reads texts: give q beside the image", param="rerank")
    return mode


async def _answered(
    appliance: Appliance, asked: _Asked, *, known: Known | None = None
) -> SearchAnswer | ContextAnswer | Response:
    body, mode = asked.body, asked.query.mode
    answer = Answer()
    with empty_until_made(asked.collection), _named_image(asked.query.image):
        answer = await appliance.retriever.search(asked.query, known=known)
    about: dict[str, Any] = {
        "collection": asked.collection,
        "mode": mode,
        "model": asked.embedder and asked.embedder.spec.name,
        "reranker": asked.reranker and asked.reranker.spec.name,
    }
    if body.format != "matches":
        made = await _context(appliance, asked, answer)
        appliance.metrics.searched(mode, seconds=perf_counter() - asked.start, results=len(answer.groups))
        if body.format == "text":
            return Response(made.text, media_type="text/plain; charset=utf-8")
        return ContextAnswer(
            **about,
            seconds=round(perf_counter() - asked.start, 6),
            context=made.text,
            tokens=made.tokens,
            counted_by=asked.spec.name,
            citations=[CitationInfo.model_validate(each, from_attributes=True) for each in made.citations],
        )
    matches = await _matches(appliance, asked, answer)
    seconds = perf_counter() - asked.start
    appliance.metrics.searched(mode, seconds=seconds, results=len(matches))
    more: dict[str, Any] = {}
    if body.explain and answer.weights is not None:
        weights = answer.weights
        more["fusion"] = FusionInfo(
            fusion=weights.fusion,
            vector_weight=weights.vector,
            keyword_weight=weights.keyword,
            literal=weights.literal,
        )
    following = None if answer.after is None else str(answer.after)
    return SearchAnswer(**about, seconds=round(seconds, 6), matches=matches, next=following, **more)


async def _context(appliance: Appliance, asked: _Asked, answer: Answer) -> contexts.Context:
    embedder = asked.embedder or await appliance.registry.get(asked.spec.name)
    found = [each for group in answer.groups for each in group]
    tokens = asked.body.tokens or _TOKENS

    def write() -> contexts.Context:
        passages = merged(appliance.store, found, neighbours=asked.body.context)
        return contexts.context(passages, tokens=tokens, spans=embedder.spans)

    with empty_until_made(asked.collection):
        return await asyncio.to_thread(write)
    return contexts.Context("", 0, [])


async def _matches(appliance: Appliance, asked: _Asked, answer: Answer) -> list[MatchInfo]:
    body = asked.body
    texts: dict[retriever.Key, AroundInfo] = {}
    if body.context:
        found = [each for group in answer.groups for each in group]
        with empty_until_made(asked.collection):
            passages = await asyncio.to_thread(around, appliance.store, found, neighbours=body.context)
            texts = {each.found.key: AroundInfo.model_validate(each, from_attributes=True) for each in passages}

    def told(each: Found, marker: Marker | None) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if each.key in texts:
            more["context"] = texts[each.key]
        if marker is not None:
            ranges = marker.ranges(each.chunk.text)
            if body.highlight:
                more["highlights"] = ranges
            if body.snippet is not None:
                part = snippet(each.chunk.text, ranges, length=body.snippet)
                more["snippet"] = SnippetInfo.model_validate(part, from_attributes=True)
        if body.explain:
            more["explanation"] = _explained(each, answer.weights)
        return more

    def write() -> list[MatchInfo]:
        marker = Marker(body.q or "") if marked else None
        matches = []
        for best, *others in answer.groups:
            more = {"passages": [match_info(each, **told(each, marker)) for each in others]} if body.group else {}
            matches.append(match_info(best, **told(best, marker), **more))
        return matches

    marked = body.highlight or body.snippet is not None
    return await asyncio.to_thread(write) if marked else write()


def _explained(found: Found, weights: Weights | None) -> ExplanationInfo:
    total = 1.0 if weights is None else weights.vector + weights.keyword

    def leg(rank: int | None, score: float | None, scaled: float | None, weight: float | None) -> LegInfo | None:
        if rank is None or score is None:
            return None
        share = None if scaled is None or weight is None else scaled * weight / total
        return LegInfo(rank=rank, score=score, scaled=scaled, weight=weight, share=share)

    return ExplanationInfo(
        rank=found.rank,
        vector=leg(
            found.vector_rank, found.vector_score, found.vector_scaled, None if weights is None else weights.vector
        ),
        keyword=leg(
            found.keyword_rank, found.keyword_score, found.keyword_scaled, None if weights is None else weights.keyword
        ),
        fused_score=found.fused_score,
        cap=found.cap,
        space_rank=found.space_rank,
        rerank_score=found.rerank_score,
    )


@contextmanager
def _named_image(image: Image | None) -> Iterator[None]:
    """What is wrong with the image, said of the field that it came in."""
    try:
        yield
    except InvalidInput as error:
        if image is None or error.param != "input":
            raise
        raise InvalidInput(error.message, param="image") from error


@contextmanager
def _named(number: int) -> Iterator[None]:
    """What is wrong with one search of a batch, said of its place."""
    try:
        yield
    except InvalidInput as error:
        path = f"searches.{number}"
        raise InvalidInput(
            f"{path}: {error.message}", param=path if error.param is None else f"{path}.{error.param}"
        ) from error


async def _space(
    appliance: Appliance, collection: str, *, asked: str | None, alone: bool
) -> tuple[ModelSpec, Collection | None]:
    """The card to embed the question with, and the collection; None for the default one before it is made."""
    try:
        there = await asyncio.to_thread(appliance.catalog.collection, collection)
    except CollectionNotFound:
        if collection != DEFAULT_COLLECTION:
            raise
        spec = appliance.registry.default
        spec = appliance.registry.within(spec.space, spec.name, asked=asked)
        return spec, None
    try:
        return appliance.registry.within(there.space, there.model, asked=asked), there
    except ModelMismatch as error:
        if alone:
            raise
        raise ModelMismatch(f"{collection}: {error.message}") from error


def match_info(found: Found, **more: Any) -> MatchInfo:
    """A match as it is answered; `more` are its optional fields."""
    chunk = found.chunk
    return MatchInfo(
        collection=found.collection,
        document=found.document,
        title=chunk.title,
        ordinal=chunk.ordinal,
        text=chunk.text,
        start=chunk.start,
        end=chunk.end,
        metadata=dict(chunk.metadata),
        score=found.score,
        vector_score=found.vector_score,
        vector_rank=found.vector_rank,
        keyword_score=found.keyword_score,
        keyword_rank=found.keyword_rank,
        rerank_score=found.rerank_score,
        **more,
    )
