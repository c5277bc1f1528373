"""One model's place in memory: loaded once for all who ask, and unloaded under nobody's feet."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic
from typing import Any, Generic, TypeVar

import structlog

from appliance.embedding.serving import Serving
from appliance.embedding.threads import on_thread
from appliance.errors import ApplianceError, EngineFailed, EngineUnavailable

_DRAIN = 0.05
"""Seconds between two looks whether the calls of a model that is to go have ended."""

_STOPPING = "the appliance is stopping"

log = structlog.get_logger(__name__)


S = TypeVar("S", bound=Serving[Any])
"""An embedder or a reranker."""


class Slot(Generic[S]):
    """Empty, taken by `serving`, or changing from one to the other. Belongs to one event loop.

    A change is a task of its own: it goes on when the callers that wait for it leave, and the next one waits for it, so
    that a model is never in memory twice.

    Args:
        name: of the model.
        make: opens the model; blocking, called on a thread of its own.
        keep_alive: seconds the model stays after its last use; negative for ever.
        make_room: called before the model is opened; what it raises is the reason why it cannot be.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], S],
        *,
        keep_alive: float,
        make_room: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.serving: S | None = None
        self.keep_alive = keep_alive
        self.trouble = "not loaded"
        """Why the model cannot be had; empty once it was loaded, until a load fails."""
        self._name = name
        self._make = make
        self._make_room = make_room
        self._change: asyncio.Task[None] | None = None
        self._awaited = 0
        self._closed = False
        self._moved: Callable[[], Awaitable[S]] | None = None

    def expires(self) -> float | None:
        """When the model's time is over, on the monotonic clock; None for never."""
        if self.serving is None or self.keep_alive < 0:
            return None
        return self.serving.last_used + self.keep_alive

    @property
    def idle(self) -> bool:
        """Whether there is a model that no call is under way on, and that no caller of `get` is just about to use."""
        return self.serving is not None and not self.serving.busy and not self._awaited

    @property
    def last_used(self) -> float:
        """When a call last ended, on the monotonic clock; 0 where no model is loaded."""
        return 0.0 if self.serving is None else self.serving.last_used

    @property
    def occupied(self) -> bool:
        """Whether a model is in memory, or on its way in or out."""
        return self.serving is not None or self._change is not None

    async def get(self) -> S:
        """The model, ready to serve. A caller may hold on to it: unloaded meanwhile, it asks here again when used.

        Raises:
            EngineUnavailable: the model cannot be opened, or the slot is closed.
            EngineFailed: opening it failed unexpectedly, or it gave no usable answer for a plain word.
        """
        while self.serving is None:
            if self._moved is not None:
                return await self._moved()
            if self._closed:
                raise EngineUnavailable(_STOPPING)
            change = self._change or self._begin(self._load())
            self._awaited += 1
            try:
                await asyncio.wait([change])  # unlike `await change`, leaves it alone when this caller is cancelled
            finally:
                self._awaited -= 1
            change.result()
        self.serving.last_used = monotonic()
        return self.serving

    def empty(self) -> None:
        """Begin to unload: calls under way end well, later ones ask `get`. Nothing where no model is loaded."""
        if (serving := self.serving) is not None:
            self.serving = None
            serving.successor = self.get
            self._begin(self._unload(serving))

    def retire(self, successor: Callable[[], Awaitable[S]]) -> None:
        """Unload for good, now or when the model has loaded: whoever asks here, or holds it, asks `successor`."""
        self._moved = successor
        self.empty()

    async def settled(self) -> None:
        """Return once the change under way, if any, has ended."""
        if self._change is not None:
            await asyncio.wait([self._change])

    async def close(self) -> None:
        """Unload, whatever waits for the model, also one that is still loading. Nothing is loaded afterwards."""
        self._closed = True
        self.empty()
        await self.settled()

    def _begin(self, change: Coroutine[None, None, None]) -> asyncio.Task[None]:
        self._change = asyncio.create_task(change)
        self._change.add_done_callback(lambda task: task.cancelled() or task.exception())  # seen, if all have left
        return self._change

    async def _load(self) -> None:
        if self.trouble:
            self.trouble = "loading"
        try:
            self.serving = await self._opened()
            self.trouble = ""
        except asyncio.CancelledError:
            raise
        except ApplianceError as error:
            self.trouble = error.message
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            log.exception("model not loaded", model=self._name)
            self.trouble = f"{self._name} could not be loaded: unexpected {type(error).__name__}"
            raise EngineFailed(self.trouble) from error
        finally:
            self._change = None
            if self._moved is not None:
                self.empty()

    async def _opened(self) -> S:
        if self._make_room is not None:
            await self._make_room()
        serving = await on_thread(self._make, name=f"load {self._name}")
        try:
            await self._check(serving)
        except BaseException:
            await on_thread(serving.close, name=f"unload {self._name}")
            raise
        return serving

    async def _check(self, serving: S) -> None:
        try:
            await serving.check()
        except EngineUnavailable:
            raise
        except (ApplianceError, ValueError) as error:
            raise EngineFailed(f"{self._name} was loaded, but does not work: {error}") from error
        if self._closed:
            raise EngineUnavailable(_STOPPING)

    async def _unload(self, serving: S) -> None:
        try:
            while serving.busy and not self._closed:  # noqa: ASYNC110  # it may become so in any task
                await asyncio.sleep(_DRAIN)
            await on_thread(serving.close, name=f"unload {self._name}")
        except Exception:
            log.exception("model not unloaded cleanly", model=self._name)
        finally:
            self._change = None
