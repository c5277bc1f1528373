"""A catalog moves to a server and back, and nobody notices."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from appliance.catalog import copying
from appliance.catalog.catalog import Catalog
from appliance.catalog.members import SharedCatalog
from appliance.catalog.records import Failed, NewDocument, Ready
from appliance.database import Database, Transactions
from appliance.errors import Conflict
from appliance.postgres import PostgresDatabase
from appliance.settings import shipped


def fill(transactions: Transactions) -> Catalog:
    """A catalog that was left in the middle of its work."""
    catalog = Catalog(transactions)
    for name in ("c", "d"):
        catalog.create_collection(name, model="m", space="s", dimensions=3)
    job = catalog.jobs.create("c", kind="folder", name="notes", origin="/srv/notes")
    documents = [
        NewDocument(f"d\0{n}", f"<p>text {n}</p>".encode(), metadata={"n": n, "k": [1, "\0"]}) for n in range(7)
    ]
    catalog.put_documents("c", documents, job=job.id)
    one, two, _three = catalog.take(3)
    catalog.settle([Ready(one, "text\0 one", 1, 2), Failed(two, "no\0thing")])
    catalog.begin_document_removal("c", documents[5].id)
    return catalog


def told(catalog: Catalog) -> dict[str, object]:
    return {
        "collections": catalog.collections(),
        "documents": catalog.documents("c", limit=99).documents,
        "texts": [catalog.text("c", each.id) for each in catalog.documents("c", limit=99).documents],
        "jobs": [(each.id, each.ready, each.failed, each.waiting, each.state) for each in catalog.jobs.jobs(limit=9)],
        "items": catalog.jobs.items(1, limit=99),
        "leaving": catalog.pending_removals(),
    }


@pytest.mark.parametrize("way", ["there", "back"])
def test_everything_is_there_and_work_goes_on_where_it_was(
    way: str, database: Database, empty_server: PostgresDatabase
) -> None:
    ends: tuple[Transactions, Transactions] = (database, SharedCatalog(empty_server))
    source, target = ends if way == "there" else ends[::-1]
    before = fill(source)
    copying.check_empty(target)
    counted: list[int] = []

    differences = copying.copy(source, target, member=7, progress=lambda _name, rows: counted.append(rows))

    before.recover()  # a copy has nothing in hand
    after = Catalog(target)
    assert differences == []
    assert sum(counted) == 2 * copying.rows(source)
    assert told(after) == told(before)
    assert [work.id for work in after.take(99)] == [work.id for work in before.take(99)]
    assert [each.origin for each in Catalog(target).jobs.opened()] == []
    (put,) = after.put_documents("d", [NewDocument("new", b"x")])
    assert put.document.seq == 8
    assert after.jobs.create("d", kind="documents").id == 2
    with pytest.raises(Conflict, match="empty one"):
        copying.check_empty(target)


def test_what_differs_is_told(database: Database, empty_server: PostgresDatabase) -> None:
    fill(database)
    target = SharedCatalog(empty_server)
    copying.copy(database, target, member=0)

    class Other:
        """The same database, in which somebody has changed something."""

        def __init__(self) -> None:
            self.write, self.claim = target.write, target.claim

        def read(self) -> Any:
            with target.write() as connection:
                connection.exec_driver_sql("UPDATE document SET title = 'other' WHERE seq = 2")
            return target.read()

    with target.write() as connection:
        for table in ("job_item", "job", "source", "document_text", "document", "collection"):
            connection.exec_driver_sql(f"DELETE FROM {table}")  # noqa: S608  # of a list
    assert copying.copy(database, Other(), member=0) == ["document: row 2 differs"]


def test_an_appliance_moves_to_a_server_and_back(
    start: Callable[..., Any], postgres_server: Any, tmp_path: Path
) -> None:
    url = postgres_server.database()
    home = tmp_path / "home"
    texts = [f"number {n} of the passages" for n in range(30)]

    def clients(data: Path, **settings: Any) -> tuple[Any, httpx.Client]:
        server = start(data=data, **settings)
        return server, httpx.Client(base_url=server.url, timeout=60)

    def copied(data: Path, *route: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "appliance", "store", "copy", "--data", str(data), "--json", *route]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={"APPLIANCE_STORE_URL": url})
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    server, client = clients(home)
    with client:
        made = client.post("/documents", json={"texts": texts, "job": True, "wait": 30}).json()
        listed = client.get("/documents", params={"limit": 1000}).json()
    server.stop()
    there = copied(home, "--from", "sqlite", "--to", "postgres")
    server, client = clients(home, store="postgres", store_url=SecretStr(url))
    with client:
        moved = client.get("/documents", params={"limit": 1000}).json()
        again = client.post("/documents", json={"texts": texts, "wait": 30}).json()
        job = client.get(f"/jobs/{made['job']}").json()
        found = client.get("/search", params={"q": "number 7"}).json()
        client.post("/documents", json={"id": "later", "text": "put in later", "wait": 30}).raise_for_status()
    server.stop()
    back = copied(tmp_path / "new", "--from", "postgres", "--to", "sqlite")
    server, client = clients(tmp_path / "new")
    with client:
        returned = client.get("/documents", params={"limit": 1000}).json()
        last = client.get("/search", params={"q": "put in later"}).json()

    assert (there["chunks"], there["differences"], back["chunks"], back["differences"]) == (30, [], 31, [])
    assert moved == listed
    assert {each["change"] for each in again["documents"]} == {"unchanged"}
    assert (job["state"], job["counts"]["ready"]) == ("done", 30)
    assert found["matches"][0]["text"] == texts[7]
    assert returned["documents"][:30] == listed["documents"]
    assert last["matches"][0]["document"] == "later"


def test_a_copy_into_a_catalog_that_is_in_use_is_refused_before_anything_is_done(
    postgres_server: Any, tmp_path: Path
) -> None:
    url = postgres_server.database()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        database = Database(tmp_path / name / "appliance.db")
        database.migrate(shipped("migrations"))
        Catalog(database).create_collection(name, model="m", space="s", dimensions=3)
        database.close()
    runs = []
    for name in ("one", "two"):
        command = [sys.executable, "-m", "appliance", "store", "copy", "--data", str(tmp_path / name)]
        command += ["--from", "sqlite", "--to", "postgres"]
        environment = {"APPLIANCE_STORE_URL": url}
        runs.append(subprocess.run(command, capture_output=True, text=True, check=False, env=environment))

    assert [each.returncode for each in runs] == [0, 1], runs
    assert "copy into an empty one" in runs[1].stderr
