"""What to try, each in a process of its own, and which of it to take."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

from appliance.cli.tune.trial import Figures, Job
from appliance.errors import EngineFailed, InvalidInput

if TYPE_CHECKING:
    from appliance.embedding.spec import Card
    from appliance.settings import Settings

BATCHES = (256, 512, 1024, 2048)
"""Tokens of a batch that are tried."""

ALIKE = 0.03
"""Texts per second differ by so much from run to run: of settings that are as good, the one with less memory is taken.
"""

_OPENING = 600.0
"""Seconds that a trial may take beside measuring: a graph may have to be built first."""

_OVER = 4.0
"""How many times as long as it was meant to a trial may measure."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run the model: the settings `model`, `threads`, `batch_tokens`; 0 is the engine's own choice."""

    model: str
    threads: int
    batch_tokens: int


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a candidate: figures, or why there are none."""

    candidate: Candidate
    figures: Figures | None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What has to be kept; None where it does not matter.

    Attributes:
        memory: bytes at most.
        latency: seconds at most for a request of 32 short texts, 95 of 100.
        rate: texts of mixed lengths per second at least.
    """

    memory: int | None = None
    latency: float | None = None
    rate: float | None = None

    def excess(self, figures: Figures) -> dict[str, float]:
        """By how much each limit that is not kept is missed, as a share of it."""
        found = {}
        if self.memory is not None and figures.memory > self.memory:
            found["memory"] = figures.memory / self.memory - 1
        if self.latency is not None and figures.batch_p95 > self.latency:
            found["latency"] = figures.batch_p95 / self.latency - 1
        if self.rate is not None and figures.rate < self.rate:
            found["rate"] = 1 - figures.rate / self.rate
        return found


def relatives(card: "Card", cards: Sequence["Card"], present: Callable[["Card"], bool]) -> list[str]:
    """Names of the model and of those that may take its place: of its space, run alike, with files that are here.

    Raises:
        InvalidInput: nothing about the model can be tuned.
    """
    from appliance.embedding.spec import ClipSpec, OnnxSpec

    if not isinstance(card, OnnxSpec | ClipSpec):
        why = {
            "hash": "takes no settings",
            "rkllm": "runs on the NPU, which settles its own pace",
            "remote": "runs on another server",
        }[card.engine]
        raise InvalidInput(
            f"there is nothing to tune here: {card.name} {why}; threads and batch_tokens are for models that ONNX"
            " Runtime runs on the CPU",
            param="model",
        )
    others = [
        each.name
        for each in cards
        if isinstance(each, type(card)) and each.space == card.space and each.name != card.name and present(each)
    ]
    return [card.name, *others]


def most(models: Sequence[str], *, cores: int, now: Candidate) -> int:
    """How many trials `search` makes at most."""
    return len(_first(models, cores=cores, now=now)) + len({*BATCHES, now.batch_tokens} - {now.batch_tokens})


def _first(models: Sequence[str], *, cores: int, now: Candidate) -> list[Candidate]:
    """What is tried first: every precision with every number of threads; first of all, what the settings say now."""
    threads = sorted({1, max(cores // 2, 1), cores}, reverse=True)
    candidates = [Candidate(model, count, now.batch_tokens) for model in models for count in threads]
    own = replace(now, threads=now.threads or cores)
    return [own, *(each for each in candidates if each != own)]


def search(
    models: Sequence[str],
    *,
    cores: int,
    now: Candidate,
    limits: Limits,
    measure: Callable[[Candidate], Trial],
) -> Iterator[Trial]:
    """Trials one after the other: first precision and threads; then, for the best of these, the tokens of a batch.

    Args:
        models: names, the present one first.
        cores: of this machine.
        now: what the settings say.
        limits: what has to be kept.
        measure: tries one candidate; its answer tells what the engine made of the 0s.
    """
    done = []
    for candidate in _first(models, cores=cores, now=now):
        done.append(measure(candidate))
        yield done[-1]
    best = min((trial for trial in done if trial.figures), key=lambda trial: _rank(trial, limits), default=None)
    if best is None:
        return
    for batch_tokens in BATCHES:
        if batch_tokens != best.candidate.batch_tokens:
            trial = measure(replace(best.candidate, batch_tokens=batch_tokens))
            yield trial
            if trial.figures and trial.candidate.batch_tokens != batch_tokens:
                return  # the engine takes batches of its own


def _rank(trial: Trial, limits: Limits) -> tuple[float, float]:
    if trial.figures is None:
        return float("inf"), 0.0
    return sum(limits.excess(trial.figures).values()), -trial.figures.rate


def choose(trials: Sequence[Trial], limits: Limits) -> Trial | None:
    """The one with the most texts per second among those that keep every limit; the smallest of those as good."""
    kept = [(trial, trial.figures) for trial in trials if trial.figures and not limits.excess(trial.figures)]
    fastest = max((figures.rate for _, figures in kept), default=0.0)
    alike = [(trial, figures) for trial, figures in kept if figures.rate >= (1 - ALIKE) * fastest]
    return min(alike, key=lambda each: each[1].memory)[0] if alike else None


def missed(trials: Sequence[Trial], limits: Limits) -> list[str]:
    """Which limits nothing here keeps, and by how much they are missed at least; for a person.

    Empty where no trial was measured at all.
    """
    figures = [trial.figures for trial in trials if trial.figures]
    if not figures:
        return []
    told = []
    for name in ("memory", "latency", "rate"):
        nearest = min(figures, key=lambda each: limits.excess(each).get(name, 0.0))
        if name in limits.excess(nearest):
            told.append(_told(name, nearest, limits))
    if told:
        return told
    nearest = min(figures, key=lambda each: sum(limits.excess(each).values()))
    parts = "; ".join(_told(name, nearest, limits) for name in limits.excess(nearest))
    return [f"each limit can be kept, but not all at once: nearest comes {parts}"]


def _told(name: str, figures: Figures, limits: Limits) -> str:
    if name == "memory":
        limit = (limits.memory or 0) / 1e6
        used = figures.memory / 1e6
        return f"memory of {used:.0f} MB, {used - limit:.0f} MB over the {limit:.0f} MB asked for"
    if name == "latency":
        limit, took = 1000 * (limits.latency or 0), 1000 * figures.batch_p95
        return f"latency of {took:.0f} ms for 32 short texts, {took - limit:.0f} ms over the {limit:.0f} ms asked for"
    limit = limits.rate or 0
    return f"{figures.rate:.0f} texts/s, {limit - figures.rate:.0f} short of the {limit:.0f} asked for"


def tried(settings: "Settings", candidate: Candidate, *, seconds: float, limit: float | None = None) -> Trial:
    """Measure one candidate in a process of its own, which ends with this call however it ends.

    Args:
        settings: tell where cards, models and caches are.
        candidate: what to measure.
        seconds: to measure for.
        limit: seconds after which the process is ended; some minutes if left out.
    """
    job = Job(
        model=candidate.model,
        cards=str(settings.cards),
        models=str(settings.models),
        cache=str(settings.cache),
        threads=candidate.threads,
        batch_tokens=candidate.batch_tokens,
        seconds=seconds,
    )
    limit = _OPENING + _OVER * seconds if limit is None else limit
    with tempfile.TemporaryFile() as output, _process(job, output.fileno()) as process:
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return Trial(candidate, None, f"took longer than {limit:g} s")
        output.seek(0)
        lines = output.read().splitlines()
    if status < 0:
        return Trial(candidate, None, f"its process was ended by signal {-status}: perhaps memory ran out")
    try:
        answer: dict[str, Any] = json.loads(lines[-1])
        if "trouble" in answer:
            return Trial(candidate, None, answer["trouble"])
        figures = Figures(**answer["figures"])
    except (ValueError, LookupError, TypeError) as error:
        raise EngineFailed(f"a trial ended with status {status} and no figures") from error
    return Trial(replace(candidate, batch_tokens=answer["batch_tokens"]), figures)


@contextmanager
def _process(job: Job, output: int) -> "Iterator[subprocess.Popen[bytes]]":
    """A trial's process at the head of a group of its own. All of it ends with the block, and should we be killed."""
    theirs, ours = os.pipe()  # nothing is ever written: its end tells the trial that we have gone
    try:
        process = subprocess.Popen(  # noqa: S603  # our own module
            [sys.executable, "-m", "appliance.cli.tune.trial", json.dumps(asdict(job))],
            cwd=Path(__file__).parents[3],  # where `appliance` lies
            stdin=theirs,
            stdout=output,
            start_new_session=True,  # Ctrl-C comes to us alone
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, SIGKILL)
        process.wait()
        os.close(ours)


def now(settings: "Settings", model: str, *, cores: int) -> Candidate:
    """What the settings say."""
    return Candidate(model, settings.threads or cores, settings.batch_tokens)


def limits_of(memory: str | None, latency: str | None, rate: float | None) -> Limits:
    """What was asked for on the command line: "512MB", "100ms", 200.

    Raises:
        InvalidInput: that is no size, no duration, or no rate.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    from appliance.settings import Seconds

    values: dict[str, Any] = {}
    for name, option, text, kind in (
        ("memory", "--max-memory", memory, ByteSize),
        ("latency", "--target-latency", latency, Seconds),
        ("rate", "--target-rate", rate, float),
    ):
        if text is not None:
            try:
                value = TypeAdapter[Any](kind).validate_python(text)
            except ValidationError:
                value = 0
            if not 0 < value < float("inf"):
                example = {"memory": "512MB", "latency": "100ms", "rate": "200"}[name]
                raise InvalidInput(f"{option} takes a value like {example}, not {text!r}", param=option)
            values[name] = value
    return Limits(**values)
