"""A `RemoteEngine`: splits what is asked, spreads it over the servers, and puts the checked answers together."""

import asyncio
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import numpy as np

from appliance.embedding.breaker import Breaker
from appliance.embedding.engine import FALLBACK, Encoded, Matrix
from appliance.embedding.engines.remote import tokens
from appliance.embedding.engines.remote.access import Remote, key_of, proxy_for
from appliance.embedding.engines.remote.dialects import Answer, OpenAI, Texts, checked, dialect_of
from appliance.embedding.engines.remote.refusals import OtherForm, TooLong, TooMany, Trouble, refused
from appliance.embedding.engines.remote.servers import Server, Servers
from appliance.embedding.spec import RemoteSpec
from appliance.errors import EngineUnavailable, InputTooLong, InvalidInput, UpstreamFailed

_CONNECT = 5.0
"""Seconds that a connection may take to be made."""

_NUMBER = 32
"""Bytes of JSON that a number of a vector takes at most, blanks included."""

_SLACK = 1 << 16
"""Bytes of an answer that are no vectors, and of an error."""

_LARGE = 1 << 17
"""Bytes of an answer that is read on a thread: smaller ones take less than a thread does to wake."""

_SHARE = 8
"""Inputs that are worth a request of their own where there is another server to take them."""

_PATIENCE = 5.0
"""Seconds that `close` waits for the event loop."""


class _Part(NamedTuple):
    vectors: Matrix
    tokens: tuple[int, ...]
    truncated: tuple[bool, ...]


class UpstreamEngine:
    """A `RemoteEngine` for the servers of a card. Made without a word to any of them.

    Args:
        spec: the card.
        remote: what the settings say.

    Raises:
        EngineUnavailable: the key is missing or must not be sent there, or the environment names a proxy that is none.
    """

    def __init__(self, spec: RemoteSpec, *, remote: Remote) -> None:
        self.label = spec.provider
        self.spans = tokens.spans
        self._spec = spec
        self._key = key_of(spec, remote)
        self._dialect = dialect_of(spec)
        trusted = _trusted(spec)
        self._all = [self._server(url, remote, trusted) for url in spec.urls]
        self._servers = Servers(self._all, concurrency=spec.concurrency, timeout=spec.timeout, retries=spec.retries)
        self._most = spec.max_inputs
        self._loop: asyncio.AbstractEventLoop | None = None
        self._under_way: set[asyncio.Task[_Part]] = set()
        self._ending: asyncio.Task[None] | None = None
        self._closed = False

    async def encode(
        self, inputs: Sequence[str | Sequence[int]], *, truncate: bool, max_tokens: int | None = None
    ) -> Encoded:
        """As `RemoteEngine.encode`. A part that fails for good ends the others."""
        if self._closed:
            raise self._gone()
        self._loop = asyncio.get_running_loop()
        self._dialect.check(inputs)
        if max_tokens is not None and max_tokens < 1:
            raise InvalidInput("a limit of less than one token leaves no room for the text", param="max_tokens")
        parts = [
            asyncio.create_task(self._part(inputs[part], truncate=truncate, max_tokens=max_tokens))
            for part in self._split(inputs)
        ]
        if not parts:
            return Encoded(np.empty((0, self._spec.dimensions), np.float32), (), ())
        self._under_way.update(parts)
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            self._under_way.difference_update(parts)
        for part in parts:
            if not part.cancelled() and (error := part.exception()) is not None:
                raise error
        if any(part.cancelled() for part in parts):
            raise self._gone()
        done = [part.result() for part in parts]
        return Encoded(
            np.concatenate([part.vectors for part in done]) if len(done) > 1 else done[0].vectors,
            tuple(count for part in done for count in part.tokens),
            tuple(cut for part in done for cut in part.truncated),
        )

    def close(self) -> None:
        """Close the connections; calls under way end with `EngineUnavailable`. From any thread, and more than once."""
        if self._closed:
            return
        self._closed = True
        loop, ended = self._loop, threading.Event()
        if loop is None or loop.is_closed():
            return

        def end() -> None:
            self._ending = loop.create_task(self._end())
            self._ending.add_done_callback(lambda _: ended.set())

        with suppress(RuntimeError):  # the loop was closed just now
            loop.call_soon_threadsafe(end)
            if loop.is_running() and not _is_inside(loop):
                ended.wait(_PATIENCE)

    async def _end(self) -> None:
        for part in self._under_way:
            part.cancel()
        for server in self._all:
            await server.client.aclose()

    def _gone(self) -> EngineUnavailable:
        return EngineUnavailable(f"{self._spec.name} was unloaded; ask again")

    def _server(self, url: str, remote: Remote, trusted: ssl.SSLContext) -> Server:
        headers = {"content-type": "application/json", "accept-encoding": "identity", "user-agent": "appliance"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        spec = self._spec
        try:
            client = httpx.AsyncClient(
                headers=headers,
                http2=True,  # where the server offers it, in TLS
                verify=trusted,
                proxy=proxy_for(url),
                trust_env=False,  # it is read above, and says nothing of plain http here
                follow_redirects=False,
                timeout=httpx.Timeout(spec.timeout, connect=min(spec.timeout, _CONNECT)),
                limits=httpx.Limits(max_connections=spec.concurrency, max_keepalive_connections=spec.concurrency),
            )
        except (ValueError, httpx.InvalidURL) as error:
            raise EngineUnavailable("the proxy that the environment names for https is none") from error
        return Server(
            name=f"{spec.provider} at {urlsplit(url).netloc}",
            address=self._dialect.address(url),
            client=client,
            breaker=Breaker(failures=remote.failures, pause=remote.pause),
        )

    def _split(self, inputs: Texts) -> Iterator[slice]:
        """Neighbours that make one request: as many as the card allows, or fewer for each server to have some."""
        spec = self._spec
        most = min(self._most, max(_SHARE, -(-len(inputs) // len(spec.urls))))
        start = used = 0
        for place, each in enumerate(inputs):
            size = tokens.estimate(each) if spec.max_request_tokens else 0
            mixed = place > start and isinstance(each, str) != isinstance(inputs[place - 1], str)
            if place > start and (place - start >= most or used + size > spec.max_request_tokens or mixed):
                yield slice(start, place)
                start, used = place, 0
            used += size
        if inputs:
            yield slice(start, len(inputs))

    async def _part(self, inputs: Texts, *, truncate: bool, max_tokens: int | None) -> _Part:
        """One request, or several where the server takes no such large ones, or texts have to be cut."""
        limit, sent = self._within(inputs, truncate=truncate, max_tokens=max_tokens)
        target = limit
        while True:
            try:
                vectors, total = await self._servers.ask(
                    partial(self._tried, sent, truncate=truncate, max_tokens=max_tokens)
                )
                return _part(vectors, total, sent, inputs)
            except OtherForm:
                continue
            except TooMany as signal:
                if len(inputs) > 1:
                    if signal.lasting:
                        self._most = min(self._most, len(inputs) // 2)
                    return await self._halves(inputs, truncate=truncate, max_tokens=max_tokens)
            except TooLong:
                pass
            if not truncate:
                raise InputTooLong(tokens=limit + 1, limit=limit, exact=False)
            sent, target = _shorter(sent, target, limit=limit)

    def _within(self, inputs: Texts, *, truncate: bool, max_tokens: int | None) -> tuple[int, Texts]:
        """The limit of tokens, and inputs cut to it where it is a tighter one than the server knows."""
        limit = self._spec.max_tokens
        if max_tokens is None or max_tokens >= limit or self._dialect.shortens:
            return limit, inputs
        sent = [tokens.cut(each, max_tokens) for each in inputs]
        if not truncate and any(len(cut) < len(each) for cut, each in zip(sent, inputs, strict=True)):
            raise InputTooLong(tokens=max_tokens + 1, limit=max_tokens, exact=False)
        return max_tokens, sent

    async def _halves(self, inputs: Texts, *, truncate: bool, max_tokens: int | None) -> _Part:
        middle = len(inputs) // 2
        first = await self._part(inputs[:middle], truncate=truncate, max_tokens=max_tokens)
        second = await self._part(inputs[middle:], truncate=truncate, max_tokens=max_tokens)
        return _Part(
            np.concatenate([first.vectors, second.vectors]),
            first.tokens + second.tokens,
            first.truncated + second.truncated,
        )

    async def _tried(
        self, inputs: Texts, server: Server, seconds: float, *, truncate: bool, max_tokens: int | None
    ) -> tuple[Matrix, int | None]:
        """One request: its checked vectors, and the tokens of all inputs together, where the server tells."""
        dialect = self._dialect
        in_base64 = isinstance(dialect, OpenAI) and not dialect.plain
        body = dialect.body(inputs, truncate=truncate, max_tokens=max_tokens)
        most = len(inputs) * self._spec.dimensions * _NUMBER + _SLACK
        try:
            async with asyncio.timeout(seconds), server.client.stream("POST", server.address, content=body) as response:
                content = await _content(response, most, server.name)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Trouble(EngineUnavailable(f"{server.name} did not answer in time"), again=True) from error
        except (httpx.ConnectError, httpx.ProxyError, httpx.InvalidURL, UnicodeError) as error:  # or no name at all
            why = ": its certificate is not one to trust" if "CERTIFICATE" in str(error) else ""
            raise Trouble(EngineUnavailable(f"{server.name} cannot be reached{why}"), again=True) from error
        except httpx.HTTPError as error:
            raise Trouble(UpstreamFailed(f"{server.name} broke off its answer"), again=True) from error
        if response.status_code != httpx.codes.OK:
            signal = refused(
                self._spec,
                dialect,
                server.name,
                inputs,
                status=response.status_code,
                headers=response.headers,
                content=content,
                key=self._key,
            )
            if isinstance(signal, OtherForm):
                if not in_base64:
                    refusal = UpstreamFailed(f"{server.name} takes no encoding_format")
                    raise Trouble(refusal, elsewhere=False, counts=False)
                assert isinstance(dialect, OpenAI)  # noqa: S101 - for mypy
                dialect.plain = True
            raise signal
        if FALLBACK in response.headers:  # an appliance whose own model failed
            raise Trouble(UpstreamFailed(f"{server.name} had another model answer for {self._spec.model}"))
        read = partial(self._read, content, response.headers, count=len(inputs))
        try:
            vectors, answer = await asyncio.to_thread(read) if len(content) > _LARGE else read()
        except ValueError as error:
            raise Trouble(UpstreamFailed(f"{server.name} {error}")) from error
        told = answer.tokens
        return vectors, told if isinstance(told, int) and not isinstance(told, bool) and told >= 0 else None

    def _read(self, content: bytes, headers: httpx.Headers, *, count: int) -> tuple[Matrix, Answer]:
        answer = self._dialect.read(content, headers, count=count)
        return checked(answer.rows, self._spec.dimensions), answer


def open_remote(spec: RemoteSpec, *, remote: Remote) -> UpstreamEngine:
    """Open the engine of a card. Asks no server anything.

    Raises:
        EngineUnavailable: as the engine says.
    """
    return UpstreamEngine(spec, remote=remote)


def _is_inside(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _trusted(spec: RemoteSpec) -> ssl.SSLContext:
    """Whom to trust: nobody, where no address needs it, for reading the certificates takes longer than all the rest."""
    if any(url.startswith("https:") for url in spec.urls):
        return httpx.create_ssl_context()  # certifi's, or those of SSL_CERT_FILE or SSL_CERT_DIR
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


async def _content(response: httpx.Response, most: int, server: str) -> bytes:
    """The body: of an answer up to `most` bytes, or it is refused; of an error its beginning."""
    is_answer = response.status_code == httpx.codes.OK
    if is_answer and response.headers.get("content-encoding", "identity") != "identity":
        raise Trouble(UpstreamFailed(f"{server} sent a compressed answer unasked"))
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if is_answer and len(content) > most:
            raise Trouble(UpstreamFailed(f"{server} sent more than the vectors can be: {most} bytes"))
        if not is_answer and len(content) > _SLACK:
            break
    return bytes(content)


def _part(vectors: Matrix, total: int | None, sent: Texts, inputs: Texts) -> _Part:
    weights = [tokens.estimate(each) for each in sent]
    counts = tuple(weights) if total is None else tokens.shared_out(total, weights)
    return _Part(vectors, counts, tuple(len(cut) < len(each) for cut, each in zip(sent, inputs, strict=True)))


def _shorter(sent: Texts, target: int, *, limit: int) -> tuple[Texts, int]:
    """Inputs of which the longest are cut, to `target` tokens or to the next half of that which cuts any; and the next
    target.
    """
    while target >= 1:
        cut = [tokens.cut(each, target) for each in sent]
        target //= 2
        if any(len(one) < len(other) for one, other in zip(cut, sent, strict=True)):
            return cut, target
    raise InputTooLong(tokens=limit + 1, limit=limit, exact=False)
