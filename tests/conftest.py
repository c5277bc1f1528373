"""What tests of every room share: real servers on loopback, and the real model where it can be had."""

import importlib.util
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import onnx
import pytest
import tokenizers
import uvicorn
from fastapi import FastAPI
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from tokenizers import models, normalizers, pre_tokenizers, processors

from appliance import logs
from appliance.api.protocol import TolerantProtocol
from appliance.app import create_app
from appliance.database import Database
from appliance.embedding.pull import ModelFiles
from appliance.embedding.spec import read_card
from appliance.errors import ApplianceError
from appliance.settings import Settings, shipped

if TYPE_CHECKING:
    from tests.hub import HubServer

CARD = shipped("config") / "models" / "all-minilm-l6-v2.toml"

# Programs that a shell runs in the background ignore Ctrl-C, and so would those that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed database without content, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "appliance.db"
    database = Database(path)
    database.migrate(shipped("migrations"))
    database.close()
    return path


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    """An empty database of the present schema."""
    path = tmp_path / "appliance.db"
    shutil.copy(migrated, path)
    database = Database(path)
    yield database
    database.close()


@dataclass
class Live:
    """A server that answers on loopback."""

    url: str
    port: int
    app: FastAPI
    data: Path
    stop: Callable[[], None]


def serve(data: Path, **settings: Any) -> Live:
    """Start a server in a thread; returns once it is ready. The hash model is the default."""
    logs.configure(form="console", level="warning")
    app = create_app(Settings(data=data, model=settings.pop("model", "hash"), **settings))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            http=TolerantProtocol,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()

    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the server ended at its start"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    keyed = {"authorization": f"Bearer {settings['api_keys'][0]}"} if settings.get("api_keys") else {}
    while httpx.get(f"{url}/ready", headers=keyed).status_code != 200:
        assert time.monotonic() < deadline, httpx.get(f"{url}/ready").text
        time.sleep(0.02)
    return Live(url, port, app, data, stop)


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server for all tests that do not mind each other's documents."""
    server = serve(tmp_path_factory.mktemp("live"))
    yield server
    server.stop()


@pytest.fixture
def client(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=30) as session:
        yield session


@pytest.fixture(scope="session")
def live_chunking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server that makes small chunks, so that a short text has many."""
    server = serve(tmp_path_factory.mktemp("chunking"), chunk_tokens=64, chunk_overlap=8)
    yield server
    server.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """Starts servers with settings of their own; all end with the test."""
    servers: list[Live] = []

    def _start(**settings: Any) -> Live:
        servers.append(serve(settings.pop("data", tmp_path / f"data{len(servers)}"), **settings))
        return servers[-1]

    yield _start
    for server in servers:
        server.stop()


class RedisServer:
    """A Redis server of its own on loopback, which can be killed and begun again on its port, empty."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "no", *options]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self.process.poll() is None, "redis-server ended at its start"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running Redis server without content."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


def _module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"tests_{name}", Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def postgres_server_class() -> Callable[..., Any]:
    """Makes a server that is not started; see tests/postgres_server.py."""
    module = _module("postgres_server")
    return partial(module.PostgresServer, module.programs())


@pytest.fixture(scope="session")
def postgres_server(postgres_server_class: Callable[..., Any]) -> Iterator[Any]:
    """One server for all tests that do not end it."""
    server = postgres_server_class()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def server_process() -> Callable[..., Any]:
    """Begins an appliance in a process of its own; see tests/server_process.py."""
    begin: Callable[..., Any] = _module("server_process").ServerProcess
    return begin


@pytest.fixture
def started(server_process: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """The same, and waits until it is ready; all end with the test."""
    servers: list[Any] = []

    def begin(data: Path, environment: dict[str, str] | None = None) -> Any:
        servers.append(server_process(data, environment))
        servers[-1].wait_until_ready()
        return servers[-1]

    yield begin
    for each in servers:
        each.kill()


@pytest.fixture(scope="session")
def hub_module() -> Any:
    """`tests/hub.py`: tests are no package to import it from."""
    return _module("hub")


@pytest.fixture
def hub(hub_module: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator["HubServer"]:
    """A Hugging Face hub without repositories, with a CDN elsewhere."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN_PATH", "/nonexistent")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    server: HubServer = hub_module.HubServer()
    with server.running():
        yield server


RERANKER = """
name = "shared-words"
aliases = ["someone/Shared-Words"]
description = "Counts the words of the query that a passage has."
license = "mit"
task = "rerank"
engine = "onnx"
family = "words"
max_tokens = 64
own = ["model.onnx", "tokenizer.json"]
"""

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] a the in at of otters otter hold hands while they sleep sleeping whales whale sing song"
    " hours sea night who badgers dig captain white hunts young woman makes matches note without metadata"
)


def _words() -> tokenizers.Tokenizer:
    """One token a word; those not in the vocabulary are all the same one."""
    ids = {word: index for index, word in enumerate(WORDS.split())}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))  # noqa: S106  no password
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, ids[word]) for word in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _shared_words() -> onnx.ModelProto:
    """Logit: 2 for each word of the query that the passage has, less 3. Words that are not in the vocabulary do not
    count.
    """
    whole, real = TensorProto.INT64, TensorProto.FLOAT

    def constant(name: str, kind: int, values: list[float]) -> onnx.TensorProto:
        return helper.make_tensor(name, kind, [len(values)], values)

    nodes = [
        helper.make_node("Greater", ["input_ids", "specials"], ["is_word"]),
        helper.make_node("Cast", ["is_word"], ["words"], to=whole),
        helper.make_node("Mul", ["words", "token_type_ids"], ["said"]),
        helper.make_node("Sub", ["words", "said"], ["asked"]),
        helper.make_node("Unsqueeze", ["input_ids", "second"], ["rows"]),
        helper.make_node("Unsqueeze", ["input_ids", "first"], ["columns"]),
        helper.make_node("Equal", ["rows", "columns"], ["is_equal"]),
        helper.make_node("Cast", ["is_equal"], ["equal"], to=whole),
        helper.make_node("Unsqueeze", ["said", "first"], ["said_columns"]),
        helper.make_node("Mul", ["equal", "said_columns"], ["hits"]),
        helper.make_node("ReduceMax", ["hits"], ["hit"], axes=[2], keepdims=0),
        helper.make_node("Mul", ["hit", "asked"], ["shared"]),
        helper.make_node("ReduceSum", ["shared", "first"], ["count"], keepdims=1),
        helper.make_node("Cast", ["count"], ["real_count"], to=real),
        helper.make_node("Mul", ["real_count", "two"], ["doubled"]),
        helper.make_node("Sub", ["doubled", "three"], ["logits"]),
    ]
    constants = [constant("specials", whole, [3]), constant("first", whole, [1]), constant("second", whole, [2])]
    constants += [constant("two", real, [2.0]), constant("three", real, [3.0])]
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    graph = helper.make_graph(
        nodes,
        "shared-words",
        [helper.make_tensor_value_info(name, whole, ["pairs", "tokens"]) for name in inputs],
        [helper.make_tensor_value_info("logits", real, ["pairs", 1])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _bring_reranker(data: Path) -> None:
    folder = data / "models" / "shared-words"
    for each in (data / "cards", folder):
        each.mkdir(parents=True, exist_ok=True)
    (data / "cards" / "shared-words.toml").write_text(RERANKER)
    _words().save(str(folder / "tokenizer.json"))
    onnx.save(_shared_words(), folder / "model.onnx")


@pytest.fixture(scope="session")
def bring_reranker() -> Callable[[Path], None]:
    """Puts a reranker into a data directory, `shared-words`: it counts the words of the query that a passage has."""
    return _bring_reranker


@pytest.fixture(scope="session")
def live_reranking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server with a reranker, `shared-words`."""
    data = tmp_path_factory.mktemp("reranking")
    _bring_reranker(data)
    server = serve(data)
    yield server
    server.stop()


CLIP = """
name = "tiny-clip"
aliases = ["someone/Tiny-CLIP"]
description = "Sees and reads, and has learnt nothing."
license = "mit"
engine = "clip"
family = "clip"
dimensions = 24
max_tokens = 16
own = ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"]
"""

CLIP_CONFIG: dict[str, Any] = {
    "model_type": "clip",
    "projection_dim": 24,
    "text_config": {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 20,
        "eos_token_id": 63,
    },
    "vision_config": {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    },
}


def _clip_weights() -> dict[str, Any]:
    """Random weights of `CLIP_CONFIG`, as transformers name them."""
    random = np.random.default_rng(5)
    weights: dict[str, Any] = {}

    def put(name: str, *shape: int, around: float = 0.0, spread: float = 0.3) -> None:
        weights[name] = (around + spread * random.standard_normal(shape)).astype(np.float32)

    def norm(name: str, size: int) -> None:
        put(f"{name}.weight", size, around=1.0)
        put(f"{name}.bias", size)

    def tower(at: str, config: dict[str, int]) -> None:
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        for layer in range(config["num_hidden_layers"]):
            here = f"{at}.encoder.layers.{layer}"
            shapes = {f"self_attn.{part}_proj": (hidden, hidden) for part in ("q", "k", "v", "out")}
            for name, shape in {**shapes, "mlp.fc1": (inner, hidden), "mlp.fc2": (hidden, inner)}.items():
                put(f"{here}.{name}.weight", *shape)
                put(f"{here}.{name}.bias", shape[0])
            norm(f"{here}.layer_norm1", hidden)
            norm(f"{here}.layer_norm2", hidden)

    text, vision, common = CLIP_CONFIG["text_config"], CLIP_CONFIG["vision_config"], CLIP_CONFIG["projection_dim"]
    put("text_model.embeddings.token_embedding.weight", text["vocab_size"], text["hidden_size"], spread=1)
    put("text_model.embeddings.position_embedding.weight", text["max_position_embeddings"], text["hidden_size"])
    tower("text_model", text)
    norm("text_model.final_layer_norm", text["hidden_size"])
    put("text_projection.weight", common, text["hidden_size"])
    patch, hidden = vision["patch_size"], vision["hidden_size"]
    put("vision_model.embeddings.class_embedding", hidden)
    put("vision_model.embeddings.patch_embedding.weight", hidden, 3, patch, patch)
    put("vision_model.embeddings.position_embedding.weight", (vision["image_size"] // patch) ** 2 + 1, hidden)
    norm("vision_model.pre_layrnorm", hidden)
    tower("vision_model", vision)
    norm("vision_model.post_layernorm", hidden)
    put("visual_projection.weight", common, hidden)
    weights["logit_scale"] = np.array(2.6, np.float32)
    return weights


def _bring_clip(data: Path) -> None:
    folder = data / "models" / "tiny-clip"
    for each in (data / "cards", folder):
        each.mkdir(parents=True, exist_ok=True)
    (data / "cards" / "tiny-clip.toml").write_text(CLIP)
    (folder / "config.json").write_text(json.dumps(CLIP_CONFIG))
    save_file(_clip_weights(), folder / "model.safetensors")
    processor: dict[str, Any] = {
        "size": 32,
        "crop_size": 32,
        "resample": 3,
        "do_center_crop": True,
        "do_normalize": True,
    }
    processor |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    words = "<|startoftext|> [UNK] a photo of red green blue cat dog otter the in at"
    ids = {word: index for index, word in enumerate(words.split())} | {"<|endoftext|>": 63}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))  # noqa: S106  no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 63)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def serving() -> Callable[..., Live]:
    """`serve`: a server for longer than a test, which whoever starts it stops."""
    return serve


SMALL = """
name = "small"
description = "Counts words, in fewer places."
license = "apache-2.0"
engine = "hash"
family = "hash"
space = "small"
dimensions = 32
max_tokens = 32
"""


@pytest.fixture(scope="session")
def bring_small() -> Callable[[Path], None]:
    """Puts a model into a data directory, `small`: as `hash`, of 32 dimensions and a space of its own."""

    def bring(data: Path) -> None:
        (data / "cards").mkdir(parents=True)
        (data / "cards" / "small.toml").write_text(SMALL)

    return bring


@pytest.fixture(scope="session")
def bring_clip() -> Callable[[Path], None]:
    """Puts a model for texts and images into a data directory, `tiny-clip`: random weights, 24 dimensions."""
    return _bring_clip


@pytest.fixture(scope="session")
def model_folder(request: pytest.FixtureRequest) -> Path:
    """Where the default model was pulled to; kept in pytest's cache between runs."""
    assert request.config.cache is not None
    folder: Path = request.config.cache.mkdir("models")
    try:
        ModelFiles(folder).pull(read_card(CARD), lambda _: None)
    except ApplianceError as error:
        pytest.skip(f"the default model cannot be had: {error}")
    return folder


@pytest.fixture(scope="session")
def minilm(model_folder: Path) -> dict[str, Path]:
    """The default model's files by name."""
    return ModelFiles(model_folder).paths(read_card(CARD))


@pytest.fixture(scope="session")
def live_minilm(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server with the default model."""
    data = tmp_path_factory.mktemp("minilm")
    (data / "models").symlink_to(model_folder)
    server = serve(data, model="all-minilm-l6-v2")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def documents() -> Any:
    """`tests/documents.py`: documents of every format."""
    return _module("documents")


@pytest.fixture(scope="session")
def mixed() -> Any:
    """`tests/mixed.py`: a folder of files of every format."""
    return _module("mixed")


@pytest.fixture(scope="session")
def hostile() -> Any:
    """`tests/hostile.py`: files that nobody can read."""
    return _module("hostile")
