"""Speed and memory of the appliance, as Markdown tables: against its own engine, and against what people use today.

Figures that are compared come from one run and take turns, so that a busy machine slows both. Servers listen on free
loopback ports with data directories of their own, and end with the run.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from engines import hashing, opening, short
from machine import BenchFailed, Server, Worker, described, get, worker
from npu import overhead
from report import FULL, QUICK, Plan, Table, met
from search import SIZES, search
from stores import named, stores
from subjects import appliance, installed, rival
from texts import LONG, SHORT, documents, texts

from appliance.settings import PROFILES

HERE = Path(__file__).resolve().parent
MEMORY = {"all-minilm-l6-v2": 350, "all-minilm-l6-v2-int8": 250}
"""MB that a server of each model may hold under load."""

ALONE = ("hash", "npu", "search", "stores")
"""Sections that need no model; `npu` needs a C compiler. `search` measures a server, too, where BENCH_POSTGRES_URL
names one, and `stores` also one that BENCH_MILVUS_URL names.
"""

BESIDE = ("start", "open", "short", "profiles")
"""Sections that start what they measure themselves."""

SECTIONS = (*BESIDE, "single", "batch", "cache", "ingest", "memory", *ALONE)


def embedding_bodies(*, words: int, inputs: int, count: int, seed: int, **more: object) -> list[str]:
    """Requests to /v1/embeddings, no text twice, for whatever model is the default; `more` goes into each."""
    source = texts(words, seed=seed)
    bodies = []
    for _ in range(count):
        given = [next(source) for _ in range(inputs)]
        bodies.append(json.dumps({"model": "text-embedding-3-small", "input": given, **more}))
    return bodies


def start(plan: Plan, source: Path, models: Sequence[str]) -> None:
    """From the start of the process to the first answer, the model present."""
    table = Table("Start", "model", "to /health, s", "to /ready, s", "target")
    for model in models:
        times = []
        for _ in range(plan.starts):
            with appliance(source, model) as server:
                times.append((server.health, server.ready))
        health, ready = (median(each) for each in zip(*times, strict=True))
        table.row(model, f"{health:.2f}", f"{ready:.2f}", met(health, 3, least=False))


def profiles(plan: Plan, source: Path, models: Sequence[str]) -> None:
    """What the setting `profile` does to a server under load: the three take turns, each started anew."""
    bodies = embedding_bodies(words=LONG, inputs=32, count=60, seed=7)
    columns = ("model", "profile", "texts/s", "times balanced", "CPU ms/text", "most memory, MB", "times balanced")
    table = Table("Profiles: 32 inputs of 64 tokens, 4 clients", *columns)
    with worker([sys.executable, str(HERE / "load.py")]) as clients:
        for model in models:
            found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in PROFILES}
            for _ in range(plan.rounds):
                for name, rows in found.items():
                    with appliance(source, model, profile=name) as server:
                        spent = server.cpu()
                        load = {"path": "/v1/embeddings", "bodies": bodies, "clients": 4, "seconds": plan.seconds}
                        answer = clients.run(port=server.port, **load)
                        done = 32 * answer["requests"]
                        cpu = 1000 * (server.cpu() - spent) / done
                        rows.append((done / answer["seconds"], cpu, server.memory()["peak"]))
            for name, rows in found.items():
                pairs = list(zip(rows, found["balanced"], strict=True))
                faster, larger = (median(own[n] / base[n] for own, base in pairs) for n in (0, 2))
                rate, cpu, memory = (median(each) for each in zip(*rows, strict=True))
                table.row(model, name, f"{rate:.0f}", f"{faster:.2f}", f"{cpu:.1f}", f"{memory:.0f}", f"{larger:.2f}")


def single(plan: Plan, server: Server, clients: Worker, engine: Worker) -> tuple[object, ...]:
    """One short question at a time: the server's median time against the engine's own."""
    bodies = embedding_bodies(words=SHORT, inputs=1, count=200, seed=1)
    given = [json.loads(body)["input"][0] for body in bodies]
    ours: list[float] = []
    own: list[float] = []
    for _ in range(plan.rounds):
        own += engine.run(texts=given, batch=1, seconds=plan.seconds / 2, lanes=1)["took"]
        ours += clients.run(
            port=server.port, path="/v1/embeddings", bodies=bodies, clients=1, seconds=plan.seconds / 2
        )["took"]
    http, alone = 1000 * median(ours), 1000 * median(own)
    return f"{alone:.2f}", f"{http:.2f}", met(round(http, 2), round(1.3 * alone + 2, 2), least=False)


def batch(plan: Plan, server: Server, clients: Worker, engine: Worker) -> tuple[object, ...]:
    """32 passages of 64 tokens from 4 clients against the engine in a loop with batches of 32."""
    bodies = embedding_bodies(words=LONG, inputs=32, count=60, seed=2)
    given = [text for body in bodies for text in json.loads(body)["input"]]
    ratios, rates, alone, cpu, own_cpu = [], [], [], [], []
    for _ in range(plan.rounds):
        one = engine.run(texts=given, batch=32, seconds=plan.seconds)
        before = server.cpu()
        two = clients.run(port=server.port, path="/v1/embeddings", bodies=bodies, clients=4, seconds=plan.seconds)
        done = 32 * two["requests"]
        alone.append(one["texts"] / one["seconds"])
        rates.append(done / two["seconds"])
        ratios.append(rates[-1] / alone[-1])
        cpu.append(1000 * (server.cpu() - before) / done)
        own_cpu.append(1000 * one["cpu"] / one["texts"])
    return (
        f"{median(alone):.0f}",
        f"{median(rates):.0f}",
        f"{median(own_cpu):.1f}",
        f"{median(cpu):.1f}",
        f"{median(ratios):.2f}",
        met(round(median(ratios), 2), 0.9, least=True),
    )


def cache(plan: Plan, source: Path, model: str, clients: Worker, engine: Worker) -> tuple[object, ...]:
    """64 short texts a request that were all sent before, as base64, from one client: the server's rate and what each
    costs it, against the engine's time for one.
    """
    bodies = embedding_bodies(words=SHORT, inputs=64, count=100, seed=6, encoding_format="base64")
    given = [text for body in bodies[:20] for text in json.loads(body)["input"]]
    rates, cpu, ratios = [], [], []
    with appliance(source, model, remembers=True) as server:
        clients.run(port=server.port, path="/v1/embeddings", bodies=bodies, clients=1, seconds=None)
        computed = get(server.port, "/cache")["misses"]
        for _ in range(plan.rounds):
            own = engine.run(texts=given, batch=32, seconds=plan.seconds / 2)
            before = server.cpu()
            hits = clients.run(port=server.port, path="/v1/embeddings", bodies=bodies, clients=1, seconds=plan.seconds)
            done = 64 * hits["requests"]
            cpu.append((server.cpu() - before) / done)
            rates.append(done / hits["seconds"])
            ratios.append(rates[-1] * own["seconds"] / own["texts"])
        if get(server.port, "/cache")["misses"] != computed:
            raise BenchFailed("texts were computed that had been sent before")
    return (
        f"{median(rates) / median(ratios):.0f}",
        f"{median(rates):.0f}",
        f"{1e6 * median(cpu):.1f}",
        f"{1 / median(cpu):.0f}, {met(1 / median(cpu), 5000, least=True)}",
        f"{median(ratios):.0f}, {met(median(ratios), 20, least=True)}",
    )


def ingest(plan: Plan, server: Server, clients: Worker, engine: Worker, *, folder: Path | None) -> tuple[object, ...]:
    """A collection put in through POST /documents against the engine on the same chunks, batched as it likes."""
    everything = documents(plan.documents, folder=folder, seed=3)
    size = max(len(everything) // plan.rounds, 1)
    ratios, rates, alone, cpu = [], [], [], []
    chunks = 0
    for begin in range(0, size * plan.rounds, size):
        part = everything[begin : begin + size]
        bodies = [json.dumps({"documents": part[n : n + 32], "wait": 600}) for n in range(0, len(part), 32)]
        before = server.cpu()
        took = clients.run(port=server.port, path="/documents", bodies=bodies, clients=4, seconds=None)["seconds"]
        spent = server.cpu() - before
        given = [
            f"{document['title']}\n{chunk['text']}".strip()
            for document in part
            for chunk in get(server.port, f"/documents/{document['id']}/chunks?collection=default")["chunks"]
        ]
        own = engine.run(texts=given, batch=0)
        chunks += len(given)
        alone.append(own["texts"] / own["seconds"])
        rates.append(len(given) / took)
        ratios.append(rates[-1] / alone[-1])
        cpu.append(1000 * spent / len(given))
    return (
        f"{size * plan.rounds} / {chunks}",
        f"{median(alone):.0f}",
        f"{median(rates):.0f}",
        f"{median(cpu):.1f}",
        f"{median(ratios):.2f}",
        met(round(median(ratios), 2), 0.85, least=True),
    )


def measured(plan: Plan, source: Path, models: Sequence[str], *, only: Sequence[str], folder: Path | None) -> None:
    """The sections that share one server for each model."""
    rows: dict[str, list[tuple[object, ...]]] = {name: [] for name in SECTIONS}
    for model in models:
        direct = [sys.executable, str(HERE / "direct.py"), "--data", str(source), "--model", model]
        load = [sys.executable, str(HERE / "load.py")]
        with appliance(source, model) as server, worker(load) as clients, worker(direct) as engine:
            if "single" in only:
                rows["single"].append((model, *single(plan, server, clients, engine)))
            if "batch" in only:
                rows["batch"].append((model, *batch(plan, server, clients, engine)))
            if "cache" in only:
                rows["cache"].append((model, *cache(plan, source, model, clients, engine)))
            if "ingest" in only:
                rows["ingest"].append((model, *ingest(plan, server, clients, engine, folder=folder)))
            memory = server.memory()
            target = met(round(memory["peak"]), MEMORY[model], least=False) if model in MEMORY else "-"
            rows["memory"].append((model, *(f"{memory[name]:.0f}" for name in ("now", "peak", "children")), target))
    titles: dict[str, tuple[str, ...]] = {
        "single": ("A single short question, median", "model", "engine, ms", "server, ms", "target"),
        "batch": (
            "32 inputs of 64 tokens, 4 clients",
            *("model", "engine, texts/s", "server, texts/s", "engine, CPU ms/text", "server, CPU ms/text", "ratio"),
            "target",
        ),
        "cache": (
            "64 short inputs that were sent before, as base64, 1 client",
            *("model", "engine, texts/s", "server, texts/s", "server, CPU µs/text", "texts/s of one core"),
            "times the engine's texts/s",
        ),
        "ingest": (
            "Ingesting a collection",
            *("model", "documents / chunks", "engine, chunks/s", "server, chunks/s", "server, CPU ms/chunk", "ratio"),
            "target",
        ),
        "memory": (
            "Memory after this load",
            *("model", "resident, MB", "at most, MB", "child processes, MB", "target for the most"),
        ),
    }
    for name, (title, *columns) in titles.items():
        if name in only:
            table = Table(title, *columns)
            for row in rows[name]:
                table.row(*row)


def compared(plan: Plan, source: Path, models: Sequence[str], cache: Path) -> None:
    """Against sentence-transformers behind FastAPI: many short inputs, and one question at a time."""
    many = embedding_bodies(words=SHORT, inputs=32, count=100, seed=4)
    one = embedding_bodies(words=SHORT, inputs=1, count=200, seed=5)
    table = Table(
        "Against sentence-transformers behind FastAPI, same weights",
        *("server", "32 short x 8 clients, texts/s", "CPU ms/text", "single short, ms", "most memory, MB"),
        *("times the texts/s", "times the milliseconds"),
    )
    with worker([sys.executable, str(HERE / "load.py")]) as clients, rival(source, cache) as theirs:
        for model in models:
            with appliance(source, model) as ours:
                pairs = [
                    [_short(server, clients, many, one, plan.seconds) for server in (theirs, ours)]
                    for _ in range(plan.rounds)
                ]
                base, own = ([median(each) for each in zip(*side, strict=True)] for side in zip(*pairs, strict=True))
                faster = round(median(b[0] / a[0] for a, b in pairs), 2)
                share = round(median(b[1] / a[1] for a, b in pairs), 2)
                goal = 5 if "int8" in model else 1.8
                table.row("sentence-transformers", *_cells(base, theirs), "1", "1")
                table.row(
                    model,
                    *_cells(own, ours),
                    f"{faster}, {met(faster, goal, least=True)}",
                    f"{share}, {met(share, 0.33, least=False)}",
                )


def _cells(figures: Sequence[float], server: Server) -> tuple[str, ...]:
    rate, p50, cpu = figures
    return f"{rate:.0f}", f"{1000 * cpu:.1f}", f"{1000 * p50:.1f}", f"{server.memory()['peak']:.0f}"


def _short(
    server: Server, clients: Worker, many: list[str], one: list[str], seconds: float
) -> tuple[float, float, float]:
    before = server.cpu()
    answer = clients.run(port=server.port, path="/v1/embeddings", bodies=many, clients=8, seconds=seconds)
    spent = server.cpu() - before
    alone = clients.run(port=server.port, path="/v1/embeddings", bodies=one, clients=1, seconds=seconds / 2)
    done = 32 * answer["requests"]
    return done / answer["seconds"], median(alone["took"]), spent / done


def _section(name: str) -> str:
    if name not in SECTIONS:
        raise argparse.ArgumentTypeError(f"there is no {name}; there are {', '.join(SECTIONS)}")
    return name


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute; the figures are rough")
    parser.add_argument("--model", action="append", help="a model to measure; both MiniLM cards if left out")
    parser.add_argument(
        "sections", nargs="*", type=_section, metavar="SECTION", help=f"to run: {', '.join(SECTIONS)}; all if left out"
    )
    parser.add_argument("--only", action="append", choices=SECTIONS, help="the same")
    parser.add_argument("--compare", action="store_true", help="measure sentence-transformers, too (installs torch)")
    parser.add_argument("--beir", type=Path, metavar="FOLDER", help="ingest its corpus.jsonl instead of made-up texts")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="where models, the rival and databases are kept between runs"
    )
    parser.add_argument(
        "--sizes",
        metavar="CHUNKS",
        type=lambda text: [int(each) for each in text.split(",")],
        help="chunks searched, tens, by commas; 10000,100000,1000000 if left out, without the last if quick",
    )
    parser.add_argument("--vectors", type=Path, metavar="FILE", help="search these (.npy, unit rows), not made-up ones")
    parser.add_argument("--chunks", type=int, default=10_000, help="in the stores that are measured")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    models: list[str] = arguments.model or list(MEMORY)
    named_ones = [*arguments.sections, *(arguments.only or [])]
    only: list[str] = named_ones or ([] if arguments.compare else list(SECTIONS))
    cache = arguments.cache or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "appliance-bench"
    print(described())
    if "npu" in only:
        overhead(plan)
    if "hash" in only:
        hashing(plan)
    if "search" in only:
        search(plan, cache, arguments.sizes or SIZES[: 2 if arguments.quick else None], given=arguments.vectors)
    if "stores" in only:
        stores(plan, arguments.chunks, named())
    if named_ones and not set(only) - set(ALONE):
        return
    source = installed(cache, models)
    for name, section in zip(BESIDE, (start, opening, short, profiles), strict=True):
        if name in only:
            section(plan, source, models)
    if set(only) - {*BESIDE, *ALONE}:
        measured(plan, source, models, only=only, folder=arguments.beir)
    if arguments.compare:
        compared(plan, source, models, cache)


if __name__ == "__main__":
    try:
        main()
    except BenchFailed as error:
        sys.exit(f"error: {error}")
