"""Doctor over recorded boards: small trees of what `/proc`, `/sys` and `/dev` hold there."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.cli.doctor import Check, examine, verdict
from appliance.cli.machine import Access, Machine, this_machine
from appliance.settings import Settings

BOARDS = Path(__file__).resolve().parents[1] / "fixtures" / "boards"
NOW = datetime(2027, 1, 2, 3, 4, tzinfo=UTC)
GB = 10**9

CARD = """
name = "tiny"
family = "qwen3"
engine = "rkllm"
platform = "rk3588"
model = "tiny.rkllm"
own = ["tiny.rkllm", "tokenizer.json"]
dimensions = 8
context = 64
max_tokens = 32
eos = 3
vocabulary = 4
"""


class Board:
    """A copy of a recorded board, to be changed by a test, and an appliance on it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.root = folder / "root"
        shutil.copytree(BOARDS / name, self.root)
        self.data = folder / "data"
        self.machine = Machine(
            root=self.root,
            environment={},
            machine="x86_64" if name == "pc" else "aarch64",
            clock=lambda: NOW,
            open_files=1 << 20,
            access=self.access,
            free=lambda _: 50 * GB,
            driver=lambda _: "",
        )

    def access(self, path: Path) -> Access:
        """By nodes.txt, which holds path, group and "open" or "closed"; what it does not name is open."""
        nodes = self.root / "nodes.txt"
        for line in nodes.read_text().splitlines() if nodes.exists() else ():
            node, group, state = line.split()
            if self.machine.real(node) == path:
                return Access(state == "open", group)
        return Access(usable=True, group="render")

    def write(self, path: str, content: str | bytes) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)

    def card(self, text: str = CARD, *, ending: int = 3, size: int = 2 * 2**20) -> None:
        """A model for the NPU with all its files; its tokenizer closes every text with the token `ending`."""
        (self.data / "cards").mkdir(parents=True, exist_ok=True)
        (self.data / "cards" / "tiny.toml").write_text(text)
        folder = self.data / "models" / "tiny"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tiny.rkllm").write_bytes(bytes(size))
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer(ending)))

    def checks(self, machine: Machine | None = None, **given: Any) -> dict[str, Check]:
        """What doctor says, by name."""
        return {each.name: each for each in examine(machine or self.machine, Settings(data=self.data, **given))}


def tokenizer(ending: int) -> dict[str, Any]:
    words = {"a": 0, "b": 1, "<unk>": 2, "<end>": 3}
    name = {number: word for word, number in words.items()}[ending]
    special = {"id": name, "ids": [ending], "tokens": [name]}
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": 3,
                "content": "<end>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": name, "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {name: special},
        },
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }


@pytest.fixture
def board(tmp_path: Path) -> Callable[[str], Board]:
    return lambda name: Board(name, tmp_path / name)


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """The bytes of a library for 64-bit ARM that says that it is librkllmrt of this version, of family C or D."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) on this machine")
    names = (
        "createDefaultParam",
        "init",
        "run",
        "abort",
        "destroy",
        "load_lora",
        "set_chat_template",
        "get_kv_cache_size",
    )

    def build(version: str) -> bytes:
        target = tmp_path_factory.mktemp("runtime") / "librkllmrt.so"
        code = f'const char about[] = "RKLLM SDK (version: {version} | target: Linux)";'
        code += "".join(f"int rkllm_{name}(void) {{ return 0; }}" for name in names)
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-x", "c", "-o", str(target), "-"], input=code.encode(), check=True
        )
        content = bytearray(target.read_bytes())
        struct.pack_into("<H", content, 18, 183)  # e_machine: aarch64
        return bytes(content)

    return build


def statuses(checks: dict[str, Check]) -> dict[str, str]:
    return {name: check.status for name, check in checks.items() if check.status != "ok"}


class TestBoards:
    def test_a_board_that_has_everything_is_all_right(
        self, board: Callable[[str], Board], runtime: Callable[[str], bytes]
    ) -> None:
        subject = board("rk3588")
        subject.write("usr/lib/librkllmrt.so", runtime("1.2.3"))
        subject.card()

        checks = subject.checks(model="tiny", engine="npu")

        assert statuses(checks) == {}
        assert "Radxa ROCK 5B (radxa,rock-5b, rockchip,rk3588), aarch64, Linux 6.1.84" in checks["board"].found
        assert "runs models for rk3588" in checks["board"].found
        assert "rknpu 0.9.8" in checks["npu-driver"].found
        assert checks["npu-device"].found == "/dev/dri/renderD129 (group render)"  # 128 is the GPU's
        assert (
            "1.2.3, family C (version string 1.2.3, exported symbols), the one that is used"
            in checks["npu-library"].found
        )
        assert checks["npu-frequency"].found == "rknpu_ondemand, 300 MHz of 1000 MHz"
        assert "cores 4 5: performance, 2352 MHz of 2352 MHz" in checks["cpu"].found
        assert "context 64" in checks["model tiny"].found
        assert "set by NTP" in checks["clock"].found
        assert all(not check.fix for check in checks.values())

    def test_an_old_driver_without_access_on_a_slow_board(self, board: Callable[[str], Board]) -> None:
        subject = board("rk3588s-no-access")

        checks = subject.checks(machine=replace(subject.machine, open_files=1024))

        assert statuses(checks) == dict.fromkeys(
            ("npu-driver", "npu-device", "npu-library", "npu-frequency", "cpu", "memory", "open-files"), "warn"
        )
        assert "0.9.6" in checks["npu-driver"].found
        assert checks["npu-device"].fix == "sudo usermod -aG render,video $USER, then log in anew"
        assert "librkllm_api/aarch64" in checks["npu-library"].fix
        assert "1000000000 | sudo tee /sys/class/devfreq/fdab0000.npu/max_freq" in checks["npu-frequency"].fix
        assert "scaling_governor" in checks["cpu"].fix
        assert "ulimit -n 102400" in checks["open-files"].fix
        assert "SD card" in checks["disk"].found

    def test_what_may_be_a_warning_is_a_failure_where_the_npu_is_asked_for(self, board: Callable[[str], Board]) -> None:
        for name in ("rk3588s-no-access", "rk3588-mainline", "rk3566", "pc", "rk3588-container"):
            subject = board(name)

            assert verdict(list(subject.checks(engine="npu").values())) == "fail"
            assert verdict(list(subject.checks(engine="auto").values())) != "fail"

    def test_a_driver_with_a_node_of_its_own_needs_the_heap_too(self, board: Callable[[str], Board]) -> None:
        checks = board("rk3576").checks()

        assert "runs models for rk3576" in checks["board"].found
        assert "/dev/rknpu, /dev/dma_heap/system" in checks["npu-device"].found
        assert 'KERNEL=="rknpu|system", GROUP="render"' in checks["npu-device"].fix
        assert checks["npu-driver"].status == "ok"
        assert "cannot be read" in checks["npu-driver"].found
        assert "eMMC" in checks["disk"].found

    def test_a_chip_with_parts_switched_off_runs_its_big_brothers_models(self, board: Callable[[str], Board]) -> None:
        checks = board("rk3582").checks()

        assert "runs models for rk3588" in checks["board"].found
        assert checks["npu-driver"].found == "rknpu 0.9.8 (/sys/module/rknpu/version)"
        assert checks["npu-library-needs"].fix == "sudo apt install libgomp1"

    @pytest.mark.parametrize(
        ("compatible", "platform"),
        [
            ("radxa,rock-5c\0rockchip,rk3588f\0", "rk3588"),
            ("vendor,board\0rockchip,rk3588s2\0", "rk3588"),
            ("vendor,board\0rockchip,rk3576s\0", "rk3576"),
            ("vendor,board\0rockchip,rk3562j\0", "rk3562"),
            ("vendor,board\0rockchip,rv1126b\0", "rv1126b"),
        ],
    )
    def test_a_chip_is_known_by_any_of_its_names(
        self, board: Callable[[str], Board], compatible: str, platform: str
    ) -> None:
        subject = board("rk3588")
        subject.write("proc/device-tree/compatible", compatible)

        assert f"runs models for {platform}" in subject.checks()["board"].found

    def test_the_driver_of_mainline_linux_is_explained(self, board: Callable[[str], Board]) -> None:
        checks = board("rk3588-mainline").checks()

        assert checks["npu-driver"].status == "warn"
        assert "rocket" in checks["npu-driver"].found
        assert "vendor's kernel" in checks["npu-driver"].fix
        assert "npu-device" not in checks

    def test_an_npu_of_another_kind_is_explained(self, board: Callable[[str], Board]) -> None:
        checks = board("rk3566").checks()

        assert statuses(checks) == {}
        assert "rk3566: its NPU is for rknn models" in checks["board"].found
        assert "the CPU engine is used" in checks["board"].found

    def test_a_pc_is_all_right_and_not_asked_about_an_npu(self, board: Callable[[str], Board]) -> None:
        checks = board("pc").checks()

        assert statuses(checks) == {}
        assert "OptiPlex 7010, x86_64, Linux 6.8.0-60-generic; no Rockchip NPU here" in checks["board"].found
        assert not [name for name in checks if name.startswith("npu")]

    def test_an_npu_that_is_not_wanted_is_not_looked_at(self, board: Callable[[str], Board]) -> None:
        checks = board("rk3588s-no-access").checks(engine="cpu")

        assert [name for name in checks if name.startswith("npu")] == ["npu"]
        assert statuses(checks) == {}

    def test_a_container_is_told_what_to_be_started_with(self, board: Callable[[str], Board]) -> None:
        checks = board("rk3588-container").checks()

        assert "runs models for rk3588, by the address of its NPU" in checks["board"].found
        for name in ("container", "npu-device"):
            assert checks[name].status == "warn"
            assert "--device /dev/dri --device /dev/dma_heap" in checks[name].fix
        assert "0.8 GB of them for this container" in checks["memory"].found
        assert checks["memory"].status == "warn"
        assert checks["disk"].status == "warn"
        assert "volume" in checks["disk"].fix

    @pytest.mark.parametrize(("kind", "told"), [("lxc", "lxc.mount.entry"), ("Kubernetes", "device plugin")])
    def test_each_kind_of_container_is_told_in_its_own_words(
        self, board: Callable[[str], Board], kind: str, told: str
    ) -> None:
        subject = board("rk3588-container")
        (subject.root / ".dockerenv").unlink()
        if kind == "lxc":
            subject.write("run/systemd/container", "lxc\n")
        environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"} if kind == "Kubernetes" else {}

        check = subject.checks(machine=replace(subject.machine, environment=environment))["container"]

        assert kind in check.found
        assert told in check.fix

    def test_the_version_of_the_driver_is_asked_of_the_node_where_no_file_tells_it(
        self, board: Callable[[str], Board]
    ) -> None:
        subject = board("rk3588")
        (subject.root / "sys/kernel/debug/rknpu/version").unlink()

        checks = subject.checks(
            machine=replace(subject.machine, driver=lambda path: "0.9.7" * (path.name == "renderD129"))
        )

        assert checks["npu-driver"].found == "rknpu 0.9.7 (/dev/dri/renderD129), older than 0.9.8"


class TestLibrary:
    def test_every_library_is_told_and_the_first_that_fits_is_used(
        self, board: Callable[[str], Board], runtime: Callable[[str], bytes]
    ) -> None:
        subject = board("rk3588")
        subject.write("usr/lib/librkllmrt.so", "text")
        subject.write("usr/local/lib/librkllmrt.so", runtime("1.3.1"))
        subject.write("opt/librkllmrt.so", runtime("9.9.9"))

        check = subject.checks(machine=replace(subject.machine, environment={"LD_LIBRARY_PATH": "/opt"}))["npu-library"]

        opt, usr, local, warning = re.split(r"; (?=/|1\.3\.1)", check.found)
        assert "opt/librkllmrt.so: refused, librkllmrt.so is version 9.9.9, which is not known here" in opt
        assert "usr/lib/librkllmrt.so: refused, librkllmrt.so is no shared library" in usr
        assert "usr/local/lib/librkllmrt.so: 1.3.1, family D" in local
        assert "the one that is used" in local
        assert "1.3.1 is not a version that was checked" in warning
        assert check.status == "warn"

    def test_the_settings_name_and_overrule(
        self, board: Callable[[str], Board], runtime: Callable[[str], bytes], tmp_path: Path
    ) -> None:
        subject = board("rk3588")
        (tmp_path / "own.so").write_bytes(runtime("9.9.9"))

        refused = subject.checks(npu_library=tmp_path / "own.so")["npu-library"]
        taken = subject.checks(npu_library=tmp_path / "own.so", npu_abi="D")["npu-library"]

        assert refused.status == "warn"
        assert "npu_abi" in refused.found
        assert taken.status == "ok"
        assert "family D (setting)" in taken.found


class TestModels:
    @pytest.mark.parametrize(
        ("card", "ending", "size", "told"),
        [
            (CARD.replace('platform = "rk3588"', 'platform = "rk3576"'), 3, 2**21, "does not run on this rk3588"),
            (CARD, 1, 2**21, "closes a text with token 1, the card says eos = 3"),
            (CARD.replace("vocabulary = 4", "vocabulary = 3"), 3, 2**21, "has 4 tokens, more than the model's 3"),
            (CARD, 3, 130, "too small"),
        ],
    )
    def test_what_is_wrong_with_a_model(
        self, board: Callable[[str], Board], card: str, ending: int, size: int, told: str
    ) -> None:
        subject = board("rk3588")
        subject.card(card, ending=ending, size=size)

        aside, default = (subject.checks(model=name)["model tiny"] for name in ("hash", "tiny"))

        assert (aside.status, default.status) == ("warn", "fail")
        assert told in aside.found
        assert aside.fix

    def test_files_that_lack_or_are_broken(self, board: Callable[[str], Board]) -> None:
        subject = board("rk3588")
        subject.card()
        file = subject.data / "models" / "tiny" / "tokenizer.json"

        file.write_text("{}")
        broken = subject.checks()["model tiny"]
        file.unlink()
        lacking = subject.checks()["model tiny"]

        assert "tokenizer.json cannot be read" in broken.found
        assert "tokenizer.json is not here" in lacking.found
        assert str(file.parent) in lacking.fix

    def test_a_model_for_an_npu_that_is_not_here(self, board: Callable[[str], Board]) -> None:
        subject = board("pc")
        subject.card()

        assert "no NPU here" in subject.checks()["model tiny"].found

    def test_the_default_has_to_be_there_or_to_be_had(self, board: Callable[[str], Board]) -> None:
        subject = board("pc")

        assert subject.checks(model="hash")["models"].status == "ok"
        assert subject.checks()["models"].status == "ok"
        assert subject.checks(offline=True)["models"].fix == "appliance pull all-minilm-l6-v2"
        assert subject.checks(model="nothing")["models"].status == "fail"

    def test_a_default_whose_files_the_owner_has_to_bring_says_where_to_put_them(
        self, board: Callable[[str], Board]
    ) -> None:
        check = board("rk3588").checks(model="qwen3-embedding")["models"]

        assert check.status == "fail"
        assert "cannot be fetched" in check.found
        assert "qwen3-embedding-0.6b-rk3588.rkllm and tokenizer.json" in check.fix

    def test_a_played_npu_is_told_and_needs_a_compiler(self, board: Callable[[str], Board]) -> None:
        subject = board("pc")
        machine = replace(subject.machine, environment={"PATH": "/usr/bin"})

        without = subject.checks(machine=machine, simulate_npu=True)["simulated npu"]
        subject.write("usr/bin/cc", "")
        with_one = subject.checks(machine=machine, simulate_npu=True)

        assert (without.status, without.fix) == ("fail", "apt install gcc")
        assert with_one["simulated npu"].status == "warn"
        assert "models" not in with_one

    def test_a_card_that_is_none_is_named(self, board: Callable[[str], Board]) -> None:
        subject = board("rk3588")
        subject.card("engine = 3")

        check = subject.checks()["models"]

        assert check.status == "fail"
        assert "tiny.toml" in check.found


class TestPlace:
    @pytest.mark.parametrize("kind", ["vfat", "exfat", "nfs4", "cifs", "tmpfs", "overlay"])
    def test_a_file_system_that_does_not_keep_data_is_warned_about(
        self, board: Callable[[str], Board], kind: str
    ) -> None:
        subject = board("pc")
        place = os.path.realpath(subject.root.parent).replace(" ", "\\040")
        subject.write("proc/mounts", f"/dev/sda1 / ext4 rw 0 0\nx {place} {kind} rw,noatime 0 0\n")

        check = subject.checks()["disk"]

        assert check.status == "warn"
        assert kind in check.found
        assert check.fix

    def test_a_disk_that_is_full_or_read_only_fails(self, board: Callable[[str], Board]) -> None:
        subject = board("pc")

        few = subject.checks(machine=replace(subject.machine, free=lambda _: 500 * 10**6))["disk"]
        none = subject.checks(machine=replace(subject.machine, free=lambda _: 0))["disk"]
        closed = subject.checks(machine=replace(subject.machine, access=lambda _: Access(usable=False, group="root")))
        subject.write("proc/mounts", "/dev/sda1 / ext4 ro,relatime 0 0\n")
        read_only = subject.checks()["disk"]

        assert (few.status, none.status, closed["disk"].status, read_only.status) == ("warn", "fail", "fail", "fail")
        assert "remount,rw" in read_only.fix

    @pytest.mark.parametrize("year", [1970, 2020, 2150])
    def test_a_clock_that_cannot_be_right_is_warned_about(self, board: Callable[[str], Board], year: int) -> None:
        subject = board("pc")

        check = subject.checks(machine=replace(subject.machine, clock=lambda: datetime(year, 1, 1, tzinfo=UTC)))[
            "clock"
        ]

        assert check.status == "warn"
        assert "timedatectl" in check.fix


class TestWhatever:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_no_content_of_any_file_makes_it_fall_over(self, tmp_path: Path, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(path.name for path in BOARDS.iterdir())))
        shutil.rmtree(tmp_path / "whatever", ignore_errors=True)
        subject = Board(name, tmp_path / "whatever")
        files = sorted(path for path in subject.root.rglob("*") if path.is_file() and path.name != "nodes.txt")
        for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=20)):
            path.write_bytes(
                data.draw(st.binary(max_size=200) | st.sampled_from([b"9" * 2_000_000, b"-1", b"\xff\n\x1b[2J"]))
            )

        checks = subject.checks(engine=data.draw(st.sampled_from(["auto", "npu", "cpu"])))

        assert {"board", "models", "cpu", "memory", "sqlite", "disk", "clock"} <= set(checks)
        assert not [check for check in checks.values() if "this check failed" in check.found]
        assert all(check.found.isprintable() and check.fix.isprintable() for check in checks.values())

    def test_things_that_are_no_files_are_passed_by(self, board: Callable[[str], Board]) -> None:
        subject = board("rk3588")
        for path in ("proc/meminfo", "proc/device-tree/compatible", "sys/kernel/debug/rknpu/version", "proc/mounts"):
            (subject.root / path).unlink()
        os.mkfifo(subject.root / "proc/meminfo")
        (subject.root / "proc/device-tree/compatible").mkdir()
        (subject.root / "sys/kernel/debug/rknpu/version").symlink_to("version")

        checks = subject.checks()

        assert checks["memory"].status == "ok"
        assert not [check for check in checks.values() if "this check failed" in check.found]

    def test_a_check_that_trips_is_a_warning_and_the_others_go_on(self, board: Callable[[str], Board]) -> None:
        def broken() -> datetime:
            raise RuntimeError("\x1b[31mno clock")

        subject = board("pc")

        checks = subject.checks(machine=replace(subject.machine, clock=broken))

        assert checks["clock"] == Check(
            "clock", "warn", "this check failed: RuntimeError: ?[31mno clock", "please report it as a bug"
        )
        assert checks["disk"].status == "ok"

    def test_this_machine_answers_every_question(self, tmp_path: Path) -> None:
        machine = this_machine()

        assert machine.text("/proc/version").startswith("Linux version")
        assert machine.read("/no/such/file") == ("", "no such file or directory")
        assert machine.access(Path("/dev/null")).usable
        assert machine.access(tmp_path / "gone") == Access(usable=False, group="")
        assert machine.free(tmp_path) > 0
        assert machine.driver(Path("/dev/null")) == ""  # no DRM node
        assert abs(machine.clock().timestamp() - time.time()) < 5


class TestCommand:
    def test_the_exit_code_is_the_verdict_and_nothing_is_written(self, tmp_path: Path) -> None:
        auto, npu = (
            run(tmp_path / "data"),
            run(tmp_path / "data", APPLIANCE_ENGINE="npu", APPLIANCE_NPU_LIBRARY="/none.so"),
        )

        told = json.loads(auto.stdout)
        assert set(told) == {"status", "checks"}
        assert all(set(check) == {"name", "status", "found", "fix"} for check in told["checks"])
        assert auto.returncode == {"ok": 0, "warn": 1, "fail": 2}[told["status"]]
        assert npu.returncode == 2
        assert json.loads(npu.stdout)["status"] == "fail"
        assert not (tmp_path / "data").exists()

    def test_a_person_is_told_what_to_do(self, tmp_path: Path) -> None:
        answer = run(tmp_path / "data", "--config", tmp_path / "gone.toml", form=())
        plain = run(tmp_path / "data", form=(), APPLIANCE_ENGINE="npu", APPLIANCE_NPU_LIBRARY="/none.so")

        assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
        assert "fail  npu-library" in plain.stdout
        assert "-> put the file where" in plain.stdout


def run(
    data: Path, *arguments: object, form: tuple[str, ...] = ("--json",), **environment: str
) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("APPLIANCE_")}
    return subprocess.run(
        [sys.executable, "-m", "appliance", "doctor", "--data", str(data), *form, *map(str, arguments)],
        env=clean | {"COLUMNS": "200"} | environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
