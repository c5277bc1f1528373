"""How each kind of server is asked for vectors, and how its answer and its refusals are read."""

import re
from binascii import Error as NoBase64
from binascii import a2b_base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias
from urllib.parse import urlsplit

import numpy as np
import orjson

from appliance.embedding.engine import Matrix
from appliance.embedding.spec import RemoteSpec
from appliance.errors import InvalidInput

Texts: TypeAlias = Sequence[str | Sequence[int]]
"""Texts or token ids."""


class Answer(NamedTuple):
    """What a server says to inputs: a vector for each, not yet checked, and how many tokens they had together."""

    rows: Sequence[Any]
    tokens: object = None


class Dialect(Protocol):
    """One kind of server. Reading raises ValueError, of words to follow the server's name, where it is no answer."""

    @property
    def shortens(self) -> bool:
        """Whether the server itself cuts inputs at a limit that it is told."""

    def address(self, url: str) -> str:
        """Where to post, for a base address of the card."""

    def check(self, inputs: Texts) -> None:
        """Refuse what such a server does not take.

        Raises:
            InvalidInput: token ids.
        """

    def body(self, inputs: Texts, *, truncate: bool, max_tokens: int | None) -> bytes:
        """What to post."""

    def read(self, content: bytes, headers: Mapping[str, str], *, count: int) -> Answer:
        """What was answered to `count` inputs."""

    def missing(self, model: str) -> str:
        """What a 404 says, to follow the server's name."""


class OpenAI:
    """`POST /embeddings` of OpenAI's API, as many servers have it."""

    shortens = False

    def __init__(self, spec: RemoteSpec) -> None:
        self._model = spec.model
        self.plain = False
        """Whether to ask for numbers: base64 is a quarter of their size, but there are servers that refuse it."""

    def address(self, url: str) -> str:
        """Below `/v1`, which the card has."""
        return url.rstrip("/") + "/embeddings"

    def check(self, inputs: Texts) -> None:
        """It takes all."""

    def body(self, inputs: Texts, *, truncate: bool, max_tokens: int | None) -> bytes:  # noqa: ARG002 - has neither
        """OpenAI refuses the empty string, so a blank stands for it."""
        return dumped(
            {
                "model": self._model,
                "input": [each or " " if isinstance(each, str) else list(each) for each in inputs],
                "encoding_format": "float" if self.plain else "base64",
            }
        )

    def read(self, content: bytes, headers: Mapping[str, str], *, count: int) -> Answer:  # noqa: ARG002 - no need
        """Items tell by `index` which input they belong to: each is there once, or it is no answer."""
        told = loaded(content)
        items = told.get("data") if isinstance(told, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError("sent no list of embeddings")
        if len(items) != count:
            raise ValueError(f"sent {len(items)} vectors for {count} inputs")
        places = [item.get("index") for item in items]
        if not all(type(place) is int for place in places) or sorted(places) != list(range(count)):
            raise ValueError("did not say which vector belongs to which input")
        rows: list[Any] = [None] * count
        for item in items:
            rows[item["index"]] = _numbers(item.get("embedding"))
        usage = told.get("usage")
        return Answer(rows, usage.get("prompt_tokens") if isinstance(usage, dict) else None)

    def missing(self, model: str) -> str:
        """Theirs is an answer of 404 to a model as well as to a path."""
        return f"does not have the model {model}, or the address on the card is wrong: it usually ends in /v1"


class Ollama:
    """`POST /api/embed` of Ollama's API."""

    shortens = True

    def __init__(self, spec: RemoteSpec) -> None:
        self._model = spec.model

    def address(self, url: str) -> str:
        """Below the root, or whatever path the card has."""
        return url.rstrip("/") + "/api/embed"

    def check(self, inputs: Texts) -> None:
        """It takes texts."""
        if not all(isinstance(each, str) for each in inputs):
            raise InvalidInput("Ollama takes texts, not token ids", param="input")

    def body(self, inputs: Texts, *, truncate: bool, max_tokens: int | None) -> bytes:
        """A limit of tokens is the size of the context there."""
        options = {} if max_tokens is None else {"options": {"num_ctx": max_tokens}}
        return dumped({"model": self._model, "input": list(inputs), "truncate": truncate, **options})

    def read(self, content: bytes, headers: Mapping[str, str], *, count: int) -> Answer:  # noqa: ARG002 - no need
        """Vectors come in the order of the inputs."""
        told = loaded(content)
        rows = told.get("embeddings") if isinstance(told, dict) else None
        return Answer(_all(rows, count), told.get("prompt_eval_count"))

    def missing(self, model: str) -> str:
        """It has to be pulled."""
        return f"does not have the model {model}: pull it there"


class Tei:
    """`POST /embed` of text-embeddings-inference, and the feature extraction of Hugging Face's own servers."""

    shortens = False

    def address(self, url: str) -> str:
        """`/embed`, unless the card has a path of its own."""
        return url if urlsplit(url).path.strip("/") else url.rstrip("/") + "/embed"

    def check(self, inputs: Texts) -> None:
        """It takes all."""

    def body(self, inputs: Texts, *, truncate: bool, max_tokens: int | None) -> bytes:  # noqa: ARG002 - has no limit
        """The model is the server's."""
        inputs = [each if isinstance(each, str) else list(each) for each in inputs]
        return dumped({"inputs": inputs, "truncate": truncate, "normalize": True})

    def read(self, content: bytes, headers: Mapping[str, str], *, count: int) -> Answer:
        """Vectors come in the order of the inputs, and tokens in a header, where they do."""
        tokens = headers.get("x-compute-tokens", "")
        return Answer(_all(loaded(content), count), int(tokens) if re.fullmatch(r"[0-9]{1,12}", tokens) else None)

    def missing(self, model: str) -> str:  # noqa: ARG002 - it has one
        """There is nothing else that could be missing."""
        return "has nothing at the address on the card"


def dialect_of(spec: RemoteSpec) -> OpenAI | Ollama | Tei:
    """How the servers of a card are spoken to."""
    match spec.provider:
        case "openai":
            return OpenAI(spec)
        case "ollama":
            return Ollama(spec)
        case "tei":
            return Tei()


def checked(rows: Sequence[Any], dimensions: int) -> Matrix:
    """Vectors of a server, float32 (rows, dimensions), none of them without a direction.

    Raises:
        ValueError: they are no such vectors.
    """
    try:
        matrix = np.asarray(rows)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError("sent vectors of unequal lengths") from error
    if matrix.dtype.kind not in "fiu" or matrix.ndim != 2:  # noqa: PLR2004 - rows and columns
        raise ValueError("sent something that is no vector")
    if matrix.shape[1] != dimensions:
        raise ValueError(f"sent vectors of {matrix.shape[1]} dimensions, the card says {dimensions}")
    with np.errstate(over="ignore"):
        vectors = matrix.astype(np.float32)
        lengths = np.linalg.norm(vectors, axis=1)
    if not bool(np.all(np.isfinite(lengths) & (lengths > 1e-6))):  # noqa: PLR2004 - far below any real vector
        raise ValueError("sent a vector that has no direction (zero, NaN or infinity)")
    return vectors


def dumped(body: Mapping[str, object]) -> bytes:
    """JSON of a body. Lone surrogates, which no JSON can hold, become question marks."""
    try:
        return orjson.dumps(body)
    except TypeError:  # so orjson says it
        key = "input" if "input" in body else "inputs"
        inputs: Any = body[key]
        clean = [each.encode("utf-8", "replace").decode() if isinstance(each, str) else each for each in inputs]
        return orjson.dumps({**body, key: clean})


def loaded(content: bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is none.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ValueError("sent an answer that is not JSON") from error


def _all(rows: object, count: int) -> list[Any]:
    if not isinstance(rows, list):
        raise ValueError("sent no list of embeddings")  # noqa: TRY004 - so a dialect says it
    if len(rows) != count:
        raise ValueError(f"sent {len(rows)} vectors for {count} inputs")
    return rows


def _numbers(embedding: object) -> object:
    """An embedding as numbers, or what else it is."""
    if not isinstance(embedding, str):
        return embedding
    try:
        return np.frombuffer(a2b_base64(embedding, strict_mode=True), dtype="<f4")
    except (NoBase64, ValueError) as error:
        raise ValueError("sent something that is no vector") from error
