"""Names to embedders."""

import asyncio
import fcntl
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from appliance.app import _ended, _preload
from appliance.embedding.engine import EmbeddingEngine, Prompt, RerankEngine, Vector
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.names import OPENAI_NAMES
from appliance.embedding.pull import ModelFiles, Progress
from appliance.embedding.registry import Registry
from appliance.embedding.spec import (
    Card,
    FileSpec,
    HashSpec,
    ModelSpec,
    OnnxRerankerSpec,
    OnnxSpec,
    RerankerSpec,
    WheelSource,
)
from appliance.errors import (
    Conflict,
    EngineFailed,
    EngineUnavailable,
    InvalidInput,
    ModelMismatch,
    ModelNotFound,
    UpstreamFailed,
)


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


def card_with_files(name: str, *, space: str = "") -> OnnxSpec:
    """A card of one file: its own name. Opener opens it without looking inside."""
    content = name.encode()
    return OnnxSpec(
        name=name,
        engine="onnx",
        family="bert",
        space=space or name,
        dimensions=64,
        max_tokens=32,
        files={"model.onnx": FileSpec(sha256=hashlib.sha256(content).hexdigest(), size=len(content))},
        sources=(WheelSource(kind="wheel", package="none", version="1", sha256="0" * 64, folder=""),),
    )


def reranker_card(name: str, *, aliases: tuple[str, ...] = ()) -> OnnxRerankerSpec:
    """A card of one file that its owner brings."""
    return OnnxRerankerSpec(
        name=name, task="rerank", engine="onnx", family="bert", aliases=aliases, max_tokens=32, own=("model.onnx",)
    )


def bring_own(spec: OnnxRerankerSpec, folder: Path) -> None:
    place = ModelFiles(folder).folder(spec) / "model.onnx"
    place.parent.mkdir(parents=True)
    place.write_text("a model")


def bring(spec: OnnxSpec, folder: Path) -> None:
    path = ModelFiles(folder).path(spec.files["model.onnx"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(spec.name)


@contextmanager
def pulls_held_up(folder: Path) -> Iterator[None]:
    """As long as another process pulls into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


async def left(task: asyncio.Task[object]) -> None:
    """Hang up."""
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


class Opener:
    """Opens hash engines and counts them."""

    def __init__(self, *, dimensions: int | None = None, error: Exception | None = None) -> None:
        self.opened: list[str] = []
        self.closed = 0
        self.closing = threading.Event()
        self.closing.set()
        self.close_error: Exception | None = None
        self.dimensions = dimensions
        self.error = error
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, spec: ModelSpec) -> EmbeddingEngine:
        assert self.gate.wait(10)
        self.opened.append(spec.name)
        if self.error:
            raise self.error
        return Engine(self, dimensions=self.dimensions or spec.dimensions, max_tokens=spec.max_tokens)


class Engine(HashingEngine):
    """Tells its opener when it is closed."""

    def __init__(self, opener: Opener, *, dimensions: int, max_tokens: int) -> None:
        super().__init__(dimensions=dimensions, max_tokens=max_tokens)
        self._opener = opener

    def close(self) -> None:
        assert self._opener.closing.wait(10)
        if self._opener.close_error:
            raise self._opener.close_error
        self._opener.closed += 1


class RerankOpener:
    """Opens rerankers that count the words a passage shares with the query, and counts them."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.engines: list[Shared] = []

    def __call__(self, spec: RerankerSpec) -> RerankEngine:
        self.opened.append(spec.name)
        self.engines.append(Shared())
        return self.engines[-1]


class Shared:
    """A `RerankEngine`: the logit is the number of words that both have."""

    label = "shared words"
    lanes = 1
    batch_tokens = 512

    def __init__(self) -> None:
        self.closed = 0
        self.broken = False

    def prepare(
        self, query: str, passages: Sequence[str], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        return [Prompt(f"{query}|{each}", tokens=3, truncated=truncate and max_tokens == 1) for each in passages]

    def run(self, prompts: Sequence[Prompt]) -> Vector:
        pairs = [str(prompt.content).split("|") for prompt in prompts]
        shared = [len(set(query.split()) & set(passage.split())) for query, passage in pairs]
        return np.full(len(prompts), np.nan, np.float32) if self.broken else np.array(shared, np.float32)

    def close(self) -> None:
        self.closed += 1


def registry_of(
    *cards: Card,
    folder: Path,
    opener: Opener | None = None,
    rerank_opener: RerankOpener | None = None,
    default: str = "",
    reranker: str = "",
    keep_alive: float = -1,
) -> Registry:
    return Registry(
        cards,
        default=default or cards[0].name,
        files=ModelFiles(folder),
        open_engine=opener or Opener(),
        open_reranker=rerank_opener or RerankOpener(),
        reranker=reranker,
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

    assert (await embedder.embed(["x"])).tokens == (1,)
    assert await registry.get("alpha") is not embedder
    await _ended(task)
    await registry.close()


async def test_a_caller_meets_no_unloading_however_long_it_waits_before_it_embeds(tmp_path: Path) -> None:
    opener = Opener()
    registry = registry_of(card("alpha"), folder=tmp_path, opener=opener)

    async def search() -> tuple[int, ...]:
        embedder = await registry.get("alpha")
        await asyncio.sleep(0.001)
        return (await embedder.embed(["two words"], kind="query")).tokens

    searches = asyncio.gather(*(search() for _ in range(50)))
    while not searches.done():
        await registry.unload("alpha")
        await asyncio.sleep(0)

    assert await searches == [(2,)] * 50
    await registry.close()
    assert opener.closed == len(opener.opened) > 1


async def test_a_model_is_never_in_memory_twice(tmp_path: Path) -> None:
    opener = Opener()
    registry = registry_of(card("alpha"), folder=tmp_path, opener=opener)
    await registry.get("alpha")
    opener.closing.clear()
    unloading = asyncio.create_task(registry.unload("alpha"))
    await until(lambda: threads("unload alpha"))
    await left(unloading)

    again = asyncio.create_task(registry.get("alpha"))
    await asyncio.sleep(0.05)
    opened_meanwhile = list(opener.opened)
    opener.closing.set()
    await again

    assert opened_meanwhile == ["alpha"]
    assert (opener.opened, opener.closed) == (["alpha", "alpha"], 1)
    await registry.close()


async def test_an_engine_that_does_not_close_well_stops_neither_unloading_nor_loading(tmp_path: Path) -> None:
    opener = Opener()
    registry = registry_of(card("alpha"), card("beta"), folder=tmp_path, opener=opener, keep_alive=0)
    opener.close_error = RuntimeError("stuck")
    task = asyncio.create_task(registry.unload_idle())
    await registry.get("alpha")
    await until(lambda: not registry.loaded())

    opener.close_error = None
    await registry.get("beta")
    await until(lambda: opener.closed == 1)

    assert not task.done()
    await _ended(task)
    await registry.close()


async def test_a_caller_that_leaves_does_not_end_the_load(tmp_path: Path) -> None:
    opener = Opener()
    opener.gate.clear()
    registry = registry_of(card("alpha"), folder=tmp_path, opener=opener)
    for _ in range(5):
        task = asyncio.create_task(registry.get("alpha"))
        await until(lambda: registry.trouble("alpha") == "loading")
        await left(task)

    opener.gate.set()
    await registry.get("alpha")

    assert opener.opened == ["alpha"]
    assert registry.trouble("alpha") == ""
    await registry.close()
    assert opener.closed == 1


async def test_what_is_still_loading_when_the_registry_closes_is_closed_too(tmp_path: Path) -> None:
    before = len(threads("lane-0"))
    opener = Opener()
    opener.gate.clear()
    registry = registry_of(card("alpha"), folder=tmp_path, opener=opener)
    waiting = asyncio.create_task(registry.get("alpha"))
    await until(lambda: threads("load alpha"))
    closing = asyncio.create_task(registry.close())
    await asyncio.sleep(0)

    opener.gate.set()
    await closing

    with pytest.raises(EngineUnavailable, match="stopping"):
        await waiting
    with pytest.raises(EngineUnavailable, match="stopping"):
        await registry.get("alpha")
    assert (opener.opened, opener.closed, registry.loaded()) == (["alpha"], 1, [])
    assert len(threads("lane-0")) == before


async def test_an_unexpected_failure_to_load_is_told_and_tried_again(tmp_path: Path) -> None:
    opener = Opener(error=MemoryError("no memory for /the/graph"))
    registry = registry_of(card("alpha"), folder=tmp_path, opener=opener)

    with pytest.raises(EngineFailed, match=r"alpha could not be loaded: unexpected MemoryError$") as caught:
        await registry.get("alpha")

    assert caught.value.__cause__ is opener.error
    assert registry.trouble("alpha") == caught.value.message
    opener.error = None
    await registry.get("alpha")
    assert registry.trouble("alpha") == ""
    await registry.close()


async def test_a_model_unloaded_while_it_loads_goes_once_it_was_used(tmp_path: Path) -> None:
    opener = Opener()
    opener.gate.clear()
    registry = registry_of(card("alpha"), folder=tmp_path, opener=opener)
    task = asyncio.create_task(registry.unload_idle())
    waiting = asyncio.create_task(registry.get("alpha"))
    await until(lambda: threads("load alpha"))

    await registry.unload("alpha")
    opener.gate.set()

    assert len((await (await waiting).embed(["x"])).tokens) == 1
    await until(lambda: not registry.loaded())
    await _ended(task)
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


async def test_another_card_of_the_space_stands_in_for_one_whose_files_are_missing(tmp_path: Path) -> None:
    made, kin, other = card_with_files("made", space="s"), card_with_files("kin", space="s"), card("other")
    registry = registry_of(other, kin, made, folder=tmp_path)

    assert registry.within("s", "made") is made  # so that what fails later names what to pull
    with pytest.raises(ModelMismatch):
        registry.within("s", "gone")
    bring(kin, tmp_path)
    assert registry.within("s", "made") is kin
    assert registry.within("s", "gone") is kin
    bring(made, tmp_path)
    assert registry.within("s", "made") is made
    with pytest.raises(ModelMismatch):
        registry.within("t", "made")


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


async def test_a_model_deleted_while_it_loads_is_not_left_in_memory(tmp_path: Path) -> None:
    beta, opener = card_with_files("beta"), Opener()
    bring(beta, tmp_path)
    opener.gate.clear()
    registry = registry_of(card("alpha"), beta, folder=tmp_path, opener=opener)
    waiting = asyncio.create_task(registry.get("beta"))
    await until(lambda: threads("load beta"))
    deleting = asyncio.create_task(registry.delete("beta"))
    await until(lambda: not registry.present(beta))

    opener.gate.set()
    await deleting

    await waiting
    assert registry.loaded() == []
    await registry.close()
    assert opener.closed == 1


async def test_a_model_deleted_while_it_is_busy_answers_first(tmp_path: Path) -> None:
    beta = card_with_files("beta")
    bring(beta, tmp_path)
    registry = registry_of(card("alpha"), beta, folder=tmp_path)
    embedder = await registry.get("beta")
    call = asyncio.create_task(embedder.embed(["word"] * 5000))
    await asyncio.sleep(0)

    await registry.delete("beta")

    assert registry.loaded() == []
    assert len((await call).tokens) == 5000
    await registry.close()


async def watched(pull: AsyncIterator[Progress], seen: list[str]) -> None:
    async for progress in pull:
        seen.append(progress.status)  # noqa: PERF401  # one by one, as they come


async def test_callers_join_the_pull_of_a_model_that_is_under_way(tmp_path: Path) -> None:
    alpha = card_with_files("alpha")
    registry = registry_of(alpha, folder=tmp_path)
    first: list[str] = []
    second: list[str] = []
    with pulls_held_up(tmp_path):
        one = asyncio.create_task(watched(registry.pull("alpha"), first))
        await until(lambda: "waiting for another pull" in first)
        two = asyncio.create_task(watched(registry.pull("ALPHA:latest"), second))
        await until(lambda: second)
        running = threads("pull alpha")
        bring(alpha, tmp_path)

    await asyncio.gather(one, two)

    assert len(running) == 1
    assert running[0].daemon
    assert first[0] == "pulling manifest"
    assert second[0] == "waiting for another pull"
    assert first[-1] == second[-1] == "success"
    await registry.close()


async def test_a_pull_goes_on_when_its_callers_have_left(tmp_path: Path) -> None:
    alpha = card_with_files("alpha")
    registry = registry_of(alpha, folder=tmp_path)
    seen: list[str] = []
    with pulls_held_up(tmp_path):
        for _ in range(3):
            task = asyncio.create_task(watched(registry.pull("alpha"), seen))
            await until(lambda: "waiting for another pull" in seen)
            await left(task)
        running = threads("pull alpha")
        bring(alpha, tmp_path)

    await until(lambda: not running[0].is_alive())

    assert len(running) == 1
    await watched(registry.pull("alpha"), seen)
    assert seen[-1] == "success"
    await registry.close()


async def test_a_pull_that_fails_tells_every_caller_and_the_next_one_tries_again(tmp_path: Path) -> None:
    alpha = card_with_files("alpha")
    registry = Registry(
        [alpha],
        default="alpha",
        files=ModelFiles(tmp_path, offline=True),
        open_engine=Opener(),
        open_reranker=RerankOpener(),
    )
    seen: list[str] = []
    with pulls_held_up(tmp_path):
        tasks = [asyncio.create_task(watched(registry.pull("alpha"), seen)) for _ in range(2)]
        await until(lambda: seen)

    failures = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(failure) for failure in failures] == [UpstreamFailed] * 2
    bring(alpha, tmp_path)
    await watched(registry.pull("alpha"), seen)
    assert seen[-1] == "success"
    await registry.close()


async def test_closing_ends_pulls(tmp_path: Path) -> None:
    registry = registry_of(card_with_files("alpha"), folder=tmp_path)
    seen: list[str] = []
    with pulls_held_up(tmp_path):
        watching = asyncio.create_task(watched(registry.pull("alpha"), seen))
        await until(lambda: "waiting for another pull" in seen)

        await registry.close()

        await until(lambda: threads("pull alpha") == [])
        with pytest.raises(UpstreamFailed, match="stopping"):
            await watching
        with pytest.raises(UpstreamFailed, match="stopping"):
            await watched(registry.pull("alpha"), seen)


async def test_the_default_model_is_loaded_once_its_files_come(tmp_path: Path) -> None:
    alpha, opener = card_with_files("alpha"), Opener()
    files = ModelFiles(tmp_path)

    def opened(spec: ModelSpec) -> EmbeddingEngine:
        files.paths(spec)
        return opener(spec)

    registry = Registry([alpha], default="alpha", files=files, open_engine=opened, open_reranker=RerankOpener())
    task = asyncio.create_task(_preload(registry, "alpha", pause=0.01))
    await until(lambda: "appliance pull alpha" in registry.trouble("alpha"))

    bring(alpha, tmp_path)
    await asyncio.wait_for(task, 10)

    assert registry.trouble("alpha") == ""
    assert [each.spec for each in registry.loaded()] == [alpha]
    await registry.close()


async def test_a_default_model_that_fails_to_load_is_tried_again(tmp_path: Path) -> None:
    opener = Opener(error=MemoryError())
    registry = registry_of(card("alpha"), folder=tmp_path, opener=opener)
    task = asyncio.create_task(_preload(registry, "alpha", pause=0.01))
    await until(lambda: len(opener.opened) > 1)

    opener.error = None
    await asyncio.wait_for(task, 10)

    assert registry.trouble("alpha") == ""
    await registry.close()


async def test_rerankers_and_embedders_share_names_and_each_refuses_the_others_work(tmp_path: Path) -> None:
    registry = registry_of(card("alpha"), reranker_card("judge", aliases=("Org/Judge",)), folder=tmp_path)

    assert registry.card("org/judge:latest").name == "judge"
    with pytest.raises(InvalidInput, match=r'^"Judge" does not support embeddings$'):
        await registry.get("Judge")
    with pytest.raises(InvalidInput, match=r'^"alpha" does not support reranking$'):
        await registry.reranker("alpha")
    with pytest.raises(ModelNotFound):
        await registry.reranker("nobody")
    with pytest.raises(InvalidInput, match="'alpha'"):
        registry_of(card("alpha"), reranker_card("alpha"), folder=tmp_path)


async def test_a_default_that_does_not_do_its_work_is_refused_at_once(tmp_path: Path) -> None:
    cards = card("alpha"), reranker_card("judge")

    with pytest.raises(InvalidInput, match="does not support embeddings"):
        registry_of(*cards, folder=tmp_path, default="judge")
    with pytest.raises(InvalidInput, match="does not support reranking"):
        registry_of(*cards, folder=tmp_path, reranker="alpha")
    with pytest.raises(ModelNotFound):
        registry_of(*cards, folder=tmp_path, reranker="nobody")


async def test_a_request_that_names_no_reranker_gets_the_settings_or_the_first_that_is_here(tmp_path: Path) -> None:
    first, second, third = reranker_card("first"), reranker_card("second"), reranker_card("third")
    opener = RerankOpener()
    cards = card("alpha"), first, second, third
    registry = registry_of(*cards, folder=tmp_path, rerank_opener=opener)
    chosen = registry_of(*cards, folder=tmp_path, reranker="THIRD")

    with pytest.raises(ModelNotFound, match=r"no reranker is installed.*first, second, third"):
        await registry.reranker()
    bring_own(second, tmp_path)
    bring_own(third, tmp_path)

    assert (await registry.reranker()).spec is second
    assert (await chosen.reranker()).spec is third
    assert opener.opened == ["second"]
    await registry.close()
    await chosen.close()


async def test_without_a_card_of_a_reranker_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="there is no card of one"):
        await registry_of(card("alpha"), folder=tmp_path).reranker()


async def test_a_reranker_is_loaded_once_listed_unloaded_and_comes_back(tmp_path: Path) -> None:
    judge, opener = reranker_card("judge"), RerankOpener()
    bring_own(judge, tmp_path)
    registry = registry_of(card("alpha"), judge, folder=tmp_path, rerank_opener=opener)

    rerankers = await asyncio.gather(*(registry.reranker("judge") for _ in range(10)))
    loaded = [each.spec for each in registry.loaded()]
    await registry.unload("judge")
    scores = await rerankers[0].scores("a b", ["a", "a b"])

    assert len(set(map(id, rerankers))) == 1
    assert loaded == [judge]
    assert scores.logits.tolist() == [1, 2]
    assert (opener.opened, [each.closed for each in opener.engines]) == (["judge", "judge"], [1, 0])
    assert judge in registry.installed()
    assert registry.size(judge) == len("a model")
    await registry.close()
    assert opener.engines[-1].closed == 1


async def test_a_reranker_that_gives_no_number_is_not_served(tmp_path: Path) -> None:
    judge = reranker_card("judge")
    opener = RerankOpener()
    registry = registry_of(card("alpha"), judge, folder=tmp_path, rerank_opener=opener)
    reranker = await registry.reranker("judge")
    opener.engines[0].broken = True

    with pytest.raises(EngineFailed, match="no number"):
        await reranker.scores("a", ["a"])
    await registry.close()


async def test_a_model_of_either_kind_is_loaded_by_its_name(tmp_path: Path) -> None:
    registry = registry_of(card("alpha"), reranker_card("judge"), folder=tmp_path)

    await registry.load("alpha")
    await registry.load("judge", keep_alive=60)

    assert {each.spec.name: each.expires_at is None for each in registry.loaded()} == {"alpha": True, "judge": False}
    assert registry.trouble("judge") == ""
    await registry.close()


async def test_a_reranker_is_deleted_like_any_model_but_for_that_of_the_settings_and_what_was_put_here(
    tmp_path: Path,
) -> None:
    own = reranker_card("own")
    pulled = OnnxRerankerSpec.model_validate(
        card_with_files("pulled").model_dump(include={"name", "engine", "family", "max_tokens", "files", "sources"})
        | {"task": "rerank"}
    )
    bring_own(own, tmp_path)
    path = ModelFiles(tmp_path).path(pulled.files["model.onnx"])
    path.parent.mkdir(parents=True)
    path.write_text(pulled.name)
    registry = registry_of(card("alpha"), own, pulled, folder=tmp_path)
    chosen = registry_of(card("alpha"), own, pulled, folder=tmp_path, reranker="pulled")

    with pytest.raises(Conflict, match="by hand"):
        await registry.delete("own")
    with pytest.raises(Conflict, match="reranker of the settings"):
        await chosen.delete("pulled")
    await registry.delete("pulled")

    assert not registry.present(pulled)
    assert registry.present(own)
    await registry.close()
