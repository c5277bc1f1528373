"""Other cards while the appliance runs."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from appliance.app import _ended, _follow_cards
from appliance.embedding.engine import EmbeddingEngine, RerankEngine
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.fit import Fit
from appliance.embedding.pull import ModelFiles
from appliance.embedding.registry import Registry
from appliance.embedding.spec import HashSpec, ModelSpec, RerankerSpec
from appliance.errors import EngineUnavailable, InvalidInput, ModelNotFound
from appliance.settings import Settings

pytestmark = pytest.mark.anyio


def card(name: str, *, dimensions: int = 64, max_tokens: int = 100, space: str = "") -> HashSpec:
    return HashSpec(
        name=name, family="hash", engine="hash", dimensions=dimensions, max_tokens=max_tokens, space=space or name
    )


def no_reranker(_: RerankerSpec) -> RerankEngine:
    raise EngineUnavailable("none here")


def opened(spec: ModelSpec) -> EmbeddingEngine:
    return HashingEngine(dimensions=spec.dimensions, max_tokens=spec.max_tokens)


def registry_of(*cards: ModelSpec, folder: Path) -> Registry:
    return Registry(
        cards, default=cards[0].name, files=ModelFiles(folder), open_engine=opened, open_reranker=no_reranker
    )


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_new_card_is_a_new_model_and_one_that_went_is_none(tmp_path: Path) -> None:
    registry = registry_of(card("a"), card("b"), folder=tmp_path)
    await registry.embed("b", ["hello"])

    registry.reload([card("a"), card("c")])

    assert (await registry.embed("c", ["hello"])).model == "c"
    with pytest.raises(ModelNotFound):
        await registry.embed("b", ["hello"])
    await until(lambda: {each.spec.name for each in registry.loaded()} == {"c"})
    await registry.close()


async def test_a_model_whose_card_is_the_same_stays_loaded(tmp_path: Path) -> None:
    registry = registry_of(card("a"), card("b"), folder=tmp_path)
    before = await registry.get("a")

    registry.reload([card("a"), card("b", dimensions=32)])

    assert await registry.get("a") is before
    await registry.close()


async def test_who_holds_a_model_is_served_by_its_new_card_of_the_same_space(tmp_path: Path) -> None:
    registry = registry_of(card("a", max_tokens=100), folder=tmp_path)
    held = await registry.get("a")

    registry.reload([card("a", max_tokens=4)])

    answer = await held.embed(["one two three four five"])
    assert answer.truncated == (True,)
    await registry.close()


async def test_who_holds_a_model_never_gets_vectors_of_another_space_from_it(tmp_path: Path) -> None:
    registry = registry_of(card("a", space="one"), folder=tmp_path)
    held = await registry.get("a")

    registry.reload([card("a", space="other")])

    with pytest.raises(EngineUnavailable, match="another one now"):
        await held.embed(["hello"])
    assert (await registry.embed("a", ["hello"])).model == "a"
    await registry.close()


@pytest.mark.parametrize(
    "cards",
    [
        [card("b")],  # the default has gone
        [card("a"), card("a")],
        [card("a", space="s"), card("b", space="s", dimensions=32)],
    ],
    ids=["no default", "twice", "unequal"],
)
async def test_cards_that_cannot_be_used_change_nothing(cards: list[HashSpec], tmp_path: Path) -> None:
    registry = registry_of(card("a"), card("b"), folder=tmp_path)
    before = await registry.get("a")

    with pytest.raises((InvalidInput, ModelNotFound)):
        registry.reload(cards)

    assert [each.name for each in registry.cards()] == ["a", "b"]
    assert await registry.get("a") is before
    await registry.close()


async def test_where_the_npu_is_insisted_on_the_default_cannot_become_one_of_the_cpu(tmp_path: Path) -> None:
    registry = Registry(
        [card("a")],
        default="a",
        files=ModelFiles(tmp_path),
        open_engine=opened,
        open_reranker=no_reranker,
        fit=Fit("npu", "rk3588"),
    )

    with pytest.raises(InvalidInput, match="runs on the CPU"):
        registry.reload([card("a", dimensions=32)])
    await registry.close()


def own_card(name: str) -> str:
    return f'name = "{name}"\nengine = "hash"\nfamily = "hash"\ndimensions = 32\nmax_tokens = 9\n'


async def test_a_running_appliance_takes_over_the_owners_cards_and_keeps_what_works(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, model="hash")
    settings.cards.mkdir()
    hashing = card("hash", dimensions=1024, space="hash-1")
    registry = registry_of(hashing, folder=tmp_path)
    own = settings.cards / "own.toml"

    with capture_logs() as logs:
        task = asyncio.create_task(_follow_cards(settings, registry, pause=0.01))
        await asyncio.sleep(0.05)
        own.write_text(own_card("own"))
        await until(lambda: any(each.name == "own" for each in registry.cards()))
        own.write_text("name = ")
        await until(lambda: any("is not TOML" in each.get("error", "") for each in logs))
        (settings.cards / "next.toml").write_text(own_card("next"))
        await until(lambda: any(each.name == "next" for each in registry.cards()))
        assert (await registry.embed("own", ["hello"])).vectors.shape == (1, 32)
        (settings.cards / ".#own.toml").symlink_to("nobody@nowhere")  # as an editor locks a file
        (settings.cards / "gone.toml").mkdir()
        await until(lambda: any("cannot be read" in each.get("error", "") for each in logs))
        (settings.cards / "gone.toml").rmdir()
        own.unlink()
        await until(lambda: all(each.name != "own" for each in registry.cards()))

    await _ended(task)
    await registry.close()
