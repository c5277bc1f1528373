"""One model that scores passages, ready to serve."""

import asyncio
import math
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.embedding.engine import Prompt, Vector
from appliance.embedding.reranker import Reranker, Scores, sigmoid
from appliance.embedding.spec import OnnxRerankerSpec
from appliance.errors import EngineFailed, EngineUnavailable, InputTooLong

CARD = OnnxRerankerSpec(name="card", task="rerank", engine="onnx", family="bert", max_tokens=32, own=("m.onnx",))


class Numbers:
    """An engine for which a passage says its own logit; `x` is too long."""

    label = "shared words"
    lanes = 1
    batch_tokens = 64

    def __init__(self) -> None:
        self.closed = 0
        self.free = threading.Event()
        self.free.set()

    def prepare(
        self, query: str, passages: Sequence[str], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        if "x" in passages and not truncate:
            raise InputTooLong(tokens=99, limit=max_tokens or CARD.max_tokens)
        return [
            Prompt(each.replace("x", "0"), tokens=len(query) + len(each), truncated=each == "x") for each in passages
        ]

    def run(self, prompts: Sequence[Prompt]) -> Vector:
        assert self.free.wait(10)
        return np.array([float(str(prompt.content)) for prompt in prompts], np.float32)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def reranker_of() -> Iterator[Callable[..., Reranker]]:
    """Makes rerankers; closes them."""
    made: list[Reranker] = []

    def make(engine: Numbers, **options: Callable[[Scores], None]) -> Reranker:
        made.append(Reranker(CARD, engine, **options))  # type: ignore[arg-type]  # each test names its own
        return made[-1]

    yield make
    for each in made:
        each.close()


async def test_scores_come_back_in_the_order_of_the_texts(reranker_of: Callable[..., Reranker]) -> None:
    told: list[Scores] = []
    reranker = reranker_of(Numbers(), on_rerank=told.append)

    scores = await reranker.scores("q", ["1", "-2", "x", "1"])

    assert scores.model == "card"
    assert scores.logits.tolist() == [1, -2, 0, 1]
    assert np.allclose(scores.relevance, [0.7310586, 0.1192029, 0.5, 0.7310586])
    assert (scores.tokens, scores.truncated) == ((2, 3, 2, 2), (False, False, True, False))
    assert scores.ranking() == [0, 3, 2, 1]
    assert told == [scores]
    assert not reranker.busy


async def test_no_text_has_no_score(reranker_of: Callable[..., Reranker]) -> None:
    scores = await reranker_of(Numbers()).scores("q", [])

    assert (scores.logits.shape, scores.relevance.shape, scores.tokens, scores.ranking()) == ((0,), (0,), (), [])


async def test_more_texts_than_are_tokenised_at_a_time_are_all_scored(reranker_of: Callable[..., Reranker]) -> None:
    texts = [str(n) for n in range(2500)]

    scores = await reranker_of(Numbers()).scores("q", texts, background=True)

    assert scores.logits.tolist() == list(range(2500))


async def test_what_is_too_long_is_refused_where_cutting_is_not_wanted(reranker_of: Callable[..., Reranker]) -> None:
    with pytest.raises(InputTooLong):
        await reranker_of(Numbers()).scores("q", ["1", "x"], truncate=False)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
async def test_a_score_that_is_no_number_is_an_error(reranker_of: Callable[..., Reranker], number: str) -> None:
    with pytest.raises(EngineFailed, match="no number"):
        await reranker_of(Numbers()).scores("q", ["1", number])


async def test_a_call_counts_as_busy_and_as_waiting_until_it_ends(reranker_of: Callable[..., Reranker]) -> None:
    engine = Numbers()
    engine.free.clear()
    reranker = reranker_of(engine)
    call = asyncio.create_task(reranker.scores("q", ["1"]))
    while not reranker.waiting:
        await asyncio.sleep(0.01)
    busy = reranker.busy

    engine.free.set()
    await call

    assert busy
    assert (reranker.busy, reranker.waiting) == (False, 0)


async def test_a_closed_reranker_says_so_and_a_successor_answers_in_its_place(
    reranker_of: Callable[..., Reranker],
) -> None:
    engine = Numbers()
    old, new = reranker_of(engine), reranker_of(Numbers())
    old.close()
    with pytest.raises(EngineUnavailable, match="unloaded"):
        await old.scores("q", ["1"])

    async def succeed() -> Reranker:
        return new

    old.successor = succeed

    assert (await old.scores("q", ["5"])).logits.tolist() == [5]
    assert engine.closed == 1


@given(st.floats(-700, 700, width=32))
def test_the_sigmoid_is_exact_to_float32_and_never_leaves_0_to_1(logit: float) -> None:
    found = float(sigmoid(np.array([logit], np.float32))[0])

    exact = 1 / (1 + math.exp(-logit)) if logit > 0 else math.exp(logit) / (1 + math.exp(logit))
    assert 0 <= found <= 1
    assert found == pytest.approx(exact, rel=1e-6, abs=1e-44)
