"""What commands print: tables and matches for a person, JSON for a program."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:  # imported when something is printed
    from rich.console import Console
    from rich.text import Text

    from appliance.cli.client import Summary
    from appliance.cli.doctor import Check
    from appliance.cli.files import Skipped

FILES_SHOWN = 5
"""Files listed under each reason of a summary."""

TEXT_SHOWN = 300
"""Characters of a match's text."""


def console(*, stderr: bool = False) -> "Console":
    """Standard output or standard error, as rich sees it."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False)


def as_json(content: object, *, line: bool = False) -> None:
    """Print as JSON, indented or as one line."""
    import orjson

    sys.stdout.write(orjson.dumps(content, option=0 if line else orjson.OPT_INDENT_2).decode() + "\n")
    sys.stdout.flush()


@contextmanager
def progress(console: "Console", what: str, *, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and remaining time while the block runs, where a person looks; told how many more are done."""
    if not (console.is_terminal and total):
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        bar = bars.add_task(what, total=total, rate="")

        def advance(files: int) -> None:
            bars.advance(bar, files)
            speed = bars.tasks[0].speed
            bars.update(bar, rate=f"{speed:.1f}/s" if speed else "")

        yield advance


def reindexed(job: Mapping[str, Any]) -> None:
    """Print what a reindex came to."""
    counts = job["counts"]
    typer.echo(f"{job['collection']}: {counts['ready']} embedded anew by {job['name']}, job {job['id']}")
    for each in job.get("failures", []):
        typer.echo(f"  {each['id']}: {each['error']}")
    if job["state"] != "done":
        typer.echo(f"{job['state']}: {job['error'] or 'nothing was changed'}", err=True)


def models(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows of `models.listed` as a table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "installed", "size", "task", "dimensions", "engine"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"],
            "yes" if row["installed"] else "no",
            f"{row['size'] / 2**20:.0f} MiB" if row["size"] else "-",
            row["task"],
            str(row["dimensions"] or "-"),
            row["engine"],
        )
    console().print(table)


def checks(done: Sequence["Check"]) -> None:
    """Print what `doctor` found, and under each line what to do."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(overflow="fold")
    styles = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in done:
        table.add_row(Text(check.status, styles[check.status]), check.name, check.found)
        if check.fix:
            table.add_row("", "", f"-> {check.fix}")
    console().print(table)


def matches(found: Sequence[Mapping[str, Any]]) -> None:
    """Print a search's matches, the best first, each with the place it can be cited by."""
    from rich.text import Text

    from appliance.search.cited import place

    out = console()
    for rank, match in enumerate(found, 1):
        out.print(f"{rank}. {match['title'] or match['document']}  {match['score']:.3f}", style="bold")
        where = place(match["metadata"], match["document"], title=match["title"])
        out.print(f"   {where}, characters {match['start']} to {match['end']}", style="dim")
        out.print(Text("   ").append_text(_shown(match)).append("\n"))
    if not found:
        out.print("nothing was found")


def said(text: str) -> None:
    """Show on a terminal's standard error what goes on, instead of what was shown before; nothing elsewhere."""
    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{text}", nl=False, err=True)


def _shown(match: Mapping[str, Any]) -> "Text":
    """The match's snippet in one line, what was looked for in bold; without one, the beginning of its text."""
    from rich.text import Text

    part = match.get("snippet") or {"text": match["text"][:TEXT_SHOWN], "start": 0, "highlights": []}
    shown = Text("…" if part["start"] else "")
    for place, character in enumerate(part["text"]):
        marked = any(start <= place < end for start, end in part["highlights"])
        white = character.isspace()
        if not (white and (shown.plain[-1:] in {" ", ""})):
            shown.append(" " if white else character, "bold" if marked else None)
    return shown.append("…" if part["start"] + len(part["text"]) < len(match["text"]) else "")


def summary(done: "Summary") -> None:
    """Print what became of the files of `ingest`, and why some were left out."""
    also = "".join(
        f" {number} {what}," for number, what in ((done.moved, "moved"), (done.removed, "removed")) if number
    )
    typer.echo(
        f"{done.added} added, {done.updated} updated, {done.unchanged} unchanged,{also} {len(done.skipped)} skipped,"
        f" {len(done.failed)} failed; {done.chunks} chunks, {done.seconds:.1f} s"
    )
    _reasons("skipped", done.skipped)
    _reasons("failed", done.failed)


def _reasons(what: str, files: Sequence["Skipped"]) -> None:
    reasons: dict[str, list[str]] = {}
    for file in files:
        reasons.setdefault(file.reason, []).append(file.id)
    for reason, ids in sorted(reasons.items(), key=lambda item: -len(item[1])):
        more = f" and {len(ids) - FILES_SHOWN} more" if len(ids) > FILES_SHOWN else ""
        typer.echo(f"{what}: {reason}: {', '.join(ids[:FILES_SHOWN])}{more}")
