"""The server's side of a worker process: begin it, ask it, notice how it ends, end it."""

import json
import mmap
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from appliance.embedding.engine import Vector
from appliance.embedding.engines.rkllm.session import Job, Perf
from appliance.embedding.engines.rkllm.worker import ABORT, ANSWER, LONGEST, REQUEST, numbers_of

INTERPRETER: Final = (sys.executable,)
"""What runs a worker; an emulator and another machine's Python in tests of that machine's layout."""

_MODULE = "appliance.embedding.engines.rkllm.worker"

_ROOT = Path(__file__).parents[4]
"""Where `appliance` lies, so that it is found wherever we were started."""

_GRACE = 1.0
"""Seconds that a run has to end after `rkllm_abort`, and a process after it was told to go, before it is killed."""

_LINES = 40
_LINE = 300
"""Lines kept of what the library prints, and characters of each."""

_TOLD = re.compile(r"[IWE] (rkllm|RKNN): ")
_PRIVATE = re.compile(r"prompt (text|tokens)", re.IGNORECASE)
"""At its higher log levels the library prints what it reads."""

_INHERITED = re.compile(
    r"PATH|HOME|LANG|LC_.*|TZ|TMPDIR|LD_.*|PYTHON.*|QEMU_.*"
    r"|RKLLM_(?!LOG_LEVEL|DUMP_LEVEL).*|RKNN_(?!LOG_LEVEL|DUMP_LEVEL).*"  # those would have it print or keep texts
    r"|GOMP_.*|OMP_(?!NUM_THREADS).*"  # 1 in this process (cli.server.lean); the library wants several
)
"""Names of environment variables that a worker gets; keys and passwords of whatever kind are none of its business."""

_HINTS: Mapping[str, str] = {
    "SIGILL": "this release of the runtime uses instructions that the CPU does not have: try another one (1.2.3)",
    "SIGBUS": "seen with runtime 1.3.1 on driver 0.9.8: try another release",
    "SIGSEGV": "seen when memory runs out, and when npu_abi is not the library's",
    "SIGKILL": "perhaps by the kernel, because memory ran out",
}


class Opening(NamedTuple):
    """What a worker is begun with: the model, and the tokens whose logits are wanted; none for vectors."""

    job: Job
    wanted: tuple[int, ...] = ()


class Failed(Exception):
    """The worker answered that it could not; it goes on."""


class Refused(Failed):
    """The library would not have the model file."""


class Late(Failed):
    """A run was ended because it took too long; the worker goes on."""


class Died(Exception):
    """The worker is no more.

    Attributes:
        how: one word for a metric: exit, hang or a signal's name.
        idle: whether it went before it was given the text.
    """

    def __init__(self, message: str, *, how: str, idle: bool = False) -> None:
        super().__init__(message)
        self.how = how
        self.idle = idle


class Worker:
    """A process with one model. One thread calls; nothing here waits for longer than it says.

    Args:
        opening: the model.
        interpreter: the command that runs Python modules.
        environment: of the process; this one's without what must not be inherited if left out.
        note: told each line that the library logs, without texts; from a thread of its own.
    """

    def __init__(
        self,
        opening: Opening,
        *,
        interpreter: Sequence[str] = INTERPRETER,
        environment: Mapping[str, str] | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        told: dict[str, Any] = {"job": opening.job._asdict(), "wanted": opening.wanted}
        self._numbers = np.empty(0, np.float32)
        self._ids = np.empty(0, np.int32)
        self._number = 0
        self._patience = 0.0
        self._open = False
        self._note = note
        self.lines: deque[str] = deque(maxlen=_LINES)
        """What the library said of itself so far."""
        self._held = ExitStack()
        with ExitStack() as lent:
            try:
                memory = os.memfd_create("appliance-npu")
                lent.callback(os.close, memory)
                numbers = numbers_of(told)
                size = 4 * (numbers + opening.job.context)
                os.ftruncate(memory, size)
                self._memory = mmap.mmap(memory, size)
                self._held.callback(self._memory.close)
                self._door, theirs = _pair(self._held, lent)
                self._control, their_control = _pair(self._held, lent)
                passed = (theirs.fileno(), their_control.fileno(), memory)
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    [*interpreter, "-m", _MODULE, *map(str, passed)],
                    cwd=_ROOT,
                    env=dict(inherited() if environment is None else environment),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=passed,
                )
            except OSError as error:
                self._held.close()
                raise Died(f"no process could be begun for it: {error.strerror}", how="exit") from error
        shared: npt.NDArray[np.int32] = np.frombuffer(self._memory, np.int32)
        self._numbers, self._ids = shared[:numbers].view(np.float32), shared[numbers:]
        del shared
        self._reader = threading.Thread(target=self._read, name="npu-log", daemon=True)
        self._reader.start()
        try:
            self._door.send(json.dumps(told, ensure_ascii=False).encode(errors="surrogateescape"))
        except OSError as error:
            raise self._ended("at once") from error

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def opened(self, *, within: float) -> None:
        """Return once the model is open.

        Raises:
            Refused: the library will not have the model; the process has ended.
            Failed: the library itself is of no use; the process has ended.
            Died: the process died over it, or took longer than `within` seconds and was killed.
        """
        answer = json.loads(self._received(within, what="loading the model"))
        if "error" in answer:
            self.end()
            raise (Refused if answer["model"] else Failed)(answer["error"])
        self._open = True

    def run(self, ids: npt.NDArray[np.int64], *, within: float) -> tuple[Vector, Perf]:
        """What the model makes of a text: its pooled vector or the wanted logits, float32, and what was measured.

        Args:
            ids: token ids, int64 (tokens,), not more than the context.
            within: seconds after which the run is ended.

        Raises:
            Failed: this text got no answer.
            Late: it was too slow, and gave up when told to.
            Died: the process died over it, or had to be killed.
        """
        self._number += 1
        self._ids[: len(ids)] = ids
        self._send(REQUEST.pack(self._number, len(ids)))
        try:
            answer = self._received(within, what="a text", give_up=True)
        except Late:
            # Whatever comes now is the answer to what was given up.
            self._received(_GRACE, what="a text that was given up")
            raise
        number, failed, milliseconds, tokens = ANSWER.unpack_from(answer)
        if number != self._number:
            raise self.killed("it answered another question", how="exit")
        if failed:
            raise Failed(answer[ANSWER.size :].decode(errors="replace"))
        return self._numbers.copy(), Perf(milliseconds, tokens)

    def resident(self) -> int:
        """Bytes of memory that the process takes now; 0 if that cannot be told."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        except (OSError, IndexError, ValueError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> None:
        """Tell the process to go; kill it if it does not. Safe to call twice."""
        self._hang_up()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        self._reap()

    def killed(self, reason: str, *, how: str) -> Died:
        """Kill the process; what to raise about it."""
        self._process.kill()
        self._hang_up()
        self._reap()
        return Died(reason, how=how)

    def _send(self, message: bytes) -> None:
        try:
            self._door.send(message)
        except OSError as error:
            died = self._ended("between two texts")
            died.idle = True
            raise died from error

    def _received(self, within: float, *, what: str, give_up: bool = False) -> bytes:
        if within != self._patience:  # kept by the system: Python's own timeout costs a call more each time
            seconds, rest = divmod(max(within, 1e-6), 1)
            timeout = struct.pack("@ll", int(seconds), int(rest * 1e6))
            self._door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
            self._patience = within
        try:
            message = self._door.recv(LONGEST)
        except BlockingIOError as error:
            if give_up and self._told_to_abort():
                raise Late(f"it took longer than {within:.3g} s") from error
            raise self.killed(f"it hung over {what} and was killed after {within:.3g} s", how="hang") from error
        except OSError as error:
            raise self._ended(f"over {what}") from error
        if not message:
            raise self._ended(f"over {what}")
        return message

    def _told_to_abort(self) -> bool:
        with suppress(OSError):
            self._control.send(ABORT.pack(self._number))
            return True
        return False

    def _ended(self, when: str) -> Died:
        self._hang_up()
        try:
            status = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            return self.killed(f"it closed its side {when}", how="exit")
        self._reap()
        if status >= 0:
            return Died(f"its process ended with status {status} {when}", how="exit")
        known = {int(number): number.name for number in signal.Signals}
        name = known.get(-status, f"signal {-status}")
        hint = f" ({_HINTS[name]})" if name in _HINTS else ""
        return Died(f"its process was ended by {name} {when}{hint}", how=name)

    def _hang_up(self) -> None:
        # Nothing may look into memory that is closed.
        self._numbers, self._ids = np.empty(0, np.float32), np.empty(0, np.int32)
        self._held.close()

    def _reap(self) -> None:
        """Take leave of the process. One that is stuck inside the kernel cannot be waited for: a thread does."""
        with suppress(OSError):
            self._process.kill()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            threading.Thread(target=self._process.wait, name="npu-reaper", daemon=True).start()
        else:
            self._reader.join(_GRACE)

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for; for mypy
        with self._process.stdout as output:
            while line := output.readline(1 << 16):
                text = line.decode(errors="replace").strip()[:_LINE]
                # Until the model is open nothing was given that could be told.
                if text and not _PRIVATE.search(text) and (_TOLD.match(text) or not self._open):
                    self.lines.append(text)
                    self._note(text)


def inherited() -> dict[str, str]:
    """What of this process's environment a worker gets."""
    return {name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name)}


def _pair(held: ExitStack, lent: ExitStack) -> tuple[socket.socket, socket.socket]:
    """The two ends of a socket, ours to be closed with `held`, the other with `lent`."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return held.enter_context(here), lent.enter_context(there)
