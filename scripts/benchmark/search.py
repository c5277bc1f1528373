"""What a search takes: by every vector in sqlite-vec, by signs, exactly, and by pgvector; by words; alone and beside a
writer.

As a program it opens one of the databases that `built` makes, reads one job a line from standard input and writes one
result a line: {"subjects", "rows", "filtered", "writing"} asks each subject for the nearest of these rows of the
queries, in turns.
"""

# ruff: noqa: S608  # table names are ours

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import cache
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from machine import BenchFailed, Worker, worker
from report import Plan, Table, met

from appliance.cli.server import lean

if __name__ == "__main__":
    lean()  # before NumPy is imported

import numpy as np
import postgres

from appliance.database import Database
from appliance.settings import shipped
from appliance.store.base import Chunk, Condition, Entry, Matrix, VectorStore
from appliance.store.ranking import expression
from appliance.store.sqlite import SqliteStore
from appliance.store.words import terms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.store.postgres.store import PostgresStore

DIMENSIONS = 384
CHUNKS = 10
"""Chunks of a document."""

QUERIES = 200
LIMIT = 10
SIZES = (10_000, 100_000, 1_000_000)
WORDS_SIZE = 300_000
SUBJECTS = ("sqlite-vec", "signs", "exact")
SERVER = "pgvector"
"""A subject, too, where BENCH_POSTGRES_URL names a server."""

RARE = Condition("hundredth", "=", 7)
"""Passed by one document in a hundred."""

STOP_WORDS = 150
"""Commonest words, which a question is not searched for."""

_VOCABULARY = 60_000
_PACE = 0.1
"""Seconds between two puts of five documents while searches are timed beside a writer."""


def vectors(size: int, *, given: Path | None) -> tuple[Matrix, Matrix]:
    """So many unit vectors (size, d) to search, and queries of the same kind.

    Rows of a file, the last of it as queries; or made up: documents around the centres of subjects, chunks around those
    of documents, in a space where few directions hold most of what differs, turned so that each dimension has a share.
    """
    if given is not None:
        rows = np.load(given, mmap_mode="r")
        if len(rows) < size + QUERIES:
            raise BenchFailed(f"{given} has {len(rows)} vectors, {size + QUERIES} are needed")
        return np.asarray(rows[:size]), np.asarray(rows[-QUERIES:])
    rng = np.random.default_rng(11)
    turn = np.linalg.qr(rng.normal(size=(DIMENSIONS, DIMENSIONS)))[0].astype(np.float32)
    turn *= ((1 + np.arange(DIMENSIONS) / 8) ** -0.5).astype(np.float32)[:, None]

    def drawn(n: int) -> Matrix:
        return rng.standard_normal((n, DIMENSIONS), np.float32)

    subjects = drawn(max((size + QUERIES) // 200, 20))
    result = np.empty((size + QUERIES, DIMENSIONS), np.float32)
    for start in range(0, len(result), 10_000):
        into = result[start : start + 10_000]
        documents = subjects[rng.integers(0, len(subjects), -(-len(into) // CHUNKS))] + 0.8 * drawn(
            -(-len(into) // CHUNKS)
        )
        mixed = (np.repeat(documents, CHUNKS, axis=0)[: len(into)] + 0.8 * drawn(len(into))) @ turn
        into[:] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    order = rng.permutation(len(result) // CHUNKS)[: QUERIES // CHUNKS]  # whole documents, so that none is half there
    asked = np.zeros(len(result), np.bool_)
    asked.reshape(-1, CHUNKS)[order] = True
    return result[~asked][:size], result[asked][:QUERIES]


def passages(count: int, *, words: int, seed: int, beyond: int = 0) -> Iterator[str]:
    """Texts of made-up words, as often as words are: the n-th one n-th as often as the first; without the first few."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, _VOCABULARY + 1)
    weights[:beyond] = 0
    edges = np.cumsum(weights / weights.sum())
    names = np.array([f"{n:x}".translate(_LETTERS) for n in range(1, _VOCABULARY + 1)])
    for _ in range(count):
        yield " ".join(names[np.searchsorted(edges, rng.random(words)).clip(max=_VOCABULARY - 1)])


_LETTERS = str.maketrans("0123456789", "ghijklmnop")


def built(folder: Path, size: int, *, given: Path | None, words: int) -> dict[str, float]:
    """Make `<size>.db` of chunks of so many words, unless it is there, of these vectors and in the present schema; what
    that took.
    """
    folder.mkdir(parents=True, exist_ok=True)
    schema = max(path.name for path in (shipped("migrations") / "versions").glob("[0-9]*_*.py"))
    made_of = schema if given is None else f"{schema} {given.resolve()} {given.stat().st_mtime_ns}"
    path, notes, queries = (folder / f"{size}-{words}{end}" for end in (".db", ".json", ".npy"))
    if notes.exists():
        known: dict[str, Any] = json.loads(notes.read_text())
        if known.pop("made_of", "") == made_of:
            return known
    for left in folder.glob(f"{path.stem}.*"):
        left.unlink()
    rows, asked = vectors(size, given=given)
    np.save(queries, asked)
    texts = passages(size, words=words, seed=size)
    with closing(Database(path)) as database:
        database.migrate(shipped("migrations"))
        store = SqliteStore(database)
        store.create("c", rows.shape[1])
        began, spent = perf_counter(), process_time()
        for start in range(0, size, 2000):
            numbers = range(start, min(start + 2000, size), CHUNKS)
            store.put_many("c", [_entry(n, rows[n : n + CHUNKS], texts) for n in numbers])
        SqliteStore(database, exact_below=0).improve("c")
        took = {"seconds": perf_counter() - began, "cpu": process_time() - spent}
        store.close()
        with database.write() as connection:
            connection.exec_driver_sql(
                f"CREATE VIRTUAL TABLE bench_floats USING vec0 (chunk_id INTEGER PRIMARY KEY, "
                f"vector FLOAT[{rows.shape[1]}] distance_metric = cosine, chunk_size = 256)"
            )
        for start in range(1, size + 1, 5000):
            with database.write() as connection:
                copy = "INSERT INTO bench_floats SELECT chunk_id, vector FROM embedding WHERE chunk_id BETWEEN ? AND ?"
                connection.exec_driver_sql(copy, (start, start + 4999))
    notes.write_text(json.dumps({**took, "made_of": made_of}))
    return took


def _entry(number: int, rows: Matrix, texts: Iterator[str]) -> Entry:
    metadata = {"hundredth": number // CHUNKS % 100}
    chunks = [Chunk(n, next(texts), 0, 9, 9, metadata=metadata) for n in range(len(rows))]
    return Entry(f"d{number}", chunks, rows)


def search(plan: Plan, kept: Path, sizes: Sequence[int], *, given: Path | None) -> None:
    """Print what searches by vectors take, and by words."""
    folder = kept / ("search-given" if given else "search")
    heads = ("chunks", "subject", "build, s", "start, s", "resident, MB", "p50, ms", "p95, ms", "CPU, ms", "recall@10")
    table = Table(
        "Nearest ten of made-up passages" if given is None else "Nearest ten of given vectors",
        *heads,
        "1 % filter, ms",
        "times faster",
        "target",
    )
    beside = []
    for size in sizes:
        build = built(folder, size, given=given, words=3)
        subjects = (*SUBJECTS, SERVER) if postgres.URL in os.environ else SUBJECTS
        there = postgres.copied(folder / f"{size}-3.db") if SERVER in subjects else {}
        seconds = {"signs": build["seconds"]} | ({SERVER: there["seconds"]} if there else {})
        alone = {name: _alone(folder, size, name) for name in subjects}
        with _opened(folder, size, 3) as child:
            rounds = [child.run(subjects=subjects, rows=_rows(plan, n), filtered=False) for n in range(plan.rounds)]
            passing = [child.run(subjects=subjects, rows=_rows(plan, n), filtered=True) for n in range(2)]
            writing = child.run(subjects=("signs",), rows=list(range(QUERIES)), filtered=False, writing=True)
            idle = child.run(subjects=("signs",), rows=list(range(QUERIES)), filtered=False)
        for name in subjects:
            took = [each for one in rounds for each in one[name]["took"]]
            ratio = median(median(one["sqlite-vec"]["took"]) / median(one[name]["took"]) for one in rounds)
            filtered = median(each for one in passing for each in one[name]["took"])
            table.row(
                f"{size:,}",
                name,
                f"{seconds[name]:.0f}" if name in seconds else "",
                f"{alone[name]['start']:.2f}",
                f"{alone[name]['resident']:.0f}" + (f" + {there['index']:.0f}" if name == SERVER else ""),
                f"{1000 * median(took):.1f}",
                f"{1000 * float(np.percentile(took, 95)):.1f}",
                "-" if name == SERVER else f"{1000 * median(each for one in rounds for each in one[name]['cpu']):.1f}",
                f"{np.mean([one[name]['recall'] for one in rounds]):.3f}",
                f"{1000 * filtered:.1f}",
                f"{ratio:.0f}",
                met(round(ratio), 40, least=True) if name == "signs" and size >= SIZES[-1] else "-",
            )
        beside.append((size, *(float(np.percentile(one["signs"]["took"], 95)) for one in (idle, writing))))
    table = Table(
        "Nearest ten by signs beside a writer of 500 chunks/s, p95",
        "chunks",
        "idle, ms",
        "writing, ms",
        "ratio",
        "target",
    )
    for size, calm, busy in beside:
        times = round(busy / calm, 2)
        table.row(f"{size:,}", f"{1000 * calm:.1f}", f"{1000 * busy:.1f}", times, met(times, 2, least=False))
    _words(plan, kept / "search", max(sizes))


def _rows(plan: Plan, number: int) -> list[int]:
    per = max(int(plan.seconds * 5), 5)
    return [(number * per + n) % QUERIES for n in range(per)]


def _words(plan: Plan, folder: Path, largest: int) -> None:
    size = min(WORDS_SIZE, largest)
    built(folder, size, given=None, words=60)
    names = ("any word", "all words", "matching", "matching and nearest")
    with _opened(folder, size, 60) as child:
        rounds = [child.run(subjects=names, rows=_rows(plan, n), filtered=False) for n in range(plan.rounds)]
    table = Table(f"The best 100 of {size:,} chunks by eight words", "asked", "p50, ms", "p95, ms", "CPU, ms", "target")
    for name in names:
        took = [each for one in rounds for each in one[name]["took"]]
        limit = 30 if name == names[-1] else None
        table.row(
            {"any word": "FTS5, any word", "all words": "FTS5, all words"}.get(name, name),
            f"{1000 * median(took):.1f}",
            f"{1000 * float(np.percentile(took, 95)):.1f}",
            f"{1000 * median(each for one in rounds for each in one[name]['cpu']):.1f}",
            met(round(1000 * median(took), 1), limit, least=False) if limit else "-",
        )


def _alone(folder: Path, size: int, subject: str) -> dict[str, Any]:
    with _opened(folder, size, 3) as child:
        return child.run(subjects=(subject,), rows=[0, 1, 2], filtered=False)


@contextmanager
def _opened(folder: Path, size: int, words: int) -> "Iterator[Worker]":
    program = [sys.executable, str(Path(__file__)), "--database", str(folder / f"{size}-{words}.db")]
    with worker(program) as child:
        yield child


class _Asked:
    """The subjects, on one database; each is asked for the nearest of a row of the queries.

    Args:
        path: of the database.
        stack: closes them.
    """

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.database = stack.enter_context(closing(Database(path)))
        self.queries: Matrix = np.load(path.with_suffix(".npy"))
        self.texts = list(passages(QUERIES, words=8, seed=1, beyond=STOP_WORDS))
        self.signs = stack.enter_context(closing(SqliteStore(self.database, exact_below=0)))
        self.exact = stack.enter_context(closing(SqliteStore(self.database, exact_below=2**62, memory=2**41)))
        self.server: Callable[[], PostgresStore] = cache(lambda: stack.enter_context(postgres.server()))
        self.collection = postgres.name(path)
        self.subjects: Mapping[str, Callable[[int, bool], list[str]]] = {
            "sqlite-vec": self._floats,
            "signs": lambda row, few: self._nearest(self.signs, row, few=few),
            "exact": lambda row, few: self._nearest(self.exact, row, few=few),
            SERVER: lambda row, few: self._nearest(self.server(), row, few=few, collection=self.collection),
            "any word": lambda row, _: self._words(" OR ", row),
            "all words": lambda row, _: self._words(" AND ", row),
            "matching": lambda row, _: [
                str(match.key) for match in self.signs.matching("c", self.texts[row], limit=100)
            ],
            "matching and nearest": self._both,
        }

    def _nearest(self, store: VectorStore, row: int, *, few: bool, collection: str = "c") -> list[str]:
        where = [RARE] if few else []
        return [str(match.key) for match in store.nearest(collection, self.queries[row], limit=LIMIT, where=where)]

    def _floats(self, row: int, few: bool) -> list[str]:  # noqa: FBT001  # as the others
        rare = "SELECT id FROM chunk WHERE collection = 1 AND json_extract(metadata, '$.hundredth') = 7"
        with self.database.read() as connection:
            found = connection.exec_driver_sql(
                "SELECT document, ordinal FROM bench_floats JOIN chunk ON id = chunk_id WHERE vector MATCH ? AND k = ? "
                f"{f'AND chunk_id IN ({rare})' if few else ''} ORDER BY distance",
                (self.queries[row].tobytes(), LIMIT),
            )
            return [str((name, ordinal)) for name, ordinal in found]

    def _words(self, between: str, row: int) -> list[str]:
        asked = between.join(expression(term) for term in terms(self.texts[row]))
        ranked = "SELECT rowid FROM chunk_fts_1 WHERE chunk_fts_1 MATCH ? ORDER BY rank LIMIT 100"
        with self.database.read() as connection:
            return [str(id_) for id_ in connection.exec_driver_sql(ranked, (asked,)).scalars()]

    def _matching(self, row: int) -> list[str]:
        return [str(match.key) for match in self.signs.matching("c", self.texts[row], limit=100)]

    def _both(self, row: int, _few: bool) -> list[str]:  # noqa: FBT001  # as the others
        found: list[str] = []
        words = threading.Thread(target=lambda: found.extend(self._matching(row)))
        words.start()
        self.signs.nearest("c", self.queries[row], limit=100)
        words.join()
        return found

    def run(
        self, *, subjects: Sequence[str], rows: Sequence[int], filtered: bool, writing: bool = False
    ) -> dict[str, Any]:
        """Ask each subject once so that it is ready, then all of them in turns."""
        began = perf_counter()
        for name in subjects:
            self.subjects[name](rows[0], filtered)
        start = perf_counter() - began
        results: dict[str, Any] = {name: {"took": [], "cpu": [], "found": []} for name in subjects}
        with self._writer() if writing else nullcontext():
            for row in rows:
                for name in subjects:
                    wall, cpu = perf_counter(), process_time()
                    found = self.subjects[name](row, filtered)
                    results[name]["took"].append(perf_counter() - wall)
                    results[name]["cpu"].append(process_time() - cpu)
                    results[name]["found"].append(found)
        truth = results.get("exact", {}).get("found")
        for each in results.values():
            found = each.pop("found")
            if truth:
                pairs = zip(found, truth, strict=True)
                each["recall"] = float(np.mean([len({*one} & {*other}) / max(len(other), 1) for one, other in pairs]))
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
        return results | {"start": start, "resident": resident}

    @contextmanager
    def _writer(self) -> Iterator[None]:
        """Puts documents, the same ones again and again, while the block lasts, and removes them at its end."""
        done = threading.Event()
        texts = passages(10**9, words=60, seed=2)

        def write() -> None:
            for turn in count():
                entries = [_entry(CHUNKS * n, self.queries[:CHUNKS], texts) for n in range(5)]
                store.put_many(
                    "c", [Entry(f"w{turn % 20}-{n}", each.chunks, each.vectors) for n, each in enumerate(entries)]
                )
                if done.wait(_PACE):
                    return

        store = self.signs
        thread = threading.Thread(target=write)
        thread.start()
        yield
        done.set()
        thread.join()
        for turn in range(20):
            for n in range(5):
                store.remove("c", f"w{turn}-{n}")


def main() -> None:
    """Open a database and work until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", type=Path, required=True)
    with ExitStack() as stack:
        asked = _Asked(parser.parse_args().database, stack)
        for line in sys.stdin:
            print(json.dumps(asked.run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
