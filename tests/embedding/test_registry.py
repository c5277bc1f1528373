"""Names to embedders."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from appliance.embedding.engine import EmbeddingEngine
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.pull import ModelFiles
from appliance.embedding.registry import OPENAI_NAMES, Registry
from appliance.embedding.spec import HashSpec, ModelSpec
from appliance.errors import Conflict, EngineFailed, EngineUnavailable, InvalidInput, ModelMismatch, ModelNotFound


def card(name: str, *, space: str = "", aliases: tuple[str, ...] = (), dimensions: int = 64) -> HashSpec:
    return HashSpec(
        name=name,
        engine="hash",
        family="hash",
        space=space or name,
        aliases=aliases,
        dimensions=dimensions,
        max_tokens=32,
    )


class Opener:
    """Opens hash engines and counts them."""

    def __init__(self, *, dimensions: int | None = None, error: Exception | None = None) -> None:
        self.opened: list[str] = []
        self.dimensions = dimensions
        self.error = error
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, spec: ModelSpec) -> EmbeddingEngine:
        assert self.gate.wait(10)
        self.opened.append(spec.name)
        if self.error:
            raise self.error
        return HashingEngine(dimensions=self.dimensions or spec.dimensions, max_tokens=spec.max_tokens)


def registry_of(
    *cards: HashSpec, folder: Path, opener: Opener | None = None, default: str = "", keep_alive: float = -1
) -> Registry:
    return Registry(
        cards,
        default=default or cards[0].name,
        files=ModelFiles(folder),
        open_engine=opener or Opener(),
        keep_alive=keep_alive,
    )


@pytest.mark.parametrize(
    "name", ["alpha", "ALPHA", "alpha:latest", " Alpha:LATEST ", "org/Alpha", "text-embedding-3-small"]
)
async def test_a_name_is_found_in_any_case_with_or_without_latest_and_by_alias(name: str, tmp_path: Path) -> None:
    registry = registry_of(card("alpha", aliases=("Org/Alpha",)), card("beta"), folder=tmp_path)

    assert registry.resolve(name).name == "alpha"


async def test_an_unknown_name_is_told_as_it_was_asked(tmp_path: Path) -> None:
    registry = registry_of(card("alpha"), folder=tmp_path)

    with pytest.raises(ModelNotFound, match='model "Gamma" not found') as caught:
        registry.resolve("Gamma")

    assert caught.value.name == "Gamma"


async def test_two_cards_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="'alpha'"):
        registry_of(card("alpha"), card("alpha"), folder=tmp_path)


async def test_openai_names_stand_for_the_default(tmp_path: Path) -> None:
    registry = registry_of(card("alpha"), card("beta"), folder=tmp_path, default="beta")

    assert {registry.resolve(name).name for name in OPENAI_NAMES} == {"beta"}
    assert registry.cards()[0].name == "beta"


async def test_a_model_is_opened_once_however_many_ask(tmp_path: Path) -> None:
    opener = Opener()
    registry = registry_of(card("alpha"), folder=tmp_path, opener=opener)

    embedders = await asyncio.gather(*(registry.get("alpha") for _ in range(20)))

    assert opener.opened == ["alpha"]
    assert len(set(map(id, embedders))) == 1
    await registry.close()


async def test_a_model_that_cannot_be_opened_is_tried_again_next_time(tmp_path: Path) -> None:
    opener = Opener(error=EngineUnavailable("no file"))
    registry = registry_of(card("alpha"), folder=tmp_path, opener=opener)
    with pytest.raises(EngineUnavailable):
        await registry.get("alpha")

    opener.error = None

    assert (await (await registry.get("alpha")).embed(["x"])).vectors.shape == (1, 64)
    await registry.close()


async def test_an_engine_of_other_dimensions_than_its_card_is_not_served(tmp_path: Path) -> None:
    registry = registry_of(card("alpha", dimensions=64), folder=tmp_path, opener=Opener(dimensions=32))

    with pytest.raises(EngineFailed, match="alpha"):
        await registry.get("alpha")

    assert registry.loaded() == []


async def test_a_model_is_unloaded_when_its_time_is_over_and_comes_back(tmp_path: Path) -> None:
    registry = registry_of(card("alpha"), folder=tmp_path)
    task = asyncio.create_task(registry.unload_idle())
    embedder = await registry.get("alpha", keep_alive=0.05)
    await embedder.embed(["x"])
    assert [each.spec.name for each in registry.loaded()] == ["alpha"]
    assert registry.loaded()[0].expires_at is not None

    async with asyncio.timeout(10):
        while registry.loaded():
            await asyncio.sleep(0.05)

    with pytest.raises(EngineUnavailable):
        await embedder.embed(["x"])
    assert (await (await registry.get("alpha")).embed(["x"])).tokens == (1,)
    task.cancel()
    await registry.close()


async def test_a_model_that_stays_has_no_end(tmp_path: Path) -> None:
    registry = registry_of(card("alpha"), folder=tmp_path, keep_alive=-1)

    await registry.get("alpha")

    assert [each.expires_at for each in registry.loaded()] == [None]
    await registry.close()


async def test_unloading_waits_for_no_one_and_disturbs_no_one(tmp_path: Path) -> None:
    registry = registry_of(card("alpha"), folder=tmp_path)
    embedder = await registry.get("alpha")
    call = asyncio.create_task(embedder.embed(["word"] * 5000))
    await asyncio.sleep(0)

    await registry.unload("alpha")

    assert len((await call).tokens) == 5000
    await registry.close()


async def test_a_space_is_served_by_the_named_model_or_by_its_kin_and_by_no_other(tmp_path: Path) -> None:
    registry = registry_of(card("alpha", space="s"), card("alpha-int8", space="s"), card("beta"), folder=tmp_path)

    assert registry.within("s", "alpha-int8").name == "alpha-int8"
    assert registry.within("s", "gone").name == "alpha"
    assert registry.within("s", "alpha", asked="ALPHA-int8").name == "alpha-int8"
    with pytest.raises(ModelMismatch, match="bring the card of 'gamma' back"):
        registry.within("other", "gamma")
    with pytest.raises(ModelMismatch, match="'beta' gives vectors of 'beta'"):
        registry.within("s", "alpha", asked="beta")
    with pytest.raises(ModelNotFound):
        registry.within("s", "alpha", asked="delta")


async def test_the_default_model_is_not_deleted(tmp_path: Path) -> None:
    registry = registry_of(card("alpha"), folder=tmp_path)

    with pytest.raises(Conflict):
        await registry.delete("alpha")


async def test_a_model_that_a_collection_needs_is_not_deleted(tmp_path: Path) -> None:
    registry = registry_of(card("alpha"), card("beta"), folder=tmp_path)
    registry.needed = lambda spec: spec.name == "beta"

    with pytest.raises(Conflict, match="collection"):
        await registry.delete("beta")


async def test_vectors_are_of_length_one(tmp_path: Path) -> None:
    registry = registry_of(card("alpha"), folder=tmp_path)
    embedder = await registry.get("alpha")

    result = await embedder.embed(["one", "", "three words here"], dimensions=32)

    assert result.vectors.shape == (3, 32)
    np.testing.assert_allclose(np.linalg.norm(result.vectors, axis=1), 1, rtol=1e-6)
    await registry.close()
