import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]  # ships no types
import pytest
from safetensors.numpy import load_file, save_file

from appliance.embedding.engines.graphs.build import Order, build, read_config
from appliance.errors import EngineUnavailable

Array = npt.NDArray[Any]

IDS = np.array([[2, 9, 30, 44, 17, 3], [2, 55, 8, 3, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": lambda x: 0.5 * x * np.array([1 + math.erf(value / math.sqrt(2)) for value in x.flat]).reshape(x.shape),
    "gelu_new": lambda x: x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


def reference(
    config: Any, weights: Mapping[str, Array], ids: Array, *, first_position: int = 0, types: Array | None = None
) -> Array:
    """A plain BERT over one text without padding, in float64; (tokens, hidden)."""
    w = {name: tensor.astype(np.float64) for name, tensor in weights.items()}
    heads = config["num_attention_heads"]

    def dense(x: Array, name: str) -> Array:
        product: Array = x @ w[f"{name}.weight"].T
        product += w[f"{name}.bias"]
        return product

    def norm(x: Array, name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + config["layer_norm_eps"])
        result: Array = scaled * w[f"{name}.LayerNorm.weight"] + w[f"{name}.LayerNorm.bias"]
        return result

    def split(x: Array) -> Array:
        return x.reshape(len(x), heads, -1).transpose(1, 0, 2)

    positions = np.arange(len(ids)) + first_position
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][positions]
    types = np.zeros_like(ids) if types is None else types
    x = norm(x + w["embeddings.token_type_embeddings.weight"][types], "embeddings")
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        query, key, value = (split(dense(x, f"{at}.attention.self.{part}")) for part in ("query", "key", "value"))
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        context = (shares / shares.sum(axis=-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(x.shape)
        x = norm(x + dense(context, f"{at}.attention.output.dense"), f"{at}.attention.output")
        inner = ACTIVATIONS[config["hidden_act"]](dense(x, f"{at}.intermediate.dense"))
        x = norm(x + dense(inner, f"{at}.output.dense"), f"{at}.output")
    return x


def reference_logits(config: Any, weights: Mapping[str, Array], ids: Array, types: Array) -> Array:
    """BertForSequenceClassification, or RobertaForSequenceClassification, over one pair, in float64; (labels,)."""
    prefix = "bert." if config["model_type"] == "bert" else "roberta."
    first, second = ("pooler.dense", "classifier") if prefix == "bert." else ("classifier.dense", "classifier.out_proj")
    w = {name.removeprefix(prefix): tensor.astype(np.float64) for name, tensor in weights.items()}
    position = 0 if prefix == "bert." else config["pad_token_id"] + 1
    state = reference(config, w, ids, first_position=position, types=types)[0]
    pooled = np.tanh(w[f"{first}.weight"] @ state + w[f"{first}.bias"])
    result: Array = w[f"{second}.weight"] @ pooled + w[f"{second}.bias"]
    return result


def cosines(ours: Array, theirs: Array) -> Array:
    """Of each row of one with the same row of the other."""
    dots: Array = (ours * theirs).sum(axis=-1)
    lengths: Array = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    result: Array = dots / lengths
    return result


def order(tiny: Any, name: str = "graph", **changes: Any) -> Order:
    files = {name: tiny.paths[name] for name in ("config.json", "model.safetensors")}
    return Order(files=files, target=tiny.folder.parent / f"{name}.onnx", **changes)


def built(tiny: Any, **changes: Any) -> onnxruntime.InferenceSession:
    wanted = order(tiny, **changes)
    wanted.target.unlink(missing_ok=True)
    build(wanted)
    return onnxruntime.InferenceSession(wanted.target, providers=["CPUExecutionProvider"])


def hidden_states(tiny: Any, *, precision: Any = "fp32") -> Array:
    """What the built graph gives for IDS and MASK."""
    session = built(tiny, precision=precision)
    (states,) = session.run(["last_hidden_state"], {"input_ids": IDS, "attention_mask": MASK})
    result: Array = states
    return result


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("int8", 0.99)], ids=["fp32", "int8"])
@pytest.mark.parametrize(
    ("changes", "first_position"),
    [
        ({}, 0),
        ({"hidden_act": "gelu_new"}, 0),
        ({"hidden_act": "relu", "num_hidden_layers": 3, "num_attention_heads": 8}, 0),
        ({"model_type": "xlm-roberta", "pad_token_id": 1, "type_vocab_size": 1}, 2),
    ],
    ids=["bert", "gelu_new", "relu", "xlm-roberta"],
)
def test_the_graph_gives_what_the_reference_gives(
    tiny: Any, changes: dict[str, Any], first_position: int, precision: str, least: float
) -> None:
    from_scratch = {"layer_norm_eps": 1e-5, "hidden_act": "gelu", "num_attention_heads": 4, "num_hidden_layers": 2}
    tiny.change(**from_scratch | changes)
    weights = load_file(tiny.paths["model.safetensors"])

    states = hidden_states(tiny, precision=precision)

    for row, length in enumerate(MASK.sum(axis=1)):
        expected = reference(from_scratch | changes, weights, IDS[row, :length], first_position=first_position)
        assert cosines(states[row, :length], expected).min() >= least
        if precision == "fp32":
            assert np.allclose(states[row, :length], expected, atol=2e-5)


TYPES = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0]])


def logits(tiny: Any, *, precision: Any = "fp32") -> Array:
    """What the built graph of a reranker gives for IDS, MASK and, where it takes them, TYPES."""
    session = built(tiny, precision=precision, task="rerank")
    values = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": TYPES}
    (result,) = session.run(["logits"], {item.name: values[item.name] for item in session.get_inputs()})
    found: Array = result
    return found


@pytest.mark.parametrize(("precision", "far"), [("fp32", 2e-5), ("int8", 0.3)])
@pytest.mark.parametrize(
    "changes",
    [
        {"labels": 1},
        {"labels": 2, "hidden_act": "relu"},
        {"labels": 1, "model_type": "xlm-roberta", "pad_token_id": 1, "type_vocab_size": 1},
    ],
    ids=["bert", "two labels", "xlm-roberta"],
)
def test_the_head_gives_what_the_reference_gives(
    tiny: Any, changes: dict[str, Any], precision: str, far: float
) -> None:
    tiny.make_reranker(**changes)
    weights = load_file(tiny.paths["model.safetensors"])
    config = json.loads(tiny.paths["config.json"].read_text())

    found = logits(tiny, precision=precision)

    assert found.shape == (2, changes["labels"])
    for row, length in enumerate(MASK.sum(axis=1)):
        types = TYPES[row, :length] if config["type_vocab_size"] > 1 else np.zeros(length, np.int64)
        expected = reference_logits(config, weights, IDS[row, :length], types)
        assert np.allclose(found[row], expected, atol=far)


def test_token_types_matter_to_a_reranker(tiny: Any) -> None:
    tiny.make_reranker()
    weights = load_file(tiny.paths["model.safetensors"])
    config = json.loads(tiny.paths["config.json"].read_text())

    (found, _) = logits(tiny)

    assert not np.allclose(found, reference_logits(config, weights, IDS[0], np.zeros(6, np.int64)), atol=1e-2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"id2label": {}}, r"classifier\.weight is F32 \(1, 32\), not F32, F16 or BF16 \(0, 32\)"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, r"classifier\.weight is F32 \(1, 32\)"),
        ({"model_type": "roberta"}, "classifier.dense.weight"),
    ],
    ids=["no labels", "three labels", "another head"],
)
def test_a_head_that_does_not_fit_is_refused_by_name(tiny: Any, damage: dict[str, Any], message: str) -> None:
    tiny.make_reranker()
    path = tiny.paths["config.json"]
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))

    with pytest.raises(EngineUnavailable, match=message):
        logits(tiny)


def test_an_embedding_model_is_no_reranker(tiny: Any) -> None:
    with pytest.raises(EngineUnavailable, match=r"pooler\.dense\.weight"):
        logits(tiny)


def test_a_prefix_on_all_names_and_half_precision_are_understood(tiny: Any) -> None:
    plain = hidden_states(tiny)
    weights = load_file(tiny.paths["model.safetensors"])
    save_file(
        {f"bert.{name}": value.astype(np.float16) for name, value in weights.items()}, tiny.paths["model.safetensors"]
    )

    states = hidden_states(tiny)

    assert cosines(states[0], plain[0]).min() >= 0.9999


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "distilbert"),
        ("position_embedding_type", "relative_key"),
        ("hidden_act", "silu"),
        ("is_decoder", True),
        ("hidden_size", -1),
        ("num_hidden_layers", "many"),
    ],
)
def test_an_architecture_that_is_not_supported_is_refused_by_name(tiny: Any, field: str, value: object) -> None:
    path = tiny.paths["config.json"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))

    with pytest.raises(EngineUnavailable, match=field):
        read_config(path)


def test_heads_that_do_not_share_out_the_width_are_refused(tiny: Any) -> None:
    tiny.change(num_attention_heads=5)

    with pytest.raises(EngineUnavailable, match="num_attention_heads does not divide hidden_size"):
        read_config(tiny.paths["config.json"])


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_a_config_that_is_no_json_object_is_refused(tiny: Any, content: bytes) -> None:
    tiny.paths["config.json"].write_bytes(content)

    with pytest.raises(EngineUnavailable, match=r"config\.json"):
        read_config(tiny.paths["config.json"])


def damaged(tiny: Any, change: Callable[[dict[str, Array]], object]) -> None:
    weights = load_file(tiny.paths["model.safetensors"])
    change(weights)
    save_file(weights, tiny.paths["model.safetensors"])


NAME = "encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NAME), NAME),
        (
            lambda weights: weights.update({NAME: weights[NAME][:, :5].copy()}),
            r"output\.dense\.weight is F32 \(32, 5\)",
        ),
        (lambda weights: weights.update({NAME: weights[NAME].astype(np.int8)}), r"output\.dense\.weight is I8"),
        (lambda weights: weights[NAME].fill(np.nan), r"output\.dense\.weight holds NaN or infinity"),
        (lambda weights: weights.pop("embeddings.word_embeddings.weight"), "word_embeddings"),
    ],
    ids=["missing", "shape", "type", "nan", "no table"],
)
def test_weights_that_do_not_fit_are_refused_by_name(tiny: Any, change: Any, message: str) -> None:
    damaged(tiny, change)

    with pytest.raises(EngineUnavailable, match=message):
        built(tiny)


@pytest.mark.parametrize("keep", [0, 4, 500, -10])
def test_a_cut_off_file_is_refused(tiny: Any, keep: int) -> None:
    path = tiny.paths["model.safetensors"]
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(EngineUnavailable, match=r"model\.safetensors"):
        built(tiny)


def test_what_an_interrupted_build_left_is_written_over(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "graph.part").write_bytes(b"half a graph" * 100_000)

    (tmp_path / "graph.data").write_bytes(b"half its numbers" * 100_000)
    (tmp_path / "peaks-left").mkdir()

    built(tiny)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.data", "graph.onnx", "tiny"]


def test_builders_at_once_leave_one_whole_graph(tiny: Any, tmp_path: Path) -> None:
    wanted = order(tiny, precision="int8").model_dump_json()
    command = [sys.executable, "-m", "appliance.embedding.engines.graphs.build", wanted]

    builders = [subprocess.Popen(command) for _ in range(3)]

    assert [builder.wait(60) for builder in builders] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["graph.data", "graph.onnx"]
    onnxruntime.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
