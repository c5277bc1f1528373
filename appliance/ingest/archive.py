"""Reads the files of an archive, within bounds: how many, how large, how much larger than the archive itself."""

import gzip
import io
import lzma
import re
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Final

from appliance.catalog.records import BELOW, MAX_ID
from appliance.errors import InvalidInput
from appliance.ingest.folder import LARGEST, Skipped, unwanted

MAX_ENTRIES: Final = 10_000
"""Files of one archive, folders and links included."""

MAX_TOTAL: Final = 1024 * 2**20
"""Bytes of all its files together."""

MAX_RATIO: Final = 200
"""How many times larger than the archive its files may be; text is three to ten times."""

_FREE: Final = 2**20
"""Bytes that any archive may hold, however small it is."""

_DIRECTORY: Final = 4 * 2**20
"""Bytes of a ZIP archive's list of files."""

_BLOCK: Final = 2**16
_END: Final = struct.Struct("<4s4H2LH")
_ENDINGS: Final = re.compile(r"(?P<stem>.*)(?P<kind>\.zip|\.tar|\.tar\.gz|\.tgz)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive: the id made from its name, and its content."""

    id: str
    body: bytes


def is_archive(name: str) -> bool:
    """Whether a file of this name is taken for an archive."""
    return _ENDINGS.fullmatch(name) is not None


def stem(name: str) -> str:
    """The archive's name without its ending, as the first part of ids."""
    found = _ENDINGS.fullmatch(PurePosixPath(name.replace("\\", "/")).name)
    part = _part(found["stem"] if found else name)
    return "archive" if part in {"", ".", ".."} else part


def members(file: IO[bytes], *, name: str, prefix: str, size: int) -> Iterator[Member | Skipped]:
    """The files of a ZIP or tar archive, one after the other. Blocking.

    Folders, links, hidden files, archives within it, and what is no text for its name are not given, or as `Skipped`.

    Args:
        file: can be sought in; stays open.
        name: of the archive; its ending says what it is.
        prefix: put in front of each id, with a slash.
        size: bytes of the archive.

    Raises:
        InvalidInput: it is no such archive, is damaged, or is over a bound; some of its files may have been given.
    """
    budget = _Budget(min(MAX_TOTAL, max(_FREE, MAX_RATIO * size)))
    found = _ENDINGS.fullmatch(name)
    kind = found["kind"].lower() if found else ""
    try:
        if kind == ".zip":
            yield from _zip(file, prefix, budget)
        elif kind == ".tar":
            yield from _tar(file, prefix, budget)
        else:
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                yield from _tar(unpacked, prefix, budget)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InvalidInput("the archive is damaged, or of another kind than its name says") from error
    except (OSError, ValueError, KeyError, struct.error, OverflowError, NotImplementedError) as error:
        raise InvalidInput("the archive cannot be read") from error


class _Budget:
    """What is left of the bounds."""

    def __init__(self, total: int) -> None:
        self._left = total
        self._entries = 0

    def entry(self) -> None:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise InvalidInput(f"the archive holds more than {MAX_ENTRIES} files: send it in parts")

    def spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise InvalidInput(
                f"the archive unpacks to more than {MAX_TOTAL // 2**20} MiB, or to more than {MAX_RATIO} times its size"
            )


def _zip(file: IO[bytes], prefix: str, budget: _Budget) -> Iterator[Member | Skipped]:
    _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            budget.entry()
            if info.is_dir():
                continue
            name = _named(info.filename, prefix)
            mode = info.external_attr >> 16
            reason = _reason(info.filename, name, info.file_size)
            if mode and (mode & 0o170000) not in {0, 0o100000}:
                reason = "a link, or no regular file"
            elif info.flag_bits & 0x1:
                reason = "encrypted"
            elif info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                reason = "compressed in a way that is not read"
            if reason:
                yield Skipped(name, reason)
                continue
            with archive.open(info) as packed:
                body = _read(packed, budget)
            yield Skipped(name, unwanted(name, LARGEST + 1)) if body is None else Member(name, body)


def _check_directory(file: IO[bytes]) -> None:
    """Look at the end of a ZIP archive as Python's zipfile will, and refuse a list of files that is too long for it."""
    length = file.seek(0, io.SEEK_END)
    tail_at = max(length - _END.size - 2**16, 0)
    file.seek(tail_at)
    tail = file.read(_END.size + 2**16)
    last = len(tail) - _END.size
    at = last if last >= 0 and tail[last : last + 4] == b"PK\5\6" and tail.endswith(b"\0\0") else tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise InvalidInput("the archive is damaged, or of another kind than its name says")
    entries, size = _END.unpack_from(tail, at)[4:6]
    if tail[max(at - 20, 0) : at].startswith(b"PK\6\7") or entries > MAX_ENTRIES or size > _DIRECTORY:
        raise InvalidInput(f"the archive holds more than {MAX_ENTRIES} files: send it in parts")


def _tar(file: IO[bytes] | gzip.GzipFile, prefix: str, budget: _Budget) -> Iterator[Member | Skipped]:
    bounded = _Bounded(file, budget)
    with tarfile.open(fileobj=bounded, mode="r:") as archive:
        for info in archive:
            budget.entry()
            if info.isdir():
                continue
            name = _named(info.name, prefix)
            reason = _reason(info.name, name, info.size)
            if not info.isreg() or info.issparse():
                reason = "a link, or no regular file"
            if reason:
                yield Skipped(name, reason)
                continue
            packed = archive.extractfile(info)
            body = packed.read(LARGEST + 1) if packed is not None else b""
            if len(body) != info.size:
                raise tarfile.ReadError("unexpected end of data")
            yield Member(name, body)


class _Bounded(io.RawIOBase):
    """What tarfile reads: counted, no read larger than a file may be, and forwards only, which is all it needs: a gzip
    file that is sought backwards is unpacked anew from its beginning.
    """

    def __init__(self, file: IO[bytes] | gzip.GzipFile, budget: _Budget) -> None:
        self._file = file
        self._budget = budget
        self._reached = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST + tarfile.RECORDSIZE:
            raise tarfile.ReadError("a header of the archive is too large")
        content = self._file.read(size)
        self._count()
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        here = self._file.tell()
        if whence != io.SEEK_SET or offset < here:
            raise tarfile.ReadError("the archive's files overlap")
        while here + _BLOCK < offset:  # in steps, so that the bound is met before the end of a bomb is
            here = self._file.seek(here + _BLOCK)
            self._count()
        here = self._file.seek(offset)
        self._count()
        return here

    def _count(self) -> None:
        here = self._file.tell()
        if here > self._reached:
            self._budget.spend(here - self._reached)
            self._reached = here


def _read(packed: IO[bytes], budget: _Budget) -> bytes | None:
    """A file's content; None if it is too large, whatever was said of it."""
    parts = []
    size = 0
    while part := packed.read(_BLOCK):
        budget.spend(len(part))
        size += len(part)
        if size > LARGEST:
            return None
        parts.append(part)
    return b"".join(parts)


def _reason(given: str, name: str, size: int) -> str:
    parts = given.replace("\\", "/").split("/")
    if any((part.startswith(".") and part not in {".", ".."}) or part == "__MACOSX" for part in parts):
        return "hidden"
    if not name.rpartition("/")[2]:
        return "it has no name"
    return unwanted(name, size)


def _named(given: str, prefix: str) -> str:
    """An id from a name that may say anything: no way up, no drive, no control characters, no empty parts."""
    parts = [_part(part) for part in re.sub(r"^[A-Za-z]:", "", given.replace("\\", "/")).split("/")]
    name = "/".join([prefix, *(part for part in parts if part not in {"", ".", ".."})])
    if len(name) > MAX_ID:
        ending = PurePosixPath(name).suffix[:20]
        name = name[: MAX_ID - 1 - len(ending)].rstrip("/") + ending
    return f"{name}_" if name.rpartition("/")[2] in BELOW else name  # an address of its own


def _part(part: str) -> str:
    plain = unicodedata.normalize("NFC", part.encode(errors="replace").decode())
    return "".join(character for character in plain if character.isprintable()).strip()
