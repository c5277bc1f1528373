"""Embedding in the plain forms that small servers have, `/v1/embeddings/generate` and `/encode`; and how the models
are, `/v1/embeddings/health`.
"""

from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from appliance.api.deps import RegistryDep, StrictBody, UseFallback, json_body, provenance, request_body
from appliance.api.kinds import kind_of
from appliance.embedding.embedder import Embeddings
from appliance.embedding.registry import Registry
from appliance.embedding.spec import Card
from appliance.errors import InputTooLong, InvalidInput

router = APIRouter(tags=["embeddings"])

_Status: TypeAlias = Literal["ok", "not loaded", "loading", "error"]

MAX_TEXTS = 16_384
"""Of one request; the engine gets them in batches."""


def _listed(given: object) -> object:
    return [given] if isinstance(given, str) else given


_STRING = {"type": "string"}
_OneOrMore: TypeAlias = Annotated[
    list[str] | None,
    BeforeValidator(_listed),
    WithJsonSchema({"oneOf": [_STRING, {"type": "array", "items": _STRING}]}),
]


class _Texts(BaseModel):
    """Texts, and the model for them."""

    texts: list[str] | None = Field(default=None, description=f"1 to {MAX_TEXTS}")
    model: str | None = Field(default=None, description="name or alias of a model; the default if left out")


class GenerateBody(StrictBody, _Texts):
    """What to embed: `text` or `texts`."""

    text: str | None = Field(default=None, description="one text, which may be empty")
    use_fallback: UseFallback = Field(
        default=None,
        description="true: where the model cannot be had, another may answer; false: none; or the names of those",
    )
    dimensions: int | None = Field(default=None, ge=1, description="shorten to this many")
    input_type: str | None = Field(
        default=None, description="query, document (the default), classification or clustering"
    )
    truncate: bool = Field(default=True, description="false refuses a text that is too long")


class EncodeBody(_Texts):
    """What to embed: one of `texts`, `sentences` and `text`. Unknown keys are ignored, null is as if left out."""

    text: _OneOrMore = Field(default=None, description="a text, or texts")
    sentences: _OneOrMore = Field(default=None, description="the same")
    normalize: bool | None = Field(default=None, description="false: vectors as the model gives them, of any length")
    normalize_embeddings: bool | None = Field(default=None, description="the same")


class GenerateUsage(BaseModel):
    """Tokens of all texts, special tokens included, after truncation."""

    prompt_tokens: int
    total_tokens: int


class GenerateAnswer(BaseModel):
    """Vectors in the order of the texts, of length 1; `embedding` of a `text`. `model` is who answered."""

    embeddings: list[list[float]]
    embedding: list[float] | None = None
    model: str
    requested_model: str
    provider: str
    dimensions: int
    fallback: bool
    truncated: int
    usage: GenerateUsage


class EncodeAnswer(BaseModel):
    """Vectors in the order of the texts."""

    embeddings: list[list[float]]
    model: str
    dimensions: int


class ModelHealth(BaseModel):
    """How a model is: `ok`, `not loaded` (it loads when it is asked), `loading`, or `error`: `detail` says which."""

    status: _Status
    detail: str
    engine: str
    default: bool


class EmbeddingsHealth(BaseModel):
    """How the models are; as a whole `ok`, `degraded` (some fail) or `error` (the default cannot be had)."""

    status: Literal["ok", "degraded", "error"]
    models: dict[str, ModelHealth]


@router.post("/v1/embeddings/generate", response_model=GenerateAnswer, openapi_extra=request_body(GenerateBody))
async def generate(registry: RegistryDep, body: Annotated[GenerateBody, Depends(json_body(GenerateBody))]) -> Response:
    """Embed texts, and tell who did it: another model than was asked for only where `use_fallback` lets it."""
    field, texts = _one_of({"text": None if body.text is None else [body.text], "texts": body.texts})
    kind = kind_of(body.input_type, param="input_type")
    try:
        result = await registry.embed(
            body.model or "",
            texts,
            kind=kind,
            dimensions=body.dimensions,
            truncate=body.truncate,
            use_fallback=body.use_fallback,
        )
    except InputTooLong as error:
        error.param = field
        raise
    asked = body.model or registry.default.name
    tokens = sum(result.tokens)
    content: dict[str, Any] = {
        "embeddings": np.ascontiguousarray(result.vectors, np.float32),
        "model": result.model,
        "requested_model": asked,
        "provider": result.engine,
        "dimensions": result.vectors.shape[1],
        "fallback": result.model != registry.resolve(asked).name,
        "truncated": sum(result.truncated),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    if body.text is not None:
        content["embedding"] = content["embeddings"][0]
    return _answer(content, result)


@router.post("/encode", response_model=EncodeAnswer, openapi_extra=request_body(EncodeBody))
async def encode(registry: RegistryDep, body: Annotated[EncodeBody, Depends(json_body(EncodeBody))]) -> Response:
    """Embed texts, as small servers around sentence-transformers do."""
    _, texts = _one_of({"texts": body.texts, "sentences": body.sentences, "text": body.text})
    if body.normalize is False or body.normalize_embeddings is False:
        embedder = await registry.get(body.model or registry.default.name)
        result = await embedder.embed(texts, normalize=False)
    else:
        result = await registry.embed(body.model or "", texts)
    content = {
        "embeddings": np.ascontiguousarray(result.vectors, np.float32),
        "model": result.model,
        "dimensions": result.vectors.shape[1],
    }
    return _answer(content, result)


@router.get("/v1/embeddings/health", response_model=EmbeddingsHealth, responses={503: {"model": EmbeddingsHealth}})
async def embeddings_health(registry: RegistryDep) -> Response:
    """How each installed model that embeds is; 503 while the default one cannot be had. Nothing is loaded for it."""
    default = registry.default
    loaded = {each.spec.name: each.engine for each in registry.loaded()}
    cards = [card for card in registry.cards() if card.task == "embed" and (card is default or registry.present(card))]
    models = {card.name: _health(registry, card, loaded) for card in cards}
    status: Literal["ok", "degraded", "error"] = "ok"
    if any(each.status == "error" for each in models.values()):
        status = "degraded"
    if models[default.name].status == "error":
        status = "error"
    told = EmbeddingsHealth(status=status, models=models)
    headers = {"cache-control": "no-store"} | ({"retry-after": "1"} if status == "error" else {})
    raw = told.model_dump_json().encode()
    return Response(raw, 503 if status == "error" else 200, headers, media_type="application/json")


def _health(registry: Registry, card: Card, loaded: dict[str, str]) -> ModelHealth:
    trouble = registry.trouble(card.name)
    status: _Status = "ok" if card.name in loaded or card.engine == "remote" else "not loaded"
    if trouble in {"not loaded", "loading"}:
        status, trouble = "loading" if trouble == "loading" else "not loaded", ""
    elif trouble:
        status = "error"
    return ModelHealth(
        status=status,
        detail=trouble,
        engine=loaded.get(card.name, card.engine),
        default=card is registry.default,
    )


def _one_of(fields: dict[str, list[str] | None]) -> tuple[str, list[str]]:
    """The one field that was given, and its texts.

    Raises:
        InvalidInput: none or several were, or it has no text or too many.
    """
    filled = {name: value for name, value in fields.items() if value is not None}
    if len(filled) != 1:
        names = list(fields)
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        raise InvalidInput(f"one of {listed} is needed, and no more", param=names[0])
    ((name, texts),) = filled.items()
    if not texts:
        raise InvalidInput(f"{name} is empty: there is nothing to embed", param=name)
    if len(texts) > MAX_TEXTS:
        raise InvalidInput(f"{name}: {MAX_TEXTS} are the most of one request, not {len(texts)}", param=name)
    return name, texts


def _answer(content: dict[str, Any], result: Embeddings) -> Response:
    raw = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(raw, headers=provenance(result), media_type="application/json")
