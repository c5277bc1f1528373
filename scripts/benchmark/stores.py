"""Stores side by side: how fast chunks go in, how fast they are found, and how many of the best are."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import postgres
from report import Plan, Table

from appliance.database import Database
from appliance.settings import shipped
from appliance.store.base import Chunk, Condition, Entry, Match, Matrix, Store
from appliance.store.opening import Kind, Place, open_store

DIMENSIONS = 384
LIMIT = 10
GROUPS, GROUP = 100, 7
"""How many there are, and the one that a filter of 1 % leaves."""

COLLECTION = "appliance-bench"


def stores(plan: Plan, chunks: int, urls: dict[Kind, str]) -> None:
    """Print a row for SQLite and for each server that was named."""
    rows, queries = _vectors(chunks, seed=1), _vectors(10 * plan.rounds, seed=2)
    table = Table(
        f"Stores with {chunks:,} chunks of {DIMENSIONS} dimensions, 1 client, medians",
        *("store", "put, chunks/s", "index, s", "by vector, ms", f"of the best {LIMIT}"),
        *("1 % pass, ms", f"of the best {LIMIT}", "3 words, ms"),
    )
    everyone: dict[Kind, str] = {"sqlite": "", **urls}
    for kind, url in everyone.items():
        with _opened(kind, url) as store:
            store.drop(COLLECTION)
            store.create(COLLECTION, DIMENSIONS)
            table.row(kind, *_figures(store, rows, queries))
            store.drop(COLLECTION)


def _figures(store: Store, rows: Matrix, queries: Matrix) -> list[str]:
    begun = perf_counter()
    for start in range(0, len(rows), 500):
        store.put_many(COLLECTION, [_entry(n, rows[n : n + 10]) for n in range(start, min(start + 500, len(rows)), 10)])
    put = perf_counter() - begun
    begun = perf_counter()
    store.improve(COLLECTION)
    figures = [f"{len(rows) / put:.0f}", f"{perf_counter() - begun:.1f}"]
    numbers = np.arange(len(rows))
    for where, passing in (([], numbers >= 0), ([Condition("group", "=", GROUP)], numbers % GROUPS == GROUP)):
        took, hits = [], 0
        for query in queries:
            found, seconds = _timed(lambda q=query, w=where: store.nearest(COLLECTION, q, limit=LIMIT, where=w))
            took.append(seconds)
            best = np.argsort(-np.where(passing, rows @ query, -2))[:LIMIT]
            hits += len({match.chunk.metadata["number"] for match in found} & set(best.tolist()))
        figures += [f"{1000 * median(took):.1f}", f"{hits / LIMIT / len(queries):.3f}"]
    words = [" ".join(_word(n * 7 + place) for place in range(3)) for n in range(len(queries))]
    took = [_timed(lambda w=each: store.matching(COLLECTION, w, limit=LIMIT))[1] for each in words]
    return [*figures, f"{1000 * median(took):.1f}"]


def _timed(call: Callable[[], list[Match]]) -> tuple[list[Match], float]:
    begun = perf_counter()
    return call(), perf_counter() - begun


def _word(number: int) -> str:
    """Of a few thousand words, some far more common than others."""
    return f"word{number * number % 3989 % (1 + number % 4000)}"


def _entry(number: int, rows: Matrix) -> Entry:
    chunks = [
        Chunk(
            place,
            " ".join(_word(31 * (number + place) + word) for word in range(60)),
            0,
            1,
            60,
            metadata={"number": number + place, "group": (number + place) % GROUPS},
        )
        for place in range(len(rows))
    ]
    return Entry(f"document {number}", chunks, rows)


def _vectors(number: int, *, seed: int) -> Matrix:
    """Unit vectors that lie near a plane of 48 dimensions, most of them near few of these, as those of texts do."""
    plane = np.random.default_rng(0).normal(size=(48, DIMENSIONS)) * np.linspace(2, 0.3, 48)[:, None]
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(number, 48)) @ plane + 2 * rng.normal(size=(number, DIMENSIONS))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@contextmanager
def _opened(kind: Kind, url: str) -> Iterator[Store]:
    with tempfile.TemporaryDirectory(prefix="bench-store-") as folder, ExitStack() as stack:
        database = Database(Path(folder) / "appliance.db")
        stack.callback(database.close)
        database.migrate(shipped("migrations"))
        place = Place(kind=kind, url=url)
        yield open_store(
            place,
            database=database,
            migrations=shipped("migrations"),
            stack=stack,
            space_of=lambda _: "",
            bulk=True,
        )


def named() -> dict[Kind, str]:
    """The servers that the environment names."""
    variables: dict[Kind, str] = {"postgres": postgres.URL, "milvus": "BENCH_MILVUS_URL"}
    return {kind: os.environ[name] for kind, name in variables.items() if os.environ.get(name)}
