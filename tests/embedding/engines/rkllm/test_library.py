import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.embedding.engines.rkllm import library
from appliance.embedding.engines.rkllm.abi import Family
from appliance.embedding.engines.rkllm.library import (
    LARGEST,
    NAME,
    RELEASES,
    blob_hash,
    candidates,
    choose,
    identify,
)
from appliance.errors import EngineUnavailable

CC = shutil.which("cc")

A = ("rkllm_createDefaultParam", "rkllm_init", "rkllm_run", "rkllm_abort", "rkllm_destroy", "rkllm_load_lora")
B = (*A, "rkllm_set_chat_template", "rkllm_clear_kv_cache")
C = (*B, "rkllm_get_kv_cache_size")

E_MACHINE = 18  # offset in the ELF header

Build = Callable[..., Path]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compiles libraries that export names and hold a text; each once."""
    if CC is None:
        pytest.skip("no C compiler (cc) on this machine")
    folder = tmp_path_factory.mktemp("libraries")
    made: dict[object, Path] = {}

    def build(symbols: tuple[str, ...] = C, text: str = "") -> Path:
        if (symbols, text) not in made:
            target = folder / str(len(made)) / NAME
            target.parent.mkdir()
            code = f'const char about[] = "{text}";\n' + "".join(
                f"int {name}(void) {{ return 0; }}\n" for name in symbols
            )
            command = [str(CC), "-shared", "-fPIC", "-x", "c", "-o", str(target), "-"]
            subprocess.run(command, input=code.encode(), check=True)
            made[symbols, text] = target
        return made[symbols, text]

    return build


def version(number: str, target: str = "Linux") -> str:
    return f"RKLLM SDK (version: {number} | target: {target} | build: f8ca3ae8 2025-04-08)"


def refusal(path: Path, *, family: Family | None = None, machine: str | None = None) -> str:
    with pytest.raises(EngineUnavailable) as caught:
        identify(path, family=family, machine=machine)
    assert str(path.parent) not in caught.value.message
    return caught.value.message


class TestFamily:
    @pytest.mark.parametrize(
        ("number", "symbols", "family"),
        [
            ("1.1.4", A, "A"),
            ("1.2.0", B, "B"),
            ("1.2.1b1", B, "B"),
            ("1.2.1", C, "C"),
            ("1.2.3", C, "C"),
            ("1.3.0", C, "D"),
        ],
    )
    def test_the_version_string_and_the_symbols_tell_it_together(
        self, built: Build, number: str, symbols: tuple[str, ...], family: Family
    ) -> None:
        known = identify(built(symbols, version(number)))

        assert (known.version, known.family, known.warning) == (number, family, "")
        assert known.evidence == (f"version string {number}", "exported symbols")
        assert known.machine == platform.machine()
        assert not known.simulated

    def test_a_simulated_runtime_says_that_it_is_one(self, built: Build) -> None:
        assert identify(built(C, version("1.2.3", "Simulated"))).simulated

    @pytest.mark.parametrize(("symbols", "family"), [(A, "A"), (B, "B")])
    def test_symbols_alone_tell_the_families_that_have_their_own(
        self, built: Build, symbols: tuple[str, ...], family: Family
    ) -> None:
        known = identify(built(symbols))

        assert (known.version, known.family, known.evidence) == ("", family, ("exported symbols",))

    def test_symbols_alone_cannot_tell_c_from_d(self, built: Build) -> None:
        message = refusal(built(C))

        assert "set npu_abi to C or D" in message
        assert identify(built(C), family="D").family == "D"

    @pytest.mark.parametrize("number", ["1.3.1", "1.3.7"])
    def test_a_later_1_3_is_taken_as_d_with_a_warning(self, built: Build, number: str) -> None:
        known = identify(built(C, version(number)))

        assert known.family == "D"
        assert number in known.warning

    @pytest.mark.parametrize("number", ["1.2.4", "1.4.0", "2.0.0", "1.2.1b2"])
    def test_an_unknown_version_is_refused_unless_overruled(self, built: Build, number: str) -> None:
        path = built(C, version(number))

        message = refusal(path)
        known = identify(path, family="D")

        assert number in message
        assert "npu_abi" in message
        assert (known.family, known.evidence, known.warning) == ("D", ("setting",), "")

    def test_a_version_that_its_symbols_deny_is_refused_unless_overruled(self, built: Build) -> None:
        path = built(B, version("1.3.0"))

        message = refusal(path)
        known = identify(path, family="B")

        assert "family D" in message
        assert "family B" in message
        assert "npu_abi" in message
        assert known.family == "B"
        assert "1.3.0" in known.warning

    def test_what_the_setting_says_wins_and_is_warned_about_where_the_symbols_differ(self, built: Build) -> None:
        known = identify(built(A), family="C")

        assert known.family == "C"
        assert "family A" in known.warning

    def test_1_0_is_refused_even_when_overruled(self, built: Build) -> None:
        path = built(A, version("1.0.1"))

        assert "1.1 or newer" in refusal(path)
        assert "1.1 or newer" in refusal(path, family="A")

    def test_1_0_without_a_version_is_known_by_what_it_lacks(self, built: Build) -> None:
        assert "1.1 or newer" in refusal(built(A[:-1]))

    def test_a_file_of_two_versions_is_refused(self, built: Build) -> None:
        assert "several versions" in refusal(built(C, version("1.2.3") + version("1.3.0")))

    def test_a_hash_is_gits(self, tmp_path: Path) -> None:
        (tmp_path / "greeting").write_text("hello world\n")

        assert blob_hash(b"hello world\n") == "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"  # git hash-object
        if git := shutil.which("git"):
            told = subprocess.run(
                [git, "hash-object", tmp_path / "greeting"], check=True, capture_output=True, text=True
            )
            assert told.stdout.strip() == blob_hash(b"hello world\n")

    def test_every_release_has_one_hash_for_each_machine(self) -> None:
        numbers = list(RELEASES.values())

        assert all(len(each) == 40 and set(each) <= set("0123456789abcdef") for each in RELEASES)
        assert {each: numbers.count(each) for each in ("1.1.0", "1.2.0", "1.2.1b1")} == {
            "1.1.0": 1,
            "1.2.0": 1,
            "1.2.1b1": 1,
        }
        assert [numbers.count(each) for each in ("1.2.1", "1.2.2", "1.2.3", "1.3.0")] == [2, 2, 2, 2]


class TestRefused:
    @pytest.mark.parametrize(
        ("machine", "fix"), [("aarch64", "librkllm_api/aarch64"), ("armv7l", "librkllm_api/armhf")]
    )
    def test_a_pcs_library_on_a_board(self, built: Build, machine: str, fix: str) -> None:
        path = patched(built(C, version("1.2.3")), 62)

        message = refusal(path, machine=machine)

        assert f"{NAME} is for x86-64" in message
        assert fix in message

    def test_a_boards_library_on_a_pc(self, built: Build) -> None:
        message = refusal(patched(built(C, version("1.2.3")), 183), machine="x86_64")

        assert "for 64-bit ARM, this Python is for x86-64" in message

    def test_a_32_bit_library_under_a_64_bit_python(self, built: Build) -> None:
        message = refusal(patched(built(C, version("1.2.3")), 40), machine="aarch64")

        assert "32-bit ARM" in message
        assert "librkllm_api/aarch64" in message

    def test_a_boards_library_on_a_board_is_taken(self, built: Build) -> None:
        known = identify(patched(built(C, version("1.2.3")), 183), machine="arm64")

        assert (known.machine, known.family) == ("aarch64", "C")

    def test_the_library_of_android(self, built: Build) -> None:
        assert "Android" in refusal(built(C, version("1.2.3", "Android")))

    def test_the_other_library_of_the_npu(self, built: Build) -> None:
        message = refusal(built(("rknn_init", "rknn_run"), "librknnrt version: 2.3.2 (1842325)"))

        assert "no librkllmrt.so" in message
        assert "rkllm_init" in message

    @pytest.mark.parametrize("content", [b"", b"\x7fELF", b"<!DOCTYPE html>", b"\x7fELF" + b"\xff" * 500])
    def test_what_is_no_library(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / NAME).write_bytes(content)

        assert "rkllm-runtime" in refusal(tmp_path / NAME)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
    def test_a_download_that_was_cut_short(self, built: Build, tmp_path: Path, share: float) -> None:
        content = built(C, version("1.2.3")).read_bytes()
        (tmp_path / NAME).write_bytes(content[: int(len(content) * share)])

        assert "download it again" in refusal(tmp_path / NAME)

    def test_what_is_too_large_to_be_it(self, tmp_path: Path) -> None:
        with (tmp_path / NAME).open("wb") as file:
            file.write(b"\x7fELF")
            file.truncate(2 * 2**30)

        assert f"larger than {LARGEST // 2**20} MiB" in refusal(tmp_path / NAME)

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / NAME)

        assert "no file" in refusal(tmp_path / NAME)
        assert "not there" in refusal(tmp_path / "gone.so")

    @settings(
        max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
    )
    @given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=20))
    def test_damage_anywhere_is_refused_or_harmless(
        self, built: Build, tmp_path: Path, flips: list[tuple[float, int]]
    ) -> None:
        content = bytearray(built(C, version("1.2.3")).read_bytes())
        tables = len(content) - 64 * 30  # the section headers stand at the end
        for place, value in flips:
            whole = len(content) if value % 2 else 64
            start = 0 if value % 3 else tables
            content[(start + int(place * whole)) % len(content)] = value
        (tmp_path / NAME).write_bytes(content)

        try:
            found = identify(tmp_path / NAME)
        except EngineUnavailable:
            return
        assert found.family in "ABCD"


class TestSearch:
    def test_the_setting_stands_alone(self, tmp_path: Path) -> None:
        own, system = placed(tmp_path / "own"), placed(tmp_path / "root/usr/lib")

        def found(setting: Path | None) -> list[Path]:
            return candidates(setting=setting, model_folder=None, environment={}, root=tmp_path / "root")

        assert found(own) == [own]
        assert found(own.parent) == [own]
        assert found(tmp_path / "gone.so") == []
        assert found(None) == [system]

    def test_every_place_is_looked_at_in_order_and_each_file_once(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        folders = ["opt/a", "opt/b", "usr/lib", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/local/lib", "model"]
        files = [placed(root / folder) for folder in folders]
        environment = {"RKLLM_LIBRARY": "/opt/a/librkllmrt.so", "LD_LIBRARY_PATH": "/opt/b::relative:/opt/a:/none"}

        found = candidates(setting=None, model_folder=root / "model", environment=environment, root=root)

        assert found == files

    def test_a_link_is_the_file_it_leads_to(self, tmp_path: Path) -> None:
        real = placed(tmp_path / "usr/lib")
        (tmp_path / "usr/lib64").symlink_to(tmp_path / "usr/lib")

        assert candidates(setting=None, model_folder=None, environment={}, root=tmp_path) == [real]

    def test_the_first_that_can_be_used_is_chosen(self, built: Build, tmp_path: Path) -> None:
        placed(tmp_path / "usr/lib")
        good = placed(tmp_path / "usr/local/lib", built(C, version("1.3.0")))

        known = choose(setting=None, model_folder=None, environment={}, root=tmp_path)

        assert (known.path, known.family) == (good, "D")

    def test_where_none_can_be_used_each_is_told_with_its_place_and_reason(self, built: Build, tmp_path: Path) -> None:
        placed(tmp_path / "usr/lib")
        placed(tmp_path / "model", built(C))

        with pytest.raises(EngineUnavailable) as caught:
            choose(setting=None, model_folder=tmp_path / "model", environment={}, root=tmp_path)

        assert "/usr/lib: librkllmrt.so is no shared library" in caught.value.message
        assert "beside the model: librkllmrt.so has no version" in caught.value.message
        assert str(tmp_path) not in caught.value.message

    def test_where_there_is_none_the_places_are_told_and_what_to_do(self, tmp_path: Path) -> None:
        for setting, place in (
            (None, "/usr/lib, /usr/lib/aarch64-linux-gnu"),
            (tmp_path / "x.so", "setting npu_library"),
        ):
            with pytest.raises(EngineUnavailable) as caught:
                choose(setting=setting, model_folder=None, environment={}, root=tmp_path)

            assert place in caught.value.message
            assert "rknn-llm" in caught.value.message
            assert str(tmp_path) not in caught.value.message


def test_the_file_alone_needs_nothing_heavy() -> None:
    program = (
        "import runpy, sys\n"
        f"runpy.run_path({library.__file__!r})\n"
        "heavy = {'numpy', 'pydantic', 'elftools', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )

    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def patched(path: Path, machine: int) -> Path:
    """The library, as if built for another machine."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<H", content, E_MACHINE, machine)
    target = path.parent / f"for-{machine}" / path.name
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(content)
    return target


def placed(folder: Path, content: Path | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(content.read_bytes() if content else b"text")
    return folder / NAME
