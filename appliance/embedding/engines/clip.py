"""CLIP on the CPU with ONNX Runtime: texts and images, each by a tower of its own, into one space."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]  # ships no types
from pydantic import BaseModel, BeforeValidator, PositiveFloat, PositiveInt, ValidationError, model_validator

from appliance.embedding.engine import Image, Matrix, Pixels, Prompt
from appliance.embedding.engines.onnx import BATCH_TOKENS, Graph, cores, open_built, open_text_graph, tokenizer_file
from appliance.embedding.images import MAX_PIXELS, Framing, pixels_of
from appliance.embedding.spec import ClipSpec
from appliance.embedding.tokenizer import Tokenizer
from appliance.errors import EngineFailed, EngineUnavailable, InvalidInput

_PROCESSOR = "preprocessor_config.json"

_OUTPUT = "sentence_embedding"

_NO_IDS = np.empty(0, np.int64)


def _edge(value: object) -> object:
    return value.get("shortest_edge") if isinstance(value, dict) else value


def _square(value: object) -> object:
    if isinstance(value, dict):
        return value.get("height") if value.get("height") == value.get("width") else None
    return value


class _Processor(BaseModel):
    """What `preprocessor_config.json` says, as far as it shapes what the tower reads; other steps do not pass."""

    do_resize: Literal[True] = True
    do_center_crop: Literal[True] = True
    do_rescale: Literal[True] = True
    do_normalize: Literal[True] = True
    do_convert_rgb: Literal[True] = True
    size: Annotated[PositiveInt, BeforeValidator(_edge)] = 224
    crop_size: Annotated[PositiveInt, BeforeValidator(_square)] = 224
    resample: Literal[3] = 3
    rescale_factor: PositiveFloat = 1 / 255
    image_mean: tuple[float, float, float]
    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]

    @model_validator(mode="after")
    def _crop_fits(self) -> "_Processor":
        if self.crop_size > self.size:
            raise ValueError("crop_size is larger than size")
        return self


def read_framing(path: Path) -> Framing:
    """What a `preprocessor_config.json` says.

    Raises:
        EngineUnavailable: not JSON, or other steps than CLIP's; the message names the field.
    """
    try:
        processor = _Processor.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise EngineUnavailable(f"{_PROCESSOR}: {where}: {first['msg']}".replace(": :", ":")) from error
    return Framing(
        processor.size, processor.crop_size, processor.rescale_factor, processor.image_mean, processor.image_std
    )


def open_clip(
    spec: ClipSpec,
    paths: Mapping[str, Path],
    *,
    cache: Path,
    threads: int = 0,
    batch_tokens: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> "ClipEngine":
    """Open both towers; blocks for seconds when their graphs have to be built first.

    Args:
        spec: the card.
        paths: where each of the card's files lies: `config.json`, `model.safetensors`, `tokenizer.json` and
            `preprocessor_config.json`.
        cache: folder that keeps built graphs, in `graphs/`; may be emptied at any time.
        threads: inputs run side by side on as many cores; 0 for every core that this process may use.
        batch_tokens: padded tokens, or patches, of one batch; 0 for what runs best.
        max_pixels: of an image at most.

    Raises:
        EngineUnavailable: a file is missing, damaged or of an unsupported architecture; the message says which.
    """
    if _PROCESSOR not in paths:
        raise EngineUnavailable(f"the card {spec.name} lists no {_PROCESSOR}")
    framing = read_framing(paths[_PROCESSOR])
    tokenizer = Tokenizer(tokenizer_file(spec, paths, cache=cache), max_tokens=spec.max_tokens)
    texts = open_text_graph(spec, paths, cache=cache, threads=threads)
    images = open_built(spec, paths, cache=cache, threads=threads, task="see")
    engine = ClipEngine(
        texts,
        images,
        tokenizer,
        framing=framing,
        lanes=threads or cores(),
        batch_tokens=batch_tokens or BATCH_TOKENS,
        max_pixels=max_pixels,
    )
    for prompt in (*engine.prepare(["a"], truncate=True), engine.blank()):
        found = engine.run([prompt]).shape[1]
        if found != spec.dimensions:
            raise EngineUnavailable(f"the model gives {found} dimensions, its card {spec.name} says {spec.dimensions}")
    return engine


class ClipEngine:
    """An `EmbeddingEngine` and `ImageEngine` over two graphs that all lanes share.

    Args:
        texts: takes token ids, and gives `sentence_embedding`.
        images: takes `pixels`, (images, 3, size, size), and gives the same.
        tokenizer: the model's own; ends every text.
        framing: how an image becomes pixels.
        lanes: threads that may be inside `run` at once.
        batch_tokens: padded tokens, or patches, of one batch.
        max_pixels: of an image at most.

    Raises:
        EngineUnavailable: the parts do not go together.
    """

    label = "clip"

    def __init__(
        self,
        texts: Graph,
        images: onnxruntime.InferenceSession,
        tokenizer: Tokenizer,
        *,
        framing: Framing,
        lanes: int,
        batch_tokens: int = BATCH_TOKENS,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.lanes = lanes
        self.batch_tokens = batch_tokens
        self._texts = texts
        self._images: onnxruntime.InferenceSession | None = images
        self._tokenizer = tokenizer
        self._framing = framing
        self._max_pixels = max_pixels
        (given,) = images.get_inputs()
        if given.shape[1:] != [3, framing.crop, framing.crop]:
            raise EngineUnavailable(
                f"the model sees {given.shape[-1]} x {given.shape[-1]} pixels, {_PROCESSOR} makes {framing.crop}"
            )
        if not len(tokenizer.around[1]):
            raise EngineUnavailable("tokenizer.json does not say which token ends a text")
        self._image_tokens = int(images.get_modelmeta().custom_metadata_map["max_tokens"])

    def prepare(
        self, inputs: Sequence[str | Sequence[int]], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        """Tokenise, as `EmbeddingEngine.prepare` says."""
        return self._tokenizer.encode(inputs, truncate=truncate, max_tokens=max_tokens)

    def prepare_images(self, images: Sequence[Image]) -> list[Prompt]:
        """Decode, as `ImageEngine.prepare_images` says."""
        try:
            return [self._seen(pixels_of(each.data, self._framing, max_pixels=self._max_pixels)) for each in images]
        except InvalidInput as error:
            raise InvalidInput(error.message, param="input") from error

    def blank(self) -> Prompt:
        """An image of one grey."""
        return self._seen(np.zeros((3, self._framing.crop, self._framing.crop), np.float32))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The character range of each token, as `EmbeddingEngine.spans` says."""
        return self._tokenizer.spans(text)

    def run(self, prompts: Sequence[Prompt]) -> Matrix:
        """Vectors of the prompts, texts and images in any order, as `EmbeddingEngine.run` says."""
        pixels = [(place, prompt.pixels) for place, prompt in enumerate(prompts) if prompt.pixels is not None]
        texts = [(place, prompt) for place, prompt in enumerate(prompts) if prompt.pixels is None]
        parts = []
        if texts:
            vectors, _ = self._texts.run(_OUTPUT, [prompt for _, prompt in texts])
            parts.append(vectors)
        if pixels:
            parts.append(self._see(np.stack([image for _, image in pixels])))
        found: Matrix = np.concatenate(parts)
        if not np.isfinite(found).all():
            raise EngineFailed("the model answered with NaN or infinity")
        vectors = np.empty_like(found)
        vectors[[place for place, _ in (*texts, *pixels)]] = found
        return vectors

    def close(self) -> None:
        """Let go of the model. Safe to call twice."""
        self._texts.close()
        self._images = None

    def _seen(self, pixels: Pixels) -> Prompt:
        return Prompt(_NO_IDS, tokens=self._image_tokens, pixels=pixels)

    def _see(self, pixels: npt.NDArray[np.float32]) -> Matrix:
        if self._images is None:
            raise EngineFailed("the model was closed")
        try:
            (vectors,) = self._images.run([_OUTPUT], {"pixels": pixels})
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise EngineFailed("the model failed to run") from error
        result: Matrix = vectors
        return result
