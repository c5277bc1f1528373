"""The process that a model on the NPU lives in: reads requests from a socket, texts and vectors from shared memory.

    python -m appliance.embedding.engines.rkllm.worker <requests> <control> <memory>

The three are file descriptors: a SOCK_SEQPACKET socket for requests and their answers, one for what cannot wait, and a
memory file that begins with an answer's numbers, float32, followed by a text's token ids, int32. The process ends when
the other side does, in the middle of a run too.
"""

import ctypes
import json
import mmap
import os
import signal
import socket
import struct
import sys
import threading
from time import perf_counter
from typing import Any, Final

from appliance.embedding.engines.rkllm.session import Job, ModelRefused, Session, SessionFailed

REQUEST: Final = struct.Struct("<QI")
"""Number of the request, tokens. What to do with them was settled when the model was opened."""

ANSWER: Final = struct.Struct("<QIfi")
"""Number of the request, 0 or 1 for a failure whose reason follows in UTF-8, milliseconds and tokens as measured."""

LONGEST: Final = 16_384
"""Bytes of a message, at most."""

_REASON = 1000
"""Characters of a reason, at most."""

_FAREWELL = 0.5
"""Seconds that the model gets to be closed well when the server has gone."""

_LOOK = 50e-6
"""Seconds that a worker looks for the next request before it sleeps."""

ABORT: Final = struct.Struct("<Q")
"""Number of the request to end, if it is still running."""

OPEN_FILES: Final = 102_400
"""What Rockchip's own server asks the system for."""


def numbers_of(opening: dict[str, Any]) -> int:
    """How many float32 stand before the token ids in the memory."""
    return int(opening["job"]["dimensions"]) or len(opening["wanted"])


def main(requests: int, control: int, memory: int) -> None:
    """Serve one model until the other side goes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # may reach the whole group; the server ends us when it is done
        signal.signal(number, signal.SIG_IGN)
    _limits()
    door = socket.socket(fileno=requests)
    opening = json.loads(door.recv(LONGEST).decode(errors="surrogateescape"))
    running = _Running()
    threading.Thread(target=_watch, args=(socket.socket(fileno=control), running), daemon=True).start()
    try:
        session = Session(Job(**opening["job"]))
    except SessionFailed as failure:
        answer = {"error": str(failure)[:_REASON], "model": isinstance(failure, ModelRefused)}
        door.send(json.dumps(answer).encode())
        return
    running.session = session
    door.send(b"{}")
    _serve(door, session, running, opening, memory)
    session.close()
    running.over.set()


class _Running:
    """Which request is running, so that no other one is ended in its place."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._number = 0

    def set(self, number: int) -> None:
        """That of a request when it begins, 0 when it ends."""
        with self._lock:
            self._number = number

    def abort(self, number: int) -> None:
        """End that request, unless it has ended."""
        with self._lock:
            if self.session is not None and number == self._number:
                self.session.abort()


def _serve(door: socket.socket, session: Session, running: _Running, opening: dict[str, Any], memory: int) -> None:
    wanted = opening["wanted"]
    numbers = numbers_of(opening)
    shared = mmap.mmap(memory, 0)
    answer = (ctypes.c_float * numbers).from_buffer(shared)
    into = ctypes.addressof(answer)
    ids = into + ctypes.sizeof(answer)
    while message := _next(door):
        number, count = REQUEST.unpack(message)
        ctypes.memset(into, 0xFF, ctypes.sizeof(answer))  # NaN: should nothing be written, nobody takes it for a vector
        running.set(number)
        try:
            if wanted:
                perf = session.logits(ids, count, wanted=wanted, into=into)
            else:
                perf = session.embed(ids, count, into=into)
            running.set(0)
            door.send(ANSWER.pack(number, 0, *perf))
        except SessionFailed as failure:
            running.set(0)
            door.send(ANSWER.pack(number, 1, 0.0, 0) + str(failure)[:_REASON].encode(errors="replace"))


def _next(door: socket.socket) -> bytes:
    """The next request; nothing when the server has gone. In a queue it comes at once: waking up would take longer than
    to look for it a little.
    """
    until = perf_counter() + _LOOK
    while perf_counter() < until:
        try:
            return door.recv(LONGEST, socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
    return door.recv(LONGEST)


def _watch(control: socket.socket, running: _Running) -> None:
    while message := control.recv(ABORT.size):
        running.abort(*ABORT.unpack(message))
    running.over.wait(_FAREWELL)
    os._exit(0)  # the thread that runs the model may never see that the server is gone


def _limits() -> None:
    """Many open files, as the library wants, and no core dump: it would have the size of the model."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
