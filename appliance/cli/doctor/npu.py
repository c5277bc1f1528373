"""What `doctor` finds of board, NPU, driver and runtime."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from appliance.cli.doctor.subject import Check, Subject, megahertz, tripped
from appliance.embedding.engines.rkllm.library import NAME

OTHER_NPUS: Final = {
    "rk3566": "its NPU is for rknn models, RKLLM is not made for it",
    "rk3568": "its NPU is for rknn models, RKLLM is not made for it",
    "rk3399pro": "its NPU is of another generation",
    "rk1808": "its NPU is of another generation",
    "rv1106": "its NPU is for rknn models, RKLLM is not made for it",
    "rv1103": "its NPU is for rknn models, RKLLM is not made for it",
}

DRIVER_FLOOR: Final = (0, 9, 8)
"""What rknn-llm's manual asks for; with 0.9.6 and older, runs were seen to fail (its issue 315)."""

LIBRARY_FOLDERS: Final = (
    "/lib",
    "/usr/lib",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
)


def board(subject: Subject) -> Iterator[Check]:
    """Which chip this is, and what runs on it."""
    machine, settings = subject.machine, subject.settings
    model = machine.text("/proc/device-tree/model") or machine.text("/sys/class/dmi/id/product_name") or "unknown board"
    kernel = re.match(r"Linux version (\S+)", machine.text("/proc/version"))
    names = f" ({', '.join(subject.compatible)})" if subject.compatible else ""
    about = f"{model}{names}, {machine.machine}, Linux {kernel[1] if kernel else 'unknown'}"
    if subject.platform:
        whence = "" if subject.compatible else ", by the address of its NPU: the device tree cannot be read"
        yield Check("board", "ok", f"{about}; runs models for {subject.platform}{whence}")
        return
    other = next(
        (f"{name}: {why}" for name, why in OTHER_NPUS.items() if any(name in part for part in subject.compatible)), ""
    )
    told = other or "no Rockchip NPU here"
    if settings.engine != "npu":
        yield Check("board", "ok", f"{about}; {told}: the CPU engine is used")
    elif settings.simulate_npu:
        yield Check("board", "ok", f"{about}; {told}, one is played")
    else:
        fix = 'set engine to "auto" or "cpu"; RKLLM runs on RK3588, RK3576, RK3562 and RV1126B'
        if subject.container and not subject.compatible and machine.machine != "x86_64":
            fix = (
                f"on a Rockchip board, {_passing(subject)}, and --security-opt systempaths=unconfined; elsewhere {fix}"
            )
        yield Check("board", "fail", f'{about}; {told}, and engine is "npu"', fix)


def _npu_driver(subject: Subject) -> Iterator[Check]:
    if subject.driver == "rocket":
        yield Check(
            "npu-driver",
            subject.trouble,
            f"rocket, the NPU driver of mainline Linux, which {NAME} cannot use",
            "boot the vendor's kernel (5.10 or 6.1 with rknpu 0.9.8: Armbian's vendor branch, Radxa OS, Orange Pi's"
            ' images); or set engine to "cpu"',
        )
        return
    if not subject.driver:
        fix = (
            f"{_passing(subject)}, on a host whose kernel has the rknpu driver"
            if subject.container
            else "boot the vendor's kernel with the rknpu driver, and enable the NPU in the device tree (status okay)"
        )
        yield Check("npu-driver", subject.trouble, "no driver for the NPU is loaded", fix)
        return
    version, whence = _driver_version(subject)
    parts = tuple(int(part) for part in version.split(".")) if version else ()
    if not version:
        yield Check(
            "npu-driver",
            "ok",
            f"rknpu; its version cannot be read here ({whence})",
            "sudo cat /sys/kernel/debug/rknpu/version",
        )
    elif parts < DRIVER_FLOOR:
        floor = ".".join(map(str, DRIVER_FLOOR))
        yield Check(
            "npu-driver",
            "warn",
            f"rknpu {version} ({whence}), older than {floor}",
            f"update the kernel (`sudo apt update && sudo apt full-upgrade`), or take an image with rknpu {floor}",
        )
    else:
        yield Check("npu-driver", "ok", f"rknpu {version} ({whence})")


def _driver_version(subject: Subject) -> tuple[str, str]:
    """The vendor driver's version and where it stands; "" and why, where it stands nowhere that this user may read."""
    machine, reasons = subject.machine, []
    for path in ("/sys/kernel/debug/rknpu/version", "/proc/rknpu/version", "/sys/module/rknpu/version"):
        text, reason = machine.read(path)
        if found := re.search(r"\b\d{1,3}\.\d{1,3}\.\d{1,3}\b", text.replace("v", " ")):
            return found[0], path
        reasons += [f"{path}: {reason}"] if reason and "no such file" not in reason else []
    for node in subject.nodes:
        if re.fullmatch(r"\d+\.\d+\.\d+", version := machine.driver(machine.real(node))):
            return version, node
    for path in ("/var/log/dmesg", "/var/log/kern.log"):
        if logged := re.search(r"Initialized rknpu (\d{1,3}\.\d{1,3}\.\d{1,3})", machine.text(path)):
            return logged[1], path
    return "", "; ".join(reasons) or "the kernel tells it nowhere"


def _npu_device(subject: Subject) -> Iterator[Check]:
    machine, nodes = subject.machine, subject.nodes
    if subject.driver == "rocket":
        return
    if not nodes:
        fix = (
            _passing(subject)
            if subject.container
            else "boot the vendor's kernel with the rknpu driver; `ls -l /dev/dri /dev/rknpu` then shows its node"
        )
        yield Check("npu-device", subject.trouble, "neither /dev/dri/renderD* nor /dev/rknpu is here", fix)
        return
    needed = nodes + (machine.listed("/dev/dma_heap/*") if nodes == ["/dev/rknpu"] else [])
    access = {path: machine.access(machine.real(path)) for path in needed}
    closed = [path for path in needed if not access[path].usable]
    told = ", ".join(f"{path} (group {access[path].group or '?'})" for path in needed)
    if not closed:
        yield Check("npu-device", "ok", told)
        return
    groups = sorted({access[path].group for path in closed} - {"root", ""})
    if subject.container:
        fix = _passing(subject, group=f"$(stat -c %g {closed[0]})")
    elif groups:
        fix = f"sudo usermod -aG {','.join(sorted({*groups, 'render', 'video'}))} $USER, then log in anew"
    else:
        names = "|".join(sorted({path.rpartition("/")[2] for path in closed}))
        fix = (
            f"""echo 'KERNEL=="{names}", GROUP="render", MODE="0660"' | sudo tee /etc/udev/rules.d/99-npu.rules;"""
            " sudo udevadm control --reload; sudo udevadm trigger; sudo usermod -aG render,video $USER, then log in"
            " anew"
        )
    yield Check("npu-device", subject.trouble, f"{told}: this user may not use {', '.join(closed)}", fix)


def _passing(subject: Subject, *, group: str = "") -> str:
    """How to start a container that has the NPU, for a sentence; `group` is a shell's word for its group's number."""
    if subject.container == "Kubernetes":
        return "start the pod with /dev/dri from a device plugin, or as a hostPath volume in a privileged container"
    if subject.container == "lxc":
        return (
            "add `lxc.cgroup2.devices.allow = c 226:* rwm` and `lxc.mount.entry = /dev/dri dev/dri none"
            " bind,optional,create=dir` to the container's configuration"
        )
    return "start the container with --device /dev/dri --device /dev/dma_heap" + (
        f" --group-add {group}" if group else ""
    )


def container(subject: Subject) -> Iterator[Check]:
    """Whether this is a container, and what it has to be given."""
    kind = subject.container
    if not kind:
        return
    if subject.platform is None or subject.settings.engine == "cpu":
        yield Check("container", "ok", f"this is a {kind} container")
    elif subject.nodes:
        yield Check("container", "ok", f"this is a {kind} container, with the NPU's device in it")
    else:
        yield Check(
            "container",
            subject.trouble,
            f"this is a {kind} container without the NPU's device",
            _passing(subject, group="$(getent group render | cut -d: -f3)"),
        )


def _npu_library(subject: Subject) -> Iterator[Check]:
    lines, chosen = [], None
    for path, library in subject.libraries:
        if isinstance(library, str):
            lines.append(f"{path}: refused, {library}")
            continue
        mark = "" if chosen else ", the one that is used"
        chosen = chosen or library
        lines.append(
            f"{path}: {library.version or 'unknown version'}, family {library.family}"
            f" ({', '.join(library.evidence)}){mark}"
        )
    if chosen is None:
        found = "; ".join(lines) or f"no {NAME} was found"
        yield Check("npu-library", subject.trouble, found, _install(subject))
    elif chosen.warning:
        yield Check("npu-library", "warn", "; ".join([*lines, chosen.warning]), "use 1.2.3 or 1.3.0 where you can")
    else:
        yield Check("npu-library", "ok", "; ".join(lines))
    if subject.platform is None:
        return
    packages = {"libgomp.so.1": "libgomp1", "libstdc++.so.6": "libstdc++6"}
    missing = [name for name in packages if not any(subject.machine.exists(f"{at}/{name}") for at in LIBRARY_FOLDERS)]
    if missing:
        fix = f"sudo apt install {' '.join(packages[name] for name in missing)}"
        yield Check("npu-library-needs", subject.trouble, f"{NAME} needs {' and '.join(missing)}", fix)


def _install(subject: Subject) -> str:
    if subject.settings.npu_library is not None:
        return f"put the file where the setting npu_library says ({subject.settings.npu_library}), or take that away"
    kind = "aarch64" if subject.machine.machine in {"aarch64", "arm64"} else "armhf"
    return (
        f"take {NAME} 1.2.3 or 1.3.0 from github.com/airockchip/rknn-llm, rkllm-runtime/Linux/librkllm_api/{kind}, and"
        f" `sudo install -m 644 {NAME} /usr/lib/`; or name it in the setting npu_library"
    )


def _npu_frequency(subject: Subject) -> Iterator[Check]:
    machine = subject.machine
    folders = machine.listed("/sys/class/devfreq/*.npu")
    if not folders:
        yield Check("npu-frequency", "ok", "the kernel does not tell it")
        return
    folder = folders[0]
    governor = machine.text(f"{folder}/governor") or "unknown governor"
    now, limit = machine.number(f"{folder}/cur_freq"), machine.number(f"{folder}/max_freq")
    steps = re.findall(r"\b\d{1,15}\b", machine.text(f"{folder}/available_frequencies"), re.ASCII)
    top = max(map(int, steps), default=limit)
    about = f"{governor}, {megahertz(now)} of {megahertz(top)}"
    if governor == "powersave" or 0 < limit < top or (governor == "userspace" and now < top):
        about += f", held at {megahertz(limit)} at most" if 0 < limit < top else ""
        fix = f"echo {top} | sudo tee {folder}/max_freq; echo performance | sudo tee {folder}/governor"
        yield Check("npu-frequency", "warn", about, fix)
    else:
        yield Check("npu-frequency", "ok", about)


def _no_npu(subject: Subject) -> Iterator[Check]:
    if subject.platform:
        yield Check("npu", "ok", 'the NPU is not looked at: engine is "cpu"')
    elif subject.libraries or subject.settings.npu_library:
        yield from _npu_library(subject)


def checks(subject: Subject) -> Iterator[Check]:
    """Everything about the NPU that is not about a model."""
    if subject.platform is None or subject.settings.engine == "cpu":
        yield from _no_npu(subject)
        return
    for name, look in _NPU_CHECKS.items():
        try:
            yield from look(subject)
        except Exception as error:  # noqa: BLE001  # as in `examine`
            yield tripped(name, error)


_NPU_CHECKS: Final[Mapping[str, Callable[[Subject], Iterator[Check]]]] = {
    "npu-driver": _npu_driver,
    "npu-device": _npu_device,
    "npu-library": _npu_library,
    "npu-frequency": _npu_frequency,
}
