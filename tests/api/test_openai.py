"""`/v1/embeddings` and `/v1/models` keep the promises that OpenAI's clients rely on."""

import base64
import math
import socket
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from appliance.api.openai import INVALID, MAX_ITEMS, _answer
from appliance.embedding.embedder import Embeddings

HELLO_WORLD = [15339, 1917]
"""`hello world` in cl100k_base."""


def ask(client: httpx.Client, given: Any, **extra: Any) -> httpx.Response:
    return client.post("/v1/embeddings", json={"model": "hash", "input": given, **extra})


def vectors(answer: httpx.Response) -> list[list[float]]:
    assert answer.status_code == 200, answer.text[:500]
    return [each["embedding"] for each in answer.json()["data"]]


def refusal(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


def test_an_answer_has_every_key_of_the_schema(client: httpx.Client) -> None:
    answer = ask(client, ["why is the sky blue?", "grass"])

    content = answer.json()
    assert set(content) == {"object", "data", "model", "usage"}
    assert content["object"] == "list"
    assert content["model"] == "hash"
    assert [(each["object"], each["index"]) for each in content["data"]] == [("embedding", 0), ("embedding", 1)]
    assert content["usage"]["prompt_tokens"] == content["usage"]["total_tokens"] > 0
    assert answer.headers["x-appliance-model"] == "hash"
    assert "x-appliance-truncated" not in answer.headers


def test_vectors_have_length_one(client: httpx.Client) -> None:
    assert np.linalg.norm(vectors(ask(client, ["a", "b c d"])), axis=1) == pytest.approx([1, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([0.1, -0.2, 0.3], "zczMPc3MTL6amZk+"),
        ([0.1, 0.2], "zczMPc3MTD4="),
        ([0.3, 0.4], "mpmZPs3MzD4="),
        ([0.5, 0.6], "AAAAP5qZGT8="),
    ],
)
def test_base64_is_that_of_little_endian_float32(numbers: list[float], text: str) -> None:
    result = Embeddings("m", "hash", np.array([numbers], dtype=np.float32), (1,), (False,))

    assert orjson.loads(_answer(result, model="m", as_base64=True).body)["data"][0]["embedding"] == text


def test_numbers_have_a_point_and_the_digits_of_float32() -> None:
    result = Embeddings("m", "hash", np.array([[1.0, 0.0, -1.0, 0.1, 1e-10]], dtype=np.float32), (1,), (False,))

    assert b'"embedding":[1.0,0.0,-1.0,0.1,1e-10]' in bytes(_answer(result, model="m", as_base64=False).body)


@pytest.mark.parametrize("asked", ["base64", "BASE64", "Base64"])
def test_base64_holds_the_same_vector_as_the_list(client: httpx.Client, asked: str) -> None:
    texts = ["first", "second text"]

    packed = [base64.b64decode(each) for each in vectors(ask(client, texts, encoding_format=asked))]  # type: ignore[arg-type] # a text

    plain = np.array(vectors(ask(client, texts)), dtype="<f4")
    assert [np.frombuffer(each, dtype="<f4").tolist() for each in packed] == plain.tolist()


@pytest.mark.parametrize("asked", ["float", "FLOAT", "", None])
def test_a_list_of_numbers_is_the_default(client: httpx.Client, asked: str | None) -> None:
    [vector] = vectors(ask(client, "x", encoding_format=asked))

    assert all(isinstance(each, float) for each in vector)


def test_another_encoding_is_refused(client: httpx.Client) -> None:
    error = refusal(ask(client, "x", encoding_format="hex"))

    assert error["message"] == "Invalid value for 'encoding_format' = hex. Supported values: ['float', 'base64']."
    assert error["param"] == "encoding_format"


@pytest.mark.parametrize("dimensions", [True, "64", 64.0, [64]])
def test_dimensions_are_a_whole_number(client: httpx.Client, dimensions: Any) -> None:
    assert refusal(ask(client, "x", dimensions=dimensions))["param"] == "dimensions"


def test_order_and_count_are_kept(client: httpx.Client) -> None:
    texts = [f"text number {n} " + "word " * (n * 7 % 50) for n in range(200)]

    together = vectors(ask(client, texts))

    assert len(together) == 200
    for index in (0, 1, 57, 198, 199):
        assert together[index] == pytest.approx(vectors(ask(client, texts[index]))[0], abs=1e-6)


def test_token_ids_are_read_as_cl100k(client: httpx.Client) -> None:
    text = vectors(ask(client, "hello world"))

    assert vectors(ask(client, HELLO_WORLD)) == text
    assert vectors(ask(client, [HELLO_WORLD, [65]])) == [*text, *vectors(ask(client, "b"))]


def test_token_ids_cost_the_models_own_tokens(client: httpx.Client) -> None:
    assert ask(client, HELLO_WORLD).json()["usage"] == ask(client, "hello world").json()["usage"]


def test_a_long_token_array_is_one_item(client: httpx.Client) -> None:
    assert len(vectors(ask(client, [1917] * (MAX_ITEMS + 1)))) == 1


@pytest.mark.parametrize(
    "given",
    [
        [],
        [[]],
        [HELLO_WORLD, []],
        [100256],
        [[-1]],
        [2**63],
        None,
        7,
        True,
        {"text": 7},
        {"text": "x", "image": "eA=="},
        {"type": "image_url", "text": "x"},
        {"input": "x"},
        [{}],
        [{"text": "x"}, [1]],
        [1.5],
        [True, False],
        ["text", 1],
        ["text", [1]],
        ["text", None],
        [[["x"]]],
        [[1, "x"]],
    ],
)
def test_an_input_of_no_known_form_is_refused(client: httpx.Client, given: Any) -> None:
    error = refusal(ask(client, given))

    assert error["message"].startswith(INVALID)
    assert error["param"] == "input"


def test_a_missing_input_is_refused(client: httpx.Client) -> None:
    assert refusal(client.post("/v1/embeddings", json={"model": "hash"}))["param"] == "input"


def test_2048_items_are_taken_and_one_more_is_not(client: httpx.Client) -> None:
    assert len(vectors(ask(client, ["x"] * MAX_ITEMS, dimensions=32))) == MAX_ITEMS
    assert "2048" in refusal(ask(client, ["x"] * (MAX_ITEMS + 1)))["message"]


@pytest.mark.parametrize("given", ["", [""], ["a", "", "b"]])
def test_an_empty_text_is_embedded_like_any_other(client: httpx.Client, given: Any) -> None:
    found = vectors(ask(client, given))

    assert len(found) == (1 if isinstance(given, str) else len(given))
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("given", ["   ", "\n\t", "\0", "a\0b", "\u200b", "👩‍👩‍👧‍👦", "x" * 10_000, "\ufffe\uffff"])
def test_odd_texts_are_texts(client: httpx.Client, given: str) -> None:
    [vector] = vectors(ask(client, given))

    assert math.isfinite(sum(vector))


def test_dimensions_cut_and_scale_again(client: httpx.Client) -> None:
    [whole] = vectors(ask(client, "shorter"))

    [short] = vectors(ask(client, "shorter", dimensions=64))

    front = np.array(whole[:64])
    assert short == pytest.approx(front / np.linalg.norm(front), abs=1e-6)


@pytest.mark.parametrize("dimensions", [0, None, 1024])
def test_no_dimensions_zero_and_the_models_own_are_the_same(client: httpx.Client, dimensions: int | None) -> None:
    assert vectors(ask(client, "x", dimensions=dimensions)) == vectors(ask(client, "x"))


@pytest.mark.parametrize("dimensions", [1025, 100_000])
def test_more_dimensions_than_the_model_has_are_refused(client: httpx.Client, dimensions: int) -> None:
    error = refusal(ask(client, "x", dimensions=dimensions))

    assert error["message"].startswith("This model does not support specifying dimensions")
    assert error["param"] == "dimensions"


@pytest.mark.parametrize("dimensions", [-1, 1.5, "many", [1], 2**70])
def test_dimensions_that_are_no_count_are_refused(client: httpx.Client, dimensions: Any) -> None:
    assert refusal(ask(client, "x", dimensions=dimensions))["param"] == "dimensions"


def test_what_is_too_long_is_cut_and_the_answer_says_so(client: httpx.Client) -> None:
    long = "word " * 9000

    answer = ask(client, [long, "short", long])

    assert answer.headers["x-appliance-truncated"] == "2"
    assert answer.json()["usage"]["prompt_tokens"] == 2 * 8192 + 1
    assert len(vectors(answer)) == 3


def test_what_is_too_long_is_refused_where_truncate_is_false(client: httpx.Client) -> None:
    error = refusal(ask(client, ["short", "word " * 9000], truncate=False))

    assert "the input length exceeds the context length" in error["message"]
    assert error["code"] == "context_length_exceeded"


def test_unknown_keys_user_and_nulls_are_ignored(client: httpx.Client) -> None:
    answer = ask(client, "x", user={"any": "thing"}, colour="blue", dimensions=None, truncate=None, input_type=None)

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "kind",
    ["query", "document", "search_query", "search_document", "passage", "Query", "classification", "clustering"],
)
def test_input_type_says_what_a_text_is_to_a_search(client: httpx.Client, kind: str) -> None:
    assert ask(client, "x", input_type=kind).status_code == 200


def test_an_unknown_input_type_is_refused(client: httpx.Client) -> None:
    error = refusal(ask(client, "x", input_type="poem"))

    assert error["param"] == "input_type"
    assert "clustering" in error["message"]


@pytest.mark.parametrize("given", [True, False, None, [], ["all-minilm-l6-v2"]])
def test_use_fallback_is_a_word_or_names(client: httpx.Client, given: Any) -> None:
    assert ask(client, "x", use_fallback=given).status_code == 200


@pytest.mark.parametrize("given", ["true", 1, {}, [1], ["x"] * 17])
def test_anything_else_is_refused_by_name(client: httpx.Client, given: Any) -> None:
    assert refusal(ask(client, "x", use_fallback=given))["param"] == "use_fallback"


@pytest.mark.parametrize(
    "name", ["hash", "HASH", "hash:latest", "Hash:Latest", "text-embedding-3-small", "text-embedding-ada-002"]
)
def test_a_models_name_is_found_in_any_form_and_echoed_as_written(client: httpx.Client, name: str) -> None:
    answer = client.post("/v1/embeddings", json={"model": name, "input": "x"})

    assert answer.json()["model"] == name
    assert answer.headers["x-appliance-model"] == "hash"


def test_an_unknown_model_is_404(client: httpx.Client) -> None:
    error = refusal(client.post("/v1/embeddings", json={"model": "gpt-9", "input": "x"}), 404)

    assert error["message"] == "The model `gpt-9` does not exist or you do not have access to it."
    assert error["code"] == "model_not_found"


@pytest.mark.parametrize("body", [{"input": "x"}, {"input": "x", "model": ""}])
def test_a_model_must_be_named(client: httpx.Client, body: dict[str, str]) -> None:
    assert refusal(client.post("/v1/embeddings", json=body))["param"] == "model"


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain", "application/json; charset=x", None]
)
def test_the_content_type_does_not_matter(client: httpx.Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}

    answer = client.post("/v1/embeddings", content=b'{"model": "hash", "input": "x"}', headers=headers)

    assert answer.status_code == 200


def test_a_byte_order_mark_does_not_matter(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", content=b'\xef\xbb\xbf{"model": "hash", "input": "x"}')

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"  ",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"input=x",
        b'{"model": "hash", "input": NaN}',
        b'{"model": "hash", "input": "x", "dimensions": Infinity}',
        b'{"model": "hash", "input": "x", "dimensions": 1e999}',
        b'{"model": "hash", "input": "\\ud800"}',
        b'{"model": "hash", "input": "\xff\xfe"}',
        b'{"model": "hash", "input": ' + b"[" * 100_000,
        b'{"model": ["hash"], "input": "x"}',
        b'{"model": "hash", "input": "x", "truncate": "perhaps"}',
        b'{"model": "hash", "input": "x", "encoding_format": 1}',
    ],
)
def test_a_body_that_cannot_be_used_is_a_clear_400(client: httpx.Client, content: bytes) -> None:
    assert refusal(client.post("/v1/embeddings", content=content))["message"]


def test_errors_do_not_repeat_the_text(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", content=b'{"model": "hash", "input": "my secret", "truncate": "my secret"')

    assert "secret" not in answer.text


def test_a_path_without_v1_does_the_same(client: httpx.Client) -> None:
    body = {"model": "hash", "input": "x"}

    assert client.post("/embeddings", json=body).json() == client.post("/v1/embeddings", json=body).json()
    assert client.get("/models").json() == client.get("/v1/models").json()
    refusal(client.post("/embeddings", json={}))


def test_models_are_listed_with_the_aliases_they_answer_to(client: httpx.Client) -> None:
    content = client.get("/v1/models").json()

    assert content["object"] == "list"
    ids = [each["id"] for each in content["data"]]
    assert {"hash", "text-embedding-3-small"} <= set(ids)
    assert len(ids) == len(set(ids))
    for each in content["data"]:
        assert set(each) == {"id", "object", "created", "owned_by"}
        assert each["object"] == "model"
        assert isinstance(each["created"], int)


def test_a_listed_model_can_be_used_and_read(client: httpx.Client) -> None:
    for each in client.get("/v1/models").json()["data"]:
        assert client.get(f"/v1/models/{each['id']}").json() == each
        assert client.post("/v1/embeddings", json={"model": each["id"], "input": "x"}).status_code == 200


def test_a_model_without_its_files_is_not_listed(client: httpx.Client) -> None:
    ids = [each["id"] for each in client.get("/v1/models").json()["data"]]

    assert "all-minilm-l6-v2" not in ids
    assert refusal(client.get("/v1/models/all-minilm-l6-v2"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize("name", ["nobody%2Fnothing", "nobody/nothing", "x:y"])
def test_an_unknown_id_with_a_slash_is_404_in_the_right_shape(client: httpx.Client, name: str) -> None:
    assert refusal(client.get(f"/v1/models/{name}"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize("form", ["org/hash-too", "org%2Fhash-too", "ORG%2FHash-Too:latest"])
def test_an_id_may_hold_a_slash(start: Callable[..., Any], tmp_path: Any, form: str) -> None:
    cards = tmp_path / "with-alias" / "cards"
    cards.mkdir(parents=True)
    card = (
        'name = "own"\naliases = ["org/hash-too"]\nfamily = "hash"\nengine = "hash"\ndimensions = 64\nmax_tokens = 99\n'
    )
    (cards / "own.toml").write_text(card)
    server = start(data=tmp_path / "with-alias")

    answer = httpx.get(f"{server.url}/v1/models/{form}")

    assert answer.status_code == 200
    assert answer.json()["id"].lower().removesuffix(":latest") == "org/hash-too"


def test_strict_openai_refuses_the_empty_text(start: Callable[..., Any]) -> None:
    server = start(strict_openai=True)
    with httpx.Client(base_url=server.url) as client:
        assert refusal(ask(client, ""))["message"].startswith(INVALID)
        assert refusal(ask(client, ["a", ""]))["message"].startswith(INVALID)
        assert ask(client, " ").status_code == 200


def test_token_ids_can_be_refused(start: Callable[..., Any]) -> None:
    server = start(token_ids="reject")  # noqa: S106 - tokens of a text
    with httpx.Client(base_url=server.url) as client:
        assert refusal(ask(client, HELLO_WORLD))["message"].startswith(INVALID)
        assert ask(client, "hello world").status_code == 200


def test_token_ids_can_be_the_models_own(start: Callable[..., Any]) -> None:
    server = start(token_ids="model")  # noqa: S106 - tokens of a text
    with httpx.Client(base_url=server.url) as client:
        error = refusal(ask(client, HELLO_WORLD))

    assert "vocabulary" in error["message"]  # the hash model has none


def raw(port: int, head: str, body: bytes = b"") -> bytes:
    """What a server answers to these very bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        received = b""
        while part := connection.recv(65536):
            received += part
    return received


BODY = b'{"model":"hash","input":"x","dimensions":32}'


def test_a_body_in_chunks_is_read(live: Any) -> None:
    head = "POST /v1/embeddings HTTP/1.1\nHost: localhost\nConnection: close\nTransfer-Encoding: chunked"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:])) + b"0\r\n\r\n"

    answer = raw(live.port, head, chunks)

    assert b"200 OK" in answer
    assert b'"embedding"' in answer


def test_a_client_that_waits_for_continue_is_told_to(live: Any) -> None:
    head = (
        "POST /v1/embeddings HTTP/1.1\nHost: localhost\nConnection: close\nExpect: 100-continue\n"
        f"Content-Length: {len(BODY)}"
    )

    answer = raw(live.port, head, BODY)

    assert answer.startswith(b"HTTP/1.1 100 Continue")
    assert b"200 OK" in answer


@pytest.mark.parametrize("value", ["Bearer ", "Bearer", "Bearer default-key", "Basic x", ""])
def test_without_keys_any_authorization_is_ignored(live: Any, value: str) -> None:
    head = (
        f"POST /v1/embeddings HTTP/1.1\nHost: localhost\nConnection: close\nAuthorization: {value}\n"
        f"Content-Length: {len(BODY)}"
    )

    assert b"200 OK" in raw(live.port, head, BODY)


def test_a_body_of_many_megabytes_is_read(client: httpx.Client) -> None:
    answer = ask(client, ["y" * 1_000_000] * 8, dimensions=32)

    assert len(vectors(answer)) == 8


def test_the_request_is_documented(client: httpx.Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/v1/embeddings"]["post"]

    properties = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {"input", "model", "encoding_format", "dimensions"} <= set(properties)
    assert len(properties["input"]["oneOf"]) == 5
    assert "$defs" not in str(operation["requestBody"])


def test_a_chain_that_comes_back_or_names_nobody_is_refused(client: httpx.Client) -> None:
    again = refusal(ask(client, "x", use_fallback=["hash"]))
    nobody = refusal(ask(client, "x", use_fallback=["nobody"]), 404)

    assert "comes back to hash" in again["message"]
    assert "`nobody`" in nobody["message"]
