"""`appliance pull organisation/name`, against a hub on loopback that speaks as the real one does."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from rich.console import Console
from typer.testing import CliRunner

from appliance.cli import app
from appliance.cli.bringing import bring
from appliance.cli.cards import cards_of, show_license
from appliance.cli.models import embedded, listed
from appliance.embedding.pull import ModelFiles
from appliance.embedding.spec import Card, OnnxSpec, read_card
from appliance.errors import ApplianceError, InvalidInput
from appliance.settings import Settings

if TYPE_CHECKING:
    from tests.hub import HubServer

MINE = "org/Tiny.Model"


@pytest.fixture(scope="session")
def held(hub_module: Any) -> Mapping[str, bytes]:
    """What sentence-transformers save."""
    files: dict[str, bytes] = hub_module.sentence_transformer()
    return files


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is built of the models, once for all tests."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture
def data(tmp_path: Path, graphs: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "cache").symlink_to(graphs)
    return folder


class Answer(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def pull(hub: "HubServer", data: Path) -> Callable[..., Answer]:
    """`appliance pull` in this process, for all that has no card yet or gets a new one."""

    def _pull(asked: str, *, name: str | None = None, accept: bool = False, offline: bool = False) -> Answer:
        said = StringIO()
        console = Console(file=said, width=200, highlight=False, markup=False)

        def licensed(files: ModelFiles, card: Card) -> None:
            show_license(files, card, accept=accept, command=asked, console=console)

        settings = Settings(data=data, offline=offline)
        try:
            card = bring(
                settings, asked, name=name, cards=cards_of(settings), licensed=licensed, console=console, hub=hub.url
            )
        except ApplianceError as error:
            said.write(f"error: {error.message}\n")
            return Answer(2 if isinstance(error, InvalidInput) else 1, "", said.getvalue())
        return Answer(0, f"{card.name} is installed\n", said.getvalue())

    return _pull


def command(*arguments: str, data: Path) -> list[str]:
    return [sys.executable, "-m", "appliance", *arguments, "--data", str(data)]


def environment(hub: "HubServer", **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("APPLIANCE_")}
    return clean | {"HF_ENDPOINT": hub.url, "COLUMNS": "200"} | more


def run(
    *arguments: str, hub: "HubServer", data: Path, before: str = "", **more: str
) -> "subprocess.CompletedProcess[str]":
    called = command(*arguments, data=data)
    if before:
        script = f"{before}\nimport sys\nsys.argv = {called[2:]!r}\nfrom appliance.cli import main\nmain()"
        called = [sys.executable, "-B", "-c", script]
    return subprocess.run(
        called,
        env=environment(hub, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def kept(data: Path) -> set[str]:
    """Every file of models and cards, but the lock."""
    files = [path for folder in ("models", "cards") for path in (data / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(data)) for path in files} - {"models/lock"}


def test_a_model_that_no_card_names_is_brought_tried_and_embeds(
    hub: "HubServer", held: Mapping[str, bytes], data: Path
) -> None:
    commit = hub.put(MINE, held, cardData={"license": "mit"}).commit

    answer = run("pull", MINE, hub=hub, data=data)
    settings = Settings(data=data)
    rows = listed(cards_of(settings), settings)
    embedding = run("embed", "hello", "--model", MINE.lower(), "--json", hub=hub, data=data, APPLIANCE_OFFLINE="1")

    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "tiny.model is installed\n"
    card = data / "cards" / "tiny.model.toml"
    assert card.read_text() in answer.stderr
    assert re.search(r"^licence: mit$", answer.stderr, re.MULTILINE)
    assert "tried it: a sentence of 24 tokens became 32 numbers\nwrote cards/tiny.model.toml\n" in answer.stderr
    assert read_card(card).aliases == (MINE,)
    [row] = [row for row in rows if row["name"] == "tiny.model"]
    assert row["installed"]
    assert row["size"] == sum(len(held[name]) for name in ("model.safetensors", "config.json", "tokenizer.json"))
    [vector] = json.loads(embedding.stdout)["embeddings"]
    assert abs(sum(value * value for value in vector) - 1) < 1e-5
    assert f"models/manifests/tiny.model-{commit[:12]}.json" in kept(data)


def test_a_running_pull_serves_what_it_brought(
    pull: Callable[..., Answer], hub: "HubServer", held: Mapping[str, bytes], start: Any, data: Path
) -> None:
    import httpx

    hub.put(MINE, held)
    assert pull(MINE, name="mine:1").returncode == 0

    server = start(data=data)
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "mine:1", "input": ["a", "b"]}, timeout=30)

    assert [len(each["embedding"]) for each in answer.json()["data"]] == [32, 32]
    assert (data / "cards" / "mine-1.toml").exists()


def test_a_cross_encoder_is_brought_as_a_reranker(
    pull: Callable[..., Answer], hub: "HubServer", hub_module: Any, data: Path
) -> None:
    hub.put("org/rank", hub_module.cross_encoder(labels=2), tags=["license:mit"])

    answer = pull("org/rank")

    assert answer.returncode == 0, answer.stderr
    assert "tried it: a passage got the score 0." in answer.stderr
    assert read_card(data / "cards" / "rank.toml").task == "rerank"


def test_pulled_again_a_model_is_checked_and_only_a_revision_makes_its_card_anew(
    pull: Callable[..., Answer], hub: "HubServer", held: Mapping[str, bytes], data: Path
) -> None:
    old = hub.put(MINE, held).commit
    pull(MINE)
    card = data / "cards" / "tiny.model.toml"
    card.write_text(mine := card.read_text().replace("max_tokens = 24", "max_tokens = 20"))
    again = pull(f"{MINE}@main")
    changed = {**held, "config_sentence_transformers.json": b'{"prompts": {"query": "q: "}}'}
    new = hub.put(MINE, changed).commit
    asked = len(hub.asked)

    same = run("pull", MINE, hub=hub, data=data)
    assert len(hub.asked) == asked
    newer = pull(f"{MINE}@main")

    assert (again.returncode, same.returncode, newer.returncode) == (0, 0, 0)
    assert f"`appliance pull {MINE}@main` looks for a newer revision" in same.stderr
    assert "the card that was there is cards/tiny.model.toml.old now" in again.stderr
    assert mine != card.read_text()
    made = read_card(card)
    assert isinstance(made, OnnxSpec)
    assert made.prefixes.query == "q: "
    manifests = {name for name in kept(data) if "manifests" in name}
    assert manifests == {f"models/manifests/tiny.model-{new[:12]}.json"}
    assert old != new


def test_a_revision_may_be_named_from_the_start(
    pull: Callable[..., Answer], hub: "HubServer", held: Mapping[str, bytes], data: Path
) -> None:
    commit = hub.put(MINE, held).commit

    for revision in ("v1.0", "refs/pr/1", commit):
        answer = pull(f"{MINE}@{revision}")
        assert answer.returncode == 0, answer.stderr
    lost = pull(f"{MINE}@v9")

    assert lost.returncode == 2
    assert f"error: {MINE} at revision v9 cannot be had from the hub: HTTP status 404" in lost.stderr


@pytest.mark.parametrize(
    "asked", ["org/../etc", "../../etc", "org/m@../x", "org/m@", "org/m/x@main", "org/m@a b", "org/.m"]
)
def test_what_is_no_repository_is_refused_unasked(
    pull: Callable[..., Answer], asked: str, hub: "HubServer", data: Path
) -> None:
    answer = pull(asked)

    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.count("error: ") == 1
    assert hub.asked == []
    assert kept(data) == set()


def test_a_name_that_another_model_has_is_refused(
    pull: Callable[..., Answer], hub: "HubServer", held: Mapping[str, bytes], data: Path
) -> None:
    hub.put(MINE, held)
    (data / "cards").mkdir(parents=True)
    (data / "cards" / "mine.toml").write_text(
        'name = "hers"\naliases = ["tiny.model"]\nengine = "hash"\nfamily = "hash"\ndimensions = 64\nmax_tokens = 99\n'
    )
    for name, says in (
        ("hash", "hash is the name of another model, hash"),
        ("all-MiniLM", "'all-MiniLM' cannot be a model's name"),
        ("all-minilm", "all-minilm is the name of another model, all-minilm-l6-v2"),
        ("../x", "'../x' cannot be a model's name"),
        ("mine", "cards/mine.toml is another model's card"),
    ):
        answer = pull(MINE, name=name)
        assert (answer.returncode, says in answer.stderr) == (2, True), answer.stderr

    answer = pull(MINE)

    assert answer.stdout == "org-tiny.model is installed\n"


def test_a_model_that_has_a_card_already_is_thatcards_of(
    pull: Callable[..., Answer], hub: "HubServer", held: Mapping[str, bytes], data: Path
) -> None:
    shipped = "sentence-transformers/all-MiniLM-L6-v2"
    hub.put(shipped, held)
    revision = pull(f"{shipped}@main")
    named = pull(f"{shipped}@main", name="tiny")

    assert revision.returncode == 2
    assert "comes with the appliance, all-minilm-l6-v2" in revision.stderr
    assert named.returncode == 0, named.stderr
    assert read_card(data / "cards" / "tiny.toml").aliases == ()


def test_a_card_of_ones_own_is_not_made_anew_unasked(
    pull: Callable[..., Answer], hub: "HubServer", held: Mapping[str, bytes], data: Path
) -> None:
    hub.put(MINE, held)
    pull(MINE)
    card = data / "cards" / "tiny.model.toml"
    card.write_text(text := card.read_text().replace(f'aliases = ["{MINE}"]\n', ""))

    answer = pull(MINE)

    assert answer.returncode == 2
    assert f"the card tiny.model is for {MINE} already: `appliance pull tiny.model`" in answer.stderr
    assert card.read_text() == text


def test_a_licence_that_may_forbid_something_is_shown_and_refused_until_it_is_accepted(
    pull: Callable[..., Answer], hub: "HubServer", held: Mapping[str, bytes], data: Path
) -> None:
    hub.put(MINE, held, cardData={"license": "cc-by-nc-4.0"})

    refused = pull(MINE)
    assert (kept(data), hub.cdn_tokens) == (set(), [])
    accepted = pull(MINE, accept=True)
    again = pull(f"{MINE}@main")

    assert refused.returncode == 1
    assert "licence: cc-by-nc-4.0\n" in refused.stderr
    assert f"`appliance pull {MINE} --accept-licence`" in refused.stderr
    assert (accepted.returncode, again.returncode) == (0, 0)


def test_the_licence_of_a_card_is_accepted_by_a_flag_in_both_spellings(
    hub: "HubServer", held: Mapping[str, bytes], data: Path
) -> None:
    commit = hub.put(MINE, held).commit
    (data / "cards").mkdir()
    for name in ("x", "y"):
        (data / "cards" / f"{name}.toml").write_text(
            f'name = "{name}"\nlicense = "cc-by-nc-4.0"\naccept_license = true\nengine = "onnx"\nfamily = "bert"\n'
            'dimensions = 32\nmax_tokens = 16\npinned = ["config.json"]\n'
            f'sources = [{{ kind = "hub", repo = "{MINE}", revision = "{commit}" }}]\n'
        )

    refused = run("pull", "x", hub=hub, data=data)
    asked = len(hub.asked)
    accepted = [
        run("pull", name, flag, hub=hub, data=data).returncode
        for name, flag in (("x", "--accept-licence"), ("y", "--accept-license"))
    ]

    assert (refused.returncode, asked, accepted) == (1, 0, [0, 0])
    assert refused.stderr.startswith("licence: cc-by-nc-4.0\nerror: the licence of x (cc-by-nc-4.0) may forbid")


def test_at_a_terminal_the_licence_is_asked_about(hub: "HubServer", held: Mapping[str, bytes], data: Path) -> None:
    hub.put(MINE, held, cardData={"license": "gemma"})
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("pull", MINE, data=data),
        env=environment(hub),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        close_fds=True,
    )
    os.close(theirs)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(ours, 1024)
    os.write(ours, b"y\n")
    try:
        while chunk := os.read(ours, 4096):
            said += chunk
    except OSError:  # the other side has closed it
        pass
    os.close(ours)

    assert process.wait(30) == 0, said.decode()
    assert b"licence: gemma" in said
    assert (data / "models" / "licenses" / "tiny.model.json").exists()


def test_a_gated_model_says_what_to_do_and_comes_with_the_token(
    *,
    pull: Callable[..., Answer],
    hub: "HubServer",
    held: Mapping[str, bytes],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.put(MINE, held).gate = "hf_secret"

    without = pull(MINE)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    wrong = pull(MINE)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    right = pull(MINE)

    for refused in (without, wrong):
        assert refused.returncode == 2
        assert f"the model {MINE} is gated: accept its terms on the hub and set HF_TOKEN" in refused.stderr
    assert right.returncode == 0, right.stderr
    assert set(hub.cdn_tokens) == {None}
    assert "hf_" not in "".join(each.stdout + each.stderr for each in (without, wrong, right))
    assert not [path for path in data.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


def test_the_token_is_on_no_command_line_and_a_killed_pull_is_done_by_the_next(
    *,
    pull: Callable[..., Answer],
    hub: "HubServer",
    held: Mapping[str, bytes],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository = hub.put(MINE, held)
    repository.gate = "hf_secret"
    repository.faults["model.safetensors"] = "stuck"
    with subprocess.Popen(
        command("pull", MINE, data=data),
        env=environment(hub, HF_TOKEN="hf_secret"),  # noqa: S106  no password
        stderr=subprocess.DEVNULL,
    ) as child:
        until = time.monotonic() + 30
        while not list(data.rglob("*.part")) and time.monotonic() < until:
            time.sleep(0.02)
        lines = [_command_line(path) for path in Path("/proc").glob("[0-9]*")]
        child.send_signal(signal.SIGKILL)

    assert any(MINE.encode() in line for line in lines)
    assert not any(b"hf_secret" in line for line in lines)
    repository.faults.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert pull(MINE).returncode == 0
    assert not list(data.rglob("*.part"))


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def test_what_is_refused_leaves_nothing(
    pull: Callable[..., Answer], hub: "HubServer", held: Mapping[str, bytes], data: Path
) -> None:
    hub.put(MINE, {**held, "config.json": b'{"model_type": "stranger", "hidden_size": 32}'})

    answer = pull(MINE)

    assert answer.returncode == 2
    assert f"error: {MINE} has an architecture that is not known here (stranger)" in answer.stderr
    assert hub.cdn_tokens == []
    assert kept(data) == set()


def test_a_model_that_does_not_work_is_taken_away_again(
    pull: Callable[..., Answer], hub: "HubServer", held: Mapping[str, bytes], data: Path
) -> None:
    hub.put(MINE, {**held, "model.safetensors": b"no weights at all"})

    answer = pull(MINE)

    assert answer.returncode == 1
    assert "error: tiny.model cannot be made ready for ONNX Runtime" in answer.stderr
    assert kept(data) == set()


def test_when_a_newer_revision_does_not_work_the_old_one_stays(
    pull: Callable[..., Answer], hub: "HubServer", held: Mapping[str, bytes], data: Path
) -> None:
    hub.put(MINE, held)
    pull(MINE)
    before = kept(data)
    hub.put(MINE, {**held, "model.safetensors": b"no weights at all"})

    answer = pull(f"{MINE}@main")

    assert answer.returncode == 1
    assert kept(data) == before
    assert embedded(Settings(data=data, model=MINE), ["a"], kind="document", dimensions=None).vectors.shape == (1, 32)


def test_a_disk_that_is_full_leaves_no_card_and_no_files(
    hub: "HubServer", held: Mapping[str, bytes], data: Path
) -> None:
    hub.put(MINE, held)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"

    answer = run("pull", MINE, hub=hub, data=data, before=limit)

    assert answer.returncode == 1
    assert "error: the models folder cannot be written: File too large" in answer.stderr
    assert kept(data) == set()


def test_offline_the_hub_is_not_asked(pull: Callable[..., Answer], hub: "HubServer", data: Path) -> None:
    set_there = run("pull", MINE, hub=hub, data=data, HF_HUB_OFFLINE="1")
    set_here = pull(MINE, offline=True)

    assert set_there.returncode == set_here.returncode == 1
    assert set_there.stderr == set_here.stderr
    assert set_here.stderr == f"error: no card names {MINE}, and the hub is not asked for it: offline\n"
    assert hub.asked == []


@pytest.mark.parametrize("arguments", [("hash@main",), ("hash", "--name", "x"), ("org/m/x@main",)])
def test_a_name_or_a_revision_of_what_is_no_repository_is_wrong_usage(arguments: tuple[str, ...], data: Path) -> None:
    result = CliRunner().invoke(app, ["pull", *arguments, "--data", str(data)])

    assert isinstance(result.exception, InvalidInput)
    assert result.exception.message == "--name and @revision go with a repository of the hub: organisation/name"
