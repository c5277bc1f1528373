"""The servers under test: ours with an empty database, and what people use today with the same weights."""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cards import shipped_card
from machine import Server, free_port, serving

from appliance.embedding.pull import ModelFiles

HERE = Path(__file__).resolve().parent
PROGRAM = (sys.executable, "-m", "appliance")
ROOT = HERE.parents[1]
MODEL = "all-minilm-l6-v2"


def installed(cache: Path, models: Sequence[str]) -> Path:
    """A data directory in which the models are installed and have run once, kept between runs."""
    data = cache / "data"
    for model in models:
        command = [*PROGRAM, "embed", "warm", "--model", model, "--data", str(data)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  # ours
    return data


@contextmanager
def appliance(source: Path, model: str, *, remembers: bool = False, profile: str = "balanced") -> Iterator[Server]:
    """A running appliance with an empty database and the installed models of `source`.

    Args:
        source: a data directory.
        model: the default model.
        remembers: keep the cache of embeddings on; otherwise texts sent again are computed again.
        profile: of the settings.
    """
    with tempfile.TemporaryDirectory(prefix="appliance-bench-") as folder:
        data = Path(folder)
        for name in ("models", "cache"):
            if (source / name).exists():
                shutil.copytree(source / name, data / name, copy_function=_linked)
        port = free_port()
        command = [*PROGRAM, "serve", "--data", folder, "--model", model, "--port", str(port)]
        remembered = "" if remembers else "cache_entries = 0\n"
        (data / "appliance.toml").write_text(f'profile = "{profile}"\n{remembered}')
        with serving(command, port=port, log=data / "server.log") as server:
            yield server


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def rival(source: Path, cache: Path) -> Iterator[Server]:
    """sentence-transformers behind FastAPI, with the default model's files of `source`."""
    python = environment(cache / "compare")
    folder = model_folder(source, cache / "sentence-transformers")
    port = free_port()
    command = [str(python), str(HERE / "rival.py"), "--folder", str(folder), "--port", str(port)]
    with (
        tempfile.TemporaryDirectory(prefix="appliance-bench-") as scratch,
        serving(command, port=port, log=Path(scratch) / "server.log", ready="/health") as server,
    ):
        yield server


def environment(folder: Path) -> Path:
    """The Python of an environment with the dependency group `compare`, made on first use."""
    python = folder / "bin" / "python"
    group = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]["compare"]
    wanted = "\n".join([*group, "fastapi", "uvicorn"])
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {', '.join(group)} into {folder} (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)  # noqa: S603  # our own interpreter
        pip = [str(python), "-I", "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        subprocess.run([*pip, *wanted.split("\n")], check=True)  # noqa: S603  # same
        stamp.write_text(wanted)
    return python


def model_folder(data: Path, folder: Path) -> Path:
    """The files of the default model, under their own names."""
    spec = shipped_card(MODEL)
    for name, path in ModelFiles(data / "models", offline=True).paths(spec).items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder
