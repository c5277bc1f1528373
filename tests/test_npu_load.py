"""Ten thousand embeddings over HTTP on the simulated NPU of each family: with no fault, and with one in fifty."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import create_server
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from appliance.embedding.engines.rkllm.abi import FAMILIES, Family
from appliance.embedding.engines.rkllm.board import Npu
from appliance.embedding.engines.rkllm.engine import open_rkllm
from appliance.embedding.engines.rkllm.simulated import CONTEXT, EOS, NAME, prepared, write_model, write_tokenizer
from appliance.embedding.pooling import normalized
from appliance.settings import shipped

EMBEDDINGS = 10_000
CALLERS = 4
LATE = 0.15
"""Seconds that a text may take on a server that expects hangs."""

WORDS = "river stone cloud winter copper garden lantern market violin harbour meadow signal orchard ribbon".split()  # noqa: SIM905 - reads better


def text(number: int) -> str:
    pick = random.Random(number)  # noqa: S311 - texts, no secrets
    return f"{number} " + " ".join(pick.choices(WORDS, k=pick.randint(1, 24)))


def tell(line: str) -> None:
    """For who runs these with -s."""
    sys.stdout.write(f"{line}\n")


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, npt.NDArray[np.float32]]:
    """The right vector of each text, from an engine that reads one after the other."""
    folder = tmp_path_factory.mktemp("truth")
    spec, _, library = prepared(shipped("native"), folder)
    engine = open_rkllm(spec, {name: Path(name) for name in spec.own}, npu=Npu(library=library, simulated=True))
    texts = [text(number) for number in range(1200)]
    rows = normalized(engine.run(engine.prepare(texts, truncate=True)))
    engine.close()
    return dict(zip(texts, rows, strict=True))


@dataclass
class Outcome:
    """What the callers saw."""

    right: int = 0
    wrong: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    health: list[float] = field(default_factory=list)


class Served:
    """A server process with a simulated NPU of one family."""

    def __init__(self, family: Family, data: Path, **settings: object) -> None:
        with create_server(("127.0.0.1", 0)) as taken:
            self.port = taken.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.data = data
        environment = {f"APPLIANCE_{name.upper()}": str(value) for name, value in settings.items()}
        self.log = (data / "log").open("w")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "appliance",
                "serve",
                "--simulate-npu",
                "--data",
                str(data),
                "--port",
                str(self.port),
            ],
            env=os.environ
            | environment
            | {"APPLIANCE_NPU_ABI": family, "APPLIANCE_LOG_FORMAT": "json", "APPLIANCE_CACHE_ENTRIES": "0"},
            stderr=self.log,
        )
        deadline = time.monotonic() + 30
        while not self._ready():
            assert self.process.poll() is None, (data / "log").read_text()
            assert time.monotonic() < deadline, (data / "log").read_text()
            time.sleep(0.05)

    def faults(self, **faults: object) -> None:
        place = self.data / "cache" / "simulated-npu" / "simulated.rkllm.faults"
        place.write_text("".join(f"{name} = {value}\n" for name, value in faults.items()))

    def workers(self) -> list[int]:
        """The processes of the models."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]

    def resident(self) -> tuple[int, int]:
        """MiB of the server and of its workers."""
        return mebibytes(self.process.pid), sum(map(mebibytes, self.workers()))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready").status_code == 200
        except httpx.TransportError:
            return False


def mebibytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


@contextmanager
def served(family: Family, data: Path, **settings: Any) -> Iterator[Served]:
    server = Served(family, data, **settings)
    try:
        yield server
    finally:
        server.stop()


def embed(server: Served, truth: Mapping[str, npt.NDArray[np.float32]], *, of: int, fresh: bool = False) -> Outcome:
    """Have so many texts embedded by several callers, in requests of 1 to 32; count what is right. `fresh` ones are not
    among the others: no process ever ended over them.
    """
    outcome, lock, stop = Outcome(), threading.Lock(), threading.Event()
    texts = list(truth)[1000:] if fresh else list(truth)[:1000]
    sizes: list[int] = []
    draw = random.Random(1)  # noqa: S311 - sizes, no secrets
    while sum(sizes) < of:
        sizes.append(min(draw.choice([1, 1, 1, 4, 16, 32]), of - sum(sizes)))
    starts = np.cumsum([0, *sizes])[:-1].tolist()

    def ask(part: Sequence[tuple[int, int]]) -> None:
        with httpx.Client(base_url=server.url, timeout=120) as http:
            for start, size in part:
                inputs = [texts[number % len(texts)] for number in range(start, start + size)]
                answer = http.post("/v1/embeddings", json={"model": NAME, "input": inputs})
                with lock:
                    count(answer, inputs)

    def count(answer: httpx.Response, inputs: list[str]) -> None:
        if answer.status_code == 200:
            rows = np.array([each["embedding"] for each in answer.json()["data"]], np.float32)
            wanted = np.stack([truth[each] for each in inputs])
            good = int((np.abs(rows - wanted).max(axis=1) < 1e-6).sum())
            outcome.right += good
            outcome.wrong += len(inputs) - good
            assert answer.json()["usage"]["prompt_tokens"] == sum(len(each) + 1 for each in inputs)
        else:
            error = answer.json()["error"]
            assert error.keys() == {"message", "type", "param", "code"}
            assert error["type"] == "server_error"
            outcome.failures[f"{answer.status_code} {re.sub('[0-9.]+', 'N', error['message'])[:60]}"] += 1

    def look() -> None:
        with httpx.Client(base_url=server.url, timeout=30) as http:
            while not stop.wait(0.05):
                begun = time.monotonic()
                assert http.get("/health").status_code == 200
                outcome.health.append(time.monotonic() - begun)

    parts = [list(zip(starts, sizes, strict=True))[caller::CALLERS] for caller in range(CALLERS)]
    with ThreadPoolExecutor(CALLERS + 1) as pool:
        watcher = pool.submit(look)
        for done in [pool.submit(ask, part) for part in parts]:
            done.result()
        stop.set()
        watcher.result()
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_thousand_embeddings_are_all_right_and_memory_stays_flat(
    family: Family, truth: Mapping[str, npt.NDArray[np.float32]], tmp_path: Path
) -> None:
    with served(family, tmp_path) as server:
        embed(server, truth, of=1000)  # what grows at first has grown
        before = server.resident()

        outcome = embed(server, truth, of=EMBEDDINGS)
        after = server.resident()

    tell(f"family {family}: MiB before {before}, after {after}; slowest health {max(outcome.health) * 1000:.0f} ms")
    assert (outcome.right, outcome.wrong, outcome.failures) == (EMBEDDINGS, 0, Counter())
    assert after[0] - before[0] < 16
    assert after[1] - before[1] < 8


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_fault_in_fifty_every_answer_is_right_or_says_that_there_is_none(
    family: Family, truth: Mapping[str, npt.NDArray[np.float32]], tmp_path: Path
) -> None:
    with served(family, tmp_path, npu_timeout=LATE) as server:
        server.faults(crash=0.005, hang=0.005, nan=0.005, zero=0.005)

        outcome = embed(server, truth, of=EMBEDDINGS)
        server.faults()
        time.sleep(1.0)
        after = embed(server, truth, of=200, fresh=True)
        restarts = httpx.get(f"{server.url}/metrics").text

    health = sorted(outcome.health)
    reasons = dict(re.findall(r'engine_restarts_total\{model="[^"]+",reason="(\w+)"\} (\d+)', restarts))
    tell(f"family {family}: {outcome.right} right, {outcome.wrong} wrong, {dict(outcome.failures)}, restarts {reasons}")
    slow = health[len(health) * 99 // 100]
    tell(f"/health: median {1000 * health[len(health) // 2]:.1f} ms, 99 of 100 within {1000 * slow:.0f} ms")
    assert outcome.wrong == 0
    assert outcome.right > EMBEDDINGS // 2
    assert int(reasons["SIGSEGV"]) > 10
    assert slow < 0.25
    assert (after.right, after.wrong, after.failures) == (200, 0, Counter())


def test_it_recovers_from_a_crash_in_the_time_that_loading_takes(
    truth: Mapping[str, npt.NDArray[np.float32]], tmp_path: Path
) -> None:
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "slow.toml").write_text(
        f'name = "slow"\nengine = "rkllm"\nfamily = "qwen3"\nplatform = "rk3588"\nmodel = "m.rkllm"\n'
        f'own = ["m.rkllm", "tokenizer.json"]\ndimensions = 1024\ncontext = {CONTEXT}\nmax_tokens = 4000\neos = {EOS}\n'
    )
    folder = tmp_path / "models" / "slow"
    folder.mkdir(parents=True)
    write_model(folder / "m.rkllm", load_ms=500)
    write_tokenizer(folder / "tokenizer.json")
    word, wanted = next(iter(truth.items()))

    taken = []
    with served("C", tmp_path, model="slow") as server:
        for _ in range(3):
            (worker,) = server.workers()
            os.kill(worker, signal.SIGKILL)
            begun = time.monotonic()
            answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "slow", "input": word}, timeout=30)
            taken.append(time.monotonic() - begun)
            assert answer.status_code == 200
            assert np.allclose(answer.json()["data"][0]["embedding"], wanted, atol=1e-6)

    tell(f"recovery in {', '.join(f'{each:.3f} s' for each in taken)}, of which the library took 0.5 s to load")
    assert min(taken) > 0.5
    assert min(taken) < 0.5 + 0.5
