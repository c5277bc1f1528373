"""Small files that are whole or not there, whatever happens while they are written."""

import os
import secrets
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it lasts through a power cut: beside its place, flushed to the disk, renamed.

    Args:
        path: its folder is made if need be. What another process reads meanwhile is the old file or the new one.
        content: all of it.

    Raises:
        OSError: no space, or the folder cannot be written; nothing is left of the new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as output:
            output.write(content)
            output.flush()
            os.fsync(output.fileno())
        part.replace(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
