"""Which documents were handed in together, and how far they have come as one."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from appliance.catalog.records import Item, Items, ItemState, Job, JobKind, JobState
from appliance.catalog.tables import COLLECTION, DOCUMENT, JOB, JOB_ITEM
from appliance.database import Transactions
from appliance.errors import Conflict, DocumentNotFound, JobNotFound

KEPT: Final = 1000
"""Ended jobs that are remembered; beyond them the oldest are forgotten."""

PRIORITIES: Final = 100
"""Priorities go from -100 to 100."""

_IN: Final = 500
"""Values of one IN."""

_CANCELLED: Final = "the job was cancelled before its turn came"
_SKIPPED: Final = "it was skipped"

_J, _I, _D = JOB.c, JOB_ITEM.c, DOCUMENT.c
_WAITS: Final = _I.state == literal_column("'waiting'")
"""Written out, not bound: SQLite uses an index on some of the rows only where the query says which."""

_WAITING_FOR: Final = select(_I.job_id).where(_I.document_seq == bindparam("of"), _WAITS)
_SETTLED: Final = (
    update(JOB_ITEM)
    .where(_I.document_seq == bindparam("of"), _WAITS)
    .values(state=bindparam("to"), error=bindparam("why"))
)
"""Made once: a statement takes longer to build than to run."""

_COUNTS: Final = ("ready", "failed", "refused", "skipped", "unchanged", "moved")
_FINISHED: Final = _J.ready + _J.failed + _J.refused + _J.skipped + _J.unchanged + _J.moved


@dataclass(frozen=True, slots=True)
class Entered:
    """A document as it enters a job; `document_seq` is None where the catalog has none."""

    id: str
    document_seq: int | None
    state: ItemState
    error: str = ""


class Moments:
    """Counts what may take documents out of the hands that have them; of this process alone."""

    def __init__(self) -> None:
        self.count = 0


class JobLedger:
    """The jobs in a migrated database. Each method is one transaction; blocking; any thread.

    A job runs until none of its documents waits; one that is put in, or tried again, later has it run once more.
    Counts and documents change together, in the transaction in which a document is put, settled or removed.
    """

    def __init__(self, database: Transactions, *, member: int = 0) -> None:
        self._database = database
        self._member = member
        self.moments = Moments()

    def create(
        self,
        collection: str,
        *,
        kind: JobKind,
        name: str = "",
        priority: int = 0,
        state: JobState = "running",
        origin: str = "",
        prune: bool = False,
    ) -> Job:
        """Open a job without documents. With an origin, or while it is prepared, more are to come by themselves."""
        still = bool(origin) or state == "preparing"
        with self._database.write() as connection:
            made = create(
                connection,
                collection,
                kind=kind,
                name=name,
                priority=priority,
                still=still,
                state=state,
                origin=origin,
                prune=prune,
                member=self._member,
            )
            return job(connection, made)

    def standing(self, collection: str, *, name: str, origin: str) -> Job:
        """The job of a folder that this appliance watches; a new one where there is none that was not cancelled."""
        mine = or_(_J.member == self._member, _J.member.is_(None))
        query = select(JOB).where(_J.kind == "watched", _J.collection == collection, _J.origin == origin, mine)
        with self._database.read() as connection:
            row = connection.execute(query.where(_J.state != "cancelled").order_by(_J.id.desc()).limit(1)).first()
        if row is not None:
            return _as_job(row)
        made = self.create(collection, kind="watched", name=name, origin=origin)
        return self.close(made.id)

    def leave(self, job_id: int, documents: Iterable[str]) -> None:
        """Documents of these ids are the job's no more, unless they wait; what is not in it is passed over."""
        ids = list(documents)
        with self._database.write() as connection:
            for start in range(0, len(ids), _IN):
                left = and_(_I.job_id == job_id, _I.id.in_(ids[start : start + _IN]), _I.state != "waiting")
                states = Counter(connection.execute(select(_I.state).where(left)).scalars())
                connection.execute(delete(JOB_ITEM).where(left))
                fewer = {state: -number for state, number in states.items()}
                _count(connection, job_id, Counter({**fewer, "total": -states.total()}))

    def job(self, job_id: int) -> Job:
        """One job. Raises JobNotFound."""
        with self._database.read() as connection:
            return job(connection, job_id)

    def some(self, ids: Iterable[int]) -> list[Job]:
        """The jobs of these numbers; those that do not exist are left out."""
        with self._database.read() as connection:
            return [_as_job(row) for row in connection.execute(select(JOB).where(_J.id.in_(list(ids))))]

    def jobs(
        self, *, limit: int, before: int | None = None, state: JobState | None = None, collection: str | None = None
    ) -> list[Job]:
        """Jobs, newest first, those older than the number `before`; of one state or collection, or all."""
        query = select(JOB).order_by(_J.id.desc()).limit(limit)
        for column, value in ((_J.state, state), (_J.collection, collection)):
            if value is not None:
                query = query.where(column == value)
        if before is not None:
            query = query.where(_J.id < before)
        with self._database.read() as connection:
            return [_as_job(row) for row in connection.execute(query)]

    def opened(self) -> list[Job]:
        """Jobs that wait for more documents to come by themselves, from this appliance; oldest first."""
        ours = or_(_J.member == self._member, _J.member.is_(None))
        with self._database.read() as connection:
            query = select(JOB).where(_J.open == 1, _J.ended.is_(None), ours).order_by(_J.id)
            return [_as_job(row) for row in connection.execute(query)]

    def going(self) -> list[int]:
        """The numbers of jobs that have not ended."""
        with self._database.read() as connection:
            return list(connection.execute(select(_J.id).where(_J.ended.is_(None))).scalars())

    def counts(self) -> dict[JobState, int]:
        """How many jobs of each state there are; states without any are left out."""
        with self._database.read() as connection:
            return dict(connection.execute(select(_J.state, func.count()).group_by(_J.state)).all())

    def items(self, job_id: int, *, limit: int, after: int | None = None, states: Sequence[ItemState] = ()) -> Items:
        """A job's documents of these states, or all, in the order they came in, those after the place `after`. Raises
        JobNotFound.
        """
        query = select(_I.seq, _I.id, _I.state, _I.error).where(_I.job_id == job_id)
        if after is not None:
            query = query.where(_I.seq > after)
        if states:
            query = query.where(_I.state.in_(states))
        with self._database.read() as connection:
            job(connection, job_id)
            rows = connection.execute(query.order_by(_I.seq).limit(limit + 1)).all()
        page = tuple(Item(*row) for row in rows[:limit])
        return Items(page, next=page[-1].seq if page and len(rows) > limit else None)

    def skipped(self, job_id: int) -> set[str]:
        """Ids of documents that were taken back from the job, removed or replaced before their turn came."""
        with self._database.read() as connection:
            return set(connection.execute(select(_I.id).where(_I.job_id == job_id, _I.state == "skipped")).scalars())

    def close(self, job_id: int, *, error: str = "") -> Job:
        """Nothing more comes by itself: the job runs, and ends with its documents. Raises JobNotFound."""
        with self._database.write() as connection:
            found = job(connection, job_id)
            state = "running" if found.state == "preparing" else found.state
            connection.execute(update(JOB).where(_J.id == job_id).values(open=0, state=state, error=error))
            _end(connection, [job_id])
            return job(connection, job_id)

    def pause(self, job_id: int) -> Job:
        """Take no more documents of it; what is in hand goes on. A no-op when paused already.

        Raises:
            JobNotFound: there is none of this number.
            Conflict: it has ended, or is being prepared.
        """
        return self._switch(job_id, to="paused", verb="paused")

    def resume(self, job_id: int) -> Job:
        """Go on; a no-op while it runs. Raises as `pause`."""
        return self._switch(job_id, to="running", verb="resumed")

    def cancel(self, job_id: int) -> Job:
        """Take back what waits; what is in hand goes on, what is ready stays. A no-op when cancelled already.

        A document that was new is removed: what may be in the store of it is left as a removal that was begun. One that
        was changed is set aside as failed, for its old version can still be found.

        Raises:
            JobNotFound: there is none of this number.
            Conflict: it is done.
        """
        with self._database.write() as connection:
            found = job(connection, job_id)
            if found.state == "cancelled":
                return found
            if found.state == "done":
                raise Conflict(f"job {job_id} is done; remove its documents to undo it")
            self.moments.count += 1
            _take_back(connection, _D.job == job_id, only=job_id, error=_CANCELLED)
            if found.kind == "reindex":
                _abandon(connection, job_id)
            connection.execute(update(JOB).where(_J.id == job_id).values(state="cancelled", open=0, ended=_now()))
            return job(connection, job_id)

    def retry(self, job_id: int, documents: Sequence[str] | None = None) -> tuple[Job, int]:
        """Queue again what failed of it, all or those of these ids; the job, and how many that were.

        Raises:
            JobNotFound: there is none of this number.
            Conflict: it was cancelled.
        """
        failed = and_(_I.job_id == job_id, _I.state == "failed")
        if documents is not None:
            failed = and_(failed, _I.id.in_(list(documents)[:_IN]))
        with self._database.write() as connection:
            if job(connection, job_id).state == "cancelled":
                raise Conflict(f"job {job_id} was cancelled: hand its documents in again")
            query = select(_I.seq, _I.document_seq).join(DOCUMENT, _D.seq == _I.document_seq)
            rows = connection.execute(query.where(failed, _D.state == "failed")).all()
            for start in range(0, len(rows), _IN):
                part = rows[start : start + _IN]
                again = update(DOCUMENT).where(_D.seq.in_([row.document_seq for row in part]))
                connection.execute(again.values(state="waiting", attempts=0, error="", job=job_id, updated=_now()))
                items = update(JOB_ITEM).where(_I.seq.in_([row.seq for row in part]))
                connection.execute(items.values(state="waiting", error=""))
            _count(connection, job_id, Counter(failed=-len(rows)))
            return job(connection, job_id), len(rows)

    def skip(self, job_id: int, document: str) -> Job:
        """Take back one document that waits or is in hand, as `cancel` does.

        Raises:
            JobNotFound: there is none of this number.
            DocumentNotFound: it has no such document.
            Conflict: the document needs nothing more, or all of a collection is being reindexed.
        """
        with self._database.write() as connection:
            if job(connection, job_id).kind == "reindex":
                raise Conflict(
                    f"job {job_id} reindexes a collection as a whole: remove the document, or cancel the job"
                )
            item = connection.execute(select(JOB_ITEM).where(_I.job_id == job_id, _I.id == document)).first()
            if item is None:
                raise DocumentNotFound(f"job {job_id} has no document {document!r}", name=document)
            if item.state != "waiting":
                raise Conflict(f"the document {document!r} is {item.state}: there is nothing to skip")
            self.moments.count += 1
            this = _D.seq == item.document_seq
            # one in hand: its result is for a version that is no more
            held = update(DOCUMENT).where(this, _D.state == "working")
            connection.execute(held.values(state="waiting", version=_D.version + 1))
            _take_back(connection, this, only=None, error=_SKIPPED)
            return job(connection, job_id)

    def forget(self, job_id: int) -> None:
        """Forget an ended job; its documents stay.

        Raises:
            JobNotFound: there is none of this number.
            Conflict: some of its documents still wait.
        """
        with self._database.write() as connection:
            found = job(connection, job_id)
            if found.ended is None or found.waiting:
                raise Conflict(f"job {job_id} is {found.state}: cancel it first")
            connection.execute(delete(JOB).where(_J.id == job_id))

    def _switch(self, job_id: int, *, to: JobState, verb: str) -> Job:
        with self._database.write() as connection:
            found = job(connection, job_id)
            if found.state not in {"running", "paused"}:
                raise Conflict(f"job {job_id} is {found.state} and cannot be {verb}")
            self.moments.count += 1
            connection.execute(update(JOB).where(_J.id == job_id).values(state=to))
            _end(connection, [job_id])
            return job(connection, job_id)


# What the catalog does along with a document


def create(
    connection: Connection,
    collection: str,
    *,
    kind: JobKind,
    name: str,
    priority: int,
    still: bool,
    state: JobState = "running",
    origin: str = "",
    prune: bool = False,
    member: int | None = None,
) -> int:
    """Open a job without documents, and forget the oldest of those that ended; its number. More are `still` to come."""
    kept = select(_J.id).where(_J.ended.is_not(None)).order_by(_J.id.desc()).limit(KEPT - 1).subquery()
    ended = and_(_J.ended.is_not(None), _J.id.not_in(select(kept.c.id)))
    connection.execute(delete(JOB).where(ended, _J.total == _FINISHED))
    about = {"collection": collection, "kind": kind, "name": name, "priority": priority, "state": state}
    counts = dict.fromkeys(("total", *_COUNTS), 0)
    row = {"origin": origin, "open": int(still), "prune": int(prune), "error": "", "created": _now(), "ended": None}
    row["member"] = member
    return inserted(connection.execute(insert(JOB).values({**about, **counts, **row})))


def inserted(made: CursorResult[Any]) -> int:
    """The number that an inserted row got."""
    key = made.inserted_primary_key
    if key is None:
        raise TypeError("one row has to be inserted, with its values")
    return int(key[0])


def job(connection: Connection, job_id: int) -> Job:
    """One job. Raises JobNotFound."""
    row = connection.execute(select(JOB).where(_J.id == job_id)).first()
    if row is None:
        raise JobNotFound(f"there is no job {job_id}", name=str(job_id))
    return _as_job(row)


def running(connection: Connection) -> list[int]:
    """The jobs whose documents may be taken, in their order."""
    going = select(_J.id, _J.priority).where(_J.ended.is_(None), _J.state == "running", _J.total > _FINISHED)
    return [row.id for row in sorted(connection.execute(going), key=lambda row: (-row.priority, row.id))]


def runs(connection: Connection, job_id: int) -> bool:
    """Whether documents of the job are to be worked on."""
    return connection.execute(select(_J.state).where(_J.id == job_id)).scalar() in {"running", "done"}


def enter(connection: Connection, job_id: int, collection: str, documents: Sequence[Entered]) -> None:
    """Put documents of a collection into a job. One that is in it already and did not change stays as it is.

    Raises:
        JobNotFound: there is none of this number.
        Conflict: it was cancelled, or is of another collection.
    """
    found = job(connection, job_id)
    if found.collection != collection:
        raise Conflict(f"job {job_id} is of the collection {found.collection!r}")
    if found.state == "cancelled":
        raise Conflict(f"job {job_id} was cancelled and takes no more documents")
    known: dict[str, str] = {}
    for start in range(0, len(documents), _IN):
        ids = [each.id for each in documents[start : start + _IN]]
        rows = connection.execute(select(_I.id, _I.state).where(_I.job_id == job_id, _I.id.in_(ids)))
        known.update((row.id, row.state) for row in rows)
    counts: Counter[str] = Counter()
    for each in documents:
        before = known.get(each.id)
        if before is not None and each.state == "unchanged":
            continue
        values = {"document_seq": each.document_seq, "state": each.state, "error": each.error}
        if before is None:
            connection.execute(insert(JOB_ITEM).values(job_id=job_id, id=each.id, **values))
            counts["total"] += 1
        else:
            connection.execute(update(JOB_ITEM).where(_I.job_id == job_id, _I.id == each.id).values(**values))
            counts[before] -= 1
        counts[each.state] += 1
        known[each.id] = each.state
    _count(connection, job_id, counts)


def settle(connection: Connection, document_seq: int, state: ItemState, error: str = "") -> None:
    """The document that jobs wait for, if any does, needs nothing more."""
    _settle(connection, _I.document_seq == document_seq, state, error)


class Tally:
    """What jobs wait for no more, of many documents: each item is settled at once, and each job counted at the end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._counts: dict[int, Counter[str]] = {}

    def settle(self, document_seq: int, state: ItemState, error: str = "") -> None:
        """As `settle`."""
        for (job_id,) in self._connection.execute(_WAITING_FOR, {"of": document_seq}).all():
            self._counts.setdefault(job_id, Counter())[state] += 1
            self._connection.execute(_SETTLED, {"of": document_seq, "to": state, "why": error})

    def close(self) -> None:
        """Count."""
        for job_id, counts in self._counts.items():
            _count(self._connection, job_id, counts)
        self._counts = {}


def settle_all(connection: Connection, collection_ids: Sequence[int], collection: str, error: str) -> None:
    """The collection is leaving, with its successor: its jobs have nothing to do any more."""
    left = update(JOB).where(_J.ended.is_(None), _J.collection == collection)
    connection.execute(left.values(state="cancelled", open=0, ended=_now(), error=error))
    _settle(
        connection, _I.document_seq.in_(select(_D.seq).where(_D.collection_id.in_(collection_ids))), "skipped", error
    )


def _settle(connection: Connection, which: ColumnElement[bool], state: ItemState, error: str) -> None:
    waiting = and_(which, _WAITS)
    counts = Counter(connection.execute(select(_I.job_id).where(waiting)).scalars())
    if not counts:
        return
    connection.execute(update(JOB_ITEM).where(waiting).values(state=state, error=error))
    for job_id, number in counts.items():
        _count(connection, job_id, Counter({state: number}))


def _take_back(connection: Connection, which: ColumnElement[bool], *, only: int | None, error: str) -> None:
    """Out of the queue with the documents, and with what else waits of the job `only`, but for what is in hand."""
    waiting = and_(which, _D.state == literal_column("'waiting'"))
    connection.execute(select(_D.seq).where(waiting).with_for_update())  # once others have taken what they are taking
    theirs: ColumnElement[bool] = _I.document_seq.in_(select(_D.seq).where(waiting))
    if only is not None:
        worked_on = select(_D.seq).where(_D.taken.is_not(None), _D.state == "working")
        theirs = or_(theirs, and_(_I.job_id == only, _I.document_seq.not_in(worked_on)))
    _settle(connection, theirs, "skipped", error)
    untouched = and_(waiting, _D.taken.is_(None), _D.version == 1, _D.attempts == 0, _D.chunks == 0)
    connection.execute(delete(DOCUMENT).where(untouched))
    connection.execute(update(DOCUMENT).where(waiting, _D.chunks == 0).values(state="removing"))
    connection.execute(update(DOCUMENT).where(waiting).values(state="failed", error=error, updated=_now()))


def _count(connection: Connection, job_id: int, counts: Counter[str]) -> None:
    changes = {name: _J[name] + counts[name] for name in ("total", *_COUNTS) if counts[name]}
    if changes:
        connection.execute(update(JOB).where(_J.id == job_id).values(changes))
    again = update(JOB).where(_J.id == job_id, _J.state == "done", _J.total > _FINISHED)
    connection.execute(again.values(state="running", ended=None))
    _end(connection, [job_id])


def taken_back(connection: Connection, job_id: int | None, document_seq: int) -> bool:
    """Take back a document that waits again, where its job was cancelled meanwhile; whether it was."""
    if job_id is None:
        return False
    cancelled = connection.execute(select(_J.id).where(_J.id == job_id, _J.state == "cancelled")).first() is not None
    if cancelled:
        _take_back(connection, _D.seq == document_seq, only=None, error=_CANCELLED)
    return cancelled


def recover(connection: Connection) -> None:
    """At start, when nothing is in hand: a job that a crash left without any document is over, and what was in hand of
    one that was cancelled is taken back.
    """
    theirs = and_(_D.taken.is_(None), _D.job.in_(select(_J.id).where(_J.state == "cancelled")))
    _take_back(connection, theirs, only=None, error=_CANCELLED)
    _end(connection, select(_J.id).where(_J.ended.is_(None)))


def _abandon(connection: Connection, job_id: int) -> None:
    """The successor that the job builds is not wanted any more; its collection stays as it is."""
    built = and_(COLLECTION.c.job == job_id, COLLECTION.c.state == "building")
    numbers = connection.execute(select(COLLECTION.c.id).where(built)).scalars().all()
    connection.execute(update(COLLECTION).where(built).values(state="removing", successor_of=None))
    connection.execute(update(DOCUMENT).where(_D.collection_id.in_(numbers)).values(state="removing"))
    _settle(connection, _I.job_id == job_id, "skipped", _CANCELLED)


def end(connection: Connection, job_id: int) -> None:
    """Nothing more is to come: it is done where none of its documents waits."""
    _end(connection, [job_id])


def _end(connection: Connection, ids: Sequence[int] | Select[Any]) -> None:
    over = and_(_J.id.in_(ids), _J.state.in_(("running", "paused")), _J.open == 0, _J.total == _FINISHED)
    connection.execute(update(JOB).where(over).values(state="done", ended=_now()))


def _now() -> datetime:
    return datetime.now(UTC)


def _as_job(row: Row[Any]) -> Job:
    values = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's public name for a row by column
    del values["member"]
    values["open"], values["prune"] = bool(values["open"]), bool(values["prune"])
    return Job(**values)
