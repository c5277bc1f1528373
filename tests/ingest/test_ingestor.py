"""From the queue to the store."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from appliance.catalog.catalog import Catalog
from appliance.database import Database
from appliance.embedding.engine import Matrix, Prompt
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.pull import ModelFiles
from appliance.embedding.registry import Registry
from appliance.embedding.spec import HashSpec
from appliance.errors import DocumentNotFound, EngineFailed, ModelMismatch
from appliance.ingest.ingestor import Incoming, Ingestor
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


class Counted(SqliteStore):
    """A store that counts its commits of documents."""

    commits = 0

    def put_many(self, collection: str, entries: Sequence[Entry]) -> None:
        self.commits += 1
        super().put_many(collection, entries)


class House:
    """Everything an ingestor needs, on one data directory."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(folder / "appliance.db")
        self.database.migrate(shipped("migrations"))
        self.catalog = Catalog(self.database)
        self.store = Counted(self.database)
        self.engine = Held()
        self.registry = Registry(
            [CARD], default="hash", files=ModelFiles(folder / "models"), open_engine=lambda _: self.engine
        )
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
    outcomes = await house.ingestor.add("c", [text("one two", "x"), text("three")], wait=10)

    assert [(each.change, each.document and each.document.state) for each in outcomes] == [("created", "ready")] * 2
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
    outcomes = await house.ingestor.add("c", [text("good", "a"), text("poison", "b"), text("fine", "c")], wait=20)

    assert [each.document and each.document.state for each in outcomes] == ["ready", "failed", "ready"]
    assert outcomes[1].document
    assert outcomes[1].document.error == "the device is out of order"
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
