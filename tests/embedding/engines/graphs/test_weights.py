import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from appliance.embedding.engines.graphs.weights import Weights, sources
from appliance.errors import EngineUnavailable

A = np.arange(12, dtype=np.float32).reshape(4, 3)
B = np.linspace(-1, 1, 5, dtype=np.float32)


def safetensors(folder: Path, tensors: Mapping[str, Any], name: str = "model.safetensors") -> dict[str, Path]:
    save_file(dict(tensors), folder / name)
    return {name: folder / name}


def sharded(folder: Path, index: object = None) -> dict[str, Path]:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    files = safetensors(folder, {"a": A}, first) | safetensors(folder, {"b": B, "unlisted": B}, second)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": first, "b": second}} if index is None else index))
    return files | {path.name: path}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_width_is_read_as_float32(tmp_path: Path, dtype: Any) -> None:
    with Weights(safetensors(tmp_path, {"a": A.astype(dtype)})) as weights:
        found = weights.take("a", (4, 3))

    assert found.dtype == np.float32
    assert np.array_equal(found, A)


def test_a_table_comes_in_pieces_and_in_rows(tmp_path: Path) -> None:
    with Weights(safetensors(tmp_path, {"a": A})) as weights:
        assert [piece.tolist() for piece in weights.rows("a", (4, 3), at_once=3)] == [A[:3].tolist(), A[3:].tolist()]
        assert weights.row("a", (4, 3), 2).tolist() == A[2].tolist()


def test_weights_in_several_files_are_read_as_the_index_says(tmp_path: Path) -> None:
    files = sharded(tmp_path)

    with Weights(files) as weights:
        assert np.array_equal(weights.take("a", (4, 3)), A)
        assert np.array_equal(weights.take("b", (5,)), B)
        assert "unlisted" not in weights

    assert sources(files) == ["model.safetensors.index.json", *sorted(name for name in files if "of" in name)]


@pytest.mark.parametrize(
    "index",
    [
        [],
        {},
        {"weight_map": {}},
        {"weight_map": []},
        {"weight_map": {"a": 1}},
        {"weight_map": {"a": "../../etc/passwd"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": ""}},
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, index: object) -> None:
    with pytest.raises(EngineUnavailable, match="is no index of weights"):
        Weights(sharded(tmp_path, index))


def test_a_file_that_the_card_does_not_list_is_not_read(tmp_path: Path) -> None:
    files = sharded(tmp_path)
    del files["model-00002-of-00002.safetensors"]

    with pytest.raises(EngineUnavailable, match="which the card does not list"):
        Weights(files)


def test_a_tensor_that_its_file_lacks_is_missing(tmp_path: Path) -> None:
    files = sharded(tmp_path, {"weight_map": {"b": "model-00001-of-00002.safetensors"}})

    with Weights(files) as weights, pytest.raises(EngineUnavailable, match="b is missing"):
        weights.take("b", (5,))


def test_a_prefix_is_found_and_names_without_it_stay(tmp_path: Path) -> None:
    files = safetensors(tmp_path, {"new.table": A, "new.deep.a": A, "head": B, "others.stable": B})

    with Weights(files) as weights:
        assert weights.anchor("table")
        assert "deep.a" in weights
        assert weights.take("head", (5,)).tolist() == B.tolist()
        assert weights.shape("deep.a") == (4, 3)
        assert weights.shape("nothing") == ()
        assert not weights.anchor("nothing")


def test_no_weights_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"lists none of model\.safetensors, pytorch_model\.bin"):
        Weights({"a.json": tmp_path, "b.bin": tmp_path})


def test_safetensors_are_read_before_a_pickle(tmp_path: Path) -> None:
    files = safetensors(tmp_path, {"a": A}) | {"pytorch_model.bin": tmp_path / "none"}

    with Weights(files) as weights:
        assert "a" in weights


def test_norms_may_have_the_names_that_berts_own_checkpoint_gives_them(tmp_path: Path) -> None:
    stored = {"bert.embeddings.LayerNorm.gamma": B, "bert.embeddings.LayerNorm.beta": -B, "bert.embeddings.words": A}
    with Weights(safetensors(tmp_path, stored)) as weights:
        assert weights.anchor("embeddings.words")
        scale, bias = (weights.take(f"embeddings.LayerNorm.{part}", (5,)) for part in ("weight", "bias"))

    assert np.array_equal(scale, B)
    assert np.array_equal(bias, -B)
