"""Which files of a folder are documents, and why the others are not."""

import mimetypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.ingest.formats.detect import ENDINGS

LARGEST = 64 * 2**20
"""Bytes of a file that is still read; beyond it is no text that a person wrote."""

_NEVER = ("audio/", "font/", "image/", "model/", "video/")
_PICTURES = frozenset({".gif", ".jpeg", ".jpg", ".png", ".webp"})
"""Images that a server may take."""

_OLD_OFFICE = frozenset({".doc", ".dot", ".pot", ".pps", ".ppt", ".xls", ".xlt"})
_NO_TEXT = re.compile(
    r"\.(7z|a|apk|bin|bz2|class|db|deb|dll|dylib|exe|gguf|gz|iso|jar|lz4|npy|npz|o|onnx|parquet|pkl|pt|pyc|rar|rpm|"
    r"safetensors|so|sqlite|sqlite3|tar|tgz|wasm|whl|xz|zip|zst)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Found:
    """A file to send.

    Attributes:
        id: its path from the parent of the folder that was asked for, with `/` on every system.
        path: where it is.
        size: bytes.
    """

    id: str
    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder that is left out."""

    id: str
    reason: str


def find(paths: list[Path]) -> Iterator[Found | Skipped]:
    """Every file that the paths name, folders with all they hold, in a fixed order.

    Hidden files are left out unless named themselves; a link is followed to a file inside its folder, never out of it
    and never to a folder. Of two files with one id the first counts.
    """
    seen: set[str] = set()
    for given in paths:
        # The name as the caller sees it; only `.`, `..` and `/` have to be looked up to have one.
        root = Path(os.path.abspath(given))  # noqa: PTH100  # resolve() would follow a link and change the name
        for each in _inside(root) if root.is_dir() else [_judged(root, root.name, root.resolve().parent)]:
            if isinstance(each, Found) and each.id in seen:
                yield Skipped(each.id, "another file has the same id")
                continue
            seen.add(each.id)
            yield each


def _inside(root: Path) -> Iterator[Found | Skipped]:
    border = root.resolve()
    unreadable: list[OSError] = []
    for folder, names, files in os.walk(root, onerror=unreadable.append):
        here = Path(folder)
        for name in sorted(names):
            if name.startswith(".") or (here / name).is_symlink():
                names.remove(name)
                yield Skipped(_id(here / name, root) + "/", "hidden" if name.startswith(".") else "a link to a folder")
        names.sort()
        for name in sorted(files):
            path = here / name
            yield Skipped(_id(path, root), "hidden") if name.startswith(".") else _judged(path, _id(path, root), border)
    for error in unreadable:
        yield Skipped(_id(Path(error.filename), root) + "/", _why(error))


def _judged(path: Path, identity: str, border: Path) -> Found | Skipped:
    reason = ""
    size = 0
    try:
        if not path.resolve(strict=True).is_relative_to(border):
            reason = "a link that leads out of the folder"
        elif not path.is_file():
            reason = "no regular file"
        else:
            size = path.stat().st_size
            reason = _unwanted(path, size)
    except OSError as error:
        reason = _why(error)
    try:
        identity.encode()
    except UnicodeEncodeError:
        return Skipped(identity.encode(errors="replace").decode(), "its name is not UTF-8")
    return Skipped(identity, reason) if reason else Found(identity, path, size)


def _unwanted(path: Path, size: int) -> str:
    ending = path.suffix.lower()
    if ending not in ENDINGS and ending not in _PICTURES:
        kind = mimetypes.guess_type(path.name)[0] or ""
        if kind.startswith(_NEVER):
            return f"{kind.partition('/')[0]}, not text"
        if ending in _OLD_OFFICE:
            return "an Office format of before 2007"
        if _NO_TEXT.fullmatch(path.suffix):
            return "not text"
    if size == 0:
        return "empty"
    if size > LARGEST:
        return f"larger than {LARGEST // 2**20} MiB"
    return ""


def _why(error: OSError) -> str:
    return (error.strerror or "cannot be read").lower()


def _id(path: Path, root: Path) -> str:
    return (root.name / path.relative_to(root)).as_posix()
