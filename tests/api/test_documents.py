"""Documents over HTTP: in, found, read back, out."""

import asyncio
import json
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import Request

from appliance.api.deps import read_json
from appliance.api.documents import DocumentsBody, _answer
from appliance.catalog.records import Document
from appliance.ingest.prepare import Receipt


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


def upload(client: httpx.Client, collection: str, *names: str, **fields: Any) -> httpx.Response:
    files = [("file", (name, b"Text of a file.", "text/plain")) for name in names]
    return client.post("/documents", data={"collection": collection, **fields}, files=files)


def receipt(name: str, state: Any, *, attempts: int = 3) -> Receipt:
    if state == "refused":
        return Receipt(name, "refused", error="why refused")
    now = datetime.now(UTC)
    document = Document(
        seq=1,
        collection="c",
        id=name,
        title="",
        metadata={},
        media_type="text/plain",
        size=1,
        content_hash="",
        version=1,
        in_hand=False,
        state=state,
        error="why failed" if state == "failed" else "",
        attempts=attempts,
        chunks=1,
        tokens=1,
        truncated=0,
        created=now,
        updated=now,
    )
    return Receipt(name, "created", document)


def nested(depth: int) -> dict[str, Any]:
    """An object of that many objects inside each other."""
    result: dict[str, Any] = {"end": 1}
    for _ in range(depth - 1):
        result = {"in": result}
    return result


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


def test_passages_are_listed_with_their_metadata(client: httpx.Client, collection: str) -> None:
    text, about = "# Otters\n\nThey sleep.", {"title": "Animals", "metadata": {"year": 2024}}
    put(client, collection, id="x", text=text, media_type="text/markdown", **about)

    (chunk,) = client.get("/documents/x/chunks", params={"collection": collection}).json()["chunks"]

    assert chunk["metadata"] == {"year": 2024, "section": "Otters"}
    assert (chunk["ordinal"], chunk["start"], chunk["text"]) == (0, 0, text)


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

    assert answer.status_code == 207, answer.text
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


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (["ready"], 201),
        (["ready", "ready"], 201),
        (["ready", "refused"], 207),
        (["ready", "failed"], 207),
        (["ready", "waiting"], 202),
        (["working", "refused", "failed"], 202),
        (["waiting", "refused"], 202),
        (["refused", "refused"], 422),
        (["failed"], 503),
        (["refused", "failed"], 503),
    ],
)
def test_the_status_is_that_of_all_documents_together(states: list[str], status: int) -> None:
    answer = _answer("c", [receipt(f"dir/{n} é", state) for n, state in enumerate(states)])

    content = json.loads(bytes(answer.body))
    assert answer.status_code == status
    assert [each["state"] for each in content["documents"]] == states
    assert ("location" in answer.headers) == (status == 202)
    if status == 202 and states[0] != "ready":
        assert answer.headers["location"] == "/documents/dir/0%20%C3%A9?collection=c"
    if status in {422, 503}:
        assert answer.media_type == "application/problem+json"
        assert f"why {'failed' if status == 503 else 'refused'}" in content["detail"]


def test_what_failed_for_what_it_is_is_no_reason_to_try_again() -> None:
    alone = _answer("c", [receipt("a", "failed", attempts=1)])
    refused_too = _answer("c", [receipt("a", "failed", attempts=1), receipt("b", "refused")])
    for_the_engine = _answer("c", [receipt("a", "failed", attempts=1), receipt("b", "failed")])

    assert [alone.status_code, refused_too.status_code, for_the_engine.status_code] == [422, 422, 503]
    assert json.loads(bytes(alone.body))["detail"] == "no document could be read: why failed"


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


def test_an_empty_document_is_refused(client: httpx.Client, collection: str) -> None:
    answer = put(client, collection, id="empty", text="   \n ")

    assert answer.status_code == 422
    assert "no text" in answer.json()["detail"]
    assert client.get("/documents/empty", params={"collection": collection}).status_code == 404


def test_the_default_collection_makes_itself(start: Callable[..., Any]) -> None:
    server = start()

    answer = httpx.post(f"{server.url}/documents", json={"text": "hello"})

    assert answer.status_code == 201
    assert httpx.get(f"{server.url}/search", params={"q": "hello"}).json()["matches"][0]["text"] == "hello"


def test_before_the_default_collection_is_made_it_is_empty(start: Callable[..., Any]) -> None:
    with httpx.Client(base_url=start().url) as client:
        listed = client.get("/documents")
        found_ = {
            mode: client.get("/search", params={"q": "hello", "mode": mode}) for mode in ("hybrid", "vector", "keyword")
        }
        wrong = [client.get("/search", params=query) for query in ({"q": " "}, {"q": "x", "where": 'a"b=1'})]
        other = client.get("/search", params={"q": "x", "model": "all-minilm"})
        made = client.get("/collections/default")

    assert (listed.status_code, listed.json()) == (200, {"documents": [], "next": None})
    for mode, answer in found_.items():
        assert answer.status_code == 200, answer.text
        assert answer.json()["matches"] == []
        assert (answer.json()["mode"], answer.json()["model"]) == (mode, None if mode == "keyword" else "hash")
    assert [each.status_code for each in wrong] == [422, 422]
    assert other.status_code == 409
    assert made.status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"text": "a", "texts": ["b"]}, None),
        ({"text": 5}, "text"),
        ({"texts": []}, "texts"),
        ({"texts": ["a", None]}, "texts.1"),
        ({"documents": [{"title": "no text"}]}, "documents.0.text"),
        ({"text": "a", "wait": -1}, "wait"),
        ({"text": "a", "colour": "blue"}, "colour"),
        ({"text": "a", "id": ""}, "id"),
        ({"text": "a", "id": "x" * 513}, "id"),
        ({"text": "a", "metadata": [1]}, "metadata"),
        ({"text": "a", "media_type": "application/pdf"}, "media_type"),
        ({"text": "a", "wait": True}, "wait"),
        ({"text": "a", "wait": "10"}, "wait"),
        ({"text": "a", "metadata": {"n": 2**63}}, "metadata"),
        ({"text": "a", "metadata": {"n": [{"m": -(2**64)}]}}, "metadata"),
        ({"text": "a", "metadata": nested(33)}, "metadata"),
        ({"documents": [{"text": "a"}, {"text": "b", "metadata": nested(900)}]}, "documents.1.metadata"),
        ({"documents": [{"text": "a"}, {"text": "b", "id": "x/"}]}, "documents.1.id"),
        ({"documents": [{"text": "a"}, {"text": "b", "id": 5}]}, "documents.1.id"),
        ({"documents": ["a"]}, "documents.0"),
    ],
)
def test_a_wrong_body_is_422_and_names_the_field(
    client: httpx.Client, collection: str, body: dict[str, Any], param: str | None
) -> None:
    answer = put(client, collection, **body)

    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json().get("param") == param
    detail = answer.json()["detail"]
    assert len(detail) < 200
    assert not any(word in detail for word in ("dictionary", "instance", "Body", "None"))


def test_metadata_may_be_deep_and_its_numbers_of_64_bits(client: httpx.Client, collection: str) -> None:
    metadata = {"deep": nested(31), "most": 2**63 - 1, "least": -(2**63), "small": 1e-300, "yes": True}

    answer = put(client, collection, id="x", text="a", metadata=metadata)

    assert answer.status_code == 201, answer.text
    assert client.get("/documents/x", params={"collection": collection}).json()["metadata"] == metadata


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("chunks/chunks", "/chunks"),
        ("a/chunks", "/chunks"),
        (".", "."),
        ("a/../b", ".."),
        ("a/.", "."),
        ("/a", "slash"),
        ("a/", "slash"),
        ("a//b", "slash"),
        ("a\nb", "control"),
        ("a\0", "control"),
        ("a\x7f", "control"),
        ("a\x85", "control"),
    ],
)
def test_an_id_that_no_address_leads_to_is_refused(client: httpx.Client, collection: str, bad: str, says: str) -> None:
    posted = put(client, collection, text="a", id=bad)
    uploaded = upload(client, collection, "a.txt", "b.txt", id=["good", bad])

    for answer in (posted, uploaded):
        assert answer.status_code == 422, answer.text
        assert says in answer.json()["detail"]
    assert (posted.json()["param"], uploaded.json()["param"]) == ("id", "id.1")
    assert client.get("/documents", params={"collection": collection}).json()["documents"] == []


@pytest.mark.parametrize(
    "good",
    ["chunks", "chunks/x", "a/b c.txt", "a%2Fb", "100%", "what?", "#1", "a+b&c=d;e", "é/鯨", "...", ".hidden", "a\\b",
     "http:x", " ", "x" * 512],
)  # fmt: skip
def test_an_id_is_found_where_location_says(client: httpx.Client, collection: str, good: str) -> None:
    answer = put(client, collection, id=good, text="word " * 20_000, wait=0)

    assert answer.status_code == 202
    location = answer.headers["location"]
    assert client.get(location).json()["id"] == good
    assert client.get(location.replace("?", "/chunks?")).status_code == 200
    assert client.delete(location).status_code == 204
    assert client.get(location).status_code == 404


def test_a_title_is_for_a_single_file(client: httpx.Client, collection: str) -> None:
    one = upload(client, collection, "a.txt", id="a", title="On files")
    two = upload(client, collection, "a.txt", "b.txt", title="On files")

    assert one.status_code == 201
    assert client.get("/documents/a", params={"collection": collection}).json()["title"] == "On files"
    assert (two.status_code, two.json()["param"]) == (422, "title")


@pytest.mark.parametrize("given", ["{", "[1]", "7", '{"n": 1e30}', ""])
def test_metadata_of_a_form_that_is_none_is_named(client: httpx.Client, collection: str, given: str) -> None:
    answer = upload(client, collection, "a.txt", metadata=given)

    assert (answer.status_code, answer.json()["param"]) == (422, "metadata")
    assert "body" not in answer.json()["detail"]


@pytest.mark.parametrize("charset", ["unicode_escape", "idna", "utf-16", "no-such"])
def test_a_form_in_another_charset_is_refused(client: httpx.Client, collection: str, charset: str) -> None:
    body = f'--b\r\ncontent-disposition: form-data; name="collection"\r\n\r\n{collection}\r\n'
    body += '--b\r\ncontent-disposition: form-data; name="id"\r\n\r\n\\ud800\r\n'
    body += '--b\r\ncontent-disposition: form-data; name="file"; filename="\\ud800.txt"\r\n\r\ntext\r\n--b--\r\n'
    headers = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}

    answer = client.post("/documents", content=body, headers=headers)

    assert answer.status_code == 422, answer.text
    assert "UTF-8" in answer.json()["detail"]


def test_the_type_of_a_form_is_read_in_any_case(client: httpx.Client, collection: str) -> None:
    body = f'--b\r\ncontent-disposition: form-data; name="collection"\r\n\r\n{collection}\r\n'
    body += '--b\r\ncontent-disposition: form-data; name="file"; filename="é.txt"\r\n\r\ntext\r\n--b--\r\n'
    headers = {"content-type": "Multipart/Form-Data; boundary=b; charset=UTF-8"}

    answer = client.post("/documents", content=body.encode(), headers=headers)

    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize("after", ["-1", str(2**63), "1" * 400])
def test_a_page_after_no_document_is_422(client: httpx.Client, collection: str, after: str) -> None:
    answer = client.get("/documents", params={"collection": collection, "after": after})

    assert (answer.status_code, answer.json()["param"]) == (422, "after")


@pytest.mark.anyio
async def test_the_event_loop_turns_while_a_large_body_is_read() -> None:
    documents = [{"text": "a few words", "metadata": {"numbers": list(range(20))}} for _ in range(20_000)]
    raw = json.dumps({"documents": documents}).encode()
    turns = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": raw}

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.001)
            turns += 1

    turning = asyncio.create_task(turn())
    body = await read_json(Request({"type": "http"}, receive), DocumentsBody)
    turning.cancel()

    assert len(body.items()) == 20_000
    assert turns > 3


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


@pytest.mark.parametrize("path", ["/documents", "/documents/x", "/documents/x/chunks", "/search", "/collections/nope"])
def test_an_unknown_collection_is_404(client: httpx.Client, path: str) -> None:
    query = {"/search": {"collection": "nope", "q": "x"}, "/collections/nope": {}}.get(path, {"collection": "nope"})

    answer = client.get(path, params=query)

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


def test_every_reference_of_the_description_leads_somewhere(client: httpx.Client) -> None:
    text = client.get("/openapi.json").text

    named = set(re.findall(r'"\$ref": ?"([^"]+)"', text))
    schemas = json.loads(text)["components"]["schemas"]
    assert named
    assert named <= {f"#/components/schemas/{name}" for name in schemas}
