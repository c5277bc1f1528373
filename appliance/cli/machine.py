"""The machine as `doctor` sees it: files under a root, and the few things that no file says."""

import fcntl
import grp
import os
import resource
import shutil
import stat
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from appliance.embedding.engines.rkllm.library import running_on

LONGEST: Final = 1 << 20
"""Bytes read of one file; those of /proc and /sys that are read here have far less."""

_DRM_VERSION: Final = "@iiiNPNPNP"
"""struct drm_version of Linux' uapi/drm/drm.h: major, minor, patch level, then three lengths, each with its text."""


class Access(NamedTuple):
    """Whether this user may read and write a device node, and which group owns it."""

    usable: bool
    group: str


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything that the checks know; a recorded board is one, too. Reads only, and raises nothing.

    Paths are those of the machine, from `/` on; only `access`, `free` and `driver` are called with real ones.

    Attributes:
        root: where `/` of the machine is.
        environment: the process's.
        machine: what this Python is for: "aarch64", "x86_64".
        clock: the time of day.
        open_files: how many files the process may have open.
        access: of a device node that is there.
        free: bytes that are free for this user below a folder.
        driver: "0.9.8", the version that the driver behind a DRM node tells; "" where it does not.
    """

    root: Path
    environment: Mapping[str, str]
    machine: str
    clock: Callable[[], datetime]
    open_files: int
    access: Callable[[Path], Access]
    free: Callable[[Path], int]
    driver: Callable[[Path], str]

    def real(self, path: str) -> Path:
        """Where a path of the machine is."""
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str:
        """What a file says, at most `LONGEST` bytes of it, stripped; "" where it cannot be read."""
        return self.read(path)[0]

    def read(self, path: str) -> tuple[str, str]:
        """As `text`, and why there is none: "permission denied"."""
        try:
            descriptor = os.open(self.real(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return "", "no file"
                content = b""
                while len(content) < LONGEST and (part := os.read(descriptor, LONGEST - len(content))):
                    content += part
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            return "", (getattr(error, "strerror", "") or str(error)).lower()
        return content.decode(errors="replace").strip().strip("\0"), ""

    def number(self, path: str) -> int:
        """The number that a file begins with; 0 where it has none."""
        first = self.text(path).split(maxsplit=1)
        return int(first[0]) if first and first[0].isascii() and first[0].isdigit() and len(first[0]) < 20 else 0  # noqa: PLR2004  # digits of 64 bits

    def exists(self, path: str) -> bool:
        """Whether there is something, as far as this user may see."""
        return os.path.exists(self.real(path))  # noqa: PTH110  # Path.exists raises where a folder may not be entered

    def which(self, program: str) -> bool:
        """Whether a program is on the PATH."""
        folders = self.environment.get("PATH", "").split(":")
        return any(self.exists(f"{folder}/{program}") for folder in folders if folder)

    def listed(self, pattern: str) -> list[str]:
        """Paths that fit a glob pattern, sorted, at most a thousand."""
        found = []
        try:
            for path in self.root.glob(pattern.lstrip("/")):
                found.append("/" + path.relative_to(self.root).as_posix())
                if len(found) == 1000:  # noqa: PLR2004  # as promised above
                    break
        except (OSError, ValueError):
            pass
        return sorted(found)


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        root=Path("/"),
        environment=os.environ,
        machine=running_on(),
        clock=lambda: datetime.fromtimestamp(time.time(), UTC),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        access=_access,
        free=_free,
        driver=_driver,
    )


def _access(path: Path) -> Access:
    try:
        owner = path.stat().st_gid
    except OSError:
        return Access(usable=False, group="")
    try:
        group = grp.getgrgid(owner).gr_name
    except KeyError:  # of the host, in a container
        group = str(owner)
    return Access(os.access(path, os.R_OK | os.W_OK), group)


def _free(path: Path) -> int:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0


def _driver(path: Path) -> str:
    """DRM_IOCTL_VERSION, which every DRM driver answers: rknpu tells its own version there."""
    size = struct.calcsize(_DRM_VERSION)
    answer = bytearray(size)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, 3 << 30 | size << 16 | ord("d") << 8, answer)  # _IOWR('d', 0, struct drm_version)
        finally:
            os.close(descriptor)
    except OSError:
        return ""
    return ".".join(map(str, struct.unpack(_DRM_VERSION, answer)[:3]))
