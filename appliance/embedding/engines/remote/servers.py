"""Several servers of one model: which is asked next, who waits, what is tried again, and which one is left alone."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from math import ceil
from time import monotonic
from typing import NamedTuple, TypeVar

import httpx
import structlog

from appliance.embedding.breaker import Breaker
from appliance.embedding.engines.remote.refusals import OtherForm, TooLong, TooMany, Trouble
from appliance.errors import EngineUnavailable

_FIRST_PAUSE = 0.25
"""Seconds within which a server that failed is tried again, if there is no other; doubled each time."""

_LONGEST_PAUSE = 8.0

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(eq=False, kw_only=True)
class Server:
    """One address of a card.

    Attributes:
        name: for messages: provider, host and port.
        address: where to post.
        client: with its connections.
        breaker: whether to leave it alone.
        running: requests under way.
        turn: number of the last request that it was given.
        trouble: what it last failed with.
        rests_until: when it may be asked again, on the monotonic clock, because it said so.
    """

    name: str
    address: str
    client: httpx.AsyncClient = field(repr=False)
    breaker: Breaker
    running: int = 0
    turn: int = 0
    trouble: str = ""
    rests_until: float = 0.0


class _Waiter(NamedTuple):
    woken: asyncio.Future[None]
    refuses: AbstractSet[Server]


class Servers:
    """Gives each request to the server that has the fewest under way. Belongs to one event loop.

    Args:
        servers: of one model.
        concurrency: requests under way at each.
        timeout: seconds of one try.
        retries: tries after the first.
    """

    def __init__(self, servers: Sequence[Server], *, concurrency: int, timeout: float, retries: int) -> None:
        self._servers = tuple(servers)
        self._concurrency = concurrency
        self._timeout = timeout
        self._retries = retries
        self._waiters: dict[int, _Waiter] = {}  # in their order
        self._turn = 0

    async def ask(self, call: Callable[[Server, float], Awaitable[T]]) -> T:
        """What `call` gives, of the first server with which it does not fail.

        A failed try is followed by one at another server, or at the same after a random pause, until the retries are
        used up, or the time that they have together: (retries + 1) x timeout since the first one began.

        Args:
            call: asks a server, within so many seconds; raises `Trouble` where the server gave no answer. What else it
                raises is raised here.

        Raises:
            ApplianceError: of the last trouble.
            EngineUnavailable: every server is left alone now.
        """
        deadline: float | None = None
        tried: set[Server] = set()
        useless: set[Server] = set()
        last: Trouble | None = None
        for attempt in range(self._retries + 1):
            server = await self._taken(tried, useless, deadline=deadline, last=last)
            if deadline is None:
                deadline = monotonic() + self._timeout * (self._retries + 1)
            try:
                return await self._tried(server, call, deadline=deadline, first=server not in tried)
            except Trouble as trouble:
                last = trouble
                tried.add(server)
                if not trouble.again:
                    useless.add(server)
                if not trouble.elsewhere or len(useless) == len(self._servers):
                    raise trouble.error from trouble
            if attempt < self._retries and not self._fresh(tried):
                pause = random.uniform(0, min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE))  # noqa: S311 - no secret
                if monotonic() + pause >= deadline:
                    break
                await asyncio.sleep(pause)
        assert last is not None  # noqa: S101 - for mypy: there is one try at least
        raise last.error from last

    async def _tried(
        self, server: Server, call: Callable[[Server, float], Awaitable[T]], *, deadline: float, first: bool
    ) -> T:
        """One try; the server is given back, and what came of it is noted. However often a server answers one request
        with an error, it counts once: the request may be what is wrong.
        """
        was_closed = server.breaker.closed()
        told = False
        try:
            answer = await call(server, max(min(self._timeout, deadline - monotonic()), 0.001))
        except Trouble as trouble:
            told = True
            self._note(server, trouble, first=first)
            if was_closed and not server.breaker.closed():
                log.warning("remote server left alone", server=server.name, reason=trouble.error.message)
            raise
        except (TooLong, TooMany, OtherForm):  # it answers, and the caller has to do something about it
            told = True
            server.breaker.succeeded()
            raise
        else:
            told = True
            server.breaker.succeeded()
            if not was_closed:
                log.warning("remote server is back", server=server.name)
            return answer
        finally:
            if not told:
                server.breaker.abandoned()
            server.running -= 1
            self._wake()

    def _note(self, server: Server, trouble: Trouble, *, first: bool) -> None:
        """What a try that failed says of the server."""
        server.trouble = trouble.error.message
        if trouble.rest is not None:
            server.rests_until = monotonic() + trouble.rest
        if not trouble.counts:
            server.breaker.succeeded()  # it answers, if not to everything
        elif first or isinstance(trouble.error, EngineUnavailable):
            server.breaker.failed()
        else:
            server.breaker.abandoned()
        if trouble.counts or trouble.rest is not None:
            self._wake(everybody=True)

    def _fresh(self, tried: AbstractSet[Server]) -> bool:
        """Whether there is another server to be asked at once."""
        now = monotonic()
        return any(
            server.breaker.ready() and server.rests_until <= now for server in self._servers if server not in tried
        )

    async def _taken(
        self, tried: AbstractSet[Server], useless: AbstractSet[Server], *, deadline: float | None, last: Trouble | None
    ) -> Server:
        """The server to ask next, counted as running one more: of those not tried yet, if there is one.

        Args:
            tried: servers to be asked again only where there is no other.
            useless: servers not to be asked again.
            deadline: until when to wait; None to wait for a turn for as long as it takes.
            last: what to tell when that is over.
        """
        patience = monotonic() + self._timeout if deadline is None else deadline
        while True:
            now = monotonic()
            ready = [server for server in self._servers if server not in useless and server.breaker.ready()]
            if not ready:
                raise self._left_alone(last)
            awake = [server for server in ready if server.rests_until <= now]
            if not awake:
                soonest = min(server.rests_until for server in ready)
                if soonest >= patience:
                    raise _resting(soonest - now, last)
                await asyncio.sleep(soonest - now)
                continue
            refused = {*useless, *tried} if any(server not in tried for server in awake) else useless
            free = [server for server in awake if server not in refused and server.running < self._concurrency]
            if free:
                server = min(free, key=lambda each: (each.running, each.turn))
                server.breaker.allows()  # it is ready, and this makes the call the probe where there has to be one
                self._turn += 1
                server.turn = self._turn
                server.running += 1
                self._wake()
                return server
            soonest = self._soonest(refused, now)
            until = min(soonest, math.inf if deadline is None else deadline)
            try:
                async with asyncio.timeout(None if until == math.inf else max(until - now, 0)):
                    await self._turn_of(refused)
            except TimeoutError:
                if deadline is not None and monotonic() >= deadline:
                    raise self._left_alone(last) from None

    def _soonest(self, refused: AbstractSet[Server], now: float) -> float:
        """When a server that rests, or is left alone, may be asked again, on the monotonic clock."""
        others = [server for server in self._servers if server not in refused]
        times = [max(server.rests_until, now + server.breaker.retry_after) for server in others]
        return min((time for time in times if time > now), default=math.inf)

    async def _turn_of(self, refused: AbstractSet[Server]) -> None:
        """Wait until one of the others may be free."""
        waiter = _Waiter(asyncio.get_running_loop().create_future(), refused)
        self._waiters[id(waiter.woken)] = waiter
        try:
            await waiter.woken
        except asyncio.CancelledError:
            if waiter.woken.done() and not waiter.woken.cancelled():
                self._wake()  # it was this one's turn, and it has left
            raise
        finally:
            self._waiters.pop(id(waiter.woken), None)

    def _wake(self, *, everybody: bool = False) -> None:
        """Have the first one that waits for a server which is free look again, or everybody."""
        if not self._waiters:
            return
        now = monotonic()
        free = [
            server
            for server in self._servers
            if server.running < self._concurrency and server.breaker.ready() and server.rests_until <= now
        ]
        for waiter in list(self._waiters.values()) if everybody else self._waiters.values():
            if not waiter.woken.done() and (everybody or any(server not in waiter.refuses for server in free)):
                waiter.woken.set_result(None)
                if not everybody:
                    return

    def _left_alone(self, last: Trouble | None) -> Exception:
        if last is not None:
            return last.error
        soonest = min(self._servers, key=lambda server: server.breaker.retry_after)
        seconds = max(ceil(soonest.breaker.retry_after), 1)
        return EngineUnavailable(f"{soonest.trouble}; it is asked again in {seconds} s", retry_after=seconds)


def _resting(seconds: float, last: Trouble | None) -> Exception:
    if last is not None:
        return last.error
    return EngineUnavailable("the servers of the model asked for a pause", retry_after=max(ceil(seconds), 1))
