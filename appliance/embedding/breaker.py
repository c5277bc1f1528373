"""A breaker: leaves alone for a while what has failed several times, then tries it with one call."""

from collections.abc import Callable
from time import monotonic


class Breaker:
    """Closed while calls go well. After `failures` in a row it is open for `pause` seconds, then half open: one call,
    the probe, is let through, and decides. Belongs to one thread.

    A call that `allows` let through ends in `succeeded`, `failed` or `abandoned`. A probe of which nothing is heard for
    `pause` seconds is given up, and the next call is let through.

    Args:
        failures: in a row, that open it.
        pause: seconds that it stays open.
        clock: seconds that only grow.
    """

    def __init__(self, *, failures: int = 3, pause: float = 30.0, clock: Callable[[], float] = monotonic) -> None:
        self._failures = failures
        self._pause = pause
        self._clock = clock
        self._count = 0
        self._until: float | None = None  # None: closed
        self._probed: float | None = None  # when the probe under way began

    def closed(self) -> bool:
        """Whether calls go well, as far as is known."""
        return self._until is None

    def ready(self) -> bool:
        """Whether `allows` would let a call through now. Changes nothing."""
        if self._until is None:
            return True
        now = self._clock()
        return now >= self._until and (self._probed is None or now >= self._probed + self._pause)

    def allows(self) -> bool:
        """Whether a call may be made now; while it is half open, true for the caller whose call is the probe."""
        if not self.ready():
            return False
        if self._until is not None:
            self._probed = self._clock()
        return True

    def succeeded(self) -> None:
        """A call went well: closed."""
        self._count = 0
        self._until = self._probed = None

    def failed(self, retry_after: float | None = None) -> None:
        """A call failed.

        Args:
            retry_after: seconds that nothing should be asked, where that was said: opens at once, for that long.
        """
        self._count += 1
        now = self._clock()
        if retry_after is not None:
            self._until, self._probed = now + retry_after, None
        elif self._until is None:
            if self._count >= self._failures:
                self._until = now + self._pause
        elif now >= self._until:  # half open; a call that began before it opened changes nothing
            self._until, self._probed = now + self._pause, None

    def abandoned(self) -> None:
        """A call ended and told nothing: its caller left."""
        self._probed = None

    @property
    def retry_after(self) -> float:
        """Seconds until a call is let through; 0 where one is now, or as soon as the probe under way has ended."""
        return 0.0 if self._until is None else max(self._until - self._clock(), 0.0)
