"""The API of Hugging Face's text-embeddings-inference (TEI), as its clients use it. `/rerank` and `/similarity`, which
others have as well, are in rooms of their own.
"""

import asyncio
import os
from collections.abc import Sequence
from itertools import accumulate
from time import perf_counter
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field, WithJsonSchema, field_validator

from appliance import __version__
from appliance.api.deps import ApplianceDep, RegistryDep, json_body, provenance, read_chosen, request_body
from appliance.api.errors import envelope
from appliance.api.kinds import kind_of
from appliance.embedding.embedder import Embeddings, PerToken
from appliance.embedding.engine import Sparse, Token
from appliance.embedding.registry import Registry
from appliance.embedding.spec import Card, HasFiles, HubSource
from appliance.errors import InvalidInput
from appliance.similarity import compared

router = APIRouter(tags=["TEI"])

MAX_INPUTS = 16_384
"""Of one request. Clients that send all their texts at once send that many; the engine gets them in batches."""

_DTYPES = {"fp32": "float32"}
"""What TEI calls a precision."""

Text: TypeAlias = str | list[int]
"""A text, or the token ids of one, special tokens included."""

_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_STRING = {"type": "string"}
_INPUTS = {
    "oneOf": [_STRING, {"type": "array", "items": {"anyOf": [_STRING, _IDS]}, "maxItems": MAX_INPUTS}, _IDS],
    "description": "a text, the model's own token ids of one, or a list of both",
}


class _Asks(BaseModel):
    """What most requests have. Unknown keys are ignored, and null is as if left out."""

    model: str | None = Field(default=None, description="name or alias of a model; the default if left out (ours)")
    prompt_name: str | None = Field(
        default=None, description="what the texts are for: query, document (the default), classification, clustering"
    )


class _Cuts(BaseModel):
    """How what is too long is treated."""

    truncate: bool | None = Field(default=None, description="false refuses a text that is too long")
    truncation_direction: Literal["right", "Right"] | None = Field(default=None, description="only ends are cut")


class EmbedAllBody(_Asks, _Cuts):
    """What to embed."""

    inputs: Annotated[list[Text], WithJsonSchema(_INPUTS)]

    @field_validator("inputs", mode="before")
    @classmethod
    def _one_by_one(cls, given: Any) -> Any:
        if isinstance(given, str) or (isinstance(given, list) and given and _is_ids(given)):
            return [given]
        if not (isinstance(given, list) and all(isinstance(each, str) or _is_ids(each) for each in given)):
            raise ValueError("a text, token ids, or a list of them is needed")
        return given


class EmbedBody(EmbedAllBody):
    """What to embed, and in which form."""

    normalize: bool | None = Field(default=None, description="false: vectors as the model gives them, of any length")
    dimensions: int | None = Field(default=None, ge=1, strict=True, description="shorten to this many")


class SentencesBody(BaseModel):
    """A sentence, and those to compare it with."""

    source_sentence: str
    sentences: list[str] = Field(description=f"1 to {MAX_INPUTS - 1}")


class SimilarityParameters(_Asks, _Cuts):
    """How to embed them."""


class SentenceSimilarityBody(BaseModel):
    """What to compare, in the form of TEI's clients."""

    inputs: SentencesBody
    parameters: SimilarityParameters | None = None
    model: str | None = Field(default=None, description="name or alias of a model; the default if left out (ours)")


class TokenizeBody(_Asks):
    """What to take apart."""

    inputs: Annotated[list[str], WithJsonSchema({"oneOf": [_STRING, {"type": "array", "items": _STRING}]})]
    add_special_tokens: bool | None = Field(default=None, description="false leaves out those around a text")

    @field_validator("inputs", mode="before")
    @classmethod
    def _one_by_one(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given


class DecodeBody(BaseModel):
    """What to put together again."""

    ids: Annotated[list[list[int]], WithJsonSchema({"oneOf": [_IDS, {"type": "array", "items": _IDS}]})]
    skip_special_tokens: bool | None = Field(default=None, description="false keeps them")
    model: str | None = Field(default=None, description="name or alias of a model; the default if left out (ours)")

    @field_validator("ids", mode="before")
    @classmethod
    def _one_by_one(cls, given: Any) -> Any:
        if isinstance(given, list) and given and _is_ids(given):
            return [given]
        if not (isinstance(given, list) and all(_is_ids(each) for each in given)):
            raise ValueError("token ids, or a list of them, are needed")
        return given


class SparseValue(BaseModel):
    """What a token weighs; `index` is its id."""

    index: int
    value: float


class SimpleToken(BaseModel):
    """A token; `start` and `stop` are bytes of the text in UTF-8, null for a special token."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Info(BaseModel):
    """A model and what it takes."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


@router.post("/embed", response_model=list[list[float]], openapi_extra=request_body(EmbedBody))
async def embed(
    request: Request, registry: RegistryDep, body: Annotated[EmbedBody, Depends(json_body(EmbedBody))]
) -> Response:
    """Embed texts, or token ids of the model's own. What is too long is cut unless `truncate` is false."""
    return await _embed(request, registry, body)


@router.post("/", response_model=list[list[float]] | list[float], openapi_extra=request_body(EmbedBody))
async def embed_or_compare(request: Request, registry: RegistryDep) -> Response:
    """As `/embed`, or as TEI's form of `/similarity` where `inputs` is an object."""
    body = await read_chosen(request, _root_body)
    if isinstance(body, SentenceSimilarityBody):
        return await compare_sentences(request, registry, body)
    assert isinstance(body, EmbedBody)  # noqa: S101 - for mypy: `_root_body` knows no other
    return await _embed(request, registry, body)


@router.post("/embed_all", response_model=list[list[list[float]]], openapi_extra=request_body(EmbedAllBody))
async def embed_all(
    request: Request, registry: RegistryDep, body: Annotated[EmbedAllBody, Depends(json_body(EmbedAllBody))]
) -> Response:
    """A vector for each token of texts, special tokens included, from a model that gives them."""
    started = perf_counter()
    if refusal := _empty(request, body.inputs):
        return refusal
    kind = kind_of(body.prompt_name, param="prompt_name")
    texts = await _texts(registry, body.model, body.inputs)
    embedder = await registry.get(body.model or registry.default.name)
    result = await embedder.token_vectors(texts, kind=kind, truncate=body.truncate is not False)
    rows = [np.ascontiguousarray(row, np.float32) for row in result.rows]
    return _answer(rows, _headers(result, body.inputs, started))


@router.post("/embed_sparse", response_model=list[list[SparseValue]], openapi_extra=request_body(EmbedAllBody))
async def embed_sparse(
    request: Request, registry: RegistryDep, body: Annotated[EmbedAllBody, Depends(json_body(EmbedAllBody))]
) -> Response:
    """The weight of each token of texts, from a model that tells them."""
    started = perf_counter()
    if refusal := _empty(request, body.inputs):
        return refusal
    kind = kind_of(body.prompt_name, param="prompt_name")
    texts = await _texts(registry, body.model, body.inputs)
    embedder = await registry.get(body.model or registry.default.name)
    result = await embedder.sparse(texts, kind=kind, truncate=body.truncate is not False)
    rows = await asyncio.to_thread(lambda: [_sparse(row) for row in result.rows])
    return _answer(rows, _headers(result, body.inputs, started))


@router.post("/tokenize", response_model=list[list[SimpleToken]], openapi_extra=request_body(TokenizeBody))
async def tokenize(
    request: Request, registry: RegistryDep, body: Annotated[TokenizeBody, Depends(json_body(TokenizeBody))]
) -> Response:
    """The tokens of texts, whole. A prompt comes first only if one is named."""
    if refusal := _empty(request, body.inputs):
        return refusal
    kind = kind_of(body.prompt_name, param="prompt_name") if body.prompt_name else None
    embedder = await registry.get(body.model or registry.default.name)
    found = await embedder.tokenize(body.inputs, kind=kind, special_tokens=body.add_special_tokens is not False)
    prefix = "" if kind is None else embedder.spec.prefixes.of(kind)

    def told() -> list[list[dict[str, Any]]]:
        return [_told(prefix + text, tokens) for text, tokens in zip(body.inputs, found, strict=True)]

    return _answer(await asyncio.to_thread(told), {})


@router.post("/decode", response_model=list[str], openapi_extra=request_body(DecodeBody))
async def decode(
    request: Request, registry: RegistryDep, body: Annotated[DecodeBody, Depends(json_body(DecodeBody))]
) -> Response:
    """The texts of token ids."""
    if refusal := _empty(request, body.ids, field="ids"):
        return refusal
    embedder = await registry.get(body.model or registry.default.name)
    texts = await embedder.decode(body.ids, skip_special_tokens=body.skip_special_tokens is not False)
    return _answer(texts, {})


@router.get("/info", response_model=Info)
async def info(
    appliance: ApplianceDep,
    model: Annotated[str, Query(description="name or alias of a model; the default if left out (ours)")] = "",
) -> Response:
    """A model and what it takes. Nothing is loaded."""
    card = appliance.registry.card(model or appliance.registry.default.name)
    source = _hub(card)
    told = Info(
        model_id=source.repo if source else card.name,
        model_sha=source.revision if source else None,
        model_dtype=_dtype(card),
        served_model_name=card.name,
        model_type=_type(card),
        max_concurrent_requests=appliance.max_pending,
        max_input_length=card.max_tokens,
        max_batch_tokens=MAX_INPUTS * card.max_tokens,
        max_batch_requests=None,
        max_client_batch_size=MAX_INPUTS,
        auto_truncate=True,
        tokenization_workers=os.cpu_count() or 1,
        version=__version__,
        sha=None,
        docker_label=None,
    )
    return _answer(told.model_dump(), {})


async def compare_sentences(request: Request, registry: Registry, body: SentenceSimilarityBody) -> Response:
    """Cosines of a sentence with others, in their order.

    Raises:
        ApplianceError: as `Registry.embed`.
    """
    started = perf_counter()
    if not body.inputs.sentences:
        return envelope(request.scope["path"], 400, "`inputs.sentences` cannot be empty")
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    _check_count(texts, "inputs.sentences")
    asks = body.parameters or SimilarityParameters()
    result = await registry.embed(
        body.model or asks.model or "",
        texts,
        kind=kind_of(asks.prompt_name, param="parameters.prompt_name"),
        truncate=asks.truncate is not False,
    )
    cosines = await asyncio.to_thread(compared, result.vectors[:1], result.vectors[1:])
    return _answer(cosines[0].astype(np.float32), _headers(result, texts, started))


def _root_body(content: dict[str, Any]) -> type[BaseModel]:
    return SentenceSimilarityBody if isinstance(content.get("inputs"), dict) else EmbedBody


async def _embed(request: Request, registry: Registry, body: EmbedBody) -> Response:
    started = perf_counter()
    if refusal := _empty(request, body.inputs):
        return refusal
    kind = kind_of(body.prompt_name, param="prompt_name")
    texts = await _texts(registry, body.model, body.inputs)
    truncate = body.truncate is not False
    if body.normalize is False:
        embedder = await registry.get(body.model or registry.default.name)
        result = await embedder.embed(texts, kind=kind, dimensions=body.dimensions, truncate=truncate, normalize=False)
    else:
        result = await registry.embed(body.model or "", texts, kind=kind, dimensions=body.dimensions, truncate=truncate)
    return _answer(np.ascontiguousarray(result.vectors, np.float32), _headers(result, body.inputs, started))


def _is_ids(given: object) -> bool:
    return isinstance(given, list) and set(map(type, given)) <= {int}


def _empty(request: Request, inputs: Sequence[Text], *, field: str = "inputs") -> Response | None:
    """What TEI says of nothing. A text without a character is embedded here as everywhere else."""
    if inputs and [] not in inputs:
        _check_count(inputs, field)
        return None
    return envelope(request.scope["path"], 400, f"`{field}` cannot be empty")


def _check_count(inputs: Sequence[object], field: str) -> None:
    if len(inputs) > MAX_INPUTS:
        raise InvalidInput(f"{field}: {MAX_INPUTS} are the most of one request, not {len(inputs)}", param=field)


async def _texts(registry: Registry, model: str | None, inputs: Sequence[Text]) -> list[str]:
    """The inputs as texts: token ids are those of `/tokenize`, with the special tokens around them or without."""
    ids = [each for each in inputs if not isinstance(each, str)]
    if not ids:
        return [each for each in inputs if isinstance(each, str)]
    embedder = await registry.get(model or registry.default.name)
    decoded = iter(await embedder.decode(ids))
    return [each if isinstance(each, str) else next(decoded) for each in inputs]


def _headers(answer: Embeddings | PerToken[Any], inputs: Sequence[Text], started: float) -> dict[str, str]:
    """What it cost. How long it waited for others, and how long only its tokens took, is not measured."""
    milliseconds = str(round((perf_counter() - started) * 1000))
    return provenance(answer) | {
        "x-compute-type": answer.engine,
        "x-compute-time": milliseconds,
        "x-compute-characters": str(sum(map(len, inputs))),
        "x-compute-tokens": str(sum(answer.tokens)),
        "x-total-time": milliseconds,
        "x-inference-time": milliseconds,
    }


def _answer(content: Any, headers: dict[str, str]) -> Response:
    raw = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(raw, headers=headers, media_type="application/json")


def _sparse(row: Sparse) -> list[dict[str, Any]]:
    return [{"index": index, "value": value} for index, value in zip(row.ids.tolist(), row.weights, strict=True)]


def _told(text: str, tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """Tokens with their places in bytes, as TEI counts them."""
    place = None if text.isascii() else [0, *accumulate(len(each.encode("utf-8", "surrogatepass")) for each in text)]
    told = []
    for token in tokens:
        start, stop = token.start, token.stop
        if place is not None and start is not None and stop is not None:
            start, stop = place[start], place[stop]
        told.append({**token._asdict(), "start": start, "stop": stop})
    return told


def _hub(card: Card) -> HubSource | None:
    sources = card.sources if isinstance(card, HasFiles) else ()
    return next((each for each in sources if isinstance(each, HubSource)), None)


def _dtype(card: Card) -> str:
    precision: str = getattr(card, "precision", getattr(card, "dtype", "fp32"))
    return _DTYPES.get(precision, precision)


def _type(card: Card) -> dict[str, Any]:
    if card.task == "rerank":
        return {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    pooling = getattr(card, "pooling", "mean")  # of one without the word, as hashing is: a sum is as good as a mean
    return {"embedding": {"pooling": "last_token" if pooling == "last" else pooling}}
