"""Collections over HTTP."""

from typing import Any
from uuid import uuid4

import httpx
import pytest


def test_a_collection_is_made_listed_read_and_removed(client: httpx.Client) -> None:
    name = f"c{uuid4().hex}"

    made = client.post("/collections", json={"name": name, "dimensions": 256})
    client.post("/documents", json={"collection": name, "text": "hello"})

    assert made.status_code == 201
    assert (made.json()["model"], made.json()["space"], made.json()["dimensions"]) == ("hash", "hash-1", 256)
    read = client.get(f"/collections/{name}").json()
    assert (read["chunks"], read["documents"]) == (1, {"ready": 1})
    assert name in [each["name"] for each in client.get("/collections").json()["collections"]]
    assert client.delete(f"/collections/{name}").status_code == 204
    assert client.get(f"/collections/{name}").status_code == 404
    assert client.delete(f"/collections/{name}").status_code == 404


def test_a_removed_collection_comes_back_empty(client: httpx.Client) -> None:
    name = f"c{uuid4().hex}"
    client.post("/collections", json={"name": name})
    client.post("/documents", json={"collection": name, "text": "hello"})
    client.delete(f"/collections/{name}")

    client.post("/collections", json={"name": name})

    assert client.get(f"/collections/{name}").json()["chunks"] == 0
    assert client.get("/search", params={"collection": name, "q": "hello"}).json()["matches"] == []


def test_a_name_is_taken_once(client: httpx.Client) -> None:
    name = f"c{uuid4().hex}"
    client.post("/collections", json={"name": name})

    answer = client.post("/collections", json={"name": name})

    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_collection_that_is_half_made_is_left_out_of_the_list(live: Any, client: httpx.Client) -> None:
    appliance = live.app.state.appliance
    name = f"c{uuid4().hex}"
    spec = appliance.registry.default
    appliance.catalog.create_collection(name, model=spec.name, space=spec.space, dimensions=64)

    answer = client.get("/collections")

    assert answer.status_code == 200
    assert name not in [each["name"] for each in answer.json()["collections"]]
    assert client.delete(f"/collections/{name}").status_code == 204


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "../etc"}, 422),
        ({"name": ""}, 422),
        ({"name": "x" * 65}, 422),
        ({"name": "ok", "dimensions": 0}, 422),
        ({"name": "ok", "dimensions": 4096}, 422),
        ({"name": "ok", "model": "nope"}, 404),
        ({"model": "hash"}, 422),
        ({"name": "ok", "dimensions": True}, 422),
        ({"name": "ok", "dimensions": "64"}, 422),
        ({"name": "ok", "dimensions": 64.0}, 422),
    ],
)
def test_a_wrong_collection_is_refused(client: httpx.Client, body: dict[str, object], status: int) -> None:
    answer = client.post("/collections", json=body)

    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_collection_keeps_how_its_documents_are_cut_and_tells_it(client: httpx.Client) -> None:
    name, usual = f"c{uuid4().hex}", f"c{uuid4().hex}"
    asked = {"strategy": "fixed", "tokens": 32, "overlap": 16, "header": False}

    made = client.post("/collections", json={"name": name, "chunking": asked})
    client.post("/collections", json={"name": usual})
    body = {"documents": [{"id": "d", "title": "On otters", "text": "otters hold hands " * 40}]}
    for each in (name, usual):
        client.post("/documents", json=body | {"collection": each, "wait": 30})

    assert made.status_code == 201
    assert made.json()["chunking"] == asked
    assert client.get(f"/collections/{name}").json()["chunking"] == asked
    assert client.get(f"/collections/{usual}").json()["chunking"] == {
        "strategy": "structure",
        "tokens": 256,
        "overlap": 32,
        "header": True,
    }
    assert client.get(f"/collections/{name}").json()["chunks"] > 5
    assert client.get(f"/collections/{usual}").json()["chunks"] == 1


@pytest.mark.parametrize(
    ("chunking", "param"),
    [
        ({"strategy": "semantic"}, "chunking.strategy"),
        ({"tokens": 15}, "chunking.tokens"),
        ({"tokens": 8193}, "chunking.tokens"),
        ({"tokens": "64"}, "chunking.tokens"),
        ({"overlap": -1}, "chunking.overlap"),
        ({"tokens": 64, "overlap": 33}, "chunking"),
        ({"size": 64}, "chunking.size"),
        ({"header": "yes"}, "chunking.header"),
    ],
)
def test_an_option_of_cutting_that_makes_no_sense_is_refused(
    client: httpx.Client, chunking: dict[str, Any], param: str
) -> None:
    answer = client.post("/collections", json={"name": f"c{uuid4().hex}", "chunking": chunking})

    assert answer.status_code == 422
    assert answer.json()["param"] == param


def test_passages_are_found_by_the_section_they_are_in(client: httpx.Client) -> None:
    name = f"c{uuid4().hex}"
    client.post("/collections", json={"name": name, "chunking": {"tokens": 32}})
    text = "# Guide\n\n" + "Otters sleep. " * 20 + "\n\n## Food\n\n" + "Otters eat crabs. " * 20
    document = {"id": "d", "title": "Guide", "text": text, "media_type": "text/markdown"}
    client.post("/documents", json={"collection": name, "documents": [document], "wait": 30})

    found = client.get("/search", params={"collection": name, "q": "otters", "where": "section=Food"}).json()["matches"]

    assert found
    assert all("crabs" in match["text"] and match["metadata"] == {"section": "Food"} for match in found)
