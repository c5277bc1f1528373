"""Who may call: the host they asked for, the web page they sit on, the key they hold."""

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.api.errors import envelope
from appliance.api.metrics import Metrics
from appliance.errors import InvalidInput

_READS = frozenset({"GET", "HEAD"})
_OPEN = frozenset({"/", "/health"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_APPS = frozenset(
    {
        "app",  # Obsidian, Electron
        "file",
        "tauri",
        "vscode-webview",
        "vscode-file",
        "chrome-extension",
        "moz-extension",
        "safari-web-extension",
    }
)
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:/@\[\]]+))(?::[0-9]{1,5})?")
_ORIGIN = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://([^\s/@]*)")

_ALLOW_HEADERS = (
    b"Authorization, Content-Type, User-Agent, Accept, X-Requested-With, X-Request-Id, X-Api-Key, Api-Key, "
    b"OpenAI-Beta, OpenAI-Organization, OpenAI-Project, Idempotency-Key, "
    b"x-stainless-arch, x-stainless-async, x-stainless-custom-poll-interval, x-stainless-helper-method, "
    b"x-stainless-lang, x-stainless-os, x-stainless-package-version, x-stainless-poll-helper, "
    b"x-stainless-read-timeout, x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, "
    b"x-stainless-timeout"
)

Headers: TypeAlias = Mapping[bytes, Sequence[bytes]]
"""Request headers by lower-case name, each with all its values."""


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is of this machine only; of a name other than localhost nobody knows."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, keys: Sequence[str], *, allow_open: bool) -> None:
    """Refuse to listen beyond this machine without a key.

    Raises:
        InvalidInput: nobody would have to show a key, and the owner did not say that this is meant.
    """
    if not (keys or allow_open or is_loopback(host)):
        raise InvalidInput(
            f"listening on {host or 'every address'} would let anyone on the network in: "
            "set api_keys (or api_keys_file), or allow_open if that is meant",
            param="host",
        )


class Hosts:
    """Which names in a Host header are ours, so that a name an attacker owns cannot be pointed at us (DNS rebinding).

    Ours are localhost and what ends in `.localhost`, the address we listen on, the machine's name alone and with
    `.local`, and what the owner lists (`*.example.org`, or `*` for any). When listening on every address, any literal
    address is ours: a literal needs no DNS, so none can be pointed at us.
    """

    def __init__(self, bind: str, *, allowed: Iterable[str] = ()) -> None:
        machine = socket.gethostname().lower()
        exact = {bind.lower(), machine, f"{machine.partition('.')[0]}.local"} | {name.lower() for name in allowed}
        self._any = "*" in exact
        self._ends = (".localhost", *(name[1:] for name in exact if name.startswith("*.")))
        self._exact = frozenset(exact | _LOOPBACK)
        self._any_literal = bind in {"", "0.0.0.0", "::"}  # noqa: S104 - asked about, not bound to

    def ours(self, header: str) -> bool:
        """Whether a Host header's value names us; the port does not matter."""
        parts = _HOST.fullmatch(header)
        if parts is None:
            return False
        name = (parts[1] or parts[2]).lower().removesuffix(".")
        return (
            self._any or name in self._exact or name.endswith(self._ends) or (self._any_literal and _is_literal(name))
        )


class Origins:
    """Which web origins may call: pages of this machine, local apps and extensions, and what the owner lists
    (`https://notes.example.org`, `https://*.example.org`, or `*` for any). Ollama's defaults.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        patterns = [
            ".*" if origin == "*" else re.escape(origin.lower().rstrip("/")).replace(r"\*", r"[^\s/]*")
            for origin in allowed
        ]
        self._listed = re.compile("|".join(patterns)) if patterns else None

    def allowed(self, origin: str, *, host: str) -> bool:
        """Whether a page of this origin may call; `host` is the Host header: a page that we served may."""
        origin = origin.lower()
        if self._listed is not None and self._listed.fullmatch(origin):
            return True
        parts = _ORIGIN.fullmatch(origin)
        if parts is None:  # `null` among others
            return False
        scheme, authority = parts.groups()
        if scheme in {"http", "https"}:
            return authority == host.lower() or _is_this_machine(authority)
        return scheme in _APPS


def _is_this_machine(authority: str) -> bool:
    parts = _HOST.fullmatch(authority)
    name = (parts[1] or parts[2]) if parts else ""
    return name in _LOOPBACK or name == "0.0.0.0" or name.endswith(".localhost")  # noqa: S104 - compared, not bound


class Keys:
    """The API keys, known by their SHA-256 only."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def hold(self, shown: Iterable[bytes]) -> bool:
        """Whether one of the keys shown is ours, in time that does not tell how nearly."""
        digests = [hashlib.sha256(key).digest() for key in shown]
        return any([hmac.compare_digest(ours, theirs) for ours in self._digests for theirs in digests])  # noqa: C419 - all are compared


@dataclass(frozen=True, slots=True)
class _Refusal:
    status: int
    message: str
    reason: str
    code: str | None = None
    headers: Mapping[str, str] | None = None


class Guard:
    """ASGI layer: Host, Origin and key of every request, before anything of it is read; CORS for allowed origins.

    It trusts `scope["path"]`, which is what routes are matched by. With no key configured, whatever Authorization a
    client sends is ignored. Nothing but HTTP gets through.
    """

    def __init__(self, app: ASGIApp, *, hosts: Hosts, origins: Origins, keys: Keys, metrics: Metrics) -> None:
        self.app = app
        self._hosts = hosts
        self._origins = origins
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or answer it here."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = _by_name(scope)
        origin = _last(headers, b"origin")
        known = bool(origin) and self._origins.allowed(origin, host=_last(headers, b"host"))
        if known:
            send = _with_cors(send, origin)
        preflight = known and scope["method"] == "OPTIONS" and b"access-control-request-method" in headers
        elsewhere = not known and (bool(origin) or _last(headers, b"sec-fetch-site") == "cross-site")
        refusal = self._refusal(scope, headers, preflight=preflight, elsewhere=elsewhere)
        if refusal is not None:
            self._metrics.rejected(refusal.reason)
            answer = envelope(
                scope["path"], refusal.status, refusal.message, code=refusal.code, headers=refusal.headers
            )
            await answer(scope, receive, send)
        elif preflight:
            await _preflight(headers, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers, *, preflight: bool, elsewhere: bool) -> _Refusal | None:
        reads = scope["method"] in _READS
        # No Host at all is HTTP/1.0, which no browser speaks.
        if not all(self._hosts.ours(_text(host)) for host in headers.get(b"host", ())):
            return _Refusal(421, "this server does not answer to that host name; add it to allowed_hosts", "host")
        if elsewhere and not reads:
            return _Refusal(
                403, "web pages of that origin may not call this server; add it to allowed_origins", "origin"
            )
        if preflight or not self._keys or (reads and scope["path"] in _OPEN):  # a browser shows no key in a preflight
            return None
        shown = _shown(headers)
        if self._keys.hold(shown):
            return None
        message = (
            "Incorrect API key provided."
            if any(shown)
            else "You didn't provide an API key: send it as `Authorization: Bearer <key>`."
        )
        return _Refusal(401, message, "key", code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _by_name(scope: Scope) -> Headers:
    headers: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name, []).append(value)
    return headers


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip()


def _last(headers: Headers, name: bytes) -> str:
    return _text(headers[name][-1]) if name in headers else ""


def _shown(headers: Headers) -> list[bytes]:
    """Every key the caller shows, wherever it stands."""
    shown = [*headers.get(b"x-api-key", ()), *headers.get(b"api-key", ())]
    for value in headers.get(b"authorization", ()):
        scheme, _, key = value.strip().partition(b" ")
        if scheme.lower() == b"bearer":
            shown.append(key)
    return [key.strip() for key in shown]


def _is_literal(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_cors(send: Send, origin: str) -> Send:
    """Let a page of this origin read the answer. No credentials: keys travel in a header, and there are no cookies."""
    extra = [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", b"X-Request-Id, Retry-After, Location"),
        (b"vary", b"Origin"),
    ]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return sending


async def _preflight(headers: Headers, send: Send) -> None:
    answer = [
        (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, DELETE, OPTIONS"),
        (b"access-control-allow-headers", _ALLOW_HEADERS),
        (b"access-control-max-age", b"600"),
    ]
    if b"access-control-request-private-network" in headers:
        answer.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": answer})
    await send({"type": "http.response.body", "body": b""})
