"""Events: told once to everyone who listens, kept for a while, never for one who does not read."""

import asyncio

import pytest

from appliance.errors import Overloaded
from appliance.ingest.events import BEHIND, KEPT, Events


async def test_listeners_hear_of_their_job_or_of_all() -> None:
    events = Events()
    async with events.listening() as every, events.listening(job=2) as second:
        for job in (1, 2, None):
            events.publish("job", {"n": job}, job=job)

        assert [(await every.next()).data["n"] for _ in range(3)] == [1, 2, None]  # type: ignore[union-attr]  # told
        assert (await second.next()).data["n"] == 2  # type: ignore[union-attr]  # told
        waiting = asyncio.create_task(second.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        events.close()
        assert await waiting is None
    with pytest.raises(Overloaded):
        async with events.listening():
            pass


async def test_what_was_missed_is_told_again_as_long_as_it_is_kept() -> None:
    events = Events(kept=3)
    begin = events.last
    for n in range(3):
        events.publish("job", {"n": n}, job=n % 2)
    first = events.since(begin)[0].id

    assert [each.data["n"] for each in events.since(begin)] == [0, 1, 2]
    assert [each.data["n"] for each in events.since(first, job=0)] == [2]
    assert events.since(events.last) == events.since(None) == []
    async with events.listening(first) as listener:
        assert (await listener.next()).data["n"] == 1  # type: ignore[union-attr]  # told
    events.publish("job", {"n": 3})
    for lost in (begin, "nonsense", "00000000-1", f"{events.last}0", Events().last):
        assert [each.kind for each in events.since(lost)] == ["reset"]
    assert events.since(begin)[0].id == events.last


async def test_all_that_is_kept_can_be_had_again_and_what_comes_then_too() -> None:
    events = Events()
    begin = events.last
    for n in range(KEPT):
        events.publish("job", {"n": n})

    async with events.listening(begin) as listener:
        events.publish("job", {"n": KEPT})
        told = [await listener.next() for _ in range(KEPT + 1)]

    assert [each and each.data["n"] for each in told] == list(range(KEPT + 1))


async def test_one_who_does_not_read_is_dropped_and_the_others_are_not() -> None:
    events = Events()
    async with events.listening() as slow, events.listening() as quick:
        for n in range(BEHIND + 1):
            events.publish("job", {"n": n})
            assert await quick.next() is not None

        assert slow.dropped
        assert await slow.next() is None
        assert not quick.dropped


async def test_there_are_so_many_listeners_and_no_more() -> None:
    events = Events(listeners=1)
    async with events.listening():
        with pytest.raises(Overloaded, match="poll"):
            async with events.listening():
                pass
    async with events.listening():
        pass
