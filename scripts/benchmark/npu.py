"""What a call of the NPU costs beside the NPU's own time, measured on a simulated runtime that answers at once."""

import ctypes
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import structlog
from report import Plan, Table, met

from appliance.embedding.engines.rkllm.board import Npu
from appliance.embedding.engines.rkllm.engine import RkllmEngine, open_rkllm
from appliance.embedding.engines.rkllm.process import Opening, Worker
from appliance.embedding.engines.rkllm.session import Job, Session
from appliance.embedding.engines.rkllm.simulated import CONTEXT, DIMENSIONS, prepared
from appliance.embedding.pooling import normalized
from appliance.settings import shipped

LIMITS = {16: 0.5, 128: 1.99}
"""Milliseconds that a whole call may cost beside the NPU: 1 % of the 199 ms that an RK3588 takes for 128 tokens."""

ADDED = 50
"""Microseconds that the process of its own may add."""


def overhead(plan: Plan) -> None:
    """Print what a call costs: in the runtime, through the process, and all in all."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(prefix="bench-npu-") as folder:
        spec, _, library = prepared(shipped("native"), Path(folder))
        engine = open_rkllm(spec, {name: Path(name) for name in spec.own}, npu=Npu(library=library, simulated=True))
        job = Job(
            library=str(library),
            family="C",
            certain=False,
            model=spec.model,
            context=CONTEXT,
            pooling="last",
            dimensions=DIMENSIONS,
            domain=0,
            embed_flash=False,
            cpus=[0],
        )
        session, worker = Session(job), Worker(Opening(job))
        worker.opened(within=10)
        table = Table(
            "A call of the NPU on a runtime that answers at once (simulated, family C), medians",
            *("cores", "tokens", "runtime in this process, ms", "in one of its own, ms", "added, µs", "target"),
            *("an empty message there and back, µs", "with tokenising and normalising, ms", "target"),
        )
        with bounced() as bounce:
            for state, held in (("idle between calls", nullcontext), ("kept awake", awake)):
                with held():
                    for tokens in (16, 128, 1024):
                        costs = _costs(plan, tokens, engine=engine, session=session, worker=worker, bounce=bounce)
                        table.row(state, tokens, *costs)
        worker.end()
        session.close()
        engine.close()


def _costs(
    plan: Plan,
    tokens: int,
    *,
    engine: RkllmEngine,
    session: Session,
    worker: Worker,
    bounce: Callable[[], object],
) -> tuple[str, ...]:
    text = ("some words of a text " * tokens)[: tokens - 1]
    (prompt,) = engine.prepare([text], truncate=True)
    content = np.asarray(prompt.content, np.int64)
    ids = (ctypes.c_int32 * tokens)(*content.tolist())
    vector = (ctypes.c_float * DIMENSIONS)()
    calls: list[Callable[[], object]] = [
        lambda: session.embed(ctypes.addressof(ids), tokens, into=ctypes.addressof(vector)),
        lambda: worker.run(content, within=10),
        bounce,
        lambda: normalized(engine.run(engine.prepare([text], truncate=True))),
    ]
    took: list[list[float]] = [[] for _ in calls]
    for _ in range(2 * plan.rounds):
        for call, times in zip(calls, took, strict=True):
            times.extend(_timed(call, plan.seconds / 10))
    alone, apart, empty, whole = (1000 * median(times) for times in took)
    added = round(1000 * (apart - alone))
    limit = LIMITS.get(tokens)
    return (
        f"{alone:.3f}",
        f"{apart:.3f}",
        f"{added}",
        met(added, ADDED, least=False),
        f"{1000 * empty:.0f}",
        f"{whole:.3f}",
        met(round(whole, 3), limit, least=False) if limit else "-",
    )


@contextmanager
def bounced() -> Iterator[Callable[[], object]]:
    """Sends an empty message to another process and waits for its answer: what the machine takes for that."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    echo = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1]))\nwhile m := s.recv(9): s.send(m)"
    with ours, subprocess.Popen([sys.executable, "-c", echo, str(theirs.fileno())], pass_fds=[theirs.fileno()]):  # noqa: S603  # a line of our own
        theirs.close()
        yield lambda: (ours.send(b"."), ours.recv(9))
        ours.close()


@contextmanager
def awake() -> Iterator[None]:
    """Keeps every core from sleeping, by work that gives way to all other: waking one can take longer than a call."""
    spin = "import os\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"
    spinning = [subprocess.Popen([sys.executable, "-c", spin]) for _ in os.sched_getaffinity(0)]  # noqa: S603  # ours
    try:
        yield
    finally:
        for each in spinning:
            each.kill()
            each.wait()


def _timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, as many as fit."""
    took = []
    end = perf_counter() + seconds
    while (begun := perf_counter()) < end:
        call()
        took.append(perf_counter() - begun)
    return took
