"""Jina's BERT with ALiBi (Günther et al. 2023), as in jina-embeddings-v2: post-norm, a gated layer, no positions."""

from typing import Literal

from pydantic import PositiveInt

from appliance.embedding.engines.graphs.architecture import Rows, Task, TextArchitecture, only_embeds
from appliance.embedding.engines.graphs.attention import attention, falling
from appliance.embedding.engines.graphs.writer import Graph


class JinaBert(TextArchitecture, frozen=True):
    """What `config.json` says of such a model."""

    model_type: Literal["bert"]
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    type_vocab_size: PositiveInt
    layer_norm_eps: float = 1e-12
    position_embedding_type: Literal["alibi"]
    feed_forward_type: Literal["geglu"]
    hidden_act: Literal["gelu"] = "gelu"
    is_decoder: Literal[False] = False

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
        types = graph.weights.take("embeddings.token_type_embeddings.weight", (self.type_vocab_size, size))
        words = rows.flat(graph("Add", words, graph.constant(types[0])), size)
        hidden = self._norm(graph, words, "embeddings.LayerNorm")
        mask = falling(graph, rows, heads)
        for layer in range(self.num_hidden_layers):
            at = f"encoder.layer.{layer}"
            parts = [f"{at}.attention.self.{part}" for part in ("query", "key", "value")]
            joined = graph.linear(hidden, *parts, sizes=[size] * 3, inputs=size)
            deep = [rows.deep(part, size) for part in graph.split(joined, size, size, size)]
            context = attention(graph, rows, deep, mask, heads=(heads, heads), size=size // heads)
            context = graph.linear(context, f"{at}.attention.output.dense", sizes=[size], inputs=size)
            hidden = self._norm(graph, graph("Add", context, hidden), f"{at}.attention.output.LayerNorm")
            joined = graph.linear(hidden, f"{at}.mlp.gated_layers", sizes=[2 * inner], inputs=size, bias=False)
            gate, up = graph.split(joined, inner, inner)
            grown = graph("Mul", graph.activation(self.hidden_act, gate), up)
            shrunk = graph.linear(grown, f"{at}.mlp.wo", sizes=[size], inputs=inner)
            hidden = self._norm(graph, graph("Add", shrunk, hidden), f"{at}.mlp.layernorm")
        graph.output("last_hidden_state", rows.deep(hidden, size), ["texts", "tokens", size])

    def _norm(self, graph: Graph, rows: str, name: str) -> str:
        return graph.layer_norm(rows, name, self.hidden_size, epsilon=self.layer_norm_eps)
