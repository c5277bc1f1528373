"""Alibaba's GTE encoders (Zhang et al. 2024; `model_type` new): post-norm with rotation and a gated layer."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, PositiveInt

from appliance.embedding.engines.graphs.architecture import Rows, Task, TextArchitecture, only_embeds
from appliance.embedding.engines.graphs.attention import Rotary, attention, frequencies
from appliance.embedding.engines.graphs.writer import Graph


class Scaling(BaseModel, frozen=True):
    """How rotation is slowed down for texts longer than those it was trained on."""

    type: Literal["ntk"]
    factor: float = Field(ge=1)
    mixed_b: None = None


class Gte(TextArchitecture, frozen=True):
    """What `config.json` says of such a model."""

    model_type: Literal["new"]
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    type_vocab_size: int = Field(default=1, ge=0)
    layer_norm_type: Literal["layer_norm"] = "layer_norm"
    layer_norm_eps: float = 1e-12
    hidden_act: Literal["gelu"] = "gelu"
    position_embedding_type: Literal["rope"] = "rope"
    rope_theta: float = 10000
    rope_scaling: Scaling | None = None
    logn_attention_scale: Literal[False] = False
    pack_qkv: Literal[True] = True

    @property
    def max_tokens(self) -> int:
        """The most tokens that the model was made for."""
        return self.max_position_embeddings

    def write(self, graph: Graph, *, task: Task) -> None:
        """Write the encoder."""
        only_embeds(task)
        graph.weights.anchor("embeddings.word_embeddings.weight")
        size, inner, heads = self.hidden_size, self.intermediate_size, self.num_attention_heads
        rows = Rows(graph, longest=self.max_tokens)
        words = graph.table("embeddings.word_embeddings.weight", (self.vocab_size, size), "input_ids")
        if self.type_vocab_size:
            types = graph.weights.take("embeddings.token_type_embeddings.weight", (self.type_vocab_size, size))
            words = graph("Add", words, graph.constant(types[0]))
        hidden = self._norm(graph, rows.flat(words, size), "embeddings.LayerNorm")
        rotary = Rotary(graph, rows, self._radians())
        seen = rows.seen()
        for layer in range(self.num_hidden_layers):
            at = f"encoder.layer.{layer}"
            joined = graph.linear(hidden, f"{at}.attention.qkv_proj", sizes=[3 * size], inputs=size)
            query, key, value = (rows.deep(part, size) for part in graph.split(joined, size, size, size))
            parts = [rotary(query, heads), rotary(key, heads), value]
            context = attention(graph, rows, parts, seen, heads=(heads, heads), size=size // heads)
            context = graph.linear(context, f"{at}.attention.o_proj", sizes=[size], inputs=size)
            hidden = self._norm(graph, graph("Add", context, hidden), f"{at}.attn_ln")
            joined = graph.linear(hidden, f"{at}.mlp.up_gate_proj", sizes=[2 * inner], inputs=size, bias=False)
            up, gate = graph.split(joined, inner, inner)
            grown = graph("Mul", graph.activation(self.hidden_act, gate), up)
            shrunk = graph.linear(grown, f"{at}.mlp.down_proj", sizes=[size], inputs=inner)
            hidden = self._norm(graph, graph("Add", shrunk, hidden), f"{at}.mlp_ln")
        graph.output("last_hidden_state", rows.deep(hidden, size), ["texts", "tokens", size])

    def _norm(self, graph: Graph, rows: str, name: str) -> str:
        return graph.layer_norm(rows, name, self.hidden_size, epsilon=self.layer_norm_eps)

    def _radians(self) -> npt.NDArray[np.float64]:
        """NTK-aware scaling, the same for texts of every length: a larger theta, and all slower by factor^(2/size)."""
        head = self.hidden_size // self.num_attention_heads
        if self.rope_scaling is None or self.rope_scaling.factor == 1:
            return frequencies(self.rope_theta, head)
        factor = self.rope_scaling.factor
        radians: npt.NDArray[np.float64] = frequencies(self.rope_theta * factor, head) / factor ** (2 / head)
        return radians
