"""Which collections and documents exist, how far each has come, and the queue of what is still to be indexed."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from appliance.catalog import jobs
from appliance.catalog.jobs import Entered, JobLedger
from appliance.catalog.members import Alone, Membership
from appliance.catalog.records import (
    LARGE,
    MAX_ID,
    Chunking,
    Collection,
    Document,
    DocumentState,
    Failed,
    Move,
    NewDocument,
    Outcome,
    Page,
    Put,
    Queue,
    Ready,
    Refusal,
    Removals,
    Returned,
    Want,
    Work,
    content_hash,
    under_name,
)
from appliance.catalog.rows import as_collection, as_document, as_work, found_collection
from appliance.catalog.successors import Successors
from appliance.catalog.tables import COLLECTION, DOCUMENT, SOURCE, TEXT
from appliance.database import Transactions
from appliance.errors import CollectionExists, Conflict, DocumentNotFound, InvalidInput

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a collection may be called."""

_IN: Final = 500
"""Values of one IN."""

_C, _D = COLLECTION.c, DOCUMENT.c
_WAITING: Final = and_(_D.state == literal_column("'waiting'"), _D.taken.is_(None))
_LEAVING: Final = _D.state == literal_column("'removing'")
_MOVING: Final = _D.moved_from.is_not(None)
"""Written out, not bound: SQLite uses an index on some of the rows only where the query says which."""

_TWINS: Final = 3
"""Documents of the same bytes that are looked at."""

_OTHER: Final = DOCUMENT.alias("other")
_TWIN: Final = select(_OTHER.c.seq).where(
    _OTHER.c.collection_id == _D.collection_id,
    _OTHER.c.body_hash == _D.body_hash,
    _OTHER.c.body_hash != "",
    _OTHER.c.seq != _D.seq,
)

_FREE: Final = {"taken": None, "taken_by": None}
"""In nobody's hand."""

_HELD: Final = and_(_D.seq == bindparam("of"), _D.taken == bindparam("at"), _D.taken_by == bindparam("by"))
_PLACE: Final = select(_C.id).where(_C.id == _D.collection_id, _C.stored_as == bindparam("place")).exists()
_STILL: Final = and_(_HELD, _D.version == bindparam("at"), _D.state == literal_column("'working'"), _PLACE)
"""What was taken is at the version that was taken, in this hand, and its collection is stored where it was."""

_UNCHANGED: Final = select(_D.seq).where(_STILL)
_SETTLED: Final = update(DOCUMENT).where(_STILL)
_LATE: Final = (
    update(DOCUMENT).where(_HELD).values(state=case((_D.state == "working", "waiting"), else_=_D.state), **_FREE)
)
"""Made once: a statement takes longer to build than to run."""

_REPLACED: Final = "a newer version was handed in before its turn came"
_REMOVED: Final = "it was removed before its turn came"

_DOCUMENTS: Final = select(DOCUMENT, _C.name.label("collection")).join(COLLECTION, _C.id == _D.collection_id)


class Catalog:
    """The catalog in a migrated database. Each method is one transaction; blocking; any thread.

    Several appliances may work on one: each is a member, and what it takes is in its own hand.

    A document's life: `waiting` → (take) → `working` → (settle) → `ready` or `failed`. A change puts it back to
    `waiting`, even while an older version is in hand; that version then settles to nothing. A removal has two steps, so
    that a power cut between them costs nothing: begin it here, remove from the store, forget it here. What is in hand
    is forgotten only after it was settled.

    Attributes:
        jobs: which documents were handed in together.
        successors: what is to take the place of collections.
    """

    def __init__(self, database: Transactions, membership: Membership | None = None) -> None:
        self._database = database
        self._membership: Membership = membership or Alone()
        self.jobs = JobLedger(database, member=self._membership.id)
        self.successors = Successors(database)

    @property
    def shared(self) -> bool:
        """Other appliances may work on it, too."""
        return self._membership.shared

    def turn(self, *, alone: bool) -> AbstractContextManager[None]:
        """See Membership."""
        return self._membership.turn(alone=alone)

    # Collections

    def create_collection(
        self, name: str, *, model: str, space: str, dimensions: int, chunking: Chunking | None = None
    ) -> Collection:
        """Add a collection.

        Raises:
            InvalidInput: no name for a collection.
            CollectionExists: there is one of this name, or it is not fully removed yet.
        """
        if not NAME.fullmatch(name):
            raise InvalidInput(
                "a collection's name is 1 to 64 letters, digits, dots, dashes and underscores, "
                "and starts with a letter or digit",
                param="name",
            )
        with self._database.write() as connection:
            if connection.execute(select(_C.id).where(_C.name == name)).first():
                raise CollectionExists(f"the collection {name!r} exists already")
            row = {"name": name, "model": model, "space": space, "dimensions": dimensions}
            row["stored_as"] = _free_name(connection, name)
            cut = asdict(chunking or Chunking())
            connection.execute(insert(COLLECTION).values(**row, state="ready", created=_now(), chunking=cut))
            return found_collection(connection, name)

    def collections(self) -> list[Collection]:
        """Every collection, oldest first."""
        with self._database.read() as connection:
            query = select(COLLECTION).where(_C.state == "ready").order_by(_C.id)
            return [as_collection(row) for row in connection.execute(query)]

    def collection(self, name: str) -> Collection:
        """One collection. Raises CollectionNotFound."""
        with self._database.read() as connection:
            return found_collection(connection, name)

    def stored(self, stored_as: str) -> Collection | None:
        """The collection, or successor, that has this name in the store."""
        with self._database.read() as connection:
            row = connection.execute(select(COLLECTION).where(_C.stored_as == stored_as)).first()
        return None if row is None else as_collection(row)

    def begin_removal(self, name: str) -> Collection:
        """Take nothing more into a collection and nothing more out of its queue; a no-op when begun already.

        Raises:
            CollectionNotFound: there is none of this name.
        """
        with self._database.write() as connection:
            found = found_collection(connection, name, leaving=True)
            self.jobs.moments.count += 1
            leaving = or_(_C.id == found.id, _C.successor_of == found.id)
            numbers = connection.execute(select(_C.id).where(leaving)).scalars().all()
            values = {"state": "removing", "kept_until": None}
            connection.execute(update(COLLECTION).where(leaving).values(**values, successor_of=None))
            jobs.settle_all(connection, numbers, name, "its collection was removed")
            theirs = _D.collection_id.in_(numbers) & (_D.state != "removing")
            connection.execute(update(DOCUMENT).where(theirs).values(state="removing"))
            return found_collection(connection, name, leaving=True)

    def forget_collection(self, name: str) -> None:
        """The last step of a removal.

        Raises:
            CollectionNotFound: there is none of this name.
            Conflict: its removal was not begun, or one of its documents is in hand.
        """
        with self._database.write() as connection:
            found = found_collection(connection, name, leaving=True)
            if found.state != "removing":
                raise Conflict(f"the collection {name!r} is in use")
            if connection.execute(_in_hand(found.id)).first():
                raise Conflict(f"a document of the collection {name!r} is being worked on")
            connection.execute(delete(DOCUMENT).where(_D.collection_id == found.id))
            connection.execute(delete(COLLECTION).where(_C.id == found.id))

    # Documents

    def put_documents(
        self,
        collection: str,
        documents: Sequence[NewDocument],
        *,
        job: int | None = None,
        refused: Sequence[Refusal] = (),
        moved_from: Sequence[str] = (),
    ) -> list[Put]:
        """Queue what is new or changed, all of it or none; on disk when it returns.

        The same content again is `unchanged`, unless it failed before: then it is tried again, as `updated`.

        Args:
            collection: it exists.
            documents: in the order of the answer.
            job: the one they are put in by.
            refused: what else the job was to have.
            moved_from: ids that may be the documents' old ones. A ready document of such an id takes a new one where
                the content is the same: `moved`. Then the store has to be told: see `pending_moves`.

        Raises:
            InvalidInput: an id of no or more than 512 characters; metadata that is not JSON.
            CollectionNotFound: there is none of this name.
            JobNotFound: there is none of this number.
            Conflict: the job was cancelled, or is of another collection.
        """
        hashes = [content_hash(document) for document in documents]
        if any(not 0 < len(document.id) <= MAX_ID for document in documents):
            raise InvalidInput(f"a document's id has 1 to {MAX_ID} characters", param="id")
        with self._database.write() as connection:
            found = found_collection(connection, collection)
            puts = []
            for new, digest in zip(documents, hashes, strict=True):
                moved = _move(connection, found, new, digest, moved_from) if moved_from else None
                puts.append(moved or _put(connection, found, new, digest, job))
            if any(put.change == "updated" for put in puts):
                self.jobs.moments.count += 1
            if job is not None:
                entered = [_entered(put) for put in puts]
                entered += [Entered(each.id[:MAX_ID], None, "refused", each.error) for each in refused]
                jobs.enter(connection, job, found.name, entered)
            return puts

    def enter(self, collection: str, job: int, *, same: Sequence[str] = (), refused: Sequence[Refusal] = ()) -> None:
        """Put documents that are here already, and others that will never be, into a job. Raises as `put_documents`."""
        with self._database.write() as connection:
            owner = found_collection(connection, collection)
            entered = [Entered(each.id[:MAX_ID], None, "refused", each.error) for each in refused]
            for start in range(0, len(same), _IN):
                part = _DOCUMENTS.where(_D.collection_id == owner.id, _D.id.in_(same[start : start + _IN]))
                rows = connection.execute(part).all()
                entered += [_entered(Put(as_document(row), "unchanged")) for row in rows]
            jobs.enter(connection, job, owner.name, entered)

    def pending_moves(self) -> list[Move]:
        """Documents whose new name the store may not know yet."""
        query = select(_C.name, _D.moved_from, _D.id, _C.stored_as, _D.title, _D.metadata)
        query = query.join(COLLECTION, _C.id == _D.collection_id).where(_MOVING, _C.state == "ready")
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(_D.seq)).all()
        return [Move(*row[:5], source=row.metadata.get("source")) for row in rows]

    def end_moves(self, moves: Sequence[Move]) -> None:
        """The store has the documents under their new names."""
        with self._database.write() as connection:
            for move in moves:
                owner = select(_C.id).where(_C.name == move.collection).scalar_subquery()
                there = (_D.collection_id == owner) & (_D.id == move.new) & (_D.moved_from == move.old)
                connection.execute(update(DOCUMENT).where(there).values(moved_from=None))

    def document(self, collection: str, document_id: str) -> Document:
        """One document. Raises CollectionNotFound, DocumentNotFound."""
        with self._database.read() as connection:
            return _document(connection, found_collection(connection, collection), document_id)

    def named(self, collection: str, ids: Sequence[str]) -> dict[str, Document]:
        """The documents of these ids, by id; those that do not exist are left out. CollectionNotFound."""
        with self._database.read() as connection:
            owner = found_collection(connection, collection)
            rows = [
                row
                for start in range(0, len(ids), _IN)
                for row in connection.execute(
                    _DOCUMENTS.where(
                        _D.collection_id == owner.id, _D.id.in_(ids[start : start + _IN]), _D.state != "removing"
                    )
                )
            ]
        return {row.id: as_document(row) for row in rows}

    def sizes(self, collection: str, prefix: str) -> dict[str, int]:
        """Bytes of every document whose id begins with `prefix`, by id. CollectionNotFound."""
        with self._database.read() as connection:
            owner = found_collection(connection, collection)
            query = select(_D.id, _D.size).where(
                _D.collection_id == owner.id, _D.id >= prefix, _D.id < _after(prefix), _D.state != "removing"
            )
            return dict(connection.execute(query).all())

    def held(self, collection: str, bodies: Mapping[str, bytes], *, job: int | None = None) -> set[str]:
        """Ids of the documents that came as these very bytes and did not fail, or failed in this job.
        CollectionNotFound.
        """
        good = _D.state.in_(("waiting", "working", "ready"))
        kept = good if job is None else or_(good, and_(_D.state == "failed", _D.job == job))
        same: set[str] = set()
        ids = list(bodies)
        with self._database.read() as connection:
            owner = found_collection(connection, collection)
            query = select(_D.id, SOURCE.c.body).join(SOURCE, SOURCE.c.document_seq == _D.seq)
            query = query.where(_D.collection_id == owner.id, kept)
            for start in range(0, len(ids), _IN):
                part = ids[start : start + _IN]
                rows = connection.execute(
                    query.where(_D.id.in_(part), _D.size.in_({len(bodies[each]) for each in part}))
                )
                same.update(row.id for row in rows if row.body == bodies[row.id])
        return same

    def documents(
        self,
        collection: str,
        *,
        limit: int,
        after: int | None = None,
        state: DocumentState | None = None,
        prefix: str = "",
    ) -> Page:
        """Documents in order of arrival, those after the place `after`, of one state or all, with ids that begin with
        `prefix`. CollectionNotFound.
        """
        with self._database.read() as connection:
            owner = found_collection(connection, collection)
            query = _DOCUMENTS.where(_D.collection_id == owner.id, _D.state != "removing")
            if after is not None:
                query = query.where(_D.seq > after)
            if state is not None:
                query = query.where(_D.state == state)
            if prefix:
                query = query.where(_D.id >= prefix, _D.id < _after(prefix))
            rows = connection.execute(query.order_by(_D.seq).limit(limit + 1)).all()
        page = tuple(as_document(row) for row in rows[:limit])
        return Page(documents=page, next=page[-1].seq if page and len(rows) > limit else None)

    def counts(self, collection: str) -> dict[DocumentState, int]:
        """How many documents of each state there are; states without any are left out. CollectionNotFound."""
        with self._database.read() as connection:
            owner = found_collection(connection, collection)
            query = select(_D.state, func.count()).where(_D.collection_id == owner.id, _D.state != "removing")
            query = query.group_by(_D.state)
            return dict(connection.execute(query).all())

    def total(self) -> int:
        """How many documents there are, in all collections and states."""
        with self._database.read() as connection:
            own = select(func.count()).select_from(DOCUMENT).where(_D.original.is_(None))
            return int(connection.execute(own).scalar_one())

    def text(self, collection: str, document_id: str) -> str | None:
        """The document's text; None until it is ready. Raises CollectionNotFound, DocumentNotFound."""
        with self._database.read() as connection:
            found = _document(connection, found_collection(connection, collection), document_id)
            if found.state != "ready":
                return None
            parsed = connection.execute(select(TEXT.c.text).where(TEXT.c.document_seq == found.seq)).scalar()
            if parsed is not None:
                return str(parsed)
            body = connection.execute(select(SOURCE.c.body).where(SOURCE.c.document_seq == found.seq)).scalar_one()
        return str(body, "utf-8")

    def begin_document_removal(self, collection: str, document_id: str) -> Document:
        """Take a document out of the queue for good; a no-op when begun already.

        When the result is `in_hand`, whoever has it must settle it before it can be removed from the store and
        forgotten.

        Raises:
            CollectionNotFound, DocumentNotFound: there is none of this name.
        """
        with self._database.write() as connection:
            owner = found_collection(connection, collection)
            found = _document(connection, owner, document_id, leaving=True)
            jobs.settle(connection, found.seq, "skipped", _REMOVED)
            connection.execute(update(DOCUMENT).where(_D.seq == found.seq).values(state="removing"))
            self.jobs.moments.count += 1
            return _document(connection, owner, document_id, leaving=True)

    def forget_document(self, collection: str, document_id: str) -> None:
        """The last step of a removal.

        Raises:
            CollectionNotFound, DocumentNotFound: there is none of this name.
            Conflict: its removal was not begun, or it is in hand.
        """
        with self._database.write() as connection:
            owner = found_collection(connection, collection, hidden=True)
            found = _document(connection, owner, document_id, leaving=True)
            if found.state != "removing":
                raise Conflict(f"the document {document_id!r} is in use")
            if found.in_hand:
                raise Conflict(f"the document {document_id!r} is being worked on")
            connection.execute(delete(DOCUMENT).where(_D.seq == found.seq))

    # The queue

    def take(self, limit: int, *, max_bytes: int = 32 * 2**20, without: Sequence[int] = ()) -> list[Work]:
        """As `take_each`, of all queues."""
        return self.take_each([Want(limit, max_bytes)], without=without)

    def take_each(self, wants: Sequence[Want], *, without: Sequence[int] = ()) -> list[Work]:
        """Take what waits, as much of each queue as is wanted: first what has no job, then by the jobs' priority, of
        each the oldest first. No more bytes than wanted but for a first document that is larger; nothing of the
        collections `without`, by their `id`, and nothing of a job that is paused.
        """
        with self._database.read() as connection:  # the common answer needs no lock
            owners = jobs.running(connection)
            there = [each for each in wants if _waiting(connection, 1, owners, without, each.queue)]
        if not there:
            return []
        moment = self.jobs.moments.count
        with self._database.claim() as connection:
            chosen: list[int] = []
            owners = jobs.running(connection)
            for want in there:
                total = 0
                for seq, size in _waiting(connection, want.documents, owners, without, want.queue, lock=True):
                    if total and total + size > want.max_bytes:
                        break
                    total += size
                    chosen.append(seq)
            mine = {"state": "working", "taken": _D.version, "taken_by": self._membership.id}
            taken = update(DOCUMENT).where(_D.seq.in_(chosen))
            connection.execute(taken.values(**mine, attempts=_D.attempts + 1))
            owners_of = {row.id: as_collection(row) for row in connection.execute(select(COLLECTION))}
            source = SOURCE.c.document_seq == func.coalesce(_D.original, _D.seq)
            query = select(DOCUMENT, SOURCE.c.body, _TWIN.exists().label("twins")).join(SOURCE, source)
            rows = {row.seq: row for row in connection.execute(query.where(_D.seq.in_(chosen)))}
        if len(rows) < len(chosen):
            self._give_up(set(chosen) - set(rows))
        return [as_work(rows[seq], owners_of[rows[seq].collection_id], moment=moment) for seq in chosen if seq in rows]

    def _give_up(self, taken: Iterable[int]) -> None:
        """What they were to be made of went away."""
        with self._database.write() as connection:
            for seq in taken:
                jobs.settle(connection, seq, "skipped", _REMOVED)
                connection.execute(update(DOCUMENT).where(_D.seq == seq).values(state="removing", **_FREE))

    def current(self, works: Sequence[Work]) -> list[bool]:
        """For each, whether the document is still at the version that was taken, so that settling it would count."""
        with self._database.read() as connection:
            return [self._is_still(connection, work) for work in works]

    def alike(self, work: Work) -> list[tuple[str, int]]:
        """Documents of its collection of which the store may have the chunks that this one will have, and how many of
        them were cut short: itself, as it was before its last change, unless it is an image; a few of the same bytes.
        """
        changed = work.version > 1 and not work.media_type.startswith("image/")
        if not changed and not work.twins:
            return []
        same = select(_D.id, _D.truncated).where(_D.collection_id == work.collection.id)
        with self._database.read() as connection:
            found = connection.execute(same.where(_D.seq == work.seq)).all() if changed else []
            mine = select(_D.body_hash).where(_D.seq == work.seq).scalar_subquery()
            twins = same.where(_D.body_hash == mine, _D.seq != work.seq, _D.state == "ready")
            found = [*found, *connection.execute(twins.where(_D.media_type == work.media_type).limit(_TWINS))]
        return [(row.id, row.truncated) for row in found]

    def goes_on(self, work: Work) -> bool:
        """Whether a document in hand is still to be worked on: it did not change, and its job was not paused or
        cancelled. Of a catalog of one's own, nothing is looked up while nothing of the kind has happened.
        """
        if not self.shared and work.moment == self.jobs.moments.count:
            return True
        with self._database.read() as connection:
            return self._is_still(connection, work) and (work.job is None or jobs.runs(connection, work.job))

    def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """Put down what was taken, all in one transaction.

        For each: True when the document was still at the version that was taken, and now is what the outcome says.
        False when it was changed (then it waits again) or its removal has begun (then it can go on), be it because its
        job was cancelled.
        """
        with self._database.write() as connection:
            tally = jobs.Tally(connection)
            settled = [self._settle(connection, outcome, tally) for outcome in outcomes]
            tally.close()
            return settled

    def _is_still(self, connection: Connection, work: Work) -> bool:
        return connection.execute(_UNCHANGED, self._named(work)).first() is not None

    def _named(self, work: Work) -> dict[str, object]:
        place = work.collection.stored_as
        return {"of": work.seq, "at": work.version, "by": self._membership.id, "place": place}

    def _settle(self, connection: Connection, outcome: Outcome, tally: jobs.Tally) -> bool:
        work = outcome.work
        now = _SETTLED.values(**_settled(outcome), **_FREE, updated=_now())
        if connection.execute(now, self._named(work)).rowcount == 0:
            connection.execute(_LATE, self._named(work))
            return False
        match outcome:
            case Ready(text=text):
                tally.settle(work.seq, "ready")
                if text.encode() != work.body:
                    connection.execute(insert(TEXT).values(document_seq=work.seq, text=text))
            case Failed(error=error):
                tally.settle(work.seq, "failed", error)
            case Returned():
                tally.close()
                return not jobs.taken_back(connection, work.job, work.seq)
        return True

    def recover(self) -> int:
        """At start, before anything is taken: what this appliance had in hand when the power went waits again; how many
        that were.
        """
        with self._database.write() as connection:
            return self._take_up(connection, or_(_D.taken_by == self._membership.id, _D.taken_by.is_(None)))

    def check(self) -> None:
        """Of a shared catalog: be there still, and for the others to see. Raises StoreUnavailable."""
        self._membership.check()

    def left_behind(self) -> bool:
        """Whether others have something in hand who are gone."""
        with self._database.read() as connection:
            return bool(self._gone(connection))

    def take_up(self) -> int:
        """What others had in hand who are gone waits again; how many documents that were."""
        with self._database.write() as connection:
            gone = self._gone(connection)
            return self._take_up(connection, _D.taken_by.in_(gone)) if gone else 0

    def leave(self) -> None:
        """Work on it no more: what is in hand waits again, here or elsewhere."""
        self._membership.leave()

    def _gone(self, connection: Connection) -> list[int]:
        held = select(_D.taken_by).where(_D.taken.is_not(None), _D.taken_by != self._membership.id).distinct()
        return self._membership.gone(connection, list(connection.execute(held).scalars()))

    def _take_up(self, connection: Connection, whose: ColumnElement[bool]) -> int:
        held = update(DOCUMENT).where(_D.taken.is_not(None), whose)
        connection.execute(held.where(_D.state != "working").values(**_FREE))
        waiting = connection.execute(held.values(state="waiting", **_FREE)).rowcount
        jobs.recover(connection)
        return waiting

    def pending_removals(self) -> Removals:
        """Removals that were begun and can be finished now: nothing of them is in hand."""
        with self._database.read() as connection:
            now, kept, free = _now(), [], []
            for row in connection.execute(select(COLLECTION).where(_C.state == "removing").order_by(_C.id)).all():
                if row.kept_until is not None and row.kept_until > now:
                    kept.append(row.kept_until)
                elif not connection.execute(_in_hand(row.id)).first():
                    free.append(row)
            query = (
                select(_C.name, _D.id, _C.stored_as)
                .join(COLLECTION, _C.id == _D.collection_id)
                .where(_LEAVING, _D.taken.is_(None), _C.state.in_(("ready", "building")))
                .order_by(_D.seq)
            )
            documents = connection.execute(query).all()
        return Removals(
            documents=tuple((row.name, row.id) for row in documents),
            collections=tuple(row.name for row in free),
            stored_as={row.name: row.stored_as for row in (*documents, *free)},
            until=min(kept, default=None),
        )


def _now() -> datetime:
    return datetime.now(UTC)


def _in_hand(collection_id: int) -> Select[Any]:
    return select(_D.seq).where(_D.collection_id == collection_id, _D.taken.is_not(None)).limit(1)


def _free_name(connection: Connection, name: str) -> str:
    """What the store can know the collection by: its own name, unless what was there before still has it."""
    stored = name
    number = 0
    while connection.execute(select(_C.id).where(_C.stored_as == stored)).first():
        number += 1
        stored = f"{name}~{number}"
    return stored


def _document(connection: Connection, collection: Collection, document_id: str, *, leaving: bool = False) -> Document:
    """One on its way out is none, unless `leaving`."""
    row = connection.execute(_DOCUMENTS.where(_D.collection_id == collection.id, _D.id == document_id)).first()
    if row is None or (row.state == "removing" and not leaving):
        raise DocumentNotFound(f"the collection {collection.name!r} has no document {document_id!r}", name=document_id)
    return as_document(row)


def _waiting(
    connection: Connection,
    limit: int,
    running: Sequence[int],
    without: Sequence[int],
    queue: Queue | None,
    *,
    lock: bool = False,
) -> list[tuple[int, int]]:
    """Place and size of what is to be taken next; locked, what others are taking is passed over."""
    found: list[tuple[int, int]] = []
    for job in {"single": [None], "jobs": running}.get(queue or "", [None, *running]):
        query = select(_D.seq, _D.size).where(_WAITING, _D.job.is_(None) if job is None else _D.job == job)
        if queue is not None:
            query = query.where(_D.size > LARGE if queue == "large" else _D.size <= LARGE)
        if without:
            query = query.where(_D.collection_id.not_in(without))
        query = query.order_by(_D.seq).limit(limit - len(found))
        rows = connection.execute(query.with_for_update(skip_locked=True) if lock else query)
        found += [(seq, size) for seq, size in rows]
        if len(found) == limit:
            break
    return found


def _after(prefix: str) -> str:
    """What is greater than all that begins so, as SQLite compares text: by its bytes in UTF-8."""
    return prefix + "\U0010ffff"


def _entered(put: Put) -> Entered:
    document = put.document
    if put.change == "moved":
        return Entered(document.id, document.seq, "moved")
    if document.state in {"waiting", "working"}:
        return Entered(document.id, document.seq, "waiting")
    return Entered(document.id, document.seq, "unchanged")


def _move(
    connection: Connection, collection: Collection, new: NewDocument, digest: str, candidates: Sequence[str]
) -> Put | None:
    """Give a ready document of this content, one of the candidates, the name; None where there is none, or the name is
    taken, be it in the store only. What it is called for its file's name alone, it is called for the new one.
    """
    here = _D.collection_id == collection.id
    for taken in (
        select(_D.seq).where(here, _D.id == new.id),
        select(_D.seq).where(_MOVING, here, _D.moved_from == new.id),
    ):
        if connection.execute(taken).first() is not None:
            return None
    fit = here & (_D.size == len(new.body)) & (_D.state == "ready") & _D.taken.is_(None) & _D.moved_from.is_(None)
    digests = {PurePosixPath(new.id).name: digest}
    for start in range(0, len(candidates), _IN):
        query = select(_D.seq, _D.id, _D.content_hash, _D.title, _D.metadata)
        for row in connection.execute(query.where(fit, _D.id.in_(candidates[start : start + _IN])).order_by(_D.seq)):
            name = PurePosixPath(row.id).name
            if name not in digests:  # an image is embedded with its title
                digests[name] = "" if new.media_type.startswith("image/") else content_hash(under_name(new, row.id))
            if row.content_hash == digests[name]:
                values = {"id": new.id, "moved_from": row.id, "content_hash": digest, "updated": _now()}
                called = _called_anew(row.id, row.title, row.metadata, new.id)
                connection.execute(update(DOCUMENT).where(_D.seq == row.seq).values(**values, **called))
                return Put(document=_document(connection, collection, new.id), change="moved")
    return None


def _called_anew(old: str, title: str, metadata: Mapping[str, object], new: str) -> dict[str, object]:
    before, now = PurePosixPath(old).name, PurePosixPath(new).name
    source = {"source": now} if metadata.get("source") == before else {}
    return {"title": now if title == before else title, "metadata": {**metadata, **source}}


def _put(connection: Connection, collection: Collection, new: NewDocument, digest: str, job: int | None) -> Put:
    this = (_D.collection_id == collection.id) & (_D.id == new.id)
    before = connection.execute(select(DOCUMENT).where(this)).first()
    if before is not None and before.content_hash == digest and before.state not in {"failed", "removing"}:
        return Put(document=_document(connection, collection, new.id), change="unchanged")
    now = _now()
    values: Mapping[str, object] = {
        "title": new.title,
        "metadata": new.described,
        "media_type": new.media_type,
        "size": len(new.body),
        "content_hash": digest,
        "body_hash": sha256(new.body).hexdigest(),
        "version": 1 if before is None else before.version + 1,
        "state": "waiting",
        "error": "",
        "attempts": 0,
        "updated": now,
        "job": job,
    }
    first = {"created": now, "chunks": 0, "tokens": 0, "truncated": 0}
    if before is None:
        named = {"collection_id": collection.id, "id": new.id}
        made = connection.execute(insert(DOCUMENT).values({**named, **first, **values}))
        connection.execute(insert(SOURCE).values(document_seq=jobs.inserted(made), body=new.body))
        return Put(document=_document(connection, collection, new.id), change="created")
    jobs.settle(connection, before.seq, "skipped", _REPLACED)
    back = before.state == "removing"  # the removal is done with: what it took from the store stays away
    connection.execute(update(DOCUMENT).where(_D.seq == before.seq).values({**(first if back else {}), **values}))
    connection.execute(update(SOURCE).where(SOURCE.c.document_seq == before.seq).values(body=new.body))
    connection.execute(delete(TEXT).where(TEXT.c.document_seq == before.seq))
    return Put(document=_document(connection, collection, new.id), change="created" if back else "updated")


def _settled(outcome: Outcome) -> dict[str, object]:
    match outcome:
        case Ready(chunks=chunks, tokens=tokens, truncated=truncated):
            values = {"state": "ready", "chunks": chunks, "tokens": tokens, "truncated": truncated, "error": ""}
            values |= {} if outcome.title is None else {"title": outcome.title}
            values |= {} if outcome.metadata is None else {"metadata": dict(outcome.metadata)}
            return values
        case Failed(error=error):
            return {"state": "failed", "error": error}
        case Returned(counted=counted):
            return {"state": "waiting", "attempts": outcome.work.attempts - (not counted)}
