"""From rows to records."""

from typing import Any

from sqlalchemy import Connection, Row, select

from appliance.catalog.records import Chunking, Collection, Document, Work
from appliance.catalog.tables import COLLECTION
from appliance.errors import CollectionNotFound


def found_collection(connection: Connection, name: str, *, leaving: bool = False, hidden: bool = False) -> Collection:
    """One that is on its way out is none, unless `leaving`; a successor is none, unless `hidden`.

    Raises:
        CollectionNotFound: there is none of this name.
    """
    row = connection.execute(select(COLLECTION).where(COLLECTION.c.name == name)).first()
    found = {"ready": True, "removing": leaving, "building": hidden}
    if row is None or not found[row.state]:
        raise CollectionNotFound(f"there is no collection {name!r}", name=name)
    return as_collection(row)


def as_collection(row: Row[Any]) -> Collection:
    """A row of COLLECTION."""
    values = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's public name for a row by column
    del values["kept_until"]
    return Collection(**values | {"chunking": Chunking(**values["chunking"])})


def as_document(row: Row[Any]) -> Document:
    """A row of DOCUMENT with its collection's name."""
    values = dict(row._mapping)  # noqa: SLF001  # same
    values["in_hand"] = values.pop("taken") is not None
    for ours in ("collection_id", "job", "moved_from", "original", "taken_by", "body_hash"):
        del values[ours]
    return Document(**values)


def as_work(row: Row[Any], collection: Collection, *, moment: int) -> Work:
    """A row of DOCUMENT with the source's body, and whether the collection has the same bytes elsewhere."""
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
        job=row.job,
        twins=bool(row.twins),
        moment=moment,
    )
