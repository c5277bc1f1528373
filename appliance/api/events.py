"""What happens to documents and jobs, as server-sent events and by polling.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
from contextlib import suppress
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header, Query, Response
from pydantic import BaseModel, Field
from starlette.types import Receive, Scope, Send

from appliance.api.deps import ApplianceDep, known_query
from appliance.api.jobs import JobId
from appliance.ingest.events import Event, Events, Kind, Listener

router = APIRouter(tags=["events"], dependencies=[Depends(known_query)])

HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent, so that nobody between takes the connection for dead."""

PATIENCE = 10.0
"""Seconds that a listener may take to read before it is dropped."""

_LONGEST_WAIT = 60

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events, without end."}
}

LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=100, description="go on after this event")]


class EventInfo(BaseModel):
    """Something that happened."""

    id: str
    event: Kind = Field(description="`reset`: some are missing; read anew what you follow")
    job: int | None
    data: dict[str, Any]


class EventList(BaseModel):
    """Events, the oldest first."""

    events: list[EventInfo]
    last: str = Field(description="give it as `after` the next time")


class EventStream(Response):
    """An answer without end: events as they happen, a comment in silence. It ends when the listener is dropped, or does
    not read.
    """

    media_type = "text/event-stream"

    def __init__(self, events: Events, *, after: str | None, job: int | None) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._after = after
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI's signature
        """Answer one request. Overloaded, before anything was sent, where too many listen."""
        async with self._events.listening(self._after, job=self._job) as listener:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if not scope.get("head"):
                with suppress(TimeoutError):
                    await self._stream(listener, send)
                    return
            await send({"type": "http.response.body", "body": b""})

    async def _stream(self, listener: Listener, send: Send) -> None:
        text = b"retry: 3000\n\n"
        while text:
            async with asyncio.timeout(PATIENCE):
                await send({"type": "http.response.body", "body": text, "more_body": True})
            try:
                async with asyncio.timeout(HEARTBEAT):
                    event = await listener.next()
            except TimeoutError:
                text = b": alive\n\n"
            else:
                text = _written(event) if event is not None else b""
        await send({"type": "http.response.body", "body": b""})


def _written(event: Event) -> bytes:
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event.id.encode(), event.kind.encode(), orjson.dumps(event.data))


@router.get("/events", response_class=Response, responses=_STREAM)
async def stream_events(appliance: ApplianceDep, last_event_id: LastEventId = None) -> Response:
    """What happens to documents and jobs, as server-sent events: `job` with a job as it is now, `documents` with what
    became of some, `removed` with a job that was forgotten, `reset` where events are missing.
    """
    return EventStream(appliance.events, after=last_event_id, job=None)


@router.get("/events/poll")
async def poll_events(
    appliance: ApplianceDep,
    after: Annotated[str | None, Query(max_length=100, description="`last` of the answer before")] = None,
    job: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="of this job only")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    wait: Annotated[float, Query(ge=0, le=_LONGEST_WAIT, description="seconds to wait for the first one")] = 0,
) -> EventList:
    """The same events by asking again and again; the first time, without `after`, only where to begin."""
    events = appliance.events
    found = events.since(after, job=job, limit=limit)
    if not found and after is not None and wait:
        async with events.listening(after, job=job) as listener:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await listener.next()
        found = events.since(after, job=job, limit=limit)
    last = found[-1].id if found else events.last
    told = [EventInfo(id=each.id, event=each.kind, job=each.job, data=dict(each.data)) for each in found]
    return EventList(events=told, last=last)


@router.get("/jobs/{id}/events", response_class=Response, responses=_STREAM)
async def stream_job_events(
    appliance: ApplianceDep,
    id: JobId,  # noqa: A002  # the word of the interface
    last_event_id: LastEventId = None,
) -> Response:
    """What happens to a job and its documents, beginning with the job as it is now."""
    await appliance.jobs.job(id)
    if last_event_id is None:
        appliance.jobs.touch(id)
    return EventStream(appliance.events, after=last_event_id, job=id)
