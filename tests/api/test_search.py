"""Search over HTTP."""

from typing import Any
from uuid import uuid4

import httpx
import pytest

BOOKS = [
    {
        "id": "whale",
        "title": "The whale",
        "text": "A captain hunts a white whale.",
        "metadata": {"year": 1851, "lang": "en"},
    },
    {"id": "emma", "title": "Emma", "text": "A young woman makes matches.", "metadata": {"year": 1815, "lang": "en"}},
    {
        "id": "faust",
        "title": "Faust",
        "text": "Ein Gelehrter und der Teufel.",
        "metadata": {"year": 1808, "lang": "de"},
    },
    {"id": "note", "text": "A whale note without metadata."},
]


@pytest.fixture(scope="module")
def shelf(live: Any) -> str:
    name = f"shelf{uuid4().hex}"
    with httpx.Client(base_url=live.url) as client:
        client.post("/collections", json={"name": name}).raise_for_status()
        client.post("/documents", json={"collection": name, "documents": BOOKS}).raise_for_status()
    return name


def ids(client: httpx.Client, shelf: str, **query: Any) -> list[str]:
    answer = client.get("/search", params={"collection": shelf, **query})
    assert answer.status_code == 200, answer.text
    return [match["document"] for match in answer.json()["matches"]]


@pytest.mark.parametrize("mode", ["hybrid", "vector", "keyword"])
def test_each_mode_puts_the_right_passage_first(client: httpx.Client, shelf: str, mode: str) -> None:
    answer = client.get("/search", params={"collection": shelf, "q": "captain of the white whale", "mode": mode}).json()

    assert answer["matches"][0]["document"] == "whale"
    assert answer["model"] == (None if mode == "keyword" else "hash")
    scores = [match["score"] for match in answer["matches"]]
    assert scores == sorted(scores, reverse=True)


def test_the_parts_of_a_score_tell_where_a_match_came_from(client: httpx.Client, shelf: str) -> None:
    matches = client.get("/search", params={"collection": shelf, "q": "whale", "mode": "vector"}).json()["matches"]

    assert {match["keyword_rank"] for match in matches} == {None}
    assert [match["vector_rank"] for match in matches] == [1, 2, 3, 4]


def test_k_and_min_score_cut_the_tail(client: httpx.Client, shelf: str) -> None:
    assert len(ids(client, shelf, q="whale", k=1)) == 1
    assert ids(client, shelf, q="whale", mode="vector", min_score=0.99) == []


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["lang=en"], {"whale", "emma"}),
        (["lang!=en"], {"faust", "note"}),
        (["year>=1815", "lang=en"], {"whale", "emma"}),
        (["year<1815"], {"faust"}),
        (['lang="de"'], {"faust"}),
        (["year=1851.0"], {"whale"}),
        (["year=nineteen"], set()),
        (["lang=en' OR 1=1 --"], set()),
    ],
)
@pytest.mark.parametrize("mode", ["vector", "hybrid"])
def test_metadata_filters_come_before_the_best_are_chosen(
    client: httpx.Client, shelf: str, where: list[str], expected: set[str], mode: str
) -> None:
    assert set(ids(client, shelf, q="whale", where=where, mode=mode, k=len(expected) or 1)) == expected


def test_a_body_can_say_what_a_url_can(client: httpx.Client, shelf: str) -> None:
    body = {"q": "whale", "collection": shelf, "where": {"lang": {"in": ["en", "fr"]}, "year": {">": 1815, "<": 1900}}}

    answer = client.post("/search", json=body)

    assert [match["document"] for match in answer.json()["matches"]] == ["whale"]


@pytest.mark.parametrize(
    "q",
    ['"', "whale AND", "NOT whale", "whale*", "title:whale", "(whale", "NEAR(whale, 3)", "^whale", "-whale",
     "'; DROP TABLE chunk; --", "\\", "whale\0", "\u202ewhale", "鯨", "*", "AND OR NOT", "a" * 5000],
)  # fmt: skip
def test_nothing_in_a_question_is_an_operator(client: httpx.Client, shelf: str, q: str) -> None:
    assert client.get("/search", params={"collection": shelf, "q": q}).status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"q": ""},
        {"q": "   "},
        {"q": "x", "k": 0},
        {"q": "x", "k": 10**9},
        {"q": "x", "k": "many"},
        {"q": "x", "mode": "psychic"},
        {"q": "x", "min_score": "nan"},
        {"q": "x", "where": "novalue"},
    ],
)
def test_a_wrong_question_is_422(client: httpx.Client, shelf: str, query: dict[str, Any]) -> None:
    answer = client.get("/search", params={"collection": shelf, **query})

    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "where",
    [{"a": {}}, {"a": {"like": "x"}}, {"a": {"in": []}}, {"a": {"in": "x"}}, {"a": [1]}, {"a": None}, {"a": {"=": {}}}],
)
def test_a_wrong_filter_is_422_and_is_told(client: httpx.Client, shelf: str, where: dict[str, Any]) -> None:
    answer = client.post("/search", json={"q": "x", "collection": shelf, "where": where})

    assert answer.status_code == 422
    assert "where.a" in answer.json()["detail"]
