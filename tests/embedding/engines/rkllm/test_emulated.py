"""The worker on the processor that boards have: an emulated 64-bit ARM Python over a library built for it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.embedding.engines.rkllm.abi import FAMILIES, Family
from appliance.embedding.engines.rkllm.engine import RkllmEngine, open_rkllm
from appliance.errors import EngineFailed, EngineUnavailable

PYTHON = Path(__file__).parents[4] / ".arm64" / "python"
COMPILER = "aarch64-linux-gnu-gcc"

needs_emulation = pytest.mark.skipif(
    not PYTHON.exists() or shutil.which(COMPILER) is None, reason=".ci/emulation has not made a 64-bit ARM Python here"
)
TEXTS = ["The quick brown fox", "How do I grow tomatoes in pots?", "Größe, 東京", "word " * 200]


@pytest.fixture
def emulated(simulated: Callable[..., Any], libraries: Callable[..., Path]) -> Iterator[Callable[..., Any]]:
    engines: list[RkllmEngine] = []

    def start(family: Family) -> tuple[Any, RkllmEngine]:
        npu = simulated(family)
        settings = npu.npu(library=libraries(family, compiler=COMPILER), machine="aarch64", seconds=10)
        engines.append(open_rkllm(npu.spec(), npu.paths, npu=settings, interpreter=(str(PYTHON),)))
        return npu, engines[-1]

    yield start
    for engine in engines:
        engine.close()


@needs_emulation
@pytest.mark.parametrize("family", FAMILIES)
def test_64_bit_arm_gives_the_same_vectors(family: Family, emulated: Callable[..., Any]) -> None:
    npu, engine = emulated(family)
    here = npu.open()

    for prompt in engine.prepare(TEXTS, truncate=True):
        assert np.array_equal(engine.run([prompt]), here.run([prompt]))


@needs_emulation
def test_a_crash_on_64_bit_arm_is_recovered_from(emulated: Callable[..., Any]) -> None:
    npu, engine = emulated("D")
    prompts = engine.prepare(["hello", "a drop of poison"], truncate=True)
    wanted = engine.run([prompts[0]])
    npu.faults(crash_on="poison")

    with pytest.raises(EngineFailed, match="SIGSEGV"):
        engine.run([prompts[1]])

    assert np.array_equal(engine.run([prompts[0]]), wanted)


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")
def test_a_library_for_another_processor_is_refused_either_way(npu: Any, libraries: Callable[..., Path]) -> None:
    arm = npu.npu(library=libraries("C", compiler=COMPILER), machine="x86_64")
    intel = npu.npu(library=libraries("C"), machine="aarch64")

    with pytest.raises(EngineUnavailable, match="is for 64-bit ARM, this Python is for x86-64"):
        npu.open(npu=arm)
    with pytest.raises(EngineUnavailable, match="is for x86-64, this Python is for 64-bit ARM"):
        npu.open(npu=intel)
