"""The seam between an embedder and whatever runs its model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

Matrix: TypeAlias = npt.NDArray[np.float32]
"""float32, (n, dimensions)."""

Vector: TypeAlias = npt.NDArray[np.float32]
"""float32, (dimensions,)."""

Ids: TypeAlias = npt.NDArray[np.int64]
"""Token ids, int64, (tokens,), special tokens included."""


Pixels: TypeAlias = npt.NDArray[np.float32]
"""An image as its tower reads it: float32, (3, height, width)."""

FALLBACK = "x-appliance-fallback"
"""Header of an answer that a model of another space may have given: names the model that was asked."""

Output: TypeAlias = Literal["vector", "sparse", "tokens"]
"""What a prompt is run for: one vector, a weight for each token, or a vector for each token."""


@dataclass(frozen=True, slots=True)
class Image:
    """A picture as it came: the bytes of a PNG, JPEG, WebP or GIF file. Not yet known to be one."""

    data: bytes


Input: TypeAlias = str | Sequence[int] | Image
"""A text, token ids of the model's own (without special tokens), or an image."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """What a remote engine gives for inputs, in their order.

    Attributes:
        vectors: float32 (inputs, dimensions).
        tokens: tokens of each input as the server counts them; where it tells only the sum, that sum shared out.
        truncated: whether the end of the input was cut off, as far as the server tells.
    """

    vectors: Matrix
    tokens: tuple[int, ...]
    truncated: tuple[bool, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """Tokens of one text that weigh something: `ids` int64 (n,), ascending, and `weights` float32 (n,), above 0."""

    ids: Ids
    weights: Vector


class Token(NamedTuple):
    """One token of a text: the characters `start` to `stop` of it, or a special token that stands in no text."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One input, ready to run.

    Attributes:
        content: what the engine's `run` reads: token ids, or the text for an engine that takes text.
        tokens: tokens the input costs, special tokens included; what `usage` reports.
        truncated: whether the end of the text was cut off.
        types: which of two texts each token of `content` belongs to, int64 0 or 1; None where all are 0.
        output: what it is run for.
        pixels: the image, where the input is one; `content` is then empty.
    """

    content: Ids | str
    tokens: int
    truncated: bool = False
    types: Ids | None = None
    output: Output = "vector"
    pixels: Pixels | None = None


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


@runtime_checkable
class ImageEngine(Protocol):
    """What an `EmbeddingEngine` can do besides, if its model does: see."""

    def prepare_images(self, images: Sequence[Image]) -> list[Prompt]:
        """Decode images to what the model sees; any thread. `tokens` are the patches an image costs.

        Raises:
            InvalidInput: no image, or one of too many pixels.
        """


@runtime_checkable
class TokenEngine(Protocol):
    """What an `EmbeddingEngine` can do besides, if its model does: say something of each token."""

    @property
    def outputs(self) -> frozenset[Output]:
        """What the model gives besides "vector"."""

    def run_tokens(self, prompts: Sequence[Prompt]) -> list[Matrix]:
        """For each prompt a vector for each token, float32 (tokens, n), special tokens included; not normalised."""

    def run_sparse(self, prompts: Sequence[Prompt]) -> list[Sparse]:
        """For each prompt its tokens and their weights, special tokens left out."""


@runtime_checkable
class Vocabulary(Protocol):
    """What an `EmbeddingEngine` can do besides, if its model's tokenizer is at hand. Any thread."""

    def tokenize(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[Token]]:
        """Every token of each text, with the special ones around it if wanted. Nothing is cut."""

    def decode(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """The text of each list of token ids.

        Raises:
            InvalidInput: a token id that the model does not have.
        """


@runtime_checkable
class RemoteEngine(Protocol):
    """Asks servers for vectors. Belongs to the event loop that first calls `encode`; `close` comes from any thread."""

    @property
    def label(self) -> str:
        """What answers: the provider, as in `EmbeddingEngine`."""

    async def encode(
        self, inputs: Sequence[str | Sequence[int]], *, truncate: bool, max_tokens: int | None = None
    ) -> Encoded:
        """Vectors of the inputs; large requests are split, and spread over the servers.

        Raises:
            InputTooLong: the server refused an input as too long.
            InvalidInput: token ids, or options, that the server does not take.
            EngineUnavailable: no server can be had now; with `retry_after` where one said when.
            UpstreamFailed: a server answered with an error, or with what is no answer; names the provider.
        """

    def spans(self, text: str) -> list[tuple[int, int]]:
        """As of `EmbeddingEngine`, as near as can be told without the model's tokenizer."""

    def close(self) -> None:
        """Close the connections. Safe to call twice."""


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
