"""One model, ready to serve."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from appliance.embedding.embedder import Embedder
from appliance.embedding.engine import Image, Matrix, Prompt
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


@pytest.mark.parametrize("what", ["sparse", "token_vectors"])
async def test_a_model_that_says_nothing_of_tokens_refuses_to(what: str) -> None:
    embedder = Embedder(card(4), Same([4, 2, 1, 1]))

    with pytest.raises(InvalidInput, match="card gives no"):
        await getattr(embedder, what)(["text"])
    embedder.close()
