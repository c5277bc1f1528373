"""NomicBERT (Nussbaum et al. 2024, 2025): post-norm with rotation; SwiGLU, or experts on every other layer."""

from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from appliance.embedding.engines.graphs.architecture import Rows, Task, TextArchitecture, only_embeds
from appliance.embedding.engines.graphs.attention import Rotary, attention, frequencies
from appliance.embedding.engines.graphs.writer import Graph


class NomicBert(TextArchitecture, frozen=True):
    """What `config.json` says of such a model, as its authors publish it."""

    model_type: Literal["nomic_bert"]
    n_embd: PositiveInt
    n_layer: PositiveInt
    n_head: PositiveInt
    n_inner: PositiveInt
    n_positions: PositiveInt
    max_trained_positions: PositiveInt = 2048
    type_vocab_size: PositiveInt
    layer_norm_epsilon: float = 1e-12
    activation_function: Literal["swiglu", "gelu"]
    qkv_proj_bias: bool = False
    mlp_fc1_bias: bool = False
    mlp_fc2_bias: bool = False
    rotary_emb_base: float = 10000
    rotary_emb_fraction: Literal[1] = 1
    rotary_emb_interleaved: Literal[False] = False
    rotary_scaling_factor: None = None
    prenorm: Literal[False] = False
    use_rms_norm: Literal[False] | None = False
    num_experts: int = Field(default=0, ge=0, le=256)
    moe_every_n_layers: int = Field(default=0, ge=-1)
    moe_top_k: PositiveInt = 1
    moe_normalize_expert_weights: Literal[False] = False
    num_shared_experts: Literal[0] = 0
    expert_choice_router: Literal[False] = False

    @model_validator(mode="after")
    def _experts(self) -> "NomicBert":
        if self.num_experts and self.moe_every_n_layers > 0 and self.moe_top_k > self.num_experts:
            raise ValueError("moe_top_k is more than there are experts")
        if self.n_embd % self.n_head:
            raise ValueError("n_head does not divide n_embd")
        return self

    @property
    def max_tokens(self) -> int:
        """Tokens that the model was trained on; beyond, its rotation would need scaling."""
        return min(self.n_positions, self.max_trained_positions)

    def write(self, graph: Graph, *, task: Task) -> None:
        """Write the encoder."""
        only_embeds(task)
        graph.weights.anchor("embeddings.word_embeddings.weight")
        size, heads = self.n_embd, self.n_head
        rows = Rows(graph, longest=self.max_tokens)
        words = graph.table("embeddings.word_embeddings.weight", (self.vocab_size, size), "input_ids")
        types = graph.weights.take("embeddings.token_type_embeddings.weight", (self.type_vocab_size, size))
        hidden = self._norm(graph, rows.flat(graph("Add", words, graph.constant(types[0])), size), "emb_ln")
        rotary = Rotary(graph, rows, frequencies(self.rotary_emb_base, size // heads))
        seen = rows.seen()
        for layer in range(self.n_layer):
            at = f"encoder.layers.{layer}"
            joined = graph.linear(hidden, f"{at}.attn.Wqkv", sizes=[3 * size], inputs=size, bias=self.qkv_proj_bias)
            query, key, value = (rows.deep(part, size) for part in graph.split(joined, size, size, size))
            parts = [rotary(query, heads), rotary(key, heads), value]
            context = attention(graph, rows, parts, seen, heads=(heads, heads), size=size // heads)
            context = graph.linear(context, f"{at}.attn.out_proj", sizes=[size], inputs=size, bias=self.qkv_proj_bias)
            hidden = self._norm(graph, graph("Add", context, hidden), f"{at}.norm1")
            every = self.moe_every_n_layers
            expert = self.num_experts and every > 0 and layer % every == 1
            grown = (self._experts_of if expert else self._mlp)(graph, hidden, f"{at}.mlp")
            hidden = self._norm(graph, graph("Add", grown, hidden), f"{at}.norm2")
        graph.output("last_hidden_state", rows.deep(hidden, size), ["texts", "tokens", size])

    def _norm(self, graph: Graph, rows: str, name: str) -> str:
        return graph.layer_norm(rows, name, self.n_embd, epsilon=self.layer_norm_epsilon)

    def _mlp(self, graph: Graph, rows: str, at: str) -> str:
        size, inner = self.n_embd, self.n_inner
        if self.activation_function == "swiglu":
            names = [f"{at}.fc11", f"{at}.fc12"]
            joined = graph.linear(rows, *names, sizes=[inner] * 2, inputs=size, bias=self.mlp_fc1_bias)
            up, gate = graph.split(joined, inner, inner)
            grown = graph("Mul", up, graph.activation("silu", gate))
        else:
            grown = graph.linear(rows, f"{at}.fc1", sizes=[inner], inputs=size, bias=self.mlp_fc1_bias)
            grown = graph.activation("gelu", grown)
        return graph.linear(grown, f"{at}.fc2", sizes=[size], inputs=inner, bias=self.mlp_fc2_bias)

    def _experts_of(self, graph: Graph, rows: str, at: str) -> str:
        """Each row goes to the experts that the router likes best; what they give is summed by its shares.

        An expert reads its own rows alone: of eight experts and two a row, a quarter of the work.
        """
        size, inner, count = self.n_embd, self.n_inner, self.num_experts
        router = graph.weights.take(f"{at}.router.layer.weight", (count, size)).T
        shares = graph("Softmax", graph("MatMul", rows, graph.constant(router)), axis=-1)
        best, which = graph.several("TopK", shares, graph.integers(self.moe_top_k), outputs=2, axis=-1)
        nothing = graph("Mul", shares, graph.constant(0.0))
        shares = graph("Transpose", graph("ScatterElements", nothing, which, best, axis=1), perm=[1, 0])
        total = graph("Mul", rows, graph.constant(0.0))
        stacks = [
            graph.weights.rows(f"{at}.experts.mlp.{name}", (count * inner, size), at_once=inner)
            for name in ("w1", "w2")
        ]
        for expert, (grow, shrink) in enumerate(zip(*stacks, strict=True)):
            share = graph("Gather", shares, graph.constant(expert, np.int64), axis=0)
            places = graph("Squeeze", graph("NonZero", share), graph.integers(0))
            share = graph("Concat", graph("Gather", share, places), graph.constant([0.0]), axis=0)
            places = graph("Concat", places, graph.integers(0), axis=0)  # never no row: the runtime fails on that
            own = graph("Gather", rows, places, axis=0)
            graph.same_norm(own, rows)
            grown = graph.activation("gelu", graph.product(own, np.ascontiguousarray(grow.T)))
            given = graph.product(grown, shrink)
            given = graph("Mul", given, graph("Unsqueeze", share, graph.integers(1)))
            total = graph("ScatterND", total, graph("Unsqueeze", places, graph.integers(1)), given, reduction="add")
        bias = graph.weights.take(f"{at}.experts.bias", (size,))
        return graph("Add", total, graph.constant(bias))
