"""The settings file: a few values changed, every other line and comment left as it is."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tomlkit
from tomlkit.exceptions import TOMLKitError

from appliance.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Change:
    """One value of the file; `before` is None where the file had none."""

    name: str
    before: str | int | None
    after: str | int

    @property
    def line(self) -> str:
        """As it stands in the file."""
        return f"{self.name} = {tomlkit.item(self.after).as_string()}"

    @property
    def undo(self) -> str:
        """What to do about it, for a person."""
        if self.before is None:
            return f"delete the line {self.line}"
        return f"write {self.name} = {tomlkit.item(self.before).as_string()} again"


def check_writable(file: Path) -> None:
    """See to it that a change can be written, before anyone waits for it.

    Raises:
        InvalidInput: it could not.
    """
    place = file.resolve().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InvalidInput(f"the settings file cannot be written: {file}", param="config")


def changed(file: Path, values: Mapping[str, str | int]) -> tuple[str, list[Change]]:
    """The text of the file with these values, and what differs. The file may be missing; nothing is written.

    Raises:
        InvalidInput: it cannot be read, or is not TOML.
    """
    try:
        text = ""
        with suppress(FileNotFoundError), file.open(encoding="utf-8", newline="") as lines:
            text = lines.read()
        document = tomlkit.parse(text)
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise InvalidInput(f"the settings file cannot be read: {file}", param="config") from error
    changes = []
    for name, value in values.items():
        before = document[name].unwrap() if name in document else None
        if before != value:
            document[name] = value
            changes.append(Change(name, before, value))
    return document.as_string(), changes


def write(file: Path, text: str) -> None:
    """Put the text in the file's place: all of it, or nothing.

    Raises:
        InvalidInput: it cannot be written.
    """
    target = file.resolve()  # a link stays one
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as new:
                with suppress(FileNotFoundError):
                    old = target.stat()
                    os.fchmod(new.fileno(), old.st_mode & 0o7777)
                    with suppress(PermissionError):
                        os.fchown(new.fileno(), old.st_uid, old.st_gid)
                new.write(text)
                new.flush()
                os.fsync(new.fileno())
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        why = (error.strerror or "failed").lower()
        raise InvalidInput(f"the settings file cannot be written: {file}: {why}", param="config") from error
