"""Documents: put in as JSON or as files, read back, removed."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from datetime import datetime
from typing import IO, Annotated, Any, Literal, NamedTuple
from urllib.parse import quote, unquote, urlencode, urlsplit

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    model_validator,
)
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile

from appliance.api.deps import (
    Appliance,
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
from appliance.catalog.jobs import PRIORITIES
from appliance.catalog.records import MAX_ID, Document, DocumentState, Page, unfit_id
from appliance.errors import CollectionNotFound, InvalidInput
from appliance.ingest import archive
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
    if fault := unfit_id(given):
        raise ValueError(fault)
    return given


DocumentId = Annotated[str, Field(min_length=1, max_length=MAX_ID), AfterValidator(_addressable)]
"""A document's name within its collection. Slashes are allowed where they part something."""

Title = Annotated[str, Field(max_length=1000)]


def _asked_job(value: object) -> object:
    """`true`, `false` or a number, as a query string or a form has them."""
    if not isinstance(value, str):
        return value
    return {"true": True, "false": False}.get(value, int(value) if value.isdecimal() and len(value) < 18 else value)  # noqa: PLR2004  # 64 bits


def _true_or_number(value: object) -> object:
    number = isinstance(value, int) and (isinstance(value, bool) or 1 <= value < 2**63)
    if value is None or number:
        return value
    raise ValueError("true for a new job, or the number of one, is needed")


AskedJob = Annotated[
    StrictBool | Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)] | None, BeforeValidator(_true_or_number)
]
"""True for a new job, or the number of one."""

TextJob = Annotated[AskedJob, BeforeValidator(_asked_job)]
Priority = Annotated[int, Field(ge=-PRIORITIES, le=PRIORITIES)]
MovedFrom = Annotated[list[DocumentId], Field(max_length=1000)]


def _local(given: str) -> str:
    """A path, or what a `file:` address names on this machine."""
    if not given.lower().startswith("file:"):
        return given
    address = urlsplit(given)
    if address.netloc not in {"", "localhost"} or not address.path.startswith("/") or address.query or address.fragment:
        raise ValueError("of addresses, file:///path alone names something on the server")
    return unquote(address.path, errors="strict")


ServerPath = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_local)]
"""Of a file or folder on the server, as a path or as a `file:///` address."""


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
    """Documents to put in: one of `text`, `texts`, `documents`, `path` and `folder`."""

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
    path: ServerPath | None = Field(default=None, description="of a file on the server, below one of its ingest_roots")
    folder: ServerPath | None = Field(default=None, description="of a folder on the server; a job of its own")
    prune: bool = Field(default=False, description="of a folder: remove the documents whose files are no more")
    job: AskedJob = Field(default=None, description="true for a new job, or the number of one")
    priority: Priority | None = Field(default=None, description="of a new job; 0 if left out, the higher goes first")
    moved_from: MovedFrom = Field(
        default=[], description="ids of documents that are gone: one of the same content takes its new id"
    )

    @model_validator(mode="after")
    def _one_form(self) -> "DocumentsBody":
        given = (self.text, self.texts, self.documents, self.path, self.folder)
        if sum(each is not None for each in given) != 1:
            raise ValueError("give exactly one of text, texts, documents, path and folder")
        if self.text is None and self.path is None and self.id is not None:
            raise ValueError("id belongs to a single text; in documents each has its own")
        if (self.documents is not None or self.folder is not None) and (self.title or self.metadata):
            raise ValueError("in documents each has its own title and metadata")
        if self.prune and self.folder is None:
            raise ValueError("prune goes with folder")
        if self.folder is not None and (self.job not in {None, True} or self.moved_from):
            raise ValueError("a folder is a job of its own")
        return self

    def items(self) -> list[DocumentBody]:
        """The documents, whatever form they came in."""
        if self.documents is not None:
            return self.documents
        if self.folder is not None:
            return []
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
    job: TextJob = Field(default=None, description="true for a new job, or the number of one; archives need a new one")
    priority: Priority | None = Field(default=None, description="of a new job; 0 if left out, the higher goes first")
    moved_from: MovedFrom = Field(
        default=[], description="ids of documents that are gone: one of the same content takes its new id"
    )


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
    change: Literal["created", "updated", "unchanged", "moved", "refused"]
    state: DocumentState | Literal["refused"]
    chunks: int
    tokens: int
    error: str | None


class DocumentsOutcome(BaseModel):
    """What became of a request's documents, in their order."""

    collection: str
    job: int | None = Field(default=None, description="the number of their job; only where one was asked for")
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
    metadata: dict[str, JsonValue] = Field(description="the document's, and where in it the passage is: page, section")


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
    job: Annotated[str | None, Query(description="`true` for a new job, or the number of one")] = None,
) -> Response:
    """Put documents in; the same id again replaces, the same content again changes nothing.

    201 when every document can be found: its text, words and vectors are on disk. 202 when some are still queued, on
    disk as well; poll Location. 207 when some can be found and others cannot: a file that cannot be read is refused
    alone. When none got in: 422 if all were refused, else 503. A file may be an image, where the collection's model
    takes images.

    With `job` they are part of a job, which can be followed, paused and cancelled, and which documents without a job
    overtake; then nobody waits unless `wait` says so. With `job=true`, ZIP and tar archives are unpacked. `path` and
    `folder` have the server read files of its own, below `ingest_roots`.
    """
    asked = None if job is None else validated({"job": job}, _Asked).job
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        async with _form(request) as form:
            given = await _from_form(form, job=asked)
            return await _put(appliance, given, wait)
    return await _put(appliance, await _from_json(request, appliance, job=asked), wait)


class _Asked(BaseModel):
    job: TextJob = None


@router.get("/documents")
async def list_documents(  # noqa: PLR0917  # FastAPI gives them by name
    appliance: ApplianceDep,
    collection: Collection = DEFAULT_COLLECTION,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[int | None, Query(ge=0, le=_LAST_SEQ, description="`next` of the page before")] = None,
    state: DocumentState | None = None,
    prefix: Annotated[str, Query(max_length=512, description="what the ids begin with")] = "",
) -> DocumentList:
    """Documents in the order they came in, without their texts."""
    page = Page(documents=(), next=None)
    with empty_until_made(collection):
        page = await asyncio.to_thread(
            appliance.catalog.documents, collection, limit=limit, after=after, state=state, prefix=prefix
        )
    return DocumentList(documents=[DocumentInfo(**_info(each)) for each in page.documents], next=page.next)


@router.get("/documents/{id:path}/chunks")
async def list_chunks(appliance: ApplianceDep, id: str, collection: Collection = DEFAULT_COLLECTION) -> ChunkList:  # noqa: A002
    """A document's passages in order, as they were embedded."""

    def read() -> list[Chunk]:
        appliance.catalog.document(collection, id)
        return appliance.store.chunks(appliance.catalog.collection(collection).stored_as, id)

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


class _Archive(NamedTuple):
    name: str
    prefix: str
    file: IO[bytes]
    size: int


class _Given(NamedTuple):
    collection: str
    wait: float | None
    model: str | None
    documents: list[Incoming]
    job: bool | int | None = None
    priority: int | None = None
    moved_from: Sequence[str] = ()
    archives: Sequence[_Archive] = ()
    folder: str | None = None
    prune: bool = False


async def _put(appliance: Appliance, given: _Given, wait: float | None) -> Response:
    if given.priority is not None and given.job is not True and given.folder is None:
        raise InvalidInput("priority is of a new job: give job = true with it", param="priority")
    if given.collection == DEFAULT_COLLECTION:
        await appliance.ingestor.ensure_collection(DEFAULT_COLLECTION)
    if given.folder is not None:
        await appliance.ingestor.spec(given.collection, model=given.model)
        begun = await appliance.jobs.take_folder(
            given.collection, given.folder, priority=given.priority or 0, prune=given.prune
        )
        return _answer(given.collection, [], job=begun.id)
    if isinstance(given.job, bool) or given.job is None:
        return await (_put_new_job(appliance, given, wait) if given.job else _add(appliance, given, wait, job=None))
    return await _add(appliance, given, wait, job=given.job)


async def _put_new_job(appliance: Appliance, given: _Given, wait: float | None) -> Response:
    """All of it or, when an archive cannot be read, nothing."""
    await appliance.ingestor.spec(given.collection, model=given.model)
    made = await appliance.jobs.open(
        given.collection,
        kind="archive" if given.archives else "documents",
        name=", ".join(each.name for each in given.archives)[:200],
        priority=given.priority or 0,
    )
    try:
        answer = await _add(appliance, given, 0 if given.archives else wait, job=made.id)
        for each in given.archives:
            await appliance.jobs.take_archive(
                made, each.file, name=each.name, prefix=each.prefix, size=each.size, model=given.model
            )
        if given.archives:
            await appliance.jobs.close(made.id)
    except BaseException:
        await appliance.jobs.abandon(made.id)
        raise
    return _answer(given.collection, [], job=made.id) if given.archives else answer


async def _add(appliance: Appliance, given: _Given, wait: float | None, *, job: int | None) -> Response:
    unsaid = appliance.wait if job is None else 0
    seconds = next(each for each in (wait, given.wait, unsaid) if each is not None)
    receipts = await appliance.ingestor.add(
        given.collection,
        given.documents,
        wait=seconds,
        model=given.model,
        job=job,
        moved_from=given.moved_from,
    )
    if job is not None:
        appliance.jobs.touch(job)
    return _answer(given.collection, receipts, job=job)


async def _from_json(request: Request, appliance: Appliance, *, job: bool | int | None) -> _Given:
    body = await read_json(request, DocumentsBody)
    if body.path is not None:
        file = await appliance.jobs.read_file(body.path)
        if body.id is None and (fault := unfit_id(file.id or "")):
            raise InvalidInput(f"the path makes no id, so give one: {fault}", param="id")
        documents = [replace(file, id=body.id or file.id, title=body.title, metadata=body.metadata)]
    else:
        items = body.items()
        large = sum(len(each.text) for each in items) >= _LARGE
        documents = await asyncio.to_thread(_incoming, items) if large else _incoming(items)
    return _Given(
        body.collection,
        body.wait,
        body.model,
        documents,
        job=body.job if job is None else job,
        priority=body.priority,
        moved_from=body.moved_from,
        folder=body.folder,
        prune=body.prune,
    )


def _incoming(items: Sequence[DocumentBody]) -> list[Incoming]:
    return [
        Incoming(each.text.encode(), media_type=each.media_type, id=each.id, title=each.title, metadata=each.metadata)
        for each in items
    ]


def _form(request: Request) -> AbstractAsyncContextManager[FormData]:
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise InvalidInput("the names and fields of a form are read as UTF-8")
    return request.form(max_files=_FILES, max_fields=2 * _FILES + 10, max_part_size=_FIELD)


async def _from_form(form: FormData, *, job: bool | int | None) -> _Given:
    """What a form says; its archives have to be read before it is closed."""
    files = [each for each in form.getlist("file") if isinstance(each, UploadFile)]
    if not files:
        raise InvalidInput("the form has no file: send one or more parts named file", param="file")
    fields = _fields(form)
    if fields.id and len(fields.id) != len(files):
        raise InvalidInput(f"there are {len(files)} files and {len(fields.id)} ids", param="id")
    if fields.title and len(files) > 1:
        raise InvalidInput("a title belongs to a single file; send one request for each", param="title")
    job = fields.job if job is None else job
    documents, archives = [], []
    for place, each in enumerate(files):
        name, given_id = each.filename or "", fields.id[place] if fields.id else None
        if job is True and archive.is_archive(name):
            archives.append(_Archive(name, given_id or archive.stem(name), each.file, each.size or 0))
            continue
        incoming = Incoming(
            await each.read(),
            media_type=each.content_type or "",
            id=given_id,
            title=fields.title,
            metadata=fields.metadata,
            name=name,
        )
        documents.append(incoming)
    if archives and (fields.title or fields.metadata):
        raise InvalidInput("an archive's files have no title or metadata of the form", param="metadata")
    return _Given(
        fields.collection,
        fields.wait,
        fields.model,
        documents,
        job=job,
        priority=fields.priority,
        moved_from=fields.moved_from,
        archives=archives,
    )


def _fields(form: FormData) -> FormFields:
    content: dict[str, object] = {name: form[name] for name in form if name != "file"}
    for name in ("id", "moved_from"):
        if name in form:
            content[name] = form.getlist(name)
    return validated(content, FormFields)


def _answer(collection: str, receipts: Sequence[Receipt], *, job: int | None = None) -> Response:
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
    more: dict[str, Any] = {**({} if job is None else {"job": job}), "documents": documents}
    if states == {"refused"}:
        return envelope("/documents", 422, f"no document could be read: {documents[0]['error']}", more=more)
    if states and states <= {"refused", "failed"}:
        failed = next(each for each in documents if each["state"] == "failed")
        if all(each.document is None or each.document.hopeless for each in receipts):
            return envelope("/documents", 422, f"no document could be read: {failed['error']}", more=more)
        return envelope("/documents", 503, f"no document could be taken in: {failed['error']}", more=more)
    waiting = [each["id"] for each in documents if each["state"] in {"waiting", "working"}]
    headers = {}
    if job is not None:
        headers["location"] = f"/jobs/{job}"
    elif len(waiting) == 1:
        headers["location"] = f"/documents/{quote(str(waiting[0]), safe='/')}?{urlencode({'collection': collection})}"
    elif waiting:
        headers["location"] = f"/collections/{quote(collection)}"
    status = 202 if waiting or not documents else 201 if states == {"ready"} else 207
    return Response(orjson.dumps({"collection": collection, **more}), status, headers, "application/json")
