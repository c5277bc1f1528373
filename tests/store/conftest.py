"""The stores that the contract is tried on."""

import pytest

from appliance.store.memory import MemoryStore
from appliance.store.sqlite import SqliteStore


@pytest.fixture(params=["memory", "sqlite", "sqlite by signs", "sqlite by signs on disk"])
def store(request: pytest.FixtureRequest) -> MemoryStore | SqliteStore:
    match request.param:
        case "memory":
            return MemoryStore()
        case "sqlite":
            return SqliteStore(request.getfixturevalue("database"))
        case "sqlite by signs":
            return SqliteStore(request.getfixturevalue("database"), exact_below=0)
        case _:
            return SqliteStore(request.getfixturevalue("database"), exact_below=0, mirror_bytes=0, sign_bytes=0)
