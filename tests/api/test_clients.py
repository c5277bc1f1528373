"""The client libraries that people use, as they come, against a live server."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import ollama
import openai
import pytest
from pydantic import SecretStr

from appliance.api import cl100k

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what they import, not of how we use them
    from langchain_ollama import OllamaEmbeddings
    from langchain_openai import OpenAIEmbeddings

KEY = SecretStr("none")

TEXTS = ["the cat sat on the mat", "a train to Lyon", "Füße und naïve Cafés", "", "the cat sat on the mat"]


@pytest.fixture
def gpt(live: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def llama(live: Any) -> Iterator[ollama.Client]:
    client = ollama.Client(host=live.url)
    yield client
    client._client.close()


@pytest.fixture
def offline_tiktoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain's tokenizer fetches this file unless it finds it here, named by its address's sha1."""
    shutil.copy(cl100k.FILE, tmp_path / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))


def near(ours: Any, theirs: Any) -> bool:
    return np.allclose(np.array(ours), np.array(theirs), atol=1e-6)


class TestOpenai:
    def test_its_default_of_base64_gives_the_same_floats(self, gpt: openai.OpenAI) -> None:
        packed = gpt.embeddings.create(model="hash", input=TEXTS)

        plain = gpt.embeddings.create(model="hash", input=TEXTS, encoding_format="float")
        assert [each.index for each in packed.data] == list(range(len(TEXTS)))
        assert near([each.embedding for each in packed.data], [each.embedding for each in plain.data])
        assert len(packed.data[0].embedding) == 1024
        assert packed.model == "hash"
        assert packed.usage.total_tokens == packed.usage.prompt_tokens > 0

    def test_every_parameter_is_taken(self, gpt: openai.OpenAI) -> None:
        answer = gpt.embeddings.create(
            model="text-embedding-3-small",
            input="x",
            dimensions=64,
            user="me",
            encoding_format="float",
            extra_body={"truncate": True, "input_type": "query", "unknown": 1},
        )

        assert len(answer.data[0].embedding) == 64

    def test_token_ids_are_text(self, gpt: openai.OpenAI) -> None:
        answer = gpt.embeddings.create(model="hash", input=[[15339, 1917]])

        assert near(
            answer.data[0].embedding, gpt.embeddings.create(model="hash", input="hello world").data[0].embedding
        )

    def test_an_answer_passes_its_strict_validation(self, live: Any) -> None:
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", _strict_response_validation=True) as client:
            assert client.embeddings.create(model="hash", input="x", encoding_format="float").object == "list"
            assert client.models.list().data

    def test_models_are_listed_and_read(self, gpt: openai.OpenAI) -> None:
        listed = [each.id for each in gpt.models.list()]

        assert "hash" in listed
        assert any("embed" in each for each in listed)
        assert gpt.models.retrieve("hash").object == "model"

    def test_a_model_with_a_slash_is_read(self, start: Callable[..., Any], tmp_path: Path) -> None:
        cards = tmp_path / "own" / "cards"
        cards.mkdir(parents=True)
        (cards / "own.toml").write_text(
            'name = "own"\naliases = ["BAAI/own-m3"]\nfamily = "hash"\nengine = "hash"\n'
            "dimensions = 64\nmax_tokens = 99\n"
        )
        server = start(data=tmp_path / "own")

        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
            assert client.models.retrieve("BAAI/own-m3").id == "BAAI/own-m3"
            assert client.embeddings.create(model="BAAI/own-m3", input="x").model == "BAAI/own-m3"

    def test_its_errors_are_told_apart(self, gpt: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as bad:
            gpt.embeddings.create(model="hash", input=[])
        with pytest.raises(openai.NotFoundError) as unknown:
            gpt.embeddings.create(model="gpt-9", input="x")
        with pytest.raises(openai.NotFoundError):
            gpt.models.retrieve("nobody/nothing")

        assert (bad.value.param, bad.value.type) == ("input", "invalid_request_error")
        assert unknown.value.code == "model_not_found"

    def test_a_wrong_key_is_told(self, start: Callable[..., Any]) -> None:
        server = start(api_keys=["right"])

        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided") as error:
                client.embeddings.create(model="hash", input="x")
            assert error.value.code == "invalid_api_key"
            assert client.with_options(api_key="right").embeddings.create(model="hash", input="x").data

    @pytest.mark.anyio
    async def test_its_asynchronous_client_works_too(self, live: Any) -> None:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="x") as client:
            answer = await client.embeddings.create(model="hash", input=TEXTS)
            listed = [each.id async for each in client.models.list()]

        assert len(answer.data) == len(TEXTS)
        assert "hash" in listed


class TestOllama:
    def test_embed_takes_one_text_or_many(self, llama: ollama.Client) -> None:
        one = llama.embed(model="hash", input=TEXTS[0])
        many = llama.embed(model="hash", input=TEXTS, truncate=True, keep_alive="10m", options={"num_ctx": 4096})

        assert near(one.embeddings[0], many.embeddings[0])
        assert len(many.embeddings) == len(TEXTS)
        assert many.prompt_eval_count
        assert many.total_duration
        assert len(llama.embed(model="hash", input="x", dimensions=64).embeddings[0]) == 64

    def test_the_legacy_call_gives_the_same_vector(self, llama: ollama.Client) -> None:
        assert near(llama.embeddings("hash", TEXTS[0]).embedding, llama.embed("hash", TEXTS[0]).embeddings[0])

    def test_models_are_listed_shown_and_seen_in_memory(self, llama: ollama.Client) -> None:
        llama.embed("hash", "x")

        assert "hash:latest" in [each.model for each in llama.list().models]
        shown = llama.show("hash")
        assert shown.modelinfo is not None
        assert shown.modelinfo["hash.embedding_length"] == 1024
        assert shown.capabilities == ["embedding"]
        assert [each.model for each in llama.ps().models] == ["hash:latest"]

    def test_a_pull_reports_until_success(self, llama: ollama.Client) -> None:
        told = [each.status for each in llama.pull("hash", stream=True)]

        assert told[-1] == "success"
        assert llama.pull("hash").status == "success"

    def test_a_pull_that_fails_raises(self, start: Callable[..., Any]) -> None:
        client = ollama.Client(host=start(offline=True).url)

        with pytest.raises(ollama.ResponseError, match="could not be fetched"):
            list(client.pull("all-minilm", stream=True))
        with pytest.raises(ollama.ResponseError, match="could not be fetched"):
            client.pull("all-minilm")
        client._client.close()

    def test_its_errors_hold_our_words(self, llama: ollama.Client) -> None:
        with pytest.raises(ollama.ResponseError, match='model "unknown-model" not found') as unknown:
            llama.embed("unknown-model", "x")
        with pytest.raises(ollama.ResponseError, match="exceeds the context length") as long:
            llama.embed("hash", "word " * 9000, truncate=False)
        with pytest.raises(ollama.ResponseError, match="not found") as nothing:
            llama.delete("nothing")
        with pytest.raises(ollama.ResponseError, match="does not support chat"):
            llama.chat("hash", [{"role": "user", "content": "hi"}])

        assert (unknown.value.status_code, long.value.status_code, nothing.value.status_code) == (404, 400, 404)

    def test_generate_loads_a_model(self, llama: ollama.Client) -> None:
        assert llama.generate("hash", keep_alive="10m").done_reason == "load"

    @pytest.mark.anyio
    async def test_its_asynchronous_client_works_too(self, live: Any) -> None:
        client = ollama.AsyncClient(host=live.url)

        answer = await client.embed("hash", TEXTS)

        assert len(answer.embeddings) == len(TEXTS)
        await client._client.aclose()


class TestLangchain:
    @pytest.mark.usefixtures("offline_tiktoken")
    def test_openai_embeddings_work_as_they_come(self, live: Any, gpt: openai.OpenAI) -> None:
        chain = OpenAIEmbeddings(model="hash", openai_api_base=f"{live.url}/v1", openai_api_key=KEY)

        documents = chain.embed_documents(TEXTS)

        plain = gpt.embeddings.create(model="hash", input=TEXTS)
        assert near(documents, [each.embedding for each in plain.data])
        assert near(chain.embed_query(TEXTS[1]), documents[1])
        assert all(isinstance(each, float) for each in documents[0])
        chain.client._client.close()

    def test_openai_embeddings_of_strings_work_too(self, live: Any) -> None:
        chain = OpenAIEmbeddings(
            model="hash",
            openai_api_base=f"{live.url}/v1",
            openai_api_key=KEY,
            check_embedding_ctx_length=False,
            dimensions=64,
        )

        assert [len(each) for each in chain.embed_documents(TEXTS)] == [64] * len(TEXTS)
        chain.client._client.close()

    def test_ollama_embeddings_work_as_they_come(self, live: Any, llama: ollama.Client) -> None:
        chain = OllamaEmbeddings(model="hash", base_url=live.url, validate_model_on_init=True, keep_alive=300)

        documents = chain.embed_documents(TEXTS)

        assert near(documents, llama.embed("hash", TEXTS).embeddings)
        assert near(chain.embed_query(TEXTS[1]), documents[1])
        assert chain._client is not None
        chain._client._client.close()

    @pytest.mark.model
    @pytest.mark.usefixtures("offline_tiktoken")
    def test_a_cat_is_near_a_kitten(self, live_minilm: Any) -> None:
        chain = OpenAIEmbeddings(model="all-minilm", openai_api_base=f"{live_minilm.url}/v1", openai_api_key=KEY)

        cat, kitten, train = chain.embed_documents(["a cat", "a kitten", "the train to Lyon"])

        assert np.dot(cat, kitten) > np.dot(cat, train) + 0.2
        chain.client._client.close()


class TestHuggingFace:
    @pytest.mark.parametrize("path", ["", "/embed"])
    def test_its_client_extracts_features(self, live: Any, gpt: openai.OpenAI, path: str) -> None:
        client = huggingface_hub.InferenceClient(f"{live.url}{path}")

        one = client.feature_extraction(TEXTS[0], normalize=True, truncate=True, truncation_direction="right")
        many = client.feature_extraction(TEXTS, prompt_name="document")

        plain = gpt.embeddings.create(model="hash", input=TEXTS)
        assert one.shape == (1, 1024)
        assert near(one[0], plain.data[0].embedding)
        assert near(many, [each.embedding for each in plain.data])

    @pytest.mark.parametrize("path", ["", "/similarity"])
    def test_its_client_compares_sentences(self, live: Any, path: str) -> None:
        client = huggingface_hub.InferenceClient(f"{live.url}{path}")

        found = client.sentence_similarity(TEXTS[0], other_sentences=[TEXTS[1], TEXTS[4]])

        assert found[1] == pytest.approx(1.0)
        assert -1 <= found[0] < 0.9

    def test_its_client_reads_our_errors(self, live: Any) -> None:
        client = huggingface_hub.InferenceClient(f"{live.url}/embed")

        with pytest.raises(huggingface_hub.errors.HfHubHTTPError) as refused:
            client.feature_extraction("x", prompt_name="poem")
        assert refused.value.response.status_code == 422
