"""Every route answers what goes wrong in the shape that its clients read."""

import re
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from appliance import errors
from appliance.api.errors import STATUS, envelope, install, status_of

DIALECTS = {
    "/v1/embeddings": "openai",
    "/api/embed": "ollama",
    "/documents": "problem",
    "/v1/rerank": "openai",
    "/v2/rerank": "cohere",
    "/rerank": "tei",
    "/embed": "tei",
    "/similarity": "tei",
    "/": "tei",
    "/v1/embeddings/generate": "openai",
    "/encode": "problem",
}

TEI = {"/", "/embed", "/embed_all", "/embed_sparse", "/rerank", "/similarity", "/tokenize", "/decode", "/info"}


def dialect(path: str) -> str:
    if path.startswith("/v1/") or path.split("/")[1] in {"embeddings", "models"}:
        return "openai"
    if path in TEI:
        return "tei"
    if path.startswith("/v2/"):
        return "cohere"
    return "ollama" if path.startswith("/api/") else "problem"


def is_shaped(answer: Any, path: str, status: int) -> bool:
    """Whether this is an error of this status as the clients of the path read it."""
    content = answer.json()
    plain = answer.headers["content-type"] == "application/json"
    match dialect(path):
        case "openai":
            shaped = (
                plain and set(content) == {"error"} and set(content["error"]) == {"message", "type", "param", "code"}
            )
            message = content["error"]["message"]
        case "ollama":
            shaped = plain and set(content) == {"error"}
            message = content["error"]
        case "cohere":
            shaped = plain and set(content) == {"message"}
            message = content["message"]
        case "tei":
            kinds = {424: "Backend", 429: "Overloaded", 503: "Unhealthy"}
            kind = kinds.get(status, "Validation" if status < 500 else "Backend")
            shaped = plain and set(content) == {"error", "error_type"} and content["error_type"] == kind
            message = content["error"]
        case _:
            shaped = answer.headers["content-type"] == "application/problem+json" and content["status"] == status
            shaped &= {"type", "title", "status", "detail"} <= set(content)
            message = content["detail"]
    return shaped and answer.status_code == status and isinstance(message, str) and bool(message)


@pytest.fixture(scope="session")
def operations(live: Any) -> dict[str, set[str]]:
    """Every path of the appliance with its methods, the undocumented aliases too."""
    paths = httpx.get(f"{live.url}/openapi.json").json()["paths"]
    documented = {path: {method.upper() for method in methods} for path, methods in paths.items()}
    return documented | {"/embeddings": {"POST"}, "/models": {"GET"}, "/models/{name}": {"GET"}}


def test_every_path_refuses_other_methods_in_its_shape(client: httpx.Client, operations: dict[str, set[str]]) -> None:
    for path, methods in operations.items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - methods:
            concrete = re.sub(r"{\w+(:path)?}", "x", path)

            answer = client.request(method, concrete)

            if answer.status_code == 405:
                assert is_shaped(answer, path, 405), (method, path, answer.text)
                assert methods - {"HEAD"} <= set(answer.headers["allow"].split(", ")), (path, answer.headers)
                assert method not in answer.headers["allow"].split(", ")
            else:  # a path that ends in {id:path} takes what lies below it
                assert is_shaped(answer, path, answer.status_code), (method, path, answer.text)


@pytest.mark.parametrize(
    "path",
    [
        *["/nothing", "/v1/nothing", "/api/nothing", "/v1", "/api", "/v10", "/apis", "/v1/", "/embeddings/x"],
        *["/v2", "/v2/nothing", "/v20", "/rerank/x", "/embed/", "/info/x", "/decoder"],
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_path_that_does_not_exist_is_404_in_the_shape_of_where_it_would_be(
    client: httpx.Client, method: str, path: str
) -> None:
    answer = client.request(method, path)

    expected = {"/v1": "openai", "/api": "ollama", "/v2": "cohere", "/embeddings/x": "problem"}
    error = answer.json().get("error")
    other = "cohere" if "message" in answer.json() else "problem"
    assert answer.status_code == 404
    assert ("openai" if isinstance(error, dict) else "ollama" if error else other) == expected.get(path, dialect(path))


@pytest.mark.parametrize("path", ["/v1/embeddings/", "/api/embed/", "/search/", "/collections/"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_slash_too_many_is_404_and_no_redirect(client: httpx.Client, method: str, path: str) -> None:
    assert is_shaped(client.request(method, path, json={}), path, 404)


def test_every_path_that_reads_a_body_refuses_rubbish_in_its_shape(
    client: httpx.Client, operations: dict[str, set[str]]
) -> None:
    spec = client.get("/openapi.json").json()["paths"]
    reading = [path for path, methods in spec.items() if "requestBody" in methods.get("post", {})]
    assert set(DIALECTS) | {"/search", "/collections"} <= set(reading)

    for path in reading:
        nothing = [b""] if spec[path]["post"]["requestBody"].get("required") else []
        for content in (*nothing, b"{", b"[]", b'{"a": NaN}', b"\xff"):
            answer = client.post(path, content=content)

            status = 422 if dialect(path) in {"problem", "tei"} else 400
            assert is_shaped(answer, path, status), (path, content, answer.status_code, answer.text)


@pytest.mark.parametrize("path", DIALECTS)
def test_a_body_over_the_limit_is_413_in_the_paths_shape(start: Callable[..., Any], path: str) -> None:
    server = start(max_body=2048)

    answer = httpx.post(f"{server.url}{path}", content=b"x" * 4096)

    assert is_shaped(answer, path, 413)


@pytest.mark.parametrize("path", DIALECTS)
def test_a_missing_key_is_401_in_the_paths_shape(start: Callable[..., Any], path: str) -> None:
    server = start(api_keys=["secret"])

    answer = httpx.post(f"{server.url}{path}", json={})

    assert is_shaped(answer, path, 401)


def test_a_query_parameter_of_the_wrong_form_is_422_and_named(client: httpx.Client) -> None:
    answer = client.get("/search", params={"q": "x", "k": "my secret"})

    assert is_shaped(answer, "/search", 422)
    assert answer.json()["param"] == "k"
    assert "secret" not in answer.text


RAISED = {
    "InvalidInput": errors.InvalidInput("bad", param="field"),
    "InputTooLong": errors.InputTooLong(tokens=9, limit=8),
    "BodyTooLarge": errors.BodyTooLarge("big"),
    "NotAllowed": errors.NotAllowed("no"),
    "ModelNotFound": errors.ModelNotFound("none", name="x"),
    "ModelMismatch": errors.ModelMismatch("other space"),
    "Overloaded": errors.Overloaded("busy", retry_after=7),
    "EngineFailed": errors.EngineFailed("died"),
    "EngineUnavailable": errors.EngineUnavailable("no file"),
    "UpstreamFailed": errors.UpstreamFailed("elsewhere"),
    "StoreFull": errors.StoreFull("no space"),
    "StoreUnavailable": errors.StoreUnavailable("locked"),
    "SchemaMismatch": errors.SchemaMismatch("newer"),
    "mistake": RuntimeError("/home/someone/secret.db"),
}


@pytest.fixture
def failing() -> Iterator[TestClient]:
    """An app whose routes of all APIs raise what they are told to."""
    app = FastAPI()

    @app.get("/v1/{name}")
    @app.get("/v2/{name}")
    @app.get("/api/{name}")
    @app.get("/ours/{name}")
    @app.get("/rerank")
    @app.get("/embed")
    async def fail(name: str) -> None:
        raise RAISED[name]

    install(app)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("root", ["/v1", "/v2", "/api", "/ours"])
@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("BodyTooLarge", 413),
        ("NotAllowed", 403),
        ("ModelNotFound", 404),
        ("ModelMismatch", 409),
        ("Overloaded", 503),
        ("EngineFailed", 500),
        ("EngineUnavailable", 503),
        ("UpstreamFailed", 502),
        ("StoreFull", 507),
        ("StoreUnavailable", 503),
        ("SchemaMismatch", 500),
        ("mistake", 500),
    ],
)
def test_each_class_of_error_has_its_status_in_every_api(
    failing: TestClient, root: str, name: str, status: int
) -> None:
    answer = failing.get(f"{root}/{name}")

    assert is_shaped(answer, f"{root}/{name}", status), answer.text


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("InvalidInput", 422),
        ("InputTooLong", 422),
        ("BodyTooLarge", 413),
        ("ModelNotFound", 404),
        ("Overloaded", 429),
        ("EngineFailed", 424),
        ("EngineUnavailable", 503),
        ("mistake", 500),
    ],
)
@pytest.mark.parametrize("path", ["/rerank", "/embed"])
def test_its_routes_say_what_text_embeddings_inference_would(
    failing: TestClient, path: str, name: str, status: int
) -> None:
    answer = failing.get(path, params={"name": name})

    assert is_shaped(answer, path, status), answer.text


@pytest.mark.parametrize(("root", "status"), [("/v1", 400), ("/v2", 400), ("/api", 400), ("/ours", 422)])
@pytest.mark.parametrize("name", ["InvalidInput", "InputTooLong"])
def test_input_that_cannot_be_used_is_400_to_their_clients_and_422_to_ours(
    failing: TestClient, root: str, status: int, name: str
) -> None:
    assert is_shaped(failing.get(f"{root}/{name}"), root + "/", status)


def test_an_overloaded_appliance_says_when_to_come_back(failing: TestClient) -> None:
    assert failing.get("/v1/Overloaded").headers["retry-after"] == "7"


@pytest.mark.parametrize("root", ["/v1", "/api", "/ours"])
def test_a_mistake_of_ours_tells_nothing_of_our_insides(failing: TestClient, root: str) -> None:
    answer = failing.get(f"{root}/mistake")

    assert "secret" not in answer.text
    assert "RuntimeError" not in answer.text


def test_openai_errors_name_kind_param_and_code(failing: TestClient) -> None:
    invalid = failing.get("/v1/InvalidInput").json()["error"]
    unknown = failing.get("/v1/ModelNotFound").json()["error"]
    failed = failing.get("/v1/EngineFailed").json()["error"]

    assert invalid == {"message": "bad", "type": "invalid_request_error", "param": "field", "code": None}
    assert unknown["code"] == "model_not_found"
    assert failed["type"] == "server_error"


def test_problems_name_the_field(failing: TestClient) -> None:
    content = failing.get("/ours/InvalidInput").json()

    assert content == {
        "type": "about:blank",
        "title": HTTPStatus(422).phrase,
        "status": 422,
        "detail": "bad",
        "param": "field",
    }


def test_the_nearest_ancestor_in_the_table_decides() -> None:
    class Odd(errors.UpstreamFailed):
        pass

    assert status_of(Odd("x"), "/v1/x") == STATUS[errors.UpstreamFailed]


def test_headers_travel_with_an_envelope() -> None:
    answer = envelope("/v1/x", 401, "no", code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/json"
