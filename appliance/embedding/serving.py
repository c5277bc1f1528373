"""What an embedder and a reranker have in common: one engine for many callers, and a successor when it is unloaded."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from time import monotonic
from typing import Any, Generic, Protocol, Self, TypeVar

from appliance.embedding.batcher import Batcher
from appliance.embedding.engine import Prompt
from appliance.errors import EngineError, EngineUnavailable, UpstreamFailed

R = TypeVar("R")


async def _nobody(_: EngineError) -> AsyncIterator[Any]:
    nobody: tuple[Any, ...] = ()
    for each in nobody:
        yield each


T = TypeVar("T")

SLICE = 1024
"""Inputs tokenised at a time: a request of any length takes bounded memory beyond its own texts."""

SHORT = 400
"""Characters of a lone text: a thread takes longer to wake than such a text to tokenise."""


_standing_in = ContextVar("standing in", default=False)
"""Whether another model could not answer the call under way: two that fail do not ask each other for ever."""


class _Engine(Protocol):
    """What every engine has."""

    @property
    def label(self) -> str: ...

    def close(self) -> None: ...


class _Local(_Engine, Protocol):
    """What an `EmbeddingEngine` and a `RerankEngine` have in common."""

    @property
    def lanes(self) -> int: ...

    @property
    def batch_tokens(self) -> int: ...


def batched(
    engine: _Local,
    run: Callable[[Sequence[Prompt]], list[R]],
    *,
    max_waiting: int,
    on_batch: Callable[[Sequence[int], float], None] | None,
) -> Batcher[Prompt, R]:
    """What takes prompts to the engine, from many callers.

    Args:
        engine: open.
        run: has the engine run a batch.
        max_waiting: requests that may wait for the engine before one is refused.
        on_batch: told the tokens of each input, and the seconds, of every engine call; from the engine's threads.
    """
    return Batcher(
        run,
        size=lambda prompt: prompt.tokens,
        budget=engine.batch_tokens,
        lanes=engine.lanes,
        max_waiting=max_waiting,
        observe=on_batch,
    )


class Serving(ABC, Generic[R]):
    """Serves one engine to many callers. Owns it: `close` ends both.

    Args:
        engine: open, and not shared.
        batcher: what takes prompts to it; None for an engine that takes its callers as they come.
    """

    def __init__(self, engine: _Engine, batcher: Batcher[Prompt, R] | None) -> None:
        self.engine_label = engine.label
        """What answers: `hash`, `onnx`, `rkllm`, `rkllm-simulated`."""
        self._close = engine.close
        self._batcher = batcher
        self.trouble = ""
        """Why the engine could not be had when it was last asked; empty if it could."""
        self._calls = 0
        self.last_used = monotonic()
        self.successor: Callable[[], Awaitable[Self]] | None = None
        """Who answers instead: set, on the event loop, before this one is closed. Its holders see no difference."""
        self.stand_ins: Callable[[EngineError], AsyncIterator[Self]] = _nobody
        """Who may answer while the engine cannot be had, in order; told why it cannot."""

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._calls > 0

    @property
    def waiting(self) -> int:
        """Interactive requests that wait for the engine or run."""
        return self._calls if self._batcher is None else self._batcher.waiting

    @abstractmethod
    async def check(self) -> None:
        """Ask the engine for a plain word.

        Raises:
            ApplianceError, ValueError: no usable answer.
        """

    def close(self) -> None:
        """Fail what waits and close the engine. Blocking; safe to call twice."""
        if self._batcher is not None:
            self._batcher.close()
        self._close()

    async def _answered(self, run: Callable[[], Awaitable[T]], ask: Callable[[Self], Awaitable[T]]) -> T:
        """What `run` gives, or what another one, asked by `ask`, gives instead."""
        if self.successor is not None:
            return await ask(await self.successor())
        try:
            answer = await run()
        except (EngineUnavailable, UpstreamFailed) as error:
            if self.successor is not None:
                raise
            self.trouble = error.message
            if _standing_in.get():
                raise
            token = _standing_in.set(True)
            try:
                async for other in self.stand_ins(error):
                    with suppress(EngineUnavailable, UpstreamFailed):
                        return await ask(other)
            finally:
                _standing_in.reset(token)
            raise
        self.trouble = ""
        return answer

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Counts as busy for as long as it is open."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self.last_used = monotonic()
