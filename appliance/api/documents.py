"""Documents: put in as JSON or as files, read back, removed."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import quote, urlencode

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator
from starlette.datastructures import UploadFile

from appliance.api.deps import ApplianceDep, parsed, read_json, request_body, validated
from appliance.api.errors import envelope
from appliance.catalog.records import Document, DocumentState
from appliance.errors import InvalidInput
from appliance.ingest.ingestor import Receipt
from appliance.ingest.prepare import Incoming
from appliance.store.base import Chunk

router = APIRouter(tags=["documents"])

DEFAULT_COLLECTION = "default"
"""Where documents go, and where a search looks, when no collection is named. Made on first use."""

_FILES = 1000
"""Files of one multipart body at most."""

_FIELD = 2**20
"""Bytes of a form field at most; files count towards the body's limit only."""

TextType = Literal["text/plain", "text/markdown", "text/html"]


class DocumentBody(BaseModel):
    """One document of a JSON body."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = Field(default=None, min_length=1, max_length=512, description="made from the content if left out")
    text: str
    title: str = Field(default="", max_length=1000)
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    media_type: TextType = "text/plain"


class DocumentsBody(BaseModel):
    """Documents to put in: one of `text`, `texts` and `documents`."""

    model_config = ConfigDict(extra="forbid")

    collection: str = DEFAULT_COLLECTION
    wait: float | None = Field(default=None, ge=0, le=3600, description="seconds to wait until they can be found")
    model: str | None = Field(default=None, description="refused with 409 unless the collection's vectors are its")
    id: str | None = Field(default=None, min_length=1, max_length=512)
    title: str = Field(default="", max_length=1000)
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
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
    return parsed(value.encode()) if isinstance(value, str) else value


class FormFields(BaseModel):
    """What a form says about all of its files; `file` and `id` are lists beside these."""

    model_config = ConfigDict(extra="forbid")

    collection: str = DEFAULT_COLLECTION
    wait: float | None = Field(default=None, ge=0, le=3600)
    model: str | None = None
    metadata: Annotated[dict[str, JsonValue], BeforeValidator(_from_text)] = Field(default_factory=dict)


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


_FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "id": {"type": "array", "items": {"type": "string"}, "description": "as many as files, in their order"},
    }
    | FormFields.model_json_schema()["properties"],
}

_PUT = request_body(DocumentsBody)
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
    responses={202: {"model": DocumentsOutcome, "description": "Queued, on disk; poll Location."}},
    openapi_extra=_PUT,
)
async def put_documents(
    request: Request,
    appliance: ApplianceDep,
    wait: Annotated[float | None, Query(ge=0, le=3600, description="seconds")] = None,
) -> Response:
    """Put documents in; the same id again replaces, the same content again changes nothing.

    201 when every document can be found: its text, words and vectors are on disk. 202 when some are still queued, on
    disk as well; poll Location. A file that cannot be read is refused alone; 422 when none can.
    """
    form = request.headers.get("content-type", "").startswith("multipart/form-data")
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
    after: Annotated[int | None, Query(description="`next` of the page before")] = None,
    state: DocumentState | None = None,
) -> DocumentList:
    """Documents in the order they came in, without their texts."""
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
    documents = [
        Incoming(
            each.text.encode(),
            media_type=each.media_type,
            id=each.id,
            title=each.title,
            metadata=each.metadata,
        )
        for each in body.items()
    ]
    return _Given(body.collection, body.wait, body.model, documents)


async def _from_form(request: Request) -> _Given:
    async with request.form(max_files=_FILES, max_fields=_FILES + 10, max_part_size=_FIELD) as form:
        files = [each for each in form.getlist("file") if isinstance(each, UploadFile)]
        if not files:
            raise InvalidInput("the form has no file: send one or more parts named file", param="file")
        ids = [str(each) for each in form.getlist("id")]
        if ids and len(ids) != len(files):
            raise InvalidInput(f"{len(files)} files came with {len(ids)} ids", param="id")
        fields = validated({key: form[key] for key in form if key not in {"file", "id"}}, FormFields)
        documents = [
            Incoming(
                await each.read(),
                media_type=each.content_type or "",
                id=ids[place] if ids else None,
                metadata=fields.metadata,
                name=each.filename or "",
            )
            for place, each in enumerate(files)
        ]
        return _Given(fields.collection, fields.wait, fields.model, documents)


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
    if all(each.document is None for each in receipts):
        message = f"no document could be read: {receipts[0].error}"
        return envelope("/documents", 422, message, more={"documents": documents})
    waiting = [each["id"] for each in documents if each["state"] in {"waiting", "working"}]
    headers = {}
    if len(waiting) == 1:
        headers["location"] = f"/documents/{quote(str(waiting[0]))}?{urlencode({'collection': collection})}"
    elif waiting:
        headers["location"] = f"/collections/{quote(collection)}"
    body = orjson.dumps({"collection": collection, "documents": documents})
    return Response(body, 202 if waiting else 201, headers, "application/json")
