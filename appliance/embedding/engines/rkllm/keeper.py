"""Keeps one worker process running: begins it anew when it ends, and says when it cannot."""

import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import numpy.typing as npt
import structlog

from appliance.embedding.engine import Vector
from appliance.embedding.engines.rkllm.library import Library
from appliance.embedding.engines.rkllm.process import INTERPRETER, Died, Failed, Late, Opening, Refused, Worker
from appliance.errors import EngineFailed, EngineUnavailable

_STRIKES = 6
"""Ends in a row, with no text answered between, after which the model is left alone for `_REST` seconds."""

_REST = 30.0

_PATIENCE = 1.0
"""Seconds of a pause that a caller waits out; of a longer one he is told."""

_FAILURES = 3
"""Texts in a row that the process failed on before it is begun anew: a device that is stuck comes back that way."""

_TRIES = 2
"""Times that a text is given to the model, the second time to a new process if need be."""

_DEATHS = 2
"""Calls that the process ended or hung in over one text, with no answer to it between, before it is refused."""

_BANNED = 300.0
"""Seconds that it stays refused."""

_REMEMBERED = 256
"""Such texts that are remembered, as hashes."""

_RELOAD, _RELOAD_TIMES = 30.0, 5.0
"""Seconds that a load may take once one has succeeded, or so many times what that one took."""

_ROOM = 64 << 20
"""Bytes that a process may always grow by."""

_EVERY = 8
"""Runs between two looks at the process's memory."""

_FOLDERS = re.compile(r"(?<![\w.])/(?:[^/\s\"']+/)*")
"""The folders of a path: messages are for callers."""

log = structlog.get_logger(__name__)


class Keeper:
    """Keeps one worker running: begins it anew when it ends, less and less eagerly, and never over the same text again.

    `ask`, `begin` and `close` from one thread at a time.

    Args:
        name: of the model.
        opening: what a worker is begun with.
        library: that runs it.
        identify: looks at the library's file anew, for it may be another one by the time of a restart.
        seconds: a text of so many tokens may take.
        memory: bytes at which a worker is begun anew; 0 for twice what it took when it had loaded, and 256 MiB.
        load: seconds that loading may take.
        interpreter: runs the worker.
        on_restart: told the reason.
    """

    def __init__(
        self,
        name: str,
        opening: Opening,
        *,
        library: Library,
        identify: Callable[[], Library],
        seconds: Callable[[int], float],
        memory: int = 0,
        load: float,
        interpreter: Sequence[str] = INTERPRETER,
        on_restart: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.library = library
        self.check: Callable[[Callable[[npt.NDArray[np.int64]], Vector]], None] = lambda _: None
        """Run with every new worker before anybody's text; raises what then is why there is none."""
        self._name = name
        self._opening = opening
        self._identify = identify
        self._file = _identity(library.path)
        self._seconds = seconds
        self._memory = memory
        self._load = load
        self._interpreter = interpreter
        self._on_restart = on_restart
        self._worker: Worker | None = None
        self._before: tuple[bytes, Vector] | None = None
        self._closed = False
        self._strikes = 0
        self._failures = 0
        self._told = False
        self._not_before = 0.0
        self._reason = ""
        self._ceiling = 0
        self._runs = 0
        self._deaths: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def begin(self) -> None:
        """Begin a worker, load the model and test it.

        Raises:
            EngineUnavailable: that failed.
        """
        begun = monotonic()
        self._before = None
        self._look_at_library()
        worker = self._begun()
        loading = True
        try:
            worker.opened(within=self._load)
            loading = False
            self.check(lambda ids: self._checked(worker, ids))
        except (Failed, Died) as error:
            worker.end()
            if getattr(error, "how", "") == "hang":  # whoever comes next must not wait as long
                self._strikes = max(self._strikes, _STRIKES - 1)
            suspect = isinstance(error, Refused) or (loading and isinstance(error, Died))
            raise EngineUnavailable(self._explained(str(error), worker.lines, suspect=suspect)) from error
        except BaseException:
            worker.end()
            raise
        taken = worker.resident()
        self._ceiling = max(self._memory, taken + _ROOM) if self._memory else 2 * taken + (256 << 20)
        self._load = min(self._load, max(_RELOAD, _RELOAD_TIMES * (monotonic() - begun)))
        self._runs = self._failures = 0
        self._told = False
        self._worker = worker

    def ask(self, ids: npt.NDArray[np.int64]) -> Vector:
        """The numbers that the model gives for token ids, float32, finite and not all zero.

        A text that got no answer is tried once more, in a new process if need be, unless it took too long.

        Raises:
            EngineFailed: no answer.
            EngineUnavailable: no process.
        """
        if self._closed:
            raise EngineFailed("the model was closed")
        key = hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
        self._refuse_banned(key)
        tries = 0
        while True:
            try:
                numbers = self._tried(ids)
            except (Failed, Died) as failure:
                tries += 1
                late = isinstance(failure, Late) or getattr(failure, "how", "") == "hang"
                if late or tries == _TRIES:
                    self._remember(key, failure)
                    raise EngineFailed(f"{self._name} did not answer: {failure}") from failure
            else:
                self._deaths.pop(key, None)
                return numbers

    def close(self) -> None:
        """End the worker. Safe to call twice."""
        self._closed = True
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def _tried(self, ids: npt.NDArray[np.int64]) -> Vector:
        worker = self._running()
        try:
            numbers = self._checked(worker, ids)
        except Failed:
            raise
        except Died as died:
            self._leave(died.how, str(died))
            self._strike(str(died))
            raise
        except BaseException as error:  # whatever it is, nobody knows what state the worker is in
            self._leave("exit", type(error).__name__)
            raise
        self._strikes = self._failures = 0
        self._runs += 1
        if self._runs % _EVERY == 0 and worker.resident() > self._ceiling:
            self._leave("memory", f"it took {worker.resident() >> 20} MiB")
        return numbers

    def _checked(self, worker: Worker, ids: npt.NDArray[np.int64]) -> Vector:
        numbers, perf = worker.run(ids, within=self._seconds(len(ids)))
        if perf.tokens not in {0, len(ids)} and not self._told:
            log.warning("npu runtime counts other tokens", model=self._name, given=len(ids), counted=perf.tokens)
            self._told = True
        if not np.isfinite(numbers).all():
            raise Failed("it gave NaN or infinity")
        if not numbers.any():
            raise Failed("it gave nothing but zeros")
        if self._opening.job.pooling in {"last", "mean"}:  # logits, or a first token, may well be the same twice
            text, before = ids.tobytes(), self._before
            if before is not None and before[0] != text and np.array_equal(before[1], numbers):
                raise Failed("it gave the vector of the text before")
            self._before = text, numbers
        return numbers

    def _running(self) -> Worker:
        if self._worker is not None:
            return self._worker
        pause = self._not_before - monotonic()
        if pause > _PATIENCE:
            raise EngineUnavailable(
                f"{self._name} ended {self._strikes} times in a row ({self._reason}) and is left alone for"
                f" {pause:.0f} s more",
                retry_after=ceil(pause),
            )
        sleep(max(pause, 0.0))
        try:
            self.begin()
        except BaseException as error:
            self._on_restart("load")
            self._strike(str(error.__cause__ or error) or type(error).__name__)
            raise
        assert self._worker is not None  # noqa: S101 - `begin` sets it or raises; for mypy
        return self._worker

    def _look_at_library(self) -> None:
        """See to it that the interface is that of the file as it is now: it may have been replaced meanwhile."""
        if (now := _identity(self.library.path)) != self._file:
            self.library = self._identify()
            self._file = now
            job = self._opening.job._replace(library=str(self.library.path), family=self.library.family)
            self._opening = self._opening._replace(job=job)

    def _begun(self) -> Worker:
        try:
            return Worker(self._opening, interpreter=self._interpreter, note=self._noted)
        except Died as error:
            raise EngineUnavailable(f"{self._name} cannot be loaded: {error}") from error

    def _remember(self, key: bytes, failure: Failed | Died) -> None:
        """Take note of a text that got no answer: who is to blame, the text or the process?"""
        if isinstance(failure, Late) or (isinstance(failure, Died) and not failure.idle):
            times, _ = self._deaths.pop(key, (0, 0.0))
            self._deaths[key] = (times + 1, monotonic())
            while len(self._deaths) > _REMEMBERED:
                self._deaths.popitem(last=False)
        if isinstance(failure, Died):
            return
        self._failures += 1
        if self._failures >= _FAILURES:
            self._failures = 0
            self._leave("failed", str(failure))
            self._strike(str(failure))

    def _leave(self, reason: str, told: str) -> None:
        """Let the worker go; the next text begins another."""
        log.warning("npu process begun anew", model=self._name, reason=reason, told=told)
        if self._worker is not None:
            self._worker.end()
            self._worker = None
        self._on_restart(reason)

    def _strike(self, reason: str) -> None:
        """The first new try is at once, the next ones after a quarter of a second, a half, and so on."""
        self._strikes += 1
        self._reason = reason
        pause = 0.0 if self._strikes == 1 else 0.25 * 2 ** (self._strikes - 2)
        self._not_before = monotonic() + (_REST if self._strikes >= _STRIKES else pause)

    def _refuse_banned(self, key: bytes) -> None:
        times, last = self._deaths.get(key, (0, 0.0))
        if times >= _DEATHS:
            if monotonic() - last < _BANNED:
                raise EngineFailed(f"{self._name} is not asked: it ended or hung in {times} calls over this text")
            del self._deaths[key]

    def _explained(self, why: str, lines: Sequence[str], *, suspect: bool) -> str:
        """One message of why a model is not there, what the library said, and what to do; `suspect`: the model file."""
        job = self._opening.job
        errors = [line for line in lines if line.startswith("E ")] or [line for line in lines if line[:2] != "I "]
        said = errors[-1].removeprefix("E rkllm: ") if errors else ""
        for path in (job.model, job.library):
            said = said.replace(f"{os.path.dirname(path)}/", "")  # noqa: PTH120 - text, no path
        told = f'; it said "{_FOLDERS.sub("", said)}"' if said else ""
        warned = f". {self.library.warning}" if self.library.warning else ""
        file = os.path.basename(job.model)  # noqa: PTH119 - same
        if not suspect:
            return f"{self._name} is not served with {file}: {why}{told}{warned}. `appliance doctor` tells more"
        return (
            f"{self._name} cannot be loaded: {why}{told}{warned}. Is {file} whole, converted for"
            f" this board with a context of {job.context}, and by a toolkit no newer than runtime"
            f" {self.library.version or 'of unknown version'}? `appliance doctor` tells more"
        )

    def _noted(self, line: str) -> None:
        level = log.debug if line.startswith("I ") else log.warning
        level("npu runtime", model=self._name, told=line)


def _identity(path: Path) -> tuple[int, ...]:
    """What differs when a file was replaced; nothing for one that is gone."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
