"""One model of several engines: which answers, and who stands in while the NPU cannot be had."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from appliance.embedding.engine import EmbeddingEngine, Matrix, Prompt, RerankEngine
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.fit import Fit
from appliance.embedding.pull import ModelFiles
from appliance.embedding.registry import Registry
from appliance.embedding.spec import HashSpec, ModelSpec, RemoteSpec, RerankerSpec, RkllmSpec
from appliance.errors import EngineUnavailable, InvalidInput, ModelNotFound

pytestmark = pytest.mark.anyio


def npu(name: str, *, platform: str = "rk3588", space: str = "both", dimensions: int = 64) -> RkllmSpec:
    return RkllmSpec(
        name=name,
        family="qwen3",
        engine="rkllm",
        platform=platform,
        own=("m.rkllm", "tokenizer.json"),
        model="m.rkllm",
        space=space,
        dimensions=dimensions,
        context=1024,
        max_tokens=1000,
    )


def cpu(name: str, *, space: str = "both", dimensions: int = 64) -> HashSpec:
    return HashSpec(name=name, family="hash", engine="hash", space=space, dimensions=dimensions, max_tokens=100)


def remote(name: str, *, space: str = "both") -> RemoteSpec:
    return RemoteSpec(
        name=name,
        family="qwen3",
        engine="remote",
        provider="ollama",
        urls=("http://127.0.0.1:9",),
        model="m",
        space=space,
        dimensions=64,
        max_tokens=1000,
    )


class Engines:
    """Opens hash engines, whatever a card asks for; those of `broken` cannot be opened, those of `dead` cannot run."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.dead: set[str] = set()
        self.opened: list[str] = []

    def __call__(self, spec: ModelSpec) -> EmbeddingEngine:
        self.opened.append(spec.name)
        if spec.name in self.broken:
            raise EngineUnavailable(f"{spec.name} is broken")
        return Engine(self, spec)


class Engine(HashingEngine):
    def __init__(self, engines: Engines, spec: ModelSpec) -> None:
        super().__init__(dimensions=spec.dimensions, max_tokens=spec.max_tokens)
        self.label = spec.engine
        self._engines = engines
        self._name = spec.name

    def run(self, prompts: Sequence[Prompt]) -> Matrix:
        if self._name in self._engines.dead:
            raise EngineUnavailable(f"{self._name} is left alone")
        return super().run(prompts)


def no_reranker(_: RerankerSpec) -> RerankEngine:
    raise EngineUnavailable("none here")


@pytest.fixture
def engines() -> Engines:
    return Engines()


@pytest.fixture
def registry(tmp_path: Path, engines: Engines) -> Callable[..., Registry]:
    def make(*cards: ModelSpec, fit: Fit | None = None, absent: Sequence[str] = ()) -> Registry:
        files = ModelFiles(tmp_path)
        for card in cards:
            if isinstance(card, RkllmSpec) and card.name not in absent:
                files.folder(card).mkdir(parents=True, exist_ok=True)
                for name in card.own:
                    (files.folder(card) / name).touch()
        return Registry(
            cards,
            default=cards[0].name,
            files=files,
            open_engine=engines,
            open_reranker=no_reranker,
            fit=fit or Fit("auto", "rk3588"),
        )

    return make


async def test_a_model_that_cannot_be_loaded_is_stood_in_for_and_not_tried_again_at_once(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(npu("n"), cpu("c"))
    engines.broken = {"n"}

    answers = [await (await models.get("n")).embed(["hello"]) for _ in range(3)]

    assert [(answer.model, answer.engine) for answer in answers] == [("c", "hash")] * 3
    assert engines.opened == ["n", "c"]
    assert models.trouble("n") == ""
    await models.close()


async def test_one_that_fails_on_the_way_is_stood_in_for_within_the_same_call(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(npu("n"), cpu("c"))
    embedder = await models.get("n")
    engines.dead = {"n"}

    first = await embedder.embed(["hello"])
    engines.dead = set()
    held = await embedder.embed(["hello"])
    asked = await (await models.get("n")).embed(["hello"])

    assert (first.model, first.engine) == ("c", "hash")
    assert held.model == "n", "who holds the embedder of the NPU has it tried again"
    assert asked.model == "c", "who asks for one gets what works for now"
    await models.close()


async def test_without_a_stand_in_the_reason_is_told_and_shows_until_it_answers_again(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(npu("n"), cpu("c", space="another"))
    embedder = await models.get("n")
    engines.dead = {"n"}

    with pytest.raises(EngineUnavailable, match="n is left alone"):
        await embedder.embed(["hello"])
    trouble = models.trouble("n")
    engines.dead = set()
    await (await models.get("n")).embed(["hello"])

    assert trouble == "n is left alone"
    assert models.trouble("n") == ""
    await models.close()


async def test_a_broken_one_without_a_stand_in_is_not_loaded_anew_by_every_caller(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(npu("n"))
    engines.broken = {"n"}

    for _ in range(5):
        with pytest.raises(EngineUnavailable, match="n is broken"):
            await models.get("n")

    assert engines.opened == ["n"]
    await models.close()


async def test_a_load_is_not_held_to_have_succeeded_because_another_model_answered(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(npu("n"), cpu("c"))
    engines.dead = {"n"}

    answer = await (await models.get("n")).embed(["hello"])

    assert answer.model == "c"
    assert [each.spec.name for each in models.loaded()] == ["c"]
    await models.close()


async def test_a_stand_in_that_cannot_be_had_either_is_passed_over(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(npu("n"), cpu("b"), cpu("c"))
    engines.broken = {"n", "b"}

    assert (await (await models.get("n")).embed(["hello"])).model == "c"
    engines.broken = {"n", "b", "c"}
    await models.unload("c")
    with pytest.raises(EngineUnavailable, match="n is broken"):
        await models.get("n")
    await models.close()


async def test_keep_alive_and_unload_reach_the_stand_in(registry: Callable[..., Registry], engines: Engines) -> None:
    models = registry(npu("n"), cpu("c"))
    engines.broken = {"n"}

    await models.get("n", keep_alive=600)
    (loaded,) = models.loaded()
    await models.unload("n")

    assert loaded.expires_at is not None
    assert models.loaded() == []
    await models.close()


async def test_a_server_that_cannot_be_had_is_stood_in_for_by_the_same_model_here(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(remote("r"), cpu("other", space="another"), cpu("c"))
    engines.dead = {"r"}

    answer = await (await models.get(models.within("both", "r").name)).embed(["hello"])

    assert answer.model == "c"
    await models.close()


async def test_a_server_and_an_npu_that_both_fail_do_not_stand_in_for_each_other_for_ever(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(npu("n"), remote("r"))
    for name in ("n", "r"):
        await models.get(name)
    engines.dead = {"n", "r"}

    for name in ("n", "r"):
        with pytest.raises(EngineUnavailable, match="is left alone"):
            await models.embed(name, ["hello"])
    await models.close()


async def test_with_npu_nothing_stands_in(registry: Callable[..., Registry], engines: Engines) -> None:
    models = registry(npu("n"), cpu("c"), fit=Fit("npu", "rk3588"))
    engines.broken = {"n"}

    with pytest.raises(EngineUnavailable, match="n is broken"):
        await models.get("n")
    assert engines.opened == ["n"]
    await models.close()


async def test_a_collection_that_came_from_another_board_is_read_with_the_card_of_this_one(
    registry: Callable[..., Registry],
) -> None:
    models = registry(npu("old", platform="rk3576"), npu("new"))

    assert models.within("both", "old").name == "new"
    assert models.within("both", "gone").name == "new"
    await models.close()


async def test_cards_of_one_space_have_vectors_of_one_length(registry: Callable[..., Registry]) -> None:
    with pytest.raises(InvalidInput, match=r"n and c share the space 'both', but give\s64 and 32 dimensions"):
        registry(npu("n"), cpu("c", dimensions=32))


async def test_an_unknown_name_stays_unknown(registry: Callable[..., Registry]) -> None:
    models = registry(npu("n"))

    with pytest.raises(ModelNotFound):
        await models.get("nobody")
    await models.close()


async def test_after_other_cards_were_taken_over_a_model_does_not_stand_in_for_itself(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(npu("n"), cpu("c"))
    models.reload([npu("n"), cpu("c")])
    engines.broken = {"n"}

    assert (await (await models.get("n")).embed(["hello"])).model == "c"
    await models.close()


async def test_a_stand_in_that_fails_on_the_way_is_followed_by_the_next_those_of_this_machine_first(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(remote("r"), remote("other"), cpu("c"))
    embedder = await models.get("r")
    engines.dead = {"r", "other"}

    assert (await embedder.embed(["hello"])).model == "c"
    engines.dead = {"r", "c"}
    assert (await embedder.embed(["hello"])).model == "other"
    await models.close()


async def test_a_model_is_in_trouble_while_its_stand_in_is_too(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(remote("r"), remote("other"))
    embedder = await models.get("r")
    await models.get("other")
    engines.dead = {"r", "other"}

    with pytest.raises(EngineUnavailable):
        await embedder.embed(["hello"])

    assert models.trouble("r") == "r is left alone"
    await models.close()
