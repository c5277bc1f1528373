"""What only the store in PostgreSQL has: a server that others use, too, and that may go away."""

import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.errors import CollectionNotFound, InvalidInput, SchemaMismatch, StoreUnavailable
from appliance.kept import given, kept
from appliance.postgres import PostgresDatabase
from appliance.settings import shipped
from appliance.store.base import Chunk, Condition, Entry, Match, Matrix, Where
from appliance.store.memory import MemoryStore
from appliance.store.postgres import words
from appliance.store.postgres.store import PostgresStore

X, Y, Z = np.eye(3, dtype=np.float32)
MIGRATIONS = shipped("migrations") / "postgres"


def units(number: int, dimensions: int, *, seed: int = 0) -> Matrix:
    """Unit vectors that lie in bundles, as those of texts do."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, dimensions))
    rows = centres[rng.integers(20, size=number)] + 0.7 * rng.normal(size=(number, dimensions))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def keys(matches: list[Match]) -> list[tuple[str, int]]:
    return [match.key for match in matches]


def filled(store: PostgresStore | MemoryStore, rows: Matrix, *, collection: str = "c") -> None:
    """A chunk for each vector, ten to a document; `n` is its number, `g` one of a hundred groups."""
    store.create(collection, rows.shape[1])
    store.put_many(
        collection,
        [
            Entry(
                f"d{start // 10:05}",
                [
                    Chunk(n - start, f"text {n}", 0, 9, 2, metadata={"n": n, "g": n % 100})
                    for n in range(start, start + 10)
                ],
                rows[start : start + 10],
            )
            for start in range(0, len(rows), 10)
        ],
    )


@pytest.mark.parametrize(
    "url",
    ["", "nowhere", "mysql://u:hidden@h/d", "postgresql+asyncpg://u:hidden@h/d", "postgresql://u:hidden@h:port/d"],
)
def test_an_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidInput, match="store_url") as caught:
        PostgresDatabase(url)

    assert "hidden" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(StoreUnavailable, match=r"rag-appliance\[postgres\]"):
        PostgresDatabase("postgresql://127.0.0.1:9/d")


@pytest.mark.parametrize("text", ["", "plain", "\0", "\1", "\1\1\0\2\1\2", "a\0b\1c", "\2\1"])
def test_text_with_characters_that_the_server_has_not_comes_back(text: str) -> None:
    assert "\0" not in kept(text)
    assert given(kept(text)) == text


def test_texts_keep_their_order_when_they_are_kept() -> None:
    texts = ["".join(random.Random(n).choices("\0\1\2a", k=n % 5)) for n in range(200)]  # noqa: S311  # no secret

    assert sorted(texts) == sorted(texts, key=lambda text: kept(text).encode())


# The schema


def test_a_database_is_migrated_once_even_by_several_at_a_time(postgres_server: Any) -> None:
    url = postgres_server.database()
    databases = [PostgresDatabase(url, connections=2) for _ in range(4)]

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda database: database.migrate(MIGRATIONS), databases))

    for number, database in enumerate(databases):
        PostgresStore(database).create(f"c{number}", 3)
    assert len(PostgresStore(databases[0]).collections()) == 4
    for database in databases:
        database.close()


def test_a_schema_of_a_newer_version_is_refused_and_left_alone(postgres_server: Any) -> None:
    database = PostgresDatabase(postgres_server.database(), connections=2)
    database.migrate(MIGRATIONS)
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE appliance_version SET version_num = '9999'")

    with pytest.raises(SchemaMismatch, match="9999"):
        database.migrate(MIGRATIONS)

    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM appliance_version").scalar() == "9999"
    database.close()


def test_migrations_that_are_missing_are_said(postgres: PostgresDatabase, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="install"):
        postgres.migrate(tmp_path)


# Many chunks


@pytest.mark.parametrize(
    ("options", "dimensions"),
    [
        ({"index": "hnsw"}, 32),
        ({"index": "hnsw", "distance": "cosine", "precision": "single"}, 32),
        ({"index": "hnsw", "distance": "l2"}, 32),
        ({"index": "ivfflat"}, 32),
    ],
)
def test_the_index_finds_most_and_never_too_few(
    postgres: PostgresDatabase, options: dict[str, Any], dimensions: int
) -> None:
    rows = units(2000, dimensions)
    store = PostgresStore(postgres, index_from=1000, few=1, **options)
    filled(store, rows)
    numbers = np.arange(2000)
    filters: list[tuple[Where, Any]] = [
        ((), numbers >= 0),
        ([Condition("g", "=", 7)], numbers % 100 == 7),
        ([Condition("g", "between", (7, 7))], numbers % 100 == 7),
        ([Condition("n", "<", 1000)], numbers < 1000),
        ([Condition("n", "=", 3)], numbers == 3),
    ]

    for where, passing in filters:
        hits = wanted = 0
        for query in units(10, dimensions, seed=1):
            scores = np.where(passing, rows @ query, -2)
            best = np.argsort(-scores)[: min(10, int(passing.sum()))].tolist()
            found = store.nearest("c", query, limit=10, where=where)
            exact = store.nearest("c", query, limit=10, where=where, exact=True)
            numbered = [int(str(match.chunk.metadata["n"])) for match in found]
            assert len(found) == len(best)
            assert [match.score for match in found] == pytest.approx([scores[n] for n in numbered], abs=1e-6)
            assert [match.chunk.metadata["n"] for match in exact] == best
            hits += len(set(numbered) & set(best))
            wanted += len(best)
        assert hits / wanted > 0.9, where


def test_vectors_longer_than_an_index_takes_are_found_by_their_signs(postgres: PostgresDatabase) -> None:
    rows = units(300, 4100)
    store = PostgresStore(postgres, index_from=100)

    filled(store, rows)

    with postgres.read() as connection:
        kind = connection.exec_driver_sql("SELECT index_kind FROM store_collection").scalar_one()
    assert kind == "hnsw bit ip"
    assert [store.nearest("c", rows[n], limit=3)[0].chunk.metadata["n"] for n in (0, 150, 299)] == [0, 150, 299]


def test_lists_are_made_anew_when_they_have_become_long(postgres: PostgresDatabase) -> None:
    rows = units(1000, 8)
    store = PostgresStore(postgres, index="ivfflat", index_from=100)
    filled(store, rows[:100])

    for start in range(100, 1000, 100):
        part = rows[start : start + 100]
        store.put("c", f"more{start}", [Chunk(n, "text", 0, 9, 2) for n in range(100)], part)

    with postgres.read() as connection:
        assert connection.exec_driver_sql("SELECT index_chunks FROM store_collection").scalar_one() == 900
    store.put("c", "last", [Chunk(0, "text", 0, 9, 2)], rows[:1])
    assert store.count("c") == 1001


# Words


def test_words_are_found_by_their_stems(postgres: PostgresDatabase) -> None:
    store = PostgresStore(postgres)
    store.create("c", 3)
    store.put("c", "d", [Chunk(0, "The otters were sleeping", 0, 9, 4)], X[None])

    assert keys(store.matching("c", "otter sleeps", limit=1)) == [("d", 0)]


def test_among_very_many_chunks_the_rare_words_lead(
    postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "SCORED", 20)
    store = PostgresStore(postgres)
    store.create("c", 3)
    texts = [f"common{' rare' * (n % 50 == 7)}{' other' * (n % 2)} w{n}" for n in range(300)]
    store.put("c", "d", [Chunk(n, text, 0, 9, 3) for n, text in enumerate(texts)], np.repeat(X[None], 300, 0))

    rare = keys(store.matching("c", "common rare other", limit=6))
    more = store.matching("c", "common rare other", limit=40)
    again = store.matching("c", "common rare other", limit=40)

    assert rare == [("d", n) for n in range(7, 300, 50)]
    assert keys(more)[:6] == rare
    assert len(more) == 40
    assert again == more


@pytest.mark.parametrize("scored", [100, 10_000])
def test_the_first_of_very_many_equals_are_the_same_however_many_are_asked_for(
    postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch, scored: int
) -> None:
    monkeypatch.setattr(words, "SCORED", scored)
    store = PostgresStore(postgres)
    store.create("c", 3)
    texts = {f"d{n * 7919 % 1500:04}": f"printer error{' paper' * (n % 30 == 0)}" for n in range(1500)}
    store.put_many("c", [Entry(name, [Chunk(0, text, 0, 9, 2)], X[None]) for name, text in texts.items()])

    def found(limit: int, words: str) -> list[str]:
        return [match.document for match in store.matching("c", words, limit=limit)]

    for query in ("printer", "paper printer error"):
        whole = found(120, query)
        for limit in (1, 10, 49, 51, 100):
            assert found(limit, query) == whole[:limit]
    if scored > len(texts):
        shorter = sorted(name for name, text in texts.items() if text == "printer error")
        assert found(1200, "printer error") == shorter[:1200]


def test_the_first_by_words_are_the_same_where_other_words_lead_further_on(
    postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "SCORED", 200)
    store = PostgresStore(postgres)
    store.create("c", 3)
    rng = np.random.default_rng(6)

    def zipf(number: int) -> str:
        return " ".join(f"w{min(int(n), 900)}" for n in rng.zipf(1.3, number))

    store.put_many("c", [Entry(f"d{n:04}", [Chunk(0, zipf(30), 0, 9, 2)], X[None]) for n in range(1500)])

    for _ in range(20):
        query = zipf(int(rng.integers(2, 8)))
        whole = keys(store.matching("c", query, limit=400))
        for limit in (10, 100, 128, 129, 200):
            assert keys(store.matching("c", query, limit=limit)) == whole[:limit]


def test_titles_and_texts_weigh_what_the_owner_says(postgres: PostgresDatabase) -> None:
    store = PostgresStore(postgres)
    store.create("c", 3)
    store.put("c", "title", [Chunk(0, "pear", 0, 4, 1, title="apple")], X[None])
    store.put("c", "text", [Chunk(0, "apple", 0, 5, 1, title="pear")], X[None])
    for n in range(3):
        store.put("c", f"other{n}", [Chunk(0, "plum", 0, 4, 1)], X[None])

    by_title = PostgresStore(postgres, title_weight=3).matching("c", "apple", limit=1)
    by_text = PostgresStore(postgres, text_weight=3).matching("c", "apple", limit=1)

    assert (by_title[0].document, by_text[0].document) == ("title", "text")


def test_a_chunk_of_very_many_and_very_long_words_is_kept_and_found(postgres: PostgresDatabase) -> None:
    store = PostgresStore(postgres)
    store.create("c", 3)
    text = " ".join([*(f"word{n}" for n in range(60_000)), "x" * 5000])
    store.put("c", "d", [Chunk(0, text, 0, len(text), 9)], X[None])

    assert store.chunks("c", "d")[0].text == text
    assert keys(store.matching("c", "word7", limit=1)) == [("d", 0)]


# Others at the same time


def test_two_that_put_one_document_at_a_time_leave_it_whole(postgres: PostgresDatabase) -> None:
    one, two = PostgresStore(postgres), PostgresStore(postgres)
    one.create("c", 3)

    def put(store: PostgresStore, name: str, number: int) -> None:
        for _ in range(15):
            made = [Chunk(n, name, 0, 9, 2) for n in range(number)]
            store.put_many("c", [Entry(d, made, np.repeat(X[None], number, 0)) for d in ("b", "a")])

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(put, one, "one", 2), threads.submit(put, two, "two", 5)]:
            done.result()

    for document in ("a", "b"):
        texts = [chunk.text for chunk in one.chunks("c", document)]
        assert texts in (["one"] * 2, ["two"] * 5)
    assert one.count("c") == len(one.chunks("c", "a")) + len(one.chunks("c", "b"))


def test_a_collection_may_be_dropped_while_others_use_it(postgres: PostgresDatabase) -> None:
    store = PostgresStore(postgres)
    stop = threading.Event()

    def use() -> int:
        times = 0
        while not stop.is_set():
            try:
                store.put("c", "d", [Chunk(0, "text", 0, 9, 2)], X[None])
                store.nearest("c", X, limit=1)
                store.matching("c", "text", limit=1)
                times += 1
            except CollectionNotFound:
                pass
        return times

    with ThreadPoolExecutor(2) as threads:
        users = [threads.submit(use) for _ in range(2)]
        try:
            for _ in range(15):
                store.create("c", 3)
                store.nearest("c", X, limit=1)
                store.drop("c")
        finally:
            stop.set()
        for each in users:
            each.result()


def test_a_statement_that_takes_too_long_is_ended(postgres_server: Any) -> None:
    database = PostgresDatabase(postgres_server.url("postgres"), connections=1, seconds=0.05)

    with pytest.raises(StoreUnavailable, match="too long"), database.read() as connection:
        connection.exec_driver_sql("SELECT pg_sleep(20)")
    database.close()


# Power cuts


@pytest.fixture
def own_server(postgres_server_class: Callable[..., Any]) -> Iterator[Any]:
    """A server that may be killed, which keeps what it has acknowledged."""
    server = postgres_server_class(durable=True)
    server.start()
    yield server
    server.close()


def test_a_server_killed_during_puts_has_no_half_document_and_is_found_again(own_server: Any) -> None:
    database = PostgresDatabase(own_server.database(), connections=4)
    database.migrate(MIGRATIONS)
    store = PostgresStore(database)
    store.create("c", 16)
    acknowledged: dict[str, int] = {}
    under_way = threading.Event()
    rng = random.Random(5)  # noqa: S311  # no secret

    def put() -> None:
        for n in range(10_000):
            document, number = f"d{rng.randrange(20)}", rng.randrange(1, 30)
            made = [Chunk(place, f"number{number} " * 50, 0, 9, 50) for place in range(number)]
            acknowledged.pop(document, None)  # until it is acknowledged, either may be there
            store.put("c", document, made, units(number, 16))
            acknowledged[document] = number
            if n == 10:
                under_way.set()

    with ThreadPoolExecutor(1) as threads:
        putting = threads.submit(put)
        assert under_way.wait(30)
        own_server.kill()
        with pytest.raises(StoreUnavailable):
            putting.result(30)
        with pytest.raises(StoreUnavailable, match="server"):
            store.count("c")
        own_server.start()

    total = 0
    for document in [f"d{n}" for n in range(20)]:
        texts = [chunk.text for chunk in store.chunks("c", document)]
        total += len(texts)
        assert texts == [f"number{len(texts)} " * 50] * len(texts)
        assert len(texts) == acknowledged.get(document, len(texts))
    assert store.count("c") == total
    assert len(store.nearest("c", units(1, 16)[0], limit=1000)) == total
    database.close()
