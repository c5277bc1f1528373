"""The seam between an embedder and whatever runs its model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Matrix: TypeAlias = npt.NDArray[np.float32]
"""float32, (n, dimensions)."""

Vector: TypeAlias = npt.NDArray[np.float32]
"""float32, (dimensions,)."""

Ids: TypeAlias = npt.NDArray[np.int64]
"""Token ids, int64, (tokens,), special tokens included."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One input, ready to run.

    Attributes:
        content: what the engine's `run` reads: token ids, or the text for an engine that takes text.
        tokens: tokens the input costs, special tokens included; what `usage` reports.
        truncated: whether the end of the text was cut off.
        types: which of two texts each token of `content` belongs to, int64 0 or 1; None where all are 0.
    """

    content: Ids | str
    tokens: int
    truncated: bool = False
    types: Ids | None = None


class EmbeddingEngine(Protocol):
    """Runs one model. `prepare` and `spans` may be called from any thread; `run` from at most `lanes` threads at once;
    `close` when none is inside `run`.
    """

    @property
    def label(self) -> str:
        """What answers, for a person and for a metric: `hash`, `onnx`, `rkllm`, `rkllm-simulated`."""

    @property
    def lanes(self) -> int:
        """How many threads may be inside `run` at once: 1 for a device, more where cores are shared out."""

    @property
    def batch_tokens(self) -> int:
        """Padded tokens (longest prompt x prompts) of a batch that the engine runs best."""

    def prepare(
        self, inputs: Sequence[str | Sequence[int]], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        """Tokenise; token ids (without special tokens) are taken as the model's own.

        Args:
            inputs: texts or token ids, in order.
            truncate: cut what is too long, or refuse it.
            max_tokens: a tighter limit than the model's own, special tokens included.

        Raises:
            InputTooLong: an input is too long and `truncate` is false.
            InvalidInput: a token id that the model does not have, or a limit that leaves no room for the text.
        """

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The character range of each token of `text`, without special tokens, in order: what a chunker counts by."""

    def run(self, prompts: Sequence[Prompt]) -> Matrix:
        """Vectors of the prompts, float32 (len(prompts), dimensions), in their order, pooled but not normalised.

        Raises:
            EngineFailed: no answer, or one with NaN or infinity.
        """

    def close(self) -> None:
        """Let go of the model. Safe to call twice."""


class RerankEngine(Protocol):
    """Runs one model that scores passages for a query. Threads as in `EmbeddingEngine`."""

    @property
    def label(self) -> str:
        """What answers, as in `EmbeddingEngine`."""

    @property
    def lanes(self) -> int:
        """How many threads may be inside `run` at once."""

    @property
    def batch_tokens(self) -> int:
        """Padded tokens of a batch that the engine runs best."""

    def prepare(
        self, query: str, passages: Sequence[str], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        """Tokenise the query together with each passage.

        Args:
            query: a person's words.
            passages: in order.
            truncate: cut the end of a passage that is too long, or refuse it.
            max_tokens: a tighter limit than the model's own, of query, passage and special tokens together.

        Raises:
            InputTooLong: a pair is too long and `truncate` is false.
            InvalidInput: a query that leaves no room for any passage.
        """

    def run(self, prompts: Sequence[Prompt]) -> Vector:
        """A logit for each prompt, float32 (len(prompts),), in their order; its sigmoid is the relevance, 0 to 1.

        Raises:
            EngineFailed: no answer, or one with NaN or infinity.
        """

    def close(self) -> None:
        """Let go of the model. Safe to call twice."""
