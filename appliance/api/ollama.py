"""Ollama's API as far as embedding goes: its client libraries, and programs that look for an Ollama, work unchanged."""

import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from time import perf_counter_ns
from typing import Annotated, Any, TypeAlias

import numpy as np
import orjson
import structlog
from fastapi import APIRouter, Depends, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from appliance.api.deps import ApplianceDep, RegistryDep, json_body, provenance, request_body
from appliance.embedding.embedder import Embeddings
from appliance.embedding.fit import on_npu
from appliance.embedding.names import OPENAI_NAMES
from appliance.embedding.pull import Progress
from appliance.embedding.registry import Registry
from appliance.embedding.spec import Card, HasFiles
from appliance.errors import (
    ApplianceError,
    EngineError,
    EngineUnavailable,
    InvalidInput,
    ModelNotFound,
)

router = APIRouter(tags=["Ollama"])

VERSION = "0.33.0"
"""The Ollama release whose API this is. Clients compare it: OllamaSharp takes digits and dots only, VS Code Copilot
nothing below 0.6.4."""

NEVER = datetime(2318, 1, 1, tzinfo=UTC)
"""When a model that stays loaded is told to expire; Ollama, too, names a year that far off."""

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAME = re.compile(
    rf"((([A-Za-z0-9_][A-Za-z0-9_.:-]{{0,349}}/)?[A-Za-z0-9_][A-Za-z0-9_-]{{0,79}}/)?{_PART})(:{_PART})?"
)
_DURATION = re.compile(r"([+-]?)((?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+|0)")
_SPAN = re.compile(r"(\d+\.?\d*|\.\d+)([a-zµμ]+)")
_NUMBER = re.compile(r"[+-]?\d{1,20}(\.\d{1,20})?")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_CENTURY = 100 * 365 * 86400.0

_log = structlog.get_logger(__name__)


def seconds(value: object) -> float | None:
    """A `keep_alive`: a number is seconds, a text is a Go duration (`1h30m`) or, more than Ollama takes, seconds too.

    Returns:
        Seconds, -1 for ever, or None for the setting.

    Raises:
        ValueError: neither.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = _parsed_duration(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number of seconds or a duration such as 5m is needed")  # noqa: TRY004 - pydantic's contract
    return -1.0 if value < 0 or value > _CENTURY else float(value)


def _parsed_duration(text: str) -> float:
    found = _DURATION.fullmatch(text)
    if found is not None:
        total = sum(float(number) * _UNITS[unit] for number, unit in _SPAN.findall(found[2]))
        return -total if found[1] == "-" else total
    if _NUMBER.fullmatch(text) is None:  # not `float`, which reads nan and inf too
        raise ValueError("invalid duration: write 300, 5m or 1h30m")
    return float(text)


KeepAlive: TypeAlias = Annotated[
    float | None,
    BeforeValidator(seconds),
    WithJsonSchema(
        {"type": ["number", "string", "null"], "description": 'seconds or "5m"; negative for ever, 0 unloads'}
    ),
]
Options: TypeAlias = Annotated[
    Any,
    WithJsonSchema({"type": ["object", "null"], "description": "num_ctx: tokens of one input; the rest is ignored"}),
]


class ModelBody(BaseModel):
    """Which model. Unknown keys are ignored, and null is as if left out."""

    model: str | None = None
    name: str | None = Field(default=None, description="what `model` was called once")

    @property
    def asked(self) -> str:
        """The name as it was asked for."""
        return self.model or self.name or ""


class LoadBody(ModelBody):
    """A model to load, and how to use it."""

    keep_alive: KeepAlive = None
    options: Options = None


class EmbedBody(LoadBody):
    """What to embed."""

    input: Annotated[
        Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
    ] = None
    truncate: bool | None = None
    dimensions: int | None = Field(default=None, strict=True)


class PromptBody(LoadBody):
    """One text."""

    prompt: str | None = None


class PullBody(ModelBody):
    """A model to fetch."""

    stream: bool | None = None


@router.get("/", response_class=PlainTextResponse)
async def root() -> PlainTextResponse:
    """What clients look for before anything else."""
    return PlainTextResponse("Ollama is running")


@router.get("/api/version")
async def version() -> dict[str, str]:
    """The Ollama release whose API this is; our own version is at `/health`."""
    return {"version": VERSION}


@router.post("/api/embed", openapi_extra=request_body(EmbedBody))
async def embed(registry: RegistryDep, body: Annotated[EmbedBody, Depends(json_body(EmbedBody))]) -> Response:
    """Embed a text or texts. What is too long is cut unless `truncate` is false; more dimensions than the model has are
    ignored. An empty text alone, or an empty list, only loads the model.
    """
    start = perf_counter_ns()
    _check_name(body.asked)
    texts = _texts(body.input)
    await _load(registry, body)
    ready = perf_counter_ns()
    if not texts:
        return _json({"model": body.asked, "embeddings": []})
    native = registry.resolve(body.asked).dimensions
    dimensions = body.dimensions if body.dimensions and 0 < body.dimensions < native else None
    result = await _embedded(registry, body, texts, dimensions=dimensions, truncate=body.truncate is not False)
    return _json(
        {
            "model": result.model if result.instead_of else body.asked,
            "embeddings": np.ascontiguousarray(result.vectors),
            "total_duration": perf_counter_ns() - start,
            "load_duration": ready - start,
            "prompt_eval_count": sum(result.tokens),
        },
        result,
    )


@router.post("/api/embeddings", openapi_extra=request_body(PromptBody))
async def embeddings(registry: RegistryDep, body: Annotated[PromptBody, Depends(json_body(PromptBody))]) -> Response:
    """Embed one text, as Ollama did before `/api/embed`. The vector has length 1, where Ollama's has
    whatever length its runner gave: cosines agree, dot products do not.
    """
    _check_asked(body.asked)
    await _load(registry, body)
    if not body.prompt:
        return _json({"embedding": []})
    result = await _embedded(registry, body, [body.prompt])
    return _json({"embedding": np.ascontiguousarray(result.vectors[0])}, result)


@router.get("/api/tags")
async def tags(appliance: ApplianceDep) -> Response:
    """The installed models, newest first, each followed by its aliases: clients look for the name they use."""
    aliases: dict[str, list[str]] = {}
    for alias, card in appliance.registry.aliases().items():
        if "/" not in alias and alias not in OPENAI_NAMES:
            aliases.setdefault(card, []).append(alias)
    models = []
    for spec, modified in appliance.installed():
        about = {**_identity(spec, appliance.registry), "modified_at": modified.isoformat()}
        about["capabilities"] = _capabilities(spec)
        names = dict.fromkeys(_tagged(each) for each in (spec.name, *aliases.get(spec.name, ())))
        models += [{**about, "name": name, "model": name} for name in names]
    return _json({"models": models})


@router.get("/api/ps")
async def ps(registry: RegistryDep) -> Response:
    """The models in memory."""
    models = [
        {
            **_identity(spec, registry),
            "expires_at": (expires_at or NEVER).isoformat(timespec="microseconds"),
            "size_vram": registry.size(spec) if on_npu(spec) else 0,
            "context_length": spec.max_tokens,
            "engine": engine,
        }
        for spec, expires_at, engine in registry.loaded()
    ]
    return _json({"models": models})


@router.post("/api/show", openapi_extra=request_body(ModelBody))
async def show(appliance: ApplianceDep, body: Annotated[ModelBody, Depends(json_body(ModelBody))]) -> Response:
    """One installed model, in full."""
    _check_asked(body.asked)
    wanted = _known(appliance.registry, body.asked)
    for spec, modified in appliance.installed():
        if spec.name == wanted.name:
            return _json({**_described(spec), "modified_at": modified.isoformat()})
    raise _not_here(body.asked)


@router.post("/api/pull", openapi_extra=request_body(PullBody))
async def pull(registry: RegistryDep, body: Annotated[PullBody, Depends(json_body(PullBody))]) -> Response:
    """Fetch the files of a model that has a card. Tells its progress line by line unless `stream` is false; what fails
    after the first line is told by a line with `error`.
    """
    _check_asked(body.asked)
    try:
        spec = _known(registry, body.asked)
    except ModelNotFound as error:
        if "/" not in body.asked:
            raise
        raise ModelNotFound(  # what is fetched is for those to say who run the appliance, not for its callers
            f"{error.message}: no card names it; `appliance pull {body.asked}`, run where the appliance runs, makes one"
            " for many models of the Hugging Face hub",
            name=body.asked,
        ) from error
    if body.stream is not False:
        return StreamingResponse(_pulled(registry, spec), media_type="application/x-ndjson")
    async for _ in registry.pull(spec.name):
        pass
    return _json({"status": "success"})


@router.delete("/api/delete", openapi_extra=request_body(ModelBody))
async def delete(registry: RegistryDep, body: Annotated[ModelBody, Depends(json_body(ModelBody))]) -> Response:
    """Remove the files of a model that nothing depends on."""
    _check_asked(body.asked)
    await registry.delete(_known(registry, body.asked).name)
    return Response()


@router.post("/api/generate", openapi_extra=request_body(PromptBody))
async def generate(registry: RegistryDep, body: Annotated[PromptBody, Depends(json_body(PromptBody))]) -> Response:
    """Load a model, or unload it with `keep_alive` 0. No model here writes text, so a prompt is refused."""
    _check_name(body.asked)
    registry.card(body.asked)
    if body.prompt:
        raise InvalidInput(f'"{body.asked}" does not support generate')
    if body.keep_alive == 0:
        await registry.unload(body.asked)
    else:
        with _to_pull(registry, body.asked):
            await registry.load(body.asked, keep_alive=body.keep_alive)
    done = {"done": True, "done_reason": "unload" if body.keep_alive == 0 else "load"}
    return _json({"model": body.asked, "created_at": datetime.now(UTC).isoformat(), "response": "", **done})


@router.post("/api/chat", openapi_extra=request_body(ModelBody))
async def chat(registry: RegistryDep, body: Annotated[ModelBody, Depends(json_body(ModelBody))]) -> Response:
    """Refused: no model here writes text."""
    _check_name(body.asked)
    registry.card(body.asked)
    raise InvalidInput(f'"{body.asked}" does not support chat')


@router.post("/api/create")
@router.post("/api/copy")
@router.post("/api/push")
async def not_ours() -> Response:
    """Refused: a model is a card in the data directory, made and named there."""
    raise InvalidInput("models are cards here: put a TOML file into the data directory's `cards` folder")


def _check_asked(name: str) -> None:
    if not name:
        raise InvalidInput("model is required", param="model")


def _check_name(name: str) -> None:
    """Ollama's checks of a model's name before it looks for the model."""
    if not name:
        raise ModelNotFound("model '' not found", name=name)
    if not _NAME.fullmatch(name.strip()):
        raise InvalidInput("invalid model name", param="model")


def _texts(given: Any) -> list[str]:
    """The texts to embed; none for a text that is empty and alone."""
    if given is None or given == "":
        return []
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise InvalidInput("invalid input type", param="input")
    return texts


async def _load(registry: Registry, body: LoadBody) -> None:
    """Load a model that embeds; one that cannot be had is no error where another answers for it."""
    try:
        with _to_pull(registry, body.asked):
            await registry.get(body.asked, keep_alive=body.keep_alive)
    except EngineError:
        if not registry.use_fallback:
            raise


@contextmanager
def _to_pull(registry: Registry, name: str) -> Iterator[None]:
    """A model whose files are not here is one to pull, which is what clients do on 404."""
    try:
        yield
    except EngineUnavailable as error:
        card = registry.card(name)
        if registry.present(card) or not isinstance(card, HasFiles):
            raise
        raise ModelNotFound(f'model "{name}" not found, try pulling it first', name=name) from error


async def _embedded(
    registry: Registry, body: LoadBody, texts: list[str], *, dimensions: int | None = None, truncate: bool = True
) -> Embeddings:
    """Embed within `options.num_ctx` tokens each, as far as the model's own limit lets."""
    return await registry.embed(
        body.asked,
        texts,
        dimensions=dimensions,
        truncate=truncate,
        max_tokens=_num_ctx(body.options),
        keep_alive=body.keep_alive,
    )


def _num_ctx(options: Any) -> int | None:
    num_ctx = options.get("num_ctx") if isinstance(options, dict) else None
    if isinstance(num_ctx, bool) or not isinstance(num_ctx, int | float) or num_ctx < 0:
        return None
    if num_ctx < 1:
        raise InvalidInput("input exceeds maximum context length and cannot be truncated further", param="options")
    return int(min(num_ctx, 2**31))


def _known(registry: Registry, name: str) -> Card:
    try:
        return registry.card(name)
    except ModelNotFound as error:
        raise _not_here(name) from error


def _not_here(name: str) -> ModelNotFound:
    return ModelNotFound(f"model '{_tagged(name)}' not found", name=name)


async def _pulled(registry: Registry, spec: Card) -> AsyncIterator[bytes]:
    try:
        async for progress in registry.pull(spec.name):
            yield _line(_told(progress))
    except ApplianceError as error:
        yield _line({"error": error.message})
    except Exception as error:  # noqa: BLE001 - the status is sent: a line is all that can still be told
        _log.error("pull failed", model=spec.name, error=type(error).__name__, exc_info=error)
        yield _line({"error": f"{spec.name} could not be pulled; the log says why"})


def _told(progress: Progress) -> dict[str, str | int]:
    if not progress.digest:
        return {"status": progress.status}
    how_far: dict[str, str | int] = {"total": progress.total, "completed": progress.completed}
    return {"status": progress.status, "digest": progress.digest, **how_far}


def _line(content: dict[str, str | int] | dict[str, str]) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)


def _json(content: dict[str, Any], result: Embeddings | None = None) -> Response:
    headers = {} if result is None else provenance(result)
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), headers=headers, media_type="application/json"
    )


def _tagged(name: str) -> str:
    """The name with its tag: clients compare whole names."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _identity(spec: Card, registry: Registry) -> dict[str, Any]:
    """What `/api/tags` and `/api/ps` tell alike. A model without files is its card: that is its size and its digest."""
    card = spec.model_dump_json().encode()
    size = registry.size(spec) or len(card)
    name = _tagged(spec.name)
    digest = hashlib.sha256(card).hexdigest()
    return {"name": name, "model": name, "size": size, "digest": digest, "details": _details(spec)}


def _capabilities(spec: Card) -> list[str]:
    if spec.task == "rerank":
        return ["rerank"]
    return ["embedding", "vision"] if spec.takes_images else ["embedding"]


def _length(spec: Card, name: str) -> dict[str, int]:
    """How long vectors are, under this name; nothing for a model that gives none."""
    return {name: spec.dimensions} if spec.task == "embed" else {}


def _details(spec: Card) -> dict[str, Any]:
    millions = spec.parameters / 1e6
    return {
        "parent_model": "",
        "format": spec.engine,
        "family": spec.family,
        "families": [spec.family],
        "parameter_size": f"{millions / 1e3:.1f}B" if millions >= 1e3 else f"{millions:.0f}M",  # noqa: PLR2004 - a billion
        "quantization_level": _quantization(spec),
        "context_length": spec.max_tokens,
        **_length(spec, "embedding_length"),
    }


def _quantization(spec: Card) -> str:
    match spec.engine:
        case "hash":
            return "F32"
        case "onnx" | "clip":
            return "INT8" if spec.precision == "int8" else "F32"
        case "rkllm":
            return spec.dtype.upper()
        case "remote":
            return "unknown"


def _described(spec: Card) -> dict[str, Any]:
    return {
        "license": spec.license,
        "modelfile": f"FROM {_tagged(spec.name)}\n",
        "parameters": f"num_ctx                        {spec.max_tokens}",
        "template": "{{ .Prompt }}",
        "details": _details(spec),
        "model_info": {
            "general.architecture": spec.family,
            "general.basename": spec.name,
            "general.parameter_count": spec.parameters,
            f"{spec.family}.context_length": spec.max_tokens,
            **_length(spec, f"{spec.family}.embedding_length"),
        },
        "capabilities": _capabilities(spec),
    }
