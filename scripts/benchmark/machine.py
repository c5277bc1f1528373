"""Child processes and what Linux knows of them: started, asked, measured, ended."""

import json
import os
import platform
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

STARTUP = 120.0
"""Seconds a server may take until it answers."""


class BenchFailed(Exception):
    """A child did not do what it was started for."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server under test. `health` and `ready` are seconds from its start to the first 200."""

    process: "subprocess.Popen[bytes]"
    port: int
    health: float
    ready: float

    def cpu(self) -> float:
        """CPU seconds of the process and the children it has waited for or still has."""
        return sum(_cpu(pid) for pid in _family(self.process.pid))

    def memory(self) -> dict[str, float]:
        """MB (10^6 bytes): resident now and at most, of the process; resident of its children."""
        own = _status(self.process.pid)
        children = sum(_status(pid).get("VmRSS", 0) for pid in _family(self.process.pid)[1:])
        return {"now": own["VmRSS"], "peak": own["VmHWM"], "children": children}


@contextmanager
def serving(command: Sequence[str], *, port: int, log: Path, ready: str = "/ready") -> Iterator[Server]:
    """A server that answers, ended with the block."""
    with log.open("wb") as out:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)  # noqa: S603  # ours
        try:
            health = _answered(process, port, "/health", began, log)
            full = _answered(process, port, ready, began, log)
            yield Server(process, port, health, full)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def worker(command: Sequence[str]) -> Iterator["Worker"]:
    """A child that answers a line of JSON with a line of JSON, ended with the block."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  # ours
        assert process.stdin is not None  # noqa: S101  # both were asked for
        assert process.stdout is not None  # noqa: S101
        try:
            yield Worker(process.stdin, process.stdout)
        finally:
            process.stdin.close()


@dataclass(frozen=True, slots=True)
class Worker:
    """Takes one job at a time."""

    jobs: IO[str]
    results: IO[str]

    def run(self, **job: Any) -> dict[str, Any]:
        """The result of one job."""
        self.jobs.write(json.dumps(job) + "\n")
        self.jobs.flush()
        line = self.results.readline()
        if not line:
            raise BenchFailed("a worker died; its message stands above")
        result: dict[str, Any] = json.loads(line)
        if bad := result.get("bad"):
            raise BenchFailed(f"{len(bad)} of {result['requests']} requests failed, the first with {bad[0]}")
        return result


def free_port() -> int:
    """A loopback port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(port: int, path: str) -> Any:
    """The JSON that a server answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return json.load(answer)


def described() -> str:
    """One line on this machine."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    total = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    name = names[0] if names else platform.machine()
    cores = len(os.sched_getaffinity(0))
    python, load = platform.python_version(), os.getloadavg()[0]
    return f"{name}, {cores} cores, {total / 2**20:.0f} GiB, Python {python}, load {load:.1f}"


def _answered(process: "subprocess.Popen[bytes]", port: int, path: str, began: float, log: Path) -> float:
    while time.perf_counter() - began < STARTUP:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5):
                return time.perf_counter() - began
        except (urllib.error.URLError, OSError):
            time.sleep(0.01)
    tail = log.read_text(errors="replace")[-2000:]
    raise BenchFailed(f"{process.args!r} did not answer {path}:\n{tail}")


def _family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found.extend(_family(int(child)))
    return found


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _status(pid: int) -> dict[str, float]:
    rows = (line.split() for line in _lines(f"/proc/{pid}/status"))
    return {row[0].rstrip(":"): int(row[1]) * 1024 / 1e6 for row in rows if row[-1] == "kB"}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
