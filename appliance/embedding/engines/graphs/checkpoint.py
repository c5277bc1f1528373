"""Reads the tensors of a checkpoint that PyTorch saved, without running what a pickle can make Python run.

A checkpoint is a ZIP archive: `data.pkl` says which tensors there are, `data/0`, `data/1`, … hold their numbers. The
pickle is followed step by step by a machine of our own that knows the few instructions a `state_dict` needs and calls
nothing: what it does not know, it refuses.
"""

import pickletools
import zipfile
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from appliance.errors import EngineUnavailable

_MAX_PICKLE = 2 << 20
"""Bytes of `data.pkl`; a model of a thousand tensors has some 200 KiB."""

_MAX_ENTRIES = 1 << 13
"""Entries of the archive."""

_MAX_DIRECTORY = 2 << 20
"""Bytes of the archive's table of contents, which is read before its entries can be counted."""

_MAX_AXES = 8

_STORAGES: Mapping[str, tuple[str, Any]] = {
    "torch.FloatStorage": ("F32", np.float32),
    "torch.HalfStorage": ("F16", np.float16),
    "torch.BFloat16Storage": ("BF16", ml_dtypes.bfloat16),
    "torch.DoubleStorage": ("F64", np.float64),
    "torch.LongStorage": ("I64", np.int64),
    "torch.IntStorage": ("I32", np.int32),
    "torch.ShortStorage": ("I16", np.int16),
    "torch.CharStorage": ("I8", np.int8),
    "torch.ByteStorage": ("U8", np.uint8),
    "torch.BoolStorage": ("BOOL", np.bool_),
}
"""Storages by their class in a pickle -> type as safetensors names it, and as numpy does."""

_REBUILD = "torch._utils._rebuild_tensor_v2"
_DICT = "collections.OrderedDict"
_KNOWN = {*_STORAGES, _REBUILD, _DICT}

_HOW = (
    'convert it to safetensors: python -c "import torch, safetensors.torch as s; s.save_file({n: t.clone()'
    ".contiguous() for n, t in torch.load('pytorch_model.bin', weights_only=True).items()}, 'model.safetensors')\""
)


class Header(NamedTuple):
    """How a tensor lies in the file: the name of its type as safetensors has it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


class _Class(NamedTuple):
    """A name that the pickle refers to."""

    name: str


class _Storage(NamedTuple):
    dtype: str
    numbers: Any  # numpy's type
    key: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers, not bytes


class Checkpoint:
    """The tensors of a `.bin` or `.pt` file.

    Args:
        path: the file.
        name: what errors call it.

    Raises:
        EngineUnavailable: no ZIP archive, or a pickle that asks for more than tensors; the message tells how to
            convert the file.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._name = name
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise EngineUnavailable(f"{name} is no checkpoint of PyTorch 1.6 or later; {_HOW}")
        try:
            self._offsets, pickle = _contents(path)
            found = _followed(pickle)
        except _RefusedError as error:
            raise EngineUnavailable(f"{name}: {error}; {_HOW}") from error
        except Exception as error:  # what zipfile raises shares no base class
            raise EngineUnavailable(f"{name} is damaged; bring the model again") from error
        self._tensors = {key: value for key, value in found.items() if isinstance(value, _Tensor)}
        if not self._tensors:
            raise EngineUnavailable(f"{name} holds no tensors by name; {_HOW}")
        self._path = path
        for key, tensor in self._tensors.items():
            self._check(key, tensor)
        self.tensors = {key: Header(tensor.storage.dtype, tensor.shape) for key, tensor in self._tensors.items()}

    def _check(self, key: str, tensor: _Tensor) -> None:
        """That every number of the tensor lies inside its storage, and the storage inside the file."""
        storage = tensor.storage
        size = self._offsets.get(storage.key, (0, -1))[1]
        last = tensor.first + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
        if storage.size * np.dtype(storage.numbers).itemsize != size or (
            0 not in tensor.shape and (last >= storage.size or prod(tensor.shape) > storage.size)
        ):
            raise EngineUnavailable(f"{self._name}: {key} lies outside the file: it is damaged; bring the model again")

    def read(self, name: str, rows: slice) -> npt.NDArray[Any]:
        """Rows of a tensor, as the file has them."""
        tensor = self._tensors[name]
        storage = tensor.storage
        offset, _ = self._offsets[storage.key]
        numbers = np.dtype(storage.numbers)
        if 0 in tensor.shape:
            return np.empty(tensor.shape, numbers)
        flat = np.memmap(self._path, numbers, mode="r", offset=offset, shape=(storage.size,))
        steps = [step * numbers.itemsize for step in tensor.strides]
        whole = np.lib.stride_tricks.as_strided(flat[tensor.first :], tensor.shape, steps, writeable=False)
        return np.array(whole[rows] if tensor.shape else whole)

    def close(self) -> None:
        """Nothing stays open."""


class _RefusedError(Exception):
    """Says why a file is not read."""


def _contents(path: Path) -> tuple[dict[str, tuple[int, int]], bytes]:
    """Of each storage, by its key, the first byte in the file and their number; and the pickle."""
    _check_directory(path)
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = archive.infolist()
        if len(entries) > _MAX_ENTRIES:
            raise _RefusedError("too many entries")
        pickles = [entry for entry in entries if entry.filename.split("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise _RefusedError("no PyTorch checkpoint: it holds no data.pkl")
        root = pickles[0].filename.removesuffix("data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise _RefusedError("its entries are compressed or encrypted, as PyTorch never does")
        if pickles[0].file_size > _MAX_PICKLE:
            raise _RefusedError("its list of tensors is too large")
        order = next((entry for entry in entries if entry.filename == f"{root}byteorder"), None)
        if order is not None and order.file_size <= 16 and archive.read(order) != b"little":  # noqa: PLR2004  a word
            raise _RefusedError("it was saved by a big-endian machine")
        size = path.stat().st_size
        offsets = {}
        for entry in entries:
            if entry.filename.startswith(f"{root}data/"):
                file.seek(entry.header_offset + 26)
                lengths = file.read(4)
                first = entry.header_offset + 30 + sum(np.frombuffer(lengths, "<u2").tolist())
                if first + entry.file_size > size:
                    raise _RefusedError("it is cut off")
                offsets[entry.filename.removeprefix(f"{root}data/")] = (first, entry.file_size)
        return offsets, archive.read(pickles[0])


def _check_directory(path: Path) -> None:
    """Refuse an archive whose table of contents is larger than a checkpoint's can be."""
    with path.open("rb") as file:
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # noqa: SLF001  the only way before it is read
    if end is None or end[5] > _MAX_DIRECTORY:
        raise _RefusedError("it is damaged or no archive")


def _followed(pickle: bytes) -> dict[str, Any]:
    """What a pickle describes, as far as it is a mapping of names to tensors."""
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(pickle):
            machine.step(instruction.name, argument)
    except _RefusedError:
        raise
    except Exception as error:  # whatever a damaged pickle brings about: it is refused
        raise _RefusedError("its list of tensors is damaged") from error
    result = machine.result
    if not isinstance(result, dict):
        raise _RefusedError("it holds something else than tensors by name")
    return {key: value for key, value in result.items() if isinstance(key, str)}


_MARK = object()

_VALUES = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT", "SHORT_BINSTRING"}
)
_NEW: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_COUNTS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """Follows a pickle with a stack, a list of what was marked to be used again, and no way to call anything."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memory: dict[int, Any] = {}
        self.result: Any = None

    def step(self, name: str, argument: Any) -> None:
        """Follow one instruction."""
        stack = self._stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name in _COUNTS:
            items = self._popped(_COUNTS[name])
            stack.append(tuple(items))
        elif name in {"BINPUT", "LONG_BINPUT", "MEMOIZE"}:
            self._memory[len(self._memory) if argument is None else argument] = stack[-1]
        elif name in {"BINGET", "LONG_BINGET"}:
            stack.append(self._memory[argument])
        elif name in {"GLOBAL", "STACK_GLOBAL"}:
            module, attribute = argument.split(" ", 1) if name == "GLOBAL" else self._popped(2)
            stack.append(_known(module, attribute))
        elif name == "STOP":
            (self.result,) = stack
        elif name not in {"PROTO", "FRAME"}:
            self._build(name)

    def _build(self, name: str) -> None:
        """The instructions that make something of what lies on the stack."""
        stack = self._stack
        match name:
            case "MARK":
                stack.append(_MARK)
            case "TUPLE":
                stack.append(tuple(self._marked()))
            case "APPENDS" | "APPEND":
                items = self._marked() if name == "APPENDS" else [stack.pop()]
                stack[-1] += items
            case "SETITEMS" | "SETITEM":
                items = self._marked() if name == "SETITEMS" else self._popped(2)
                if not all(isinstance(key, str) for key in items[::2]):
                    raise _RefusedError("it holds something else than tensors by name")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                called, arguments = self._popped(2)
                stack.append(_made(called, arguments))
            case "BUILD":  # attributes of the dictionary of tensors: versions of its modules
                state = stack.pop()
                if not (isinstance(state, dict) and isinstance(stack[-1], dict)):
                    raise _RefusedError("it sets attributes, as no list of tensors does")
            case _:
                raise _RefusedError(f"it asks for {name}, as no list of tensors does")

    def _popped(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        if len(items) < count or any(item is _MARK for item in items):
            raise _RefusedError("its list of tensors is damaged")
        del self._stack[-count:]
        return items

    def _marked(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]


def _known(module: Any, attribute: Any) -> _Class:
    if not (isinstance(module, str) and isinstance(attribute, str)) or f"{module}.{attribute}" not in _KNOWN:
        what = (
            f"{module[:40]}.{attribute[:40]}" if isinstance(module, str) and isinstance(attribute, str) else "no name"
        )
        raise _RefusedError(f"it asks for {what!r}, and only tensors are read")
    return _Class(f"{module}.{attribute}")


def _storage(reference: Any) -> _Storage:
    match reference:
        case ("storage", _Class(name), str(key), str(), int(size)) if name in _STORAGES and size >= 0:
            return _Storage(*_STORAGES[name], key, size)
    raise _RefusedError("it refers to something else than a storage")


def _made(called: Any, arguments: Any) -> Any:
    match called, arguments:
        case _Class(name), () if name == _DICT:
            return {}
        case _Class(name), (_Storage() as storage, int(first), tuple(shape), tuple(strides), *_) if (
            name == _REBUILD
            and len(shape) == len(strides) <= _MAX_AXES
            and first >= 0
            and all(type(number) is int and number >= 0 for number in (*shape, *strides))
        ):
            return _Tensor(storage, first, shape, strides)
    raise _RefusedError("it calls something, and only tensors are read")
