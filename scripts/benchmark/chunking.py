"""What sizes, overlaps, headers and strategies of chunks do to searching. Prints Markdown tables.

    .venv/bin/python scripts/benchmark/chunking.py [--model NAME] [--data FOLDER] [--beir FOLDER] [--only SET ...]

No server is started: documents are cut, embedded, stored and searched by the appliance's own parts. Three sets are made
of what every Python has: `docstrings` (Markdown of the standard library's docstrings; the first sentence of one is the
question, the rest of it the answer), `manual` (pydoc's topics, from which sentences are taken out; such a sentence is
the question, its paragraph the answer) and `code` (sources without docstrings, the first sentence of one is the
question, and the function the answer). A folder as BEIR lays it out is the fourth.

The measure is fair to all sizes: a reader takes the best passages until they have 1,000 tokens together; how much of
the answer has been read? For the BEIR folder, whose judgements name whole documents, it is nDCG@10.
"""

import argparse
import ast
import asyncio
import itertools
import json
import re
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Final, TypeVar

import numpy as np
from cards import shipped_card
from report import Table

from appliance.catalog.records import Chunking, Collection, Work
from appliance.database import Database
from appliance.embedding.embedder import Embedder
from appliance.embedding.engines import open_engine
from appliance.embedding.pull import ModelFiles
from appliance.ingest.parse import parse
from appliance.ingest.prepare import Cut, cut
from appliance.search.quality import ndcg
from appliance.search.retriever import Found, Mode, Place, Query, Retriever
from appliance.settings import Settings, shipped
from appliance.store.base import Chunk, Entry, Vector
from appliance.store.sqlite import SqliteStore

MODULES: Final = (
    "argparse", "ast", "bdb", "calendar", "cmd", "code", "codecs", "collections", "configparser", "contextlib",
    "copy", "csv", "datetime", "decimal", "difflib", "dis", "doctest", "enum", "fileinput", "fractions", "ftplib",
    "functools", "getpass", "gettext", "glob", "heapq", "imaplib", "inspect", "ipaddress", "locale", "logging",
    "mailbox", "mimetypes", "nntplib", "numbers", "optparse", "os", "pathlib", "pdb", "pickle", "platform",
    "plistlib", "poplib", "pprint", "profile", "queue", "random", "sched", "shelve", "shlex", "shutil", "smtplib",
    "socket", "socketserver", "statistics", "string", "subprocess", "tarfile", "telnetlib", "tempfile", "textwrap",
    "threading", "timeit", "tokenize", "trace", "traceback", "turtle", "types", "typing", "unittest.case",
    "urllib.parse", "urllib.request", "uuid", "warnings", "wave", "weakref", "zipfile",
)  # fmt: skip
"""Of the standard library; those that a Python lacks are left out."""

SOURCES: Final = ("argparse", "csv", "difflib", "fractions", "mailbox", "pathlib", "shutil", "statistics", "textwrap")
READ: Final = 1000
"""Tokens of the passages that are read."""

LIMIT: Final = 60
T = TypeVar("T")
SHORTEST, LONGEST, STATEMENTS = 4, 40, 3
"""Words of a question, and statements of a function that is asked for with its docstring."""

MODES: Final[tuple[Mode, ...]] = ("vector", "hybrid")


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and where its answer is: characters of one document, or documents with their gains."""

    text: str
    document: str = ""
    start: int = 0
    end: int = 0
    judged: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it is put in."""

    id: str
    title: str
    text: str
    media_type: str = "text/plain"


@dataclass(frozen=True, slots=True)
class Set:
    """Documents and questions."""

    name: str
    documents: Sequence[Document]
    questions: Sequence[Question]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to cut; `words` puts the section among the words of the title, where the word index finds them."""

    name: str
    chunking: Chunking
    words: bool = False


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="all-minilm-l6-v2-int8")
    parser.add_argument(
        "--data", type=Path, default=Settings.model_fields["data"].get_default(call_default_factory=True)
    )
    parser.add_argument("--beir", type=Path, help="folder with corpus.jsonl, queries.jsonl and qrels.tsv")
    parser.add_argument("--only", nargs="+", default=["docstrings", "manual", "code", "beir"])
    parser.add_argument(
        "--longest", type=int, default=512, help="tokens that the model may be given, whatever its card says"
    )
    parser.add_argument("--questions", type=int, default=240, help="of a set at most")
    parser.add_argument(
        "--documents", type=int, default=80, help="of a set at most; the BEIR folder's follow questions"
    )
    parser.add_argument("--ways", help="a regular expression; only ways whose names it finds")
    options = parser.parse_args()
    asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> None:
    spec = shipped_card(options.model)
    if spec.engine != "hash":
        spec = spec.model_copy(update={"max_tokens": max(spec.max_tokens, options.longest)})
    paths = ModelFiles(options.data / "models").paths(spec)
    embedder = Embedder(spec, open_engine(spec, paths, cache=options.data / "cache"))
    try:
        for each in _sets(options):
            await compare(each, embedder, [way for way in ways(each.name) if re.search(options.ways or "", way.name)])
    finally:
        embedder.close()


def _sets(options: argparse.Namespace) -> Iterator[Set]:
    makers = {"docstrings": docstrings, "manual": manual, "code": code}
    for name in options.only:
        if name in makers:
            made = makers[name]()
            documents = spread(made.documents, options.documents)
            kept = {document.id for document in documents}
            asked = [question for question in made.questions if question.document in kept]
            yield Set(name, documents, spread(asked, options.questions))
        elif options.beir:
            yield beir(options.beir, options.questions)


def ways(name: str) -> list[Way]:
    """What is compared on a set."""
    if name == "code":
        strategies = [("structure", 128), ("structure", 256), ("code", 128), ("code", 256), ("fixed", 256)]
        return [
            Way(f"{strategy}, {tokens}", Chunking(strategy=strategy, tokens=tokens, overlap=0))  # type: ignore[arg-type]
            for strategy, tokens in strategies
        ] + [Way("code, 256, no header", Chunking(strategy="code", tokens=256, overlap=0, header=False))]
    sizes = [Way(f"{size}, overlap 32", Chunking(tokens=size, overlap=32)) for size in (128, 200, 256, 400, 510)]
    return [
        *sizes,
        Way("200, overlap 0", Chunking(tokens=200, overlap=0)),
        Way("256, overlap 0", Chunking(tokens=256, overlap=0)),
        Way("200, overlap 64", Chunking(tokens=200, overlap=64)),
        Way("200, overlap 32, no header", Chunking(tokens=200, overlap=32, header=False)),
        Way("200, overlap 32, section among the words", Chunking(tokens=200, overlap=32), words=True),
        Way("200, overlap 32, sentences", Chunking(strategy="sentences", tokens=200, overlap=32)),
        Way("200, overlap 32, fixed", Chunking(strategy="fixed", tokens=200, overlap=32)),
    ]


async def compare(each: Set, embedder: Embedder, chosen: Sequence[Way]) -> None:
    """Index and ask in every way, and print a table."""
    tokens = sum(len(embedder.spans(document.text)) for document in each.documents)
    title = f"{each.name}: {len(each.documents)} documents, {tokens} tokens, {len(each.questions)} questions"
    measure = "nDCG@10" if each.questions[0].judged else "read in 1,000 tokens"
    table = Table(title, "tokens", "chunks", "tokens of a chunk", *(f"{mode}, {measure}" for mode in MODES))
    known: dict[str, Vector] = {}
    for way in chosen:
        with tempfile.TemporaryDirectory(prefix="chunking-") as folder:
            database = Database(Path(folder) / "appliance.db")
            try:
                database.migrate(shipped("migrations"))
                store = SqliteStore(database)
                chunks = await index(store, each.documents, embedder, way, known)
                retriever = Retriever(vectors=store, words=store)
                scores = [f"{await ask(retriever, each.questions, embedder, mode):.3f}" for mode in MODES]
            finally:
                database.close()
        table.row(way.name, len(chunks), round(statistics.fmean(chunk.tokens for chunk in chunks)), *scores)


async def index(
    store: SqliteStore, documents: Sequence[Document], embedder: Embedder, way: Way, known: dict[str, Vector]
) -> list[Chunk]:
    """Cut, embed and store; vectors are looked up in `known` first and kept there."""
    dimensions = embedder.spec.dimensions
    store.create("c", dimensions)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    collection = Collection(1, "c", embedder.spec.name, "", dimensions, "ready", moment, way.chunking, "c")
    pieces: list[Cut] = []
    for number, document in enumerate(documents):
        body = document.text.encode()
        work = Work(collection, number, document.id, 1, 1, document.title, {}, document.media_type, body)
        found = parse(body, media_type=document.media_type, name=document.id)
        pieces.append(cut(work, found, embedder, chunk_tokens=0, chunk_overlap=32))
    fresh = sorted({str(text) for piece in pieces for text in piece.inputs} - known.keys(), key=len)
    for start in range(0, len(fresh), 256):
        part = fresh[start : start + 256]
        known |= zip(part, (await embedder.embed(part)).vectors, strict=True)
    entries: list[Entry] = []
    for document, piece in zip(documents, pieces, strict=True):
        chunks = list(piece.chunks)
        if way.words:
            chunks = [replace(chunk, title=f"{chunk.title} {chunk.metadata.get('section', '')}") for chunk in chunks]
        entries.append(Entry(document.id, chunks, np.stack([known[str(text)] for text in piece.inputs])))
    store.put_many("c", entries)
    return [chunk for entry in entries for chunk in entry.chunks]


async def ask(retriever: Retriever, questions: Sequence[Question], embedder: Embedder, mode: Mode) -> float:
    """The mean of the measure."""
    place = Place("c", embedder.spec.name, embedder.spec.dimensions, embedder)
    values = []
    for question in questions:
        found = (await retriever.search(Query(q=question.text, places=[place], limit=LIMIT, mode=mode))).found
        if question.judged:
            values.append(ndcg(list(dict.fromkeys(match.document for match in found)), question.judged, k=10))
        else:
            values.append(share_read(question, found))
    return statistics.fmean(values)


def share_read(question: Question, found: Sequence[Found]) -> float:
    """How much of the answer is in the best passages, read until they have `READ` tokens."""
    read: set[int] = set()
    left = READ
    for match in found:
        chunk = match.chunk
        part = min(1.0, left / max(chunk.tokens, 1))  # of the last one, its beginning
        end = chunk.start + round((chunk.end - chunk.start) * part)
        if match.document == question.document:
            read.update(range(max(chunk.start, question.start), min(end, question.end)))
        left -= chunk.tokens
        if left <= 0:
            break
    return len(read) / (question.end - question.start)


def spread(things: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly from the whole."""
    step = max(1.0, len(things) / most)
    return [things[int(place * step)] for place in range(min(most, len(things)))]


# The sets


def docstrings() -> Set:
    """One Markdown document for each module: its definitions as headings, their docstrings without first sentences."""
    documents, questions = [], []
    for name in MODULES:
        source = _source(name)
        if source is None:
            continue
        text = f"# {name}\n\n"
        for node, depth in _definitions(ast.parse(source)):
            summary, rest = _summary(ast.get_docstring(node) or "")
            if not rest:
                continue
            label = f"class {node.name}" if isinstance(node, ast.ClassDef) else f"{node.name}()"
            text += f"{'#' * min(depth + 2, 6)} {label}\n\n"
            if _is_question(summary) and len(rest.split()) >= LONGEST // 2:
                questions.append(Question(summary, name, len(text), len(text) + len(rest)))
            text += f"{rest}\n\n"
        documents.append(Document(name, name, text, "text/markdown"))
    return Set("docstrings", documents, questions)


def manual() -> Set:
    """The topics of pydoc; a sentence of every long paragraph is taken out and asked."""
    documents: list[Document] = []
    questions = []
    for name, topic in sorted(topics.items()):
        if any(topic[200:600] in other for key, other in topics.items() if key != name and len(other) >= len(topic)):
            continue  # a part of another topic
        text = ""
        for paragraph in re.split(r"\n{2,}", topic):
            sentences = re.split(r"(?<=[.:])\s+(?=[A-Z\"])", paragraph)
            middle = re.sub(r"\s+", " ", sentences[len(sentences) // 2])
            if len(sentences) > STATEMENTS and _is_question(middle):
                rest = " ".join(sentences[: len(sentences) // 2] + sentences[len(sentences) // 2 + 1 :])
                questions.append(Question(middle, name, len(text), len(text) + len(rest)))
                text += rest + "\n\n"
            else:
                text += paragraph + "\n\n"
        documents.append(Document(name, "", text))
    return Set("manual", documents, questions)


def code() -> Set:
    """Sources without docstrings."""
    documents, questions = [], []
    for name in SOURCES:
        source = _source(name)
        if source is None:
            continue
        lines = source.splitlines(keepends=True)
        asked = []
        tree = ast.parse(source)
        for node in [tree, *(node for node, _ in _definitions(tree))]:
            summary, _ = _summary(ast.get_docstring(node) or "")
            if not summary:
                continue
            first = node.body[0]
            for number in range(first.lineno - 1, first.end_lineno or first.lineno):
                lines[number] = ""
            if (
                not isinstance(node, ast.Module | ast.ClassDef)
                and _is_question(summary)
                and len(node.body) >= STATEMENTS
            ):
                asked.append((summary, node.lineno - 1, node.end_lineno or node.lineno))
        places = [0, *itertools.accumulate(map(len, lines))]
        questions += [Question(summary, name, places[first], places[last]) for summary, first, last in asked]
        documents.append(Document(name, f"{name}.py", "".join(lines)))
    return Set("code", documents, questions)


def beir(folder: Path, most: int) -> Set:
    """The judged documents of the first questions, and twice as many others."""
    questions = {line["_id"]: line["text"] for line in _lines(folder / "queries.jsonl")}
    judged: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        query, document, gain = line.split("\t")
        if int(gain) > 0 and (query in judged or len(judged) < most):
            judged.setdefault(query, {})[document] = int(gain)
    needed = {document for gains in judged.values() for document in gains}
    corpus = [Document(line["_id"], line["title"], line["text"]) for line in _lines(folder / "corpus.jsonl")]
    others = [document for document in corpus if document.id not in needed]
    others = others[:: max(1, len(others) // (2 * len(needed)))]
    documents = [document for document in corpus if document.id in needed] + others
    return Set(folder.name, documents, [Question(questions[query], judged=gains) for query, gains in judged.items()])


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _source(name: str) -> str | None:
    spec = find_spec(name)
    return (
        Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin and spec.origin.endswith(".py") else None
    )


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _definitions(tree: ast.AST, depth: int = 0) -> Iterator[tuple[_Definition, int]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _Definition):
            yield node, depth
            yield from _definitions(node, depth + 1)


def _summary(docstring: str) -> tuple[str, str]:
    """The first sentence, and what comes after it."""
    first, _, more = docstring.strip().partition("\n\n")
    sentence, _, rest = re.sub(r"\s+", " ", first).partition(". ")
    return sentence.rstrip("."), "\n\n".join(filter(None, [rest.strip(), more.strip()]))


def _is_question(text: str) -> bool:
    return SHORTEST <= len(text.split()) <= LONGEST


if __name__ == "__main__":
    main()
