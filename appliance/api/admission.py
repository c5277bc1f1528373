"""What every request passes on its way in and out: a name, a count, a line in the log; a bound on its size and on how
many are worked on; and an end when its caller is gone.
"""

import asyncio
import re
import secrets
from contextlib import suppress
from time import perf_counter

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.api.errors import INTERNAL, envelope
from appliance.api.metrics import Metrics

BUSY = "server busy, please try again.  maximum pending requests exceeded"
"""Ollama's own words, two spaces included."""

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_WATCHING = frozenset({"/health", "/ready", "/metrics"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,64}")
_CLIENT_GONE = 499
_LINGER = 1.0
_log = structlog.stdlib.get_logger("appliance.access")


class Observed:
    """Outermost ASGI layer: request id, HEAD, access log, metrics, and the last net under an exception.

    A sane `X-Request-Id` is kept, else one is made; it is echoed and stands in every log line of the request. HEAD is
    answered by the route of GET, headers kept and body dropped. The log and the metrics name the route, not the path:
    a path may hold a document's id, a query string a person's words.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        method: str = scope["method"]
        request_id = _request_id(scope)
        answer = _Answer(send, request_id=request_id, headers_only=method == "HEAD")
        if method == "HEAD":
            scope = {**scope, "method": "GET", "head": True}
        with structlog.contextvars.bound_contextvars(request_id=request_id.decode()):
            try:
                await self.app(scope, receive, answer.send)
            except asyncio.CancelledError:  # by the server, which ends; nobody else holds this task
                if answer.status is not None:
                    raise
                stopping = envelope(scope["path"], 503, "the appliance is stopping", headers={"retry-after": "10"})
                await stopping(scope, receive, answer.send)
            except Exception:  # noqa: BLE001 - whatever it is, the caller gets an answer and the log the frames
                _log.exception("request failed", route=_route(scope))
                if answer.status is None:
                    await envelope(scope["path"], 500, INTERNAL)(scope, receive, answer.send)
            finally:
                self._tell(scope, method, answer, perf_counter() - started)

    def _tell(self, scope: Scope, method: str, answer: "_Answer", seconds: float) -> None:
        route, status = _route(scope), answer.status or _CLIENT_GONE
        self._metrics.answered(route=route, method=method, status=status, seconds=seconds)
        say = _log.debug if route in _WATCHING else _log.info
        say("request", method=method, route=route, status=status, ms=round(seconds * 1000, 2), bytes=answer.bytes)


class _Answer:
    """What goes back to the caller, and what is told of it: status, bytes. For HEAD the body stays here."""

    def __init__(self, send: Send, *, request_id: bytes, headers_only: bool) -> None:
        self.status: int | None = None
        self.bytes = 0
        self._send = send
        self._request_id = request_id
        self._headers_only = headers_only

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", self._request_id)]}
        elif self._headers_only:
            message = {**message, "body": b""}
        else:
            self.bytes += len(message.get("body", b""))
        await self._send(message)


class Admission:
    """ASGI layer: how large a body may be, how many requests are worked on at once, and no work for who has left.

    Over `max_body` bytes is 413: by Content-Length before anything is read, and by count for what comes in chunks.
    While `max_pending` requests that cost work are under way, one more is told 503 after `delay` seconds: told at once,
    hot clients come back so fast that they halve what the server gets done. A caller who sends no byte of a body for
    `patience` seconds is told 408. When the caller hangs up, the task that works for it is cancelled; neither Starlette
    nor uvicorn does that.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body: int,
        max_pending: int,
        metrics: Metrics,
        delay: float = 0.5,
        patience: float = 30.0,
    ) -> None:
        self.app = app
        self._max_body = max_body
        self._max_pending = max_pending
        self._metrics = metrics
        self._delay = delay
        self._patience = patience
        self._pending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif (length := _body_length(scope)) is not None and length > self._max_body:
            await self._refuse_body(scope, receive, send)
        elif not _is_work(scope):
            await self._attend(scope, receive, send, has_body=length != 0)
        elif self._pending >= self._max_pending:
            self._metrics.rejected("busy")
            await asyncio.sleep(self._delay)
            await envelope(scope["path"], 503, BUSY, headers={"retry-after": "1"})(scope, receive, send)
        else:
            self._pending += 1
            try:
                await self._attend(scope, receive, send, has_body=length != 0)
            finally:
                self._pending -= 1

    async def _attend(self, scope: Scope, receive: Receive, send: Send, *, has_body: bool) -> None:
        # A timeout without a time is a fuse: whoever reschedules it to now cancels what runs under it, and only that.
        fuse = asyncio.timeout(None)
        call = _Call(receive, send, fuse, max_body=self._max_body, patience=self._patience)
        try:
            async with fuse:
                if not has_body:
                    await call.start_watch_after_empty_body()
                await self.app(scope, call.receive, call.send)
        except TimeoutError:
            if not fuse.expired():
                raise
        finally:
            call.stop_watch()
        if not fuse.expired() or call.started:
            return
        if call.size > self._max_body:
            await self._refuse_body(scope, receive, send)
        elif not call.gone.is_set():
            self._metrics.rejected("slow")
            message = f"no byte of the request body came for {self._patience:g} seconds"
            await envelope(scope["path"], 408, message, headers={"connection": "close"})(scope, receive, send)

    async def _refuse_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413 and end the connection, but first swallow what is already under way for a moment: a socket closed
        over unread bytes is reset, and the caller would never read why.
        """
        self._metrics.rejected("body")

        async def unfinished(message: Message) -> None:
            await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

        message = f"the request body is larger than the limit of {self._max_body} bytes"
        await envelope(scope["path"], 413, message, headers={"connection": "close"})(scope, receive, unfinished)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while (await receive()).get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Call:
    """One caller's two directions. Counts the body while it comes in; once it is in, listens for the end of the
    connection, and blows the fuse when that comes before the answer is out.
    """

    def __init__(self, receive: Receive, send: Send, fuse: asyncio.Timeout, *, max_body: int, patience: float) -> None:
        self.size = 0
        self.started = False
        self.gone = asyncio.Event()
        self._receive = receive
        self._send = send
        self._fuse = fuse
        self._max_body = max_body
        self._patience = patience
        self._now = asyncio.get_running_loop().time
        self._first: Message | None = None
        self._read = False
        self._answered = False
        self._watch: asyncio.Task[None] | None = None

    async def start_watch_after_empty_body(self) -> None:
        """A route that expects no body never asks for one: take its empty body now and listen."""
        self._first = await self.receive()

    async def receive(self) -> Message:
        """What the app sees: the body, and when that is over, nothing until the caller hangs up."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._read or self._fuse.expired():
            await self.gone.wait()
            return {"type": "http.disconnect"}
        self._fuse.reschedule(self._now() + self._patience)
        message = await self._receive()
        self._fuse.reschedule(None)
        self.size += len(message.get("body", b""))
        if message["type"] == "http.disconnect":
            self._hang_up()
            await asyncio.Event().wait()  # until the fuse ends this task: no route sees part of a body
        if self.size > self._max_body:
            self._fuse.reschedule(self._now())
            await asyncio.Event().wait()  # same
        if not message.get("more_body", False):
            self._read = True
            self._watch = asyncio.create_task(self._listen())
        return message

    async def send(self, message: Message) -> None:
        """What the app says. After its last word the connection may end: what the app does then is for itself."""
        self.started = True
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._answered = True
        await self._send(message)

    def stop_watch(self) -> None:
        """The app is done."""
        if self._watch is not None:
            self._watch.cancel()

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._hang_up()

    def _hang_up(self) -> None:
        self.gone.set()
        if not self._answered:
            self._fuse.reschedule(self._now())


def _is_work(scope: Scope) -> bool:
    """Whether a request may cost the engine or the disk something."""
    return scope["method"] not in _READS or scope["path"] == "/search"


def _body_length(scope: Scope) -> int | None:
    """Bytes announced; 0 for no body at all, None for one of unknown length."""
    length: int | None = 0
    for name, value in scope["headers"]:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            length = int(value) if value.isdigit() else None
    return length


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            sane: bytes = value
            return sane
    return secrets.token_hex(8).encode()


def _route(scope: Scope) -> str:
    """The template that matched (`/documents/{id}`), or `none`: routing leaves it in the scope."""
    path: str = getattr(scope.get("route"), "path", "none")
    return path
