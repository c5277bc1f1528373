"""Embeddings that were computed before."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from appliance.embedding.engine import Vector


class Entry(NamedTuple):
    """What is remembered of one input: its vector as it was answered, and what it cost."""

    vector: Vector
    tokens: int
    truncated: bool


class EmbeddingCache(Protocol):
    """Remembers entries by key."""

    async def through(
        self, keys: Sequence[str], compute: Callable[[Sequence[int]], Awaitable[Sequence[Entry]]]
    ) -> list[Entry]:
        """The entry of each key; those that nobody remembers, and nobody is computing, from `compute`.

        Args:
            keys: may repeat.
            compute: given places in `keys`, gives their entries in that order.
        """
