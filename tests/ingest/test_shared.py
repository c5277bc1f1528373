"""Several appliances over one catalog and one store, on a PostgreSQL server."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import func, select

from appliance.catalog.catalog import Catalog
from appliance.catalog.members import Member, SharedCatalog
from appliance.catalog.records import NewDocument, Ready
from appliance.catalog.tables import DOCUMENT, JOB_ITEM
from appliance.errors import InvalidInput, StoreUnavailable
from appliance.postgres import CATALOG_VERSION, PostgresDatabase
from appliance.settings import Settings, shipped
from appliance.store.postgres.store import PostgresStore


@pytest.fixture
def url(postgres_server: Any) -> str:
    return str(postgres_server.database())


@pytest.fixture
def pair(start: Callable[..., Any], url: str) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Clients of two appliances that share everything."""
    servers = [start(store="postgres", store_url=SecretStr(url)) for _ in range(2)]
    one, two = (httpx.Client(base_url=each.url, timeout=60) for each in servers)
    with one, two:
        yield one, two


@pytest.fixture
def database(url: str) -> Iterator[PostgresDatabase]:
    opened = PostgresDatabase(url, connections=8)
    opened.migrate(shipped("migrations") / "postgres_catalog", version_table=CATALOG_VERSION, vectors=False)
    yield opened
    opened.close()


def member(database: PostgresDatabase, name: str) -> Catalog:
    return Catalog(SharedCatalog(database), Member(database, name))


def ended(client: httpx.Client, job: int, *, seconds: float = 60) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while True:
        found: dict[str, Any] = client.get(f"/jobs/{job}").json()
        if found["ended"] is not None:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def faults(url: str, *, collection: str = "default") -> list[str]:
    """What catalog and store do not agree about."""
    database = PostgresDatabase(url, connections=4)
    catalog, store = Catalog(SharedCatalog(database)), PostgresStore(database)
    place = catalog.collection(collection)
    documents = {each.id: each for each in catalog.documents(collection, limit=100_000).documents}
    stored = {each.document: len(each.chunks) for each in store.entries(place.stored_as, limit=100_000)}
    found = [f"{name} is {each.state}" for name, each in documents.items() if each.state != "ready" or each.in_hand]
    found += [
        f"{name}: {stored.get(name)} chunks" for name, each in documents.items() if stored.get(name) != each.chunks
    ]
    found += [f"{name} is in the store alone" for name in stored.keys() - documents.keys()]
    if sum(stored.values()) != store.count(place.stored_as):
        found.append(f"{store.count(place.stored_as)} chunks are counted, {sum(stored.values())} there")
    database.close()
    return found


def test_what_one_does_the_other_knows(pair: tuple[httpx.Client, httpx.Client]) -> None:
    here, there = pair
    here.post("/collections", json={"name": "notes"}).raise_for_status()
    assert there.post("/collections", json={"name": "notes"}).status_code == 409

    body = {"id": "otters", "text": "otters hold hands while they sleep", "collection": "notes"}
    assert here.post("/documents", json={**body, "wait": 20}).status_code == 201
    assert there.post("/documents", json={**body, "wait": 20}).json()["documents"][0]["change"] == "unchanged"
    listed = there.get("/documents", params={"collection": "notes"}).json()["documents"]
    text = there.get("/documents/otters", params={"collection": "notes"}).json()["text"]
    found = there.post("/search", json={"q": "sleeping otters", "collection": "notes"}).json()
    there.request("DELETE", "/documents/otters", params={"collection": "notes"}).raise_for_status()

    assert [each["id"] for each in listed] == ["otters"]
    assert text == body["text"]
    assert found["matches"][0]["document"] == "otters"
    assert here.get("/documents/otters", params={"collection": "notes"}).status_code == 404
    assert here.post("/search", json={"q": "otters", "collection": "notes"}).json()["matches"] == []
    there.request("DELETE", "/collections/notes").raise_for_status()
    assert here.get("/collections/notes").status_code == 404


def test_a_jobs_documents_are_taken_once_by_whoever_is_free(pair: tuple[httpx.Client, httpx.Client], url: str) -> None:
    here, there = pair
    documents = [{"id": f"d{n}", "text": f"number {n} " + "words of a passage " * 300} for n in range(600)]

    made = here.post("/documents", json={"documents": documents, "job": True}).json()
    job = ended(there, made["job"])

    assert (job["counts"]["ready"], job["counts"]["total"]) == (600, 600)
    assert faults(url) == []
    database = PostgresDatabase(url, connections=2)
    with database.read() as connection:
        attempts = connection.execute(select(DOCUMENT.c.attempts, func.count()).group_by(DOCUMENT.c.attempts)).all()
        items = connection.execute(select(JOB_ITEM.c.state, func.count()).group_by(JOB_ITEM.c.state)).all()
    database.close()
    assert [tuple(each) for each in attempts] == [(1, 600)]
    assert [tuple(each) for each in items] == [("ready", 600)]
    shares = [_ingested(client) for client in pair]
    assert sum(shares) == 600
    assert min(shares) > 0


def _ingested(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(
        float(line.split()[1]) for line in lines if line.startswith('appliance_ingest_documents_total{state="ready"')
    )


def test_who_waits_is_told_of_what_another_has_done(pair: tuple[httpx.Client, httpx.Client]) -> None:
    answers = []
    for n in range(40):
        answer = pair[n % 2].post("/documents", json={"id": f"d{n}", "text": f"number {n}", "wait": 20})
        answers.append((answer.status_code, answer.json()["documents"][0]["state"]))

    assert answers == [(201, "ready")] * 40


def test_changes_from_both_sides_leave_catalog_and_store_of_one_mind(
    pair: tuple[httpx.Client, httpx.Client], url: str
) -> None:
    wrong: list[str] = []

    def work(number: int) -> None:
        rng = random.Random(number)  # noqa: S311  # no secret
        client = pair[number % 2]
        for turn in range(40):
            name = f"d{rng.randrange(12)}"
            if rng.random() < 0.3:
                answer = client.request("DELETE", f"/documents/{name}")
                fine = answer.status_code in {204, 404}
            else:
                text = f"{name} turn {turn} of {number} " + "word " * rng.randrange(400)
                answer = client.post("/documents", json={"id": name, "text": text, "wait": rng.choice((0, 0, 5))})
                fine = answer.status_code in {200, 201, 202} or "removed again" in answer.text
            if not fine:
                wrong.append(f"{answer.status_code} {answer.text}")

    pair[0].post("/documents", json={"id": "first", "text": "first", "wait": 20}).raise_for_status()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    deadline = time.monotonic() + 60
    while faults(url) and time.monotonic() < deadline:
        time.sleep(0.2)

    assert wrong == []
    assert faults(url) == []


def test_documents_are_left_to_an_appliance_that_has_their_model(
    start: Callable[..., Any], bring_small: Callable[[Path], None], url: str, tmp_path: Path
) -> None:
    bring_small(tmp_path / "able")
    settings = {"store": "postgres", "store_url": SecretStr(url)}
    able, unable = start(data=tmp_path / "able", **settings), start(data=tmp_path / "unable", **settings)
    documents = [{"id": f"d{n}", "text": f"number {n}"} for n in range(30)]
    with httpx.Client(base_url=able.url, timeout=60) as here, httpx.Client(base_url=unable.url, timeout=60) as there:
        here.post("/collections", json={"name": "small", "model": "small"}).raise_for_status()
        made = here.post("/documents", json={"collection": "small", "documents": documents, "job": True}).json()
        job = ended(there, made["job"])
        shares = [_ingested(each) for each in (here, there)]

    assert (job["counts"]["ready"], shares) == (30, [30, 0])
    assert faults(url, collection="small") == []


def test_one_reindexes_what_both_answer_from(pair: tuple[httpx.Client, httpx.Client], url: str) -> None:
    here, there = pair
    documents = [{"id": f"d{n}", "text": f"number{n} of the passages"} for n in range(200)]
    ended(here, here.post("/documents", json={"documents": documents, "job": True}).json()["job"])
    failed: list[str] = []
    stop = threading.Event()

    def ask(client: httpx.Client) -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as asking:
            while not stop.is_set():
                answer = asking.get("/search", params={"q": "number7", "k": 3})
                if answer.status_code != 200 or answer.json()["matches"][0]["document"] != "d7":
                    failed.append(answer.text)

    asking = [threading.Thread(target=ask, args=(client,)) for client in pair]
    for thread in asking:
        thread.start()
    begun = there.post("/collections/default/reindex", params={"dimensions": 512}).json()
    job = ended(here, begun["id"])
    stop.set()
    for thread in asking:
        thread.join()

    assert (job["counts"]["ready"], failed) == (200, [])
    assert {client.get("/collections/default").json()["dimensions"] for client in pair} == {512}
    assert faults(url) == []


@pytest.mark.slow
def test_what_one_had_in_hand_when_it_was_killed_the_other_finishes(
    started: Callable[..., Any], url: str, tmp_path: Path
) -> None:
    rng = random.Random(5)  # noqa: S311  # no secret
    shared = {"APPLIANCE_STORE": "postgres", "APPLIANCE_STORE_URL": url}
    one, two = (started(tmp_path / name, shared) for name in ("one", "two"))
    documents = [
        {"id": f"d{n}", "text": f"number {n} " + "words of a passage " * rng.randrange(1, 600)} for n in range(1500)
    ]
    job = httpx.post(f"{one.url}/documents", json={"documents": documents, "job": True}, timeout=60).json()["job"]
    kills = 0
    with httpx.Client(base_url=two.url, timeout=60) as client:
        while client.get(f"/jobs/{job}").json()["ended"] is None and kills < 3:
            time.sleep(0.3 + rng.random())
            one.kill()
            kills += 1
            if kills < 3:
                one = started(tmp_path / "one", shared)
        done = ended(client, job, seconds=120)
    two.kill()

    assert (done["counts"]["ready"], done["counts"]["total"]) == (1500, 1500)
    assert kills > 0
    assert faults(url) == []


def test_what_a_member_has_in_hand_is_its_own_until_it_is_gone(database: PostgresDatabase) -> None:
    one, two = member(database, "one"), member(database, "two")
    one.create_collection("c", model="m", space="s", dimensions=3)
    one.put_documents("c", [NewDocument(name, b"words") for name in "abc"])
    (mine,) = one.take(1)
    (theirs,) = two.take(1)

    assert {mine.id, theirs.id} == {"a", "b"}
    assert two.settle([Ready(mine, "words", 1, 1)]) == [False]
    assert two.recover() == 1
    assert (one.left_behind(), two.left_behind(), two.take_up()) == (False, False, 0)
    one.leave()
    assert two.left_behind()
    assert two.take_up() == 1
    assert one.settle([Ready(mine, "words", 1, 1)]) == [False]
    assert sorted(work.id for work in two.take(9)) == ["a", "b", "c"]


def test_a_member_has_its_number_again_and_is_there_once(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Member(database, "one")
    monkeypatch.setattr("appliance.catalog.members._PATIENCE", 0.5)
    with pytest.raises(StoreUnavailable, match="copy of this data directory"):
        Member(database, "one")
    first.leave()

    again = Member(database, "one")

    assert again.id == first.id
    assert Member(database, "two").id != first.id


def test_a_member_comes_back_when_the_server_ended_its_session(database: PostgresDatabase) -> None:
    one, two = member(database, "one"), member(database, "two")
    one.create_collection("c", model="m", space="s", dimensions=3)
    one.put_documents("c", [NewDocument("a", b"words")])
    one.take(1)
    with database.write() as connection:
        ends = (
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 1 AND objsubid = 2"
        )
        connection.exec_driver_sql(ends)

    deadline = time.monotonic() + 10
    while not two.left_behind():
        assert time.monotonic() < deadline
    one.check()

    assert not two.left_behind()


def test_the_server_is_asked_to_notice_soon_when_a_member_is_gone_that_could_not_say_so(url: str) -> None:
    database = PostgresDatabase(url, connections=2)
    database.migrate(shipped("migrations") / "postgres_catalog", version_table=CATALOG_VERSION, vectors=False)
    one = Member(database, "one")
    assert one._session is not None

    names = ("idle", "interval", "count")
    asked = [int(one._session.exec_driver_sql(f"SHOW tcp_keepalives_{name}").scalar_one()) for name in names]
    one.leave()
    database.close()

    assert asked == [5, 5, 3]


def test_nobody_is_at_a_change_beside_one_who_is_alone(database: PostgresDatabase) -> None:
    members = [member(database, name) for name in ("one", "two", "three")]
    now: list[bool] = []
    most = [0]
    lock = threading.Lock()
    wrong: list[list[bool]] = []

    def change(number: int) -> None:
        for turn in range(20):
            alone = (turn + number) % 4 == 0
            with members[number].turn(alone=alone):
                with lock:
                    now.append(alone)
                    most[0] = max(most[0], len(now))
                    if len(now) > 1 and any(now):
                        wrong.append(list(now))
                time.sleep(0.002)
                with lock:
                    now.remove(alone)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(change, range(3)))

    assert wrong == []
    assert most[0] > 1


def test_appliances_that_start_together_make_the_schema_once(postgres_server: Any) -> None:
    url = postgres_server.database()
    databases = [PostgresDatabase(url, connections=2) for _ in range(4)]
    folder = shipped("migrations") / "postgres_catalog"

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda each: each.migrate(folder, version_table=CATALOG_VERSION, vectors=False), databases))

    with databases[0].read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM collection").scalar_one() == 0
    for each in databases:
        each.close()


def test_a_catalog_cannot_be_shared_over_a_store_that_is_not(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="store = postgres or milvus"):
        Settings(data=tmp_path, catalog_url=SecretStr("postgresql://h/d")).catalog_address()
    assert Settings(data=tmp_path).catalog_address() == ""
    both = Settings(data=tmp_path, store="postgres", store_url=SecretStr("postgresql://h/d"))
    assert both.catalog_address() == "postgresql://h/d"
