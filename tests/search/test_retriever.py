from collections.abc import Iterator

import pytest

from appliance.embedding.embedder import Embedder
from appliance.embedding.engine import EmbeddingEngine
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.spec import HashSpec, Prefixes
from appliance.errors import CollectionNotFound, EngineError, InvalidInput
from appliance.search.retriever import Found, Mode, Retriever
from appliance.store.base import Chunk, Condition
from appliance.store.memory import MemoryStore

pytestmark = pytest.mark.anyio

DIMENSIONS = 256

DOCUMENTS = {
    "boats": ["A boat sails on the sea.", "Oars move a boat where there is no wind."],
    "trains": ["A train runs on rails.", "The station has a clock."],
    "cooking": ["Boil the rice, then fry the onions."],
}


def embedder_of(engine: EmbeddingEngine, *, query: str = "") -> Embedder:
    spec = HashSpec(
        name="hash",
        engine="hash",
        family="hash",
        dimensions=DIMENSIONS,
        max_tokens=512,
        prefixes=Prefixes(query=query),
    )
    return Embedder(spec, engine)


@pytest.fixture
def embedder() -> Iterator[Embedder]:
    made = embedder_of(HashingEngine(dimensions=DIMENSIONS))
    yield made
    made.close()


@pytest.fixture
async def store(embedder: Embedder) -> MemoryStore:
    store = MemoryStore()
    store.create("all", DIMENSIONS)
    for name, texts in DOCUMENTS.items():
        vectors = (await embedder.embed(texts)).vectors
        chunks = [Chunk(n, text, 0, len(text), 8, name, {"part": n}) for n, text in enumerate(texts)]
        store.put("all", name, chunks, vectors)
    return store


async def search(store: MemoryStore, embedder: Embedder | None, q: str, **options: object) -> list[Found]:
    weights = {key: options.pop(key) for key in ("depth", "vector_weight", "keyword_weight", "k") if key in options}
    retriever = Retriever(vectors=store, words=store, **weights)  # type: ignore[arg-type]  # each test names its own
    asked = {"collection": "all", "dimensions": DIMENSIONS, **options}
    return await retriever.search(q, embedder=embedder, **asked)  # type: ignore[arg-type]  # same


@pytest.mark.parametrize("mode", ["hybrid", "vector", "keyword"])
async def test_the_passage_asked_for_comes_first(store: MemoryStore, embedder: Embedder, mode: Mode) -> None:
    found = await search(store, embedder, "fry onions", mode=mode)

    assert (found[0].document, found[0].chunk.ordinal) == ("cooking", 0)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


async def test_a_hybrid_match_tells_what_it_was_found_by(store: MemoryStore, embedder: Embedder) -> None:
    found = await search(store, embedder, "boat sails", mode="hybrid")

    by_vector = await search(store, embedder, "boat sails", mode="vector")
    by_words = await search(store, embedder, "boat sails", mode="keyword")
    assert found[0].score == pytest.approx(1.0)
    assert (found[0].vector_rank, found[0].keyword_rank) == (1, 1)
    assert (found[0].vector_score, found[0].keyword_score) == (by_vector[0].score, by_words[0].score)
    assert len(found) == len(by_vector)
    assert {(each.keyword_score, each.keyword_rank) for each in found[len(by_words) :]} == {(None, None)}


async def test_a_match_found_by_words_alone_has_no_vector_score(store: MemoryStore, embedder: Embedder) -> None:
    found = await search(store, embedder, "boat", depth=1, limit=1, mode="hybrid", vector_weight=0.0)

    assert found[0].keyword_rank == 1
    assert found[0].vector_rank in (None, 1)


async def test_vector_and_keyword_matches_carry_their_own_score_alone(store: MemoryStore, embedder: Embedder) -> None:
    near = (await search(store, embedder, "a boat", mode="vector"))[0]
    worded = (await search(store, embedder, "a boat", mode="keyword"))[0]

    assert (near.score, near.vector_rank, near.keyword_score) == (near.vector_score, 1, None)
    assert 0 < near.score <= 1
    assert (worded.score, worded.keyword_rank, worded.vector_score) == (worded.keyword_score, 1, None)


async def test_words_need_no_model(store: MemoryStore) -> None:
    assert [each.document for each in await search(store, None, "rails", mode="keyword")] == ["trains"]


async def test_anything_but_words_needs_a_model(store: MemoryStore) -> None:
    with pytest.raises(TypeError, match="needs an embedder"):
        await search(store, None, "rails", mode="vector")


async def test_weights_decide_which_leg_leads(store: MemoryStore, embedder: Embedder) -> None:
    vectors_only = await search(store, embedder, "a clock on the sea", keyword_weight=0.0)
    by_vector = await search(store, embedder, "a clock on the sea", mode="vector")

    assert [each.chunk for each in vectors_only] == [each.chunk for each in by_vector]


async def test_no_more_come_back_than_asked_for(store: MemoryStore, embedder: Embedder) -> None:
    for mode in ("hybrid", "vector", "keyword"):
        assert len(await search(store, embedder, "a boat on the sea", limit=2, mode=mode)) == 2


async def test_more_than_the_depth_come_back_if_asked_for(store: MemoryStore, embedder: Embedder) -> None:
    assert len(await search(store, embedder, "a boat", depth=1, limit=5)) == 5


async def test_the_least_score_is_on_the_scale_of_the_mode(store: MemoryStore, embedder: Embedder) -> None:
    cosine = (await search(store, embedder, "boat sails", mode="vector"))[0].score

    assert len(await search(store, embedder, "boat sails", mode="hybrid", min_score=0.999)) == 1
    assert len(await search(store, embedder, "boat sails", mode="vector", min_score=cosine)) == 1
    assert await search(store, embedder, "boat sails", mode="vector", min_score=cosine + 1e-6) == []


async def test_conditions_hold_for_every_match(store: MemoryStore, embedder: Embedder) -> None:
    where = [Condition("part", "=", 1)]
    for mode in ("hybrid", "vector", "keyword"):
        found = await search(store, embedder, "a boat, the clock", mode=mode, where=where)

        assert found
        assert {each.chunk.ordinal for each in found} == {1}


@pytest.mark.parametrize("q", ["", " ", "\n\t"])
async def test_an_empty_question_is_refused(store: MemoryStore, embedder: Embedder, q: str) -> None:
    with pytest.raises(InvalidInput, match="q is empty"):
        await search(store, embedder, q)


@pytest.mark.parametrize("q", ['"', "AND OR NOT", "a* NEAR(b) -c:d", "'; DROP TABLE x", "\0", "?!", "😀"])
async def test_no_question_is_an_operator(store: MemoryStore, embedder: Embedder, q: str) -> None:
    for mode in ("hybrid", "vector", "keyword"):
        await search(store, embedder, q + " boat", mode=mode)


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_a_limit_out_of_range_is_refused(store: MemoryStore, embedder: Embedder, limit: int) -> None:
    with pytest.raises(InvalidInput, match="1 to 1000"):
        await search(store, embedder, "boat", limit=limit)


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
async def test_a_least_score_that_is_no_number_is_refused(store: MemoryStore, embedder: Embedder, score: float) -> None:
    with pytest.raises(InvalidInput, match="min_score"):
        await search(store, embedder, "boat", min_score=score)


async def test_an_unknown_collection_is_an_error(store: MemoryStore, embedder: Embedder) -> None:
    for mode in ("hybrid", "vector", "keyword"):
        with pytest.raises(CollectionNotFound):
            await search(store, embedder, "boat", collection="none", mode=mode)


async def test_a_hybrid_search_does_not_go_on_without_its_model(store: MemoryStore) -> None:
    broken = embedder_of(HashingEngine(dimensions=DIMENSIONS))
    broken.close()

    with pytest.raises(EngineError):
        await search(store, broken, "boat", mode="hybrid")


async def test_the_question_is_embedded_as_a_question(store: MemoryStore) -> None:
    prefixed = embedder_of(HashingEngine(dimensions=DIMENSIONS), query="rice onions ")

    found = await search(store, prefixed, "boat", mode="vector")

    prefixed.close()
    assert found[0].document == "cooking"
