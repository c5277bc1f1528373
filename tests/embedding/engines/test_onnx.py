import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from appliance.embedding.engine import EmbeddingEngine, Vocabulary
from appliance.embedding.engines.onnx import open_onnx
from appliance.embedding.spec import FileSpec, HubSource, OnnxSpec
from appliance.errors import EngineFailed, EngineUnavailable

TEXTS = ["a", "sphinx of black quartz", "judge", "my vow of love and hate", "", "zz top"]


def opened(model: Any, cache: Path, **card: Any) -> EmbeddingEngine:
    return open_onnx(model.spec(**card), model.paths, cache=cache)


def embedded(engine: EmbeddingEngine, texts: Sequence[str]) -> Any:
    return engine.run(engine.prepare(texts, truncate=True))


def test_a_text_gets_the_same_vector_alone_and_beside_longer_ones(tiny: Any, tmp_path: Path) -> None:
    engine = opened(tiny, tmp_path)

    together = embedded(engine, TEXTS)
    alone = np.concatenate([embedded(engine, [text]) for text in TEXTS])

    assert together.dtype == np.float32
    assert together.shape == (len(TEXTS), 32)
    assert np.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_pooling_is_as_the_card_says(tiny: Any, tmp_path: Path, precision: str) -> None:
    vectors = {
        how: embedded(opened(tiny, tmp_path, pooling=how, precision=precision), ["a", "ab"])
        for how in ("mean", "cls", "last")
    }

    assert not np.allclose(vectors["mean"], vectors["cls"])
    assert not np.allclose(vectors["last"], vectors["cls"])
    assert len(list((tmp_path / "graphs").glob("*.onnx"))) == 1  # pooling is not part of the graph


def test_int8_is_close_to_fp32_and_smaller(tiny: Any, tmp_path: Path) -> None:
    fp32 = embedded(opened(tiny, tmp_path / "a"), TEXTS)
    int8 = embedded(opened(tiny, tmp_path / "b", precision="int8"), TEXTS)

    cosines = (fp32 * int8).sum(axis=1) / np.linalg.norm(fp32, axis=1) / np.linalg.norm(int8, axis=1)
    assert cosines.min() >= 0.98
    assert not np.array_equal(fp32, int8)


def test_threads_inside_run_at_once_do_not_mix_their_texts(tiny: Any, tmp_path: Path) -> None:
    engine = opened(tiny, tmp_path)
    alone = [embedded(engine, [text]) for text in TEXTS]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: embedded(engine, [text]), TEXTS * 20))

    assert all(np.array_equal(vector, alone[index % len(TEXTS)]) for index, vector in enumerate(together))


def test_lanes_are_the_threads_asked_for_or_the_cores_there_are(tiny: Any, tmp_path: Path) -> None:
    assert open_onnx(tiny.spec(), tiny.paths, cache=tmp_path, threads=3).lanes == 3
    assert open_onnx(tiny.spec(), tiny.paths, cache=tmp_path).lanes >= 1


def test_a_graph_is_built_once_and_again_for_other_weights(tiny: Any, tmp_path: Path) -> None:
    def graphs() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "graphs").glob("*.onnx")}

    opened(tiny, tmp_path)
    first = graphs()
    opened(tiny, tmp_path, name="another-card")
    again = graphs()
    tiny.change(num_hidden_layers=1)
    opened(tiny, tmp_path)
    other = graphs()

    assert len(first) == 1
    assert again == first
    assert len(other) == 2


@pytest.mark.parametrize("kind", ["onnx", "data"])
def test_a_graph_that_was_damaged_is_built_again(tiny: Any, tmp_path: Path, kind: str) -> None:
    before = embedded(opened(tiny, tmp_path), TEXTS)
    (graph,) = (tmp_path / "graphs").glob(f"*.{kind}")
    graph.write_bytes(graph.read_bytes()[:1000])

    after = embedded(opened(tiny, tmp_path), TEXTS)

    assert np.array_equal(before, after)


def test_what_the_builder_refuses_is_told(tiny: Any, tmp_path: Path) -> None:
    tiny.change(model_type="bert", hidden_act="gelu")
    tiny.paths["config.json"].write_text('{"model_type": "mamba"}')

    with pytest.raises(
        EngineUnavailable, match=r"tiny cannot be made ready for ONNX Runtime: config\.json: model_type"
    ):
        opened(tiny, tmp_path)

    assert list((tmp_path / "graphs").iterdir()) == []


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_card_that_lists_too_few_files_is_refused(tiny: Any, tmp_path: Path, name: str) -> None:
    tiny.paths[name].unlink()

    with pytest.raises(EngineUnavailable, match="lists"):
        opened(tiny, tmp_path)


def test_a_card_that_promises_what_the_model_does_not_give_is_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="32 dimensions, its card tiny says 33"):
        opened(tiny, tmp_path, dimensions=33)
    with pytest.raises(EngineUnavailable, match="takes 40 tokens, its card tiny says 41"):
        opened(tiny, tmp_path, max_tokens=41)


def test_a_cache_that_cannot_be_written_is_told(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")

    with pytest.raises(EngineUnavailable, match="the graph cannot be written: "):
        opened(tiny, tmp_path / "cache")


def test_a_closed_engine_says_so(tiny: Any, tmp_path: Path) -> None:
    engine = opened(tiny, tmp_path)
    prompts = engine.prepare(["a"], truncate=True)

    engine.close()
    engine.close()

    with pytest.raises(EngineFailed, match="closed"):
        engine.run(prompts)


class ReadyMade:
    """A made-up `.onnx` file: a table of token vectors, looked up."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        folder.mkdir()
        self.paths = {"model.onnx": folder / "model.onnx", "tokenizer.json": tokenizer}
        self.table = numpy_helper.from_array(np.random.default_rng(0).random((64, 4), np.float32), "table")
        self.nodes = [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])]
        self.inputs = {"input_ids": TensorProto.INT64, "attention_mask": TensorProto.INT64}
        self.outputs: dict[str, list[str | int]] = {"last_hidden_state": ["texts", "tokens", 4]}
        self.write()

    def write(self) -> None:
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "ready-made",
            [info(name, kind, ["texts", "tokens"]) for name, kind in self.inputs.items()],
            [info(name, TensorProto.FLOAT, shape) for name, shape in self.outputs.items()],
            [self.table],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        self.paths["model.onnx"].write_bytes(model.SerializeToString())

    def spec(self, **card: Any) -> OnnxSpec:
        files = {name: FileSpec(sha256="0" * 64, size=1) for name in self.paths}
        card = {"name": "ready", "family": "bert", "dimensions": 4, "max_tokens": 24} | card
        source = HubSource(kind="hub", repo="nobody/nothing", revision="0" * 40)
        return OnnxSpec(engine="onnx", files=files, sources=(source,), **card)


@pytest.fixture
def ready(tiny: Any, tmp_path: Path) -> ReadyMade:
    return ReadyMade(tmp_path / "ready", tiny.paths["tokenizer.json"])


def test_token_vectors_of_a_ready_made_file_are_pooled(ready: ReadyMade, tmp_path: Path) -> None:
    table = numpy_helper.to_array(ready.table)
    engine = opened(ready, tmp_path)

    vectors = embedded(engine, ["a", "abc"])

    (first, _) = engine.prepare(["a", "abc"], truncate=True)
    assert np.allclose(vectors[0], table[np.asarray(first.content)].mean(axis=0))


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
def test_token_types_and_both_widths_of_ids_are_served(
    ready: ReadyMade, tmp_path: Path, kind: TensorProto.DataType
) -> None:
    before = embedded(opened(ready, tmp_path), ["abc"])
    ready.inputs = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), kind)
    ready.write()

    after = embedded(opened(ready, tmp_path), ["abc"])

    assert np.array_equal(before, after)


def test_a_sentence_embedding_is_taken_as_it_is(ready: ReadyMade, tmp_path: Path) -> None:
    ready.nodes.append(
        helper.make_node("ReduceMax", ["last_hidden_state"], ["sentence_embedding"], axes=[1], keepdims=0)
    )
    ready.outputs["sentence_embedding"] = ["texts", 4]
    ready.write()
    table = numpy_helper.to_array(ready.table)
    engine = opened(ready, tmp_path)

    (prompt,) = engine.prepare(["abc"], truncate=True)

    assert np.array_equal(engine.run([prompt])[0], table[np.asarray(prompt.content)].max(axis=0))


def external(tensor: onnx.TensorProto) -> None:
    """Make the tensor's values lie in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def test_weights_in_another_file_are_refused(ready: ReadyMade, tmp_path: Path) -> None:
    external(ready.table)
    ready.write()

    with pytest.raises(EngineUnavailable, match="other files"):
        opened(ready, tmp_path)


def test_weights_in_another_file_are_found_in_a_nodes_attribute(ready: ReadyMade, tmp_path: Path) -> None:
    hidden = numpy_helper.from_array(np.zeros(4, np.float32), "hidden")
    external(hidden)
    inner = helper.make_graph([helper.make_node("Constant", [], ["value"], value=hidden)], "inner", [], [])
    ready.nodes.append(helper.make_node("If", ["input_ids"], ["unused"], then_branch=inner, else_branch=inner))
    ready.write()

    with pytest.raises(EngineUnavailable, match="other files"):
        opened(ready, tmp_path)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x09" * 50])
def test_a_file_that_is_no_onnx_model_is_refused(ready: ReadyMade, tmp_path: Path, content: bytes) -> None:
    ready.paths["model.onnx"].write_bytes(content)

    with pytest.raises(EngineUnavailable):
        opened(ready, tmp_path)


def test_a_model_that_takes_something_else_is_refused(ready: ReadyMade, tmp_path: Path) -> None:
    ready.inputs["pixel_values"] = TensorProto.FLOAT
    ready.write()

    with pytest.raises(EngineUnavailable, match="pixel_values"):
        opened(ready, tmp_path)


def test_a_model_that_gives_something_else_is_refused(ready: ReadyMade, tmp_path: Path) -> None:
    ready.nodes[0].output[0] = "logits"
    ready.outputs = {"logits": ["texts", "tokens", 4]}
    ready.write()

    with pytest.raises(EngineUnavailable, match="neither sentence_embedding nor last_hidden_state"):
        opened(ready, tmp_path)


def test_nan_is_an_error_and_no_vector(ready: ReadyMade, tmp_path: Path) -> None:
    table = numpy_helper.to_array(ready.table).copy()
    table[10] = np.nan  # the letter g
    ready.table.CopyFrom(numpy_helper.from_array(table, "table"))
    ready.write()
    engine = opened(ready, tmp_path)

    embedded(engine, ["a"])
    with pytest.raises(EngineFailed, match="NaN"):
        embedded(engine, ["a", "g"])


def test_a_failure_inside_the_runtime_is_ours(ready: ReadyMade, tmp_path: Path) -> None:
    ready.table.CopyFrom(numpy_helper.from_array(np.ones((8, 4), np.float32), "table"))  # fewer rows than tokens
    ready.write()
    engine = opened(ready, tmp_path)

    with pytest.raises(EngineFailed, match="failed to run"):
        embedded(engine, ["z"])


REFERENCE = {
    "The quick brown fox jumps over the lazy dog.": [
        0.043934, 0.058934, 0.048178, 0.077548, 0.026744, -0.03763, -0.002605, -0.059943,
    ],
    "How do I reset my password?": [
        0.006903, -0.063023, -0.072044, -0.032496, -0.042709, 0.070429, 0.009074, 0.015408,
    ],
    "Die Würde des Menschen ist unantastbar.": [
        -8.5e-05, 0.082134, -0.028701, 0.026449, -0.057239, 0.025913, 0.077672, 0.01594,
    ],
    "word " * 300: [-0.008124, -0.095586, -0.038673, 0.049662, -0.043794, 0.02372, -0.018142, -0.020207],
}  # fmt: skip
"""First dimensions of unit vectors by transformers 5 on torch 2.13, float32, mean pooling, 256 tokens at most."""


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def real(minilm: dict[str, Path], cache: Path, **card: Any) -> Any:
    files = {name: FileSpec(sha256=f"{index:064}", size=1) for index, name in enumerate(minilm)}
    source = HubSource(kind="hub", repo="nobody/nothing", revision="0" * 40)
    spec = OnnxSpec(
        engine="onnx",
        name="real",
        family="bert",
        dimensions=384,
        max_tokens=256,
        files=files,
        sources=(source,),
        **card,
    )
    vectors = embedded(open_onnx(spec, minilm, cache=cache), list(REFERENCE))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.model
def test_the_real_model_gives_what_the_reference_gives(minilm: dict[str, Path], graphs: Path) -> None:
    vectors = real(minilm, graphs)

    assert np.allclose(vectors[:, :8], list(REFERENCE.values()), atol=2e-6)
    assert vectors[1] @ vectors[2] == pytest.approx(0.028339, abs=2e-6)


@pytest.mark.model
def test_the_real_model_in_int8_is_close_to_the_reference(minilm: dict[str, Path], graphs: Path) -> None:
    fp32 = real(minilm, graphs)
    int8 = real(minilm, graphs, precision="int8")

    assert (fp32 * int8).sum(axis=1).min() >= 0.99


def test_onnx_runtime_keeps_no_device_id_and_sends_nothing(tmp_path: Path) -> None:
    ask = "import appliance.embedding.engines.onnx"

    subprocess.run([sys.executable, "-c", ask], env={"HOME": str(tmp_path)}, check=True)

    assert list(tmp_path.iterdir()) == []


def test_a_vector_with_nan_is_never_served(ready: ReadyMade, start: Callable[..., Any], tmp_path: Path) -> None:
    table = numpy_helper.to_array(ready.table).copy()
    table[4 + ascii_lowercase.index("z")] = np.nan
    ready.table.CopyFrom(numpy_helper.from_array(table, "table"))
    ready.write()
    data = tmp_path / "data"
    (data / "cards").mkdir(parents=True)
    (data / "models" / "blobs").mkdir(parents=True)
    lines = ['name = "holes"', 'engine = "onnx"', 'family = "bert"', "dimensions = 4", "max_tokens = 24"]
    lines += ["[[sources]]", 'kind = "hub"', 'repo = "nobody/nothing"', f'revision = "{"0" * 40}"']
    for name, path in ready.paths.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, data / "models" / "blobs" / f"sha256-{digest}")
        lines += [f'[files."{name}"]', f'sha256 = "{digest}"', f"size = {path.stat().st_size}"]
    (data / "cards" / "holes.toml").write_text("\n".join(lines))
    server = start(data=data)

    with httpx.Client(base_url=server.url, timeout=30) as client:
        good = client.post("/v1/embeddings", json={"model": "holes", "input": "abc"})
        openai = client.post("/v1/embeddings", json={"model": "holes", "input": ["abc", "zoo"]})
        ollama = client.post("/api/embed", json={"model": "holes", "input": ["zoo"]})
        again = client.post("/v1/embeddings", json={"model": "holes", "input": "abc"})

    assert (good.status_code, openai.status_code, ollama.status_code, again.status_code) == (200, 500, 500, 200)
    assert set(openai.json()["error"]) == {"message", "type", "param", "code"}
    assert "NaN" in ollama.json()["error"]


def test_the_models_own_tokens_can_be_asked_for(tiny: Any, tmp_path: Path) -> None:
    engine: object = opened(tiny, tmp_path)

    assert isinstance(engine, Vocabulary)
    (tokens,) = engine.tokenize(["ab" * 20], special_tokens=True)
    assert len(tokens) == 42  # more than the model takes: nothing is cut
    assert [(token.text, token.special, token.start) for token in tokens[:3]] == [
        ("[CLS]", True, None),
        ("a", False, 0),
        ("b", False, 1),
    ]
    assert engine.decode([[token.id for token in tokens[1:3]]], skip_special_tokens=True) == ["a ##b"]
