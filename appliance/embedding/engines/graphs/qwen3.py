"""Qwen3 (2025): a causal decoder with grouped queries, norms on queries and keys, rotation and SwiGLU."""

from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt, model_validator

from appliance.embedding.engines.graphs.architecture import Rows, Task, TextArchitecture
from appliance.embedding.engines.graphs.attention import Rotary, attention, backwards, frequencies, head_norm
from appliance.embedding.engines.graphs.writer import Graph
from appliance.errors import EngineUnavailable


class Qwen3(TextArchitecture, frozen=True):
    """What `config.json` says of such a model.

    To embed, the output is `last_hidden_state`. To answer, it is `logits`, float32 (texts, 2): what the last token
    that is no padding says of two words; of the vocabulary only their rows are read.

    Attributes:
        words: ids of the two words: no and yes.
    """

    model_type: Literal["qwen3"]
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt = 128
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    rms_norm_eps: float = 1e-6
    hidden_act: Literal["silu"] = "silu"
    rope_theta: float = 1e6
    rope_scaling: None = None
    attention_bias: Literal[False] = False
    use_sliding_window: Literal[False] = False
    words: tuple[int, int] | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_rotation(cls, data: Any) -> Any:
        """Newer files keep rotation in a table of its own."""
        rotation = data.get("rope_parameters")
        if not isinstance(rotation, dict):
            return data
        if rotation.get("rope_type", "default") != "default":
            return data | {"rope_scaling": rotation}
        return {"rope_theta": rotation.get("rope_theta", 1e6)} | data

    @property
    def max_tokens(self) -> int:
        """The most tokens that the model was made for."""
        return self.max_position_embeddings

    def write(self, graph: Graph, *, task: Task) -> None:
        """Write the model."""
        if task == "rerank":
            raise EngineUnavailable("config.json: a decoder reranks by its answer: the card must say yes and no")
        graph.weights.anchor("embed_tokens.weight")
        rows = Rows(graph, longest=self.max_tokens)
        size = self.hidden_size
        hidden = rows.flat(graph.table("embed_tokens.weight", (self.vocab_size, size), "input_ids"), size)
        rotary = Rotary(graph, rows, frequencies(self.rope_theta, self.head_dim))
        for layer in range(self.num_hidden_layers):
            hidden = self._layer(graph, rows, hidden, f"layers.{layer}", rotary)
        if task == "embed":
            hidden = self._norm(graph, hidden, "norm")
            graph.output("last_hidden_state", rows.deep(hidden, size), ["texts", "tokens", size])
        else:
            graph.output("logits", self._answer(graph, rows.deep(hidden, size)), ["texts", 2])

    def _layer(self, graph: Graph, rows: Rows, hidden: str, at: str, rotary: Rotary) -> str:
        size, inner, head = self.hidden_size, self.intermediate_size, self.head_dim
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        normed = self._norm(graph, hidden, f"{at}.input_layernorm")
        sizes = [heads * head, shared * head, shared * head]
        names = [f"{at}.self_attn.{part}_proj" for part in "qkv"]
        joined = graph.linear(normed, *names, sizes=sizes, inputs=size, bias=False)
        query, key, value = (
            rows.deep(part, width) for part, width in zip(graph.split(joined, *sizes), sizes, strict=True)
        )
        query, key = (
            rotary(
                head_norm(
                    graph, rows, part, f"{at}.self_attn.{name}", heads=count, size=head, epsilon=self.rms_norm_eps
                ),
                count,
            )
            for part, name, count in ((query, "q_norm", heads), (key, "k_norm", shared))
        )
        context = attention(graph, rows, [query, key, value], backwards(graph, rows), heads=(heads, shared), size=head)
        context = graph.linear(context, f"{at}.self_attn.o_proj", sizes=[size], inputs=heads * head, bias=False)
        hidden = graph("Add", context, hidden)
        normed = self._norm(graph, hidden, f"{at}.post_attention_layernorm")
        names = [f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"]
        gate, up = graph.split(graph.linear(normed, *names, sizes=[inner] * 2, inputs=size, bias=False), inner, inner)
        grown = graph("Mul", graph.activation(self.hidden_act, gate), up)
        return graph("Add", graph.linear(grown, f"{at}.mlp.down_proj", sizes=[size], inputs=inner, bias=False), hidden)

    def _norm(self, graph: Graph, rows: str, name: str) -> str:
        return graph.rms_norm(rows, name, self.hidden_size, epsilon=self.rms_norm_eps)

    def _answer(self, graph: Graph, states: str) -> str:
        """Logits of the two words, (texts, 2), in float32."""
        if self.words is None:
            raise EngineUnavailable("the card must say yes and no: ids of the tokens that a decoder answers with")
        table = "lm_head.weight" if "lm_head.weight" in graph.weights else "embed_tokens.weight"
        if not all(0 <= word < self.vocab_size for word in self.words):
            raise EngineUnavailable(f"the card's yes and no must be token ids below {self.vocab_size}")
        shape = (self.vocab_size, self.hidden_size)
        weight = np.stack([graph.weights.row(table, shape, word) for word in self.words], axis=1)
        count = graph("ReduceSum", "attention_mask", graph.integers(1), keepdims=1)
        last = graph("Sub", count, graph.integers(1))
        row = graph("GatherND", states, last, batch_dims=1)
        return graph("MatMul", self._norm(graph, row, "norm"), graph.constant(weight))
