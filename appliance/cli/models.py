"""Models without a server: which there are, and what they make of a text."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from appliance.embedding.embedder import Embeddings
from appliance.embedding.fit import Fit
from appliance.embedding.pull import ModelFiles
from appliance.embedding.spec import Card, Kind, RemoteSpec, plain
from appliance.errors import ModelNotFound
from appliance.settings import Settings


def named(cards: Sequence[Card], name: str, *, fit: Fit, present: Callable[[Card], bool]) -> Card:
    """The card of a name or alias, in any case, with or without `:latest`, as the server would choose it.

    Raises:
        ModelNotFound: none has it; lists what there is.
    """
    wanted = plain(name)
    if sharing := [card for card in cards if wanted in {alias.lower() for alias in card.aliases}]:
        return fit.preferred(sharing, present)
    for card in cards:
        if wanted == card.name:
            return card
    raise ModelNotFound(f"no model is named {name!r}; there are {', '.join(card.name for card in cards)}", name=name)


def listed(cards: Sequence[Card], settings: Settings) -> list[dict[str, Any]]:
    """One row for each card; `size` in bytes. A model of another server is installed where its key is."""
    files = ModelFiles(settings.models, offline=True)

    def here(card: Card) -> bool:
        if isinstance(card, RemoteSpec):
            return not card.key or settings.secret(card.key) is not None
        return files.present(card)

    return [
        {
            "name": card.name,
            "installed": here(card),
            "size": files.size(card),
            "task": card.task,
            "dimensions": card.dimensions if card.task == "embed" else None,
            "engine": _engine(card),
            "aliases": list(card.aliases),
        }
        for card in cards
    ]


def _engine(card: Card) -> str:
    match card.engine:
        case "hash":
            return "hash"
        case "onnx" | "clip":
            return f"{card.engine} {card.precision}"
        case "rkllm":
            return f"rkllm {card.platform}"
        case "remote":
            return f"remote {card.provider}"


def tried(settings: Settings, spec: Card, files: ModelFiles) -> str:
    """Open a model and use it once, as the server would; says what came of it.

    Raises:
        EngineUnavailable, EngineFailed: it does not work here.
    """
    from appliance.embedding.embedder import Embedder
    from appliance.embedding.engines import open_engine, open_reranker
    from appliance.embedding.reranker import Reranker

    async def run() -> str:
        paths = files.paths(spec)
        if spec.task == "rerank":
            reranker = Reranker(spec, open_reranker(spec, paths, cache=settings.cache, threads=settings.threads))
            try:
                scores = await reranker.scores("what do otters do?", ["Otters hold hands while they sleep."])
            finally:
                reranker.close()
            return f"a passage got the score {scores.relevance[0]:.3g}"
        embedder = Embedder(spec, open_engine(spec, paths, cache=settings.cache, threads=settings.threads))
        try:
            answer = await embedder.embed(["Otters hold hands while they sleep."])
        finally:
            embedder.close()
        return f"a sentence of {answer.tokens[0]} tokens became {answer.vectors.shape[1]} numbers"

    return asyncio.run(run())


def embedded(settings: Settings, texts: Sequence[str], *, kind: Kind, dimensions: int | None) -> Embeddings:
    """Embed with the settings' model in this process. Errors as Registry.get and Embedder.embed have them."""
    from appliance import logs
    from appliance.app import create_registry

    told = settings.log_level if settings.origin("log_level") != "default" else "warning"
    logs.configure(form=settings.log_format, level=told)

    async def run() -> Embeddings:
        registry = create_registry(settings)
        try:
            embedder = await registry.get(settings.model)
            return await embedder.embed(texts, kind=kind, dimensions=dimensions)
        finally:
            await registry.close()

    return asyncio.run(run())
