"""What a search can do besides: filters, pages, groups, contexts, batches, and what is like a document."""

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

DOCUMENTS: list[dict[str, Any]] = [
    {
        "id": "whale",
        "title": "The whale",
        "text": "A captain hunts a white whale.",
        "metadata": {"year": 1851, "lang": "en", "page": 7, "source": "books/whale.pdf"},
    },
    {"id": "emma", "title": "Emma", "text": "A young woman makes matches.", "metadata": {"year": 1815, "lang": "en"}},
    {"id": "faust", "title": "Faust", "text": "Ein Gelehrter und der Teufel.", "metadata": {"lang": "de"}},
    {"id": "note", "text": "A whale note without metadata."},
]

LONG = " ".join(f"Sentence {n} tells about the harbour of town {n}." for n in range(120))


def make(url: str, documents: list[dict[str, Any]], **collection: Any) -> str:
    name = f"more{uuid4().hex}"
    with httpx.Client(base_url=url) as client:
        client.post("/collections", json={"name": name, **collection}).raise_for_status()
        put = client.post("/documents", json={"collection": name, "documents": documents, "wait": 30})
        assert put.status_code == 201, put.text
    return name


@pytest.fixture(scope="module")
def shelf(live: Any) -> str:
    return make(live.url, DOCUMENTS)


@pytest.fixture(scope="module")
def harbours(live_chunking: Any) -> str:
    """One document of many passages, and a short one."""
    return make(live_chunking.url, [{"id": "long", "text": LONG}, {"id": "short", "text": "A harbour."}])


@pytest.fixture
def chunking(live_chunking: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_chunking.url, timeout=30) as session:
        yield session


def get(client: httpx.Client, shelf: str, **query: Any) -> Any:
    answer = client.get("/search", params={"collection": shelf, "q": "whale", **query})
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(client: httpx.Client, shelf: str, **query: Any) -> list[str]:
    return [match["document"] for match in get(client, shelf, **query)["matches"]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("lang = en", {"whale", "emma"}),
        ("lang in (en, de) and not year < 1850", {"whale", "faust"}),
        ("year between 1800 and 1820 or lang = 'de'", {"emma", "faust"}),
        ("not exists_not = 1", {"whale", "emma", "faust", "note"}),
        ("year not exists", {"faust", "note"}),
    ],
)
@pytest.mark.parametrize("mode", ["vector", "hybrid"])
def test_a_filter_holds_before_the_best_are_chosen(
    client: httpx.Client, shelf: str, given: str, expected: set[str], mode: str
) -> None:
    assert set(ids(client, shelf, filter=given, mode=mode, k=len(expected))) == expected
    body = {"q": "whale", "collection": shelf, "filter": given, "mode": mode, "k": len(expected)}
    assert {each["document"] for each in client.post("/search", json=body).json()["matches"]} == expected


def test_a_filter_and_conditions_both_hold(client: httpx.Client, shelf: str) -> None:
    assert ids(client, shelf, filter="lang = en", where="year>1820") == ["whale"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("year >=", "needs a value at character 8"),
        ("lang = $", "character at 8"),
        (" and ".join(["a = 1"] * 101), "101 conditions; 100 are the most"),
        (f"a in ({', '.join(map(str, range(10_001)))})", "10001 values"),
        ("not (" * 20 + "a=1" + ")" * 20, "inside each other"),
        ("a between 1 and x", "one type"),
        ("n >= 1e400", "numbers (whole ones of 64 bits)"),
        ("n = 9223372036854775808", "numbers (whole ones of 64 bits)"),
        ("'a\\\\b' = 1", "no quotes, backslashes"),
        ("not " * 13 + "a=1", "12 `not` and ( )"),
    ],
)
def test_a_filter_that_cannot_be_answered_is_422_with_its_place(
    client: httpx.Client, shelf: str, given: str, says: str
) -> None:
    asked = {"q": "x", "collection": shelf, "filter": given}
    answers = [client.post("/search", json=asked), client.post("/search/batch", json={"searches": [asked]})]
    if len(given) < 10_000:
        answers.append(client.get("/search", params=asked))
        answers.append(client.get("/documents/whale/similar", params={"collection": shelf, "filter": given}))

    for answer in answers:
        assert answer.status_code == 422
        assert says in answer.json()["detail"]
        assert answer.json()["param"] in {"filter", "searches.0.filter"}


def test_a_condition_that_cannot_be_answered_is_422_and_named_where(client: httpx.Client, shelf: str) -> None:
    answers = [
        client.post("/search", json={"q": "x", "collection": shelf, "where": {'a"b': 1}, "filter": "a = 1"}),
        client.get("/search", params={"q": "x", "collection": shelf, "where": 'a"b=1', "filter": "a = 1"}),
        client.get("/search", params={"q": "x", "collection": shelf, "where": "=1"}),
    ]

    for answer in answers:
        assert (answer.status_code, answer.json()["param"]) == (422, "where"), answer.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"collection": 5}, "collection"),
        ({"collection": ["a", 5]}, "collection"),
        ({"collection": {"a": 5}}, "collection"),
        ({"collections": "a"}, "collections"),
        ({"where": {"a": [{"b": 2**70}]}}, "where"),
        ({"q": 5}, "q"),
    ],
)
def test_what_is_of_a_wrong_type_is_named_by_its_place_alone(
    client: httpx.Client, body: dict[str, Any], param: str
) -> None:
    alone = client.post("/search", json={"q": "x", **body})
    among = client.post("/search/batch", json={"searches": [{"q": "x"}, {"q": "x", **body}]})

    assert (alone.status_code, alone.json()["param"]) == (422, param)
    assert (among.status_code, among.json()["param"]) == (422, f"searches.1.{param}")


def test_conditions_and_a_filter_are_bounded_together(client: httpx.Client, shelf: str) -> None:
    where = {f"k{n}": n for n in range(60)}

    answer = client.post(
        "/search", json={"q": "x", "collection": shelf, "where": where, "filter": " or ".join(["a = 1"] * 60)}
    )

    assert "120 conditions" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"k": 10**9}, "k"),
        ({"offset": 1000}, "offset"),
        ({"offset": 995, "k": 10}, "offset"),
        ({"offset": 1, "after": "x"}, "offset"),
        ({"after": "x"}, "after"),
        ({"diversity": 2}, "diversity"),
        ({"fusion": "average"}, "fusion"),
        ({"vector_weight": 0, "keyword_weight": 0}, "vector_weight"),
        ({"group": "year"}, "group"),
        ({"context": 11}, "context"),
        ({"snippet": 5}, "snippet"),
        ({"format": "xml"}, "format"),
        ({"tokens": 100}, "tokens"),
        ({"collection": ",".join(f"c{n}" for n in range(17))}, "collection"),
    ],
)
def test_what_is_out_of_range_is_422_and_named(
    client: httpx.Client, shelf: str, query: dict[str, Any], param: str
) -> None:
    answer = client.get("/search", params={"collection": shelf, "q": "whale", **query})

    assert (answer.status_code, answer.json()["param"]) == (422, param), answer.text


def test_an_unknown_collection_is_404_and_named_among_others(client: httpx.Client, shelf: str) -> None:
    for collection in ("nowhere", f"{shelf},nowhere"):
        answer = client.get("/search", params={"q": "x", "collection": collection})

        assert answer.status_code == 404
        assert "nowhere" in answer.json()["detail"]


@pytest.mark.parametrize("mode", ["hybrid", "vector", "keyword"])
@pytest.mark.parametrize("more", [{}, {"group": "document"}, {"diversity": 0.4}])
def test_pages_follow_each_other_by_next(
    chunking: httpx.Client, harbours: str, mode: str, more: dict[str, Any]
) -> None:
    asked = {"q": "harbour of town 7", "mode": mode, **more}
    whole = [(each["document"], each["ordinal"]) for each in get(chunking, harbours, k=100, **asked)["matches"]]

    pages: list[tuple[str, int]] = []
    after: dict[str, str] = {}
    while True:
        answer = get(chunking, harbours, k=2, **asked, **after)
        pages += [(each["document"], each["ordinal"]) for each in answer["matches"]]
        if answer["next"] is None:
            break
        after = {"after": answer["next"]}

    assert sorted(pages) == sorted(whole)
    assert get(chunking, harbours, k=100, **asked)["next"] is None
    offset = get(chunking, harbours, k=2, offset=1, **asked)["matches"]
    assert [(each["document"], each["ordinal"]) for each in offset] == whole[1:3]


@pytest.mark.parametrize("mode", ["hybrid", "vector", "keyword"])
def test_pages_by_offset_of_documents_that_are_alike_are_the_whole_in_parts(client: httpx.Client, mode: str) -> None:
    alike = [{"id": f"ticket-{n}", "text": "The printer reported an error."} for n in range(60)]
    tickets = make(str(client.base_url), alike)

    whole = ids(client, tickets, q="printer error", mode=mode, k=60)

    assert len(set(whole)) == 60
    pages = [ids(client, tickets, q="printer error", mode=mode, k=10, offset=offset) for offset in range(0, 60, 10)]
    assert [each for page in pages for each in page] == whole


def test_a_next_of_another_question_is_refused(client: httpx.Client, shelf: str) -> None:
    after = get(client, shelf, k=1)["next"]

    answer = client.get("/search", params={"collection": shelf, "q": "captain", "after": after})

    assert answer.status_code == 422
    assert "another search" in answer.json()["detail"]


def test_matches_are_grouped_by_document_with_their_other_passages(chunking: httpx.Client, harbours: str) -> None:
    matches = get(chunking, harbours, q="harbour of town 7", group="document", mode="vector")["matches"]

    by_document = {each["document"]: each for each in matches}
    assert set(by_document) == {"long", "short"}
    assert len(by_document["long"]["passages"]) == 2
    assert by_document["short"]["passages"] == []
    assert by_document["long"]["score"] >= by_document["long"]["passages"][0]["score"]


def test_a_document_has_no_more_passages_than_asked_for(chunking: httpx.Client, harbours: str) -> None:
    assert sorted(ids(chunking, harbours, q="harbour", per_document=1, mode="vector")) == ["long", "short"]


def test_a_match_comes_with_what_stands_around_it(chunking: httpx.Client, harbours: str) -> None:
    text = chunking.get("/documents/long", params={"collection": harbours}).json()["text"]

    matches = get(chunking, harbours, q="harbour of town 7", context=1)["matches"]

    assert len(matches) > 3
    for match in matches:
        around = match["context"]
        assert text[around["start"] : around["end"]] == around["text"] or match["document"] == "short"
        assert around["first"] <= match["ordinal"] <= around["last"] <= around["first"] + 2
        assert match["text"] in around["text"]
    assert {each["context"]["last"] - each["context"]["first"] for each in matches if each["document"] == "long"} >= {2}


def test_words_that_matched_are_told_and_shown(client: httpx.Client, shelf: str) -> None:
    (match,) = get(client, shelf, q="hunting whales", highlight=True, snippet=20, k=1)["matches"]

    assert [match["text"][a:b] for a, b in match["highlights"]] == ["hunts", "whale"]
    part = match["snippet"]
    assert match["text"][part["start"] : part["end"]] == part["text"]
    assert [part["text"][a:b] for a, b in part["highlights"]] == ["hunts"] or "whale" in part["text"]


def test_what_was_not_asked_for_is_not_there(client: httpx.Client, shelf: str) -> None:
    (match,) = get(client, shelf, k=1)["matches"]

    assert not {"passages", "context", "highlights", "snippet", "explanation"} & set(match)
    assert match["collection"] == shelf


@pytest.mark.parametrize("fusion", ["rrf", "dbsf"])
def test_the_parts_of_a_score_are_explained(client: httpx.Client, shelf: str, fusion: str) -> None:
    answer = get(client, shelf, q='"white whale"', explain=True, fusion=fusion, keyword_weight=0.5)

    about = answer["fusion"]
    assert (about["fusion"], about["literal"], about["vector_weight"]) == (fusion, 1.0, 1.0)
    for rank, match in enumerate(answer["matches"], start=1):
        why = match["explanation"]
        shares = [leg["share"] for leg in (why["vector"], why["keyword"]) if leg]
        assert sum(shares) == pytest.approx(why["fused_score"])
        assert why["fused_score"] == match["score"]
        assert why["rank"] == rank
    assert get(client, shelf, explain=True, mode="vector")["matches"][0]["explanation"]["vector"]["share"] is None


@pytest.mark.parametrize("fusion", ["rrf", "dbsf"])
def test_the_parts_of_a_score_add_up_however_many_are_asked_for(client: httpx.Client, fusion: str) -> None:
    notes = [{"id": f"n{n}", "text": f"otter {'river ' * (n % 7)}{'sleep ' * (n % 4)}w{n}"} for n in range(160)]
    many = make(str(client.base_url), notes)

    matches = get(client, many, q="otter river sleeps", k=160, explain=True, fusion=fusion)["matches"]

    caps = []
    for match in matches:
        why = match["explanation"]
        shares = [leg["share"] for leg in (why["vector"], why["keyword"]) if leg]
        assert sum(shares) == pytest.approx(why["fused_score"])
        assert why["fused_score"] + why["cap"] == pytest.approx(match["score"])
        caps.append(why["cap"])
    assert len(matches) == 160
    assert set(caps[:50]) == {0.0}
    assert min(caps) < 0.0 == max(caps)
    assert get(client, many, q="otter", explain=True, mode="keyword")["matches"][0]["explanation"]["cap"] is None


@pytest.fixture(scope="module")
def ports(live: Any) -> str:
    return make(live.url, [{"id": "short", "text": "A harbour."}])


def test_several_collections_are_searched_at_once(client: httpx.Client, shelf: str, ports: str) -> None:
    for asked in ({"collection": f"{shelf},{ports}"}, {"collection": [shelf, ports]}):
        answer = client.get("/search", params={"q": "whale harbour", "k": 20, **asked}).json()

        assert {each["collection"] for each in answer["matches"]} == {shelf, ports}
        assert answer["collection"] == f"{shelf},{ports}"
    body = {"q": "whale harbour", "collection": [shelf, ports], "mode": "keyword"}
    assert {each["collection"] for each in client.post("/search", json=body).json()["matches"]} == {shelf, ports}


def test_the_default_collection_that_is_not_made_yet_adds_nothing(start: Any) -> None:
    server = start()
    name = make(server.url, DOCUMENTS)
    with httpx.Client(base_url=server.url) as client:
        assert set(ids(client, f"default,{name}")) == {"whale", "emma", "faust", "note"}
        assert get(client, "default", format="context")["citations"] == []
        batch = {"searches": [{"q": "whale"}, {"q": "whale", "collection": name, "k": 1}]}
        assert [len(each["matches"]) for each in client.post("/search/batch", json=batch).json()["results"]] == [0, 1]


def test_a_context_numbers_its_passages_and_cites_them(client: httpx.Client, shelf: str) -> None:
    answer = get(client, shelf, format="context", mode="keyword")

    whale = next(each for each in answer["citations"] if each["document"] == "whale")
    assert (whale["page"], whale["source"], whale["title"]) == (7, "books/whale.pdf", "The whale")
    assert f"[{whale['number']}] The whale (page 7, books/whale.pdf)\nA captain hunts" in answer["context"]
    assert [each["number"] for each in answer["citations"]] == [1, 2]
    text = client.get("/search", params={"collection": shelf, "q": "whale", "mode": "keyword", "format": "text"})
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert text.text == answer["context"]


@pytest.mark.parametrize("tokens", [1, 20, 60, 500, 5000])
def test_a_context_keeps_to_its_budget(chunking: httpx.Client, harbours: str, tokens: int) -> None:
    answer = get(chunking, harbours, q="harbour of town 7", format="context", tokens=tokens, context=1)

    assert answer["tokens"] <= tokens
    assert answer["counted_by"] == "hash"
    assert bool(answer["citations"]) == bool(answer["context"]) == (tokens > 1)
    text = chunking.get("/documents/long", params={"collection": harbours}).json()["text"]
    for each in answer["citations"]:
        if each["document"] == "long":
            assert text[each["start"] : each["end"]] in answer["context"]


def test_passages_of_a_context_that_touch_are_one(chunking: httpx.Client, harbours: str) -> None:
    answer = get(chunking, harbours, q="harbour of town", format="context", tokens=5000, k=100)

    assert [each["document"] for each in answer["citations"] if each["document"] == "long"] == ["long"]
    assert LONG in answer["context"]


def test_many_searches_are_answered_in_their_order(client: httpx.Client, shelf: str, ports: str) -> None:
    searches: list[dict[str, Any]] = [
        {"q": "whale", "collection": shelf, "k": 1},
        {"q": "harbour", "collection": ports, "mode": "keyword", "format": "context"},
        {"q": "teufel", "collection": [shelf, ports], "k": 1},
    ]

    answer = client.post("/search/batch", json={"searches": searches})

    assert answer.status_code == 200, answer.text
    first, second, third = answer.json()["results"]
    alone = client.post("/search", json=searches[0]).json()
    assert first["matches"] == alone["matches"]
    assert second["citations"]
    assert third["matches"][0]["document"] == "faust"


@pytest.mark.parametrize(
    ("searches", "param"),
    [
        ([], "searches"),
        ([{"q": "x"}] * 101, "searches"),
        ([{"q": "x"}, {"q": " "}], "searches.1.q"),
        ([{"q": "x", "k": 0}], "searches.0.k"),
        ([{"q": "x"}, {"q": "x", "filter": "a ="}], "searches.1.filter"),
        ([{"q": "x", "format": "text"}], "searches.0.format"),
    ],
)
def test_a_batch_with_a_wrong_search_is_422_and_says_which(
    client: httpx.Client, searches: list[dict[str, Any]], param: str
) -> None:
    answer = client.post("/search/batch", json={"searches": searches})

    assert (answer.status_code, answer.json()["param"]) == (422, param), answer.text


def test_documents_like_another_are_found_without_a_question(client: httpx.Client, shelf: str) -> None:
    answer = client.get("/documents/whale/similar", params={"collection": shelf, "k": 2}).json()

    assert answer["document"] == "whale"
    assert answer["matches"][0]["document"] == "note"
    assert len(answer["matches"]) == 2
    filtered = client.get("/documents/whale/similar", params={"collection": shelf, "filter": "lang = de"}).json()
    assert [each["document"] for each in filtered["matches"]] == ["faust"]
    conditioned = client.get("/documents/whale/similar", params={"collection": shelf, "where": "year<1820"}).json()
    assert [each["document"] for each in conditioned["matches"]] == ["emma"]


def test_passages_of_a_document_that_is_alike_are_given(chunking: httpx.Client, harbours: str) -> None:
    answer = chunking.get("/documents/short/similar", params={"collection": harbours, "per_document": 3}).json()

    (match,) = answer["matches"]
    assert (match["document"], len(match["passages"])) == ("long", 2)


@pytest.mark.parametrize("path", ["/documents/ghost/similar", "/documents/whale/similar?collection=nowhere"])
def test_nothing_is_like_a_document_that_is_not_there(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_an_id_does_not_end_where_a_documents_likes_are(client: httpx.Client, shelf: str) -> None:
    answer = client.post("/documents", json={"collection": shelf, "id": "a/similar", "text": "x"})

    assert answer.status_code == 422
    assert "/similar" in answer.json()["detail"]


def test_a_model_of_another_space_is_409_and_the_collection_named(client: httpx.Client, shelf: str) -> None:
    answer = client.get("/search", params={"q": "x", "collection": f"{shelf},default", "model": "all-minilm-l6-v2"})

    assert answer.status_code == 409
    assert shelf in answer.json()["detail"]


@pytest.mark.parametrize("q", ["a" * 32_769, "漢" * 32_769, '"' * 32_769])
def test_a_question_that_is_too_long_is_422_however_it_is_asked(client: httpx.Client, shelf: str, q: str) -> None:
    asked = {"collection": shelf, "q": q}
    answers = [
        client.post("/search", json=asked),
        client.post("/search/batch", json={"searches": [{"q": "whale", "collection": shelf}, asked]}),
    ]
    if q.isalpha() and q.isascii():  # the others do not fit into an address
        answers.append(client.get("/search", params=asked))

    for answer in answers:
        assert answer.status_code == 422
        assert "q has 32,769 characters; 32,768 are the most" in answer.json()["detail"]
        assert answer.json()["param"] in {"q", "searches.1.q"}


@pytest.mark.parametrize("mode", ["hybrid", "vector", "keyword"])
@pytest.mark.parametrize("part", ["a", "漢", '"', "*", "“a", '"a b c"* '])
def test_a_question_as_long_as_can_be_is_answered_soon(client: httpx.Client, shelf: str, part: str, mode: str) -> None:
    q = ("whale " + part * 32_768)[:32_768]
    began = time.perf_counter()

    answer = client.post(
        "/search", json={"collection": shelf, "q": q, "mode": mode, "highlight": True, "snippet": 80, "explain": True}
    )

    assert answer.status_code == 200, answer.text
    assert {"whale", "note"} <= {each["document"] for each in answer.json()["matches"]}
    assert time.perf_counter() - began < 5


def test_a_condition_of_many_spaces_is_read_at_once(client: httpx.Client, shelf: str) -> None:
    began = time.perf_counter()

    answer = client.get("/search", params={"collection": shelf, "q": "whale", "where": "a" + " " * 20_000 + "b"})

    assert (answer.status_code, answer.json()["param"]) == (422, "where")
    assert time.perf_counter() - began < 2
    assert ids(client, shelf, where="lang  = de") == ["faust"]


def test_phrases_and_beginnings_are_told_of_wherever_a_question_is_described(client: httpx.Client) -> None:
    routes = client.get("/openapi.json").json()["paths"]

    by_address = next(each for each in routes["/search"]["get"]["parameters"] if each["name"] == "q")
    for path in ("/search", "/search/batch"):
        schema = routes[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        body = schema["properties"].get("searches", {}).get("items", schema)
        for told in (by_address["description"], body["properties"]["q"]["description"]):
            assert "phrase" in told
            assert "`walr*`" in told
