"""Many callers, one device: what waits is run in batches of equal length, without a timer."""

import asyncio
import threading
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Generic, TypeVar

from appliance.errors import EngineFailed, EngineUnavailable, Overloaded

T = TypeVar("T")
R = TypeVar("R")

_SLACK = 32
"""Padded tokens that may always be wasted in a batch: a call of its own costs more."""

_BACKGROUND_TURN = 8
"""One batch in so many is led by background work, where both kinds wait: a busy server still finishes it."""


class _Ticket(Generic[R]):
    """One `submit` under way. Touched only under the batcher's lock, but for the future, which belongs to its loop."""

    __slots__ = ("error", "future", "left", "loop", "over", "results", "served")

    def __init__(self, future: asyncio.Future[list[R]], count: int) -> None:
        self.future = future
        self.loop = future.get_loop()
        self.results: list[R | None] = [None] * count
        self.left = count
        self.served = 0  # size of what was taken of it
        self.error: BaseException | None = None
        self.over = False  # answered, failed or abandoned: what of it still waits is dropped

    def resolve(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.results)  # type: ignore[arg-type]  # none is left empty


class _Item(Generic[T, R]):
    __slots__ = ("index", "serial", "size", "ticket", "value")

    def __init__(self, value: T, size: int, ticket: _Ticket[R], index: int) -> None:
        self.value = value
        self.size = size
        self.ticket = ticket
        self.index = index
        self.serial = 0


class _Line(Generic[T, R]):
    """Items that wait, known by the submission they belong to and by size."""

    def __init__(self) -> None:
        self._by_ticket: dict[_Ticket[R], dict[_Item[T, R], None]] = {}  # both in the order of age; none is empty
        self._by_size: list[tuple[int, int, _Item[T, R]]] = []
        self._next = 0
        self.size = 0

    def append(self, item: _Item[T, R]) -> None:
        item.serial = self._next
        self._next += 1
        self._by_ticket.setdefault(item.ticket, {})[item] = None
        insort(self._by_size, (item.size, item.serial, item))
        self.size += item.size

    def take(self, budget: int, *, by_age: bool) -> list[_Item[T, R]]:
        """A leader and its neighbours in size, as many as fit into `budget` padded; empty when none waits.

        The leader is the oldest item of the oldest submission, or of the one that was served least so far.
        """
        leader = self._leader(by_age=by_age)
        if leader is None:
            return []
        low = bisect_left(self._by_size, (leader.size, leader.serial))
        high = low + 1
        total = longest = leader.size
        rows = self._by_size
        while True:
            below = rows[low - 1][0] if low else None
            above = rows[high][0] if high < len(rows) else None
            count = high - low + 1
            options = []
            if below is not None and _fits(longest, total + below, count, budget):
                options.append((longest - below, -1))
            if above is not None and _fits(above, total + above, count, budget):
                options.append(((above - longest) * (count - 1), 1))
            if not options:
                break
            if min(options)[1] < 0:
                low -= 1
                total += rows[low][0]
            else:
                longest = rows[high][0]
                total += longest
                high += 1
        batch = [row[2] for row in rows[low:high]]
        del rows[low:high]
        self.size -= total
        for item in batch:
            item.ticket.served += item.size
            waiting = self._by_ticket[item.ticket]
            del waiting[item]
            if not waiting:
                del self._by_ticket[item.ticket]
        return [item for item in batch if not item.ticket.over]

    def _leader(self, *, by_age: bool) -> _Item[T, R] | None:
        while self._by_ticket:
            ticket = next(iter(self._by_ticket)) if by_age else min(self._by_ticket, key=lambda each: each.served)
            if not ticket.over:
                return next(iter(self._by_ticket[ticket]))
            self._sweep()
        return None

    def _sweep(self) -> None:
        """Drop what callers left who have gone."""
        self._by_ticket = {ticket: items for ticket, items in self._by_ticket.items() if not ticket.over}
        self._by_size = [row for row in self._by_size if not row[2].ticket.over]
        self.size = sum(row[0] for row in self._by_size)

    def clear(self) -> list[_Ticket[R]]:
        tickets = list(self._by_ticket)
        self._by_ticket.clear()
        self._by_size.clear()
        self.size = 0
        return tickets


def _fits(longest: int, total: int, count: int, budget: int) -> bool:
    padded = longest * count
    return padded <= budget and padded - total <= max(total // 4, _SLACK)


class Batcher(Generic[T, R]):
    """Runs what many callers submit on `lanes` threads of its own.

    No window: a lone item runs at once; batches form while the lanes are busy. One item leads a batch, its neighbours
    in size fill it up to the budget, and a lane never takes more than its share while others are idle.

    Batches are led in turn by the submission that was served least, the older of equals, and by the oldest: a short one
    overtakes a long one, and no stream of short ones stops a long one. Interactive items go before background ones, but
    for one batch in eight. Items whose caller has gone are dropped unrun. A batch that fails is run again one by one,
    so that a caller pays only for its own input.

    Args:
        run: blocking; results in the order of its arguments. Called from at most `lanes` threads at once.
        size: what an item costs, in tokens; a batch costs its largest item times its length.
        budget: cost of a full batch. A larger item runs alone.
        max_waiting: interactive submissions that may wait at once; one more raises Overloaded.
        observe: told the sizes of the items, and the seconds, of every call of `run`; from the lanes' threads.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R]],
        *,
        size: Callable[[T], int],
        budget: int,
        lanes: int = 1,
        max_waiting: int = 512,
        observe: Callable[[Sequence[int], float], None] | None = None,
    ) -> None:
        self._run = run
        self._size = size
        self._budget = budget
        self._max_waiting = max_waiting
        self._observe = observe
        self._lines: tuple[_Line[T, R], _Line[T, R]] = (_Line(), _Line())
        self._wake = threading.Condition()
        self._waiting = 0
        self._turn = 0
        self._idle = 0
        self._closed = False
        self._lanes = [threading.Thread(target=self._work, name=f"lane-{n}", daemon=True) for n in range(lanes)]
        for lane in self._lanes:
            lane.start()

    @property
    def waiting(self) -> int:
        """Interactive submissions that wait or run."""
        return self._waiting

    async def submit(self, items: Sequence[T], *, background: bool = False) -> list[R]:
        """The results of `items`, in order.

        Raises:
            Overloaded: too many submissions wait. Background ones are never refused: their caller bounds itself.
            EngineUnavailable: the batcher is closed.
            Exception: what `run` raised for one of these items run alone.
        """
        if not items:
            return []
        future: asyncio.Future[list[R]] = asyncio.get_running_loop().create_future()
        ticket: _Ticket[R] = _Ticket(future, len(items))
        sized = [_Item(value, self._size(value), ticket, index) for index, value in enumerate(items)]
        with self._wake:
            if self._closed:
                raise EngineUnavailable("the model was unloaded; ask again")
            if not background:
                if self._waiting >= self._max_waiting:
                    raise Overloaded("server busy, please try again.  maximum pending requests exceeded")
                self._waiting += 1
            line = self._lines[background]
            for item in sized:
                line.append(item)
            self._wake.notify(len(sized))
        try:
            return await future
        finally:
            with self._wake:
                ticket.over = True
                if not background:
                    self._waiting -= 1

    def close(self) -> None:
        """Let the running batches end, fail what waits, end the threads. Blocking; safe to call twice."""
        with self._wake:
            self._closed = True
            left = [ticket for line in self._lines for ticket in line.clear()]
            for ticket in left:
                ticket.error = EngineUnavailable("the model was unloaded; ask again")
                ticket.over = True
            self._wake.notify_all()
        _answer(left)
        for lane in self._lanes:
            lane.join()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._idle += 1
                while not (batch := self._take()):
                    if self._closed:
                        return
                    self._wake.wait()
                self._idle -= 1
            self._serve(batch)

    def _take(self) -> list[_Item[T, R]]:
        turn = self._turn + 1
        for line in self._lines if turn % _BACKGROUND_TURN else reversed(self._lines):
            if line.size:
                budget = self._budget
                if self._idle > 1:  # leave the others their share
                    budget = min(budget, -(-line.size // self._idle))
                while line.size:
                    if batch := line.take(budget, by_age=turn % 2 == 0):
                        self._turn = turn
                        return batch
        return []

    def _serve(self, batch: list[_Item[T, R]]) -> None:
        try:
            results = self._timed(batch)
        except Exception as error:  # noqa: BLE001  # whatever it is, it belongs to the caller
            if len(batch) > 1:
                for item in batch:
                    if not item.ticket.over:
                        self._serve([item])
                return
            self._fail(batch[0].ticket, error)
        else:
            self._settle(batch, results)

    def _timed(self, batch: list[_Item[T, R]]) -> Sequence[R]:
        start = perf_counter()
        results = self._run([item.value for item in batch])
        if self._observe is not None:
            self._observe([item.size for item in batch], perf_counter() - start)
        if len(results) != len(batch):
            raise EngineFailed(f"the engine answered {len(results)} results for {len(batch)} inputs")
        return results

    def _settle(self, batch: list[_Item[T, R]], results: Sequence[R]) -> None:
        done = []
        with self._wake:
            for item, result in zip(batch, results, strict=True):
                ticket = item.ticket
                ticket.results[item.index] = result
                ticket.left -= 1
                if not ticket.left:
                    done.append(ticket)
        _answer(done)

    def _fail(self, ticket: _Ticket[R], error: BaseException) -> None:
        with self._wake:
            if ticket.over:
                return
            ticket.error = error
            ticket.over = True
        _answer([ticket])


def _answer(tickets: Sequence[_Ticket[R]]) -> None:
    for ticket in tickets:
        with suppress(RuntimeError):  # the caller's loop is closed: nobody waits
            ticket.loop.call_soon_threadsafe(ticket.resolve)
