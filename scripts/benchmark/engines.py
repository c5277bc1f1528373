"""The engines without a server: feature hashing, a batch of short texts, and how long a model takes to open."""

import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

from cards import shipped_card
from machine import BenchFailed
from report import Plan, Table, met
from texts import SHORT, texts

from appliance.cli.tune.plan import Candidate, tried
from appliance.cli.tune.trial import BATCH, Figures
from appliance.embedding.engines import open_engine
from appliance.embedding.spec import RemoteSpec
from appliance.settings import Settings

MANY = 1000
"""Texts of one call of feature hashing."""


def hashing(plan: Plan) -> None:
    """Feature hashing at its shipped dimensions, batch by batch on one core: finding the words, and hashing them."""
    spec = shipped_card("hash")
    assert not isinstance(spec, RemoteSpec)  # noqa: S101  # as shipped
    engine = open_engine(spec, {}, cache=Path())
    source = texts(SHORT, seed=6)
    given = [list(islice(source, MANY)) for _ in range(8)]
    took, spent = [], []
    end = perf_counter() + plan.rounds * plan.seconds
    while perf_counter() < end:
        start, cpu = perf_counter(), process_time()
        engine.run(engine.prepare(given[len(took) % len(given)], truncate=True))
        took.append(perf_counter() - start)
        spent.append(process_time() - cpu)
    table = Table("Feature hashing, batches of 1,000 short texts", "dimensions", "texts/s", "texts per CPU s", "target")
    rate = round(MANY / median(took))
    table.row(spec.dimensions, rate, round(MANY / median(spent)), met(rate, 50_000, least=True))


def short(plan: Plan, source: Path, models: Sequence[str]) -> None:
    """A request of 32 short texts with nothing beside it, and one short text, as `appliance tune` measures them."""
    table = Table("32 short texts at once", "model", "median, ms", "95 of 100 within, ms", "target for int8")
    for model in models:
        figures = [_trial(source, model, seconds=plan.seconds) for _ in range(plan.rounds)]
        middle, most = (1000 * median(each) for each in zip(*((f.batch, f.batch_p95) for f in figures), strict=True))
        goal = met(round(middle, 1), 100, least=False) if "int8" in model else "-"
        table.row(model, f"{middle:.1f}", f"{most:.1f}", goal)


def opening(plan: Plan, source: Path, models: Sequence[str]) -> None:
    """Opening a model whose graph has to be built first, and one whose graph is there."""
    columns = ("model", "graph to be built, s", "target", "graph there, s", "target")
    table = Table("Opening a model", *columns)
    for model in models:
        cold, warm = [], []
        for _ in range(plan.starts):
            with tempfile.TemporaryDirectory(prefix="bench-open-") as folder:
                (Path(folder) / "models").symlink_to(source / "models")
                cold.append(_trial(Path(folder), model).load)
                warm.append(_trial(Path(folder), model).load)
        built, there = round(median(cold), 2), round(median(warm), 2)
        table.row(model, built, met(built, 5, least=False), there, met(there, 1, least=False))


def _trial(data: Path, model: str, *, seconds: float = 0.1) -> Figures:
    trial = tried(Settings(data=data), Candidate(model, 0, 0), seconds=seconds)
    if trial.figures is None:
        raise BenchFailed(f"{model}: {trial.trouble}")
    assert BATCH == 32  # noqa: S101, PLR2004  # as the title says
    return trial.figures
