"""The scripts run here in copies of the checkout with a stand-in for Python, so that nothing is really installed."""

import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("sh", "cat", "cksum", "dirname", "find", "flock", "grep", "mkdir", "rm", "cp", "chmod", "printf", "sleep")

# Says that it is a Python 3.11 with everything; `-m venv` makes an environment of the same kind; all calls are noted.
PYTHON = """#!/bin/sh
printf '%s\\n' "$*" >>"$CALLS"
case "$*" in
    *"-m venv"*)
        for folder; do :; done
        mkdir -p "$folder/bin"
        cp "$0" "$folder/bin/python"
        printf 'VIRTUAL_ENV="%s"\\n' "$folder" >"$folder/bin/activate"
        printf '#!/bin/sh\\nprintf "<%%s>" "$@"\\n' >"$folder/bin/appliance"
        chmod +x "$folder/bin/appliance"
        ;;
    *-V*) echo "Python 3.11.9" ;;
    *"pip "*install*) sleep 0.1 ;;
esac
"""


class Checkout:
    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.bin = folder / "bin"
        self.calls_file = folder / "calls"
        shutil.copytree(ROOT / "scripts", self.root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        (self.root / "config").mkdir()
        for name in ("requirements.lock", "requirements-dev.lock"):
            (self.root / "config" / name).write_text(f"# {name}\n")
        (self.root / "pyproject.toml").write_text("")
        self.bin.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool, path="/usr/bin:/bin"):
                (self.bin / tool).symlink_to(found)

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(self, script: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.root / "scripts" / script, *arguments],
            env={"PATH": str(self.bin), "CALLS": str(self.calls_file), "HOME": "", **environment},
            cwd="/",
            check=False,
            capture_output=True,
            text=True,
        )

    def calls(self) -> list[str]:
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        return [line for line in lines if line != "-V"]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_without_a_python_the_message_says_what_to_install(checkout: Checkout) -> None:
    answer = checkout.run("install")

    assert answer.returncode == 1
    assert "no Python 3.11 or newer was found" in answer.stderr
    assert "apt install python3" in answer.stderr


def test_a_shim_that_stands_for_nothing_is_passed_over(checkout: Checkout) -> None:
    checkout.program("python3", "#!/bin/sh\nexit 127\n")
    checkout.program("python3.12", PYTHON)

    answer = checkout.run("install")

    assert answer.returncode == 0, answer.stderr
    assert "python3.12)" in answer.stderr


def test_a_python_without_ensurepip_is_named_with_the_package_to_install(checkout: Checkout) -> None:
    checkout.program("python3", '#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\n')

    answer = checkout.run("install")

    assert answer.returncode == 1
    assert "apt install python3-venv" in answer.stderr


def test_the_python_asked_for_is_taken_or_refused(checkout: Checkout) -> None:
    checkout.program("python3", PYTHON)
    old = checkout.program("old", "#!/bin/sh\nexit 1\n")

    refused = checkout.run("install", PYTHON=str(old))
    taken = checkout.run("install", PYTHON=str(checkout.program("mine", PYTHON)))

    assert refused.returncode == 1
    assert "no Python 3.11" in refused.stderr
    assert taken.returncode == 0
    assert "bin/mine)" in taken.stderr


def test_dependencies_are_installed_by_their_hashes_and_then_the_project(checkout: Checkout) -> None:
    checkout.program("python3", PYTHON)

    checkout.run("install")

    locked, project = [call for call in checkout.calls() if " install " in call]
    assert "--require-hashes" in locked
    assert locked.endswith("config/requirements.lock")
    assert "--no-deps --no-build-isolation --editable" in project


def test_a_second_run_does_nothing(checkout: Checkout) -> None:
    checkout.program("python3", PYTHON)
    checkout.run("install")
    before = checkout.calls()

    answer = checkout.run("install")

    assert (answer.returncode, answer.stderr) == (0, "")
    assert checkout.calls() == before


def test_what_the_tests_need_holds_what_a_server_needs(checkout: Checkout) -> None:
    checkout.program("python3", PYTHON)
    checkout.run("install", "dev")
    before = checkout.calls()

    checkout.run("install")

    assert checkout.calls() == before


def test_another_lock_is_installed_into_the_same_environment(checkout: Checkout) -> None:
    checkout.program("python3", PYTHON)
    checkout.run("install")
    (checkout.root / "config" / "requirements.lock").write_text("# other\n")

    answer = checkout.run("install")

    assert answer.returncode == 0
    assert "making .venv" not in answer.stderr
    assert len([call for call in checkout.calls() if "--require-hashes" in call]) == 2


def test_an_environment_that_was_copied_is_made_anew(checkout: Checkout, tmp_path: Path) -> None:
    checkout.program("python3", PYTHON)
    checkout.run("install")
    shutil.move(checkout.root, tmp_path / "moved")
    checkout.root = tmp_path / "moved"

    answer = checkout.run("install")

    assert "making .venv" in answer.stderr


def test_a_failed_installation_is_told_and_done_again(checkout: Checkout) -> None:
    checkout.program("python3", PYTHON.replace("sleep 0.1", '[ ! -e "$FAIL" ]'))
    (checkout.root / "fail").touch()

    failed = checkout.run("install", FAIL=str(checkout.root / "fail"))
    repeated = checkout.run("install", FAIL="")

    assert failed.returncode == 1
    assert "needs a network" in failed.stderr
    assert repeated.returncode == 0


def test_two_runs_at_once_install_once(checkout: Checkout) -> None:
    if not (checkout.bin / "flock").exists():
        pytest.skip("this machine has no flock")
    checkout.program("python3", PYTHON)

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda _: checkout.run("install"), range(4)))

    assert [answer.returncode for answer in answers] == [0] * 4
    assert len([call for call in checkout.calls() if "--require-hashes" in call]) == 1


def test_serve_hands_its_arguments_on(checkout: Checkout) -> None:
    checkout.program("python3", PYTHON)

    answer = checkout.run("serve", "--data", "my data", "--port", "0")

    assert answer.stdout == "<serve><--data><my data><--port><0>"


@pytest.mark.parametrize(("cores", "processes"), [(1, 1), (2, 2), (16, 4)])
def test_all_tests_run_beside_each_other_and_chosen_ones_in_one_process(
    checkout: Checkout, cores: int, processes: int
) -> None:
    checkout.program("python3", PYTHON)
    checkout.program("getconf", f"#!/bin/sh\necho {cores}\n")

    checkout.run("test")
    checkout.run("test", "-x", "tests/api")

    everything, chosen = (call for call in checkout.calls() if call.startswith("-m pytest"))
    assert everything == f"-m pytest --numprocesses={processes} --dist=worksteal"
    assert chosen == "-m pytest -x tests/api"


def test_every_script_is_a_program_that_sh_can_read() -> None:
    scripts = [path for folder in ("scripts", ".ci") for path in (ROOT / folder).iterdir() if path.is_file()]
    shells = [path for path in scripts if path.read_text(encoding="utf-8").startswith("#!/bin/sh\n")]

    assert len(shells) >= 6
    assert all(os.stat(path).st_mode & stat.S_IXUSR for path in scripts)  # noqa: PTH116  # beside S_IXUSR
    for path in shells:
        subprocess.run(["sh", "-n", path], check=True)


def test_the_benchmark_prints_a_table(tmp_path: Path) -> None:
    bench = str(ROOT / "scripts" / "benchmark" / "bench.py")
    options = ["--quick", "--model", "hash", "--only", "single", "--only", "memory", "--cache", str(tmp_path)]

    answer = subprocess.run(
        [sys.executable, bench, *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )

    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("\n| hash |") == 2


def test_the_reference_gets_an_environment_of_its_own(checkout: Checkout) -> None:
    checkout.program("python3", PYTHON)
    (checkout.root / "config" / "requirements-reference.txt").write_text("torch\n")
    checkout.run("install", "dev")
    before = checkout.calls()

    first = checkout.run("install", "reference")
    calls = checkout.calls()[len(before) :]
    again = checkout.run("install", "reference")

    assert first.returncode == 0, first.stderr
    (installed,) = [call for call in calls if " install " in call]
    assert installed.endswith("config/requirements-reference.txt")
    assert (checkout.root / ".venv-reference" / "bin" / "python").exists()
    assert checkout.run("install", "dev").stderr == ""
    assert (again.returncode, again.stderr) == (0, "")


def test_the_benchmark_searches_and_keeps_its_databases(tmp_path: Path) -> None:
    bench = str(ROOT / "scripts" / "benchmark" / "bench.py")
    options = ["--quick", "--only", "search", "--sizes", "2000", "--cache", str(tmp_path)]

    answer = subprocess.run(
        [sys.executable, bench, *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )

    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("\n| 2,000 |") == 4
    assert "| matching and nearest |" in answer.stdout
    assert sorted(path.name for path in (tmp_path / "search").glob("*.db")) == ["2000-3.db", "2000-60.db"]


def test_the_benchmark_searches_a_server_beside_it(postgres_server: Any, tmp_path: Path) -> None:
    bench = str(ROOT / "scripts" / "benchmark" / "bench.py")
    command = [sys.executable, bench, "--quick", "search", "--sizes", "2000", "--cache", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "BENCH_POSTGRES_URL": postgres_server.database()}

    runs = [subprocess.run(command, env=environment, check=False, capture_output=True, text=True) for _ in range(2)]

    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    first, second = (
        next(line.split(" | ") for line in run.stdout.splitlines() if "| pgvector |" in line) for run in runs
    )
    assert first[2] == second[2]  # what it took to build, noted at the first run
    assert first[8] == second[8] == "1.000"
