"""The encoder of T5 (Raffel et al. 2020): pre-norm, no biases, and the first layer's bias by distance for all."""

from typing import Literal

from pydantic import PositiveInt

from appliance.embedding.engines.graphs.architecture import Rows, Task, TextArchitecture, only_embeds
from appliance.embedding.engines.graphs.attention import attention, bias_by_distance, biased, buckets
from appliance.embedding.engines.graphs.writer import Graph


class T5(TextArchitecture, frozen=True):
    """What `config.json` says of such a model; a decoder beside the encoder is left alone."""

    model_type: Literal["t5"]
    d_model: PositiveInt
    d_kv: PositiveInt
    d_ff: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    relative_attention_num_buckets: PositiveInt = 32
    relative_attention_max_distance: PositiveInt = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: Literal["relu", "gated-gelu", "gated-silu", "gelu"] = "relu"
    n_positions: PositiveInt = 512

    @property
    def max_tokens(self) -> int:
        """Tokens that the model was trained on; the bias would know more."""
        return self.n_positions

    def write(self, graph: Graph, *, task: Task) -> None:
        """Write the encoder."""
        only_embeds(task)
        size, inner, heads = self.d_model, self.d_ff, self.num_heads
        joint = heads * self.d_kv
        rows = Rows(graph, longest=self.max_tokens)
        table = next((name for name in ("encoder.embed_tokens.weight",) if name in graph.weights), "shared.weight")
        hidden = rows.flat(graph.table(table, (self.vocab_size, size), "input_ids"), size)
        count, furthest = self.relative_attention_num_buckets, self.relative_attention_max_distance
        values = graph.weights.take(
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (count, heads)
        )
        mask = biased(graph, bias_by_distance(graph, rows, values[buckets(furthest, count, furthest)]))
        for layer in range(self.num_layers):
            at = f"encoder.block.{layer}.layer"
            normed = self._norm(graph, hidden, f"{at}.0.layer_norm")
            parts = [f"{at}.0.SelfAttention.{part}" for part in "qkv"]
            joined = graph.linear(normed, *parts, sizes=[joint] * 3, inputs=size, bias=False)
            deep = [rows.deep(part, joint) for part in graph.split(joined, joint, joint, joint)]
            context = attention(graph, rows, deep, mask, heads=(heads, heads), size=self.d_kv, scale=1.0)
            context = graph.linear(context, f"{at}.0.SelfAttention.o", sizes=[size], inputs=joint, bias=False)
            hidden = graph("Add", context, hidden)
            normed = self._norm(graph, hidden, f"{at}.1.layer_norm")
            grown = self._grown(graph, normed, f"{at}.1.DenseReluDense")
            shrunk = graph.linear(grown, f"{at}.1.DenseReluDense.wo", sizes=[size], inputs=inner, bias=False)
            hidden = graph("Add", shrunk, hidden)
        hidden = self._norm(graph, hidden, "encoder.final_layer_norm")
        graph.output("last_hidden_state", rows.deep(hidden, size), ["texts", "tokens", size])

    def _grown(self, graph: Graph, rows: str, name: str) -> str:
        size, inner = self.d_model, self.d_ff
        activation = self.feed_forward_proj.removeprefix("gated-")
        if activation == self.feed_forward_proj:
            grown = graph.linear(rows, f"{name}.wi", sizes=[inner], inputs=size, bias=False)
            return graph.activation(activation, grown)
        joined = graph.linear(rows, f"{name}.wi_0", f"{name}.wi_1", sizes=[inner] * 2, inputs=size, bias=False)
        gate, value = graph.split(joined, inner, inner)
        # "gated-gelu" has always meant the approximation.
        return graph("Mul", graph.activation("gelu_new" if activation == "gelu" else activation, gate), value)

    def _norm(self, graph: Graph, rows: str, name: str) -> str:
        return graph.rms_norm(rows, name, self.d_model, epsilon=self.layer_norm_epsilon)
