"""From the catalog's queue to the store: parse, cut, embed, and commit many documents at once."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import PurePosixPath
from typing import Literal, TypeAlias, TypeVar

import structlog

from appliance.catalog.catalog import Catalog
from appliance.catalog.records import (
    Change,
    Collection,
    Document,
    Failed,
    NewDocument,
    Ready,
    Returned,
    Work,
    content_hash,
)
from appliance.embedding.embedder import Embedder
from appliance.embedding.registry import Registry
from appliance.embedding.spec import ModelSpec
from appliance.errors import ApplianceError, CollectionExists, CollectionNotFound, InvalidInput, NotFound
from appliance.ingest.chunk import chunked, embedded, room
from appliance.ingest.parse import parse
from appliance.store.base import Chunk, Entry, Matrix, VectorStore

_ATTEMPTS = 3
"""Tries of a document whose engine failed, before it is set aside."""

_GROUP = 64
"""Most documents of one commit."""

_PAUSE = 1.0
"""Seconds before a failed try is repeated."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Incoming:
    """A document as a caller hands it in. Without an id, it gets one made from its content."""

    body: bytes
    media_type: str = ""
    id: str | None = None
    title: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an incoming document: `document` as it is now, or why it was refused."""

    id: str
    change: Change | Literal["refused"]
    document: Document | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    work: Work
    text: str
    chunks: Sequence[Chunk]
    vectors: Matrix


_Done: TypeAlias = _Prepared | Failed | Returned


class Ingestor:
    """Takes waiting documents, oldest first, and makes them searchable; the one door through which the index changes.

    The catalog is the queue. Documents are prepared side by side and committed together: whatever is ready when the
    last commit has ended makes the next one, so that one fsync carries many. A document that changes or is removed
    while it is worked on is dropped at the commit. Belongs to one event loop.

    Args:
        lanes: documents in preparation at the same time.
        chunk_tokens: tokens of a chunk at most; 0 for as many as the model takes.
        chunk_overlap: tokens repeated between neighbouring chunks.
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
        on_settled: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._on_settled = on_settled
        self._catalog = catalog
        self._store = store
        self._registry = registry
        self._lanes = lanes
        self._chunk_tokens = chunk_tokens
        self._chunk_overlap = chunk_overlap
        self._wake = asyncio.Event()
        self._done: asyncio.Queue[_Done] = asyncio.Queue()
        self._changing = asyncio.Lock()  # held while the store changes
        self._active = 0
        self._watchers: dict[tuple[str, str], set[asyncio.Event]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Finish what a crash cut short, then work."""
        await asyncio.to_thread(self._catalog.recover)
        await asyncio.to_thread(self._finish_removals)
        for collection in await asyncio.to_thread(self._catalog.collections):
            await asyncio.to_thread(self._store.create, collection.name, collection.dimensions)
        self._wake.set()
        self._tasks = [asyncio.create_task(self._dispatch()), asyncio.create_task(self._settle())]

    async def stop(self) -> None:
        """Stop at once; what was not committed is taken again at the next start."""
        async with self._changing:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def create_collection(self, name: str, *, spec: ModelSpec, dimensions: int | None = None) -> Collection:
        """Make a collection for vectors of the card's space.

        Raises:
            CollectionExists: there is one of this name.
            InvalidInput: no name for a collection, or dimensions that the model does not have.
        """
        dimensions = dimensions or spec.dimensions
        if not spec.min_dimensions <= dimensions <= spec.dimensions:
            raise InvalidInput(
                f"{spec.name} has vectors of {spec.min_dimensions} to {spec.dimensions} dimensions", param="dimensions"
            )

        def create() -> Collection:
            made = self._catalog.create_collection(name, model=spec.name, space=spec.space, dimensions=dimensions)
            self._store.create(name, dimensions)
            return made

        return await self._change(create)

    async def ensure_collection(self, name: str) -> None:
        """Make a collection of the default model unless there is one of this name."""
        try:
            await asyncio.to_thread(self._catalog.collection, name)
        except CollectionNotFound:
            with suppress(CollectionExists):  # someone else was quicker
                await self.create_collection(name, spec=self._registry.default)

    async def add(
        self, collection: str, documents: Sequence[Incoming], *, wait: float, model: str | None = None
    ) -> list[Outcome]:
        """Queue documents durably, then wait for them. A document that cannot be read is refused; the others go on.

        Args:
            collection: it exists.
            documents: in the order of the answer.
            wait: seconds to wait at most until each is ready or failed.
            model: name of a model whose vectors the caller expects the collection to hold.

        Raises:
            CollectionNotFound: no such collection.
            ModelNotFound: no such model.
            ModelMismatch: the collection's vectors are not the model's, or no model here gives such vectors.
        """
        found = await asyncio.to_thread(self._catalog.collection, collection)
        self._registry.within(found.space, found.model, asked=model)
        read = await asyncio.to_thread(lambda: [_read(each) for each in documents])
        accepted = [each for each in read if isinstance(each, NewDocument)]
        with self._watching((collection, each.id) for each in accepted) as watched:
            puts = iter(await asyncio.to_thread(self._catalog.put_documents, collection, accepted))
            self._wake.set()
            outcomes = [
                each
                if isinstance(each, Outcome)
                else Outcome((put := next(puts)).document.id, put.change, put.document)
                for each in read
            ]
            events = [
                watched[each.id]
                for each in outcomes
                if each.document is not None and each.document.state in {"waiting", "working"}
            ]
            if not events or wait <= 0:
                return outcomes
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    for event in events:
                        await event.wait()
        return await asyncio.to_thread(self._refreshed, collection, outcomes)

    async def remove(self, collection: str, document: str) -> None:
        """Remove a document with its chunks.

        Raises:
            CollectionNotFound, DocumentNotFound: there is none of this name.
        """

        def remove() -> None:
            leaving = self._catalog.begin_document_removal(collection, document)
            self._store.remove(collection, document)
            if not leaving.in_hand:
                self._catalog.forget_document(collection, document)

        await self._change(remove)
        self._tell((collection, document))

    async def remove_collection(self, collection: str) -> None:
        """Remove a collection with all it holds.

        Raises:
            CollectionNotFound: there is none of this name.
        """

        def remove() -> None:
            self._catalog.begin_removal(collection)
            self._store.drop(collection)
            self._finish_removals()

        await self._change(remove)

    async def _change(self, step: Callable[[], T]) -> T:
        """Run a change of the store in a thread, one at a time, to its end even when the caller is gone."""

        async def change() -> T:
            async with self._changing:
                return await asyncio.to_thread(step)

        return await asyncio.shield(asyncio.create_task(change()))

    @contextmanager
    def _watching(self, keys: Iterable[tuple[str, str]]) -> Iterator[dict[str, asyncio.Event]]:
        """Events by document id, each set when the document is settled or removed."""
        watched = {key: asyncio.Event() for key in keys}
        for key, event in watched.items():
            self._watchers.setdefault(key, set()).add(event)
        try:
            yield {document: event for (_, document), event in watched.items()}
        finally:
            for key, event in watched.items():
                self._watchers[key].discard(event)
                if not self._watchers[key]:
                    del self._watchers[key]

    def _tell(self, key: tuple[str, str]) -> None:
        for event in self._watchers.get(key, ()):
            event.set()

    def _refreshed(self, collection: str, outcomes: Sequence[Outcome]) -> list[Outcome]:
        fresh = []
        for each in outcomes:
            document = each.document
            if document is not None:
                with suppress(NotFound):  # removed meanwhile: what it was is what we know
                    document = self._catalog.document(collection, document.id)
            fresh.append(Outcome(each.id, each.change, document, each.error))
        return fresh

    def _finish_removals(self) -> None:
        removals = self._catalog.pending_removals()
        for collection, document in removals.documents:
            self._store.remove(collection, document)
            self._catalog.forget_document(collection, document)
        for collection in removals.collections:
            self._store.drop(collection)
            self._catalog.forget_collection(collection)

    async def _dispatch(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._active >= self._lanes:
                    continue
                try:
                    works = await asyncio.to_thread(self._catalog.take, self._lanes - self._active)
                except ApplianceError as error:
                    log.error("queue not read", error=error.message)  # noqa: TRY400  # a trace would tell no more
                    await asyncio.sleep(_PAUSE)
                    self._wake.set()
                    continue
                self._active += len(works)
                for work in works:
                    group.create_task(self._prepare(work))
                if works:
                    self._wake.set()

    async def _prepare(self, work: Work) -> None:
        done: _Done
        try:
            done = await self._prepared(work)
        except InvalidInput as error:
            done = Failed(work, error.message)
        except ApplianceError as error:
            await asyncio.sleep(_PAUSE)
            last = work.attempts >= _ATTEMPTS
            done = Failed(work, error.message) if last else Returned(work)
        except Exception as error:
            log.exception("document failed", collection=work.collection.name, seq=work.seq)
            done = Failed(work, f"unexpected {type(error).__name__}")
        self._done.put_nowait(done)

    async def _prepared(self, work: Work) -> _Prepared:
        collection = work.collection
        text, chunks, inputs = await asyncio.to_thread(self._cut, work, await self._embedder(collection))
        embedder = await self._embedder(collection)
        result = await embedder.embed(inputs, dimensions=collection.dimensions, background=True)
        return _Prepared(work, text, chunks, result.vectors)

    async def _embedder(self, collection: Collection) -> Embedder:
        return await self._registry.get(self._registry.within(collection.space, collection.model).name)

    def _cut(self, work: Work, embedder: Embedder) -> tuple[str, list[Chunk], list[str]]:
        """The document's text, its chunks, and what is embedded for each."""
        parsed = parse(work.body, media_type=work.media_type, name=work.id)
        title = work.title
        size = room(embedder.max_tokens, title_tokens=len(embedder.spans(title)))
        if self._chunk_tokens:
            size = min(size, self._chunk_tokens)
        passages = chunked(
            parsed.text,
            spans=embedder.spans,
            size=size,
            overlap=min(self._chunk_overlap, size // 4),
            media_type=parsed.media_type,
            title=title,
        )
        chunks = [
            Chunk(
                ordinal=ordinal,
                text=passage.text,
                start=passage.start,
                end=passage.end,
                tokens=passage.tokens,
                title=title,
                metadata=work.metadata,
            )
            for ordinal, passage in enumerate(passages)
        ]
        return parsed.text, chunks, [embedded(title, passage) for passage in passages]

    async def _settle(self) -> None:
        while True:
            group = [await self._done.get()]
            while len(group) < _GROUP and not self._done.empty():
                group.append(self._done.get_nowait())
            try:
                over = await self._change(partial(self._commit, group))
            except ApplianceError as error:
                log.error("commit failed", error=error.message, documents=len(group))  # noqa: TRY400  # same
                await asyncio.sleep(_PAUSE)
                for each in group:
                    self._done.put_nowait(each)
                continue
            self._active -= len(group)
            for key in over:
                self._tell(key)
            self._wake.set()

    def _commit(self, group: Sequence[_Done]) -> list[tuple[str, str]]:
        """Store and settle; collection and id of the documents for which no one need wait any longer."""
        current = self._catalog.current([each.work for each in group])
        ready = [each for each, still in zip(group, current, strict=True) if still and isinstance(each, _Prepared)]
        ready.sort(key=lambda each: each.work.collection.id)
        for name, entries in groupby(ready, key=lambda each: each.work.collection.name):
            self._store.put_many(name, [Entry(each.work.id, each.chunks, each.vectors) for each in entries])
        outcomes = [
            Ready(each.work, text=each.text, chunks=len(each.chunks), tokens=sum(one.tokens for one in each.chunks))
            if isinstance(each, _Prepared)
            else each
            for each in group
        ]
        settled = self._catalog.settle(outcomes)
        if not all(settled):
            self._finish_removals()
        over = []
        for outcome, still in zip(outcomes, settled, strict=True):
            if still and not isinstance(outcome, Returned):
                self._on_settled("ready" if isinstance(outcome, Ready) else "failed")
                over.append((outcome.work.collection.name, outcome.work.id))
        return over


def _read(incoming: Incoming) -> NewDocument | Outcome:
    """Ready to be queued, with an id and a media type; or refused."""
    try:
        parsed = parse(incoming.body, media_type=incoming.media_type, name=incoming.name)
        new = NewDocument(
            id=incoming.id or "",
            body=incoming.body,
            media_type=parsed.media_type,
            title=incoming.title or parsed.title or PurePosixPath(incoming.name).name,
            metadata=incoming.metadata,
        )
        return new if incoming.id is not None else replace(new, id=content_hash(new)[:32])
    except InvalidInput as error:
        return Outcome(incoming.id or incoming.name, "refused", error=error.message)
