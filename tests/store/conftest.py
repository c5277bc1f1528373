"""The stores that the contract is tried on."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.database import Database
from appliance.store.memory import MemoryStore
from appliance.store.sqlite import SqliteStore

MIGRATIONS = Path(__file__).parents[2] / "migrations"


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed database without content, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "appliance.db"
    database = Database(path)
    database.migrate(MIGRATIONS)
    database.close()
    return path


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "appliance.db"
    shutil.copy(migrated, path)
    database = Database(path)
    yield database
    database.close()


@pytest.fixture(params=["memory", "sqlite", "sqlite by signs"])
def store(request: pytest.FixtureRequest) -> MemoryStore | SqliteStore:
    match request.param:
        case "memory":
            return MemoryStore()
        case "sqlite":
            return SqliteStore(request.getfixturevalue("database"))
        case _:
            return SqliteStore(request.getfixturevalue("database"), exact_below=0)
