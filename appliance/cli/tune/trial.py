"""One trial: a model opened one way and measured, in a process of its own so that its memory is its own.

`python -m appliance.cli.tune.trial JOB`, where JOB is a `Job` as JSON. The answer is one line on standard output:
{"figures": {...}, "batch_tokens": n}, or {"trouble": "why not"}. The process ends, and what it started with it, when
its standard input does: then nobody waits for it any more.
"""

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from appliance.cli.server import lean

if TYPE_CHECKING:  # heavy, and NumPy may come only when it is settled how many threads it takes
    from appliance.embedding.embedder import Embedder

BATCH = 32
"""Short texts of one request, whose time is the latency that is looked at."""

CALLERS = 4
"""Requests under way at a time where texts per second are measured; more where there are more threads."""

_SINGLE, _SHORT = 0.2, 0.4
"""Shares of the time that are spent on lone texts and on batches of short ones; the rest is for texts per second."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to open and measure.

    Attributes:
        model: name of the card.
        cards, models, cache: folders of the owner's cards, of model files, and of what is built from them.
        threads, batch_tokens: as the settings of these names; 0 for the engine's own choice.
        seconds: to measure for, the model open and warm.
    """

    model: str
    cards: str
    models: str
    cache: str
    threads: int
    batch_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured.

    Attributes:
        load: seconds to open the model.
        single, single_p95: seconds for one short text, median and 95th percentile.
        batch, batch_p95: seconds for a request of 32 short texts, the same.
        rate: texts of mixed lengths per second, of all callers together.
        memory: bytes that the process held at most, of what a server loads all but its database.
        others: share of the cores' time, 0 to 1, that other work took meanwhile.
    """

    load: float
    single: float
    single_p95: float
    batch: float
    batch_p95: float
    rate: float
    memory: int
    others: float


class Counter:
    """Counts the tokens of the batches that an engine has done; called from its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = 0

    def __call__(self, sizes: Sequence[int], _seconds: float) -> None:
        """Take note of a batch, by the tokens of each text."""
        with self._lock:
            self._done += sum(sizes)

    @property
    def done(self) -> int:
        """Tokens so far."""
        with self._lock:
            return self._done


async def latency(embedder: "Embedder", texts: Sequence[str], *, inputs: int, seconds: float) -> tuple[float, float]:
    """Seconds of a request of so many texts, one request at a time: median and 95th percentile."""
    source = cycle(texts)
    took: list[float] = []
    end = perf_counter() + seconds
    while not took or perf_counter() < end:
        given = list(islice(source, inputs))
        start = perf_counter()
        await embedder.embed(given)
        took.append(perf_counter() - start)
    took.sort()
    return took[len(took) // 2], took[min(len(took) - 1, int(0.95 * len(took)))]


async def rate(
    embedder: "Embedder", counter: Counter, texts: Sequence[str], *, callers: int, seconds: float
) -> tuple[float, float]:
    """Texts per second, told by the tokens that were done, as texts are of any length; and the share of the cores' time
    that other work took.

    Args:
        embedder: has `counter` as its `on_batch`.
        counter: counts.
        texts: sent over and over.
        callers: requests under way.
        seconds: how long to count; half of it again passes before.
    """
    tokens = (await embedder.embed(texts[:BATCH])).tokens
    source = cycle(texts)

    async def caller() -> None:
        while True:
            await embedder.embed(list(islice(source, BATCH)))

    calls = [asyncio.create_task(caller()) for _ in range(callers)]
    try:
        await asyncio.wait(calls, timeout=seconds / 3, return_when=asyncio.FIRST_COMPLETED)
        start, cpu, (busy, whole), before = perf_counter(), process_time(), _cores(), counter.done
        while (done := counter.done - before) == 0 or perf_counter() < start + seconds * 2 / 3:
            ended, _ = await asyncio.wait(calls, timeout=0.02, return_when=asyncio.FIRST_COMPLETED)
            for each in ended:
                each.result()  # a caller ends only by an error
        passed, own, (busy_now, whole_now) = perf_counter() - start, process_time() - cpu, _cores()
        others = max(busy_now - busy - own, 0) / max(whole_now - whole, 1e-9)
        return done / passed / (sum(tokens) / len(tokens)), min(others, 1.0)
    finally:
        for each in calls:
            each.cancel()
        await asyncio.wait(calls)


def _cores() -> tuple[float, float]:
    """Seconds that the cores of this process were busy, with whatever, since the machine started; and all of them."""
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    rows = (line.split() for line in Path("/proc/stat").read_text(encoding="ascii").splitlines())
    times = [[int(field) for field in row[1:9]] for row in rows if row[0] in mine]
    whole, idle = sum(map(sum, times)), sum(row[3] + row[4] for row in times)  # idle, and waiting for a disk
    ticks = os.sysconf("SC_CLK_TCK")
    return (whole - idle) / ticks, whole / ticks


def peak_memory() -> int:
    """Bytes that this process held at most, so far."""
    rows = (line.split() for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return next(int(row[1]) * 1024 for row in rows if row[0] == "VmHWM:")


def measured(job: Job) -> tuple[Figures, int]:
    """Open the model and measure it; and the tokens of a batch that its engine really takes.

    Raises:
        ApplianceError: it cannot be opened, or gives no vectors.
    """
    import appliance.app  # noqa: F401  # to weigh what a server weighs
    from appliance.cli.tune.texts import SHORT, mixed, texts
    from appliance.embedding.embedder import Embedder
    from appliance.embedding.engine import RemoteEngine
    from appliance.embedding.engines import open_engine
    from appliance.embedding.pull import ModelFiles
    from appliance.embedding.spec import read_cards
    from appliance.errors import EngineUnavailable
    from appliance.settings import shipped

    cards = {card.name: card for card in read_cards(shipped("config") / "models", Path(job.cards))}
    spec = cards.get(job.model)
    if spec is None or spec.task != "embed":
        raise EngineUnavailable(f"the card of {job.model} is gone")
    paths = ModelFiles(Path(job.models), offline=True).paths(spec)
    start = perf_counter()
    engine = open_engine(spec, paths, cache=Path(job.cache), threads=job.threads, batch_tokens=job.batch_tokens)
    load = perf_counter() - start
    if isinstance(engine, RemoteEngine):
        raise EngineUnavailable(f"{job.model} does not run on this machine")
    short, any_length = (list(islice(source, 256)) for source in (texts(SHORT, seed=1), mixed(seed=2)))
    counter = Counter()
    embedder = Embedder(spec, engine, on_batch=counter)

    async def run() -> Figures:
        await embedder.embed(any_length[:BATCH])  # warm
        single = await latency(embedder, short, inputs=1, seconds=_SINGLE * job.seconds)
        batch = await latency(embedder, short, inputs=BATCH, seconds=_SHORT * job.seconds)
        speed, others = await rate(
            embedder,
            counter,
            any_length,
            callers=max(CALLERS, engine.lanes),
            seconds=(1 - _SINGLE - _SHORT) * job.seconds,
        )
        return Figures(load, *single, *batch, speed, peak_memory(), others)

    try:
        return asyncio.run(run()), engine.batch_tokens
    finally:
        embedder.close()


def _end_with_input(end: Callable[[], Any]) -> None:
    """Call `end` once standard input ends."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        end()

    threading.Thread(target=wait, name="parent", daemon=True).start()


def main() -> None:
    """Do the job of the command line, at the head of a process group of its own."""
    with suppress(PermissionError):  # it leads a session already
        os.setpgid(0, 0)
    _end_with_input(lambda: os.killpg(0, signal.SIGKILL))
    lean()
    from appliance import logs
    from appliance.errors import ApplianceError

    logs.configure(form="console", level="error")
    try:
        figures, batch_tokens = measured(Job(**json.loads(sys.argv[1])))
    except ApplianceError as error:
        answer: dict[str, Any] = {"trouble": error.message}
    else:
        answer = {"figures": asdict(figures), "batch_tokens": batch_tokens}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
