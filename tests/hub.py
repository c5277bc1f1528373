"""A Hugging Face hub on loopback, as far as pulling goes: revisions, trees in pages, files here and at a CDN elsewhere.

A real server with faults that a test chooses; `conftest` gives it as the fixture `hub`.
"""

import hashlib
import importlib.util
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from safetensors.numpy import save

PAGE = 3
"""Files on a page of a tree."""


def blob(content: bytes) -> str:
    """The hash that git knows a file by."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def entry(path: str, content: bytes, *, large: bool) -> dict[str, Any]:
    """A file's line in a tree."""
    told = {"type": "file", "path": path, "size": len(content), "oid": blob(content)}
    if not large:
        return told
    pointer = b"version https://git-lfs.github.com/spec/v1\n" + path.encode()
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": len(pointer)}
    return told | {"oid": blob(pointer), "lfs": lfs}


@dataclass
class Repository:
    """What one repository holds, at its only commit, and what is wrong with it.

    Attributes:
        files: by path.
        about: merged into what the hub tells of the commit.
        gate: the token without which nothing is told.
        listed: what it holds is told to everybody; its files are not, where there is a gate.
        faults: by path: another body, "cut" (half of it comes), "stuck" (half of it, then silence), or a status.
        entries: of the tree, in place of what `files` would give.
        next: where the link of every page leads, in place of the next page.
        raw: what the API answers, whatever is asked.
    """

    files: dict[str, bytes]
    commit: str
    about: dict[str, Any] = field(default_factory=dict)
    gate: str = ""
    listed: bool = False
    faults: dict[str, Any] = field(default_factory=dict)
    entries: list[dict[str, Any]] | None = None
    next: str = ""
    raw: bytes = b""

    @property
    def tree(self) -> list[dict[str, Any]]:
        if self.entries is not None:
            return self.entries
        folders = {str(parent) for path in self.files for parent in Path(path).parents} - {"."}
        told = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        return told + [entry(path, body, large=_is_large(path)) for path, body in sorted(self.files.items())]


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".onnx", ".bin", "tokenizer.json"))


class HubServer:
    """The hub, and its CDN, which has another port and host.

    Attributes:
        url: what HF_ENDPOINT is to be.
        repositories: by name.
        asked: every path that the hub was asked for.
        tokens: the `Authorization` header of each of them.
        cdn_tokens: of each request that the CDN got.
    """

    def __init__(self) -> None:
        self._hub = _server(_Hub, self)
        self._cdn = _server(_Cdn, self)
        self.url = f"http://127.0.0.1:{self._hub.server_port}"
        self.cdn_url = f"http://localhost:{self._cdn.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        self.tokens: list[str | None] = []
        self.cdn_tokens: list[str | None] = []
        self.over = threading.Event()

    def put(self, name: str, files: Mapping[str, bytes], **about: Any) -> Repository:
        """Have a repository; put again, it has another commit, and the old one is gone."""
        commit = hashlib.sha1(json.dumps({path: blob(body) for path, body in files.items()}).encode()).hexdigest()  # noqa: S324  git's
        self.repositories[name] = Repository(dict(files), commit, about=about)
        return self.repositories[name]

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in (self._hub, self._cdn)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for server, thread in zip((self._hub, self._cdn), threads, strict=True):
                server.shutdown()
                thread.join()
                server.server_close()


def _server(kind: "type[_Answers]", owner: HubServer) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type(kind.__name__, (kind,), {"owner": owner}))
    server.daemon_threads = True
    return server


class _Answers(BaseHTTPRequestHandler):
    owner: HubServer

    def send(self, body: bytes, *, status: int = 200, length: int | None = None, **headers: str | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def send_file(self, repository: Repository, path: str) -> None:
        body = repository.files[path]
        match repository.faults.get(path):
            case bytes() as other:
                self.send(other)
            case int() as status:
                self.send(b"", status=status)
            case "cut" | "stuck" as fault:
                self.send(body[: len(body) // 2], length=len(body))
                if fault == "stuck":
                    self.owner.over.wait(20)
                self.close_connection = True
            case _:
                self.send(body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=repository.commit)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


class _Hub(_Answers):
    def do_GET(self) -> None:
        owner = self.owner
        owner.asked.append(self.path)
        owner.tokens.append(self.headers["Authorization"])
        address = urlsplit(self.path)
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        api = parts[:2] == ["api", "models"]
        if api:
            parts = parts[2:]
        name, (what, revision, *rest) = "/".join(parts[:2]), parts[2:]
        repository = owner.repositories.get(name)
        if repository is None:
            self.send(b"{}", status=401, X_Error_Code="RepoNotFound")
        elif (
            repository.gate
            and not (api and repository.listed)
            and self.headers["Authorization"] != f"Bearer {repository.gate}"
        ):
            self.send(b"{}", status=401 if self.headers["Authorization"] is None else 403, X_Error_Code="GatedRepo")
        elif revision not in {"main", "v1.0", "refs/pr/1", repository.commit}:
            self.send(b"{}", status=404, X_Error_Code="RevisionNotFound")
        elif api and repository.raw:
            self.send(repository.raw)
        elif api and what == "revision":
            self.send(json.dumps({"id": name, "sha": repository.commit, "tags": []} | repository.about).encode())
        elif api and what == "tree":
            self._send_tree(repository, "/".join(rest), parse_qs(address.query))
        else:
            self._send_resolved(repository, name, "/".join(rest))

    def _send_tree(self, repository: Repository, folder: str, query: dict[str, list[str]]) -> None:
        entries = [each for each in repository.tree if str(each["path"]).startswith(f"{folder}/" if folder else "")]
        page = int(query.get("cursor", ["0"])[0])
        most = PAGE if len(entries) < 1000 else 1000
        link: str | None = None
        if repository.next or len(entries) > (page + 1) * most:
            base = repository.next or f"http://hub.invalid{urlsplit(self.path).path}"
            link = f'<{base}?recursive=true&cursor={page + 1}>; rel="next"'
        self.send(json.dumps(entries[page * most : (page + 1) * most]).encode(), Link=link)

    def _send_resolved(self, repository: Repository, name: str, path: str) -> None:
        if path not in repository.files:
            self.send(b"", status=404, X_Error_Code="EntryNotFound")
        elif _is_large(path):
            digest = hashlib.sha256(repository.files[path]).hexdigest()
            self.send(
                b"",
                status=302,
                Location=f"{self.owner.cdn_url}/{name}/{path}?signature=1",
                X_Linked_ETag=f'"{digest}"',
                X_Linked_Size=str(len(repository.files[path])),
            )
        else:
            self.send_file(repository, path)


class _Cdn(_Answers):
    def do_GET(self) -> None:
        self.owner.cdn_tokens.append(self.headers["Authorization"])
        first, second, *rest = urlsplit(self.path).path.strip("/").split("/")
        self.send_file(self.owner.repositories[f"{first}/{second}"], "/".join(rest))


# --- what repositories hold ---


@cache
def _tiny() -> Any:
    """The module that makes up small models."""
    path = Path(__file__).parent / "embedding" / "engines" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tiny_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_json(content: object) -> bytes:
    return json.dumps(content).encode()


def sentence_transformer(**config: Any) -> dict[str, bytes]:
    """A small BERT as sentence-transformers save it, with random weights; it knows letters."""
    tiny = _tiny()
    merged = tiny.CONFIG | {"architectures": ["BertModel"]} | config
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": "" if not number else f"{number}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    return {
        "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
        "modules.json": as_json(modules),
        "1_Pooling/config.json": as_json(
            {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
        ),
        "sentence_bert_config.json": as_json({"max_seq_length": 24, "do_lower_case": False}),
        "config_sentence_transformers.json": as_json({"prompts": {}, "default_prompt_name": None}),
        "tokenizer_config.json": as_json({"model_max_length": 512, "do_lower_case": True}),
        "config.json": as_json(merged),
        "tokenizer.json": tiny.letter_tokenizer().to_str().encode(),
        "model.safetensors": save(tiny.random_weights(tiny.CONFIG)),
        "onnx/model_quantized.onnx": b"not asked for",
    }


def cross_encoder(*, labels: int = 1) -> dict[str, bytes]:
    """A small BERT that scores a pair of texts, as transformers save it."""
    tiny = _tiny()
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model = tiny.Tiny(Path(folder))
        model.make_reranker(labels=labels, architectures=["BertForSequenceClassification"])
        tiny.letter_tokenizer().save(f"{folder}/tokenizer.json")
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
