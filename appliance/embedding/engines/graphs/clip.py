"""CLIP (Radford et al. 2021): a causal encoder of texts and a vision transformer, both pre-norm, projected alike."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from onnx import TensorProto
from pydantic import BaseModel, PositiveInt, model_validator

from appliance.embedding.engines.graphs.architecture import Architecture, Rows, Task
from appliance.embedding.engines.graphs.writer import Graph
from appliance.errors import EngineUnavailable

_HIGHEST = 2
"""As `eos_token_id`, an old mistake in configs: the text ends at its highest token id instead."""


class _Tower(BaseModel, frozen=True):
    """What both towers have."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt
    layer_norm_eps: float = 1e-5
    hidden_act: Literal["quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh"] = "quick_gelu"

    @model_validator(mode="after")
    def _heads_share_out(self) -> "_Tower":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("num_attention_heads does not divide hidden_size")
        return self

    def encoded(self, graph: Graph, hidden: str, at: str, *, deep: Callable[[str], str], causal: bool) -> str:
        """Rows behind the last layer; `deep` makes (inputs, tokens, hidden) of rows."""
        size, inner, heads = self.hidden_size, self.intermediate_size, self.num_attention_heads
        for layer in range(self.num_hidden_layers):
            here = f"{at}.encoder.layers.{layer}"
            normed = self.norm(graph, hidden, f"{here}.layer_norm1")
            parts = [f"{here}.self_attn.{part}_proj" for part in "qkv"]
            joined = graph.linear(normed, *parts, sizes=[size] * 3, inputs=size)
            attended = graph(
                "Attention",
                *(deep(part) for part in graph.split(joined, size, size, size)),
                q_num_heads=heads,
                kv_num_heads=heads,
                is_causal=int(causal),
            )
            context = graph("Reshape", attended, graph.integers(-1, size))
            context = graph.linear(context, f"{here}.self_attn.out_proj", sizes=[size], inputs=size)
            hidden = graph("Add", context, hidden)
            normed = self.norm(graph, hidden, f"{here}.layer_norm2")
            grown = self._activated(graph, graph.linear(normed, f"{here}.mlp.fc1", sizes=[inner], inputs=size))
            hidden = graph("Add", graph.linear(grown, f"{here}.mlp.fc2", sizes=[size], inputs=inner), hidden)
        return hidden

    def norm(self, graph: Graph, rows: str, name: str) -> str:
        """Layer norm as the tower's others."""
        return graph.layer_norm(rows, name, self.hidden_size, epsilon=self.layer_norm_eps)

    def projected(self, graph: Graph, rows: str, name: str, *, outputs: int) -> str:
        """One row an input into the common space, in float32."""
        weight = graph.weights.take(f"{name}.weight", (outputs, self.hidden_size))
        return graph("MatMul", rows, graph.constant(weight.T))

    def _activated(self, graph: Graph, rows: str) -> str:
        if self.hidden_act == "quick_gelu":
            return graph("Mul", rows, graph("Sigmoid", graph("Mul", rows, graph.constant(1.702))))
        return graph.activation(self.hidden_act, rows)


class _TextTower(_Tower, frozen=True):
    """Defaults are those that transformers leaves out of a config."""

    vocab_size: PositiveInt = 49408
    hidden_size: PositiveInt = 512
    intermediate_size: PositiveInt = 2048
    num_attention_heads: PositiveInt = 8
    max_position_embeddings: PositiveInt = 77
    eos_token_id: int = 49407

    def write(self, graph: Graph, *, outputs: int) -> None:
        size = self.hidden_size
        # The mask is not looked at: padding stands behind the end, where no token looks.
        rows = Rows(graph, longest=self.max_position_embeddings)
        at = "text_model.embeddings"
        words = graph.table(f"{at}.token_embedding.weight", (self.vocab_size, size), "input_ids")
        table = graph.weights.take(f"{at}.position_embedding.weight", (self.max_position_embeddings, size))
        first = graph.integers(0)
        hidden = graph("Add", words, graph("Slice", graph.constant(table), first, rows.tokens, first))
        hidden = self.encoded(
            graph, rows.flat(hidden, size), "text_model", deep=lambda each: rows.deep(each, size), causal=True
        )
        row = graph("GatherND", rows.deep(hidden, size), self._end(graph), batch_dims=1)
        row = self.norm(graph, row, "text_model.final_layer_norm")
        vectors = self.projected(graph, row, "text_projection", outputs=outputs)
        graph.output("sentence_embedding", vectors, ["texts", outputs])

    def _end(self, graph: Graph) -> str:
        """Where each text ends, int64 (texts, 1): whose state stands for all of it."""
        ids = "input_ids"
        if self.eos_token_id != _HIGHEST:
            ids = graph("Equal", ids, graph.constant(self.eos_token_id, np.int64))
        return graph("ArgMax", graph("Cast", ids, to=TensorProto.INT32), axis=1, keepdims=1)


class _VisionTower(_Tower, frozen=True):
    """Defaults are those that transformers leaves out of a config."""

    hidden_size: PositiveInt = 768
    intermediate_size: PositiveInt = 3072
    num_attention_heads: PositiveInt = 12
    num_channels: Literal[3] = 3
    image_size: PositiveInt = 224
    patch_size: PositiveInt = 32

    @property
    def patches(self) -> int:
        """Of one image."""
        return int((self.image_size // self.patch_size) ** 2)

    def write(self, graph: Graph, *, outputs: int) -> None:
        size, patch, side = self.hidden_size, self.patch_size, self.image_size
        graph.input("pixels", TensorProto.FLOAT, ["images", 3, side, side])
        at = "vision_model.embeddings"
        kernel = graph.weights.take(f"{at}.patch_embedding.weight", (size, 3, patch, patch))
        hidden = graph("Conv", "pixels", graph.constant(kernel), strides=[patch, patch])
        hidden = graph("Reshape", hidden, graph.integers(0, size, self.patches))
        hidden = graph("Transpose", hidden, perm=[0, 2, 1])
        count = graph("Shape", "pixels", end=1)
        first = graph.constant(graph.weights.take(f"{at}.class_embedding", (size,)).reshape(1, 1, size))
        one, channels = graph.integers(1), graph.integers(size)
        first = graph("Expand", first, graph("Concat", count, one, channels, axis=0))
        table = graph.weights.take(f"{at}.position_embedding.weight", (self.patches + 1, size))
        hidden = graph("Add", graph("Concat", first, hidden, axis=1), graph.constant(table))
        rows = self.norm(graph, graph("Reshape", hidden, graph.integers(-1, size)), "vision_model.pre_layrnorm")

        def deep(each: str) -> str:
            return graph("Reshape", each, graph.integers(-1, self.patches + 1, size))

        hidden = deep(self.encoded(graph, rows, "vision_model", deep=deep, causal=False))
        row = graph("Gather", hidden, graph.constant(0, np.int64), axis=1)
        row = self.norm(graph, row, "vision_model.post_layernorm")
        vectors = self.projected(graph, row, "visual_projection", outputs=outputs)
        graph.output("sentence_embedding", vectors, ["images", outputs])


class _Clip(Architecture, frozen=True):
    """What `config.json` says of both towers. Each gives `sentence_embedding`, float32 (inputs, dimensions), not
    normalised.
    """

    model_type: Literal["clip"]
    projection_dim: PositiveInt = 512
    text_config: _TextTower = _TextTower()
    vision_config: _VisionTower = _VisionTower()


class ClipText(_Clip, frozen=True):
    """The tower for texts."""

    @property
    def max_tokens(self) -> int:
        """The most tokens that have a position."""
        return self.text_config.max_position_embeddings

    def write(self, graph: Graph, *, task: Task) -> None:
        """Write the tower."""
        if task != "embed":
            raise EngineUnavailable("config.json: a model that scores pairs is needed, not CLIP")
        self.text_config.write(graph, outputs=self.projection_dim)

    def samples(self, names: list[str]) -> dict[str, npt.NDArray[Any]]:
        """Random tokens that end as texts do."""
        tower = self.text_config
        end = tower.vocab_size - 1 if tower.eos_token_id == _HIGHEST else tower.eos_token_id
        ids = np.random.default_rng(0).integers(tower.vocab_size - 1, size=(32, min(24, self.max_tokens)))
        ids[:, -1] = end
        return {name: ids if name == "input_ids" else np.ones_like(ids) for name in names}


class ClipVision(_Clip, frozen=True):
    """The tower for images: it takes `pixels`, float32 (images, 3, size, size)."""

    @property
    def max_tokens(self) -> int:
        """What an image costs: its patches, and what stands for all of it."""
        return self.vision_config.patches + 1

    def write(self, graph: Graph, *, task: Task) -> None:
        """Write the tower."""
        if task != "see":
            raise EngineUnavailable("config.json: a tower for images only sees")
        self.vision_config.write(graph, outputs=self.projection_dim)

    def samples(self, names: list[str]) -> dict[str, npt.NDArray[Any]]:
        """Random patterns, coarse and fine, of about a photo's contrast."""
        random = np.random.default_rng(0)
        side = self.vision_config.image_size
        pixels = np.zeros((8, 3, side, side), np.float32)
        for cells in (2, 8, 32):
            coarse = random.standard_normal((8, 3, cells, cells), np.float32)
            places = np.arange(side) * cells // side
            pixels += coarse[:, :, places][:, :, :, places]
        return dict.fromkeys(names, pixels * np.float32(0.7))
