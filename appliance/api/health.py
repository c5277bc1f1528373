"""Is it alive, is it ready, how is it doing: `/health`, `/ready`, `/metrics`."""

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from appliance import __version__

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> dict[str, str]:
    """Alive: answers at once, whatever the engine and the disk are doing, and never needs a key."""
    return {"status": "ok", "version": __version__}


@router.get("/ready", responses={503: {"description": "Something is missing; the body says what."}})
async def ready(request: Request) -> JSONResponse:
    """Ready: documents get on, and the default model has answered a plain word with a usable vector."""
    components: dict[str, str] = request.app.state.appliance.ready()
    fine = all(state == "ok" for state in components.values())
    return JSONResponse(
        {"status": "ready" if fine else "not ready", "components": components},
        status_code=200 if fine else 503,
        headers={"cache-control": "no-store"} if fine else {"cache-control": "no-store", "retry-after": "1"},
    )


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Everything counted, as Prometheus reads it."""
    text = await asyncio.to_thread(request.app.state.appliance.metrics.render)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
