"""What only the store in Milvus has: versions instead of transactions, and limits. Milvus Lite stands for a cluster."""

import sys
from typing import Any

import numpy as np
import pytest

from appliance.errors import InvalidInput, ModelMismatch, StoreUnavailable
from appliance.store.base import Chunk, Condition, Entry, Matrix
from appliance.store.memory import MemoryStore
from appliance.store.milvus import MilvusStore

X, Y, Z = np.eye(3, dtype=np.float32)


def units(number: int, dimensions: int, *, seed: int = 0) -> Matrix:
    rows = np.random.default_rng(seed).normal(size=(number, dimensions))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


class Dying(MilvusStore):
    """Ends between the rows of a document and the row that makes them count."""

    def __init__(self, living: MilvusStore) -> None:
        self.__dict__.update(living.__dict__)

    def _commit(self, *_: object) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("url", ["", "nowhere", "ftp://u:hidden@h", "http://u:hidden@h:port", "postgresql://h/d"])
def test_an_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidInput, match="store_url") as caught:
        MilvusStore(url)

    assert "hidden" not in str(caught.value)


def test_a_client_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)

    with pytest.raises(StoreUnavailable, match=r"rag-appliance\[milvus\]"):
        MilvusStore("http://127.0.0.1:9")


def test_a_server_that_is_not_there_is_said() -> None:
    pytest.importorskip("pymilvus", reason="pymilvus is not installed")

    with pytest.raises(StoreUnavailable, match="Milvus"):
        MilvusStore("http://127.0.0.1:9", seconds=0.5)


def test_half_a_document_is_seen_by_nobody_and_goes_with_the_next_change(milvus: MilvusStore) -> None:
    milvus.create("c", 3)
    milvus.put("c", "d", [Chunk(0, "old apples", 0, 9, 2), Chunk(1, "old pears", 0, 9, 2)], np.stack([X, Y]))

    for document in ("d", "new"):
        with pytest.raises(KeyboardInterrupt):
            Dying(milvus).put("c", document, [Chunk(0, "lost plums", 0, 9, 2)], Z[None])

    assert [chunk.text for chunk in milvus.chunks("c", "d")] == ["old apples", "old pears"]
    assert milvus.chunks("c", "new") == []
    assert [match.chunk.text for match in milvus.nearest("c", Z, limit=3)] == ["old apples", "old pears"]
    assert milvus.matching("c", "plums", limit=3) == []
    assert [entry.document for entry in milvus.entries("c")] == ["d"]
    milvus.put("c", "d", [Chunk(0, "new", 0, 3, 1)], Z[None])
    milvus.remove("c", "new")
    assert milvus.count("c") == 1


def test_a_text_that_is_too_long_is_refused_and_the_old_document_stays(milvus: MilvusStore) -> None:
    milvus.create("c", 3)
    milvus.put("c", "d", [Chunk(0, "kept", 0, 4, 1)], X[None])

    with pytest.raises(InvalidInput, match="65535"):
        milvus.put("c", "d", [Chunk(0, "ä" * 40_000, 0, 9, 2)], X[None])
    with pytest.raises(InvalidInput, match="65535"):
        milvus.put("c", "d", [Chunk(0, "x", 0, 9, 2, metadata={"x": "y" * 70_000})], X[None])

    assert milvus.chunks("c", "d")[0].text == "kept"


def test_a_condition_never_leaves_too_few(milvus: MilvusStore) -> None:
    rows = units(2000, 16)
    reference = MemoryStore()
    for store in (reference, milvus):
        store.create("c", 16)
        for start in range(0, 2000, 500):
            store.put_many(
                "c",
                [
                    Entry(
                        f"d{n:04}", [Chunk(0, f"text {n}", 0, 9, 2, metadata={"n": n, "g": n % 100})], rows[n : n + 1]
                    )
                    for n in range(start, start + 500)
                ],
            )

    for where in ([], [Condition("g", "=", 7)], [Condition("g", "between", (7, 7))], [Condition("n", "=", 3)]):
        hits = wanted = 0
        for query in units(5, 16, seed=1):
            best = reference.nearest("c", query, limit=10, where=where)
            found = milvus.nearest("c", query, limit=10, where=where)
            assert len(found) == len(best)
            hits += len({match.key for match in found} & {match.key for match in best})
            wanted += len(best)
        assert hits / wanted > 0.8, where
    assert milvus.total() == 2000


def test_documents_are_given_whole_however_many_chunks_they_have_together(milvus: MilvusStore) -> None:
    rows = units(520, 8)
    milvus.create("c", 8)
    for n in range(32):
        milvus.put("c", f"d{n:02}", [Chunk(place, f"text {place}", 0, 9, 2) for place in range(520)], rows)

    entries = milvus.entries("c", limit=32)

    assert [entry.document for entry in entries] == [f"d{n:02}" for n in range(32)]
    for entry in entries:
        assert [chunk.ordinal for chunk in entry.chunks] == list(range(520))
        np.testing.assert_array_equal(entry.vectors, rows)


def test_words_of_a_phrase_are_looked_up_one_by_one_and_a_beginning_as_a_word(milvus: MilvusStore) -> None:
    milvus.create("c", 3)
    milvus.put("c", "d", [Chunk(0, "an otter in the sea", 0, 19, 5)], X[None])
    milvus.put("c", "e", [Chunk(0, "東京都", 0, 3, 3)], Y[None])

    def found(words: str) -> list[str]:
        return [match.document for match in milvus.matching("c", words, limit=9)]

    assert found('"sea otter"') == found('"otter sea"') == found("otter*") == ["d"]
    assert found("otte*") == []
    assert found('"京東"') == found("東京") == ["e"]
    assert found("大阪") == []


def test_a_renamed_document_replaces_all_versions_of_the_other(milvus: MilvusStore) -> None:
    milvus.create("c", 3)
    milvus.put("c", "new", [Chunk(n, "gone", 0, 4, 1) for n in range(3)], np.stack([X, Y, Z]))
    milvus.put("c", "old", [Chunk(0, "kept", 0, 4, 1)], X[None])
    with pytest.raises(KeyboardInterrupt):
        Dying(milvus).put("c", "old", [Chunk(0, "lost", 0, 4, 1)], Y[None])

    milvus.rename("c", "old", "new")

    assert [chunk.text for chunk in milvus.chunks("c", "new")] == ["kept"]
    assert list(milvus.vectors("c", [("new", 0), ("new", 2), ("old", 0)])) == [("new", 0)]
    assert milvus.count("c") == 1


def test_vectors_of_two_models_never_come_into_one_collection(milvus: MilvusStore) -> None:
    spaces = {"c": "one"}
    store: Any = Dying(milvus)
    store._space_of = lambda name: spaces[name]
    store.create("c", 3)
    store.create("c", 3)
    spaces["c"] = "another"

    with pytest.raises(ModelMismatch):
        store.create("c", 3)
