"""Every architecture gives what transformers gives, or its authors' equations."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.embedding.engine import TokenEngine
from appliance.embedding.engines import open_engine, open_reranker
from appliance.embedding.engines.graphs.build import Order, build, read_config
from appliance.embedding.engines.onnx import OnnxEngine
from appliance.embedding.pooling import normalized
from appliance.embedding.spec import OnnxAskedSpec
from appliance.errors import EngineUnavailable

TEXTS = ["", "sphinx of black quartz"]

MODELS = [
    "bert",
    "bge-m3",
    "gemma3",
    "gte",
    "jina",
    "mpnet",
    "nomic",
    "nomic-moe",
    "qwen3",
    "roberta",
    "t5",
    "t5-gated",
]


def opened(model: Any, cache: Path, **card: Any) -> OnnxEngine:
    engine = open_engine(model.card(**card), model.paths, cache=cache)
    assert isinstance(engine, OnnxEngine)
    return engine


def vectors(model: Any, engine: OnnxEngine, texts: Sequence[str]) -> Any:
    prefix = model.card().prefixes.of("document")
    return normalized(engine.run(engine.prepare([prefix + text for text in texts], truncate=True)))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_gives_what_the_reference_gives_alone_and_beside_longer_texts(
    example: Callable[[str], Any], graphs: Path, name: str
) -> None:
    model = example(name)
    engine = opened(model, graphs)
    expected = np.array(model.reference["vectors"])
    texts = model.reference["texts"]

    alone = np.concatenate([vectors(model, engine, [text]) for text in texts])
    together = vectors(model, engine, texts)

    assert np.allclose(alone, expected, atol=1e-4)
    assert np.allclose(together, expected, atol=1e-4)
    assert (alone * expected).sum(axis=1).min() >= 0.99999


@pytest.mark.parametrize("name", ["bge-m3", "gemma3", "gte", "jina", "nomic-moe", "qwen3", "t5-gated"])
def test_int8_stays_near_the_reference(example: Callable[[str], Any], graphs: Path, name: str) -> None:
    model = example(name)
    engine = opened(model, graphs, precision="int8")

    found = vectors(model, engine, model.reference["texts"])

    assert (found * np.array(model.reference["vectors"])).sum(axis=1).min() >= 0.985


def test_the_weights_of_tokens_are_those_of_the_reference(example: Callable[[str], Any], graphs: Path) -> None:
    model = example("bge-m3")
    engine = opened(model, graphs)
    assert isinstance(engine, TokenEngine)

    found = engine.run_sparse(engine.prepare(model.reference["texts"], truncate=True))

    assert engine.outputs == {"sparse", "tokens"}
    for row, expected in zip(found, model.reference["sparse"], strict=True):
        assert row.ids.tolist() == [token for token, _ in expected]
        assert np.allclose(row.weights, [weight for _, weight in expected], atol=1e-4)


def test_the_vectors_of_tokens_are_those_of_the_reference(example: Callable[[str], Any], graphs: Path) -> None:
    model = example("bge-m3")
    engine = opened(model, graphs)
    assert isinstance(engine, TokenEngine)

    found = engine.run_tokens(engine.prepare(model.reference["texts"], truncate=True))

    for rows, expected in zip(found, model.reference["tokens"], strict=True):
        assert np.allclose(rows, expected, atol=1e-4)


@pytest.mark.parametrize(("precision", "far"), [("fp32", 1e-3), ("int8", 0.4)])
def test_a_decoder_reranks_as_the_reference_does(
    example: Callable[[str], Any], graphs: Path, precision: str, far: float
) -> None:
    model = example("qwen3-reranker")
    card = model.card(task="rerank", precision=precision)
    assert isinstance(card, OnnxAskedSpec)
    engine = open_reranker(card, model.paths, cache=graphs)

    prompts = engine.prepare(model.reference["query"], model.reference["texts"], truncate=True)
    together = engine.run(prompts)
    alone = np.concatenate([engine.run([prompt]) for prompt in prompts])

    assert np.allclose(together, model.reference["scores"], atol=far)
    assert np.allclose(alone, together, atol=1e-4)
    assert [prompt.truncated for prompt in prompts] == [False] * 4 + [True] * 3


@pytest.mark.parametrize(
    ("name", "card", "message"),
    [
        ("qwen3-reranker", {"yes": 64}, "token ids below 64"),
        ("bert", {"yes": 1, "no": 2, "opening": "", "between": "", "closing": "", "max_tokens": 40}, "a decoder"),
    ],
)
def test_a_model_that_cannot_answer_is_refused(
    example: Callable[[str], Any], graphs: Path, name: str, card: dict[str, Any], message: str
) -> None:
    model = example(name)
    fields = dict.fromkeys(("dimensions", "pooling", "dense", "prefixes"))

    with pytest.raises(EngineUnavailable, match=message):
        open_reranker(model.card(task="rerank", **fields | card), model.paths, cache=graphs)


@pytest.mark.parametrize("name", ["qwen3", "mpnet"])
def test_an_embedding_model_is_no_cross_encoder(example: Callable[[str], Any], tmp_path: Path, name: str) -> None:
    with pytest.raises(EngineUnavailable, match=r"config\.json: .*rerank"):
        build(Order(files=example(name).paths, target=tmp_path / "graph.onnx", task="rerank"))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("gemma3", "use_bidirectional_attention", False),
        ("gemma3", "layer_types", ["full_attention"]),
        ("gte", "rope_scaling", {"type": "yarn", "factor": 2}),
        ("jina", "feed_forward_type", "reglu"),
        ("nomic", "rotary_scaling_factor", 2),
        ("nomic-moe", "moe_top_k", 9),
        ("qwen3", "rope_scaling", {"type": "yarn"}),
        ("qwen3", "use_sliding_window", True),
        ("t5", "feed_forward_proj", "gated-tanh"),
    ],
)
def test_what_an_architecture_does_not_build_is_refused_by_name(
    example: Callable[[str], Any], tmp_path: Path, name: str, field: str, value: object
) -> None:
    config = json.loads((example(name).folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))

    with pytest.raises(EngineUnavailable, match=rf"config\.json: .*{field}"):
        read_config(tmp_path / "config.json")


def test_rotation_is_read_from_newer_files_as_from_older(example: Callable[[str], Any], tmp_path: Path) -> None:
    config = json.loads((example("gemma3").folder / "config.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    older = read_config(path)
    kinds = {"full_attention": config.pop("rope_theta"), "sliding_attention": config.pop("rope_local_base_freq")}
    tables = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in kinds.items()}
    path.write_text(json.dumps(config | {"rope_parameters": tables}))

    assert read_config(path) == older


def test_the_same_weights_in_any_file_give_the_same_vectors(
    example: Callable[[str], Any], graphs: Path, tmp_path: Path
) -> None:
    model = example("gemma3")
    whole = {name: tensor for path in model.folder.glob("model-*") for name, tensor in load_file(path).items()}
    folder = tmp_path / "whole"
    shutil.copytree(model.folder, folder, ignore=shutil.ignore_patterns("model*"))
    for name in ("2_Dense", "3_Dense"):
        shutil.copy(model.folder / name / "model.safetensors", folder / name)
    save_file({f"model.{name}": tensor for name, tensor in whole.items()}, folder / "model.safetensors")
    other = type(model)(folder)

    one = vectors(model, opened(model, graphs), TEXTS)
    two = vectors(model, opened(other, graphs), TEXTS)

    assert np.array_equal(one, two)
