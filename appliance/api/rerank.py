"""Reranking, as the clients of Jina, Cohere and text-embeddings-inference (TEI) ask for it."""

from typing import Annotated, Any, Literal, TypeAlias
from uuid import uuid4

import orjson
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from appliance.api.deps import ApplianceDep, json_body, provenance, request_body
from appliance.api.errors import envelope
from appliance.embedding.reranker import Scores
from appliance.errors import InputTooLong, InvalidInput

router = APIRouter(tags=["rerank"])

MAX_DOCUMENTS = 1024
"""Of one request: each is read together with the query, anew each time. Cohere advises its callers to stay at 1,000."""


def _text(given: object) -> object:
    """A document's text, be it in an object or not."""
    return given.get("text") if isinstance(given, dict) else given


Document: TypeAlias = Annotated[
    str,
    BeforeValidator(_text),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
            ]
        }
    ),
]


class RerankBody(BaseModel):
    """What to rank for what: either `documents`, as Jina and Cohere have it, or `texts`, as TEI has it.

    Unknown keys are ignored, and null is as if left out.
    """

    query: str
    model: str | None = Field(default=None, description="name or alias of a reranker; the appliance's own if left out")
    truncate: bool | None = Field(default=None, description="false refuses a text that is too long")
    documents: list[Document] | None = Field(default=None, description=f"1 to {MAX_DOCUMENTS}")
    top_n: int | None = Field(default=None, ge=0, strict=True, description="so many of the best; 0 is all")
    return_documents: bool | None = Field(default=None, description="repeat the documents in the answer")
    texts: list[str] | None = Field(default=None, description=f"1 to {MAX_DOCUMENTS}")
    raw_scores: bool | None = Field(default=None, description="of `texts`: logits, not 0 to 1")
    return_text: bool | None = Field(default=None, description="of `texts`: repeat them in the answer")
    truncation_direction: Literal["right", "Right"] | None = Field(default=None, description="only ends are cut")


class RankedDocument(BaseModel):
    """A document of the request, repeated."""

    text: str


class Ranked(BaseModel):
    """How relevant a document is, 0 to 1; `index` is its place in the request."""

    index: int
    relevance_score: float
    document: RankedDocument | None = None


class RankedText(BaseModel):
    """How relevant a text is, 0 to 1, or its logit; `index` is its place in the request."""

    index: int
    score: float
    text: str | None = None


class RerankUsage(BaseModel):
    """Tokens of all pairs of query and document, special tokens included, after truncation."""

    prompt_tokens: int
    total_tokens: int


class RerankAnswer(BaseModel):
    """Documents, the most relevant first; the earlier of equals."""

    id: str
    model: str
    results: list[Ranked]
    usage: RerankUsage


@router.post("/v1/rerank", response_model=RerankAnswer | list[RankedText], openapi_extra=request_body(RerankBody))
@router.post("/v2/rerank", response_model=RerankAnswer | list[RankedText], openapi_extra=request_body(RerankBody))
@router.post("/rerank", response_model=RerankAnswer | list[RankedText], openapi_extra=request_body(RerankBody))
async def rerank(
    request: Request, appliance: ApplianceDep, body: Annotated[RerankBody, Depends(json_body(RerankBody))]
) -> Response:
    """Order documents by how relevant they are to the query.

    `documents` are answered as Jina and Cohere do, `texts` with a bare list as TEI does. What is too long together with
    the query is cut, and the header `x-appliance-truncated` counts how often; `x-appliance-model` and
    `x-appliance-engine` say what did it.
    """
    field, texts = _texts(body)
    if not texts:
        return envelope(request.url.path, 400, f"{field} is empty: there is nothing to rank", param=field)
    reranker = await appliance.registry.reranker(body.model or None)
    try:
        scores = await reranker.scores(body.query, texts, truncate=body.truncate is not False)
    except InputTooLong as error:
        error.param = field
        raise
    content = _ranked_documents(scores, body, texts) if field == "documents" else _ranked_texts(scores, body, texts)
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY),
        headers=provenance(scores),
        media_type="application/json",
    )


def _texts(body: RerankBody) -> tuple[Literal["documents", "texts"], list[str]]:
    if not body.query.strip():
        raise InvalidInput("query is empty", param="query")
    if (body.documents is None) == (body.texts is None):
        raise InvalidInput("one of documents and texts is needed, and not both", param="documents")
    field: Literal["documents", "texts"] = "texts" if body.documents is None else "documents"
    texts = body.documents or body.texts or []
    if len(texts) > MAX_DOCUMENTS:
        raise InvalidInput(f"{field}: {MAX_DOCUMENTS} are the most of one request, not {len(texts)}", param=field)
    return field, texts


def _ranked_documents(scores: Scores, body: RerankBody, texts: list[str]) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    for place in scores.ranking()[: body.top_n or None]:
        document = {"document": {"text": texts[place]}} if body.return_documents else {}
        results.append({"index": place, "relevance_score": scores.relevance[place], **document})
    tokens = sum(scores.tokens)
    return {
        "id": f"rerank-{uuid4().hex}",
        "model": body.model or scores.model,
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _ranked_texts(scores: Scores, body: RerankBody, texts: list[str]) -> list[dict[str, Any]]:
    values = scores.logits if body.raw_scores else scores.relevance
    return [
        {"index": place, "score": values[place], **({"text": texts[place]} if body.return_text else {})}
        for place in scores.ranking()
    ]
