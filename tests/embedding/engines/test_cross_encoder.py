"""Cross-encoders on ONNX Runtime."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from appliance.embedding.engine import RerankEngine
from appliance.embedding.engines import open_reranker
from appliance.embedding.engines.cross_encoder import open_cross_encoder
from appliance.embedding.spec import OnnxRerankerSpec
from appliance.errors import EngineFailed, EngineUnavailable, InputTooLong

PASSAGES = ["a", "black quartz", "", "judge my vow of love and hate", "zz top"]


def opened(tiny: Any, cache: Path, **card: Any) -> RerankEngine:
    return open_cross_encoder(tiny.reranker_spec(**card), tiny.paths, cache=cache)


def scored(engine: RerankEngine, query: str, passages: Sequence[str]) -> Any:
    return engine.run(engine.prepare(query, passages, truncate=True))


def test_a_pair_gets_the_same_logit_alone_and_beside_longer_ones(tiny: Any, tmp_path: Path) -> None:
    tiny.make_reranker()
    engine = opened(tiny, tmp_path)

    together = scored(engine, "sphinx", PASSAGES)
    alone = np.concatenate([scored(engine, "sphinx", [each]) for each in PASSAGES])

    assert (together.dtype, together.shape) == (np.float32, (len(PASSAGES),))
    assert np.allclose(together, alone, atol=1e-5)
    assert len(set(together.tolist())) == len(PASSAGES)


def test_which_text_is_the_query_matters(tiny: Any, tmp_path: Path) -> None:
    tiny.make_reranker()
    engine = opened(tiny, tmp_path)

    assert not np.allclose(scored(engine, "a", ["b"]), scored(engine, "b", ["a"]), atol=1e-3)


def test_of_two_classes_the_difference_counts(tiny: Any, tmp_path: Path) -> None:
    tiny.make_reranker(labels=2)
    engine = opened(tiny, tmp_path)

    found = scored(engine, "a", PASSAGES)

    assert found.shape == (len(PASSAGES),)
    assert len(set(found.tolist())) == len(PASSAGES)


def test_int8_is_close_to_fp32(tiny: Any, tmp_path: Path) -> None:
    tiny.make_reranker()

    fp32 = scored(opened(tiny, tmp_path), "sphinx", PASSAGES)
    int8 = scored(opened(tiny, tmp_path, precision="int8"), "sphinx", PASSAGES)

    assert np.allclose(fp32, int8, atol=0.2)
    assert not np.array_equal(fp32, int8)


def test_threads_inside_run_at_once_do_not_mix_their_pairs(tiny: Any, tmp_path: Path) -> None:
    tiny.make_reranker()
    engine = opened(tiny, tmp_path)
    alone = [scored(engine, "sphinx", [each]) for each in PASSAGES]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: scored(engine, "sphinx", [each]), PASSAGES * 20))

    assert all(np.array_equal(logit, alone[index % len(PASSAGES)]) for index, logit in enumerate(together))


def test_what_is_too_long_is_cut_or_refused(tiny: Any, tmp_path: Path) -> None:
    tiny.make_reranker()
    engine = opened(tiny, tmp_path)

    (prompt,) = engine.prepare("abc", ["letters " * 9], truncate=True)

    assert (prompt.tokens, prompt.truncated) == (24, True)
    with pytest.raises(InputTooLong):
        engine.prepare("abc", ["letters " * 9], truncate=False)


def test_a_graph_is_built_anew_for_other_files_of_the_owner_and_not_shared_with_an_embedder(
    tiny: Any, tmp_path: Path
) -> None:
    def graphs() -> int:
        return len(list((tmp_path / "graphs").glob("*.onnx")))

    tiny.make_reranker()
    opened(tiny, tmp_path)
    opened(tiny, tmp_path, name="another-card")
    first = graphs()
    tiny.make_reranker(num_hidden_layers=1)
    opened(tiny, tmp_path)

    assert (first, graphs()) == (1, 2)


def test_a_card_that_promises_more_tokens_than_the_model_takes_is_refused(tiny: Any, tmp_path: Path) -> None:
    tiny.make_reranker()

    with pytest.raises(EngineUnavailable, match="takes 40 tokens, its card tiny says 41"):
        opened(tiny, tmp_path, max_tokens=41)


def test_an_embedding_model_is_refused_by_what_it_lacks(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"tiny cannot be made ready .* pooler\.dense\.weight"):
        opened(tiny, tmp_path)


def test_a_model_with_three_classes_is_refused(tiny: Any, tmp_path: Path) -> None:
    tiny.make_reranker(labels=3)

    with pytest.raises(EngineUnavailable, match=r"gives logits \(3,\) for a pair"):
        opened(tiny, tmp_path)


def test_a_card_without_a_tokenizer_is_refused(tiny: Any, tmp_path: Path) -> None:
    tiny.make_reranker()
    tiny.paths["tokenizer.json"].unlink()

    with pytest.raises(EngineUnavailable, match=r"lists no tokenizer\.json"):
        opened(tiny, tmp_path)


def test_a_closed_engine_says_so(tiny: Any, tmp_path: Path) -> None:
    tiny.make_reranker()
    engine = opened(tiny, tmp_path)
    prompts = engine.prepare("a", ["b"], truncate=True)

    engine.close()
    engine.close()

    with pytest.raises(EngineFailed, match="closed"):
        engine.run(prompts)


def ready_made(tiny: Any, table: Any, *, output: str = "logits", types: bool = True) -> None:
    """Put a `.onnx` file in the place of the weights: logits are looked up by types or ids, the largest wins."""
    for name in ("config.json", "model.safetensors"):
        tiny.paths[name].unlink()
    nodes = [
        helper.make_node("Gather", ["table", "token_type_ids" if types else "input_ids"], ["rows"]),
        helper.make_node("ReduceMax", ["rows"], [output], axes=[1], keepdims=0),
    ]
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    graph = helper.make_graph(
        nodes,
        "ready-made",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["pairs", "tokens"]) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["pairs", table.shape[1]])],
        [numpy_helper.from_array(table.astype(np.float32), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tiny.folder / "model.onnx")


def test_a_ready_made_file_is_told_which_tokens_are_the_passages(tiny: Any, tmp_path: Path) -> None:
    ready_made(tiny, np.array([[0.25], [0.75]]))
    engine = opened(tiny, tmp_path)

    assert scored(engine, "a", ["b", "c"]).tolist() == [0.75, 0.75]


def test_a_ready_made_file_may_have_two_classes_and_no_token_types(tiny: Any, tmp_path: Path) -> None:
    table = np.zeros((64, 2))
    table[4 + 25] = [1.0, 3.5]  # the letter z
    ready_made(tiny, table, types=False)
    engine = opened(tiny, tmp_path)

    assert scored(engine, "a", ["b", "z"]).tolist() == [0.0, 2.5]


def test_a_ready_made_embedding_model_is_refused(tiny: Any, tmp_path: Path) -> None:
    ready_made(tiny, np.ones((2, 4)), output="sentence_embedding")

    with pytest.raises(EngineUnavailable, match="gives sentence_embedding; a reranker gives logits"):
        opened(tiny, tmp_path)


def test_infinity_is_an_error_and_no_score(tiny: Any, tmp_path: Path) -> None:
    table = np.zeros((64, 1))
    table[4 + 25] = np.inf
    ready_made(tiny, table, types=False)
    engine = opened(tiny, tmp_path)

    scored(engine, "a", ["b"])
    with pytest.raises(EngineFailed, match="NaN"):
        scored(engine, "a", ["b", "z"])


def test_a_card_opens_the_engine_it_asks_for(tiny: Any, tmp_path: Path) -> None:
    tiny.make_reranker()

    engine = open_reranker(tiny.reranker_spec(), tiny.paths, cache=tmp_path, threads=2)

    assert engine.lanes == 2
    assert scored(engine, "a", ["b"]).shape == (1,)
    engine.close()
    assert isinstance(tiny.reranker_spec(), OnnxRerankerSpec)
