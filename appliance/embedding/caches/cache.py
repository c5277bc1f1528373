"""Remembers embeddings: in memory, behind it where the settings say so, and computes each one once at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import time
from typing import TypeAlias

import structlog

from appliance.embedding.caches.entry import Entry, Figures, Kept, Layer, checked_pattern, matcher
from appliance.embedding.caches.memory import Memory

Compute: TypeAlias = Callable[[Sequence[int]], Awaitable[Sequence[Entry]]]

_WAITING_BYTES = 32 * 2**20
"""Vectors that wait to be written to one layer, at most; what comes meanwhile is not remembered there."""

_AT_ONCE = 512
"""Entries handed to a layer at a time."""

_PATIENCE = 5.0
"""Seconds that `close` waits for what is not written yet."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """What was asked since the start, and each layer's figures, the fastest first.

    Attributes:
        hits: inputs answered with what was computed for another one.
        misses: inputs that were computed.
    """

    hits: int
    misses: int
    layers: tuple[Figures, ...]


class EmbeddingCache:
    """Belongs to one event loop.

    What a slower layer knows, the faster ones are told. What was computed goes to all, to the slower ones when the
    answer is on its way.

    Args:
        memory: asked first.
        layers: asked next, in this order.
        on_lookup: told layer, hits and misses of every look; on the event loop.
        now: seconds since 1970.
    """

    def __init__(
        self,
        memory: Memory,
        layers: Sequence[Layer] = (),
        *,
        on_lookup: Callable[[str, int, int], None] | None = None,
        now: Callable[[], float] = time,
    ) -> None:
        self._memory = memory
        self._layers = [_Written(layer) for layer in layers]
        self._on_lookup = on_lookup if on_lookup is not None else lambda _layer, _hits, _misses: None
        self._now = now
        self._flights: dict[str, _Flight] = {}
        self._age = 0  # of what is remembered: one more with each `remove`
        self._asked = 0
        self._computed = 0

    def __len__(self) -> int:
        """Entries in memory."""
        return len(self._memory)

    async def through(self, keys: Sequence[str], compute: Compute, *, dimensions: int) -> list[Entry]:
        """The entry of each key; those that nobody remembers, and nobody is computing, from `compute`.

        A caller that leaves takes its own computation with it; who waits for the same key then computes it. An error
        of `compute` reaches those who wait as well if all the keys it was called for are theirs; the others compute
        what they need themselves. No error is remembered.

        Args:
            keys: may repeat.
            compute: given places in `keys`, gives their entries in that order.
            dimensions: of the vectors of all keys.

        Raises:
            Exception: what `compute` raises.
        """
        found = self._memory.get(keys)
        self._asked += len(keys)
        missed = found.count(None)
        if self._memory.capacity:
            self._on_lookup(self._memory.name, len(keys) - missed, missed)
        if missed:
            places: dict[str, int] = {}
            for place, entry in enumerate(found):
                if entry is None:
                    places.setdefault(keys[place], place)
            answers = await self._had(places, compute, dimensions)
            return [answers[key] if entry is None else entry for key, entry in zip(keys, found, strict=True)]
        return [entry for entry in found if entry is not None]

    async def remove(self, pattern: str | None = None) -> int:
        """Forget what a pattern of keys means, in all layers, and what is being computed right now.

        Args:
            pattern: `*` stands for any characters, `?` for one; None for everything. Keys are
                `<card>@<fingerprint>:<kind>:<dimensions>:<max_tokens>[!]:<sha256>`.

        Returns:
            How many entries there were; one in two layers counts twice.

        Raises:
            InvalidInput: the pattern is empty or too long, or has more than 4 stars.
        """
        if pattern is not None:
            pattern = checked_pattern(pattern)
        self._age += 1
        removed = self._memory.remove(pattern)
        for layer in self._layers:
            removed += await layer.remove(pattern)
        return removed

    async def figures(self) -> CacheFigures:
        """What was asked, and how each layer does."""
        layers = [self._memory.figures()] if self._memory.capacity else []
        layers += [await each.layer.figures() for each in self._layers]
        return CacheFigures(self._asked - self._computed, self._computed, tuple(layers))

    async def close(self) -> None:
        """Write what waits to be written, and let go of the layers."""
        for layer in self._layers:
            await layer.close()

    async def _had(self, places: Mapping[str, int], compute: Compute, dimensions: int) -> dict[str, Entry]:
        """The entry of each key, computed here or by whoever computes it already."""
        answers: dict[str, Entry] = {}
        wait = True
        while left := [key for key in places if key not in answers]:
            ours: list[str] = []
            others: dict[_Flight, None] = {}
            for key in left:
                flight = self._flights.get(key) if wait else None
                if flight is None:
                    ours.append(key)
                else:
                    others[flight] = None
            if ours:  # first of all: whoever waits for these must not wait for those that we wait for
                answers |= await self._fly(ours, places, compute, dimensions)
            for flight in others:
                await flight.over()
                answers |= {key: flight.entries[key] for key in flight.entries.keys() & places.keys()}
                if flight.error is not None:
                    if flight.keys <= places.keys():
                        raise flight.error
                    wait = False  # it may have been another's input that was wrong
        return answers

    async def _fly(
        self, keys: Sequence[str], places: Mapping[str, int], compute: Compute, dimensions: int
    ) -> Mapping[str, Entry]:
        flight = _Flight(frozenset(keys))
        for key in keys:
            self._flights[key] = flight
        age = self._age
        try:
            entries = await self._looked_up(keys, dimensions) if self._layers else {}
            if rest := [key for key in keys if key not in entries]:
                self._computed += len(rest)
                computed = await compute([places[key] for key in rest])
                fresh = {key: _own(entry) for key, entry in zip(rest, computed, strict=True)}
                entries |= fresh
                if age == self._age:
                    self._remember(fresh)
            flight.entries = entries
        except Exception as error:
            flight.error = error
            raise
        finally:
            for key in keys:
                if self._flights.get(key) is flight:
                    del self._flights[key]
            flight.end()
        return entries

    async def _looked_up(self, keys: Sequence[str], dimensions: int) -> dict[str, Entry]:
        """What the layers behind the memory know; those before the one that knew are told."""
        entries: dict[str, Entry] = {}
        for depth, each in enumerate(self._layers):
            left = [key for key in keys if key not in entries]
            if not left:
                break
            age = self._age
            found = await each.layer.get(left, dimensions=dimensions)
            self._on_lookup(each.layer.name, len(found), len(left) - len(found))
            entries |= {key: kept.entry for key, kept in found.items()}
            if found and age == self._age:
                now = self._now()
                for key, kept in found.items():
                    self._memory.put(key, kept.entry, age=now - kept.made)
                for before in self._layers[:depth]:
                    before.add(found)
        return entries

    def _remember(self, entries: Mapping[str, Entry]) -> None:
        for key, entry in entries.items():
            self._memory.put(key, entry)
        if self._layers:
            now = self._now()
            kept = {key: Kept(entry, now) for key, entry in entries.items()}
            for layer in self._layers:
                layer.add(kept)


class _Flight:
    """Keys that one caller computes, for all who want them."""

    __slots__ = ("_end", "_ended", "entries", "error", "keys")

    def __init__(self, keys: frozenset[str]) -> None:
        self.keys = keys
        self.entries: Mapping[str, Entry] = {}  # stays empty when the caller leaves
        self.error: Exception | None = None
        self._ended = False
        self._end: asyncio.Future[None] | None = None

    async def over(self) -> None:
        """Wait for the end."""
        if self._ended:
            return
        if self._end is None:
            self._end = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._end])  # unlike `await self._end`, leaves it alone when this caller is cancelled

    def end(self) -> None:
        self._ended = True
        if self._end is not None:
            self._end.set_result(None)


class _Written:
    """A layer, and what waits to be written to it by a task of its own."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self._waiting: dict[str, Kept] = {}
        self._bytes = 0
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def add(self, kept: Mapping[str, Kept]) -> None:
        if self._closed:
            return
        for key, each in kept.items():
            if self._bytes >= _WAITING_BYTES:
                break
            if key not in self._waiting:
                self._waiting[key] = each
                self._bytes += each.entry.vector.nbytes
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._write())

    async def remove(self, pattern: str | None) -> int:
        matches = (lambda _: True) if pattern is None else matcher(pattern).fullmatch
        self._take([key for key in self._waiting if matches(key)])
        async with self._writing:  # what is being written is there then
            return await self.layer.remove(pattern)

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=_PATIENCE)
            for task in late:
                task.cancel()
                await asyncio.wait([task])
        await self.layer.close()

    async def _write(self) -> None:
        try:
            while self._waiting:
                async with self._writing:
                    await self.layer.put(self._take(list(islice(self._waiting, _AT_ONCE))))
        except Exception:
            log.exception("embeddings were not remembered", layer=self.layer.name)
        finally:
            self._task = None

    def _take(self, keys: Iterable[str]) -> dict[str, Kept]:
        taken = {key: self._waiting.pop(key) for key in keys}
        self._bytes -= sum(each.entry.vector.nbytes for each in taken.values())
        return taken


def open_cache(
    *,
    entries: int,
    ttl: float,
    path: Path | None = None,
    size: int = 2**30,
    redis_url: str = "",
    redis_ttl: float = 300.0,
    on_lookup: Callable[[str, int, int], None] | None = None,
) -> EmbeddingCache | None:
    """The cache that these ask for; None where they ask for none. Inside the event loop that will use it.

    Args:
        entries: held in memory.
        ttl: seconds they stay, in memory and in the file.
        path: of a file to hold more in; None for no file.
        size: bytes of that file.
        redis_url: address of a Redis server; empty for none.
        redis_ttl: seconds entries stay there.
        on_lookup: told layer, hits and misses of every look.

    Raises:
        InvalidInput: `redis_url` is no address.
        StoreUnavailable: a file is wanted, and no driver of SQLite is fit.
    """
    layers: list[Layer] = []
    if path is not None:
        from appliance.embedding.caches.disk import Disk

        layers.append(Disk(path, size=size, ttl=ttl))
    if redis_url:
        from appliance.embedding.caches.redis import Redis

        redis = Redis(redis_url, ttl=redis_ttl)
        redis.start()
        layers.append(redis)
    if not entries and not layers:
        return None
    return EmbeddingCache(Memory(entries, ttl=ttl), layers, on_lookup=on_lookup)


def _own(entry: Entry) -> Entry:
    """An entry whose vector is not a row of a matrix, which it would keep alive, and which nobody can change."""
    vector = entry.vector.copy()
    vector.setflags(write=False)
    return entry._replace(vector=vector)
