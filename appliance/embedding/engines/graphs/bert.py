"""BERT (Devlin et al. 2018), RoBERTa and XLM-RoBERTa: post-norm, with a table of positions."""

from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from appliance.embedding.engines.graphs.architecture import Rows, Task, TextArchitecture
from appliance.embedding.engines.graphs.attention import attention
from appliance.embedding.engines.graphs.writer import Graph
from appliance.errors import EngineUnavailable


class Bert(TextArchitecture, frozen=True):
    """What `config.json` says of such a model.

    To embed, every token is of the first type. To rerank, `token_type_ids` comes in as well where the model has two
    types, and the output is `logits`, float32 (texts, labels), as transformers' BertForSequenceClassification and its
    RoBERTa kin give them.
    """

    model_type: Literal["bert", "roberta", "xlm-roberta"]
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    type_vocab_size: PositiveInt
    layer_norm_eps: float = 1e-12
    hidden_act: Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"] = "gelu"
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: Literal[False] = False
    pad_token_id: int = 0
    id2label: dict[str, str] = Field(default={"0": "LABEL_0", "1": "LABEL_1"}, description="as transformers take it")

    @model_validator(mode="after")
    def _heads_share_out(self) -> "Bert":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("num_attention_heads does not divide hidden_size")
        return self

    @property
    def first_position(self) -> int:
        """Row of the position table that the first token takes: RoBERTa counts from behind its padding id."""
        return 0 if self.model_type == "bert" else self.pad_token_id + 1

    @property
    def max_tokens(self) -> int:
        """The most tokens that have a position."""
        return self.max_position_embeddings - self.first_position

    def write(self, graph: Graph, *, task: Task) -> None:
        """Write the model."""
        if task == "answer":
            raise EngineUnavailable("config.json: a decoder that answers is needed, not an encoder")
        rows = Rows(graph, longest=self.max_tokens)
        typed = task == "rerank" and self.type_vocab_size > 1
        if typed:
            graph.input("token_type_ids")
        graph.weights.anchor("embeddings.word_embeddings.weight")
        states = self._layers(graph, rows, typed=typed)
        if task == "embed":
            graph.output("last_hidden_state", states, ["texts", "tokens", self.hidden_size])
        else:
            graph.output("logits", self._head(graph, states), ["texts", len(self.id2label)])

    def _layers(self, graph: Graph, rows: Rows, *, typed: bool) -> str:
        size, inner, heads = self.hidden_size, self.intermediate_size, self.num_attention_heads
        seen = rows.seen()
        hidden = rows.flat(self._embedded(graph, rows, typed=typed), size)
        hidden = self._norm(graph, hidden, "embeddings.LayerNorm")
        for layer in range(self.num_hidden_layers):
            at = f"encoder.layer.{layer}"
            parts = [f"{at}.attention.self.{part}" for part in ("query", "key", "value")]
            joined = graph.linear(hidden, *parts, sizes=[size] * 3, inputs=size)
            deep = [rows.deep(part, size) for part in graph.split(joined, size, size, size)]
            context = attention(graph, rows, deep, seen, heads=(heads, heads), size=size // heads)
            context = graph.linear(context, f"{at}.attention.output.dense", sizes=[size], inputs=size)
            hidden = self._norm(graph, graph("Add", context, hidden), f"{at}.attention.output.LayerNorm")
            grown = graph.linear(hidden, f"{at}.intermediate.dense", sizes=[inner], inputs=size)
            grown = graph.activation(self.hidden_act, grown)
            shrunk = graph.linear(grown, f"{at}.output.dense", sizes=[size], inputs=inner)
            hidden = self._norm(graph, graph("Add", shrunk, hidden), f"{at}.output.LayerNorm")
        return rows.deep(hidden, size)

    def _norm(self, graph: Graph, rows: str, name: str) -> str:
        return graph.layer_norm(rows, name, self.hidden_size, epsilon=self.layer_norm_eps)

    def _embedded(self, graph: Graph, rows: Rows, *, typed: bool) -> str:
        """Word + position + token type, (texts, tokens, hidden)."""
        size, weights = self.hidden_size, graph.weights
        words = graph.table("embeddings.word_embeddings.weight", (self.vocab_size, size), "input_ids")
        types = weights.take("embeddings.token_type_embeddings.weight", (self.type_vocab_size, size))
        if typed:
            words = graph("Add", words, graph("Gather", graph.constant(types - types[0]), "token_type_ids"))
        table = weights.take("embeddings.position_embeddings.weight", (self.max_position_embeddings, size))
        positions = graph.constant((table + types[0])[self.first_position :])
        first = graph.integers(0)
        return graph("Add", words, graph("Slice", positions, first, rows.tokens, first))

    def _head(self, graph: Graph, states: str) -> str:
        """The classification head, in float32: two layers, the first followed by tanh; (texts, labels)."""
        row = graph("Gather", states, graph.constant(0, np.int64), axis=1)
        size, labels = self.hidden_size, len(self.id2label)
        first, second = (
            ("pooler.dense", "classifier") if self.model_type == "bert" else ("classifier.dense", "classifier.out_proj")
        )
        for name, outputs, after in ((first, size, "Tanh"), (second, labels, "Identity")):
            weight = graph.constant(graph.weights.take(f"{name}.weight", (outputs, size)).T)
            bias = graph.constant(graph.weights.take(f"{name}.bias", (outputs,)))
            row = graph(after, graph("Add", graph("MatMul", row, weight), bias))
        return row
