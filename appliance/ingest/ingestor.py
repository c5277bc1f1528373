"""The one door through which the index changes: documents in, from the catalog's queue to the store, and out."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from time import monotonic
from typing import Literal, TypeAlias, TypeVar

import structlog

from appliance.catalog.catalog import Catalog
from appliance.catalog.records import (
    Chunking,
    Collection,
    Failed,
    Job,
    NewDocument,
    Put,
    Ready,
    Refusal,
    Returned,
    Want,
    Work,
)
from appliance.embedding.images import MAX_PIXELS
from appliance.embedding.registry import Registry
from appliance.embedding.spec import ModelSpec
from appliance.errors import (
    ApplianceError,
    CollectionExists,
    CollectionNotFound,
    EngineUnavailable,
    InvalidInput,
    ModelMismatch,
    StoreError,
    StoreUnavailable,
)
from appliance.ingest.lanes import Lanes
from appliance.ingest.prepare import Incoming, Receipt, cut, received, resolved
from appliance.ingest.preparing import Prepared, Preparer, Stopped
from appliance.ingest.upkeep import Upkeep
from appliance.ingest.watchers import Watchers
from appliance.store.base import Entry, VectorStore

_ATTEMPTS = 3
"""Tries of a document whose engine failed, before it is set aside."""

_GROUP = 64
_GROUP_CHUNKS = 2000
"""Documents and chunks of one commit: while it lasts, nothing else can be written."""

_PAUSE = 1.0
"""Seconds before a failed try is repeated."""

_LOOK = 1.0
"""Seconds between two looks at what others, who share the catalog, have put into the queue or left in it."""

_ASK = 0.2
"""Seconds between two looks at a document that another appliance may have in hand."""

_HOLD = 5.0
"""Seconds that a collection whose model cannot be opened is left alone."""

_QUEUE = "the queue cannot be read"
_STORE = "nothing can be stored"
_FINISH = "a removal or a reindex cannot be finished"
_SHARED = "the shared catalog cannot be tended"
"""What is told of while it lasts."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


_Done: TypeAlias = Prepared | Failed | Returned


@dataclass(frozen=True, slots=True)
class Over:
    """A document that needs nothing more for now: `ready`, or `failed` with its reason; `reindexed` where that is what
    the successor of its collection has of it.
    """

    collection: str
    id: str
    state: Literal["ready", "failed"]
    error: str
    job: int | None
    reindexed: bool = False


class Ingestor:
    """Takes waiting documents and makes them searchable. Belongs to one event loop.

    The catalog is the queue. Documents are prepared side by side and committed together: whatever is ready when the
    last commit has ended makes the next one, so that one fsync carries many. A document that changes or is removed
    while it is in hand is dropped at the commit. What fails for a reason of its own is set aside; what fails because
    the engine or the disk is away waits for it.

    Args:
        lanes: documents in hand at the same time, of each kind; see `Lanes`.
        chunk_tokens: tokens of a chunk at most, where its collection says nothing; see `cut`.
        chunk_overlap: tokens repeated between neighbouring chunks, likewise.
        max_pixels: of an image at most.
        keep: seconds for which what a reindex replaced can still be searched, by those who had begun to.
        on_settled: told `ready` or `failed` for every document that became so; from a thread.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        store: VectorStore,
        registry: Registry,
        lanes: int = 64,
        chunk_tokens: int = 0,
        chunk_overlap: int = 32,
        max_pixels: int = MAX_PIXELS,
        keep: float = 60.0,
        on_settled: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._registry = registry
        self._lanes = Lanes(documents=lanes)
        self._usual = partial(resolved, chunk_tokens=chunk_tokens, chunk_overlap=chunk_overlap)
        self._max_pixels = max_pixels
        self._keep = timedelta(seconds=keep)
        self._on_settled = on_settled
        # threads of their own: a large document must not keep a search waiting for one
        self._readers = ThreadPoolExecutor(2, "read")
        self._preparer = Preparer(
            catalog=catalog,
            store=store,
            registry=registry,
            lanes=self._lanes,
            cut=partial(cut, chunk_tokens=chunk_tokens, chunk_overlap=chunk_overlap),
        )
        self._upkeep = Upkeep(catalog, store, keep=self._keep)
        self._wake = asyncio.Event()
        self._done: asyncio.Queue[_Done] = asyncio.Queue()
        self._changing = asyncio.Lock()  # held while the store changes
        self._watchers = Watchers()
        self._held: dict[int, float] = {}
        self._loops: set[asyncio.Task[None]] = set()
        self._changes: set[asyncio.Task[object]] = set()
        self._stopping = False
        self.on_over: Callable[[Sequence[Over]], None] = lambda _: None
        """Told, on the loop, which documents a commit was over with."""
        self.on_replaced: Callable[[Sequence[int]], None] = lambda _: None
        """Told, on the loop, the jobs of successors that have taken their collections' places."""
        self._troubles: dict[str, str] = {}

    @property
    def trouble(self) -> str:
        """Why documents do not get on, when that is none of their doing; empty while they do."""
        return next(iter(self._troubles.values()), "")

    async def start(self) -> None:
        """Finish what a crash cut short, then work."""

        def recover() -> None:
            with self._catalog.turn(alone=True):
                self._upkeep.recover()

        await asyncio.to_thread(recover)
        self._wake.set()
        self._spawn(self._dispatch())
        if self._catalog.shared:
            self._spawn(self._tend())
        self._spawn(self._settle())
        self._spawn(self._tidy())

    async def stop(self) -> None:
        """End running changes of the store, begin no more; what is in hand is taken again at the next start."""
        self._stopping = True
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, *self._changes, return_exceptions=True)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._lanes.close()
        await asyncio.to_thread(self._preparer.close)

    async def create_collection(
        self, name: str, *, spec: ModelSpec, dimensions: int | None = None, chunking: Chunking | None = None
    ) -> Collection:
        """Make a collection for vectors of the card's space, its documents cut as `chunking` says.

        Raises:
            CollectionExists: there is one of this name.
            InvalidInput: no name for a collection, or dimensions that the model does not have.
        """
        dimensions = _checked_dimensions(spec, dimensions)

        create = partial(self._upkeep.create_collection, name, spec=spec, dimensions=dimensions, chunking=chunking)
        return await self._change(create)

    def chunking(self, collection: Collection) -> Chunking:
        """How a document of the collection is cut if it is put now: nothing in it is None."""
        return self._usual(collection.chunking)

    async def ensure_collection(self, name: str) -> None:
        """Make a collection of the default model unless there is one of this name."""
        try:
            await asyncio.to_thread(self._catalog.collection, name)
        except CollectionNotFound:
            with suppress(CollectionExists):  # someone else was quicker
                await self.create_collection(name, spec=self._registry.default)

    async def add(
        self,
        collection: str,
        documents: Sequence[Incoming],
        *,
        wait: float,
        model: str | None = None,
        job: int | None = None,
        moved_from: Sequence[str] = (),
    ) -> list[Receipt]:
        """Queue documents durably, then wait for them. A document that cannot be read is refused; the others go on.

        Args:
            collection: it exists.
            documents: in the order of the answer.
            wait: seconds to wait at most until each is ready or failed.
            model: name of a model whose vectors the caller expects the collection to hold.
            job: the one they are put in by.
            moved_from: ids of documents that are gone where these come from. One of the same content is not embedded
                again, but takes the new id.

        Raises:
            CollectionNotFound: no such collection.
            ModelNotFound: no such model.
            ModelMismatch: the collection's vectors are not the model's, or no model here gives such vectors.
            JobNotFound: no such job.
            Conflict: the job was cancelled, or is of another collection.
        """
        spec = await self.spec(collection, model=model)
        read = partial(received, takes_images=spec.takes_images, max_pixels=self._max_pixels)
        given = await asyncio.get_running_loop().run_in_executor(
            self._readers, lambda: [read(each) for each in documents]
        )
        accepted = [each for each in given if isinstance(each, NewDocument)]
        with self._watchers.watching(collection, (each.id for each in accepted)) as watched:
            refused = [Refusal(each.id, each.error) for each in given if isinstance(each, Receipt)]
            put_all = partial(
                self._catalog.put_documents,
                collection,
                accepted,
                job=job,
                refused=refused,
                moved_from=moved_from,
            )
            puts = iter(await (self._put_moved(put_all) if moved_from else self._to_its_end(self._put(put_all))))
            receipts = [
                each
                if isinstance(each, Receipt)
                else Receipt((put := next(puts)).document.id, put.change, put.document)
                for each in given
            ]
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    for each in receipts:
                        if each.document is not None and each.document.state in {"waiting", "working"}:
                            await self._settled(collection, each.id, watched[each.id])
        fresh = await asyncio.to_thread(self._catalog.named, collection, [each.id for each in accepted])
        return [each.renewed(fresh) for each in receipts]

    async def _settled(self, collection: str, document: str, told: asyncio.Event) -> None:
        """Wait for a document; for one that another appliance may be at, by asking now and then."""
        while not told.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_ASK if self._catalog.shared else None):
                    await told.wait()
            if self._catalog.shared:
                now = await asyncio.to_thread(self._catalog.named, collection, [document])
                if document not in now or now[document].state not in {"waiting", "working"}:
                    return

    async def spec(self, collection: str, *, model: str | None = None) -> ModelSpec:
        """The card of a model that embeds for the collection. Raises as `add` does of collection and model."""
        found = await asyncio.to_thread(self._catalog.collection, collection)
        return self._registry.within(found.space, found.model, asked=model)

    def wake(self) -> None:
        """There may be something in the queue."""
        self._wake.set()

    async def take_back(self, step: Callable[[], T]) -> T:
        """Run a step that takes documents out of the queue, such as the end of a job, and finish what it began."""

        def change() -> T:
            result = step()
            self._upkeep.finish_removals()
            return result

        return await self._change(change)

    async def remove(self, collection: str, document: str) -> None:
        """Remove a document with its chunks.

        Raises:
            CollectionNotFound, DocumentNotFound: there is none of this name.
        """

        def tell() -> None:
            self._watchers.tell(collection, document)
            self._wake.set()  # a successor may have waited for nothing else

        await self._change(partial(self._upkeep.remove, collection, document), then=tell)

    async def remove_collection(self, collection: str) -> None:
        """Remove a collection with all it holds.

        Raises:
            CollectionNotFound: there is none of this name.
        """
        remove = partial(self._upkeep.remove_collection, collection)
        await self._change(remove, then=partial(self._watchers.tell, collection))

    async def reindex(
        self,
        collection: str,
        *,
        spec: ModelSpec | None = None,
        dimensions: int | None = None,
        chunking: Chunking | None = None,
        priority: int = 0,
    ) -> Job:
        """Embed everything of a collection anew, in the background; what is there answers until all of it is done, and
        is then replaced in one step. The job.

        Args:
            collection: it exists.
            spec: card of the model; the collection's own if left out.
            dimensions: of the vectors; the model's own if left out, or the collection's where its model stays.
            chunking: how documents are cut from now on; as before if left out.
            priority: of the job.

        Raises:
            CollectionNotFound: no such collection.
            ModelMismatch: no model here gives the collection's vectors, and no other was named.
            InvalidInput: dimensions that the model does not have.
            Conflict: it is being reindexed already.
        """
        there = await asyncio.to_thread(self._catalog.collection, collection)
        if spec is None or spec.name == there.model:
            spec = spec or self._registry.within(there.space, there.model)
            dimensions = dimensions or there.dimensions
        dimensions = _checked_dimensions(spec, dimensions)

        begin = partial(
            self._upkeep.reindex,
            collection,
            spec=spec,
            dimensions=dimensions,
            chunking=chunking or there.chunking,
            priority=priority,
        )
        return await self._change(begin)

    async def finish_reindex(self, collection: str) -> Job:
        """Let a successor take the collection's place without the documents that it could not take in.

        Raises:
            CollectionNotFound: no such collection.
            NotFound: it is not being reindexed.
            Conflict: some of its documents still wait.
        """
        return await self._change(partial(self._upkeep.finish_reindex, collection))

    # What is left to do

    async def _tidy(self) -> None:
        """Finish removals, and once more when what was replaced is not searched any more."""
        while True:
            try:
                until = await self._change(self._upkeep.finish_removals)
            except StoreError as error:
                log.warning("what was replaced is removed later", error=error.message)
                until = datetime.now(UTC) + self._keep
            if until is None:
                break
            await asyncio.sleep(max((until - datetime.now(UTC)).total_seconds(), _PAUSE))

    async def _tend(self) -> None:
        """Of a shared catalog: go on with what appliances had begun that are gone."""
        looks = 0
        while True:
            await asyncio.sleep(_LOOK)
            looks += 1
            try:
                if await asyncio.to_thread(self._upkeep.left_behind, successors=looks % 10 == 0):
                    await self._change(self._upkeep.take_up)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is tried again
                await self._paused(_SHARED, error)
            else:
                self._troubles.pop(_SHARED, None)

    # Changes of the store

    async def _put(self, put_all: Callable[[], Sequence[Put]]) -> Sequence[Put]:
        puts = await asyncio.to_thread(put_all)
        self._wake.set()
        return puts

    async def _put_moved(self, put_all: Callable[[], Sequence[Put]]) -> Sequence[Put]:
        """The same where documents may take new names, in the catalog and then in the store, and nothing in between."""

        def put() -> Sequence[Put]:
            puts = put_all()
            self._upkeep.moved(puts)
            return puts

        return await self._change(put, then=self._wake.set)

    async def _change(self, step: Callable[[], T], *, then: Callable[[], None] = lambda: None, alone: bool = True) -> T:
        """Run a change of the store in a thread, one at a time, and tell whom it concerns. Appliances that share the
        catalog wait for each other, unless none of them has to be `alone`.
        """

        def in_order() -> T:
            moving = self._upkeep.moving
            with self._catalog.turn(alone=alone or moving):
                if moving:
                    self._upkeep.finish_moves()
                return step()

        async def change() -> T:
            async with self._changing:
                result = await asyncio.to_thread(in_order)
            queued, replaced = self._upkeep.news()
            if queued:
                self._wake.set()
            if replaced:
                self.on_replaced(replaced)
                if not self._stopping:
                    self._spawn(self._tidy())
            then()
            return result

        return await self._to_its_end(change())

    async def _to_its_end(self, change: Coroutine[object, object, T]) -> T:
        """Await a change that goes on when its caller is gone, and that `stop` waits for."""
        if self._stopping:
            change.close()
            raise StoreUnavailable("the appliance is stopping")
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[T]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()  # asyncio complains of errors that nobody asked for; the caller may be gone

    # From the queue to prepared

    def _spawn(self, loop: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(loop)
        self._loops.add(task)
        task.add_done_callback(self._loops.discard)

    async def _dispatch(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK if self._catalog.shared else None):
                    await self._wake.wait()
            woken = self._wake.is_set()
            self._wake.clear()
            try:
                works = await asyncio.to_thread(self._taken)
                if not works and woken and self._upkeep.building:
                    await self._change(self._upkeep.finish)
            except Exception as error:  # noqa: BLE001  # whatever it is, the queue must go on
                await self._paused(_QUEUE, error)
                self._wake.set()
                continue
            self._troubles.pop(_QUEUE, None)
            for work in works:
                self._lanes.of(work).enter(work)
                self._spawn(self._prepare(work))

    def _taken(self) -> list[Work]:
        """What there is room for."""
        without = [held for held, until in self._held.items() if until > monotonic()]
        wants = [Want(lane.free, lane.room, lane.queue) for lane in self._lanes.all() if lane.free > 0]
        return self._catalog.take_each(wants, without=without) if wants else []

    async def _prepare(self, work: Work) -> None:
        done: _Done
        try:
            done = await self._preparer.prepared(work)
        except Stopped:
            done = Returned(work, counted=False)
        except InvalidInput as error:
            done = Failed(work, error.message)
        except (EngineUnavailable, ModelMismatch) as error:  # not the document's doing: its collection has to wait
            log.warning("documents wait for their model", collection=work.collection.name, error=error.message)
            self._held[work.collection.id] = monotonic() + _HOLD
            asyncio.get_running_loop().call_later(_HOLD, self._wake.set)
            done = Returned(work, counted=False)
        except ApplianceError as error:
            await asyncio.sleep(_PAUSE)
            done = Failed(work, error.message) if work.attempts >= _ATTEMPTS else Returned(work)
        except Exception as error:  # a document that trips a parser must not stop the queue
            log.exception("document failed", collection=work.collection.name, seq=work.seq)
            done = Failed(work, f"unexpected {type(error).__name__}")
        self._done.put_nowait(done)

    # From prepared to committed

    async def _settle(self) -> None:
        while True:
            group = [await self._done.get()]
            chunks = _chunks(group[0])
            while len(group) < _GROUP and chunks < _GROUP_CHUNKS and not self._done.empty():
                group.append(self._done.get_nowait())
                chunks += _chunks(group[-1])
            whole = await self._committed(group)
            for each in group:
                self._lanes.of(each.work).leave(each.work)
            self._wake.set()
            try:
                if not whole:
                    await self._change(self._upkeep.finish)
                elif self._upkeep.building:
                    await self._change(self._upkeep.advance)
            except Exception as error:  # noqa: BLE001  # what is left is finished after the next commit
                await self._paused(_FINISH, error)
            else:
                self._troubles.pop(_FINISH, None)

    async def _committed(self, group: list[_Done]) -> bool:
        """Commit until it is done; whether every document was still as it was taken."""
        while True:
            try:
                over, whole = await self._change(partial(self._commit, group), alone=False)
            except StoreError as error:
                await self._paused(_STORE, error)
            except Exception as error:  # one of them is the cause
                if len(group) > 1:
                    return all([await self._committed([each]) for each in group])
                log.exception("document not stored", seq=group[0].work.seq)
                if isinstance(group[0], Failed):
                    return True  # it stays in hand until the next start
                group = [Failed(group[0].work, f"it cannot be stored ({type(error).__name__})")]
            else:
                if whole or over:
                    self._troubles.pop(_STORE, None)
                for each in over:
                    if not each.reindexed:
                        self._watchers.tell(each.collection, each.id)
                self.on_over(over)
                return whole

    def _commit(self, group: Sequence[_Done]) -> tuple[list[Over], bool]:
        """Store and settle: what is over with; whether all were still as they were taken."""
        current = self._catalog.current([each.work for each in group])
        ready = [each for each, still in zip(group, current, strict=True) if still and isinstance(each, Prepared)]
        ready.sort(key=lambda each: each.work.collection.id)
        for name, entries in groupby(ready, key=lambda each: each.work.collection.stored_as):
            self._store.put_many(name, [Entry(each.work.id, each.cut.chunks, each.vectors) for each in entries])
        outcomes = [_outcome(each) for each in group]
        settled = self._catalog.settle(outcomes)
        over = []
        for outcome, still in zip(outcomes, settled, strict=True):
            if still and not isinstance(outcome, Returned):
                state: Literal["ready", "failed"] = "ready" if isinstance(outcome, Ready) else "failed"
                error = outcome.error if isinstance(outcome, Failed) else ""
                self._on_settled(state)
                collection = outcome.work.collection
                ours = collection.state == "building"
                over.append(Over(collection.known_as, outcome.work.id, state, error, outcome.work.job, reindexed=ours))
        return over, all(settled)

    async def _paused(self, event: str, error: Exception) -> None:
        reason = error.message if isinstance(error, ApplianceError) else f"unexpected {type(error).__name__}"
        self._troubles[event] = reason
        log.error(event, error=reason, exc_info=None if isinstance(error, ApplianceError) else error)
        await asyncio.sleep(_PAUSE)


def _checked_dimensions(spec: ModelSpec, dimensions: int | None) -> int:
    dimensions = dimensions or spec.dimensions
    if not spec.min_dimensions <= dimensions <= spec.dimensions:
        raise InvalidInput(
            f"{spec.name} has vectors of {spec.min_dimensions} to {spec.dimensions} dimensions", param="dimensions"
        )
    return dimensions


def _chunks(done: _Done) -> int:
    return len(done.cut.chunks) if isinstance(done, Prepared) else 0


def _outcome(done: _Done) -> Ready | Failed | Returned:
    if not isinstance(done, Prepared):
        return done
    pieces = done.cut
    tokens = sum(chunk.tokens for chunk in pieces.chunks)
    return Ready(
        done.work,
        text=pieces.text,
        chunks=len(pieces.chunks),
        tokens=tokens,
        truncated=done.truncated,
        title=pieces.title,
        metadata=pieces.metadata,
    )
