"""How far a download is: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from appliance.embedding import pull

EVERY = 5.0
"""Seconds between two lines about one file, where nobody watches a bar."""


class Report(Protocol):
    """Told of every step of a download; from any thread, one at a time."""

    def __call__(self, progress: "pull.Progress", /) -> None:
        """Take note of one step."""
        ...


@contextmanager
def reported(console: Console) -> Iterator[Report]:
    """A report for as long as the block lasts."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=False, expand=True) as bars:
        yield _bars(bars)


def _bars(bars: Progress) -> Report:
    tasks: dict[str, TaskID] = {}
    said = ""

    def report(progress: "pull.Progress") -> None:
        nonlocal said
        if not progress.total:
            if progress.status != said:
                bars.console.print(progress.status)
            said = progress.status
            return
        name = progress.file or progress.status
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=progress.total)
        bars.update(tasks[name], completed=progress.completed, total=progress.total)

    return report


def _lines(console: Console) -> Report:
    said = ""
    spoken: dict[str, float] = {}
    whole: set[str] = set()

    def report(progress: "pull.Progress") -> None:
        nonlocal said
        if not progress.total:
            if progress.status != said:
                console.print(progress.status, soft_wrap=True)
            said = progress.status
            return
        name = progress.file or progress.status
        now = time.monotonic()
        full = progress.completed >= progress.total
        if name not in whole and (full or now - spoken.get(name, float("-inf")) >= EVERY):
            spoken[name] = now
            if full:
                whole.add(name)
            share = 100 * progress.completed // progress.total
            console.print(f"{name}: {share}% of {decimal(progress.total)}", soft_wrap=True)

    return report
