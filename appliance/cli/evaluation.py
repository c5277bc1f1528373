"""How well a running appliance searches, by what people judged relevant."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from socket import create_server
from typing import Any, Final

import httpx

from appliance.cli.client import Server
from appliance.errors import ApplianceError, InvalidInput, UpstreamFailed
from appliance.search.quality import ndcg, recall
from appliance.settings import Settings

MATCHES: Final = 200
"""Passages asked for: enough that the best hundred documents are among them where most have one or two passages."""

RERANKED: Final = 50
"""Passages asked for where a reranker reads each of them."""

BATCH_DOCUMENTS, BATCH_BYTES = 128, 2 * 2**20

REFUSALS: Final = 5
"""Documents that the server refused which are told with its reason."""

MEASURES: Final[Mapping[str, Callable[[Sequence[str], Mapping[str, int]], float]]] = {
    "nDCG@10": lambda ranking, judged: ndcg(ranking, judged, k=10),
    "recall@10": lambda ranking, judged: recall(ranking, judged, k=10),
    "recall@100": lambda ranking, judged: recall(ranking, judged, k=100),
}

MODES: Final[Mapping[str, Mapping[str, object]]] = {mode: {"mode": mode} for mode in ("vector", "keyword", "hybrid")}
"""What is measured of every data set, by the name that it is told under."""

_KEYWORD_WEIGHTS: Final = (0.25, 0.5, 1.0, 2.0)

COMPARED: Final[Mapping[str, Mapping[str, object]]] = {
    "vector": {"mode": "vector"},
    "keyword": {"mode": "keyword"},
    "hybrid, as set": {"mode": "hybrid"},
    **{
        f"hybrid, {fusion}, words {weight:g}": {
            "mode": "hybrid",
            "fusion": fusion,
            "vector_weight": 1.0,
            "keyword_weight": weight,
        }
        for fusion in ("rrf", "dbsf")
        for weight in _KEYWORD_WEIGHTS
    },
    "hybrid, as set, reranked": {"mode": "hybrid", "rerank": True},
}
"""What `--compare` measures."""

Judged = Mapping[str, Mapping[str, int]]
"""Gains by query and document."""

Progress = Callable[[str], None]


def evaluate(
    server: Server, folder: Path, *, collection: str, model: str | None, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """Index a data set's corpus, ask every judged question in every mode, and average the measures.

    Args:
        server: where.
        folder: a data set as BEIR lays it out.
        collection: made if it is not there; what it has already stays.
        model: of the collection; the server's default if None.
        progress: told what goes on.

    Raises:
        InvalidInput: the folder holds no such data set, or the server refuses every document of it.
        UpstreamFailed: the server cannot be reached, or failed.
    """
    judged = read_judgements(folder)
    questions = read_questions(folder, judged)
    server.ensure(collection, model=model)
    started = time.monotonic()
    indexed = 0
    refusals: list[dict[str, str]] = []
    for batch in batches(read_corpus(folder)):
        outcomes = server.put(collection, batch)
        if failed := [each for each in outcomes if each["state"] == "failed"]:
            raise UpstreamFailed(f"document {failed[0]['id']} failed: {failed[0].get('error')}")
        refused = [each for each in outcomes if each["change"] == "refused"]
        refusals += [{"id": each["id"], "error": each["error"] or "refused"} for each in refused]
        indexed += len(outcomes) - len(refused)
    if refusals and not indexed:
        raise InvalidInput(
            f"every document was refused, the first: {refusals[0]['id']}: {refusals[0]['error']}", param="folder"
        )
    chunks = _indexed(server, collection, indexed, progress)
    seconds = time.monotonic() - started
    return {
        "collection": collection,
        "documents": indexed,
        "refused": len(refusals),
        "refusals": refusals,
        "chunks": chunks,
        "queries": len(questions),
        "seconds": seconds,
        "documents/s": indexed / seconds,
        "modes": {
            name: measured(server, questions, judged, collection=collection, options=options, name=name, told=progress)
            for name, options in MODES.items()
        },
    }


def compare(server: Server, folder: Path, *, collection: str, progress: Progress = lambda _: None) -> dict[str, Any]:
    """Ask every judged question of a collection that is there, in every way that a setting can choose. Changes nothing.

    Args:
        server: where.
        folder: has queries.jsonl and qrels; no corpus is needed.
        collection: its documents are those that were judged.
        progress: told what goes on.

    Raises:
        InvalidInput: the folder holds no judged questions, or the collection none of the judged documents.
        UpstreamFailed: the server cannot be reached, or failed.
    """
    judged = read_judgements(folder)
    questions = read_questions(folder, judged)
    modes: dict[str, dict[str, float]] = {}
    left_out: dict[str, str] = {}
    for name, options in COMPARED.items():
        try:
            modes[name] = measured(
                server, questions, judged, collection=collection, options=options, name=name, told=progress
            )
        except ApplianceError as error:
            if not options.get("rerank"):
                raise
            left_out[name] = error.message
    if not any(values["recall@100"] for values in modes.values()):
        raise InvalidInput(f"nothing that was judged relevant was found in the collection {collection}", param="folder")
    return {"collection": collection, "queries": len(questions), "modes": modes, "left out": left_out}


def measured(
    server: Server,
    questions: Mapping[str, str],
    judged: Judged,
    *,
    collection: str,
    options: Mapping[str, object],
    name: str,
    told: Progress,
) -> dict[str, float]:
    """The measures' averages over all questions, and the median time of one."""
    rankings: dict[str, list[str]] = {}
    times = []
    asked = {**options, "collection": collection, "k": RERANKED if options.get("rerank") else MATCHES}
    for number, (query, question) in enumerate(questions.items(), start=1):
        told(f"{name}: {number} of {len(questions)} queries")
        began = time.monotonic()
        found = server.search(question, options=asked)
        times.append(time.monotonic() - began)
        rankings[query] = collapsed(found["matches"])
    averages = {
        measure: statistics.fmean(value(rankings[query], judged[query]) for query in rankings)
        for measure, value in MEASURES.items()
    }
    return averages | {"p50 ms": statistics.median(times) * 1000}


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    columns = [*MEASURES, "p50 ms"]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for mode, values in result["modes"].items():
        cells = [f"{values[each]:.4f}" for each in MEASURES] + [f"{values['p50 ms']:.1f}"]
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    lines.append("")
    if "documents" in result:
        without = f" ({result['refused']} more were refused, as those without text are)" if result["refused"] else ""
        lines.append(
            f"{result['documents']} documents{without}, {result['chunks']} chunks, {result['queries']} queries; "
            f"indexed in {result['seconds']:.1f} s ({result['documents/s']:.1f} documents/s)."
        )
        lines += [f"Refused: {each['id']}: {each['error']}" for each in result["refusals"][:REFUSALS]]
        if result["refused"] > REFUSALS:
            lines.append(f"Refused: {result['refused'] - REFUSALS} more; --json lists all.")
    else:
        best = max(result["modes"], key=lambda name: result["modes"][name]["nDCG@10"])
        lines.append(f"{result['queries']} queries; the best by nDCG@10: {best}.")
        lines += [f"Left out: {name}: {reason}" for name, reason in result["left out"].items()]
    return "\n".join(lines)


def collapsed(matches: Sequence[Mapping[str, Any]]) -> list[str]:
    """Documents in the order of their best passage."""
    return list(dict.fromkeys(match["document"] for match in matches))


def read_corpus(folder: Path) -> Iterator[dict[str, str]]:
    """The documents as `POST /documents` takes them."""
    for line in _lines(folder / "corpus.jsonl", "_id", "text"):
        yield {"id": line["_id"], "title": line.get("title") or "", "text": line["text"]}


def read_questions(folder: Path, judged: Judged) -> dict[str, str]:
    """The questions that were judged, by name.

    Raises:
        InvalidInput: one of them is not there.
    """
    lines = _lines(folder / "queries.jsonl", "_id", "text")
    questions = {line["_id"]: line["text"] for line in lines if line["_id"] in judged}
    if missing := judged.keys() - questions.keys():
        raise InvalidInput(f"queries.jsonl lacks {len(missing)} judged queries", param="folder")
    return questions


def read_judgements(folder: Path) -> dict[str, dict[str, int]]:
    """Gains by query and document, of the queries that have a relevant document.

    Raises:
        InvalidInput: there are none.
    """
    path = next((each for each in (folder / "qrels.tsv", folder / "qrels" / "test.tsv") if each.exists()), None)
    if path is None:
        raise InvalidInput(f"{folder} has neither qrels.tsv nor qrels/test.tsv", param="folder")
    judged: dict[str, dict[str, int]] = {}
    for number, line in enumerate(_split(path)):
        fields = line.split("\t")
        if len(fields) != 3 or (number and not fields[2].lstrip("-").isdigit()):  # noqa: PLR2004 - query, document, gain
            raise InvalidInput(f"{path.name}, line {number + 1}: not query, document and gain parted by tabs")
        if fields[2].lstrip("-").isdigit():  # the first line is a header, mostly
            judged.setdefault(fields[0], {})[fields[1]] = int(fields[2])
    relevant = {query: gains for query, gains in judged.items() if max(gains.values()) > 0}
    if not relevant:
        raise InvalidInput(f"{path.name} judges nothing relevant", param="folder")
    return relevant


def batches(documents: Iterator[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    """Documents in requests of a moderate size; a larger one goes alone."""
    batch: list[dict[str, str]] = []
    size = 0
    for document in documents:
        length = len(document["text"].encode())
        if batch and (len(batch) == BATCH_DOCUMENTS or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += length
    if batch:
        yield batch


@contextmanager
def own_server(settings: Settings, model: str | None) -> Iterator[str]:
    """The address of a server on a free port, with a data directory that goes with it.

    It borrows the model files of the settings; other settings in the environment apply to it.

    Raises:
        UpstreamFailed: it did not start.
    """
    import appliance

    with create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
        if settings.models.is_dir():
            (Path(folder) / "models").symlink_to(settings.models.resolve())
        environment = {key: value for key, value in os.environ.items() if not key.startswith("APPLIANCE_API_KEY")}
        command = [sys.executable, "-m", "appliance", "serve", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--data", folder, *(["--model", model] if model else [])]
        process = subprocess.Popen(  # noqa: S603 - this very program
            command,
            cwd=Path(appliance.__file__).parent.parent,
            stdout=sys.stderr,
            env={"APPLIANCE_LOG_LEVEL": "warning"} | environment,
        )
        try:
            while not _ready(url):
                if process.poll() is not None:
                    raise UpstreamFailed(f"the server ended with status {process.returncode}")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _indexed(server: Server, collection: str, expected: int, progress: Progress) -> int:
    """Wait until every document can be found; how many chunks they have."""
    while True:
        state = server.collection(collection)
        counts = state["documents"]
        if counts.get("failed"):
            raise UpstreamFailed(f"{counts['failed']} documents failed")
        progress(f"indexed: {counts.get('ready', 0)} of {expected} documents")
        if not counts.get("waiting") and not counts.get("working"):
            return int(state["chunks"])
        time.sleep(0.25)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or "it cannot be read").lower()
        raise InvalidInput(f"{path.name}: {reason}", param="folder") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path.name} is not UTF-8", param="folder") from error


def _split(path: Path) -> list[str]:
    """The lines of a file. They end at line feeds: `splitlines` would part a text at other characters, too, which JSON
    leaves as they are.
    """
    text = _text(path)
    return text.removesuffix("\n").split("\n") if text else []


def _lines(path: Path, *needed: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_split(path), start=1):
        if line.strip():
            try:
                content = json.loads(line)
            except ValueError:
                content = None
            if not isinstance(content, dict) or not all(isinstance(content.get(key), str) for key in needed):
                raise InvalidInput(f"{path.name}, line {number}: not a JSON object with {' and '.join(needed)}")
            yield content
