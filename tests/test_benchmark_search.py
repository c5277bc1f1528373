"""The databases that searches are measured in."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from appliance.database import Database
from appliance.store.sqlite import SqliteStore

FOLDER = Path(__file__).parent.parent / "scripts" / "benchmark"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        return import_module("search")
    finally:
        sys.path.remove(str(FOLDER))


def test_a_database_is_made_once_and_anew_of_other_vectors(program: ModuleType, tmp_path: Path) -> None:
    one, other = (tmp_path / name for name in ("one.npy", "other.npy"))
    for seed, path in enumerate((one, other)):
        rows = np.random.default_rng(seed).standard_normal((300, 8), np.float32)
        np.save(path, rows / np.linalg.norm(rows, axis=1, keepdims=True))

    first = program.built(tmp_path / "kept", 100, given=one, words=3)
    again = program.built(tmp_path / "kept", 100, given=one, words=3)
    (tmp_path / "kept" / "100-3.pgvector.json").write_text("{}")
    program.built(tmp_path / "kept", 100, given=other, words=3)

    assert first == again
    database = Database(tmp_path / "kept" / "100-3.db")
    store = SqliteStore(database)
    assert np.array_equal(store.vectors("c", [("d0", 3)])["d0", 3], np.load(other)[3])
    assert np.array_equal(np.load(tmp_path / "kept" / "100-3.npy"), np.load(other)[-program.QUERIES :])
    assert not (tmp_path / "kept" / "100-3.pgvector.json").exists()  # what a server holds is to be copied anew
    store.close()
    database.close()
