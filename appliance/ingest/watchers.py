"""Who waits for which document."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Watchers:
    """Events by collection and document id. Belongs to one event loop."""

    def __init__(self) -> None:
        self._events: dict[tuple[str, str], set[asyncio.Event]] = {}

    @contextmanager
    def watching(self, collection: str, documents: Iterable[str]) -> Iterator[dict[str, asyncio.Event]]:
        """An event for each document, set when someone tells of it."""
        watched = {document: asyncio.Event() for document in documents}
        for document, event in watched.items():
            self._events.setdefault((collection, document), set()).add(event)
        try:
            yield watched
        finally:
            for document, event in watched.items():
                others = self._events[collection, document]
                others.discard(event)
                if not others:
                    del self._events[collection, document]

    def tell(self, collection: str, document: str | None = None) -> None:
        """A document, or all of the collection, is settled or gone."""
        for key, events in self._events.items():
            if key[0] == collection and document in {None, key[1]}:
                for event in events:
                    event.set()
