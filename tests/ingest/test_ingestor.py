"""From the queue to the store."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from appliance.catalog.catalog import Catalog
from appliance.database import Database
from appliance.embedding.engine import Matrix, Prompt
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.pull import ModelFiles
from appliance.embedding.registry import Registry
from appliance.embedding.spec import HashSpec, ModelSpec
from appliance.errors import (
    CollectionNotFound,
    DocumentNotFound,
    EngineFailed,
    EngineUnavailable,
    InvalidInput,
    ModelMismatch,
    StoreFull,
)
from appliance.ingest.ingestor import Ingestor
from appliance.ingest.prepare import Incoming
from appliance.settings import shipped
from appliance.store.base import Entry
from appliance.store.sqlite import SqliteStore

CARD = HashSpec(name="hash", engine="hash", family="hash", dimensions=64, max_tokens=64)


class Held(HashingEngine):
    """A hash engine that can be held, and fails on a word."""

    def __init__(self) -> None:
        super().__init__(dimensions=64, max_tokens=64)
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()
        self.bad = "poison"
        self.failures = 0

    def run(self, prompts: Sequence[Prompt]) -> Matrix:
        self.entered.set()
        assert self.free.wait(10)
        if any(self.bad in str(prompt.content) for prompt in prompts):
            self.failures += 1
            raise EngineFailed("the device is out of order")
        return super().run(prompts)


class Watched(SqliteStore):
    """A store that counts its commits of documents, and fails when told to."""

    commits = 0
    failures: list[Exception]
    bad = ""
    away = False

    def rename(self, collection: str, document: str, new: str) -> None:
        if self.away:
            raise StoreFull("no space is left")
        super().rename(collection, document, new)

    def put_many(self, collection: str, entries: Sequence[Entry]) -> None:
        self.commits += 1
        if self.failures:
            raise self.failures.pop()
        if self.bad and self.bad in {entry.document for entry in entries}:
            raise InvalidInput("a vector has no direction")
        super().put_many(collection, entries)

    def create(self, collection: str, dimensions: int) -> None:
        if self.failures:
            raise self.failures.pop()
        super().create(collection, dimensions)


def registry_of(*cards: ModelSpec, folder: Path, opened: Callable[[ModelSpec], Held]) -> Registry:
    return Registry(
        cards,
        default="hash",
        files=ModelFiles(folder),
        open_engine=opened,
        open_reranker=lambda spec: pytest.fail(spec.name),
    )


class House:
    """Everything an ingestor needs, on one data directory."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(folder / "appliance.db")
        self.database.migrate(shipped("migrations"))
        self.catalog = Catalog(self.database)
        self.store = Watched(self.database)
        self.store.failures = []
        self.engine = Held()
        self.registry = registry_of(CARD, folder=folder / "models", opened=lambda _: self.engine)
        self.ingestor = Ingestor(catalog=self.catalog, store=self.store, registry=self.registry)

    async def open(self) -> None:
        await self.ingestor.start()
        await self.ingestor.ensure_collection("c")
        await self.registry.get("hash")
        self.engine.entered.clear()

    async def close(self) -> None:
        self.engine.free.set()
        await self.ingestor.stop()
        await self.registry.close()
        self.database.close()

    async def state(self, document: str) -> str:
        return (await asyncio.to_thread(self.catalog.document, "c", document)).state


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)
    await made.open()
    yield made
    await made.close()


def text(words: str, name: str | None = None) -> Incoming:
    return Incoming(words.encode(), media_type="text/plain", id=name)


async def test_what_was_added_is_ready_and_in_the_store(house: House) -> None:
    receipts = await house.ingestor.add("c", [text("one two", "x"), text("three")], wait=10)

    assert [(each.change, each.document and each.document.state) for each in receipts] == [("created", "ready")] * 2
    assert [chunk.text for chunk in house.store.chunks("c", "x")] == ["one two"]


async def test_many_documents_share_a_commit(house: House) -> None:
    house.engine.free.clear()
    adding = asyncio.create_task(house.ingestor.add("c", [text(f"word{n}", str(n)) for n in range(50)], wait=10))
    await asyncio.to_thread(house.engine.entered.wait)
    house.engine.free.set()
    await adding

    assert house.store.commits < 25
    assert house.store.count("c") == 50


async def test_a_stopped_ingestor_goes_on_where_it_was(house: House, tmp_path: Path) -> None:
    house.engine.free.clear()
    await house.ingestor.add("c", [text("one", "x")], wait=0)
    await asyncio.to_thread(house.engine.entered.wait)
    assert await house.state("x") == "working"
    await house.close()

    again = House(tmp_path)
    await again.open()
    async with asyncio.timeout(10):
        while await again.state("x") != "ready":
            await asyncio.sleep(0.01)

    assert again.store.count("c") == 1
    await again.close()


async def test_a_document_that_is_removed_while_it_is_embedded_leaves_nothing(house: House) -> None:
    house.engine.free.clear()
    adding = asyncio.create_task(house.ingestor.add("c", [text("one", "x")], wait=10))
    await asyncio.to_thread(house.engine.entered.wait)

    await house.ingestor.remove("c", "x")
    await adding
    house.engine.free.set()
    await house.ingestor.add("c", [text("two", "y")], wait=10)

    async with asyncio.timeout(10):
        while True:
            try:
                house.catalog.document("c", "x")
            except DocumentNotFound:
                break
            await asyncio.sleep(0.01)
    assert house.store.chunks("c", "x") == []
    assert house.store.count("c") == 1


async def test_a_change_while_the_old_text_is_embedded_wins(house: House) -> None:
    house.engine.free.clear()
    old = asyncio.create_task(house.ingestor.add("c", [text("old words", "x")], wait=10))
    await asyncio.to_thread(house.engine.entered.wait)
    new = asyncio.create_task(house.ingestor.add("c", [text("new words", "x")], wait=10))
    await asyncio.sleep(0.05)

    house.engine.free.set()
    await asyncio.gather(old, new)

    assert [chunk.text for chunk in house.store.chunks("c", "x")] == ["new words"]
    assert (await house.ingestor.add("c", [text("new words", "x")], wait=10))[0].change == "unchanged"


async def test_a_document_that_the_engine_cannot_take_fails_alone_and_can_be_tried_again(house: House) -> None:
    receipts = await house.ingestor.add("c", [text("good", "a"), text("poison", "b"), text("fine", "c")], wait=20)

    assert [each.document and each.document.state for each in receipts] == ["ready", "failed", "ready"]
    assert receipts[1].document
    assert receipts[1].document.error == "the device is out of order"
    assert house.engine.failures >= 3

    house.engine.bad = "nothing"
    again = await house.ingestor.add("c", [text("poison", "b")], wait=10)
    assert again[0].document
    assert again[0].document.state == "ready"


async def test_a_removed_collection_leaves_nothing_while_its_documents_are_embedded(house: House) -> None:
    house.engine.free.clear()
    adding = asyncio.create_task(house.ingestor.add("c", [text("one", "x"), text("two", "y")], wait=0))
    await adding
    await asyncio.to_thread(house.engine.entered.wait)

    await house.ingestor.remove_collection("c")
    house.engine.free.set()

    async with asyncio.timeout(10):
        while house.catalog.pending_removals().collections or house.catalog.collections():
            await asyncio.sleep(0.01)
    with house.database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM chunk").scalar_one() == 0


async def test_a_collection_of_another_space_takes_nothing(house: House) -> None:
    house.catalog.create_collection("old", model="gone", space="gone", dimensions=64)
    house.store.create("old", 64)

    with pytest.raises(ModelMismatch, match="'gone'"):
        await house.ingestor.add("old", [text("x")], wait=0)

    assert house.catalog.documents("old", limit=1).documents == ()


async def test_a_caller_who_leaves_does_not_take_the_document_along(house: House) -> None:
    house.engine.free.clear()
    adding = asyncio.create_task(house.ingestor.add("c", [text("one", "x")], wait=10))
    await asyncio.to_thread(house.engine.entered.wait)

    adding.cancel()
    house.engine.free.set()

    async with asyncio.timeout(10):
        while await house.state("x") != "ready":
            await asyncio.sleep(0.01)


async def test_a_caller_who_leaves_while_the_document_is_queued_does_not_leave_it_waiting(house: House) -> None:
    for n in range(20):
        adding = asyncio.create_task(house.ingestor.add("c", [text(f"word{n}", str(n))], wait=10))
        await asyncio.sleep(0.001 * n)
        adding.cancel()

    async with asyncio.timeout(10):
        while house.catalog.counts("c").keys() - {"ready"}:
            await asyncio.sleep(0.01)


async def test_a_deleted_document_can_be_put_again_at_once(house: House) -> None:
    house.engine.free.clear()
    await house.ingestor.add("c", [text("one", "x")], wait=0)
    await asyncio.to_thread(house.engine.entered.wait)
    await house.ingestor.remove("c", "x")

    again = asyncio.create_task(house.ingestor.add("c", [text("two", "x")], wait=10))
    await asyncio.sleep(0.05)
    house.engine.free.set()

    assert (await again)[0].change == "created"
    assert [chunk.text for chunk in house.store.chunks("c", "x")] == ["two"]


async def test_a_full_disk_is_waited_for_and_shows(house: House) -> None:
    house.store.failures = [StoreFull("no space is left")]

    adding = asyncio.create_task(house.ingestor.add("c", [text("one", "x")], wait=10))
    async with asyncio.timeout(5):
        while not house.ingestor.trouble:
            await asyncio.sleep(0.01)
    assert house.ingestor.trouble == "no space is left"

    receipt = (await adding)[0]
    assert receipt.document
    assert receipt.document.state == "ready"
    assert house.ingestor.trouble == ""


@pytest.mark.parametrize("error", [MemoryError(), InvalidInput("nonsense"), RuntimeError("a bug")])
async def test_what_the_store_refuses_is_set_aside_and_the_queue_goes_on(house: House, error: Exception) -> None:
    house.store.failures = [error]
    first = await house.ingestor.add("c", [text("one", "x")], wait=10)

    second = await house.ingestor.add("c", [text("two", "y")], wait=10)

    assert [each.document and each.document.state for each in first + second] == ["failed", "ready"]


async def test_a_document_that_cannot_be_stored_does_not_take_its_neighbours_down(house: House) -> None:
    house.store.bad = "2"

    receipts = await house.ingestor.add("c", [text(f"word{n}", str(n)) for n in range(5)], wait=10)

    states = [each.document and each.document.state for each in receipts]
    assert states == ["ready", "ready", "failed", "ready", "ready"]


async def test_a_collection_that_could_not_be_made_can_be_made_again(house: House) -> None:
    house.store.failures = [StoreFull("no space is left")]
    with pytest.raises(StoreFull):
        await house.ingestor.create_collection("new", spec=CARD)

    await house.ingestor.create_collection("new", spec=CARD)

    receipts = await house.ingestor.add("new", [text("one", "x")], wait=10)
    assert receipts[0].document
    assert receipts[0].document.state == "ready"


async def test_documents_wait_for_a_model_that_cannot_be_opened_and_others_go_on(tmp_path: Path) -> None:
    house = House(tmp_path)
    away = CARD.model_copy(update={"name": "away", "space": "away"})
    missing = True

    def opened(spec: ModelSpec) -> Held:
        if spec.name == "away" and missing:
            raise EngineUnavailable("run `appliance pull away`")
        return house.engine

    house.registry = registry_of(CARD, away, folder=tmp_path, opened=opened)
    house.ingestor = Ingestor(catalog=house.catalog, store=house.store, registry=house.registry)
    await house.open()
    await house.ingestor.create_collection("a", spec=away)

    waiting = await house.ingestor.add("a", [text("one", str(n)) for n in range(100)], wait=0.3)
    ready = await house.ingestor.add("c", [text("two")], wait=10)

    assert {each.document and each.document.state for each in waiting} <= {"waiting", "working"}
    assert ready[0].document
    assert ready[0].document.state == "ready"
    assert house.catalog.documents("a", limit=1).documents[0].attempts == 0
    missing = False
    async with asyncio.timeout(20):
        while house.catalog.counts("a") != {"ready": 100}:
            await asyncio.sleep(0.05)
    await house.close()


async def test_a_document_that_ended_the_process_too_often_is_set_aside(house: House, tmp_path: Path) -> None:
    house.engine.free.clear()
    await house.ingestor.add("c", [text("deadly", "x")], wait=0)
    await asyncio.to_thread(house.engine.entered.wait)
    await house.close()
    again = House(tmp_path)
    for _ in range(12):
        again.catalog.recover()
        again.catalog.take(1)

    await again.open()
    async with asyncio.timeout(10):
        while await again.state("x") != "failed":
            await asyncio.sleep(0.01)

    assert "ended" in again.catalog.document("c", "x").error
    await again.close()


async def test_waiting_ends_when_the_collection_goes(house: House) -> None:
    house.engine.free.clear()
    adding = asyncio.create_task(house.ingestor.add("c", [text("one", "x")], wait=30))
    await asyncio.to_thread(house.engine.entered.wait)

    await house.ingestor.remove_collection("c")
    house.engine.free.set()

    async with asyncio.timeout(5):
        with pytest.raises(CollectionNotFound):
            await adding


async def test_a_search_does_not_wait_for_large_documents(house: House) -> None:
    large = "word " * 400_000
    adding = asyncio.create_task(house.ingestor.add("c", [text(f"{large}{n}", str(n)) for n in range(12)], wait=0))
    await asyncio.sleep(0.3)

    began = asyncio.get_running_loop().time()
    await asyncio.to_thread(house.catalog.collections)

    assert asyncio.get_running_loop().time() - began < 1
    await adding


async def test_a_moved_document_is_not_embedded_again_and_is_found_under_its_new_name(house: House) -> None:
    await house.ingestor.add("c", [text("otters hold hands", "old")], wait=10)
    house.engine.entered.clear()

    (receipt,) = await house.ingestor.add("c", [text("otters hold hands", "new")], wait=10, moved_from=["old"])

    assert receipt.change == "moved"
    assert not house.engine.entered.is_set()
    assert [chunk.text for chunk in house.store.chunks("c", "new")] == ["otters hold hands"]
    assert house.store.chunks("c", "old") == []
    again = await house.ingestor.add("c", [text("another", "old")], wait=10)
    assert again[0].change == "created"
    assert house.store.count("c") == 2


async def test_a_move_that_the_store_did_not_hear_of_is_finished_before_anything_else(
    house: House, tmp_path: Path
) -> None:
    await house.ingestor.add("c", [text("otters hold hands", "old"), text("whales", "other")], wait=10)
    house.store.away = True
    with pytest.raises(StoreFull):
        await house.ingestor.add("c", [text("otters hold hands", "new")], wait=10, moved_from=["old"])
    house.store.away = False

    await house.ingestor.add("c", [text("whales", "third")], wait=10, moved_from=["other"])

    assert [len(house.store.chunks("c", name)) for name in ("old", "new", "other", "third")] == [0, 1, 0, 1]
    house.store.away = True
    with pytest.raises(StoreFull):
        await house.ingestor.add("c", [text("whales", "fourth")], wait=10, moved_from=["third"])
    await house.close()
    again = House(tmp_path)
    await again.open()
    assert [len(again.store.chunks("c", name)) for name in ("third", "fourth")] == [0, 1]
    assert again.catalog.pending_moves() == []
    await again.close()


async def test_documents_that_change_places_keep_each_its_own_text(house: House) -> None:
    await house.ingestor.add("c", [text("first text", "a"), text("second text", "b")], wait=10)

    moved = [text("second text", "c"), text("first text", "b")]
    receipts = await house.ingestor.add("c", moved, wait=10, moved_from=["a", "b"])

    assert [each.change for each in receipts] == ["moved", "created"]
    assert [chunk.text for chunk in house.store.chunks("c", "c")] == ["second text"]
    assert [chunk.text for chunk in house.store.chunks("c", "b")] == ["first text"]


async def test_what_people_wait_for_goes_before_a_job(house: House) -> None:
    house.engine.free.clear()
    job = house.catalog.jobs.create("c", kind="documents").id
    await house.ingestor.add("c", [text(f"bulk{n}", f"b{n}") for n in range(300)], wait=0, job=job)
    await asyncio.to_thread(house.engine.entered.wait)
    asked = asyncio.create_task(house.ingestor.add("c", [text("asked for", "asked")], wait=10))
    await asyncio.sleep(0.1)
    house.engine.free.set()

    assert (receipt := (await asked)[0]).document
    assert receipt.document.state == "ready"
    assert house.catalog.jobs.job(job).waiting > 0


async def test_a_job_cancelled_while_it_is_worked_on_leaves_only_what_is_done(house: House) -> None:
    house.engine.free.clear()
    job = house.catalog.jobs.create("c", kind="documents").id
    await house.ingestor.add("c", [text(f"bulk{n}", f"b{n}") for n in range(200)], wait=0, job=job)
    await asyncio.to_thread(house.engine.entered.wait)

    await house.ingestor.take_back(lambda: house.catalog.jobs.cancel(job))
    house.engine.free.set()

    async with asyncio.timeout(10):
        while house.catalog.jobs.job(job).waiting:
            await asyncio.sleep(0.01)
    after = house.catalog.jobs.job(job)
    assert after.ready + after.skipped == 200
    assert 0 < after.ready <= 64
    assert house.catalog.counts("c") == {"ready": after.ready}
    assert house.store.count("c") == after.ready


async def _until(house: House, document: str, state: str) -> None:
    async with asyncio.timeout(20):
        while await house.state(document) != state:
            await asyncio.sleep(0.01)


async def test_a_document_without_a_job_is_taken_beside_all_that_a_job_has_in_hand(house: House) -> None:
    job = await asyncio.to_thread(house.catalog.jobs.create, "c", kind="documents")
    house.engine.free.clear()
    await house.ingestor.add("c", [text(f"word{n}", f"j{n}") for n in range(150)], wait=0, job=job.id)
    await asyncio.to_thread(house.engine.entered.wait)
    async with asyncio.timeout(10):
        while (await asyncio.to_thread(house.catalog.counts, "c")).get("working") != 64:
            await asyncio.sleep(0.01)

    await house.ingestor.add("c", [text("mine", "mine")], wait=0)

    await _until(house, "mine", "working")
    house.engine.free.set()


async def test_small_documents_do_not_wait_for_large_ones(house: House) -> None:
    house.engine.free.clear()
    await house.ingestor.add("c", [text(f"{n} " + "word " * 300_000, f"large{n}") for n in range(4)], wait=0)
    await _until(house, "large1", "working")

    await house.ingestor.add("c", [text("small", "small")], wait=0)

    await _until(house, "small", "working")
    assert [await house.state(f"large{n}") for n in range(4)] == ["working", "working", "waiting", "waiting"]
    for n in range(4):
        await house.ingestor.remove("c", f"large{n}")
    house.engine.free.set()
    await _until(house, "small", "ready")


async def test_a_paused_job_gives_back_a_document_that_has_not_come_far(house: House) -> None:
    job = await asyncio.to_thread(house.catalog.jobs.create, "c", kind="documents")
    house.engine.free.clear()
    await house.ingestor.add("c", [text("a long way to go " * 30_000, "long")], wait=0, job=job.id)
    await asyncio.to_thread(house.engine.entered.wait)

    await asyncio.to_thread(house.catalog.jobs.pause, job.id)
    house.engine.free.set()

    await _until(house, "long", "waiting")
    assert (await asyncio.to_thread(house.catalog.document, "c", "long")).attempts == 0
    await asyncio.to_thread(house.catalog.jobs.resume, job.id)
    house.ingestor.wake()
    await _until(house, "long", "ready")


async def test_a_cancelled_job_takes_back_what_has_not_come_far(house: House) -> None:
    job = await asyncio.to_thread(house.catalog.jobs.create, "c", kind="documents")
    house.engine.free.clear()
    await house.ingestor.add("c", [text("a long way to go " * 30_000, "long")], wait=0, job=job.id)
    await asyncio.to_thread(house.engine.entered.wait)

    await house.ingestor.take_back(lambda: house.catalog.jobs.cancel(job.id))
    house.engine.free.set()

    async with asyncio.timeout(20):
        while await asyncio.to_thread(house.catalog.counts, "c"):
            await asyncio.sleep(0.01)
    assert house.store.count("c") == 0


def file(name: str, body: bytes = b"words about otters", **metadata: object) -> Incoming:
    return Incoming(body, id=name, name=name.rpartition("/")[2], metadata=metadata)


@pytest.mark.parametrize(("before", "after"), [("a.txt", "b.txt"), ("a.html", "sub/b.html"), ("a.py", "b.py")])
async def test_a_renamed_file_is_called_anew_and_not_embedded_again(house: House, before: str, after: str) -> None:
    body = b"<p>words about otters</p>" if before.endswith("html") else b"otters = 1  # words about otters\n"
    await house.ingestor.add("c", [file(f"notes/{before}", body)], wait=10)
    old = house.store.vectors("c", [(f"notes/{before}", 0)])
    house.engine.entered.clear()

    receipts = await house.ingestor.add(
        "c", [file(f"notes/{after}", body)], wait=10, moved_from=[f"notes/{before}", "notes/other"]
    )
    again = await house.ingestor.add("c", [file(f"notes/{after}", body)], wait=10)

    name = after.rpartition("/")[2]
    assert ([each.change for each in receipts], [each.change for each in again]) == (["moved"], ["unchanged"])
    assert not house.engine.entered.is_set()
    (chunk,) = house.store.chunks("c", f"notes/{after}")
    assert (chunk.title, chunk.metadata.get("source", name)) == (name, name)
    assert house.store.chunks("c", f"notes/{before}") == []
    new = house.store.vectors("c", [(f"notes/{after}", 0)])
    assert [vector.tolist() for vector in new.values()] == [vector.tolist() for vector in old.values()]
    assert [match.document for match in house.store.matching("c", name, limit=3)] == [f"notes/{after}"]
    document = await asyncio.to_thread(house.catalog.document, "c", f"notes/{after}")
    assert (document.title, document.metadata.get("source", name)) == (name, name)


async def test_a_file_of_other_content_or_with_a_title_of_its_own_is_no_renamed_one(house: House) -> None:
    await house.ingestor.add("c", [file("notes/a.txt"), Incoming(b"x y", id="notes/t.txt", title="Mine")], wait=10)

    other = await house.ingestor.add(
        "c", [file("notes/b.txt", b"words about whales")], wait=10, moved_from=["notes/a.txt"]
    )
    titled = await house.ingestor.add("c", [file("notes/u.txt", b"x y")], wait=10, moved_from=["notes/t.txt"])

    assert [each.change for each in (*other, *titled)] == ["created", "created"]


async def test_the_same_file_in_another_place_is_not_embedded_again(house: House) -> None:
    await house.ingestor.add("c", [file("one/a.txt")], wait=10)
    house.engine.entered.clear()

    (copied,) = await house.ingestor.add("c", [file("two/a.txt", topic="sea")], wait=10)

    assert copied.document is not None
    assert (copied.change, copied.document.state) == ("created", "ready")
    assert not house.engine.entered.is_set()
    one, two = (house.store.vectors("c", [(f"{name}/a.txt", 0)]) for name in ("one", "two"))
    assert [vector.tolist() for vector in two.values()] == [vector.tolist() for vector in one.values()]
    assert house.store.chunks("c", "two/a.txt")[0].metadata["topic"] == "sea"


async def test_a_change_of_metadata_alone_embeds_nothing_and_one_of_the_text_does(house: House) -> None:
    await house.ingestor.add("c", [file("a.txt", year=2024)], wait=10)
    house.engine.entered.clear()

    (changed,) = await house.ingestor.add("c", [file("a.txt", year=2025)], wait=10)
    untouched = house.engine.entered.is_set()
    await house.ingestor.add("c", [file("a.txt", b"words about whales", year=2025)], wait=10)

    assert (changed.change, untouched, house.engine.entered.is_set()) == ("updated", False, True)
    assert house.store.chunks("c", "a.txt")[0].text == "words about whales"
