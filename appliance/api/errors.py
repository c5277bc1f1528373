"""From what went wrong to an answer: one table of statuses, and for each API the shape its clients read errors in."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from appliance import errors
from appliance.errors import ApplianceError

STATUS: Mapping[type[ApplianceError], int] = {
    ApplianceError: 500,
    errors.InvalidInput: 400,
    errors.BodyTooLarge: 413,
    errors.NotAllowed: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Overloaded: 503,
    errors.EngineError: 500,
    errors.EngineUnavailable: 503,
    errors.UpstreamFailed: 502,
    errors.StoreError: 500,
    errors.StoreUnavailable: 503,
    errors.StoreFull: 507,
}
"""The nearest ancestor wins. Our own routes, and those of text-embeddings-inference, say 422 where others say 400."""

TEI_STATUS: Mapping[type[ApplianceError], int] = {
    errors.Overloaded: 429,
    errors.EngineFailed: 424,
}
"""What text-embeddings-inference says otherwise."""

_TEI_TYPES: Mapping[int, str] = {400: "Empty", 424: "Backend", 429: "Overloaded", 503: "Unhealthy"}
"""Its `error_type`; other statuses below 500 are "Validation", those above "Backend"."""

_TEI = frozenset(
    {"/", "/embed", "/embed_all", "/embed_sparse", "/rerank", "/similarity", "/tokenize", "/decode", "/info"}
)

CODES: Mapping[type[ApplianceError], str] = {
    errors.ModelNotFound: "model_not_found",
    errors.InputTooLong: "context_length_exceeded",
}
"""OpenAI's `code`, where it has one."""

INTERNAL = "something went wrong inside the appliance; its log says what"

_LONGEST = 500
"""Characters of a message at most: some quote what the caller wrote."""

_LONGEST_PARAM = 100

WORDS: Mapping[str, str] = {
    "bool_type": "true or false is needed",
    "dict_type": "an object is needed",
    "float_parsing": "a number is needed",
    "float_type": "a number is needed",
    "int_parsing": "a whole number is needed",
    "int_type": "a whole number is needed",
    "list_type": "a list is needed",
    "missing": "it is missing",
    "model_type": "an object is needed",
    "string_type": "a text is needed",
    "string_unicode": "it is not Unicode text",
    "extra_forbidden": "there is no such field",
}
"""What we say for some of pydantic's types of error, whose own words are about Python."""

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

_log = structlog.get_logger(__name__)


def is_openai(path: str) -> bool:
    """Whether a path belongs to the OpenAI API."""
    return path.startswith(("/v1/", "/models/")) or path in {"/v1", "/embeddings", "/models"}


def is_ollama(path: str) -> bool:
    """Whether a path belongs to the Ollama API."""
    return path.startswith("/api/") or path == "/api"


def is_cohere(path: str) -> bool:
    """Whether a path belongs to version 2 of the Cohere API, of which there is `/v2/rerank`."""
    return path.startswith("/v2/") or path == "/v2"


def is_tei(path: str) -> bool:
    """Whether a path belongs to text-embeddings-inference's API."""
    return path in _TEI


def status_of(error: ApplianceError, path: str) -> int:
    """The status that `path`'s API answers `error` with."""
    table = {**STATUS, **TEI_STATUS} if is_tei(path) else STATUS
    status = next(table[each] for each in type(error).__mro__ if each in table)
    if status == HTTPStatus.BAD_REQUEST and not (is_openai(path) or is_ollama(path) or is_cohere(path)):
        return HTTPStatus.UNPROCESSABLE_ENTITY
    return status


def envelope(
    path: str,
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Response:
    """An error as the clients of `path` read it: OpenAI's error object, Ollama's `error`, Cohere's `message`, TEI's
    `error` and `error_type`, RFC 9457 problem details.

    Args:
        path: of the request.
        status: of the answer.
        message: for the person who called.
        code: a word for programs, where there is one.
        param: the field that is wrong, where there is one.
        headers: to send along.
        more: members to add to problem details.
    """
    message = shortened(message, _LONGEST)
    media_type = "application/json"
    body: dict[str, Any]
    if is_openai(path):
        kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    elif is_ollama(path):
        body = {"error": message}
    elif is_cohere(path):
        body = {"message": message}
    elif is_tei(path):
        other = "Validation" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "Backend"
        body = {"error": message, "error_type": _TEI_TYPES.get(status, other)}
    else:
        media_type = "application/problem+json"
        body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": message}
        body |= {name: value for name, value in (("param", param), ("code", code)) if value is not None}
        body |= more or {}
    return Response(orjson.dumps(body), status, headers, media_type)


def shortened(text: str, most: int) -> str:
    """The text, or its beginning if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def invalid(error: Mapping[str, Any], loc: Sequence[object]) -> errors.InvalidInput:
    """What pydantic found wrong at `loc`, as an error of ours: `param` is the path to it."""
    param = shortened(".".join(str(part) for part in loc), _LONGEST_PARAM)
    message = WORDS.get(error["type"], error["msg"].removeprefix("Value error, "))
    return errors.InvalidInput(f"{param}: {message}" if param else message, param=param or None)


def install(app: FastAPI) -> None:
    """Answer everything that a route of `app` raises, and what no route answers."""
    app.add_exception_handler(ApplianceError, _appliance_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(Exception, _unexpected)


async def _appliance_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApplianceError)  # noqa: S101 - Starlette picks by class; for mypy
    path: str = request.scope["path"]
    status = status_of(error, path)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.warning("request failed", error=type(error).__name__, reason=error.message, status=status)
    code = next((CODES[each] for each in type(error).__mro__ if each in CODES), None)
    wait = error.retry_after if isinstance(error, errors.Overloaded | errors.EngineUnavailable) else None
    headers = None if wait is None else {"retry-after": str(wait)}
    return envelope(path, status, error.message, code=code, param=getattr(error, "param", None), headers=headers)


async def _http_exception(request: Request, error: Exception) -> Response:
    """What the router says: no such path, no such method there."""
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    path, headers = request.scope["path"], dict(error.headers or {})
    message = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND and "endpoint" not in request.scope:
        message = f"there is no {path} here"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = _allowed(request)
        headers = {"allow": ", ".join(allowed)}
        message = f"{path} takes {' and '.join(allowed)}, not {request.method}"
    return envelope(path, error.status_code, message, headers=headers)


async def _invalid_request(request: Request, error: Exception) -> Response:
    """A path or query parameter of the wrong form."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
    first = error.errors()[0]
    return await _appliance_error(request, invalid(first, first["loc"][1:]))


async def _unexpected(request: Request, error: Exception) -> Response:
    """A mistake of ours. The exception's message is not told: nobody wrote it for the caller. Starlette raises it again
    once this is sent, for the log to get its frames.
    """
    _log.error("request failed", error=type(error).__name__)
    return envelope(request.scope["path"], HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL)


def _allowed(request: Request) -> list[str]:
    """The methods that the path takes, whichever routes take them."""
    routes = request.app.router.routes
    allowed = [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return ["HEAD", *allowed] if "GET" in allowed else allowed
