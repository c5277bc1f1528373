import asyncio
import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.embedding.embedder import Embedder
from appliance.embedding.engine import EmbeddingEngine
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.spec import HashSpec, Prefixes
from appliance.errors import CollectionNotFound, EngineError, InvalidInput
from appliance.search.cursor import Cursor
from appliance.search.fusion import Fusion
from appliance.search.retriever import Answer, Found, Mode, Place, Query, Retriever
from appliance.store.base import Chunk, Condition
from appliance.store.memory import MemoryStore

pytestmark = pytest.mark.anyio

DIMENSIONS = 256

DOCUMENTS = {
    "boats": ["A boat sails on the sea.", "Oars move a boat where there is no wind."],
    "trains": ["A train runs on rails.", "The station has a clock."],
    "cooking": ["Boil the rice, then fry the onions."],
}


def embedder_of(engine: EmbeddingEngine, *, query: str = "", dimensions: int = DIMENSIONS) -> Embedder:
    spec = HashSpec(
        name="hash",
        engine="hash",
        family="hash",
        dimensions=dimensions,
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


OWN = ("depth", "fusion", "literal_boost", "rerank_depth")
"""What a retriever is made with; the rest is asked."""


async def answered(store: MemoryStore, embedder: Embedder | None, q: str, **options: object) -> Answer:
    made = {key: options.pop(key) for key in OWN if key in options}
    retriever = Retriever(vectors=store, words=store, **made)  # type: ignore[arg-type]  # each test names its own
    place = Place(str(options.pop("collection", "all")), "hash", DIMENSIONS, embedder)
    return await retriever.search(Query(q=q, **{"places": [place], **options}))  # type: ignore[arg-type]  # same


async def search(store: MemoryStore, embedder: Embedder | None, q: str, **options: object) -> list[Found]:
    return (await answered(store, embedder, q, **options)).found


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


async def test_a_hybrid_score_is_the_sum_of_its_parts(store: MemoryStore, embedder: Embedder) -> None:
    for fusion in ("rrf", "dbsf"):
        answer = await answered(store, embedder, "boat clock", fusion=fusion, vector_weight=2.0, keyword_weight=0.5)

        assert answer.weights
        assert (answer.weights.fusion, answer.weights.vector, answer.weights.keyword) == (fusion, 2.0, 0.5)
        assert [each.rank for each in answer.found] == [1, 2, 3, 4, 5]
        for each in answer.found:
            parts = 2.0 * (each.vector_scaled or 0) + 0.5 * (each.keyword_scaled or 0)
            assert each.fused_score == each.score == pytest.approx(parts / 2.5)


async def test_words_count_for_more_where_the_question_is_literal(store: MemoryStore, embedder: Embedder) -> None:
    weights = [
        (await answered(store, embedder, q, literal_boost=3.0)).weights
        for q in ('"a clock"', "a clock", "clock RK3588")
    ]

    assert [each and each.keyword for each in weights] == [3.0, 1.0, 2.0]


async def test_weights_that_are_both_0_are_refused(store: MemoryStore, embedder: Embedder) -> None:
    with pytest.raises(InvalidInput, match="cannot both be 0"):
        await search(store, embedder, "boat", vector_weight=0.0, keyword_weight=0.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"offset": -1}, "at most 1000"),
        ({"offset": 995, "limit": 6}, "at most 1000 together"),
        ({"offset": 1, "after": Cursor(b"")}, "not both"),
        ({"diversity": 1.5}, "0 to 1"),
        ({"per_document": 0}, "1 or more"),
        ({"places": []}, "1 to 16"),
        ({"places": [Place(str(n), "s", 2) for n in range(17)]}, "1 to 16"),
    ],
)
async def test_what_cannot_be_answered_is_refused_with_what_can(
    store: MemoryStore, embedder: Embedder, options: dict[str, object], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        await search(store, embedder, "boat", **options)


async def test_a_document_has_no_more_passages_than_the_cap(store: MemoryStore, embedder: Embedder) -> None:
    for mode in ("hybrid", "vector"):
        found = await search(store, embedder, "a boat on the sea", mode=mode, per_document=1, depth=1)

        assert sorted(each.document for each in found) == ["boats", "cooking", "trains"]


async def test_passages_are_grouped_by_document_and_the_limit_counts_documents(
    store: MemoryStore, embedder: Embedder
) -> None:
    answer = await answered(store, embedder, "a boat on rails", mode="vector", by_document=True, limit=2)

    assert [{each.document for each in group} for group in answer.groups] == [{"boats"}, {"trains"}]
    assert [len(group) for group in answer.groups] == [2, 2]
    assert all(group[0].score >= group[1].score for group in answer.groups)


async def test_collections_of_one_space_share_one_ranking(store: MemoryStore, embedder: Embedder) -> None:
    text = "A boat, a boat."
    store.create("more", DIMENSIONS)
    store.put("more", "boats", [Chunk(0, text, 0, len(text), 8)], (await embedder.embed([text])).vectors)
    both = [Place(name, "hash", DIMENSIONS, embedder) for name in ("all", "more")]

    for mode in ("hybrid", "vector", "keyword"):
        found = await search(store, embedder, "boat", mode=mode, places=both)

        assert {each.collection for each in found} == {"all", "more"}
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
        assert len({each.key for each in found}) == len(found)
    alone = await search(store, embedder, "boat", mode="vector")
    merged = await search(store, embedder, "boat", mode="vector", places=both)
    assert [each.score for each in merged if each.collection == "all"] == [each.score for each in alone]


async def test_collections_of_different_spaces_are_merged_by_rank(store: MemoryStore, embedder: Embedder) -> None:
    small = embedder_of(HashingEngine(dimensions=64), dimensions=64)
    text = "A boat, a boat."
    store.create("small", 64)
    store.put("small", "boats", [Chunk(0, text, 0, len(text), 8)], (await small.embed([text])).vectors)
    both = [Place("all", "hash", DIMENSIONS, embedder), Place("small", "other", 64, small)]

    for mode in ("hybrid", "vector"):
        found = await search(store, embedder, "boat", mode=mode, places=both)

        assert [(each.collection, each.space_rank, each.score) for each in found[:2]] == [
            ("all", 1, 1.0),
            ("small", 1, 1.0),
        ]
    worded = await search(store, None, "boat", mode="keyword", places=both)
    assert {each.space_rank for each in worded} == {None}
    small.close()


async def test_many_questions_are_embedded_together_and_found_as_alone(store: MemoryStore, embedder: Embedder) -> None:
    retriever = Retriever(vectors=store, words=store)
    place = Place("all", "hash", DIMENSIONS, embedder)
    queries = [Query(q=q, places=[place, place]) for q in ("boat", "clock", "rice")]
    queries.append(Query(q="rails", places=[place], mode="keyword"))

    known = await retriever.embed(queries)

    assert [len(each) for each in known] == [1, 1, 1, 0]
    for query, vectors in zip(queries, known, strict=True):
        assert await retriever.search(query, known=vectors) == await retriever.search(query)


async def test_diversity_puts_what_is_different_first(store: MemoryStore, embedder: Embedder) -> None:
    text = "A boat sails on the sea."
    store.put("all", "copy", [Chunk(0, text, 0, len(text), 8)], (await embedder.embed([text])).vectors)

    plain = await search(store, embedder, "boat sails sea", mode="vector", limit=2)
    varied = await search(store, embedder, "boat sails sea", mode="vector", limit=2, diversity=0.7)

    assert {each.chunk.text for each in plain} == {text}
    assert len({each.chunk.text for each in varied}) == 2


async def test_documents_are_like_another_by_the_mean_of_its_passages(store: MemoryStore) -> None:
    retriever = Retriever(vectors=store, words=store)
    corners = np.eye(2, dtype=np.float32)
    store.create("c", 2)
    middle = np.asarray([[0.6, 0.8]], np.float32)
    for name, rows in {"asked": corners, "x": corners[:1], "both": np.concatenate([middle, corners[1:]])}.items():
        store.put("c", name, [Chunk(n, name, 0, 1, 1) for n in range(len(rows))], rows)
    place = Place("c", "s", 2)

    answer = await retriever.similar(place, "asked", per_document=2)

    assert [[each.chunk.ordinal for each in group] for group in answer.groups] == [[0, 1], [0]]
    assert answer.found[0].score == pytest.approx(1.4 / 2**0.5, abs=1e-6)
    assert (await retriever.similar(place, "asked", limit=1, min_score=0.999)).groups == []
    assert (await retriever.similar(place, "nobody")).groups == []


async def test_a_document_whose_passages_cancel_out_is_still_like_something(store: MemoryStore) -> None:
    store.create("c", 2)
    rows = np.asarray([[1, 0], [-1, 0]], np.float32)
    store.put("c", "asked", [Chunk(n, "", 0, 0, 1) for n in range(2)], rows)
    store.put("c", "x", [Chunk(0, "", 0, 0, 1)], rows[:1])

    answer = await Retriever(vectors=store, words=store).similar(Place("c", "s", 2), "asked")

    assert answer.found[0].score == 1.0


Documents = dict[str, list[tuple[str, int]]]

WAYS: list[dict[str, object]] = [
    {"mode": "hybrid", "fusion": "rrf"},
    {"mode": "hybrid", "fusion": "dbsf"},
    {"mode": "vector"},
    {"mode": "keyword"},
]

SOME = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.lists(
        st.tuples(st.sampled_from(["boat", "boat sea", "sea", "sky"]), st.integers(0, 30)), min_size=1, max_size=3
    ),
    max_size=5,
)


def filled(store: MemoryStore, documents: Documents) -> None:
    for name, drawn in documents.items():
        rows = np.stack([np.random.default_rng(seed).normal(size=4) for _, seed in drawn])
        vectors = np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
        store.put("c", name, [Chunk(n, text, 0, len(text), 1) for n, (text, _) in enumerate(drawn)], vectors)


@pytest.fixture(scope="module")
def anything() -> Iterator[Embedder]:
    made = embedder_of(HashingEngine(dimensions=DIMENSIONS))
    yield made
    made.close()


def named(groups: list[list[Found]], *, by_document: bool) -> list[object]:
    return [group[0].document if by_document else group[0].key for group in groups]


def asked(embedder: Embedder, **options: object) -> tuple[Query, dict[tuple[str, int], np.ndarray]]:
    query = Query(q="boat sea", places=[Place("c", "hash", 4, embedder)], **options)  # type: ignore[arg-type]
    return query, {("hash", 4): np.eye(4, dtype=np.float32)[0]}


async def test_pages_fit_together_where_more_are_fused_than_were_asked_for(embedder: Embedder) -> None:
    rng = random.Random(1)  # noqa: S311  # no secrets
    texts = [" ".join(rng.choices([f"word{n}" for n in range(30)], k=12)) for _ in range(300)]
    store = MemoryStore()
    store.create("all", DIMENSIONS)
    vectors = (await embedder.embed(texts)).vectors
    for n, text in enumerate(texts):
        store.put("all", f"d{n:03}", [Chunk(0, text, 0, 9, 12)], vectors[n : n + 1])
    fusions: list[Fusion] = ["dbsf", "rrf"]

    for fusion in fusions:
        whole = await search(store, embedder, "word1 word2 word3", limit=200, depth=50, fusion=fusion)
        pages = [
            await search(store, embedder, "word1 word2 word3", limit=10, offset=n, depth=50, fusion=fusion)
            for n in range(0, 200, 10)
        ]

        assert [found.key for page in pages for found in page] == [found.key for found in whole]


@settings(max_examples=25, deadline=None)
@given(
    documents=SOME,
    way=st.sampled_from(WAYS),
    depth=st.integers(1, 4),
    k=st.integers(1, 5),
    by_document=st.booleans(),
)
def test_pages_by_offset_are_the_whole_in_parts(
    anything: Embedder, documents: Documents, way: dict[str, object], depth: int, k: int, *, by_document: bool
) -> None:
    store = MemoryStore()
    store.create("c", 4)
    filled(store, documents)
    retriever = Retriever(vectors=store, words=store, depth=depth)

    async def names(offset: int, limit: int) -> list[object]:
        query, known = asked(anything, offset=offset, limit=limit, by_document=by_document, **way)
        return named((await retriever.search(query, known=known)).groups, by_document=by_document)

    async def read() -> tuple[list[object], list[object]]:
        whole = await names(0, 100)
        return whole, [each for offset in range(0, len(whole) + 1, k) for each in await names(offset, k)]

    whole, pages = asyncio.run(read())
    assert pages == whole


@pytest.mark.parametrize("fusion", ["rrf", "dbsf"])
@pytest.mark.parametrize("depth", [7, 50])
async def test_pages_by_offset_fit_together_far_behind_the_first(embedder: Embedder, fusion: str, depth: int) -> None:
    store = MemoryStore()
    store.create("notes", DIMENSIONS)
    texts = [f"printer {'error ' * (n % 5)}{'paper ' * (n % 3)}number {n}" for n in range(160)]
    for n, vector in enumerate((await embedder.embed(texts)).vectors):
        store.put("notes", f"d{n}", [Chunk(0, texts[n], 0, len(texts[n]), 8)], vector[None])

    async def names(offset: int, limit: int) -> list[str]:
        found = await search(
            store,
            embedder,
            "printer errors",
            collection="notes",
            depth=depth,
            fusion=fusion,
            offset=offset,
            limit=limit,
        )
        return [each.document for each in found]

    whole = await names(0, 160)
    assert len(set(whole)) == 160
    assert [each for offset in range(0, 160, 10) for each in await names(offset, 10)] == whole


@settings(max_examples=25, deadline=None)
@given(
    arriving=st.lists(SOME, min_size=1, max_size=4),
    way=st.sampled_from(WAYS),
    diversity=st.sampled_from([0.0, 0.5]),
    k=st.integers(1, 5),
    by_document=st.booleans(),
)
def test_pages_by_cursor_give_nothing_twice_and_pass_over_nothing_while_documents_are_added(
    anything: Embedder,
    arriving: list[Documents],
    way: dict[str, object],
    diversity: float,
    k: int,
    *,
    by_document: bool,
) -> None:
    store = MemoryStore()
    store.create("c", 4)
    first, *later = [{f"{n}{name}": texts for name, texts in each.items()} for n, each in enumerate(arriving)]
    filled(store, first)
    retriever = Retriever(vectors=store, words=store, depth=2)
    options = {"diversity": diversity, "by_document": by_document, **way}

    async def read() -> tuple[list[object], list[object]]:
        query, known = asked(anything, limit=100, **options)
        there = named((await retriever.search(query, known=known)).groups, by_document=by_document)
        pages: list[object] = []
        after: Cursor | None = Cursor.begun([])
        while after is not None:
            query, known = asked(anything, after=after, limit=k, **options)
            answer = await retriever.search(query, known=known)
            pages += named(answer.groups, by_document=by_document)
            after = None if answer.after is None else Cursor.begun([]).read(str(answer.after))
            if later:
                filled(store, later.pop())
        return there, pages

    there, pages = asyncio.run(read())
    assert len(set(pages)) == len(pages)
    assert set(there) <= set(pages)
