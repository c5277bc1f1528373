"""Reranking over HTTP, in the forms of those whose clients ask for it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.api.rerank import MAX_DOCUMENTS

QUERY = "otters hold hands"
DOCUMENTS = ["Whales sing.", "Otters hold hands while they sleep.", "Badgers dig.", "Otters sleep."]
HIGH, LOW, NONE = 0.95257413, 0.26894143, 0.04742587
"""Sigmoid of 3, -1 and -3: three words of the query, one, none."""

JINA = ("/v1/rerank", "/v2/rerank", "/rerank")


@pytest.fixture
def client(live_reranking: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_reranking.url, timeout=30) as session:
        yield session


def told(answer: httpx.Response) -> str:
    """The message of an error, whichever shape it has."""
    content = answer.json()
    error = content.get("error", content.get("message"))
    message: str = error["message"] if isinstance(error, dict) else error
    return message


@pytest.mark.parametrize("path", JINA)
def test_documents_are_ranked_the_most_relevant_first_and_the_earlier_of_equals(
    client: httpx.Client, path: str
) -> None:
    answer = client.post(path, json={"model": "shared-words", "query": QUERY, "documents": DOCUMENTS})

    content = answer.json()
    assert answer.status_code == 200, answer.text
    assert set(content) == {"id", "model", "results", "usage"}
    assert re.fullmatch(r"rerank-[0-9a-f]{32}", content["id"])
    assert content["model"] == "shared-words"
    assert content["results"] == [
        {"index": 1, "relevance_score": pytest.approx(HIGH)},
        {"index": 3, "relevance_score": pytest.approx(LOW)},
        {"index": 0, "relevance_score": pytest.approx(NONE)},
        {"index": 2, "relevance_score": pytest.approx(NONE)},
    ]
    # three special tokens and the query's three words each; a full stop is a token
    tokens = sum(6 + len(document.split()) + 1 for document in DOCUMENTS)
    assert content["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert answer.headers["x-appliance-model"] == "shared-words"
    assert "x-appliance-truncated" not in answer.headers


def test_texts_are_answered_with_a_bare_list(client: httpx.Client) -> None:
    answer = client.post("/rerank", json={"query": QUERY, "texts": DOCUMENTS})

    assert answer.status_code == 200
    assert answer.json() == [
        {"index": 1, "score": pytest.approx(HIGH)},
        {"index": 3, "score": pytest.approx(LOW)},
        {"index": 0, "score": pytest.approx(NONE)},
        {"index": 2, "score": pytest.approx(NONE)},
    ]
    assert answer.headers["x-appliance-model"] == "shared-words"


def test_texts_may_be_repeated_with_their_logits(client: httpx.Client) -> None:
    body = {"query": QUERY, "texts": DOCUMENTS[:2], "raw_scores": True, "return_text": True, "truncate": False}

    answer = client.post("/v1/rerank", json={**body, "truncation_direction": "Right"})

    assert answer.json() == [
        {"index": 1, "score": 3.0, "text": DOCUMENTS[1]},
        {"index": 0, "score": -3.0, "text": DOCUMENTS[0]},
    ]


def test_a_document_may_be_an_object_and_be_repeated(client: httpx.Client) -> None:
    documents = [{"text": DOCUMENTS[0], "title": "ignored"}, DOCUMENTS[1]]

    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": documents, "return_documents": True})

    assert [each["document"] for each in answer.json()["results"]] == [{"text": DOCUMENTS[1]}, {"text": DOCUMENTS[0]}]


@pytest.mark.parametrize(("top_n", "expected"), [(1, 1), (3, 3), (4, 4), (99, 4), (0, 4), (None, 4)])
def test_top_n_are_the_best(client: httpx.Client, top_n: int | None, expected: int) -> None:
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, "top_n": top_n})

    assert [each["index"] for each in answer.json()["results"]] == [1, 3, 0, 2][:expected]


@pytest.mark.parametrize(
    ("model", "echoed"),
    [
        ({}, "shared-words"),
        ({"model": None}, "shared-words"),
        ({"model": ""}, "shared-words"),
        ({"model": "Someone/Shared-Words"}, "Someone/Shared-Words"),
        ({"model": "SHARED-WORDS:latest"}, "SHARED-WORDS:latest"),
    ],
)
def test_a_model_is_found_in_any_form_or_left_out_and_echoed_as_written(
    client: httpx.Client, model: dict[str, Any], echoed: str
) -> None:
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, **model})

    assert answer.json()["model"] == echoed
    assert answer.headers["x-appliance-model"] == "shared-words"


def test_what_other_servers_take_besides_is_ignored(client: httpx.Client) -> None:
    more = {"max_chunks_per_doc": 1, "rank_fields": ["text"], "user": "me", "max_tokens_per_doc": 4096, "priority": 0}

    answer = client.post("/v2/rerank", json={"query": QUERY, "documents": DOCUMENTS, **more})

    assert answer.json()["results"][0]["index"] == 1


def test_what_is_too_long_is_cut_and_counted_or_refused(client: httpx.Client) -> None:
    long = "otters " * 200
    body = {"query": QUERY, "documents": ["whales", long, long]}

    cut = client.post("/v1/rerank", json=body)
    refused = client.post("/v1/rerank", json={**body, "truncate": False})
    tei = client.post("/rerank", json={"query": QUERY, "texts": [long], "truncate": False})

    assert cut.headers["x-appliance-truncated"] == "2"
    assert cut.json()["usage"]["total_tokens"] == 7 + 64 + 64
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert refused.json()["error"]["param"] == "documents"
    assert (tei.status_code, tei.json()["error_type"]) == (422, "Validation")


def test_a_long_query_leaves_half_of_the_room_to_the_documents(client: httpx.Client) -> None:
    body = {"query": "whales " * 100, "documents": ["badgers dig", "hold " * 29 + "whales", "hold " * 30 + "whales"]}

    results = client.post("/v1/rerank", json=body).json()["results"]

    assert {each["index"]: each["relevance_score"] > 0.5 for each in results} == {0: False, 1: True, 2: True}


def test_a_document_may_be_empty(client: httpx.Client) -> None:
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": ["", DOCUMENTS[1]]})

    assert [each["index"] for each in answer.json()["results"]] == [1, 0]


def test_as_many_documents_as_are_allowed_are_ranked(client: httpx.Client) -> None:
    documents = ["whales"] * (MAX_DOCUMENTS - 1) + ["otters"]

    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": documents})
    beyond = client.post("/v1/rerank", json={"query": QUERY, "documents": [*documents, "one"]})

    assert [each["index"] for each in answer.json()["results"]] == [MAX_DOCUMENTS - 1, *range(MAX_DOCUMENTS - 1)]
    assert beyond.status_code == 400
    assert f"{MAX_DOCUMENTS} are the most of one request, not {MAX_DOCUMENTS + 1}" in told(beyond)


@pytest.mark.parametrize("path", JINA)
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"query": QUERY}, "one of documents and texts is needed"),
        ({"query": QUERY, "documents": ["a"], "texts": ["a"]}, "and not both"),
        ({"documents": ["a"]}, "query: it is missing"),
        ({"query": "", "documents": ["a"]}, "query is empty"),
        ({"query": " \n", "texts": ["a"]}, "query is empty"),
        ({"query": 5, "documents": ["a"]}, "query: a text is needed"),
        ({"query": QUERY, "documents": "a"}, "documents: a list is needed"),
        ({"query": QUERY, "documents": ["a", 5]}, "documents.1: a text is needed"),
        ({"query": QUERY, "documents": [{"title": "a"}]}, "documents.0: a text is needed"),
        ({"query": QUERY, "documents": [["a"]]}, "documents.0: a text is needed"),
        ({"query": QUERY, "texts": [{"text": "a"}]}, "texts.0: a text is needed"),
        ({"query": QUERY, "documents": ["a"], "top_n": -1}, "top_n"),
        ({"query": QUERY, "documents": ["a"], "top_n": "3"}, "top_n: a whole number is needed"),
        ({"query": QUERY, "texts": ["a"], "truncation_direction": "left"}, "truncation_direction"),
        ({"query": QUERY, "documents": ["a"], "model": "hash"}, '"hash" does not support reranking'),
    ],
)
def test_a_body_that_cannot_be_used_is_told(client: httpx.Client, path: str, body: dict[str, Any], says: str) -> None:
    answer = client.post(path, json=body)

    assert answer.status_code == (422 if path == "/rerank" else 400), answer.text
    assert says in told(answer)


@pytest.mark.parametrize("path", JINA)
@pytest.mark.parametrize("field", ["documents", "texts"])
def test_nothing_to_rank_is_400_everywhere(client: httpx.Client, path: str, field: str) -> None:
    answer = client.post(path, json={"query": QUERY, field: []})

    assert answer.status_code == 400
    assert f"{field} is empty" in told(answer)
    if path == "/rerank":
        assert answer.json()["error_type"] == "Empty"


@pytest.mark.parametrize("path", JINA)
def test_an_unknown_model_is_404(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json={"model": "nobody", "query": QUERY, "documents": ["a"]})

    assert answer.status_code == 404
    assert 'model "nobody" not found' in told(answer)


@pytest.mark.parametrize("path", JINA)
def test_a_model_whose_files_are_missing_says_what_to_bring(client: httpx.Client, path: str) -> None:
    body = {"query": QUERY, "documents": ["a"]}

    fetched = client.post(path, json=body | {"model": "cross-encoder/ms-marco-MiniLM-L-6-v2"})
    brought = client.post(path, json=body | {"model": "qwen3-reranker-0.6b-rk3588"})

    assert (fetched.status_code, brought.status_code) == (503, 503)
    assert "run `appliance pull ms-marco-minilm-l6-v2`" in told(fetched)
    assert "tokenizer.json into models/qwen3-reranker-0.6b-rk3588" in told(brought)


def test_an_appliance_without_a_reranker_says_so(live: Any) -> None:
    answer = httpx.post(f"{live.url}/v1/rerank", json={"query": QUERY, "documents": ["a"]})

    assert answer.status_code == 404
    assert answer.json()["error"]["message"].startswith("no reranker is installed")


def test_the_reranker_of_the_settings_comes_first(
    start: Callable[..., Any], bring_reranker: Callable[[Path], None], tmp_path: Path
) -> None:
    bring_reranker(tmp_path / "data")
    server = start(data=tmp_path / "data", reranker="ms-marco-minilm-l6-v2")

    answer = httpx.post(f"{server.url}/v1/rerank", json={"query": QUERY, "documents": ["a"]})

    assert answer.status_code == 503
    assert "ms-marco-minilm-l6-v2" in answer.json()["error"]["message"]


def test_a_reranker_is_listed_where_models_are_and_says_that_it_is_one(client: httpx.Client, live: Any) -> None:
    client.post("/v1/rerank", json={"query": QUERY, "documents": ["a"]})

    (tag,) = (each for each in client.get("/api/tags").json()["models"] if each["name"] == "shared-words:latest")
    shown = client.post("/api/show", json={"model": "shared-words"}).json()
    listed = {each["id"] for each in client.get("/v1/models").json()["data"]}
    loaded = {each["name"] for each in client.get("/api/ps").json()["models"]}
    elsewhere = {each["id"] for each in httpx.get(f"{live.url}/v1/models").json()["data"]}

    assert tag["capabilities"] == shown["capabilities"] == ["rerank"]
    assert "embedding_length" not in tag["details"]
    assert not any("embedding_length" in key for key in [*shown["model_info"], *shown["details"]])
    assert tag["size"] > 500
    assert {"shared-words", "someone/shared-words"} <= listed
    assert client.get("/v1/models/Someone/Shared-Words").json()["id"] == "Someone/Shared-Words"
    assert "shared-words:latest" in loaded
    assert not {"ms-marco-minilm-l6-v2", "cross-encoder/ms-marco-minilm-l-6-v2"} & (listed | elsewhere)


def test_a_reranker_does_not_embed_and_is_loaded_and_unloaded_like_any_model(
    start: Callable[..., Any], bring_reranker: Callable[[Path], None], tmp_path: Path
) -> None:
    bring_reranker(tmp_path / "data")
    server = start(data=tmp_path / "data")

    with httpx.Client(base_url=server.url) as client:
        openai = client.post("/v1/embeddings", json={"model": "shared-words", "input": "a"})
        ollama = client.post("/api/embed", json={"model": "shared-words", "input": "a"})
        loads = client.post("/api/generate", json={"model": "shared-words"}).json()["done_reason"]
        loaded = [each["name"] for each in client.get("/api/ps").json()["models"]]
        unloads = client.post("/api/generate", json={"model": "shared-words", "keep_alive": 0}).json()["done_reason"]
        left = [each["name"] for each in client.get("/api/ps").json()["models"]]
        pulled = client.post("/api/pull", json={"model": "shared-words", "stream": False}).json()
        deleted = client.request("DELETE", "/api/delete", json={"model": "shared-words"})
        missing = client.post("/api/generate", json={"model": "ms-marco-minilm-l6-v2"})

    assert (openai.status_code, ollama.status_code) == (400, 400)
    assert openai.json()["error"]["message"] == '"shared-words" does not support embeddings'
    assert ollama.json() == {"error": '"shared-words" does not support embeddings'}
    assert (loads, unloads) == ("load", "unload")
    assert ("shared-words:latest" in loaded, "shared-words:latest" in left) == (True, False)
    assert pulled == {"status": "success"}
    assert deleted.status_code == 409
    assert "by hand" in deleted.json()["error"]
    assert missing.status_code == 404


def test_tokens_and_pairs_are_counted(client: httpx.Client) -> None:
    def counted(name: str) -> float:
        (line,) = (
            line
            for line in client.get("/metrics").text.splitlines()
            if line.startswith(f"{name}{{") and "shared" in line
        )
        return float(line.rpartition(" ")[2])

    client.post("/v1/rerank", json={"query": "otters", "documents": ["a"]})
    before = [counted(f"appliance_rerank_{what}_total") for what in ("pairs", "tokens")]

    client.post("/v1/rerank", json={"query": "otters", "documents": ["whales", "badgers dig"]})

    after = [counted(f"appliance_rerank_{what}_total") for what in ("pairs", "tokens")]
    assert [one - other for one, other in zip(after, before, strict=True)] == [2, 5 + 6]


def test_a_missing_key_is_told_in_each_shape(start: Callable[..., Any]) -> None:
    server = start(api_keys=["secret"])

    for path in JINA:
        answer = httpx.post(f"{server.url}{path}", json={"query": "a", "documents": ["a"]})
        assert answer.status_code == 401
        assert told(answer)


def test_the_requests_are_documented(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]

    for path in JINA:
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert {"query", "documents", "texts", "top_n"} <= set(schema["properties"])
