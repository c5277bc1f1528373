"""The plain forms, and how the models are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

GENERATE = "/v1/embeddings/generate"


def test_a_text_is_answered_with_its_vector_and_who_made_it(client: httpx.Client) -> None:
    answer = client.post(GENERATE, json={"text": "otters sleep", "dimensions": 64})

    content = answer.json()
    assert answer.status_code == 200
    assert content["embeddings"] == [content["embedding"]]
    assert np.linalg.norm(content["embedding"]) == pytest.approx(1)
    assert {name: value for name, value in content.items() if not name.startswith("embedding")} == {
        "model": "hash",
        "requested_model": "hash",
        "provider": "hash",
        "dimensions": 64,
        "fallback": False,
        "truncated": 0,
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }
    assert answer.headers["x-appliance-model"] == "hash"


def test_texts_keep_their_order_and_have_no_vector_of_their_own(client: httpx.Client) -> None:
    body = {
        "texts": ["a", "", "b"],
        "model": "text-embedding-3-small",
        "use_fallback": True,
        "input_type": "clustering",
    }

    content = client.post(GENERATE, json=body).json()

    plain = client.post("/v1/embeddings", json={"model": "hash", "input": ["a", "", "b"]}).json()["data"]
    assert content["embeddings"] == [each["embedding"] for each in plain]
    assert "embedding" not in content
    assert (content["model"], content["requested_model"]) == ("hash", "text-embedding-3-small")
    assert content["fallback"] is False


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": "a", "texts": ["a"]}, "text"),
        ({"texts": []}, "texts"),
        ({"texts": "a"}, "texts"),
        ({"text": ["a"]}, "text"),
        ({"texts": [1]}, "texts.0"),
        ({"texts": ["a"] * 100_000}, "texts"),
        ({"text": "a", "use_fallback": "yes"}, "use_fallback"),
        ({"text": "a", "use_fallback": [1]}, "use_fallback"),
        ({"text": "a", "dimensions": 0}, "dimensions"),
        ({"text": "a", "dimensions": 9999}, "dimensions"),
        ({"text": "a", "dimensions": True}, "dimensions"),
        ({"text": "a", "input_type": "poem"}, "input_type"),
        ({"text": "a", "txt": "b"}, "txt"),
        ({"text": "word " * 9000, "truncate": False}, "text"),
        ({"texts": ["word " * 9000], "truncate": False}, "texts"),
    ],
)
def test_a_wrong_body_is_400_and_the_field_is_named(client: httpx.Client, body: Any, param: str) -> None:
    answer = client.post(GENERATE, json=body)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_an_unknown_model_is_404(client: httpx.Client) -> None:
    assert client.post(GENERATE, json={"text": "a", "model": "x"}).json()["error"]["code"] == "model_not_found"
    assert client.post("/encode", json={"text": "a", "model": "x"}).status_code == 404


@pytest.mark.parametrize(
    "body",
    [{"texts": ["a"]}, {"sentences": ["a"]}, {"sentences": "a"}, {"text": "a"}, {"text": ["a"], "batch_size": 32}],
)
def test_encode_takes_texts_by_any_of_their_names(client: httpx.Client, body: Any) -> None:
    content = client.post("/encode", json=body).json()

    assert set(content) == {"embeddings", "model", "dimensions"}
    assert np.linalg.norm(content["embeddings"]) == pytest.approx(1)
    assert (content["model"], content["dimensions"], len(content["embeddings"])) == ("hash", 1024, 1)


@pytest.mark.parametrize("name", ["normalize", "normalize_embeddings"])
def test_encode_gives_vectors_as_they_are_if_wanted(client: httpx.Client, name: str) -> None:
    body = {"text": "otters otters otters otters"}

    unit, raw = (client.post("/encode", json={**body, name: wanted}).json() for wanted in (True, False))

    assert np.linalg.norm(unit["embeddings"]) == pytest.approx(1)
    assert np.linalg.norm(raw["embeddings"]) > 2
    assert np.allclose(np.array(raw["embeddings"]) / np.linalg.norm(raw["embeddings"]), unit["embeddings"], atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [{}, {"texts": []}, {"texts": [None]}, {"sentences": 5}, {"text": "a", "texts": ["b"]}, {"texts": ["a"] * 100_000}],
)
def test_encode_refuses_what_is_no_text_as_our_own_routes_do(client: httpx.Client, body: Any) -> None:
    answer = client.post("/encode", json=body)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_health_tells_of_every_model_that_embeds(client: httpx.Client) -> None:
    answer = client.get("/v1/embeddings/health")

    content = answer.json()
    assert (answer.status_code, content["status"]) == (200, "ok")
    assert content["models"]["hash"] == {"status": "ok", "detail": "", "engine": "hash", "default": True}
    assert answer.headers["cache-control"] == "no-store"


BROKEN = """
name = "broken"
engine = "onnx"
family = "bert"
dimensions = 8
max_tokens = 16
own = ["model.onnx", "tokenizer.json"]
"""


def test_a_model_that_cannot_be_loaded_degrades_health_and_its_loading_is_tried_when_asked(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "models" / "broken"
    folder.mkdir(parents=True)
    (tmp_path / "data" / "cards").mkdir()
    (tmp_path / "data" / "cards" / "broken.toml").write_text(BROKEN)
    for name in ("model.onnx", "tokenizer.json"):
        (folder / name).write_bytes(b"rubbish")
    server = start(data=tmp_path / "data")

    before = httpx.get(f"{server.url}/v1/embeddings/health").json()
    asked = httpx.post(f"{server.url}{GENERATE}", json={"text": "a", "model": "broken"})
    after = httpx.get(f"{server.url}/v1/embeddings/health")

    assert before["status"] == "ok"
    assert before["models"]["broken"] == {"status": "not loaded", "detail": "", "engine": "onnx", "default": False}
    assert asked.status_code == 503
    assert after.status_code == 200
    assert after.json()["status"] == "degraded"
    assert after.json()["models"]["broken"]["status"] == "error"
    assert "tokenizer.json" in after.json()["models"]["broken"]["detail"]
