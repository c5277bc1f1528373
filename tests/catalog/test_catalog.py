"""The catalog: what exists, how far it has come, and the queue."""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from appliance.catalog.catalog import Catalog
from appliance.catalog.records import (
    Document,
    Failed,
    NewDocument,
    Outcome,
    Put,
    Ready,
    Removals,
    Returned,
    Work,
    content_hash,
)
from appliance.database import Database, Transactions
from appliance.errors import CollectionExists, CollectionNotFound, Conflict, DocumentNotFound, InvalidInput


@pytest.fixture
def catalog(transactions: Transactions) -> Catalog:
    catalog = Catalog(transactions)
    catalog.create_collection("c", model="m", space="s", dimensions=3)
    return catalog


def new(name: str = "d", text: str = "some text", **metadata: object) -> NewDocument:
    return NewDocument(name, text.encode(), title=f"title of {name}", metadata=metadata)


def put(catalog: Catalog, *documents: NewDocument) -> list[Put]:
    return catalog.put_documents("c", documents)


def ready(work: Work, text: str | None = None) -> Ready:
    return Ready(work, text=work.body.decode() if text is None else text, chunks=2, tokens=7, truncated=1)


def settled(catalog: Catalog, *documents: NewDocument) -> list[Document]:
    put(catalog, *documents)
    assert all(catalog.settle([ready(work) for work in catalog.take(100)]))
    return [catalog.document("c", document.id) for document in documents]


# Collections


def test_a_collection_remembers_what_it_was_made_with(catalog: Catalog) -> None:
    made = catalog.create_collection("Notes.2024_a-b", model="mini", space="mini-space", dimensions=384)

    assert catalog.collection("Notes.2024_a-b") == made
    assert (made.model, made.space, made.dimensions, made.state) == ("mini", "mini-space", 384, "ready")
    assert made.created.tzinfo is UTC
    assert abs(datetime.now(UTC) - made.created) < timedelta(minutes=1)
    assert [collection.name for collection in catalog.collections()] == ["c", "Notes.2024_a-b"]


@pytest.mark.parametrize("name", ["", ".a", "-a", "_a", "a b", "a/b", "a" * 65, "ä", "a\n", "a\0"])
def test_a_name_that_is_none_is_refused(catalog: Catalog, name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        catalog.create_collection(name, model="m", space="s", dimensions=3)
    assert caught.value.param == "name"


def test_a_second_collection_of_a_name_is_refused_even_while_the_first_leaves(catalog: Catalog) -> None:
    with pytest.raises(CollectionExists):
        catalog.create_collection("c", model="m", space="s", dimensions=3)
    catalog.begin_removal("c")
    with pytest.raises(CollectionExists):
        catalog.create_collection("c", model="m", space="s", dimensions=3)


def test_a_collection_leaves_in_two_steps_with_all_it_holds(catalog: Catalog, transactions: Transactions) -> None:
    settled(catalog, new("a"), new("b"))
    put(catalog, new("waits"))

    with pytest.raises(Conflict):
        catalog.forget_collection("c")
    leaving = catalog.begin_removal("c")

    assert leaving.state == "removing"
    assert catalog.begin_removal("c") == leaving
    assert catalog.take(9) == []
    assert catalog.collections() == []
    with pytest.raises(CollectionNotFound):
        put(catalog, new("late"))
    assert catalog.pending_removals() == Removals((), ("c",))
    catalog.forget_collection("c")
    assert catalog.collections() == []
    with transactions.read() as connection:
        for table in ("document", "source", "document_text"):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == 0  # noqa: S608  # ours


def test_a_collection_whose_document_is_in_hand_is_not_forgotten_yet(catalog: Catalog) -> None:
    put(catalog, new())
    (work,) = catalog.take(1)
    catalog.begin_removal("c")

    assert catalog.pending_removals() == Removals((), ())
    with pytest.raises(Conflict, match="being worked on"):
        catalog.forget_collection("c")
    assert catalog.settle([ready(work)]) == [False]
    assert catalog.pending_removals() == Removals((), ("c",))
    catalog.forget_collection("c")


def test_what_is_not_there_is_named(catalog: Catalog) -> None:
    collections: list[Callable[[], object]] = [
        lambda: catalog.collection("ghost"),
        lambda: catalog.begin_removal("ghost"),
        lambda: catalog.forget_collection("ghost"),
        lambda: catalog.put_documents("ghost", []),
        lambda: catalog.document("ghost", "d"),
        lambda: catalog.documents("ghost", limit=1),
        lambda: catalog.counts("ghost"),
        lambda: catalog.text("ghost", "d"),
        lambda: catalog.begin_document_removal("ghost", "d"),
        lambda: catalog.forget_document("ghost", "d"),
    ]
    documents: list[Callable[[], object]] = [
        lambda: catalog.document("c", "ghost"),
        lambda: catalog.text("c", "ghost"),
        lambda: catalog.begin_document_removal("c", "ghost"),
        lambda: catalog.forget_document("c", "ghost"),
    ]

    for calls, error in ((collections, CollectionNotFound), (documents, DocumentNotFound)):
        for call in calls:
            with pytest.raises(error, match="ghost") as caught:
                call()
            assert caught.value.name == "ghost"


# Documents


def test_a_new_document_waits(catalog: Catalog) -> None:
    (made,) = put(catalog, new("d", "größer", page=[1, {"x": None}]))

    document = made.document
    assert made.change == "created"
    assert catalog.document("c", "d") == document
    assert (document.collection, document.title, document.metadata) == ("c", "title of d", {"page": [1, {"x": None}]})
    assert (document.state, document.version, document.size, document.attempts) == ("waiting", 1, 8, 0)
    assert document.content_hash == content_hash(new("d", "größer", page=[1, {"x": None}]))
    assert not document.in_hand
    assert catalog.text("c", "d") is None


def test_the_same_content_again_changes_nothing_in_any_state(catalog: Catalog) -> None:
    put(catalog, new())
    assert [each.change for each in put(catalog, new())] == ["unchanged"]
    (work,) = catalog.take(1)
    assert [each.change for each in put(catalog, new())] == ["unchanged"]
    assert catalog.settle([ready(work)]) == [True]
    before = catalog.document("c", "d")

    again = put(catalog, new())

    assert again == [Put(before, "unchanged")]
    assert catalog.take(1) == []


@pytest.mark.parametrize(
    "changed",
    [
        NewDocument("d", b"other", title="title of d"),
        NewDocument("d", b"some text", title="other"),
        NewDocument("d", b"some text", title="title of d", metadata={"k": 1}),
        NewDocument("d", b"some text", title="title of d", media_type="text/markdown"),
    ],
    ids=["body", "title", "metadata", "media type"],
)
def test_every_part_of_the_content_counts(catalog: Catalog, changed: NewDocument) -> None:
    (before,) = settled(catalog, new())

    (after,) = put(catalog, changed)

    assert after.change == "updated"
    assert (after.document.seq, after.document.version, after.document.state) == (before.seq, 2, "waiting")
    assert after.document.created == before.created
    assert after.document.updated > before.updated
    (work,) = catalog.take(1)
    assert (work.body, work.title, work.metadata) == (changed.body, changed.title, changed.metadata)


def test_a_document_that_failed_is_tried_again_when_it_comes_again(catalog: Catalog) -> None:
    put(catalog, new())
    (work,) = catalog.take(1)
    assert catalog.settle([Failed(work, "no text in it")]) == [True]
    failed = catalog.document("c", "d")

    (again,) = put(catalog, new())

    assert (failed.state, failed.error, failed.attempts) == ("failed", "no text in it", 1)
    assert again.change == "updated"
    assert (again.document.state, again.document.error, again.document.attempts) == ("waiting", "", 0)
    assert len(catalog.take(1)) == 1


def test_documents_go_in_all_together_or_not_at_all(catalog: Catalog) -> None:
    for bad in (new(""), new("x" * 513), NewDocument("n", b"", metadata={"k": float("nan")})):
        with pytest.raises(InvalidInput):
            put(catalog, new("a"), bad)

    with pytest.raises(DocumentNotFound):
        catalog.document("c", "a")
    assert [each.change for each in put(catalog, new("a"), new("a", "two"), new("a", "two"))] == [
        "created",
        "updated",
        "unchanged",
    ]
    assert put(catalog, new("x" * 512))[0].change == "created"


def test_ids_belong_to_their_collection(catalog: Catalog) -> None:
    catalog.create_collection("other", model="m", space="s", dimensions=3)
    put(catalog, new())

    assert catalog.put_documents("other", [new()])[0].change == "created"
    assert [(work.collection.name, work.id) for work in catalog.take(9)] == [("c", "d"), ("other", "d")]


def test_pages_follow_each_other_in_the_order_of_arrival(catalog: Catalog) -> None:
    put(catalog, *(new(f"d{n}") for n in (3, 1, 2, 5, 4)))
    catalog.settle([ready(work) for work in catalog.take(2)])

    seen: list[list[str]] = []
    after: int | None = None
    while True:
        page = catalog.documents("c", limit=2, after=after)
        seen.append([document.id for document in page.documents])
        if page.next is None:
            break
        after = page.next

    assert seen == [["d3", "d1"], ["d2", "d5"], ["d4"]]
    assert [document.id for document in catalog.documents("c", limit=9, state="ready").documents] == ["d3", "d1"]
    whole = catalog.documents("c", limit=5)
    assert (len(whole.documents), whole.next) == (5, None)
    assert catalog.counts("c") == {"ready": 2, "waiting": 3}


def test_the_text_is_there_once_the_document_is_ready_and_is_kept_once(
    catalog: Catalog, transactions: Transactions
) -> None:
    put(catalog, new("plain", "as it came, größer"), NewDocument("html", b"<p>parsed</p>", media_type="text/html"))
    plain, html = catalog.take(2)

    catalog.settle([ready(plain), ready(html, "parsed")])

    assert catalog.text("c", "plain") == "as it came, größer"
    assert catalog.text("c", "html") == "parsed"
    with transactions.read() as connection:
        assert connection.exec_driver_sql("SELECT text FROM document_text").scalars().all() == ["parsed"]
    put(catalog, NewDocument("html", b"<p>changed</p>", media_type="text/html"))
    assert catalog.text("c", "html") is None
    catalog.settle([ready(work, "changed") for work in catalog.take(1)])
    assert catalog.text("c", "html") == "changed"


def test_a_document_leaves_in_two_steps(catalog: Catalog) -> None:
    settled(catalog, new("a"), new("b"))

    with pytest.raises(Conflict, match="in use"):
        catalog.forget_document("c", "a")
    leaving = catalog.begin_document_removal("c", "a")

    assert (leaving.state, leaving.in_hand) == ("removing", False)
    assert catalog.begin_document_removal("c", "a").state == "removing"
    assert catalog.pending_removals() == Removals((("c", "a"),), ())
    catalog.forget_document("c", "a")
    assert catalog.pending_removals() == Removals((), ())
    with pytest.raises(DocumentNotFound):
        catalog.document("c", "a")
    assert put(catalog, new("a"))[0].document.version == 1


# The queue

STEPS = ["put", "take", "ready", "fail", "back", "remove", "forget", "recover"]


def test_work_is_taken_once_and_oldest_first(catalog: Catalog) -> None:
    put(catalog, *(new(f"d{n}", k=n) for n in range(5)))

    first, second, none = catalog.take(2), catalog.take(9), catalog.take(9)

    assert [work.id for work in first + second] == ["d0", "d1", "d2", "d3", "d4"]
    assert none == []
    assert first[1].collection == catalog.collection("c")
    assert (first[1].body, first[1].metadata, first[1].attempts, first[1].version) == (b"some text", {"k": 1}, 1, 1)
    document = catalog.document("c", "d0")
    assert (document.state, document.in_hand, document.attempts) == ("working", True, 1)


def test_no_more_bytes_are_taken_than_asked_for_but_always_a_document(catalog: Catalog) -> None:
    put(catalog, *(new(f"d{n}", "x" * 100) for n in range(5)))

    assert [len(catalog.take(9, max_bytes=limit)) for limit in (10, 250, 1000)] == [1, 2, 2]


def test_settling_tells_how_it_ended(catalog: Catalog) -> None:
    put(catalog, new("good"), new("bad"), new("later"))
    good, bad, later = catalog.take(3)

    assert catalog.settle([ready(good), Failed(bad, "broken"), Returned(later)]) == [True, True, True]

    done = catalog.document("c", "good")
    assert (done.state, done.chunks, done.tokens, done.truncated, done.in_hand) == ("ready", 2, 7, 1, False)
    assert catalog.document("c", "bad").error == "broken"
    again = catalog.document("c", "later")
    assert (again.state, again.attempts, again.in_hand) == ("waiting", 1, False)
    assert catalog.settle([ready(good)]) == [False]
    assert catalog.settle([]) == []


def test_work_on_an_older_version_settles_to_nothing_and_the_new_one_waits_for_it(catalog: Catalog) -> None:
    put(catalog, new("d", "one"))
    (old,) = catalog.take(1)
    assert catalog.current([old]) == [True]

    (changed,) = put(catalog, new("d", "two"))

    assert (changed.change, changed.document.state, changed.document.in_hand) == ("updated", "waiting", True)
    assert catalog.current([old]) == [False]
    assert catalog.take(1) == []  # a document is in one hand only
    assert catalog.settle([ready(old)]) == [False]
    (work,) = catalog.take(1)
    assert (work.version, work.body) == (2, b"two")
    assert catalog.settle([ready(old)]) == [False]
    assert catalog.settle([ready(work)]) == [True]


def test_a_document_that_is_removed_while_in_hand_is_forgotten_only_after(catalog: Catalog) -> None:
    put(catalog, new())
    (work,) = catalog.take(1)

    assert catalog.begin_document_removal("c", "d").in_hand

    assert catalog.current([work]) == [False]
    assert catalog.pending_removals() == Removals((), ())
    with pytest.raises(Conflict, match="being worked on"):
        catalog.forget_document("c", "d")
    assert catalog.settle([Failed(work, "too late")]) == [False]
    assert catalog.pending_removals() == Removals((("c", "d"),), ())
    catalog.forget_document("c", "d")


def test_the_name_of_a_file_is_metadata_and_no_change(catalog: Catalog) -> None:
    named = NewDocument("a", b"x", metadata={"k": 1}, source="a.md")
    catalog.put_documents("c", [named, NewDocument("own", b"x", metadata={"source": "mine"}, source="a.md")])
    catalog.put_documents("c", [NewDocument("old", b"x")])

    again = catalog.put_documents("c", [replace(named, source="b.md"), NewDocument("old", b"x", source="old.md")])

    assert [each.change for each in again] == ["unchanged", "unchanged"]
    assert catalog.document("c", "a").metadata == {"source": "a.md", "k": 1}
    assert catalog.document("c", "own").metadata == {"source": "mine"}
    assert catalog.document("c", "old").metadata == {}


def test_a_document_that_is_put_again_while_it_is_removed_is_new(catalog: Catalog) -> None:
    settled(catalog, new())
    catalog.begin_document_removal("c", "d")

    again = put(catalog, new())[0]

    assert (again.change, again.document.state, again.document.chunks) == ("created", "waiting", 0)
    with pytest.raises(Conflict, match="in use"):
        catalog.forget_document("c", "d")
    assert catalog.pending_removals() == Removals((), ())
    assert len(catalog.take(1)) == 1


def test_an_attempt_counts_unless_it_was_none_of_the_documents_doing(catalog: Catalog) -> None:
    put(catalog, new())

    catalog.settle([Returned(catalog.take(1)[0])])
    catalog.settle([Returned(catalog.take(1)[0], counted=False)])

    assert catalog.take(1)[0].attempts == 2


def test_collections_that_have_to_wait_are_left_out(catalog: Catalog) -> None:
    other = catalog.create_collection("other", model="m", space="s", dimensions=3)
    put(catalog, new())
    catalog.put_documents("other", [new("o")])

    assert [work.id for work in catalog.take(9, without=[catalog.collection("c").id])] == ["o"]
    assert [work.id for work in catalog.take(9, without=[other.id])] == ["d"]


def test_documents_are_found_by_their_ids(catalog: Catalog) -> None:
    put(catalog, *(new(f"d{n}") for n in range(3)))

    assert set(catalog.named("c", ["d0", "nope", "d2", "d0"])) == {"d0", "d2"}
    assert catalog.named("c", []) == {}
    with pytest.raises(CollectionNotFound):
        catalog.named("nope", ["d0"])


def test_after_a_power_cut_what_was_in_hand_waits_again(catalog: Catalog, transactions: Transactions) -> None:
    put(catalog, new("working"), new("changed"), new("leaving"), new("waiting"))
    catalog.take(3)
    put(catalog, new("changed", "anew"))
    catalog.begin_document_removal("c", "leaving")

    restarted = Catalog(transactions)

    assert restarted.recover() == 1
    assert restarted.recover() == 0
    assert restarted.pending_removals() == Removals((("c", "leaving"),), ())
    assert [(work.id, work.attempts) for work in restarted.take(9)] == [("working", 2), ("changed", 1), ("waiting", 1)]


def test_threads_never_take_the_same_work(catalog: Catalog) -> None:
    put(catalog, *(new(f"d{n}") for n in range(60)))
    taken: list[str] = []

    def take() -> None:
        while works := catalog.take(3):
            taken.extend(work.id for work in works)
            assert all(catalog.settle([ready(work) for work in works]))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(taken) == sorted(f"d{n}" for n in range(60))
    assert catalog.counts("c") == {"ready": 60}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 2))))
def test_whatever_happens_a_document_is_in_one_hand_and_nothing_is_lost(  # noqa: C901  # one branch a step
    catalog: Catalog, steps: list[tuple[str, int]]
) -> None:
    hands: dict[str, Work] = {}
    wanted: dict[str, bytes] = {}
    for turn, (step, n) in enumerate(steps):
        name = f"d{n}"
        try:
            match step:
                case "put":
                    put(catalog, new(name, f"turn {turn}"))
                    wanted[name] = f"turn {turn}".encode()
                case "take":
                    for work in catalog.take(1):
                        assert work.id not in hands
                        assert work.body == wanted[work.id]
                        hands[work.id] = work
                case "ready" | "fail" | "back" if name in hands:
                    work = hands.pop(name)
                    ways: dict[str, Outcome] = {"ready": ready(work), "fail": Failed(work, "x"), "back": Returned(work)}
                    assert catalog.settle([ways[step]]) == [wanted.get(name) == work.body]
                case "remove":
                    catalog.begin_document_removal("c", name)
                    wanted.pop(name, None)
                case "forget":
                    catalog.forget_document("c", name)
                    assert name not in hands
                case "recover":
                    catalog.recover()
                    hands.clear()
        except (Conflict, DocumentNotFound):
            pass
        here = {document.id: document for document in catalog.documents("c", limit=9).documents}
        assert {name for name, document in here.items() if document.in_hand} == set(hands) & set(wanted)
        assert {name for name, document in here.items() if document.state != "removing"} == set(wanted)

    catalog.recover()
    for collection, name in catalog.pending_removals().documents:
        catalog.forget_document(collection, name)
    catalog.settle([ready(work) for work in catalog.take(9)])
    assert {document.id for document in catalog.documents("c", limit=9).documents} == set(wanted)
    for name in wanted:
        catalog.begin_document_removal("c", name)
        catalog.forget_document("c", name)


# Plans


def test_hot_queries_go_by_an_index(database: Database) -> None:
    catalog = Catalog(database)
    catalog.create_collection("c", model="m", space="s", dimensions=3)
    seen: dict[str, tuple[object, ...]] = {}

    def note(_c: object, _k: object, statement: str, parameters: tuple[object, ...], _x: object, _many: object) -> None:
        seen[statement] = parameters

    for engine in (database._readers, database._writer):
        event.listen(engine, "before_cursor_execute", note)
    settled(catalog, new("a"), new("b"))
    put(catalog, new("a", "changed"))
    catalog.current(catalog.take(1))
    catalog.documents("c", limit=2, after=1)
    catalog.documents("c", limit=2, state="ready")
    catalog.counts("c")
    catalog.text("c", "b")
    catalog.begin_document_removal("c", "b")
    catalog.pending_removals()
    catalog.forget_document("c", "b")
    catalog.recover()

    plans = {}
    with database.read() as connection:
        for statement, parameters in list(seen.items()):
            if statement.startswith(("SELECT", "UPDATE", "DELETE")):
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
                plans[statement] = [str(row[-1]) for row in rows]
    assert len(plans) > 12
    small = (
        "SCAN collection",
        "document_waiting",
        "document_leaving",
        "document_in_hand",
        "document_moving",
        "job_going",
    )
    for statement, steps in plans.items():
        for step in steps:
            few = step == "SCAN job" or any(name in step for name in small)
            assert few or not step.startswith("SCAN"), (statement, step)
            assert "TEMP B-TREE" not in step, (statement, step)
    assert any("document_waiting" in step for steps in plans.values() for step in steps)
    assert any("document_leaving" in step for steps in plans.values() for step in steps)
