"""Linear layers behind a model's graph, small enough for numpy: behind the pooling, or on each token."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.embedding.engine import Matrix, Vector
from appliance.embedding.engines.graphs.weights import WHOLE, Weights
from appliance.errors import EngineUnavailable

_MOST = 16384
"""Inputs or outputs of one layer."""

_MAX_CONFIG = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """`rows @ weight + bias`, and perhaps tanh.

    Attributes:
        weight: float32 (inputs, outputs).
        bias: float32 (outputs,), zeros where the layer has none.
        tanh: whether it follows.
    """

    weight: Matrix
    bias: Vector
    tanh: bool = False

    def __call__(self, rows: Matrix) -> Matrix:
        """Float32 (n, inputs) to float32 (n, outputs)."""
        result: Matrix = rows @ self.weight + self.bias
        return np.tanh(result) if self.tanh else result


class _Config(BaseModel):
    """A `Dense` module of sentence-transformers."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    in_features: int = Field(ge=1, le=_MOST)
    out_features: int = Field(ge=1, le=_MOST)
    bias: bool = True
    activation_function: Literal[
        "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh", "torch.nn.modules.activation.Identity"
    ]


def read_dense(folder: str, paths: Mapping[str, Path]) -> Linear:
    """Read a layer behind the pooling.

    Args:
        folder: of the layer, as `OnnxSpec.dense` names it.
        paths: of the card's files.

    Raises:
        EngineUnavailable: a file is missing or damaged, or the activation is neither none nor tanh.
    """
    files = {name: paths[f"{folder}/{name}"] for name in WHOLE if f"{folder}/{name}" in paths}
    if not files or f"{folder}/config.json" not in paths:
        raise EngineUnavailable(f"the card lists no {folder}/config.json and {folder}/{WHOLE[0]}")
    try:
        with paths[f"{folder}/config.json"].open("rb") as file:
            config = _Config.model_validate_json(file.read(_MAX_CONFIG))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise EngineUnavailable(f"{folder}/config.json: {where}: {first['msg']}".replace(": :", ":")) from error
    with Weights(files) as weights:
        weight = weights.take("linear.weight", (config.out_features, config.in_features))
        bias = weights.take("linear.bias", (config.out_features,)) if config.bias else np.zeros(1, np.float32)
    return Linear(np.ascontiguousarray(weight.T), bias, tanh=config.activation_function.endswith("Tanh"))


def read_linear(name: str, paths: Mapping[str, Path], *, inputs: int, outputs: int | None = None) -> Linear:
    """Read a layer that stands alone in a file, as `weight` and `bias`.

    Args:
        name: of the file on the card.
        paths: of the card's files.
        inputs: channels it reads.
        outputs: channels it gives; None for what the file says.

    Raises:
        EngineUnavailable: the file is damaged, or the layer is of another size.
    """
    with Weights({Path(name).name: paths[name]}) as weights:
        found = weights.shape("weight")
        wanted = (found[0] if outputs is None and found and found[0] <= _MOST else outputs or 1, inputs)
        weight = weights.take("weight", wanted)
        return Linear(np.ascontiguousarray(weight.T), weights.take("bias", wanted[:1]))
