"""Room in memory for one more model."""

from collections.abc import Mapping
from typing import Any

import structlog

from appliance.embedding.slot import Slot
from appliance.embedding.spec import Card
from appliance.errors import EngineUnavailable, Overloaded

log = structlog.get_logger(__name__)


def memory(card: Card, size: int) -> int:
    """Bytes that a loaded model takes, as far as its files of `size` bytes tell: their 32 bits may run as 8."""
    return size // 4 if getattr(card, "precision", "") == "int8" else size


async def make_room(
    name: str, need: int, *, limit: int, slots: Mapping[str, Slot[Any]], costs: Mapping[str, int]
) -> None:
    """Unload idle models, the one idle for longest first, until another one fits.

    Args:
        name: of the model that is to be loaded.
        need: bytes it takes.
        limit: bytes that all may take.
        slots: of the models in memory, or on their way in or out.
        costs: bytes that each of those takes, by its name.

    Raises:
        EngineUnavailable: it would not fit if it were alone.
        Overloaded: the others are in use.
    """
    if need > limit:
        raise EngineUnavailable(
            f"{name} takes some {need / 1e6:,.0f} MB, and all models together may take {limit / 1e6:,.0f}: raise the"
            " setting memory_budget"
        )
    idle = [(slot.serving.last_used, name) for name, slot in slots.items() if slot.idle and slot.serving is not None]
    taken = sum(costs[other] for other in slots)
    going = []
    for _, other in sorted(idle):
        if taken + need > limit and costs[other]:
            slots[other].empty()
            going.append(slots[other])
            log.info("model unloaded for another", model=other, room_for=name)
            taken -= costs[other]
    if taken + need > limit:
        raise Overloaded(f"there is no room for {name} while other models work; try again", retry_after=2)
    for slot in going:
        await slot.settled()
