"""Reads a model's tensors by name: one at a time, their shape and type checked, never more than is asked for.

From safetensors, in one file or several, or from checkpoints that PyTorch saved (`checkpoint`).
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from appliance.embedding.engines.graphs.checkpoint import Checkpoint, Header
from appliance.errors import EngineUnavailable

Floats: TypeAlias = npt.NDArray[np.float32]

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""Files that hold all weights; the first that a card lists is read."""

INDEX = tuple(f"{name}.index.json" for name in WHOLE)
"""Files that say which of several files holds which weights."""

_TYPES = frozenset({"F32", "F16", "BF16"})

_MAX_INDEX = 16 << 20


class _File(Protocol):
    @property
    def tensors(self) -> Mapping[str, Header]: ...
    def read(self, name: str, rows: slice) -> npt.NDArray[Any]: ...
    def close(self) -> None: ...


class _Safetensors:
    """One safetensors file. SafetensorError where it is none."""

    def __init__(self, path: Path) -> None:
        self._open = ExitStack()
        self._file = self._open.enter_context(safe_open(path, framework="numpy"))
        self._slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118  no dict
        self.tensors = {name: Header(part.get_dtype(), tuple(part.get_shape())) for name, part in self._slices.items()}

    def read(self, name: str, rows: slice) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = self._slices[name][rows] if self.tensors[name].shape else self._file.get_tensor(name)
        return array

    def close(self) -> None:
        self._open.close()


class Weights:
    """The weights of one model. A context manager; one thread at a time.

    Args:
        files: the model's files, by their names on the card. Of several that hold weights, safetensors come first.

    Raises:
        EngineUnavailable: no weights, a damaged file, or one that would have to run code; the message names the file.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._opened: list[_File] = []
        self._holders: dict[str, _File] = {}
        self._prefix = ""
        self.name = sources(files)[0]
        """The file that problems are told of."""
        try:
            for name, only in _parts(files, self.name):
                file = self._open(name, files)
                wanted = file.tensors.keys() & only if only is not None else file.tensors
                self._holders.update(dict.fromkeys(wanted, file))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files. Safe to call twice."""
        for file in self._opened:
            file.close()
        self._opened.clear()

    def anchor(self, name: str) -> bool:
        """Find the tensor whose name ends with `name`; what stands before it is from now on put before every name.

        Names that the file has without it are taken as they are. Returns whether there is one.
        """
        found = [stored for stored in self._holders if stored == name or stored.endswith(f".{name}")]
        if found:
            self._prefix = min(found, key=len).removesuffix(name)
        return bool(found)

    def __contains__(self, name: str) -> bool:
        return self._stored(name) in self._holders

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor; empty where there is none."""
        stored = self._stored(name)
        return self._holders[stored].tensors[stored].shape if stored in self._holders else ()

    def take(self, name: str, shape: tuple[int, ...]) -> Floats:
        """A whole tensor, as float32 of its own.

        Raises:
            EngineUnavailable: it is missing, or has another shape or type, NaN or infinity.
        """
        return self._read(self._checked(name, shape), name, slice(None))

    def row(self, name: str, shape: tuple[int, int], place: int) -> Floats:
        """One row of a table, (columns,). Errors as `take`."""
        row: Floats = self._read(self._checked(name, shape), name, slice(place, place + 1))[0]
        return row

    def rows(self, name: str, shape: tuple[int, ...], *, at_once: int) -> Iterator[Floats]:
        """A tensor in pieces of `at_once` rows, in order. Errors as `take`."""
        stored = self._checked(name, shape)
        for start in range(0, shape[0], at_once):
            yield self._read(stored, name, slice(start, min(start + at_once, shape[0])))

    def _stored(self, name: str) -> str:
        for stored in (self._prefix + name, self._prefix + _once(name)):
            if stored in self._holders:
                return stored
        return name

    def _checked(self, name: str, shape: tuple[int, ...]) -> str:
        stored = self._stored(name)
        if stored not in self._holders:
            raise EngineUnavailable(f"{self.name}: {name} is missing")
        found = self._holders[stored].tensors[stored]
        if found.shape != shape or found.dtype not in _TYPES:
            raise EngineUnavailable(f"{self.name}: {name} is {found.dtype} {found.shape}, not F32, F16 or BF16 {shape}")
        return stored

    def _read(self, stored: str, name: str, rows: slice) -> Floats:
        try:
            array: Floats = self._holders[stored].read(stored, rows).astype(np.float32)
        except (SafetensorError, OSError, ValueError) as error:
            raise EngineUnavailable(f"{self.name}: {name} cannot be read: {error}") from error
        if not np.isfinite(array).all():
            raise EngineUnavailable(f"{self.name}: {name} holds NaN or infinity")
        return array

    def _open(self, name: str, files: Mapping[str, Path]) -> _File:
        if name not in files:
            raise EngineUnavailable(f"{self.name} names {name}, which the card does not list")
        try:
            file: _File = _Safetensors(files[name]) if name.endswith(".safetensors") else Checkpoint(files[name], name)
        except SafetensorError as error:
            raise EngineUnavailable(f"{name} cannot be used: {error}") from error
        self._opened.append(file)
        return file


def _once(name: str) -> str:
    """What a tensor of a norm is called in checkpoints that came from TensorFlow, as BERT's own."""
    for now, then in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        name = name.replace(now, then)
    return name


def sources(files: Mapping[str, Path]) -> list[str]:
    """Names of the files that a model's weights are read from, the one that leads to the others first.

    Raises:
        EngineUnavailable: there is none.
    """
    for whole, index in zip(WHOLE, INDEX, strict=True):
        if whole in files:
            return [whole]
        if index in files:
            return [index, *sorted(set(_index(files[index], index).values()))]
    known = (*WHOLE, *INDEX)
    if len(files) == 1 and not next(iter(files)).endswith(".json"):
        return list(files)
    raise EngineUnavailable(f"the card lists none of {', '.join(known)}")


def _parts(files: Mapping[str, Path], name: str) -> Iterator[tuple[str, set[str] | None]]:
    """Each file that holds weights, and which ones; None for all that are in it."""
    if name not in INDEX:
        yield name, None
        return
    where = _index(files[name], name)
    for part in sorted(set(where.values())):
        yield part, {tensor for tensor, holder in where.items() if holder == part}


def _index(path: Path, name: str) -> dict[str, str]:
    """Of each tensor the file that holds it, which must lie beside the index."""
    try:
        if path.stat().st_size > _MAX_INDEX:
            raise ValueError  # noqa: TRY301  told as any other damage
        where = json.loads(path.read_bytes())["weight_map"]
        if not where or not all(
            isinstance(part, str) and part and PurePosixPath(part).name == part for part in where.values()
        ):
            raise ValueError  # noqa: TRY301
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EngineUnavailable(f"{name} is no index of weights") from error
    result: dict[str, str] = where
    return result
