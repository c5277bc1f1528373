"""Jobs: documents handed in together, counted in the transaction in which each of them changes."""

import random
from collections.abc import Callable

import pytest

from appliance.catalog.catalog import Catalog
from appliance.catalog.records import Failed, Job, Move, NewDocument, Outcome, Ready, Refusal, Returned, Work
from appliance.database import Transactions
from appliance.errors import Conflict, DocumentNotFound, JobNotFound


@pytest.fixture
def catalog(transactions: Transactions) -> Catalog:
    catalog = Catalog(transactions)
    catalog.create_collection("c", model="m", space="s", dimensions=3)
    return catalog


def new(name: str = "d", text: str = "some text") -> NewDocument:
    return NewDocument(name, text.encode(), title=f"title of {name}")


def job(catalog: Catalog, *documents: NewDocument, priority: int = 0, refused: tuple[Refusal, ...] = ()) -> Job:
    made = catalog.jobs.create("c", kind="documents", priority=priority)
    catalog.put_documents("c", documents, job=made.id, refused=refused)
    return catalog.jobs.job(made.id)


def ready(work: Work) -> Ready:
    return Ready(work, text=work.body.decode(), chunks=2, tokens=7)


def ids(works: list[Work]) -> list[str]:
    return [work.id for work in works]


def states(catalog: Catalog, made: Job) -> dict[str, str]:
    return {item.id: item.state for item in catalog.jobs.items(made.id, limit=1000).items}


def test_a_job_counts_what_becomes_of_its_documents_and_ends_with_the_last(catalog: Catalog) -> None:
    catalog.put_documents("c", [new("old")])
    catalog.settle([ready(work) for work in catalog.take(9)])

    made = job(catalog, new("a"), new("b"), new("old"), refused=(Refusal("x.bin", "not text"),))

    assert (made.state, made.total, made.waiting, made.unchanged, made.refused) == ("running", 4, 2, 1, 1)
    first, second = catalog.take(9)
    assert first.job == second.job == made.id
    catalog.settle([ready(first), Failed(second, "broken")])
    after = catalog.jobs.job(made.id)
    assert (after.state, after.ready, after.failed, after.waiting) == ("done", 1, 1, 0)
    assert after.ended is not None
    assert states(catalog, made) == {"a": "ready", "b": "failed", "old": "unchanged", "x.bin": "refused"}
    (failed,) = catalog.jobs.items(made.id, limit=9, states=["failed"]).items
    assert (failed.id, failed.error) == ("b", "broken")


def test_documents_without_a_job_go_first_then_by_priority_then_the_oldest(catalog: Catalog) -> None:
    job(catalog, new("slow"), priority=-5)
    job(catalog, new("first"), new("second"))
    job(catalog, new("third"))
    job(catalog, new("quick"), priority=5)
    catalog.put_documents("c", [new("asked")])

    assert ids(catalog.take(9)) == ["asked", "quick", "first", "second", "third", "slow"]


def test_a_paused_job_waits_and_goes_on(catalog: Catalog) -> None:
    made = job(catalog, new("a"), new("b"))
    (held,) = catalog.take(1)

    assert catalog.jobs.pause(made.id).state == "paused"
    assert catalog.take(9) == []
    catalog.settle([Returned(held)])
    assert catalog.take(9) == []
    assert Catalog(catalog._database).recover() == 0

    assert catalog.jobs.resume(made.id).state == "running"
    works = catalog.take(9)
    assert ids(works) == ["a", "b"]
    catalog.jobs.pause(made.id)
    catalog.settle([ready(work) for work in works])
    assert catalog.jobs.job(made.id).state == "done"
    with pytest.raises(Conflict, match="done"):
        catalog.jobs.resume(made.id)


def test_a_cancelled_job_takes_back_what_waits_and_keeps_what_is_done(catalog: Catalog) -> None:
    catalog.put_documents("c", [new("changed")])
    catalog.settle([ready(work) for work in catalog.take(9)])
    made = job(catalog, new("done"), new("hand"), new("fresh"), new("changed", "other text"))
    taken = {work.id: work for work in catalog.take(3)}
    catalog.settle([ready(taken["done"]), Returned(taken["changed"])])

    after = catalog.jobs.cancel(made.id)

    assert (after.state, after.ready, after.skipped, after.waiting) == ("cancelled", 1, 2, 1)
    assert catalog.take(9) == []
    assert catalog.document("c", "changed").state == "failed"
    assert "cancelled" in catalog.document("c", "changed").error
    for collection, name in catalog.pending_removals().documents:
        catalog.forget_document(collection, name)
    with pytest.raises(DocumentNotFound):
        catalog.document("c", "fresh")
    catalog.settle([ready(taken["hand"])])
    assert catalog.document("c", "hand").state == "ready"
    assert catalog.jobs.job(made.id).waiting == 0
    assert catalog.jobs.cancel(made.id).state == "cancelled"
    with pytest.raises(Conflict, match="cancelled"):
        catalog.put_documents("c", [new("late")], job=made.id)
    with pytest.raises(DocumentNotFound):
        catalog.document("c", "late")


def test_what_was_in_hand_of_a_cancelled_job_does_not_wait_forever(catalog: Catalog) -> None:
    made = job(catalog, new("a"), new("b"))
    first, _second = catalog.take(2)
    catalog.jobs.cancel(made.id)

    assert catalog.settle([Returned(first)]) == [False]
    catalog.recover()

    after = catalog.jobs.job(made.id)
    assert (after.waiting, after.skipped) == (0, 2)
    assert {name for _, name in catalog.pending_removals().documents} == {"a", "b"}


def test_what_failed_is_tried_again_all_of_it_or_what_is_named(catalog: Catalog) -> None:
    made = job(catalog, new("a"), new("b"), new("c"))
    catalog.settle([Failed(work, "away") for work in catalog.take(9)])

    job_after, number = catalog.jobs.retry(made.id, ["b", "nothing"])
    assert (job_after.state, job_after.ended, number, job_after.failed, job_after.waiting) == ("running", None, 1, 2, 1)
    assert ids(catalog.take(9)) == ["b"]
    assert catalog.jobs.retry(made.id)[1] == 2
    works = catalog.take(9)
    assert [work.attempts for work in works] == [1, 1]
    catalog.settle([ready(work) for work in works])
    assert catalog.document("c", "a").error == ""


def test_one_document_can_be_skipped_while_it_waits_and_while_it_is_in_hand(catalog: Catalog) -> None:
    made = job(catalog, new("hand"), new("waits"), new("good"))
    (hand,) = catalog.take(1)

    catalog.jobs.skip(made.id, "waits")
    after = catalog.jobs.skip(made.id, "hand")

    assert (after.skipped, after.waiting) == (2, 1)
    assert catalog.settle([ready(hand)]) == [False]
    assert catalog.pending_removals().documents == (("c", "hand"),)
    with pytest.raises(DocumentNotFound):
        catalog.document("c", "waits")
    with pytest.raises(Conflict, match="skipped"):
        catalog.jobs.skip(made.id, "waits")
    with pytest.raises(DocumentNotFound):
        catalog.jobs.skip(made.id, "nothing")


def test_a_document_changed_or_removed_by_another_caller_ends_for_the_job(catalog: Catalog) -> None:
    made = job(catalog, new("changed"), new("removed"))

    catalog.put_documents("c", [new("changed", "newer")])
    catalog.begin_document_removal("c", "removed")

    after = catalog.jobs.job(made.id)
    assert (after.state, after.skipped) == ("done", 2)
    reasons = {item.id: item.error for item in catalog.jobs.items(made.id, limit=9).items}
    assert "newer" in reasons["changed"]
    assert "removed" in reasons["removed"]


def test_what_waits_already_for_someone_else_counts_for_both(catalog: Catalog) -> None:
    first = job(catalog, new("a"))
    second = job(catalog, new("a"))

    assert second.waiting == 1
    catalog.settle([ready(work) for work in catalog.take(9)])
    assert [catalog.jobs.job(each.id).ready for each in (first, second)] == [1, 1]


def test_the_same_job_again_finds_its_documents_where_they_were(catalog: Catalog) -> None:
    made = job(catalog, new("a"), new("b"))
    catalog.settle([ready(work) for work in catalog.take(1)])

    catalog.put_documents("c", [new("a"), new("b"), new("c")], job=made.id)
    after = catalog.jobs.job(made.id)
    assert (after.total, after.ready, after.waiting, after.unchanged) == (3, 1, 2, 0)
    catalog.settle([ready(work) for work in catalog.take(9)])
    assert catalog.jobs.job(made.id).state == "done"

    catalog.put_documents("c", [new("a", "changed")], job=made.id)
    after = catalog.jobs.job(made.id)
    assert (after.state, after.total, after.ready, after.waiting) == ("running", 3, 2, 1)


def test_an_ended_job_can_be_forgotten_and_its_documents_stay(catalog: Catalog, transactions: Transactions) -> None:
    made = job(catalog, new("a"))
    with pytest.raises(Conflict, match="cancel"):
        catalog.jobs.forget(made.id)
    catalog.settle([ready(work) for work in catalog.take(1)])

    catalog.jobs.forget(made.id)

    assert catalog.document("c", "a").state == "ready"
    with transactions.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM job_item").scalar() == 0
    for call in (catalog.jobs.job, catalog.jobs.pause, catalog.jobs.cancel, catalog.jobs.retry, catalog.jobs.forget):
        with pytest.raises(JobNotFound) as caught:
            call(made.id)
        assert caught.value.name == str(made.id)


def test_a_job_leaves_with_its_collection(catalog: Catalog) -> None:
    made = job(catalog, new("a"))

    catalog.begin_removal("c")

    after = catalog.jobs.job(made.id)
    assert (after.state, after.waiting) == ("cancelled", 0)
    assert "removed" in after.error


def test_a_job_that_is_prepared_is_not_worked_on_before_it_is_closed(catalog: Catalog) -> None:
    made = catalog.jobs.create("c", kind="archive", name="x.zip", state="preparing")
    catalog.put_documents("c", [new("a")], job=made.id)
    assert catalog.take(9) == []
    assert [each.id for each in catalog.jobs.opened()] == [made.id]

    assert catalog.jobs.close(made.id).state == "running"

    assert ids(catalog.take(9)) == ["a"]
    assert catalog.jobs.opened() == []


def test_jobs_are_listed_newest_first_and_by_state(catalog: Catalog) -> None:
    made = [job(catalog, new(f"d{n}")) for n in range(4)]
    catalog.jobs.pause(made[1].id)

    assert [each.id for each in catalog.jobs.jobs(limit=2)] == [made[3].id, made[2].id]
    assert [each.id for each in catalog.jobs.jobs(limit=9, before=made[2].id)] == [made[1].id, made[0].id]
    assert [each.id for each in catalog.jobs.jobs(limit=9, state="paused")] == [made[1].id]
    assert catalog.jobs.jobs(limit=9, collection="other") == []
    assert catalog.jobs.counts() == {"running": 3, "paused": 1}
    page = catalog.jobs.items(made[0].id, limit=1)
    assert (len(page.items), page.next) == (1, None)


def test_a_document_of_the_same_content_takes_the_new_name(catalog: Catalog) -> None:
    before = new("old")
    catalog.put_documents("c", [before, new("other")])
    catalog.settle([ready(work) for work in catalog.take(9)])
    made = catalog.jobs.create("c", kind="folder", name="notes")
    moved = NewDocument("new", before.body, title=before.title)

    (put,) = catalog.put_documents("c", [moved], job=made.id, moved_from=["gone", "other", "old"])

    assert (put.change, put.document.id, put.document.state, put.document.chunks) == ("moved", "new", "ready", 2)
    assert catalog.pending_moves() == [Move("c", "old", "new")]
    with pytest.raises(DocumentNotFound):
        catalog.document("c", "old")
    assert catalog.jobs.job(made.id).moved == 1
    catalog.end_moves([Move("c", "old", "new")])
    assert catalog.pending_moves() == []
    assert catalog.text("c", "new") == "some text"


def test_what_differs_or_is_not_ready_or_is_there_already_is_not_moved(catalog: Catalog) -> None:
    old = new("old")
    catalog.put_documents("c", [old])
    taken = NewDocument("new", old.body, title=old.title)
    assert catalog.put_documents("c", [taken], moved_from=["old"])[0].change == "created"
    catalog.settle([ready(work) for work in catalog.take(9)])

    changed = NewDocument("third", b"other", title=old.title)
    assert catalog.put_documents("c", [changed], moved_from=["old"])[0].change == "created"
    assert catalog.put_documents("c", [taken], moved_from=["old"])[0].change == "unchanged"
    assert catalog.pending_moves() == []


def test_a_file_that_moved_keeps_its_document_and_its_source_is_the_new_name(catalog: Catalog) -> None:
    catalog.put_documents("c", [NewDocument(name, b"some text", source="a.md") for name in ("x/a.md", "y/a.md")])
    catalog.settle([ready(work) for work in catalog.take(9)])

    put = [
        catalog.put_documents("c", [NewDocument(name, b"some text", source=source)], moved_from=[old])[0]
        for name, source, old in (
            ("x/b.md", "b.md", "x/a.md"),
            ("z/a.md", "a.md", "y/a.md"),
            ("w/a.md", "a.md", "x/a.md"),
        )
    ]

    assert [each.change for each in put] == ["moved", "moved", "created"]
    assert [each.document.metadata["source"] for each in put] == ["b.md", "a.md", "a.md"]
    assert [(move.title, move.source) for move in catalog.pending_moves()] == [("", "b.md"), ("", "a.md")]


def test_sizes_are_of_what_begins_so_and_bodies_are_compared(catalog: Catalog) -> None:
    catalog.put_documents("c", [new("notes/a"), new("notes/b", "longer text"), new("notes"), new("other/a")])

    assert catalog.sizes("c", "notes/") == {"notes/a": 9, "notes/b": 11}
    same, other = b"some text", b"some tex!"
    assert catalog.held("c", {"notes/a": same, "notes/b": same, "other/a": other, "notes": same, "nothing": same}) == {
        "notes/a",
        "notes",
    }
    assert [each.id for each in catalog.documents("c", limit=9, prefix="notes/").documents] == ["notes/a", "notes/b"]


def test_what_failed_is_held_for_the_job_that_it_failed_in_and_for_nobody_else(catalog: Catalog) -> None:
    made = job(catalog, new("a"))
    catalog.put_documents("c", [new("b")])
    catalog.settle([Failed(work, "x") for work in catalog.take(9)])
    bodies = {"a": b"some text", "b": b"some text"}

    assert catalog.held("c", bodies, job=made.id) == {"a"}
    assert catalog.held("c", {"a": b"changed"}, job=made.id) == set()
    assert catalog.held("c", bodies, job=made.id + 1) == set()
    assert catalog.held("c", bodies) == set()


def test_whatever_happens_counts_agree_with_the_documents(  # noqa: C901, PLR0912  # one branch a step
    catalog: Catalog, transactions: Transactions
) -> None:
    chance = random.Random(5)  # noqa: S311  # no secret
    made: list[int] = []
    hands: list[Work] = []
    for turn in range(250):
        name = f"d{chance.randrange(8)}"
        try:
            match chance.randrange(12):
                case 0:
                    made.append(catalog.jobs.create("c", kind="documents", priority=chance.randrange(3)).id)
                case 1 | 2 | 3:
                    documents = [new(f"d{chance.randrange(8)}", f"text {chance.randrange(9)}") for _ in range(3)]
                    chosen = chance.choice([None, *made[-3:]])
                    catalog.put_documents("c", documents, job=chosen, refused=(Refusal("bad", "x"),) if chosen else ())
                case 4 | 5:
                    hands += catalog.take(2)
                case 6 | 7 if hands:
                    work = hands.pop()
                    ways: list[Outcome] = [ready(work), Failed(work, "x"), Returned(work)]
                    catalog.settle([chance.choice(ways)])
                case 8:
                    catalog.begin_document_removal("c", name)
                case 9 if made:
                    chance.choice([catalog.jobs.pause, catalog.jobs.resume, catalog.jobs.cancel])(made[-1])
                case 10 if made:
                    steps: list[Callable[[int], object]] = [catalog.jobs.retry, catalog.jobs.forget]
                    chance.choice(steps)(chance.choice(made))
                case 11 if made:
                    catalog.jobs.skip(chance.choice(made), name)
        except (Conflict, DocumentNotFound, JobNotFound):
            pass
        if turn % 60 == 59:
            catalog.recover()
            hands.clear()
        for collection, document in catalog.pending_removals().documents:
            catalog.forget_document(collection, document)
        check_counts(transactions)

    for each in catalog.jobs.jobs(limit=1000, state="paused"):
        catalog.jobs.resume(each.id)
    catalog.recover()
    while works := catalog.take(9):
        catalog.settle([ready(work) for work in works])
    assert catalog.counts("c").keys() <= {"ready", "failed"}
    assert all(each.waiting == 0 and each.ended is not None for each in catalog.jobs.jobs(limit=1000))


def check_counts(transactions: Transactions) -> None:
    with transactions.read() as connection:
        run = connection.exec_driver_sql
        for row in run("SELECT * FROM job").mappings():
            rows = run(f"SELECT state, count(*) FROM job_item WHERE job_id = {int(row['id'])} GROUP BY state")  # noqa: S608  # a number
            items = {state: count for state, count in rows.all()}  # noqa: C416  # rows are no tuples to mypy
            waiting = items.pop("waiting", 0)
            counts = {state: row[state] for state in ("ready", "failed", "refused", "skipped", "unchanged", "moved")}
            assert items == {state: count for state, count in counts.items() if count}
            assert row["total"] - sum(counts.values()) == waiting
            if waiting:
                assert row["state"] in {"running", "paused", "cancelled"}
        stray = run(
            "SELECT count(*) FROM job_item WHERE state = 'waiting' AND document_seq NOT IN "
            "(SELECT seq FROM document WHERE state IN ('waiting', 'working'))"
        ).scalar_one()
        unwatched = run(
            "SELECT count(*) FROM document WHERE state = 'waiting' AND taken IS NULL AND job IS NOT NULL AND job NOT IN"
            " (SELECT job_id FROM job_item WHERE document_seq = document.seq AND job_item.state = 'waiting')"
        ).scalar_one()
        assert (stray, unwatched) == (0, 0)


def test_a_watched_folder_has_one_job_which_is_made_anew_once_cancelled(catalog: Catalog) -> None:
    first = catalog.jobs.standing("c", name="notes", origin="/srv/notes")
    put = [NewDocument(name, b"words") for name in ("notes/a", "notes/b", "notes/c")]
    catalog.put_documents("c", put, job=first.id, refused=[Refusal("notes/bad", "damaged")])
    catalog.settle([ready(work) for work in catalog.take(2)])

    catalog.jobs.leave(first.id, ["notes/a", "notes/bad", "notes/c", "ghost"])
    now = catalog.jobs.standing("c", name="notes", origin="/srv/notes")
    other = catalog.jobs.standing("c", name="notes", origin="/mnt/notes")
    catalog.jobs.cancel(first.id)
    anew = catalog.jobs.standing("c", name="notes", origin="/srv/notes")

    assert (first.state, now.id, now.total, now.ready, now.waiting, now.refused) == ("done", first.id, 2, 1, 1, 0)
    assert len({first.id, other.id, anew.id}) == 3
    assert anew.total == 0
