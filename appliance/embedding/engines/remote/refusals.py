"""Which answers of a server are none: what they mean for the caller, and whether to ask again, or elsewhere."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import ceil
from typing import Any

import orjson

from appliance.embedding.engines.remote.dialects import Dialect, Texts
from appliance.embedding.spec import RemoteSpec
from appliance.errors import ApplianceError, EngineUnavailable, UpstreamFailed

LONGEST_REST = 60.0
"""Seconds that a server is left alone at most because it said so."""

_UNSAID = 0.5
"""Seconds that a server which is asked too much is left alone when it does not say for how long."""

_TOO_LONG = re.compile(
    r"context (length|size|window)|too long|must have less than \d+ tokens|sequence length|input is too large"
    r"|too many tokens|maximum number of tokens",
    re.IGNORECASE,
)
_TOO_MANY = re.compile(
    r"maximum allowed batch size|max_tokens_per_request|max \d+ tokens per request|too many inputs", re.IGNORECASE
)
_BY_COUNT = re.compile(r"maximum allowed batch size|too many inputs", re.IGNORECASE)

_TRANSIENT = frozenset({408, 424, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_READ = 1000  # characters of their message that are looked at
_SHOWN = 200  # and shown
_PIECE = 16  # a message that has so many characters of a text in common with it quotes it


class Trouble(Exception):
    """A try that gave no answer.

    Attributes:
        error: what to tell the caller, if it ends here.
        again: whether the same server may do better.
        elsewhere: whether another one may.
        counts: whether the server is at fault, so that it is left alone if that goes on.
        rest: seconds that it asked to be left alone.
    """

    def __init__(
        self,
        error: ApplianceError,
        *,
        again: bool = False,
        elsewhere: bool = True,
        counts: bool = True,
        rest: float | None = None,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.again = again
        self.elsewhere = elsewhere or again
        self.counts = counts
        self.rest = rest


class TooLong(Exception):
    """An input has more tokens than the server takes; it does not say which."""


class TooMany(Exception):
    """One request held too much. `lasting`: it was the number of inputs, which will be too many again."""

    def __init__(self, *, lasting: bool) -> None:
        super().__init__()
        self.lasting = lasting


class OtherForm(Exception):
    """The server does not send vectors in the form that was asked for."""


def refused(
    spec: RemoteSpec,
    dialect: Dialect,
    server: str,
    inputs: Texts,
    *,
    status: int,
    headers: Mapping[str, str],
    content: bytes,
    key: str,
) -> Exception:
    """What an answer of another status than 200 means: `Trouble`, `TooLong`, `TooMany` or `OtherForm`.

    Args:
        spec: the card.
        dialect: how the server is spoken to.
        server: what the server is called in a message.
        inputs: what it was asked.
        status: of the answer.
        headers: of the answer.
        content: of the answer, or its beginning.
        key: that it was sent, or "".
    """
    told = _told(content)
    words = " ".join(each for each in (_message(told), _code(told)) if each)
    if status in {401, 403}:
        what = f"refused the key {spec.key}" if key else "wants a key: name one on the card"
        return Trouble(EngineUnavailable(f"{server} {what}"))
    if status == 404:  # noqa: PLR2004 - HTTP
        return Trouble(EngineUnavailable(f"{server} {dialect.missing(spec.model)}"))
    if 300 <= status < 400:  # noqa: PLR2004 - HTTP
        advice = "which is not followed: put the address it leads to on the card"
        return Trouble(UpstreamFailed(f"{server} redirects, {advice}"))
    if status == 429:  # noqa: PLR2004 - HTTP
        return _throttled(server, words, rest_of(headers))
    signal = _signal(status, words)
    return signal or _failed(server, status, shown(words, inputs, key), _rest(headers, told))


def rest_of(headers: Mapping[str, str]) -> float | None:
    """Seconds of `Retry-After`, which may be a date; at most `LONGEST_REST`. None where there is none to be read."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        return min(float(value), LONGEST_REST)
    try:
        at = parsedate_to_datetime(value)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        seconds = (at - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):  # what the library raises for dates that are none
        return None
    return min(max(seconds, 0.0), LONGEST_REST)


def shown(message: str, inputs: Texts, key: str) -> str:
    """The beginning of a server's message, fit to be told; empty where it quotes a text, or the key."""
    message = " ".join("".join(each if each.isprintable() else " " for each in message[:_READ]).split())
    if key and key in message:
        return ""
    pieces = [message[place : place + _PIECE] for place in range(0, len(message) - _PIECE + 1, _PIECE // 2)]
    for text in inputs:
        if isinstance(text, str) and (_short_and_within(text, message) or any(piece in text for piece in pieces)):
            return ""
    return message if len(message) <= _SHOWN else message[: _SHOWN - 1] + "…"


def _short_and_within(text: str, message: str) -> bool:
    text = text.strip()
    return 3 < len(text) < 2 * _PIECE and text in message  # noqa: PLR2004 - shorter ones are in any message


def _throttled(server: str, words: str, rest: float | None) -> Trouble:
    if "insufficient_quota" in words:
        return Trouble(EngineUnavailable(f"{server} says that the quota of the key is used up"))
    rest = _UNSAID if rest is None else rest
    error = EngineUnavailable(f"{server} is asked too much: try again shortly", retry_after=max(ceil(rest), 1))
    return Trouble(error, again=True, counts=False, rest=rest)


def _failed(server: str, status: int, message: str, rest: float | None) -> Trouble:
    """What is neither about the key, nor the model, nor the inputs."""
    words = f"{server} answered {status}" + (f": {message}" if message else "")
    if status not in _TRANSIENT:
        return Trouble(UpstreamFailed(words), elsewhere=False, counts=False)
    if status == 503:  # noqa: PLR2004 - HTTP
        after = None if rest is None else max(ceil(rest), 1)
        return Trouble(EngineUnavailable(words, retry_after=after), again=True, rest=rest)
    return Trouble(UpstreamFailed(words), again=True)


def _rest(headers: Mapping[str, str], told: Any) -> float | None:
    """Seconds to wait for a server that is unavailable: as it says, or as Hugging Face's do while one loads."""
    rest = rest_of(headers)
    return _seconds(told.get("estimated_time")) if rest is None and isinstance(told, dict) else rest


def _signal(status: int, words: str) -> Exception | None:
    if status not in {400, 413, 422, 500}:
        return None
    if _TOO_MANY.search(words):
        return TooMany(lasting=_BY_COUNT.search(words) is not None)
    if _TOO_LONG.search(words):
        return TooLong()
    if status == 413:  # noqa: PLR2004 - HTTP
        return TooMany(lasting=False)
    if "encoding_format" in words and status != 500:  # noqa: PLR2004 - HTTP
        return OtherForm()
    return None


def _told(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return None


def _message(told: Any) -> str:
    """The words of an error in any of the usual shapes; empty where it has none, or is a page of HTML."""
    for name in ("error", "message", "detail"):
        value = told.get(name) if isinstance(told, dict) else None
        if isinstance(value, str) and value:
            return value
        if isinstance(value, Sequence) and value and isinstance(value[0], dict):  # FastAPI's list of errors
            value = {"message": value[0].get("msg")}
        if isinstance(value, dict) and isinstance(value.get("message"), str):
            return str(value["message"])
    return ""


def _code(told: Any) -> str:
    inner = told.get("error") if isinstance(told, dict) else None
    code = inner.get("code") if isinstance(inner, dict) else None
    return code if isinstance(code, str) else ""


def _seconds(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return min(float(value), LONGEST_REST)
    return None
