"""What happens to documents and jobs, told to whoever listens, and kept for a while for those who come back."""

import asyncio
import re
import secrets
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from appliance.errors import Overloaded

Kind: TypeAlias = Literal["job", "documents", "removed", "reset"]

KEPT: Final = 4096
"""Events that can be had again."""

LISTENERS: Final = 64
"""Listeners at one time."""

BEHIND: Final = 2 * KEPT
"""Events that a listener may be behind before it is dropped: more than it can have missed."""

_ID: Final = re.compile(r"([0-9a-f]{8})-([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        id: names it for as long as the process lasts, and is never used by another.
        kind: `job` has a job as it is now, `documents` what became of some documents, `removed` a job that was
            forgotten; `reset` says that events are missing: read everything anew.
        data: a JSON object.
        job: the number of the job it is about, if it is about one.
    """

    id: str
    kind: Kind
    data: Mapping[str, object]
    job: int | None = None


class Listener:
    """One who listens. `next` waits for an event; None when it was dropped or the appliance stops."""

    def __init__(self, job: int | None) -> None:
        self._job = job
        self._queue: deque[Event] = deque()
        self._news = asyncio.Event()
        self.dropped = False

    def tell(self, event: Event) -> None:
        """Add an event, if it is one for this listener; one who is too far behind is dropped."""
        if self.dropped or (self._job is not None and event.job != self._job and event.kind != "reset"):
            return
        if len(self._queue) >= BEHIND:
            self.drop()
            return
        self._queue.append(event)
        self._news.set()

    def drop(self) -> None:
        """Say no more."""
        self.dropped = True
        self._queue.clear()
        self._news.set()

    async def next(self) -> Event | None:
        """The next event; None when there will be none."""
        while not self._queue:
            if self.dropped:
                return None
            self._news.clear()
            await self._news.wait()
        return self._queue.popleft()


class Events:
    """A ring of the last events, and who listens. Belongs to one event loop.

    Args:
        kept: events that can be had again.
        listeners: at one time.
    """

    def __init__(self, *, kept: int = KEPT, listeners: int = LISTENERS) -> None:
        self._life = secrets.token_hex(4)  # of this process: numbers begin anew with it
        self._last = 0
        self._ring: deque[Event] = deque(maxlen=kept)
        self._most = listeners
        self._listeners: set[Listener] = set()
        self._closed = False

    def publish(self, kind: Kind, data: Mapping[str, object], *, job: int | None = None) -> None:
        """Tell what happened."""
        self._last += 1
        event = Event(self._id(self._last), kind, data, job)
        self._ring.append(event)
        for listener in self._listeners:
            listener.tell(event)

    @property
    def last(self) -> str:
        """The id of the last event; listening after it misses nothing."""
        return self._id(self._last)

    def since(self, after: str | None, *, job: int | None = None, limit: int = KEPT) -> list[Event]:
        """The events after one, of one job or all, oldest first; after None there are none. Begins with a `reset`
        where some of them are gone.
        """
        if after is None:
            return []
        found = _ID.fullmatch(after)
        number = int(found[2]) if found and found[1] == self._life else -1
        first = self._last - len(self._ring)
        if not first <= number <= self._last:
            return [Event(self.last, "reset", {})]
        events = list(self._ring)[number - first :]
        return [event for event in events if job is None or event.job == job][:limit]

    @asynccontextmanager
    async def listening(self, after: str | None = None, *, job: int | None = None) -> AsyncIterator[Listener]:
        """Listen, to one job or all, from the event `after` on.

        Raises:
            Overloaded: too many listen.
        """
        if self._closed or len(self._listeners) >= self._most:
            raise Overloaded(f"{len(self._listeners)} listen to events already: poll for them", retry_after=10)
        listener = Listener(job)
        missed = self.since(after, job=job)
        for event in missed:
            listener.tell(event)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def close(self) -> None:
        """Let every listener go."""
        self._closed = True
        for listener in list(self._listeners):
            listener.drop()

    def _id(self, number: int) -> str:
        return f"{self._life}-{number}"
