"""Which collections and documents exist, how far each has come, and the queue of what is still to be indexed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
)

from appliance.catalog.records import (
    Chunking,
    Collection,
    Document,
    DocumentState,
    Failed,
    NewDocument,
    Outcome,
    Page,
    Put,
    Ready,
    Removals,
    Returned,
    Work,
    content_hash,
)
from appliance.catalog.tables import COLLECTION, DOCUMENT, SOURCE, TEXT
from appliance.database import Database
from appliance.errors import CollectionExists, CollectionNotFound, Conflict, DocumentNotFound, InvalidInput

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a collection may be called."""

_IN: Final = 500
"""Values of one IN."""

MAX_ID: Final = 512
"""Characters of a document's id."""

_C, _D = COLLECTION.c, DOCUMENT.c
_WAITING: Final = and_(_D.state == literal_column("'waiting'"), _D.taken.is_(None))
_LEAVING: Final = _D.state == literal_column("'removing'")
"""Written out, not bound: SQLite uses an index on some of the rows only where the query says which."""

_DOCUMENTS: Final = select(DOCUMENT, _C.name.label("collection")).join(COLLECTION, _C.id == _D.collection_id)


class Catalog:
    """The catalog in a migrated database. Each method is one transaction; blocking; any thread.

    A document's life: `waiting` → (take) → `working` → (settle) → `ready` or `failed`. A change puts it back to
    `waiting`, even while an older version is in hand; that version then settles to nothing. A removal has two steps, so
    that a power cut between them costs nothing: begin it here, remove from the store, forget it here. What is in hand
    is forgotten only after it was settled.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

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
            cut = asdict(chunking or Chunking())
            connection.execute(insert(COLLECTION).values(**row, state="ready", created=_now(), chunking=cut))
            return _collection(connection, name)

    def collections(self) -> list[Collection]:
        """Every collection, oldest first."""
        with self._database.read() as connection:
            query = select(COLLECTION).where(_C.state == "ready").order_by(_C.id)
            return [_as_collection(row) for row in connection.execute(query)]

    def collection(self, name: str) -> Collection:
        """One collection. Raises CollectionNotFound."""
        with self._database.read() as connection:
            return _collection(connection, name)

    def begin_removal(self, name: str) -> Collection:
        """Take nothing more into a collection and nothing more out of its queue; a no-op when begun already.

        Raises:
            CollectionNotFound: there is none of this name.
        """
        with self._database.write() as connection:
            found = _collection(connection, name, leaving=True)
            connection.execute(update(COLLECTION).where(_C.id == found.id).values(state="removing"))
            leaving = (_D.collection_id == found.id) & (_D.state != "removing")
            connection.execute(update(DOCUMENT).where(leaving).values(state="removing"))
            return _collection(connection, name, leaving=True)

    def forget_collection(self, name: str) -> None:
        """The last step of a removal.

        Raises:
            CollectionNotFound: there is none of this name.
            Conflict: its removal was not begun, or one of its documents is in hand.
        """
        with self._database.write() as connection:
            found = _collection(connection, name, leaving=True)
            if found.state != "removing":
                raise Conflict(f"the collection {name!r} is in use")
            if connection.execute(_in_hand(found.id)).first():
                raise Conflict(f"a document of the collection {name!r} is being worked on")
            connection.execute(delete(DOCUMENT).where(_D.collection_id == found.id))
            connection.execute(delete(COLLECTION).where(_C.id == found.id))

    # Documents

    def put_documents(self, collection: str, documents: Sequence[NewDocument]) -> list[Put]:
        """Queue what is new or changed, all of it or none; on disk when it returns.

        The same content again is `unchanged`, unless it failed before: then it is tried again, as `updated`.

        Raises:
            InvalidInput: an id of no or more than 512 characters; metadata that is not JSON.
            CollectionNotFound: there is none of this name.
        """
        hashes = [content_hash(document) for document in documents]
        if any(not 0 < len(document.id) <= MAX_ID for document in documents):
            raise InvalidInput(f"a document's id has 1 to {MAX_ID} characters", param="id")
        with self._database.write() as connection:
            found = _collection(connection, collection)
            return [_put(connection, found, new, digest) for new, digest in zip(documents, hashes, strict=True)]

    def document(self, collection: str, document_id: str) -> Document:
        """One document. Raises CollectionNotFound, DocumentNotFound."""
        with self._database.read() as connection:
            return _document(connection, _collection(connection, collection), document_id)

    def named(self, collection: str, ids: Sequence[str]) -> dict[str, Document]:
        """The documents of these ids, by id; those that do not exist are left out. CollectionNotFound."""
        with self._database.read() as connection:
            owner = _collection(connection, collection)
            rows = [
                row
                for start in range(0, len(ids), _IN)
                for row in connection.execute(
                    _DOCUMENTS.where(
                        _D.collection_id == owner.id, _D.id.in_(ids[start : start + _IN]), _D.state != "removing"
                    )
                )
            ]
        return {row.id: _as_document(row) for row in rows}

    def documents(
        self, collection: str, *, limit: int, after: int | None = None, state: DocumentState | None = None
    ) -> Page:
        """Documents in order of arrival, those after the place `after`, of one state or all. CollectionNotFound."""
        with self._database.read() as connection:
            owner = _collection(connection, collection)
            query = _DOCUMENTS.where(_D.collection_id == owner.id, _D.state != "removing")
            if after is not None:
                query = query.where(_D.seq > after)
            if state is not None:
                query = query.where(_D.state == state)
            rows = connection.execute(query.order_by(_D.seq).limit(limit + 1)).all()
        page = tuple(_as_document(row) for row in rows[:limit])
        return Page(documents=page, next=page[-1].seq if page and len(rows) > limit else None)

    def counts(self, collection: str) -> dict[DocumentState, int]:
        """How many documents of each state there are; states without any are left out. CollectionNotFound."""
        with self._database.read() as connection:
            owner = _collection(connection, collection)
            query = select(_D.state, func.count()).where(_D.collection_id == owner.id, _D.state != "removing")
            query = query.group_by(_D.state)
            return dict(connection.execute(query).all())

    def total(self) -> int:
        """How many documents there are, in all collections and states."""
        with self._database.read() as connection:
            return int(connection.execute(select(func.count()).select_from(DOCUMENT)).scalar_one())

    def text(self, collection: str, document_id: str) -> str | None:
        """The document's text; None until it is ready. Raises CollectionNotFound, DocumentNotFound."""
        with self._database.read() as connection:
            found = _document(connection, _collection(connection, collection), document_id)
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
            owner = _collection(connection, collection)
            found = _document(connection, owner, document_id, leaving=True)
            connection.execute(update(DOCUMENT).where(_D.seq == found.seq).values(state="removing"))
            return _document(connection, owner, document_id, leaving=True)

    def forget_document(self, collection: str, document_id: str) -> None:
        """The last step of a removal.

        Raises:
            CollectionNotFound, DocumentNotFound: there is none of this name.
            Conflict: its removal was not begun, or it is in hand.
        """
        with self._database.write() as connection:
            found = _document(connection, _collection(connection, collection), document_id, leaving=True)
            if found.state != "removing":
                raise Conflict(f"the document {document_id!r} is in use")
            if found.in_hand:
                raise Conflict(f"the document {document_id!r} is being worked on")
            connection.execute(delete(DOCUMENT).where(_D.seq == found.seq))

    # The queue

    def take(self, limit: int, *, max_bytes: int = 32 * 2**20, without: Sequence[int] = ()) -> list[Work]:
        """Take what waits, oldest first: at most `limit` documents, and no more bytes than `max_bytes` but for a first
        document that is larger; nothing of the collections `without`, by their `id`.
        """
        waiting = select(_D.seq, _D.size).where(_WAITING).order_by(_D.seq).limit(limit)
        if without:
            waiting = waiting.where(_D.collection_id.not_in(without))
        with self._database.read() as connection:  # the common answer needs no lock
            if connection.execute(waiting.limit(1)).first() is None:
                return []
        with self._database.write() as connection:
            chosen: list[int] = []
            total = 0
            for seq, size in connection.execute(waiting).all():
                total += size
                if chosen and total > max_bytes:
                    break
                chosen.append(seq)
            taken = update(DOCUMENT).where(_D.seq.in_(chosen))
            connection.execute(taken.values(state="working", taken=_D.version, attempts=_D.attempts + 1))
            owners = {row.id: _as_collection(row) for row in connection.execute(select(COLLECTION))}
            query = select(DOCUMENT, SOURCE.c.body).join(SOURCE, SOURCE.c.document_seq == _D.seq)
            rows = connection.execute(query.where(_D.seq.in_(chosen)).order_by(_D.seq)).all()
        return [_as_work(row, owners[row.collection_id]) for row in rows]

    def current(self, works: Sequence[Work]) -> list[bool]:
        """For each, whether the document is still at the version that was taken, so that settling it would count."""
        with self._database.read() as connection:
            return [connection.execute(select(_D.seq).where(_still(work))).first() is not None for work in works]

    def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """Put down what was taken, all in one transaction.

        For each: True when the document was still at the version that was taken, and now is what the outcome says.
        False when it was changed (then it waits again) or its removal has begun (then it can go on).
        """
        with self._database.write() as connection:
            return [_settle(connection, outcome) for outcome in outcomes]

    def recover(self) -> int:
        """At start, before anything is taken: what was in hand when the power went waits again; how many that were."""
        with self._database.write() as connection:
            held = update(DOCUMENT).where(_D.taken.is_not(None))
            connection.execute(held.where(_D.state != "working").values(taken=None))
            return connection.execute(held.values(state="waiting", taken=None)).rowcount

    def pending_removals(self) -> Removals:
        """Removals that were begun and can be finished now: nothing of them is in hand."""
        with self._database.read() as connection:
            leaving = select(COLLECTION).where(_C.state == "removing").order_by(_C.id)
            collections = [_as_collection(row) for row in connection.execute(leaving)]
            free = [found.name for found in collections if not connection.execute(_in_hand(found.id)).first()]
            query = (
                select(_C.name, _D.id)
                .join(COLLECTION, _C.id == _D.collection_id)
                .where(_LEAVING, _D.taken.is_(None), _C.state == "ready")
                .order_by(_D.seq)
            )
            documents = tuple((name, document) for name, document in connection.execute(query))
        return Removals(documents=documents, collections=tuple(free))


def _now() -> datetime:
    return datetime.now(UTC)


def _in_hand(collection_id: int) -> Select[Any]:
    return select(_D.seq).where(_D.collection_id == collection_id, _D.taken.is_not(None)).limit(1)


def _collection(connection: Connection, name: str, *, leaving: bool = False) -> Collection:
    """One on its way out is none, unless `leaving`."""
    row = connection.execute(select(COLLECTION).where(_C.name == name)).first()
    if row is None or (row.state == "removing" and not leaving):
        raise CollectionNotFound(f"there is no collection {name!r}", name=name)
    return _as_collection(row)


def _document(connection: Connection, collection: Collection, document_id: str, *, leaving: bool = False) -> Document:
    """One on its way out is none, unless `leaving`."""
    row = connection.execute(_DOCUMENTS.where(_D.collection_id == collection.id, _D.id == document_id)).first()
    if row is None or (row.state == "removing" and not leaving):
        raise DocumentNotFound(f"the collection {collection.name!r} has no document {document_id!r}", name=document_id)
    return _as_document(row)


def _put(connection: Connection, collection: Collection, new: NewDocument, digest: str) -> Put:
    this = (_D.collection_id == collection.id) & (_D.id == new.id)
    before = connection.execute(select(DOCUMENT).where(this)).first()
    if before is not None and before.content_hash == digest and before.state not in {"failed", "removing"}:
        return Put(document=_document(connection, collection, new.id), change="unchanged")
    now = _now()
    values: Mapping[str, object] = {
        "title": new.title,
        "metadata": dict(new.metadata),
        "media_type": new.media_type,
        "size": len(new.body),
        "content_hash": digest,
        "version": 1 if before is None else before.version + 1,
        "state": "waiting",
        "error": "",
        "attempts": 0,
        "updated": now,
    }
    first = {"created": now, "chunks": 0, "tokens": 0, "truncated": 0}
    if before is None:
        named = {"collection_id": collection.id, "id": new.id}
        made = connection.execute(insert(DOCUMENT).values({**named, **first, **values}))
        connection.execute(insert(SOURCE).values(document_seq=made.lastrowid, body=new.body))
        return Put(document=_document(connection, collection, new.id), change="created")
    back = before.state == "removing"  # the removal is done with: what it took from the store stays away
    connection.execute(update(DOCUMENT).where(_D.seq == before.seq).values({**(first if back else {}), **values}))
    connection.execute(update(SOURCE).where(SOURCE.c.document_seq == before.seq).values(body=new.body))
    connection.execute(delete(TEXT).where(TEXT.c.document_seq == before.seq))
    return Put(document=_document(connection, collection, new.id), change="created" if back else "updated")


def _still(work: Work) -> ColumnElement[bool]:
    return and_(_D.seq == work.seq, _D.taken == work.version, _D.version == work.version, _D.state == "working")


def _settle(connection: Connection, outcome: Outcome) -> bool:
    work = outcome.work
    match outcome:
        case Ready(chunks=chunks, tokens=tokens, truncated=truncated):
            values = {"state": "ready", "chunks": chunks, "tokens": tokens, "truncated": truncated, "error": ""}
            values |= {} if outcome.title is None else {"title": outcome.title}
            values |= {} if outcome.metadata is None else {"metadata": dict(outcome.metadata)}
        case Failed(error=error):
            values = {"state": "failed", "error": error}
        case Returned(counted=counted):
            values = {"state": "waiting", "attempts": work.attempts - (not counted)}
    now = update(DOCUMENT).where(_still(work)).values(**values, taken=None, updated=_now())
    if connection.execute(now).rowcount == 0:
        connection.execute(update(DOCUMENT).where(_D.seq == work.seq, _D.taken == work.version).values(taken=None))
        return False
    if isinstance(outcome, Ready) and outcome.text.encode() != work.body:
        connection.execute(insert(TEXT).values(document_seq=work.seq, text=outcome.text))
    return True


def _as_collection(row: Row[Any]) -> Collection:
    values = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's public name for a row by column
    return Collection(**values | {"chunking": Chunking(**values["chunking"])})


def _as_document(row: Row[Any]) -> Document:
    values = dict(row._mapping)  # noqa: SLF001  # same
    values["in_hand"] = values.pop("taken") is not None
    del values["collection_id"]
    return Document(**values)


def _as_work(row: Row[Any], collection: Collection) -> Work:
    return Work(
        collection=collection,
        seq=row.seq,
        id=row.id,
        version=row.version,
        attempts=row.attempts,
        title=row.title,
        metadata=row.metadata,
        media_type=row.media_type,
        body=row.body,
    )
