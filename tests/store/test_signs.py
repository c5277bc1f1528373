"""Searches of large collections: what signs find of what an exact search finds, and in which order pages give it."""

import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from appliance.app import store_place
from appliance.database import Database
from appliance.embedding.engines.hashing import HashingEngine
from appliance.settings import Settings, shipped
from appliance.store import bits, sqlite
from appliance.store.base import Chunk, Condition, Entry, Match, Matrix
from appliance.store.mirror import Stored
from appliance.store.opening import open_store
from appliance.store.signing import sign_bits, sign_count, turned
from appliance.store.signs import SignMirror
from appliance.store.sqlite import SqliteStore
from appliance.store.steps import joined, steps

LINES = 30
"""Lines of a passage."""

ASKED = 60
"""Questions of so many words."""

KEPT = [512 * 2**20, 0]
"""Memory for all, and for nothing: the same signs in memory and in sqlite-vec."""


def unit(rows: npt.NDArray[Any]) -> Matrix:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def keys(matches: list[Match]) -> list[tuple[str, int]]:
    return [match.key for match in matches]


def filled(store: SqliteStore, rows: Matrix, *, collection: str = "c") -> None:
    """Ten chunks to a document, one document in ten of group 0."""
    store.create(collection, rows.shape[1])
    for start in range(0, len(rows), 1000):
        entries = []
        for first in range(start, min(start + 1000, len(rows)), 10):
            own = rows[first : first + 10]
            made = [Chunk(n, f"text {first + n}", 0, 9, 2, metadata={"g": first // 10 % 10}) for n in range(len(own))]
            entries.append(Entry(f"d{first // 10:04}", made, own))
        store.put_many(collection, entries)


def recall(store: SqliteStore, rows: Matrix, queries: Matrix, *, limit: int = 10) -> float:
    """The share of the best so many that is found; as good ones count as well."""
    found = []
    for query in queries:
        least = np.partition(rows @ query, -limit)[-limit] - 1e-6
        found.append(np.mean([match.score >= least for match in store.nearest("c", query, limit=limit)]))
    return float(np.mean(found))


@pytest.fixture(scope="module")
def hashed() -> tuple[Matrix, Matrix]:
    """Vectors of Python's own sources by feature hashing, and of 1, 3, 8 and 12 words from the middle of some."""
    passages: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        passages += ["\n".join(lines[n : n + LINES]) for n in range(0, len(lines), LINES)]
    passages = [each for each in passages if len(each.split()) > 20][:6000]
    questions = [
        " ".join(each.split()[8 : 8 + n]) for n in (1, 3, 8, 12) for each in passages[n :: len(passages) // 60][:ASKED]
    ]
    engine = HashingEngine(dimensions=1024)
    rows, queries = (
        np.concatenate(
            [engine.run(engine.prepare(texts[n : n + 1000], truncate=True)) for n in range(0, len(texts), 1000)]
        )
        for texts in (passages, questions)
    )
    return unit(rows), unit(queries)


@pytest.fixture(scope="module")
def sources(
    hashed: tuple[Matrix, Matrix], migrated: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """A database of the hashed vectors, with their signs."""
    path = tmp_path_factory.mktemp("signs") / "appliance.db"
    copy(migrated, path)
    database = Database(path)
    store = SqliteStore(database, exact_below=4000)
    filled(store, hashed[0])
    store.improve("c")
    yield database
    database.close()


def test_what_is_below_the_limit_is_searched_exactly_whatever_its_dimensions(
    sources: Database, hashed: tuple[Matrix, Matrix]
) -> None:
    rows, queries = hashed
    default = SqliteStore(sources)

    assert default._mirror.fits(Stored(1, 1024, 50_000, 0, 0))
    for store in (default, SqliteStore(sources, memory=2**20)):  # the second has no room for them
        assert recall(store, rows, queries) == 1
        for query in queries[:5]:
            assert store.nearest("c", query, limit=10) == store.nearest("c", query, limit=10, exact=True)


@pytest.mark.parametrize("memory", KEPT)
def test_signs_find_nearly_all_of_hashed_texts(sources: Database, hashed: tuple[Matrix, Matrix], memory: int) -> None:
    rows, queries = hashed
    store = SqliteStore(sources, exact_below=4000, memory=memory)

    assert recall(store, rows, queries[ASKED:]) > 0.95
    assert recall(store, rows, queries[:ASKED]) > 0.7  # a single word says little, and each Python has other sources


@pytest.mark.parametrize("memory", KEPT)
@pytest.mark.parametrize("dimensions", [32, 1024])
def test_signs_find_nearly_all_of_vectors_that_lie_in_one_direction(
    database: Database, memory: int, dimensions: int
) -> None:
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(100, dimensions))
    spread = centres[rng.integers(0, 100, 5060)] + 0.7 * rng.normal(size=(5060, dimensions))
    rows = unit(spread + 4 * np.sqrt(dimensions) * unit(rng.normal(size=(1, dimensions))))
    store = SqliteStore(database, exact_below=4000, memory=memory)
    filled(store, rows[60:])
    store.improve("c")

    assert (rows[60:] @ rows[0]).min() > 0.8
    assert recall(store, rows[60:], rows[:60]) > 0.96


@pytest.mark.parametrize("memory", KEPT)
def test_the_first_matches_are_the_same_however_many_are_asked_for(
    sources: Database, hashed: tuple[Matrix, Matrix], memory: int
) -> None:
    store = SqliteStore(sources, exact_below=4000, memory=memory)
    most = [Condition("g", "<", 7)]
    for query in hashed[1][::24]:
        for where in ((), most):
            whole = keys(store.nearest("c", query, limit=500, where=where))

            for limit in (10, 20, 50, 100, 400):
                assert keys(store.nearest("c", query, limit=limit, where=where)) == whole[:limit]
            pages = [keys(store.nearest("c", query, limit=n + 20, where=where))[n:] for n in range(0, 200, 20)]
            assert [key for page in pages for key in page] == whole[:200]


def test_copies_of_one_text_come_in_order_however_many_are_asked_for(database: Database) -> None:
    rng = np.random.default_rng(3)
    rows = unit(rng.normal(size=(3000, 64)))
    copies = rng.permutation(3000)[:700]
    rows[copies] = rows[copies[0]]
    store = SqliteStore(database, exact_below=2000)
    filled(store, rows)
    store.improve("c")

    exact = keys(store.nearest("c", rows[copies[0]], limit=900, exact=True))

    assert exact[:700] == sorted((f"d{n // 10:04}", int(n % 10)) for n in copies)
    for limit in (10, 100, 300, 700):
        assert keys(store.nearest("c", rows[copies[0]], limit=limit)) == exact[:limit]


def test_some_hundred_chunks_that_pass_are_all_compared(sources: Database, hashed: tuple[Matrix, Matrix]) -> None:
    tenth = [Condition("g", "=", 3)]
    for memory in KEPT:
        store = SqliteStore(sources, exact_below=4000, memory=memory)
        for query in hashed[1][::24]:
            exact = store.nearest("c", query, limit=300, where=tenth, exact=True)
            assert store.nearest("c", query, limit=300, where=tenth) == exact


def test_memory_and_candidates_are_what_the_settings_say(
    sources: Database, hashed: tuple[Matrix, Matrix], tmp_path: Path
) -> None:
    settings = Settings(data=tmp_path, search_memory=str(2**20), search_candidates=1000)

    with ExitStack() as stack:
        store = open_store(
            store_place(settings),
            database=sources,
            migrations=shipped("migrations"),
            stack=stack,
            space_of=lambda _: "",
        )

        assert isinstance(store, SqliteStore)
        assert store._candidates == 1000
        assert store._signs.fits(Stored(1, 1024, 3000, 0, 0))
        assert not store._signs.fits(Stored(1, 1024, 4000, 0, 0))
    more = SqliteStore(sources, exact_below=4000, candidates=settings.search_candidates)
    assert recall(more, *hashed) > recall(SqliteStore(sources, exact_below=4000), *hashed)


# When there are signs


def signed(database: Database) -> tuple[bool, int]:
    """Whether there are the signs of all chunks, and how many."""
    with database.read() as connection:
        run = connection.exec_driver_sql
        to = run("SELECT signs_to FROM store_collection").scalar_one()
        return to == 2**63 - 1, int(run("SELECT count(*) FROM vec_bits_1").scalar_one())


def assert_signs_are_right(database: Database) -> None:
    with database.read() as connection:
        run = connection.exec_driver_sql
        stored = Stored(*run("SELECT id, dimensions, chunks, added, removed FROM store_collection").one())
        view = SignMirror(budget=2**24).view(connection, stored)
        centre = bits.signs_of(connection, stored).centre
        rows = run("SELECT vector FROM embedding ORDER BY chunk_id").scalars().all()
    assert view is not None
    assert centre is not None
    vectors = np.array([np.frombuffer(row, np.float32) for row in rows])
    shown = np.ascontiguousarray(view.bits.T[view.live]).view(np.uint8)
    np.testing.assert_array_equal(shown, sign_bits(turned(vectors, centre)))


def test_puts_make_the_signs_once_a_collection_is_large(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_SIGNED", 250)
    rows = unit(np.random.default_rng(1).normal(size=(900, 24)))
    store = SqliteStore(database, exact_below=600)
    seen = []

    store.create("c", 24)
    for n in range(9):
        made = [Chunk(each, "text", 0, 4, 1) for each in range(100)]
        store.put("c", f"d{n}", made, rows[100 * n : 100 * n + 100])
        seen.append(signed(database))

    assert seen == [(False, 0)] * 5 + [(False, 250), (False, 500), (False, 750), (True, 900)]
    assert_signs_are_right(database)
    store.remove("c", "d3")
    store.put("c", "d4", made[:50], rows[:50])
    assert signed(database) == (True, 750)
    assert_signs_are_right(database)


def test_signs_are_made_on_where_it_was_cut_short_while_documents_come_and_go(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_SIGNED", 250)
    rng = np.random.default_rng(1)
    rows = unit(rng.normal(size=(2000, 24)))
    filled(SqliteStore(database), rows)
    cut_short = SqliteStore(database, exact_below=1000)
    make, made = bits.make, []

    def closing(*arguments: object, **more: int) -> None:
        make(*arguments, **more)  # type: ignore[arg-type]  # as it came
        made.append(more)
        if len(made) == 3:
            cut_short.close()

    monkeypatch.setattr(bits, "make", closing)
    cut_short.warm()
    monkeypatch.setattr(bits, "make", make)
    assert signed(database) == (False, 750)

    writing, small = SqliteStore(database, exact_below=10**6), unit(rng.normal(size=(5, 24)))
    for document in ("d0003", "d0170", "new"):  # with signs already, without, and new
        writing.put("c", document, [Chunk(n, "text", 0, 4, 1) for n in range(5)], small)
    writing.remove("c", "d0004")
    large = SqliteStore(database, exact_below=1000)
    while_made = [large.nearest("c", row, limit=5) for row in rows[:20]]
    large.warm()

    assert while_made == [large.nearest("c", row, limit=5, exact=True) for row in rows[:20]]
    assert signed(database) == (True, large.count("c"))
    assert large.count("c") == 1985
    assert_signs_are_right(database)
    assert keys(large.nearest("c", small[2], limit=3)) == [("d0003", 2), ("d0170", 2), ("new", 2)]


def test_a_collection_that_has_become_small_is_searched_exactly_again(database: Database) -> None:
    rows = unit(np.random.default_rng(1).normal(size=(2000, 24)))
    store = SqliteStore(database, exact_below=1500)
    filled(store, rows)

    for n in range(100):
        store.remove("c", f"d{n:04}")

    assert recall(store, rows[1000:], rows[:30]) == 1
    assert signed(database) == (True, 1000)


# What they are made of


@pytest.mark.parametrize("dimensions", [1, 2, 100, 384, 400, 1024, 8192])
def test_turned_vectors_keep_their_angles(dimensions: int) -> None:
    rng = np.random.default_rng(4)
    rows, centre = unit(rng.normal(size=(6, dimensions))), 0.1 * rng.normal(size=dimensions).astype(np.float32)

    result = turned(rows, centre)

    assert result.dtype == np.float32
    assert result.shape == (6, sign_count(dimensions))
    assert result.shape[1] % 64 == 0
    expected = (rows - centre) @ (rows - centre).T
    np.testing.assert_allclose(result @ result.T / result.shape[1], expected, rtol=1e-5, atol=1e-5)
    assert sign_bits(result).shape == (6, sign_count(dimensions) // 8)


def test_a_vector_of_one_number_has_signs_that_tell_others_from_it() -> None:
    here, near, far = np.zeros((3, 1024), np.float32)
    here[3], near[[3, 4]], far[5] = 1, (0.9, 0.43), 1

    signs = np.unpackbits(sign_bits(turned(np.stack([here, near, far]), np.zeros(1024, np.float32))), axis=1)

    assert np.count_nonzero(signs[0] != signs[1]) < 250
    assert 400 < np.count_nonzero(signs[0] != signs[2]) < 624


def test_signs_are_the_same_for_ever() -> None:
    vector = np.arange(1, 101, dtype=np.float32)[None]

    octets = sign_bits(turned(vector, np.full(100, 50, np.float32)))

    assert octets[0, :12].tobytes().hex() == "339c3b1980313307806bec00"


# Steps


def test_what_a_later_step_finds_comes_behind_what_the_earlier_ones_gave() -> None:
    assert [steps(n) for n in (1, 25, 26, 50, 51, 1000)] == [
        [25],
        [25],
        [25, 50],
        [25, 50],
        [25, 50, 100],
        [25, 50, 100, 200, 400, 800, 1600],
    ]
    scores = {n: 1 - n / 60 for n in range(60)}
    early = {n: score for n, score in scores.items() if n not in {3, 20, 24, 30}}

    def left_out(limit: int) -> list[int]:
        return sorted(scores.keys() - joined([early, scores], [25, 50], limit).keys())

    assert left_out(40) == [3, 20, 24]
    assert left_out(58) == []  # too few are left
    assert joined([early], [25], 10) == early
    assert joined([early, {30: 0.2, 40: 0.9}], [25, 50], 10) == {n: early[n] for n in early if n < 28} | {30: 0.2}
