"""One model, ready to serve."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from appliance.embedding.embedder import Embedder
from appliance.embedding.engine import Image, Matrix, Prompt, Token
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.spec import HashSpec, Prefixes
from appliance.errors import DimensionsNotSupported, EngineFailed, InvalidInput

LONG = 4096


class Same:
    """An engine that has one vector for every text."""

    lanes = 1
    label = "given"
    batch_tokens = 1 << 20

    def __init__(self, vector: Sequence[float]) -> None:
        self.vector = np.array(vector, dtype=np.float32)

    def prepare(
        self, inputs: Sequence[str | Sequence[int]], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        return [Prompt(str(each), tokens=1, truncated=truncate and max_tokens == 1) for each in inputs]

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]

    def run(self, prompts: Sequence[Prompt]) -> Matrix:
        return np.tile(self.vector, (len(prompts), 1))

    def close(self) -> None:
        pass


def card(dimensions: int, *, prefixes: Prefixes | None = None) -> HashSpec:
    return HashSpec(
        name="card",
        engine="hash",
        family="hash",
        space="card",
        dimensions=dimensions,
        max_tokens=32,
        prefixes=prefixes or Prefixes(),
    )


@pytest.fixture
def embedder_of() -> Iterator[Callable[[Sequence[float]], Embedder]]:
    """Makes embedders whose engine has one vector; closes them."""
    made: list[Embedder] = []

    def make(vector: Sequence[float]) -> Embedder:
        made.append(Embedder(card(len(vector)), Same(vector)))
        return made[-1]

    yield make
    for each in made:
        each.close()


async def test_vectors_have_length_one_whole_or_shortened(
    embedder_of: Callable[[Sequence[float]], Embedder],
) -> None:
    embedder = embedder_of([3.0, 4.0, 12.0] + [0.0] * 61)

    whole = await embedder.embed(["a", "b"])
    front = await embedder.embed(["a"], dimensions=2)

    assert np.allclose(whole.vectors[:, :4], [[3 / 13, 4 / 13, 12 / 13, 0]] * 2)
    assert np.allclose(front.vectors, [[0.6, 0.8]])


@pytest.mark.parametrize("number", [0.0, math.nan, math.inf])
async def test_a_vector_without_direction_is_an_error(
    embedder_of: Callable[[Sequence[float]], Embedder], number: float
) -> None:
    embedder = embedder_of([number] * 64)

    with pytest.raises(EngineFailed, match="no direction"):
        await embedder.embed(["a"])


async def test_a_vector_whose_front_has_no_direction_cannot_be_shortened_to_it(
    embedder_of: Callable[[Sequence[float]], Embedder],
) -> None:
    embedder = embedder_of([0.0] * 32 + [1.0] * 32)

    assert (await embedder.embed(["a"])).vectors.shape == (1, 64)
    with pytest.raises(EngineFailed, match="no direction"):
        await embedder.embed(["a"], dimensions=32)


async def test_one_request_has_as_many_inputs_as_one_answer_holds(
    embedder_of: Callable[[Sequence[float]], Embedder],
) -> None:
    embedder = embedder_of([1.0] * LONG)
    most = 2**25 // LONG
    texts = ["a"] * (most + 1)

    with pytest.raises(InvalidInput, match=f"may have {most} of {LONG} dimensions, not {most + 1}") as refused:
        await embedder.embed(texts)
    shorter = await embedder.embed(texts, dimensions=LONG // 2)
    behind = await embedder.embed(texts, background=True)

    assert refused.value.param == "input"
    assert shorter.vectors.shape == (most + 1, LONG // 2)
    assert behind.vectors.shape == (most + 1, LONG)
    assert not embedder.busy


@pytest.mark.parametrize("dimensions", [-1, 0, 65])
async def test_dimensions_that_the_model_does_not_have_are_refused(
    embedder_of: Callable[[Sequence[float]], Embedder], dimensions: int
) -> None:
    embedder = embedder_of([1.0] * 64)

    with pytest.raises(DimensionsNotSupported):
        await embedder.embed(["a"], dimensions=dimensions)


async def test_each_kind_has_its_prefix() -> None:
    engine = HashingEngine(dimensions=64)
    embedder = Embedder(card(64, prefixes=Prefixes(query="ask: ", document="")), engine)

    asked = await embedder.embed(["otters"], kind="query")
    written = await embedder.embed(["ask: otters", "otters"])

    assert np.array_equal(asked.vectors[0], written.vectors[0])
    assert (asked.tokens, written.tokens) == ((2,), (2, 1))
    embedder.close()


async def test_a_centered_vector_loses_its_mean_before_it_is_shortened_and_only_then() -> None:
    embedder = Embedder(card(4).model_copy(update={"centered": True}), Same([4, 2, 1, 1]))

    whole = (await embedder.embed(["text"])).vectors
    front = (await embedder.embed(["text"], dimensions=2)).vectors

    assert np.allclose(whole, np.array([4, 2, 1, 1]) / math.sqrt(22))
    assert np.allclose(front, [[1, 0]])
    embedder.close()


async def test_a_kind_without_a_prefix_of_its_own_has_the_documents() -> None:
    prefixes = Prefixes(query="q: ", document="d: ", clustering="")

    assert [prefixes.of(kind) for kind in ("query", "document", "classification", "clustering")] == [
        "q: ",
        "d: ",
        "d: ",
        "",
    ]


async def test_a_model_of_texts_refuses_images() -> None:
    embedder = Embedder(card(4), Same([4, 2, 1, 1]))

    with pytest.raises(InvalidInput, match="card embeds texts, not images"):
        await embedder.embed(["text", Image(b"")])
    embedder.close()


async def test_vectors_that_are_not_normalised_come_as_the_engine_gives_them(
    embedder_of: Callable[[Sequence[float]], Embedder],
) -> None:
    embedder = embedder_of([3.0, 4.0, 12.0] + [0.0] * 61)

    whole = await embedder.embed(["a"], normalize=False)
    front = await embedder.embed(["a"], normalize=False, dimensions=2)

    assert whole.vectors[0, :4].tolist() == [3, 4, 12, 0]
    assert front.vectors.tolist() == [[3, 4]]


@pytest.mark.parametrize("vector", [[0.0] * 64, [math.nan] * 64])
async def test_not_even_those_may_be_without_direction(
    embedder_of: Callable[[Sequence[float]], Embedder], vector: list[float]
) -> None:
    with pytest.raises(EngineFailed, match="no direction"):
        await embedder_of(vector).embed(["a"], normalize=False)


async def test_sparse_embeddings_take_the_prefix_of_their_kind() -> None:
    embedder = Embedder(card(64, prefixes=Prefixes(query="ask ", document="")), HashingEngine(dimensions=64))

    asked = await embedder.sparse(["otters"], kind="query")
    written = await embedder.sparse(["ask otters"])

    assert embedder.outputs == {"sparse"}
    assert asked.rows[0].ids.tolist() == written.rows[0].ids.tolist()
    assert (asked.tokens, asked.truncated, asked.model, asked.engine) == ((2,), (False,), "card", "hash")
    embedder.close()


async def test_sparse_embeddings_of_too_many_words_are_refused() -> None:
    embedder = Embedder(card(64).model_copy(update={"max_tokens": 8192}), HashingEngine(dimensions=64))

    with pytest.raises(InvalidInput, match="split the request"):
        await embedder.sparse(["word " * 8192] * 17)
    embedder.close()


async def test_a_model_without_tokens_says_so(embedder_of: Callable[[Sequence[float]], Embedder]) -> None:
    embedder = embedder_of([1.0] * 64)

    with pytest.raises(InvalidInput, match="card has no vocabulary here"):
        await embedder.tokenize(["a"])
    with pytest.raises(InvalidInput, match="card has no vocabulary here"):
        await embedder.decode([[1]])
    with pytest.raises(InvalidInput, match="gives no sparse embeddings"):
        await embedder.sparse(["a"])
    with pytest.raises(InvalidInput, match="gives no vectors of tokens"):
        await embedder.token_vectors(["a"])


class Letters(Same):
    """An engine whose tokens are code points."""

    def tokenize(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[Token]]:
        end = [Token(0, "[END]", special=True, start=None, stop=None)] if special_tokens else []
        return [
            [*(Token(ord(each), each, special=False, start=n, stop=n + 1) for n, each in enumerate(text)), *end]
            for text in texts
        ]

    def decode(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        return ["".join(chr(each) for each in text if each or not skip_special_tokens) for text in ids]


async def test_tokens_have_a_prefix_only_if_asked_for_and_a_limit() -> None:
    embedder = Embedder(card(64, prefixes=Prefixes(query="q", document="d")), Letters([1.0] * 64))

    plain, asked = await embedder.tokenize(["a"]), await embedder.tokenize(["a"], kind="query", special_tokens=False)

    assert [[token.text for token in each] for each in (*plain, *asked)] == [["a", "[END]"], ["q", "a"]]
    assert await embedder.decode([[97, 0], [98]], skip_special_tokens=True) == ["a", "b"]
    with pytest.raises(InvalidInput, match="262144 characters are the most"):
        await embedder.tokenize(["a" * 131072] * 2 + ["a"])
    with pytest.raises(InvalidInput, match="1048576 token ids are the most"):
        await embedder.decode([[1] * 2**20, [1]])
    embedder.close()


async def test_a_successor_is_asked_for_tokens() -> None:
    embedder = Embedder(card(64), Letters([1.0] * 64))
    other = Embedder(card(64), Letters([1.0] * 64))

    async def successor() -> Embedder:
        return other

    embedder.successor = successor
    embedder.close()

    assert [token.id for token in (await embedder.tokenize(["a"]))[0]] == [97, 0]
    assert await embedder.decode([[97]]) == ["a"]
    other.close()
