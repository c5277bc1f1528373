"""A second look at what was found."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from appliance.embedding.embedder import Embedder
from appliance.embedding.engine import Prompt, Vector
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.reranker import Reranker
from appliance.embedding.spec import HashSpec, OnnxRerankerSpec
from appliance.errors import EngineFailed, EngineUnavailable
from appliance.search.rerank import passage
from appliance.search.retriever import Found, Mode, Place, Query, Retriever
from appliance.store.base import Chunk
from appliance.store.memory import MemoryStore

pytestmark = pytest.mark.anyio

DIMENSIONS = 256
MODES: tuple[Mode, ...] = ("hybrid", "vector", "keyword")


class Backwards:
    """A reranker's engine that likes a passage the more, the higher the number it begins with; counts what it read."""

    label = "backwards"
    lanes = 1
    batch_tokens = 512

    def __init__(self) -> None:
        self.read: list[str] = []
        self.error: Exception | None = None

    def prepare(
        self, query: str, passages: Sequence[str], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        assert query == "boat"
        self.read += passages
        return [Prompt(each, tokens=4, truncated=truncate and max_tokens == 1) for each in passages]

    def run(self, prompts: Sequence[Prompt]) -> Vector:
        if self.error:
            raise self.error
        return np.array([float(str(prompt.content).split()[0]) - 5 for prompt in prompts], np.float32)

    def close(self) -> None:
        pass


@pytest.fixture
def engine() -> Backwards:
    return Backwards()


@pytest.fixture
def reranker(engine: Backwards) -> Iterator[Reranker]:
    spec = OnnxRerankerSpec(name="r", task="rerank", engine="onnx", family="bert", max_tokens=32, own=("m.onnx",))
    made = Reranker(spec, engine)
    yield made
    made.close()


@pytest.fixture
def embedder() -> Iterator[Embedder]:
    spec = HashSpec(name="hash", engine="hash", family="hash", dimensions=DIMENSIONS, max_tokens=512)
    made = Embedder(spec, HashingEngine(dimensions=DIMENSIONS))
    yield made
    made.close()


@pytest.fixture
async def store(embedder: Embedder) -> MemoryStore:
    """Ten passages about a boat; the higher the number, the more other words there are."""
    store = MemoryStore()
    store.create("all", DIMENSIONS)
    texts = [f"{n} boat {'harbour storm anchor sail mast rope crew deck keel ' * n}" for n in range(10)]
    vectors = (await embedder.embed(texts)).vectors
    for n, text in enumerate(texts):
        store.put("all", f"d{n}", [Chunk(0, text, 0, len(text), 8, "", {})], vectors[n : n + 1])
    return store


@pytest.fixture
def retriever(store: MemoryStore) -> Callable[..., Retriever]:
    return lambda **options: Retriever(vectors=store, words=store, **options)


async def searched(
    retriever: Retriever, embedder: Embedder, reranker: Reranker | None, collection: str = "all", **options: object
) -> list[Found]:
    place = Place(collection, "hash", DIMENSIONS, embedder)
    query = Query(q="boat", places=[place], reranker=reranker, **options)  # type: ignore[arg-type]  # each its own
    return (await retriever.search(query)).found


async def asked(retriever: Retriever, embedder: Embedder, reranker: Reranker | None, **options: object) -> list[str]:
    return [each.document for each in await searched(retriever, embedder, reranker, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
async def test_relevance_decides_the_order_and_becomes_the_score(
    retriever: Callable[..., Retriever], embedder: Embedder, reranker: Reranker, mode: Mode
) -> None:
    plain = await searched(retriever(), embedder, None, mode=mode)

    found = await searched(retriever(), embedder, reranker, mode=mode)

    assert plain[0].document == "d0"
    assert {each.rerank_score for each in plain} == {None}
    assert [each.document for each in found] == [f"d{n}" for n in range(9, -1, -1)]
    assert [each.score for each in found] == [each.rerank_score for each in found]
    assert found[0].score == pytest.approx(1 / (1 + np.exp(-4)))
    parts = {each.document: (each.vector_score, each.vector_rank, each.keyword_score) for each in plain}
    assert {each.document: (each.vector_score, each.vector_rank, each.keyword_score) for each in found} == parts


@pytest.mark.parametrize("mode", MODES)
async def test_only_the_best_are_read_but_at_least_as_many_as_are_asked_for(
    retriever: Callable[..., Retriever], embedder: Embedder, reranker: Reranker, engine: Backwards, mode: Mode
) -> None:
    few = await asked(retriever(rerank_depth=3), embedder, reranker, limit=2, mode=mode)
    read = len(engine.read)
    many = await asked(retriever(rerank_depth=3), embedder, reranker, limit=6, mode=mode)

    assert (few, read) == (["d2", "d1"], 3)
    assert (len(many), len(engine.read) - read) == (6, 6)


@pytest.mark.parametrize("mode", MODES)
async def test_the_best_of_all_that_are_read_come_back_not_of_all_that_are_asked_for(
    retriever: Callable[..., Retriever], embedder: Embedder, reranker: Reranker, mode: Mode
) -> None:
    assert await asked(retriever(rerank_depth=50, depth=1), embedder, reranker, limit=1, mode=mode) == ["d9"]


async def test_the_least_score_is_a_relevance(
    retriever: Callable[..., Retriever], embedder: Embedder, reranker: Reranker
) -> None:
    assert await asked(retriever(), embedder, reranker, min_score=0.9) == ["d9", "d8"]


async def test_nothing_found_needs_no_reranking(
    retriever: Callable[..., Retriever], embedder: Embedder, reranker: Reranker, store: MemoryStore
) -> None:
    store.create("none", DIMENSIONS)

    assert await searched(retriever(), embedder, reranker, "none") == []


async def test_a_search_does_not_go_on_without_its_reranker(
    retriever: Callable[..., Retriever], embedder: Embedder, reranker: Reranker, engine: Backwards
) -> None:
    engine.error = EngineFailed("no answer")
    with pytest.raises(EngineFailed, match="no answer"):
        await asked(retriever(), embedder, reranker)

    reranker.close()
    with pytest.raises(EngineUnavailable):
        await asked(retriever(), embedder, reranker)


@pytest.mark.parametrize(
    ("title", "text", "read"),
    [
        ("", "Otters sleep.", "Otters sleep."),
        ("On otters", "They sleep.", "On otters\nThey sleep."),
        ("On otters", "# On Otters\n\nThey sleep.", "# On Otters\n\nThey sleep."),
        ("  ", "They sleep.", "They sleep."),
    ],
)
def test_a_passage_is_read_with_its_title_unless_it_begins_with_it(title: str, text: str, read: str) -> None:
    assert passage(Chunk(0, text, 0, len(text), 4, title, {})) == read
