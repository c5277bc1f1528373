"""Documents over HTTP: in, found, read back, out."""

import threading
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest


@pytest.fixture
def collection(client: httpx.Client) -> str:
    name = f"c{uuid4().hex}"
    assert client.post("/collections", json={"name": name}).status_code == 201
    return name


def put(client: httpx.Client, collection: str, **body: Any) -> httpx.Response:
    return client.post("/documents", json={"collection": collection, **body})


def found(client: httpx.Client, collection: str, q: str, **query: Any) -> list[str]:
    answer = client.get("/search", params={"collection": collection, "q": q, **query})
    assert answer.status_code == 200, answer.text
    return [match["document"] for match in answer.json()["matches"]]


def test_a_document_is_found_once_201_was_answered(client: httpx.Client, collection: str) -> None:
    answer = put(client, collection, id="otters", title="On otters", text="Otters hold hands while they sleep.")

    assert answer.status_code == 201
    assert answer.json() == {
        "collection": collection,
        "documents": [{"id": "otters", "change": "created", "state": "ready", "chunks": 1, "tokens": 6, "error": None}],
    }
    assert found(client, collection, "sleeping otters") == ["otters"]


def test_a_match_holds_what_a_citation_needs(client: httpx.Client, collection: str) -> None:
    text = "Café first.\n\nOtters hold hands."
    put(client, collection, id="a/b c.txt", title="T", text=text, metadata={"page": 3, "tags": ["x"]})

    match = client.get("/search", params={"collection": collection, "q": "otters"}).json()["matches"][0]

    assert match["document"] == "a/b c.txt"
    assert match["title"] == "T"
    assert match["metadata"] == {"page": 3, "tags": ["x"]}
    assert match["ordinal"] == 0
    assert match["text"] == text[match["start"] : match["end"]]
    assert match["vector_rank"] == match["keyword_rank"] == 1
    assert -1 <= match["vector_score"] <= 1
    assert match["score"] == pytest.approx(1.0)


def test_texts_and_documents_are_taken_too(client: httpx.Client, collection: str) -> None:
    texts = put(client, collection, texts=["one fish", "two fish"])
    documents = put(client, collection, documents=[{"text": "red fish"}, {"id": "blue", "text": "blue fish"}])

    assert [each["state"] for each in texts.json()["documents"]] == ["ready"] * 2
    assert documents.json()["documents"][1]["id"] == "blue"
    assert len(found(client, collection, "fish")) == 4


def test_the_same_content_again_changes_nothing_and_says_so(client: httpx.Client, collection: str) -> None:
    first = put(client, collection, text="the same").json()["documents"][0]

    again = put(client, collection, text="the same").json()["documents"][0]

    assert (first["change"], again["change"]) == ("created", "unchanged")
    assert first["id"] == again["id"]
    assert again["state"] == "ready"


def test_the_same_id_again_replaces(client: httpx.Client, collection: str) -> None:
    put(client, collection, id="x", text="walrus " * 2000)

    answer = put(client, collection, id="x", text="penguin")

    assert answer.json()["documents"][0]["change"] == "updated"
    assert found(client, collection, "penguin", mode="keyword") == ["x"]
    assert found(client, collection, "walrus", mode="keyword") == []
    assert len(client.get("/documents/x/chunks", params={"collection": collection}).json()["chunks"]) == 1


def test_files_are_taken_and_a_bad_one_does_not_take_its_neighbours_down(client: httpx.Client, collection: str) -> None:
    files = [
        ("file", ("good.md", b"# Heading\n\nA *good* file about badgers.", "text/markdown")),
        ("file", ("bad.bin", bytes(range(256)) * 10, "application/octet-stream")),
        (
            "file",
            ("page.html", b"<html><title>Page</title><p>Foxes and badgers.</p><script>evil()</script>", "text/html"),
        ),
    ]

    answer = client.post("/documents", data={"collection": collection}, files=files)

    assert answer.status_code == 201, answer.text
    states = [(each["change"], each["state"]) for each in answer.json()["documents"]]
    assert states == [("created", "ready"), ("refused", "refused"), ("created", "ready")]
    assert answer.json()["documents"][1]["error"]
    assert len(found(client, collection, "badgers")) == 2
    assert found(client, collection, "evil", mode="keyword") == []


def test_files_may_bring_their_ids(client: httpx.Client, collection: str) -> None:
    files = [("file", ("a.txt", b"alpha", "text/plain")), ("file", ("b.txt", b"beta", "text/plain"))]

    answer = client.post("/documents", data={"collection": collection, "id": ["dir/a.txt", "dir/b.txt"]}, files=files)

    assert [each["id"] for each in answer.json()["documents"]] == ["dir/a.txt", "dir/b.txt"]
    document = client.get("/documents/dir/a.txt", params={"collection": collection}).json()
    assert document["title"] == "a.txt"
    assert document["text"] == "alpha"


def test_nothing_readable_is_422(client: httpx.Client, collection: str) -> None:
    answer = client.post(
        "/documents", data={"collection": collection}, files=[("file", ("x.zip", b"PK\x03\x04" + bytes(100)))]
    )

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["documents"][0]["change"] == "refused"


def test_a_document_is_read_back_with_its_text(client: httpx.Client, collection: str) -> None:
    put(client, collection, id="x", title="T", text="Some text.", metadata={"a": None})

    document = client.get("/documents/x", params={"collection": collection}).json()

    assert document["text"] == "Some text."
    assert (document["state"], document["chunks"], document["bytes"]) == ("ready", 1, 10)
    assert document["metadata"] == {"a": None}
    assert document["created"] <= document["updated"]


def test_documents_are_listed_in_pages(client: httpx.Client, collection: str) -> None:
    put(client, collection, documents=[{"id": str(n), "text": f"number {n}"} for n in range(5)])

    first = client.get("/documents", params={"collection": collection, "limit": 3}).json()
    rest = client.get("/documents", params={"collection": collection, "limit": 3, "after": first["next"]}).json()

    assert [each["id"] for each in first["documents"] + rest["documents"]] == ["0", "1", "2", "3", "4"]
    assert rest["next"] is None
    assert "text" not in first["documents"][0]


def test_a_removed_document_is_gone(client: httpx.Client, collection: str) -> None:
    put(client, collection, id="x", text="ephemeral")

    assert client.delete("/documents/x", params={"collection": collection}).status_code == 204

    assert client.get("/documents/x", params={"collection": collection}).status_code == 404
    assert client.delete("/documents/x", params={"collection": collection}).status_code == 404
    assert found(client, collection, "ephemeral") == []


def test_without_waiting_the_answer_is_202_and_a_place_to_poll(client: httpx.Client, collection: str) -> None:
    answer = put(client, collection, id="slow one", text="patience " * 3000, wait=0)

    assert answer.status_code == 202
    location = answer.headers["location"]
    for _ in range(500):
        state = client.get(location).json()["state"]
        if state == "ready":
            break
    assert state == "ready"


def test_an_empty_document_is_kept_and_found_by_nothing(client: httpx.Client, collection: str) -> None:
    answer = put(client, collection, id="empty", text="   \n ")

    assert answer.status_code == 201
    assert answer.json()["documents"][0]["chunks"] == 0
    assert found(client, collection, "empty") == []


def test_the_default_collection_makes_itself(start: Callable[..., Any]) -> None:
    server = start()

    answer = httpx.post(f"{server.url}/documents", json={"text": "hello"})

    assert answer.status_code == 201
    assert httpx.get(f"{server.url}/search", params={"q": "hello"}).json()["matches"][0]["text"] == "hello"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"text": "a", "texts": ["b"]}, None),
        ({"text": 5}, "text"),
        ({"texts": []}, "texts"),
        ({"texts": ["a", None]}, "texts"),
        ({"documents": [{"title": "no text"}]}, "documents"),
        ({"text": "a", "wait": -1}, "wait"),
        ({"text": "a", "colour": "blue"}, "colour"),
        ({"text": "a", "id": ""}, "id"),
        ({"text": "a", "id": "x" * 513}, "id"),
        ({"text": "a", "metadata": [1]}, "metadata"),
        ({"text": "a", "media_type": "application/pdf"}, "media_type"),
    ],
)
def test_a_wrong_body_is_422_and_names_the_field(
    client: httpx.Client, collection: str, body: dict[str, Any], param: str | None
) -> None:
    answer = put(client, collection, **body)

    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json().get("param") or "").startswith(param or "")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"text": NaN}',
        b'{"text": "a", "metadata": {"x": 1e999}}',
        b'{"text": "\\ud800"}',
        b'{"text": "\xff\xfe"}',
        b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_what_is_no_json_is_422_and_nothing_is_kept(client: httpx.Client, collection: str, raw: bytes) -> None:
    answer = client.post("/documents", content=raw, headers={"content-type": "application/json"})

    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_nul_characters_are_survived(client: httpx.Client, collection: str) -> None:
    answer = put(client, collection, id="nul", text="before\0after otter")

    assert answer.status_code == 201
    assert found(client, collection, "otter\0", mode="keyword") == ["nul"]


@pytest.mark.parametrize(
    "path", ["/documents", "/documents/x", "/documents/x/chunks", "/search?q=x", "/collections/nope"]
)
def test_an_unknown_collection_is_404(client: httpx.Client, path: str) -> None:
    answer = client.get(path, params=None if path.startswith("/coll") else {"collection": "nope", "q": "x"})

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "nope" in answer.json()["detail"]


def test_putting_into_an_unknown_collection_is_404(client: httpx.Client) -> None:
    assert put(client, "nope", text="x").status_code == 404


def test_another_models_vectors_are_409_with_the_way_out(client: httpx.Client, collection: str) -> None:
    answer = put(client, collection, text="x", model="all-minilm")

    assert answer.status_code == 409
    assert "use 'hash'" in answer.json()["detail"]
    searched = client.get("/search", params={"q": "x", "collection": collection, "model": "all-minilm"})
    assert searched.status_code == 409


def test_changes_and_removals_of_one_document_at_once_end_in_one_whole_state(
    client: httpx.Client, collection: str
) -> None:
    def change(n: int) -> None:
        with httpx.Client(base_url=client.base_url, timeout=30) as session:
            for round_ in range(5):
                put(session, collection, id="x", text=f"word{n} round{round_} " * 50, wait=n % 2)
                if n == 0:
                    session.delete("/documents/x", params={"collection": collection})

    threads = [threading.Thread(target=change, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    put(client, collection, id="x", text="the last word is zebra")
    assert found(client, collection, "zebra", mode="keyword") == ["x"]
    for n in range(4):
        assert found(client, collection, f"word{n}", mode="keyword") == []
    info = client.get(f"/collections/{collection}").json()
    assert info["chunks"] == 1
    assert info["documents"] == {"ready": 1}
