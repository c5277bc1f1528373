"""What goes into the catalog and comes out of it: plain frozen records, never rows."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import PurePosixPath
from typing import Final, Literal, TypeAlias

from appliance.errors import InvalidInput

CollectionState: TypeAlias = Literal["ready", "building", "removing"]
DocumentState: TypeAlias = Literal["waiting", "working", "ready", "failed", "removing"]
Change: TypeAlias = Literal["created", "updated", "unchanged", "moved"]
JobState: TypeAlias = Literal["preparing", "running", "paused", "done", "cancelled"]
JobKind: TypeAlias = Literal["documents", "archive", "folder", "watched", "reindex"]
ItemState: TypeAlias = Literal["waiting", "ready", "failed", "refused", "skipped", "unchanged", "moved"]
Queue: TypeAlias = Literal["single", "jobs", "large"]
Strategy: TypeAlias = Literal["structure", "sentences", "fixed", "code"]

MAX_ID: Final = 512
"""Characters of a document's id."""

BELOW: Final = frozenset({"chunks", "similar"})
"""What an address may have behind that of a document: `/documents/{id}/chunks`."""


LARGE: Final = 2**20
"""Bytes of a document that is more than most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunking:
    """How the documents of a collection are cut; kept with it until it is reindexed. What is None follows the settings.

    Attributes:
        strategy: where a text is cut, see `ingest.chunk.chunked`.
        tokens: of a chunk at most, by the collection's model; 0 is the usual size.
        overlap: tokens repeated between neighbours.
        header: title, section and the columns of a table are embedded in front of each chunk.
    """

    strategy: Strategy = "structure"
    tokens: int | None = None
    overlap: int | None = None
    header: bool = True


@dataclass(frozen=True, slots=True)
class Collection:
    """A set of documents cut and embedded alike: by `model`, in `space`, with vectors of `dimensions`.

    Attributes:
        state: `building` while it is to take the place of another one.
        stored_as: its name in the store.
        successor_of: the `id` of the one whose place it is to take; None of all others.
        job: the one that builds it.
    """

    id: int
    name: str
    model: str
    space: str
    dimensions: int
    state: CollectionState
    created: datetime
    chunking: Chunking
    stored_as: str
    successor_of: int | None = None
    job: int | None = None

    @property
    def known_as(self) -> str:
        """The name that callers know it, or the one whose place it is to take, by."""
        return self.name.partition("#")[0]


@dataclass(frozen=True, slots=True)
class NewDocument:
    """What a caller hands in. `body` holds the bytes as they came, of `media_type`.

    Attributes:
        source: name of its file, which the metadata gets unless it has a `source`. No part of what is compared: with it
            or without, the document is unchanged.
    """

    id: str
    body: bytes
    media_type: str = "text/plain"
    title: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    source: str = ""

    @property
    def described(self) -> dict[str, object]:
        """The metadata, with the source."""
        return {**({"source": self.source} if self.source else {}), **self.metadata}


@dataclass(frozen=True, slots=True)
class Document:
    """A document and how far it has come.

    Attributes:
        seq: place in the order of arrival; never used twice.
        size: bytes handed in.
        version: 1, and one more with each change.
        in_hand: someone has taken it and not settled it yet.
        error: why it failed; empty otherwise.
        attempts: how often this version was taken.
        chunks, tokens, truncated: of the version that is ready: chunks, their tokens, and how many chunks were cut.
    """

    seq: int
    collection: str
    id: str
    title: str
    metadata: Mapping[str, object]
    media_type: str
    size: int
    content_hash: str
    version: int
    in_hand: bool
    state: DocumentState
    error: str
    attempts: int
    chunks: int
    tokens: int
    truncated: int
    created: datetime
    updated: datetime

    @property
    def hopeless(self) -> bool:
        """It failed for what it is: what fails for the engine's sake is tried more than once."""
        return self.state == "failed" and self.attempts == 1


@dataclass(frozen=True, slots=True)
class Put:
    """What became of a document that was handed in."""

    document: Document
    change: Change


@dataclass(frozen=True, slots=True)
class Page:
    """Documents in order of arrival; `after` for the next page, None when there is none."""

    documents: tuple[Document, ...]
    next: int | None


@dataclass(frozen=True, slots=True)
class Work:
    """A document taken from the queue. No one else gets it, in any version, until it is settled.

    Attributes:
        twins: the collection has other documents of the same bytes.
        moment: when it was taken, by the count of what may take documents back.
    """

    collection: Collection
    seq: int
    id: str
    version: int
    attempts: int
    title: str
    metadata: Mapping[str, object]
    media_type: str
    body: bytes
    job: int | None = None
    twins: bool = False
    moment: int = 0

    @property
    def queue(self) -> Queue:
        """Which one it was taken from: of large documents, of those without a job, or of jobs."""
        if len(self.body) > LARGE:
            return "large"
        return "single" if self.job is None else "jobs"


@dataclass(frozen=True, slots=True)
class Want:
    """How much of what is to be taken: documents and bytes at most, from one queue or all."""

    documents: int
    max_bytes: int = 32 * 2**20
    queue: Queue | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The document is in the store. `text` is what was parsed from its body.

    Attributes:
        title, metadata: as they were read from it, where they are not the work's.
    """

    work: Work
    text: str
    chunks: int
    tokens: int
    truncated: int = 0
    title: str | None = None
    metadata: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The document cannot be indexed; `error` tells the person who handed it in why."""

    work: Work
    error: str


@dataclass(frozen=True, slots=True)
class Returned:
    """The attempt failed for a reason that may pass: the document goes back to the queue.

    Attributes:
        counted: the attempt counts; not when it was none of the document's doing.
    """

    work: Work
    counted: bool = True


Outcome: TypeAlias = Ready | Failed | Returned


@dataclass(frozen=True, slots=True)
class Removals:
    """What is on its way out and in no one's hand: documents as (collection, id), and collections by name.

    Attributes:
        stored_as: the names of their collections in the store, by name.
        until: when the first of the collections that are searched a little longer can go.
    """

    documents: tuple[tuple[str, str], ...]
    collections: tuple[str, ...]
    stored_as: Mapping[str, str] = field(default_factory=dict, compare=False)
    until: datetime | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Move:
    """A document that has a new name in the catalog and may still have the old one in the store.

    Attributes:
        title, source: as the catalog has them now; without a source, its metadata has none.
    """

    collection: str
    old: str
    new: str
    stored_as: str = field(default="", compare=False)
    title: str = field(default="", compare=False)
    source: object = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Reindexing:
    """How far a collection's successor has come.

    Attributes:
        collection: the successor; its `job` tells its documents.
        waiting: documents that it still has to take in.
        failed: documents that it cannot take in, though they can be searched now: they hold it back.
    """

    collection: Collection
    waiting: int
    failed: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A document that never got into the catalog, and why."""

    id: str
    error: str


@dataclass(frozen=True, slots=True)
class Job:
    """Documents that were handed in together.

    Attributes:
        kind: how they came: as documents of requests, in an archive, from a folder, from one that is watched, which
            has one job for good; or `reindex`, those of the
            collection itself, for its successor.
        name: of the archive or folder; empty otherwise.
        origin: where the server reads the folder; empty otherwise. Not for callers.
        state: `preparing` while an archive is read: until then nothing is worked on, and a crash takes all of it back.
        open: more documents may come, without anybody doing anything about it.
        prune: what the folder has no more is removed.
        priority: the higher is worked on first; documents without a job come before all jobs.
        error: why not all of the folder or archive could be read; empty otherwise.
        total: documents so far.
        ready, failed, refused, skipped, unchanged, moved: how many of them ended so. The others wait.
        ended: when nothing was left to be done.
    """

    id: int
    collection: str
    kind: JobKind
    name: str
    origin: str
    state: JobState
    open: bool
    prune: bool
    priority: int
    error: str
    total: int
    ready: int
    failed: int
    refused: int
    skipped: int
    unchanged: int
    moved: int
    created: datetime
    ended: datetime | None

    @property
    def finished(self) -> int:
        """Documents that need nothing more."""
        return self.ready + self.failed + self.refused + self.skipped + self.unchanged + self.moved

    @property
    def waiting(self) -> int:
        """Documents that wait or are in hand."""
        return self.total - self.finished


@dataclass(frozen=True, slots=True)
class Item:
    """A document of a job; `seq` is its place in the order they came in."""

    seq: int
    id: str
    state: ItemState
    error: str


@dataclass(frozen=True, slots=True)
class Items:
    """A page of a job's documents; `after` for the next one, None when there is none."""

    items: tuple[Item, ...]
    next: int | None


def under_name(document: NewDocument, old: str) -> NewDocument:
    """The same as it was handed in when its file had the name that the id `old` ends with: title and source are often
    no more than that.
    """
    before, now = PurePosixPath(old).name, PurePosixPath(document.id).name
    title = before if document.title == now else document.title
    named = document.metadata.get("source") == now
    return replace(document, title=title, metadata={**document.metadata, **({"source": before} if named else {})})


def unfit_id(given: str) -> str:
    """Why no document can be called this; empty where one can.

    `/documents/{id}` has to lead to it: clients and proxies resolve `.` and `..`, and some merge slashes.
    """
    parts = given.split("/")
    if not 0 < len(given) <= MAX_ID:
        return f"an id has 1 to {MAX_ID} characters"
    if any(part in {".", ".."} for part in parts):
        return "an id has no part that is . or ..: clients would leave it out of the address"
    if not all(parts):
        return "an id has no slash at its ends and no two in a row"
    if any(ord(character) < ord(" ") or "\x7f" <= character <= "\x9f" for character in given):
        return "an id has no control characters"
    if len(parts) > 1 and parts[-1] in BELOW:
        return f"an id does not end in /{parts[-1]}: that is an address of its own"
    return ""


def content_hash(document: NewDocument) -> str:
    """SHA-256, in hex, over body, media type, title and metadata: equal means that nothing has to be done again.

    Raises:
        InvalidInput: the metadata is not JSON (NaN and infinities are not).
    """
    try:
        about = json.dumps([document.media_type, document.title, document.metadata], sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput("metadata is not JSON: NaN and Infinity are no JSON numbers", param="metadata") from error
    digest = hashlib.sha256(about.encode())
    digest.update(b"\0")  # JSON text holds no NUL, so the two parts cannot be mistaken
    digest.update(document.body)
    return digest.hexdigest()
