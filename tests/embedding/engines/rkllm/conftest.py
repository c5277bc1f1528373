"""Simulated NPUs: one library per family, compiled once, and a model file for each test."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from appliance.embedding.engines.rkllm.abi import Family
from appliance.embedding.engines.rkllm.board import Npu
from appliance.embedding.engines.rkllm.engine import RkllmEngine, RkllmReranker, open_rkllm, open_rkllm_reranker
from appliance.embedding.engines.rkllm.simulated import (
    CONTEXT,
    EOS,
    NO,
    VOCABULARY,
    YES,
    build_library,
    write_model,
    write_tokenizer,
)
from appliance.embedding.spec import RkllmRerankerSpec, RkllmSpec
from appliance.settings import shipped


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The simulated runtime of a family, and of a release of it."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler to build the simulated runtime with")
    folder = tmp_path_factory.mktemp("npu")
    return lambda family, **more: build_library(shipped("native"), folder, family=family, **more)


@dataclass
class Simulated:
    """A simulated NPU with one model; `open` gives engines over it, closed with the test."""

    folder: Path
    library: Path
    family: Family
    opened: list[RkllmEngine | RkllmReranker] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)

    @property
    def model(self) -> Path:
        return self.folder / "model.rkllm"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"

    @property
    def paths(self) -> dict[str, Path]:
        return {"model.rkllm": self.model, "tokenizer.json": self.tokenizer}

    def card(self, **card: Any) -> dict[str, Any]:
        return {
            "name": "npu",
            "family": "qwen3",
            "engine": "rkllm",
            "platform": "rk3588",
            "own": ("model.rkllm", "tokenizer.json"),
            "model": "model.rkllm",
            "context": CONTEXT,
            "max_tokens": CONTEXT - 8,
            "eos": EOS,
            "vocabulary": VOCABULARY,
        } | card

    def spec(self, **card: Any) -> RkllmSpec:
        return RkllmSpec(**self.card(**{"dimensions": 1024, "min_dimensions": 32} | card))

    def write(self, **model: Any) -> None:
        """Write the model file anew."""
        write_model(self.model, **model)

    def faults(self, **faults: Any) -> None:
        """Have every run from now on go wrong like this; none at all without arguments."""
        text = "".join(f"{name} = {value}\n" for name, value in faults.items())
        self.model.with_name("model.rkllm.faults").write_text(text)

    def npu(self, **npu: Any) -> Npu:
        settings = Npu(library=self.library, simulated=True, on_restart=lambda _, reason: self.restarts.append(reason))
        return replace(settings, **npu)

    def said(self, engine: RkllmEngine) -> list[str]:
        """What the runtime said of itself; a thread reads it, so it may come a little later."""
        worker = engine._keeper._worker
        assert worker is not None
        deadline = time.monotonic() + 5
        while not any("Enabled cpus" in line for line in worker.lines) and time.monotonic() < deadline:
            time.sleep(0.005)
        return list(worker.lines)

    def open(self, *, npu: Npu | None = None, **card: Any) -> RkllmEngine:
        engine = open_rkllm(self.spec(**card), self.paths, npu=npu or self.npu())
        self.opened.append(engine)
        return engine

    def open_reranker(self, *, npu: Npu | None = None, **card: Any) -> RkllmReranker:
        texts = {
            "opening": "<|im_start|>system\nAnswer yes or no.<|im_end|>\n<|im_start|>user\n",
            "before": "<Instruct>: Find\n<Query>: ",
            "between": "\n<Document>: ",
            "closing": "<|im_end|>\n<|im_start|>assistant\n",
        }
        spec = RkllmRerankerSpec(**self.card(task="rerank", yes=YES, no=NO) | texts | card)
        engine = open_rkllm_reranker(spec, self.paths, npu=npu or self.npu())
        self.opened.append(engine)
        return engine


@pytest.fixture
def simulated(libraries: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Simulated]]:
    """Makes simulated NPUs, of family C unless another is wanted."""
    made: list[Simulated] = []

    def make(family: Family = "C", *, version: str = "", **model: Any) -> Simulated:
        folder = tmp_path / f"model{len(made)}"
        folder.mkdir()
        npu = Simulated(folder, libraries(family, version=version), family)
        npu.write(**model)
        write_tokenizer(npu.tokenizer)
        made.append(npu)
        return npu

    yield make
    for npu in made:
        for engine in npu.opened:
            engine.close()


@pytest.fixture
def npu(simulated: Callable[..., Simulated]) -> Simulated:
    """A simulated NPU of family C."""
    return simulated()
