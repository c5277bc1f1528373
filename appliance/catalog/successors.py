"""What is to take a collection's place: the same documents, cut and embedded anew, in a collection that nobody sees.

    begin     a successor, its documents one for each that can be found now; a job of its own has them in the queue
    advance   bring it up to date with what was changed meanwhile; when nothing is left to do, let it take the place

A document of a successor has no source: it is made of the bytes of the one that it was begun from, its `original`.
"""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    delete,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    update,
)

from appliance.catalog import jobs
from appliance.catalog.jobs import Entered
from appliance.catalog.records import Chunking, Collection, Job, Reindexing
from appliance.catalog.rows import as_collection, found_collection
from appliance.catalog.tables import COLLECTION, DOCUMENT, JOB, JOB_ITEM, TEXT
from appliance.database import Transactions
from appliance.errors import Conflict, NotFound

Advance: TypeAlias = Literal["followed", "replaced", "held"]

_AT_ONCE: Final = 1000
"""Documents that are brought up to date in one transaction."""

_GONE: Final = "it was removed or renamed before its turn came"

_C, _D = COLLECTION.c, DOCUMENT.c
_OLD: Final = DOCUMENT.alias("original")
_O: Final = _OLD.c
_COPIED: Final = ("title", "metadata", "media_type", "size", "content_hash", "body_hash")
"""Of a document, what its successor's is made with."""

_COUNTED: Final = ("title", "metadata", "state", "error", "attempts", "chunks", "tokens", "truncated")
"""Of a successor's document, what the original takes over."""


_UNSETTLED: Final = ("waiting", "working", "removing")


def _searched(columns: Any) -> ColumnElement[bool]:
    """It can be found now: as it is, or as it was before a change that waits or failed."""
    return and_(columns.state != literal_column("'removing'"), or_(columns.state == "ready", columns.chunks > 0))


class Successors:
    """The successors in a migrated database. Each method is one transaction; blocking; any thread."""

    def __init__(self, database: Transactions) -> None:
        self._database = database

    def begin(
        self, name: str, *, model: str, space: str, dimensions: int, chunking: Chunking, priority: int = 0
    ) -> tuple[Job, Collection]:
        """Begin a successor: its job, and itself. Everything of the collection that can be found waits for it.

        Raises:
            CollectionNotFound: there is none of this name.
            Conflict: it has a successor already.
        """
        with self._database.write() as connection:
            old = found_collection(connection, name)
            if (other := _successor(connection, old)) is not None:
                raise Conflict(f"the collection {name!r} is being reindexed: cancel job {other.job} first")
            job = jobs.create(connection, name, kind="reindex", name=model, priority=priority, still=True)
            hidden = f"{name}#{job}"
            about = {"model": model, "space": space, "dimensions": dimensions, "chunking": asdict(chunking)}
            row = {"name": hidden, "stored_as": hidden, "state": "building", "successor_of": old.id, "job": job}
            connection.execute(insert(COLLECTION).values(**about, **row, created=_now()))
            new = found_collection(connection, hidden, hidden=True)
            number = _take_in(connection, old, new)
            connection.execute(update(JOB).where(JOB.c.id == job).values(total=number))
            return jobs.job(connection, job), new

    def of(self, collection: Collection) -> Reindexing | None:
        """How far the successor of a collection has come, if it has one."""
        with self._database.read() as connection:
            new = _successor(connection, collection)
            return None if new is None else _progress(connection, new)

    def all(self) -> list[Collection]:
        """Every successor, oldest first."""
        with self._database.read() as connection:
            return _every(connection)

    def due(self) -> list[Collection]:
        """Those of which no document waits, is in hand or on its way out."""
        with self._database.read() as connection:
            return [each for each in _every(connection) if not _busy(connection, each)]

    def advance(self, successor: Collection, *, keep: timedelta, without_failed: bool = False) -> Advance:
        """Take in what was changed since; or, where nothing was, have the successor take the place.

        What was done: `followed`, so that documents of it wait or are to be removed; `replaced`, so it is in place;
        `held`, which is nothing, for it has something to do, or cannot take in what can be found now: its job says so.

        Args:
            successor: as `all` gives it.
            keep: how long the store still keeps what was there before, for searches under way.
            without_failed: let nothing hold it back.
        """
        with self._database.write() as connection:
            pair = _pair(connection, successor)
            if pair is None:  # cancelled, removed, or in place already
                return "held"
            old, new = pair
            if _follow(connection, old, new):
                return "followed"
            if _busy(connection, new):
                return "held"
            failed = _progress(connection, new).failed
            if failed and not without_failed:
                told = (
                    f"{failed} of the documents that can be found now cannot be embedded anew, so nothing was changed "
                    "yet: try again, remove what fails, or finish without it"
                )
                connection.execute(update(JOB).where(JOB.c.id == new.job, JOB.c.error != told).values(error=told))
                return "held"
            _replace(connection, old, new, keep=keep)
            return "replaced"

    def named(self, name: str) -> Collection:
        """The successor of a collection.

        Raises:
            CollectionNotFound: there is no such collection.
            NotFound: it has no successor.
        """
        with self._database.read() as connection:
            new = _successor(connection, found_collection(connection, name))
        if new is None:
            raise NotFound(f"the collection {name!r} is not being reindexed", name=name)
        return new


def _every(connection: Connection) -> list[Collection]:
    query = select(COLLECTION).where(_C.state == "building").order_by(_C.id)
    return [as_collection(row) for row in connection.execute(query)]


def _busy(connection: Connection, successor: Collection) -> bool:
    """Two questions, each of which an index answers."""
    return any(
        connection.execute(select(_D.seq).where(_D.collection_id == successor.id, busy).limit(1)).first() is not None
        for busy in (_D.state.in_(_UNSETTLED), _D.taken.is_not(None))
    )


def _successor(connection: Connection, collection: Collection) -> Collection | None:
    query = select(COLLECTION).where(_C.successor_of == collection.id, _C.state == "building")
    row = connection.execute(query).first()
    return None if row is None else as_collection(row)


def _pair(connection: Connection, successor: Collection) -> tuple[Collection, Collection] | None:
    """What is to be replaced, and by what, as they are now."""
    new = connection.execute(select(COLLECTION).where(_C.id == successor.id, _C.state == "building")).first()
    old = connection.execute(select(COLLECTION).where(_C.id == successor.successor_of, _C.state == "ready")).first()
    return None if new is None or old is None else (as_collection(old), as_collection(new))


def _progress(connection: Connection, new: Collection) -> Reindexing:
    waiting = select(func.count()).select_from(DOCUMENT)
    waiting = waiting.where(_D.collection_id == new.id, _D.state.in_(("waiting", "working")))
    failed = (
        select(func.count())
        .select_from(DOCUMENT)
        .join(_OLD, _O.seq == _D.original)
        .where(_D.collection_id == new.id, _D.state == "failed", _O.state == "ready")
    )
    return Reindexing(new, connection.execute(waiting).scalar_one(), connection.execute(failed).scalar_one())


def _take_in(connection: Connection, old: Collection, new: Collection) -> int:
    """Every document that can be found; how many those are."""
    columns = {name: _D[name] for name in _COPIED}
    made = {"collection_id": literal(new.id), "id": _D.id, "original": _D.seq, "job": literal(new.job)}
    fresh = {name: literal(value) for name, value in _fresh(version=1).items() if name != "updated"}
    first = {"chunks": literal(0), "tokens": literal(0), "truncated": literal(0)}
    values = {**columns, **made, **fresh, **first, "created": _D.created, "updated": _D.updated}
    query = select(*values.values()).where(_D.collection_id == old.id, _searched(_D)).order_by(_D.seq)
    connection.execute(insert(DOCUMENT).from_select(list(values), query))
    items = select(literal(new.job), _D.id, _D.seq, literal("waiting"), literal(""))
    items = items.where(_D.collection_id == new.id).order_by(_D.seq)
    connection.execute(insert(JOB_ITEM).from_select(["job_id", "id", "document_seq", "state", "error"], items))
    mine = select(func.count()).select_from(DOCUMENT).where(_D.collection_id == new.id)
    return int(connection.execute(mine).scalar_one())


def _fresh(*, version: int) -> dict[str, object]:
    return {"version": version, "state": "waiting", "error": "", "attempts": 0, "updated": _now()}


def _follow(connection: Connection, old: Collection, new: Collection) -> bool:
    """Bring the successor's documents up to date; whether there was, or is, anything to do."""
    entered: list[Entered] = []
    here = _D.collection_id == new.id
    kept = and_(_O.seq == _D.original, _O.id == _D.id, _O.collection_id == old.id, _searched(_O))
    gone = select(_D.seq).where(here, _D.state != "removing", ~select(_O.seq).where(kept).exists())
    left = connection.execute(gone.limit(_AT_ONCE)).scalars().all()
    for seq in left:
        jobs.settle(connection, seq, "skipped", _GONE)
        # so that what has its place now, if anything has, is made anew
        connection.execute(update(DOCUMENT).where(_D.seq == seq).values(state="removing", original=None))
    pairs = select(_D.seq, _D.version, _OLD).join(_OLD, _O.seq == _D.original)
    changed = pairs.where(here, _D.state != "removing", _D.content_hash != _O.content_hash).limit(_AT_ONCE)
    for row in connection.execute(changed).all():
        seq, version = row[0], row[1]
        values = {name: row._mapping[_O[name]] for name in _COPIED}  # noqa: SLF001  # SQLAlchemy's public name
        jobs.settle(connection, seq, "skipped", "")
        again = update(DOCUMENT).where(_D.seq == seq)
        connection.execute(again.values(**values, **_fresh(version=version + 1)))
        connection.execute(delete(TEXT).where(TEXT.c.document_seq == seq))
        entered.append(Entered(row._mapping[_O.id], seq, "waiting"))  # noqa: SLF001  # same
    there = select(_D.seq).where(here, or_(_D.original == _O.seq, _D.id == _O.id))
    missing = select(_OLD).where(_O.collection_id == old.id, _searched(_O), ~there.exists()).order_by(_O.seq)
    for row in connection.execute(missing.limit(_AT_ONCE)).all():
        values = {name: row._mapping[_O[name]] for name in _COPIED}  # noqa: SLF001  # same
        named = {"collection_id": new.id, "id": row.id, "original": row.seq, "job": new.job, "created": row.created}
        counts = {"chunks": 0, "tokens": 0, "truncated": 0}
        made = insert(DOCUMENT).values(**values, **named, **counts, **_fresh(version=1))
        entered.append(Entered(row.id, jobs.inserted(connection.execute(made)), "waiting"))
    if entered and new.job is not None:
        jobs.enter(connection, new.job, new.known_as, entered)
    return bool(left or entered)


def _replace(connection: Connection, old: Collection, new: Collection, *, keep: timedelta) -> None:
    """Give the collection what its successor has: settings, documents' states and texts, and the place in the store.

    What is in hand was made for the old place: it settles to nothing, and waits again where the successor lacks it.
    """
    here = _D.collection_id == old.id
    connection.execute(
        update(DOCUMENT)
        .where(here, _D.taken.is_not(None))
        .values(version=_D.version + 1, state=case((_D.state == "working", "waiting"), else_=_D.state))
    )
    made = select(*(_O[name].label(f"new_{name}") for name in _COUNTED), _O.original.label("of"))
    made_of = made.where(_O.collection_id == new.id, _O.original.is_not(None)).subquery("made")
    waited = select(_D.seq, made_of.c.new_state, made_of.c.new_error).join(made_of, made_of.c.of == _D.seq)
    for seq, state, error in connection.execute(waited.where(_D.state.in_(("waiting", "working")))).all():
        jobs.settle(connection, seq, state, error)
    ours = select(made_of.c.of)
    connection.execute(delete(TEXT).where(TEXT.c.document_seq.in_(ours)))
    moved = select(_O.original).where(_O.seq == TEXT.c.document_seq).scalar_subquery()
    theirs = select(_O.seq).where(_O.collection_id == new.id)
    connection.execute(update(TEXT).where(TEXT.c.document_seq.in_(theirs)).values(document_seq=moved))
    taken = {_D[name]: made_of.c[f"new_{name}"] for name in _COUNTED}
    connection.execute(update(DOCUMENT).where(_D.seq == made_of.c.of).values({**taken, _D.moved_from: None}))
    connection.execute(delete(DOCUMENT).where(_D.collection_id == new.id))
    spare = f"{new.stored_as}~"
    about = {"model": new.model, "space": new.space, "dimensions": new.dimensions, "chunking": asdict(new.chunking)}
    leaving = {"state": "removing", "successor_of": None, "stored_as": old.stored_as, "kept_until": _now() + keep}
    for number, values in (
        (new.id, {"stored_as": spare}),
        (old.id, {**about, "stored_as": new.stored_as}),
        (new.id, leaving),
    ):
        connection.execute(update(COLLECTION).where(_C.id == number).values(**values))
    if new.job is not None:
        connection.execute(update(JOB).where(JOB.c.id == new.job).values(open=0, error=""))
        jobs.end(connection, new.job)


def _now() -> datetime:
    return datetime.now(UTC)
