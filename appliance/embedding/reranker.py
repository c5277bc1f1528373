"""One model that scores passages for a query, ready to serve: tokenise, batch, relevance."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from appliance.embedding.engine import RerankEngine, Vector
from appliance.embedding.serving import SHORT, SLICE, Serving, batched
from appliance.embedding.spec import RerankerSpec
from appliance.errors import EngineFailed


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """How relevant the texts are to the query, in their order.

    Attributes:
        model: name of the card that answered.
        engine: what ran it: `onnx`, `rkllm`, `rkllm-simulated`.
        logits: as the model gave them, float32 (texts,); what to sort by.
        relevance: sigmoid of the logits, 0 to 1, float32 (texts,).
        tokens: tokens of each pair of query and text, special tokens included.
        truncated: whether the end of the query or of the text was cut off.
    """

    model: str
    engine: str
    logits: Vector
    relevance: Vector
    tokens: tuple[int, ...]
    truncated: tuple[bool, ...]

    def ranking(self) -> list[int]:
        """Places of the texts, the most relevant first; the earlier of equals."""
        return [int(place) for place in np.argsort(-self.logits, kind="stable")]


class Reranker(Serving[np.float32]):
    """Serves one model to many callers. Owns its engine: `close` ends both.

    Args:
        spec: the card.
        engine: open, and not shared.
        max_waiting: requests that may wait for the engine before one is refused.
        on_batch: told the tokens of each pair, and the seconds, of every engine call; from the engine's threads.
        on_rerank: told every answer; on the event loop.
    """

    def __init__(
        self,
        spec: RerankerSpec,
        engine: RerankEngine,
        *,
        max_waiting: int = 512,
        on_batch: Callable[[Sequence[int], float], None] | None = None,
        on_rerank: Callable[[Scores], None] | None = None,
    ) -> None:
        batcher = batched(engine, lambda prompts: list(engine.run(prompts)), max_waiting=max_waiting, on_batch=on_batch)
        super().__init__(engine, batcher)
        self._submit = batcher.submit
        self.spec = spec
        self._engine = engine
        self._on_rerank = on_rerank

    async def check(self) -> None:
        """Score a plain word."""
        await self._scored("ready", ["ready"], truncate=True, background=False)

    async def scores(
        self, query: str, texts: Sequence[str], *, truncate: bool = True, background: bool = False
    ) -> Scores:
        """Score each text for the query.

        Args:
            query: a person's words.
            texts: none gives none. Their number is for the caller to bound.
            truncate: cut what is too long together with the query, or refuse it.
            background: let interactive callers go first.

        Raises:
            InputTooLong: with `truncate=False`.
            Overloaded: too many requests wait.
            EngineUnavailable: the model was unloaded, and cannot be loaded again.
            EngineFailed: no usable score came out.
        """
        return await self._answered(
            lambda: self._scored(query, texts, truncate=truncate, background=background),
            lambda other: other.scores(query, texts, truncate=truncate, background=background),
        )

    async def _scored(self, query: str, texts: Sequence[str], *, truncate: bool, background: bool) -> Scores:
        logits = np.empty(len(texts), dtype=np.float32)
        tokens: list[int] = []
        truncated: list[bool] = []
        with self._call():
            for start in range(0, len(texts), SLICE):
                part = texts[start : start + SLICE]
                prepare = partial(self._engine.prepare, query, part, truncate=truncate)
                short = len(part) == 1 and len(query) + len(part[0]) <= SHORT
                prompts = prepare() if short else await asyncio.to_thread(prepare)
                logits[start : start + SLICE] = await self._submit(prompts, background=background)
                tokens.extend(prompt.tokens for prompt in prompts)
                truncated.extend(prompt.truncated for prompt in prompts)
        if not np.isfinite(logits).all():
            raise EngineFailed("the engine answered with a score that is no number (NaN or infinity)")
        result = Scores(self.spec.name, self.engine_label, logits, sigmoid(logits), tuple(tokens), tuple(truncated))
        if self._on_rerank is not None:
            self._on_rerank(result)
        return result


def sigmoid(logits: Vector) -> Vector:
    """1 / (1 + exp(-x)), without overflow and exact near 0; float32 in and out."""
    result: Vector = np.exp(-np.logaddexp(0, -logits.astype(np.float64))).astype(np.float32)
    return result
