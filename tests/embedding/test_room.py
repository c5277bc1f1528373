"""A budget of memory for the models that are loaded."""

import asyncio
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.embedding.engine import EmbeddingEngine, Matrix, Prompt, RerankEngine
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.pull import ModelFiles
from appliance.embedding.registry import Registry
from appliance.embedding.room import memory_of
from appliance.embedding.spec import FileSpec, HashSpec, HubSource, ModelSpec, OnnxSpec, RerankerSpec
from appliance.errors import EngineUnavailable, Overloaded

pytestmark = pytest.mark.anyio

SIZE = 1000
HUB = (HubSource(kind="hub", repo="a/b", revision="0" * 40),)


def card(name: str, *, size: int = SIZE, precision: str = "fp32") -> OnnxSpec:
    """A card of one file of `size` bytes, which a hash engine stands for."""
    return OnnxSpec.model_validate(
        {
            "name": name,
            "engine": "onnx",
            "family": "bert",
            "precision": precision,
            "dimensions": 64,
            "max_tokens": 32,
            "files": {"model.onnx": FileSpec(sha256=hashlib.sha256(name.encode()).hexdigest(), size=size)},
            "sources": HUB,
        }
    )


class Held(HashingEngine):
    """Runs once its gate is open."""

    def __init__(self, spec: ModelSpec, gate: threading.Event) -> None:
        super().__init__(dimensions=spec.dimensions, max_tokens=spec.max_tokens)
        self._gate = gate

    def run(self, prompts: Sequence[Prompt]) -> Matrix:
        assert self._gate.wait(10)
        return super().run(prompts)


def no_reranker(_: RerankerSpec) -> RerankEngine:
    raise EngineUnavailable("none here")


def registry_of(*cards: ModelSpec, folder: Path, limit: int, gate: threading.Event | None = None) -> Registry:
    gate = gate or threading.Event()
    gate.set()

    def opened(spec: ModelSpec) -> EmbeddingEngine:
        return Held(spec, gate)

    return Registry(
        cards,
        default=cards[0].name,
        files=ModelFiles(folder),
        open_engine=opened,
        open_reranker=no_reranker,
        memory=limit,
    )


def in_memory(registry: Registry) -> set[str]:
    return {each.spec.name for each in registry.loaded()}


async def test_the_model_that_was_idle_for_longest_makes_room(tmp_path: Path) -> None:
    registry = registry_of(card("a"), card("b"), card("c"), folder=tmp_path, limit=2 * SIZE)
    for name in ("a", "b", "a", "c"):
        await registry.embed(name, ["hello"])
        await asyncio.sleep(0.02)

    assert in_memory(registry) == {"a", "c"}
    assert (await registry.embed("b", ["hello"])).model == "b"
    await registry.close()


async def test_a_model_without_files_needs_no_room_and_makes_none(tmp_path: Path) -> None:
    tiny = HashSpec(name="hash", family="hash", engine="hash", dimensions=64, max_tokens=32)
    registry = registry_of(card("a"), tiny, card("b"), folder=tmp_path, limit=SIZE)
    for name in ("a", "hash", "b"):
        await registry.embed(name, ["hello"])

    assert in_memory(registry) == {"hash", "b"}
    await registry.close()


async def test_a_model_larger_than_all_the_memory_is_refused_with_both_figures(tmp_path: Path) -> None:
    registry = registry_of(card("a", size=5_000_000), folder=tmp_path, limit=2_000_000)

    with pytest.raises(EngineUnavailable, match=r"a takes some 5 MB, .* may take 2: .*memory_budget"):
        await registry.get("a")
    await registry.close()


async def test_a_model_at_work_is_not_unloaded_for_another(tmp_path: Path) -> None:
    gate = threading.Event()
    registry = registry_of(card("a"), card("b"), folder=tmp_path, limit=SIZE, gate=gate)
    await registry.get("a")
    gate.clear()
    working = asyncio.create_task(registry.embed("a", ["hello"]))
    while not registry.waiting():
        await asyncio.sleep(0.01)

    with pytest.raises(Overloaded, match="no room for b"):
        await registry.embed("b", ["hello"])

    gate.set()
    assert (await working).model == "a"
    assert (await registry.embed("b", ["hello"])).model == "b"
    await registry.close()


def test_what_runs_in_8_bits_takes_a_quarter() -> None:
    assert memory_of(card("a"), 4000) == 4000
    assert memory_of(card("a", precision="int8"), 4000) == 1000


def test_what_is_stored_in_16_bits_and_runs_in_32_takes_twice_its_files() -> None:
    assert memory_of(card("a").model_copy(update={"parameters": 2000}), 4000) == 8000


async def test_who_held_a_model_that_went_waits_for_room_like_everybody(tmp_path: Path) -> None:
    registry = registry_of(card("a"), card("b"), folder=tmp_path, limit=SIZE)
    held = await registry.get("a")
    await registry.get("b")

    assert (await held.embed(["hello"])).model == "a"
    assert in_memory(registry) == {"a"}
    await registry.close()


async def test_nothing_is_unloaded_where_that_would_not_be_enough(tmp_path: Path) -> None:
    gate = threading.Event()
    registry = registry_of(card("a"), card("b"), card("c", size=2 * SIZE), folder=tmp_path, limit=2 * SIZE, gate=gate)
    await registry.get("a")
    await registry.get("b")
    gate.clear()
    working = asyncio.create_task(registry.embed("a", ["hello"]))
    while not registry.waiting():
        await asyncio.sleep(0.01)

    with pytest.raises(Overloaded):
        await registry.get("c")

    assert in_memory(registry) == {"a", "b"}
    gate.set()
    await working
    await registry.close()
