"""How much of which kind is in hand at a time: small documents wait neither for large ones nor for many."""

from concurrent.futures import ThreadPoolExecutor
from typing import Final

from appliance.catalog.records import Queue, Work

_DOCUMENTS: Final = 64
_BYTES: Final = 16 * 2**20
"""In hand of one kind, but for one document that is larger alone; enough that a commit has many."""


class Lane:
    """Documents of one kind that are in hand, and the threads that read and cut them. Belongs to one event loop.

    Args:
        queue: what it takes.
        documents: in hand at most.
        threads: each reads or cuts one document at a time.
    """

    def __init__(self, queue: Queue, *, documents: int = _DOCUMENTS, threads: int = 2) -> None:
        self.queue = queue
        self._documents = documents
        self._in_hand = 0
        self._bytes = 0
        self.threads = ThreadPoolExecutor(threads, queue)

    @property
    def free(self) -> int:
        """Documents that can be taken now."""
        return self._documents - self._in_hand if self._bytes < _BYTES else 0

    @property
    def room(self) -> int:
        """Bytes that can be taken now."""
        return _BYTES - self._bytes

    def enter(self, work: Work) -> None:
        """It is in hand."""
        self._in_hand += 1
        self._bytes += len(work.body)

    def leave(self, work: Work) -> None:
        """It is settled."""
        self._in_hand -= 1
        self._bytes -= len(work.body)


class Lanes:
    """A lane for each kind: documents without a job, those of jobs, and large ones, two at a time."""

    def __init__(self, *, documents: int = _DOCUMENTS) -> None:
        self._lanes = {
            "single": Lane("single", documents=documents),
            "jobs": Lane("jobs", documents=documents),
            "large": Lane("large", documents=2, threads=1),
        }

    def all(self) -> list[Lane]:
        """Those who wait for an answer first."""
        return list(self._lanes.values())

    def of(self, work: Work) -> Lane:
        """The one that a document is in."""
        return self._lanes[work.queue]

    def close(self) -> None:
        """Begin nothing more."""
        for lane in self._lanes.values():
            lane.threads.shutdown(wait=False, cancel_futures=True)
