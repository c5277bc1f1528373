"""One pull of a model for everybody who asks for it, on a thread that no one need wait for."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial

import structlog

from appliance.embedding.pull import Progress
from appliance.embedding.threads import on_thread
from appliance.errors import ApplianceError, UpstreamFailed

_GRACE = 1.0
"""Seconds that a pull which was told to end gets to clean up."""

log = structlog.get_logger(__name__)


class SharedPull:
    """A pull under way. It goes on when nobody watches any longer. Made in the event loop it belongs to.

    Args:
        fetch: blocking; given what to report to, which raises UpstreamFailed once the pull is to end.
        name: of the model.
    """

    def __init__(self, fetch: Callable[[Callable[[Progress], None]], None], *, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._watchers: set[asyncio.Queue[Progress | None]] = set()
        self._last: Progress | None = None
        self._ending = False
        self._error: Exception | None = _ended(name)
        self._task = asyncio.create_task(self._run(fetch))

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not."""
        return self._task.done()

    async def watch(self) -> AsyncIterator[Progress]:
        """How far it is, and every progress from then on.

        Raises:
            Exception: what the pull failed with; UpstreamFailed where `close` ended it.
        """
        queue: asyncio.Queue[Progress | None] = asyncio.Queue()
        if self._last is not None:
            queue.put_nowait(self._last)
        self._watchers.add(queue)
        try:
            while (progress := await queue.get()) is not None:
                yield progress
        finally:
            self._watchers.discard(queue)
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """End it. A thread that is deep in a silent network is left behind after a second."""
        self._ending = True
        await asyncio.wait([self._task], timeout=_GRACE)
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self, fetch: Callable[[Callable[[Progress], None]], None]) -> None:
        try:
            await on_thread(partial(fetch, self._report), name=f"pull {self._name}")
            self._error = None
        except Exception as error:  # noqa: BLE001  # the watchers raise it
            self._error = error
            if not self._watchers and not self._ending:
                reason = error.message if isinstance(error, ApplianceError) else f"unexpected {type(error).__name__}"
                log.warning("pull failed, and nobody watched", model=self._name, error=reason)
        finally:
            for queue in self._watchers:
                queue.put_nowait(None)

    def _report(self, progress: Progress) -> None:
        """On the pull's thread."""
        if self._ending:
            raise _ended(self._name)
        with suppress(RuntimeError):  # the loop is closed: the next report ends the pull
            self._loop.call_soon_threadsafe(self._tell, progress)

    def _tell(self, progress: Progress) -> None:
        self._last = progress
        for queue in self._watchers:
            queue.put_nowait(progress)


def _ended(name: str) -> UpstreamFailed:
    return UpstreamFailed(f"the appliance is stopping; pull {name} again once it runs")
