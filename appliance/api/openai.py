"""OpenAI's embeddings API: `/v1/embeddings` and `/v1/models`, as its client libraries use it."""

import asyncio
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field, WithJsonSchema

from appliance.api import cl100k, images
from appliance.api.deps import Appliance, ApplianceDep, UseFallback, json_body, provenance, request_body
from appliance.api.kinds import kind_of
from appliance.embedding.embedder import Embeddings
from appliance.embedding.engine import Image, Input
from appliance.errors import InvalidInput, ModelNotFound

router = APIRouter(tags=["OpenAI"])

MAX_ITEMS = 2048
"""Inputs of one request, as in OpenAI's schema."""

INVALID = "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference."
"""OpenAI's own words; what is wrong with it follows."""


class _Coded(NamedTuple):
    """An image as it stands in JSON."""

    image: str


Item: TypeAlias = str | list[int] | _Coded

MAX_IMAGES = 64
"""Images among them: a small file may hold many pixels."""

_LARGE = 2**20
"""Characters of images that are decoded in a thread."""


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_TEXT = {"type": "string"}
_IDS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_PART = {
    "oneOf": [
        _object(text=_TEXT),
        _object(image=images.SCHEMA),
        _object(type={"const": "text"}, text=_TEXT),
        _object(type={"const": "image_url"}, image_url=_object(url=images.SCHEMA)),
    ]
}
_INPUT = {
    "oneOf": [
        _TEXT,
        _PART,
        {"type": "array", "items": {"anyOf": [_TEXT, _PART]}, "minItems": 1, "maxItems": MAX_ITEMS},
        _IDS,
        {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MAX_ITEMS},
    ],
    "description": "a text, texts and images, the token ids of one text, or of several. A text that is a data URL of "
    "an image is that image",
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
    """Embed texts, token ids or, with a model that takes them, images.

    Token ids are those of OpenAI's cl100k_base unless the appliance is set up otherwise. What is too long is cut, and
    the header `x-appliance-truncated` counts how often; `x-appliance-model` and `x-appliance-engine` say what did it.
    """
    if not body.model:
        raise InvalidInput("you must provide a model parameter", param="model")
    as_base64 = _is_base64(body.encoding_format)
    kind = kind_of(body.input_type, param="input_type")
    inputs = await _inputs(_items(body.input, strict=appliance.strict_openai), token_ids=appliance.token_ids)
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
    return _answer(result, model=result.model if result.instead_of else body.model, as_base64=as_base64)


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
    """The inputs one by one, whichever of the forms they came in."""
    if isinstance(given, str | dict):
        given = [given]
    elif not isinstance(given, list):
        raise _invalid("It must be a text, texts, images, or token ids.")
    elif given and _is_ids(given):
        given = [given]
    if not 1 <= len(given) <= MAX_ITEMS:
        raise _invalid(f"It must hold 1 to {MAX_ITEMS} items, and has {len(given)}.")
    items: list[Item]
    if all(isinstance(each, str | dict) for each in given):
        items = [_part(each) for each in given]
    elif all(isinstance(each, list) and _is_ids(each) for each in given):
        items = given
    else:
        raise _invalid("It must hold texts and images only, or token ids only.")
    if [] in items or (strict and "" in items):
        raise _invalid("An item is empty.")
    if sum(isinstance(each, _Coded) for each in items) > MAX_IMAGES:
        raise _invalid(f"It must hold {MAX_IMAGES} images at most; send the others in another request.")
    return items


def _is_ids(given: list[Any]) -> bool:
    return all(type(each) is int for each in given)


def _part(given: str | dict[str, Any]) -> str | _Coded:
    """A text or an image: bare, as Jina's API has it, or as a content part of OpenAI's."""
    if isinstance(given, str):
        return _Coded(given) if images.is_image_url(given) else given
    kind = given.get("type")
    part = {name: value for name, value in given.items() if name != "type"}
    match part:
        case {"text": str(text)} if len(part) == 1 and kind in {None, "text"}:
            return text
        case {"image": str(image) | {"url": str(image)}} if len(part) == 1 and kind in {None, "image"}:
            return _Coded(image)
        case {"image_url": str(image) | {"url": str(image)}} if len(part) == 1 and kind in {None, "image_url"}:
            return _Coded(image)
    raise _invalid(
        'An object must be {"text": "…"}, {"image": "…"} or {"type": "image_url", "image_url": {"url": "…"}}.'
    )


async def _inputs(items: list[Item], *, token_ids: Literal["cl100k", "model", "reject"]) -> Sequence[Input]:
    """The inputs as the embedder takes them: texts, images, or token ids of the model's own."""
    coded = sum(len(each.image) for each in items if isinstance(each, _Coded))
    if isinstance(items[0], list):
        return await _texts(items, token_ids=token_ids)

    def read() -> list[Input]:
        inputs: list[Input] = [
            images.decoded(each.image, param="input") if isinstance(each, _Coded) else each for each in items
        ]
        images.check_pixels([each for each in inputs if isinstance(each, Image)], param="input")
        return inputs

    return read() if coded < _LARGE else await asyncio.to_thread(read)


async def _texts(items: list[Item], *, token_ids: Literal["cl100k", "model", "reject"]) -> Sequence[Input]:
    """Token ids as texts, or as they are."""
    ids = [each for each in items if isinstance(each, list)]  # all of them
    match token_ids:
        case "model":
            return ids
        case "reject":
            raise _invalid("Token ids are not accepted here: send texts.")
    try:
        return await asyncio.to_thread(lambda: [cl100k.decode(each) for each in ids])
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
