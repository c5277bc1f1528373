"""A collection that is embedded anew while it answers."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import pytest

WORDS = ("otter", "whale", "badger", "heron", "lynx", "marten", "newt", "owl", "pike", "raven")


@pytest.fixture
def data(bring_small: Callable[[Path], None], tmp_path: Path) -> Path:
    bring_small(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def server(start: Callable[..., Any], data: Path) -> Any:
    return start(data=data)


@pytest.fixture
def client(server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as session:
        yield session


def put(client: httpx.Client, *names: str, words: str = "") -> None:
    documents = [{"id": name, "text": f"{name} {words or 'lives by the water'}"} for name in names]
    client.post("/documents", json={"documents": documents, "wait": 20}).raise_for_status()


def ended(client: httpx.Client, job: int) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while True:
        found: dict[str, Any] = client.get(f"/jobs/{job}").json()
        if found["ended"] is not None:
            return found
        assert time.monotonic() < deadline, f"{found} {collection(client)}"
        time.sleep(0.02)


def collection(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/collections/default").json()
    return found


def best(client: httpx.Client, q: str, **params: Any) -> str:
    answer = client.get("/search", params={"q": q, **params})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["matches"][0]["document"])


def test_a_collection_takes_another_model_and_keeps_its_documents(client: httpx.Client) -> None:
    put(client, *WORDS)
    before = client.get("/documents").json()["documents"]

    answer = client.post("/collections/default/reindex", params={"model": "small"})
    job = ended(client, answer.json()["id"])

    assert (answer.status_code, answer.headers["location"]) == (202, f"/jobs/{job['id']}")
    assert (job["kind"], job["state"], job["counts"]["ready"], job["complete"]) == ("reindex", "done", 10, True)
    now = collection(client)
    assert (now["model"], now["space"], now["dimensions"], now["chunks"]) == ("small", "small", 32, 10)
    assert (now["documents"], now["reindex"]) == ({"ready": 10}, None)
    after = client.get("/documents").json()["documents"]
    assert [(each["id"], each["created"]) for each in after] == [(each["id"], each["created"]) for each in before]
    for word in WORDS:
        for mode in ("vector", "keyword", "hybrid"):
            assert best(client, word, mode=mode) == word
    assert client.get("/search", params={"q": "otter"}).json()["model"] == "small"
    assert client.get("/documents/otter").json()["text"] == "otter lives by the water"
    assert [each["name"] for each in client.get("/collections").json()["collections"]] == ["default"]
    client.request("DELETE", "/documents/otter").raise_for_status()
    put(client, "adder")
    assert best(client, "adder") == "adder"
    assert collection(client)["chunks"] == 10


def test_documents_are_cut_anew(client: httpx.Client) -> None:
    put(client, "long", words="A sentence by the water. " * 40)
    chunks = collection(client)["chunks"]

    body = {"chunking": {"strategy": "fixed", "tokens": 16, "overlap": 0}}
    answer = client.post("/collections/default/reindex", json=body)
    ended(client, answer.json()["id"])

    now = collection(client)
    assert (now["model"], now["chunking"]["strategy"], now["chunking"]["tokens"]) == ("hash", "fixed", 16)
    assert now["chunks"] > 3 * chunks
    listed = client.get("/documents/long/chunks").json()["chunks"]
    assert len(listed) == now["chunks"]
    text = client.get("/documents/long").json()["text"]
    assert all(text[each["start"] : each["end"]] == each["text"] for each in listed)


def test_no_search_fails_or_finds_less_while_the_index_is_replaced(client: httpx.Client, server: Any) -> None:
    put(client, *(f"{word}{n}" for word in WORDS for n in range(20)))
    faults: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=30) as asking:
            while not stop.is_set():
                for mode in ("vector", "hybrid", "keyword"):
                    params = {"q": "raven7", "mode": mode, "k": 3, "context": 1, "diversity": 0.1}
                    answer = asking.get("/search", params=params)
                    if answer.status_code != 200 or answer.json()["matches"][0]["document"] != "raven7":
                        faults.append(answer.text)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    models = set()
    for model in ("small", "hash", "small"):
        begun = client.post("/collections/default/reindex", params={"model": model}).json()
        models.add(ended(client, begun["id"])["name"])
    stop.set()
    for thread in asking:
        thread.join()

    assert faults == []
    assert (models, collection(client)["model"], collection(client)["chunks"]) == ({"small", "hash"}, "small", 200)


def test_what_changes_meanwhile_is_in_the_new_index_too(client: httpx.Client) -> None:
    put(client, *WORDS)
    begun = client.post("/collections/default/reindex", json={"model": "small", "priority": -100}).json()
    paused = client.post(f"/jobs/{begun['id']}/pause")
    if paused.status_code == 409:  # it was quicker
        begun = client.post("/collections/default/reindex", json={"model": "hash"}).json()
        paused = client.post(f"/jobs/{begun['id']}/pause")
    assert paused.status_code == 200
    put(client, "adder", "newt", words="was seen in the grass")
    client.request("DELETE", "/documents/pike").raise_for_status()
    assert best(client, "adder") == "adder"

    client.post(f"/jobs/{begun['id']}/resume").raise_for_status()
    job = ended(client, begun["id"])

    assert (job["state"], job["counts"]["failed"]) == ("done", 0)
    now = collection(client)
    assert (now["documents"], now["chunks"]) == ({"ready": 10}, 10)
    assert client.get("/documents/newt/chunks").json()["chunks"][0]["text"] == "newt was seen in the grass"
    assert best(client, "adder grass", mode="vector") == "adder"
    assert "pike" not in {each["document"] for each in client.get("/search", params={"q": "pike"}).json()["matches"]}


def test_a_reindex_that_is_cancelled_leaves_all_as_it_was(client: httpx.Client) -> None:
    put(client, *(f"{word}{n}" for word in WORDS for n in range(50)))
    before = collection(client)
    begun = client.post("/collections/default/reindex", params={"model": "small"}).json()
    told = collection(client)["reindex"]
    again = client.post("/collections/default/reindex", params={"model": "small"})
    skipped = client.post(f"/jobs/{begun['id']}/skip", json={"document": "otter1"})

    cancelled = client.post(f"/jobs/{begun['id']}/cancel").json()

    assert (told["model"], told["dimensions"], told["job"], told["failed"]) == ("small", 32, begun["id"], 0)
    assert again.status_code == 409
    assert str(begun["id"]) in again.json()["detail"]
    assert skipped.status_code == 409
    assert cancelled["state"] == "cancelled"
    assert collection(client) == before
    assert best(client, "otter1") == "otter1"
    deadline = time.monotonic() + 10
    while "\nappliance_chunks 500.0\n" not in client.get("/metrics").text:
        assert time.monotonic() < deadline, "the successor's chunks are still there"
        time.sleep(0.05)


def test_a_restart_goes_on_with_it(start: Callable[..., Any], data: Path) -> None:
    first = start(data=data)
    with httpx.Client(base_url=first.url, timeout=30) as client:
        put(client, *(f"{word}{n}" for word in WORDS for n in range(30)))
        begun = client.post("/collections/default/reindex", params={"model": "small"}).json()
        assert client.post(f"/jobs/{begun['id']}/pause").status_code == 200
    first.stop()

    second = start(data=data)
    with httpx.Client(base_url=second.url, timeout=30) as client:
        assert collection(client)["model"] == "hash"
        assert collection(client)["reindex"]["waiting"] > 0
        client.post(f"/jobs/{begun['id']}/resume").raise_for_status()
        assert ended(client, begun["id"])["counts"]["ready"] == 300
        assert (collection(client)["model"], collection(client)["chunks"]) == ("small", 300)


def test_a_collection_that_goes_takes_its_successor_along(client: httpx.Client) -> None:
    put(client, *(f"{word}{n}" for word in WORDS for n in range(50)))
    begun = client.post("/collections/default/reindex", params={"model": "small"}).json()

    client.request("DELETE", "/collections/default").raise_for_status()
    put(client, "otter")

    assert client.get(f"/jobs/{begun['id']}").json()["state"] == "cancelled"
    assert (collection(client)["model"], collection(client)["chunks"]) == ("hash", 1)
    assert best(client, "otter") == "otter"


def test_one_made_anew_does_not_meet_what_its_name_was_replaced_by(client: httpx.Client) -> None:
    put(client, "otter")
    ended(client, client.post("/collections/default/reindex", params={"model": "small"}).json()["id"])

    client.request("DELETE", "/collections/default").raise_for_status()
    put(client, "whale")
    client.request("DELETE", "/documents/whale").raise_for_status()
    put(client, "newt")

    assert [each["document"] for each in client.get("/search", params={"q": "newt"}).json()["matches"]] == ["newt"]
    assert collection(client)["chunks"] == 1


@pytest.mark.parametrize(
    ("path", "given", "status", "told"),
    [
        ("ghost/reindex", {}, 404, "ghost"),
        ("default/reindex", {"params": {"model": "ghost"}}, 404, "ghost"),
        ("default/reindex", {"json": {"model": "small", "dimensions": 33}}, 422, "dimensions"),
        ("default/reindex", {"json": {"modell": "small"}}, 422, "modell"),
        ("default/reindex", {"params": {"model": "small"}, "json": {"model": "hash"}}, 422, "both"),
        ("default/reindex", {"params": {"modell": "small"}}, 422, "modell"),
        ("default/reindex", {"json": {"chunking": {"tokens": 1}}}, 422, "tokens"),
        ("default%231/reindex", {}, 404, "default"),
        ("default/reindex/finish", {}, 404, "not being reindexed"),
    ],
)
def test_what_cannot_be_is_refused(
    client: httpx.Client, path: str, given: dict[str, Any], status: int, told: str
) -> None:
    put(client, "otter")

    answer = client.post(f"/collections/{path}", **given)

    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert told in answer.json()["detail"]


def test_an_empty_collection_is_replaced_at_once(client: httpx.Client) -> None:
    client.post("/collections", json={"name": "empty"}).raise_for_status()

    begun = client.post("/collections/empty/reindex", params={"model": "small"}).json()

    assert begun["state"] == "done"
    assert client.get("/collections/empty").json()["model"] == "small"


def test_what_cannot_be_embedded_anew_holds_it_back_until_it_is_left_out(
    start: Callable[..., Any], data: Path, bring_clip: Callable[[Path], None]
) -> None:
    bring_clip(data)
    server = start(data=data)
    with httpx.Client(base_url=server.url, timeout=30) as client:
        client.post("/collections", json={"name": "album", "model": "tiny-clip"}).raise_for_status()
        files = [("file", ("red.png", square("red"), "image/png")), ("file", ("otters.txt", b"otters", "text/plain"))]
        form = {"collection": "album", "id": ["red", "otters"], "wait": "20"}
        client.post("/documents", data=form, files=files).raise_for_status()

        begun = client.post("/collections/album/reindex", params={"model": "hash"}).json()
        deadline = time.monotonic() + 20
        while not (held := client.get(f"/jobs/{begun['id']}").json())["error"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        told = client.get("/collections/album").json()
        finished = client.post("/collections/album/reindex/finish").json()
        now = client.get("/collections/album").json()

    assert (held["state"], held["counts"]["failed"], held["failures"][0]["id"]) == ("running", 1, "red")
    assert "finish without it" in held["error"]
    assert (told["model"], told["documents"], told["reindex"]["failed"]) == ("tiny-clip", {"ready": 2}, 1)
    assert (finished["state"], finished["error"]) == ("done", None)
    assert (now["model"], now["documents"], now["chunks"]) == ("hash", {"ready": 1, "failed": 1}, 1)


def square(colour: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (40, 40), colour).save(file, "PNG")
    return file.getvalue()
