"""Documents: put in as JSON or as files, read back, removed."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import quote, urlencode

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile

from appliance.api.deps import (
    ApplianceDep,
    JsonObject,
    StrictBody,
    known_query,
    parsed,
    read_json,
    request_body,
    validated,
)
from appliance.api.errors import envelope
from appliance.catalog.records import Document, DocumentState, Page
from appliance.errors import CollectionNotFound, InvalidInput
from appliance.ingest.prepare import Incoming, Receipt
from appliance.store.base import Chunk

router = APIRouter(tags=["documents"], dependencies=[Depends(known_query)])

DEFAULT_COLLECTION = "default"
"""Where documents go, and where a search looks, when no collection is named. Made on first use."""

_FILES = 1000
"""Files of one multipart body at most."""

_FIELD = 2**20
"""Bytes of a form field at most; files count towards the body's limit only."""

_CHARSETS = frozenset({b"utf-8", b"utf8", b"us-ascii", b"iso-8859-1", b"latin-1"})
"""What a form may say its names are in; Starlette would take any of Python's, `unicode_escape` too."""

_LARGE = 2**20
"""Characters of texts that are encoded in a thread."""

_LAST_SEQ = 2**63 - 1

TextType = Literal["text/plain", "text/markdown", "text/html"]


def _addressable(given: str) -> str:
    """The id, if `/documents/{id}` leads to it: clients and proxies resolve `.` and `..`, some merge slashes."""
    parts = given.split("/")
    if any(part in {".", ".."} for part in parts):
        raise ValueError("an id has no part that is . or ..: clients would leave it out of the address")
    if not all(parts):
        raise ValueError("an id has no slash at its ends and no two in a row")
    if any(ord(character) < ord(" ") or "\x7f" <= character <= "\x9f" for character in given):
        raise ValueError("an id has no control characters")
    if len(parts) > 1 and parts[-1] in {"chunks", "similar"}:
        raise ValueError(f"an id does not end in /{parts[-1]}: that is an address of its own")
    return given


DocumentId = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_addressable)]
"""A document's name within its collection. Slashes are allowed where they part something."""

Title = Annotated[str, Field(max_length=1000)]


def empty_until_made(collection: str) -> suppress:
    """Around a reading of a collection: of the default one, that it is not there yet is no error."""
    return suppress(*([CollectionNotFound] if collection == DEFAULT_COLLECTION else []))


class DocumentBody(StrictBody):
    """One document of a JSON body."""

    id: DocumentId | None = Field(default=None, description="made from the content if left out")
    text: str
    title: Title = ""
    metadata: JsonObject = Field(default_factory=dict)
    media_type: TextType = "text/plain"


class DocumentsBody(StrictBody):
    """Documents to put in: one of `text`, `texts` and `documents`."""

    collection: str = DEFAULT_COLLECTION
    wait: float | None = Field(default=None, ge=0, le=3600, description="seconds to wait until they can be found")
    model: str | None = Field(default=None, description="refused with 409 unless the collection's vectors are its")
    id: DocumentId | None = None
    title: Title = ""
    metadata: JsonObject = Field(default_factory=dict)
    media_type: TextType = "text/plain"
    text: str | None = None
    texts: list[str] | None = Field(default=None, min_length=1)
    documents: list[DocumentBody] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_form(self) -> "DocumentsBody":
        if sum(each is not None for each in (self.text, self.texts, self.documents)) != 1:
            raise ValueError("give exactly one of text, texts and documents")
        if self.text is None and self.id is not None:
            raise ValueError("id belongs to a single text; in documents each has its own")
        if self.documents is not None and (self.title or self.metadata):
            raise ValueError("in documents each has its own title and metadata")
        return self

    def items(self) -> list[DocumentBody]:
        """The documents, whatever form they came in."""
        if self.documents is not None:
            return self.documents
        texts = [self.text] if self.text is not None else self.texts or []
        return [
            DocumentBody(id=self.id, text=text, title=self.title, metadata=self.metadata, media_type=self.media_type)
            for text in texts
        ]


def _from_text(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parsed(value.encode())
    except InvalidInput:
        raise ValueError("it is not JSON") from None


class FormFields(BaseModel):
    """What a form says of its files."""

    model_config = ConfigDict(extra="forbid")

    collection: str = DEFAULT_COLLECTION
    wait: float | None = Field(default=None, ge=0, le=3600)
    model: str | None = None
    id: list[DocumentId] = Field(default=[], description="as many as files, in their order")
    title: Title = Field(default="", description="of a single file")
    metadata: Annotated[JsonObject, BeforeValidator(_from_text)] = Field(default={}, description="of every file")


class DocumentInfo(BaseModel):
    """A document as it is."""

    id: str
    collection: str
    title: str
    metadata: dict[str, JsonValue]
    media_type: str
    bytes: int
    state: DocumentState
    error: str | None
    chunks: int
    tokens: int
    created: datetime
    updated: datetime


class DocumentWithText(DocumentInfo):
    """A document with the text that its chunks' character ranges point into."""

    text: str | None = Field(description="None until the document was ready once")


class DocumentList(BaseModel):
    """One page of documents, in the order they came in."""

    documents: list[DocumentInfo]
    next: int | None = Field(description="give it as `after` for the next page; None on the last one")


class DocumentOutcome(BaseModel):
    """What became of one document of a request."""

    id: str
    change: Literal["created", "updated", "unchanged", "refused"]
    state: DocumentState | Literal["refused"]
    chunks: int
    tokens: int
    error: str | None


class DocumentsOutcome(BaseModel):
    """What became of a request's documents, in their order."""

    collection: str
    documents: list[DocumentOutcome]


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    param: str | None = Field(default=None, description="the field that is wrong")
    documents: list[DocumentOutcome] | None = Field(default=None, description="what became of each")


class ChunkInfo(BaseModel):
    """A passage of a document."""

    ordinal: int
    text: str
    start: int
    end: int
    tokens: int


class ChunkList(BaseModel):
    """A document's passages in order."""

    chunks: list[ChunkInfo]


_PUT = request_body(DocumentsBody)
_FORM = request_body(FormFields)["requestBody"]["content"]["application/json"]["schema"]
_FORM["properties"]["file"] = {"type": "array", "items": {"type": "string", "format": "binary"}}
_FORM["required"] = ["file"]
_PUT["requestBody"]["content"]["multipart/form-data"] = {"schema": _FORM}


def _info(document: Document) -> dict[str, Any]:
    return {
        "id": document.id,
        "collection": document.collection,
        "title": document.title,
        "metadata": dict(document.metadata),
        "media_type": document.media_type,
        "bytes": document.size,
        "state": document.state,
        "error": document.error or None,
        "chunks": document.chunks,
        "tokens": document.tokens,
        "created": document.created,
        "updated": document.updated,
    }


Collection = Annotated[str, Query(description="the collection's name")]


@router.post(
    "/documents",
    status_code=201,
    response_model=DocumentsOutcome,
    responses={
        202: {"model": DocumentsOutcome, "description": "Some are queued, on disk; poll Location."},
        207: {"model": DocumentsOutcome, "description": "Some can be found, others were refused or failed."},
        422: {"model": Problem, "description": "None was taken: the request is wrong, or every document was refused."},
        503: {"model": Problem, "description": "None was taken, and not for what it holds: try again."},
    },
    openapi_extra=_PUT,
)
async def put_documents(
    request: Request,
    appliance: ApplianceDep,
    wait: Annotated[float | None, Query(ge=0, le=3600, description="seconds")] = None,
) -> Response:
    """Put documents in; the same id again replaces, the same content again changes nothing.

    201 when every document can be found: its text, words and vectors are on disk. 202 when some are still queued, on
    disk as well; poll Location. 207 when some can be found and others cannot: a file that cannot be read is refused
    alone. When none got in: 422 if all were refused, else 503. A file may be an image, where the collection's model
    takes images.
    """
    form = request.headers.get("content-type", "").lower().startswith("multipart/form-data")
    given = await (_from_form(request) if form else _from_json(request))
    if given.collection == DEFAULT_COLLECTION:
        await appliance.ingestor.ensure_collection(DEFAULT_COLLECTION)
    seconds = next(each for each in (wait, given.wait, appliance.wait) if each is not None)
    receipts = await appliance.ingestor.add(given.collection, given.documents, wait=seconds, model=given.model)
    return _answer(given.collection, receipts)


@router.get("/documents")
async def list_documents(
    appliance: ApplianceDep,
    collection: Collection = DEFAULT_COLLECTION,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[int | None, Query(ge=0, le=_LAST_SEQ, description="`next` of the page before")] = None,
    state: DocumentState | None = None,
) -> DocumentList:
    """Documents in the order they came in, without their texts."""
    page = Page(documents=(), next=None)
    with empty_until_made(collection):
        page = await asyncio.to_thread(appliance.catalog.documents, collection, limit=limit, after=after, state=state)
    return DocumentList(documents=[DocumentInfo(**_info(each)) for each in page.documents], next=page.next)


@router.get("/documents/{id:path}/chunks")
async def list_chunks(appliance: ApplianceDep, id: str, collection: Collection = DEFAULT_COLLECTION) -> ChunkList:  # noqa: A002
    """A document's passages in order, as they were embedded."""

    def read() -> list[Chunk]:
        appliance.catalog.document(collection, id)
        return appliance.store.chunks(collection, id)

    chunks = await asyncio.to_thread(read)
    return ChunkList(chunks=[ChunkInfo.model_validate(each, from_attributes=True) for each in chunks])


@router.get("/documents/{id:path}")
async def read_document(
    appliance: ApplianceDep,
    id: str,  # noqa: A002  # the word of the interface
    collection: Collection = DEFAULT_COLLECTION,
) -> DocumentWithText:
    """A document with its text. An id may hold slashes."""

    def read() -> DocumentWithText:
        document = appliance.catalog.document(collection, id)
        return DocumentWithText(**_info(document), text=appliance.catalog.text(collection, id))

    return await asyncio.to_thread(read)


@router.delete("/documents/{id:path}", status_code=204)
async def delete_document(
    appliance: ApplianceDep,
    id: str,  # noqa: A002  # same
    collection: Collection = DEFAULT_COLLECTION,
) -> Response:
    """Remove a document with its chunks, words and vectors."""
    await appliance.ingestor.remove(collection, id)
    return Response(status_code=204)


class _Given(NamedTuple):
    collection: str
    wait: float | None
    model: str | None
    documents: list[Incoming]


async def _from_json(request: Request) -> _Given:
    body = await read_json(request, DocumentsBody)
    items = body.items()
    if sum(len(each.text) for each in items) < _LARGE:
        documents = _incoming(items)
    else:
        documents = await asyncio.to_thread(_incoming, items)
    return _Given(body.collection, body.wait, body.model, documents)


def _incoming(items: Sequence[DocumentBody]) -> list[Incoming]:
    return [
        Incoming(each.text.encode(), media_type=each.media_type, id=each.id, title=each.title, metadata=each.metadata)
        for each in items
    ]


async def _from_form(request: Request) -> _Given:
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise InvalidInput("the names and fields of a form are read as UTF-8")
    async with request.form(max_files=_FILES, max_fields=_FILES + 10, max_part_size=_FIELD) as form:
        files = [each for each in form.getlist("file") if isinstance(each, UploadFile)]
        if not files:
            raise InvalidInput("the form has no file: send one or more parts named file", param="file")
        fields = _fields(form)
        if fields.id and len(fields.id) != len(files):
            raise InvalidInput(f"there are {len(files)} files and {len(fields.id)} ids", param="id")
        if fields.title and len(files) > 1:
            raise InvalidInput("a title belongs to a single file; send one request for each", param="title")
        documents = [
            Incoming(
                await each.read(),
                media_type=each.content_type or "",
                id=fields.id[place] if fields.id else None,
                title=fields.title,
                metadata=fields.metadata,
                name=each.filename or "",
            )
            for place, each in enumerate(files)
        ]
        return _Given(fields.collection, fields.wait, fields.model, documents)


def _fields(form: FormData) -> FormFields:
    content: dict[str, object] = {name: form[name] for name in form if name != "file"}
    if "id" in form:
        content["id"] = form.getlist("id")
    return validated(content, FormFields)


def _answer(collection: str, receipts: Sequence[Receipt]) -> Response:
    documents = []
    for each in receipts:
        document = each.document
        documents.append(
            {
                "id": each.id,
                "change": each.change,
                "state": document.state if document else "refused",
                "chunks": document.chunks if document else 0,
                "tokens": document.tokens if document else 0,
                "error": (document.error if document else each.error) or None,
            }
        )
    states = {each["state"] for each in documents}
    more = {"documents": documents}
    if states == {"refused"}:
        return envelope("/documents", 422, f"no document could be read: {documents[0]['error']}", more=more)
    if states <= {"refused", "failed"}:
        failed = next(each for each in documents if each["state"] == "failed")
        if all(each.document is None or each.document.hopeless for each in receipts):
            return envelope("/documents", 422, f"no document could be read: {failed['error']}", more=more)
        return envelope("/documents", 503, f"no document could be taken in: {failed['error']}", more=more)
    waiting = [each["id"] for each in documents if each["state"] in {"waiting", "working"}]
    headers = {}
    if len(waiting) == 1:
        headers["location"] = f"/documents/{quote(str(waiting[0]), safe='/')}?{urlencode({'collection': collection})}"
    elif waiting:
        headers["location"] = f"/collections/{quote(collection)}"
    status = 202 if waiting else 201 if states == {"ready"} else 207
    return Response(orjson.dumps({"collection": collection, **more}), status, headers, "application/json")
