"""Host, Origin, key: who gets through the guard."""

import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from appliance.api.auth import Guard, Hosts, Keys, Origins, check_exposure
from appliance.api.metrics import Metrics
from appliance.app import create_app
from appliance.errors import InvalidInput
from appliance.settings import Settings

METHODS = ["GET", "POST", "PUT", "DELETE"]
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


async def _through(_: Request) -> PlainTextResponse:
    return PlainTextResponse("through")


def guarded(
    *,
    bind: str = "127.0.0.1",
    keys: Sequence[str] = (),
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
    metrics: Metrics | None = None,
) -> TestClient:
    paths = ["/", "/health", "/ready", "/metrics", "/v1/embeddings", "/api/embed", "/documents"]
    app = Guard(
        Starlette(routes=[Route(path, _through, methods=METHODS) for path in paths]),
        hosts=Hosts(bind, allowed=hosts),
        origins=Origins(origins),
        keys=Keys(keys),
        metrics=metrics or Metrics(version="0"),
    )
    return TestClient(app, base_url="http://localhost:8080")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8080",
        "localhost.",
        "a.localhost:1",
        "127.0.0.1:8080",
        "[::1]:8080",
        socket.gethostname(),
    ],
)
def test_names_of_this_machine_are_ours(host: str) -> None:
    assert guarded().get("/documents", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "evillocalhost",
        "192.168.1.7",
        "localhost:80@evil.example",
        "[::1]evil.example",
        "localhost:8080:8080",
        "",
        "*",
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_name_that_is_not_ours_is_421_however_it_is_bound(host: str, method: str) -> None:
    answer = guarded().request(method, "/documents", headers={"host": host})

    assert answer.status_code == 421
    assert "through" not in answer.text


def test_bound_to_every_address_any_literal_is_ours_but_no_foreign_name() -> None:
    client = guarded(bind="0.0.0.0")  # noqa: S104 - nothing is bound

    assert client.get("/documents", headers={"host": "192.168.1.7:8080"}).status_code == 200
    assert client.get("/documents", headers={"host": "[fd00::7]:8080"}).status_code == 200
    assert client.get("/documents", headers={"host": "evil.example"}).status_code == 421


def test_bound_to_one_address_that_one_is_ours() -> None:
    client = guarded(bind="192.168.1.7")

    assert client.get("/documents", headers={"host": "192.168.1.7:8080"}).status_code == 200
    assert client.get("/documents", headers={"host": "192.168.1.8:8080"}).status_code == 421


def test_configured_hosts_are_ours_with_and_without_a_star() -> None:
    client = guarded(hosts=["Box.Example", "*.lan.example"])

    assert client.get("/documents", headers={"host": "box.example:8080"}).status_code == 200
    assert client.get("/documents", headers={"host": "a.b.lan.example"}).status_code == 200
    assert client.get("/documents", headers={"host": "lan.example"}).status_code == 421
    assert guarded(hosts=["*"]).get("/documents", headers={"host": "any.example"}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "http://localhost:3000",
        "https://127.0.0.1:8443",
        "http://0.0.0.0:5000",
        "http://[::1]:3000",
        "http://app.localhost:3000",
        "app://obsidian.md",
        "tauri://localhost",
        "vscode-webview://0ab1",
        "chrome-extension://abcdef",
        "moz-extension://abcdef",
    ],
)
def test_pages_of_this_machine_and_local_apps_may_call_and_read_the_answer(origin: str) -> None:
    answer = guarded().post("/documents", headers={"origin": origin})

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost.evil.example",
        "http://evil.example:8080",
        "http://localhost@evil.example",
        "null",
        "localhost",
        "ftp://localhost",
    ],
)
def test_other_pages_may_neither_write_nor_read(origin: str) -> None:
    client = guarded()

    written = [client.request(method, "/documents", headers={"origin": origin}) for method in METHODS[1:]]
    read = client.get("/documents", headers={"origin": origin})
    asked = client.options("/documents", headers={"origin": origin, **PREFLIGHT})

    assert [answer.status_code for answer in (*written, asked)] == [403, 403, 403, 403]
    assert not any("access-control-allow-origin" in answer.headers for answer in (*written, read, asked))


def test_a_page_that_we_served_may_call_us() -> None:
    client = guarded(bind="192.168.1.7")
    headers = {"host": "192.168.1.7:8080"}

    assert client.post("/documents", headers={**headers, "origin": "http://192.168.1.7:8080"}).status_code == 200
    assert client.post("/documents", headers={**headers, "origin": "http://192.168.1.7:9090"}).status_code == 403


def test_configured_origins_may_call() -> None:
    client = guarded(origins=["https://notes.example", "https://*.team.example"])

    def status(origin: str) -> int:
        return client.post("/documents", headers={"origin": origin}).status_code

    assert status("https://notes.example") == status("https://a.team.example") == 200
    assert status("http://notes.example") == status("https://team.example.evil.example") == 403
    assert status("https://notesxexample") == 403
    anyone = guarded(origins=["*"]).post("/documents", headers={"origin": "https://x.example"})
    assert anyone.headers["access-control-allow-origin"] == "https://x.example"
    assert "access-control-allow-credentials" not in anyone.headers


@pytest.mark.parametrize(("method", "status"), [("POST", 403), ("DELETE", 403), ("GET", 200)])
def test_a_cross_site_request_without_an_origin_may_not_write(method: str, status: int) -> None:
    assert guarded().request(method, "/documents", headers={"sec-fetch-site": "cross-site"}).status_code == status


def test_a_cross_site_request_of_an_allowed_origin_may_write() -> None:
    headers = {"sec-fetch-site": "cross-site", "origin": "app://obsidian.md"}

    assert guarded().post("/documents", headers=headers).status_code == 200


def test_a_preflight_of_an_allowed_origin_is_answered_without_a_key() -> None:
    answer = guarded(keys=["sk-1"]).options("/v1/embeddings", headers={"origin": "app://obsidian.md", **PREFLIGHT})

    allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "app://obsidian.md"
    assert {"authorization", "content-type", "x-stainless-lang", "x-stainless-retry-count", "openai-beta"} <= allowed
    assert "POST" in answer.headers["access-control-allow-methods"]


def test_what_looks_like_a_preflight_but_comes_from_no_page_needs_a_key() -> None:
    assert guarded(keys=["sk-1"]).options("/documents", headers=PREFLIGHT).status_code == 401


@pytest.mark.parametrize(
    "path", ["/ready", "/metrics", "/v1/embeddings", "/api/embed", "/documents", "/nowhere", "/health/"]
)
@pytest.mark.parametrize("method", [*METHODS, "OPTIONS", "HEAD", "BREW"])
def test_with_a_key_configured_everything_needs_it(path: str, method: str) -> None:
    assert guarded(keys=["sk-1"]).request(method, path).status_code == 401


@pytest.mark.parametrize("path", ["/", "/health"])
def test_the_two_open_paths_may_be_read_but_not_written_without_a_key(path: str) -> None:
    client = guarded(keys=["sk-1"])

    assert client.get(path).status_code == 200
    assert client.post(path).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-2"},
        {"authorization": "bearer   sk-2 "},
        {"x-api-key": "sk-2"},
        {"api-key": "sk-2"},
        {"authorization": "Bearer default-key", "x-api-key": "sk-2"},
    ],
)
def test_any_of_our_keys_opens_wherever_it_is_shown(headers: dict[str, str]) -> None:
    assert guarded(keys=["sk-1", "sk-2"]).post("/v1/embeddings", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": "Bearer sk-"},
        {"authorization": "Bearer sk-11"},
        {"authorization": "Bearer SK-1"},
        {"authorization": "Basic sk-1"},
        {"authorization": "sk-1"},
        {"cookie": "key=sk-1"},
    ],
)
def test_anything_else_does_not(headers: dict[str, str]) -> None:
    assert guarded(keys=["sk-1"]).post("/v1/embeddings", headers=headers).status_code == 401


def test_a_wrong_key_is_told_in_the_shape_of_each_api_and_never_repeated() -> None:
    client = guarded(keys=["sk-1"])
    answers = {
        path: client.post(path, headers={"authorization": "Bearer sk-canary"})
        for path in ("/v1/embeddings", "/api/embed", "/documents")
    }

    openai: dict[str, Any] = answers["/v1/embeddings"].json()["error"]
    assert openai["code"] == "invalid_api_key"
    assert "Incorrect API key provided" in openai["message"]
    assert set(openai) == {"message", "type", "param", "code"}
    assert isinstance(answers["/api/embed"].json()["error"], str)
    assert answers["/documents"].headers["content-type"] == "application/problem+json"
    assert all(answer.headers["www-authenticate"] == "Bearer" for answer in answers.values())
    assert not any("canary" in answer.text for answer in answers.values())


def test_every_route_of_the_appliance_needs_the_key(tmp_path: Path) -> None:
    client = TestClient(create_app(Settings(data=tmp_path, api_keys=["sk-1"])), base_url="http://localhost:8080")
    app = client.app
    assert isinstance(app, FastAPI)
    routes = {
        (method.upper(), re.sub(r"\{[^}]*\}", "x", path))
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    } | {("GET", "/docs"), ("GET", "/redoc"), ("GET", "/openapi.json"), ("HEAD", "/api/tags")}

    unlocked = {route for route in routes if client.request(*route).status_code != 401}

    assert len(routes) > 20
    assert unlocked == {("GET", "/health"), ("GET", "/")}


@pytest.mark.parametrize("shown", ["Bearer ", "Bearer default-key", "Basic Og==", "nonsense"])
def test_without_keys_whatever_is_shown_is_ignored(shown: str) -> None:
    assert guarded().post("/v1/embeddings", headers={"authorization": shown}).status_code == 200


def test_refusals_are_counted_by_reason() -> None:
    metrics = Metrics(version="0")
    client = guarded(keys=["sk-1"], metrics=metrics)

    client.get("/documents", headers={"host": "evil.example"})
    client.post("/documents", headers={"origin": "https://evil.example"})
    client.post("/documents")

    for reason in ("host", "origin", "key"):
        assert metrics.registry.get_sample_value("appliance_rejected_total", {"reason": reason}) == 1


def test_keys_are_kept_as_digests_only() -> None:
    keys = Keys(["sk-canary"])

    assert b"canary" not in repr(vars(keys)).encode()
    assert keys
    assert not Keys([])
    assert keys.hold([b"", b"sk-canary"])
    assert not keys.hold([])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_no_key(host: str) -> None:
    check_exposure(host, [], allow_open=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.7", "box.example"])  # noqa: S104 - nothing is bound
def test_beyond_this_machine_takes_a_key_or_a_word_that_it_is_meant(host: str) -> None:
    with pytest.raises(InvalidInput, match="api_keys"):
        check_exposure(host, [], allow_open=False)
    check_exposure(host, ["sk-1"], allow_open=False)
    check_exposure(host, [], allow_open=True)
