"""How near texts or vectors are: all with all, the nearest, clusters, near duplicates. Also as TEI's clients ask it."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, WithJsonSchema, field_validator, model_validator

from appliance.api.deps import RegistryDep, StrictBody, provenance, read_chosen, request_body
from appliance.api.kinds import kind_of
from appliance.api.tei import MAX_INPUTS, SentenceSimilarityBody, compare_sentences
from appliance.embedding.embedder import Embeddings
from appliance.embedding.registry import Registry
from appliance.embedding.spec import Kind
from appliance.errors import EngineUnavailable, InvalidInput
from appliance.similarity import Metric, compared, duplicates, kmeans, normalized, top_k

router = APIRouter(tags=["similarity"])

MAX_SCORES = 1 << 22
"""Of one answer: 2,048 texts with each other."""

MAX_NUMBERS = 1 << 22
"""Of the vectors of one side."""

_MAX_PAIRS = 1 << 24
"""That are only looked at: with `top_k` and `threshold`."""

_MAX_WORK = {"manhattan": 1 << 30, "euclidean": 1 << 30}
"""Numbers of pairs that a request may have compared; some seconds on a slow core."""

_MAX_PRODUCTS = 1 << 32
"""The same for dot products, which processors are made for."""

_MAX_CLUSTER_WORK = 1 << 28
"""The same for one round of k-means."""

_MAX_CLUSTERED = 1 << 16
"""Vectors that k-means groups: each round looks at all of them."""

_ROUNDS = 50

_COMPARERS = ThreadPoolExecutor(1, "compare")
"""A thread of its own: what takes seconds must keep no search waiting for one."""

Numbers: TypeAlias = npt.NDArray[np.floating[Any]]
Side: TypeAlias = list[str] | Numbers

_STRING = {"type": "string"}
_VECTOR = {"type": "array", "items": {"type": "number"}, "minItems": 1}
_SIDE = {
    "oneOf": [
        _STRING,
        {"type": "array", "items": _STRING, "minItems": 1, "maxItems": MAX_INPUTS},
        _VECTOR,
        {"type": "array", "items": _VECTOR, "minItems": 1},
    ]
}


class SimilarityBody(StrictBody):
    """What to compare: texts or vectors, each side of one sort."""

    a: Annotated[Any, WithJsonSchema(_SIDE)] = Field(description="a text, texts, a vector, or vectors")
    b: Annotated[Any, WithJsonSchema(_SIDE)] = Field(default=None, description="the same; `a` itself if left out")
    metric: Metric = "cosine"
    model: str | None = Field(default=None, description="name or alias of the model for texts; the default if left out")
    input_type: str | None = Field(
        default=None,
        description="what texts are for: query, document, classification, clustering. If left out: document; with "
        "`top_k`, `a` are queries; with `clusters`, clustering",
    )
    dimensions: int | None = Field(default=None, ge=1, description="shorten the vectors of texts to this many")
    truncate: bool = Field(default=True, description="false refuses a text that is too long")
    top_k: int | None = Field(default=None, ge=1, description="for each of `a` so many of `b`, the nearest first")
    clusters: int | None = Field(default=None, ge=1, description="so many groups of `a`, by k-means")
    iterations: int = Field(default=_ROUNDS, ge=1, le=_ROUNDS, description="of k-means, at most")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of k-means")
    threshold: float | None = Field(
        default=None, ge=-1, le=1, description="groups of `a` whose cosine is this or more: near duplicates"
    )

    @field_validator("a", "b")
    @classmethod
    def _one_by_one(cls, given: Any) -> Any:
        return None if given is None else _side(given)

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        asked = [name for name in ("top_k", "clusters", "threshold") if getattr(self, name) is not None]
        if len(asked) > 1:
            raise ValueError(f"one of {' and '.join(asked)} at a time")
        if self.a is None:
            raise ValueError("a: it is missing")
        if asked == ["top_k"] and self.b is None:
            raise ValueError("top_k needs b, what is to be searched")
        if asked in (["clusters"], ["threshold"]) and self.b is not None:
            raise ValueError(f"{asked[0]} is about a alone: leave b out")
        if asked == ["clusters"] and self.metric not in {"cosine", "euclidean"}:
            raise ValueError("clusters are made by cosine or euclidean")
        if asked == ["threshold"] and self.metric != "cosine":
            raise ValueError("threshold is a cosine")
        return self


class Near(BaseModel):
    """One of `b`: its place, and its score or distance."""

    index: int
    score: float


class Cluster(BaseModel):
    """Places in `a`, and the one nearest to the cluster's mean."""

    members: list[int]
    nearest: int


class SimilarityUsage(BaseModel):
    """Tokens of the texts, special tokens included, after truncation."""

    prompt_tokens: int
    total_tokens: int


class SimilarityAnswer(BaseModel):
    """One of `scores`, `matches`, `clusters` and `duplicates`; `model` and `usage` where there were texts."""

    metric: Metric
    scores: list[list[float]] | None = Field(
        default=None, description="a row for each of `a`, a number for each of `b`"
    )
    matches: list[list[Near]] | None = Field(default=None, description="for each of `a` the nearest of `b`")
    clusters: list[Cluster] | None = None
    labels: list[int] | None = Field(default=None, description="the cluster of each of `a`")
    inertia: float | None = Field(default=None, description="sum of squared distances to the clusters' means")
    duplicates: list[list[int]] | None = Field(default=None, description="places in `a`, two or more a group")
    model: str | None = None
    usage: SimilarityUsage | None = None


def _bodies() -> dict[str, Any]:
    """Both forms, for the description of the API."""
    forms = [request_body(form)["requestBody"] for form in (SimilarityBody, SentenceSimilarityBody)]
    schemas = [form["content"]["application/json"]["schema"] for form in forms]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": {"oneOf": schemas}}}}}


@router.post(
    "/similarity",
    response_model=SimilarityAnswer | list[float],
    response_model_exclude_none=True,
    openapi_extra=_bodies(),
)
async def similarity(request: Request, registry: RegistryDep) -> Response:
    """Compare texts or vectors: `a` with `b`, or with itself.

    Answers a matrix; with `top_k` the nearest of `b`, with `clusters` groups around means, with `threshold` groups of
    near duplicates. With `inputs` it answers the bare list of text-embeddings-inference (TEI).
    """
    body = await read_chosen(request, _form)
    if isinstance(body, SentenceSimilarityBody):
        return await compare_sentences(request, registry, body)
    assert isinstance(body, SimilarityBody)  # noqa: S101 - for mypy: `_form` knows no other
    _check_work(body, _width(registry, body))
    a, b, embedded = await _vectors(registry, body)
    _check_work(body, a.shape[1])
    content = await asyncio.get_running_loop().run_in_executor(_COMPARERS, _compared, body, a, b)
    headers: dict[str, str] = {}
    if embedded is not None:
        tokens = sum(embedded.tokens)
        content["model"] = embedded.model
        content["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
        headers = provenance(embedded)
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), headers=headers, media_type="application/json"
    )


def _form(content: dict[str, Any]) -> type[BaseModel]:
    return SentenceSimilarityBody if "inputs" in content else SimilarityBody


def _side(given: Any) -> Side:
    """Texts, or the vectors as float64 (n, d) of numbers that float32 holds.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise ValueError("texts or vectors are needed, at least one")
    if all(isinstance(each, str) for each in given):
        if len(given) > MAX_INPUTS:
            raise ValueError(f"{MAX_INPUTS} texts are the most of one request, not {len(given)}")
        return given
    rows = [given] if _are_numbers(given) else given
    if not all(isinstance(row, list) and row and _are_numbers(row) for row in rows):
        raise ValueError("it must hold texts only, or vectors only, none of them empty")
    widths = set(map(len, rows))
    if len(widths) > 1:
        raise ValueError("the vectors are not of one width")
    if (count := len(rows) * widths.pop()) > MAX_NUMBERS:
        raise ValueError(f"its vectors may have {MAX_NUMBERS} numbers together, not {count}")
    numbers = np.array(rows, np.float64)
    if not bool((np.abs(numbers) <= np.finfo(np.float32).max).all()):
        raise ValueError("a number is beyond what float32 holds")
    return numbers


def _are_numbers(given: list[Any]) -> bool:
    return set(map(type, given)) <= {int, float}


def _width(registry: Registry, body: SimilarityBody) -> int:
    """Dimensions of the vectors, as far as known before texts are embedded.

    Raises:
        ModelNotFound: there are texts, and no such model.
    """
    for side in (body.a, body.b):
        if isinstance(side, np.ndarray):
            return int(side.shape[1])
    return body.dimensions or registry.resolve(body.model or registry.default.name).dimensions


def _check_work(body: SimilarityBody, width: int) -> None:
    """Refuse what would take too long, or whose answer would be too large; before anything is embedded.

    Raises:
        InvalidInput: saying what the limit is.
    """
    rows = len(body.a)
    columns = rows if body.b is None else len(body.b)
    if body.clusters is not None:
        if body.clusters > rows:
            raise InvalidInput(f"clusters: 1 to {rows}, the length of a, not {body.clusters}", param="clusters")
        _check(rows, _MAX_CLUSTERED, "the length of a")
        _check(rows * width, MAX_NUMBERS, "the length of a times dimensions")
        _check(rows * body.clusters, MAX_SCORES, "the length of a times clusters")
        _check(rows * body.clusters * width, _MAX_CLUSTER_WORK, "the length of a times clusters times dimensions")
        return
    _check(rows * width, MAX_NUMBERS, "the length of a times dimensions")
    _check(columns * width, MAX_NUMBERS, "the length of b times dimensions")
    if body.top_k is not None:
        _check(rows * min(body.top_k, columns), MAX_SCORES // 4, "the length of a times top_k")
    most = MAX_SCORES if body.top_k is None and body.threshold is None else _MAX_PAIRS
    _check(rows * columns, most, "the length of a times that of b")
    most = _MAX_WORK.get(body.metric, _MAX_PRODUCTS)
    _check(rows * columns * width, most, "the length of a times that of b times dimensions")


def _check(count: int, most: int, what: str) -> None:
    if count > most:
        raise InvalidInput(f"too much for one request: {what} is {count}, and may be {most}", param="a")


async def _vectors(registry: Registry, body: SimilarityBody) -> tuple[Numbers, Numbers, Embeddings | None]:
    """Both sides as vectors, and what was embedded for it. Texts of both sides come from one model."""
    first: Kind = "query" if body.top_k is not None else "clustering" if body.clusters is not None else "document"
    kinds = [kind_of(body.input_type, param="input_type", default=each) for each in (first, "document")]
    sides = [body.a] if body.b is None else [body.a, body.b]
    found: list[Numbers] = [side if isinstance(side, np.ndarray) else np.empty(0) for side in sides]
    answers: list[Embeddings] = []
    places = [place for place, side in enumerate(sides) if not isinstance(side, np.ndarray)]
    together = len(places) == len(kinds) and kinds[0] == kinds[1]
    for group in [places] if together else [[place] for place in places]:
        texts = [text for place in group for text in sides[place]]
        answer = await registry.embed(
            body.model or "",
            texts,
            kind=kinds[group[0]],
            dimensions=body.dimensions,
            truncate=body.truncate,
            use_fallback=False,
        )
        answers.append(answer)
        borders = np.cumsum([len(sides[place]) for place in group])[:-1]
        for place, vectors in zip(group, np.split(answer.vectors, borders), strict=True):
            found[place] = vectors
    return found[0], found[-1], _joined(answers) if answers else None


def _joined(answers: Sequence[Embeddings]) -> Embeddings:
    first = answers[0]
    if any(answer.model != first.model for answer in answers):
        raise EngineUnavailable("the model changed meanwhile; send the request again", retry_after=1)
    tokens = tuple(count for answer in answers for count in answer.tokens)
    truncated = tuple(cut for answer in answers for cut in answer.truncated)
    return Embeddings(first.model, first.engine, first.vectors, tokens, truncated)


def _compared(body: SimilarityBody, a: Numbers, b: Numbers) -> dict[str, Any]:
    answer: Callable[[SimilarityBody, Numbers, Numbers], dict[str, Any]] = _matrix
    if body.top_k is not None:
        answer = _matches
    elif body.clusters is not None:
        answer = _clusters
    elif body.threshold is not None:
        answer = _duplicates
    return {"metric": body.metric, **answer(body, a, b)}


def _matrix(body: SimilarityBody, a: Numbers, b: Numbers) -> dict[str, Any]:
    return {"scores": _single(compared(a, b, body.metric))}


def _matches(body: SimilarityBody, a: Numbers, b: Numbers) -> dict[str, Any]:
    indexes, scores = top_k(a, b, body.top_k or 1, body.metric)
    matches = [
        [{"index": index, "score": score} for index, score in zip(places, values, strict=True)]
        for places, values in zip(indexes.tolist(), _single(scores), strict=True)
    ]
    return {"matches": matches}


def _clusters(body: SimilarityBody, a: Numbers, _: Numbers) -> dict[str, Any]:
    points = normalized(a) if body.metric == "cosine" else a
    found = kmeans(points, body.clusters or 1, iterations=body.iterations, seed=body.seed)
    squares = ((points - found.centres[found.labels]) ** 2).sum(axis=1)
    clusters = []
    for label in range(len(found.centres)):
        members = np.flatnonzero(found.labels == label)
        clusters.append({"members": members.tolist(), "nearest": int(members[np.argmin(squares[members])])})
    return {"clusters": clusters, "labels": found.labels.tolist(), "inertia": found.inertia}


def _duplicates(body: SimilarityBody, a: Numbers, _: Numbers) -> dict[str, Any]:
    return {"duplicates": duplicates(a, 1.0 if body.threshold is None else body.threshold)}


def _single(scores: Numbers) -> npt.NDArray[np.float32]:
    """As float32, whose digits are half as many to send.

    Raises:
        InvalidInput: a score is beyond it.
    """
    with np.errstate(over="ignore"):
        single = scores.astype(np.float32)
    if not np.isfinite(single).all():
        raise InvalidInput("the numbers are too large to be compared by this metric", param="a")
    return single
