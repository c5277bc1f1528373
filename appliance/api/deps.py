"""What routes ask for: the appliance, and a JSON body whatever its Content-Type says."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import time
from typing import Annotated, Any, Literal, TypeVar

import orjson
from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from appliance.api.metrics import Metrics
from appliance.catalog.catalog import Catalog
from appliance.embedding.registry import Registry
from appliance.embedding.spec import ModelSpec
from appliance.errors import InvalidInput
from appliance.ingest.ingestor import Ingestor
from appliance.search.retriever import Retriever
from appliance.store.base import VectorStore

Body = TypeVar("Body", bound=BaseModel)

BUILT_IN = datetime(2026, 1, 1, tzinfo=UTC)
"""When a model without files "was modified": before any that was pulled, and the same after every start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appliance:
    """Everything that a running appliance is made of; `app.state.appliance`, for the length of the lifespan.

    Attributes:
        registry: the models.
        catalog: which collections and documents exist.
        store: where their chunks are.
        ingestor: the one door through which they change.
        retriever: finds them.
        metrics: what was counted.
        wait: seconds that a caller of `POST /documents` waits who does not say how long.
        token_ids: whose token ids the arrays of `/v1/embeddings` are: OpenAI's cl100k_base, the model's own, nobody's.
        strict_openai: refuse the empty string on `/v1/embeddings`, as OpenAI does.
        started: seconds since 1970.
    """

    registry: Registry
    catalog: Catalog
    store: VectorStore
    ingestor: Ingestor
    retriever: Retriever
    metrics: Metrics
    wait: float = 10.0
    token_ids: Literal["cl100k", "model", "reject"] = "cl100k"  # noqa: S105 - tokens of a text
    strict_openai: bool = False
    started: float = field(default_factory=time)

    def ready(self) -> dict[str, str]:
        """For each part that the first answers need: `ok`, or what is missing."""
        default = self.registry.default.name
        return {"database": "ok", f"model {default}": self.registry.trouble(default) or "ok"}

    def installed(self) -> list[tuple[ModelSpec, datetime]]:
        """The models whose files are here and when they came, newest first: one order for every list of models."""
        found = [(spec, self.registry.modified(spec) or BUILT_IN) for spec in self.registry.installed()]
        return sorted(found, key=lambda each: each[1], reverse=True)


# FastAPI runs dependencies that are not coroutines in a thread: a fifth of a short request's time.


async def _appliance(request: Request) -> Appliance:
    appliance: Appliance = request.app.state.appliance
    return appliance


async def _registry(request: Request) -> Registry:
    return (await _appliance(request)).registry


ApplianceDep = Annotated[Appliance, Depends(_appliance)]
RegistryDep = Annotated[Registry, Depends(_registry)]


def parsed(raw: bytes) -> Any:
    """What a JSON text says. A byte order mark is skipped; NaN, numbers beyond a double, lone surrogates and nesting
    deeper than 1024 are no JSON.

    Raises:
        InvalidInput: nothing there, or no JSON; the message says where, and quotes nothing.
    """
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    if not raw.strip():
        raise InvalidInput("missing request body")
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the request body is not JSON: {error}") from None


async def read_json(request: Request, model: type[Body]) -> Body:
    """The request's body as `model`, whatever the Content-Type: `curl -d` says it sends a form.

    Raises:
        InvalidInput: no JSON object, or not one of this form.
    """
    content = parsed(await request.body())
    if not isinstance(content, dict):
        raise InvalidInput("the request body must be a JSON object")
    return validated(content, model)


def validated(content: Any, model: type[Body]) -> Body:
    """`content` as `model`.

    Raises:
        InvalidInput: not of this form; `param` is the path to the first thing that is wrong.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"{param}: {message}" if param else message, param=param or None) from None


def json_body(model: type[Body]) -> Callable[[Request], Awaitable[Body]]:
    """A dependency that gives the body as `model`: `Annotated[Model, Depends(json_body(Model))]`."""

    async def read(request: Request) -> Body:
        return await read_json(request, model)

    return read


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its own body: FastAPI documents what it reads itself, and no more."""
    schema = model.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(part: Any, definitions: dict[str, Any]) -> Any:
    """The schema with every reference replaced by what it names: inside an OpenAPI document they would lead nowhere."""
    if isinstance(part, list):
        return [_inlined(each, definitions) for each in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        named = definitions[part["$ref"].rpartition("/")[2]]
        part = {**named, **{name: value for name, value in part.items() if name != "$ref"}}
    return {name: _inlined(value, definitions) for name, value in part.items()}
