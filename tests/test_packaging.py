import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "appliance").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())

    assert len(expected) > 20
    assert expected <= held


def test_the_wheel_holds_cards_settings_and_migrations(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())

    for folder, pattern in (("config", "*.toml"), ("config/models", "*.toml"), ("migrations", "**/*.py")):
        files = [path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob(pattern)]
        assert files
        assert {f"appliance/_shipped/{name}" for name in files} <= held


def test_the_wheel_holds_the_simulated_npus_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("appliance/_shipped/native/")}

    assert held == {f"appliance/_shipped/native/{path.name}" for path in (ROOT / "tests" / "native").glob("*.[ch]")}
    assert "appliance/_shipped/native/runtime.c" in held


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        others = [
            name for name in archive.namelist() if not name.startswith("appliance/") and ".dist-info/" not in name
        ]
        compiled = [name for name in archive.namelist() if name.endswith((".pyc", ".lock"))]

    assert others == []
    assert compiled == []


def test_an_installed_wheel_finds_what_it_ships(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    ask = "from appliance.settings import shipped; print(shipped('config'), shipped('migrations'), sep='\\n')"

    answer = subprocess.run(
        [sys.executable, "-c", ask],
        env={"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )

    config, migrations = map(Path, answer.stdout.split())
    assert config == tmp_path / "appliance" / "_shipped" / "config"
    assert (migrations / "env.py").is_file()


def test_the_command_is_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        entry = archive.read(name).decode()

    assert "appliance = appliance.cli:main" in entry


def test_the_locks_pin_every_line_with_a_hash_and_name_no_index() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / "config" / name).read_text(encoding="utf-8")
        blocks = [block for block in text.replace("\\\n", " ").splitlines() if block and not block.startswith(" ")]

        assert blocks
        assert all("==" in block and "--hash=sha256:" in block for block in blocks)
        assert "http" not in "".join(line for line in text.splitlines() if "index" in line or line.startswith("-"))


def test_the_development_lock_agrees_with_the_other() -> None:
    def pins(name: str) -> set[str]:
        lines = (ROOT / "config" / name).read_text(encoding="utf-8").splitlines()
        return {line.partition(" ")[0] for line in lines if "==" in line}

    assert pins("requirements.lock") <= pins("requirements-dev.lock")
