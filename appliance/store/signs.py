"""The signs of a collection's vectors in memory: the likeliest of a million chunks in a few milliseconds.

A vector's signs take a bit each. They are read from the tables that sqlite-vec keeps for `vec_bits_<n>`, and
searched in two steps; what is left is the caller's to score exactly:

1. by how many signs differ from the query's, 64 at a time;
2. the best of those by the product of query and signs, which weighs a sign by what the query has there.

Which signs a vector has, `store/signing.py` says; here a query is as that turns it.
"""

# ruff: noqa: S608  # table names hold numbers of ours; whatever a caller gave is bound

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from appliance.store.base import Matrix, Vector
from appliance.store.mirror import Ids, Stored
from appliance.store.passing import Filter
from appliance.store.signing import Octets, sign_bits, sign_count

Bits: TypeAlias = npt.NDArray[np.uint64]
"""(words, rows): the words of a row stand below each other, so that a comparison walks along memory."""

Rows: TypeAlias = npt.NDArray[np.int32]
Live: TypeAlias = npt.NDArray[np.bool_]
_BLOCK: Final = 65_536
"""Rows compared at a time: few enough for the steps in between to stay in a core's cache."""

_GROUP: Final = 3
"""Words whose counts are added in bytes: 3 times 64 is less than 256."""

_WIDENING: Final = 8
"""Rows taken by differing signs for each that is wanted in the end."""

_WIDEST: Final = 16_384
"""Rows taken so, at most, unless more are wanted."""

_ALL: Final = 500
"""Chunks that are all taken where no more pass; scoring so many takes two or three milliseconds."""

_AT_ONCE: Final = 131_072
"""Signs that are made numbers at a time: memory that is small enough to be used again, and not to be asked for anew."""

_SLACK: Final = 1e-3
"""How far products of equal vectors may be apart: much less than one sign makes."""

_EQUALS: Final = 4096
"""Chunks that are as likely as the last one wanted and are taken with it, at most: copies of one text, for the most."""

_FEW: Final = 8
"""When less than one row in so many passes a condition, only those that pass are compared."""

_MASKS: Final = 32
"""Conditions that are remembered for a collection, at most."""


class _Part(NamedTuple):
    """A chunk of vec0: which of its places are taken, and by which rows of ours."""

    validity: bytes
    rows: Rows


@dataclass(frozen=True, slots=True)
class _Held:
    """What is in memory of a collection, as the latest transaction saw it.

    The first `size` rows are written; they are never written again, and new ones follow. Ids ascend. `live` says which
    rows the transaction sees; it is copied when one of them is removed. `rows` are those of conditions' ids.
    """

    added: int
    removed: int
    size: int
    ids: Ids
    bits: Bits
    live: Live
    parts: Mapping[int, _Part]
    rows: OrderedDict[Filter, tuple[Ids, Rows]] = field(default_factory=OrderedDict)

    @property
    def last(self) -> int:
        """The highest id; 0 if there is none."""
        return int(self.ids[self.size - 1]) if self.size else 0

    @property
    def nbytes(self) -> int:
        parts = sum(part.rows.nbytes + len(part.validity) for part in self.parts.values())
        return self.ids.nbytes + self.bits.nbytes + self.live.nbytes + parts


class View(NamedTuple):
    """A collection as one transaction sees it: rows by `ids`, those that are `live`. Not to be written to."""

    held: _Held
    ids: Ids
    bits: Bits
    live: Live


class SignMirror:
    """Signs by collection, the least recently used let go when `budget` bytes are passed. Any thread.

    The caller's transaction says what is true: what a view shows is exactly what that transaction sees.
    """

    def __init__(self, *, budget: int) -> None:
        self._budget = budget
        self._held: OrderedDict[int, _Held] = OrderedDict()  # in the order of last use
        self._lock = Lock()

    def fits(self, stored: Stored) -> bool:
        """Whether the collection may be held at all."""
        return stored.chunks * (8 * _words(stored.dimensions) + 13) <= self._budget

    def view(self, connection: Connection, stored: Stored) -> View | None:
        """What the transaction sees; None if it began too long before what was seen since to be made of that.

        Reads all signs the first time, and later what has changed.
        """
        with self._lock:
            held = self._held.get(stored.id) or _nothing(stored.dimensions)
            view = _brought_up(connection, stored, held)
            if view is not None:
                self._held[stored.id] = held if view.held is held else _compacted(view.held)
                self._held.move_to_end(stored.id)
                if view.held is not held:
                    self._let_go()
            return view

    def rows(self, view: View, where: Filter, ids: Ids) -> Rows:
        """The rows of ids, ascending, that are seen: those that pass a condition. Remembered while ids are the same."""
        with self._lock:
            known = view.held.rows.get(where)
        if known is None or known[0] is not ids:
            there = ids[_among(view.ids, ids)]
            known = (ids, _rows(view.ids, there))
            with self._lock:
                kept = view.held.rows
                kept[where] = known
                kept.move_to_end(where)
                while len(kept) > _MASKS or sum(rows.nbytes for _, rows in kept.values()) > self._budget // 8:
                    kept.popitem(last=False)
        _, rows = known
        return rows[view.live[rows]]

    def forget(self, collection: int) -> None:
        """Let go of a collection."""
        with self._lock:
            self._held.pop(collection, None)

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._held.clear()

    def _let_go(self) -> None:
        total = sum(held.nbytes for held in self._held.values())
        while total > self._budget and len(self._held) > 1:
            total -= self._held.popitem(last=False)[1].nbytes


def likeliest(
    view: View, asked: Vector, *, wanted: Sequence[int], rows: Rows | None = None, aid: Executor | None = None
) -> list[Ids]:
    """For each number wanted, the least first, ids of so many chunks that are likely the nearest, of all or of the rows
    given, with their equals; all of them where they are few. What is given for a number does not depend on the others.

    A thread of `aid` helps with many rows.
    """
    among, bits, ids = view.live, view.bits, view.ids
    if rows is not None and len(rows) * _FEW < len(ids):
        among, bits, ids = view.live[rows], bits[:, rows], ids[rows]
    elif rows is not None:
        among = np.zeros(len(ids), np.bool_)
        among[rows] = True
    if np.count_nonzero(among) <= _ALL:
        return [ids[among]] * len(wanted)
    wide = [max(each, min(each * _WIDENING, _WIDEST)) for each in wanted]
    near, differing = _fewest_differing(bits, asked, wanted=wide[-1], among=among, aid=aid)
    products = _products(bits, near, asked)
    found: list[Ids] = []
    for number, width in zip(wanted, wide, strict=True):
        some = np.arange(len(near))
        if len(near) > width:
            some = np.flatnonzero(differing <= np.partition(differing, width - 1)[width - 1])
        if len(some) > number:
            least = np.partition(products[some], -number)[-number]
            better = some[products[some] >= least - _SLACK]
            some = (
                better if len(better) <= number + _EQUALS else some[np.argsort(-products[some], kind="stable")[:number]]
            )
        found.append(ids[near[some]])
    return found


def _products(bits: Bits, near: npt.NDArray[np.intp], asked: Vector) -> npt.NDArray[np.float32]:
    """Of the signs of these columns, one or zero, and what is asked; (columns,)."""
    result = np.empty(len(near), np.float32)
    columns = max(_AT_ONCE // len(asked), 1)
    for start in range(0, len(near), columns):
        octets = np.ascontiguousarray(bits[:, near[start : start + columns]].T).view(np.uint8)
        signs: Matrix = np.unpackbits(octets, axis=1, bitorder="little").astype(np.float32)
        result[start : start + columns] = signs @ asked
    return result


def _fewest_differing(
    bits: Bits, asked: Vector, *, wanted: int, among: Live, aid: Executor | None = None
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint16]]:
    """Places of at least `wanted` columns, or all there are, whose signs differ least from those of what is asked, and
    how many do.

    Of equally many differing signs all are taken, or none; so there are a few more than wanted.
    """
    size = bits.shape[1]
    differing = _differing(bits, asked, aid)
    if np.count_nonzero(among) <= wanted:
        near = np.flatnonzero(among)
        return near, differing[near]
    step = max(size // _BLOCK, 1)
    some = differing[::step][among[::step]]
    counted = np.cumsum(np.bincount(some, minlength=64 * len(bits) + 1)) * step
    bound = int(np.searchsorted(counted, wanted))
    while True:
        near = np.flatnonzero(differing <= bound)
        near = near[among[near]]
        if len(near) >= wanted or bound >= 64 * len(bits):
            break
        bound += max(bound // 64, 1)
    found = differing[near]
    if len(near) > 2 * wanted:  # the sample misled: few distances, or few that pass
        keep = found <= np.partition(found, wanted - 1)[wanted - 1]
        near, found = near[keep], found[keep]
    return near, found


def _differing(bits: Bits, asked: Vector, aid: Executor | None) -> npt.NDArray[np.uint16]:
    """How many signs differ from those of what is asked, (columns,). A thread of `aid` takes blocks, too."""
    size = bits.shape[1]
    words = _columns(sign_bits(asked[None]))[:, 0]
    result = np.empty(size, np.uint16)
    starts = iter(range(0, size, _BLOCK))

    def work() -> None:
        differ = np.empty(min(_BLOCK, size), np.uint64)
        count, total = np.empty((2, len(differ)), np.uint8)
        for start in starts:
            block, into = bits[:, start : start + _BLOCK], result[start : start + _BLOCK]
            x, one, some = differ[: len(into)], count[: len(into)], total[: len(into)]
            for group in range(0, len(bits), _GROUP):
                for word in range(group, min(group + _GROUP, len(bits))):
                    np.bitwise_xor(block[word], words[word], out=x)
                    np.bitwise_count(x, out=some if word == group else one)
                    if word > group:
                        np.add(some, one, out=some)
                if group:
                    np.add(into, some, out=into)
                else:
                    into[:] = some

    other = aid.submit(work) if aid is not None and size > 2 * _BLOCK else None
    work()
    if other is not None and not other.cancel():
        other.result()
    return result


def _columns(octets: Octets) -> Bits:
    """Rows of bytes (n, bytes) as columns of words (words, n)."""
    return octets.view(np.uint64).T


def _among(ids: Ids, some: Ids) -> Live:
    """Which of these stand among the ids, which ascend."""
    if not len(ids):
        return np.zeros(len(some), np.bool_)
    there: Live = ids.take(np.searchsorted(ids, some), mode="clip") == some
    return there


def _rows(ids: Ids, some: Ids) -> Rows:
    """Where these ids stand, all of which do."""
    rows: Rows = np.searchsorted(ids, some).astype(np.int32)
    return rows


def _words(dimensions: int) -> int:
    return sign_count(dimensions) // 64


def _nothing(dimensions: int) -> _Held:
    bits = np.empty((_words(dimensions), 0), np.uint64)
    return _Held(0, 0, 0, np.empty(0, np.int64), bits, np.empty(0, np.bool_), {})


def _brought_up(connection: Connection, stored: Stored, held: _Held) -> View | None:
    """What the transaction sees, made from what is held; `held` of the view is what to hold from now on."""
    if (held.added, held.removed) == (stored.added, stored.removed):
        return _seen(held, held.live)
    newer = held.added <= stored.added and held.removed <= stored.removed
    grown = newer and held.removed == stored.removed
    ask = f"SELECT chunk_id, validity FROM vec_bits_{stored.id}_chunks WHERE chunk_id >= ?"
    there = dict(map(tuple, connection.exec_driver_sql(ask, (max(held.parts, default=0) if grown else 0,))))
    changed = _changed(held.parts, there, newer=newer)
    ids = _ids(connection, stored, {number: there[number] for number in changed})
    every = np.concatenate([np.empty(0, np.int64), *ids.values()])
    new = np.sort(every[~_among(held.ids[: held.size], every)])
    if len(new):
        if not newer or new[0] <= held.last:
            return None
        held = _grown(held, new)
        for number, some in ids.items():
            if len(some) and some.max() >= new[0]:
                octets = _octets(connection, stored, number, there[number])
                late = some >= new[0]
                held.bits[:, _rows(held.ids[: held.size], some[late])] = _columns(octets[late])
    rows = {number: _rows(held.ids[: held.size], some) for number, some in ids.items()}
    live = held.live if grown else held.live.copy()
    if not grown:
        for number in {*changed, *(held.parts.keys() - there.keys())} & held.parts.keys():
            live[held.parts[number].rows] = False
    for places in rows.values():
        live[places] = True
    if not newer:
        return _seen(held, live)
    parts = {number: part for number, part in held.parts.items() if grown or number in there}
    parts |= {number: _Part(there[number], some) for number, some in rows.items()}
    held = replace(held, added=stored.added, removed=stored.removed, live=live, parts=parts)
    return _seen(held, live)


def _changed(parts: Mapping[int, _Part], there: Mapping[int, bytes], *, newer: bool) -> list[int]:
    """Chunks of vec0 that may hold other rows than before.

    Only the last chunk is written to; before it, places are only left. Unless chunks behind it are emptied, and so are
    no more: then it is the last again, and a place in it may have been taken by another row.
    """
    earlier, later = (parts.keys(), there.keys()) if newer else (there.keys(), parts.keys())
    last = max(earlier, default=0)
    if last not in later:
        return list(there)
    return [
        number
        for number, validity in there.items()
        if number >= last or number not in parts or parts[number].validity != validity
    ]


def _ids(connection: Connection, stored: Stored, there: Mapping[int, bytes]) -> dict[int, Ids]:
    """The ids in these chunks of vec0, in the order of their places."""
    rows = connection.exec_driver_sql(
        f"SELECT chunk_id, rowids FROM vec_bits_{stored.id}_chunks WHERE chunk_id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(there)),),
    )
    return {number: np.frombuffer(ids, np.int64)[taken(there[number])] for number, ids in rows}


def taken(validity: bytes) -> Live:
    """Which places of a chunk of vec0 are taken."""
    places: Live = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little").view(np.bool_)
    return places


def _grown(held: _Held, new: Ids) -> _Held:
    """Room for the new ids behind what is held, and the ids in it."""
    size, room = held.size + len(new), len(held.ids)
    ids, bits, live = held.ids, held.bits, held.live
    if size > room:
        room = max(size, room * 5 // 4)
        ids, bits, live = np.empty(room, np.int64), np.empty((len(bits), room), np.uint64), np.zeros(room, np.bool_)
        ids[: held.size] = held.ids[: held.size]
        bits[:, : held.size] = held.bits[:, : held.size]
        live[: held.size] = held.live[: held.size]
    ids[held.size : size] = new
    return replace(held, size=size, ids=ids, bits=bits, live=live)


def _octets(connection: Connection, stored: Stored, number: int, validity: bytes) -> Octets:
    """The signs in a chunk of vec0, a row for each place that is taken."""
    ask = f"SELECT vectors FROM vec_bits_{stored.id}_vector_chunks00 WHERE rowid = ?"
    (vectors,) = connection.exec_driver_sql(ask, (number,)).one()
    return np.frombuffer(vectors, np.uint8).reshape(-1, sign_count(stored.dimensions) // 8)[taken(validity)]


def _compacted(held: _Held) -> _Held:
    """Without rows that nobody sees, once there are many of them."""
    live = held.live[: held.size]
    left = int(np.count_nonzero(live))
    if held.size - left < max(left // 4, _BLOCK):
        return held
    places = (np.cumsum(live) - 1).astype(np.int32)
    return replace(
        held,
        size=left,
        ids=held.ids[: held.size][live],
        bits=held.bits[:, : held.size][:, live],
        live=np.ones(left, np.bool_),
        parts={number: _Part(part.validity, places[part.rows]) for number, part in held.parts.items()},
        rows=OrderedDict(),
    )


def _seen(held: _Held, live: Live) -> View:
    return View(held, held.ids[: held.size], held.bits[:, : held.size], live[: held.size])
