"""uvicorn's HTTP/1.1, with an end to what a head may take, and for clients that offer HTTP/2 along with a request."""

import asyncio
import re
from http import HTTPStatus
from typing import Any, ClassVar, Literal

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

_BLANK = b"\r\n\r\n"
_OFFER = re.compile(rb"\r\nupgrade(?=:[ \t]*h2c[ \t]*(?:\r\n|$))", re.IGNORECASE)
_SET_ASIDE = b"\r\nx-offer"  # as long as what it stands for


class TolerantProtocol(HttpToolsProtocol):
    """`uvicorn.Config(http=TolerantProtocol)`.

    A head is the request line and the headers. It reaches httptools in one piece: as it came where it came in one, as
    nearly all do. One that is too long or has too many headers is answered 431, one that takes too long 408; a
    connection on which nothing is said for as long is closed, as is one that is silent after an answer
    (`timeout_keep_alive`). With `limit_concurrency`, so many connections are too many: the last is answered 503 and
    closed. While a response is on its way nothing can be answered beside it: then the connection ends without a word.

    `Upgrade: h2c`, as Java's and .NET's clients say, is set aside: httptools takes it for a change of protocol, ends
    the request there, and the body is lost. A server may pass the offer over (RFC 9110, section 7.8).
    """

    max_head: ClassVar[int] = 64 * 1024
    """Bytes of a head; of trailers and of what else frames a body, too."""

    max_headers: ClassVar[int] = 200

    patience: ClassVar[float] = 10.0
    """Seconds from a head's first byte, or a connection's beginning, to the head's end."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._held = bytearray()  # a head that httptools has nothing of yet
        self._within: Literal["head", "body"] | None = None  # where httptools is
        self._taken = 0  # bytes since it last began a head or gave a piece of a body
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A connection was opened."""
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self.connections.discard(self)
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        super().connection_lost(exc)
        self._unwatch()

    def shutdown(self) -> None:
        """The server stops. An answer that is on its way is waited for, but for a stream of events: it has no end."""
        super().shutdown()
        if self._responding() and self.cycle.scope["path"].endswith("/events"):
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Bytes of the connection, in order."""
        whole = data if self._within else self._from_head_on(data)
        if whole is not None:
            self._taken += len(whole)
            super().data_received(whole)
            if self._taken > self.max_head:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        self._watch()

    def _from_head_on(self, data: bytes) -> bytes | None:
        """A whole head and what came with it; None until there is one."""
        start = max(len(self._held) - len(_BLANK) + 1, 0)
        if self._held:
            self._held += data
        text = self._held or data
        end = text.find(_BLANK, start)
        if (len(text) if end < 0 else end) > self.max_head:
            self._held.clear()
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return None
        if end < 0 and _may_begin_head(text, start):
            self._unset_keepalive_if_required()
            self._held = self._held or bytearray(data)
            return None
        if self._held:
            data = bytes(self._held)
            self._held.clear()
        if end >= 0 and _OFFER.search(data, 0, end):
            return _OFFER.sub(_SET_ASIDE, data[:end]) + data[end:]
        return data

    # What httptools finds

    def on_message_begin(self) -> None:
        """The first byte of a head."""
        self._within = "head"
        self._taken = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The end of a head. What is raised here ends in `send_400_response`."""
        if len(self.headers) > self.max_headers:
            raise ValueError("too many headers")
        self._within = "body"
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._taken = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request, be it without a body."""
        self._within = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or has too many headers."""
        if self._within == "head" and len(self.headers) > self.max_headers:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            super().send_400_response(msg)

    # Deadlines

    def _responding(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever its annotation says
        return cycle is not None and not cycle.response_complete

    def _watch(self) -> None:
        """See to it that there is a deadline while a head is due, and none else."""
        if self._within == "body" and not self._responding() and self.timeout_keep_alive_task is None:
            # answered already: what is left of the body may still come, but silence ends it
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        due = self._held or self._within == "head" or not (self._within or self._responding())
        if not due or self.transport.is_closing():
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.patience, self._late)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if self._responding():  # and a part of the next request came early
            self._watch()
        elif self._held or self._within:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:  # an answer to nothing would be taken for one to a request that is on its way
            self.transport.close()

    def _refuse(self, status: HTTPStatus) -> None:
        if not (self._responding() or self.transport.is_closing()):
            reason = status.phrase.encode()
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", b"%d" % len(reason)),
                (b"connection", b"close"),
            ]
            lines = [b"HTTP/1.1 %d %b" % (status, reason), *(b"%b: %b" % each for each in headers)]
            self.transport.write(b"\r\n".join(lines) + _BLANK + reason)
        self.transport.close()


def _may_begin_head(text: bytes | bytearray, start: int) -> bool:
    """Whether to wait for the rest: not of TLS, nor where lines end in LF alone; httptools refuses both at once."""
    return (text[:1].isalpha() or text[:1] in b"\r\n") and text.find(b"\n\n", start) < 0
