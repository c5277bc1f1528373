"""Which files are sent, which documents they replace, and how folders are followed: as by the server itself."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from appliance.errors import ApplianceError, InvalidInput, NotAllowed
from appliance.ingest.folder import BATCH_FILES, LARGEST, Changes, Follower, Found, Skipped, batches, find, why
from appliance.ingest.notice import Notice

__all__ = ["BATCH_FILES", "LARGEST", "Found", "Skipped", "Watched", "batches", "find", "prefixes", "why"]

RESCAN = 300.0
"""Seconds after which a folder is looked at in any case."""

_PAUSE = 5.0
"""Seconds before what failed is tried again."""


def prefixes(paths: Sequence[Path]) -> list[str]:
    """What the ids of each folder's documents begin with."""
    return [f"{_named(path).name}/" for path in paths if path.is_dir()]


def _named(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  # a link keeps its name


@dataclass(frozen=True, slots=True)
class Round:
    """What is to be done about the folders: files to send, ids of documents whose files are gone, files left out."""

    files: list[Found]
    gone: list[str]
    skipped: list[Skipped]


class Watched:
    """Folders that are followed for as long as the program runs.

    Args:
        folders: of different names.
        rescan: seconds after which they are looked at in any case.

    Raises:
        InvalidInput: one is no folder, or two have one name.
    """

    def __init__(self, folders: Sequence[Path], *, rescan: float = RESCAN) -> None:
        if not all(folder.is_dir() for folder in folders):
            raise InvalidInput("--watch goes with folders only", param="watch")
        if len(set(prefixes(folders))) < len(folders):
            raise InvalidInput("two folders of one name would have the same ids", param="paths")
        self._followers = [Follower(_named(folder)) for folder in folders]
        self._rescan = rescan

    def adopt(self, documents: Sequence[str]) -> None:
        """Documents of an earlier run: those without a file are gone."""
        for follower in self._followers:
            follower.adopt(each for each in documents if each.startswith(follower.root.name + "/"))

    def rounds(self, act: Callable[[Round], None], *, failed: Callable[[ApplianceError], None]) -> None:
        """Have done what is to be done, again and again; returns only by an exception.

        Args:
            act: does it; what it cannot do for an ApplianceError is there again the next time.
            failed: told that error.

        Raises:
            NotAllowed: as `act` raised it.
            KeyboardInterrupt: the person wants an end.
        """
        notice, end = Notice(), Event()
        try:
            while True:
                looked = list(self._look())
                fresh = notice.follow([folder for follower in self._followers for folder in follower.folders])
                pause = 0.0 if fresh else self._rescan
                if any(changes.unsettled for _, changes in looked):
                    pause = min(pause, 1.0)
                try:
                    if any(changes for _, changes in looked):
                        act(_round(looked))
                except NotAllowed:
                    raise
                except ApplianceError as error:
                    for follower, changes in looked:
                        follower.again(changes)
                    failed(error)
                    time.sleep(_PAUSE)
                    continue
                notice.wait(pause, end)
        finally:
            notice.close()

    def _look(self) -> Iterator[tuple[Follower, Changes]]:
        for follower in self._followers:
            try:
                yield follower, follower.look()
            except OSError:  # not mounted just now, or gone: its documents stay
                continue


def _round(looked: Sequence[tuple[Follower, Changes]]) -> Round:
    changes = [each for _, each in looked]
    return Round(
        [file for each in changes for file in each.put],
        [name for each in changes for name in each.gone],
        [left for each in changes for left in each.skipped],
    )
