"""A BERT-family folder (`config.json`, `model.safetensors`) into an ONNX graph of standard operators, without torch.

Run as a program, so that the `onnx` package and the copies of the weights never count in the server's memory:

    python -m appliance.embedding.engines.bert CONFIG WEIGHTS GRAPH PRECISION TASK

What it refuses it says in one sentence on standard output, with exit status 1.
"""

import fcntl
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]  # ships no types
from onnx import TensorProto, helper, numpy_helper
from pydantic import BaseModel, PositiveInt, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from appliance.embedding.engines.quantize import Floats, per_channel, smoothing
from appliance.errors import EngineUnavailable

Precision: TypeAlias = Literal["fp32", "int8"]

Task: TypeAlias = Literal["embed", "rerank"]
"""Whether the graph ends with the last layer's states, or with the classification head on top of the first of them."""

_OPSET = 23
"""First with `Attention`, which measured up to 10 % faster than the same written as MatMul and Softmax."""

_ACTIVATIONS: Mapping[str, tuple[str, dict[str, str]]] = {
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
}

_NORM = "LayerNorm"


class BertConfig(BaseModel, frozen=True):
    """What `config.json` says, as far as it shapes the graph; other architectures do not pass."""

    model_type: Literal["bert", "roberta", "xlm-roberta"]
    vocab_size: PositiveInt
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
    id2label: dict[str, str] = {"0": "LABEL_0", "1": "LABEL_1"}  # what transformers take where it is left out

    @model_validator(mode="after")
    def _heads_share_out(self) -> "BertConfig":
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

    @property
    def labels(self) -> int:
        """Logits of the classification head."""
        return len(self.id2label)

    @property
    def head(self) -> tuple[str, str]:
        """Names of the head's two layers; the first is followed by tanh."""
        return (
            ("pooler.dense", "classifier") if self.model_type == "bert" else ("classifier.dense", "classifier.out_proj")
        )


def read_config(path: Path) -> BertConfig:
    """Read a `config.json`.

    Raises:
        EngineUnavailable: not JSON, or an architecture that this module does not build; the message names the field.
    """
    try:
        return BertConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise EngineUnavailable(f"config.json: {where}: {first['msg']}".replace(": :", ":")) from error


def read_weights(path: Path, config: BertConfig, *, task: Task = "embed") -> dict[str, Floats]:
    """Read what the graph needs of a `model.safetensors`, as float32, by its name without the model's prefix.

    Raises:
        EngineUnavailable: no safetensors file, a tensor is missing, or has another shape or type, NaN or infinity.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            word = "embeddings.word_embeddings.weight"
            prefix = next((name.removesuffix(word) for name in file.keys() if name.endswith(word)), "")  # noqa: SIM118  no dict
            weights = {}
            for name, shape in (*_shapes(config), *(_head_shapes(config) if task == "rerank" else ())):
                stored = name if name.startswith("classifier") else prefix + name
                header = file.get_slice(stored)
                if tuple(header.get_shape()) != shape or header.get_dtype() not in {"F32", "F16"}:
                    found = f"{header.get_dtype()} {tuple(header.get_shape())}"
                    raise EngineUnavailable(f"model.safetensors: {name} is {found}, not F32 or F16 {shape}")
                weights[name] = file.get_tensor(stored).astype(np.float32)
                if not np.isfinite(weights[name]).all():
                    raise EngineUnavailable(f"model.safetensors: {name} holds NaN or infinity")
            return weights
    except SafetensorError as error:
        raise EngineUnavailable(f"model.safetensors cannot be used: {error}") from error


def _dense_shapes(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _head_shapes(config: BertConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    first, second = config.head
    yield from _dense_shapes(first, config.hidden_size, config.hidden_size)
    yield from _dense_shapes(second, config.labels, config.hidden_size)


def _shapes(config: BertConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = config.hidden_size, config.intermediate_size

    def norm(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.{_NORM}.weight", (hidden,)
        yield f"{name}.{_NORM}.bias", (hidden,)

    yield "embeddings.word_embeddings.weight", (config.vocab_size, hidden)
    yield "embeddings.position_embeddings.weight", (config.max_position_embeddings, hidden)
    yield "embeddings.token_type_embeddings.weight", (config.type_vocab_size, hidden)
    yield from norm("embeddings")
    for layer in range(config.num_hidden_layers):
        at = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            yield from _dense_shapes(f"{at}.attention.self.{part}", hidden, hidden)
        yield from _dense_shapes(f"{at}.attention.output.dense", hidden, hidden)
        yield from norm(f"{at}.attention.output")
        yield from _dense_shapes(f"{at}.intermediate.dense", inner, hidden)
        yield from _dense_shapes(f"{at}.output.dense", hidden, inner)
        yield from norm(f"{at}.output")


class _Graph:
    """An ONNX graph being written: operators in order, and the constants they read. Tensors are known by name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        array = np.ascontiguousarray(value, dtype).reshape(np.shape(value))
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator with one output."""
        return self.several(operator, *inputs, outputs=1, **attributes)[0]

    def several(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        names = [f"{operator}_{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names


class _Bert:
    """Writes one encoder (Devlin et al. 2018) over rows of tokens, (texts * tokens, hidden), post-norm.

    Args:
        task: to rerank, tokens are of the types that the input `token_type_ids` gives, where the model has two;
            else all are of the first.
        peaks: largest magnitude of each channel behind each layer norm, by the norm's name: the linear layers and the
            word table then become 8-bit integers. `None` leaves everything float32.
    """

    def __init__(
        self,
        config: BertConfig,
        weights: Mapping[str, Floats],
        *,
        task: Task,
        peaks: Mapping[str, Floats] | None,
    ) -> None:
        self.graph = _Graph()
        self.inputs = [
            "input_ids",
            "attention_mask",
            *(["token_type_ids"] if task == "rerank" and config.type_vocab_size > 1 else []),
        ]
        self.norms: dict[str, str] = {}  # the norm's name -> the tensor it gives
        self._config = config
        self._weights = weights
        self._peaks = peaks

    def write(self) -> str:
        """Write everything; returns the tensor with the last layer's state, (texts, tokens, hidden)."""
        graph, config = self.graph, self._config
        ids = graph("Shape", "input_ids")
        rows = graph("Reshape", self._embedded(), graph.integers(-1, config.hidden_size))
        states = graph("Concat", ids, graph.integers(config.hidden_size), axis=0)
        # (texts, 1, tokens, tokens): every token looks at those that are no padding.
        seen = graph("Cast", graph("Unsqueeze", "attention_mask", graph.integers(1, 2)), to=TensorProto.BOOL)
        tokens = graph("Shape", "input_ids", start=1)
        one = graph.integers(1)
        seen = graph("Expand", seen, graph("Concat", one, one, tokens, one, axis=0))
        norm = "embeddings"
        hidden = self._norm(rows, norm)
        for layer in range(config.num_hidden_layers):
            at = f"encoder.layer.{layer}"
            context = self._attention(hidden, f"{at}.attention.self", norm=norm, states=states, seen=seen)
            norm = f"{at}.attention.output"
            hidden = self._norm(graph("Add", self._linear(context, f"{norm}.dense"), hidden), norm)
            operator, attributes = _ACTIVATIONS[config.hidden_act]
            inner = graph(operator, self._linear(hidden, f"{at}.intermediate.dense", norm=norm), **attributes)
            norm = f"{at}.output"
            hidden = self._norm(graph("Add", self._linear(inner, f"{norm}.dense"), hidden), norm)
        return graph("Reshape", hidden, states)

    def write_head(self, states: str) -> str:
        """Write the classification head, in float32; returns the tensor with the logits, (texts, labels)."""
        graph = self.graph
        row = graph("Gather", states, graph.constant(0, np.int64), axis=1)
        for name, after in zip(self._config.head, ("Tanh", "Identity"), strict=True):
            weight = graph.constant(self._weights[f"{name}.weight"].T)
            row = graph(
                after, graph("Add", graph("MatMul", row, weight), graph.constant(self._weights[f"{name}.bias"]))
            )
        return row

    def _embedded(self) -> str:
        """Word + position + token type, (texts, tokens, hidden)."""
        graph, weights = self.graph, self._weights
        table = weights["embeddings.word_embeddings.weight"]
        if self._peaks is None:
            words = graph("Gather", graph.constant(table), "input_ids")
        else:
            scales = np.maximum(np.abs(table).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
            integers = graph("Gather", graph.constant(np.rint(table / scales), np.int8), "input_ids")
            words = graph("Cast", integers, to=TensorProto.FLOAT)
            words = graph("Mul", words, graph("Gather", graph.constant(scales), "input_ids"))
        types = weights["embeddings.token_type_embeddings.weight"]
        if "token_type_ids" in self.inputs:
            words = graph("Add", words, graph("Gather", graph.constant(types - types[0]), "token_type_ids"))
        table = weights["embeddings.position_embeddings.weight"] + types[0]
        positions = graph.constant(table[self._config.first_position :])
        first = graph.integers(0)
        return graph("Add", words, graph("Slice", positions, first, graph("Shape", "input_ids", start=1), first))

    def _norm(self, rows: str, name: str) -> str:
        scale, bias = (self.graph.constant(self._weights[f"{name}.{_NORM}.{part}"]) for part in ("weight", "bias"))
        epsilon = self._config.layer_norm_eps
        self.norms[name] = self.graph("LayerNormalization", rows, scale, bias, axis=-1, epsilon=epsilon)
        return self.norms[name]

    def _attention(self, rows: str, name: str, *, norm: str, states: str, seen: str) -> str:
        graph, hidden, heads = self.graph, self._config.hidden_size, self._config.num_attention_heads
        joined = self._linear(rows, f"{name}.query", f"{name}.key", f"{name}.value", norm=norm)
        parts = graph.several("Split", joined, graph.integers(hidden, hidden, hidden), outputs=3, axis=-1)
        parts = [graph("Reshape", part, states) for part in parts]
        context = graph("Attention", *parts, seen, q_num_heads=heads, kv_num_heads=heads)
        return graph("Reshape", context, graph.integers(-1, hidden))

    def _linear(self, rows: str, *names: str, norm: str = "") -> str:
        """`rows @ weight.T + bias`, of several layers side by side. `norm` names the layer norm that gave `rows`."""
        weight = np.concatenate([self._weights[f"{name}.weight"].T for name in names], axis=1)
        bias = self.graph.constant(np.concatenate([self._weights[f"{name}.bias"] for name in names]))
        if self._peaks is None:
            return self.graph("Add", self.graph("MatMul", rows, self.graph.constant(weight)), bias)
        if norm:
            factors = smoothing(self._peaks[norm], weight)
            rows = self.graph("Mul", rows, self.graph.constant(1 / factors))
            weight = weight * factors[:, None]
        return self.graph("Add", self._integer_product(rows, weight), bias)

    def _integer_product(self, rows: str, weight: Floats) -> str:
        """`rows @ weight` in 8 bits: each row of `rows` has its own scale, found at run time, and 128 for its zero."""
        graph = self.graph
        peaks = graph("ReduceMax", graph("Abs", rows), graph.integers(-1), keepdims=0)
        scales = graph("Add", graph("Mul", peaks, graph.constant(1 / 127)), graph.constant(1e-12))
        zero = graph.constant(128, np.uint8)
        zeros = graph("Expand", zero, graph("Shape", scales))
        integers, weight_scales = per_channel(weight)
        sums = graph(
            "MatMulInteger",
            graph("QuantizeLinear", rows, scales, zeros, axis=0),
            graph.constant(integers, np.int8),
            zero,
        )
        return graph("Mul", graph("DequantizeLinear", sums, scales, axis=0), graph.constant(weight_scales))


def bert_graph(
    config: BertConfig, weights: Mapping[str, Floats], *, precision: Precision, task: Task = "embed"
) -> onnx.ModelProto:
    """The model as a graph.

    Inputs `input_ids` and `attention_mask`, int64 (texts, tokens), padding on the right. To embed, every token is of
    the first type and the output is `last_hidden_state`, float32 (texts, tokens, hidden). To rerank, `token_type_ids`
    comes in as well where the model has two types, and the output is `logits`, float32 (texts, labels), as
    transformers' BertForSequenceClassification and its RoBERTa kin give them. The metadata hold `max_tokens`.

    Raises:
        EngineUnavailable: the model is larger than an ONNX file can be.
    """
    peaks = _peaks(config, weights, task=task) if precision == "int8" else None
    bert = _Bert(config, weights, task=task, peaks=peaks)
    states = bert.write()
    if task == "embed":
        output, given = "last_hidden_state", states
        shape: list[str | int] = ["texts", "tokens", config.hidden_size]
    else:
        output, given = "logits", bert.write_head(states)
        shape = ["texts", config.labels]
    bert.graph.nodes.append(helper.make_node("Identity", [given], [output]))
    model = _model(bert, {output: shape})
    helper.set_model_props(model, {"max_tokens": str(config.max_tokens)})
    return model


def _model(bert: _Bert, outputs: Mapping[str, Sequence[str | int] | None]) -> onnx.ModelProto:
    if sum(len(constant.raw_data) for constant in bert.graph.constants) > 2**31 - 2**20:
        raise EngineUnavailable("the model is larger than the 2 GiB an ONNX file can hold")
    graph = helper.make_graph(
        bert.graph.nodes,
        "bert",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"]) for name in bert.inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        bert.graph.constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)


def _peaks(config: BertConfig, weights: Mapping[str, Floats], *, task: Task) -> dict[str, Floats]:
    """The largest magnitude of each channel behind each layer norm, (hidden,), when the model reads random tokens.

    A model's loud channels are its own and hardly depend on the text: random tokens serve as well as real text did
    (mean cosine of the int8 model 0.9988 and 0.9987).
    """
    bert = _Bert(config, weights, task=task, peaks=None)
    bert.write()
    names = list(bert.norms)
    model = _model(bert, dict.fromkeys(bert.norms.values()))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(32, min(64, config.max_tokens)))
    halves = np.arange(ids.shape[1]) * config.type_vocab_size // ids.shape[1]
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": halves + np.zeros_like(ids)}
    states = session.run(None, {name: values[name] for name in bert.inputs})
    return {name: np.abs(state).max(axis=0) for name, state in zip(names, states, strict=True)}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder among all processes; the lock goes with its holder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def build(config: Path, weights: Path, target: Path, *, precision: Precision, task: Task = "embed") -> None:
    """Write the graph to `target`, whole or not at all. Of several builders at once, one builds and the others find it.

    Raises:
        EngineUnavailable: the model cannot be built; the message says why.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent):
        if target.exists():
            return
        shape = read_config(config)
        model = bert_graph(shape, read_weights(weights, shape, task=task), precision=precision, task=task)
        part = target.with_suffix(".part")
        with part.open("wb") as file:
            file.write(model.SerializeToString())
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)


def main() -> None:
    """Build what the command line asks for."""
    config, weights, target, precision, task = sys.argv[1:]
    try:
        build(
            Path(config),
            Path(weights),
            Path(target),
            precision="int8" if precision == "int8" else "fp32",
            task="rerank" if task == "rerank" else "embed",
        )
    except EngineUnavailable as error:
        sys.stdout.write(error.message)
        sys.exit(1)
    except OSError as error:
        sys.stdout.write(f"the graph cannot be written: {error.strerror}")
        sys.exit(1)


if __name__ == "__main__":
    main()
