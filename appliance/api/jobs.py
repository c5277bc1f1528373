"""Jobs: what was handed in together, looked at, paused, cancelled, tried again."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, Field

from appliance.api.deps import ApplianceDep, StrictBody, json_body, known_query, read_json, request_body
from appliance.catalog.records import Items, ItemState, Job, JobKind, JobState
from appliance.ingest.jobs import Progress

router = APIRouter(tags=["jobs"], dependencies=[Depends(known_query)])

_LAST = 2**63 - 1

JobId = Annotated[int, Path(ge=1, le=_LAST, description="the job's number")]
Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[int | None, Query(ge=0, le=_LAST, description="`next` of the page before")]


class JobCounts(BaseModel):
    """How many documents of a job ended how; together they are `total`."""

    total: int
    waiting: int = Field(description="queued or being worked on")
    ready: int
    failed: int = Field(description="set aside; retry queues them again")
    refused: int = Field(description="nothing could be read from them")
    skipped: int = Field(description="taken back, removed or replaced before their turn came")
    unchanged: int = Field(description="here already, with the same content")
    moved: int = Field(description="took a new id, with all they had")


class JobInfo(BaseModel):
    """A job as it is."""

    id: int
    collection: str
    kind: JobKind
    name: str = Field(description="of the archive or folder, or of the model that a reindex embeds with")
    state: JobState
    priority: int
    counts: JobCounts
    complete: bool = Field(description="false while an archive or folder is still read, or a collection reindexed")
    rate: float | None = Field(description="documents a second just now; None where it is not known")
    remaining: float | None = Field(description="seconds it will take at this rate")
    error: str | None = Field(description="why not all could be read, or what holds a reindex back")
    created: datetime
    ended: datetime | None


class JobDocument(BaseModel):
    """A document of a job, and what became of it."""

    id: str
    state: ItemState
    error: str | None


class JobWithFailures(JobInfo):
    """A job with a page of those of its documents that failed or were refused."""

    failures: list[JobDocument]
    next: int | None = Field(description="give it as `after` for the next page; None on the last one")


class JobDocuments(BaseModel):
    """One page of a job's documents, in the order they came in."""

    documents: list[JobDocument]
    next: int | None = Field(description="give it as `after` for the next page; None on the last one")


class JobList(BaseModel):
    """One page of jobs, the newest first."""

    jobs: list[JobInfo]
    next: int | None = Field(description="give it as `before` for the next page; None on the last one")


class RetryBody(StrictBody):
    """What to try again."""

    documents: list[str] | None = Field(default=None, min_length=1, max_length=500, description="all that failed")


class SkipBody(StrictBody):
    """What to leave out."""

    document: str


class RetryOutcome(JobInfo):
    """A job, and how many of its documents were queued again."""

    retried: int


def job_info(job: Job | Progress) -> JobInfo:
    """A job as it is answered."""
    return JobInfo(**(job if isinstance(job, Progress) else Progress(job)).told())


def _documents(items: Items) -> list[JobDocument]:
    return [JobDocument(id=each.id, state=each.state, error=each.error or None) for each in items.items]


@router.get("/jobs")
async def list_jobs(
    appliance: ApplianceDep,
    limit: Limit = 100,
    before: Annotated[int | None, Query(ge=1, le=_LAST, description="`next` of the page before")] = None,
    state: JobState | None = None,
    collection: str | None = None,
) -> JobList:
    """Jobs, the newest first."""
    found = await appliance.jobs.jobs(limit=limit + 1, before=before, state=state, collection=collection)
    page = [job_info(each) for each in found[:limit]]
    return JobList(jobs=page, next=page[-1].id if len(found) > limit else None)


@router.get("/jobs/{id}")
async def read_job(
    appliance: ApplianceDep,
    id: JobId,  # noqa: A002  # the word of the interface
    limit: Limit = 100,
    after: After = None,
) -> JobWithFailures:
    """A job with what failed of it, and why."""
    progress = await appliance.jobs.job(id)
    items = await appliance.jobs.items(id, limit=limit, after=after, states=["failed", "refused"])
    return JobWithFailures(**progress.told(), failures=_documents(items), next=items.next)


@router.get("/jobs/{id}/documents")
async def list_job_documents(
    appliance: ApplianceDep,
    id: JobId,  # noqa: A002  # same
    limit: Limit = 100,
    after: After = None,
    state: ItemState | None = None,
) -> JobDocuments:
    """A job's documents in the order they came in."""
    items = await appliance.jobs.items(id, limit=limit, after=after, states=[] if state is None else [state])
    return JobDocuments(documents=_documents(items), next=items.next)


@router.post("/jobs/{id}/pause")
async def pause_job(appliance: ApplianceDep, id: JobId) -> JobInfo:  # noqa: A002  # same
    """Begin with no more of its documents, and give back what has not come far."""
    return job_info(await appliance.jobs.pause(id))


@router.post("/jobs/{id}/resume")
async def resume_job(appliance: ApplianceDep, id: JobId) -> JobInfo:  # noqa: A002  # same
    """Go on with a paused job."""
    return job_info(await appliance.jobs.resume(id))


@router.post("/jobs/{id}/cancel")
async def cancel_job(appliance: ApplianceDep, id: JobId) -> JobInfo:  # noqa: A002  # same
    """Take back what waits or has not come far: new documents are removed, changed ones keep their old version and
    count as failed. Of a reindex, everything is taken back, and the collection stays as it is.
    """
    return job_info(await appliance.jobs.cancel(id))


@router.post(
    "/jobs/{id}/retry", openapi_extra={"requestBody": {**request_body(RetryBody)["requestBody"], "required": False}}
)
async def retry_job(request: Request, appliance: ApplianceDep, id: JobId) -> RetryOutcome:  # noqa: A002  # same
    """Queue again what failed, all of it or some documents."""
    body = await read_json(request, RetryBody) if await request.body() else RetryBody()
    job, retried = await appliance.jobs.retry(id, body.documents)
    return RetryOutcome(**Progress(job).told(), retried=retried)


@router.post("/jobs/{id}/skip", openapi_extra=request_body(SkipBody))
async def skip_document(
    appliance: ApplianceDep,
    id: JobId,  # noqa: A002  # same
    body: Annotated[SkipBody, Depends(json_body(SkipBody))],
) -> JobInfo:
    """Take back one document that waits or is being worked on."""
    return job_info(await appliance.jobs.skip(id, body.document))


@router.delete("/jobs/{id}", status_code=204)
async def forget_job(appliance: ApplianceDep, id: JobId) -> Response:  # noqa: A002  # same
    """Forget a job that has ended; its documents stay."""
    await appliance.jobs.forget(id)
    return Response(status_code=204)
