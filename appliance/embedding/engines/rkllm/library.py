"""Which librkllmrt.so, and of which ABI family, before any struct crosses the border: the file is read, never loaded.

The runtime has no version function, and structs laid out for another family corrupt memory instead of failing. So the
family is known from the file alone (its hash, its version string, the symbols it exports), or the file is refused.
The four families are those of the released headers: A is 1.1.0 to 1.1.4, B is 1.2.0 and 1.2.1b1, C is 1.2.1 to 1.2.3,
D is 1.3.0.
"""

import hashlib
import os
import platform
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Final

from appliance.embedding.engines.rkllm.abi import Family
from appliance.errors import EngineUnavailable

NAME: Final = "librkllmrt.so"

VARIABLE: Final = "RKLLM_LIBRARY"
"""Environment variable: the file, or the folder that holds it."""

FOLDERS: Final = ("/usr/lib", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/local/lib")
"""Where boards' images and Rockchip's own instructions put it."""

LARGEST: Final = 64 * 2**20
"""Bytes read of one file; the releases have up to 8 MB."""

RELEASES: Final[Mapping[str, str]] = {
    "66dfdc7c25cdca9ccf9930798118e17abf7592ff": "1.1.0",
    "bfca051375287d0f5aa754a7b8681b4ede52e259": "1.1.1",
    "e8f4afc38c7394beeff83003dbc772412f649a44": "1.1.2",
    "68e79327e82f675413956be615f48c62ccd0f16e": "1.1.3",
    "3bb8cb6172c4c06e1c622c8f8c579888378784f4": "1.1.4",
    "d45ee9b8dcb9ef27d7dd875ce3be3d5e6dfb654d": "1.2.0",
    "db041c01bba5e0e8f624bb2ff50d48825dde1bfc": "1.2.1b1",
    "6b9439d59f2fe4bb8ef5ee2b09c102f1bf993da9": "1.2.1",
    "8ed9cca16f8d5ad8f7cdd7d393de6561182b3395": "1.2.2",
    "0084abc34ab43359cfa9fd5d4c92ece34127dbd0": "1.2.3",
    "34167b32f99cb7ab19e21fb579fb750d96b878f1": "1.3.0",
    "7025f35825e04ad75d839d10392e3c02cc88e57a": "1.2.1",
    "d5953fdad6e60521f1dc696f6d638425c93ba08d": "1.2.2",
    "fe1ca6849603a770c54f82d26b826a120c79a01a": "1.2.3",
    "17c9063b46168c4e7d093d6fedb097874f92d076": "1.3.0",
}
"""Git's blob hash of each released file, for 64-bit ARM, then for 32-bit ARM: `git ls-tree` of airockchip/rknn-llm."""

_FAMILIES: Final[Mapping[str, Family]] = {
    "1.1.0": "A",
    "1.1.1": "A",
    "1.1.2": "A",
    "1.1.3": "A",
    "1.1.4": "A",
    "1.2.0": "B",
    "1.2.1b1": "B",
    "1.2.1": "C",
    "1.2.2": "C",
    "1.2.3": "C",
    "1.3.0": "D",
}

_VERSION: Final = re.compile(
    rb"RKLLM SDK \(version: ([0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}[A-Za-z0-9]{0,16})([^)\0]{0,200})"
)
"""`RKLLM SDK (version: 1.2.3 | target: Linux | build: …)`, as it stands in the releases' files."""

_NEEDED: Final = frozenset({"rkllm_createDefaultParam", "rkllm_init", "rkllm_run", "rkllm_abort", "rkllm_destroy"})
_TELLING: Final = frozenset({"rkllm_load_lora", "rkllm_set_chat_template", "rkllm_get_kv_cache_size"})
"""Not in 1.0.x, new in family B, new in family C."""

_MACHINES: Final[Mapping[int, str]] = {183: "aarch64", 62: "x86_64", 40: "arm"}
"""`e_machine` of an ELF file."""

_SECTIONS: Final = 1000
_SYMBOLS: Final = 2**18
"""More than any library has: what claims more is not read on."""

_WIDE: Final = 64

_KINDS: Final = {"aarch64": "64-bit ARM", "x86_64": "x86-64", "arm": "32-bit ARM"}

_ANEW: Final = f"take {NAME} from Rockchip's rknn-llm, rkllm-runtime/Linux/librkllm_api"


@dataclass(frozen=True, slots=True)
class Library:
    """A file that may be loaded, and how to speak to it.

    Attributes:
        path: the file.
        version: "1.2.3"; "" where it is not known.
        family: the ABI's.
        machine: "aarch64", "x86_64" or "arm".
        evidence: how the family is known, for a person.
        simulated: it is no NPU's but stands in for one.
        warning: what a person should know before trusting it; "" where there is nothing.
    """

    path: Path
    version: str
    family: Family
    machine: str
    evidence: tuple[str, ...]
    simulated: bool
    warning: str = ""


def candidates(
    *, setting: Path | None, model_folder: Path | None, environment: Mapping[str, str], root: Path = Path("/")
) -> list[Path]:
    """The files there are, in the order they are tried, each once.

    Args:
        setting: the setting `npu_library`, a file or the folder that holds it; where it is given, it alone counts.
        model_folder: the folder of the model's own files.
        environment: the process's.
        root: where `/` of the machine is.
    """
    found = _found(setting=setting, model_folder=model_folder, environment=environment, root=root)
    return [path for path, _ in found]


def choose(
    *,
    setting: Path | None,
    model_folder: Path | None,
    environment: Mapping[str, str],
    root: Path = Path("/"),
    family: Family | None = None,
    machine: str | None = None,
) -> Library:
    """The first of `candidates` that can be used. Arguments as there and as `identify` has them.

    Raises:
        EngineUnavailable: none can; says where it was looked, and what is wrong with each file.
    """
    refused = []
    for path, place in _found(setting=setting, model_folder=model_folder, environment=environment, root=root):
        try:
            return identify(path, family=family, machine=machine)
        except EngineUnavailable as error:
            refused.append(f"{place}: {error.message}")
    if refused:
        raise EngineUnavailable("; ".join([f"no {NAME} can be used", *refused]))
    places = dict.fromkeys(
        place for _, place in _places(setting=setting, model_folder=model_folder, environment=environment)
    )
    raise EngineUnavailable(
        f"there is no {NAME}; looked at: {', '.join(places)}. For 64-bit ARM {_ANEW}/aarch64, put it into /usr/lib or"
        " name it in the setting npu_library"
    )


def identify(path: Path, *, family: Family | None = None, machine: str | None = None) -> Library:
    """What a file is, without loading it.

    Read whole into memory, not mapped: a mapped file that shrinks meanwhile ends the process.

    Args:
        path: the file.
        family: the setting `npu_abi`; wins over what the file says, which is then a warning.
        machine: what this process runs on, as `platform.machine` says it; looked up where left out.

    Raises:
        EngineUnavailable: it cannot be read or is damaged, is no librkllmrt or one for another machine, or its family
            is not known for sure. The message names the file without its folder.
    """
    content = _content(path)
    built, symbols = _elf(path.name, content)
    here = _plain(machine) if machine is not None else running_on()
    if built != here:
        where = {"aarch64": f": {_ANEW}/aarch64", "arm": f": {_ANEW}/armhf"}.get(here, "")
        raise EngineUnavailable(
            f"{path.name} is for {_KINDS.get(built, built)}, this Python is for {_KINDS.get(here, here)}{where}"
        )
    stated, target = _stated(path.name, content)
    release = RELEASES.get(blob_hash(content), "")
    if stated.startswith("1.0."):
        raise EngineUnavailable(
            f"{path.name} is version {stated}, which has another API and another model format: version 1.1 or newer is"
            " needed, and models converted by rkllm-toolkit 1.1 or newer"
        )
    if lacking := sorted(_NEEDED - symbols):
        raise EngineUnavailable(f"{path.name} is no {NAME}: it does not have {', '.join(lacking)}; {_ANEW}")
    if target == "Android":
        raise EngineUnavailable(f"{path.name} is built for Android: {_ANEW}/aarch64")
    evidence = [f"version string {stated}"] if stated else []
    evidence += [f"file hash of release {release}"] if release else []
    library = Library(
        path,
        version=release or stated,  # the hash is of one release; a beta's string may name the release it became
        family="A",
        machine=built,
        evidence=(*evidence, "exported symbols"),
        simulated=target == "Simulated",
    )
    return _overruled(library, family, symbols) if family else _known(library, symbols)


def blob_hash(content: bytes) -> str:
    """What `git hash-object` says of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _known(library: Library, symbols: frozenset[str]) -> Library:
    """The library with the family that version and symbols agree on."""
    name, version, fitting = library.path.name, library.version, _fitting(symbols)
    advice = "set npu_abi to A (1.1.x), B (1.2.0), C (1.2.1 to 1.2.3) or D (1.3.x) if you know that it speaks that one"
    if not version:
        if "rkllm_load_lora" not in symbols:
            raise EngineUnavailable(f"{name} has no version and looks like 1.0.x: version 1.1 or newer is needed")
        if len(fitting) > 1:
            raise EngineUnavailable(
                f"{name} has no version, and its symbols fit 1.2.1 to 1.2.3 (C) as well as 1.3.x (D), which differ in"
                " memory: set npu_abi to C or D if you know which it is, or use a released file"
            )
        return replace(library, family=fitting[0])
    family, warning = _FAMILIES.get(version), ""
    if family is None and version.startswith("1.3."):
        family, warning = "D", f"{version} is not a version that was checked; it is spoken to as 1.3.0"
    if family is None:
        raise EngineUnavailable(
            f"{name} is version {version}, which is not known here: use 1.2.3 or 1.3.0, or {advice}"
        )
    if family not in fitting:
        raise EngineUnavailable(
            f"{name} says that it is version {version} (family {family}), but its symbols are those of family"
            f" {' or '.join(fitting)}: use a released file, or {advice}"
        )
    return replace(library, family=family, warning=warning)


def _overruled(library: Library, family: Family, symbols: frozenset[str]) -> Library:
    """The library with the family that the setting names, and a warning where the file says something else."""
    fitting: tuple[Family, ...] = _fitting(symbols)
    said = _FAMILIES.get(library.version)
    if said not in {None, family}:
        warning = f"npu_abi is {family}, but version {library.version} is of family {said}"
    elif family not in fitting:
        warning = f"npu_abi is {family}, but the symbols are those of family {' or '.join(fitting)}"
    else:
        warning = ""
    return replace(library, family=family, evidence=("setting",), warning=warning)


def _fitting(symbols: frozenset[str]) -> tuple[Family, ...]:
    """Families that export these; C and D have the same names. From the headers of 1.1.0 to 1.3.0."""
    if "rkllm_set_chat_template" not in symbols:
        return ("A",)
    return ("C", "D") if "rkllm_get_kv_cache_size" in symbols else ("B",)


def _stated(name: str, content: bytes) -> tuple[str, str]:
    """Version and target in the file's version string; empty where it has none."""
    found = {match[1].decode(): match[2].decode(errors="replace") for match in _VERSION.finditer(content)}
    if len(found) > 1:
        raise EngineUnavailable(f"{name} holds several versions: {', '.join(sorted(found)[:5])}; {_ANEW}")
    for version, rest in found.items():
        target = re.search(r"target: (\w+)", rest)
        return version, target[1] if target else ""
    return "", ""


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise EngineUnavailable(f"{path.name} is not there or no file")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise EngineUnavailable(f"{path.name} cannot be read: {error.strerror}") from error
    if len(content) > LARGEST:
        raise EngineUnavailable(f"{path.name} is larger than {LARGEST // 2**20} MiB, so it is no {NAME}; {_ANEW}")
    return content


def _elf(name: str, content: bytes) -> tuple[str, frozenset[str]]:
    """Machine, and those of the symbols we ask for that are exported."""
    if not content.startswith(b"\x7fELF"):
        raise EngineUnavailable(f"{name} is no shared library but something else, perhaps a web page; {_ANEW}")
    try:
        machine, wide, entries, strings = _tables(content)
    except Exception as error:  # pyelftools raises whatever it stumbles over
        raise EngineUnavailable(f"{name} is damaged or cut short: download it again; {_ANEW}") from error
    return machine, frozenset(_exported(entries, strings, wide=wide))


def _tables(content: bytes) -> tuple[str, bool, bytes, bytes]:
    """Machine, whether it is a 64-bit file, dynamic symbols, their names.

    pyelftools reads the headers alone: what it would follow further, names without an end for one, can take for ever in
    a file that was made for that.
    """
    from elftools.common.utils import struct_parse
    from elftools.elf.elffile import ELFFile

    stream = BytesIO(content)
    elf = ELFFile(stream)
    header = elf.header
    count, size, start = header["e_shnum"], header["e_shentsize"], header["e_shoff"]
    if (
        not elf.little_endian
        or header["e_type"] != "ET_DYN"
        or count > _SECTIONS
        or start + count * size > len(content)
    ):
        raise ValueError("no whole shared library")
    sections = [struct_parse(elf.structs.Elf_Shdr, stream, start + index * size) for index in range(count)]
    table = next(section for section in sections if section["sh_type"] == "SHT_DYNSYM")
    entries, strings = (
        content[part["sh_offset"] : part["sh_offset"] + part["sh_size"]] for part in (table, sections[table["sh_link"]])
    )
    (number,) = struct.unpack_from("<H", content, 18)
    return _MACHINES.get(number, str(header["e_machine"])), elf.elfclass == _WIDE, entries, strings


def _exported(entries: bytes, strings: bytes, *, wide: bool) -> Iterator[str]:
    """Names of `_NEEDED` and `_TELLING` that a dynamic symbol table defines."""
    wanted = {name.encode() + b"\0": name for name in _NEEDED | _TELLING}
    longest = max(map(len, wanted))
    form = struct.Struct("<IBBHQQ" if wide else "<IIIBBH")  # Elf64_Sym, Elf32_Sym
    count = min(len(entries) // form.size, _SYMBOLS)
    for fields in form.iter_unpack(entries[: count * form.size]):
        place, section = fields[0], fields[3 if wide else 5]
        end = strings.find(b"\0", place, place + longest) + 1
        if section and end and (name := wanted.get(strings[place:end])):
            yield name


def _places(
    *, setting: Path | None, model_folder: Path | None, environment: Mapping[str, str]
) -> Iterator[tuple[str | Path, str]]:
    """Files and folders to look at: as text where they are below the root, and what to call them before a caller."""
    if setting is not None:
        yield setting, "setting npu_library"
        return
    if named := environment.get(VARIABLE):
        yield named, VARIABLE
    for entry in environment.get("LD_LIBRARY_PATH", "").split(":"):
        if entry.startswith("/"):
            yield entry, "LD_LIBRARY_PATH"
    for folder in FOLDERS:
        yield folder, folder
    if model_folder is not None:
        yield model_folder, "beside the model"


def _found(
    *, setting: Path | None, model_folder: Path | None, environment: Mapping[str, str], root: Path
) -> Iterator[tuple[Path, str]]:
    seen = set()
    for place, label in _places(setting=setting, model_folder=model_folder, environment=environment):
        path = root / place.lstrip("/") if isinstance(place, str) else place
        try:
            path = path / NAME if path.is_dir() else path
            if path.is_file() and (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                yield path, label
        except (OSError, ValueError):  # a folder that may not be entered, a name that cannot be one
            continue


def _plain(machine: str) -> str:
    """A machine's name as `uname` says it, as the one of `_MACHINES`."""
    name = machine.lower()
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(name, "arm" if name.startswith("armv") else name)


def running_on() -> str:
    """What this Python is for: `platform.machine`, but "arm" for a 32-bit Python under a 64-bit kernel."""
    name = _plain(platform.machine())
    return "arm" if name == "aarch64" and sys.maxsize < 2**32 else name
