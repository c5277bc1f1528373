"""What every store promises; the memory store is the reference."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest

from appliance.errors import CollectionExists, CollectionNotFound, InvalidInput
from appliance.store.base import (
    AllOf,
    AnyOf,
    Chunk,
    Condition,
    Entry,
    Expression,
    Match,
    Matrix,
    Not,
    Value,
    VectorStore,
)
from appliance.store.memory import MemoryStore
from appliance.store.milvus import MilvusStore
from appliance.store.postgres.store import PostgresStore
from appliance.store.sqlite import SqliteStore

Store: TypeAlias = MemoryStore | SqliteStore | PostgresStore | MilvusStore

X, Y, Z = np.eye(3, dtype=np.float32)


def between(a: Matrix, b: Matrix, share: float) -> Matrix:
    """A unit vector that far on the way from a to b."""
    mixed = (1 - share) * a + share * b
    return np.asarray(mixed / np.linalg.norm(mixed), np.float32)


def chunk(ordinal: int = 0, text: str = "some text", *, title: str = "", **metadata: object) -> Chunk:
    return Chunk(
        ordinal, text, start=ordinal * 10, end=ordinal * 10 + len(text), tokens=3, title=title, metadata=metadata
    )


def keys(matches: list[Match]) -> list[tuple[str, int]]:
    return [match.key for match in matches]


def test_what_was_put_is_given_back_whole(store: Store) -> None:
    store.create("c", 3)
    passage = chunk(0, "Größe\0 and \u200bzero", title="Ä title", page=3, tags=["a", None], deep={"x": 1.5})

    store.put("c", "d", [passage], X[None])

    assert store.chunks("c", "d") == [passage]
    assert [match.chunk for match in store.nearest("c", X, limit=1)] == [passage]
    assert store.count("c") == 1


def test_a_part_of_a_documents_chunks_is_given_by_ordinals(store: Store) -> None:
    store.create("c", 3)
    store.put("c", "d", [chunk(n) for n in range(5)], np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]])

    def ordinals(**bounds: int) -> list[int]:
        return [each.ordinal for each in store.chunks("c", "d", **bounds)]

    assert ordinals(first=1, last=3) == [1, 2, 3]
    assert ordinals(first=3) == [3, 4]
    assert ordinals(last=0) == [0]
    assert ordinals(first=4, last=2) == ordinals(first=9) == []


def test_vectors_are_given_back_by_document_and_ordinal(store: Store) -> None:
    rows = np.eye(3, dtype=np.float32)
    store.create("c", 3)
    store.create("other", 3)
    store.put("c", "d", [chunk(0), chunk(1)], rows[:2])
    store.put("c", 'it\'s "d" 2', [chunk(0)], rows[2:])
    store.put("other", "e", [chunk(0)], rows[:1])

    found = store.vectors("c", [("d", 1), ('it\'s "d" 2', 0), ("d", 7), ("e", 0), ("d", 1)])

    assert {key: vector.tolist() for key, vector in found.items()} == {
        ("d", 1): [0, 1, 0],
        ('it\'s "d" 2', 0): [0, 0, 1],
    }
    assert store.vectors("c", []) == {}


def test_the_nearest_come_first_with_their_cosine(store: Store) -> None:
    store.create("c", 3)
    store.put("c", "far", [chunk()], -X[None])
    store.put("c", "near", [chunk()], between(X, Y, 0.2)[None])
    store.put("c", "same", [chunk()], X[None])
    store.put("c", "across", [chunk()], Z[None])

    matches = store.nearest("c", X, limit=10)

    assert [match.document for match in matches] == ["same", "near", "across", "far"]
    assert [match.score for match in matches] == pytest.approx([1, 0.970143, 0, -1], abs=1e-6)
    assert all(-1 <= match.score <= 1 for match in matches)
    assert keys(store.nearest("c", X, limit=2)) == keys(matches)[:2]
    assert store.nearest("c", X, limit=0) == []


def test_a_renamed_document_keeps_its_chunks_and_vectors(store: Store) -> None:
    store.create("c", 3)
    store.put("c", "old", [chunk(0, "otters"), chunk(1, "whales")], np.stack([X, Y]))
    store.put("c", "other", [chunk(0, "badgers")], Z[None])
    store.put("c", "new", [chunk(0, "gone")], Z[None])

    store.rename("c", "old", "new")
    store.rename("c", "nothing", "other")
    store.rename("c", "new", "new")

    assert store.chunks("c", "old") == []
    assert [each.text for each in store.chunks("c", "new")] == ["otters", "whales"]
    assert [each.text for each in store.chunks("c", "other")] == ["badgers"]
    assert keys(store.nearest("c", Y, limit=1)) == [("new", 1)]
    assert keys(store.matching("c", "otters", limit=9)) == [("new", 0)]
    assert store.matching("c", "gone", limit=9) == []
    assert store.count("c") == 3
    assert store.remove("c", "new") == 2
    with pytest.raises(CollectionNotFound):
        store.rename("nowhere", "a", "b")


def test_ties_come_in_the_order_of_document_and_ordinal(store: Store) -> None:
    store.create("c", 3)
    for document in ("m", "b", "z", "a"):
        store.put("c", document, [chunk(1), chunk(0)], np.stack([X, X]))

    matches = store.nearest("c", X, limit=5)

    assert keys(matches) == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("m", 0)]


def test_equals_are_cut_in_the_order_in_which_they_come(store: Store) -> None:
    store.create("c", 3)
    names = [f"ticket {n * 37 % 61:02}" for n in range(61)]
    rows = np.stack([X, X, Y])
    entries = [Entry(name, [chunk(n, "printer error", half=n % 2) for n in (2, 1, 0)], rows) for name in names]
    store.put_many("c", [*entries, Entry("better", [chunk(0, "printer error, printer error", half=1)], Z[None])])
    half = [Condition("half", "=", 1)]

    worded = keys(store.matching("c", "printer errors", limit=500))
    near = keys(store.nearest("c", X, limit=500))

    every = [(name, ordinal) for name in sorted(names) for ordinal in range(3)]
    assert sorted(worded[1:]) == worded[1:] == every
    assert [key for key in near if key[1] and key[0] != "better"] == [key for key in every if key[1]]
    for limit in (1, 2, 10, 49, 100, 150):
        assert keys(store.matching("c", "printer errors", limit=limit)) == worded[:limit]
        assert keys(store.nearest("c", X, limit=limit)) == near[:limit]
        assert (
            keys(store.matching("c", "printer errors", limit=limit, where=half))
            == [key for key in worded if key[1] == 1 or key[0] == "better"][:limit]
        )


def test_a_document_is_replaced_and_removed_as_a_whole(store: Store) -> None:
    store.create("c", 3)
    store.put("c", "d", [chunk(0, "old apples"), chunk(1, "old pears")], np.stack([X, Y]))

    store.put("c", "d", [chunk(0, "new plums")], Z[None])

    assert keys(store.nearest("c", X, limit=9)) == [("d", 0)]
    assert keys(store.matching("c", "apples pears old", limit=9)) == []
    assert keys(store.matching("c", "plums", limit=9)) == [("d", 0)]
    assert store.remove("c", "d") == 1
    assert store.remove("c", "d") == 0
    assert (store.count("c"), store.chunks("c", "d"), store.nearest("c", Z, limit=9)) == (0, [], [])
    assert store.matching("c", "plums", limit=9) == []


def test_a_document_without_chunks_is_one_that_has_none(store: Store) -> None:
    store.create("c", 3)
    store.put("c", "d", [chunk()], X[None])

    store.put("c", "d", [], np.empty((0, 3), np.float32))

    assert store.count("c") == 0
    assert store.remove("c", "d") == 0


def test_several_documents_go_in_together_and_the_last_of_one_counts(store: Store) -> None:
    store.create("c", 3)

    store.put_many(
        "c",
        [
            Entry("a", [chunk(0, "first")], X[None]),
            Entry("b", [chunk(0), chunk(1)], np.stack([Y, Z])),
            Entry("a", [chunk(0, "second")], Y[None]),
        ],
    )

    assert store.count("c") == 3
    assert store.chunks("c", "a") == [chunk(0, "second")]
    assert keys(store.nearest("c", Y, limit=2)) == [("a", 0), ("b", 0)]


def test_one_bad_entry_keeps_all_of_them_out(store: Store) -> None:
    store.create("c", 3)

    with pytest.raises(InvalidInput):
        store.put_many("c", [Entry("a", [chunk()], X[None]), Entry("b", [chunk()], 2 * X[None])])

    assert store.count("c") == 0


@pytest.mark.parametrize(
    "vectors",
    [
        np.zeros((1, 3), np.float32),
        np.full((1, 3), np.nan, np.float32),
        np.array([[np.inf, 0, 0]], np.float32),
        np.array([[1.01, 0, 0]], np.float32),
        np.array([[1, 0]], np.float32),
        np.array([1, 0, 0], np.float32),
        np.eye(3, dtype=np.float32),
    ],
    ids=["zeros", "nan", "infinity", "too long", "too short", "no matrix", "too many"],
)
def test_a_vector_that_is_none_is_refused_and_the_old_document_stays(store: Store, vectors: Matrix) -> None:
    store.create("c", 3)
    store.put("c", "d", [chunk(0, "kept")], X[None])

    with pytest.raises(InvalidInput):
        store.put("c", "d", [chunk(0, "refused")], vectors)

    assert store.chunks("c", "d") == [chunk(0, "kept")]


@pytest.mark.parametrize("query", [np.zeros(3, np.float32), np.full(3, np.nan, np.float32), np.eye(1, 4)[0]])
def test_a_query_that_is_no_unit_vector_is_refused(store: Store, query: Matrix) -> None:
    store.create("c", 3)

    with pytest.raises(InvalidInput):
        store.nearest("c", query, limit=1)


def test_chunks_of_one_ordinal_and_metadata_that_is_no_json_are_refused(store: Store) -> None:
    store.create("c", 3)

    with pytest.raises(InvalidInput, match="ordinal"):
        store.put("c", "d", [chunk(1), chunk(1)], np.stack([X, Y]))
    with pytest.raises(InvalidInput, match="JSON"):
        store.put("c", "d", [chunk(number=float("nan"))], X[None])
    with pytest.raises(InvalidInput, match="JSON"):
        store.put("c", "d", [chunk(thing=object())], X[None])


def test_what_the_caller_changes_afterwards_changes_nothing(store: Store) -> None:
    store.create("c", 3)
    vectors, metadata = X[None].copy(), {"k": ["v"]}
    store.put("c", "d", [chunk(0, meta=metadata)], vectors)

    vectors[:] = Y
    metadata["k"].append("w")

    assert store.nearest("c", X, limit=1)[0].score == 1
    assert store.chunks("c", "d")[0].metadata == {"meta": {"k": ["v"]}}


def test_collections_do_not_see_each_other(store: Store) -> None:
    store.create("one", 3)
    store.create("two", 2)
    store.put("one", "d", [chunk(0, "apple")], X[None])
    store.put("two", "d", [chunk(0, "apple pie")], np.eye(1, 2, dtype=np.float32))

    store.drop("one")

    assert store.chunks("two", "d") == [chunk(0, "apple pie")]
    assert len(store.matching("two", "apple", limit=9)) == 1
    store.create("one", 3)
    assert (store.count("one"), store.nearest("one", X, limit=1), store.matching("one", "apple", limit=1)) == (
        0,
        [],
        [],
    )


def test_creating_twice_is_fine_unless_the_dimensions_differ(store: Store) -> None:
    store.create("c", 3)
    store.put("c", "d", [chunk()], X[None])

    store.create("c", 3)

    assert store.count("c") == 1
    with pytest.raises(CollectionExists):
        store.create("c", 4)
    for dimensions in (0, -1, 8193):
        with pytest.raises(InvalidInput):
            store.create("other", dimensions)


@pytest.mark.parametrize("dimensions", [1, 7, 8, 9, 8192])
def test_any_number_of_dimensions_can_be_searched(store: Store, dimensions: int) -> None:
    store.create("c", dimensions)
    ends = np.zeros((2, dimensions), np.float32)
    ends[0, 0], ends[1, -1] = 1, -1

    store.put("c", "d", [chunk(0), chunk(1)], ends)

    assert keys(store.nearest("c", ends[1], limit=1)) == [("d", 1)]


def test_a_collection_that_is_not_there_is_named(store: Store) -> None:
    store.drop("ghost")
    calls: list[Callable[[], object]] = [
        lambda: store.put("ghost", "d", [], np.empty((0, 3), np.float32)),
        lambda: store.put_many("ghost", []),
        lambda: store.remove("ghost", "d"),
        lambda: store.nearest("ghost", X, limit=1),
        lambda: store.matching("ghost", "w", limit=1),
        lambda: store.chunks("ghost", "d"),
        lambda: store.vectors("ghost", [("d", 0)]),
        lambda: store.count("ghost"),
    ]

    for call in calls:
        with pytest.raises(CollectionNotFound, match="ghost") as caught:
            call()
        assert caught.value.name == "ghost"


def test_closing_twice_is_fine(store: VectorStore) -> None:
    store.close()
    store.close()


def test_an_exact_search_is_the_same_where_nothing_is_missed(store: Store) -> None:
    store.create("c", 3)
    for n in range(20):
        store.put("c", f"d{n:02}", [chunk(0, half=n % 2)], between(X, Y, n / 20)[None])
    where = [Condition("half", "=", 1)]

    assert store.nearest("c", X, limit=7, exact=True) == store.nearest("c", X, limit=7)
    assert store.nearest("c", X, limit=3, where=where, exact=True) == store.nearest("c", X, limit=3, where=where)
    assert keys(store.nearest("c", X, limit=2, where=where, exact=True)) == [("d01", 0), ("d03", 0)]


# Words


def test_words_find_titles_and_texts_and_more_of_them_rank_higher(store: Store) -> None:
    store.create("c", 3)
    store.put("c", "both", [chunk(0, "green apple")], X[None])
    store.put("c", "one", [chunk(0, "yellow apple")], X[None])
    store.put("c", "title", [chunk(0, "something else", title="The Apple")], X[None])
    for n in range(5):
        store.put("c", f"none{n}", [chunk(0, "nothing of the kind")], X[None])

    matches = store.matching("c", "Green APPLE?", limit=9)

    assert matches[0].document == "both"
    assert {match.document for match in matches} == {"both", "one", "title"}
    scores = [match.score for match in matches]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0
    assert len(store.matching("c", "apple", limit=2)) == 2
    assert store.matching("c", "apple", limit=0) == []


def test_case_and_diacritics_do_not_matter(store: Store) -> None:
    store.create("c", 3)
    store.put("c", "d", [chunk(0, "Ein Café in MÜNCHEN")], X[None])

    for query in ("cafe", "CAFÉ", "cafe\u0301", "munchen"):
        assert keys(store.matching("c", query, limit=1)) == [("d", 0)], query


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('"sea otter"', "near"),
        ('"SEA  Ötter"', "near"),
        ('"otter sea"', ""),
        ('"sea otter" lion', "near apart"),
        ('"the sea"', "near"),
        ('"sea otter', "near apart"),
        ('sea"otter', "near apart"),
        ('"" "?!" lion', "apart"),
        ("otte*", "near apart"),
        ("OTTE* lion", "near apart"),
        ("ott *", ""),
        ("ott", ""),
        ("*otter", "near apart"),
        ('"the sea ott"*', "near"),
        ("o*", ""),
        ('"sea" NEAR "lion"', "near apart"),
    ],
)
def test_quotes_make_a_phrase_and_an_asterisk_a_beginning(store: Store, query: str, expected: str) -> None:
    if isinstance(store, MilvusStore):
        pytest.skip("Milvus looks up the words of a phrase one by one, and whole words alone: see test_milvus.py")
    store.create("c", 3)
    store.put("c", "near", [chunk(0, "in the sea: otters? The sea otter.")], X[None])
    store.put("c", "apart", [chunk(0, "a sea lion, an otter", title="lion")], X[None])

    assert {match.document for match in store.matching("c", query, limit=9)} == set(expected.split())


def test_a_phrase_does_not_run_from_the_title_into_the_text(store: Store) -> None:
    if isinstance(store, MilvusStore):
        pytest.skip("Milvus looks up the words of a phrase one by one: see test_milvus.py")
    store.create("c", 3)
    store.put("c", "d", [chunk(0, "otter", title="sea")], X[None])

    assert store.matching("c", '"sea otter"', limit=9) == []


@pytest.mark.parametrize(
    ("text", "found", "missed"),
    [
        (
            "東京都の人口は一千四百万人です",
            ["東京", "人口", "京", "東京の人口", '"東京都の人口"'],
            ["大阪", '"都東"', '"人口東京"'],
        ),
        ("ソフトウェアをｲﾝｽﾄｰﾙする", ["ソフト", "インストール", "ウェア", "ｿﾌﾄ"], ["ハード"]),
        ("서울에서 부산까지", ["서울", "부산", "서울은"], ["대구"]),
        ("ภาษาไทยไม่มีช่องว่าง", ["ไทย", "ภาษา"], ["ลาว"]),
        ("ພາສາລາວ", ["ລາວ"], ["ຫກດ"]),
        ("ភាសាខ្មែរ", ["ខ្មែរ"], ["ថៃ"]),
        ("使用Python3編程", ["python3", "編程", "使用"], ["程編"]),
        ("𠀀𠀁本", ["𠀀𠀁"], ["𠀁𠀀"]),
        ("がくせい", ["か\u3099く", "くせ"], ["かく"]),
    ],
)
def test_words_are_found_in_scripts_that_write_no_spaces(
    store: Store, text: str, found: list[str], missed: list[str]
) -> None:
    store.create("c", 3)
    passage = chunk(0, text, title=f"{text} title")
    store.put("c", "d", [passage], X[None])

    for query in found:
        assert [match.chunk for match in store.matching("c", query, limit=9)] == [passage], query
    for query in missed if not isinstance(store, MilvusStore) else ():  # a letter in common is enough there
        assert store.matching("c", query, limit=9) == [], query
    store.put("c", "d", [chunk(0, "plain")], X[None])
    assert store.matching("c", found[0], limit=9) == []


@pytest.mark.parametrize(
    "operator", ["AND", "OR", "NOT", "NEAR", "near(a b)", "title:", "*", "^", "-", "+", "(", '"', "{"]
)
def test_operators_are_plain_words(store: Store, operator: str) -> None:
    store.create("c", 3)
    store.put("c", "d", [chunk(0, "apple")], X[None])
    store.put("c", "e", [chunk(0, "pear")], X[None])

    matches = store.matching("c", f"apple {operator} pear", limit=9)

    assert sorted(keys(matches)) == [("d", 0), ("e", 0)]


@pytest.mark.parametrize("words", ["", " ", "?!", '"', '""', "\0", "* ^ : -", "\u0301", "\U0001f600", "€"])
def test_a_query_without_words_finds_nothing(store: Store, words: str) -> None:
    store.create("c", 3)
    store.put("c", "d", [chunk(0, "apple")], X[None])

    assert store.matching("c", words, limit=9) == []


def test_stop_words_count_only_when_there_is_nothing_else(store: Store) -> None:
    store.create("c", 3)
    store.put("c", "stop", [chunk(0, "to be or not to be")], X[None])
    store.put("c", "word", [chunk(0, "an apple a day")], X[None])

    assert keys(store.matching("c", "to be or not an apple", limit=9)) == [("word", 0)]
    assert keys(store.matching("c", "To be, or not to be!", limit=9)) == [("stop", 0)]


def test_a_very_long_query_is_answered(store: Store) -> None:
    store.create("c", 3)
    store.put("c", "d", [chunk(0, "word7 and more")], X[None])

    assert keys(store.matching("c", " ".join(f"word{n}" for n in range(100_000)), limit=1)) == [("d", 0)]
    assert store.matching("c", "x" * 1_000_000, limit=1) == []


# Conditions


@pytest.fixture
def filled(store: Store) -> Store:
    store.create("c", 3)
    fields: dict[str, dict[str, Any]] = {
        "int": {"v": 1},
        "float": {"v": 1.5},
        "text": {"v": "1"},
        "true": {"v": True},
        "null": {"v": None},
        "list": {"v": [1]},
        "none": {},
        "dot": {"a.b": "x", "": 1},
        "nested": {"a": {"b": "x"}, "ключ": "да"},
    }
    for n, (document, metadata) in enumerate(fields.items()):
        store.put("c", document, [chunk(0, "apple", **metadata)], between(X, Y, n / 100)[None])
    return store


@pytest.mark.parametrize(
    ("key", "op", "value", "expected"),
    [
        ("v", "=", 1, "int list"),
        ("v", "=", 1.0, "int list"),
        ("v", "=", "1", "text"),
        ("v", "=", True, "true"),
        ("v", "=", False, ""),
        ("v", "!=", 1, "float text true null none dot nested"),
        ("v", "!=", "1", "int float true null list none dot nested"),
        ("v", ">", 1, "float"),
        ("v", ">=", 1, "int float"),
        ("v", "<", 2, "int float"),
        ("v", "<=", 1, "int"),
        ("v", ">", "0", "text"),
        ("v", "<", 10**18, "int float"),
        ("v", "in", (1, "1"), "int text list"),
        ("v", "in", (True, 7.5), "true"),
        ("v", "in", (), ""),
        ("v", "in", ("true", 1.5), "float"),
        ("a.b", "=", "x", "dot"),
        ("ключ", "=", "да", "nested"),
        ("absent", "=", 1, ""),
        ("absent", "!=", 1, "int float text true null list none dot nested"),
        ("v] OR 1=1", "=", 1, ""),
        ("v", "between", (1, 1.5), "int float"),
        ("v", "between", (1.5, 1), ""),
        ("v", "between", ("0", "2"), "text"),
        ("v", "between", (False, True), "true"),
        ("v", "exists", True, "int float text true null list"),
        ("v", "exists", False, "none dot nested"),
        ("absent", "exists", True, ""),
    ],
)
def test_conditions_compare_like_with_like(filled: Store, key: str, op: str, value: Value, expected: str) -> None:
    condition = Condition(key, op, value)  # type: ignore[arg-type]  # the operator is one of them

    by_vector = filled.nearest("c", X, limit=20, where=[condition])
    by_words = filled.matching("c", "apple", limit=20, where=[condition])

    assert [match.document for match in by_vector] == expected.split()
    assert {match.document for match in by_words} == set(expected.split())


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (Not(Condition("v", "=", 1)), "float text true null none dot nested"),
        (Not(Condition("v", "!=", 1)), "int list"),
        (Not(Condition("v", "in", (1, "1"))), "float true null none dot nested"),
        (Not(Condition("absent", ">", 1)), "int float text true null list none dot nested"),
        (Not(Not(Condition("v", "=", 1))), "int list"),
        (Not(Condition("v", "exists", value=True)), "none dot nested"),
        (AnyOf((Condition("v", "=", 1), Condition("a.b", "=", "x"))), "int list dot"),
        (AllOf((Condition("v", ">=", 1), Not(Condition("v", "=", 1)))), "float"),
        (AnyOf((AllOf((Condition("v", ">", 0), Condition("v", "<", 1.2))), Condition("v", "=", "1"))), "int text"),
        (AnyOf(()), ""),
        (Not(AllOf(())), ""),
        (AllOf(()), "int float text true null list none dot nested"),
    ],
)
def test_expressions_are_two_valued_and_may_be_inside_each_other(
    filled: Store, expression: Expression, expected: str
) -> None:
    by_vector = filled.nearest("c", X, limit=20, where=[expression])
    by_words = filled.matching("c", "apple", limit=20, where=[expression])

    assert [match.document for match in by_vector] == expected.split()
    assert {match.document for match in by_words} == set(expected.split())


@pytest.fixture
def listed(store: Store) -> Store:
    store.create("c", 3)
    fields: dict[str, Any] = {
        "two": ["a", "b"],
        "mixed": [1.0, True, None, "é\0", "b"],
        "empty": [],
        "inside": [["a"], {"a": "a"}],
        "plain": "a",
        "odd": ['qu"o\\te', "true", False, -(2**63)],
    }
    for n, (document, tags) in enumerate(fields.items()):
        store.put("c", document, [chunk(0, "apple", tags=tags)], between(X, Y, n / 100)[None])
    return store


@pytest.mark.parametrize(
    ("op", "value", "expected"),
    [
        ("=", "a", "two plain"),
        ("=", "b", "two mixed"),
        ("=", 1, "mixed"),
        ("=", True, "mixed"),
        ("=", False, "odd"),
        ("=", "true", "odd"),
        ("=", "é\0", "mixed"),
        ("=", 'qu"o\\te', "odd"),
        ("=", -(2**63), "odd"),
        ("!=", "a", "mixed empty inside odd"),
        ("!=", "b", "empty inside plain odd"),
        ("in", ("a", 1), "two mixed plain"),
        ("in", ("x", False), "odd"),
        ("in", (), ""),
        ("in", ("b", True, *range(5, 50)), "two mixed"),
        ("in", tuple(f"tag {n}" for n in range(5000)), ""),
        ("<", "z", "plain"),
        (">=", 0, ""),
        ("between", ("a", "z"), "plain"),
        ("exists", True, "two mixed empty inside plain odd"),
    ],
)
def test_a_list_is_equal_to_what_it_holds_and_has_no_order(listed: Store, op: str, value: Any, expected: str) -> None:
    condition = Condition("tags", op, value)  # type: ignore[arg-type]  # the operator is one of them
    others = [each for each in ("two", "mixed", "empty", "inside", "plain", "odd") if each not in expected.split()]

    by_vector = listed.nearest("c", X, limit=20, where=[condition])
    by_words = listed.matching("c", "apple", limit=20, where=[condition])
    opposite = listed.nearest("c", X, limit=20, where=[Not(condition)])

    assert [match.document for match in by_vector] == expected.split()
    assert {match.document for match in by_words} == set(expected.split())
    assert [match.document for match in opposite] == others


def test_expressions_too_deep_for_a_database_are_refused(filled: Store) -> None:
    deep: Expression = Condition("v", "=", 1)
    for _ in range(100):
        deep = Not(deep)

    with pytest.raises(InvalidInput, match="inside each other"):
        filled.nearest("c", X, limit=1, where=[deep])


def test_a_choice_of_ten_thousand_values_and_a_hundred_conditions_are_answered(filled: Store) -> None:
    choice: tuple[Value, ...] = (True, 1.5, *range(9_000), *(f"text {n}" for n in range(1_000)), 'qu"o\\te\0', "é鯨")
    where = [Condition("v", "in", choice), *(Condition("v", "!=", n) for n in range(1, 100))]
    filled.put("c", "odd", [chunk(0, "apple", v='qu"o\\te\0')], Z[None])
    filled.put("c", "far", [chunk(0, "apple", v="é鯨")], Z[None])

    by_vector = filled.nearest("c", X, limit=20, where=where)
    by_words = filled.matching("c", "apple", limit=20, where=where)

    assert [match.document for match in by_vector] == ["float", "true", "far", "odd"]
    assert {match.document for match in by_words} == {"float", "true", "far", "odd"}


def test_all_conditions_hold_and_before_the_limit_is_applied(filled: Store) -> None:
    where = [Condition("v", ">=", 1), Condition("v", "!=", 1)]

    assert keys(filled.nearest("c", X, limit=1, where=where)) == [("float", 0)]
    assert keys(filled.matching("c", "apple", limit=1, where=where)) == [("float", 0)]


@pytest.mark.parametrize(
    "condition",
    [
        Condition('a"b', "=", 1),
        Condition("a\\b", "=", 1),
        Condition("a\0", "=", 1),
        Condition("", "=", 1),
        Condition("a", "=", float("nan")),
        Condition("a", "<", float("inf")),
        Condition("a", "<", 2**63),
        Condition("a", "=", (1,)),
        Condition("a", "in", 1),
        Condition("a", "in", (1, float("nan"))),
        Condition("a", "between", (1, 2, 3)),
        Condition("a", "between", (1, "2")),
        Condition("a", "between", 1),
        Condition("a", "exists", "yes"),
        AllOf((AnyOf((Not(Condition("", "=", 1)),)),)),
        Condition("a", "=", None),  # type: ignore[arg-type]  # what a caller may send
        Condition("a", "~", 1),  # type: ignore[arg-type]  # same
    ],
)
def test_a_condition_that_cannot_be_answered_is_refused(filled: Store, condition: Expression) -> None:
    with pytest.raises(InvalidInput):
        filled.nearest("c", X, limit=1, where=[condition])
    with pytest.raises(InvalidInput):
        filled.matching("c", "apple", limit=1, where=[condition])
