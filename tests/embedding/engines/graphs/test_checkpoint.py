import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from appliance.embedding.engines.graphs.checkpoint import Checkpoint
from appliance.errors import EngineUnavailable

STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
}

ORDERED = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if value < 1 << 31 else b"\x8a\x08" + struct.pack("<q", value)


def numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def reference(kind: str, key: str, size: int) -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(size) + b"tQ"


def tensor(storage: bytes, shape: Sequence[int], *, first: int = 0, strides: Sequence[int] | None = None) -> bytes:
    """As `torch.save` writes it."""
    if strides is None:
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(first) + numbers(shape) + numbers(strides)
    return call + b"\x89" + ORDERED + b"tR"


def mapping(items: Mapping[str, bytes]) -> bytes:
    return b"\x80\x02" + ORDERED + b"(" + b"".join(text(name) + value for name, value in items.items()) + b"u."


def archive(
    path: Path,
    described: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    order: bytes = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", described)
        file.writestr("archive/byteorder", order)
        for key, content in (storages or {}).items():
            file.writestr(f"archive/data/{key}", content)
    return path


def saved(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Path:
    items, storages = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        storages[str(key)] = array.tobytes()
        items[name] = tensor(reference(STORAGES[array.dtype], str(key), array.size), array.shape)
    return archive(path, mapping(items), storages)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pytorch_model.bin"


def opened(path: Path) -> Checkpoint:
    return Checkpoint(path, "pytorch_model.bin")


def test_tensors_come_back_in_every_type_and_shape(path: Path) -> None:
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "a.weight": random.random((3, 4), np.float32),
        "b": random.random(5).astype(np.float16),
        "c": random.random((2, 2)).astype(ml_dtypes.bfloat16),
        "position_ids": np.arange(7),
        "scale": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }

    checkpoint = opened(saved(path, arrays))

    types = {"a.weight": "F32", "b": "F16", "c": "BF16", "position_ids": "I64", "scale": "F32", "empty": "F32"}
    assert {name: header.dtype for name, header in checkpoint.tensors.items()} == types
    for name, array in arrays.items():
        assert checkpoint.tensors[name].shape == array.shape
        assert np.array_equal(checkpoint.read(name, slice(None)), array)
    assert np.array_equal(checkpoint.read("a.weight", slice(1, 3)), arrays["a.weight"][1:3])


def test_a_view_of_a_shared_storage_is_read_as_torch_would(path: Path) -> None:
    whole = np.arange(12, dtype=np.float32)
    storage = reference("FloatStorage", "0", 12)
    views = {
        "transposed": tensor(storage, [4, 3], strides=[1, 4]),
        "tail": tensor(storage, [2, 3], first=6),
    }

    checkpoint = opened(archive(path, mapping(views), {"0": whole.tobytes()}))

    assert np.array_equal(checkpoint.read("transposed", slice(None)), whole.reshape(3, 4).T)
    assert np.array_equal(checkpoint.read("tail", slice(None)), whole[6:].reshape(2, 3))


def test_the_attributes_of_a_state_dict_are_passed_over(path: Path) -> None:
    one = np.ones(1, np.float32)
    described = mapping({"a": tensor(reference("FloatStorage", "0", 1), [1])})[:-1]
    described += b"}" + text("_metadata") + ORDERED + b"sb."

    assert list(opened(archive(path, described, {"0": one.tobytes()})).tensors) == ["a"]


class Runs:
    """What runs a command where a pickle is loaded as Python loads it."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


BOMB = b"\x80\x02]q\x00" + b"(" + b"h\x00" * 1000 + b"e."


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (pickle.dumps({"a": Runs()}), "only tensors are read"),
        (pickle.dumps({"a": Runs()}, protocol=0), "asks for"),
        (b"cbuiltins\neval\n" + text("1+1") + b"\x85R.", "asks for 'builtins.eval'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "asks for 'os.system'"),
        (b"ctorch\nload\n" + text("x") + b"\x85R.", "asks for 'torch.load'"),
        (b"ctorch._utils\n_rebuild_tensor\n.", "only tensors are read"),
        (b"ccollections\nOrderedDict\n" + text("x") + b"\x85R.", "calls something"),
        (b"ctorch\nFloatStorage\n)R.", "calls something"),
        (b"ccollections\nOrderedDict\n}b.", "sets attributes"),
        (b"icollections\nOrderedDict\n.", "asks for INST"),
        (b"(ccollections\nOrderedDict\no.", "asks for OBJ"),
        (b"ccollections\nOrderedDict\n)\x81.", "asks for NEWOBJ"),
        (b"\x80\x02\x82\x01.", "asks for EXT1"),
        (b"Pstorage\n.", "asks for PERSID"),
        (b"K\x01Q.", "something else than a storage"),
        (b"(" + text("module") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(1) + b"tQ.", "storage"),
        (b"]r\xff\xff\xff\xff.", "something else than tensors by name"),
        (b"\x8a\xff.", "damaged"),
        (b"X\xff\xff\xff\x7f.", "damaged"),
        (b"\x8e" + b"\xff" * 8 + b".", "damaged"),
        (b"h\x07.", "damaged"),
        (b"t.", "damaged"),
        (b"R.", "damaged"),
        (b".", "damaged"),
        (b"", "damaged"),
        (b"}", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"\x80\x02}K\x01K\x02s.", "something else than tensors by name"),
        (b"(" * 20_000 + b"t" * 20_000 + b".", "something else"),
        (BOMB, "something else than tensors by name"),
        (b"}" + text("a") + b")" + b"\x85" * 20_000 + b"s.", "no tensors by name"),
        (pickle.dumps([1, 2, 3]), "asks for|something else"),
        (pickle.dumps({"epoch": 3}), "no tensors by name"),
    ],
)
def test_a_pickle_that_asks_for_more_than_tensors_is_refused_and_runs_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, described: bytes, message: str
) -> None:
    monkeypatch.chdir(path.parent)

    with pytest.raises(EngineUnavailable, match=message) as refused:
        opened(archive(path, described))

    assert "save_file" in str(refused.value)
    assert not Path("ran").exists()  # where the pickle would have left its mark


FOUR = np.zeros(4, np.float32).tobytes()


@pytest.mark.parametrize(
    ("value", "content"),
    [
        (tensor(reference("FloatStorage", "0", 4), [5]), FOUR),
        (tensor(reference("FloatStorage", "0", 4), [4], first=1), FOUR),
        (tensor(reference("FloatStorage", "0", 4), [2, 2], strides=[3, 1]), FOUR),
        (tensor(reference("FloatStorage", "0", 8), [8]), FOUR),
        (tensor(reference("FloatStorage", "9", 4), [4]), FOUR),
        (tensor(reference("FloatStorage", "0", 1 << 62), [1 << 60, 4]), FOUR),
        (tensor(reference("FloatStorage", "0", 4), [1 << 20, 1 << 8], strides=[0, 0]), FOUR),
    ],
    ids=["longer", "later", "wider", "storage", "no storage", "vast", "repeated"],
)
def test_a_tensor_outside_the_file_is_refused(path: Path, value: bytes, content: bytes) -> None:
    with pytest.raises(EngineUnavailable, match="lies outside the file"):
        opened(archive(path, mapping({"a": value}), {"0": content}))


@pytest.mark.parametrize(
    "value",
    [
        tensor(reference("FloatStorage", "0", 4), [4], first=-1),
        tensor(reference("FloatStorage", "0", 4), [-4]),
        tensor(reference("FloatStorage", "0", 4), [4], strides=[-1]),
        tensor(reference("FloatStorage", "0", 4), [1] * 9),
        tensor(reference("FloatStorage", "0", 4), [2, 2], strides=[1]),
        tensor(reference("FloatStorage", "0", -4), [4]),
        tensor(reference("ComplexStorage", "0", 4), [4]),
    ],
)
def test_numbers_no_tensor_has_are_refused(path: Path, value: bytes) -> None:
    with pytest.raises(EngineUnavailable, match=r"only tensors are read|something else than a storage"):
        opened(archive(path, mapping({"a": value}), {"0": FOUR}))


def test_the_old_format_is_refused_and_told_how_to_convert(path: Path) -> None:
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2))

    with pytest.raises(EngineUnavailable, match=r"no checkpoint of PyTorch 1\.6 or later; convert it to safetensors"):
        opened(path)


def renamed(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/weights.pkl", b"")


def cut(path: Path) -> None:
    saved(path, {"a": np.ones(5000, np.float32)})
    path.write_bytes(path.read_bytes()[:-50])


def without_a_middle(path: Path) -> None:
    """An archive whose table of contents tells of more than there is."""
    saved(path, {"a": np.ones(5000, np.float32)})
    content = path.read_bytes()
    table = content.index(b"PK\x01\x02")
    path.write_bytes(content[:1000] + content[table:])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04" + b"\0" * 100),
        renamed,
        cut,
        without_a_middle,
        lambda path: archive(path, mapping({}), compression=zipfile.ZIP_DEFLATED),
        lambda path: archive(path, mapping({}), order=b"big"),
        lambda path: archive(path, b"\0" * ((2 << 20) + 1)),
        lambda path: archive(path, b".", {f"{n}": b"" for n in range(1 << 13)}),
    ],
    ids=["empty", "no zip", "no pickle", "cut", "short", "compressed", "big-endian", "large pickle", "many entries"],
)
def test_a_damaged_or_strange_archive_is_refused(path: Path, damage: Callable[[Path], Any]) -> None:
    damage(path)

    with pytest.raises(EngineUnavailable, match=r"pytorch_model\.bin"):
        opened(path)
