"""One model, ready to serve: prefix, remember, tokenise, batch, normalise, shorten."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from appliance.embedding.batcher import Batcher
from appliance.embedding.caches.cache import EmbeddingCache
from appliance.embedding.caches.entry import Entry
from appliance.embedding.engine import (
    EmbeddingEngine,
    Image,
    ImageEngine,
    Input,
    Matrix,
    Output,
    Prompt,
    RemoteEngine,
    Sparse,
    Token,
    TokenEngine,
    Vector,
    Vocabulary,
)
from appliance.embedding.pooling import normalized, shortened
from appliance.embedding.serving import SHORT, SLICE, Serving, batched
from appliance.embedding.spec import Kind, ModelSpec
from appliance.errors import DimensionsNotSupported, EngineFailed, InvalidInput, Overloaded

_MAX_NUMBERS = 1 << 25
"""Numbers in one answer: 128 MiB of float32, several times that as JSON. A body of tiny inputs asks for far more."""

_PER_TOKEN = 256
"""Numbers that a token counts as in a sparse embedding: of a word feature hashing gives some 30, each a JSON object."""

_MAX_CHARACTERS = 1 << 18
"""Of texts tokenised in one request: a token is answered as an object of some hundred bytes."""

_MAX_IDS = 1 << 20
"""Token ids decoded in one request."""

_IMAGES = 4
"""Images decoded at a time: each is some hundred kilobytes, whatever its file was."""

_LONG = 1 << 19
"""Characters or bytes that are hashed on a thread: it takes about a millisecond."""

_DECODERS = 2
"""Threads that decode images."""

_Row: TypeAlias = Vector | Matrix | Sparse

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Vectors of the inputs, in their order.

    Attributes:
        model: name of the card that answered.
        engine: what ran it: `hash`, `onnx`, `clip`, `rkllm`, `rkllm-simulated`, `openai`, `ollama`, `tei`.
        vectors: float32 (inputs, dimensions), rows of length 1 unless asked for as they are.
        tokens: tokens of each input, special tokens included.
        truncated: whether the end of the input was cut off.
        instead_of: the model that was asked and failed, where one of another space may have answered for it; else "".
    """

    model: str
    engine: str
    vectors: Matrix
    tokens: tuple[int, ...]
    truncated: tuple[bool, ...]
    instead_of: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class PerToken(Generic[T]):
    """What a model says of the tokens of each input, in the order of the inputs; otherwise as `Embeddings`.

    Attributes:
        rows: for each input its `Sparse` weights, or its tokens' vectors, float32 (tokens, n).
    """

    model: str
    engine: str
    rows: list[T]
    tokens: tuple[int, ...]
    truncated: tuple[bool, ...]


class Embedder(Serving[_Row]):
    """Serves one model to many callers. Owns its engine: `close` ends both.

    Args:
        spec: the card.
        engine: open, and not shared.
        max_waiting: requests that may wait for the engine before one is refused.
        cache: remembers what interactive callers were answered; shared by embedders.
        identity: tells what the model's vectors depend on besides the card: hashes of its files.
        on_batch: told the tokens of each input, and the seconds, of every engine call; from the engine's threads.
        on_embed: told every answer, and the seconds it took; on the event loop.
    """

    def __init__(
        self,
        spec: ModelSpec,
        engine: EmbeddingEngine | RemoteEngine,
        *,
        max_waiting: int = 512,
        cache: EmbeddingCache | None = None,
        identity: str = "",
        on_batch: Callable[[Sequence[int], float], None] | None = None,
        on_embed: Callable[[Embeddings, float], None] | None = None,
    ) -> None:
        self._remote = engine if isinstance(engine, RemoteEngine) else None
        self._local = None if isinstance(engine, RemoteEngine) else engine
        batcher: Batcher[Prompt, _Row] | None = None
        if self._local is not None:
            run = partial(_run, self._local)
            batcher = batched(self._local, run, max_waiting=max_waiting, on_batch=on_batch)
        super().__init__(engine, batcher)
        # threads of their own, which end with it: many large images must not keep a search waiting for one
        self._decoders = ThreadPoolExecutor(_DECODERS, "decode") if spec.takes_images else None
        self.spec = spec
        self.fingerprint = _fingerprint(spec, self.engine_label, identity)
        """What vectors of this model are remembered under: equal for equal vectors only."""
        self._max_waiting = max_waiting
        self._on_batch = on_batch
        self._cache = cache
        self._spans = engine.spans
        self._on_embed = on_embed

    def close(self) -> None:
        """Fail what waits and close the engine. Blocking; safe to call twice."""
        super().close()
        if self._decoders is not None:
            self._decoders.shutdown(wait=False, cancel_futures=True)

    async def check(self) -> None:
        """Embed a plain word; nothing stands in for this model here. A remote one is asked when somebody asks it."""
        if self._remote is None:
            await self._embedded(
                ["ready"],
                kind="document",
                dimensions=None,
                truncate=True,
                max_tokens=None,
                background=True,
                normalize=True,
            )

    async def embed(
        self,
        inputs: Sequence[Input],
        *,
        kind: Kind = "document",
        dimensions: int | None = None,
        truncate: bool = True,
        max_tokens: int | None = None,
        background: bool = False,
        normalize: bool = True,
    ) -> Embeddings:
        """Embed texts, token ids of the model's own vocabulary or, with a model that takes them, images.

        Args:
            inputs: none gives none. Background callers bound their number themselves.
            kind: chooses the prefix of the card; token ids and images get none.
            dimensions: shorten to this many; None for the model's own.
            truncate: cut a longer input, or refuse it.
            max_tokens: a tighter limit than the model's own, special tokens included.
            background: let interactive callers go first, and remember nothing.
            normalize: to length 1; else vectors come as the engine gives them, cut where shortened, and are not
                remembered.

        Raises:
            DimensionsNotSupported: fewer than the card allows, or more than the model has.
            InputTooLong: with `truncate=False`.
            InvalidInput: a token id the model does not have, no room for any text in `max_tokens`, an image that is
                none or that the model does not take, or more inputs than one answer holds.
            Overloaded: too many requests wait.
            EngineUnavailable: the model was unloaded, and cannot be loaded again.
            EngineFailed: no usable vector came out.
            UpstreamFailed: the server that runs the model failed.
        """
        options: dict[str, Any] = {
            "kind": kind,
            "dimensions": dimensions,
            "truncate": truncate,
            "max_tokens": max_tokens,
            "background": background,
            "normalize": normalize,
        }
        return await self._answered(
            partial(self._embedded, inputs, **options), lambda other: other.embed(inputs, **options)
        )

    async def sparse(
        self, inputs: Sequence[str], *, kind: Kind = "document", truncate: bool = True
    ) -> PerToken[Sparse]:
        """The weight of each token of texts, from a model that tells them. Arguments and errors as for `embed`.

        Raises:
            InvalidInput: the model gives no sparse embeddings, or more tokens than one answer holds.
        """
        return await self._answered(
            partial(self._per_token, inputs, output="sparse", truncate=truncate, kind=kind),
            lambda other: other.sparse(inputs, kind=kind, truncate=truncate),
        )

    async def token_vectors(
        self, inputs: Sequence[str], *, kind: Kind = "document", truncate: bool = True
    ) -> PerToken[Matrix]:
        """A vector for each token of texts: the model's own multi-vector embedding, or its last states.

        Raises:
            InvalidInput: the model gives none, or more numbers than one answer holds.
        """
        return await self._answered(
            partial(self._per_token, inputs, output="tokens", truncate=truncate, kind=kind),
            lambda other: other.token_vectors(inputs, kind=kind, truncate=truncate),
        )

    async def tokenize(
        self, texts: Sequence[str], *, kind: Kind | None = None, special_tokens: bool = True
    ) -> list[list[Token]]:
        """Every token of each text; nothing is cut.

        Args:
            texts: in order.
            kind: chooses the prefix of the card, whose tokens then come first and count as text; None for no prefix.
            special_tokens: with those that the model wants around a text.

        Raises:
            InvalidInput: the model's tokenizer is not here, or the texts are too long together.
        """
        if self.successor is not None:
            other = await self.successor()
            return await other.tokenize(texts, kind=kind, special_tokens=special_tokens)
        vocabulary = self._vocabulary()
        prefix = "" if kind is None else self.spec.prefixes.of(kind)
        if (characters := sum(len(prefix) + len(each) for each in texts)) > _MAX_CHARACTERS:
            raise InvalidInput(
                f"inputs: {_MAX_CHARACTERS} characters are the most of one request, not {characters}", param="inputs"
            )
        prefixed = [prefix + each for each in texts]
        with self._call():
            return await asyncio.to_thread(vocabulary.tokenize, prefixed, special_tokens=special_tokens)

    async def decode(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """The text of each list of token ids.

        Raises:
            InvalidInput: the model's tokenizer is not here, it has no such token, or there are too many of them.
        """
        if self.successor is not None:
            other = await self.successor()
            return await other.decode(ids, skip_special_tokens=skip_special_tokens)
        vocabulary = self._vocabulary()
        if (count := sum(map(len, ids))) > _MAX_IDS:
            raise InvalidInput(f"{_MAX_IDS} token ids are the most of one request, not {count}", param="inputs")
        with self._call():
            return await asyncio.to_thread(vocabulary.decode, ids, skip_special_tokens=skip_special_tokens)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The character range of each token of `text`, in order. Blocking; any thread."""
        return self._spans(text)

    @property
    def outputs(self) -> frozenset[Output]:
        """What the model gives besides one vector for each input."""
        engine: object = self._local
        return engine.outputs if isinstance(engine, TokenEngine) else frozenset()

    @property
    def max_tokens(self) -> int:
        """Tokens of one input, special tokens included."""
        return self.spec.max_tokens

    async def _embedded(
        self,
        inputs: Sequence[Input],
        *,
        kind: Kind,
        dimensions: int | None,
        truncate: bool,
        max_tokens: int | None,
        background: bool,
        normalize: bool,
    ) -> Embeddings:
        start = perf_counter()
        native = self.spec.dimensions
        wanted = native if dimensions is None else dimensions
        if not self.spec.min_dimensions <= wanted <= native:
            raise DimensionsNotSupported(
                f"This model does not support specifying dimensions other than {self.spec.min_dimensions} to {native}.",
                param="dimensions",
            )
        most = _MAX_NUMBERS // wanted
        if len(inputs) > most and not background:
            raise InvalidInput(
                f"too many inputs: one request may have {most} of {wanted} dimensions, not {len(inputs)}; split it",
                param="input",
            )
        if not self.spec.takes_images and any(isinstance(each, Image) for each in inputs):
            raise InvalidInput(f"{self.spec.name} embeds texts, not images", param="input")
        if self._remote is not None and not background and self._calls >= self._max_waiting:
            raise Overloaded("too many requests wait for this model; try again shortly")
        prefix = self.spec.prefixes.of(kind)
        prefixed = [prefix + each if isinstance(each, str) else each for each in inputs] if prefix else inputs
        compute = partial(
            self._computed,
            dimensions=wanted,
            truncate=truncate,
            max_tokens=max_tokens,
            background=background,
            normalize=normalize,
        )
        with self._call():
            if self._cache is None or background or not normalize:
                entries = await compute(prefixed)
            else:
                about = f"{self.fingerprint}:{kind}:{wanted}:{'' if max_tokens is None else max_tokens}"
                about += ":" if truncate else "!:"
                keyed = partial(_keys, about, inputs)
                is_long = sum(map(_length, inputs)) > _LONG
                entries = await self._cache.through(
                    await asyncio.to_thread(keyed) if is_long else keyed(),
                    lambda places: compute([prefixed[place] for place in places]),
                    dimensions=wanted,
                )
        result = Embeddings(
            self.spec.name,
            self.engine_label,
            _matrix(entries, wanted),
            tuple(entry.tokens for entry in entries),
            tuple(entry.truncated for entry in entries),
        )
        if self._on_embed is not None:
            self._on_embed(result, perf_counter() - start)
        return result

    async def _computed(
        self,
        inputs: Sequence[Input],
        *,
        dimensions: int,
        truncate: bool,
        max_tokens: int | None,
        background: bool,
        normalize: bool,
    ) -> list[Entry]:
        """Entries of inputs that have their prefix."""
        entries: list[Entry] = []
        if self._remote is not None:
            texts = [each for each in inputs if not isinstance(each, Image)]  # all of them: it takes no images
            start = perf_counter()
            encoded = await self._remote.encode(texts, truncate=truncate, max_tokens=max_tokens)
            if self._on_batch is not None:
                self._on_batch([1] * len(texts), perf_counter() - start)  # nothing is padded
            vectors = self._finished(encoded.vectors, dimensions, normalize=normalize) if texts else encoded.vectors
            return [Entry(*each) for each in zip(vectors, encoded.tokens, encoded.truncated, strict=True)]
        size = _IMAGES if any(isinstance(each, Image) for each in inputs) else SLICE
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            prompts = await self._prepared(part, truncate=truncate, max_tokens=max_tokens)
            rows = await self._rows(prompts, background=background)
            vectors = self._finished(np.stack(rows), dimensions, normalize=normalize)
            entries += [
                Entry(vector, prompt.tokens, prompt.truncated) for vector, prompt in zip(vectors, prompts, strict=True)
            ]
        return entries

    def _finished(self, vectors: Matrix, dimensions: int, *, normalize: bool) -> Matrix:
        """The engine's vectors with length 1, shortened and with length 1 again; or as they are, cut."""
        if vectors.shape[1] != self.spec.dimensions:
            raise EngineFailed(
                f"{self.spec.name} gave vectors of {vectors.shape[1]} dimensions, its card says {self.spec.dimensions}"
            )
        unit = _unit(vectors)
        if dimensions == self.spec.dimensions:
            return unit if normalize else vectors
        if self.spec.centered:
            vectors = vectors - vectors.mean(axis=1, keepdims=True)
            unit = _unit(vectors)
        return _unit(shortened(unit, dimensions)) if normalize else vectors[:, :dimensions]

    async def _per_token(self, inputs: Sequence[str], *, output: Output, truncate: bool, kind: Kind) -> PerToken[Any]:
        if output not in self.outputs:
            what = "sparse embeddings" if output == "sparse" else "vectors of tokens"
            raise InvalidInput(f"{self.spec.name} gives no {what}", param="model")
        prefix = self.spec.prefixes.of(kind)
        rows: list[Any] = []
        tokens: list[int] = []
        truncated: list[bool] = []
        with self._call():
            for start in range(0, len(inputs), SLICE):
                part = [prefix + each for each in inputs[start : start + SLICE]]
                prompts = await self._prepared(part, truncate=truncate, max_tokens=None, output=output)
                tokens.extend(prompt.tokens for prompt in prompts)
                truncated.extend(prompt.truncated for prompt in prompts)
                most = _MAX_NUMBERS // (self.spec.dimensions if output == "tokens" else _PER_TOKEN)
                if sum(tokens) > most:
                    raise InvalidInput(
                        f"too many inputs: one answer is of {most} tokens at most; split the request", param="inputs"
                    )
                rows += await self._rows(prompts, background=False)
        return PerToken(self.spec.name, self.engine_label, rows, tuple(tokens), tuple(truncated))

    def _vocabulary(self) -> Vocabulary:
        engine: object = self._local
        if isinstance(engine, Vocabulary):
            return engine
        raise InvalidInput(f"{self.spec.name} has no vocabulary here: send texts, not token ids", param="model")

    async def _prepared(
        self, inputs: Sequence[Input], *, truncate: bool, max_tokens: int | None, output: Output = "vector"
    ) -> list[Prompt]:
        assert self._local is not None  # noqa: S101 - for mypy: a remote engine prepares nothing
        prepare = partial(_prepare, self._local, inputs, truncate=truncate, max_tokens=max_tokens, output=output)
        if self._decoders is not None and any(isinstance(each, Image) for each in inputs):
            return await asyncio.get_running_loop().run_in_executor(self._decoders, prepare)
        return prepare() if _is_short(inputs) else await asyncio.to_thread(prepare)

    async def _rows(self, prompts: Sequence[Prompt], *, background: bool) -> list[Any]:
        assert self._batcher is not None  # noqa: S101 - as above
        return await self._batcher.submit(prompts, background=background)


def _prepare(
    engine: EmbeddingEngine, inputs: Sequence[Input], *, truncate: bool, max_tokens: int | None, output: Output
) -> list[Prompt]:
    texts = [each for each in inputs if not isinstance(each, Image)]
    images = [each for each in inputs if isinstance(each, Image)]
    prompts = engine.prepare(texts, truncate=truncate, max_tokens=max_tokens)
    if images:
        assert isinstance(engine, ImageEngine)  # noqa: S101 - for mypy: the card says that it is one
        seen, read = iter(engine.prepare_images(images)), iter(prompts)
        return [next(seen if isinstance(each, Image) else read) for each in inputs]
    if output != "vector":
        return [replace(prompt, output=output) for prompt in prompts]
    return prompts


def _run(engine: EmbeddingEngine, prompts: Sequence[Prompt]) -> list[_Row]:
    """Have the engine run a batch, whose prompts may be run for different things."""
    outputs = {prompt.output for prompt in prompts}
    if outputs == {"vector"}:
        return list(engine.run(prompts))
    rows: list[_Row | None] = [None] * len(prompts)
    for output in outputs:
        places = [place for place, prompt in enumerate(prompts) if prompt.output == output]
        found = _run_alike(engine, [prompts[place] for place in places], output)
        for place, row in zip(places, found, strict=True):
            rows[place] = row
    return [row for row in rows if row is not None]


def _run_alike(engine: EmbeddingEngine, prompts: Sequence[Prompt], output: Output) -> Sequence[_Row]:
    if output == "vector":
        return list(engine.run(prompts))
    assert isinstance(engine, TokenEngine)  # noqa: S101 - for mypy: its outputs were looked at
    return engine.run_sparse(prompts) if output == "sparse" else engine.run_tokens(prompts)


def _matrix(entries: Sequence[Entry], dimensions: int) -> Matrix:
    """The vectors as rows. Twice as fast as `np.stack`, which looks at each one's shape."""
    if not entries:
        return np.empty((0, dimensions), np.float32)
    return np.concatenate([entry.vector for entry in entries]).reshape(len(entries), dimensions)


def _fingerprint(spec: ModelSpec, label: str, identity: str) -> str:
    """The card's name, for people, and what tells it from any other model's or any change of this one."""
    card = spec.model_dump_json(exclude={"aliases", "description", "license", "fallback"})
    return f"{spec.name}@{hashlib.sha256(f'{label} {identity} {card}'.encode()).hexdigest()[:16]}"


def _keys(about: str, inputs: Sequence[Input]) -> list[str]:
    return [about + _digest(each) for each in inputs]


def _length(given: Input) -> int:
    return len(given.data if isinstance(given, Image) else given)


def _digest(given: Input) -> str:
    """32 bytes in hexadecimal: of a text, of token ids, of an image's file."""
    if isinstance(given, str):
        return hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()
    kind = b"image " + given.data if isinstance(given, Image) else b"ids " + repr(list(given)).encode()
    return hashlib.sha256(kind + b"\xff").hexdigest()  # no text ends like this in UTF-8


def _is_short(inputs: Sequence[Input]) -> bool:
    return len(inputs) == 1 and not isinstance(inputs[0], Image) and len(inputs[0]) <= SHORT


def _unit(vectors: Matrix) -> Matrix:
    lengths = np.linalg.norm(vectors, axis=1)
    if not bool(np.all(np.isfinite(lengths) & (lengths > 1e-6))):  # noqa: PLR2004  # far below any real vector
        raise EngineFailed("the engine answered with a vector that has no direction (zero, NaN or infinity)")
    return normalized(vectors)
