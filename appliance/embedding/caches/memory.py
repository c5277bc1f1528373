"""The embeddings that were used last, in this process's memory."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from time import monotonic

from appliance.embedding.caches.entry import Entry, Figures, matcher

_OVERHEAD = 500
"""Bytes of an entry beside its numbers and its key: objects of Python, and its place in the table (measured)."""


class Memory:
    """Forgets what was used least recently when it is full, and everything after its time. Belongs to one event loop.

    Every operation takes the same time however much is held, but for `remove`.

    Args:
        entries: held at most; 0 holds nothing.
        ttl: seconds an entry stays.
        clock: in seconds, never going back.
    """

    name = "memory"

    def __init__(self, entries: int, *, ttl: float, clock: Callable[[], float] = monotonic) -> None:
        self.capacity = entries
        self._ttl = ttl
        self._clock = clock
        self._kept: OrderedDict[str, tuple[Entry, float]] = OrderedDict()  # with the end of its time
        self._bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0

    def __len__(self) -> int:
        """Entries held, those included whose time is over and which nobody asked for since."""
        return len(self._kept)

    def get(self, keys: Sequence[str]) -> list[Entry | None]:
        """The entry of each key that is held."""
        now, kept, used = self._clock(), self._kept, self._kept.move_to_end
        found: list[Entry | None] = []
        missed = 0
        for key in keys:
            slot = kept.get(key)
            if slot is not None and slot[1] > now:
                used(key)
                found.append(slot[0])
                continue
            if slot is not None:
                self._drop(key)
            missed += 1
            found.append(None)
        self.hits += len(found) - missed
        self.misses += missed
        return found

    def put(self, key: str, entry: Entry, *, age: float = 0.0) -> None:
        """Hold an entry that was computed `age` seconds ago. Its vector must be its own, and not change."""
        now = self._clock()
        if key in self._kept:
            self._drop(key)
        if self.capacity == 0 or age >= self._ttl:
            return
        self._kept[key] = (entry, now + self._ttl - max(age, 0.0))
        self._bytes += _size(key, entry)
        while len(self._kept) > self.capacity or next(iter(self._kept.values()))[1] <= now:
            oldest, (_, end) = next(iter(self._kept.items()))
            self._drop(oldest)
            self.evictions += end > now

    def remove(self, pattern: str | None) -> int:
        """Forget the keys that match, or all; how many there were."""
        if pattern is None:
            gone = list(self._kept)
        else:
            matches = matcher(pattern).fullmatch
            gone = [key for key in self._kept if matches(key)]
        for key in gone:
            self._drop(key)
        return len(gone)

    def figures(self) -> Figures:
        """How it does."""
        return Figures(
            name=self.name,
            up=True,
            entries=len(self._kept),
            bytes=self._bytes,
            hits=self.hits,
            misses=self.misses,
            evictions=self.evictions,
            errors=0,
        )

    def _drop(self, key: str) -> None:
        entry, _ = self._kept.pop(key)
        self._bytes -= _size(key, entry)


def _size(key: str, entry: Entry) -> int:
    return entry.vector.nbytes + len(key) + _OVERHEAD
