"""What `appliance tune` does, and what it says."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from appliance.cli import printing
from appliance.cli.tune.file import Change, changed, check_writable, write
from appliance.cli.tune.plan import (
    Candidate,
    Limits,
    Trial,
    choose,
    limits_of,
    missed,
    most,
    now,
    relatives,
    search,
    tried,
)
from appliance.embedding.pull import ModelFiles
from appliance.embedding.spec import Card
from appliance.errors import EngineFailed
from appliance.settings import Settings

UNDISTURBED = 0.1
"""Share of the cores' time that other work may take before it is told."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it. `overruled` tells what wins over a value that was written, by its name."""

    file: Path
    limits: Limits
    trials: Sequence[Trial]
    chosen: Trial | None
    changes: Sequence[Change]
    written: bool
    overruled: Mapping[str, str]
    missed: Sequence[str]

    @property
    def disturbed(self) -> bool:
        """Whether other work took the machine's cores meanwhile."""
        return any(trial.figures.others > UNDISTURBED for trial in self.trials if trial.figures)


def tune(
    settings: Settings,
    card: Card,
    cards: Sequence[Card],
    *,
    fetch: Callable[[], None],
    again: Callable[[], Settings],
    limits: tuple[str | None, str | None, float | None],
    seconds: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Measure, choose, write, tell.

    Args:
        settings: as the command has them.
        card: the default model.
        cards: all there are.
        fetch: pulls the default model where its files are missing.
        again: reads the settings anew, as the server will.
        limits: memory, latency, rate, as they were asked for.
        seconds: to measure for, all trials together.
        dry_run: write nothing.
        as_json: print JSON.

    Raises:
        Exit: with status 1, where nothing keeps the limits.
        InvalidInput: nothing can be tuned, a limit is none, or the settings file cannot be written.
        EngineFailed: no trial gave figures.
    """
    asked = limits_of(*limits)
    files = ModelFiles(settings.models, offline=True)
    models = relatives(card, cards, files.present)
    file = settings.config or settings.data / "appliance.toml"
    if not dry_run:
        check_writable(file)
    fetch()
    if not as_json:
        models_told = " and ".join(models)
        printing.console(stderr=True).print(f"measuring {models_told}; stop other work meanwhile", soft_wrap=True)
    cores = _cores()
    present = now(settings, card.name, cores=cores)
    total = most(models, cores=cores, now=present)

    trials: list[Trial] = []
    with _watched(total, quiet=as_json) as (begin, end):

        def measure(candidate: Candidate) -> Trial:
            begin(candidate)
            return tried(settings, candidate, seconds=seconds / total)

        for trial in search(models, cores=cores, now=present, limits=asked, measure=measure):
            trials.append(trial)
            end(trial)
    if not any(trial.figures for trial in trials):
        raise EngineFailed(f"nothing could be measured: {trials[0].trouble}")

    chosen = choose(trials, asked)
    changes: list[Change] = []
    overruled: dict[str, str] = {}
    if chosen is not None:
        text, changes = changed(file, _values(chosen.candidate, card))
        if changes and not dry_run:
            write(file, text)
            after = again()
            origins = {name: after.origin(name) for name in _values(chosen.candidate, card)}
            overruled = {name: origin for name, origin in origins.items() if origin != str(file)}
    result = Result(
        file=file,
        limits=asked,
        trials=trials,
        chosen=chosen,
        changes=changes,
        written=bool(changes) and not dry_run,
        overruled=overruled,
        missed=[] if chosen else missed(trials, asked),
    )
    if as_json:
        printing.as_json(_as_json(result))
    else:
        _print(result)
    if chosen is None:
        raise typer.Exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _values(candidate: Candidate, card: Card) -> dict[str, str | int]:
    values: dict[str, str | int] = {"threads": candidate.threads, "batch_tokens": candidate.batch_tokens}
    return values | ({"model": candidate.model} if candidate.model != card.name else {})


@contextmanager
def _watched(total: int, *, quiet: bool) -> Iterator[tuple[Callable[[Candidate], None], Callable[[Trial], None]]]:
    """Told when a trial begins and when it ends: a bar on a terminal, a line elsewhere."""
    console = Console(stderr=True, highlight=False, markup=False, quiet=quiet)
    if not console.is_terminal:
        yield lambda _: None, lambda trial: console.print(" ".join(_cells(trial)), soft_wrap=True)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("", total=total)

        def begin(candidate: Candidate) -> None:
            tokens = f", {candidate.batch_tokens} tokens" if candidate.batch_tokens else ""
            bars.update(bar, description=f"{candidate.model}, {candidate.threads} threads{tokens}")

        yield begin, lambda _: bars.advance(bar)


_COLUMNS = ("", "model", "threads", "tokens", "1, ms", "32, ms", "texts/s", "MB")


def _cells(trial: Trial) -> list[str]:
    candidate, figures = trial.candidate, trial.figures
    cells = [candidate.model, str(candidate.threads), str(candidate.batch_tokens)]
    if figures is None:
        return [*cells, trial.trouble]
    return [
        *cells,
        f"{1000 * figures.single:.1f}",
        f"{1000 * figures.batch:.0f} ({1000 * figures.batch_p95:.0f})",
        f"{figures.rate:.0f}",
        f"{figures.memory / 1e6:.0f}",
    ]


def _print(result: Result) -> None:
    out = printing.console()
    table = Table(box=None, pad_edge=False)
    for place, column in enumerate(_COLUMNS):
        table.add_column(column, no_wrap=True, justify="right" if place > 1 else "left")
    table.add_column("")
    for trial in result.trials:
        cells = _cells(trial) if trial.figures else [*_cells(trial)[:-1], *("-" for _ in range(4))]
        over = ", ".join(result.limits.excess(trial.figures)) if trial.figures else ""
        table.add_row(">" if trial is result.chosen else "", *cells, f"over: {over}" if over else trial.trouble)
    out.print(table)
    for line in _told(result):
        out.print(line, soft_wrap=True)


def _told(result: Result) -> Iterator[str]:
    """What the table does not say, line by line."""
    yield "ms for 1 and for 32 short texts: the median, in brackets what 95 of 100 keep. First: the present settings."
    if result.disturbed:
        yield "Other work took this machine's cores meanwhile: measure again when it is idle."
    if result.chosen is None:
        yield from (f"cannot be met here: {each}" for each in result.missed)
        yield "nothing was written"
        return
    if not result.changes:
        yield f"nothing to write, the settings say so already: {result.file}"
    else:
        yield f"{'written' if result.written else 'would be written'} into {result.file}:"
        yield from (f"    {change.line}" for change in result.changes)
    if result.written:
        yield "A server that runs takes them when it is started again. To undo:"
        yield from (f"    {change.undo}" for change in result.changes)
    yield from (
        f"but {origin} overrules {name}: take it away, or change it" for name, origin in result.overruled.items()
    )


def _as_json(result: Result) -> dict[str, Any]:
    """Seconds, bytes, texts per second."""
    return {
        "limits": asdict(result.limits),
        "trials": [
            asdict(trial.candidate)
            | {"figures": trial.figures and asdict(trial.figures), "trouble": trial.trouble}
            | {"over": result.limits.excess(trial.figures) if trial.figures else {}}
            for trial in result.trials
        ],
        "disturbed": result.disturbed,
        "chosen": result.chosen and asdict(result.chosen.candidate),
        "missed": list(result.missed),
        "file": str(result.file),
        "written": result.written,
        "changes": [asdict(change) for change in result.changes],
        "overruled": dict(result.overruled),
    }
