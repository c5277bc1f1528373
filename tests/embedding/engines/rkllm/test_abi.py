"""The tables against what compilers said of the released headers, and against a header itself where one is named."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from appliance.embedding.engines.rkllm import abi
from appliance.embedding.engines.rkllm.abi import FAMILIES, FUNCTIONS, STRUCTS, Family

LAYOUTS = Path(__file__).parents[3] / "fixtures" / "rkllm_layouts.txt"
NAMELESS = {"RKLLMImageInput", "RKLLMVideoInput", "RKLLMInputValue"}


class Place(NamedTuple):
    kind: str
    offset: int
    size: int


def recorded(bits: int, family: str) -> dict[tuple[str, str], Place]:
    """What the fixture says of one family; the size of a struct stands under the field `sizeof`."""
    found = {}
    for line in LAYOUTS.read_text().splitlines():
        if not line.startswith("#"):
            width, whose, struct, field, kind, place = line.split()
            if (int(width), whose) == (bits, family):
                first, second = re.split(r"[+/]", place)
                found[struct, field] = Place(kind, int(first), int(second))
    return found


def kind_of(field: Any) -> str:
    kinds: dict[Any, str] = {
        ctypes.c_float: "float",
        ctypes.c_bool: "bool",
        ctypes.c_int32: "signed",
        ctypes.c_int8: "signed",
        ctypes.c_uint8: "unsigned",
        ctypes.c_uint32: "unsigned",
        ctypes.c_size_t: "unsigned",
        ctypes.c_char_p: "pointer",
        ctypes.c_void_p: "pointer",
    }
    if field in kinds:
        return kinds[field]
    if hasattr(field, "_argtypes_") or (not hasattr(field, "_length_") and hasattr(field, "contents")):
        return "pointer"
    return "bytes" if hasattr(field, "_length_") else "struct"


def flattened(struct: Any, before: str = "", at: int = 0) -> Iterator[tuple[str, Place]]:
    """Each field as the fixture names it: members of the input's union alone, of nameless structs with a dot."""
    for name, field in struct._fields_:
        place = getattr(struct, name)
        if field.__name__ == "RKLLMInputValue":
            yield from flattened(field, before, at + place.offset)
            continue
        yield before + name, Place(kind_of(field), at + place.offset, place.size)
        if field.__name__ in NAMELESS:
            yield from flattened(field, f"{before}{name}.", at + place.offset)


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="this Python has 32-bit pointers")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_has_the_offset_size_and_kind_of_the_header(family: Family) -> None:
    types = abi.abi(family).types

    found = {}
    for name, struct in types.items():
        if hasattr(struct, "_fields_") and name not in NAMELESS:
            found[name, "sizeof"] = Place("-", ctypes.sizeof(struct), ctypes.alignment(struct))
            found |= {(name, field): place for field, place in flattened(struct)}

    wanted = recorded(64, family)
    enums = {key for key, place in wanted.items() if place.kind == "enum"}
    assert enums == {("RKLLMInput", "input_type"), ("RKLLMInferParam", "mode")}
    assert found == wanted | {key: wanted[key]._replace(kind="signed") for key in enums}


def test_1_2_0_differs_from_1_2_1b1_only_in_what_its_input_may_end_with() -> None:
    older, newer = recorded(64, "B-1.2.0"), recorded(64, "B")

    differing = {key for key in older.keys() | newer.keys() if older.get(key) != newer.get(key)}

    assert differing == {
        ("RKLLMMultiModalInput", "sizeof"),
        ("RKLLMMultiModalInput", "n_image"),
        ("RKLLMMultiModalInput", "image_width"),
        ("RKLLMMultiModalInput", "image_height"),
        ("RKLLMInput", "sizeof"),
        ("RKLLMInput", "multimodal_input"),
    }
    assert all(newer[key].size >= older[key].size for key in differing if key in older)


def narrow(kind: Any, types: dict[str, list[tuple[str, Any]]]) -> tuple[int, int]:
    """Size and alignment of a field where pointers have four bytes; none here has eight."""
    if isinstance(kind, str) and kind in types:
        sizes = [narrow(each, types) for _, each in types[kind]]
        if kind == "RKLLMInputValue":
            return max(size for size, _ in sizes), 4
        end = 0
        for size, alignment in sizes:
            end = -(-end // alignment) * alignment + size
        widest = max(alignment for _, alignment in sizes)
        return -(-end // widest) * widest, widest
    if isinstance(kind, str) or kind_of(kind) == "pointer" or kind is ctypes.c_size_t:
        return 4, 4
    if kind_of(kind) == "bytes":
        return ctypes.sizeof(kind), 1
    return ctypes.sizeof(kind), ctypes.sizeof(kind)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_fields_make_the_layout_of_32_bit_arm(family: Family) -> None:
    wanted = recorded(32, family)
    types = {name: list(abi.fields(family, name)) for name in STRUCTS if list(abi.fields(family, name))}

    found = {}
    for name, fields in types.items():
        if (name, "sizeof") not in wanted:
            continue
        end = 0
        for field, kind in fields:
            size, alignment = narrow(kind, types)
            end = -(-end // alignment) * alignment
            if field != "value":
                found[name, field] = (end, size)
            else:
                found |= {(name, member): (end, narrow(member_kind, types)[0]) for member, member_kind in types[kind]}
            end += size
        found[name, "sizeof"] = narrow(name, types)

    assert found == {key: (place.offset, place.size) for key, place in wanted.items()}


def test_each_family_has_the_functions_of_its_header_once() -> None:
    common = {
        "rkllm_init",
        "rkllm_load_lora",
        "rkllm_load_prompt_cache",
        "rkllm_release_prompt_cache",
        "rkllm_destroy",
        "rkllm_run",
        "rkllm_run_async",
        "rkllm_abort",
        "rkllm_is_running",
    }
    second = {"rkllm_clear_kv_cache", "rkllm_set_chat_template"}
    third = {"rkllm_get_kv_cache_size", "rkllm_set_function_tools", "rkllm_set_cross_attn_params"}
    wanted = {"A": common, "B": common | second, "C": common | second | third, "D": common | second | third}

    for family in FAMILIES:
        names = [name for name, _, families in FUNCTIONS if family in families]
        assert len(names) == len(set(names))
        assert set(names) == wanted[family] == abi.abi(family).functions.keys()


def test_arguments_are_those_of_the_family() -> None:
    lengths = {family: len(abi.abi(family).functions["rkllm_clear_kv_cache"].argtypes) for family in FAMILIES[1:]}
    last = {family: abi.abi(family).functions["rkllm_init"].argtypes[-1] for family in FAMILIES}

    assert lengths == {"B": 2, "C": 4, "D": 4}
    assert all(last[family]._restype_ is ctypes.c_int for family in FAMILIES[:3])
    assert last["D"]._type_.__name__ == "RKLLMCallback"


def test_every_function_is_checked_but_the_one_that_says_neither_success_nor_failure() -> None:
    for family in FAMILIES:
        unchecked = {name for name, signature in abi.abi(family).functions.items() if signature.check is None}

        assert unchecked == {"rkllm_is_running"}


def test_a_failure_is_raised_with_function_and_code() -> None:
    check = abi.abi("C").functions["rkllm_run"].check
    assert check is not None

    assert check(0, None, ()) == 0
    with pytest.raises(abi.Refused, match="rkllm_run returned -1"):
        check(-1, None, ())


@pytest.mark.parametrize("bits", [64, 32])
def test_what_a_default_looks_like_tells_the_family(bits: int) -> None:
    found = {}
    for family in FAMILIES:
        places = recorded(bits, family)
        extend = places["RKLLMParam", "extend_param"].offset
        whole = abi.AnyParam()
        values: dict[int, tuple[float, Any]] = {
            places["RKLLMParam", "top_p"].offset: (0.9, ctypes.c_float),
            places["RKLLMParam", "temperature"].offset: (0.8, ctypes.c_float),
        }
        if family != "A":
            values[places["RKLLMParam", "n_keep"].offset] = (-1, ctypes.c_int32)
            values[extend + places["RKLLMExtendParam", "enabled_cpus_num"].offset] = (4, ctypes.c_int8)
        if family in "CD":
            values[extend + places["RKLLMExtendParam", "n_batch"].offset] = (1, ctypes.c_uint8)
        for offset, (value, kind) in values.items():
            kind.from_buffer(whole, offset).value = value
        found[family] = abi.families_of_default(whole, pointer=bits // 8)

    assert found == {"A": "A", "B": "BC", "C": "BC", "D": "D"}


def test_importing_the_tables_and_the_worker_loads_nothing_heavy() -> None:
    program = (
        "import sys; import appliance.embedding.engines.rkllm.worker;"
        "print([name for name in ('numpy', 'pydantic', 'elftools', 'structlog', 'tokenizers') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"


def header_family(header: Path) -> Family:
    text = header.read_text(encoding="utf-8", errors="replace")
    marks: list[tuple[Family, str]] = [
        ("D", "RKLLMCallback"),
        ("C", "rkllm_get_kv_cache_size"),
        ("B", "rkllm_set_chat_template"),
    ]
    return next((family for family, mark in marks if mark in text), "A")


@pytest.mark.skipif("RKLLM_HEADER" not in os.environ, reason="RKLLM_HEADER names no rkllm.h to compare with")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_a_header_as_compiled_says_the_same(tmp_path: Path) -> None:
    header = Path(os.environ["RKLLM_HEADER"])
    family = header_family(header)
    older = family == "B" and "n_image;" not in header.read_text(encoding="utf-8", errors="replace")
    wanted = recorded(64, "B-1.2.0" if older else family)
    lines = []
    for (struct, field), place in wanted.items():
        if field == "sizeof":
            lines.append(f'std::printf("{struct} sizeof - %zu %zu\\n", sizeof({struct}), alignof({struct}));')
        else:
            member = f"std::declval<{struct}&>().{field}"
            if place.kind == "struct" and "." not in field and struct == "RKLLMMultiModalInput":
                lines.append(
                    f'std::printf("{struct} {field} struct %zu %zu\\n", offsetof({struct}, {field}), sizeof({member}));'
                )
                continue
            lines.append(
                f'std::printf("{struct} {field} %s %zu %zu\\n", kind<std::remove_reference_t<decltype(({member}))>>(),'
                f" offsetof({struct}, {field}), sizeof({member}));"
            )
    source = tmp_path / "layout.cpp"
    source.write_text(
        "#include <cstddef>\n#include <cstdint>\n#include <cstdio>\n#include <type_traits>\n#include <utility>\n"
        # until 1.2.2 the struct was called MultiModel
        "#define RKLLMMultiModelInput RKLLMMultiModalInput\n"
        f'#include "{header}"\n'
        "template <typename T> const char *kind() {\n"
        ' if (std::is_same_v<T, bool>) return "bool"; if (std::is_enum_v<T>) return "enum";\n'
        ' if (std::is_pointer_v<T>) return "pointer"; if (std::is_floating_point_v<T>) return "float";\n'
        ' if (std::is_array_v<T>) return "bytes"; if (std::is_class_v<T>) return "struct";\n'
        ' return std::is_signed_v<T> ? "signed" : "unsigned"; }\n'
        "int main() {\n" + "\n".join(lines) + "\n}\n"
    )
    program = tmp_path / "layout"
    subprocess.run(["g++", "-std=c++17", "-w", "-o", program, source], check=True)
    output = subprocess.run([program], capture_output=True, text=True, check=True).stdout

    found = {}
    for line in output.splitlines():
        struct, field, kind, offset, size = line.split()
        found[struct, field] = Place(kind, int(offset), int(size))
    assert found == wanted
