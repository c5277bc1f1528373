"""What happens to a document outside the queue: reading it when it comes in, cutting it when its turn comes."""

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Final, Literal

from appliance.catalog.records import Change, Chunking, Document, NewDocument, Work, content_hash
from appliance.embedding.embedder import Embedder
from appliance.embedding.engine import Image
from appliance.embedding.images import SUPPORTED, described, media_type_of
from appliance.errors import InvalidInput
from appliance.ingest.chunk import USUAL_TOKENS, Passage, chunked, embedded, room
from appliance.ingest.parse import Parsed, is_image, kind_of, read, recognised
from appliance.ingest.sandbox import Sandbox
from appliance.store.base import Chunk

_NO_TEXT: Final = "there is no text in it"
_MAX_REFERENCES: Final = 100
_UTF_8: Final = frozenset({"", "utf-8"})


@dataclass(frozen=True, slots=True)
class Incoming:
    """A document as a caller hands it in. Without an id, it gets one made from its content.

    Attributes:
        name: of the file, where it was one; its last part stands in for a title.
    """

    body: bytes
    media_type: str = ""
    id: str | None = None
    title: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of an incoming document: `document` as it is now, or why it was refused."""

    id: str
    change: Change | Literal["refused"]
    document: Document | None = None
    error: str = ""

    def renewed(self, documents: Mapping[str, Document]) -> "Receipt":
        """The same with the document as it is among `documents`, by id."""
        if self.document is None:
            return self
        if self.id in documents:
            return replace(self, document=documents[self.id])
        return Receipt(self.id, "refused", error="it was removed again")


@dataclass(frozen=True, slots=True)
class Cut:
    """A document in pieces: its text, its chunks, and what is embedded for each of them.

    Attributes:
        title, metadata: of the document, as far as the caller says, else as it says itself.
    """

    text: str
    chunks: Sequence[Chunk]
    inputs: Sequence[str | Image]
    title: str
    metadata: Mapping[str, object]


def received(incoming: Incoming, *, takes_images: bool, max_pixels: int) -> NewDocument | Receipt:
    """What the catalog is to keep of a document, or why it is refused. Blocking, and never for long.

    Text is read here, so that what cannot be read is refused at once. What needs a process of its own is only looked at
    by its first bytes, type and name: reading it may take many seconds, and what was handed in must be on disk before.

    Args:
        incoming: as it came.
        takes_images: whether the collection's model does.
        max_pixels: of an image at most.
    """
    try:
        if is_image(incoming.body, media_type=incoming.media_type):
            return _received_image(incoming, takes_images=takes_images, max_pixels=max_pixels)
        return _received_text(incoming)
    except InvalidInput as error:
        return Receipt(incoming.id or incoming.name, "refused", error=error.message)


def _received_text(incoming: Incoming) -> NewDocument:
    kind = recognised(incoming.body, kind_of(incoming.body, media_type=incoming.media_type, name=incoming.name))
    name = PurePosixPath(incoming.name).name
    title = incoming.title
    about: dict[str, object] = {"source": name} if kind.apart and name else {}
    about |= {"note": kind.note} if kind.note else {}
    source = ""
    text = incoming.body.strip() if kind.apart else b""
    if not kind.apart:
        found = read(incoming.body, kind)
        text = found.text.strip()[:1].encode()
        title = title or found.title or name
        source = "" if "source" in found.metadata else name
    if not text:
        raise InvalidInput(_NO_TEXT)
    media_type = f"{kind.media_type}; charset={kind.charset}" if kind.charset not in _UTF_8 else kind.media_type
    metadata = {**about, **incoming.metadata}
    return _named(NewDocument(incoming.id or "", incoming.body, media_type, title, metadata, source))


def parsed(work: Work, sandbox: Sandbox) -> Parsed | None:
    """The text of a document whose turn has come; None for an image. Blocking.

    Raises:
        InvalidInput: it cannot be read, or there is no text in it.
        EngineFailed: no process could be begun to read it.
    """
    if work.media_type.startswith("image/"):
        return None
    kind = kind_of(b"", media_type=work.media_type, stored=True)
    kind = kind if kind.charset else recognised(work.body, kind)
    found = sandbox.read(work.body, kind) if kind.apart else read(work.body, kind)
    if not found.text.strip():
        pictures = " if its pages are pictures, have their text recognised (OCR) first" if found.pages else ""
        raise InvalidInput(f"{_NO_TEXT}{';' if pictures else ''}{pictures}")
    return found


def told(work: Work, found: Parsed) -> Work:
    """The same with the document's own title and metadata, where the caller gave none."""
    source = work.metadata.get("source")
    title = work.title or found.title or (source if isinstance(source, str) else "")
    return replace(work, title=title, metadata={**_references(found), **found.metadata, **work.metadata})


def _named(new: NewDocument) -> NewDocument:
    """With an id made from the content, unless it has one."""
    return new if new.id else replace(new, id=content_hash(new)[:32])


def _received_image(incoming: Incoming, *, takes_images: bool, max_pixels: int) -> NewDocument:
    media_type = media_type_of(incoming.body)
    if not media_type:
        raise InvalidInput(f"the document is no image that can be read: send a {SUPPORTED} file")
    if not takes_images:
        raise InvalidInput(
            f"the document is an image ({media_type}), and the model of this collection embeds texts only: make a "
            "collection with a model that takes images"
        )
    picture = described(incoming.body, max_pixels=max_pixels)
    name = PurePosixPath(incoming.name).name
    about: dict[str, object] = {"source": name} if name else {}
    about |= {"format": picture.format, "width": picture.width, "height": picture.height}
    title = incoming.title or name or f"{picture.format} image"
    return _named(NewDocument(incoming.id or "", incoming.body, media_type, title, {**about, **incoming.metadata}))


def cut(work: Work, found: Parsed | None, embedder: Embedder, *, chunk_tokens: int, chunk_overlap: int) -> Cut:
    """Cut a document into chunks that the embedder's model takes whole; an image is one, whose text is its title.
    Blocking.

    What a chunk is embedded with (title, section, columns of its table) is no part of it. Its metadata is the
    document's, and where the caller has no such keys, what the document tells of itself, the `section` it begins in,
    the `page` it begins on with `page_end` where it ends on another, and for `references` what itself links to.

    Args:
        work: taken from the queue; its collection says how it is cut.
        found: what `parsed` read from it.
        embedder: of the collection's space.
        chunk_tokens: tokens of a chunk at most, where the collection says nothing; 0 for as many as the model takes,
            but no more than `USUAL_TOKENS`.
        chunk_overlap: tokens repeated between neighbouring chunks, where the collection says nothing; no more than a
            quarter of a chunk, or half where the collection says so.
    """
    if found is None:
        text = work.title
        chunk = Chunk(0, text, 0, len(text), tokens=len(embedder.spans(text)), title=text, metadata=work.metadata)
        return Cut(text, [chunk], [Image(work.body)], text, work.metadata)
    own = {**_references(found), **found.metadata}
    # of a document that is read anew, what it told of itself before is among what was given
    given = {key: value for key, value in work.metadata.items() if (key, value) not in own.items()}
    work = told(work, found)
    how = work.collection.chunking
    front = work.title if how.header else ""
    most = (chunk_tokens if how.tokens is None else how.tokens) or USUAL_TOKENS
    size = min(room(embedder.max_tokens, title_tokens=len(embedder.spans(front))), most)
    passages = chunked(
        found.text,
        spans=embedder.spans,
        size=size,
        overlap=min(chunk_overlap, size // 4) if how.overlap is None else how.overlap,
        media_type="text/markdown" if found.structured else found.media_type,
        title=work.title,
        strategy=how.strategy,
        header="with" if how.header else "without",
    )
    chunks = [
        Chunk(
            ordinal=ordinal,
            text=passage.text,
            start=passage.start,
            end=passage.end,
            tokens=passage.tokens,
            title=work.title,
            metadata={
                **_references(found, passage.start, passage.end),
                **found.metadata,
                **_place(passage, found),
                **given,
            },
        )
        for ordinal, passage in enumerate(passages)
    ]
    return Cut(found.text, chunks, [embedded(front, each) for each in passages], work.title, work.metadata)


def resolved(chunking: Chunking, *, chunk_tokens: int, chunk_overlap: int) -> Chunking:
    """The same with what it leaves to the settings: no more of an overlap than a quarter of a chunk."""
    tokens = (chunk_tokens if chunking.tokens is None else chunking.tokens) or USUAL_TOKENS
    overlap = min(chunk_overlap, tokens // 4) if chunking.overlap is None else chunking.overlap
    return replace(chunking, tokens=tokens, overlap=overlap)


def _references(found: Parsed, start: int = 0, end: int = sys.maxsize) -> dict[str, object]:
    """What a part of the text links to, each once."""
    first = bisect_left(found.links, start, key=itemgetter(0))
    last = bisect_left(found.links, end, key=itemgetter(0))
    links = list(dict.fromkeys(target for _, target in found.links[first:last]))
    return {"references": links[:_MAX_REFERENCES]} if links else {}


def _place(passage: Passage, found: Parsed) -> dict[str, object]:
    """Where in its document a passage is, for whoever cites it."""
    place: dict[str, object] = {"section": passage.section} if passage.section else {}
    first = bisect_right(found.pages, passage.start, key=itemgetter(0)) - 1
    last = bisect_right(found.pages, passage.end - 1, key=itemgetter(0)) - 1
    if first >= 0:
        place["page"] = found.pages[first][1]
    if last > max(first, 0):
        place["page_end"] = found.pages[last][1]
    return place
