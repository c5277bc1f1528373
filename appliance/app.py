"""The composition root: settings in, FastAPI out. The lifespan builds everything up, an exit stack takes it down."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import structlog
from fastapi import FastAPI

from appliance import __version__
from appliance.api import collections, documents, errors, health, ollama, openai, rerank, search
from appliance.api.admission import Admission, Observed
from appliance.api.auth import Guard, Hosts, Keys, Origins
from appliance.api.deps import Appliance
from appliance.api.metrics import Metrics
from appliance.catalog.catalog import Catalog
from appliance.database import Database
from appliance.embedding.engine import EmbeddingEngine, RerankEngine
from appliance.embedding.engines import open_engine, open_reranker
from appliance.embedding.pull import ModelFiles
from appliance.embedding.registry import Registry
from appliance.embedding.spec import ModelSpec, RerankerSpec, read_cards
from appliance.errors import ApplianceError
from appliance.ingest.ingestor import Ingestor
from appliance.search.retriever import Retriever
from appliance.settings import Settings, shipped
from appliance.store.sqlite import SqliteStore

log = structlog.get_logger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """The appliance as an ASGI application. Nothing is opened before its lifespan runs."""
    metrics = Metrics(version=__version__)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app.state.appliance = await _build(settings, metrics, stack)
            yield

    app = FastAPI(
        title="Appliance",
        version=__version__,
        summary="Embeddings and retrieval from one device.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect names the scheme that we see, not the one of a proxy before us
    )
    for room in (openai, ollama, rerank, documents, collections, search, health):
        app.include_router(room.router)
    errors.install(app)
    # the last one added is the first to see a request
    app.add_middleware(Admission, max_body=settings.max_body, max_pending=settings.max_pending, metrics=metrics)
    app.add_middleware(
        Guard,
        hosts=Hosts(settings.host, allowed=settings.allowed_hosts),
        origins=Origins(settings.allowed_origins),
        keys=Keys(settings.keys()),
        metrics=metrics,
    )
    app.add_middleware(Observed, metrics=metrics)
    return app


def create_registry(settings: Settings, *, metrics: Metrics | None = None) -> Registry:
    """Every model the settings know of, none of them loaded. Call it inside the event loop that will use it."""
    cards = read_cards(shipped("config") / "models", settings.cards)
    files = ModelFiles(settings.models, offline=settings.offline)

    def opened(spec: ModelSpec) -> EmbeddingEngine:
        return open_engine(spec, files.paths(spec), cache=settings.cache, threads=settings.threads)

    def opened_reranker(spec: RerankerSpec) -> RerankEngine:
        return open_reranker(spec, files.paths(spec), cache=settings.cache, threads=settings.threads)

    return Registry(
        cards,
        default=settings.model,
        files=files,
        open_engine=opened,
        open_reranker=opened_reranker,
        reranker=settings.reranker,
        keep_alive=settings.keep_alive,
        max_waiting=settings.max_pending,
        on_batch=None if metrics is None else metrics.engine_called,
        on_embed=None if metrics is None else metrics.embedded,
        on_rerank=None if metrics is None else metrics.reranked,
    )


async def _build(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> Appliance:
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = await asyncio.to_thread(Database, settings.database)
    stack.push_async_callback(asyncio.to_thread, database.close)
    await asyncio.to_thread(database.migrate, shipped("migrations"))
    catalog = Catalog(database)
    store = SqliteStore(database)
    stack.push_async_callback(asyncio.to_thread, store.close)
    registry = create_registry(settings, metrics=metrics)
    stack.push_async_callback(registry.close)
    registry.needed = lambda spec: any(each.model == spec.name for each in catalog.collections())
    ingestor = Ingestor(
        catalog=catalog,
        store=store,
        registry=registry,
        chunk_tokens=settings.chunk_tokens,
        chunk_overlap=settings.chunk_overlap,
        on_settled=metrics.ingested,
    )
    metrics.follow("queue_depth", registry.waiting)
    metrics.follow("documents", catalog.total)
    metrics.follow("chunks", store.total)
    retriever = Retriever(
        vectors=store,
        words=store,
        depth=settings.search_depth,
        vector_weight=settings.vector_weight,
        keyword_weight=settings.keyword_weight,
        k=settings.fusion_k,
        rerank_depth=settings.rerank_depth,
    )
    await ingestor.start()
    stack.push_async_callback(ingestor.stop)
    for task in (registry.unload_idle(), _preload(registry)):
        stack.push_async_callback(_ended, asyncio.create_task(task))
    return Appliance(
        registry=registry,
        catalog=catalog,
        store=store,
        ingestor=ingestor,
        retriever=retriever,
        metrics=metrics,
        token_ids=settings.token_ids,
        strict_openai=settings.strict_openai,
        wait=settings.wait,
    )


async def _preload(registry: Registry, *, pause: float = 2.0) -> None:
    """Load the default model, however often it takes: when missing files come, by whoever's pull; else ever less often.

    Args:
        registry: not closed before this ends.
        pause: seconds between two looks for the files, and before the first new try.
    """
    default, wait = registry.default, pause
    while registry.trouble(default.name):
        try:
            await registry.get(default.name)
        except ApplianceError as error:
            log.error("default model not loaded", model=default.name, error=error.message)  # noqa: TRY400  # no trace
            await asyncio.sleep(wait)
            wait = min(2 * wait, 300)
            with suppress(OSError):  # a folder that cannot be read: the next try tells it
                while not await asyncio.to_thread(registry.present, default):
                    await asyncio.sleep(pause)
                    wait = pause


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a task failed", exc_info=error)
