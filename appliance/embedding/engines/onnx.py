"""Runs a model on the CPU with ONNX Runtime: a graph built from safetensors, or a ready-made `.onnx` file."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library loads; else it keeps a device id in HOME
import onnxruntime  # type: ignore[import-untyped]  # ships no types

from appliance.embedding.engine import EmbeddingEngine, Matrix, Output, Prompt, Sparse, Token
from appliance.embedding.engines.graphs.weights import INDEX, WHOLE, sources
from appliance.embedding.engines.heads import Linear, read_dense, read_linear
from appliance.embedding.pooling import Pooling, normalized, pooled
from appliance.embedding.spec import ClipSpec, OnnxAskedSpec, OnnxRerankerSpec, OnnxSpec
from appliance.embedding.tokenizer import Tokenizer, byte_level
from appliance.errors import EngineFailed, EngineUnavailable

_GRAPH = "2"
"""Goes up whenever `graphs` writes another graph, so that no old one is loaded from the cache."""

_BLOB = "sha256-"
"""Begins the name of a file that was pulled; its hash follows."""

_Spec: TypeAlias = OnnxSpec | OnnxRerankerSpec | OnnxAskedSpec | ClipSpec

_STATES = "last_hidden_state"

BATCH_TOKENS = 512
"""Larger batches fall out of the processor's cache: a third slower at 4,096 tokens."""


def open_onnx(
    spec: OnnxSpec, paths: Mapping[str, Path], *, cache: Path, threads: int = 0, batch_tokens: int = 0
) -> EmbeddingEngine:
    """Open a model; blocks for seconds when its graph has to be built first.

    Args:
        spec: the card.
        paths: where each of the card's files lies: `tokenizer.json`, and either `config.json` and `model.safetensors`,
            or one `.onnx` file that holds its own weights.
        cache: folder that keeps built graphs, in `graphs/`; may be emptied at any time.
        threads: texts run side by side on as many cores; 0 for every core that this process may use.
        batch_tokens: padded tokens of one batch; 0 for `BATCH_TOKENS`.

    Raises:
        EngineUnavailable: a file is missing, damaged or of an unsupported architecture; the message says which.
    """
    tokenizer = Tokenizer(tokenizer_file(spec, paths, cache=cache), max_tokens=spec.max_tokens)
    graph = open_graph(spec, paths, cache=cache, threads=threads)
    lanes, batch_tokens = threads or cores(), batch_tokens or BATCH_TOKENS
    heads = _heads(spec, paths, graph)
    engine = OnnxEngine(graph, tokenizer, pooling=spec.pooling, lanes=lanes, batch_tokens=batch_tokens, heads=heads)
    found = engine.run(engine.prepare(["a"], truncate=True)).shape[1]
    if found != spec.dimensions:
        raise EngineUnavailable(f"the model gives {found} dimensions, its card {spec.name} says {spec.dimensions}")
    return engine


class OnnxEngine:
    """An `EmbeddingEngine` over one graph that all lanes share; each lane runs on one core.

    Two lanes over a session with one thread use two cores better than one lane over a session with two. A session's
    spare thread, where it has one, helps whichever lane is alone.

    Args:
        graph: gives `sentence_embedding`, (texts, dimensions), or `last_hidden_state`, (texts, tokens, dimensions).
        tokenizer: the model's own.
        pooling: how `last_hidden_state` becomes one vector a text.
        lanes: threads that may be inside `run` at once.
        heads: what comes behind the graph.
        batch_tokens: padded tokens of one batch.

    Raises:
        EngineUnavailable: the graph gives something else.
    """

    label = "onnx"

    def __init__(
        self,
        graph: "Graph",
        tokenizer: Tokenizer,
        *,
        pooling: Pooling,
        lanes: int,
        batch_tokens: int = BATCH_TOKENS,
        heads: "Heads | None" = None,
    ) -> None:
        self.lanes = lanes
        self.batch_tokens = batch_tokens
        self._heads = heads or Heads()
        self._specials = tokenizer.special_ids
        self._graph = graph
        self._tokenizer = tokenizer
        self._pooling: Pooling = pooling
        outputs = graph.outputs
        self._output = next((name for name in ("sentence_embedding", "last_hidden_state") if name in outputs), "")
        if not self._output:
            raise EngineUnavailable("the .onnx file gives neither sentence_embedding nor last_hidden_state")
        given: set[Output] = {"tokens"} if _STATES in outputs else set()
        if given and self._heads.sparse is not None:
            given.add("sparse")
        self.outputs = frozenset(given)
        """As `TokenEngine.outputs` says."""

    def prepare(
        self, inputs: Sequence[str | Sequence[int]], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        """Tokenise, as `EmbeddingEngine.prepare` says."""
        return self._tokenizer.encode(inputs, truncate=truncate, max_tokens=max_tokens)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The character range of each token, as `EmbeddingEngine.spans` says."""
        return self._tokenizer.spans(text)

    def tokenize(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[Token]]:
        """Every token of each text, as `Vocabulary.tokenize` says."""
        return self._tokenizer.tokenize(texts, special_tokens=special_tokens)

    def decode(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """The text of token ids, as `Vocabulary.decode` says."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def run(self, prompts: Sequence[Prompt]) -> Matrix:
        """Vectors of the prompts, as `EmbeddingEngine.run` says."""
        output, mask = self._graph.run(self._output, prompts)
        vectors: Matrix = output if self._output == "sentence_embedding" else pooled(output, mask, self._pooling)
        for layer in self._heads.dense:
            vectors = layer(vectors)
        return _finite(vectors)

    def run_tokens(self, prompts: Sequence[Prompt]) -> list[Matrix]:
        """The last states of each prompt's tokens, as `TokenEngine.run_tokens` says.

        Where the card names a layer for it, what that gives of all tokens but the first, each scaled to length 1
        (BGE-M3; Chen et al. 2024).
        """
        states = self._states(prompts)
        layer = self._heads.multi_vector
        return states if layer is None else [_finite(normalized(layer(rows[1:]))) for rows in states]

    def run_sparse(self, prompts: Sequence[Prompt]) -> list[Sparse]:
        """The weights of each prompt's tokens, as `TokenEngine.run_sparse` says: of a token that comes more than once
        the largest.
        """
        layer = self._heads.sparse
        if layer is None:
            raise EngineFailed("the model gives no sparse embeddings")
        results = []
        for prompt, states in zip(prompts, self._states(prompts), strict=True):
            weights = np.maximum(_finite(layer(states))[:, 0], 0)
            ids, places = np.unique(np.asarray(prompt.content, np.int64), return_inverse=True)
            largest = np.zeros(len(ids), np.float32)
            np.maximum.at(largest, places, weights)
            kept = (largest > 0) & ~np.isin(ids, self._specials)
            results.append(Sparse(ids[kept], largest[kept]))
        return results

    def _states(self, prompts: Sequence[Prompt]) -> list[Matrix]:
        """The last state of each token, float32 (tokens, hidden), for each prompt."""
        output, _ = self._graph.run(_STATES, prompts)
        return [_finite(rows[: prompt.tokens]) for rows, prompt in zip(output, prompts, strict=True)]

    def close(self) -> None:
        """Let go of the model. Safe to call twice."""
        self._graph.close()


@dataclass(frozen=True, slots=True)
class Heads:
    """Linear layers behind a graph.

    Attributes:
        dense: behind the pooling, in order.
        sparse: gives the weight of a token, before what is below 0 becomes 0.
        multi_vector: gives the vector of a token.
    """

    dense: tuple[Linear, ...] = ()
    sparse: Linear | None = None
    multi_vector: Linear | None = None


def _heads(spec: OnnxSpec, paths: Mapping[str, Path], graph: "Graph") -> Heads:
    """The layers that a card names, read, and found to fit one another."""
    if (spec.sparse or spec.multi_vector) and _STATES not in graph.outputs:
        raise EngineUnavailable(f"the .onnx file gives no {_STATES}, which the card's sparse or multi_vector reads")
    dense = tuple(read_dense(folder, paths) for folder in spec.dense)
    width = graph.width
    for folder, layer in zip(spec.dense, dense, strict=True):
        if width not in {0, layer.weight.shape[0]}:
            raise EngineUnavailable(f"{folder} reads {layer.weight.shape[0]} numbers, and {width} are given")
        width = layer.weight.shape[1]
    return Heads(
        dense,
        read_linear(spec.sparse, paths, inputs=graph.width, outputs=1) if spec.sparse else None,
        read_linear(spec.multi_vector, paths, inputs=graph.width) if spec.multi_vector else None,
    )


def _finite(rows: Matrix) -> Matrix:
    if not np.isfinite(rows).all():
        raise EngineFailed("the model answered with NaN or infinity")
    return rows


class Graph:
    """A session of ONNX Runtime that reads tokens. Any number of threads may be inside `run`.

    Args:
        session: takes `input_ids`, `attention_mask` and perhaps `token_type_ids`, (texts, tokens).

    Raises:
        EngineUnavailable: the session takes something else.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._inputs = {
            item.name: np.int32 if item.type == "tensor(int32)" else np.int64 for item in session.get_inputs()
        }
        known = {"input_ids", "attention_mask", "token_type_ids"}
        if not {"input_ids", "attention_mask"} <= self._inputs.keys() <= known:
            raise EngineUnavailable(
                f"the .onnx file takes {', '.join(self._inputs)}; expected {', '.join(sorted(known))}"
            )
        outputs = session.get_outputs()
        self.outputs = frozenset(item.name for item in outputs)
        last = [item.shape[-1] for item in outputs if item.name in {_STATES, "sentence_embedding"} and item.shape]
        self.width: int = last[0] if last and isinstance(last[0], int) else 0
        """Numbers of a vector that it gives; 0 where the file does not say."""

    def run(self, output: str, prompts: Sequence[Prompt]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """What the graph gives for the prompts, and the mask, int64 (texts, tokens): 1 for a token, 0 for padding.

        Raises:
            EngineFailed: closed, or the runtime failed.
        """
        if self._session is None:
            raise EngineFailed("the model was closed")
        ids = np.zeros((len(prompts), max(prompt.tokens for prompt in prompts)), np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : prompt.tokens] = prompt.content
            mask[row, : prompt.tokens] = 1
            if prompt.types is not None:
                types[row, : prompt.tokens] = prompt.types
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        feeds = {name: values[name].astype(dtype, copy=False) for name, dtype in self._inputs.items()}
        try:
            (result,) = self._session.run([output], feeds)
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise EngineFailed("the model failed to run") from error
        return result, mask

    def close(self) -> None:
        """Let go of the session. Safe to call twice."""
        self._session = None


def tokenizer_file(spec: _Spec, paths: Mapping[str, Path], *, cache: Path) -> Path:
    """The model's `tokenizer.json`: the card's, or one made of its `vocab.json` and `merges.txt` and kept in `cache`.

    Raises:
        EngineUnavailable: the card lists neither, or they are damaged.
    """
    if "tokenizer.json" in paths:
        check_bytes(spec.name, "tokenizer.json", paths["tokenizer.json"])
        return paths["tokenizer.json"]
    if not {"vocab.json", "merges.txt"} <= paths.keys():
        raise EngineUnavailable(f"the card {spec.name} lists no tokenizer.json")
    made = byte_level(paths["vocab.json"], paths["merges.txt"]).encode()
    place = cache / "tokenizers" / f"{hashlib.sha256(made).hexdigest()[:32]}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        part = place.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(made)
        part.replace(place)
    return place


def open_graph(spec: _Spec, paths: Mapping[str, Path], *, cache: Path, threads: int = 0) -> Graph:
    """Open a card's graph, built first where its files are safetensors. Arguments and errors as for `open_onnx`."""
    if not any(name in paths for name in (*WHOLE, *INDEX)):
        return Graph(_session(_self_contained(spec.name, paths)))
    return open_text_graph(spec, paths, cache=cache, threads=threads)


def open_text_graph(spec: _Spec, paths: Mapping[str, Path], *, cache: Path, threads: int = 0) -> Graph:
    """Open the graph that is built of a card's files. Arguments and errors as for `open_onnx`."""
    session = open_built(spec, paths, cache=cache, threads=threads)
    longest = int(session.get_modelmeta().custom_metadata_map["max_tokens"])
    if spec.max_tokens > longest:
        raise EngineUnavailable(f"the model takes {longest} tokens, its card {spec.name} says {spec.max_tokens}")
    return Graph(session)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _session(model: Path | bytes, *, spare: int = 0) -> onnxruntime.InferenceSession:
    """Open a graph for calls that each stay on the caller's thread, but for `spare` threads that help all of them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 + spare
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Batches are bounded, so the arena stops growing at once; without it two lanes peaked at 230 MB instead of 125.
    options.enable_cpu_mem_arena = True
    options.enable_mem_pattern = False
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise EngineUnavailable("ONNX Runtime cannot load the model: the file is damaged or not supported") from error


def open_built(
    spec: _Spec,
    paths: Mapping[str, Path],
    *,
    cache: Path,
    threads: int = 0,
    task: str = "",
) -> onnxruntime.InferenceSession:
    """Open the graph that is built for a task, the card's if left out; one that was damaged since is built again.

    Opened by its path, not from bytes: the bytes of the file, and what is parsed from them, then never lie in memory
    side by side (168 MB instead of 251 after loading all-MiniLM-L6-v2).
    """
    # A lone fp32 question takes a quarter less time with one, and full batches 6 % more; int8 gains nothing by it.
    spare = int(spec.precision == "fp32" and (threads or cores()) != 1)
    graph = _graph(spec, paths, cache=cache, task=task)
    try:
        return _session(graph, spare=spare)
    except EngineUnavailable:
        graph.unlink(missing_ok=True)
        return _session(_graph(spec, paths, cache=cache, task=task), spare=spare)


def _graph(spec: _Spec, paths: Mapping[str, Path], *, cache: Path, task: str) -> Path:
    """The cached graph of a model; built first, in a process of its own, if it is not there.

    Beside it lie its large constants, in a file of the same name and `.data`.
    """
    if "config.json" not in paths:
        raise EngineUnavailable(f"the card {spec.name} lists no config.json")
    names = ["config.json", *sources(paths)]
    missing = [name for name in names if name not in paths]
    if missing:
        raise EngineUnavailable(f"the card {spec.name} lists no {missing[0]}")
    identity = [*(_sha256(spec, name, paths[name]) for name in names), spec.precision, _GRAPH]
    words = [spec.no, spec.yes] if isinstance(spec, OnnxAskedSpec) else None
    task = task or ("answer" if words else spec.task)
    if task != "embed":
        identity += [task, *map(str, words or ())]
    graph = cache / "graphs" / f"{hashlib.sha256(' '.join(identity).encode()).hexdigest()[:32]}.onnx"
    if graph.exists():
        return graph
    for name in names:
        check_bytes(spec.name, name, paths[name])
    order = {
        "files": {name: str(paths[name].resolve()) for name in names},
        "target": str(graph.resolve()),
        "precision": spec.precision,
        "task": task,
        "words": words,
    }
    build_graph(spec.name, order)
    return graph


def build_graph(name: str, order: Mapping[str, Any]) -> None:
    """Have a graph built in a process of its own.

    Args:
        name: of the card.
        order: a `graphs.build.Order`.

    Raises:
        EngineUnavailable: the model cannot be built; the message says why.
    """
    try:
        subprocess.run(  # noqa: S603  our own module, with paths of our own
            [sys.executable, "-m", "appliance.embedding.engines.graphs.build", json.dumps(order)],
            cwd=Path(__file__).parents[3],  # where `appliance` lies, so that it is found wherever we were started
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        why = error.stdout.strip() or f"the builder ended with status {error.returncode}"
        raise EngineUnavailable(f"{name} cannot be made ready for ONNX Runtime: {why}") from error


def check_bytes(card: str, name: str, path: Path) -> None:
    """Raise EngineUnavailable for a file that is kept under its hash and has other bytes."""
    known = path.name.removeprefix(_BLOB)
    if path.name.startswith(_BLOB):
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != known:
                raise EngineUnavailable(f"{name} of {card} has other bytes than it came with: `appliance pull {card}`")


def _sha256(spec: _Spec, name: str, path: Path) -> str:
    """Of a file: as the card has it, as the name of a file that was checked when it came says, or of its content."""
    if name in spec.files:
        return spec.files[name].sha256
    if known := re.fullmatch(r"sha256-([0-9a-f]{64})", path.resolve().name):
        return known[1]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _self_contained(card: str, paths: Mapping[str, Path]) -> bytes:
    """A ready-made model that keeps all weights in its one file: a file that names others could have any file read."""
    import onnx

    names = [name for name in paths if name.endswith(".onnx")]
    if len(names) != 1:
        raise EngineUnavailable("a card for ONNX Runtime lists model.safetensors and config.json, or one .onnx file")
    check_bytes(card, names[0], paths[names[0]])
    content = paths[names[0]].read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own exceptions share no base class
        raise EngineUnavailable(f"{names[0]} is no ONNX model") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model)):
        raise EngineUnavailable(f"{names[0]} keeps weights in other files; one file must hold everything")
    return content


def _tensors(message: Any) -> Any:
    """Every `TensorProto` inside a protobuf message, at any depth: initializers, attributes, subgraphs, functions."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in (value,) if hasattr(value, "ListFields") else value:
                yield from _tensors(inner)
