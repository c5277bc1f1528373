"""`appliance tune`: what is tried and chosen, by made-up figures; the command, with real processes and a tiny model."""

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from appliance.cli.tune.file import changed, write
from appliance.cli.tune.plan import (
    BATCHES,
    Candidate,
    Limits,
    Trial,
    choose,
    limits_of,
    missed,
    most,
    relatives,
    search,
    tried,
)
from appliance.cli.tune.trial import Figures
from appliance.embedding.spec import read_cards
from appliance.errors import InvalidInput
from appliance.settings import Settings, shipped

NOW = Candidate("m", 4, 0)
HERE = Path(__file__).resolve()


def figures(**changes: Any) -> Figures:
    plain = Figures(
        load=0.1, single=0.002, single_p95=0.003, batch=0.05, batch_p95=0.06, rate=100, memory=200_000_000, others=0.0
    )
    return replace(plain, **changes)


def machine(candidate: Candidate) -> Trial:
    """More threads and 8 bits are faster, batches are best at 1024, and all of it takes memory."""
    batch_tokens = candidate.batch_tokens or 512
    quick = 2 if candidate.model == "m-int8" else 1
    rate = 100 * candidate.threads * quick * (1 - abs(batch_tokens - 1024) / 10_000)
    memory = 100_000_000 + 10_000_000 * candidate.threads + 50_000 * batch_tokens
    return Trial(replace(candidate, batch_tokens=batch_tokens), figures(rate=rate, memory=memory))


def run_search(models: Sequence[str] = ("m", "m-int8"), limits: Limits | None = None) -> list[Trial]:
    return list(search(models, cores=4, now=NOW, limits=limits or Limits(), measure=machine))


class TestSearch:
    def test_the_present_settings_come_first_and_nothing_is_tried_twice(self) -> None:
        trials = run_search()

        assert trials[0].candidate == Candidate("m", 4, 512)
        assert len({trial.candidate for trial in trials}) == len(trials)
        assert len(trials) == 6 + len(BATCHES) - 1 <= most(("m", "m-int8"), cores=4, now=NOW)

    def test_the_fastest_of_all_is_found_without_trying_all(self) -> None:
        chosen = choose(run_search(), Limits())

        assert chosen is not None
        assert chosen.candidate == Candidate("m-int8", 4, 1024)

    def test_where_memory_is_short_smaller_batches_are_tried_from_the_nearest(self) -> None:
        limits = Limits(memory=123_000_000)

        chosen = choose(run_search(limits=limits), limits)

        assert chosen is not None
        assert chosen.candidate == Candidate("m-int8", 1, 256)

    def test_an_engine_that_takes_batches_of_its_own_is_asked_once(self) -> None:
        def own(candidate: Candidate) -> Trial:
            return machine(replace(candidate, batch_tokens=32_768))

        trials = list(search(["m"], cores=1, now=replace(NOW, threads=1), limits=Limits(), measure=own))

        assert len(trials) == 2

    def test_trials_without_figures_are_passed_over(self) -> None:
        def only_one_thread(candidate: Candidate) -> Trial:
            return machine(candidate) if candidate.threads == 1 else Trial(candidate, None, "took longer than 1 s")

        trials = list(search(["m"], cores=4, now=NOW, limits=Limits(), measure=only_one_thread))

        assert (chosen := choose(trials, Limits())) is not None
        assert chosen.candidate.threads == 1

    def test_where_nothing_runs_nothing_more_is_tried(self) -> None:
        trials = list(
            search(["m"], cores=2, now=NOW, limits=Limits(), measure=lambda each: Trial(each, None, "no memory"))
        )

        assert len(trials) == 3
        assert choose(trials, Limits()) is None
        assert missed(trials, Limits()) == []


class TestChoice:
    def test_of_settings_as_fast_the_smaller_one_is_taken(self) -> None:
        large = Trial(NOW, figures(rate=101, memory=300_000_000))
        small = Trial(replace(NOW, batch_tokens=256), figures(rate=100, memory=200_000_000))
        slow = Trial(replace(NOW, threads=1), figures(rate=50, memory=100_000_000))

        assert choose([large, small, slow], Limits()) is small

    @pytest.mark.parametrize(
        ("limits", "told"),
        [
            (Limits(memory=150_000_000), "memory of 200 MB, 50 MB over the 150 MB asked for"),
            (Limits(latency=0.04), "latency of 60 ms for 32 short texts, 20 ms over the 40 ms asked for"),
            (Limits(rate=250), "100 texts/s, 150 short of the 250 asked for"),
        ],
    )
    def test_a_limit_that_nothing_keeps_is_told_with_what_it_lacks(self, limits: Limits, told: str) -> None:
        trials = [Trial(NOW, figures()), Trial(NOW, figures(rate=50, batch_p95=0.09, memory=400_000_000))]

        assert choose(trials, limits) is None
        assert missed(trials, limits) == [told]

    def test_limits_that_cannot_be_kept_together_are_told_as_such(self) -> None:
        trials = [Trial(NOW, figures(rate=50, memory=100_000_000)), Trial(NOW, figures(rate=99))]
        limits = Limits(memory=150_000_000, rate=99)

        assert choose(trials, limits) is None
        (told,) = missed(trials, limits)
        assert told.startswith(
            "each limit can be kept, but not all at once: nearest comes memory of 200 MB, 50 MB over"
        )

    def test_limits_are_sizes_durations_and_rates(self) -> None:
        assert limits_of("512MB", "100ms", 200) == Limits(512_000_000, 0.1, 200)
        assert limits_of("1GiB", "2s", None) == Limits(1024**3, 2.0, None)
        assert limits_of(None, None, None) == Limits()

    @pytest.mark.parametrize(
        ("given", "option"),
        [
            (("lots", None, None), "--max-memory"),
            (("0", None, None), "--max-memory"),
            ((None, "-1s", None), "--target-latency"),
            ((None, "soon", None), "--target-latency"),
            ((None, None, float("nan")), "--target-rate"),
        ],
    )
    def test_a_limit_that_is_none_is_refused(
        self, given: tuple[str | None, str | None, float | None], option: str
    ) -> None:
        with pytest.raises(InvalidInput, match=option):
            limits_of(*given)


class TestRelatives:
    CARDS = read_cards(shipped("config") / "models")

    def named(self, name: str) -> Any:
        return next(card for card in self.CARDS if card.name == name)

    def test_cards_of_the_space_whose_files_are_here_may_take_its_place(self) -> None:
        card = self.named("all-minilm-l6-v2")

        assert relatives(card, self.CARDS, lambda _: True) == [card.name, "all-minilm-l6-v2-int8"]
        assert relatives(card, self.CARDS, lambda _: False) == [card.name]

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("hash", "takes no settings"),
            ("qwen3-embedding-0.6b-rk3588", "runs on the NPU"),
            ("openai-3-small", "another server"),
        ],
    )
    def test_where_there_is_nothing_to_tune_it_is_said_why(self, name: str, why: str) -> None:
        with pytest.raises(InvalidInput, match=f"nothing to tune here: {name} .*{why}"):
            relatives(self.named(name), self.CARDS, lambda _: True)


class TestFile:
    def test_every_other_line_and_comment_stays(self, tmp_path: Path) -> None:
        file = tmp_path / "appliance.toml"
        lines = [
            "# mine",
            "port = 9000",
            "# threads = 0",
            "batch_tokens = 512 # as shipped",
            "",
            "[aliases]",
            'a = "hash"',
        ]
        text = "".join(f"{line}\r\n" for line in lines)
        file.write_bytes(text.encode())

        new, changes = changed(file, {"threads": 2, "batch_tokens": 256})
        write(file, new)

        kept = text.replace("= 512 #", "= 256 #")
        assert [line for line in file.read_bytes().decode().splitlines() if line != "threads = 2"] == kept.splitlines()
        assert [change.line for change in changes] == ["threads = 2", "batch_tokens = 256"]
        assert [change.undo for change in changes] == [
            "delete the line threads = 2",
            "write batch_tokens = 512 again",
        ]
        settings = Settings(data=tmp_path)
        assert (settings.threads, settings.batch_tokens, settings.aliases) == (2, 256, {"a": "hash"})

    def test_what_stands_there_already_is_no_change(self, tmp_path: Path) -> None:
        file = tmp_path / "appliance.toml"
        file.write_text("threads = 2")

        assert changed(file, {"threads": 2}) == ("threads = 2", [])

    def test_a_link_stays_one_and_the_file_keeps_its_mode(self, tmp_path: Path) -> None:
        (tmp_path / "real.toml").write_text("")
        (tmp_path / "real.toml").chmod(0o640)
        (tmp_path / "appliance.toml").symlink_to("real.toml")

        write(tmp_path / "appliance.toml", "threads = 2\n")

        assert (tmp_path / "appliance.toml").is_symlink()
        assert (tmp_path / "real.toml").read_text() == "threads = 2\n"
        assert stat.S_IMODE((tmp_path / "real.toml").stat().st_mode) == 0o640
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_folder_that_is_a_file_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "data").write_text("")

        with pytest.raises(InvalidInput, match="cannot be written"):
            write(tmp_path / "data" / "appliance.toml", "threads = 2\n")


CARD = """
name = "{name}"
family = "bert"
engine = "onnx"
precision = "{precision}"
space = "tiny"
dimensions = 32
max_tokens = 24
sources = [{{ kind = "hub", repo = "nobody/nothing", revision = "{revision}" }}]
"""


def _models() -> ModuleType:
    """What makes tiny models for the engines' tests."""
    place = HERE.parents[1] / "embedding" / "engines" / "conftest.py"
    specification = importlib.util.spec_from_file_location("tiny_models", place)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["tiny_models"] = module  # its dataclass looks itself up
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a tiny BERT as the cards `tiny` and `tiny-int8`, their graphs built."""
    models = _models()
    folder = tmp_path_factory.mktemp("tiny")
    tiny = models.Tiny(folder / "files")
    tiny.folder.mkdir()
    tiny.change()
    models.letter_tokenizer().save(str(tiny.folder / "tokenizer.json"))
    data = folder / "data"
    (data / "models" / "blobs").mkdir(parents=True)
    (data / "cards").mkdir()
    files = ""
    for path in sorted(tiny.folder.iterdir()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, data / "models" / "blobs" / f"sha256-{digest}")
        files += f'[files."{path.name}"]\nsha256 = "{digest}"\nsize = {path.stat().st_size}\n'
    for name, precision in (("tiny", "fp32"), ("tiny-int8", "int8")):
        card = CARD.format(name=name, precision=precision, revision="0" * 40) + files
        (data / "cards" / f"{name}.toml").write_text(card)
        trial = tried(Settings(data=data), Candidate(name, 1, 0), seconds=0.1)
        assert trial.trouble == ""
    return data


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def tune(data: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs the command on one core with the model `tiny`: four trials."""
    (data / "cards" / "tiny-int8.toml").unlink()

    def _tune(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command(data, *arguments),
            env=clean() | environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return _tune


def clean() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("APPLIANCE_")}
    return kept | {"COLUMNS": "200", "APPLIANCE_MODEL": "tiny"}


def command(data: Path, *arguments: str) -> list[str]:
    one_core = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); "
    program = [sys.executable, "-c", one_core + "from appliance.cli import main; main()", "tune"]
    return [*program, "--data", str(data), "--seconds", "0.5", *arguments]


class TestTrial:
    def test_a_model_is_measured_in_a_process_of_its_own(self, data: Path) -> None:
        trial = tried(Settings(data=data), Candidate("tiny", 1, 256), seconds=0.3)

        assert trial.candidate == Candidate("tiny", 1, 256)
        assert trial.figures is not None
        assert 0 < trial.figures.single <= trial.figures.single_p95
        assert 0 < trial.figures.batch <= trial.figures.batch_p95
        assert trial.figures.rate > 0
        assert 30_000_000 < trial.figures.memory < 1_000_000_000
        assert 0 <= trial.figures.others <= 1

    def test_a_model_that_does_not_open_is_told(self, data: Path) -> None:
        shutil.rmtree(data / "models")

        trial = tried(Settings(data=data), Candidate("tiny", 1, 0), seconds=0.1)

        assert trial.figures is None
        assert "tiny" in trial.trouble

    def test_one_that_takes_too_long_is_ended(self, data: Path) -> None:
        begun = time.monotonic()

        trial = tried(Settings(data=data), Candidate("tiny", 1, 0), seconds=600, limit=0.3)

        assert trial.trouble == "took longer than 0.3 s"
        assert time.monotonic() - begun < 5


class TestCommand:
    def test_what_was_found_is_written_and_read_back_and_what_overrules_it_is_told(
        self, tune: Callable[..., "subprocess.CompletedProcess[str]"], data: Path
    ) -> None:
        file = data / "appliance.toml"
        file.write_text("# mine\nbatch_tokens = 300 # of mine\nport = 9000\n")

        answer = tune(APPLIANCE_THREADS="1")

        assert answer.returncode == 0, answer.stderr
        settings = Settings(data=data)
        assert settings.threads == 1
        assert settings.batch_tokens in {300, *BATCHES}
        lines = file.read_text().splitlines()
        assert lines == ["# mine", f"batch_tokens = {settings.batch_tokens} # of mine", "port = 9000", "threads = 1"]
        assert f"written into {file}:" in answer.stdout
        assert "delete the line threads = 1" in answer.stdout
        assert "but APPLIANCE_THREADS overrules threads" in answer.stdout

    def test_a_dry_run_tells_programs_what_it_would_write_and_writes_nothing(self, data: Path) -> None:
        answer = subprocess.run(
            command(data, "--dry-run", "--json"), env=clean(), check=False, capture_output=True, text=True, timeout=120
        )

        assert (answer.returncode, answer.stderr) == (0, "")
        told = json.loads(answer.stdout)
        assert not told["written"]
        assert {trial["model"] for trial in told["trials"]} == {"tiny", "tiny-int8"}
        assert all(trial["figures"]["rate"] > 0 and not trial["trouble"] for trial in told["trials"])
        names = {"threads", "batch_tokens"} | ({"model"} if told["chosen"]["model"] != "tiny" else set())
        assert {change["name"]: change["after"] for change in told["changes"]} == {
            name: told["chosen"][name] for name in names
        }
        assert not (data / "appliance.toml").exists()

    def test_limits_that_cannot_be_met_end_with_1_and_nothing_written(
        self, tune: Callable[..., "subprocess.CompletedProcess[str]"], data: Path
    ) -> None:
        answer = tune("--max-memory", "1MB")

        assert answer.returncode == 1
        assert "cannot be met here: memory of" in answer.stdout
        assert "MB over the 1 MB asked for" in answer.stdout
        assert not (data / "appliance.toml").exists()

    def test_a_model_without_anything_to_tune_is_refused_at_once(
        self, tune: Callable[..., "subprocess.CompletedProcess[str]"]
    ) -> None:
        answer = tune(APPLIANCE_MODEL="hash")

        assert answer.returncode == 2
        assert answer.stderr.startswith("error: there is nothing to tune here: hash")

    def test_an_interrupt_leaves_nothing_behind(self, data: Path) -> None:
        before = set(data.rglob("*"))
        process = subprocess.Popen(
            command(data, "--seconds", "300"), env=clean(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        children = wait_for(lambda: trials_of(process.pid))

        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)

        assert process.returncode != 0
        assert "written" not in output
        assert set(data.rglob("*")) == before
        wait_for(lambda: not any(alive(child) for child in children))

    def test_a_trial_ends_when_nobody_waits_for_it(self, data: Path) -> None:
        process = subprocess.Popen(
            command(data, "--seconds", "300"), env=clean(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        children = wait_for(lambda: trials_of(process.pid))

        process.kill()
        process.wait()

        wait_for(lambda: not any(alive(child) for child in children))


def trials_of(parent: int) -> list[int]:
    """Processes of trials that a process has started, once they have their own program."""
    children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return [pid for pid in children if b"tune.trial" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (result := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result
