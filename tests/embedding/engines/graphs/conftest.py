"""Tiny models of every architecture, and what the reference gives for them: made once, by an interpreter with torch."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from appliance.embedding.spec import Card, Kind, OnnxSpec, read_card, read_cards

ROOT = Path(__file__).parents[4]

PYTHON = Path(os.environ.get("REFERENCE_PYTHON") or ROOT / ".venv-reference/bin/python")

TWINS = {
    "all-minilm-l6-v2": "bert",
    "all-minilm-l6-v2-int8": "bert",
    "all-mpnet-base-v2": "mpnet",
    "bert-base-uncased": "bert",
    "bge-base-en-v1.5": "bert",
    "bge-m3": "bge-m3",
    "bge-small-en-v1.5": "bert",
    "codebert-base": "roberta",
    "embeddinggemma-300m": "gemma3",
    "gte-multilingual-base": "gte",
    "jina-embeddings-v2-base-en": "jina",
    "multilingual-e5-small": "bert",
    "nomic-embed-text-v1.5": "nomic",
    "nomic-embed-text-v2-moe": "nomic-moe",
    "qwen3-embedding-0.6b": "qwen3",
    "sentence-t5-base": "t5",
}
"""For each card that we ship, the tiny model of its architecture."""


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
    wanted: dict[str, dict[str, Any]] = {}
    for card in read_cards(ROOT / "config" / "models"):
        if isinstance(card, OnnxSpec):
            prefixes = {kind: card.prefixes.of(kind) for kind in get_args(Kind)}
            about = {"pooling": card.pooling, "dense": card.dense, "prefixes": prefixes}
            wanted.setdefault(TWINS[card.name], {})[card.name] = about
    subprocess.run(
        [PYTHON, ROOT / "tests/reference/generate.py", folder, json.dumps(wanted)],
        check=True,
        capture_output=True,
        timeout=180,
    )
    return folder


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for the graphs of all tests."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture
def example(examples: Path) -> Callable[[str], Example]:
    """A model by its name."""
    return lambda name: Example(examples / name)


@pytest.fixture
def twin(examples: Path) -> Callable[[str], Example]:
    """The tiny model that stands for a card that we ship."""
    return lambda name: Example(examples / TWINS[name])
