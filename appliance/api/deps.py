"""What routes ask for: the appliance, a JSON body whatever its Content-Type says, and a query string of known names."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from time import time
from typing import Annotated, Any, Literal, TypeAlias, TypeVar
from urllib.parse import unquote_to_bytes

import orjson
from fastapi import Depends, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, ConfigDict, JsonValue, ValidationError, WithJsonSchema

from appliance.api.errors import invalid
from appliance.api.metrics import Metrics
from appliance.catalog.catalog import Catalog
from appliance.embedding.caches.cache import EmbeddingCache
from appliance.embedding.embedder import Embeddings, PerToken
from appliance.embedding.engine import FALLBACK
from appliance.embedding.registry import Registry
from appliance.embedding.reranker import Scores
from appliance.embedding.spec import Card
from appliance.errors import InvalidInput
from appliance.ingest.events import Events
from appliance.ingest.ingestor import Ingestor
from appliance.ingest.jobs import Jobs
from appliance.search.retriever import Retriever
from appliance.store.base import VectorStore

Body = TypeVar("Body", bound=BaseModel)

BUILT_IN = datetime(2026, 1, 1, tzinfo=UTC)
"""When a model without files "was modified": before any that was pulled, and the same after every start."""

_LARGE = 2**20
"""Bytes of a body that is read in a thread: the others must not wait for it."""

_FALLBACKS = 16

_DEPTH = 32
"""Objects and lists inside each other, at most, in metadata and in what is compared with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appliance:
    """Everything that a running appliance is made of; `app.state.appliance`, for the length of the lifespan.

    Attributes:
        registry: the models.
        catalog: which collections and documents exist.
        store: where their chunks are.
        store_trouble: why a store on another machine does not answer; empty while it does.
        ingestor: the one door through which they change.
        jobs: what was handed in together.
        events: what happens to documents and jobs.
        retriever: finds them.
        metrics: what was counted.
        cache: remembers embeddings; None where the settings want none.
        wait: seconds that a caller of `POST /documents` waits who does not say how long.
        token_ids: whose token ids the arrays of `/v1/embeddings` are: OpenAI's cl100k_base, the model's own, nobody's.
        strict_openai: refuse the empty string on `/v1/embeddings`, as OpenAI does.
        max_pending: requests that are worked on at once; only told.
        started: seconds since 1970.
    """

    registry: Registry
    catalog: Catalog
    store: VectorStore
    ingestor: Ingestor
    jobs: Jobs
    events: Events
    retriever: Retriever
    metrics: Metrics
    cache: EmbeddingCache | None = None
    store_trouble: Callable[[], str] = lambda: ""
    wait: float = 10.0
    token_ids: Literal["cl100k", "model", "reject"] = "cl100k"  # noqa: S105 - tokens of a text
    strict_openai: bool = False
    max_pending: int = 512
    started: float = field(default_factory=time)

    def ready(self) -> dict[str, str]:
        """For each part that the first answers need: `ok`, or what is missing."""
        default = self.registry.default.name
        return {
            "index": self.ingestor.trouble or self.store_trouble() or "ok",
            f"model {default}": self.registry.trouble(default) or "ok",
        }

    def installed(self) -> list[tuple[Card, datetime]]:
        """The models whose files are here and when they came, newest first: one order for every list of models."""
        found = [(spec, self.registry.modified(spec) or BUILT_IN) for spec in self.registry.installed()]
        return sorted(found, key=lambda each: each[1], reverse=True)


def provenance(answer: Embeddings | PerToken[Any] | Scores) -> dict[str, str]:
    """Headers that say which model answered, what ran it, for which other one, and how many inputs were cut, if so."""
    cut = sum(answer.truncated)
    headers = {"x-appliance-model": answer.model, "x-appliance-engine": answer.engine}
    if isinstance(answer, Embeddings) and answer.instead_of:
        headers[FALLBACK] = answer.instead_of
    return headers | ({"x-appliance-truncated": str(cut)} if cut else {})


# FastAPI runs dependencies that are not coroutines in a thread: a fifth of a short request's time.


async def _appliance(request: Request) -> Appliance:
    appliance: Appliance = request.app.state.appliance
    return appliance


async def _registry(request: Request) -> Registry:
    return (await _appliance(request)).registry


ApplianceDep = Annotated[Appliance, Depends(_appliance)]
RegistryDep = Annotated[Registry, Depends(_registry)]


async def known_query(request: Request) -> None:
    """Refuse an address that is not UTF-8, and a parameter that the route does not have: `mod=vector`, left unread,
    would be a search that nobody asked for. A dependency of whole routers.

    Raises:
        InvalidInput: with the name that may have been meant.
    """
    try:
        for raw in (request.scope.get("raw_path", b""), request.scope["query_string"]):
            unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise InvalidInput("the address is not UTF-8") from None
    route = request.scope["route"]
    known = [each.alias for each in route.dependant.query_params] if isinstance(route, APIRoute) else []
    for name in request.query_params:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there {_listed(known)}"
            raise InvalidInput(f"there is no query parameter {name[:100]}: {hint}", param=name[:100])


def _listed(known: list[str]) -> str:
    return f"is {', '.join(known)}" if known else "is none here"


def checked_json(value: Any) -> Any:
    """`value`, which came as JSON, if a store can keep it: not too deep, and no number that loses digits.

    Raises:
        ValueError: saying which of the two.
    """
    level = [value]
    for _ in range(_DEPTH + 1):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below += each.values()
            elif isinstance(each, list):
                below += each
            elif isinstance(each, int | float) and not -(2**63) <= each < 2**63:
                raise ValueError("a number is beyond 64 bits: write it as text")
        if not below:
            return value
        level = below
    raise ValueError(f"more than {_DEPTH} objects and lists are inside each other")


JsonObject: TypeAlias = Annotated[dict[str, JsonValue], BeforeValidator(checked_json)]
"""Metadata, or conditions on it."""


def _fallback(given: object) -> object:
    if given is None or isinstance(given, bool):
        return given
    if isinstance(given, list) and len(given) <= _FALLBACKS and all(isinstance(each, str) for each in given):
        return given
    raise ValueError(f"true, false, or a list of at most {_FALLBACKS} names of models is needed")


UseFallback: TypeAlias = Annotated[
    Any,
    BeforeValidator(_fallback),
    WithJsonSchema(
        {"oneOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "string"}, "maxItems": _FALLBACKS}]}
    ),
]
"""Whether another model may answer where the one that is asked for cannot: one of its card's, or one of these names."""


class StrictBody(BaseModel):
    """A body of our own routes: no unknown fields, and `true` or `"10"` is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


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
    return await read_chosen(request, lambda _: model)


async def read_chosen(request: Request, choose: Callable[[dict[str, Any]], type[Body]]) -> Body:
    """The request's body as the model that `choose` takes for its content; otherwise as `read_json`."""
    raw = await request.body()

    def read() -> Body:
        content = parsed(raw)
        if not isinstance(content, dict):
            raise InvalidInput("the request body must be a JSON object")
        return validated(content, choose(content))

    return read() if len(raw) < _LARGE else await asyncio.to_thread(read)


def validated(content: Any, model: type[Body]) -> Body:
    """`content` as `model`.

    Raises:
        InvalidInput: not of this form; `param` is the path to the first thing that is wrong.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise invalid(first, _path(content, first["loc"], missing=first["type"] == "missing")) from None


def _path(content: Any, loc: Sequence[int | str], *, missing: bool) -> list[int | str]:
    """The path without what pydantic adds where a field may be of several types: `collection` for `collection.str`."""
    path: list[int | str] = []
    for place, part in enumerate(loc, start=1):
        match content:
            case dict() if part in content:
                content = content[part]
            case list() if isinstance(part, int):
                content = content[part]
            case dict() if missing and place == len(loc):
                pass
            case _:
                continue
        path.append(part)
    return path


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
