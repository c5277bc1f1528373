"""The engines, each imported only when a card asks for it.

Light itself: a worker process of the NPU passes through here each time it begins.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from appliance.embedding.engine import EmbeddingEngine, RemoteEngine, RerankEngine
    from appliance.embedding.engines.remote.access import Remote
    from appliance.embedding.engines.rkllm.board import Npu
    from appliance.embedding.spec import ModelSpec, RerankerSpec


def open_engine(
    spec: ModelSpec,
    paths: Mapping[str, Path],
    *,
    cache: Path,
    threads: int = 0,
    batch_tokens: int = 0,
    npu: Npu | None = None,
    max_pixels: int = 50_000_000,
    remote: Remote | None = None,
) -> EmbeddingEngine | RemoteEngine:
    """Open the engine that a card asks for. Blocking.

    Args:
        spec: the card.
        paths: where the card's files are, by their names on the card.
        cache: folder for what an engine makes of the files, and can make again.
        threads: cores to use; 0 for all.
        batch_tokens: padded tokens of one batch on ONNX Runtime; 0 for what it runs best.
        npu: what the settings say of models on the NPU; the defaults if left out.
        max_pixels: of an image at most, for a model that takes images.
        remote: what the settings say of models on other servers; the defaults, without any key, if left out.

    Raises:
        EngineUnavailable: a file or a key is missing or cannot be used, or a package is not installed.
    """
    from appliance.embedding.spec import ClipSpec, HashSpec, OnnxSpec, RemoteSpec, RkllmSpec

    with _installed(spec.name):
        match spec:
            case HashSpec():
                from appliance.embedding.engines.hashing import HashingEngine

                return HashingEngine(dimensions=spec.dimensions, max_tokens=spec.max_tokens)
            case OnnxSpec():
                from appliance.embedding.engines.onnx import open_onnx

                return open_onnx(spec, paths, cache=cache, threads=threads, batch_tokens=batch_tokens)
            case RkllmSpec():
                from appliance.embedding.engines.rkllm.board import Npu
                from appliance.embedding.engines.rkllm.engine import open_rkllm

                return open_rkllm(spec, paths, npu=npu or Npu())
            case ClipSpec():
                from appliance.embedding.engines.clip import open_clip

                return open_clip(
                    spec, paths, cache=cache, threads=threads, batch_tokens=batch_tokens, max_pixels=max_pixels
                )
            case RemoteSpec():
                from appliance.embedding.engines.remote.access import Remote
                from appliance.embedding.engines.remote.engine import open_remote

                return open_remote(spec, remote=remote or Remote())


def open_reranker(
    spec: RerankerSpec,
    paths: Mapping[str, Path],
    *,
    cache: Path,
    threads: int = 0,
    batch_tokens: int = 0,
    npu: Npu | None = None,
) -> RerankEngine:
    """Open the engine that a reranker's card asks for. Blocking; arguments and errors as `open_engine` has them."""
    from appliance.embedding.spec import OnnxAskedSpec, OnnxRerankerSpec, RkllmRerankerSpec

    with _installed(spec.name):
        match spec:
            case OnnxRerankerSpec():
                from appliance.embedding.engines.cross_encoder import open_cross_encoder

                return open_cross_encoder(spec, paths, cache=cache, threads=threads, batch_tokens=batch_tokens)
            case OnnxAskedSpec():
                from appliance.embedding.engines.cross_encoder import open_asked

                return open_asked(spec, paths, cache=cache, threads=threads, batch_tokens=batch_tokens)
            case RkllmRerankerSpec():
                from appliance.embedding.engines.rkllm.board import Npu
                from appliance.embedding.engines.rkllm.engine import open_rkllm_reranker

                return open_rkllm_reranker(spec, paths, npu=npu or Npu())


@contextmanager
def _installed(name: str) -> Iterator[None]:
    """A package that is not installed as an error of ours."""
    from appliance.errors import EngineUnavailable

    try:
        yield
    except ImportError as error:
        raise EngineUnavailable(
            f"{name} needs a Python package that is not installed or does not load here: {error.name or error}"
        ) from error
