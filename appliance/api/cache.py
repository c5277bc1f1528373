"""What embeddings are remembered, and forgetting them: `/cache`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from appliance.api.deps import ApplianceDep, known_query
from appliance.embedding.caches.cache import CacheFigures
from appliance.embedding.caches.entry import checked_pattern

router = APIRouter(tags=["cache"], dependencies=[Depends(known_query)])


class Hits(BaseModel):
    """Looks since the start."""

    hits: int
    misses: int
    hit_rate: float = Field(description="hits of all looks, 0 to 1; 0 before the first one")


class LayerInfo(Hits):
    """One place where embeddings are remembered."""

    name: str = Field(description="memory, disk or redis")
    up: bool = Field(description="whether it is used at present; a server or file that failed is tried again later")
    entries: int | None = Field(description="null of redis, which is shared")
    bytes: int | None = Field(description="what they take, roughly; null of redis")
    evictions: int = Field(description="entries dropped for want of room")
    errors: int = Field(description="calls that failed, and values that could not be used")


class CacheInfo(Hits):
    """All looks of `/v1/embeddings` and the like, and each layer, in the order they are asked."""

    layers: list[LayerInfo]


class Removed(BaseModel):
    """How much was forgotten."""

    removed: int = Field(description="entries; one in two layers counts twice")


@router.get("/cache")
async def read_cache(appliance: ApplianceDep) -> CacheInfo:
    """How often an embedding was remembered, and what each layer holds. No layers where the settings want no cache.

    A layer's hits and misses are of what it was asked: a layer is asked for what the ones before it did not know. The
    hits of the whole count as well what was computed at that moment for another caller.
    """
    figures = CacheFigures(0, 0, ()) if appliance.cache is None else await appliance.cache.figures()
    return CacheInfo(
        hits=figures.hits,
        misses=figures.misses,
        hit_rate=_rate(figures.hits, figures.misses),
        layers=[
            LayerInfo(
                name=layer.name,
                up=layer.up,
                entries=layer.entries,
                bytes=layer.bytes,
                hits=layer.hits,
                misses=layer.misses,
                hit_rate=_rate(layer.hits, layer.misses),
                evictions=layer.evictions,
                errors=layer.errors,
            )
            for layer in figures.layers
        ],
    )


@router.delete("/cache")
async def clear_cache(
    appliance: ApplianceDep,
    pattern: Annotated[
        str | None,
        Query(
            description="of keys `<model>@<fingerprint>:<kind>:<dimensions>:<max_tokens>:<hash of the text>`; `*` "
            "stands for any characters, `?` for one: `all-minilm-l6-v2*`, `*:query:*`. Everything if left out",
        ),
    ] = None,
) -> Removed:
    """Forget embeddings, in every layer that can be had."""
    if pattern is not None:
        checked_pattern(pattern)
    return Removed(removed=0 if appliance.cache is None else await appliance.cache.remove(pattern))


def _rate(hits: int, misses: int) -> float:
    return hits / (hits + misses) if hits else 0.0
