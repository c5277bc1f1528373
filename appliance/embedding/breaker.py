"""A circuit breaker: what fails again and again is left alone for a while."""

from collections.abc import Callable
from time import monotonic


class Breaker:
    """Counts failures in a row; after so many, lets one try through in each pause. Belongs to one event loop.

    Args:
        failures: in a row that open it.
        pause: seconds until the next try.
        clock: seconds that only grow.
    """

    def __init__(self, *, failures: int = 3, pause: float = 30.0, clock: Callable[[], float] = monotonic) -> None:
        self._most = failures
        self._pause = pause
        self._clock = clock
        self._failed = 0
        self._until = 0.0

    @property
    def retry_after(self) -> float:
        """Seconds until the next try; 0 when one may be made now."""
        return max(self._until - self._clock(), 0.0)

    def allows(self) -> bool:
        """Whether to try now. After a pause one caller is let through; the next a pause later, unless it succeeded."""
        if self._failed < self._most and not self._until:
            return True
        if self.retry_after > 0:
            return False
        self._until = self._clock() + self._pause
        return True

    def succeeded(self) -> None:
        """An answer came."""
        self._failed = 0
        self._until = 0.0

    def failed(self, retry_after: float | None = None) -> None:
        """No answer came; with `retry_after`, seconds, whoever did not answer said when to come back."""
        self._failed += 1
        if retry_after is not None or self._failed >= self._most:
            self._until = self._clock() + (self._pause if retry_after is None else retry_after)
