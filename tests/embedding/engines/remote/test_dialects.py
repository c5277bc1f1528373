"""Each kind of server is asked as it wants to be, and its refusals are understood."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.embedding.engines.remote.access import Remote
from appliance.embedding.engines.remote.dialects import checked, dialect_of
from appliance.embedding.engines.remote.refusals import OtherForm, TooLong, TooMany, Trouble, refused
from appliance.embedding.spec import RemoteSpec
from appliance.errors import EngineUnavailable, InputTooLong, InvalidInput, UpstreamFailed

TEXTS = ["one", "two words", "three words here"]
KEYED = Remote(secret={"A_KEY": "sk-canary"}.get)


async def test_openai_is_asked_for_base64_and_its_tokens_are_shared_out(
    upstream: Any, engine_of: Any, vector_of: Any
) -> None:
    server = await upstream()
    engine = engine_of(server.url + "/v1/", key="A_KEY", remote=KEYED)

    encoded = await engine.encode(TEXTS, truncate=True)

    assert encoded.vectors.dtype == np.float32
    assert encoded.vectors.tolist() == [vector_of(text) for text in TEXTS]
    assert sum(encoded.tokens) == 22
    assert encoded.tokens == tuple(sorted(encoded.tokens))
    assert encoded.truncated == (False, False, False)
    (asked,) = server.asked
    assert asked.path == "/v1/embeddings"
    assert asked.headers["authorization"] == "Bearer sk-canary"
    assert asked.body == {"model": "m", "input": TEXTS, "encoding_format": "base64"}


async def test_openai_may_answer_with_numbers_and_in_any_order(
    upstream: Any, engine_of: Any, reply: Any, vector_of: Any
) -> None:
    def shuffled(asked: Any) -> Any:
        rows = [{"index": n, "embedding": vector_of(text)} for n, text in enumerate(asked.body["input"])]
        return reply({"data": rows[::-1]})

    server = await upstream(shuffled)

    encoded = await engine_of(server.url).encode(TEXTS, truncate=True)

    assert encoded.vectors.tolist() == [vector_of(text) for text in TEXTS]
    assert encoded.tokens == (2, 4, 6), "estimates, where there is no usage"


async def test_openai_gets_token_ids_apart_from_texts_and_a_blank_for_nothing(
    upstream: Any, engine_of: Any, vector_of: Any
) -> None:
    server = await upstream()

    encoded = await engine_of(server.url).encode(["one", [1, 2, 3], [4], ""], truncate=True)

    assert sorted((asked.body["input"] for asked in server.asked), key=str) == [[" "], ["one"], [[1, 2, 3], [4]]]
    assert encoded.vectors.tolist() == [vector_of(given) for given in ("one", [1, 2, 3], [4], " ")]


async def test_openai_without_base64_is_asked_for_numbers_from_then_on(
    upstream: Any, engine_of: Any, usual: Any, reply: Any
) -> None:
    def plain(asked: Any) -> Any:
        if asked.body["encoding_format"] == "base64":
            return reply({"error": {"message": "encoding_format: only float is supported"}}, status=422)
        return usual["openai"](asked)

    server = await upstream(plain)
    engine = engine_of(server.url, max_inputs=8)

    await engine.encode(["a"] * 16, truncate=True)
    await engine.encode(["a"], truncate=True)

    assert [asked.body["encoding_format"] for asked in server.asked] == ["base64"] * 2 + ["float"] * 3


async def test_ollama_is_told_what_to_do_with_what_is_too_long(
    upstream: Any, engine_of: Any, usual: Any, vector_of: Any
) -> None:
    server = await upstream(usual["ollama"])
    engine = engine_of(server.url, provider="ollama")

    encoded = await engine.encode(TEXTS, truncate=True)
    await engine.encode(["x"], truncate=False, max_tokens=16)

    assert encoded.vectors.tolist() == [vector_of(text) for text in TEXTS]
    assert sum(encoded.tokens) == 15
    assert [asked.path for asked in server.asked] == ["/api/embed"] * 2
    assert server.asked[0].body == {"model": "m", "input": TEXTS, "truncate": True}
    assert server.asked[1].body == {"model": "m", "input": ["x"], "truncate": False, "options": {"num_ctx": 16}}


async def test_ollama_takes_no_token_ids(upstream: Any, engine_of: Any, usual: Any) -> None:
    server = await upstream(usual["ollama"])

    with pytest.raises(InvalidInput, match="token ids"):
        await engine_of(server.url, provider="ollama").encode(["a", [1, 2]], truncate=True)

    assert server.asked == []


async def test_tei_counts_tokens_in_a_header(upstream: Any, engine_of: Any, usual: Any, vector_of: Any) -> None:
    server = await upstream(usual["tei"])

    engine = engine_of(server.url, provider="tei", model="")

    encoded = await engine.encode(TEXTS, truncate=True)
    ids = await engine.encode([[1, 2]], truncate=False)

    assert encoded.vectors.tolist() == [vector_of(text) for text in TEXTS]
    assert sum(encoded.tokens) == 9
    assert server.asked[0].path == "/embed"
    assert server.asked[0].body == {"inputs": TEXTS, "truncate": True, "normalize": True}
    assert ids.vectors.tolist() == [vector_of([1, 2])]
    assert server.asked[1].body == {"inputs": [[1, 2]], "truncate": False, "normalize": True}


async def test_hugging_face_is_asked_at_the_whole_address_and_given_time_to_load(
    upstream: Any, engine_of: Any, usual: Any, reply: Any
) -> None:
    def loading(asked: Any) -> Any:
        if len(server.asked) == 1:
            return reply({"error": "Model a/b is currently loading", "estimated_time": 0.2}, status=503)
        return usual["tei"](asked)

    server = await upstream(loading)
    engine = engine_of(server.url + "/models/a/b/pipeline/feature-extraction", provider="tei", model="")

    encoded = await engine.encode(TEXTS, truncate=True)

    assert encoded.vectors.shape == (3, 4)
    assert [asked.path for asked in server.asked] == ["/models/a/b/pipeline/feature-extraction"] * 2


TOO_LONG = {
    "openai": (
        400,
        {"error": {"message": "This model's maximum context length is 8192 tokens, however you requested 8610 tokens"}},
    ),
    "ollama": (400, {"error": "the input length exceeds the context length"}),
    "tei": (413, {"error": "Input validation error: `inputs` must have less than 512 tokens. Given: 900"}),
}


@pytest.mark.parametrize("provider", TOO_LONG)
async def test_a_text_that_is_too_long_is_refused_or_cut_as_the_caller_wants(
    provider: str, upstream: Any, engine_of: Any, usual: Any, reply: Any
) -> None:
    status, body = TOO_LONG[provider]

    def strict(asked: Any) -> Any:
        texts = asked.body.get("input") or asked.body["inputs"]
        if any(len(text.split()) > 60 for text in texts):
            return reply(body, status=status)
        return usual[provider](asked)

    server = await upstream(strict)
    engine = engine_of(server.url, provider=provider)
    texts = ["short", "word " * 500, "word " * 61]

    with pytest.raises(InputTooLong, match="more than 100 tokens"):
        await engine.encode(texts, truncate=False)
    encoded = await engine.encode(texts, truncate=True)

    assert encoded.truncated == (False, True, True)
    assert len(server.asked) == 1 + 3


async def test_a_tighter_limit_than_the_models_is_kept_here(upstream: Any, engine_of: Any) -> None:
    server = await upstream()
    engine = engine_of(server.url)

    encoded = await engine.encode(["one two three", "one"], truncate=True, max_tokens=2)

    assert server.asked[0].body["input"] == ["one two ", "one"]
    assert encoded.truncated == (True, False)
    with pytest.raises(InputTooLong):
        await engine.encode(["one two three"], truncate=False, max_tokens=2)
    with pytest.raises(InvalidInput):
        await engine.encode(["one"], truncate=True, max_tokens=0)


async def test_a_batch_that_is_too_large_is_halved_and_that_is_remembered(
    upstream: Any, engine_of: Any, usual: Any, reply: Any, vector_of: Any
) -> None:
    def small(asked: Any) -> Any:
        if len(asked.body["inputs"]) > 4:
            told = f"batch size {len(asked.body['inputs'])} > maximum allowed batch size 4"
            return reply({"error": told, "error_type": "Validation"}, status=422)
        return usual["tei"](asked)

    server = await upstream(small)
    engine = engine_of(server.url, provider="tei", model="")
    texts = [f"{n}" for n in range(16)]

    encoded = await engine.encode(texts, truncate=True)
    first = len(server.asked)
    await engine.encode(texts, truncate=True)

    assert encoded.vectors.tolist() == [vector_of(text) for text in texts]
    assert first == 3 + 4
    assert len(server.asked) == first + 4


async def test_a_body_that_is_too_large_is_halved(upstream: Any, engine_of: Any, usual: Any, reply: Any) -> None:
    server = await upstream(
        lambda asked: usual["openai"](asked) if len(asked.body["input"]) < 3 else reply("<html>", status=413)
    )

    encoded = await engine_of(server.url).encode(["a"] * 5, truncate=True)

    assert encoded.vectors.shape == (5, 4)


async def test_requests_are_split_by_inputs_and_by_tokens(upstream: Any, engine_of: Any) -> None:
    server = await upstream()

    await engine_of(server.url, max_inputs=3).encode(["a"] * 7, truncate=True)
    assert sorted(len(asked.body["input"]) for asked in server.asked) == [1, 3, 3]
    server.asked.clear()
    await engine_of(server.url, max_request_tokens=10).encode(["a" * 12] * 5 + ["a" * 100], truncate=True)

    assert sorted(len(asked.body["input"]) for asked in server.asked) == [1, 1, 2, 2]


async def test_nothing_in_gives_nothing_out(upstream: Any, engine_of: Any) -> None:
    server = await upstream()

    encoded = await engine_of(server.url).encode([], truncate=True)

    assert (encoded.vectors.shape, encoded.tokens, server.asked) == ((0, 4), (), [])


async def test_a_lone_surrogate_does_not_stop_a_text(upstream: Any, engine_of: Any) -> None:
    server = await upstream()

    await engine_of(server.url).encode(["a\ud800b"], truncate=True)

    assert server.asked[0].body["input"] == ["a?b"]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_wrong_key_is_refused_with_the_provider_and_the_keys_name(
    status: int, upstream: Any, engine_of: Any, reply: Any
) -> None:
    told = {"error": {"message": "Incorrect API key provided: sk-canary", "code": "invalid_api_key"}}
    server = await upstream(lambda _: reply(told, status=status))

    with pytest.raises(EngineUnavailable) as caught:
        await engine_of(server.url, key="A_KEY", remote=KEYED).encode(["a"], truncate=True)
    with pytest.raises(EngineUnavailable, match="wants a key"):
        await engine_of(server.url).encode(["a"], truncate=True)

    assert caught.value.message == f"openai at {server.url[7:]} refused the key A_KEY"
    assert len(server.asked) == 2, "no second try"


@pytest.mark.parametrize(
    ("provider", "advice"), [("openai", "does not have the model m"), ("ollama", "pull it there"), ("tei", "nothing")]
)
async def test_a_model_that_is_not_there_is_told(
    provider: str, advice: str, upstream: Any, engine_of: Any, reply: Any
) -> None:
    server = await upstream(lambda _: reply({"error": "model 'm' not found"}, status=404))

    with pytest.raises(EngineUnavailable, match=advice):
        await engine_of(server.url, provider=provider).encode(["a"], truncate=True)

    assert len(server.asked) == 1


async def test_their_words_are_told_shortened_and_never_the_callers(upstream: Any, engine_of: Any, reply: Any) -> None:
    message = "This model does not support specifying dimensions. " + "x" * 1000
    server = await upstream(lambda _: reply({"error": {"message": message}}, status=400))
    engine = engine_of(server.url, key="A_KEY", remote=KEYED)

    with pytest.raises(UpstreamFailed, match=r"openai at .* answered 400: This model does not support") as caught:
        await engine.encode(["a"], truncate=True)
    assert len(caught.value.message) < 300
    for secret in ("my secret diary of 1984, which nobody may read", "diary"):
        message = f"cannot embed 'xx {secret}' now"
        with pytest.raises(UpstreamFailed, match=r"answered 400$"):
            await engine.encode([secret], truncate=True)
    message = "what is sk-canary?"
    with pytest.raises(UpstreamFailed, match=r"answered 400$"):
        await engine.encode(["a"], truncate=True)

    assert len(server.asked) == 4, "a request that was refused is not sent again"


async def test_a_used_up_quota_is_told_and_not_tried_again(upstream: Any, engine_of: Any, reply: Any) -> None:
    told = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    server = await upstream(lambda _: reply(told, status=429))

    with pytest.raises(EngineUnavailable, match="quota"):
        await engine_of(server.url).encode(["a"], truncate=True)

    assert len(server.asked) == 1


def of_items(make: Callable[[int], list[dict[str, Any]]]) -> Callable[[Any], Any]:
    return lambda asked: {"data": make(len(asked.body["input"]))}


GOOD = [1.0, 2.0, 3.0, 4.0]
NO_ANSWERS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "fewer vectors": ("openai", of_items(lambda n: [{"index": i, "embedding": GOOD} for i in range(n - 1)]), "2 vect"),
    "an index twice": ("openai", of_items(lambda n: [{"index": 0, "embedding": GOOD}] * n), "which vector belongs"),
    "no index": ("openai", of_items(lambda n: [{"embedding": GOOD}] * n), "which vector belongs"),
    "NaN": (
        "openai",
        of_items(lambda n: [{"index": i, "embedding": "AADAfwAAgD8AAIA/AACAPw=="} for i in range(n)]),
        "N",
    ),
    "zeros": ("openai", of_items(lambda n: [{"index": i, "embedding": [0.0] * 4} for i in range(n)]), "no direction"),
    "no base64": ("openai", of_items(lambda n: [{"index": i, "embedding": "%%%"} for i in range(n)]), "no vector"),
    "half a number": ("openai", of_items(lambda n: [{"index": i, "embedding": "AAA="} for i in range(n)]), "no vector"),
    "three dimensions": (
        "openai",
        of_items(lambda n: [{"index": i, "embedding": GOOD[:3]} for i in range(n)]),
        "of 3 dimensions, the card says 4",
    ),
    "a list of numbers": ("openai", lambda _: {"data": [1, 2, 3]}, "no list"),
    "another program": ("openai", lambda _: {"hello": "world"}, "no list"),
    "null": ("ollama", lambda _: {"embeddings": [[None, 1, 1, 1]] * 3}, "no vector"),
    "strings": ("ollama", lambda _: {"embeddings": [["1", "2", "3", "4"]] * 3}, "no vector"),
    "infinity": ("ollama", lambda _: {"embeddings": [[1e300, 1, 1, 1]] * 3}, "no direction"),
    "ragged": ("ollama", lambda _: {"embeddings": [GOOD, GOOD[:2], GOOD]}, "unequal lengths"),
    "all in one": ("ollama", lambda _: {"embeddings": [GOOD * 3]}, "1 vectors for 3 inputs"),
    "an empty list": ("ollama", lambda _: {"embeddings": []}, "0 vectors for 3 inputs"),
    "vectors of tokens": ("tei", lambda _: [[GOOD, GOOD]] * 3, "no vector"),
    "an object": ("tei", lambda _: {"embeddings": [GOOD] * 3}, "no list"),
}


@pytest.mark.parametrize("case", NO_ANSWERS)
async def test_what_is_no_answer_is_never_served(case: str, upstream: Any, engine_of: Any, reply: Any) -> None:
    provider, body, told = NO_ANSWERS[case]
    server = await upstream(lambda asked: reply(body(asked)))

    with pytest.raises(UpstreamFailed, match=told) as caught:
        await engine_of(server.url, provider=provider).encode(TEXTS, truncate=True)

    assert caught.value.message.startswith(f"{provider} at 127.0.0.1:")


def card(provider: str) -> RemoteSpec:
    return RemoteSpec.model_validate(
        {
            "name": "far",
            "family": "bert",
            "engine": "remote",
            "provider": provider,
            "urls": ("http://board",),
            "model": "m",
            "dimensions": 4,
            "max_tokens": 10,
        }
    )


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([GOOD, "data"])
names = st.sampled_from(["data", "index", "embedding", "embeddings", "usage", "prompt_tokens", "error", "code"])
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner), max_leaves=12
)


@pytest.mark.parametrize("provider", ["openai", "ollama", "tei"])
@given(told=anything, status=st.integers(201, 599))
def test_whatever_a_server_says_is_vectors_or_a_reason(provider: str, told: Any, status: int) -> None:
    spec = card(provider)
    dialect = dialect_of(spec)
    content = json.dumps(told).encode()

    with suppress(ValueError):
        assert checked(dialect.read(content, {}, count=2).rows, 4).shape == (2, 4)
    reason = refused(spec, dialect, "it", ["a"], status=status, headers={}, content=content, key="")
    assert isinstance(reason, Trouble | TooLong | TooMany | OtherForm)


def test_a_deep_answer_is_no_vector() -> None:
    deep: Any = [1.0]
    for _ in range(500):
        deep = [deep]

    with pytest.raises(ValueError, match="sent"):
        checked(deep, 4)
