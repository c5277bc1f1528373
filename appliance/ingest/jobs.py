"""Jobs as they run: from an archive or a folder into the catalog, followed, paused, cancelled; and folders that are
watched.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from time import monotonic
from typing import IO, Any, Final

import structlog

from appliance.catalog.catalog import Catalog
from appliance.catalog.records import Items, ItemState, Job, JobKind, Refusal
from appliance.errors import (
    ApplianceError,
    CollectionNotFound,
    Conflict,
    DocumentNotFound,
    InvalidInput,
    JobNotFound,
    ModelMismatch,
    NotAllowed,
    NotFound,
)
from appliance.ingest.archive import members
from appliance.ingest.events import Events
from appliance.ingest.folder import (
    BATCH_BYTES,
    BATCH_FILES,
    Changes,
    Follower,
    Found,
    Skipped,
    batches,
    below,
    resolved,
    why,
)
from appliance.ingest.ingestor import Ingestor, Over
from appliance.ingest.notice import Notice
from appliance.ingest.prepare import Incoming

RESCAN: Final = 300.0
"""Seconds after which a watched folder is looked at in any case: the system may have lost some of what happened."""

_TICK: Final = 0.25
"""Seconds between two events about a job."""

_SHARED_TICK: Final = 1.0
"""Seconds between two looks at jobs that other appliances work on, too."""

_WINDOW: Final = 30.0
"""Seconds over which a rate is measured."""

_PAUSE: Final = 5.0
"""Seconds before what failed for no reason of its own is tried again."""

_LEFT_OUT: Final = frozenset({"hidden", "ignored"})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """A job, its documents a second just now, and the seconds it will take; None where that is not known."""

    job: Job
    rate: float | None = None
    remaining: float | None = None

    def told(self) -> dict[str, Any]:
        """As a JSON object, for callers and events."""
        job = self.job
        return {
            "id": job.id,
            "collection": job.collection,
            "kind": job.kind,
            "name": job.name,
            "state": job.state,
            "priority": job.priority,
            "counts": {
                "total": job.total,
                "waiting": job.waiting,
                "ready": job.ready,
                "failed": job.failed,
                "refused": job.refused,
                "skipped": job.skipped,
                "unchanged": job.unchanged,
                "moved": job.moved,
            },
            "complete": not job.open,
            "rate": self.rate,
            "remaining": self.remaining,
            "error": job.error or None,
            "created": job.created.isoformat(),
            "ended": job.ended.isoformat() if job.ended else None,
        }


class Jobs:
    """Opens jobs and follows them. Belongs to one event loop.

    Args:
        catalog: where they are kept.
        ingestor: puts documents in; its `on_over` and `on_replaced` are taken.
        events: told what happens.
        roots: folders below which callers may have the server read.
        watched: folders that are followed, and into which collection.
        rescan: seconds after which a watched folder is looked at in any case.
        settle: seconds for which a file of it must not have changed.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        ingestor: Ingestor,
        events: Events,
        roots: Sequence[Path] = (),
        watched: Mapping[Path, str] | None = None,
        rescan: float = RESCAN,
        settle: float = 2.0,
    ) -> None:
        self._catalog = catalog
        self._ledger = catalog.jobs
        self._ingestor = ingestor
        self._events = events
        self._roots = [Path(os.path.abspath(root)) for root in roots]  # noqa: PTH100  # a link keeps its name
        self._watched = dict(watched or {})
        self._rescan = rescan
        self._settle = settle
        self._tasks: set[asyncio.Task[object]] = set()
        self._changed: set[int] = set()
        self._news = asyncio.Event()
        self._paces: dict[int, deque[tuple[float, int]]] = {}
        self._ends = threading.Event()
        self._watchers = ThreadPoolExecutor(max(len(self._watched), 1), "watch")
        ingestor.on_over = self._over
        ingestor.on_replaced = self._replaced

    async def start(self) -> None:
        """Go on with what a restart cut short, and with watching. The ingestor was started before."""
        for job in await asyncio.to_thread(self._ledger.opened):
            if job.state == "preparing":
                await self._ingestor.take_back(partial(self._ledger.cancel, job.id))
                await asyncio.to_thread(self._ledger.close, job.id, error="its upload was cut short: send it again")
            elif job.kind == "folder":
                self._spawn(self._walk(job))
        self._spawn(self._tell())
        if self._catalog.shared:
            self._spawn(self._touch_shared())
        for folder, collection in self._watched.items():
            self._spawn(self._watch(folder, collection))

    async def stop(self) -> None:
        """Stop; what is half done is gone on with at the next start."""
        self._ends.set()
        self._events.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._watchers.shutdown(wait=False, cancel_futures=True)

    # What callers do

    async def open(self, collection: str, *, kind: JobKind = "documents", name: str = "", priority: int = 0) -> Job:
        """A new job without documents; of an archive, nothing is worked on before `close`.

        Raises:
            CollectionNotFound: no such collection.
        """
        await asyncio.to_thread(self._catalog.collection, collection)
        state = partial(self._ledger.create, collection, kind=kind, name=name, priority=priority)
        make = partial(state, state="preparing") if kind == "archive" else state
        return self._noted(await asyncio.to_thread(make))

    async def close(self, job: int) -> Job:
        """Nothing more comes: begin with an archive. Raises JobNotFound."""
        closed = await asyncio.to_thread(self._ledger.close, job)
        self._ingestor.wake()
        return self._noted(closed)

    async def take_archive(
        self, job: Job, file: IO[bytes], *, name: str, prefix: str, size: int, model: str | None = None
    ) -> None:
        """Put the files of an archive into an open job.

        Args:
            job: of the collection that they go to.
            file: can be sought in.
            name: of the archive; its ending says what it is.
            prefix: first part of the ids.
            size: bytes of the archive.
            model: as `Ingestor.add` takes it.

        Raises:
            InvalidInput: it cannot be read, or is over a bound; the job may have some of its files.
        """
        found = members(file, name=name, prefix=prefix, size=size)
        while True:
            batch = await asyncio.to_thread(_next_batch, found)
            if not batch:
                return
            refused = [Refusal(each.id, each.reason) for each in batch if isinstance(each, Skipped)]
            kept = [
                Incoming(each.body, id=each.id, name=each.id.rpartition("/")[2])
                for each in batch
                if not isinstance(each, Skipped)
            ]
            await self._ingestor.add(job.collection, kept, wait=0, model=model, job=job.id)
            told = [each for each in refused if each.error not in _LEFT_OUT]
            await asyncio.to_thread(self._catalog.enter, job.collection, job.id, refused=told)
            self.touch(job.id)

    async def abandon(self, job: int) -> None:
        """Take back and forget a job whose documents did not all come; goes on when its caller is gone."""

        async def abandon() -> None:
            with suppress(JobNotFound, Conflict):
                await self._ingestor.take_back(partial(self._ledger.cancel, job))
                await asyncio.to_thread(self._ledger.forget, job)
                self._events.publish("removed", {"id": job}, job=job)

        await asyncio.shield(self._spawn(abandon()))

    async def read_file(self, given: str) -> Incoming:
        """A file below one of the roots, as a document. Its id is its path, beginning with the root's name.

        Raises:
            NotAllowed: it lies elsewhere, or there are no roots.
            NotFound: there is no such file.
            InvalidInput: it cannot be read.
        """
        root, path = await asyncio.to_thread(self._within, given)
        found = Found(_name(root, path), path, 0, border=root)
        try:
            body = await asyncio.to_thread(found.read)
        except FileNotFoundError as error:
            raise NotFound(f"there is no file {given!r} below ingest_roots", name=given) from error
        except OSError as error:
            raise InvalidInput(f"the file cannot be read: {why(error)}", param="path") from error
        return Incoming(body, id=found.id, name=path.name)

    async def take_folder(self, collection: str, given: str, *, priority: int = 0, prune: bool = False) -> Job:
        """Begin a job over a folder below one of the roots; it goes on after a restart.

        Args:
            collection: it exists.
            given: path of the folder, absolute or below a root.
            priority: the higher is worked on first.
            prune: remove the documents whose files are no more.

        Raises:
            CollectionNotFound: no such collection.
            NotAllowed: it lies elsewhere, or there are no roots.
            NotFound: there is no such folder.
        """
        _, path = await asyncio.to_thread(self._within, given)
        if not await asyncio.to_thread(path.is_dir):
            raise NotFound(f"there is no folder {given!r} below ingest_roots", name=given)
        await self._ingestor.spec(collection)
        make = partial(self._ledger.create, kind="folder", name=path.name, priority=priority, prune=prune)
        job = await asyncio.to_thread(partial(make, collection, origin=str(path)))
        self._spawn(self._walk(job))
        return self._noted(job)

    async def pause(self, job: int) -> Job:
        """See JobLedger."""
        return self._noted(await asyncio.to_thread(self._ledger.pause, job))

    async def resume(self, job: int) -> Job:
        """See JobLedger."""
        return await self._requeued(partial(self._ledger.resume, job))

    async def retry(self, job: int, documents: Sequence[str] | None = None) -> tuple[Job, int]:
        """See JobLedger."""
        found: list[int] = []

        def again() -> Job:
            after, number = self._ledger.retry(job, documents)
            found.append(number)
            return after

        return await self._requeued(again), found[0]

    async def cancel(self, job: int) -> Job:
        """See JobLedger."""
        return self._noted(await self._ingestor.take_back(partial(self._ledger.cancel, job)))

    async def skip(self, job: int, document: str) -> Job:
        """See JobLedger."""
        return self._noted(await self._ingestor.take_back(partial(self._ledger.skip, job, document)))

    async def forget(self, job: int) -> None:
        """See JobLedger."""
        await asyncio.to_thread(self._ledger.forget, job)
        self._paces.pop(job, None)
        self._events.publish("removed", {"id": job}, job=job)

    async def job(self, job: int) -> Progress:
        """A job as it is now. Raises JobNotFound."""
        return self._progress(await asyncio.to_thread(self._ledger.job, job))

    async def jobs(self, **which: Any) -> list[Progress]:
        """Jobs as they are now; takes what `JobLedger.jobs` takes."""
        return [self._progress(each) for each in await asyncio.to_thread(partial(self._ledger.jobs, **which))]

    async def items(self, job: int, *, limit: int, after: int | None, states: Sequence[ItemState] = ()) -> Items:
        """A job's documents of these states, or all. Raises JobNotFound."""
        return await asyncio.to_thread(partial(self._ledger.items, job, limit=limit, after=after, states=states))

    def touch(self, job: int) -> None:
        """Something about the job changed: tell of it soon."""
        self._changed.add(job)
        self._news.set()

    # What is told

    def _noted(self, job: Job) -> Job:
        self.touch(job.id)
        return job

    async def _requeued(self, step: Callable[[], Job]) -> Job:
        job = await asyncio.to_thread(step)
        self._ingestor.wake()
        return self._noted(job)

    def _over(self, over: Sequence[Over]) -> None:
        ordered = sorted(over, key=lambda each: (each.collection, each.job or 0))
        for (collection, job), documents in groupby(ordered, key=lambda each: (each.collection, each.job)):
            told = [{"id": each.id, "state": each.state, "error": each.error or None} for each in documents]
            self._events.publish("documents", {"collection": collection, "job": job, "documents": told}, job=job)
            if job is not None:
                self.touch(job)

    def _replaced(self, jobs: Sequence[int]) -> None:
        for job in jobs:
            self.touch(job)

    async def _tell(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            ids, self._changed = self._changed, set()
            try:
                jobs = await asyncio.to_thread(self._ledger.some, ids)
            except ApplianceError:  # the disk is away: the next change tells
                jobs = []
            for job in sorted(jobs, key=lambda each: each.id):
                self._events.publish("job", self._paced(job).told(), job=job.id)
            await asyncio.sleep(_TICK)

    async def _touch_shared(self) -> None:
        """Of a shared catalog: tell of jobs that others work on, and of their end."""
        before: set[int] = set()
        while True:
            with suppress(ApplianceError):
                going = set(await asyncio.to_thread(self._ledger.going))
                for job in going | before:
                    self.touch(job)
                before = going
            await asyncio.sleep(_SHARED_TICK)

    def _paced(self, job: Job) -> Progress:
        """With one more point to measure by."""
        now = monotonic()
        pace = self._paces.setdefault(job.id, deque())
        pace.append((now, job.ready + job.failed))
        while now - pace[0][0] > _WINDOW and len(pace) > 2:  # noqa: PLR2004  # two make a rate
            pace.popleft()
        progress = self._progress(job)
        if job.ended is not None:
            self._paces.pop(job.id, None)
        return progress

    def _progress(self, job: Job) -> Progress:
        pace = self._paces.get(job.id)
        if not pace or job.state != "running":
            return Progress(job)
        (begin, before), (end, after) = pace[0], pace[-1]
        if end - begin < 2 * _TICK or after <= before:
            return Progress(job)
        rate = (after - before) / (max(end, monotonic() - 2 * _TICK) - begin)
        return Progress(job, round(rate, 3), None if job.open else round(job.waiting / rate, 1))

    # From a folder

    def _within(self, given: str) -> tuple[Path, Path]:
        """The root that a path lies below, and the path."""
        if not self._roots:
            raise NotAllowed("the server reads no folders: name those that it may in the setting ingest_roots")
        if "\0" in given:
            raise InvalidInput("a path has no NUL", param="path")
        inside = []
        for root in self._roots:
            path = Path(os.path.normpath(root / given))
            if path.is_relative_to(root) and resolved(path).is_relative_to(resolved(root)):
                inside.append((root, path))
        if not inside:
            raise NotAllowed("that path is not below one of the folders in the setting ingest_roots")
        return next(((root, path) for root, path in inside if path.exists()), inside[0])

    async def _walk(self, job: Job) -> None:
        """Put a folder's files into its job, then close it."""
        error = ""
        while True:
            try:
                await self._walked(job)
            except (InvalidInput, NotFound, NotAllowed, ModelMismatch) as gone:
                error = gone.message
            except Conflict:  # it was cancelled
                pass
            except OSError as gone:
                error = f"the folder cannot be read: {why(gone)}"
            except ApplianceError as away:
                log.warning("a folder waits", job=job.id, error=away.message)
                await asyncio.sleep(_PAUSE)
                continue
            break
        with suppress(JobNotFound):
            self._noted(await asyncio.to_thread(partial(self._ledger.close, job.id, error=error)))
        self._ingestor.wake()

    async def _walked(self, job: Job) -> None:
        root, folder = await asyncio.to_thread(self._within, job.origin)
        prefix = _name(root, folder) + "/"

        def look() -> tuple[dict[str, Found], list[Skipped], dict[str, int], set[str]]:
            with os.scandir(folder):
                pass
            every = list(below(root, folder))
            found = {each.id: each for each in every if isinstance(each, Found)}
            skipped = [each for each in every if isinstance(each, Skipped)]
            unseen = tuple(each.id for each in skipped if each.unseen)
            sizes = self._catalog.sizes(job.collection, prefix)
            gone = {n: s for n, s in sizes.items() if n not in found and not n.startswith(unseen)}
            return found, skipped, gone, self._ledger.skipped(job.id)

        found, skipped, gone, taken_back = await asyncio.to_thread(look)
        refused = [Refusal(each.id, each.reason) for each in skipped if each.reason not in _LEFT_OUT]
        for start in range(0, len(refused), 1000):
            part = refused[start : start + 1000]
            await asyncio.to_thread(partial(self._catalog.enter, job.collection, job.id, refused=part))
        files = [each for name, each in found.items() if name not in taken_back]  # before the walk was cut short
        await self._take_in(job.collection, files, gone, job=job.id)
        if job.prune and found:
            await self._remove(job.collection, gone)

    async def _take_in(
        self, collection: str, files: Sequence[Found], gone: Mapping[str, int], *, job: int | None, again: bool = False
    ) -> list[str]:
        """Put files in, each under its id; one of the content of a document that is gone takes that one's place. Why
        some were refused.
        """
        reasons: list[str] = []
        for batch in batches(files):
            incoming, same, refused = await asyncio.to_thread(self._read, collection, batch, None if again else job)
            sizes = {len(each.body) for each in incoming}
            candidates = [name for name, size in gone.items() if size in sizes]
            receipts = await self._ingestor.add(collection, incoming, wait=0, job=job, moved_from=candidates)
            reasons += [each.error for each in receipts if each.document is None]
            reasons += [each.error for each in refused]
            if job is not None:
                enter = partial(self._catalog.enter, collection, job, same=same, refused=refused)
                await asyncio.to_thread(enter)
                self.touch(job)
        return reasons

    def _read(
        self, collection: str, batch: Sequence[Found], job: int | None
    ) -> tuple[list[Incoming], list[str], list[Refusal]]:
        """What is new of the files, which are as they were or failed in this job, and which cannot be read."""
        bodies, names, refused = {}, {}, []
        for file in batch:
            try:
                bodies[file.id] = file.read()
            except FileNotFoundError:  # it went away meanwhile
                continue
            except OSError as error:
                refused.append(Refusal(file.id, why(error)))
                continue
            names[file.id] = file.path.name
        held = self._catalog.held(collection, bodies, job=job)
        incoming = [Incoming(body, id=each, name=names[each]) for each, body in bodies.items() if each not in held]
        return incoming, [each for each in bodies if each in held], refused

    async def _remove(self, collection: str, gone: Iterable[str]) -> None:
        """Remove documents; those that took another name, or went already, are no more."""
        for name in gone:
            with suppress(DocumentNotFound):
                await self._ingestor.remove(collection, name)

    # Watched folders

    async def _watch(self, folder: Path, collection: str) -> None:
        """Keep a collection as a folder is, for as long as the task runs."""
        follower = Follower(folder, settle=self._settle)
        notice = Notice()
        away = ""
        adopted = False
        while True:
            pause = self._rescan
            try:
                if not adopted:
                    await self._ingestor.ensure_collection(collection)
                    prefix = folder.name + "/"
                    follower.adopt(await asyncio.to_thread(self._catalog.sizes, collection, prefix))
                    adopted = True
                pause = await self._looked(follower, notice, collection)
                away = ""
            except OSError as error:
                pause, reason = self._settle + _PAUSE, why(error)
                if reason != away:
                    log.warning("a watched folder cannot be read", folder=str(folder), reason=reason)
                away = reason
            except CollectionNotFound:  # removed: it is made anew, with all that is in the folder
                follower = Follower(folder, settle=self._settle)
                adopted, pause = False, _PAUSE
            except ApplianceError as error:
                pause = _PAUSE
                log.warning("a watched folder waits", folder=str(folder), error=error.message)
            wait = partial(notice.wait, pause, self._ends)
            await asyncio.get_running_loop().run_in_executor(self._watchers, wait)

    async def _looked(self, follower: Follower, notice: Notice, collection: str) -> float:
        """Look once and do what is to be done; the seconds until the next look, if nothing happens before."""
        changes = await asyncio.to_thread(follower.look)
        fresh = await asyncio.to_thread(notice.follow, follower.folders)
        if changes:
            try:
                await self._followed(changes, collection, follower.root)
            except BaseException:
                follower.again(changes)
                raise
        if fresh:  # what happened before it began to listen is seen by another look
            return 0
        return self._settle if changes.unsettled else self._rescan

    async def _followed(self, changes: Changes, collection: str, root: Path) -> None:
        gone: dict[str, int] = {}
        if changes.gone:
            sizes = await asyncio.to_thread(self._catalog.sizes, collection, root.name + "/")
            gone = {name: sizes[name] for name in changes.gone if name in sizes}
        left_out = [each for each in changes.skipped if each.reason not in _LEFT_OUT]
        job = None
        if changes.put or changes.gone or left_out:
            standing = partial(self._ledger.standing, collection, name=root.name, origin=str(root))
            job = (await asyncio.to_thread(standing)).id
            refused = [Refusal(each.id, each.reason) for each in left_out]
            await asyncio.to_thread(partial(self._catalog.enter, collection, job, refused=refused))
        reasons = await self._take_in(collection, changes.put, gone, job=job, again=True)
        await self._remove(collection, gone)
        if job is not None:
            await asyncio.to_thread(self._ledger.leave, job, changes.gone)
            self.touch(job)
        reasons += [each.reason for each in left_out]
        for reason in dict.fromkeys(reasons):
            log.warning(
                "files of a watched folder are left out",
                folder=root.name,
                reason=reason,
                files=reasons.count(reason),
                job=job,
            )

    def _spawn(self, work: Coroutine[Any, Any, object]) -> Awaitable[object]:
        task: asyncio.Task[object] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of a job failed", exc_info=error)


def _name(root: Path, path: Path) -> str:
    return (root.name / path.relative_to(root)).as_posix()


def _next_batch(found: Iterator[Any]) -> list[Any]:
    """The next members of an archive, up to the bounds of a batch; empty at the end."""
    batch: list[Any] = []
    size = 0
    for each in found:
        batch.append(each)
        size += 0 if isinstance(each, Skipped) else len(each.body)
        if len(batch) >= BATCH_FILES or size >= BATCH_BYTES:
            break
    return batch
