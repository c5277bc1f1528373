"""The composition root: settings in, FastAPI out. The lifespan builds everything up, an exit stack takes it down."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from fastapi import FastAPI

from appliance import __version__
from appliance.api import (
    cache,
    collections,
    documents,
    errors,
    events,
    generate,
    health,
    jobs,
    ollama,
    openai,
    rerank,
    search,
    similar,
    similarity,
    tei,
)
from appliance.api.admission import Admission, Observed
from appliance.api.auth import Guard, Hosts, Keys, Origins
from appliance.api.deps import Appliance
from appliance.api.metrics import Metrics
from appliance.catalog.catalog import Catalog
from appliance.catalog.opening import open_shared
from appliance.database import Database, locked
from appliance.embedding.caches.cache import EmbeddingCache, open_cache
from appliance.embedding.engine import EmbeddingEngine, RemoteEngine, RerankEngine
from appliance.embedding.engines import open_engine, open_reranker
from appliance.embedding.engines.remote.access import Remote
from appliance.embedding.engines.rkllm.board import Npu, this_board
from appliance.embedding.fit import Fit
from appliance.embedding.pull import ModelFiles
from appliance.embedding.registry import Registry
from appliance.embedding.spec import Card, ModelSpec, RerankerSpec, read_cards, usable_cards
from appliance.errors import ApplianceError, InvalidInput, ModelNotFound
from appliance.ingest.events import Events
from appliance.ingest.ingestor import Ingestor
from appliance.ingest.jobs import Jobs
from appliance.search.retriever import Retriever
from appliance.settings import Settings, shipped
from appliance.store.base import Store
from appliance.store.opening import Place, open_store

if TYPE_CHECKING:
    from appliance.embedding.engines.rkllm.simulated import Prepared

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
    rooms = (
        openai,
        generate,
        ollama,
        rerank,
        tei,
        similarity,
        similar,  # before every other document
        documents,
        jobs,
        events,
        collections,
        search,
        cache,
        health,
    )
    for room in rooms:
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


def read_models(settings: Settings) -> list[Card]:
    """Every card that the settings know of. Blocking; the simulated NPU is built first, if it was asked for.

    Raises:
        InvalidInput: a file in the folders of cards is none.
        EngineUnavailable: the simulated NPU cannot be built.
    """
    return _with_shipped(settings, read_cards(settings.cards))


def _with_shipped(settings: Settings, own: Iterable[Card]) -> list[Card]:
    """The owner's cards, and those that came along but for the ones of the same name."""
    cards = {card.name: card for card in (*read_cards(shipped("config") / "models"), *own)}
    return [*cards.values(), *(_simulated(settings).cards if settings.simulate_npu else ())]


def create_registry(
    settings: Settings, *, metrics: Metrics | None = None, cache: EmbeddingCache | None = None
) -> Registry:
    """Every model the settings know of, none of them loaded. Call it inside the event loop that will use it.

    Raises:
        InvalidInput: as `read_models`; or the settings want the NPU, and the default model runs on the CPU.
    """
    settings.secret("")  # a file of secrets that cannot be read is told now
    files = ModelFiles(settings.models, offline=settings.offline)
    npu = _npu(settings, metrics)
    threads, batch_tokens = settings.threads, settings.batch_tokens
    remote = Remote(secret=settings.secret)

    def opened(spec: ModelSpec) -> EmbeddingEngine | RemoteEngine:
        return open_engine(
            spec,
            files.paths(spec),
            cache=settings.cache,
            threads=threads,
            batch_tokens=batch_tokens,
            npu=npu,
            max_pixels=settings.max_pixels,
            remote=remote,
        )

    def opened_reranker(spec: RerankerSpec) -> RerankEngine:
        return open_reranker(
            spec, files.paths(spec), cache=settings.cache, threads=threads, batch_tokens=batch_tokens, npu=npu
        )

    fit = Fit(settings.engine, npu.platform)
    registry = Registry(
        read_models(settings),
        default=settings.model,
        files=files,
        open_engine=opened,
        open_reranker=opened_reranker,
        has_secret=partial(_has_secret, settings),
        reranker=settings.reranker,
        aliases=settings.aliases,
        fallback=settings.fallback,
        use_fallback=settings.use_fallback,
        fit=fit,
        keep_alive=settings.keep_alive,
        memory=settings.memory_budget,
        max_waiting=settings.max_pending,
        cache=cache,
        on_batch=None if metrics is None else metrics.engine_called,
        on_embed=None if metrics is None else metrics.embedded,
        on_rerank=None if metrics is None else metrics.reranked,
        on_fallback=(lambda _asked, _answered: None) if metrics is None else metrics.fell_back,
    )
    fit.check_default(registry.default, registry.cards())
    return registry


def _has_secret(settings: Settings, name: str) -> bool:
    try:
        return settings.secret(name) is not None
    except InvalidInput:  # told when the model is asked for
        return False


def _npu(settings: Settings, metrics: Metrics | None) -> Npu:
    return Npu(
        library=_simulated(settings).library if settings.simulate_npu else settings.npu_library,
        family=None if settings.npu_abi == "auto" else settings.npu_abi,
        simulated=settings.simulate_npu,
        platform="rk3588" if settings.simulate_npu else this_board() or "",
        seconds=settings.npu_timeout,
        on_restart=(lambda _model, _reason: None) if metrics is None else metrics.engine_restarted,
    )


def _simulated(settings: Settings) -> "Prepared":
    from appliance.embedding.engines.rkllm import simulated  # what it needs is not needed for a real one

    family = "C" if settings.npu_abi == "auto" else settings.npu_abi
    return simulated.prepared(shipped("native"), settings.cache / "simulated-npu", family=family)


async def _build(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> Appliance:
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    closing = ExitStack()
    stack.push_async_callback(asyncio.to_thread, closing.close)
    catalog, store = await asyncio.to_thread(opened, settings, closing)
    watch = _Watch(store)
    if settings.simulate_npu:
        await asyncio.to_thread(_simulated, settings)  # compiled here, so that it is there below
    cache = _cache(settings, metrics)
    if cache is not None:
        stack.push_async_callback(cache.close)
        metrics.follow("cache_entries", lambda: len(cache))
    registry = create_registry(settings, metrics=metrics, cache=cache)
    stack.push_async_callback(registry.close)
    if settings.engine == "npu":
        await _load_default(registry)  # or no start at all
    registry.needed = lambda spec: any(
        each.model == spec.name for each in (*catalog.collections(), *catalog.successors.all())
    )
    ingestor = Ingestor(
        catalog=catalog,
        store=store,
        registry=registry,
        chunk_tokens=settings.chunk_tokens,
        chunk_overlap=settings.chunk_overlap,
        max_pixels=settings.max_pixels,
        on_settled=metrics.ingested,
    )
    told = Events()
    running = Jobs(
        catalog=catalog,
        ingestor=ingestor,
        events=told,
        roots=settings.ingest_roots,
        watched=settings.watched(),
    )
    metrics.follow_jobs(catalog.jobs.counts)
    metrics.follow("queue_depth", registry.waiting)
    metrics.follow("documents", catalog.total)
    metrics.follow("chunks", store.total)
    retriever = Retriever(
        vectors=store,
        words=store,
        depth=settings.search_depth,
        fusion=settings.fusion,
        vector_weight=settings.vector_weight,
        keyword_weight=settings.keyword_weight,
        literal_boost=settings.literal_boost,
        k=settings.fusion_k,
        rerank_depth=settings.rerank_depth,
    )
    await ingestor.start()
    stack.push_async_callback(ingestor.stop)
    await running.start()
    stack.push_async_callback(running.stop)
    preloads = dict.fromkeys([registry.default.name, *(_to_preload(registry, name) for name in settings.preload)])
    loads = (_preload(registry, name) for name in preloads)
    warming = asyncio.to_thread(store.warm)
    watches = [] if settings.store == "sqlite" else [watch.run()]
    for task in (registry.unload_idle(), _follow_cards(settings, registry), warming, *watches, *loads):
        stack.push_async_callback(_ended, asyncio.create_task(task))
    return Appliance(
        registry=registry,
        catalog=catalog,
        store=store,
        store_trouble=lambda: watch.trouble,
        ingestor=ingestor,
        jobs=running,
        events=told,
        retriever=retriever,
        metrics=metrics,
        cache=cache,
        token_ids=settings.token_ids,
        strict_openai=settings.strict_openai,
        wait=settings.wait,
        max_pending=settings.max_pending,
    )


def opened(settings: Settings, stack: ExitStack) -> tuple[Catalog, Store]:
    """Catalog and store where the settings have them, their schemas brought up to date. Blocking.

    Raises:
        InvalidInput: a setting that they need is missing or wrong.
        StoreError: one of them cannot be opened.
    """
    migrations = shipped("migrations")
    address = settings.catalog_address()
    database = None
    if address:
        stack.callback(locked(settings.database).close)
        catalog = open_shared(address, data=settings.data, migrations=migrations, stack=stack)
        if settings.database.exists() and not catalog.collections():
            log.warning(
                "appliance.db in the data directory has a catalog that is not used",
                move=f"appliance store copy --from sqlite --to {settings.store}",
            )
    else:
        database = Database(settings.database)
        stack.callback(database.close)
        database.migrate(migrations)
        catalog = Catalog(database)
    place, spaces = store_place(settings), space_of(catalog)
    return catalog, open_store(place, database=database, migrations=migrations, stack=stack, space_of=spaces)


def store_place(settings: Settings) -> Place:
    """Where the settings have chunks and vectors live. Blocking. InvalidInput as `Settings.secret`."""
    return Place(
        kind=settings.store,
        url="" if settings.store == "sqlite" else settings.store_address(),
        index=settings.store_index,
        distance=settings.store_distance,
        precision=settings.store_precision,
        title_weight=settings.title_weight,
        memory=settings.search_memory,
        candidates=settings.search_candidates,
    )


def space_of(catalog: Catalog) -> Callable[[str], str]:
    """Tells in which space the vectors are that the store has under a name; "" where the catalog does not know it.
    Blocking.
    """

    def told(stored_as: str) -> str:
        found = catalog.stored(stored_as)
        return "" if found is None else found.space

    return told


class _Watch:
    """Asks a store on another machine again and again whether it is there."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.trouble = ""
        """Why it does not answer; empty while it does."""

    async def run(self, *, pause: float = 1.0) -> None:
        """For as long as the task runs, every `pause` seconds."""
        while True:
            try:
                await asyncio.to_thread(self._store.total)
            except ApplianceError as error:
                if not self.trouble:
                    log.error("the store is away", error=error.message)  # noqa: TRY400  # no trace
                self.trouble = error.message
            else:
                if self.trouble:
                    log.info("the store is back")
                self.trouble = ""
            await asyncio.sleep(pause)


def _cache(settings: Settings, metrics: Metrics) -> EmbeddingCache | None:
    return open_cache(
        entries=settings.cache_entries,
        ttl=settings.cache_ttl,
        path=settings.cache / "embeddings.db" if settings.cache_on_disk else None,
        size=settings.cache_disk_size,
        redis_url=settings.redis_url.get_secret_value(),
        redis_ttl=settings.redis_ttl,
        on_lookup=metrics.cache_asked,
    )


def _to_preload(registry: Registry, name: str) -> str:
    try:
        return registry.card(name).name
    except ModelNotFound as error:
        raise ModelNotFound(f'there is no model "{name}": the setting preload names it', name=name) from error


async def _load_default(registry: Registry) -> None:
    embedder = await registry.get(registry.default.name)
    log.info("default model ready", model=embedder.spec.name, engine=embedder.engine_label)


async def _preload(registry: Registry, name: str, *, pause: float = 2.0) -> None:
    """Load a model, however often it takes: when missing files come, by whoever's pull; else ever less often.

    Args:
        registry: not closed before this ends.
        name: of the model.
        pause: seconds between two looks for the files, and before the first new try.
    """
    wait = pause
    with suppress(ModelNotFound):  # the card was taken away
        while registry.trouble(name):
            try:
                await registry.load(name)
            except ModelNotFound:
                raise
            except ApplianceError as error:
                log.error("model not loaded", model=name, error=error.message)  # noqa: TRY400  # no trace
                await asyncio.sleep(wait)
                wait = min(2 * wait, 300)
                with suppress(OSError):  # a folder that cannot be read: the next try tells it
                    while not await asyncio.to_thread(registry.present, registry.card(name)):
                        await asyncio.sleep(pause)
                        wait = pause
            else:
                log.info("model ready", model=name)


async def _follow_cards(settings: Settings, registry: Registry, *, pause: float = 2.0) -> None:
    """Take over what changes in the owner's cards, for as long as the task runs. A file that is no card is told once,
    and the card that it was before stays; cards that do not go together change nothing.

    Args:
        settings: where the cards are.
        registry: takes them.
        pause: seconds between two looks.
    """

    def tell(error: ApplianceError) -> None:
        log.error("cards not taken over", error=error.message)

    seen = await asyncio.to_thread(_state, settings.cards)
    own = await asyncio.to_thread(usable_cards, settings.cards, {}, tell)
    while True:
        await asyncio.sleep(pause)
        state = await asyncio.to_thread(_state, settings.cards)
        if state != seen:
            seen = state
            try:
                own = await asyncio.to_thread(usable_cards, settings.cards, own, tell)
                registry.reload(await asyncio.to_thread(_with_shipped, settings, own.values()))
            except ApplianceError as error:
                tell(error)
            except Exception:
                log.exception("cards not taken over")
            else:
                log.info("cards taken over", models=len(registry.cards()))


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """What tells whether a card of the folder changed, came or went."""
    state = []
    for path in sorted(folder.glob("[!.]*.toml")):
        with suppress(OSError):
            about = path.stat()
            state.append((path.name, about.st_mtime_ns, about.st_size))
    return state


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a task failed", exc_info=error)
