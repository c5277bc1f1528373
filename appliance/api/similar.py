"""Documents that are like one that is here: no question, no model, only vectors that are stored."""

import asyncio
from time import perf_counter
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from appliance.api.deps import ApplianceDep, known_query
from appliance.api.documents import DEFAULT_COLLECTION, Collection
from appliance.api.search import MatchInfo, match_info
from appliance.api.where import FILTER, conditions
from appliance.search.retriever import MAX_LIMIT, Place

router = APIRouter(tags=["search"], dependencies=[Depends(known_query)])


class SimilarAnswer(BaseModel):
    """Documents that are like one, the most similar first."""

    collection: str
    document: str
    seconds: float
    matches: list[MatchInfo]


@router.get("/documents/{id:path}/similar", response_model_exclude_unset=True)
async def similar_documents(  # noqa: PLR0917  # FastAPI passes them by name
    appliance: ApplianceDep,
    id: str,  # noqa: A002  # the word of the interface
    collection: Collection = DEFAULT_COLLECTION,
    k: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="documents")] = 10,
    per_document: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="passages that are given of each")] = 1,
    min_score: Annotated[
        float | None, Query(allow_inf_nan=False, description="leaves out what has a smaller cosine similarity")
    ] = None,
    where: Annotated[
        list[str] | None, Query(description="`key=value`, also != < <= > >=; repeated, all must hold")
    ] = None,
    filter: Annotated[str | None, Query(description=FILTER)] = None,  # noqa: A002  # same
) -> SimilarAnswer:
    """Other documents of the collection whose passages are nearest to this one's mean vector."""
    start = perf_counter()
    held = conditions(where, filter)

    def read() -> Place:
        appliance.catalog.document(collection, id)
        there = appliance.catalog.collection(collection)
        return Place(collection, there.space, there.dimensions, stored_as=there.stored_as)

    place = await asyncio.to_thread(read)
    answer = await appliance.retriever.similar(
        place, id, limit=k, per_document=per_document, min_score=min_score, where=held
    )
    matches = [
        match_info(best, passages=[match_info(each) for each in others]) if others else match_info(best)
        for best, *others in answer.groups
    ]
    return SimilarAnswer(collection=collection, document=id, seconds=round(perf_counter() - start, 6), matches=matches)
