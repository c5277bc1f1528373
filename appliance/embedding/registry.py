"""Names and aliases to embedders: loaded on first use, kept for as long as asked, unloaded when idle."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import NamedTuple

from appliance.embedding.embedder import Embedder, Embeddings
from appliance.embedding.engine import EmbeddingEngine
from appliance.embedding.pull import ModelFiles, Progress
from appliance.embedding.spec import ModelSpec
from appliance.errors import ApplianceError, Conflict, EngineFailed, InvalidInput, ModelMismatch, ModelNotFound

_TICK = 0.5
"""Seconds between two looks for models to unload."""

OPENAI_NAMES = ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")
"""Names that programs ask for unasked: each stands for the default model."""


class Loaded(NamedTuple):
    """A model in memory; `expires_at` is None when it stays."""

    spec: ModelSpec
    expires_at: datetime | None


class _Slot:
    def __init__(self, spec: ModelSpec, keep_alive: float) -> None:
        self.spec = spec
        self.lock = asyncio.Lock()
        self.embedder: Embedder | None = None
        self.keep_alive = keep_alive
        self.trouble = "not loaded"

    def expires(self) -> float | None:
        """On the monotonic clock; None for never."""
        if self.embedder is None or self.keep_alive < 0:
            return None
        return self.embedder.last_used + self.keep_alive


class Registry:
    """Every model that the appliance knows. Belongs to one event loop.

    Args:
        cards: names and aliases unique without regard to case; the earlier card keeps a disputed alias.
        default: name or alias of the model that OpenAI's names stand for.
        files: where model files are.
        open_engine: blocking; called in a thread, once for a model that is not loaded.
        keep_alive: seconds a model stays after its last use; negative for ever.
        max_waiting: requests that may wait for one model.
        on_batch: told model, inputs and seconds of every engine call; from the engines' threads.
        on_embed: told every answer; on the event loop.

    Raises:
        ModelNotFound: no card for `default`.
        InvalidInput: two cards of one name.
    """

    def __init__(
        self,
        cards: Iterable[ModelSpec],
        *,
        default: str,
        files: ModelFiles,
        open_engine: Callable[[ModelSpec], EmbeddingEngine],
        keep_alive: float = -1,
        max_waiting: int = 512,
        on_batch: Callable[[str, int, float], None] | None = None,
        on_embed: Callable[[Embeddings], None] | None = None,
    ) -> None:
        self._files = files
        self._open_engine = open_engine
        self._keep_alive = keep_alive
        self._max_waiting = max_waiting
        self._on_batch = on_batch
        self._on_embed = on_embed
        self._slots: dict[str, _Slot] = {}
        for card in cards:
            if card.name in self._slots:
                raise InvalidInput(f"two cards are named {card.name!r}")
            self._slots[card.name] = _Slot(card, keep_alive)
        self._aliases: dict[str, str] = {}
        for slot in self._slots.values():
            for alias in slot.spec.aliases:
                self._aliases.setdefault(alias.lower(), slot.spec.name)
        self.default = self.resolve(default)
        for name in OPENAI_NAMES:
            self._aliases.setdefault(name, self.default.name)
        self.needed: Callable[[ModelSpec], bool] = lambda _: False
        """Whether something kept depends on the model, so that its files stay."""

    def cards(self) -> list[ModelSpec]:
        """Every card, the default first."""
        rest = (slot.spec for slot in self._slots.values() if slot.spec is not self.default)
        return [self.default, *rest]

    def installed(self) -> list[ModelSpec]:
        """The cards whose files are here, the default first."""
        return [card for card in self.cards() if self._files.present(card)]

    def modified(self, spec: ModelSpec) -> datetime | None:
        """When the model's files came; None for a model without files."""
        return self._files.modified(spec)

    def aliases(self) -> Mapping[str, str]:
        """Lower-case alias to card name."""
        return dict(self._aliases)

    def resolve(self, name: str) -> ModelSpec:
        """The card of a name or alias, in any case, with or without `:latest`.

        Raises:
            ModelNotFound: none has it.
        """
        wanted = name.strip().lower().removesuffix(":latest")
        slot = self._slots.get(self._aliases.get(wanted, wanted))
        if slot is None:
            raise ModelNotFound(f'model "{name}" not found, try pulling it first', name=name)
        return slot.spec

    def within(self, space: str, made_with: str, *, asked: str | None = None) -> ModelSpec:
        """The card to embed with where vectors of `space` are wanted.

        Args:
            space: what the vectors are to be compared with.
            made_with: the card that a collection was made with; another installed one of the space stands in for it.
            asked: a model the caller insists on.

        Raises:
            ModelNotFound: no model is called `asked`.
            ModelMismatch: `asked` is of another space, or nothing here is of the space.
        """
        if asked is not None:
            spec = self.resolve(asked)
            if spec.space == space:
                return spec
            raise ModelMismatch(
                f"the collection holds vectors of {space!r}, {spec.name!r} gives vectors of {spec.space!r}:"
                f" use {made_with!r}, or make a collection for {spec.name!r} and add the documents to it"
            )
        slot = self._slots.get(made_with)
        for card in ([slot.spec] if slot else []) + self.installed():
            if card.space == space:
                return card
        raise ModelMismatch(
            f"the collection holds vectors of {space!r} made with {made_with!r}, and no model here gives such vectors:"
            f" bring the card of {made_with!r} back, or make a new collection and add the documents to it"
        )

    async def get(self, name: str, *, keep_alive: float | None = None) -> Embedder:
        """The embedder of a model, loaded once however many ask for it at the same time.

        Use it at once and ask again next time: an idle one may be closed whenever other tasks run.

        Args:
            name: name or alias.
            keep_alive: seconds it stays after its last use; None for the setting, negative for ever.

        Raises:
            ModelNotFound: no such model.
            EngineUnavailable: its files are missing, or it cannot be opened.
            EngineFailed: it was opened, and gave no usable vector for a plain word.
        """
        slot = self._slots[self.resolve(name).name]
        async with slot.lock:
            if slot.embedder is None:
                slot.trouble = "loading"
                try:
                    slot.embedder = await self._load(slot.spec)
                except ApplianceError as error:
                    slot.trouble = error.message
                    raise
                slot.trouble = ""
            slot.keep_alive = self._keep_alive if keep_alive is None else keep_alive
            slot.embedder.last_used = monotonic()
            return slot.embedder

    def loaded(self) -> list[Loaded]:
        """The models in memory."""
        now, wall = monotonic(), datetime.now(UTC)
        result = []
        for slot in self._slots.values():
            if slot.embedder is not None:
                expires = slot.expires()
                result.append(
                    Loaded(slot.spec, None if expires is None else wall + timedelta(seconds=max(expires - now, 0)))
                )
        return result

    def trouble(self, name: str) -> str:
        """Why a model was never loaded; empty once it was. ModelNotFound for an unknown name."""
        return self._slots[self.resolve(name).name].trouble

    def waiting(self) -> int:
        """Interactive requests that wait for any engine or run."""
        return sum(slot.embedder.waiting for slot in self._slots.values() if slot.embedder is not None)

    async def unload(self, name: str) -> None:
        """Unload a model once its running calls have ended. ModelNotFound for an unknown name."""
        slot = self._slots[self.resolve(name).name]
        slot.keep_alive = 0
        if slot.embedder is not None and not slot.embedder.busy:
            await self._close(slot)

    async def pull(self, name: str) -> AsyncIterator[Progress]:
        """Fetch a model's files, telling how far it is.

        Raises:
            ModelNotFound: no such model.
            UpstreamFailed: no source had the right bytes.
            StoreFull: no room for them.
        """
        spec = self.resolve(name)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Progress | None] = asyncio.Queue()

        def tell(progress: Progress | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, progress)

        def fetch() -> None:
            try:
                self._files.pull(spec, tell)
            finally:
                tell(None)

        task = asyncio.create_task(asyncio.to_thread(fetch))
        while (progress := await queue.get()) is not None:
            yield progress
        await task

    async def delete(self, name: str) -> None:
        """Remove a model's files, but those that another card needs.

        Raises:
            ModelNotFound: no such model, or its files are not here.
            Conflict: it is the default, a collection depends on it, or it has no file of its own.
        """
        spec = self.resolve(name)
        if not self._files.present(spec):
            raise ModelNotFound(f"model '{name}' not found", name=name)
        if spec is self.default:
            raise Conflict(f"{spec.name} is the default model; choose another default before deleting it")
        if await asyncio.to_thread(self.needed, spec):
            raise Conflict(f"a collection was made with {spec.name}; delete the collection first")
        others = [card for card in self.cards() if card is not spec]
        await self.unload(name)
        await asyncio.to_thread(self._files.remove, spec, keep=others)
        if self._files.present(spec):
            raise Conflict(f"every file of {spec.name} belongs to another model as well; nothing was removed")

    async def unload_idle(self) -> None:
        """Unload models whose time is over, for as long as the task runs."""
        while True:
            await asyncio.sleep(_TICK)
            for slot in self._slots.values():
                expires = slot.expires()
                if expires is not None and expires <= monotonic():
                    await self._close(slot)

    async def close(self) -> None:
        """Unload every model, whatever waits for it."""
        for slot in self._slots.values():
            await self._close(slot, force=True)

    async def _load(self, spec: ModelSpec) -> Embedder:
        engine = await asyncio.to_thread(self._open_engine, spec)
        on_batch = self._on_batch and partial(self._on_batch, spec.name)
        embedder = Embedder(spec, engine, max_waiting=self._max_waiting, on_batch=on_batch, on_embed=self._on_embed)
        try:
            await embedder.embed(["ready"])
        except (ApplianceError, ValueError) as error:
            await asyncio.to_thread(embedder.close)
            raise EngineFailed(f"{spec.name} was loaded, but does not embed: {error}") from error
        return embedder

    async def _close(self, slot: _Slot, *, force: bool = False) -> None:
        async with slot.lock:
            embedder = slot.embedder
            if embedder is None or (embedder.busy and not force):
                return
            slot.embedder = None
        await asyncio.to_thread(embedder.close)
