"""The engine alone, called in a loop on as many threads as it has lanes: what the server is measured against.

Reads one job a line from standard input and writes one result a line. {"texts", "batch", "seconds"} runs batches of
that many texts, over and over for so long; without "seconds" each text once; `batch` 0 means batches of neighbours in
length, as full as the engine likes them; `lanes` 1 uses one thread.
"""

import argparse
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from appliance.cli.server import lean

if TYPE_CHECKING:
    from appliance.embedding.engine import EmbeddingEngine


def opened(data: Path, model: str) -> "EmbeddingEngine":
    """The engine of an installed model, as the server opens it."""
    from cards import shipped_card

    from appliance.embedding.engines import open_engine
    from appliance.embedding.pull import ModelFiles

    spec = shipped_card(model)
    return open_engine(spec, ModelFiles(data / "models", offline=True).paths(spec), cache=data / "cache")


def batched(engine: "EmbeddingEngine", texts: Sequence[str], batch: int) -> list[list[str]]:
    """Texts in batches of a fixed number; for 0, sorted by length and cut where the engine's budget is full."""
    if batch:
        return [list(texts[start : start + batch]) for start in range(0, len(texts), batch)]
    sized = sorted(
        (prompt.tokens, text) for prompt, text in zip(engine.prepare(texts, truncate=True), texts, strict=True)
    )
    batches: list[list[str]] = [[]]
    for tokens, text in sized:
        if batches[-1] and tokens * (len(batches[-1]) + 1) > engine.batch_tokens:
            batches.append([])
        batches[-1].append(text)
    return batches


def job(
    engine: "EmbeddingEngine", *, texts: list[str], batch: int, seconds: float | None = None, lanes: int = 0
) -> dict[str, Any]:
    """Run one job. The result: texts done, seconds and CPU seconds taken, seconds of each call, tokens of a text."""
    batches = batched(engine, texts, batch)
    source: Iterator[list[str]] = iter(batches) if seconds is None else cycle(batches)
    lock = threading.Lock()
    took: list[float] = []
    done: list[int] = []
    tokens: list[int] = []
    began, cpu = perf_counter(), process_time()

    def lane() -> None:
        while True:
            with lock:
                part = next(source, None)
            if part is None:
                return
            start = perf_counter()
            prompts = engine.prepare(part, truncate=True)
            engine.run(prompts)
            now = perf_counter()
            took.append(now - start)
            done.append(len(part))
            tokens.extend(prompt.tokens for prompt in prompts)
            if seconds is not None and now - began >= seconds:
                return

    threads = [threading.Thread(target=lane) for _ in range(lanes or engine.lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "texts": sum(done),
        "seconds": perf_counter() - began,
        "cpu": process_time() - cpu,
        "took": took,
        "tokens": sum(tokens) / max(len(tokens), 1),
    }


def main() -> None:
    """Open the engine and work until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    arguments = parser.parse_args()
    lean()
    engine = opened(arguments.data, arguments.model)
    for line in sys.stdin:
        print(json.dumps(job(engine, **json.loads(line))), flush=True)
    engine.close()


if __name__ == "__main__":
    main()
