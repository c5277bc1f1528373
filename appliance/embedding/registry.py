"""Names and aliases to embedders and rerankers: loaded on first use, kept for as long as asked, unloaded when idle."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from math import ceil
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import structlog

from appliance import __version__
from appliance.embedding.breaker import Breaker
from appliance.embedding.caches.cache import EmbeddingCache
from appliance.embedding.embedder import Embedder, Embeddings
from appliance.embedding.engine import EmbeddingEngine, Image, Input, RemoteEngine, RerankEngine
from appliance.embedding.fit import Fit, on_npu
from appliance.embedding.names import Names
from appliance.embedding.pull import ModelFiles, Progress
from appliance.embedding.pulls import SharedPull
from appliance.embedding.reranker import Reranker, Scores
from appliance.embedding.room import Room, memory_of
from appliance.embedding.serving import Serving
from appliance.embedding.slot import Slot
from appliance.embedding.spec import Card, HasFiles, Kind, ModelSpec, RemoteSpec, RerankerSpec, RkllmSpec
from appliance.errors import (
    Conflict,
    EngineError,
    EngineUnavailable,
    InvalidInput,
    ModelNotFound,
    Overloaded,
    UpstreamFailed,
)

_TICK = 0.5
"""Seconds between two looks for models to unload."""

_PATIENCE = 10.0
"""Seconds that `close` waits for models to load or unload before it leaves their threads behind."""

_REST = 30.0
"""Seconds that a model of the NPU which cannot be loaded is not tried again, where another one stands in for it."""

S = TypeVar("S", bound=Serving[Any])

log = structlog.get_logger(__name__)


class Loaded(NamedTuple):
    """A model in memory; `expires_at` is None when it stays, `engine` is what runs it."""

    spec: Card
    expires_at: datetime | None
    engine: str


class Registry:
    """Every model that the appliance knows. Belongs to one event loop.

    Args:
        cards: as `Names` takes them, and so `default`, `reranker`, `aliases` and `fallback`.
        default: name or alias of the model where a request names none.
        files: where model files are.
        open_engine: blocking; called on a thread of its own, once for a model that is not loaded.
        open_reranker: the same for a reranker's card.
        has_secret: whether there is a secret of this name, which the card of a remote model asks for.
        reranker: name or alias of the model that reranks where a request names none; empty for the first one whose
            files are here.
        aliases: more names for models.
        fallback: names of models that answer for one that fails, where that is wanted.
        use_fallback: whether it is wanted by callers of `embed` who do not say.
        fit: which cards suit this machine.
        keep_alive: seconds a model stays after its last use; negative for ever.
        memory: bytes that loaded models may take, as far as their files tell it; 0 for no limit.
        max_waiting: requests that may wait for one model.
        cache: remembers what embedders answered; the registry does not close it.
        on_batch: told model, engine, the tokens of each input, and the seconds, of every engine call; from the engines'
            threads.
        on_embed: told every answer of an embedder, and the seconds it took; on the event loop.
        on_rerank: told every answer of a reranker; on the event loop.
        on_fallback: told the model that was asked and the one that answered for it; on the event loop.

    Raises:
        ModelNotFound, InvalidInput: as `Names`.
    """

    def __init__(
        self,
        cards: Iterable[Card],
        *,
        default: str,
        files: ModelFiles,
        open_engine: Callable[[ModelSpec], EmbeddingEngine | RemoteEngine],
        open_reranker: Callable[[RerankerSpec], RerankEngine],
        has_secret: Callable[[str], bool] = lambda _: False,
        reranker: str = "",
        aliases: Mapping[str, str] | None = None,
        fallback: Sequence[str] = (),
        use_fallback: bool = False,
        fit: Fit | None = None,
        keep_alive: float = -1,
        memory: int = 0,
        max_waiting: int = 512,
        cache: EmbeddingCache | None = None,
        on_batch: Callable[[str, str, Sequence[int], float], None] | None = None,
        on_embed: Callable[[Embeddings, float], None] | None = None,
        on_rerank: Callable[[Scores], None] | None = None,
        on_fallback: Callable[[str, str], None] = lambda _asked, _answered: None,
    ) -> None:
        self._files = files
        self._open_engine = open_engine
        self._open_reranker = open_reranker
        self._has_secret = has_secret
        self._fit = fit or Fit()
        self.use_fallback = use_fallback
        """Whether callers of `embed` who do not say want a fallback."""
        self._keep_alive = keep_alive
        self._room = Room(memory, self._occupied)
        self._max_waiting = max_waiting
        self._cache = cache
        self._on_batch = on_batch
        self._on_embed = on_embed
        self._on_rerank = on_rerank
        self._on_fallback = on_fallback
        self._closed = False
        self._named = partial(
            Names,
            default=default,
            reranker=reranker,
            aliases=aliases,
            fallback=fallback,
            fit=self._fit,
            present=self.present,
        )
        self._names = self._named(cards)
        self._embedders: dict[str, Slot[Embedder]] = {}
        self._rerankers: dict[str, Slot[Reranker]] = {}
        self._retired: list[Slot[Embedder] | Slot[Reranker]] = []
        self._pulls: dict[str, SharedPull] = {}
        self._breakers: dict[str, Breaker] = {}
        for card in self._names.by_name.values():
            self._add(card)
        self._resting: dict[str, float] = {}  # until when a model of the NPU is not tried
        self._replaced: dict[str, float] = {}  # what of this was logged
        self.needed: Callable[[Card], bool] = lambda _: False
        """Whether something kept depends on the model, so that its files stay."""

    @property
    def default(self) -> ModelSpec:
        """The model where a request names none."""
        return self._names.default

    def cards(self) -> list[Card]:
        """Every card, the default first."""
        return self._names.all()

    def installed(self) -> list[Card]:
        """The cards whose files are here, the default first."""
        return [card for card in self.cards() if self.present(card)]

    def present(self, spec: Card) -> bool:
        """Whether the model's files are here, or the key to the server that runs it. Cheap; any thread."""
        if isinstance(spec, RemoteSpec):
            return not spec.key or self._has_secret(spec.key)
        return self._files.present(spec)

    def modified(self, spec: Card) -> datetime | None:
        """When the model's files came; None for a model without files."""
        return self._files.modified(spec)

    def size(self, spec: Card) -> int:
        """Bytes of the model's files."""
        return self._files.size(spec)

    def aliases(self) -> Mapping[str, str]:
        """As `Names.aliases`."""
        return self._names.aliases()

    def resolve(self, name: str) -> ModelSpec:
        """As `Names.resolve`."""
        return self._names.resolve(name)

    def card(self, name: str) -> Card:
        """As `Names.card`."""
        return self._names.card(name)

    def within(self, space: str, made_with: str, *, asked: str | None = None) -> ModelSpec:
        """The card to embed with where vectors of `space` are wanted.

        Args:
            space: what the vectors are to be compared with.
            made_with: the card that a collection was made with. Where its files are missing, another installed card
                of the space stands in for it; without one it is `made_with` still, and `get` tells what to pull.
            asked: a model the caller insists on.

        Raises:
            ModelNotFound: no model is called `asked`.
            ModelMismatch: `asked` is of another space, or `made_with` is, and nothing here is of the space.
        """
        return self._names.within(space, made_with, loaded=self._is_loaded, asked=asked)

    async def embed(
        self,
        name: str,
        inputs: Sequence[Input],
        *,
        kind: Kind = "document",
        dimensions: int | None = None,
        truncate: bool = True,
        max_tokens: int | None = None,
        use_fallback: bool | Sequence[str] | None = None,
        keep_alive: float | None = None,
    ) -> Embeddings:
        """Embed with a model or, where that is wanted and it fails, with the first of its fallback chain that answers.

        Vectors of the chain may be of another space than the model's: the answer names who gave them. A model that
        failed several times in a row is left alone for a while. Token ids mean nothing to another model, so with them
        there is no fallback.

        Args:
            name: name or alias; empty for the default model.
            inputs: as `Embedder.embed` takes them, and so `kind`, `dimensions`, `truncate` and `max_tokens`.
            kind: chooses the prefix.
            dimensions: shorten to this many. Of the chain, only models that can do so answer.
            truncate: cut a longer input, or refuse it.
            max_tokens: a tighter limit than the model's own.
            use_fallback: whether to fall back; names of models to fall back on; None for what the settings say.
            keep_alive: as for `get`.

        Raises:
            ModelNotFound: no such model, or a name in `use_fallback` is of none.
            InvalidInput: as `Embedder.embed`, or a chain that names a model twice or one that does not embed.
            Overloaded, EngineError: as `get` and `Embedder.embed` of the model itself, when nobody answered.
        """
        spec = self.resolve(name) if name else self.default
        options: dict[str, Any] = {
            "kind": kind,
            "dimensions": dimensions,
            "truncate": truncate,
            "max_tokens": max_tokens,
        }
        chain = self._chain(spec, wanted=use_fallback)
        if any(not isinstance(each, str | Image) for each in inputs):
            chain = []
        try:
            return await self._asked(spec, inputs, options, keep_alive=keep_alive, guarded=bool(chain))
        except (EngineError, Overloaded) as error:
            for card in chain:
                with suppress(EngineError, Overloaded, InvalidInput, ModelNotFound):
                    answer = await self._asked(card, inputs, options, keep_alive=keep_alive, guarded=True)
                    log.warning("fell back", model=spec.name, to=answer.model, reason=error.message)
                    self._on_fallback(spec.name, answer.model)
                    return replace(answer, instead_of=spec.name)
            raise

    async def get(self, name: str, *, keep_alive: float | None = None) -> Embedder:
        """The embedder of a model, loaded once however many ask for it at the same time.

        While the NPU or a server cannot be had, an installed one of the same space stands in, if it may.

        A caller may hold on to it: unloaded meanwhile, it has the model loaded again when it is next asked to embed.
        A caller that leaves does not end the load.

        Args:
            name: name or alias.
            keep_alive: seconds it stays after its last use; None for the setting, negative for ever.

        Raises:
            ModelNotFound: no such model.
            InvalidInput: the model does not embed.
            EngineUnavailable: its files are missing, or it cannot be opened, or the registry is closed.
            EngineFailed: opening it failed unexpectedly, or it gave no usable vector for a plain word.
        """
        spec = self.resolve(name)
        slot = self._embedders[spec.name]
        slot.keep_alive = self._keep_alive if keep_alive is None else keep_alive
        try:
            return await self._had(spec, slot)
        except EngineUnavailable as error:
            async for embedder in self._standing_in(spec, error):
                return embedder
            raise

    async def reranker(self, name: str | None = None, *, keep_alive: float | None = None) -> Reranker:
        """The reranker of a model, as `get` gives an embedder.

        Args:
            name: name or alias; None for the one of the settings, or the first whose files are here.
            keep_alive: as for `get`.

        Raises:
            ModelNotFound: no such model, or none is named and none is here.
            InvalidInput: the model does not rerank.
            EngineUnavailable, EngineFailed: as for `get`.
        """
        spec = self._reranker_card(name)
        slot = self._rerankers[spec.name]
        slot.keep_alive = self._keep_alive if keep_alive is None else keep_alive
        return await self._had(spec, slot)

    async def load(self, name: str, *, keep_alive: float | None = None) -> None:
        """Load a model, whatever it does. Arguments and errors as for `get`, or for `reranker`."""
        if self.card(name).task == "rerank":
            await self.reranker(name, keep_alive=keep_alive)
        else:
            await self.get(name, keep_alive=keep_alive)

    def loaded(self) -> list[Loaded]:
        """The models in the memory of this machine."""
        remote = {card.name for card in self._names.by_name.values() if isinstance(card, RemoteSpec)}
        now, wall = monotonic(), datetime.now(UTC)
        result = []
        for name, slot in self._slots().items():
            if slot.serving is not None and name not in remote:
                expires = slot.expires()
                until = None if expires is None else wall + timedelta(seconds=max(expires - now, 0))
                result.append(Loaded(self._names.by_name[name], until, slot.serving.engine_label))
        return result

    def trouble(self, name: str) -> str:
        """Why a model cannot be had: not loaded yet, or what the last load or call failed with; empty once it was had,
        and while another one stands in for it.

        Raises:
            ModelNotFound: no such model.
        """
        spec = self.card(name)
        for card in self._stand_ins(spec):
            serving = self._embedders[card.name].serving
            if serving is not None and not serving.trouble:
                return ""
        slot = self._slots()[spec.name]
        return slot.trouble or (slot.serving.trouble if slot.serving is not None else "")

    def waiting(self) -> int:
        """Interactive requests that wait for any engine or run."""
        return sum(slot.serving.waiting for slot in self._slots().values() if slot.serving is not None)

    async def unload(self, name: str) -> None:
        """Unload a model and what stands in for it: now, or when it is loaded and its calls have ended.

        Raises:
            ModelNotFound: no such model.
        """
        spec = self.card(name)
        cards = [spec, *self._stand_ins(spec)] if self._rests(spec) else [spec]
        for slot in (self._slots()[card.name] for card in cards):
            slot.keep_alive = 0
            if slot.idle:
                slot.empty()
                await slot.settled()

    def reload(self, cards: Iterable[Card]) -> None:
        """Take these cards in place of those there are. A model whose card changed or went is unloaded: calls under way
        end well, and who holds it is served by its new card, if that gives vectors of the same space.

        Raises:
            ModelNotFound, InvalidInput: as of `Names`, or as of `Fit.check_default`; nothing has changed then.
        """
        names = self._named(cards)
        self._fit.check_default(names.default, names.all())
        before, self._names = self._names, names
        self._retired = [slot for slot in self._retired if slot.occupied]
        for name, card in before.by_name.items():
            if names.by_name.get(name) != card:
                self._breakers.pop(name, None)
                self._resting.pop(name, None)
                if card.task == "embed":
                    self._retired.append(embedder := self._embedders.pop(name))
                    embedder.retire(partial(self._moved_embedder, card))
                else:
                    self._retired.append(reranker := self._rerankers.pop(name))
                    reranker.retire(partial(self.reranker, name))
        for name, card in names.by_name.items():
            if name not in self._slots():
                self._add(card)

    async def pull(self, name: str) -> AsyncIterator[Progress]:
        """Fetch a model's files, telling how far it is.

        One pull of a model runs at a time: later callers join it, and it goes on when they leave, until `close`.

        Raises:
            ModelNotFound: no such model.
            InvalidInput: another server runs it.
            UpstreamFailed: no source had the right bytes, or the registry is closed.
            StoreFull: no room for them.
        """
        spec = self.card(name)
        if isinstance(spec, RemoteSpec):
            raise InvalidInput(f"{spec.name} is run by another server: there is nothing to pull", param="model")
        pull = self._pulls.get(spec.name)
        if pull is None or pull.over:
            if self._closed:
                raise UpstreamFailed("the appliance is stopping")
            pull = self._pulls[spec.name] = SharedPull(partial(self._files.pull, spec), name=spec.name)
        async for progress in pull.watch():
            yield progress

    async def delete(self, name: str) -> None:
        """Remove a model's files, but those that another card needs. Calls of the model under way end well.

        Raises:
            ModelNotFound: no such model, or its files are not here.
            Conflict: it is the default or the reranker of the settings, a collection depends on it, or it has no file
                of its own.
        """
        spec = self.card(name)
        if not self.present(spec):
            raise ModelNotFound(f"model '{name}' not found", name=name)
        if spec is self.default:
            raise Conflict(f"{spec.name} is the default model; choose another default before deleting it")
        if spec is self._names.reranker:
            raise Conflict(f"{spec.name} is the reranker of the settings; choose another one before deleting it")
        if await asyncio.to_thread(self.needed, spec):
            raise Conflict(f"a collection was made with {spec.name}; delete the collection first")
        if not isinstance(spec, HasFiles):
            raise Conflict(f"{spec.name} has no files here to remove; it is there as long as its card is")
        if spec.own:
            raise Conflict(f"the files of {spec.name} were put here by hand; remove them by hand")
        others = [card for card in self.cards() if card is not spec]
        slot = self._slots()[spec.name]
        slot.keep_alive = 0  # should this caller leave halfway
        await asyncio.to_thread(self._files.remove, spec, keep=others)
        if self.present(spec):
            raise Conflict(f"every file of {spec.name} belongs to another model as well; nothing was removed")
        await slot.settled()  # it may be loading, from files it found before they went
        slot.empty()

    async def unload_idle(self) -> None:
        """Unload models whose time is over, for as long as the task runs."""
        while True:
            await asyncio.sleep(_TICK)
            for slot in self._slots().values():
                expires = slot.expires()
                if slot.idle and expires is not None and expires <= monotonic():
                    slot.empty()

    async def close(self) -> None:
        """End pulls and unload every model, whatever waits for it. Nothing is loaded or pulled afterwards."""
        self._closed = True
        slots = [*self._slots().values(), *self._retired]
        ends = [*(pull.close() for pull in self._pulls.values()), *(slot.close() for slot in slots)]
        await asyncio.wait([asyncio.create_task(end) for end in ends], timeout=_PATIENCE)

    async def _had(self, spec: Card, slot: Slot[S]) -> S:
        """The model of a slot. One on the NPU that could not be loaded is left alone for a while: trying takes long."""
        if not self._fit.allows(spec):
            raise EngineUnavailable(f"{spec.name} runs on the NPU, which is not used: the setting engine is cpu")
        if self._rests(spec):
            raise EngineUnavailable(slot.trouble or f"{spec.name} did not answer a moment ago")
        try:
            return await slot.get()
        except EngineUnavailable:
            self._rest(spec)
            raise

    def _rests(self, spec: Card) -> bool:
        return self._resting.get(spec.name, 0.0) > monotonic()

    def _rest(self, spec: Card) -> None:
        if on_npu(spec) and self.present(spec):
            self._resting[spec.name] = monotonic() + _REST

    async def _standing_in(self, spec: ModelSpec, error: EngineError) -> AsyncIterator[Embedder]:
        """Other embedders of the same space, those of this machine first, for a model that cannot be had now."""
        for card in () if self._closed else self._stand_ins(spec):
            slot, asked = self._embedders.get(card.name), self._embedders.get(spec.name)
            if slot is None or asked is None:  # their cards were taken away meanwhile
                continue
            slot.keep_alive = asked.keep_alive
            try:
                embedder = await slot.get()
            except (EngineError, Overloaded):
                continue
            if not self._rests(spec):
                self._rest(spec)
            until = self._resting.get(spec.name, 0.0)
            if self._replaced.get(spec.name) != until:
                self._replaced[spec.name] = until
                log.warning("model replaced", model=spec.name, by=card.name, reason=error.message)
            yield embedder

    def _stand_ins(self, spec: Card) -> Iterator[ModelSpec]:
        """Installed models with the space of one on the NPU or a server, if they may stand in for it."""
        if isinstance(spec, RkllmSpec | RemoteSpec) and not self._fit.insists(spec):
            kin = self._fit.ordered([card for card in self.cards() if card.task == "embed"])
            for card in sorted(kin, key=lambda card: isinstance(card, RemoteSpec)):
                if card.space == spec.space and card.name != spec.name and self._fit.suits(card) and self.present(card):
                    yield card

    def _chain(self, spec: ModelSpec, *, wanted: bool | Sequence[str] | None) -> list[ModelSpec]:
        if wanted is None:
            wanted = self.use_fallback
        if isinstance(wanted, bool):
            return self._names.chain(spec) if wanted else []
        return self._names.asked_chain(spec, wanted)

    async def _asked(
        self,
        spec: ModelSpec,
        inputs: Sequence[Input],
        options: dict[str, Any],
        *,
        keep_alive: float | None,
        guarded: bool,
    ) -> Embeddings:
        """What one model answers. Guarded, a model that failed several times in a row is not asked for a while."""
        breaker = self._breakers.setdefault(spec.name, Breaker())
        if guarded and not breaker.allows():
            raise EngineUnavailable(
                f"{spec.name} failed several times and is left alone for now", retry_after=ceil(breaker.retry_after)
            )
        try:
            answer = await (await self.get(spec.name, keep_alive=keep_alive)).embed(inputs, **options)
        except EngineError as error:
            breaker.failed(error.retry_after if isinstance(error, EngineUnavailable) else None)
            raise
        except BaseException:  # the caller left, or asked for what cannot be done: nothing is known of the model
            breaker.abandoned()
            raise
        breaker.succeeded()
        return answer

    async def _moved_embedder(self, before: ModelSpec) -> Embedder:
        """Who answers for a model whose card is another one now."""
        spec = self._names.by_name.get(before.name)
        if (
            spec is None
            or spec.task != before.task
            or (spec.space, spec.dimensions) != (before.space, before.dimensions)
        ):
            raise EngineUnavailable(f"the model {before.name} is another one now: ask again")
        return await self.get(before.name)

    def _is_loaded(self, card: Card) -> bool:
        return self._slots()[card.name].serving is not None

    def _slots(self) -> Mapping[str, Slot[Embedder] | Slot[Reranker]]:
        return {**self._embedders, **self._rerankers}

    def _add(self, card: Card) -> None:
        if card.task == "rerank":
            make = partial(self._opened_reranker, card)
            self._rerankers[card.name] = Slot(
                card.name, make, keep_alive=self._keep_alive, make_room=partial(self._make_room, card)
            )
        else:
            make_embedder = partial(self._opened, card)
            self._embedders[card.name] = Slot(
                card.name, make_embedder, keep_alive=self._keep_alive, make_room=partial(self._make_room, card)
            )

    async def _make_room(self, spec: Card) -> None:
        await self._room.enter(spec.name, memory_of(spec, self.size(spec)))

    def _occupied(self) -> Iterator[tuple[str, Slot[Any], int]]:
        """The models in memory, or on their way in or out, and the bytes that each takes."""
        for name, slot in self._slots().items():
            if slot.occupied:
                card = self._names.by_name[name]
                yield name, slot, memory_of(card, self.size(card))

    def _reranker_card(self, name: str | None) -> RerankerSpec:
        if name is not None:
            return self._names.resolve_reranker(name)
        if self._names.reranker is not None:
            return self._names.reranker
        cards = [card for card in self._fit.ordered(self.cards()) if card.task == "rerank"]
        for card in cards:
            if self.present(card) and self._fit.allows(card) and not self._rests(card):
                return card
        known = ", ".join(card.name for card in cards)
        advice = f"`appliance pull` says what the cards here need: {known}" if known else "there is no card of one"
        raise ModelNotFound(f"no reranker is installed; {advice}")

    def _opened_reranker(self, spec: RerankerSpec) -> Reranker:
        """Blocking."""
        engine = self._open_reranker(spec)
        return Reranker(
            spec,
            engine,
            max_waiting=self._max_waiting,
            on_batch=self._on_batch and partial(self._on_batch, spec.name, engine.label),
            on_rerank=self._on_rerank,
        )

    def _opened(self, spec: ModelSpec) -> Embedder:
        """Blocking."""
        identity = self._identity(spec)
        engine = self._open_engine(spec)
        embedder = Embedder(
            spec,
            engine,
            max_waiting=self._max_waiting,
            cache=self._cache,
            identity=identity,
            on_batch=self._on_batch and partial(self._on_batch, spec.name, engine.label),
            on_embed=self._on_embed,
        )
        embedder.stand_ins = partial(self._standing_in, spec)
        return embedder

    def _identity(self, spec: ModelSpec) -> str:
        """What vectors depend on besides the card, which has the hashes of the other files: those that the owner
        brought, and what computes. Blocking.
        """
        if not isinstance(spec, HasFiles) or not spec.own:
            return __version__
        paths = self._files.paths(spec)
        stats = [(name, paths[name].stat()) for name in sorted(spec.own)]
        return " ".join([__version__, *(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)])
