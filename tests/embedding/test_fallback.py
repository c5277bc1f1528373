"""A chain of models: who answers for one that fails, and when a failing one is asked again."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from appliance.embedding.breaker import Breaker
from appliance.embedding.engine import EmbeddingEngine, Image, Matrix, Prompt, RerankEngine
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.pull import ModelFiles
from appliance.embedding.registry import Registry
from appliance.embedding.spec import HashSpec, ModelSpec, RerankerSpec
from appliance.errors import (
    DimensionsNotSupported,
    EngineFailed,
    EngineUnavailable,
    InvalidInput,
    ModelNotFound,
    UpstreamFailed,
)

pytestmark = pytest.mark.anyio


def card(name: str, *, fallback: Sequence[str] = (), dimensions: int = 64) -> HashSpec:
    return HashSpec(
        name=name, family="hash", engine="hash", fallback=tuple(fallback), dimensions=dimensions, max_tokens=100
    )


class Engines:
    """Opens hash engines; those named in `errors` raise what stands there when they run, `opening` when opened."""

    def __init__(self) -> None:
        self.errors: dict[str, Exception] = {}
        self.opening: dict[str, Exception] = {}
        self.ran: list[str] = []

    def __call__(self, spec: ModelSpec) -> EmbeddingEngine:
        if spec.name in self.opening:
            raise self.opening[spec.name]
        return Engine(self, spec)


class Engine(HashingEngine):
    def __init__(self, engines: Engines, spec: ModelSpec) -> None:
        super().__init__(dimensions=spec.dimensions, max_tokens=spec.max_tokens)
        self._engines = engines
        self._name = spec.name

    def run(self, prompts: Sequence[Prompt]) -> Matrix:
        self._engines.ran.append(self._name)
        if self._name in self._engines.errors and prompts[0].content != "ready":
            raise self._engines.errors[self._name]
        return super().run(prompts)


def no_reranker(_: RerankerSpec) -> RerankEngine:
    raise EngineUnavailable("none here")


@pytest.fixture
def engines() -> Engines:
    return Engines()


@pytest.fixture
def fell() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def registry(tmp_path: Path, engines: Engines, fell: list[tuple[str, str]]) -> Callable[..., Registry]:
    def make(*cards: ModelSpec, fallback: Sequence[str] = (), use_fallback: bool = False) -> Registry:
        return Registry(
            cards,
            default=cards[0].name,
            files=ModelFiles(tmp_path),
            open_engine=engines,
            open_reranker=no_reranker,
            fallback=fallback,
            use_fallback=use_fallback,
            on_fallback=lambda asked, answered: fell.append((asked, answered)),
        )

    return make


@pytest.mark.parametrize(
    "error", [EngineFailed("broken"), EngineUnavailable("away"), UpstreamFailed("the provider said 500")]
)
async def test_the_next_of_the_chain_answers_and_the_answer_names_it(
    error: Exception, registry: Callable[..., Registry], engines: Engines, fell: list[tuple[str, str]]
) -> None:
    models = registry(card("a", fallback=["b", "c"]), card("b", dimensions=32), card("c", dimensions=128))
    engines.errors = {"a": error}
    engines.opening = {"b": EngineUnavailable("no files")}

    answer = await models.embed("a", ["hello"], use_fallback=True)

    assert (answer.model, answer.vectors.shape) == ("c", (1, 128))
    assert fell == [("a", "c")]
    await models.close()


async def test_nobody_stands_in_where_it_is_not_wanted(registry: Callable[..., Registry], engines: Engines) -> None:
    models = registry(card("a", fallback=["b"]), card("b"))
    engines.errors = {"a": EngineFailed("broken")}

    for wanted in (None, False):
        with pytest.raises(EngineFailed, match="broken"):
            await models.embed("a", ["hello"], use_fallback=wanted)
    await models.close()


async def test_the_settings_give_a_chain_to_cards_without_one_and_may_want_it_used(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(card("a"), card("b"), fallback=["a", "b"], use_fallback=True)
    engines.errors = {"a": EngineFailed("broken")}

    assert (await models.embed("", ["hello"])).model == "b"
    assert (await models.embed("b", ["hello"])).model == "b"
    with pytest.raises(EngineFailed):
        await models.embed("a", ["hello"], use_fallback=False)
    await models.close()


async def test_a_request_may_name_its_own_chain(registry: Callable[..., Registry], engines: Engines) -> None:
    models = registry(card("a", fallback=["b"]), card("b"), card("c"))
    engines.errors = {"a": EngineFailed("broken")}

    assert (await models.embed("a", ["hello"], use_fallback=["c", "b"])).model == "c"
    with pytest.raises(ModelNotFound, match="nowhere"):
        await models.embed("a", ["hello"], use_fallback=["nowhere"])
    for twice in (["c", "c"], ["a"]):
        with pytest.raises(InvalidInput, match="comes back to"):
            await models.embed("a", ["hello"], use_fallback=twice)
    await models.close()


async def test_when_all_fail_the_first_error_is_told(registry: Callable[..., Registry], engines: Engines) -> None:
    models = registry(card("a", fallback=["b"]), card("b"))
    engines.errors = {"a": EngineFailed("a is broken"), "b": EngineFailed("b is broken")}

    with pytest.raises(EngineFailed, match="a is broken"):
        await models.embed("a", ["hello"], use_fallback=True)
    await models.close()


async def test_a_member_that_cannot_do_what_was_asked_is_passed_over(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(card("a", dimensions=128, fallback=["b", "c"]), card("b", dimensions=32), card("c"))
    engines.errors = {"a": EngineFailed("broken")}

    answer = await models.embed("a", ["hello"], dimensions=64, use_fallback=True)

    assert (answer.model, answer.vectors.shape) == ("c", (1, 64))
    with pytest.raises(DimensionsNotSupported):
        await models.embed("a", ["hello"], dimensions=4096, use_fallback=True)
    await models.close()


async def test_token_ids_are_nobody_elses_and_a_callers_mistake_is_no_reason_to_ask_another(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(card("a", fallback=["b"]), card("b"))

    for wrong in ([1, 2, 3], Image(b"no picture")):
        with pytest.raises(InvalidInput):
            await models.embed("a", [wrong], use_fallback=True)
    assert "b" not in engines.ran
    await models.close()


async def test_one_that_failed_three_times_in_a_row_is_left_alone_for_a_while(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(card("a", fallback=["b"]), card("b"))
    engines.errors = {"a": EngineFailed("broken")}
    for _ in range(3):
        await models.embed("a", ["hello"], use_fallback=True)
    ran = engines.ran.count("a")

    answers = [await models.embed("a", ["hello"], use_fallback=True) for _ in range(5)]

    assert engines.ran.count("a") == ran
    assert {answer.model for answer in answers} == {"b"}
    engines.errors = {}
    assert (await models.embed("a", ["hello"])).model == "a"  # who wants no other gets it all the same
    assert (await models.embed("a", ["hello"], use_fallback=True)).model == "a"
    await models.close()


async def test_one_that_says_when_to_come_back_is_left_alone_until_then(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(card("a", fallback=["b"]), card("b"))
    engines.errors = {"a": EngineUnavailable("too many requests", retry_after=60)}
    await models.embed("a", ["hello"], use_fallback=True)
    engines.errors = {"b": EngineFailed("b, too")}

    with pytest.raises(EngineUnavailable, match="left alone") as raised:
        await models.embed("a", ["hello"], use_fallback=True)

    assert raised.value.retry_after is not None
    assert 50 < raised.value.retry_after <= 60
    await models.close()


async def test_a_chain_follows_the_chains_of_its_members(registry: Callable[..., Registry], engines: Engines) -> None:
    models = registry(card("a", fallback=["b"]), card("b", fallback=["c"]), card("c"))
    engines.errors = {name: EngineFailed("broken") for name in ("a", "b")}

    answer = await models.embed("a", ["hello"], use_fallback=True)

    assert answer.model == "c"
    assert np.allclose(np.linalg.norm(answer.vectors, axis=1), 1)
    await models.close()


@pytest.mark.parametrize(
    ("cards", "told"),
    [
        ([card("a", fallback=["a"])], "in a circle: a → a"),
        ([card("a", fallback=["b"]), card("b", fallback=["c"]), card("c", fallback=["a"])], "a → b → c → a"),
        ([card("x"), card("a", fallback=["b"]), card("b", fallback=["b"])], "b → b"),
    ],
)
def test_a_chain_that_leads_back_is_refused_before_anything_is_served(
    cards: list[HashSpec], told: str, registry: Callable[..., Registry]
) -> None:
    with pytest.raises(InvalidInput, match=told):
        registry(*cards)


def test_a_chain_of_unknown_models_is_refused(registry: Callable[..., Registry]) -> None:
    with pytest.raises(ModelNotFound, match="nowhere"):
        registry(card("a", fallback=["nowhere"]))
    with pytest.raises(ModelNotFound, match="nowhere"):
        registry(card("a"), fallback=["nowhere"])


async def test_the_answer_tells_whom_it_stands_for_and_one_of_the_models_own_tells_nobody(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(card("a", fallback=["b"]), card("b"))

    own = await models.embed("a", ["hello"], use_fallback=True)
    engines.errors = {"a": EngineFailed("broken")}
    other = await models.embed("a", ["hello"], use_fallback=True)

    assert (own.instead_of, other.instead_of) == ("", "a")
    await models.close()


async def test_a_call_that_says_nothing_of_the_model_gives_the_next_one_its_try(
    registry: Callable[..., Registry], engines: Engines
) -> None:
    models = registry(card("a", fallback=["b"]), card("b"))
    engines.errors = {"a": EngineFailed("broken")}
    for _ in range(3):
        await models.embed("a", ["hello"], use_fallback=True)
    engines.errors = {}
    models._breakers["a"] = Breaker(pause=0)
    for _ in range(3):
        models._breakers["a"].failed()

    with pytest.raises(InvalidInput):
        await models.embed("a", ["hello"], dimensions=4096, use_fallback=True)  # the try of a breaker that is half open

    assert (await models.embed("a", ["hello"], use_fallback=True)).model == "a"
    await models.close()
