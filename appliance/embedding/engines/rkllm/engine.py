"""Embeds and reranks on the Rockchip NPU: texts to token ids here, token ids to vectors in a process of their own."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from appliance.embedding.engine import Matrix, Prompt, Token, Vector
from appliance.embedding.engines.rkllm.board import Npu
from appliance.embedding.engines.rkllm.keeper import Keeper
from appliance.embedding.engines.rkllm.library import Library, choose
from appliance.embedding.engines.rkllm.process import INTERPRETER, Opening
from appliance.embedding.engines.rkllm.session import Job
from appliance.embedding.pooling import normalized
from appliance.embedding.question import Question
from appliance.embedding.spec import RkllmRerankerSpec, RkllmSpec
from appliance.embedding.tokenizer import Tokenizer
from appliance.errors import EngineFailed, EngineUnavailable, InvalidInput

_SECONDS, _SECONDS_PER_TOKEN = 10.0, 0.05
"""What a run may take unless it was said: 128 tokens of Qwen3-0.6B take an RK3562 0.9 s (rknn-llm's benchmark.md), and
long ones several times as much for each token."""

_ALIKE = 0.9999
"""Least cosine of two vectors of one text: arithmetic on integers gives the same again."""

_A = "How do I grow tomatoes in pots on a balcony?"
_NEAR_A = "Growing tomatoes on a balcony: pots, soil and water for tomatoes"
_FAR_FROM_A = "The central bank raised interest rates by half a percent"

log = structlog.get_logger(__name__)


def open_rkllm(
    spec: RkllmSpec, paths: Mapping[str, Path], *, npu: Npu, interpreter: Sequence[str] = INTERPRETER
) -> "RkllmEngine":
    """Open an embedding model. Blocking, for as long as the library takes to load it.

    Raises:
        EngineUnavailable: no library, or a wrong one; a model file that it refuses; a tokenizer of another model; or
            vectors that fail the self-test. The message says which and what to do.
    """
    tokenizer = _tokenizer(spec, paths)
    keeper = _keeper(spec, paths, npu=npu, interpreter=interpreter)
    engine = RkllmEngine(spec, tokenizer, keeper)
    keeper.check = engine.check
    keeper.begin()
    return engine


def open_rkllm_reranker(
    spec: RkllmRerankerSpec, paths: Mapping[str, Path], *, npu: Npu, interpreter: Sequence[str] = INTERPRETER
) -> "RkllmReranker":
    """Open a reranker. Blocking; raises as `open_rkllm`."""
    tokenizer = _tokenizer(spec, paths)
    keeper = _keeper(spec, paths, npu=npu, interpreter=interpreter, wanted=(spec.yes, spec.no))
    try:
        engine = RkllmReranker(spec, tokenizer, keeper)
        keeper.check = engine.check
        keeper.begin()
    except InvalidInput as error:  # of the card: nobody has asked for anything yet
        raise EngineUnavailable(f"{spec.name} is not served: its max_tokens leave no room for a passage") from error
    return engine


class RkllmEngine:
    """An `EmbeddingEngine` over one worker process. The NPU runs one text at a time, so a batch is one text.

    Args:
        spec: the card.
        tokenizer: the model's own; every text ends as it says.
        keeper: of the worker.
    """

    lanes = 1
    batch_tokens = 1

    def __init__(self, spec: RkllmSpec, tokenizer: Tokenizer, keeper: Keeper) -> None:
        self._spec = spec
        self._tokenizer = tokenizer
        self._keeper = keeper
        self.label = _label(keeper.library)

    def prepare(
        self, inputs: Sequence[str | Sequence[int]], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        """Tokenise, as `EmbeddingEngine.prepare` says. The token that ends a text stays when its end is cut.

        Raises:
            InvalidInput: also an input without any token, of a model that puts none around a text.
        """
        prompts = self._tokenizer.encode(inputs, truncate=truncate, max_tokens=max_tokens)
        if not all(prompt.tokens for prompt in prompts):
            raise InvalidInput("an input is empty", param="input")
        return prompts

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The character range of each token, as `EmbeddingEngine.spans` says."""
        return self._tokenizer.spans(text)

    def tokenize(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[Token]]:
        """Every token of each text, as `Vocabulary.tokenize` says."""
        return self._tokenizer.tokenize(texts, special_tokens=special_tokens)

    def decode(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """The text of token ids, as `Vocabulary.decode` says."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def run(self, prompts: Sequence[Prompt]) -> Matrix:
        """Vectors of the prompts, as `EmbeddingEngine.run` says.

        Raises:
            EngineFailed: the runtime failed on a text twice, or took too long over it.
            EngineUnavailable: the process cannot be kept running; the message says for how long none is tried.
        """
        return np.stack([self._keeper.ask(_ids(prompt)) for prompt in prompts])

    def close(self) -> None:
        """Let go of the model. Safe to call twice."""
        self._keeper.close()

    def check(self, ask: Callable[[npt.NDArray[np.int64]], Vector]) -> None:
        """The self-test of a worker that has just begun: does it give vectors that mean something?

        Raises:
            EngineUnavailable: it does not; the message says what is wrong with them.
        """

        def vector(text: str) -> Vector:
            (prompt,) = self._tokenizer.encode([text], truncate=True)
            row: Vector = normalized(ask(_ids(prompt))[None])[0]
            return row

        first, again, near, last, far = (vector(text) for text in (_A, _A, _NEAR_A, _A, _FAR_FROM_A))
        name = self._spec.name
        if float(first @ again) < _ALIKE or float(first @ last) < _ALIKE:
            raise EngineUnavailable(
                f"{name} is not served: it gives other vectors for a text when it has read one before (cosine"
                f" {min(float(first @ again), float(first @ last)):.4f}); try a newer release of the runtime"
            )
        contrast = float(first @ near) - float(first @ far)
        if contrast < self._spec.contrast:
            raise EngineUnavailable(
                f"{name} is not served: its vectors do not tell related texts from others (cosine"
                f" {float(first @ near):.3f} and {float(first @ far):.3f}): the conversion or the tokenizer is wrong"
            )
        if (reference := self._spec.reference) is not None:
            wanted = np.array(reference.vector, np.float32)
            found = vector(reference.text)[: len(wanted)]
            cosine = float(normalized(found[None])[0] @ normalized(wanted[None])[0])
            if cosine < reference.cosine:
                raise EngineUnavailable(
                    f"{name} is not served: its vector of the reference text has cosine {cosine:.3f} with that of the"
                    f" unconverted model, its card wants {reference.cosine}: convert it again with better calibration"
                )


class RkllmReranker:
    """A `RerankEngine` over one worker process, for a model that answers yes or no (Qwen3-Reranker's model card).

    Args:
        spec: the card.
        tokenizer: the model's own.
        keeper: of the worker.
    """

    lanes = 1
    batch_tokens = 1

    def __init__(self, spec: RkllmRerankerSpec, tokenizer: Tokenizer, keeper: Keeper) -> None:
        self._spec = spec
        self._question = Question(spec, tokenizer)
        self._keeper = keeper
        self.label = _label(keeper.library)

    def prepare(
        self, query: str, passages: Sequence[str], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        """Tokenise, as `RerankEngine.prepare` says. The end of a passage is cut, never what the model is asked."""
        return self._question.encode_pairs(query, passages, truncate=truncate, max_tokens=max_tokens)

    def run(self, prompts: Sequence[Prompt]) -> Vector:
        """Logits of the prompts, as `RerankEngine.run` says: that of yes less that of no, for softmax of two is the
        sigmoid of their difference. Raises as `RkllmEngine.run`.
        """
        return np.array([self._difference(self._keeper.ask(_ids(prompt))) for prompt in prompts], np.float32)

    def close(self) -> None:
        """Let go of the model. Safe to call twice."""
        self._keeper.close()

    def check(self, ask: Callable[[npt.NDArray[np.int64]], Vector]) -> None:
        """The self-test: the same again, and a passage that answers above one that does not.

        Raises:
            EngineUnavailable: not so.
        """
        near, far, again = (
            self._difference(ask(_ids(prompt)))
            for prompt in self.prepare(_A, [_NEAR_A, _FAR_FROM_A, _NEAR_A], truncate=True)
        )
        if abs(near - again) > 1e-3 * max(abs(near), 1.0):
            raise EngineUnavailable(f"{self._spec.name} is not served: it scores a passage differently the second time")
        if near <= far:
            raise EngineUnavailable(
                f"{self._spec.name} is not served: it scores a passage that answers below one that does not"
            )

    @staticmethod
    def _difference(logits: Vector) -> float:
        return float(logits[0] - logits[1])


_CORES = 8
"""Cores that the library knows: as many as the largest of the chips has."""


def cores(platform: str, count: int, online: Sequence[int]) -> list[int]:
    """The CPU cores that help the NPU: the fast ones, which come last on RK3588 and RK3576 (Rockchip's own demos use
    mask 0xF0 there and 0x0F elsewhere).

    Args:
        platform: of the card.
        count: how many.
        online: numbers of the cores there are.
    """
    ordered = sorted(cpu for cpu in online if cpu < _CORES) or [0]
    return ordered[-count:] if platform in {"rk3588", "rk3576"} else ordered[:count]


def _keeper(
    spec: RkllmSpec | RkllmRerankerSpec,
    paths: Mapping[str, Path],
    *,
    npu: Npu,
    interpreter: Sequence[str],
    wanted: tuple[int, ...] = (),
) -> Keeper:
    model = paths[spec.model]
    library = _library(spec, model, npu=npu)
    if not library.simulated and npu.platform and npu.platform != spec.platform:
        raise EngineUnavailable(
            f"{spec.name} was converted for {spec.platform}, this board is an {npu.platform}: use a card for it"
        )
    online = sorted(os.sched_getaffinity(0))
    job = Job(
        library=str(library.path),
        family=library.family,
        certain=npu.family is not None,
        model=str(model),
        context=spec.context,
        pooling=spec.pooling if isinstance(spec, RkllmSpec) else "",
        dimensions=spec.dimensions if isinstance(spec, RkllmSpec) else 0,
        domain=spec.domain,
        embed_flash=spec.embed_flash,
        cpus=cores(spec.platform, spec.cpus, online),
    )
    log.info(
        "npu runtime chosen", model=spec.name, version=library.version, abi=library.family, known_by=library.evidence
    )
    return Keeper(
        spec.name,
        Opening(job, wanted),
        library=library,
        identify=lambda: _library(spec, model, npu=npu),
        seconds=lambda tokens: npu.seconds or _SECONDS + _SECONDS_PER_TOKEN * tokens,
        memory=spec.memory << 20,
        load=npu.load,
        interpreter=interpreter,
        on_restart=lambda reason: npu.on_restart(spec.name, reason),
    )


def _library(spec: RkllmSpec | RkllmRerankerSpec, model: Path, *, npu: Npu) -> Library:
    if spec.attention != "causal" or spec.family in _ENCODERS:
        raise EngineUnavailable(
            f"{spec.name} cannot run on the NPU: RKLLM runs causal decoders only, and {spec.family} reads a text in"
            ' both directions. Converted all the same it gives wrong vectors; use a card with engine = "onnx"'
        )
    library = choose(
        setting=npu.library,
        model_folder=model.parent,
        environment=os.environ,
        family=npu.family,
        machine=npu.machine,
    )
    if library.simulated != npu.simulated:
        raise EngineUnavailable(
            "the library found is a simulated NPU, which is used with --simulate-npu only"
            if library.simulated
            else "--simulate-npu was asked for, and the library found is a real one"
        )
    if library.simulated:
        log.warning("the NPU is simulated: vectors tell which words texts share, no more", model=spec.name)
    if library.warning:
        log.warning("npu runtime", told=library.warning)
    return library


_ENCODERS = frozenset(
    "bert xlm-roberta roberta mpnet distilbert nomic-bert modernbert t5 gte new jina gemma3-embedding clip".split()  # noqa: SIM905 - words read better than commas
)
"""Architectures that read a text in both directions, or that the toolkit does not take."""


def _tokenizer(spec: RkllmSpec | RkllmRerankerSpec, paths: Mapping[str, Path]) -> Tokenizer:
    tokenizer = Tokenizer(paths[spec.tokenizer], max_tokens=spec.max_tokens)
    named = f"{Path(spec.tokenizer).name} of {spec.name}"
    if spec.vocabulary and tokenizer.vocabulary > spec.vocabulary:
        raise EngineUnavailable(
            f"{named} has {tokenizer.vocabulary} tokens, the model {spec.vocabulary}: it is another model's tokenizer"
        )
    tail = tokenizer.around[1].tolist()
    if spec.eos >= 0 and tail != [spec.eos]:
        ends = f"token {', '.join(map(str, tail))}" if tail else "no special token"
        raise EngineUnavailable(
            f"{named} ends a text with {ends}, the model was trained with {spec.eos}: take tokenizer.json from the"
            " repository of the model itself, not of its base model"
        )
    return tokenizer


def _label(library: Library) -> str:
    return "rkllm-simulated" if library.simulated else "rkllm"


def _ids(prompt: Prompt) -> npt.NDArray[np.int64]:
    if isinstance(prompt.content, str):
        raise EngineFailed("a prompt of another engine")
    return prompt.content
