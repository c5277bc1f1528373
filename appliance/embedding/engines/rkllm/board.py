"""Which chip this board has, and what the settings say of its NPU."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance.embedding.engines.rkllm.abi import Family
from appliance.embedding.spec import Platform

SOCS: Final[Mapping[str, Platform]] = {
    "rk3588": "rk3588",
    "rk3582": "rk3588",
    "rk3576": "rk3576",
    "rk3562": "rk3562",
    "rv1126b": "rv1126b",
}
"""What the device tree calls a chip, as a substring (rk3588s, rk3588-orangepi-5), and which models run on it.

RK3582 is assumed to run RK3588's models, as a cut-down RK3588S: rknn-llm does not list it, and it was not tried.
"""

DEVFREQ: Final[Mapping[str, Platform]] = {
    "fdab0000.npu": "rk3588",
    "27700000.npu": "rk3576",
    "ff300000.npu": "rk3562",
    "22000000.npu": "rv1126b",
}
"""The NPU's address under /sys/class/devfreq (rknn-llm's fix_freq scripts): tells the chip where a container hides the
device tree."""


LOAD: Final = 300.0
"""Seconds that a model may take to load: a gigabyte from a slow card, and more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Npu:
    """What the settings say of every model on the NPU.

    Attributes:
        library: path of librkllmrt.so; None to look for it.
        family: of the library's interface, where somebody knows better than what the file tells.
        simulated: whether the library may be one that only plays an NPU, and must be.
        platform: what this board's chip runs ("rk3588"); "" if it is not known, and any card may be tried.
        seconds: that a text may take; 0 for what is usual.
        load: seconds that loading a model may take.
        machine: what runs the workers, as `platform.machine` says it; None for this one.
        on_restart: told model and reason when a process has to be begun anew: `exit`, `failed`, `hang`, `load`,
            `memory`, or a signal's name.
    """

    library: Path | None = None
    family: Family | None = None
    simulated: bool = False
    platform: str = ""
    seconds: float = 0.0
    load: float = LOAD
    machine: str | None = None
    on_restart: Callable[[str, str], None] = lambda _model, _reason: None


def platform_of(compatible: Sequence[str], npus: Sequence[str]) -> Platform | None:
    """Which models run on a chip; None where it has no NPU for them.

    Args:
        compatible: what the device tree calls the board; none where it cannot be read.
        npus: names of what /sys/class/devfreq holds, looked at only then.
    """
    for name, platform in SOCS.items():
        if any(name in part.lower() for part in compatible):
            return platform
    known = [DEVFREQ[name] for name in npus if name in DEVFREQ]
    return known[0] if known and not compatible else None


def this_board(root: Path = Path("/")) -> Platform | None:
    """As `platform_of`, of the machine that this process runs on."""
    try:
        content = (root / "proc/device-tree/compatible").read_bytes()[:4096].decode(errors="replace")
    except OSError:
        content = ""
    try:
        npus = sorted(path.name for path in (root / "sys/class/devfreq").iterdir())
    except OSError:
        npus = []
    return platform_of([part for part in content.split("\0") if part], npus)
