"""The process that documents are read in: one after the other, within limits, and nothing else.

Started as a module with the number of a socket. It ends when the other end of the socket is closed, whatever it is at.
What comes over the socket is `REQUEST`, the media type, the charset and the document; what goes back is `ANSWER`, what
was told of the document as JSON, and its text in UTF-8.
"""

import json
import os
import resource
import socket
import struct
import sys
import threading
from typing import Final

from appliance.errors import InvalidInput
from appliance.ingest.formats.detect import Kind
from appliance.ingest.formats.document import Parsed
from appliance.ingest.formats.read import preload, read

REQUEST: Final = struct.Struct("!IIId")
"""Bytes of the media type, of the charset and of the document; seconds of processor time it may take."""

ANSWER: Final = struct.Struct("!BII")
"""What became of it; bytes of JSON and of text."""

DONE, REFUSED, TOO_LARGE, FAILED = range(4)
"""It was read; it was refused, for the reason in the text; memory ran out; it was no document's fault but ours."""

MEMORY: Final = 600 * 2**20
"""Bytes of address space. The interpreter and its libraries take about 100 MiB of them."""

_DOOR: Final = 3
"""The number of the socket. It is the last one that may be open, so that no file, socket or pipe can be opened."""


def main(descriptor: int) -> None:
    """Read documents until the other end is closed."""
    if descriptor != _DOOR:
        os.dup2(descriptor, _DOOR)
        os.close(descriptor)
    door = socket.socket(fileno=_DOOR)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    preload()
    _limit()
    while True:
        lengths = _received(door, REQUEST.size)
        kind, charset, size, seconds = REQUEST.unpack(lengths)
        media_type = _received(door, kind).decode()
        encoding = _received(door, charset).decode()
        body = _received(door, size)
        _allow(seconds)
        status, told, text = _read(body, Kind(media_type, encoding))
        del body
        for part in (ANSWER.pack(status, len(told), len(text)), told, text):
            door.sendall(part)
        if status in {TOO_LARGE, FAILED}:
            os._exit(1)  # what is left of it is not to be trusted with another document


def _read(body: bytes, kind: Kind) -> tuple[int, bytes, bytes]:
    try:
        parsed = read(body, kind)
        return DONE, _told(parsed), parsed.text.encode()
    except InvalidInput as error:
        return REFUSED, b"", error.message.encode()
    except MemoryError:
        return TOO_LARGE, b"", b""
    except Exception as error:  # noqa: BLE001  # a mistake of ours, or of a library's, over a document of any kind
        return FAILED, b"", type(error).__name__.encode()


def _told(parsed: Parsed) -> bytes:
    about = {
        "title": parsed.title,
        "media_type": parsed.media_type,
        "pages": parsed.pages,
        "metadata": dict(parsed.metadata),
        "links": parsed.links,
    }
    return json.dumps(about).encode()


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_DOOR + 1, _DOOR + 1))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # neither processes nor threads, except for root


def _allow(seconds: float) -> None:
    """So much processor time from now; the process is killed when it has had it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard))


def _end_with_parent() -> None:
    """Standard input is a pipe that nobody writes to: it ends when the server does."""
    os.read(0, 1)
    os._exit(0)


def _received(door: socket.socket, size: int) -> bytes:
    """So many bytes."""
    buffer = bytearray(size)
    view = memoryview(buffer)
    done = 0
    while done < size:
        count = door.recv_into(view[done:])
        if not count:
            os._exit(0)
        done += count
    view.release()
    return bytes(buffer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
