"""A file of each format, from the upload to a match."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from appliance.ingest.formats.detect import NAMES


@pytest.fixture
def collection(client: httpx.Client) -> str:
    name = f"c{uuid4().hex}"
    assert client.post("/collections", json={"name": name}).status_code == 201
    return name


def upload(client: httpx.Client, collection: str, name: str, body: bytes, media_type: str = "") -> httpx.Response:
    files = [("file", (name, body, media_type or "application/octet-stream"))]
    return client.post("/documents", data={"collection": collection, "id": name, "wait": "25"}, files=files)


def test_a_file_of_each_format_is_put_in_and_read_back(client: httpx.Client, collection: str, documents: Any) -> None:
    endings = {"text/csv": "csv", "application/json": "json", "application/mbox": "mbox"}

    for kind, body in documents.every_format().items():
        name = f"file.{endings.get(kind, 'bin')}"
        answer = upload(client, collection, name, body, kind)
        assert answer.status_code == 201, (kind, answer.text)
        document = client.get(f"/documents/{name}", params={"collection": collection}).json()
        assert document["media_type"] == kind
        assert document["text"]
        assert document["metadata"]["source"] == name
        assert document["title"]
    assert set(documents.every_format()) <= set(NAMES)


def test_a_match_in_a_pdf_leads_to_its_document(client: httpx.Client, collection: str, documents: Any) -> None:
    pages = [["Whales sing for hours."], ["Otters hold hands while they sleep."]]
    body = documents.pdf(pages, title="On animals", author="A. Author", language="en")
    upload(client, collection, "animals.pdf", body)

    (match,) = client.get("/search", params={"collection": collection, "q": "otters", "k": 1}).json()["matches"]
    where = client.get("/search", params={"collection": collection, "q": "otters", "where": "author=A. Author"}).json()

    assert (match["document"], match["title"]) == ("animals.pdf", "On animals")
    assert match["metadata"]["author"] == "A. Author"
    assert match["metadata"]["source"] == "animals.pdf"
    assert len(where["matches"]) == 1


def test_the_callers_title_and_metadata_win(client: httpx.Client, collection: str, documents: Any) -> None:
    body = documents.pdf([["x"]], title="Own", author="A. Author", language="en")
    files = [("file", ("x.pdf", body, "application/pdf"))]
    fields = {"collection": collection, "title": "Given", "metadata": '{"author": "B"}', "id": "x"}

    client.post("/documents", data=fields, files=files)
    document = client.get("/documents/x", params={"collection": collection}).json()

    assert document["title"] == "Given"
    assert document["metadata"] == {"author": "B", "language": "en", "source": "x.pdf"}


@pytest.mark.parametrize("name", ["notes.md", "deep/x.txt", "x.py", "x.html"])
def test_a_file_of_text_tells_its_name_too(client: httpx.Client, collection: str, name: str) -> None:
    upload(client, collection, name, b"def f(): return 'otters'", "")
    asked = {"collection": collection, "q": "otters", "filter": f"source = '{name.rpartition('/')[2]}'"}

    document = client.get(f"/documents/{name}", params={"collection": collection}).json()
    (match,) = client.get("/search", params=asked).json()["matches"]

    assert document["metadata"]["source"] == match["metadata"]["source"] == name.rpartition("/")[2]


def test_front_matter_and_links_are_found_by_filters(client: httpx.Client, collection: str) -> None:
    note = b"---\ntitle: On otters\ntags: [sea, mammals]\nyear: 2024\nstatus: done\nauthor: Ann\nsource: https://x.org\n---\n"
    upload(client, collection, "otters.md", note + b"# Sleep\n\nOtters hold hands, see [[Kelp]].")
    upload(client, collection, "other.md", b"Otters again.")

    answers = [
        client.get("/search", params={"collection": collection, "q": "otters", "filter": each}).json()["matches"]
        for each in ("tags = sea", "tags in (x, mammals)", "status = done", "year > 2000", "references = Kelp")
    ]
    document = client.get("/documents/otters.md", params={"collection": collection}).json()
    given = {"collection": collection, "id": "own", "metadata": '{"tags": ["mine"]}'}
    client.post("/documents", data=given, files=[("file", ("own.md", note + b"x", "text/markdown"))])
    own = client.get("/documents/own", params={"collection": collection}).json()

    assert [[match["document"] for match in matches] for matches in answers] == [["otters.md"]] * 5
    assert (document["title"], document["text"]) == ("On otters", "# Sleep\n\nOtters hold hands, see [[Kelp]].")
    assert document["metadata"]["references"] == ["Kelp"]
    assert document["metadata"]["source"] == "https://x.org"
    assert (own["metadata"]["tags"], own["metadata"]["author"]) == (["mine"], "Ann")


def test_the_same_file_again_changes_nothing(client: httpx.Client, collection: str, documents: Any) -> None:
    body = documents.pdf([["x"]], title="Own")

    upload(client, collection, "x.pdf", body)

    assert upload(client, collection, "x.pdf", body).json()["documents"][0]["change"] == "unchanged"


def test_a_file_that_cannot_be_read_fails_with_its_reason_and_its_neighbours_go_in(
    client: httpx.Client, collection: str, documents: Any
) -> None:
    files = [
        ("file", ("good.pdf", documents.pdf([["badgers dig"]]), "application/pdf")),
        ("file", ("locked.pdf", documents.pdf([["x"]], encrypted=True), "application/pdf")),
        ("file", ("none.pdf", b"text", "application/pdf")),
    ]

    answer = client.post("/documents", data={"collection": collection, "wait": "25"}, files=files)

    assert answer.status_code == 207
    states = [(each["state"], each["error"]) for each in answer.json()["documents"]]
    assert states[0] == ("ready", None)
    assert states[1] == ("failed", "the document is encrypted: save it without a password")
    assert states[2][0] == "refused"


def test_a_file_that_cannot_be_read_is_no_reason_to_try_again(
    client: httpx.Client, collection: str, documents: Any
) -> None:
    scanned = upload(client, collection, "scan.pdf", documents.pdf([[], []]))
    broken = upload(client, collection, "broken.docx", documents.docx("<w:p/>").replace(b"PK\x01\x02", b"PK\x01\x03"))

    for answer in (scanned, broken):
        assert answer.status_code == 422, answer.text
        assert answer.json()["documents"][0]["state"] == "failed"
    assert "(OCR)" in scanned.json()["detail"]


def test_a_declared_encoding_is_kept(client: httpx.Client, collection: str) -> None:
    text = "Привет и ещё немного".encode("koi8-r")

    answer = upload(client, collection, "x.txt", text, "text/plain; charset=koi8-r")
    document = client.get("/documents/x.txt", params={"collection": collection}).json()

    assert answer.status_code == 201
    assert (document["text"], document["media_type"]) == ("Привет и ещё немного", "text/plain; charset=koi8-r")


def test_an_encoding_that_was_recognised_is_told_and_the_same_file_is_unchanged(
    client: httpx.Client, collection: str
) -> None:
    body = "Привет и ещё немного, выдры спят держась за руки".encode("cp1251")
    names = ("x.txt", "x.csv", "x.html")

    for name in names:
        upload(client, collection, name, body)
    documents = [client.get(f"/documents/{name}", params={"collection": collection}).json() for name in names]
    again = upload(client, collection, "x.txt", body).json()["documents"]
    upload(client, collection, "west.txt", "Größe und Übermut".encode("cp1252"))
    western = client.get("/documents/west.txt", params={"collection": collection}).json()

    for document in documents:
        assert "Привет и ещё немного" in document["text"]
        assert document["media_type"].endswith("; charset=cp1251")
        assert "cp1251" in document["metadata"]["note"]
    assert again[0]["change"] == "unchanged"
    assert (western["text"], western["media_type"], western["metadata"]) == (
        "Größe und Übermut",
        "text/plain",
        {"source": "west.txt"},
    )


def test_no_process_of_the_server_is_left(start: Any, documents: Any) -> None:
    server = start()
    with httpx.Client(base_url=server.url, timeout=30) as session:
        upload(session, "default", "x.pdf", documents.pdf([["x"]]))
    sandbox = server.app.state.appliance.ingestor._preparer._sandbox
    (pid,) = sandbox.pids()
    assert Path(f"/proc/{pid}").exists()

    server.stop()

    assert not Path(f"/proc/{pid}").exists()
