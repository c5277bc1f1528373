"""From one store into another: whole, resumable, compared."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.database import Database
from appliance.errors import CollectionExists, InvalidInput, StoreUnavailable
from appliance.postgres import PostgresDatabase
from appliance.settings import shipped
from appliance.store.base import Chunk, Entry
from appliance.store.copying import Mark, Marks, check_route, copy
from appliance.store.postgres.store import PostgresStore
from appliance.store.sqlite import SqliteStore


class Failing(PostgresStore):
    """A store whose server goes away after some commits."""

    commits = 2

    def put_many(self, collection: str, entries: Sequence[Entry]) -> None:
        if not self.commits:
            raise StoreUnavailable("away")
        self.commits -= 1
        super().put_many(collection, entries)


def unit(seed: int, dimensions: int) -> Any:
    row = np.random.default_rng(seed).normal(size=(1, dimensions)).astype(np.float32)
    return row / np.linalg.norm(row)


@pytest.fixture
def source(database: Database) -> SqliteStore:
    """Two collections, one of several transactions' worth."""
    store = SqliteStore(database)
    store.create("large", 8)
    store.create("small", 3)
    store.create("empty", 5)
    for n in range(100):
        metadata: dict[str, object] = {"n": n, "float": n / 3, "deep": {"a": [1, None]}, "nul\0": "\0"}
        store.put("large", f"d{n}", [Chunk(0, f"text {n}\0", 3, 9, 2, title="ä", metadata=metadata)], unit(n, 8))
    store.put("small", "\U0001f600", [Chunk(0, "x", 0, 1, 1), Chunk(5, "y", 0, 1, 1)], np.eye(2, 3, dtype=np.float32))
    return store


def test_a_copy_holds_everything_there_and_back(
    source: SqliteStore, postgres: PostgresDatabase, migrated: Path, tmp_path: Path
) -> None:
    there = PostgresStore(postgres)
    marks = Marks(tmp_path / "mark", "there")

    done = copy(source, there, marks=marks)

    assert (done.collections, done.chunks, done.compared, done.differences) == (3, 102, 102, ())
    assert there.collections() == {"empty": 5, "large": 8, "small": 3}
    assert there.chunks("large", "d7") == source.chunks("large", "d7")
    path = tmp_path / "back" / "appliance.db"
    path.parent.mkdir()
    path.write_bytes(migrated.read_bytes())
    other = Database(path)
    try:
        back = copy(there, SqliteStore(other), marks=Marks(tmp_path / "mark", "back"))
        assert (back.chunks, back.differences) == (102, ())
        assert SqliteStore(other).chunks("large", "d7") == source.chunks("large", "d7")
    finally:
        other.close()


def test_a_copy_that_was_cut_short_goes_on_where_it_stopped(
    source: SqliteStore, postgres: PostgresDatabase, tmp_path: Path
) -> None:
    marks = Marks(tmp_path / "mark", "route")
    with pytest.raises(StoreUnavailable):
        copy(source, Failing(postgres), marks=marks)
    assert marks.read() == Mark("large", sorted(f"d{n}" for n in range(100))[63])
    assert Marks(tmp_path / "mark", "another route").read() is None

    done = copy(source, PostgresStore(postgres), marks=marks)

    assert (done.chunks, done.compared, done.differences) == (38, 102, ())
    assert marks.read() is None


def test_what_differs_is_told(source: SqliteStore, postgres: PostgresDatabase, tmp_path: Path) -> None:
    there = PostgresStore(postgres)
    there.create("small", 3)
    there.put("small", "its own", [Chunk(0, "z", 0, 1, 1)], np.eye(1, 3, dtype=np.float32))

    done = copy(source, there, marks=Marks(tmp_path / "mark", "route"))

    assert done.differences == ("small: 2 chunks here, 3 there",)


def test_a_collection_of_other_vectors_is_not_overwritten(
    source: SqliteStore, postgres: PostgresDatabase, tmp_path: Path
) -> None:
    there = PostgresStore(postgres)
    there.create("small", 4)

    with pytest.raises(CollectionExists, match="small"):
        copy(source, there, marks=Marks(tmp_path / "mark", "route"))

    assert there.collections() == {"small": 4}


def test_a_mark_that_is_damaged_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "mark").write_text("{")

    assert Marks(tmp_path / "mark", "route").read() is None


@pytest.mark.parametrize(("source", "target"), [("sqlite", "sqlite"), ("postgres", "milvus"), ("postgres", "postgres")])
def test_one_of_the_two_is_sqlite(source: str, target: str) -> None:
    with pytest.raises(InvalidInput, match="by way of sqlite"):
        check_route(source, target)


def test_the_command_copies_and_tells_no_password(postgres_server: Any, tmp_path: Path) -> None:
    database = Database(tmp_path / "appliance.db")
    database.migrate(shipped("migrations"))
    store = SqliteStore(database)
    store.create("c", 3)
    store.put("c", "d", [Chunk(0, "text", 0, 4, 1)], np.eye(1, 3, dtype=np.float32))
    database.close()
    url = postgres_server.database().replace("appliance@", "appliance:hidden@")
    (tmp_path / "secrets").write_text(f"APPLIANCE_STORE_URL={url}\n")
    (tmp_path / "secrets").chmod(0o600)
    (tmp_path / "appliance.toml").write_text(f'secrets_file = "{tmp_path / "secrets"}"\n')
    command = [sys.executable, "-m", "appliance", "store", "copy", "--data", str(tmp_path)]

    done = subprocess.run(
        [*command, "--from", "sqlite", "--to", "postgres", "--json"], capture_output=True, text=True, check=False
    )
    refused = subprocess.run(
        [*command, "--from", "sqlite", "--to", "sqlite"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"collections": 1, "chunks": 1, "compared": 1, "differences": []}
    assert "hidden" not in done.stdout + done.stderr
    assert refused.returncode == 2
    assert "by way of sqlite" in refused.stderr
