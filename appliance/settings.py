"""Every setting, its default and its limits: flags > environment > TOML file > profile > default.

A flag is a keyword argument of `Settings` (None where it was not given), an environment variable is `APPLIANCE_<NAME>`,
and the file is the one named by `--config` or `APPLIANCE_CONFIG`, else `appliance.toml` in the data directory where
there is one. What nobody knows is refused, wherever it was written.
"""

import difflib
import os
import re
import stat
import textwrap
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import structlog
from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from appliance.errors import InvalidInput

log = structlog.get_logger(__name__)

_PREFIX = "APPLIANCE_"
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_ORIGINS = "\0origins"  # how the sources tell the validator where a value came from; no file or variable can say this


def _default_data() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "appliance"


def _seconds(value: object) -> object:
    """`300`, `"300"`, `"5m"`, `"1h30m"`, `"-1"` as seconds; anything else is left for the type to refuse."""
    if isinstance(value, str) and (parts := re.fullmatch(r"-?((\d+(\.\d+)?)(ms|s|m|h|d))+", value.strip())):
        found = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", parts[0])
        total = sum(float(number) * _UNITS[unit] for number, unit in found)
        return -total if parts[0].startswith("-") else total
    return value


def _listed(value: object) -> object:
    """A string is its parts between commas, as in an environment variable."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _paired(value: object) -> object:
    """A string is its pairs between commas, `name=value` each."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    return {name.strip(): other.strip() if equals else None for name, equals, other in pairs}


def _given(value: object) -> object:
    """An empty string is nothing at all."""
    return None if value == "" else value


Place = Annotated[Path, BeforeValidator(lambda value: Path(value).expanduser() if isinstance(value, str) else value)]
MaybePlace = Annotated[Place | None, BeforeValidator(_given)]
Seconds = Annotated[float, BeforeValidator(_seconds)]
Names = Annotated[list[str], NoDecode, BeforeValidator(_listed)]
Places = Annotated[list[Place], NoDecode, BeforeValidator(_listed)]
Pairs = Annotated[dict[str, str], NoDecode, BeforeValidator(_paired)]
Secrets = Annotated[list[SecretStr], NoDecode, BeforeValidator(_listed)]


PROFILES: Mapping[str, Mapping[str, Any]] = {
    "balanced": {},  # the defaults
    "throughput": {"cache_entries": 100_000, "max_pending": 2048},
    "low-memory": {
        "batch_tokens": 256,
        "cache_entries": 1000,
        "keep_alive": 300.0,
        "max_pending": 64,
        "search_memory": 160 * 1024**2,
    },
}
"""What each profile says of other settings, where nothing else says it."""


class Settings(BaseSettings):
    """Read once, at the top; whatever is built gets values, not this.

    Raises:
        InvalidInput: one value that cannot be used, or a name that nobody knows; the message says which and where.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    data: Place = Field(
        default_factory=_default_data,
        description="Directory of everything that is kept: database, models, own cards, caches. "
        "In $XDG_DATA_HOME where that is set. Not in the file that lies in it.",
        json_schema_extra={"shown": "~/.local/share/appliance"},
    )
    host: str = Field("127.0.0.1", description="Address to listen on. Beyond this machine only with a key.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    simulate_npu: bool = Field(
        default=False,
        description="Play an NPU, to try its path without one: vectors tell which words texts share, no more. Needs a "
        "C compiler.",
    )
    model: str = Field(
        default_factory=lambda data: "simulated-npu" if data.get("simulate_npu") else "all-minilm-l6-v2",
        min_length=1,
        description="The model where a request names none.",
        json_schema_extra={"shown": "all-minilm-l6-v2"},
    )
    reranker: str = Field(
        "", description="The model that reranks where a request names none; the first one here if empty."
    )
    threads: int = Field(0, ge=0, le=1024, description="Threads of the engine; 0 is one per core.")
    engine: Literal["auto", "npu", "cpu"] = Field(
        "auto",
        description="What runs a model: auto is the NPU where there is one that works, else the CPU; npu is the NPU or "
        "an error, for the default and wherever there is a choice; cpu is never the NPU.",
    )
    npu_library: MaybePlace = Field(
        None,
        description="The NPU's librkllmrt.so; looked for beside the model and in the system's folders if left out.",
        json_schema_extra={"shown": ""},
    )
    npu_abi: Literal["auto", "A", "B", "C", "D"] = Field(
        "auto",
        description="How librkllmrt.so is spoken to: A as 1.1.x, B as 1.2.0, C as 1.2.1 to 1.2.3, D as 1.3.x; auto "
        "finds out. A wrong one corrupts memory.",
    )
    npu_timeout: Seconds = Field(
        0,
        ge=0,
        le=86400,
        allow_inf_nan=False,
        description="How long the NPU may take over one text; 0 is 10 s and a twentieth of a second for each token.",
    )
    preload: Names = Field([], description="Models to load at the start besides the default.")
    aliases: Pairs = Field(
        {},
        description='More names for models: { "text-embedding-3-small" = "openai-3-small" }; in an environment '
        "variable name=model, between commas.",
    )
    fallback: Names = Field(
        [],
        description="Models that answer, in this order, where a caller wants an answer from any (use_fallback) and the "
        "model's card says nothing else.",
    )
    use_fallback: bool = Field(
        default=False, description="Fall back on every embedding call that does not say otherwise."
    )
    memory_budget: ByteSize = Field(
        ByteSize(0),
        ge=0,
        description="Memory for loaded models, as far as their files tell it; beyond it the one idle for longest is "
        "unloaded. 0 is no limit.",
        json_schema_extra={"shown": "0"},
    )
    secrets_file: MaybePlace = Field(
        None,
        description="File of keys for other servers, NAME=value on each line; an environment variable goes first.",
        json_schema_extra={"shown": ""},
    )
    profile: Literal["balanced", "throughput", "low-memory"] = Field(
        "balanced", description="What to favour where a setting says nothing else."
    )
    batch_tokens: int = Field(
        0, ge=0, le=65536, description="Padded tokens of one batch on the CPU; 0 is what the engine runs best."
    )
    cache_entries: int = Field(
        10_000, ge=0, le=10_000_000, description="Embeddings remembered in memory; 0 remembers none."
    )
    cache_ttl: Seconds = Field(
        3600, gt=0, le=10 * 365 * 86400, allow_inf_nan=False, description="How long an embedding is remembered."
    )
    cache_on_disk: bool = Field(
        default=False, description="Remember embeddings in a SQLite file as well, in the data directory."
    )
    cache_disk_size: ByteSize = Field(
        ByteSize(1024**3), ge=1024**2, description="Largest size of that file.", json_schema_extra={"shown": "1GiB"}
    )
    redis_url: SecretStr = Field(
        SecretStr(""),
        description="A Redis server to remember embeddings in, shared by several appliances: redis://localhost:6379/0.",
        json_schema_extra={"shown": ""},
    )
    redis_ttl: Seconds = Field(
        300, gt=0, le=10 * 365 * 86400, allow_inf_nan=False, description="How long Redis remembers an embedding."
    )
    max_pixels: int = Field(
        50_000_000, ge=10_000, le=1_000_000_000, description="Pixels of an image; a larger one is refused unread."
    )
    keep_alive: Seconds = Field(
        -1,
        allow_inf_nan=False,
        description='How long an idle model stays loaded: seconds or "5m"; negative is forever.',
    )
    offline: bool = Field(default=False, description="Never reach out for model files. HF_HUB_OFFLINE=1 says the same.")
    api_keys: Secrets = Field([], description="Keys that callers must send. With none, no key is asked for.")
    api_keys_file: MaybePlace = Field(
        None,
        description="File of more keys, one a line; lines that begin with # are skipped.",
        json_schema_extra={"shown": ""},
    )
    allow_open: bool = Field(default=False, description="Listen beyond this machine without a key all the same.")
    allowed_hosts: Names = Field(
        [],
        description="Host names to answer to besides localhost, the address and the machine's name; *.example.org too.",
    )
    allowed_origins: Names = Field(
        [], description="Web origins that may call besides localhost and local apps: https://notes.example.org."
    )
    max_body: ByteSize = Field(
        ByteSize(64 * 1024**2), ge=1024, description="Largest request body.", json_schema_extra={"shown": "64MiB"}
    )
    max_pending: int = Field(
        512, ge=1, le=100_000, description="Requests worked on at once; the next is told to come back."
    )
    wait: float = Field(
        10.0, ge=0, le=3600, description="Seconds that POST /documents waits for a document to be ready."
    )
    ingest_roots: Places = Field(
        [],
        description="Folders below which callers may have the server itself read files and folders; with none, none.",
    )
    watch_folders: Pairs = Field(
        {},
        description='Folders to keep collections like: { "/srv/notes" = "notes" }; in an environment variable '
        "folder=collection, between commas.",
    )
    token_ids: Literal["cl100k", "model", "reject"] = Field(
        "cl100k",
        description="Whose ids the token arrays of /v1/embeddings are: OpenAI's, the model's own, or nobody's.",
    )
    strict_openai: bool = Field(default=False, description="Refuse the empty string on /v1/embeddings, as OpenAI does.")
    store: Literal["sqlite", "postgres", "milvus"] = Field(
        "sqlite",
        description="Where chunks and vectors live: in the data directory, or on a server that appliances share.",
    )
    store_url: SecretStr = Field(
        SecretStr(""),
        description="Address of that server: postgresql://user:password@host:5432/database, or http://host:19530 of "
        "Milvus. Best as APPLIANCE_STORE_URL in the environment or in secrets_file.",
        json_schema_extra={"shown": ""},
    )
    catalog_url: SecretStr = Field(
        SecretStr(""),
        description="Address of a PostgreSQL server for what else appliances share: collections, documents, jobs and "
        "their queue. With store = postgres it is the same server, if left out; otherwise each has its own.",
        json_schema_extra={"shown": ""},
    )
    store_index: Literal["hnsw", "ivfflat", "none"] = Field(
        "hnsw",
        description="How a server finds the nearest of many: hnsw finds most, ivfflat is small and quickly built, none "
        "compares with all.",
    )
    store_distance: Literal["ip", "cosine", "l2"] = Field(
        "ip", description="What its index compares by; vectors of unit length come in one order by each."
    )
    store_precision: Literal["half", "single"] = Field(
        "half", description="Of the numbers in PostgreSQL's index; the best are compared again in full anyway."
    )
    chunk_tokens: int = Field(
        0, ge=0, le=8192, description="Tokens of a chunk; 0 is 256, or as many as the model takes if fewer."
    )
    chunk_overlap: int = Field(32, ge=0, le=4096, description="Tokens repeated between neighbouring chunks.")
    title_weight: float = Field(
        1.0, ge=0, le=1000, description="What a word of a title counts for beside one of the text."
    )
    fusion: Literal["rrf", "dbsf"] = Field(
        "dbsf", description="How a hybrid search makes one ranking of two: by ranks (rrf), or by scores (dbsf)."
    )
    vector_weight: float = Field(1.0, ge=0, le=1000, description="What vectors count for in a hybrid search.")
    keyword_weight: float = Field(1.0, ge=0, le=1000, description="What words count for in a hybrid search.")
    literal_boost: float = Field(
        2.0,
        ge=0,
        le=1000,
        description="What that is multiplied by for a question of quoted words, codes or identifiers.",
    )
    fusion_k: int = Field(60, ge=1, le=10_000, description="Rank constant of reciprocal rank fusion.")
    search_depth: int = Field(
        100, ge=1, le=10_000, description="Matches taken from vectors and from words before fusion."
    )
    search_memory: ByteSize = Field(
        ByteSize(512 * 1024**2),
        ge=0,
        description="Memory that searches of the store in the data directory may fill: half of it with vectors, half "
        "with the signs of vectors in collections of 50,000 chunks and more; an eighth besides for filters. What does "
        "not fit is read from the disk by each search.",
        json_schema_extra={"shown": "512MiB"},
    )
    search_candidates: int = Field(
        220,
        ge=25,
        le=10_000,
        description="Chunks that a search by signs compares exactly for its first 25 matches; three more for each "
        "match beyond. More of them miss less, and take longer.",
    )
    rerank_depth: int = Field(
        50, ge=1, le=1000, description="Best matches of a search that are reranked where that is asked for."
    )
    log_format: Literal["console", "json"] = Field("console", description="For a person, or for a program.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least that is logged.")

    config: MaybePlace = Field(None, description="The settings file.")

    NOT_IN_FILE: ClassVar[frozenset[str]] = frozenset({"config"})
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.data / "appliance.db"

    def store_address(self) -> str:
        """`store_url`, else what `secrets_file` has for it. Blocking. InvalidInput as `secret`."""
        return self.store_url.get_secret_value() or self.secret(f"{_PREFIX}STORE_URL") or ""

    def catalog_address(self) -> str:
        """Where the catalog is that appliances share; "" where this one has its own. Blocking.

        Raises:
            InvalidInput: as `secret`; or the store is in the data directory, so that nothing can be shared.
        """
        own = self.catalog_url.get_secret_value() or self.secret(f"{_PREFIX}CATALOG_URL") or ""
        if own and self.store == "sqlite":
            raise InvalidInput(
                "catalog_url is for appliances that share a store: set store = postgres or milvus with it",
                param="catalog_url",
            )
        return own or (self.store_address() if self.store == "postgres" else "")

    @property
    def models(self) -> Path:
        """Model files, by content."""
        return self.data / "models"

    @property
    def cards(self) -> Path:
        """The owner's own cards."""
        return self.data / "cards"

    @property
    def cache(self) -> Path:
        """What can be built again."""
        return self.data / "cache"

    def watched(self) -> dict[Path, str]:
        """The folders that are followed, and the collection of each."""
        return {Path(folder).expanduser().absolute(): name for folder, name in self.watch_folders.items()}

    def origin(self, name: str) -> str:
        """Where a value came from, for a person: `--port`, `APPLIANCE_PORT`, the file's path, `profile low-memory`, or
        `default`.
        """
        return self._origins.get(name, "default")

    def keys(self) -> tuple[str, ...]:
        """Every API key, of `api_keys` and `api_keys_file`.

        Raises:
            InvalidInput: the file cannot be read or holds no key, or a key could not be sent in a header.
        """
        keys = [key.get_secret_value() for key in self.api_keys]
        if self.api_keys_file is not None:
            try:
                lines = self.api_keys_file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInput(
                    f"api_keys_file cannot be read: {self.api_keys_file}", param="api_keys_file"
                ) from error
            listed = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
            if not listed:
                raise InvalidInput(f"api_keys_file holds no key: {self.api_keys_file}", param="api_keys_file")
            keys += listed
        if not all(re.fullmatch(r"[!-~]+", key) for key in keys):
            raise InvalidInput("an API key is one word of printable ASCII characters", param="api_keys")
        return tuple(dict.fromkeys(keys))

    def secret(self, name: str) -> str | None:
        """The secret of a name: of the environment, else of `secrets_file`; None where neither has it, or it is empty.

        The file is read each time, so that a key may be changed in it. Blocking.

        Raises:
            InvalidInput: the file cannot be read, or one of its lines is neither NAME=value, a comment nor blank.
        """
        if value := os.environ.get(name, "").strip():
            return value
        return None if self.secrets_file is None else _read_secrets(self.secrets_file).get(name) or None

    @field_validator("ingest_roots")
    @classmethod
    def _all_absolute(cls, paths: list[Path]) -> list[Path]:
        return [path.absolute() for path in paths]

    @field_validator("data", "config", "api_keys_file", "npu_library", "secrets_file")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and path.absolute()

    @model_validator(mode="wrap")
    @classmethod
    def _told_plainly(cls, given: dict[str, Any], read: ModelWrapValidatorHandler[Self]) -> Self:
        origins = given.pop(_ORIGINS, {})
        try:
            settings = read(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            message = first["msg"].removeprefix("Value error, ")
            raise InvalidInput(f"{name} ({origins.get(name, 'default')}): {message}", param=name) from None
        settings._origins = origins  # noqa: SLF001 - of this very class
        settings._agree()  # noqa: SLF001 - same
        return settings

    def _agree(self) -> None:
        if self.vector_weight == self.keyword_weight == 0:
            raise InvalidInput("vector_weight and keyword_weight cannot both be 0", param="vector_weight")
        if self.simulate_npu and (self.engine == "cpu" or self.npu_library is not None):
            other = "engine = cpu" if self.engine == "cpu" else "npu_library"
            raise InvalidInput(f"simulate_npu and {other} exclude each other", param="simulate_npu")
        ends = [(folder.name, collection) for folder, collection in self.watched().items()]
        if not all(folder and collection for folder, collection in ends):
            raise InvalidInput("watch_folders: a folder that has a name, and a collection", param="watch_folders")
        if len(set(ends)) < len(ends):
            raise InvalidInput(
                "watch_folders: two folders of one name in one collection would remove each other's documents",
                param="watch_folders",
            )
        if not all(root.name for root in self.ingest_roots):
            raise InvalidInput(
                "ingest_roots: a folder that has a name is needed, not all there is", param="ingest_roots"
            )
        if 0 < self.chunk_tokens <= self.chunk_overlap:
            raise InvalidInput("chunk_overlap must be less than chunk_tokens", param="chunk_overlap")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings passes it by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources, first wins. Which file is read depends on the flags and the environment."""
        flags = {name: value for name, value in _init_arguments(init_settings).items() if value is not None}
        _known(flags, origin=_flag)
        _known(_environment(), origin=_variable)
        environment = env_settings()
        above = environment | flags
        named = _given(above.get("config"))
        data = Path(str(above.get("data") or _default_data())).expanduser()
        file = Path(named).expanduser() if isinstance(named, str | Path) else data / "appliance.toml"
        written = _read_toml(file) if named or file.exists() else {}
        _known(written, origin=lambda _: str(file), without=cls.NOT_IN_FILE)
        if not named and "data" in written:
            raise InvalidInput(
                f"data ({file}): the data directory cannot be set by the file that lies in it", param="data"
            )
        profile = (written | above).get("profile")
        return (
            _Layer(settings_cls, flags, origin=_flag),
            _Layer(settings_cls, environment, origin=_variable),
            _Layer(settings_cls, _hub_offline(), origin=lambda _: "HF_HUB_OFFLINE"),
            _Layer(settings_cls, written, origin=lambda _: str(file)),
            _Layer(
                settings_cls,
                PROFILES.get(profile, {}) if isinstance(profile, str) else {},
                origin=lambda _: f"profile {profile}",
            ),
        )


class _Layer(PydanticBaseSettingsSource):
    """Values of one place, with the name of the place beside each."""

    def __init__(
        self, settings_cls: type[BaseSettings], values: Mapping[str, Any], *, origin: Callable[[str], str]
    ) -> None:
        super().__init__(settings_cls)
        self._values = values
        self._origin = origin

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - theirs
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return {**self._values, _ORIGINS: {name: self._origin(name) for name in self._values}}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return _PREFIX + name.upper()


def _environment() -> dict[str, str]:
    return {name.removeprefix(_PREFIX).lower(): value for name, value in os.environ.items() if name.startswith(_PREFIX)}


def _init_arguments(source: PydanticBaseSettingsSource) -> dict[str, Any]:
    arguments: dict[str, Any] = getattr(source, "init_kwargs", {})
    return arguments


def _hub_offline() -> dict[str, bool]:
    """Hugging Face's own switch, by its own rule for what is true."""
    return {"offline": True} if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"} else {}


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"the settings file cannot be read: {file}: {error.strerror}", param="config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the settings file is not TOML: {file}: {error}", param="config") from error


def _read_secrets(file: Path) -> dict[str, str]:
    try:
        mode = file.stat().st_mode
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"secrets_file cannot be read: {file}", param="secrets_file") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("secrets_file is open to others", file=str(file), advice=f"chmod 600 {file}")
    found = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, equals, value = line.partition("=")
            if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name.strip()):
                raise InvalidInput(f"secrets_file, line {number}: NAME=value is needed: {file}", param="secrets_file")
            found[name.strip()] = _unquoted(value.strip())
    return found


def _unquoted(value: str) -> str:
    """A value may stand in quotes, as shells want it."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def _known(
    values: Mapping[str, object], *, origin: Callable[[str], str], without: frozenset[str] = frozenset()
) -> None:
    """Refuse the first name that is no setting, with the nearest that is."""
    names = [name for name in Settings.model_fields if name not in without]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InvalidInput(f"there is no setting {name} ({origin(name)}){hint}", param=name)


def example() -> str:
    """The text of `config/appliance.toml`: every setting at its default, commented out."""
    lines = [
        "# Every setting at its default. Copy this file to appliance.toml in the data directory, or name it with",
        "# --config, and uncomment what should differ. A flag (--max-body) or an environment variable",
        "# (APPLIANCE_MAX_BODY) wins.",
    ]
    for name, field in Settings.model_fields.items():
        if name not in Settings.NOT_IN_FILE:
            told = textwrap.wrap(field.description or "", 110)
            lines += ["", *(f"# {line}" for line in told), f"# {name} = {_as_toml(field)}"]
    return "\n".join(lines) + "\n"


def _as_toml(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    value = extra["shown"] if isinstance(extra, dict) and "shown" in extra else field.default
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def shipped(name: Literal["config", "migrations", "native"]) -> Path:
    """A folder that comes with the code: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_shipped" / name
    if installed.is_dir():
        return installed
    return package.parent / ("tests/native" if name == "native" else name)
