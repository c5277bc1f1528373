"""Builds the ONNX graph of a model folder.

Run as a program, so that the copies of the weights never count in the server's memory:

    python -m appliance.embedding.engines.graphs.build ORDER

ORDER is an `Order` as JSON. What it refuses it says in one sentence on standard output, with exit status 1.
"""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # ships no types
from pydantic import BaseModel, ValidationError

from appliance.embedding.engines.graphs.architecture import Architecture, Task
from appliance.embedding.engines.graphs.bert import Bert
from appliance.embedding.engines.graphs.clip import ClipText, ClipVision
from appliance.embedding.engines.graphs.gemma3 import Gemma3
from appliance.embedding.engines.graphs.gte import Gte
from appliance.embedding.engines.graphs.jina import JinaBert
from appliance.embedding.engines.graphs.mpnet import MPNet
from appliance.embedding.engines.graphs.nomic import NomicBert
from appliance.embedding.engines.graphs.qwen3 import Qwen3
from appliance.embedding.engines.graphs.t5 import T5
from appliance.embedding.engines.graphs.weights import Floats, Weights
from appliance.embedding.engines.graphs.writer import Graph, Precision
from appliance.errors import EngineUnavailable

_KNOWN: Mapping[str, type[Architecture]] = {
    "bert": Bert,
    "clip": ClipText,
    "gemma3_text": Gemma3,
    "mpnet": MPNet,
    "new": Gte,
    "nomic_bert": NomicBert,
    "qwen3": Qwen3,
    "roberta": Bert,
    "t5": T5,
    "xlm-roberta": Bert,
}
"""Architectures by the `model_type` of `config.json`."""

_SEEING: Mapping[str, type[Architecture]] = {"clip": ClipVision}
"""The same of those that see."""

_MAX_CONFIG = 1 << 20

_PEAKS = "peaks-"
"""Begins the name of the folder of an int8 model's float32 graph, which is gone when the model is built."""


class Order(BaseModel, frozen=True):
    """What to build.

    Attributes:
        files: the model's files by their names on the card: `config.json`, and those with the weights.
        target: the graph, `….onnx`; its large constants come to lie beside it in a file of the same name and `.data`.
        precision: of the linear layers and embedding tables.
        task: what the graph ends with.
        words: for the task `answer`, ids of the tokens for no and for yes.
    """

    files: dict[str, Path]
    target: Path
    precision: Precision = "fp32"
    task: Task = "embed"
    words: tuple[int, int] | None = None


def read_config(path: Path, *, task: Task = "embed", words: tuple[int, int] | None = None) -> Architecture:
    """Read a `config.json`; `task` and `words` as in `Order`.

    Raises:
        EngineUnavailable: not JSON, or an architecture that is not built here; the message names the field.
    """
    with path.open("rb") as file:
        return parse_config(file.read(_MAX_CONFIG), task=task, words=words)


def parse_config(content: bytes, *, task: Task = "embed", words: tuple[int, int] | None = None) -> Architecture:
    """What `config.json` holds, as for `read_config`."""
    try:
        config = json.loads(content)
        if not isinstance(config, dict):
            raise ValueError  # noqa: TRY004, TRY301  told as any other damage
    except (ValueError, RecursionError) as error:
        raise EngineUnavailable("config.json is no JSON object") from error
    which = _which(config, _SEEING if task == "see" else _KNOWN)
    try:
        return which.model_validate(config | ({"words": words} if words else {}))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise EngineUnavailable(f"config.json: {where}: {first['msg']}".replace(": :", ":")) from error


def _which(config: Mapping[str, Any], known: Mapping[str, type[Architecture]]) -> type[Architecture]:
    """Which of the architectures a config is of."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        raise EngineUnavailable(f"config.json: model_type {str(kind)[:60]!r} is none of {', '.join(known)}")
    if kind == "bert" and config.get("position_embedding_type") == "alibi":
        return JinaBert
    return known[kind]


def write(architecture: Architecture, weights: Weights, order: Order, *, data: Path) -> bytes:
    """Write the graph; the large constants go to `data`, the rest comes back, serialised.

    The graph's metadata hold `max_tokens`. Inputs and outputs are as the architecture says; all models that read text
    take `input_ids` and `attention_mask`, int64 (texts, tokens), padding on the right, and to embed give
    `last_hidden_state`, float32 (texts, tokens, hidden).

    Raises:
        EngineUnavailable: weights are missing or do not fit.
    """
    peaks = _peaks(architecture, weights, order, folder=data.parent) if order.precision == "int8" else None
    with Graph(weights, data, peaks=peaks) as graph:
        architecture.write(graph, task=order.task)
        model = graph.model({"max_tokens": str(architecture.max_tokens)})
        return bytes(model.SerializeToString())


def _peaks(architecture: Architecture, weights: Weights, order: Order, *, folder: Path) -> list[Floats]:
    """The largest magnitude of each channel behind each norm, (channels,), when the float32 model reads samples."""
    with TemporaryDirectory(dir=folder, prefix=_PEAKS) as where:
        path = Path(where, "peaks.onnx")
        with Graph(weights, path.with_suffix(".data")) as graph:
            architecture.write(graph, task=order.task)
            for index, norm in enumerate(graph.norms):
                loudest = graph("ReduceMax", graph("Abs", norm), graph.integers(0), keepdims=0)
                graph.output(f"peak_{index}", loudest, None)
            path.write_bytes(graph.model({}).SerializeToString())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.disable_prepacking", "1")  # weights stay mapped from the file
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [item.name for item in session.get_outputs() if item.name.startswith("peak_")]
        peaks: list[Floats] = session.run(names, architecture.samples([item.name for item in session.get_inputs()]))
        return [np.asarray(peak).reshape(-1) for peak in peaks]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder among all processes; the lock goes with its holder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def build(order: Order) -> None:
    """Write the graph to its target, whole or not at all. Of several builders at once, one builds.

    Raises:
        EngineUnavailable: the model cannot be built; the message says why.
    """
    target = order.target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent):
        if target.exists():
            return
        architecture = read_config(order.files["config.json"], task=order.task, words=order.words)
        data = target.with_suffix(".data")
        part = target.with_suffix(".part")
        data.unlink(missing_ok=True)  # whoever still has an old one mapped keeps it
        for left in target.parent.glob(f"{_PEAKS}*"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            with Weights({name: path for name, path in order.files.items() if name != "config.json"}) as weights:
                content = write(architecture, weights, order, data=data)
            with part.open("wb") as file, data.open("rb+") as constants:
                file.write(content)
                for written in (constants, file):
                    written.flush()
                    os.fsync(written.fileno())
        except BaseException:
            for path in (part, data):
                with suppress(OSError):
                    path.unlink()
            raise
        part.replace(target)


def main() -> None:
    """Build what the command line asks for."""
    try:
        build(Order.model_validate_json(sys.argv[1]))
    except EngineUnavailable as error:
        sys.stdout.write(error.message)
        sys.exit(1)
    except OSError as error:
        sys.stdout.write(f"the graph cannot be written: {error.strerror}")
        sys.exit(1)


if __name__ == "__main__":
    main()
