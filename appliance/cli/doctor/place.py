"""What `doctor` finds of processor, memory, SQLite, disk and clock."""

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from appliance.cli.doctor.subject import Check, Subject, megahertz
from appliance.cli.machine import Machine
from appliance.embedding.engines.rkllm.library import NAME
from appliance.errors import ApplianceError

OPEN_FILES: Final = 102400
"""What Rockchip's own servers raise the limit to."""

SERVER: Final = 250 * 10**6
"""Bytes the server takes without a model."""

CPU_MODEL: Final = 350 * 10**6
"""Bytes the default model takes on the CPU."""

NPU_MODEL: Final = 800 * 10**6
"""Bytes Qwen3 0.6B w8a8 takes on the NPU (791 MB in rknn-llm's benchmark)."""

LEAST_FREE, LITTLE_FREE = 100 * 10**6, 10**9
"""Bytes of disk under which nothing can be written, and soon will not be."""

RELEASED: Final = datetime(2026, 11, 1, tzinfo=UTC)
"""A clock before this is wrong: the appliance is younger."""

UNTIL: Final = 2100
"""A clock from this year on is wrong."""

FILE_SYSTEMS: Final = {
    **dict.fromkeys(("vfat", "msdos", "exfat"), "it has no journal: a power cut can damage the database"),
    **dict.fromkeys(
        ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "glusterfs"),
        "SQLite's log does not work over a network: the database can be damaged",
    ),
    **dict.fromkeys(("tmpfs", "ramfs"), "it is memory: everything is lost at the next start"),
    **dict.fromkeys(("overlay", "aufs"), "it is a container's own layer: everything is lost with the container"),
}
"""Why the data directory should not lie there. https://sqlite.org/wal.html, https://sqlite.org/howtocorrupt.html"""


def cpu(subject: Subject) -> Iterator[Check]:
    """Governor and frequency: the CPU does what the NPU does not (norms, softmax), so a slow one slows both."""
    machine = subject.machine
    policies = machine.listed("/sys/devices/system/cpu/cpufreq/policy*")
    told, slow = [], []
    for policy in policies[:16]:
        governor = machine.text(f"{policy}/scaling_governor") or "unknown governor"
        cores = machine.text(f"{policy}/related_cpus") or policy.rpartition("policy")[2]
        now, top = machine.number(f"{policy}/scaling_cur_freq"), machine.number(f"{policy}/cpuinfo_max_freq")
        told.append(f"cores {cores}: {governor}, {megahertz(now * 1000)} of {megahertz(top * 1000)}")
        # intel_pstate and amd-pstate call powersave what goes up and down with the load
        fixed = governor == "powersave" and "pstate" not in machine.text(f"{policy}/scaling_driver")
        eager = governor in {"performance", "userspace", "unknown governor"}
        if fixed or (subject.platform and subject.settings.engine != "cpu" and not eager):
            slow.append(policy)
    if slow:
        fix = "echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
        yield Check("cpu", "warn", "; ".join(told), f"{fix} (until the next start; cpufrequtils keeps it)")
    else:
        yield Check("cpu", "ok", "; ".join(told) or "the kernel does not tell governor and frequency")


def memory(subject: Subject) -> Iterator[Check]:
    """Memory against what models take."""
    machine = subject.machine
    table = dict(re.findall(r"^(\w+):\s*(\d{1,15}) kB", machine.text("/proc/meminfo"), re.MULTILINE))
    if "MemAvailable" not in table:
        yield Check("memory", "ok", "the kernel does not tell it")
        return
    free, whole = int(table["MemAvailable"]) * 1024, int(table.get("MemTotal", 0)) * 1024
    about = f"{free / 1e9:.1f} of {whole / 1e9:.1f} GB free"
    if limit := machine.number("/sys/fs/cgroup/memory.max"):
        left = max(limit - machine.number("/sys/fs/cgroup/memory.current"), 0)
        about += f", {left / 1e9:.1f} GB of them for this container"
        free = min(free, left)
    models = [subject.places(card)[card.model] for card in subject.on_npu]
    sizes = [path.stat().st_size for path in models if path.is_file()]
    npu = subject.platform is not None and subject.settings.engine != "cpu"
    need = SERVER + (max(sizes, default=NPU_MODEL) if npu else CPU_MODEL)
    if free < need:
        fix = "end other programs, or take a smaller model; embed_flash = true in an NPU model's card needs less"
        yield Check("memory", "warn", f"{about}; server and model need {need / 1e9:.1f} GB", fix)
    else:
        yield Check("memory", "ok", f"{about}; server and model need {need / 1e9:.1f} GB")


def open_files(subject: Subject) -> Iterator[Check]:
    """How many files may be open."""
    limit = subject.machine.open_files
    npu = subject.platform is not None and subject.settings.engine != "cpu"
    if npu and 0 <= limit < OPEN_FILES:
        fix = (
            f"ulimit -n {OPEN_FILES}; under systemd LimitNOFILE={OPEN_FILES}, in a container --ulimit"
            f" nofile={OPEN_FILES}"
        )
        yield Check("open-files", "warn", f"{limit} at most; {NAME} wants {OPEN_FILES}", fix)
    else:
        yield Check("open-files", "ok", f"{limit} at most" if limit >= 0 else "no limit")


def sqlite(_: Subject) -> Iterator[Check]:
    """SQLite, and whether it loads extensions."""
    from appliance.database import about_driver

    try:
        driver = about_driver()
    except ApplianceError as error:
        yield Check(
            "sqlite", "fail", error.message, "scripts/install, or `pip install --force-reinstall sqlite-vec sqlean.py`"
        )
    else:
        yield Check(
            "sqlite", "ok", f"SQLite {driver.sqlite} ({driver.module}), word search, sqlite-vec {driver.vectors}"
        )


def disk(subject: Subject) -> Iterator[Check]:
    """Room and kind of the file system that everything is kept on."""
    machine, data = subject.machine, subject.settings.data
    place = next((each for each in (data, *data.parents) if os.path.exists(each)), Path("/"))  # noqa: PTH110  # as in Machine
    source, kind, options = _mount(machine, os.path.realpath(place))
    free = machine.free(place)
    about = f"{data}: {free / 1e9:.1f} GB free, {kind or 'unknown file system'}"
    disk = re.match(r"/dev/(mmcblk\d+)", source)
    if disk:
        card = machine.text(f"/sys/block/{disk[1]}/device/type") != "MMC"  # MMC is soldered: eMMC
        about += " on an SD card, which wears out and is slow" if card else " on eMMC"
    if "ro" in options.split(","):
        yield Check(
            "disk", "fail", f"{about}, read-only", f"sudo mount -o remount,rw {place}, or choose another --data"
        )
    elif not machine.access(place).usable:
        yield Check(
            "disk",
            "fail",
            f"{about}; this user may not write there",
            f"sudo chown $USER {place}, or choose another --data",
        )
    elif free < LEAST_FREE:
        yield Check("disk", "fail", f"{about}: too little to write to", "free some space, or choose another --data")
    elif why := FILE_SYSTEMS.get(kind):
        fix = (
            "mount a volume there: -v appliance:/data"
            if kind in {"overlay", "aufs"}
            else "choose another --data, on ext4 for one"
        )
        yield Check("disk", "warn", f"{about}: {why}", fix)
    elif free < LITTLE_FREE:
        yield Check("disk", "warn", about, "free some space, or choose another --data")
    else:
        yield Check("disk", "ok", about)


def _mount(machine: Machine, path: str) -> tuple[str, str, str]:
    """Source, file system and options of the mount that a path lies on."""
    best, found = "", ("", "", "")
    for line in machine.text("/proc/mounts").splitlines():
        parts = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.replace(" ", "\n")).split("\n")
        if len(parts) < 4:  # noqa: PLR2004  # source, place, file system, options
            continue
        source, place, kind, options = parts[:4]
        if (path == place or path.startswith(place.rstrip("/") + "/")) and len(place) >= len(best):
            best, found = place, (source, kind, options)
    return found


def clock(subject: Subject) -> Iterator[Check]:
    """Whether the clock can be right."""
    machine = subject.machine
    now = machine.clock()
    told = f"{now:%Y-%m-%d %H:%M} UTC"
    if not RELEASED <= now < datetime(UNTIL, 1, 1, tzinfo=UTC):
        yield Check(
            "clock",
            "warn",
            f"{told} cannot be: TLS and the times of documents depend on it",
            "sudo timedatectl set-ntp true, or without a network: sudo date -s 'YYYY-MM-DD HH:MM'",
        )
        return
    synchronised = machine.exists("/run/systemd/timesync/synchronized")
    battery = bool(machine.listed("/sys/class/rtc/rtc*"))
    yield Check(
        "clock", "ok", told + (", set by NTP" if synchronised else "") + ("" if battery else ", no hardware clock")
    )
