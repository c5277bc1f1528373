"""Jobs over restarts, and folders into them."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.catalog.catalog import Catalog
from appliance.catalog.records import Failed, Job, NewDocument
from appliance.database import Database
from appliance.embedding.spec import ModelSpec, read_card
from appliance.settings import shipped


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    return data


@pytest.fixture
def catalog(data: Path) -> Iterator[Catalog]:
    """The catalog of a server that was killed."""
    database = Database(data / "appliance.db")
    database.migrate(shipped("migrations"))
    catalog = Catalog(database)
    card = read_card(shipped("config") / "models" / "hash.toml")
    assert isinstance(card, ModelSpec)
    catalog.create_collection("c", model=card.name, space=card.space, dimensions=card.dimensions)
    yield catalog
    database.close()


def closed(catalog: Catalog) -> None:
    assert isinstance(catalog._database, Database)
    catalog._database.close()


def job_of(client: httpx.Client, made: Job) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while True:
        job: dict[str, Any] = client.get(f"/jobs/{made.id}").json()
        if job["ended"] is not None:
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.02)


def test_an_archive_that_did_not_come_whole_is_taken_back_at_the_next_start(
    start: Callable[..., Any], data: Path, catalog: Catalog
) -> None:
    made = catalog.jobs.create("c", kind="archive", name="x.zip", state="preparing")
    catalog.put_documents("c", [NewDocument("x/a.txt", b"words")], job=made.id)
    closed(catalog)

    server = start(data=data)

    with httpx.Client(base_url=server.url) as client:
        job = job_of(client, made)
        assert (job["state"], job["counts"]["skipped"]) == ("cancelled", 1)
        assert "send it again" in job["error"]
        assert client.get("/documents", params={"collection": "c"}).json()["documents"] == []


def test_a_folder_that_was_half_read_is_read_on_and_a_paused_job_stays_paused(
    start: Callable[..., Any], data: Path, catalog: Catalog, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for n in range(5):
        (folder / f"{n}.txt").write_text(f"words of {n}")
    half = catalog.jobs.create("c", kind="folder", name="notes", origin=str(folder))
    paused = catalog.jobs.create("c", kind="documents")
    catalog.put_documents("c", [NewDocument("notes/0.txt", b"words of 0", title="0.txt")], job=half.id)
    catalog.put_documents("c", [NewDocument("p", b"waits")], job=paused.id)
    catalog.jobs.pause(paused.id)
    closed(catalog)

    server = start(data=data, ingest_roots=[tmp_path / "notes"])

    with httpx.Client(base_url=server.url) as client:
        job = job_of(client, half)
        assert (job["state"], job["counts"]["total"], job["counts"]["ready"]) == ("done", 5, 5)
        assert client.get(f"/jobs/{paused.id}").json()["state"] == "paused"
        assert client.post(f"/jobs/{paused.id}/resume").status_code == 200
        assert job_of(client, paused)["counts"]["ready"] == 1


def test_what_failed_or_was_skipped_stays_so_when_its_folder_is_read_on(
    start: Callable[..., Any], data: Path, catalog: Catalog, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in ("failed.txt", "mended.txt", "other.txt", "skipped.txt"):
        (folder / name).write_text(f"words of {name}")
    half = catalog.jobs.create("c", kind="folder", name="notes", origin=str(folder))
    documents = [
        NewDocument("notes/failed.txt", b"words of failed.txt", title="failed.txt"),
        NewDocument("notes/mended.txt", b"words before", title="mended.txt"),
        NewDocument("notes/skipped.txt", b"words of skipped.txt", title="skipped.txt"),
    ]
    catalog.put_documents("c", documents, job=half.id)
    catalog.jobs.skip(half.id, "notes/skipped.txt")
    catalog.settle([Failed(work, "it is damaged") for work in catalog.take(9)])
    closed(catalog)

    server = start(data=data, ingest_roots=[folder])

    with httpx.Client(base_url=server.url) as client:
        counts = job_of(client, half)["counts"]
        assert (counts["total"], counts["ready"], counts["failed"], counts["skipped"]) == (4, 2, 1, 1)
        kept = server.app.state.appliance.catalog.documents("c", limit=9).documents
        assert {each.id: (each.state, each.version) for each in kept} == {
            "notes/failed.txt": ("failed", 1),
            "notes/mended.txt": ("ready", 2),
            "notes/other.txt": ("ready", 1),
        }

        again = client.post("/documents", json={"collection": "c", "folder": str(folder)}).json()["job"]
        deadline = time.monotonic() + 20
        while (job := client.get(f"/jobs/{again}").json())["state"] != "done":
            assert time.monotonic() < deadline, job
        assert (job["counts"]["ready"], job["counts"]["unchanged"]) == (2, 2)


def test_what_failed_in_a_watched_folder_is_tried_again_at_the_next_start(
    start: Callable[..., Any], data: Path, catalog: Catalog, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("words of a")
    standing = catalog.jobs.standing("c", name="notes", origin=str(folder))
    catalog.put_documents("c", [NewDocument("notes/a.txt", b"words of a", title="a.txt")], job=standing.id)
    catalog.settle([Failed(work, "no process could be begun") for work in catalog.take(9)])
    closed(catalog)

    server = start(data=data, watch_folders={str(folder): "c"})

    kept = server.app.state.appliance.catalog
    deadline = time.monotonic() + 20
    while kept.document("c", "notes/a.txt").state != "ready":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_folder_that_may_no_longer_be_read_ends_its_job_with_the_reason(
    start: Callable[..., Any], data: Path, catalog: Catalog, tmp_path: Path
) -> None:
    made = [
        catalog.jobs.create("c", kind="folder", name=name, origin=str(tmp_path / name)) for name in ("gone", "other")
    ]
    closed(catalog)

    server = start(data=data, ingest_roots=[tmp_path / "gone"])

    with httpx.Client(base_url=server.url) as client:
        errors = [job_of(client, each)["error"] for each in made]
    assert "cannot be read" in errors[0]
    assert "ingest_roots" in errors[1]


def test_a_folder_for_a_collection_whose_model_is_gone_ends_with_the_reason(
    start: Callable[..., Any], data: Path, catalog: Catalog, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("words")
    catalog.create_collection("old", model="gone", space="gone", dimensions=64)
    made = catalog.jobs.create("old", kind="folder", name=tmp_path.name, origin=str(tmp_path))
    closed(catalog)

    server = start(data=data, ingest_roots=[tmp_path])

    with httpx.Client(base_url=server.url) as client:
        assert "'gone'" in job_of(client, made)["error"]


def test_a_job_that_runs_tells_how_fast_and_how_long(start: Callable[..., Any]) -> None:
    server = start()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        body = {"documents": [{"id": str(n), "text": f"word{n} " * 3000} for n in range(150)], "job": True}
        number = client.post("/documents", json=body).json()["job"]

        rates = []
        while (job := client.get(f"/jobs/{number}").json())["state"] == "running":
            rates.append((job["rate"], job["remaining"]))
            time.sleep(0.05)

    assert any(rate and remaining for rate, remaining in rates)
    assert (job["rate"], job["remaining"]) == (None, None)
