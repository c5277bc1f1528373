"""Files that a card knows by the revision of their repository alone; and licences, which are remembered beside them."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from appliance.embedding.pull import ModelFiles, Progress
from appliance.embedding.sources import Patience
from appliance.embedding.spec import FileSpec, HubSource, OnnxSpec
from appliance.errors import EngineUnavailable, LicenseNotAccepted, StoreFull, UpstreamFailed

if TYPE_CHECKING:
    from tests.hub import HubServer, Repository

WEIGHTS = bytes(range(256)) * 4096
FILES = {"model.safetensors": WEIGHTS, "config.json": b'{"hidden_size": 8}', "2_Dense/config.json": b"{}"}
SOON = Patience(connect=0.5, answer=0.5, silence=0.5, pip=1)


@pytest.fixture
def repository(hub: "HubServer") -> "Repository":
    return hub.put("org/m", FILES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def files(folder: Path, hub: "HubServer") -> ModelFiles:
    return ModelFiles(folder, patience=SOON, hub=hub.url)


def card(*repositories: "Repository", name: str = "m", repo: str = "org/m", **keys: Any) -> OnnxSpec:
    sources = tuple(HubSource(kind="hub", repo=repo, revision=each.commit) for each in repositories)
    keys = {"pinned": tuple(FILES), "sources": sources} | keys
    return OnnxSpec(name=name, family="bert", engine="onnx", dimensions=8, max_tokens=16, **keys)


def pulled(files: ModelFiles, spec: OnnxSpec) -> list[Progress]:
    said: list[Progress] = []
    files.pull(spec, said.append)
    return said


def kept(folder: Path) -> set[str]:
    """What is under the models folder, but its lock."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"lock"}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


WHOLE = {f"blobs/sha256-{digest(content)}" for content in FILES.values()}


def manifest(repository: "Repository", name: str = "m") -> str:
    return f"manifests/{name}-{repository.commit[:12]}.json"


def test_pinned_files_come_with_the_hashes_of_the_hubs_tree_and_are_known_by_their_own_from_then_on(
    files: ModelFiles, folder: Path, repository: "Repository"
) -> None:
    spec = card(repository)

    assert not files.present(spec)
    assert (files.size(spec), files.modified(spec)) == (0, None)
    pulled(files, spec)

    offline = ModelFiles(folder, offline=True)
    assert offline.present(spec)
    assert {name: path.read_bytes() for name, path in offline.paths(spec).items()} == FILES
    assert offline.size(spec) == sum(len(content) for content in FILES.values())
    assert offline.modified(spec) is not None
    assert kept(folder) == WHOLE | {manifest(repository)}
    told = json.loads((folder / manifest(repository)).read_text())
    assert told["files"]["config.json"] == {"sha256": digest(FILES["config.json"]), "size": len(FILES["config.json"])}


def test_progress_of_a_file_whose_sha256_nobody_knows_has_gits_hash(
    files: ModelFiles, repository: "Repository", hub_module: Any
) -> None:
    said = pulled(files, card(repository))

    small = [each for each in said if each.file == "config.json"][-1]
    assert (small.digest, small.total) == (f"sha1:{hub_module.blob(FILES['config.json'])}", len(FILES["config.json"]))
    assert {each.digest for each in said if each.file == "model.safetensors"} == {f"sha256:{digest(WEIGHTS)}"}


def test_what_is_here_is_checked_by_the_remembered_hash_without_the_hub(
    files: ModelFiles, hub: "HubServer", repository: "Repository", folder: Path
) -> None:
    spec = card(repository)
    pulled(files, spec)
    asked = len(hub.asked)
    damaged = files.paths(spec)["config.json"]

    pulled(ModelFiles(folder, offline=True), spec)
    damaged.write_bytes(bytes(len(FILES["config.json"])))
    pulled(files, spec)

    assert hub.asked[asked:] == [f"/org/m/resolve/{repository.commit}/config.json"]
    assert damaged.read_bytes() == FILES["config.json"]


def test_weights_that_another_model_has_are_not_fetched_again(
    files: ModelFiles, hub: "HubServer", repository: "Repository", folder: Path
) -> None:
    pulled(files, card(repository))
    other = card(repository, name="other")
    asked = len(hub.cdn_tokens)

    pulled(files, other)
    files.remove(other, keep=[card(repository)])

    assert len(hub.cdn_tokens) == asked
    assert files.present(card(repository))
    assert not files.present(other)
    assert kept(folder) == WHOLE | {manifest(repository)}


def test_removing_a_model_removes_its_files_and_its_manifest(
    files: ModelFiles, repository: "Repository", folder: Path
) -> None:
    spec = card(repository)
    pulled(files, spec)

    files.remove(spec, keep=[])

    assert kept(folder) == set()
    assert not files.present(spec)
    with pytest.raises(EngineUnavailable, match="appliance pull m`"):
        files.paths(spec)


def test_a_card_that_pins_another_file_as_well_is_pulled_again(files: ModelFiles, hub: "HubServer") -> None:
    repository = hub.put("org/m", FILES | {"tokenizer.json": b"{}"})
    pulled(files, card(repository))
    more = card(repository, pinned=(*FILES, "tokenizer.json"))

    assert not files.present(more)
    pulled(files, more)

    assert files.paths(more)["tokenizer.json"].read_bytes() == b"{}"


def test_hashed_and_pinned_files_may_be_on_one_card(
    files: ModelFiles, repository: "Repository", hub: "HubServer"
) -> None:
    known = {"model.safetensors": FileSpec(sha256=digest(WEIGHTS), size=len(WEIGHTS))}
    spec = card(repository, files=known, pinned=("config.json",))

    pulled(files, spec)

    assert {name: path.read_bytes() for name, path in files.paths(spec).items()} == {
        name: FILES[name] for name in ("model.safetensors", "config.json")
    }


@pytest.mark.parametrize(
    ("name", "fault", "says"),
    [
        ("config.json", bytes(len(FILES["config.json"])), "config.json: wrong bytes (git's sha1"),
        ("config.json", FILES["config.json"] + b" ", "config.json: more than its 18 bytes"),
        ("config.json", b"", "config.json: 0 of its 18 bytes"),
        ("config.json", "cut", "cannot be reached"),
        ("config.json", "stuck", "no answer in time"),
        ("config.json", 500, "config.json: HTTP status 500"),
        ("model.safetensors", WEIGHTS[:-1] + b"?", "model.safetensors: wrong bytes (sha256"),
        ("model.safetensors", WEIGHTS + b"?", "model.safetensors: more than its 1048576 bytes"),
        ("model.safetensors", "cut", "cannot be reached"),
        ("model.safetensors", "stuck", "no answer in time"),
        ("model.safetensors", 404, "model.safetensors: HTTP status 404"),
    ],
)
def test_a_hub_that_gives_other_bytes_than_its_own_tree_says_is_refused(
    *, name: str, fault: Any, says: str, files: ModelFiles, repository: "Repository", folder: Path
) -> None:
    repository.faults[name] = fault
    started = time.monotonic()

    with pytest.raises(UpstreamFailed) as caught:
        pulled(files, card(repository))

    assert says in caught.value.message
    assert time.monotonic() - started < 3
    assert not files.present(card(repository))
    assert kept(folder) <= WHOLE - {f"blobs/sha256-{digest(FILES[name])}"}


def test_what_one_hub_has_wrong_another_may_have_right(
    files: ModelFiles, repository: "Repository", hub: "HubServer"
) -> None:
    repository.faults["config.json"] = b"x"
    right = hub.put("other/m", FILES | {"README.md": b"mirrored"})
    sources = [HubSource(kind="hub", repo="org/m", revision=repository.commit)]
    sources.append(HubSource(kind="hub", repo="other/m", revision=right.commit))
    spec = card(sources=tuple(sources))

    pulled(files, spec)

    assert {name: path.read_bytes() for name, path in files.paths(spec).items()} == FILES


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"config.json": b"{}"}, "model.safetensors, 2_Dense/config.json: not in"),
        (FILES | {"config.json": b""}, "empty"),
    ],
)
def test_a_file_that_the_repository_lacks_or_that_is_empty_is_named(
    held: dict[str, bytes], says: str, files: ModelFiles, hub: "HubServer", folder: Path
) -> None:
    repository = hub.put("org/m", held)

    with pytest.raises(UpstreamFailed, match=says):
        pulled(files, card(repository))

    assert kept(folder) == set()


def test_files_larger_than_the_disk_are_refused_before_they_are_asked_for(
    files: ModelFiles, repository: "Repository", hub: "HubServer"
) -> None:
    entries = repository.tree
    for entry in entries:
        if "lfs" in entry:
            entry["lfs"]["size"] = 1 << 60
    repository.entries = entries

    with pytest.raises(StoreFull, match="MB are needed"):
        pulled(files, card(repository))

    assert all("/tree/" in path for path in hub.asked)


def test_offline_nothing_is_asked(folder: Path, repository: "Repository", hub: "HubServer") -> None:
    with pytest.raises(UpstreamFailed, match="nothing is fetched: offline"):
        pulled(ModelFiles(folder, offline=True, hub=hub.url), card(repository))

    assert hub.asked == []


def program(spec: OnnxSpec, folder: Path, hub: "HubServer", *, before: str = "") -> list[str]:
    """A process that pulls, and says so where the disk is full."""
    return [
        sys.executable,
        "-B",
        "-c",
        f"""
from pathlib import Path
from appliance.embedding.pull import ModelFiles
from appliance.embedding.spec import OnnxSpec
from appliance.errors import StoreFull
{before}
try:
    spec = OnnxSpec.model_validate_json({spec.model_dump_json()!r})
    ModelFiles(Path({str(folder)!r}), hub={hub.url!r}).pull(spec, lambda _: None)
except StoreFull as error:
    print("full:", error.message)
""",
    ]


def test_when_the_disk_fills_up_nothing_of_the_model_stays(
    folder: Path, repository: "Repository", hub: "HubServer"
) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    spec = card(repository, pinned=("config.json", "model.safetensors"))

    answer = subprocess.run(program(spec, folder, hub, before=limit), stdout=subprocess.PIPE, text=True, check=True)

    assert answer.stdout.startswith("full:")
    assert kept(folder) == set()


def test_a_pull_killed_in_the_middle_is_cleaned_up_after_and_done_by_the_next(
    files: ModelFiles, folder: Path, repository: "Repository", hub: "HubServer"
) -> None:
    repository.faults["model.safetensors"] = "stuck"
    with subprocess.Popen(program(card(repository), folder, hub)) as child:
        until = time.monotonic() + 20
        while not any(name.endswith(".part") for name in kept(folder)) and time.monotonic() < until:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    left = kept(folder)
    (folder / "manifests").mkdir()
    (folder / "manifests" / "m-0.json.1234.part").write_text("half")
    repository.faults.clear()

    pulled(files, card(repository))

    assert [name for name in left if name.endswith(".part")]
    assert kept(folder) == WHOLE | {manifest(repository)}


def _empty(path: Path) -> None:
    path.write_text("")


def _other_hash(path: Path) -> None:
    path.write_text(path.read_text().replace(digest(WEIGHTS), "../../etc/passwd"))


def _huge(path: Path) -> None:
    with path.open("ab") as record:
        record.truncate(2 << 20)


def _of_another_card(path: Path) -> None:
    path.write_text(path.read_text().replace('"card": "m"', '"card": "n"').replace('"card":"m"', '"card":"n"'))


def _of_another_revision(path: Path) -> None:
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"revision": told["revision"][:12] + "0" * 28}))


def _nested(path: Path) -> None:
    path.write_text("[" * 100_000)


@pytest.mark.parametrize("damage", [_empty, _other_hash, _huge, _of_another_card, _of_another_revision, _nested])
def test_a_manifest_that_makes_no_sense_is_as_if_it_were_not_there(
    damage: Callable[[Path], None], files: ModelFiles, folder: Path, repository: "Repository"
) -> None:
    spec = card(repository)
    pulled(files, spec)

    damage(folder / manifest(repository))

    assert not files.present(spec)
    pulled(files, spec)
    assert files.present(spec)


# --- licences ---------------------------------------------------------------------------------------------------------


def test_a_licence_is_accepted_before_anything_is_fetched(
    files: ModelFiles, repository: "Repository", hub: "HubServer", folder: Path
) -> None:
    spec = card(repository, license="cc-by-nc-4.0", accept_license=True)

    with pytest.raises(LicenseNotAccepted, match=r"the licence of m \(cc-by-nc-4.0\) has to be accepted"):
        pulled(files, spec)
    assert hub.asked == []
    files.accept(spec)
    pulled(files, spec)

    assert ModelFiles(folder).accepted(spec)
    assert files.present(spec)


def test_what_was_accepted_is_one_card_and_one_licence(files: ModelFiles, repository: "Repository") -> None:
    spec = card(repository, license="cc-by-nc-4.0", accept_license=True)

    files.accept(spec)

    assert files.accepted(spec)
    assert files.accepted(card(repository))
    assert not files.accepted(card(repository, license="gemma", accept_license=True))
    assert not files.accepted(card(repository, name="n", license="cc-by-nc-4.0", accept_license=True))


@pytest.mark.parametrize("damage", [_empty, _nested, _of_another_card, _huge])
def test_an_acceptance_that_makes_no_sense_is_none(
    damage: Callable[[Path], None], files: ModelFiles, repository: "Repository", folder: Path
) -> None:
    spec = card(repository, license="cc-by-nc-4.0", accept_license=True)
    files.accept(spec)

    damage(folder / "licenses" / "m.json")

    assert not files.accepted(spec)
