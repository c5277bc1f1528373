"""Gemma 3's text model (2025), as EmbeddingGemma uses it: in both directions, with windows on most layers."""

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from appliance.embedding.engines.graphs.architecture import Rows, Task, TextArchitecture, only_embeds
from appliance.embedding.engines.graphs.attention import Rotary, attention, frequencies, head_norm, within
from appliance.embedding.engines.graphs.writer import Graph


class Gemma3(TextArchitecture, frozen=True):
    """What `config.json` says of such a model."""

    model_type: Literal["gemma3_text"]
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt = 256
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    rms_norm_eps: float = 1e-6
    hidden_activation: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    query_pre_attn_scalar: float = Field(default=256, gt=0)
    rope_theta: float = 1e6
    rope_local_base_freq: float = 1e4
    rope_scaling: None = None
    sliding_window: PositiveInt = 4096
    layer_types: tuple[Literal["sliding_attention", "full_attention"], ...] = ()
    sliding_window_pattern: PositiveInt = Field(default=6, alias="_sliding_window_pattern")
    use_bidirectional_attention: Literal[True]
    attention_bias: Literal[False] = False
    attn_logit_softcapping: None = None

    @model_validator(mode="before")
    @classmethod
    def _rotations(cls, data: Any) -> Any:
        """Newer files keep the rotation of each kind of layer in a table of its own."""
        tables = data.get("rope_parameters")
        if not isinstance(tables, dict):
            return data
        found = {}
        for kind, field in (("full_attention", "rope_theta"), ("sliding_attention", "rope_local_base_freq")):
            rotation = tables.get(kind)
            if isinstance(rotation, dict) and "rope_theta" in rotation:
                found[field] = rotation["rope_theta"]
            if isinstance(rotation, dict) and rotation.get("rope_type", "default") != "default":
                found["rope_scaling"] = rotation
        return found | data

    @model_validator(mode="after")
    def _a_type_for_each_layer(self) -> "Gemma3":
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError("layer_types does not name every layer")
        return self

    @property
    def max_tokens(self) -> int:
        """The most tokens that the model was made for."""
        return self.max_position_embeddings

    def write(self, graph: Graph, *, task: Task) -> None:
        """Write the encoder."""
        only_embeds(task)
        graph.weights.anchor("embed_tokens.weight")
        rows = Rows(graph, longest=self.max_tokens)
        size = self.hidden_size
        words = graph.table("embed_tokens.weight", (self.vocab_size, size), "input_ids")
        hidden = rows.flat(graph("Mul", words, graph.constant(size**0.5)), size)
        seen = rows.seen()
        # As transformers have it: half of the window on each side.
        masks = {True: within(graph, rows, seen, self.sliding_window // 2 + 1), False: seen}
        thetas = {True: self.rope_local_base_freq, False: self.rope_theta}
        rotaries = {each: Rotary(graph, rows, frequencies(thetas[each], self.head_dim)) for each in thetas}
        for layer in range(self.num_hidden_layers):
            near = self._slides(layer)
            hidden = self._layer(graph, rows, hidden, f"layers.{layer}", rotary=rotaries[near], mask=masks[near])
        hidden = self._norm(graph, hidden, "norm")
        graph.output("last_hidden_state", rows.deep(hidden, size), ["texts", "tokens", size])

    def _slides(self, layer: int) -> bool:
        if self.layer_types:
            return self.layer_types[layer] == "sliding_attention"
        return bool((layer + 1) % self.sliding_window_pattern)

    def _layer(self, graph: Graph, rows: Rows, hidden: str, at: str, *, rotary: Rotary, mask: str) -> str:
        size, inner, head = self.hidden_size, self.intermediate_size, self.head_dim
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        sizes = [heads * head, shared * head, shared * head]
        normed = self._norm(graph, hidden, f"{at}.input_layernorm")
        names = [f"{at}.self_attn.{part}_proj" for part in "qkv"]
        joined = graph.split(graph.linear(normed, *names, sizes=sizes, inputs=size, bias=False), *sizes)
        query, key, value = (rows.deep(part, width) for part, width in zip(joined, sizes, strict=True))
        for name, count in (("q", heads), ("k", shared)):
            part = head_norm(
                graph,
                rows,
                query if name == "q" else key,
                f"{at}.self_attn.{name}_norm",
                heads=count,
                size=head,
                epsilon=self.rms_norm_eps,
                offset=1.0,
            )
            part = rotary(part, count)
            query, key = (part, key) if name == "q" else (query, part)
        context = attention(
            graph,
            rows,
            [query, key, value],
            mask,
            heads=(heads, shared),
            size=head,
            scale=self.query_pre_attn_scalar**-0.5,
        )
        context = graph.linear(context, f"{at}.self_attn.o_proj", sizes=[size], inputs=heads * head, bias=False)
        hidden = graph("Add", self._norm(graph, context, f"{at}.post_attention_layernorm"), hidden)
        normed = self._norm(graph, hidden, f"{at}.pre_feedforward_layernorm")
        names = [f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"]
        gate, up = graph.split(graph.linear(normed, *names, sizes=[inner] * 2, inputs=size, bias=False), inner, inner)
        grown = graph("Mul", graph.activation(self.hidden_activation, gate), up)
        shrunk = graph.linear(grown, f"{at}.mlp.down_proj", sizes=[size], inputs=inner, bias=False)
        return graph("Add", self._norm(graph, shrunk, f"{at}.post_feedforward_layernorm"), hidden)

    def _norm(self, graph: Graph, rows: str, name: str) -> str:
        return graph.rms_norm(rows, name, self.hidden_size, epsilon=self.rms_norm_eps, offset=1.0)
