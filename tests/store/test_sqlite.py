"""What the SQLite store promises beyond the contract: one truth in four tables, on disk, beside writers."""

# ruff: noqa: S608  # table names are the store's own

import json
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, event

from appliance.database import Database
from appliance.errors import StoreFull, StoreUnavailable
from appliance.store import ranking, sqlite
from appliance.store.base import Chunk, Condition, Entry, Match, Matrix, Where
from appliance.store.memory import MemoryStore
from appliance.store.mirror import Mirror, Stored
from appliance.store.signing import sign_bits, turned
from appliance.store.signs import SignMirror, View
from appliance.store.sqlite import SqliteStore

WRITER = Path(__file__).with_name("endless_writer.py")


def unit(rng: np.random.Generator, n: int, dimensions: int) -> Matrix:
    rows = rng.normal(size=(n, dimensions)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def chunks(n: int, text: str = "some words", **metadata: object) -> list[Chunk]:
    return [Chunk(i, f"{text} {i}", start=i, end=i + 5, tokens=2, title="title", metadata=metadata) for i in range(n)]


def assert_whole(database: Database) -> None:
    """Every chunk in all four places, and nothing else in any of them."""
    with database.read() as connection:
        run = connection.exec_driver_sql
        assert run("PRAGMA integrity_check").scalar() == "ok"
        every = set(run("SELECT id FROM chunk").scalars())
        assert set(run("SELECT chunk_id FROM embedding").scalars()) == every
        owned: set[int] = set()
        for collection, number, signed in run("SELECT id, chunks, signs_to FROM store_collection").all():
            own = set(run("SELECT id FROM chunk WHERE collection = ?", (collection,)).scalars())
            assert len(own) == number
            assert set(run(f"SELECT chunk_id FROM vec_bits_{collection}").scalars()) == {n for n in own if n <= signed}
            assert set(run(f"SELECT id FROM chunk_fts_{collection}_docsize").scalars()) == own
            owned |= own
        assert owned == every
        collections = run("SELECT id FROM store_collection").scalars().all()
    with database.write() as connection:
        for collection in collections:  # raises when the words and the texts do not agree
            words = f"chunk_fts_{collection}"
            connection.exec_driver_sql(f"INSERT INTO {words} ({words}, rank) VALUES ('integrity-check', 1)")


def test_a_store_is_found_again_when_the_file_is_opened_again(tmp_path: Path, migrated: Path) -> None:
    path = tmp_path / "again.db"
    path.write_bytes(migrated.read_bytes())
    rows = unit(np.random.default_rng(1), 3, 20)
    first = Database(path)
    SqliteStore(first).create("c", 20)
    SqliteStore(first).put("c", "d", chunks(3), rows)
    first.close()

    second = Database(path)

    try:
        assert SqliteStore(second).nearest("c", rows[2], limit=1)[0].key == ("d", 2)
        assert len(SqliteStore(second).matching("c", "words", limit=9)) == 3
        assert_whole(second)
    finally:
        second.close()


def test_stems_are_found(database: Database) -> None:
    store = SqliteStore(database)
    store.create("c", 2)
    store.put("c", "d", [Chunk(0, "she was running experiments", 0, 9, 4)], np.eye(1, 2, dtype=np.float32))

    assert [match.document for match in store.matching("c", "runs experiment", limit=9)] == ["d"]


def test_title_and_text_weigh_what_they_were_told(database: Database) -> None:
    SqliteStore(database).create("c", 2)
    vector = np.eye(1, 2, dtype=np.float32)
    SqliteStore(database).put("c", "title", [Chunk(0, "pear", 0, 4, 1, title="apple")], vector)
    SqliteStore(database).put("c", "text", [Chunk(0, "apple", 0, 5, 1, title="pear")], vector)

    by_title = SqliteStore(database, title_weight=3).matching("c", "apple", limit=1)
    by_text = SqliteStore(database, text_weight=3).matching("c", "apple", limit=1)

    assert (by_title[0].document, by_text[0].document) == ("title", "text")


def test_text_with_nul_characters_is_found_and_leaves_without_a_trace(database: Database) -> None:
    store = SqliteStore(database)
    store.create("c", 2)
    vector = np.eye(1, 2, dtype=np.float32)
    store.put("c", "d", [Chunk(0, "before\0behind", 0, 13, 2, title="a\0b")], vector)

    assert [match.document for match in store.matching("c", "behind", limit=1)] == ["d"]
    assert_whole(database)
    store.remove("c", "d")
    assert_whole(database)


def test_the_words_of_one_collection_can_be_made_again_from_its_texts(database: Database) -> None:
    store = SqliteStore(database)
    for name in ("one", "two"):
        store.create(name, 2)
        store.put(name, f"in {name}", [Chunk(0, f"apple {name}", 0, 5, 1)], np.eye(1, 2, dtype=np.float32))
    assert_whole(database)

    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO chunk_fts_1 (chunk_fts_1) VALUES ('delete-all')")
        connection.exec_driver_sql("INSERT INTO chunk_fts_1 (chunk_fts_1) VALUES ('rebuild')")

    assert [match.document for match in store.matching("one", "apple", limit=9)] == ["in one"]
    assert_whole(database)


def test_dropping_leaves_nothing(database: Database) -> None:
    store = SqliteStore(database)
    with database.read() as connection:
        before = set(connection.exec_driver_sql("SELECT name FROM sqlite_master").scalars())
    store.create("c", 4)
    store.put("c", "d", chunks(3), unit(np.random.default_rng(1), 3, 4))

    store.drop("c")

    with database.read() as connection:
        assert set(connection.exec_driver_sql("SELECT name FROM sqlite_master").scalars()) == before
        for table in ("chunk", "embedding", "store_collection"):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == 0


# Congruence with the reference

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
PLAIN = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, 2.0, "x", "1", True, False, None]))
FIELDS = st.one_of(PLAIN, st.lists(st.one_of(PLAIN, st.just([1])), max_size=3))
CONDITIONS = st.one_of(
    st.builds(
        Condition,
        st.sampled_from(["k", "l"]),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
        st.one_of(st.integers(-3, 3), st.sampled_from([0.5, "x", "1", True])),
    ),
    st.builds(Condition, st.just("k"), st.just("in"), st.lists(st.sampled_from([1, 2, "x", True])).map(tuple)),
)
CHANGES = st.one_of(
    st.tuples(
        st.just("put"), NAMES, st.integers(0, 4), st.dictionaries(st.sampled_from(["k", "l"]), FIELDS, max_size=2)
    ),
    st.tuples(st.just("remove"), NAMES, st.none(), st.none()),
    st.tuples(st.just("ask"), st.integers(1, 12), st.lists(CONDITIONS, max_size=2), st.none()),
)
NUMBER = count()
HELD: dict[str, dict[str, int]] = {
    "floats": {},
    "signs": {"exact_below": 0},
    "file": {"exact_below": 0, "memory": 0},
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CHANGES, max_size=14), st.integers(0, 2**32 - 1), st.sampled_from(["floats", "signs", "file"]))
def test_nearest_is_what_the_reference_says(database: Database, changes: list[tuple], seed: int, held: str) -> None:  # type: ignore[type-arg]  # drawn
    rng = np.random.default_rng(seed)
    corners = np.concatenate([np.eye(5, dtype=np.float32), unit(rng, 5, 5)])  # few, so that ties are common
    reference, store = MemoryStore(), SqliteStore(database, **HELD[held])
    name = f"c{next(NUMBER)}"
    reference.create(name, 5)
    store.create(name, 5)

    for what, subject, detail, metadata in [*changes, ("ask", 12, (), None)]:
        if what == "put":
            rows = corners[rng.integers(0, len(corners), detail)]
            made = chunks(detail, **metadata)
            reference.put(name, subject, made, rows)
            store.put(name, subject, made, rows)
        elif what == "remove":
            assert store.remove(name, subject) == reference.remove(name, subject)
        else:
            query = corners[rng.integers(0, len(corners))]
            expected = reference.nearest(name, query, limit=subject, where=detail)
            assert store.nearest(name, query, limit=subject, where=detail) == expected
            words = {match.key for match in reference.matching(name, "words", limit=99, where=detail)}
            assert {match.key for match in store.matching(name, "words", limit=99, where=detail)} == words
    assert store.count(name) == reference.count(name)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60))
def test_any_text_is_a_valid_query(words_store: SqliteStore, words: str) -> None:
    if words.encode("utf-8", "replace").decode() == words:  # lone surrogates are refused before they come here
        for match in words_store.matching("c", words, limit=9):
            assert match.score > 0


def test_ten_thousand_queries_of_operators_and_scraps_are_valid(words_store: SqliteStore) -> None:
    rng = random.Random(4)  # noqa: S311  # no secrets
    scraps = [*'"""***()^:+-{},.\'\0\\%_', " ", " AND ", " OR ", " NOT ", "NEAR(", ", 5)", "title:", "{title text}:"]
    scraps += ["a", "é", "ß", "中文", "カ", "서울", "ไท", "\u0301", "\U0001f600", "the", "running", "0", "ﷺ", "İ"]

    found = 0
    for _ in range(10_000):
        query = "".join(rng.choices(scraps, k=rng.randint(1, 12)))
        matches = words_store.matching("c", query, limit=3)
        assert all(match.score > 0 for match in matches)
        found += len(matches)

    assert found > 1000


@pytest.fixture
def words_store(database: Database) -> SqliteStore:
    store = SqliteStore(database)
    store.create("c", 2)
    store.put("c", "d", [Chunk(0, "a 1 é ß я 中文 and 0", 0, 9, 4)], np.eye(1, 2, dtype=np.float32))
    return store


def test_signs_find_nearly_what_an_exact_search_finds(database: Database) -> None:
    rng = np.random.default_rng(5)
    centres = unit(rng, 40, 64)
    exact, signs = SqliteStore(database), SqliteStore(database, exact_below=0)
    exact.create("c", 64)
    spread = centres[rng.integers(0, 40, 3000)] + 0.1 * rng.normal(size=(3000, 64))
    rows = np.asarray(spread / np.linalg.norm(spread, axis=1, keepdims=True), np.float32)
    exact.put_many("c", [Entry(f"d{n}", chunks(100, half=n % 2), rows[n * 100 : n * 100 + 100]) for n in range(30)])
    signs.improve("c")
    conditions: list[Where] = [(), [Condition("half", "=", 1)]]

    for where in conditions:
        found = total = 0
        for query in rows[::100]:
            truth = exact.nearest("c", query, limit=10, where=where)
            answer = signs.nearest("c", query, limit=10, where=where)
            found += len({match.key for match in truth} & {match.key for match in answer})
            total += 10
            assert answer[0] == truth[0]

        assert found / total > 0.95


@pytest.mark.parametrize("held", ["signs", "file"])
def test_a_thousand_changes_and_questions_later_it_still_says_what_the_reference_says(
    database: Database, held: str
) -> None:
    rng = np.random.default_rng(8)
    centres = unit(rng, 30, 64)
    reference, store = MemoryStore(), SqliteStore(database, **HELD[held])
    reference.create("c", 64)
    store.create("c", 64)
    hits = asked = 0

    for step in range(1000):
        document = f"d{rng.integers(50)}"
        match rng.integers(10):
            case 0:
                assert store.remove("c", document) == reference.remove("c", document)
            case 1 | 2 | 3 | 4:
                size = int(rng.integers(1, 30))
                spread = centres[rng.integers(0, 30, size)] + 0.1 * rng.normal(size=(size, 64))
                rows = np.asarray(spread / np.linalg.norm(spread, axis=1, keepdims=True), np.float32)
                made = chunks(size, rare=int(rng.integers(100)), step=step)
                reference.put("c", document, made, rows)
                store.put("c", document, made, rows)
            case kind:
                query = unit(rng, 1, 64)[0] if kind == 5 else centres[rng.integers(30)]
                where = [Condition("rare", "=", int(rng.integers(100)))] if kind < 8 else []
                every = reference.nearest("c", query, limit=9999, where=where)
                truth = every[:10]
                answer = store.nearest("c", query, limit=10, where=where)
                assert len(answer) == len(truth)
                assert all(match in every for match in answer)
                hits += len({match.key for match in truth} & {match.key for match in answer})
                asked += len(truth)
                assert store.nearest("c", query, limit=10, where=where, exact=True) == truth

    assert store.count("c") == reference.count("c")
    assert hits / asked >= 0.95
    assert_whole(database)


# The mirror


def test_only_new_rows_are_read_after_documents_were_added(database: Database) -> None:
    store = SqliteStore(database)
    store.create("c", 8)
    rng = np.random.default_rng(1)
    rows = unit(rng, 200, 8)
    read: list[int] = []

    def note(_c: object, _k: object, statement: str, parameters: tuple[int, ...], *_: object) -> None:
        if "JOIN embedding" in statement:
            read.append(parameters[1])

    event.listen(database._readers, "before_cursor_execute", note)
    for n in range(4):
        store.put("c", f"d{n}", chunks(50), rows[n * 50 : n * 50 + 50])
        store.nearest("c", rows[0], limit=1)
        store.nearest("c", rows[1], limit=1)
    store.remove("c", "d1")
    left = store.nearest("c", rows[60], limit=200)

    assert read == [0, 50, 100, 150, 200]
    assert len(left) == 150
    assert "d1" not in {match.document for match in left}


def test_the_mirror_lets_go_of_what_was_not_used_for_longest(database: Database) -> None:
    store = SqliteStore(database)
    mirror = Mirror(budget=3 * 100 * 8 * 4)
    rng = np.random.default_rng(1)
    stored: list[Stored] = []
    for n in range(4):
        store.create(f"c{n}", 8)
        store.put(f"c{n}", "d", chunks(100), unit(rng, 100, 8))
    with database.read() as connection:
        run = connection.exec_driver_sql
        stored = [Stored(*r) for r in run("SELECT id, dimensions, chunks, added, removed FROM store_collection")]
        for one in (0, 1, 2, 0, 3):
            mirror.rows(connection, stored[one])

    assert set(mirror._held) == {stored[0].id, stored[2].id, stored[3].id}
    assert not mirror.fits(Stored(9, 8, 301, 0, 0))


def test_a_transaction_that_began_earlier_sees_what_it_began_with(database: Database) -> None:
    store = SqliteStore(database)
    store.create("c", 8)
    rows = unit(np.random.default_rng(1), 4, 8)
    store.put("c", "old", chunks(2), rows[:2])
    mirror = Mirror(budget=1000)
    with database.read() as connection:
        ask = "SELECT id, dimensions, chunks, added, removed FROM store_collection"
        before = Stored(*connection.exec_driver_sql(ask).one())
        store.put("c", "new", chunks(2), rows[2:])
        with database.read() as later:
            mirror.rows(later, Stored(*later.exec_driver_sql(ask).one()))

        ids, held = mirror.rows(connection, before)

    assert len(ids) == len(held) == 2
    np.testing.assert_array_equal(held, rows[:2])


def shown(view: View | None) -> dict[int, bytes]:
    """Signs by id, as a view shows them."""
    assert view is not None
    return {int(id_): word.tobytes() for id_, word in zip(view.ids[view.live], view.bits.T[view.live], strict=True)}


def true_signs(database: Database) -> dict[int, bytes]:
    """Signs by id, of the stored vectors of the only collection."""
    with database.read() as connection:
        rows = connection.exec_driver_sql("SELECT chunk_id, vector FROM embedding").all()
        centre = connection.exec_driver_sql("SELECT centre FROM store_collection").scalar_one()
    if not rows:
        return {}
    vectors = np.array([np.frombuffer(vector, np.float32) for _, vector in rows])
    octets = sign_bits(turned(vectors, np.frombuffer(centre, np.float32)))
    return {row[0]: each.tobytes() for row, each in zip(rows, octets, strict=True)}


def stored_now(connection: Connection) -> Stored:
    ask = "SELECT id, dimensions, chunks, added, removed FROM store_collection"
    return Stored(*connection.exec_driver_sql(ask).one())


def test_signs_in_memory_follow_every_change_and_gaps_are_closed(database: Database) -> None:
    store, mirror = SqliteStore(database, exact_below=0), SignMirror(budget=2**24)
    store.create("c", 70)
    rng = np.random.default_rng(3)

    def put(first: int, last: int) -> None:
        rows = unit(rng, 500 * (last - first), 70)
        store.put_many(
            "c", [Entry(f"d{n}", chunks(500), rows[500 * i :][:500]) for i, n in enumerate(range(first, last))]
        )

    def check() -> int:
        with database.read() as connection:
            assert shown(mirror.view(connection, stored_now(connection))) == true_signs(database)
            return int(connection.exec_driver_sql("SELECT count(*) FROM vec_bits_1_chunks").scalar_one())

    put(0, 30)
    assert check() == 4
    store.remove("c", "d29")  # of the last chunk of vec0, whose places are taken again
    put(29, 31)
    check()
    for n in (*range(0, 24, 2), *range(1, 24, 2)):
        store.remove("c", f"d{n}")
        if n % 3:
            check()
    for n in range(12):
        put(40 + n % 3, 41 + n % 3)
        last = check()

    assert last <= 3
    assert_whole(database)
    restarted = SignMirror(budget=2**24)
    with database.read() as connection:
        assert shown(restarted.view(connection, stored_now(connection))) == true_signs(database)


def test_signs_are_those_that_the_transaction_sees_even_when_later_ones_were_seen(database: Database) -> None:
    store, mirror = SqliteStore(database, exact_below=0), SignMirror(budget=2**20)
    store.create("c", 8)
    rows = unit(np.random.default_rng(1), 40, 8)
    store.put("c", "old", chunks(20), rows[:20])
    before = true_signs(database)
    with database.read() as connection:
        then = stored_now(connection)
        store.put("c", "old", chunks(10), rows[20:30])
        store.put("c", "new", chunks(10), rows[30:])
        with database.read() as later:
            assert shown(mirror.view(later, stored_now(later))) == true_signs(database)

        seen = mirror.view(connection, then)

    assert seen is None or shown(seen) == before


def test_a_search_by_signs_in_an_old_transaction_sees_the_document_that_was_replaced(database: Database) -> None:
    store, mirror = SqliteStore(database, exact_below=0), SignMirror(budget=2**20)
    store.create("c", 8)
    rows = unit(np.random.default_rng(1), 40, 8)
    store.put("c", "old", chunks(20), rows[:20])
    before = true_signs(database)
    with database.read() as connection:
        then = stored_now(connection)
        mirror.view(connection, then)
        store.put("c", "old", chunks(10), rows[20:30])
        with database.read() as later:
            mirror.view(later, stored_now(later))

        assert shown(mirror.view(connection, then)) == before


def test_signs_of_what_was_not_used_for_longest_are_let_go(database: Database) -> None:
    store = SqliteStore(database, exact_below=0)
    for name in ("a", "b", "c"):
        store.create(name, 64)
        store.put(name, "d", chunks(100), unit(np.random.default_rng(1), 100, 64))
    mirror = SignMirror(budget=16_000)
    with database.read() as connection:
        ask = "SELECT id, dimensions, chunks, added, removed FROM store_collection ORDER BY id"
        stored = [Stored(*row) for row in connection.exec_driver_sql(ask)]
        for one in (0, 1, 0, 2):
            mirror.view(connection, stored[one])

    assert set(mirror._held) == {stored[0].id, stored[2].id}
    assert not mirror.fits(Stored(9, 64, 301, 0, 0))


def test_a_condition_is_looked_at_once_for_each_chunk(database: Database) -> None:
    store = SqliteStore(database, exact_below=0)
    store.create("c", 8)
    rows = unit(np.random.default_rng(1), 40, 8)
    seen: list[int] = []

    def note(_c: object, _k: object, statement: str, parameters: tuple[int, ...], *_: object) -> None:
        if "json_type(metadata" in statement:
            seen.append(parameters[1])

    event.listen(database._readers, "before_cursor_execute", note)
    where = [Condition("k", "=", 1)]
    for n in range(3):
        store.put("c", f"d{n}", chunks(10, k=n % 2), rows[:10])
        for _ in range(2):
            found = {match.document for match in store.nearest("c", rows[0], limit=99, where=where)}
            assert found == {f"d{each}" for each in range(n + 1) if each % 2}
    store.remove("c", "d1")

    assert store.nearest("c", rows[0], limit=99, where=where) == []
    assert seen == [0, 10, 20, 30]


# Words, many of them


def zipf(rng: np.random.Generator, words: int) -> str:
    return " ".join(f"w{min(int(n), 900)}" for n in rng.zipf(1.3, words))


def test_rare_words_lead_and_scores_are_those_of_all_words(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    store = SqliteStore(database)
    store.create("c", 2)
    store.put_many(
        "c",
        [
            Entry(f"d{n}", [Chunk(0, zipf(rng, 30), 0, 9, 2, metadata={"k": n % 20})], np.eye(1, 2, dtype=np.float32))
            for n in range(1500)
        ],
    )
    queries = [zipf(rng, int(rng.integers(1, 8))) for _ in range(60)]
    conditions: list[Where] = [(), [Condition("k", "=", 3)]]

    best, same = 0, 0.0
    for query in queries:
        for where in conditions:
            monkeypatch.setattr(ranking, "SCORED", 3000)
            truth = {match.key: match.score for match in store.matching("c", query, limit=1500, where=where)}
            monkeypatch.setattr(ranking, "SCORED", 100)
            led = store.matching("c", query, limit=10, where=where)
            assert len(led) == min(len(truth), 10)
            for match in led:
                assert match.score <= truth[match.key] + 1e-9
            same += sum(match.score == pytest.approx(truth[match.key]) for match in led) / max(len(led), 1)
            best += not led or led[0].score == pytest.approx(max(truth.values()))

    assert same / 120 > 0.95
    assert best / 120 > 0.8


@pytest.mark.parametrize("looked_up", [10, 10_000])
@pytest.mark.parametrize("scored", [100, 10_000])
def test_the_first_of_very_many_equals_are_the_same_however_many_are_asked_for(
    database: Database, monkeypatch: pytest.MonkeyPatch, looked_up: int, scored: int
) -> None:
    monkeypatch.setattr(sqlite, "_LOOKED_UP", looked_up)
    monkeypatch.setattr(ranking, "SCORED", scored)
    store = SqliteStore(database)
    texts = {f"d{n * 7919 % 2000:04}": f"printer error{' paper' * (n % 40 == 0)}" for n in range(2000)}
    for name in ("other", "c"):
        store.create(name, 2)
        store.put_many(
            name,
            [Entry(key, [Chunk(0, text, 0, 9, 2)], np.eye(1, 2, dtype=np.float32)) for key, text in texts.items()],
        )

    def found(limit: int, words: str) -> list[str]:
        return [match.document for match in store.matching("c", words, limit=limit)]

    near = [match.document for match in store.nearest("c", np.eye(2, dtype=np.float32)[0], limit=20)]
    assert near == [f"d{n:04}" for n in range(20)]
    for words in ("printer", "paper printer error"):
        whole = found(120, words)
        for limit in (1, 10, 49, 51, 100):
            assert found(limit, words) == whole[:limit]
    if scored > len(texts):
        shorter = sorted(name for name, text in texts.items() if text == "printer error")
        assert found(20, "printer error") == shorter[:20]
        assert found(1500, "printer error") == shorter[:1500]


def test_the_first_by_words_are_the_same_where_other_words_lead_further_on(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "SCORED", 1100)
    rng = np.random.default_rng(6)
    store = SqliteStore(database)
    store.create("c", 2)
    vector = np.eye(1, 2, dtype=np.float32)
    store.put_many("c", [Entry(f"d{n:04}", [Chunk(0, zipf(rng, 30), 0, 9, 2)], vector) for n in range(5000)])

    for _ in range(30):
        words = zipf(rng, int(rng.integers(2, 8)))
        whole = store.matching("c", words, limit=300)
        for limit in (10, 100, 128, 129, 200):
            assert store.matching("c", words, limit=limit) == whole[:limit]
        assert [match.score for match in whole] == sorted((match.score for match in whole), reverse=True)


def test_a_beginning_finds_words_whose_stem_is_shorter(database: Database) -> None:
    store = SqliteStore(database)
    store.create("c", 2)
    for n, text in enumerate(["an experiment", "computation", "nationalization", "a carbon fibre", "cars"]):
        store.put("c", f"d{n}", [Chunk(0, text, 0, 9, 2)], np.eye(1, 2, dtype=np.float32))

    for query, document in (
        ("experim*", "d0"),
        ("experiment*", "d0"),
        ("computat*", "d1"),
        ("nationaliz*", "d2"),
        ("carb*", "d3"),
        ("carbon*", "d3"),
    ):
        assert [match.document for match in store.matching("c", query, limit=9)] == [document], query


# Beside each other


def torn(matches: list[Match]) -> list[str]:
    """Documents of five chunks that were seen in part, or in two versions."""
    versions: dict[str, list[object]] = {}
    for match in matches:
        versions.setdefault(match.document, []).append(match.chunk.metadata["version"])
    return [document for document, seen in versions.items() if seen != seen[:1] * 5]


@pytest.mark.parametrize("held", ["floats", "signs"])
def test_readers_see_documents_whole_while_writers_change_them(database: Database, held: str) -> None:
    store = SqliteStore(database, **HELD[held])
    store.create("c", 8)
    done = threading.Event()

    def write(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for n in range(25):
            store.put("c", f"w{seed}-{n % 4}", chunks(5, version=n), unit(rng, 5, 8))
            if n % 5 == 4:
                store.remove("c", f"w{seed}-{n % 4}")

    def read(seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        found: list[str] = []
        while not done.is_set():
            found += torn(store.nearest("c", unit(rng, 1, 8)[0], limit=1000))
            found += torn(store.matching("c", "words", limit=1000))
        return found

    with ThreadPoolExecutor(6) as threads:
        readers = [threads.submit(read, seed) for seed in range(3)]
        writers = [threads.submit(write, seed) for seed in range(3)]
        wait(writers)
        done.set()

    assert [writer.result() for writer in writers] == [None] * 3
    assert [reader.result() for reader in readers] == [[], [], []]
    assert_whole(database)


def test_a_full_disk_is_said_and_changes_nothing(database: Database) -> None:
    store = SqliteStore(database)
    store.create("c", 8)
    rows = unit(np.random.default_rng(1), 2000, 8)
    store.put("c", "kept", chunks(1), rows[:1])
    with database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")

    with pytest.raises(StoreFull):
        store.put("c", "big", chunks(2000, text="filler " * 30), rows)

    assert [match.document for match in store.nearest("c", rows[0], limit=9)] == ["kept"]
    with database.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 4294967294")
    store.put("c", "big", chunks(2000), rows)
    assert store.count("c") == 2001
    assert_whole(database)


def test_a_closed_database_is_said(database: Database) -> None:
    store = SqliteStore(database)
    store.create("c", 8)
    database.close()

    with pytest.raises(StoreUnavailable):
        store.count("c")
    with pytest.raises(StoreUnavailable):
        store.drop("c")


def test_killed_again_and_again_the_store_stays_whole_and_keeps_what_it_acknowledged(
    tmp_path: Path, migrated: Path
) -> None:
    path = tmp_path / "appliance.db"
    path.write_bytes(migrated.read_bytes())
    acknowledged: dict[str, int] = {}
    rng = random.Random(7)  # noqa: S311  # moments, not secrets
    for life in range(5):
        program = [sys.executable, str(WRITER), str(path), str(life)]
        paths = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=paths) as child:
            assert child.stdout
            assert child.stdout.readline() == "started\n"
            timer = threading.Timer(rng.uniform(0.05, 0.4), child.send_signal, [signal.SIGKILL])
            timer.start()
            pending = ""
            for line in child.stdout:
                if line.endswith("\n"):
                    said = json.loads(line)
                    pending = said["next"]
                    if said["document"]:
                        acknowledged[said["document"]] = said["chunks"]
            timer.join()
        assert child.returncode == -signal.SIGKILL
        acknowledged.pop(pending, None)  # what was under way may have happened or not

        database = Database(path)
        try:
            assert_whole(database)
            for document, number in acknowledged.items():
                assert len(SqliteStore(database).chunks("c", document)) == number
            with database.read() as connection:
                held = SignMirror(budget=2**20).view(connection, stored_now(connection))
            assert shown(held) == true_signs(database)
        finally:
            database.close()
    assert len(acknowledged) > 5


# Plans


def test_hot_queries_go_by_an_index(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, tuple[object, ...]] = {}

    def note(_c: object, _k: object, statement: str, parameters: tuple[object, ...], _x: object, many: object) -> None:
        if statement.lstrip().startswith(("SELECT", "WITH", "DELETE", "UPDATE")):
            seen[statement] = parameters[0] if many and isinstance(parameters[0], tuple) else parameters

    for engine in (database._readers, database._writer):
        event.listen(engine, "before_cursor_execute", note)
    exact, signs = SqliteStore(database), SqliteStore(database, exact_below=0)
    rows = unit(np.random.default_rng(1), 30, 8)
    exact.create("c", 8)
    exact.put("c", "d", chunks(30, k=1), rows)
    exact.put("c", "d", chunks(30, k=1), rows)
    signs.improve("c")
    for store in (exact, signs):
        for where in ((), [Condition("k", "=", 1)]):
            store.nearest("c", rows[0], limit=3, where=where)
            store.matching("c", "words", limit=3, where=where)
    for looked_up in (1, 1000):
        monkeypatch.setattr(sqlite, "_LOOKED_UP", looked_up)
        exact.matching("c", "title", limit=3)
    exact.remove("c", "d")
    exact.nearest("c", rows[0], limit=3)

    assert len(seen) > 12
    with database.read() as connection:
        for statement, parameters in seen.items():
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            for step in plan:
                text = str(step[-1])
                few = ("VIRTUAL TABLE", "sqlite_sequence", "(subquery", "SCAN found")
                scans = text.startswith("SCAN") and not any(each in text for each in few)
                assert not scans, (statement, text)
            if "ORDER BY document, ordinal" in statement and "+id" in statement:
                assert not any("TEMP B-TREE" in str(step[-1]) for step in plan), plan
