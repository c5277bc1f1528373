"""OpenAI's embeddings API: `/v1/embeddings` and `/v1/models`, as its client libraries use it."""

import asyncio
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field, WithJsonSchema

from appliance.api import cl100k
from appliance.api.deps import Appliance, ApplianceDep, UseFallback, json_body, provenance, request_body
from appliance.api.kinds import kind_of
from appliance.embedding.embedder import Embeddings
from appliance.errors import InvalidInput, ModelNotFound

router = APIRouter(tags=["OpenAI"])

MAX_ITEMS = 2048
"""Inputs of one request, as in OpenAI's schema."""

INVALID = "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference."
"""OpenAI's own words; what is wrong with it follows."""

Item: TypeAlias = str | list[int]

_IDS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_INPUT = {
    "oneOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_ITEMS},
        _IDS,
        {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MAX_ITEMS},
    ],
    "description": "a text, texts, the token ids of one text, or of several",
}


class EmbeddingsBody(BaseModel):
    """What to embed, and how to answer. Unknown keys are ignored."""

    input: Annotated[Any, WithJsonSchema(_INPUT)] = None
    model: str = Field(default="", description="name or alias of a model; repeated in the answer as it was written")
    encoding_format: str | None = Field(
        default=None, description="float (the default) or base64 of little-endian float32"
    )
    dimensions: int | None = Field(
        default=None, ge=0, strict=True, description="shorten to this many; 0 is as if left out"
    )
    user: Any = Field(default=None, description="ignored")
    truncate: bool | None = Field(default=None, description="false refuses a text that is too long (an extension)")
    input_type: str | None = Field(
        default=None, description="query, document (the default), classification or clustering (an extension)"
    )
    use_fallback: UseFallback = Field(
        default=None, description="another model may answer, one of its card's or of these names (an extension)"
    )


class EmbeddingItem(BaseModel):
    """One vector of length 1."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens of all inputs, special tokens included, after truncation."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """Vectors in the order of the inputs."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: Usage


class ModelInfo(BaseModel):
    """A model, or an alias of one."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """Installed models, newest first, then their aliases."""

    object: Literal["list"]
    data: list[ModelInfo]


@router.post("/v1/embeddings", response_model=EmbeddingsAnswer, openapi_extra=request_body(EmbeddingsBody))
@router.post("/embeddings", include_in_schema=False)
async def embeddings(
    appliance: ApplianceDep, body: Annotated[EmbeddingsBody, Depends(json_body(EmbeddingsBody))]
) -> Response:
    """Embed texts, or token ids.

    Token ids are those of OpenAI's cl100k_base unless the appliance is set up otherwise. What is too long is cut, and
    the header `x-appliance-truncated` counts how often; `x-appliance-model` and `x-appliance-engine` say what did it.
    """
    if not body.model:
        raise InvalidInput("you must provide a model parameter", param="model")
    as_base64 = _is_base64(body.encoding_format)
    kind = kind_of(body.input_type, param="input_type")
    inputs = await _texts(_items(body.input, strict=appliance.strict_openai), token_ids=appliance.token_ids)
    try:
        result = await appliance.registry.embed(
            body.model,
            inputs,
            kind=kind,
            dimensions=body.dimensions or None,
            truncate=body.truncate is not False,
            use_fallback=body.use_fallback,
        )
    except ModelNotFound as error:
        raise _no_model(error.name or body.model) from error
    return _answer(result, model=body.model, as_base64=as_base64)


@router.get("/v1/models", response_model=ModelList)
@router.get("/models", include_in_schema=False)
async def list_models(appliance: ApplianceDep) -> Response:
    """The installed models, newest first, then the aliases they answer to."""
    return Response(orjson.dumps({"object": "list", "data": _models(appliance)}), media_type="application/json")


@router.get("/v1/models/{name:path}", response_model=ModelInfo)
@router.get("/models/{name:path}", include_in_schema=False)
async def read_model(appliance: ApplianceDep, name: str) -> Response:
    """One installed model by its name or an alias; either may hold a slash."""
    try:
        spec = appliance.registry.card(name)
    except ModelNotFound as error:
        raise _no_model(name) from error
    for each, modified in appliance.installed():
        if each.name == spec.name:
            return Response(orjson.dumps(_model(name, modified)), media_type="application/json")
    raise _no_model(name)


def _models(appliance: Appliance) -> list[dict[str, str | int]]:
    installed = {spec.name: modified for spec, modified in appliance.installed()}
    aliases = {alias: installed[card] for alias, card in appliance.registry.aliases().items() if card in installed}
    return [_model(name, modified) for name, modified in (installed | aliases).items()]


def _model(name: str, modified: datetime) -> dict[str, str | int]:
    return {"id": name, "object": "model", "created": int(modified.timestamp()), "owned_by": "appliance"}


def _no_model(name: str) -> ModelNotFound:
    return ModelNotFound(f"The model `{name}` does not exist or you do not have access to it.", name=name)


def _is_base64(encoding_format: str | None) -> bool:
    wanted = (encoding_format or "float").lower()
    if wanted not in {"float", "base64"}:
        raise InvalidInput(
            f"Invalid value for 'encoding_format' = {wanted[:40]}. Supported values: ['float', 'base64'].",
            param="encoding_format",
        )
    return wanted == "base64"


def _items(given: Any, *, strict: bool) -> list[Item]:
    """The inputs one by one, whichever of the four forms they came in."""
    if isinstance(given, str):
        items: list[Item] = [given]
    elif not isinstance(given, list):
        raise _invalid("It must be a text, texts, or token ids.")
    elif given and _is_ids(given):
        items = [given]
    elif all(isinstance(each, str) for each in given) or all(
        isinstance(each, list) and _is_ids(each) for each in given
    ):
        items = given
    else:
        raise _invalid("It must hold texts only, or token ids only.")
    if not 1 <= len(items) <= MAX_ITEMS:
        raise _invalid(f"It must hold 1 to {MAX_ITEMS} items, and has {len(items)}.")
    if [] in items or (strict and "" in items):
        raise _invalid("An item is empty.")
    return items


def _is_ids(given: list[Any]) -> bool:
    return all(type(each) is int for each in given)


async def _texts(items: list[Item], *, token_ids: Literal["cl100k", "model", "reject"]) -> Sequence[Item]:
    """The inputs as the embedder takes them: texts, or token ids of the model's own."""
    if isinstance(items[0], str):
        return items
    match token_ids:
        case "model":
            return items
        case "reject":
            raise _invalid("Token ids are not accepted here: send texts.")
    try:
        return await asyncio.to_thread(
            lambda: [each if isinstance(each, str) else cl100k.decode(each) for each in items]
        )
    except InvalidInput as error:
        raise _invalid(f"{error.message}.") from error


def _invalid(reason: str) -> InvalidInput:
    return InvalidInput(f"{INVALID} {reason}", param="input")


def _answer(result: Embeddings, *, model: str, as_base64: bool) -> Response:
    vectors = np.ascontiguousarray(result.vectors, dtype="<f4")
    tokens = sum(result.tokens)
    content = {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": b64encode(vector.tobytes()).decode("ascii") if as_base64 else vector,
            }
            for index, vector in enumerate(vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY),
        headers=provenance(result),
        media_type="application/json",
    )
