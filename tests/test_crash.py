"""kill -9 during ingestion: no acknowledged document is lost, and nothing is left that belongs to no document."""

# ruff: noqa: S608  # names of tables hold a number of ours

import io
import os
import random
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import PIL.Image
import pytest

from appliance.database import Database

KILLS = 20


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
def test_twenty_kills_lose_no_acknowledged_document_and_leave_no_orphan(
    started: Callable[..., Any], tmp_path: Path
) -> None:
    acknowledged: dict[str, str] = {}
    random.seed(7)

    for life in range(KILLS):
        server = started(tmp_path)
        first = threading.Event()
        writer = threading.Thread(target=ingest, args=(server.url, life, acknowledged, first))
        writer.start()
        assert first.wait(10)
        time.sleep(random.random() * 0.4)  # noqa: S311
        server.kill()
        writer.join()

    server = started(tmp_path)
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


FILES = 2_000
REAL = 500
FOLDER_KILLS = 10
SEED = "CRASH_SEED"


@pytest.fixture
def soak(server_process: Callable[..., Any], tmp_path: Path) -> Iterator["Soak"]:
    seed = os.environ.get(SEED) or str(secrets.randbelow(2**32))
    print(f"{SEED}={seed} makes the same files, and kills at the same places")  # noqa: T201  # told where a test fails
    made = Soak(tmp_path, random.Random(seed), server_process)  # noqa: S311  # no secret
    yield made
    made.close()


@pytest.mark.slow
def test_a_folder_of_every_format_comes_through_ten_kills_with_each_file_in_it_once(
    soak: "Soak", tmp_path: Path, documents: Any, mixed: Any, hostile: Any
) -> None:
    root = tmp_path / "papers"
    (root / "0 bad").mkdir(parents=True)
    bad = {f"papers/{each.id}"[:512]: each for each in hostile.fill(root / "0 bad", tmp_path / "beside", documents)}
    files = mixed.fill(root, files=FILES - len(bad), real=REAL, chance=soak.chance, documents=documents)
    good = {each.id: each for each in files}

    server = soak.run(root, files=FILES, kills=FOLDER_KILLS)

    print(f"{soak.kills} kills, {FILES / soak.worked:.0f} files/s, {len(soak.held)} begun again")  # noqa: T201  # same
    assert soak.kills == FOLDER_KILLS
    assert soak.readers, "no kill came while there were processes that read"
    with httpx.Client(base_url=server.url, timeout=30) as client:
        job = client.get(f"/jobs/{soak.job}", params={"limit": 1000}).json()
        expected = Counter(each.state for each in bad.values()) + Counter(total=FILES, ready=len(good))
        assert {name: number for name, number in job["counts"].items() if number} == expected
        check_reasons({each["id"]: (each["state"], each["error"]) for each in job["failures"]}, bad)
        check_found(client, files, soak.chance)
        check_texts(client, root, files)
    server.process.terminate()
    assert server.process.wait(30) == 0
    assert soak.processes() == set()
    assert sorted(path.name for path in soak.data.iterdir()) == ["appliance.db", "appliance.db.lock", "appliance.toml"]
    assert list(soak.temporary.iterdir()) == []
    assert orphans(soak.data / "appliance.db") == []
    database = Database(soak.data / "appliance.db")
    with database.read() as connection:
        rows = connection.exec_driver_sql("SELECT id, state, version, attempts FROM document").all()
        items = connection.exec_driver_sql("SELECT id, state FROM job_item").all()
    database.close()
    states = dict.fromkeys(good, "ready") | {name: each.state for name, each in bad.items()}
    assert sorted(map(tuple, items)) == sorted(states.items())
    kept = {name: state for name, state in states.items() if state != "refused"}
    assert sorted((row.id, row.state, row.version) for row in rows) == sorted((*each, 1) for each in kept.items())
    again = Counter(name for name, _ in soak.held)
    assert {row.id: row.attempts for row in rows} == {name: 1 + again[name] for name in kept}


class Soak:
    """A job over a folder on servers that are killed one after the other, and what each of them left."""

    def __init__(self, folder: Path, chance: random.Random, begin: Callable[..., Any]) -> None:
        self.chance = chance
        self._begin = begin
        self.data, self.temporary, self._copy = (folder / name for name in ("data", "temporary", "copy"))
        for each in (self.data, self.temporary, self._copy):
            each.mkdir()
        self._mark = f"PYTHONMARK={folder}"  # a name that the processes that read documents get from their server
        self._server: Any = None
        self.job = 0
        self.kills = 0
        self.worked = 0.0
        self.finished = 0
        self.readers: set[int] = set()
        self.held: set[tuple[str, int]] = set()
        """Documents that were in hand at a kill, and for which time."""

    def run(self, root: Path, *, files: int, kills: int) -> Any:
        """Have the folder taken in; the server that came to the end of it."""
        (self.data / "appliance.toml").write_text(f'ingest_roots = ["{root}"]\n')
        while True:
            server = self._begun()
            server.wait_until_ready()
            began = time.monotonic()
            with httpx.Client(base_url=server.url, timeout=30) as client:
                if not self.job:
                    self.job = client.post("/documents", json={"folder": str(root)}).json()["job"]
                # a place among the files, not in time: no machine is too fast or too slow for all the kills
                share = (files - self.finished) / (kills + 1 - self.kills)
                enough = self.finished + self.chance.uniform(0, 1.2 * share) if self.kills < kills else files + 1
                ended = self._followed(client, enough)
            self.worked += time.monotonic() - began
            if ended:
                return server
            self._kill(server)
            assert self._running(), f"the job was done after {self.kills} kills"
            self.kills += 1
            if self.chance.random() < 0.2:
                server = self._begun()
                time.sleep(self.chance.random() * 2)  # while it starts, or just has
                self._kill(server)
                assert self._running()

    def close(self) -> None:
        """End the server, if one is left."""
        if self._server is not None:
            self._server.kill()

    def processes(self) -> set[int]:
        """The servers, and what they began, whoever its parent is by now."""
        found = set()
        for each in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self._mark.encode() in (each / "environ").read_bytes().split(b"\0"):
                    found.add(int(each.name))
        return found

    def _begun(self) -> Any:
        name, _, value = self._mark.partition("=")
        self._server = self._begin(self.data, {name: value, "TMPDIR": str(self.temporary)})
        return self._server

    def _followed(self, client: httpx.Client, enough: float) -> bool:
        """Wait until the job is done, or until so many files need nothing more and some moments after that; which."""
        deadline = time.monotonic() + 120
        while True:
            job = client.get(f"/jobs/{self.job}", params={"limit": 1}).json()
            if job["state"] == "done":
                return True
            if job["counts"]["total"] - job["counts"]["waiting"] >= enough:
                time.sleep(self.chance.random() * 0.2)
                return False
            assert time.monotonic() < deadline, job
            time.sleep(0.01)

    def _kill(self, server: Any) -> None:
        self.readers |= self.processes() - {server.process.pid}
        server.kill()
        deadline = time.monotonic() + 20
        while left := self.processes():
            assert time.monotonic() < deadline, f"{left} outlive their server"
            time.sleep(0.01)

    def _running(self) -> bool:
        """Look at what a kill left, in a copy, so that the next server has to mend it; whether the job was at work."""
        for path in self._copy.iterdir():
            path.unlink()
        for path in self.data.glob("appliance.db*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, self._copy)
        assert orphans(self._copy / "appliance.db") == []
        database = Database(self._copy / "appliance.db")
        with database.read() as connection:
            run = connection.exec_driver_sql
            job = run("SELECT * FROM job").mappings().one()
            items = {row[0]: int(row[1]) for row in run("SELECT state, count(*) FROM job_item GROUP BY state")}
            in_hand = run("SELECT id, attempts FROM document WHERE taken IS NOT NULL").all()
        database.close()
        waiting = items.pop("waiting", 0)
        assert items == {name: job[name] for name in items}
        assert job["total"] == sum(items.values()) + waiting
        self.finished = sum(items.values())
        self.held |= {(row.id, row.attempts) for row in in_hand}
        return job["ended"] is None and (bool(job["open"]) or waiting > 0)


def check_reasons(told: Mapping[str, tuple[str, str]], bad: Mapping[str, Any]) -> None:
    """Each file that cannot be read is told of, with its own reason."""
    assert told.keys() == bad.keys()
    for name, (state, why) in told.items():
        assert state == bad[name].state, name
        assert bad[name].why in why, name
        assert "unexpected" not in why, name


def check_found(client: httpx.Client, good: Sequence[Any], chance: random.Random) -> None:
    """A search for what a file alone says finds the file, and nothing of it twice: two files of each format."""
    kinds: dict[str, list[Any]] = {}
    for each in good:
        if each.known:
            kinds.setdefault(each.kind, []).append(each)
    for kind, files in kinds.items():
        for each in files if kind == "odd" else chance.sample(files, 2):
            matches = client.get("/search", params={"q": each.known, "mode": "keyword"}).json()["matches"]
            assert matches[0]["document"] == each.id
            rare = each.known.split()[1]
            matches = client.get("/search", params={"q": rare, "mode": "keyword", "k": 100}).json()["matches"]
            assert {match["document"] for match in matches} == {each.id}
            assert len({match["ordinal"] for match in matches}) == len(matches)


def check_texts(client: httpx.Client, root: Path, good: Sequence[Any]) -> None:
    """Source code is kept as it is: twenty files of this machine."""
    for each in [each for each in good if each.kind == "real" and each.id.endswith((".py", ".c", ".sh"))][:20]:
        text = (root.parent / each.id).read_text()
        assert client.get(f"/documents/{quote(each.id)}").json()["text"] == text


def test_images_that_were_acknowledged_before_a_kill_are_found_after_it(
    bring_clip: Callable[[Path], None], started: Callable[..., Any], tmp_path: Path
) -> None:
    bring_clip(tmp_path)
    colours = ("red", "green", "blue", "white", "black")
    server = started(tmp_path)
    with httpx.Client(base_url=server.url, timeout=30) as client:
        client.post("/collections", json={"name": "album", "model": "tiny-clip"}).raise_for_status()
        files = [("file", (f"{colour}.png", square(colour), "image/png")) for colour in colours]
        form = {"collection": "album", "wait": "0", "id": list(colours)}
        answer = client.post("/documents", data=form, files=files)
    server.kill()

    server = started(tmp_path)

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


@pytest.mark.slow
def test_a_reindex_that_is_killed_again_and_again_is_gone_on_with_and_the_old_index_answers(
    started: Callable[..., Any], tmp_path: Path
) -> None:
    chance = random.Random(3)  # noqa: S311  # no secret
    documents = [
        {"id": f"d{n}", "text": f"number{n} " + "words of a passage " * chance.randrange(1, 200)} for n in range(900)
    ]
    server = started(tmp_path)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        job = client.post("/documents", json={"documents": documents, "job": True}).json()["job"]
        while not has_ended(client, job):
            time.sleep(0.05)
        body = {"dimensions": 256, "chunking": {"strategy": "sentences"}}
        reindex = client.post("/collections/default/reindex", json=body).json()["id"]
    kills = 0
    while True:
        time.sleep(chance.random() * 0.3)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            over = has_ended(client, reindex)
            found = client.get("/search", params={"q": "number7", "mode": "keyword"}).json()["matches"]
            dimensions = client.get("/collections/default").json()["dimensions"]
            assert found[0]["document"] == "d7"
            if over or not has_ended(client, reindex):  # the index may be replaced between the questions
                assert dimensions == (256 if over else 1024)
        if over:
            break
        server.kill()
        kills += 1
        server = started(tmp_path)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get(f"/jobs/{reindex}").json()["counts"]["ready"] == 900
        client.post("/collections/default/reindex", json={"dimensions": 256}).raise_for_status()
    server.kill()

    server = started(tmp_path)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        jobs = client.get("/jobs").json()["jobs"]
        while (last := client.get(f"/jobs/{jobs[0]['id']}").json())["ended"] is None:
            time.sleep(0.05)
    server.kill()
    assert (last["kind"], last["state"], last["counts"]["ready"]) == ("reindex", "done", 900)
    assert kills > 1
    database = Database(tmp_path / "appliance.db")
    with database.write() as connection:  # what was replaced is kept for a minute
        connection.exec_driver_sql("UPDATE collection SET kept_until = NULL")
    database.close()
    server = started(tmp_path)
    server.kill()
    assert orphans(tmp_path / "appliance.db") == []


def has_ended(client: httpx.Client, job: int) -> bool:
    return client.get(f"/jobs/{job}").json()["ended"] is not None


def orphans(path: Path) -> list[str]:
    """Everything in the database, of one collection, that belongs to no document, or lacks a part of its own."""
    database = Database(path)
    with database.read() as connection:

        def count(sql: str) -> int:
            return int(connection.exec_driver_sql(sql).scalar_one())

        chunks = count("SELECT count(*) FROM chunk")
        number = count("SELECT id FROM store_collection")
        faults = {
            "integrity": count("SELECT (SELECT integrity_check FROM pragma_integrity_check) <> 'ok'"),
            "chunk without document": count(
                "SELECT count(*) FROM chunk WHERE document NOT IN "
                "(SELECT id FROM document WHERE state = 'ready' OR taken IS NOT NULL)"
            ),
            "document with a part of its chunks": count(
                "SELECT count(*) FROM document WHERE state = 'ready' AND chunks <> "
                f"(SELECT count(*) FROM chunk WHERE collection = {number} AND document = document.id)"
            ),
            "chunk that is missing": count(
                "SELECT count(*) FROM (SELECT count(*) AS there, max(ordinal) + 1 AS due FROM chunk GROUP BY document) "
                "WHERE there <> due"
            ),
            "vector without chunk": count(
                "SELECT count(*) FROM embedding WHERE chunk_id NOT IN (SELECT id FROM chunk)"
            ),
            "chunk without vector": count(
                "SELECT count(*) FROM chunk WHERE id NOT IN (SELECT chunk_id FROM embedding)"
            ),
            "words apart without chunk": count(
                "SELECT count(*) FROM chunk_segmented WHERE chunk_id NOT IN (SELECT id FROM chunk)"
            ),
            "bits": count(f"SELECT count(*) FROM vec_bits_{number}")
            - count(
                "SELECT count(*) FROM chunk JOIN store_collection AS c ON c.id = collection AND chunk.id <= signs_to"
            ),
            "words": count(f"SELECT count(*) FROM chunk_fts_{number}_docsize") - chunks,
            "count": count("SELECT chunks FROM store_collection") - chunks,
            "source without document": count(
                "SELECT count(*) FROM source WHERE document_seq NOT IN (SELECT seq FROM document)"
            ),
            "document without source": count(
                "SELECT count(*) FROM document WHERE seq NOT IN (SELECT document_seq FROM source)"
            ),
            "text without document": count(
                "SELECT count(*) FROM document_text WHERE document_seq NOT IN "
                "(SELECT seq FROM document WHERE state = 'ready')"
            ),
        }
    with database.write() as connection:
        words = f"chunk_fts_{number}"
        connection.exec_driver_sql(f"INSERT INTO {words}({words}, rank) VALUES ('integrity-check', 1)")
    database.close()
    return [f"{name}: {number}" for name, number in faults.items() if number]
