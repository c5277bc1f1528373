"""Has documents read in processes of their own: what a hostile or damaged file does to its reader ends there."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

from appliance.errors import EngineFailed, InvalidInput
from appliance.ingest import child
from appliance.ingest.formats.detect import NAMES, Kind
from appliance.ingest.formats.document import LONGEST_TITLE, MAX_PAGES, MAX_TEXT, Parsed
from appliance.ingest.formats.links import MAX_LINKS, fit

SECONDS: Final = 15.0
SECONDS_EACH_MB: Final = 1.0
"""Seconds that a document may take, and more for each MB of it; of the clock and of processor time."""

MAX_FILES: Final = 200
"""Documents that one process reads before it is replaced."""

_MAX_TOLD: Final = 4 * 2**20
"""Bytes of what a process tells of a document besides its text."""

_ROOT: Final = Path(__file__).parents[2]
"""Where `appliance` lies, so that it is found wherever we were started."""

_INHERITED: Final = re.compile(r"PATH|LANG|LC_.*|TZ|LD_.*|PYTHON(?!STARTUP|INSPECT).*|QEMU_.*")
"""Names of environment variables that a process gets; keys and passwords of whatever kind are none of its business."""

_METADATA: Final = frozenset({"author", "created_at", "language", "note"})
_GRACE: Final = 5.0

log = structlog.get_logger(__name__)


class Sandbox:
    """Processes that read documents, begun when they are needed and kept for the next one. Blocking; any thread.

    A document that ends its process, takes too long or too much memory fails alone; the next one gets a new process.
    Each process ends when this one does.

    Args:
        processes: that are kept while there is nothing to read.
        seconds: that a document may take, besides `SECONDS_EACH_MB`.
        command: starts a process; the number of its socket is put behind it.
    """

    def __init__(
        self,
        *,
        processes: int = 2,
        seconds: float = SECONDS,
        command: tuple[str, ...] = (sys.executable, "-B", "-m", child.__name__),
    ) -> None:
        self._seconds = seconds
        self._command = command
        self._processes = processes
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._lock = threading.Lock()
        self._closed = False

    def read(self, body: bytes, kind: Kind) -> Parsed:
        """Read a document. Nothing in the answer is taken on trust.

        Raises:
            InvalidInput: it cannot be read, takes too long or too much memory, or ends its process.
            EngineFailed: no process could be begun, or the sandbox is closed.
        """
        reader = self._taken()
        try:
            parsed = reader.read(body, kind, seconds=self._seconds + SECONDS_EACH_MB * len(body) / 1e6)
        except _Gone:  # it went while it had nothing to do: the document has not been seen by it
            self._put_back(reader)
            reader = self._begun()
            try:
                parsed = reader.read(body, kind, seconds=self._seconds + SECONDS_EACH_MB * len(body) / 1e6)
            except _Gone as error:
                raise EngineFailed("the process that reads documents ends at once") from error
            finally:
                self._put_back(reader)
            return parsed
        except BaseException:
            self._put_back(reader)
            raise
        self._put_back(reader)
        return parsed

    def pids(self) -> list[int]:
        """The numbers of the processes there are now."""
        with self._lock:
            return [each.pid for each in (*self._idle, *self._busy)]

    def close(self) -> None:
        """End all processes, also those that read; no other is begun. Safe to call twice."""
        with self._lock:
            self._closed = True
            everyone = [*self._idle, *self._busy]
            self._idle.clear()
        for each in everyone:
            each.kill()

    def _taken(self) -> "_Child":
        with self._lock:
            if self._idle:
                reader = self._idle.pop()
                self._busy.add(reader)
                return reader
        return self._begun()

    def _begun(self) -> "_Child":
        with self._lock:
            if self._closed:
                raise EngineFailed("the appliance is stopping")
            reader = _Child(self._command)
            self._busy.add(reader)
            return reader

    def _put_back(self, reader: "_Child") -> None:
        with self._lock:
            self._busy.discard(reader)
            keep = reader.fit and reader.files < MAX_FILES and len(self._idle) < self._processes and not self._closed
            if keep:
                self._idle.append(reader)
        if not keep:
            reader.kill()


class _Gone(Exception):
    """The process went before it was given the document."""


class _Child:
    """A process that reads one document after the other; one thread at a time."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self.files = 0
        self.fit = True
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603  # our own module
                    [*command, str(theirs.fileno())],
                    cwd=_ROOT,
                    env={name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name)},
                    stdin=subprocess.PIPE,  # it ends when we do, and the process with it
                    stdout=subprocess.DEVNULL,  # libraries may print what they read
                    stderr=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise EngineFailed(f"no process could be begun to read documents: {error.strerror}") from error
        self._door = ours
        self.pid = self._process.pid

    def read(self, body: bytes, kind: Kind, *, seconds: float) -> Parsed:
        deadline = time.monotonic() + seconds
        media_type, charset = kind.media_type.encode(), kind.charset.encode()
        head = child.REQUEST.pack(len(media_type), len(charset), len(body), seconds) + media_type + charset
        self.files += 1
        try:
            self._sent(head, deadline)
            self._sent(body, deadline)
        except TimeoutError:
            raise self._late(kind, seconds) from None
        except OSError as error:
            self.fit = False
            raise _Gone from error
        try:
            status, told, size = child.ANSWER.unpack(self._received(child.ANSWER.size, deadline))
            about = self._received(_within(told, _MAX_TOLD), deadline)
            text = self._received(_within(size, 4 * MAX_TEXT), deadline).decode()
        except TimeoutError:
            raise self._late(kind, seconds) from None
        except ConnectionResetError as error:  # it closed its end with the request unread
            self.fit = False
            raise _Gone from error
        except (OSError, EOFError):
            raise self._ended(kind, seconds) from None
        except ValueError:
            self.fit = False
            raise InvalidInput(_unfit(kind, "what was read from it cannot be used")) from None
        match status:
            case child.DONE:
                return self._checked(kind, about, text)
            case child.REFUSED:
                raise InvalidInput(text[:1000])
            case child.TOO_LARGE:
                self.fit = False
                raise InvalidInput(_unfit(kind, f"it takes more than the {child.MEMORY // 2**20} MiB of memory it may"))
            case _:
                self.fit = False
                log.error("a reader of documents failed", media_type=kind.media_type, error=text[:100])
                raise InvalidInput(_unfit(kind, f"unexpected {text[:100]}"))

    def kill(self) -> None:
        """End the process, and whatever it may have begun. Safe to call twice, and from any thread."""
        self.fit = False
        with suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)  # whoever waits for an answer wakes up
        if self._process.poll() is None:
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        self._door.close()

    def _sent(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._door.settimeout(max(deadline - time.monotonic(), 0.001))
            view = view[self._door.send(view) :]

    def _received(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._door.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = self._door.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def _late(self, kind: Kind, seconds: float) -> InvalidInput:
        self.kill()
        return InvalidInput(_unfit(kind, f"it could not be read within {seconds:.3g} s"))

    def _ended(self, kind: Kind, seconds: float) -> InvalidInput:
        self.fit = False
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        status = self._process.poll()
        self.kill()
        known = {int(number): number.name for number in signal.Signals}
        name = known.get(-status, f"signal {-status}") if status is not None and status < 0 else f"status {status}"
        if name == "SIGXCPU":
            return InvalidInput(_unfit(kind, f"it could not be read within {seconds:.3g} s"))
        return InvalidInput(
            _unfit(kind, f"it ended the process that read it ({name}): it is damaged, or takes too much memory")
        )

    def _checked(self, kind: Kind, about: bytes, text: str) -> Parsed:
        try:
            return _parsed(orjson.loads(about), text, note=kind.note)
        except (ValueError, TypeError, KeyError):
            self.fit = False
            raise InvalidInput(_unfit(kind, "what was read from it cannot be used")) from None


def _within(size: int, limit: int) -> int:
    """The size. Raises ValueError if it is above the limit."""
    if size > limit:
        raise ValueError
    return size


def _unfit(kind: Kind, why: str) -> str:
    return f"the document is {NAMES.get(kind.media_type, 'a text')} that cannot be read: {why}"


def _parsed(told: Mapping[str, Any], text: str, *, note: str) -> Parsed:
    """What a process told, if it is what a reader may tell. Raises ValueError, TypeError, KeyError."""
    pages = tuple((int(start), int(number)) for start, number in told["pages"])
    ascending = all(first <= second for first, second in pairwise(pages))
    if len(pages) > MAX_PAGES or not ascending or any(not 0 <= start <= len(text) for start, _ in pages):
        raise ValueError
    links = tuple((int(start), str(target)) for start, target in told["links"])
    if len(links) > MAX_LINKS or not all(fit(target) for _, target in links):
        raise ValueError
    if any(not 0 <= start <= len(text) for start, _ in links) or any(a > b for (a, _), (b, _) in pairwise(links)):
        raise ValueError
    if len(text) > MAX_TEXT or "\0" in text or "\r" in text:
        raise ValueError
    metadata = {key: str(value)[:1000] for key, value in told["metadata"].items() if key in _METADATA}
    if note:
        metadata["note"] = note
    return Parsed(text, str(told["title"])[:LONGEST_TITLE], str(told["media_type"])[:200], pages, metadata, links)
