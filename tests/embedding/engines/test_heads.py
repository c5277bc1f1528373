import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from appliance.embedding.engines.heads import read_dense, read_linear
from appliance.embedding.engines.onnx import OnnxEngine, open_onnx
from appliance.errors import EngineUnavailable

WEIGHT = np.arange(8, dtype=np.float32).reshape(2, 4) / 8
ROWS = np.array([[1, 2, 3, 4], [0, 0, 0, 1]], np.float32)

CONFIG = {
    "in_features": 4,
    "out_features": 2,
    "bias": False,
    "activation_function": "torch.nn.modules.linear.Identity",
}


def dense(folder: Path, tensors: dict[str, Any], **config: Any) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors, folder / "model.safetensors")
    return {f"2_Dense/{name}": folder / name for name in ("config.json", "model.safetensors")}


def test_a_layer_multiplies_and_adds_its_bias(tmp_path: Path) -> None:
    bias = np.array([1, -1], np.float32)
    plain = read_dense("2_Dense", dense(tmp_path / "a", {"linear.weight": WEIGHT}))
    tanh = read_dense(
        "2_Dense",
        dense(
            tmp_path / "b",
            {"linear.weight": WEIGHT, "linear.bias": bias},
            bias=True,
            activation_function="torch.nn.modules.activation.Tanh",
        ),
    )

    assert np.allclose(plain(ROWS), ROWS @ WEIGHT.T)
    assert np.allclose(tanh(ROWS), np.tanh(ROWS @ WEIGHT.T + bias))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation_function": "torch.nn.modules.activation.ReLU"}, "activation_function"),
        ({"in_features": 1 << 30}, "in_features"),
        ({"out_features": 0}, "out_features"),
        ({"bias": True}, r"linear\.bias is missing"),
        ({"in_features": 5}, r"linear\.weight is F32 \(2, 4\), not F32, F16 or BF16 \(2, 5\)"),
    ],
)
def test_a_layer_that_does_not_fit_its_config_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineUnavailable, match=message):
        read_dense("2_Dense", dense(tmp_path / "a", {"linear.weight": WEIGHT}, **config))


def test_a_layer_of_which_the_card_lists_no_file_is_refused(tmp_path: Path) -> None:
    paths = dense(tmp_path / "a", {"linear.weight": WEIGHT})
    del paths["2_Dense/config.json"]

    with pytest.raises(EngineUnavailable, match=r"lists no 2_Dense/config\.json"):
        read_dense("2_Dense", paths)


def test_a_layer_alone_in_a_file_has_the_size_it_must_have(tmp_path: Path) -> None:
    save_file({"weight": WEIGHT, "bias": np.zeros(2, np.float32)}, tmp_path / "linear.safetensors")
    paths = {"linear.safetensors": tmp_path / "linear.safetensors"}

    assert read_linear("linear.safetensors", paths, inputs=4)(ROWS).shape == (2, 2)
    with pytest.raises(EngineUnavailable, match=r"weight is F32 \(2, 4\), not F32, F16 or BF16 \(1, 4\)"):
        read_linear("linear.safetensors", paths, inputs=4, outputs=1)
    with pytest.raises(EngineUnavailable, match=r"not F32, F16 or BF16 \(2, 5\)"):
        read_linear("linear.safetensors", paths, inputs=5)


def test_layers_that_do_not_fit_one_another_are_refused(tiny: Any, tmp_path: Path) -> None:
    paths = tiny.paths | dense(tmp_path / "a", {"linear.weight": WEIGHT})
    spec = tiny.spec(dense=("2_Dense",), dimensions=2)

    with pytest.raises(EngineUnavailable, match="2_Dense reads 4 numbers, and 32 are given"):
        open_onnx(spec, paths, cache=tmp_path)


def test_a_model_without_layers_for_tokens_gives_their_last_states(tiny: Any, tmp_path: Path) -> None:
    engine = open_onnx(tiny.spec(pooling="last"), tiny.paths, cache=tmp_path)
    assert isinstance(engine, OnnxEngine)

    prompts = engine.prepare(["abc", "a"], truncate=True)
    rows = engine.run_tokens(prompts)

    assert engine.outputs == {"tokens"}
    assert [len(row) for row in rows] == [prompt.tokens for prompt in prompts]
    assert np.allclose([row[-1] for row in rows], engine.run(prompts), atol=1e-6)
