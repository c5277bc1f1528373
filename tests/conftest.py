"""What tests of every room share: real servers on loopback, and the real model where it can be had."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from appliance import logs
from appliance.api.protocol import TolerantProtocol
from appliance.app import create_app
from appliance.database import Database
from appliance.embedding.pull import ModelFiles
from appliance.embedding.spec import read_card
from appliance.errors import ApplianceError
from appliance.settings import Settings, shipped

CARD = shipped("config") / "models" / "all-minilm-l6-v2.toml"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed database without content, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "appliance.db"
    database = Database(path)
    database.migrate(shipped("migrations"))
    database.close()
    return path


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    """An empty database of the present schema."""
    path = tmp_path / "appliance.db"
    shutil.copy(migrated, path)
    database = Database(path)
    yield database
    database.close()


@dataclass
class Live:
    """A server that answers on loopback."""

    url: str
    port: int
    app: FastAPI
    data: Path
    stop: Callable[[], None]


def serve(data: Path, **settings: Any) -> Live:
    """Start a server in a thread; returns once it is ready. The hash model is the default."""
    logs.configure(form="console", level="warning")
    app = create_app(Settings(data=data, model=settings.pop("model", "hash"), **settings))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            http=TolerantProtocol,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()

    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the server ended at its start"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    keyed = {"authorization": f"Bearer {settings['api_keys'][0]}"} if settings.get("api_keys") else {}
    while httpx.get(f"{url}/ready", headers=keyed).status_code != 200:
        assert time.monotonic() < deadline, httpx.get(f"{url}/ready").text
        time.sleep(0.02)
    return Live(url, port, app, data, stop)


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server for all tests that do not mind each other's documents."""
    server = serve(tmp_path_factory.mktemp("live"))
    yield server
    server.stop()


@pytest.fixture
def client(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=30) as session:
        yield session


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """Starts servers with settings of their own; all end with the test."""
    servers: list[Live] = []

    def _start(**settings: Any) -> Live:
        servers.append(serve(settings.pop("data", tmp_path / f"data{len(servers)}"), **settings))
        return servers[-1]

    yield _start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def model_folder(request: pytest.FixtureRequest) -> Path:
    """Where the default model was pulled to; kept in pytest's cache between runs."""
    assert request.config.cache is not None
    folder: Path = request.config.cache.mkdir("models")
    try:
        ModelFiles(folder).pull(read_card(CARD), lambda _: None)
    except ApplianceError as error:
        pytest.skip(f"the default model cannot be had: {error}")
    return folder


@pytest.fixture(scope="session")
def minilm(model_folder: Path) -> dict[str, Path]:
    """The default model's files by name."""
    return ModelFiles(model_folder).paths(read_card(CARD))


@pytest.fixture(scope="session")
def live_minilm(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server with the default model."""
    data = tmp_path_factory.mktemp("minilm")
    (data / "models").symlink_to(model_folder)
    server = serve(data, model="all-minilm-l6-v2")
    yield server
    server.stop()
