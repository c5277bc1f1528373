"""What is to take a collection's place: whatever happens meanwhile, it ends up with what the collection has."""

from datetime import timedelta
from random import Random

import pytest

from appliance.catalog.catalog import Catalog
from appliance.catalog.records import Chunking, Failed, NewDocument, Ready, Work
from appliance.database import Transactions
from appliance.errors import CollectionNotFound, Conflict, DocumentNotFound, NotFound

SOON = timedelta(0)
NAMES = ("a", "b", "c", "d", "e", "f")


class House:
    """A catalog, and for each name in the store, which bytes it was given of each document."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.store: dict[str, dict[str, bytes]] = {"c": {}}
        self.wanted: dict[str, bytes] = {}
        self.hands: list[Work] = []
        catalog.create_collection("c", model="m", space="s", dimensions=3)

    def put(self, name: str, body: bytes, moved_from: tuple[str, ...] = ()) -> None:
        (put,) = self.catalog.put_documents("c", [NewDocument(name, body)], moved_from=moved_from)
        if put.change == "moved":
            for move in self.catalog.pending_moves():
                there = self.store[move.stored_as]
                if move.old in there:
                    there[move.new] = there.pop(move.old)
                self.wanted.pop(move.old)
            self.catalog.end_moves(self.catalog.pending_moves())
        self.wanted[name] = body

    def remove(self, name: str) -> None:
        leaving = self.catalog.begin_document_removal("c", name)
        self.store[self.catalog.collection("c").stored_as].pop(name, None)
        if not leaving.in_hand:
            self.catalog.forget_document("c", name)
        self.wanted.pop(name)

    def take(self, limit: int) -> None:
        self.hands += self.catalog.take(limit)

    def settle(self, *, fails: bool = False) -> None:
        work = self.hands.pop(0)
        if fails:
            self.catalog.settle([Failed(work, "not today")])
            return
        if self.catalog.current([work]) == [True]:
            self.store[work.collection.stored_as][work.id] = work.body
        self.catalog.settle([Ready(work, work.body.decode(), 1, 1)])

    def tidy(self) -> None:
        removals = self.catalog.pending_removals()
        for collection, document in removals.documents:
            self.store[removals.stored_as[collection]].pop(document, None)
            self.catalog.forget_document(collection, document)
        for collection in removals.collections:
            del self.store[removals.stored_as[collection]]
            self.catalog.forget_collection(collection)

    def reindex(self, model: str) -> int:
        job, successor = self.catalog.successors.begin(
            "c", model=model, space=model, dimensions=4, chunking=Chunking(strategy="fixed")
        )
        self.store[successor.stored_as] = {}
        return job.id

    def advance(self) -> None:
        for successor in self.catalog.successors.due():
            self.catalog.successors.advance(successor, keep=SOON)

    def crash(self) -> None:
        self.hands.clear()
        self.catalog.recover()

    def rest(self) -> None:
        """Until nothing is left to do."""
        for _ in range(50):
            while self.hands:
                self.settle()
            self.take(50)
            if not self.hands:
                self.tidy()
                self.advance()
                self.take(50)
                if not self.hands and not self.catalog.successors.all():
                    self.tidy()
                    return
        raise AssertionError("it does not come to rest")


@pytest.fixture
def house(transactions: Transactions) -> House:
    return House(Catalog(transactions))


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_the_successor_has_what_the_collection_has(house: House, seed: int) -> None:  # noqa: C901, PLR0912  # one branch a step
    random = Random(seed)  # noqa: S311  # no secret
    bodies = iter(range(10_000))
    for name in NAMES[:4]:
        house.put(name, b"first")
    house.rest()
    begun: list[int] = []
    for _ in range(random.randrange(10, 60)):
        step, name = random.choice("ppprrmtttttsssssfaaakxb"), random.choice(NAMES)
        match step:
            case "p":
                house.put(name, f"{next(bodies)}".encode())
            case "r" if name in house.wanted:
                house.remove(name)
            case "m" if name in house.wanted and (new := random.choice(NAMES)) not in house.wanted:
                house.put(new, house.wanted[name], moved_from=(name,))
                if name in house.wanted:  # it was not moved, so it goes as a file that is gone does
                    house.remove(name)
            case "t":
                house.take(random.randrange(1, 4))
            case "s" | "f" if house.hands:
                house.settle(fails=step == "f" and house.hands[0].collection.state == "ready")
            case "a":
                house.advance()
            case "k":
                house.crash()
            case "x" if begun and random.random() < 0.3:
                house.catalog.jobs.cancel(begun[-1]) if house.catalog.successors.all() else None
            case "b" if not house.catalog.successors.all():
                begun.append(house.reindex(f"m{next(bodies)}"))
            case _:
                house.tidy()

    if not house.catalog.successors.all():
        begun.append(house.reindex("last"))
    built = house.catalog.successors.all()[0].model
    for name, document in house.catalog.named("c", list(house.wanted)).items():
        if document.state == "failed":  # what failed before is tried again with other bytes
            house.put(name, f"{next(bodies)}".encode())
    house.rest()

    now = house.catalog.collection("c")
    assert (now.model, now.chunking.strategy) == (built, "fixed")
    assert house.store == {now.stored_as: house.wanted}
    documents = house.catalog.documents("c", limit=99).documents
    assert {each.id: each.state for each in documents} == dict.fromkeys(house.wanted, "ready")
    assert {name: house.catalog.text("c", name) for name in house.wanted} == {
        name: body.decode() for name, body in house.wanted.items()
    }
    assert house.catalog.total() == len(house.wanted)
    jobs = house.catalog.jobs.jobs(limit=99)
    assert {each.state for each in jobs} <= {"done", "cancelled"}
    assert all(each.total == each.finished for each in jobs)


def test_a_document_that_cannot_be_embedded_anew_holds_the_rest_back(house: House) -> None:
    house.put("a", b"one")
    house.put("b", b"two")
    house.rest()
    job = house.reindex("other")
    house.take(9)
    house.settle(fails=True)
    house.settle()

    house.advance()
    held = house.catalog.collection("c"), house.catalog.jobs.job(job)
    (successor,) = house.catalog.successors.all()
    progress = house.catalog.successors.of(held[0])
    assert progress is not None
    assert house.catalog.jobs.retry(job)[1] == 1
    house.take(9)
    house.settle(fails=True)
    outcome = house.catalog.successors.advance(successor, keep=SOON, without_failed=True)

    assert (held[0].model, held[1].state, held[1].failed) == ("m", "running", 1)
    assert "1 of the documents" in held[1].error
    assert (progress.waiting, progress.failed) == (0, 1)
    assert outcome == "replaced"
    assert house.catalog.collection("c").model == "other"
    assert house.catalog.jobs.job(job).state == "done"
    assert house.catalog.document("c", "a").error == "not today"
    assert house.catalog.counts("c") == {"ready": 1, "failed": 1}


def test_an_update_that_waits_in_a_paused_job_is_in_the_successor(house: House) -> None:
    house.put("a", b"old")
    house.rest()
    paused = house.catalog.jobs.create("c", kind="documents")
    house.catalog.put_documents("c", [NewDocument("a", b"new"), NewDocument("b", b"fresh")], job=paused.id)
    house.catalog.jobs.pause(paused.id)

    house.reindex("other")
    house.rest()

    assert house.store[house.catalog.collection("c").stored_as] == {"a": b"new"}
    job = house.catalog.jobs.job(paused.id)
    assert (job.state, job.ready, job.waiting) == ("paused", 1, 1)
    house.catalog.jobs.resume(paused.id)
    house.take(9)
    assert [(work.id, work.collection.model) for work in house.hands] == [("b", "other")]


def test_what_is_in_hand_for_the_old_index_is_done_again_for_the_new_one(house: House) -> None:
    house.put("a", b"one")
    house.rest()
    house.put("b", b"two")
    house.take(1)
    house.reindex("other")
    (old,) = house.hands
    house.hands.clear()
    house.take(9)
    house.settle()
    house.advance()

    assert house.catalog.current([old]) == [False]
    assert house.catalog.settle([Ready(old, "two", 1, 1)]) == [False]
    house.rest()

    assert house.store == {house.catalog.collection("c").stored_as: {"a": b"one", "b": b"two"}}


def test_what_was_replaced_stays_for_a_while(house: House) -> None:
    house.put("a", b"one")
    house.rest()
    house.reindex("other")
    house.take(9)
    house.settle()
    (successor,) = house.catalog.successors.due()

    house.catalog.successors.advance(successor, keep=timedelta(hours=1))

    removals = house.catalog.pending_removals()
    assert removals.collections == ()
    assert removals.until is not None
    house.catalog.begin_removal("c")
    assert house.catalog.pending_removals().collections == ("c",)


def test_a_successor_has_no_name_of_its_own(house: House) -> None:
    house.reindex("other")
    (successor,) = house.catalog.successors.all()

    with pytest.raises(CollectionNotFound):
        house.catalog.collection(successor.name)
    with pytest.raises(CollectionNotFound):
        house.catalog.begin_removal(successor.name)
    with pytest.raises(DocumentNotFound):
        house.catalog.document("c", "a")
    with pytest.raises(Conflict, match="cancel job"):
        house.reindex("third")
    assert [each.name for each in house.catalog.collections()] == ["c"]
    assert house.catalog.successors.named("c") == successor
    house.catalog.create_collection("d", model="m", space="s", dimensions=3)
    with pytest.raises(NotFound, match="not being reindexed"):
        house.catalog.successors.named("d")
