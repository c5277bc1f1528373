"""One way to log: structlog and the standard library's loggers through the same processors, to standard error.

No line ever holds document text, queries or keys. Three nets catch what slips: fields with such names are dropped,
exceptions are written as type and frames without a message that could quote its input, and libraries are heard from
warnings on.
"""

import logging
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from appliance.errors import ApplianceError

PRIVATE = frozenset(
    """text texts input inputs prompt query q words document documents content body title metadata
    key keys api_key authorization password secret token""".split()  # noqa: SIM905 - words read better than commas
)
"""Names of fields that are never written, at any depth, in any case; a number under one of them is a count, and is."""

_NEVER = logging.CRITICAL + 1  # uvicorn's access log prints query strings; ours is written by the HTTP layers


def configure(
    *,
    form: Literal["console", "json"] = "console",
    level: Literal["debug", "info", "warning", "error"] = "info",
    stream: TextIO | None = None,
) -> None:
    """Set logging up for the process: once, before anything logs. `stream` is standard error if left out."""
    stream = sys.stderr if stream is None else stream
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        with_plain_exception,
        without_private_fields,
    ]
    last: Processor = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, first_line_of_asyncio, *shared],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
    )
    door = logging.StreamHandler(stream)
    door.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [door]
    root.setLevel(max(logging.WARNING, threshold))  # what libraries chat about below that may quote requests
    for name, least in (("uvicorn", logging.INFO), ("uvicorn.error", logging.INFO), ("uvicorn.access", _NEVER)):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(max(least, threshold))
    logging.captureWarnings(capture=True)


def without_private_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Drop every field, at any depth of mappings and lists, whose name says that it holds a person's words or a key."""
    return _cleared(event)


def _cleared(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _cleared_value(value)
        for name, value in fields.items()
        if isinstance(value, int | float) or str(name).lower() not in PRIVATE
    }


def _cleared_value(value: Any) -> Any:
    if isinstance(value, str | int | float):  # almost always
        return value
    if isinstance(value, Mapping):
        return _cleared(value)
    if isinstance(value, list | tuple):
        return [_cleared_value(inner) for inner in value]
    return value


def with_plain_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace `exc_info` by `exception`: the types and frames of the chain. Only our own errors keep their message,
    which by contract quotes nothing; a ValidationError or a database error would quote the caller's text.
    """
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else sys.exc_info()[1] if given is True else None
    if isinstance(given, tuple):
        error = given[1]
    if error is not None:
        event["exception"] = plain(error)
    return event


def plain(error: BaseException) -> str:
    """An exception after what caused it, as Python prints them, without the messages of errors that are not ours."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n".join(_frames(one.__traceback__) + _headline(one) for one in reversed(chain))


def _frames(tb: TracebackType | None) -> str:
    return "".join(traceback.format_tb(tb))


def _headline(error: BaseException) -> str:
    name = type(error).__qualname__
    if isinstance(error, ApplianceError):
        return f"{name}: {error.message}"
    if isinstance(error, OSError) and error.strerror:
        return f"{name}: {error.strerror}"
    return name


def first_line_of_asyncio(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Keep line one of what asyncio says: the next holds the repr of a task, and that its exception's message."""
    if event.get("logger") == "asyncio":
        event["event"] = str(event["event"]).partition("\n")[0]
    return event
