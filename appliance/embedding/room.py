"""Room in memory for one more model."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import structlog

from appliance.embedding.slot import Slot
from appliance.embedding.spec import Card
from appliance.errors import EngineUnavailable, Overloaded

_FLOAT32 = 4  # bytes of a number: 16-bit weights run as 32

log = structlog.get_logger(__name__)

Occupied: TypeAlias = Iterable[tuple[str, Slot[Any], int]]
"""Models in memory, or on their way in or out: name, slot, bytes."""


def memory_of(card: Card, size: int) -> int:
    """Bytes that a loaded model takes, as far as its number of weights and its files of `size` bytes tell; 8-bit ones
    take a quarter.
    """
    precision = getattr(card, "precision", "")
    whole = max(size, _FLOAT32 * card.parameters) if precision and size else size
    return whole // 4 if precision == "int8" else whole


class Room:
    """What all models together may take. Belongs to one event loop.

    Args:
        limit: bytes; 0 for no limit.
        occupied: the models there are, those that ask for room included.
    """

    def __init__(self, limit: int, occupied: Callable[[], Occupied]) -> None:
        self._limit = limit
        self._occupied = occupied
        self._lock = asyncio.Lock()
        self._outside: set[str] = set()

    async def enter(self, name: str, need: int) -> None:
        """Have a model loaded, after others that were idle, the one idle for longest first, were unloaded for it.

        Args:
            name: of the model, which counts from now on.
            need: bytes that it takes.

        Raises:
            EngineUnavailable: it would not fit if it were alone.
            Overloaded: the others are in use; nothing was unloaded.
        """
        if not self._limit or not need:
            return
        if need > self._limit:
            raise EngineUnavailable(
                f"{name} takes some {need / 1e6:,.0f} MB, and all models together may take {self._limit / 1e6:,.0f}:"
                " raise the setting memory_budget"
            )
        self._outside.add(name)
        try:
            async with self._lock:
                for slot in self._chosen(name, need):
                    slot.empty()
                    await slot.settled()
        finally:
            self._outside.discard(name)

    def _chosen(self, name: str, need: int) -> list[Slot[Any]]:
        """What has to go."""
        others = [(other, slot, cost) for other, slot, cost in self._occupied() if other not in self._outside and cost]
        free = self._limit - sum(cost for _, _, cost in others)
        idle = [each for each in others if each[1].idle]
        chosen = []
        for other, slot, cost in sorted(idle, key=lambda each: each[1].last_used):
            if free >= need:
                break
            chosen.append(slot)
            free += cost
            log.info("model unloaded for another", model=other, room_for=name)
        if free < need:
            raise Overloaded(f"there is no room for {name} while other models work; try again", retry_after=2)
        return chosen
