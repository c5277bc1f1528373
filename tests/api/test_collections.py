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
