"""From a document's bytes to its chunks."""

import asyncio
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import pytest

from appliance.catalog.records import Chunking, Collection, Work
from appliance.embedding.embedder import Embedder
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.spec import HashSpec
from appliance.ingest.chunk import USUAL_TOKENS
from appliance.ingest.parse import Parsed, parse
from appliance.ingest.prepare import Cut, cut, resolved

LONG = HashSpec(name="hash", engine="hash", family="hash", dimensions=64, max_tokens=4096)


@pytest.fixture
def embedder() -> Iterator[Embedder]:
    opened = Embedder(LONG, HashingEngine(dimensions=64, max_tokens=LONG.max_tokens))
    yield opened
    opened.close()


def work(text: str, chunking: Chunking, *, title: str = "", metadata: Mapping[str, object] | None = None) -> Work:
    collection = Collection(1, "c", "hash", "hash", 64, "ready", datetime(2026, 1, 1, tzinfo=UTC), chunking, "c")
    return Work(collection, 1, "d", 1, 1, title, metadata or {}, "text/markdown", text.encode())


def pieces(embedder: Embedder, taken: Work, *, chunk_tokens: int = 0, chunk_overlap: int = 32) -> Cut:
    found = parse(taken.body, media_type=taken.media_type, name=taken.id)
    return cut(taken, found, embedder, chunk_tokens=chunk_tokens, chunk_overlap=chunk_overlap)


TEXT = "# Guide\n\n" + "".join(f"Otters hold hands {n} times a night. " for n in range(400))


def test_a_model_that_takes_long_texts_gets_chunks_of_the_usual_size(embedder: Embedder) -> None:
    chunks = pieces(embedder, work(TEXT, Chunking())).chunks

    assert len(chunks) > 5
    assert USUAL_TOKENS * 0.7 < chunks[0].tokens <= USUAL_TOKENS


def test_a_collection_says_how_it_is_cut_and_the_settings_where_it_does_not(embedder: Embedder) -> None:
    usual = pieces(embedder, work(TEXT, Chunking()), chunk_tokens=100)
    own = pieces(embedder, work(TEXT, Chunking(tokens=60, overlap=0, strategy="fixed")), chunk_tokens=100)

    assert 60 < max(chunk.tokens for chunk in usual.chunks) <= 100
    assert max(chunk.tokens for chunk in own.chunks) <= 60
    assert all(before.end <= after.start for before, after in zip(own.chunks, own.chunks[1:], strict=False))


def test_an_overlap_that_a_collection_asks_for_may_be_half_of_a_chunk(embedder: Embedder) -> None:
    chunking = Chunking(tokens=60, overlap=30, strategy="fixed", header=False)

    first, second = pieces(embedder, work(TEXT, chunking)).chunks[:2]

    assert len(embedder.spans(TEXT[second.start : first.end])) == 30


def test_chunks_are_embedded_with_title_and_section_unless_the_collection_wants_none(embedder: Embedder) -> None:
    titled = work(TEXT, Chunking(tokens=100), title="On otters")

    with_header = pieces(embedder, titled)
    without = pieces(embedder, work(TEXT, Chunking(tokens=100, header=False), title="On otters"))

    assert str(with_header.inputs[1]).startswith("On otters\nGuide\n")
    assert [chunk.text for chunk in without.chunks] == list(without.inputs)
    assert without.chunks[1].title == "On otters"
    assert all(not chunk.text.startswith("On otters") for chunk in with_header.chunks)


def test_a_chunk_tells_its_section_and_the_caller_s_own_word_counts_more(embedder: Embedder) -> None:
    told = pieces(embedder, work(TEXT, Chunking(), title="On otters", metadata={"year": 2024})).chunks
    own = pieces(embedder, work(TEXT, Chunking(), title="On otters", metadata={"section": "mine"})).chunks

    assert {str(chunk.metadata) for chunk in told} == {str({"section": "Guide", "year": 2024})}
    assert {chunk.metadata["section"] for chunk in own} == {"mine"}


def test_a_chunk_tells_the_pages_it_is_on_and_what_the_document_tells_of_itself(
    embedder: Embedder,
) -> None:
    text = "".join(f"Page {page}. " + "Otters sleep in kelp. " * 43 for page in (1, 2, 3))
    places = tuple((text.index(f"Page {page}."), page + 10) for page in (1, 2, 3))
    paged = Parsed(text, "", "text/plain", pages=places, metadata={"source": "otters.pdf", "page": 0, "lang": "en"})
    taken = work("", Chunking(tokens=100, overlap=0), metadata={"lang": "own"})

    chunks = cut(taken, paged, embedder, chunk_tokens=0, chunk_overlap=0).chunks

    for chunk in chunks:
        pages = [number for place, number in places if place < chunk.end]
        assert chunk.metadata["page"] == [number for place, number in places if place <= chunk.start][-1]
        assert chunk.metadata.get("page_end", chunk.metadata["page"]) == pages[-1]
        assert (chunk.metadata["source"], chunk.metadata["lang"]) == ("otters.pdf", "own")
    assert any("page_end" in chunk.metadata for chunk in chunks)
    assert any("page_end" not in chunk.metadata for chunk in chunks)


def test_a_chunk_tells_what_itself_links_to_and_the_document_all_of_it(embedder: Embedder) -> None:
    sections = [f"# S{n}\n\n" + "Otters sleep in kelp. " * 12 + f"See [[N{n}]] and [x](https://x.org)." for n in (1, 2)]
    text = "---\ntitle: T\ntags: [a]\nsection: mine\n---\n" + "\n\n".join(sections)

    first = pieces(embedder, work(text, Chunking(tokens=100, overlap=0)))
    again = pieces(embedder, work(text, Chunking(tokens=100, overlap=0), metadata=first.metadata))
    own = pieces(embedder, work(text, Chunking(tokens=100, overlap=0), metadata={"references": ["mine"]}))

    assert first.metadata == {"tags": ["a"], "section": "mine", "references": ["N1", "https://x.org", "N2"]}
    told = [
        (chunk.metadata.get("references"), chunk.metadata["section"], chunk.metadata["tags"]) for chunk in first.chunks
    ]
    assert told == [(["N1", "https://x.org"], "S1", ["a"]), (["N2", "https://x.org"], "S2", ["a"])]
    assert again.chunks == first.chunks
    assert [chunk.metadata["references"] for chunk in own.chunks] == [["mine"], ["mine"]]
    assert all(first.text[chunk.start : chunk.end] == chunk.text for chunk in first.chunks)


def test_references_are_bounded(embedder: Embedder) -> None:
    many = pieces(embedder, work("".join(f"[a]({n}) " for n in range(300)), Chunking()))

    assert many.metadata["references"] == [str(n) for n in range(100)]


def test_what_a_collection_leaves_open_is_resolved_from_the_settings() -> None:
    assert resolved(Chunking(), chunk_tokens=0, chunk_overlap=32) == Chunking(tokens=USUAL_TOKENS, overlap=32)
    assert resolved(Chunking(tokens=40), chunk_tokens=100, chunk_overlap=32) == Chunking(tokens=40, overlap=10)
    whole = Chunking(strategy="code", tokens=64, overlap=30, header=False)
    assert resolved(whole, chunk_tokens=100, chunk_overlap=0) == whole


def test_a_title_takes_its_room_from_a_model_that_takes_little() -> None:
    opened = Embedder(LONG.model_copy(update={"max_tokens": 64}), HashingEngine(dimensions=64, max_tokens=64))
    try:
        chunks = pieces(opened, work(TEXT, Chunking(), title="a title of six words, more")).chunks
        answer = asyncio.run(opened.embed([f"a title of six words, more\n{chunk.text}" for chunk in chunks]))
    finally:
        opened.close()

    assert not any(answer.truncated)
