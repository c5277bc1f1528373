"""The stores that the contract is tried on."""

from collections.abc import Iterator
from typing import Any

import pytest

from appliance.postgres import PostgresDatabase
from appliance.settings import shipped
from appliance.store.memory import MemoryStore
from appliance.store.milvus import MilvusStore
from appliance.store.postgres.store import PostgresStore
from appliance.store.sqlite import SqliteStore


@pytest.fixture(scope="session")
def shared_postgres(postgres_server: Any) -> Iterator[PostgresDatabase]:
    """A migrated database; tests leave collections in it."""
    database = PostgresDatabase(postgres_server.database(), connections=8)
    database.migrate(shipped("migrations") / "postgres")
    yield database
    database.close()


@pytest.fixture
def postgres(shared_postgres: PostgresDatabase) -> PostgresDatabase:
    """A migrated database without collections."""
    store = PostgresStore(shared_postgres)
    for name in store.collections():
        store.drop(name)
    return shared_postgres


class Lasting(MilvusStore):
    """Opening takes seconds: it lasts longer than a test."""

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def milvus_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusStore]:
    """A store in Milvus Lite; tests leave collections in it."""
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
    pytest.importorskip("pymilvus", reason="pymilvus is not installed")
    store = Lasting(str(tmp_path_factory.mktemp("milvus") / "test.db"))
    yield store
    MilvusStore.close(store)
    MilvusStore.close(store)


@pytest.fixture
def milvus(milvus_store: MilvusStore) -> MilvusStore:
    """A store without collections."""
    for name in milvus_store.collections():
        milvus_store.drop(name)
    return milvus_store


@pytest.fixture(params=["memory", "sqlite", "sqlite by signs", "sqlite by signs on disk", "postgres", "milvus"])
def store(request: pytest.FixtureRequest) -> MemoryStore | SqliteStore | PostgresStore | MilvusStore:
    match request.param:
        case "memory":
            return MemoryStore()
        case "sqlite":
            return SqliteStore(request.getfixturevalue("database"))
        case "milvus":
            store: MilvusStore = request.getfixturevalue("milvus")
            return store
        case "postgres":
            return PostgresStore(request.getfixturevalue("postgres"))
        case "sqlite by signs":
            return SqliteStore(request.getfixturevalue("database"), exact_below=0)
        case _:
            return SqliteStore(request.getfixturevalue("database"), exact_below=0, memory=0)
