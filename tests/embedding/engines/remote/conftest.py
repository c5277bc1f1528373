"""Servers on loopback that answer as other programs do, or as no program should; and engines that ask them."""

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from appliance.embedding.engines.remote.access import Remote
from appliance.embedding.engines.remote.engine import UpstreamEngine
from appliance.embedding.spec import RemoteSpec

DIMENSIONS = 4


@dataclass
class Asked:
    """One request."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Reply:
    """One answer: JSON, or bytes; `pause` seconds before it, and after every `piece` bytes of it."""

    json: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    length: int | None = None
    wait: float = 0.0
    piece: int = 1 << 20
    pause: float = 0.0


def vector(text: Any) -> list[float]:
    """What these servers give for a text, or for token ids."""
    return [1.0, float(len(text)), float(sum(text.encode() if isinstance(text, str) else text) % 97), -0.5]


def openai(asked: Asked) -> Reply:
    inputs = asked.body["input"]
    rows: list[Any] = [vector(text) for text in inputs]
    if asked.body["encoding_format"] == "base64":
        rows = [base64.b64encode(np.array(row, "<f4").tobytes()).decode() for row in rows]
    data = [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(rows)]
    used = 7 * len(inputs) + 1
    return Reply({"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": used}})


def ollama(asked: Asked) -> Reply:
    rows = [vector(text) for text in asked.body["input"]]
    return Reply({"model": "m", "embeddings": rows, "prompt_eval_count": 5 * len(rows)})


def tei(asked: Asked) -> Reply:
    rows = [vector(text) for text in asked.body["inputs"]]
    return Reply(rows, headers={"x-compute-tokens": str(3 * len(rows))})


USUAL: dict[str, Callable[[Asked], Reply]] = {"openai": openai, "ollama": ollama, "tei": tei}


class Upstream:
    """A server; `answer` may be exchanged at any time."""

    def __init__(self, answer: Callable[[Asked], Reply]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.running = self.most = self.connections = 0
        self.url = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=tls)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._answered(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        asked = Asked(head[0].split()[1], headers, json.loads(body))
        self.asked.append(asked)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await self._sent(self.answer(asked), writer)
        finally:
            self.running -= 1

    async def _sent(self, reply: Reply, writer: asyncio.StreamWriter) -> bool:
        content = reply.raw if reply.raw is not None else json.dumps(reply.json).encode()
        length = len(content) if reply.length is None else reply.length
        await asyncio.sleep(reply.wait)
        lines = [f"HTTP/1.1 {reply.status} Whatever", f"content-length: {length}"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        for start in range(0, len(content), reply.piece):
            writer.write(content[start : start + reply.piece])
            await writer.drain()
            await asyncio.sleep(reply.pause)
        await writer.drain()
        return length == len(content)  # else it breaks off


@pytest.fixture
def reply() -> type[Reply]:
    return Reply


@pytest.fixture
def usual() -> dict[str, Callable[[Asked], Reply]]:
    """How each provider answers when all is well."""
    return USUAL


@pytest.fixture
def vector_of() -> Callable[[Any], list[float]]:
    return vector


@pytest.fixture
async def upstream() -> AsyncIterator[Callable[..., Awaitable[Upstream]]]:
    """Starts servers."""
    servers: list[Upstream] = []

    async def start(answer: Callable[[Asked], Reply] = openai, **options: Any) -> Upstream:
        server = Upstream(answer)
        servers.append(server)
        await server.start(**options)
        return server

    yield start
    for server in servers:
        await server.stop()


@pytest.fixture
async def engine_of() -> AsyncIterator[Callable[..., UpstreamEngine]]:
    """Opens engines for addresses."""
    engines: list[UpstreamEngine] = []

    def make(*urls: str, remote: Remote | None = None, **card: Any) -> UpstreamEngine:
        given = {"provider": "openai", "model": "m", "timeout": 5.0, "dimensions": DIMENSIONS, "max_tokens": 100} | card
        spec = RemoteSpec(name="far", family="bert", engine="remote", urls=urls, **given)
        engines.append(UpstreamEngine(spec, remote=remote or Remote()))
        return engines[-1]

    yield make
    for engine in engines:
        await asyncio.to_thread(engine.close)
