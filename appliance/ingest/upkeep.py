"""What catalog and store owe each other: names to be changed, removals to be finished, collections to be replaced."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import structlog

from appliance.catalog.catalog import Catalog
from appliance.catalog.records import Chunking, Collection, Job, Move, Put
from appliance.embedding.spec import ModelSpec
from appliance.errors import ApplianceError, Conflict
from appliance.store.base import Chunk, VectorStore

log = structlog.get_logger(__name__)


class Upkeep:
    """Changes of store and catalog that belong together. Blocking; one at a time, whoever sees to that.

    Each is begun in the catalog and ended there, so that after a power cut, or when the store was away, what was begun
    is known and can be finished.

    Args:
        keep: how long what a reindex replaced can still be searched, by those who had begun to.
    """

    def __init__(self, catalog: Catalog, store: VectorStore, *, keep: timedelta) -> None:
        self._catalog = catalog
        self._store = store
        self._keep = keep
        self.moving = False
        """The store was away when it was to be told a name."""
        self.building = False
        """There are successors, as far as this appliance knows."""
        self._queued = False
        self._replaced: list[int] = []

    def news(self) -> tuple[bool, list[int]]:
        """Since the last call: whether documents were queued, and the jobs whose successors are in place."""
        queued, replaced = self._queued, self._replaced
        self._queued, self._replaced = False, []
        return queued, replaced

    def recover(self) -> None:
        """At start: what was in hand waits again, and what was begun is finished."""
        self._catalog.recover()
        for collection in (*self._catalog.collections(), *self._catalog.successors.all()):
            self._store.create(collection.stored_as, collection.dimensions)
        self.finish_moves()
        self.advance()
        self.finish_removals()

    # Collections

    def create_collection(
        self, name: str, *, spec: ModelSpec, dimensions: int, chunking: Chunking | None
    ) -> Collection:
        """In the catalog and in the store. Raises as the former, and StoreError."""
        made = self._catalog.create_collection(
            name, model=spec.name, space=spec.space, dimensions=dimensions, chunking=chunking
        )
        try:
            self._store.create(made.stored_as, dimensions)
        except ApplianceError:
            self._catalog.begin_removal(name)
            self._catalog.forget_collection(name)
            raise
        return made

    def remove_collection(self, name: str) -> None:
        """With all it holds. Raises CollectionNotFound."""
        leaving = self._catalog.begin_removal(name)
        self._store.drop(leaving.stored_as)
        self.finish_removals()

    def reindex(self, name: str, *, spec: ModelSpec, dimensions: int, chunking: Chunking, priority: int) -> Job:
        """Begin a collection's successor. Raises as `Successors.begin`, and StoreError."""
        job, successor = self._catalog.successors.begin(
            name, model=spec.name, space=spec.space, dimensions=dimensions, chunking=chunking, priority=priority
        )
        try:
            self._store.create(successor.stored_as, dimensions)
        except ApplianceError:
            self._catalog.jobs.cancel(job.id)
            self.finish_removals()
            raise
        self._queued = self.building = True
        self.advance()
        return self._catalog.jobs.job(job.id)

    def finish_reindex(self, name: str) -> Job:
        """Let a successor take the place without what it could not take in.

        Raises:
            CollectionNotFound, NotFound: as `Successors.named`.
            Conflict: some of its documents still wait.
        """
        successor = self._catalog.successors.named(name)
        if self._catalog.successors.advance(successor, keep=self._keep, without_failed=True) != "replaced":
            raise Conflict(f"the reindexing of {name!r} is not at its end: job {successor.job}")
        self._replaced.append(successor.job or 0)
        return self._catalog.jobs.job(successor.job or 0)

    def advance(self) -> None:
        """Bring successors up to date that have nothing else to do, and have them take their places."""
        behind = True
        while behind:
            behind = False
            for successor in self._catalog.successors.due():
                match self._catalog.successors.advance(successor, keep=self._keep):
                    case "followed":
                        self.finish_removals()
                        behind = self._queued = True
                    case "replaced":
                        self._replaced.append(successor.job or 0)
                        log.info("collection reindexed", collection=successor.known_as, model=successor.model)
        self.building = bool(self._catalog.successors.all())

    # Documents

    def remove(self, collection: str, document: str) -> None:
        """With its chunks. Raises CollectionNotFound, DocumentNotFound."""
        leaving = self._catalog.begin_document_removal(collection, document)
        self._store.remove(self._catalog.collection(collection).stored_as, document)
        if not leaving.in_hand:
            self._forget(collection, document)

    def moved(self, puts: Sequence[Put]) -> None:
        """Documents were put, some of which may have taken a new name: the store is told."""
        if any(each.change == "moved" for each in puts):
            self.moving = True
            self.finish_moves()

    def finish_moves(self) -> None:
        """Tell the store the names that it may not know yet."""
        moves = self._catalog.pending_moves()
        for move in moves:
            self._move(move)
        if moves:
            self._catalog.end_moves(moves)
        self.moving = False

    def finish_removals(self) -> datetime | None:
        """Remove what is on its way out and in nobody's hand; when there will be more, if that is known."""
        removals = self._catalog.pending_removals()
        for collection, document in removals.documents:
            self._store.remove(removals.stored_as[collection], document)
            self._forget(collection, document)
        for collection in removals.collections:
            self._store.drop(removals.stored_as[collection])
            self._catalog.forget_collection(collection)
        return removals.until

    def finish(self) -> None:
        """Removals, and what they held up."""
        self.finish_removals()
        self.advance()

    # What others left, who share the catalog

    def left_behind(self, *, successors: bool) -> bool:
        """Whether appliances have left something that are gone; or, if asked for, successors have nothing to do."""
        self._catalog.check()
        self.building = bool(self._catalog.successors.all())
        removals = self._catalog.pending_removals()
        left = [*removals.documents, *removals.collections, *self._catalog.pending_moves()]
        return bool(left) or self._catalog.left_behind() or (successors and bool(self._catalog.successors.due()))

    def take_up(self) -> None:
        """Go on with it."""
        if self._catalog.take_up():
            self._queued = True
        self.finish_moves()
        self.finish()

    def _forget(self, collection: str, document: str) -> None:
        with suppress(Conflict):  # put again meanwhile
            self._catalog.forget_document(collection, document)

    def _move(self, move: Move) -> None:
        """Give chunks the new name, and the title and source that come with it; vectors stay."""
        store, place = self._store, move.stored_as
        chunks = store.chunks(place, move.old)
        renamed = [_called(chunk, move) for chunk in chunks]
        if renamed == chunks:
            store.rename(place, move.old, move.new)
            return
        rows = store.vectors(place, [(move.old, chunk.ordinal) for chunk in chunks])
        store.put(place, move.new, renamed, np.stack([rows[move.old, chunk.ordinal] for chunk in chunks]))
        store.remove(place, move.old)


def _called(chunk: Chunk, move: Move) -> Chunk:
    source = {"source": move.source} if "source" in chunk.metadata and move.source is not None else {}
    return replace(chunk, title=move.title, metadata={**chunk.metadata, **source})
