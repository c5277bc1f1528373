"""Collections: what documents are kept in, each bound to one space of vectors."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field, model_validator

from appliance.api.deps import Appliance, ApplianceDep, StrictBody, json_body, known_query, read_json, request_body
from appliance.api.jobs import JobInfo, job_info
from appliance.catalog.jobs import PRIORITIES
from appliance.catalog.records import Chunking, Collection, Reindexing, Strategy
from appliance.errors import CollectionNotFound, InvalidInput

router = APIRouter(tags=["collections"], dependencies=[Depends(known_query)])


class ChunkingBody(StrictBody):
    """How documents are to be cut."""

    strategy: Strategy = Field(
        default="structure",
        description="structure: at headings, paragraphs, code blocks, rows, sentences; sentences: whole sentences; "
        "fixed: after so many tokens, wherever that is; code: before definitions, for source code",
    )
    tokens: int | None = Field(
        default=None,
        ge=16,
        le=8192,
        description="of a chunk at most, counted by the model, which may take fewer; chunk_tokens if left out",
    )
    overlap: int | None = Field(
        default=None,
        ge=0,
        le=4096,
        description="tokens repeated between neighbours, at most half of a chunk; chunk_overlap if left out",
    )
    header: bool = Field(
        default=True, description="embed title, section and the columns of a table in front of each chunk"
    )

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.tokens is not None and self.overlap is not None and 2 * self.overlap > self.tokens:
            raise ValueError("overlap is at most half of tokens")
        return self


class CollectionBody(StrictBody):
    """A collection to make."""

    name: str
    model: str | None = Field(default=None, description="name or alias of a model; the default model if left out")
    dimensions: int | None = Field(default=None, ge=1, description="shorter vectors than the model's own")
    chunking: ChunkingBody = Field(default_factory=ChunkingBody, description="how its documents are cut")


class ChunkingInfo(BaseModel):
    """How documents are cut that are put now."""

    strategy: Strategy
    tokens: int = Field(description="of a chunk at most; fewer where the model takes fewer")
    overlap: int
    header: bool


class ReindexBody(StrictBody):
    """How everything in a collection is to be embedded anew. What is left out stays as it is."""

    model: str | None = Field(default=None, description="name or alias of a model")
    dimensions: int | None = Field(default=None, ge=1, description="the new model's own if left out")
    chunking: ChunkingBody | None = Field(default=None, description="how documents are cut from now on")
    priority: int = Field(default=0, ge=-PRIORITIES, le=PRIORITIES, description="of its job; the higher goes first")


class ReindexInfo(BaseModel):
    """What will be in the collection's place when its job has ended."""

    job: int
    model: str
    space: str
    dimensions: int
    chunking: ChunkingInfo
    waiting: int = Field(description="documents that are still to be embedded")
    failed: int = Field(description="that can be found now and cannot be embedded anew: they hold it back")


class CollectionInfo(BaseModel):
    """A collection as it is."""

    name: str
    model: str
    space: str = Field(description="what its vectors can be compared with")
    dimensions: int
    chunking: ChunkingInfo
    created: datetime
    chunks: int
    documents: dict[str, int] = Field(description="how many in each state")
    reindex: ReindexInfo | None = Field(default=None, description="while it is embedded anew")


class CollectionList(BaseModel):
    """Every collection, oldest first."""

    collections: list[CollectionInfo]


def _info(appliance: Appliance, collection: Collection) -> CollectionInfo:
    """CollectionNotFound while it is being made or removed."""
    reindexing = appliance.catalog.successors.of(collection)
    return CollectionInfo(
        name=collection.name,
        model=collection.model,
        space=collection.space,
        dimensions=collection.dimensions,
        chunking=ChunkingInfo(**asdict(appliance.ingestor.chunking(collection))),
        created=collection.created,
        chunks=appliance.store.count(collection.stored_as),
        documents=dict(appliance.catalog.counts(collection.name)),
        reindex=None if reindexing is None else _reindex_info(appliance, reindexing),
    )


def _reindex_info(appliance: Appliance, reindexing: Reindexing) -> ReindexInfo:
    successor = reindexing.collection
    return ReindexInfo(
        job=successor.job or 0,
        model=successor.model,
        space=successor.space,
        dimensions=successor.dimensions,
        chunking=ChunkingInfo(**asdict(appliance.ingestor.chunking(successor))),
        waiting=reindexing.waiting,
        failed=reindexing.failed,
    )


@router.get("/collections")
async def list_collections(appliance: ApplianceDep) -> CollectionList:
    """Every collection with its model and what it holds."""

    def read() -> Iterator[CollectionInfo]:
        for each in appliance.catalog.collections():
            with suppress(CollectionNotFound):
                yield _info(appliance, each)

    return CollectionList(collections=await asyncio.to_thread(lambda: list(read())))


@router.post("/collections", status_code=201, openapi_extra=request_body(CollectionBody))
async def create_collection(
    appliance: ApplianceDep, body: Annotated[CollectionBody, Depends(json_body(CollectionBody))]
) -> CollectionInfo:
    """Make a collection. It keeps its model's space, its dimensions and how its documents are cut until a reindex."""
    spec = appliance.registry.resolve(body.model) if body.model else appliance.registry.default
    chunking = Chunking(**body.chunking.model_dump())
    made = await appliance.ingestor.create_collection(
        body.name, spec=spec, dimensions=body.dimensions, chunking=chunking
    )
    return await asyncio.to_thread(_info, appliance, made)


@router.get("/collections/{name}")
async def read_collection(appliance: ApplianceDep, name: str) -> CollectionInfo:
    """One collection with its model and what it holds."""
    return await asyncio.to_thread(lambda: _info(appliance, appliance.catalog.collection(name)))


@router.delete("/collections/{name}", status_code=204)
async def delete_collection(appliance: ApplianceDep, name: str) -> Response:
    """Remove a collection and every document in it."""
    await appliance.ingestor.remove_collection(name)
    return Response(status_code=204)


@router.post(
    "/collections/{name}/reindex",
    status_code=202,
    openapi_extra={"requestBody": {**request_body(ReindexBody)["requestBody"], "required": False}},
)
async def reindex_collection(
    *,
    request: Request,
    response: Response,
    appliance: ApplianceDep,
    name: str,
    model: Annotated[str | None, Query(description="name or alias of a model")] = None,
    dimensions: Annotated[int | None, Query(ge=1, description="the new model's own if left out")] = None,
) -> JobInfo:
    """Embed everything in a collection anew, with another model or cut otherwise, in the background.

    What is there goes on answering, and takes documents, until all of it is done; then it is replaced in one step. Its
    job can be followed, paused, resumed and cancelled; a restart goes on with it. Documents that can be found now and
    cannot be embedded anew hold it back: try them again, remove them, or finish without them.
    """
    body = await read_json(request, ReindexBody) if await request.body() else ReindexBody()
    if (model is not None and body.model is not None) or (dimensions is not None and body.dimensions is not None):
        raise InvalidInput("say it in the address or in the body, not in both", param="model")
    named = model if model is not None else body.model
    begun = await appliance.ingestor.reindex(
        name,
        spec=None if named is None else appliance.registry.resolve(named),
        dimensions=dimensions or body.dimensions,
        chunking=None if body.chunking is None else Chunking(**body.chunking.model_dump()),
        priority=body.priority,
    )
    appliance.jobs.touch(begun.id)
    response.headers["location"] = f"/jobs/{begun.id}"
    return job_info(begun)


@router.post("/collections/{name}/reindex/finish")
async def finish_reindex(appliance: ApplianceDep, name: str) -> JobInfo:
    """Let a reindex come to its end without the documents that hold it back; they are set aside as failed."""
    ended = await appliance.ingestor.finish_reindex(name)
    appliance.jobs.touch(ended.id)
    return job_info(ended)
