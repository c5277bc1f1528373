"""`/similarity` in its own form."""

from typing import Any

import httpx
import numpy as np
import pytest

TEXTS = ["otters hold hands", "otters hold hand", "whales sing for hours", "a whale sings", "otters hold hands"]


def ask(client: httpx.Client, **body: Any) -> Any:
    answer = client.post("/similarity", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def vectors(client: httpx.Client, texts: list[str], **body: Any) -> Any:
    return np.array(client.post("/embed", json={"inputs": texts, **body}).json())


def test_texts_are_compared_all_with_all(client: httpx.Client) -> None:
    answer = client.post("/similarity", json={"a": TEXTS, "model": "hash"})

    content = answer.json()
    rows = vectors(client, TEXTS)
    assert set(content) == {"metric", "scores", "model", "usage"}
    assert np.allclose(content["scores"], rows @ rows.T, atol=1e-6)
    assert (content["metric"], content["model"]) == ("cosine", "hash")
    assert content["usage"] == {"prompt_tokens": 16, "total_tokens": 16}
    assert answer.headers["x-appliance-model"] == "hash"


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean", "manhattan"])
def test_vectors_are_compared_side_by_side(client: httpx.Client, metric: str) -> None:
    a, b = np.array([[1, 2, 2], [0, 3, 4]]), np.array([[2, 0, 0], [1, 1, 1], [0, 3, 4]])

    content = ask(client, a=a.tolist(), b=b.tolist(), metric=metric)

    differences = a[:, None] - b[None]
    expected = {
        "dot": a @ b.T,
        "cosine": (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1),
        "euclidean": np.linalg.norm(differences, axis=2),
        "manhattan": np.abs(differences).sum(axis=2),
    }[metric]
    assert set(content) == {"metric", "scores"}
    assert np.allclose(content["scores"], expected, atol=1e-6)


def test_one_vector_or_one_text_needs_no_list(client: httpx.Client) -> None:
    assert ask(client, a=[3, 4], b=[0, 1])["scores"] == [[pytest.approx(0.8)]]
    assert ask(client, a="otters", b="otters")["scores"] == [[pytest.approx(1.0)]]


def test_texts_are_compared_with_vectors_that_were_made_before(client: httpx.Client) -> None:
    made = vectors(client, ["whales"], dimensions=64).tolist()

    scores = ask(client, a=made, b=["whales", "badgers"], dimensions=64)["scores"]

    assert scores[0][0] == pytest.approx(1.0)
    assert scores[0][1] < 0.5


def test_the_nearest_come_first_and_the_earlier_of_equals(client: httpx.Client) -> None:
    by_text = ask(client, a=["otters hold hands"], b=TEXTS, top_k=3)
    by_distance = ask(client, a=[[0.0], [5.0]], b=[[4.0], [1.0], [1.0]], top_k=9, metric="manhattan")

    assert [match["index"] for match in by_text["matches"][0]] == [0, 4, 1]
    assert by_text["matches"][0][0]["score"] == pytest.approx(1.0)
    assert by_distance["matches"] == [
        [{"index": 1, "score": 1.0}, {"index": 2, "score": 1.0}, {"index": 0, "score": 4.0}],
        [{"index": 0, "score": 1.0}, {"index": 1, "score": 4.0}, {"index": 2, "score": 4.0}],
    ]


def test_clusters_hold_every_place_once(client: httpx.Client) -> None:
    content = ask(client, a=TEXTS, clusters=2)

    assert set(content) == {"metric", "clusters", "labels", "inertia", "model", "usage"}
    assert sorted(tuple(each["members"]) for each in content["clusters"]) == [(0, 1, 4), (2, 3)]
    for label, cluster in enumerate(content["clusters"]):
        assert cluster["nearest"] in cluster["members"]
        assert [content["labels"][place] for place in cluster["members"]] == [label] * len(cluster["members"])
    assert ask(client, a=TEXTS, clusters=2) == content
    whole = ask(client, a=[[1, 1], [9, 9], [9, 8]], clusters=1, metric="euclidean", seed=5, iterations=3)
    assert whole["clusters"] == [{"members": [0, 1, 2], "nearest": 2}]


def test_near_duplicates_are_grouped(client: httpx.Client) -> None:
    assert ask(client, a=TEXTS, threshold=0.99)["duplicates"] == [[0, 4]]
    assert ask(client, a=TEXTS, threshold=0.3)["duplicates"] == [[0, 1, 4], [2, 3]]
    assert ask(client, a=[[1, 0], [0, 1]], threshold=0.5)["duplicates"] == []


def test_what_is_cut_is_counted_or_refused(client: httpx.Client) -> None:
    long = "word " * 9000

    cut = client.post("/similarity", json={"a": [long], "b": ["word"], "input_type": "query"})
    refused = client.post("/similarity", json={"a": [long], "truncate": False})

    assert cut.headers["x-appliance-truncated"] == "1"
    assert refused.status_code == 422
    assert "context length" in refused.json()["error"]


ONE = [[1.0, 2.0]]

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "a: it is missing"),
    "only b": ({"b": ONE}, "a: it is missing"),
    "null": ({"a": None}, "a: it is missing"),
    "an empty list": ({"a": []}, "a: texts or vectors are needed"),
    "an empty vector": ({"a": [[]]}, "none of them empty"),
    "an object": ({"a": {"x": 1}}, "a: texts or vectors"),
    "a number": ({"a": 1}, "a: texts or vectors"),
    "both sorts": ({"a": ["x", [1.0]]}, "texts only, or vectors only"),
    "booleans": ({"a": [[True, False]]}, "texts only, or vectors only"),
    "nulls": ({"a": [[1, None]]}, "texts only, or vectors only"),
    "three levels": ({"a": [[[1.0]]]}, "texts only, or vectors only"),
    "unequal widths": ({"a": [[1, 2], [1]]}, "a: the vectors are not of one width"),
    "unequal sides": ({"a": ONE, "b": [[1.0]]}, "b: its vectors have 1 dimensions, those of a have 2"),
    "a side of the model's": ({"a": ONE, "b": ["x"]}, "b: its vectors have 1024 dimensions"),
    "beyond float32": ({"a": [[1e39, 1]]}, "a: a number is beyond what float32 holds"),
    "far beyond": ({"a": ONE, "b": [[-1e300, 1]]}, "b: a number is beyond what float32 holds"),
    "a whole number beyond": ({"a": [[2**63, -(10**18)]], "metric": "dot"}, ""),
    "a product beyond": ({"a": [[3e38]], "metric": "dot"}, "too large"),
    "zeros": ({"a": ONE, "b": [[0, 0]]}, "b: a vector of zeros has no direction"),
    "zeros of clusters": ({"a": [[0, 0], [1, 1]], "clusters": 1}, "zeros has no direction"),
    "a metric": ({"a": ONE, "metric": "chebyshev"}, "metric: "),
    "an unknown field": ({"a": ONE, "topk": 1}, "topk: there is no such field"),
    "a model": ({"a": ["x"], "model": "nobody"}, '"nobody" not found'),
    "an input type": ({"a": ["x"], "input_type": "poem"}, "input_type"),
    "dimensions": ({"a": ["x"], "dimensions": 4096}, "dimensions other than"),
    "top_k alone": ({"a": ONE, "top_k": 1}, "top_k needs b"),
    "top_k of nothing": ({"a": ONE, "b": ONE, "top_k": 0}, "top_k: "),
    "a text for top_k": ({"a": ONE, "b": ONE, "top_k": "3"}, "top_k: "),
    "two questions": ({"a": ONE, "clusters": 1, "threshold": 0.5}, "one of clusters and threshold at a time"),
    "clusters of two sides": ({"a": ONE, "b": ONE, "clusters": 1}, "clusters is about a alone"),
    "clusters by dot": ({"a": ONE, "clusters": 1, "metric": "dot"}, "cosine or euclidean"),
    "too many clusters": ({"a": ONE, "clusters": 2}, "clusters: 1 to 1"),
    "a seed": ({"a": ONE, "clusters": 1, "seed": -1}, "seed: "),
    "rounds": ({"a": ONE, "clusters": 1, "iterations": 1000}, "iterations: "),
    "a threshold": ({"a": ONE, "threshold": 1.1}, "threshold: "),
    "a threshold by dot": ({"a": ONE, "threshold": 0.5, "metric": "dot"}, "threshold is a cosine"),
    "many texts": ({"a": ["x"] * 100_000}, "16384 texts are the most"),
    "many numbers": ({"a": [[0] * 1024] * 4097}, "may have 4194304 numbers"),
    "many scores": ({"a": [[1]] * 2048, "b": [[1]] * 2049}, "the length of a times that of b is 4196352"),
    "many pairs": ({"a": [[1]] * 5000, "threshold": 0.5}, "the length of a times that of b is 25000000"),
    "much work": ({"a": [[1] * 300] * 2000, "metric": "manhattan"}, "times dimensions is 1200000000"),
    "many matches": ({"a": [[1]] * 4096, "b": [[1]] * 4096, "top_k": 4096}, "times top_k"),
    "much to cluster": ({"a": [[1] * 100] * 2000, "clusters": 2000}, "times clusters times dimensions"),
    "long sides of texts": ({"a": ["x"] * 5000}, "the length of a times dimensions is 5120000"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_compared_is_refused_with_the_reason(client: httpx.Client, wrong: str) -> None:
    body, words = WRONG[wrong]

    answer = client.post("/similarity", json=body)

    if words:
        assert answer.status_code == (404 if "not found" in words else 422), answer.text
        assert set(answer.json()) == {"error", "error_type"}
        assert words in answer.json()["error"]
    else:
        assert np.isfinite(answer.json()["scores"]).all()


def test_numbers_that_are_none_in_json_are_refused(client: httpx.Client) -> None:
    for number in ("NaN", "Infinity", "1e400"):
        answer = client.post("/similarity", content=f'{{"a": [[{number}, 1.0]]}}')

        assert answer.status_code == 422, (number, answer.text)


def test_its_description_has_both_forms(client: httpx.Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/similarity"]["post"]

    ours, tei = operation["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    assert {"a", "b", "metric", "top_k", "clusters", "threshold"} <= set(ours["properties"])
    assert "oneOf" in ours["properties"]["a"]
    assert "inputs" in tei["properties"]
