"""Where model files come from: what every source has in common, and wheels of a package index; `hub` is the other one.

No source is trusted.
"""

import errno
import hashlib
import lzma
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import IO, TypeAlias

from appliance.embedding.spec import WheelSource

CHUNK = 1 << 18
"""Bytes of a file handed on at a time."""

_LOOK = 0.2
"""Seconds between two looks at how far pip is."""

Write: TypeAlias = Callable[[str, Iterable[bytes]], None]
"""Takes a file's name on the card and its bytes; raises Refused when they are not what the card says."""


class SourceFailed(Exception):
    """A source did not give a file; says shortly why. Leaves `embedding` as UpstreamFailed."""


class Refused(SourceFailed):
    """One file is not there or not what the card says; the source's others may be."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds.

    Attributes:
        connect: for one address of the hub to take the connection.
        answer: for the hub to answer, with name resolution, every address, and redirects.
        silence: for the next bytes.
        pip: for pip, all in all.
    """

    connect: float = 5.0
    answer: float = 10.0
    silence: float = 15.0
    pip: float = 1800.0


def fetch_from_wheel(
    source: WheelSource,
    names: Sequence[str],
    write: Write,
    *,
    folder: Path,
    patience: Patience,
    grown: Callable[[int], None],
) -> None:
    """Fetch files out of a wheel, which is taken with pip's own client and configuration and never installed.

    Args:
        source: the wheel.
        names: files of the card.
        write: takes each.
        folder: where a temporary folder may be; it needs room for the archive twice.
        patience: limits on waiting.
        grown: told every fifth of a second how many bytes of the archive are here; what it raises ends pip.

    Raises:
        SourceFailed: pip did not get the archive, or it is another one, or it lacks a file, or `write` refused one;
            it was given the others.
        OSError: no space, or the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="wheel-", suffix=".part", dir=folder, ignore_cleanup_errors=True) as name:
        archive = _downloaded(source, Path(name), patience=patience, grown=grown)
        _unpack(archive, source.folder, names, write)


def _downloaded(source: WheelSource, folder: Path, *, patience: Patience, grown: Callable[[int], None]) -> Path:
    """The archive, its sha256 checked."""
    here, unfinished = folder / "archive", folder / "unfinished"
    unfinished.mkdir()
    here.mkdir()
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--dest",
        str(here),
        f"{source.package}=={source.version}",
    ]
    options = "--no-deps --only-binary=:all: --no-cache-dir --no-input --progress-bar=off --disable-pip-version-check"
    deadline = monotonic() + patience.pip
    with (folder / "log").open("w+b") as log:
        try:
            process = subprocess.Popen(  # noqa: S603 - no shell; package and version match the card's patterns
                [*command, *options.split()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"TMPDIR": str(unfinished)},
            )
        except OSError as error:
            raise SourceFailed(f"Python's pip cannot be started ({error.strerror})") from error
        try:
            while True:
                try:
                    status = process.wait(_LOOK)
                    break
                except subprocess.TimeoutExpired:
                    grown(_largest(unfinished))
                if monotonic() > deadline:
                    raise SourceFailed(f"pip was not done after {patience.pip:g} seconds")
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        said = log.read().decode(errors="replace")
    if status:
        if os.strerror(errno.ENOSPC) in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise SourceFailed(_pip_complaint(said))
    for path in here.iterdir():
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == source.sha256:
                grown(path.stat().st_size)
                return path
    raise SourceFailed("the archive has another sha256 than the card says")


def _largest(folder: Path) -> int:
    """Bytes of the largest file so far; pip may move it away meanwhile."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, (Path(parent) / name).stat().st_size)
            except FileNotFoundError:
                continue
    return largest


def _pip_complaint(said: str) -> str:
    """The line that tells most of what pip printed."""
    if "No module named pip" in said:
        return "this Python has no pip (python -m ensurepip would give it one)"
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    return f"pip: {errors[-1][:200]}" if errors else "pip failed"


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _unpack(archive: Path, folder: str, names: Sequence[str], write: Write) -> None:
    """Hand on the named members, and nothing else; no name in the archive is ever used as a path."""
    failures = []
    try:
        with zipfile.ZipFile(archive) as members:
            for name in names:
                try:
                    with members.open(f"{folder}/{name}" if folder else name) as member:
                        write(name, _chunks(member))
                except KeyError:
                    failures.append(f"{name}: not in the archive")
                except Refused as refusal:
                    failures.append(f"{name}: {refusal}")
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise SourceFailed(f"the archive cannot be read ({error})") from error
    if failures:
        raise SourceFailed("; ".join(failures))
