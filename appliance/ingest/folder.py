"""Which files of a folder are documents, why the others are not, and how a file is read without leaving the folder."""

import errno
import mimetypes
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from appliance.catalog.records import unfit_id
from appliance.ingest.formats.detect import ENDINGS

if TYPE_CHECKING:  # imported where an ignore file is found
    from pathspec import GitIgnoreSpec

LARGEST: Final = 64 * 2**20
"""Bytes of a file that is still read; beyond it is no text that a person wrote."""

BATCH_FILES: Final = 32
BATCH_BYTES: Final = 4 * 2**20
"""Most files and bytes that are put in together; a larger file goes alone."""

IGNORE_FILE: Final = ".applianceignore"
"""Names what is left out of its folder and those below, as `.gitignore` would."""

SETTLE: Final = 2.0
"""Seconds for which a file must not have changed before it is read."""

_IGNORE_SIZE: Final = 2**20
_NEVER: Final = ("audio/", "font/", "image/", "model/", "video/")
_PICTURES: Final = frozenset({".gif", ".jpeg", ".jpg", ".png", ".webp"})
"""Images that a model may take."""

_OLD_OFFICE: Final = frozenset({".doc", ".dot", ".pot", ".pps", ".ppt", ".xls", ".xlt"})
_NO_TEXT: Final = re.compile(
    r"\.(7z|a|apk|bin|bz2|class|db|deb|dll|dylib|exe|gguf|gz|iso|jar|lz4|npy|npz|o|onnx|parquet|pkl|pt|pyc|rar|rpm|"
    r"safetensors|so|sqlite|sqlite3|tar|tgz|wasm|whl|xz|zip|zst)",
    re.IGNORECASE,
)
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Found:
    """A file to send.

    Attributes:
        id: its path from the parent of the folder that was asked for, with `/` on every system.
        path: where it is.
        size: bytes.
        changed: nanoseconds since 1970 at which it last changed.
        border: the folder that it must lie in when it is read; None where it was named itself.
    """

    id: str
    path: Path
    size: int
    changed: int = field(default=0, compare=False)
    border: Path | None = field(default=None, compare=False)

    @property
    def version(self) -> tuple[int, int]:
        """The same while the file does not change."""
        return self.size, self.changed

    def read(self) -> bytes:
        """What is in it. Blocking.

        Raises:
            OSError: it cannot be read, is larger than `LARGEST` by now, or no longer lies in its folder.
        """
        return read_inside(self.border, self.path) if self.border else _content(os.open(self.path, _OPEN))


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder that is left out; the id of a folder ends in a slash.

    Attributes:
        unseen: it could not be looked at, so that nothing is known of what is there.
    """

    id: str
    reason: str
    unseen: bool = field(default=False, compare=False)


_OPEN: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def find(paths: Sequence[Path]) -> Iterator[Found | Skipped]:
    """Every file that the paths name, folders with all they hold, in a fixed order. Blocking.

    Hidden files, and those that an ignore file names, are left out unless named themselves; a link is followed to a
    file inside its folder, never out of it and never to a folder. Of two files with one id the first counts.
    """
    seen: set[str] = set()
    for given in paths:
        # The name as the caller sees it; only `.`, `..` and `/` have to be looked up to have one.
        root = Path(os.path.abspath(given))  # noqa: PTH100  # resolve() would follow a link and change the name
        for each in below(root, root) if root.is_dir() else [_judged(root, root.name, border=None)]:
            if isinstance(each, Found) and each.id in seen:
                yield Skipped(each.id, "another file has the same id")
                continue
            seen.add(each.id)
            yield each


def below(root: Path, folder: Path, *, entered: list[Path] | None = None) -> Iterator[Found | Skipped]:
    """What `find` tells of a folder, where it lies below another one, or is it; ids begin with that one's name.
    Blocking.

    Args:
        root: ids, borders and ignore files begin with it.
        folder: `root` or below it.
        entered: gets every folder that was looked into.
    """
    yield from _inside(root, folder, [] if entered is None else entered)


def batches(files: Iterable[Found]) -> Iterator[list[Found]]:
    """Files that go in together, in the same order: at most `BATCH_FILES`, and `BATCH_BYTES` unless it is one alone."""
    batch: list[Found] = []
    size = 0
    for file in files:
        if batch and (len(batch) == BATCH_FILES or size + file.size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size
    if batch:
        yield batch


def read_inside(border: Path, path: Path) -> bytes:
    """The content of a regular file inside a folder, opened step by step, so that a link that is put in its way
    meanwhile leads nowhere. Blocking.

    Args:
        border: the folder; links on the way to it are its owner's business.
        path: of the file; it may be a link, to a file inside the folder.

    Raises:
        OSError: as `Found.read`.
    """
    root = resolved(border, strict=True)
    inside = resolved(path, strict=True)
    if not inside.is_relative_to(root) or inside == root:
        raise PermissionError(errno.EPERM, "it lies outside the folder")
    *folders, name = inside.relative_to(root).parts
    here = os.open(root, _FLAGS | os.O_DIRECTORY)
    try:
        for folder in folders:
            below = os.open(folder, _FLAGS | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        file = os.open(name, _FLAGS | os.O_NONBLOCK, dir_fd=here)
    finally:
        os.close(here)
    return _content(file)


def _content(file: int) -> bytes:
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "no regular file")
    with os.fdopen(file, "rb") as opened:
        content = opened.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, _too_large())
    return content


def resolved(path: Path, *, strict: bool = False) -> Path:
    """Where a path leads. Raises OSError if it is to be strict and leads nowhere. Blocking.

    `Path.resolve` has a RuntimeError for links in a circle before Python 3.13.
    """
    return Path(os.path.realpath(path, strict=strict))


def why(error: OSError) -> str:
    """The reason in plain words, without the path."""
    return (error.strerror or "cannot be read").lower()


def unwanted(name: str, size: int) -> str:
    """Why a file of this name and size is no document; empty if it may be one."""
    ending = PurePosixPath(name).suffix.lower()
    if ending not in ENDINGS and ending not in _PICTURES:
        kind = mimetypes.guess_type(name)[0] or ""
        if kind.startswith(_NEVER):
            return f"{kind.partition('/')[0]}, not text"
        if ending in _OLD_OFFICE:
            return "an Office format of before 2007"
        if _NO_TEXT.fullmatch(ending):
            return "not text"
    if size == 0:
        return "empty"
    return _too_large() if size > LARGEST else ""


def _too_large() -> str:
    return f"larger than {LARGEST // 2**20} MiB"


class _Ignored:
    """What the ignore files on the way from the root to a folder say; the nearest that says something decides."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._specs: dict[Path, GitIgnoreSpec] = {}

    def enter(self, folder: Path) -> Skipped | None:
        """Read the folder's own file, if there is one; what is told where it cannot be used."""
        path = folder / IGNORE_FILE
        if not os.path.lexists(path):
            return None
        try:
            content = read_inside(self._root, path)
        except OSError as error:
            return Skipped(_id(path, self._root), why(error))
        if len(content) > _IGNORE_SIZE:
            return Skipped(_id(path, self._root), "too large for an ignore file")
        from pathspec import GitIgnoreSpec
        from pathspec.patterns.gitignore import GitIgnorePatternError

        try:
            self._specs[folder] = GitIgnoreSpec.from_lines(content.decode(errors="replace").splitlines())
        except (GitIgnorePatternError, re.error):
            return Skipped(_id(path, self._root), "no ignore file: a line of it is no pattern")
        return None

    def match(self, path: Path, *, folder: bool) -> bool:
        """Whether it is left out."""
        for holder in path.parents if self._specs else ():
            spec = self._specs.get(holder)
            if spec is not None:
                name = path.relative_to(holder).as_posix() + ("/" if folder else "")
                said = spec.check_file(name).include
                if said is not None:
                    return said
            if holder == self._root:
                break
        return False


def _inside(root: Path, start: Path, entered: list[Path]) -> Iterator[Found | Skipped]:
    unreadable: list[OSError] = []
    ignored = _Ignored(root)
    for above in reversed(start.parents):
        if above.is_relative_to(root):
            ignored.enter(above)
    for folder, names, files in os.walk(start, onerror=unreadable.append):
        here = Path(folder)
        entered.append(here)
        if (trouble := ignored.enter(here)) is not None:
            yield trouble
        for name in sorted(names):
            if reason := _closed(here / name, ignored):
                names.remove(name)
                yield Skipped(_text(_id(here / name, root)) + "/", reason)
        names.sort()
        for name in sorted(files):
            if name == IGNORE_FILE:
                continue
            identity = _id(here / name, root)
            reason = "hidden" if name.startswith(".") else "ignored" if ignored.match(here / name, folder=False) else ""
            yield Skipped(_text(identity), reason) if reason else _judged(here / name, identity, border=root)
    for error in unreadable:
        yield Skipped(_text(_id(Path(error.filename), root)) + "/", why(error), unseen=True)


def _closed(folder: Path, ignored: _Ignored) -> str:
    """Why a folder is not entered; empty if it is."""
    if folder.name.startswith("."):
        return "hidden"
    if folder.is_symlink():
        return "a link to a folder"
    return "ignored" if ignored.match(folder, folder=True) else ""


def _judged(path: Path, identity: str, *, border: Path | None) -> Found | Skipped:
    if _text(identity) != identity:
        return Skipped(_text(identity), "its name is not UTF-8")
    if fault := unfit_id(identity):
        return Skipped(identity, f"its name makes no id: {fault}")
    inside = border if border is not None else resolved(path).parent
    try:
        if not resolved(path, strict=True).is_relative_to(resolved(inside)):
            return Skipped(identity, "a link that leads out of the folder")
        about = path.stat()
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        return Skipped(identity, why(error), unseen=not gone)
    if not stat.S_ISREG(about.st_mode):
        return Skipped(identity, "no regular file")
    reason = unwanted(path.name, about.st_size)
    return Skipped(identity, reason) if reason else Found(identity, path, about.st_size, about.st_mtime_ns, border)


def _text(name: str) -> str:
    """The name with `?` for what is not UTF-8."""
    return name.encode(errors="replace").decode()


def _id(path: Path, root: Path) -> str:
    return (root.name / path.relative_to(root)).as_posix()


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be done about a folder.

    Attributes:
        put: files that are new or changed, and have settled.
        gone: ids of files that were there before.
        skipped: files that are left out, and were not told of before.
        unsettled: some still change: look again soon.
    """

    put: tuple[Found, ...]
    gone: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    unsettled: bool

    def __bool__(self) -> bool:
        return bool(self.put or self.gone or self.skipped)


class Follower:
    """Tells what changed in a folder from look to look. A file that was put is told again when it changes, and not
    before: one that nobody can read is no loop. Blocking; one thread at a time.

    Args:
        root: the folder.
        settle: seconds for which a file must have stayed as it is; of those that are there at the first look, none is
            waited for unless it changed within them.
        clock: seconds since 1970; what the file system dates files by.
    """

    def __init__(self, root: Path, *, settle: float = SETTLE, clock: Callable[[], float] = time.time) -> None:
        self.root = root
        self._settle = settle
        self._clock = clock
        self._known: dict[str, tuple[int, int]] = {}
        self._growing: dict[str, tuple[tuple[int, int], float]] = {}
        self._told: dict[str, str] = {}
        self.folders: list[Path] = []
        """Those that the last look went into."""

    def look(self) -> Changes:
        """What changed. It counts as done with when the answer is given: see `again`.

        Raises:
            OSError: the folder is not there.
        """
        with os.scandir(self.root):  # a folder that cannot be read has not lost its files
            pass
        now = self._clock()
        found: dict[str, Found] = {}
        skipped: dict[str, Skipped] = {}
        self.folders = []
        for each in below(self.root, self.root, entered=self.folders):
            if isinstance(each, Found):
                found[each.id] = each
            else:
                skipped[each.id] = each
        unseen = tuple(each.id for each in skipped.values() if each.unseen)
        changed = [each for name, each in found.items() if self._known.get(name) != each.version]
        put = [each for each in changed if self._settled(each, now)]
        gone = [
            name
            for name in self._known
            if name not in found and not any(name == each or name.startswith(each) for each in unseen)
        ]
        if not found and self._known:  # rather a disk that is not mounted than a person who removed everything
            gone = []
        told = [each for name, each in skipped.items() if self._told.get(name) != each.reason]
        self._told = {name: each.reason for name, each in skipped.items()}
        self._growing = {name: seen for name, seen in self._growing.items() if name in found}
        for each in put:
            self._known[each.id] = each.version
            self._growing.pop(each.id, None)
        for name in gone:
            del self._known[name]
        return Changes(tuple(put), tuple(gone), tuple(told), unsettled=len(put) < len(changed))

    def again(self, changes: Changes) -> None:
        """What was told could not be done: tell it again at the next look."""
        for each in changes.put:
            self._known.pop(each.id, None)
        self.adopt(changes.gone)

    def adopt(self, ids: Iterable[str]) -> None:
        """Documents that were put before this follower was: those without a file are told as gone."""
        for name in ids:
            self._known.setdefault(name, (-1, -1))

    def _settled(self, file: Found, now: float) -> bool:
        seen, since = self._growing.get(file.id, (None, now))
        if seen != file.version:
            since = now
            self._growing[file.id] = (file.version, now)
        age = now - file.changed / 1e9
        return now - since >= self._settle or (seen is None and age >= self._settle)
