"""Search over HTTP."""

from collections.abc import Iterator
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
        {"q": "x", "where": "lang==en"},
        {"q": "x", "where": "lang=>1"},
        {"q": "x", "where": "lang!!en"},
        {"q": "x", "where": [f"lang!={n}" for n in range(101)]},
    ],
)
def test_a_wrong_question_is_422(client: httpx.Client, shelf: str, query: dict[str, Any]) -> None:
    answer = client.get("/search", params={"collection": shelf, **query})

    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("path", "name", "hint"),
    [
        ("/search?q=x&mod=vector", "mod", "did you mean mode?"),
        ("/search?q=x&limit=3", "limit", "there is "),
        ("/documents?colection=x", "colection", "did you mean collection?"),
        ("/documents/x?q=y", "q", "there is collection"),
        ("/collections?name=x", "name", "there is none here"),
    ],
)
def test_a_parameter_that_a_route_does_not_have_is_422(client: httpx.Client, path: str, name: str, hint: str) -> None:
    answer = client.get(path)

    assert (answer.status_code, answer.json()["param"]) == (422, name)
    assert hint in answer.json()["detail"]


@pytest.mark.parametrize("address", ["/search?q=%ff", "/search?q=x&%c3=1", "/documents/%ff", "/collections/%ed%a0%80"])
def test_an_address_that_is_not_utf8_is_422(client: httpx.Client, address: str) -> None:
    answer = client.get(address)

    assert answer.status_code == 422
    assert "UTF-8" in answer.json()["detail"]


def test_a_sign_that_is_no_comparison_is_told(client: httpx.Client, shelf: str) -> None:
    answer = client.get("/search", params={"collection": shelf, "q": "x", "where": "lang==en"})

    assert "== is none of" in answer.json()["detail"]
    assert ids(client, shelf, q="x", where='lang="=en"') == []


@pytest.mark.parametrize("mode", ["vector", "keyword", "hybrid"])
def test_a_choice_of_ten_thousand_and_a_hundred_conditions_are_answered(
    client: httpx.Client, shelf: str, mode: str
) -> None:
    choice = {"year": {"in": list(range(1700, 11_700))}} | {f"k{n}": {"!=": n} for n in range(99)}

    answer = client.post("/search", json={"q": "whale", "collection": shelf, "mode": mode, "where": choice})

    assert answer.status_code == 200, answer.text
    assert answer.json()["matches"][0]["document"] == "whale"


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"year": {"in": list(range(10_001))}}, "10000 are the most"),
        ({"a": {"in": list(range(6_000))}, "b": {"in": list(range(6_000))}}, "12000 values"),
        ({f"k{n}": n for n in range(101)}, "101 conditions"),
        ({f"k{n}": {">": 1, "<": 9} for n in range(51)}, "102 conditions"),
    ],
)
def test_a_filter_that_is_too_large_is_422_with_its_limit(
    client: httpx.Client, shelf: str, where: dict[str, Any], says: str
) -> None:
    answer = client.post("/search", json={"q": "x", "collection": shelf, "where": where})

    assert (answer.status_code, answer.json()["param"]) == (422, "where")
    assert says in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [{"k": True}, {"k": "10"}, {"k": 1.0}, {"min_score": True}, {"min_score": "0.5"}, {"mode": 1}, {"where": []}],
)
def test_a_value_of_another_type_is_422_and_named(client: httpx.Client, shelf: str, body: dict[str, Any]) -> None:
    answer = client.post("/search", json={"q": "x", "collection": shelf, **body})

    assert (answer.status_code, answer.json()["param"]) == (422, next(iter(body)))


def test_a_whole_number_is_a_least_score(client: httpx.Client, shelf: str) -> None:
    answer = client.post("/search", json={"q": "whale", "collection": shelf, "min_score": 0})

    assert answer.status_code == 200


def test_a_condition_that_is_very_long_is_not_repeated_whole(client: httpx.Client, shelf: str) -> None:
    answer = client.post("/search", json={"q": "x", "collection": shelf, "where": {"k" * 5000: {"like": 1}}})

    assert answer.status_code == 422
    assert len(answer.json()["detail"]) <= 500


@pytest.mark.parametrize(
    "where",
    [{"a": {}}, {"a": {"like": "x"}}, {"a": {"in": []}}, {"a": {"in": "x"}}, {"a": [1]}, {"a": None}, {"a": {"=": {}}}],
)
def test_a_wrong_filter_is_422_and_is_told(client: httpx.Client, shelf: str, where: dict[str, Any]) -> None:
    answer = client.post("/search", json={"q": "x", "collection": shelf, "where": where})

    assert answer.status_code == 422
    assert "where.a" in answer.json()["detail"]


@pytest.fixture(scope="module")
def reranked_shelf(live_reranking: Any) -> str:
    name = f"shelf{uuid4().hex}"
    texts = {
        "many": "whale whale whale whale whale",
        "one": "They hold hands at night, captain and whale, in the sea of song and sleep, while otters dig.",
    }
    documents = [{"id": id_, "text": text} for id_, text in texts.items()]
    with httpx.Client(base_url=live_reranking.url) as client:
        client.post("/collections", json={"name": name}).raise_for_status()
        client.post("/documents", json={"collection": name, "documents": documents}).raise_for_status()
    return name


@pytest.fixture
def reranking(live_reranking: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_reranking.url, timeout=30) as session:
        yield session


@pytest.mark.parametrize("mode", ["hybrid", "vector", "keyword"])
def test_a_reranker_turns_the_order_round(reranking: httpx.Client, reranked_shelf: str, mode: str) -> None:
    asked = {"q": "whale captain", "collection": reranked_shelf, "mode": mode}

    plain = reranking.get("/search", params=asked).json()
    answer = reranking.get("/search", params={**asked, "rerank": "true"}).json()

    order = [match["document"] for match in plain["matches"]]
    assert set(order) == {"many", "one"}
    assert (plain["reranker"], {match["rerank_score"] for match in plain["matches"]}) == (None, {None})
    assert (answer["reranker"], answer["model"]) == ("shared-words", plain["model"])
    assert [match["document"] for match in answer["matches"]] == ["one", "many"]
    assert order == ["many", "one"] or mode == "keyword"
    scores = [match["score"] for match in answer["matches"]]
    assert scores == [match["rerank_score"] for match in answer["matches"]]
    assert scores == pytest.approx([0.7310586, 0.2689414])
    ranks = {match["document"]: (match["vector_rank"], match["keyword_rank"]) for match in plain["matches"]}
    assert {match["document"]: (match["vector_rank"], match["keyword_rank"]) for match in answer["matches"]} == ranks


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"rerank": True}, "shared-words"),
        ({"reranker": "shared-words"}, "shared-words"),
        ({"reranker": "Someone/Shared-Words", "rerank": True}, "shared-words"),
        ({"reranker": "", "rerank": True}, "shared-words"),
        ({"reranker": "shared-words", "rerank": False}, None),
        ({"rerank": False}, None),
        ({"rerank": None, "reranker": None}, None),
    ],
)
def test_naming_a_reranker_asks_for_it(
    reranking: httpx.Client, reranked_shelf: str, more: dict[str, Any], expected: str | None
) -> None:
    answer = reranking.post("/search", json={"q": "whale", "collection": reranked_shelf, **more})

    assert answer.json()["reranker"] == expected


def test_the_least_score_and_the_limit_hold_after_reranking(reranking: httpx.Client, reranked_shelf: str) -> None:
    asked = {"q": "whale captain", "collection": reranked_shelf, "rerank": True}

    for more in ({"min_score": 0.5}, {"k": 1}):
        matches = reranking.post("/search", json={**asked, **more}).json()["matches"]
        assert [match["document"] for match in matches] == ["one"]


@pytest.mark.parametrize(
    ("more", "status", "says"),
    [
        ({"reranker": "nobody"}, 404, "nobody"),
        ({"reranker": "hash"}, 422, '"hash" does not support reranking'),
        ({"reranker": "ms-marco-minilm-l6-v2"}, 503, "appliance pull ms-marco-minilm-l6-v2"),
        ({"rerank": "yes"}, 422, "rerank"),
        ({"rerank": 1}, 422, "rerank"),
        ({"model": "shared-words"}, 422, '"shared-words" does not support embeddings'),
    ],
)
def test_a_reranker_that_cannot_be_had_is_an_error_and_no_other_order(
    reranking: httpx.Client, reranked_shelf: str, more: dict[str, Any], status: int, says: str
) -> None:
    answer = reranking.post("/search", json={"q": "whale", "collection": reranked_shelf, **more})

    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]


def test_reranking_without_a_reranker_is_404_with_the_way_out(client: httpx.Client, shelf: str) -> None:
    answer = client.get("/search", params={"q": "whale", "collection": shelf, "rerank": "true"})

    assert answer.status_code == 404
    assert "ms-marco-minilm-l6-v2" in answer.json()["detail"]


def test_a_collection_that_is_not_made_yet_is_empty_to_a_reranked_search(reranking: httpx.Client) -> None:
    answer = reranking.get("/search", params={"q": "whale", "rerank": "true"})

    assert answer.status_code == 200
    assert answer.json()["reranker"] == "shared-words"


def test_a_collection_is_not_made_with_a_reranker(reranking: httpx.Client) -> None:
    answer = reranking.post("/collections", json={"name": "wrong", "model": "shared-words"})

    assert answer.status_code == 422
    assert "does not support embeddings" in answer.json()["detail"]
