"""One model, ready to serve: prefix, tokenise, batch, normalise, shorten."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from appliance.embedding.engine import EmbeddingEngine, Matrix, Vector
from appliance.embedding.pooling import normalized, shortened
from appliance.embedding.serving import SHORT, SLICE, Serving
from appliance.embedding.spec import Kind, ModelSpec
from appliance.errors import DimensionsNotSupported, EngineFailed, InvalidInput

_MAX_NUMBERS = 1 << 25
"""Numbers in one answer: 128 MiB of float32, several times that as JSON. A body of tiny inputs asks for far more."""


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Vectors of the inputs, in their order.

    Attributes:
        model: name of the card that answered.
        engine: what ran it: `hash`, `onnx`, `rkllm`, `rkllm-simulated`.
        vectors: float32 (inputs, dimensions), rows of length 1.
        tokens: tokens of each input, special tokens included.
        truncated: whether the end of the input was cut off.
    """

    model: str
    engine: str
    vectors: Matrix
    tokens: tuple[int, ...]
    truncated: tuple[bool, ...]


class Embedder(Serving[Vector]):
    """Serves one model to many callers. Owns its engine: `close` ends both.

    Args:
        spec: the card.
        engine: open, and not shared.
        max_waiting: requests that may wait for the engine before one is refused.
        on_batch: told the inputs and seconds of every engine call; from the engine's threads.
        on_embed: told every answer; on the event loop.
    """

    def __init__(
        self,
        spec: ModelSpec,
        engine: EmbeddingEngine,
        *,
        max_waiting: int = 512,
        on_batch: Callable[[int, float], None] | None = None,
        on_embed: Callable[[Embeddings], None] | None = None,
    ) -> None:
        super().__init__(engine, max_waiting=max_waiting, on_batch=on_batch)
        self.spec = spec
        self._engine = engine
        self._on_embed = on_embed

    async def check(self) -> None:
        """Embed a plain word; nothing stands in for this model here."""
        await self._embedded(
            ["ready"], kind="document", dimensions=None, truncate=True, max_tokens=None, background=False
        )

    async def embed(
        self,
        inputs: Sequence[str | Sequence[int]],
        *,
        kind: Kind = "document",
        dimensions: int | None = None,
        truncate: bool = True,
        max_tokens: int | None = None,
        background: bool = False,
    ) -> Embeddings:
        """Embed texts, or token ids of the model's own vocabulary.

        Args:
            inputs: none gives none. Background callers bound their number themselves.
            kind: chooses the prefix of the card; token ids get none.
            dimensions: shorten to this many; None for the model's own.
            truncate: cut a longer input, or refuse it.
            max_tokens: a tighter limit than the model's own, special tokens included.
            background: let interactive callers go first.

        Raises:
            DimensionsNotSupported: fewer than the card allows, or more than the model has.
            InputTooLong: with `truncate=False`.
            InvalidInput: a token id the model does not have, no room for any text in `max_tokens`, or more inputs than
                one answer holds.
            Overloaded: too many requests wait.
            EngineUnavailable: the model was unloaded, and cannot be loaded again.
            EngineFailed: no usable vector came out.
        """
        options: dict[str, Any] = {
            "kind": kind,
            "dimensions": dimensions,
            "truncate": truncate,
            "max_tokens": max_tokens,
            "background": background,
        }
        return await self._answered(
            partial(self._embedded, inputs, **options), lambda other: other.embed(inputs, **options)
        )

    async def _embedded(
        self,
        inputs: Sequence[str | Sequence[int]],
        *,
        kind: Kind,
        dimensions: int | None,
        truncate: bool,
        max_tokens: int | None,
        background: bool,
    ) -> Embeddings:
        native = self.spec.dimensions
        wanted = native if dimensions is None else dimensions
        if not self.spec.min_dimensions <= wanted <= native:
            raise DimensionsNotSupported(
                f"This model does not support specifying dimensions other than {self.spec.min_dimensions} to {native}.",
                param="dimensions",
            )
        most = _MAX_NUMBERS // wanted
        if len(inputs) > most and not background:
            raise InvalidInput(
                f"too many inputs: one request may have {most} of {wanted} dimensions, not {len(inputs)}; split it",
                param="input",
            )
        prefix: str = getattr(self.spec.prefixes, kind)
        vectors = np.empty((len(inputs), wanted), dtype=np.float32)
        tokens: list[int] = []
        truncated: list[bool] = []
        with self._call():
            for start in range(0, len(inputs), SLICE):
                part = [prefix + each if isinstance(each, str) else each for each in inputs[start : start + SLICE]]
                prepare = partial(self._engine.prepare, part, truncate=truncate, max_tokens=max_tokens)
                prompts = prepare() if _is_short(part) else await asyncio.to_thread(prepare)
                rows = await self._batcher.submit(prompts, background=background)
                vectors[start : start + SLICE] = _unit(shortened(_unit(np.stack(rows)), wanted))
                tokens.extend(prompt.tokens for prompt in prompts)
                truncated.extend(prompt.truncated for prompt in prompts)
        result = Embeddings(self.spec.name, self.engine_label, vectors, tuple(tokens), tuple(truncated))
        if self._on_embed is not None:
            self._on_embed(result)
        return result

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The character range of each token of `text`, in order. Blocking; any thread."""
        return self._engine.spans(text)

    @property
    def max_tokens(self) -> int:
        """Tokens of one input, special tokens included."""
        return self.spec.max_tokens


def _is_short(inputs: Sequence[str | Sequence[int]]) -> bool:
    return len(inputs) == 1 and len(inputs[0]) <= SHORT


def _unit(vectors: Matrix) -> Matrix:
    lengths = np.linalg.norm(vectors, axis=1)
    if not bool(np.all(np.isfinite(lengths) & (lengths > 1e-6))):  # noqa: PLR2004  # far below any real vector
        raise EngineFailed("the engine answered with a vector that has no direction (zero, NaN or infinity)")
    return normalized(vectors)
