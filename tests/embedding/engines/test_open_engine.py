import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.embedding.engines import open_engine, open_reranker
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.engines.onnx import BATCH_TOKENS
from appliance.embedding.engines.remote.access import Remote
from appliance.embedding.spec import FileSpec, HashSpec, HubSource, OnnxSpec, RemoteSpec
from appliance.errors import EngineUnavailable


def test_a_hash_card_opens_an_engine_of_its_dimensions_and_tokens(tmp_path: Path) -> None:
    spec = HashSpec(name="h", family="hash", engine="hash", dimensions=96, max_tokens=5)

    engine = open_engine(spec, {}, cache=tmp_path)
    assert isinstance(engine, HashingEngine)
    (prompt,) = engine.prepare(["one two three four five six"], truncate=True)

    assert (prompt.tokens, prompt.truncated) == (5, True)
    assert engine.run([prompt]).shape == (1, 96)
    engine.close()


def test_batches_are_of_the_tokens_asked_for_or_of_what_the_engine_runs_best(tiny: Any, tmp_path: Path) -> None:
    asked: list[Any] = [open_engine(tiny.spec(), tiny.paths, cache=tmp_path, batch_tokens=tokens) for tokens in (0, 96)]
    tiny.make_reranker()
    asked += [
        open_reranker(tiny.reranker_spec(), tiny.paths, cache=tmp_path, batch_tokens=tokens) for tokens in (0, 96)
    ]

    assert [engine.batch_tokens for engine in asked] == [BATCH_TOKENS, 96, BATCH_TOKENS, 96]
    for engine in asked:
        engine.close()


def test_a_missing_file_makes_the_engine_unavailable(tmp_path: Path) -> None:
    spec = OnnxSpec(
        name="m",
        family="bert",
        engine="onnx",
        dimensions=8,
        max_tokens=16,
        files={"model.onnx": FileSpec(sha256="0" * 64, size=1)},
        sources=(HubSource(kind="hub", repo="a/b", revision="0" * 40),),
    )

    with pytest.raises(EngineUnavailable):
        open_engine(spec, {"model.onnx": tmp_path / "not-there"}, cache=tmp_path)


def test_a_package_that_is_not_installed_is_named(tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["appliance.embedding.engines.hashing"] = None
from pathlib import Path
from appliance.embedding.engines import open_engine
from appliance.embedding.spec import HashSpec
from appliance.errors import EngineUnavailable
spec = HashSpec(name="h", family="hash", engine="hash", dimensions=96, max_tokens=5)
try:
    open_engine(spec, {{}}, cache=Path({str(tmp_path)!r}))
except EngineUnavailable as error:
    print(error.message)
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "package that is not installed" in answer.stdout


def test_an_engine_is_imported_only_when_a_card_asks_for_it() -> None:
    program = (
        "import sys, appliance.embedding.engines, appliance.embedding.pull;"
        "print([name for name in ('onnxruntime', 'onnx', 'huggingface_hub', 'httpx') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"


def test_a_remote_card_opens_an_engine_that_has_asked_nobody_yet(tmp_path: Path) -> None:
    spec = RemoteSpec(
        name="far",
        family="bert",
        engine="remote",
        provider="tei",
        urls=("https://tei.example.com",),
        key="A_KEY",
        dimensions=8,
        max_tokens=16,
    )

    engine = open_engine(spec, {}, cache=tmp_path, remote=Remote(secret=lambda _: "sk-1"))
    assert engine.label == "tei"
    engine.close()
    with pytest.raises(EngineUnavailable, match="A_KEY"):
        open_engine(spec, {}, cache=tmp_path)
