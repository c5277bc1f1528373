"""A whole server on the simulated NPU: both embedding APIs, documents, search, and what says which engine answered."""

import base64
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from appliance.app import create_registry
from appliance.embedding.engines.rkllm.abi import FAMILIES, Family
from appliance.embedding.engines.rkllm.simulated import (
    CONTEXT,
    EOS,
    VOCABULARY,
    build_library,
    write_model,
    write_tokenizer,
)
from appliance.errors import EngineUnavailable, InvalidInput
from appliance.settings import Settings, shipped

NPU_CARD = f"""
name = "both-on-npu"
aliases = ["both"]
engine = "rkllm"
family = "qwen3"
platform = "rk3588"
own = ["model.rkllm", "tokenizer.json"]
model = "model.rkllm"
space = "both"
dimensions = 1024
min_dimensions = 32
context = {CONTEXT}
max_tokens = {CONTEXT - 8}
eos = {EOS}
vocabulary = {VOCABULARY}
prefixes = {{ query = "Instruct: find\\nQuery:" }}
"""
CPU_CARD = """
name = "both-on-cpu"
aliases = ["both"]
engine = "hash"
family = "hash"
space = "both"
dimensions = 1024
max_tokens = 512
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with one model of two engines."""
    data = tmp_path / "data"
    (data / "cards").mkdir(parents=True)
    (data / "cards" / "npu.toml").write_text(NPU_CARD)
    (data / "cards" / "cpu.toml").write_text(CPU_CARD)
    folder = data / "models" / "both-on-npu"
    folder.mkdir(parents=True)
    write_model(folder / "model.rkllm")
    write_tokenizer(folder / "tokenizer.json")
    return data


def post(server: Any, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=30)


def vectors(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return np.array([each["embedding"] for each in answer.json()["data"]], np.float32)


def metric(server: Any, line: str) -> bool:
    return any(each.startswith(line) for each in httpx.get(f"{server.url}/metrics").text.splitlines())


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_works_on_the_npu_of_every_family(family: Family, start: Callable[..., Any]) -> None:
    server = start(simulate_npu=True, npu_abi=family, model="simulated-npu")

    openai = post(server, "/v1/embeddings", model="simulated-npu", input=["grow tomatoes", "x" * 5000])
    ollama = post(server, "/api/embed", model="simulated-npu", input=["grow tomatoes"])
    put = post(server, "/documents", title="Pots", text="Tomatoes grow well in pots on a balcony.", wait=10)
    other = post(server, "/documents", title="Stocks", text="The market fell on Monday.", wait=10)
    found = httpx.get(f"{server.url}/search", params={"q": "can tomatoes grow in pots", "mode": "vector"})

    rows = vectors(openai)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert openai.json()["usage"]["prompt_tokens"] == len("grow tomatoes") + 1 + CONTEXT - 8
    assert openai.headers["x-appliance-truncated"] == "1"
    assert openai.headers["x-appliance-engine"] == "rkllm-simulated"
    assert np.allclose(ollama.json()["embeddings"][0], rows[0], atol=1e-6)
    assert ollama.json()["prompt_eval_count"] == len("grow tomatoes") + 1
    assert [each.json()["documents"][0]["state"] for each in (put, other)] == ["ready", "ready"]
    assert [match["title"] for match in found.json()["matches"]] == ["Pots", "Stocks"]


def test_dimensions_truncation_and_base64_are_exact(start: Callable[..., Any]) -> None:
    server = start(simulate_npu=True, model="simulated-npu")

    (whole,) = vectors(post(server, "/v1/embeddings", model="simulated-npu", input="some words"))
    (front,) = vectors(post(server, "/v1/embeddings", model="simulated-npu", input="some words", dimensions=64))
    packed = post(server, "/v1/embeddings", model="simulated-npu", input="some words", encoding_format="base64")
    refused = post(server, "/v1/embeddings", model="simulated-npu", input="x" * 5000, truncate=False)
    too_few = post(server, "/v1/embeddings", model="simulated-npu", input="some words", dimensions=16)

    assert np.allclose(front, whole[:64] / np.linalg.norm(whole[:64]), atol=1e-6)
    unpacked = np.frombuffer(base64.b64decode(packed.json()["data"][0]["embedding"]), "<f4")
    assert np.allclose(unpacked, whole, atol=1e-7)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert too_few.status_code == 400


def test_the_instruction_stands_before_questions_only(data: Path, start: Callable[..., Any]) -> None:
    server = start(data=data, simulate_npu=True, model="both")

    text = vectors(post(server, "/v1/embeddings", model="both", input="some words"))
    question = post(server, "/v1/embeddings", model="both", input="some words", input_type="query")
    written_out = post(server, "/v1/embeddings", model="both", input="Instruct: find\nQuery:some words")

    assert not np.allclose(text, vectors(question))
    assert np.array_equal(vectors(question), vectors(written_out))
    assert question.json()["usage"]["prompt_tokens"] == len("Instruct: find\nQuery:some words") + 1


def test_what_answers_is_told_everywhere(data: Path, start: Callable[..., Any]) -> None:
    server = start(data=data, simulate_npu=True, model="both")

    answer = post(server, "/v1/embeddings", model="both", input="hello")
    loaded = httpx.get(f"{server.url}/api/ps").json()["models"]

    assert answer.headers["x-appliance-model"] == "both-on-npu"
    assert answer.headers["x-appliance-engine"] == "rkllm-simulated"
    assert [(each["name"], each["engine"]) for each in loaded] == [("both-on-npu:latest", "rkllm-simulated")]
    assert metric(server, 'appliance_answers_total{engine="rkllm-simulated",model="both-on-npu"}')


def test_the_cpu_stands_in_while_the_npu_cannot_be_had_and_says_so(data: Path, start: Callable[..., Any]) -> None:
    write_model(data / "models" / "both-on-npu" / "model.rkllm", platform="RK3576")

    server = start(data=data, simulate_npu=True, model="both")
    answer = post(server, "/v1/embeddings", model="both-on-npu", input="hello")

    assert answer.status_code == 200
    assert answer.headers["x-appliance-model"] == "both-on-cpu"
    assert answer.headers["x-appliance-engine"] == "hash"
    assert metric(server, 'appliance_answers_total{engine="hash",model="both-on-cpu"}')


def test_the_cpu_stands_in_when_the_npu_fails_on_the_way(data: Path, start: Callable[..., Any]) -> None:
    server = start(data=data, simulate_npu=True, model="both")
    (data / "models" / "both-on-npu" / "model.rkllm.faults").write_text("crash = 1\n")

    answers = [post(server, "/v1/embeddings", model="both", input=f"text {n}") for n in range(12)]

    assert {answer.status_code for answer in answers} <= {200, 500}
    assert answers[-1].headers["x-appliance-engine"] == "hash"
    assert metric(server, 'appliance_engine_restarts_total{model="both-on-npu",reason="SIGSEGV"}')


def test_a_model_that_is_left_alone_says_for_how_long(data: Path, start: Callable[..., Any]) -> None:
    (data / "cards" / "cpu.toml").unlink()
    server = start(data=data, simulate_npu=True, model="both")
    (data / "models" / "both-on-npu" / "model.rkllm.faults").write_text("crash = 1\n")

    answers = [post(server, "/v1/embeddings", model="both", input=f"text {n}") for n in range(12)]

    assert answers[-1].status_code == 503
    assert "left alone" in answers[-1].json()["error"]["message"]
    assert 0 < int(answers[-1].headers["retry-after"]) <= 30
    assert httpx.get(f"{server.url}/ready").status_code == 503


def test_with_engine_npu_nothing_stands_in_and_a_server_that_cannot_have_it_does_not_start(data: Path) -> None:
    write_model(data / "models" / "both-on-npu" / "model.rkllm", platform="RK3576")
    broken = Settings(data=data, simulate_npu=True, model="both", engine="npu")

    async def ask() -> None:
        registry = create_registry(broken)
        try:
            await registry.get("both")
        finally:
            await registry.close()

    import anyio

    with pytest.raises(EngineUnavailable, match="RK3576"):
        anyio.run(ask)
    with pytest.raises(InvalidInput, match="hash runs on the CPU; models for the NPU are"):
        create_registry(Settings(data=data, model="hash", engine="npu"))


def test_with_engine_cpu_the_npu_is_left_alone(data: Path, start: Callable[..., Any]) -> None:
    (data / "cards" / "alone.toml").write_text(NPU_CARD.replace("both", "alone"))
    server = start(data=data, model="both", engine="cpu")

    shared = post(server, "/v1/embeddings", model="both", input="hello")
    named = post(server, "/v1/embeddings", model="both-on-npu", input="hello")
    alone = post(server, "/v1/embeddings", model="alone", input="hello")

    assert shared.headers["x-appliance-engine"] == "hash"
    assert named.headers["x-appliance-engine"] == "hash"
    assert alone.status_code == 503
    assert "the setting engine is cpu" in alone.json()["error"]["message"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "model.rkllm").write_bytes(b"RKLLM"), "model.rkllm"),
        (lambda folder: write_model(folder / "model.rkllm", platform="RK3576"), "RK3576"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "model.rkllm").unlink(), "model.rkllm"),
    ],
    ids=["cut short", "another platform", "no tokenizer", "tokenizer missing", "model missing"],
)
def test_a_model_that_cannot_be_had_says_why_and_the_others_go_on(
    spoil: Callable[[Path], object], says: str, data: Path, start: Callable[..., Any]
) -> None:
    (data / "cards" / "cpu.toml").unlink()
    spoil(data / "models" / "both-on-npu")
    server = start(data=data, simulate_npu=True, model="hash")

    broken = post(server, "/v1/embeddings", model="both", input="hello")
    working = [post(server, "/v1/embeddings", model=model, input="hello") for model in ("hash", "simulated-npu")]

    assert broken.status_code == 503
    assert says in broken.json()["error"]["message"]
    assert str(data) not in broken.text
    assert [answer.status_code for answer in working] == [200, 200]


@pytest.mark.parametrize(
    ("library", "says"),
    [
        (lambda folder: folder / "librkllmrt.so", "npu_library"),
        (lambda folder: build_library(shipped("native"), folder, version="1.0.2"), "version 1.1 or newer is needed"),
        (lambda folder: build_library(shipped("native"), folder, version="1.9.0"), "not known here"),
        (lambda folder: build_library(shipped("native"), folder, compiler="aarch64-linux-gnu-gcc"), "64-bit ARM"),
        (lambda folder: build_library(shipped("native"), folder), "--simulate-npu only"),
    ],
    ids=["none", "1.0.x", "unknown", "another processor", "simulated"],
)
def test_a_library_that_cannot_be_used_says_why_and_the_others_go_on(
    library: Callable[[Path], Path], says: str, data: Path, tmp_path: Path, start: Callable[..., Any]
) -> None:
    if says == "64-bit ARM" and (shutil.which("aarch64-linux-gnu-gcc") is None or platform.machine() == "aarch64"):
        pytest.skip("there is no compiler for another processor")
    (data / "cards" / "cpu.toml").unlink()
    server = start(data=data, model="hash", npu_library=library(tmp_path))

    broken = post(server, "/v1/embeddings", model="both", input="hello")
    working = post(server, "/v1/embeddings", model="hash", input="hello")

    assert broken.status_code == 503
    assert says in broken.json()["error"]["message"]
    assert "librkllmrt.so" in broken.text or says == "--simulate-npu only"
    assert str(tmp_path) not in broken.text
    assert working.status_code == 200


def test_reranking_and_reranked_search_work_on_the_npu(start: Callable[..., Any]) -> None:
    server = start(simulate_npu=True, model="simulated-npu")
    texts = ["Stocks fell on Monday", "Tomatoes grow well in pots"]
    for text in texts:
        post(server, "/documents", text=text, wait=10)

    ranked = post(server, "/v1/rerank", query="How do tomatoes grow in pots?", documents=texts)
    found = httpx.get(f"{server.url}/search", params={"q": "How do tomatoes grow in pots?", "rerank": "true"}).json()

    assert [each["index"] for each in ranked.json()["results"]] == [1, 0]
    assert ranked.headers["x-appliance-engine"] == "rkllm-simulated"
    assert found["reranker"] == "simulated-npu-reranker"
    assert found["matches"][0]["text"] == texts[1]
    assert found["matches"][0]["rerank_score"] == pytest.approx(
        ranked.json()["results"][0]["relevance_score"], abs=1e-3
    )
