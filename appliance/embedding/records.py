"""What a models folder remembers besides files: which bytes a pinned revision had, and which licences were accepted.

<folder>/manifests/<card name>-<revision>.json      the first 12 digits of the revision
<folder>/licenses/<card name>.json

Both are our own data and validated all the same: what cannot be read is as if it were not there.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from appliance.embedding.spec import FileSpec, HasFiles, HubSource
from appliance.embedding.writing import write_whole

_LARGEST = 1 << 20
"""Bytes of one record."""

_SHOWN = 12
"""Digits of a revision in a file's name."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Manifest(_Record):
    version: Literal[1] = 1
    card: str
    repo: str
    revision: str
    folder: str
    files: dict[str, FileSpec]


class _Acceptance(_Record):
    version: Literal[1] = 1
    card: str
    license: str


R = TypeVar("R", bound=_Record)


class Records:
    """The records of one models folder. Any thread; a read costs a `stat` where nothing changed.

    Args:
        folder: of the models; need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._manifests = folder / "manifests"
        self._licenses = folder / "licenses"
        self._read: dict[Path, tuple[tuple[int, int, int], _Record | None]] = {}

    def pinned(self, spec: HasFiles) -> dict[str, FileSpec] | None:
        """The files that the card pins, by name, as one of its hubs had them; None where no manifest has them all."""
        if not spec.pinned:
            return {}
        for source in hubs(spec):
            manifest = self._known(self._manifest(spec, source), _Manifest)
            if (
                manifest is not None
                and (manifest.card, manifest.repo, manifest.revision, manifest.folder)
                == (spec.name, source.repo, source.revision, source.folder)
                and manifest.files.keys() >= set(spec.pinned)
            ):
                return {name: manifest.files[name] for name in spec.pinned}
        return None

    def pin(self, spec: HasFiles, source: HubSource, files: dict[str, FileSpec]) -> None:
        """Remember what a hub had for the card.

        Raises:
            OSError: it cannot be written.
        """
        manifest = _Manifest(
            card=spec.name, repo=source.repo, revision=source.revision, folder=source.folder, files=files
        )
        write_whole(self._manifest(spec, source), manifest.model_dump_json(indent=1).encode())

    def unpin(self, spec: HasFiles, *, keep: Iterable[HasFiles]) -> None:
        """Forget it, but what a card of `keep` has as well: an older one of the same name.

        Raises:
            OSError: it cannot be removed.
        """
        kept = {self._manifest(other, source) for other in keep for source in hubs(other)}
        for path in {self._manifest(spec, source) for source in hubs(spec)} - kept:
            path.unlink(missing_ok=True)

    def accepted(self, spec: HasFiles) -> bool:
        """Whether this licence of the card was accepted, or need not be."""
        if not spec.accept_license:
            return True
        record = self._known(self._acceptance(spec), _Acceptance)
        return record is not None and (record.card, record.license) == (spec.name, spec.license)

    def accept(self, spec: HasFiles) -> None:
        """Remember that the licence was accepted.

        Raises:
            OSError: it cannot be written.
        """
        record = _Acceptance(card=spec.name, license=spec.license)
        write_whole(self._acceptance(spec), record.model_dump_json(indent=1).encode())

    def clean(self) -> None:
        """Remove what a killed process left half written. Only while nobody else writes."""
        for folder in (self._manifests, self._licenses):
            for left in folder.glob("*.part"):
                left.unlink(missing_ok=True)

    def _manifest(self, spec: HasFiles, source: HubSource) -> Path:
        return self._manifests / f"{_plain(spec)}-{source.revision[:_SHOWN]}.json"

    def _acceptance(self, spec: HasFiles) -> Path:
        return self._licenses / f"{_plain(spec)}.json"

    def _known(self, path: Path, kind: type[R]) -> R | None:
        try:
            status = path.stat()
        except OSError:
            return None
        state = (status.st_mtime_ns, status.st_size, status.st_ino)
        remembered = self._read.get(path)
        if remembered is None or remembered[0] != state:
            remembered = self._read[path] = (state, _read(path, kind) if status.st_size <= _LARGEST else None)
        record = remembered[1]
        return record if isinstance(record, kind) else None


def hubs(spec: HasFiles) -> Sequence[HubSource]:
    """The hubs among a card's sources."""
    return [source for source in spec.sources if isinstance(source, HubSource)]


def _plain(spec: HasFiles) -> str:
    """The card's name as part of a file's; `@` is in no name."""
    return spec.name.replace(":", "@")


def _read(path: Path, kind: type[R]) -> R | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
