"""All that one store holds, into another: goes on where it stopped, and is compared to the last number."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from appliance.errors import CollectionExists, InvalidInput
from appliance.store.base import Entry, Store

Progress: TypeAlias = Callable[[str, int], None]
"""Told the collection, and how many chunks more are done."""

_DOCUMENTS: Final = 32
"""Of one transaction."""

_QUERIES: Final = 20
"""Chunks of a collection that have to find themselves in the copy."""

_SAME: Final = 0.999
"""Cosine similarity of a vector to itself, at least, however it was counted."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a copy has come: everything up to this document of this collection is there."""

    collection: str
    document: str


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy came to."""

    collections: int
    chunks: int
    compared: int
    differences: tuple[str, ...]


class Marks:
    """A file that remembers how far a copy has come.

    Args:
        path: of the file; gone when there is nothing to remember.
        route: what is copied where; a mark of another route is not taken.
    """

    def __init__(self, path: Path, route: str) -> None:
        self._path = path
        self._route = route

    def read(self) -> Mark | None:
        """The mark of a copy that was cut short; None where there is none."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return Mark(found["collection"], found["document"]) if found["route"] == self._route else None
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):  # cut short itself
            return None

    def write(self, mark: Mark) -> None:
        """Remember; whole or not at all."""
        part = self._path.with_name(self._path.name + ".part")
        part.write_text(json.dumps({"route": self._route, **asdict(mark)}), encoding="utf-8")
        part.replace(self._path)

    def clear(self) -> None:
        """Forget."""
        self._path.unlink(missing_ok=True)


def copy(source: Store, target: Store, *, marks: Marks, progress: Progress = lambda _name, _chunks: None) -> Copied:
    """Put everything of `source` into `target`, and compare. Documents of the target that have the same collection and
    id are replaced; others stay, and are told as a difference. Blocking.

    A copy that was cut short goes on where it stopped.

    Raises:
        CollectionExists: the target has a collection of the same name with vectors of another length.
        StoreError: one of them does not answer; the same call goes on later.
    """
    mark = marks.read()
    collections = source.collections()
    there = target.collections()
    for name, dimensions in collections.items():
        if there.get(name, dimensions) != dimensions:
            raise CollectionExists(f"the other store has a collection {name!r} with vectors of another length")
    chunks = 0
    for name, dimensions in sorted(collections.items()):
        if mark is not None and name < mark.collection:
            continue
        after = mark.document if mark is not None and name == mark.collection else ""
        target.create(name, dimensions)
        for entries in _batches(source, name, after=after):
            target.put_many(name, entries)
            marks.write(Mark(name, entries[-1].document))
            count = sum(len(entry.chunks) for entry in entries)
            chunks += count
            progress(name, count)
        target.improve(name)
    compared, differences = _compared(source, target, collections, progress)
    marks.clear()
    return Copied(len(collections), chunks, compared, tuple(differences))


def _batches(store: Store, collection: str, *, after: str = "") -> Iterator[list[Entry]]:
    while entries := store.entries(collection, after=after, limit=_DOCUMENTS):
        yield entries
        after = entries[-1].document


def _each(store: Store, collection: str) -> Iterator[Entry]:
    for entries in _batches(store, collection):
        yield from entries


def _compared(source: Store, target: Store, collections: dict[str, int], progress: Progress) -> tuple[int, list[str]]:
    """How many chunks were compared, and what differs."""
    compared = 0
    differences = []
    for name in sorted(collections):
        if (ours := source.count(name)) != (theirs := target.count(name)):
            differences.append(f"{name}: {ours} chunks here, {theirs} there")
        step = max(ours // _QUERIES, 1)
        seen = 0
        copies = _each(target, name)
        copied = next(copies, None)
        for entries in _batches(source, name):
            for entry in entries:
                while copied is not None and copied.document < entry.document:  # the target's own
                    copied = next(copies, None)
                if not _equal(entry, copied):
                    differences.append(f"{name}: the document {entry.document!r} differs")
                for place in range(len(entry.chunks)):
                    if seen % step == 0 and not _finds_itself(target, name, entry, place):
                        differences.append(f"{name}: a chunk of {entry.document!r} is not its own nearest")
                    seen += 1
            count = sum(len(entry.chunks) for entry in entries)
            compared += count
            progress(name, count)
    return compared, differences


def _equal(one: Entry, other: Entry | None) -> bool:
    if other is None or one.document != other.document:
        return False
    return list(one.chunks) == list(other.chunks) and np.array_equal(one.vectors, other.vectors)


def _finds_itself(store: Store, collection: str, entry: Entry, place: int) -> bool:
    found = store.nearest(collection, entry.vectors[place], limit=1)
    return bool(found) and found[0].score > _SAME


def check_route(source: str, target: str) -> None:
    """Raise InvalidInput unless one of them is SQLite and the other a server: there is one `store_url`."""
    if (source == "sqlite") == (target == "sqlite"):
        raise InvalidInput("copy between sqlite and a server; from server to server, copy by way of sqlite")
