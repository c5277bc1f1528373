"""Which chunks pass a condition, remembered: chunks do not change, so only new ones have to be looked at."""

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Final, TypeAlias

import numpy as np
from sqlalchemy import Connection

from appliance.store.base import Value
from appliance.store.mirror import Ids, Stored

Filter: TypeAlias = tuple[str, tuple[Value, ...]]
"""A condition in SQL on the column `metadata`, and its parameters."""

_MOST: Final = 64
"""Conditions that are remembered, at most."""


@dataclass(frozen=True, slots=True)
class _Known:
    """Ids up to `last` that pass, as a transaction at these counters saw them."""

    added: int
    removed: int
    last: int
    ids: Ids


class Passing:
    """Ids by collection and condition, the least recently used let go when `budget` bytes are passed. Any thread."""

    def __init__(self, *, budget: int) -> None:
        self._budget = budget
        self._known: OrderedDict[tuple[int, Filter], _Known] = OrderedDict()
        self._lock = Lock()

    def ids(self, connection: Connection, stored: Stored, where: Filter) -> Ids:
        """Ids, ascending, of every chunk that passes and is there in this transaction, and of some no longer there.

        The very same array for as long as no other chunk passes.
        """
        key = stored.id, where
        with self._lock:
            known = self._known.get(key)
        if known is not None and (known.added, known.removed) == (stored.added, stored.removed):
            return known.ids
        later = known is not None and (known.added > stored.added or known.removed > stored.removed)
        stale = known is not None and stored.removed - known.removed > stored.chunks
        first, before = (0, None) if known is None or later or stale else (known.last, known.ids)
        condition, values = where
        found = connection.exec_driver_sql(
            f"SELECT id FROM chunk WHERE collection = ? AND id > ? AND {condition} ORDER BY id",  # noqa: S608  # bound
            (stored.id, first, *values),
        )
        ids: Ids = np.fromiter((row[0] for row in found), np.int64)
        if before is not None:
            ids = np.concatenate([before, ids]) if len(ids) else before
        if not later:  # what a transaction saw that began earlier is of no use to those that follow
            last = connection.exec_driver_sql("SELECT max(id) FROM chunk WHERE collection = ?", (stored.id,)).scalar()
            with self._lock:
                self._known[key] = _Known(stored.added, stored.removed, int(last or 0), ids)
                self._known.move_to_end(key)
                while len(self._known) > _MOST or sum(each.ids.nbytes for each in self._known.values()) > self._budget:
                    self._known.popitem(last=False)
        return ids

    def forget(self, collection: int) -> None:
        """Let go of a collection."""
        with self._lock:
            for key in [key for key in self._known if key[0] == collection]:
                del self._known[key]

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._known.clear()
