"""Jobs and events over HTTP."""

import io
import json
import os
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest


@pytest.fixture
def collection(client: httpx.Client) -> str:
    name = f"c{uuid4().hex}"
    assert client.post("/collections", json={"name": name}).status_code == 201
    return name


def ended(client: httpx.Client, job: int, *states: str) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while True:
        answer: dict[str, Any] = client.get(f"/jobs/{job}").json()
        if answer["state"] in (states or ("done", "cancelled")):
            return answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.02)


def documents(count: int) -> list[dict[str, str]]:
    return [{"id": f"d{n}", "text": f"words of number {n}"} for n in range(count)]


def zipped(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return made.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:  # type: ignore[call-overload]  # a mode of several
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return made.getvalue()


class TestDocumentsOfAJob:
    def test_a_job_is_answered_at_once_with_its_number_and_ends_by_itself(
        self, client: httpx.Client, collection: str
    ) -> None:
        answer = client.post("/documents", json={"collection": collection, "documents": documents(40), "job": True})

        body = answer.json()
        assert answer.headers["location"] == f"/jobs/{body['job']}"
        assert (answer.status_code, len(body["documents"])) == (202, 40)
        job = ended(client, body["job"])
        assert (job["collection"], job["kind"], job["state"], job["complete"]) == (
            collection,
            "documents",
            "done",
            True,
        )
        assert job["counts"] == {
            "total": 40,
            "waiting": 0,
            "ready": 40,
            "failed": 0,
            "refused": 0,
            "skipped": 0,
            "unchanged": 0,
            "moved": 0,
        }
        assert job["failures"] == []
        assert job["ended"] > job["created"]

    def test_callers_who_ask_for_no_job_see_none(self, client: httpx.Client, collection: str) -> None:
        before = client.get("/jobs").json()["jobs"]

        answer = client.post("/documents", json={"collection": collection, "text": "otters", "id": "a"})

        assert answer.status_code == 201
        assert set(answer.json()) == {"collection", "documents"}
        assert client.get("/jobs").json()["jobs"] == before

    def test_more_can_be_put_into_a_job_and_what_is_refused_is_told(
        self, client: httpx.Client, collection: str
    ) -> None:
        made = client.post(
            "/documents?job=true", json={"collection": collection, "documents": documents(2), "wait": 10}
        )
        job = made.json()["job"]
        broken = [("file", ("a.txt", b"plain words", "")), ("file", ("b.txt", b"\x00\x01\x02" * 50, ""))]

        answer = client.post("/documents", data={"collection": collection, "job": str(job), "wait": "10"}, files=broken)

        assert made.status_code == 201
        assert (answer.status_code, answer.json()["job"]) == (207, job)
        after = ended(client, job)
        assert (after["counts"]["total"], after["counts"]["ready"], after["counts"]["refused"]) == (4, 3, 1)
        assert [each["id"] for each in after["failures"]] == ["b.txt"]
        assert after["failures"][0]["error"]
        listed = client.get(f"/jobs/{job}/documents", params={"state": "ready", "limit": 2}).json()
        assert [each["id"] for each in listed["documents"]] == ["d0", "d1"]
        rest = client.get(f"/jobs/{job}/documents", params={"state": "ready", "after": listed["next"]}).json()
        assert (len(rest["documents"]), rest["next"]) == (1, None)

    def test_a_wrong_job_or_priority_is_refused_and_nothing_is_kept(
        self, client: httpx.Client, collection: str
    ) -> None:
        def put(**more: Any) -> httpx.Response:
            return client.post("/documents", json={"collection": collection, "text": "x", **more})

        assert put(job=10**9).status_code == 404
        for wrong in ("yes", "true", 0, 2**63, 1.5, [1]):
            refused = put(job=wrong)
            assert (refused.status_code, refused.json()["param"]) == (422, "job")
            assert refused.json()["detail"] == "job: true for a new job, or the number of one, is needed"
        assert put(priority=1).json()["param"] == "priority"
        assert put(job=True, priority=101).status_code == 422
        assert put(job=True, model="nothing").status_code == 404
        assert client.get("/documents", params={"collection": collection}).json()["documents"] == []
        assert client.get("/jobs", params={"collection": collection}).json()["jobs"] == []

    def test_a_paused_job_waits_can_be_resumed_and_cancelled(self, client: httpx.Client, collection: str) -> None:
        body = {"collection": collection, "documents": documents(1), "job": True}
        job = client.post("/documents", json=body).json()["job"]
        ended(client, job)
        assert client.post(f"/jobs/{job}/pause").status_code == 409

        made = client.post("/documents", json={**body, "documents": documents(500)}).json()["job"]
        paused = client.post(f"/jobs/{made}/pause")
        if paused.status_code == 200:  # it was quicker than we are otherwise
            assert paused.json()["state"] == "paused"
            assert client.post(f"/jobs/{made}/resume").json()["state"] in {"running", "done"}
            client.post(f"/jobs/{made}/pause")
        cancelled = client.post(f"/jobs/{made}/cancel")
        assert cancelled.status_code in {200, 409}
        if cancelled.status_code == 200:
            assert cancelled.json()["state"] == "cancelled"
        deadline = time.monotonic() + 10
        while client.get(f"/collections/{collection}").json()["documents"].keys() - {"ready"}:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        counts = client.get(f"/jobs/{made}").json()["counts"]
        assert counts["waiting"] == 0
        assert counts["ready"] + counts["skipped"] + counts["unchanged"] == 500

    def test_an_ended_job_is_forgotten_and_an_unknown_one_is_404(self, client: httpx.Client, collection: str) -> None:
        body = {"collection": collection, "text": "x", "job": True, "wait": 10}
        job = client.post("/documents", json=body).json()["job"]

        assert client.delete(f"/jobs/{job}").status_code == 204
        for method, path in (
            ("GET", ""),
            ("GET", "/documents"),
            ("GET", "/events"),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("POST", "/cancel"),
            ("POST", "/retry"),
            ("DELETE", ""),
        ):
            answer = client.request(method, f"/jobs/{job}{path}")
            assert (answer.status_code, answer.json()["status"]) == (404, 404)
        assert client.post(f"/jobs/{job}/skip", json={"document": "x"}).status_code == 404
        assert client.get("/jobs/zero").status_code == 422

    def test_jobs_are_listed_newest_first_in_pages(self, client: httpx.Client, collection: str) -> None:
        made = [
            client.post("/documents", json={"collection": collection, "text": str(n), "job": True}).json()["job"]
            for n in range(3)
        ]

        first = client.get("/jobs", params={"collection": collection, "limit": 2}).json()
        rest = client.get("/jobs", params={"collection": collection, "before": first["next"]}).json()

        assert [each["id"] for each in first["jobs"] + rest["jobs"]] == made[::-1]
        assert rest["next"] is None

    def test_a_file_that_moved_keeps_its_chunks(self, client: httpx.Client, collection: str) -> None:
        put = {"collection": collection, "wait": 10, "title": "t", "text": "otters hold hands"}
        client.post("/documents", json={**put, "id": "old/a"}).raise_for_status()

        answer = client.post("/documents", json={**put, "id": "new/a", "moved_from": ["old/b", "old/a"]})

        assert [each["change"] for each in answer.json()["documents"]] == ["moved"]
        listed = client.get("/documents", params={"collection": collection, "prefix": "new/"}).json()["documents"]
        assert [each["id"] for each in listed] == ["new/a"]
        found = client.get("/search", params={"collection": collection, "q": "otters"}).json()["matches"]
        assert [each["document"] for each in found] == ["new/a"]
        assert client.get("/documents/old/a", params={"collection": collection}).status_code == 404


class TestArchives:
    @pytest.mark.parametrize("name", ["notes.zip", "notes.tar", "notes.tar.gz", "notes.TGZ"])
    def test_the_files_of_an_archive_are_documents(self, client: httpx.Client, collection: str, name: str) -> None:
        files = {
            "a.md": b"# Otters\n\nThey hold hands.",
            "deep/b.txt": b"Whales sing.",
            "../../up.txt": b"It goes up.",
            "/abs\\c.txt": b"It begins at the root.",
            ".hidden": b"x",
            "__MACOSX/a.md": b"x",
            "inner.zip": b"PK",
            "empty.txt": b"",
            "broken.txt": b"\x00\x01\x02" * 50,
        }
        mode = "w" if name.endswith(".tar") else "w:gz"
        body = zipped(files) if name.endswith(".zip") else tarred(files, mode)

        answer = client.post("/documents?job=true", data={"collection": collection}, files={"file": (name, body)})

        assert (answer.status_code, answer.json()["documents"]) == (202, [])
        job = ended(client, answer.json()["job"])
        assert (job["kind"], job["name"], job["counts"]["ready"]) == ("archive", name, 4)
        listed = client.get("/documents", params={"collection": collection}).json()["documents"]
        assert {each["id"] for each in listed} == {
            "notes/a.md",
            "notes/deep/b.txt",
            "notes/up.txt",
            "notes/abs/c.txt",
        }
        refused = {each["id"]: each["error"] for each in job["failures"]}
        links = set() if name.endswith(".zip") else {"notes/link.txt"}
        assert set(refused) == {"notes/inner.zip", "notes/empty.txt", "notes/broken.txt", *links}

    def test_an_id_of_the_form_is_the_first_part_of_the_ids(self, client: httpx.Client, collection: str) -> None:
        form = {"collection": collection, "id": "2024/mail", "job": "true"}
        answer = client.post("/documents", data=form, files={"file": ("x.zip", zipped({"a.txt": b"words"}))})

        ended(client, answer.json()["job"])

        assert client.get("/documents/2024/mail/a.txt", params={"collection": collection}).status_code == 200

    @pytest.mark.parametrize(
        "body",
        [
            b"PK\x03\x04 no archive",
            b"",
            zipped({"a.txt": b"words"})[:-9],
            zipped({f"{n}.txt": b"" for n in range(10_001)}),
            zipped({"a.txt": b"words", "bomb.txt": b"a" * (30 * 2**20)}),
        ],
        ids=["nothing", "empty", "cut", "many", "bomb"],
    )
    def test_what_is_no_archive_or_over_a_bound_is_refused_whole(
        self, client: httpx.Client, collection: str, body: bytes
    ) -> None:
        answer = client.post("/documents?job=true", data={"collection": collection}, files={"file": ("x.zip", body)})

        assert (answer.status_code, answer.json()["status"]) == (422, 422)
        assert "archive" in answer.json()["detail"]
        assert client.get("/documents", params={"collection": collection}).json()["documents"] == []
        assert client.get("/jobs", params={"collection": collection}).json()["jobs"] == []

    def test_without_a_job_an_archive_is_refused_as_ever(self, client: httpx.Client, collection: str) -> None:
        archive = {"file": ("x.zip", zipped({"a.txt": b"words"}))}

        answer = client.post("/documents", data={"collection": collection}, files=archive)

        assert answer.status_code == 422


class TestFoldersOfTheServer:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = tmp_path / "srv"
        (root / "notes" / "deep").mkdir(parents=True)
        (root / "notes" / "a.md").write_text("# A\n\nOtters hold hands.")
        (root / "notes" / "deep" / "b.txt").write_text("Whales sing.")
        (root / "notes" / "photo.jpg").write_bytes(b"\xff\xd8\xff")
        (tmp_path / "secret.txt").write_text("secret")
        (root / "notes" / "out.txt").symlink_to(tmp_path / "secret.txt")
        return root

    def test_a_file_and_a_folder_below_a_root_are_read(self, start: Callable[..., Any], root: Path) -> None:
        server = start(ingest_roots=[root])
        with httpx.Client(base_url=server.url, timeout=30) as client:
            one = client.post("/documents", json={"path": "notes/a.md"}).json()
            absolute = client.post("/documents", json={"path": str(root / "notes" / "a.md"), "id": "mine"}).json()
            address = (root / "notes" / "a.md").as_uri()
            addressed = client.post("/documents", json={"path": address, "id": "mine"}).json()
            elsewhere = client.post("/documents", json={"path": address.replace("file://", "file://other.example")})
            answer = client.post("/documents", json={"folder": "notes", "priority": 3})

            assert [one["documents"][0]["id"], absolute["documents"][0]["id"]] == ["srv/notes/a.md", "mine"]
            assert addressed["documents"][0]["change"] == "unchanged"
            assert (elsewhere.status_code, "file:///" in elsewhere.json()["detail"]) == (422, True)
            job = ended(client, answer.json()["job"])
            assert answer.status_code == 202
            assert (job["kind"], job["name"], job["priority"]) == ("folder", "notes", 3)
            assert (job["counts"]["ready"], job["counts"]["unchanged"], job["counts"]["refused"]) == (1, 1, 2)

            (root / "notes" / "a.md").rename(root / "notes" / "deep" / "a.md")
            (root / "notes" / "deep" / "b.txt").unlink()
            again = client.post("/documents", json={"folder": str(root / "notes"), "prune": True}).json()["job"]
            after = ended(client, again)
            assert after["counts"]["moved"] == 1
            listed = client.get("/documents", params={"prefix": "srv/"}).json()["documents"]
            assert [each["id"] for each in listed] == ["srv/notes/deep/a.md"]

    @pytest.mark.parametrize(("name", "says"), [("similar", "/similar"), ("a\nb.md", "control")])
    def test_a_path_that_makes_no_id_wants_one(
        self, start: Callable[..., Any], root: Path, name: str, says: str
    ) -> None:
        (root / "notes" / name).write_text("Otters hold hands.")
        server = start(ingest_roots=[root])

        refused = httpx.post(f"{server.url}/documents", json={"path": f"notes/{name}"})
        named = httpx.post(f"{server.url}/documents", json={"path": f"notes/{name}", "id": "mine"})

        assert (refused.status_code, refused.json()["param"]) == (422, "id")
        assert says in refused.json()["detail"]
        assert named.status_code == 201

    @pytest.mark.parametrize(
        "path", ["../secret.txt", "/etc/passwd", "file:///etc/passwd", "notes/out.txt", "file:///%2e%2e/etc/passwd"]
    )
    def test_what_lies_elsewhere_is_403(self, start: Callable[..., Any], root: Path, path: str) -> None:
        server = start(ingest_roots=[root])

        answers = [httpx.post(f"{server.url}/documents", json={field: path}) for field in ("path", "folder")]

        assert [answer.status_code for answer in answers] == [403, 403]
        assert all("ingest_roots" in answer.json()["detail"] for answer in answers)

    def test_what_is_not_there_is_404_and_without_roots_all_is_403(
        self, start: Callable[..., Any], client: httpx.Client, root: Path
    ) -> None:
        server = start(ingest_roots=[root])

        for field in ("path", "folder"):
            assert httpx.post(f"{server.url}/documents", json={field: "nothing"}).status_code == 404
        assert httpx.post(f"{server.url}/documents", json={"path": "notes"}).status_code == 422
        (root / "round").symlink_to("round")
        answers = [httpx.post(f"{server.url}/documents", json={field: "round"}) for field in ("path", "folder")]
        assert [answer.status_code for answer in answers] == [422, 404]
        assert client.post("/documents", json={"path": "notes/a.md"}).status_code == 403
        wrong: list[dict[str, object]] = [
            {"path": "a", "text": "b"},
            {"path": "a", "prune": True},
            {"folder": "a", "job": 3},
        ]
        for body in wrong:
            assert client.post("/documents", json=body).status_code == 422

    def test_a_watched_folder_is_followed(self, start: Callable[..., Any], root: Path) -> None:
        server = start(watch_folders={str(root / "notes"): "watched"})
        old = time.time() - 60
        with httpx.Client(base_url=server.url, timeout=30) as client:

            def ids() -> dict[str, str]:
                answer = client.get("/documents", params={"collection": "watched"})
                return {each["id"]: each["state"] for each in answer.json().get("documents", [])}

            wait_for(lambda: ids() == {"notes/a.md": "ready", "notes/deep/b.txt": "ready"})
            (root / "notes" / "deep" / "new.txt").write_text("Badgers dig.")
            os.utime(root / "notes" / "deep" / "new.txt", (old, old))
            (root / "notes" / "a.md").rename(root / "notes" / "deep" / "a.md")
            wait_for(lambda: set(ids()) == {"notes/deep/a.md", "notes/deep/b.txt", "notes/deep/new.txt"})
            (root / "notes" / "deep" / "b.txt").unlink()
            wait_for(lambda: set(ids()) == {"notes/deep/a.md", "notes/deep/new.txt"})

    def test_a_watched_folder_has_one_job_that_says_what_it_could_not_read(
        self, start: Callable[..., Any], root: Path
    ) -> None:
        bad = root / "notes" / "bad.pdf"
        bad.write_bytes(b"\0\1\2 no document")
        settings = {"data": root / "data", "watch_folders": {str(root / "notes"): "watched"}}
        seen: list[dict[str, Any]] = []

        def jobs(url: str) -> list[dict[str, Any]]:
            listed = httpx.get(f"{url}/jobs", params={"collection": "watched"}).json()["jobs"]
            return [httpx.get(f"{url}/jobs/{each['id']}").json() for each in listed]

        for life in range(2):
            server = start(**settings)
            wait_for(lambda: [each["counts"]["ready"] for each in jobs(server.url)] == [2])  # noqa: B023  # called here
            wait_for(lambda: [each["counts"]["refused"] for each in jobs(server.url)] == [3])  # noqa: B023  # same
            seen += jobs(server.url)
            if life:
                bad.unlink()
                (root / "notes" / "a.md").unlink()
                wait_for(lambda: [each["counts"]["total"] for each in jobs(server.url)] == [3])  # noqa: B023  # same
                wait_for(lambda: [each["counts"]["ready"] for each in jobs(server.url)] == [1])  # noqa: B023  # same
            server.stop()

        assert [(each["id"], each["kind"], each["name"], each["state"]) for each in seen] == [
            (1, "watched", "notes", "done")
        ] * 2
        assert [{each["id"]: bool(each["error"]) for each in job["failures"]}["notes/bad.pdf"] for job in seen] == [
            True
        ] * 2
        assert str(root) not in str(seen)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class TestEvents:
    @pytest.fixture
    def stream(self, client: httpx.Client) -> Iterator[Callable[..., Iterator[dict[str, Any]]]]:
        opened: list[httpx.Response] = []

        def listen(path: str = "/events", **headers: str) -> Iterator[dict[str, Any]]:
            request = client.build_request("GET", path, headers=headers)
            answer = client.send(request, stream=True)
            opened.append(answer)
            assert answer.headers["content-type"].startswith("text/event-stream")
            return parsed(answer.iter_lines())

        yield listen
        for answer in opened:
            answer.close()

    def test_a_job_is_told_as_it_goes_and_can_be_told_again(
        self, client: httpx.Client, collection: str, stream: Callable[..., Iterator[dict[str, Any]]]
    ) -> None:
        began = client.get("/events/poll").json()["last"]
        body = {"collection": collection, "documents": documents(5), "job": True}
        job = client.post("/documents", json=body).json()["job"]

        told = []
        for event in stream(f"/jobs/{job}/events", **{"Last-Event-ID": began}):
            told.append(event)
            if event["event"] == "job" and event["data"]["state"] == "done":
                break

        done = {each["id"] for event in told if event["event"] == "documents" for each in event["data"]["documents"]}
        assert done == {f"d{n}" for n in range(5)}
        again = next(stream(f"/jobs/{job}/events", **{"Last-Event-ID": told[0]["id"]}))
        assert again["id"] == told[1]["id"]
        polled = client.get("/events/poll", params={"after": began, "job": job}).json()["events"]
        assert [each["id"] for each in polled][: len(told)] == [each["id"] for each in told]

    def test_one_who_comes_back_too_late_is_told_to_read_anew(
        self, client: httpx.Client, stream: Callable[..., Iterator[dict[str, Any]]]
    ) -> None:
        event = next(stream("/events", **{"Last-Event-ID": "0123abcd-7"}))

        assert event["event"] == "reset"
        (polled,) = client.get("/events/poll", params={"after": "nonsense"}).json()["events"]
        assert polled["event"] == "reset"

    def test_polling_waits_for_what_happens(self, client: httpx.Client, collection: str) -> None:
        last = client.get("/events/poll").json()["last"]
        later = threading.Timer(
            0.3, lambda: client.post("/documents", json={"collection": collection, "text": "x", "id": "later"})
        )
        later.start()

        while True:
            answer = client.get("/events/poll", params={"after": last, "wait": 10}).json()
            ids = [each["id"] for event in answer["events"] for each in event["data"].get("documents", [])]
            if "later" in ids:
                break
            last = answer["last"]
        later.join()

    def test_head_ends(self, client: httpx.Client) -> None:
        assert client.head("/events", timeout=5).status_code == 200

    def test_there_are_so_many_listeners_and_no_more(self, start: Callable[..., Any]) -> None:
        server = start()
        with httpx.Client(base_url=server.url, timeout=10, limits=httpx.Limits(max_connections=None)) as client:
            opened = [client.send(client.build_request("GET", "/events"), stream=True) for _ in range(64)]
            refused = client.get("/events")
            for answer in opened:
                answer.close()

            assert {answer.status_code for answer in opened} == {200}
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
            wait_for(lambda: client.head("/events").status_code == 200)

    def test_a_key_is_asked_for_and_the_server_ends_while_someone_listens(self, start: Callable[..., Any]) -> None:
        server = start(api_keys=["k"])
        keyed = {"authorization": "Bearer k"}

        assert httpx.get(f"{server.url}/events").status_code == 401
        assert httpx.get(f"{server.url}/events", headers={"host": "evil.example", **keyed}).status_code == 421
        with httpx.stream("GET", f"{server.url}/events", headers=keyed, timeout=20) as answer:
            assert answer.status_code == 200
            began = time.monotonic()
            server.stop()
            assert time.monotonic() - began < 4

    def test_metrics_count_jobs(self, client: httpx.Client) -> None:
        assert 'appliance_jobs{state="paused"}' in client.get("/metrics").text


def parsed(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    event: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if not line and "data" in event:
            yield event
            event = {}
        elif name in {"id", "event"}:
            event[name] = value
        elif name == "data":
            event[name] = json.loads(value)
