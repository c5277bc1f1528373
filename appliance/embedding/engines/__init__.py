"""The engines, each imported only when a card asks for it."""

from collections.abc import Mapping
from pathlib import Path

from appliance.embedding.engine import EmbeddingEngine
from appliance.embedding.spec import HashSpec, ModelSpec, OnnxSpec
from appliance.errors import EngineUnavailable


def open_engine(spec: ModelSpec, paths: Mapping[str, Path], *, cache: Path, threads: int = 0) -> EmbeddingEngine:
    """Open the engine that a card asks for. Blocking.

    Args:
        spec: the card.
        paths: where the card's files are, by their names on the card.
        cache: folder for what an engine makes of the files, and can make again.
        threads: cores to use; 0 for all.

    Raises:
        EngineUnavailable: a file is missing or cannot be used, or a package is not installed.
    """
    try:
        match spec:
            case HashSpec():
                from appliance.embedding.engines.hashing import HashingEngine

                return HashingEngine(dimensions=spec.dimensions, max_tokens=spec.max_tokens)
            case OnnxSpec():
                from appliance.embedding.engines.onnx import open_onnx

                return open_onnx(spec, paths, cache=cache, threads=threads)
    except ImportError as error:
        raise EngineUnavailable(
            f"{spec.name} needs a Python package that is not installed or does not load here: {error.name or error}"
        ) from error
