"""Collections: what documents are kept in, each bound to one space of vectors."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field, model_validator

from appliance.api.deps import Appliance, ApplianceDep, StrictBody, json_body, known_query, request_body
from appliance.catalog.records import Chunking, Collection, Strategy
from appliance.errors import CollectionNotFound

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
    chunking: ChunkingBody = Field(default_factory=ChunkingBody, description="how its documents are cut, for good")


class ChunkingInfo(BaseModel):
    """How documents are cut that are put now."""

    strategy: Strategy
    tokens: int = Field(description="of a chunk at most; fewer where the model takes fewer")
    overlap: int
    header: bool


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


class CollectionList(BaseModel):
    """Every collection, oldest first."""

    collections: list[CollectionInfo]


def _info(appliance: Appliance, collection: Collection) -> CollectionInfo:
    """CollectionNotFound while it is being made or removed."""
    return CollectionInfo(
        name=collection.name,
        model=collection.model,
        space=collection.space,
        dimensions=collection.dimensions,
        chunking=ChunkingInfo(**asdict(appliance.ingestor.chunking(collection))),
        created=collection.created,
        chunks=appliance.store.count(collection.name),
        documents=dict(appliance.catalog.counts(collection.name)),
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
    """Make a collection. It keeps its model's space, its dimensions and how its documents are cut for good."""
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
