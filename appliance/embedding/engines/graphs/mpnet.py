"""MPNet (Song et al. 2020): post-norm, a table of positions, and one bias by distance for all layers."""

from typing import Literal

from pydantic import PositiveInt

from appliance.embedding.engines.graphs.architecture import Rows, Task, TextArchitecture, only_embeds
from appliance.embedding.engines.graphs.attention import attention, bias_by_distance, biased, buckets
from appliance.embedding.engines.graphs.writer import Graph

_FURTHEST = 128
"""Distance from which on all share a bucket; no field of the config."""


class MPNet(TextArchitecture, frozen=True):
    """What `config.json` says of such a model."""

    model_type: Literal["mpnet"]
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    relative_attention_num_buckets: PositiveInt = 32
    layer_norm_eps: float = 1e-12
    hidden_act: Literal["gelu", "gelu_new", "relu"] = "gelu"
    pad_token_id: int = 1

    @property
    def max_tokens(self) -> int:
        """The most tokens that have a position: the first stands behind the padding id's."""
        return self.max_position_embeddings - self.pad_token_id - 1

    def write(self, graph: Graph, *, task: Task) -> None:
        """Write the encoder."""
        only_embeds(task)
        size, inner, heads = self.hidden_size, self.intermediate_size, self.num_attention_heads
        rows = Rows(graph, longest=self.max_tokens)
        graph.weights.anchor("embeddings.word_embeddings.weight")
        weights = graph.weights
        words = graph.table("embeddings.word_embeddings.weight", (self.vocab_size, size), "input_ids")
        table = weights.take("embeddings.position_embeddings.weight", (self.max_position_embeddings, size))
        first = graph.integers(0)
        positions = graph("Slice", graph.constant(table[self.pad_token_id + 1 :]), first, rows.tokens, first)
        hidden = self._norm(graph, rows.flat(graph("Add", words, positions), size), "embeddings.LayerNorm")
        count = self.relative_attention_num_buckets
        values = weights.take("encoder.relative_attention_bias.weight", (count, heads))
        mask = biased(graph, bias_by_distance(graph, rows, values[buckets(_FURTHEST, count, _FURTHEST)]))
        for layer in range(self.num_hidden_layers):
            at = f"encoder.layer.{layer}"
            parts = [f"{at}.attention.attn.{part}" for part in "qkv"]
            joined = graph.linear(hidden, *parts, sizes=[size] * 3, inputs=size)
            deep = [rows.deep(part, size) for part in graph.split(joined, size, size, size)]
            context = attention(graph, rows, deep, mask, heads=(heads, heads), size=size // heads)
            context = graph.linear(context, f"{at}.attention.attn.o", sizes=[size], inputs=size)
            hidden = self._norm(graph, graph("Add", context, hidden), f"{at}.attention.LayerNorm")
            grown = graph.linear(hidden, f"{at}.intermediate.dense", sizes=[inner], inputs=size)
            grown = graph.activation(self.hidden_act, grown)
            shrunk = graph.linear(grown, f"{at}.output.dense", sizes=[size], inputs=inner)
            hidden = self._norm(graph, graph("Add", shrunk, hidden), f"{at}.output.LayerNorm")
        graph.output("last_hidden_state", rows.deep(hidden, size), ["texts", "tokens", size])

    def _norm(self, graph: Graph, rows: str, name: str) -> str:
        return graph.layer_norm(rows, name, self.hidden_size, epsilon=self.layer_norm_eps)
