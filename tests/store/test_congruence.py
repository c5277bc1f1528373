"""Many random changes and questions: every store gives the answers of the reference."""

import random
from typing import Any, TypeAlias

import numpy as np
import pytest

from appliance.store.base import AllOf, AnyOf, Chunk, Condition, Expression, Matrix, Not, Vector, Where
from appliance.store.memory import MemoryStore
from appliance.store.milvus import MilvusStore
from appliance.store.postgres.store import PostgresStore
from appliance.store.sqlite import SqliteStore

Store: TypeAlias = SqliteStore | PostgresStore | MilvusStore

VALUES: list[Any] = [0, 1, 1.0, -2.5, 10**17, True, False, "", "x", "y\0", "é", "Z", "1"]
KEYS = ["a", "b", "c d", "ключ"]


def condition(rng: random.Random) -> Expression:
    key = rng.choice(KEYS)
    ranges: list[tuple[Any, Any]] = [(0, 1.5), ("", "y"), (False, True), (2, 1)]
    made: Expression
    match rng.randrange(8):
        case 0:
            made = AllOf(tuple(condition(rng) for _ in range(rng.randrange(3))))
        case 1:
            made = AnyOf(tuple(condition(rng) for _ in range(rng.randrange(3))))
        case 2:
            made = Not(condition(rng))
        case 3:
            made = Condition(key, "in", tuple(rng.choices(VALUES, k=rng.choice([0, 2, 30]))))
        case 4:
            made = Condition(key, "exists", rng.random() < 0.5)
        case 5:
            made = Condition(key, "between", rng.choice(ranges))
        case _:
            ops: list[Any] = ["=", "!=", "<", "<=", ">", ">="]
            made = Condition(key, rng.choice(ops), rng.choice(VALUES))
    return made


def metadata(rng: random.Random) -> dict[str, object]:
    """Of anything, and one of a hundred numbers."""
    values = [*VALUES, None, [1], {"x": 1}, [], ["x", True, [0]], ["y\0", -2.5, None]]
    return {key: rng.choice(values) for key in KEYS if rng.random() < 0.7} | {"hundredth": rng.randrange(100)}


def made(rng: random.Random) -> list[Chunk]:
    return [
        Chunk(n, " ".join(rng.choices([f"w{n}" for n in range(40)], k=6)), 0, 9, 6, metadata=metadata(rng))
        for n in range(rng.randrange(12))
    ]


def bundled(number: int, dimensions: int) -> Matrix:
    """Unit vectors that lie in bundles, as those of texts do."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, dimensions))[rng.integers(20, size=number)] + 0.7 * rng.normal(
        size=(number, dimensions)
    )
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@pytest.fixture(params=["sqlite", "sqlite by signs", "postgres", "milvus"])
def store(request: pytest.FixtureRequest) -> Store:
    match request.param:
        case "postgres":
            return PostgresStore(request.getfixturevalue("postgres"))
        case "milvus":
            store: MilvusStore = request.getfixturevalue("milvus")
            return store
        case kind:
            return SqliteStore(request.getfixturevalue("database"), exact_below=0 if "signs" in kind else 50_000)


def assert_nearest(store: Store, reference: MemoryStore, query: Vector, where: Where, *, limit: int) -> int:
    """The same answers; how many."""
    every = reference.nearest("c", query, limit=1000, where=where)
    found = store.nearest("c", query, limit=limit, where=where)

    assert [match.score for match in found] == pytest.approx([match.score for match in every[:limit]], abs=1e-5)
    if isinstance(store, MilvusStore):  # its scores of equal vectors differ in their last digits
        chunks = {match.key: match.chunk for match in every}
        assert {match.key: match.chunk for match in found}.items() <= chunks.items()
    else:
        assert [(match.key, match.chunk) for match in found] == [(match.key, match.chunk) for match in every[:limit]]
    return len(found)


def assert_matching(store: Store, reference: MemoryStore, words: str, where: Where, *, limit: int) -> None:
    if isinstance(store, MilvusStore):  # it counts by itself how rare words are
        found, every = (each.matching("c", words, limit=1000, where=where) for each in (store, reference))
        assert {match.key for match in found} == {match.key for match in every}
    else:
        found, every = (each.matching("c", words, limit=limit, where=where) for each in (store, reference))
        assert [match.score for match in found] == pytest.approx([match.score for match in every], abs=1e-5)


def test_random_operations_leave_the_answers_of_the_reference(store: Store) -> None:
    rng = random.Random(3)  # noqa: S311  # no secret
    reference = MemoryStore()
    pool = bundled(200, 6)
    rare = 0
    for each in (reference, store):
        each.create("c", 6)

    for _ in range(1000):
        document = f"d{rng.randrange(30)}"
        choice = rng.random()
        where = [condition(rng) for _ in range(rng.randrange(3))]
        limit = rng.choice([1, 3, 10, 100])
        if choice < 0.35:
            chunks = made(rng)
            rows = pool[rng.choices(range(200), k=len(chunks))] if chunks else np.empty((0, 6), np.float32)
            for each in (reference, store):
                each.put("c", document, chunks, rows)
        elif choice < 0.45:
            assert store.remove("c", document) == reference.remove("c", document)
        elif choice < 0.65:
            assert_nearest(store, reference, pool[rng.randrange(200)], where, limit=limit)
        elif choice < 0.75:
            hundredth = [Condition("hundredth", "=", rng.randrange(100))]
            rare += assert_nearest(store, reference, pool[rng.randrange(200)], hundredth, limit=limit)
        else:
            words = " ".join(rng.choices([f"w{n}" for n in range(45)], k=3))
            assert_matching(store, reference, words, where, limit=limit)

    assert rare > 20
    assert store.count("c") == reference.count("c")
    assert store.total() == store.count("c")
