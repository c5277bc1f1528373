"""Names and aliases to embedders and rerankers: loaded on first use, kept for as long as asked, unloaded when idle."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import structlog

from appliance.embedding.embedder import Embedder, Embeddings
from appliance.embedding.engine import EmbeddingEngine, RemoteEngine, RerankEngine
from appliance.embedding.fit import Fit, on_npu
from appliance.embedding.pull import ModelFiles, Progress
from appliance.embedding.pulls import SharedPull
from appliance.embedding.reranker import Reranker, Scores
from appliance.embedding.serving import Serving
from appliance.embedding.slot import Slot
from appliance.embedding.spec import Card, HasFiles, ModelSpec, RerankerSpec, RkllmSpec, check_spaces, plain
from appliance.errors import (
    Conflict,
    EngineFailed,
    EngineUnavailable,
    InvalidInput,
    ModelMismatch,
    ModelNotFound,
    UpstreamFailed,
)

_TICK = 0.5
"""Seconds between two looks for models to unload."""

_PATIENCE = 10.0
"""Seconds that `close` waits for models to load or unload before it leaves their threads behind."""

_REST = 30.0
"""Seconds that a model of the NPU which cannot be loaded is not tried again, where another one stands in for it."""

OPENAI_NAMES = ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")
"""Names that programs ask for unasked: each stands for the default model."""


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
        cards: names unique without regard to case. Several may have one alias: it stands for the one that suits this
            machine best, and of equals for the first whose files are here.
        default: name or alias of the model that OpenAI's names stand for.
        files: where model files are.
        open_engine: blocking; called on a thread of its own, once for a model that is not loaded.
        open_reranker: the same for a reranker's card.
        reranker: name or alias of the model that reranks where a request names none; empty for the first one whose
            files are here.
        fit: which cards suit this machine.
        keep_alive: seconds a model stays after its last use; negative for ever.
        max_waiting: requests that may wait for one model.
        on_batch: told model, inputs and seconds of every engine call; from the engines' threads.
        on_embed: told every answer of an embedder; on the event loop.
        on_rerank: told every answer of a reranker; on the event loop.

    Raises:
        ModelNotFound: no card for `default`, or for `reranker`.
        InvalidInput: two cards of one name, or of one space and unequal dimensions; or `default` does not embed, or
            `reranker` does not rerank.
    """

    def __init__(
        self,
        cards: Iterable[Card],
        *,
        default: str,
        files: ModelFiles,
        open_engine: Callable[[ModelSpec], EmbeddingEngine | RemoteEngine],
        open_reranker: Callable[[RerankerSpec], RerankEngine],
        reranker: str = "",
        fit: Fit | None = None,
        keep_alive: float = -1,
        max_waiting: int = 512,
        on_batch: Callable[[str, int, float], None] | None = None,
        on_embed: Callable[[Embeddings], None] | None = None,
        on_rerank: Callable[[Scores], None] | None = None,
    ) -> None:
        self._files = files
        self._open_engine = open_engine
        self._open_reranker = open_reranker
        self._fit = fit or Fit()
        self._keep_alive = keep_alive
        self._max_waiting = max_waiting
        self._on_batch = on_batch
        self._on_embed = on_embed
        self._on_rerank = on_rerank
        self._cards: dict[str, Card] = {}
        self._embedders: dict[str, Slot[Embedder]] = {}
        self._rerankers: dict[str, Slot[Reranker]] = {}
        self._pulls: dict[str, SharedPull] = {}
        self._closed = False
        for card in cards:
            if card.name in self._cards:
                raise InvalidInput(f"two cards are named {card.name!r}")
            self._cards[card.name] = card
            if card.task == "rerank":
                make = partial(self._opened_reranker, card)
                self._rerankers[card.name] = Slot(card.name, make, keep_alive=keep_alive)
            else:
                self._embedders[card.name] = Slot(card.name, partial(self._opened, card), keep_alive=keep_alive)
        self._slots: Mapping[str, Slot[Embedder] | Slot[Reranker]] = {**self._embedders, **self._rerankers}
        check_spaces(self._cards.values())
        self._aliases: dict[str, list[Card]] = {}
        for card in self._cards.values():
            for alias in card.aliases:
                self._aliases.setdefault(alias.lower(), []).append(card)
        self.default = self.resolve(default)
        for name in OPENAI_NAMES:
            self._aliases.setdefault(name, [self.default])
        self._resting: dict[str, float] = {}  # until when a model of the NPU is not tried
        self._replaced: dict[str, float] = {}  # what of this was logged
        self._default_reranker = self.resolve_reranker(reranker) if reranker else None
        self.needed: Callable[[Card], bool] = lambda _: False
        """Whether something kept depends on the model, so that its files stay."""

    def cards(self) -> list[Card]:
        """Every card, the default first."""
        return [self.default, *(card for card in self._cards.values() if card is not self.default)]

    def installed(self) -> list[Card]:
        """The cards whose files are here, the default first."""
        return [card for card in self.cards() if self.present(card)]

    def present(self, spec: Card) -> bool:
        """Whether the model's files are here. Cheap; any thread."""
        return self._files.present(spec)

    def modified(self, spec: Card) -> datetime | None:
        """When the model's files came; None for a model without files."""
        return self._files.modified(spec)

    def size(self, spec: Card) -> int:
        """Bytes of the model's files."""
        return self._files.size(spec)

    def aliases(self) -> Mapping[str, str]:
        """Lower-case alias to the name of the card that it stands for now."""
        return {alias: self._fit.preferred(cards, self.present).name for alias, cards in self._aliases.items()}

    def resolve(self, name: str) -> ModelSpec:
        """The card to embed with, of a name or alias as for `card`.

        Raises:
            ModelNotFound: none has it.
            InvalidInput: the card is of a model that does not embed.
        """
        card = self.card(name)
        if card.task == "rerank":
            raise InvalidInput(f'"{name}" does not support embeddings', param="model")
        return card

    def resolve_reranker(self, name: str) -> RerankerSpec:
        """The card to rerank with, of a name or alias as for `card`.

        Raises:
            ModelNotFound: none has it.
            InvalidInput: the card is of a model that does not rerank.
        """
        card = self.card(name)
        if card.task != "rerank":
            raise InvalidInput(f'"{name}" does not support reranking', param="model")
        return card

    def card(self, name: str) -> Card:
        """The card of a name or alias, in any case, with or without `:latest`.

        Raises:
            ModelNotFound: none has it.
        """
        wanted = plain(name)
        if cards := self._aliases.get(wanted):
            return self._fit.preferred(cards, self.present)
        if card := self._cards.get(wanted):
            return card
        raise ModelNotFound(f'model "{name}" not found, try pulling it first', name=name)

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
        if asked is not None:
            spec = self.resolve(asked)
            if spec.space == space:
                return spec
            raise ModelMismatch(
                f"the collection holds vectors of {space!r}, {spec.name!r} gives vectors of {spec.space!r}:"
                f" use {made_with!r}, or make a collection for {spec.name!r} and add the documents to it"
            )
        kin = [card for card in self.cards() if card.task == "embed" and card.space == space]
        kin.sort(key=lambda card: (not self._fit.suits(card), card.name != made_with))
        for card in kin:
            if self._embedders[card.name].serving is not None or self.present(card):
                return card
        if kin and kin[0].name == made_with:
            return kin[0]
        raise ModelMismatch(
            f"the collection holds vectors of {space!r} made with {made_with!r}, and no model here gives such vectors:"
            f" bring the card of {made_with!r} back, or make a new collection and add the documents to it"
        )

    async def get(self, name: str, *, keep_alive: float | None = None) -> Embedder:
        """The embedder of a model, loaded once however many ask for it at the same time.

        While the NPU cannot be had, an installed model of the same space stands in for one on it, if it may.

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
            return await self._stand_in(spec, error)

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
        """The models in memory."""
        now, wall = monotonic(), datetime.now(UTC)
        result = []
        for name, slot in self._slots.items():
            if slot.serving is not None:
                expires = slot.expires()
                until = None if expires is None else wall + timedelta(seconds=max(expires - now, 0))
                result.append(Loaded(self._cards[name], until, slot.serving.engine_label))
        return result

    def trouble(self, name: str) -> str:
        """Why a model cannot be had: not loaded yet, or what the last load or call failed with; empty once it was had,
        and while another one stands in for it.

        Raises:
            ModelNotFound: no such model.
        """
        spec = self.card(name)
        if any(self._embedders[card.name].serving for card in self._stand_ins(spec)):
            return ""
        slot = self._slots[spec.name]
        return slot.trouble or (slot.serving.trouble if slot.serving is not None else "")

    def waiting(self) -> int:
        """Interactive requests that wait for any engine or run."""
        return sum(slot.serving.waiting for slot in self._slots.values() if slot.serving is not None)

    async def unload(self, name: str) -> None:
        """Unload a model and what stands in for it: now, or when it is loaded and its calls have ended.

        Raises:
            ModelNotFound: no such model.
        """
        spec = self.card(name)
        cards = [spec, *self._stand_ins(spec)] if self._rests(spec) else [spec]
        for slot in (self._slots[card.name] for card in cards):
            slot.keep_alive = 0
            if slot.idle:
                slot.empty()
                await slot.settled()

    async def pull(self, name: str) -> AsyncIterator[Progress]:
        """Fetch a model's files, telling how far it is.

        One pull of a model runs at a time: later callers join it, and it goes on when they leave, until `close`.

        Raises:
            ModelNotFound: no such model.
            UpstreamFailed: no source had the right bytes, or the registry is closed.
            StoreFull: no room for them.
        """
        spec = self.card(name)
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
        if spec is self._default_reranker:
            raise Conflict(f"{spec.name} is the reranker of the settings; choose another one before deleting it")
        if await asyncio.to_thread(self.needed, spec):
            raise Conflict(f"a collection was made with {spec.name}; delete the collection first")
        if isinstance(spec, HasFiles) and spec.own:
            raise Conflict(f"the files of {spec.name} were put here by hand; remove them by hand")
        others = [card for card in self.cards() if card is not spec]
        slot = self._slots[spec.name]
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
            for slot in self._slots.values():
                expires = slot.expires()
                if slot.idle and expires is not None and expires <= monotonic():
                    slot.empty()

    async def close(self) -> None:
        """End pulls and unload every model, whatever waits for it. Nothing is loaded or pulled afterwards."""
        self._closed = True
        ends = [*(pull.close() for pull in self._pulls.values()), *(slot.close() for slot in self._slots.values())]
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

    async def _stand_in(self, spec: ModelSpec, error: EngineUnavailable) -> Embedder:
        """Another embedder of the same space, while the NPU is not to be had; `error` is raised where there is none."""
        for card in () if self._closed else self._stand_ins(spec):
            slot = self._embedders[card.name]
            slot.keep_alive = self._embedders[spec.name].keep_alive
            try:
                embedder = await slot.get()
            except (EngineUnavailable, EngineFailed):
                continue
            if not self._rests(spec):
                self._rest(spec)
            until = self._resting.get(spec.name, 0.0)
            if self._replaced.get(spec.name) != until:
                self._replaced[spec.name] = until
                log.warning("npu model replaced", model=spec.name, by=card.name, reason=error.message)
            return embedder
        raise error

    def _stand_ins(self, spec: Card) -> Iterator[ModelSpec]:
        """Installed models with the space of one on the NPU, if they may stand in for it."""
        if isinstance(spec, RkllmSpec) and not self._fit.insists(spec):
            for card in self._fit.ordered([card for card in self.cards() if card.task == "embed"]):
                if card.space == spec.space and card is not spec and self._fit.suits(card) and self.present(card):
                    yield card

    def _reranker_card(self, name: str | None) -> RerankerSpec:
        if name is not None:
            return self.resolve_reranker(name)
        if self._default_reranker is not None:
            return self._default_reranker
        cards = [card for card in self._fit.ordered(self.cards()) if card.task == "rerank"]
        for card in cards:
            if self.present(card) and self._fit.allows(card) and not self._rests(card):
                return card
        known = ", ".join(card.name for card in cards)
        advice = f"`appliance pull` says what the cards here need: {known}" if known else "there is no card of one"
        raise ModelNotFound(f"no reranker is installed; {advice}")

    def _opened_reranker(self, spec: RerankerSpec) -> Reranker:
        """Blocking."""
        return Reranker(
            spec,
            self._open_reranker(spec),
            max_waiting=self._max_waiting,
            on_batch=self._on_batch and partial(self._on_batch, spec.name),
            on_rerank=self._on_rerank,
        )

    def _opened(self, spec: ModelSpec) -> Embedder:
        """Blocking."""
        embedder = Embedder(
            spec,
            self._open_engine(spec),
            max_waiting=self._max_waiting,
            on_batch=self._on_batch and partial(self._on_batch, spec.name),
            on_embed=self._on_embed,
        )
        embedder.stand_in = partial(self._stand_in, spec)
        return embedder
