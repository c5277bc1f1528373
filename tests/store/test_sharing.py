"""Appliances that share one store on a PostgreSQL server."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from appliance.errors import ModelMismatch
from appliance.postgres import PostgresDatabase
from appliance.store.opening import Place
from appliance.store.postgres.store import PostgresStore


@pytest.fixture
def own_server(postgres_server_class: Callable[..., Any]) -> Iterator[Any]:
    server = postgres_server_class()
    server.start()
    yield server
    server.close()


def test_documents_added_on_one_are_found_on_the_other_and_both_tell_when_the_store_is_away(
    start: Callable[..., Any], own_server: Any
) -> None:
    url = own_server.database()
    one, two = (start(store="postgres", store_url=SecretStr(url)) for _ in range(2))
    here, there = (httpx.Client(base_url=each.url, timeout=30) for each in (one, two))
    with here, there:
        assert here.post("/collections", json={"name": "notes"}).status_code == 201
        body = {"id": "otters", "text": "otters hold hands while they sleep", "collection": "notes"}
        assert here.post("/documents", json={**body, "wait": 20}).status_code == 201

        for mode in ("vector", "keyword", "hybrid"):
            asked = {"q": "sleeping otters hold hands", "collection": "notes", "mode": mode}
            found = there.post("/search", json=asked).json()
            assert [match["document"] for match in found["matches"]] == ["otters"], found

        own_server.kill()
        for client in (here, there):
            _until(client, 503)
            components = client.get("/ready").json()["components"]
            assert "PostgreSQL" in components["index"]
            assert client.post("/search", json=asked).status_code == 503
            assert client.get("/health").status_code == 200
        own_server.start()
        for client in (here, there):
            _until(client, 200)
        assert there.post("/search", json=asked).json()["matches"][0]["document"] == "otters"


def test_vectors_of_two_models_never_come_into_one_collection(start: Callable[..., Any], postgres_server: Any) -> None:
    url = SecretStr(postgres_server.database())
    server = start(store="postgres", store_url=url)
    with httpx.Client(base_url=server.url, timeout=30) as client:
        made = client.post("/collections", json={"name": "notes"}).json()
    database = PostgresDatabase(url.get_secret_value())
    other = PostgresStore(database, space_of=lambda _: "another model's")

    with pytest.raises(ModelMismatch, match="another name"):
        other.create("notes", made["dimensions"])
    database.close()


def _until(client: httpx.Client, status: int) -> None:
    deadline = time.monotonic() + 20
    while client.get("/ready").status_code != status:
        assert time.monotonic() < deadline, client.get("/ready").text
        time.sleep(0.05)


def test_an_address_is_not_shown() -> None:
    assert "hidden" not in repr(Place(kind="postgres", url="postgresql://u:hidden@h/d"))
