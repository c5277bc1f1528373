"""The Ollama API keeps the promises that its clients, and programs that look for an Ollama, rely on."""

import re
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from appliance.api.ollama import seconds

NULLS = {
    **dict.fromkeys(("mirostat", "mirostat_eta", "mirostat_tau", "num_ctx", "num_gpu", "num_thread", "repeat_last_n")),
    **dict.fromkeys(("repeat_penalty", "temperature", "stop", "tfs_z", "top_k", "top_p")),
}
"""What langchain-ollama sends as options."""


def ask(client: httpx.Client, given: Any, **extra: Any) -> httpx.Response:
    return client.post("/api/embed", json={"model": "hash", "input": given, **extra})


def vectors(answer: httpx.Response) -> list[list[float]]:
    assert answer.status_code == 200, answer.text[:500]
    found: list[list[float]] = answer.json()["embeddings"]
    return found


def refusal(answer: httpx.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert set(content) == {"error"}
    message: str = content["error"]
    return message


def test_the_root_says_that_ollama_is_running(client: httpx.Client) -> None:
    answer = client.get("/")

    assert answer.text == "Ollama is running"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("path", ["/", "/api/tags", "/api/version", "/api/ps"])
def test_head_is_answered_wherever_get_is(client: httpx.Client, path: str) -> None:
    answer = client.head(path)

    assert answer.status_code == 200
    assert answer.content == b""


def test_the_version_is_three_numbers_that_clients_accept(client: httpx.Client) -> None:
    version = client.get("/api/version").json()["version"]

    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)


def test_embed_answers_in_the_order_of_the_texts(client: httpx.Client) -> None:
    answer = ask(client, ["one", "two", "three and more"])

    content = answer.json()
    assert set(content) == {"model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"}
    assert content["model"] == "hash"
    assert content["prompt_eval_count"] == sum(
        ask(client, each).json()["prompt_eval_count"] for each in ("one", "two", "three and more")
    )
    assert content["total_duration"] >= content["load_duration"] >= 0
    assert vectors(answer) == [vectors(ask(client, each))[0] for each in ("one", "two", "three and more")]
    assert np.linalg.norm(vectors(answer), axis=1) == pytest.approx(1, abs=1e-6)
    assert answer.headers["x-appliance-model"] == "hash"


@pytest.mark.parametrize("given", ["", [], None])
def test_nothing_to_embed_only_loads_the_model(client: httpx.Client, given: Any) -> None:
    assert ask(client, given).json() == {"model": "hash", "embeddings": []}


def test_a_missing_input_only_loads_the_model(client: httpx.Client) -> None:
    assert client.post("/api/embed", json={"model": "hash"}).json() == {"model": "hash", "embeddings": []}


def test_an_empty_text_in_a_list_is_embedded(client: httpx.Client) -> None:
    assert len(vectors(ask(client, [""]))) == 1
    assert len(vectors(ask(client, ["a", "", "b"]))) == 3


@pytest.mark.parametrize("given", [7, {"a": "b"}, True, ["a", 1], [[1, 2]], ["a", None]])
def test_an_input_that_is_no_text_is_refused(client: httpx.Client, given: Any) -> None:
    assert refusal(ask(client, given)) == "invalid input type"


def test_more_than_2048_texts_are_taken_at_once(client: httpx.Client) -> None:
    answer = ask(client, [f"document {n}" for n in range(3000)], dimensions=32)

    assert len(vectors(answer)) == 3000


@pytest.mark.parametrize("name", ["hash", "HASH", "hash:latest", "Hash:LATEST", "text-embedding-3-small"])
def test_a_name_is_found_in_any_form_and_echoed_as_written(client: httpx.Client, name: str) -> None:
    content = client.post("/api/embed", json={"model": name, "input": "x"}).json()

    assert content["model"] == name
    assert len(content["embeddings"]) == 1


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("unknown-model", 404, 'model "unknown-model" not found, try pulling it first'),
        ("", 404, "model '' not found"),
        (None, 404, "model '' not found"),
        ("a b", 400, "invalid model name"),
        ("../x", 400, "invalid model name"),
        ("/x", 400, "invalid model name"),
        ("x:", 400, "invalid model name"),
        ("hf.co/BAAI/bge-m3-gguf:Q8_0", 404, 'model "hf.co/BAAI/bge-m3-gguf:Q8_0" not found, try pulling it first'),
    ],
)
def test_a_model_that_is_not_there_is_told_in_ollamas_words(
    client: httpx.Client, name: str | None, status: int, message: str
) -> None:
    assert refusal(client.post("/api/embed", json={"model": name, "input": "x"}), status) == message


def test_a_model_that_was_not_pulled_is_one_to_pull(start: Callable[..., Any]) -> None:
    server = start(offline=True)

    answer = httpx.post(f"{server.url}/api/embed", json={"model": "all-minilm", "input": "x"})

    assert refusal(answer, 404) == 'model "all-minilm" not found, try pulling it first'


@pytest.mark.parametrize("options", [None, {}, NULLS, {"use_mmap": True}, {"num_ctx": None}, {"num_ctx": 8192.0}])
def test_options_do_not_matter(client: httpx.Client, options: Any) -> None:
    assert vectors(ask(client, "x y z", options=options)) == vectors(ask(client, "x y z"))


def test_num_ctx_bounds_the_tokens_of_each_text(client: httpx.Client) -> None:
    answer = ask(client, ["why is the sky blue", "why"], options={"num_ctx": 2})

    assert vectors(answer)[0] == vectors(ask(client, "why is"))[0]
    assert answer.json()["prompt_eval_count"] == 3
    assert answer.headers["x-appliance-truncated"] == "1"


def test_more_num_ctx_than_the_model_has_is_the_models_own(client: httpx.Client) -> None:
    answer = ask(client, "word " * 9000, options={"num_ctx": 1_000_000})

    assert answer.json()["prompt_eval_count"] == 8192


def test_a_context_without_room_is_refused(client: httpx.Client) -> None:
    assert "maximum context length" in refusal(ask(client, "x", options={"num_ctx": 0}))


@pytest.mark.parametrize(("texts", "options"), [("word " * 9000, {}), (["a", "one two three"], {"num_ctx": 2})])
def test_truncate_false_refuses_what_is_too_long(client: httpx.Client, texts: Any, options: dict[str, int]) -> None:
    message = refusal(ask(client, texts, truncate=False, options=options))

    assert message.startswith("the input length exceeds the context length")


@pytest.mark.parametrize("truncate", [None, True])
def test_what_is_too_long_is_cut_by_default(client: httpx.Client, truncate: bool | None) -> None:  # noqa: FBT001 - a case
    answer = ask(client, "word " * 9000, truncate=truncate)

    assert answer.json()["prompt_eval_count"] == 8192
    assert answer.headers["x-appliance-truncated"] == "1"


def test_dimensions_cut_and_scale_again(client: httpx.Client) -> None:
    [whole] = vectors(ask(client, "shorter"))

    [short] = vectors(ask(client, "shorter", dimensions=64))

    front = np.array(whole[:64])
    assert short == pytest.approx(front / np.linalg.norm(front), abs=1e-6)


@pytest.mark.parametrize("dimensions", [None, 0, -5, 1024, 5000])
def test_dimensions_that_cut_nothing_are_ignored(client: httpx.Client, dimensions: int | None) -> None:
    assert vectors(ask(client, "x", dimensions=dimensions)) == vectors(ask(client, "x"))


@pytest.mark.parametrize("dimensions", [True, "64", 64.5])
def test_dimensions_are_a_whole_number(client: httpx.Client, dimensions: Any) -> None:
    assert "dimensions" in refusal(ask(client, "x", dimensions=dimensions))


def test_numbers_have_a_point(client: httpx.Client) -> None:
    text = ask(client, "word").text

    assert re.search(r"[\[,]-?\d+[,\]]", text[text.index("[[") : text.index("]]")]) is None


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", None])
def test_the_content_type_does_not_matter(client: httpx.Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}

    for path in ("/api/embed", "/api/embeddings", "/api/show", "/api/generate"):
        assert client.post(path, content=b'{"model": "hash"}', headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path", ["/api/embed", "/api/embeddings", "/api/show", "/api/pull", "/api/generate", "/api/chat"]
)
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"model": 1e999}', b'{"model": "\\ud800"}', b'{"model": 7}'])
def test_a_body_that_cannot_be_used_is_a_clear_400(client: httpx.Client, path: str, content: bytes) -> None:
    message = refusal(client.post(path, content=content))

    assert message
    assert content or message == "missing request body"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("", None),
        (300.0, 300),
        (42.5, 42.5),
        (0, 0),
        ("0", 0),
        ("10m", 600),
        ("24h", 86400),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("300ms", 0.3),
        ("2us", 2e-6),
        ("2µs", 2e-6),
        ("+5m", 300),
        (-1, -1),
        ("-1", -1),
        ("-1m", -1),
        ("300", 300),
        (1e300, -1),
        ("99999999h", -1),
    ],
)
def test_keep_alive_is_seconds_or_a_go_duration(given: Any, expected: float | None) -> None:
    assert seconds(given) == pytest.approx(expected)


@pytest.mark.parametrize("given", [True, [], {}, "soon", "5 m", "m", "nan", "inf", "1h30"])
def test_another_keep_alive_is_refused(client: httpx.Client, given: Any) -> None:
    assert "keep_alive" in refusal(ask(client, "x", keep_alive=given))


def test_the_legacy_endpoint_gives_one_vector_of_length_one(client: httpx.Client) -> None:
    answer = client.post(
        "/api/embeddings", json={"model": "hash", "prompt": "a text", "options": NULLS, "keep_alive": None}
    )

    assert set(answer.json()) == {"embedding"}
    assert answer.json()["embedding"] == vectors(ask(client, "a text"))[0]


@pytest.mark.parametrize("prompt", ["", None])
def test_the_legacy_endpoint_without_a_prompt_only_loads(client: httpx.Client, prompt: str | None) -> None:
    assert client.post("/api/embeddings", json={"model": "hash", "prompt": prompt}).json() == {"embedding": []}


def test_the_legacy_endpoint_wants_a_model(client: httpx.Client) -> None:
    assert refusal(client.post("/api/embeddings", json={"prompt": "x"})) == "model is required"


def test_tags_list_installed_models_with_their_tag(client: httpx.Client) -> None:
    models = client.get("/api/tags").json()["models"]

    assert "hash:latest" in [each["name"] for each in models]
    assert "all-minilm-l6-v2:latest" not in [each["name"] for each in models]
    for each in models:
        assert each["name"] == each["model"]
        assert ":" in each["name"]
        assert each["size"] > 0
        assert re.fullmatch(r"[0-9a-f]{64}", each["digest"])
        assert datetime.fromisoformat(each["modified_at"]).tzinfo is not None
        assert each["capabilities"] == ["embedding"]
        assert {"parent_model", "format", "family", "families", "parameter_size", "quantization_level"} <= set(
            each["details"]
        )
        assert each["details"]["embedding_length"] > 0


CARD = """
name = "words"
aliases = ["Our-Words", "words:v1", "words:latest", "someone/words", "text-embedding-3-large"]
family = "hash"
engine = "hash"
dimensions = 64
max_tokens = 8192
"""


@pytest.fixture
def named(start: Callable[..., Any], tmp_path: Path) -> Any:
    """A server with a card that has aliases."""
    cards = tmp_path / "named" / "cards"
    cards.mkdir(parents=True)
    (cards / "words.toml").write_text(CARD)
    return start(data=tmp_path / "named")


def test_tags_list_the_aliases_that_ollama_could_have_beside_their_model(named: Any) -> None:
    models = httpx.get(f"{named.url}/api/tags").json()["models"]

    names = [each["name"] for each in models]
    assert names == ["hash:latest", "words:latest", "our-words:latest", "words:v1"]
    assert [each["model"] for each in models] == names
    ours = [{**each, "name": "", "model": ""} for each in models[1:]]
    assert ours == [ours[0]] * 3


def test_langchain_finds_an_alias_before_it_embeds(named: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        from langchain_ollama import OllamaEmbeddings

        embeddings = OllamaEmbeddings(model="our-words", base_url=named.url, validate_model_on_init=True)

    assert len(embeddings.embed_query("hello")) == 64
    assert embeddings._client is not None
    embeddings._client._client.close()


def test_both_lists_of_models_are_in_one_order(client: httpx.Client) -> None:
    tags = [each["name"].removesuffix(":latest") for each in client.get("/api/tags").json()["models"]]

    assert [each["id"] for each in client.get("/v1/models").json()["data"]][: len(tags)] == tags


@pytest.mark.parametrize(
    "body", [{"model": "hash"}, {"name": "hash"}, {"model": "", "name": "HASH:latest", "options": None}]
)
def test_show_tells_what_clients_look_for(client: httpx.Client, body: dict[str, Any]) -> None:
    content = client.post("/api/show", json=body).json()

    assert content["capabilities"] == ["embedding"]
    assert content["license"] == "mit"
    assert content["model_info"]["general.architecture"] == "hash"
    assert content["model_info"]["hash.context_length"] == 8192
    assert content["model_info"]["hash.embedding_length"] == 1024
    assert re.search(r"num_ctx\s+8192", content["parameters"])
    for key in ("modelfile", "template", "parameters"):
        assert isinstance(content[key], str)
    assert datetime.fromisoformat(content["modified_at"]).tzinfo is not None


@pytest.mark.parametrize("path", ["/api/show", "/api/pull"])
def test_a_model_must_be_named(client: httpx.Client, path: str) -> None:
    assert refusal(client.post(path, json={})) == "model is required"
    assert refusal(client.request("DELETE", "/api/delete", json={})) == "model is required"


@pytest.mark.parametrize("name", ["nothing", "nothing:latest"])
def test_an_unknown_model_is_told_by_its_canonical_name(client: httpx.Client, name: str) -> None:
    expected = "model 'nothing:latest' not found"

    assert refusal(client.post("/api/show", json={"model": name}), 404) == expected
    assert refusal(client.post("/api/pull", json={"model": name}), 404) == expected
    assert refusal(client.request("DELETE", "/api/delete", json={"name": name}), 404) == expected


def test_ps_lists_what_is_loaded_and_until_when(client: httpx.Client) -> None:
    ask(client, "x", keep_alive="10m")
    [some] = client.get("/api/ps").json()["models"]
    ask(client, "x", keep_alive=-1)
    [forever] = client.get("/api/ps").json()["models"]

    assert some["name"] == some["model"] == "hash:latest"
    assert 590 < datetime.fromisoformat(some["expires_at"]).timestamp() - time.time() <= 601
    assert datetime.fromisoformat(forever["expires_at"]).year > 2300
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", some["expires_at"])
    assert some["context_length"] == 8192
    assert "size_vram" in some


def test_generate_loads_and_unloads(start: Callable[..., Any]) -> None:
    with httpx.Client(base_url=start().url) as client:
        loaded = client.post("/api/generate", json={"model": "hash", "keep_alive": "5m"}).json()
        there = client.get("/api/ps").json()["models"]
        gone = client.post("/api/generate", json={"model": "Hash", "keep_alive": 0}).json()

        assert (loaded["done"], loaded["done_reason"], loaded["response"]) == (True, "load", "")
        assert [each["name"] for each in there] == ["hash:latest"]
        assert (gone["model"], gone["done_reason"]) == ("Hash", "unload")
        assert datetime.fromisoformat(gone["created_at"]).tzinfo is not None
        assert client.get("/api/ps").json() == {"models": []}


def test_a_prompt_is_refused_for_no_model_here_writes_text(client: httpx.Client) -> None:
    asked = {"model": "hash", "prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}

    assert refusal(client.post("/api/generate", json=asked)) == '"hash" does not support generate'
    assert refusal(client.post("/api/chat", json=asked)) == '"hash" does not support chat'
    assert "not found" in refusal(client.post("/api/chat", json={"model": "x"}), 404)


@pytest.mark.parametrize("path", ["/api/create", "/api/copy", "/api/push"])
def test_what_makes_models_is_refused_with_a_reason(client: httpx.Client, path: str) -> None:
    assert "card" in refusal(client.post(path, json={"model": "x"}))


@pytest.mark.parametrize("key", ["model", "name"])
def test_pulling_what_is_here_ends_in_success(client: httpx.Client, key: str) -> None:
    answer = client.post("/api/pull", json={key: "hash", "insecure": False})

    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.splitlines()[0] == '{"status":"pulling manifest"}'
    assert answer.text.splitlines()[-1] == '{"status":"success"}'
    assert client.post("/api/pull", json={key: "hash", "stream": False}).json() == {"status": "success"}


def test_a_pull_that_fails_tells_it_on_its_last_line(start: Callable[..., Any]) -> None:
    server = start(offline=True)

    told = httpx.post(f"{server.url}/api/pull", json={"model": "all-minilm"})
    plain = httpx.post(f"{server.url}/api/pull", json={"model": "all-minilm", "stream": False})

    assert told.status_code == 200
    assert told.text.splitlines()[-1].startswith('{"error":"the files of all-minilm-l6-v2 could not be fetched')
    assert "success" not in told.text
    assert "could not be fetched" in refusal(plain, 502)


def test_the_default_model_cannot_be_deleted(client: httpx.Client) -> None:
    assert "default" in refusal(client.request("DELETE", "/api/delete", json={"model": "hash"}), 409)


def test_a_model_that_no_card_names_is_not_fetched_for_a_caller(client: httpx.Client) -> None:
    told = refusal(client.post("/api/pull", json={"model": "org/name"}), 404)

    assert told.startswith("model 'org/name:latest' not found: no card names it; `appliance pull org/name`")


def test_a_licence_that_has_to_be_accepted_is_told_on_the_last_line(start: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "data" / "cards").mkdir(parents=True)
    (tmp_path / "data" / "cards" / "x.toml").write_text(
        'name = "x"\nlicense = "cc-by-nc-4.0"\naccept_license = true\nengine = "onnx"\nfamily = "bert"\n'
        'dimensions = 8\nmax_tokens = 16\npinned = ["model.onnx"]\n'
        f'sources = [{{ kind = "hub", repo = "org/x", revision = "{"0" * 40}" }}]\n'
    )
    server = start(data=tmp_path / "data", offline=True)

    told = httpx.post(f"{server.url}/api/pull", json={"model": "x"})
    plain = httpx.post(f"{server.url}/api/pull", json={"model": "x", "stream": False})

    expected = "the licence of x (cc-by-nc-4.0) has to be accepted before its files are pulled"
    assert told.text.splitlines()[-1].startswith(f'{{"error":"{expected}')
    assert refusal(plain, 403).startswith(expected)


def test_a_model_that_was_not_pulled_cannot_be_deleted(client: httpx.Client) -> None:
    assert "not found" in refusal(client.request("DELETE", "/api/delete", json={"name": "all-minilm-l6-v2"}), 404)


def test_the_requests_are_documented(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]

    schema = paths["/api/embed"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "input", "truncate", "dimensions", "keep_alive", "options"} <= set(schema["properties"])
    assert "requestBody" in paths["/api/delete"]["delete"]


@pytest.mark.model
def test_minilm_counts_special_tokens_and_knows_kittens(live_minilm: Any) -> None:
    with httpx.Client(base_url=live_minilm.url, timeout=30) as client:
        counts = [
            client.post("/api/embed", json={"model": "all-minilm", "input": text}).json()["prompt_eval_count"]
            for text in ("why is the sky blue?", "I believe the meaning of life is")
        ]
        cat, kitten, dog = vectors(
            client.post("/api/embed", json={"model": "all-minilm", "input": ["cat", "kitten", "dog"]})
        )

    assert counts == [8, 9]
    assert np.dot(cat, kitten) > np.dot(cat, dog)


@pytest.mark.model
@pytest.mark.parametrize(("num_ctx", "words"), [(1, "maximum context length"), (0, "maximum context length")])
def test_minilm_has_no_room_for_text_in_so_small_a_context(live_minilm: Any, num_ctx: int, words: str) -> None:
    body = {"model": "all-minilm", "input": "why is the sky blue?", "options": {"num_ctx": num_ctx}}

    assert refusal(httpx.post(f"{live_minilm.url}/api/embed", json=body)).count(words) == 1


@pytest.mark.model
def test_minilm_in_a_context_of_three_reads_the_first_word(live_minilm: Any) -> None:
    with httpx.Client(base_url=live_minilm.url, timeout=30) as client:
        body = {"model": "all-minilm", "input": "why is the sky blue?", "options": {"num_ctx": 3}}
        [cut] = vectors(client.post("/api/embed", json=body))
        [why] = vectors(client.post("/api/embed", json={"model": "all-minilm", "input": "why"}))
        refused = refusal(client.post("/api/embed", json={**body, "truncate": False}))

    assert np.dot(cut, why) > 0.999
    assert "the input length exceeds the context length" in refused
