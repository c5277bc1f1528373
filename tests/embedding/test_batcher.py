"""Many callers, one device."""

import asyncio
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.embedding.batcher import Batcher
from appliance.errors import EngineFailed, EngineUnavailable, Overloaded


class Device:
    """Doubles numbers, remembers its batches, and can be held."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Semaphore(0)

    def run(self, values: Sequence[int]) -> list[int]:
        self.batches.append(list(values))
        self.entered.release()
        assert self.free.wait(10)
        if 13 in values:
            raise EngineFailed("13 is a bad number")
        return [value * 2 for value in values]

    async def held(self) -> None:
        """Returns once a batch is inside `run`."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=10)


def batcher_on(device: Device, *, budget: int = 100, lanes: int = 1, max_waiting: int = 512) -> Batcher[int, int]:
    return Batcher(device.run, size=lambda value: value, budget=budget, lanes=lanes, max_waiting=max_waiting)


async def test_a_lone_item_runs_at_once() -> None:
    device = Device()
    batcher = batcher_on(device)

    assert await batcher.submit([7]) == [14]

    assert device.batches == [[7]]
    batcher.close()


async def test_no_items_give_no_results() -> None:
    batcher = batcher_on(Device())

    assert await batcher.submit([]) == []

    batcher.close()


async def test_callers_that_come_while_the_device_is_busy_share_a_batch() -> None:
    device = Device()
    device.free.clear()
    batcher = batcher_on(device)
    first = asyncio.create_task(batcher.submit([10]))
    await device.held()
    others = [asyncio.create_task(batcher.submit([10])) for _ in range(4)]
    await asyncio.sleep(0)

    device.free.set()
    await asyncio.gather(first, *others)

    assert [len(batch) for batch in device.batches] == [1, 4]
    batcher.close()


@given(
    requests=st.lists(st.lists(st.integers(1, 60).filter(lambda n: n != 13), max_size=30), max_size=8),
    lanes=st.integers(1, 3),
    budget=st.integers(20, 200),
)
def test_every_caller_gets_its_own_results_in_order_and_no_batch_is_over_budget(
    requests: list[list[int]], lanes: int, budget: int
) -> None:
    device = Device()

    async def run() -> list[list[int]]:
        batcher = batcher_on(device, lanes=lanes, budget=budget)
        try:
            return await asyncio.gather(*(batcher.submit(each) for each in requests))
        finally:
            batcher.close()

    answers = asyncio.run(run())

    assert answers == [[value * 2 for value in each] for each in requests]
    assert all(len(batch) == 1 or max(batch) * len(batch) <= budget for batch in device.batches)


async def test_a_batch_is_made_of_neighbours_in_size() -> None:
    device = Device()
    device.free.clear()
    batcher = batcher_on(device, budget=300)
    first = asyncio.create_task(batcher.submit([1]))
    await device.held()
    mixed = asyncio.create_task(batcher.submit([100, 5, 99, 6, 98, 4]))
    await asyncio.sleep(0)

    device.free.set()
    await asyncio.gather(first, mixed)

    assert sorted(sorted(batch) for batch in device.batches[1:]) == [[4, 5, 6], [98, 99, 100]]
    batcher.close()


async def test_one_submission_is_shared_out_among_idle_lanes() -> None:
    device = Device()
    device.free.clear()
    batcher = batcher_on(device, lanes=2)
    task = asyncio.create_task(batcher.submit([5] * 8))
    await device.held()
    await device.held()

    device.free.set()
    await task

    assert [len(batch) for batch in device.batches] == [4, 4]
    batcher.close()


async def test_interactive_items_go_before_background_ones() -> None:
    device = Device()
    device.free.clear()
    batcher = batcher_on(device, budget=10)
    first = asyncio.create_task(batcher.submit([10]))
    await device.held()
    slow = asyncio.create_task(batcher.submit([9] * 5, background=True))
    await asyncio.sleep(0)
    quick = asyncio.create_task(batcher.submit([8]))
    await asyncio.sleep(0)

    device.free.set()
    await asyncio.gather(first, slow, quick)

    assert device.batches[1] == [8]
    batcher.close()


@pytest.mark.parametrize("batches_before", [1, 2])
async def test_a_short_submission_overtakes_a_long_one(batches_before: int) -> None:
    device = Device()
    batcher = batcher_on(device)
    for _ in range(batches_before):
        await batcher.submit([1])
    device.batches.clear()
    device.free.clear()
    bulk = asyncio.create_task(batcher.submit([60] * 1000))
    await asyncio.sleep(0)
    for _ in range(batches_before + 1):
        await device.held()
    query = asyncio.create_task(batcher.submit([5]))
    await asyncio.sleep(0)

    device.free.set()
    assert await query == [10]

    assert [5] in device.batches[1:3]
    assert await bulk == [120] * 1000
    batcher.close()


async def test_a_long_submission_gets_every_second_batch_however_many_short_ones_wait() -> None:
    device = Device()
    device.free.clear()
    batcher = batcher_on(device)
    bulk = asyncio.create_task(batcher.submit([60] * 20))
    await device.held()
    queries = [asyncio.create_task(batcher.submit([55])) for _ in range(100)]
    await asyncio.sleep(0)

    device.free.set()
    await asyncio.gather(bulk, *queries)

    # Led by age it runs in batches 2, 4, 6 ..., besides the first.
    assert [number for number, batch in enumerate(device.batches, 1) if 60 in batch] == [1, *range(2, 2 * 20, 2)]
    batcher.close()


async def test_two_long_submissions_share_the_device() -> None:
    device = Device()
    device.free.clear()
    batcher = batcher_on(device, budget=70)
    older = asyncio.create_task(batcher.submit([60] * 20))
    await device.held()
    younger = asyncio.create_task(batcher.submit([70] * 20))
    await asyncio.sleep(0)

    device.free.set()
    await asyncio.gather(older, younger)

    half = [value for batch in device.batches[:20] for value in batch]
    assert 9 <= half.count(70) <= 11
    batcher.close()


async def test_equals_go_by_age() -> None:
    device = Device()
    device.free.clear()
    batcher = batcher_on(device, budget=10)
    tasks = []
    for value in [10, 8, 7, 9, 6]:
        tasks.append(asyncio.create_task(batcher.submit([value])))
        await asyncio.sleep(0)
    await device.held()

    device.free.set()
    await asyncio.gather(*tasks)

    assert device.batches == [[10], [8], [7], [9], [6]]
    batcher.close()


async def test_background_work_leads_one_batch_in_eight_while_interactive_work_waits() -> None:
    device = Device()
    device.free.clear()
    batcher = batcher_on(device, budget=10)
    first = asyncio.create_task(batcher.submit([10]))
    await device.held()
    slow = asyncio.create_task(batcher.submit([9] * 2, background=True))
    quick = [asyncio.create_task(batcher.submit([8])) for _ in range(30)]
    await asyncio.sleep(0)

    device.free.set()
    await asyncio.gather(first, slow, *quick)

    assert [number for number, batch in enumerate(device.batches, 1) if 9 in batch] == [8, 16]
    batcher.close()


async def test_what_an_abandoned_caller_left_is_never_run() -> None:
    device = Device()
    device.free.clear()
    batcher = batcher_on(device)
    first = asyncio.create_task(batcher.submit([10]))
    await device.held()
    gone = asyncio.create_task(batcher.submit([20, 21, 22]))
    stays = asyncio.create_task(batcher.submit([23]))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)

    device.free.set()
    await asyncio.gather(first, stays)

    assert device.batches == [[10], [23]]
    assert batcher.waiting == 0
    batcher.close()


async def test_a_bad_item_does_not_take_its_neighbours_down() -> None:
    device = Device()
    device.free.clear()
    batcher = batcher_on(device)
    first = asyncio.create_task(batcher.submit([1]))
    await device.held()
    good = asyncio.create_task(batcher.submit([12, 14]))
    bad = asyncio.create_task(batcher.submit([13]))
    await asyncio.sleep(0)

    device.free.set()
    await first

    assert await good == [24, 28]
    with pytest.raises(EngineFailed, match="bad number"):
        await bad
    assert await batcher.submit([3]) == [6]
    batcher.close()


async def test_one_submission_too_many_is_refused_and_background_never_is() -> None:
    device = Device()
    device.free.clear()
    batcher = batcher_on(device, max_waiting=2)
    tasks = [asyncio.create_task(batcher.submit([5])) for _ in range(2)]
    await device.held()

    with pytest.raises(Overloaded):
        await batcher.submit([5])
    tasks.append(asyncio.create_task(batcher.submit([5], background=True)))
    await asyncio.sleep(0)

    device.free.set()
    assert await asyncio.gather(*tasks) == [[10]] * 3
    assert await batcher.submit([5]) == [10]
    batcher.close()


async def test_an_answer_of_the_wrong_length_fails_its_caller() -> None:
    batcher: Batcher[int, int] = Batcher(lambda _: [], size=lambda value: value, budget=10)

    with pytest.raises(EngineFailed, match="0 results for 1"):
        await batcher.submit([1])

    batcher.close()


async def test_closing_strands_no_caller() -> None:
    device = Device()
    device.free.clear()
    batcher = batcher_on(device, budget=10)
    running = asyncio.create_task(batcher.submit([10]))
    await device.held()
    waiting = asyncio.create_task(batcher.submit([9]))
    await asyncio.sleep(0)

    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    with pytest.raises(EngineUnavailable):
        await waiting
    device.free.set()

    assert await running == [20]
    await closing
    with pytest.raises(EngineUnavailable):
        await batcher.submit([1])
    batcher.close()


async def test_every_call_is_observed() -> None:
    seen: list[int] = []
    batcher: Batcher[int, int] = Batcher(
        lambda values: values, size=lambda value: value, budget=100, observe=lambda sizes, _: seen.append(len(sizes))
    )

    await batcher.submit([1, 2, 3])

    assert seen == [3]
    batcher.close()
