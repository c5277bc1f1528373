import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from appliance.embedding.hub import LARGEST_ANSWER, Hub
from appliance.embedding.sources import Patience, Refused, SourceFailed
from appliance.embedding.spec import HubSource

if TYPE_CHECKING:
    from tests.hub import HubServer

SOON = Patience(connect=0.5, answer=0.5, silence=0.5)
FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": bytes(5000),
    "1_Pooling/config.json": b"{}",
    "onnx/model.onnx": b"graph",
    "tokenizer.json": b"{}",
}


@pytest.fixture
def client(hub: "HubServer") -> Hub:
    return Hub(patience=SOON, endpoint=hub.url)


def source_of(commit: str) -> HubSource:
    return HubSource(kind="hub", repo="org/m", revision=commit)


def test_a_tree_is_read_to_its_last_page_with_the_hash_that_the_hub_has_of_each_file(
    hub: "HubServer", client: Hub, hub_module: Any
) -> None:
    commit = hub.put("org/m", FILES).commit

    tree = client.tree("org/m", commit)

    assert tree.keys() == FILES.keys()
    assert len(hub.asked) == 3  # seven entries, folders counted
    assert tree["model.safetensors"].sha256 == hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    assert (tree["config.json"].blob, tree["config.json"].sha256) == (hub_module.blob(FILES["config.json"]), "")
    assert tree["model.safetensors"].size == 5000


def test_the_hash_of_a_small_file_is_gits(hub_module: Any) -> None:
    assert (
        hub_module.blob(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
    )  # `echo hello | git hash-object -w`


def test_of_a_folder_only_that_is_listed_and_names_are_below_it(hub: "HubServer", client: Hub) -> None:
    commit = hub.put("org/m", FILES).commit

    assert client.tree("org/m", commit, "onnx").keys() == {"model.onnx"}


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1"])
def test_a_branch_or_a_tag_is_a_commit(revision: str, hub: "HubServer", client: Hub) -> None:
    repository = hub.put("org/m", FILES, cardData={"license": "mit"}, tags=["license:mit"])

    commit = client.commit("org/m", revision)

    assert (commit.sha, commit.about, commit.tags) == (repository.commit, {"license": "mit"}, ["license:mit"])


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([{"type": "file", "path": "a", "size": 1, "oid": "x"}], "makes no sense"),
        ([{"type": "file", "path": "a", "size": -1, "oid": "0" * 40}], "makes no sense"),
        ([{"type": "file", "path": "a", "oid": "0" * 40, "lfs": {"oid": "sha", "size": 1}}], "makes no sense"),
        ([{"type": "file", "path": ["a"], "size": 1, "oid": "0" * 40}], "makes no sense"),
        ([{"type": "file", "path": "a", "size": 1, "oid": "0" * 40}] * 2, "names one twice"),
        ([{"type": "file", "path": f"{n}", "size": 1, "oid": "0" * 40} for n in range(100_000)], "more than 20000"),
    ],
    ids=["no hash", "negative", "no sha256", "no name", "twice", "100,000 files"],
)
def test_a_tree_that_makes_no_sense_or_is_too_large_is_refused(
    entries: list[dict[str, Any]], says: str, hub: "HubServer", client: Hub
) -> None:
    repository = hub.put("org/m", FILES)
    repository.entries = entries

    with pytest.raises(SourceFailed, match=says):
        client.tree("org/m", repository.commit)


def test_a_tree_without_end_ends(hub: "HubServer", client: Hub) -> None:
    repository = hub.put("org/m", FILES)
    repository.next = "https://elsewhere.invalid/api"

    with pytest.raises(SourceFailed, match="does not end"):
        client.tree("org/m", repository.commit)

    assert len(hub.asked) == 100  # all of them here: a link's host is not asked


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"[" * 1_000_000, "makes no sense"),
        (b"[" * 200_000 + b"]" * 200_000, "makes no sense"),
        (b'{"sha": "' + b"0" * 40 + b'", "cardData": ' + b"[" * 90_000 + b"]" * 90_000 + b"}", "makes no sense"),
        (b'{"sha": "main"}', "makes no sense"),
        (b"<html>", "makes no sense"),
        (b"[" + b" " * LARGEST_ANSWER, "does not end"),
    ],
    ids=["open", "nested", "nested inside", "no commit", "no JSON", "large"],
)
def test_what_is_no_answer_is_refused(raw: bytes, says: str, hub: "HubServer", client: Hub) -> None:
    repository = hub.put("org/m", FILES)
    repository.raw = raw

    for ask in (lambda: client.commit("org/m", "main"), lambda: client.tree("org/m", repository.commit)):
        with pytest.raises(SourceFailed, match=says):
            ask()


def test_a_small_file_is_read_whole_and_checked(hub: "HubServer", client: Hub) -> None:
    repository = hub.put("org/m", FILES)
    tree = client.tree("org/m", repository.commit)

    for name in ("config.json", "model.safetensors"):
        assert client.read(source_of(repository.commit), name, tree[name]) == FILES[name]
        repository.faults[name] = bytes(len(FILES[name]) - 1) + b"?"
        with pytest.raises(Refused, match="wrong bytes"):
            client.read(source_of(repository.commit), name, tree[name])


def test_a_file_that_is_too_large_to_be_read_is_not_asked_for(hub: "HubServer", client: Hub) -> None:
    repository = hub.put("org/m", {"config.json": bytes(LARGEST_ANSWER + 1)})
    tree = client.tree("org/m", repository.commit)

    with pytest.raises(Refused, match="4 MB"):
        client.read(source_of(repository.commit), "config.json", tree["config.json"])

    assert len(hub.asked) == 1


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(
    hub: "HubServer", client: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    repository = hub.put("org/m", FILES)
    repository.gate = "hf_secret"
    commit = client.commit("org/m", "main").sha
    got = {}

    tree = client.tree("org/m", commit)
    client.fetch(source_of(commit), list(FILES), lambda name, chunks: got.update({name: b"".join(chunks)}))

    assert got == FILES
    assert tree.keys() == FILES.keys()
    assert set(hub.tokens) == {"Bearer hf_secret"}
    assert hub.cdn_tokens == [None, None, None]


@pytest.mark.parametrize("token", ["", "hf_wrong"])
def test_a_gated_model_is_named_with_what_to_do(
    token: str, hub: "HubServer", client: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    repository = hub.put("org/m", FILES)
    repository.gate = "hf_secret"

    for ask in (
        lambda: client.commit("org/m", "main"),
        lambda: client.tree("org/m", repository.commit),
        lambda: client.fetch(source_of(repository.commit), ["config.json"], lambda *_: None),
    ):
        with pytest.raises(
            SourceFailed, match="the model org/m is gated: accept its terms on the hub and set HF_TOKEN"
        ) as caught:
            ask()
        assert "hf_" not in str(caught.value)


def test_a_token_that_fits_into_no_header_is_not_shown(
    hub: "HubServer", client: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sec\x01ret")

    with pytest.raises(SourceFailed, match=r"HF_TOKEN is malformed\)$"):
        client.commit("org/m", "main")

    assert hub.asked == []


def test_a_repository_that_is_not_there_may_be_one_that_is_not_for_everybody(hub: "HubServer", client: Hub) -> None:
    with pytest.raises(Refused, match="org/none is gated or private, or there is no such model"):
        client.commit("org/none", "main")


def test_a_revision_that_is_not_there_is_a_404(hub: "HubServer", client: Hub) -> None:
    hub.put("org/m", FILES)

    with pytest.raises(Refused, match="HTTP status 404"):
        client.commit("org/m", "nothing")


def test_a_status_of_the_cdn_says_nothing_of_terms(hub: "HubServer", client: Hub) -> None:
    repository = hub.put("org/m", FILES)
    repository.faults["tokenizer.json"] = 403

    with pytest.raises(SourceFailed, match=r"^tokenizer\.json: HTTP status 403$"):
        client.fetch(source_of(repository.commit), ["tokenizer.json"], lambda *_: None)
