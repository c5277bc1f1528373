"""The API of text-embeddings-inference, against the hash model and one whose tokens are letters."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from appliance.api import errors, generate, similarity, tei
from appliance.api.tei import MAX_INPUTS
from appliance.embedding.engine import (
    EmbeddingEngine,
    Matrix,
    Output,
    Prompt,
    RemoteEngine,
    RerankEngine,
    Sparse,
    Token,
)
from appliance.embedding.pull import ModelFiles
from appliance.embedding.registry import Registry
from appliance.embedding.spec import HashSpec, ModelSpec, Prefixes, RerankerSpec
from appliance.errors import EngineFailed, InputTooLong, InvalidInput

COMPUTE = {"x-compute-type", "x-compute-time", "x-compute-characters", "x-compute-tokens", "x-total-time"}


class Letters:
    """An engine whose tokens are letters between a `^` and a `$`, and whose vectors count a, b, c and d, twice."""

    label = "letters"
    lanes = 1
    batch_tokens = 1000
    outputs: frozenset[Output] = frozenset({"sparse", "tokens"})

    def prepare(
        self, inputs: Sequence[str | Sequence[int]], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        del max_tokens
        prompts = []
        for each in inputs:
            if not isinstance(each, str):
                raise InvalidInput("texts only")
            if len(each) > 30 and not truncate:
                raise InputTooLong(tokens=len(each) + 2, limit=32)
            prompts.append(Prompt(each[:30], tokens=min(len(each), 30) + 2, truncated=len(each) > 30))
        return prompts

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [(place, place + 1) for place in range(len(text))]

    def run(self, prompts: Sequence[Prompt]) -> Matrix:
        return np.array([[2 * str(each.content).count(letter) for letter in "abcd"] for each in prompts], np.float32)

    def run_tokens(self, prompts: Sequence[Prompt]) -> list[Matrix]:
        return [np.array([[ord(letter), 0.5] for letter in f"^{each.content}$"], np.float32) for each in prompts]

    def run_sparse(self, prompts: Sequence[Prompt]) -> list[Sparse]:
        found = []
        for each in prompts:
            ids, counts = np.unique([ord(letter) for letter in str(each.content)], return_counts=True)
            found.append(Sparse(ids.astype(np.int64), counts.astype(np.float32)))
        return found

    def tokenize(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[Token]]:
        def around(name: str) -> list[Token]:
            return [Token(ord(name), name, special=True, start=None, stop=None)] if special_tokens else []

        def inside(text: str) -> list[Token]:
            return [Token(ord(each), each, special=False, start=n, stop=n + 1) for n, each in enumerate(text)]

        return [[*around("^"), *inside(text), *around("$")] for text in texts]

    def decode(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        if any(not 0 <= each < 1000 for text in ids for each in text):
            raise InvalidInput("token ids must be from 0 to 999 for this model")
        skipped = "^$" if skip_special_tokens else ""
        return ["".join(chr(each) for each in text if chr(each) not in skipped) for text in ids]

    def close(self) -> None:
        pass


class Dead(Letters):
    """An engine that fails whenever it is asked for more than the word that it is tried with."""

    def run(self, prompts: Sequence[Prompt]) -> Matrix:
        if [each.content for each in prompts] != ["ready"]:
            raise EngineFailed("it died")
        return super().run(prompts)


CARD = HashSpec(
    name="letters",
    aliases=("text-of-letters",),
    engine="hash",
    family="letters",
    dimensions=4,
    max_tokens=32,
    prefixes=Prefixes(query="aa", clustering="b"),
)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The routes over two models, `letters` and `dead`."""
    files = ModelFiles(tmp_path_factory.mktemp("letters"))

    def opened(spec: ModelSpec) -> EmbeddingEngine | RemoteEngine:
        return Dead() if spec.name == "dead" else Letters()

    def no_reranker(spec: RerankerSpec) -> RerankEngine:
        raise AssertionError(spec)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        cards = [CARD, CARD.model_copy(update={"name": "dead", "aliases": (), "space": "dead"})]
        registry = Registry(cards, default="letters", files=files, open_engine=opened, open_reranker=no_reranker)
        app.state.appliance = SimpleNamespace(registry=registry, max_pending=7)
        yield
        await registry.close()

    app = FastAPI(lifespan=lifespan)
    for room in (tei, similarity, generate):
        app.include_router(room.router)
    errors.install(app)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


Post = Callable[..., Any]


def refused(answer: Any, status: int, kind: str, words: str) -> bool:
    content = answer.json()
    assert answer.status_code == status, answer.text
    assert set(content) == {"error", "error_type"}
    assert words in content["error"], content
    return bool(content["error_type"] == kind)


class TestEmbed:
    @pytest.mark.parametrize("path", ["/embed", "/"])
    def test_a_text_or_texts_become_bare_lists_of_unit_vectors(self, client: httpx.Client, path: str) -> None:
        one = client.post(path, json={"inputs": "otters sleep"})
        two = client.post(path, json={"inputs": ["otters sleep", ""], "model": "hash", "truncate": None})

        assert (one.status_code, two.status_code) == (200, 200)
        assert np.shape(one.json()) == (1, 1024)
        assert np.shape(two.json()) == (2, 1024)
        assert one.json()[0] == two.json()[0]
        assert np.allclose(np.linalg.norm(two.json(), axis=1), 1)

    def test_headers_tell_who_answered_and_what_it_cost(self, client: httpx.Client) -> None:
        headers = client.post("/embed", json={"inputs": ["otters sleep", "größe"]}).headers

        assert set(headers) >= COMPUTE | {"x-appliance-model", "x-appliance-engine"}
        assert (headers["x-compute-characters"], headers["x-compute-tokens"]) == ("17", "3")
        assert int(headers["x-total-time"]) == int(headers["x-compute-time"]) >= 0

    def test_vectors_are_shortened(self, client: httpx.Client) -> None:
        found = client.post("/embed", json={"inputs": "otters", "dimensions": 64}).json()

        assert np.shape(found) == (1, 64)
        assert np.linalg.norm(found) == pytest.approx(1)

    def test_without_normalize_they_are_as_the_model_gives_them(self, letters: TestClient) -> None:
        unit = letters.post("/embed", json={"inputs": "aabc"}).json()
        raw = letters.post("/embed", json={"inputs": "aabc", "normalize": False}).json()
        front = letters.post("/embed", json={"inputs": "aabc", "normalize": False, "dimensions": 1}).json()

        assert raw == [[4.0, 2.0, 2.0, 0.0]]
        assert front == [[4.0]]
        assert np.allclose(unit, np.array(raw) / np.linalg.norm(raw))

    def test_a_prompt_name_chooses_the_prefix(self, letters: TestClient) -> None:
        def counted(**body: Any) -> Any:
            return letters.post("/embed", json={"inputs": "c", "normalize": False, **body}).json()[0]

        assert counted() == counted(prompt_name="document") == counted(prompt_name="passage") == [0, 0, 2, 0]
        assert counted(prompt_name="query") == counted(prompt_name="search_query") == [4, 0, 2, 0]
        assert counted(prompt_name="clustering") == [0, 2, 2, 0]
        assert counted(prompt_name="classification") == [0, 0, 2, 0]

    def test_token_ids_are_the_models_own_with_special_tokens_or_without(self, letters: TestClient) -> None:
        ids = [[token["id"] for token in text] for text in letters.post("/tokenize", json={"inputs": "abb"}).json()]

        body = {"normalize": False, "prompt_name": "query"}
        mixed = letters.post("/embed", json={"inputs": ["abb", *ids, [97, 98, 98]], **body}).json()
        one = letters.post("/embed", json={"inputs": ids[0], **body})

        assert mixed == [[6, 4, 0, 0]] * 3
        assert one.json() == [[6, 4, 0, 0]]
        assert one.headers["x-compute-characters"] == "5"
        answer = letters.post("/embed", json={"inputs": [97, 4000]})
        assert refused(answer, 422, "Validation", "token ids must be")

    def test_what_is_too_long_is_cut_and_counted_unless_that_is_refused(self, letters: TestClient) -> None:
        body = {"inputs": ["a" * 40, "b"]}

        cut = letters.post("/embed", json=body)

        assert cut.headers["x-appliance-truncated"] == "1"
        assert cut.headers["x-compute-tokens"] == "35"
        assert refused(letters.post("/embed", json={**body, "truncate": False}), 422, "Validation", "context length")

    @pytest.mark.parametrize("inputs", [[], [[]], ["a", []]])
    @pytest.mark.parametrize("path", ["/embed", "/", "/embed_all", "/embed_sparse"])
    def test_nothing_is_400_empty(self, client: httpx.Client, path: str, inputs: Any) -> None:
        assert refused(client.post(path, json={"inputs": inputs}), 400, "Empty", "`inputs` cannot be empty")

    @pytest.mark.parametrize(
        "inputs", [None, 1, 1.5, True, {"a": 1}, ["a", 1], [1, "a"], [1.5], [True], [["a"]], [None]]
    )
    @pytest.mark.parametrize("path", ["/embed", "/embed_all", "/embed_sparse"])
    def test_what_are_no_inputs_is_422(self, client: httpx.Client, path: str, inputs: Any) -> None:
        assert refused(client.post(path, json={"inputs": inputs}), 422, "Validation", "inputs: ")

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"prompt_name": "poem"}, "Supported values: ['query'"),
            ({"prompt_name": 1}, "prompt_name: a text"),
            ({"truncation_direction": "left"}, "truncation_direction: "),
            ({"dimensions": 0}, "dimensions: "),
            ({"dimensions": -1}, "dimensions: "),
            ({"dimensions": "8"}, "dimensions: "),
            ({"dimensions": 5}, "other than 32 to 1024"),
            ({"dimensions": 1025}, "other than 32 to 1024"),
            ({"normalize": "maybe"}, "normalize: "),
            ({"truncate": []}, "truncate: "),
            ({"model": 5}, "model: "),
        ],
    )
    def test_options_of_the_wrong_kind_are_422(self, client: httpx.Client, wrong: Any, words: str) -> None:
        assert refused(client.post("/embed", json={"inputs": "a", **wrong}), 422, "Validation", words)

    def test_more_than_a_request_may_have_is_422(self, client: httpx.Client) -> None:
        answer = client.post("/embed", json={"inputs": ["a"] * 100_000})

        assert refused(answer, 422, "Validation", f"{MAX_INPUTS} are the most")

    def test_an_unknown_model_is_404_and_one_that_dies_424(self, client: httpx.Client, letters: TestClient) -> None:
        assert refused(client.post("/embed", json={"inputs": "a", "model": "x"}), 404, "Validation", '"x" not found')
        for normalize in (True, False):
            body = {"inputs": "a", "model": "dead", "normalize": normalize}
            assert refused(letters.post("/embed", json=body), 424, "Backend", "it died")

    def test_unknown_keys_are_ignored(self, client: httpx.Client) -> None:
        body = {"inputs": "a", "encoding_format": "float", "truncation_direction": "Right", "parameters": {}}

        assert client.post("/embed", json=body).status_code == 200


class TestTokens:
    def test_each_token_has_a_vector_not_normalised(self, letters: TestClient) -> None:
        answer = letters.post("/embed_all", json={"inputs": ["a", "bc"]})

        assert answer.json() == [
            [[94.0, 0.5], [97.0, 0.5], [36.0, 0.5]],
            [[94.0, 0.5], [98.0, 0.5], [99.0, 0.5], [36.0, 0.5]],
        ]
        assert set(answer.headers) >= COMPUTE
        assert answer.headers["x-compute-tokens"] == "7"

    def test_each_token_has_a_weight(self, letters: TestClient) -> None:
        answer = letters.post("/embed_sparse", json={"inputs": ["bab", ""], "prompt_name": "query"})

        assert answer.json() == [
            [{"index": 97, "value": 3.0}, {"index": 98, "value": 2.0}],
            [{"index": 97, "value": 2.0}],
        ]

    def test_the_hash_model_gives_sparse_embeddings_and_no_vectors_of_tokens(self, client: httpx.Client) -> None:
        sparse = client.post("/embed_sparse", json={"inputs": ["otters sleep", ""]})

        first, empty = sparse.json()
        assert empty == []
        assert len(first) > 5
        assert all(set(each) == {"index", "value"} and each["value"] > 0 for each in first)
        assert sparse.headers["x-compute-tokens"] == "3"
        answer = client.post("/embed_all", json={"inputs": "a"})
        assert refused(answer, 422, "Validation", "gives no vectors of tokens")

    def test_places_of_tokens_are_bytes(self, letters: TestClient) -> None:
        (tokens,) = letters.post("/tokenize", json={"inputs": "aß東a"}).json()

        assert [(each["text"], each["special"], each["start"], each["stop"]) for each in tokens] == [
            ("^", True, None, None),
            ("a", False, 0, 1),
            ("ß", False, 1, 3),
            ("東", False, 3, 6),
            ("a", False, 6, 7),
            ("$", True, None, None),
        ]
        assert set(tokens[0]) == {"id", "text", "special", "start", "stop"}

    def test_special_tokens_and_prompts_come_only_if_wanted(self, letters: TestClient) -> None:
        def texts(**body: Any) -> list[list[str]]:
            answer = letters.post("/tokenize", json={"inputs": ["b", ""], **body})
            return [[token["text"] for token in each] for each in answer.json()]

        assert texts() == [["^", "b", "$"], ["^", "$"]]
        assert texts(add_special_tokens=False) == [["b"], []]
        assert texts(add_special_tokens=False, prompt_name="query") == [["a", "a", "b"], ["a", "a"]]

    def test_ids_become_texts(self, letters: TestClient) -> None:
        one = letters.post("/decode", json={"ids": [94, 97, 36]})
        two = letters.post("/decode", json={"ids": [[94, 97, 36], [98]], "skip_special_tokens": False})

        assert one.json() == ["a"]
        assert two.json() == ["^a$", "b"]

    @pytest.mark.parametrize(
        ("path", "body", "status", "words"),
        [
            ("/tokenize", {"inputs": []}, 400, "`inputs` cannot be empty"),
            ("/tokenize", {"inputs": [1]}, 422, "inputs.0: "),
            ("/tokenize", {"inputs": None}, 422, "inputs: "),
            ("/tokenize", {"inputs": "a", "prompt_name": "x"}, 422, "prompt_name"),
            ("/tokenize", {"inputs": "a" * 300_000}, 422, "262144 characters"),
            ("/tokenize", {"inputs": ["a"] * 100_000}, 422, f"{MAX_INPUTS} are the most"),
            ("/decode", {"ids": []}, 400, "`ids` cannot be empty"),
            ("/decode", {"ids": [[]]}, 400, "`ids` cannot be empty"),
            ("/decode", {"ids": ["a"]}, 422, "ids: "),
            ("/decode", {"ids": [1, [2]]}, 422, "ids: "),
            ("/decode", {"ids": [True]}, 422, "ids: "),
            ("/decode", {"ids": [-1]}, 422, "token ids must be"),
            ("/decode", {"ids": [2**63]}, 422, "ids"),
            ("/decode", {"ids": [[1]] * 100_000}, 422, f"{MAX_INPUTS} are the most"),
            ("/decode", {}, 422, "ids: it is missing"),
        ],
    )
    def test_what_cannot_be_tokens_is_refused(
        self, letters: TestClient, path: str, body: Any, status: int, words: str
    ) -> None:
        assert refused(letters.post(path, json=body), status, "Empty" if status == 400 else "Validation", words)

    @pytest.mark.parametrize(
        ("path", "body"), [("/tokenize", {"inputs": "a"}), ("/decode", {"ids": [1]}), ("/embed", {"inputs": [1, 2]})]
    )
    def test_a_model_without_a_vocabulary_says_so(self, client: httpx.Client, path: str, body: Any) -> None:
        assert refused(client.post(path, json=body), 422, "Validation", "hash has no vocabulary here")


class TestInfo:
    def test_the_default_model_is_told_of(self, letters: TestClient) -> None:
        told = letters.get("/info").json()

        assert told | {"version": "", "tokenization_workers": 0} == {
            "model_id": "letters",
            "model_sha": None,
            "model_dtype": "float32",
            "served_model_name": "letters",
            "model_type": {"embedding": {"pooling": "mean"}},
            "max_concurrent_requests": 7,
            "max_input_length": 32,
            "max_batch_tokens": 32 * MAX_INPUTS,
            "max_batch_requests": None,
            "max_client_batch_size": MAX_INPUTS,
            "auto_truncate": True,
            "tokenization_workers": 0,
            "version": "",
            "sha": None,
            "docker_label": None,
        }

    def test_another_is_asked_for_by_name_and_not_loaded(self, client: httpx.Client, live_reranking: Any) -> None:
        minilm = client.get("/info", params={"model": "all-minilm-l6-v2-int8"}).json()
        reranker = httpx.get(f"{live_reranking.url}/info", params={"model": "shared-words"}).json()

        assert minilm["model_id"] == "sentence-transformers/all-MiniLM-L6-v2"
        assert len(minilm["model_sha"]) == 40
        assert minilm["served_model_name"] == "all-minilm-l6-v2-int8"
        assert minilm["model_dtype"] == "int8"
        assert reranker["model_type"] == {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
        assert refused(client.get("/info", params={"model": "x"}), 404, "Validation", "not found")


class TestSentenceSimilarity:
    @pytest.mark.parametrize("path", ["/similarity", "/"])
    def test_cosines_come_in_the_order_of_the_sentences(self, letters: TestClient, path: str) -> None:
        body = {"inputs": {"source_sentence": "ab", "sentences": ["a", "ba", "d", "abc"]}}

        answer = letters.post(path, json=body)

        assert answer.json() == pytest.approx([0.5**0.5, 1, 0, (2 / 3) ** 0.5])
        assert set(answer.headers) >= COMPUTE

    def test_parameters_say_how_to_embed(self, letters: TestClient) -> None:
        body = {"inputs": {"source_sentence": "b", "sentences": ["a" * 40]}, "model": "text-of-letters"}

        plain = letters.post("/similarity", json=body).json()
        prompted = letters.post("/similarity", json={**body, "parameters": {"prompt_name": "query"}}).json()
        refusal = letters.post("/similarity", json={**body, "parameters": {"truncate": False}})

        assert plain == [0.0]
        assert prompted == pytest.approx([2 / 5**0.5])
        assert refused(refusal, 422, "Validation", "context length")

    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            ({"inputs": {"source_sentence": "a", "sentences": []}}, 400, "`inputs.sentences` cannot be empty"),
            ({"inputs": {"source_sentence": "a"}}, 422, "inputs.sentences: it is missing"),
            ({"inputs": {"sentences": ["a"]}}, 422, "inputs.source_sentence: it is missing"),
            ({"inputs": {"source_sentence": "a", "sentences": "b"}}, 422, "inputs.sentences: a list"),
            ({"inputs": {"source_sentence": "a", "sentences": [1]}}, 422, "inputs.sentences.0: a text"),
            ({"inputs": {"source_sentence": "a", "sentences": ["b"] * 100_000}}, 422, "are the most"),
            (
                {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": {"prompt_name": "x"}},
                422,
                "parameters.prompt_name",
            ),
        ],
    )
    @pytest.mark.parametrize("path", ["/similarity", "/"])
    def test_what_are_no_sentences_is_refused(
        self, client: httpx.Client, path: str, body: Any, status: int, words: str
    ) -> None:
        assert refused(client.post(path, json=body), status, "Empty" if status == 400 else "Validation", words)


@pytest.mark.model
def test_real_tokens_are_told_and_taken(live_minilm: Any, model_folder: Path) -> None:
    del model_folder
    with httpx.Client(base_url=live_minilm.url, timeout=30) as client:
        (tokens,) = client.post("/tokenize", json={"inputs": "Zwölf Boxkämpfer"}).json()
        ids = [token["id"] for token in tokens]
        by_ids, by_text = client.post("/embed", json={"inputs": [ids, "Zwölf Boxkämpfer"]}).json()
        raw = client.post("/embed", json={"inputs": "Zwölf Boxkämpfer", "normalize": False}).json()[0]
        decoded = client.post("/decode", json={"ids": ids}).json()

    text = "Zwölf Boxkämpfer".encode()
    assert [token["special"] for token in tokens] == [True, *[False] * (len(tokens) - 2), True]
    assert all(text[each["start"] : each["stop"]].decode() == each["text"] for each in tokens[1:-1])
    assert decoded == ["zwolf boxkampfer"]
    assert np.allclose(by_ids, by_text, atol=1e-6)
    assert np.allclose(np.array(raw) / np.linalg.norm(raw), by_text, atol=1e-6)
    assert abs(np.linalg.norm(raw) - 1) > 0.1
