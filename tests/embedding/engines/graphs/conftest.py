"""Tiny models of every architecture, and what the reference gives for them: made once, by an interpreter with torch."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.embedding.spec import Card, read_card

ROOT = Path(__file__).parents[4]

PYTHON = Path(os.environ.get("REFERENCE_PYTHON") or ROOT / ".venv-reference/bin/python")


@dataclass(frozen=True)
class Example:
    """A model's folder."""

    folder: Path

    @property
    def paths(self) -> dict[str, Path]:
        """The files of the card, by name."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        names = {str(path.relative_to(self.folder)): path for path in files}
        return {name: path for name, path in names.items() if name not in {"reference.json", "card.toml"}}

    @property
    def reference(self) -> Any:
        return json.loads((self.folder / "reference.json").read_text())

    def card(self, **changes: Any) -> Card:
        """The model's card, written as TOML and read."""
        fields: dict[str, Any] = {"name": self.folder.name, "engine": "onnx", "own": sorted(self.paths)}
        fields |= self.reference["card"] | changes
        fields = {name: value for name, value in fields.items() if value is not None}
        prefixes = fields.pop("prefixes", None)
        lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
        if prefixes:
            lines += ["[prefixes]", *(f"{name} = {json.dumps(value)}" for name, value in prefixes.items())]
        path = self.folder / "card.toml"
        path.write_text("\n".join(lines))
        return read_card(path)


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds a folder for each model."""
    if not PYTHON.exists():
        pytest.skip("no interpreter with torch and transformers: run scripts/install reference")
    folder = tmp_path_factory.mktemp("examples")
    subprocess.run([PYTHON, ROOT / "tests/reference/generate.py", folder], check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for the graphs of all tests."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture
def example(examples: Path) -> Callable[[str], Example]:
    """A model by its name."""
    return lambda name: Example(examples / name)
