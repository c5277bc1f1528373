"""What every architecture can say and do, and how tokens become rows."""

from abc import ABC, abstractmethod
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import TensorProto
from pydantic import BaseModel, PositiveInt

from appliance.embedding.engines.graphs.writer import Graph
from appliance.errors import EngineUnavailable

Task: TypeAlias = Literal["embed", "see", "rerank", "answer"]
"""What the graph ends with: the last layer's states, or a vector for each input; the same for images; the
classification head on top of the first of the states; or what a decoder's last token says of two words.
"""


class Architecture(BaseModel, ABC, frozen=True):
    """What a `config.json` says, as far as it shapes the graph: a subclass names its fields, pydantic checks them."""

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """The most tokens that the graph takes; for a tower that sees, its patches."""

    @abstractmethod
    def write(self, graph: Graph, *, task: Task) -> None:
        """Write inputs, layers and outputs.

        Raises:
            EngineUnavailable: weights are missing or have another shape; or the architecture cannot do the task.
        """

    @abstractmethod
    def samples(self, names: list[str]) -> dict[str, npt.NDArray[Any]]:
        """Inputs by name, on which the loud channels behind each norm show."""


class TextArchitecture(Architecture, ABC, frozen=True):
    """A model that reads token ids, with padding on the right."""

    vocab_size: PositiveInt

    def samples(self, names: list[str]) -> dict[str, npt.NDArray[Any]]:
        """Random tokens.

        A model's loud channels are its own and hardly depend on the text: random tokens serve as well as real text did
        (mean cosine of the int8 model 0.9988 and 0.9987).
        """
        ids = np.random.default_rng(0).integers(self.vocab_size, size=(32, min(64, self.max_tokens)))
        halves = np.zeros_like(ids)
        halves[:, ids.shape[1] // 2 :] = 1
        values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": halves}
        return {name: values[name] for name in names}


def only_embeds(task: Task) -> None:
    """EngineUnavailable where a model that only embeds is to do something else."""
    if task != "embed":
        raise EngineUnavailable("config.json: models of this architecture embed; they are not built as rerankers")


class Rows:
    """The inputs `input_ids` and `attention_mask`, and the way from (texts, tokens, channels) to rows and back."""

    def __init__(self, graph: Graph, *, longest: int) -> None:
        self._graph = graph
        self.longest = longest
        """The most tokens of a text."""
        graph.input("input_ids")
        graph.input("attention_mask")
        self.shape = graph("Shape", "input_ids")
        """int64 (2,): texts, tokens."""
        self.tokens = graph("Shape", "input_ids", start=1)
        """int64 (1,)."""
        first, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
        last = graph("Squeeze", self.tokens, graph.integers(0))
        self._positions = graph("Cast", graph("Range", first, last, one), to=TensorProto.FLOAT)

    def flat(self, states: str, channels: int) -> str:
        """(texts, tokens, …) as rows, (texts * tokens, channels)."""
        return self._graph("Reshape", states, self._graph.integers(-1, channels))

    def deep(self, rows: str, channels: int) -> str:
        """Rows as (texts, tokens, channels)."""
        shape = self._graph("Concat", self.shape, self._graph.integers(channels), axis=0)
        return self._graph("Reshape", rows, shape)

    def seen(self) -> str:
        """Which tokens each token looks at, bool (texts, 1, tokens, tokens): all that are no padding."""
        graph = self._graph
        mask = graph("Cast", graph("Unsqueeze", "attention_mask", graph.integers(1, 2)), to=TensorProto.BOOL)
        one = graph.integers(1)
        return graph("Expand", mask, graph("Concat", one, one, self.tokens, one, axis=0))

    def positions(self) -> str:
        """0, 1, 2, … for the tokens of a text, float32 (tokens,)."""
        return self._positions

    def distances(self) -> str:
        """How far after token i token j stands, float32 (tokens, tokens)."""
        graph, positions = self._graph, self.positions()
        return graph(
            "Sub",
            graph("Unsqueeze", positions, graph.integers(0)),
            graph("Unsqueeze", positions, graph.integers(1)),
        )
