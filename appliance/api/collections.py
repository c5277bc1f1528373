"""Collections: what documents are kept in, each bound to one space of vectors."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from appliance.api.deps import Appliance, ApplianceDep, StrictBody, json_body, known_query, request_body
from appliance.catalog.records import Collection
from appliance.errors import CollectionNotFound

router = APIRouter(tags=["collections"], dependencies=[Depends(known_query)])


class CollectionBody(StrictBody):
    """A collection to make."""

    name: str
    model: str | None = Field(default=None, description="name or alias of a model; the default model if left out")
    dimensions: int | None = Field(default=None, ge=1, description="shorter vectors than the model's own")


class CollectionInfo(BaseModel):
    """A collection as it is."""

    name: str
    model: str
    space: str = Field(description="what its vectors can be compared with")
    dimensions: int
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
    """Make a collection. It keeps its model's space and its dimensions for good."""
    spec = appliance.registry.resolve(body.model) if body.model else appliance.registry.default
    made = await appliance.ingestor.create_collection(body.name, spec=spec, dimensions=body.dimensions)
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
