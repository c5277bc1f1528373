"""From a document's bytes to chunks and vectors, in steps that others can come between."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import numpy as np

from appliance.catalog.catalog import Catalog
from appliance.catalog.records import Collection, Work
from appliance.embedding.embedder import Embedder
from appliance.embedding.registry import Registry
from appliance.errors import InvalidInput
from appliance.ingest.lanes import Lanes
from appliance.ingest.parse import Parsed
from appliance.ingest.prepare import Cut, parsed
from appliance.ingest.sandbox import Sandbox
from appliance.store.base import Chunk, Matrix, VectorStore

_SLICE: Final = 1024
"""Chunks of a document that are embedded before it is asked whether to go on."""

_LIVES: Final = 10
"""Times a document may be in hand when the process ends, before it is held to be the cause."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A document that can be stored: its pieces, a vector for each, and how many of them were cut short."""

    work: Work
    cut: Cut
    vectors: Matrix
    truncated: int


class Stopped(Exception):
    """The document is not to be worked on any more, or not now."""


class Preparer:
    """Reads, cuts and embeds documents, each in its lane. Belongs to one event loop.

    Args:
        catalog: asked whether a document is still to be worked on.
        store: asked for vectors that it has of the same chunks.
        registry: has the embedders.
        lanes: see there.
        cut: as `prepare.cut`, with the settings' sizes.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        store: VectorStore,
        registry: Registry,
        lanes: Lanes,
        cut: Callable[[Work, Parsed | None, Embedder], Cut],
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._registry = registry
        self._lanes = lanes
        self._cut = cut
        self._sandbox = Sandbox(processes=2)

    async def prepared(self, work: Work) -> Prepared:
        """A document, ready to be stored.

        Raises:
            Stopped: it was changed or removed, or its job paused or cancelled, before it had come far.
            InvalidInput: it cannot be read, or is held to have ended the process.
            EngineError, ModelMismatch: it cannot be embedded.
        """
        if work.attempts > _LIVES:
            raise InvalidInput("the appliance ended each time this document was worked on")
        collection = work.collection
        embedder = await self._embedder(collection)  # its tokens are counted
        found = await self._in_lane(work, partial(parsed, work, self._sandbox))
        pieces = await self._in_lane(work, partial(self._cut, work, found, embedder))
        known = await asyncio.to_thread(self._known, work, pieces)
        if known is not None:
            return Prepared(work, pieces, *known)
        embedder = await self._embedder(collection)
        vectors = np.empty((len(pieces.inputs), collection.dimensions), np.float32)
        truncated = 0
        for start in range(0, len(pieces.inputs), _SLICE):
            if start and not await asyncio.to_thread(self._catalog.goes_on, work):
                raise Stopped
            part = slice(start, start + _SLICE)
            result = await embedder.embed(pieces.inputs[part], dimensions=collection.dimensions, background=True)
            vectors[part] = result.vectors
            truncated += sum(result.truncated)
        return Prepared(work, pieces, vectors, truncated)

    def close(self) -> None:
        """End the processes that read. Blocking."""
        self._sandbox.close()

    def _known(self, work: Work, pieces: Cut) -> tuple[Matrix, int] | None:
        """Vectors that the store has of the very same chunks, and how many of these were cut short."""
        place = work.collection.stored_as
        for document, truncated in self._catalog.alike(work) if pieces.chunks else ():
            if _same(self._store.chunks(place, document), pieces.chunks):
                keys = [(document, chunk.ordinal) for chunk in pieces.chunks]
                rows = self._store.vectors(place, keys)
                if len(rows) == len(keys):
                    return np.stack([rows[key] for key in keys]), truncated
        return None

    async def _in_lane(self, work: Work, step: Callable[[], T]) -> T:
        """Run a step in the document's lane, if it is still to be worked on when its turn comes."""

        def run() -> T:
            if not self._catalog.goes_on(work):
                raise Stopped
            return step()

        return await asyncio.get_running_loop().run_in_executor(self._lanes.of(work).threads, run)

    async def _embedder(self, collection: Collection) -> Embedder:
        return await self._registry.get(self._registry.within(collection.space, collection.model).name)


def _same(one: Sequence[Chunk], other: Sequence[Chunk]) -> bool:
    """Whether both were embedded from the same, but for what only a caller can have said of them."""

    def parts(chunk: Chunk) -> tuple[object, ...]:
        return chunk.ordinal, chunk.text, chunk.start, chunk.end, chunk.title, chunk.metadata.get("section")

    return [parts(each) for each in one] == [parts(each) for each in other]
