"""Writes an ONNX graph: operators in order, and the layers that models are made of, in float32 or 8-bit integers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from appliance.embedding.engines.graphs.quantize import per_channel, smoothing
from appliance.embedding.engines.graphs.weights import Floats, Weights

Precision: TypeAlias = Literal["fp32", "int8"]

Shape: TypeAlias = Sequence[str | int]
"""Of a tensor; axes that vary have names."""

OPSET = 23
"""First with `Attention`, which measured up to 10 % faster than the same written as MatMul and Softmax."""

_ACTIVATIONS: Mapping[str, tuple[str, dict[str, str]]] = {
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
}

_LARGE = 1024
"""Bytes from which on a constant lies in the data file."""

_ALIGNMENT = 4096
"""Of a constant in the data file, so that the runtime can map it."""

_TABLE_ROWS = 1 << 14
"""Rows of an embedding table that are held in memory at a time."""


class Graph:
    """An ONNX graph being written, and its large constants with it. Tensors are known by name.

    Called, it adds an operator with one output and gives the output's name. Layers work on rows, (rows, channels).

    Args:
        weights: of the model.
        data: where large constants are written at once, so that few of them are ever in memory; closed by `close`.
        peaks: largest magnitude of each channel behind each norm, in the order the norms are written: linear layers
            and embedding tables then become 8-bit integers. `None` leaves everything float32.
    """

    def __init__(self, weights: Weights, data: Path, *, peaks: Sequence[Floats] | None = None) -> None:
        self.weights = weights
        self.norms: list[str] = []
        """What each norm gives, in order."""
        self._norm_of: dict[str, int] = {}
        self._peaks = peaks
        self._path = data
        self._data = data.open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._numbers = count()
        self._constants: list[onnx.TensorProto] = []
        self._known: dict[tuple[bytes, str, tuple[int, ...]], str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._data.close()

    # Operators and constants

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator with one output."""
        return self.several(operator, *inputs, outputs=1, **attributes)[0]

    def several(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add an operator with several outputs."""
        number = next(self._numbers)
        names = [f"{operator}_{number}_{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names

    def loop(self, times: str, first: str, step: Callable[[str, str], str]) -> str:
        """What `step` makes of `first`, again and again.

        Args:
            times: how often, int64 ().
            first: float32.
            step: writes what is done each time, from the round, int64 (), and what the last round gave; it may read
                any tensor outside.
        """
        number = next(self._numbers)
        turn, go, given, on = (f"{part}_{number}" for part in ("round", "go", "given", "on"))
        outside, self._nodes = self._nodes, []
        result = step(turn, given)
        self._nodes.append(helper.make_node("Identity", [go], [on]))
        info = helper.make_tensor_value_info
        body = helper.make_graph(
            self._nodes,
            f"body_{number}",
            [info(turn, TensorProto.INT64, []), info(go, TensorProto.BOOL, []), info(given, TensorProto.FLOAT, None)],
            [info(on, TensorProto.BOOL, []), info(result, TensorProto.FLOAT, None)],
        )
        self._nodes = outside
        return self("Loop", times, "", first, body=body)

    def input(self, name: str, dtype: int = TensorProto.INT64, shape: Shape = ("texts", "tokens")) -> str:
        """Add an input."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, tensor: str, shape: Shape | None) -> None:
        """Give a float32 tensor out under a name."""
        self._nodes.append(helper.make_node("Identity", [tensor], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """A constant; small ones of equal value are one."""
        array = np.ascontiguousarray(value, dtype).reshape(np.shape(value))
        if array.nbytes >= _LARGE:
            return self.pieces([array], array.dtype, array.shape)
        key = (array.tobytes(), array.dtype.str, array.shape)
        if key not in self._known:
            self._known[key] = f"constant_{len(self._constants)}"
            self._constants.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def integers(self, *values: int) -> str:
        """A constant of int64, (values,)."""
        return self.constant(values, np.int64)

    def pieces(self, arrays: Iterator[npt.NDArray[Any]] | list[Any], dtype: npt.DTypeLike, shape: Shape) -> str:
        """A large constant that comes in pieces, along its first axis."""
        self._data.write(b"\0" * (-self._data.tell() % _ALIGNMENT))
        first = self._data.tell()
        for array in arrays:
            self._data.write(np.ascontiguousarray(array, dtype).data)
        tensor = TensorProto(
            name=f"constant_{len(self._constants)}",
            data_type=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
            dims=[int(size) for size in shape],
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", self._path.name), ("offset", first), ("length", self._data.tell() - first)):
            tensor.external_data.add(key=key, value=str(value))
        self._constants.append(tensor)
        return tensor.name

    def model(self, properties: Mapping[str, str]) -> onnx.ModelProto:
        """The graph as a whole; the data file is complete from then on."""
        self._data.flush()
        graph = helper.make_graph(self._nodes, "model", self._inputs, self._outputs, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        helper.set_model_props(model, dict(properties))
        return model

    # Layers

    def activation(self, name: str, rows: str) -> str:
        """An activation as transformers name it."""
        if name in {"silu", "swish"}:
            return self("Mul", rows, self("Sigmoid", rows))
        operator, attributes = _ACTIVATIONS[name]
        return self(operator, rows, **attributes)

    def table(self, name: str, shape: tuple[int, int], ids: str) -> str:
        """Rows of an embedding table by their numbers; 8-bit rows have a scale each."""
        if self._peaks is None:
            pieces = self.weights.rows(name, shape, at_once=_TABLE_ROWS)
            return self("Gather", self.pieces(pieces, np.float32, shape), ids)
        scales = []

        def integers() -> Iterator[npt.NDArray[np.int8]]:
            for rows in self.weights.rows(name, shape, at_once=_TABLE_ROWS):
                scales.append(np.maximum(np.abs(rows).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny))
                yield np.rint(rows / scales[-1]).astype(np.int8)

        words = self("Gather", self.pieces(integers(), np.int8, shape), ids)
        words = self("Cast", words, to=TensorProto.FLOAT)
        return self("Mul", words, self("Gather", self.constant(np.concatenate(scales)), ids))

    def layer_norm(self, rows: str, name: str, size: int, *, epsilon: float, bias: bool = True) -> str:
        """Layer norm (Ba et al. 2016) over the last axis."""
        parts = ("weight", "bias") if bias else ("weight",)
        scales = [self.constant(self.weights.take(f"{name}.{part}", (size,))) for part in parts]
        return self._normed(self("LayerNormalization", rows, *scales, axis=-1, epsilon=epsilon))

    def rms_norm(self, rows: str, name: str, size: int, *, epsilon: float, offset: float = 0.0) -> str:
        """Root mean square norm (Zhang and Sennrich 2019) over the last axis; `offset` is added to its weights."""
        return self._normed(self.rms(rows, self.weights.take(f"{name}.weight", (size,)) + offset, epsilon=epsilon))

    def rms(self, rows: str, scale: Floats, *, epsilon: float) -> str:
        """The same of weights that are at hand; what it gives feeds no linear layer."""
        return self("RMSNormalization", rows, self.constant(scale), axis=-1, epsilon=epsilon)

    def linear(self, rows: str, *names: str, sizes: Sequence[int], inputs: int, bias: bool = True) -> str:
        """`rows @ weight.T + bias`, of several layers side by side.

        Args:
            rows: (rows, inputs).
            names: of the layers, without `.weight` and `.bias`.
            sizes: outputs of each layer.
            inputs: inputs of all of them.
            bias: whether they have one.
        """
        layers = list(zip(names, sizes, strict=True))
        weight = np.empty((inputs, sum(sizes)), np.float32)
        first = 0
        for name, size in layers:
            weight[:, first : first + size] = self.weights.take(f"{name}.weight", (size, inputs)).T
            first += size
        biases = [self.weights.take(f"{name}.bias", (size,)) for name, size in layers] if bias else []
        return self.product(rows, weight, np.concatenate(biases) if biases else None)

    def product(self, rows: str, weight: Floats, bias: Floats | None = None) -> str:
        """`rows @ weight + bias`; of 8 bits where the graph is. `weight` is (inputs, outputs)."""
        if self._peaks is None:
            result = self("MatMul", rows, self.constant(weight))
        else:
            if rows in self._norm_of:
                factors = smoothing(self._peaks[self._norm_of[rows]], weight)
                rows = self("Mul", rows, self.constant(1 / factors))
                weight = weight * factors[:, None]
            result = self._integer_product(rows, weight)
        return result if bias is None else self("Add", result, self.constant(bias))

    def split(self, rows: str, *sizes: int) -> list[str]:
        """Channels that lie side by side, apart."""
        return self.several("Split", rows, self.integers(*sizes), outputs=len(sizes), axis=-1)

    def same_norm(self, some: str, rows: str) -> None:
        """Take `some` for rows of the norm that gave `rows`."""
        self._norm_of[some] = self._norm_of[rows]

    def _normed(self, rows: str) -> str:
        self._norm_of[rows] = len(self.norms)
        self.norms.append(rows)
        return rows

    def _integer_product(self, rows: str, weight: Floats) -> str:
        """`rows @ weight` in 8 bits: each row of `rows` has its own scale, found at run time, and 128 for its zero."""
        peaks = self("ReduceMax", self("Abs", rows), self.integers(-1), keepdims=0)
        scales = self("Add", self("Mul", peaks, self.constant(1 / 127)), self.constant(1e-12))
        zero = self.constant(128, np.uint8)
        zeros = self("Expand", zero, self("Shape", scales))
        integers, weight_scales = per_channel(weight)
        sums = self(
            "MatMulInteger",
            self("QuantizeLinear", rows, scales, zeros, axis=0),
            self.constant(integers, np.int8),
            zero,
        )
        return self("Mul", self("DequantizeLinear", sums, scales, axis=0), self.constant(weight_scales))
