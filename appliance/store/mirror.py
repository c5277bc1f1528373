"""The vectors of collections that are small enough, in memory, kept in step with the database."""

from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from appliance.store.base import Matrix

Ids: TypeAlias = npt.NDArray[np.int64]

_BLOCK = 1024
"""Rows that are fetched at a time."""


class Stored(NamedTuple):
    """A collection's row in the database; `added` and `removed` grow with every change of that kind."""

    id: int
    dimensions: int
    chunks: int
    added: int
    removed: int


@dataclass(frozen=True, slots=True)
class _Held:
    """The first `len(ids)` rows of `buffer` belong to `ids`, ascending. Rows are written once; only new ones follow."""

    added: int
    removed: int
    ids: Ids
    buffer: Matrix


class Mirror:
    """Vectors by collection, the least recently used let go when `budget` bytes are passed. Any thread.

    The caller's transaction says what is true: what it returns is exactly what that transaction sees, so a search
    beside a writer finds each document whole or not at all.
    """

    def __init__(self, *, budget: int) -> None:
        self._budget = budget
        self._held: dict[int, _Held] = {}  # in the order of last use
        self._lock = Lock()

    def fits(self, stored: Stored) -> bool:
        """Whether the collection may be held at all."""
        return stored.chunks * stored.dimensions * 4 <= self._budget

    def rows(self, connection: Connection, stored: Stored) -> tuple[Ids, Matrix]:
        """Ids, ascending, and vectors (n, dimensions) of all chunks; not to be written to."""
        with self._lock:
            held = self._held.get(stored.id)
            if held is None or (held.added <= stored.added and held.removed <= stored.removed):
                held = _brought_up(connection, stored, held)
                self._held.pop(stored.id, None)
                self._held[stored.id] = held
                self._let_go()
                return held.ids, held.buffer[: len(held.ids)]
        old = _brought_up(connection, stored, None)  # the transaction began before what others have seen by now
        return old.ids, old.buffer[: len(old.ids)]

    def forget(self, collection: int) -> None:
        """Let go of a collection."""
        with self._lock:
            self._held.pop(collection, None)

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._held.clear()

    def _let_go(self) -> None:
        total = sum(held.buffer.nbytes for held in self._held.values())
        for collection in list(self._held)[:-1]:
            if total <= self._budget:
                break
            total -= self._held.pop(collection).buffer.nbytes


def _brought_up(connection: Connection, stored: Stored, held: _Held | None) -> _Held:
    """What the transaction sees, made from what was held before."""
    if held is None:
        held = _Held(0, 0, np.empty(0, np.int64), np.empty((0, stored.dimensions), np.float32))
    elif (held.added, held.removed) == (stored.added, stored.removed):
        return held
    ids, buffer = held.ids, held.buffer
    if held.removed != stored.removed and len(ids):
        there = connection.exec_driver_sql("SELECT id FROM chunk WHERE collection = ? ORDER BY id", (stored.id,))
        keep = np.isin(ids, np.fromiter((row[0] for row in there), np.int64), assume_unique=True)
        if not keep.all():
            ids, buffer = ids[keep], buffer[: len(ids)][keep]
    size = len(ids)
    last = int(ids[-1]) if size else 0
    if stored.chunks > len(buffer):
        grown = np.empty((max(stored.chunks, len(buffer) * 3 // 2), stored.dimensions), np.float32)
        grown[:size] = buffer[:size]
        buffer = grown
    new = connection.exec_driver_sql(
        "SELECT id, vector FROM chunk CROSS JOIN embedding ON chunk_id = id "
        "WHERE collection = ? AND id > ? ORDER BY id",
        (stored.id, last),
    )
    fresh = [ids]
    for block in new.partitions(_BLOCK):
        vectors = np.frombuffer(b"".join(row[1] for row in block), np.float32).reshape(-1, stored.dimensions)
        buffer[size : size + len(block)] = vectors
        fresh.append(np.array([row[0] for row in block], np.int64))
        size += len(block)
    return _Held(stored.added, stored.removed, np.concatenate(fresh), buffer)
