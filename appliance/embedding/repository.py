"""A card for a model that has none, made of what its repository on the hub says of itself.

Read are the small files that sentence-transformers and transformers write beside the weights. What would make other
vectors here than there is refused, by its name, before anything large is fetched.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.embedding.engines.known import WEIGHTS, known_architecture
from appliance.embedding.hub import Commit, Expected, Hub
from appliance.embedding.sources import Refused, SourceFailed
from appliance.embedding.spec import Card, HubSource, parse_card
from appliance.errors import InvalidInput, UpstreamFailed

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
"""A repository's name on the hub."""

REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,127}", re.ASCII)
"""A branch, a tag or a commit."""

MOST_TOKENS = 2048
"""Tokens of one input that a card is made for: attention takes memory by the square of it."""

_MOST_SHARDS = 100

_LONGEST_PROMPT = 4000

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")

_RESTRICTED = re.compile(r"(^|[^a-z])(nc|other)([^a-z]|$)|non-?commercial|gemma|llama|research|rail", re.IGNORECASE)
"""Licences that forbid some uses, or of which nothing but the name is known."""

_COUNTS_FROM_PADDING = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text"})
"""Their first position is the one behind the padding token's id."""

_MEANT: Mapping[str, Sequence[str]] = {
    "query": ("query", "search_query", "retrieval-query"),
    "document": ("document", "passage", "corpus", "search_document", "retrieval-document"),
    "classification": ("classification",),
    "clustering": ("clustering",),
}
"""What prompts are called, for each kind of text; the first that a model has is taken."""

_POOLINGS: Mapping[str, Literal["mean", "cls", "last"]] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "cls",
    "cls_token": "cls",
    "last": "last",
    "lasttoken": "last",
}

_ACTIVATIONS = ("Identity", "Tanh")

_CLIP = "is a CLIP model: a card for it has to be written by hand, as docs/models.md tells"


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Module(_Read):
    type: str = Field(max_length=200)
    path: str = Field(max_length=100, pattern=r"^([A-Za-z0-9][\w.-]*)?$")

    @property
    def kind(self) -> str:
        """The class's name, of sentence-transformers' own; of others the whole."""
        return self.type.rpartition(".")[2] if self.type.startswith("sentence_transformers.") else self.type


class _Pooling(_Read):
    model_config = ConfigDict(extra="allow")

    word_embedding_dimension: int = Field(default=0, ge=0)
    embedding_dimension: int = Field(default=0, ge=0)
    pooling_mode: str | None = Field(default=None, max_length=100)
    include_prompt: bool = True

    @property
    def modes(self) -> list[str]:
        """What is joined to one vector; usually one."""
        if self.pooling_mode is not None:
            return [self.pooling_mode]
        start = "pooling_mode_"
        return [
            name.removeprefix(start) for name, on in (self.model_extra or {}).items() if on and name.startswith(start)
        ]


class _Dense(_Read):
    in_features: int = Field(ge=1, le=65536)
    out_features: int = Field(ge=1, le=8192)
    activation_function: str = Field(default="torch.nn.modules.activation.Tanh", max_length=200)


class _Sentences(_Read):
    max_seq_length: int | None = None
    do_lower_case: bool = False


class _Prompts(_Read):
    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None


class _Tokenizer(_Read):
    model_max_length: float | None = None
    do_lower_case: bool = False


class _Config(_Read):
    model_type: str = Field(default="", max_length=100, pattern=r"^[A-Za-z0-9_.-]*$")
    architectures: list[str] | None = None
    hidden_size: int | None = None
    max_position_embeddings: int | None = None
    n_positions: int | None = None
    pad_token_id: int | None = None
    id2label: dict[str, str] | None = None
    num_labels: int | None = None

    @property
    def labels(self) -> int:
        """Classes of a classifier; 2 is what transformers take where it is left out."""
        return len(self.id2label) if self.id2label is not None else self.num_labels or 2

    @property
    def positions(self) -> int | None:
        """Tokens that have a position; None where the architecture needs none, or does not say."""
        most = self.max_position_embeddings or self.n_positions
        if most and self.model_type in _COUNTS_FROM_PADDING:
            return most - (1 if self.pad_token_id is None else self.pad_token_id) - 1
        return most


class _Index(_Read):
    weight_map: dict[str, str]


class Described(NamedTuple):
    """A card that was made: its TOML, and what that says."""

    text: str
    card: Card


@dataclass
class _Draft:
    """What was found out so far, in the order that the card tells it."""

    keys: dict[str, Any] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    prefixes: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: object, remark: str = "") -> None:
        self.keys[key] = value
        if remark:
            self.remarks[key] = remark


M = TypeVar("M", bound=BaseModel)


def describe(hub: Hub, repo: str, revision: str, *, name: str, alias: bool) -> Described:
    """Make a card of a repository.

    Args:
        hub: where it is.
        repo: `organisation/name`.
        revision: a branch, a tag or a commit; the card has the commit.
        name: of the card.
        alias: whether the card may be asked for by the repository's name as well.

    Raises:
        InvalidInput: there is no such repository, or its model cannot be run here; the message says what is in the way.
        UpstreamFailed: the hub did not answer, or not as it should.
    """
    try:
        commit = hub.commit(repo, revision)
        source = HubSource(kind="hub", repo=repo, revision=commit.sha)
        return _Repository(hub, source, commit, hub.tree(repo, commit.sha)).described(name, alias=alias)
    except Refused as refusal:
        raise InvalidInput(f"{repo} at revision {revision} cannot be had from the hub: {refusal}") from refusal
    except SourceFailed as failure:
        raise UpstreamFailed(f"{repo} cannot be read on the hub: {failure}") from failure


def restricted(license: str) -> bool:  # noqa: A002 - as cards call it
    """Whether a licence of this name has to be accepted first."""
    return _RESTRICTED.search(license) is not None


class _Repository:
    """One repository at one commit."""

    def __init__(self, hub: Hub, source: HubSource, commit: Commit, tree: Mapping[str, Expected]) -> None:
        self._hub = hub
        self._source = source
        self._commit = commit
        self._tree = tree
        self._fetched: dict[str, bytes] = {}

    def described(self, name: str, *, alias: bool) -> Described:
        repo, revision = self._source.repo, self._source.revision
        if "config.json" not in self._tree and any(path.endswith(".gguf") for path in self._tree):
            raise self._refused(
                "has its weights as GGUF files, which are not read here: name the repository they are of"
            )
        modules = self._modules()
        folder = modules[0].path if modules else ""
        config = self._read(_Config, "config.json", folder)
        rerank = not modules and (config.architectures or [""])[0].endswith("ForSequenceClassification")
        if not rerank and not modules:
            if "clip" in config.model_type:
                raise self._refused(_CLIP)
            raise self._refused(
                "has no modules.json, so that nothing tells how the states of its tokens become one vector; write a"
                " card for it if you know (docs/models.md)"
            )
        draft = _Draft()
        draft.put("name", name)
        if alias:
            draft.put("aliases", [repo])
        draft.put("description", f"{repo} of the Hugging Face hub.")
        if license_name := self._license():
            draft.put("license", license_name)
        else:
            draft.remarks["description"] = "the repository names no licence"
        if restricted(license_name):
            draft.put("accept_license", value=True, remark="its files are pulled once the licence was accepted")
        if rerank:
            draft.put("task", "rerank")
        draft.put("family", config.model_type or "unknown")
        if parameters := self._parameters():
            draft.put("parameters", parameters)
        draft.put("engine", "onnx")
        draft.put("precision", "fp32")
        if rerank:
            files = self._classifier(draft, config)
        else:
            files = self._embedder(draft, config, modules)
            draft.keys["space"] = f"{name}-{self._identity(draft, files, folder)}"
        draft.put("pinned", files)
        draft.keys["sources"] = [{"kind": "hub", "repo": repo, "revision": revision, "folder": folder}]
        text = _toml(draft, repo)
        return Described(text, parse_card(text, f"the card made of {repo}"))

    def _modules(self) -> list[_Module]:
        """The pipeline of sentence-transformers, checked as far as its kinds go; none for other repositories."""
        if "modules.json" not in self._tree:
            return []
        raw = self._json("modules.json")
        try:
            modules = [_Module.model_validate(each) for each in raw]
        except (ValidationError, TypeError) as error:
            raise self._refused("has a modules.json that makes no sense") from error
        for module in modules:
            if module.kind in {"CLIPModel", "CLIPVisionModel"}:
                raise self._refused(_CLIP)
            if module.kind not in {"Transformer", "Pooling", "Dense", "Normalize"}:
                raise self._refused(f"has a module that is not known here: {module.kind!r}")
        kinds = [module.kind for module in modules if module.kind != "Normalize"]
        if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Dense"}:
            raise self._refused(f"joins its modules in a way that is not known here: {', '.join(kinds) or 'none'}")
        if "Normalize" in [module.kind for module in modules[:-1]]:
            raise self._refused("normalises its vectors before the last module, which is not known here")
        return modules

    def _classifier(self, draft: _Draft, config: _Config) -> list[str]:
        """Fill in what a reranker's card needs; its files."""
        if config.labels not in (1, 2):
            raise self._refused(f"is a classifier of {config.labels} classes; a reranker has one or two")
        tokenizer = self._optional(_Tokenizer, "tokenizer_config.json")
        draft.put("max_tokens", self._longest(config, tokenizer, None))
        return self._files(config, folder="", dense=False)

    def _embedder(self, draft: _Draft, config: _Config, modules: Sequence[_Module]) -> list[str]:
        """Fill in what an embedding model's card needs; its files."""
        folder = modules[0].path
        pooling = self._read(_Pooling, "config.json", modules[1].path)
        modes = pooling.modes
        if len(modes) != 1 or modes[0] not in _POOLINGS:
            raise self._refused(f"pools in a way that is not known here: {modes or 'none'}")
        draft.put("pooling", _POOLINGS[modes[0]], f"{modules[1].path}/config.json")
        dimensions = pooling.word_embedding_dimension or pooling.embedding_dimension or config.hidden_size or 0
        if config.hidden_size and config.hidden_size != dimensions:
            raise self._refused(f"pools {dimensions} dimensions of the {config.hidden_size} that its model gives")
        layers = [module.path for module in modules if module.kind == "Dense"]
        for layer in layers:
            dense = self._read(_Dense, "config.json", layer)
            if dense.activation_function.rpartition(".")[2] not in _ACTIVATIONS:
                raise self._refused(f"has a layer with an activation not known here: {dense.activation_function!r}")
            if dense.in_features != dimensions:
                raise self._refused(f"has a layer for {dense.in_features} dimensions behind {dimensions}")
            dimensions = dense.out_features
        if layers:
            draft.put("dense", layers)
        if layers and folder:
            raise self._refused("keeps its model in a folder and its linear layers in others, which is not known here")
        sentences = self._optional(_Sentences, "sentence_bert_config.json", folder)
        tokenizer = self._optional(_Tokenizer, "tokenizer_config.json", folder)
        if sentences.do_lower_case and not tokenizer.do_lower_case:
            raise self._refused("puts texts into lower case before its tokenizer, which does not do so itself")
        self._prefixes(draft, pooling)
        draft.put("space", "", "another one for other files, pooling or prefixes: such vectors may not be compared")
        draft.put("dimensions", dimensions)
        draft.put("max_tokens", self._longest(config, tokenizer, sentences.max_seq_length))
        files = self._files(config, folder=folder, dense=bool(layers))
        for layer in layers:
            files += [f"{layer}/config.json", self._layer_weights(layer)]
        return files

    def _prefixes(self, draft: _Draft, pooling: _Pooling) -> None:
        """What stands in front of texts, as sentence-transformers' encode_query and encode_document choose it."""
        said = self._optional(_Prompts, "config_sentence_transformers.json")
        prompts = {name.lower(): prompt for name, prompt in said.prompts.items()}
        if any(len(prompt) > _LONGEST_PROMPT for prompt in prompts.values()):
            raise self._refused(f"has a prompt of more than {_LONGEST_PROMPT} characters")
        always = prompts.get((said.default_prompt_name or "").lower(), "")
        for kind, names in _MEANT.items():
            prompt = next((prompts[name] for name in names if name in prompts), None)
            if prompt is None and kind in {"query", "document"}:
                prompt = always
            if prompt or (prompt == "" and kind in {"classification", "clustering"}):
                draft.prefixes[kind] = prompt
        if any(draft.prefixes.values()) and not pooling.include_prompt:
            raise self._refused("leaves its prompts out of the pooling, which is not known here")

    def _longest(self, config: _Config, tokenizer: _Tokenizer, told: int | None) -> int:
        """Tokens of one input."""
        limits = [MOST_TOKENS, told, config.positions]
        if tokenizer.model_max_length and not told:
            limits.append(int(min(tokenizer.model_max_length, MOST_TOKENS)))
        longest = min(limit for limit in limits if limit is not None)
        if longest < 4:  # noqa: PLR2004 - as a card has it
            raise self._refused(f"takes {longest} tokens, which is too few for a text")
        return longest

    def _files(self, config: _Config, *, folder: str, dense: bool) -> list[str]:
        """The files to pull, by their names below `folder`: weights, what describes them, and the tokenizer."""
        if not self._has("tokenizer.json", folder):
            raise self._refused(
                "has no tokenizer.json; transformers' AutoTokenizer.from_pretrained(…).save_pretrained(…) writes one"
                " for most models: docs/models.md tells how to bring files of your own"
            )
        known = known_architecture(self._bytes("config.json", folder))
        forms: list[tuple[str, list[str]]] = []  # of weights, the best first
        for name in ("model.safetensors", "model.safetensors.index.json"):
            if self._has(name, folder):
                forms.append((name, [name, *(self._shards(folder) if name.endswith(".json") else [])]))
                break
        ready = next((name for name in ("onnx/model.onnx", "model.onnx") if self._has(name, folder)), "")
        if ready and not dense and not self._has(f"{ready}_data", folder):
            forms.append(("", [ready]))
        if self._has("pytorch_model.bin", folder):
            forms.append(("pytorch_model.bin", ["pytorch_model.bin"]))
        for form, files in forms:
            if not form:
                return [*files, "tokenizer.json"]
            if known and form in WEIGHTS:
                return [*files, "config.json", "tokenizer.json"]
        if not known:
            raise self._refused(
                f"has an architecture that is not known here ({config.model_type or 'unnamed'}), and no ONNX file that"
                " would do instead"
            )
        found = " or ".join(form for form, _ in forms)
        raise self._refused(
            f"has its weights in a form that is not read here ({found})"
            if found
            else "has no weights that are read here"
        )

    def _shards(self, folder: str) -> list[str]:
        index = self._read(_Index, "model.safetensors.index.json", folder)
        shards = sorted(set(index.weight_map.values()))
        if not 0 < len(shards) <= _MOST_SHARDS or not all(
            _SHARD.fullmatch(shard) and self._has(shard, folder) for shard in shards
        ):
            raise self._refused("lists shards of its weights that are not there")
        return shards

    def _layer_weights(self, layer: str) -> str:
        for name in ("model.safetensors", "pytorch_model.bin"):
            if self._has(name, layer):
                return f"{layer}/{name}"
        raise self._refused(f"has no weights in {layer}")

    def _identity(self, draft: _Draft, files: Sequence[str], folder: str) -> str:
        """What the vectors depend on, as a short hash."""
        hashes = {name: self._tree[_join(folder, name)].digest for name in files}
        about = [hashes, draft.prefixes, *(draft.keys.get(key) for key in ("pooling", "dense"))]
        return hashlib.sha256(orjson.dumps(about, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]

    def _license(self) -> str:
        """The licence's name: as the hub has it, or the page of the repository; empty where none is named."""
        about = self._commit.about if isinstance(self._commit.about, dict) else {}
        told = about.get("license") or next(
            (tag.removeprefix("license:") for tag in self._commit.tags if tag.startswith("license:")), ""
        )
        if not told and "README.md" in self._tree:
            told = self._front_matter()
        names = [each for each in (told if isinstance(told, list) else [told]) if isinstance(each, str)]
        named = about.get("license_name")
        if names == ["other"] and isinstance(named, str):
            names.append(named)
        return re.sub(r"[^\w.+-]+", " ", " ".join(names)).strip()[:100]

    def _front_matter(self) -> str:
        try:
            page = self._bytes("README.md").decode(errors="replace")
        except InvalidInput:  # too long a page
            return ""
        head = page.removeprefix("---").partition("\n---")[0] if page.startswith("---") else ""
        found = re.search(r"^license:[ \t]*[\"']?([\w.+-]+)", head, re.MULTILINE)
        return found[1] if found else ""

    def _parameters(self) -> int:
        about = self._commit.safetensors
        total = about.get("total") if isinstance(about, dict) else None
        return total if isinstance(total, int) and 0 < total < 1 << 40 else 0

    def _has(self, name: str, folder: str = "") -> bool:
        return _join(folder, name) in self._tree

    def _optional(self, kind: type[M], name: str, folder: str = "") -> M:
        """A file that may be left out, or lie beside the folder."""
        for place in dict.fromkeys((folder, "")):
            if self._has(name, place):
                return self._read(kind, name, place)
        return kind()

    def _read(self, kind: type[M], name: str, folder: str = "") -> M:
        try:
            return kind.model_validate(self._json(name, folder))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part)[:100] for part in first["loc"])
            raise self._refused(
                f"has a file that makes no sense: {_join(folder, name)}: {where!a}: {first['msg']}"
            ) from error

    def _json(self, name: str, folder: str = "") -> Any:
        try:
            return orjson.loads(self._bytes(name, folder))
        except orjson.JSONDecodeError as error:
            raise self._refused(f"has a file that is not JSON: {_join(folder, name)}") from error

    def _bytes(self, name: str, folder: str = "") -> bytes:
        path = _join(folder, name)
        if path not in self._tree:
            raise self._refused(f"has no {path}")
        if path not in self._fetched:
            try:
                self._fetched[path] = self._hub.read(self._source, path, self._tree[path])
            except Refused as refusal:
                raise self._refused(f"has a file that cannot be read: {path}: {refusal}") from refusal
        return self._fetched[path]

    def _refused(self, why: str) -> InvalidInput:
        return InvalidInput(f"{self._source.repo} {why}", param="model")


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _toml(draft: _Draft, repo: str) -> str:
    """The card as a person would write it."""
    lines = [
        f"# Made by `appliance pull {repo}` of what the repository says of itself. Yours to change:",
        "# docs/models.md of the appliance tells every key.",
    ]
    for key, value in draft.keys.items():
        if key == "sources":
            continue
        remark = f" # {draft.remarks[key]}" if key in draft.remarks else ""
        lines.append(f"{key} = {_value(value)}{remark}")
    for source in draft.keys["sources"]:
        lines += ["", "[[sources]]", *(f"{key} = {_value(value)}" for key, value in source.items() if value)]
    if draft.keys.get("task") != "rerank":
        lines.append("")
        if not draft.prefixes:
            lines += ['# The repository names no prompts. If its page asks for some ("query: "), put them here:', "#"]
            lines += ["# [prefixes]", '# query = "query: "', '# document = "passage: "']
        else:
            lines += ["[prefixes]", *(f"{key} = {_value(value)}" for key, value in draft.prefixes.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        quoted = json.dumps(
            value, ensure_ascii=False
        )  # JSON's escapes are TOML's; a terminal obeys some more characters
        return re.sub(r"[\x7f-\x9f\u200e-\u202e\u2066-\u2069]", lambda found: f"\\u{ord(found[0]):04x}", quoted)
    if isinstance(value, list) and len(value) > 1:
        return "[\n" + "".join(f"  {_value(each)},\n" for each in value) + "]"
    if isinstance(value, list):
        return f"[{', '.join(_value(each) for each in value)}]"
    return str(value)
