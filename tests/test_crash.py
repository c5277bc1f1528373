"""kill -9 during ingestion: no acknowledged document is lost, and nothing is left that belongs to no document."""

import io
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import pytest

from appliance.database import Database

KILLS = 20


class Server:
    """A server process on a data directory, with the hash model."""

    def __init__(self, data: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "appliance", "serve", "--port", str(port), "--data", str(data), "--model", "hash"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONWARNINGS": "default"},
        )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "the server ended"
            try:
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.02)
        raise AssertionError("the server did not come up")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def ingest(url: str, life: int, acknowledged: dict[str, str], first: threading.Event) -> None:
    """Put documents one after the other, new ones and changes of old ones, and note what was acknowledged."""
    with httpx.Client(base_url=url, timeout=10) as client:
        for n in range(10_000):
            name = f"{random.randrange(60)}" if n % 3 else f"new-{life}-{n}"  # noqa: S311  # no secret
            text = f"life{life} number{n} " + "filler words of a passage " * random.randrange(1, 200)  # noqa: S311
            acknowledged.pop(name, None)  # between two acknowledged versions, either may be found
            try:
                answer = client.post("/documents", json={"id": name, "text": text})
            except httpx.TransportError:
                return
            if answer.status_code == 201:
                acknowledged[name] = text
                first.set()


@pytest.mark.slow
def test_twenty_kills_lose_no_acknowledged_document_and_leave_no_orphan(tmp_path: Path) -> None:
    acknowledged: dict[str, str] = {}
    random.seed(7)

    for life in range(KILLS):
        server = Server(tmp_path)
        server.wait_until_ready()
        first = threading.Event()
        writer = threading.Thread(target=ingest, args=(server.url, life, acknowledged, first))
        writer.start()
        assert first.wait(10)
        time.sleep(random.random() * 0.4)  # noqa: S311
        server.kill()
        writer.join()

    server = Server(tmp_path)
    server.wait_until_ready()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        assert len(acknowledged) > KILLS
        for name, text in acknowledged.items():
            document = client.get(f"/documents/{name}").json()
            assert (document["state"], document["text"]) == ("ready", text)
            words = " ".join(text.split()[:2])
            answer = client.get("/search", params={"q": words, "mode": "keyword", "k": 1000}).json()
            assert name in {match["document"] for match in answer["matches"]}
        deadline = time.monotonic() + 30
        while set(client.get("/collections/default").json()["documents"]) != {"ready"}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    server.kill()
    assert orphans(tmp_path / "appliance.db") == []


FILES = 400
FOLDER_KILLS = 8


@pytest.mark.slow
def test_a_folder_that_is_put_in_through_many_kills_is_whole_and_each_file_was_embedded_once(tmp_path: Path) -> None:
    random.seed(11)
    folder = tmp_path / "notes"
    for n in range(FILES):
        path = folder / str(n % 7) / f"{n}.{'md' if n % 3 else 'txt'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# Note {n}\n\n" + f"note{n} words of a passage " * random.randrange(1, 300))  # noqa: S311
    data = tmp_path / "data"
    data.mkdir()
    (data / "appliance.toml").write_text(f'ingest_roots = ["{tmp_path}"]\n')
    lives, job = 0, 0
    job_after: dict[str, Any] = {"state": ""}

    while job_after["state"] != "done":
        server = Server(data)
        server.wait_until_ready()
        with httpx.Client(base_url=server.url, timeout=30) as client:
            if not job:
                job = client.post("/documents", json={"folder": "notes"}).json()["job"]
            end = time.monotonic() + random.random() * 0.8 + (0 if lives < FOLDER_KILLS else 30)  # noqa: S311
            while time.monotonic() < end and job_after["state"] != "done":
                job_after = client.get(f"/jobs/{job}").json()
                time.sleep(0.02)
        server.kill()
        lives += 1

    counts = job_after["counts"]
    assert lives > 2
    assert (counts["total"], counts["ready"], counts["waiting"], counts["failed"]) == (FILES, FILES, 0, 0)
    assert orphans(data / "appliance.db") == []
    database = Database(data / "appliance.db")
    with database.read() as connection:
        rows = connection.exec_driver_sql("SELECT state, version, attempts, chunks FROM document").all()
        items = connection.exec_driver_sql("SELECT state, count(*) FROM job_item GROUP BY state").all()
    database.close()
    assert len(rows) == FILES
    assert {(row[0], row[1]) for row in rows} == {("ready", 1)}
    # what was in hand at a kill is taken again, at most 64 documents, and nothing else is
    assert sum(row[2] - 1 for row in rows) <= 64 * lives
    assert [tuple(row) for row in items] == [("ready", FILES)]


def test_images_that_were_acknowledged_before_a_kill_are_found_after_it(
    bring_clip: Callable[[Path], None], tmp_path: Path
) -> None:
    bring_clip(tmp_path)
    colours = ("red", "green", "blue", "white", "black")
    server = Server(tmp_path)
    server.wait_until_ready()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        client.post("/collections", json={"name": "album", "model": "tiny-clip"}).raise_for_status()
        files = [("file", (f"{colour}.png", square(colour), "image/png")) for colour in colours]
        form = {"collection": "album", "wait": "0", "id": list(colours)}
        answer = client.post("/documents", data=form, files=files)
    server.kill()

    server = Server(tmp_path)
    server.wait_until_ready()

    assert answer.status_code == 202
    with httpx.Client(base_url=server.url, timeout=30) as client:
        deadline = time.monotonic() + 30
        while client.get("/collections/album").json()["documents"] != {"ready": len(colours)}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for colour in colours:
            matches = client.get("/search", params={"collection": "album", "q": colour, "mode": "keyword"}).json()
            assert [match["document"] for match in matches["matches"]] == [colour]
    server.kill()
    assert orphans(tmp_path / "appliance.db") == []


def square(colour: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (40, 40), colour).save(file, "PNG")
    return file.getvalue()


def orphans(path: Path) -> list[str]:
    """Everything in the database that belongs to no document, or lacks a part of its own."""
    database = Database(path)
    with database.read() as connection:

        def count(sql: str) -> int:
            return int(connection.exec_driver_sql(sql).scalar_one())

        chunks = count("SELECT count(*) FROM chunk")
        faults = {
            "integrity": count("SELECT (SELECT integrity_check FROM pragma_integrity_check) <> 'ok'"),
            "chunk without document": count(
                "SELECT count(*) FROM chunk WHERE document NOT IN (SELECT id FROM document WHERE state = 'ready')"
            ),
            "vector without chunk": count(
                "SELECT count(*) FROM embedding WHERE chunk_id NOT IN (SELECT id FROM chunk)"
            ),
            "chunk without vector": count(
                "SELECT count(*) FROM chunk WHERE id NOT IN (SELECT chunk_id FROM embedding)"
            ),
            "bits": count("SELECT count(*) FROM vec_bits_1") - chunks,
            "words": count("SELECT count(*) FROM chunk_fts_1_docsize") - chunks,
            "chunks of documents": count("SELECT coalesce(sum(chunks), 0) FROM document") - chunks,
            "source without document": count(
                "SELECT count(*) FROM source WHERE document_seq NOT IN (SELECT seq FROM document)"
            ),
        }
    with database.write() as connection:
        connection.exec_driver_sql("INSERT INTO chunk_fts_1(chunk_fts_1, rank) VALUES ('integrity-check', 1)")
    database.close()
    return [f"{name}: {number}" for name, number in faults.items() if number]
