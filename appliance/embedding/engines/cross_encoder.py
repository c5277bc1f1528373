"""Runs a cross-encoder on the CPU with ONNX Runtime: query and passage go in together, a logit comes out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from appliance.embedding.engine import Prompt, RerankEngine, Vector
from appliance.embedding.engines.onnx import BATCH_TOKENS, Graph, cores, open_graph, tokenizer_file
from appliance.embedding.question import Question
from appliance.embedding.spec import OnnxAskedSpec, OnnxRerankerSpec
from appliance.embedding.tokenizer import PairTokenizer, Tokenizer
from appliance.errors import EngineFailed, EngineUnavailable

_YES_AND_NO = 2


def open_cross_encoder(
    spec: OnnxRerankerSpec, paths: Mapping[str, Path], *, cache: Path, threads: int = 0, batch_tokens: int = 0
) -> RerankEngine:
    """Open a model; blocks for seconds when its graph has to be built first.

    Args:
        spec: the card.
        paths: where each of the card's files lies, as for `onnx.open_onnx`.
        cache: folder that keeps built graphs, in `graphs/`; may be emptied at any time.
        threads: pairs run side by side on as many cores; 0 for every core that this process may use.
        batch_tokens: padded tokens of one batch; 0 for `onnx.BATCH_TOKENS`.

    Raises:
        EngineUnavailable: a file is missing, damaged or of an unsupported architecture; the message says which.
    """
    tokenizer = PairTokenizer(tokenizer_file(spec, paths, cache=cache), max_tokens=spec.max_tokens)
    graph = open_graph(spec, paths, cache=cache, threads=threads)
    lanes, batch_tokens = threads or cores(), batch_tokens or BATCH_TOKENS
    engine = OnnxReranker(graph, tokenizer, lanes=lanes, batch_tokens=batch_tokens)
    engine.run(engine.prepare("a", ["a"], truncate=True))
    return engine


def open_asked(
    spec: OnnxAskedSpec, paths: Mapping[str, Path], *, cache: Path, threads: int = 0, batch_tokens: int = 0
) -> RerankEngine:
    """Open a decoder that answers yes or no. Blocking; arguments and errors as for `open_cross_encoder`."""
    question = Question(spec, Tokenizer(tokenizer_file(spec, paths, cache=cache), max_tokens=spec.max_tokens))
    graph = open_graph(spec, paths, cache=cache, threads=threads)
    engine = OnnxReranker(graph, question, lanes=threads or cores(), batch_tokens=batch_tokens or BATCH_TOKENS)
    engine.run(engine.prepare("a", ["a"], truncate=True))
    return engine


class _Writes(Protocol):
    """Writes query and passage as one prompt, as `RerankEngine.prepare` says."""

    def encode_pairs(
        self, query: str, passages: Sequence[str], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]: ...


class OnnxReranker:
    """A `RerankEngine` over one graph that all lanes share; each lane runs on one core.

    Args:
        graph: gives `logits`, (pairs, 1): how relevant; or (pairs, 2): no and yes.
        tokenizer: the model's own, for pairs; or a decoder's question.
        lanes: threads that may be inside `run` at once.
        batch_tokens: padded tokens of one batch.

    Raises:
        EngineUnavailable: the graph gives something else.
    """

    label = "onnx"

    def __init__(self, graph: Graph, tokenizer: _Writes, *, lanes: int, batch_tokens: int = BATCH_TOKENS) -> None:
        self.lanes = lanes
        self.batch_tokens = batch_tokens
        self._graph = graph
        self._tokenizer = tokenizer
        if "logits" not in graph.outputs:
            raise EngineUnavailable(f"the .onnx file gives {', '.join(sorted(graph.outputs))}; a reranker gives logits")

    def prepare(
        self, query: str, passages: Sequence[str], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        """Tokenise, as `RerankEngine.prepare` says."""
        return self._tokenizer.encode_pairs(query, passages, truncate=truncate, max_tokens=max_tokens)

    def run(self, prompts: Sequence[Prompt]) -> Vector:
        """Logits of the prompts, as `RerankEngine.run` says.

        Of two classes it is the difference of their logits: the sigmoid of that is the softmax's share of the second.
        """
        logits, _ = self._graph.run("logits", prompts)
        if logits.shape == (len(prompts), 1):
            result: Vector = logits[:, 0].astype(np.float32)
        elif logits.shape == (len(prompts), _YES_AND_NO):
            result = (logits[:, 1] - logits[:, 0]).astype(np.float32)
        else:
            raise EngineUnavailable(f"the model gives logits {logits.shape[1:]} for a pair; a reranker gives 1 or 2")
        if not np.isfinite(result).all():
            raise EngineFailed("the model answered with NaN or infinity")
        return result

    def close(self) -> None:
        """Let go of the model. Safe to call twice."""
        self._graph.close()
