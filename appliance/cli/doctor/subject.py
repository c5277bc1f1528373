"""What `doctor` looks at, and what it says of it."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, TypeAlias

from appliance.cli.machine import Machine
from appliance.embedding.engines.rkllm.board import platform_of
from appliance.embedding.engines.rkllm.library import Library, candidates, identify
from appliance.embedding.pull import ModelFiles
from appliance.embedding.spec import Card, Platform, RkllmRerankerSpec, RkllmSpec, read_cards
from appliance.errors import EngineUnavailable
from appliance.settings import Settings, shipped

Status: TypeAlias = Literal["ok", "warn", "fail"]


SHOWN: Final = 2000
"""Characters of what was found."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `fix` is what to do, "" where there is nothing to do."""

    name: str
    status: Status
    found: str
    fix: str = ""


class Subject:
    """What several checks ask for, looked up once."""

    def __init__(self, machine: Machine, settings: Settings) -> None:
        self.machine = machine
        self.settings = settings

    @property
    def trouble(self) -> Status:
        """How grave it is that the NPU cannot be used."""
        return "fail" if self.settings.engine == "npu" else "warn"

    @cached_property
    def compatible(self) -> list[str]:
        """What the device tree calls this board, the most exact first."""
        return [
            part
            for part in self.machine.text("/proc/device-tree/compatible").split("\0")
            if part and part.isprintable()
        ]

    @cached_property
    def platform(self) -> Platform | None:
        """Which models run on this chip; None where it has no NPU for them."""
        npus = [path.rpartition("/")[2] for path in self.machine.listed("/sys/class/devfreq/*.npu")]
        return platform_of(self.compatible, npus)

    @cached_property
    def container(self) -> str:
        """What kind of container this is; "" outside."""
        machine = self.machine
        for path, kind in (("/.dockerenv", "Docker"), ("/run/.containerenv", "Podman")):
            if machine.exists(path):
                return kind
        if "KUBERNETES_SERVICE_HOST" in machine.environment:
            return "Kubernetes"
        groups = machine.text("/proc/1/cgroup") + machine.text("/run/systemd/container")
        kinds = {
            "kubepods": "Kubernetes",
            "docker": "Docker",
            "libpod": "Podman",
            "lxc": "lxc",
            "containerd": "containerd",
        }
        return next((kind for word, kind in kinds.items() if word in groups), "")

    @cached_property
    def nodes(self) -> list[str]:
        """The NPU's device nodes that are here: a DRM render node, or /dev/rknpu of a driver built that way."""
        renders = self.machine.listed("/dev/dri/renderD*")
        told = {path: self.bound(f"/sys/class/drm/{path.rpartition('/')[2]}") for path in renders}
        own = [path for path in renders if "rknpu" in told[path]]
        if not own:
            own = [path for path in renders if not told[path]]  # no /sys: any of them may be it
        return own + self.machine.listed("/dev/rknpu")

    def bound(self, device: str) -> str:
        """Name of the driver behind a device's folder in /sys, in lower case; "" where it is not told."""
        told = re.search(r"^DRIVER=(\S+)", self.machine.text(f"{device}/device/uevent"), re.MULTILINE)
        return told[1].lower() if told else ""

    @cached_property
    def driver(self) -> Literal["rknpu", "rocket", ""]:
        """Whose driver runs the NPU: the vendor's, the one of mainline Linux, or none's."""
        machine = self.machine
        signs = ("/sys/bus/platform/drivers/RKNPU", "/sys/module/rknpu", "/dev/rknpu", "/proc/rknpu")
        if (
            any(map(machine.exists, signs))
            or machine.listed("/sys/class/devfreq/*.npu")
            or any("rknpu" in self.bound(path) for path in machine.listed("/sys/class/drm/renderD*"))
        ):
            return "rknpu"
        rocket = machine.exists("/sys/bus/platform/drivers/rocket") or any(
            self.bound(path) == "rocket" for path in machine.listed("/sys/class/accel/accel*")
        )
        return "rocket" if rocket else ""

    @cached_property
    def cards(self) -> list[Card]:
        """Every model there is."""
        return read_cards(shipped("config") / "models", self.settings.cards)

    @cached_property
    def files(self) -> ModelFiles:
        """Where models are."""
        return ModelFiles(self.settings.models, offline=True)

    @cached_property
    def on_npu(self) -> list[RkllmSpec | RkllmRerankerSpec]:
        """Cards of models for the NPU of which at least one file is here."""
        cards = [card for card in self.cards if isinstance(card, RkllmSpec | RkllmRerankerSpec)]
        return [card for card in cards if any(path.is_file() for path in self.places(card).values())]

    def places(self, card: RkllmSpec | RkllmRerankerSpec) -> dict[str, Path]:
        """Where a card's files are or would be, by name."""
        return self.files.places(card)

    @cached_property
    def libraries(self) -> list[tuple[Path, Library | str]]:
        """Every librkllmrt.so there is, in the order they are tried: what it is, or why it cannot be used."""
        folders: list[Path | None] = [*(self.files.folder(card) for card in self.on_npu)]
        found = {}
        for folder in folders or [None]:
            for path in candidates(
                setting=self.settings.npu_library,
                model_folder=folder,
                environment=self.machine.environment,
                root=self.machine.root,
            ):
                found[path] = self._library(path)
        return list(found.items())

    def _library(self, path: Path) -> Library | str:
        abi = self.settings.npu_abi
        try:
            library = identify(path, family=None if abi == "auto" else abi, machine=self.machine.machine)
        except EngineUnavailable as error:
            return error.message
        return "it plays an NPU, which is for --simulate-npu" if library.simulated else library


def tripped(name: str, error: Exception) -> Check:
    """What to say of a check that met something it did not know."""
    return printable(
        Check(name, "warn", f"this check failed: {type(error).__name__}: {error}", "please report it as a bug")
    )


def printable(check: Check) -> Check:
    """The check without what a terminal or JSON does not take, and not without end: a file may say anything."""

    def plain(text: str) -> str:
        short = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
        return "".join(letter if letter.isprintable() else "?" for letter in short)

    return Check(check.name, check.status, plain(check.found), plain(check.fix))


def megahertz(hertz: int) -> str:
    """A frequency, for a person."""
    return f"{hertz / 1e6:.0f} MHz" if hertz else "? MHz"
