"""Search: from a question to passages, with what is needed to cite them."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import Annotated, Any, Literal, TypeGuard, get_args

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field, JsonValue, WithJsonSchema

from appliance.api import images
from appliance.api.deps import (
    Appliance,
    ApplianceDep,
    JsonObject,
    StrictBody,
    json_body,
    known_query,
    parsed,
    request_body,
)
from appliance.api.documents import DEFAULT_COLLECTION, empty_until_made
from appliance.embedding.engine import Image
from appliance.embedding.spec import ModelSpec
from appliance.errors import CollectionNotFound, InvalidInput
from appliance.search.retriever import MAX_LIMIT, Found, Mode
from appliance.store.base import Condition, Value, Where

router = APIRouter(tags=["search"], dependencies=[Depends(known_query)])

Op = Literal["=", "!=", "<", "<=", ">", ">=", "in"]
_OPS: dict[str, Op] = {op: op for op in get_args(Op)}

MAX_CONDITIONS = 100
MAX_VALUES = 10_000
"""Of one search at most: each condition is looked at for each passage; the values are those of `in`, together."""

_CONDITION = re.compile(r"(?P<key>[^=!<>]+?)\s*(?P<op>[=!<>]+)\s*(?P<value>.*)", re.DOTALL)


RERANK = "have a reranker put the best matches in order; the score is then its relevance, 0 to 1"
RERANKER = "name of the reranker; asks for reranking unless `rerank` is false"


class SearchBody(StrictBody):
    """A search that does not fit into a URL, or that asks with an image."""

    q: str | None = Field(default=None, description="needed unless there is an image")
    image: Annotated[str, WithJsonSchema(images.SCHEMA)] | None = Field(
        default=None,
        description="finds what is like this image, in a collection whose model takes images; beside `q`, the words of "
        "`q` are looked for as well",
    )
    k: int = Field(default=10, ge=1, le=MAX_LIMIT)
    collection: str = DEFAULT_COLLECTION
    mode: Mode | None = Field(
        default=None, description="hybrid, if left out; vector, if there is an image and no `q`", examples=["hybrid"]
    )
    min_score: float | None = Field(default=None, allow_inf_nan=False)
    where: JsonObject = Field(
        default_factory=dict,
        description='metadata a match must have: {"lang": "en", "year": {">=": 2020}, "tag": {"in": ["a", "b"]}}',
    )
    model: str | None = Field(default=None, description="embeds the question; refused with 409 if of another space")
    rerank: bool | None = Field(default=None, description=RERANK)
    reranker: str | None = Field(default=None, description=RERANKER)


class MatchInfo(BaseModel):
    """A passage that was found. `text` is the document's text from `start` to `end`, in characters."""

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


class SearchAnswer(BaseModel):
    """Matches, the best first."""

    collection: str
    mode: Mode
    model: str | None = Field(description="the model that embedded the question; None for keyword search")
    reranker: str | None = Field(description="the model that reranked; None if it was not asked for")
    seconds: float
    matches: list[MatchInfo]


@router.get("/search")
async def search(  # noqa: PLR0917  # FastAPI passes them by name
    appliance: ApplianceDep,
    q: Annotated[str, Query(description="a person's words; nothing in them is an operator")],
    k: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 10,
    collection: str = DEFAULT_COLLECTION,
    mode: Mode = "hybrid",
    min_score: Annotated[
        float | None, Query(allow_inf_nan=False, description="cosine, BM25, or 0 to 1 for hybrid and reranked")
    ] = None,
    where: Annotated[
        list[str] | None, Query(description="`key=value`, also != < <= > >=; repeated, all must hold")
    ] = None,
    model: str | None = None,
    rerank: Annotated[bool | None, Query(description=RERANK)] = None,
    reranker: Annotated[str | None, Query(description=RERANKER)] = None,
) -> SearchAnswer:
    """Find passages by meaning, by words, or by both."""
    conditions = _bounded([_parsed(each) for each in where or ()])
    return await _search(
        appliance,
        q=q,
        k=k,
        collection=collection,
        mode=mode,
        min_score=min_score,
        where=conditions,
        model=model,
        rerank=rerank,
        reranker=reranker,
    )


@router.post("/search", openapi_extra=request_body(SearchBody))
async def search_with_body(
    appliance: ApplianceDep, body: Annotated[SearchBody, Depends(json_body(SearchBody))]
) -> SearchAnswer:
    """The same, with the question in a JSON body, which may hold an image."""
    mode = _mode(body)
    image = None
    if body.image is not None:
        image = await asyncio.to_thread(images.decoded, body.image, param="image")
    return await _search(
        appliance,
        q=body.q or "",
        image=image,
        k=body.k,
        collection=body.collection,
        mode=mode,
        min_score=body.min_score,
        where=_bounded([each for key, wanted in body.where.items() for each in _conditions(key, wanted)]),
        model=body.model,
        rerank=body.rerank,
        reranker=body.reranker,
    )


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


async def _search(
    appliance: Appliance,
    *,
    q: str,
    image: Image | None = None,
    k: int,
    collection: str,
    mode: Mode,
    min_score: float | None,
    where: Where,
    model: str | None,
    rerank: bool | None,
    reranker: str | None,
) -> SearchAnswer:
    start = perf_counter()
    spec, dimensions = await _space(appliance, collection, asked=model)
    if image is not None and not spec.takes_images:
        raise InvalidInput(
            f"the vectors of this collection are of {spec.name}, which embeds texts, not images", param="image"
        )
    embedder = None if mode == "keyword" else await appliance.registry.get(spec.name)
    wanted = reranker is not None if rerank is None else rerank
    served = await appliance.registry.reranker(reranker or None) if wanted else None
    found: list[Found] = []
    with empty_until_made(collection), _named_image(image):
        found = await appliance.retriever.search(
            q,
            embedder=embedder,
            collection=collection,
            dimensions=dimensions,
            limit=k,
            mode=mode,
            min_score=min_score,
            where=where,
            reranker=served,
            image=image,
        )
    seconds = perf_counter() - start
    appliance.metrics.searched(mode, seconds=seconds, results=len(found))
    return SearchAnswer(
        collection=collection,
        mode=mode,
        model=embedder and embedder.spec.name,
        reranker=served and served.spec.name,
        seconds=round(seconds, 6),
        matches=[_info(each) for each in found],
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


async def _space(appliance: Appliance, collection: str, *, asked: str | None) -> tuple[ModelSpec, int]:
    """The card to embed the question with, and the dimensions of the collection's vectors: those it will have, for the
    default collection before it is made.
    """
    try:
        there = await asyncio.to_thread(appliance.catalog.collection, collection)
    except CollectionNotFound:
        if collection != DEFAULT_COLLECTION:
            raise
        spec = appliance.registry.default
        spec = appliance.registry.within(spec.space, spec.name, asked=asked)
        return spec, spec.dimensions
    return appliance.registry.within(there.space, there.model, asked=asked), there.dimensions


def _info(found: Found) -> MatchInfo:
    chunk = found.chunk
    return MatchInfo(
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
    )


def _parsed(text: str) -> Condition:
    """`key op value`; a value that is JSON (a number, true, "quoted") is taken as such, anything else as text."""
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise InvalidInput(f"where is no condition: {text}; write key=value, or one of != < <= > >=", param="where")
    if match["op"] not in _OPS:
        raise InvalidInput(
            f"where: {match['op']} is none of = != < <= > >=; put a value that begins with such a sign in quotes",
            param="where",
        )
    value: Any = match["value"]
    with suppress(InvalidInput):
        value = parsed(match["value"].encode())
    return next(_conditions(match["key"], {match["op"]: value if _is_value(value) else match["value"]}))


def _bounded(where: list[Condition]) -> list[Condition]:
    if len(where) > MAX_CONDITIONS:
        raise InvalidInput(f"where has {len(where)} conditions; {MAX_CONDITIONS} are the most", param="where")
    values = sum(len(each.value) for each in where if isinstance(each.value, tuple))
    if values > MAX_VALUES:
        raise InvalidInput(f"where has {values} values to choose from; {MAX_VALUES} are the most", param="where")
    return where


def _conditions(key: str, wanted: JsonValue) -> Iterator[Condition]:
    comparisons = wanted if isinstance(wanted, dict) else {"=": wanted}
    if not comparisons:
        raise InvalidInput(f"where.{key} has no comparison", param="where")
    for name, value in comparisons.items():
        op = _OPS.get(name)
        if op is None:
            raise InvalidInput(f"where.{key}: {name} is none of {', '.join(_OPS)}", param="where")
        if op == "in":
            values = [each for each in value if _is_value(each)] if isinstance(value, list) else []
            if not values or values != value:
                raise InvalidInput(f"where.{key}: in needs a list of texts, numbers or booleans", param="where")
            yield Condition(key, op, tuple(values))
        elif _is_value(value):
            yield Condition(key, op, value)
        else:
            raise InvalidInput(f"where.{key}: a text, a number or a boolean is needed", param="where")


def _is_value(value: object) -> TypeGuard[Value]:
    return isinstance(value, str | int | float | bool)
