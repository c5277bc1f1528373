"""Embeddings in a Redis server, which several appliances may share and which may be away at any time."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import time
from typing import Any

import structlog
from redis.asyncio import Redis as Client
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Unreachable
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as TookTooLong

from appliance.embedding.caches.entry import Figures, Kept, as_redis, packed, packed_size, unpacked
from appliance.errors import InvalidInput

PREFIX = "appliance:embedding:"

_PATIENCE = 0.25
"""Seconds for one exchange. A request waits so long at most, once, when the server goes away."""

_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
"""Seconds between two looks whether the server is back: at first, and in the end."""

_CHUNK, _CHUNK_BYTES = 256, 2**20
"""Commands sent at a time, and bytes of their values: what is done well before the patience ends."""

_CONNECTIONS = 16

log = structlog.get_logger(__name__)


class Redis:
    """Belongs to one event loop. Not used until the server has answered once; a server that fails is left alone, and
    asked by a task of its own whether it is back. Values are not trusted, except that somebody who may write there can
    choose the vectors of length 1 that are answered.

    Args:
        url: `redis://`, `rediss://` (TLS) or `unix://`, with user, password and number of the database as needed.
        ttl: seconds Redis keeps an entry.
        now: seconds since 1970.
        pause: seconds between the first two looks.
        patience: seconds for one exchange.

    Raises:
        InvalidInput: the address is none.
    """

    name = "redis"

    def __init__(
        self,
        url: str,
        *,
        ttl: float,
        now: Callable[[], float] = time,
        pause: float = _PAUSE,
        patience: float = _PATIENCE,
    ) -> None:
        try:
            self._client = Client.from_url(
                url,
                protocol=2,  # so that nothing but answers comes
                decode_responses=False,
                socket_connect_timeout=patience,
                socket_timeout=patience,
                retry=Retry(NoBackoff(), 0),
                max_connections=_CONNECTIONS,
            )
        except (ValueError, TypeError, RedisError):
            raise InvalidInput(
                "redis_url is no address of a Redis server: redis://user:password@host:6379/0", param="redis_url"
            ) from None  # its message may hold the password
        self._ttl = ttl
        self._now = now
        self._pause = pause
        self._patience = patience
        self._up = False
        self._closed = False
        self._looking: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self.hits = 0
        self.misses = 0
        self.errors = 0

    def start(self) -> None:
        """Look for the server, without waiting for it. On the event loop."""
        if self._looking is None and not self._closed:
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def get(self, keys: Sequence[str], *, dimensions: int) -> dict[str, Kept]:
        """What is known of `keys`; of a longer value, no more than tells so is read."""
        if not self._up or self._slots.locked():
            self.misses += len(keys)
            return {}
        last = packed_size(dimensions)  # one byte more than an entry has
        values: list[Any] = []
        chunk = _at_once(dimensions)
        for start in range(0, len(keys), chunk):
            part = [("GETRANGE", PREFIX + key, 0, last) for key in keys[start : start + chunk]]
            values += await self._sent(part)
            if not self._up:
                break
        found: dict[str, Kept] = {}
        for key, value in zip(keys, values, strict=False):
            if value == b"":
                continue
            kept = unpacked(key, value, dimensions=dimensions) if isinstance(value, bytes) else None
            if kept is None:
                self.errors += 1
            else:
                found[key] = kept
        self.hits += len(found)
        self.misses += len(keys) - len(found)
        return found

    async def put(self, kept: Mapping[str, Kept]) -> None:
        """Remember entries."""
        now, rows = self._now(), list(kept.items())
        chunk = _at_once(max((len(each.entry.vector) for each in kept.values()), default=1))
        for start in range(0, len(rows), chunk):
            if not self._up:
                return
            commands: list[tuple[Any, ...]] = []
            for key, each in rows[start : start + chunk]:
                left = int(1000 * (self._ttl - max(now - each.made, 0.0)))
                if left > 0:
                    commands.append(("SET", PREFIX + key, packed(key, each), "PX", left))
            answers = await self._sent(commands)
            self.errors += sum(isinstance(answer, RedisError) for answer in answers)

    async def remove(self, pattern: str | None) -> int:
        """Forget the keys that match, or all of ours."""
        match = PREFIX + ("*" if pattern is None else as_redis(pattern))
        removed, cursor = 0, 0
        while self._up:
            answer = await self._sent([("SCAN", cursor, "MATCH", match, "COUNT", 1000)])
            if not answer or isinstance(answer[0], Exception):
                break
            cursor, keys = int(answer[0][0]), list(answer[0][1])
            for start in range(0, len(keys), _CHUNK):
                gone = await self._sent([("UNLINK", *keys[start : start + _CHUNK])])
                removed += sum(each for each in gone if isinstance(each, int))
            if cursor == 0:
                break
        return removed

    async def figures(self) -> Figures:
        """How it does; how much it holds is the server's to tell."""
        return Figures(
            name=self.name,
            up=self._up,
            entries=None,
            bytes=None,
            hits=self.hits,
            misses=self.misses,
            evictions=0,
            errors=self.errors,
        )

    async def close(self) -> None:
        """Let go of the server."""
        self._closed, self._up = True, False
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await self._client.aclose()

    async def _sent(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The answers to commands, an error among them for one that failed; none at all if the server does."""
        if not commands:
            return []
        try:
            # the slot first: waiting for it is not the server's fault
            async with self._slots, asyncio.timeout(self._patience):
                pipeline = self._client.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                return list(await pipeline.execute(raise_on_error=False))
        except Exception as error:  # noqa: BLE001 - whatever the server says, no request fails for it
            self._failed(error)
            return []

    def _failed(self, error: Exception) -> None:
        self.errors += 1
        if self._up:
            self._up = False
            log.warning("redis is not used for now", reason=_reason(error))
            self._looking = None
            self.start()

    async def _look(self) -> None:
        """Until the server answers."""
        pause, told = self._pause, self.errors > 0
        while not self._closed:
            try:
                async with asyncio.timeout(self._patience):
                    await self._client.execute_command("PING")  # type: ignore[no-untyped-call]  # theirs
            except Exception as error:  # noqa: BLE001 - same
                if not told:
                    told = True
                    log.warning("redis is not used for now", reason=_reason(error))
            else:
                self._up = True
                log.info("redis is used")
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _at_once(dimensions: int) -> int:
    return max(1, min(_CHUNK, _CHUNK_BYTES // packed_size(dimensions)))


def _reason(error: Exception) -> str:
    """Without the address and what else may be in the message."""
    if isinstance(error, TookTooLong | TimeoutError):
        return "no answer in time"
    return "no connection" if isinstance(error, Unreachable | OSError) else "refused"
