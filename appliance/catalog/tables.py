"""The catalog's tables, as SQLModel sees them; the migrations are what makes them."""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    Column,
    Dialect,
    ForeignKey,
    Index,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlmodel import Field, SQLModel

from appliance.kept import given, kept


class Moment(TypeDecorator[datetime]):
    """A point in time, kept as ISO 8601 text in UTC: SQLite has no type for it, and text in one zone sorts."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:  # noqa: ARG002  # its signature
        """Tz-aware in, text out."""
        return value.astimezone(UTC).isoformat() if value else None

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  # its signature
        """Text in, tz-aware out."""
        return datetime.fromisoformat(value) if value else None


class Words(TypeDecorator[str]):
    """Text, in PostgreSQL such that it can have NUL as everywhere else; order stays as it is."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """In."""
        return kept(value) if value is not None and dialect.name == "postgresql" else value

    def process_result_value(self, value: Any | None, dialect: Dialect) -> str | None:
        """Out."""
        return given(value) if value is not None and dialect.name == "postgresql" else value


class CollectionRow(SQLModel, table=True):
    """A collection: what its documents were embedded with, and under which name the store has them.

    One that is to take the place of another is a row of its own: `successor_of` that one, built by `job`. What is
    removed may still be searched, and so stays in the store, until `kept_until`.
    """

    __tablename__ = "collection"
    __table_args__ = (
        Index("collection_stored_as", "stored_as", unique=True),
        {"sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(sa_column=Column(Text, nullable=False, unique=True))
    model: str = Field(sa_column=Column(Text, nullable=False))
    space: str = Field(sa_column=Column(Text, nullable=False))
    dimensions: int
    state: str = Field(sa_column=Column(Text, nullable=False))
    created: datetime = Field(sa_column=Column(Moment, nullable=False))
    chunking: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False, server_default="{}"))
    stored_as: str = Field(sa_column=Column(Text, nullable=False, server_default=""))
    successor_of: int | None
    job: int | None
    kept_until: datetime | None = Field(sa_column=Column(Moment))


class DocumentRow(SQLModel, table=True):
    """A document: what was put in, and how far it has come.

    `taken` is the version that is being worked on, if any, by the member `taken_by`; `job` the one it was put in by;
    `moved_from` the name that the store may still have it under; `original` the document whose source this one of a
    successor is made of.
    """

    __tablename__ = "document"
    __table_args__ = (
        UniqueConstraint("collection_id", "id"),
        Index("document_in_order", "collection_id"),
        Index("document_by_state", "collection_id", "state"),
        Index("document_by_body", "collection_id", "body_hash"),
        Index("document_waiting", "job", "seq", sqlite_where=text("state = 'waiting' AND taken IS NULL")),
        Index("document_in_hand", "collection_id", sqlite_where=text("taken IS NOT NULL")),
        Index("document_leaving", "seq", sqlite_where=text("state = 'removing'")),
        Index("document_moving", "seq", sqlite_where=text("moved_from IS NOT NULL")),
        Index(
            "document_of_original",
            "collection_id",
            "original",
            unique=True,
            sqlite_where=text("original IS NOT NULL"),
        ),
        {"sqlite_autoincrement": True},
    )

    seq: int | None = Field(default=None, primary_key=True)
    collection_id: int = Field(foreign_key="collection.id")
    id: str = Field(sa_column=Column(Words, nullable=False))
    title: str = Field(sa_column=Column(Words, nullable=False))
    meta: dict[str, Any] = Field(sa_column=Column("metadata", JSON, nullable=False))
    media_type: str = Field(sa_column=Column(Words, nullable=False))
    size: int
    content_hash: str = Field(sa_column=Column(Text, nullable=False))
    version: int
    taken: int | None
    taken_by: int | None
    state: str = Field(sa_column=Column(Text, nullable=False))
    error: str = Field(sa_column=Column(Words, nullable=False))
    attempts: int
    chunks: int
    tokens: int
    truncated: int
    created: datetime = Field(sa_column=Column(Moment, nullable=False))
    updated: datetime = Field(sa_column=Column(Moment, nullable=False))
    job: int | None
    moved_from: str | None = Field(sa_column=Column(Words))
    original: int | None
    body_hash: str = Field(sa_column=Column(Text, nullable=False, server_default=""))


def _of_document() -> Column[int]:
    return Column("document_seq", ForeignKey("document.seq", ondelete="CASCADE"), primary_key=True)


class SourceRow(SQLModel, table=True):
    """The bytes as they were handed in: the durable queue, and what a collection can be indexed from again."""

    __tablename__ = "source"

    document_seq: int = Field(sa_column=_of_document())
    body: bytes


class TextRow(SQLModel, table=True):
    """The text that was parsed from the bytes, where it is not those very bytes."""

    __tablename__ = "document_text"

    document_seq: int = Field(sa_column=_of_document())
    text: str = Field(sa_column=Column(Words, nullable=False))


class JobRow(SQLModel, table=True):
    """A job. Its documents are its items; those that are in none of the counts wait.

    `open`: more may still come, by the hand of `member`.
    """

    __tablename__ = "job"
    __table_args__ = (
        Index("job_going", "id", sqlite_where=text("ended IS NULL")),
        {"sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, primary_key=True)
    collection: str = Field(sa_column=Column(Text, nullable=False))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    name: str = Field(sa_column=Column(Words, nullable=False))
    origin: str = Field(sa_column=Column(Words, nullable=False))
    member: int | None
    state: str = Field(sa_column=Column(Text, nullable=False))
    open: int
    prune: int
    priority: int
    error: str = Field(sa_column=Column(Words, nullable=False))
    total: int
    ready: int
    failed: int
    refused: int
    skipped: int
    unchanged: int
    moved: int
    created: datetime = Field(sa_column=Column(Moment, nullable=False))
    ended: datetime | None = Field(sa_column=Column(Moment))


class JobItemRow(SQLModel, table=True):
    """A document of a job, by its id; what became of it stays when the document is gone or changed."""

    __tablename__ = "job_item"
    __table_args__ = (
        UniqueConstraint("job_id", "id"),
        Index("job_item_by_state", "job_id", "state"),
        Index("job_item_waiting", "document_seq", sqlite_where=text("state = 'waiting'")),
        {"sqlite_autoincrement": True},
    )

    seq: int | None = Field(default=None, primary_key=True)
    job_id: int = Field(sa_column=Column(ForeignKey("job.id", ondelete="CASCADE"), nullable=False))
    id: str = Field(sa_column=Column(Words, nullable=False))
    document_seq: int | None
    state: str = Field(sa_column=Column(Text, nullable=False))
    error: str = Field(sa_column=Column(Words, nullable=False))


def _table(name: str) -> Table:
    return SQLModel.metadata.tables[name]


COLLECTION: Final = _table("collection")
DOCUMENT: Final = _table("document")
SOURCE: Final = _table("source")
TEXT: Final = _table("document_text")
JOB: Final = _table("job")
JOB_ITEM: Final = _table("job_item")
